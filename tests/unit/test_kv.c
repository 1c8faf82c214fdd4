/*
 * kv behind real live objects, on a world moved by hand
 * (tests/lib/fake_host.h).
 */
#include "client/proto/pack.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/say.h"
#include "tests/sim/prng.h"

static struct fake *f;
static struct fake_event *last; /* The call before. */

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
}

static void end(void)
{
	drop_last();
	fake_free(f);
	f = NULL;
}

static enum rc call_raw(const char *object, const char *method,
			struct pack_bytes args)
{
	drop_last();
	last = fake_event(f, &class_kv, object, method);
	fake_event_args(last, args.p, args.n);
	fake_send(f, last);
	fake_go(f);
	EXPECT_TRUE(last->done);
	return last->ev.rc;
}

static enum rc call(const char *object, const char *method, const char *args)
{
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, FRAME_BYTES_MAX);
	say_pack(&w, args);
	rc = call_raw(object, method, (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	return rc;
}

static struct pack_bytes result(void)
{
	return (struct pack_bytes){ last->ev.result.p, last->ev.result.n };
}

static void expect_ok(const char *method, const char *args, const char *want)
{
	runner_context("%s %.200s", method, args);
	if (call("o", method, args) != RC_OK)
		FAIL("%s: %s: %s", rc_name(last->ev.rc), last->ev.why.field,
		     last->ev.why.text);
	EXPECT_STR(say_text(result()), want);
	runner_context("%s", "");
}

/* Refused, and nothing of the object has changed. */
static void expect_refused(const char *method, const char *args, enum rc rc,
			   const char *field, const char *part)
{
	struct oid oid = fake_oid("kv", "o");
	uint8_t before[512];
	size_t units = f->units_all;
	struct pack_bytes head = fake_storage_head(f->storage, &oid);
	size_t n = head.n;

	EXPECT_TRUE(n <= sizeof(before));
	if (n > 0)
		memcpy(before, head.p, n);
	runner_context("%s %.200s", method, args);
	EXPECT_RC(call("o", method, args), rc);
	EXPECT_STR(last->ev.why.field, field);
	EXPECT_HAS(last->ev.why.text, part);
	EXPECT_INT(last->ev.outcome, OUTCOME_REFUSED);
	EXPECT_UINT(f->units_all, units);
	head = fake_storage_head(f->storage, &oid);
	EXPECT_UINT(head.n, n);
	EXPECT_MEM(head.p, before, n);
	runner_context("%s", "");
}

static uint64_t rev_now(void)
{
	EXPECT_RC(call("o", "delete", "{'key':'nobody'}"), RC_OK);
	return say_u64(result(), "rev");
}

TEST(destroying_what_is_not_there_leaves_nothing)
{
	size_t units;

	begin();
	expect_ok("destroy", "{}", "{'rev':0}");
	EXPECT_UINT(f->units_all, 0);
	expect_ok("put", "{'key':'a','value':'1'}", "{'rev':1}");
	expect_ok("destroy", "{}", "{'rev':2}");
	units = f->units_all;
	expect_ok("destroy", "{}", "{'rev':2}");
	EXPECT_UINT(f->units_all, units);
	expect_ok("put", "{'key':'a','value':'1'}", "{'rev':3}");
	end();
}

TEST(put_and_get)
{
	begin();
	expect_refused("get", "{'key':'a'}", RC_NOT_FOUND, "",
		       rc_text(RC_NOT_FOUND));
	expect_ok("put", "{'key':'a','value':'x'}", "{'rev':1}");
	expect_ok("get", "{'key':'a'}", "{'value':'x','rev':1}");
	expect_ok("put", "{'key':'b','value':7}", "{'rev':2}");
	expect_ok("put", "{'key':'a','value':''}", "{'rev':3}");
	expect_ok("get", "{'key':'a'}", "{'value':'','rev':3}");
	expect_ok("get", "{'key':'b'}", "{'value':7,'rev':2}");
	expect_refused("get", "{'key':'A'}", RC_NOT_FOUND, "", "");
	end();
}

TEST(every_type_of_value_comes_back_as_it_was)
{
	static const char *const values[] = {
		"0",
		"1",
		"-1",
		"9223372036854775807",
		"-9223372036854775808",
		"'text'",
		"'\xe2\x98\xba'",
		"{'$bin':''}",
		"{'$bin':'AAECAw=='}",
		"{'$str':'//79'}",
	};
	char args[256];
	size_t i;

	begin();
	for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		snprintf(args, sizeof(args), "{'key':'k','value':%s}",
			 values[i]);
		EXPECT_RC(call("o", "put", args), RC_OK);
		snprintf(args, sizeof(args), "{'value':%s,'rev':%zu}",
			 values[i], i + 1);
		expect_ok("get", "{'key':'k'}", args);
	}
	end();
}

