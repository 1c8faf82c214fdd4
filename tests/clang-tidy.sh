#!/usr/bin/env bash
# Runs clang-tidy on every .c file whose text, after the preprocessor, or whose
# rules changed since it last passed. Called by `make clang-tidy', which gives
# srcdir, builddir, CLANG, CLANG_TIDY and FLAGS. With arguments: on those files only.
#
# A pass is remembered by the hash of all that was looked at, comments included,
# so a touched file, a new checkout or a branch switched back costs nothing.
set -euo pipefail

: "${srcdir:?}" "${builddir:?}" "${FLAGS:?}"
stamps=$builddir/tests/clang-tidy.stamps
log=$builddir/tests/clang-tidy.log
export stamps FLAGS CLANG CLANG_TIDY

if [ -z "${CLANG_TIDY:-}" ] || [ -z "${CLANG:-}" ]; then
	echo "clang-tidy: not installed (Debian: clang clang-tidy)" >&2
	exit 1
fi
mkdir -p "$stamps"
cd "$srcdir"

one()
{
	local file=$1 key text
	local flags=$FLAGS

	# Tests see what only test builds have; so do the classes made for them.
	flags="$flags -DHOLDFAST_TESTING=1 -DHOLDFAST_VERSION=\"tidy\""
	# shellcheck disable=SC2086
	key=$({
		cat .clang-tidy
		echo "$flags"
		"$CLANG_TIDY" --version
		"$CLANG" $flags -E -CC "$file" 2>&1
	} | sha256sum | cut -d' ' -f1)
	if [ -e "$stamps/$key" ]; then
		echo "ok   $file"
		return
	fi
	# shellcheck disable=SC2086
	if text=$("$CLANG_TIDY" --quiet "$file" -- $flags 2>/dev/null); then
		: >"$stamps/$key"
		echo "ok   $file"
	else
		# One write, so that two files do not mix.
		printf '%s\nFAIL %s\n' "$text" "$file"
	fi
}
export -f one

if [ $# -eq 0 ]; then
	mapfile -t files < <(find client node raft-glue objects tests \
		-name '*.c' | sort)
else
	files=("$@")
fi
if [ ${#files[@]} -gt 0 ]; then
	printf '%s\0' "${files[@]}" |
		xargs -0 -n 1 -P "$(nproc)" bash -c 'one "$1"' one >"$log" || true
fi
passed=$(grep -c '^ok   ' "$log" || true)
failed=$(grep -c '^FAIL ' "$log" || true)
# A file that gave neither line is a failure too.
failed=$((failed + ${#files[@]} - passed - failed))
grep -v '^ok   ' "$log" || true
echo "# clang-tidy: $passed passed, $failed failed" | tee -a "$log"
# Stamps of texts that are gone are of no use after a month.
find "$stamps" -type f -mtime +30 -delete
[ "$failed" -eq 0 ]
