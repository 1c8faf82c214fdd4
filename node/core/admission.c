#include "node/core/admission.h"

#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"

/* A write waits for the sync that runs and for its own, here and with those who
 * follow. */
#define SYNCS_PER_CALL 4u
/* How long calls are looked at before the limit moves; at least as long as one
 * takes, or what a new limit has done would not be seen. */
#define WINDOW_NS UINT64_C(50000000)

static uint32_t within(uint64_t v, uint32_t least, uint32_t most)
{
	if (v < least)
		v = least;
	return v > most ? most : (uint32_t)v;
}

void admission_init(struct admission *a, uint32_t limit_max, uint64_t now_ns)
{
	PRE(limit_max > 0);
	memset(a, 0, sizeof(*a));
	a->limit_max = limit_max;
	a->limit = within(ADMISSION_CALLS, 1, limit_max);
	a->window_ns = now_ns + WINDOW_NS;
}

static uint32_t door_limit(const struct admission *a, enum door door,
			   bool alone)
{
	return door == DOOR_NODES || alone ? 2 * a->limit : a->limit;
}

bool admission_enter(struct admission *a, enum door door, bool alone)
{
	if (a->open[door] >= door_limit(a, door, alone) &&
	    !MUTANT(admission_off)) {
		a->refused[door]++;
		return false;
	}
	a->open[door]++;
	if (door == DOOR_CLIENTS && a->open[door] > a->most)
		a->most = a->open[door];
	return true;
}

void admission_leave(struct admission *a, enum door door)
{
	PRE(a->open[door] > 0);
	a->open[door]--;
}

void admission_took(struct admission *a, uint64_t ns)
{
	a->ended++;
	a->took_ns += ns;
}

/* What a call may take: the disk's time, and some of our own. */
static uint64_t target_ns(const struct admission *a)
{
	return ADMISSION_OWN_MS * UINT64_C(1000000) +
	       SYNCS_PER_CALL * a->sync_ns;
}

/* At most halved, at most an eighth more: it falls faster than it grows. */
static void limit_follow(struct admission *a)
{
	uint64_t target = target_ns(a);
	uint64_t mean;
	uint64_t to;

	if (a->ended == 0)
		return;
	mean = a->took_ns / a->ended;
	to = mean > target ? a->limit * target / mean
			   : a->limit + a->limit / 8 + 1;
	if (to < a->limit / 2)
		to = a->limit / 2;
	a->limit = within(to, within(ADMISSION_CALLS_MIN, 1, a->limit_max),
			  a->limit_max);
}

/* Nobody was refused: back to what is always free, and no longer more than is
 * used. */
static void limit_relax(struct admission *a)
{
	uint32_t free = within(ADMISSION_CALLS, 1, a->limit_max);

	if (a->limit < free)
		a->limit = within(a->limit + free / 8u + 1, 1, free);
	else if (a->most < a->limit / 2)
		a->limit = within(a->limit - a->limit / 8, free, a->limit_max);
}

void admission_turn(struct admission *a, uint64_t now_ns, uint64_t syncs,
		    uint64_t sync_ns)
{
	uint64_t refused = a->refused[DOOR_CLIENTS] + a->refused[DOOR_NODES];
	uint64_t mean = a->ended > 0 ? a->took_ns / a->ended : 0;

	if (syncs > a->syncs_then)
		a->sync_ns =
			(sync_ns - a->sync_ns_then) / (syncs - a->syncs_then);
	if (refused > a->refused_then)
		limit_follow(a);
	else
		limit_relax(a);
	a->syncs_then = syncs;
	a->sync_ns_then = sync_ns;
	a->refused_then = refused;
	a->window_ns = now_ns + (mean > WINDOW_NS ? mean : WINDOW_NS);
	a->most = a->open[DOOR_CLIENTS];
	a->ended = 0;
	a->took_ns = 0;
}
