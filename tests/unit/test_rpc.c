/*
 * The server's own methods and bounds: who is too slow, too much or too late.
 * What may come over its socket besides is tried in
 * tests/integration/test_rpc.c.
 */
#include "node/base/mutant.h"
#ifdef SRV_TLS
#include "tests/lib/negatives.h"
#endif
#include "tests/lib/srv_rig.h"

TEST(a_call_and_the_rest)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	expect_alive(c);
	expect_ask(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	expect_ask(c, "call", "['kv/a','get',{'key':'k'},{'meta':false}]",
		   "{'value':1,'rev':1}");
	EXPECT_HAS(ask(c, "hello", "[]"),
		   SRV_OVER_TLS ? "'principal':'" SRV_CLIENT "'"
				: "'principal':'unix:n1:");
	EXPECT_HAS(ask(c, "hello", "[{'protocol':9,'client':'x','more':[]}]"),
		   "'protocol':1");
	EXPECT_HAS(ask(c, "status", "[]"), "'node':'n1'");
	EXPECT_HAS(ask(c, "status", "[{'reset_stall':true}]"), "'shards':[");
	EXPECT_HAS(ask(c, "metrics", "[]"), "# TYPE holdfast_");
	EXPECT_HAS(ask(c, "objects", "[]"),
		   "'address':'default/dev/kv/a','rev':1,");
	EXPECT_HAS(ask(c, "object", "['kv/a']"),
		   "'address':'default/dev/kv/a','rev':1,");
	srv_end();
}

TEST(params_of_the_servers_own_methods)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	expect_error(c, "ping", "[1]", RC_INVALID, "params");
	expect_error(c, "metrics", "[{}]", RC_INVALID, "params");
	expect_error(c, "hello", "[1]", RC_INVALID, "params");
	expect_error(c, "hello", "[{},{}]", RC_INVALID, "params");
	expect_error(c, "status", "[1]", RC_INVALID, "params");
	expect_error(c, "status", "[{'reset_stall':1}]", RC_INVALID,
		     "reset_stall");
	expect_error(c, "status", "[{'reset_stal':true}]", RC_INVALID,
		     "reset_stal");
	expect_error(c, "objects", "['a']", RC_INVALID, "params");
	expect_error(c, "objects", "[{'tenants':'a'}]", RC_INVALID, "tenants");
	expect_error(c, "objects", "[{'limit':0}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'limit':1001}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'limit':'9'}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'limit':-1}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'tenant':1}]", RC_INVALID, "tenant");
	expect_error(c, "objects", "[{'tenant':''}]", RC_INVALID, "tenant");
	expect_error(c, "objects", "[{'env':[]}]", RC_INVALID, "env");
	expect_error(c, "objects", "[{'class':null}]", RC_INVALID, "class");
	expect_error(c, "objects", "[{'after':''}]", RC_INVALID, "after");
	expect_error(c, "objects", "[{'after':'0'}]", RC_INVALID, "after");
	expect_error(c, "objects", "[{'after':'4.00'}]", RC_INVALID, "after");
	expect_error(c, "objects",
		     "[{'after':'9.00112233445566778899aabbccddeeff'}]",
		     RC_INVALID, "after");
	expect_error(c, "object", "[]", RC_INVALID, "params");
	expect_error(c, "object", "[7]", RC_INVALID, "address");
	expect_error(c, "object", "['kv']", RC_INVALID, "address");
	expect_error(c, "call", "[]", RC_INVALID, "params");
	expect_error(c, "call", "['kv/a','get',{},{},{}]", RC_INVALID,
		     "params");
	expect_error(c, "cancel", "[1]", RC_UNSUPPORTED, "method");
	expect_error(c, "no_such", "[]", RC_UNSUPPORTED, "method");
	expect_error(c, "", "[]", RC_UNSUPPORTED, "method");
	expect_alive(c);
	srv_end();
}

TEST(an_error_is_a_map)
{
	struct client *c;
	const char *text;

	srv_defaults();
	srv_begin();
	c = client();
	EXPECT_NULL(ask(c, "call", "['kv/a','get',{}]"));
	text = say_text(c->last.error);
	EXPECT_HAS(text, "'code':'INVALID'");
	EXPECT_HAS(text, "'http':400");
	EXPECT_HAS(text, "'outcome':'refused'");
	EXPECT_HAS(text, "'message':'");
	EXPECT_HAS(text, "'request_id':'");
	EXPECT_HAS(text, "'field':'key'");
	EXPECT_NULL(strstr(text, "retry_after_ms"));
	EXPECT_NULL(strstr(text, "owner"));
	EXPECT_STR(say_text(c->last.result), "null");
	/* What is not there, and what one may not see. */
	EXPECT_NULL(ask(c, "call", "['kv/a','get',{'key':'k'}]"));
	text = say_text(c->last.error);
	EXPECT_HAS(text, "'code':'NOT_FOUND','http':404");
	EXPECT_HAS(text, rc_text(RC_NOT_FOUND));
	EXPECT_NULL(strstr(text, "field"));
	EXPECT_NULL(ask(c, "call", "['nowhere/dev/kv/a','get',{'key':'k'}]"));
	EXPECT_HAS(say_text(c->last.error), rc_text(RC_NOT_FOUND));
	EXPECT_NULL(strstr(say_text(c->last.error), "field"));
	srv_end();
}

