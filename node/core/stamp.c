#include "node/core/stamp.h"

#include "node/base/check.h"
#include "node/base/mutant.h"

/* A century: beyond it a clock is broken, not late. */
#define FORWARD_MS_MAX 3155760000000ull

/* A wall clock that stands before the noted one tells nothing: no time has
 * passed as far as objects are concerned. */
static uint64_t wall_passed_ns(uint64_t last_wall_ms, uint64_t wall_ms)
{
	uint64_t ms;

	if (last_wall_ms == 0 || wall_ms <= last_wall_ms)
		return 0;
	ms = wall_ms - last_wall_ms;
	return (ms < FORWARD_MS_MAX ? ms : FORWARD_MS_MAX) * 1000000u;
}

void stamp_lead(struct stamp *s, uint64_t last_ns, uint64_t last_wall_ms,
		uint64_t now_ns, uint64_t wall_ms, bool wall_synced, bool *cut)
{
	uint64_t forward_ns = wall_passed_ns(last_wall_ms, wall_ms);
	bool limited = false;

	if (last_ns == 0)
		last_ns = STAMP_FIRST_NS;
	CHECK(last_ns <= STAMP_MAX_NS);
	if (!wall_synced && forward_ns > STAMP_FORWARD_MAX_NS) {
		forward_ns = STAMP_FORWARD_MAX_NS;
		limited = true;
	}
	if (forward_ns > STAMP_MAX_NS - last_ns)
		forward_ns = STAMP_MAX_NS - last_ns;
	s->base_ns = last_ns + forward_ns;
	s->origin_ns = now_ns;
	s->last_ns = last_ns;
	if (cut)
		*cut = limited;
	POST(s->base_ns >= last_ns);
}

void stamp_lead_at(struct stamp *s, uint64_t last_ns, uint64_t base_ns,
		   uint64_t now_ns)
{
	if (last_ns == 0)
		last_ns = STAMP_FIRST_NS;
	CHECK(last_ns <= STAMP_MAX_NS);
	if (base_ns > STAMP_MAX_NS)
		base_ns = STAMP_MAX_NS;
	s->base_ns = base_ns > last_ns ? base_ns : last_ns;
	s->origin_ns = now_ns;
	s->last_ns = last_ns;
	if (MUTANT(stamp_backwards))
		s->base_ns = s->last_ns = base_ns;
}

uint64_t stamp_offer(uint64_t last_ns, uint64_t last_wall_ms, uint64_t wall_ms)
{
	uint64_t forward_ns = wall_passed_ns(last_wall_ms, wall_ms);

	if (last_ns == 0)
		last_ns = STAMP_FIRST_NS;
	if (last_ns > STAMP_MAX_NS || forward_ns > STAMP_MAX_NS - last_ns)
		return STAMP_MAX_NS;
	return last_ns + forward_ns;
}

/* How many of the words are at least `ns`. */
static size_t reach(const struct stamp_word *words, size_t n, uint64_t ns)
{
	size_t reached = 0;
	size_t i;

	for (i = 0; i < n; i++)
		if (words[i].ns >= ns)
			reached++;
	return reached;
}

uint64_t stamp_choose(const struct stamp_word *words, size_t n, size_t majority)
{
	uint64_t heard = 0;
	uint64_t best = 0;
	size_t i;

	PRE(n >= majority);
	PRE(majority > 0);
	for (i = 0; i < n; i++) {
		if (words[i].heard && words[i].ns > heard)
			heard = words[i].ns;
		if (words[i].ns > best &&
		    reach(words, n, words[i].ns) >= majority)
			best = words[i].ns;
	}
	return heard != 0 ? heard : best;
}

uint64_t stamp_now(const struct stamp *s, uint64_t now_ns)
{
	uint64_t t;

	PRE(now_ns >= s->origin_ns);
	if (__builtin_add_overflow(s->base_ns, now_ns - s->origin_ns, &t) ||
	    t > STAMP_MAX_NS)
		t = STAMP_MAX_NS;
	return t > s->last_ns ? t : s->last_ns;
}

void stamp_seen(struct stamp *s, uint64_t stamp_ns)
{
	if (stamp_ns > s->last_ns)
		s->last_ns = stamp_ns;
}
