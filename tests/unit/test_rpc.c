/*
 * The server's own methods and bounds: who is too slow, too much or too late.
 * What may come over its socket besides is tried in
 * tests/integration/test_rpc.c.
 */
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
	expect_alive(c);
	client_close(c);
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
	uint64_t until;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.write_stall_ms = 700;
	srv_begin();
	c = client();
	put_large(c);
	for (i = 0; i < 6; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	c->deaf = true;
	until = now_ms() + 2500;
	while (now_ms() < until) {
		uint64_t next = now_ms() + 100;

		(void)client_read_some(c, 60000);
		while (now_ms() < next)
			pump();
	}
	EXPECT_UINT(stats().broken, 0);
	c->deaf = false;
	WAIT_FOR(c->answers == 7);
	EXPECT_UINT(c->errors, 0);
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
	EXPECT_STR(why.field, "socket");
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
	EXPECT_HAS(why.text, text);
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
