#include "client/proto/method.h"

#include <limits.h>

#include "tests/lib/runner.h"

#define ARGS_BYTES (4U * 1024 * 1024)

/* ------------------------------------------------------------ the tables */

static const char *const type_names[] = { "STR",   "BYTES",     "UINT",
					  "INT",   "BOOL",      "ENUM",
					  "VALUE", "VALUE_NIL", "ARRAY",
					  "MAP" };

/* A method as a line: class.name right flags; arg:type[!] ... */
static const char *line_of(const struct method *m)
{
	static char line[512];
	size_t n;
	uint32_t i;

	n = (size_t)snprintf(line, sizeof(line), "%s.%s %s%s;", m->class_name,
			     m->name, method_right_name(m->right),
			     (m->flags & METHOD_WRITES) != 0 ? " writes" : "");
	for (i = 0; i < m->args_count; i++)
		n += (size_t)snprintf(line + n, sizeof(line) - n, " %s:%s%s",
				      m->args[i].name,
				      type_names[m->args[i].type],
				      m->args[i].required ? "!" : "");
	return line;
}

TEST(the_methods_are_these)
{
	static const char *const want[] = {
		"kv.get read; key:BYTES!",
		"kv.put write writes; key:BYTES! value:VALUE! ttl_ms:UINT "
		"if_rev:UINT",
		"kv.delete write writes; key:BYTES! if_rev:UINT",
		"kv.incr write writes; key:BYTES! by:INT",
		"kv.cas write writes; key:BYTES! expect:VALUE_NIL! "
		"value:VALUE!",
		"kv.list read; prefix:BYTES start:BYTES end:BYTES limit:UINT "
		"reverse:BOOL cursor:BYTES",
		"kv.batch write writes; ops:ARRAY!",
		"kv.destroy admin writes;",
		"rate_limiter.put_policy admin writes; limit:UINT! "
		"period_ms:UINT! burst:UINT durability:ENUM if_rev:UINT "
		"name:STR",
		"rate_limiter.check write writes; key:BYTES! cost:UINT "
		"dry_run:BOOL policy:STR",
		"rate_limiter.check_many write writes; checks:ARRAY!",
		"rate_limiter.peek read; key:BYTES! policy:STR",
		"rate_limiter.reset admin writes; key:BYTES! policy:STR",
		"rate_limiter.describe read;",
		"rate_limiter.destroy admin writes;",
		"directory.read read; since:UINT",
		"directory.grant admin writes; principal:STR! tenant:STR! "
		"env:STR! class:STR! rights:ARRAY! prefix:BYTES",
		"directory.revoke admin writes; principal:STR! tenant:STR "
		"env:STR class:STR rights:ARRAY prefix:BYTES",
		"directory.readmit admin writes; node:UINT! "
		"incarnation:BYTES!",
		"directory.seed node writes; grants:ARRAY! members:ARRAY!",
#ifdef HOLDFAST_TESTING
		"relay.run write writes; steps:ARRAY!",
		"relay.get read;",
		"relay.destroy admin writes;",
#endif
	};
	size_t i;

	EXPECT_UINT(METHODS_COUNT, sizeof(want) / sizeof(want[0]));
	for (i = 0; i < METHODS_COUNT; i++) {
		const struct method *m = method_at(i);

		EXPECT_STR(line_of(m), want[i]);
		EXPECT_UINT(m->number, i);
		EXPECT_TRUE(strlen(m->text) > 0);
	}
	EXPECT_NULL(method_at(METHODS_COUNT));
	EXPECT_NULL(method_at(SIZE_MAX));
}

TEST(the_options_are_these)
{
	const struct method *m = method_call_options();

	EXPECT_STR(line_of(m), ".call none; deadline_ms:UINT idem:BYTES "
			       "read:ENUM durability:ENUM route:ENUM meta:BOOL "
			       "trace:STR idem_ms:UINT");
	EXPECT_INT(OPTION_deadline_ms, 0);
	EXPECT_INT(OPTION_trace, 6);
	EXPECT_INT(m->args[OPTION_deadline_ms].max, 60000);
	EXPECT_INT(m->args[OPTION_idem].max, 64);
}

