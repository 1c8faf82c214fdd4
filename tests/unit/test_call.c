/*
 * Calls against a whole core in the seeded world. Most of this is one table:
 * for every method and every argument and option of method.tbl each way in
 * which it can be wrong, and for every method each set of rights.
 */
#include "client/proto/method.h"
#include "objects/directory_class.h"
#include "raft-glue/placement.h"
#include "tests/lib/core_rig.h"

/* ---- the table of mistakes ---- */

struct bad {
	const char *what;
	struct pack_w bytes; /* The value in place of a good one. */
};

#define BAD_MAX 40u
static struct bad bads[BAD_MAX];
static size_t bads_n;
static uint8_t filler[VALUE_BYTES_MAX + 4096];

static struct pack_w *bad(const char *what)
{
	struct bad *b = &bads[bads_n++];

	CHECK(bads_n <= BAD_MAX);
	b->what = what;
	pack_w_init(&b->bytes, 64u << 20);
	return &b->bytes;
}

static void bads_clear(void)
{
	while (bads_n > 0)
		pack_w_release(&bads[--bads_n].bytes);
}

static bool takes_ints(enum method_type t)
{
	return t == METHOD_UINT || t == METHOD_INT || t == METHOD_VALUE ||
	       t == METHOD_VALUE_NIL;
}

static bool takes_strs(enum method_type t)
{
	return t == METHOD_STR || t == METHOD_BYTES || t == METHOD_ENUM ||
	       t == METHOD_VALUE || t == METHOD_VALUE_NIL;
}

static bool takes_bins(enum method_type t)
{
	return t == METHOD_BYTES || t == METHOD_VALUE || t == METHOD_VALUE_NIL;
}

static void bad_types(const struct method_arg *a)
{
	static const uint8_t ext[] = { 0xd4, 5, 0 };

	if (a->type != METHOD_VALUE_NIL)
		pack_nil(bad("nil"));
	if (a->type != METHOD_BOOL)
		pack_bool(bad("a boolean"), true);
	if (!takes_ints(a->type))
		pack_u64(bad("an integer"), 1);
	if (!takes_strs(a->type))
		pack_cstr(bad("a str"), "text");
	if (!takes_bins(a->type))
		pack_bin(bad("a bin"), "text", 4);
	pack_double(bad("a float"), 1.0);
	if (a->type != METHOD_ARRAY)
		pack_array(bad("an array"), 0);
	if (a->type != METHOD_MAP)
		pack_map(bad("a map"), 0);
	pack_raw(bad("an ext"), ext, sizeof(ext));
}

static void bad_int(const struct method_arg *a)
{
	if (a->type == METHOD_UINT) {
		pack_i64(bad("a negative number"), -1);
		pack_i64(bad("the least number"), INT64_MIN);
		if (a->max < INT64_MAX)
			pack_u64(bad("a number too large"),
				 (uint64_t)a->max + 1);
		if (a->min > 0)
			pack_u64(bad("a number too small"),
				 (uint64_t)a->min - 1);
	}
	pack_u64(bad("64 bits without a sign"), UINT64_MAX);
	pack_u64(bad("63 bits and one"), (uint64_t)INT64_MAX + 1);
}

static void bad_length(const struct method_arg *a)
{
	bool strs = a->type == METHOD_STR || a->type == METHOD_BYTES ||
		    a->type == METHOD_VALUE || a->type == METHOD_VALUE_NIL;
	bool bins = takes_bins(a->type);
	size_t over = (size_t)a->max + 1;

	if (strs)
		pack_str(bad("a str too long"), (const char *)filler, over);
	if (bins)
		pack_bin(bad("a bin too long"), filler, over);
	if (strs && a->min > 0)
		pack_str(bad("a str too short"), (const char *)filler,
			 (size_t)a->min - 1);
	if (bins && a->min > 0)
		pack_bin(bad("a bin too short"), filler, (size_t)a->min - 1);
}

static void bad_array(const struct method_arg *a)
{
	struct pack_w *w = bad("too many elements");
	int64_t i;

	pack_array(w, (uint32_t)a->max + 1);
	for (i = 0; i <= a->max; i++)
		pack_map(w, 0);
	if (a->min > 0)
		pack_array(bad("too few elements"), (uint32_t)a->min - 1);
}

static void bad_word(void)
{
	pack_cstr(bad("a word it does not know"), "sometimes");
	pack_cstr(bad("no word"), "");
	pack_cstr(bad("a word in capitals"), "COMMITTED");
}

static void bad_values(const struct method_arg *a)
{
	bads_clear();
	bad_types(a);
	switch (a->type) {
	case METHOD_UINT:
	case METHOD_INT:
		bad_int(a);
		break;
	case METHOD_VALUE:
	case METHOD_VALUE_NIL:
		pack_u64(bad("64 bits without a sign"), UINT64_MAX);
		bad_length(a);
		break;
	case METHOD_STR:
	case METHOD_BYTES:
		bad_length(a);
		break;
	case METHOD_ENUM:
		bad_word();
		break;
	case METHOD_ARRAY:
		bad_array(a);
		break;
	case METHOD_MAP:
	case METHOD_BOOL:
		break;
	}
}

/* A value that is right for an argument of this type. */
static void good_value(const struct method *m, const struct method_arg *a,
		       struct pack_w *w)
{
	switch (a->type) {
	case METHOD_STR:
		if (strcmp(a->name, "trace") == 0)
			pack_cstr(w, "00-0123456789abcdef0123456789abcdef-"
				     "0123456789abcdef-01");
		else
			pack_cstr(w, "default");
		break;
	case METHOD_BYTES:
		pack_cstr(w, a->min > 1 ? "0123456789abcdef" : "k");
		break;
	case METHOD_UINT:
	case METHOD_INT:
		pack_i64(w, a->min > 0 ? a->min : 1);
		break;
	case METHOD_BOOL:
		pack_bool(w, false);
		break;
	case METHOD_ENUM:
		pack_cstr(w, strcmp(a->name, "read") == 0    ? "linearizable"
			     : strcmp(a->name, "route") == 0 ? "forward"
							     : "committed");
		break;
	case METHOD_VALUE:
	case METHOD_VALUE_NIL:
		pack_u64(w, 1);
		break;
	case METHOD_ARRAY:
		pack_array(w, 1);
		if (strcmp(m->name, "batch") == 0)
			say_pack(w, "{'op':'put','key':'k','value':1}");
		else if (strcmp(m->name, "check_many") == 0)
			say_pack(w, "{'key':'k'}");
		else
			say_pack(w, "['put','k',1]");
		break;
	case METHOD_MAP:
		pack_map(w, 0);
		break;
	}
}

/* How a map of arguments is wrong. */
enum wrong {
	WRONG_VALUE,   /* `bytes` stand for the argument `at`. */
	WRONG_MISSING, /* `at` is left out. */
	WRONG_TWICE,   /* `at` comes twice, */
	WRONG_AS_BIN,  /* the second time with its key as a bin. */
	WRONG_UNKNOWN, /* A key that is none comes at the end. */
	WRONG_KEY,     /* A key that is no string. */
	WRONG_NOT,
};

