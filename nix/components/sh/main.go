// Command sh runs the POSIX shell scripts by which local-path-provisioner makes and removes volumes, in an image that has
// no other program: the commands that they need are built in.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

const usage = "use: sh FILE [ARGUMENT...], or sh -c COMMANDS"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run does what the arguments say and returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	script, name, params, err := open(args)
	if err == nil {
		err = interpret(script, name, params, stdin, stdout, stderr)
	}
	if status, ok := errors.AsType[interp.ExitStatus](err); ok {
		return int(status)
	}
	if err != nil {
		fmt.Fprintf(stderr, "sh: %v\n", err)
		return 2
	}
	return 0
}

func open(args []string) (script io.Reader, name string, params []string, err error) {
	switch {
	case len(args) >= 2 && args[0] == "-c":
		// What follows the commands is $0.
		return strings.NewReader(args[1]), "-c", args[min(3, len(args)):], nil
	case len(args) >= 1 && !strings.HasPrefix(args[0], "-"):
		text, err := os.ReadFile(args[0])
		return strings.NewReader(string(text)), args[0], args[1:], err
	default:
		return nil, "", nil, errors.New(usage)
	}
}

func interpret(script io.Reader, name string, params []string, stdin io.Reader, stdout, stderr io.Writer) error {
	program, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(script, name)
	if err != nil {
		return err
	}
	runner, err := interp.New(
		interp.StdIO(stdin, stdout, stderr),
		interp.Params(append([]string{"--"}, params...)...),
		interp.ExecHandlers(withCommands),
	)
	if err != nil {
		return err
	}
	return runner.Run(context.Background(), program)
}
