//go:build ignore

// Command generate makes the upstream plugins importable. Each is a `package main`, which Go links only alone; a copy of
// its source under upstream/<name>/ is renamed to a package of its own whose Main is the former main. Nothing else changes.
// The plugins are the tools of go.mod.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"log"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const (
	module = "github.com/k3s-rs/k3s/nix/components/cni"
	output = "upstream"
)

// plugin is what `go list` knows of one package; GoFiles holds neither tests nor files of other systems.
type plugin struct {
	ImportPath string
	Dir        string
	GoFiles    []string
}

func (p plugin) name() string { return path.Base(p.ImportPath) }

// ident is the plugin's name as a Go package name.
func (p plugin) ident() string { return strings.ReplaceAll(p.name(), "-", "") }

func main() {
	plugins, err := list()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.RemoveAll(output); err != nil {
		log.Fatal(err)
	}
	for _, p := range plugins {
		if err := p.copy(); err != nil {
			log.Fatalf("%s: %v", p.ImportPath, err)
		}
	}
	if err := writeTable(plugins); err != nil {
		log.Fatal(err)
	}
}

// list sorts: the order of the pattern `tool` is random, and it shows in the binary.
func list() ([]plugin, error) {
	command := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles", "tool")
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go list tool: %w", err)
	}
	var plugins []plugin
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p plugin
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			slices.SortFunc(plugins, func(a, b plugin) int { return strings.Compare(a.ImportPath, b.ImportPath) })
			return plugins, nil
		} else if err != nil {
			return nil, err
		}
		plugins = append(plugins, p)
	}
}

func (p plugin) copy() error {
	folder := filepath.Join(output, p.ident())
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, file := range p.GoFiles {
		source, err := os.ReadFile(filepath.Join(p.Dir, file))
		if err != nil {
			return err
		}
		renamed, err := rename(source, p.ident())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, file), renamed, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// rename makes a file of `package main` one of `package ident` and exports its main.
func rename(source []byte, ident string) ([]byte, error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", source, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	file.Name.Name = ident
	for _, declaration := range file.Decls {
		if function, ok := declaration.(*ast.FuncDecl); ok && function.Recv == nil && function.Name.Name == "main" {
			function.Name.Name = "Main"
		}
	}
	var out bytes.Buffer
	err = format.Node(&out, files, file)
	return out.Bytes(), err
}

func writeTable(plugins []plugin) error {
	var imports, entries strings.Builder
	for _, p := range plugins {
		fmt.Fprintf(&imports, "\t%q\n", path.Join(module, output, p.ident()))
		fmt.Fprintf(&entries, "\t%q: %s.Main,\n", p.name(), p.ident())
	}
	source := fmt.Sprintf("// Package upstream holds generated copies of the upstream plugins.\npackage upstream\n\nimport (\n%s)\n\n"+
		"// Plugins maps each plugin's name to its main function.\nvar Plugins = map[string]func(){\n%s}\n", &imports, &entries)
	formatted, err := format.Source([]byte(source))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(output, "plugins.go"), formatted, 0o644)
}
