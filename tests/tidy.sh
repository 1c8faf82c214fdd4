#!/usr/bin/env bash
# What a reviewer would otherwise have to look for in every change: who includes
# whom, one home per foreign header, numbers that must be unique, tables that
# must agree with the docs, formatting. Each check is one test; a breach is
# printed with its file and line.
#
# `make tidy' and `make check' run it; by hand: tests/tidy.sh [CHECK...]
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "${srcdir:-$here}" || exit 1
CC=${CC:-cc}
CLANG_FORMAT=${CLANG_FORMAT:-$(command -v clang-format-14 ||
	command -v clang-format || true)}
passed=0
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

folders=(client node raft-glue objects tests)
mapfile -t sources < <(find "${folders[@]}" -name '*.[ch]' | sort)
mapfile -t scripts < <({
	find "${folders[@]}" docs .ci -name '*.sh' 2>/dev/null
	for f in check demo .ci/run; do [ -e "$f" ] && echo "$f"; done
} | sort)
mapfile -t texts < <({
	find "${folders[@]}" docs \( -name '*.[ch]' -o -name '*.tbl' -o \
		-name '*.sh' -o -name '*.py' -o -name '*.rb' -o -name '*.md' \
		-o -name '*.yaml' -o -name '*.yml' -o -name '*.in' \) 2>/dev/null
	for f in check demo .ci/run README.md Makefile.am configure.ac \
		.clang-format .clang-tidy .editorconfig .gitignore; do
		[ -e "$f" ] && echo "$f"
	done
} | sort)

