/*
 * The format, by the first byte of an object (big endian everywhere):
 *
 *	00..7f     int, itself               c7 c8 c9   ext, length of 1, 2, 4
 *	80..8f     map, low 4 bits: pairs               bytes, then the type
 *	90..9f     array, low 4 bits         ca cb      float of 4, 8 bytes
 *	a0..bf     str, low 5 bits           cc..cf     uint of 1, 2, 4, 8 bytes
 *	c0         nil                       d0..d3     int of 1, 2, 4, 8 bytes
 *	c1         never                     d4..d8     ext of 1, 2, 4, 8, 16
 *	c2 c3      false, true               d9 da db   str, length of 1, 2, 4
 *	c4 c5 c6   bin, length of            dc dd      array, count of 2, 4
 *	           1, 2, 4 bytes             de df      map, count of 2, 4
 *	                                     e0..ff     int, -32..-1
 *
 * Writing is msgpack-c's, whose functions take a packer with a callback: both
 * are known at compile time here, so that a number becomes a few stores.
 *Reading is ours: msgpack-c's unpacker allocates what a head claims before it
 *has seen it.
 */
#include "client/proto/pack.h"

#include <msgpack/pack.h>
#include <stdlib.h>
#include <string.h>

#define PACK_W_BYTES_MIN 256

/* ------------------------------------------------------------------ heads */

enum shape {
	SHAPE_BAD,
	SHAPE_FIXED, /* `body` bytes follow the head. */
	SHAPE_BYTES, /* A length of `body` bytes, then as much. */
	SHAPE_ARRAY, /* A count of `body` bytes. */
	SHAPE_MAP,
};

struct form {
	uint8_t shape;
	uint8_t head; /* Bytes up to what the head announces. */
	uint8_t body;
};

/* c0..df */
static const struct form forms[32] = {
	{ SHAPE_FIXED, 1, 0 },  { SHAPE_BAD, 1, 0 },   { SHAPE_FIXED, 1, 0 },
	{ SHAPE_FIXED, 1, 0 },  { SHAPE_BYTES, 2, 1 }, { SHAPE_BYTES, 3, 2 },
	{ SHAPE_BYTES, 5, 4 },  { SHAPE_BYTES, 3, 1 }, { SHAPE_BYTES, 4, 2 },
	{ SHAPE_BYTES, 6, 4 },  { SHAPE_FIXED, 1, 4 }, { SHAPE_FIXED, 1, 8 },
	{ SHAPE_FIXED, 1, 1 },  { SHAPE_FIXED, 1, 2 }, { SHAPE_FIXED, 1, 4 },
	{ SHAPE_FIXED, 1, 8 },  { SHAPE_FIXED, 1, 1 }, { SHAPE_FIXED, 1, 2 },
	{ SHAPE_FIXED, 1, 4 },  { SHAPE_FIXED, 1, 8 }, { SHAPE_FIXED, 2, 1 },
	{ SHAPE_FIXED, 2, 2 },  { SHAPE_FIXED, 2, 4 }, { SHAPE_FIXED, 2, 8 },
	{ SHAPE_FIXED, 2, 16 }, { SHAPE_BYTES, 2, 1 }, { SHAPE_BYTES, 3, 2 },
	{ SHAPE_BYTES, 5, 4 },  { SHAPE_ARRAY, 3, 2 }, { SHAPE_ARRAY, 5, 4 },
	{ SHAPE_MAP, 3, 2 },    { SHAPE_MAP, 5, 4 },
};

/* What an object is made of: its head, the bytes behind it, the objects behind
 * those. */
struct head {
	bool nests;
	uint32_t head_bytes;
	uint64_t body_bytes;
	uint64_t kids; /* A map's pair is two. */
};

static inline uint64_t big_endian(const uint8_t *p, unsigned n)
{
	uint16_t v16;
	uint32_t v32;
	uint64_t v64;

	switch (n) {
	case 1:
		return p[0];
	case 2:
		memcpy(&v16, p, 2);
		return __builtin_bswap16(v16);
	case 4:
		memcpy(&v32, p, 4);
		return __builtin_bswap32(v32);
	default:
		memcpy(&v64, p, 8);
		return __builtin_bswap64(v64);
	}
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "big_endian() swaps what it reads");

