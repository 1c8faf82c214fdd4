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

#include "node/base/crypto.h"
#include "node/base/disk.h"
#include "node/base/env.h"
#include "objects/effects.h"

struct storage;

struct storage_config {
	uint32_t shard;
	uint64_t generation;
	uint32_t window_ms; /* 0: flush whenever the worker is idle. */
	uint32_t window_bytes;
	uint32_t wal_bytes_max; /* 0: STATE_WAL_BYTES_MAX. */
	/* There is no usable state of that generation: nothing is opened, the
	 * state is empty, applies and loads are RC_CORRUPT, and only stage and
	 * switch work, with generations above it. What lies of that generation
	 * stays where it is until then. */
	bool absent;
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
	/* RC_CORRUPT: the state is bad, and nothing more is written or read:
	 * as if it had been opened `absent`, until a switch. Comes once per
	 * state. NULL: the node stops (env_fail_stop) instead. A failed write
	 * or sync is fail-stop always and does not come here. */
	void (*bad)(struct storage_listener *l, enum rc rc,
		    const struct detail *why);
};

/*
 * Open; generation 0 is created when there is none, a later one was staged.
 * Blocking, before the loop. Afterwards no other generation of the shard has
 * files. RC_CORRUPT: a page or frame failed its checksum, the schema is not
 * ours, or the file is missing; nothing was deleted then; RC_VERSION: newer.
 * The database is exclusively ours until closed.
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
/* One is under way, or asked for. */
bool storage_checkpointing(const struct storage *s);
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

/* ---- snapshots (DESIGN D6) ---- */

/*
 * A copy for another node, straight from the main file: `ready` when everything
 * applied is checkpointed and the rows of every range give the hash that is
 * kept with them; from then on until storage_export_end the main file does not
 * change (checkpoints wait, the WAL grows). It is of exactly what is applied
 * when this is called, unless an older copy is still being read or a hash of
 * another index waits for a flush: then of more. One at a time: RC_CONFLICT
 * through `ready`. Pages are verified as they are read: RC_CORRUPT.
 * RC_CANCELLED: a switch; RC_NOMEM. An export whose `ready` got a code has
 * ended. Closing the storage ends it without a word.
 */
struct storage_export {
	void (*ready)(struct storage_export *x, enum rc rc);
	/* `n` bytes at the offset asked for; fewer only at the end. */
	void (*data)(struct storage_export *x, enum rc rc, const void *p,
		     size_t n);
	void *arg;
	/* Out, from `ready` on. */
	uint64_t index;
	uint64_t term;
	uint64_t conf_index;
	const void *conf; /* The storage's, until the export ends. */
	size_t conf_bytes;
	uint64_t bytes;
	uint8_t hash[HASH_BYTES]; /* As storage_hash_at gives it. */
	void *job;                /* Private, as below. */
	enum rc rc;
};
void storage_export_begin(struct storage *s, struct storage_export *x);
/* At most STORAGE_PIECE_MAX, one read at a time, `offset` a multiple of
 * STATE_PAGE_BYTES. */
#define STORAGE_PIECE_MAX (256u << 10)
void storage_export_read(struct storage *s, struct storage_export *x,
			 uint64_t offset, uint32_t bytes);
/* What is under way is forgotten: nothing is called any more. */
void storage_export_end(struct storage *s, struct storage_export *x);

/*
 * A state file of the next generation, received piece by piece, in their order,
 * each whole pages and at most STORAGE_PIECE_MAX; the next one after `written`.
 * The storage goes on with its own meanwhile. storage_stage_end syncs file and
 * directory, opens it, checks every page, index, term, configuration and the
 * hash recomputed from its rows, and says `done` with its generation.
 * RC_CORRUPT: it is not what was announced. A failed write is fail-stop, but
 * RC_NO_SPACE. RC_OVERLOADED (descriptors), RC_NOMEM. After any code its file
 * is deleted and the stage has ended; storage_stage_drop does nothing then.
 * One at a time. Closing the storage ends it without a word.
 */
struct storage_stage {
	/* In. */
	uint64_t index;
	uint64_t term;
	uint64_t conf_index;
	const void *conf; /* Copied. */
	size_t conf_bytes;
	uint64_t bytes;
	uint8_t hash[HASH_BYTES];
	void (*written)(struct storage_stage *g, enum rc rc);
	void (*done)(struct storage_stage *g, enum rc rc, uint64_t generation);
	void *arg;
	void *job; /* Private, as below. */
	bool ends;
};
void storage_stage_begin(struct storage *s, struct storage_stage *g);
void storage_stage_write(struct storage *s, struct storage_stage *g,
			 uint64_t offset, const void *p, uint32_t n);
void storage_stage_end(struct storage *s, struct storage_stage *g);
/* Forget and delete it; nothing is called any more. Not when the ballot may
 * name it: that is for storage_switch, or the next storage_open. */
void storage_stage_drop(struct storage *s, struct storage_stage *g);

/*
 * The staged generation (`done` said RC_OK) is named in the ballot: it is the
 * state from here on, window and old file are gone, what was loading, exported
 * or hashed ends with RC_CANCELLED. `done` with RC_OK and what it holds;
 * nothing may be applied before that (RC_CORRUPT). Also how a bad state is
 * replaced. Closing the storage meanwhile does it and says nothing.
 */
struct storage_switch {
	uint64_t generation;
	void (*done)(struct storage_switch *w, enum rc rc,
		     const struct storage_state *state);
	void *arg;
	void *job;
};
void storage_switch(struct storage *s, struct storage_switch *w);

/* ---- scrub (DESIGN D6) ---- */

/*
 * Recompute the set hash of one range from its rows and compare it with the one
 * that is kept: one job on the worker, as long as the range is; the caller
 * paces them. RC_CORRUPT: it does not fit, the state is bad (and listener->bad
 * was told). RC_CANCELLED: a switch, or the storage closes; RC_NOMEM.
 */
struct storage_scrub {
	unsigned range; /* 0 .. STATE_RANGES - 1 */
	void (*done)(struct storage_scrub *c, enum rc rc);
	void *arg;
	void *job; /* Private. */
};
void storage_scrub(struct storage *s, struct storage_scrub *c);

/*
 * The hash of the state exactly as applied when this is called; what is applied
 * afterwards is in a flush of its own. It is the BLAKE2b-128 of applied index,
 * term, stamps, configuration and the set hashes of all ranges (db.h): equal on
 * every replica that applied the same entries, in whatever windows.
 * RC_CONFLICT: hashes of two other indexes wait already. RC_CORRUPT,
 * RC_CANCELLED, RC_NOMEM as above.
 */
struct storage_hash {
	void (*done)(struct storage_hash *h, enum rc rc);
	void *arg;
	/* Out. */
	uint64_t index; /* From the call on. */
	uint8_t hash[HASH_BYTES];
	uint8_t ranges[STATE_RANGES][HASH_BYTES]; /* db_range_hash of each. */
	void *job;                                /* Private, as below. */
	enum rc rc;
};
void storage_hash_at(struct storage *s, struct storage_hash *h);
/* The one above knows that the state is wrong although it is whole: it is bad
 * from here on, as if it had been found so. `bad` is told from inside this
 * call, unless it was before; it must not be NULL. */
void storage_spoil(struct storage *s, const struct detail *why);

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
