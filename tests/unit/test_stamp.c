#include "node/core/stamp.h"

#include "tests/lib/runner.h"
#include "tests/sim/prng.h"

#define S_NS    1000000000ull
#define HOUR_NS (3600 * S_NS)
#define DAY_MS  86400000ull
#define WALL_MS 1700000000000ull

/* A leadership that begins at 77 s of boot time. */
static struct stamp lead(uint64_t last_ns, uint64_t last_wall_ms,
			 uint64_t wall_ms, bool synced, bool *cut)
{
	struct stamp s;

	memset(&s, 0xa5, sizeof(s));
	stamp_lead(&s, last_ns, last_wall_ms, 77 * S_NS, wall_ms, synced, cut);
	return s;
}

TEST(an_empty_shard_begins_at_one_second)
{
	bool cut = true;
	struct stamp s = lead(0, 0, WALL_MS, true, &cut);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS), STAMP_FIRST_NS);
	EXPECT_UINT(stamp_now(&s, 80 * S_NS), STAMP_FIRST_NS + 3 * S_NS);
	EXPECT_FALSE(cut);
}

TEST(the_time_that_nobody_led_has_passed)
{
	bool cut = true;
	struct stamp s =
		lead(500 * S_NS, WALL_MS, WALL_MS + 20000, false, &cut);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS), 520 * S_NS);
	EXPECT_FALSE(cut);
}

TEST(a_clock_that_is_a_day_ahead_is_cut_to_an_hour)
{
	bool cut = false;
	struct stamp s =
		lead(500 * S_NS, WALL_MS, WALL_MS + DAY_MS, false, &cut);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS), 500 * S_NS + HOUR_NS);
	EXPECT_TRUE(cut);
	/* Nor does it come later. */
	EXPECT_UINT(stamp_now(&s, 78 * S_NS), 501 * S_NS + HOUR_NS);
}

TEST(an_hour_is_not_cut)
{
	bool cut = true;
	struct stamp s = lead(S_NS, WALL_MS, WALL_MS + 3600000, false, &cut);

	EXPECT_FALSE(cut);
	EXPECT_UINT(stamp_now(&s, 77 * S_NS), S_NS + HOUR_NS);
	s = lead(S_NS, WALL_MS, WALL_MS + 3600001, false, &cut);
	EXPECT_TRUE(cut);
	EXPECT_UINT(stamp_now(&s, 77 * S_NS), S_NS + HOUR_NS);
}

TEST(a_synchronised_clock_is_believed)
{
	bool cut = true;
	struct stamp s =
		lead(500 * S_NS, WALL_MS, WALL_MS + 30 * DAY_MS, true, &cut);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS),
		    500 * S_NS + 30 * DAY_MS * 1000000);
	EXPECT_FALSE(cut);
}

TEST(a_clock_that_went_back_neither_freezes_nor_expires)
{
	bool cut = true;
	struct stamp s =
		lead(500 * S_NS, WALL_MS, WALL_MS - DAY_MS, true, &cut);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS), 500 * S_NS);
	EXPECT_UINT(stamp_now(&s, 79 * S_NS), 502 * S_NS);
	EXPECT_FALSE(cut);
}

TEST(no_wall_was_noted)
{
	struct stamp s = lead(500 * S_NS, 0, WALL_MS, true, NULL);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS), 500 * S_NS);
}

TEST(a_broken_clock_is_a_century_at_most)
{
	bool cut;
	struct stamp s = lead(S_NS, 1, UINT64_MAX, true, &cut);

	EXPECT_UINT(stamp_now(&s, 77 * S_NS),
		    S_NS + 3155760000000ull * 1000000);
	EXPECT_TRUE(stamp_now(&s, 77 * S_NS) < INT64_MAX);
}

/* However often it is broken: what is stored as a time must stay one. */
TEST(time_never_leaves_63_bits)
{
	uint64_t last = 0;
	unsigned i;

	for (i = 0; i < 10; i++) {
		struct stamp s = lead(last, 1, UINT64_MAX, true, NULL);
		uint64_t now = stamp_now(&s, 77 * S_NS);

		EXPECT_TRUE(now >= last);
		EXPECT_TRUE(now <= STAMP_MAX_NS);
		EXPECT_TRUE(stamp_now(&s, UINT64_MAX) <= STAMP_MAX_NS);
		last = now;
	}
}

TEST(now_is_never_below_what_was_seen)
{
	struct stamp s = lead(500 * S_NS, WALL_MS, WALL_MS, true, NULL);

	stamp_seen(&s, 600 * S_NS);
	EXPECT_UINT(stamp_now(&s, 78 * S_NS), 600 * S_NS);
	stamp_seen(&s, 550 * S_NS);
	EXPECT_UINT(stamp_now(&s, 78 * S_NS), 600 * S_NS);
	/* Until the clock has passed it. */
	EXPECT_UINT(stamp_now(&s, 178 * S_NS), 601 * S_NS);
}

TEST(boot_time_before_the_leadership_is_our_own_bug)
{
	struct stamp s = lead(500 * S_NS, WALL_MS, WALL_MS, true, NULL);

	EXPECT_ABORT((void)stamp_now(&s, 76 * S_NS));
}

/* Leaderships one after the other with clocks that jump: the owner's now never
 * goes back, and never runs ahead of true time by more than what clocks that
 * call themselves synchronised said, plus an hour per restart. */
