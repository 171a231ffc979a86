package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// replayFor is how long a finished answer can be had again.
const replayFor = 24 * time.Hour

// claim is the right to carry out one mutation. With an Idempotency-Key it stands
// for the record in the store, and nobody else in this process holds it.
type claim struct {
	s           *Server
	operationID string
	namespace   string // empty: no key was given
	fingerprint string
	resourceID  string
	settled     bool
}

// once carries out a mutation at most once per Idempotency-Key and answers.
func (s *Server) once(rq *request, do func(ctx context.Context) (int, any, error)) {
	ctx, cancel := context.WithTimeout(s.base, mutationTimeout)
	defer cancel()
	c, replay, err := s.begin(ctx, rq)
	if err != nil {
		s.writeError(rq, err)
		return
	}
	if replay != nil {
		s.replay(rq, replay)
		return
	}
	defer c.abandon()
	status, out, err := do(ctx)
	if err != nil {
		c.fail(rq, err)
		s.writeError(rq, err)
		return
	}
	body := encodeJSON(out)
	c.finish(rq, status, body)
	s.writeJSON(rq, status, body)
}

// begin looks the request up. It returns the right to carry it out, or the stored
// answer, or the error that says why neither.
func (s *Server) begin(ctx context.Context, rq *request) (*claim, *store.Operation, error) {
	key, err := idempotencyKey(rq.r.Header)
	if err != nil {
		return nil, nil, err
	}
	c := &claim{s: s, operationID: sandbox.NewSuffix()}
	rq.call.OperationID = c.operationID
	if key == "" {
		return c, nil, nil
	}
	c.namespace = rq.namespace(key)
	c.fingerprint = rq.fingerprint()
	if rq.op.makes != "" {
		c.resourceID = sandbox.ID(rq.op.makes, c.operationID)
	}
	if err := s.enterNamespace(c); err != nil {
		return nil, nil, err
	}
	stored, err := s.record(ctx, c)
	switch {
	case err != nil:
		c.abandon()
		return nil, nil, err
	case stored.Fingerprint != c.fingerprint:
		c.abandon()
		return nil, nil, errKeyReused()
	case stored.Done:
		c.abandon()
		return nil, &stored, nil
	}
	c.adopt(rq, stored.OperationID)
	return c, nil, nil
}

// record inserts the operation or returns the one that is there.
func (s *Server) record(ctx context.Context, c *claim) (stored store.Operation, err error) {
	now := time.Now()
	err = s.store.Update(ctx, func(tx store.Tx) error {
		var err error
		stored, _, err = tx.BeginOperation(ctx, store.Operation{
			Namespace: c.namespace, Fingerprint: c.fingerprint, OperationID: c.operationID,
			Owner: s.opts.BootID, CreatedAt: now, ExpiresAt: now.Add(replayFor),
		})
		return err
	})
	if err != nil {
		return stored, fmt.Errorf("recording an operation: %w", err)
	}
	return stored, nil
}

// adopt takes the id under which the operation was first tried.
func (c *claim) adopt(rq *request, operationID string) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.operationID = operationID
	rq.call.OperationID = operationID
	if rq.op.makes != "" {
		c.resourceID = sandbox.ID(rq.op.makes, operationID)
	}
}

// enterNamespace refuses a repetition while the first request is on its way.
func (s *Server) enterNamespace(c *claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	other, busy := s.working[c.namespace]
	if !busy {
		s.working[c.namespace] = c
		return nil
	}
	if other.fingerprint != c.fingerprint {
		return errKeyReused()
	}
	err := sandbox.NewError(sandbox.CodeIdempotencyInProgress, "The first request with this Idempotency-Key is still being worked on.")
	if other.resourceID != "" {
		err = err.With("resourceId", other.resourceID)
	}
	return err
}

func errKeyReused() error {
	return sandbox.NewError(sandbox.CodeIdempotencyKeyReused, "This Idempotency-Key was used for another request.")
}

