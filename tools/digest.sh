#!/bin/bash
# Prints one line per tracked or new file below the given paths: digest and name.
set -eu -o pipefail
git ls-files -co --exclude-standard -- "$@" | sort | while read -r f; do
	[ -f "$f" ] && sha256sum "$f"
done
true
