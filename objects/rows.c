#include "objects/rows.h"

#include "node/base/check.h"

/* What malloc keeps beside a block, and the grain it rounds to. */
#define MALLOC_HEAD  8u
#define MALLOC_GRAIN 16u
/* A value that would leave more of its room than this unused is moved. */
#define WASTE_MAX 64u

/* Chains are for more rows than this. More of them than so many would take long
 * to fill anew. In a chain that is longer than this, because there are more
 * rows or because somebody chose their keys, the tree finds a row sooner. */
#define CHAINS_MIN     64u
#define CHAINS_MAX     65536u
#define CHAIN_WALK_MAX 8u

#define ROW_HEAD offsetof(struct row, data)

static const uint8_t nothing[1];

int row_key_cmp(struct pack_bytes a, struct pack_bytes b)
{
	size_t n = a.n < b.n ? a.n : b.n;
	int order = n == 0 ? 0 : memcmp(a.p, b.p, n);

	if (order != 0)
		return order;
	return a.n == b.n ? 0 : (a.n < b.n ? -1 : 1);
}

static inline int row_cmp_to(unsigned kind, struct pack_bytes key,
			     const struct row *r)
{
	if (kind != r->kind)
		return kind < r->kind ? -1 : 1;
	return row_key_cmp(key, row_key(r));
}

static inline int row_cmp(const struct row *a, const struct row *b)
{
	return row_cmp_to(a->kind, row_key(a), b);
}

RB_GENERATE_INTERNAL(row_tree, row, node, row_cmp,
		     __attribute__((unused)) static)

static inline size_t row_bytes(const struct row *r)
{
	return ROW_HEAD + r->key_n + r->value_cap + MALLOC_HEAD;
}

static struct row_chain *chain_of(const struct rows *rows, unsigned kind,
				  struct pack_bytes key)
{
	uint64_t h = kind + key.n;
	uint64_t word;
	size_t at;

	for (at = 0; at < key.n; at += sizeof(word)) {
		word = 0;
		memcpy(&word, key.p + at,
		       key.n - at < sizeof(word) ? key.n - at : sizeof(word));
		h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
		h ^= h >> 32;
	}
	return &rows->chains[h & (rows->chains_n - 1)];
}

static void chains_drop(struct rows *rows)
{
	if (rows->chains != NULL)
		rows->bytes -= rows->chains_n * sizeof(*rows->chains);
	free(rows->chains);
	rows->chains = NULL;
	rows->chains_n = 0;
}

/* All rows in twice as many. False: without memory, or at the most of them,
 * things go on as they are. */
static bool chains_grow(struct rows *rows)
{
	uint32_t n = rows->chains != NULL ? rows->chains_n * 2 : CHAINS_MIN * 2;
	struct row_chain *wider;
	struct row *r;

	if (n > CHAINS_MAX)
		return false;
	wider = calloc(n, sizeof(*wider));
	if (wider == NULL)
		return false;
	chains_drop(rows);
	rows->chains = wider;
	rows->chains_n = n;
	rows->bytes += n * sizeof(*wider);
	RB_FOREACH(r, row_tree, &rows->tree)
	LIST_INSERT_HEAD(chain_of(rows, r->kind, row_key(r)), r, chain);
	return true;
}

/* A row that is in the tree now. */
static void chain_in(struct rows *rows, struct row *r)
{
	rows->n++;
	if (rows->n >= CHAINS_MIN && rows->n >= rows->chains_n &&
	    (rows->n & (rows->n - 1)) == 0 && chains_grow(rows))
		return;
	if (rows->chains != NULL)
		LIST_INSERT_HEAD(chain_of(rows, r->kind, row_key(r)), r, chain);
}

static void chain_out(struct rows *rows, struct row *r)
{
	rows->n--;
	if (rows->chains != NULL)
		LIST_REMOVE(r, chain);
	if (rows->n == 0)
		chains_drop(rows);
}

void rows_init(struct rows *rows)
{
	RB_INIT(&rows->tree);
	rows->chains = NULL;
	rows->chains_n = 0;
	rows->n = 0;
	memset(rows->last, 0, sizeof(rows->last));
	rows->bytes = 0;
	rows->complete = row_kind_bit(ROW_MEMORY);
}

