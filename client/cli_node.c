/*
 * The server itself: `metrics`, `objects`, `ping`.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/cli.h"
#include "client/hdr.h"

/* --------------------------------------------------------------- metrics ---
 */

static int simple_rpc(struct cli *cli, const char *method,
		      const struct holdfast_answer **a)
{
	struct holdfast_request r = HOLDFAST_RPC(method);

	return cli_call(cli, &r, method, a);
}

static int metrics_command(struct cli *cli, int argc, char **argv)
{
	const struct holdfast_answer *a = NULL;
	struct pack_bytes text;
	struct pack_r r;
	int code = cli_parse(cli, argc, argv, NULL, 0, 0);

	if (code != CLI_OK || cli->help)
		return code;
	code = simple_rpc(cli, "metrics", &a);
	if (code != CLI_OK)
		return code;
	r = pack_reader(a->value, a->value_bytes);
	if (cli->json || pack_get_bytes(&r, &text) != RC_OK)
		out_json(stdout, answer_value_of(a));
	else
		(void)fwrite(text.p, 1, text.n, stdout);
	return CLI_OK;
}

const struct cli_command cli_metrics_command = {
	"metrics",       "Prints the node's metrics as Prometheus text",
	"metrics\n",     "",
	metrics_command,
};

/* --------------------------------------------------------------- objects ---
 */

struct objects_options {
	const char *tenant;
	const char *env;
	const char *cls;
	const char *after;
	uint64_t limit;
};

static void put_text(struct pack_w *w, uint32_t *n, const char *key,
		     const char *text)
{
	if (text == NULL)
		return;
	pack_cstr(w, key);
	pack_cstr(w, text);
	++*n;
}

static void objects_params(const struct objects_options *o, struct pack_w *w)
{
	struct pack_w pairs;
	uint32_t n = 0;

	pack_w_init(&pairs, 65536);
	put_text(&pairs, &n, "tenant", o->tenant);
	put_text(&pairs, &n, "env", o->env);
	put_text(&pairs, &n, "class", o->cls);
	put_text(&pairs, &n, "after", o->after);
	if (o->limit > 0) {
		pack_cstr(&pairs, "limit");
		pack_u64(&pairs, o->limit);
		n++;
	}
	pack_array(w, 1);
	pack_map(w, n);
	if (pairs.rc == RC_OK)
		pack_raw(w, pairs.p, pairs.n);
	else
		w->rc = pairs.rc;
	pack_w_release(&pairs);
}

static void show_object_row(struct pack_bytes item)
{
	struct pack_bytes v;
	uint64_t u;

	(void)printf("%8llu ", out_find_u64(item, "rows", &u)
				       ? (unsigned long long)u
				       : 0);
	(void)printf("%10s ",
		     out_find_u64(item, "bytes", &u) ? out_bytes(u) : "-");
	(void)printf("%8llu  ",
		     out_find_u64(item, "rev", &u) ? (unsigned long long)u : 0);
	if (out_find_text(item, "address", &v))
		out_text(stdout, v.p, v.n);
	if (out_find(item, "destroyed", &v) && v.n == 1 && v.p[0] == 0xc3)
		(void)fputs("  (destroyed)", stdout);
	(void)fputc('\n', stdout);
}

static void show_objects(struct pack_bytes answer)
{
	struct pack_bytes items;
	struct pack_bytes item;
	struct pack_bytes next;
	struct pack_r r;
	uint32_t n;

	if (!out_find(answer, "items", &items)) {
		out_human(stdout, answer);
		return;
	}
	r = pack_reader(items.p, items.n);
	if (pack_get_array(&r, &n) != RC_OK)
		return;
	(void)printf("%8s %10s %8s  %s\n", "rows", "bytes", "rev", "address");
	for (; n > 0 && pack_skip(&r, &item) == RC_OK; n--)
		show_object_row(item);
	if (out_find_text(answer, "next", &next)) {
		(void)fputs("holdfast: there is more: --after ", stderr);
		out_text(stderr, next.p, next.n);
		(void)fputc('\n', stderr);
	}
}

static int objects_ls(struct cli *cli, const struct objects_options *o)
{
	struct holdfast_request r = HOLDFAST_RPC("objects");
	const struct holdfast_answer *a = NULL;
	struct pack_w w;
	int code;

	pack_w_init(&w, 65536);
	objects_params(o, &w);
	r.raw = w.p;
	r.raw_bytes = w.n;
	code = w.rc == RC_OK ? cli_call(cli, &r, "objects ls", &a)
			     : cli_usage(cli, "the arguments are too long");
	pack_w_release(&w);
	if (code != CLI_OK || a == NULL)
		return code;
	if (cli->json)
		out_json(stdout, answer_value_of(a));
	else
		show_objects(answer_value_of(a));
	return CLI_OK;
}

