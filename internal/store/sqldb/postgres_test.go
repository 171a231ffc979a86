package sqldb_test

import (
	"testing"

	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/store/pgtest"
	"crownest.dev/crownest/internal/store/storetest"
)

func TestPostgres(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, pgtest.New(t)) })
}
