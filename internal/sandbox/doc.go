// Package sandbox holds the words of the domain: identifiers, resources, states
// and error codes, as the wire contract names them. Every other package speaks
// in these types. It imports the standard library only and knows nothing of
// HTTP, SQL, gVisor or files.
package sandbox
