/*
 * The search for an order.
 *
 * A state of the object as the model has it, and for each connection how many
 * of its calls have been put in order: that is a node of the search. From it
 * every next call may be taken that begins before the earliest end of those
 * that are still missing; it must answer in this state as it has answered. Most
 * of the time only one can, because a write's answer names its revision: then
 * nothing is copied. Where several can, all are tried, and nodes that were
 * tried before are known by a hash.
 *
 * Two things keep it small where a crash leaves many calls unknown: what was
 * seen later of a revision says whose it was; and a call that answers without
 * changing anything is taken at once, unless an unknown one could no longer be
 * put before it.
 *
 * A key that expires does so between `exp_lo` and `exp_hi`, because the moment
 * of the write is known only between its beginning and its end. Every answer
 * that shows the key there or gone narrows that; gone once is gone for good.
 */
#include "tests/sim/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "tests/sim/memdisk.h"

/* How far a search goes: several times what one takes that finds its way, and
 * few enough that the undecided histories of a trial take seconds. */
#define NODES_LEAST    150000u
#define NODES_A_CALL   8u
#define SEEN_SLOTS_MIN 1024u
#define NEVER          UINT64_MAX
#define TOMBSTONE_NS   ((uint64_t)IDEM_WINDOW_DEFAULT_MS * 1000000u)

/* ------------------------------------------------------------- histories */

struct kv_history {
	char name[64];
	unsigned keys;
	struct kv_call **calls;
	size_t n;
	size_t cap;
};

struct kv_history *kv_history_new(const char *name, unsigned keys)
{
	struct kv_history *h = sim_alloc(sizeof(*h));

	(void)snprintf(h->name, sizeof(h->name), "%s", name);
	h->keys = keys;
	return h;
}

void kv_history_free(struct kv_history *h)
{
	size_t i;

	for (i = 0; i < h->n; i++) {
		free(h->calls[i]->ops);
		free(h->calls[i]->items);
		free(h->calls[i]);
	}
	free(h->calls);
	free(h);
}

struct kv_call *kv_history_add(struct kv_history *h, uint32_t ops)
{
	struct kv_call *c = sim_alloc(sizeof(*c));

	if (h->n == h->cap) {
		h->cap = h->cap > 0 ? 2 * h->cap : 64;
		h->calls = sim_realloc(h->calls, h->cap * sizeof(*h->calls));
	}
	h->calls[h->n++] = c;
	c->ended = NEVER;
	c->stamp_hi = NEVER;
	c->slot = -1;
	c->ops_n = ops;
	c->ops = sim_alloc((ops > 0 ? ops : 1) * sizeof(*c->ops));
	return c;
}

void kv_call_items(struct kv_call *c, uint32_t items)
{
	c->items_n = items;
	c->items = sim_alloc((items > 0 ? items : 1) * sizeof(*c->items));
}

size_t kv_history_calls(const struct kv_history *h)
{
	return h->n;
}

/* ------------------------------------------------------------- the model */

struct kv_key {
	struct kv_value value; /* KV_NONE: there is none. */
	uint64_t rev;
	uint64_t exp_lo; /* 0: it does not expire. */
	uint64_t exp_hi;
};

struct kv_record {
	const struct kv_call *call; /* NULL: nothing is recorded. */
	const struct kv_op *answers;
	uint64_t until_lo; /* It is kept at least so long. */
};

struct kv_state {
	uint64_t rev;
	uint64_t now; /* Beginning of the last call that was put in order. */
	bool live;    /* Something was written since it was destroyed last, */
	bool gone;    /* or it was, and nothing. */
	uint64_t gone_until_lo;
	struct kv_key keys[]; /* Then the records. */
};

/* How what is not certain shall be. */
enum kv_mode {
	MODE_PLAIN = 0,
	MODE_EXPIRED = 1 << 0, /* A key that may have expired has. */
	MODE_FORGOT = 1 << 1,  /* A record that may have expired has. */
	MODE_RESET = 1 << 2,   /* The tombstone's window is over. */
	MODES = 1 << 3,
};

struct lane {
	struct kv_call **calls;
	/* The earliest end, from here on, of those that must be in the
	 * order, and of the unknown ones. */
	uint64_t *must_end;
	uint64_t *may_end;
	uint64_t *rev_max; /* No later revision may come before them. */
	/* The least revision that they show of each key: once it has a later
	 * one they can never fit. */
	uint32_t *shown;
	uint32_t n;
};

struct chunk {
	struct chunk *next;
	uint8_t bytes[];
};

/* Who wrote a revision, as somebody saw it. */
struct seen_rev {
	bool known;
	bool valued; /* `value` is. */
	uint16_t key;
	struct kv_value value;
};

struct search {
	struct kv_history *h;
	struct lane *lanes;
	uint32_t lanes_n;
	uint32_t slots;
	size_t state_bytes;
	size_t pos_bytes;
	struct kv_op *answers; /* Of the call that is being tried. */
	uint32_t answers_max;
	struct kv_state *scratch;
	struct kv_state *undo;
	struct chunk *kept; /* Recorded answers. */
	struct seen_rev *revs;
	uint64_t revs_n; /* 0: revisions may have begun anew. */
	uint64_t *seen;
	size_t seen_n;
	size_t seen_cap;
	uint64_t nodes;
	uint64_t nodes_max;
	const uint32_t *pos; /* Of the node that is being looked at. */
	bool gave_up;
	bool may_reset; /* A tombstone may have been forgotten. */
	/* Where it came furthest. */
	uint64_t best;
	struct kv_state *best_state;
	uint32_t *best_pos;
};

static uint32_t *shown_at(const struct search *s, uint32_t lane, uint32_t at)
{
	return &s->lanes[lane].shown[(size_t)at * (s->h->keys + 1)];
}

static struct kv_record *records_of(const struct search *s, struct kv_state *st)
{
	return (struct kv_record *)(void *)&st->keys[s->h->keys];
}

static bool value_same(struct kv_value a, struct kv_value b)
{
	return a.kind == b.kind && (a.kind == KV_NONE || a.v == b.v);
}

static bool may_be_there(const struct kv_key *k, const struct kv_call *c)
{
	return k->exp_lo == 0 || c->stamp_lo < k->exp_hi;
}

static bool may_be_gone(const struct kv_key *k, const struct kv_call *c)
{
	return k->exp_lo != 0 && c->stamp_hi >= k->exp_lo;
}

static void key_clear(struct kv_key *k)
{
	*k = (struct kv_key){ .value = { KV_NONE, 0 } };
}

/* The call has found the key there, or gone. */
static void key_settle(struct kv_key *k, const struct kv_call *c, bool gone)
{
	if (gone)
		key_clear(k);
	else if (k->exp_lo != 0 && k->exp_lo <= c->stamp_lo)
		k->exp_lo = c->stamp_lo + 1;
}

/* Look at a key as `mode` says. */
static struct kv_key *key_look(struct kv_state *st, uint16_t key,
			       const struct kv_call *c, unsigned mode)
{
	struct kv_key *k = &st->keys[key];

	if (k->value.kind == KV_NONE || k->exp_lo == 0)
		return k;
	if (!may_be_there(k, c))
		key_settle(k, c, true);
	else if (may_be_gone(k, c))
		key_settle(k, c, (mode & MODE_EXPIRED) != 0);
	else
		key_settle(k, c, false);
	return k;
}

static void key_write(struct kv_state *st, struct kv_key *k,
		      struct kv_value value)
{
	k->value = value;
	k->rev = ++st->rev;
	st->live = true;
	st->gone = false;
}

/* What it found, to be compared with what was said. */
struct found {
	enum kv_why why;
	uint32_t op;
	uint64_t rev;
};

static bool if_rev_holds(const struct kv_op *op, const struct kv_key *k,
			 struct found *f)
{
	uint64_t rev = k->value.kind == KV_NONE ? 0 : k->rev;

