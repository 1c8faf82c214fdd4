/*
 * trial - a whole cluster in the seeded world: formatted, booted, loaded,
 * broken in every way that it must bear, mended, judged.
 *
 * One thread, one trial at a time and process (node/base/ has one log). Nodes
 * are the real core on the real transport, log, objects and SQLite; env and
 * disk are the world's, links and streams the net's. A trial ends with a
 * verdict: the first breach of an invariant, or none. Its own mistakes, and
 * those of a node that a CHECK finds, abort; sim.c runs each trial in a process
 * of its own.
 *
 *   trial     nodes: boots, ends, the loop, phases
 *   swarm     what a seed has
 *   faults    what goes wrong, and when
 *   watch     what must hold after each event
 *   load      what clients ask and are told
 */
#ifndef TESTS_SIM_TRIAL_H
#define TESTS_SIM_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "node/core/core.h"
#include "node/core/directory.h"
#include "tests/sim/check.h"
#include "tests/sim/door.h"
#include "tests/sim/net.h"
#include "tests/sim/prng.h"
#include "tests/sim/world.h"

#define TRIAL_NODE     0u /* Of a trial with one. */
#define TRIAL_LINES    300u
#define TRIAL_SHARDS   8u
#define TRIAL_SEGMENT  (1u << 20)
#define TRIAL_HEALS_MS 30000u
#define TRIAL_SCRATCH  7u /* Nodes of the world that never boot. */
#define TRIAL_STASH    6u
/* The client of who runs the cluster: a local user of each node. */
#define TRIAL_OPERATOR (NET_CLIENTS_MAX - 1)

/* How a node ends. */
enum crash {
	CRASH_CLOSE, /* It does not: it is closed. */
	CRASH_KILL,
	CRASH_POWER,
	CRASH_SYNC, /* A write or sync failed; then the page cache is lost. */
	CRASHES,
};

/* What goes wrong. The ledger counts each. */
enum fault {
	FAULT_KILL,
	FAULT_POWER,
	FAULT_POWER_ALL, /* All nodes at once. */
	FAULT_CLOSE,     /* A node is stopped in order, and started again. */
	FAULT_OP,        /* It ends at some operation of its disk, */
	FAULT_POINT,     /* or between a sync and what is sent after it. */
	FAULT_EIO,
	FAULT_NO_SPACE,  /* One operation fails for it. */
	FAULT_FULL,      /* The disk is full for a while. */
	FAULT_SLOW,      /* Some syncs take 400 ms, */
	FAULT_HANG,      /* one takes seconds. */
	FAULT_FLIP,      /* Bits of a disk change while nobody looks, */
	FAULT_FLIP_LIVE, /* or under a node that runs. */
	FAULT_LOST,
	FAULT_MISDIRECTED,
	FAULT_EMPTY,   /* The disk comes back empty, formatted anew; */
	FAULT_OLDER,   /* as it was some time ago; */
	FAULT_COPIED,  /* as a copy of another's, or of itself. */
	FAULT_READMIT, /* A lost disk is replaced: `holdfast node reset`. */
	FAULT_PAUSE,
	FAULT_SUSPEND,
	FAULT_JUMP,
	FAULT_DRIFT,
	FAULT_RESET,
	FAULT_CLOG,
	FAULT_ONE_WAY,
	FAULT_PARTITION, /* Two sides, drawn; */
	FAULT_ALONE,     /* an owner on one, all others on the other; */
	FAULT_RING,      /* each talks to its neighbours only. */
	FAULT_CLIENT,    /* A client and a node do not hear each other. */
	FAULT_TRANSFER,
	FAULT_REVOKE, /* A client's rights are taken, and given back. */
	FAULT_LATE,   /* Messages of old connections come; the net's doing. */
	FAULTS,
};
const char *fault_name(enum fault f);

/* Between a sync and what is sent after it. */
enum point_file {
	POINT_BALLOT,
	POINT_LOG,
	POINT_STATE,
	POINT_MEMBERS,
	POINT_FILES,
};
enum point_moment {
	POINT_BEFORE_SYNC,
	POINT_AFTER_SYNC,
	POINT_BEFORE_SEND, /* The first message that leaves after it, */
	POINT_AFTER_SEND,  /* or just after that. */
	POINT_MOMENTS,
};
extern const char *const point_files[POINT_FILES];
extern const char *const point_moments[POINT_MOMENTS];

