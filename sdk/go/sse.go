package crownest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxEventBytes bounds one event. The API keeps data lines below 4 MiB.
const maxEventBytes = 8 << 20

// errEventTooLarge ends a stream whose server does not keep that promise.
var errEventTooLarge = errors.New("event exceeds the size limit")

// event is one server-sent event.
type event struct {
	id   string
	data []byte // valid until the next call
}

// eventReader reads server-sent events. Comments, unknown fields and events
// without data are passed over.
type eventReader struct {
	r     *bufio.Reader
	line  []byte
	data  []byte
	first bool
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, 64<<10), first: true}
}

// next returns the next event. At the end of the stream it is io.EOF, and
// io.ErrUnexpectedEOF where the end cut an event.
func (e *eventReader) next() (event, error) {
	var ev event
	e.data = e.data[:0]
	hasData, pending := false, false
	for {
		line, err := e.readLine()
		if err != nil {
			if errors.Is(err, io.EOF) && pending {
				err = io.ErrUnexpectedEOF
			}
			return event{}, err
		}
		if len(line) == 0 {
			if hasData {
				ev.data = e.data
				return ev, nil
			}
			ev, pending = event{}, false
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "":
			continue // a comment, sent to keep the connection alive
		case "data":
			if hasData {
				e.data = append(e.data, '\n')
			}
			if len(e.data)+len(value) > maxEventBytes {
				return event{}, fmt.Errorf("crownest: %w", errEventTooLarge)
			}
			e.data = append(e.data, value...)
			hasData = true
		case "id":
			ev.id = string(value)
		}
		pending = true
	}
}

// readLine returns one line without its end, which may be LF or CRLF. A part of
// a line before the end of the stream does not count.
func (e *eventReader) readLine() ([]byte, error) {
	e.line = e.line[:0]
	for {
		part, err := e.r.ReadSlice('\n')
		if len(e.line)+len(part) > maxEventBytes {
			return nil, fmt.Errorf("crownest: %w", errEventTooLarge)
		}
		e.line = append(e.line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if err == io.EOF && len(e.line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		line := bytes.TrimSuffix(e.line[:len(e.line)-1], []byte("\r"))
		if e.first {
			e.first = false
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		return line, nil
	}
}
