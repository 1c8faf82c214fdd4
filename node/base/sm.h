/*
 * sm - a state machine: a table of allowed moves, and a trace of the last ones.
 *
 * Embedded by what has states; sm_move() CHECKs the move against the table.
 */
#ifndef HOLDFAST_BASE_SM_H
#define HOLDFAST_BASE_SM_H

#include <stdbool.h>
#include <stdint.h>

struct sm_state {
	const char *name;
	uint32_t next; /* Bit i set: a move to state i is allowed. */
	bool final;
};

struct sm {
	const struct sm_state *table;
	uint8_t states;
	uint8_t now;
	uint8_t past[6]; /* Latest first, for the panic dump. */
};

void sm_init(struct sm *sm, const struct sm_state *table, uint8_t states,
	     uint8_t first);
void sm_move(struct sm *sm, uint8_t to);
const char *sm_name(const struct sm *sm);

#endif
