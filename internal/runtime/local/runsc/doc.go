// Package runsc is the only package that knows gVisor. It makes the product's
// binary act as gVisor's runsc when it is executed again under that name, starts
// one sandbox through a short-lived child process, and asks a running sandbox for
// a new connection to its guest. It knows nothing of pools, state directories,
// host cgroups or the guest's protocol.
package runsc
