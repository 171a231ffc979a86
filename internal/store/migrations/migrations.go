// Package migrations holds the schema of the store as numbered steps, one text
// for every engine. It knows nothing of how or when they are applied.
//
// The text keeps to what SQLite and PostgreSQL read alike: times are BIGINT
// milliseconds since 1970 (0 = absent), truth values are SMALLINT, structured
// values are JSON in TEXT, and bytes that need not be text are BYTEA.
package migrations

import "embed"

// FS holds the steps, named NNNNN_what.sql.
//
//go:embed *.sql
var FS embed.FS
