#!/bin/bash
# The main job from end to end on real isolation, and nothing left afterwards:
# a server on a scratch directory, a sandbox, a streamed command, files both
# ways, an artifact that outlives its sandbox; first with the CLI, then with the
# TypeScript example from an installed package. Run it through `make demo`.
set -eu -o pipefail
cd "$(dirname "$0")/.."
root=$PWD
crownest=${CROWNEST_BIN:-$root/bin/crownest}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/crownest-demo.XXXXXX")
data=$scratch/data
log=$scratch/server.log
server=

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
# show runs a client command and prints it as one would type it.
show() {
	local line='' word quote="'\\''"
	for word in "$@"; do
		case $word in
		*[!A-Za-z0-9_./:=@%+-]* | '') line+=" '${word//\'/$quote}'" ;;
		*) line+=" $word" ;;
		esac
	done
	printf '%s$ crownest%s%s\n' "$dim" "$line" "$plain"
	"$crownest" "$@"
}
# stamped puts the time since the start before each line, as it arrives.
stamped() {
	local began=${EPOCHREALTIME/./} line
	while IFS= read -r line; do
		printf '  %5d ms  %s\n' $(((${EPOCHREALTIME/./} - began) / 1000)) "$line"
	done
}
fail() {
	echo "demo: $*" >&2
	exit 1
}
field() { sed -n "s/^$1: //p"; }

