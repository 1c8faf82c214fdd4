#!/usr/bin/env bash
# Proves the table of cases in tests/README.md: each id of the list below has a
# row; each test that a row names runs and passes; and with the fault that the
# row names switched on (HOLDFAST_MUTANT), the test fails. A fault that only
# the simulator shows is one that `sim --mutants` kills: it prints the seeds.
#
# usage: tests/cases.sh BUILD-DIRECTORY
# With SEEDED=1 rows of real processes are left out: they run with the other
# integration tests, and their faults with `make cases'.
set -uo pipefail

build=$(cd "$1" && pwd) || exit 2
root=$(cd "$(dirname "$0")/.." && pwd)
table=$root/tests/README.md
passed=0
failed=0

ids='SO1 SO2 SO3 SO4 SO5 SO7 SO8 DU1 DU2 DU3 DU4 DU5 DU6 DU7 DU8
OG1 OG2 OG3 OG4 OG6 OG7 OG8 RD1 RD2 RD3 RD4 RD5 ID1 ID2 ID3 ID4 ID5 ID6 ID7
SN1 SN2 SN3 SN4 SN5 SN6 SN7 SN8 LG1 LG2 LG3 LG4 LG5 LG6 LG7 LG8 LG9
DK1 DK2 DK3 DK4 DK5 DK7 DK8 CK1 CK2 CK3 NW1 NW2 NW3 NW4 NW5 NW6 NW7 NW8
SL1 SL2 SL3 SL4 RS1 RS2 RX2 MI3 TL2'

say_ok()
{
	passed=$((passed + 1))
	[ -n "${VERBOSE:-}" ] && printf 'ok   %s\n' "$*"
	return 0
}

say_fail()
{
	failed=$((failed + 1))
	printf 'FAIL %s\n' "$*"
}

# `unit/test_x NAME', `integration/test_x.py NAME', `chaos/x.py NAME'.
run_test()
{
	local file=$1 name=$2

	case $file in
	*.py)
		builddir=$build timeout 300 /usr/bin/python3 \
			"$root/tests/$file" "$name"
		;;
	*)
		(cd "$build" && timeout 300 "tests/$file" "$name")
		;;
	esac
}

# The same program and test may stand in several rows: once is enough.
declare -A ran

check_test()
{
	local id=$1 file=$2 name=$3 fault=$4 key="$2 $3"

	case ${SEEDED:-}$file in 1*.py) return ;; esac
	if [ -z "${ran[$key]:-}" ]; then
		if run_test "$file" "$name" >"$log" 2>&1; then
			ran[$key]=ok
		else
			ran[$key]=failed
			tail -5 "$log"
		fi
	fi
	if [ "${ran[$key]}" != ok ]; then
		say_fail "$id: $file $name does not pass"
		return
	fi
	if [ -n "$fault" ] && [ -z "${ran[$key $fault]:-}" ]; then
		if HOLDFAST_MUTANT=$fault run_test "$file" "$name" \
			>"$log" 2>&1; then
			ran[$key $fault]=survived
		elif grep -q 'no fault is called' "$log"; then
			ran[$key $fault]=unknown
		else
			ran[$key $fault]=died
		fi
	fi
	if [ -n "$fault" ] && [ "${ran[$key $fault]}" != died ]; then
		say_fail "$id: $file $name does not see $fault" \
			"(${ran[$key $fault]})"
		return
	fi
	say_ok "$id: $file $name${fault:+, dies of $fault}"
}

# By random seeds: sim --mutants runs every fault that is not said to show
# elsewhere, and fails when one survives.
check_sim()
{
	local id=$1 fault=$2

	if ! grep -q "^M($fault," "$root/node/base/mutant.tbl"; then
		say_fail "$id: mutant.tbl has no $fault"
	elif grep -q "ALONE($fault," "$root/tests/sim/mutants.c"; then
		say_fail "$id: the simulator does not look for $fault"
	else
		say_ok "$id: the simulator, dies of $fault"
	fi
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# | id | test | fault |: a test is `FILE NAME' or `sim'; several rows may have
# the same id.
rows=$(sed -n 's/^| \([A-Z][A-Z][0-9]*\) | \(.*\) | \(.*\) |$/\1|\2|\3/p' \
	"$table" | tr -d '`')
for id in $ids; do
	mine=$(grep "^$id|" <<<"$rows")
	if [ -z "$mine" ]; then
		say_fail "$id: no row in tests/README.md"
		continue
	fi
	while IFS='|' read -r _ what fault; do
		# A fault that is not a mutant is said in words, in brackets.
		case $fault in \(*) fault= ;; esac
		if [ "$what" = sim ]; then
			check_sim "$id" "$fault"
		else
			check_test "$id" "${what%% *}" "${what#* }" "$fault"
		fi
	done <<<"$mine"
done
while IFS='|' read -r id _; do
	grep -qw "$id" <<<"$ids" || say_fail "$id: a row that nobody asks for"
done <<<"$rows"

echo "# cases.sh: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
