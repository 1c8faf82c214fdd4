/*
 * rate_limiter behind real live objects, on a world moved by hand.
 *
 * The model is a leaky bucket, not the algorithm itself: what a key has used
 * leaks away at limit / period; in units of 1/period of a permit and time in ns
 * all of it is whole, and in 128 bits exact.
 */
#include "node/base/check.h"
#include "objects/space.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/say.h"
#include "tests/sim/prng.h"

__extension__ typedef __int128 i128;

#define MS_NS  1000000ull
#define S_MS   1000ull
#define DAY_MS 86400000ull

static struct fake *f;
static struct fake_event *last;

static void drop_last(void)
{
	if (last != NULL)
		fake_event_free(last);
	last = NULL;
}

static void begin(void)
{
	drop_last();
	if (f != NULL)
		fake_free(f);
	f = fake_new(NULL);
	EXPECT_NOT_NULL(f);
	/* A moment after the takeover. */
	fake_advance(f, 1);
}

static void end(void)
{
	drop_last();
	fake_free(f);
	f = NULL;
}

static enum rc call_with(const char *method, const char *args,
			 enum durability d)
{
	struct pack_w w;

	drop_last();
	last = fake_event(f, &class_rate_limiter, "o", method);
	pack_w_init(&w, FRAME_BYTES_MAX);
	say_pack(&w, args);
	fake_event_args(last, w.p, w.n);
	pack_w_release(&w);
	last->ev.durability = d;
	fake_send(f, last);
	fake_go(f);
	EXPECT_TRUE(last->done);
	return last->ev.rc;
}

__attribute__((format(printf, 2, 3))) static enum rc call(const char *method,
							  const char *format,
							  ...)
{
	static char args[65536];
	va_list ap;

	va_start(ap, format);
	(void)vsnprintf(args, sizeof(args), format, ap);
	va_end(ap);
	return call_with(method, args, DURABILITY_DEFAULT);
}

static struct pack_bytes result(void)
{
	return (struct pack_bytes){ last->ev.result.p, last->ev.result.n };
}

static void expect_ok(const char *method, const char *args, const char *want)
{
	runner_context("%s %.200s", method, args);
	if (call(method, "%s", args) != RC_OK)
		FAIL("%s: %s: %s", rc_name(last->ev.rc), last->ev.why.field,
		     last->ev.why.text);
	EXPECT_STR(say_text(result()), want);
	runner_context("%s", "");
}

static void expect_refused(const char *method, const char *args, enum rc rc,
			   const char *field, const char *part)
{
	size_t units = f->units_all;

	runner_context("%s %.200s", method, args);
	EXPECT_RC(call(method, "%s", args), rc);
	EXPECT_STR(last->ev.why.field, field);
	EXPECT_HAS(last->ev.why.text, part);
	EXPECT_INT(last->ev.outcome, OUTCOME_REFUSED);
	EXPECT_UINT(f->units_all, units);
	runner_context("%s", "");
}

static void policy(const char *args)
{
	EXPECT_RC(call("put_policy", "%s", args), RC_OK);
}

struct seen {
	bool allowed;
	uint64_t limit;
	uint64_t remaining;
	uint64_t retry_ms;
	uint64_t reset_ms;
};

static struct seen seen_in(struct pack_bytes map)
{
	struct seen s = { .allowed = say_bool(map, "allowed"),
			  .limit = say_u64(map, "limit"),
			  .remaining = say_u64(map, "remaining"),
			  .retry_ms = say_u64(map, "retry_after_ms"),
			  .reset_ms = say_u64(map, "reset_after_ms") };

	return s;
}

static struct seen check(const char *key, uint64_t cost)
{
	EXPECT_RC(call("check", "{'key':'%s','cost':%" PRIu64 "}", key, cost),
		  RC_OK);
	return seen_in(result());
}

static struct seen dry(const char *key, uint64_t cost)
{
	EXPECT_RC(call("check",
		       "{'key':'%s','cost':%" PRIu64 ",'dry_run':true}", key,
		       cost),
		  RC_OK);
	return seen_in(result());
}

TEST(the_first_answers)
{
	begin();
	policy("{'limit':10,'period_ms':1000}");
	expect_ok("check", "{'key':'a'}",
		  "{'allowed':true,'limit':10,'remaining':9,'retry_after_ms':0,"
		  "'reset_after_ms':100,'rev':1}");
	expect_ok("check", "{'key':'a','cost':9}",
		  "{'allowed':true,'limit':10,'remaining':0,'retry_after_ms':0,"
		  "'reset_after_ms':1000,'rev':1}");
	expect_ok("check", "{'key':'a'}",
		  "{'allowed':false,'limit':10,'remaining':0,"
		  "'retry_after_ms':100,'reset_after_ms':1000,'rev':1}");
	expect_ok("check", "{'key':'a','cost':10}",
		  "{'allowed':false,'limit':10,'remaining':0,"
		  "'retry_after_ms':1000,'reset_after_ms':1000,'rev':1}");
	fake_advance(f, 100);
	expect_ok("check", "{'key':'a'}",
		  "{'allowed':true,'limit':10,'remaining':0,'retry_after_ms':0,"
		  "'reset_after_ms':1000,'rev':1}");
	/* Another key, and the same bytes as a bin. */
	EXPECT_TRUE(check("b", 10).allowed);
	expect_ok("check", "{'key':{'$bin':'Yg=='}}",
		  "{'allowed':false,'limit':10,'remaining':0,"
		  "'retry_after_ms':100,'reset_after_ms':1000,'rev':1}");
	end();
}

TEST(without_a_policy)
{
	begin();
	expect_refused("check", "{'key':'a'}", RC_NOT_FOUND, "policy",
		       "`default`");
	expect_refused("peek", "{'key':'a'}", RC_NOT_FOUND, "policy",
		       "`default`");
	expect_refused("reset", "{'key':'a'}", RC_NOT_FOUND, "policy",
		       "`default`");
	expect_refused("check_many", "{'checks':[{'key':'a'}]}", RC_NOT_FOUND,
		       "checks[0].policy", "`default`");
	expect_ok("describe", "{}", "{'policies':[],'rev':0}");
	policy("{'limit':1,'period_ms':1,'name':'x'}");
	expect_refused("check", "{'key':'a'}", RC_NOT_FOUND, "policy",
		       "`default`");
	expect_refused("check", "{'key':'a','policy':'y'}", RC_NOT_FOUND,
		       "policy", "`y`");
	end();
}

TEST(policies)
{
	begin();
	expect_ok("put_policy", "{'limit':10,'period_ms':1000}", "{'rev':1}");
	expect_ok("put_policy",
		  "{'limit':5,'period_ms':2000,'burst':7,'durability':'memory',"
		  "'name':'slow'}",
		  "{'rev':2}");
	expect_ok("describe", "{}",
		  "{'policies':[{'name':'default','limit':10,'period_ms':1000,"
		  "'burst':10,'durability':'lagged','rev':1},"
		  "{'name':'slow','limit':5,'period_ms':2000,'burst':7,"
		  "'durability':'memory','rev':2}],'rev':2}");
	expect_refused("put_policy", "{'limit':1,'period_ms':1,'if_rev':0}",
		       RC_CONFLICT, "if_rev", "revision 1");
	expect_refused("put_policy",
		       "{'limit':1,'period_ms':1,'if_rev':1,'name':'slow'}",
		       RC_CONFLICT, "if_rev", "revision 2");
	expect_refused("put_policy",
		       "{'limit':1,'period_ms':1,'if_rev':1,'name':'new'}",
		       RC_CONFLICT, "if_rev", "revision 0");
	expect_ok("put_policy",
		  "{'limit':1,'period_ms':1,'if_rev':1,"
		  "'durability':'committed'}",
		  "{'rev':3}");
	expect_ok("put_policy",
		  "{'limit':1,'period_ms':1,'if_rev':0,'name':'new'}",
		  "{'rev':4}");
	fake_change(f);
	expect_ok("describe", "{}",
		  "{'policies':[{'name':'default','limit':1,'period_ms':1,"
		  "'burst':1,'durability':'committed','rev':3},"
		  "{'name':'new','limit':1,'period_ms':1,'burst':1,"
		  "'durability':'lagged','rev':4},"
		  "{'name':'slow','limit':5,'period_ms':2000,'burst':7,"
		  "'durability':'memory','rev':2}],'rev':4}");
	end();
}