	if (!op->has_if_rev || op->if_rev == rev)
		return true;
	f->why = KV_WHY_IF_REV;
	f->rev = rev;
	return false;
}

static void op_put(struct kv_state *st, const struct kv_call *c,
		   const struct kv_op *op, unsigned mode, struct kv_op *out,
		   struct found *f)
{
	struct kv_key *k = &st->keys[op->key];

	if (op->has_if_rev) {
		k = key_look(st, op->key, c, mode);
		if (!if_rev_holds(op, k, f))
			return;
	}
	key_write(st, k, op->value);
	k->exp_lo = 0;
	k->exp_hi = 0;
	if (op->ttl_ns != 0) {
		k->exp_lo = c->stamp_lo + op->ttl_ns;
		k->exp_hi =
			c->stamp_hi == NEVER ? NEVER : c->stamp_hi + op->ttl_ns;
	}
	out->rev = k->rev;
}

static void op_delete(struct kv_state *st, const struct kv_call *c,
		      const struct kv_op *op, unsigned mode, struct kv_op *out,
		      struct found *f)
{
	struct kv_key *k = key_look(st, op->key, c, mode);

	if (!if_rev_holds(op, k, f))
		return;
	out->existed = k->value.kind != KV_NONE;
	if (out->existed) {
		key_clear(k);
		st->rev++;
	}
	out->rev = st->rev;
}

static void op_incr(struct kv_state *st, const struct kv_call *c,
		    const struct kv_op *op, unsigned mode, struct kv_op *out,
		    struct found *f)
{
	struct kv_key *k = key_look(st, op->key, c, mode);
	int64_t sum = k->value.kind == KV_INT ? (int64_t)k->value.v : 0;

	if (k->value.kind == KV_BYTES) {
		f->why = KV_WHY_TYPE;
		return;
	}
	if (__builtin_add_overflow(sum, op->by, &sum)) {
		f->why = KV_WHY_OVERFLOW;
		return;
	}
	key_write(st, k, (struct kv_value){ KV_INT, (uint64_t)sum });
	out->rev = k->rev;
	out->sum = sum;
}

static void op_cas(struct kv_state *st, const struct kv_call *c,
		   const struct kv_op *op, unsigned mode, struct kv_op *out,
		   struct found *f)
{
	struct kv_key *k = key_look(st, op->key, c, mode);

	if (!value_same(op->expect, k->value)) {
		f->why = k->value.kind == KV_NONE ? KV_WHY_EXPECT_ABSENT
						  : KV_WHY_EXPECT_OTHER;
		return;
	}
	key_write(st, k, op->value);
	k->exp_lo = 0;
	k->exp_hi = 0;
	out->rev = k->rev;
}

static void op_get(struct kv_state *st, const struct kv_call *c,
		   const struct kv_op *op, unsigned mode, struct kv_op *out,
		   struct found *f)
{
	struct kv_key *k = key_look(st, op->key, c, mode);

	if (k->value.kind == KV_NONE) {
		f->why = KV_WHY_ABSENT;
		return;
	}
	out->value = k->value;
	out->rev = k->rev;
}

static void op_one(struct kv_state *st, const struct kv_call *c,
		   const struct kv_op *op, unsigned mode, struct kv_op *out,
		   struct found *f)
{
	*out = (struct kv_op){ .kind = op->kind };
	switch (op->kind) {
	case KV_GET:
		op_get(st, c, op, mode, out, f);
		return;
	case KV_PUT:
		op_put(st, c, op, mode, out, f);
		return;
	case KV_DELETE:
		op_delete(st, c, op, mode, out, f);
		return;
	case KV_INCR:
		op_incr(st, c, op, mode, out, f);
		return;
	case KV_CAS:
		op_cas(st, c, op, mode, out, f);
		return;
	case KV_LIST:
	case KV_BATCH:
	case KV_DESTROY:
		break;
	}
	UNREACHABLE();
}

static void op_destroy(const struct search *s, struct kv_state *st,
		       const struct kv_call *c, struct kv_op *out)
{
	unsigned i;

	for (i = 0; i < s->h->keys; i++)
		key_clear(&st->keys[i]);
	if (st->live) {
		st->rev++;
		st->gone = true;
		st->gone_until_lo = c->stamp_lo + TOMBSTONE_NS;
	}
	st->live = false;
	*out = (struct kv_op){ .kind = KV_DESTROY, .rev = st->rev };
}

static bool item_agrees(const struct kv_key *k, const struct kv_item *it)
{
	return value_same(k->value, it->value) && k->rev == it->rev;
}

/* A list's answer says itself what had expired. */
static bool list_agrees(struct kv_state *st, const struct kv_call *c)
{
	bool beyond = false;
	uint32_t at = 0;
	uint32_t i;

	for (i = 0; i < (uint32_t)(c->to - c->from); i++) {
		uint16_t key =
			(uint16_t)(c->reverse ? c->to - 1u - i : c->from + i);
		struct kv_key *k = &st->keys[key];
		bool shown = at < c->items_n && c->items[at].key == key;

		if (k->value.kind == KV_NONE && shown)
			return false;
		if (k->value.kind == KV_NONE)
			continue;
		if (at == c->items_n && c->more) {
			beyond = beyond || may_be_there(k, c);
			continue;
		}
		if (shown ? !may_be_there(k, c) ||
				    !item_agrees(k, &c->items[at])
			  : !may_be_gone(k, c))
			return false;
		key_settle(k, c, !shown);
		at += shown;
	}
	return at == c->items_n && at <= c->limit &&
	       (!c->more || (beyond && (at == c->limit || c->bytes_page)));
}

static bool answers_agree(const struct kv_op *a, const struct kv_op *b)
{
	if (a->kind != b->kind || a->rev != b->rev)
		return false;
	switch (a->kind) {
	case KV_GET:
		return value_same(a->value, b->value);
	case KV_DELETE:
		return a->existed == b->existed;
	case KV_INCR:
		return a->sum == b->sum;
	case KV_PUT:
	case KV_CAS:
	case KV_DESTROY:
	case KV_LIST:
	case KV_BATCH:
		return true;
	}
	UNREACHABLE();
}

static bool found_agrees(const struct kv_call *c, const struct found *f)
{
	return c->end == CALL_FAILED && c->why == f->why &&
	       (c->kind != KV_BATCH || f->why == KV_WHY_IDEM ||
		f->why == KV_WHY_LARGE || c->why_op == f->op) &&
	       (f->why != KV_WHY_IF_REV || c->why_rev == f->rev);
}

static bool all_agree(const struct kv_call *c, const struct kv_op *answers)
{
	uint32_t i;

	/* A get's answer stands where a put has its question. */
	for (i = 0; i < c->ops_n; i++)
		if (!answers_agree(&c->ops[i], &answers[i]))
			return false;
	return true;
}

static const struct kv_op *keep_answers(struct search *s, uint32_t n)
{
	size_t bytes = n * sizeof(struct kv_op);
	struct chunk *k = sim_alloc(sizeof(*k) + bytes);

	k->next = s->kept;
	s->kept = k;
	memcpy(k->bytes, s->answers, bytes);
	return (const struct kv_op *)(const void *)k->bytes;
}

/* The outcome of putting `c` next. */
enum step {
	STEP_NO,    /* It does not answer so, or (unknown) does nothing. */
	STEP_QUIET, /* It does, and changes nothing but what is known. */
	STEP_WROTE,
};

static enum step try_record(struct search *s, struct kv_state *st,
			    const struct kv_call *c)
{
	const struct kv_record *r = &records_of(s, st)[c->slot];
	const struct found idem = { .why = KV_WHY_IDEM };

	if (c->end == CALL_UNKNOWN)
		return STEP_NO;
	if (r->call->args != c->args)
		return found_agrees(c, &idem) ? STEP_QUIET : STEP_NO;
	if (c->end != CALL_DONE)
		return STEP_NO;
	return all_agree(c, r->answers) ? STEP_QUIET : STEP_NO;
}

