#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "tests/sim/trial.h"

#define BIT(f) (UINT64_C(1) << (f))

const char *const focus_names[FOCUSES] = {
	[FOCUS_NONE] = "any",        [FOCUS_LONE] = "lone",
	[FOCUS_QUIET] = "quiet",     [FOCUS_BULK] = "bulk",
	[FOCUS_DAMAGE] = "damage",   [FOCUS_CHAINS] = "chains",
	[FOCUS_KEYS] = "keys",       [FOCUS_VOTES] = "votes",
	[FOCUS_INSTALL] = "install", [FOCUS_OWNERS] = "owners",
	[FOCUS_LIMITS] = "limits",   [FOCUS_LOST] = "lost",
	[FOCUS_MOVES] = "moves",     [FOCUS_RIGHTS] = "rights",
	[FOCUS_STALE] = "stale",
};

static uint32_t between(struct prng *p, uint32_t least, uint32_t most)
{
	return (uint32_t)prng_between(p, least, most);
}

static bool chance(struct prng *p, uint32_t of_100)
{
	return prng_below(p, 100) < of_100;
}

static void draw_core(struct swarm *s, struct prng *p)
{
	struct core_config *c = &s->core;

	core_config_default(c);
	c->calls_max = 512;
	c->objects_max = chance(p, 50) ? between(p, 4, 12) : 1000;
	c->objects_bytes_max =
		chance(p, 50) ? between(p, 16, 256) << 10 : 64u << 20;
	c->object_idle_ms = chance(p, 60) ? between(p, 1, 60) : 5000;
	c->window_ms = chance(p, 20) ? 0 : between(p, 5, 150);
	c->window_bytes = chance(p, 30) ? between(p, 4, 256) << 10 : 32u << 20;
	c->log_bytes_max = (uint64_t)between(p, 4, 8) * TRIAL_SEGMENT;
	c->reserve_bytes = chance(p, 50) ? between(p, 1, 4) << 20 : 0;
	if (s->nodes == 1)
		return;
	c->election_ms = chance(p, 80) ? 300 : between(p, 150, 1000);
	c->heartbeat_ms = c->election_ms / 6;
	c->spread = chance(p, 70);
	c->trailing_entries =
		chance(p, 50) ? between(p, 0, 30) : between(p, 0, 400);
	c->checkpoint_bytes =
		chance(p, 60) ? between(p, 32, 512) << 10 : 16u << 20;
	/* Slower than followers learn what is committed: a healed cluster is
	 * level at times. */
	if (chance(p, 40))
		c->scrub_ms = between(p, 50, 2000) + 1000;
}

static void draw_net(struct swarm *s, struct prng *p)
{
	struct net_config *n = &s->net;

	n->delay_min_us = chance(p, 70) ? 50 : between(p, 50, 2000);
	n->delay_max_us = n->delay_min_us +
			  (chance(p, 70) ? 200 : between(p, 100, 20000));
	if (chance(p, 30)) {
		n->spike_per_10000 = between(p, 1, 200);
		n->spike_ms = between(p, 1, 400);
	}
	n->bytes_per_us =
		chance(p, 80) ? between(p, 20, 1000) : between(p, 2, 20);
	n->queue_bytes = chance(p, 80) ? PEER_OUT_BYTES_MAX : 10u << 20;
	n->dead_ms = 4 * s->core.election_ms;
	n->hostile = chance(p, 25);
}

/* Each kind is in half of the seeds, or in a few: a trial with all of them is
 * as dull as one with none. */
static void draw_faults(struct swarm *s, struct prng *p)
{
	uint32_t share = chance(p, 30) ? 70 : 35;
	unsigned f;

	for (f = 0; f < FAULTS; f++)
		if (chance(p, share))
			s->faults |= BIT(f);
	/* At most one kind of lying and one of lost disks. */
	if (!chance(p, 45))
		s->faults &= ~(BIT(FAULT_FLIP) | BIT(FAULT_FLIP_LIVE) |
			       BIT(FAULT_LOST) | BIT(FAULT_MISDIRECTED));
	if (!chance(p, 60))
		s->faults &= ~(BIT(FAULT_EMPTY) | BIT(FAULT_OLDER) |
			       BIT(FAULT_COPIED));
	s->fault_ms =
		chance(p, 30) ? between(p, 50, 300) : between(p, 300, 2500);
	s->unsynced_clock = chance(p, 30);
	s->slow_syncs = chance(p, 12);
	s->slow_storage = chance(p, 25);
	s->restart = chance(p, 30);
	s->moves_ms = chance(p, 10) ? between(p, 10, 300) : 0;
	s->hash_ms = chance(p, 30) ? between(p, 50, 1000) : 0;
}

