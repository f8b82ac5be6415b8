// Command cni is every CNI plugin of a node in one binary: the name it is called by selects the plugin.
// Plugins call each other by these names through CNI_PATH, so the links and the binary lie in one folder.
package main

//go:generate go run generate.go

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/k3s-rs/k3s/nix/components/cni/flannel"
	"github.com/k3s-rs/k3s/nix/components/cni/upstream"
)

func main() {
	plugins := maps.Clone(upstream.Plugins)
	plugins["flannel"] = flannel.Main

	name := filepath.Base(os.Args[0])
	plugin, ok := plugins[name]
	if !ok {
		names := strings.Join(slices.Sorted(maps.Keys(plugins)), ", ")
		fmt.Fprintf(os.Stderr, "%s: call this program by one of its names: %s\n", name, names)
		os.Exit(64)
	}
	plugin()
}
