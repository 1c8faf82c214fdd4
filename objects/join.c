#include "objects/join.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

#define UNITS_AT_FIRST 64u
#define NONE           UINT32_MAX

/* A unit, or the first of those that are one: they follow each other. */
struct joined {
	struct unit_r is; /* Its rows are those of all. */
	struct pack_bytes rows;
	uint32_t next;
	uint32_t last;
	bool follows;
};

void join_init(struct join *j)
{
	*j = (struct join){ .units = NULL };
}

void join_release(struct join *j)
{
	free(j->units);
	free(j->slots);
	join_init(j);
}

/* Twice as many slots as units, so that there is always a free one, and no more
 * than these units need: all are written. */
static bool reserve(struct join *j, uint32_t units)
{
	uint32_t n = UNITS_AT_FIRST;

	while (n < units)
		n *= 2;
	if (n > j->room) {
		join_release(j);
		j->units = calloc(n, sizeof(*j->units));
		j->slots = calloc(2 * (size_t)n, sizeof(*j->slots));
		if (j->units == NULL || j->slots == NULL) {
			join_release(j);
			return false;
		}
		j->room = n;
	}
	j->mask = 2 * n - 1;
	memset(j->slots, 0xff, 2 * (size_t)n * sizeof(*j->slots)); /* NONE */
	return true;
}

/* Where the object's last unit is, or is to be. */
static uint32_t *slot_of(const struct join *j, const struct oid *oid)
{
	uint64_t at;

	/* An id is a keyed hash already. */
	memcpy(&at, oid->b, sizeof(at));
	while (j->slots[at & j->mask] != NONE &&
	       memcmp(&j->units[j->slots[at & j->mask]].is.oid, oid,
		      sizeof(*oid)) != 0)
		at++;
	return &j->slots[at & j->mask];
}

/* Unit `i`, the last that was read. */
static void join_unit(struct join *j, uint32_t i)
{
	struct joined *u = &j->units[i];
	uint32_t *slot = slot_of(j, &u->is.oid);
	struct joined *first = *slot == NONE ? NULL : &j->units[*slot];

	if (first == NULL || (u->is.flags != 0 && !MUTANT(join_over_flags)) ||
	    (first->is.flags & UNIT_GONE) != 0) {
		*slot = i;
		j->n++;
		return;
	}
	u->follows = true;
	j->units[first->last].next = i;
	first->last = i;
	first->is.rows += u->is.rows;
	if (u->is.head.p != NULL && !MUTANT(join_old_head))
		first->is.head = u->is.head;
}

uint32_t join_read(struct join *j, const void *p, size_t n, uint32_t units)
{
	struct entry_r e;
	struct unit_r u;
	uint32_t i;

	PRE(units <= ENTRY_UNITS_MAX);
	j->n = 0;
	if (units > 1 && reserve(j, units)) {
		units_read(p, n, units, &e);
		for (i = 0; i < units; i++) {
			CHECK(entry_next(&e, &u) == RC_OK);
			j->units[i] = (struct joined){ .is = u,
						       .next = NONE,
						       .last = i };
			CHECK(unit_rest(&u, &j->units[i].rows) == RC_OK);
			join_unit(j, i);
		}
		CHECK(entry_next(&e, &u) == RC_EOF);
	}
	j->all = (struct pack_bytes){ p, n };
	j->all_n = units;
	if (j->n == 0)
		j->n = units;
	return j->n;
}

size_t join_bytes_max(const struct join *j)
{
	size_t bytes = 0;
	uint32_t i;

	if (j->n == j->all_n)
		return j->all.n;
	for (i = 0; i < j->all_n; i++) {
		bytes += j->units[i].rows.n;
		if (!j->units[i].follows)
			bytes += unit_bytes_max(j->units[i].is.head.n, 0, 0);
	}
	return bytes < j->all.n ? bytes : j->all.n;
}

void join_write(const struct join *j, struct pack_w *w)
{
	const struct joined *u;
	uint32_t i;
	uint32_t at;

	if (j->n == j->all_n) {
		pack_raw(w, j->all.p, j->all.n);
		return;
	}
	for (i = 0; i < j->all_n; i++) {
		u = &j->units[i];
		if (u->follows)
			continue;
		unit_begin(w, &u->is.oid, u->is.flags, u->is.head, u->is.rows);
		for (at = i; at != NONE; at = j->units[at].next)
			pack_raw(w, j->units[at].rows.p, j->units[at].rows.n);
	}
}
