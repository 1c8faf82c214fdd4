/*
 * trial - one node in the seeded world: booted, loaded, crashed, booted again,
 * judged.
 *
 * One thread, one trial at a time and process (node/base/ has one log). The
 * node is the real core on the real log, objects and SQLite; env and disk are
 * the world's. A run ends with a verdict: the first breach of an invariant, or
 * none. Its own mistakes, and those of the node that a CHECK finds, abort;
 * sim.c runs each run in a process of its own.
 */
#ifndef TESTS_SIM_TRIAL_H
#define TESTS_SIM_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "node/core/core.h"
#include "tests/sim/check.h"
#include "tests/sim/prng.h"
#include "tests/sim/world.h"

#define TRIAL_NODE   0u
#define TRIAL_LINES  300u
#define TRIAL_SHARDS 8u

/* How a node ends. */
enum crash {
	CRASH_CLOSE, /* It does not: it is closed. */
	CRASH_KILL,
	CRASH_POWER,
	CRASH_SYNC, /* A sync failed; then the page cache is lost. */
	CRASHES,
};

/* What one seed has, and how much of it. */
struct swarm {
	uint32_t shards;
	uint32_t clients;
	uint32_t depth;    /* Calls in flight of a client. */
	uint32_t burst;    /* Calls in one turn. */
	uint32_t think_ms; /* Between them. */
	uint32_t principals;
	uint32_t small; /* Objects of kv, whole in memory. */
	uint32_t large; /* Larger than is loaded at once. */
	uint32_t limiters;
	uint32_t relays;
	uint32_t keys;      /* Of a small object; ttl keys besides. */
	uint32_t value_max; /* Bytes; of large objects at least 4,000. */
	uint32_t calls_max;
	uint32_t cycles;   /* Boots with load. */
	uint32_t cycle_ms; /* How long one lasts at most. */
	/* Of 100 calls. */
	uint32_t keyed;
	uint32_t reads;
	uint32_t ttl;
	uint32_t destroys;
	uint32_t hurried; /* With a deadline of a few ms. */
	uint32_t cancels;
	bool twice; /* Keys are used by two connections at once. */
	bool slow_syncs;
	bool slow_storage;
	bool jumps;          /* The wall clock, between boots. */
	bool unsynced_clock; /* The kernel does not vouch for it. */
	bool pauses;
	bool bulk;            /* Values that fill segments. */
	bool damage;          /* In the end bits flip on the disk. */
	uint32_t crash_kinds; /* Bits of enum crash. */
	bool at_ops;          /* Crashes at operations of the disk, */
	bool at_boot;         /* and while it boots. */
	struct core_config core;
};

/* What was done, for the ledger. */
struct tally {
	uint64_t virtual_ms;
	uint64_t events;
	uint64_t calls;     /* Answered or not. */
	uint64_t by_end[5]; /* enum call_end */
	uint64_t checked;   /* Operations in histories that were judged. */
	uint64_t boots;
	uint64_t crashes[CRASHES];
	uint64_t crash_points; /* Of them, at an operation of the disk. */
	uint64_t sync_fails;
	uint64_t write_fails;
	uint64_t jumps;
	uint64_t pauses;
	uint64_t damaged;  /* Disks, */
	uint64_t detected; /* of them such that were refused. */
	uint64_t truths;   /* Writes that were looked for on the disk. */
	uint64_t cycles;   /* Calls that were refused with CYCLE. */
	uint64_t loads;    /* By objects, of their rows. */
	uint64_t evictions;
	uint64_t segments; /* Most that a log had. */
	uint64_t hash;
};

struct load;

struct trial {
	uint64_t seed;
	struct swarm swarm;
	struct prng r;
	struct prng sqlite;
	struct world *w;
	struct bind *bind;
	struct core *core; /* NULL: not booted. */
	struct load *load;
	struct tally tally;
	struct breach breach; /* The first. */
	uint64_t now;         /* Events of the driver: orders everything. */
	bool ready;
	bool closing;   /* core_close() was called. */
	bool closed;    /* The last boot ended cleanly, */
	bool over;      /* or it ended as a damaged one may. */
	bool noted_bad; /* Damage was done on purpose: it may be refused. */
	/* Of log/: completed, as far as a driver can see. */
	uint64_t log_syncs;
	uint64_t stamp[TRIAL_SHARDS]; /* F, which only grows. */
	unsigned lines;
	char (*line)[200];
	bool loud; /* Trace lines go to stderr at once. */
	/* Before each operation of the disk: may add faults, may fork. */
	void (*at_op)(struct trial *r, enum world_op op, const char *name);
	void *at_op_arg;
};

/* What the seed says. */
enum focus {
	FOCUS_NONE,
	FOCUS_QUIET,  /* Little happens, so that time matters. */
	FOCUS_BULK,   /* Segments and main files fill. */
	FOCUS_DAMAGE, /* Bits flip in the end. */
	FOCUS_CHAINS, /* Calls that call. */
	FOCUS_KEYS,   /* Idempotency keys. */
};
void swarm_draw(struct swarm *s, uint64_t seed, enum focus focus);

/* A formatted data directory, not booted. */
struct trial *trial_new(uint64_t seed, const struct swarm *swarm);
void trial_free(struct trial *r);

/*
 * Boot. RC_OK: the loop must run. RC_IO: it met a planned crash or failure, as
 * world_alive() tells. Anything else is a breach, which is noted.
 */
enum rc trial_boot(struct trial *r);
/* One event of the world, and what must hold after each. False: the node has
 * ended, or nothing will happen. */
bool trial_step(struct trial *r);
/* Steps for so many ms; false when the node ended meanwhile. */
bool trial_for(struct trial *r, uint64_t ms);
/* Until `*flag`; false when the node ended or time ran out. */
bool trial_until(struct trial *r, const bool *flag, uint64_t ms_max);
/* The node ends now, if it has not yet, and the crash happens. */
void trial_crash(struct trial *r, enum crash kind);
/* Crash and boot again, however often it takes. */
void trial_reboot(struct trial *r, enum crash kind);
/* Drain, close: a clean end. False: it ended otherwise. */
bool trial_close(struct trial *r);
/* Boot until every shard is led, without faults; false: that is a breach. */
bool trial_get_ready(struct trial *r);

/* A whole trial, as its seed and swarm say. */
void trial_all(struct trial *r);
/* Wait for what is in flight, look at everything, judge. */
void trial_judge(struct trial *r);

void trial_breach(struct trial *r, const char *invariant, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
bool trial_is_broken(const struct trial *r);
void trial_trace(struct trial *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The last lines of the trace, to stderr. */
void trial_dump(const struct trial *r);

static inline uint64_t trial_random(struct trial *r, uint64_t n)
{
	return prng_below(&r->r, n);
}
static inline bool trial_chance(struct trial *r, uint64_t of_100)
{
	return prng_below(&r->r, 100) < of_100;
}

#endif