static void free_below(struct row *r)
{
	struct row *left;

	/* As deep as the tree, which is balanced; to the right it loops. */
	while (r != NULL) {
		left = RB_LEFT(r, node);
		free_below(RB_RIGHT(r, node));
		free(r);
		r = left;
	}
}

void rows_release(struct rows *rows)
{
	free_below(RB_ROOT(&rows->tree));
	free(rows->chains);
	rows_init(rows);
}

struct row *row_new(unsigned kind, struct pack_bytes key,
		    struct pack_bytes value, uint64_t expires_ns)
{
	size_t want = ROW_HEAD + key.n + value.n;
	size_t whole = (want + MALLOC_HEAD + MALLOC_GRAIN - 1) / MALLOC_GRAIN *
			       MALLOC_GRAIN -
		       MALLOC_HEAD;
	struct row *r;

	PRE(key.n <= ROW_KEY_BYTES_MAX);
	PRE(value.n <= UINT32_MAX / 2);
	r = malloc(whole);
	if (r == NULL)
		return NULL;
	*r = (struct row){
		.expires_ns = expires_ns,
		.value_n = (uint32_t)value.n,
		.value_cap = (uint32_t)(whole - ROW_HEAD - key.n),
		.key_n = (uint16_t)key.n,
		.kind = (uint8_t)kind,
	};
	if (key.n > 0)
		memcpy(r->data, key.p, key.n);
	if (value.n > 0)
		memcpy(r->data + key.n, value.p, value.n);
	return r;
}

bool row_fits(const struct row *r, size_t n)
{
	return n <= r->value_cap && r->value_cap - n <= WASTE_MAX;
}

void row_set(struct row *r, struct pack_bytes value, uint64_t expires_ns)
{
	PRE(value.n <= r->value_cap);
	if (value.n > 0)
		memcpy(r->data + r->key_n, value.p, value.n);
	r->value_n = (uint32_t)value.n;
	r->expires_ns = expires_ns;
	r->flags &= (uint8_t) ~(ROW_ABSENT | ROW_UNKNOWN);
}

/* The first row at or after a key, of whatever kind. */
static struct row *at_or_after(const struct rows *rows, unsigned kind,
			       struct pack_bytes key)
{
	struct row *r = RB_ROOT(&rows->tree);
	struct row *best = NULL;
	int order;

	while (r != NULL) {
		order = row_cmp_to(kind, key, r);
		if (order == 0)
			return r;
		if (order < 0)
			best = r;
		r = order < 0 ? RB_LEFT(r, node) : RB_RIGHT(r, node);
	}
	return best;
}

static struct row *tree_at(const struct rows *rows, unsigned kind,
			   struct pack_bytes key)
{
	struct row *r = RB_ROOT(&rows->tree);
	int order;

	while (r != NULL) {
		order = row_cmp_to(kind, key, r);
		if (order == 0)
			return r;
		r = order < 0 ? RB_LEFT(r, node) : RB_RIGHT(r, node);
	}
	return NULL;
}

static struct row *row_at(const struct rows *rows, unsigned kind,
			  struct pack_bytes key)
{
	struct row **last = (struct row **)&rows->last[kind];
	struct row *r = *last;
	unsigned walked = 0;

	if (r != NULL && row_key_cmp(key, row_key(r)) == 0)
		return r;
	if (rows->chains == NULL)
		return tree_at(rows, kind, key);
	LIST_FOREACH(r, chain_of(rows, kind, key), chain)
	{
		if (row_cmp_to(kind, key, r) == 0) {
			*last = r;
			return r;
		}
		if (++walked == CHAIN_WALK_MAX)
			return tree_at(rows, kind, key);
	}
	return NULL;
}

/* It is about to go. */
static void forget(struct rows *rows, const struct row *r)
{
	if (rows->last[r->kind] == r)
		rows->last[r->kind] = NULL;
}

/* The last row before the place where `r` stands (NULL: behind all) that is of
 * this kind. */
