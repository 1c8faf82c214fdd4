/*
 * recovery - what a log says when it is read from the beginning.
 *
 * Blocking; before the loop, or offline. recovery_read reads and judges and
 * changes nothing; recovery_mend makes durable what was read and clears what a
 * torn batch left. The argument why nothing is mistaken stands at the top of
 * recovery.c. Used by log.c.
 */
#ifndef HOLDFAST_RAFT_GLUE_RECOVERY_H
#define HOLDFAST_RAFT_GLUE_RECOVERY_H

#include <sys/queue.h>

#include "raft-glue/log.h"
#include "raft-glue/segment.h"

/* One file of log/, and what of it still lives. */
struct log_segment {
	TAILQ_ENTRY(log_segment) link;
	struct disk_file *file; /* For writing; the log's. */
	uint32_t slot;
	uint64_t seq; /* 0: not in the chain. */
	/* Per shard: the highest index whose record here may be live, 0: none;
	 * bytes of its records here. */
	uint64_t max[SHARDS_MAX];
	uint64_t bytes[SHARDS_MAX];
};
TAILQ_HEAD(log_segments, log_segment);

/* `r` has become part of `in`, one of `live`; `last` was the last index of its
 * shard before. */
void log_segment_note(struct log_segments *live, struct log_segment *in,
		      const struct record *r, uint64_t last);

/* A record of a shard that is in memory. */
struct recovered_entry {
	const uint8_t *data;
	uint64_t term;
	uint32_t bytes;
	uint16_t type;
	bool here; /* False: a hole. */
};

struct recovered_chunk;

struct recovered_shard {
	uint64_t floor; /* Entries above are kept: `of` begins at floor + 1. */
	uint64_t first; /* Below it records were recycled. */
	uint64_t last;
	uint64_t last_term;
	uint64_t base;
	uint64_t base_term;
	bool known;   /* `last` is. */
	bool doubt;   /* Something of it may be lost since `last`. */
	bool damaged; /* Something of it is. */
	struct detail why;
	struct recovered_entry *of;
	size_t n;
	size_t cap;
	struct recovered_chunk *chunks;
};

struct recovery_file;

struct recovery {
	struct disk *disk;
	const struct log_config *cfg;
	void (*report)(void *arg, const char *line);
	void (*dump)(void *arg, uint32_t shard, const struct log_entry *e);
	void *arg;
	unsigned findings;

	struct recovered_shard shard[SHARDS_MAX];
	struct log_segments live; /* Oldest first; the last is the head. */
	struct log_segments idle; /* Free, the preferred first. */
	uint64_t total;           /* Files of both. */
	uint64_t next_seq;        /* Of the segment after the head. */
	uint64_t head_offset;
	bool broken; /* Nothing may be added to the head: go on behind it. */
	uint64_t next_number;
	uint8_t hash[HASH_BYTES]; /* Chained, of the last batch. */
	uint64_t ballot;          /* The highest ballot counter in a batch. */
	uint32_t slot_max;

	/* Private. */
	struct recovery_file *files;
	size_t files_n;
	size_t files_cap;
	enum rc list_rc;
	uint8_t *image;
	uint8_t *scratch;
	uint8_t *records;
	uint64_t newest;   /* Numbers up to it are old. */
	uint64_t expected; /* The next; 0: unknown. */
	bool hash_known;
	uint64_t wipe_from;
	uint64_t wipe_to;
	struct log_segment *last_in; /* Of the last whole batch, NULL: none. */
	uint64_t last_offset;
	uint8_t *last_batch;
	size_t last_bytes;
};

/*
 * Read the whole log. `floors` as log_open, NULL: nothing is known to be dead.
 * `report` and `dump` may be NULL. RC_NOT_FOUND: there is no log. RC_VERSION,
 * RC_FOREIGN (another cluster's or node's), RC_NOMEM, RC_IO. Damage is no error
 * here: `findings` counts it. recovery_release in every case.
 */
enum rc recovery_read(struct recovery *r, struct disk *disk,
		      const struct log_config *cfg, const uint64_t *floors,
		      void (*report)(void *arg, const char *line),
		      void (*dump)(void *arg, uint32_t shard,
				   const struct log_entry *e),
		      void *arg, struct detail *why);
/* Any failure: the log is not opened. */
enum rc recovery_mend(struct recovery *r, struct detail *why);
/* Nothing at or above `floor` is missing, and no doubt is left. */
bool recovery_whole(const struct recovered_shard *s);
/* The entries of one shard. */
void recovery_forget(struct recovered_shard *s);
/* All but `live` and `idle`, which the caller may have taken (emptied). */
void recovery_release(struct recovery *r);

#endif
