/*
 * storage - one shard's materialised state: a window in memory over SQLite.
 *
 * Loop thread, except where said; the loop never touches SQLite. Committed
 * entries come in through storage_apply, in index order, and are kept in the
 * window (last value per key wins) until a flush on ENV_WORKER_STORAGE writes
 * them, with applied index, term, stamps and set hashes, in one transaction.
 * Loads run on the same worker, read what SQLite has and are then overlaid with
 * the window on the loop: a load shows exactly the applied state.
 *
 * What decides that nothing is lost in between:
 * - a load reports the index SQLite had when it read; window rows newer than
 *   that override what it read, and a row leaves the window only when its flush
 *   is done and no load that began before that flush is under way;
 * - jobs of one worker are FIFO, so a load that is queued behind a flush sees
 *   it.
 *
 * State file: state/SS-GGGGGGGG.db (shard, generation), never renamed over
 * another (DESIGN D6). Tables: meta, heads, rows, ranges; docs/storage.md.
 */
#ifndef HOLDFAST_OBJECTS_STORAGE_H
#define HOLDFAST_OBJECTS_STORAGE_H

#include "node/base/disk.h"
#include "node/base/env.h"
#include "objects/effects.h"

struct storage;

struct storage_config {
	uint32_t shard;
	uint64_t generation;
	uint32_t window_ms; /* 0: flush whenever the worker is idle. */
	uint32_t window_bytes;
};

/* What the state file holds. `conf` belongs to the storage. */
struct storage_state {
	uint64_t applied_index; /* In the database (main file or WAL). */
	uint64_t applied_term;
	uint64_t stamp_ns;   /* Of the last applied entry. */
	uint64_t wall_ms;    /* Noted beside it. */
	uint64_t main_index; /* In the synced main file: the log's floor. */
	uint64_t conf_index;
	const void *conf;
	size_t conf_bytes;
};

/* Per tenant/environment, as applied. */
struct storage_tenant {
	char tenant[TENANT_BYTES_MAX + 1];
	uint64_t objects;
	uint64_t bytes;
};

/* Events for the one above; loop thread, never from inside a call below. */
struct storage_listener {
	/* Everything up to `index` is in SQLite (a crash of the process keeps
	 * it; the log still holds it). */
	void (*stored)(struct storage_listener *l, uint64_t index);
	/* Everything up to `index` is in the synced main file. Also comes
	 * unasked, when SQLite's WAL has become long. */
	void (*checkpointed)(struct storage_listener *l, uint64_t index);
	/* RC_CORRUPT: the state is bad, and nothing more is written or read.
	 * Comes once. NULL: the node stops (env_fail_stop) instead. A failed
	 * write or sync is fail-stop always and does not come here. */
	void (*bad)(struct storage_listener *l, enum rc rc,
		    const struct detail *why);
};

/*
 * Open or create. Blocking, before the loop. RC_CORRUPT: a page or frame failed
 * its checksum or the schema is not ours; RC_VERSION: newer. The database is
 * exclusively ours until closed.
 */
enum rc storage_open(struct env *env, struct disk *disk,
		     const struct storage_config *cfg,
		     struct storage_listener *listener, struct storage **out,
		     struct storage_state *state, struct detail *why);

/* One committed, locally durable entry. RC_CORRUPT: cannot be digested (or the
 * state is bad), RC_VERSION: newer, RC_NOMEM: no memory; nothing of it was
 * applied. Index must be the applied one + 1. */
enum rc storage_apply(struct storage *s, uint64_t index, uint64_t term,
		      const void *entry, size_t n);
/* An entry without effects (barrier; or a configuration when conf != NULL). */
enum rc storage_apply_other(struct storage *s, uint64_t index, uint64_t term,
			    const void *conf, size_t conf_bytes);

uint64_t storage_applied(const struct storage *s); /* into the window */
uint64_t storage_stored(const struct storage *s);
uint64_t storage_checkpointed(const struct storage *s);
/* The newest applied entry's stamp: F of DESIGN D8 in the state. */
uint64_t storage_stamp(const struct storage *s);
/* The wall clock noted beside it, ms since 1970; 0: none yet. */
uint64_t storage_wall(const struct storage *s);
size_t storage_window_bytes(const struct storage *s);
/* Room on the disk that what is applied already may still take: the window on
 * its way into the WAL and from there into the main file, and the WAL. */
