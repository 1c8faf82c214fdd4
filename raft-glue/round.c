/*
 * Records of CHANNEL_ROUND, shard 0, integers little endian. A question, from
 * who leads:
 *
 *	 0  1  1
 *	 1  1  how many shards, 1..SHARDS_MAX
 *	 2  8  number of the round
 *	10     for each: shard (1 byte), term (8)
 *
 * and its answer, in the same order:
 *
 *	 0  1  2
 *	 1  1  how many shards
 *	 2  8  number of the round
 *	10     for each: shard (1 byte), 1 yes or 0 no (1)
 *
 * Numbers only grow, from a random one at each start: nothing that was meant
 * for an earlier life of this node confirms anything.
 */
#include "raft-glue/round.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"

/* When what was asked and not answered is asked again. */
#define AGAIN_MS 50u
/* So long a round waits for the one before it. */
#define HOLD_MS 2u
/* Rounds older than that which are kept for a late answer. */
#define LATE_MAX 8u

#define KIND_QUESTION  1u
#define KIND_ANSWER    2u
#define HEAD_BYTES     10u
#define QUESTION_BYTES 9u
#define ANSWER_BYTES   2u

_Static_assert(SHARDS_MAX <= 64, "a mask of shards fits 64 bits");
_Static_assert(MEMBERS_MAX <= 8, "a mask of members fits 8 bits");
_Static_assert(LATE_MAX < ROUNDS_MAX, "late rounds leave room for new ones");

STAILQ_HEAD(round_list, round);

/* One round that is under way. */
struct flight {
	TAILQ_ENTRY(flight) link;
	uint64_t number;
	uint64_t begun_ns;
	uint64_t shards;  /* Mask of those that wait for it. */
	uint8_t asked;    /* Mask of the members that were. */
	uint8_t answered; /* And of those that have. */
	uint64_t term[SHARDS_MAX];
	uint8_t yes[SHARDS_MAX]; /* Mask of members. */
};
TAILQ_HEAD(flights, flight);

struct rounds {
	struct env *env;
	struct transport *t; /* NULL: lone voters only. */
	struct shard *(*find)(void *arg, uint32_t shard);
	void *find_arg;
	struct transport_sink sink;
	struct env_task task;
	struct env_timer timer;
	struct env_timer hold;
	struct round_list asked; /* Since the last round began. */
	struct round_list lone;  /* Of the round that completes. */
	/* Questions that a round has taken up, in the order of its number, and
	 * when the newest round about the shard began. */
	struct round_list open[SHARDS_MAX];
	uint64_t open_ns[SHARDS_MAX];
	uint64_t open_mask;    /* Shards whose list is not empty. */
	uint64_t again;        /* Mask of shards to ask about again. */
	struct flights flying; /* Oldest first. */
	struct flights idle;
	size_t flying_n;
	uint64_t number; /* Of the newest round. */
	uint64_t begun;
	bool crowded;   /* Questions have waited for the round before. */
	uint8_t silent; /* Mask of members that did not answer in time. */
	unsigned busy;  /* Callbacks are on the stack. */
	bool freed;
	struct flight flights[ROUNDS_MAX];
};

static uint64_t bit(uint32_t shard)
{
	return UINT64_C(1) << shard;
}

uint64_t rounds_count(const struct rounds *r)
{
	return r->begun;
}

/* ---- questions ---- */

static struct round *list_find(const struct round_list *list,
			       const struct shard *shard)
{
	struct round *req;

	STAILQ_FOREACH(req, list, link)
	if (shard == NULL || req->shard == shard)
		return req;
	return NULL;
}

/* Only while `busy`: the callback may free the rounds. */
static void round_end(struct rounds *r, struct round_list *from,
		      struct round *req, enum rc rc)
{
	CHECK(r->busy > 0);
	STAILQ_REMOVE(from, req, round, link);
	req->cb(req, rc); /* The caller may reuse or free req. */
}

/* From the front each time: a callback may ask, or cancel, others. */
static void list_cancel(struct rounds *r, struct round_list *list,
			const struct shard *shard)
{
	struct round *req;

	while ((req = list_find(list, shard)) != NULL)
		round_end(r, list, req, RC_CANCELLED);
}

static bool round_leads(const struct round *req)
{
	uint64_t term;

	return shard_leads(req->shard, &term) &&
	       (term == req->term || MUTANT(round_later_term));
}

