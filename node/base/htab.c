#include "node/base/htab.h"

#include "node/base/check.h"

#define SLOTS_MIN 16u
#define SLOTS_MAX ((size_t)1 << 40)

static size_t slots_for(size_t hint)
{
	size_t slots = SLOTS_MIN;

	while (slots < hint && slots < SLOTS_MAX)
		slots *= 2;
	return slots;
}

enum rc htab_init(struct htab *t, size_t slots_hint)
{
	size_t slots = slots_for(slots_hint);

	*t = (struct htab){ 0 };
	t->slots = calloc(slots, sizeof(*t->slots));
	if (t->slots == NULL) {
		slots = SLOTS_MIN;
		t->slots = calloc(slots, sizeof(*t->slots));
	}
	if (t->slots == NULL)
		return RC_NOMEM;
	t->mask = slots - 1;
	return RC_OK;
}

void htab_release(struct htab *t)
{
	free(t->slots);
	*t = (struct htab){ 0 };
}

static void push(struct hnode **slots, size_t mask, struct hnode *node)
{
	struct hnode **slot = &slots[node->hash & mask];

	node->next = *slot;
	*slot = node;
}

static void grow(struct htab *t)
{
	size_t slots = (t->mask + 1) * 2;
	struct hnode **wider;
	struct hnode *node;
	struct hnode *next;
	size_t i;

	if (slots > SLOTS_MAX)
		return;
	wider = calloc(slots, sizeof(*wider));
	if (wider == NULL)
		return;
	for (i = 0; i <= t->mask; i++) {
		for (node = t->slots[i]; node != NULL; node = next) {
			next = node->next;
			push(wider, slots - 1, node);
		}
	}
	free(t->slots);
	t->slots = wider;
	t->mask = slots - 1;
}

void htab_insert(struct htab *t, struct hnode *node, uint64_t hash)
{
	PRE(t->slots != NULL);
	if (t->n > t->mask)
		grow(t);
	node->hash = hash;
	push(t->slots, t->mask, node);
	t->n++;
}

void htab_remove(struct htab *t, struct hnode *node)
{
	struct hnode **at = &t->slots[node->hash & t->mask];

	while (*at != NULL && *at != node)
		at = &(*at)->next;
	CHECK(*at == node);
	CHECK(t->n > 0);
	*at = node->next;
	node->next = NULL;
	t->n--;
}

void htab_each(struct htab *t, void (*cb)(void *arg, struct hnode *node),
	       void *arg)
{
	struct hnode *node;
	struct hnode *next;
	size_t i;

	for (i = 0; i <= t->mask; i++) {
		for (node = t->slots[i]; node != NULL; node = next) {
			next = node->next;
			cb(arg, node);
		}
	}
}
