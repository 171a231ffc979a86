//go:build linux

package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"crownest.dev/crownest/internal/guest"
	"crownest.dev/crownest/internal/sandbox"
)

func (r *rig) write(path, content string) (sandbox.FileInfo, error) {
	return r.Write(r.ctx(), guest.WriteRequest{Path: path, Overwrite: true, CreateParents: true, Size: -1, Max: 1 << 30}, strings.NewReader(content))
}

func (r *rig) read(path string) (string, error) {
	f, err := r.Open(r.ctx(), path, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// describe shows what a test compares: an error's code, or the file.
func describe(info sandbox.FileInfo, err error) string {
	if err != nil {
		return string(sandbox.CodeOf(err))
	}
	return fmt.Sprintf("%s %s %d", info.Path, info.Type, info.Size)
}

func TestPaths(t *testing.T) {
	r := newRig(t)
	// Every trick a link can play; the workspace's own path is what commands see.
	res := r.mustRun(`set -e
mkdir -p dir/sub secret; echo inside > dir/file; echo top > top
ln -s file dir/rel; ln -s ../top dir/up; ln -s ` + r.workspace + `/dir abs 2>/dev/null; ln -s /workspace/dir visible
ln -s /etc/passwd out; ln -s ../../../../../../etc/passwd climb; ln -s / root; ln -s .. parent
ln -s loop2 loop1; ln -s loop1 loop2; ln -s nowhere dangling; ln -s dir/new newlink
mkfifo fifo; echo hidden > secret/x; chmod 000 secret; echo no > unreadable; chmod 000 unreadable
ln -s /dev/zero zero; ln -s /proc/self/root/etc procroot; ln -s secret tosecret
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'`)
	if res.exit.Code != 0 {
		t.Fatalf("set up: %+v", res)
	}
	long := strings.Repeat("n", 256)
	for _, tt := range []struct{ path, stat, read string }{
		{"top", "/workspace/top file 4", "top\n"},
		{"/workspace/top", "/workspace/top file 4", "top\n"},
		{"//workspace/./top", "/workspace/top file 4", "top\n"},
		{"dir/../top", "/workspace/top file 4", "top\n"},
		{"dir//sub/../file", "/workspace/dir/file file 7", "inside\n"},
		{"/workspace", "/workspace directory 0", "path_is_directory"},
		{".", "/workspace directory 0", "path_is_directory"},
		{"dir/", "/workspace/dir directory 0", "path_is_directory"},
		{"top/", "path_not_directory", "path_not_directory"},
		{"top/x", "path_not_directory", "path_not_directory"},
		{"none", "file_not_found", "file_not_found"},
		{"none/x/y", "file_not_found", "file_not_found"},
		{"", "invalid_request", "invalid_request"},
		{"a\x00b", "invalid_request", "invalid_request"},
		{long, "invalid_request", "invalid_request"},
		{strings.Repeat("d/", 2100), "invalid_request", "invalid_request"},
		{strings.Repeat("d/", 10_000), "invalid_request", "invalid_request"},
		{"..", "path_outside_workspace", "path_outside_workspace"},
		{"dir/../../etc/passwd", "path_outside_workspace", "path_outside_workspace"},
		{"/etc/passwd", "path_outside_workspace", "path_outside_workspace"},
		{"/workspace/../etc/passwd", "path_outside_workspace", "path_outside_workspace"},
		{"/workspacex", "path_outside_workspace", "path_outside_workspace"},
		{"dir/rel", "/workspace/dir/rel file 7", "inside\n"},
		{"dir/up", "/workspace/dir/up file 4", "top\n"},
		{"visible/file", "/workspace/visible/file file 7", "inside\n"},
		{"visible", "/workspace/visible directory 0", "path_is_directory"},
		{"out", "/workspace/out file 0", "path_outside_workspace"},
		{"climb", "/workspace/climb file 0", "path_outside_workspace"},
		{"root/etc/passwd", "path_outside_workspace", "path_outside_workspace"},
		{"parent/x", "path_outside_workspace", "path_outside_workspace"},
		{"procroot/passwd", "path_outside_workspace", "path_outside_workspace"},
		{"zero", "/workspace/zero file 0", "path_outside_workspace"},
		{"loop1", "/workspace/loop1 file 0", "invalid_request"},
		{"dangling", "/workspace/dangling file 0", "file_not_found"},
		{"fifo", "/workspace/fifo file 0", "invalid_request"},
		{"sock", "/workspace/sock file 0", "invalid_request"},
		{"unreadable", "/workspace/unreadable file 3", "forbidden"},
		{"secret/x", "forbidden", "forbidden"},
		{"tosecret/x", "forbidden", "forbidden"},
	} {
		if got := describe(r.Stat(r.ctx(), tt.path)); got != tt.stat {
			t.Errorf("stat %.40q: %s, want %s", tt.path, got, tt.stat)
		}
		got, err := r.read(tt.path)
		if err != nil {
			got = string(sandbox.CodeOf(err))
		}
		if got != tt.read {
			t.Errorf("read %.40q: %q, want %q", tt.path, got, tt.read)
		}
	}
	var coded *sandbox.Error
	if _, err := r.read("unreadable"); !errors.As(err, &coded) || coded.Details["reason"] != "permission_denied" {
		t.Errorf("denied: %v", err)
	}
	// Writing follows links inside, and never those that lead out.
	for _, tt := range []struct{ path, want string }{
		{"newlink", "/workspace/newlink file 2"}, {"dir/rel", "/workspace/dir/rel file 2"},
		{"out", "path_outside_workspace"}, {"root/tmp/x", "path_outside_workspace"}, {"fifo", "invalid_request"},
		{"secret/y", "forbidden"}, {"dir", "path_is_directory"}, {"top/x", "path_not_directory"}, {"../x", "path_outside_workspace"},
		{"new/", "path_is_directory"}, {"a/b/../../../../x", "file_not_found"},
	} {
		if got := describe(r.write(tt.path, "hi")); got != tt.want {
			t.Errorf("write %q: %s, want %s", tt.path, got, tt.want)
		}
	}
	if res := r.mustRun("cat dir/new dir/file; test -L newlink && test -L dir/rel && echo links; ls -a | grep crownest"); res.stdout != "hihilinks\n" {
		t.Errorf("after writing: %q", res.stdout)
	}

	entries, truncated, err := r.List(r.ctx(), "/workspace", 0)
	if err != nil || truncated {
		t.Fatal(truncated, err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, fmt.Sprintf("%s:%s:%d", e.Name, e.Type[:1], e.Size))
	}
	want := "climb:f:0 dangling:f:0 dir:d:0 fifo:f:0 loop1:f:0 loop2:f:0 newlink:f:2 out:f:0 parent:f:0 procroot:f:0 root:f:0 secret:d:0 sock:f:0 top:f:4 tosecret:d:0 unreadable:f:3 visible:d:0 zero:f:0"
	if got := strings.ReplaceAll(strings.Join(list, " "), "abs:d:0 ", ""); strings.ReplaceAll(got, "abs:f:0 ", "") != want {
		t.Errorf("list:\n%s\nwant\n%s", got, want)
	}
	if _, _, err := r.List(r.ctx(), "top", 0); !sandbox.CodePathNotDirectory.Is(err) {
		t.Errorf("list a file: %v", err)
	}
	if got, truncated, err := r.List(r.ctx(), "", 2); !sandbox.CodeInvalidRequest.Is(err) {
		t.Errorf("list nothing: %v %v %v", got, truncated, err)
	}
	if got, truncated, err := r.List(r.ctx(), ".", 2); err != nil || !truncated || len(got) != 2 || got[1].Path != "/workspace/climb" {
		t.Errorf("list two: %v %v %v", got, truncated, err)
	}
	if dir, err := r.ResolveDir(r.ctx(), "visible/sub"); err != nil || dir != "/workspace/dir/sub" {
		t.Errorf("resolve: %s %v", dir, err)
	}
	r.mustRun("chmod 700 secret")
}

func TestWrite(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	broken := errors.New("the client is gone")
	for _, tt := range []struct {
		name string
		req  guest.WriteRequest
		body io.Reader
		want string
	}{
		{"plain", guest.WriteRequest{Path: "f", Size: 5, SHA256: sum("hello"), Max: 5}, strings.NewReader("hello"), "/workspace/f file 5"},
		{"no overwrite", guest.WriteRequest{Path: "f", Size: -1, Max: 9}, strings.NewReader("x"), "file_already_exists"},
		{"no parent", guest.WriteRequest{Path: "a/b", Size: -1, Max: 9}, strings.NewReader("x"), "parent_directory_not_found"},
		{"parents", guest.WriteRequest{Path: "a/b/c", CreateParents: true, Size: -1, Max: 9}, strings.NewReader("x"), "/workspace/a/b/c file 1"},
		{"empty", guest.WriteRequest{Path: "empty", Size: 0, SHA256: sum(""), Max: 0}, strings.NewReader(""), "/workspace/empty file 0"},
		{"too short", guest.WriteRequest{Path: "g", Size: 6, Max: 9}, strings.NewReader("hello"), "upload_size_mismatch"},
		{"too long", guest.WriteRequest{Path: "g", Size: 4, Max: 9}, strings.NewReader("hello"), "upload_size_mismatch"},
		{"declared too large", guest.WriteRequest{Path: "g", Size: 10, Max: 9}, strings.NewReader("hello"), "file_too_large"},
		{"too large", guest.WriteRequest{Path: "g", Size: -1, Max: 100_000}, strings.NewReader(strings.Repeat("x", 5_000_000)), "file_too_large"},
		{"wrong digest", guest.WriteRequest{Path: "g", Size: 5, SHA256: sum("hallo"), Max: 9}, strings.NewReader("hello"), "upload_checksum_mismatch"},
		{"client gone", guest.WriteRequest{Path: "g", Size: -1, Max: 1 << 20}, io.MultiReader(strings.NewReader(strings.Repeat("x", 200_000)), iotest.ErrReader(broken)), "internal_error"},
		{"overwrite", guest.WriteRequest{Path: "f", Overwrite: true, Size: -1, Max: 9}, strings.NewReader("new"), "/workspace/f file 3"},
	} {
		if got := describe(r.Write(ctx, tt.req, tt.body)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if res := r.mustRun("cat f; find . -type f | sort; chmod 750 f; stat -c %a a/b/c"); res.stdout != "new./a/b/c\n./empty\n./f\n644\n" {
		// The temporary file of a write that broke off goes when the guest hears of it.
		t.Logf("after the writes: %q", res.stdout)
	}
	if _, err := r.write("f", "mode"); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		res := r.mustRun("stat -c %a f; find . -name '.crownest*'")
		if res.stdout == "750\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("mode or temporary files: %q", res.stdout)
			break
		}
	}
	for _, tt := range []struct {
		req  guest.WriteRequest
		want sandbox.Code
	}{
		{guest.WriteRequest{Path: "f", Size: 1, Max: 2}, sandbox.CodeFileAlreadyExists},
		{guest.WriteRequest{Path: "no/f", Size: 1, Max: 2}, sandbox.CodeParentNotFound},
		{guest.WriteRequest{Path: "a", Overwrite: true, Size: 1, Max: 2}, sandbox.CodePathIsDirectory},
		{guest.WriteRequest{Path: "/etc/x", Size: 1, Max: 2}, sandbox.CodePathOutsideWorkspace},
		{guest.WriteRequest{Path: "new", Size: 3, Max: 2}, sandbox.CodeFileTooLarge},
	} {
		if err := r.CheckWrite(ctx, tt.req); !tt.want.Is(err) {
			t.Errorf("check %+v: %v", tt.req, err)
		}
	}
	if err := r.CheckWrite(ctx, guest.WriteRequest{Path: "new/deep/file", CreateParents: true, Size: 1, Max: 2}); err != nil {
		t.Error(err)
	}
	if _, err := r.Stat(ctx, "new"); !sandbox.CodeFileNotFound.Is(err) {
		t.Errorf("a check made something: %v", err)
	}
	// A reader that stops in the middle, or jumps.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	if _, err := r.write("big", string(big)); err != nil {
		t.Fatal(err)
	}
	f, err := r.Open(ctx, "big", int64(len(big))-16)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || string(got) != "0123456789abcdef" || f.Info().Size != int64(len(big)) {
		t.Errorf("tail: %q %v", got, err)
	}
	_ = f.Close()
	if f, err = r.Open(ctx, "big", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f, make([]byte, 100)); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Read(make([]byte, 1)); err == nil {
		t.Error("read from a closed file")
	}
	cancelled, cancel := context.WithCancel(ctx)
	if f, err = r.Open(cancelled, "big", 0); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, f); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = f.Close()
}

