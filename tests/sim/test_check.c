/*
 * The judge of histories is a program too: here it is told stories, true ones
 * and ones with a planted anomaly of each kind that a cluster could show.
 */
#include "node/base/check.h"
#include "tests/lib/runner.h"
#include "tests/sim/check.h"

#define MS     UINT64_C(1000000)
#define SECOND (1000 * MS)
#define KEYS   4u
/* Longer than a tombstone stays. */
#define DAY (86400 * SECOND)

struct story {
	struct kv_history *h;
	uint64_t now;   /* Orders everything. */
	uint64_t stamp; /* The owner's clock. */
};

static struct story begin(void)
{
	return (struct story){ .h = kv_history_new("kv/o", KEYS) };
}

static struct kv_call *ask(struct story *s, enum kv_kind kind, uint32_t ops)
{
	struct kv_call *c = kv_history_add(s->h, ops);

	c->kind = kind;
	if (ops == 1)
		c->ops[0].kind = kind;
	c->begun = ++s->now;
	c->stamp_lo = s->stamp;
	c->end = CALL_UNKNOWN;
	return c;
}

static void end(struct story *s, struct kv_call *c, enum call_end how)
{
	c->end = how;
	c->ended = ++s->now;
	c->stamp_hi = s->stamp;
}

static struct kv_value bytes(uint64_t v)
{
	return (struct kv_value){ KV_BYTES, v };
}

static struct kv_op op_put(uint16_t key, uint64_t v, uint64_t rev)
{
	return (struct kv_op){
		.kind = KV_PUT, .key = key, .value = bytes(v), .rev = rev
	};
}

static struct kv_call *ask_put(struct story *s, uint16_t key, uint64_t v)
{
	struct kv_call *c = ask(s, KV_PUT, 1);

	c->ops[0] = op_put(key, v, 0);
	return c;
}

static void put(struct story *s, uint16_t key, uint64_t v, uint64_t rev)
{
	struct kv_call *c = ask_put(s, key, v);

	c->ops[0].rev = rev;
	end(s, c, CALL_DONE);
}

static void put_ttl(struct story *s, uint16_t key, uint64_t v, uint64_t ttl,
		    uint64_t rev)
{
	struct kv_call *c = ask_put(s, key, v);

	c->ops[0].rev = rev;
	c->ops[0].ttl_ns = ttl;
	end(s, c, CALL_DONE);
}

static void answer_get(struct story *s, struct kv_call *c, uint64_t v,
		       uint64_t rev)
{
	if (rev == 0) {
		c->why = KV_WHY_ABSENT;
		end(s, c, CALL_FAILED);
		return;
	}
	c->ops[0].value = bytes(v);
	c->ops[0].rev = rev;
	end(s, c, CALL_DONE);
}

static struct kv_call *ask_get(struct story *s, uint16_t key)
{
	struct kv_call *c = ask(s, KV_GET, 1);

	c->ops[0].key = key;
	return c;
}

static void get(struct story *s, uint16_t key, uint64_t v, uint64_t rev)
{
	answer_get(s, ask_get(s, key), v, rev);
}

static void absent(struct story *s, uint16_t key)
{
	get(s, key, 0, 0);
}

static struct kv_call *incr_keyed(struct story *s, uint64_t idem, int64_t sum,
				  uint64_t rev)
{
	struct kv_call *c = ask(s, KV_INCR, 1);

	c->ops[0].by = 1;
	c->ops[0].sum = sum;
	c->ops[0].rev = rev;
	c->idem = idem;
	c->args = 1;
	c->window_ns = 60 * SECOND;
	end(s, c, CALL_DONE);
	return c;
}

static void destroy(struct story *s, uint64_t rev)
{
	struct kv_call *c = ask(s, KV_DESTROY, 1);

	c->ops[0].rev = rev;
	end(s, c, CALL_DONE);
}

