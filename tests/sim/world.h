/*
 * world - the seeded world: env and disk on virtual time, one thread.
 *
 * What runs on libuv and files on a real node runs here unchanged, with every
 * latency, every order and every fault drawn from one seed: the same seed and
 * the same driver give the same run, which world_hash() shows. Up to
 * WORLD_NODES_MAX nodes, each with its own env and its own disk; nothing joins
 * them but what the driver does with world_at().
 *
 * A driver:
 *
 *	w = world_new(seed);
 *	node = boot(world_env(w, 0), world_disk(w, 0));
 *	world_fault(w, 0, &(struct world_fault){
 *		.kind = WORLD_CRASH_BEFORE, .op = WORLD_SYNC, .nth = 7 });
 *	while (world_step(w) && world_alive(w, 0))
 *		...
 *	tear_down(node);      (memory only: the disk answers RC_IO)
 *	world_power_cut(w, 0);
 *	node = boot(world_env(w, 0), world_disk(w, 0));
 *
 * A node ends by fail_stop or at a crash point. From then on its events are
 * dropped, its disk is frozen (every operation is RC_IO and changes nothing)
 * and what it still does in the event at hand must have no effect outside.
 * world_kill() or world_power_cut() makes it bootable again. Its old timers,
 * jobs, tasks and files are forgotten without being touched, so it does not
 * matter whether the driver frees the old node's memory before or after; files
 * may still be closed and timers stopped afterwards.
 *
 * Its own mistakes (no memory, a driver's misuse) abort.
 */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "node/base/disk.h"
#include "node/base/env.h"

#define WORLD_NODES_MAX 8u
#define WORLD_NOBODY    WORLD_NODES_MAX /* world_at(): survives every crash. */
#define WORLD_SECTOR    512u

struct world;

struct world *world_new(uint64_t seed);
void world_free(struct world *w);

/* The node's. The same pointers at every boot. */
struct env *world_env(struct world *w, unsigned node);
struct disk *world_disk(struct world *w, unsigned node);

/* ---- time ---- */

/* Milliseconds of virtual time since world_new(). No node sees this clock: a
 * node's own boot time and wall clock have offsets of their own. */
uint64_t world_now_ms(const struct world *w);

/*
 * The next event: a timer, a job's run or done, something from world_at(), each
 * followed by the end of that node's turn. Tasks that the driver's own calls
 * posted come first, as an event of their own. False: nothing will ever happen
 * again.
 */
bool world_step(struct world *w);
/* Steps while events lie at or before `ms`, then puts the clock there. Returns
 * early, without moving the clock on, when a node ends. */
void world_run_until(struct world *w, uint64_t ms);
/* Steps until `*flag`, a node's end, or `ms_max` milliseconds from now; returns
 * `*flag`. */
bool world_run_flag(struct world *w, const bool *flag, uint64_t ms_max);

/* Call `cb` on `node`'s thread (or the driver's: WORLD_NOBODY) at a world time;
 * dropped when the node ends first. */
void world_at(struct world *w, unsigned node, uint64_t ms,
	      void (*cb)(void *arg), void *arg);
/* The same with the finest time there is. */
void world_at_ns(struct world *w, unsigned node, uint64_t ns,
		 void (*cb)(void *arg), void *arg);
uint64_t world_now_ns(const struct world *w);
/* Whose thread the last event ran on; WORLD_NOBODY: the driver's. */
unsigned world_last(const struct world *w);
/* Events in a row without time going on: a timer that spins. */
uint64_t world_still(const struct world *w);

/* Seeded, for drivers; a stream of its own. 0 <= result < n. */
uint64_t world_random(struct world *w, uint64_t n);

/* The wall clock of a node jumps; its kernel calls it synchronised or not. */
void world_wall_jump(struct world *w, unsigned node, int64_t ms);
void world_wall_synced(struct world *w, unsigned node, bool synced);
/* Its machine was suspended: boot time and wall clock go on by `ms` while
 * nothing ran. */
void world_suspend(struct world *w, unsigned node, uint64_t ms);
/* The process is stopped (SIGSTOP) for `ms`: its events come late. */
void world_pause(struct world *w, unsigned node, uint64_t ms);
bool world_paused(const struct world *w, unsigned node);
/* Its loop is busy for so much longer than it is already: what a call costs,
 * where that matters. */
void world_spend(struct world *w, unsigned node, uint64_t ns);
/* Its boot time and its timers run too fast by so many millionths (too slow
 * when negative; -500,000..500,000). Its wall clock is kept by others. */
void world_drift(struct world *w, unsigned node, int32_t ppm);

/* Microseconds between a job's queueing (or the end of the one before it) and
 * its run; between its run and its done. */
struct world_latency {
	uint32_t run_min_us;
	uint32_t run_max_us;
	uint32_t done_min_us;
	uint32_t done_max_us;
};
void world_latency(struct world *w, unsigned node, enum env_worker worker,
		   const struct world_latency *l);
/* A timer comes at most this late (default 1,000 us). */
void world_timer_late(struct world *w, uint32_t us_max);
/* What a sync adds to its job's time (default 50..400 us), and how many of
 * 10,000 take `slow_ms` instead (default none). */
void world_sync_time(struct world *w, unsigned node, uint32_t min_us,
		     uint32_t max_us, uint32_t slow_per_10000,
		     uint32_t slow_ms);

/* ---- ends and boots ---- */