static struct row *before(const struct rows *rows, unsigned kind, struct row *r)
{
	struct row *p;

	if (r != NULL)
		p = RB_PREV(row_tree, &rows->tree, r);
	else
		p = RB_MAX(row_tree, (struct row_tree *)&rows->tree);
	return p != NULL && p->kind == kind ? p : NULL;
}

static bool leads_on(const struct row *r)
{
	return r != NULL && (r->flags & ROW_NEXT) != 0;
}

enum rows_found rows_find(const struct rows *rows, unsigned kind,
			  struct pack_bytes key, struct row **out)
{
	struct row *r = row_at(rows, kind, key);

	*out = r;
	if (r != NULL && row_exists(r))
		return ROWS_FOUND;
	if (rows_complete(rows, kind))
		return ROWS_ABSENT;
	if (r != NULL)
		return (r->flags & ROW_ABSENT) != 0 ? ROWS_ABSENT
						    : ROWS_UNKNOWN;
	/* A key in a gap that was loaded does not exist. */
	return leads_on(before(rows, kind, at_or_after(rows, kind, key)))
		       ? ROWS_ABSENT
		       : ROWS_UNKNOWN;
}

void rows_insert(struct rows *rows, struct row *r)
{
	struct row *other = RB_INSERT(row_tree, &rows->tree, r);

	CHECK(other == NULL);
	rows->bytes += row_bytes(r);
	chain_in(rows, r);
	/* It splits a gap: what was known of the whole is known of both. */
	if (leads_on(before(rows, r->kind, r)))
		r->flags |= ROW_NEXT;
}

void rows_replace(struct rows *rows, struct row *old, struct row *r)
{
	struct row *parent = RB_PARENT(old, node);

	PRE(r->kind == old->kind);
	PRE(r->key_n == old->key_n);
	r->node = old->node;
	r->flags |= old->flags & ROW_NEXT;
	if (parent == NULL)
		RB_ROOT(&rows->tree) = r;
	else if (RB_LEFT(parent, node) == old)
		RB_LEFT(parent, node) = r;
	else
		RB_RIGHT(parent, node) = r;
	if (RB_LEFT(r, node) != NULL)
		RB_PARENT(RB_LEFT(r, node), node) = r;
	if (RB_RIGHT(r, node) != NULL)
		RB_PARENT(RB_RIGHT(r, node), node) = r;
	if (rows->chains != NULL) {
		LIST_INSERT_AFTER(old, r, chain);
		LIST_REMOVE(old, chain);
	}
	rows->bytes += row_bytes(r);
	rows->bytes -= row_bytes(old);
	forget(rows, old);
	free(old);
}

static void drop(struct rows *rows, struct row *r)
{
	RB_REMOVE(row_tree, &rows->tree, r);
	chain_out(rows, r);
	rows->bytes -= row_bytes(r);
	forget(rows, r);
	free(r);
}

void rows_remove(struct rows *rows, struct row *r)
{
	PRE(rows_complete(rows, r->kind));
	drop(rows, r);
}

void rows_make_absent(struct rows *rows, struct row *r)
{
	PRE(!rows_complete(rows, r->kind));
	r->value_n = 0;
	r->expires_ns = 0;
	r->flags = (uint8_t)((r->flags & ROW_NEXT) | ROW_ABSENT);
	(void)rows;
}

void rows_clear(struct rows *rows, uint32_t kinds)
{
	struct row *r;
	struct row *next;

	RB_FOREACH_SAFE(r, row_tree, &rows->tree, next)
	if ((kinds & row_kind_bit(r->kind)) != 0)
		drop(rows, r);
	rows->complete |= kinds;
}

/* A marker at `key` unless something stands there. */
static enum rc fence(struct rows *rows, unsigned kind, struct pack_bytes key,
		     uint8_t flag)
{
	struct row *r = row_at(rows, kind, key);

	if (r != NULL)
		return RC_OK;
	r = row_new(kind, key, (struct pack_bytes){ NULL, 0 }, 0);
	if (r == NULL)
		return RC_NOMEM;
	r->flags = flag;
	rows_insert(rows, r);
	return RC_OK;
}

