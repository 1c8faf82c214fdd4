/*
 * compare: what a hostile peer may say on the channel of states, to a voter of
 * three that hashes its own and takes copies. The input is steps: a byte that
 * says what happens, and for a record its length, doubled, and its bytes. What
 * one peer says is never a majority.
 */
#include <string.h>

#include "node/base/limits.h"
#include "raft-glue/compare.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/hand.h"

#define SELF       1u
#define PEER       2u
#define TELL_BYTES (32u + STATE_RANGES * COMPARE_HASH_SIZE)

enum step {
	STEP_RECORD,
	STEP_TELL, /* A good one, of the index in the next byte. */
	STEP_IS,
	STEP_EXPECT,
	STEP_COPY,
	STEP_FORGET,
	STEP_VOID,
	STEP_WAIT,
	STEP_LINK,
	STEPS,
};

static struct hand hand;
static struct compare *c;
static struct transport_sink *sink;
static uint64_t epoch;
static bool expecting;
static bool here;
static struct member members[] = { { .id = 1 }, { .id = 2 }, { .id = 3 } };

/* ---- the transport ---- */

void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t shard, struct transport_sink *k)
{
	(void)t;
	MUST(ch == CHANNEL_COMPARE);
	MUST(shard == 3);
	sink = k;
}

enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t shard, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n)
{
	(void)t;
	(void)head;
	(void)body;
	MUST(ch == CHANNEL_COMPARE);
	MUST(shard == 3);
	MUST(node_id == 2 || node_id == 3);
	MUST(head_n == 16 || head_n == TELL_BYTES);
	MUST(body_n == 0);
	return epoch != 0 && node_id == PEER ? RC_OK : RC_NOT_FOUND;
}

uint64_t transport_epoch(const struct transport *t, enum transport_channel ch,
			 uint64_t node_id)
{
	(void)t;
	(void)ch;
	return node_id == PEER ? epoch : 0;
}

void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id)
{
	(void)t;
	(void)ch;
	MUST(node_id == PEER);
}

struct members *transport_members(struct transport *t)
{
	return (void *)t;
}

size_t members_count(const struct members *m)
{
	(void)m;
	return 3;
}

const struct member *members_at(const struct members *m, size_t i)
{
	(void)m;
	MUST(i < 3);
	return &members[i];
}

uint64_t members_self(const struct members *m)
{
	(void)m;
	return SELF;
}

/* ---- the owner ---- */

static void differs(struct compare_owner *o, const struct detail *why)
{
	(void)o;
	(void)why;
	MUST(false);
}

static void copied(struct compare_owner *o, enum rc rc)
{
	(void)o;
	MUST(rc == RC_OK || rc == RC_CORRUPT);
	MUST(expecting);
	MUST(here);
	expecting = false;
	here = false;
}

static struct compare_owner owner = { differs, copied };

/* In an allocation of its own. */
static void record(const uint8_t *p, size_t n)
{
	uint8_t *copy = malloc(n > 0 ? n : 1);

	MUST(copy != NULL);
	memcpy(copy, p, n);
	if (epoch != 0)
		sink->received(sink, PEER, epoch, copy, n);
	free(copy);
}

static void tell(uint8_t index, uint8_t what)
{
	uint8_t rec[TELL_BYTES] = { 1, STATE_RANGES };

	rec[8] = index;
	rec[16] = what;
	record(rec, sizeof(rec));
}

static uint8_t next(const uint8_t **p, size_t *n)
{
	if (*n == 0)
		return 0;
	--*n;
	return *(*p)++;
}

static void step(enum step what, const uint8_t **p, size_t *n)
{
	struct compare_hash h = { .index = 0 };
	size_t len;

	switch (what) {
	case STEP_RECORD:
		len = 2 * (size_t)next(p, n);
		len = len < *n ? len : *n;
		record(*p, len);
		*p += len;
		*n -= len;
		break;
	case STEP_TELL:
		h.index = next(p, n);
		tell((uint8_t)h.index, next(p, n));
		break;
	case STEP_IS:
		h.index = 1 + (uint64_t)next(p, n);
		compare_is(c, &h);
		break;
	case STEP_EXPECT:
		compare_expect(c, PEER + next(p, n) % 2,
			       1 + (uint64_t)next(p, n));
		expecting = true;
		here = false;
		break;
	case STEP_COPY:
		if (!expecting || here)
			break;
		here = true;
		h.state[0] = next(p, n);
		compare_copy(c, h.state);
		break;
	case STEP_FORGET:
		compare_forget(c);
		expecting = false;
		here = false;
		break;
	case STEP_VOID:
		compare_void(c);
		break;
	case STEP_WAIT:
		hand_advance(&hand, 700);
		break;
	case STEP_LINK:
		epoch = epoch == 0 ? 9 : 0;
		sink->changed(sink, PEER, epoch);
		break;
	case STEPS:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static int any; /* What stands for `struct transport`. */

	hand_init(&hand);
	epoch = 9;
	expecting = false;
	here = false;
	MUST(compare_new(&hand.env, (void *)&any, &owner, 3, &c) == RC_OK);
	while (n > 0)
		step((enum step)(next(&p, &n) % STEPS), &p, &n);
	hand_advance(&hand, COMPARE_WAIT_MS);
	hand_advance(&hand, COMPARE_WAIT_MS);
	MUST(!here);
	MUST(hand_timers(&hand) == 0);
	compare_free(c);
	MUST(sink == NULL);
	return 0;
}
