#include "node/core/stamp.h"

#include "node/base/check.h"

void stamp_lead(struct stamp *s, uint64_t last_ns, uint64_t last_wall_ms,
		uint64_t now_ns, uint64_t wall_ms, bool wall_synced, bool *cut)
{
	uint64_t forward_ns = 0;
	bool limited = false;

	if (last_ns == 0)
		last_ns = STAMP_FIRST_NS;
	CHECK(last_ns <= STAMP_MAX_NS);
	/* A wall clock that stands before the noted one tells nothing: no time
	 * has passed as far as objects are concerned. */
	if (last_wall_ms != 0 && wall_ms > last_wall_ms) {
		uint64_t ms = wall_ms - last_wall_ms;

		/* A century: beyond it the clock is broken, not late. */
		if (ms > 3155760000000ull)
			ms = 3155760000000ull;
		forward_ns = ms * 1000000u;
	}
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