/* RC_AGAIN: the head is cut off; `head_bytes` says how long it is. */
static inline enum rc head_read(const uint8_t *p, size_t n, struct head *h)
{
	const struct form *f;
	uint8_t b = p[0];

	h->head_bytes = 1;
	h->body_bytes = 0;
	h->kids = 0;
	h->nests = false;
	if (b < 0x80 || b >= 0xe0)
		return RC_OK;
	if (b >= 0xa0 && b < 0xc0) {
		h->body_bytes = b & 0x1f;
		return RC_OK;
	}
	if (b < 0xa0) {
		h->nests = true;
		h->kids = b & 0x0f;
		if (b < 0x90)
			h->kids *= 2;
		return RC_OK;
	}
	f = &forms[b - 0xc0];
	h->head_bytes = f->head;
	if (f->shape == SHAPE_FIXED) {
		h->body_bytes = f->body;
		return n < f->head ? RC_AGAIN : RC_OK;
	}
	if (f->shape == SHAPE_BAD)
		return RC_INVALID;
	if (n < f->head)
		return RC_AGAIN;
	if (f->shape == SHAPE_BYTES) {
		h->body_bytes = big_endian(p + 1, f->body);
		return RC_OK;
	}
	h->nests = true;
	h->kids = big_endian(p + 1, f->body);
	if (f->shape == SHAPE_MAP)
		h->kids *= 2;
	return RC_OK;
}

/* ------------------------------------------------------------------ check */

/* One object at `p`: RC_OK when all of it but its kids is there. */
static inline enum rc scan_one(const struct pack_scan *st, const uint8_t *p,
			       size_t n, const struct pack_bounds *bounds,
			       struct head *h)
{
	size_t room = bounds->bytes_max - st->at;
	enum rc rc;

	if (n == 0)
		return room == 0 ? RC_INVALID : RC_AGAIN;
	rc = head_read(p, n, h);
	if (rc == RC_AGAIN)
		return h->head_bytes > room ? RC_INVALID : RC_AGAIN;
	if (rc != RC_OK)
		return rc;
	if (h->head_bytes + h->body_bytes + h->kids > room ||
	    h->kids > bounds->elements_max - st->elements)
		return RC_INVALID;
	if (h->nests &&
	    (st->depth >= bounds->depth_max || st->depth >= PACK_DEPTH_MAX))
		return RC_INVALID;
	return h->head_bytes + h->body_bytes > n ? RC_AGAIN : RC_OK;
}

enum rc pack_check(struct pack_scan *st, const uint8_t *p, size_t n,
		   const struct pack_bounds *bounds, size_t *size)
{
	struct head h;
	enum rc rc;

	/* `elements` counts an array's or map's when it is announced. */
	if (st->at == 0)
		st->elements = 1;
	if (bounds->elements_max == 0 || n < st->at)
		return RC_INVALID;
	for (;;) {
		rc = scan_one(st, p + st->at, n - st->at, bounds, &h);
		if (rc != RC_OK)
			return rc;
		st->at += h.head_bytes + h.body_bytes;
		st->elements += (uint32_t)h.kids;
		if (h.kids > 0) {
			st->left[++st->depth] = (uint32_t)h.kids;
			continue;
		}
		while (st->depth > 0 && --st->left[st->depth] == 0)
			st->depth--;
		if (st->depth == 0)
			break;
	}
	*size = st->at;
	return RC_OK;
}

/* ---------------------------------------------------------------- reading */

static void val_int(struct pack_val *v, int64_t i)
{
	v->type = PACK_INT;
	v->neg = i < 0;
	v->i = i;
}

static double float_of(const uint8_t *p, unsigned n)
{
	uint64_t bits = big_endian(p, n);
	uint32_t bits32 = (uint32_t)bits;
	float f;
	double d;

	if (n == 4) {
		memcpy(&f, &bits32, sizeof(f));
		return (double)f;
	}
	memcpy(&d, &bits, sizeof(d));
	return d;
}