static int objects_show(struct cli *cli, const char *address)
{
	struct holdfast_request r = HOLDFAST_RPC("object");
	const struct holdfast_answer *a = NULL;
	struct pack_w w;
	int code;

	pack_w_init(&w, 65536);
	pack_array(&w, 1);
	pack_cstr(&w, address);
	r.raw = w.p;
	r.raw_bytes = w.n;
	code = w.rc == RC_OK ? cli_call(cli, &r, address, &a)
			     : cli_usage(cli, "the address is too long");
	pack_w_release(&w);
	if (code == CLI_OK && a != NULL)
		out_result(cli, answer_value_of(a));
	return code;
}

static int objects_command(struct cli *cli, int argc, char **argv)
{
	struct objects_options o = { 0 };
	const struct cli_opt opts[] = {
		{ "class", 0, CLI_TEXT, &o.cls, 0, 0, "C",
		  "ls: of this class only" },
		{ "tenant", 0, CLI_TEXT, &o.tenant, 0, 0, "T",
		  "ls: of this tenant" },
		{ "env", 0, CLI_TEXT, &o.env, 0, 0, "E",
		  "ls: of this environment" },
		{ "after", 0, CLI_TEXT, &o.after, 0, 0, "ID",
		  "ls: the page behind this one" },
		{ "limit", 0, CLI_NUMBER, &o.limit, 1, 1000, "N",
		  "ls: so many at most" },
		CLI_OPT_END,
	};
	int code = cli_parse(cli, argc, argv, opts, 1, 2);

	if (code != CLI_OK || cli->help)
		return code;
	if (strcmp(cli->args[0], "ls") == 0 && cli->args_n == 1)
		return objects_ls(cli, &o);
	if (strcmp(cli->args[0], "show") == 0 && cli->args_n == 2)
		return objects_show(cli, cli->args[1]);
	return cli_usage(cli, "objects ls, or objects show ADDRESS");
}

const struct cli_command cli_objects_command = {
	"objects",
	"Lists objects, or shows one",
	"objects ls [--class C] [--limit N] [--after ID]\n"
	"objects show ADDRESS\n",
	"",
	objects_command,
};

/* ------------------------------------------------------------------ ping ---
 */

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void ping_summary(const struct cli *cli, const struct hdr *h)
{
	if (cli->json)
		(void)printf("{\"n\":%llu,\"min_us\":%.1f,\"p50_us\":%.1f,"
			     "\"p99_us\":%.1f,\"max_us\":%.1f}\n",
			     (unsigned long long)hdr_count(h),
			     (double)hdr_min(h) / 1000,
			     (double)hdr_percentile(h, 50) / 1000,
			     (double)hdr_percentile(h, 99) / 1000,
			     (double)hdr_max(h) / 1000);
	else
		(void)printf("%llu answers, %.0f us at least, half within "
			     "%.0f us, 99 %% within %.0f us, %.0f us at most\n",
			     (unsigned long long)hdr_count(h),
			     (double)hdr_min(h) / 1000,
			     (double)hdr_percentile(h, 50) / 1000,
			     (double)hdr_percentile(h, 99) / 1000,
			     (double)hdr_max(h) / 1000);
}

static int ping_command(struct cli *cli, int argc, char **argv)
{
	uint64_t n = 4;
	const struct cli_opt opts[] = {
		{ "count", 'n', CLI_NUMBER, &n, 1, 1000000, "N",
		  "so many times (4)" },
		CLI_OPT_END,
	};
	const struct holdfast_answer *a = NULL;
	struct hdr *h;
	uint64_t from;
	int code = cli_parse(cli, argc, argv, opts, 0, 0);

	if (code != CLI_OK || cli->help)
		return code;
	code = cli_connect(cli);
	if (code != CLI_OK)
		return code;
	h = hdr_new();
	if (h == NULL)
		return CLI_INTERNAL;
	for (; n > 0 && code == CLI_OK; n--) {
		from = now_ns();
		code = simple_rpc(cli, "ping", &a);
		if (code == CLI_OK)
			hdr_record(h, now_ns() - from);
	}
	if (code == CLI_OK)
		ping_summary(cli, h);
	hdr_free(h);
	return code;
}

const struct cli_command cli_ping_command = {
	"ping",          "Asks for an answer and says how long it took",
	"ping [-n N]\n", "",
	ping_command,
};