TEST(the_bounds_that_were_promised)
{
	static const struct {
		const char *class_name, *method, *arg;
		int64_t min, max;
	} rows[] = {
		{ "kv", "get", "key", 1, 1024 },
		{ "kv", "put", "value", 0, 1048576 },
		{ "kv", "put", "ttl_ms", 1, 31536000000 },
		{ "kv", "put", "if_rev", 0, INT64_MAX },
		{ "kv", "incr", "by", INT64_MIN, INT64_MAX },
		{ "kv", "list", "prefix", 0, 1024 },
		{ "kv", "list", "limit", 1, 1000 },
		{ "kv", "list", "cursor", 1, 2048 },
		{ "kv", "batch", "ops", 1, 1000 },
		{ "rate_limiter", "check", "key", 1, 256 },
		{ "rate_limiter", "check", "cost", 0, 1000000000 },
		{ "rate_limiter", "check", "policy", 1, 64 },
		{ "rate_limiter", "check_many", "checks", 1, 1000 },
		{ "rate_limiter", "put_policy", "limit", 1, 1000000000 },
		{ "rate_limiter", "put_policy", "period_ms", 1, 2678400000 },
		{ "rate_limiter", "put_policy", "burst", 1, 1000000000 },
		{ "rate_limiter", "put_policy", "name", 1, 64 },
	};
	const struct method *m;
	size_t i;
	uint32_t a;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("%s.%s %s", rows[i].class_name, rows[i].method,
			       rows[i].arg);
		m = method_find(rows[i].class_name, strlen(rows[i].class_name),
				rows[i].method, strlen(rows[i].method));
		EXPECT_NOT_NULL(m);
		for (a = 0; a < m->args_count; a++)
			if (strcmp(m->args[a].name, rows[i].arg) == 0)
				break;
		EXPECT_TRUE(a < m->args_count);
		EXPECT_INT(m->args[a].min, rows[i].min);
		EXPECT_INT(m->args[a].max, rows[i].max);
	}
}

