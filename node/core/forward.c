/*
 * Records of CHANNEL_CALL, little endian. Those of the entry:
 *
 *	CALL                                  CANCEL
 *	 0  1  1                               0  1  3
 *	 1  1  depth, 0: a client's            1  7  0
 *	 2  2  bytes of the principal, p       8  8  number
 *	 4  1  bytes of the tenant, t
 *	 5  1  bytes of the environment, e
 *	 6  2  bytes of the chain, c
 *	 8  4  milliseconds left
 *	12  4  0
 *	16  8  number: the entry's, of this connection
 *	24  8  request id, as errors and log lines name the call
 *	32  c  chain; p principal; t tenant; e environment; the rest: params
 *
 * and the owner's, exactly one for each CALL, cancelled or not:
 *
 *	ANSWER
 *	 0  1  2
 *	 1  1  code, a number of rc.tbl
 *	 2  1  outcome: 0 done, 1 refused, 2 unknown
 *	 3  1  1: it changed nothing
 *	 4  1  bytes of the field, f
 *	 5  1  bytes of the sentence, s
 *	 6  2  0
 *	 8  4  shard, or ffffffff
 *	12  4  0
 *	16  8  number
 *	24  8  retry_after_ms, signed; below 0: none
 *	32  8  node id of the owner, as far as known, or 0
 *	40  f  field; s sentence; the rest: the result of a call that was done
 *
 * A chain, outermost caller first:
 *
 *	 0  1  callers, n = depth
 *	 1  8  root stamp
 *	 9  16 root id
 *	25  n times: 16 object id, 1 same tenant as the next, 1 bytes of the
 *	    address, a, and a bytes
 */
#include "node/core/forward.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "node/base/principal.h"
#include "node/core/internal.h"
#include "raft-glue/le.h"

enum forward_kind {
	KIND_CALL = 1,
	KIND_ANSWER = 2,
	KIND_CANCEL = 3,
};

#define CALL_BYTES    32u
#define ANSWER_BYTES  40u
#define CANCEL_BYTES  16u
#define CHAIN_BYTES   25u
#define CHAIN_AT      (OID_BYTES + 2u)
#define ADDRESS_SHOWN sizeof(((struct chain *)NULL)->at[0].address)

#define CHAIN_BYTES_MAX \
	(CHAIN_BYTES + CALL_DEPTH_MAX * (CHAIN_AT + ADDRESS_SHOWN))
#define HEAD_BYTES_MAX                                        \
	(CALL_BYTES + CHAIN_BYTES_MAX + PRINCIPAL_BYTES_MAX + \
	 2u * TENANT_BYTES_MAX)
#define ANSWER_HEAD_MAX                                          \
	(ANSWER_BYTES + sizeof(((struct detail *)NULL)->field) + \
	 DETAIL_BYTES_MAX)

/* The owner answers a little before the entry gives up: what it says is more
 * than "unknown". */
#define MARGIN_MS 20u

/* A large answer of what changed nothing leaves this much of the queue to those
 * that tell what has happened. */
#define LARGE_BYTES   (4u << 10)
#define RESERVE_BYTES (1u << 20)

#define SLOT_MASK (FORWARDS_MAX - 1u)
#define SLOT_NONE UINT32_MAX
_Static_assert((FORWARDS_MAX & SLOT_MASK) == 0, "a number's low bits: a slot");

/* A call on its way to a peer. Busy until its answer has come or the link is
 * lost, also when nobody waits any more: so the owner never has two calls of
 * one slot, and never more than there are slots. */
struct slot {
	struct forward *f; /* NULL: nobody waits. */
	uint64_t number;   /* 0: free. */
	uint64_t turn;     /* How often it was taken. */
	uint32_t next;     /* Among the free ones. */
};

struct peer {
	uint64_t node_id;
	char name[sizeof(((struct member *)NULL)->name)];
	uint64_t epoch; /* Of the link; 0: there is none. */
	struct slot *slots;
	uint32_t fresh; /* Slots from here on were never taken. */
	uint32_t free;
	struct served **served; /* By slot of the number. */
	uint32_t served_fresh;
};

struct forwards {
	struct core *core;
	struct transport *t;
	struct transport_sink sink;
	struct forward_stats stats;
	size_t peers_n;
	struct peer peers[MEMBERS_MAX];
};

static struct peer *peer_of(struct forwards *fs, uint64_t node_id)
{
	size_t i;

	for (i = 0; i < fs->peers_n; i++)
		if (fs->peers[i].node_id == node_id)
			return &fs->peers[i];
	return NULL;
}

