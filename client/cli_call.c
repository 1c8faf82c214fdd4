/*
 * Calls: `call` for every class, `kv` and `limit` for the two that are built
 * in.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"
#include "client/proto/json.h"

/* What a call may say besides its arguments. */
struct call_options {
	const char *idem;
	uint64_t idem_ms;
	uint64_t deadline_ms;
	const char *durability;
	const char *trace;
	bool meta;
	bool redirect;
	bool once;
};

#define CALL_OPTIONS(o)                                                            \
	{ "idem", 0, CLI_TEXT, &(o).idem,                                          \
	  0,      0, "KEY",    "idempotency key: takes effect at most once" },     \
		{ "idem-ms",  0,                                                   \
		  CLI_NUMBER, &(o).idem_ms,                                        \
		  1000,       604800000,                                           \
		  "MS",       "how long the key is remembered (600000)" },         \
		{ "deadline", 0,     CLI_NUMBER, &(o).deadline_ms,                 \
		  1,          60000, "MS",       "give up after so long (5000)" }, \
		{ "durability",                                                    \
		  0,                                                               \
		  CLI_TEXT,                                                        \
		  &(o).durability,                                                 \
		  0,                                                               \
		  0,                                                               \
		  "D",                                                             \
		  "memory, lagged or committed" },                                 \
		{ "meta", 0, CLI_FLAG, &(o).meta,                                  \
		  0,      0, NULL,     "show owner, shard, term and index" },      \
		{ "once", 0, CLI_FLAG, &(o).once,                                  \
		  0,      0, NULL,     "never send it a second time" },            \
		{ "redirect", 0,                                                   \
		  CLI_FLAG,   &(o).redirect,                                       \
		  0,          0,                                                   \
		  NULL,       "do not forward: say who owns the object" },         \
	{                                                                          \
		"trace", 0, CLI_TEXT, &(o).trace, 0, 0, "T", "W3C traceparent"     \
	}

static int durability_read(const struct cli *cli, const char *name,
			   enum holdfast_durability *out)
{
	static const char *const names[] = { "", "memory", "lagged",
					     "committed" };
	int i;

	*out = HOLDFAST_DURABILITY_CLASS;
	for (i = 1; name != NULL && i <= HOLDFAST_DURABILITY_COMMITTED; i++)
		if (strcmp(name, names[i]) == 0)
			*out = (enum holdfast_durability)i;
	if (name != NULL && *out == HOLDFAST_DURABILITY_CLASS)
		return cli_usage(cli, "--durability is memory, lagged or "
				      "committed");
	return CLI_OK;
}

static int request_read(const struct cli *cli, const struct call_options *o,
			struct holdfast_request *r)
{
	r->deadline_ms = (uint32_t)o->deadline_ms;
	r->idem_ms = o->idem_ms;
	r->trace = o->trace;
	if (o->idem != NULL) {
		r->idem = o->idem;
		r->idem_bytes = strlen(o->idem);
		if (r->idem_bytes < 1 || r->idem_bytes > 64)
			return cli_usage(cli, "--idem has 1 to 64 bytes");
	}
	if (o->meta)
		r->flags |= HOLDFAST_META;
	if (o->redirect)
		r->flags |= HOLDFAST_REDIRECT;
	if (o->once)
		r->flags |= HOLDFAST_ONCE;
	return durability_read(cli, o->durability, &r->durability);
}

static void meta_json(struct pack_w *w, const struct holdfast_answer *a)
{
	pack_map(w, 2);
	pack_cstr(w, "value");
	pack_raw(w, a->value, a->value_bytes);
	pack_cstr(w, "meta");
	pack_map(w, 4);
	pack_cstr(w, "owner");
	pack_cstr(w, a->owner);
	pack_cstr(w, "shard");
	pack_u64(w, a->shard);
	pack_cstr(w, "term");
	pack_u64(w, a->term);
	pack_cstr(w, "index");
	pack_u64(w, a->index);
}