# start_server leaves its process in $server and its URL in CROWNEST_API_URL. The
# first time it takes a free port, later the same one.
start_server() {
	local listen=127.0.0.1:0
	[ -z "${CROWNEST_API_URL:-}" ] || listen=${CROWNEST_API_URL#http://}
	: >"$scratch/stdout"
	"$crownest" serve --data "$data" --listen "$listen" >"$scratch/stdout" 2>>"$log" &
	server=$!
	local deadline=$((SECONDS + 120))
	while :; do
		CROWNEST_API_URL=$(sed -n 's/^listening on //p' "$scratch/stdout")
		if [ -n "$CROWNEST_API_URL" ] && curl -fsS -o /dev/null "$CROWNEST_API_URL/readyz" 2>/dev/null; then break; fi
		kill -0 "$server" 2>/dev/null || fail "the server ended; its log is above"
		[ $SECONDS -lt $deadline ] || fail "the server was not ready within two minutes"
		sleep 0.05
	done
	export CROWNEST_API_URL
}
stop_server() {
	kill -TERM "$server" 2>/dev/null || true
	wait "$server" 2>/dev/null || true
	server=
}
kill_sandboxes() {
	local id
	"$crownest" sandboxes list | awk 'NR > 1 { print $1 }' | while read -r id; do
		"$crownest" sandboxes kill "$id" >/dev/null
	done
}
# leftovers prints what of this run is still there.
leftovers() {
	grep -F " $scratch/" /proc/mounts || true
	ps -ww -e -o pid=,args= | grep -F "$data" | grep -vF "grep -F" || true
	# The cgroup that holds all sandboxes of a server is named for its data directory.
	find /sys/fs/cgroup -type d -name "crownest-$(printf %s "$data" | sha256sum | cut -c1-8)" 2>/dev/null || true
}
finish() {
	local status=$?
	trap - EXIT INT TERM
	set +e
	if [ $status -ne 0 ] && [ -s "$log" ]; then
		printf '\ndemo: the end of the server log:\n' >&2
		tail -25 "$log" >&2
	fi
	if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
		[ -z "${CROWNEST_API_KEY:-}" ] || kill_sandboxes
	elif [ $status -ne 0 ] && [ -n "${CROWNEST_API_KEY:-}" ]; then
		# Sandboxes outlive their server. If it died, another one has to end them.
		(start_server && kill_sandboxes; stop_server)
		server=
	fi
	[ -z "$server" ] || stop_server
	local left
	left=$(leftovers)
	if [ -n "$left" ]; then
		printf 'demo: still there:\n%s\n' "$left" >&2
		[ $status -ne 0 ] || status=1
	else
		rm -rf "$scratch"
	fi
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# The CLI and the SDK must find this server and key and no others.
unset CROWNEST_BEARER_TOKEN CROWNEST_API_KEY CROWNEST_API_URL
export CROWNEST_CONFIG_PATH=$scratch/config.json
# One template is enough here, and the server need not build the others.
export CROWNEST_DEFAULT_TEMPLATE=python CROWNEST_BUILD_TEMPLATES=false

say "Template image (the first time takes minutes, later it is there)"
"$crownest" templates build python

say "Server"
start_server
echo "listening on $CROWNEST_API_URL, data in $data"
CROWNEST_API_KEY=$("$crownest" admin keys create --data "$data" --name demo --preset default --scope audit:read)
export CROWNEST_API_KEY
echo "key ${CROWNEST_API_KEY:0:12}..."

say "Create a sandbox"
began=${EPOCHREALTIME/./}
created=$(show sandboxes create --template python --metadata story=demo)
took=$(((${EPOCHREALTIME/./} - began) / 1000))
sandbox=$(field id <<<"$created")
printf '%s\nusable after %d ms, start of the command line included' "$created" "$took"
printf ' (the server has just begun to fill its pool: more about times below)\n'

say "Real isolation: another kernel, no process of the host, no network"
show commands run "$sandbox" -- bash -c 'dmesg | head -4' | tee "$scratch/dmesg"
grep -q gVisor "$scratch/dmesg" || fail "this is not gVisor's kernel"
echo "the host runs $(ls -d /proc/[0-9]* 2>/dev/null | wc -l) processes, kernel $(uname -r); the sandbox sees:"
show commands run "$sandbox" -- bash -c 'uname -r; id; ps -e -ww -o pid,user,args' |
	tee "$scratch/processes" | cut -c1-110
if grep -qF "$data" "$scratch/processes"; then fail "a process of the host is visible in the sandbox"; fi
show commands run "$sandbox" -- bash -c '(exec 3<>/dev/tcp/192.0.2.1/80) 2>&1 || echo "no way out"' | tee "$scratch/network"
grep -q "no way out" "$scratch/network" || fail "the sandbox has a network"

say "Upload a program and its input"
awk 'BEGIN { srand(7); print "sensor,value"; for (i = 0; i < 60000; i++) printf "%s,%.3f\n", substr("abc", i % 3 + 1, 1), rand() * 50 + i % 3 * 30 }' >"$scratch/readings.csv"
show files upload "$sandbox" "$root/examples/quickstart/main.py"
show files upload "$sandbox" "$scratch/readings.csv"
show files list "$sandbox"

say "Run it: output arrives while it runs, the report is kept"
show commands run "$sandbox" --collect report.html -- python3 main.py | stamped

say "Kill the server with -9 while a command runs, and start it again"
show commands run "$sandbox" -- bash -c 'for i in 1 2 3 4 5 6; do echo "line $i"; sleep 0.5; done' | stamped &
client=$!
sleep 1.2
kill -9 "$server"
wait "$server" 2>/dev/null || true
echo "the server is gone"
start_server
echo "the server is back"
wait "$client" || fail "the command did not survive the server"

say "Download files"
show files read "$sandbox" readings.csv --output "$scratch/back.csv"
cmp "$scratch/readings.csv" "$scratch/back.csv" && echo "what came back is what went in"
artifact=$("$crownest" artifacts list "$sandbox" | awk 'NR == 2 { print $1 }')
[ -n "$artifact" ] || fail "the report was not collected"

say "Kill the sandbox"
show sandboxes kill "$sandbox"
if show commands run "$sandbox" -- true; then fail "a killed sandbox took a command"; fi

say "Read the artifact afterwards"
show artifacts list "$sandbox"
show artifacts download "$artifact" --output "$scratch/report.html"
grep -q '<img alt="histogram"' "$scratch/report.html" || fail "this is not the report"

say "Plain HTTP, and how long a create takes when the pool is full"
call() { curl -fsS -H "Authorization: Bearer $CROWNEST_API_KEY" -H 'Content-Type: application/json' "$@"; }
id_in() { sed -n 's/.*"id":"\(sbx_[a-z0-9]*\)".*/\1/p'; }
for _ in 1 2 3; do
	answer=$(call -w '\ncreate %{time_total} s\n' "$CROWNEST_API_URL/v1/sandboxes" -d '{"template":"python"}')
	sandbox=$(id_in <<<"$answer")
	tail -1 <<<"$answer"
	call -o "$scratch/answer" -w 'first command %{time_total} s\n' "$CROWNEST_API_URL/v1/sandboxes/$sandbox/commands/run" -d '{"command":"echo hello"}'
done
call -N -H 'Accept: text/event-stream' "$CROWNEST_API_URL/v1/sandboxes/$sandbox/commands" -d '{"command":"seq 3"}' | cut -c1-140
kill_sandboxes

say "The same from TypeScript, with the package as npm installs it"
# The tarball is kept beside the binary, named for what it was made of.
digest=$(cd sdk/typescript && find src package.json package-lock.json tsconfig.json build.mjs README.md -type f | sort | xargs sha256sum | sha256sum | cut -c1-12)
tarball=$root/bin/crownest-sdk-$digest.tgz
if [ ! -s "$tarball" ]; then
	mkdir "$scratch/sdk"
	(cd sdk/typescript && cp -r src package.json package-lock.json tsconfig.json build.mjs README.md LICENSE "$scratch/sdk")
	(cd "$scratch/sdk" && npm ci --no-audit --no-fund --loglevel=error >/dev/null && npm pack --loglevel=error >/dev/null)
	rm -f "$root"/bin/crownest-sdk-*.tgz
	mv "$scratch"/sdk/*.tgz "$tarball"
fi
mkdir "$scratch/example"
cp examples/quickstart/main.ts "$scratch/example/main.mjs" # the same text is valid JavaScript
cp examples/quickstart/story.ts "$scratch/example/story.mjs"
cp examples/quickstart/main.py "$scratch/example/"
echo '{"private":true}' >"$scratch/example/package.json"
cd "$scratch/example"
npm install --offline --no-audit --no-fund --loglevel=error "$tarball" >/dev/null
echo "${dim}\$ node main.ts   # as in the README; there is no main.py in the new sandbox, so Python exits with 2$plain"
node main.mjs | tee "$scratch/main.out"
[ "$(tail -1 "$scratch/main.out")" = 2 ] || fail "the quick start printed something else"
echo "${dim}\$ node story.ts  # with main.py and its input$plain"
node story.mjs
cd "$root"

say "What it cost, and who did what"
show usage
show audit list --limit 8
show audit verify

say "Stop the server"
kill_sandboxes
stop_server
left=$(leftovers)
[ -z "$left" ] || fail "still there: $left"
echo "no process and no mount of it is left. Done in $SECONDS s."
