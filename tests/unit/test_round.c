#include "raft-glue/round.h"

#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"
#include "tests/lib/hand.h"
#include "tests/lib/runner.h"

/* What of the rest of the folder a round asks, in place of it. */

struct shard {
	uint32_t number;
	uint64_t term; /* 0: it does not lead. */
	uint32_t voters;
	uint64_t outsider; /* The member that is no voter. */
	uint64_t confirms; /* The term that this node confirms. */
};

bool shard_leads(const struct shard *s, uint64_t *term)
{
	*term = s->term;
	return s->term != 0;
}

uint32_t shard_voters(const struct shard *s)
{
	return s->voters;
}

uint32_t shard_number(const struct shard *s)
{
	return s->number;
}

bool shard_voter(const struct shard *s, uint64_t node_id)
{
	return node_id != s->outsider;
}

bool shard_confirms(const struct shard *s, uint64_t term)
{
	return term == s->confirms;
}

#define RECORDS_MAX 4096u

struct record {
	uint64_t to;
	size_t n;
	uint8_t p[10 + 64 * 9];
};

struct transport {
	struct transport_sink *sink;
	unsigned drops;
	size_t n;
	struct record sent[RECORDS_MAX];
};

static struct transport transport;
static size_t members_n;
static struct member member_list[MEMBERS_MAX];

struct members *transport_members(struct transport *t)
{
	(void)t;
	return NULL;
}

size_t members_count(const struct members *m)
{
	(void)m;
	return members_n;
}

const struct member *members_at(const struct members *m, size_t i)
{
	(void)m;
	return &member_list[i];
}

uint64_t members_self(const struct members *m)
{
	(void)m;
	return 1;
}

void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t shard, struct transport_sink *k)
{
	EXPECT_INT(ch, CHANNEL_ROUND);
	EXPECT_UINT(shard, 0);
	t->sink = k;
}

enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t shard, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n)
{
	struct record *r = &t->sent[t->n];

	(void)body;
	EXPECT_INT(ch, CHANNEL_ROUND);
	EXPECT_UINT(shard, 0);
	EXPECT_UINT(body_n, 0);
	EXPECT_TRUE(node_id > 1);
	EXPECT_TRUE(t->n < RECORDS_MAX);
	EXPECT_TRUE(head_n <= sizeof(r->p));
	r->to = node_id;
	r->n = head_n;
	memcpy(r->p, head, head_n);
	t->n++;
	return RC_OK;
}