TEST(policies_have_a_bound)
{
	unsigned i;

	begin();
	for (i = 0; i < LIMITER_POLICIES_MAX; i++)
		EXPECT_RC(call("put_policy",
			       "{'limit':1,'period_ms':1,'name':'p%u'}", i),
			  RC_OK);
	expect_refused("put_policy", "{'limit':1,'period_ms':1}", RC_OVERLOADED,
		       "name", "at most 64");
	/* One that exists may change. */
	expect_ok("put_policy", "{'limit':2,'period_ms':1,'name':'p0'}",
		  "{'rev':65}");
	end();
}

TEST(policies_have_keys_of_their_own)
{
	begin();
	policy("{'limit':1,'period_ms':1000,'name':'a'}");
	policy("{'limit':1,'period_ms':1000,'name':'ab'}");
	EXPECT_RC(call("check", "{'key':'bc','policy':'a'}"), RC_OK);
	EXPECT_TRUE(seen_in(result()).allowed);
	/* Their names and keys together are the same bytes. */
	EXPECT_RC(call("check", "{'key':'c','policy':'ab'}"), RC_OK);
	EXPECT_TRUE(seen_in(result()).allowed);
	EXPECT_RC(call("check", "{'key':'bc','policy':'a'}"), RC_OK);
	EXPECT_FALSE(seen_in(result()).allowed);
	end();
}

TEST(a_cost_above_the_burst_is_never_let_in)
{
	begin();
	policy("{'limit':10,'period_ms':1000,'burst':5}");
	expect_refused("check", "{'key':'a','cost':6}", RC_INVALID, "cost",
		       "never let in");
	EXPECT_TRUE(check("a", 5).allowed);
	expect_refused("check", "{'key':'a','cost':1000000000}", RC_INVALID,
		       "cost", "burst is 5");
	expect_refused("check_many",
		       "{'checks':[{'key':'b'},{'key':'a','cost':6}]}",
		       RC_INVALID, "checks[1].cost", "never let in");
	EXPECT_UINT(dry("b", 1).remaining, 5);
	end();
}

TEST(what_takes_nothing)
{
	struct seen s;
	size_t units;

	begin();
	policy("{'limit':3,'period_ms':3000}");
	EXPECT_TRUE(check("a", 2).allowed);
	units = f->units_all;
	s = dry("a", 1);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.remaining, 1);
	EXPECT_UINT(s.reset_ms, 2000);
	s = dry("a", 2);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.retry_ms, 1000);
	s = check("a", 0);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.remaining, 1);
	expect_ok("peek", "{'key':'a'}",
		  "{'allowed':true,'limit':3,'remaining':1,'retry_after_ms':0,"
		  "'reset_after_ms':2000,'rev':1}");
	expect_ok("peek", "{'key':'nobody'}",
		  "{'allowed':true,'limit':3,'remaining':3,'retry_after_ms':0,"
		  "'reset_after_ms':0,'rev':1}");
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(f->units_all, units + 1);
	s = check("a", 0);
	EXPECT_TRUE(s.allowed);
	expect_ok("peek", "{'key':'a'}",
		  "{'allowed':false,'limit':3,'remaining':0,"
		  "'retry_after_ms':1000,'reset_after_ms':3000,'rev':1}");
	EXPECT_UINT(f->units_all, units + 1);
	end();
}

TEST(denied_requests_never_consume)
{
	unsigned i;

	begin();
	policy("{'limit':1,'period_ms':1000}");
	EXPECT_TRUE(check("a", 1).allowed);
	for (i = 0; i < 100; i++) {
		struct seen s = check("a", 1);

		EXPECT_FALSE(s.allowed);
		EXPECT_UINT(s.retry_ms, 1000 - 9 * i);
		fake_advance(f, 9);
	}
	fake_advance(f, 100);
	EXPECT_TRUE(check("a", 1).allowed);
	end();
}

TEST(reset)
{
	begin();
	policy("{'limit':2,'period_ms':1000}");
	expect_ok("reset", "{'key':'a'}", "{'existed':false}");
	EXPECT_TRUE(check("a", 2).allowed);
	EXPECT_FALSE(check("a", 1).allowed);
	expect_ok("reset", "{'key':'a'}", "{'existed':true}");
	EXPECT_UINT(dry("a", 1).remaining, 2);
	EXPECT_TRUE(check("a", 2).allowed);
	fake_advance(f, 1000);
	/* It is full anyway. */
	expect_ok("reset", "{'key':'a'}", "{'existed':false}");
	end();
}

TEST(reset_in_memory)
{
	begin();
	policy("{'limit':2,'period_ms':1000,'durability':'memory'}");
	EXPECT_TRUE(check("a", 2).allowed);
	expect_ok("reset", "{'key':'a'}", "{'existed':true}");
	EXPECT_TRUE(check("a", 2).allowed);
	EXPECT_FALSE(check("a", 1).allowed);
	fake_change(f);
	/* Empty at the takeover, unless it is said to be full. */
	EXPECT_FALSE(check("a", 1).allowed);
	expect_ok("reset", "{'key':'a'}", "{'existed':true}");
	EXPECT_TRUE(check("a", 2).allowed);
	end();
}

TEST(durability_is_what_the_answer_waits_for)
{
	static const char *const words[] = { "memory", "lagged", "committed" };
	unsigned i;

	for (i = 0; i < 3; i++) {
		struct fake_event *e;
		struct pack_w w;
		size_t units;

		begin();
		EXPECT_RC(call("put_policy",
			       "{'limit':5,'period_ms':1000,'durability':'%s'}",
			       words[i]),
			  RC_OK);
		/* A proof that is fresh. */
		(void)check("warm", 1);
		units = f->units_all;
		e = fake_event(f, &class_rate_limiter, "o", "check");
		pack_w_init(&w, 256);
		say_pack(&w, "{'key':'a'}");
		fake_event_args(e, w.p, w.n);
		pack_w_release(&w);
		fake_send(f, e);
		fake_turn(f);
		fake_prove(f);
		EXPECT_TRUE(e->done == (i < 2));
		EXPECT_UINT(f->units_all, units + (i > 0));
		fake_go(f);
		EXPECT_TRUE(e->done);
		EXPECT_RC(e->ev.rc, RC_OK);
		fake_event_free(e);
	}
	end();
}

TEST(a_call_may_ask_for_more_durability)
{
	begin();
	policy("{'limit':5,'period_ms':1000}");
	policy("{'limit':5,'period_ms':1000,'durability':'memory','name':'m'}");
	EXPECT_RC(call_with("check", "{'key':'a'}", DURABILITY_COMMITTED),
		  RC_OK);
	EXPECT_INT(last->ev.durability_now, DURABILITY_COMMITTED);
	EXPECT_RC(call_with("check", "{'key':'a'}", DURABILITY_DEFAULT), RC_OK);
	EXPECT_INT(last->ev.durability_now, DURABILITY_LAGGED);
	EXPECT_RC(call_with("check", "{'key':'a','policy':'m'}",
			    DURABILITY_COMMITTED),
		  RC_UNSUPPORTED);
	EXPECT_STR(last->ev.why.field, "durability");
	EXPECT_RC(call_with("check", "{'key':'a','policy':'m'}",
			    DURABILITY_DEFAULT),
		  RC_OK);
	EXPECT_INT(last->ev.durability_now, DURABILITY_MEMORY);
	EXPECT_RC(call_with("check_many", "{'checks':[{'key':'a'}]}",
			    DURABILITY_COMMITTED),
		  RC_OK);
	EXPECT_INT(last->ev.durability_now, DURABILITY_COMMITTED);
	EXPECT_RC(call_with("check_many",
			    "{'checks':[{'key':'a','policy':'m'}]}",
			    DURABILITY_COMMITTED),
		  RC_UNSUPPORTED);
	/* The strongest of its policies. */
	EXPECT_RC(call_with("check_many",
			    "{'checks':[{'key':'a','policy':'m'},"
			    "{'key':'a'}]}",
			    DURABILITY_DEFAULT),
		  RC_OK);
	EXPECT_INT(last->ev.durability_now, DURABILITY_LAGGED);
	end();
}

