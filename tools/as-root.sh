#!/bin/bash
# Runs a command as root: directly, or through sudo with the caller's PATH and
# Go settings, since sudo keeps neither.
set -eu
if [ "$(id -u)" -eq 0 ]; then
	exec "$@"
fi
if ! command -v sudo >/dev/null; then
	echo "this step needs root: run it as root or install sudo" >&2
	exit 1
fi
keep=(PATH="$PATH")
for name in $(compgen -e | grep -E '^(CROWNEST_|GO|CGO_|npm_config_|PIP_|https?_proxy$|no_proxy$|HTTPS?_PROXY$|NO_PROXY$)'); do
	keep+=("$name=${!name}")
done
# Root shares the caller's Go caches, or everything would be built a second time.
keep+=(GOCACHE="$(go env GOCACHE)" GOMODCACHE="$(go env GOMODCACHE)")
exec sudo env "${keep[@]}" "$@"