void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id)
{
	EXPECT_INT(ch, CHANNEL_ROUND);
	EXPECT_TRUE(node_id > 1);
	t->drops++;
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

static struct shard *find(void *arg, uint32_t shard)
{
	EXPECT_TRUE(arg == &hand);
	return shard == a.number ? &a : shard == b.number ? &b : NULL;
}

static void setup_of(uint32_t voters)
{
	unsigned i;

	hand_init(&hand);
	a = (struct shard){ .number = 3, .term = 4, .voters = voters };
	b = (struct shard){ .number = 63, .term = 9, .voters = voters };
	transport.n = 0;
	transport.drops = 0;
	transport.sink = NULL;
	members_n = voters;
	for (i = 0; i < MEMBERS_MAX; i++)
		member_list[i].id = i + 1;
	EXPECT_RC(rounds_new(&hand.env, voters > 1 ? &transport : NULL, find,
			     &hand, &rounds),
		  RC_OK);
}

static void setup(void)
{
	setup_of(1);
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

/* ---- with peers ---- */

/* Record `i` that was sent, as the peer sees it. */
static uint64_t number_of(size_t i)
{
	EXPECT_TRUE(i < transport.n);
	EXPECT_UINT(transport.sent[i].p[0], 1);
	return le_get64(transport.sent[i].p + 2);
}

/* The peer's answer: about one shard. */
static void reply(uint64_t from, uint64_t number, const struct shard *s,
		  bool yes)
{
	uint8_t p[12] = { 2, 1 };

	le_put64(p + 2, number);
	p[10] = (uint8_t)s->number;
	p[11] = yes;
	transport.sink->received(transport.sink, from, 1, p, sizeof(p));
	hand_turn(&hand);
}

static void ask(struct question *q, struct shard *s)
{
	*q = (struct question){ .answers = 0 };
	EXPECT_RC(round_start(rounds, &q->round, s, answered), RC_OK);
}

static void expect_open(const struct question *q)
{
	EXPECT_UINT(q->answers, 0);
}

static void expect_end(const struct question *q, enum rc rc)
{
	EXPECT_UINT(q->answers, 1);
	EXPECT_RC(q->rc, rc);
}

TEST(one_of_two_peers_is_a_majority)
{
	struct question q;

	setup_of(3);
	ask(&q, &a);
	EXPECT_UINT(transport.n, 0);
	hand.now_ms = 7000;
	hand_turn(&hand);
	expect_open(&q);
	EXPECT_UINT(transport.n, 2);
	EXPECT_UINT(transport.sent[0].to, 2);
	EXPECT_UINT(transport.sent[1].to, 3);
	EXPECT_UINT(transport.sent[0].n, 19);
	EXPECT_MEM(transport.sent[0].p, transport.sent[1].p, 19);
	EXPECT_UINT(transport.sent[0].p[1], 1);
	EXPECT_UINT(transport.sent[0].p[10], 3);
	EXPECT_UINT(le_get64(transport.sent[0].p + 11), 4);
	hand.now_ms = 7010;
	reply(2, number_of(0), &a, true);
	expect_end(&q, RC_OK);
	EXPECT_UINT(q.begun_ns, 7000 * UINT64_C(1000000));
	/* The late one, and one that comes twice. */
	reply(3, number_of(0), &a, true);
	reply(3, number_of(0), &a, true);
	expect_end(&q, RC_OK);
	EXPECT_UINT(transport.n, 2);
	rounds_free(rounds);
	EXPECT_NULL(transport.sink);
	EXPECT_UINT(hand_timers(&hand), 0);
}

TEST(a_no_is_no_yes)
{
	struct question q;

	setup_of(3);
	ask(&q, &a);
	hand_turn(&hand);
	reply(2, number_of(0), &a, false);
	expect_open(&q);
	reply(3, number_of(0), &a, true);
	expect_end(&q, RC_OK);
	rounds_free(rounds);
}

TEST(five_need_three)
{
	struct question q;

	setup_of(5);
	ask(&q, &a);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, 4);
	reply(4, number_of(0), &a, true);
	reply(4, number_of(0), &a, true);
	reply(4, number_of(0), &b, true);
	expect_open(&q);
	reply(2, number_of(0), &a, true);
	expect_end(&q, RC_OK);
	rounds_free(rounds);
}

/* Voters of one of two configurations only do not count. */
TEST(who_is_no_voter_does_not_count)
{
	struct question q;

	setup_of(3);
	a.outsider = 2;
	ask(&q, &a);
	hand_turn(&hand);
	reply(2, number_of(0), &a, true);
	expect_open(&q);
	reply(3, number_of(0), &a, true);
	expect_end(&q, RC_OK);
	rounds_free(rounds);
}

TEST(one_round_a_turn_for_all_shards)
{
	struct question q[5];
	uint8_t p[14] = { 2, 2 };
	unsigned i;

	setup_of(3);
	for (i = 0; i < 5; i++)
		ask(&q[i], i % 2 ? &a : &b);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, 2);
	EXPECT_UINT(transport.sent[0].n, 28);
	EXPECT_UINT(transport.sent[0].p[1], 2);
	EXPECT_UINT(transport.sent[0].p[10], 3);
	EXPECT_UINT(transport.sent[0].p[19], 63);
	EXPECT_UINT(le_get64(transport.sent[0].p + 20), 9);
	memcpy(p + 2, transport.sent[0].p + 2, 8);
	p[10] = 3;
	p[11] = 1;
	p[12] = 63;
	p[13] = 0;
	transport.sink->received(transport.sink, 3, 1, p, sizeof(p));
	for (i = 0; i < 5; i++)
		EXPECT_UINT(q[i].answers, i % 2);
	p[13] = 1;
	transport.sink->received(transport.sink, 2, 1, p, sizeof(p));
	for (i = 0; i < 5; i++)
		expect_end(&q[i], RC_OK);
	rounds_free(rounds);
}