static void show_meta(const struct cli *cli, const struct holdfast_answer *a)
{
	struct pack_bytes v;
	struct pack_w w;

	if (!cli->json) {
		(void)fputs("owner ", stdout);
		out_text(stdout, a->owner, strlen(a->owner));
		(void)printf(", shard %u, term %llu, index %llu\n", a->shard,
			     (unsigned long long)a->term,
			     (unsigned long long)a->index);
		return;
	}
	pack_w_init(&w, 8u << 20);
	meta_json(&w, a);
	v.p = w.p;
	v.n = w.n;
	if (w.rc == RC_OK)
		out_json(stdout, v);
	pack_w_release(&w);
}

/* How a result is shown, when not as JSON. */
typedef void (*show_fn)(const struct holdfast_answer *a);

static void show_map(const struct holdfast_answer *a)
{
	out_human(stdout, answer_value_of(a));
}

static int call_run(struct cli *cli, const struct call_options *o,
		    const char *address, const char *method,
		    const struct pack_w *args, show_fn show)
{
	struct holdfast_request r = HOLDFAST_CALL(address, method);
	const struct holdfast_answer *a;
	char what[256];
	int code = request_read(cli, o, &r);

	if (code != CLI_OK)
		return code;
	if (args->rc != RC_OK)
		return cli_usage(cli, "the arguments have more than %zu bytes",
				 args->max);
	r.raw = args->p;
	r.raw_bytes = args->n;
	(void)snprintf(what, sizeof(what), "%.160s %.64s", address, method);
	code = cli_call(cli, &r, what, &a);
	if (code != CLI_OK)
		return code;
	if (o->meta && cli->json) {
		show_meta(cli, a);
		return CLI_OK;
	}
	if (cli->json)
		out_json(stdout, answer_value_of(a));
	else
		show(a);
	if (o->meta)
		show_meta(cli, a);
	return CLI_OK;
}

/* ------------------------------------------------------------------ call ---
 */

static int call_command(struct cli *cli, int argc, char **argv)
{
	struct call_options o = { 0 };
	const struct cli_opt opts[] = { CALL_OPTIONS(o), CLI_OPT_END };
	struct pack_w args;
	int code = cli_parse(cli, argc, argv, opts, 2, CLI_ARGS_MAX);

	if (code != CLI_OK || cli->help)
		return code;
	pack_w_init(&args, 2u << 20);
	code = cli_args_map(cli, cli->args + 2, cli->args_n - 2, &args);
	if (code == CLI_OK)
		code = call_run(cli, &o, cli->args[0], cli->args[1], &args,
				show_map);
	pack_w_release(&args);
	return code;
}

const struct cli_command cli_call_command = {
	"call",
	"Calls a method of an object",
	"call ADDRESS METHOD [key=text|key:=JSON|key=@FILE]...\n"
	"call ADDRESS METHOD '{JSON}'\n",
	"ADDRESS is class/name, class/~id or tenant/env/class/name; in a name\n"
	"`/', `%' and a leading `~' are written %2F, %25 and %7E.\n"
	"Arguments: key=text is a string, key:=JSON any value, key=@FILE the "
	"bytes\nof a file (- is stdin), key==text a string that may begin with "
	"`@'.\n\n"
	"  holdfast call kv/cart incr key=apples by:=3\n"
	"  holdfast call rate_limiter/login check key=alice --idem 7f3a\n",
	call_command,
};

/* -------------------------------------------------------------------- kv ---
 */

struct kv_options {
	struct call_options call;
	uint64_t ttl_ms;
	uint64_t if_rev;
	uint64_t limit;
	const char *file;
	const char *start;
	const char *end;
	const char *cursor;
	bool raw;
	bool reverse;
	bool absent;
	bool all;
};

#define NO_REV UINT64_MAX

