/*
 * logline - structured log lines: an event name and typed fields.
 *
 *	LOG_WARN("call_redirected", F("object", id), F("owner", node_id));
 *
 * F() is a _Generic without default: integers, bool, double, `const char *` and
 * `struct pack_bytes` are accepted; a pointer to a secret, to raw bytes or to
 * void does not compile. Lines are JSON objects, one per line: time, level,
 * event, then the fields. Strings are escaped, cut at LOG_FIELD_BYTES_MAX and
 * redacted where the key says that they may be secret (names containing auth,
 * key_value, secret, token, password, cookie). The last LOG_RING lines stay in
 * memory for the panic dump, each cut at LOG_RING_BYTES.
 * Any thread. node/base/ calls no thread library: the ring is guarded by a
 * flag that is spun on for the time of one memcpy, and `sink` and `wall_ms` are
 * called without it, possibly by two threads at once: a sink that hands its
 * whole line to one write(2) needs nothing more.
 */
#ifndef HOLDFAST_BASE_LOGLINE_H
#define HOLDFAST_BASE_LOGLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/pack.h"

enum log_level {
	LOG_DEBUG_LEVEL,
	LOG_INFO_LEVEL,
	LOG_WARN_LEVEL,
	LOG_ERROR_LEVEL,
};

#define LOG_FIELDS_MAX      12
#define LOG_FIELD_BYTES_MAX 512
#define LOG_RING            64
#define LOG_RING_BYTES      512

struct log_field {
	const char *key;
	enum { LOG_I64, LOG_U64, LOG_F64, LOG_BOOL, LOG_STR, LOG_BYTES } type;
	union {
		int64_t i;
		uint64_t u;
		double d;
		bool b;
		const char *s;
		struct pack_bytes bytes;
	};
};

static inline struct log_field log_f_i64(const char *key, int64_t v)
{
	return (struct log_field){ .key = key, .type = LOG_I64, .i = v };
}
static inline struct log_field log_f_u64(const char *key, uint64_t v)
{
	return (struct log_field){ .key = key, .type = LOG_U64, .u = v };
}
static inline struct log_field log_f_f64(const char *key, double v)
{
	return (struct log_field){ .key = key, .type = LOG_F64, .d = v };
}
static inline struct log_field log_f_bool(const char *key, bool v)
{
	return (struct log_field){ .key = key, .type = LOG_BOOL, .b = v };
}
static inline struct log_field log_f_str(const char *key, const char *v)
{
	return (struct log_field){ .key = key, .type = LOG_STR, .s = v };
}
static inline struct log_field log_f_bytes(const char *key, struct pack_bytes v)
{
	return (struct log_field){ .key = key, .type = LOG_BYTES, .bytes = v };
}

/* clang-format off */
#define F(key, v) _Generic((v), \
	bool: log_f_bool, \
	signed char: log_f_i64, short: log_f_i64, int: log_f_i64, \
	long: log_f_i64, long long: log_f_i64, \
	unsigned char: log_f_u64, unsigned short: log_f_u64, \
	unsigned int: log_f_u64, unsigned long: log_f_u64, \
	unsigned long long: log_f_u64, \
	float: log_f_f64, double: log_f_f64, \
	char *: log_f_str, const char *: log_f_str, \
	struct pack_bytes: log_f_bytes)(key, v)
/* clang-format on */

#define LOG_AT(level, event, ...)                                  \
	do {                                                       \
		if (log_enabled(level)) {                          \
			const struct log_field log_fields_[] = {   \
				__VA_ARGS__                        \
			};                                         \
			log_write(level, event, log_fields_,       \
				  sizeof(log_fields_) /            \
					  sizeof(log_fields_[0])); \
		}                                                  \
	} while (0)
#define LOG_DEBUG(event, ...) LOG_AT(LOG_DEBUG_LEVEL, event, __VA_ARGS__)
#define LOG_INFO(event, ...)  LOG_AT(LOG_INFO_LEVEL, event, __VA_ARGS__)
#define LOG_WARN(event, ...)  LOG_AT(LOG_WARN_LEVEL, event, __VA_ARGS__)
#define LOG_ERROR(event, ...) LOG_AT(LOG_ERROR_LEVEL, event, __VA_ARGS__)

bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *event,
	       const struct log_field *fields, size_t n);

/* The line alone, without ring and sink, for who must end at once: its length,
 * at most `bytes`. */
size_t logline_format(char *out, size_t bytes, enum log_level level,
		      const char *event, const struct log_field *fields,
		      size_t n);

/* Where lines go: `sink` gets one whole line with its newline. `wall_ms` gives
 * the time; both may be NULL (no output, time 0). Set once at start; the
 * simulator gives its own. */
void log_setup(enum log_level level,
	       void (*sink)(void *arg, const char *line, size_t n),
	       uint64_t (*wall_ms)(void *arg), void *arg);
/* Write the last lines to stderr: for panic_hook(). */
void log_ring_dump(void *unused);

/* "debug", "info", "warn", "error": RC_OK and `out` set, or RC_NOT_FOUND. */
enum rc log_level_parse(const char *name, enum log_level *out);

#endif
