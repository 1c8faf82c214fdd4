/*
 * Forwarded calls between nodes that are joined by a queue; what a call does at
 * its owner is this file's own: it stays open until the test answers.
 */
#include "node/core/forward.h"

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "node/core/internal.h"
#include "tests/lib/fake_transport.h"
#include "tests/lib/runner.h"

#define NODES 3u

/* ---- the owner's calls ---- */

struct call {
	struct served sv;
	LIST_ENTRY(call) link;
	uint8_t bytes[4096];
	struct call_request r;
	struct chain chain;
	bool cancelled;
};

struct core {
	unsigned node;
};

static struct core cores[NODES];
static struct forwards *fs[NODES];
static LIST_HEAD(, call) open_calls;
static unsigned served_n;
static bool full;
static bool end_on_cancel;

struct served *call_serve(struct core *core, const struct call_request *r,
			  void (*answered)(struct served *sv,
					   const struct answer *a))
{
	size_t names = r->principal.n + r->tenant.n + r->env.n;
	struct call *c;

	(void)core;
	if (full)
		return NULL;
	c = calloc(1, sizeof(*c));
	CHECK(c != NULL);
	CHECK(names + r->params.n <= sizeof(c->bytes));
	EXPECT_TRUE(r->params.p == r->principal.p + names);
	memcpy(c->bytes, r->principal.p, names + r->params.n);
	c->r = *r;
	c->r.principal.p = c->bytes;
	c->r.tenant.p = c->bytes + r->principal.n;
	c->r.env.p = c->r.tenant.p + r->tenant.n;
	c->r.params.p = c->r.env.p + r->env.n;
	if (r->chain != NULL) {
		c->chain = *r->chain;
		c->r.chain = &c->chain;
	}
	c->sv.answered = answered;
	LIST_INSERT_HEAD(&open_calls, c, link);
	served_n++;
	return &c->sv;
}

struct call *served_call(struct served *sv)
{
	return CONTAINER_OF(sv, struct call, sv);
}

static void end(struct call *c, const struct answer *a)
{
	LIST_REMOVE(c, link);
	c->sv.answered(&c->sv, a);
	free(c);
}

void call_cancel(struct call *c)
{
	static const struct answer a = { .rc = RC_CANCELLED,
					 .outcome = OUTCOME_REFUSED,
					 .retry_after_ms = -1 };

	c->cancelled = true;
	if (end_on_cancel)
		end(c, &a);
}

/* ---- the entry's ---- */

struct asked {
	struct forward f;
	unsigned answers;
	struct answer a;
	struct detail why;
	uint8_t result[256];
	void (*then)(struct asked *q);
};

static void answered(struct forward *f, const struct answer *a)
{
	struct asked *q = CONTAINER_OF(f, struct asked, f);

	q->answers++;
	q->a = *a;
	if (a->why != NULL)
		q->why = *a->why;
	EXPECT_TRUE(a->result.n <= sizeof(q->result) || a->result.n > 4096);
	if (a->result.n > 0 && a->result.n <= sizeof(q->result))
		memcpy(q->result, a->result.p, a->result.n);
	if (q->then != NULL)
		q->then(q);
}