TEST(it_never_goes_back)
{
	struct prng rng;
	uint64_t last = 0;
	uint64_t wall = 0;
	uint64_t boot = 77 * S_NS;
	unsigned i;

	prng_seed(&rng, 11, 0);
	for (i = 0; i < 2000; i++) {
		bool synced = prng_below(&rng, 2) == 0;
		uint64_t jump = prng_below(&rng, 2 * DAY_MS);
		struct stamp s;
		uint64_t now;
		bool cut;

		wall = WALL_MS + jump;
		s = lead(last, prng_below(&rng, 10) == 0 ? 0 : WALL_MS, wall,
			 synced, &cut);
		now = stamp_now(&s, boot);
		EXPECT_TRUE(now >= last);
		if (last != 0 && !synced)
			EXPECT_TRUE(now - last <= HOUR_NS);
		EXPECT_TRUE(!cut || !synced);
		now = stamp_now(&s, boot + prng_below(&rng, 10 * S_NS));
		stamp_seen(&s, now);
		EXPECT_TRUE(stamp_now(&s, boot) >= now);
		last = now;
	}
}

/* ---- what a majority says ---- */

TEST(a_leadership_that_was_given_its_base)
{
	struct stamp s;

	stamp_lead_at(&s, 500 * S_NS, 700 * S_NS, 77 * S_NS);
	EXPECT_UINT(stamp_now(&s, 77 * S_NS), 700 * S_NS);
	EXPECT_UINT(stamp_now(&s, 78 * S_NS), 701 * S_NS);
	/* Never below the last stamp. */
	stamp_lead_at(&s, 500 * S_NS, 400 * S_NS, 77 * S_NS);
	EXPECT_UINT(stamp_now(&s, 77 * S_NS), 500 * S_NS);
	stamp_lead_at(&s, 0, 0, 77 * S_NS);
	EXPECT_UINT(stamp_now(&s, 77 * S_NS), STAMP_FIRST_NS);
	stamp_lead_at(&s, 5, UINT64_MAX, 77 * S_NS);
	EXPECT_UINT(stamp_now(&s, 77 * S_NS), STAMP_MAX_NS);
}

TEST(what_a_voter_offers)
{
	EXPECT_UINT(stamp_offer(500 * S_NS, WALL_MS, WALL_MS + 20000),
		    520 * S_NS);
	EXPECT_UINT(stamp_offer(500 * S_NS, WALL_MS, WALL_MS - 1), 500 * S_NS);
	EXPECT_UINT(stamp_offer(500 * S_NS, 0, WALL_MS), 500 * S_NS);
	EXPECT_UINT(stamp_offer(0, 0, WALL_MS), STAMP_FIRST_NS);
	EXPECT_UINT(stamp_offer(STAMP_MAX_NS - 1, 1, UINT64_MAX), STAMP_MAX_NS);
	EXPECT_UINT(stamp_offer(UINT64_MAX, 1, 1), STAMP_MAX_NS);
	EXPECT_TRUE(stamp_offer(S_NS, 1, UINT64_MAX) <= STAMP_MAX_NS);
}

static uint64_t sorted_at(const struct stamp_word *words, size_t n, size_t k)
{
	uint64_t v[5];
	size_t i;
	size_t j;

	for (i = 0; i < n; i++) {
		for (j = i; j > 0 && v[j - 1] < words[i].ns; j--)
			v[j] = v[j - 1];
		v[j] = words[i].ns;
	}
	return v[k];
}

/* Every set of words with five different times, of 1 to 5 voters of which a
 * majority answers, each of them heard or offered. */
TEST(every_choice)
{
	struct stamp_word w[5];
	size_t voters;
	size_t n;

	for (voters = 1; voters <= 5; voters++)
		for (n = voters / 2 + 1; n <= voters; n++) {
			unsigned combos = 1;
			unsigned c;
			size_t i;

			for (i = 0; i < n; i++)
				combos *= 10;
			for (c = 0; c < combos; c++) {
				uint64_t heard = 0;
				unsigned left = c;
				uint64_t got;

				for (i = 0; i < n; i++, left /= 10) {
					w[i].ns = 100 + left % 10 / 2;
					w[i].heard = left % 2 == 1;
					if (w[i].heard && w[i].ns > heard)
						heard = w[i].ns;
				}
				got = stamp_choose(w, n, voters / 2 + 1);
				if (heard != 0)
					EXPECT_UINT(got, heard);
				else
					EXPECT_UINT(got, sorted_at(w, n,
								   voters / 2));
			}
		}
}

/* Whatever a minority says, the choice lies within what the others say; and
 * with all of them there it is the lower median. */
TEST(a_minority_of_broken_clocks_does_not_matter)
{
	struct stamp_word w[5];
	uint64_t got;
	size_t i;

	for (i = 0; i < 5; i++)
		w[i] = (struct stamp_word){ false, (100 + i) * S_NS };
	EXPECT_UINT(stamp_choose(w, 5, 3), 102 * S_NS);
	w[0].ns += DAY_MS * 1000000;
	w[1].ns += DAY_MS * 1000000;
	got = stamp_choose(w, 5, 3);
	EXPECT_TRUE(got >= 102 * S_NS && got <= 104 * S_NS);
	/* Two broken ones among the three that answer. */
	EXPECT_UINT(stamp_choose(w, 3, 3), 102 * S_NS);
	/* One of two. */
	EXPECT_UINT(stamp_choose(&w[1], 2, 2), 102 * S_NS);
}

TEST(what_was_heard_outweighs_every_wall_clock)
{
	const struct stamp_word w[] = { { false, DAY_MS * 1000000 * 365 },
					{ true, 7 * S_NS },
					{ true, 8 * S_NS } };

	EXPECT_UINT(stamp_choose(w, 3, 2), 8 * S_NS);
	EXPECT_UINT(stamp_choose(w, 2, 2), 7 * S_NS);
	EXPECT_ABORT((void)stamp_choose(w, 1, 2));
}