static void put_bytes(uint8_t **at, const void *p, size_t n)
{
	if (n > 0)
		memcpy(*at, p, n);
	*at += n;
}

/* ------------------------------------------------------------------- chains */

static size_t chain_write(const struct chain *c, uint8_t *p)
{
	uint8_t *at = p + CHAIN_BYTES;
	uint32_t i;

	p[0] = (uint8_t)c->n;
	le_put64(p + 1, c->root_stamp);
	memcpy(p + 9, c->root_id, sizeof(c->root_id));
	for (i = 0; i < c->n; i++) {
		size_t n = strlen(c->at[i].address);

		memcpy(at, c->at[i].oid.b, OID_BYTES);
		at[OID_BYTES] = c->at[i].same_tenant_as_next;
		at[OID_BYTES + 1] = (uint8_t)n;
		at += CHAIN_AT;
		put_bytes(&at, c->at[i].address, n);
	}
	return (size_t)(at - p);
}

static bool chain_read(struct chain *c, const uint8_t *p, size_t n)
{
	const uint8_t *end = p + n;
	uint32_t i;

	if (n < CHAIN_BYTES || p[0] == 0 || p[0] > CALL_DEPTH_MAX)
		return false;
	memset(c, 0, sizeof(*c));
	c->n = p[0];
	c->root_stamp = le_get64(p + 1);
	memcpy(c->root_id, p + 9, sizeof(c->root_id));
	p += CHAIN_BYTES;
	for (i = 0; i < c->n; i++) {
		size_t a;

		if ((size_t)(end - p) < CHAIN_AT || p[OID_BYTES] > 1)
			return false;
		a = p[OID_BYTES + 1];
		if (a >= ADDRESS_SHOWN || (size_t)(end - p) - CHAIN_AT < a)
			return false;
		memcpy(c->at[i].oid.b, p, OID_BYTES);
		c->at[i].same_tenant_as_next = p[OID_BYTES] == 1;
		memcpy(c->at[i].address, p + CHAIN_AT, a);
		p += CHAIN_AT + a;
	}
	return p == end;
}

/* ------------------------------------------------------ the entry: the slots
 */

static bool slot_take(struct peer *p, struct forward *f)
{
	uint32_t i = p->free;

	if (i != SLOT_NONE)
		p->free = p->slots[i].next;
	else if (p->fresh < FORWARDS_MAX)
		i = p->fresh++;
	else
		return false;
	p->slots[i].f = f;
	p->slots[i].number = ++p->slots[i].turn * FORWARDS_MAX + i;
	f->number = p->slots[i].number;
	return true;
}

static void slot_put(struct peer *p, struct slot *s)
{
	s->f = NULL;
	s->number = 0;
	s->next = p->free;
	p->free = (uint32_t)(s - p->slots);
}

/* The slot of a call that is on its way; NULL when there is none. */
static struct slot *slot_of(struct peer *p, uint64_t number)
{
	uint32_t i = (uint32_t)(number & SLOT_MASK);

	if (number == 0 || i >= p->fresh || p->slots[i].number != number)
		return NULL;
	return &p->slots[i];
}

static size_t call_head(const struct forward *f,
			const struct forward_request *r, uint8_t *p)
{
	uint8_t *at = p + CALL_BYTES;
	size_t chain_n = 0;

	PRE(r->principal.n <= PRINCIPAL_BYTES_MAX);
	PRE(r->tenant.n <= TENANT_BYTES_MAX);
	PRE(r->env.n <= TENANT_BYTES_MAX);
	if (r->chain != NULL)
		chain_n = chain_write(r->chain, at);
	at += chain_n;
	memset(p, 0, CALL_BYTES);
	p[0] = KIND_CALL;
	p[1] = (uint8_t)r->depth;
	le_put16(p + 2, (uint16_t)r->principal.n);
	p[4] = (uint8_t)r->tenant.n;
	p[5] = (uint8_t)r->env.n;
	le_put16(p + 6, (uint16_t)chain_n);
	le_put32(p + 8, r->deadline_ms);
	le_put64(p + 16, f->number);
	le_put64(p + 24, r->request_id);
	put_bytes(&at, r->principal.p, r->principal.n);
	put_bytes(&at, r->tenant.p, r->tenant.n);
	put_bytes(&at, r->env.p, r->env.n);
	return (size_t)(at - p);
}

