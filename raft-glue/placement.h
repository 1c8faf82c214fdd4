/*
 * placement - object -> id -> shard. Pure.
 *
 * An object's id is BLAKE2b-128, keyed with the cluster's hash key, of tenant,
 * environment, class and name, so nobody outside can compute it; its shard is
 * SipHash under the same key of the id, so that nobody can aim ids at a shard
 * either.
 */
#ifndef HOLDFAST_RAFT_GLUE_PLACEMENT_H
#define HOLDFAST_RAFT_GLUE_PLACEMENT_H

#include <stdint.h>

#include "client/proto/pack.h"
#include "node/base/crypto.h"
#include "node/base/oid.h"

void placement_id(const uint8_t key[HASH_KEY_BYTES], struct pack_bytes tenant,
		  struct pack_bytes env, struct pack_bytes cls,
		  struct pack_bytes name, struct oid *out);

/* Ids of addresses that were asked for lately, because an id costs half a
 * microsecond, and a call is for one that was called before. An address that
 * does not fit is hashed each time; two that meet in a slot drive each other
 * out, so whoever chooses addresses that do has slower calls. */
#define PLACED       4096u
#define PLACED_BYTES 75u

struct placed {
	uint8_t n[4]; /* Of tenant, environment, class and name; {0}: none. */
	uint8_t bytes[PLACED_BYTES];
	uint8_t unused;
	struct oid id;
};

/* Zeroed at first. For one key only. */
struct placements {
	struct placed placed[PLACED];
};

/* As placement_id. */
void placements_id(struct placements *p, const uint8_t key[HASH_KEY_BYTES],
		   struct pack_bytes tenant, struct pack_bytes env,
		   struct pack_bytes cls, struct pack_bytes name,
		   struct oid *out);

uint32_t placement_shard(const uint8_t key[HASH_KEY_BYTES],
			 const struct oid *id, uint32_t shards);

#endif