static void remove_key(struct story *s, uint16_t key, bool existed,
		       uint64_t rev)
{
	struct kv_call *c = ask(s, KV_DELETE, 1);

	c->ops[0].key = key;
	c->ops[0].existed = existed;
	c->ops[0].rev = rev;
	end(s, c, CALL_DONE);
}

static struct kv_call *ask_list(struct story *s)
{
	struct kv_call *c = ask(s, KV_LIST, 0);

	c->to = KEYS;
	c->limit = 100;
	return c;
}

static void item(struct kv_call *c, uint32_t at, uint16_t key, uint64_t v,
		 uint64_t rev)
{
	c->items[at] = (struct kv_item){ key, bytes(v), rev };
}

static void pass(struct story *s, uint64_t ns)
{
	s->stamp += ns;
}

static enum verdict verdict(struct story *s)
{
	struct breach why = { { 0 }, { 0 } };
	enum verdict v = kv_history_check(s->h, &why);

	kv_history_free(s->h);
	return v;
}

#define GOOD(s) EXPECT_INT(verdict(s), VERDICT_GOOD)
#define BAD(s)  EXPECT_INT(verdict(s), VERDICT_BAD)

/* ------------------------------------------------------------ order in time */

TEST(what_happened_one_after_the_other_is_right)
{
	struct story s = begin();

	absent(&s, 0);
	put(&s, 0, 7, 1);
	get(&s, 0, 7, 1);
	put(&s, 1, 8, 2);
	remove_key(&s, 0, true, 3);
	absent(&s, 0);
	get(&s, 1, 8, 2);
	GOOD(&s);
}

TEST(a_write_that_is_gone_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	absent(&s, 0);
	BAD(&s);
}

TEST(what_was_deleted_and_is_back_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	remove_key(&s, 0, true, 2);
	get(&s, 0, 7, 1);
	BAD(&s);
}

/* Both reads lie within the write, and one after the other. */
TEST(a_read_behind_another_that_saw_more_is_found)
{
	struct story s = begin();
	struct kv_call *w;

	put(&s, 0, 7, 1);
	w = ask_put(&s, 0, 8);
	get(&s, 0, 8, 2);
	get(&s, 0, 7, 1);
	w->ops[0].rev = 2;
	end(&s, w, CALL_DONE);
	BAD(&s);
}

TEST(two_reads_side_by_side_may_see_more_and_less)
{
	struct story s = begin();
	struct kv_call *late;
	struct kv_call *w;

	put(&s, 0, 7, 1);
	w = ask_put(&s, 0, 8);
	late = ask_get(&s, 0);
	get(&s, 0, 8, 2);
	answer_get(&s, late, 7, 1);
	w->ops[0].rev = 2;
	end(&s, w, CALL_DONE);
	GOOD(&s);
}

TEST(a_revision_that_is_given_twice_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	put(&s, 1, 8, 1);
	BAD(&s);
}

TEST(a_write_that_nobody_asked_for_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	put(&s, 1, 8, 3);
	BAD(&s);
}

/* Two objects' worth of order in one: x before y, y before x. */
TEST(writes_that_two_readers_see_in_two_orders_are_found)
{
	struct story s = begin();
	struct kv_call *x = ask_put(&s, 0, 7);
	struct kv_call *y = ask_put(&s, 1, 8);

	get(&s, 0, 7, 1);
	absent(&s, 1);
	get(&s, 1, 8, 1);
	absent(&s, 0);
	x->ops[0].rev = 1;
	y->ops[0].rev = 2;
	end(&s, x, CALL_DONE);
	end(&s, y, CALL_DONE);
	BAD(&s);
}

TEST(a_value_of_another_revision_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	put(&s, 0, 8, 2);
	get(&s, 0, 7, 2);
	BAD(&s);
}

TEST(a_delete_that_did_not_find_what_was_there_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	remove_key(&s, 0, false, 1);
	BAD(&s);
}

