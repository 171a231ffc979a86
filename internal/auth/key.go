package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

const (
	// keyPrefix marks a key of this server.
	keyPrefix = "cn_live_"
	// keyChars is how many base62 characters follow: 62^43 > 2^256.
	keyChars = 43
	// What other servers of the contract may have issued is longer or a little
	// shorter; more than the maximum is never worth hashing.
	minKeyChars, maxKeyChars = 40, 256

	displayPrefixLen = 12

	base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// GenerateKey returns a fresh secret of 256 bits.
func GenerateKey() string {
	secret := make([]byte, 0, len(keyPrefix)+keyChars)
	secret = append(secret, keyPrefix...)
	var pool [2 * keyChars]byte
	for len(secret) < cap(secret) {
		_, _ = rand.Read(pool[:]) // crypto/rand.Read never fails
		for _, b := range pool {
			// The 4 values above the last multiple of 62 would favour some characters.
			if int(b) < 256-256%len(base62) && len(secret) < cap(secret) {
				secret = append(secret, base62[int(b)%len(base62)])
			}
		}
	}
	return string(secret)
}

// Hash returns what is stored in place of a secret. A fast hash is right: there
// is nothing to guess in 256 random bits.
func Hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// DisplayPrefix returns the part of a secret that may be shown to tell keys apart.
func DisplayPrefix(secret string) string { return secret[:min(len(secret), displayPrefixLen)] }

// Last4 returns the end of a secret, for the same purpose.
func Last4(secret string) string { return secret[max(0, len(secret)-4):] }

// wellFormed reports whether secret could be a key at all.
func wellFormed(secret string) bool {
	chars, ok := strings.CutPrefix(secret, keyPrefix)
	if !ok || len(chars) < minKeyChars || len(chars) > maxKeyChars {
		return false
	}
	for i := range len(chars) {
		if strings.IndexByte(base62, chars[i]) < 0 {
			return false
		}
	}
	return true
}
