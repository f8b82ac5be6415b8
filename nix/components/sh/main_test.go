package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sh runs commands in a new folder.
func sh(t *testing.T, commands string) (code int, stdout, stderr string) {
	t.Helper()
	t.Chdir(t.TempDir())
	var out, err strings.Builder
	code = run([]string{"-c", commands, "sh", "first", "second"}, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

func TestAVolumeIsMadeAndRemoved(t *testing.T) {
	volume := filepath.Join(t.TempDir(), "storage", "pvc-1_default_data")
	t.Setenv("VOL_DIR", volume)
	setup := filepath.Join(t.TempDir(), "setup")
	script := "#!/bin/sh\nset -eu\nmkdir -m 0777 -p \"${VOL_DIR}\"\nchmod 0700 \"${VOL_DIR}/..\"\n"
	if err := os.WriteFile(setup, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var out strings.Builder
		if code := run([]string{setup, "-p", volume}, strings.NewReader(""), &out, &out); code != 0 {
			t.Fatal(code, out.String())
		}
	}
	for path, mode := range map[string]os.FileMode{volume: 0o777, filepath.Dir(volume): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if code, _, stderr := sh(t, "set -eu; echo full > $VOL_DIR/file; mkdir $VOL_DIR/a; rm -rf \"${VOL_DIR}\"; rm -rf \"${VOL_DIR}\""); code != 0 {
		t.Fatal(code, stderr)
	}
	if _, err := os.Stat(volume); !os.IsNotExist(err) {
		t.Error(err)
	}
}

func TestWhatFailsIsToldAndEndsTheScript(t *testing.T) {
	for commands, want := range map[string]string{
		"set -e; mkdir a/b; echo on":        "no such file or directory",
		"set -e; mkdir a; mkdir a; echo on": "file exists",
		"set -e; rm a; echo on":             "no such file or directory",
		"set -e; mkdir a; rm a; echo on":    "is a folder",
		"set -e; rm -rf ..; echo on":        "is not removed",
		"set -e; rm -rf /; echo on":         "is not removed",
		"set -e; chmod u+x .; echo on":      "not a mode in octal",
		"set -e; chown root .; echo on":     "not USER:GROUP in numbers",
		"set -e; mkdir; echo on":            "a path is missing",
		"set -e; mkdir -x a; echo on":       "not defined",
		"set -e; no-such-program; echo on":  "not found",
		"set -u; echo $VOLUME; echo on":     "unbound",
		"if; echo on":                       "if",
	} {
		if code, stdout, stderr := sh(t, commands); code == 0 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q: %d %q %q", commands, code, stdout, stderr)
		}
	}
	if code := run(nil, strings.NewReader(""), &strings.Builder{}, &strings.Builder{}); code != 2 {
		t.Error(code)
	}
}

func TestModesAndLetters(t *testing.T) {
	code, stdout, stderr := sh(t, "mkdir -pm700 a/b && mkdir -p -m 2770 c && touch=1 && : > a/file && chmod -R 750 a && chown -R $3:$4 a; echo $1 $2")
	if code != 0 || stdout != "first second\n" {
		// $3 and $4 are empty: nothing changes its owner.
		t.Fatal(code, stdout, stderr)
	}
	for path, mode := range map[string]os.FileMode{"a/b": 0o750, "a/file": 0o750, "c": 0o770} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if info, _ := os.Stat("c"); info.Mode()&os.ModeSetgid == 0 {
		t.Error(info.Mode())
	}
}