TEST(check_many)
{
	begin();
	policy("{'limit':5,'period_ms':1000}");
	policy("{'limit':2,'period_ms':1000,'name':'user'}");
	expect_ok("check_many",
		  "{'checks':[{'key':'all'},{'key':'ann','policy':'user'}]}",
		  "{'allowed':true,'results':["
		  "{'allowed':true,'limit':5,'remaining':4,"
		  "'retry_after_ms':0,'reset_after_ms':200,'rev':1},"
		  "{'allowed':true,'limit':2,'remaining':1,"
		  "'retry_after_ms':0,'reset_after_ms':500,'rev':2}]}");
	EXPECT_UINT(f->units_all, 3);
	expect_ok("check_many",
		  "{'checks':[{'key':'all'},"
		  "{'key':'ann','policy':'user','cost':2},{'key':'x'}]}",
		  "{'allowed':false,'refused':1,'results':["
		  "{'allowed':true,'limit':5,'remaining':3,"
		  "'retry_after_ms':0,'reset_after_ms':400,'rev':1},"
		  "{'allowed':false,'limit':2,'remaining':1,"
		  "'retry_after_ms':500,'reset_after_ms':500,'rev':2}]}");
	/* Nothing was taken. */
	EXPECT_UINT(f->units_all, 3);
	EXPECT_UINT(dry("all", 1).remaining, 4);
	/* A key twice: the second sees what the first took. */
	EXPECT_RC(call("check_many", "{'checks':[{'key':'b','cost':3},"
				     "{'key':'b','cost':3}]}"),
		  RC_OK);
	EXPECT_FALSE(say_bool(result(), "allowed"));
	EXPECT_UINT(say_u64(result(), "refused"), 1);
	EXPECT_UINT(dry("b", 1).remaining, 5);
	EXPECT_RC(call("check_many", "{'checks':[{'key':'b','cost':3},"
				     "{'key':'b','cost':2}]}"),
		  RC_OK);
	EXPECT_TRUE(say_bool(result(), "allowed"));
	EXPECT_UINT(dry("b", 1).remaining, 0);
	end();
}

TEST(check_many_takes_memory_back_too)
{
	begin();
	policy("{'limit':5,'period_ms':1000,'durability':'memory'}");
	EXPECT_RC(call("check_many", "{'checks':[{'key':'a','cost':4},"
				     "{'key':'a','cost':4}]}"),
		  RC_OK);
	EXPECT_FALSE(say_bool(result(), "allowed"));
	EXPECT_UINT(dry("a", 1).remaining, 5);
	end();
}

TEST(check_many_with_malformed_checks)
{
	begin();
	policy("{'limit':5,'period_ms':1000}");
	expect_refused("check_many", "{'checks':[{'key':'a'},7]}", RC_INVALID,
		       "checks[1]", "a map");
	expect_refused("check_many", "{'checks':[{}]}", RC_INVALID,
		       "checks[0].key", "");
	expect_refused("check_many", "{'checks':[{'key':'a','cots':1}]}",
		       RC_INVALID, "checks[0].cots", "");
	expect_refused("check_many", "{'checks':[{'key':'a','dry_run':true}]}",
		       RC_INVALID, "checks[0].dry_run", "no dry_run");
	expect_refused("check_many", "{'checks':[{'key':'a','cost':-1}]}",
		       RC_INVALID, "checks[0].cost", "");
	expect_refused("check_many", "{'checks':[{'key':'a'},{'key':''}]}",
		       RC_INVALID, "checks[1].key", "");
	expect_refused("check_many",
		       "{'checks':[{'key':'a'},{'key':'b','policy':'none'}]}",
		       RC_NOT_FOUND, "checks[1].policy", "`none`");
	EXPECT_UINT(dry("a", 1).remaining, 5);
	end();
}

/* More rows than an object that is loaded whole, all of them asked for at once
 * by a new owner. */
TEST(a_cold_check_many_loads_its_rows_together)
{
	static char args[65536];
	size_t n;
	unsigned i;
	unsigned k;

	begin();
	policy("{'limit':5,'period_ms':86400000}");
	for (k = 0; k < 4; k++) {
		n = (size_t)snprintf(args, sizeof(args), "{'checks':[");
		for (i = 0; i < 1000; i++)
			n += (size_t)snprintf(args + n, sizeof(args) - n,
					      "%s{'key':'key-number-%u-%u'}",
					      i == 0 ? "" : ",", k, i);
		snprintf(args + n, sizeof(args) - n, "]}");
		EXPECT_RC(call("check_many", "%s", args), RC_OK);
	}
	fake_change(f);
	EXPECT_RC(call("check_many", "%s", args), RC_OK);
	EXPECT_TRUE(say_bool(result(), "allowed"));
	EXPECT_TRUE(last->ev.loads > 0);
	EXPECT_TRUE(last->ev.loads <= 10);
	EXPECT_UINT(dry("key-number-3-999", 1).remaining, 3);
	end();
}

TEST(rows_last_as_long_as_they_say_something)
{
	struct oid oid = fake_oid("rate_limiter", "o");
	unsigned i;

	begin();
	policy("{'limit':10,'period_ms':1000}");
	EXPECT_TRUE(check("a", 10).allowed);
	fake_store(f);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	/* Full for nearly a minute: kept, so that busy keys are not swept. */
	fake_advance(f, 50000);
	space_sweep(f->space);
	fake_go(f);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	EXPECT_UINT(dry("a", 1).remaining, 10);
	fake_advance(f, 12000);
	for (i = 0; i < 5; i++) {
		fake_advance(f, 1000);
		fake_go(f);
		fake_store(f);
	}
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 0);
	EXPECT_UINT(dry("a", 1).remaining, 10);
	end();
}

/* ---- memory ---- */

/* It waits for its proof only: what it took is taken. */
TEST(a_check_in_memory_that_is_cut_short_may_have_counted)
{
	struct fake_event *cut;
	struct pack_w w;

	begin();
	policy("{'limit':10,'period_ms':86400000,'durability':'memory'}");
	EXPECT_RC(call("check", "{'key':'k'}"), RC_OK);
	cut = fake_event(f, &class_rate_limiter, "o", "check");
	pack_w_init(&w, FRAME_BYTES_MAX);
	say_pack(&w, "{'key':'k','cost':4}");
	fake_event_args(cut, w.p, w.n);
	pack_w_release(&w);
	cut->ev.durability = DURABILITY_DEFAULT;
	/* The last proof is older than `lagged` may be. */
	fake_advance(f, 150);
	fake_send(f, cut);
	fake_turn(f);
	EXPECT_FALSE(cut->done);
	event_cancel(&cut->ev, RC_CANCELLED);
	fake_turn(f);
	EXPECT_TRUE(cut->done);
	EXPECT_RC(cut->ev.rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(cut->ev.outcome, OUTCOME_UNKNOWN);
	fake_event_free(cut);
	EXPECT_RC(call("check", "{'key':'k','dry_run':true}"), RC_OK);
	EXPECT_HAS(say_text(result()), "'remaining':5");
	end();
}

TEST(memory_is_empty_at_a_takeover)
{
	struct seen s;

	begin();
	policy("{'limit':10,'period_ms':1000,'durability':'memory'}");
	/* It was made in this leadership: nothing was lost. */
	EXPECT_TRUE(check("a", 10).allowed);
	EXPECT_TRUE(check("b", 1).allowed);
	fake_change(f);
	s = check("a", 1);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.retry_ms, 100);
	EXPECT_UINT(s.reset_ms, 1000);
	/* It fills from the takeover on, not from the first time it is seen. */
	fake_advance(f, 500);
	s = check("new", 5);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.remaining, 0);
	fake_advance(f, 500);
	s = check("other", 10);
	EXPECT_TRUE(s.allowed);
	s = check("new", 6);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.remaining, 5);
	end();
}

TEST(lagged_and_committed_survive_a_takeover)
{
	static const char *const words[] = { "lagged", "committed" };
	unsigned i;

	for (i = 0; i < 2; i++) {
		begin();
		EXPECT_RC(call("put_policy",
			       "{'limit':10,'period_ms':1000,"
			       "'durability':'%s'}",
			       words[i]),
			  RC_OK);
		EXPECT_TRUE(check("a", 7).allowed);
		fake_change(f);
		EXPECT_UINT(dry("a", 1).remaining, 3);
		EXPECT_UINT(dry("b", 1).remaining, 10);
	}
	end();
}