static uint32_t less_margin(uint32_t ms)
{
	uint32_t margin = ms / 8 < MARGIN_MS ? ms / 8 : MARGIN_MS;

	return ms - margin;
}

enum rc forward_send(struct forwards *fs, struct forward *f, uint64_t node_id,
		     const struct forward_request *request)
{
	struct forward_request r = *request;
	struct peer *p = peer_of(fs, node_id);
	uint8_t head[HEAD_BYTES_MAX];
	enum rc rc;

	if (p == NULL || p->epoch == 0)
		return RC_NO_QUORUM;
	if (!slot_take(p, f))
		return RC_OVERLOADED;
	f->node_id = node_id;
	f->epoch = p->epoch;
	r.deadline_ms = less_margin(r.deadline_ms);
	rc = transport_send(fs->t, CHANNEL_CALL, 0, node_id, head,
			    call_head(f, &r, head), r.params.p, r.params.n);
	if (rc == RC_OK) {
		fs->stats.sent++;
		return RC_OK;
	}
	slot_put(p, slot_of(p, f->number));
	return rc == RC_NOT_FOUND ? RC_NO_QUORUM : RC_OVERLOADED;
}

bool forward_reaches(struct forwards *fs, uint64_t node_id)
{
	struct peer *p = peer_of(fs, node_id);

	return p != NULL && p->epoch != 0;
}

static void cancel_send(struct forwards *fs, const struct forward *f)
{
	uint8_t rec[CANCEL_BYTES] = { KIND_CANCEL };

	le_put64(rec + 8, f->number);
	/* Without room the call ends by its deadline. */
	(void)transport_send(fs->t, CHANNEL_CALL, 0, f->node_id, rec,
			     sizeof(rec), NULL, 0);
}

void forward_recall(struct forwards *fs, struct forward *f)
{
	struct peer *p = peer_of(fs, f->node_id);

	CHECK(p != NULL);
	if (slot_of(p, f->number) != NULL)
		cancel_send(fs, f);
}

void forward_cancel(struct forwards *fs, struct forward *f)
{
	struct peer *p = peer_of(fs, f->node_id);
	struct slot *s;

	CHECK(p != NULL);
	s = slot_of(p, f->number);
	if (s == NULL)
		return;
	CHECK(s->f == f);
	s->f = NULL;
	cancel_send(fs, f);
}

/* The link is lost: what was on its way over it may have happened. */
static void slots_lost(struct forwards *fs, struct peer *p, uint64_t epoch)
{
	struct answer a = { .rc = RC_UNKNOWN_OUTCOME,
			    .outcome = OUTCOME_UNKNOWN,
			    .retry_after_ms = -1,
			    .shard = UINT32_MAX };
	struct detail why = { { 0 }, { 0 } };
	uint32_t n = p->fresh;
	uint32_t i;

	a.rc = detail_set(&why, RC_UNKNOWN_OUTCOME, NULL,
			  "the link to the owner was lost");
	a.why = &why;
	/* It may not have: then the entry would be free to ask another. */
	if (MUTANT(forward_twice))
		a = (struct answer){ .rc = RC_NOT_OWNER,
				     .outcome = OUTCOME_REFUSED,
				     .retry_after_ms = -1,
				     .shard = UINT32_MAX };
	for (i = 0; i < n; i++) {
		struct slot *s = &p->slots[i];
		struct forward *f = s->f;

		/* What an answer makes its caller send goes over the new one.
		 */
		if (s->number == 0 || (f != NULL && f->epoch == epoch))
			continue;
		slot_put(p, s);
		if (f == NULL)
			continue;
		fs->stats.lost++;
		f->answered(f, &a);
	}
}

static void answer_fill(struct answer *a, struct detail *why, const uint8_t *p,
			size_t n)
{
	size_t field_n = p[4];
	size_t text_n = p[5];

	memcpy(why->field, p + ANSWER_BYTES, field_n);
	memcpy(why->text, p + ANSWER_BYTES + field_n, text_n);
	*a = (struct answer){ .rc = (enum rc)p[1],
			      .outcome = (enum outcome)p[2],
			      .why = why,
			      .repeatable = p[3] == 1,
			      .retry_after_ms = (int64_t)le_get64(p + 24),
			      .owner = le_get64(p + 32),
			      .shard = le_get32(p + 8) };
	/* What a later version answers with is known by its outcome. */
	if (a->rc != RC_INTERNAL && a->rc != RC_OK &&
	    strcmp(rc_name(a->rc), rc_name(RC_INTERNAL)) == 0)
		a->rc = a->outcome == OUTCOME_UNKNOWN ? RC_UNKNOWN_OUTCOME
						      : RC_UNSUPPORTED;
	if (a->rc != RC_OK)
		return;
	n -= ANSWER_BYTES + field_n + text_n;
	a->result =
		(struct pack_bytes){ p + ANSWER_BYTES + field_n + text_n, n };
}

