/*
 * join - the units of an entry, those of one object made one.
 *
 * Loop thread. The id and the head of an object are most of what a small change
 * takes, in the log, on the way to every replica and in each of them, and an
 * entry needs but the last head. A joined unit has the rows of all, one after
 * the other. An entry is applied as a whole, so that the state after it is the
 * same.
 *
 * A unit that hides rows (its flags are not 0) stays behind what came before
 * it. Units without flags are joined to it, unless the object is gone by it.
 */
#ifndef HOLDFAST_OBJECTS_JOIN_H
#define HOLDFAST_OBJECTS_JOIN_H

#include "objects/effects.h"

/* Private: memory that is used again, for ENTRY_UNITS_MAX units at most. */
struct join {
	struct joined *units;
	uint32_t *slots;
	uint32_t room;
	uint32_t mask;

	struct pack_bytes all;
	uint32_t all_n;
	uint32_t n;
};

void join_init(struct join *j);
void join_release(struct join *j);

/* Takes `units` (0..ENTRY_UNITS_MAX) units in p..p + n, which were written with
 * unit_begin and unit_row and stay in place until join_write. How many they
 * are now. Without memory they stay apart. */
uint32_t join_read(struct join *j, const void *p, size_t n, uint32_t units);
/* The most that they take now, at most n bytes. */
size_t join_bytes_max(const struct join *j);
/* Behind entry_begin. */
void join_write(const struct join *j, struct pack_w *w);

#endif