/* RD2: two questions, an answer to the first round. */
static void answer_to_the_first(struct question q[2])
{
	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	hand.now_ms += 5;
	ask(&q[1], &a);
	hand_turn(&hand);
	reply(2, number_of(0), &a, true);
}

TEST(an_older_answer_confirms_no_later_question)
{
	struct question q[2];

	answer_to_the_first(q);
	EXPECT_UINT(transport.n, 4);
	EXPECT_TRUE(number_of(2) > number_of(0));
	expect_end(&q[0], RC_OK);
	expect_open(&q[1]);
	reply(3, number_of(0), &a, true);
	expect_open(&q[1]);
	reply(3, number_of(2), &a, true);
	expect_end(&q[1], RC_OK);
	EXPECT_UINT(q[1].begun_ns - q[0].begun_ns, 5000000);
	rounds_free(rounds);
}

TEST(mutant_round_any_answer_dies)
{
	struct question q[2];

	mutant_now = MUTANT_round_any_answer;
	answer_to_the_first(q);
	mutant_now = MUTANT_none;
	EXPECT_UINT(q[1].answers, 1); /* As it must not be. */
	rounds_free(rounds);
}

/* Asked while a round is under way that began before. */
TEST(mutant_round_counted_early_dies)
{
	struct question q[2];

	mutant_now = MUTANT_round_counted_early;
	answer_to_the_first(q);
	mutant_now = MUTANT_none;
	EXPECT_UINT(q[1].answers, 1);
	rounds_free(rounds);
}

/* The same with the question in the very turn in which the round begins, after
 * it has begun. */
TEST(a_question_after_the_round_began_is_not_in_it)
{
	struct question q[2];

	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	ask(&q[1], &a);
	reply(2, number_of(0), &a, true);
	expect_end(&q[0], RC_OK);
	expect_open(&q[1]);
	reply(2, number_of(2), &a, true);
	expect_end(&q[1], RC_OK);
	rounds_free(rounds);
}

TEST(a_later_round_confirms_what_was_asked_before)
{
	struct question q[2];

	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	hand.now_ms += 5;
	ask(&q[1], &a);
	hand_turn(&hand);
	reply(2, number_of(2), &a, true);
	expect_end(&q[0], RC_OK);
	expect_end(&q[1], RC_OK);
	EXPECT_UINT(q[0].begun_ns, q[1].begun_ns);
	/* And the older one is over. */
	reply(3, number_of(0), &a, true);
	rounds_free(rounds);
}

TEST(an_answer_of_another_life_confirms_nothing)
{
	struct question q;
	uint64_t i;

	setup_of(3);
	ask(&q, &a);
	hand_turn(&hand);
	for (i = 0; i < 100; i++)
		reply(2, i, &a, true);
	reply(2, number_of(0) - 1, &a, true);
	reply(2, number_of(0) + 1, &a, true);
	reply(2, UINT64_MAX, &a, true);
	expect_open(&q);
	rounds_free(rounds);
	expect_end(&q, RC_CANCELLED);
}

TEST(asked_again_after_a_heartbeat)
{
	struct question q[2];

	setup_of(3);
	ask(&q[0], &a);
	ask(&q[1], &b);
	hand_turn(&hand);
	reply(2, number_of(0), &b, true);
	expect_end(&q[1], RC_OK);
	hand_advance(&hand, 40);
	EXPECT_UINT(transport.n, 2);
	hand_advance(&hand, 11);
	EXPECT_UINT(transport.n, 4);
	EXPECT_TRUE(number_of(2) > number_of(0));
	EXPECT_UINT(transport.sent[2].p[1], 1);
	EXPECT_UINT(transport.sent[2].p[10], a.number);
	hand_advance(&hand, 51);
	EXPECT_UINT(transport.n, 6);
	/* The answer to the first was only slow. */
	reply(3, number_of(0), &a, true);
	expect_end(&q[0], RC_OK);
	hand_advance(&hand, 51);
	hand_advance(&hand, 51);
	EXPECT_UINT(transport.n, 6);
	EXPECT_UINT(hand_timers(&hand), 0);
	rounds_free(rounds);
}