func TestChanges(t *testing.T) {
	r := newRig(t)
	ctx := r.ctx()
	r.mustRun("mkdir -p d/full e other/x; touch d/full/x f g; ln -s f link; ln -s nowhere gone; mkdir locked; chmod 555 locked")
	for _, tt := range []struct{ op, path, to, want string }{
		{"mkdir", "m", "", "/workspace/m directory 0"},
		{"mkdir", "m", "", "file_already_exists"},
		{"mkdir -p", "m", "", "/workspace/m directory 0"},
		{"mkdir", "n/o", "", "parent_directory_not_found"},
		{"mkdir -p", "n/o/p", "", "/workspace/n/o/p directory 0"},
		{"mkdir -p", "f", "", "file_already_exists"},
		{"mkdir", "f/x", "", "path_not_directory"},
		{"mkdir", "locked/x", "", "forbidden"},
		{"mkdir", "/tmp/x", "", "path_outside_workspace"},
		{"mkdir -p", ".", "", "/workspace directory 0"},
		{"delete", "none", "", "file_not_found"},
		{"delete", "d", "", "directory_not_empty"},
		{"delete", "d/full/x", "", ""},
		{"delete", "d/full", "", ""},
		{"delete", "link", "", ""},
		{"delete", "gone", "", ""},
		{"delete", ".", "", "invalid_request"},
		{"delete", "/workspace", "", "invalid_request"},
		{"delete", "/etc/passwd", "", "path_outside_workspace"},
		{"move", "f", "f2", "/workspace/f2 file 0"},
		{"move", "f2", "g", "file_already_exists"},
		{"move -f", "f2", "g", "/workspace/g file 0"},
		{"move", "none", "x", "file_not_found"},
		{"move", "g", "no/x", "parent_directory_not_found"},
		{"move", "e", "e/x", "invalid_request"},
		{"move", "e", "e/x/y", "invalid_request"},
		{"move -f", "e", "other", "directory_not_empty"},
		{"move -f", "e", "m", "/workspace/m directory 0"},
		{"move -f", "g", "m", "path_is_directory"},
		{"move -f", "m", "g", "path_not_directory"},
		{"move", ".", "x", "invalid_request"},
		{"move", "g", "/tmp/x", "path_outside_workspace"},
		{"move", "g", "locked/g", "forbidden"},
	} {
		var got string
		switch op, flag, _ := strings.Cut(tt.op, " "); op {
		case "mkdir":
			got = describe(r.Mkdir(ctx, "", tt.path, flag != ""))
		case "move":
			got = describe(r.Move(ctx, "", tt.path, tt.to, flag != ""))
		case "delete":
			if err := r.Delete(ctx, "", tt.path); err != nil {
				got = string(sandbox.CodeOf(err))
			}
		}
		if got != tt.want {
			t.Errorf("%s %s %s: %s, want %s", tt.op, tt.path, tt.to, got, tt.want)
		}
	}
	// An operation that was done is not done again, over a new connection neither.
	r.mustRun("touch once")
	for range 3 {
		if _, err := r.Move(ctx, "op-move", "once", "twice", false); err != nil {
			t.Error(err)
		}
		if err := r.Delete(ctx, "op-delete", "twice"); err != nil {
			t.Error(err)
		}
		if _, err := r.Mkdir(ctx, "op-mkdir", "made", false); err != nil {
			t.Error(err)
		}
		if _, err := r.Write(ctx, guest.WriteRequest{OperationID: "op-write", Path: "written", Size: 3, Max: 3}, strings.NewReader("abc")); err != nil {
			t.Error(err)
		}
		old := r.Client
		r.Client = r.connect()
		_ = old.Close()
	}
	r.mustRun("chmod 755 locked")
}