# The folder of the table that a file belongs to. A unit test belongs to the
# folder of the module that it is named after.
folder_of()
{
	local module found

	case $1 in
	client/proto/*) echo client/proto ;;
	client/*) echo client ;;
	node/base/*) echo node/base ;;
	node/os/*) echo node/os ;;
	node/core/*) echo node/core ;;
	node/*) echo node ;;
	raft-glue/*) echo raft-glue ;;
	objects/*) echo objects ;;
	tests/unit/test_*)
		module=${1#tests/unit/test_}
		module=${module%.*}
		found=$(module_path "$module")
		if [ -n "$found" ]; then
			folder_of "$found"
		else
			echo unknown
		fi
		;;
	tests/*) echo tests ;;
	esac
}

# client/proto/pack.c for pack; a module that is only a header counts. A module's
# second test is named after it and says more: test_storage_copies.
module_path()
{
	local f

	for f in client/proto client node/base node/os node/core node raft-glue \
		objects tests/lib tests/sim; do
		[ -e "$f/$1.c" ] && echo "$f/$1.c" && return
		[ -e "$f/$1.h" ] && echo "$f/$1.h" && return
	done
	[[ $1 == *_* ]] && module_path "${1%_*}"
	return 0
}

# STYLE: folder -> what its files may include of ours, as a regular expression
# for the whole path.
allowed()
{
	case $1 in
	client/proto) echo 'client/proto/[^/]+' ;;
	client) echo 'client/(proto/)?[^/]+' ;;
	node/base) echo '(node/base|client/proto)/[^/]+' ;;
	node/os) echo '(node/os|node/base|client/proto)/[^/]+' ;;
	raft-glue) echo '(raft-glue|node/base|client/proto)/[^/]+' ;;
	objects) echo '(objects|node/base|client/proto)/[^/]+' ;;
	node/core)
		echo '(node/core|raft-glue|objects|node/base|client/proto)/[^/]+'
		;;
	node) echo '(node/((core|base|os)/)?|raft-glue/|objects/|client/proto/)[^/]+|client/tls\.h' ;;
	tests) echo '.*' ;;
	*) echo 'none' ;;
	esac
}

# Foreign header (regular expression), tab, its homes (regular expression). The
# unit test of a home is at home too.
homes()
{
	cat <<-'END'
	raft(/.*)?\.h	raft-glue/(step|guard|codec)\.[ch]|tests/fuzz/fuzz_codec\.c
	msgpack(/.*)?\.h	client/proto/pack\.c
	sqlite3\.h	objects/(db[a-z0-9_]*\.[ch]|storage\.c)
	sodium(/.*)?\.h	node/base/(crypto|secret)\.c
	openssl/.*	node/base/crypto\.c|node/ca\.c|client/tls\.c|tests/lib/(test_ca|negatives)\.h
	uv\.h	client/[^/]*\.[ch]|node/[^/]*\.[ch]|node/os/[^/]*\.[ch]|tests/(lib|bench|chaos|integration)/[^/]*\.[ch]
	cyaml/.*	node/config\.c
	curl/.*	node/egress/fetch\.c
	wasm.*\.h	node/runner/engine\.c
	END
}

# Every foreign header but these needs a row above: the C library's, the trees'
# and the compiler's own.
libc='bsd/sys/tree\.h|sanitizer/[a-z_]+\.h|(arpa|asm|linux|net|netinet|sys)/[a-z0-9_]+\.h|[a-z0-9_]+\.h'

breach()
{
	echo "     $*"
	echo x >>"$work/breaches"
}

run()
{
	local name=$1 title=$2

	if [ ${#only[@]} -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then
		return
	fi
	: >"$work/breaches"
	"check_$name"
	if [ -s "$work/breaches" ]; then
		failed=$((failed + 1))
		echo "FAIL $name: $title"
	else
		passed=$((passed + 1))
		echo "ok   $name: $title"
	fi
}

check_includes()
{
	local file line path folder

	while IFS=$'\t' read -r file line path; do
		folder=$(folder_of "$file")
		if [[ $path != */* ]]; then
			breach "$file:$line: \"$path\" is not written from the root"
		elif [[ $file == tests/* && $path =~ ^tests/(lib|sim)/ ]]; then
			:
		elif [ "$folder" = unknown ]; then
			breach "$file: no module has that name"
		elif ! [[ $path =~ ^($(allowed "$folder"))$ ]]; then
			breach "$file:$line: $folder/ may not include $path"
		fi
		if [ "$file" = client/holdfast.h ]; then
			breach "$file:$line: the installed header stands alone"
		fi
	done < <(awk '/^[ \t]*#[ \t]*include[ \t]*"/ {
		split($0, part, "\"")
		print FILENAME "\t" FNR "\t" part[2]
	}' "${sources[@]}")
}

check_homes()
{
	local file line path header home module known self

	while IFS=$'\t' read -r file line path; do
		known=0
		self=$file
		if [[ $file == tests/unit/test_* ]]; then
			module=${file#tests/unit/test_}
			self=$(module_path "${module%.*}")
		fi
		while IFS=$'\t' read -r header home; do
			[[ $path =~ ^($header)$ ]] || continue
			known=1
			if ! [[ $self =~ ^($home)$ || $file =~ ^($home)$ ]]; then
				breach "$file:$line: <$path> has its home in" \
					"${home//\\/}"
			fi
		done < <(homes)
		[ $known = 1 ] && continue
		if ! [[ $path =~ ^($libc)$ ]]; then
			breach "$file:$line: <$path> has no home in tests/tidy.sh"
		fi
	done < <(awk '/^[ \t]*#[ \t]*include[ \t]*</ {
		split($0, part, /[<>]/)
		print FILENAME "\t" FNR "\t" part[2]
	}' "${sources[@]}")
}

# A header compiles alone: it includes what it uses.
check_headers()
{
	local h flags

	flags="-std=gnu11 -D_GNU_SOURCE -I. $(pkg-config --cflags raft libuv \
		libcyaml sqlite3 libsodium libssl 2>/dev/null)"
	for h in "${sources[@]}"; do
		[[ $h == *.h ]] || continue
		# shellcheck disable=SC2086
		if ! $CC $flags -Wall -Wextra -fsyntax-only -x c \
			-include "$h" /dev/null 2>"$work/errors"; then
			breach "$h: $(grep -m1 error "$work/errors")"
		fi
		if ! grep -q "^#ifndef [A-Z0-9_]*_H\$" "$h"; then
			breach "$h: no include guard"
		fi
	done
}

check_guards()
{
	local line

	while read -r line; do
		breach "include guard $line stands in two headers"
	done < <(awk '/^#ifndef [A-Z0-9_]*_H$/ { print $2 }' \
		"${sources[@]}" | sort | uniq -d)
}

# The number of a magic says which struct a pointer meant to point to.
check_magics()
{
	local value

	awk '/^#define [A-Z0-9_]*_MAGIC[ \t]/ {
		v = tolower($3); gsub(/[ul]+$/, "", v)
		print v, FILENAME ":" FNR ": " $2
	}' "${sources[@]}" >"$work/magics"
	while read -r value; do
		breach "the magic $value is used more than once:" \
			"$(awk -v v="$value" '$1 == v { printf "%s %s; ", $2, $3 }' \
				"$work/magics")"
	done < <(cut -d' ' -f1 "$work/magics" | sort | uniq -d)
}

check_format()
{
	local line

	case $([ -n "$CLANG_FORMAT" ] && "$CLANG_FORMAT" --version) in
	*'version 14.'*) ;;
	*)
		echo "     skipped: layout is defined by clang-format 14" \
			"(${CLANG_FORMAT:-none} here)"
		return
		;;
	esac
	while read -r line; do
		breach "$line: not as clang-format has it (make format)"
	done < <(printf '%s\0' "${sources[@]}" | xargs -0 -n 16 -P "$(nproc)" \
		"$CLANG_FORMAT" --dry-run 2>&1 | grep -o '^[^ ]*:[0-9]*:' |
		cut -d: -f1 | sort | uniq -c | awk '{ print $2 ": " $1 " places" }')
}

check_whitespace()
{
	local f line

	while read -r line; do
		breach "$line: white space at the end of the line"
	done < <(grep -nE '[ 	]+$' "${texts[@]}" /dev/null | cut -d: -f1,2)
	for f in "${texts[@]}"; do
		if [ -s "$f" ] && [ -n "$(tail -c1 "$f")" ]; then
			breach "$f: no newline at the end"
		fi
	done
}

# Work that is left is an issue, not a comment. (The words are put together
# here so that this file does not find itself.)
check_leftovers()
{
	local line words
	words="TO""DO|FIX""ME|X""XX|HA""CK"

	while read -r line; do
		breach "$line"
	done < <(grep -nwE "$words" "${texts[@]}" /dev/null)
}

check_sleeps()
{
	local line

	while read -r line; do
		breach "$line: a test steps time or waits for an event"
	done < <({
		find tests -name '*.[ch]' -o -name '*.py' -o -name '*.rb' |
			xargs -r grep -nE '\<(u|nano|time\.)?sleep\(' /dev/null
		find tests -name '*.sh' |
			xargs -r grep -nE '^[^#]*(^|[;&|]|do|then)[ 	]*sleep ' \
				/dev/null
	} | cut -d: -f1,2)
}

check_scripts()
{
	local f

	for f in "${scripts[@]}"; do
		bash -n "$f" 2>"$work/errors" || breach "$(head -1 "$work/errors")"
	done
	for f in check demo .ci/run tests/demo.sh; do
		[ -e "$f" ] || breach "$f is missing"
		[ -x "$f" ] || breach "$f is not executable"
	done
	if command -v python3 >"$work/null"; then
		while read -r f; do
			python3 -c 'import ast, sys
ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$f" 2>"$work/errors" ||
				breach "$f: $(tail -1 "$work/errors")"
		done < <(find tests -name '*.py')
	fi
}

# What is not in the lists is not built, not tested and not looked at.
check_lists()
{
	local f

	for f in "${sources[@]}"; do
		[[ $f == *.c ]] || continue
		grep -qE "(^|[ 	])$f( |\$)" Makefile.am && continue
		# An automake program is named without the suffix.
		grep -qE "(^|[ 	])${f%.c}( |\$)" Makefile.am && continue
		breach "$f is not in Makefile.am"
	done
}

# Programs' own parts: they are tried as programs (tests/integration).
without_unit_test='node/main\.c|client/(cli[a-z_]*|bench[a-z_]*)\.c'

check_tests()
{
	local f name

	for f in "${sources[@]}"; do
		[[ $f == *.c && $f != tests/* ]] || continue
		[[ $f =~ ^($without_unit_test)$ ]] && continue
		name=$(basename "$f" .c)
		[ -e "tests/unit/test_$name.c" ] ||
			breach "$f has no tests/unit/test_$name.c"
	done
}

# The first N arguments of a table's rows `MACRO(a, b, ...)', one row a line.
rows()
{
	local file=$1 macro=$2 n=${3:-1}

	awk -v macro="$macro" -v n="$n" 'index($0, macro "(") == 1 {
		sub(/^[A-Z]+\(/, ""); sub(/\).*$/, "")
		split($0, a, /, */)
		for (i = 1; i <= n; i++)
			printf "%s%s", a[i], i < n ? " " : "\n"
	}' "$file"
}