TEST(a_fresh_number_confirms_too)
{
	struct question q;

	setup_of(3);
	ask(&q, &a);
	hand_turn(&hand);
	hand_advance(&hand, 51);
	reply(2, number_of(2), &a, true);
	expect_end(&q, RC_OK);
	EXPECT_UINT(q.begun_ns, hand.now_ms * 1000000);
	rounds_free(rounds);
}

TEST(asked_again_when_a_peer_is_back)
{
	struct question q;

	setup_of(3);
	transport.sink->changed(transport.sink, 2, 5);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, 0);
	ask(&q, &a);
	hand_turn(&hand);
	transport.sink->changed(transport.sink, 2, 0);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, 2);
	transport.sink->changed(transport.sink, 2, 6);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, 4);
	reply(2, number_of(2), &a, true);
	expect_end(&q, RC_OK);
	rounds_free(rounds);
}

/* What is asked while a round is young shares the next one. */
TEST(a_young_round_is_waited_for)
{
	struct question q[3];
	unsigned i;

	setup_of(3);
	for (i = 0; i < 3; i++) {
		ask(&q[i], i < 2 ? &a : &b);
		hand_turn(&hand);
	}
	EXPECT_UINT(transport.n, 2);
	reply(2, number_of(0), &a, true);
	expect_end(&q[0], RC_OK);
	expect_open(&q[1]);
	EXPECT_UINT(transport.n, 3);
	reply(2, number_of(2), &a, true);
	reply(2, number_of(2), &b, true);
	expect_end(&q[1], RC_OK);
	expect_end(&q[2], RC_OK);
	rounds_free(rounds);
}

/* A round that is over in time and for whose end `q` has waited; and the next,
 * which asks `want` peers. */
static void crowd(struct question *q, size_t want)
{
	static struct question first;
	size_t n;

	ask(&first, &a);
	hand_turn(&hand);
	n = transport.n;
	ask(q, &a);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, n);
	reply(transport.sent[n - 1].to, number_of(n - 1), &a, true);
	if (members_n > 3)
		reply(transport.sent[n - 2].to, number_of(n - 1), &a, true);
	expect_end(&first, RC_OK);
	expect_open(q);
	EXPECT_UINT(transport.n, n + want);
}

static const struct record *last_sent(void)
{
	return &transport.sent[transport.n - 1];
}

/* Where rounds follow each other each asks as many as it needs, in turns. */
TEST(a_crowded_round_asks_a_majority)
{
	struct question q[8];
	unsigned of[4] = { 0 };
	unsigned i;

	setup_of(3);
	crowd(&q[0], 1);
	for (i = 0; i < 8; i++) {
		of[last_sent()->to]++;
		if (i < 7) {
			ask(&q[i + 1], &a);
			hand_turn(&hand);
		}
		reply(last_sent()->to, number_of(transport.n - 1), &a, true);
		expect_end(&q[i], RC_OK);
	}
	EXPECT_TRUE(of[2] >= 2 && of[3] >= 2);
	hand_advance(&hand, 100);
	EXPECT_UINT(hand_timers(&hand), 0);
	rounds_free(rounds);
	setup_of(5);
	crowd(&q[0], 2);
	EXPECT_TRUE(last_sent()->to != transport.sent[transport.n - 2].to);
	reply(last_sent()->to, number_of(transport.n - 1), &a, true);
	expect_open(&q[0]);
	reply(transport.sent[transport.n - 2].to, number_of(transport.n - 1),
	      &a, true);
	expect_end(&q[0], RC_OK);
	rounds_free(rounds);
}