/* What one seed has, and how much of it. */
struct swarm {
	uint32_t nodes; /* 1, 3 or 5 */
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
	uint32_t deadline_ms; /* The longest of a call. */
	uint32_t ms;          /* How long things go wrong. */
	uint32_t fault_ms;    /* Between two faults, about. */
	uint32_t moves_ms; /* Between two hand-overs; 0: no more than that. */
	uint32_t hash_ms;  /* Between two looks at a state; 0: none. */
	uint64_t faults;   /* Bits of enum fault. */
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
	bool unsynced_clock; /* The kernel does not vouch for it. */
	bool bulk;           /* Values that fill segments. */
	bool fixed;          /* Clients know one node each. */
	uint32_t readers;    /* So many of them only read, one at each node. */
	bool restart;        /* In the end all lose power once more. */
	bool guest;          /* The last client's rights come and go. */
	struct net_config net;
	struct core_config core;
};

/* What was done, for the ledger. */
struct tally {
	uint64_t virtual_ms;
	uint64_t events;
	uint64_t calls;     /* Answered or not. */
	uint64_t by_end[5]; /* enum call_end */
	uint64_t checked;   /* Operations in histories that were judged. */
	uint64_t histories;
	uint64_t undecided; /* Of them: too many of their calls are unknown. */
	uint64_t boots;
	uint64_t crashes[CRASHES];
	uint64_t crash_ops; /* Of them, at an operation of the disk. */
	uint64_t faults[FAULTS];
	uint64_t points[POINT_FILES][POINT_MOMENTS];
	uint64_t elections; /* Leaderships that began. */
	uint64_t installs;
	uint64_t exports;
	uint64_t rebuilds; /* Shards that came back from damage. */
	uint64_t refused;  /* Nodes that peers, or themselves, refused. */
	uint64_t forwards; /* Messages of the bulk links. */
	uint64_t messages;
	uint64_t late;
	uint64_t samples; /* Commits that were looked for on the disks. */
	uint64_t heal_ms; /* Sum, */
	uint64_t heals;   /* of so many, */
	uint64_t heal_max_ms;
	uint64_t cycles; /* Calls that were refused with CYCLE. */
	uint64_t loads;  /* By objects, of their rows. */
	uint64_t evictions;
	uint64_t segments; /* Most that a log had. */
	uint64_t truths;   /* Values that were looked for on the disk. */
	uint64_t equal;    /* States that were compared. */
	uint64_t hash;
};

struct load;
struct watch;
struct faults;
struct trial;

enum machine_state {
	MACHINE_DOWN,
	MACHINE_UP,
	MACHINE_CLOSING,
};

/* A node and what it runs on. */
struct machine {
	struct trial *r;
	unsigned n;
	enum machine_state state;
	struct core *core; /* Not NULL while UP or CLOSING. */
	struct bind *bind;
	struct directory *directory;
	struct door *door;
	bool ready;
	bool closed;
	uint64_t boot_ms;  /* DOWN: when it boots; CHECK_NEVER: it does not. */
	enum crash ending; /* What its next end is. */
	uint8_t incarnation[ID_BYTES]; /* Of its disk, */
	uint8_t agreed[ID_BYTES];      /* and of the one the cluster knows. */
	uint64_t boots;
	uint64_t up_ms;  /* Since then, */
	uint64_t serial; /* and all connections that are newer. */
	/* Its disk may lie, from a fault on until the end of the trial. */
	bool sick;
	/* Its disk is not the one that its peers know, from that boot on: they
	 * must refuse it. */
	bool foreign;
	uint64_t foreign_boot;
	/* And it is what it was some time ago: only who saw it since can tell.
	 */
	bool rolled_back;
	/* It was reset, and is not whole yet: it knows neither vote nor log. */
	bool fresh;
	uint64_t down_ms;   /* Since then. */
	uint64_t log_syncs; /* Of log/. */
};

