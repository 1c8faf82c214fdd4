#!/usr/bin/env bash
# Prints docs/limits.md from node/base/limits.h. `make limits' stores it, and
# `make tidy' compares.
set -euo pipefail

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

cat <<'END'
# Limits

Everything in Holdfast has a bound. The answer at a bound is an error with a
code, mostly `OVERLOADED` with `retry_after_ms`, and never an accident. This page
is made from `node/base/limits.h` by `make limits`.
END

awk '
# 65536u, (2u << 20), 1ull << 40
function number(text, part) {
	gsub(/[()ul ]/, "", text)
	if (split(text, part, "<<") == 2)
		return part[1] * 2 ^ part[2]
	return text + 0
}
function thousands(n, s, out) {
	s = sprintf("%.0f", n)
	while (length(s) > 3) {
		out = "," substr(s, length(s) - 2) out
		s = substr(s, 1, length(s) - 3)
	}
	return s out
}
function shown(name, n) {
	if (name ~ /_MS(_|$)/) {
		if (n % 86400000 == 0)
			return n / 86400000 " days"
		if (n % 60000 == 0)
			return n / 60000 " min"
		if (n % 1000 == 0)
			return n / 1000 " s"
		return n " ms"
	}
	if (name ~ /_BYTES(_|$)/) {
		if (n >= 2 ^ 40 && n % 2 ^ 40 == 0)
			return n / 2 ^ 40 " TiB"
		if (n >= 2 ^ 30 && n % 2 ^ 30 == 0)
			return n / 2 ^ 30 " GiB"
		if (n >= 2 ^ 20 && n % 2 ^ 20 == 0)
			return n / 2 ^ 20 " MiB"
		if (n >= 65536 && n % 1024 == 0)
			return n / 1024 " KiB"
		return thousands(n) " bytes"
	}
	return thousands(n)
}
# A line may go on after a backslash, and its comment in the next lines.
function whole(line, more) {
	while ((line ~ /\\$/ || (line ~ /\/\*/ && line !~ /\*\//)) &&
	       (getline more) > 0) {
		sub(/\\$/, "", line)
		sub(/^[ \t]+/, "", more)
		sub(/^\*[ \t]+/, "", more)
		line = line " " more
	}
	return line
}
/^#include|^#ifndef|^#endif|^#define [A-Z_]*_H$/ { next }
/^\/\*$/ { while ((getline line) > 0 && line !~ /\*\//); next }
/^\/\* .*\. \*\/$/ {
	title = $0
	gsub(/^\/\* |\. \*\/$/, "", title)
	print "\n## " title "\n\n| bound | value | what it bounds |"
	print "|---|---|---|"
	next
}
/^#define / {
	line = whole($0)
	name = $2
	text = line
	if (text !~ /\/\*/) {
		print "limits.h: " name " has no comment" >"/dev/stderr"
		exit 1
	}
	value = text
	sub(/^#define +[A-Z0-9_]+[ \t]+/, "", value)
	sub(/[ \t]*\/\*.*/, "", value)
	sub(/.*\/\*[ \t]*/, "", text)
	sub(/[ \t]*\*\/.*/, "", text)
	printf "| `%s` | %s | %s |\n", name, shown(name, number(value)), text
	next
}
/^_Static_assert/ {
	if (!asserts++)
		print "\n## How they relate\n\nThe build fails when one of these does not hold.\n"
	line = $0
	while (line !~ /;$/ && (getline more) > 0) {
		sub(/^[ \t]+/, "", more)
		line = line " " more
	}
	condition = line
	sub(/^_Static_assert\(/, "", condition)
	sub(/, *"[^"]*"\);$/, "", condition)
	text = line
	sub(/^.*, *"/, "", text)
	sub(/"\);$/, "", text)
	print "- " text ": `" condition "`"
}
' node/base/limits.h