/* Where the keys were kept so far nobody looks any more: whoever had spent its
 * burst must not get another one. */
TEST(a_change_of_durability_gives_no_second_burst)
{
	static const char *const words[] = { "memory", "lagged", "memory",
					     "committed", "memory" };
	unsigned i;

	begin();
	policy("{'limit':10,'period_ms':10000,'durability':'lagged'}");
	EXPECT_TRUE(check("a", 10).allowed);
	for (i = 0; i < 5; i++) {
		struct seen s;

		EXPECT_RC(call("put_policy",
			       "{'limit':10,'period_ms':10000,"
			       "'durability':'%s'}",
			       words[i]),
			  RC_OK);
		s = check("a", 1);
		EXPECT_FALSE(s.allowed);
		EXPECT_UINT(s.retry_ms, 1000);
		/* Also not with a row of two changes ago. */
		fake_advance(f, 1000);
		EXPECT_TRUE(check("a", 1).allowed);
		EXPECT_FALSE(check("a", 1).allowed);
	}
	/* When the burst has had its time, it is past. */
	fake_advance(f, 10000);
	EXPECT_UINT(dry("a", 1).remaining, 10);
	EXPECT_UINT(dry("b", 1).remaining, 10);
	/* From lagged to committed its rows stay where they are. */
	policy("{'limit':10,'period_ms':10000,'durability':'lagged'}");
	fake_advance(f, 10000);
	policy("{'limit':10,'period_ms':10000,'durability':'lagged'}");
	EXPECT_TRUE(check("c", 4).allowed);
	policy("{'limit':10,'period_ms':10000,'durability':'committed'}");
	EXPECT_UINT(dry("c", 1).remaining, 6);
	EXPECT_UINT(dry("d", 1).remaining, 10);
	end();
}

/* A longer fill does not reach back to a takeover that is long past. */
TEST(what_is_past_is_past)
{
	begin();
	policy("{'limit':10,'period_ms':1000,'durability':'memory'}");
	fake_change(f);
	fake_advance(f, 5000);
	EXPECT_UINT(dry("a", 1).remaining, 10);
	policy("{'limit':10,'period_ms':86400000,'durability':'memory'}");
	EXPECT_UINT(dry("a", 1).remaining, 10);
	/* A reset key stays full for as long as it would count as empty. */
	fake_change(f);
	EXPECT_FALSE(check("r", 1).allowed);
	expect_ok("reset", "{'key':'r'}", "{'existed':true}");
	fake_advance(f, 3600000);
	EXPECT_UINT(dry("r", 1).remaining, 10);
	EXPECT_UINT(dry("s", 1).remaining, 0);
	end();
}

/* ---- a change of policy ---- */

TEST(a_change_of_policy_keeps_keys_sane)
{
	struct seen s;

	begin();
	/* A month of denial under the old one. */
	policy("{'limit':1,'period_ms':2592000000}");
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(check("a", 1).retry_ms, 2592000000u);
	policy("{'limit':10,'period_ms':1000}");
	/* It is empty, and no more than that. */
	s = check("a", 1);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.retry_ms, 100);
	EXPECT_UINT(s.reset_ms, 1000);
	fake_advance(f, 100);
	EXPECT_TRUE(check("a", 1).allowed);
	/* A smaller burst. */
	EXPECT_TRUE(check("b", 5).allowed);
	policy("{'limit':10,'period_ms':1000,'burst':2}");
	s = dry("b", 1);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.remaining, 0);
	EXPECT_UINT(s.reset_ms, 200);
	/* What was used stays used, as time. */
	policy("{'limit':10,'period_ms':1000,'burst':10}");
	EXPECT_TRUE(check("c", 3).allowed);
	policy("{'limit':100,'period_ms':1000,'burst':100}");
	s = dry("c", 1);
	EXPECT_UINT(s.reset_ms, 300);
	EXPECT_UINT(s.remaining, 70);
	end();
}

/* 1/3 ns and its like: another limit must not round in anybody's favour, nor
 * pile up. */
TEST(rests_survive_a_change_of_limit)
{
	unsigned i;

	begin();
	policy("{'limit':3,'period_ms':1,'burst':1000}");
	EXPECT_TRUE(check("a", 1).allowed);
	for (i = 0; i < 50; i++) {
		EXPECT_RC(call("put_policy",
			       "{'limit':%u,'period_ms':1,'burst':1000}",
			       i % 2 == 0 ? 7u : 3u),
			  RC_OK);
		EXPECT_TRUE(check("b", 1).allowed);
	}
	EXPECT_UINT(dry("a", 0).reset_ms, 1);
	end();
}

/* ---- extremes ---- */

TEST(the_largest_numbers)
{
	struct seen s;

	begin();
	policy("{'limit':1000000000,'period_ms':1}");
	EXPECT_TRUE(check("a", 1000000000).allowed);
	s = check("a", 1000000000);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.retry_ms, 1);
	policy("{'limit':1000000000,'period_ms':2678400000}");
	s = check("b", 1000000000);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.reset_ms, 2678400000u);
	/* A century and more to fill. */
	expect_refused("put_policy",
		       "{'limit':1,'period_ms':2678400000,'burst':1000000000}",
		       RC_INVALID, "burst", "a century");
	expect_refused("put_policy",
		       "{'limit':1,'period_ms':2678400000,'burst':1179}",
		       RC_INVALID, "burst", "a century");
	policy("{'limit':1,'period_ms':2678400000,'burst':1178}");
	s = check("c", 1178);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.reset_ms, UINT64_C(1178) * 2678400000u);
	EXPECT_FALSE(check("c", 1).allowed);
	fake_change(f);
	EXPECT_UINT(check("c", 1).retry_ms, 2678400000u);
	end();
}

TEST(late_in_time)
{
	begin();
	/* The last moment that the owner's now can show. */
	f->ahead_ns = INT64_MAX / 2 - f->now_ns;
	policy("{'limit':1,'period_ms':2678400000,'burst':1178,"
	       "'durability':'committed'}");
	EXPECT_TRUE(check("c", 1178).allowed);
	EXPECT_UINT(check("c", 1).retry_ms, 2678400000u);
	policy("{'limit':1,'period_ms':2678400000,'burst':1178,"
	       "'durability':'memory'}");
	EXPECT_FALSE(check("d", 1).allowed);
	fake_change(f);
	EXPECT_FALSE(check("d", 1).allowed);
	end();
}

/* ---- what is in memory ---- */

static void count_memory(void *arg, struct hnode *node)
{
	*(uint32_t *)arg +=
		CONTAINER_OF(node, struct object, node)->memory_rows;
}

static uint32_t memory_rows(void)
{
	uint32_t n = 0;

	htab_each(&f->space->objects, count_memory, &n);
	return n;
}

/* A limiter in use sees ever new keys: it keeps the active ones. */
TEST(full_keys_leave_the_memory_of_a_limiter_in_use)
{
	char key[16];
	unsigned round;
	unsigned i;

	begin();
	policy("{'limit':10,'period_ms':1000,'durability':'memory'}");
	for (round = 0; round < 8; round++) {
		for (i = 0; i < 250; i++) {
			(void)snprintf(key, sizeof(key), "k%u", i);
			EXPECT_TRUE(check(key, 10).allowed);
			(void)snprintf(key, sizeof(key), "r%u-%u", round, i);
			EXPECT_TRUE(check(key, 10).allowed);
			EXPECT_FALSE(check(key, 1).allowed);
		}
		for (i = 0; i < 250; i++) {
			(void)snprintf(key, sizeof(key), "k%u", i);
			EXPECT_FALSE(check(key, 1).allowed);
		}
		EXPECT_TRUE(memory_rows() >= 500);
		EXPECT_TRUE(memory_rows() <= 1000);
		fake_advance(f, 2000);
	}
	end();
}

/* ---- the bound of keys ---- */

static void pretend(void *arg, struct hnode *node)
{
	struct object *o = CONTAINER_OF(node, struct object, node);

	(void)arg;
	o->rows_n += LIMITER_KEYS_MAX - 3;
	o->memory_rows += LIMITER_KEYS_MAX - 3;
}

