// Package version holds the version that the build stamped into this binary. It
// knows nothing else and imports nothing.
package version

// Version is set by the linker (see the Makefile); a plain `go build` leaves "dev".
var Version = "dev"
