package protocol

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a peer that says what it says and hears nothing.
type script struct {
	io.Reader
	once   sync.Once
	closed chan struct{}
}

func newScript(b []byte) *script {
	return &script{Reader: bytes.NewReader(b), closed: make(chan struct{})}
}

func (s *script) Write(p []byte) (int, error) { return len(p), nil }
func (s *script) Close() error                { s.once.Do(func() { close(s.closed) }); return nil }

func hello() []byte {
	var b bytes.Buffer
	_ = writeHello(&b, Hello{Protocol: Version, Build: "b", Generation: "g"})
	return b.Bytes()
}

func rawFrame(k kind, id uint32, p string) []byte {
	b := make([]byte, headSize)
	putHead(b, k, id, len(p))
	return append(b, p...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// FuzzGuestFrames lets a guest say anything to a host that has a call under way.
func FuzzGuestFrames(f *testing.F) {
	f.Add(rawFrame(kindEnd, 1, "\x00"))
	f.Add(join(rawFrame(kindData, 1, "abc"), rawFrame(kindCredit, 1, "\x01\x00\x00\x00"), rawFrame(kindReset, 1, "")))
	f.Add([]byte{4, 1, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, _, err := Dial(newScript(join(hello(), b)))
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Open([]byte{1}, false)
		if err == nil {
			for {
				fr, err := s.Receive()
				if err != nil {
					break
				}
				fr.Release()
			}
		}
		select {
		case <-c.Done(): // what it said is over, so the connection is
		case <-time.After(10 * time.Second):
			t.Fatal("the connection outlives its peer")
		}
		_ = c.Close()
	})
}

// FuzzHostFrames lets a host say anything to a guest.
func FuzzHostFrames(f *testing.F) {
	f.Add(join(hello(), rawFrame(kindOpenEnd, 1, "\x01")))
	f.Add(join(hello(), rawFrame(kindOpen, 1, "\x0b"), rawFrame(kindData, 1, "abc"), rawFrame(kindEnd, 1, "")))
	f.Add(join(hello(), rawFrame(kindOpen, 1, ""), rawFrame(kindReset, 1, "")))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Serve(newScript(b), func() Hello { return Hello{Protocol: Version} }, func(*Conn) {}, func(s *Stream, request []byte) {
			for {
				fr, err := s.Receive()
				if err != nil {
					return
				}
				_ = s.Send(fr.Data) // the host may be gone
				fr.Release()
			}
		})
		if err == nil {
			t.Error("a connection that ends without a reason")
		}
	})
}

// FuzzMessages decodes anything as every message, and whatever is one must come
// out the same after another round.
func FuzzMessages(f *testing.F) {
	messages := func() []Message {
		return []Message{&Hello{}, &Bind{}, &Start{}, &Output{}, &Ack{}, &Exit{}, &Process{}, &Kill{}, &Forget{}, &Path{}, &Move{}, &Write{},
			&FileInfo{}, &Listed{}, &Resolved{}, &Port{}, &Fault{}}
	}
	for i, m := range messages() {
		switch m := m.(type) {
		case *Start:
			*m = Start{ID: "cmd_1", Command: "echo", Cwd: "/workspace", Env: []string{"A=1"}, Timeout: time.Second}
		case *Exit:
			m.Cause = CauseTimeout
		case *Kill:
			m.Cause = CauseCanceled
		case *Fault:
			m.Reason, m.Text = ReasonQuota, "full"
		case *Port:
			m.Port = 80
		}
		f.Add(byte(i), Encode(m))
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		all, again := messages(), messages()
		m := all[int(which)%len(all)]
		if err := Decode(b, m); err != nil {
			if !errors.Is(err, ErrViolation) {
				t.Fatalf("another error: %v", err)
			}
			return
		}
		first := Encode(m)
		n := again[int(which)%len(all)]
		if err := Decode(first, n); err != nil {
			t.Fatalf("%T does not survive: %v", m, err)
		}
		if !bytes.Equal(first, Encode(n)) {
			t.Fatalf("%T changes", m)
		}
	})
}

func FuzzChunk(f *testing.F) {
	b := make([]byte, ChunkHeadSize+3)
	(&ChunkHead{Seq: 3, At: 5}).Put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, data, err := SplitChunk(b)
		if err != nil {
			return
		}
		again := make([]byte, ChunkHeadSize, len(b))
		h.Put(again)
		if again = append(again, data...); !bytes.Equal(again, b) {
			t.Fatalf("%q becomes %q", b, again)
		}
	})
}
