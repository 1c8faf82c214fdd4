#!/usr/bin/env bash
# Every mutant of node/base/mutant.tbl that a run of one node can show must be
# caught by random seeds; for the others the table names the directed test.
# Usage: mutants.sh SIM [SEEDS]
set -uo pipefail

sim=$1
seeds=${2:-200}
table=$(dirname "$0")/../../node/base/mutant.tbl
passed=0
failed=0

# What one node and random faults do not show, and who shows it.
directed()
{
	case $1 in
	log_trust_unsynced | log_no_chain_check)
		echo "test_log, test_recovery" ;;
	call_with_open_writes | idem_expires_early | read_without_round | \
		expiry_without_tick)
		echo "test_object, test_idem" ;;
	page_unchecked | wal_frame_unchecked)
		echo "test_db_vfs, test_storage" ;;
	*) return 1 ;;
	esac
}

while read -r mutant; do
	if tests=$(directed "$mutant"); then
		printf '     %-22s directed: %s\n' "$mutant" "$tests"
		continue
	fi
	found=
	from=1
	while [ -z "$found" ] && [ "$from" -le "$seeds" ]; do
		to=$((from + 9))
		found=$("$sim" --mutant "$mutant" --seeds "$from..$to" \
			--quiet 2>&1 | grep -m 1 '^FAIL seed')
		from=$((to + 1))
	done
	if [ -n "$found" ]; then
		passed=$((passed + 1))
		printf 'ok   %-22s %s\n' "$mutant" \
			"$(echo "${found#FAIL }" | cut -c1-100)"
	else
		failed=$((failed + 1))
		printf 'FAIL %-22s survives %d seeds\n' "$mutant" "$seeds"
	fi
done < <(sed -n 's/^M(\([a-z_]*\),.*/\1/p' "$table")
echo "# mutants: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
