#include "objects/gate.h"

#include "objects/host.h"
#include "objects/object.h"
#include "objects/space.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define MS UINT64_C(1000000)

struct world {
	struct host host;
	struct gate gate;
	uint64_t ticket;
	unsigned hurries;
	bool over; /* The epoch. */
};

static struct event *opened[4096];
static size_t opened_n;
static struct event *failed[64];
static enum rc failed_rc;
static size_t failed_n;

static uint64_t host_prove(struct host *h, uint64_t epoch)
{
	struct world *w = (struct world *)h;

	(void)epoch;
	return w->over ? 0 : ++w->ticket;
}

static void host_hurry(struct host *h, uint64_t epoch)
{
	EXPECT_UINT(epoch, 7);
	((struct world *)h)->hurries++;
}

static const struct host_ops ops = { .prove = host_prove, .hurry = host_hurry };

static void on_open(struct event *ev)
{
	EXPECT_INT(ev->state, EVENT_PASSED);
	opened[opened_n++] = ev;
}

static void on_fail(struct event *ev, enum rc rc)
{
	failed[failed_n++] = ev;
	failed_rc = rc;
}

static void world_init(struct world *w)
{
	*w = (struct world){ .host = { .ops = &ops } };
	opened_n = 0;
	failed_n = 0;
	EXPECT_RC(gate_init(&w->gate, &w->host, on_open, on_fail), RC_OK);
	gate_lead(&w->gate, 7);
}

static struct event *enter(struct world *w, uint64_t mark, uint64_t proof)
{
	struct event *ev = calloc(1, sizeof(*ev));

	ev->need_mark = mark;
	ev->need_proof = proof;
	gate_enter(&w->gate, ev);
	return ev;
}

TEST(who_waits_for_nothing_passes_at_once)
{
	struct world w;
	struct event *ev;

	world_init(&w);
	ev = enter(&w, 0, 0);
	EXPECT_UINT(opened_n, 1);
	EXPECT_TRUE(opened[0] == ev);
	free(ev);
	gate_release(&w.gate);
}

TEST(marks_open_in_order_and_tell_their_index)
{
	struct event *ev[300];
	struct world w;
	size_t i;

	world_init(&w);
	for (i = 0; i < 300; i++) {
		gate_noted(&w.gate, i + 1, false, 0);
		ev[i] = enter(&w, i + 1, 0);
	}
	EXPECT_UINT(opened_n, 0);
	gate_committed(&w.gate, 100, 9);
	EXPECT_UINT(opened_n, 100);
	gate_committed(&w.gate, 100, 10); /* Nothing new. */
	gate_committed(&w.gate, 50, 11);
	EXPECT_UINT(opened_n, 100);
	gate_committed(&w.gate, 300, 12);
	EXPECT_UINT(opened_n, 300);
	for (i = 0; i < 300; i++) {
		EXPECT_TRUE(opened[i] == ev[i]);
		EXPECT_UINT(ev[i]->index, i < 100 ? 9 : 12);
		free(ev[i]);
	}
	gate_release(&w.gate);
}

TEST(the_ring_goes_round)
{
	struct world w;
	struct event *ev;
	uint64_t m;

	world_init(&w);
	for (m = 1; m <= 1000; m++) {
		gate_noted(&w.gate, m, false, 0);
		ev = enter(&w, m, 0);
		EXPECT_UINT(opened_n, m - 1);
		gate_committed(&w.gate, m, m);
		EXPECT_UINT(opened_n, m);
		free(ev);
	}
	EXPECT_UINT(w.gate.slots, 64);
	gate_release(&w.gate);
}

TEST(without_memory_for_a_wider_ring_nobody_is_let_out_early)
{
	struct event *ev[200];
	struct world w;
	size_t i;

	world_init(&w);
	fault_alloc_from(1);
	for (i = 0; i < 200; i++)
		gate_noted(&w.gate, i + 1, i % 2 == 1, MS);
	EXPECT_TRUE(fault_off());
	EXPECT_UINT(w.gate.slots, 64);
	for (i = 0; i < 200; i++)
		ev[i] = enter(&w, i + 1, 0);
	for (i = 0; i < 200; i++) {
		gate_committed(&w.gate, i + 1, i + 1);
		EXPECT_UINT(opened_n, i + 1);
		EXPECT_TRUE(opened[i] == ev[i]);
		free(ev[i]);
	}
	gate_release(&w.gate);
}

