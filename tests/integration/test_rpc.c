/*
 * The server on its socket, against bytes of every kind and clients of every
 * habit: each is answered or ends its connection, in memory and time that
 * follow what came, and nobody else notices.
 */
#include "tests/lib/srv_rig.h"

static void expect_closed(const char *what, const void *p, size_t n)
{
	struct client *c = client();
	uint64_t held = stats().in_held;

	runner_context("%s", what);
	send_bytes(c, p, n);
	WAIT_FOR(c->closed);
	EXPECT_UINT(c->answers, 0);
	turns(3);
	EXPECT_TRUE(stats().in_held <= held + 65536);
	client_close(c);
	runner_context("%s", "");
}

TEST(bytes_that_can_never_become_a_message)
{
	static const struct {
		const char *what;
		const char *p;
		size_t n;
	} table[] = {
		{ "an array of 4 G elements", "\xdd\xff\xff\xff\xff", 5 },
		{ "a map of 4 G pairs", "\xdf\xff\xff\xff\xff", 5 },
		{ "a str of 4 GiB", "\xdb\xff\xff\xff\xff", 5 },
		{ "a bin of 4 GiB", "\xc6\xff\xff\xff\xff", 5 },
		{ "an ext of 4 GiB", "\xc9\xff\xff\xff\xff\x01", 6 },
		{ "a request with a str of 4 GiB",
		  "\x94\x00\x01\xdb\xff\xff\xff\xff", 8 },
		{ "a request with params of 4 G elements",
		  "\x94\x00\x01\xa4ping\xdd\xff\xff\xff\xff", 13 },
		{ "a request with a map of 4 G pairs in it",
		  "\x94\x00\x01\xa4ping\x91\xdf\xff\xff\xff\xff", 14 },
		{ "a request with a bin of 3 MiB",
		  "\x94\x00\x01\xa4ping\x91\xc6\x00\x30\x00\x00", 14 },
		{ "the byte that is none", "\xc1", 1 },
		{ "nil", "\xc0", 1 },
		{ "a number", "\x07", 1 },
		{ "HTTP", "GET / HTTP/1.1\r\n\r\n", 18 },
		{ "TLS", "\x16\x03\x01\x02\x00\x01\x00", 7 },
		{ "a map", "\x81\x00\x01", 3 },
		{ "a string", "\xa4ping", 5 },
		{ "an array of nothing", "\x90", 1 },
		{ "one element", "\x91\x00", 2 },
		{ "another kind", "\x94\x03\x01\xa4ping\x90", 9 },
		{ "a negative kind", "\x94\xff\x01\xa4ping\x90", 9 },
		{ "a response", "\x94\x01\x01\xc0\xc0", 5 },
		{ "a kind that is a string", "\x94\xa1x\x01\xa4ping\x90", 10 },
	};
	struct client *other;
	size_t i;

	srv_defaults();
	srv_begin();
	other = client();
	expect_alive(other);
	for (i = 0; i < ARRAY_LEN(table); i++) {
		expect_closed(table[i].what, table[i].p, table[i].n);
		expect_alive(other);
	}
	EXPECT_UINT(stats().broken, ARRAY_LEN(table));
	srv_end();
}

TEST(nesting_of_100000)
{
	struct client *other;
	uint8_t *deep = malloc(100000);
	uint8_t *in_params = malloc(100000);

	srv_defaults();
	srv_begin();
	other = client();
	memset(deep, 0x91, 100000);
	expect_closed("arrays", deep, 100000);
	memset(deep, 0x81, 100000);
	expect_closed("maps", deep, 100000);
	memset(in_params, 0x91, 100000);
	put_raw(in_params, "\x94\x00\x01\xa4ping", 8);
	expect_closed("params", in_params, 100000);
	expect_alive(other);
	free(deep);
	free(in_params);
	srv_end();
}

TEST(more_objects_than_a_message_may_have)
{
	struct client *other;
	size_t n = 12 + PACK_ELEMENTS_MAX + 10;
	uint8_t *p = malloc(n);

	srv_defaults();
	srv_begin();
	other = client();
	memset(p, 0xc0, n);
	put_raw(p, "\x94\x00\x01\xa4ping\xdd\x00\x04\x00\x0a", 13);
	expect_closed("elements", p, n);
	expect_alive(other);
	free(p);
	srv_end();
}