struct trial {
	uint64_t seed;
	struct swarm swarm;
	struct prng r;
	struct prng sqlite;
	struct world *w;
	struct net *net;
	struct machine machines[NET_NODES_MAX];
	uint8_t cluster_id[ID_BYTES];
	uint8_t hash_key[ID_BYTES];
	struct grant grants[8 + NET_NODES_MAX];
	size_t grants_n;
	struct load *load;
	struct watch *watch;
	struct faults *faults;
	struct tally tally;
	struct breach breach; /* The first. */
	uint64_t now;         /* Events of the driver: orders everything. */
	bool chaos;           /* Faults come. */
	bool over;            /* It ended as a damaged lone node may. */
	unsigned lines;
	char (*line)[200];
	bool loud; /* Trace lines go to stderr at once. */
	/* Before each operation of a disk, before each message between nodes:
	 * may add faults, may end the node, may fork. NULL: nobody. */
	void (*at_op)(struct trial *r, unsigned node, enum world_op op,
		      const char *name);
	void (*at_send)(struct trial *r, unsigned node);
};

/* What the seed says. */
enum focus {
	FOCUS_NONE,
	FOCUS_LONE,    /* One node. */
	FOCUS_QUIET,   /* Little happens, so that time matters. */
	FOCUS_BULK,    /* Segments and main files fill. */
	FOCUS_DAMAGE,  /* Disks lie. */
	FOCUS_CHAINS,  /* Calls that call. */
	FOCUS_KEYS,    /* Idempotency keys. */
	FOCUS_VOTES,   /* Elections, and crashes at their syncs. */
	FOCUS_INSTALL, /* Followers fall far behind. */
	FOCUS_OWNERS,  /* Owners are cut off and frozen. */
	FOCUS_LIMITS,  /* Limiters. */
	FOCUS_LOST,    /* Disks come back as others. */
	FOCUS_MOVES,   /* Owners change all the time. */
	FOCUS_RIGHTS,  /* Rights come and go. */
	FOCUS_STALE,   /* Owners are left behind, and read. */
	FOCUSES,
};
extern const char *const focus_names[FOCUSES];
void swarm_draw(struct swarm *s, uint64_t seed, enum focus focus);

/* Formatted data directories, not booted. */
struct trial *trial_new(uint64_t seed, const struct swarm *swarm);
void trial_free(struct trial *r);

/* The founder's data directory, on an empty disk; `lost`: that of a member
 * whose disk was lost. False: a breach. */
bool trial_format(struct trial *r, unsigned node, bool lost);

/*
 * Boot a node. RC_OK: it runs. RC_IO: it met a planned crash or failure, and is
 * down again. Anything else is a breach, which is noted, unless its disk is
 * sick or foreign.
 */
enum rc trial_boot(struct trial *r, unsigned node);
/* The node ends now, if it has not yet, and the crash happens. It boots again
 * after `ms`; CHECK_NEVER: not by itself. */
void trial_crash(struct trial *r, unsigned node, enum crash kind, uint64_t ms);
/* Drain, close; it boots again `ms` after it has ended. */
void trial_close(struct trial *r, unsigned node, uint64_t ms);

/* One event of the world, and what must hold after each. False: nothing will
 * ever happen. */
bool trial_step(struct trial *r);
/* Until `*flag`, or for so long. True: the flag, or the time is over and there
 * was none. False also after a breach. */
bool trial_until(struct trial *r, const bool *flag, uint64_t ms_max);
bool trial_for(struct trial *r, uint64_t ms);

/* A whole trial, as its seed and swarm say. */
void trial_all(struct trial *r);
/* Mend everything, wait until all agree, look at everything, judge. */
void trial_judge(struct trial *r);

void trial_breach(struct trial *r, const char *invariant, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
bool trial_is_broken(const struct trial *r);
void trial_trace(struct trial *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The last lines of the trace, to stderr. */
void trial_dump(const struct trial *r);

/* The owner of a shard: the node that leads it in the highest term. -1: there
 * is none. */
int trial_owner(const struct trial *r, uint32_t shard);

static inline uint64_t trial_now(const struct trial *r)
{
	return world_now_ms(r->w);
}
static inline bool trial_lone(const struct trial *r)
{
	return r->swarm.nodes == 1;
}
static inline uint64_t trial_random(struct trial *r, uint64_t n)
{
	return prng_below(&r->r, n);
}
static inline bool trial_chance(struct trial *r, uint64_t of_100)
{
	return prng_below(&r->r, 100) < of_100;
}

#endif
