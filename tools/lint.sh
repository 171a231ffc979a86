#!/bin/bash
# Lints every package of every Go module here with the pinned linter, which also
# vets them and checks their format. Settings: .golangci.yml.
set -eu -o pipefail
cd "$(dirname "$0")/.."
# The same settings as those of the build, or all of gVisor is compiled once more.
export CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false"
go -C tools build -ldflags "-s -w" -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
config=$PWD/.golangci.yml linter=$PWD/bin/golangci-lint
for module in . sdk/go; do
	(cd "$module" && "$linter" run --config "$config" ./...)
done
