#include "raft-glue/round.h"

#include "tests/lib/hand.h"
#include "tests/lib/runner.h"

/* A shard that leads when the test says so. */
struct shard {
	uint64_t term; /* 0: it does not. */
};

bool shard_leads(const struct shard *s, uint64_t *term)
{
	*term = s->term;
	return s->term != 0;
}

uint32_t shard_voters(const struct shard *s)
{
	(void)s;
	return 1;
}

struct question {
	struct round round;
	unsigned answers;
	enum rc rc;
	uint64_t begun_ns;
	bool again;             /* Asks once more from inside its callback. */
	struct question *other; /* Cancels that one's shard. */
};

static struct hand hand;
static struct rounds *rounds;
static struct shard a;
static struct shard b;

static void setup(void)
{
	hand_init(&hand);
	a.term = 4;
	b.term = 9;
	EXPECT_RC(rounds_new(&hand.env, NULL, &rounds), RC_OK);
}

static void answered(struct round *req, enum rc rc)
{
	struct question *q = CONTAINER_OF(req, struct question, round);

	q->answers++;
	q->rc = rc;
	q->begun_ns = req->begun_ns;
	if (q->again) {
		q->again = false;
		EXPECT_RC(round_start(rounds, req, &a, answered), RC_OK);
	}
	if (q->other != NULL)
		rounds_cancel(rounds, q->other->round.shard);
}

TEST(a_lone_leader_confirms_itself)
{
	struct question q[3] = { { .answers = 0 } };
	unsigned i;

	setup();
	for (i = 0; i < 3; i++)
		EXPECT_RC(round_start(rounds, &q[i].round, i < 2 ? &a : &b,
				      answered),
			  RC_OK);
	EXPECT_UINT(q[0].answers, 0);
	hand.now_ms = 5000;
	hand_turn(&hand);
	for (i = 0; i < 3; i++) {
		EXPECT_UINT(q[i].answers, 1);
		EXPECT_RC(q[i].rc, RC_OK);
		EXPECT_UINT(q[i].begun_ns, 5000 * UINT64_C(1000000));
	}
	hand_turn(&hand);
	EXPECT_UINT(q[0].answers, 1);
	rounds_free(rounds);
}

TEST(who_does_not_lead_cannot_ask)
{
	struct question q = { .answers = 0 };

	setup();
	a.term = 0;
	EXPECT_RC(round_start(rounds, &q.round, &a, answered), RC_NOT_LEADER);
	hand_turn(&hand);
	EXPECT_UINT(q.answers, 0);
	rounds_free(rounds);
}

/* Lost, and lost and regained: neither is the leadership that was asked
 * about. */
TEST(only_the_same_term_counts)
{
	struct question q[3] = { { .answers = 0 } };
	unsigned i;

	setup();
	for (i = 0; i < 3; i++)
		EXPECT_RC(round_start(rounds, &q[i].round, i < 2 ? &a : &b,
				      answered),
			  RC_OK);
	a.term = 6;
	b.term = 0;
	hand_turn(&hand);
	for (i = 0; i < 3; i++) {
		EXPECT_UINT(q[i].answers, 1);
		EXPECT_RC(q[i].rc, RC_NOT_LEADER);
	}
	rounds_free(rounds);
}

TEST(what_is_asked_in_a_callback_is_another_round)
{
	struct question q = { .again = true };

	setup();
	EXPECT_RC(round_start(rounds, &q.round, &a, answered), RC_OK);
	hand_turn(&hand);
	EXPECT_UINT(q.answers, 2);
	EXPECT_RC(q.rc, RC_OK);
	rounds_free(rounds);
}

TEST(a_closing_shard_cancels)
{
	struct question q[4] = { { .answers = 0 } };
	unsigned i;

	setup();
	for (i = 0; i < 4; i++)
		EXPECT_RC(round_start(rounds, &q[i].round, i % 2 ? &a : &b,
				      answered),
			  RC_OK);
	rounds_cancel(rounds, &a);
	EXPECT_RC(q[1].rc, RC_CANCELLED);
	EXPECT_RC(q[3].rc, RC_CANCELLED);
	EXPECT_UINT(q[0].answers, 0);
	hand_turn(&hand);
	for (i = 0; i < 4; i++)
		EXPECT_UINT(q[i].answers, 1);
	EXPECT_RC(q[0].rc, RC_OK);
	/* Also from inside a callback of the same round. */
	EXPECT_RC(round_start(rounds, &q[0].round, &b, answered), RC_OK);
	EXPECT_RC(round_start(rounds, &q[1].round, &a, answered), RC_OK);
	q[0].other = &q[1];
	hand_turn(&hand);
	EXPECT_RC(q[0].rc, RC_OK);
	EXPECT_RC(q[1].rc, RC_CANCELLED);
	EXPECT_UINT(q[1].answers, 2);
	rounds_free(rounds);
}

TEST(freed_with_questions_pending)
{
	struct question q[2] = { { .again = false } };

	setup();
	EXPECT_RC(round_start(rounds, &q[0].round, &a, answered), RC_OK);
	EXPECT_RC(round_start(rounds, &q[1].round, &b, answered), RC_OK);
	rounds_free(rounds);
	EXPECT_RC(q[0].rc, RC_CANCELLED);
	EXPECT_RC(q[1].rc, RC_CANCELLED);
	EXPECT_UINT(q[0].answers, 1);
	/* The task was posted: the memory goes with it. */
	hand_turn(&hand);
}

static void answered_and_free(struct round *req, enum rc rc)
{
	struct question *q = CONTAINER_OF(req, struct question, round);

	q->answers++;
	q->rc = rc;
	rounds_free(rounds);
}

TEST(freed_from_inside_a_callback)
{
	struct question q[2] = { { .again = false } };

	setup();
	EXPECT_RC(round_start(rounds, &q[0].round, &a, answered_and_free),
		  RC_OK);
	EXPECT_RC(round_start(rounds, &q[1].round, &a, answered), RC_OK);
	hand_turn(&hand);
	EXPECT_RC(q[0].rc, RC_OK);
	EXPECT_RC(q[1].rc, RC_CANCELLED);
}

TEST(discarded)
{
	struct question q = { .answers = 0 };

	setup();
	EXPECT_RC(round_start(rounds, &q.round, &a, answered), RC_OK);
	rounds_discard(rounds);
	EXPECT_UINT(q.answers, 0);
}