TEST(places_are_those_of_the_table)
{
	const struct method *m;

#define ARG(class, method, name_, type, required, min, max, text)           \
	m = method_at(METHOD_##class##_##method);                           \
	EXPECT_TRUE(ARG_##class##_##method##_##name_ < (int)m->args_count); \
	EXPECT_STR(m->args[ARG_##class##_##method##_##name_].name, #name_);
#include "client/proto/method.tbl"
	EXPECT_INT(ARG_kv_get_key, 0);
	EXPECT_INT(ARG_kv_put_if_rev, 3);
	EXPECT_INT(ARG_rate_limiter_peek_policy, 1);
}

TEST(words_are_those_of_the_table)
{
	EXPECT_STR(method_word(SET_durability, WORD_durability_memory),
		   "memory");
	EXPECT_STR(method_word(SET_durability, WORD_durability_lagged),
		   "lagged");
	EXPECT_STR(method_word(SET_durability, WORD_durability_committed),
		   "committed");
	EXPECT_STR(method_word(SET_durability, WORD_durability_leased),
		   "leased");
	EXPECT_NULL(method_word(SET_durability, 4));
	EXPECT_STR(method_word(SET_read, WORD_read_stale), "stale");
	EXPECT_STR(method_word(SET_route, WORD_route_forward), "forward");
	EXPECT_INT(WORD_route_forward, 0);
	EXPECT_NULL(method_word(METHOD_SETS, 0));
}

/* ------------------------------------------------------------ finding */

TEST(each_method_is_found_by_its_whole_name_only)
{
	const struct method *m;
	char name[80];
	size_t i;

	for (i = 0; i < METHODS_COUNT; i++) {
		m = method_at(i);
		runner_context("%s.%s", m->class_name, m->name);
		EXPECT_TRUE(method_find(m->class_name, m->class_bytes, m->name,
					m->name_bytes) == m);
		EXPECT_NULL(method_find(m->class_name, m->class_bytes - 1,
					m->name, m->name_bytes));
		(void)snprintf(name, sizeof(name), "%sx", m->name);
		EXPECT_NULL(method_find(m->class_name, m->class_bytes, name,
					m->name_bytes + 1));
		EXPECT_NULL(method_find(m->class_name, m->class_bytes, "", 0));
		EXPECT_NULL(method_find("", 0, m->name, m->name_bytes));
		EXPECT_NULL(method_find(NULL, 0, m->name, m->name_bytes));
		EXPECT_TRUE(method_class_known(m->class_name, m->class_bytes));
	}
	EXPECT_NULL(method_find("kv", 2, "GET", 3));
	EXPECT_NULL(method_find("kv", 2, "get\0", 4));
	EXPECT_NULL(method_find("kv", 2, "check", 5));
	EXPECT_FALSE(method_class_known("k", 1));
	EXPECT_FALSE(method_class_known("kv\0", 3));
	EXPECT_FALSE(method_class_known(NULL, 0));
#ifndef HOLDFAST_TESTING
	EXPECT_FALSE(method_class_known("relay", 5));
#endif
}

TEST(rpc_methods_are_found_by_kind)
{
	static const struct {
		const char *name;
		bool notify;
		uint32_t min, max;
	} rows[] = {
		{ "call", false, 3, 4 },     { "hello", false, 0, 1 },
		{ "ping", false, 0, 0 },     { "status", false, 0, 1 },
		{ "metrics", false, 0, 0 },  { "objects", false, 0, 1 },
		{ "object", false, 1, 1 },   { "shard", false, 1, 1 },
		{ "transfer", false, 1, 2 }, { "cancel", true, 1, 1 },
	};
	const struct rpc_method *m;
	size_t i;

	EXPECT_UINT(RPCS_COUNT, sizeof(rows) / sizeof(rows[0]));
	for (i = 0; i < RPCS_COUNT; i++) {
		runner_context("%s", rows[i].name);
		m = rpc_method_find(rows[i].name, strlen(rows[i].name),
				    rows[i].notify);
		EXPECT_NOT_NULL(m);
		EXPECT_TRUE(rpc_method_at(i) == m);
		EXPECT_UINT(m->number, i);
		EXPECT_UINT(m->params_min, rows[i].min);
		EXPECT_UINT(m->params_max, rows[i].max);
		EXPECT_TRUE(strlen(m->text) > 0);
		EXPECT_NULL(rpc_method_find(rows[i].name, strlen(rows[i].name),
					    !rows[i].notify));
		EXPECT_FALSE(rpc_method_find(rows[i].name,
					     strlen(rows[i].name) - 1,
					     rows[i].notify) == m);
	}
	EXPECT_INT(RPC_call, 0);
	EXPECT_NULL(rpc_method_at(RPCS_COUNT));
	EXPECT_NULL(rpc_method_find("", 0, false));
}

TEST(rights_have_names)
{
	static const struct {
		const char *name;
		enum method_right right;
	} rows[] = { { "read", RIGHT_READ },
		     { "write", RIGHT_WRITE },
		     { "admin", RIGHT_ADMIN } };
	enum method_right right;
	size_t i;

	for (i = 0; i < 3; i++) {
		EXPECT_STR(method_right_name(rows[i].right), rows[i].name);
		EXPECT_RC(method_right_parse(rows[i].name, strlen(rows[i].name),
					     &right),
			  RC_OK);
		EXPECT_INT(right, rows[i].right);
	}
	EXPECT_RC(method_right_parse("rea", 3, &right), RC_NOT_FOUND);
	EXPECT_RC(method_right_parse("none", 4, &right), RC_NOT_FOUND);
	EXPECT_RC(method_right_parse("", 0, &right), RC_NOT_FOUND);
	EXPECT_STR(method_right_name((enum method_right)0), "none");
}

/* ------------------------------------------------------------ arguments */

static char filler[2 * 1024 * 1024];

static void put_array_of(struct pack_w *w, int64_t n)
{
	pack_array(w, (uint32_t)n);
	while (n-- > 0)
		pack_map(w, 0);
}

static void put_int(struct pack_w *w, int64_t v)
{
	pack_i64(w, v);
}

/* A value at the argument's lower or upper bound. */
static void put_bound(struct pack_w *w, const struct method_arg *a, bool upper)
{
	int64_t n = upper ? a->max : a->min;

	switch (a->type) {
	case METHOD_STR:
		pack_str(w, filler, (size_t)n);
		return;
	case METHOD_BYTES:
		if (upper)
			pack_bin(w, filler, (size_t)n);
		else
			pack_str(w, filler, (size_t)n);
		return;
	case METHOD_VALUE:
	case METHOD_VALUE_NIL:
		if (upper)
			pack_str(w, filler, (size_t)n);
		else
			pack_bin(w, filler, (size_t)n);
		return;
	case METHOD_UINT:
	case METHOD_INT:
		put_int(w, n);
		return;
	case METHOD_BOOL:
		pack_bool(w, upper);
		return;
	case METHOD_ENUM:
		pack_cstr(w,
			  method_word((enum method_set)a->min, upper ? 1 : 0));
		return;
	case METHOD_ARRAY:
		put_array_of(w, n);
		return;
	case METHOD_MAP:
		break;
	}
	FAIL("no argument has this type");
}

/* The map of all arguments at a bound but `skip` (-1: none is skipped), of
 * which the caller appends its own idea. */
static void put_others(struct pack_w *w, const struct method *m, int skip,
		       uint32_t more, bool upper)
{
	uint32_t i;

	pack_w_reset(w);
	pack_map(w, m->args_count - (skip >= 0) + more);
	for (i = 0; i < m->args_count; i++) {
		if ((int)i == skip)
			continue;
		pack_cstr(w, m->args[i].name);
		put_bound(w, &m->args[i], upper);
	}
}

static enum rc check(const struct method *m, const struct pack_w *w,
		     struct method_args *out, struct detail *why)
{
	EXPECT_RC(w->rc, RC_OK);
	memset(why, 0, sizeof(*why));
	return method_args_check(m, (struct pack_bytes){ w->p, w->n }, out,
				 why);
}

/* All methods, and the options as the last. */
static const struct method *method_or_options(size_t i)
{
	return i < METHODS_COUNT ? method_at(i) : method_call_options();
}

#define FOR_EACH_METHOD(i, m) \
	for (i = 0; i <= METHODS_COUNT && (m = method_or_options(i)); i++)

TEST(every_argument_at_both_bounds_is_taken)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	size_t i;
	uint32_t k;
	int upper;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		for (upper = 0; upper < 2; upper++) {
			runner_context("%s.%s upper %d", m->class_name, m->name,
				       upper);
			put_others(&w, m, -1, 0, upper);
			EXPECT_RC(check(m, &w, &a, &why), RC_OK);
			EXPECT_UINT(a.present, (1U << m->args_count) - 1);
			EXPECT_STR(why.text, "");
			for (k = 0; k < m->args_count; k++) {
				struct pack_w one;

				pack_w_init(&one, ARGS_BYTES);
				put_bound(&one, &m->args[k], upper);
				EXPECT_UINT(a.at[k].bytes.n, one.n);
				EXPECT_MEM(a.at[k].bytes.p, one.p, one.n);
				if (m->args[k].type == METHOD_ENUM)
					EXPECT_UINT(a.at[k].word, upper);
				pack_w_release(&one);
			}
		}
	}
	pack_w_release(&w);
}

TEST(only_what_is_required_is_needed)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	uint32_t k, required;
	size_t i;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		runner_context("%s.%s", m->class_name, m->name);
		required = 0;
		for (k = 0; k < m->args_count; k++)
			required += m->args[k].required;
		pack_w_reset(&w);
		pack_map(&w, required);
		for (k = m->args_count; k-- > 0;) {
			if (m->args[k].required) {
				pack_cstr(&w, m->args[k].name);
				put_bound(&w, &m->args[k], true);
			}
		}
		EXPECT_RC(check(m, &w, &a, &why), RC_OK);
		for (k = 0; k < m->args_count; k++)
			EXPECT_INT(method_has(&a, (int)k), m->args[k].required);
	}
	pack_w_release(&w);
}