/* c0..df; all bytes but the kids are there. */
static void val_long(struct pack_val *v, const uint8_t *p, const struct head *h)
{
	const uint8_t *body = p + h->head_bytes;
	uint8_t b = p[0];

	v->s.p = body;
	v->s.n = (size_t)h->body_bytes;
	switch (b) {
	case 0xc0:
		v->type = PACK_NIL;
		return;
	case 0xc2:
	case 0xc3:
		v->type = PACK_BOOL;
		v->b = b == 0xc3;
		return;
	case 0xc4:
	case 0xc5:
	case 0xc6:
		v->type = PACK_BIN;
		return;
	case 0xca:
	case 0xcb:
		v->type = PACK_FLOAT;
		v->f = float_of(body, b == 0xca ? 4 : 8);
		return;
	case 0xcc:
	case 0xcd:
	case 0xce:
	case 0xcf:
		v->type = PACK_INT;
		v->u = big_endian(body, 1U << (b - 0xcc));
		return;
	case 0xd0:
		val_int(v, (int8_t)body[0]);
		return;
	case 0xd1:
		val_int(v, (int16_t)big_endian(body, 2));
		return;
	case 0xd2:
		val_int(v, (int32_t)big_endian(body, 4));
		return;
	case 0xd3:
		val_int(v, (int64_t)big_endian(body, 8));
		return;
	case 0xd9:
	case 0xda:
	case 0xdb:
		v->type = PACK_STR;
		return;
	case 0xdc:
	case 0xdd:
		v->type = PACK_ARRAY;
		v->n = (uint32_t)h->kids;
		return;
	case 0xde:
	case 0xdf:
		v->type = PACK_MAP;
		v->n = (uint32_t)(h->kids / 2);
		return;
	default: /* c7..c9, d4..d8: the type is the head's last byte. */
		v->type = PACK_EXT;
		v->ext_type = (int8_t)body[-1];
		return;
	}
}

enum rc pack_next(struct pack_r *r, struct pack_val *v)
{
	const uint8_t *p = r->at;
	size_t n = (size_t)(r->end - p);
	struct head h;

	if (n == 0)
		return RC_EOF;
	if (head_read(p, n, &h) != RC_OK ||
	    h.head_bytes + h.body_bytes > (uint64_t)n)
		return RC_INVALID;
	r->at += h.head_bytes + h.body_bytes;
	v->neg = false;
	v->ext_type = 0;
	v->n = 0;
	if (p[0] < 0x80) {
		v->type = PACK_INT;
		v->u = p[0];
	} else if (p[0] < 0x90) {
		v->type = PACK_MAP;
		v->n = p[0] & 0x0f;
	} else if (p[0] < 0xa0) {
		v->type = PACK_ARRAY;
		v->n = p[0] & 0x0f;
	} else if (p[0] < 0xc0) {
		v->type = PACK_STR;
		v->s.p = p + 1;
		v->s.n = p[0] & 0x1f;
	} else if (p[0] < 0xe0) {
		val_long(v, p, &h);
	} else {
		val_int(v, (int8_t)p[0]);
	}
	return RC_OK;
}

enum rc pack_peek(const struct pack_r *r, enum pack_type *type)
{
	struct pack_r copy = *r;
	struct pack_val v;
	enum rc rc = pack_next(&copy, &v);

	if (rc == RC_OK)
		*type = v.type;
	return rc;
}

enum rc pack_skip(struct pack_r *r, struct pack_bytes *out)
{
	const uint8_t *p = r->at;
	uint64_t left = 1;
	struct head h;

	if (p == r->end)
		return RC_EOF;
	while (left > 0) {
		uint64_t n = (uint64_t)(r->end - p);

		/* Each takes a byte at least: what cannot fit ends here, before
		 * anything is read for it. */
		if (left > n || head_read(p, (size_t)n, &h) != RC_OK ||
		    h.head_bytes + h.body_bytes > n)
			return RC_INVALID;
		p += h.head_bytes + h.body_bytes;
		left += h.kids;
		left--;
	}
	if (out != NULL) {
		out->p = r->at;
		out->n = (size_t)(p - r->at);
	}
	r->at = p;
	return RC_OK;
}

