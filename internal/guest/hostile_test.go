//go:build linux

package guest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/guest/protocol"
	"crownest.dev/crownest/internal/sandbox"
)

// Kinds of frames, as a guest that forges them knows them.
const (
	rawHello, rawOpen, rawData, rawEnd, rawReset, rawCredit = 1, 2, 4, 5, 6, 7
)

func frame(kind byte, stream uint32, payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{kind}, stream)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func greeting(version int) []byte {
	h := protocol.Hello{Protocol: version, Build: "evil", Generation: "g"}
	return frame(rawHello, 0, append([]byte("CrowNest"), protocol.Encode(&h)...))
}

func chunkFrame(stream uint32, seq int64, data string) []byte {
	b := make([]byte, protocol.ChunkHeadSize, protocol.ChunkHeadSize+len(data))
	h := protocol.ChunkHead{Seq: seq, At: 1}
	h.Put(b)
	return frame(rawData, stream, append(b, data...))
}

// readGreeting takes what a host says first.
func readGreeting(r io.Reader) bool {
	head := make([]byte, 9)
	if _, err := io.ReadFull(r, head); err != nil {
		return false
	}
	_, err := io.CopyN(io.Discard, r, int64(binary.LittleEndian.Uint32(head[5:])))
	return err == nil
}

// hostile connects to a guest that answers everything with what say writes.
func hostile(t *testing.T, hello []byte, say func(w io.Writer)) (*guest.Client, error) {
	t.Helper()
	host, inside := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer inside.Close()
		if !readGreeting(inside) {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, inside) }() // until the connection ends
		if _, err := inside.Write(hello); err != nil {
			return
		}
		say(inside)
	}()
	t.Cleanup(func() { _ = host.Close(); <-done })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := guest.NewClient(ctx, host, guest.Options{})
	if c != nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func TestHostileGreeting(t *testing.T) {
	for name, hello := range map[string][]byte{
		"garbage":       []byte(strings.Repeat("garbage!", 100)),
		"nothing":       nil,
		"huge":          frame(rawHello, 0, make([]byte, 100_000)),
		"no magic":      frame(rawHello, 0, []byte("HTTP/1.1 200 OK")),
		"other version": greeting(99),
		"another frame": frame(rawData, 1, []byte("x")),
		"huge length":   {rawHello, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := hostile(t, hello, func(io.Writer) {}); err == nil || c != nil {
				t.Errorf("got %v, %v", c, err)
			} else if !errors.Is(err, guest.ErrDisconnected) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHostileFrames(t *testing.T) {
	const forever = 1 << 30
	many := func(n int, f func(i int) []byte) func(io.Writer) {
		return func(w io.Writer) {
			for i := range n {
				if _, err := w.Write(f(i)); err != nil {
					return
				}
			}
		}
	}
	once := func(b []byte) func(io.Writer) { return many(1, func(int) []byte { return b }) }
	ok := protocol.Answer(nil, nil)
	started := frame(rawData, 1, ok)
	for _, tt := range []struct {
		name string
		say  func(io.Writer)
		// broken: the session has to end as a violation; else only the call fails.
		broken bool
	}{
		{"huge length", once([]byte{rawData, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f}), true},
		{"large frame", once(frame(rawData, 1, make([]byte, protocol.MaxFrame+1))), true},
		{"stream never opened", once(frame(rawData, 77, ok)), true},
		{"stream zero", once(frame(rawData, 0, ok)), true},
		{"guest opens", once(frame(rawOpen, 2, ok)), true},
		{"unknown kind", once(frame(99, 1, ok)), true},
		{"second greeting", once(greeting(protocol.Version)), true},
		{"empty frames for ever", many(forever, func(int) []byte { return frame(rawData, 1, nil) }), true},
		{"beyond the window", many(forever, func(int) []byte { return frame(rawData, 1, make([]byte, 60_000)) }), true},
		{"credit for ever", many(forever, func(int) []byte { return frame(rawCredit, 1, []byte{0xff, 0xff, 0, 0}) }), true},
		{"credit malformed", once(frame(rawCredit, 1, []byte{1})), true},
		{"data after the end", many(2, func(int) []byte { return frame(rawEnd, 1, []byte{9}) }), true},
		{"reset", once(frame(rawReset, 1, nil)), false},
		{"malformed answer", once(frame(rawData, 1, []byte{0, 1, 2})), true},
		{"over as soon as started", once(frame(rawEnd, 1, ok)), true},
		{"hole in the output", func(w io.Writer) {
			_, _ = w.Write(append(append(started, chunkFrame(1, 1, "a")...), chunkFrame(1, 3, "b")...))
		}, true},
		{"output repeated", func(w io.Writer) {
			_, _ = w.Write(append(append(started, chunkFrame(1, 1, "a")...), chunkFrame(1, 1, "a")...))
		}, true},
		{"output negative", func(w io.Writer) { _, _ = w.Write(append(started, chunkFrame(1, -1, "a")...)) }, true},
		{"empty chunk", func(w io.Writer) { _, _ = w.Write(append(started, chunkFrame(1, 1, "")...)) }, true},
		{"end without its output", func(w io.Writer) {
			x := protocol.Exit{Cause: protocol.CauseExited, LastSeq: 5}
			_, _ = w.Write(append(started, frame(rawEnd, 1, protocol.Answer(&x, nil))...))
		}, true},
		{"end is garbage", func(w io.Writer) { _, _ = w.Write(append(started, frame(rawEnd, 1, []byte("garbage"))...)) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := hostile(t, greeting(protocol.Version), func(w io.Writer) {
				time.Sleep(20 * time.Millisecond) // the first request is under way
				tt.say(w)
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			p, err := c.Start(ctx, guest.StartRequest{ID: "x", Command: "true"})
			if err == nil {
				_, err = p.Output(ctx, 0, func([]sandbox.LogChunk) error { return nil })
			}
			if err == nil || ctx.Err() != nil {
				t.Fatalf("got %v", err)
			}
			if !errors.Is(err, guest.ErrDisconnected) {
				t.Errorf("error %v", err)
			}
			if tt.broken {
				<-c.Done()
				if !errors.Is(c.Err(), guest.ErrProtocol) && !errors.Is(err, guest.ErrProtocol) {
					t.Errorf("session ended with %v", c.Err())
				}
			}
			_ = c.Close()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
				t.Errorf("heap grew by %d bytes", grown)
			}
		})
	}
}

// TestSilentGuest shows that calls end with their context whatever the guest does.
func TestSilentGuest(t *testing.T) {
	host, inside := net.Pipe()
	defer inside.Close()
	go func() {
		if readGreeting(inside) {
			_, _ = inside.Write(greeting(protocol.Version)) // and never reads again
		}
	}()
	c, err := guest.NewClient(t.Context(), host, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, call := range map[string]func(context.Context) error{
		"ping": c.Ping,
		"write": func(ctx context.Context) error {
			_, err := c.Write(ctx, guest.WriteRequest{Max: 1 << 40}, zeros{})
			return err
		},
		"start": func(ctx context.Context) error {
			_, err := c.Start(ctx, guest.StartRequest{ID: "x", Command: strings.Repeat("x", 200_000)})
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}

func TestAbandonedGreeting(t *testing.T) {
	host, inside := net.Pipe()
	defer inside.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := guest.NewClient(ctx, host, guest.Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
