//go:build linux

package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"crownest.dev/crownest/internal/guest/rawfile"
	"crownest.dev/crownest/internal/guest/server"
)

// The sandbox user, as every template has it.
const (
	userID   = 1000
	userName = "sandbox"
	userHome = "/home/" + userName
)

// socketName is the abstract address on which PID 1 takes new connections.
const socketName = "@crownest-guest"

// runtimeDir holds the guest's own files.
const runtimeDir = "/run/crownest"

// Limits that every process of the sandbox user starts with.
const (
	openFilesSoft = 4096
	openFilesHard = 65536
)

// waitingShells is how many shells wait for a command.
const waitingShells = 2

// initialise is PID 1. It returns only if the sandbox cannot be used.
func initialise() error {
	if os.Getpid() != 1 {
		return errors.New("init has to be PID 1")
	}
	if err := harden(); err != nil {
		return err
	}
	if err := prepare(); err != nil {
		return err
	}
	cgroup := "/sys/fs/cgroup"
	if !rawfile.Exists(cgroup + "/cgroup.controllers") {
		cgroup = "" // see server.Config
	}
	srv, err := server.New(server.Config{
		UID: userID, GID: userID, Home: userHome, Cgroup: cgroup, PID1: true,
		Build: build, Shells: waitingShells, Runtime: runtimeDir,
	})
	if err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	if pipes, err := hostPipes(); err == nil {
		go serve(srv, pipes)
	}
	for {
		conn, err := accept(l)
		if err != nil {
			complain(err)
			continue
		}
		go serve(srv, conn)
	}
}

// serve speaks with one host until it is gone. Its end is no reason to end
// anything else.
func serve(srv *server.Server, conn io.ReadWriteCloser) {
	if err := srv.Serve(conn); err != nil && !errors.Is(err, io.EOF) {
		complain(err)
	}
}

// harden takes from PID 1, and so from everything that it starts, what nothing in
// a sandbox needs.
func harden() error {
	unix.Umask(0o022)
	// No program may give its caller more rights than it has: not even with a
	// setuid bit or file capabilities in the image.
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return os.NewSyscallError("prctl", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return os.NewSyscallError("setgroups", errno)
	}
	if err := dropInheritable(); err != nil {
		return err
	}
	// Threads that act as the sandbox user stay out of the user's reach.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	limits := []struct {
		which      int
		soft, hard uint64
	}{
		{unix.RLIMIT_NOFILE, openFilesSoft, openFilesHard},
		{unix.RLIMIT_CORE, 0, 0},
	}
	for _, l := range limits {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(l.which, &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		// Without the right to raise a limit, what the runtime gave has to do.
		hard := min(l.hard, now.Max)
		if err := syscall.Setrlimit(l.which, &syscall.Rlimit{Cur: min(l.soft, hard), Max: hard}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// dropInheritable keeps the runtime's capabilities from every program that PID 1
// starts.
func dropInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}

// prepare makes what the image may lack: the workspace, the user and its home.
func prepare() error {
	for _, dir := range []string{"/home", userHome, server.Workspace, runtimeDir} {
		if err := rawfile.MakeDir(dir, 0o755); err != nil {
			return &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
	}
	for _, dir := range []string{userHome, server.Workspace} {
		if err := unix.Lchown(dir, userID, userID); err != nil {
			return &os.PathError{Op: "chown", Path: dir, Err: err}
		}
	}
	if err := ensureLine("/etc/passwd", userName+":x:1000:1000::"+userHome+":/bin/bash\n"); err != nil {
		return err
	}
	return ensureLine("/etc/group", userName+":x:1000:\n")
}

// ensureLine appends a line to a file of accounts unless the account is there.
func ensureLine(path, line string) error {
	b, err := rawfile.Read(path)
	if err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "read", Path: path, Err: err}
	}
	name, _, _ := strings.Cut(line, ":")
	if strings.HasPrefix(string(b), name+":") || strings.Contains(string(b), "\n"+name+":") {
		return nil
	}
	if err := rawfile.Write(path, line, unix.O_APPEND|unix.O_CREAT, 0o644); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