static bool one_value(const uint8_t *p, size_t n, size_t max)
{
	const struct pack_bounds bounds = { PACK_DEPTH_MAX, PACK_ELEMENTS_MAX,
					    max };
	struct pack_scan scan = { 0 };
	size_t size;

	return n > 0 && pack_check(&scan, p, n, &bounds, &size) == RC_OK &&
	       size == n;
}

static bool answer_good(const uint8_t *p, size_t n)
{
	size_t head;
	bool done;

	if (n < ANSWER_BYTES || p[1] >= 64 || p[2] > OUTCOME_UNKNOWN ||
	    p[3] > 1)
		return false;
	head = (size_t)ANSWER_BYTES + p[4] + p[5];
	done = p[2] == OUTCOME_DONE;
	if (p[4] >= sizeof(((struct detail *)NULL)->field) ||
	    p[5] >= DETAIL_BYTES_MAX || n < head || done != (p[1] == RC_OK))
		return false;
	return done ? one_value(p + head, n - head, FRAME_BYTES_MAX + 4096)
		    : n == head;
}

static bool received_answer(struct peer *p, const uint8_t *rec, size_t n)
{
	struct detail why = { { 0 }, { 0 } };
	struct forward *f;
	struct answer a;
	struct slot *s;

	if (!answer_good(rec, n))
		return false;
	s = slot_of(p, le_get64(rec + 16));
	if (s == NULL)
		return false;
	f = s->f;
	slot_put(p, s);
	if (f == NULL)
		return true;
	answer_fill(&a, &why, rec, n);
	f->answered(f, &a);
	return true;
}

/* ---------------------------------------------------- the owner: what it runs
 */

static bool answer_fits(struct forwards *fs, uint64_t node_id, size_t n)
{
	return n < LARGE_BYTES ||
	       transport_room(fs->t, CHANNEL_CALL, node_id) > n + RESERVE_BYTES;
}

/* The fixed part, field and sentence; returns their length. */
static size_t answer_head(const struct answer *a, uint64_t number,
			  uint8_t head[ANSWER_HEAD_MAX])
{
	uint8_t *at = head + ANSWER_BYTES;

	memset(head, 0, ANSWER_BYTES);
	head[0] = KIND_ANSWER;
	head[1] = (uint8_t)a->rc;
	head[2] = (uint8_t)(a->rc == RC_OK ? OUTCOME_DONE : a->outcome);
	head[3] = a->repeatable;
	le_put32(head + 8, a->shard);
	le_put64(head + 16, number);
	le_put64(head + 24, (uint64_t)a->retry_after_ms);
	le_put64(head + 32, a->owner);
	if (a->why == NULL || a->rc == RC_OK)
		return ANSWER_BYTES;
	head[4] = (uint8_t)strnlen(a->why->field, sizeof(a->why->field) - 1);
	head[5] = (uint8_t)strnlen(a->why->text, sizeof(a->why->text) - 1);
	put_bytes(&at, a->why->field, head[4]);
	put_bytes(&at, a->why->text, head[5]);
	return (size_t)(at - head);
}

static void answer_send(struct forwards *fs, uint64_t node_id, uint64_t number,
			const struct answer *a)
{
	static const struct detail unread = {
		.text = "answers wait to be sent to the node that was called"
	};
	const struct answer refusal = { .rc = RC_OVERLOADED,
					.outcome = OUTCOME_REFUSED,
					.why = &unread,
					.repeatable = true,
					.retry_after_ms = RETRY_AFTER_MS,
					.shard = a->shard };
	uint8_t head[ANSWER_HEAD_MAX];

	if (a->rc == RC_OK && a->repeatable &&
	    !answer_fits(fs, node_id, a->result.n))
		a = &refusal;
	/* An answer that has no room would never come: its caller would wait
	 * for nothing, and its slot with it. A peer that does not read has lost
	 * its link. */
	if (transport_send(fs->t, CHANNEL_CALL, 0, node_id, head,
			   answer_head(a, number, head), a->result.p,
			   a->rc == RC_OK ? a->result.n : 0) == RC_OVERLOADED)
		transport_drop(fs->t, CHANNEL_CALL, node_id);
}