/* Nearly everything is short, and these forms of it are read without the table
 * of forms: with it a replica took a third longer to apply an entry. */

static inline size_t bytes_left(const struct pack_r *r)
{
	return (size_t)(r->end - r->at);
}

static inline bool short_u64(struct pack_r *r, uint64_t *v)
{
	size_t n = bytes_left(r);

	if (n >= 1 && r->at[0] < 0x80) {
		*v = r->at[0];
		r->at += 1;
		return true;
	}
	if (n >= 9 && r->at[0] == 0xcf) {
		*v = big_endian(r->at + 1, 8);
		r->at += 9;
		return true;
	}
	return false;
}

static inline bool short_str(struct pack_r *r, struct pack_bytes *v)
{
	size_t n = bytes_left(r);
	size_t body;

	if (n < 1 || (r->at[0] & 0xe0) != 0xa0)
		return false;
	body = r->at[0] & 0x1f;
	if (n - 1 < body)
		return false;
	*v = (struct pack_bytes){ r->at + 1, body };
	r->at += 1 + body;
	return true;
}

static inline bool short_bin(struct pack_r *r, struct pack_bytes *v)
{
	size_t n = bytes_left(r);
	size_t body;

	if (n < 2 || r->at[0] != 0xc4)
		return false;
	body = r->at[1];
	if (n - 2 < body)
		return false;
	*v = (struct pack_bytes){ r->at + 2, body };
	r->at += 2 + body;
	return true;
}

/* Of an array (`form` 0x90) or a map (0x80). */
static inline bool short_count(struct pack_r *r, uint8_t form, uint32_t *n)
{
	if (bytes_left(r) < 1 || (r->at[0] & 0xf0) != form)
		return false;
	*n = r->at[0] & 0x0f;
	r->at += 1;
	return true;
}

/* The next token when it is of `type`. */
static inline enum rc next_typed(struct pack_r *r, enum pack_type type,
				 struct pack_val *v)
{
	struct pack_r copy = *r;

	if (pack_next(&copy, v) != RC_OK || v->type != type)
		return RC_INVALID;
	*r = copy;
	return RC_OK;
}

enum rc pack_get_u64(struct pack_r *r, uint64_t *v)
{
	struct pack_r copy = *r;
	struct pack_val val;

	if (short_u64(r, v))
		return RC_OK;
	if (next_typed(&copy, PACK_INT, &val) != RC_OK || val.neg)
		return RC_INVALID;
	*v = val.u;
	*r = copy;
	return RC_OK;
}

enum rc pack_get_i64(struct pack_r *r, int64_t *v)
{
	struct pack_r copy = *r;
	struct pack_val val;

	if (next_typed(&copy, PACK_INT, &val) != RC_OK ||
	    (!val.neg && val.u > INT64_MAX))
		return RC_INVALID;
	*v = val.i;
	*r = copy;
	return RC_OK;
}

enum rc pack_get_bool(struct pack_r *r, bool *v)
{
	struct pack_val val;
	enum rc rc = next_typed(r, PACK_BOOL, &val);

	if (rc == RC_OK)
		*v = val.b;
	return rc;
}

static enum rc get_bytes(struct pack_r *r, enum pack_type type,
			 struct pack_bytes *v)
{
	struct pack_val val;
	enum rc rc = next_typed(r, type, &val);

	if (rc == RC_OK)
		*v = val.s;
	return rc;
}

enum rc pack_get_str(struct pack_r *r, struct pack_bytes *v)
{
	return short_str(r, v) ? RC_OK : get_bytes(r, PACK_STR, v);
}

enum rc pack_get_bin(struct pack_r *r, struct pack_bytes *v)
{
	return short_bin(r, v) ? RC_OK : get_bytes(r, PACK_BIN, v);
}

