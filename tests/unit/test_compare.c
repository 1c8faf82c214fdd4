/*
 * Three or five voters, joined by a queue, that tell each other what their
 * states are.
 */
#include "raft-glue/compare.h"

#include "node/base/check.h"
#include "raft-glue/le.h"
#include "tests/lib/fake_transport.h"
#include "tests/lib/hand.h"
#include "tests/lib/runner.h"

#define TELL_BYTES (32u + STATE_RANGES * COMPARE_HASH_SIZE)

struct node {
	struct compare_owner owner;
	struct compare *c;
	unsigned wrong; /* Times it was told so, */
	char why[160];  /* and how, last. */
	unsigned copies;
	enum rc copied;
};

static struct hand hand;
static struct node nodes[FAKE_NODES_MAX];

static void differs(struct compare_owner *o, const struct detail *why)
{
	struct node *n = CONTAINER_OF(o, struct node, owner);

	n->wrong++;
	snprintf(n->why, sizeof(n->why), "%s", why->text);
}

static void copied(struct compare_owner *o, enum rc rc)
{
	struct node *n = CONTAINER_OF(o, struct node, owner);

	n->copies++;
	n->copied = rc;
}

static void begin(unsigned n)
{
	unsigned i;

	memset(nodes, 0, sizeof(nodes));
	hand_init(&hand);
	fake_begin(n);
	for (i = 0; i < n; i++) {
		nodes[i].owner.differs = differs;
		nodes[i].owner.copied = copied;
		EXPECT_RC(compare_new(&hand.env, &fake.at[i], &nodes[i].owner,
				      0, &nodes[i].c),
			  RC_OK);
	}
	fake_join_all();
}

static void finish(void)
{
	unsigned i;

	for (i = 0; i < fake.nodes; i++)
		compare_free(nodes[i].c);
	EXPECT_UINT(hand_timers(&hand), 0);
	fake_end();
}

static void run(uint64_t ms)
{
	uint64_t until = hand.now_ms + ms;

	do {
		hand_advance(&hand, 1);
		fake_pump();
		hand_advance(&hand, 0);
	} while (hand.now_ms < until);
}

/* One whose range `range` is not as with the others; 0: it is as with all. */
static struct compare_hash hash_of(uint64_t index, unsigned range)
{
	struct compare_hash h = { .index = index };

	memset(h.state, (int)(index + 16 * range), sizeof(h.state));
	h.ranges[range][3] = range > 0;
	return h;
}

static void is(unsigned id, uint64_t index, unsigned range)
{
	struct compare_hash h = hash_of(index, range);

	compare_is(nodes[id - 1].c, &h);
}

static struct compare_stats stats_of(unsigned id)
{
	struct compare_stats stats;

	compare_stats(nodes[id - 1].c, &stats);
	return stats;
}

static unsigned wrong(void)
{
	unsigned n = 0;
	unsigned i;

	for (i = 0; i < fake.nodes; i++)
		n += nodes[i].wrong;
	return n;
}

TEST(equal_states)
{
	unsigned i;

	begin(3);
	is(2, 7, 0);
	run(100);
	is(1, 7, 0);
	run(100);
	/* The slowest is waited for. */
	EXPECT_UINT(stats_of(1).compared, 0);
	EXPECT_FALSE(compare_equal(nodes[0].c, 7));
	is(3, 7, 0);
	run(10);
	for (i = 1; i <= 3; i++) {
		EXPECT_UINT(stats_of(i).compared, 1);
		EXPECT_UINT(stats_of(i).index, 7);
		EXPECT_UINT(stats_of(i).differences, 0);
		EXPECT_TRUE(compare_equal(nodes[i - 1].c, 7));
		EXPECT_FALSE(compare_equal(nodes[i - 1].c, 6));
	}
	EXPECT_UINT(wrong(), 0);
	EXPECT_UINT(hand_timers(&hand), 0);
	finish();
}

