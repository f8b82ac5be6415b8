package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/interp"
)

// commands do to one operand what a program of their name does. Those that have one take their first operand themselves.
var commands = map[string]func(flags *flag.FlagSet) command{
	"chmod": chmod,
	"chown": chown,
	"mkdir": mkdir,
	"rm":    rm,
}

type command struct {
	// first parses the operand before the paths, if there is one.
	first func(operand string) error
	path  func(path string) error
}

// withCommands runs what is built in, and leaves everything else to next.
func withCommands(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error {
		build, ok := commands[args[0]]
		if !ok {
			return next(ctx, args)
		}
		at := interp.HandlerCtx(ctx)
		if err := runCommand(args[0], build, args[1:], at.Dir, at.Stderr); err != nil {
			fmt.Fprintf(at.Stderr, "%s: %v\n", args[0], err)
			return interp.ExitStatus(1)
		}
		return nil
	}
}

// runCommand goes on with the other paths when one fails, as the programs do.
func runCommand(name string, build func(*flag.FlagSet) command, args []string, dir string, stderr io.Writer) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	command := build(flags)
	if err := flags.Parse(apart(args, flags)); err != nil {
		return err
	}
	operands := flags.Args()
	if command.first != nil && len(operands) > 0 {
		if err := command.first(operands[0]); err != nil {
			return err
		}
		operands = operands[1:]
	}
	if len(operands) == 0 {
		if force := flags.Lookup("f"); force != nil && force.Value.String() == "true" {
			return nil
		}
		return errors.New("a path is missing")
	}
	var failures []error
	for _, path := range operands {
		if !filepath.IsAbs(path) {
			// Not joined, which would take away `..` and a slash at the end.
			path = dir + "/" + path
		}
		failures = append(failures, command.path(path))
	}
	return errors.Join(failures...)
}

// apart divides letters that were written together, as in -rf.
func apart(args []string, flags *flag.FlagSet) []string {
	var all []string
	for index, arg := range args {
		if arg == "--" || arg == "-" || !strings.HasPrefix(arg, "-") {
			return append(all, args[index:]...)
		}
		for at, letter := range arg[1:] {
			all = append(all, "-"+string(letter))
			if known := flags.Lookup(string(letter)); known != nil && !isSwitch(known) {
				// Its value is the rest, or the next argument.
				if rest := arg[1+at+1:]; rest != "" {
					return append(append(all, rest), apart(args[index+1:], flags)...)
				}
				if index+1 < len(args) {
					return append(append(all, args[index+1]), apart(args[index+2:], flags)...)
				}
			}
		}
	}
	return all
}

func isSwitch(known *flag.Flag) bool {
	value, ok := known.Value.(interface{ IsBoolFlag() bool })
	return ok && value.IsBoolFlag()
}

func mkdir(flags *flag.FlagSet) command {
	parents := flags.Bool("p", false, "")
	mode := flags.String("m", "", "")
	return command{path: func(path string) error {
		create := os.Mkdir
		if *parents {
			create = os.MkdirAll
		}
		if err := create(path, 0o777); err != nil || *mode == "" {
			return err
		}
		return change(path, *mode)
	}}
}

func chmod(flags *flag.FlagSet) command {
	recursive := flags.Bool("R", false, "")
	var mode string
	return command{
		first: func(operand string) error {
			mode = operand
			_, err := parseMode(mode)
			return err
		},
		path: func(path string) error {
			return each(path, *recursive, func(path string, entry fs.DirEntry) error {
				if entry != nil && entry.Type()&fs.ModeSymlink != 0 {
					return nil
				}
				return change(path, mode)
			})
		},
	}
}

func change(path, mode string) error {
	parsed, err := parseMode(mode)
	if err != nil {
		return err
	}
	return os.Chmod(path, parsed)
}

func parseMode(mode string) (fs.FileMode, error) {
	bits, err := strconv.ParseUint(mode, 8, 12)
	if err != nil {
		return 0, fmt.Errorf("%q is not a mode in octal", mode)
	}
	parsed := fs.FileMode(bits & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			parsed |= flag
		}
	}
	return parsed, nil
}

func chown(flags *flag.FlagSet) command {
	recursive := flags.Bool("R", false, "")
	user, group := -1, -1
	return command{
		first: func(operand string) (err error) {
			owner, owning, _ := strings.Cut(operand, ":")
			for _, part := range []struct {
				text string
				id   *int
			}{{owner, &user}, {owning, &group}} {
				if part.text == "" {
					continue
				}
				if *part.id, err = strconv.Atoi(part.text); err != nil || *part.id < 0 {
					return fmt.Errorf("%q is not USER:GROUP in numbers", operand)
				}
			}
			return nil
		},
		path: func(path string) error {
			return each(path, *recursive, func(path string, _ fs.DirEntry) error {
				return os.Lchown(path, user, group)
			})
		},
	}
}

func rm(flags *flag.FlagSet) command {
	recursive := flags.Bool("r", false, "")
	flags.BoolVar(recursive, "R", false, "")
	force := flags.Bool("f", false, "")
	return command{path: func(path string) error {
		if name := filepath.Base(path); name == "/" || name == "." || name == ".." {
			return fmt.Errorf("%s is not removed", path)
		}
		info, err := os.Lstat(path)
		if *force && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !*recursive && info.IsDir() {
			return fmt.Errorf("%s is a folder", path)
		}
		return os.RemoveAll(path)
	}}
}

// each goes through path, and through everything below it if told to.
func each(path string, recursive bool, do func(path string, entry fs.DirEntry) error) error {
	if !recursive {
		return do(path, nil)
	}
	return filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return do(path, entry)
	})
}