static void run_ops(struct search *s, struct kv_state *st,
		    const struct kv_call *c, unsigned mode, struct found *f)
{
	uint32_t i;

	if (c->kind == KV_DESTROY) {
		op_destroy(s, st, c, &s->answers[0]);
		return;
	}
	for (i = 0; i < c->ops_n && f->why == KV_WHY_NONE; i++) {
		op_one(st, c, &c->ops[i], mode, &s->answers[i], f);
		f->op = i;
	}
	if (f->why == KV_WHY_NONE && c->idem != 0 && c->answer_large)
		f->why = KV_WHY_LARGE;
}

/* Who took the revisions from..to was seen; it must be this call. */
static bool revs_agree(const struct search *s, const struct kv_call *c,
		       uint64_t from)
{
	uint32_t i;

	for (i = 0; s->revs_n > 0 && i < c->ops_n; i++) {
		const struct kv_op *a = &s->answers[i];
		const struct seen_rev *r;
		struct kv_value value = c->ops[i].value;

		if (a->rev <= from || a->rev >= s->revs_n ||
		    (a->kind == KV_DELETE && !a->existed))
			continue;
		r = &s->revs[a->rev];
		if (!r->known)
			continue;
		if (a->kind == KV_DESTROY)
			return false;
		if (a->kind == KV_INCR)
			value = (struct kv_value){ KV_INT, (uint64_t)a->sum };
		if (a->kind == KV_DELETE || r->key != c->ops[i].key ||
		    (r->valued && !value_same(r->value, value)))
			return false;
	}
	return true;
}

/* What is to come shows a revision of `key` that would be gone. */
static bool shows_before(const struct search *s, unsigned key, uint64_t rev)
{
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++)
		if (s->pos[i] < s->lanes[i].n &&
		    shown_at(s, i, s->pos[i])[key] < rev)
			return true;
	return false;
}

static bool outlives(const struct search *s, const struct kv_call *c,
		     uint64_t from)
{
	uint32_t i;

	for (i = 0; s->revs_n > 0 && i < c->ops_n; i++)
		if (s->answers[i].rev > from &&
		    shows_before(s,
				 c->kind == KV_DESTROY ? s->h->keys
						       : c->ops[i].key,
				 s->answers[i].rev))
			return true;
	return false;
}

/* Changes `st`, also when it says STEP_NO. */
static enum step try_call(struct search *s, struct kv_state *st,
			  const struct kv_call *c, unsigned mode)
{
	uint64_t rev = st->rev;
	struct found f = { .why = KV_WHY_NONE };
	struct kv_record *r = NULL;

	if ((mode & MODE_RESET) != 0) {
		if (!s->may_reset || !st->gone ||
		    c->stamp_hi < st->gone_until_lo)
			return STEP_NO;
		st->rev = 0;
		st->gone = false;
		memset(records_of(s, st), 0, s->slots * sizeof(*r));
		rev = 0;
	}
	if (c->slot >= 0)
		r = &records_of(s, st)[c->slot];
	if (r != NULL && r->call != NULL) {
		bool may = c->stamp_hi >= r->until_lo;

		if ((mode & MODE_FORGOT) == 0 || !may)
			return (mode & MODE_FORGOT) != 0 ? STEP_NO
							 : try_record(s, st, c);
		r->call = NULL;
	} else if ((mode & MODE_FORGOT) != 0) {
		return STEP_NO;
	}
	if (c->kind == KV_LIST)
		return c->end == CALL_DONE && list_agrees(st, c) ? STEP_QUIET
								 : STEP_NO;
	if (c->ops_n > 1)
		memcpy(s->undo, st, s->state_bytes);
	run_ops(s, st, c, mode, &f);
	/* All or nothing. */
	if (f.why != KV_WHY_NONE && c->ops_n > 1)
		memcpy(st, s->undo, s->state_bytes);
	if (f.why != KV_WHY_NONE)
		return found_agrees(c, &f) ? STEP_QUIET : STEP_NO;
	if (c->end == CALL_FAILED)
		return STEP_NO;
	if (c->end == CALL_DONE && !all_agree(c, s->answers))
		return STEP_NO;
	if (!revs_agree(s, c, rev) || outlives(s, c, rev))
		return STEP_NO;
	if (r != NULL) {
		r->call = c;
		r->answers = keep_answers(s, c->ops_n);
		r->until_lo = c->stamp_lo + c->window_ns;
		return STEP_WROTE;
	}
	return st->rev != rev ? STEP_WROTE : STEP_QUIET;
}

/* ------------------------------------------------------------ the search */

static uint64_t mix64(uint64_t h, uint64_t x)
{
	h = (h ^ x) * UINT64_C(0x9e3779b97f4a7c15);
	return h ^ (h >> 29);
}

/* Which call made it, and what it was answered: that depends on its place. */
static uint64_t record_hash(uint64_t h, const struct kv_record *r)
{
	uint32_t i;

	h = mix64(h, (uint64_t)(uintptr_t)r->call);
	for (i = 0; r->call != NULL && i < r->call->ops_n; i++) {
		const struct kv_op *a = &r->answers[i];

		h = mix64(h, a->rev << 1 | a->existed);
		h = mix64(h, (uint64_t)a->value.kind << 62 ^ a->value.v);
		h = mix64(h, (uint64_t)a->sum);
	}
	return h;
}

static uint64_t state_hash(const struct search *s, struct kv_state *st,
			   const uint32_t *pos)
{
	uint64_t h = mix64(mix64(1, st->rev), 2u * st->gone + st->live);
	uint32_t i;

	for (i = 0; i < s->h->keys; i++) {
		const struct kv_key *k = &st->keys[i];

		h = mix64(h, (uint64_t)k->value.kind << 62 ^ k->value.v);
		h = mix64(mix64(mix64(h, k->rev), k->exp_lo), k->exp_hi);
	}
	for (i = 0; i < s->slots; i++)
		h = record_hash(h, &records_of(s, st)[i]);
	for (i = 0; i < s->lanes_n; i++)
		h = mix64(h, pos[i]);
	return h != 0 ? h : 1;
}

static void seen_put(uint64_t *slots, size_t cap, uint64_t h)
{
	size_t i = h & (cap - 1);

	while (slots[i] != 0)
		i = (i + 1) & (cap - 1);
	slots[i] = h;
}

/* True when it was there. */
static bool seen_before(struct search *s, uint64_t h)
{
	uint64_t *wider;
	size_t i;

	if (s->seen_n * 2 >= s->seen_cap) {
		size_t cap = s->seen_cap > 0 ? 2 * s->seen_cap : SEEN_SLOTS_MIN;

		wider = sim_alloc(cap * sizeof(*wider));
		for (i = 0; i < s->seen_cap; i++)
			if (s->seen[i] != 0)
				seen_put(wider, cap, s->seen[i]);
		free(s->seen);
		s->seen = wider;
		s->seen_cap = cap;
	}
	for (i = h & (s->seen_cap - 1); s->seen[i] != 0;
	     i = (i + 1) & (s->seen_cap - 1))
		if (s->seen[i] == h)
			return true;
	s->seen[i] = h;
	s->seen_n++;
	return false;
}

static bool is_optional(const struct kv_call *c)
{
	return c->end == CALL_UNKNOWN && !c->observed;
}

static struct kv_call *head(const struct search *s, const uint32_t *pos,
			    uint32_t lane)
{
	return pos[lane] < s->lanes[lane].n ? s->lanes[lane].calls[pos[lane]]
					    : NULL;
}