/* Who is wrong concludes it, once, and nobody else. */
TEST(one_of_three_differs)
{
	unsigned i;

	begin(3);
	is(1, 7, 0);
	is(2, 7, 3);
	is(3, 7, 0);
	run(10000);
	EXPECT_UINT(nodes[1].wrong, 1);
	EXPECT_UINT(wrong(), 1);
	EXPECT_HAS(nodes[1].why, "index 7");
	EXPECT_HAS(nodes[1].why, "ranges 3");
	for (i = 1; i <= 3; i++) {
		EXPECT_UINT(stats_of(i).compared, 1);
		EXPECT_UINT(stats_of(i).differences, 1);
		EXPECT_UINT(stats_of(i).undecided, 0);
		EXPECT_UINT(stats_of(i).index, 0);
	}
	finish();
}

/* The last word is not waited for when it cannot change anything. */
TEST(two_that_agree_are_enough)
{
	begin(3);
	is(1, 7, 0);
	is(3, 7, 0);
	run(10);
	is(2, 7, 5);
	run(10);
	EXPECT_UINT(nodes[1].wrong, 1);
	finish();
	begin(5);
	is(1, 7, 0);
	is(2, 7, 0);
	is(3, 7, 2);
	run(10);
	EXPECT_UINT(wrong(), 0);
	is(4, 7, 0);
	run(10);
	EXPECT_UINT(nodes[2].wrong, 1);
	run(COMPARE_WAIT_MS);
	EXPECT_UINT(wrong(), 1);
	finish();
}

static void expect_undecided(unsigned undecided)
{
	unsigned i;

	EXPECT_UINT(wrong(), 0);
	for (i = 1; i <= fake.nodes; i++) {
		EXPECT_UINT(stats_of(i).differences, 0);
		EXPECT_UINT(stats_of(i).index, 0);
	}
	EXPECT_UINT(stats_of(1).undecided, undecided);
}

/* Nobody guesses. */
TEST(no_majority)
{
	begin(3);
	is(1, 7, 0);
	is(2, 7, 1);
	is(3, 7, 2);
	run(10);
	expect_undecided(1);
	finish();

	/* One against one. */
	begin(3);
	is(1, 7, 0);
	is(2, 7, 1);
	run(COMPARE_WAIT_MS - 100);
	expect_undecided(0);
	run(200);
	expect_undecided(1);
	finish();

	/* Two against two are not "two others that agree". */
	begin(5);
	is(1, 7, 0);
	is(2, 7, 0);
	is(3, 7, 1);
	is(4, 7, 1);
	run(2 * COMPARE_WAIT_MS);
	expect_undecided(1);
	is(1, 8, 0);
	is(2, 8, 0);
	is(3, 8, 1);
	is(4, 8, 1);
	is(5, 8, 2);
	run(10);
	expect_undecided(2);
	finish();
}

TEST(nobody_else_tells)
{
	begin(3);
	fake_cut(1, 2);
	fake_cut(1, 3);
	is(1, 7, 4);
	is(2, 7, 0);
	is(3, 7, 0);
	run(2 * COMPARE_WAIT_MS);
	EXPECT_UINT(wrong(), 0);
	EXPECT_UINT(stats_of(1).compared, 1);
	EXPECT_UINT(stats_of(1).index, 0);
	EXPECT_UINT(stats_of(1).undecided, 0);
	EXPECT_UINT(stats_of(2).compared, 1);
	EXPECT_UINT(stats_of(2).differences, 0);
	finish();
}

/* Only the same index counts. */
TEST(other_indexes)
{
	begin(3);
	is(1, 7, 0);
	is(2, 7, 0);
	is(3, 6, 1);
	run(100);
	EXPECT_UINT(wrong(), 0);
	/* It comes to 7 when the others are at 9, and to 9. */
	is(1, 9, 0);
	is(2, 9, 0);
	run(100);
	EXPECT_UINT(stats_of(1).compared, 1);
	is(3, 7, 1);
	run(100);
	EXPECT_UINT(wrong(), 0);
	is(3, 9, 1);
	run(100);
	EXPECT_UINT(nodes[2].wrong, 1);
	EXPECT_UINT(wrong(), 1);
	finish();
}

/* They go on before the third one has told: it is left out, and the others are
 * compared all the same. */