/* Garbage of every kind, from a seed: an answer or the end, never a crash. */
TEST(random_bytes)
{
	struct client *other;
	uint64_t x = 88172645463325252u;
	unsigned round;

	srv_defaults();
	srv_begin();
	other = client();
	for (round = 0; round < 300; round++) {
		struct client *c = client();
		uint8_t p[512];
		size_t n;
		size_t i;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		n = 1 + x % sizeof(p);
		for (i = 0; i < n; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			p[i] = (uint8_t)x;
		}
		/* Half of them begin well. */
		if (round % 2 == 0 && n > 12)
			put_raw(p,
				"\x94\x00\x05\xa4"
				"call\x93",
				9);
		send_bytes(c, p, n);
		WAIT_FOR(!client_unsent(c) || c->closed);
		client_half_close(c);
		WAIT_FOR(c->closed);
		client_close(c);
		clients_n--;
		tls_free(c->tls);
		free(c->in);
		free(c->out);
		free(c->kept);
	}
	expect_alive(other);
	WAIT_FOR(stats().connections == 1);
	EXPECT_TRUE(stats().in_held <= 2 * CONNECTION_IN_BYTES);
	srv_end();
}

TEST(wrong_types_in_every_position_of_the_envelope)
{
	static const struct {
		const char *what;
		const char *p;
		size_t n;
	} values[] = {
		{ "nil", "\xc0", 1 },
		{ "true", "\xc3", 1 },
		{ "5", "\x05", 1 },
		{ "-5", "\xfb", 1 },
		{ "2^32", "\xcf\x00\x00\x00\x01\x00\x00\x00\x00", 9 },
		{ "a float", "\xca\x3f\x80\x00\x00", 5 },
		{ "a str", "\xa1x", 2 },
		{ "a bin", "\xc4\x01x", 3 },
		{ "an array", "\x90", 1 },
		{ "a map", "\x80", 1 },
		{ "an ext", "\xd4\x01x", 3 },
		{ "a long str",
		  "\xd9\x50xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
		  "xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
		  82 },
	};
	static const char *const good[] = { "\x00", "\x09", "\xa4ping",
					    "\x90" };
	static const size_t good_n[] = { 1, 1, 5, 1 };
	struct client *other;
	unsigned answered = 0;
	unsigned closed = 0;
	unsigned place;
	size_t i;
	unsigned k;

	srv_defaults();
	srv_begin();
	other = client();
	for (place = 0; place < 4; place++)
		for (i = 0; i < ARRAY_LEN(values); i++) {
			struct client *c = client();

			runner_context("%s in place %u", values[i].what, place);
			send_bytes(c, "\x94", 1);
			for (k = 0; k < 4; k++)
				send_bytes(
					c, k == place ? values[i].p : good[k],
					k == place ? values[i].n : good_n[k]);
			request(c, 77, "ping", "[]");
			WAIT_FOR(c->closed || c->last.id == 77);
			if (c->closed) {
				/* Nobody knows whom to answer. */
				EXPECT_TRUE(place < 2);
				EXPECT_UINT(c->answers, 0);
				closed++;
			} else {
				EXPECT_UINT(c->answers, 2);
				answered += c->errors;
			}
			client_close(c);
		}
	EXPECT_TRUE(closed >= 15);
	EXPECT_TRUE(answered >= 15);
	expect_alive(other);
	srv_end();
}

TEST(too_few_and_too_many_elements)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	send_bytes(c, "\x93\x00\x05\xa4ping", 8);
	WAIT_FOR(c->answers == 1);
	EXPECT_UINT(c->last.id, 5);
	EXPECT_RC(c->error.code, RC_INVALID);
	send_bytes(c, "\x95\x00\x06\xa4ping\x90\xc0", 10);
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->last.id, 6);
	EXPECT_RC(c->error.code, RC_INVALID);
	send_bytes(c, "\x92\x00\x07", 3);
	WAIT_FOR(c->answers == 3);
	EXPECT_UINT(c->last.id, 7);
	expect_alive(c);
	srv_end();
}

TEST(every_truncation_of_good_frames)
{
	static const char *const params[] = {
		"['kv/t','put',{'key':'k','value':{'$bin':'AAECAwQF'}},"
		"{'idem':'a','deadline_ms':1000,'meta':true}]",
		"['rate_limiter/t','check',{'key':'k','cost':1}]",
	};
	struct client *other;
	size_t i;

	srv_defaults();
	srv_begin();
	other = client();
	for (i = 0; i < ARRAY_LEN(params); i++) {
		struct pack_w w;
		size_t n;

		pack_w_init(&w, 65536);
		frame_request(&w, 3, "call", 4);
		say_pack(&w, params[i]);
		for (n = 0; n < w.n; n++) {
			struct client *c = client();

			runner_context("frame %zu cut at %zu", i, n);
			send_bytes(c, w.p, n);
			WAIT_FOR(!client_unsent(c));
			/* Half closed, or gone altogether. */
			if (n % 2 == 0) {
				client_half_close(c);
				WAIT_FOR(c->closed);
				EXPECT_UINT(c->answers, 0);
			}
			client_close(c);
			clients_n--;
			tls_free(c->tls);
			free(c->in);
			free(c->out);
			free(c->kept);
		}
		pack_w_release(&w);
	}
	WAIT_FOR(stats().connections == 1);
	/* Nothing of them was carried out. */
	expect_ask(other, "objects", "[]", "{'items':[]}");
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

TEST(byte_by_byte)
{
	struct client *c;
	struct pack_w w;
	size_t i;

	srv_defaults();
	srv_begin();
	c = client();
	pack_w_init(&w, 65536);
	frame_request(&w, 3, "call", 4);
	say_pack(&w, "['kv/b','put',{'key':'k','value':'some text'}]");
	frame_request(&w, 4, "call", 4);
	say_pack(&w, "['kv/b','get',{'key':'k'}]");
	for (i = 0; i < w.n; i++) {
		send_bytes(c, w.p + i, 1);
		turns(2);
	}
	WAIT_FOR(c->answers == 2);
	EXPECT_STR(say_text(c->last.result), "{'value':'some text','rev':1}");
	pack_w_release(&w);
	srv_end();
}

TEST(names_may_be_bin_and_ids_any)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	send_bytes(c, "\x94\x00\x05\xc4\x04ping\x90", 10);
	WAIT_FOR(c->answers == 1);
	EXPECT_UINT(c->last.id, 5);
	EXPECT_UINT(c->errors, 0);
	/* In their long forms. */
	send_bytes(c,
		   "\xdc\x00\x04\xcc\x00\xce\xff\xff\xff\xff\xd9\x04ping"
		   "\xdc\x00\x00",
		   19);
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->last.id, UINT32_MAX);
	EXPECT_UINT(c->errors, 0);
	srv_end();
}