TEST(keys_are_bytes)
{
	begin();
	expect_ok("put", "{'key':'a','value':1}", "{'rev':1}");
	/* The same bytes as a bin: the same key, given back as last written. */
	expect_ok("get", "{'key':{'$bin':'YQ=='}}", "{'value':1,'rev':1}");
	expect_ok("put", "{'key':{'$bin':'YQ=='},'value':2}", "{'rev':2}");
	expect_ok("list", "{}",
		  "{'items':[{'key':{'$bin':'YQ=='},'value':2,'rev':2}]}");
	expect_ok("put", "{'key':'a','value':3}", "{'rev':3}");
	expect_ok("list", "{}", "{'items':[{'key':'a','value':3,'rev':3}]}");
	end();
}

TEST(put_if_rev)
{
	begin();
	expect_refused("put", "{'key':'a','value':1,'if_rev':1}", RC_CONFLICT,
		       "if_rev", "revision 0");
	expect_ok("put", "{'key':'a','value':1,'if_rev':0}", "{'rev':1}");
	expect_refused("put", "{'key':'a','value':2,'if_rev':0}", RC_CONFLICT,
		       "if_rev", "revision 1");
	expect_ok("put", "{'key':'a','value':2,'if_rev':1}", "{'rev':2}");
	expect_refused("put", "{'key':'a','value':3,'if_rev':1}", RC_CONFLICT,
		       "if_rev", "revision 2");
	expect_ok("get", "{'key':'a'}", "{'value':2,'rev':2}");
	end();
}

TEST(delete)
{
	begin();
	expect_ok("delete", "{'key':'a'}", "{'existed':false,'rev':0}");
	expect_ok("put", "{'key':'a','value':1}", "{'rev':1}");
	expect_refused("delete", "{'key':'a','if_rev':7}", RC_CONFLICT,
		       "if_rev", "revision 1");
	expect_refused("delete", "{'key':'b','if_rev':7}", RC_CONFLICT,
		       "if_rev", "revision 0");
	expect_ok("delete", "{'key':'a','if_rev':1}",
		  "{'existed':true,'rev':2}");
	expect_ok("delete", "{'key':'a'}", "{'existed':false,'rev':2}");
	expect_ok("delete", "{'key':'a','if_rev':0}",
		  "{'existed':false,'rev':2}");
	expect_refused("get", "{'key':'a'}", RC_NOT_FOUND, "", "");
	expect_ok("put", "{'key':'a','value':1}", "{'rev':3}");
	end();
}

TEST(incr)
{
	begin();
	expect_ok("incr", "{'key':'n'}", "{'value':1,'rev':1}");
	expect_ok("incr", "{'key':'n'}", "{'value':2,'rev':2}");
	expect_ok("incr", "{'key':'n','by':40}", "{'value':42,'rev':3}");
	expect_ok("incr", "{'key':'n','by':-50}", "{'value':-8,'rev':4}");
	expect_ok("incr", "{'key':'n','by':0}", "{'value':-8,'rev':5}");
	expect_ok("get", "{'key':'n'}", "{'value':-8,'rev':5}");
	expect_ok("put", "{'key':'s','value':'1'}", "{'rev':6}");
	expect_refused("incr", "{'key':'s'}", RC_INVALID, "key", "no integer");
	expect_ok("put", "{'key':'s','value':{'$bin':'AQ=='}}", "{'rev':7}");
	expect_refused("incr", "{'key':'s'}", RC_INVALID, "key", "no integer");
	end();
}

TEST(incr_has_64_bits)
{
	begin();
	expect_ok("put", "{'key':'n','value':9223372036854775806}",
		  "{'rev':1}");
	expect_refused("incr", "{'key':'n','by':2}", RC_INVALID, "by",
		       "64 bits");
	expect_ok("incr", "{'key':'n'}",
		  "{'value':9223372036854775807,'rev':2}");
	expect_refused("incr", "{'key':'n'}", RC_INVALID, "by", "64 bits");
	expect_ok("incr", "{'key':'n','by':-9223372036854775808}",
		  "{'value':-1,'rev':3}");
	expect_ok("incr", "{'key':'n','by':-9223372036854775807}",
		  "{'value':-9223372036854775808,'rev':4}");
	expect_refused("incr", "{'key':'n','by':-1}", RC_INVALID, "by",
		       "64 bits");
	expect_ok("incr", "{'key':'n','by':9223372036854775807}",
		  "{'value':-1,'rev':5}");
	end();
}