TEST(each_missing_argument_is_named)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	uint32_t k;
	size_t i;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		for (k = 0; k < m->args_count; k++) {
			runner_context("%s.%s %s", m->class_name, m->name,
				       m->args[k].name);
			put_others(&w, m, (int)k, 0, false);
			if (!m->args[k].required) {
				EXPECT_RC(check(m, &w, &a, &why), RC_OK);
				continue;
			}
			EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
			EXPECT_STR(why.field, m->args[k].name);
			EXPECT_HAS(why.text, "is missing");
		}
	}
	pack_w_release(&w);
}

TEST(each_argument_given_twice_is_named)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	uint32_t k;
	size_t i;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		for (k = 0; k < m->args_count; k++) {
			runner_context("%s.%s %s", m->class_name, m->name,
				       m->args[k].name);
			put_others(&w, m, -1, 1, false);
			pack_cstr(&w, m->args[k].name);
			put_bound(&w, &m->args[k], false);
			EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
			EXPECT_STR(why.field, m->args[k].name);
			EXPECT_HAS(why.text, "is given twice");
		}
	}
	pack_w_release(&w);
}

enum sample {
	SAMPLE_NIL,
	SAMPLE_BOOL,
	SAMPLE_INT,
	SAMPLE_NEGATIVE,
	SAMPLE_HUGE,
	SAMPLE_FLOAT,
	SAMPLE_STR,
	SAMPLE_BIN,
	SAMPLE_ARRAY,
	SAMPLE_MAP,
	SAMPLE_EXT,
	SAMPLES,
};