TEST(the_next_index_comes_soon)
{
	begin(3);
	is(1, 7, 0);
	is(2, 7, 1);
	fake_pump();
	is(1, 8, 0);
	fake_pump();
	is(2, 8, 1);
	run(10);
	EXPECT_UINT(stats_of(1).undecided, 1);
	EXPECT_UINT(stats_of(2).undecided, 1);
	EXPECT_UINT(stats_of(1).compared, 1);
	EXPECT_UINT(stats_of(2).compared, 1);
	is(3, 8, 0);
	run(10);
	EXPECT_UINT(nodes[1].wrong, 1);
	EXPECT_UINT(wrong(), 1);
	finish();
}

/* What was told of a state that was replaced since condemns nothing. */
TEST(a_state_that_was_replaced)
{
	begin(3);
	is(2, 7, 1);
	run(10);
	compare_void(nodes[1].c);
	is(1, 7, 0);
	is(3, 7, 0);
	run(2 * COMPARE_WAIT_MS);
	EXPECT_UINT(wrong(), 0);
	EXPECT_UINT(stats_of(1).differences, 1);
	is(2, 8, 0);
	is(1, 8, 0);
	is(3, 8, 0);
	run(10);
	EXPECT_TRUE(compare_equal(nodes[1].c, 8));
	finish();
}

static void copy(unsigned id, uint64_t index, unsigned range)
{
	struct compare_hash h = hash_of(index, range);

	compare_copy(nodes[id - 1].c, h.state);
	EXPECT_UINT(nodes[id - 1].copies, 0);
}

TEST(a_copy_that_another_confirms)
{
	begin(3);
	compare_expect(nodes[2].c, 1, 7);
	is(1, 7, 0);
	is(2, 7, 0);
	run(10);
	/* They go on while it is on its way. */
	is(1, 8, 0);
	is(2, 8, 0);
	run(10);
	copy(3, 7, 0);
	run(1);
	EXPECT_UINT(nodes[2].copies, 1);
	EXPECT_RC(nodes[2].copied, RC_OK);
	EXPECT_UINT(stats_of(3).confirmed, 1);
	EXPECT_UINT(stats_of(3).alone, 0);
	finish();
}

/* It told before that copy was offered, or the link was lost. */
TEST(a_voter_is_asked_for_its_word)
{
	begin(3);
	fake_cut(2, 3);
	is(1, 7, 0);
	is(2, 7, 0);
	run(10);
	is(2, 8, 0);
	run(10);
	fake_join(2, 3);
	compare_expect(nodes[2].c, 1, 7);
	run(10);
	copy(3, 7, 0);
	run(1);
	EXPECT_UINT(stats_of(3).confirmed, 1);
	finish();

	begin(3);
	compare_expect(nodes[2].c, 1, 7);
	fake_cut(2, 3);
	is(2, 7, 0);
	run(10);
	fake_join(2, 3);
	run(10);
	copy(3, 7, 0);
	run(1);
	EXPECT_UINT(stats_of(3).confirmed, 1);
	finish();
}

/* Nor does it deny a copy of what is right. */
TEST(a_state_that_was_replaced_has_no_word)
{
	begin(3);
	fake_cut(2, 3);
	is(2, 7, 1);
	run(10);
	compare_void(nodes[1].c);
	fake_join(2, 3);
	compare_expect(nodes[2].c, 1, 7);
	run(10);
	copy(3, 7, 0);
	run(COMPARE_COPY_MS + 10);
	EXPECT_UINT(nodes[2].copies, 1);
	EXPECT_RC(nodes[2].copied, RC_OK);
	EXPECT_UINT(stats_of(3).alone, 1);
	finish();
}

TEST(a_copy_that_another_denies)
{
	begin(3);
	compare_expect(nodes[2].c, 1, 7);
	is(2, 7, 0);
	run(10);
	copy(3, 7, 1);
	run(1);
	EXPECT_UINT(nodes[2].copies, 1);
	EXPECT_RC(nodes[2].copied, RC_CORRUPT);
	EXPECT_UINT(stats_of(3).refused, 1);
	EXPECT_UINT(nodes[2].wrong, 0);
	finish();
	/* Of five the more count. */
	begin(5);
	compare_expect(nodes[2].c, 1, 7);
	is(2, 7, 0);
	is(4, 7, 0);
	is(5, 7, 1);
	run(10);
	copy(3, 7, 0);
	run(1);
	EXPECT_RC(nodes[2].copied, RC_OK);
	compare_expect(nodes[2].c, 1, 8);
	nodes[2].copies = 0;
	is(2, 8, 0);
	is(4, 8, 0);
	is(5, 8, 1);
	run(10);
	copy(3, 8, 1);
	run(1);
	EXPECT_RC(nodes[2].copied, RC_CORRUPT);
	finish();
}

