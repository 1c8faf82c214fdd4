/*
 * `holdfast bench`: the options of a load, and its result for people and for
 * programs.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "client/bench.h"
#include "client/cli.h"
#include "client/profile.h"

static bool work_find(const char *name, enum bench_work *work)
{
	int i;

	for (i = 0; i < BENCH_WORKS; i++) {
		*work = (enum bench_work)i;
		if (strcmp(bench_work_name(*work), name) == 0)
			return true;
	}
	return false;
}

static void human_server(const struct bench_options *o,
			 const struct bench_result *r)
{
	int i;

	if (r->syncs < 0)
		return;
	(void)printf("  %s: %.0f syncs (%.4f per call), %.2f frames per call "
		     "(%.2f to peers),\n          %s%s, stalled %.0f us at "
		     "most\n",
		     o->nodes_n > 1 ? "nodes" : "server", r->syncs,
		     r->syncs_per_op, r->frames_per_op, r->peer_frames_per_op,
		     out_bytes((uint64_t)r->rss_bytes),
		     o->nodes_n > 1 ? " at most" : "", r->loop_stall_max_us);
	(void)printf("  CPU: %.2f us per call, of it", r->server_cpu_us_per_op);
	for (i = 0; i < BENCH_STAGES; i++)
		(void)printf(" %s %.2f%s",
			     bench_stage_name((enum bench_stage)i),
			     r->stage_us_per_op[i],
			     i + 1 < BENCH_STAGES ? "," : "\n");
}

static void human_open_loop(const struct bench_options *o,
			    const struct bench_result *r)
{
	if (o->rate == 0)
		return;
	(void)printf("  open loop: %llu/s wanted, %llu not sent, %.0f us late "
		     "at most\n",
		     (unsigned long long)o->rate, (unsigned long long)r->unsent,
		     r->generator_late_us);
	if (r->is_void)
		(void)printf("  VOID: the generator did not reach the rate\n");
}

static void print_human(const struct bench_options *o,
			const struct bench_result *r)
{
	(void)printf("%s: %u clients, %u in flight each, %u objects, %.1f s\n",
		     bench_work_name(o->work), o->clients, o->pipeline,
		     o->objects, r->elapsed_s);
	if (o->nodes_n > 1)
		(void)printf("  %u nodes, %s; %llu hops\n", o->nodes_n,
			     o->through_one ? "all through the first"
					    : "each call to the owner",
			     (unsigned long long)r->hops);
	(void)printf(
		"  %.0f/s: %llu ok, %llu denied, %llu refused, %llu "
		"unknown, %llu errors\n",
		r->ops_per_s, (unsigned long long)r->ok,
		(unsigned long long)r->denied, (unsigned long long)r->refused,
		(unsigned long long)r->unknown, (unsigned long long)r->errors);
	(void)printf("  latency: half within %.0f us, 99 %% %.0f us, 99.9 %% "
		     "%.0f us, all %.0f us\n",
		     r->p50_us, r->p99_us, r->p999_us, r->max_us);
	human_server(o, r);
	if (o->work == BENCH_IDLE)
		(void)printf("  memory: %.0f bytes per object, %.0f resident\n",
			     r->rss_bytes_per_object, r->objects_resident);
	(void)printf("  client: %.2f us of CPU per call\n",
		     r->client_cpu_us_per_op);
	human_open_loop(o, r);
}

/* A number, or null where the server did not say. */
static void json_number(const char *name, double v, int digits)
{
	if (v < 0 && digits >= 0)
		(void)printf(",\"%s\":null", name);
	else
		(void)printf(",\"%s\":%.*f", name, digits < 0 ? 0 : digits, v);
}

static void json_count(const char *name, uint64_t v)
{
	(void)printf(",\"%s\":%llu", name, (unsigned long long)v);
}

static void json_stages(const struct bench_result *r)
{
	int i;

	(void)printf(",\"stage_us_per_op\":{");
	for (i = 0; i < BENCH_STAGES; i++) {
		(void)printf("%s\"%s\":", i > 0 ? "," : "",
			     bench_stage_name((enum bench_stage)i));
		if (r->stage_us_per_op[i] < 0)
			(void)printf("null");
		else
			(void)printf("%.3f", r->stage_us_per_op[i]);
	}
	(void)printf("}");
}