static void overflows(const char *durability)
{
	struct seen s;

	begin();
	EXPECT_RC(call("put_policy",
		       "{'limit':10,'period_ms':1000,'durability':'%s'}",
		       durability),
		  RC_OK);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_TRUE(check("b", 1).allowed);
	/* As if there were nearly a million more. */
	htab_each(&f->space->objects, pretend, NULL);
	EXPECT_TRUE(check("c", 1).allowed);
	/* From here on the unknown ones share a bucket. */
	s = check("d", 6);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.remaining, 4);
	s = check("e", 6);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.remaining, 4);
	s = check("d", 4);
	EXPECT_TRUE(s.allowed);
	/* The known ones do not notice. */
	s = check("a", 1);
	EXPECT_TRUE(s.allowed);
	EXPECT_UINT(s.remaining, 8);
	expect_ok("reset", "{'key':'b'}", "{'existed':true}");
	EXPECT_FALSE(check("f", 1).allowed);
	/* The shared one counts as well: now there is room. */
	expect_ok("reset", "{'key':'c'}", "{'existed':true}");
	s = check("f", 1);
	EXPECT_TRUE(s.allowed);
}

TEST(beyond_the_bound_unknown_keys_share_a_bucket)
{
	overflows("lagged");
	end();
}

TEST(the_same_in_memory)
{
	overflows("memory");
	/* Nothing can be freed while the object says it has so many rows. */
	end();
}

/* ---- rows that cannot be read ---- */

TEST(damaged_rows)
{
	struct oid oid = fake_oid("rate_limiter", "o");
	static const uint8_t key[] = {
		7, 'd', 'e', 'f', 'a', 'u', 'l', 't', 'a'
	};

	begin();
	policy("{'limit':10,'period_ms':1000}");
	EXPECT_TRUE(check("a", 1).allowed);
	fake_change(f);
	fake_storage_damage(f->storage, &oid, ROW_DATA,
			    (struct pack_bytes){ key, sizeof(key) });
	EXPECT_RC(call("check", "{'key':'a'}"), RC_INTERNAL);
	end();
	begin();
	policy("{'limit':10,'period_ms':1000}");
	fake_change(f);
	fake_storage_damage(f->storage, &oid, ROW_CONFIG,
			    (struct pack_bytes){ key + 1, 7 });
	EXPECT_RC(call("check", "{'key':'a'}"), RC_INTERNAL);
	EXPECT_RC(call("describe", "{}"), RC_INTERNAL);
	end();
}

/* ---- against the model ---- */

struct bucket {
	uint64_t limit, period_ns, burst;
	i128 used;      /* In permits times period_ns. */
	uint64_t at_ns; /* Of `used`. */
};

static i128 leaked(const struct bucket *b, uint64_t now_ns)
{
	i128 used = b->used - (i128)(now_ns - b->at_ns) * b->limit;

	return used > 0 ? used : 0;
}

static uint64_t up_ms(i128 x, i128 per_ms)
{
	return (uint64_t)((x + per_ms - 1) / per_ms);
}

static struct seen model_check(struct bucket *b, uint64_t now_ns, uint64_t cost,
			       bool take)
{
	i128 burst = (i128)b->burst * b->period_ns;
	i128 used = leaked(b, now_ns);
	i128 want = used + (i128)cost * b->period_ns;
	struct seen s = { .allowed = want <= burst, .limit = b->limit };

	if (!s.allowed)
		s.retry_ms = up_ms(want - burst, (i128)b->limit * 1000000);
	if (s.allowed && take) {
		used = want;
		b->used = used;
		b->at_ns = now_ns;
	}
	s.remaining = (uint64_t)((burst - used) / b->period_ns);
	s.reset_ms = up_ms(used, (i128)b->limit * 1000000);
	return s;
}

static void expect_same(const struct seen *got, const struct seen *want)
{
	EXPECT_TRUE(got->allowed == want->allowed);
	EXPECT_UINT(got->limit, want->limit);
	EXPECT_UINT(got->remaining, want->remaining);
	EXPECT_UINT(got->retry_ms, want->retry_ms);
	EXPECT_UINT(got->reset_ms, want->reset_ms);
}

static uint64_t magnitude(struct prng *rng, uint64_t max)
{
	uint64_t n = 1 + prng_below(rng, max);

	/* Every size as often. */
	n >>= prng_below(rng, 40);
	return n == 0 ? 1 : n;
}

TEST(exact_against_the_model)
{
	static const char *const words[] = { "memory", "lagged", "committed",
					     "leased" };
	struct prng rng;
	unsigned round;
	unsigned i;

	prng_seed(&rng, 5, 0);
	for (round = 0; round < 56; round++) {
		struct bucket b[3];
		uint64_t limit = magnitude(&rng, 1000000000);
		uint64_t period_ms = magnitude(&rng, 2678400000u);
		uint64_t burst = magnitude(&rng, 1000000000);

		begin();
		runner_context("limit %" PRIu64 " period %" PRIu64
			       " burst %" PRIu64,
			       limit, period_ms, burst);
		if (call("put_policy",
			 "{'limit':%" PRIu64 ",'period_ms':%" PRIu64
			 ",'burst':%" PRIu64 ",'durability':'%s'}",
			 limit, period_ms, burst, words[round % 4]) != RC_OK)
			continue;
		for (i = 0; i < 3; i++)
			b[i] = (struct bucket){ limit, period_ms * MS_NS, burst,
						0, 0 };
		for (i = 0; i < 60; i++) {
			uint64_t k = prng_below(&rng, 3);
			uint64_t cost = prng_below(&rng, 3) == 0
						? burst
						: prng_below(&rng, burst + 1) >>
							  prng_below(&rng, 20);
			bool take = prng_below(&rng, 4) != 0;
			char key[2] = { (char)('a' + k), 0 };
			struct seen want;
			struct seen got;

			if (prng_below(&rng, 3) == 0)
				f->now_ns +=
					magnitude(&rng, period_ms * MS_NS * 2);
			want = model_check(&b[k], f->now_ns + f->ahead_ns, cost,
					   take);
			got = take ? check(key, cost) : dry(key, cost);
			expect_same(&got, &want);
			/* What is said to be soon enough is, and not later. */
			if (got.allowed || prng_below(&rng, 4) != 0)
				continue;
			f->now_ns += (got.retry_ms - 1) * MS_NS;
			EXPECT_FALSE(dry(key, cost).allowed);
			f->now_ns += MS_NS;
			EXPECT_TRUE(dry(key, cost).allowed);
		}
	}
	end();
}

#define TRACE_MAX 400u

/* However an adversary chooses its times and costs: in no window of length W
 * are more than burst + rate * W let in. */
TEST(no_window_admits_more_than_burst_and_rate)
{
	static uint64_t at[TRACE_MAX];
	static uint64_t taken[TRACE_MAX];
	struct prng rng;
	unsigned round;

	prng_seed(&rng, 9, 0);
	for (round = 0; round < 24; round++) {
		uint64_t limit = 1 + prng_below(&rng, 100);
		uint64_t period_ms = 1 + prng_below(&rng, 5000);
		uint64_t burst = 1 + prng_below(&rng, 150);
		unsigned style = (unsigned)prng_below(&rng, 3);
		size_t n = 0;
		unsigned i;
		size_t j;
		size_t k;

		begin();
		EXPECT_RC(call("put_policy",
			       "{'limit':%" PRIu64 ",'period_ms':%" PRIu64
			       ",'burst':%" PRIu64 "}",
			       limit, period_ms, burst),
			  RC_OK);
		for (i = 0; i < TRACE_MAX; i++) {
			uint64_t cost = 1 + prng_below(&rng, burst);
			struct seen s;

			/* Greedy at the edge, in storms, or anyhow. */
			if (style == 0)
				cost = 1;
			s = check("k", cost);
			if (s.allowed) {
				at[n] = f->now_ns;
				taken[n++] = cost;
			}
			if (style == 0 && !s.allowed)
				f->now_ns += s.retry_ms * MS_NS;
			else if (style == 1 && i % 40 == 39)
				f->now_ns += period_ms * MS_NS / 2;
			else if (style == 2)
				f->now_ns +=
					prng_below(&rng, period_ms * MS_NS / 4);
		}
		EXPECT_TRUE(n > 0);
		for (j = 0; j < n; j++) {
			i128 sum = 0;

			for (k = j; k < n; k++) {
				sum += taken[k];
				EXPECT_TRUE((sum - (i128)burst) *
						    (i128)(period_ms * MS_NS) <=
					    (i128)(at[k] - at[j]) *
						    (i128)limit);
			}
		}
	}
	end();
}