/* `a` NULL: what stands for no argument. */
static void put_sample(struct pack_w *w, int sample, const struct method_arg *a)
{
	bool sized =
		a != NULL && (a->type == METHOD_STR || a->type == METHOD_BYTES);
	int64_t min = a != NULL && a->type == METHOD_UINT ? a->min : 0;
	size_t n = sized && a->max < 60 ? (size_t)a->max : 60;

	switch ((enum sample)sample) {
	case SAMPLE_NIL:
		pack_nil(w);
		return;
	case SAMPLE_BOOL:
		pack_bool(w, true);
		return;
	case SAMPLE_INT:
		put_int(w, min > 5 ? min : 5);
		return;
	case SAMPLE_NEGATIVE:
		pack_i64(w, -5);
		return;
	case SAMPLE_HUGE:
		pack_u64(w, (uint64_t)INT64_MAX + 1);
		return;
	case SAMPLE_FLOAT:
		pack_double(w, 5.0);
		return;
	case SAMPLE_STR:
		pack_str(w, filler, n);
		return;
	case SAMPLE_BIN:
		pack_bin(w, filler, n);
		return;
	case SAMPLE_ARRAY:
		put_array_of(w, 2);
		return;
	case SAMPLE_MAP:
		pack_map(w, 1);
		pack_nil(w);
		pack_nil(w);
		return;
	case SAMPLE_EXT:
		pack_raw(w, "\xd4\x01x", 3);
		return;
	case SAMPLES:
		break;
	}
}

#define BIT(sample) (1U << (sample))
#define BYTES_BITS  (BIT(SAMPLE_STR) | BIT(SAMPLE_BIN))
#define INT_BITS    (BIT(SAMPLE_INT) | BIT(SAMPLE_NEGATIVE))

static unsigned samples_taken(enum method_type type)
{
	switch (type) {
	case METHOD_STR:
		return BIT(SAMPLE_STR);
	case METHOD_BYTES:
		return BYTES_BITS;
	case METHOD_UINT:
		return BIT(SAMPLE_INT);
	case METHOD_INT:
		return INT_BITS;
	case METHOD_BOOL:
		return BIT(SAMPLE_BOOL);
	case METHOD_ENUM:
		return 0; /* The string is no word. */
	case METHOD_VALUE:
		return BYTES_BITS | INT_BITS;
	case METHOD_VALUE_NIL:
		return BYTES_BITS | INT_BITS | BIT(SAMPLE_NIL);
	case METHOD_ARRAY:
		return BIT(SAMPLE_ARRAY);
	case METHOD_MAP:
		return BIT(SAMPLE_MAP);
	}
	return 0;
}

TEST(each_argument_of_each_wrong_type_is_named)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	uint32_t k;
	size_t i;
	int s;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		for (k = 0; k < m->args_count; k++) {
			for (s = 0; s < SAMPLES; s++) {
				bool good = (samples_taken(m->args[k].type) &
					     BIT(s)) != 0;

				runner_context("%s.%s %s sample %d",
					       m->class_name, m->name,
					       m->args[k].name, s);
				put_others(&w, m, (int)k, 1, false);
				pack_cstr(&w, m->args[k].name);
				put_sample(&w, s, &m->args[k]);
				EXPECT_RC(check(m, &w, &a, &why),
					  good ? RC_OK : RC_INVALID);
				EXPECT_STR(why.field,
					   good ? "" : m->args[k].name);
				if (!good)
					EXPECT_HAS(why.text, "` must be ");
				EXPECT_RC(method_args_check(m,
							    (struct pack_bytes){
								    w.p, w.n },
							    &a, NULL),
					  good ? RC_OK : RC_INVALID);
			}
		}
	}
	pack_w_release(&w);
}