TEST(cas)
{
	begin();
	expect_refused("cas", "{'key':'a','expect':1,'value':2}", RC_CONFLICT,
		       "expect", "does not exist");
	expect_ok("cas", "{'key':'a','expect':null,'value':1}", "{'rev':1}");
	expect_refused("cas", "{'key':'a','expect':null,'value':2}",
		       RC_CONFLICT, "expect", "another value");
	expect_refused("cas", "{'key':'a','expect':2,'value':2}", RC_CONFLICT,
		       "expect", "another value");
	/* str and bin and number are different. */
	expect_refused("cas", "{'key':'a','expect':'1','value':2}", RC_CONFLICT,
		       "expect", "another value");
	expect_ok("cas", "{'key':'a','expect':1,'value':'x'}", "{'rev':2}");
	expect_refused("cas", "{'key':'a','expect':{'$bin':'eA=='},'value':2}",
		       RC_CONFLICT, "expect", "another value");
	expect_ok("cas", "{'key':'a','expect':'x','value':{'$bin':'eA=='}}",
		  "{'rev':3}");
	expect_ok("get", "{'key':'a'}", "{'value':{'$bin':'eA=='},'rev':3}");
	end();
}

/* One value, however many bytes its number takes. */
TEST(cas_compares_values_not_encodings)
{
	static const uint8_t args[] = { 0x83, 0xa3, 'k',  'e', 'y', 0xa1,
					'a',  0xa6, 'e',  'x', 'p', 'e',
					'c',  't',  0xd3, 0,   0,   0,
					0,    0,    0,    0,   5,   0xa5,
					'v',  'a',  'l',  'u', 'e', 6 };

	begin();
	expect_ok("put", "{'key':'a','value':5}", "{'rev':1}");
	EXPECT_RC(
		call_raw("o", "cas", (struct pack_bytes){ args, sizeof(args) }),
		RC_OK);
	expect_ok("get", "{'key':'a'}", "{'value':6,'rev':2}");
	end();
}

TEST(ttl)
{
	begin();
	expect_ok("put", "{'key':'a','value':1,'ttl_ms':1000}", "{'rev':1}");
	expect_ok("put", "{'key':'b','value':1}", "{'rev':2}");
	fake_advance(f, 999);
	expect_ok("get", "{'key':'a'}", "{'value':1,'rev':1}");
	fake_advance(f, 1);
	expect_refused("get", "{'key':'a'}", RC_NOT_FOUND, "", "");
	expect_ok("list", "{}", "{'items':[{'key':'b','value':1,'rev':2}]}");
	/* It does not exist, for everybody who asks. */
	expect_ok("put", "{'key':'a','value':2,'if_rev':0}", "{'rev':3}");
	expect_ok("put", "{'key':'a','value':2,'ttl_ms':5}", "{'rev':4}");
	fake_advance(f, 5);
	expect_ok("delete", "{'key':'a'}", "{'existed':false,'rev':4}");
	expect_ok("put", "{'key':'a','value':2,'ttl_ms':5}", "{'rev':5}");
	fake_advance(f, 5);
	expect_ok("cas", "{'key':'a','expect':null,'value':9}", "{'rev':6}");
	expect_ok("put", "{'key':'a','value':2,'ttl_ms':5}", "{'rev':7}");
	fake_advance(f, 5);
	expect_ok("incr", "{'key':'a'}", "{'value':1,'rev':8}");
	end();
}

TEST(who_writes_sets_the_ttl_anew)
{
	begin();
	/* put and cas forget it, incr keeps it. */
	expect_ok("put", "{'key':'a','value':1,'ttl_ms':1000}", "{'rev':1}");
	expect_ok("put", "{'key':'a','value':2}", "{'rev':2}");
	expect_ok("put", "{'key':'b','value':1,'ttl_ms':1000}", "{'rev':3}");
	expect_ok("cas", "{'key':'b','expect':1,'value':2}", "{'rev':4}");
	expect_ok("put", "{'key':'c','value':1,'ttl_ms':1000}", "{'rev':5}");
	expect_ok("incr", "{'key':'c'}", "{'value':2,'rev':6}");
	fake_advance(f, 1000);
	expect_ok("get", "{'key':'a'}", "{'value':2,'rev':2}");
	expect_ok("get", "{'key':'b'}", "{'value':2,'rev':4}");
	expect_refused("get", "{'key':'c'}", RC_NOT_FOUND, "", "");
	/* The longest. */
	EXPECT_RC(
		call("o", "put", "{'key':'d','value':1,'ttl_ms':31536000000}"),
		RC_OK);
	fake_advance(f, 31535999999u);
	EXPECT_RC(call("o", "get", "{'key':'d'}"), RC_OK);
	end();
}

TEST(batch)
{
	begin();
	expect_ok("batch",
		  "{'ops':[{'op':'put','key':'a','value':1},"
		  "{'op':'incr','key':'a','by':2},"
		  "{'op':'cas','key':'a','expect':3,'value':'x'},"
		  "{'op':'delete','key':'a'},"
		  "{'op':'delete','key':'a'},"
		  "{'op':'put','key':'b','value':7,'if_rev':0}]}",
		  "{'results':[{'rev':1},{'value':3,'rev':2},{'rev':3},"
		  "{'existed':true,'rev':4},{'existed':false,'rev':4},"
		  "{'rev':5}]}");
	expect_ok("list", "{}", "{'items':[{'key':'b','value':7,'rev':5}]}");
	/* One unit. */
	EXPECT_UINT(f->units_all, 1);
	end();
}