/* The map of `m`'s required arguments and `at`, wrong in one way. `op` not
 * NULL: with {op: "..."} in front. */
static void args_map(const struct method *m, uint32_t at, enum wrong wrong,
		     const struct pack_w *bytes, const char *op,
		     struct pack_w *w)
{
	uint32_t n = op != NULL;
	uint32_t i;

	for (i = 0; i < m->args_count; i++) {
		if (i != at && !m->args[i].required)
			continue;
		n += i != at || wrong != WRONG_MISSING;
	}
	n += wrong == WRONG_TWICE || wrong == WRONG_AS_BIN ||
	     wrong == WRONG_UNKNOWN || wrong == WRONG_KEY;
	pack_map(w, n);
	if (op != NULL) {
		pack_cstr(w, "op");
		pack_cstr(w, op);
	}
	for (i = 0; i < m->args_count; i++) {
		const struct method_arg *a = &m->args[i];

		if (i != at && !a->required)
			continue;
		if (i == at && wrong == WRONG_MISSING)
			continue;
		pack_cstr(w, a->name);
		if (i == at && wrong == WRONG_VALUE)
			pack_raw(w, bytes->p, bytes->n);
		else
			good_value(m, a, w);
		if (i != at)
			continue;
		if (wrong == WRONG_TWICE)
			pack_cstr(w, a->name);
		else if (wrong == WRONG_AS_BIN)
			pack_bin(w, a->name, strlen(a->name));
		else
			continue;
		good_value(m, a, w);
	}
	if (wrong == WRONG_UNKNOWN) {
		pack_cstr(w, "no_such_key");
		pack_u64(w, 1);
	}
	if (wrong == WRONG_KEY) {
		pack_u64(w, 5);
		pack_u64(w, 1);
	}
}

