package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"sync"
	"unicode/utf8"

	"crownest.dev/crownest/internal/guest/protocol"
	"crownest.dev/crownest/internal/sandbox"
)

const workspace = "/workspace"

// fileInfo checks and translates what the guest says about a file.
func (c *Client) fileInfo(f *protocol.FileInfo) (sandbox.FileInfo, error) {
	if f.Path != workspace && !strings.HasPrefix(f.Path, workspace+"/") {
		return sandbox.FileInfo{}, c.violated(errors.New("a file outside of the workspace"))
	}
	info := sandbox.FileInfo{
		Name: path.Base(f.Path), Path: f.Path, Size: f.Size, Type: sandbox.FileTypeFile, ModifiedAt: f.Modified.Std(),
	}
	if f.Dir {
		info.Type, info.Size = sandbox.FileTypeDirectory, 0
	}
	return info, nil
}

// unaryInfo is a request that is answered with a file's description.
func (c *Client) unaryInfo(ctx context.Context, op protocol.Op, m protocol.Message) (sandbox.FileInfo, error) {
	var f protocol.FileInfo
	if err := c.unary(ctx, op, m, &f); err != nil {
		return sandbox.FileInfo{}, err
	}
	return c.fileInfo(&f)
}

// checkPath refuses what is too long to be sent at all.
func checkPath(paths ...string) error {
	for _, p := range paths {
		if len(p) > protocol.MaxPath {
			return sandbox.NewError(sandbox.CodeInvalidRequest, "the path is longer than %d bytes", protocol.MaxPath)
		}
	}
	return nil
}

// Stat implements Session.
func (c *Client) Stat(ctx context.Context, path string) (sandbox.FileInfo, error) {
	if err := checkPath(path); err != nil {
		return sandbox.FileInfo{}, err
	}
	info, err := c.unaryInfo(ctx, protocol.OpStat, &protocol.Path{Path: path})
	return info, doing("stat", err)
}

// List implements Session.
func (c *Client) List(ctx context.Context, path string, limit int) ([]sandbox.FileInfo, bool, error) {
	if err := checkPath(path); err != nil {
		return nil, false, err
	}
	if limit <= 0 || limit > protocol.MaxFiles {
		limit = protocol.MaxFiles
	}
	k, err := c.open(ctx, protocol.OpList, &protocol.Path{Path: path, Limit: limit}, true)
	if err != nil {
		return nil, false, doing("list", err)
	}
	defer k.close()
	entries := []sandbox.FileInfo{}
	for {
		f, err := k.receive()
		if err != nil {
			return nil, false, doing("list", err)
		}
		if f.End {
			var end protocol.Listed
			err := k.decode(f.Data, &end)
			f.Release()
			if err != nil {
				return nil, false, doing("list", err)
			}
			return entries, end.Truncated, nil
		}
		var file protocol.FileInfo
		err = protocol.Decode(f.Data, &file)
		f.Release()
		if err != nil {
			return nil, false, c.violated(err)
		}
		info, err := c.fileInfo(&file)
		if err != nil {
			return nil, false, err
		}
		if n := len(entries); n == limit || (n > 0 && entries[n-1].Name >= info.Name) {
			return nil, false, c.violated(errors.New("a list that is too long or not in order"))
		}
		entries = append(entries, info)
	}
}

// Open implements Session.
func (c *Client) Open(ctx context.Context, path string, offset int64) (File, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	k, err := c.open(ctx, protocol.OpRead, &protocol.Path{Path: path, Offset: offset}, true)
	if err != nil {
		return nil, doing("open", err)
	}
	f, err := k.receive()
	if err != nil {
		k.close()
		return nil, doing("open", err)
	}
	var file protocol.FileInfo
	err = k.decode(f.Data, &file)
	if err == nil && f.End {
		err = c.violated(errors.New("a file without an end"))
	}
	f.Release()
	var info sandbox.FileInfo
	if err == nil {
		info, err = c.fileInfo(&file)
	}
	if err != nil {
		k.close()
		return nil, doing("open", err)
	}
	return &remoteFile{k: k, info: info}, nil
}

// remoteFile is an open file in the sandbox. The context of Open governs reading.
type remoteFile struct {
	k    *call
	info sandbox.FileInfo

	mu    sync.Mutex
	frame protocol.Frame
	rest  []byte
	err   error
}

// Info implements File.
func (f *remoteFile) Info() sandbox.FileInfo { return f.info }

// next makes rest hold something, or returns why there is nothing.
func (f *remoteFile) next() error {
	for len(f.rest) == 0 {
		if f.err != nil {
			return f.err
		}
		f.frame.Release()
		frame, err := f.k.receive()
		switch {
		case err != nil:
			f.err = doing("read", err)
		case frame.End:
			f.err = io.EOF
			if err := f.k.decode(frame.Data, nil); err != nil {
				f.err = doing("read", err)
			}
			frame.Release()
		default:
			f.frame, f.rest = frame, frame.Data
		}
	}
	return nil
}

