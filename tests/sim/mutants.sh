#!/usr/bin/env bash
# Every mutant of node/base/mutant.tbl must be caught: by random seeds, or, where
# no trial can show it, by the directed test that `sim --mutants` names; that
# one passes without the mutant and fails with it.
# Usage: mutants.sh BUILD-DIRECTORY [NAME]
# With SEEDS=N only N seeds are tried, instead of 500; one that survives them is
# open and not counted.
set -uo pipefail

build=$(cd "$1" && pwd) || exit 2
only=${2:-}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0

say()
{
	if [ "$1" = ok ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
	fi
	printf '%-8s %-22s %s\n' "$1" "$2" "$3"
}

# A program of tests/, and the name of one test of it.
run_directed()
{
	(cd "$build" && timeout 300 "tests/$1" ${2:+"$2"})
}

directed()
{
	local mutant=$1 program=$2 name=$3

	if ! run_directed "$program" "$name" >"$log" 2>&1; then
		say FAIL "$mutant" "$program $name fails without it"
		return
	fi
	if HOLDFAST_MUTANT=$mutant run_directed "$program" "$name" \
		>"$log" 2>&1; then
		say FAIL "$mutant" "$program $name does not notice it"
		return
	fi
	say ok "$mutant" "directed: $program $name"
}

while read -r word mutant program rest; do
	case $word in
	directed)
		name=${rest%%:*}
		[ "$program" != "${program%:}" ] && name=
		directed "$mutant" "${program%:}" "$name"
		;;
	dies) say ok "$mutant" "$program $rest" ;;
	open) printf '%-8s %-22s %s\n' open "$mutant" "$program $rest" ;;
	FAIL) say FAIL "$mutant" "$program $rest" ;;
	ok) say ok "-" "$mutant $program $rest" ;;
	esac
done < <("$build/sim" --mutants ${SEEDS:+--within "$SEEDS"} \
	${only:+--only "$only"})
echo "# mutants: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