static void put_str(struct pack_w *w, uint32_t *n, const char *key,
		    const char *text)
{
	if (text == NULL)
		return;
	pack_cstr(w, key);
	pack_cstr(w, text);
	++*n;
}

static void put_u64(struct pack_w *w, uint32_t *n, const char *key, uint64_t v,
		    uint64_t none)
{
	if (v == none)
		return;
	pack_cstr(w, key);
	pack_u64(w, v);
	++*n;
}

static void put_true(struct pack_w *w, uint32_t *n, const char *key, bool v)
{
	if (!v)
		return;
	pack_cstr(w, key);
	pack_bool(w, true);
	++*n;
}

/* The pairs of `body` as a map. */
static int args_run(struct cli *cli, const struct call_options *o,
		    const char *class_name, const char *name,
		    const char *method, struct pack_w *body, uint32_t pairs,
		    show_fn show)
{
	char *address = cli_address(class_name, name);
	struct pack_w args;
	int code = CLI_INTERNAL;

	pack_w_init(&args, 2u << 20);
	pack_map(&args, pairs);
	if (body->rc == RC_OK)
		pack_raw(&args, body->p, body->n);
	else
		args.rc = body->rc;
	if (address != NULL)
		code = call_run(cli, o, address, method, &args, show);
	free(address);
	pack_w_release(&args);
	return code;
}

static bool value_of(const struct holdfast_answer *a, struct pack_bytes *v)
{
	return out_find(answer_value_of(a), "value", v);
}

static void show_value(const struct holdfast_answer *a)
{
	struct pack_bytes v;

	if (value_of(a, &v)) {
		out_value(stdout, v);
		(void)fputc('\n', stdout);
	} else {
		show_map(a);
	}
}

static void show_raw(const struct holdfast_answer *a)
{
	const void *p;
	size_t n;

	if (holdfast_get_bytes(a, "value", &p, &n) == HOLDFAST_OK)
		(void)fwrite(p, 1, n, stdout);
	else
		show_value(a);
}

static void show_items(const struct holdfast_answer *a)
{
	struct pack_bytes items;
	struct pack_bytes item;
	struct pack_bytes key;
	struct pack_bytes value;
	struct pack_r r;
	uint32_t n;

	if (!out_find(answer_value_of(a), "items", &items)) {
		show_map(a);
		return;
	}
	r = pack_reader(items.p, items.n);
	if (pack_get_array(&r, &n) != RC_OK)
		return;
	for (; n > 0 && pack_skip(&r, &item) == RC_OK; n--) {
		if (!out_find(item, "key", &key) ||
		    !out_find(item, "value", &value))
			continue;
		out_value(stdout, key);
		(void)fputc('\t', stdout);
		out_value(stdout, value);
		(void)fputc('\n', stdout);
	}
	if (out_find_text(answer_value_of(a), "cursor", &key)) {
		(void)fputs("holdfast: there is more: --cursor ", stderr);
		out_hex(stderr, key.p, key.n);
		(void)fputs(" (or --all)\n", stderr);
	}
}

static int kv_value(struct cli *cli, const struct kv_options *o,
		    const char *text, struct pack_w *w)
{
	uint8_t *p;
	size_t n;
	int code;

	pack_cstr(w, "value");
	if (o->file == NULL) {
		pack_cstr(w, text);
		return CLI_OK;
	}
	code = cli_read_file(cli, o->file, &p, &n);
	if (code == CLI_OK)
		pack_bin(w, p, n);
	free(p);
	return code;
}

static int kv_put(struct cli *cli, const struct kv_options *o, struct pack_w *w)
{
	uint32_t n = 2;
	int code;

	if (cli->args_n != (o->file != NULL ? 3 : 4))
		return cli_usage(cli, "kv put NAME KEY VALUE, or --file PATH "
				      "instead of VALUE");
	pack_cstr(w, "key");
	pack_cstr(w, cli->args[2]);
	code = kv_value(cli, o, cli->args[3], w);
	if (code != CLI_OK)
		return code;
	put_u64(w, &n, "ttl_ms", o->ttl_ms, 0);
	put_u64(w, &n, "if_rev", o->if_rev, NO_REV);
	return args_run(cli, &o->call, "kv", cli->args[1], "put", w, n,
			show_map);
}

