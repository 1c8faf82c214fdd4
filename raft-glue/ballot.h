/*
 * ballot - term and vote of every shard, durable before a frame leaves.
 *
 * Not in the log: a vote must not wait for entries, and the log may be damaged
 * while a vote must not be forgotten. File `ballot`: per shard two copies in
 * different 4 KiB blocks (pair.h), each with version, write counter, shard,
 * term, vote, the generation and hash of its state file, CRC-32C. A write goes
 * to both, one after the other, so a torn or bad one leaves the same in the
 * other. Byte by byte at the top of ballot.c.
 * ballot_open before the loop; ballot_write only on the log's writer thread;
 * the rest before the loop.
 */
#ifndef HOLDFAST_RAFT_GLUE_BALLOT_H
#define HOLDFAST_RAFT_GLUE_BALLOT_H

#include "node/base/disk.h"

struct ballot_slot {
	uint64_t term;
	uint64_t vote;             /* Node id, 0: none. */
	uint64_t state_generation; /* In the name of the state file. */
	uint8_t state_hash[16];    /* Of a staged state file, else zero. */
};

struct ballot;

/* RC_EXISTS: there is one that holds a term. What an interrupted format left is
 * overwritten. */
enum rc ballot_format(struct disk *disk, uint32_t shards, struct detail *why);
/* The same after the loss of a disk (`node reset`): what was voted on the one
 * before is not known, so no slot is good before it is written. */
enum rc ballot_format_lost(struct disk *disk, uint32_t shards,
			   struct detail *why);

/*
 * Reads from the device, not the page cache, and rewrites and syncs both copies
 * of each shard: nothing that was read counts as durable. RC_NOT_FOUND,
 * RC_VERSION (a newer Holdfast wrote it), RC_NOMEM, RC_IO, RC_NO_SPACE.
 * RC_CORRUPT is not returned for single shards: see ballot_good.
 */
enum rc ballot_open(struct disk *disk, uint32_t shards, struct ballot **out,
		    struct detail *why);
void ballot_close(struct ballot *b);

/* False when both copies of the shard are bad, or the file lost writes
 * (ballot_reconcile): ask after log_open. `why` (may be NULL) gets a sentence.
 * A ballot_write of the shard makes it good. */
bool ballot_good(const struct ballot *b, uint32_t shard);
enum rc ballot_check(const struct ballot *b, uint32_t shard,
		     struct detail *why);
/* What was last read or handed to ballot_write. */
struct ballot_slot ballot_get(const struct ballot *b, uint32_t shard);
/* Counts every write; batches of the log carry it, so that a ballot file that
 * lost writes is found. */
uint64_t ballot_counter(const struct ballot *b);

/* After ballot_open, before anything is written: the log holds a batch that was
 * written at `counter` (0: none). Ballots that have not counted as far lost a
 * write, and are not good until they are written again, over restarts too. */
enum rc ballot_reconcile(struct ballot *b, uint64_t counter,
			 struct detail *why);

/* Write these shards' slots and sync. Any failure: fail-stop. */
struct ballot_change {
	uint32_t shard;
	struct ballot_slot slot;
};
enum rc ballot_write(struct ballot *b, const struct ballot_change *changes,
		     size_t n, struct detail *why);

/* Offline: one line of text per finding. `*counter`: how far all shards of
 * which a copy is good have counted. RC_CORRUPT when there was a finding. */
enum rc ballot_verify(struct disk *disk, uint32_t shards,
		      void (*report)(void *arg, const char *line), void *arg,
		      uint64_t *counter, struct detail *why);

#endif