/* The others are asked the same, under the same number, and are asked from then
 * on. */
TEST(who_is_silent_is_made_up_for)
{
	struct question q;
	struct question next;
	uint64_t silent;
	uint64_t number;

	setup_of(3);
	crowd(&q, 1);
	silent = last_sent()->to;
	number = number_of(transport.n - 1);
	hand_advance(&hand, 1);
	EXPECT_UINT(transport.n, 3);
	hand_advance(&hand, 2);
	EXPECT_UINT(transport.n, 4);
	EXPECT_UINT(last_sent()->to, 5 - silent);
	EXPECT_UINT(number_of(3), number);
	ask(&next, &a);
	reply(5 - silent, number, &a, true);
	expect_end(&q, RC_OK);
	reply(5 - silent, number_of(transport.n - 1), &a, true);
	expect_end(&next, RC_OK);
	crowd(&q, 1);
	EXPECT_UINT(last_sent()->to, 5 - silent);
	reply(5 - silent, number_of(transport.n - 1), &a, true);
	crowd(&q, 1);
	EXPECT_UINT(last_sent()->to, 5 - silent);
	rounds_free(rounds);
}

TEST(who_is_gone_is_not_asked)
{
	struct question q;

	setup_of(3);
	transport.sink->changed(transport.sink, 2, 0);
	crowd(&q, 1);
	EXPECT_UINT(last_sent()->to, 3);
	rounds_free(rounds);
	setup_of(3);
	transport.sink->changed(transport.sink, 3, 0);
	crowd(&q, 1);
	EXPECT_UINT(last_sent()->to, 2);
	rounds_free(rounds);
}

TEST(a_no_of_one_asks_the_other)
{
	struct question q;
	uint64_t no;

	setup_of(3);
	crowd(&q, 1);
	no = last_sent()->to;
	reply(no, number_of(2), &a, false);
	expect_open(&q);
	EXPECT_UINT(transport.n, 4);
	EXPECT_UINT(last_sent()->to, 5 - no);
	EXPECT_UINT(number_of(3), number_of(2));
	reply(5 - no, number_of(2), &a, true);
	expect_end(&q, RC_OK);
	rounds_free(rounds);
}

/* A round is under way, and another question waits behind it. */
static void ask_beside(struct question *q)
{
	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	ask(&q[1], &b);
	hand_turn(&hand);
	EXPECT_UINT(transport.n, 2);
}

/* A round that all have answered is over, whatever they said: who comes next
 * does not wait for it. */
TEST(a_round_that_all_refuse_is_not_waited_for)
{
	struct question q[2];

	ask_beside(q);
	reply(2, number_of(0), &a, false);
	EXPECT_UINT(transport.n, 2);
	reply(3, number_of(0), &a, false);
	EXPECT_TRUE(transport.n > 2);
	reply(last_sent()->to, number_of(transport.n - 1), &b, true);
	expect_end(&q[1], RC_OK);
	expect_open(&q[0]);
	rounds_free(rounds);
}

/* But not for one whose answer is late. */
TEST(a_late_round_holds_up_no_other)
{
	struct question q[2];

	ask_beside(q);
	hand_advance(&hand, 3);
	EXPECT_UINT(transport.n, 4);
	reply(2, number_of(2), &b, true);
	expect_end(&q[1], RC_OK);
	expect_open(&q[0]);
	reply(2, number_of(0), &a, true);
	expect_end(&q[0], RC_OK);
	/* Nobody is left to be woken for. */
	hand_advance(&hand, 51);
	EXPECT_UINT(transport.n, 4);
	EXPECT_UINT(hand_timers(&hand), 0);
	rounds_free(rounds);
}

/* Who waits for a young round when all ends is told, too. */
TEST(freed_while_a_round_is_waited_for)
{
	struct question q[2];

	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	ask(&q[1], &a);
	hand_turn(&hand);
	rounds_free(rounds);
	expect_end(&q[0], RC_CANCELLED);
	expect_end(&q[1], RC_CANCELLED);
	EXPECT_UINT(hand_timers(&hand), 0);
}

