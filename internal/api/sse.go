package api

import (
	"bytes"
	"math"
	"net/http"
	"strconv"
	"unicode/utf8"
)

const (
	// maxLine bounds the data line of an event, with room for its beginning.
	maxLine = 4<<20 - 64
	// flushAt is how much output may wait to be sent together.
	flushAt = 256 << 10
)

// eventStream writes server-sent events. Events gather until flush.
type eventStream struct {
	rq  *request
	rc  *http.ResponseController
	buf []byte
}

// openStream begins the answer; from now on errors are events.
func openStream(rq *request) (*eventStream, error) {
	h := rq.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no")
	rq.writeDeadline()
	rq.w.WriteHeader(http.StatusOK)
	e := &eventStream{rq: rq, rc: http.NewResponseController(rq.w)}
	return e, e.rc.Flush()
}

// json adds one event without an id.
func (e *eventStream) json(v any) {
	e.buf = append(e.buf, "data: "...)
	e.buf = appendLine(e.buf, encodeJSON(v))
	e.buf = append(e.buf, '\n', '\n')
}

func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(dst, n, 10) }

// flush sends what has gathered.
func (e *eventStream) flush() error {
	if len(e.buf) == 0 {
		return nil
	}
	e.rq.writeDeadline()
	_, err := e.rq.w.Write(e.buf)
	if cap(e.buf) > 4*flushAt {
		e.buf = nil
	}
	e.buf = e.buf[:0]
	if err != nil {
		return err
	}
	return e.rc.Flush()
}

// appendLine adds JSON text that a client may split on any Unicode line break:
// U+0085 is the one that the encoder leaves as it is.
func appendLine(dst, json []byte) []byte {
	for {
		i := bytes.Index(json, nextLine)
		if i < 0 {
			return append(dst, json...)
		}
		dst = append(dst, json[:i]...)
		dst = append(dst, `\u0085`...)
		json = json[i+len(nextLine):]
	}
}

var nextLine = []byte("\u0085")

const hexDigits = "0123456789abcdef"

// plain marks the ASCII characters that stand for themselves in a JSON string.
var plain = func() (t [utf8.RuneSelf]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// appendQuoted adds src as a JSON string. Bytes that are no UTF-8 become U+FFFD,
// one for each, and every Unicode line break is escaped.
func appendQuoted(dst, src []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(src); {
		c := src[i]
		if c < utf8.RuneSelf {
			if plain[c] {
				i++
				continue
			}
			dst = append(dst, src[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(src[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, src[start:i]...)
			dst = append(dst, "\uFFFD"...)
		case r == '\u0085':
			dst = append(dst, src[start:i]...)
			dst = append(dst, `\u0085`...)
		case r == '\u2028' || r == '\u2029':
			dst = append(dst, src[start:i]...)
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&15])
		default:
			i += size
			continue
		}
		i += size
		start = i
	}
	dst = append(dst, src[start:]...)
	return append(dst, '"')
}

// quotedPrefix returns how many bytes of s fit into a JSON string of at most limit
// bytes without its quotes, ending at a character, and how many it takes there.
// It counts each character as the longer of the two encoders writes it.
func quotedPrefix(s string, limit int) (n, size int) {
	for n < len(s) {
		var cost, width int
		if c := s[n]; c < utf8.RuneSelf {
			width, cost = 1, 6
			switch {
			case plain[c]:
				cost = 1
			case c == '"', c == '\\', c == '\n', c == '\r', c == '\t':
				cost = 2
			}
		} else {
			r, w := utf8.DecodeRuneInString(s[n:])
			width, cost = w, w
			if r == utf8.RuneError || r == '\u0085' || r == '\u2028' || r == '\u2029' {
				cost = 6
			}
		}
		if size+cost > limit {
			break
		}
		n, size = n+width, size+cost
	}
	return n, size
}

// fit cuts the output of a terminal command until its JSON fits into limit bytes.
// The stream that needs less gives its room to the other.
func (w *wireCommand) fit(limit int) {
	if w.Stdout == nil || w.Stderr == nil || 6*(len(*w.Stdout)+len(*w.Stderr)) < limit/2 {
		return
	}
	bare := *w
	bare.Stdout, bare.Stderr, bare.StdoutTruncated, bare.StderrTruncated = ptr(""), ptr(""), true, true
	room := max(0, limit-len(appendLine(nil, encodeJSON(bare))))
	_, outSize := quotedPrefix(*w.Stdout, math.MaxInt)
	_, errSize := quotedPrefix(*w.Stderr, math.MaxInt)
	if outSize+errSize <= room {
		return
	}
	outRoom := max(room/2, room-errSize)
	errRoom := max(room/2, room-outSize)
	if n, _ := quotedPrefix(*w.Stdout, outRoom); n < len(*w.Stdout) {
		w.Stdout, w.StdoutTruncated = ptr((*w.Stdout)[:n]), true
	}
	if n, _ := quotedPrefix(*w.Stderr, errRoom); n < len(*w.Stderr) {
		w.Stderr, w.StderrTruncated = ptr((*w.Stderr)[:n]), true
	}
}
