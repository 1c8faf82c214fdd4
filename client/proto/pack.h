/*
 * pack - bounded MessagePack, reading and writing. The only module that
 * includes msgpack.h.
 *
 * Any thread; no state outside the structs. Reading never allocates: a
 * `struct pack_r` is a cursor over bytes that somebody else owns and strings
 * point into them. Before anything of a received object is looked at, let
 * pack_check() pass over it once: it bounds depth, elements and lengths in time
 * and memory proportional to the bytes at hand (five bytes can claim four
 * billion elements).
 * The format: msgpack specification (2013 revision: str, bin, ext).
 */
#ifndef HOLDFAST_PROTO_PACK_H
#define HOLDFAST_PROTO_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

#define PACK_DEPTH_MAX    32     /* Nesting of arrays and maps. */
#define PACK_ELEMENTS_MAX 262144 /* Objects in one message, all levels. */

enum pack_type {
	PACK_NIL,
	PACK_BOOL,
	PACK_INT, /* Any integer; `neg` tells which half of `u` / `i` holds. */
	PACK_FLOAT, /* float 32 and 64 */
	PACK_STR,
	PACK_BIN,
	PACK_ARRAY, /* `n` elements follow. */
	PACK_MAP,   /* `n` pairs follow. */
	PACK_EXT,
};

struct pack_bytes {
	const uint8_t *p;
	size_t n;
};

/* One token. */
struct pack_val {
	enum pack_type type;
	bool neg;        /* PACK_INT: use `i`, else `u`. */
	int8_t ext_type; /* PACK_EXT */
	uint32_t n;      /* PACK_ARRAY, PACK_MAP: elements or pairs. */
	union {
		bool b;
		uint64_t u;
		int64_t i;
		double f;
		struct pack_bytes s; /* PACK_STR, PACK_BIN, PACK_EXT */
	};
};

/* A cursor. `at` moves; `end` does not. */
struct pack_r {
	const uint8_t *at;
	const uint8_t *end;
};

struct pack_bounds {
	uint32_t depth_max;    /* At most PACK_DEPTH_MAX. */
	uint32_t elements_max; /* All levels together. */
	size_t bytes_max;      /* The whole object. */
};

/*
 * Pass over one object at the front of `p`..`p + n` without reading values.
 * Incremental: `st` (zeroed at the start of each object) remembers how far it
 * came, so bytes are looked at once however they trickle in; `p` must be the
 * start of the object each time.
 *
 * RC_OK: `*size` is the object's size. RC_AGAIN: everything so far may be the
 * beginning of a good object. RC_INVALID: it can never become one (byte 0xc1,
 * a length that cannot fit in bytes_max, too deep, too many elements).
 */
struct pack_scan {
	size_t at;
	uint32_t depth;
	uint32_t elements;
	uint32_t left[PACK_DEPTH_MAX + 1];
};
enum rc pack_check(struct pack_scan *st, const uint8_t *p, size_t n,
		   const struct pack_bounds *bounds, size_t *size);

/* Cursor over checked or unchecked bytes; all reads are bounded by `end`. */
static inline struct pack_r pack_reader(const void *p, size_t n)
{
	struct pack_r r = { (const uint8_t *)p, (const uint8_t *)p + n };
	return r;
}

/* Next token. For arrays and maps only the head is consumed. RC_INVALID at
 * truncated or impossible bytes, RC_EOF at the end. */
enum rc pack_next(struct pack_r *r, struct pack_val *v);
/* The type of the next token without consuming it. */
enum rc pack_peek(const struct pack_r *r, enum pack_type *type);
/* Pass over one whole object, iteratively. `out` (may be NULL) gets its
 * bytes. */
enum rc pack_skip(struct pack_r *r, struct pack_bytes *out);

/* Typed reads: RC_INVALID when the next token is of another type, is cut off or
 * is not there at all (the cursor is then unchanged). */
enum rc pack_get_u64(struct pack_r *r, uint64_t *v); /* refuses negatives */
enum rc pack_get_i64(struct pack_r *r, int64_t *v);  /* refuses > INT64_MAX */
enum rc pack_get_bool(struct pack_r *r, bool *v);
enum rc pack_get_str(struct pack_r *r, struct pack_bytes *v);
enum rc pack_get_bin(struct pack_r *r, struct pack_bytes *v);
enum rc pack_get_bytes(struct pack_r *r, struct pack_bytes *v); /* str or bin */
enum rc pack_get_array(struct pack_r *r, uint32_t *n);
enum rc pack_get_map(struct pack_r *r, uint32_t *n);
enum rc pack_get_nil(struct pack_r *r);

static inline bool pack_bytes_eq(struct pack_bytes b, const char *s, size_t n)
{
	return b.n == n && (n == 0 || __builtin_memcmp(b.p, s, n) == 0);
}

/*
 * Writer. Appends to memory it owns, growing up to `max`; a write that does not
 * fit or finds no memory sets `rc` (RC_OVERLOADED, RC_NOMEM) and everything
 * after it is a no-op: check `w.rc` once, at the end.
 */
struct pack_w {
	uint8_t *p;
	size_t n;
	size_t cap;
	size_t max;
	enum rc rc;
};
void pack_w_init(struct pack_w *w, size_t bytes_max);
void pack_w_release(struct pack_w *w);
/* Forget the content, keep the memory, clear `rc`. */
void pack_w_reset(struct pack_w *w);
/* Make room for `n` more bytes; false when there is none (rc set). */
bool pack_w_reserve(struct pack_w *w, size_t n);

void pack_nil(struct pack_w *w);
void pack_bool(struct pack_w *w, bool v);
void pack_u64(struct pack_w *w, uint64_t v);
void pack_i64(struct pack_w *w, int64_t v);
void pack_double(struct pack_w *w, double v);
void pack_str(struct pack_w *w, const char *s, size_t n);
void pack_cstr(struct pack_w *w, const char *s);
void pack_bin(struct pack_w *w, const void *p, size_t n);
void pack_array(struct pack_w *w, uint32_t n);
void pack_map(struct pack_w *w, uint32_t n);
/* Append bytes that are already MessagePack, or raw framing. */
void pack_raw(struct pack_w *w, const void *p, size_t n);

/*
 * Compare two encoded objects by value: 1 and 1 are equal however many bytes
 * they take, str and bin are different, maps are equal in any order of keys
 * (quadratic: for small maps). Used for cas and tests.
 */
bool pack_equal(struct pack_bytes a, struct pack_bytes b);

#endif