/* What asks in another term than the present one ends. */
static void list_lost(struct rounds *r, struct round_list *list,
		      const struct shard *shard)
{
	struct round *req;

	do {
		STAILQ_FOREACH(req, list, link)
		if ((shard == NULL || req->shard == shard) && !round_leads(req))
			break;
		if (req != NULL)
			round_end(r, list, req, RC_NOT_LEADER);
	} while (req != NULL);
}

/* ---- flights ---- */

static void flight_release(struct rounds *r, struct flight *f)
{
	TAILQ_REMOVE(&r->flying, f, link);
	TAILQ_INSERT_HEAD(&r->idle, f, link);
	r->flying_n--;
	/* Somebody may wait for it. */
	if (!STAILQ_EMPTY(&r->asked))
		env_post(r->env, &r->task);
}

/* Nothing waits any more for what rounds up to `number` say of the shard. */
static void flights_settle(struct rounds *r, uint32_t shard, uint64_t number)
{
	struct flight *next;
	struct flight *f;

	for (f = TAILQ_FIRST(&r->flying); f != NULL && f->number <= number;
	     f = next) {
		next = TAILQ_NEXT(f, link);
		f->shards &= ~bit(shard);
		if (f->shards == 0)
			flight_release(r, f);
	}
}

/* After callbacks: the list of the shard may have become empty. */
static void open_settle(struct rounds *r, uint32_t shard)
{
	if (!STAILQ_EMPTY(&r->open[shard]))
		return;
	r->open_mask &= ~bit(shard);
	r->again &= ~bit(shard);
	flights_settle(r, shard, r->number);
}

static struct flight *flight_find(struct rounds *r, uint64_t number)
{
	struct flight *f;

	if (MUTANT(round_any_answer))
		return TAILQ_LAST(&r->flying, flights);
	TAILQ_FOREACH(f, &r->flying, link)
	if (f->number == number)
		return f;
	return NULL;
}

/* A node is its own first answer. While a change of the voters is not
 * committed, only who is a voter before and after it counts. */
static bool majority(const struct rounds *r, const struct shard *shard,
		     uint8_t yes)
{
	const struct members *m;
	uint32_t count = 1;
	size_t i;

	if (r->t != NULL && yes != 0) {
		m = transport_members(r->t);
		for (i = 0; i < members_count(m); i++)
			if ((yes & (1u << i)) != 0 &&
			    shard_voter(shard, members_at(m, i)->id))
				count++;
	}
	return count > shard_voters(shard) / 2;
}

/* All that is asked about the shard and that this round serves. */
static void flight_confirm(struct rounds *r, struct flight *f, uint32_t shard)
{
	struct round_list *list = &r->open[shard];
	uint64_t begun_ns = f->begun_ns;
	uint64_t number = f->number;
	struct round *req;

	while ((req = STAILQ_FIRST(list)) != NULL && req->number <= number) {
		req->begun_ns = begun_ns;
		round_end(r, list, req,
			  round_leads(req) ? RC_OK : RC_NOT_LEADER);
	}
	flights_settle(r, shard, number);
	open_settle(r, shard);
}

static void rounds_unfree(struct rounds *r)
{
	/* A posted task cannot be taken back: it frees. */
	if (r->freed && r->busy == 0 && !r->task.posted)
		free(r);
}

/* ---- asking ---- */

static void again_timer_start(struct rounds *r)
{
	uint64_t first_ns = UINT64_MAX;
	uint32_t s;

	if (r->timer.running)
		return;
	for (s = 0; s < SHARDS_MAX; s++)
		if ((r->open_mask & bit(s)) != 0 && r->open_ns[s] < first_ns)
			first_ns = r->open_ns[s];
	if (first_ns != UINT64_MAX)
		env_timer_start(&r->timer, first_ns / 1000000u + AGAIN_MS + 1);
}

/* Room for one more round. Of those that are late only a few are kept: a shard
 * that no majority confirms must not hold up the others. */
static bool room_make(struct rounds *r, uint64_t now_ns)
{
	struct flight *f;
	size_t late = 0;

	TAILQ_FOREACH(f, &r->flying, link)
	if (now_ns - f->begun_ns >= AGAIN_MS * UINT64_C(1000000))
		late++;
	for (; late > LATE_MAX; late--)
		flight_release(r, TAILQ_FIRST(&r->flying));
	if (r->flying_n == ROUNDS_MAX && r->again != 0)
		flight_release(r, TAILQ_FIRST(&r->flying));
	return r->flying_n < ROUNDS_MAX;
}