static int kv_incr(struct cli *cli, const struct kv_options *o,
		   struct pack_w *w)
{
	uint32_t n = 1;
	char *end;
	long long by;

	pack_cstr(w, "key");
	pack_cstr(w, cli->args[2]);
	if (cli->args_n == 4) {
		errno = 0;
		by = strtoll(cli->args[3], &end, 10);
		if (end == cli->args[3] || *end != '\0' || errno != 0)
			return cli_usage(cli, "BY is an integer of 64 bits");
		pack_cstr(w, "by");
		pack_i64(w, by);
		n++;
	}
	return args_run(cli, &o->call, "kv", cli->args[1], "incr", w, n,
			show_value);
}

static int kv_cas(struct cli *cli, const struct kv_options *o, struct pack_w *w)
{
	int at = o->absent ? 3 : 4;
	int code;

	if (cli->args_n != at + (o->file != NULL ? 0 : 1))
		return cli_usage(cli, "kv cas NAME KEY EXPECT VALUE, or "
				      "--absent instead of EXPECT");
	pack_cstr(w, "key");
	pack_cstr(w, cli->args[2]);
	pack_cstr(w, "expect");
	if (o->absent)
		pack_nil(w);
	else
		pack_cstr(w, cli->args[3]);
	code = kv_value(cli, o, cli->args[at], w);
	if (code != CLI_OK)
		return code;
	return args_run(cli, &o->call, "kv", cli->args[1], "cas", w, 3,
			show_map);
}

static int kv_list_page(struct cli *cli, const struct kv_options *o,
			const uint8_t *cursor, size_t cursor_bytes,
			show_fn show)
{
	struct pack_w w;
	uint32_t n = 0;
	int code;

	pack_w_init(&w, 2u << 20);
	put_str(&w, &n, "prefix", cli->args_n == 3 ? cli->args[2] : NULL);
	put_str(&w, &n, "start", o->start);
	put_str(&w, &n, "end", o->end);
	put_u64(&w, &n, "limit", o->limit, 0);
	put_true(&w, &n, "reverse", o->reverse);
	if (cursor != NULL) {
		pack_cstr(&w, "cursor");
		pack_bin(&w, cursor, cursor_bytes);
		n++;
	}
	code = args_run(cli, &o->call, "kv", cli->args[1], "list", &w, n, show);
	pack_w_release(&w);
	return code;
}

/* Where the next page of the page that was just shown begins. */
static uint8_t *list_next;
static size_t list_next_bytes;

static void show_page(const struct holdfast_answer *a)
{
	struct holdfast_answer page = *a;
	struct pack_bytes cursor;
	struct pack_bytes items;
	struct pack_w w;

	free(list_next);
	list_next = NULL;
	if (out_find_text(answer_value_of(a), "cursor", &cursor)) {
		list_next = malloc(cursor.n + 1);
		if (list_next != NULL)
			memcpy(list_next, cursor.p, cursor.n);
		list_next_bytes = cursor.n;
	}
	/* The items alone: the cursor is used here. */
	pack_w_init(&w, 8u << 20);
	if (out_find(answer_value_of(a), "items", &items)) {
		pack_map(&w, 1);
		pack_cstr(&w, "items");
		pack_raw(&w, items.p, items.n);
		page.value = w.p;
		page.value_bytes = w.n;
	}
	show_items(&page);
	pack_w_release(&w);
}

