/*
 * forward: a peer that sends any records over the bulk link, between calls of
 * our own, answers and lost links. What is taken for a call is one, within its
 * bounds; each call of our own is answered at most once; nothing stays behind.
 *
 * The input is a list of steps: what (1), then for a record its length (1) and
 * its bytes.
 */
#include <string.h>

#include "node/base/check.h"
#include "node/core/forward.h"
#include "node/core/internal.h"
#include "raft-glue/le.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/fake_transport.h"

#define OPEN_MAX 16u

struct call {
	struct served sv;
	bool open;
};

struct asked {
	struct forward f;
	bool open;
};

static struct call calls[OPEN_MAX];
static struct asked asked[OPEN_MAX];
static struct forwards *fs;

struct served *call_serve(struct core *core, const struct call_request *r,
			  void (*answered)(struct served *sv,
					   const struct answer *a))
{
	const struct pack_bounds bounds = { PACK_DEPTH_MAX, PACK_ELEMENTS_MAX,
					    FRAME_BYTES_MAX };
	struct pack_scan scan = { 0 };
	size_t size;
	size_t i;

	(void)core;
	MUST(r->principal.n > 0 && r->principal.n <= PRINCIPAL_BYTES_MAX);
	MUST(r->tenant.n <= TENANT_BYTES_MAX && r->env.n <= TENANT_BYTES_MAX);
	MUST(r->tenant.p == r->principal.p + r->principal.n);
	MUST(r->env.p == r->tenant.p + r->tenant.n);
	MUST(r->params.p == r->env.p + r->env.n);
	MUST(pack_check(&scan, r->params.p, r->params.n, &bounds, &size) ==
	     RC_OK);
	MUST(size == r->params.n);
	MUST(r->deadline_ms <= DEADLINE_MAX_MS);
	MUST((r->depth == 0) == (r->chain == NULL));
	if (r->chain != NULL) {
		MUST(r->chain->n == r->depth);
		MUST(r->depth <= CALL_DEPTH_MAX);
		for (i = 0; i < r->depth; i++)
			MUST(memchr(r->chain->at[i].address, 0,
				    sizeof(r->chain->at[i].address)) != NULL);
	}
	for (i = 0; i < OPEN_MAX; i++)
		if (!calls[i].open)
			break;
	if (i == OPEN_MAX)
		return NULL;
	calls[i] =
		(struct call){ .sv = { .answered = answered }, .open = true };
	return &calls[i].sv;
}

struct call *served_call(struct served *sv)
{
	return CONTAINER_OF(sv, struct call, sv);
}

static void end(struct call *c, enum rc rc)
{
	const struct answer a = { .rc = rc,
				  .outcome = rc_outcome(rc),
				  .result = { (const uint8_t *)"\xc0", 1 },
				  .retry_after_ms = -1 };

	MUST(c->open);
	c->open = false;
	c->sv.answered(&c->sv, &a);
}

void call_cancel(struct call *c)
{
	MUST(c->open);
	/* Some end at once, some when they may. */
	if ((c - calls) % 2 == 0)
		end(c, RC_CANCELLED);
}

static void answered(struct forward *f, const struct answer *a)
{
	struct asked *q = CONTAINER_OF(f, struct asked, f);

	MUST(q->open);
	q->open = false;
	MUST(rc_is_wire(a->rc));
	MUST((a->rc == RC_OK) == (a->outcome == OUTCOME_DONE));
	MUST(a->why == NULL || (strlen(a->why->field) < sizeof(a->why->field) &&
				strlen(a->why->text) < sizeof(a->why->text)));
	MUST(a->rc != RC_OK || a->result.n > 0);
}

static void ask(unsigned i)
{
	struct forward_request r = { .deadline_ms = 1000 };

	if (asked[i].open)
		return;
	r.principal = (struct pack_bytes){ (const uint8_t *)"p", 1 };
	r.params = (struct pack_bytes){ (const uint8_t *)"\x90", 1 };
	asked[i].f.answered = answered;
	asked[i].open = forward_send(fs, &asked[i].f, 2, &r) == RC_OK;
}

/* The peer's bytes; a number that is on its way, where the step says so. */
static void record(const uint8_t *p, size_t n, unsigned i, bool known)
{
	uint8_t *copy = malloc(n + 1);

	MUST(copy != NULL);
	if (n > 0)
		memcpy(copy, p, n);
	if (known && n >= 24)
		le_put64(copy + 16, asked[i].f.number);
	if (fake.at[0].epoch[1] != 0)
		fake_say(CHANNEL_CALL, 2, 1, copy, n);
	free(copy);
}

static size_t step(const uint8_t *p, size_t n)
{
	unsigned i = p[0] >> 4;
	size_t bytes;

	switch (p[0] & 7) {
	case 0:
		ask(i);
		return 1;
	case 1:
		if (calls[i].open)
			end(&calls[i], RC_OK);
		return 1;
	case 2:
		fake_cut(1, 2);
		return 1;
	case 3:
		fake_join(1, 2);
		return 1;
	case 4:
		if (asked[i].open)
			forward_cancel(fs, &asked[i].f);
		asked[i].open = false;
		return 1;
	default:
		if (n < 2)
			return n;
		bytes = p[1] < n - 2 ? p[1] : n - 2;
		record(p + 2, bytes, i, (p[0] & 7) == 7);
		return 2 + bytes;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	size_t at = 0;
	size_t i;

	memset(calls, 0, sizeof(calls));
	memset(asked, 0, sizeof(asked));
	fake_begin(2);
	MUST(forwards_new(NULL, &fake.at[0], &fs) == RC_OK);
	fake_join(1, 2);
	while (at < n) {
		at += step(p + at, n - at);
		fake_pump();
	}
	fake_cut(1, 2);
	for (i = 0; i < OPEN_MAX; i++) {
		MUST(!asked[i].open);
		if (calls[i].open)
			end(&calls[i], RC_OK);
	}
	forwards_free(fs);
	fake_end();
	return 0;
}