/* Nobody answers, and questions come all the time. */
TEST(a_bound_on_rounds_under_way)
{
	static struct question q[200];
	unsigned i;

	setup_of(3);
	for (i = 0; i < 200; i++) {
		ask(&q[i], &a);
		hand_advance(&hand, 1);
	}
	/* One in two milliseconds at most, and those to ask again. */
	EXPECT_TRUE(transport.n <= 2 * (200 / 2 + 200 / 50 + 1));
	/* With the first answer to the newest all are confirmed. */
	hand_advance(&hand, 3);
	reply(2, number_of(transport.n - 1), &a, true);
	for (i = 0; i < 200; i++)
		expect_end(&q[i], RC_OK);
	rounds_free(rounds);
}

/* One peer is silent, and the other says no for one shard, for minutes. */
TEST(a_stuck_shard_holds_up_no_other)
{
	struct question stuck;
	struct question q;
	unsigned i;

	setup_of(3);
	ask(&stuck, &a);
	hand_turn(&hand);
	for (i = 0; i < 2000; i++) {
		runner_context("turn %u", i);
		transport.n = 0;
		ask(&q, &b);
		hand_advance(&hand, 20);
		EXPECT_TRUE(transport.n >= 2);
		reply(2, number_of(0), &a, false);
		reply(2, number_of(0), &b, true);
		expect_end(&q, RC_OK);
		expect_open(&stuck);
	}
	transport.n = 0;
	hand_advance(&hand, 51);
	reply(3, number_of(0), &a, true);
	expect_end(&stuck, RC_OK);
	rounds_free(rounds);
}

TEST(leadership_lost_while_asking)
{
	struct question q[4];

	setup_of(3);
	ask(&q[0], &a);
	ask(&q[1], &b);
	hand_turn(&hand);
	ask(&q[2], &a);
	a.term = 0;
	/* The next turn finds it, */
	hand_turn(&hand);
	expect_end(&q[0], RC_NOT_LEADER);
	expect_end(&q[2], RC_NOT_LEADER);
	expect_open(&q[1]);
	/* or an answer, */
	b.term = 10;
	reply(2, number_of(0), &b, true);
	expect_end(&q[1], RC_NOT_LEADER);
	/* or the timer, */
	ask(&q[0], &b);
	hand_turn(&hand);
	b.term = 11;
	hand_advance(&hand, 51);
	expect_end(&q[0], RC_NOT_LEADER);
	/* or who knows. */
	a.term = 5;
	ask(&q[0], &a);
	ask(&q[1], &b);
	hand_turn(&hand);
	ask(&q[2], &a);
	a.term = 6;
	ask(&q[3], &a);
	rounds_lost(rounds, &a);
	expect_end(&q[0], RC_NOT_LEADER);
	expect_end(&q[2], RC_NOT_LEADER);
	expect_open(&q[1]);
	expect_open(&q[3]);
	rounds_free(rounds);
	hand_turn(&hand);
}

/* Lost and regained: yes to the new term says nothing of the old one. */
TEST(a_regained_leadership_is_another)
{
	struct question q[2];

	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	a.term = 8;
	ask(&q[1], &a);
	hand_turn(&hand);
	expect_end(&q[0], RC_NOT_LEADER);
	/* A late answer to the round of the old term. */
	reply(2, number_of(0), &a, true);
	expect_open(&q[1]);
	reply(2, number_of(2), &a, true);
	expect_end(&q[1], RC_OK);
	rounds_free(rounds);
}

