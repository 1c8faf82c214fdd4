/*
 * Addresses stand in sets of four. A new one takes a free place, else that of
 * one which was not looked at since the last time somebody came by (a clock of
 * four), and never that of one with calls in flight. What was learned of a node
 * carries its epoch, which ends when the node is lost: forgetting is one
 * addition.
 */
#include "client/routes.h"

#include <stdlib.h>
#include <string.h>

#include "client/check.h"

#define WAYS 4u

struct routes {
	uint64_t seed;
	uint32_t sets; /* A power of two. */
	uint32_t epochs[ROUTES_NODES_MAX];
	uint32_t owners[ROUTES_SHARDS_MAX];
	uint32_t learned[ROUTES_SHARDS_MAX]; /* The owner's epoch then. */
	struct route table[];                /* sets * WAYS */
};

enum rc routes_new(uint64_t seed, uint32_t addresses_max, struct routes **out)
{
	uint32_t n = 4 * WAYS;
	struct routes *r;
	uint32_t i;

	if (addresses_max == 0 || addresses_max > ROUTES_ADDRESSES_MAX)
		addresses_max = ROUTES_ADDRESSES_MAX;
	while (n < addresses_max)
		n *= 2;
	r = calloc(1, sizeof(*r) + (size_t)n * sizeof(r->table[0]));
	if (r == NULL)
		return RC_NOMEM;
	r->seed = seed;
	r->sets = n / WAYS;
	for (i = 0; i < ROUTES_SHARDS_MAX; i++)
		r->owners[i] = ROUTES_NONE;
	*out = r;
	return RC_OK;
}

void routes_free(struct routes *r)
{
	free(r);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

uint64_t routes_hash(const struct routes *r, struct pack_bytes address)
{
	uint64_t h = r->seed ^ address.n;
	uint64_t word;
	size_t at = 0;
	size_t n;

	while (at < address.n) {
		n = address.n - at < 8 ? address.n - at : 8;
		word = 0;
		memcpy(&word, address.p + at, n);
		h = mix(h ^ word) + 0x9e3779b97f4a7c15u;
		at += n;
	}
	return mix(h);
}

static struct route *set_of(struct routes *r, uint64_t hash)
{
	return &r->table[(size_t)(hash & (r->sets - 1)) * WAYS];
}

struct route *routes_find(struct routes *r, uint64_t hash)
{
	struct route *set = set_of(r, hash);
	uint32_t i;

	for (i = 0; i < WAYS; i++) {
		if (set[i].used && set[i].hash == hash) {
			set[i].recent = true;
			return &set[i];
		}
	}
	return NULL;
}

/* The one to be replaced; those that were looked at get another round. */
static struct route *set_victim(struct route *set)
{
	struct route *victim = NULL;
	uint32_t i;

	for (i = 0; i < WAYS; i++) {
		if (!set[i].used)
			return &set[i];
		if (set[i].in_flight > 0)
			continue;
		if (victim == NULL || (victim->recent && !set[i].recent))
			victim = &set[i];
	}
	if (victim != NULL && victim->recent)
		for (i = 0; i < WAYS; i++)
			set[i].recent = false;
	return victim;
}

struct route *routes_make(struct routes *r, uint64_t hash)
{
	struct route *e = routes_find(r, hash);

	if (e != NULL)
		return e;
	e = set_victim(set_of(r, hash));
	if (e == NULL)
		return NULL;
	*e = (struct route){ .hash = hash,
			     .shard = ROUTES_NONE,
			     .owner = ROUTES_NONE,
			     .used = true,
			     .recent = true };
	return e;
}

uint32_t routes_owner(const struct routes *r, const struct route *e)
{
	uint32_t owner = e->owner;
	uint32_t epoch = e->epoch;

	if (e->shard != ROUTES_NONE) {
		owner = r->owners[e->shard];
		epoch = r->learned[e->shard];
	}
	if (owner == ROUTES_NONE || r->epochs[owner] != epoch)
		return ROUTES_NONE;
	return owner;
}

void routes_learn(struct routes *r, uint64_t hash, uint32_t shard,
		  uint32_t node)
{
	struct route *e = routes_make(r, hash);
	uint32_t epoch = 0;

	PRE(node == ROUTES_NONE || node < ROUTES_NODES_MAX);
	if (node != ROUTES_NONE)
		epoch = r->epochs[node];
	if (shard >= ROUTES_SHARDS_MAX)
		shard = e != NULL ? e->shard : ROUTES_NONE;
	if (e != NULL) {
		e->shard = shard;
		e->owner = node;
		e->epoch = epoch;
	}
	if (shard != ROUTES_NONE) {
		r->owners[shard] = node;
		r->learned[shard] = epoch;
	}
}

void routes_lost(struct routes *r, uint32_t node)
{
	PRE(node < ROUTES_NODES_MAX);
	r->epochs[node]++;
}