/* Lagged units are gathered: who waits for one says so, once. */
TEST(who_waits_for_a_gathered_unit_hurries_it)
{
	struct event *ev[4];
	struct world w;
	size_t i;

	world_init(&w);
	gate_noted(&w.gate, 1, false, MS);
	gate_noted(&w.gate, 2, true, MS);
	gate_noted(&w.gate, 3, true, MS);
	ev[0] = enter(&w, 1, 0);
	EXPECT_UINT(w.hurries, 0);
	ev[1] = enter(&w, 2, 0);
	EXPECT_UINT(w.hurries, 1);
	ev[2] = enter(&w, 3, 0); /* It is under way with the other one. */
	EXPECT_UINT(w.hurries, 1);
	gate_noted(&w.gate, 4, true, MS);
	gate_noted(&w.gate, 5, false, MS); /* Takes it along. */
	ev[3] = enter(&w, 4, 0);
	EXPECT_UINT(w.hurries, 1);
	gate_committed(&w.gate, 5, 1);
	EXPECT_UINT(opened_n, 4);
	gate_noted(&w.gate, 6, true, MS);
	gate_committed(&w.gate, 6, 2);
	free(ev[0]);
	ev[0] = enter(&w, 6, 0); /* Nobody has to wait any more. */
	EXPECT_UINT(w.hurries, 1);
	for (i = 0; i < 4; i++)
		free(ev[i]);
	gate_release(&w.gate);
}

TEST(proof_and_commit_are_both_needed_in_any_order)
{
	struct world w;
	struct event *a;
	struct event *b;

	world_init(&w);
	gate_noted(&w.gate, 1, false, 0);
	a = enter(&w, 1, gate_prove(&w.gate, 0));
	gate_committed(&w.gate, 1, 1);
	EXPECT_UINT(opened_n, 0);
	gate_proved(&w.gate, 1, RC_OK);
	EXPECT_UINT(opened_n, 1);
	gate_noted(&w.gate, 2, false, 0);
	b = enter(&w, 2, gate_prove(&w.gate, 0));
	gate_proved(&w.gate, 2, RC_OK);
	EXPECT_UINT(opened_n, 1);
	gate_committed(&w.gate, 2, 2);
	EXPECT_UINT(opened_n, 2);
	free(a);
	free(b);
	gate_release(&w.gate);
}

TEST(a_failed_proof_ends_those_it_was_for)
{
	struct world w;
	struct event *a;
	struct event *b;

	world_init(&w);
	a = enter(&w, 0, gate_prove(&w.gate, 0));
	b = enter(&w, 0, gate_prove(&w.gate, 0));
	gate_proved(&w.gate, 1, RC_NOT_LEADER);
	EXPECT_UINT(failed_n, 1);
	EXPECT_TRUE(failed[0] == a);
	EXPECT_RC(failed_rc, RC_NOT_LEADER);
	EXPECT_UINT(opened_n, 0);
	gate_proved(&w.gate, 2, RC_OK);
	EXPECT_TRUE(opened[0] == b);
	free(a);
	free(b);
	gate_release(&w.gate);
}

TEST(when_the_epoch_is_over_a_proof_never_comes)
{
	struct world w;
	struct event *ev;

	world_init(&w);
	w.over = true;
	EXPECT_UINT(gate_prove(&w.gate, 0), UINT64_MAX);
	ev = enter(&w, 0, UINT64_MAX);
	gate_proved(&w.gate, 1000, RC_OK);
	EXPECT_UINT(opened_n, 0);
	gate_leave(&w.gate, ev);
	free(ev);
	gate_release(&w.gate);
}

/* One for whom nothing could be asked holds up nobody behind it. */
TEST(who_could_not_ask_goes_with_the_next_question)
{
	struct world w;
	struct event *a;
	struct event *b;
	struct event *c;

	world_init(&w);
	w.over = true;
	a = enter(&w, 0, gate_prove(&w.gate, MS));
	c = enter(&w, 0, gate_prove(&w.gate, MS));
	gate_leave(&w.gate, c);
	w.over = false;
	b = enter(&w, 0, gate_prove(&w.gate, MS));
	EXPECT_UINT(opened_n, 0);
	gate_proved(&w.gate, 1, RC_OK);
	EXPECT_UINT(opened_n, 2);
	EXPECT_TRUE(opened[0] == a);
	EXPECT_TRUE(opened[1] == b);
	free(a);
	free(b);
	free(c);
	gate_release(&w.gate);
}

