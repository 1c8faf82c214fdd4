/*
 * The server itself: `status`, `metrics`, `objects`, `ping`; and what the
 * daemon does offline: `log`, `init`.
 */
#include <errno.h>
#include <limits.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "client/cli.h"
#include "client/hdr.h"

/* ---------------------------------------------------------------- status ---
 */

static void line_number(struct pack_bytes map, const char *key,
			const char *label)
{
	uint64_t v;

	if (out_find_u64(map, key, &v))
		(void)printf("%-12s %llu\n", label, (unsigned long long)v);
}

static void line_bytes(struct pack_bytes map, const char *key,
		       const char *label)
{
	uint64_t v;

	if (out_find_u64(map, key, &v))
		(void)printf("%-12s %s\n", label, out_bytes(v));
}

static void line_text(struct pack_bytes map, const char *key, const char *label)
{
	struct pack_bytes v;

	if (!out_find(map, key, &v))
		return;
	(void)printf("%-12s ", label);
	out_value(stdout, v);
	(void)fputc('\n', stdout);
}

static void cell(struct pack_bytes row, const char *key, int width)
{
	uint64_t v;

	if (out_find_u64(row, key, &v))
		(void)printf("%*llu", width, (unsigned long long)v);
	else
		(void)printf("%*s", width, "-");
}

static void show_shards(struct pack_bytes status)
{
	static const char *const keys[] = { "shard",        "leader",
					    "term",         "last_index",
					    "commit_index", "applied_index",
					    "resident",     "waiting" };
	static const char *const heads[] = { "shard",   "owner",  "term",
					     "last",    "commit", "applied",
					     "objects", "waiting" };
	struct pack_bytes shards;
	struct pack_bytes row;
	struct pack_r r;
	uint32_t n;
	size_t i;

	if (!out_find(status, "shards", &shards))
		return;
	r = pack_reader(shards.p, shards.n);
	if (pack_get_array(&r, &n) != RC_OK || n == 0)
		return;
	(void)fputc('\n', stdout);
	for (i = 0; i < sizeof(heads) / sizeof(heads[0]); i++)
		(void)printf("%*s", i < 2 ? 7 : 10, heads[i]);
	(void)fputc('\n', stdout);
	for (; n > 0 && pack_skip(&r, &row) == RC_OK; n--) {
		for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
			cell(row, keys[i], i < 2 ? 7 : 10);
		(void)fputc('\n', stdout);
	}
}

static void show_log(struct pack_bytes status)
{
	struct pack_bytes log;
	uint64_t live;
	uint64_t max;
	uint64_t mean;
	uint64_t worst;

	if (!out_find(status, "log", &log))
		return;
	if (out_find_u64(log, "live_bytes", &live) &&
	    out_find_u64(log, "bytes_max", &max))
		(void)printf("%-12s %s of %s in use\n", "log", out_bytes(live),
			     out_bytes(max));
	if (out_find_u64(log, "sync_us_mean", &mean) &&
	    out_find_u64(log, "sync_us_max", &worst))
		(void)printf("%-12s %llu us, at most %llu us\n", "sync takes",
			     (unsigned long long)mean,
			     (unsigned long long)worst);
}

static void show_status(struct pack_bytes s)
{
	uint64_t v;
	uint64_t n;

	line_text(s, "node", "node");
	line_text(s, "cluster", "cluster");
	line_text(s, "version", "version");
	line_number(s, "pid", "process");
	if (out_find_u64(s, "up_ms", &v))
		(void)printf("%-12s %s\n", "up", out_duration_ms(v));
	if (out_find_u64(s, "cpu_us", &v))
		(void)printf("%-12s %s\n", "cpu", out_duration_ms(v / 1000));
	line_bytes(s, "rss_bytes", "memory");
	line_number(s, "connections", "connections");
	line_number(s, "calls_open", "calls");
	if (out_find_u64(s, "objects_resident", &n) &&
	    out_find_u64(s, "objects_resident_bytes", &v))
		(void)printf("%-12s %llu in memory, %s\n", "objects",
			     (unsigned long long)n, out_bytes(v));
	line_number(s, "syncs", "syncs");
	show_log(s);
	if (out_find_u64(s, "loop_stall_max_us", &v))
		(void)printf("%-12s %llu us at most\n", "loop turn",
			     (unsigned long long)v);
	show_shards(s);
}

