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

/* Nobody relies on it: it only spreads. */
static size_t slot_of(struct pack_bytes cls, struct pack_bytes name)
{
	uint64_t h = name.n + (cls.n << 8);
	uint64_t word;
	size_t at;

	for (at = 0; at < name.n; at += sizeof(word)) {
		word = 0;
		memcpy(&word, name.p + at,
		       name.n - at < sizeof(word) ? name.n - at : sizeof(word));
		h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
		h ^= h >> 32;
	}
	return h % PLACED;
}

void placements_id(struct placements *p, const uint8_t key[HASH_KEY_BYTES],
		   struct pack_bytes tenant, struct pack_bytes env,
		   struct pack_bytes cls, struct pack_bytes name,
		   struct oid *out)
{
	const struct pack_bytes parts[] = { tenant, env, cls, name };
	struct placed *slot = &p->placed[slot_of(cls, name)];
	size_t left = PLACED_BYTES;
	bool same = true;
	uint8_t *at = slot->bytes;
	size_t i;

	for (i = 0; i < ARRAY_LEN(parts); i++) {
		if (parts[i].n > left) {
			placement_id(key, tenant, env, cls, name, out);
			return;
		}
		left -= parts[i].n;
		same = same && parts[i].n == slot->n[i] &&
		       memcmp(at, parts[i].p, parts[i].n) == 0;
		at += parts[i].n;
	}
	if (same && left < PLACED_BYTES) {
		*out = slot->id;
		return;
	}
	placement_id(key, tenant, env, cls, name, out);
	for (i = 0, at = slot->bytes; i < ARRAY_LEN(parts); i++) {
		slot->n[i] = (uint8_t)parts[i].n;
		memcpy(at, parts[i].p, parts[i].n);
		at += parts[i].n;
	}
	slot->id = *out;
}

uint32_t placement_shard(const uint8_t key[HASH_KEY_BYTES],
			 const struct oid *id, uint32_t shards)
{
	PRE(shards > 0);
	PRE(shards <= SHARDS_MAX);
	return (uint32_t)(crypto_siphash(key, id->b, OID_BYTES) % shards);
}
