//go:build linux

// Package server is the guest's side of a sandbox: it runs commands, spools and
// numbers their output, and reads and writes files as the sandbox user. It runs as
// PID 1 and root inside the sandbox, while everything it starts for the host runs
// as the sandbox user and cannot touch it.
//
// It is linked into the guest, which has to stay small, so it imports neither fmt
// nor net nor anything of this module but the protocol. It knows nothing of the
// host, of other sandboxes or of the wire contract beyond the reasons it gives.
package server