static void draw_work(struct swarm *s, struct prng *p)
{
	s->clients = between(p, 2, 6);
	s->depth = between(p, 1, 3);
	s->burst = chance(p, 30) ? between(p, 2, 4) : 1;
	s->think_ms = chance(p, 40) ? between(p, 2, 20) : between(p, 20, 150);
	s->principals = between(p, 1, 3);
	s->small = between(p, 1, 4);
	s->large = chance(p, 30) ? between(p, 1, 2) : 0;
	s->limiters = chance(p, 50) ? between(p, 1, 3) : 0;
	s->relays = chance(p, 40) ? between(p, 2, 4) : 0;
	s->keys = between(p, 1, 12);
	s->value_max = chance(p, 80) ? 300 : 4000;
	s->keyed = chance(p, 70) ? between(p, 5, 60) : 0;
	s->reads = between(p, 10, 60);
	s->ttl = chance(p, 40) ? between(p, 5, 40) : 0;
	s->destroys = chance(p, 30) ? between(p, 1, 4) : 0;
	s->hurried = chance(p, 20) ? between(p, 1, 10) : 0;
	s->cancels = chance(p, 20) ? between(p, 1, 10) : 0;
	s->twice = chance(p, 50);
	s->bulk = chance(p, 8);
	s->fixed = chance(p, 20);
	s->deadline_ms =
		chance(p, 70) ? between(p, 400, 2000) : between(p, 2000, 5000);
	s->guest = s->clients > 2 && chance(p, 20);
}

static void draw_lone(struct swarm *s, struct prng *p)
{
	s->nodes = 1;
	s->shards = between(p, 1, 5);
	s->ms = between(p, 300, 3000);
	s->fault_ms = between(p, 20, 300);
	s->deadline_ms = between(p, 2000, 5000);
	s->think_ms = chance(p, 50) ? between(p, 0, 3) : between(p, 2, 20);
	s->calls_max = 1500;
	s->clients = between(p, 2, 6);
}

static void draw_quiet(struct swarm *s, struct prng *p)
{
	if (chance(p, 50)) {
		s->nodes = 1;
		draw_lone(s, p);
		s->ms = between(p, 2000, 5000);
	}
	s->shards = between(p, 1, 2);
	s->clients = between(p, 1, 2);
	s->depth = 1;
	s->burst = 1;
	s->think_ms = between(p, 20, 120);
	s->small = 1;
	s->large = 0;
	s->limiters = 0;
	s->relays = 0;
	s->reads = 60;
	s->ttl = 50;
	s->faults |= BIT(FAULT_JUMP);
}

static void draw_install(struct swarm *s, struct prng *p)
{
	s->shards = between(p, 1, 2);
	s->core.trailing_entries = between(p, 0, 5);
	s->core.checkpoint_bytes = between(p, 16, 64) << 10;
	s->core.window_ms = between(p, 0, 20);
	s->faults |= BIT(FAULT_KILL) | BIT(FAULT_PARTITION) | BIT(FAULT_POINT) |
		     BIT(FAULT_OP) | BIT(FAULT_PAUSE);
	s->think_ms = between(p, 2, 20);
}

/* Between the moment when others elect an owner and the one when he who was cut
 * off resigns: the longer that is, and the more is written and read meanwhile,
 * the better. A write at the old owner would hold up who reads behind it, and
 * calls that hang would keep others from writing at the new one. */
static void draw_stale(struct swarm *s, struct prng *p)
{
	s->core.election_ms = between(p, 300, 1000);
	s->core.heartbeat_ms = s->core.election_ms / 6;
	s->net.dead_ms = 4 * s->core.election_ms;
	s->shards = between(p, 1, 3);
	s->readers = s->nodes;
	s->clients = s->nodes + 3;
	s->guest = false;
	s->reads = 10;
	s->depth = 3;
	s->burst = 1;
	s->think_ms = between(p, 10, 40);
	s->calls_max = 6000;
	s->deadline_ms = between(p, 100, 400);
	s->small = between(p, 1, 2);
	s->large = 0;
	s->limiters = 0;
	s->relays = 0;
	s->keys = between(p, 1, 3);
	s->keyed = 0;
	s->ttl = 0;
	s->destroys = 0;
	s->faults = BIT(FAULT_ALONE);
	s->fault_ms = 4 * s->core.election_ms;
}

