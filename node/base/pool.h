/*
 * pool - a fixed number of equal things, allocated at start.
 *
 * Loop thread only. An empty pool is an answer (RC_OVERLOADED), not an
 * accident. Slots are zeroed when taken. Memory is reserved at once but touched
 * only when used (calloc of large blocks), most recently used first, so an idle
 * node stays small.
 */
#ifndef HOLDFAST_BASE_POOL_H
#define HOLDFAST_BASE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct pool {
	uint8_t *base;
	size_t item_bytes;
	uint32_t items_max;
	uint32_t used;
	uint32_t fresh; /* Items from here on were never taken. */
	void *free_list;
};

enum rc pool_init(struct pool *p, size_t item_bytes, uint32_t items_max);
void pool_release(struct pool *p); /* CHECKs that nothing is taken. */
/* The same, whatever is taken: the simulator's kill. */
void pool_discard(struct pool *p);
void *pool_take(struct pool *p); /* NULL when empty. */
void pool_put(struct pool *p, void *item);

#endif