static int simple_rpc(struct cli *cli, const char *method,
		      const struct holdfast_answer **a)
{
	struct holdfast_request r = HOLDFAST_RPC(method);

	return cli_call(cli, &r, method, a);
}

static int status_command(struct cli *cli, int argc, char **argv)
{
	const struct holdfast_answer *a = NULL;
	int code = cli_parse(cli, argc, argv, NULL, 0, 0);

	if (code != CLI_OK || cli->help)
		return code;
	code = simple_rpc(cli, "status", &a);
	if (code != CLI_OK)
		return code;
	if (cli->json)
		out_json(stdout, answer_value_of(a));
	else
		show_status(answer_value_of(a));
	return CLI_OK;
}

const struct cli_command cli_status_command = {
	"status",       "Shows the node, its shards and what it uses",
	"status\n",     "",
	status_command,
};

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

/* ------------------------------------------------------- offline: holdfastd
 * --- */

/* The daemon knows the data directory. It lies beside this program, or in sbin
 * or libexec of the same prefix. */
static bool daemon_find(const struct cli *cli, char *path, size_t path_bytes)
{
	static const char *const places[] = { "holdfastd", "../sbin/holdfastd",
					      "../libexec/holdfast/holdfastd" };
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;
	size_t i;

	if (n <= 0)
		n = snprintf(self, sizeof(self), "%s", cli->program);
	if (n >= (ssize_t)sizeof(self))
		return false;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (slash == NULL)
		return false;
	*slash = '\0';
	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		(void)snprintf(path, path_bytes, "%s/%s", self, places[i]);
		if (access(path, X_OK) == 0)
			return true;
	}
	(void)fprintf(stderr, "holdfast: there is no holdfastd beside %s/%s\n",
		      self, slash + 1);
	return false;
}

/* What the daemon's exit code (sysexits.h) is among ours. */
static int daemon_code(int status)
{
	if (!WIFEXITED(status))
		return CLI_INTERNAL;
	switch (WEXITSTATUS(status)) {
	case EX_OK:
		return CLI_OK;
	case EX_USAGE:
	case EX_CONFIG:
		return CLI_USAGE;
	case EX_DATAERR:
	case EX_TEMPFAIL:
		return CLI_REFUSED;
	default:
		return CLI_INTERNAL;
	}
}

static int run_daemon(const struct cli *cli, const char *option,
		      const char *dir)
{
	char path[PATH_MAX + 64];
	char *words[] = { path, strdup(option), strdup(dir), NULL };
	int code = CLI_INTERNAL;
	int status = 0;
	pid_t pid = -1;

	(void)fflush(stdout);
	if (words[1] != NULL && words[2] != NULL &&
	    daemon_find(cli, path, sizeof(path)) &&
	    posix_spawn(&pid, path, NULL, NULL, words, environ) == 0) {
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		code = daemon_code(status);
	}
	free(words[1]);
	free(words[2]);
	return code;
}

static int log_command(struct cli *cli, int argc, char **argv)
{
	int code = cli_parse(cli, argc, argv, NULL, 2, 2);

	if (code != CLI_OK || cli->help)
		return code;
	if (strcmp(cli->args[0], "verify") == 0)
		return run_daemon(cli, "--log-verify", cli->args[1]);
	if (strcmp(cli->args[0], "dump") == 0)
		return run_daemon(cli, "--log-dump", cli->args[1]);
	return cli_usage(cli, "log verify DIR, or log dump DIR");
}

const struct cli_command cli_log_command = {
	"log",
	"Checks or prints the log of a stopped node",
	"log verify DIR\n"
	"log dump DIR\n",
	"DIR is the node's data directory. No server is asked.\n",
	log_command,
};

static int init_command(struct cli *cli, int argc, char **argv)
{
	uint64_t nodes = 1;
	const struct cli_opt opts[] = {
		{ "nodes", 0, CLI_NUMBER, &nodes, 1, 1, "N",
		  "members of the cluster (1)" },
		CLI_OPT_END,
	};
	int code = cli_parse(cli, argc, argv, opts, 1, 1);

	if (code != CLI_OK || cli->help)
		return code;
	return run_daemon(cli, "--format", cli->args[0]);
}

const struct cli_command cli_init_command = {
	"init",
	"Makes the data directory of a new node",
	"init DIR [--nodes 1]\n",
	"",
	init_command,
};
