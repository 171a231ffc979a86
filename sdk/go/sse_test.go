package crownest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func readEvents(r io.Reader) (events []string, err error) {
	reader := newEventReader(r)
	for {
		ev, err := reader.next()
		if err != nil {
			return events, err
		}
		events = append(events, fmt.Sprintf("%s|%s", ev.id, ev.data))
	}
}

func TestEventReader(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	for _, tc := range []struct {
		name, in string
		want     []string
		wantErr  error
	}{
		{"empty", "", nil, io.EOF},
		{"one", "id: 7\ndata: {}\n\n", []string{"7|{}"}, io.EOF},
		{"no space after the colon", "data:{}\n\n", []string{"|{}"}, io.EOF},
		{"CRLF", "id: 1\r\ndata: a\r\n\r\ndata: b\r\n\r\n", []string{"1|a", "|b"}, io.EOF},
		{"comments and blank lines", ": hi\n\n\n\n:\ndata: a\n: between\n\n", []string{"|a"}, io.EOF},
		{"several data lines", "data: a\ndata:\ndata: b\n\n", []string{"|a\n\nb"}, io.EOF},
		{"unknown fields", "event: x\nretry: 5\nnonsense\ndata: a\n\n", []string{"|a"}, io.EOF},
		{"event without data", "id: 3\n\ndata: a\n\n", []string{"|a"}, io.EOF},
		{"byte order mark", "\xef\xbb\xbfdata: a\n\n", []string{"|a"}, io.EOF},
		{"line separators are data", "data: a\u2028\u0085b\n\n", []string{"|a\u2028\u0085b"}, io.EOF},
		{"long line", "data: " + long + "\n\n", []string{"|" + long}, io.EOF},
		{"cut within a line", "data: a\n\ndata: b", []string{"|a"}, io.ErrUnexpectedEOF},
		{"cut before the blank line", "data: a\n", nil, io.ErrUnexpectedEOF},
		{"endless line", "data: " + strings.Repeat("y", maxEventBytes+1), nil, errEventTooLarge},
		{"endless event", strings.Repeat("data: "+strings.Repeat("z", 1<<20)+"\n", 9), nil, errEventTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := readEvents(strings.NewReader(tc.in))
			if fmt.Sprint(got) != fmt.Sprint(tc.want) || !errors.Is(err, tc.wantErr) {
				t.Errorf("events, error = %.200q, %v, want %.200q, %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

// However the bytes are cut into reads, the events are the same, and data never
// holds what only separates lines.
func FuzzEventReader(f *testing.F) {
	for _, seed := range []string{
		"id: 1\ndata: {\"type\":\"log\"}\n\n: ping\n\ndata: a\ndata: b\n\n",
		"data: x\r\n\r\n\xef\xbb\xbfdata: y\n\n", "data", ":\n\n\n", "id\ndata:\n\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, err := readEvents(bytes.NewReader(in))
		if err == nil {
			t.Fatal("the stream has no end")
		}
		pieces, err2 := readEvents(iotest.OneByteReader(bytes.NewReader(in)))
		if fmt.Sprint(whole) != fmt.Sprint(pieces) || err.Error() != err2.Error() {
			t.Fatalf("in one piece %q (%v), in many %q (%v)", whole, err, pieces, err2)
		}
		if len(whole) > bytes.Count(in, []byte("data")) {
			t.Fatalf("%d events of %q", len(whole), in)
		}
	})
}
