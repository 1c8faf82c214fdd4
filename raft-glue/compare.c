/*
 * A record of CHANNEL_COMPARE; integers little endian.
 *
 *	offset
 *	0  1  kind: TELL (1), ASK (2)
 *	1  1  TELL: ranges that follow, STATE_RANGES. ASK: 0
 *	2  6  0
 *	8  8  index
 *
 * ASK, to who has not told of that index, ends here. TELL, to all when the own
 * state was hashed, and in answer to ASK while it is known, goes on with
 *
 *	16 16 hash of the state
 *	32    16 bytes per range: its hash
 */
#include "raft-glue/compare.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"

#define COMPARE_MAGIC 0x636d7072u

enum kind {
	KIND_TELL = 1,
	KIND_ASK = 2,
};

#define HEAD_BYTES 16u
#define TELL_BYTES \
	(HEAD_BYTES + COMPARE_HASH_SIZE + STATE_RANGES * COMPARE_HASH_SIZE)

/* Own hashes that are kept for who asks: a copy may take long to arrive. */
#define KEPT 4u

/* A copy that is on its way, or waits for the others' word. */
struct copy {
	uint64_t from;
	uint64_t index; /* 0: none. */
	bool here;
	uint64_t reach_ms; /* Until then who has no link may get one. */
	uint64_t until_ms;
	uint8_t state[COMPARE_HASH_SIZE];
	bool told[MEMBERS_MAX];
	uint8_t by[MEMBERS_MAX][COMPARE_HASH_SIZE];
};

struct compare {
	uint32_t magic;
	uint32_t shard;
	struct env *env;
	struct transport *t;
	struct compare_owner *owner;
	struct transport_sink sink;
	struct env_timer timer; /* All conclusions are drawn in it. */
	size_t members_n;
	size_t self; /* Place among them. */
	uint64_t members[MEMBERS_MAX];
	/* The last that each told, by place; the own one too. */
	struct compare_hash told[MEMBERS_MAX];
	bool open; /* The own one is being compared. */
	uint64_t until_ms;
	bool wrong; /* The owner is to be told, */
	struct detail why;
	struct compare_hash kept[KEPT];
	unsigned kept_next;
	struct copy copy;
	struct compare_stats stats;
};

static size_t majority(const struct compare *c)
{
	return c->members_n / 2 + 1;
}

/* ----------------------------------------------------------------- telling */

static void tell(struct compare *c, uint64_t to, const struct compare_hash *h)
{
	uint8_t rec[TELL_BYTES] = { KIND_TELL, STATE_RANGES };

	le_put64(rec + 8, h->index);
	memcpy(rec + HEAD_BYTES, h->state, COMPARE_HASH_SIZE);
	memcpy(rec + HEAD_BYTES + COMPARE_HASH_SIZE, h->ranges,
	       sizeof(h->ranges));
	/* One that is lost is missing from this comparison. */
	(void)transport_send(c->t, CHANNEL_COMPARE, c->shard, to, rec,
			     sizeof(rec), NULL, 0);
}

static void ask(struct compare *c, uint64_t to, uint64_t index)
{
	uint8_t rec[HEAD_BYTES] = { KIND_ASK };

	le_put64(rec + 8, index);
	(void)transport_send(c->t, CHANNEL_COMPARE, c->shard, to, rec,
			     sizeof(rec), NULL, 0);
}

/* ------------------------------------------------------------- conclusions */

static bool same(const uint8_t a[COMPARE_HASH_SIZE],
		 const uint8_t b[COMPARE_HASH_SIZE])
{
	return MUTANT(hashes_not_compared) ||
	       memcmp(a, b, COMPARE_HASH_SIZE) == 0;
}

/* Who told of the index at which we are. */
static bool has_told(const struct compare *c, size_t i)
{
	return c->told[i].index == c->told[c->self].index;
}

static size_t count_told(const struct compare *c)
{
	size_t n = 0;
	size_t i;

	for (i = 0; i < c->members_n; i++)
		n += has_told(c, i);
	return n;
}

/* How many told the same as the i-th. */
static size_t count_like(const struct compare *c, size_t i)
{
	size_t n = 0;
	size_t k;

	for (k = 0; k < c->members_n; k++)
		n += has_told(c, k) && same(c->told[k].state, c->told[i].state);
	return n;
}

/* One of a majority that agrees; NULL: there is none. */
static const struct compare_hash *agreed(const struct compare *c)
{
	size_t i;

	for (i = 0; i < c->members_n; i++)
		if (has_told(c, i) && count_like(c, i) >= majority(c))
			return &c->told[i];
	return NULL;
}

