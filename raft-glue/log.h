/*
 * log - one log for all shards of a node: group commit, one sync per batch.
 *
 * The loop thread appends entries of any shard; at the end of its turn
 * (ENV_PHASE_LOG) what has come together becomes one batch for the writer
 * (ENV_WORKER_LOG): ballot changes are written and synced first, then the batch
 * with one sync. A batch begins only when the one before it is synced. A failed
 * write or sync is fail-stop (env_fail_stop). Format and recovery: DESIGN D4,
 * byte by byte at the top of log.c.
 *
 * Nothing that was read at start counts as durable: log_open reads past the
 * page cache, rewrites the last batch in place and syncs it before it returns.
 */
#ifndef HOLDFAST_RAFT_GLUE_LOG_H
#define HOLDFAST_RAFT_GLUE_LOG_H

#include "node/base/disk.h"
#include "node/base/env.h"
#include "raft-glue/ballot.h"

struct log;

struct log_config {
	uint32_t shards;
	uint32_t segment_bytes; /* As the directory was formatted. */
	uint64_t bytes_max;     /* All segments; at least four of them. */
	uint8_t cluster_id[16];
	uint64_t node_id;
	/* The log makes no third or further segment that would leave the disk
	 * less room than this: it recycles instead. No second one that would
	 * leave half of it: it stalls instead when the first is full. 0: only
	 * a full disk stops it. */
	uint64_t reserve_bytes;
};

/* Creates `log/` with its first segment: zero-written, synced, named.
 * RC_EXISTS: there is one that holds records. What an interrupted format left
 * is overwritten. */
enum rc log_format(struct disk *disk, const struct log_config *cfg,
		   struct detail *why);

/* What one shard must do for the log. */
struct log_listener {
	/* Everything appended for this shard with a ticket <= `ticket` is
	 * durable (entries and ballot). Loop thread, never from inside a call
	 * into the log. */
	void (*durable)(struct log_listener *l, uint64_t ticket);
	/* The shard's oldest live record pins a segment that should be
	 * recycled: checkpoint its state and call log_floor. Called at most
	 * once until then, and again with every further segment. */
	void (*pinning)(struct log_listener *l);
	/* May be NULL. A batch of any shard is done and no other has begun
	 * (log_busy is false): called for every listener, after the `durable`
	 * of that batch. What a shard held back meanwhile it appends now. */
	void (*idle)(struct log_listener *l);
	/* May be NULL. The ballot of `ticket`, and so every one before it, is
	 * durable, also when records that were appended before are not (there
	 * is no room for them): a vote does not wait for entries. Comes before
	 * the `durable` of the same batch. */
	void (*voted)(struct log_listener *l, uint64_t ticket);
};

/*
 * Scan the log. `floors[shard]` is the index up to which the shard's synced
 * main state file contains everything: records at or below it are dead.
 * RC_VERSION, RC_NOT_FOUND, RC_IO as usual. Damage that can be attributed is
 * not an error here: log_status tells per shard. `ballot` is written through
 * the log from now on and stays the caller's.
 */
enum rc log_open(struct env *env, struct disk *disk, struct ballot *ballot,
		 const struct log_config *cfg, const uint64_t *floors,
		 struct log **out, struct detail *why);

enum log_status {
	LOG_WHOLE,
	LOG_DAMAGED, /* Records of this shard are or may be missing: it must
		      * not vote, acknowledge or confirm (DESIGN D4). */
};
/* `why`: what is damaged and where. A ballot that is lost (both copies bad, or
 * older than a batch of the log says) is LOG_DAMAGED too; ballot_good, asked
 * after log_open, tells which of the two it is. log_base ends the one, log_vote
 * the other. */
enum log_status log_status(const struct log *log, uint32_t shard,
			   struct detail *why);

/* What the log holds of a shard, unsynced appends included: entries
 * first..last; first = last + 1 when none. Below `first` they were recycled
 * because a floor allowed it: a state file that ends below first - 1 is older
 * than the log and is to be rebuilt. */