enum rc pack_get_bytes(struct pack_r *r, struct pack_bytes *v)
{
	if (pack_get_str(r, v) == RC_OK)
		return RC_OK;
	return pack_get_bin(r, v);
}

static enum rc get_count(struct pack_r *r, enum pack_type type, uint32_t *n)
{
	struct pack_val val;
	enum rc rc = next_typed(r, type, &val);

	if (rc == RC_OK)
		*n = val.n;
	return rc;
}

enum rc pack_get_array(struct pack_r *r, uint32_t *n)
{
	return short_count(r, 0x90, n) ? RC_OK : get_count(r, PACK_ARRAY, n);
}

enum rc pack_get_map(struct pack_r *r, uint32_t *n)
{
	return short_count(r, 0x80, n) ? RC_OK : get_count(r, PACK_MAP, n);
}

enum rc pack_get_nil(struct pack_r *r)
{
	if (bytes_left(r) < 1 || r->at[0] != 0xc0)
		return RC_INVALID;
	r->at += 1;
	return RC_OK;
}

/* ---------------------------------------------------------------- writing */

void pack_w_init(struct pack_w *w, size_t bytes_max)
{
	*w = (struct pack_w){ .max = bytes_max };
}

void pack_w_release(struct pack_w *w)
{
	free(w->p);
	*w = (struct pack_w){ .max = w->max };
}

void pack_w_reset(struct pack_w *w)
{
	w->n = 0;
	w->rc = RC_OK;
}

__attribute__((noinline)) static bool grow(struct pack_w *w, size_t n)
{
	size_t cap = w->cap < PACK_W_BYTES_MIN ? PACK_W_BYTES_MIN : w->cap;
	uint8_t *p;

	if (w->rc != RC_OK)
		return false;
	if (n > w->max - w->n) {
		w->rc = RC_OVERLOADED;
		return false;
	}
	while (cap < w->n + n)
		cap = cap > SIZE_MAX / 2 ? SIZE_MAX : cap * 2;
	if (cap > w->max)
		cap = w->max;
	p = realloc(w->p, cap);
	if (p == NULL) {
		w->rc = RC_NOMEM;
		return false;
	}
	w->p = p;
	w->cap = cap;
	return true;
}

bool pack_w_reserve(struct pack_w *w, size_t n)
{
	if (w->rc == RC_OK && n <= w->cap - w->n)
		return true;
	return grow(w, n);
}

/* msgpack-c's callback; its buffers have constant sizes once this is inlined.
 */
__attribute__((always_inline)) static inline int append(void *data,
							const char *p, size_t n)
{
	struct pack_w *w = data;

	if (__builtin_expect(w->rc != RC_OK || n > w->cap - w->n, 0) &&
	    !grow(w, n))
		return -1;
	if (n > 0)
		memcpy(w->p + w->n, p, n);
	w->n += n;
	return 0;
}

#define PACKER(w) (&(msgpack_packer){ (w), append })

void pack_nil(struct pack_w *w)
{
	(void)msgpack_pack_nil(PACKER(w));
}

void pack_bool(struct pack_w *w, bool v)
{
	if (v)
		(void)msgpack_pack_true(PACKER(w));
	else
		(void)msgpack_pack_false(PACKER(w));
}

void pack_u64(struct pack_w *w, uint64_t v)
{
	(void)msgpack_pack_uint64(PACKER(w), v);
}

void pack_i64(struct pack_w *w, int64_t v)
{
	(void)msgpack_pack_int64(PACKER(w), v);
}

void pack_double(struct pack_w *w, double v)
{
	(void)msgpack_pack_double(PACKER(w), v);
}

/* The format counts in 32 bits. */
static bool too_long(struct pack_w *w, size_t n)
{
	if (n <= UINT32_MAX)
		return false;
	if (w->rc == RC_OK)
		w->rc = RC_OVERLOADED;
	return true;
}

void pack_str(struct pack_w *w, const char *s, size_t n)
{
	if (too_long(w, n))
		return;
	(void)msgpack_pack_str(PACKER(w), n);
	(void)append(w, s, n);
}

