#!/usr/bin/env bash
# What Holdfast does, shown on one node: called by ./demo with the build
# directory. Starts a node in a directory of its own and stops it again.
set -euo pipefail

build=$(cd "$1" && pwd)
dir=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
sock=$dir/holdfast.sock
daemon=
export HOLDFAST_SOCKET=$sock

say()
{
	printf '\n\033[1m%s\033[0m\n' "$*"
}
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

finish()
{
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	[ -z "$daemon" ] || wait "$daemon" 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT

# Shows a command as a person would type it, then runs it.
run()
{
	printf '  $ %s\n' "$*"
	"$build/$@" 2>&1 | sed 's/^/    /' || true
}

# The daemon says in its log when it serves; a fifo carries the log here.
start()
{
	local line
	mkfifo "$dir/log.$1"
	"$build/holdfastd" --dev --data "$dir" 2>"$dir/log.$1" &
	daemon=$!
	exec 3<"$dir/log.$1"
	while read -r line <&3; do
		case $line in
		*'"event":"node_ready"'*)
			cat <&3 >>"$dir/daemon.log" &
			return 0
			;;
		*) echo "$line" ;;
		esac
	done
	echo "the node did not start" >&2
	exit 1
}

# The counter `n' of a kv object; nothing while it does not exist.
value_of()
{
	"$build/holdfast" --json kv get "$1" n 2>/dev/null |
		sed -n 's/.*"value": *\([0-9]*\).*/\1/p' || true
}

say "1. One node on an empty directory, without any configuration"
start 1
printf '  holdfastd --dev --data %s\n' "$dir"
run holdfast ping

say "2. A kv object: it exists as soon as it is called"
run holdfast kv put orders/4711 state paid
run holdfast kv get orders/4711 state
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

say "5. kill -9 in the middle of a load"
echo "  16 clients increment 100 counters; each answer means: synced to disk."
"$build/holdfast" bench kv-incr --clients 16 --objects 100 --prefix demo \
	--seconds 4 --json >"$dir/bench" 2>"$dir/bench.err" &
bench=$!
# Wait until the load is well under way: the counters themselves say so.
seen=0
while [ "$seen" -lt 200 ]; do
	seen=$(value_of demo7)
	seen=${seen:-0}
done
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
echo "  killed: holdfastd, process $daemon, with no chance to write anything"
wait "$bench" || true
field() { tail -n 1 "$dir/bench" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
acked=$(field acked_total)
open=$(field unknown_total)
echo "  acknowledged until then: $acked; in flight when it died: $open"

say "6. Started again on the same directory"
start 2
sum=0
for i in $(seq 0 99); do
	v=$(value_of "demo$i")
	sum=$((sum + ${v:-0}))
done
echo "  sum of the 100 counters: $sum"
if [ "$sum" -lt "$acked" ] || [ "$sum" -gt $((acked + open)) ]; then
	echo "  NOT between acknowledged and acknowledged + in flight"
	exit 1
fi
echo "  lost: 0 of $acked acknowledged; $((sum - acked)) of the $open in" \
	"flight had made it to the disk"
run holdfast kv get orders/4711 state
echo "  The payment is sent once more, with its key: the first answer again."
run holdfast call kv/account incr key=balance by:=100 --idem payment-1
run holdfast kv get account balance
run holdfast limit check api 203.0.113.7

say "7. What the node says about itself"
run holdfast status

say "Stopped"
kill "$daemon"
wait "$daemon"
daemon=
echo "  SIGTERM: calls in flight finished, state checkpointed, exit code 0."
