package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

const mediaBytes = "application/octet-stream"

// rawAnswer describes the bytes of a download, typedAnswer those of one that has
// a content type of its own.
var (
	rawAnswer = map[int]*content{http.StatusOK: {
		description: "The bytes", media: map[string]reflect.Type{mediaBytes: nil},
	}}
	typedAnswer = map[int]*content{http.StatusOK: {
		description: "The bytes, as the content type of the artifact", media: map[string]reflect.Type{"*/*": nil},
	}}
)

// copyBuffers hold what is on its way from an object to a client.
var copyBuffers = sync.Pool{New: func() any { return ptr(make([]byte, 256<<10)) }}

// download sends an object, or one range of it.
func (s *Server) download(ctx context.Context, rq *request, open func(ctx context.Context) (control.Content, error)) (err error) {
	// A client that is gone shows in the writes; until then even one that closed
	// its half of the connection gets what it asked for.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if c.Close != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	h := rq.w.Header()
	h.Set("Accept-Ranges", "bytes")
	from, length, partial, ok := byteRange(rq.r.Header, c.Size)
	if !ok {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(c.Size, 10))
		return sandbox.NewError(sandbox.CodeRangeNotSatisfiable, "The range is outside the %d bytes there are.", c.Size)
	}
	var body io.ReadCloser
	if rq.r.Method != http.MethodHead && length > 0 {
		if body, err = c.OpenRange(ctx, from, length); err != nil {
			return err
		}
		defer body.Close()
	}
	contentType := c.ContentType
	if contentType == "" {
		contentType = mediaBytes
	}
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", disposition(c.Name))
	h.Set("Content-Security-Policy", "sandbox") // a browser must run nothing of it
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	status := http.StatusOK
	if partial {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+length-1, c.Size))
		status = http.StatusPartialContent
	}
	rq.writeDeadline()
	rq.w.WriteHeader(status)
	if body == nil {
		return nil
	}
	return rq.send(body, length)
}

// send copies length bytes to the client. An object that ends early cuts the
// connection, so that the client does not take a part for the whole.
func (rq *request) send(body io.Reader, length int64) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for length > 0 {
		n, err := io.ReadAtLeast(body, (*buf)[:min(length, int64(len(*buf)))], 1)
		if n > 0 {
			rq.writeDeadline()
			if _, err := rq.w.Write((*buf)[:n]); err != nil {
				panic(http.ErrAbortHandler) // the client is gone
			}
			length -= int64(n)
		}
		if err != nil && length > 0 {
			return fmt.Errorf("reading an object with %d bytes to go: %w", length, err)
		}
	}
	return nil
}

// byteRange reads a Range header of one range. Other headers of that name are
// ignored, as RFC 9110 allows, and so is one that depends on a validator, since
// there are none. ok is false if no byte of the object is in the range.
func byteRange(h http.Header, size int64) (from, length int64, partial, ok bool) {
	spec, isBytes := strings.CutPrefix(h.Get("Range"), "bytes=")
	if !isBytes || h.Get("If-Range") != "" || strings.Contains(spec, ",") {
		return 0, size, false, true
	}
	first, last, found := strings.Cut(strings.TrimSpace(spec), "-")
	if !found || !digits(first) || !digits(last) || first == "" && last == "" {
		return 0, size, false, true
	}
	if first == "" { // the last n bytes
		n := clampInt(last)
		if n == 0 || size == 0 {
			return 0, 0, false, false
		}
		n = min(n, size)
		return size - n, n, true, true
	}
	from = clampInt(first)
	end := size - 1
	if last != "" {
		wanted := clampInt(last)
		if wanted < from {
			return 0, size, false, true // not a range at all
		}
		end = min(end, wanted)
	}
	if from >= size {
		return 0, 0, false, false
	}
	return from, end - from + 1, true, true
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

// clampInt reads digits; what does not fit is as far away as anything can be.
func clampInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1
	}
	return n
}

// disposition names a download for saving, never for showing (RFC 6266).
func disposition(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '/' || r == '\\' || r == '\uFFFD' {
			return '_'
		}
		return r
	}, text(name))
	if name == "" {
		return "attachment"
	}
	if v := mime.FormatMediaType("attachment", map[string]string{"filename": name}); v != "" {
		return v
	}
	return "attachment"
}