static void flight_add(struct rounds *r, struct flight *f, uint32_t shard,
		       uint64_t term)
{
	f->shards |= bit(shard);
	f->term[shard] = term;
	f->yes[shard] = 0;
	r->open_ns[shard] = f->begun_ns;
	r->open_mask |= bit(shard);
	r->again &= ~bit(shard);
}

static struct flight *flight_begin(struct rounds *r, uint64_t now_ns)
{
	struct flight *f = TAILQ_FIRST(&r->idle);

	CHECK(f != NULL);
	TAILQ_REMOVE(&r->idle, f, link);
	TAILQ_INSERT_TAIL(&r->flying, f, link);
	r->flying_n++;
	f->number = ++r->number;
	r->begun++;
	f->begun_ns = now_ns;
	f->shards = 0;
	f->asked = 0;
	f->answered = 0;
	return f;
}

/* Mask of the other members. */
static uint8_t others(const struct rounds *r)
{
	const struct members *m = transport_members(r->t);
	uint8_t mask = 0;
	size_t i;

	for (i = 0; i < members_count(m); i++)
		if (members_at(m, i)->id != members_self(m))
			mask |= (uint8_t)(1u << i);
	return mask;
}

/* As many as make a majority with this node, in turns; all of them when too
 * few are known to answer. */
static uint8_t just_enough(const struct rounds *r)
{
	size_t n = members_count(transport_members(r->t));
	uint8_t may = others(r) & (uint8_t)~r->silent;
	uint8_t mask = 0;
	size_t need = n / 2;
	size_t i;

	if ((size_t)__builtin_popcount(may) < need)
		return others(r);
	for (i = 0; need > 0; i++) {
		uint8_t member = (uint8_t)(1u << (r->begun + i) % n);

		if ((may & member) != 0) {
			mask |= member;
			need--;
		}
	}
	return mask;
}

/* To those of `mask`, about the shards that still wait. */
static void question_send(struct rounds *r, struct flight *f, uint8_t mask)
{
	const struct members *m = transport_members(r->t);
	uint8_t rec[HEAD_BYTES + SHARDS_MAX * QUESTION_BYTES];
	uint8_t *p = rec + HEAD_BYTES;
	uint64_t id;
	uint32_t s;
	size_t i;

	rec[0] = KIND_QUESTION;
	rec[1] = (uint8_t)__builtin_popcountll(f->shards);
	le_put64(rec + 2, f->number);
	for (s = 0; s < SHARDS_MAX; s++) {
		if ((f->shards & bit(s)) == 0)
			continue;
		p[0] = (uint8_t)s;
		le_put64(p + 1, f->term[s]);
		p += QUESTION_BYTES;
	}
	f->asked |= mask;
	for (i = 0; i < members_count(m); i++) {
		id = members_at(m, i)->id;
		/* What does not leave is asked again. */
		if ((mask & 1u << i) != 0)
			(void)transport_send(r->t, CHANNEL_ROUND, 0, id, rec,
					     (size_t)(p - rec), NULL, 0);
	}
}

/* Those that were not asked are, when the others did not do. */
static void question_spread(struct rounds *r, struct flight *f)
{
	uint8_t rest = others(r) & (uint8_t)~f->asked;

	if (rest != 0)
		question_send(r, f, rest);
}

static void hold_timer_start(struct rounds *r, const struct flight *f)
{
	if (!r->hold.running)
		env_timer_start(&r->hold, f->begun_ns / 1000000u + HOLD_MS + 1);
}

/* What was asked is taken up by the round. Nothing is called back here. */
static void asked_take(struct rounds *r, struct flight *f)
{
	struct round *req;
	uint32_t s;

	while ((req = STAILQ_FIRST(&r->asked)) != NULL) {
		STAILQ_REMOVE_HEAD(&r->asked, link);
		s = shard_number(req->shard);
		req->number = f->number;
		STAILQ_INSERT_TAIL(&r->open[s], req, link);
		flight_add(r, f, s, req->term);
	}
	for (s = 0; s < SHARDS_MAX; s++)
		if ((r->again & bit(s)) != 0)
			flight_add(r, f, s, STAILQ_FIRST(&r->open[s])->term);
}

/*
 * What is asked while a young round is under way waits for its end, and shares
 * the next: a round costs frames, whatever is in it. Nobody waits for one
 * that is late.
 */