/* Just outside of a bound; false when there is nothing outside. */
static bool put_outside(struct pack_w *w, const struct method_arg *a,
			bool upper)
{
	int64_t n = upper ? a->max + (a->max != INT64_MAX)
			  : a->min - (a->min != INT64_MIN);

	switch (a->type) {
	case METHOD_STR:
	case METHOD_BYTES:
	case METHOD_VALUE:
	case METHOD_VALUE_NIL:
		if (n < 0)
			return false;
		pack_str(w, filler, (size_t)n);
		return true;
	case METHOD_UINT:
		if (upper && n == a->max)
			pack_u64(w, (uint64_t)INT64_MAX + 1);
		else
			put_int(w, n);
		return true;
	case METHOD_INT:
		if (!upper)
			return false;
		pack_u64(w, (uint64_t)INT64_MAX + 1);
		return true;
	case METHOD_ENUM:
		pack_cstr(w, upper ? "memor" : "");
		return true;
	case METHOD_ARRAY:
		if (n < 0)
			return false;
		put_array_of(w, n);
		return true;
	case METHOD_BOOL:
	case METHOD_MAP:
		break;
	}
	return false;
}

TEST(each_argument_outside_its_bounds_is_named)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	unsigned tried = 0;
	uint32_t k;
	size_t i;
	int upper;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		for (k = 0; k < m->args_count; k++) {
			for (upper = 0; upper < 2; upper++) {
				runner_context("%s.%s %s upper %d",
					       m->class_name, m->name,
					       m->args[k].name, upper);
				put_others(&w, m, (int)k, 1, false);
				pack_cstr(&w, m->args[k].name);
				if (!put_outside(&w, &m->args[k], upper))
					continue;
				tried++;
				EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
				EXPECT_STR(why.field, m->args[k].name);
				EXPECT_HAS(why.text, "` must be ");
			}
		}
	}
	EXPECT_TRUE(tried > 60);
	pack_w_release(&w);
}

TEST(an_unknown_argument_is_named)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	size_t i;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		runner_context("%s.%s", m->class_name, m->name);
		put_others(&w, m, -1, 1, false);
		pack_cstr(&w, "foo");
		pack_nil(&w);
		EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
		EXPECT_STR(why.field, "foo");
		EXPECT_STR(why.text, i < METHODS_COUNT
					     ? "unknown argument `foo`"
					     : "unknown option `foo`");
	}
	pack_w_release(&w);
}

TEST(a_strange_name_is_shown_harmless)
{
	const struct method *m = method_at(METHOD_kv_get);
	struct method_args a;
	struct detail why;
	struct pack_w w;

	pack_w_init(&w, ARGS_BYTES);
	pack_map(&w, 1);
	pack_bin(&w, "a\n\xff\0b\x1b[", 7);
	pack_nil(&w);
	EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
	EXPECT_STR(why.text, "unknown argument `a???b?[`");

	memset(filler, 'z', 100);
	pack_w_reset(&w);
	pack_map(&w, 1);
	pack_str(&w, filler, 100000);
	pack_nil(&w);
	EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
	EXPECT_HAS(why.text, "unknown argument `zzzzzz");
	EXPECT_HAS(why.text, "zzz...`");
	EXPECT_TRUE(strlen(why.field) < 60);

	pack_w_reset(&w);
	pack_map(&w, 1);
	pack_str(&w, "", 0);
	pack_nil(&w);
	EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
	EXPECT_STR(why.text, "unknown argument ``");
	memset(filler, 0, 100);
	pack_w_release(&w);
}