static uint64_t told_owner;

static void tell_owner(void *arg, const struct caller *caller,
		       struct pack_bytes params, struct rpc_slot *slot)
{
	struct answer a = { .rc = RC_NOT_OWNER,
			    .outcome = OUTCOME_REFUSED,
			    .retry_after_ms = -1,
			    .owner = told_owner,
			    .shard = 3 };

	(void)arg;
	(void)caller;
	(void)params;
	rpc_answer(slot, &a);
}

/* A node by its name, where it is known. */
TEST(an_error_names_the_owner)
{
	struct rpc_host host;
	struct detail why = { { 0 }, { 0 } };
	struct client *c;

	srv_defaults();
	srv_core();
	metrics_host(srv.metrics, &host);
	host.object = tell_owner;
	EXPECT_RC(rpc_open(&srv.loop, &srv.env.env, srv.core, &srv.rpc_cfg,
			   &host, &srv.rpc, &why),
		  RC_OK);
	metrics_rpc(srv.metrics, srv.rpc);
	c = client();
	told_owner = 1;
	EXPECT_NULL(ask(c, "object", "['kv/a']"));
	EXPECT_HAS(say_text(c->last.error), "'owner':'n1'");
	EXPECT_NULL(strstr(say_text(c->last.error), "shard"));
	told_owner = 7;
	EXPECT_NULL(ask(c, "object", "['kv/a']"));
	EXPECT_HAS(say_text(c->last.error), "'owner':'7'");
	told_owner = 0;
	EXPECT_NULL(ask(c, "object", "['kv/a']"));
	EXPECT_NULL(strstr(say_text(c->last.error), "owner'"));
	srv_end();
}

TEST(an_id_twice_is_answered_twice)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	request(c, 9, "call", "['kv/i','incr',{'key':'n'}]");
	request(c, 9, "call", "['kv/i','incr',{'key':'n'}]");
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->errors, 0);
	EXPECT_STR(say_text(c->last.result), "{'value':2,'rev':2}");
	srv_end();
}

TEST(cancel)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	request(c, 1, "call",
		"['relay/o','run',{'steps':[['wait',50000]]},"
		"{'deadline_ms':60000}]");
	request(c, 2, "call", "['relay/o','get',{}]");
	turns(20);
	EXPECT_UINT(c->answers, 0);
	notify(c, "cancel", "[3]");
	notify(c, "cancel", "[2]");
	WAIT_FOR(c->answers == 1);
	EXPECT_UINT(c->last.id, 2);
	EXPECT_RC(c->error.code, RC_CANCELLED);
	notify(c, "cancel", "[1]");
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->last.id, 1);
	EXPECT_RC(c->error.code, RC_CANCELLED);
	/* Another connection's ids are its own. */
	request(c, 5, "call", "['relay/o','run',{'steps':[['wait',300]]}]");
	turns(5);
	notify(client(), "cancel", "[5]");
	WAIT_FOR(c->answers == 3);
	EXPECT_UINT(c->errors, 2);
	srv_end();
}

/* Not the same as one that only sends no more: nobody will hear the answers. */
TEST(gone_for_good_and_half_closed)
{
	struct core_stats s;
	struct client *half;
	struct client *gone;
	struct client *later;
	const char *slow = "['relay/%c','run',{'steps':[['wait',%u]]},"
			   "{'deadline_ms':60000}]";
	char params[128];

	srv_defaults();
	srv_begin();
	half = client();
	gone = client();
	later = client();
	snprintf(params, sizeof(params), slow, 'a', 1500);
	request(half, 1, "call", params);
	snprintf(params, sizeof(params), slow, 'b', 50000);
	request(gone, 1, "call", params);
	snprintf(params, sizeof(params), slow, 'c', 50000);
	request(later, 1, "call", params);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 3);
	client_half_close(half);
	/* TCP does not tell that who sends no more has left as well. */
	if (!SRV_OVER_TLS)
		client_half_close(later);
	client_close(gone);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 2);
	turns(10);
	client_close(later);
	WAIT_FOR(half->answers == 1);
	EXPECT_UINT(half->errors, 0);
	WAIT_FOR(stats().connections == 0);
	core_stats(srv.core, &s);
	EXPECT_UINT(s.calls_open, 0);
	srv_end();
}

TEST(calls_of_a_connection_have_a_bound)
{
	struct client *c;
	struct client *other;
	uint32_t i;

	srv_defaults();
	srv_begin();
	c = client();
	other = client();
	for (i = 0; i < CONNECTION_CALLS_MAX + 3; i++)
		request(c, i, "call",
			"['relay/o','run',{'steps':[['wait',50000]]},"
			"{'deadline_ms':60000}]");
	WAIT_FOR(c->answers == 3);
	EXPECT_UINT(c->errors, 3);
	EXPECT_RC(c->error.code, RC_OVERLOADED);
	EXPECT_TRUE(c->error.retry_after_ms >= 0);
	/* Others have their own. */
	expect_ask(other, "call", "['kv/a','incr',{'key':'n'}]",
		   "{'value':1,'rev':1}");
	client_close(c);
	WAIT_FOR(stats().connections == 1);
	srv_end();
}

