#include "node/base/logline.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>

#include "node/base/check.h"

#define KEY_BYTES_MAX 64u

/* Room for one line: each byte of a field becomes at most six (\u0000). */
#define LINE_BYTES_MAX \
	(512u +        \
	 LOG_FIELDS_MAX * (KEY_BYTES_MAX + 16u + 6u * LOG_FIELD_BYTES_MAX))

static const char *const levels[] = { "debug", "info", "warn", "error" };

static struct {
	enum log_level level;
	void (*sink)(void *arg, const char *line, size_t n);
	uint64_t (*wall_ms)(void *arg);
	void *arg;
} out = { .level = LOG_INFO_LEVEL };

static struct {
	atomic_flag busy;
	unsigned next;
	struct {
		uint16_t n;
		char text[LOG_RING_BYTES];
	} lines[LOG_RING];
} ring = { .busy = ATOMIC_FLAG_INIT };

void log_setup(enum log_level level,
	       void (*sink)(void *arg, const char *line, size_t n),
	       uint64_t (*wall_ms)(void *arg), void *arg)
{
	PRE(level < ARRAY_LEN(levels));
	out.level = level;
	out.sink = sink;
	out.wall_ms = wall_ms;
	out.arg = arg;
}

bool log_enabled(enum log_level level)
{
	return level >= out.level;
}

enum rc log_level_parse(const char *name, enum log_level *level)
{
	unsigned i;

	for (i = 0; i < ARRAY_LEN(levels); i++) {
		if (strcmp(levels[i], name) == 0) {
			*level = (enum log_level)i;
			return RC_OK;
		}
	}
	return RC_NOT_FOUND;
}

/* A line that grows; it never runs over because LINE_BYTES_MAX covers the worst
 * case, which put() checks. */
struct line {
	size_t n;
	char text[LINE_BYTES_MAX];
};

static void put(struct line *l, const char *p, size_t n)
{
	CHECK(n <= sizeof(l->text) - l->n);
	memcpy(l->text + l->n, p, n);
	l->n += n;
}

static void put_str(struct line *l, const char *s)
{
	put(l, s, strlen(s));
}

__attribute__((format(printf, 2, 3))) static void put_number(struct line *l,
							     const char *format,
							     ...)
{
	char text[64];
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	CHECK(n > 0);
	CHECK((size_t)n < sizeof(text));
	put(l, text, (size_t)n);
}

/* Length of the well-formed UTF-8 sequence at the front of p..p + n, or 0. */
static size_t utf8_length(const uint8_t *p, size_t n)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	uint32_t rune;
	size_t len;
	size_t i;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] < 0xe0)
		len = 2;
	else if (p[0] >= 0xe0 && p[0] < 0xf0)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] < 0xf5)
		len = 4;
	else
		return 0;
	if (len > n)
		return 0;
	rune = p[0] & (0x7fu >> len);
	for (i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		rune = rune << 6 | (p[i] & 0x3fu);
	}
	if (rune < least[len] || rune > 0x10ffff ||
	    (rune >= 0xd800 && rune < 0xe000))
		return 0;
	return len;
}

static void put_ascii(struct line *l, uint8_t c)
{
	char two[2] = { '\\', (char)c };

	if (c == '"' || c == '\\')
		put(l, two, 2);
	else if (c < 0x20 || c == 0x7f)
		put_number(l, "\\u%04x", c);
	else
		put(l, two + 1, 1);
}

/* A JSON string. A byte that is no UTF-8 becomes U+FFFD; what is cut ends in
 * three dots. */
static void put_quoted(struct line *l, const uint8_t *p, size_t n)
{
	size_t end = n < LOG_FIELD_BYTES_MAX ? n : LOG_FIELD_BYTES_MAX;
	size_t at = 0;
	size_t len;

	put_str(l, "\"");
	while (at < end) {
		len = utf8_length(p + at, n - at);
		if (at + len > end)
			break;
		if (len == 0)
			put_str(l, "\\ufffd");
		else if (len == 1)
			put_ascii(l, p[at]);
		else
			put(l, (const char *)p + at, len);
		at += len > 0 ? len : 1;
	}
	put_str(l, at < n ? "...\"" : "\"");
}

static bool key_is_secret(const char *key)
{
	static const char *const words[] = { "auth",  "key_value", "secret",
					     "token", "password",  "cookie" };
	unsigned i;

	for (i = 0; i < ARRAY_LEN(words); i++)
		if (strcasestr(key, words[i]) != NULL)
			return true;
	return false;
}

static void put_bytes(struct line *l, const char *key, const void *p, size_t n)
{
	if (key_is_secret(key))
		put_str(l, "\"[redacted]\"");
	else if (p == NULL)
		put_str(l, n == 0 ? "null" : "\"\"");
	else
		put_quoted(l, p, n);
}