uint64_t storage_room(const struct storage *s);

/* Flush now what is in the window (no-op when empty); flush, then checkpoint
 * and sync the main file. The listener tells. */
void storage_flush(struct storage *s);
void storage_checkpoint(struct storage *s);

/*
 * Loads. The caller embeds the request and keeps it in place until `done`. The
 * rows handed to `row` are views valid inside the call, in key order per kind,
 * sealed as they were written, deleted ones left out.
 */
enum load_what {
	LOAD_OBJECT, /* Head, and all rows if they are at most bytes_max. */
	LOAD_KEYS,   /* Head, and these keys. */
	LOAD_RANGE,  /* Rows of one kind from `start`, at most rows_max. */
};
struct load_key {
	enum row_kind kind;
	struct pack_bytes key;
};
struct storage_load {
	/* In, untouched until done. */
	struct oid oid;
	enum load_what what;
	/* LOAD_RANGE: no row after the one that reaches it; 0, and all above:
	 * LOAD_PAGE_BYTES_MAX. */
	size_t bytes_max;
	const struct load_key *keys;
	size_t keys_n;
	enum row_kind kind;      /* LOAD_RANGE */
	struct pack_bytes start; /* Inclusive (exclusive when reverse);
				  * p == NULL: from the first (the last). */
	struct pack_bytes end;   /* p == NULL: no end; else exclusive
				  * (inclusive when reverse). */
	bool reverse;
	uint32_t rows_max;
	/* Called on the loop thread, rows first, then done once. rc: RC_OK, or
	 * RC_CORRUPT (a checksum failed: the shard's state is bad), RC_IO
	 * (fail-stop is under way), RC_CANCELLED (storage closes), RC_NOMEM.
	 * `row` only looks; `done` may call anything here. */
	void (*row)(struct storage_load *l, const struct unit_row *row);
	void (*done)(struct storage_load *l, enum rc rc);
	/* Out, valid in done. */
	struct pack_bytes head; /* p == NULL: no such object. */
	bool complete;          /* LOAD_OBJECT: all rows were given.
				 * LOAD_RANGE: nothing lies beyond. */
	/* LOAD_RANGE that is not complete: every row up to and including this
	 * key was given or is absent. A page may be short, but has a row when
	 * there is more behind it; that begins, ascending, at this key and a
	 * byte of zero, and descending at the key itself. */
	struct pack_bytes covered_end;
	uint64_t index; /* The state that was shown. */
	void *arg;      /* The caller's. */
	/* Private. */
	void *job;
};
void storage_load(struct storage *s, struct storage_load *l);

/*
 * Up to rows_max rows (any object) that expire at or before `stamp_ns`, as they
 * are in SQLite: the sweep checks each again in an event of its object.
 */
struct storage_expired {
	uint64_t stamp_ns;
	uint32_t rows_max;
	void (*row)(struct storage_expired *x, const struct oid *oid,
		    const struct unit_row *row);
	void (*done)(struct storage_expired *x, enum rc rc, bool more);
	void *arg;
	void *job; /* Private. */
};
void storage_expired(struct storage *s, struct storage_expired *x);

/* Heads in order of oid, for `objects ls`: at most rows_max after `after`, as
 * applied. `after` is moved on, so that the same call gives the next page; a
 * page may be short or empty and have more behind it. */
struct storage_heads {
	struct oid after;
	uint32_t rows_max;
	void (*head)(struct storage_heads *h, const struct oid *oid,
		     struct pack_bytes head);
	void (*done)(struct storage_heads *h, enum rc rc, bool more);
	void *arg;
	void *job;
};
void storage_heads(struct storage *s, struct storage_heads *h);

struct storage_stats {
	uint64_t flushes;
	uint64_t rows_written;
	uint64_t flush_ns_sum;
	uint64_t checkpoints;
	uint64_t loads;
};
void storage_stats(const struct storage *s, struct storage_stats *out);

/* Flushes, checkpoints, then `closed`. */
void storage_close(struct storage *s, void (*closed)(void *arg), void *arg);
/* The simulator's kill: frees what the node had; its jobs, timers and tasks
 * must never run again. */
void storage_discard(struct storage *s);

#endif