/* False from a crash point or fail_stop until the next kill or power cut. */
bool world_alive(const struct world *w, unsigned node);
/* It ended at a crash point of a fault plan. */
bool world_crashed(const struct world *w, unsigned node);
/* What it told fail_stop; NULL when it did not. */
const char *world_stopped(const struct world *w, unsigned node);

/* The node ends here and now, perhaps in the middle of its own event. What
 * world_crashed() and `why` tell is then the driver's word. */
void world_end(struct world *w, unsigned node);

/* The process ends, the machine stays: everything written is there for the
 * next process to read, and is still unsynced. Also the way to boot again
 * after a clean end. */
void world_kill(struct world *w, unsigned node);
/*
 * The machine loses power: each file keeps an arbitrary subset of its unsynced
 * 512-byte sectors, a size between the old and the new one, and an arbitrary
 * subset of the unsynced operations on directories (a rename is whole). Boot
 * time starts again.
 */
void world_power_cut(struct world *w, unsigned node);
/* The kernel drops clean pages: after a failed sync the old bytes come back. */
void world_drop_caches(struct world *w, unsigned node);

/* ---- the disk ---- */

enum world_op {
	WORLD_CREATE, /* An open that makes a file. */
	WORLD_READ,
	WORLD_WRITE,
	WORLD_SYNC,
	WORLD_TRUNCATE,
	WORLD_SYNC_DIR,
	WORLD_RENAME,
	WORLD_UNLINK,
	WORLD_MKDIR,
	WORLD_CHANGE, /* Any of these but WORLD_READ. */
	WORLD_OPS,
};

/* Operations so far, refused and failed ones included; it goes on over
 * crashes. */
uint64_t world_count(const struct world *w, unsigned node, enum world_op op);

enum world_fault_kind {
	WORLD_CRASH_BEFORE, /* The node ends; the operation did not happen. */
	WORLD_CRASH_AFTER,  /* It ends; the operation did happen. */
	/* RC_IO. A write or any other change does nothing; of a sync the
	 * cache is clean and new afterwards and the disk old: later syncs
	 * succeed without writing those sectors, until they are written
	 * again. */
	WORLD_EIO,
	WORLD_NO_SPACE, /* The same with RC_NO_SPACE. */
	WORLD_SHORT,    /* A write: a prefix of its sectors, then RC_IO. */
	/* A write succeeds, the cache has it, the disk never gets it. */
	WORLD_LOST,
	/* A write succeeds, the cache has it, and the disk gets it at another
	 * place of the same file. */
	WORLD_MISDIRECTED,
	/* One bit of what a read returns is wrong, once. */
	WORLD_BAD_READ,
};

struct world_fault {
	enum world_fault_kind kind;
	enum world_op op;
	uint64_t nth;       /* 1: the next such operation. */
	const char *prefix; /* Only names that start so; NULL: all. */
	bool sticky;        /* From then on all of them, not only the n-th. */
};

/* Called before each operation of the node is looked at, reads and refused ones
 * too: what it adds to the plan holds for this operation already. It may fork.
 * NULL: nobody. */
void world_watch(struct world *w, unsigned node,
		 void (*cb)(void *arg, enum world_op op, const char *name),
		 void *arg);

/* Adds to the node's plan (at most 16 at a time). Each fires once unless it is
 * sticky, and is then gone. Crashes leave the plan in place. */
void world_fault(struct world *w, unsigned node, const struct world_fault *f);
void world_faults_clear(struct world *w, unsigned node);
/* Faults that fired since world_new(). */
uint64_t world_faults_fired(const struct world *w, unsigned node);

/* The file's content as a process reads it now, and its size; NULL when there
 * is no such file. The caller frees it. `durable`: what a power cut would
 * leave if it kept nothing unsynced. */
uint8_t *world_file(struct world *w, unsigned node, const char *name,
		    bool durable, size_t *bytes);
/* Flip a bit on the disk and in the cache. RC_NOT_FOUND; RC_INVALID beyond its
 * end. */
enum rc world_flip(struct world *w, unsigned node, const char *name,
		   uint64_t byte, unsigned bit);
/* Calls `cb` for every file (not directory), names relative to the data
 * directory, in the order of their names. */
void world_files(struct world *w, unsigned node,
		 void (*cb)(void *arg, const char *name, uint64_t bytes),
		 void *arg);

/* The disk of `to`, which must not run, becomes a copy of that of `from` as a
 * process would see it: same content, all synced, another birth. */
void world_copy(struct world *w, unsigned from, unsigned to);
/* The disk of a node that does not run becomes empty, with another birth. */
void world_wipe(struct world *w, unsigned node);
/* The disk of `to`, which must not run, becomes what that of `from` would be
 * after a power cut that keeps nothing; with the same birth: a volume that was
 * rolled back. `from` may run. */
void world_clone(struct world *w, unsigned from, unsigned to);
/* To read what a power cut would leave if it kept nothing: open (read only),
 * read, size and list; everything else is RC_IO. */
struct disk *world_durable(struct world *w, unsigned node);
/* Bytes the disk holds (default 1 TiB): writes beyond are RC_NO_SPACE. */
void world_capacity(struct world *w, unsigned node, uint64_t bytes);
uint64_t world_used(const struct world *w, unsigned node);
/* The file system tells no birth time. */
void world_birth_hidden(struct world *w, unsigned node, bool hidden);

/* ---- determinism ---- */

/* Over every event and every disk operation with its bytes. */
uint64_t world_hash(const struct world *w);
uint64_t world_events(const struct world *w);
/* Adds to the hash what the driver saw. */
void world_note(struct world *w, const void *p, size_t n);

#endif