// Read implements File.
func (f *remoteFile) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := f.next(); err != nil {
		return 0, err
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: it spares a copy.
func (f *remoteFile) WriteTo(w io.Writer) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var total int64
	for {
		if err := f.next(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(f.rest)
		total += int64(n)
		f.rest = f.rest[n:]
		if err != nil {
			return total, err
		}
	}
}

// Close implements File.
func (f *remoteFile) Close() error {
	f.k.close() // ends a Read that waits
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frame.Release()
	f.rest = nil
	if f.err == nil {
		f.err = errors.New("read: file is closed")
	}
	return nil
}

// Write implements Session.
func (c *Client) Write(ctx context.Context, w WriteRequest, r io.Reader) (sandbox.FileInfo, error) {
	if err := checkPath(w.Path); err != nil {
		return sandbox.FileInfo{}, err
	}
	k, err := c.open(ctx, protocol.OpWrite, writeMessage(w), false)
	if err != nil {
		return sandbox.FileInfo{}, doing("write", err)
	}
	defer k.close()
	if err := send(k, w, r); err != nil {
		return sandbox.FileInfo{}, err
	}
	var f protocol.FileInfo
	if err := k.answer(&f); err != nil {
		return sandbox.FileInfo{}, doing("write", err)
	}
	info, err := c.fileInfo(&f)
	return info, doing("write", err)
}

// send sends what r has, unless the guest has answered before, and verifies the
// digest before the last frame, which commits the file. An error is r's own or the
// digest's: what ends the stream otherwise is told by the answer.
func send(k *call, w WriteRequest, r io.Reader) error {
	buf := make([]byte, protocol.MaxChunk)
	var digest hash.Hash
	if w.SHA256 != "" {
		digest = sha256.New()
		r = io.TeeReader(r, digest)
	}
	// One byte more than allowed lets the guest see that it is too much.
	r = io.LimitReader(r, w.Max+1)
	var sent int64
	for {
		n, err := io.ReadFull(r, buf)
		sent += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			whole := sent <= w.Max && (w.Size < 0 || sent == w.Size) // else the guest refuses it
			if whole && digest != nil && !strings.EqualFold(hex.EncodeToString(digest.Sum(nil)), w.SHA256) {
				return sandbox.NewError(sandbox.CodeUploadChecksumMismatch, "the bytes received do not have the declared SHA-256")
			}
			_ = k.SendEnd(buf[:n]) // the answer tells why it failed
			return nil
		case err != nil:
			return fmt.Errorf("read what is to be written: %w", err)
		}
		if k.Answered() || k.Send(buf[:n]) != nil {
			return nil //nolint:nilerr // the answer tells why it failed
		}
	}
}

func writeMessage(w WriteRequest) *protocol.Write {
	return &protocol.Write{
		Operation: w.OperationID, Path: w.Path, Parents: w.CreateParents, Overwrite: w.Overwrite,
		Size: max(w.Size, -1), Max: w.Max,
	}
}

// CheckWrite implements Session.
func (c *Client) CheckWrite(ctx context.Context, w WriteRequest) error {
	if err := checkPath(w.Path); err != nil {
		return err
	}
	return doing("check the write", c.unary(ctx, protocol.OpCheckWrite, writeMessage(w), nil))
}

// Delete implements Session.
func (c *Client) Delete(ctx context.Context, op, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	return doing("delete", c.unary(ctx, protocol.OpDelete, &protocol.Path{Operation: op, Path: path}, nil))
}

// Mkdir implements Session.
func (c *Client) Mkdir(ctx context.Context, op, path string, parents bool) (sandbox.FileInfo, error) {
	if err := checkPath(path); err != nil {
		return sandbox.FileInfo{}, err
	}
	info, err := c.unaryInfo(ctx, protocol.OpMkdir, &protocol.Path{Operation: op, Path: path, Parents: parents})
	return info, doing("mkdir", err)
}

// Move implements Session.
func (c *Client) Move(ctx context.Context, op, from, to string, overwrite bool) (sandbox.FileInfo, error) {
	if err := checkPath(from, to); err != nil {
		return sandbox.FileInfo{}, err
	}
	info, err := c.unaryInfo(ctx, protocol.OpMove, &protocol.Move{Operation: op, From: from, To: to, Overwrite: overwrite})
	return info, doing("move", err)
}

// ResolveDir implements Session.
func (c *Client) ResolveDir(ctx context.Context, path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	var r protocol.Resolved
	if err := c.unary(ctx, protocol.OpResolveDir, &protocol.Path{Path: path}, &r); err != nil {
		return "", doing("resolve the directory", err)
	}
	if r.Path != workspace && !strings.HasPrefix(r.Path, workspace+"/") {
		return "", c.violated(errors.New("a directory outside of the workspace"))
	}
	if !utf8.ValidString(r.Path) {
		return "", sandbox.NewError(sandbox.CodeInvalidRequest, "the directory's name is not valid UTF-8")
	}
	return r.Path, nil
}