TEST(who_leaves_is_not_let_out_later)
{
	struct world w;
	struct event *ev[3];
	int i;

	world_init(&w);
	gate_noted(&w.gate, 1, false, 0);
	ev[0] = enter(&w, 1, 0);
	ev[1] = enter(&w, 0, gate_prove(&w.gate, 0));
	ev[2] = enter(&w, UINT64_MAX, 0);
	for (i = 0; i < 3; i++) {
		gate_leave(&w.gate, ev[i]);
		EXPECT_INT(ev[i]->state, EVENT_OUT);
		EXPECT_ABORT(gate_leave(&w.gate, ev[i]));
	}
	gate_committed(&w.gate, 1, 1);
	gate_proved(&w.gate, 1, RC_OK);
	EXPECT_UINT(opened_n, 0);
	for (i = 0; i < 3; i++)
		free(ev[i]);
	gate_release(&w.gate);
}

static size_t drained;

static void count(struct event *ev)
{
	EXPECT_INT(ev->state, EVENT_OUT);
	drained++;
}

TEST(draining_finds_everybody)
{
	struct world w;
	struct event *ev[4];
	int i;

	world_init(&w);
	gate_noted(&w.gate, 1, true, MS);
	ev[0] = enter(&w, 1, 0);
	ev[1] = enter(&w, 1, 0);
	ev[2] = enter(&w, 1, gate_prove(&w.gate, 0));
	ev[3] = enter(&w, 1u << 30, 0);
	EXPECT_ABORT(gate_release(&w.gate));
	drained = 0;
	gate_drain(&w.gate, count);
	EXPECT_UINT(drained, 4);
	gate_lead(&w.gate, 8);
	EXPECT_UINT(w.gate.lagged_mark, 0);
	for (i = 0; i < 4; i++)
		free(ev[i]);
	gate_release(&w.gate);
}

/* ------------------------------------------------------------------- lagged */

static void prove_now(struct world *w, uint64_t now)
{
	uint64_t t = gate_prove(&w->gate, now);

	gate_proved(&w->gate, t, RC_OK);
}

TEST(a_lagged_answer_leaves_while_effects_and_proof_are_young)
{
	struct event ev = { .any_mark = 2 };
	struct world w;

	world_init(&w);
	prove_now(&w, 1000 * MS);
	gate_noted(&w.gate, 1, true, 1000 * MS);
	gate_noted(&w.gate, 2, true, 1050 * MS);
	EXPECT_TRUE(gate_lagging_may_leave(&w.gate, &ev, 1100 * MS));
	/* The first effect is too old, then the proof is. */
	EXPECT_FALSE(gate_lagging_may_leave(&w.gate, &ev, 1101 * MS));
	EXPECT_UINT(ev.need_mark, 2);
	gate_leave(&w.gate, &ev);
	prove_now(&w, 1101 * MS);
	gate_committed(&w.gate, 1, 1);
	EXPECT_TRUE(gate_lagging_may_leave(&w.gate, &ev, 1150 * MS));
	gate_committed(&w.gate, 2, 2);
	EXPECT_TRUE(gate_lagging_may_leave(&w.gate, &ev, 1200 * MS));
	ev.need_proof = 0;
	EXPECT_FALSE(gate_lagging_may_leave(&w.gate, &ev, 1300 * MS));
	EXPECT_INT(ev.state, EVENT_UNPROVED);
	/* A proof for it alone, however long it took. */
	gate_proved(&w.gate, ev.need_proof, RC_OK);
	EXPECT_INT(ev.state, EVENT_PASSED);
	EXPECT_TRUE(gate_lagging_may_leave(&w.gate, &ev, 9000 * MS));
	gate_release(&w.gate);
}

