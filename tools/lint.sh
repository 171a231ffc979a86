#!/bin/bash
# Vets and lints every package. The linter is pinned in tools/go.mod.
set -eu -o pipefail
cd "$(dirname "$0")/.."
unformatted=$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [ -f "$f" ] && echo "$f"; done | xargs -r gofmt -l)
if [ -n "$unformatted" ]; then
	echo "not formatted, run make fmt:"
	echo "$unformatted"
	exit 1
fi
go vet ./...
