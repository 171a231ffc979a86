package protocol

import "io"

func putUint32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func uint32At(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// reader reads frames. Small ones arrive many to a read; the rest of a large
// payload is read straight to where it belongs.
type reader struct {
	r      io.Reader
	buf    []byte
	lo, hi int
}

func newReader(r io.Reader) *reader { return &reader{r: r, buf: make([]byte, 16<<10)} }

// full fills p.
func (r *reader) full(p []byte) error {
	n := copy(p, r.buf[r.lo:r.hi])
	r.lo += n
	p = p[n:]
	for len(p) > 0 && len(p) >= len(r.buf) {
		n, err := r.r.Read(p)
		p = p[n:]
		if err != nil && len(p) > 0 {
			return err
		}
	}
	for len(p) > 0 {
		if r.lo == r.hi {
			n, err := r.r.Read(r.buf)
			if n == 0 && err != nil {
				return err
			}
			r.lo, r.hi = 0, n
		}
		n := copy(p, r.buf[r.lo:r.hi])
		r.lo += n
		p = p[n:]
	}
	return nil
}

func (r *reader) head() (kind, uint32, int, error) {
	var h [headSize]byte
	if err := r.full(h[:]); err != nil {
		return 0, 0, 0, err
	}
	n := uint32At(h[5:])
	if n > MaxOpen {
		return 0, 0, 0, violation("frame too large")
	}
	return kind(h[0]), uint32At(h[1:]), int(n), nil
}

// magic opens every greeting, so that a stream of anything else is seen at once.
const magic = "CrowNest"

func writeHello(w io.Writer, h Hello) error {
	e := Encoder{}
	e.raw(magic)
	h.encode(&e)
	b := make([]byte, headSize, headSize+len(e.b))
	putHead(b, kindHello, 0, len(e.b))
	_, err := w.Write(append(b, e.b...))
	return err
}

func readHello(r *reader) (Hello, error) {
	k, id, n, err := r.head()
	if err != nil {
		return Hello{}, err
	}
	if k != kindHello || id != 0 || n > MaxHello {
		return Hello{}, violation("no greeting")
	}
	p := make([]byte, n)
	if err := r.full(p); err != nil {
		return Hello{}, err
	}
	if len(p) < len(magic) || string(p[:len(magic)]) != magic {
		return Hello{}, violation("no greeting")
	}
	var h Hello
	d := NewDecoder(p[len(magic):])
	h.decode(d)
	return h, d.Finish()
}
