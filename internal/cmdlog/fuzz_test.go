package cmdlog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte{}, uint32(0))
	f.Add(appendRecord(nil, 7, record{seq: 1, at: 2, kind: kindStdout, data: []byte("hello")}), uint32(7))
	f.Add(appendRecord(nil, 7, sealRecord(3, counts{4, 5})), uint32(7))
	f.Add(bytes.Repeat([]byte{0xff}, 100), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, seed uint32) {
		r, n, err := parseRecord(b, seed)
		if err != nil {
			if !errors.Is(err, errShort) && !errors.Is(err, errCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again := appendRecord(nil, seed, r); !bytes.Equal(again, b[:n]) {
			t.Fatalf("%x was read as %+v, which is written as %x", b[:n], r, again)
		}
	})
}

// FuzzRecover opens logs whose only file holds anything at all behind a good
// header: whatever is there, the log can be read and continued.
func FuzzRecover(f *testing.F) {
	h := appendHeader(nil, header{firstSeq: 1, salt: 42})
	_, seed, _ := parseHeader(h)
	one := appendRecord(nil, seed, record{seq: 1, kind: kindStdout, data: []byte("one")})
	f.Add(true, one)
	f.Add(true, appendRecord(one, seed, record{seq: 3, kind: kindStderr, data: []byte("hole")}))
	f.Add(true, appendRecord(one, seed, sealRecord(1, counts{stdout: 3})))
	f.Add(true, appendRecord(nil, seed, sealRecord(1<<62, counts{-1, 1 << 62})))
	f.Add(false, []byte("no segment at all, but longer than a header has to be ......................"))
	f.Fuzz(func(t *testing.T, withHeader bool, b []byte) {
		dir := t.TempDir()
		s := open(t, dir, small)
		path := s.path(id) + ".log"
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if withHeader {
			b = append(bytes.Clone(h), b...)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		last, err := s.Last(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if s.logs[id].sealed {
			return // the fuzzer found a checksum; nothing more can come
		}
		kept := readAll(t, s, id, -1)
		if int64(len(kept)) != last {
			t.Fatalf("%d chunks, last is %d", len(kept), last)
		}
		next := output(id, int(last)+3, 1)[last:]
		if err := s.Append(t.Context(), id, next); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		s = open(t, dir, small)
		if diff := diffChunks(append(kept, next...), readAll(t, s, id, -1)); diff != "" {
			t.Fatal(diff)
		}
	})
}
