package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

const (
	sealInfo = "crownest sealed answer 1"
	saltLen  = 16
)

// ErrSealBroken is returned for an answer that another credential sealed, or that
// was changed.
var ErrSealBroken = errors.New("sealed answer cannot be opened")

// Seal encrypts an answer so that only who presents the same credential can read
// it; the store never sees either. It is bound to its context, for instance the
// namespace of the operation it answers.
func Seal(credential, boundTo string, answer []byte) ([]byte, error) {
	sealed := make([]byte, saltLen, saltLen+len(answer)+64)
	_, _ = rand.Read(sealed) // crypto/rand.Read never fails
	aead, err := sealer(credential, sealed)
	if err != nil {
		return nil, err
	}
	return aead.Seal(sealed, nil, answer, []byte(boundTo)), nil
}

// Open reads what Seal made.
func Open(credential, boundTo string, sealed []byte) ([]byte, error) {
	if len(sealed) < saltLen {
		return nil, ErrSealBroken
	}
	aead, err := sealer(credential, sealed[:saltLen])
	if err != nil {
		return nil, err
	}
	answer, err := aead.Open(nil, nil, sealed[saltLen:], []byte(boundTo))
	if err != nil {
		return nil, ErrSealBroken
	}
	return answer, nil
}

// sealer derives a key of its own for every salt.
func sealer(credential string, salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(credential), salt, sealInfo, 32)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	return aead, nil
}