/* "3, 7": which ranges differ. */
static void name_ranges(const struct compare_hash *a,
			const struct compare_hash *b, char *out, size_t n)
{
	size_t at = 0;
	unsigned i;

	out[0] = '\0';
	for (i = 0; i < STATE_RANGES && at < n; i++)
		if (memcmp(a->ranges[i], b->ranges[i], COMPARE_HASH_SIZE) != 0)
			at += (size_t)snprintf(out + at, n - at, "%s%u",
					       at > 0 ? ", " : "", i);
	if (out[0] == '\0')
		(void)snprintf(out, n, "none");
}

/* Whether the i-th told another state; then, in which ranges. */
static bool told_other(const struct compare *c, size_t i,
		       const struct compare_hash *than, char *ranges, size_t n)
{
	if (!has_told(c, i) || same(c->told[i].state, than->state))
		return false;
	name_ranges(&c->told[i], than, ranges, n);
	return true;
}

static void conclude_differs(struct compare *c, const struct compare_hash *good)
{
	const struct compare_hash *own = &c->told[c->self];
	char ranges[STATE_RANGES * 4 + 1];
	size_t i;

	for (i = 0; i < c->members_n; i++) {
		if (!told_other(c, i, good, ranges, sizeof(ranges)))
			continue;
		c->stats.differences++;
		LOG_ERROR("replica_differs", F("shard", c->shard),
			  F("node", c->members[i]), F("index", own->index),
			  F("ranges", (const char *)ranges));
	}
	if (!told_other(c, c->self, good, ranges, sizeof(ranges)))
		return;
	c->wrong = true;
	c->why = (struct detail){ .text = "" };
	(void)detail_set(&c->why, RC_CORRUPT, NULL,
			 "a majority has another state at index %" PRIu64
			 " (ranges %s)",
			 own->index, ranges);
}

static void conclude_undecided(struct compare *c)
{
	const struct compare_hash *own = &c->told[c->self];
	char ranges[STATE_RANGES * 4 + 1];
	size_t i;

	for (i = 0; i < c->members_n; i++) {
		if (!told_other(c, i, own, ranges, sizeof(ranges)))
			continue;
		LOG_ERROR("replicas_undecided", F("shard", c->shard),
			  F("node", c->members[i]), F("index", own->index),
			  F("ranges", (const char *)ranges),
			  F("why", "two states differ, and no majority has one "
				   "of them: nothing is rebuilt"));
	}
}

/* No more is heard of the index at which we are. */
static void conclude(struct compare *c)
{
	const struct compare_hash *good = agreed(c);
	size_t told = count_told(c);

	c->open = false;
	c->stats.compared++;
	if (count_like(c, c->self) == c->members_n)
		c->stats.index = c->told[c->self].index;
	if (good != NULL) {
		c->stats.doubt = 0;
		conclude_differs(c, good);
	} else if (count_like(c, c->self) < told) {
		c->stats.undecided++;
		c->stats.doubt = c->told[c->self].index;
		conclude_undecided(c);
	}
}

static void judge_state(struct compare *c)
{
	const struct compare_hash *good = agreed(c);
	bool wrong = good != NULL && !same(good->state, c->told[c->self].state);

	if (wrong || count_told(c) == c->members_n ||
	    env_now_ms(c->env) >= c->until_ms)
		conclude(c);
}

/* ------------------------------------------------------------------ copies */

/* Will it still say something? */
static bool copy_waits_for(const struct compare *c, size_t i)
{
	return env_now_ms(c->env) < c->copy.reach_ms ||
	       transport_epoch(c->t, CHANNEL_COMPARE, c->members[i]) != 0;
}

static void count_copy(const struct compare *c, size_t *like, size_t *unlike,
		       size_t *silent)
{
	const struct copy *y = &c->copy;
	size_t i;

	*like = 1; /* Who sent it. */
	*unlike = 0;
	*silent = 0;
	for (i = 0; i < c->members_n; i++) {
		if (i == c->self || c->members[i] == y->from)
			continue;
		if (!y->told[i])
			*silent += copy_waits_for(c, i);
		else if (same(y->by[i], y->state) || MUTANT(copy_not_compared))
			++*like;
		else
			++*unlike;
	}
}