TEST(a_conflict_that_was_none_is_found)
{
	struct story s;
	struct kv_call *c;
	int right;

	for (right = 1; right >= 0; right--) {
		s = begin();
		put(&s, 0, 7, 1);
		c = ask_put(&s, 0, 8);
		c->ops[0].has_if_rev = true;
		c->ops[0].if_rev = right ? 5 : 1;
		c->why = KV_WHY_IF_REV;
		c->why_rev = 1;
		end(&s, c, CALL_FAILED);
		EXPECT_INT(verdict(&s), right ? VERDICT_GOOD : VERDICT_BAD);
	}
}

/* --------------------------------------------------------- many keys at once
 */

TEST(a_list_of_two_moments_is_found)
{
	struct story s = begin();
	struct kv_call *l;

	put(&s, 0, 1, 1);
	put(&s, 1, 2, 2);
	l = ask_list(&s);
	put(&s, 0, 3, 3);
	put(&s, 1, 4, 4);
	kv_call_items(l, 2);
	item(l, 0, 0, 1, 1);
	item(l, 1, 1, 4, 4);
	end(&s, l, CALL_DONE);
	BAD(&s);
}

TEST(a_list_that_leaves_out_a_key_is_found)
{
	struct story s = begin();
	struct kv_call *l;

	put(&s, 0, 1, 1);
	put(&s, 1, 2, 2);
	l = ask_list(&s);
	kv_call_items(l, 1);
	item(l, 0, 1, 2, 2);
	end(&s, l, CALL_DONE);
	BAD(&s);
}

TEST(a_list_that_promises_more_than_there_is_is_found)
{
	struct story s = begin();
	struct kv_call *l;

	put(&s, 0, 1, 1);
	l = ask_list(&s);
	l->limit = 1;
	l->more = true;
	kv_call_items(l, 1);
	item(l, 0, 0, 1, 1);
	end(&s, l, CALL_DONE);
	BAD(&s);
}

static struct kv_call *ask_two(struct story *s)
{
	struct kv_call *c = ask(s, KV_BATCH, 2);

	c->ops[0] = op_put(0, 7, 0);
	c->ops[1] = op_put(1, 8, 0);
	return c;
}

static void done_two(struct story *s, struct kv_call *c)
{
	c->ops[0].rev = 1;
	c->ops[1].rev = 2;
	end(s, c, CALL_DONE);
}

TEST(half_a_batch_is_found)
{
	struct story s = begin();
	struct kv_call *c = ask_two(&s);

	get(&s, 0, 7, 1);
	absent(&s, 1);
	done_two(&s, c);
	BAD(&s);
}

/* Nobody knows whether it happened; but a part of it alone cannot have. */
TEST(half_a_batch_without_an_answer_is_found)
{
	struct story s = begin();

	(void)ask_two(&s);
	absent(&s, 0);
	get(&s, 1, 8, 2);
	absent(&s, 0);
	BAD(&s);
}

TEST(what_a_refused_batch_has_left_is_found)
{
	struct story s = begin();
	struct kv_call *c = ask_two(&s);

	c->ops[1].has_if_rev = true;
	c->ops[1].if_rev = 9;
	c->why = KV_WHY_IF_REV;
	c->why_op = 1;
	end(&s, c, CALL_FAILED);
	get(&s, 0, 7, 1);
	BAD(&s);
}

/* ---------------------------------------------------------------- unknown */

TEST(an_unknown_write_that_comes_and_goes_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	(void)ask_put(&s, 0, 8);
	get(&s, 0, 8, 2);
	get(&s, 0, 7, 1);
	BAD(&s);
}

TEST(an_unknown_write_that_happened_twice_is_found)
{
	struct story s = begin();

	(void)ask_put(&s, 0, 7);
	get(&s, 0, 7, 1);
	put(&s, 0, 8, 2);
	get(&s, 0, 7, 3);
	BAD(&s);
}