static void served_answered(struct served *sv, const struct answer *a)
{
	struct forwards *fs = sv->forwards;
	struct peer *p = peer_of(fs, sv->node_id);

	CHECK(p != NULL);
	if (sv->epoch != p->epoch)
		return; /* Whoever asked over that link has heard "unknown". */
	CHECK(p->served[sv->number & SLOT_MASK] == sv);
	p->served[sv->number & SLOT_MASK] = NULL;
	answer_send(fs, sv->node_id, sv->number, a);
}

static bool starts_with(struct pack_bytes b, const char *s)
{
	size_t n = strlen(s);

	return b.n >= n && memcmp(b.p, s, n) == 0;
}

/* A node speaks for its own users and for itself; who has a certificate, and
 * objects, may come through any. */
static bool principal_proved(const struct peer *p, struct pack_bytes principal)
{
	char self[PRINCIPAL_NODE_BYTES];
	size_t n = strlen(p->name);

	if (principal_is_node(principal)) {
		principal_of_node(p->node_id, self);
		return pack_bytes_eq(principal, self, strlen(self));
	}
	if (!starts_with(principal, "unix:"))
		return true;
	principal.p += 5;
	principal.n -= 5;
	return starts_with(principal, p->name) && principal.n > n &&
	       principal.p[n] == ':';
}

static void refuse(struct forwards *fs, struct peer *p, uint64_t number,
		   enum rc rc, const char *text)
{
	struct detail why = { { 0 }, { 0 } };
	struct answer a = { .outcome = OUTCOME_REFUSED,
			    .why = &why,
			    .retry_after_ms = -1,
			    .shard = UINT32_MAX };

	a.rc = detail_set(&why, rc, NULL, "%s", text);
	if (rc == RC_OVERLOADED)
		a.retry_after_ms = RETRY_AFTER_MS;
	answer_send(fs, p->node_id, number, &a);
}

static void serve(struct forwards *fs, struct peer *p,
		  const struct call_request *r, uint64_t number)
{
	struct served *sv;

	fs->stats.served++;
	if (!principal_proved(p, r->principal)) {
		refuse(fs, p, number, RC_UNAUTHENTICATED,
		       "the node that was called cannot speak for this caller");
		return;
	}
	sv = call_serve(fs->core, r, served_answered);
	if (sv == NULL) {
		refuse(fs, p, number, RC_OVERLOADED,
		       "the owner takes no more calls at the moment");
		return;
	}
	sv->forwards = fs;
	sv->node_id = p->node_id;
	sv->epoch = p->epoch;
	sv->number = number;
	p->served[number & SLOT_MASK] = sv;
	if ((number & SLOT_MASK) >= p->served_fresh)
		p->served_fresh = (uint32_t)(number & SLOT_MASK) + 1;
}

static bool received_call(struct forwards *fs, struct peer *p,
			  const uint8_t *rec, size_t n)
{
	struct call_request r = { .depth = 0 };
	struct chain chain;
	uint64_t number;
	size_t chain_n;
	size_t names_n;

	if (n < CALL_BYTES)
		return false;
	r.depth = rec[1];
	r.principal.n = le_get16(rec + 2);
	r.tenant.n = rec[4];
	r.env.n = rec[5];
	chain_n = le_get16(rec + 6);
	r.deadline_ms = le_get32(rec + 8);
	number = le_get64(rec + 16);
	r.request_id = le_get64(rec + 24);
	names_n = r.principal.n + r.tenant.n + r.env.n;
	if (r.principal.n == 0 || r.principal.n > PRINCIPAL_BYTES_MAX ||
	    r.tenant.n > TENANT_BYTES_MAX || r.env.n > TENANT_BYTES_MAX ||
	    r.depth > CALL_DEPTH_MAX || r.deadline_ms > DEADLINE_MAX_MS ||
	    number == 0 || n < CALL_BYTES + chain_n + names_n)
		return false;
	if (r.depth > 0) {
		if (!chain_read(&chain, rec + CALL_BYTES, chain_n) ||
		    chain.n != r.depth)
			return false;
		r.chain = &chain;
	} else if (chain_n > 0) {
		return false;
	}
	rec += CALL_BYTES + chain_n;
	n -= CALL_BYTES + chain_n;
	r.principal.p = rec;
	r.tenant.p = r.principal.p + r.principal.n;
	r.env.p = r.tenant.p + r.tenant.n;
	r.params.p = r.env.p + r.env.n;
	r.params.n = n - names_n;
	/* Its last call of that slot has not been answered. */
	if (p->served[number & SLOT_MASK] != NULL ||
	    !one_value(r.params.p, r.params.n, FRAME_BYTES_MAX))
		return false;
	serve(fs, p, &r, number);
	return true;
}

