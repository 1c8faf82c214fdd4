/*
 * transport: what a hostile peer may send over its link. The input is one byte,
 * whose lowest bit says whether the peer greets as it should first, then
 * frames: a length of two bytes, little endian, and as many bytes (or what is
 * left). No record is heard from who has not greeted, none lies outside its
 * frame, none comes after the connection was ended.
 */
#include <string.h>

#include "node/base/limits.h"
#include "raft-glue/le.h"
#include "raft-glue/transport.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/hand.h"

#define PEER 2u

/* ---- members, of whom one is believed ---- */

static const struct member both[2] = { { .id = 1 }, { .id = PEER } };
static int none; /* What stands for `struct members`. */

static struct {
	void (*done)(void *arg, uint64_t node_id);
	void *arg;
	unsigned checked;
} note;

size_t members_count(const struct members *m)
{
	(void)m;
	return 2;
}

const struct member *members_at(const struct members *m, size_t i)
{
	(void)m;
	return &both[i];
}

uint64_t members_self(const struct members *m)
{
	(void)m;
	return 1;
}

void members_greeting(const struct members *m, struct greeting *out)
{
	(void)m;
	*out = (struct greeting){ .protocol = TRANSPORT_PROTOCOL,
				  .node_id = 1,
				  .boot = 1 };
}

/* The rest of the greeting is for members.c to look at. */
enum rc members_check(const struct members *m, uint64_t node_id,
		      const struct greeting *g, struct detail *why)
{
	(void)m;
	MUST(node_id == PEER);
	note.checked++;
	if (g->protocol != TRANSPORT_PROTOCOL || g->node_id != PEER)
		return detail_set(why, RC_FOREIGN, NULL, "not the peer");
	return RC_OK;
}

bool members_current(const struct members *m, const struct greeting *g)
{
	(void)m;
	return g->node_id == PEER;
}

void members_note(struct members *m, const struct greeting *g,
		  void (*done)(void *arg, uint64_t node_id), void *arg)
{
	(void)m;
	MUST(g->node_id == PEER);
	MUST(note.done == NULL);
	note.done = done;
	note.arg = arg;
}

/* ---- the link ---- */

static struct {
	struct link link;
	uint64_t epoch;
	bool dropped;
	uint64_t sent;
} fake;

static enum rc fake_send(struct link *l, uint64_t node_id, const void *p,
			 size_t n)
{
	static uint8_t copy[LINK_MESSAGE_BYTES_MAX];

	(void)l;
	MUST(node_id == PEER);
	MUST(n >= 10);
	MUST(n <= sizeof(copy));
	MUST(!fake.dropped);
	memcpy(copy, p, n);
	fake.sent++;
	return RC_OK;
}

static uint64_t fake_epoch(struct link *l, uint64_t node_id)
{
	(void)l;
	(void)node_id;
	return fake.epoch;
}

static size_t fake_room(struct link *l, uint64_t node_id)
{
	(void)l;
	(void)node_id;
	return 4096;
}

static void fake_drop(struct link *l, uint64_t node_id)
{
	(void)l;
	MUST(node_id == PEER);
	MUST(!fake.dropped);
	fake.dropped = true;
}

static const struct link_ops fake_ops = { fake_send, fake_epoch, fake_room,
					  fake_drop };

/* ---- who listens ---- */

static struct hand hand;
static struct transport *t;
static bool greeted;
static const uint8_t *frame;
static size_t frame_n;

static void heard(struct transport_sink *k, uint64_t node_id, uint64_t epoch,
		  const uint8_t *p, size_t n)
{
	(void)k;
	MUST(greeted);
	MUST(!fake.dropped);
	MUST(node_id == PEER);
	MUST(epoch == fake.epoch);
	MUST(p >= frame);
	MUST(p <= frame + frame_n);
	MUST(n <= (size_t)(frame + frame_n - p));
	(void)transport_send(t, CHANNEL_ROUND, 0, PEER, p, n, p, n);
	if (n > 0 && p[0] == 0xff)
		transport_drop(t, CHANNEL_RAFT, PEER);
}

static void changed(struct transport_sink *k, uint64_t node_id, uint64_t epoch)
{
	(void)k;
	(void)node_id;
	MUST(greeted != (epoch != 0));
	greeted = epoch != 0;
}

static struct transport_sink sink = { heard, changed };
static struct transport_sink deaf = { heard, NULL };

/* In an allocation of its own. */
static void receive(const uint8_t *p, size_t n)
{
	uint8_t *copy = malloc(n > 0 ? n : 1);
	void (*done)(void *arg, uint64_t node_id) = note.done;

	MUST(copy != NULL);
	memcpy(copy, p, n);
	frame = copy;
	frame_n = n;
	fake.link.received(fake.link.arg, PEER, fake.epoch, copy, n);
	free(copy);
	/* The greeting is synced one frame later. */
	if (done != NULL) {
		note.done = NULL;
		done(note.arg, PEER);
	}
	hand_turn(&hand);
}

static void greet(void)
{
	uint8_t p[78] = { TRANSPORT_PROTOCOL, 1 };

	le_put32(p + 10, TRANSPORT_PROTOCOL);
	le_put64(p + 30, PEER);
	receive(p, sizeof(p));
	p[1] = 2;
	receive(p, 10);
	MUST(greeted);
}

static void frames(const uint8_t *p, size_t n)
{
	size_t len;

	while (n >= 2) {
		len = le_get16(p);
		p += 2;
		n -= 2;
		if (len > n)
			len = n;
		receive(p, len);
		p += len;
		n -= len;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct transport_stats s;
	struct link bulk = { .ops = &fake_ops };

	if (n == 0)
		return 0;
	hand_init(&hand);
	memset(&note, 0, sizeof(note));
	memset(&fake, 0, sizeof(fake));
	fake.link.ops = &fake_ops;
	greeted = false;
	MUST(transport_new(&hand.env, &fake.link, &bulk, (void *)&none, &t) ==
	     RC_OK);
	transport_listen(t, CHANNEL_RAFT, 0, &sink);
	transport_listen(t, CHANNEL_ROUND, 0, &deaf);
	transport_listen(t, CHANNEL_RAFT, 63, &deaf);
	fake.epoch = 9;
	fake.link.changed(fake.link.arg, PEER, fake.epoch);
	if ((p[0] & 1) != 0)
		greet();
	frames(p + 1, n - 1);
	transport_stats(t, &s);
	MUST(note.checked <= 1);
	MUST(s.broken + s.refused <= 1);
	MUST(fake.dropped == (s.broken + s.refused == 1));
	fake.epoch = 0;
	fake.link.changed(fake.link.arg, PEER, 0);
	MUST(!greeted);
	transport_discard(t);
	return 0;
}
