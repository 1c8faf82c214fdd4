/*
 * log_rig - a log in the seeded world, with a model of what it must hold.
 *
 * For tests of raft-glue/log.c and recovery.c. All that is appended goes into a
 * list of operations; tickets count them. After a crash the log must hold what
 * the first k operations left, for one k that is not below the last ticket that
 * was told durable; and each shard's ballot one of its votes from the last
 * durable one on.
 */
#ifndef TESTS_LIB_LOG_RIG_H
#define TESTS_LIB_LOG_RIG_H

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/log.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define RIG_OPS_MAX 200000u

enum rig_kind { RIG_ENTRY, RIG_BASE, RIG_VOTE, RIG_VOID };

struct rig_op {
	enum rig_kind kind;
	uint32_t shard;
	uint64_t index; /* Of a vote: its number, stands in term and vote. */
	uint64_t term;
	uint32_t bytes;
};

struct rig_entry {
	uint64_t term;
	uint32_t bytes;
};

struct rig_shard {
	struct log_listener listener;
	struct rig *rig;
	uint64_t last; /* As the driver has appended. */
	uint64_t term;
	uint64_t floor;
	uint64_t durable; /* Ticket. */
	uint64_t voted;   /* The same of ballots. */
	unsigned asked;
	bool stubborn; /* Does not move its floor when asked. */
};

struct rig {
	struct world *w;
	unsigned node;
	struct log_config cfg;
	struct ballot *ballot;
	struct log *log;
	uint64_t floors[SHARDS_MAX];
	struct rig_shard shard[SHARDS_MAX];
	struct rig_op *ops; /* ops[i] has ticket first + i. */
	uint64_t ops_n;
	uint64_t ticket; /* Told durable, of any shard. */
	uint64_t base_ticket;
	bool closed;
	struct detail why;
	bool quiet; /* A failed check ends the run, not the test. */
	bool wrong;
	char wrong_text[256];
};

static inline bool rig_is_record(const struct rig_op *op)
{
	return op->kind == RIG_ENTRY || op->kind == RIG_BASE;
}

/* Not the one that is made to fail. */
static inline void *rig_alloc(size_t n)
{
	void *p;

	fault_hold();
	p = calloc(1, n);
	fault_release();
	CHECK(p != NULL);
	return p;
}

static inline void rig_byte(const struct rig_op *op, uint8_t *p)
{
	uint32_t i;
	uint64_t x =
		op->index * 0x9e3779b97f4a7c15u + op->term * 31 + op->shard;

	for (i = 0; i < op->bytes; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		p[i] = (uint8_t)(x >> 56);
	}
}

__attribute__((format(printf, 2, 3))) static inline void rig_wrong(
	struct rig *r, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!r->quiet)
		FAIL("%s", text);
	if (!r->wrong)
		memcpy(r->wrong_text, text, sizeof(text));
	r->wrong = true;
}

static inline void rig_durable(struct log_listener *l, uint64_t ticket)
{
	struct rig_shard *s = CONTAINER_OF(l, struct rig_shard, listener);

	ticket += s->rig->base_ticket;
	if (ticket > s->durable)
		s->durable = ticket;
	if (ticket > s->rig->ticket)
		s->rig->ticket = ticket;
}

static inline void rig_voted(struct log_listener *l, uint64_t ticket)
{
	struct rig_shard *s = CONTAINER_OF(l, struct rig_shard, listener);

	ticket += s->rig->base_ticket;
	if (ticket > s->voted)
		s->voted = ticket;
}

static inline void rig_floor(struct rig *r, uint32_t shard, uint64_t index)
{
	if (index <= r->shard[shard].floor)
		return;
	r->shard[shard].floor = index;
	r->floors[shard] = index;
	log_floor(r->log, shard, index);
}

/* The last index of the shard that its durable ticket covers. */
static inline uint64_t rig_durable_index(const struct rig *r, uint32_t shard)
{
	uint64_t i = r->shard[shard].durable;

	while (i-- > 0)
		if (r->ops[i].shard == shard && rig_is_record(&r->ops[i]))
			return r->ops[i].index;
	return 0;
}

static inline void rig_pinning(struct log_listener *l)
{
	struct rig_shard *s = CONTAINER_OF(l, struct rig_shard, listener);
	uint32_t shard = (uint32_t)(s - s->rig->shard);

	s->asked++;
	if (!s->stubborn)
		rig_floor(s->rig, shard, rig_durable_index(s->rig, shard));
}

