// Command containerd is containerd and ctr in one binary: the name it is called by selects the program, and containerd is
// what it is by any other name. Both are set up exactly as their own main functions in github.com/containerd/containerd do.
// The shim is a program of its own: one runs beside each pod, and must not pay for what these two link.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/containerd/containerd/v2/cmd/ctr/app"
)

func main() {
	name, program := "containerd", command.App
	if filepath.Base(os.Args[0]) == "ctr" {
		name, program = "ctr", app.New
	}
	if err := program().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