TEST(sentences_say_what_is_expected)
{
	static const struct {
		const char *class_name, *method, *arg, *text;
	} rows[] = {
		{ "kv", "get", "key",
		  "`key` must be a string or binary of 1 to 1024 bytes" },
		{ "kv", "list", "limit",
		  "`limit` must be an integer from 1 to 1000" },
		{ "kv", "list", "reverse", "`reverse` must be true or false" },
		{ "kv", "put", "value",
		  "`value` must be a string or binary of at most 1048576 bytes "
		  "or an integer of 64 bits" },
		{ "kv", "cas", "expect",
		  "`expect` must be a string or binary of at most 1048576 "
		  "bytes, nil or an integer of 64 bits" },
		{ "kv", "batch", "ops",
		  "`ops` must be an array of 1 to 1000 elements" },
		{ "rate_limiter", "put_policy", "durability",
		  "`durability` must be one of memory, lagged, committed, "
		  "leased" },
		{ "rate_limiter", "check", "policy",
		  "`policy` must be a string of 1 to 64 bytes" },
	};
	struct method_args a;
	struct detail why;
	struct pack_w w;
	size_t i;

	pack_w_init(&w, ARGS_BYTES);
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		pack_w_reset(&w);
		pack_map(&w, 1);
		pack_cstr(&w, rows[i].arg);
		pack_double(&w, 1.0);
		EXPECT_RC(check(method_find(rows[i].class_name,
					    strlen(rows[i].class_name),
					    rows[i].method,
					    strlen(rows[i].method)),
				&w, &a, &why),
			  RC_INVALID);
		EXPECT_STR(why.text, rows[i].text);
	}
	pack_w_release(&w);
}

TEST(args_that_are_no_map)
{
	const struct method *m = method_at(METHOD_kv_get);
	struct method_args a;
	struct detail why;
	struct pack_w w;
	int s;

	pack_w_init(&w, ARGS_BYTES);
	for (s = 0; s < SAMPLES; s++) {
		if (s == SAMPLE_MAP)
			continue;
		runner_context("sample %d", s);
		pack_w_reset(&w);
		put_sample(&w, s, NULL);
		EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
		EXPECT_STR(why.field, "args");
		EXPECT_STR(why.text, "`args` must be a map");
		EXPECT_RC(check(method_call_options(), &w, &a, &why),
			  RC_INVALID);
		EXPECT_STR(why.field, "options");
		/* The key of a pair. */
		pack_w_reset(&w);
		pack_map(&w, 1);
		put_sample(&w, s, NULL);
		pack_nil(&w);
		EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
		if (s != SAMPLE_STR && s != SAMPLE_BIN)
			EXPECT_STR(why.text, "`args` has a key that is no "
					     "string");
	}
	pack_w_release(&w);
}

TEST(args_cut_anywhere_are_refused)
{
	const struct method *m;
	struct method_args a;
	struct detail why;
	struct pack_w w;
	uint8_t *cut;
	size_t i, n;

	pack_w_init(&w, ARGS_BYTES);
	FOR_EACH_METHOD(i, m)
	{
		put_others(&w, m, -1, 0, false);
		for (n = 0; n < w.n; n++) {
			runner_context("%s.%s %zu of %zu", m->class_name,
				       m->name, n, w.n);
			cut = malloc(n > 0 ? n : 1);
			EXPECT_NOT_NULL(cut);
			memcpy(cut, w.p, n);
			memset(&why, 0, sizeof(why));
			EXPECT_RC(method_args_check(
					  m, (struct pack_bytes){ cut, n }, &a,
					  &why),
				  RC_INVALID);
			EXPECT_TRUE(strlen(why.field) > 0);
			free(cut);
		}
		pack_nil(&w);
		EXPECT_RC(check(m, &w, &a, &why), RC_INVALID);
		EXPECT_STR(why.text, i < METHODS_COUNT
					     ? "`args` is followed by other "
					       "bytes"
					     : "`options` is followed by other "
					       "bytes");
	}
	pack_w_release(&w);
}

TEST(a_value_nested_deep_is_passed_over_without_recursion)
{
	static const uint8_t head[] = { 0x81, 0xa3, 'o', 'p', 's' };
	static uint8_t deep[200000];
	const struct method *m = method_at(METHOD_kv_batch);
	struct method_args a;
	struct detail why = { 0 };

	memset(deep, 0x91, sizeof(deep));
	memcpy(deep, head, sizeof(head));
	deep[sizeof(deep) - 1] = 0x90;
	EXPECT_RC(method_args_check(m,
				    (struct pack_bytes){ deep, sizeof(deep) },
				    &a, &why),
		  RC_OK);
	EXPECT_UINT(a.at[ARG_kv_batch_ops].bytes.n,
		    sizeof(deep) - sizeof(head));
}