static bool round_held(struct rounds *r, uint64_t now_ns)
{
	const struct flight *f = TAILQ_LAST(&r->flying, flights);

	if (f == NULL || r->again != 0 ||
	    now_ns - f->begun_ns >= HOLD_MS * UINT64_C(1000000))
		return false;
	hold_timer_start(r, f);
	r->crowded = true;
	return true;
}

/*
 * Whom to ask. Normally all: the fastest answers count. Where one round follows
 * the other it is processors that questions wait for, and a frame costs more of
 * them than all that is in it: then no more are asked than are needed, unless
 * they do not answer.
 */
static uint8_t round_members(struct rounds *r)
{
	bool spare = r->crowded && r->again == 0 && TAILQ_EMPTY(&r->flying);

	r->crowded = false;
	return spare ? just_enough(r) : others(r);
}

static void round_begin(struct rounds *r, uint64_t now_ns)
{
	struct flight *f;
	uint8_t mask;

	if (STAILQ_EMPTY(&r->asked) && r->again == 0)
		return;
	if (round_held(r, now_ns))
		return;
	if (!room_make(r, now_ns))
		return;
	mask = r->t != NULL ? round_members(r) : 0;
	f = flight_begin(r, now_ns);
	asked_take(r, f);
	if (r->t != NULL)
		question_send(r, f, mask);
	if (r->t != NULL && f->asked != others(r))
		hold_timer_start(r, f);
	again_timer_start(r);
}

/* What only this node has to confirm. */
static void lone_take(struct rounds *r)
{
	struct round_list all = STAILQ_HEAD_INITIALIZER(all);
	struct round *req;

	STAILQ_CONCAT(&all, &r->asked);
	while ((req = STAILQ_FIRST(&all)) != NULL) {
		STAILQ_REMOVE_HEAD(&all, link);
		if (majority(r, req->shard, 0))
			STAILQ_INSERT_TAIL(&r->lone, req, link);
		else
			STAILQ_INSERT_TAIL(&r->asked, req, link);
	}
}

static void lone_complete(struct rounds *r, uint64_t begun_ns)
{
	struct round *req;

	while ((req = STAILQ_FIRST(&r->lone)) != NULL) {
		req->begun_ns = begun_ns;
		round_end(r, &r->lone, req,
			  round_leads(req) ? RC_OK : RC_NOT_LEADER);
	}
}

/* Terms only grow along a list: when the first leads, so do all. */
static void open_lost(struct rounds *r, uint32_t shard)
{
	struct round *req;

	while ((req = STAILQ_FIRST(&r->open[shard])) != NULL &&
	       !round_leads(req))
		round_end(r, &r->open[shard], req, RC_NOT_LEADER);
	open_settle(r, shard);
}

static void all_lost(struct rounds *r)
{
	uint32_t s;

	list_lost(r, &r->asked, NULL);
	for (s = 0; s < SHARDS_MAX; s++)
		if ((r->open_mask & bit(s)) != 0)
			open_lost(r, s);
}

/* Everything that was asked before now is one round. What is asked from inside
 * a callback of it belongs to the next. */
static void rounds_task(struct env_task *t)
{
	struct rounds *r = CONTAINER_OF(t, struct rounds, task);
	uint64_t now_ns;

	r->busy++;
	if (!r->freed)
		all_lost(r);
	if (!r->freed) {
		now_ns = env_now_ns(r->env);
		lone_take(r);
		round_begin(r, now_ns);
		lone_complete(r, now_ns);
	}
	r->busy--;
	rounds_unfree(r);
}

static void rounds_timer(struct env_timer *t)
{
	struct rounds *r = CONTAINER_OF(t, struct rounds, timer);
	uint64_t now_ns = env_now_ns(r->env);
	uint32_t s;

	for (s = 0; s < SHARDS_MAX; s++)
		if ((r->open_mask & bit(s)) != 0 &&
		    now_ns - r->open_ns[s] >= AGAIN_MS * UINT64_C(1000000))
			r->again |= bit(s);
	if (r->again != 0)
		env_post(r->env, &r->task);
	else
		again_timer_start(r);
}

static void rounds_held(struct env_timer *t)
{
	struct rounds *r = CONTAINER_OF(t, struct rounds, hold);
	uint64_t now_ns = env_now_ns(r->env);
	struct flight *f;

	TAILQ_FOREACH(f, &r->flying, link)
	{
		if (f->asked == others(r))
			continue;
		if (now_ns - f->begun_ns < HOLD_MS * UINT64_C(1000000)) {
			hold_timer_start(r, f);
			continue;
		}
		r->silent |= f->asked & (uint8_t)~f->answered;
		question_spread(r, f);
	}
	if (!STAILQ_EMPTY(&r->asked))
		env_post(r->env, &r->task);
}

