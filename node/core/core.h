/*
 * core - what decides about calls on a node: authority, routes, shards and
 * their objects, without libuv, TLS, sockets or files of its own. The daemon
 * (node/node.c) and the simulator (tests/sim/) run it unchanged.
 *
 * Loop thread.
 */
#ifndef HOLDFAST_CORE_CORE_H
#define HOLDFAST_CORE_CORE_H

#include "node/base/disk.h"
#include "node/base/env.h"
#include "node/base/link.h"
#include "node/core/bind.h"
#include "raft-glue/identity.h"
#include "raft-glue/log.h"
#include "raft-glue/transport.h"

struct core;
struct call;
struct bridge;
struct space;

struct core_config {
	uint32_t calls_max;
	uint32_t objects_max;
	uint64_t objects_bytes_max;
	uint32_t object_idle_ms;
	uint32_t window_ms;
	uint32_t window_bytes;
	uint64_t log_bytes_max;
	uint64_t reserve_bytes;
	uint64_t tenant_objects_max;
	uint64_t tenant_bytes_max;
	uint32_t election_ms;
	uint32_t heartbeat_ms;
	bool spread; /* Keep the leaderships spread over the nodes. */
	uint32_t trailing_entries; /* TRAILING_ENTRIES */
	uint32_t checkpoint_bytes; /* STATE_WAL_BYTES_MAX */
	uint32_t scrub_ms; /* One shard each: its states are compared. */
};
void core_config_default(struct core_config *cfg);

/*
 * Format an empty data directory: members, log, ballot, state directory,
 * identity last. Blocking. `id` comes with node_id, node_name, shards,
 * segment_bytes, and cluster_id, hash_key, incarnation where they are not zero
 * (the founders of a cluster share the first two and know each other's third);
 * what is zero is drawn. `members` are all founders, this node included; n = 0:
 * this node alone.
 */
enum rc core_format(struct disk *disk, struct env *env, struct identity *id,
		    const struct member *members, size_t n, struct detail *why);

/* The same for a member whose disk was lost (`holdfast node reset`): `id` and
 * `members` are as the others know them, with its new incarnation. It knows
 * neither term nor vote of any shard, abstains, and takes everything from the
 * others (DESIGN D4). */
enum rc core_format_lost(struct disk *disk, struct env *env,
			 struct identity *id, const struct member *members,
			 size_t n, struct detail *why);

/*
 * Open a formatted data directory: identity (a new boot), state files, ballot,
 * log, shards. Blocking; on RC_OK the loop must run; `ready` (may be NULL)
 * fires once when this node leads or follows every shard. The bind stays the
 * caller's.
 */
/* `links` may be NULL for a node without peers. */
enum rc core_open(struct env *env, struct disk *disk,
		  struct link *const links[LINKS],
		  const struct core_config *cfg, struct bind *bind,
		  void (*ready)(void *arg), void *arg, struct core **out,
		  struct detail *why);
/* Refuse new calls with OVERLOADED; calls in flight go on. */
void core_drain(struct core *core);
/* Hand the leaderships over, refuse new calls, checkpoint everything and end;
 * calls in flight end first (their deadlines bound it). The links must stay
 * until `closed`. */
void core_close(struct core *core, void (*closed)(void *arg), void *arg);
/* core_close was called: shards and their storage may be gone already. */
bool core_is_closing(const struct core *core);
/* The simulator's kill. */
void core_discard(struct core *core);

const struct identity *core_identity(const struct core *core);
const struct bind *core_bind(const struct core *core);
struct log *core_log(struct core *core);
uint32_t core_shards(const struct core *core);
struct bridge *core_bridge(struct core *core, uint32_t shard);
struct transport *core_transport(struct core *core);
const struct members *core_members(const struct core *core);
/* Hand the leadership of a shard over; as shard_transfer. */
enum rc core_transfer(struct core *core, uint32_t shard, uint64_t to);

struct core_stats {
	uint64_t calls; /* Begun. */
	uint64_t calls_open;
	uint64_t calls_limit;    /* Of clients, in flight: admission.h. */
	uint64_t calls_refused;  /* At it; of clients, */
	uint64_t served_refused; /* and of other nodes. */
	uint64_t calls_bytes;
	uint64_t by_rc[64]; /* Ended, per wire code. */
	uint64_t rounds;    /* Of leadership, begun (raft-glue/round.h). */
};
void core_stats(const struct core *core, struct core_stats *out);

#endif