static inline void rig_init(struct rig *r, uint64_t seed, uint32_t shards,
			    uint32_t segment_bytes, unsigned segments)
{
	uint32_t s;

	memset(r, 0, sizeof(*r));
	r->w = world_new(seed);
	r->ops = calloc(RIG_OPS_MAX, sizeof(*r->ops));
	EXPECT_NOT_NULL(r->ops);
	r->cfg = (struct log_config){
		.shards = shards,
		.segment_bytes = segment_bytes,
		.bytes_max = (uint64_t)segments * segment_bytes,
		.node_id = 7,
	};
	memset(r->cfg.cluster_id, 0xc1, sizeof(r->cfg.cluster_id));
	for (s = 0; s < SHARDS_MAX; s++) {
		r->shard[s].rig = r;
		r->shard[s].term = 1;
		r->shard[s].listener.durable = rig_durable;
		r->shard[s].listener.pinning = rig_pinning;
		r->shard[s].listener.voted = rig_voted;
	}
}

static inline void rig_format(struct rig *r)
{
	struct disk *d = world_disk(r->w, r->node);

	EXPECT_RC(ballot_format(d, r->cfg.shards, &r->why), RC_OK);
	EXPECT_RC(log_format(d, &r->cfg, &r->why), RC_OK);
}

static inline void rig_listen(struct rig *r)
{
	uint32_t s;

	for (s = 0; s < r->cfg.shards; s++)
		log_listen(r->log, s, &r->shard[s].listener);
}

/* Opens ballot and log; both are NULL on failure. */
static inline enum rc rig_open(struct rig *r)
{
	struct disk *d = world_disk(r->w, r->node);
	enum rc rc;

	r->base_ticket = r->ops_n;
	r->why = (struct detail){ .text = "" };
	r->ballot = NULL;
	r->log = NULL;
	rc = ballot_open(d, r->cfg.shards, &r->ballot, &r->why);
	if (rc != RC_OK)
		return rc;
	rc = log_open(world_env(r->w, r->node), d, r->ballot, &r->cfg,
		      r->floors, &r->log, &r->why);
	if (rc != RC_OK) {
		ballot_close(r->ballot);
		r->ballot = NULL;
		return rc;
	}
	rig_listen(r);
	return RC_OK;
}

static inline void rig_log_closed(void *arg)
{
	struct rig *r = arg;

	r->closed = true;
}

/* Memory only: the process is gone. */
static inline void rig_drop(struct rig *r)
{
	if (r->log != NULL)
		log_discard(r->log);
	if (r->ballot != NULL)
		ballot_close(r->ballot);
	r->log = NULL;
	r->ballot = NULL;
}

static inline void rig_close(struct rig *r)
{
	r->closed = false;
	log_close(r->log, rig_log_closed, r);
	EXPECT_TRUE(world_run_flag(r->w, &r->closed, 600000));
	r->log = NULL;
	ballot_close(r->ballot);
	r->ballot = NULL;
	world_kill(r->w, r->node);
}

static inline void rig_free(struct rig *r)
{
	rig_drop(r);
	world_free(r->w);
	free(r->ops);
	r->ops = NULL;
}

static inline uint64_t rig_note(struct rig *r, const struct rig_op *op)
{
	CHECK(r->ops_n < RIG_OPS_MAX);
	r->ops[r->ops_n++] = *op;
	return r->ops_n;
}

static inline uint64_t rig_append(struct rig *r, uint32_t shard, uint64_t index,
				  uint64_t term, uint32_t bytes)
{
	struct rig_op op = { RIG_ENTRY, shard, index, term, bytes };
	uint8_t *data = rig_alloc(bytes + 1);
	struct log_entry e = { .index = index,
			       .term = term,
			       .type = (uint16_t)(index % 5 + 1),
			       .data = data,
			       .bytes = bytes };
	uint64_t ticket;

	rig_byte(&op, data);
	ticket = log_append(r->log, shard, &e);
	free(data);
	r->shard[shard].last = index;
	r->shard[shard].term = term;
	EXPECT_UINT(ticket + r->base_ticket, rig_note(r, &op));
	return ticket + r->base_ticket;
}

/* The next entry of the shard. */
static inline uint64_t rig_next(struct rig *r, uint32_t shard, uint32_t bytes)
{
	return rig_append(r, shard, r->shard[shard].last + 1,
			  r->shard[shard].term, bytes);
}

