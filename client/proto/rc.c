#include "client/proto/rc.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct row {
	const char *name; /* NULL: no code has this number. */
	const char *text;
	int http;
	enum outcome outcome;
};

#define RC_WIRE_END 64

static const struct row rows[] = {
#define RC(name, number, http, outcome, text) \
	[number] = { #name, text, http, OUTCOME_##outcome },
#include "client/proto/rc.tbl"
#undef RC
};

#define ROWS_COUNT (sizeof(rows) / sizeof(rows[0]))

static const struct row *row_of(enum rc rc)
{
	size_t n = (size_t)rc;

	if (n >= ROWS_COUNT || rows[n].name == NULL)
		n = RC_INTERNAL;
	return &rows[n];
}

const char *rc_name(enum rc rc)
{
	return row_of(rc)->name;
}

const char *rc_text(enum rc rc)
{
	return row_of(rc)->text;
}

int rc_http(enum rc rc)
{
	return row_of(rc)->http;
}

enum outcome rc_outcome(enum rc rc)
{
	return row_of(rc)->outcome;
}

const char *outcome_name(enum outcome o)
{
	switch (o) {
	case OUTCOME_DONE:
		return "done";
	case OUTCOME_REFUSED:
		return "refused";
	case OUTCOME_UNKNOWN:
		break;
	}
	return "unknown";
}

bool rc_is_wire(enum rc rc)
{
	size_t n = (size_t)rc;

	return n < RC_WIRE_END && n < ROWS_COUNT && rows[n].name != NULL;
}

enum rc rc_parse(const char *name, size_t len, enum rc *out)
{
	size_t i;

	for (i = 0; i < RC_WIRE_END && i < ROWS_COUNT; i++) {
		if (rows[i].name != NULL && strlen(rows[i].name) == len &&
		    memcmp(rows[i].name, name, len) == 0) {
			*out = (enum rc)i;
			return RC_OK;
		}
	}
	return RC_NOT_FOUND;
}

/* A text that was cut may end inside a character; what travels as a string has
 * to be UTF-8. */
static void cut_to_character(char *s, size_t n)
{
	size_t back = 0;
	unsigned char c = 0;

	while (back < n && back < 4) {
		c = (unsigned char)s[n - 1 - back];
		back++;
		if ((c & 0xc0) != 0x80)
			break;
	}
	if ((c >= 0xf0 && back < 4) || (c >= 0xe0 && c < 0xf0 && back < 3) ||
	    (c >= 0xc0 && c < 0xe0 && back < 2))
		s[n - back] = '\0';
}

__attribute__((format(printf, 3, 0))) static void format_cut(char *to,
							     size_t cap,
							     const char *fmt,
							     va_list ap)
{
	int n = vsnprintf(to, cap, fmt, ap);

	if (n < 0)
		to[0] = '\0';
	else if ((size_t)n >= cap)
		cut_to_character(to, cap - 1);
}

__attribute__((format(printf, 3, 4))) static void put_cut(char *to, size_t cap,
							  const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	format_cut(to, cap, fmt, ap);
	va_end(ap);
}

enum rc detail_set(struct detail *why, enum rc rc, const char *field,
		   const char *fmt, ...)
{
	va_list ap;

	if (why == NULL || why->text[0] != '\0' || why->field[0] != '\0')
		return rc;
	if (field != NULL)
		put_cut(why->field, sizeof(why->field), "%s", field);
	va_start(ap, fmt);
	format_cut(why->text, sizeof(why->text), fmt, ap);
	va_end(ap);
	return rc;
}

void detail_within(struct detail *why, const char *fmt, ...)
{
	char inner[sizeof(why->field)];
	char outer[sizeof(why->field)];
	va_list ap;

	if (why == NULL)
		return;
	memcpy(inner, why->field, sizeof(inner));
	va_start(ap, fmt);
	format_cut(outer, sizeof(outer), fmt, ap);
	va_end(ap);
	put_cut(why->field, sizeof(why->field), "%s%s%s", outer,
		inner[0] != '\0' ? "." : "", inner);
}