TEST(calls_of_the_node_have_a_bound)
{
	struct client *c;
	unsigned i;

	srv_defaults();
	srv.cfg.calls_max = 64;
	srv_begin();
	c = client();
	for (i = 0; i < 40; i++)
		request(c, i, "call",
			"['relay/o','run',{'steps':[['wait',50000]]},"
			"{'deadline_ms':60000}]");
	WAIT_FOR(c->answers == 8);
	EXPECT_UINT(c->errors, 8);
	EXPECT_RC(c->error.code, RC_OVERLOADED);
	EXPECT_TRUE(c->error.retry_after_ms > 0);
	/* Who looks after the node is answered all the same. */
	expect_alive(c);
	EXPECT_HAS(ask(c, "status", "[]"), "'calls_refused':8,");
	EXPECT_HAS(ask(c, "metrics", "[]"), "holdfast_calls_refused_total 8");
	client_close(c);
	srv_end();
}

/* It is made in advance, and says as much as any. */
TEST(a_refused_call_is_told_all)
{
	struct client *c;
	const char *text;
	const char *id;
	char first[17];
	unsigned i;

	srv_defaults();
	srv.cfg.calls_max = 64;
	srv_begin();
	c = client();
	for (i = 0; i < 32; i++)
		request(c, i, "call",
			"['relay/o','run',{'steps':[['wait',50000]]},"
			"{'deadline_ms':60000}]");
	for (i = 0; i < 2; i++) {
		EXPECT_NULL(ask(c, "call", "['kv/a','get',{'key':'k'}]"));
		text = say_text(c->last.error);
		EXPECT_HAS(text, "'code':'OVERLOADED','http':503,"
				 "'outcome':'refused','message':'too many "
				 "calls are in flight','request_id':'");
		EXPECT_HAS(text, "','retry_after_ms':50}");
		EXPECT_STR(say_text(c->last.result), "null");
		text = say_text(c->last.error);
		id = strstr(text, "'request_id':'") + 14;
		EXPECT_UINT(strspn(id, "0123456789abcdef"), 16);
		EXPECT_TRUE(i == 0 || strncmp(id, first, 16) != 0);
		snprintf(first, sizeof(first), "%.16s", id);
	}
	client_close(c);
	srv_end();
}

static uint64_t begun_then;
static bool link_seen;

static void link_polled(uv_poll_t *h, int status, int events)
{
	struct core_stats s;

	(void)status;
	(void)events;
	core_stats(srv.core, &s);
	begun_then = s.calls;
	link_seen = true;
	uv_poll_stop(h);
}

/* A call that came first, and something on another socket of the loop, as the
 * links of peers are: in one turn what is on the link is taken, then the call
 * begins. */
TEST(what_peers_have_sent_comes_before_calls)
{
	struct core_stats s;
	struct client *c;
	uv_poll_t peer;
	uint64_t before;
	int ends[2];

	srv_defaults();
	srv_begin();
	c = client();
	expect_alive(c);
	EXPECT_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	EXPECT_INT(uv_poll_init(&srv.loop, &peer, ends[0]), 0);
	EXPECT_INT(uv_poll_start(&peer, UV_READABLE, link_polled), 0);
	turns(3);
	EXPECT_FALSE(link_seen);
	core_stats(srv.core, &s);
	before = s.calls;
	request(c, 1, "call", "['kv/a','incr',{'key':'n'}]");
	while (client_unsent(c))
		(void)client_write(c);
	EXPECT_INT(send(ends[1], "x", 1, 0), 1);
	while (!link_seen)
		uv_run(&srv.loop, UV_RUN_ONCE);
	EXPECT_UINT(begun_then, before);
	core_stats(srv.core, &s);
	EXPECT_UINT(s.calls, before + 1);
	uv_close((uv_handle_t *)&peer, NULL);
	turns(3);
	close(ends[0]);
	close(ends[1]);
	srv_end();
}