TEST(batch_is_all_or_nothing_and_names_the_op)
{
	begin();
	expect_ok("put", "{'key':'a','value':'text'}", "{'rev':1}");
	expect_refused("batch",
		       "{'ops':[{'op':'put','key':'x','value':1},"
		       "{'op':'put','key':'y','value':1},"
		       "{'op':'put','key':'a','value':1,'if_rev':9}]}",
		       RC_CONFLICT, "ops[2].if_rev", "revision 1");
	expect_refused("batch",
		       "{'ops':[{'op':'delete','key':'a'},"
		       "{'op':'cas','key':'a','expect':'text','value':1}]}",
		       RC_CONFLICT, "ops[1].expect", "does not exist");
	expect_refused("batch",
		       "{'ops':[{'op':'put','key':'x','value':1},"
		       "{'op':'incr','key':'a'}]}",
		       RC_INVALID, "ops[1].key", "no integer");
	expect_refused("batch",
		       "{'ops':[{'op':'put','key':'x','value':1},"
		       "{'op':'incr','key':'x','by':9223372036854775807}]}",
		       RC_INVALID, "ops[1].by", "64 bits");
	expect_ok("list", "{}",
		  "{'items':[{'key':'a','value':'text','rev':1}]}");
	EXPECT_UINT(rev_now(), 1);
	end();
}

TEST(batch_with_malformed_ops)
{
	begin();
	expect_refused("batch", "{'ops':[1]}", RC_INVALID, "ops[0]", "a map");
	expect_refused("batch", "{'ops':[{'op':'put','key':'a','value':1},{}]}",
		       RC_INVALID, "ops[1].op", "op is put");
	expect_refused("batch", "{'ops':[{'op':'get','key':'a'}]}", RC_INVALID,
		       "ops[0].op", "op is put");
	expect_refused("batch", "{'ops':[{'op':'batch','ops':[]}]}", RC_INVALID,
		       "ops[0].op", "op is put");
	expect_refused("batch", "{'ops':[{'op':7,'key':'a'}]}", RC_INVALID,
		       "ops[0].op", "op is put");
	expect_refused("batch", "{'ops':[{'key':'a','value':1}]}", RC_INVALID,
		       "ops[0].op", "op is put");
	expect_refused("batch", "{'ops':[{'op':'put','key':'a'}]}", RC_INVALID,
		       "ops[0].value", "");
	expect_refused("batch",
		       "{'ops':[{'op':'put','key':'a','value':1,'x':1}]}",
		       RC_INVALID, "ops[0].x", "");
	expect_refused("batch", "{'ops':[{'op':'put','key':'','value':1}]}",
		       RC_INVALID, "ops[0].key", "");
	expect_refused("batch", "{'ops':[{'op':'put','key':5,'value':1}]}",
		       RC_INVALID, "ops[0].key", "");
	expect_refused("batch", "{'ops':[{'op':'put','key':'a','value':1.5}]}",
		       RC_INVALID, "ops[0].value", "");
	EXPECT_UINT(rev_now(), 0);
	end();
}

/* A batch with `n` ops {op: put, key: "k<i>", value: bin of `bytes`}. */
static enum rc batch_of(unsigned n, size_t bytes)
{
	static uint8_t value[VALUE_BYTES_MAX];
	struct pack_w w;
	char key[16];
	unsigned i;
	enum rc rc;