static inline void rig_base(struct rig *r, uint32_t shard, uint64_t index)
{
	struct rig_op op = { RIG_BASE, shard, index, r->shard[shard].term, 0 };

	(void)log_base(r->log, shard, index, r->shard[shard].term);
	r->shard[shard].last = index;
	(void)rig_note(r, &op);
}

static inline struct ballot_slot rig_slot(uint32_t shard, uint64_t n)
{
	struct ballot_slot slot = { .term = n,
				    .vote = n % 3,
				    .state_generation = n * 10 + shard };

	memset(slot.state_hash, (int)n, sizeof(slot.state_hash));
	return slot;
}

static inline void rig_vote(struct rig *r, uint32_t shard, uint64_t n)
{
	struct rig_op op = { RIG_VOTE, shard, n, n, 0 };
	struct ballot_slot slot = rig_slot(shard, n);

	(void)log_vote(r->log, shard, &slot);
	(void)rig_note(r, &op);
}

/* Until all that was appended is durable, or the node ends. */
static inline void rig_settle(struct rig *r)
{
	uint64_t n;

	for (n = 0; r->ticket < r->ops_n && world_alive(r->w, r->node); n++)
		if (!world_step(r->w) || n > 20000)
			break;
}

/* ---- the model ---- */

struct rig_found {
	struct rig *r;
	uint32_t shard;
	struct rig_entry *e; /* e[i]: index floor + 1 + i. */
	uint64_t n;
	uint64_t floor;
	bool wrong_data;
};

static inline enum rc rig_found_one(void *arg, const struct log_entry *e)
{
	struct rig_found *f = arg;
	struct rig_op op = { RIG_ENTRY, f->shard, e->index, e->term, e->bytes };
	uint8_t *want = rig_alloc(e->bytes + 1);

	rig_byte(&op, want);
	if (memcmp(want, e->data, e->bytes) != 0 ||
	    e->type != (uint16_t)(e->index % 5 + 1))
		f->wrong_data = true;
	free(want);
	if (e->index != f->floor + 1 + f->n)
		f->wrong_data = true;
	f->e = realloc(f->e, (f->n + 1) * sizeof(*f->e));
	CHECK(f->e != NULL);
	f->e[f->n++] = (struct rig_entry){ e->term, e->bytes };
	return RC_OK;
}

/* Does the shard, as recovered, hold what the first `k` operations left? */
static inline bool rig_matches(const struct rig *r, const struct rig_found *f,
			       uint64_t k)
{
	uint64_t cap = f->floor + f->n + 2;
	struct rig_entry *e;
	uint64_t last = 0;
	bool same;
	uint64_t i;

	e = rig_alloc((cap + 1) * sizeof(*e));
	for (i = 0; i < k; i++) {
		const struct rig_op *op = &r->ops[i];

		if (op->shard != f->shard || !rig_is_record(op))
			continue;
		last = op->index;
		if (op->index <= cap)
			e[op->index] =
				(struct rig_entry){ op->term, op->bytes };
	}
	same = last <= f->floor ? f->n == 0 : last == f->floor + f->n;
	for (i = 0; same && i < f->n; i++)
		same = e[f->floor + 1 + i].term == f->e[i].term &&
		       e[f->floor + 1 + i].bytes == f->e[i].bytes;
	free(e);
	return same;
}

/* Votes behind the one that is there did not survive. */
static inline void rig_check_ballot(struct rig *r, uint32_t shard)
{
	struct ballot_slot got = ballot_get(r->ballot, shard);
	struct ballot_slot want = { .term = 0 };
	uint64_t found = 0;
	bool ok;
	uint64_t i;

	if (!ballot_good(r->ballot, shard)) {
		rig_wrong(r, "the ballot of shard %u is lost", shard);
		return;
	}
	ok = memcmp(&got, &want, sizeof(got)) == 0;
	for (i = 0; i < r->ops_n; i++) {
		if (r->ops[i].kind != RIG_VOTE || r->ops[i].shard != shard)
			continue;
		want = rig_slot(shard, r->ops[i].index);
		if (i + 1 <= r->shard[shard].durable)
			ok = false; /* Only this or a later one. */
		if (memcmp(&got, &want, sizeof(got)) != 0)
			continue;
		ok = true;
		found = i + 1;
	}
	if (!ok)
		rig_wrong(r, "the ballot of shard %u is in term %llu", shard,
			  (unsigned long long)got.term);
	for (i = found; i < r->ops_n; i++)
		if (r->ops[i].kind == RIG_VOTE && r->ops[i].shard == shard)
			r->ops[i].kind = RIG_VOID;
}