static void put_f64(struct line *l, double d)
{
	/* JSON knows neither infinity nor NaN. */
	if (isfinite(d))
		put_number(l, "%.15g", d);
	else
		put_str(l, "null");
}

static void put_value(struct line *l, const struct log_field *f)
{
	switch (f->type) {
	case LOG_I64:
		put_number(l, "%" PRId64, f->i);
		break;
	case LOG_U64:
		put_number(l, "%" PRIu64, f->u);
		break;
	case LOG_F64:
		put_f64(l, f->d);
		break;
	case LOG_BOOL:
		put_str(l, f->b ? "true" : "false");
		break;
	case LOG_STR:
		put_bytes(l, f->key, f->s, f->s != NULL ? strlen(f->s) : 0);
		break;
	case LOG_BYTES:
		put_bytes(l, f->key, f->bytes.p, f->bytes.n);
		break;
	default:
		UNREACHABLE();
	}
}

/* Proleptic Gregorian date of a day since 1970-01-01 (days_from_civil of
 * H. Hinnant, inverted): gmtime_r may read the machine's time zone files. */
static void put_time(struct line *l, uint64_t wall_ms)
{
	uint64_t seconds = wall_ms / 1000;
	uint64_t days = seconds / 86400 + 719468;
	uint64_t era = days / 146097;
	uint64_t doe = days % 146097;
	uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	uint64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	uint64_t mp = (5 * doy + 2) / 153;
	uint64_t month = mp < 10 ? mp + 3 : mp - 9;

	put_number(l, "%04" PRIu64 "-%02" PRIu64 "-%02" PRIu64 "T",
		   era * 400 + yoe + (month <= 2), month,
		   doy - (153 * mp + 2) / 5 + 1);
	put_number(l,
		   "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64 "Z",
		   seconds / 3600 % 24, seconds / 60 % 60, seconds % 60,
		   wall_ms % 1000);
}

static void put_line(struct line *l, enum log_level level, const char *event,
		     const struct log_field *fields, size_t n)
{
	size_t i;

	put_str(l, "{\"time\":\"");
	put_time(l, out.wall_ms != NULL ? out.wall_ms(out.arg) : 0);
	put_str(l, "\",\"level\":\"");
	put_str(l, levels[level]);
	put_str(l, "\",\"event\":\"");
	put_str(l, event);
	put_str(l, "\"");
	for (i = 0; i < n; i++) {
		PRE(strlen(fields[i].key) <= KEY_BYTES_MAX);
		put_str(l, ",\"");
		put_str(l, fields[i].key);
		put_str(l, "\":");
		put_value(l, &fields[i]);
	}
	put_str(l, "}\n");
}

static void ring_lock(void)
{
	while (atomic_flag_test_and_set_explicit(&ring.busy,
						 memory_order_acquire))
		;
}

static void ring_unlock(void)
{
	atomic_flag_clear_explicit(&ring.busy, memory_order_release);
}

static void ring_keep(const struct line *l)
{
	size_t n = l->n < LOG_RING_BYTES ? l->n : LOG_RING_BYTES;
	unsigned at;

	ring_lock();
	at = ring.next++ % LOG_RING;
	memcpy(ring.lines[at].text, l->text, n);
	ring.lines[at].text[n - 1] = '\n';
	ring.lines[at].n = (uint16_t)n;
	ring_unlock();
}

void log_write(enum log_level level, const char *event,
	       const struct log_field *fields, size_t n)
{
	struct line l;

	PRE(level < ARRAY_LEN(levels));
	PRE(n <= LOG_FIELDS_MAX);
	PRE(strlen(event) <= KEY_BYTES_MAX);
	l.n = 0;
	put_line(&l, level, event, fields, n);
	ring_keep(&l);
	if (out.sink != NULL)
		out.sink(out.arg, l.text, l.n);
}

size_t logline_format(char *to, size_t bytes, enum log_level level,
		      const char *event, const struct log_field *fields,
		      size_t n)
{
	struct line l;

	PRE(level < ARRAY_LEN(levels));
	PRE(n <= LOG_FIELDS_MAX);
	l.n = 0;
	put_line(&l, level, event, fields, n);
	if (bytes > l.n)
		bytes = l.n;
	memcpy(to, l.text, bytes);
	return bytes;
}

/* Without the lock: the thread that panics may hold it. */
void log_ring_dump(void *unused)
{
	unsigned i;
	unsigned at;

	(void)unused;
	for (i = 0; i < LOG_RING; i++) {
		at = (ring.next + i) % LOG_RING;
		if (ring.lines[at].n > 0)
			(void)fwrite(ring.lines[at].text, 1, ring.lines[at].n,
				     stderr);
	}
}