static int kv_list(struct cli *cli, const struct kv_options *o)
{
	uint8_t *cursor = NULL;
	size_t n = 0;
	int code;

	if (o->cursor != NULL) {
		cursor = cli_unhex(o->cursor, &n);
		if (cursor == NULL)
			return cli_usage(cli, "--cursor is what the last page "
					      "named");
	}
	if (o->all && cli->json) {
		free(cursor);
		return cli_usage(cli, "--all and --json: take `cursor' of each "
				      "page");
	}
	code = kv_list_page(cli, o, cursor, n, o->all ? show_page : show_items);
	free(cursor);
	while (o->all && code == CLI_OK && list_next != NULL) {
		cursor = list_next;
		n = list_next_bytes;
		list_next = NULL;
		code = kv_list_page(cli, o, cursor, n, show_page);
		free(cursor);
	}
	free(list_next);
	list_next = NULL;
	return code;
}

static int kv_keyed(struct cli *cli, const struct kv_options *o,
		    struct pack_w *w)
{
	const char *verb = cli->args[0];
	uint32_t n = 1;

	if (strcmp(verb, "put") == 0)
		return kv_put(cli, o, w);
	if (strcmp(verb, "cas") == 0)
		return kv_cas(cli, o, w);
	if (strcmp(verb, "incr") == 0 && cli->args_n <= 4)
		return kv_incr(cli, o, w);
	pack_cstr(w, "key");
	pack_cstr(w, cli->args[2]);
	if (strcmp(verb, "get") == 0 && cli->args_n == 3)
		return args_run(cli, &o->call, "kv", cli->args[1], "get", w, n,
				o->raw ? show_raw : show_value);
	if (strcmp(verb, "delete") == 0 && cli->args_n == 3) {
		put_u64(w, &n, "if_rev", o->if_rev, NO_REV);
		return args_run(cli, &o->call, "kv", cli->args[1], "delete", w,
				n, show_map);
	}
	return cli_usage(cli, "kv %s: no such command, or too many arguments",
			 verb);
}

static int kv_dispatch(struct cli *cli, const struct kv_options *o)
{
	const char *verb = cli->args[0];
	struct pack_w w;
	int code;

	if (strcmp(verb, "list") == 0)
		return cli->args_n <= 3 ? kv_list(cli, o)
					: cli_usage(cli, "kv list NAME "
							 "[PREFIX]");
	pack_w_init(&w, 2u << 20);
	if (strcmp(verb, "destroy") == 0 && cli->args_n == 2)
		code = args_run(cli, &o->call, "kv", cli->args[1], "destroy",
				&w, 0, show_map);
	else if (cli->args_n < 3)
		code = cli_usage(cli, "kv %s NAME KEY ...", verb);
	else
		code = kv_keyed(cli, o, &w);
	pack_w_release(&w);
	return code;
}

static int kv_command(struct cli *cli, int argc, char **argv)
{
	struct kv_options o = { .if_rev = NO_REV };
	const struct cli_opt opts[] = {
		{ "ttl", 0, CLI_NUMBER, &o.ttl_ms, 1, 31536000000, "MS",
		  "put: the key expires after so long" },
		{ "if-rev", 0, CLI_NUMBER, &o.if_rev, 0, INT64_MAX, "N",
		  "put, delete: only at this revision; 0: absent" },
		{ "file", 0, CLI_TEXT, &o.file, 0, 0, "PATH",
		  "put, cas: the value is this file's bytes" },
		{ "absent", 0, CLI_FLAG, &o.absent, 0, 0, NULL,
		  "cas: the key must not exist" },
		{ "raw", 0, CLI_FLAG, &o.raw, 0, 0, NULL,
		  "get: the bytes alone, not escaped" },
		{ "start", 0, CLI_TEXT, &o.start, 0, 0, "KEY",
		  "list: from this key on" },
		{ "end", 0, CLI_TEXT, &o.end, 0, 0, "KEY",
		  "list: up to, without, this key" },
		{ "limit", 0, CLI_NUMBER, &o.limit, 1, 1000, "N",
		  "list: so many of a page (100)" },
		{ "reverse", 0, CLI_FLAG, &o.reverse, 0, 0, NULL,
		  "list: from the end" },
		{ "cursor", 0, CLI_TEXT, &o.cursor, 0, 0, "C",
		  "list: the page behind" },
		{ "all", 0, CLI_FLAG, &o.all, 0, 0, NULL, "list: all pages" },
		CALL_OPTIONS(o.call),
		CLI_OPT_END,
	};
	int code = cli_parse(cli, argc, argv, opts, 2, 5);

	if (code != CLI_OK || cli->help)
		return code;
	return kv_dispatch(cli, &o);
}

