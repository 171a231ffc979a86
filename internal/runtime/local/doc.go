// Package local is the runtime driver for one machine: every instance is a gVisor
// sandbox on this host. It keeps pools of running instances, writes down what it
// is about to make before it makes it, and finds all of it again after a crash.
//
// It knows processes, cgroups and files of the host. It knows nothing of the
// guest's protocol (it deals in net.Conn), of who owns a sandbox, or of HTTP, and
// leaves everything that is gVisor's to package runsc.
package local
