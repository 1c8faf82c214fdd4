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
uint32_t placement_shard(const uint8_t key[HASH_KEY_BYTES],
			 const struct oid *id, uint32_t shards);

#endif
