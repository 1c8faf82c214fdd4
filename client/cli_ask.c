/*
 * One question to every endpoint, each by itself: what a node says of itself is
 * not what the cluster's nearest one says of it. All are asked at once, so that
 * those that are gone cost the time of one.
 */
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "client/cli.h"

#define ASK_MS 3000u

struct ask {
	struct cli_told *told;
	struct holdfast *h;
	bool closing;
};

static void told_free(struct cli_told *t)
{
	free((void *)(uintptr_t)t->value.p);
	t->value.p = NULL;
	t->value.n = 0;
}

static void ask_end(struct ask *a)
{
	if (a->closing)
		return;
	a->closing = true;
	holdfast_close(a->h, NULL, NULL);
}

static void told_fail(struct cli_told *t, int code, const char *why)
{
	t->code = code;
	(void)snprintf(t->why, sizeof(t->why), "%s", why);
}

static void told_value(struct cli_told *t, const struct holdfast_answer *a)
{
	uint8_t *copy = malloc(a->value_bytes + 1);
	struct pack_bytes name;

	if (copy == NULL) {
		told_fail(t, HOLDFAST_NO_MEMORY, "out of memory");
		return;
	}
	memcpy(copy, a->value, a->value_bytes);
	t->code = HOLDFAST_OK;
	t->value.p = copy;
	t->value.n = a->value_bytes;
	if (out_find_text(t->value, "node", &name) && name.n > 0 &&
	    name.n < sizeof(t->node)) {
		memcpy(t->node, name.p, name.n);
		t->node[name.n] = '\0';
	}
}

static void ask_answered(void *arg, const struct holdfast_answer *answer)
{
	struct ask *a = arg;

	if (answer->code == HOLDFAST_OK) {
		told_value(a->told, answer);
	} else if (a->told->code == HOLDFAST_UNREACHABLE &&
		   answer->local != 0) {
		/* Why there is no connection was said already. */
		if (a->told->why[0] == '\0')
			told_fail(a->told, HOLDFAST_UNREACHABLE,
				  answer->message);
	} else {
		told_fail(a->told, answer->code, answer->message);
		(void)snprintf(a->told->owner, sizeof(a->told->owner), "%s",
			       answer->owner);
	}
	ask_end(a);
}

/* One try is enough: this is about now. */
static void ask_state(void *arg, int connected, const char *why)
{
	struct ask *a = arg;

	if (connected != 0)
		return;
	told_fail(a->told, HOLDFAST_UNREACHABLE, why);
	ask_end(a);
}

static void ask_begin(struct ask *a, uv_loop_t *loop, const struct profile *p,
		      const char *rpc, struct pack_bytes params)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast_request r = HOLDFAST_RPC(rpc);
	const char *place = a->told->at->rpc;
	int code;

	o.endpoints = &place;
	o.endpoints_n = 1;
	o.only = 1;
	if (p->ca[0] != '\0') {
		o.ca = p->ca;
		o.cert = p->cert;
		o.key = p->key;
	}
	o.state = ask_state;
	o.state_arg = a;
	r.raw = params.p;
	r.raw_bytes = params.n;
	r.deadline_ms = ASK_MS;
	a->told->code = HOLDFAST_UNREACHABLE;
	code = holdfast_open(loop, &o, &a->h);
	if (code != HOLDFAST_OK) {
		told_fail(a->told, code, "the certificate cannot be used");
		return;
	}
	code = holdfast_call(a->h, &r, ask_answered, a, NULL);
	if (code == HOLDFAST_OK)
		return;
	told_fail(a->told, code, holdfast_why(a->h));
	ask_end(a);
}

static void told_begin(struct cli_told *t, const struct profile_endpoint *at)
{
	told_free(t);
	memset(t, 0, sizeof(*t));
	t->at = at;
	if (at->name[0] != '\0')
		(void)snprintf(t->node, sizeof(t->node), "%s", at->name);
	else
		(void)snprintf(t->node, sizeof(t->node), "%.60s", at->rpc);
}

static void ask_range(struct cli_all *all, size_t from, size_t to,
		      const char *rpc, struct pack_bytes params)
{
	struct ask asks[PROFILE_ENDPOINTS_MAX];
	uv_loop_t loop;
	size_t i;

	memset(asks, 0, sizeof(asks));
	for (i = from; i < to; i++) {
		told_begin(&all->told[i], &all->servers.profile.endpoints[i]);
		asks[i].told = &all->told[i];
	}
	if (uv_loop_init(&loop) != 0) {
		for (i = from; i < to; i++)
			told_fail(&all->told[i], HOLDFAST_NO_MEMORY,
				  "out of memory");
		return;
	}
	for (i = from; i < to; i++)
		ask_begin(&asks[i], &loop, &all->servers.profile, rpc, params);
	(void)uv_run(&loop, UV_RUN_DEFAULT);
	(void)uv_loop_close(&loop);
}

int cli_ask_all(const struct cli *cli, const char *rpc,
		struct pack_bytes params, struct cli_all *all)
{
	int code;

	memset(all, 0, sizeof(*all));
	code = cli_servers(cli, &all->servers);
	if (code != CLI_OK)
		return code;
	all->n = all->servers.profile.endpoints_n;
	ask_range(all, 0, all->n, rpc, params);
	return CLI_OK;
}

void cli_ask_one(struct cli_all *all, size_t i, const char *rpc,
		 struct pack_bytes params)
{
	ask_range(all, i, i + 1, rpc, params);
}

void cli_all_release(struct cli_all *all)
{
	size_t i;

	for (i = 0; i < all->n; i++)
		told_free(&all->told[i]);
}

bool cli_all_any(const struct cli_all *all)
{
	size_t i;

	for (i = 0; i < all->n; i++)
		if (all->told[i].code == HOLDFAST_OK)
			return true;
	return false;
}