/* No call that begins later than this may be next. */
static uint64_t latest(const struct search *s, const uint32_t *pos)
{
	uint64_t ends = NEVER;
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++)
		if (pos[i] < s->lanes[i].n &&
		    s->lanes[i].must_end[pos[i]] < ends)
			ends = s->lanes[i].must_end[pos[i]];
	return ends;
}

/* An unknown call that was over before what is in the order already began is in
 * it or nowhere. True: nothing is left that must be in it. */
static bool drop_late(const struct search *s, const struct kv_state *st,
		      uint32_t *pos)
{
	struct kv_call *c;
	bool all = true;
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++) {
		while ((c = head(s, pos, i)) != NULL && is_optional(c) &&
		       c->ended < st->now)
			pos[i]++;
		all = all &&
		      (c == NULL || s->lanes[i].must_end[pos[i]] == NEVER);
	}
	return all;
}

/* Would taking a call that began then be the end of an unknown one? */
static bool would_drop(const struct search *s, const uint32_t *pos,
		       uint64_t begun)
{
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++)
		if (pos[i] < s->lanes[i].n &&
		    s->lanes[i].may_end[pos[i]] < begun)
			return true;
	return false;
}

/* What is still to come has a lower revision. */
static bool is_too_far(const struct search *s, const struct kv_state *st,
		       const uint32_t *pos)
{
	uint32_t i;

	if (s->revs_n == 0)
		return false;
	for (i = 0; i < s->lanes_n; i++)
		if (pos[i] < s->lanes[i].n &&
		    s->lanes[i].rev_max[pos[i]] < st->rev)
			return true;
	return false;
}

static void come_to(struct search *s, const struct kv_state *st,
		    const uint32_t *pos)
{
	uint64_t sum = 0;
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++)
		sum += pos[i];
	if (sum <= s->best && s->best != 0)
		return;
	s->best = sum;
	memcpy(s->best_state, st, s->state_bytes);
	memcpy(s->best_pos, pos, s->pos_bytes);
}

static void take(struct kv_state *st, const struct kv_call *c)
{
	if (c->begun > st->now)
		st->now = c->begun;
}

/* Which of the modes make a difference for this call. */
static unsigned modes_of(const struct search *s, struct kv_state *st,
			 const struct kv_call *c)
{
	const struct kv_record *r;
	unsigned modes = 0;
	uint32_t i;

	if (s->may_reset && st->gone && c->stamp_hi >= st->gone_until_lo)
		modes |= MODE_RESET;
	if (c->slot >= 0) {
		r = &records_of(s, st)[c->slot];
		if (r->call != NULL && c->stamp_hi >= r->until_lo)
			modes |= MODE_FORGOT;
	}
	if (c->kind == KV_LIST || c->kind == KV_DESTROY)
		return modes;
	for (i = 0; i < c->ops_n; i++) {
		const struct kv_key *k = &st->keys[c->ops[i].key];

		if (k->value.kind != KV_NONE && may_be_gone(k, c) &&
		    may_be_there(k, c))
			modes |= MODE_EXPIRED;
	}
	return modes;
}

static bool is_ending(const struct kv_key *k, const struct kv_call *c)
{
	return k->value.kind != KV_NONE && may_be_gone(k, c);
}

/* An answer that shows a key expired settles that, for good: also when it can
 * only be gone it is a choice, because a write of the key may come first. */
static bool settles_an_end(struct kv_state *st, const struct kv_call *c)
{
	uint32_t i;

	for (i = c->from; c->kind == KV_LIST && i < c->to; i++)
		if (is_ending(&st->keys[i], c))
			return true;
	for (i = 0; c->kind != KV_DESTROY && i < c->ops_n; i++)
		if (is_ending(&st->keys[c->ops[i].key], c))
			return true;
	return false;
}

/* Take what may be taken without a choice. */
static bool take_quiet(struct search *s, struct kv_state *st, uint32_t *pos,
		       uint64_t bound)
{
	bool moved = false;
	struct kv_call *c;
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++) {
		c = head(s, pos, i);
		if (c == NULL || c->end == CALL_UNKNOWN || c->begun > bound ||
		    would_drop(s, pos, c->begun) || modes_of(s, st, c) != 0 ||
		    settles_an_end(st, c))
			continue;
		memcpy(s->scratch, st, s->state_bytes);
		if (try_call(s, s->scratch, c, MODE_PLAIN) != STEP_QUIET)
			continue;
		memcpy(st, s->scratch, s->state_bytes);
		take(st, c);
		pos[i]++;
		moved = true;
	}
	return moved;
}

struct choice {
	uint32_t lane;
	unsigned mode;
	bool skip;
};

#define CHOICES_MAX 96u

static unsigned find_choices(struct search *s, struct kv_state *st,
			     const uint32_t *pos, uint64_t bound, bool unknown,
			     struct choice *out, unsigned n)
{
	struct kv_call *c;
	unsigned modes;
	unsigned mode;
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++) {
		c = head(s, pos, i);
		if (c == NULL || (c->end == CALL_UNKNOWN) != unknown ||
		    c->begun > bound || c->ended < st->now)
			continue;
		modes = modes_of(s, st, c);
		for (mode = 0; mode < MODES && n < CHOICES_MAX; mode++) {
			if ((mode & ~modes) != 0)
				continue;
			memcpy(s->scratch, st, s->state_bytes);
			if (try_call(s, s->scratch, c, mode) == STEP_NO)
				continue;
			out[n++] = (struct choice){ .lane = i, .mode = mode };
		}
	}
	return n;
}

/* Only to come to what is behind it; else drop_late() does it in time. */
static unsigned find_skips(const struct search *s, const uint32_t *pos,
			   struct choice *out, unsigned n)
{
	struct kv_call *c;
	uint32_t i;

	for (i = 0; i < s->lanes_n && n < CHOICES_MAX; i++) {
		c = head(s, pos, i);
		if (c != NULL && is_optional(c) && pos[i] + 1 < s->lanes[i].n)
			out[n++] = (struct choice){ .lane = i, .skip = true };
	}
	return n;
}

static void choose(struct search *s, struct kv_state *st, uint32_t *pos,
		   const struct choice *ch)
{
	struct kv_call *c = head(s, pos, ch->lane);

	s->pos = pos;
	if (!ch->skip) {
		(void)try_call(s, st, c, ch->mode);
		take(st, c);
	}
	pos[ch->lane]++;
}

/* Where several calls may come next. On the heap: a long history has more such
 * places than a stack has room for. */
struct fork {
	struct fork *before;
	struct kv_state *st;
	uint32_t *pos;
	struct choice *choices;
	unsigned n;
	unsigned tried;
};

static struct fork *fork_new(const struct search *s, const struct kv_state *st,
			     const uint32_t *pos, const struct choice *choices,
			     unsigned n)
{
	struct fork *f = sim_alloc(sizeof(*f));

	f->st = sim_alloc(s->state_bytes);
	memcpy(f->st, st, s->state_bytes);
	f->pos = sim_alloc(s->pos_bytes);
	memcpy(f->pos, pos, s->pos_bytes);
	f->choices = sim_alloc(n * sizeof(*choices));
	memcpy(f->choices, choices, n * sizeof(*choices));
	f->n = n;
	return f;
}

/* The one before it. */
static struct fork *fork_free(struct fork *f)
{
	struct fork *before = f->before;

	free(f->st);
	free(f->pos);
	free(f->choices);
	free(f);
	return before;
}

enum walk { WALK_OVER, WALK_STUCK, WALK_FORK };

/* As far as there is only one way. */
static enum walk walk_on(struct search *s, struct kv_state *st, uint32_t *pos,
			 struct choice *choices, unsigned *n)
{
	uint64_t bound;