TEST(destroy)
{
	begin();
	policy("{'limit':1,'period_ms':100000,'durability':'memory'}");
	policy("{'limit':1,'period_ms':100000,'name':'l'}");
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_RC(call("check", "{'key':'a','policy':'l'}"), RC_OK);
	expect_ok("destroy", "{}", "{'rev':3}");
	expect_refused("check", "{'key':'a'}", RC_NOT_FOUND, "policy", "");
	expect_ok("describe", "{}", "{'policies':[],'rev':3}");
	expect_ok("put_policy",
		  "{'limit':1,'period_ms':100000,'durability':'memory'}",
		  "{'rev':4}");
	/* Nothing of before is remembered. */
	EXPECT_TRUE(check("a", 1).allowed);
	policy("{'limit':1,'period_ms':100000,'name':'l'}");
	EXPECT_RC(call("check", "{'key':'a','policy':'l'}"), RC_OK);
	EXPECT_TRUE(seen_in(result()).allowed);
	end();
}

/* A denial is no answer to keep: the same key may be let in later. */
TEST(a_denial_is_not_recorded)
{
	struct fake_event *e;
	struct pack_w w;
	unsigned i;
	bool allowed[4];

	begin();
	policy("{'limit':1,'period_ms':1000}");
	EXPECT_TRUE(check("a", 1).allowed);
	for (i = 0; i < 4; i++) {
		e = fake_event(f, &class_rate_limiter, "o", "check");
		pack_w_init(&w, 256);
		say_pack(&w, "{'key':'a'}");
		fake_event_args(e, w.p, w.n);
		pack_w_release(&w);
		fake_event_key(e, "once");
		fake_send(f, e);
		fake_go(f);
		EXPECT_RC(e->ev.rc, RC_OK);
		allowed[i] = seen_in((struct pack_bytes){ e->ev.result.p,
							  e->ev.result.n })
				     .allowed;
		fake_event_free(e);
		if (i == 1)
			fake_advance(f, 1000);
	}
	EXPECT_FALSE(allowed[0]);
	EXPECT_FALSE(allowed[1]);
	EXPECT_TRUE(allowed[2]);
	/* The first admission is, and costs nothing again. */
	EXPECT_TRUE(allowed[3]);
	end();
}

/* ---- leases ---- */

#define LEASED "{'limit':1000,'period_ms':10000,'durability':'leased'}"

/* Let in without a word about it being due; a check that waits is not sent
 * away. */
static struct fake_event *send_check(const char *key, uint64_t cost)
{
	struct fake_event *e = fake_event(f, &class_rate_limiter, "o", "check");
	char args[128];
	struct pack_w w;

	(void)snprintf(args, sizeof(args), "{'key':'%s','cost':%" PRIu64 "}",
		       key, cost);
	pack_w_init(&w, 256);
	say_pack(&w, args);
	fake_event_args(e, w.p, w.n);
	pack_w_release(&w);
	fake_send(f, e);
	return e;
}

/* One entry lends; what it lends costs a proof, and nothing else. */
TEST(a_lease_is_spent_with_proofs)
{
	struct fake_event *e;
	size_t units;
	unsigned i;

	begin();
	policy(LEASED);
	units = f->units_all;
	e = send_check("a", 1);
	fake_turn(f);
	fake_prove(f);
	EXPECT_FALSE(e->done);
	EXPECT_UINT(f->units_all, units + 1);
	/* What is lent may be spent before that is committed; the answer
	 * waits for both. */
	for (i = 0; i < 2; i++) {
		struct fake_event *x = send_check("a", 1);

		fake_turn(f);
		if (i == 0)
			fake_prove(f);
		else
			fake_commit_all(f);
		EXPECT_FALSE(x->done);
		fake_go(f);
		EXPECT_TRUE(x->done);
		EXPECT_TRUE(seen_in((struct pack_bytes){ x->ev.result.p,
							 x->ev.result.n })
				    .allowed);
		fake_event_free(x);
	}
	EXPECT_TRUE(e->done);
	fake_event_free(e);
	EXPECT_UINT(f->units_all, units + 1);
	for (i = 0; i < 98; i++)
		EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(f->units_all, units + 1);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(f->units_all, units + 2);
	/* A denial takes nothing. */
	EXPECT_FALSE(check("a", 1000).allowed);
	EXPECT_FALSE(dry("a", 1000).allowed);
	EXPECT_UINT(f->units_all, units + 2);
	EXPECT_UINT(dry("a", 1).remaining, 1000 - 102);
	/* More than is left of it: an entry of its own. */
	EXPECT_TRUE(check("a", 101).allowed);
	EXPECT_UINT(f->units_all, units + 3);
	/* What is lent lapses. */
	fake_advance(f, LIMITER_LEASE_MS - 1);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(f->units_all, units + 3);
	fake_advance(f, 1);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(f->units_all, units + 4);
	EXPECT_HAS(call("describe", "{}") == RC_OK ? say_text(result()) : "",
		   "'durability':'leased'");
	end();
}

TEST(a_new_owner_books_what_was_lent)
{
	struct seen s;

	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 400).allowed);
	EXPECT_TRUE(check("a", 60).allowed);
	EXPECT_UINT(dry("a", 1).remaining, 540);
	fake_change(f);
	/* 400 are booked, 100 were lent: no more than they, and no less. */
	s = dry("a", 1);
	EXPECT_UINT(s.remaining, 500);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 500);
	EXPECT_TRUE(check("a", 500).allowed);
	EXPECT_FALSE(check("a", 1).allowed);
	/* A key is never emptier than empty, whatever was lent. */
	fake_change(f);
	s = check("a", 1);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.retry_ms, 10);
	EXPECT_UINT(s.reset_ms, 10000);
	/* What lay idle since the end of its lease has filled up since. */
	fake_advance(f, 20000);
	EXPECT_TRUE(check("a", 100).allowed);
	fake_advance(f, LIMITER_LEASE_MS + 1000);
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	/* Before its end it counts as spent just now. */
	EXPECT_TRUE(check("a", 100).allowed);
	fake_advance(f, LIMITER_LEASE_MS - 1000);
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 900);
	end();
}

/* A new owner's time may begin before permits that were spent from memory: the
 * key is then no fuller than it was. */
TEST(time_that_is_set_back_fills_nothing)
{
	struct seen s;

	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 950).allowed);
	fake_advance(f, 1000);
	EXPECT_TRUE(check("a", 60).allowed);
	EXPECT_TRUE(check("a", 40).allowed);
	EXPECT_UINT(dry("a", 1).remaining, 50);
	f->ahead_ns -= 1000 * UINT64_C(1000000);
	fake_change(f);
	s = check("a", 1);
	EXPECT_FALSE(s.allowed);
	EXPECT_UINT(s.remaining, 0);
	EXPECT_UINT(s.reset_ms, 10000);
	fake_advance(f, 500);
	EXPECT_TRUE(check("a", 50).allowed);
	EXPECT_FALSE(check("a", 1).allowed);
	end();
}

/* The lease was never committed: neither is what was let in with it. */
TEST(an_uncommitted_lease_is_nobodys)
{
	struct fake_event *e;

	begin();
	policy(LEASED);
	e = send_check("a", 400);
	fake_turn(f);
	fake_prove(f);
	fake_change(f);
	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, RC_UNKNOWN_OUTCOME);
	fake_event_free(e);
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	end();
}

/* An owner that was frozen spends on from its memory in another window: nobody
 * hears of it. */
TEST(a_thawed_owner_lets_nobody_in)
{
	struct fake_event *e;

	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 1).allowed);
	fake_advance(f, 500);
	e = send_check("a", 50);
	fake_turn(f);
	EXPECT_FALSE(e->done);
	fake_fail_proof(f, RC_NOT_LEADER);
	EXPECT_TRUE(e->done);
	EXPECT_TRUE(e->ev.rc != RC_OK);
	fake_event_free(e);
	end();
}

#define EVENTS_MAX 300u

struct passed {
	uint64_t at_ns;
	uint64_t cost;
};

