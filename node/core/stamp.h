/*
 * stamp - the owner's now (DESIGN D8). Pure; time comes in as arguments.
 *
 * now = base + elapsed CLOCK_BOOTTIME, never below the last stamp. base is
 * chosen once per leadership: a lone voter adds the wall time that passed since
 * the last entry (wall now - wall noted beside it) to its last stamp; without
 * limit when the kernel calls its clock synchronised, else at most one hour,
 * and never backwards. So a restart on a machine whose clock is a day off
 * neither expires everything nor freezes anything. Among several voters a
 * majority is asked (stamps.h), and what it says is weighed here.
 */
#ifndef HOLDFAST_CORE_STAMP_H
#define HOLDFAST_CORE_STAMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STAMP_FIRST_NS       1000000000ull    /* Of an empty shard. */
#define STAMP_FORWARD_MAX_NS 3600000000000ull /* Unsynchronised restart. */
/* Half of 63 bits, 146 years: what expires a century later is still a time. */
#define STAMP_MAX_NS (INT64_MAX / 2)

struct stamp {
	uint64_t base_ns;
	uint64_t origin_ns; /* env_now_ns when base was chosen. */
	uint64_t last_ns;   /* Newest stamp given to an entry or committed. */
};

/* Begin a leadership. `cut` (may be NULL) tells that the forward jump was
 * limited. */
void stamp_lead(struct stamp *s, uint64_t last_ns, uint64_t last_wall_ms,
		uint64_t now_ns, uint64_t wall_ms, bool wall_synced, bool *cut);
/* The same with a base that a majority gave; never below `last_ns`. */
void stamp_lead_at(struct stamp *s, uint64_t last_ns, uint64_t base_ns,
		   uint64_t now_ns);

/* What one voter says the time is. */
struct stamp_word {
	/* It has heard an owner's now since it started, so this is that plus
	 * what has passed on its own boot clock: no wall clock is in it. */
	bool heard;
	uint64_t ns;
};

/* What a voter that has heard nobody offers: its last stamp, and the wall time
 * since. A clock that stands before the one noted adds nothing. */
uint64_t stamp_offer(uint64_t last_ns, uint64_t last_wall_ms, uint64_t wall_ms);

/*
 * The time, from the words of `n` voters of a cluster in which `majority` make
 * one; n >= majority. The highest that was heard; if nobody has, the highest
 * that a majority of all voters reaches: the lower median when all answer, and
 * never what only a minority's clocks say.
 */
uint64_t stamp_choose(const struct stamp_word *words, size_t n,
		      size_t majority);

/* At most STAMP_MAX_NS, where it stands still. */
uint64_t stamp_now(const struct stamp *s, uint64_t now_ns);
/* An entry got, or a committed one has, this stamp. */
void stamp_seen(struct stamp *s, uint64_t stamp_ns);

#endif
