package protocol

import "time"

// Encoder appends values: integers as varints, strings with their length first.
// Inlined into every message, its methods would make the guest 30 KB larger.
type Encoder struct{ b []byte }

// Bytes returns what was encoded.
func (e *Encoder) Bytes() []byte { return e.b }

func (e *Encoder) raw(s string) { e.b = append(e.b, s...) }

//go:noinline
func (e *Encoder) byte(v byte) { e.b = append(e.b, v) }

func (e *Encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

//go:noinline
func (e *Encoder) uint(v uint64) {
	for v >= 0x80 {
		e.b = append(e.b, byte(v)|0x80)
		v >>= 7
	}
	e.b = append(e.b, byte(v))
}

// int encodes with zigzag, so that -1 stays short.
func (e *Encoder) int(v int64) { e.uint(uint64(v)<<1 ^ uint64(v>>63)) }

//go:noinline
func (e *Encoder) str(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *Encoder) strs(list []string) {
	e.uint(uint64(len(list)))
	for _, s := range list {
		e.str(s)
	}
}

// Time is a point in time in nanoseconds since 1970, 0 for none. A time.Time in a
// message would bring all of its formatting into the guest.
type Time int64

// TimeOf converts a time.
func TimeOf(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixNano())
}

// Std converts back.
func (t Time) Std() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(t))
}

func (e *Encoder) time(t Time) { e.int(int64(t)) }

// Decoder takes values out again. The first malformed one makes it fail; after
// that everything reads as zero, so that callers check once, at Finish.
type Decoder struct {
	b   []byte
	bad string
}

// NewDecoder returns a decoder of b. Strings it returns are copies.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// Finish returns an error if anything was malformed, out of its bounds, or left over.
func (d *Decoder) Finish() error {
	if d.bad == "" && len(d.b) > 0 {
		d.bad = "message with something left over"
	}
	if d.bad != "" {
		return violation(d.bad)
	}
	return nil
}

func (d *Decoder) fail(why string) {
	if d.bad == "" {
		d.bad = why
	}
	d.b = nil
}

func (d *Decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("message too short")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *Decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("malformed truth value")
	}
	return v == 1
}

func (d *Decoder) uint() uint64 {
	var v uint64
	for shift := 0; ; shift += 7 {
		c := d.byte()
		if d.bad != "" {
			return 0
		}
		if shift == 63 && c > 1 {
			d.fail("number too large")
			return 0
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
}

func (d *Decoder) int() int64 {
	v := d.uint()
	return int64(v>>1) ^ -int64(v&1)
}

// between decodes an integer and holds it to its bounds.
func (d *Decoder) between(low, high int64) int64 {
	v := d.int()
	if v < low || v > high {
		d.fail("number out of bounds")
		return low
	}
	return v
}

func (d *Decoder) str(most int) string {
	n := d.uint()
	if n > uint64(most) || n > uint64(len(d.b)) {
		d.fail("string too long")
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *Decoder) strs(most, each int) []string {
	n := d.uint()
	if n > uint64(most) || n > uint64(len(d.b)) {
		d.fail("list too long")
		return nil
	}
	if n == 0 {
		return nil
	}
	list := make([]string, 0, n)
	for range n {
		list = append(list, d.str(each))
	}
	return list
}

func (d *Decoder) time() Time { return Time(d.int()) }