static void print_json(const struct bench_options *o,
		       const struct bench_result *r)
{
	(void)printf("{\"work\":\"%s\"", bench_work_name(o->work));
	json_count("clients", o->clients);
	json_count("pipeline", o->pipeline);
	json_count("objects", o->objects);
	json_count("rate", o->rate);
	json_count("nodes", o->nodes_n);
	(void)printf(",\"through_one\":%s", o->through_one ? "true" : "false");
	json_count("forwarded", o->forwarded);
	json_number("seconds", r->elapsed_s, 3);
	json_number("ops_per_s", r->ops_per_s, 1);
	json_count("ok", r->ok);
	json_count("denied", r->denied);
	json_count("refused", r->refused);
	json_count("unknown", r->unknown);
	json_count("errors", r->errors);
	json_number("p50_us", r->p50_us, 1);
	json_number("p99_us", r->p99_us, 1);
	json_number("p999_us", r->p999_us, 1);
	json_number("max_us", r->max_us, 1);
	json_number("mean_us", r->mean_us, 1);
	json_number("syncs", r->syncs, 0);
	json_number("syncs_per_op", r->syncs_per_op, 5);
	json_number("server_cpu_us_per_op", r->server_cpu_us_per_op, 3);
	json_number("rss_bytes_per_object", r->rss_bytes_per_object, -1);
	json_number("loop_stall_max_us", r->loop_stall_max_us, 0);
	json_number("rss_bytes", r->rss_bytes, 0);
	json_number("objects_resident", r->objects_resident, 0);
	json_number("frames_per_op", r->frames_per_op, 3);
	json_number("peer_frames_per_op", r->peer_frames_per_op, 3);
	json_stages(r);
	json_number("client_cpu_us_per_op", r->client_cpu_us_per_op, 3);
	json_number("generator_late_us", r->generator_late_us, 0);
	json_count("unsent", r->unsent);
	(void)printf(",\"void\":%s", r->is_void ? "true" : "false");
	json_count("hops", r->hops);
	json_count("acked_total", r->acked_total);
	json_count("unknown_total", r->unknown_total);
	(void)printf("}\n");
}

struct bench_numbers {
	uint64_t clients;
	uint64_t pipeline;
	uint64_t objects;
	uint64_t keys;
	uint64_t value_bytes;
	uint64_t warm_ms;
	uint64_t seconds;
	uint64_t forwarded;
};

/* What is right for a work when nobody says otherwise. */
static void defaults(const struct bench_numbers *n, struct bench_options *o)
{
	bool idle = o->work == BENCH_IDLE;
	bool limits = o->work == BENCH_LIMIT_MEMORY ||
		      o->work == BENCH_LIMIT_LAGGED ||
		      o->work == BENCH_LIMIT_LEASED ||
		      o->work == BENCH_LIMIT_COMMITTED;
	uint32_t objects = idle ? 100000 : limits ? 16 : 1000;

	o->clients = n->clients > 0 ? (uint32_t)n->clients : idle ? 16 : 64;
	o->pipeline = n->pipeline > 0 ? (uint32_t)n->pipeline : idle ? 64 : 1;
	o->objects = n->objects > 0 ? (uint32_t)n->objects : objects;
	o->keys = (uint32_t)n->keys;
	o->value_bytes = (uint32_t)n->value_bytes;
	o->warm_ms = (uint32_t)n->warm_ms;
	o->seconds = (uint32_t)n->seconds;
	o->forwarded = (uint32_t)n->forwarded;
}

/* The prefix as an address has it; random without one, so that runs do not meet
 * each other's objects. To be freed. */
static char *prefix_of(const char *given)
{
	char text[32];
	uint32_t r = 0;

	if (given == NULL) {
		(void)!getrandom(&r, sizeof(r), 0);
		(void)snprintf(text, sizeof(text), "b%08x-", r);
		given = text;
	}
	return cli_address("", given);
}

/* Of the calls that were refused or have an unknown outcome. */
static void say_first(const struct detail *why)
{
	if (why->text[0] == '\0')
		return;
	(void)fputs("holdfast: bench: the first that failed: ", stderr);
	out_text(stderr, why->text, strlen(why->text));
	(void)fputc('\n', stderr);
}

static int bench_go(const struct cli *cli, struct bench_options *o,
		    const char *given_prefix)
{
	struct bench_result r;
	struct detail why = { 0 };
	char *prefix = prefix_of(given_prefix);
	enum rc rc;

	if (prefix == NULL)
		return CLI_INTERNAL;
	o->prefix = prefix + 1; /* Behind the `/' of no class. */
	if (strlen(o->prefix) > BENCH_PREFIX_MAX) {
		free(prefix);
		return cli_usage(cli, "--prefix has at most %u bytes",
				 BENCH_PREFIX_MAX);
	}
	rc = bench_run(o, &r, &why);
	if (rc == RC_OK) {
		if (!cli->json)
			print_human(o, &r);
		print_json(o, &r);
		say_first(&why);
	} else {
		(void)fputs("holdfast: bench: ", stderr);
		out_text(stderr, why.text, strlen(why.text));
		(void)fprintf(stderr, "%s\n",
			      why.text[0] == '\0' ? rc_text(rc) : "");
	}
	free(prefix);
	if (rc == RC_IO)
		return CLI_UNREACHABLE;
	if (rc == RC_NOMEM)
		return CLI_INTERNAL;
	if (rc == RC_UNKNOWN_OUTCOME)
		return CLI_UNKNOWN;
	return rc == RC_OK ? CLI_OK : CLI_REFUSED;
}