// finish stores an answer for repetitions.
func (c *claim) finish(rq *request, status int, body []byte) {
	if c.namespace == "" {
		return
	}
	o := store.Operation{
		Namespace: c.namespace, Fingerprint: c.fingerprint, OperationID: c.operationID,
		Status: status, Body: body, ExpiresAt: time.Now().Add(replayFor),
	}
	if rq.op.secret {
		sealed, err := auth.Seal(rq.secret, c.namespace, body)
		if err != nil {
			c.s.log.Error("sealing an answer failed", "requestId", rq.id, "error", err)
			c.release(rq)
			return
		}
		o.Body, o.Sealed = sealed, true
	}
	c.settle(rq, func(ctx context.Context, tx store.Tx) error { return tx.FinishOperation(ctx, o) })
}

// fail settles an operation that ended in an error. Answers that a repetition may
// change are not stored; the repetition gets the same operation id.
func (c *claim) fail(rq *request, err error) {
	if c.namespace == "" {
		return
	}
	status, body := envelope(err, rq.id)
	if status == http.StatusTooManyRequests || status >= 500 {
		c.release(rq)
		return
	}
	c.finish(rq, status, encodeJSON(body))
}

func (c *claim) release(rq *request) {
	c.settle(rq, func(ctx context.Context, tx store.Tx) error { return tx.ReleaseOperation(ctx, c.namespace) })
}

// settle writes the end of an operation. If that fails, or the server stops, the
// record stays open: a repetition carries it out again under the same id.
func (c *claim) settle(rq *request, write func(ctx context.Context, tx store.Tx) error) {
	defer c.abandon()
	if c.s.base.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.s.base), 10*time.Second)
	defer cancel()
	err := c.s.store.Update(ctx, func(tx store.Tx) error { return write(ctx, tx) })
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		c.s.log.Error("settling an operation failed", "requestId", rq.id, "error", err)
	}
}

// abandon lets others try. It does nothing after the first time.
func (c *claim) abandon() {
	if c.namespace == "" || c.settled {
		return
	}
	c.settled = true
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.working[c.namespace] == c {
		delete(c.s.working, c.namespace)
	}
}

// stored returns the bytes of a stored answer.
func (rq *request) stored(o *store.Operation) ([]byte, error) {
	if !o.Sealed {
		return o.Body, nil
	}
	body, err := auth.Open(rq.secret, o.Namespace, o.Body)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed answer: %w", err)
	}
	return body, nil
}

// replay gives a stored answer again.
func (s *Server) replay(rq *request, o *store.Operation) {
	body, err := rq.stored(o)
	if err != nil {
		s.writeError(rq, err)
		return
	}
	rq.w.Header().Set("Idempotent-Replayed", "true")
	s.writeJSON(rq, o.Status, body)
}

// idempotencyKey returns the key of a request, empty if there is none.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	if len(values) > 1 || !validIdempotencyKey(values[0]) {
		return "", invalid("Idempotency-Key", "Idempotency-Key must be 1 to 255 visible ASCII characters.")
	}
	return values[0], nil
}

func validIdempotencyKey(key string) bool {
	if len(key) < 1 || len(key) > 255 {
		return false
	}
	for i := range len(key) {
		if key[i] < '!' || key[i] > '~' {
			return false
		}
	}
	return true
}

// namespace keeps the keys of different callers and routes apart.
func (rq *request) namespace(key string) string {
	p := rq.principal()
	return digest(p.OrgID, p.KeyID, p.UserID, rq.op.method, rq.op.path, rq.r.URL.EscapedPath(), key)
}

// fingerprint stands for what the request asks for.
func (rq *request) fingerprint() string {
	return digest(string(rq.canonical), rq.query.Encode()) // Encode sorts by name
}

// digest hashes parts so that no two lists of parts run into each other.
func digest(parts ...string) string {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return hex.EncodeToString(h.Sum(nil))
}