/* The model goes on with the first `k` operations, and all votes. */
static inline void rig_go_on(struct rig *r, uint64_t k)
{
	uint64_t i;
	uint32_t s;

	for (i = k; i < r->ops_n; i++)
		if (r->ops[i].kind == RIG_VOTE)
			r->ops[k++] = r->ops[i];
	r->ops_n = k;
	r->ticket = k;
	r->base_ticket = k;
	for (s = 0; s < r->cfg.shards; s++) {
		r->shard[s].last = log_range(r->log, s).last;
		r->shard[s].durable = k;
	}
}

/* What recovery has found of a shard; free(f->e). */
static inline void rig_find(struct rig *r, uint32_t shard, struct rig_found *f)
{
	*f = (struct rig_found){ .r = r,
				 .shard = shard,
				 .floor = log_range(r->log, shard).first - 1 };
	if (log_recovered(r->log, shard, rig_found_one, f, NULL, NULL) != RC_OK)
		f->wrong_data = true;
}

/*
 * After rig_open: everything acknowledged is there, and nothing that was not
 * appended. The model goes on from what was found.
 */
static inline void rig_check(struct rig *r)
{
	struct rig_found f[SHARDS_MAX];
	struct detail why = { .text = "" };
	uint64_t acked = 0;
	uint32_t s;
	uint64_t i;
	uint64_t k;

	memset(f, 0, sizeof(f));
	/* A vote's ticket says nothing about records. */
	for (i = 0; i < r->ops_n; i++)
		if (rig_is_record(&r->ops[i]) &&
		    i + 1 <= r->shard[r->ops[i].shard].durable)
			acked = i + 1;
	for (s = 0; s < r->cfg.shards; s++) {
		rig_check_ballot(r, s);
		if (log_status(r->log, s, &why) != LOG_WHOLE) {
			rig_wrong(r, "shard %u is damaged: %s", s, why.text);
			goto out;
		}
		rig_find(r, s, &f[s]);
		if (f[s].wrong_data) {
			rig_wrong(r, "shard %u: what was found is wrong", s);
			goto out;
		}
	}
	for (k = r->ops_n + 1; k-- > acked;) {
		for (s = 0; s < r->cfg.shards; s++)
			if (!rig_matches(r, &f[s], k))
				break;
		if (s == r->cfg.shards)
			break;
	}
	if (k + 1 == acked || k == UINT64_MAX) {
		rig_wrong(r, "something acknowledged is lost, or something "
			     "else is there");
		goto out;
	}
	rig_go_on(r, k);
out:
	for (s = 0; s < r->cfg.shards; s++)
		free(f[s].e);
}

/* A mixed load; returns when it is through or the node has ended. */
static inline void rig_load(struct rig *r, unsigned steps)
{
	static const uint32_t sizes[] = { 0,   1,   30,  100,  400, 503,
					  504, 505, 900, 4096, 7000 };
	unsigned i;

	for (i = 0; i < steps && world_alive(r->w, 0); i++) {
		uint32_t s = (uint32_t)world_random(r->w, r->cfg.shards);
		uint32_t n = sizes[world_random(r->w, ARRAY_LEN(sizes))];
		struct rig_shard *sh = &r->shard[s];
		uint64_t low;

		/* One that moves no floor must stay small. */
		if (sh->stubborn && sh->last > 6 && !r->shard[0].stubborn) {
			s = 0;
			sh = &r->shard[0];
		}
		if (sh->stubborn && n > 100)
			n = 100;
		low = log_range(r->log, s).first;

		switch (world_random(r->w, 16)) {
		case 0:
			if (sh->last >= low && sh->last > sh->floor)
				(void)rig_append(
					r, s,
					sh->last - world_random(r->w,
								sh->last - low +
									1),
					sh->term + 1, n);
			break;
		case 1:
			rig_vote(r, s, r->ops_n + 1);
			break;
		case 2:
			if (!sh->stubborn)
				rig_floor(r, s, rig_durable_index(r, s));
			break;
		case 3:
			rig_settle(r);
			break;
		case 4:
			if (!sh->stubborn && world_random(r->w, 4) == 0) {
				rig_base(r, s, sh->last + 5);
				rig_settle(r);
				rig_floor(r, s, sh->last);
			}
			break;
		case 5:
		case 6:
		case 7:
			(void)world_step(r->w);
			break;
		default:
			(void)rig_next(r, s, n);
			break;
		}
	}
	rig_settle(r);
}

#endif
