/*
 * htab - intrusive hash table with chaining.
 *
 * Loop thread only. The user embeds a `struct hnode`, computes a good 64-bit
 * hash (keys from outside: a keyed one) and compares keys itself. Grows by
 * doubling; growth that finds no memory is not an error, chains get longer.
 */
#ifndef HOLDFAST_BASE_HTAB_H
#define HOLDFAST_BASE_HTAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct hnode {
	struct hnode *next;
	uint64_t hash;
};

struct htab {
	struct hnode **slots;
	size_t mask; /* Slots - 1; slots are a power of two. */
	size_t n;
};

/* RC_NOMEM when even the first slots cannot be had. */
enum rc htab_init(struct htab *t, size_t slots_hint);
/* The nodes belong to the user; release only forgets them. */
void htab_release(struct htab *t);
void htab_insert(struct htab *t, struct hnode *node, uint64_t hash);
/* `node` must be in the table. */
void htab_remove(struct htab *t, struct hnode *node);

/* Where the hash's chain begins, for who wants it in the cache. */
static inline struct hnode *const *htab_slot(const struct htab *t,
					     uint64_t hash)
{
	return &t->slots[hash & t->mask];
}

/* First node of the hash's chain; go on with ->next, skipping other hashes. */
static inline struct hnode *htab_first(const struct htab *t, uint64_t hash)
{
	return *htab_slot(t, hash);
}

/* Visit every node; `cb` may remove the node it is given, nothing else. */
void htab_each(struct htab *t, void (*cb)(void *arg, struct hnode *node),
	       void *arg);

#endif
