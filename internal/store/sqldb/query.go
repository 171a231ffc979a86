package sqldb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"

	"crownest.dev/crownest/internal/store"
)

// querier runs single statements, inside or outside of a transaction.
type querier interface {
	exec(ctx context.Context, text string, args ...any) (affected int64, err error)
	query(ctx context.Context, text string, args ...any) (rows, error)
}

// rows is what package sqldb uses of sql.Rows.
type rows interface {
	scanner
	Next() bool
	Err() error
	Close() error
}

// scanner is a row that can be read.
type scanner interface{ Scan(dest ...any) error }

// one returns the only row of a statement, or ErrNotFound.
func one[T any](ctx context.Context, q querier, what string, scan func(scanner, *T) error, text string, args ...any) (T, error) {
	var v T
	if !storable(args) {
		return v, fmt.Errorf("reading %s: %w", what, store.ErrNotFound)
	}
	r, err := q.query(ctx, text, args...)
	if err != nil {
		return v, fmt.Errorf("reading %s: %w", what, err)
	}
	defer func() { _ = r.Close() }() // only reports what Err reports
	if !r.Next() {
		if err := r.Err(); err != nil {
			return v, fmt.Errorf("reading %s: %w", what, err)
		}
		return v, fmt.Errorf("reading %s: %w", what, store.ErrNotFound)
	}
	if err := scan(r, &v); err != nil {
		return v, fmt.Errorf("reading %s: %w", what, err)
	}
	if err := errors.Join(r.Close(), r.Err()); err != nil {
		return v, fmt.Errorf("reading %s: %w", what, err)
	}
	return v, nil
}

// many returns all rows of a statement. They are read to the end before anything
// else happens: an engine with one connection could not run a second statement
// in between.
func many[T any](ctx context.Context, q querier, what string, scan func(scanner, *T) error, text string, args ...any) ([]T, error) {
	if !storable(args) {
		return nil, nil
	}
	r, err := q.query(ctx, text, args...)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", what, err)
	}
	defer func() { _ = r.Close() }() // only reports what Err reports
	var list []T
	for r.Next() {
		var v T
		if err := scan(r, &v); err != nil {
			return nil, fmt.Errorf("listing %s: %w", what, err)
		}
		list = append(list, v)
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("listing %s: %w", what, err)
	}
	return list, nil
}

// insert runs an INSERT that does nothing on a conflict. It is written that way
// because a failed statement would end a PostgreSQL transaction, while callers
// may go on after ErrConflict.
func insert(ctx context.Context, q querier, what, text string, args ...any) error {
	n, err := q.exec(ctx, text+" ON CONFLICT DO NOTHING", args...)
	if err != nil {
		return fmt.Errorf("inserting %s: %w", what, err)
	}
	if n == 0 {
		return fmt.Errorf("inserting %s: %w", what, store.ErrConflict)
	}
	return nil
}

// mustAffect runs a statement that has to change a row.
func mustAffect(ctx context.Context, q querier, what, text string, args ...any) error {
	if !storable(args) {
		return fmt.Errorf("updating %s: %w", what, store.ErrNotFound)
	}
	n, err := q.exec(ctx, text, args...)
	if err != nil {
		return fmt.Errorf("updating %s: %w", what, err)
	}
	if n == 0 {
		return fmt.Errorf("updating %s: %w", what, store.ErrNotFound)
	}
	return nil
}

// into reads a row of one column.
func into[T any](row scanner, v *T) error { return row.Scan(v) }

// storable reports whether every text among args could be in the database at
// all. One that is not UTF-8 or holds a NUL matches nothing; PostgreSQL would
// refuse the statement.
func storable(args []any) bool {
	for _, a := range args {
		if s, ok := a.(string); ok && (!utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0) {
			return false
		}
	}
	return true
}

// clean makes a text for people storable on every engine.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(s, "\x00", "\uFFFD")
}

// arguments collects the arguments of a statement whose text depends on the question.
type arguments []any

// add appends a value and returns its placeholder.
func (a *arguments) add(v any) string {
	*a = append(*a, v)
	return "$" + strconv.Itoa(len(*a))
}

// in appends values and returns their placeholders for IN (...). The last value
// is repeated up to a power of two, which keeps the number of texts small.
func in[T any](a *arguments, values []T) string {
	var b strings.Builder
	for i := range 1 << bits.Len(uint(len(values)-1)) {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.add(values[min(i, len(values)-1)]))
	}
	return b.String()
}

// after returns the values below which a page begins; a first page begins below
// everything.
func after(p store.Page) (ms int64, id string) {
	if p.AfterTime.IsZero() {
		return math.MaxInt64, ""
	}
	return p.AfterTime.UnixMilli(), p.AfterID
}

// toJSON encodes a value of our own types, which cannot fail.
func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err))
	}
	return string(b)
}

// jsonOf scans a JSON column into v.
type jsonOf struct{ v any }

func (j jsonOf) Scan(src any) error {
	switch s := src.(type) {
	case string:
		return json.Unmarshal([]byte(s), j.v)
	case []byte:
		return json.Unmarshal(s, j.v)
	}
	return fmt.Errorf("a JSON column holds %T", src)
}

// flag is how a truth value is stored.
func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// qualified puts a table before every name of a list of columns.
func qualified(table, columns string) string {
	names := strings.Split(columns, ",")
	for i, n := range names {
		names[i] = table + "." + strings.TrimSpace(n)
	}
	return strings.Join(names, ", ")
}
