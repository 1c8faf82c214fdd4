/*
 * bridge - joins one shard (raft-glue) to its objects and their storage
 * (objects): the only file that sees both.
 *
 * Loop thread. It is the shard's `app` and the space's `host`: units of a turn
 * become one entry (shard_want / collect), marks become log indexes and back,
 * commits open gates, applied entries go to storage, stored and checkpointed
 * indexes come back as marks and floors.
 */
#ifndef HOLDFAST_CORE_BRIDGE_H
#define HOLDFAST_CORE_BRIDGE_H

#include "node/core/core.h"
#include "node/core/stamp.h"
#include "objects/object.h"
#include "raft-glue/compare.h"
#include "raft-glue/round.h"
#include "raft-glue/shard.h"

struct bridge;

struct bridge_config {
	struct shard_config shard;
	struct storage_config storage;
};

/*
 * Blocking, before the loop: opens the shard's state file. The log is opened
 * afterwards with every bridge's floor (bridge_floor), then bridge_attach opens
 * the shard over it.
 */
enum rc bridge_open(struct core *core, struct env *env, struct disk *disk,
		    const struct bridge_config *cfg, struct bridge **out,
		    struct detail *why);
uint64_t bridge_floor(const struct bridge *b);
enum rc bridge_attach(struct bridge *b, struct log *log, struct transport *t,
		      struct rounds *rounds, struct detail *why);
void bridge_start(struct bridge *b);

struct shard *bridge_shard(struct bridge *b);
struct space *bridge_space(struct bridge *b);
struct storage *bridge_storage(struct bridge *b);
/* What comparing the replicas' states found; zeros of a lone voter. */
void bridge_compares(const struct bridge *b, struct compare_stats *out);
uint64_t bridge_node_id(const struct bridge *b);
/* This node owns the shard and takes calls: it leads, everything that was in
 * its log at election is applied, a majority has said what the time is, and it
 * is not about to hand over. */
bool bridge_owns(const struct bridge *b);
/* The owner's now (DESIGN D8); 0 while this node does not own the shard. */
uint64_t bridge_now_ns(const struct bridge *b);
/* The majority asked about the time has answered, for the election in `term`.
 */
void bridge_stamped(struct bridge *b, uint64_t term);

/* As shard_transfer, after what was begun is committed and what objects may
 * still spend from memory is closed (at most HAND_OVER_SETTLE_MS); calls that
 * come meanwhile are refused, so that none ends unknown. What is refused only
 * then is not told. */
enum rc bridge_transfer(struct bridge *b, uint64_t to);

/* Compare the next range of the state with its hash, in the background; a
 * no-op while the one before is under way. An owner also proposes a scrub
 * entry, at which all replicas are compared, unless they were since the last
 * change or something larger is under way. */
void bridge_scrub(struct bridge *b);

/* Flush, checkpoint, stop; `closed` at the end. */
void bridge_close(struct bridge *b, void (*closed)(void *arg), void *arg);
void bridge_discard(struct bridge *b);

#endif