static void draw_focus(struct swarm *s, struct prng *p, enum focus focus)
{
	switch (focus) {
	case FOCUS_NONE:
	case FOCUS_LONE:
		return;
	case FOCUS_QUIET:
		draw_quiet(s, p);
		return;
	case FOCUS_BULK:
		s->bulk = true;
		return;
	case FOCUS_DAMAGE:
		s->fault_ms = between(p, 100, 500);
		s->faults = BIT(FAULT_FLIP) | BIT(FAULT_FLIP_LIVE) |
			    BIT(FAULT_KILL) | BIT(FAULT_POWER);
		if (s->nodes > 1)
			s->faults |= BIT(FAULT_LOST) | BIT(FAULT_MISDIRECTED);
		return;
	case FOCUS_CHAINS:
		/* Alone, without what takes long, nothing may hang. */
		if (chance(p, 50)) {
			s->nodes = 1;
			draw_lone(s, p);
			s->faults = 0;
			s->slow_syncs = false;
		}
		s->relays = between(p, 2, 4);
		s->small = 1;
		s->large = 0;
		s->limiters = 0;
		return;
	case FOCUS_KEYS:
		s->keyed = 70;
		s->twice = true;
		return;
	case FOCUS_VOTES:
		s->faults |= BIT(FAULT_POINT) | BIT(FAULT_ALONE) |
			     BIT(FAULT_POWER) | BIT(FAULT_TRANSFER);
		s->fault_ms = between(p, 50, 200);
		return;
	case FOCUS_INSTALL:
		draw_install(s, p);
		return;
	case FOCUS_OWNERS:
		s->faults |= BIT(FAULT_ALONE) | BIT(FAULT_PAUSE) |
			     BIT(FAULT_ONE_WAY) | BIT(FAULT_TRANSFER);
		s->fixed = true;
		s->clients = 6;
		s->keyed = 0;
		s->deadline_ms = between(p, 1000, 3000);
		return;
	case FOCUS_LOST:
		s->faults &= ~(BIT(FAULT_FLIP) | BIT(FAULT_FLIP_LIVE) |
			       BIT(FAULT_LOST) | BIT(FAULT_MISDIRECTED));
		/* One after the other, as soon as the last is whole again. */
		if (chance(p, 60))
			s->faults &= BIT(FAULT_TRANSFER) | BIT(FAULT_PAUSE) |
				     BIT(FAULT_JUMP);
		s->faults |=
			BIT(FAULT_EMPTY) | BIT(FAULT_OLDER) | BIT(FAULT_COPIED);
		s->fault_ms = between(p, 200, 700);
		s->ms = between(p, 12000, 25000);
		return;
	case FOCUS_LIMITS:
		s->limiters = 3;
		s->small = 1;
		s->large = 0;
		s->relays = 0;
		s->think_ms = between(p, 5, 40);
		s->faults |=
			BIT(FAULT_ALONE) | BIT(FAULT_PAUSE) | BIT(FAULT_KILL);
		return;
	case FOCUS_MOVES:
		s->moves_ms = between(p, 10, 100);
		s->faults |= BIT(FAULT_TRANSFER);
		s->slow_syncs = chance(p, 40);
		return;
	case FOCUS_RIGHTS:
		s->clients = 4;
		s->guest = true;
		s->think_ms = between(p, 5, 40);
		/* Some hear of a change late, and of each other at once. */
		s->faults = BIT(FAULT_RING) | BIT(FAULT_ONE_WAY) |
			    BIT(FAULT_CLOG) | BIT(FAULT_TRANSFER) |
			    (s->faults & (BIT(FAULT_PAUSE) | BIT(FAULT_KILL)));
		s->fault_ms = between(p, 100, 800);
		return;
	case FOCUS_STALE:
		draw_stale(s, p);
		return;
	case FOCUSES:
		break;
	}
	UNREACHABLE();
}

static enum focus some_focus(struct prng *p)
{
	uint32_t x = between(p, 0, 99);

	if (x < 10)
		return FOCUS_LONE;
	if (x < 14)
		return FOCUS_QUIET;
	if (x < 24)
		return FOCUS_INSTALL;
	if (x < 30)
		return FOCUS_VOTES;
	if (x < 36)
		return FOCUS_OWNERS;
	if (x < 47)
		return FOCUS_LOST;
	if (x < 55)
		return FOCUS_DAMAGE;
	if (x < 59)
		return FOCUS_LIMITS;
	if (x < 62)
		return FOCUS_MOVES;
	if (x < 65)
		return FOCUS_RIGHTS;
	return x < 69 ? FOCUS_STALE : FOCUS_NONE;
}

void swarm_draw(struct swarm *s, uint64_t seed, enum focus focus)
{
	struct prng p;

	prng_seed(&p, seed, 7);
	if (focus == FOCUS_NONE)
		focus = some_focus(&p);
	*s = (struct swarm){ .nodes = chance(&p, 80) ? 3 : 5,
			     .shards = chance(&p, 90) ? between(&p, 1, 4)
						      : between(&p, 5, 8),
			     .ms = between(&p, 5000, 25000),
			     .calls_max = 3000 };
	if (focus == FOCUS_LONE)
		s->nodes = 1;
	draw_core(s, &p);
	draw_net(s, &p);
	draw_faults(s, &p);
	draw_work(s, &p);
	if (s->nodes == 1)
		draw_lone(s, &p);
	draw_focus(s, &p, focus);
}