static void conclude_copy(struct compare *c, size_t like, size_t unlike)
{
	uint64_t index = c->copy.index;
	uint64_t from = c->copy.from;
	bool good = like > unlike;

	c->copy = (struct copy){ 0 };
	if (!good) {
		c->stats.refused++;
		LOG_ERROR("copy_differs", F("shard", c->shard), F("from", from),
			  F("index", index),
			  F("why", "another voter has another state at that "
				   "index"));
	} else if (like == 1) {
		c->stats.alone++;
		LOG_WARN("copy_unconfirmed", F("shard", c->shard),
			 F("from", from), F("index", index),
			 F("why", "no other voter told its state at that "
				  "index"));
	} else {
		c->stats.confirmed++;
	}
	c->owner->copied(c->owner, good ? RC_OK : RC_CORRUPT);
}

static void judge_copy(struct compare *c)
{
	size_t like;
	size_t unlike;
	size_t silent;

	count_copy(c, &like, &unlike, &silent);
	if (silent == 0 || env_now_ms(c->env) >= c->copy.until_ms)
		conclude_copy(c, like, unlike);
}

static void note_copy(struct compare *c, size_t place,
		      const struct compare_hash *h)
{
	struct copy *y = &c->copy;

	if (y->index == 0 || y->index != h->index)
		return;
	y->told[place] = true;
	memcpy(y->by[place], h->state, COMPARE_HASH_SIZE);
}

/* -------------------------------------------------------------------- time */

static void compare_arm(struct compare *c)
{
	uint64_t at = UINT64_MAX;

	if (c->wrong)
		at = env_now_ms(c->env);
	else if (c->open)
		at = c->until_ms;
	if (c->copy.here && c->copy.until_ms < at)
		at = c->copy.until_ms;
	if (c->copy.here && c->copy.reach_ms < at &&
	    env_now_ms(c->env) < c->copy.reach_ms)
		at = c->copy.reach_ms;
	if (at == UINT64_MAX)
		env_timer_stop(&c->timer);
	else
		env_timer_start(&c->timer, at);
}

/* Something is new. */
static void compare_look(struct compare *c)
{
	if (c->open || c->wrong || c->copy.here)
		env_timer_start(&c->timer, env_now_ms(c->env));
}

static void compare_due(struct env_timer *t)
{
	struct compare *c = CONTAINER_OF(t, struct compare, timer);

	CHECK_OBJ(c, COMPARE_MAGIC);
	if (c->open)
		judge_state(c);
	if (c->wrong) {
		c->wrong = false;
		c->owner->differs(c->owner, &c->why);
	}
	if (c->copy.here)
		judge_copy(c);
	compare_arm(c);
}

/* ----------------------------------------------------------------- hearing */

static void received_ask(struct compare *c, uint64_t node_id, uint64_t index)
{
	unsigned i;

	for (i = 0; i < KEPT; i++)
		if (c->kept[i].index == index) {
			tell(c, node_id, &c->kept[i]);
			return;
		}
}

static void received_tell(struct compare *c, size_t place, const uint8_t *p)
{
	struct compare_hash h = { .index = le_get64(p + 8) };

	memcpy(h.state, p + HEAD_BYTES, COMPARE_HASH_SIZE);
	memcpy(h.ranges, p + HEAD_BYTES + COMPARE_HASH_SIZE, sizeof(h.ranges));
	note_copy(c, place, &h);
	compare_look(c);
	/* An answer to an older question takes nothing back. */
	if (h.index < c->told[place].index)
		return;
	/* It is further: its word on where we are would be gone. */
	if (c->open && h.index > c->told[c->self].index && has_told(c, place))
		conclude(c);
	c->told[place] = h;
	compare_look(c);
}

static bool record_sane(const uint8_t *p, size_t n)
{
	static const uint8_t zero[6];

	if (n < HEAD_BYTES || memcmp(p + 2, zero, sizeof(zero)) != 0 ||
	    le_get64(p + 8) == 0)
		return false;
	if (p[0] == KIND_ASK)
		return p[1] == 0 && n == HEAD_BYTES;
	return p[0] == KIND_TELL && p[1] == STATE_RANGES && n == TELL_BYTES;
}

static void compare_received(struct transport_sink *k, uint64_t node_id,
			     uint64_t epoch, const uint8_t *p, size_t n)
{
	struct compare *c = CONTAINER_OF(k, struct compare, sink);
	size_t place;

	(void)epoch;
	CHECK_OBJ(c, COMPARE_MAGIC);
	for (place = 0; place < c->members_n; place++)
		if (c->members[place] == node_id)
			break;
	if (place == c->members_n || place == c->self)
		return;
	if (!record_sane(p, n))
		transport_drop(c->t, CHANNEL_COMPARE, node_id);
	else if (p[0] == KIND_ASK)
		received_ask(c, node_id, le_get64(p + 8));
	else
		received_tell(c, place, p);
}

