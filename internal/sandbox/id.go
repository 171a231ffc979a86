package sandbox

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
	"time"
)

// Prefixes of the identifiers this server hands out.
const (
	PrefixOrg             = "org"
	PrefixProject         = "prj"
	PrefixUser            = "usr"
	PrefixKey             = "key"
	PrefixSandbox         = "sbx"
	PrefixCommand         = "cmd"
	PrefixCodeContext     = "cctx"
	PrefixArtifact        = "art"
	PrefixPreview         = "prv"
	PrefixWorkspaceRun    = "wsr"
	PrefixUpload          = "upl"
	PrefixTemplate        = "tpl"
	PrefixTemplateVersion = "tplv"
	PrefixAudit           = "aud"
	PrefixRequest         = "req"
)

// SuffixLen is the length of the part of an identifier behind the underscore.
const SuffixLen = 26

// alphabet is Crockford's base 32 in lower case: it sorts like the bytes it encodes.
const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// NewID returns a fresh identifier: the prefix and a TypeID suffix (a UUIDv7 in
// base 32), so that identifiers of one kind sort by the time they were made.
func NewID(prefix string) string { return prefix + "_" + NewSuffix() }

// NewSuffix returns the part of a fresh identifier behind the underscore.
func NewSuffix() string {
	var u [16]byte
	_, _ = rand.Read(u[6:]) // crypto/rand.Read never fails
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(time.Now().UnixMilli()))
	copy(u[:6], ms[2:])
	u[6] = u[6]&0x0f | 0x70
	u[8] = u[8]&0x3f | 0x80
	return encodeSuffix(u)
}

// encodeSuffix writes 128 bits as 26 digits of 5 bits, two zero bits first.
func encodeSuffix(u [16]byte) string {
	hi, lo := binary.BigEndian.Uint64(u[:8]), binary.BigEndian.Uint64(u[8:])
	var out [SuffixLen]byte
	for i := SuffixLen - 1; i >= 0; i-- {
		out[i] = alphabet[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}

// ID joins a prefix and a suffix made by NewSuffix.
func ID(prefix, suffix string) string { return prefix + "_" + suffix }

// ValidID reports whether id is a well-formed identifier of the kind prefix. It
// accepts every suffix the contract allows, not only those NewID makes.
func ValidID(prefix, id string) bool {
	suffix, ok := strings.CutPrefix(id, prefix+"_")
	if !ok || len(suffix) != SuffixLen {
		return false
	}
	for i := range len(suffix) {
		c := suffix[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// IDAt returns the lowest identifier of a kind that could be made at t, to compare
// identifiers by age.
func IDAt(prefix string, t time.Time) string {
	var u [16]byte
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(u[:6], ms[2:])
	return ID(prefix, encodeSuffix(u))
}