TEST(notifications)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	/* What editors greet with. */
	notify(c, "nvim_ui_attach", "[80,24,{}]");
	notify(c, "$/setTrace", "[]");
	notify(c, "", "[]");
	/* What would do something, were it a request. */
	notify(c, "call", "['kv/n','put',{'key':'k','value':1}]");
	notify(c, "ping", "[]");
	notify(c, "cancel", "[]");
	notify(c, "cancel", "['x']");
	notify(c, "cancel", "[-1]");
	notify(c, "cancel", "[1,2]");
	notify(c, "cancel", "[4711]");
	expect_alive(c);
	EXPECT_UINT(c->answers, 1);
	expect_error(c, "call", "['kv/n','get',{'key':'k'}]", RC_NOT_FOUND, "");
	srv_end();
}

TEST(half_close_after_pipelining)
{
	struct client *c;
	unsigned i;

	srv_defaults();
	srv_begin();
	c = client();
	for (i = 0; i < 1500; i++) {
		char params[64];

		snprintf(params, sizeof(params), "['kv/%u','incr',{'key':'n'}]",
			 i % 10);
		if (i % 3 == 0)
			request(c, i, "ping", "[]");
		else
			request(c, i, "call", params);
	}
	WAIT_FOR(!client_unsent(c));
	client_half_close(c);
	WAIT_FOR(c->closed);
	EXPECT_UINT(c->answers, 1500);
	EXPECT_UINT(c->errors, 0);
	EXPECT_TRUE(all_seen(c, 1500));
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

TEST(gone_while_calls_are_in_flight)
{
	struct core_stats s;
	unsigned round;

	srv_defaults();
	srv_begin();
	for (round = 0; round < 20; round++) {
		struct client *c = client();
		unsigned i;

		for (i = 0; i < 200; i++)
			request(c, i, "call",
				i % 2 == 0 ? "['relay/o','run',"
					     "{'steps':[['wait',40000]]}]"
					   : "['kv/o','incr',{'key':'n'}]");
		WAIT_FOR(!client_unsent(c));
		turns(round);
		client_close(c);
	}
	WAIT_FOR(stats().connections == 0);
	core_stats(srv.core, &s);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 0);
	EXPECT_UINT(stats().out_held, 0);
	EXPECT_UINT(stats().in_held, 0);
	expect_alive(client());
	srv_end();
}

TEST(a_thousand_connections)
{
	struct rlimit files;
	unsigned n = 1000;
	unsigned i;

	srv_defaults();
	EXPECT_INT(getrlimit(RLIMIT_NOFILE, &files), 0);
	files.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096;
	EXPECT_INT(setrlimit(RLIMIT_NOFILE, &files), 0);
	/* Two descriptors each. */
	if (n > (files.rlim_cur - 100) / 2)
		n = (unsigned)(files.rlim_cur - 100) / 2;
	srv_begin();
	for (i = 0; i < n; i++) {
		struct client *c = client();

		request(c, 1, "call", "['kv/a','incr',{'key':'n'}]");
		request(c, 2, "ping", "[]");
		pump();
	}
	for (i = 0; i < n; i++) {
		WAIT_FOR(clients[i].answers == 2);
		EXPECT_UINT(clients[i].errors, 0);
	}
	EXPECT_UINT(stats().connections, n);
	EXPECT_HAS(ask(&clients[0], "call", "['kv/a','get',{'key':'n'}]"),
		   n == 1000 ? "'value':1000" : "'value':");
	srv_end();
}