/* Who is gone is not waited for. */
static void compare_changed(struct transport_sink *k, uint64_t node_id,
			    uint64_t epoch)
{
	struct compare *c = CONTAINER_OF(k, struct compare, sink);

	CHECK_OBJ(c, COMPARE_MAGIC);
	if (epoch != 0 && c->copy.index != 0)
		ask(c, node_id, c->copy.index);
	compare_look(c);
}

/* ------------------------------------------------------------------- calls */

void compare_is(struct compare *c, const struct compare_hash *h)
{
	size_t i;

	CHECK_OBJ(c, COMPARE_MAGIC);
	PRE(h->index > 0);
	if (c->open)
		conclude(c); /* Who has not told by now is left out. */
	c->told[c->self] = *h;
	c->kept[c->kept_next++ % KEPT] = *h;
	c->open = true;
	c->until_ms = env_now_ms(c->env) + COMPARE_WAIT_MS;
	for (i = 0; i < c->members_n; i++)
		if (i != c->self)
			tell(c, c->members[i], h);
	compare_look(c);
}

void compare_void(struct compare *c)
{
	CHECK_OBJ(c, COMPARE_MAGIC);
	c->open = false;
	c->wrong = false;
	c->told[c->self] = (struct compare_hash){ 0 };
	memset(c->kept, 0, sizeof(c->kept));
}

void compare_expect(struct compare *c, uint64_t from, uint64_t index)
{
	size_t i;

	CHECK_OBJ(c, COMPARE_MAGIC);
	PRE(index > 0);
	c->copy = (struct copy){ .from = from, .index = index };
	for (i = 0; i < c->members_n; i++) {
		if (i == c->self || c->members[i] == from)
			continue;
		note_copy(c, i, &c->told[i]);
		if (!c->copy.told[i])
			ask(c, c->members[i], index);
	}
}

void compare_copy(struct compare *c, const uint8_t state[COMPARE_HASH_SIZE])
{
	struct copy *y = &c->copy;

	CHECK_OBJ(c, COMPARE_MAGIC);
	PRE(y->index != 0);
	PRE(!y->here);
	y->here = true;
	y->until_ms = env_now_ms(c->env) + COMPARE_COPY_MS;
	y->reach_ms = env_now_ms(c->env) + COMPARE_REACH_MS;
	memcpy(y->state, state, COMPARE_HASH_SIZE);
	compare_look(c);
}

void compare_forget(struct compare *c)
{
	CHECK_OBJ(c, COMPARE_MAGIC);
	c->copy = (struct copy){ 0 };
}

void compare_stats(const struct compare *c, struct compare_stats *out)
{
	CHECK_OBJ(c, COMPARE_MAGIC);
	*out = c->stats;
}

bool compare_equal(const struct compare *c, uint64_t index)
{
	CHECK_OBJ(c, COMPARE_MAGIC);
	return !c->open && c->stats.index == index;
}

/* -------------------------------------------------------------------- life */

enum rc compare_new(struct env *env, struct transport *t,
		    struct compare_owner *owner, uint32_t shard,
		    struct compare **out)
{
	struct members *m = transport_members(t);
	struct compare *c = calloc(1, sizeof(*c));
	size_t i;

	if (c == NULL)
		return RC_NOMEM;
	c->magic = COMPARE_MAGIC;
	c->shard = shard;
	c->env = env;
	c->t = t;
	c->owner = owner;
	c->members_n = members_count(m);
	CHECK(c->members_n <= MEMBERS_MAX);
	for (i = 0; i < c->members_n; i++) {
		c->members[i] = members_at(m, i)->id;
		if (c->members[i] == members_self(m))
			c->self = i;
	}
	c->sink.received = compare_received;
	c->sink.changed = compare_changed;
	transport_listen(t, CHANNEL_COMPARE, shard, &c->sink);
	env_timer_init(&c->timer, env, compare_due);
	*out = c;
	return RC_OK;
}

void compare_free(struct compare *c)
{
	CHECK_OBJ(c, COMPARE_MAGIC);
	env_timer_stop(&c->timer);
	transport_listen(c->t, CHANNEL_COMPARE, c->shard, NULL);
	c->magic = 0;
	free(c);
}