	for (;;) {
		if (drop_late(s, st, pos))
			return WALK_OVER;
		s->pos = pos;
		come_to(s, st, pos);
		if (is_too_far(s, st, pos))
			return WALK_STUCK;
		if (++s->nodes > s->nodes_max) {
			s->gave_up = true;
			return WALK_STUCK;
		}
		bound = latest(s, pos);
		if (take_quiet(s, st, pos, bound))
			continue;
		*n = find_choices(s, st, pos, bound, false, choices, 0);
		*n = find_choices(s, st, pos, bound, true, choices, *n);
		*n = find_skips(s, pos, choices, *n);
		if (*n == 0)
			return WALK_STUCK;
		if (*n == 1) {
			choose(s, st, pos, &choices[0]);
			continue;
		}
		return seen_before(s, state_hash(s, st, pos)) ? WALK_STUCK
							      : WALK_FORK;
	}
}

static bool search_from(struct search *s, struct kv_state *st, uint32_t *pos)
{
	struct choice choices[CHOICES_MAX];
	struct fork *last = NULL;
	struct fork *f;
	enum walk walk;
	unsigned n = 0;

	for (;;) {
		walk = walk_on(s, st, pos, choices, &n);
		if (walk == WALK_OVER || s->gave_up)
			break;
		if (walk == WALK_FORK) {
			f = fork_new(s, st, pos, choices, n);
			f->before = last;
			last = f;
		}
		while (last != NULL && last->tried == last->n)
			last = fork_free(last);
		if (last == NULL)
			break;
		memcpy(st, last->st, s->state_bytes);
		memcpy(pos, last->pos, s->pos_bytes);
		choose(s, st, pos, &last->choices[last->tried++]);
	}
	while (last != NULL)
		last = fork_free(last);
	return walk == WALK_OVER;
}

/* -------------------------------------------------------- setting it up */

static int begin_order(const void *a, const void *b)
{
	const struct kv_call *x = *(struct kv_call *const *)a;
	const struct kv_call *y = *(struct kv_call *const *)b;

	return x->begun < y->begun ? -1 : x->begun > y->begun;
}

static int call_order(const void *a, const void *b)
{
	const struct kv_call *x = *(struct kv_call *const *)a;
	const struct kv_call *y = *(struct kv_call *const *)b;

	if (x->lane != y->lane)
		return x->lane < y->lane ? -1 : 1;
	if (x->begun != y->begun)
		return x->begun < y->begun ? -1 : 1;
	return 0;
}

/* The revision that the object has when this call comes, as far as its answer
 * tells. One with a key may have answered what another did. */
static uint64_t rev_before(const struct kv_call *c)
{
	const struct kv_op *op = &c->ops[0];

	if (c->end != CALL_DONE || c->ops_n == 0 || c->idem != 0)
		return NEVER;
	if (op->kind == KV_PUT || op->kind == KV_INCR || op->kind == KV_CAS ||
	    op->existed)
		return op->rev - 1;
	/* It names the object's. */
	return op->kind == KV_DELETE || op->kind == KV_DESTROY ? op->rev
							       : NEVER;
}

/* The last place is for the least of all keys. */
static void show(uint32_t *shown, unsigned keys, uint16_t key, uint64_t rev)
{
	if (rev < shown[key])
		shown[key] = (uint32_t)rev;
	if (rev < shown[keys])
		shown[keys] = (uint32_t)rev;
}

static void show_call(uint32_t *shown, unsigned keys, const struct kv_call *c)
{
	uint32_t i;

	/* One with a key that was used twice may show what was recorded. */
	if (c->end == CALL_DONE && c->kind == KV_GET && c->slot < 0)
		show(shown, keys, c->ops[0].key, c->ops[0].rev);
	if (c->end == CALL_FAILED && c->why == KV_WHY_IF_REV && c->ops_n == 1 &&
	    c->why_rev > 0)
		show(shown, keys, c->ops[0].key, c->why_rev);
	for (i = 0; i < c->items_n; i++)
		show(shown, keys, c->items[i].key, c->items[i].rev);
}

static void lane_shows(const struct search *s, struct lane *l)
{
	size_t row = s->h->keys + 1;
	uint32_t i;

	l->shown = sim_alloc(l->n * row * sizeof(*l->shown));
	for (i = l->n; i-- > 0;) {
		uint32_t *at = &l->shown[i * row];

		if (i + 1 < l->n)
			memcpy(at, at + row, row * sizeof(*at));
		else
			memset(at, 0xff, row * sizeof(*at));
		show_call(at, s->h->keys, l->calls[i]);
	}
}

static void lane_ends(struct lane *l)
{
	uint64_t must = NEVER;
	uint64_t may = NEVER;
	uint64_t rev = NEVER;
	uint32_t i;

	l->must_end = sim_alloc(l->n * sizeof(*l->must_end));
	l->may_end = sim_alloc(l->n * sizeof(*l->may_end));
	l->rev_max = sim_alloc(l->n * sizeof(*l->rev_max));
	for (i = l->n; i-- > 0;) {
		const struct kv_call *c = l->calls[i];

		if (!is_optional(c) && c->ended < must)
			must = c->ended;
		if (c->end == CALL_UNKNOWN && c->ended < may)
			may = c->ended;
		if (rev_before(c) < rev)
			rev = rev_before(c);
		l->rev_max[i] = rev;
		l->must_end[i] = must;
		l->may_end[i] = may;
	}
}

/* A lane has calls of which each ended before the next began; there are as few
 * as can be. */
static void number_lanes(struct kv_call **calls, size_t n)
{
	uint64_t *ends = sim_alloc((n + 1) * sizeof(*ends));
	uint32_t lanes = 0;
	uint32_t k;
	size_t i;

	qsort(calls, n, sizeof(struct kv_call *), begin_order);
	for (i = 0; i < n; i++) {
		for (k = 0; k < lanes && ends[k] >= calls[i]->begun; k++)
			;
		if (k == lanes)
			lanes++;
		ends[k] = calls[i]->ended;
		calls[i]->lane = k;
	}
	free(ends);
}

static void make_lanes(struct search *s, struct kv_call **calls, size_t n)
{
	struct lane *l = NULL;
	size_t i;

	number_lanes(calls, n);
	qsort(calls, n, sizeof(struct kv_call *), call_order);
	s->lanes = sim_alloc((n + 1) * sizeof(*s->lanes));
	for (i = 0; i < n; i++) {
		if (l == NULL || calls[i]->lane != calls[i - 1]->lane) {
			l = &s->lanes[s->lanes_n++];
			l->calls = &calls[i];
		}
		l->n++;
	}
	for (i = 0; i < s->lanes_n; i++) {
		lane_ends(&s->lanes[i]);
		lane_shows(s, &s->lanes[i]);
	}
}

/* Keys that were used more than once get a place in the state. */
static void number_slots(struct kv_call **calls, size_t n)
{
	int32_t slots = 0;
	size_t i;
	size_t k;

	for (i = 0; i < n; i++) {
		if (calls[i]->idem == 0 || calls[i]->slot >= 0)
			continue;
		for (k = i + 1; k < n; k++) {
			if (calls[k]->idem != calls[i]->idem)
				continue;
			if (calls[i]->slot < 0)
				calls[i]->slot = slots++;
			calls[k]->slot = calls[i]->slot;
		}
	}
}

static void see_rev(struct search *s, uint64_t rev, uint16_t key,
		    struct kv_value value)
{
	if (rev < s->revs_n)
		s->revs[rev] = (struct seen_rev){ true, true, key, value };
}

static uint64_t rev_max(const struct kv_call *c)
{
	uint64_t max = 0;
	uint32_t i;

	for (i = 0; c->end == CALL_DONE && i < c->ops_n; i++)
		if (c->ops[i].rev > max)
			max = c->ops[i].rev;
	for (i = 0; i < c->items_n; i++)
		if (c->items[i].rev > max)
			max = c->items[i].rev;
	return max;
}