static void put_large(struct client *c)
{
	static uint8_t value[VALUE_BYTES_MAX];
	struct pack_w w;
	unsigned answers = c->answers;

	memset(value, 'v', sizeof(value));
	pack_w_init(&w, 4u << 20);
	pack_array(&w, 3);
	pack_cstr(&w, "kv/large");
	pack_cstr(&w, "put");
	pack_map(&w, 2);
	pack_cstr(&w, "key");
	pack_cstr(&w, "k");
	pack_cstr(&w, "value");
	pack_bin(&w, value, sizeof(value));
	request_raw(c, 1, "call", (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	WAIT_FOR(c->answers > answers);
	EXPECT_RC(c->error.code, RC_OK);
}

/* A client that reads gets all of it, however much it pipelines; and at no
 * moment has the server more of it in memory than a few. */
TEST(large_answers_come_as_fast_as_they_are_read)
{
	struct client *c;
	uint64_t most = 0;
	unsigned i;

	srv_defaults();
	srv_begin();
	c = client();
	put_large(c);
	for (i = 0; i < 200; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	while (c->answers < 201) {
		uint64_t held;

		pump();
		held = stats().out_held;
		if (held > most)
			most = held;
	}
	EXPECT_UINT(c->errors, 0);
	EXPECT_TRUE(most < 8u << 20);
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

/* All of them are begun before the first is known to be large. */
TEST(large_answers_of_an_object_that_is_not_in_memory)
{
	struct client *c;
	unsigned i;

	srv_defaults();
	srv.cfg.object_idle_ms = 10;
	srv.cfg.window_ms = 1;
	srv_begin();
	c = client();
	put_large(c);
	/* Until it has been evicted. */
	WAIT_FOR(strstr(ask(c, "status", "[]"), "'objects_resident':0") !=
		 NULL);
	c->answers = 0;
	for (i = 0; i < 1500; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	WAIT_FOR(c->answers == 1500 || c->closed);
	EXPECT_FALSE(c->closed);
	EXPECT_TRUE(all_seen(c, 1500));
	/* Those for which there was no room were told to come again. */
	EXPECT_TRUE(c->errors < 1500);
	EXPECT_UINT(stats().broken, 0);
	expect_alive(c);
	srv_end();
}

TEST(a_reader_that_never_reads)
{
	struct client *c;
	struct client *other;
	uint64_t most = 0;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.write_stall_ms = 400;
	srv_begin();
	c = client();
	other = client();
	put_large(other);
	c->deaf = true;
	for (i = 0; i < 500; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	while (stats().broken == 0) {
		uint64_t held;

		expect_ask(other, "call", "['kv/o','list',{}]", "{'items':[]}");
		held = stats().out_held;
		if (held > most)
			most = held;
	}
	EXPECT_TRUE(most < 8u << 20);
	WAIT_FOR(stats().connections == 1);
	EXPECT_UINT(stats().out_held, 0);
	srv_end();
}

/* Slow, and yet it goes on. (The kernel asks for more when three quarters of
 * what it holds have been read.) */
TEST(a_slow_reader_is_no_dead_one)
{
	struct client *c;
	/* TCP holds megabytes, and wants a third of them taken. */
	const unsigned gets = SRV_OVER_TLS ? 60 : 6;
	uint64_t until;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.write_stall_ms = 700;
	srv_begin();
	c = client();
	put_large(c);
	for (i = 0; i < gets; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	c->deaf = true;
	until = now_ms() + 2500;
	while (now_ms() < until) {
		uint64_t next = now_ms() + 100;
		unsigned reads = SRV_OVER_TLS ? 30 : 1;

		while (reads-- > 0)
			(void)client_read_some(c, 60000);
		while (now_ms() < next)
			pump();
	}
	EXPECT_UINT(stats().broken, 0);
	c->deaf = false;
	WAIT_FOR(c->answers == gets + 1);
	EXPECT_UINT(c->errors, 0);
	srv_end();
}

/* A node that was stopped, or busy, has not listened: what came meanwhile is
 * still in the kernel when its timers are due. */
TEST(an_own_stall_is_nobodys_silence)
{
	struct client *reads;
	struct client *writes;
	uint64_t until;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.write_stall_ms = 300;
	srv.rpc_cfg.frame_stall_ms = 300;
	srv_begin();
	reads = client();
	writes = client();
	expect_alive(writes);
	put_large(reads);
	for (i = 0; i < 20; i++)
		request(reads, i, "call", "['kv/large','get',{'key':'k'}]");
	reads->deaf = true;
	WAIT_FOR(!client_unsent(reads));
	WAIT_FOR(stats().out_held > 0);
	send_bytes(writes, "\x94\x00\x01\xa4pi", 6);
	turns(2);
	/* The loop does not run. */
	until = now_ms() + 900;
	while (now_ms() < until)
		(void)client_read_some(reads, 60000);
	send_bytes(writes, "ng\x90", 3);
	while (client_unsent(writes))
		(void)client_write(writes);
	reads->deaf = false;
	WAIT_FOR(writes->answers == 2 || writes->closed);
	WAIT_FOR(reads->answers == 21 || reads->closed);
	EXPECT_FALSE(writes->closed);
	EXPECT_FALSE(reads->closed);
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

TEST(a_sender_that_stalls)
{
	struct client *half;
	struct client *idle;
	struct client *waiting;

	srv_defaults();
	srv.rpc_cfg.frame_stall_ms = 300;
	srv_begin();
	half = client();
	idle = client();
	waiting = client();
	expect_alive(half);
	expect_alive(idle);
	request(waiting, 1, "call",
		"['relay/o','run',{'steps':[['wait',2500]]}]");
	send_bytes(half, "\x94\x00\x01\xa4pi", 6);
	WAIT_FOR(half->closed);
	EXPECT_UINT(stats().broken, 1);
	/* Nothing begun, or everything sent: both may take their time. */
	WAIT_FOR(waiting->answers == 1);
	EXPECT_FALSE(idle->closed);
	expect_alive(idle);
	EXPECT_UINT(stats().broken, 1);
	srv_end();
}

/* Half of a large frame takes as much memory as has come. */
TEST(unfinished_requests_take_what_they_sent)
{
	static uint8_t part[700000];
	struct client *c[20];
	struct client *other;
	unsigned i;

	srv_defaults();
	srv_begin();
	other = client();
	put_raw(part,
		"\x94\x00\x01\xa4"
		"call\x93\xa4kv/a\xa3put\x82\xa3key\xa1k\xa5value"
		"\xc6\x00\x10\x00\x00",
		36);
	for (i = 0; i < 20; i++) {
		c[i] = client();
		send_bytes(c[i], part, sizeof(part));
	}
	for (i = 0; i < 20; i++)
		WAIT_FOR(!client_unsent(c[i]));
	turns(20);
	EXPECT_TRUE(stats().in_held >= 20 * sizeof(part));
	EXPECT_TRUE(stats().in_held <= 2 * 20 * sizeof(part) + (1u << 20));
	expect_alive(other);
	for (i = 0; i < 20; i++)
		client_close(c[i]);
	WAIT_FOR(stats().connections == 1);
	EXPECT_TRUE(stats().in_held <= CONNECTION_IN_BYTES);
	srv_end();
}

TEST(connections_have_a_bound)
{
	struct client *c[4];
	struct client *over;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.connections_max = 4;
	srv_begin();
	for (i = 0; i < 4; i++) {
		c[i] = client();
		expect_alive(c[i]);
	}
	over = client();
	WAIT_FOR(over->closed);
	EXPECT_UINT(stats().refused, 1);
	for (i = 0; i < 4; i++)
		expect_alive(c[i]);
	client_close(c[2]);
	WAIT_FOR(stats().connections == 3);
	expect_alive(client());
	srv_end();
}

static void abandoned(void *arg)
{
	(void)arg;
}

#ifndef SRV_TLS
TEST(the_socket)
{
	struct detail why = { { 0 }, { 0 } };
	char text[200];
	struct rpc *first;
	struct stat st;
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	FILE *f;
	int fd;

	srv_defaults();
	srv_begin();
	EXPECT_INT(lstat(srv.socket, &st), 0);
	EXPECT_UINT(st.st_mode & 07777, 0600);
	/* Somebody listens. */
	first = srv.rpc;
	EXPECT_RC(srv_listen(&why), RC_EXISTS);
	EXPECT_STR(why.field, "listen.socket");
	EXPECT_HAS(why.text, "another process listens");
	EXPECT_TRUE(srv.rpc == first);
	turns(3);
	expect_alive(client());
	/* No path for a socket. */
	memset(text, 'x', sizeof(text));
	text[150] = '\0';
	text[0] = '/';
	why = (struct detail){ { 0 }, { 0 } };
	srv.rpc_cfg.socket_path = text;
	EXPECT_RC(srv_listen(&why), RC_INVALID);
	EXPECT_HAS(why.text, "107 bytes");
	/* No directory, a file. */
	snprintf(text, sizeof(text), "%.90s/none/s", runner_dir());
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(srv_listen(&why), RC_IO);
	EXPECT_STR(why.field, "listen.socket");
	EXPECT_HAS(why.text, text);
	EXPECT_HAS(why.text, "no such file");
	turns(3);
	snprintf(text, sizeof(text), "%.90s/file", runner_dir());
	f = fopen(text, "w");
	EXPECT_NOT_NULL(f);
	fclose(f);
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(srv_listen(&why), RC_EXISTS);
	EXPECT_HAS(why.text, "is no socket");
	EXPECT_INT(access(text, F_OK), 0);
	/* One that nobody listens on is replaced. */
	snprintf(text, sizeof(text), "%.90s/dead", runner_dir());
	snprintf(a.sun_path, sizeof(a.sun_path), "%.100s", text);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT_INT(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	close(fd);
	EXPECT_RC(srv_listen(&why), RC_OK);
	EXPECT_TRUE(srv.rpc != first);
	rpc_close(srv.rpc, abandoned, NULL);
	turns(3);
	EXPECT_TRUE(lstat(text, &st) != 0);
	srv.rpc = first;
	expect_alive(client());
	srv_end();
}

#endif

#ifdef SRV_TLS
/* ---- who may come over TCP ---- */

#define CLIENT_OF(rest) "spiffe://" TEST_CLUSTER "/tenant/" rest

static struct client *client_named(const char *name)
{
	struct tls_context *c = srv_context("ca", name);
	struct client *made = client_tls(c);

	tls_context_free(c);
	return made;
}

static void expect_stranger(struct client *c, const char *what)
{
	uint64_t refused = stats().refused;
	uint64_t frames = stats().frames;

	runner_context("%s", what);
	request(c, 1, "ping", "[]");
	WAIT_FOR(c->closed);
	EXPECT_UINT(c->answers, 0);
	WAIT_FOR(stats().refused > refused);
	EXPECT_UINT(stats().frames, frames);
	EXPECT_UINT(stats().handshakes, 0);
	client_close(c);
	runner_context("%s", "");
}

TEST(the_principal_is_the_certificates)
{
	static const char acme[] =
		CLIENT_OF("acme/env/prod-1/client/Web_01.example");
	const struct grant g = { .env = "prod-1",
				 .cls = "*",
				 .rights = RIGHT_READ | RIGHT_WRITE,
				 .tenant = "acme" };
	struct grant mine = g;
	struct client *c;

	srv_defaults();
	srv_begin();
	test_cert(srv.ca, runner_dir(), "acme",
		  &(struct test_leaf){ .uri = acme, .eku = "clientAuth" });
	snprintf(mine.principal, sizeof(mine.principal), "%s", acme);
	EXPECT_RC(bind_grant(srv.bind, &mine, NULL), RC_OK);
	c = client_named("acme");
	EXPECT_HAS(ask(c, "hello", "[]"), "'principal':'spiffe://");
	EXPECT_HAS(ask(c, "hello", "[]"), "'address':'acme/prod-1'");
	/* Addresses that name none are its own tenant's. */
	expect_ask(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	expect_ask(client(), "call", "['kv/a','put',{'key':'k','value':2}]",
		   "{'rev':1}");
	expect_ask(c, "call", "['acme/prod-1/kv/a','get',{'key':'k'}]",
		   "{'value':1,'rev':1}");
	/* Another's are as absent ones. */
	EXPECT_NULL(ask(c, "call", "['default/dev/kv/a','get',{'key':'k'}]"));
	EXPECT_RC(c->error.code, RC_NOT_FOUND);
	srv_end();
}

TEST(names_that_are_no_client)
{
	static const char *const uris[] = {
		"spiffe://" TEST_CLUSTER "/node/1",
		"spiffe://" TEST_CLUSTER "/node/1/tenant/a/env/b/client/c",
		"spiffe://ffeeddccbbaa99887766554433221100"
		"/tenant/default/env/dev/client/c",
		"spiffe://" TEST_CLUSTER "0/tenant/default/env/dev/client/c",
		"spiffe://" TEST_CLUSTER,
		CLIENT_OF("default/env/dev/client/"),
		CLIENT_OF("default/env/dev/client/a/b"),
		CLIENT_OF("default/env/dev"),
		CLIENT_OF("/env/dev/client/c"),
		CLIENT_OF("default/env//client/c"),
		CLIENT_OF("Default/env/dev/client/c"),
		CLIENT_OF("1/env/dev/client/c"),
		CLIENT_OF("a%2Fb/env/dev/client/c"),
		CLIENT_OF("a/b/env/dev/client/c"),
		CLIENT_OF("a123456789a123456789a123456789a123456789a123456789"
			  "a1234567890abcd/env/dev/client/c"),
	};
	struct client *c;
	size_t i;

	srv_defaults();
	srv_begin();
	for (i = 0; i < ARRAY_LEN(uris); i++) {
		test_cert(srv.ca, runner_dir(), "bad",
			  &(struct test_leaf){ .uri = uris[i] });
		expect_stranger(client_named("bad"), uris[i]);
	}
	/* Without the rule they would be. */
	mutant_now = MUTANT_client_any_name;
	c = client_named("bad");
	expect_alive(c);
	mutant_now = MUTANT_none;
	expect_alive(client());
	srv_end();
}

/* What is wrong with a certificate itself is tried in test_tls; here that the
 * listener asks for one and looks at it. */
TEST(certificates_of_others)
{
	struct test_ca *other;
	struct tls_context *c;
	FILE *f;

	srv_defaults();
	srv_begin();
	other = test_ca_new(runner_dir(), "other");
	test_cert(other, runner_dir(), "bad",
		  &(struct test_leaf){ .uri = SRV_CLIENT });
	/* It trusts us, so that it is us who refuse. */
	f = fopen(srv_path("other", "crt"), "a");
	EXPECT_INT(PEM_write_X509(f, srv.ca->cert), 1);
	fclose(f);
	c = srv_context("other", "bad");
	expect_stranger(client_tls(c), "another CA");
	tls_context_free(c);
	test_ca_free(other);
	/* A server's. */
	test_cert(
		srv.ca, runner_dir(), "bad",
		&(struct test_leaf){ .uri = SRV_CLIENT, .eku = "serverAuth" });
	expect_stranger(client_named("bad"), "a server's");
	/* Refused, each of them, and the rest of the world goes on. */
	EXPECT_UINT(stats().broken, 0);
	expect_alive(client());
	srv_end();
}

static void expect_negative(const char *name, const char *what)
{
	uint64_t refused = stats().refused;
	struct client *c = client_tcp();
	struct raw r;

	runner_context("%s", what);
	raw_new(&r, runner_dir(), name, false);
	/* The pump only looks on: what comes is no frame. */
	c->deaf = true;
	while (stats().refused == refused) {
		(void)raw_step(&r, c->fd);
		pump();
	}
	EXPECT_UINT(stats().handshakes, 0);
	EXPECT_UINT(stats().frames, 0);
	EXPECT_UINT(stats().refused, refused + 1);
	raw_free(&r);
	client_close(c);
	runner_context("%s", "");
}

TEST(certificates_of_every_kind_of_wrong)
{
	struct negative_cas cas;
	size_t i;

	srv_defaults();
	srv_begin();
	negative_cas_new(&cas, runner_dir(), srv.ca);
	for (i = 0; i < ARRAY_LEN(negatives); i++) {
		negative_cert(&negatives[i], &cas, runner_dir());
		expect_negative("bad", negatives[i].what);
	}
	expect_negative("", "none");
	negative_cas_free(&cas);
	expect_alive(client());
	srv_end();
}

TEST(what_is_no_tls)
{
	static const char *const texts[] = {
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"\x94\x00\x01\xa4ping\x90 and so on and so on",
		"\x16\x03\x01\xff\xff and so on and so on and so on",
	};
	struct client *c;
	size_t i;

	srv_defaults();
	srv.rpc_cfg.handshake_ms = 500;
	srv_begin();
	for (i = 0; i < ARRAY_LEN(texts); i++) {
		c = client_tcp();
		send_bytes(c, texts[i], 28);
		while (!c->closed) {
			(void)client_write(c);
			uv_run(&srv.loop, UV_RUN_NOWAIT);
			/* An alert may come, and is no frame. */
			(void)client_read_some(c, 65536);
		}
		client_close(c);
	}
	EXPECT_UINT(stats().broken, ARRAY_LEN(texts));
	EXPECT_UINT(stats().frames, 0);
	expect_alive(client());
	srv_end();
}

/* ---- handshakes take time and room that is bounded ---- */

TEST(half_handshakes_end)
{
	struct client *silent;
	struct client *part;
	struct client *slow;
	const uint8_t *p;
	uint64_t began;
	uint64_t said;
	size_t at = 20;
	size_t n;

	srv_defaults();
	srv.rpc_cfg.handshake_ms = 600;
	srv_begin();
	silent = client_tcp();
	part = client_tls(srv.client_tls);
	slow = client_tls(srv.client_tls);
	silent->deaf = part->deaf = slow->deaf = true;
	/* The pump is not to send what they only begin. */
	tls_output(part->tls, &p, &n);
	EXPECT_INT(send(part->fd, p, 20, MSG_NOSIGNAL), 20);
	tls_sent(part->tls, n);
	WAIT_FOR(stats().handshakes >= 2);
	began = now_ms();
	said = began;
	tls_output(slow->tls, &p, &n);
	while (stats().handshakes > 0) {
		EXPECT_TRUE(now_ms() - began < 3000);
		/* A byte at a time is too slow as well. */
		if (now_ms() - said > 20 && at < n) {
			(void)!send(slow->fd, p + at++, 1, MSG_NOSIGNAL);
			said = now_ms();
		}
		uv_run(&srv.loop, UV_RUN_NOWAIT);
	}
	tls_sent(slow->tls, n);
	EXPECT_TRUE(now_ms() - began >= 500);
	EXPECT_UINT(stats().broken, 3);
	EXPECT_UINT(stats().connections, 0);
	expect_alive(client());
	srv_end();
}

/* As many as there may be, and a hundred more: nobody who is known waits, and
 * who comes meanwhile gets in. */
TEST(a_flood_of_half_handshakes)
{
	struct client *known;
	struct client *late;
	uint64_t began;
	unsigned i;

	srv_defaults();
	srv_begin();
	known = client();
	expect_alive(known);
	for (i = 0; i < CONNECTION_HANDSHAKES_MAX + 100; i++) {
		struct client *c = client_tls(srv.client_tls);
		const uint8_t *p;
		size_t n;

		c->deaf = true;
		tls_output(c->tls, &p, &n);
		if (i % 2 == 0)
			EXPECT_INT(send(c->fd, p, 50, MSG_NOSIGNAL), 50);
		tls_sent(c->tls, n);
		if (i % 16 == 0)
			uv_run(&srv.loop, UV_RUN_NOWAIT);
		EXPECT_TRUE(stats().handshakes <= CONNECTION_HANDSHAKES_MAX);
	}
	began = now_ms();
	expect_alive(known);
	EXPECT_TRUE(now_ms() - began < 1000);
	late = client();
	expect_alive(late);
	EXPECT_TRUE(now_ms() - began < 4000);
	EXPECT_TRUE(stats().handshakes <= CONNECTION_HANDSHAKES_MAX);
	WAIT_FOR(stats().handshakes == 0);
	EXPECT_TRUE(now_ms() - began < 2 * CONNECTION_HANDSHAKE_MS);
	EXPECT_UINT(stats().connections, 2);
	expect_alive(late);
	srv_end();
}

/* ---- certificates over time ---- */

TEST(a_certificate_that_ends)
{
	struct client *c;
	struct client *stays;
	uint64_t began;

	srv_defaults();
	srv_begin();
	stays = client();
	test_cert(srv.ca, runner_dir(), "short",
		  &(struct test_leaf){ .uri = SRV_CLIENT, .to_s = 3 });
	c = client_named("short");
	expect_alive(c);
	request(c, 5, "call",
		"['relay/o','run',{'steps':[['wait',50000]]},"
		"{'deadline_ms':60000}]");
	began = now_ms();
	WAIT_FOR(c->closed);
	EXPECT_TRUE(now_ms() - began < 6000);
	EXPECT_UINT(stats().broken, 1);
	EXPECT_UINT(c->answers, 1);
	expect_alive(stays);
	/* Without the rule it goes on. */
	mutant_now = MUTANT_expired_stays;
	test_cert(srv.ca, runner_dir(), "short",
		  &(struct test_leaf){ .uri = SRV_CLIENT, .to_s = 2 });
	c = client_named("short");
	expect_alive(c);
	began = now_ms();
	while (now_ms() - began < 4000)
		pump();
	expect_alive(c);
	mutant_now = MUTANT_none;
	srv_end();
}

/* New connections see the renewed certificate, old ones go on. */
TEST(a_renewed_certificate)
{
	struct tls_context *old;
	struct client *c;
	struct client *later;
	uint64_t expires;

	srv_defaults();
	srv_begin();
	c = client();
	expect_alive(c);
	expires = tls_peer_expires_ms(c->tls);
	test_cert(
		srv.ca, runner_dir(), "node1",
		&(struct test_leaf){ .uri = "spiffe://" TEST_CLUSTER "/node/1",
				     .to_s = 200000 });
	old = srv.tls;
	srv.tls = srv_context("ca", "node1");
	rpc_tls(srv.rpc, srv.tls);
	tls_context_free(old);
	later = client();
	expect_alive(later);
	EXPECT_TRUE(tls_peer_expires_ms(later->tls) > expires);
	expect_alive(c);
	srv_end();
}

/* An end without goodbye is a death, whatever is still under way. */
TEST(cut_off)
{
	struct core_stats s;
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	expect_alive(c);
	request(c, 1, "call",
		"['relay/a','run',{'steps':[['wait',50000]]},"
		"{'deadline_ms':60000}]");
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 1);
	shutdown(c->fd, SHUT_WR);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 0);
	WAIT_FOR(stats().connections == 0);
	srv_end();
}

TEST(the_port)
{
	struct detail why = { { 0 }, { 0 } };
	struct rpc *first;

	srv_defaults();
	srv_begin();
	first = srv.rpc;
	EXPECT_TRUE(rpc_port(first) != 0);
	srv.rpc_cfg.socket_path = NULL;
	srv.rpc_cfg.listen_port = rpc_port(first);
	EXPECT_RC(srv_listen(&why), RC_EXISTS);
	EXPECT_STR(why.field, "listen.rpc");
	EXPECT_HAS(why.text, "in use");
	turns(3);
	why = (struct detail){ { 0 }, { 0 } };
	srv.rpc_cfg.listen_host = "no-such-host.invalid";
	EXPECT_RC(srv_listen(&why), RC_INVALID);
	EXPECT_STR(why.field, "listen.rpc");
	turns(3);
	/* The port alone, or neither. */
	srv.rpc_cfg.listen_host = "localhost";
	srv.rpc_cfg.listen_port = 0;
	EXPECT_RC(srv_listen(&why), RC_OK);
	EXPECT_TRUE(srv.rpc != first && rpc_port(srv.rpc) != rpc_port(first));
	rpc_close(srv.rpc, abandoned, NULL);
	turns(3);
	srv.rpc_cfg.listen_host = NULL;
	EXPECT_RC(srv_listen(&why), RC_OK);
	EXPECT_UINT(rpc_port(srv.rpc), 0);
	rpc_close(srv.rpc, abandoned, NULL);
	turns(3);
	srv.rpc = first;
	expect_alive(client());
	srv_end();
}
#endif

TEST(who_asks_while_it_stops)
{
	struct client *c;
	struct client *busy;
	uint32_t i;

	srv_defaults();
	srv_begin();
	c = client();
	busy = client();
	expect_alive(c);
	for (i = 0; i < 50; i++)
		request(busy, i, "call", "['kv/a','incr',{'key':'n'}]");
	request(busy, 50, "call", "['relay/o','run',{'steps':[['wait',300]]}]");
	WAIT_FOR(busy->answers >= 50);
	rpc_stop_listening(srv.rpc);
	core_close(srv.core, srv_core_closed, NULL);
	while (!srv.core_closed) {
		static const char *const methods[] = { "status", "metrics",
						       "objects", "ping" };

		if (c->answers < 2000)
			for (i = 0; i < 4; i++)
				request(c, i, methods[i], "[]");
		pump();
	}
	EXPECT_UINT(busy->answers, 51);
	EXPECT_UINT(busy->errors, 0);
	EXPECT_TRUE(c->answers > 10);
	rpc_close(srv.rpc, srv_rpc_closed, NULL);
	WAIT_FOR(srv.rpc_closed);
	WAIT_FOR(c->closed && busy->closed);
	metrics_close(srv.metrics);
	env_uv_close(&srv.env, srv_env_closed);
	uv_run(&srv.loop, UV_RUN_DEFAULT);
	EXPECT_INT(uv_loop_close(&srv.loop), 0);
	disk_posix_close(srv.posix);
	bind_free(srv.bind);
	srv_keys_free();
	srv_forget();
}
