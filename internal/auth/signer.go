package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// Why a signature is refused; errors of Verify wrap one of them.
var (
	ErrSignatureInvalid = errors.New("signature_invalid")
	ErrSignatureExpired = errors.New("signature_expired")
	ErrKeyRevoked       = errors.New("key_revoked")
)

// Refuse returns the client's error for one of the reasons above.
func Refuse(reason error) *sandbox.Error {
	return sandbox.NewError(sandbox.CodeForbidden, "the signed URL is not valid").
		With("reason", reason.Error()).Because(reason)
}

const (
	signingSecret = "url_signing" // its name in the store
	secretLen     = 32
	// maxSignature bounds what is decoded at all.
	maxSignature = 256
	signatureV1  = 1
)

// Grant is what a signed URL allows: one method on one path of one resource,
// until a time, in the name of the key that asked for it.
type Grant struct {
	Method   string
	Resource string // an identifier
	Path     string // what of the resource; free text
	Expires  time.Time
	KeyID    string
}

// Signer signs URLs.
type Signer struct{ secret []byte }

// NewSigner returns a signer with the secret that all processes on one store
// share; the first one makes it.
func NewSigner(ctx context.Context, s store.Store) (*Signer, error) {
	secret, err := s.Secret(ctx, signingSecret)
	if errors.Is(err, store.ErrNotFound) {
		err = s.Update(ctx, func(tx store.Tx) error {
			var err error
			if secret, err = tx.Secret(ctx, signingSecret); !errors.Is(err, store.ErrNotFound) {
				return err
			}
			secret = make([]byte, secretLen)
			_, _ = rand.Read(secret) // crypto/rand.Read never fails
			return tx.SetSecret(ctx, signingSecret, secret)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("loading the secret that signs URLs: %w", err)
	}
	if len(secret) < secretLen {
		return nil, fmt.Errorf("the secret that signs URLs has %d bytes", len(secret))
	}
	return &Signer{secret: secret}, nil
}

// Sign returns the signature of a grant, fit for a query parameter. It carries
// the expiry and the key; the rest is what the URL is for.
func (s *Signer) Sign(g Grant) string {
	expires := g.Expires.UnixMilli()
	out := make([]byte, 0, 1+8+sha256.Size+len(g.KeyID))
	out = append(out, signatureV1)
	out = binary.BigEndian.AppendUint64(out, uint64(expires))
	out = append(out, s.mac(g, expires)...)
	out = append(out, g.KeyID...)
	return base64.RawURLEncoding.EncodeToString(out)
}

// Verify checks a signature against what is asked for now and returns the grant.
// Whether its key still lives is for the caller to ask.
func (s *Signer) Verify(signature, method, resource, path string, now time.Time) (Grant, error) {
	if len(signature) > maxSignature {
		return Grant{}, Refuse(ErrSignatureInvalid)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(signature)
	if err != nil || len(raw) < 1+8+sha256.Size || raw[0] != signatureV1 {
		return Grant{}, Refuse(ErrSignatureInvalid)
	}
	expires := int64(binary.BigEndian.Uint64(raw[1:9]))
	mac, keyID := raw[9:9+sha256.Size], raw[9+sha256.Size:]
	g := Grant{Method: method, Resource: resource, Path: path, Expires: time.UnixMilli(expires).UTC(), KeyID: string(keyID)}
	if !hmac.Equal(mac, s.mac(g, expires)) {
		return Grant{}, Refuse(ErrSignatureInvalid)
	}
	if now.UnixMilli() >= expires {
		return g, Refuse(ErrSignatureExpired)
	}
	return g, nil
}

// mac is over every field with its length, so that no two grants look alike.
func (s *Signer) mac(g Grant, expires int64) []byte {
	h := hmac.New(sha256.New, s.secret)
	var n [8]byte
	for _, field := range []string{"crownest signed url 1", g.Method, g.Resource, g.Path, g.KeyID} {
		binary.BigEndian.PutUint64(n[:], uint64(len(field)))
		h.Write(n[:])
		h.Write([]byte(field))
	}
	binary.BigEndian.PutUint64(n[:], uint64(expires))
	h.Write(n[:])
	return h.Sum(nil)
}
