package crownest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// progress, where a transfer takes one, is called with the total size when it is
// known (-1 if it is not), before the first byte.
type progress func(total int64)

// download copies what a signed URL stands for to w.
func (c *Client) download(ctx context.Context, u *DownloadURL, w io.Writer, size progress) (int64, error) {
	resp, err := c.openURL(ctx, u, 0)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if size != nil {
		size(resp.ContentLength)
	}
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return n, fmt.Errorf("crownest: download after %d bytes: %w", n, err)
	}
	return n, nil
}

// downloadImmutable is download for bytes that never change: a broken connection
// is taken up again where it broke.
func (c *Client) downloadImmutable(ctx context.Context, fetch func() (*DownloadURL, error), w io.Writer, size progress) (int64, error) {
	var done int64
	for attempt := 0; ; attempt++ {
		before := done
		err := func() error {
			u, err := fetch()
			if err != nil {
				return err
			}
			resp, err := c.openURL(ctx, u, done)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if size != nil && done == 0 {
				size(resp.ContentLength)
			}
			tracked := &faultWriter{w: w}
			n, err := io.Copy(tracked, resp.Body)
			done += n
			if tracked.err != nil {
				return tracked.err
			}
			if err != nil {
				return &connectionError{fmt.Errorf("crownest: download after %d bytes: %w", done, err)}
			}
			return nil
		}()
		if done > before {
			attempt = 0
		}
		var broken *connectionError
		if err == nil || !errors.As(err, &broken) || ctx.Err() != nil || attempt == len(c.reconnect) {
			return done, err
		}
		if sleep(ctx, c.reconnect[attempt]) != nil {
			return done, err
		}
	}
}

// faultWriter remembers the writer's own error, which no new connection mends.
type faultWriter struct {
	w   io.Writer
	err error
}

func (f *faultWriter) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	f.err = err
	return n, err
}

func (c *Client) openURL(ctx context.Context, u *DownloadURL, from int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.URL, nil)
	if err != nil {
		return nil, fmt.Errorf("crownest: download URL: %w", redactURL(err))
	}
	copyHeaders(req, u.Headers)
	if from > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
	}
	// Compressed on the way, the length and the range would be of other bytes.
	req.Header.Set("Accept-Encoding", "identity")
	c.authorize(req)
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if from > 0 && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from)) {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("crownest: the server cannot continue the download at byte %d", from)
	}
	return resp, nil
}

// upload sends r to a signed URL and decodes the member field of the answer.
// size < 0 means unknown.
func (c *Client) upload(ctx context.Context, u *UploadURL, r io.Reader, size int64, field string, out any) error {
	// NopCloser: net/http would close a reader that the caller owns.
	req, err := http.NewRequestWithContext(ctx, firstNonEmpty(u.Method, http.MethodPut), u.URL, io.NopCloser(r))
	if err != nil {
		return fmt.Errorf("crownest: upload URL: %w", redactURL(err))
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	copyHeaders(req, u.Headers)
	c.authorize(req)
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return fmt.Errorf("crownest: reading the answer to an upload: %w", err)
	}
	if err := decodeField(json.RawMessage(body), field, out); err != nil {
		return fmt.Errorf("crownest: answer to an upload: %w", err)
	}
	return nil
}

func copyHeaders(req *http.Request, headers map[string]string) {
	for name, value := range headers {
		req.Header.Set(name, value)
	}
}