# table, macro, how many arguments make its key
check_tables()
{
	local line table macro n

	while read -r table macro n; do
		while read -r line; do
			breach "$table: $macro($line) stands twice"
		done < <(rows "$table" "$macro" "$n" | sort | uniq -d)
	done <<-'END'
	client/proto/rc.tbl RC 1
	client/proto/method.tbl RPC 1
	client/proto/method.tbl NOTIFY 1
	client/proto/method.tbl OPTION 1
	client/proto/method.tbl METHOD 2
	client/proto/method.tbl ARG 3
	client/proto/method.tbl SET 1
	client/proto/method.tbl WORD 2
	node/base/mutant.tbl M 1
	END
	while read -r line; do
		breach "client/proto/rc.tbl: the number $line stands twice"
	done < <(rows client/proto/rc.tbl RC 2 | cut -d' ' -f2 | sort | uniq -d)
}

# A rule without its mutant in the code has no test that it matters, and one
# without a row in the simulator's list is shown by nobody.
check_mutants()
{
	local name

	while read -r name; do
		grep -rqE "MUTANT\($name\)" client node raft-glue objects ||
			breach "node/base/mutant.tbl: $name has no MUTANT($name)"
		grep -qE "^	[A-Z]+\($name(,|$)" tests/sim/mutants.c ||
			breach "tests/sim/mutants.c: no row for $name"
	done < <(rows node/base/mutant.tbl M)
}

