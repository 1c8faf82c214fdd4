#include "node/base/sm.h"

#include "node/base/check.h"

#define NOWHERE 0xffu /* In `past`: before the first state. */

void sm_init(struct sm *sm, const struct sm_state *table, uint8_t states,
	     uint8_t first)
{
	PRE(states > 0);
	PRE(states <= 32);
	PRE(first < states);
	sm->table = table;
	sm->states = states;
	sm->now = first;
	memset(sm->past, NOWHERE, sizeof(sm->past));
}

void sm_move(struct sm *sm, uint8_t to)
{
	PRE(to < sm->states);
	if (!(sm->table[sm->now].next & (UINT32_C(1) << to)))
		panic_at(__FILE__, __LINE__, sm->table[sm->now].name,
			 sm->table[to].name);
	memmove(sm->past + 1, sm->past, sizeof(sm->past) - 1);
	sm->past[0] = sm->now;
	sm->now = to;
}

const char *sm_name(const struct sm *sm)
{
	return sm->table[sm->now].name;
}
