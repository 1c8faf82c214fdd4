#include "node/base/turn.h"

#include "node/base/check.h"
#include "tests/lib/runner.h"

static struct turn turn;
static char ran[64];

struct named {
	struct env_task task;
	char name;
	unsigned again; /* Times it posts itself. */
	struct named *then;
};

static void run(struct env_task *task)
{
	struct named *n = CONTAINER_OF(task, struct named, task);
	size_t at = strlen(ran);

	EXPECT_TRUE(at + 1 < sizeof(ran));
	ran[at] = n->name;
	ran[at + 1] = '\0';
	if (n->again > 0) {
		n->again--;
		turn_post(&turn, task);
	}
	if (n->then != NULL && !n->then->task.posted)
		turn_post(&turn, &n->then->task);
}

static struct named named(char name, enum env_phase phase)
{
	return (struct named){
		.task = { .cb = run, .phase = phase },
		.name = name,
	};
}

static void start(void)
{
	turn_init(&turn);
	ran[0] = '\0';
}

TEST(phases_run_in_order_and_tasks_of_one_as_posted)
{
	struct named a = named('a', ENV_PHASE_SEND);
	struct named b = named('b', ENV_PHASE_PROPOSE);
	struct named c = named('c', ENV_PHASE_LOG);
	struct named d = named('d', ENV_PHASE_PROPOSE);

	start();
	turn_post(&turn, &a.task);
	turn_post(&turn, &b.task);
	turn_post(&turn, &c.task);
	turn_post(&turn, &d.task);
	EXPECT_UINT(turn.pending, 4);
	turn_run(&turn);
	EXPECT_STR(ran, "bdca");
	EXPECT_UINT(turn.pending, 0);
	EXPECT_FALSE(a.task.posted);
	turn_run(&turn);
	EXPECT_STR(ran, "bdca");
}

TEST(a_task_of_a_later_phase_joins_and_of_an_earlier_goes_round)
{
	struct named propose = named('p', ENV_PHASE_PROPOSE);
	struct named release = named('r', ENV_PHASE_RELEASE);
	struct named more = named('m', ENV_PHASE_RELEASE);
	struct named send = named('s', ENV_PHASE_SEND);

	start();
	release.then = &propose;
	more.then = &send;
	turn_post(&turn, &release.task);
	turn_post(&turn, &more.task);
	turn_run(&turn);
	EXPECT_STR(ran, "rmsp");
}

TEST(a_task_may_post_itself)
{
	struct named a = named('a', ENV_PHASE_LOG);
	struct named b = named('b', ENV_PHASE_ROUND);

	start();
	a.again = 2;
	turn_post(&turn, &a.task);
	turn_post(&turn, &b.task);
	turn_run(&turn);
	EXPECT_STR(ran, "aaab");
}

TEST(init_forgets_without_looking)
{
	struct named *gone = malloc(sizeof(*gone));

	EXPECT_NOT_NULL(gone);
	start();
	*gone = named('a', ENV_PHASE_LOG);
	turn_post(&turn, &gone->task);
	free(gone);
	turn_init(&turn);
	turn_run(&turn);
	EXPECT_STR(ran, "");
}

TEST(mistakes_are_held_back)
{
	struct named a = named('a', ENV_PHASE_LOG);
	struct named b = named('b', ENV_PHASES);

	start();
	turn_post(&turn, &a.task);
	EXPECT_ABORT(turn_post(&turn, &a.task));
	EXPECT_ABORT(turn_post(&turn, &b.task));
	turn_run(&turn);
}