static void see_call(struct search *s, const struct kv_call *c)
{
	uint32_t i;

	/* In a batch it may be one that was taken back. */
	if (c->end == CALL_FAILED && c->why == KV_WHY_IF_REV && c->ops_n == 1 &&
	    c->why_rev > 0 && c->why_rev < s->revs_n &&
	    !s->revs[c->why_rev].known)
		s->revs[c->why_rev] = (struct seen_rev){ .known = true,
							 .key = c->ops[0].key };

	for (i = 0; c->end == CALL_DONE && i < c->ops_n; i++) {
		const struct kv_op *op = &c->ops[i];

		if (op->kind == KV_INCR)
			see_rev(s, op->rev, op->key,
				(struct kv_value){ KV_INT, (uint64_t)op->sum });
		else if (op->kind == KV_PUT || op->kind == KV_CAS ||
			 op->kind == KV_GET)
			see_rev(s, op->rev, op->key, op->value);
	}
	for (i = 0; i < c->items_n; i++)
		see_rev(s, c->items[i].rev, c->items[i].key, c->items[i].value);
}

/* Could a revision have been given twice, because a tombstone was forgotten? */
static bool may_begin_anew(struct kv_call **calls, size_t n)
{
	uint64_t gone = NEVER;
	size_t i;

	for (i = 0; i < n; i++)
		if (calls[i]->kind == KV_DESTROY && calls[i]->stamp_lo < gone)
			gone = calls[i]->stamp_lo;
	if (gone == NEVER)
		return false;
	for (i = 0; i < n; i++)
		if (calls[i]->stamp_hi >= gone + TOMBSTONE_NS)
			return true;
	return false;
}

static bool wrote_what_was_seen(const struct search *s, const struct kv_call *c)
{
	uint64_t rev;
	uint32_t i;

	for (i = 0; i < c->ops_n; i++) {
		if ((c->ops[i].kind != KV_PUT && c->ops[i].kind != KV_CAS) ||
		    c->ops[i].value.kind != KV_BYTES)
			continue;
		for (rev = 0; rev < s->revs_n; rev++)
			if (s->revs[rev].valued &&
			    value_same(s->revs[rev].value, c->ops[i].value))
				return true;
	}
	return false;
}

static void look_at_revs(struct search *s, struct kv_call **calls, size_t n)
{
	uint64_t max = 0;
	size_t i;

	for (i = 0; i < n; i++)
		calls[i]->observed = false;
	if (s->may_reset)
		return;
	for (i = 0; i < n; i++)
		if (rev_max(calls[i]) > max)
			max = rev_max(calls[i]);
	if (max > 1000000)
		return;
	s->revs_n = max + 1;
	s->revs = sim_alloc(s->revs_n * sizeof(*s->revs));
	for (i = 0; i < n; i++)
		see_call(s, calls[i]);
	/* Not by a retry with the same key, which may be what wrote it. */
	for (i = 0; i < n; i++)
		calls[i]->observed = calls[i]->end == CALL_UNKNOWN &&
				     calls[i]->slot < 0 &&
				     wrote_what_was_seen(s, calls[i]);
}

/* ----------------------------------------------------------- what is said */

static const char *const kind_names[] = {
	[KV_GET] = "get",     [KV_PUT] = "put",         [KV_DELETE] = "delete",
	[KV_INCR] = "incr",   [KV_CAS] = "cas",         [KV_LIST] = "list",
	[KV_BATCH] = "batch", [KV_DESTROY] = "destroy",
};

static const char *const end_names[] = {
	[CALL_OPEN] = "open",       [CALL_DONE] = "done",
	[CALL_FAILED] = "failed",   [CALL_REFUSED] = "refused",
	[CALL_UNKNOWN] = "unknown",
};

static void say(struct breach *b, const char *text)
{
	size_t n = strlen(b->text);

	(void)snprintf(b->text + n, sizeof(b->text) - n, "%s", text);
}

static void say_call(struct breach *b, const struct kv_call *c)
{
	const struct kv_op *op = &c->ops[0];
	char line[240];

	(void)snprintf(
		line, sizeof(line),
		"\n  %s[%u] %llu..%lld lane %u %s why %d rev %llu key %u "
		"val %d:%llx sum %lld exp %d:%llx stamp %llu..%llu "
		"idem %llu slot %d why_rev %llu",
		kind_names[c->kind], c->ops_n, (unsigned long long)c->begun,
		(long long)c->ended, c->lane, end_names[c->end], c->why,
		(unsigned long long)op->rev, op->key, op->value.kind,
		(unsigned long long)op->value.v, (long long)op->sum,
		op->expect.kind, (unsigned long long)op->expect.v,
		(unsigned long long)c->stamp_lo,
		(unsigned long long)c->stamp_hi, (unsigned long long)c->idem,
		c->slot, (unsigned long long)c->why_rev);
	say(b, line);
}

static void say_key(struct breach *b, const struct kv_state *st, uint16_t key)
{
	const struct kv_key *k = &st->keys[key];
	char line[160];

	(void)snprintf(
		line, sizeof(line),
		"\n    model: key %u val %d:%llx rev %llu exp %llu..%llu", key,
		k->value.kind, (unsigned long long)k->value.v,
		(unsigned long long)k->rev, (unsigned long long)k->exp_lo,
		(unsigned long long)k->exp_hi);
	say(b, line);
}

static bool is_shown(const struct kv_call *c, uint16_t key)
{
	uint32_t i;

	for (i = 0; i < c->items_n; i++)
		if (c->items[i].key == key)
			return true;
	return false;
}

/* A list that does not fit: where. */
static void say_list(struct breach *b, const struct kv_state *st,
		     const struct kv_call *c)
{
	char line[200];
	uint32_t i;

	(void)snprintf(line, sizeof(line),
		       "\n    keys %u..%u, %u items of %u%s%s", c->from, c->to,
		       c->items_n, c->limit, c->more ? ", more" : "",
		       c->reverse ? ", reverse" : "");
	say(b, line);
	for (i = 0; i < c->items_n; i++) {
		const struct kv_item *it = &c->items[i];
		const struct kv_key *k = &st->keys[it->key];

		if (item_agrees(k, it))
			continue;
		(void)snprintf(line, sizeof(line),
			       "\n    shown: key %u val %d:%llx rev %llu",
			       it->key, it->value.kind,
			       (unsigned long long)it->value.v,
			       (unsigned long long)it->rev);
		say(b, line);
		say_key(b, st, it->key);
	}
	for (i = c->from; i < c->to; i++) {
		if (st->keys[i].value.kind == KV_NONE ||
		    is_shown(c, (uint16_t)i))
			continue;
		say(b, "\n    not shown:");
		say_key(b, st, (uint16_t)i);
	}
}

static void explain(const struct search *s, struct breach *b)
{
	uint64_t bound = latest(s, s->best_pos);
	struct kv_call *c;
	char line[200];
	uint32_t i;

	(void)snprintf(line, sizeof(line),
		       "%s: no order explains its %zu calls; %llu fit, then at "
		       "revision %llu%s none of:",
		       s->h->name, s->h->n, (unsigned long long)s->best,
		       (unsigned long long)s->best_state->rev,
		       s->best_state->gone ? " (destroyed)" : "");
	say(b, line);
	for (i = 0; i < s->lanes_n; i++) {
		c = head(s, s->best_pos, i);
		if (c == NULL || c->begun > bound)
			continue;
		say_call(b, c);
		if (c->kind == KV_LIST)
			say_list(b, s->best_state, c);
		else if (c->ops_n > 0)
			say_key(b, s->best_state, c->ops[0].key);
	}
}