/* Its end is the moment from which on nothing of it can be under way. */
TEST(an_unknown_write_after_its_end_is_found)
{
	struct story s;
	struct kv_call *c;
	int right;

	for (right = 1; right >= 0; right--) {
		s = begin();
		put(&s, 0, 6, 1);
		c = ask_put(&s, 0, 7);
		get(&s, 0, 6, 1);
		if (!right)
			end(&s, c, CALL_UNKNOWN);
		put(&s, 1, 9, 2);
		get(&s, 0, 6, 1);
		get(&s, 0, 7, 3);
		EXPECT_INT(verdict(&s), right ? VERDICT_GOOD : VERDICT_BAD);
	}
}

TEST(a_refused_write_that_is_seen_is_found)
{
	struct story s = begin();

	end(&s, ask_put(&s, 0, 7), CALL_REFUSED);
	get(&s, 0, 7, 1);
	BAD(&s);
}

/* Two unknown ones of which only one can have been first. */
TEST(unknown_writes_in_an_order_that_cannot_be_are_found)
{
	struct story s = begin();
	struct kv_call *a = ask_put(&s, 0, 7);

	end(&s, a, CALL_UNKNOWN);
	(void)ask_put(&s, 0, 8);
	get(&s, 0, 8, 1);
	get(&s, 0, 7, 2);
	BAD(&s);
}

/* ----------------------------------------------------------------- expiry */

TEST(what_expires_before_its_time_is_found)
{
	struct story s = begin();

	put_ttl(&s, 0, 7, SECOND, 1);
	pass(&s, SECOND / 2);
	absent(&s, 0);
	BAD(&s);
}

TEST(what_outlives_its_time_is_found)
{
	struct story s = begin();

	put_ttl(&s, 0, 7, SECOND, 1);
	pass(&s, 2 * SECOND);
	get(&s, 0, 7, 1);
	BAD(&s);
}

/* In the moment in which both may be: gone once is gone for good. */
TEST(what_expired_and_is_back_is_found)
{
	struct story s;
	struct kv_call *c;
	int back;

	for (back = 0; back < 2; back++) {
		s = begin();
		c = ask_put(&s, 0, 7);
		c->ops[0].ttl_ns = SECOND;
		c->ops[0].rev = 1;
		pass(&s, SECOND / 2);
		end(&s, c, CALL_DONE);
		pass(&s, 3 * SECOND / 4);
		absent(&s, 0);
		if (back)
			get(&s, 0, 7, 1);
		EXPECT_INT(verdict(&s), back ? VERDICT_BAD : VERDICT_GOOD);
	}
}

/* The read that finds the key gone may come behind a write that was open all
 * the while, and found it there. */
TEST(a_write_before_the_read_that_shows_the_end_is_right)
{
	struct story s = begin();
	struct kv_call *w;

	put_ttl(&s, 0, 7, 32 * MS, 1);
	pass(&s, 30 * MS);
	w = ask_put(&s, 0, 8);
	w->ops[0].has_if_rev = true;
	w->ops[0].if_rev = 1;
	w->ops[0].ttl_ns = 9 * MS;
	w->ops[0].rev = 2;
	pass(&s, 40 * MS);
	absent(&s, 0);
	put(&s, 1, 9, 3);
	pass(&s, 200 * MS);
	end(&s, w, CALL_DONE);
	GOOD(&s);
}

/* -------------------------------------------------- destroyed, and keys */

TEST(what_is_left_of_a_destroyed_object_is_found)
{
	struct story s = begin();

	put(&s, 0, 7, 1);
	destroy(&s, 2);
	get(&s, 0, 7, 1);
	BAD(&s);
}

TEST(revisions_that_begin_anew_too_early_are_found)
{
	struct story s;
	int late;

	for (late = 0; late < 2; late++) {
		s = begin();
		put(&s, 0, 7, 1);
		destroy(&s, 2);
		pass(&s, late ? 2 * DAY : SECOND);
		put(&s, 0, 8, 1);
		EXPECT_INT(verdict(&s), late ? VERDICT_GOOD : VERDICT_BAD);
	}
}