static struct pack_bytes bytes(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static enum rc ask_as(struct asked *q, unsigned from, unsigned to,
		      const char *principal)
{
	const struct forward_request r = {
		.principal = bytes(principal),
		.tenant = bytes("default"),
		.env = bytes("dev"),
		.params = bytes("\x93\x01\x02\x03"),
		.deadline_ms = 1000,
		.request_id = 77,
	};

	q->f.answered = answered;
	return forward_send(fs[from - 1], &q->f, to, &r);
}

static enum rc ask(struct asked *q, unsigned from, unsigned to)
{
	return ask_as(q, from, to,
		      "spiffe://c/tenant/default/env/dev/client/x");
}

static void begin(void)
{
	unsigned i;

	LIST_INIT(&open_calls);
	served_n = 0;
	full = false;
	end_on_cancel = false;
	fake_begin(NODES);
	for (i = 0; i < NODES; i++) {
		cores[i].node = i + 1;
		EXPECT_RC(forwards_new(&cores[i], &fake.at[i], &fs[i]), RC_OK);
	}
	fake_join_all();
}

static void finish(void)
{
	struct call *c;
	unsigned i;

	while ((c = LIST_FIRST(&open_calls)) != NULL) {
		LIST_REMOVE(c, link);
		free(c);
	}
	for (i = 0; i < NODES; i++)
		forwards_free(fs[i]);
	fake_end();
}

static const struct answer done = { .rc = RC_OK,
				    .outcome = OUTCOME_DONE,
				    .result = { (const uint8_t *)"\xc3", 1 },
				    .retry_after_ms = -1,
				    .shard = 5 };

/* ---- there and back ---- */

TEST(a_call_and_its_answer)
{
	struct asked q = { .answers = 0 };
	struct forward_stats st;
	struct call *c;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	EXPECT_UINT(q.answers, 0);
	fake_pump();
	EXPECT_UINT(served_n, 1);
	c = LIST_FIRST(&open_calls);
	EXPECT_TRUE(pack_bytes_eq(c->r.principal,
				  "spiffe://c/tenant/default/env/dev/client/x",
				  42));
	EXPECT_TRUE(pack_bytes_eq(c->r.tenant, "default", 7));
	EXPECT_TRUE(pack_bytes_eq(c->r.env, "dev", 3));
	EXPECT_TRUE(pack_bytes_eq(c->r.params, "\x93\x01\x02\x03", 4));
	EXPECT_UINT(c->r.request_id, 77);
	EXPECT_UINT(c->r.depth, 0);
	EXPECT_NULL(c->r.chain);
	/* The owner gives up first. */
	EXPECT_UINT(c->r.deadline_ms, 980);
	end(c, &done);
	EXPECT_UINT(q.answers, 0);
	fake_pump();
	EXPECT_UINT(q.answers, 1);
	EXPECT_RC(q.a.rc, RC_OK);
	EXPECT_INT(q.a.outcome, OUTCOME_DONE);
	EXPECT_UINT(q.a.result.n, 1);
	EXPECT_UINT(q.result[0], 0xc3);
	EXPECT_UINT(q.a.shard, 5);
	EXPECT_INT(q.a.retry_after_ms, -1);
	forwards_stats(fs[0], &st);
	EXPECT_UINT(st.sent, 1);
	forwards_stats(fs[1], &st);
	EXPECT_UINT(st.served, 1);
	finish();
}

TEST(an_error_arrives_as_it_was)
{
	struct detail why = { "ops[3].key", "the key has revision 7" };
	const struct answer a = { .rc = RC_CONFLICT,
				  .outcome = OUTCOME_REFUSED,
				  .why = &why,
				  .repeatable = true,
				  .retry_after_ms = 50,
				  .owner = 3,
				  .shard = 2,
				  /* Of an error it does not count. */
				  .result = { (const uint8_t *)"\xc3", 1 } };
	struct asked q = { .answers = 0 };

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	end(LIST_FIRST(&open_calls), &a);
	fake_pump();
	EXPECT_UINT(q.answers, 1);
	EXPECT_RC(q.a.rc, RC_CONFLICT);
	EXPECT_INT(q.a.outcome, OUTCOME_REFUSED);
	EXPECT_STR(q.why.field, "ops[3].key");
	EXPECT_STR(q.why.text, "the key has revision 7");
	EXPECT_TRUE(q.a.repeatable);
	EXPECT_INT(q.a.retry_after_ms, 50);
	EXPECT_UINT(q.a.owner, 3);
	EXPECT_UINT(q.a.shard, 2);
	EXPECT_UINT(q.a.result.n, 0);
	finish();
}

TEST(the_longest_names_and_sentences)
{
	char principal[PRINCIPAL_BYTES_MAX + 1];
	char tenant[TENANT_BYTES_MAX + 1];
	struct detail why;
	struct answer a = { .rc = RC_DENIED,
			    .outcome = OUTCOME_REFUSED,
			    .why = &why,
			    .retry_after_ms = INT64_MAX };
	struct forward_request r = { .depth = CALL_DEPTH_MAX };
	struct chain chain = { .n = CALL_DEPTH_MAX, .root_stamp = 99 };
	struct asked q = { .f = { .answered = answered } };
	struct call *c;
	unsigned i;

	begin();
	memset(principal, 'p', sizeof(principal));
	principal[PRINCIPAL_BYTES_MAX] = '\0';
	memset(tenant, 't', sizeof(tenant));
	tenant[TENANT_BYTES_MAX] = '\0';
	memset(&why, 'w', sizeof(why));
	why.field[sizeof(why.field) - 1] = '\0';
	why.text[sizeof(why.text) - 1] = '\0';
	for (i = 0; i < CALL_DEPTH_MAX; i++) {
		chain.at[i].oid.b[0] = (uint8_t)i;
		memset(chain.at[i].address, 'a',
		       sizeof(chain.at[i].address) - 1);
		chain.at[i].same_tenant_as_next = i % 2 == 0;
	}
	chain.root_id[15] = 8;
	r.principal = bytes(principal);
	r.tenant = bytes(tenant);
	r.env = bytes(tenant);
	r.params = bytes("\x90");
	r.deadline_ms = 1;
	r.chain = &chain;
	EXPECT_RC(forward_send(fs[0], &q.f, 3, &r), RC_OK);
	fake_pump();
	c = LIST_FIRST(&open_calls);
	EXPECT_UINT(c->r.depth, CALL_DEPTH_MAX);
	EXPECT_UINT(c->r.deadline_ms, 1);
	EXPECT_UINT(c->r.principal.n, PRINCIPAL_BYTES_MAX);
	EXPECT_UINT(c->r.params.n, 1);
	EXPECT_MEM(&c->chain, &chain, sizeof(chain));
	end(c, &a);
	fake_pump();
	EXPECT_STR(q.why.field, why.field);
	EXPECT_STR(q.why.text, why.text);
	EXPECT_INT(q.a.retry_after_ms, INT64_MAX);
	finish();
}

TEST(answers_come_in_any_order)
{
	struct asked q[3] = { { .answers = 0 } };
	struct answer a = done;
	struct call *c[3];
	unsigned i;

	begin();
	for (i = 0; i < 3; i++) {
		EXPECT_RC(ask(&q[i], 1, 2), RC_OK);
		fake_pump();
		c[i] = LIST_FIRST(&open_calls);
	}
	for (i = 0; i < 3; i++) {
		unsigned k = (i + 1) % 3;

		a.shard = k;
		end(c[k], &a);
		fake_pump();
		EXPECT_UINT(q[k].answers, 1);
		EXPECT_UINT(q[k].a.shard, k);
	}
	finish();
}

/* ---- links that are lost ---- */

TEST(a_lost_link_is_an_unknown_outcome)
{
	struct asked q = { .answers = 0 };
	struct asked other = { .answers = 0 };

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	EXPECT_RC(ask(&other, 1, 3), RC_OK);
	/* Whether its bytes have left nobody can tell. */
	fake_cut(1, 2);
	EXPECT_UINT(q.answers, 1);
	EXPECT_RC(q.a.rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(q.a.outcome, OUTCOME_UNKNOWN);
	EXPECT_TRUE(q.why.text[0] != '\0');
	EXPECT_UINT(other.answers, 0);
	EXPECT_RC(ask(&q, 1, 2), RC_NO_QUORUM);
	fake_pump();
	EXPECT_UINT(served_n, 1);
	finish();
}

TEST(mutant_forward_twice)
{
	struct asked q = { .answers = 0 };

	begin();
	mutant_now = MUTANT_forward_twice;
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	fake_cut(1, 2);
	/* Its caller would send it on. */
	EXPECT_INT(q.a.outcome, OUTCOME_REFUSED);
	finish();
}

TEST(the_owner_gives_up_what_nobody_waits_for)
{
	struct asked q = { .answers = 0 };
	struct asked again = { .answers = 0 };
	struct call *c;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	c = LIST_FIRST(&open_calls);
	fake_cut(1, 2);
	EXPECT_TRUE(c->cancelled);
	fake_join(1, 2);
	/* The same slot, and another call. */
	EXPECT_RC(ask(&again, 1, 2), RC_OK);
	fake_pump();
	EXPECT_UINT(served_n, 2);
	end(c, &done);
	fake_pump();
	EXPECT_UINT(q.answers, 1);
	EXPECT_UINT(again.answers, 0);
	end(LIST_FIRST(&open_calls), &done);
	fake_pump();
	EXPECT_UINT(again.answers, 1);
	EXPECT_RC(again.a.rc, RC_OK);
	finish();
}

TEST(calls_may_end_inside_a_lost_link)
{
	struct asked q[4] = { { .answers = 0 } };
	unsigned i;

	begin();
	end_on_cancel = true;
	for (i = 0; i < 4; i++)
		EXPECT_RC(ask(&q[i], 1, 2), RC_OK);
	fake_pump();
	fake_cut(1, 2);
	for (i = 0; i < 4; i++)
		EXPECT_UINT(q[i].answers, 1);
	EXPECT_TRUE(LIST_EMPTY(&open_calls));
	EXPECT_NULL(fake_next());
	finish();
}

static struct asked second;

static void send_second(struct asked *q)
{
	(void)q;
	EXPECT_RC(ask(&second, 1, 2), RC_OK);
}

/* The new connection may be there before the old one's end was told. */
TEST(what_is_sent_over_the_new_link_is_not_lost_with_the_old)
{
	struct asked q[3] = { { .answers = 0 } };
	unsigned i;

	begin();
	memset(&second, 0, sizeof(second));
	for (i = 0; i < 3; i++)
		EXPECT_RC(ask(&q[i], 1, 2), RC_OK);
	q[0].then = send_second;
	fake_forget(1, 2);
	fake_join(1, 2);
	for (i = 0; i < 3; i++) {
		EXPECT_UINT(q[i].answers, 1);
		EXPECT_RC(q[i].a.rc, RC_UNKNOWN_OUTCOME);
	}
	EXPECT_UINT(second.answers, 0);
	fake_pump();
	end(LIST_FIRST(&open_calls), &done);
	fake_pump();
	EXPECT_UINT(second.answers, 1);
	EXPECT_RC(second.a.rc, RC_OK);
	finish();
}

/* ---- cancelling ---- */

TEST(a_recalled_call_is_answered)
{
	struct asked q = { .answers = 0 };

	begin();
	end_on_cancel = true;
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	forward_recall(fs[0], &q.f);
	EXPECT_UINT(q.answers, 0);
	fake_pump();
	EXPECT_UINT(q.answers, 1);
	EXPECT_RC(q.a.rc, RC_CANCELLED);
	/* Its answer was faster than the wish. */
	forward_recall(fs[0], &q.f);
	EXPECT_NULL(fake_next());
	finish();
}

TEST(a_cancelled_call_is_not)
{
	struct asked q = { .answers = 0 };
	struct call *c;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	forward_cancel(fs[0], &q.f);
	fake_pump();
	c = LIST_FIRST(&open_calls);
	EXPECT_TRUE(c->cancelled);
	/* Until the owner has answered its slot is not used again. */
	EXPECT_RC(ask(&second, 1, 2), RC_OK);
	EXPECT_TRUE((second.f.number & (FORWARDS_MAX - 1)) !=
		    (q.f.number & (FORWARDS_MAX - 1)));
	end(c, &done);
	fake_pump();
	EXPECT_UINT(q.answers, 0);
	EXPECT_UINT(fake.at[0].drops, 0);
	finish();
}

TEST(a_cancel_that_crosses_the_answer)
{
	struct asked q = { .answers = 0 };

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	end(LIST_FIRST(&open_calls), &done);
	forward_cancel(fs[0], &q.f);
	fake_pump();
	EXPECT_UINT(q.answers, 0);
	EXPECT_UINT(fake.at[0].drops + fake.at[1].drops, 0);
	finish();
}

/* ---- bounds ---- */

TEST(so_many_to_one_owner_and_no_more)
{
	static struct asked q[FORWARDS_MAX + 1];
	uint32_t i;

	begin();
	memset(q, 0, sizeof(q));
	for (i = 0; i < FORWARDS_MAX; i++)
		EXPECT_RC(ask(&q[i], 1, 2), RC_OK);
	EXPECT_RC(ask(&q[i], 1, 2), RC_OVERLOADED);
	EXPECT_RC(ask(&q[i], 1, 3), RC_OK);
	full = true;
	fake_pump();
	EXPECT_UINT(served_n, 0);
	for (i = 0; i <= FORWARDS_MAX; i++) {
		EXPECT_UINT(q[i].answers, 1);
		EXPECT_RC(q[i].a.rc, RC_OVERLOADED);
		EXPECT_INT(q[i].a.outcome, OUTCOME_REFUSED);
		EXPECT_INT(q[i].a.retry_after_ms, RETRY_AFTER_MS);
	}
	full = false;
	EXPECT_RC(ask(&q[0], 1, 2), RC_OK);
	finish();
}

TEST(a_full_queue_refuses_before_anything_is_sent)
{
	struct asked q = { .answers = 0 };
	unsigned i;

	begin();
	fake.at[0].room = 0;
	for (i = 0; i < 2 * FORWARDS_MAX; i++)
		EXPECT_RC(ask(&q, 1, 2), RC_OVERLOADED);
	EXPECT_UINT(q.answers, 0);
	finish();
}

TEST(large_answers_of_reads_make_way)
{
	static uint8_t large[64u << 10];
	struct answer a = done;
	struct asked q = { .answers = 0 };

	begin();
	memset(large, 0xa0, sizeof(large));
	large[0] = 0xdb;
	large[1] = 0;
	large[2] = 0;
	large[3] = 0xff;
	large[4] = 0xfb;
	a.result = (struct pack_bytes){ large, sizeof(large) };
	a.repeatable = true;
	fake.at[1].room = 1u << 20;
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	end(LIST_FIRST(&open_calls), &a);
	fake_pump();
	EXPECT_RC(q.a.rc, RC_OVERLOADED);
	EXPECT_INT(q.a.outcome, OUTCOME_REFUSED);
	/* What has happened is told as long as there is room at all, */
	a.repeatable = false;
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	end(LIST_FIRST(&open_calls), &a);
	fake_pump();
	EXPECT_RC(q.a.rc, RC_OK);
	EXPECT_UINT(q.a.result.n, sizeof(large));
	EXPECT_UINT(fake.at[1].drops, 0);
	/* and then who does not read has lost the link. */
	fake.at[1].room = 16;
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	end(LIST_FIRST(&open_calls), &done);
	EXPECT_UINT(fake.at[1].drops, 1);
	finish();
}

TEST(a_peer_that_is_no_member)
{
	struct asked q = { .answers = 0 };

	begin();
	EXPECT_RC(ask(&q, 1, 1), RC_NO_QUORUM);
	finish();
}

/* ---- who may speak for whom ---- */

TEST(a_node_speaks_for_its_own_users_and_itself)
{
	static const struct {
		const char *principal;
		bool good;
	} t[] = {
		{ "unix:n1:1000", true },   { "unix:n2:1000", false },
		{ "unix:n11:1000", false }, { "unix:n1", false },
		{ "unix:", false },         { "node:1", true },
		{ "node:2", false },        { "node:11", false },
		{ "node:", false },         { "object:default/dev/kv", true },
		{ "spiffe://c/x", true },
	};
	size_t i;

	begin();
	for (i = 0; i < ARRAY_LEN(t); i++) {
		struct asked q = { .answers = 0 };

		runner_context("%s", t[i].principal);
		EXPECT_RC(ask_as(&q, 1, 2, t[i].principal), RC_OK);
		fake_pump();
		EXPECT_UINT(q.answers, t[i].good ? 0 : 1);
		if (t[i].good)
			end(LIST_FIRST(&open_calls), &done);
		else
			EXPECT_RC(q.a.rc, RC_UNAUTHENTICATED);
		fake_pump();
	}
	finish();
}

/* ---- what is no record ---- */

static void say_broken(const uint8_t *p, size_t n)
{
	unsigned before = fake.at[1].drops;

	fake_say(CHANNEL_CALL, 1, 2, p, n);
	EXPECT_UINT(fake.at[1].drops, before + 1);
}

TEST(a_record_that_is_cut_anywhere)
{
	uint8_t rec[512];
	struct asked q = { .answers = 0 };
	struct fake_record *r;
	size_t n;
	size_t i;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	r = fake_next();
	n = r->n;
	EXPECT_TRUE(n < sizeof(rec));
	memcpy(rec, r->bytes, n);
	for (i = 0; i < n; i++)
		say_broken(rec, i);
	/* And one byte more: two values. */
	rec[n] = 0xc0;
	say_broken(rec, n + 1);
	EXPECT_UINT(served_n, 0);
	fake_pump();
	EXPECT_UINT(served_n, 1);
	/* The same slot before it was answered. */
	say_broken(rec, n);
	end(LIST_FIRST(&open_calls), &done);
	r = fake_next();
	n = r->n;
	memcpy(rec, r->bytes, n);
	for (i = 0; i < n; i++) {
		unsigned before = fake.at[0].drops;

		fake_say(CHANNEL_CALL, 2, 1, rec, i);
		EXPECT_UINT(fake.at[0].drops, before + 1);
	}
	EXPECT_UINT(q.answers, 0);
	fake_pump();
	EXPECT_UINT(q.answers, 1);
	/* An answer that nobody asked for. */
	fake_say(CHANNEL_CALL, 2, 1, rec, n);
	EXPECT_UINT(q.answers, 1);
	finish();
}

TEST(fields_out_of_their_bounds)
{
	static const struct {
		size_t at;
		uint8_t byte;
	} t[] = {
		{ 0, 0 },   { 0, 4 },    { 0, 255 }, { 1, 1 },  { 1, 9 },
		{ 2, 0 },   { 3, 9 },    { 4, 65 },  { 5, 65 }, { 6, 1 },
		{ 7, 255 }, { 10, 255 }, { 11, 1 },
	};
	uint8_t rec[512];
	struct asked q = { .answers = 0 };
	struct fake_record *r;
	size_t n;
	size_t i;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	r = fake_next();
	n = r->n;
	for (i = 0; i < ARRAY_LEN(t); i++) {
		runner_context("byte %zu", t[i].at);
		memcpy(rec, r->bytes, n);
		rec[t[i].at] = t[i].byte;
		say_broken(rec, n);
	}
	memcpy(rec, r->bytes, n);
	memset(rec + 16, 0, 8);
	say_broken(rec, n);
	EXPECT_UINT(served_n, 0);
	finish();
}

TEST(answers_that_contradict_themselves)
{
	static const struct {
		size_t at;
		uint8_t byte;
	} t[] = {
		{ 1, 5 },  /* An error, and it was done. */
		{ 1, 64 }, /* A code that never leaves a node. */
		{ 2, 1 },  /* No error, and it was refused. */
		{ 2, 3 },   { 3, 2 },     { 4, 64 },
		{ 5, 240 }, { 40, 0xc1 }, { 40, 0x91 },
	};
	uint8_t rec[512];
	struct asked q = { .answers = 0 };
	struct fake_record *r;
	size_t n;
	size_t i;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	fake_pump();
	end(LIST_FIRST(&open_calls), &done);
	r = fake_next();
	n = r->n;
	for (i = 0; i < ARRAY_LEN(t); i++) {
		unsigned before = fake.at[0].drops;

		runner_context("byte %zu: %u", t[i].at, t[i].byte);
		memcpy(rec, r->bytes, n);
		rec[t[i].at] = t[i].byte;
		fake_say(CHANNEL_CALL, 2, 1, rec, n);
		EXPECT_UINT(fake.at[0].drops, before + 1);
	}
	EXPECT_UINT(q.answers, 0);
	finish();
}

TEST(a_code_of_a_later_version)
{
	uint8_t rec[512];
	struct asked q = { .answers = 0 };
	struct answer a = { .rc = RC_CONFLICT, .outcome = OUTCOME_REFUSED };
	struct fake_record *r;
	size_t n;
	unsigned i;

	begin();
	for (i = 0; i < 2; i++) {
		a.outcome = i == 0 ? OUTCOME_REFUSED : OUTCOME_UNKNOWN;
		EXPECT_RC(ask(&q, 1, 2), RC_OK);
		fake_pump();
		end(LIST_FIRST(&open_calls), &a);
		r = fake_next();
		n = r->n;
		memcpy(rec, r->bytes, n);
		rec[1] = 63;
		fake_say(CHANNEL_CALL, 2, 1, rec, n);
		EXPECT_UINT(q.answers, i + 1);
		EXPECT_RC(q.a.rc, i == 0 ? RC_UNSUPPORTED : RC_UNKNOWN_OUTCOME);
		EXPECT_INT(q.a.outcome, a.outcome);
		fake_end();
	}
	finish();
}

TEST(chains_that_are_none)
{
	struct forward_request r = { .depth = 2 };
	struct chain chain = { .n = 2 };
	struct asked q = { .f = { .answered = answered } };
	uint8_t rec[512];
	struct fake_record *next;
	size_t n;
	size_t i;

	begin();
	snprintf(chain.at[0].address, sizeof(chain.at[0].address), "abc");
	r.principal = bytes("object:a/b/c");
	r.params = bytes("\x90");
	r.chain = &chain;
	EXPECT_RC(forward_send(fs[0], &q.f, 2, &r), RC_OK);
	next = fake_next();
	n = next->n;
	memcpy(rec, next->bytes, n);
	for (i = 0; i < 5; i++) {
		memcpy(rec, next->bytes, n);
		if (i == 0)
			rec[1] = 1; /* Another depth than it has callers. */
		else if (i == 1)
			rec[32] = 0;
		else if (i == 2)
			rec[32] = CALL_DEPTH_MAX + 1;
		else if (i == 3)
			rec[32 + 25 + 17] = 96; /* An address too long. */
		else
			rec[32 + 25 + 16] = 2;
		runner_context("%zu", i);
		say_broken(rec, n);
	}
	EXPECT_UINT(served_n, 0);
	finish();
}

TEST(records_of_another_connection_do_not_count)
{
	struct asked q = { .answers = 0 };
	uint8_t rec[512];
	size_t n;

	begin();
	EXPECT_RC(ask(&q, 1, 2), RC_OK);
	n = fake_next()->n;
	memcpy(rec, fake_next()->bytes, n);
	fake.at[1].sinks[CHANNEL_CALL]->received(fake.at[1].sinks[CHANNEL_CALL],
						 1, 999, rec, n);
	EXPECT_UINT(served_n, 0);
	EXPECT_UINT(fake.at[1].drops, 0);
	finish();
}
