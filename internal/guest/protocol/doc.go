// Package protocol is the language that the host and the guest of one sandbox
// speak over a single byte stream: frames, streams with credit windows, and the
// requests and answers inside them.
//
// The host opens every stream; the guest only answers. Neither side lets the
// other make it buffer more than Window bytes per stream and MaxStreams streams.
// A peer that breaks a rule ends the connection, never the process.
//
// The package is linked into the guest, which has to stay small: it may import
// only small packages of the standard library, not fmt, net, reflect or encoding.
// It knows nothing of processes, files or HTTP.
package protocol

// Version is the protocol both sides must speak. A peer with another one is
// answered with a hello, so that it can say what it met, and then dropped.
const Version = 1

// Bounds of the framing. Both sides enforce them on everything they receive.
const (
	// MaxChunk is the most bytes of a file, a port or a log chunk in one frame.
	MaxChunk = 64 << 10
	// MaxFrame is the largest payload of any frame but Open: a chunk and its head.
	MaxFrame = MaxChunk + 64
	// MaxOpen is the largest request: a command and its environment.
	MaxOpen = 512 << 10
	// MaxHello is the largest greeting.
	MaxHello = 512
	// MaxStreams is how many streams may be open on one connection.
	MaxStreams = 1024
	// Window is how much a side may send on a stream before it gets new credit.
	Window = 512 << 10

	// frameCost is what a frame takes from the window beside its payload, so that a
	// flood of tiny frames is bounded as well.
	frameCost = 64
	// maxQueued bounds what waits in memory for the wire.
	maxQueued = 256 << 10
)