TEST(a_key_that_is_forgotten_within_its_window_is_found)
{
	struct story s;
	int late;

	for (late = 0; late < 2; late++) {
		s = begin();
		(void)incr_keyed(&s, 5, 1, 1);
		pass(&s, (late ? 61 : 59) * SECOND);
		(void)incr_keyed(&s, 5, 2, 2);
		EXPECT_INT(verdict(&s), late ? VERDICT_GOOD : VERDICT_BAD);
	}
}

TEST(a_key_that_is_answered_for_other_arguments_is_found)
{
	struct story s = begin();

	(void)incr_keyed(&s, 5, 1, 1);
	incr_keyed(&s, 5, 1, 1)->args = 2;
	BAD(&s);
}

/* The first try has no answer; the second says what it did. */
TEST(a_key_that_counts_though_its_first_try_happened_is_found)
{
	struct story s;
	int twice;

	for (twice = 0; twice < 2; twice++) {
		s = begin();
		incr_keyed(&s, 5, 0, 0)->end = CALL_UNKNOWN;
		(void)incr_keyed(&s, 6, twice ? 2 : 1, twice ? 2 : 1);
		(void)incr_keyed(&s, 5, twice ? 3 : 2, twice ? 3 : 2);
		EXPECT_INT(verdict(&s), twice ? VERDICT_BAD : VERDICT_GOOD);
	}
}

/* --------------------------------------------------------------- limiters */

struct limits {
	struct limiter_history *h;
	uint64_t now;
	uint64_t ms;
};

/* Ten a second, and five at once. */
static struct limits limits(enum limiter_class class, uint64_t lease)
{
	return (struct limits){ .h = limiter_history_new("rate_limiter/l",
							 class, 10, SECOND, 5,
							 2, false, lease) };
}

static struct limiter_call *check(struct limits *s, uint16_t key, bool allowed)
{
	struct limiter_call *c = limiter_history_add(s->h);

	c->key = key;
	c->cost = 1;
	c->take = true;
	c->allowed = allowed;
	c->begun = ++s->now;
	c->ended = ++s->now;
	c->begun_ms = s->ms;
	c->ended_ms = s->ms;
	c->stamp_lo = s->ms * MS;
	c->stamp_hi = s->ms * MS;
	c->end = CALL_DONE;
	return c;
}

static void take(struct limits *s, uint16_t key, unsigned n)
{
	while (n-- > 0)
		(void)check(s, key, true);
}

static enum verdict limits_verdict(struct limits *s)
{
	struct breach why = { { 0 }, { 0 } };
	enum verdict v = limiter_history_check(s->h, &why);

	limiter_history_free(s->h);
	return v;
}

#define LIMITS_GOOD(s) EXPECT_INT(limits_verdict(s), VERDICT_GOOD)
#define LIMITS_BAD(s)  EXPECT_INT(limits_verdict(s), VERDICT_BAD)

TEST(as_many_as_may_be_are_right)
{
	struct limits s = limits(LIMITER_COMMITTED, 0);

	take(&s, 0, 5);
	(void)check(&s, 0, false);
	take(&s, 1, 5);
	s.ms += 300;
	take(&s, 0, 3);
	(void)check(&s, 0, false);
	LIMITS_GOOD(&s);
}

TEST(one_too_many_is_found)
{
	struct limits s = limits(LIMITER_COMMITTED, 0);

	take(&s, 0, 6);
	LIMITS_BAD(&s);
}

/* A bucket that is full again too early, as after a failover. */
TEST(a_second_bucket_is_found)
{
	struct limits s = limits(LIMITER_LEASED, 1);

	take(&s, 0, 5);
	s.ms += 100;
	limiter_history_lead(s.h, s.ms * MS);
	take(&s, 0, 5);
	LIMITS_BAD(&s);
}

/* All that may be let in at one moment of an owner's clock; the world's stands
 * still. */