static void expect_cap(const struct passed *p, size_t n, uint64_t limit,
		       uint64_t period_ms, uint64_t burst)
{
	size_t j;
	size_t k;

	for (j = 0; j < n; j++) {
		i128 sum = 0;

		for (k = j; k < n; k++) {
			sum += p[k].cost;
			EXPECT_TRUE((sum - (i128)burst) *
					    (i128)(period_ms * MS_NS) <=
				    (i128)(p[k].at_ns - p[j].at_ns) *
					    (i128)limit);
		}
	}
}

/*
 * Owners come and go, with answers and leases on their way, and keep nothing
 * but what is committed. However that falls, no window lets in more than burst
 * and rate; and a change costs no more than what is lent at a time.
 */
TEST(never_above_the_cap_over_changes)
{
	static struct passed passed[EVENTS_MAX];
	struct prng rng;
	unsigned round;

	prng_seed(&rng, 77, 0);
	for (round = 0; round < 60; round++) {
		uint64_t limit = 1 + prng_below(&rng, 300);
		uint64_t period_ms = 1 + prng_below(&rng, 20000);
		uint64_t burst = 1 + prng_below(&rng, 400);
		uint64_t lent = limit / 10 > 0 ? limit / 10 : 1;
		struct bucket b = { limit, period_ms * MS_NS, burst, 0, 0 };
		struct fake_event *e;
		struct seen s;
		size_t n = 0;
		unsigned i;

		begin();
		runner_context("round %u", round);
		if (lent > burst)
			lent = burst;
		EXPECT_RC(call("put_policy",
			       "{'limit':%" PRIu64 ",'period_ms':%" PRIu64
			       ",'burst':%" PRIu64 ",'durability':'leased'}",
			       limit, period_ms, burst),
			  RC_OK);
		for (i = 0; i < EVENTS_MAX; i++) {
			uint64_t cost = prng_below(&rng, 3) != 0
						? 1
						: 1 + prng_below(&rng, burst);
			uint64_t at_ns = f->now_ns;
			uint64_t truth;
			uint64_t seen;

			e = send_check("k", cost);
			fake_turn(f);
			if (prng_below(&rng, 25) == 0) {
				/* Perhaps some of it is committed. */
				if (prng_below(&rng, 2) == 0)
					fake_commit_all(f);
				fake_change(f);
			}
			fake_go(f);
			EXPECT_TRUE(e->done);
			if (e->ev.rc == RC_OK) {
				s = seen_in((struct pack_bytes){
					e->ev.result.p, e->ev.result.n });
				if (s.allowed) {
					passed[n++] =
						(struct passed){ at_ns, cost };
					(void)model_check(&b, at_ns, cost,
							  true);
					EXPECT_TRUE(b.at_ns == at_ns);
				}
			}
			fake_event_free(e);
			if (prng_below(&rng, 40) == 0) {
				fake_change(f);
				truth = model_check(&b, f->now_ns, 0, false)
						.remaining;
				seen = dry("k", 0).remaining;
				EXPECT_TRUE(seen <= truth);
			}
			if (prng_below(&rng, 3) == 0)
				f->now_ns += prng_below(
					&rng, period_ms * MS_NS / 8 + 1);
		}
		EXPECT_TRUE(n > 0);
		expect_cap(passed, n, limit, period_ms, burst);
		/* With all answers out, a change costs what is lent at most. */
		f->now_ns +=
			period_ms * MS_NS * (burst / limit + 2) + 2000 * MS_NS;
		b = (struct bucket){ limit, period_ms * MS_NS, burst, 0, 0 };
		for (i = 0; i < 30; i++) {
			uint64_t truth;
			uint64_t seen;

			if (check("k", 1).allowed)
				(void)model_check(&b, f->now_ns, 1, true);
			f->now_ns +=
				prng_below(&rng, period_ms * MS_NS / 20 + 1);
			if (i % 10 != 9)
				continue;
			truth = model_check(&b, f->now_ns, 0, false).remaining;
			EXPECT_UINT(dry("k", 0).remaining, truth);
			fake_change(f);
			seen = dry("k", 0).remaining;
			EXPECT_TRUE(seen <= truth);
			EXPECT_TRUE(seen + lent >= truth);
			f->now_ns += period_ms * MS_NS * (burst / limit + 2) +
				     2000 * MS_NS;
			b.used = 0;
			b.at_ns = f->now_ns;
		}
	}
	end();
}

TEST(mutant_permit_not_booked)
{
	EXPECT_TRUE(fake_misses("permit_not_booked",
				"a_new_owner_books_what_was_lent"));
	EXPECT_TRUE(fake_misses("permit_not_booked",
				"never_above_the_cap_over_changes"));
	EXPECT_TRUE(fake_misses("read_without_round",
				"a_thawed_owner_lets_nobody_in"));
}

/* A hand-over that was announced loses nothing. */
TEST(a_hand_over_is_exact)
{
	char key[16];
	size_t units;
	unsigned i;

	begin();
	policy(LEASED);
	policy("{'limit':10,'period_ms':1000,'durability':'memory',"
	       "'name':'m'}");
	policy("{'limit':10,'period_ms':1000,'name':'l'}");
	for (i = 0; i < 700; i++) {
		(void)snprintf(key, sizeof(key), "k%u", i);
		EXPECT_TRUE(check(key, 100 + i % 7).allowed);
		EXPECT_TRUE(check(key, 1 + i % 9).allowed);
		(void)call("check", "{'key':'k%u','policy':'m'}", i);
		if (i % 3 == 0)
			(void)call("check", "{'key':'k%u','policy':'l'}", i);
	}
	units = f->units_all;
	EXPECT_FALSE(space_settle(f->space));
	fake_go(f);
	EXPECT_TRUE(space_settle(f->space));
	EXPECT_TRUE(f->units_all > units);
	EXPECT_TRUE(f->units_all < units + 30);
	/* Meanwhile each is an entry of its own. */
	units = f->units_all;
	EXPECT_TRUE(check("k1", 1).allowed);
	EXPECT_TRUE(check("k1", 1).allowed);
	EXPECT_UINT(f->units_all, units + 2);
	fake_change(f);
	EXPECT_UINT(dry("k0", 1).remaining, 1000 - 100 - 1);
	EXPECT_UINT(dry("k1", 1).remaining, 1000 - 101 - 2 - 2);
	for (i = 2; i < 700; i++) {
		(void)snprintf(key, sizeof(key), "k%u", i);
		EXPECT_UINT(dry(key, 1).remaining,
			    1000 - (100 + i % 7) - (1 + i % 9));
	}
	/* It did not happen: things go on as before. */
	EXPECT_TRUE(check("k3", 1).allowed);
	EXPECT_FALSE(space_settle(f->space));
	fake_go(f);
	EXPECT_TRUE(space_settle(f->space));
	space_settle_end(f->space);
	EXPECT_TRUE(check("k3", 1).allowed);
	units = f->units_all;
	EXPECT_TRUE(check("k3", 1).allowed);
	EXPECT_UINT(f->units_all, units);
	/* And one that is lost in the middle. */
	EXPECT_FALSE(space_settle(f->space));
	fake_change(f);
	EXPECT_TRUE(dry("k3", 1).remaining >= 1000 - 103 - 4 - 3 - 100);
	fake_lose(f);
	EXPECT_TRUE(space_settle(f->space));
	fake_lead(f);
	end();
}

/* There is room for one object. */
static void begin_small(void)
{
	const struct residents_config cfg = { .objects_max = 1,
					      .bytes_max = 1 << 20,
					      .idle_ms = 1000 };

	begin();
	fake_free(f);
	f = fake_new(&cfg);
	fake_advance(f, 1);
}

/* Others take the room of the limiter. */
static void forget_memory(void)
{
	struct fake_event *e;
	unsigned i;

	fake_store(f);
	for (i = 0; i < 4; i++) {
		char name[8];

		(void)snprintf(name, sizeof(name), "x%u", i);
		e = fake_event(f, &class_rate_limiter, name, "describe");
		fake_send(f, e);
		fake_go(f);
		fake_store(f);
		EXPECT_TRUE(e->done);
		fake_event_free(e);
	}
	EXPECT_UINT(memory_rows(), 0);
}

/* With too little memory for all, what it forgets counts as spent. */
TEST(a_lease_that_memory_lost)
{
	begin_small();
	policy(LEASED);
	EXPECT_TRUE(check("a", 100).allowed);
	EXPECT_TRUE(check("a", 50).allowed);
	forget_memory();
	EXPECT_UINT(dry("a", 1).remaining, 800);
	fake_advance(f, 500);
	EXPECT_UINT(dry("a", 1).remaining, 850);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(dry("a", 1).remaining, 849);
	end();
}

