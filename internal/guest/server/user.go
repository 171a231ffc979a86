//go:build linux

package server

import (
	"runtime"
	"syscall"
)

// asUser calls f with the file system rights of the sandbox user: on a thread of
// its own whose effective ids are the user's. The real ids stay root's, so that
// the user can neither signal nor trace the thread. (A file system uid alone,
// setfsuid, would do, but gVisor has none.)
//
// Descriptors that f opens stay as they were opened; using them needs no rights.
func (s *Server) asUser(f func()) {
	if s.cfg.UID == syscall.Geteuid() {
		f()
		return
	}
	runtime.LockOSThread()
	const keep = ^uintptr(0)
	_, _, gidErr := syscall.RawSyscall(syscall.SYS_SETRESGID, keep, uintptr(s.cfg.GID), keep)
	_, _, uidErr := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(s.cfg.UID), keep)
	if gidErr != 0 || uidErr != 0 {
		// Root may always do this. Going on with root's rights must never happen.
		panic("guest: cannot take the rights of the sandbox user")
	}
	f()
	_, _, uidErr = syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep)
	_, _, gidErr = syscall.RawSyscall(syscall.SYS_SETRESGID, keep, 0, keep)
	if gidErr != 0 || uidErr != 0 {
		return // the thread stays locked and ends with its goroutine
	}
	runtime.UnlockOSThread()
}
