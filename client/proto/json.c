#include "client/proto/json.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_BYTES_MAX 400 /* DBL_MAX written out has 309 digits. */

/* A map as {"$map": [[key, value]]} is three levels of text for one of
 * MessagePack, and in the last one may be an {"$ext": [type, ""]}. */
#define TEXT_DEPTH_MAX (3 * PACK_DEPTH_MAX + 2)

/* --------------------------------------------------------------- UTF-8 */

/* Bytes of the character at `p`, 0 when it is none; its code point in `*c`. */
static size_t character(const uint8_t *p, size_t n, uint32_t *c)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t len = p[0] < 0x80   ? 1
		     : p[0] < 0xc2 ? 0
		     : p[0] < 0xe0 ? 2
		     : p[0] < 0xf0 ? 3
		     : p[0] < 0xf5 ? 4
				   : 0;
	size_t i;

	if (len == 0 || len > n)
		return 0;
	*c = len == 1 ? p[0] : p[0] & (0xffU >> (len + 1));
	for (i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		*c = *c << 6 | (p[i] & 0x3fU);
	}
	if (*c < least[len] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000))
		return 0;
	return len;
}

static size_t character_put(uint8_t *p, uint32_t c)
{
	if (c < 0x80) {
		p[0] = (uint8_t)c;
		return 1;
	}
	if (c < 0x800) {
		p[0] = (uint8_t)(0xc0 | c >> 6);
		p[1] = (uint8_t)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		p[0] = (uint8_t)(0xe0 | c >> 12);
		p[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
		p[2] = (uint8_t)(0x80 | (c & 0x3f));
		return 3;
	}
	p[0] = (uint8_t)(0xf0 | c >> 18);
	p[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
	p[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
	p[3] = (uint8_t)(0x80 | (c & 0x3f));
	return 4;
}

static bool is_control(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

static bool is_utf8(struct pack_bytes s)
{
	uint32_t c;
	size_t i, len;

	for (i = 0; i < s.n; i += len) {
		len = character(s.p + i, s.n - i, &c);
		if (len == 0)
			return false;
	}
	return true;
}

static bool is_printable(struct pack_bytes s)
{
	uint32_t c;
	size_t i, len;

	for (i = 0; i < s.n; i += len) {
		len = character(s.p + i, s.n - i, &c);
		if (len == 0 || (is_control(c) && c != '\n' && c != '\t'))
			return false;
	}
	return true;
}

/* -------------------------------------------------------------- base64 */

static const char base64_digits[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void base64_write(struct pack_w *out, struct pack_bytes s)
{
	char quad[4];
	uint32_t v;
	size_t i, k;

	for (i = 0; i < s.n; i += 3) {
		v = 0;
		for (k = 0; k < 3; k++)
			v = v << 8 | (i + k < s.n ? s.p[i + k] : 0U);
		for (k = 0; k < 4; k++)
			quad[k] = i + k > s.n
					  ? '='
					  : base64_digits[v >> (18 - 6 * k) &
							  0x3f];
		pack_raw(out, quad, sizeof(quad));
	}
}

static int base64_digit(uint8_t c)
{
	const char *at = c != 0 ? strchr(base64_digits, c) : NULL;

	return at != NULL ? (int)(at - base64_digits) : -1;
}

/* Padded, and with zeros in the bits that hold nothing: one text for each
 * bytes. */
static bool base64_read(struct pack_bytes s, struct pack_w *out)
{
	uint8_t three[3];
	size_t i, k, pad;
	uint32_t v;
	int d;

	if (s.n % 4 != 0)
		return false;
	for (i = 0; i < s.n; i += 4) {
		v = 0;
		pad = 0;
		for (k = 0; k < 4; k++) {
			d = base64_digit(s.p[i + k]);
			if (d < 0 && s.p[i + k] == '=' && k >= 2 &&
			    i + 4 == s.n) {
				pad++;
				d = 0;
			} else if (d < 0 || pad > 0) {
				return false;
			}
			v = v << 6 | (uint32_t)d;
		}
		if ((v & ((1U << (8 * pad)) - 1)) != 0)
			return false;
		three[0] = (uint8_t)(v >> 16);
		three[1] = (uint8_t)(v >> 8);
		three[2] = (uint8_t)v;
		pack_raw(out, three, 3 - pad);
	}
	return true;
}

/* ---------------------------------------------------------- reserved keys */

enum reserved {
	RESERVED_BIN,
	RESERVED_STR,
	RESERVED_EXT,
	RESERVED_FLOAT,
	RESERVED_MAP,
	RESERVED_NONE,
};

static const char *const reserved_names[] = { "$bin", "$str", "$ext", "$float",
					      "$map" };

static enum reserved reserved_find(struct pack_bytes key)
{
	size_t i;

	for (i = 0; i < RESERVED_NONE; i++)
		if (pack_bytes_eq(key, reserved_names[i],
				  strlen(reserved_names[i])))
			break;
	return (enum reserved)i;
}

static int bytes_order(const void *a, const void *b)
{
	const struct pack_bytes *x = a;
	const struct pack_bytes *y = b;
	size_t n = x->n < y->n ? x->n : y->n;
	int d = n > 0 ? memcmp(x->p, y->p, n) : 0;

	if (d != 0)
		return d;
	return x->n < y->n ? -1 : x->n > y->n;
}

/* Whether the keys of the `n` pairs at `r`, all str or bin, differ as text. */
static enum rc keys_differ(struct pack_r r, uint32_t n, bool *differ)
{
	struct pack_bytes *keys;
	uint32_t i;

	*differ = true;
	if (n < 2)
		return RC_OK;
	keys = calloc(n, sizeof(*keys));
	if (keys == NULL)
		return RC_NOMEM;
	for (i = 0; i < n; i++) {
		(void)pack_get_bytes(&r, &keys[i]);
		(void)pack_skip(&r, NULL);
	}
	qsort(keys, n, sizeof(*keys), bytes_order);
	for (i = 1; i < n; i++)
		if (bytes_order(&keys[i - 1], &keys[i]) == 0)
			*differ = false;
	free(keys);
	return RC_OK;
}

/* ---------------------------------------------------------------- writing */

struct json_w {
	struct pack_w *out;
	unsigned flags;
};

static void put(struct json_w *j, const char *s)
{
	pack_raw(j->out, s, strlen(s));
}

static void put_line(struct json_w *j, unsigned depth)
{
	if ((j->flags & JSON_PRETTY) == 0)
		return;
	put(j, "\n");
	while (depth-- > 0)
		put(j, "  ");
}

static void put_escape(struct json_w *j, uint32_t c)
{
	static const char letters[] =
		"btnvfr"; /* From 8 on; v is not JSON's. */
	char s[8];

	if (c == '"' || c == '\\')
		(void)snprintf(s, sizeof(s), "\\%c", (int)c);
	else if (c >= 8 && c <= 13 && c != '\v')
		(void)snprintf(s, sizeof(s), "\\%c", letters[c - 8]);
	else
		(void)snprintf(s, sizeof(s), "\\u%04x", c & 0xffffU);
	put(j, s);
}

static void put_string(struct json_w *j, struct pack_bytes s)
{
	size_t from = 0;
	size_t i, len;
	uint32_t c = 0;

	put(j, "\"");
	for (i = 0; i < s.n; i += len) {
		len = character(s.p + i, s.n - i, &c);
		if (c != '"' && c != '\\' && !is_control(c))
			continue;
		pack_raw(j->out, s.p + from, i - from);
		put_escape(j, c);
		from = i + len;
	}
	pack_raw(j->out, s.p + from, s.n - from);
	put(j, "\"");
}

static void put_base64(struct json_w *j, struct pack_bytes s)
{
	put(j, "\"");
	base64_write(j->out, s);
	put(j, "\"");
}

/* {"$bin": "..."}, given what stands for the dots. */
static void put_reserved(struct json_w *j, enum reserved key)
{
	put(j, "{\"");
	put(j, reserved_names[key]);
	put(j, (j->flags & JSON_PRETTY) != 0 ? "\": " : "\":");
}

static void put_encoded(struct json_w *j, enum reserved key,
			struct pack_bytes s)
{
	put_reserved(j, key);
	put_base64(j, s);
	put(j, "}");
}

static void put_ext(struct json_w *j, const struct pack_val *v)
{
	char type[8];

	(void)snprintf(type, sizeof(type), "[%d,", v->ext_type);
	put_reserved(j, RESERVED_EXT);
	put(j, type);
	put_base64(j, v->s);
	put(j, "]}");
}

/* A program that set a locale must not get a comma. newlocale() gives a
 * constant for "C". */
static locale_t locale_c(void)
{
	return newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

static void format_float(char *to, size_t cap, double f)
{
	locale_t c = locale_c();
	locale_t old = uselocale(c);
	int digits;

	for (digits = 15; digits <= 17; digits++) {
		(void)snprintf(to, cap, "%.*g", digits, f);
		if (strtod(to, NULL) == f)
			break;
	}
	(void)uselocale(old);
	freelocale(c);
}

static void put_float(struct json_w *j, double f)
{
	char s[40];

	if (isnan(f) || isinf(f)) {
		put_reserved(j, RESERVED_FLOAT);
		put(j, isnan(f) ? "\"nan\"}"
		       : f > 0  ? "\"inf\"}"
				: "\"-inf\"}");
		return;
	}
	format_float(s, sizeof(s), f);
	put(j, s);
	if (strpbrk(s, ".e") == NULL)
		put(j, ".0");
}

static void put_int(struct json_w *j, const struct pack_val *v)
{
	char s[24];

	if (v->neg)
		(void)snprintf(s, sizeof(s), "%lld", (long long)v->i);
	else
		(void)snprintf(s, sizeof(s), "%llu", (unsigned long long)v->u);
	put(j, s);
}

static bool shown_as_text(const struct json_w *j, const struct pack_val *v)
{
	if (v->type == PACK_STR)
		return is_utf8(v->s);
	return v->type == PACK_BIN && (j->flags & JSON_BIN_TEXT) != 0 &&
	       is_printable(v->s);
}

/* Whether the map whose `n` pairs stand at `r` can be an object. */
static enum rc map_is_object(const struct json_w *j, struct pack_r r,
			     uint32_t n, bool *is)
{
	struct pack_r at = r;
	struct pack_val key;
	uint32_t i;

	*is = false;
	for (i = 0; i < n; i++) {
		if (pack_next(&at, &key) != RC_OK)
			return RC_INVALID;
		if (!shown_as_text(j, &key) ||
		    (n == 1 && reserved_find(key.s) != RESERVED_NONE))
			return RC_OK;
		if (pack_skip(&at, NULL) != RC_OK)
			return RC_INVALID;
	}
	return keys_differ(r, n, is);
}

static enum rc put_value(struct json_w *j, struct pack_r *r, unsigned depth);

static enum rc put_elements(struct json_w *j, struct pack_r *r, uint32_t n,
			    unsigned depth)
{
	enum rc rc = RC_OK;
	uint32_t i;

	put(j, "[");
	for (i = 0; i < n && rc == RC_OK; i++) {
		put(j, i > 0 ? "," : "");
		put_line(j, depth + 1);
		rc = put_value(j, r, depth + 1);
	}
	if (n > 0)
		put_line(j, depth);
	put(j, "]");
	return rc;
}

static enum rc put_object(struct json_w *j, struct pack_r *r, uint32_t n,
			  unsigned depth)
{
	struct pack_val key;
	enum rc rc = RC_OK;
	uint32_t i;

	put(j, "{");
	for (i = 0; i < n && rc == RC_OK; i++) {
		rc = pack_next(r, &key);
		if (rc != RC_OK)
			return rc;
		put(j, i > 0 ? "," : "");
		put_line(j, depth + 1);
		put_string(j, key.s);
		put(j, (j->flags & JSON_PRETTY) != 0 ? ": " : ":");
		rc = put_value(j, r, depth + 1);
	}
	if (n > 0)
		put_line(j, depth);
	put(j, "}");
	return rc;
}

static enum rc put_pairs(struct json_w *j, struct pack_r *r, uint32_t n,
			 unsigned depth)
{
	enum rc rc = RC_OK;
	uint32_t i;

	put_reserved(j, RESERVED_MAP);
	put(j, "[");
	for (i = 0; i < n && rc == RC_OK; i++) {
		put(j, i > 0 ? "," : "");
		put_line(j, depth + 1);
		put(j, "[");
		rc = put_value(j, r, depth + 1);
		put(j, ",");
		if (rc == RC_OK)
			rc = put_value(j, r, depth + 1);
		put(j, "]");
	}
	put_line(j, depth);
	put(j, "]}");
	return rc;
}

static enum rc put_map(struct json_w *j, struct pack_r *r, uint32_t n,
		       unsigned depth)
{
	bool object;
	enum rc rc = map_is_object(j, *r, n, &object);

	if (rc != RC_OK)
		return rc;
	return object ? put_object(j, r, n, depth) : put_pairs(j, r, n, depth);
}

/* The depth is that of checked bytes. */
static enum rc put_value(struct json_w *j, struct pack_r *r, unsigned depth)
{
	struct pack_val v;
	enum rc rc = pack_next(r, &v);

	if (rc != RC_OK)
		return rc;
	switch (v.type) {
	case PACK_NIL:
		put(j, "null");
		break;
	case PACK_BOOL:
		put(j, v.b ? "true" : "false");
		break;
	case PACK_INT:
		put_int(j, &v);
		break;
	case PACK_FLOAT:
		put_float(j, v.f);
		break;
	case PACK_STR:
	case PACK_BIN:
		if (shown_as_text(j, &v))
			put_string(j, v.s);
		else
			put_encoded(j,
				    v.type == PACK_BIN ? RESERVED_BIN
						       : RESERVED_STR,
				    v.s);
		break;
	case PACK_ARRAY:
		return put_elements(j, r, v.n, depth);
	case PACK_MAP:
		return put_map(j, r, v.n, depth);
	case PACK_EXT:
		put_ext(j, &v);
		break;
	}
	return RC_OK;
}

enum rc pack_to_json(struct pack_bytes value, struct pack_w *out,
		     unsigned flags)
{
	const struct pack_bounds bounds = { PACK_DEPTH_MAX, PACK_ELEMENTS_MAX,
					    value.n };
	struct pack_r r = pack_reader(value.p, value.n);
	struct json_w j = { out, flags };
	struct pack_scan scan = { 0 };
	size_t size = 0;
	enum rc rc;

	if (pack_check(&scan, value.p, value.n, &bounds, &size) != RC_OK ||
	    size != value.n)
		return RC_INVALID;
	rc = put_value(&j, &r, 0);
	return rc != RC_OK ? rc : out->rc;
}

/* ---------------------------------------------------------------- reading */

struct json_r {
	const uint8_t *start;
	const uint8_t *at;
	const uint8_t *end;
	struct pack_w *out;
	struct pack_w text; /* The string that is being read. */
	struct detail *why;
};

static enum rc bad(struct json_r *j, const char *what)
{
	return detail_set(j->why, RC_INVALID, NULL, "byte %zu of the JSON: %s",
			  (size_t)(j->at - j->start) + 1, what);
}

/* What the next byte is; 0 at the end, where no JSON has one. */
static uint8_t look(const struct json_r *j)
{
	return j->at < j->end ? *j->at : 0;
}

static bool accept(struct json_r *j, char c)
{
	if (j->at == j->end || *j->at != (uint8_t)c)
		return false;
	j->at++;
	return true;
}

static void pass_space(struct json_r *j)
{
	while (j->at < j->end && (*j->at == ' ' || *j->at == '\t' ||
				  *j->at == '\n' || *j->at == '\r'))
		j->at++;
}

static bool accept_word(struct json_r *j, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(j->end - j->at) < n || memcmp(j->at, word, n) != 0)
		return false;
	j->at += n;
	return true;
}

static bool read_hex4(struct json_r *j, uint32_t *c)
{
	int i;

	*c = 0;
	for (i = 0; i < 4; i++) {
		uint8_t b = look(j);
		uint32_t d;

		if (b >= '0' && b <= '9')
			d = b - (uint32_t)'0';
		else if (b >= 'a' && b <= 'f')
			d = b - (uint32_t)'a' + 10;
		else if (b >= 'A' && b <= 'F')
			d = b - (uint32_t)'A' + 10;
		else
			return false;
		*c = *c << 4 | d;
		j->at++;
	}
	return true;
}

/* Behind \u. */
static enum rc read_unicode(struct json_r *j)
{
	uint8_t bytes[4];
	uint32_t c, low;

	if (!read_hex4(j, &c))
		return bad(j, "\\u needs four hexadecimal digits");
	if (c >= 0xdc00 && c < 0xe000)
		return bad(j, "half of a surrogate pair");
	if (c >= 0xd800 && c < 0xdc00) {
		if (!accept_word(j, "\\u") || !read_hex4(j, &low) ||
		    low < 0xdc00 || low >= 0xe000)
			return bad(j, "half of a surrogate pair");
		c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
	}
	pack_raw(&j->text, bytes, character_put(bytes, c));
	return RC_OK;
}

/* Behind the backslash. */
static enum rc read_escape(struct json_r *j)
{
	static const char from[] = "\"\\/bfnrt";
	static const char to[] = "\"\\/\b\f\n\r\t";
	uint8_t b = look(j);
	const char *k = b != 0 ? strchr(from, b) : NULL;

	if (k != NULL) {
		pack_raw(&j->text, &to[k - from], 1);
		j->at++;
		return RC_OK;
	}
	if (!accept(j, 'u'))
		return bad(j, "no such escape");
	return read_unicode(j);
}

/* Behind the opening quote; the content goes to j->text. */
static enum rc read_text(struct json_r *j)
{
	enum rc rc = RC_OK;
	uint32_t c;
	size_t len;

	pack_w_reset(&j->text);
	while (rc == RC_OK) {
		if (j->at == j->end)
			return bad(j, "a string has no end");
		if (accept(j, '"'))
			return j->text.rc;
		if (accept(j, '\\')) {
			rc = read_escape(j);
			continue;
		}
		len = character(j->at, (size_t)(j->end - j->at), &c);
		if (len == 0)
			return bad(j, "not UTF-8");
		if (c < 0x20)
			return bad(j, "a control character in a string");
		pack_raw(&j->text, j->at, len);
		j->at += len;
	}
	return rc;
}

static enum rc read_string(struct json_r *j)
{
	enum rc rc = read_text(j);

	if (rc == RC_OK)
		pack_str(j->out, (const char *)j->text.p, j->text.n);
	return rc;
}

static size_t pass_digits(struct json_r *j)
{
	const uint8_t *from = j->at;

	while (look(j) >= '0' && look(j) <= '9')
		j->at++;
	return (size_t)(j->at - from);
}

/* Passes over a number by the grammar; `*whole`: without fraction and
 * exponent. */
static bool pass_number(struct json_r *j, bool *whole)
{
	*whole = true;
	(void)accept(j, '-');
	if (!accept(j, '0') && pass_digits(j) == 0)
		return false;
	if (accept(j, '.')) {
		*whole = false;
		if (pass_digits(j) == 0)
			return false;
	}
	if (accept(j, 'e') || accept(j, 'E')) {
		*whole = false;
		if (!accept(j, '+'))
			(void)accept(j, '-');
		if (pass_digits(j) == 0)
			return false;
	}
	return true;
}

static enum rc write_integer(struct json_r *j, const uint8_t *p)
{
	bool neg = *p == '-';
	uint64_t most = neg ? (uint64_t)INT64_MAX + 1 : UINT64_MAX;
	uint64_t u = 0;
	uint64_t d;

	for (p += neg; p < j->at; p++) {
		d = (uint64_t)(*p - '0');
		if (u > (most - d) / 10)
			return bad(j, "an integer of more than 64 bits");
		u = u * 10 + d;
	}
	if (neg)
		pack_i64(j->out, (int64_t)(0 - u));
	else
		pack_u64(j->out, u);
	return RC_OK;
}

static enum rc write_float(struct json_r *j, const uint8_t *p)
{
	char s[NUMBER_BYTES_MAX + 1];
	size_t n = (size_t)(j->at - p);
	locale_t c;
	double f;

	if (n > NUMBER_BYTES_MAX)
		return bad(j, "a number of too many digits");
	memcpy(s, p, n);
	s[n] = '\0';
	c = locale_c();
	f = strtod_l(s, NULL, c);
	freelocale(c);
	if (isinf(f))
		return bad(j, "a number too large for a float");
	pack_double(j->out, f);
	return RC_OK;
}

static enum rc read_number(struct json_r *j)
{
	const uint8_t *p = j->at;
	bool whole;

	if (!pass_number(j, &whole))
		return bad(j, "not a number");
	return whole ? write_integer(j, p) : write_float(j, p);
}

/* Puts the head of an array or map of `n` before what was written since
 * `start`. */
static enum rc insert_head(struct json_r *j, size_t start, bool map, uint32_t n)
{
	size_t size = j->out->n - start;
	size_t head;

	if (map)
		pack_map(j->out, n);
	else
		pack_array(j->out, n);
	if (j->out->rc != RC_OK)
		return j->out->rc;
	/* The head stands behind its content: turn them around. */
	head = j->out->n - start - size;
	if (!pack_w_reserve(j->out, head))
		return j->out->rc;
	memmove(j->out->p + start + head, j->out->p + start, size + head);
	memcpy(j->out->p + start, j->out->p + start + head + size, head);
	return RC_OK;
}

static bool float_named(struct pack_bytes s, double *f)
{
	if (pack_bytes_eq(s, "nan", 3))
		*f = (double)NAN;
	else if (pack_bytes_eq(s, "inf", 3))
		*f = (double)INFINITY;
	else if (pack_bytes_eq(s, "-inf", 4))
		*f = -(double)INFINITY;
	else
		return false;
	return true;
}

/* The heads of ext; msgpack-c's choice of the shortest is not to be had
 * through pack.h, which has no use for ext. */
static void put_ext_head(struct pack_w *w, int8_t type, size_t n)
{
	uint8_t head[6] = { 0xc9,
			    (uint8_t)(n >> 24),
			    (uint8_t)(n >> 16),
			    (uint8_t)(n >> 8),
			    (uint8_t)n,
			    (uint8_t)type };
	unsigned k;

	for (k = 0; k <= 4; k++) {
		if (n == (size_t)1 << k) {
			head[4] = (uint8_t)(0xd4 + k);
			pack_raw(w, head + 4, 2);
			return;
		}
	}
	if (n <= 0xff) {
		head[3] = 0xc7;
		pack_raw(w, head + 3, 3);
	} else if (n <= 0xffff) {
		head[2] = 0xc8;
		pack_raw(w, head + 2, 4);
	} else {
		pack_raw(w, head, 6);
	}
}

/* What a reserved key's value stands for, into `to`. */
static enum rc decode_bytes(struct json_r *j, enum reserved key,
			    struct pack_r *r, struct pack_w *to)
{
	struct pack_bytes s;

	if (pack_get_str(r, &s) != RC_OK)
		return bad(j, "base64 belongs in a string");
	pack_w_reset(&j->text);
	if (!base64_read(s, &j->text))
		return bad(j, "not base64");
	if (key == RESERVED_BIN)
		pack_bin(to, j->text.p, j->text.n);
	else
		pack_str(to, (const char *)j->text.p, j->text.n);
	return j->text.rc;
}

static enum rc decode_ext(struct json_r *j, struct pack_r *r, struct pack_w *to)
{
	struct pack_bytes s;
	int64_t type;
	uint32_t n;

	if (pack_get_array(r, &n) != RC_OK || n != 2 ||
	    pack_get_i64(r, &type) != RC_OK || type < -128 || type > 127 ||
	    pack_get_str(r, &s) != RC_OK)
		return bad(j, "$ext is [type, base64]");
	pack_w_reset(&j->text);
	if (!base64_read(s, &j->text))
		return bad(j, "not base64");
	put_ext_head(to, (int8_t)type, j->text.n);
	pack_raw(to, j->text.p, j->text.n);
	return j->text.rc;
}

static enum rc decode_float(struct json_r *j, struct pack_r *r,
			    struct pack_w *to)
{
	struct pack_bytes s;
	double f;

	if (pack_get_str(r, &s) != RC_OK || !float_named(s, &f))
		return bad(j, "$float is nan, inf or -inf");
	pack_double(to, f);
	return RC_OK;
}

static enum rc decode_map(struct json_r *j, struct pack_r *r, struct pack_w *to)
{
	struct pack_bytes pair;
	uint32_t pairs, n, i;

	if (pack_get_array(r, &pairs) != RC_OK)
		return bad(j, "$map is an array of pairs");
	pack_map(to, pairs);
	for (i = 0; i < 2 * pairs; i++) {
		if (i % 2 == 0 && (pack_get_array(r, &n) != RC_OK || n != 2))
			return bad(j, "$map is an array of pairs");
		if (pack_skip(r, &pair) != RC_OK)
			return bad(j, "$map is an array of pairs");
		pack_raw(to, pair.p, pair.n);
	}
	return RC_OK;
}

static enum rc decode(struct json_r *j, enum reserved key, struct pack_r *r,
		      struct pack_w *to)
{
	switch (key) {
	case RESERVED_BIN:
	case RESERVED_STR:
		return decode_bytes(j, key, r, to);
	case RESERVED_EXT:
		return decode_ext(j, r, to);
	case RESERVED_FLOAT:
		return decode_float(j, r, to);
	case RESERVED_MAP:
	case RESERVED_NONE:
		break;
	}
	return decode_map(j, r, to);
}

/* The one pair that was written since `start` has a reserved key: what it
 * stands for takes its place. */
static enum rc replace(struct json_r *j, size_t start, enum reserved key)
{
	struct pack_r r = pack_reader(j->out->p + start, j->out->n - start);
	struct pack_w made;
	enum rc rc;

	pack_w_init(&made, j->out->n - start + 8);
	(void)pack_skip(&r, NULL);
	rc = decode(j, key, &r, &made);
	if (rc == RC_OK)
		rc = made.rc;
	if (rc == RC_OK) {
		j->out->n = start;
		pack_raw(j->out, made.p, made.n);
	}
	pack_w_release(&made);
	return rc;
}

/* All pairs of an object are written. */
static enum rc end_object(struct json_r *j, size_t start, uint32_t n)
{
	struct pack_r r = pack_reader(j->out->p + start, j->out->n - start);
	struct pack_r first = r;
	enum reserved key;
	struct pack_bytes name;
	bool differ;
	enum rc rc;

	if (n == 1 && pack_get_str(&first, &name) == RC_OK) {
		key = reserved_find(name);
		if (key != RESERVED_NONE)
			return replace(j, start, key);
	}
	rc = keys_differ(r, n, &differ);
	if (rc != RC_OK)
		return rc;
	if (!differ)
		return bad(j, "the object that ends here has a key twice");
	return insert_head(j, start, true, n);
}

static enum rc read_value(struct json_r *j, unsigned depth);

static enum rc read_array(struct json_r *j, unsigned depth)
{
	size_t start = j->out->n;
	uint32_t n = 0;
	enum rc rc;

	pass_space(j);
	if (accept(j, ']'))
		return insert_head(j, start, false, 0);
	for (;;) {
		rc = read_value(j, depth);
		if (rc != RC_OK)
			return rc;
		n++;
		pass_space(j);
		if (accept(j, ']'))
			return insert_head(j, start, false, n);
		if (!accept(j, ','))
			return bad(j, "expected , or ]");
	}
}

static enum rc read_pair(struct json_r *j, unsigned depth)
{
	enum rc rc;

	pass_space(j);
	if (!accept(j, '"'))
		return bad(j, "expected a key in quotes");
	rc = read_string(j);
	if (rc != RC_OK)
		return rc;
	pass_space(j);
	if (!accept(j, ':'))
		return bad(j, "expected :");
	return read_value(j, depth);
}

static enum rc read_object(struct json_r *j, unsigned depth)
{
	size_t start = j->out->n;
	uint32_t n = 0;
	enum rc rc;

	pass_space(j);
	if (accept(j, '}'))
		return insert_head(j, start, true, 0);
	for (;;) {
		rc = read_pair(j, depth);
		if (rc != RC_OK)
			return rc;
		n++;
		pass_space(j);
		if (accept(j, '}'))
			break;
		if (!accept(j, ','))
			return bad(j, "expected , or }");
	}
	if (j->out->rc != RC_OK)
		return j->out->rc;
	return end_object(j, start, n);
}

/* `depth`: how many arrays and objects are open around it. */
static enum rc read_value(struct json_r *j, unsigned depth)
{
	pass_space(j);
	if ((look(j) == '[' || look(j) == '{') && depth >= TEXT_DEPTH_MAX)
		return bad(j, "nested too deep");
	if (accept(j, '['))
		return read_array(j, depth + 1);
	if (accept(j, '{'))
		return read_object(j, depth + 1);
	if (accept(j, '"'))
		return read_string(j);
	if (accept_word(j, "true")) {
		pack_bool(j->out, true);
		return RC_OK;
	}
	if (accept_word(j, "false")) {
		pack_bool(j->out, false);
		return RC_OK;
	}
	if (accept_word(j, "null")) {
		pack_nil(j->out);
		return RC_OK;
	}
	if (look(j) == '-' || (look(j) >= '0' && look(j) <= '9'))
		return read_number(j);
	return bad(j, "expected a value");
}

/* The bounds are those of what was made. */
static enum rc check_made(struct json_r *j, size_t start)
{
	const struct pack_bounds bounds = { PACK_DEPTH_MAX, PACK_ELEMENTS_MAX,
					    j->out->n - start };
	struct pack_scan scan = { 0 };
	size_t size;

	if (j->out->rc != RC_OK)
		return j->out->rc;
	if (pack_check(&scan, j->out->p + start, j->out->n - start, &bounds,
		       &size) == RC_OK)
		return RC_OK;
	return detail_set(j->why, RC_INVALID, NULL,
			  "the JSON has more than %d levels or %d values",
			  PACK_DEPTH_MAX, PACK_ELEMENTS_MAX);
}

enum rc json_to_pack(const char *text, size_t n, struct pack_w *out,
		     struct detail *why)
{
	struct json_r j = { .out = out, .why = why };
	size_t before = out->n;
	enum rc rc;

	j.start = (const uint8_t *)text;
	j.at = j.start;
	j.end = j.start + n;
	pack_w_init(&j.text, n);
	rc = read_value(&j, 0);
	if (rc == RC_OK) {
		pass_space(&j);
		if (j.at != j.end)
			rc = bad(&j, "something follows the value");
	}
	if (rc == RC_OK)
		rc = check_made(&j, before);
	if (rc != RC_OK)
		out->n = before;
	pack_w_release(&j.text);
	return rc;
}