/* There was no memory to note when. */
TEST(a_lagged_effect_whose_age_nobody_knows)
{
	struct event ev = { .any_mark = 100 };
	struct world w;
	uint64_t m;

	world_init(&w);
	fault_alloc_from(1);
	for (m = 1; m <= 100; m++)
		gate_noted(&w.gate, m, true, MS);
	EXPECT_TRUE(fault_off());
	prove_now(&w, MS);
	gate_committed(&w.gate, 64, 64);
	EXPECT_FALSE(gate_lagging_may_leave(&w.gate, &ev, MS));
	EXPECT_UINT(ev.need_mark, 100);
	gate_leave(&w.gate, &ev);
	gate_release(&w.gate);
}

/* Marks and tickets begin anew: what the last one had reached lets nobody out,
 * and what it had asked for keeps nobody from asking. */
TEST(a_new_leadership_begins_with_nothing)
{
	struct event lagging = { .any_mark = 0 };
	struct event *a;
	struct event *b;
	struct world w;
	uint64_t m;

	world_init(&w);
	for (m = 1; m <= 3; m++) {
		gate_noted(&w.gate, m, false, 1000 * MS);
		prove_now(&w, 1000 * MS);
	}
	gate_committed(&w.gate, 3, 9);
	gate_freshen(&w.gate, 1060 * MS); /* Never answered. */
	EXPECT_UINT(w.ticket, 4);

	gate_lead(&w.gate, 7);
	w.ticket = 0;
	gate_freshen(&w.gate, 1070 * MS);
	EXPECT_UINT(w.ticket, 1);
	gate_noted(&w.gate, 1, true, 1070 * MS);
	a = enter(&w, 1, 0);
	EXPECT_UINT(w.hurries, 1);
	b = enter(&w, 0, 1);
	EXPECT_UINT(opened_n, 0);
	EXPECT_FALSE(gate_lagging_may_leave(&w.gate, &lagging, 1070 * MS));
	gate_leave(&w.gate, &lagging);
	gate_proved(&w.gate, 1, RC_OK);
	EXPECT_UINT(w.gate.fresh_ns, 1070 * MS);
	EXPECT_TRUE(opened_n == 1 && opened[0] == b);
	gate_committed(&w.gate, 1, 10);
	EXPECT_TRUE(opened_n == 2 && opened[1] == a);
	EXPECT_UINT(a->index, 10);
	free(a);
	free(b);
	gate_release(&w.gate);
}

TEST(the_oldest_lagged_effect_is_found_among_others)
{
	struct event ev = { .any_mark = 50 };
	struct world w;
	uint64_t m;

	world_init(&w);
	for (m = 1; m <= 50; m++)
		gate_noted(&w.gate, m, m % 10 == 0, m * MS);
	for (m = 1; m <= 50; m++) {
		gate_committed(&w.gate, m, m);
		EXPECT_UINT(w.gate.lagged_mark,
			    m >= 50 ? 0 : (m / 10 + 1) * 10);
		if (m < 50)
			EXPECT_UINT(w.gate.lagged_ns, w.gate.lagged_mark * MS);
	}
	prove_now(&w, 10000 * MS);
	EXPECT_TRUE(gate_lagging_may_leave(&w.gate, &ev, 10000 * MS));
	gate_release(&w.gate);
}

TEST(proofs_are_asked_for_in_time)
{
	struct world w;

	world_init(&w);
	gate_freshen(&w.gate, 1000 * MS);
	EXPECT_UINT(w.ticket, 1);
	gate_freshen(&w.gate, 1001 * MS); /* One is on its way. */
	EXPECT_UINT(w.ticket, 1);
	gate_proved(&w.gate, 1, RC_OK);
	EXPECT_UINT(w.gate.fresh_ns, 1000 * MS); /* When it was asked for. */
	gate_freshen(&w.gate, 1040 * MS);
	EXPECT_UINT(w.ticket, 1);
	gate_freshen(&w.gate, 1051 * MS);
	EXPECT_UINT(w.ticket, 2);
	gate_proved(&w.gate, 2, RC_NO_QUORUM);
	EXPECT_UINT(w.gate.fresh_ns, 1000 * MS);
	gate_freshen(&w.gate, 1060 * MS);
	EXPECT_UINT(w.ticket, 3);
	gate_proved(&w.gate, 3, RC_OK);
	EXPECT_UINT(w.gate.fresh_ns, 1060 * MS);
	gate_release(&w.gate);
}