enum rc round_start(struct rounds *r, struct round *req, struct shard *shard,
		    round_cb cb)
{
	struct flight *f;
	uint64_t term;
	uint32_t s;

	if (r->freed || !shard_leads(shard, &term))
		return RC_NOT_LEADER;
	s = shard_number(shard);
	PRE(s < SHARDS_MAX);
	req->cb = cb;
	req->shard = shard;
	req->term = term;
	req->number = 0;
	req->begun_ns = 0;
	f = TAILQ_LAST(&r->flying, flights);
	if (MUTANT(round_counted_early) && f != NULL &&
	    (f->shards & bit(s)) != 0) {
		req->number = f->number;
		STAILQ_INSERT_TAIL(&r->open[s], req, link);
		r->open_mask |= bit(s);
		return RC_OK;
	}
	STAILQ_INSERT_TAIL(&r->asked, req, link);
	env_post(r->env, &r->task);
	return RC_OK;
}

/* ---- answering ---- */

static void question_received(struct rounds *r, uint64_t node_id,
			      const uint8_t *p, unsigned n)
{
	uint8_t rec[HEAD_BYTES + SHARDS_MAX * ANSWER_BYTES];
	uint8_t *to = rec + HEAD_BYTES;
	const struct shard *shard;
	unsigned i;

	memcpy(rec, p, HEAD_BYTES);
	rec[0] = KIND_ANSWER;
	p += HEAD_BYTES;
	for (i = 0; i < n; i++, p += QUESTION_BYTES, to += ANSWER_BYTES) {
		shard = r->find(r->find_arg, p[0]);
		to[0] = p[0];
		to[1] = shard != NULL && shard_confirms(shard, le_get64(p + 1));
	}
	(void)transport_send(r->t, CHANNEL_ROUND, 0, node_id, rec,
			     (size_t)(to - rec), NULL, 0);
}

static int member_place(const struct rounds *r, uint64_t node_id)
{
	const struct members *m = transport_members(r->t);
	size_t i;

	for (i = 0; i < members_count(m); i++)
		if (members_at(m, i)->id == node_id)
			return (int)i;
	return -1;
}

/* One shard of an answer. */
static void shard_answered(struct rounds *r, uint64_t number, uint32_t shard,
			   uint8_t member, bool yes)
{
	struct flight *f = flight_find(r, number);
	struct round *first;
	uint64_t term;

	if (f == NULL || (f->shards & bit(shard)) == 0)
		return;
	first = STAILQ_FIRST(&r->open[shard]);
	if (first == NULL) {
		open_settle(r, shard);
		return;
	}
	if (!shard_leads(first->shard, &term) || term != f->term[shard]) {
		open_lost(r, shard);
		return;
	}
	if (!yes && !MUTANT(round_refused_counts))
		return;
	f->yes[shard] |= member;
	if (majority(r, first->shard, f->yes[shard]))
		flight_confirm(r, f, shard);
}

/* When all that were asked have answered, what is still open needs the others,
 * or waits for another round. */
static void all_answered(struct rounds *r, uint64_t number, uint8_t member)
{
	struct flight *f = flight_find(r, number);

	r->silent &= (uint8_t)~member;
	if (f == NULL)
		return;
	f->answered |= member;
	if (f->answered == others(r))
		flight_release(r, f);
	else if (f->answered == f->asked)
		question_spread(r, f);
}

static void answer_received(struct rounds *r, uint64_t node_id,
			    const uint8_t *p, unsigned n)
{
	uint64_t number = le_get64(p + 2);
	int place = member_place(r, node_id);
	uint8_t member;
	unsigned i;

	CHECK(place >= 0);
	member = (uint8_t)(1u << place);
	p += HEAD_BYTES;
	for (i = 0; i < n && !r->freed; i++, p += ANSWER_BYTES)
		shard_answered(r, number, p[0], member, p[1] == 1);
	if (!r->freed)
		all_answered(r, number, member);
}