static bool received_cancel(struct peer *p, const uint8_t *rec, size_t n)
{
	struct served *sv;
	uint64_t number;

	if (n != CANCEL_BYTES)
		return false;
	number = le_get64(rec + 8);
	sv = p->served[number & SLOT_MASK];
	/* Else its answer is on its way. */
	if (sv != NULL && sv->number == number)
		call_cancel(served_call(sv));
	return true;
}

/* Nobody waits for what came over the link that is lost. */
static void served_lost(struct peer *p)
{
	uint32_t n = p->served_fresh;
	uint32_t i;

	p->served_fresh = 0;
	for (i = 0; i < n; i++) {
		struct served *sv = p->served[i];

		p->served[i] = NULL;
		if (sv != NULL)
			call_cancel(served_call(sv));
	}
}

/* ------------------------------------------------------------------ the link
 */

static void peer_link(struct forwards *fs, struct peer *p, uint64_t epoch)
{
	if (p->epoch == epoch)
		return;
	p->epoch = epoch;
	served_lost(p);
	slots_lost(fs, p, epoch);
}

static void forwards_changed(struct transport_sink *k, uint64_t node_id,
			     uint64_t epoch)
{
	struct forwards *fs = CONTAINER_OF(k, struct forwards, sink);
	struct peer *p = peer_of(fs, node_id);

	if (p != NULL)
		peer_link(fs, p, epoch);
}

static void forwards_received(struct transport_sink *k, uint64_t node_id,
			      uint64_t epoch, const uint8_t *rec, size_t n)
{
	struct forwards *fs = CONTAINER_OF(k, struct forwards, sink);
	struct peer *p = peer_of(fs, node_id);
	bool good = false;

	if (p == NULL || p->epoch != epoch || epoch == 0)
		return;
	switch (n > 0 ? rec[0] : 0) {
	case KIND_CALL:
		good = received_call(fs, p, rec, n);
		break;
	case KIND_ANSWER:
		good = received_answer(p, rec, n);
		break;
	case KIND_CANCEL:
		good = received_cancel(p, rec, n);
		break;
	default:
		break;
	}
	if (good)
		return;
	fs->stats.broken++;
	transport_drop(fs->t, CHANNEL_CALL, node_id);
}

/* ---------------------------------------------------------------------- life
 */

static enum rc peer_init(struct peer *p, const struct member *m, uint64_t epoch)
{
	p->node_id = m->id;
	memcpy(p->name, m->name, sizeof(p->name) - 1);
	p->epoch = epoch;
	p->free = SLOT_NONE;
	/* Large and zero: touched only as far as they are used. */
	p->slots = calloc(FORWARDS_MAX, sizeof(*p->slots));
	p->served = calloc(FORWARDS_MAX, sizeof(struct served *));
	return p->slots != NULL && p->served != NULL ? RC_OK : RC_NOMEM;
}

enum rc forwards_new(struct core *core, struct transport *t,
		     struct forwards **out)
{
	struct members *m = transport_members(t);
	struct forwards *fs = calloc(1, sizeof(*fs));
	enum rc rc = RC_OK;
	size_t i;

	if (fs == NULL)
		return RC_NOMEM;
	fs->core = core;
	fs->t = t;
	fs->sink.received = forwards_received;
	fs->sink.changed = forwards_changed;
	for (i = 0; i < members_count(m) && rc == RC_OK; i++) {
		const struct member *one = members_at(m, i);

		if (one->id == members_self(m))
			continue;
		rc = peer_init(&fs->peers[fs->peers_n++], one,
			       transport_epoch(t, CHANNEL_CALL, one->id));
	}
	transport_listen(t, CHANNEL_CALL, 0, &fs->sink);
	if (rc != RC_OK) {
		forwards_free(fs);
		return rc;
	}
	*out = fs;
	return RC_OK;
}

void forwards_free(struct forwards *fs)
{
	size_t i;

	transport_listen(fs->t, CHANNEL_CALL, 0, NULL);
	for (i = 0; i < fs->peers_n; i++) {
		free(fs->peers[i].slots);
		free(fs->peers[i].served);
	}
	free(fs);
}

void forwards_stats(const struct forwards *fs, struct forward_stats *out)
{
	*out = fs->stats;
}
