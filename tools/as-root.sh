#!/bin/bash
# Runs a command as root: directly, or through sudo with the caller's PATH and
# settings, which sudo does not keep. Building is not for it: files of root in the
# caller's Go cache would be in the way later. go test and go run take it as -exec.
set -eu
if [ "$(id -u)" -eq 0 ]; then
	exec "$@"
fi
if ! command -v sudo >/dev/null; then
	echo "this step needs root: run it as root or install sudo" >&2
	exit 1
fi
keep=(PATH="$PATH")
for name in $(compgen -e | grep -E '^(CROWNEST_|npm_config_|PIP_|https?_proxy$|no_proxy$|HTTPS?_PROXY$|NO_PROXY$)'); do
	keep+=("$name=${!name}")
done
exec sudo env "${keep[@]}" "$@"
