package crownest

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
)

// all walks every page of a resource list, newest first.
func all[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := maps.Clone(query)
		if query == nil {
			query = url.Values{}
		}
		for {
			var page struct {
				Data       []json.RawMessage `json:"data"`
				HasMore    bool              `json:"hasMore"`
				NextCursor string            `json:"nextCursor"`
			}
			var zero T
			if err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, "", &page); err != nil {
				yield(zero, err)
				return
			}
			for _, item := range page.Data {
				var v T
				if err := decode(item, &v); err != nil {
					yield(zero, fmt.Errorf("crownest: item of %s: %w", path, err))
					return
				}
				if !yield(v, nil) {
					return
				}
			}
			if !page.HasMore || page.NextCursor == "" {
				return
			}
			query.Set("cursor", page.NextCursor)
		}
	}
}

// collect gathers a sequence, up to its first error.
func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	list := []T{}
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}
