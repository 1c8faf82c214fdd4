#include "objects/stage.h"

#include "node/base/check.h"

#define ARENA_BYTES 65536u
#define ARENA_ALIGN 8u

struct arena_block {
	struct arena_block *next;
	uint64_t bytes[];
};

static inline int staged_cmp_to(unsigned kind, struct pack_bytes key,
				const struct staged *s)
{
	if (kind != s->kind)
		return kind < s->kind ? -1 : 1;
	return row_key_cmp(key, s->key);
}

static inline int staged_cmp(const struct staged *a, const struct staged *b)
{
	return staged_cmp_to(a->kind, a->key, b);
}

RB_GENERATE_INTERNAL(staged_tree, staged, node, staged_cmp,
		     __attribute__((unused)) static)

/* ------------------------------------------------------------------- arena */

static void arena_reset(struct arena *a)
{
	struct arena_block *b;

	while ((b = a->more) != NULL) {
		a->more = b->next;
		free(b);
	}
	a->n = 0;
}

static void *arena_alloc(struct arena *a, size_t n)
{
	struct arena_block *b;
	void *p;

	n = (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
	if (n <= a->cap - a->n) {
		p = a->base + a->n;
		a->n += n;
		return p;
	}
	b = malloc(sizeof(*b) + n);
	if (b == NULL)
		return NULL;
	b->next = a->more;
	a->more = b;
	return b->bytes;
}

static struct pack_bytes arena_copy(struct arena *a, struct pack_bytes from)
{
	uint8_t *p = arena_alloc(a, from.n > 0 ? from.n : 1);

	if (p != NULL && from.n > 0)
		memcpy(p, from.p, from.n);
	return (struct pack_bytes){ p, from.n };
}

/* ------------------------------------------------------------------- stage */

enum rc stage_init(struct stage *st)
{
	*st = (struct stage){ 0 };
	RB_INIT(&st->tree);
	st->arena.base = malloc(ARENA_BYTES);
	if (st->arena.base == NULL)
		return RC_NOMEM;
	st->arena.cap = ARENA_BYTES;
	return RC_OK;
}

void stage_release(struct stage *st)
{
	arena_reset(&st->arena);
	free(st->arena.base);
	*st = (struct stage){ 0 };
}

void stage_drop(struct stage *st, uint64_t rev)
{
	RB_INIT(&st->tree);
	st->n = 0;
	st->bytes = 0;
	st->clear = false;
	st->gone = false;
	st->bumped = false;
	st->rev = rev;
	st->rows = 0;
	st->memory_rows = 0;
	st->own_bytes = 0;
	st->idem_bytes = 0;
}

void stage_reset(struct stage *st, uint64_t rev)
{
	arena_reset(&st->arena);
	stage_drop(st, rev);
	st->wants = NULL;
	st->wants_n = 0;
	st->want_range = false;
}

void *stage_alloc(struct stage *st, size_t n)
{
	return arena_alloc(&st->arena, n);
}

struct staged *stage_find(const struct stage *st, unsigned kind,
			  struct pack_bytes key)
{
	struct staged *s = RB_ROOT(&st->tree);
	int order;

	while (s != NULL) {
		order = staged_cmp_to(kind, key, s);
		if (order == 0)
			return s;
		s = order < 0 ? RB_LEFT(s, node) : RB_RIGHT(s, node);
	}
	return NULL;
}

static bool is_cleared(const struct stage *st, unsigned kind)
{
	return st->clear && (STAGE_CLEARED_KINDS & row_kind_bit(kind)) != 0;
}

static struct row *base_of(const struct stage *st, const struct rows *rows,
			   unsigned kind, struct pack_bytes key)
{
	struct row *r = NULL;

	if (!is_cleared(st, kind))
		CHECK(rows_find(rows, kind, key, &r) != ROWS_UNKNOWN);
	return r;
}

/* `sign` times what one row of this kind counts for. */
static void count(struct stage *st, unsigned kind, size_t bytes, int sign)
{
	int64_t n = (int64_t)bytes * sign;

	switch (kind) {
	case ROW_MEMORY:
		st->memory_rows += sign;
		break;
	case ROW_IDEM:
	case ROW_IDEM_COUNT:
		st->idem_bytes += n;
		break;
	default:
		st->own_bytes += n;
		if (kind == ROW_DATA)
			st->rows += sign;
		break;
	}
}

static void count_base(struct stage *st, const struct row *base, int sign)
{
	if (base != NULL && row_exists(base))
		count(st, base->kind, (size_t)base->key_n + base->value_n,
		      sign);
}

static void count_staged(struct stage *st, const struct staged *s, int sign)
{
	if (!s->deleted)
		count(st, s->kind, s->key.n + s->value.n, sign);
	if (s->kind == ROW_MEMORY)
		return;
	st->bytes += sign > 0 ? s->key.n + s->value.n : 0;
	st->bytes -= sign < 0 ? s->key.n + s->value.n : 0;
}

static struct staged *staged_new(struct stage *st, unsigned kind,
				 struct pack_bytes key, struct row *base)
{
	struct staged *s = arena_alloc(&st->arena, sizeof(*s));

	if (s == NULL)
		return NULL;
	*s = (struct staged){ .base = base, .kind = (uint8_t)kind };
	s->key = arena_copy(&st->arena, key);
	if (s->key.p == NULL)
		return NULL;
	s->deleted = true;
	return s;
}

static void staged_add(struct stage *st, struct staged *s)
{
	struct staged *other = RB_INSERT(staged_tree, &st->tree, s);

	CHECK(other == NULL);
	if (s->kind != ROW_MEMORY)
		st->n++;
	count_base(st, s->base, -1);
	count_staged(st, s, 1);
}

static void staged_take_back(struct stage *st, struct staged *s)
{
	RB_REMOVE(staged_tree, &st->tree, s);
	if (s->kind != ROW_MEMORY)
		st->n--;
	count_staged(st, s, -1);
	count_base(st, s->base, 1);
}

static enum rc check_bounds(const struct stage *st, bool bounded,
			    const struct staged *old, size_t bytes)
{
	size_t before = old != NULL ? old->key.n + old->value.n : 0;

	if (!bounded)
		return RC_OK;
	if (old == NULL && st->n >= EVENT_ROWS_MAX)
		return RC_OVERLOADED;
	if (st->bytes - before + bytes > EVENT_EFFECTS_BYTES_MAX)
		return RC_OVERLOADED;
	return RC_OK;
}

enum rc stage_put(struct stage *st, const struct rows *rows, unsigned kind,
		  struct pack_bytes key, struct pack_bytes value,
		  uint64_t expires_ns, bool bounded)
{
	struct staged *s = stage_find(st, kind, key);
	struct pack_bytes copy;

	PRE(key.n <= ROW_KEY_BYTES_MAX);
	if (kind == ROW_MEMORY)
		bounded = false;
	if (check_bounds(st, bounded, s, key.n + value.n) != RC_OK)
		return RC_OVERLOADED;
	copy = arena_copy(&st->arena, value);
	if (copy.p == NULL)
		return RC_NOMEM;
	if (s == NULL) {
		s = staged_new(st, kind, key, base_of(st, rows, kind, key));
		if (s == NULL)
			return RC_NOMEM;
		staged_add(st, s);
	}
	count_staged(st, s, -1);
	s->value = copy;
	s->expires_ns = expires_ns;
	s->deleted = false;
	count_staged(st, s, 1);
	return RC_OK;
}

enum rc stage_delete(struct stage *st, const struct rows *rows, unsigned kind,
		     struct pack_bytes key, bool bounded)
{
	struct staged *s = stage_find(st, kind, key);
	struct row *base = s != NULL ? s->base : base_of(st, rows, kind, key);

	/* What was never there needs no effect to be gone. */
	if (base == NULL || !row_exists(base)) {
		if (s != NULL)
			staged_take_back(st, s);
		return RC_OK;
	}
	if (check_bounds(st, bounded && kind != ROW_MEMORY, s, key.n) != RC_OK)
		return RC_OVERLOADED;
	if (s == NULL) {
		s = staged_new(st, kind, key, base);
		if (s == NULL)
			return RC_NOMEM;
		staged_add(st, s);
	}
	count_staged(st, s, -1);
	s->value = (struct pack_bytes){ NULL, 0 };
	s->expires_ns = 0;
	s->deleted = true;
	count_staged(st, s, 1);
	return RC_OK;
}

void stage_clear(struct stage *st, uint64_t rows_n, uint64_t memory_n,
		 uint64_t own_bytes)
{
	struct staged *s;
	struct staged *next;

	RB_FOREACH_SAFE(s, staged_tree, &st->tree, next)
	if ((STAGE_CLEARED_KINDS & row_kind_bit(s->kind)) != 0)
		staged_take_back(st, s);
	st->clear = true;
	st->rows = -(int64_t)rows_n;
	st->memory_rows = -(int64_t)memory_n;
	st->own_bytes = -(int64_t)own_bytes;
}

/* ----------------------------------------------------------------- walking */

static struct staged *of_kind(struct staged *s, unsigned kind)
{
	return s != NULL && s->kind == kind ? s : NULL;
}

static struct staged *at_or_after(const struct stage *st, unsigned kind,
				  struct pack_bytes key)
{
	struct staged *s = RB_ROOT(&st->tree);
	struct staged *best = NULL;
	int order;

	while (s != NULL) {
		order = staged_cmp_to(kind, key, s);
		if (order == 0)
			return s;
		if (order < 0)
			best = s;
		s = order < 0 ? RB_LEFT(s, node) : RB_RIGHT(s, node);
	}
	return best;
}

struct staged *stage_first(const struct stage *st, unsigned kind,
			   struct pack_bytes start)
{
	if (start.p == NULL)
		start.n = 0;
	return of_kind(at_or_after(st, kind, start), kind);
}

struct staged *stage_last(const struct stage *st, unsigned kind,
			  struct pack_bytes end)
{
	struct staged *s;

	if (end.p != NULL)
		s = at_or_after(st, kind, end);
	else
		s = at_or_after(st, kind + 1, (struct pack_bytes){ NULL, 0 });
	if (s != NULL)
		s = RB_PREV(staged_tree, &st->tree, s);
	else
		s = RB_MAX(staged_tree, (struct staged_tree *)&st->tree);
	return of_kind(s, kind);
}

struct staged *stage_next(struct staged *s)
{
	return of_kind(RB_NEXT(staged_tree, NULL, s), s->kind);
}

struct staged *stage_prev(struct staged *s)
{
	return of_kind(RB_PREV(staged_tree, NULL, s), s->kind);
}

struct staged *stage_all(const struct stage *st)
{
	return RB_MIN(staged_tree, (struct staged_tree *)&st->tree);
}

struct staged *stage_follow(struct staged *s)
{
	return RB_NEXT(staged_tree, NULL, s);
}

/* ----------------------------------------------------------------- wanting */

bool stage_want_key(struct stage *st, enum row_kind kind, struct pack_bytes key)
{
	struct load_key *k;

	if (st->wants_n == STAGE_WANTS_MAX)
		return true; /* The rest comes with the next load. */
	if (st->wants == NULL)
		st->wants = arena_alloc(&st->arena,
					STAGE_WANTS_MAX * sizeof(*st->wants));
	if (st->wants == NULL)
		return false;
	k = &st->wants[st->wants_n];
	k->kind = kind;
	k->key = arena_copy(&st->arena, key);
	if (k->key.p == NULL)
		return false;
	st->wants_n++;
	return true;
}

bool stage_want_range(struct stage *st, enum row_kind kind,
		      struct pack_bytes start, struct pack_bytes end,
		      bool reverse)
{
	st->want_kind = kind;
	st->want_reverse = reverse;
	st->want_start = start;
	st->want_end = end;
	if (start.p != NULL)
		st->want_start = arena_copy(&st->arena, start);
	if (end.p != NULL)
		st->want_end = arena_copy(&st->arena, end);
	if ((start.p != NULL && st->want_start.p == NULL) ||
	    (end.p != NULL && st->want_end.p == NULL))
		return false;
	st->want_range = true;
	return true;
}