/* As of the moment in which it was lost, long after the takeover. */
TEST(a_key_that_memory_lost)
{
	begin_small();
	policy("{'limit':10,'period_ms':1000,'durability':'memory'}");
	fake_advance(f, 5000);
	EXPECT_TRUE(check("a", 10).allowed);
	forget_memory();
	EXPECT_FALSE(check("a", 1).allowed);
	fake_advance(f, 500);
	EXPECT_UINT(dry("a", 1).remaining, 5);
	end();
}

TEST(a_reset_ends_a_lease)
{
	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 400).allowed);
	EXPECT_TRUE(check("a", 60).allowed);
	expect_ok("reset", "{'key':'a'}", "{'existed':true}");
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	/* By an owner that does not know what was spent. */
	EXPECT_TRUE(check("a", 400).allowed);
	fake_change(f);
	expect_ok("reset", "{'key':'a'}", "{'existed':true}");
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	/* And where absent keys count as empty. */
	policy("{'limit':1000,'period_ms':10000,'durability':'memory'}");
	policy(LEASED);
	EXPECT_UINT(dry("a", 1).remaining, 0);
	expect_ok("reset", "{'key':'a'}", "{'existed':true}");
	EXPECT_TRUE(check("a", 10).allowed);
	EXPECT_TRUE(check("a", 10).allowed);
	EXPECT_UINT(dry("a", 1).remaining, 980);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 890);
	expect_ok("destroy", "{}", "{'rev':4}");
	policy(LEASED);
	EXPECT_UINT(dry("a", 1).remaining, 1000);
	end();
}

/* What is lent under a policy that changes is over with it. */
TEST(a_change_of_policy_ends_leases)
{
	static const char *const words[] = { "lagged", "committed", "leased" };
	unsigned i;

	for (i = 0; i < 3; i++) {
		unsigned changes;

		for (changes = 0; changes < 3; changes++) {
			begin();
			runner_context("to %s, %u changes of owner", words[i],
				       changes);
			policy(LEASED);
			EXPECT_TRUE(check("a", 400).allowed);
			EXPECT_TRUE(check("a", 60).allowed);
			if (changes == 1)
				fake_change(f);
			EXPECT_RC(call("put_policy",
				       "{'limit':100,'period_ms':1000,"
				       "'burst':1000,'durability':'%s'}",
				       words[i]),
				  RC_OK);
			if (changes == 2)
				fake_change(f);
			EXPECT_UINT(dry("a", 1).remaining,
				    changes == 0 ? 540 : 500);
			EXPECT_TRUE(check("a", 100).allowed);
			EXPECT_UINT(dry("a", 1).remaining,
				    changes == 0 ? 440 : 400);
			if (i < 2) {
				fake_change(f);
				EXPECT_UINT(dry("a", 1).remaining,
					    changes == 0 ? 440 : 400);
			}
			/* And back again. */
			policy(LEASED);
			EXPECT_TRUE(check("a", 1).allowed);
			EXPECT_TRUE(check("a", 1).allowed);
		}
	}
	/* Another rate: permits are worth what they were lent at. */
	begin();
	policy("{'limit':3,'period_ms':1000,'burst':30,"
	       "'durability':'leased'}");
	EXPECT_TRUE(check("a", 3).allowed);
	policy("{'limit':7,'period_ms':1000,'burst':70,"
	       "'durability':'leased'}");
	fake_change(f);
	/* 4 of a third of a second are 9 1/3 of a seventh. */
	EXPECT_UINT(dry("a", 1).remaining, 60);
	end();
}

/* What is let in under the new policy is lent under it: the next owner books
 * it as of then, and not as of the change. */
TEST(a_lease_of_an_old_policy_lets_nobody_in)
{
	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 400).allowed);
	EXPECT_TRUE(check("a", 60).allowed);
	policy("{'limit':100,'period_ms':1000,'burst':1000,"
	       "'durability':'leased'}");
	fake_advance(f, 6000); /* It is full again. */
	EXPECT_TRUE(check("a", 40).allowed);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 950);
	end();
}

/* What may have been spent is more than the new policy allows at once: then the
 * key was empty when it changed, and has filled up since then only. */
TEST(a_lease_of_more_than_the_new_burst)
{
	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 1).allowed);
	fake_change(f);
	fake_advance(f, 500);
	policy("{'limit':1000,'period_ms':10000,'burst':10,"
	       "'durability':'leased'}");
	EXPECT_UINT(dry("a", 1).remaining, 0);
	fake_advance(f, 50);
	EXPECT_UINT(dry("a", 1).remaining, 5);
	end();
}

TEST(a_keyed_check_is_answered_once)
{
	struct fake_event *e;
	unsigned i;
	uint64_t left = 0;

	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 1).allowed);
	for (i = 0; i < 4; i++) {
		struct pack_w w;
		struct pack_bytes out;

		e = fake_event(f, &class_rate_limiter, "o", "check");
		pack_w_init(&w, 256);
		say_pack(&w, "{'key':'a','cost':5}");
		fake_event_args(e, w.p, w.n);
		pack_w_release(&w);
		fake_event_key(e, "once");
		fake_send(f, e);
		fake_go(f);
		EXPECT_TRUE(e->done);
		EXPECT_RC(e->ev.rc, RC_OK);
		out = (struct pack_bytes){ e->ev.result.p, e->ev.result.n };
		EXPECT_TRUE(say_bool(out, "allowed"));
		left = say_u64(out, "remaining");
		EXPECT_UINT(left, 994);
		fake_event_free(e);
		if (i == 1) {
			EXPECT_UINT(dry("a", 1).remaining, 994);
			fake_change(f);
		}
	}
	EXPECT_UINT(dry("a", 1).remaining, 899);
	end();
}

TEST(check_many_gives_back_what_was_lent)
{
	size_t units;

	begin();
	policy(LEASED);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_TRUE(check("b", 1).allowed);
	units = f->units_all;
	EXPECT_RC(call("check_many",
		       "{'checks':[{'key':'a','cost':60},{'key':'a','cost':30},"
		       "{'key':'b','cost':1000}]}"),
		  RC_OK);
	EXPECT_FALSE(say_bool(result(), "allowed"));
	EXPECT_UINT(dry("a", 1).remaining, 999);
	EXPECT_RC(call("check_many",
		       "{'checks':[{'key':'a','cost':60},{'key':'a','cost':40},"
		       "{'key':'b','cost':100}]}"),
		  RC_OK);
	EXPECT_TRUE(say_bool(result(), "allowed"));
	EXPECT_UINT(f->units_all, units);
	EXPECT_RC(call("check_many", "{'checks':[{'key':'a'},{'key':'b'},"
				     "{'key':'c'}]}"),
		  RC_OK);
	EXPECT_UINT(f->units_all, units + 1);
	fake_change(f);
	EXPECT_UINT(dry("a", 1).remaining, 798);
	EXPECT_UINT(dry("c", 1).remaining, 899);
	end();
}

/* Its row is kept until the key is full whatever was spent. */
TEST(a_lease_outlives_no_row)
{
	struct oid oid = fake_oid("rate_limiter", "o");
	unsigned i;

	begin();
	policy("{'limit':100,'period_ms':1000,'durability':'leased'}");
	EXPECT_TRUE(check("a", 1).allowed);
	for (i = 0; i < 200; i++) {
		fake_advance(f, 1000);
		fake_store(f);
		fake_go(f);
	}
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 0);
	EXPECT_UINT(dry("a", 1).remaining, 100);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	end();
}

TEST(leases_past_the_bound_of_keys)
{
	struct seen s;

	begin();
	policy("{'limit':10,'period_ms':1000,'durability':'leased'}");
	EXPECT_TRUE(check("a", 1).allowed);
	htab_each(&f->space->objects, pretend, NULL);
	EXPECT_TRUE(check("b", 1).allowed);
	EXPECT_TRUE(check("c", 1).allowed);
	s = check("d", 6);
	EXPECT_TRUE(s.allowed);
	s = check("e", 6);
	EXPECT_FALSE(s.allowed);
	EXPECT_TRUE(check("a", 1).allowed);
	EXPECT_UINT(dry("a", 1).remaining, 8);
	end();
}
