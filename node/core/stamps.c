/*
 * Records of CHANNEL_STAMP, little endian:
 *
 *	NOW: from an owner           ASK: from who was elected
 *	0  1  1                      0  1  2
 *	1  1  0                      1  3  0
 *	2  2  shards, n              4  4  shard
 *	4  12 n times: 4 shard,      8  8  term
 *	      8 its now
 *
 *	WORD: the answer to ASK
 *	0  1  3
 *	1  1  1: heard since the node started
 *	2  2  0
 *	4  4  shard
 *	8  8  the term of the question
 *	16 8  the time, as stamp_word has it
 */
#include "node/core/stamps.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "node/core/stamp.h"
#include "raft-glue/le.h"

enum stamps_kind {
	KIND_NOW = 1,
	KIND_ASK = 2,
	KIND_WORD = 3,
};

#define NOW_BYTES  4u
#define NOW_AT     12u
#define ASK_BYTES  16u
#define WORD_BYTES 24u

enum stamps_state { STAMPS_IDLE, STAMPS_ASKING, STAMPS_READY };

/* A word, and when it came. */
struct heard {
	struct stamp_word word;
	uint64_t at_ns;
	bool there;
};

struct shard_stamps {
	enum stamps_state state;
	uint64_t term;
	uint64_t heard_ns; /* The highest now that an owner told; 0: none. */
	uint64_t heard_at_ns;
	struct heard words[MEMBERS_MAX]; /* While asking; by place of member. */
};

struct stamps {
	struct env *env;
	struct transport *t;
	struct transport_sink sink;
	struct stamps_host host;
	uint32_t heartbeat_ms;
	uint32_t shards;
	size_t members_n;
	size_t self; /* Place among them. */
	uint64_t members[MEMBERS_MAX];
	struct env_timer beat;
	struct shard_stamps at[];
};

static size_t majority(const struct stamps *s)
{
	return s->members_n / 2 + 1;
}

static bool alone(const struct stamps *s)
{
	return s->members_n == 1;
}

static uint64_t add_ns(uint64_t ns, uint64_t more)
{
	return more > STAMP_MAX_NS - ns ? STAMP_MAX_NS : ns + more;
}

static void note_heard(struct stamps *s, struct shard_stamps *x, uint64_t ns)
{
	uint64_t now_ns = env_now_ns(s->env);

	if (ns == 0 || ns > STAMP_MAX_NS)
		return;
	/* The highest: one that was cut off and does not know it yet must not
	 * turn the time back. */
	if (x->heard_ns != 0 &&
	    add_ns(x->heard_ns, now_ns - x->heard_at_ns) > ns)
		return;
	x->heard_ns = ns;
	x->heard_at_ns = now_ns;
}

/* What this node has to say about the time of a shard. */
static struct stamp_word own_word(struct stamps *s, uint32_t shard)
{
	const struct shard_stamps *x = &s->at[shard];
	struct stamp_word w = { .heard = x->heard_ns != 0 };
	uint64_t last_ns = 0;
	uint64_t wall_ms = 0;

	if (w.heard) {
		w.ns = add_ns(x->heard_ns, env_now_ns(s->env) - x->heard_at_ns);
		return w;
	}
	s->host.last(s->host.arg, shard, &last_ns, &wall_ms);
	w.ns = stamp_offer(last_ns, wall_ms, env_wall_ms(s->env));
	return w;
}

/* ----------------------------------------------------------------- telling */

static void tell_all(struct stamps *s, const void *p, size_t n)
{
	size_t i;

	/* Lost ones are made good by the next heartbeat. */
	for (i = 0; i < s->members_n; i++)
		if (i != s->self)
			(void)transport_send(s->t, CHANNEL_STAMP, 0,
					     s->members[i], p, n, NULL, 0);
}

static void tell_now(struct stamps *s)
{
	uint8_t rec[NOW_BYTES + SHARDS_MAX * NOW_AT] = { KIND_NOW };
	uint8_t *at = rec + NOW_BYTES;
	uint16_t n = 0;
	uint32_t i;

	for (i = 0; i < s->shards; i++) {
		uint64_t now = s->host.now(s->host.arg, i);

		if (now == 0)
			continue;
		note_heard(s, &s->at[i], now);
		le_put32(at, i);
		le_put64(at + 4, now);
		at += NOW_AT;
		n++;
	}
	le_put16(rec + 2, n);
	if (n > 0)
		tell_all(s, rec, (size_t)(at - rec));
}

static void ask(struct stamps *s, uint32_t shard)
{
	uint8_t rec[ASK_BYTES] = { KIND_ASK };

	le_put32(rec + 4, shard);
	le_put64(rec + 8, s->at[shard].term);
	tell_all(s, rec, sizeof(rec));
}

static void beat(struct env_timer *t)
{
	struct stamps *s = CONTAINER_OF(t, struct stamps, beat);
	uint32_t i;

	tell_now(s);
	for (i = 0; i < s->shards; i++)
		if (s->at[i].state == STAMPS_ASKING)
			ask(s, i);
	env_timer_start(&s->beat, env_now_ms(s->env) + s->heartbeat_ms);
}

/* ----------------------------------------------------------------- hearing */

static size_t count_words(const struct shard_stamps *x)
{
	size_t n = 0;
	size_t i;

	for (i = 0; i < MEMBERS_MAX; i++)
		if (x->words[i].there)
			n++;
	return n;
}

static bool received_now(struct stamps *s, const uint8_t *p, size_t n)
{
	uint32_t count;
	uint32_t i;

	if (n < NOW_BYTES)
		return false;
	count = le_get16(p + 2);
	if (n != NOW_BYTES + (size_t)count * NOW_AT)
		return false;
	for (i = 0, p += NOW_BYTES; i < count; i++, p += NOW_AT) {
		uint32_t shard = le_get32(p);

		if (shard >= s->shards)
			return false;
		note_heard(s, &s->at[shard], le_get64(p + 4));
	}
	return true;
}

