#!/bin/bash
# The whole test suite, one timed step after the other. Every step runs even if
# an earlier one failed, so that one run shows all there is to mend.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1

names=() results=() seconds=()
step() {
	local name=$1 began=$SECONDS result=ok
	shift
	printf '\n=== %s\n' "$name"
	"$@" || result=FAILED
	names+=("$name") results+=("$result") seconds+=("$((SECONDS - began))")
	printf '=== %s: %s, %d s\n' "$name" "$result" "$((SECONDS - began))"
}

# tested PATTERN prints the packages whose tests do (grep) or do not (grep -v)
# link gVisor, which is slow to build twice and does not work under the race
# detector.
tested() {
	go list -test -f '{{if .ForTest}}{{else}}{{.ImportPath}} {{join .Deps " "}}{{end}}' ./cmd/... ./internal/... |
		sed -n 's/^\([^ ]*\)\.test /\1 /p' | grep "$@" ' gvisor\.dev/gvisor/' | cut -d' ' -f1
}
# The settings of the build, so that one cache of compiled packages serves all.
export GOFLAGS="-trimpath -buildvcs=false" CROWNEST_BIN="$PWD/bin/crownest"

# What needs root skips itself without it, so the test programs run as root. The
# go command forgets results of programs it starts through another one.
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(-exec "$PWD/tools/as-root.sh")

unit_race() {
	local packages
	packages=$(tested -v) || return
	CGO_ENABLED=1 go test -race -timeout 15m "${as_root[@]}" $packages
}
unit_gvisor() {
	local packages
	packages=$(tested) || return 0 # none
	CGO_ENABLED=0 go test -timeout 15m "${as_root[@]}" $packages
}
typescript() {
	(cd sdk/typescript && npm ci --no-audit --no-fund --loglevel=error && npm test)
}
typescript_live() { tools/as-root.sh sdk/typescript/test/live.sh; }
go_sdk() { (cd sdk/go && CGO_ENABLED=1 go test -race ./...); }
# The template images mostly wait for the network and the disk, so they are built
# beside the first steps.
images_log=$(mktemp)
tools/as-root.sh bin/crownest templates build >"$images_log" 2>&1 &
images=$!
trap '[ -z "$images" ] || kill "$images"; wait; rm -f "$images_log"' EXIT
templates() {
	local result=0
	wait "$images" || result=$?
	images=
	cat "$images_log"
	return "$result"
}
end_to_end() { CGO_ENABLED=0 go test -count=1 -timeout 25m "${as_root[@]}" ./test/...; }

step "lint" tools/lint.sh
step "generated files" make check-generated
step "unit tests, race detector" unit_race
step "template images" templates
step "unit tests with gVisor" unit_gvisor
step "Go SDK" go_sdk
step "TypeScript SDK" typescript
step "TypeScript SDK, live" typescript_live
step "end to end" end_to_end

printf '\n'
failed=0
for i in "${!names[@]}"; do
	printf '%-28s %-7s %5d s\n' "${names[i]}" "${results[i]}" "${seconds[i]}"
	[ "${results[i]}" = ok ] || failed=1
done
printf '%-28s %-7s %5d s\n' total "" "$SECONDS"
exit $failed
