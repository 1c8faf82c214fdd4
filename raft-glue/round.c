#include "raft-glue/round.h"

#include <stdlib.h>

#include "node/base/check.h"

STAILQ_HEAD(round_list, round);

struct rounds {
	struct env *env;
	struct link *link;
	struct env_task task;
	struct round_list asked; /* Since the last round began. */
	struct round_list now;   /* Of the round that completes. */
	uint64_t id;             /* Of the last round: an answer to an older one
				  * confirms nothing that was asked later. */
	bool completing;
	bool freed;
};

static void rounds_task(struct env_task *t);

enum rc rounds_new(struct env *env, struct link *link, struct rounds **out)
{
	struct rounds *r = calloc(1, sizeof(*r));

	if (r == NULL)
		return RC_NOMEM;
	r->env = env;
	r->link = link;
	r->task.cb = rounds_task;
	r->task.phase = ENV_PHASE_ROUND;
	STAILQ_INIT(&r->asked);
	STAILQ_INIT(&r->now);
	*out = r;
	return RC_OK;
}

static void round_end(struct round_list *from, struct round *req, enum rc rc)
{
	STAILQ_REMOVE(from, req, round, link);
	req->cb(req, rc); /* The caller may reuse or free req. */
}

static struct round *list_find(const struct round_list *list,
			       const struct shard *shard)
{
	struct round *req;

	STAILQ_FOREACH(req, list, link)
	if (shard == NULL || req->shard == shard)
		return req;
	return NULL;
}

/* From the front each time: a callback may ask, or cancel, others. */
static void list_cancel(struct round_list *list, const struct shard *shard)
{
	struct round *req;

	while ((req = list_find(list, shard)) != NULL)
		round_end(list, req, RC_CANCELLED);
}

void rounds_cancel(struct rounds *r, struct shard *shard)
{
	PRE(shard != NULL);
	list_cancel(&r->now, shard);
	list_cancel(&r->asked, shard);
}

void rounds_free(struct rounds *r)
{
	PRE(!r->freed);
	r->freed = true;
	list_cancel(&r->now, NULL);
	list_cancel(&r->asked, NULL);
	/* A posted task cannot be taken back: it frees. */
	if (!r->task.posted && !r->completing)
		free(r);
}

void rounds_discard(struct rounds *r)
{
	free(r);
}

enum rc round_start(struct rounds *r, struct round *req, struct shard *shard,
		    round_cb cb)
{
	uint64_t term;

	if (r->freed || !shard_leads(shard, &term))
		return RC_NOT_LEADER;
	req->cb = cb;
	req->shard = shard;
	req->term = term;
	req->begun_ns = 0;
	STAILQ_INSERT_TAIL(&r->asked, req, link);
	env_post(r->env, &r->task);
	return RC_OK;
}

/* A node is its own first answer. */
static bool round_majority(const struct round *req, uint32_t answers)
{
	return answers > shard_voters(req->shard) / 2;
}

static enum rc round_verdict(const struct round *req)
{
	uint64_t term;

	if (!shard_leads(req->shard, &term) || term != req->term)
		return RC_NOT_LEADER;
	CHECK(round_majority(req, 1));
	return RC_OK;
}

/* Everything that was asked before now is one round. What is asked from inside
 * a callback belongs to the next. */
static void rounds_task(struct env_task *t)
{
	struct rounds *r = CONTAINER_OF(t, struct rounds, task);
	struct round *req;
	uint64_t begun_ns;

	if (!r->freed) {
		begun_ns = env_now_ns(r->env);
		r->id++;
		r->completing = true;
		STAILQ_CONCAT(&r->now, &r->asked);
		while ((req = STAILQ_FIRST(&r->now)) != NULL) {
			req->begun_ns = begun_ns;
			round_end(&r->now, req, round_verdict(req));
		}
		r->completing = false;
	}
	if (r->freed && !r->task.posted)
		free(r);
}