# The part of a Markdown file under the first heading that has the word.
section()
{
	awk -v word="$2" '
		/^```/ { code = !code }
		!code && /^#+ / {
			depth = index($0, " ") - 1
			if (on && depth <= mine) exit
			if (!on && $0 ~ ("(^|[^a-z_])" word "([^a-z_]|$)")) {
				on = 1; mine = depth
			}
		}
		on' "$1"
}

# docs/protocol.md has a table row for every code a client may see, with its
# HTTP status and its outcome; every method, notification and option in
# backquotes; and in the section of each class its methods and their arguments.
check_protocol()
{
	local name number http outcome class method arg doc=docs/protocol.md
	local tbl=client/proto/method.tbl

	if [ ! -e $doc ]; then
		breach "$doc is missing"
		return
	fi
	while read -r name number http outcome; do
		[ "$number" -lt 64 ] && [ "$name" != OK ] || continue
		grep -E "^\|.*\`$name\`" $doc | grep -w "$http" |
			grep -qiw "$outcome" ||
			breach "$doc: no table row with \`$name\`, $http and" \
				"${outcome,,}"
	done < <(rows client/proto/rc.tbl RC 4)
	while read -r name; do
		grep -qE "\`$name([^a-z_]|\$)" $doc || breach "$doc: no \`$name\`"
	done < <(rows $tbl RPC; rows $tbl NOTIFY; rows $tbl OPTION)
	# The relay exists in test builds only.
	while read -r class method; do
		[ "$class" != relay ] || continue
		section $doc "$class" |
			grep -qE "(\`|$class\.)$method([^a-z_]|\$)" ||
			breach "$doc: the section of $class has no \`$method\`"
	done < <(rows $tbl METHOD 2)
	while read -r class method arg; do
		[ "$class" != relay ] || continue
		section $doc "$class" | grep -qw "$arg" ||
			breach "$doc: the section of $class has no $arg" \
				"(of $method)"
	done < <(rows $tbl ARG 3)
}

# docs/limits.md is what docs/limits.sh makes of limits.h.
check_limits()
{
	docs/limits.sh >"$work/limits" 2>"$work/errors" ||
		breach "docs/limits.sh: $(head -1 "$work/errors")"
	cmp -s "$work/limits" docs/limits.md ||
		breach "docs/limits.md is not up to date: make limits"
}

# A link in a page leads to a file that is there, and to a heading that it has.
check_links()
{
	local page target file anchor

	while IFS=$'\t' read -r page target; do
		file=${target%%#*}
		anchor=
		[[ $target != *#* ]] || anchor=${target#*#}
		if [ -n "$file" ]; then
			file=$(dirname "$page")/$file
		else
			file=$page
		fi
		if [ ! -e "$file" ]; then
			breach "$page: no $target"
		elif [ -n "$anchor" ] && ! anchors "$file" |
			grep -qx -- "$anchor"; then
			breach "$page: no heading for $target"
		fi
	done < <(find "${folders[@]}" docs README.md -name '*.md' -print0 |
		xargs -0 awk '/^```/ { code = !code } FNR == 1 { code = 0 }
		!code {
			line = $0
			while (match(line, /\]\([^)]*\)/)) {
				link = substr(line, RSTART + 2, RLENGTH - 3)
				line = substr(line, RSTART + RLENGTH)
				if (link !~ /^https?:/)
					print FILENAME "\t" link
			}
		}')
}

# The anchors of the headings of a page: lower case, no punctuation, spaces as
# hyphens.
anchors()
{
	awk '/^```/ { code = !code }
	!code && /^#+ / {
		sub(/^#+ /, ""); $0 = tolower($0)
		gsub(/[^a-z0-9_ -]/, ""); gsub(/ /, "-")
		print
	}' "$1"
}

check_readmes()
{
	local d

	for d in . client node raft-glue objects tests docs; do
		[ -s "$d/README.md" ] || breach "$d/README.md is missing"
	done
}

only=("$@")
run includes "each folder includes what its row of the table allows"
run homes "a foreign header has one home"
run headers "headers stand alone"
run guards "include guards are unique"
run magics "magics are unique"
run format "layout is clang-format's"
run whitespace "no white space at line ends"
run leftovers "nothing is left for later in comments"
run sleeps "no test sleeps"
run scripts "scripts parse"
run lists "Makefile.am has every source"
run tests "each module has its unit test"
run tables "rows of the tables are unique"
run mutants "each mutant has its place"
run protocol "docs/protocol.md agrees with the tables"
run limits "docs/limits.md is made from limits.h"
run readmes "each folder explains itself"
run links "links in pages lead somewhere"

echo "# tidy: $passed passed, $failed failed"
[ $failed -eq 0 ]
