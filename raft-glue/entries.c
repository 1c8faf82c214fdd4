#include "raft-glue/entries.h"

#include <stdlib.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

#define SLOTS_MIN 16u

static struct entry *entries_slot(const struct entries *t, uint64_t index)
{
	return &t->ring[index & (t->slots - 1)];
}

void entries_init(struct entries *t, uint64_t next)
{
	PRE(next > 0);
	*t = (struct entries){
		.first = next,
		.next = next,
		.durable = next - 1,
	};
}

static void entries_forget(struct entries *t, uint64_t index)
{
	struct entry *e = entries_slot(t, index);

	t->bytes -= e->bytes;
	free(e->data);
	*e = (struct entry){ 0 };
}

void entries_release(struct entries *t)
{
	while (t->first < t->next)
		entries_forget(t, t->first++);
	free(t->ring);
	*t = (struct entries){ 0 };
}

static bool entries_grow(struct entries *t)
{
	struct entries wide = *t;
	uint64_t i;

	wide.slots = t->slots == 0 ? SLOTS_MIN : t->slots * 2;
	wide.ring = calloc(wide.slots, sizeof(*wide.ring));
	if (wide.ring == NULL)
		return false;
	for (i = t->first; i < t->next; i++)
		*entries_slot(&wide, i) = *entries_slot(t, i);
	free(t->ring);
	*t = wide;
	return true;
}

bool entries_reserve(struct entries *t)
{
	return t->next - t->first < t->slots || entries_grow(t);
}

bool entries_put(struct entries *t, uint64_t index, const struct entry *e)
{
	PRE(index >= t->first);
	PRE(index <= t->next);
	PRE(e->data != NULL);

	if (index == t->next && !entries_reserve(t))
		return false;
	while (t->next > index)
		entries_forget(t, --t->next);
	if (t->durable >= index)
		t->durable = index - 1;
	*entries_slot(t, index) = *e;
	t->bytes += e->bytes;
	t->next++;
	entries_slot(t, index)->sum = t->sum + t->bytes;
	return true;
}

uint64_t entries_above(const struct entries *t, uint64_t index)
{
	if (index < t->first)
		return t->bytes;
	if (index + 1 >= t->next)
		return 0;
	return t->sum + t->bytes - entries_slot(t, index)->sum;
}

const struct entry *entries_get(const struct entries *t, uint64_t index)
{
	if (index < t->first || index >= t->next)
		return NULL;
	return entries_slot(t, index);
}

void entries_drop(struct entries *t, uint64_t index)
{
	PRE(index <= t->durable);
	while (t->first < t->next && t->first <= index) {
		t->sum += entries_slot(t, t->first)->bytes;
		entries_forget(t, t->first++);
	}
}

uint64_t entries_durable(struct entries *t, uint64_t ticket)
{
	while (t->durable + 1 < t->next &&
	       (entries_slot(t, t->durable + 1)->ticket <= ticket ||
		MUTANT(durable_by_index)))
		t->durable++;
	return t->durable;
}
