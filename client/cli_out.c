/*
 * What people see. Names and values come from other people: nothing of them
 * reaches a terminal as a control character.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli.h"
#include "client/proto/json.h"

#define OUT_JSON_BYTES_MAX (64u << 20)

/* The length of the UTF-8 sequence at `p`, its character in `*c`; 0: it is
 * none. */
static size_t utf8_at(const uint8_t *p, size_t n, uint32_t *c)
{
	size_t len = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
	size_t i;
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

	if (p[0] >= 0x80 && (p[0] < 0xc2 || p[0] > 0xf4))
		return 0;
	if (n < len)
		return 0;
	*c = len == 1 ? p[0] : p[0] & (0xffu >> (len + 1));
	for (i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		*c = *c << 6 | (p[i] & 0x3fu);
	}
	if (*c < least[len] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000))
		return 0;
	return len;
}

/* Control characters, and those that hide or reorder what stands beside. */
static bool is_unsafe(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xad || c == 0x61c ||
	       (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
	       (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

void out_text(FILE *f, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	uint32_t c = 0;
	size_t len;
	size_t i;

	while (n > 0) {
		len = utf8_at(p, n, &c);
		if (len > 0 && !is_unsafe(c)) {
			(void)fwrite(p, 1, len, f);
		} else {
			if (len == 0)
				len = 1;
			for (i = 0; i < len; i++)
				(void)fprintf(f, "\\x%02x", p[i]);
		}
		p += len;
		n -= len;
	}
}

void out_hex(FILE *f, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	size_t i;

	for (i = 0; i < n; i++)
		(void)fprintf(f, "%02x", p[i]);
}

static void out_as_json(FILE *f, struct pack_bytes v, unsigned flags)
{
	struct pack_w w;

	pack_w_init(&w, OUT_JSON_BYTES_MAX);
	if (pack_to_json(v, &w, flags) == RC_OK)
		(void)fwrite(w.p, 1, w.n, f);
	else
		(void)fputs("(a damaged value)", f);
	pack_w_release(&w);
}

void out_value(FILE *f, struct pack_bytes v)
{
	struct pack_r r = pack_reader(v.p, v.n);
	struct pack_bytes text;

	if (pack_get_bytes(&r, &text) == RC_OK)
		out_text(f, text.p, text.n);
	else
		out_as_json(f, v, JSON_BIN_TEXT);
}

/* The widest key, for a column that fits. */
static int keys_width(struct pack_r r, uint32_t pairs)
{
	struct pack_bytes key;
	size_t width = 0;

	for (; pairs > 0; pairs--) {
		if (pack_get_bytes(&r, &key) == RC_OK && key.n > width)
			width = key.n;
		else if (pack_skip(&r, NULL) != RC_OK)
			break;
		else
			continue;
		if (pack_skip(&r, NULL) != RC_OK)
			break;
	}
	return width < 40 ? (int)width : 40;
}

void out_human(FILE *f, struct pack_bytes v)
{
	struct pack_r r = pack_reader(v.p, v.n);
	struct pack_bytes key;
	struct pack_bytes value;
	struct pack_bytes text;
	struct pack_r kr;
	uint32_t pairs;
	int width;

	if (pack_get_map(&r, &pairs) != RC_OK) {
		out_value(f, v);
		(void)fputc('\n', f);
		return;
	}
	width = keys_width(r, pairs);
	for (; pairs > 0; pairs--) {
		if (pack_skip(&r, &key) != RC_OK ||
		    pack_skip(&r, &value) != RC_OK)
			return;
		kr = pack_reader(key.p, key.n);
		text.n = 0;
		(void)pack_get_bytes(&kr, &text);
		out_value(f, key);
		(void)fprintf(f, "%*s  ",
			      width > (int)text.n ? width - (int)text.n : 0,
			      "");
		out_value(f, value);
		(void)fputc('\n', f);
	}
}

bool out_colours(void)
{
	const char *term = getenv("TERM");
	const char *no = getenv("NO_COLOR");

	return isatty(STDOUT_FILENO) != 0 && (no == NULL || no[0] == '\0') &&
	       term != NULL && strcmp(term, "dumb") != 0;
}

void out_json(FILE *f, struct pack_bytes v)
{
	out_as_json(f, v, isatty(fileno(f)) != 0 ? JSON_PRETTY : 0);
	(void)fputc('\n', f);
}

void out_result(const struct cli *cli, struct pack_bytes v)
{
	if (cli->json)
		out_json(stdout, v);
	else
		out_human(stdout, v);
}

bool out_find(struct pack_bytes map, const char *key, struct pack_bytes *v)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes name;
	uint32_t pairs;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return false;
	for (; pairs > 0; pairs--) {
		if (pack_get_bytes(&r, &name) != RC_OK ||
		    pack_skip(&r, v) != RC_OK)
			return false;
		if (pack_bytes_eq(name, key, strlen(key)))
			return true;
	}
	return false;
}

bool out_find_u64(struct pack_bytes map, const char *key, uint64_t *v)
{
	struct pack_bytes b;
	struct pack_r r;

	if (!out_find(map, key, &b))
		return false;
	r = pack_reader(b.p, b.n);
	return pack_get_u64(&r, v) == RC_OK;
}

bool out_find_text(struct pack_bytes map, const char *key, struct pack_bytes *v)
{
	struct pack_bytes b;
	struct pack_r r;

	if (!out_find(map, key, &b))
		return false;
	r = pack_reader(b.p, b.n);
	return pack_get_bytes(&r, v) == RC_OK;
}

/* One of a few buffers, so that a line may have several. */
static char *out_room(void)
{
	static char room[8][32];
	static unsigned next;

	return room[next++ % 8];
}

const char *out_bytes(uint64_t n)
{
	static const char *const units[] = { "B",   "KiB", "MiB",
					     "GiB", "TiB", "PiB" };
	char *text = out_room();
	double v = (double)n;
	size_t i = 0;

	while (v >= 1024 && i + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1024;
		i++;
	}
	(void)snprintf(text, 32, i == 0 ? "%.0f %s" : "%.1f %s", v, units[i]);
	return text;
}

const char *out_duration_ms(uint64_t ms)
{
	char *text = out_room();
	unsigned long long s = ms / 1000;

	if (ms < 1000)
		(void)snprintf(text, 32, "%llu ms", (unsigned long long)ms);
	else if (s < 120)
		(void)snprintf(text, 32, "%.1f s", (double)ms / 1000);
	else if (s < 7200)
		(void)snprintf(text, 32, "%llu min %llu s", s / 60, s % 60);
	else if (s < 172800)
		(void)snprintf(text, 32, "%llu h %llu min", s / 3600,
			       s / 60 % 60);
	else
		(void)snprintf(text, 32, "%llu d %llu h", s / 86400,
			       s / 3600 % 24);
	return text;
}