TEST(questions_of_peers_are_answered)
{
	uint8_t p[10 + 4 * 9] = { 1, 4 };
	const struct record *r = &transport.sent[0];

	setup_of(3);
	a.confirms = 17;
	b.confirms = 18;
	le_put64(p + 2, 0x1122334455667788);
	p[10] = 3;
	le_put64(p + 11, 17);
	p[19] = 63;
	le_put64(p + 20, 17);
	p[28] = 7; /* Not here. */
	le_put64(p + 29, 17);
	p[37] = 63;
	le_put64(p + 38, 18);
	transport.sink->received(transport.sink, 3, 1, p, sizeof(p));
	EXPECT_UINT(transport.n, 1);
	EXPECT_UINT(r->to, 3);
	EXPECT_UINT(r->n, 18);
	EXPECT_UINT(r->p[0], 2);
	EXPECT_UINT(r->p[1], 4);
	EXPECT_UINT(le_get64(r->p + 2), 0x1122334455667788);
	EXPECT_MEM(r->p + 10, "\3\1\x3f\0\7\0\x3f\1", 8);
	rounds_free(rounds);
}

TEST(malformed_records_end_the_connection)
{
	static const struct {
		size_t n;
		uint8_t p[19];
	} bad[] = {
		{ 0, { 0 } },
		{ 9, { 1, 1 } },
		{ 10, { 1, 0 } },
		{ 10, { 1, 1 } },
		{ 12, { 0, 1 } },
		{ 12, { 3, 1 } },
		{ 18, { 1, 1 } },
		{ 19, { 1, 2 } },
		{ 19, { 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 64 } },
		{ 12, { 2, 2 } },
		{ 12, { 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 64, 1 } },
		{ 12, { 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 3, 2 } },
	};
	uint8_t *p;
	unsigned i;

	setup_of(3);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		runner_context("record %u", i);
		p = malloc(bad[i].n + 1);
		EXPECT_NOT_NULL(p);
		memcpy(p, bad[i].p, bad[i].n);
		transport.sink->received(transport.sink, 2, 1, p, bad[i].n);
		free(p);
		EXPECT_UINT(transport.drops, i + 1);
	}
	EXPECT_UINT(transport.n, 0);
	rounds_free(rounds);
}

TEST(cancelled_while_asking)
{
	struct question q[3];

	setup_of(3);
	ask(&q[0], &a);
	ask(&q[1], &b);
	hand_turn(&hand);
	ask(&q[2], &a);
	rounds_cancel(rounds, &a);
	expect_end(&q[0], RC_CANCELLED);
	expect_end(&q[2], RC_CANCELLED);
	reply(2, number_of(0), &a, true);
	expect_end(&q[0], RC_CANCELLED);
	reply(2, number_of(0), &b, true);
	expect_end(&q[1], RC_OK);
	rounds_free(rounds);
}

TEST(freed_while_asking)
{
	struct question q[2];

	setup_of(3);
	ask(&q[0], &a);
	hand_turn(&hand);
	ask(&q[1], &b);
	rounds_free(rounds);
	expect_end(&q[0], RC_CANCELLED);
	expect_end(&q[1], RC_CANCELLED);
	EXPECT_UINT(hand_timers(&hand), 0);
	hand_turn(&hand);
}

TEST(freed_by_an_answer)
{
	struct question q[2] = { { .answers = 0 } };
	uint64_t number;
	uint8_t p[12] = { 2, 1 };

	setup_of(3);
	EXPECT_RC(round_start(rounds, &q[0].round, &a, answered_and_free),
		  RC_OK);
	ask(&q[1], &a);
	hand_turn(&hand);
	number = number_of(0);
	le_put64(p + 2, number);
	p[10] = 3;
	p[11] = 1;
	transport.sink->received(transport.sink, 2, 1, p, sizeof(p));
	expect_end(&q[0], RC_OK);
	expect_end(&q[1], RC_CANCELLED);
}

/* A shard that only this node votes in, beside one that has peers. */
TEST(a_lone_shard_waits_for_nobody)
{
	struct question q[2];

	setup_of(3);
	b.voters = 1;
	ask(&q[0], &a);
	ask(&q[1], &b);
	hand_turn(&hand);
	expect_end(&q[1], RC_OK);
	expect_open(&q[0]);
	EXPECT_UINT(transport.sent[0].p[1], 1);
	rounds_free(rounds);
}
