package cmdlog

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// MaxChunk is the most bytes one chunk may hold.
const MaxChunk = 64 << 10

const (
	magic       = "CNLOG\x00\x00\x01"
	headerLen   = len(magic) + 4*8 + 4
	recordLen   = 4 + 4 + 8 + 8 + 1 // crc, length, seq, time, kind
	sealDataLen = 2 * 8
	sealLen     = recordLen + sealDataLen
)

// kind says what a record holds.
type kind byte

const (
	kindStdout kind = 1
	kindStderr kind = 2
	kindSeal   kind = 3
)

var (
	// errShort says that a record goes on behind the end of the bytes given.
	errShort = errors.New("record is cut short")
	// errCorrupt says that bytes are no record of this segment.
	errCorrupt = errors.New("record is corrupt")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// header is the beginning of a segment: its place in the log.
type header struct {
	firstSeq int64
	before   counts // bytes of each stream before this segment
	salt     uint64 // makes checksums unpredictable to whoever writes the output
}

// counts is a number of bytes per stream.
type counts struct{ stdout, stderr int64 }

func (c counts) sum() int64 { return c.stdout + c.stderr }

func (c counts) of(stdout, stderr bool) (n int64) {
	if stdout {
		n += c.stdout
	}
	if stderr {
		n += c.stderr
	}
	return n
}

func (c counts) minus(d counts) counts { return counts{c.stdout - d.stdout, c.stderr - d.stderr} }

func (c *counts) add(k kind, n int) {
	switch k {
	case kindStdout:
		c.stdout += int64(n)
	case kindStderr:
		c.stderr += int64(n)
	}
}

func appendHeader(b []byte, h header) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.firstSeq))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.before.stdout))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.before.stderr))
	b = binary.LittleEndian.AppendUint64(b, h.salt)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseHeader reads a segment's header; seed starts the checksums of its records.
func parseHeader(b []byte) (h header, seed uint32, err error) {
	if len(b) < headerLen {
		return header{}, 0, errShort
	}
	b = b[:headerLen]
	body := b[:headerLen-4]
	seed = crc32.Checksum(body, castagnoli)
	if string(body[:len(magic)]) != magic || binary.LittleEndian.Uint32(b[headerLen-4:]) != seed {
		return header{}, 0, errCorrupt
	}
	f := body[len(magic):]
	h = header{
		firstSeq: int64(binary.LittleEndian.Uint64(f)),
		before: counts{
			stdout: int64(binary.LittleEndian.Uint64(f[8:])),
			stderr: int64(binary.LittleEndian.Uint64(f[16:])),
		},
		salt: binary.LittleEndian.Uint64(f[24:]),
	}
	if h.firstSeq < 1 || h.before.stdout < 0 || h.before.stderr < 0 {
		return header{}, 0, errCorrupt
	}
	return h, seed, nil
}

// record is one parsed record; data aliases the bytes it was parsed from.
type record struct {
	seq  int64
	at   int64 // Unix time in nanoseconds
	kind kind
	data []byte
}

func (r record) chunk(commandID string) sandbox.LogChunk {
	stream := sandbox.Stdout
	if r.kind == kindStderr {
		stream = sandbox.Stderr
	}
	return sandbox.LogChunk{
		CommandID: commandID, Seq: r.seq, Stream: stream, Data: r.data,
		CreatedAt: time.Unix(0, r.at).UTC(),
	}
}

func appendRecord(b []byte, seed uint32, r record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0) // the checksum comes last
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.data)))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.seq))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.at))
	b = append(b, byte(r.kind))
	b = append(b, r.data...)
	binary.LittleEndian.PutUint32(b[start:], crc32.Update(seed, castagnoli, b[start+4:]))
	return b
}

// parseRecord reads the record at the start of b and returns its length.
func parseRecord(b []byte, seed uint32) (record, int, error) {
	if len(b) < recordLen {
		return record{}, 0, errShort
	}
	size := binary.LittleEndian.Uint32(b[4:])
	if size > MaxChunk {
		return record{}, 0, errCorrupt
	}
	n := recordLen + int(size)
	if len(b) < n {
		return record{}, 0, errShort
	}
	if crc32.Update(seed, castagnoli, b[4:n]) != binary.LittleEndian.Uint32(b) {
		return record{}, 0, errCorrupt
	}
	r := record{
		seq:  int64(binary.LittleEndian.Uint64(b[8:])),
		at:   int64(binary.LittleEndian.Uint64(b[16:])),
		kind: kind(b[24]),
		data: b[recordLen:n:n],
	}
	switch {
	case r.kind == kindSeal && len(r.data) != sealDataLen,
		r.kind < kindStdout, r.kind > kindSeal, r.seq < 0:
		return record{}, 0, errCorrupt
	}
	return r, n, nil
}

// sealRecord ends a log; it repeats what would otherwise take a scan to know.
func sealRecord(lastSeq int64, total counts) record {
	data := binary.LittleEndian.AppendUint64(nil, uint64(total.stdout))
	data = binary.LittleEndian.AppendUint64(data, uint64(total.stderr))
	return record{seq: lastSeq, kind: kindSeal, data: data}
}

func (r record) sealed() counts {
	return counts{
		stdout: int64(binary.LittleEndian.Uint64(r.data)),
		stderr: int64(binary.LittleEndian.Uint64(r.data[8:])),
	}
}