static void search_release(struct search *s)
{
	struct chunk *k;
	uint32_t i;

	for (i = 0; i < s->lanes_n; i++) {
		free(s->lanes[i].must_end);
		free(s->lanes[i].may_end);
		free(s->lanes[i].rev_max);
		free(s->lanes[i].shown);
	}
	while ((k = s->kept) != NULL) {
		s->kept = k->next;
		free(k);
	}
	free(s->lanes);
	free(s->answers);
	free(s->scratch);
	free(s->undo);
	free(s->revs);
	free(s->seen);
	free(s->best_state);
	free(s->best_pos);
}

/* Of a read that was not answered nobody knows anything, and never will. */
static bool is_nothing(const struct kv_call *c)
{
	return c->end == CALL_REFUSED ||
	       (c->end == CALL_UNKNOWN && c->idem == 0 &&
		(c->kind == KV_GET || c->kind == KV_LIST));
}

static struct kv_call **calls_that_count(const struct kv_history *h, size_t *n)
{
	struct kv_call **calls = sim_alloc((h->n + 1) * sizeof(*calls));
	size_t i;

	*n = 0;
	for (i = 0; i < h->n; i++) {
		CHECK(h->calls[i]->end != CALL_OPEN);
		if (!is_nothing(h->calls[i]))
			calls[(*n)++] = h->calls[i];
	}
	return calls;
}

static void search_init(struct search *s, struct kv_call **calls, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		if (calls[i]->ops_n > s->answers_max)
			s->answers_max = calls[i]->ops_n;
		if (calls[i]->slot >= (int32_t)s->slots)
			s->slots = (uint32_t)calls[i]->slot + 1;
	}
	look_at_revs(s, calls, n);
	make_lanes(s, calls, n);
	s->state_bytes = sizeof(struct kv_state) +
			 s->h->keys * sizeof(struct kv_key) +
			 s->slots * sizeof(struct kv_record);
	s->pos_bytes = (s->lanes_n + 1) * sizeof(uint32_t);
	s->answers = sim_alloc((s->answers_max + 1) * sizeof(*s->answers));
	s->scratch = sim_alloc(s->state_bytes);
	s->undo = sim_alloc(s->state_bytes);
	s->best_state = sim_alloc(s->state_bytes);
	s->best_pos = sim_alloc(s->pos_bytes);
}

static enum verdict judge(struct kv_history *h, struct kv_call **calls,
			  size_t n, bool may_reset, struct breach *out)
{
	struct search s = { .h = h,
			    .may_reset = may_reset,
			    .nodes_max = NODES_LEAST + n * NODES_A_CALL };
	enum verdict v = VERDICT_GOOD;
	struct kv_state *st;
	uint32_t *pos;

	search_init(&s, calls, n);
	st = sim_alloc(s.state_bytes);
	pos = sim_alloc(s.pos_bytes);
	if (!search_from(&s, st, pos)) {
		v = s.gave_up ? VERDICT_UNDECIDED : VERDICT_BAD;
		*out = (struct breach){ { 0 }, { 0 } };
		(void)snprintf(out->invariant, sizeof(out->invariant), "%s",
			       s.gave_up ? "undecided" : "linearizable");
		explain(&s, out);
	}
	free(st);
	free(pos);
	search_release(&s);
	return v;
}

enum verdict kv_history_check(struct kv_history *h, struct breach *out)
{
	enum verdict v;
	struct kv_call **calls;
	size_t n;

	calls = calls_that_count(h, &n);
	number_slots(calls, n);
	/* Few histories have a tombstone that was forgotten, and without one
	 * much more is certain. */
	v = judge(h, calls, n, false, out);
	if (v != VERDICT_GOOD && may_begin_anew(calls, n))
		v = judge(h, calls, n, true, out);
	free(calls);
	return v;
}

/* -------------------------------------------------------- rate_limiter */

/* A new owner's now before the last of the old one. */
struct set_back {
	uint64_t at;
	uint64_t last_ns;
	uint64_t now_ns;
	uint64_t twice_ns; /* Of the key that is looked at. */
};

struct limiter_history {
	char name[64];
	enum limiter_class class;
	uint64_t limit;
	uint64_t period_ns;
	uint64_t burst;
	unsigned keys;
	bool forgets;
	uint64_t lease;
	struct limiter_call **calls;
	size_t n;
	size_t cap;
	uint64_t *leads;
	size_t leads_n;
	struct set_back *backs;
	size_t backs_n;
};

struct limiter_history *limiter_history_new(const char *name,
					    enum limiter_class class,
					    uint64_t limit, uint64_t period_ns,
					    uint64_t burst, unsigned keys,
					    bool forgets, uint64_t lease)
{
	struct limiter_history *h = sim_alloc(sizeof(*h));

	(void)snprintf(h->name, sizeof(h->name), "%s", name);
	h->class = class;
	h->limit = limit;
	h->period_ns = period_ns;
	h->burst = burst;
	h->keys = keys;
	h->forgets = forgets;
	h->lease = lease;
	return h;
}

void limiter_history_free(struct limiter_history *h)
{
	size_t i;

	for (i = 0; i < h->n; i++)
		free(h->calls[i]);
	free(h->calls);
	free(h->leads);
	free(h->backs);
	free(h);
}

struct limiter_call *limiter_history_add(struct limiter_history *h)
{
	struct limiter_call *c = sim_alloc(sizeof(*c));

	if (h->n == h->cap) {
		h->cap = h->cap > 0 ? 2 * h->cap : 64;
		h->calls = sim_realloc(h->calls, h->cap * sizeof(*h->calls));
	}
	h->calls[h->n++] = c;
	c->ended = NEVER;
	c->stamp_hi = NEVER;
	return c;
}

size_t limiter_history_calls(const struct limiter_history *h)
{
	return h->n;
}

struct limiter_call *limiter_history_call(struct limiter_history *h, size_t i)
{
	PRE(i < h->n);
	return h->calls[i];
}

void limiter_history_lead(struct limiter_history *h, uint64_t stamp_ns)
{
	h->leads = sim_realloc(h->leads, (h->leads_n + 1) * sizeof(*h->leads));
	h->leads[h->leads_n++] = stamp_ns;
}

void limiter_history_back(struct limiter_history *h, uint64_t at,
			  uint64_t last_ns, uint64_t now_ns)
{
	PRE(last_ns >= now_ns);
	h->backs = sim_realloc(h->backs, (h->backs_n + 1) * sizeof(*h->backs));
	h->backs[h->backs_n++] = (struct set_back){ .at = at,
						    .last_ns = last_ns,
						    .now_ns = now_ns };
}

static bool was_taken(const struct limiter_call *c)
{
	return c->take && !c->reset && c->end == CALL_DONE && c->allowed &&
	       !c->perishable;
}

static bool may_be_taken(const struct limiter_call *c)
{
	return c->take && !c->reset &&
	       ((c->end == CALL_DONE && c->allowed) || c->end == CALL_UNKNOWN ||
		c->end == CALL_OPEN);
}

/* Permits that come back in so many ns. */
static double refill(const struct limiter_history *h, uint64_t ns)
{
	return (double)ns * (double)h->limit / (double)h->period_ns;
}

static bool reset_between(struct limiter_call **calls, size_t n,
			  const struct limiter_call *a, uint64_t ended)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (calls[i]->reset && calls[i]->end != CALL_REFUSED &&
		    calls[i]->ended >= a->begun && calls[i]->begun <= ended)
			return true;
	return false;
}

/* How much passed twice: a new owner's now may lie before that of the old one,
 * of which nothing was committed, up to where that let in its last. After a
 * permit that is committed itself there is no earlier now. */
static void look_at_backs(struct limiter_history *h,
			  struct limiter_call **calls, size_t n)
{
	struct set_back *b;
	uint64_t last_ns;
	size_t i;
	size_t k;