void pack_cstr(struct pack_w *w, const char *s)
{
	pack_str(w, s, strlen(s));
}

void pack_bin(struct pack_w *w, const void *p, size_t n)
{
	if (too_long(w, n))
		return;
	(void)msgpack_pack_bin(PACKER(w), n);
	(void)append(w, p, n);
}

void pack_array(struct pack_w *w, uint32_t n)
{
	(void)msgpack_pack_array(PACKER(w), n);
}

void pack_map(struct pack_w *w, uint32_t n)
{
	(void)msgpack_pack_map(PACKER(w), n);
}

void pack_raw(struct pack_w *w, const void *p, size_t n)
{
	(void)append(w, p, n);
}

/* -------------------------------------------------------------- comparing */

static bool equal_at(struct pack_r *a, struct pack_r *b, uint32_t depth);

static bool equal_bytes(struct pack_bytes a, struct pack_bytes b,
			uint32_t depth)
{
	struct pack_r ra = pack_reader(a.p, a.n);
	struct pack_r rb = pack_reader(b.p, b.n);

	return equal_at(&ra, &rb, depth) && ra.at == ra.end && rb.at == rb.end;
}

/* The value under `key` among the `n` pairs at `r`. */
static bool pair_find(struct pack_r r, uint32_t n, struct pack_bytes key,
		      uint32_t depth, struct pack_bytes *value)
{
	struct pack_bytes k;

	for (; n > 0; n--) {
		if (pack_skip(&r, &k) != RC_OK || pack_skip(&r, value) != RC_OK)
			return false;
		if (equal_bytes(k, key, depth))
			return true;
	}
	return false;
}

/* The pairs behind two heads that count `n` both. Each key of `a` is new among
 * those before it and stands in `b`: so there is nothing else in `b`. */
static bool equal_pairs(struct pack_r *a, struct pack_r *b, uint32_t n,
			uint32_t depth)
{
	struct pack_r first = *a;
	struct pack_bytes k, v, other;
	uint32_t i;

	for (i = 0; i < n; i++) {
		if (pack_skip(a, &k) != RC_OK || pack_skip(a, &v) != RC_OK ||
		    pair_find(first, i, k, depth, &other) ||
		    !pair_find(*b, n, k, depth, &other) ||
		    !equal_bytes(v, other, depth))
			return false;
	}
	for (i = 0; i < n; i++)
		if (pack_skip(b, NULL) != RC_OK || pack_skip(b, NULL) != RC_OK)
			return false;
	return true;
}

static bool equal_elements(struct pack_r *a, struct pack_r *b, uint32_t n,
			   uint32_t depth)
{
	for (; n > 0; n--)
		if (!equal_at(a, b, depth))
			return false;
	return true;
}

/* The next object of both; both cursors move behind it. */
static bool equal_at(struct pack_r *a, struct pack_r *b, uint32_t depth)
{
	struct pack_val x, y;

	if (pack_next(a, &x) != RC_OK || pack_next(b, &y) != RC_OK ||
	    x.type != y.type || x.n != y.n || x.ext_type != y.ext_type)
		return false;
	switch (x.type) {
	case PACK_NIL:
		return true;
	case PACK_BOOL:
		return x.b == y.b;
	case PACK_INT:
		return x.neg == y.neg && x.u == y.u;
	case PACK_FLOAT:
		return x.f == y.f;
	case PACK_STR:
	case PACK_BIN:
	case PACK_EXT:
		return pack_bytes_eq(x.s, (const char *)y.s.p, y.s.n);
	case PACK_ARRAY:
		return depth < PACK_DEPTH_MAX &&
		       equal_elements(a, b, x.n, depth + 1);
	case PACK_MAP:
		return depth < PACK_DEPTH_MAX &&
		       equal_pairs(a, b, x.n, depth + 1);
	}
	return false;
}

bool pack_equal(struct pack_bytes a, struct pack_bytes b)
{
	return equal_bytes(a, b, 0);
}