const struct cli_command cli_kv_command = {
	"kv",
	"Reads and writes a key-value object",
	"kv get NAME KEY [--raw]\n"
	"kv put NAME KEY VALUE [--ttl MS] [--if-rev N]\n"
	"kv put NAME KEY --file PATH\n"
	"kv delete NAME KEY [--if-rev N]\n"
	"kv incr NAME KEY [BY]\n"
	"kv cas NAME KEY EXPECT VALUE\n"
	"kv cas NAME KEY --absent VALUE\n"
	"kv list NAME [PREFIX] [--all]\n"
	"kv destroy NAME\n",
	"NAME is the object's name as it is: kv/NAME, escaped where needed.\n"
	"`get' and `incr' print the value alone; --json prints all.\n\n"
	"  holdfast kv put cart apples 3\n"
	"  holdfast kv incr cart pears 2\n"
	"  holdfast kv list cart\n",
	kv_command,
};

/* ----------------------------------------------------------------- limit ---
 */

struct limit_options {
	struct call_options call;
	const char *policy;
	uint64_t burst;
	uint64_t cost;
	uint64_t if_rev;
	bool dry_run;
};

static void show_check(const struct holdfast_answer *a)
{
	int64_t v;
	int allowed;

	if (holdfast_get_bool(a, "allowed", &allowed) != HOLDFAST_OK) {
		show_map(a);
		return;
	}
	(void)fputs(allowed != 0 ? "allowed" : "denied", stdout);
	if (holdfast_get_int(a, "remaining", &v) == HOLDFAST_OK)
		(void)printf(", %lld left", (long long)v);
	if (holdfast_get_int(a, "limit", &v) == HOLDFAST_OK)
		(void)printf(" of %lld", (long long)v);
	if (allowed == 0 &&
	    holdfast_get_int(a, "retry_after_ms", &v) == HOLDFAST_OK)
		(void)printf(", retry after %s", out_duration_ms((uint64_t)v));
	else if (holdfast_get_int(a, "reset_after_ms", &v) == HOLDFAST_OK)
		(void)printf(", full again in %s",
			     out_duration_ms((uint64_t)v));
	(void)fputc('\n', stdout);
}

