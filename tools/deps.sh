#!/bin/bash
# Installs the operating system packages that building, testing and the demo
# need, through apt, and only those that are missing. What is there already, from
# wherever it came, is left alone.
set -eu -o pipefail

# need PACKAGE TEST...: PACKAGE is wanted unless the test passes.
wanted=()
need() {
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || wanted+=("$package")
}
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }
have_postgres() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb'; }
have_libc_headers() { compgen -G '/usr/include/stdlib.h' || compgen -G '/usr/include/*/stdlib.h'; }
# have_node asks for a Node.js that can run the SDK's tests.
have_node() { have node && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ]; }

need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
need git have git
need curl have curl
need gcc have gcc # with libc6-dev: the race detector
need libc6-dev have_libc_headers
need mmdebstrap have mmdebstrap
need erofs-utils have mkfs.erofs
need debian-archive-keyring test -s /usr/share/keyrings/debian-archive-keyring.gpg
need postgresql have_postgres
need bubblewrap have bwrap # a peer of the benchmarks
need runc have runc        # a peer of the benchmarks
need iproute2 have ip
need nftables have nft
need procps have ps
need nodejs have_node
need npm have npm

if [ "${#wanted[@]}" -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "deps: missing: ${wanted[*]}" >&2
		echo "deps: this is no Debian or Ubuntu (no apt-get): install the equivalents with your package manager" >&2
		exit 1
	fi
	echo "deps: installing ${wanted[*]}"
	as_root() { "$(dirname "$0")/as-root.sh" env DEBIAN_FRONTEND=noninteractive "$@"; }
	log=$(mktemp)
	# The tests start PostgreSQL on a scratch directory. Debian would also make a
	# database and a service of the host, which nobody asked for.
	no_cluster=
	if [[ " ${wanted[*]} " == *" postgresql "* ]]; then
		no_cluster=/etc/postgresql-common/createcluster.d/crownest.conf
		as_root mkdir -p "$(dirname "$no_cluster")"
		echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
	fi
	trap 'rm -f "$log"; [ -z "$no_cluster" ] || as_root rm -f "$no_cluster"' EXIT
	install() { as_root apt-get install -y --no-install-recommends "${wanted[@]}" >"$log" 2>&1; }
	# The lists may be absent or may name files that a mirror no longer has: fetch
	# them only then.
	if ! install; then
		as_root apt-get update >"$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }
		install || { tail -20 "$log" >&2; exit 1; }
	fi
fi

if ! have_node >/dev/null 2>&1; then
	echo "deps: Node.js 18 or later is needed, found: $(node --version 2>/dev/null || echo none)" >&2
	exit 1
fi
if ! command -v go >/dev/null; then
	echo "deps: Go is needed, see the go line of go.mod for the version" >&2
	exit 1
fi
