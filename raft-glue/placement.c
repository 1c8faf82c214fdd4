#include "raft-glue/placement.h"

#include "node/base/check.h"
#include "node/base/limits.h"

_Static_assert(HASH_BYTES == OID_BYTES, "an id is one hash");

void placement_id(const uint8_t key[HASH_KEY_BYTES], struct pack_bytes tenant,
		  struct pack_bytes env, struct pack_bytes cls,
		  struct pack_bytes name, struct oid *out)
{
	const struct hash_part parts[] = {
		{ tenant.p, tenant.n },
		{ env.p, env.n },
		{ cls.p, cls.n },
		{ name.p, name.n },
	};

	crypto_hash(key, HASH_KEY_BYTES, parts, ARRAY_LEN(parts), out->b);
}

uint32_t placement_shard(const uint8_t key[HASH_KEY_BYTES],
			 const struct oid *id, uint32_t shards)
{
	PRE(shards > 0);
	PRE(shards <= SHARDS_MAX);
	return (uint32_t)(crypto_siphash(key, id->b, OID_BYTES) % shards);
}