TEST(keys_and_words_may_be_bin)
{
	const struct method *m = method_call_options();
	struct method_args a;
	struct detail why;
	struct pack_w w;

	pack_w_init(&w, ARGS_BYTES);
	pack_map(&w, 1);
	pack_bin(&w, "durability", 10);
	pack_bin(&w, "committed", 9);
	EXPECT_RC(check(m, &w, &a, &why), RC_OK);
	EXPECT_UINT(method_word_of(&a, OPTION_durability, 9),
		    WORD_durability_committed);
	EXPECT_UINT(method_word_of(&a, OPTION_read, 9), 9);
	pack_w_release(&w);
}

TEST(readers_of_values)
{
	const struct method *m = method_at(METHOD_kv_list);
	struct method_args a;
	struct detail why;
	struct pack_w w;

	pack_w_init(&w, ARGS_BYTES);
	pack_map(&w, 3);
	pack_cstr(&w, "limit");
	pack_u64(&w, 7);
	pack_cstr(&w, "reverse");
	pack_bool(&w, true);
	pack_cstr(&w, "prefix");
	pack_cstr(&w, "ab");
	EXPECT_RC(check(m, &w, &a, &why), RC_OK);
	EXPECT_UINT(method_u64(&a, ARG_kv_list_limit, 100), 7);
	EXPECT_INT(method_i64(&a, ARG_kv_list_limit, 100), 7);
	EXPECT_TRUE(method_bool(&a, ARG_kv_list_reverse, false));
	EXPECT_TRUE(
		pack_bytes_eq(method_bytes(&a, ARG_kv_list_prefix), "ab", 2));
	EXPECT_NULL(method_bytes(&a, ARG_kv_list_cursor).p);

	pack_w_reset(&w);
	pack_map(&w, 0);
	EXPECT_RC(check(m, &w, &a, &why), RC_OK);
	EXPECT_UINT(method_u64(&a, ARG_kv_list_limit, 100), 100);
	EXPECT_INT(method_i64(&a, ARG_kv_list_limit, -1), -1);
	EXPECT_FALSE(method_bool(&a, ARG_kv_list_reverse, false));

	/* By: negative, and positive in a form for signed numbers. */
	pack_w_reset(&w);
	pack_map(&w, 2);
	pack_cstr(&w, "key");
	pack_cstr(&w, "n");
	pack_cstr(&w, "by");
	pack_i64(&w, INT64_MIN);
	EXPECT_RC(check(method_at(METHOD_kv_incr), &w, &a, &why), RC_OK);
	EXPECT_INT(method_i64(&a, ARG_kv_incr_by, 1), INT64_MIN);
	pack_w_release(&w);
}

TEST(a_map_with_one_key_more)
{
	const struct method *m = method_at(METHOD_kv_delete);
	struct method_args a;
	struct detail why;
	struct pack_w w;
	int times;

	pack_w_init(&w, ARGS_BYTES);
	for (times = 0; times < 3; times++) {
		pack_w_reset(&w);
		pack_map(&w, 1 + (uint32_t)times);
		if (times > 0) {
			pack_cstr(&w, "op");
			put_array_of(&w, 3);
		}
		pack_cstr(&w, "key");
		pack_cstr(&w, "k");
		if (times > 1) {
			pack_cstr(&w, "op");
			pack_nil(&w);
		}
		memset(&why, 0, sizeof(why));
		runner_context("%d", times);
		EXPECT_RC(method_args_check_besides(
				  m, (struct pack_bytes){ w.p, w.n }, "op", &a,
				  &why),
			  times < 2 ? RC_OK : RC_INVALID);
		EXPECT_STR(why.field, times < 2 ? "" : "op");
	}
	/* Cut off inside of it. */
	memset(&why, 0, sizeof(why));
	EXPECT_RC(method_args_check_besides(
			  m,
			  (struct pack_bytes){
				  (const uint8_t *)"\x82\xa2op\x92\x01", 6 },
			  "op", &a, &why),
		  RC_INVALID);
	EXPECT_STR(why.text, "`args` is cut off");
	pack_w_release(&w);
}