enum rc rows_known_absent(struct rows *rows, unsigned kind,
			  struct pack_bytes key)
{
	struct row *r = row_at(rows, kind, key);

	if (r == NULL)
		return fence(rows, kind, key, ROW_ABSENT);
	if ((r->flags & ROW_UNKNOWN) != 0)
		rows_make_absent(rows, r);
	return RC_OK;
}

enum rc rows_known(struct rows *rows, unsigned kind, struct pack_bytes start,
		   struct pack_bytes end)
{
	struct row *r;

	if (rows_complete(rows, kind))
		return RC_OK;
	/* No key is before the empty one. */
	if (start.p == NULL)
		start = (struct pack_bytes){ nothing, 0 };
	if (end.p != NULL && row_key_cmp(start, end) >= 0)
		return RC_OK;
	if (end.p != NULL && fence(rows, kind, end, ROW_UNKNOWN) != RC_OK)
		return RC_NOMEM;
	if (fence(rows, kind, start, ROW_ABSENT) != RC_OK)
		return RC_NOMEM;
	for (r = row_at(rows, kind, start); r != NULL && r->kind == kind;
	     r = RB_NEXT(row_tree, &rows->tree, r)) {
		if (end.p != NULL && row_key_cmp(row_key(r), end) >= 0)
			break;
		if ((r->flags & ROW_UNKNOWN) != 0)
			rows_make_absent(rows, r);
		r->flags |= ROW_NEXT;
	}
	return RC_OK;
}

size_t rows_stored_bytes(const struct rows *rows, uint64_t stored)
{
	struct row *r = RB_MIN(row_tree, (struct row_tree *)&rows->tree);
	size_t bytes = 0;

	for (; r != NULL; r = RB_NEXT(row_tree, &rows->tree, r))
		if (r->kind != ROW_MEMORY && r->mark <= stored)
			bytes += row_bytes(r);
	return bytes;
}

void rows_trim(struct rows *rows, uint64_t stored)
{
	struct row *r;
	struct row *next;

	RB_FOREACH_SAFE(r, row_tree, &rows->tree, next)
	{
		if (r->kind == ROW_MEMORY)
			continue;
		if (r->mark <= stored)
			drop(rows, r);
		else
			r->flags &= (uint8_t)~ROW_NEXT;
	}
	rows->complete = row_kind_bit(ROW_MEMORY);
}

/* ----------------------------------------------------------------- walking */

static void walk_to(struct rows_walk *w, struct row *r)
{
	w->at = r != NULL && r->kind == w->kind ? r : NULL;
}

void rows_first(struct rows_walk *w, const struct rows *rows, unsigned kind,
		struct pack_bytes start)
{
	struct row *r;

	if (start.p == NULL)
		start = (struct pack_bytes){ nothing, 0 };
	*w = (struct rows_walk){ .rows = rows, .kind = kind };
	r = at_or_after(rows, kind, start);
	walk_to(w, r);
	w->gap_known =
		rows_complete(rows, kind) ||
		(w->at != NULL && row_key_cmp(row_key(w->at), start) == 0) ||
		leads_on(before(rows, kind, r));
}

void rows_next(struct rows_walk *w)
{
	PRE(w->at != NULL);
	w->gap_known = rows_complete(w->rows, w->kind) || leads_on(w->at);
	walk_to(w, RB_NEXT(row_tree, &w->rows->tree, w->at));
}

void rows_last(struct rows_walk *w, const struct rows *rows, unsigned kind,
	       struct pack_bytes end)
{
	struct row *r;

	*w = (struct rows_walk){ .rows = rows, .kind = kind };
	if (end.p != NULL)
		r = at_or_after(rows, kind, end);
	else
		r = at_or_after(rows, kind + 1,
				(struct pack_bytes){ nothing, 0 });
	w->at = before(rows, kind, r);
	w->gap_known = rows_complete(rows, kind) || leads_on(w->at);
}

void rows_prev(struct rows_walk *w)
{
	PRE(w->at != NULL);
	w->at = before(w->rows, w->kind, w->at);
	w->gap_known = rows_complete(w->rows, w->kind) || leads_on(w->at);
}