static void take_at(struct limits *s, uint64_t stamp_ms, unsigned n)
{
	struct limiter_call *c;

	while (n-- > 0) {
		c = check(s, 0, true);
		c->stamp_lo = stamp_ms * MS;
		c->stamp_hi = stamp_ms * MS;
	}
}

/* An owner lets in 5 at 0 and 5 at 500 ms, and another whose clock begins at
 * 100 ms lets in 5 at 600 and 5 at 1100 ms: of their clocks 500 and 1000 ms
 * have passed. How long the first one was there still tells nothing. */
TEST(time_that_passes_twice_fills_twice)
{
	static const struct {
		enum limiter_class class;
		uint64_t until_ms; /* 0: it is not told. */
		unsigned last;
		enum verdict v;
	} cases[] = {
		{ LIMITER_LEASED, 500, 5, VERDICT_GOOD },
		{ LIMITER_LEASED, 500, 6, VERDICT_BAD },
		{ LIMITER_LEASED, 900, 5, VERDICT_GOOD },
		{ LIMITER_LEASED, 900, 6, VERDICT_BAD },
		{ LIMITER_LEASED, 0, 5, VERDICT_BAD },
		{ LIMITER_MEMORY, 500, 5, VERDICT_GOOD },
		{ LIMITER_COMMITTED, 500, 5, VERDICT_BAD },
	};
	struct limits s;
	size_t i;

	for (i = 0; i < ARRAY_LEN(cases); i++) {
		s = limits(cases[i].class, 1);
		take_at(&s, 0, 5);
		take_at(&s, 500, 5);
		if (cases[i].until_ms > 0)
			limiter_history_back(s.h, s.now, cases[i].until_ms * MS,
					     100 * MS);
		take_at(&s, 600, 5);
		take_at(&s, 1100, cases[i].last);
		EXPECT_INT(limits_verdict(&s), cases[i].v);
	}
}

/* Before the window that is looked at, it fills nothing. */
TEST(time_that_passed_twice_before_fills_nothing)
{
	struct limits s = limits(LIMITER_LEASED, 1);

	take_at(&s, 500, 5);
	limiter_history_back(s.h, s.now, 500 * MS, 0);
	take_at(&s, 2000, 6);
	LIMITS_BAD(&s);
}

TEST(a_denial_for_nothing_is_found)
{
	struct limits s = limits(LIMITER_COMMITTED, 0);

	take(&s, 0, 3);
	(void)check(&s, 0, false);
	LIMITS_BAD(&s);
}

TEST(a_bucket_that_is_not_filled_again_is_found)
{
	struct limits s = limits(LIMITER_COMMITTED, 0);

	take(&s, 0, 5);
	s.ms += 1000;
	(void)check(&s, 0, false);
	LIMITS_BAD(&s);
}

/* What was lent to an owner that is gone may be missing, and no more. */
TEST(more_that_is_lost_than_was_lent_is_found)
{
	struct limits s;
	unsigned lost;

	for (lost = 1; lost <= 2; lost++) {
		s = limits(LIMITER_LEASED, 1);
		take(&s, 0, 5 - lost);
		limiter_history_lead(s.h, s.ms * MS);
		(void)check(&s, 0, false);
		EXPECT_INT(limits_verdict(&s),
			   lost == 1 ? VERDICT_GOOD : VERDICT_BAD);
	}
}

/* Whether it took one nobody knows: for a denial it may have. */
TEST(an_unknown_permit_explains_one_denial)
{
	struct limits s;
	unsigned taken;

	for (taken = 3; taken <= 4; taken++) {
		s = limits(LIMITER_COMMITTED, 0);
		check(&s, 0, true)->end = CALL_UNKNOWN;
		take(&s, 0, taken);
		(void)check(&s, 0, false);
		EXPECT_INT(limits_verdict(&s),
			   taken == 4 ? VERDICT_GOOD : VERDICT_BAD);
	}
}