TEST(a_copy_of_which_nobody_says_anything)
{
	begin(3);
	compare_expect(nodes[2].c, 1, 7);
	is(1, 7, 0); /* Its own source does not count. */
	run(10);
	copy(3, 7, 0);
	run(COMPARE_COPY_MS - 100);
	EXPECT_UINT(nodes[2].copies, 0);
	run(200);
	EXPECT_UINT(nodes[2].copies, 1);
	EXPECT_RC(nodes[2].copied, RC_OK);
	EXPECT_UINT(stats_of(3).alone, 1);
	finish();

	/* Who cannot be reached is not waited for. */
	begin(3);
	fake_cut(2, 3);
	compare_expect(nodes[2].c, 1, 7);
	copy(3, 7, 0);
	run(COMPARE_REACH_MS - 100);
	EXPECT_UINT(nodes[2].copies, 0);
	run(200);
	EXPECT_UINT(stats_of(3).alone, 1);
	nodes[2].copies = 0;
	fake_join(2, 3);
	compare_expect(nodes[2].c, 1, 8);
	copy(3, 8, 0);
	run(COMPARE_REACH_MS + 100);
	EXPECT_UINT(nodes[2].copies, 0);
	fake_cut(2, 3);
	run(1);
	EXPECT_UINT(nodes[2].copies, 1);
	finish();

	/* Who has just started gets its links one by one. */
	begin(3);
	fake_cut(2, 3);
	is(2, 7, 0);
	compare_expect(nodes[2].c, 1, 7);
	copy(3, 7, 0);
	run(50);
	fake_join(2, 3);
	run(10);
	EXPECT_UINT(nodes[2].copies, 1);
	EXPECT_UINT(stats_of(3).confirmed, 1);
	finish();
}

TEST(a_copy_that_is_dropped)
{
	begin(3);
	compare_expect(nodes[2].c, 1, 7);
	copy(3, 7, 0);
	compare_forget(nodes[2].c);
	is(2, 7, 0);
	run(2 * COMPARE_COPY_MS);
	EXPECT_UINT(nodes[2].copies, 0);
	finish();
}

/* Node 2 says that to node 1, and the connection ends. */
static void expect_refused(const uint8_t *rec, size_t n)
{
	unsigned drops = fake.at[0].drops;

	fake_say(CHANNEL_COMPARE, 2, 1, rec, n);
	EXPECT_UINT(fake.at[0].drops, drops + 1);
}

/* What no node of ours says ends the connection, and changes nothing. */
TEST(what_cannot_be_is_refused)
{
	uint8_t rec[TELL_BYTES + 1] = { 1, STATE_RANGES };
	unsigned drops;
	size_t i;

	begin(3);
	rec[8] = 7;
	for (i = 0; i <= sizeof(rec); i++)
		if (i != TELL_BYTES)
			expect_refused(rec, i);
	for (i = 0; i < 8; i++) {
		uint8_t was = rec[i];

		rec[i] = (uint8_t)(was + 7);
		expect_refused(rec, TELL_BYTES);
		rec[i] = was;
	}
	rec[8] = 0;
	expect_refused(rec, TELL_BYTES);
	rec[0] = 2;
	rec[8] = 7;
	expect_refused(rec, 16);
	rec[1] = 0;
	expect_refused(rec, 17);
	/* Nothing is known of that index: no answer. */
	drops = fake.at[0].drops;
	fake_say(CHANNEL_COMPARE, 2, 1, rec, 16);
	EXPECT_UINT(fake.at[0].drops, drops);
	EXPECT_NULL(fake_next());
	finish();
}