struct log_range {
	uint64_t first;
	uint64_t last;
	uint64_t last_term; /* 0 when unknown: last is 0 or below the floor. */
};
struct log_range log_range(const struct log *log, uint32_t shard);
/* The largest `bytes` that log_append takes: ENTRY_BYTES_MAX, or less where
 * segments are small. */
uint32_t log_entry_bytes_max(const struct log *log);

/* One record that recovery found, in index order, above the floor; after a
 * conflict was overwritten only the newer one. */
struct log_entry {
	uint64_t index;
	uint64_t term;
	uint16_t type; /* RAFT_COMMAND, ...: opaque here. */
	const void *data;
	uint32_t bytes;
};
/* Calls `cb` for each; data is valid inside the call only. Then forgets them.
 * `base_index`/`base_term` (may be NULL): of the last LOG base record
 * (log_base), 0 when there is none. */
enum rc log_recovered(struct log *log, uint32_t shard,
		      enum rc (*cb)(void *arg, const struct log_entry *e),
		      void *arg, uint64_t *base_index, uint64_t *base_term);

/* `l` may be NULL: nobody listens any longer. */
void log_listen(struct log *log, uint32_t shard, struct log_listener *l);

/*
 * Append one entry; copies the data. Entries of the shard at and above
 * `e->index` that were appended before are thereby void (truncation). Returns
 * the ticket that `durable` will reach. Bounded by the callers (they stop at
 * UNSYNCED_BYTES_MAX); no memory is fail-stop.
 */
uint64_t log_append(struct log *log, uint32_t shard, const struct log_entry *e);
/* The shard's log is void up to and including everything appended so far; it
 * goes on at index + 1 (a snapshot was installed). */
uint64_t log_base(struct log *log, uint32_t shard, uint64_t index,
		  uint64_t term);
/* Term and vote, durable with (before) the next batch. */
uint64_t log_vote(struct log *log, uint32_t shard,
		  const struct ballot_slot *slot);

/* The shard's synced main state file contains everything up to `index`. */
void log_floor(struct log *log, uint32_t shard, uint64_t index);

/* The log is three quarters full and this shard is among those that pin it (or
 * no segment is free at all): the owner answers OVERLOADED until its floor has
 * moved. Appends are still taken; they become durable when there is room. */
bool log_full(const struct log *log, uint32_t shard);
/* Bytes of disk without which the log stalls when its head is full: a segment
 * while it has only one, else 0. */
uint64_t log_room(const struct log *log);

/* No segment is free: what was appended waits for room, as long as it takes. */
bool log_stalled(const struct log *log);

/* True while the writer works on a batch: a lone voter collects meanwhile. */
bool log_busy(const struct log *log);
/* Appended and not yet durable, all shards. */
uint64_t log_unsynced_bytes(const struct log *log);

struct log_stats {
	uint64_t batches;
	uint64_t syncs; /* fdatasync calls of the writer, all files. */
	uint64_t bytes; /* Written, padding and trailers included. */
	uint64_t sync_ns_sum;
	uint64_t sync_ns_max;
	uint64_t last_sync_ms; /* env_now_ms of the last completed batch. */
	uint64_t segments;
	uint64_t segments_free;
	uint64_t live_bytes; /* From the oldest live record to the head. */
	uint64_t bytes_max;
};
void log_stats(const struct log *log, struct log_stats *out);

/* Asynchronous end: `closed` on the loop thread once the writer is idle. What
 * was appended before is written first. */
void log_close(struct log *log, void (*closed)(void *arg), void *arg);
/* The simulator's kill: frees memory, writes nothing. */
void log_discard(struct log *log);

/* Offline: reads everything, reports each finding through `report`, one line of
 * text; returns RC_OK when all is whole, RC_CORRUPT otherwise. `dump` (may be
 * NULL) gets every record. */
enum rc log_verify(struct disk *disk, const struct log_config *cfg,
		   void (*report)(void *arg, const char *line),
		   void (*dump)(void *arg, uint32_t shard,
				const struct log_entry *e),
		   void *arg, struct detail *why);

#endif