static void nodes_of(const struct cli_servers *servers, struct bench_options *o)
{
	const struct profile *f = &servers->profile;

	for (o->nodes_n = 0; o->nodes_n < f->endpoints_n; o->nodes_n++) {
		o->nodes[o->nodes_n].name = f->endpoints[o->nodes_n].name;
		o->nodes[o->nodes_n].rpc = f->endpoints[o->nodes_n].rpc;
	}
	o->ca = f->ca;
	o->cert = f->cert;
	o->key = f->key;
}

static int bench_command(struct cli *cli, int argc, char **argv)
{
	struct bench_numbers n = {
		.keys = 10000, .value_bytes = 128, .warm_ms = 500, .seconds = 5
	};
	struct bench_options o = { 0 };
	const char *prefix = NULL;
	const struct cli_opt opts[] = {
		{ "clients", 0, CLI_NUMBER, &n.clients, 1, BENCH_CLIENTS_MAX,
		  "N", "connections (64)" },
		{ "pipeline", 0, CLI_NUMBER, &n.pipeline, 1, BENCH_PIPELINE_MAX,
		  "N", "calls in flight on each (1)" },
		{ "objects", 0, CLI_NUMBER, &n.objects, 1, BENCH_OBJECTS_MAX,
		  "N", "objects (1000; idle 100000; limit-* 16)" },
		{ "prefix", 0, CLI_TEXT, &prefix, 0, 0, "P",
		  "objects are P0, P1 ... (random)" },
		{ "rate", 0, CLI_NUMBER, &o.rate, 1, 10000000, "R",
		  "open loop: calls a second (closed loop)" },
		{ "seconds", 0, CLI_NUMBER, &n.seconds, 1, 86400, "N",
		  "how long is measured (5)" },
		{ "keys", 0, CLI_NUMBER, &n.keys, 1, 99999999, "N",
		  "limit-*: keys (10000)" },
		{ "value-bytes", 0, CLI_NUMBER, &n.value_bytes, 0, 1048576, "N",
		  "kv-put, kv-get: size of a value (128)" },
		{ "warm-up", 0, CLI_NUMBER, &n.warm_ms, 0, 60000, "MS",
		  "not measured before (500)" },
		{ "keyed", 0, CLI_FLAG, &o.keyed, 0, 0, NULL,
		  "writes carry idempotency keys" },
		{ "through-one", 0, CLI_FLAG, &o.through_one, 0, 0, NULL,
		  "all to the first node, which forwards" },
		{ "forwarded", 0, CLI_NUMBER, &n.forwarded, 0, 100, "N",
		  "N of 100 calls to a node that forwards (0)" },
		CLI_OPT_END,
	};
	static struct cli_servers servers;
	int code = cli_parse(cli, argc, argv, opts, 1, 1);

	if (code != CLI_OK || cli->help)
		return code;
	if (!work_find(cli->args[0], &o.work))
		return cli_usage(cli, "there is no work `%s'", cli->args[0]);
	code = cli_servers(cli, &servers);
	if (code != CLI_OK)
		return code;
	nodes_of(&servers, &o);
	defaults(&n, &o);
	return bench_go(cli, &o, prefix);
}

const struct cli_command cli_bench_command = {
	"bench",
	"Loads a cluster or a server and measures it",
	"bench WORK [--clients N] [--pipeline N] [--objects N] [--seconds N]\n"
	"bench WORK --rate R [--clients N] [--pipeline N] [--forwarded N]\n",
	"Works:\n"
	"  null             ping: the server's least\n"
	"  kv-put           durable writes\n"
	"  kv-incr          durable increments of key `n'\n"
	"  kv-get           linearizable reads\n"
	"  limit-memory, limit-lagged, limit-leased, limit-committed\n"
	"                   checks of rate limiters, nearly all allowed\n"
	"  idle             makes objects and says what memory one takes\n\n"
	"The last line is a JSON object. `ops_per_s' counts calls that were\n"
	"acknowledged; `acked_total' counts warm-up and end as well. Latencies "
	"are\nfrom the (intended) beginning of a call. With --prefix the "
	"objects stay\nto be looked at.\n"
	"With --config each client has a connection to every node and asks the "
	"owner;\n`hops' counts the calls that were sent on because it had "
	"moved. With --rate a\nrun in which more than one call of 100 was not "
	"sent is `void'.\n",
	bench_command,
};
