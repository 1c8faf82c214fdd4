#include "node/base/pool.h"

#include "node/base/check.h"

/* Under AddressSanitizer a slot that nobody holds is unreadable, like memory
 * that was given back to malloc. */
#if defined(__has_include)
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define ALIGN 16u

enum rc pool_init(struct pool *p, size_t item_bytes, uint32_t items_max)
{
	PRE(item_bytes > 0);
	PRE(items_max > 0);
	PRE(item_bytes <= SIZE_MAX / 2 / items_max - ALIGN);
	*p = (struct pool){ 0 };
	p->item_bytes = (item_bytes + ALIGN - 1) / ALIGN * ALIGN;
	p->items_max = items_max;
	p->base = calloc(items_max, p->item_bytes);
	if (p->base == NULL)
		return RC_NOMEM;
	ASAN_POISON_MEMORY_REGION(p->base, items_max * p->item_bytes);
	return RC_OK;
}

void pool_release(struct pool *p)
{
	CHECK(p->used == 0);
	pool_discard(p);
}

void pool_discard(struct pool *p)
{
	if (p->base != NULL)
		ASAN_UNPOISON_MEMORY_REGION(p->base,
					    p->items_max * p->item_bytes);
	free(p->base);
	*p = (struct pool){ 0 };
}

/* A slot that was taken before: the one put last, as it may still be in the
 * cache. */
static void *take_again(struct pool *p)
{
	void *item = p->free_list;

	ASAN_UNPOISON_MEMORY_REGION(item, p->item_bytes);
	memcpy(&p->free_list, item, sizeof(p->free_list));
	memset(item, 0, p->item_bytes);
	return item;
}

static void *take_fresh(struct pool *p)
{
	void *item = p->base + (size_t)p->fresh * p->item_bytes;

	ASAN_UNPOISON_MEMORY_REGION(item, p->item_bytes);
	p->fresh++;
	return item;
}

void *pool_take(struct pool *p)
{
	void *item;

	if (p->free_list != NULL)
		item = take_again(p);
	else if (p->fresh < p->items_max)
		item = take_fresh(p);
	else
		return NULL;
	p->used++;
	return item;
}

void pool_put(struct pool *p, void *item)
{
	size_t at = (size_t)((uint8_t *)item - p->base);

	PRE(item != NULL);
	PRE((uint8_t *)item >= p->base);
	PRE(at < (size_t)p->fresh * p->item_bytes);
	PRE(at % p->item_bytes == 0);
	PRE(p->used > 0);
	PRE(item != p->free_list);
	memcpy(item, &p->free_list, sizeof(p->free_list));
	p->free_list = item;
	p->used--;
	ASAN_POISON_MEMORY_REGION(item, p->item_bytes);
}