static bool received_ask(struct stamps *s, uint64_t node_id, const uint8_t *p,
			 size_t n)
{
	uint8_t rec[WORD_BYTES] = { KIND_WORD };
	struct stamp_word w;
	uint32_t shard;

	if (n != ASK_BYTES || le_get32(p + 4) >= s->shards)
		return false;
	shard = le_get32(p + 4);
	w = own_word(s, shard);
	rec[1] = w.heard;
	le_put32(rec + 4, shard);
	memcpy(rec + 8, p + 8, 8);
	le_put64(rec + 16, w.ns);
	/* A lost one is asked for again. */
	(void)transport_send(s->t, CHANNEL_STAMP, 0, node_id, rec, sizeof(rec),
			     NULL, 0);
	return true;
}

static bool received_word(struct stamps *s, size_t place, const uint8_t *p,
			  size_t n)
{
	struct shard_stamps *x;
	uint32_t shard;

	if (n != WORD_BYTES || p[1] > 1 || le_get32(p + 4) >= s->shards ||
	    le_get64(p + 16) > STAMP_MAX_NS)
		return false;
	shard = le_get32(p + 4);
	x = &s->at[shard];
	if (x->state != STAMPS_ASKING || le_get64(p + 8) != x->term)
		return true;
	x->words[place] = (struct heard){
		.word = { .heard = p[1] == 1, .ns = le_get64(p + 16) },
		.at_ns = env_now_ns(s->env),
		.there = true,
	};
	/* Our own word is always there. */
	if (count_words(x) + 1 < majority(s))
		return true;
	x->state = STAMPS_READY;
	s->host.ready(s->host.arg, shard, x->term);
	return true;
}

static void received(struct transport_sink *k, uint64_t node_id, uint64_t epoch,
		     const uint8_t *p, size_t n)
{
	struct stamps *s = CONTAINER_OF(k, struct stamps, sink);
	bool good = false;
	size_t place;

	(void)epoch;
	for (place = 0; place < s->members_n; place++)
		if (s->members[place] == node_id)
			break;
	if (place == s->members_n || place == s->self)
		return;
	switch (n > 0 ? p[0] : 0) {
	case KIND_NOW:
		good = received_now(s, p, n);
		break;
	case KIND_ASK:
		good = received_ask(s, node_id, p, n);
		break;
	case KIND_WORD:
		good = received_word(s, place, p, n);
		break;
	default:
		break;
	}
	if (!good)
		transport_drop(s->t, CHANNEL_STAMP, node_id);
}

/* -------------------------------------------------------------- elections */

void stamps_elected(struct stamps *s, uint32_t shard, uint64_t term)
{
	struct shard_stamps *x = &s->at[shard];

	PRE(shard < s->shards);
	memset(x->words, 0, sizeof(x->words));
	x->state = STAMPS_ASKING;
	x->term = term;
	if (!alone(s))
		ask(s, shard);
}

bool stamps_ready(struct stamps *s, uint32_t shard, uint64_t term,
		  uint64_t *base_ns)
{
	const struct shard_stamps *x = &s->at[shard];
	uint64_t now_ns = env_now_ns(s->env);
	struct stamp_word words[MEMBERS_MAX];
	size_t n = 0;
	size_t i;

	PRE(shard < s->shards);
	if (x->state != STAMPS_READY || x->term != term)
		return false;
	words[n++] = own_word(s, shard);
	if (MUTANT(stamp_own_clock)) {
		uint64_t last_ns;
		uint64_t wall_ms;

		s->host.last(s->host.arg, shard, &last_ns, &wall_ms);
		*base_ns = stamp_offer(last_ns, wall_ms, env_wall_ms(s->env));
		return true;
	}
	for (i = 0; i < s->members_n; i++) {
		if (!x->words[i].there)
			continue;
		words[n] = x->words[i].word;
		words[n].ns = add_ns(words[n].ns, now_ns - x->words[i].at_ns);
		n++;
	}
	*base_ns = stamp_choose(words, n, majority(s));
	return true;
}

void stamps_lost(struct stamps *s, uint32_t shard)
{
	PRE(shard < s->shards);
	s->at[shard].state = STAMPS_IDLE;
}

/* -------------------------------------------------------------------- life */

enum rc stamps_new(struct env *env, struct transport *t, uint32_t shards,
		   uint32_t heartbeat_ms, const struct stamps_host *host,
		   struct stamps **out)
{
	struct members *m = transport_members(t);
	struct stamps *s;
	size_t i;

	PRE(shards <= SHARDS_MAX);
	s = calloc(1, sizeof(*s) + shards * sizeof(s->at[0]));
	if (s == NULL)
		return RC_NOMEM;
	s->env = env;
	s->t = t;
	s->host = *host;
	s->shards = shards;
	s->heartbeat_ms = heartbeat_ms;
	s->members_n = members_count(m);
	CHECK(s->members_n <= MEMBERS_MAX);
	for (i = 0; i < s->members_n; i++) {
		s->members[i] = members_at(m, i)->id;
		if (s->members[i] == members_self(m))
			s->self = i;
	}
	s->sink.received = received;
	transport_listen(t, CHANNEL_STAMP, 0, &s->sink);
	env_timer_init(&s->beat, env, beat);
	if (!alone(s))
		env_timer_start(&s->beat, env_now_ms(env) + heartbeat_ms);
	*out = s;
	return RC_OK;
}

void stamps_free(struct stamps *s)
{
	env_timer_stop(&s->beat);
	transport_listen(s->t, CHANNEL_STAMP, 0, NULL);
	free(s);
}
