//go:build linux

// Command crownest-guest is the first process of every sandbox.
//
//	crownest-guest init     is PID 1: it serves the host on descriptors 3 and 4
//	crownest-guest attach   hands its descriptor 3 to PID 1 as a new connection
//
// It is kept below 2 MB, since every template image and every sandbox carries it.
package main

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// build is set by the linker.
var build = "dev"

func main() {
	// A sandbox is paid for by its memory, and the guest has little garbage.
	debug.SetGCPercent(50)
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "init":
		err = initialise()
	case len(os.Args) == 2 && os.Args[1] == "attach":
		err = attach()
	case len(os.Args) == 2 && os.Args[1] == "version":
		_, err = os.Stdout.WriteString(build + "\n")
	default:
		_, _ = os.Stderr.WriteString("usage: crownest-guest init|attach|version\n")
		os.Exit(2)
	}
	if err != nil {
		complain(err)
		os.Exit(1)
	}
}

// complain tells whoever reads the sandbox's console. It does so by the system call:
// package os ends a program whose standard error is a broken pipe.
func complain(err error) {
	_, _ = unix.Write(2, []byte("crownest-guest: "+err.Error()+"\n"))
}
