#!/usr/bin/env bash
# What Holdfast does, shown on a cluster of three nodes: called by ./demo with
# the build directory. Starts the nodes in a directory of their own and stops
# them again.
set -euo pipefail

build=$(cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
cluster=$dir/cluster
dev=
back=
export HOLDFAST_CONFIG=$cluster/client.yaml
export builddir=$build PYTHONDONTWRITEBYTECODE=1
unset HOLDFAST_SOCKET

say()
{
	printf '\n\033[1m%s\033[0m\n' "$*"
}
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

finish()
{
	local p
	for p in $back $dev; do
		kill "$p" 2>/dev/null || true
		wait "$p" 2>/dev/null || true
	done
	rm -rf "$dir"
}
trap finish EXIT

# Shows a command as a person would type it, then runs it.
run()
{
	printf '  $ %s\n' "$*"
	"$build/$@" 2>&1 | sed 's/^/    /' || true
}

# Shows what dev-cluster says until each of the words was said.
watch_for()
{
	local line word left
	while [ $# -gt 0 ] && IFS= read -r line <&3; do
		printf '    | %s\n' "$line"
		left=()
		for word in "$@"; do
			case $line in
			*"$word"*) ;;
			*) left+=("$word") ;;
			esac
		done
		set -- ${left[@]+"${left[@]}"}
	done
	[ $# -eq 0 ] || {
		echo "  it ended" >&2
		exit 1
	}
}

say "1. Three nodes on this machine: certificates, data directories, processes"
echo "  \$ holdfast dev-cluster --nodes 3 --dir $cluster"
mkfifo "$dir/says"
"$build/holdfast" dev-cluster --nodes 3 --rpc-port 0 --peer-port 0 \
	--dir "$cluster" >"$dir/says" 2>&1 &
dev=$!
exec 3<"$dir/says"
watch_for "node1 is up" "node2 is up" "node3 is up" "leads"
run holdfast status

say "2. A kv object: it exists as soon as it is called, whichever node is asked"
run holdfast kv put orders/4711 state paid
for i in 1 2 3; do
	run holdfast --socket "$cluster/node$i/holdfast.sock" \
		kv get orders/4711 state
done
run holdfast kv incr visits home 2
run holdfast call kv/visits incr key=home
run holdfast kv cas orders/4711 state paid shipped
run holdfast kv cas orders/4711 state paid refunded

say "3. A rate limiter: 3 per minute for each key; the fourth is refused"
run holdfast limit put-policy api 3 60000 --durability committed
for _ in 1 2 3 4; do
	run holdfast limit check api 203.0.113.7
done

say "4. An idempotency key: the call takes effect once, however often it is sent"
run holdfast call kv/account incr key=balance by:=100 --idem payment-1
run holdfast call kv/account incr key=balance by:=100 --idem payment-1

say "5. kill -9 of an owner under load"
failed=0
python3 "$here/lib/failover.py" "$cluster" >"$dir/failover" || failed=1
grep -v '^victim ' "$dir/failover"
[ $failed -eq 0 ] || exit 1
read -r victim entries < <(sed -n 's/^victim //p' "$dir/failover")
watch_for "$victim is down"
watch_for "leads"
run holdfast kv get orders/4711 state
echo "  The payment is sent once more, with its key: the first answer again."
run holdfast call kv/account incr key=balance by:=100 --idem payment-1
run holdfast limit check api 203.0.113.7

say "6. It comes back, and catches up"
echo "  Meanwhile the two others serve:"
other=node1
[ "$victim" != node1 ] || other=node2
run holdfast --socket "$cluster/$other/holdfast.sock" bench kv-incr \
	--clients 16 --objects 100 --seconds 2 | sed "/^ *{/d; /^ *$/d"
python3 "$here/lib/level.py" "$cluster" "$victim" "$entries" >"$dir/level" &
level=$!
printf '  $ holdfastd --config %s/%s/holdfast.yaml\n' "$cluster" "$victim"
"$build/holdfastd" --config "$cluster/$victim/holdfast.yaml" \
	2>"$dir/back.log" &
back=$!
wait "$level"
cat "$dir/level"
watch_for "$victim is up" "$victim leads"
run holdfast status

say "Stopped"
kill "$back"
wait "$back"
back=
kill "$dev"
sed 's/^/    | /' <&3
wait "$dev"
dev=
echo "  SIGTERM: calls in flight finished, state checkpointed, exit code 0."