	pack_w_init(&w, 64u << 20);
	pack_map(&w, 1);
	pack_cstr(&w, "ops");
	pack_array(&w, n);
	for (i = 0; i < n; i++) {
		snprintf(key, sizeof(key), "k%06u", i);
		pack_map(&w, 3);
		pack_cstr(&w, "op");
		pack_cstr(&w, "put");
		pack_cstr(&w, "key");
		pack_cstr(&w, key);
		pack_cstr(&w, "value");
		pack_bin(&w, value, bytes);
	}
	EXPECT_RC(w.rc, RC_OK);
	rc = call_raw("o", "batch", (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	return rc;
}

TEST(the_largest_batch)
{
	begin();
	EXPECT_RC(batch_of(KV_BATCH_OPS_MAX, 1), RC_OK);
	EXPECT_UINT(rev_now(), KV_BATCH_OPS_MAX);
	/* More than one event may change. */
	EXPECT_RC(batch_of(3, VALUE_BYTES_MAX), RC_INVALID);
	EXPECT_STR(last->ev.why.field, "args");
	EXPECT_UINT(rev_now(), KV_BATCH_OPS_MAX);
	end();
}

/* Nothing of a large object is in memory after a change of owners: a batch over
 * a thousand of its rows must not need a thousand loads. */
TEST(a_cold_batch_loads_its_rows_together)
{
	begin();
	EXPECT_RC(batch_of(1000, 100), RC_OK);
	EXPECT_RC(batch_of(1000, 200), RC_OK);
	fake_change(f);
	EXPECT_RC(batch_of(1000, 100), RC_OK);
	EXPECT_TRUE(last->ev.loads <= 8);
	EXPECT_UINT(rev_now(), 3000);
	end();
}

TEST(the_largest_value_and_key)
{
	struct pack_w w;
	static uint8_t big[VALUE_BYTES_MAX];

	begin();
	memset(big, 'v', sizeof(big));
	pack_w_init(&w, 64u << 20);
	pack_map(&w, 2);
	pack_cstr(&w, "key");
	pack_bin(&w, big, KV_KEY_BYTES_MAX);
	pack_cstr(&w, "value");
	pack_str(&w, (const char *)big, sizeof(big));
	EXPECT_RC(call_raw("o", "put", (struct pack_bytes){ w.p, w.n }), RC_OK);
	EXPECT_RC(call("o", "list", "{}"), RC_OK);
	EXPECT_TRUE(result().n > VALUE_BYTES_MAX);
	/* The key as a cursor, up and down. */
	pack_w_reset(&w);
	pack_map(&w, 1);
	pack_cstr(&w, "cursor");
	pack_bin(&w, big, KV_KEY_BYTES_MAX);
	EXPECT_RC(call_raw("o", "list", (struct pack_bytes){ w.p, w.n }),
		  RC_OK);
	EXPECT_STR(say_text(result()), "{'items':[]}");
	pack_w_release(&w);
	end();
}

/* Pages are bounded in bytes too; the sum of two large values is more than an
 * answer. */
TEST(a_page_of_large_values)
{
	static uint8_t big[VALUE_BYTES_MAX];
	static const size_t sizes[] = { 1000,
					VALUE_BYTES_MAX - 2000,
					VALUE_BYTES_MAX,
					VALUE_BYTES_MAX,
					10,
					10 };
	struct pack_w w;
	char key[16];
	char cursor[SAY_TEXT_MAX];
	unsigned seen = 0;
	unsigned pages = 0;
	size_t i;

	begin();
	pack_w_init(&w, 64u << 20);
	for (i = 0; i < 6; i++) {
		snprintf(key, sizeof(key), "k%zu", i);
		pack_w_reset(&w);
		pack_map(&w, 2);
		pack_cstr(&w, "key");
		pack_cstr(&w, key);
		pack_cstr(&w, "value");
		pack_bin(&w, big, sizes[i]);
		EXPECT_RC(call_raw("o", "put", (struct pack_bytes){ w.p, w.n }),
			  RC_OK);
	}
	pack_w_release(&w);
	snprintf(cursor, sizeof(cursor), "{}");
	while (cursor[0] != '\0') {
		struct pack_bytes items;
		struct pack_r r;
		uint32_t n;

		EXPECT_RC(call("o", "list", cursor), RC_OK);
		EXPECT_TRUE(result().n < RESULT_BYTES_MAX);
		items = say_member(result(), "items");
		r = pack_reader(items.p, items.n);
		EXPECT_RC(pack_get_array(&r, &n), RC_OK);
		EXPECT_TRUE(n > 0);
		seen += n;
		pages++;
		cursor[0] = '\0';
		if (seen < 6)
			snprintf(cursor, sizeof(cursor), "{'cursor':%s}",
				 say_text(say_member(result(), "cursor")));
	}
	EXPECT_UINT(seen, 6);
	EXPECT_UINT(pages, 4);
	EXPECT_HAS(say_text(result()), "{'items':[{'key':'k4'");
	end();
}

TEST(list_of_nothing)
{
	begin();
	expect_ok("list", "{}", "{'items':[]}");
	expect_ok("list", "{'reverse':true,'prefix':'a','limit':1}",
		  "{'items':[]}");
	expect_ok("put", "{'key':'b','value':1}", "{'rev':1}");
	expect_ok("list", "{'start':'c'}", "{'items':[]}");
	expect_ok("list", "{'end':'b'}", "{'items':[]}");
	expect_ok("list", "{'end':''}", "{'items':[]}");
	expect_ok("list", "{'start':'c','end':'a'}", "{'items':[]}");
	expect_ok("list", "{'start':'b','end':'b'}", "{'items':[]}");
	expect_ok("list", "{'prefix':'bb'}", "{'items':[]}");
	expect_ok("list", "{'prefix':'a','start':'b'}", "{'items':[]}");
	end();
}

TEST(a_cursor_that_is_none)
{
	struct pack_w w;
	static const uint8_t big[KV_KEY_BYTES_MAX + 1];

	begin();
	pack_w_init(&w, 8192);
	pack_map(&w, 1);
	pack_cstr(&w, "cursor");
	pack_bin(&w, big, sizeof(big));
	EXPECT_RC(call_raw("o", "list", (struct pack_bytes){ w.p, w.n }),
		  RC_INVALID);
	EXPECT_STR(last->ev.why.field, "cursor");
	pack_w_release(&w);
	end();
}

TEST(destroy)
{
	begin();
	expect_ok("put", "{'key':'a','value':1}", "{'rev':1}");
	expect_ok("put", "{'key':'b','value':1,'ttl_ms':100000}", "{'rev':2}");
	expect_ok("destroy", "{}", "{'rev':3}");
	expect_refused("get", "{'key':'a'}", RC_NOT_FOUND, "", "");
	expect_ok("list", "{}", "{'items':[]}");
	/* Revisions go on. */
	expect_ok("put", "{'key':'a','value':2,'if_rev':0}", "{'rev':4}");
	expect_ok("list", "{}", "{'items':[{'key':'a','value':2,'rev':4}]}");
	fake_change(f);
	expect_ok("list", "{}", "{'items':[{'key':'a','value':2,'rev':4}]}");
	expect_ok("destroy", "{}", "{'rev':5}");
	fake_change(f);
	expect_ok("put", "{'key':'c','value':1}", "{'rev':6}");
	end();
}

TEST(an_object_without_rows_keeps_its_revision)
{
	begin();
	expect_ok("put", "{'key':'a','value':1}", "{'rev':1}");
	expect_ok("delete", "{'key':'a'}", "{'existed':true,'rev':2}");
	fake_change(f);
	EXPECT_UINT(rev_now(), 2);
	expect_ok("put", "{'key':'a','value':1}", "{'rev':3}");
	end();
}

TEST(objects_are_apart)
{
	begin();
	EXPECT_RC(call("one", "put", "{'key':'a','value':1}"), RC_OK);
	EXPECT_RC(call("two", "get", "{'key':'a'}"), RC_NOT_FOUND);
	EXPECT_RC(call("two", "put", "{'key':'a','value':2}"), RC_OK);
	EXPECT_STR(say_text(result()), "{'rev':1}");
	EXPECT_RC(call("one", "get", "{'key':'a'}"), RC_OK);
	EXPECT_STR(say_text(result()), "{'value':1,'rev':1}");
	end();
}

TEST(a_row_that_cannot_be_read)
{
	struct oid oid = fake_oid("kv", "o");
	struct pack_bytes key = { (const uint8_t *)"a", 1 };

	begin();
	expect_ok("put", "{'key':'a','value':'x'}", "{'rev':1}");
	fake_change(f);
	fake_storage_damage(f->storage, &oid, ROW_DATA, key);
	EXPECT_RC(call("o", "get", "{'key':'a'}"), RC_INTERNAL);
	end();
}

/* ---- against a model ---- */

#define MODEL_MAX 600u

struct entry {
	uint8_t key[8];
	size_t key_n;
	bool bin;
	bool large; /* `large_value` is its value. */
	int64_t value;
	uint64_t rev;
	uint64_t expires_ms; /* 0: never. */
};

static char large_value[20000];

static struct entry model[MODEL_MAX];
static size_t model_n;
static uint64_t model_rev;
static uint64_t model_ms;

static int key_cmp(const uint8_t *a, size_t an, const uint8_t *b, size_t bn)
{
	size_t n = an < bn ? an : bn;
	int c = n == 0 ? 0 : memcmp(a, b, n);

	return c != 0 ? c : (an > bn) - (an < bn);
}

static bool lives(const struct entry *e)
{
	return e->expires_ms == 0 || e->expires_ms > model_ms;
}

/* The entry of a key; NULL: it does not exist. `*at` is its place. */
static struct entry *find(const uint8_t *key, size_t n, size_t *at)
{
	size_t i;

	for (i = 0; i < model_n; i++) {
		int c = key_cmp(model[i].key, model[i].key_n, key, n);

		if (c >= 0) {
			*at = i;
			return c == 0 ? &model[i] : NULL;
		}
	}
	*at = model_n;
	return NULL;
}

static void model_delete(size_t at)
{
	memmove(&model[at], &model[at + 1],
		(model_n - at - 1) * sizeof(model[0]));
	model_n--;
}

static struct entry *model_insert(size_t at, const uint8_t *key, size_t n)
{
	memmove(&model[at + 1], &model[at], (model_n - at) * sizeof(model[0]));
	model_n++;
	memset(&model[at], 0, sizeof(model[at]));
	memcpy(model[at].key, key, n);
	model[at].key_n = n;
	return &model[at];
}

static size_t random_key(struct prng *rng, uint8_t key[8])
{
	static const uint8_t alphabet[] = { 'a', 'b', 'c', 0xff, 0, 0xfe };
	size_t n = 1 + prng_below(rng, 5);
	size_t i;

	for (i = 0; i < n; i++)
		key[i] = alphabet[prng_below(rng, sizeof(alphabet))];
	return n;
}

static void put_key(struct pack_w *w, const char *name, const uint8_t *key,
		    size_t n, bool bin)
{
	pack_cstr(w, name);
	if (bin)
		pack_bin(w, key, n);
	else
		pack_str(w, (const char *)key, n);
}

/* One random write, in kv and in the model; the answers are the same. */
static void random_write(struct prng *rng, struct pack_w *w)
{
	uint8_t key[8];
	size_t n = random_key(rng, key);
	bool bin = prng_below(rng, 2) == 0;
	uint64_t what = prng_below(rng, 10);
	uint64_t ttl = prng_below(rng, 4) == 0 ? 1 + prng_below(rng, 5000) : 0;
	int64_t value = (int64_t)prng_below(rng, 1000);
	struct entry *e;
	size_t at;
	char want[128];

	e = find(key, n, &at);
	if (e != NULL && !lives(e)) {
		model_delete(at);
		e = NULL;
	}
	pack_w_reset(w);
	if (what < 3) {
		pack_map(w, 1);
		put_key(w, "key", key, n, bin);
		if (e != NULL) {
			model_rev++;
			model_delete(at);
		}
		snprintf(want, sizeof(want), "{'existed':%s,'rev':%" PRIu64 "}",
			 e != NULL ? "true" : "false", model_rev);
		EXPECT_RC(call_raw("m", "delete",
				   (struct pack_bytes){ w->p, w->n }),
			  RC_OK);
		EXPECT_STR(say_text(result()), want);
		return;
	}
	if (e == NULL)
		e = model_insert(at, key, n);
	e->bin = bin;
	e->rev = ++model_rev;
	if (what < 5) {
		pack_map(w, 2);
		put_key(w, "key", key, n, bin);
		pack_cstr(w, "by");
		pack_i64(w, value);
		e->value += value;
		snprintf(want, sizeof(want),
			 "{'value':%" PRId64 ",'rev':%" PRIu64 "}", e->value,
			 model_rev);
		EXPECT_RC(call_raw("m", "incr",
				   (struct pack_bytes){ w->p, w->n }),
			  RC_OK);
		EXPECT_STR(say_text(result()), want);
		return;
	}
	pack_map(w, ttl != 0 ? 3 : 2);
	put_key(w, "key", key, n, bin);
	pack_cstr(w, "value");
	pack_i64(w, value);
	if (ttl != 0) {
		pack_cstr(w, "ttl_ms");
		pack_u64(w, ttl);
	}
	e->value = value;
	e->expires_ms = ttl != 0 ? model_ms + ttl : 0;
	EXPECT_RC(call_raw("m", "put", (struct pack_bytes){ w->p, w->n }),
		  RC_OK);
	EXPECT_UINT(say_u64(result(), "rev"), model_rev);
}

struct range {
	uint8_t prefix[8], start[8], end[8];
	size_t prefix_n, start_n, end_n;
	bool has_prefix, has_start, has_end, reverse;
	uint32_t limit; /* 0: none is said. */
};

static bool covers(const struct range *g, const struct entry *e)
{
	if (!lives(e))
		return false;
	if (g->has_prefix && (e->key_n < g->prefix_n ||
			      memcmp(e->key, g->prefix, g->prefix_n) != 0))
		return false;
	if (g->has_start && key_cmp(e->key, e->key_n, g->start, g->start_n) < 0)
		return false;
	return !g->has_end || key_cmp(e->key, e->key_n, g->end, g->end_n) < 0;
}

static void random_range(struct prng *rng, struct range *g)
{
	memset(g, 0, sizeof(*g));
	g->has_prefix = prng_below(rng, 3) == 0;
	g->has_start = prng_below(rng, 2) == 0;
	g->has_end = prng_below(rng, 2) == 0;
	g->reverse = prng_below(rng, 2) == 0;
	g->prefix_n = random_key(rng, g->prefix) / 2;
	g->start_n = random_key(rng, g->start);
	g->end_n = random_key(rng, g->end);
	if (prng_below(rng, 3) != 0)
		g->limit = 1 + (uint32_t)prng_below(rng, 12);
}

static void range_args(const struct range *g, struct pack_bytes cursor,
		       struct pack_w *w)
{
	pack_w_reset(w);
	pack_map(w, (uint32_t)g->has_prefix + g->has_start + g->has_end +
			    g->reverse + (g->limit != 0) + (cursor.n > 0));
	if (g->has_prefix)
		put_key(w, "prefix", g->prefix, g->prefix_n, false);
	if (g->has_start)
		put_key(w, "start", g->start, g->start_n, true);
	if (g->has_end)
		put_key(w, "end", g->end, g->end_n, true);
	if (g->limit != 0) {
		pack_cstr(w, "limit");
		pack_u64(w, g->limit);
	}
	if (g->reverse) {
		pack_cstr(w, "reverse");
		pack_bool(w, true);
	}
	if (cursor.n > 0) {
		pack_cstr(w, "cursor");
		pack_raw(w, cursor.p, cursor.n);
	}
}

static void expect_item(struct pack_r *r, const struct entry *e)
{
	struct pack_bytes item;
	struct pack_w w;

	EXPECT_RC(pack_skip(r, &item), RC_OK);
	pack_w_init(&w, 65536);
	pack_map(&w, 3);
	put_key(&w, "key", e->key, e->key_n, e->bin);
	pack_cstr(&w, "value");
	if (e->large)
		pack_str(&w, large_value, sizeof(large_value));
	else
		pack_i64(&w, e->value);
	pack_cstr(&w, "rev");
	pack_u64(&w, e->rev);
	if (!pack_equal(item, (struct pack_bytes){ w.p, w.n }))
		FAIL("%s, expected %s", say_text(item),
		     say_text((struct pack_bytes){ w.p, w.n }));
	pack_w_release(&w);
}

/* All pages of a random list, item by item. */
static void random_list(struct prng *rng, struct pack_w *w)
{
	struct pack_bytes cursor = { NULL, 0 };
	const struct entry *in[MODEL_MAX];
	uint8_t kept[64];
	struct range g;
	size_t in_n = 0;
	size_t at = 0;
	size_t i;

	random_range(rng, &g);
	for (i = 0; i < model_n; i++)
		if (covers(&g, &model[g.reverse ? model_n - 1 - i : i]))
			in[in_n++] = &model[g.reverse ? model_n - 1 - i : i];
	do {
		struct pack_bytes items;
		struct pack_r r;
		uint32_t want = g.limit != 0 ? g.limit : KV_LIST_DEFAULT;
		uint32_t n;

		if (want > in_n - at)
			want = (uint32_t)(in_n - at);
		range_args(&g, cursor, w);
		EXPECT_RC(call_raw("m", "list",
				   (struct pack_bytes){ w->p, w->n }),
			  RC_OK);
		items = say_member(result(), "items");
		r = pack_reader(items.p, items.n);
		EXPECT_RC(pack_get_array(&r, &n), RC_OK);
		EXPECT_UINT(n, want);
		for (i = 0; i < n; i++)
			expect_item(&r, in[at++]);
		cursor.n = 0;
		if (at < in_n) {
			cursor = say_member(result(), "cursor");
			EXPECT_TRUE(cursor.n <= sizeof(kept));
			memcpy(kept, cursor.p, cursor.n);
			cursor.p = kept;
		} else {
			struct pack_r whole =
				pack_reader(result().p, result().n);

			EXPECT_RC(pack_get_map(&whole, &n), RC_OK);
			EXPECT_UINT(n, 1);
		}
	} while (cursor.n > 0);
}

/* Rows that nobody writes again, in the middle of the keys: the object is too
 * large to be loaded whole. */
static void put_ballast(struct pack_w *w)
{
	uint8_t key[2] = { 0x7f, 0 };
	struct entry *e;
	size_t at;

	for (; key[1] < 4; key[1]++) {
		pack_w_reset(w);
		pack_map(w, 2);
		put_key(w, "key", key, 2, true);
		pack_cstr(w, "value");
		pack_str(w, large_value, sizeof(large_value));
		EXPECT_RC(
			call_raw("m", "put", (struct pack_bytes){ w->p, w->n }),
			RC_OK);
		(void)find(key, 2, &at);
		e = model_insert(at, key, 2);
		e->bin = true;
		e->large = true;
		e->rev = ++model_rev;
	}
}

static void against_model(uint64_t seed, unsigned rounds, bool ballast)
{
	uint64_t loads = 0;
	struct prng rng;
	struct pack_w w;
	unsigned i;

	begin();
	prng_seed(&rng, seed, 0);
	pack_w_init(&w, 1u << 20);
	model_n = 0;
	model_rev = 0;
	model_ms = 1;
	if (ballast)
		put_ballast(&w);
	for (i = 0; i < rounds; i++) {
		uint64_t what = prng_below(&rng, 20);

		runner_context("seed %" PRIu64 " round %u", seed, i);
		if (what == 0) {
			uint64_t ms = prng_below(&rng, 3000);

			fake_advance(f, ms);
			fake_go(f);
			model_ms += ms;
		} else if (what == 1) {
			fake_change(f);
		} else if (what < 14 && model_n < MODEL_MAX - 1) {
			random_write(&rng, &w);
			loads += last->ev.loads;
		} else {
			random_list(&rng, &w);
			loads += last->ev.loads;
		}
	}
	EXPECT_TRUE((loads > 0) == ballast);
	pack_w_release(&w);
	end();
}

TEST(random_writes_and_lists)
{
	uint64_t seed;

	for (seed = 1; seed <= 6; seed++)
		against_model(seed, 700, false);
}

TEST(the_same_with_more_than_is_loaded_whole)
{
	uint64_t seed;

	for (seed = 21; seed <= 24; seed++)
		against_model(seed, 500, true);
}