	if (h->class != LIMITER_MEMORY && h->class != LIMITER_LEASED)
		return;
	for (i = 0; i < h->backs_n; i++) {
		b = &h->backs[i];
		last_ns = 0;
		for (k = 0; k < n && calls[k]->begun <= b->at; k++)
			if (was_taken(calls[k]) && calls[k]->stamp_hi > last_ns)
				last_ns = calls[k]->stamp_hi;
		if (last_ns > b->last_ns)
			last_ns = b->last_ns;
		b->twice_ns = last_ns > b->now_ns ? last_ns - b->now_ns : 0;
	}
}

static uint64_t passed_twice(const struct limiter_history *h,
			     const struct limiter_call *a, uint64_t ended)
{
	uint64_t ns = 0;
	size_t i;

	for (i = 0; i < h->backs_n; i++)
		if (h->backs[i].at >= a->begun && h->backs[i].at < ended)
			ns += h->backs[i].twice_ns;
	return ns;
}

/* At most, from one to the other, by the owners' clocks or the world's. */
static uint64_t elapsed(const struct limiter_history *h,
			const struct limiter_call *a, uint64_t stamp_hi,
			uint64_t ended_ms, uint64_t ended)
{
	uint64_t stamps = stamp_hi > a->stamp_lo ? stamp_hi - a->stamp_lo : 0;
	uint64_t ms = ended_ms - a->begun_ms + 1;

	stamps += passed_twice(h, a, ended);
	return stamps > ms * 1000000u ? stamps : ms * 1000000u;
}

/* What was admitted from the i-th on. */
static bool too_many(const struct limiter_history *h,
		     struct limiter_call **calls, size_t n, size_t from,
		     struct breach *out)
{
	const struct limiter_call *a = calls[from];
	uint64_t stamp_hi = 0;
	uint64_t ended_ms = 0;
	uint64_t ended = 0;
	double sum = 0;
	double bound;
	size_t k;

	for (k = from; k < n; k++) {
		const struct limiter_call *b = calls[k];

		if (!was_taken(b))
			continue;
		sum += b->cost;
		/* One that began earlier may have been last. */
		if (b->stamp_hi > stamp_hi)
			stamp_hi = b->stamp_hi;
		if (b->ended_ms > ended_ms)
			ended_ms = b->ended_ms;
		if (b->ended > ended)
			ended = b->ended;
		bound = (double)h->burst + 1e-6 +
			refill(h, elapsed(h, a, stamp_hi, ended_ms, ended));
		if (sum <= bound || reset_between(calls, n, a, ended))
			continue;
		(void)snprintf(out->invariant, sizeof(out->invariant), "limit");
		(void)snprintf(
			out->text, sizeof(out->text),
			"%s (%d, %llu in %llu ns, burst %llu): key %u admitted "
			"%.0f from call %llu to %llu in %llu ns, and %.1f may "
			"be",
			h->name, h->class, (unsigned long long)h->limit,
			(unsigned long long)h->period_ns,
			(unsigned long long)h->burst, a->key, sum,
			(unsigned long long)a->begun,
			(unsigned long long)b->begun,
			(unsigned long long)elapsed(h, a, stamp_hi, ended_ms,
						    ended),
			bound);
		return true;
	}
	return false;
}

/* Costs of what may have been taken, before the i-th call. */
static double *sums_before(struct limiter_call **calls, size_t n)
{
	double *sums = sim_alloc((n + 1) * sizeof(*sums));
	size_t i;

	for (i = 0; i < n; i++)
		sums[i + 1] =
			sums[i] + (may_be_taken(calls[i]) ? calls[i]->cost : 0);
	return sums;
}

static double refilled(const struct limiter_history *h,
		       const struct limiter_call *d, uint64_t from_hi)
{
	return d->stamp_lo > from_hi ? refill(h, d->stamp_lo - from_hi) : 0;
}

/* What owners that ended before `d`, and not before `from_ns`, may have lent
 * and nobody spent. */
static double lent(const struct limiter_history *h,
		   const struct limiter_call *d, uint64_t from_ns)
{
	double sum = 0;
	size_t i;

	for (i = 0; h->lease > 0 && i < h->leads_n; i++)
		if (h->leads[i] >= from_ns && h->leads[i] <= d->stamp_hi)
			sum += (double)h->lease;
	return sum;
}

/* Of them the permits that are missing since a lease was booked. */
static double lent_most(const struct limiter_history *h,
			struct limiter_call **calls, size_t end,
			const double *sums, const struct limiter_call *d)
{
	double most = 0;
	double taken;
	size_t from;
	size_t i;

	for (i = 0; h->lease > 0 && i < h->leads_n; i++) {
		if (h->leads[i] > d->stamp_hi)
			continue;
		for (from = 0;
		     from < end && calls[from]->stamp_hi < h->leads[i]; from++)
			;
		taken = lent(h, d, h->leads[i]) + sums[end] - sums[from] -
			refilled(h, d, h->leads[i]);
		most = taken > most ? taken : most;
	}
	return most;
}

/* What `d` was denied for must have been there: the most that can have been
 * missing, if all was taken that may have been. */
static bool denied_for_nothing(const struct limiter_history *h,
			       struct limiter_call **calls, size_t n,
			       const double *sums, const struct limiter_call *d,
			       struct breach *out)
{
	double most;
	double taken;
	size_t end = 0;
	size_t i;

	while (end < n && calls[end]->begun < d->ended)
		end++;
	most = lent_most(h, calls, end, sums, d);
	for (i = 0; i < end; i++) {
		if (!may_be_taken(calls[i]))
			continue;
		taken = sums[end] - sums[i] + lent(h, d, calls[i]->stamp_lo) -
			refilled(h, d, calls[i]->stamp_hi);
		most = taken > most ? taken : most;
	}
	/* A new owner starts every key empty. */
	for (i = 0; h->class == LIMITER_MEMORY && i < h->leads_n; i++) {
		if (h->leads[i] > d->stamp_hi)
			continue;
		taken = (double)h->burst + sums[end] -
			refilled(h, d, h->leads[i]);
		most = taken > most ? taken : most;
	}
	/* The class rounds nothing: what fits to the last permit is let in.
	 * Less than a nanosecond's share, more than a double's error. */
	if (most + d->cost > (double)h->burst + 1e-11)
		return false;
	(void)snprintf(out->invariant, sizeof(out->invariant), "denial");
	(void)snprintf(out->text, sizeof(out->text),
		       "%s: key %u, call %llu of %u permits was denied when at "
		       "most %.2f of %llu were taken",
		       h->name, d->key, (unsigned long long)d->begun, d->cost,
		       most, (unsigned long long)h->burst);
	return true;
}

static bool key_is_bad(struct limiter_history *h, struct limiter_call **calls,
		       size_t n, struct breach *out)
{
	double *sums = sums_before(calls, n);
	bool bad = false;
	size_t i;

	look_at_backs(h, calls, n);
	for (i = 0; i < n && !bad; i++) {
		if (was_taken(calls[i]))
			bad = too_many(h, calls, n, i, out);
		else if (calls[i]->end == CALL_DONE && !calls[i]->allowed &&
			 !calls[i]->reset && !h->forgets)
			bad = denied_for_nothing(h, calls, n, sums, calls[i],
						 out);
	}
	free(sums);
	return bad;
}

enum verdict limiter_history_check(struct limiter_history *h,
				   struct breach *out)
{
	struct limiter_call **calls = sim_alloc((h->n + 1) * sizeof(*calls));
	enum verdict v = VERDICT_GOOD;
	unsigned key;
	size_t n;
	size_t i;

	for (key = 0; key < h->keys && v == VERDICT_GOOD; key++) {
		n = 0;
		for (i = 0; i < h->n; i++)
			if (h->calls[i]->key == key)
				calls[n++] = h->calls[i];
		if (key_is_bad(h, calls, n, out))
			v = VERDICT_BAD;
	}
	free(calls);
	return v;
}