static struct told *send_parts(const char *who, const char *address,
			       const char *method, const struct pack_w *args,
			       const struct pack_w *options)
{
	struct told *t;
	struct pack_w w;

	pack_w_init(&w, 64u << 20);
	pack_array(&w, options != NULL ? 4 : 3);
	pack_cstr(&w, address);
	pack_cstr(&w, method);
	pack_raw(&w, args->p, args->n);
	if (options != NULL)
		pack_raw(&w, options->p, options->n);
	EXPECT_RC(w.rc, RC_OK);
	t = rig_send(who, (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	return rig_wait(t);
}

static uint64_t entries;
static unsigned rows;

/* It was refused as INVALID for this field, and nothing was written. */
static void expect_invalid(const struct told *t, const char *field)
{
	EXPECT_RC(t->rc, RC_INVALID);
	EXPECT_STR(t->why.field, field);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	EXPECT_TRUE(t->why.text[0] != '\0');
	EXPECT_TRUE(t->request_id != 0);
	EXPECT_UINT(rig_entries(), entries);
	rows++;
}

static void address_of(const struct method *m, char out[64])
{
	if (strcmp(m->class_name, DIRECTORY_CLASS) == 0)
		snprintf(out, 64, "%s", DIRECTORY_ADDRESS);
	else
		snprintf(out, 64, "%s/o", m->class_name);
}

/* Somebody who may call it. */
static const char *who_may(const struct method *m)
{
	return m->right == RIGHT_NODE ? "node:1" : "me";
}

static void check_map(const struct method *m, uint32_t at, enum wrong wrong,
		      const struct pack_w *bytes, const char *field)
{
	char address[64];
	struct pack_w w;

	address_of(m, address);
	pack_w_init(&w, 64u << 20);
	args_map(m, at, wrong, bytes, NULL, &w);
	expect_invalid(send_parts(who_may(m), address, m->name, &w, NULL),
		       field);
	pack_w_release(&w);
}

static void check_arg(const struct method *m, uint32_t at)
{
	const struct method_arg *a = &m->args[at];
	size_t i;

	bad_values(a);
	for (i = 0; i < bads_n; i++) {
		runner_context("%s.%s %s: %s", m->class_name, m->name, a->name,
			       bads[i].what);
		check_map(m, at, WRONG_VALUE, &bads[i].bytes, a->name);
	}
	runner_context("%s.%s %s: missing or twice", m->class_name, m->name,
		       a->name);
	if (a->required)
		check_map(m, at, WRONG_MISSING, NULL, a->name);
	check_map(m, at, WRONG_TWICE, NULL, a->name);
	check_map(m, at, WRONG_AS_BIN, NULL, a->name);
}

static void check_args_as_such(const struct method *m)
{
	const struct method_arg whole = { .name = "args", .type = METHOD_MAP };
	char address[64];
	size_t i;

	address_of(m, address);
	runner_context("%s.%s", m->class_name, m->name);
	check_map(m, METHOD_ARGS_MAX, WRONG_UNKNOWN, NULL, "no_such_key");
	check_map(m, METHOD_ARGS_MAX, WRONG_KEY, NULL, "args");
	bad_values(&whole);
	for (i = 0; i < bads_n; i++) {
		runner_context("%s.%s args: %s", m->class_name, m->name,
			       bads[i].what);
		expect_invalid(send_parts(who_may(m), address, m->name,
					  &bads[i].bytes, NULL),
			       "args");
	}
}

/* Some state of each class, so that there is something to change. */
static void some_state(void)
{
	rig_expect_ok("kv/o", "put", "{'key':'k','value':5}", "{'rev':1}");
	rig_expect_ok("rate_limiter/o", "put_policy",
		      "{'limit':5,'period_ms':1000,'durability':'committed'}",
		      "{'rev':1}");
	EXPECT_RC(rig_ask("relay/o", "run", "{'steps':[['put','k',1]]}", NULL)
			  ->rc,
		  RC_OK);
}

static void begin_table(uint64_t seed)
{
	memset(filler, 'x', sizeof(filler));
	rig_new(seed);
	rig.id.segment_bytes = 4u << 20;
	rig_format();
	rig_boot();
	rig_grant("me", DIRECTORY_TENANT, DIRECTORY_ENV, "*", "",
		  RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	some_state();
	entries = rig_entries();
	rows = 0;
}

static void end_table(void)
{
	bads_clear();
	rig_expect_ok("kv/o", "list", "{}",
		      "{'items':[{'key':'k','value':5,'rev':1}]}");
	rig_expect_ok("kv/o", "delete", "{'key':'no'}",
		      "{'existed':false,'rev':1}");
	EXPECT_UINT(say_u64(rig_result(rig_ask("rate_limiter/o", "peek",
					       "{'key':'k'}", NULL)),
			    "remaining"),
		    5);
	rig_expect_ok("relay/o", "get", "{}", "{'k':1}");
	EXPECT_UINT(rig_entries(), entries);
	rig_end();
}

TEST(every_argument_of_every_method)
{
	const struct method *m;
	uint32_t at;
	size_t i;

	begin_table(1);
	for (i = 0; (m = method_at(i)) != NULL; i++) {
		check_args_as_such(m);
		for (at = 0; at < m->args_count; at++)
			check_arg(m, at);
		rig_forget_calls();
	}
	EXPECT_TRUE(rows > 500);
	end_table();
}

/* The same for the arguments of a batch's ops and a check_many's checks. */
static void check_nested(const char *address, const char *outer,
			 const char *list, const struct method *m,
			 const char *op, const char *good)
{
	char field[128];
	struct pack_w w;
	uint32_t at;
	size_t i;

	pack_w_init(&w, 64u << 20);
	for (at = 0; at < m->args_count; at++) {
		if (op == NULL && strcmp(m->args[at].name, "dry_run") == 0)
			continue;
		bad_values(&m->args[at]);
		snprintf(field, sizeof(field), "%s[1].%s", list,
			 m->args[at].name);
		for (i = 0; i < bads_n; i++) {
			runner_context("%s %s %s: %s", outer, m->name, field,
				       bads[i].what);
			pack_w_reset(&w);
			pack_map(&w, 1);
			pack_cstr(&w, list);
			pack_array(&w, 2);
			say_pack(&w, good);
			args_map(m, at, WRONG_VALUE, &bads[i].bytes, op, &w);
			expect_invalid(
				send_parts("me", address, outer, &w, NULL),
				field);
		}
		if (!m->args[at].required)
			continue;
		pack_w_reset(&w);
		pack_map(&w, 1);
		pack_cstr(&w, list);
		pack_array(&w, 2);
		say_pack(&w, good);
		args_map(m, at, WRONG_MISSING, NULL, op, &w);
		expect_invalid(send_parts("me", address, outer, &w, NULL),
			       field);
	}
	pack_w_release(&w);
	rig_forget_calls();
}

TEST(every_argument_of_every_op_and_check)
{
	static const size_t ops[] = { METHOD_kv_put, METHOD_kv_delete,
				      METHOD_kv_incr, METHOD_kv_cas };
	size_t i;

	begin_table(2);
	for (i = 0; i < ARRAY_LEN(ops); i++)
		check_nested("kv/o", "batch", "ops", method_at(ops[i]),
			     method_at(ops[i])->name,
			     "{'op':'put','key':'a','value':1}");
	check_nested("rate_limiter/o", "check_many", "checks",
		     method_at(METHOD_rate_limiter_check), NULL, "{'key':'a'}");
	EXPECT_TRUE(rows > 150);
	end_table();
}

TEST(every_option)
{
	const struct method *o = method_call_options();
	const struct method_arg whole = { .name = "options",
					  .type = METHOD_MAP };
	struct pack_w args;
	struct pack_w w;
	uint32_t at;
	size_t i;

	begin_table(3);
	pack_w_init(&args, 1024);
	pack_w_init(&w, 64u << 20);
	say_pack(&args, "{'key':'k','value':9}");
	for (at = 0; at < o->args_count; at++) {
		const char *name = o->args[at].name;
		enum wrong wrong;

		bad_values(&o->args[at]);
		for (i = 0; i < bads_n; i++) {
			runner_context("option %s: %s", name, bads[i].what);
			pack_w_reset(&w);
			args_map(o, at, WRONG_VALUE, &bads[i].bytes, NULL, &w);
			expect_invalid(
				send_parts("me", "kv/o", "put", &args, &w),
				name);
		}
		for (wrong = WRONG_TWICE; wrong <= WRONG_AS_BIN; wrong++) {
			runner_context("option %s twice", name);
			pack_w_reset(&w);
			args_map(o, at, wrong, NULL, NULL, &w);
			expect_invalid(
				send_parts("me", "kv/o", "put", &args, &w),
				name);
		}
	}
	runner_context("options as such");
	pack_w_reset(&w);
	args_map(o, METHOD_ARGS_MAX, WRONG_UNKNOWN, NULL, NULL, &w);
	expect_invalid(send_parts("me", "kv/o", "put", &args, &w),
		       "no_such_key");
	pack_w_reset(&w);
	args_map(o, METHOD_ARGS_MAX, WRONG_KEY, NULL, NULL, &w);
	expect_invalid(send_parts("me", "kv/o", "put", &args, &w), "options");
	bad_values(&whole);
	for (i = 0; i < bads_n; i++)
		expect_invalid(
			send_parts("me", "kv/o", "put", &args, &bads[i].bytes),
			"options");
	pack_w_release(&w);
	pack_w_release(&args);
	end_table();
}

TEST(what_options_mean_together)
{
	static const struct {
		const char *options;
		enum rc rc;
		const char *field;
	} table[] = {
		{ "{'idem_ms':5000}", RC_INVALID, "idem_ms" },
		{ "{'idem':'a','idem_ms':604800000}", RC_INVALID, "idem_ms" },
		{ "{'read':'stale'}", RC_UNSUPPORTED, "read" },
		{ "{'durability':'memory'}", RC_UNSUPPORTED, "durability" },
		{ "{'durability':'lagged'}", RC_UNSUPPORTED, "durability" },
		{ "{'trace':'00-0123456789abcdef0123456789abcdef-"
		  "0123456789abcdef-0x'}",
		  RC_INVALID, "trace" },
		{ "{'trace':'ff-0123456789abcdef0123456789abcdef-"
		  "0123456789abcdef-01'}",
		  RC_INVALID, "trace" },
		{ "{'trace':'00-0123456789ABCDEF0123456789abcdef-"
		  "0123456789abcdef-01'}",
		  RC_INVALID, "trace" },
		{ "{'trace':'00-0123456789abcdef0123456789abcdef-"
		  "0123456789abcdef-01x'}",
		  RC_INVALID, "trace" },
		{ "{'trace':'00-00000000000000000000000000000000-"
		  "0123456789abcdef-01'}",
		  RC_INVALID, "trace" },
		{ "{'trace':'00-0123456789abcdef0123456789abcdef-"
		  "0000000000000000-01'}",
		  RC_INVALID, "trace" },
		{ "{'trace':'00-0123456789abcdef0123456789abcdef-"
		  "0123456789abcdef-01-more'}",
		  RC_INVALID, "trace" },
	};
	size_t i;

	begin_table(4);
	for (i = 0; i < ARRAY_LEN(table); i++) {
		struct told *t;

		runner_context("%s", table[i].options);
		t = rig_ask("kv/o", "put", "{'key':'k','value':9}",
			    table[i].options);
		EXPECT_RC(t->rc, table[i].rc);
		EXPECT_STR(t->why.field, table[i].field);
		EXPECT_INT(t->outcome, OUTCOME_REFUSED);
		EXPECT_UINT(rig_entries(), entries);
	}
	end_table();
}

TEST(options_that_are_good)
{
	static const char *const good[] = {
		"{}",
		"{'deadline_ms':1000,'read':'linearizable','route':'forward',"
		"'meta':false}",
		"{'durability':'committed'}",
		"{'route':'redirect'}",
		"{'deadline_ms':60000}",
		"{'idem':{'$bin':'AAEC'},'idem_ms':1000}",
		"{'trace':'00-0123456789abcdef0123456789abcdef-"
		"0123456789abcdef-01'}",
		"{'trace':'01-0123456789abcdef0123456789abcdef-"
		"0123456789abcdef-01-more'}",
	};
	char want[32];
	size_t i;

	rig_begin(5);
	for (i = 0; i < ARRAY_LEN(good); i++) {
		struct told *t =
			rig_ask("kv/o", "incr", "{'key':'n'}", good[i]);

		runner_context("%s", good[i]);
		EXPECT_RC(t->rc, RC_OK);
		snprintf(want, sizeof(want), "{'value':%zu,'rev':%zu}", i + 1,
			 i + 1);
		EXPECT_STR(say_text(rig_result(t)), want);
	}
	rig_end();
}

/* ---- params as such ---- */

static struct told *send_raw(const char *params)
{
	struct told *t;
	struct pack_w w;

	pack_w_init(&w, 65536);
	say_pack(&w, params);
	t = rig_send("me", (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	return rig_wait(t);
}

TEST(params_are_three_or_four)
{
	static const struct {
		const char *params;
		const char *field;
	} table[] = {
		{ "[]", "params" },
		{ "['kv/a']", "params" },
		{ "['kv/a','get']", "params" },
		{ "['kv/a','get',{'key':'k'},{},{}]", "params" },
		{ "{}", "params" },
		{ "null", "params" },
		{ "[null,'get',{}]", "address" },
		{ "[5,'get',{}]", "address" },
		{ "[['kv/a'],'get',{}]", "address" },
		{ "['nothing','get',{}]", "address" },
		{ "['kv/a',null,{}]", "method" },
		{ "['kv/a',7,{}]", "method" },
		{ "['kv/a',{},{}]", "method" },
		{ "['kv/a','got',{}]", "method" },
		{ "['kv/a','',{}]", "method" },
		{ "['kv/a','get',[]]", "args" },
		{ "['kv/a','get',null]", "args" },
		{ "['kv/a','get',{'key':'k'},null]", "options" },
		{ "['kv/a','get',{'key':'k'},[]]", "options" },
	};
	size_t i;

	begin_table(6);
	for (i = 0; i < ARRAY_LEN(table); i++) {
		runner_context("%s", table[i].params);
		expect_invalid(send_raw(table[i].params), table[i].field);
	}
	/* Names as bin are names. */
	EXPECT_RC(send_raw("[{'$bin':'a3Yvbw=='},{'$bin':'Z2V0'},"
			   "{'key':'k'}]")
			  ->rc,
		  RC_OK);
	end_table();
}

/* ---- rights ---- */

static struct told *send_good(const char *who, const char *address,
			      const struct method *m)
{
	struct told *t;
	struct pack_w w;

	pack_w_init(&w, 65536);
	args_map(m, METHOD_ARGS_MAX, WRONG_NOT, NULL, NULL, &w);
	t = send_parts(who, address, m->name, &w, NULL);
	pack_w_release(&w);
	return t;
}

/* Two answers that a client cannot tell apart. */
static void expect_same_refusal(const struct told *a, const struct told *b)
{
	EXPECT_RC(a->rc, b->rc);
	EXPECT_INT(a->outcome, b->outcome);
	EXPECT_STR(a->why.field, b->why.field);
	EXPECT_STR(a->why.text, b->why.text);
	EXPECT_INT(a->retry_after_ms, b->retry_after_ms);
	EXPECT_UINT(a->owner, b->owner);
}

TEST(every_method_without_its_grant)
{
	const struct method *m;
	uint32_t rights;
	size_t i;

	begin_table(7);
	for (rights = 1; rights < 8; rights++) {
		char who[16];

		snprintf(who, sizeof(who), "with-%u", rights);
		rig_grant(who, "default", "dev", "*", "", rights);
		rig_grant(who, DIRECTORY_TENANT, DIRECTORY_ENV, "*", "",
			  rights);
	}
	for (i = 0; (m = method_at(i)) != NULL; i++) {
		struct told *absent =
			rig_ask("kv/absent", "get", "{'key':'k'}", NULL);
		char address[64];
		struct told *t;

		address_of(m, address);
		runner_context("%s.%s", m->class_name, m->name);
		EXPECT_RC(absent->rc, RC_NOT_FOUND);
		/* No right at all: as what is not there. */
		t = send_good("nobody", address, m);
		expect_same_refusal(t, absent);
		for (rights = 1; rights < 8; rights++) {
			char who[16];

			if ((rights & (uint32_t)m->right) != 0)
				continue;
			snprintf(who, sizeof(who), "with-%u", rights);
			t = send_good(who, address, m);
			EXPECT_RC(t->rc, RC_DENIED);
			EXPECT_STR(t->why.field, "method");
			EXPECT_INT(t->outcome, OUTCOME_REFUSED);
		}
		EXPECT_UINT(rig_entries(), entries);
		rig_forget_calls();
	}
	end_table();
}

/* Whether it exists or not, in a namespace of which one has nothing. */
TEST(anothers_objects_answer_as_absent_ones)
{
	static const char *const addresses[] = {
		"other/dev/kv/o",    /* It exists. */
		"other/dev/kv/none", /* It does not. */
		"default/prod/kv/o",    "nowhere/dev/kv/o",
		"other/dev/no_class/o", "default/dev/no_class/o",
	};
	struct told *absent;
	size_t i;

	rig_begin(8);
	rig_grant("them", "other", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	EXPECT_RC(rig_wait(rig_start("them", "other/dev/kv/o", "put",
				     "{'key':'k','value':1}", NULL))
			  ->rc,
		  RC_OK);
	absent = rig_ask("kv/absent", "get", "{'key':'k'}", NULL);
	for (i = 0; i < ARRAY_LEN(addresses); i++) {
		runner_context("%s", addresses[i]);
		expect_same_refusal(
			rig_ask(addresses[i], "get", "{'key':'k'}", NULL),
			absent);
		expect_same_refusal(rig_ask(addresses[i], "put",
					    "{'key':'k','value':2}", NULL),
				    absent);
		expect_same_refusal(
			rig_ask(addresses[i], "no_such", "{}", NULL), absent);
		expect_same_refusal(rig_ask(addresses[i], "put", "{}", NULL),
				    absent);
	}
	rig_end();
}

static void id_of(const char *tenant, const char *cls, const char *name,
		  char out[64])
{
	const struct identity *id = core_identity(rig.core);
	char hex[2 * OID_BYTES + 1];
	struct oid oid;

	placement_id(id->hash_key, rig_bytes(tenant), rig_bytes("dev"),
		     rig_bytes(cls), rig_bytes(name), &oid);
	hex_encode(oid.b, OID_BYTES, hex);
	snprintf(out, 64, "%s/~%s", cls, hex);
}

TEST(an_id_is_the_same_object_as_its_name)
{
	char address[64];
	char wrong[64];
	struct told *absent;

	rig_begin(9);
	rig_grant("them", "other", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	rig_grant("some", "default", "dev", "kv", "ord", RIGHT_READ);
	absent = rig_ask("kv/absent", "get", "{'key':'k'}", NULL);
	rig_expect_ok("kv/orders", "put", "{'key':'k','value':1}", "{'rev':1}");
	id_of("default", "kv", "orders", address);
	rig_expect_ok(address, "get", "{'key':'k'}", "{'value':1,'rev':1}");
	rig_expect_ok(address, "put", "{'key':'k','value':2}", "{'rev':2}");
	rig_expect_ok("kv/orders", "get", "{'key':'k'}", "{'value':2,'rev':2}");
	/* A grant for some names is none for ids. */
	EXPECT_RC(rig_wait(rig_start("some", "kv/orders", "get", "{'key':'k'}",
				     NULL))
			  ->rc,
		  RC_OK);
	expect_same_refusal(rig_wait(rig_start("some", address, "get",
					       "{'key':'k'}", NULL)),
			    absent);
	/* As another class, of another tenant: not there. */
	snprintf(wrong, sizeof(wrong), "rate_limiter/%s", strchr(address, '~'));
	expect_same_refusal(rig_ask(wrong, "describe", "{}", NULL), absent);
	expect_same_refusal(
		rig_ask(wrong, "put_policy", "{'limit':1,'period_ms':1}", NULL),
		absent);
	snprintf(wrong, sizeof(wrong), "other/dev/kv/%s", strchr(address, '~'));
	expect_same_refusal(
		rig_wait(rig_start("them", wrong, "get", "{'key':'k'}", NULL)),
		absent);
	rig_end();
}

/* An id that nobody has and one that somebody else has are the same, for every
 * method: so nothing is made by its id. */
TEST(ids_tell_nothing_of_others)
{
	const struct method *m;
	char theirs[64];
	struct told *absent;
	size_t i;

	rig_begin(10);
	rig_grant("them", "other", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	EXPECT_RC(rig_wait(rig_start("them", "other/dev/kv/secret", "put",
				     "{'key':'k','value':1}", NULL))
			  ->rc,
		  RC_OK);
	absent = rig_ask("kv/absent", "get", "{'key':'k'}", NULL);
	entries = rig_entries();
	id_of("other", "kv", "secret", theirs);
	for (i = 0; (m = method_at(i)) != NULL; i++) {
		char none[64];
		char address[64];

		runner_context("%s.%s", m->class_name, m->name);
		snprintf(none, sizeof(none),
			 "%s/~00112233445566778899aabbccddeeff", m->class_name);
		snprintf(address, sizeof(address), "%s/%s", m->class_name,
			 strchr(theirs, '~'));
		expect_same_refusal(send_good("me", none, m), absent);
		expect_same_refusal(send_good("me", address, m), absent);
	}
	EXPECT_UINT(rig_entries(), entries);
	rig_end();
}

TEST(names_in_every_spelling)
{
	rig_begin(11);
	rig_expect_ok("kv/a%2Fb", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_expect_ok("default/dev/kv/a%2Fb", "get", "{'key':'k'}",
		      "{'value':1,'rev':1}");
	rig_expect_ok("kv/%7Etilde", "put", "{'key':'k','value':2}",
		      "{'rev':1}");
	rig_expect_ok("kv/100%25", "put", "{'key':'k','value':3}", "{'rev':1}");
	rig_expect_ok("kv/\xc3\xa4 b", "put", "{'key':'k','value':4}",
		      "{'rev':1}");
	EXPECT_RC(rig_ask("kv/a%2fb", "get", "{'key':'k'}", NULL)->rc,
		  RC_INVALID);
	rig_close();
	rig_boot();
	rig_expect_ok("kv/%7Etilde", "get", "{'key':'k'}",
		      "{'value':2,'rev':1}");
	rig_end();
}

/* ---- meta ---- */

TEST(meta)
{
	struct told *t;
	struct pack_bytes meta;
	struct pack_r r;
	uint64_t index;
	uint64_t term;
	uint32_t n;

	rig_begin(20);
	t = rig_ask("kv/o", "put", "{'key':'k','value':1}", "{'meta':true}");
	EXPECT_RC(t->rc, RC_OK);
	r = pack_reader(t->result, t->result_n);
	EXPECT_RC(pack_get_array(&r, &n), RC_OK);
	EXPECT_UINT(n, 2);
	EXPECT_RC(pack_skip(&r, &meta), RC_OK);
	EXPECT_STR(say_text(meta), "{'rev':1}");
	EXPECT_RC(pack_skip(&r, &meta), RC_OK);
	EXPECT_STR(say_text(say_member(meta, "owner")), "'n1'");
	EXPECT_TRUE(say_u64(meta, "shard") < 4);
	term = say_u64(meta, "term");
	index = say_u64(meta, "index");
	EXPECT_TRUE(index > 1);
	/* A read tells what it has seen. */
	t = rig_ask("kv/o", "get", "{'key':'k'}", "{'meta':true}");
	EXPECT_HAS(say_text(rig_result(t)), "[{'value':1,'rev':1},{");
	r = pack_reader(t->result, t->result_n);
	EXPECT_RC(pack_get_array(&r, &n), RC_OK);
	EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	EXPECT_RC(pack_skip(&r, &meta), RC_OK);
	EXPECT_TRUE(say_u64(meta, "index") >= index);
	/* The next boot is another term. */
	rig_close();
	rig_boot();
	t = rig_ask("kv/o", "incr", "{'key':'k'}", "{'meta':true}");
	r = pack_reader(t->result, t->result_n);
	EXPECT_RC(pack_get_array(&r, &n), RC_OK);
	EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	EXPECT_RC(pack_skip(&r, &meta), RC_OK);
	EXPECT_TRUE(say_u64(meta, "term") > term);
	EXPECT_TRUE(say_u64(meta, "index") > index);
	/* An error has none. */
	t = rig_ask("kv/o", "get", "{'key':'no'}", "{'meta':true}");
	EXPECT_RC(t->rc, RC_NOT_FOUND);
	rig_end();
}

TEST(request_ids)
{
	struct told *a;
	struct told *b;
	uint64_t first;

	rig_begin(21);
	a = rig_ask("kv/o", "get", "{'key':'k'}", NULL);
	b = rig_ask("kv/o", "get", "{'key':'k'}", NULL);
	EXPECT_TRUE(a->request_id != b->request_id);
	first = a->request_id;
	rig_close();
	rig_boot();
	a = rig_ask("kv/o", "get", "{'key':'k'}", NULL);
	EXPECT_TRUE(a->request_id >> 32 != first >> 32);
	rig_end();
}

/* ---- time ---- */

TEST(a_deadline_passes_in_the_mailbox)
{
	struct told *slow;
	struct told *queued[5];
	uint64_t from;
	unsigned i;

	rig_begin(30);
	slow = rig_start("me", "relay/o", "run", "{'steps':[['wait',3000]]}",
			 NULL);
	from = world_now_ms(rig.w);
	for (i = 0; i < 5; i++) {
		char options[64];

		snprintf(options, sizeof(options), "{'deadline_ms':%u}",
			 100 * (5 - i));
		queued[i] = rig_start("me", "relay/o", "get", "{}", options);
	}
	for (i = 5; i-- > 0;) {
		uint64_t late;

		rig_wait(queued[i]);
		EXPECT_RC(queued[i]->rc, RC_DEADLINE);
		EXPECT_INT(queued[i]->outcome, OUTCOME_REFUSED);
		late = queued[i]->at_ms - from;
		EXPECT_TRUE(late >= 100 * (5 - i));
		EXPECT_TRUE(late <= 100 * (5 - i) + 30);
	}
	EXPECT_FALSE(slow->done);
	EXPECT_RC(rig_wait(slow)->rc, RC_OK);
	rig_end();
}

TEST(without_a_deadline_it_is_five_seconds)
{
	struct told *t;
	uint64_t from;

	rig_begin(31);
	from = world_now_ms(rig.w);
	t = rig_ask("relay/o", "run", "{'steps':[['wait',60000]]}", NULL);
	EXPECT_RC(t->rc, RC_DEADLINE);
	EXPECT_TRUE(t->at_ms - from >= DEADLINE_DEFAULT_MS);
	EXPECT_TRUE(t->at_ms - from <= DEADLINE_DEFAULT_MS + 30);
	from = world_now_ms(rig.w);
	t = rig_ask("relay/o", "run", "{'steps':[['wait',90000]]}",
		    "{'deadline_ms':60000}");
	EXPECT_TRUE(t->rc != RC_OK);
	EXPECT_TRUE(t->at_ms - from >= DEADLINE_MAX_MS);
	EXPECT_TRUE(t->at_ms - from <= DEADLINE_MAX_MS + 30);
	rig_end();
}

/* With open writes nobody can say that nothing happened. */
TEST(a_deadline_after_a_write_is_an_unknown_outcome)
{
	struct told *t;

	rig_begin(32);
	t = rig_ask("relay/o", "run", "{'steps':[['put','k',1],['wait',9000]]}",
		    "{'deadline_ms':200}");
	EXPECT_RC(t->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(t->outcome, OUTCOME_UNKNOWN);
	rig_expect_ok("relay/o", "get", "{}", "{'k':1}");
	rig_end();
}

TEST(after_a_suspension_of_the_machine)
{
	struct told *t[10];
	unsigned i;

	rig_begin(33);
	for (i = 0; i < 10; i++) {
		char address[32];

		snprintf(address, sizeof(address), "relay/%u", i);
		t[i] = rig_start("me", address, "run",
				 "{'steps':[['wait',50000]]}",
				 i % 2 == 0 ? NULL : "{'deadline_ms':60000}");
	}
	rig_pass(10);
	world_suspend(rig.w, 0, 10u * 86400000u);
	for (i = 0; i < 10; i++) {
		rig_wait(t[i]);
		EXPECT_TRUE(t[i]->rc == RC_DEADLINE || t[i]->rc == RC_OK);
	}
	rig_expect_ok("kv/o", "incr", "{'key':'n'}", "{'value':1,'rev':1}");
	rig_end();
}

/* Who goes on in the place of one whose time is over makes its call anew, in
 * the middle of all whose time is over. */
TEST(a_call_that_begins_at_a_deadline_holds_up_no_other)
{
	static const char *const steps =
		"{'steps':[['call','relay/open-slow','run',"
		"{'steps':[['wait',50000]]}]]}";
	struct told *first;
	struct told *heir;
	struct told *t[8];
	uint64_t from;
	unsigned i;

	rig_begin(34);
	rig_grant("object:default/dev/relay", "default", "dev", "relay", "",
		  RIGHT_READ | RIGHT_WRITE);
	first = rig_start("me", "relay/open-o", "run", steps,
			  "{'deadline_ms':100,'idem':'k'}");
	heir = rig_start("me", "relay/open-o", "run", steps,
			 "{'deadline_ms':20000,'idem':'k'}");
	for (i = 0; i < ARRAY_LEN(t); i++) {
		char address[32];
		char options[64];

		snprintf(address, sizeof(address), "relay/%u", i);
		snprintf(options, sizeof(options), "{'deadline_ms':%u}",
			 200 + 100 * i);
		t[i] = rig_start("me", address, "run",
				 "{'steps':[['wait',50000]]}", options);
	}
	rig_pass(50);
	EXPECT_FALSE(first->done);
	from = world_now_ms(rig.w);
	world_suspend(rig.w, 0, 5000);
	for (i = 0; i < ARRAY_LEN(t); i++) {
		rig_wait(t[i]);
		EXPECT_RC(t[i]->rc, RC_DEADLINE);
		EXPECT_TRUE(t[i]->at_ms <= from + 5000 + 30);
	}
	EXPECT_RC(first->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_FALSE(heir->done);
	EXPECT_TRUE(rig_wait(heir)->rc != RC_OK);
	rig_end();
}

/* ---- cancel ---- */

TEST(cancel)
{
	struct told *slow;
	struct told *queued;
	struct told *wrote;

	rig_begin(40);
	slow = rig_start("me", "relay/o", "run", "{'steps':[['wait',3000]]}",
			 NULL);
	queued = rig_start("me", "relay/o", "run", "{'steps':[['put','k',1]]}",
			   NULL);
	rig_pass(50);
	EXPECT_FALSE(queued->done);
	call_cancel(queued->call);
	rig_wait(queued);
	EXPECT_RC(queued->rc, RC_CANCELLED);
	EXPECT_INT(queued->outcome, OUTCOME_REFUSED);
	call_cancel(slow->call);
	rig_wait(slow);
	EXPECT_RC(slow->rc, RC_CANCELLED);
	wrote = rig_start("me", "relay/o", "run",
			  "{'steps':[['put','w',1],['wait',3000]]}", NULL);
	rig_pass(50);
	call_cancel(wrote->call);
	rig_wait(wrote);
	EXPECT_RC(wrote->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(wrote->outcome, OUTCOME_UNKNOWN);
	rig_expect_ok("relay/o", "get", "{}", "{'w':1}");
	rig_end();
}

/* At every step of its life; the answer comes once, and says what is so. */
TEST(cancel_at_any_moment)
{
	unsigned steps;
	unsigned ends[3] = { 0, 0, 0 };

	rig_begin(41);
	for (steps = 0; steps < 60; steps++) {
		struct told *t;
		char key[64];
		unsigned i;
		enum rc found;

		snprintf(key, sizeof(key), "{'key':'k%u','value':1}", steps);
		t = rig_start("me", "kv/o", "put", key, NULL);
		for (i = 0; i < steps % 30 && !t->done; i++)
			world_step(rig.w);
		if (!t->done)
			call_cancel(t->call);
		rig_wait(t);
		snprintf(key, sizeof(key), "{'key':'k%u'}", steps);
		found = rig_ask("kv/o", "get", key, NULL)->rc;
		if (t->rc == RC_OK) {
			ends[0]++;
			EXPECT_RC(found, RC_OK);
		} else if (t->rc == RC_CANCELLED) {
			ends[1]++;
			EXPECT_INT(t->outcome, OUTCOME_REFUSED);
			EXPECT_RC(found, RC_NOT_FOUND);
		} else {
			ends[2]++;
			EXPECT_RC(t->rc, RC_UNKNOWN_OUTCOME);
			EXPECT_INT(t->outcome, OUTCOME_UNKNOWN);
		}
	}
	EXPECT_TRUE(ends[0] > 0);
	EXPECT_TRUE(ends[2] > 0);
	rig_end();
}

/* ---- bounds ---- */

TEST(no_slot_is_left)
{
	struct told *t[64];
	struct told *over;
	unsigned taken = 0;
	unsigned i;

	rig_new(50);
	rig.cfg.calls_max = 64;
	rig_format();
	rig_boot();
	/* Of 64 each depth keeps 4: 32 are left for clients. */
	for (i = 0; i < 64; i++) {
		t[i] = rig_start("me", "relay/o", "run",
				 "{'steps':[['wait',10]]}", NULL);
		taken += t[i]->call != NULL;
	}
	EXPECT_UINT(taken, 32);
	EXPECT_NULL(t[32]->call);
	/* Those that were taken end, and make room. */
	for (i = 0; i < taken; i++)
		EXPECT_RC(rig_wait(t[i])->rc, RC_OK);
	over = rig_start("me", "relay/o", "get", "{}", NULL);
	EXPECT_NOT_NULL(over->call);
	EXPECT_RC(rig_wait(over)->rc, RC_OK);
	rig_end();
}

/* Clients cannot take the slots that let their calls end. */
TEST(nested_calls_have_slots_of_their_own)
{
	struct told *t[40];
	unsigned i;

	rig_new(51);
	rig.cfg.calls_max = 64;
	rig_format();
	rig_boot();
	rig_grant("object:default/dev/relay", "default", "dev", "kv", "",
		  RIGHT_WRITE);
	for (i = 0; i < 32; i++) {
		char address[32];

		snprintf(address, sizeof(address), "relay/%u", i);
		t[i] = rig_start("me", address, "run",
				 "{'steps':[['try','kv/one','incr',"
				 "{'key':'n'}]]}",
				 NULL);
		EXPECT_NOT_NULL(t[i]->call);
	}
	EXPECT_NULL(rig_start("me", "kv/x", "get", "{'key':'k'}", NULL)->call);
	for (i = 0; i < 32; i++)
		EXPECT_RC(rig_wait(t[i])->rc, RC_OK);
	/* Some found the share of their depth taken: told so, not stuck. */
	EXPECT_RC(rig_ask("kv/one", "get", "{'key':'n'}", NULL)->rc, RC_OK);
	rig_end();
}

/* relay/<n> calls relay/<n-1> ... calls kv/end. */
static void deep_steps(unsigned n, char *out, size_t room)
{
	char inner[SAY_TEXT_MAX];

	if (n == 0) {
		snprintf(out, room,
			 "{'steps':[['call','kv/end','incr',{'key':'n'}]]}");
		return;
	}
	deep_steps(n - 1, inner, sizeof(inner));
	snprintf(out, room, "{'steps':[['call','relay/%u','run',%.7000s]]}",
		 n - 1, inner);
}

TEST(calls_nest_so_deep_and_no_deeper)
{
	char steps[SAY_TEXT_MAX];
	struct told *t;
	unsigned n;

	rig_begin(52);
	rig_grant("object:default/dev/relay", "default", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE);
	for (n = 0; n < CALL_DEPTH_MAX; n++) {
		char address[32];

		deep_steps(n, steps, sizeof(steps));
		snprintf(address, sizeof(address), "relay/%u", n);
		t = rig_ask(address, "run", steps, NULL);
		if (t->rc != RC_OK)
			FAIL("depth %u: %s %s", n, rc_name(t->rc), t->why.text);
	}
	deep_steps(CALL_DEPTH_MAX, steps, sizeof(steps));
	t = rig_ask("relay/8", "run", steps, NULL);
	EXPECT_RC(t->rc, RC_INVALID);
	EXPECT_HAS(t->why.text, "at most 8 deep");
	EXPECT_HAS(say_text(rig_result(
			   rig_ask("kv/end", "get", "{'key':'n'}", NULL))),
		   "'value':8");
	rig_end();
}

TEST(a_nested_call_is_the_objects_own)
{
	struct told *t;

	rig_begin(53);
	/* What the caller may is nothing to what it calls. */
	t = rig_ask("relay/o", "run",
		    "{'steps':[['call','kv/x','put',{'key':'k','value':1}]]}",
		    NULL);
	EXPECT_RC(t->rc, RC_NOT_FOUND);
	rig_grant("object:default/dev/relay", "default", "dev", "kv", "",
		  RIGHT_READ);
	t = rig_ask("relay/o", "run",
		    "{'steps':[['call','kv/x','put',{'key':'k','value':1}]]}",
		    NULL);
	EXPECT_RC(t->rc, RC_DENIED);
	rig_grant("object:default/dev/relay", "default", "dev", "kv", "",
		  RIGHT_WRITE);
	t = rig_ask("relay/o", "run",
		    "{'steps':[['call','kv/x','put',{'key':'k','value':1}]]}",
		    NULL);
	EXPECT_RC(t->rc, RC_OK);
	/* A mistake in its arguments comes back to it. */
	t = rig_ask("relay/o", "run",
		    "{'steps':[['try','kv/x','put',{'key':'k'}]]}", NULL);
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_HAS(say_text(rig_result(t)), "INVALID");
	rig_end();
}

TEST(a_call_to_oneself_is_a_cycle)
{
	struct told *t;

	rig_begin(54);
	rig_grant("object:default/dev/relay", "default", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE);
	t = rig_ask("relay/a", "run",
		    "{'steps':[['call','relay/b','run',{'steps':"
		    "[['call','relay/a','get',{}]]}]]}",
		    NULL);
	EXPECT_RC(t->rc, RC_CYCLE);
	EXPECT_HAS(t->why.text, "default/dev/relay/a -> "
				"default/dev/relay/b -> default/dev/relay/a");
	rig_end();
}

TEST(the_callers_deadline_is_that_of_what_it_calls)
{
	struct told *t;
	uint64_t from;

	rig_begin(55);
	rig_grant("object:default/dev/relay", "default", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE);
	from = world_now_ms(rig.w);
	t = rig_ask("relay/a", "run",
		    "{'steps':[['call','relay/b','run',"
		    "{'steps':[['wait',30000]]}]]}",
		    "{'deadline_ms':300}");
	EXPECT_TRUE(t->rc == RC_DEADLINE || t->rc == RC_UNKNOWN_OUTCOME);
	EXPECT_TRUE(t->at_ms - from < 400);
	/* The inner one is over as well: nobody waits for it. */
	t = rig_ask("relay/b", "get", "{}", "{'deadline_ms':100}");
	EXPECT_RC(t->rc, RC_OK);
	rig_end();
}

/* Answers that may not leave yet are bounded over all objects, also when nobody
 * knew before how large they would be. */
TEST(answers_that_wait_are_bounded)
{
	enum { CALLS = 300 };
	static struct told *t[CALLS];
	char *args = malloc(VALUE_BYTES_MAX + 64);
	unsigned ok = 0;
	unsigned i;
	int n;

	rig_new(56);
	rig.id.segment_bytes = 4u << 20;
	rig.cfg.calls_max = 2 * CALLS;
	rig.cfg.object_idle_ms = 20;
	rig.cfg.window_ms = 10;
	rig_format();
	rig_boot();
	n = snprintf(args, 64, "{'key':'k','value':'");
	memset(args + n, 'v', VALUE_BYTES_MAX);
	memcpy(args + n + VALUE_BYTES_MAX, "'}", 3);
	EXPECT_RC(rig_ask("kv/large", "put", args, NULL)->rc, RC_OK);
	free(args);
	/* Not in memory any more: all of them wait for one load. */
	rig_pass(3000);
	for (i = 0; i < CALLS; i++)
		t[i] = rig_start("me", "kv/large", "get", "{'key':'k'}", NULL);
	for (i = 0; i < CALLS; i++) {
		rig_wait(t[i]);
		if (t[i]->rc == RC_OK) {
			ok++;
			free(t[i]->result);
			t[i]->result = NULL;
			continue;
		}
		EXPECT_RC(t[i]->rc, RC_OVERLOADED);
		EXPECT_INT(t[i]->outcome, OUTCOME_REFUSED);
		EXPECT_TRUE(t[i]->retry_after_ms > 0);
	}
	EXPECT_TRUE(ok >= RESULTS_BYTES_MAX / VALUE_BYTES_MAX);
	EXPECT_TRUE(ok < CALLS);
	/* They have left: there is room again. */
	EXPECT_RC(rig_ask("kv/large", "get", "{'key':'k'}", NULL)->rc, RC_OK);
	rig_end();
}

/* ---- idempotency ---- */

TEST(a_key_is_carried_out_once)
{
	struct told *t;
	unsigned i;

	rig_begin(60);
	for (i = 0; i < 3; i++) {
		t = rig_ask("kv/o", "incr", "{'key':'n'}", "{'idem':'once'}");
		EXPECT_RC(t->rc, RC_OK);
		EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	}
	/* Other arguments, the same key. */
	t = rig_ask("kv/o", "incr", "{'key':'n','by':2}", "{'idem':'once'}");
	EXPECT_RC(t->rc, RC_CONFLICT);
	EXPECT_STR(t->why.field, "idem");
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	/* Another method, caller, object: another key. */
	t = rig_ask("kv/o", "put", "{'key':'m','value':1}", "{'idem':'once'}");
	EXPECT_STR(say_text(rig_result(t)), "{'rev':2}");
	t = rig_ask("kv/p", "incr", "{'key':'n'}", "{'idem':'once'}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	rig_grant("you", "default", "dev", "*", "", RIGHT_WRITE);
	t = rig_wait(rig_start("you", "kv/o", "incr", "{'key':'n'}",
			       "{'idem':'once'}"));
	EXPECT_STR(say_text(rig_result(t)), "{'value':2,'rev':3}");
	/* Over a clean end, a kill and a power cut. */
	rig_close();
	rig_boot();
	t = rig_ask("kv/o", "incr", "{'key':'n'}", "{'idem':'once'}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	rig_kill();
	rig_boot();
	t = rig_ask("kv/o", "incr", "{'key':'n'}", "{'idem':'once'}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	rig_power_cut();
	rig_boot();
	t = rig_ask("kv/o", "incr", "{'key':'n'}", "{'idem':'once'}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	/* As str and as bin it is one key. */
	t = rig_ask("kv/o", "incr", "{'key':'n'}",
		    "{'idem':{'$bin':'b25jZQ=='}}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	/* Until its window has ended for everybody: by a stamp that is in the
	 * log. */
	rig_pass(IDEM_WINDOW_DEFAULT_MS + 1000);
	rig_expect_ok("kv/o", "put", "{'key':'x','value':1}", "{'rev':4}");
	t = rig_ask("kv/o", "incr", "{'key':'n'}", "{'idem':'once'}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':3,'rev':5}");
	rig_end();
}

TEST(a_window_may_be_shorter)
{
	struct told *t;

	rig_begin(61);
	t = rig_ask("kv/o", "incr", "{'key':'n'}",
		    "{'idem':'k','idem_ms':5000}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	rig_pass(4000);
	t = rig_ask("kv/o", "incr", "{'key':'n'}",
		    "{'idem':'k','idem_ms':5000}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	rig_pass(4000);
	t = rig_ask("kv/o", "incr", "{'key':'n'}",
		    "{'idem':'k','idem_ms':5000}");
	EXPECT_STR(say_text(rig_result(t)), "{'value':2,'rev':2}");
	rig_end();
}

/* Refused once is not done: the key is free. */
TEST(a_refusal_uses_no_key_up)
{
	struct told *t;

	rig_begin(62);
	t = rig_ask("kv/o", "cas", "{'key':'a','expect':1,'value':2}",
		    "{'idem':'k'}");
	EXPECT_RC(t->rc, RC_CONFLICT);
	rig_expect_ok("kv/o", "put", "{'key':'a','value':1}", "{'rev':1}");
	t = rig_ask("kv/o", "cas", "{'key':'a','expect':1,'value':2}",
		    "{'idem':'k'}");
	EXPECT_RC(t->rc, RC_OK);
	rig_end();
}

TEST(two_with_one_key_at_once)
{
	struct told *a;
	struct told *b;

	rig_begin(63);
	a = rig_start("me", "kv/o", "incr", "{'key':'n'}", "{'idem':'k'}");
	b = rig_start("me", "kv/o", "incr", "{'key':'n'}", "{'idem':'k'}");
	EXPECT_STR(say_text(rig_result(rig_wait(a))), "{'value':1,'rev':1}");
	EXPECT_STR(say_text(rig_result(rig_wait(b))), "{'value':1,'rev':1}");
	rig_end();
}

/* ---- order ---- */

TEST(calls_to_one_object_are_carried_out_in_order)
{
	struct told *t[60];
	char args[64];
	unsigned i;

	rig_begin(70);
	for (i = 0; i < 60; i++) {
		if (i % 3 == 2) {
			t[i] = rig_start("me", "kv/o", "get", "{'key':'k'}",
					 NULL);
			continue;
		}
		snprintf(args, sizeof(args), "{'key':'k','value':%u}", i);
		t[i] = rig_start("me", "kv/o", "put", args, NULL);
	}
	for (i = 0; i < 60; i++) {
		rig_wait(t[i]);
		EXPECT_RC(t[i]->rc, RC_OK);
		if (i % 3 != 2)
			continue;
		/* A read sees the write before it and none after. */
		EXPECT_UINT(say_u64(rig_result(t[i]), "value"), i - 1);
	}
	rig_end();
}

TEST(stats)
{
	struct core_stats s;
	struct told *t;

	rig_begin(80);
	t = rig_start("me", "kv/o", "put", "{'key':'k','value':1}", NULL);
	core_stats(rig.core, &s);
	EXPECT_UINT(s.calls, 1);
	EXPECT_UINT(s.calls_open, 1);
	EXPECT_TRUE(s.calls_bytes > 0);
	rig_wait(t);
	(void)rig_ask("kv/o", "get", "{'key':'no'}", NULL);
	(void)rig_ask("kv/o", "get", "{}", NULL);
	core_stats(rig.core, &s);
	EXPECT_UINT(s.calls, 3);
	EXPECT_UINT(s.calls_open, 0);
	EXPECT_UINT(s.calls_bytes, 0);
	EXPECT_UINT(s.by_rc[RC_OK], 1);
	EXPECT_UINT(s.by_rc[RC_NOT_FOUND], 1);
	EXPECT_UINT(s.by_rc[RC_INVALID], 1);
	rig_end();
}