static bool number_read(const char *text, uint64_t *v)
{
	char *end;

	errno = 0;
	*v = strtoull(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
}

static int limit_put_policy(struct cli *cli, const struct limit_options *o,
			    struct pack_w *w)
{
	struct call_options call = o->call;
	uint64_t limit;
	uint64_t period_ms;
	uint32_t n = 2;

	if (cli->args_n != 4 || !number_read(cli->args[2], &limit) ||
	    !number_read(cli->args[3], &period_ms))
		return cli_usage(cli, "limit put-policy NAME LIMIT PERIOD_MS");
	pack_cstr(w, "limit");
	pack_u64(w, limit);
	pack_cstr(w, "period_ms");
	pack_u64(w, period_ms);
	put_u64(w, &n, "burst", o->burst, 0);
	put_str(w, &n, "durability", o->call.durability);
	put_u64(w, &n, "if_rev", o->if_rev, NO_REV);
	put_str(w, &n, "name", o->policy);
	/* Here it is the policy's, not that of this call. */
	call.durability = NULL;
	return args_run(cli, &call, "rate_limiter", cli->args[1], "put_policy",
			w, n, show_map);
}

static int limit_check(struct cli *cli, const struct limit_options *o,
		       struct pack_w *w)
{
	uint32_t n = 1;

	pack_cstr(w, "key");
	pack_cstr(w, cli->args[2]);
	put_u64(w, &n, "cost", o->cost, UINT64_MAX);
	put_true(w, &n, "dry_run", o->dry_run);
	put_str(w, &n, "policy", o->policy);
	return args_run(cli, &o->call, "rate_limiter", cli->args[1], "check", w,
			n, show_check);
}

static int limit_keyed(struct cli *cli, const struct limit_options *o,
		       struct pack_w *w, const char *method, show_fn show)
{
	uint32_t n = 1;

	pack_cstr(w, "key");
	pack_cstr(w, cli->args[2]);
	put_str(w, &n, "policy", o->policy);
	return args_run(cli, &o->call, "rate_limiter", cli->args[1], method, w,
			n, show);
}

static int limit_dispatch(struct cli *cli, const struct limit_options *o,
			  struct pack_w *w)
{
	const char *verb = cli->args[0];

	if (strcmp(verb, "put-policy") == 0)
		return limit_put_policy(cli, o, w);
	if ((strcmp(verb, "describe") == 0 || strcmp(verb, "destroy") == 0) &&
	    cli->args_n == 2)
		return args_run(cli, &o->call, "rate_limiter", cli->args[1],
				verb, w, 0, show_map);
	if (cli->args_n != 3)
		return cli_usage(cli, "limit %s: see the help", verb);
	if (strcmp(verb, "check") == 0)
		return limit_check(cli, o, w);
	if (strcmp(verb, "peek") == 0)
		return limit_keyed(cli, o, w, "peek", show_check);
	if (strcmp(verb, "reset") == 0)
		return limit_keyed(cli, o, w, "reset", show_map);
	return cli_usage(cli, "limit %s: no such command", verb);
}

static int limit_command(struct cli *cli, int argc, char **argv)
{
	struct limit_options o = { .if_rev = NO_REV, .cost = UINT64_MAX };
	const struct cli_opt opts[] = {
		{ "policy", 0, CLI_TEXT, &o.policy, 0, 0, "P",
		  "one policy of several (default)" },
		{ "burst", 0, CLI_NUMBER, &o.burst, 1, 1000000000, "N",
		  "put-policy: permits at once (LIMIT)" },
		{ "if-rev", 0, CLI_NUMBER, &o.if_rev, 0, INT64_MAX, "N",
		  "put-policy: only at this revision" },
		{ "cost", 0, CLI_NUMBER, &o.cost, 0, 1000000000, "N",
		  "check: permits to take (1)" },
		{ "dry-run", 0, CLI_FLAG, &o.dry_run, 0, 0, NULL,
		  "check: take none" },
		CALL_OPTIONS(o.call),
		CLI_OPT_END,
	};
	int code = cli_parse(cli, argc, argv, opts, 2, 4);
	struct pack_w w;

	if (code != CLI_OK || cli->help)
		return code;
	pack_w_init(&w, 65536);
	code = limit_dispatch(cli, &o, &w);
	pack_w_release(&w);
	return code;
}

const struct cli_command cli_limit_command = {
	"limit",
	"Sets and asks a rate limiter",
	"limit put-policy NAME LIMIT PERIOD_MS [--burst N] [--policy P]\n"
	"limit put-policy NAME LIMIT PERIOD_MS --durability D\n"
	"limit check NAME KEY [--cost N] [--dry-run]\n"
	"limit peek NAME KEY\n"
	"limit reset NAME KEY\n"
	"limit describe NAME\n"
	"limit destroy NAME\n",
	"NAME is the object's name: rate_limiter/NAME. A check that is denied "
	"exits\nwith 0: the answer was given. --durability of put-policy is "
	"what a check of\nthat policy waits for: leased too.\n\n"
	"  holdfast limit put-policy login 5 60000\n"
	"  holdfast limit check login alice\n",
	limit_command,
};
