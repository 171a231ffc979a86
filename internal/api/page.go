package api

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

const (
	defaultLimit = 100
	maxLimit     = 500
)

// parseLimit reads a page size and clamps it to the highest.
func parseLimit(v string) (int, bool) {
	n, err := strconv.Atoi(v)
	if err != nil {
		// Digits that do not fit into an int are still an integer above the highest.
		if len(v) > 0 && strings.Trim(v, "0123456789") == "" {
			return maxLimit, true
		}
		return 0, false
	}
	if n < 1 {
		return 0, false
	}
	return min(n, maxLimit), true
}

// limit is the page size asked for.
func (rq *request) limit() int {
	if n, ok := parseLimit(rq.query.Get("limit")); ok {
		return n
	}
	return defaultLimit
}

// afterSeq is the position asked for, nil = from the oldest retained.
func (rq *request) afterSeq() *int64 {
	n, err := strconv.ParseInt(rq.query.Get("afterSeq"), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// cursor is a place in a list that is ordered newest first.
type cursor struct {
	at time.Time
	id string
}

// encode returns the opaque form.
func (c cursor) encode() string {
	return base64.RawURLEncoding.EncodeToString([]byte("1." + strconv.FormatInt(c.at.UnixMilli(), 36) + "." + c.id))
}

// decodeCursor reads the opaque form of a cursor for ids of one kind.
func decodeCursor(prefix, v string) (cursor, bool) {
	if len(v) > 128 {
		return cursor{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(v)
	if err != nil {
		return cursor{}, false
	}
	version, rest, _ := strings.Cut(string(raw), ".")
	stamp, id, _ := strings.Cut(rest, ".")
	ms, err := strconv.ParseInt(stamp, 36, 64)
	const tooLate = 1 << 45 // the year 3084; keeps times away from overflow
	if version != "1" || err != nil || ms < 0 || ms > tooLate || !sandbox.ValidID(prefix, id) {
		return cursor{}, false
	}
	c := cursor{time.UnixMilli(ms).UTC(), id}
	return c, c.encode() == v // one form only
}

// qCursor describes the cursor of a list of one kind of id.
func qCursor(prefix string) *param {
	return &param{
		name: "cursor", in: "query", doc: "nextCursor of the page before.",
		schema: stringSchema(),
		check: func(v string) error {
			if _, ok := decodeCursor(prefix, v); !ok {
				return invalid("cursor", "cursor is not one that this list gave out.")
			}
			return nil
		},
	}
}

// page is what the request asks of a list of one kind of id.
func (rq *request) page(prefix string) store.Page {
	p := store.Page{Limit: rq.limit()}
	if c, ok := decodeCursor(prefix, rq.query.Get("cursor")); ok {
		p.AfterTime, p.AfterID = c.at, c.id
	}
	return p
}

// listing adds a paginated list: fetch asks control, convert makes the wire item
// and mark tells where an item stands.
func listing[T, W any](s *Server, op operation, prefix string,
	fetch func(ctx context.Context, rq *request, p store.Page) (control.Page[T], error),
	convert func(T) W, mark func(T) (time.Time, string)) {
	op.params = append(op.params, qLimit, qCursor(prefix))
	query(s, op, func(ctx context.Context, rq *request, _ *noBody) (list[W], error) {
		found, err := fetch(ctx, rq, rq.page(prefix))
		if err != nil {
			return list[W]{}, err
		}
		out := list[W]{Data: make([]W, 0, len(found.Items)), HasMore: found.HasMore}
		for _, item := range found.Items {
			out.Data = append(out.Data, convert(item))
		}
		if n := len(found.Items); found.HasMore && n > 0 {
			at, id := mark(found.Items[n-1])
			out.NextCursor = cursor{at, id}.encode()
		}
		return out, nil
	})
}
