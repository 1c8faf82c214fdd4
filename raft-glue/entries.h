/*
 * entries - the tail of one shard's log in memory.
 *
 * Loop thread. What the raft core knows by index and term only: the data of the
 * entries that are not yet durable, not yet applied, or still wanted by a
 * follower. A ring, indexed by log index; the data is malloc'ed and owned here.
 * It also answers how far the shard's own log is durable: by ticket, so that an
 * entry that was overwritten before its write completed is never reported
 * (guard B11 of raft_step). Used by shard.c.
 */
#ifndef HOLDFAST_RAFT_GLUE_ENTRIES_H
#define HOLDFAST_RAFT_GLUE_ENTRIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct entry {
	uint64_t term;
	uint64_t ticket; /* Of log_append; 0: read from the log at start. */
	void *data;      /* Never NULL. */
	uint64_t sum;    /* entries_put: of all data up to here. */
	uint32_t bytes;
	uint16_t type; /* enum step_type */
};

struct entries {
	struct entry *ring;
	size_t slots;     /* A power of two, or 0. */
	uint64_t first;   /* Index of the first entry held. */
	uint64_t next;    /* Index after the last one. */
	uint64_t durable; /* All up to here are durable. */
	uint64_t bytes;   /* Of all data held. */
	uint64_t sum;     /* Of the data of all that was dropped. */
};

/* Nothing is held; the next entry has index `next` (1..), everything below is
 * durable. */
void entries_init(struct entries *t, uint64_t next);
void entries_release(struct entries *t);

/* Room for one more: the next entries_put cannot fail. False: no memory. */
bool entries_reserve(struct entries *t);
/*
 * Put `e` at `index`, which is at most t->next and at least t->first; what was
 * held there and above is dropped, and is not durable any more. The data
 * belongs to the ring from here on; false (no memory, nothing changed): it does
 * not.
 */
bool entries_put(struct entries *t, uint64_t index, const struct entry *e);
/* NULL when it is not held. Valid until it is dropped or overwritten. */
const struct entry *entries_get(const struct entries *t, uint64_t index);
/* Bytes of the data that is held above `index`. */
uint64_t entries_above(const struct entries *t, uint64_t index);
/* Forget what is at or below `index`, which must be durable. */
void entries_drop(struct entries *t, uint64_t index);
/* Everything written with a ticket up to `ticket` is durable. Returns the index
 * up to which all entries are. */
uint64_t entries_durable(struct entries *t, uint64_t ticket);

#endif