static bool record_sane(const uint8_t *p, size_t n)
{
	size_t bytes;
	size_t at;

	if (n < HEAD_BYTES || p[0] < KIND_QUESTION || p[0] > KIND_ANSWER)
		return false;
	bytes = p[0] == KIND_QUESTION ? QUESTION_BYTES : ANSWER_BYTES;
	if (p[1] < 1 || p[1] > SHARDS_MAX || n != HEAD_BYTES + p[1] * bytes)
		return false;
	for (at = HEAD_BYTES; at < n; at += bytes) {
		if (p[at] >= SHARDS_MAX)
			return false;
		if (p[0] == KIND_ANSWER && p[at + 1] > 1)
			return false;
	}
	return true;
}

static void rounds_received(struct transport_sink *k, uint64_t node_id,
			    uint64_t epoch, const uint8_t *p, size_t n)
{
	struct rounds *r = CONTAINER_OF(k, struct rounds, sink);

	(void)epoch;
	if (!record_sane(p, n)) {
		transport_drop(r->t, CHANNEL_ROUND, node_id);
		return;
	}
	if (p[0] == KIND_QUESTION) {
		question_received(r, node_id, p, p[1]);
		return;
	}
	r->busy++;
	answer_received(r, node_id, p, p[1]);
	r->busy--;
	rounds_unfree(r);
}

/* Who is back may be the one that a majority lacks. */
static void rounds_changed(struct transport_sink *k, uint64_t node_id,
			   uint64_t epoch)
{
	struct rounds *r = CONTAINER_OF(k, struct rounds, sink);
	int place = member_place(r, node_id);

	if (epoch == 0 && place >= 0)
		r->silent |= (uint8_t)(1u << place);
	if (epoch == 0 || r->open_mask == 0)
		return;
	r->again = r->open_mask;
	env_post(r->env, &r->task);
}

/* ---- life ---- */

enum rc rounds_new(struct env *env, struct transport *t,
		   struct shard *(*find)(void *arg, uint32_t shard), void *arg,
		   struct rounds **out)
{
	struct rounds *r = calloc(1, sizeof(*r));
	unsigned i;

	if (r == NULL)
		return RC_NOMEM;
	r->env = env;
	r->t = t;
	r->find = find;
	r->find_arg = arg;
	r->task.cb = rounds_task;
	r->task.phase = ENV_PHASE_ROUND;
	env_timer_init(&r->timer, env, rounds_timer);
	env_timer_init(&r->hold, env, rounds_held);
	STAILQ_INIT(&r->asked);
	STAILQ_INIT(&r->lone);
	for (i = 0; i < SHARDS_MAX; i++)
		STAILQ_INIT(&r->open[i]);
	TAILQ_INIT(&r->flying);
	TAILQ_INIT(&r->idle);
	for (i = 0; i < ROUNDS_MAX; i++)
		TAILQ_INSERT_TAIL(&r->idle, &r->flights[i], link);
	env_random(env, &r->number, sizeof(r->number));
	r->number >>= 1;
	r->sink.received = rounds_received;
	r->sink.changed = rounds_changed;
	if (t != NULL)
		transport_listen(t, CHANNEL_ROUND, 0, &r->sink);
	*out = r;
	return RC_OK;
}

void rounds_cancel(struct rounds *r, struct shard *shard)
{
	uint32_t s;

	PRE(shard != NULL);
	s = shard_number(shard);
	r->busy++;
	list_cancel(r, &r->lone, shard);
	list_cancel(r, &r->open[s], shard);
	list_cancel(r, &r->asked, shard);
	open_settle(r, s);
	r->busy--;
	rounds_unfree(r);
}

void rounds_lost(struct rounds *r, struct shard *shard)
{
	uint32_t s;

	PRE(shard != NULL);
	s = shard_number(shard);
	r->busy++;
	list_lost(r, &r->lone, shard);
	list_lost(r, &r->asked, shard);
	open_lost(r, s);
	r->busy--;
	rounds_unfree(r);
}

void rounds_free(struct rounds *r)
{
	uint32_t s;

	PRE(!r->freed);
	r->freed = true;
	env_timer_stop(&r->timer);
	env_timer_stop(&r->hold);
	if (r->t != NULL)
		transport_listen(r->t, CHANNEL_ROUND, 0, NULL);
	r->busy++;
	list_cancel(r, &r->lone, NULL);
	for (s = 0; s < SHARDS_MAX; s++)
		list_cancel(r, &r->open[s], NULL);
	list_cancel(r, &r->asked, NULL);
	r->busy--;
	rounds_unfree(r);
}

void rounds_discard(struct rounds *r)
{
	free(r);
}
