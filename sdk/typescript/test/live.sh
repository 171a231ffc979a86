#!/bin/bash
# Runs the tests against a server of their own, with real sandboxes, and ends it.
# Needs root, the built binary and the image of the python template.
set -eu -o pipefail
cd "$(dirname "$0")/.."
crownest=${CROWNEST_BIN:-$PWD/../../bin/crownest}
data=$(mktemp -d "${TMPDIR:-/tmp}/crownest-sdk-live.XXXXXX")
unset CROWNEST_BEARER_TOKEN CROWNEST_API_KEY CROWNEST_API_URL
export CROWNEST_CONFIG_PATH=$data/config.json CROWNEST_DEFAULT_TEMPLATE=python

server=
finish() {
	local status=$?
	trap - EXIT INT TERM
	# Sandboxes outlive their server: they go first.
	if [ -n "${CROWNEST_API_KEY:-}" ]; then
		"$crownest" sandboxes list | awk 'NR > 1 { print $1 }' | xargs -rn1 "$crownest" sandboxes kill >/dev/null || status=1
	fi
	[ -z "$server" ] || { kill -TERM "$server" 2>/dev/null && wait "$server"; } || status=1
	[ $status -eq 0 ] || tail -25 "$data/log" >&2
	rm -rf "$data"
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

"$crownest" serve --data "$data" --listen 127.0.0.1:0 >"$data/out" 2>"$data/log" &
server=$!
deadline=$((SECONDS + 120))
until CROWNEST_API_URL=$(sed -n 's/^listening on //p' "$data/out") && [ -n "$CROWNEST_API_URL" ] &&
	curl -fs -o /dev/null "$CROWNEST_API_URL/readyz"; do
	kill -0 "$server" && [ $SECONDS -lt $deadline ] || exit 1
	sleep 0.05
done
export CROWNEST_API_URL
CROWNEST_API_KEY=$("$crownest" admin keys create --data "$data" --name sdk)
export CROWNEST_API_KEY
node --test build/test/live.test.js
