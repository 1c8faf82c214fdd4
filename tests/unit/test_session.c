#include "client/session.h"

#include <stdlib.h>
#include <string.h>

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define MS 1000000u

/* A session, a clock, and what its calls were told. */
struct told {
	uint32_t n;
	enum rc rc;
	enum outcome outcome;
	uint32_t tries;
	bool ours;
	char result[64];
	char message[DETAIL_BYTES_MAX];
};

struct bed {
	struct session *s;
	uint64_t now;
	struct told told;
};

static struct pack_bytes bytes(const char *text)
{
	struct pack_bytes b = { (const uint8_t *)text, strlen(text) };

	return b;
}

static void keep(char *out, size_t cap, struct pack_bytes b)
{
	size_t n = b.n < cap - 1 ? b.n : cap - 1;

	if (n > 0)
		memcpy(out, b.p, n);
	out[n] = '\0';
}

static void told_note(struct told *t, const struct session_answer *a)
{
	t->n++;
	t->rc = a->rc;
	t->outcome = a->outcome;
	t->tries = a->tries;
	t->ours = a->ours;
	keep(t->result, sizeof(t->result), a->result);
	keep(t->message, sizeof(t->message), a->error.message);
}

static void on_answer(void *arg, const struct session_answer *a)
{
	struct bed *b = arg;

	told_note(&b->told, a);
}

static struct bed bed_with(struct session_options o)
{
	struct bed b = { .now = 1000 * (uint64_t)MS };

	o.seed = 7;
	EXPECT_RC(session_new(&o, &b.s), RC_OK);
	return b;
}

static struct bed bed(void)
{
	struct session_options o = { 0 };

	return bed_with(o);
}

static void bed_end(struct bed *b)
{
	session_end(b->s);
	EXPECT_UINT(session_calls(b->s), 0);
	session_free(b->s);
}

static struct session_request request(const char *method)
{
	struct session_request r = { .address = bytes("kv/a"),
				     .method = bytes(method) };

	return r;
}

static uint64_t start(struct bed *b, const struct session_request *r)
{
	uint64_t ticket = 0;
	struct detail why = { 0 };

	EXPECT_RC(session_start(b->s, r, b->now, on_answer, b, &ticket, &why),
		  RC_OK);
	EXPECT_TRUE(ticket != 0);
	return ticket;
}

/* The next message that the session wants to send on `link`; it is taken. */
static struct frame sent(struct bed *b, uint32_t link)
{
	static uint8_t copy[1 << 16];
	struct pack_bytes out = session_output(b->s, link);
	struct frame_reader fr;
	struct detail why = { 0 };
	struct frame f = { .kind = FRAME_RESPONSE };
	size_t used = 0;

	EXPECT_TRUE(out.n > 0 && out.n <= sizeof(copy));
	memcpy(copy, out.p, out.n);
	frame_reader_init(&fr, sizeof(copy));
	EXPECT_RC(frame_next(&fr, copy, out.n, &f, &used, &why), RC_OK);
	session_sent(b->s, link, used, b->now);
	return f;
}

static enum rc input(struct bed *b, uint32_t link, const void *p, size_t n)
{
	const uint8_t *from = p;
	struct detail why = { 0 };
	uint8_t *room;
	size_t cap;
	enum rc rc = RC_OK;

	while (n > 0 && rc == RC_OK) {
		EXPECT_RC(session_room(b->s, link, &room, &cap), RC_OK);
		EXPECT_TRUE(cap > 0);
		if (cap > n)
			cap = n;
		memcpy(room, from, cap);
		rc = session_input(b->s, link, cap, b->now, &why);
		from += cap;
		n -= cap;
	}
	return rc;
}

static enum rc answer(struct bed *b, uint32_t link, uint32_t id,
		      const char *result)
{
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, 1 << 16);
	frame_response(&w, id);
	pack_nil(&w);
	pack_cstr(&w, result);
	EXPECT_RC(w.rc, RC_OK);
	rc = input(b, link, w.p, w.n);
	pack_w_release(&w);
	return rc;
}

static void refuse_with(struct bed *b, uint32_t link, uint32_t id,
			const struct frame_error *e)
{
	struct pack_w w;

	pack_w_init(&w, 1 << 16);
	frame_response(&w, id);
	frame_error_write(&w, e);
	pack_nil(&w);
	EXPECT_RC(w.rc, RC_OK);
	EXPECT_RC(input(b, link, w.p, w.n), RC_OK);
	pack_w_release(&w);
}

static void refuse(struct bed *b, uint32_t link, uint32_t id, enum rc code,
		   int64_t retry_after_ms)
{
	struct frame_error e = { .code = code,
				 .outcome = rc_outcome(code),
				 .message = bytes("so the server says"),
				 .retry_after_ms = retry_after_ms };

	refuse_with(b, link, id, &e);
}

/* Time passes until something is due; at most `max_ms`. */
static void pass(struct bed *b, uint64_t max_ms)
{
	uint64_t due = session_due(b->s);
	uint64_t end = b->now + max_ms * MS;

	b->now = due < end ? (due > b->now ? due : b->now) : end;
	session_tick(b->s, b->now);
}

static void open_link(struct bed *b, uint32_t link)
{
	if (!session_wants_link(b->s, link, b->now))
		pass(b, 2000);
	EXPECT_TRUE(session_wants_link(b->s, link, b->now));
	session_opened(b->s, link, b->now);
}

/* The options of a `call` as JSON would have them: only what tests look at. */
static bool option(const struct frame *f, const char *name, struct pack_val *v)
{
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	struct pack_bytes key;
	uint32_t n;
	uint32_t i;

	EXPECT_RC(pack_get_array(&r, &n), RC_OK);
	EXPECT_UINT(n, 4);
	for (i = 0; i < 3; i++)
		EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	EXPECT_RC(pack_get_map(&r, &n), RC_OK);
	for (i = 0; i < n; i++) {
		EXPECT_RC(pack_get_str(&r, &key), RC_OK);
		if (pack_bytes_eq(key, name, strlen(name)))
			return pack_next(&r, v) == RC_OK;
		EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	}
	return false;
}

TEST(call_and_answer)
{
	struct bed b = bed();
	struct session_request r = request("get");
	struct pack_bytes address;
	struct pack_bytes method;
	struct pack_val v;
	struct pack_r p;
	struct frame f;
	uint32_t n;

	open_link(&b, 0);
	start(&b, &r);
	EXPECT_UINT(session_calls(b.s), 1);
	EXPECT_UINT(b.told.n, 0);
	f = sent(&b, 0);
	EXPECT_INT(f.kind, FRAME_REQUEST);
	EXPECT_TRUE(pack_bytes_eq(f.method, "call", 4));
	p = pack_reader(f.params.p, f.params.n);
	EXPECT_RC(pack_get_array(&p, &n), RC_OK);
	EXPECT_UINT(n, 4);
	EXPECT_RC(pack_get_str(&p, &address), RC_OK);
	EXPECT_TRUE(pack_bytes_eq(address, "kv/a", 4));
	EXPECT_RC(pack_get_str(&p, &method), RC_OK);
	EXPECT_TRUE(pack_bytes_eq(method, "get", 3));
	EXPECT_RC(pack_get_map(&p, &n), RC_OK);
	EXPECT_UINT(n, 0);
	EXPECT_TRUE(option(&f, "deadline_ms", &v));
	EXPECT_UINT(v.u, 5000);
	EXPECT_FALSE(option(&f, "idem", &v));
	EXPECT_UINT(session_output(b.s, 0).n, 0);

	EXPECT_RC(answer(&b, 0, f.id, "yes"), RC_OK);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_OK);
	EXPECT_INT(b.told.outcome, OUTCOME_DONE);
	EXPECT_STR(b.told.result, "\xa3yes");
	EXPECT_UINT(b.told.tries, 1);
	EXPECT_FALSE(b.told.ours);
	EXPECT_UINT(session_calls(b.s), 0);
	/* Nobody waits for a second answer. */
	EXPECT_RC(answer(&b, 0, f.id, "again"), RC_OK);
	EXPECT_UINT(b.told.n, 1);
	bed_end(&b);
}

TEST(options_are_encoded)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct pack_val v;
	struct frame f;

	r.args = bytes("\x81\xa1k\x01");
	r.idem = bytes("key1");
	r.idem_ms = 60000;
	r.trace = bytes(
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
	r.durability = SESSION_DURABILITY_COMMITTED;
	r.stale_read = true;
	r.redirect = true;
	r.meta = true;
	r.deadline_ms = 1234;
	open_link(&b, 0);
	start(&b, &r);
	f = sent(&b, 0);
	EXPECT_TRUE(option(&f, "idem", &v));
	EXPECT_INT(v.type, PACK_BIN);
	EXPECT_TRUE(pack_bytes_eq(v.s, "key1", 4));
	EXPECT_TRUE(option(&f, "idem_ms", &v));
	EXPECT_UINT(v.u, 60000);
	EXPECT_TRUE(option(&f, "trace", &v));
	EXPECT_UINT(v.s.n, 55);
	EXPECT_TRUE(option(&f, "durability", &v));
	EXPECT_TRUE(pack_bytes_eq(v.s, "committed", 9));
	EXPECT_TRUE(option(&f, "read", &v));
	EXPECT_TRUE(pack_bytes_eq(v.s, "stale", 5));
	EXPECT_TRUE(option(&f, "route", &v));
	EXPECT_TRUE(pack_bytes_eq(v.s, "redirect", 8));
	EXPECT_TRUE(option(&f, "meta", &v));
	EXPECT_TRUE(v.b);
	EXPECT_TRUE(option(&f, "deadline_ms", &v));
	EXPECT_UINT(v.u, 1234);
	bed_end(&b);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
}

TEST(bad_requests_start_nothing)
{
	static char long_text[3000];
	struct bed b = bed();
	struct session_request good = request("get");
	struct session_request r;
	struct detail why;
	struct {
		const char *field;
		struct session_request r;
	} rows[] = {
		{ "address", good },     { "address", good },
		{ "method", good },      { "args", good },
		{ "args", good },        { "args", good },
		{ "idem", good },        { "trace", good },
		{ "deadline_ms", good }, { "params", good },
		{ "method", good },
	};
	size_t i;

	memset(long_text, 'x', sizeof(long_text) - 1);
	rows[0].r.address.n = 0;
	rows[1].r.address = bytes(long_text);
	rows[2].r.method = bytes(long_text);
	rows[3].r.args = bytes("\x81\xa1k");         /* truncated */
	rows[4].r.args = bytes("\x91\x01");          /* no map */
	rows[5].r.args = bytes("\x81\xa1k\x01\x01"); /* more than one */
	rows[6].r.idem = bytes(long_text);
	rows[7].r.trace = bytes(long_text);
	rows[8].r.deadline_ms = 60001;
	rows[9].r.rpc = "status";
	rows[9].r.args = bytes("\x80");
	rows[10].r.rpc = "";
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("row %zu", i);
		memset(&why, 0, sizeof(why));
		EXPECT_RC(session_start(b.s, &rows[i].r, b.now, on_answer, &b,
					NULL, &why),
			  RC_INVALID);
		EXPECT_STR(why.field, rows[i].field);
		EXPECT_TRUE(why.text[0] != '\0');
	}
	runner_context(" ");
	EXPECT_UINT(session_calls(b.s), 0);
	r = good;
	r.idem.n = 0;
	start(&b, &r);
	bed_end(&b);
	EXPECT_RC(b.told.rc, RC_CANCELLED);
}

TEST(too_long_a_call_is_refused)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct detail why = { 0 };
	struct pack_w w;
	char *big = calloc(1, SESSION_REQUEST_BYTES_MAX);

	EXPECT_NOT_NULL(big);
	pack_w_init(&w, SIZE_MAX / 2);
	pack_map(&w, 1);
	pack_cstr(&w, "value");
	pack_bin(&w, big, SESSION_REQUEST_BYTES_MAX - 15);
	r.args.p = w.p;
	r.args.n = w.n;
	EXPECT_RC(session_start(b.s, &r, b.now, on_answer, &b, NULL, &why),
		  RC_INVALID);
	EXPECT_STR(why.field, "args");
	EXPECT_UINT(session_calls(b.s), 0);
	pack_w_release(&w);
	free(big);
	r = request("get");
	open_link(&b, 0);
	start(&b, &r);
	EXPECT_RC(answer(&b, 0, sent(&b, 0).id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	bed_end(&b);
}

TEST(bounds_of_a_session)
{
	struct session_options o = { .calls_max = SESSION_CALLS_MAX + 1 };
	struct session_request r = request("get");
	struct detail why = { 0 };
	struct session *s = NULL;
	struct bed b;

	EXPECT_RC(session_new(&o, &s), RC_INVALID);
	o.calls_max = 2;
	o.links = SESSION_LINKS_MAX + 1;
	EXPECT_RC(session_new(&o, &s), RC_INVALID);
	EXPECT_NULL(s);
	session_free(NULL);
	o.links = 1;
	b = bed_with(o);
	start(&b, &r);
	start(&b, &r);
	EXPECT_RC(session_start(b.s, &r, b.now, on_answer, &b, NULL, &why),
		  RC_OVERLOADED);
	bed_end(&b);
	EXPECT_UINT(b.told.n, 2);
}

TEST(answers_in_any_order)
{
	struct bed b = bed();
	struct session_request r = request("get");
	uint32_t id[3];
	uint32_t i;

	open_link(&b, 0);
	for (i = 0; i < 3; i++) {
		start(&b, &r);
		id[i] = sent(&b, 0).id;
	}
	EXPECT_TRUE(id[0] != id[1] && id[1] != id[2] && id[0] != id[2]);
	EXPECT_RC(answer(&b, 0, id[2], "c"), RC_OK);
	EXPECT_STR(b.told.result, "\xa1"
				  "c");
	EXPECT_RC(answer(&b, 0, id[0], "a"), RC_OK);
	EXPECT_STR(b.told.result, "\xa1"
				  "a");
	EXPECT_RC(answer(&b, 0, id[1], "b"), RC_OK);
	EXPECT_STR(b.told.result, "\xa1"
				  "b");
	EXPECT_UINT(b.told.n, 3);
	bed_end(&b);
}

TEST(calls_wait_for_a_link_in_order)
{
	struct bed b = bed();
	struct session_request r = request("a");

	start(&b, &r);
	r = request("b");
	start(&b, &r);
	r = request("c");
	start(&b, &r);
	EXPECT_UINT(session_output(b.s, 0).n, 0);
	open_link(&b, 0);
	/* All three are in one output: they share a write. */
	EXPECT_TRUE(session_output(b.s, 0).n > 60);
	bed_end(&b);
	EXPECT_UINT(b.told.n, 3);
	EXPECT_RC(b.told.rc, RC_CANCELLED);
}

TEST(no_more_in_flight_than_allowed)
{
	struct session_options o = { .in_flight_max = 2 };
	struct bed b = bed_with(o);
	struct session_request r = request("a");
	uint32_t first;

	open_link(&b, 0);
	start(&b, &r);
	start(&b, &r);
	start(&b, &r);
	first = sent(&b, 0).id;
	(void)sent(&b, 0);
	EXPECT_UINT(session_output(b.s, 0).n, 0);
	EXPECT_RC(answer(&b, 0, first, "x"), RC_OK);
	(void)sent(&b, 0);
	EXPECT_UINT(session_output(b.s, 0).n, 0);
	bed_end(&b);
	EXPECT_UINT(b.told.n, 3);
}

TEST(deadline_before_it_is_sent_is_refused)
{
	struct bed b = bed();
	struct session_request r = request("put");

	r.deadline_ms = 100;
	start(&b, &r);
	while (b.told.n == 0) {
		if (session_wants_link(b.s, 0, b.now)) {
			session_opening(b.s, 0);
			EXPECT_FALSE(session_wants_link(b.s, 0, b.now));
			session_lost(b.s, 0, b.now, "/x: no such file");
		}
		pass(&b, 1000);
	}
	EXPECT_RC(b.told.rc, RC_DEADLINE);
	EXPECT_INT(b.told.outcome, OUTCOME_REFUSED);
	EXPECT_UINT(b.told.tries, 0);
	EXPECT_TRUE(b.told.ours);
	EXPECT_HAS(b.told.message, "no such file");
	EXPECT_UINT(b.now, 1100 * (uint64_t)MS);
	bed_end(&b);
}

TEST(a_late_connection_sends_nothing_late)
{
	struct bed b = bed();
	struct session_request r = request("put");

	r.deadline_ms = 100;
	start(&b, &r);
	b.now += 100 * (uint64_t)MS;
	session_opened(b.s, 0, b.now);
	EXPECT_UINT(session_output(b.s, 0).n, 0);
	EXPECT_UINT(b.told.n, 0);
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_DEADLINE);
	EXPECT_INT(b.told.outcome, OUTCOME_REFUSED);
	bed_end(&b);
}

/* What a node would close the connection for is not sent. */
TEST(too_deep_or_too_many_is_refused)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct detail why = { 0 };
	struct pack_w w;
	uint32_t i;

	pack_w_init(&w, 4 << 20);
	pack_map(&w, 1);
	pack_cstr(&w, "x");
	for (i = 0; i < PACK_DEPTH_MAX - 2; i++)
		pack_array(&w, 1);
	pack_nil(&w);
	r.args.p = w.p;
	r.args.n = w.n;
	EXPECT_RC(session_start(b.s, &r, b.now, on_answer, &b, NULL, &why),
		  RC_INVALID);
	pack_w_reset(&w);
	pack_map(&w, 1);
	pack_cstr(&w, "x");
	pack_array(&w, PACK_ELEMENTS_MAX - 64);
	for (i = 0; i < PACK_ELEMENTS_MAX - 64; i++)
		pack_nil(&w);
	r.args.p = w.p;
	r.args.n = w.n;
	EXPECT_RC(session_start(b.s, &r, b.now, on_answer, &b, NULL, &why),
		  RC_INVALID);
	pack_w_release(&w);
	bed_end(&b);
}

TEST(no_answer_in_time_is_unknown)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct frame f;
	struct frame c;

	r.deadline_ms = 100;
	r.idem = bytes("k");
	open_link(&b, 0);
	start(&b, &r);
	f = sent(&b, 0);
	b.now += 100 * (uint64_t)MS;
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 0); /* The server's word may be on its way. */
	pass(&b, 1000);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(b.told.outcome, OUTCOME_UNKNOWN);
	EXPECT_UINT(b.now, (1100 + SESSION_GRACE_MS) * (uint64_t)MS);
	c = sent(&b, 0);
	EXPECT_INT(c.kind, FRAME_NOTIFY);
	EXPECT_TRUE(pack_bytes_eq(c.method, "cancel", 6));
	EXPECT_RC(answer(&b, 0, f.id, "late"), RC_OK);
	EXPECT_UINT(b.told.n, 1);
	bed_end(&b);
}

TEST(refused_and_retryable_is_sent_again)
{
	static const enum rc codes[] = { RC_OVERLOADED, RC_NOT_OWNER,
					 RC_NO_QUORUM };
	size_t i;

	for (i = 0; i < 3; i++) {
		struct bed b = bed();
		struct session_request r = request("put");
		struct pack_val v;
		struct frame f;
		uint32_t id;
		uint64_t before;

		runner_context("%s", rc_name(codes[i]));
		open_link(&b, 0);
		start(&b, &r);
		id = sent(&b, 0).id;
		refuse(&b, 0, id, codes[i], 300);
		EXPECT_UINT(b.told.n, 0);
		EXPECT_UINT(session_output(b.s, 0).n, 0);
		before = b.now;
		pass(&b, 10000);
		EXPECT_TRUE(b.now - before >= 300 * (uint64_t)MS);
		EXPECT_TRUE(b.now - before <= 450 * (uint64_t)MS);
		f = sent(&b, 0);
		EXPECT_TRUE(f.id != id);
		EXPECT_TRUE(option(&f, "deadline_ms", &v));
		EXPECT_TRUE(v.u <= 4700 && v.u >= 4550);
		/* The first id is nobody's any more. */
		EXPECT_RC(answer(&b, 0, id, "late"), RC_OK);
		EXPECT_UINT(b.told.n, 0);
		EXPECT_RC(answer(&b, 0, f.id, "ok"), RC_OK);
		EXPECT_RC(b.told.rc, RC_OK);
		EXPECT_UINT(b.told.tries, 2);
		bed_end(&b);
	}
}

TEST(pauses_grow_and_end_with_the_deadline)
{
	struct bed b = bed();
	struct session_request r = request("put");
	uint64_t before = 0;
	uint64_t last = 0;
	uint32_t tries = 0;

	open_link(&b, 0);
	start(&b, &r);
	while (b.told.n == 0) {
		if (session_output(b.s, 0).n > 0) {
			if (tries == 3 || tries == 6) {
				EXPECT_TRUE(b.now - before > last);
				last = b.now - before;
			}
			before = b.now;
			tries++;
			refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, -1);
		} else {
			pass(&b, 10000);
		}
	}
	EXPECT_RC(b.told.rc, RC_OVERLOADED);
	EXPECT_INT(b.told.outcome, OUTCOME_REFUSED);
	EXPECT_FALSE(b.told.ours);
	EXPECT_STR(b.told.message, "so the server says");
	EXPECT_TRUE(tries > 5 && tries <= SESSION_TRIES_DEFAULT);
	EXPECT_TRUE(b.now <= 6000 * (uint64_t)MS);
	bed_end(&b);
}

/* However many calls are refused, what is sent again is a tenth of them and a
 * hundred. */
TEST(a_flood_is_not_fed)
{
	struct bed b = bed();
	struct session_request r = request("put");
	uint32_t tries = 0;
	uint32_t ends = 0;
	uint32_t i;

	open_link(&b, 0);
	for (i = 0; i < 2000; i++) {
		start(&b, &r);
		while (b.told.n == ends) {
			if (session_output(b.s, 0).n > 0) {
				tries++;
				refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, 1);
			} else {
				pass(&b, 10000);
			}
		}
		EXPECT_RC(b.told.rc, RC_OVERLOADED);
		ends = b.told.n;
	}
	EXPECT_TRUE(tries > 2200);
	EXPECT_TRUE(tries <= 2300);
	/* And it is taken up again when there is room. */
	for (i = 0; i < 20; i++) {
		start(&b, &r);
		EXPECT_RC(answer(&b, 0, sent(&b, 0).id, "ok"), RC_OK);
		EXPECT_RC(b.told.rc, RC_OK);
	}
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, 1);
	pass(&b, 1000);
	EXPECT_RC(answer(&b, 0, sent(&b, 0).id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	EXPECT_UINT(b.told.tries, 2);
	bed_end(&b);
}

TEST(tries_are_bounded)
{
	struct session_options o = { .tries_max = 2 };
	struct bed b = bed_with(o);
	struct session_request r = request("put");

	open_link(&b, 0);
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, 1);
	pass(&b, 1000);
	refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, 1);
	EXPECT_RC(b.told.rc, RC_OVERLOADED);
	EXPECT_UINT(b.told.tries, 2);
	r.once = true;
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, 1);
	EXPECT_UINT(b.told.n, 2);
	EXPECT_UINT(b.told.tries, 1);
	bed_end(&b);
}

TEST(other_refusals_end_the_call)
{
	struct bed b = bed();
	struct session_request r = request("put");
	int code;

	r.idem = bytes("k");
	open_link(&b, 0);
	for (code = RC_INVALID; code < 64; code++) {
		if (strcmp(rc_name((enum rc)code), "INTERNAL") == 0 ||
		    rc_outcome((enum rc)code) != OUTCOME_REFUSED ||
		    code == RC_OVERLOADED || code == RC_NOT_OWNER ||
		    code == RC_NO_QUORUM)
			continue;
		runner_context("%s", rc_name((enum rc)code));
		start(&b, &r);
		refuse(&b, 0, sent(&b, 0).id, (enum rc)code, 100);
		EXPECT_RC(b.told.rc, (enum rc)code);
		EXPECT_INT(b.told.outcome, OUTCOME_REFUSED);
		EXPECT_UINT(b.told.tries, 1);
		EXPECT_UINT(session_calls(b.s), 0);
	}
	EXPECT_TRUE(b.told.n > 10);
	bed_end(&b);
}

TEST(unknown_is_sent_again_only_with_a_key)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct frame f;

	open_link(&b, 0);
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_UNKNOWN_OUTCOME, -1);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_INT(b.told.outcome, OUTCOME_UNKNOWN);
	EXPECT_UINT(b.told.tries, 1);

	r.idem = bytes("k");
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_INTERNAL, -1);
	EXPECT_UINT(b.told.n, 1);
	pass(&b, 1000);
	f = sent(&b, 0);
	EXPECT_RC(answer(&b, 0, f.id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	EXPECT_UINT(b.told.tries, 2);
	bed_end(&b);
}

static struct pack_bytes output(const struct bed *b)
{
	return session_output(b->s, 0);
}

/* A keyed call whose link is lost, and `ms` after it was sent there is another;
 * true: it was sent again. */
static bool sent_again_after(uint64_t idem_ms, uint64_t ms)
{
	struct bed b = bed();
	struct session_request r = request("put");
	uint64_t at;
	bool again;

	r.idem = bytes("k");
	r.idem_ms = idem_ms;
	r.deadline_ms = 20000;
	open_link(&b, 0);
	at = b.now;
	start(&b, &r);
	(void)sent(&b, 0);
	session_lost(b.s, 0, b.now, "gone");
	b.now = at + ms * MS;
	session_tick(b.s, b.now);
	EXPECT_TRUE(session_wants_link(b.s, 0, b.now));
	session_opened(b.s, 0, b.now);
	again = output(&b).n > 0;
	pass(&b, 0);
	EXPECT_UINT(b.told.n, again ? 0 : 1);
	if (!again) {
		EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
		EXPECT_INT(b.told.outcome, OUTCOME_UNKNOWN);
		EXPECT_HAS(b.told.message, "window");
	}
	bed_end(&b);
	return again;
}

/* By then the nodes may have forgotten it, and would do it once more. */
TEST(a_key_is_not_sent_again_after_its_window)
{
	struct bed b = bed();
	struct session_request r = request("put");

	EXPECT_TRUE(sent_again_after(4000, 3490));
	EXPECT_FALSE(sent_again_after(4000, 3500));
	EXPECT_FALSE(sent_again_after(4000, 4000));
	EXPECT_FALSE(sent_again_after(4000, 19000));
	EXPECT_TRUE(sent_again_after(0, 19000));
	/* Tries that certainly were none do not count. */
	r.idem = bytes("k");
	r.idem_ms = 1000;
	r.deadline_ms = 20000;
	open_link(&b, 0);
	start(&b, &r);
	b.now += 900 * MS;
	refuse(&b, 0, sent(&b, 0).id, RC_NO_QUORUM, -1);
	b.now += 3000 * MS;
	session_tick(b.s, b.now);
	/* The first that may have happened does. */
	refuse(&b, 0, sent(&b, 0).id, RC_UNKNOWN_OUTCOME, -1);
	b.now += 500 * MS;
	session_tick(b.s, b.now);
	refuse(&b, 0, sent(&b, 0).id, RC_UNKNOWN_OUTCOME, -1);
	b.now += 500 * MS;
	session_tick(b.s, b.now);
	EXPECT_UINT(output(&b).n, 0);
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	bed_end(&b);
}

TEST(a_refusal_after_an_unknown_try_stays_unknown)
{
	struct bed b = bed();
	struct session_request r = request("put");

	r.idem = bytes("k");
	open_link(&b, 0);
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_UNKNOWN_OUTCOME, -1);
	pass(&b, 1000);
	refuse(&b, 0, sent(&b, 0).id, RC_DENIED, -1);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(b.told.outcome, OUTCOME_UNKNOWN);
	EXPECT_HAS(b.told.message, "DENIED");
	bed_end(&b);
}

TEST(lost_link_and_a_call_that_was_sent)
{
	struct bed b = bed();
	struct session_request r = request("put");

	open_link(&b, 0);
	start(&b, &r);
	(void)sent(&b, 0);
	session_lost(b.s, 0, b.now, "reset");
	EXPECT_UINT(b.told.n, 0); /* Not from inside. */
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(b.told.outcome, OUTCOME_UNKNOWN);
	EXPECT_FALSE(session_is_open(b.s, 0));
	bed_end(&b);
}

TEST(lost_link_after_one_byte_is_unknown_too)
{
	struct bed b = bed();
	struct session_request r = request("put");

	open_link(&b, 0);
	start(&b, &r);
	session_sent(b.s, 0, 1, b.now);
	session_lost(b.s, 0, b.now, NULL);
	session_tick(b.s, b.now);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	bed_end(&b);
}

TEST(lost_link_before_a_byte_was_taken)
{
	struct bed b = bed();
	struct session_request r = request("first");
	struct frame f;

	open_link(&b, 0);
	start(&b, &r);
	r = request("second");
	start(&b, &r);
	f = sent(&b, 0);
	EXPECT_INT(f.kind, FRAME_REQUEST);
	session_lost(b.s, 0, b.now, "reset");
	session_tick(b.s, b.now);
	/* The first was taken, the second was not: it goes out again. */
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	open_link(&b, 0);
	f = sent(&b, 0);
	EXPECT_RC(answer(&b, 0, f.id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	EXPECT_UINT(b.told.tries, 1);
	bed_end(&b);
}

TEST(lost_link_keeps_the_order_of_what_is_sent_again)
{
	struct bed b = bed();
	struct session_request r;
	const char *names[] = { "a", "b", "c" };
	struct pack_r p;
	struct pack_bytes method;
	struct frame f;
	uint32_t n;
	size_t i;

	open_link(&b, 0);
	for (i = 0; i < 2; i++) {
		r = request(names[i]);
		r.idem = bytes("k");
		start(&b, &r);
	}
	(void)sent(&b, 0);
	session_lost(b.s, 0, b.now, "reset");
	r = request(names[2]);
	start(&b, &r);
	open_link(&b, 0);
	for (i = 0; i < 3; i++) {
		f = sent(&b, 0);
		p = pack_reader(f.params.p, f.params.n);
		EXPECT_RC(pack_get_array(&p, &n), RC_OK);
		EXPECT_RC(pack_skip(&p, NULL), RC_OK);
		EXPECT_RC(pack_get_str(&p, &method), RC_OK);
		EXPECT_TRUE(pack_bytes_eq(method, names[i], 1));
	}
	EXPECT_UINT(b.told.n, 0);
	bed_end(&b);
	EXPECT_UINT(b.told.n, 3);
}

TEST(what_changes_nothing_is_sent_again_without_a_key)
{
	struct bed b = bed();
	struct session_request r = { .rpc = "status" };
	struct frame f;

	open_link(&b, 0);
	start(&b, &r);
	f = sent(&b, 0);
	EXPECT_TRUE(pack_bytes_eq(f.method, "status", 6));
	EXPECT_UINT(f.params.n, 1);
	session_lost(b.s, 0, b.now, "reset");
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 0);
	open_link(&b, 0);
	EXPECT_RC(answer(&b, 0, sent(&b, 0).id, "up"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	bed_end(&b);
}

TEST(connecting_again_comes_later_and_later)
{
	struct bed b = bed();
	uint64_t before;
	uint64_t first;
	int i;

	EXPECT_TRUE(session_wants_link(b.s, 0, b.now));
	session_lost(b.s, 0, b.now, "refused");
	EXPECT_FALSE(session_wants_link(b.s, 0, b.now));
	before = b.now;
	pass(&b, 10000);
	first = b.now - before;
	EXPECT_TRUE(session_wants_link(b.s, 0, b.now));
	EXPECT_TRUE(first >= 20 * (uint64_t)MS && first <= 30 * (uint64_t)MS);
	for (i = 0; i < 12; i++) {
		session_lost(b.s, 0, b.now, "refused");
		before = b.now;
		pass(&b, 10000);
	}
	EXPECT_TRUE(b.now - before >= 1000 * (uint64_t)MS);
	EXPECT_TRUE(b.now - before <= 1500 * (uint64_t)MS);
	bed_end(&b);
}

TEST(cancel_before_it_is_sent)
{
	struct bed b = bed();
	struct session_request r = request("put");
	uint64_t t = start(&b, &r);

	session_cancel(b.s, t, b.now);
	session_cancel(b.s, t, b.now);
	EXPECT_UINT(b.told.n, 0);
	EXPECT_UINT(session_due(b.s), 0);
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 1);
	EXPECT_RC(b.told.rc, RC_CANCELLED);
	EXPECT_INT(b.told.outcome, OUTCOME_REFUSED);
	/* Tickets that have ended or never were. */
	session_cancel(b.s, t, b.now);
	session_cancel(b.s, 0, b.now);
	session_cancel(b.s, UINT64_MAX, b.now);
	start(&b, &r);
	session_cancel(b.s, t, b.now);
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 1);
	bed_end(&b);
}

TEST(cancel_after_it_was_sent_waits_for_the_server)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct pack_r p;
	struct frame f;
	struct frame c;
	uint64_t t;
	uint64_t id;
	uint32_t n;

	open_link(&b, 0);
	t = start(&b, &r);
	f = sent(&b, 0);
	session_cancel(b.s, t, b.now);
	c = sent(&b, 0);
	EXPECT_INT(c.kind, FRAME_NOTIFY);
	p = pack_reader(c.params.p, c.params.n);
	EXPECT_RC(pack_get_array(&p, &n), RC_OK);
	EXPECT_RC(pack_get_u64(&p, &id), RC_OK);
	EXPECT_UINT(id, f.id);
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, 0);
	refuse(&b, 0, f.id, RC_CANCELLED, -1);
	EXPECT_RC(b.told.rc, RC_CANCELLED);

	/* It came too late: the answer counts. */
	t = start(&b, &r);
	f = sent(&b, 0);
	session_cancel(b.s, t, b.now);
	EXPECT_RC(answer(&b, 0, f.id, "done"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);

	/* Cancelled calls are not sent again. */
	(void)sent(&b, 0);
	t = start(&b, &r);
	f = sent(&b, 0);
	session_cancel(b.s, t, b.now);
	refuse(&b, 0, f.id, RC_OVERLOADED, 1);
	EXPECT_UINT(b.told.n, 3);
	EXPECT_RC(b.told.rc, RC_OVERLOADED);
	bed_end(&b);
}

TEST(cancel_between_two_tries)
{
	struct bed b = bed();
	struct session_request r = request("put");
	uint64_t t;

	open_link(&b, 0);
	t = start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_OVERLOADED, 100);
	session_cancel(b.s, t, b.now);
	session_tick(b.s, b.now);
	EXPECT_RC(b.told.rc, RC_CANCELLED);
	EXPECT_HAS(b.told.message, "OVERLOADED");

	/* But not when a try may have happened. */
	r.idem = bytes("k");
	t = start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_UNKNOWN_OUTCOME, -1);
	session_cancel(b.s, t, b.now);
	session_tick(b.s, b.now);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	bed_end(&b);
}

TEST(not_the_owner_tries_another_link)
{
	struct session_options o = { .links = 2 };
	struct bed b = bed_with(o);
	struct session_request r = request("put");

	open_link(&b, 0);
	open_link(&b, 1);
	start(&b, &r);
	refuse(&b, 0, sent(&b, 0).id, RC_NOT_OWNER, 1);
	pass(&b, 1000);
	EXPECT_UINT(session_output(b.s, 0).n, 0);
	EXPECT_RC(answer(&b, 1, sent(&b, 1).id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	/* The present link is lost: the other one takes over. */
	session_lost(b.s, 0, b.now, NULL);
	start(&b, &r);
	EXPECT_RC(answer(&b, 1, sent(&b, 1).id, "ok"), RC_OK);
	EXPECT_UINT(b.told.n, 2);
	bed_end(&b);
}

TEST(an_answer_on_another_link_is_nobodys)
{
	struct session_options o = { .links = 2 };
	struct bed b = bed_with(o);
	struct session_request r = request("put");
	uint32_t id;

	open_link(&b, 0);
	open_link(&b, 1);
	start(&b, &r);
	id = sent(&b, 0).id;
	EXPECT_RC(answer(&b, 1, id, "forged"), RC_OK);
	EXPECT_UINT(b.told.n, 0);
	bed_end(&b);
}

/* What the first answer on a new link makes of it. */
static enum rc greeted_with(struct bed *b, const char *result, size_t n,
			    struct detail *why)
{
	struct pack_w w;
	struct frame f;
	uint8_t *p;
	size_t cap;
	enum rc rc;

	open_link(b, 0);
	EXPECT_FALSE(session_is_greeted(b->s, 0));
	f = sent(b, 0);
	EXPECT_TRUE(pack_bytes_eq(f.method, "hello", 5));
	pack_w_init(&w, 1000);
	frame_response(&w, f.id);
	pack_raw(&w, result, n);
	EXPECT_RC(session_room(b->s, 0, &p, &cap), RC_OK);
	memcpy(p, w.p, w.n);
	memset(why, 0, sizeof(*why));
	rc = session_input(b->s, 0, w.n, b->now, why);
	pack_w_release(&w);
	EXPECT_TRUE(session_is_greeted(b->s, 0) == (rc == RC_OK));
	session_lost(b->s, 0, b->now, why->text);
	EXPECT_FALSE(session_is_greeted(b->s, 0));
	return rc;
}

TEST(greeting)
{
	struct session_options o = { .greet = "test 1" };
	struct bed b = bed_with(o);
	struct detail why;
	struct frame_error e = { .code = RC_UNSUPPORTED,
				 .outcome = OUTCOME_REFUSED,
				 .message = bytes("protocol 1 is too old"),
				 .retry_after_ms = -1 };
	struct pack_w w;

	EXPECT_RC(
		greeted_with(&b, "\xc0\x82\xa1x\x90\xa8protocol\x01", 15, &why),
		RC_OK);
	EXPECT_RC(greeted_with(&b, "\xc0\x81\xa8protocol\x02", 12, &why),
		  RC_VERSION);
	EXPECT_HAS(why.text, "version 2");
	EXPECT_RC(greeted_with(&b, "\xc0\x81\xa8protocol\xc0", 12, &why),
		  RC_INVALID);
	EXPECT_RC(greeted_with(&b, "\xc0\x80", 2, &why), RC_INVALID);
	EXPECT_RC(greeted_with(&b, "\xc0\xa2hi", 4, &why), RC_INVALID);
	EXPECT_HAS(why.text, "no Holdfast server");
	pack_w_init(&w, 1000);
	frame_error_write(&w, &e);
	pack_nil(&w);
	EXPECT_RC(greeted_with(&b, (const char *)w.p, w.n, &why), RC_VERSION);
	EXPECT_HAS(why.text, "too old");
	pack_w_release(&w);
	bed_end(&b);
}

TEST(hostile_servers)
{
	static const struct {
		const char *bytes;
		size_t n;
	} rows[] = {
		{ "\xc1", 1 },                 /* No MessagePack. */
		{ "HTTP/1.1 400 Bad", 16 },    /* Another protocol. */
		{ "\xdd\xff\xff\xff\xff", 5 }, /* 4 Gi elements. */
		{ "\x94\x01\xce\xff\xff\xff\xff\xc0\xdb\xff\xff\xff\xff", 13 },
		{ "\x94\x00\x01\xa4"
		  "call\x90",
		  9 },                          /* A request. */
		{ "\x94\x05\x01\xc0\xc0", 5 },  /* A kind that is none. */
		{ "\x93\x01\x01\xc0", 4 },      /* Too few elements. */
		{ "\x94\x01\xa1x\xc0\xc0", 6 }, /* An id that is none. */
	};
	struct session_request r = request("put");
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct bed b = bed();
		enum rc rc;

		runner_context("row %zu", i);
		open_link(&b, 0);
		start(&b, &r);
		(void)sent(&b, 0);
		rc = input(&b, 0, rows[i].bytes, rows[i].n);
		EXPECT_RC(rc, RC_INVALID);
		EXPECT_UINT(b.told.n, 0);
		session_lost(b.s, 0, b.now, "garbage");
		session_tick(b.s, b.now);
		EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
		bed_end(&b);
	}
}

/* ------------------------------------------------------- several nodes --- */

static struct bed bed_of_nodes(uint32_t links)
{
	static const char *const nodes[] = { "n1", "n2", "n3", "n4", "n5" };
	struct session_options o = { .links = links, .nodes = nodes };
	struct bed b = bed_with(o);
	uint32_t i;

	for (i = 0; i < links; i++)
		open_link(&b, i);
	return b;
}

static struct session_request request_of(const char *address)
{
	struct session_request r = request("put");

	r.address = bytes(address);
	return r;
}

static bool asks_redirect(const struct frame *f)
{
	struct pack_val v;

	return option(f, "route", &v) && pack_bytes_eq(v.s, "redirect", 8);
}

static void not_owner(struct bed *b, uint32_t link, uint32_t id,
		      const char *owner, uint32_t shard)
{
	struct frame_error e = { .code = RC_NOT_OWNER,
				 .outcome = OUTCOME_REFUSED,
				 .message = bytes("not here"),
				 .owner = bytes(owner),
				 .has_shard = shard != UINT32_MAX,
				 .shard = shard,
				 .retry_after_ms = -1 };

	refuse_with(b, link, id, &e);
}

/* The one link that has something to send; its first message. */
static struct frame sent_by(struct bed *b, uint32_t link)
{
	uint32_t i;

	for (i = 0; i < session_links(b->s); i++)
		if (i != link)
			EXPECT_UINT(session_output(b->s, i).n, 0);
	return sent(b, link);
}

TEST(a_refusal_teaches_the_owner)
{
	struct bed b = bed_of_nodes(3);
	struct session_request r = request_of("kv/a");
	struct session_request other = request_of("kv/b");
	struct frame f;

	start(&b, &r);
	f = sent_by(&b, 0);
	EXPECT_TRUE(asks_redirect(&f));
	not_owner(&b, 0, f.id, "n2", 5);
	/* At once, without a pause. */
	f = sent_by(&b, 1);
	EXPECT_TRUE(asks_redirect(&f));
	EXPECT_RC(answer(&b, 1, f.id, "ok"), RC_OK);
	EXPECT_UINT(b.told.tries, 2);
	start(&b, &r);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	EXPECT_UINT(b.told.tries, 1);
	/* Another address of the same shard. */
	start(&b, &other);
	not_owner(&b, 0, sent_by(&b, 0).id, "n2", 5);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	/* The shard moves: one refusal is enough for both. */
	start(&b, &r);
	not_owner(&b, 1, sent_by(&b, 1).id, "n3", 5);
	EXPECT_RC(answer(&b, 2, sent_by(&b, 2).id, "ok"), RC_OK);
	start(&b, &other);
	EXPECT_RC(answer(&b, 2, sent_by(&b, 2).id, "ok"), RC_OK);
	EXPECT_UINT(b.told.tries, 1);
	EXPECT_UINT(b.told.n, 5);
	bed_end(&b);
}

TEST(an_answer_teaches_the_owner_too)
{
	struct bed b = bed_of_nodes(2);
	struct session_request r = request_of("kv/a");

	start(&b, &r);
	EXPECT_RC(answer(&b, 0, sent_by(&b, 0).id, "ok"), RC_OK);
	/* The link that unknown addresses go to is another one then. */
	session_lost(b.s, 1, b.now, NULL);
	open_link(&b, 1);
	start(&b, &r);
	EXPECT_RC(answer(&b, 0, sent_by(&b, 0).id, "ok"), RC_OK);
	bed_end(&b);
}

TEST(who_refuses_and_names_itself_or_nobody_is_asked_later)
{
	static const char *const owners[] = { "n1", "", "unheard of" };
	uint32_t i;

	for (i = 0; i < 3; i++) {
		struct bed b = bed_of_nodes(2);
		struct session_request r = request_of("kv/a");
		uint64_t before = b.now;

		start(&b, &r);
		not_owner(&b, 0, sent_by(&b, 0).id, owners[i], 1);
		EXPECT_UINT(session_output(b.s, 0).n, 0);
		EXPECT_UINT(session_output(b.s, 1).n, 0);
		pass(&b, 1000);
		EXPECT_TRUE(b.now > before);
		EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
		bed_end(&b);
	}
}

TEST(nodes_that_send_us_around_get_a_pause)
{
	struct bed b = bed_of_nodes(2);
	struct session_request r = request_of("kv/a");
	uint32_t tries = 0;
	uint32_t quick = 0;
	uint64_t at = 0;
	uint32_t link;

	r.deadline_ms = 1000;
	start(&b, &r);
	while (b.told.n == 0) {
		link = session_output(b.s, 0).n > 0 ? 0 : 1;
		if (session_output(b.s, link).n == 0) {
			pass(&b, 1000);
			continue;
		}
		quick += b.now == at;
		at = b.now;
		tries++;
		not_owner(&b, link, sent_by(&b, link).id,
			  link == 0 ? "n2" : "n1", 1);
	}
	EXPECT_RC(b.told.rc, RC_NOT_OWNER);
	EXPECT_TRUE(tries > 6 && tries <= SESSION_TRIES_DEFAULT);
	EXPECT_TRUE(quick * 3 <= tries * 2);
	bed_end(&b);
}

TEST(others_forward_to_an_owner_without_a_link)
{
	struct bed b = bed_of_nodes(3);
	struct session_request r = request_of("kv/a");
	uint32_t asked = 0;
	struct frame f;
	uint32_t i;

	session_lost(b.s, 1, b.now, NULL);
	start(&b, &r);
	not_owner(&b, 0, sent_by(&b, 0).id, "n2", 5);
	f = sent_by(&b, 0);
	EXPECT_FALSE(asks_redirect(&f));
	EXPECT_RC(answer(&b, 0, f.id, "ok"), RC_OK);
	/* Now and then they are asked whether it still is the owner. */
	for (i = 0; i < 64; i++) {
		start(&b, &r);
		f = sent_by(&b, 0);
		if (asks_redirect(&f)) {
			asked++;
			not_owner(&b, 0, f.id, "n2", 5);
			f = sent_by(&b, 0);
			EXPECT_FALSE(asks_redirect(&f));
		}
		EXPECT_RC(answer(&b, 0, f.id, "ok"), RC_OK);
	}
	EXPECT_TRUE(asked >= 2 && asked <= 8);
	/* Its link comes back: directly. */
	open_link(&b, 1);
	start(&b, &r);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	bed_end(&b);
}

TEST(a_lost_owner_is_forgotten)
{
	struct bed b = bed_of_nodes(3);
	struct session_request r = request_of("kv/a");
	struct frame f;

	start(&b, &r);
	not_owner(&b, 0, sent_by(&b, 0).id, "n2", 5);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	start(&b, &r);
	(void)sent_by(&b, 1);
	r.idem = bytes("k");
	start(&b, &r);
	(void)sent_by(&b, 1);
	/* The one without a key may have happened; the other asks anew. */
	session_lost(b.s, 1, b.now, "gone");
	f = sent_by(&b, 0);
	EXPECT_TRUE(asks_redirect(&f));
	session_tick(b.s, b.now);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	not_owner(&b, 0, f.id, "n3", 5);
	EXPECT_RC(answer(&b, 2, sent_by(&b, 2).id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	EXPECT_UINT(b.told.n, 3);
	bed_end(&b);
}

TEST(an_owner_without_a_majority_is_left)
{
	struct bed b = bed_of_nodes(3);
	struct session_request r = request_of("kv/a");
	struct frame f;

	start(&b, &r);
	not_owner(&b, 0, sent_by(&b, 0).id, "n2", 5);
	refuse(&b, 1, sent_by(&b, 1).id, RC_NO_QUORUM, -1);
	pass(&b, 1000);
	f = sent_by(&b, 0);
	EXPECT_TRUE(asks_redirect(&f));
	not_owner(&b, 0, f.id, "n3", 5);
	EXPECT_RC(answer(&b, 2, sent_by(&b, 2).id, "ok"), RC_OK);
	bed_end(&b);
}

TEST(refused_calls_to_one_object_keep_their_order)
{
	struct bed b = bed_of_nodes(2);
	struct session_request r = request_of("kv/a");
	struct session_request other = request_of("kv/b");
	uint32_t first;
	uint32_t second;
	uint64_t due;

	r.deadline_ms = 4000;
	start(&b, &r);
	first = sent_by(&b, 0).id;
	r.deadline_ms = 3000;
	start(&b, &r);
	second = sent_by(&b, 0).id;
	not_owner(&b, 0, first, "n2", 5);
	/* The first waits for the second, a third and fourth for both; calls to
	 * other objects do not. */
	r.deadline_ms = 2000;
	start(&b, &r);
	EXPECT_UINT(session_output(b.s, 1).n, 0);
	start(&b, &other);
	EXPECT_RC(answer(&b, 0, sent_by(&b, 0).id, "ok"), RC_OK);
	not_owner(&b, 0, second, "n2", 5);
	for (due = 4000; due >= 2000; due -= 1000) {
		struct frame f = sent_by(&b, 1);
		struct pack_val v;

		EXPECT_TRUE(option(&f, "deadline_ms", &v));
		EXPECT_UINT(v.u, due);
		EXPECT_RC(answer(&b, 1, f.id, "ok"), RC_OK);
	}
	EXPECT_UINT(b.told.n, 4);
	bed_end(&b);
}

TEST(nobody_is_waited_for_long)
{
	struct bed b = bed_of_nodes(2);
	struct session_request r = request_of("kv/a");
	uint64_t before = b.now;
	uint32_t first;
	uint32_t second;

	start(&b, &r);
	first = sent_by(&b, 0).id;
	start(&b, &r);
	second = sent_by(&b, 0).id;
	not_owner(&b, 0, first, "n2", 5);
	EXPECT_UINT(session_output(b.s, 1).n, 0);
	while (session_output(b.s, 1).n == 0)
		pass(&b, 1000);
	EXPECT_UINT(b.now - before, SESSION_HOLD_MS * (uint64_t)MS);
	EXPECT_RC(answer(&b, 1, sent(&b, 1).id, "ok"), RC_OK);
	EXPECT_RC(answer(&b, 0, second, "ok"), RC_OK);
	EXPECT_UINT(b.told.n, 2);
	bed_end(&b);
}

TEST(who_gets_one_try_is_forwarded)
{
	struct session_options o = { .links = 2, .tries_max = 2 };
	struct bed b = bed_with(o);
	struct session_request r = request_of("kv/a");
	struct frame f;

	open_link(&b, 0);
	open_link(&b, 1);
	r.once = true;
	start(&b, &r);
	f = sent_by(&b, 0);
	EXPECT_FALSE(asks_redirect(&f));
	EXPECT_RC(answer(&b, 0, f.id, "ok"), RC_OK);
	r.once = false;
	start(&b, &r);
	f = sent_by(&b, 0);
	EXPECT_TRUE(asks_redirect(&f));
	not_owner(&b, 0, f.id, "", 5);
	pass(&b, 1000);
	f = sent_by(&b, 1);
	EXPECT_FALSE(asks_redirect(&f));
	bed_end(&b);
}

TEST(who_wants_no_forwarding_hears_of_it)
{
	struct bed b = bed();
	struct session_request r = request_of("kv/a");

	open_link(&b, 0);
	r.redirect = true;
	start(&b, &r);
	not_owner(&b, 0, sent_by(&b, 0).id, "n2", 5);
	EXPECT_RC(b.told.rc, RC_NOT_OWNER);
	bed_end(&b);
}

TEST(a_full_link_holds_up_its_own_calls_only)
{
	static const char *const nodes[] = { "n1", "n2" };
	struct session_options o = { .links = 2,
				     .nodes = nodes,
				     .in_flight_max = 1 };
	struct bed b = bed_with(o);
	struct session_request one = request_of("kv/a");
	struct session_request two = request_of("kv/b");

	open_link(&b, 0);
	open_link(&b, 1);
	start(&b, &two);
	not_owner(&b, 0, sent_by(&b, 0).id, "n2", 5);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	start(&b, &one);
	(void)sent_by(&b, 0);
	start(&b, &one);
	start(&b, &two);
	(void)sent_by(&b, 1);
	bed_end(&b);
}

TEST(a_silent_node_is_stale)
{
	struct bed b = bed_of_nodes(2);
	struct session_request r = request_of("kv/a");
	uint64_t before = b.now;
	struct frame f;

	start(&b, &r);
	(void)sent_by(&b, 0);
	pass(&b, 10000);
	EXPECT_UINT(b.now - before, SESSION_SILENT_MS / 2 * (uint64_t)MS);
	f = sent_by(&b, 0);
	EXPECT_TRUE(pack_bytes_eq(f.method, "ping", 4));
	/* Its answer is enough. */
	EXPECT_RC(answer(&b, 0, f.id, "pong"), RC_OK);
	EXPECT_UINT(b.told.n, 0);
	pass(&b, 10000);
	f = sent_by(&b, 0);
	EXPECT_TRUE(pack_bytes_eq(f.method, "ping", 4));
	EXPECT_FALSE(session_is_stale(b.s, 0));
	pass(&b, 10000);
	EXPECT_TRUE(session_is_stale(b.s, 0));
	EXPECT_UINT(b.now - before, 3 * (SESSION_SILENT_MS / 2 * (uint64_t)MS));
	session_lost(b.s, 0, b.now, "silent");
	EXPECT_FALSE(session_is_stale(b.s, 0));
	session_tick(b.s, b.now);
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	/* Nothing is waited for: nobody is pinged. */
	EXPECT_UINT(session_output(b.s, 1).n, 0);
	bed_end(&b);
}

/* What came while we slept was not read yet: nobody is to blame. */
TEST(our_own_sleep_makes_nobody_stale)
{
	struct bed b = bed_of_nodes(2);
	struct session_request r = request_of("kv/a");

	r.deadline_ms = 60000;
	start(&b, &r);
	(void)sent_by(&b, 0);
	pass(&b, 10000);
	(void)sent_by(&b, 0);
	b.now += 5000 * (uint64_t)MS;
	session_tick(b.s, b.now);
	EXPECT_FALSE(session_is_stale(b.s, 0));
	pass(&b, 10000);
	(void)sent_by(&b, 0);
	pass(&b, 10000);
	EXPECT_TRUE(session_is_stale(b.s, 0));
	/* It is said once, and not due again. */
	EXPECT_TRUE(session_due(b.s) > b.now);
	bed_end(&b);
}

TEST(a_lone_node_is_waited_for)
{
	struct bed b = bed();
	struct session_request r = request("put");

	open_link(&b, 0);
	start(&b, &r);
	(void)sent(&b, 0);
	while (b.told.n == 0) {
		EXPECT_FALSE(session_is_stale(b.s, 0));
		pass(&b, 10000);
	}
	EXPECT_TRUE(pack_bytes_eq(sent(&b, 0).method, "cancel", 6));
	bed_end(&b);
}

TEST(a_connection_that_does_not_come_is_stale)
{
	struct bed b = bed();

	session_tick(b.s, b.now);
	session_opening(b.s, 0);
	EXPECT_FALSE(session_is_stale(b.s, 0));
	pass(&b, 10000);
	EXPECT_TRUE(session_is_stale(b.s, 0));
	session_lost(b.s, 0, b.now, "no answer");
	EXPECT_FALSE(session_is_stale(b.s, 0));
	bed_end(&b);
}

/* An answer to hello of the node `node`, with members. */
static enum rc greet(struct bed *b, uint32_t link, const char *node,
		     const char *cluster, const char *const (*members)[2],
		     uint32_t n)
{
	struct frame f = sent(b, link);
	struct pack_w w;
	uint32_t i;
	enum rc rc;

	EXPECT_TRUE(pack_bytes_eq(f.method, "hello", 5));
	pack_w_init(&w, 1 << 16);
	frame_response(&w, f.id);
	pack_nil(&w);
	pack_map(&w, 5);
	pack_cstr(&w, "protocol");
	pack_u64(&w, 1);
	pack_cstr(&w, "node");
	pack_cstr(&w, node);
	pack_cstr(&w, "node_id");
	pack_u64(&w, (uint64_t)(node[1] - '0'));
	pack_cstr(&w, "cluster");
	pack_cstr(&w, cluster);
	pack_cstr(&w, "members");
	pack_array(&w, n);
	for (i = 0; i < n; i++) {
		pack_map(&w, 4);
		pack_cstr(&w, "name");
		pack_cstr(&w, members[i][0]);
		pack_cstr(&w, "later");
		pack_array(&w, 0);
		pack_cstr(&w, "id");
		pack_u64(&w, i + 1);
		pack_cstr(&w, "rpc");
		pack_cstr(&w, members[i][1]);
	}
	rc = input(b, link, w.p, w.n);
	pack_w_release(&w);
	return rc;
}

static const char *const three[][2] = { { "n1", "h:1" },
					{ "n2", "h:2" },
					{ "n3", "h:3" } };

TEST(one_endpoint_names_all)
{
	static const char *const rpcs[] = { "h:1" };
	struct session_options o = {
		.links = 1, .rpcs = rpcs, .greet = "x", .learn = true
	};
	struct bed b = bed_with(o);
	struct session_request r = request_of("kv/a");
	uint32_t i;

	open_link(&b, 0);
	EXPECT_STR(session_link_node(b.s, 0), "");
	EXPECT_RC(greet(&b, 0, "n1", "c", three, 3), RC_OK);
	EXPECT_UINT(session_links(b.s), 3);
	for (i = 0; i < 3; i++) {
		EXPECT_STR(session_link_node(b.s, i), three[i][0]);
		EXPECT_STR(session_link_rpc(b.s, i), three[i][1]);
	}
	open_link(&b, 1);
	EXPECT_RC(greet(&b, 1, "n2", "c", three, 3), RC_OK);
	EXPECT_UINT(session_links(b.s), 3);
	/* Owners are named by name or id. */
	start(&b, &r);
	not_owner(&b, 0, sent_by(&b, 0).id, "2", 9);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	bed_end(&b);
}

/* By a node's own socket a caller is unix:NODE:UID, at each node somebody else,
 * and a key is its caller's: what may have happened at one of them is asked for
 * there alone. */

static struct bed bed_of_sockets(void)
{
	static const char *const rpcs[] = { "/n1.sock", "/n2.sock", "h:3" };
	static const char *const nodes[] = { "n1", "n2", "n3" };
	struct session_options o = { .links = 3, .rpcs = rpcs, .nodes = nodes };
	struct bed b = bed_with(o);
	uint32_t i;

	for (i = 0; i < 3; i++)
		open_link(&b, i);
	return b;
}

static uint32_t link_with_output(struct bed *b)
{
	uint32_t i;

	for (i = 0; i < session_links(b->s); i++)
		if (session_output(b->s, i).n > 0)
			return i;
	FAIL("nothing is sent");
	return 0;
}

/* A keyed call that was sent to `to` (by way of whoever names it). */
static struct frame keyed_sent(struct bed *b, uint32_t to)
{
	static const char *const nodes[] = { "n1", "n2", "n3" };
	struct session_request r = request_of("kv/a");
	uint32_t link;
	struct frame f;

	r.idem = bytes("k");
	start(b, &r);
	link = link_with_output(b);
	f = sent_by(b, link);
	if (link == to)
		return f;
	not_owner(b, link, f.id, nodes[to], 5);
	return sent_by(b, to);
}

TEST(at_a_socket_a_key_is_its_nodes)
{
	struct bed b = bed_of_sockets();
	uint32_t i;

	(void)keyed_sent(&b, 0);
	session_lost(b.s, 0, b.now, "reset");
	session_tick(b.s, b.now);
	for (i = 1; i < 3; i++)
		EXPECT_UINT(session_output(b.s, i).n, 0);
	open_link(&b, 0);
	EXPECT_RC(answer(&b, 0, sent_by(&b, 0).id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	bed_end(&b);
}

TEST(a_node_with_a_key_that_stays_away_leaves_it_unknown)
{
	struct bed b = bed_of_sockets();

	(void)keyed_sent(&b, 1);
	session_lost(b.s, 1, b.now, "reset");
	while (b.told.n == 0) {
		EXPECT_UINT(session_output(b.s, 0).n, 0);
		EXPECT_UINT(session_output(b.s, 2).n, 0);
		b.now += 100 * MS;
		session_tick(b.s, b.now);
	}
	EXPECT_RC(b.told.rc, RC_UNKNOWN_OUTCOME);
	bed_end(&b);
}

TEST(unknown_at_a_socket_is_asked_there_again)
{
	struct bed b = bed_of_sockets();
	struct frame_error e = { .code = RC_NO_QUORUM,
				 .outcome = OUTCOME_UNKNOWN,
				 .message = bytes("so the server says"),
				 .retry_after_ms = -1 };

	refuse_with(&b, 1, keyed_sent(&b, 1).id, &e);
	pass(&b, 1000);
	/* Forwarded from there, whoever owns it by now. */
	refuse(&b, 1, sent_by(&b, 1).id, RC_NO_QUORUM, -1);
	pass(&b, 1000);
	EXPECT_RC(answer(&b, 1, sent_by(&b, 1).id, "ok"), RC_OK);
	EXPECT_RC(b.told.rc, RC_OK);
	bed_end(&b);
}

TEST(what_a_certificate_asked_no_socket_repeats)
{
	struct bed b = bed_of_sockets();

	(void)keyed_sent(&b, 2);
	session_lost(b.s, 2, b.now, "reset");
	session_tick(b.s, b.now);
	EXPECT_UINT(session_output(b.s, 0).n, 0);
	EXPECT_UINT(session_output(b.s, 1).n, 0);
	open_link(&b, 2);
	EXPECT_RC(answer(&b, 2, sent_by(&b, 2).id, "ok"), RC_OK);
	bed_end(&b);
}

/* What did not happen may be asked for by anybody. */
TEST(what_was_not_sent_to_a_socket_goes_elsewhere)
{
	struct bed b = bed_of_sockets();
	struct session_request r = request_of("kv/a");
	uint32_t link;
	uint32_t i;

	r.idem = bytes("k");
	start(&b, &r);
	link = link_with_output(&b);
	session_lost(b.s, link, b.now, "reset");
	i = link_with_output(&b);
	EXPECT_TRUE(i != link);
	EXPECT_RC(answer(&b, i, sent_by(&b, i).id, "ok"), RC_OK);
	bed_end(&b);
}

TEST(members_under_other_addresses)
{
	static const char *const rpcs[] = { "balancer:1" };
	static const char *const moved[][2] = { { "n1", "h:1" },
						{ "n2", "h:22" },
						{ "n3", "h:3" } };
	struct session_options o = {
		.links = 1, .rpcs = rpcs, .greet = "x", .learn = true
	};
	struct bed b = bed_with(o);

	open_link(&b, 0);
	EXPECT_RC(greet(&b, 0, "n2", "c", three, 3), RC_OK);
	/* n2 is where we are: it is not connected to twice. */
	EXPECT_UINT(session_links(b.s), 3);
	EXPECT_STR(session_link_rpc(b.s, 0), "balancer:1");
	EXPECT_STR(session_link_node(b.s, 1), "n1");
	/* The balancer leads to another one. n2 is nobody's now. */
	session_lost(b.s, 0, b.now, NULL);
	b.now += 2000 * (uint64_t)MS;
	open_link(&b, 0);
	EXPECT_RC(greet(&b, 0, "n1", "c", moved, 3), RC_OK);
	EXPECT_UINT(session_links(b.s), 4);
	EXPECT_STR(session_link_node(b.s, 3), "n2");
	EXPECT_STR(session_link_rpc(b.s, 3), "h:22");
	/* n1 has an open link: a second one is not wanted. */
	EXPECT_FALSE(session_wants_link(b.s, 1, b.now));
	EXPECT_TRUE(session_wants_link(b.s, 2, b.now));
	session_lost(b.s, 0, b.now, NULL);
	EXPECT_TRUE(session_wants_link(b.s, 1, b.now));
	bed_end(&b);
}

TEST(too_many_members_are_left_out)
{
	static const char *const many[][2] = {
		{ "n1", "h:1" }, { "n2", "h:2" }, { "n3", "h:3" },
		{ "n4", "h:4" }, { "n5", "h:5" }, { "n6", "h:6" },
		{ "n7", "h:7" }, { "n8", "h:8" }, { "n9", "h:9" },
		{ "", "h:10" },  { "n0", "" },
	};
	static const char *const rpcs[] = { "h:1" };
	struct session_options o = {
		.links = 1, .rpcs = rpcs, .greet = "x", .learn = true
	};
	struct bed b = bed_with(o);

	open_link(&b, 0);
	EXPECT_RC(greet(&b, 0, "n1", "c", many, 11), RC_OK);
	EXPECT_UINT(session_links(b.s), SESSION_LINKS_MAX);
	bed_end(&b);
	/* Who was told not to learn does not. */
	o.learn = false;
	b = bed_with(o);
	open_link(&b, 0);
	EXPECT_RC(greet(&b, 0, "n1", "c", three, 3), RC_OK);
	EXPECT_UINT(session_links(b.s), 1);
	bed_end(&b);
}

TEST(one_cluster_at_a_time)
{
	static const char *const rpcs[] = { "h:1", "h:2" };
	struct session_options o = { .links = 2, .rpcs = rpcs, .greet = "x" };
	struct bed b = bed_with(o);

	open_link(&b, 0);
	EXPECT_RC(greet(&b, 0, "n1", "c", NULL, 0), RC_OK);
	open_link(&b, 1);
	EXPECT_RC(greet(&b, 1, "n2", "d", NULL, 0), RC_INVALID);
	session_lost(b.s, 1, b.now, NULL);
	/* The first one gone, the other is as good. */
	session_lost(b.s, 0, b.now, NULL);
	b.now += 2000 * (uint64_t)MS;
	open_link(&b, 1);
	EXPECT_RC(greet(&b, 1, "n2", "d", NULL, 0), RC_OK);
	bed_end(&b);
}

TEST(notifications_and_unknown_ids_are_passed_over)
{
	struct bed b = bed();
	struct session_request r = request("put");
	uint32_t id;

	open_link(&b, 0);
	start(&b, &r);
	id = sent(&b, 0).id;
	EXPECT_RC(input(&b, 0, "\x93\x02\xa1x\x90", 5), RC_OK);
	EXPECT_RC(answer(&b, 0, id + 1, "x"), RC_OK);
	EXPECT_RC(answer(&b, 0, UINT32_MAX, "x"), RC_OK);
	EXPECT_RC(answer(&b, 0, 0, "x"), RC_OK);
	EXPECT_UINT(b.told.n, 0);
	EXPECT_RC(answer(&b, 0, id, "x"), RC_OK);
	EXPECT_UINT(b.told.n, 1);
	bed_end(&b);
}

TEST(an_error_that_is_no_map)
{
	struct bed b = bed();
	struct session_request r = request("put");
	struct pack_w w;

	open_link(&b, 0);
	start(&b, &r);
	pack_w_init(&w, 1000);
	frame_response(&w, sent(&b, 0).id);
	pack_cstr(&w, "no such method");
	pack_nil(&w);
	EXPECT_RC(input(&b, 0, w.p, w.n), RC_OK);
	pack_w_release(&w);
	EXPECT_RC(b.told.rc, RC_INTERNAL);
	EXPECT_INT(b.told.outcome, OUTCOME_UNKNOWN);
	EXPECT_STR(b.told.message, "no such method");
	bed_end(&b);
}

TEST(answers_byte_by_byte_and_long_ones)
{
	struct bed b = bed();
	struct session_request r = request("get");
	struct pack_w w;
	uint8_t *p;
	size_t n;
	size_t i;
	char *big = malloc(1 << 20);

	EXPECT_NOT_NULL(big);
	memset(big, 'x', 1 << 20);
	open_link(&b, 0);
	start(&b, &r);
	pack_w_init(&w, 4 << 20);
	frame_response(&w, sent(&b, 0).id);
	pack_nil(&w);
	pack_cstr(&w, "slowly");
	for (i = 0; i < w.n; i++) {
		EXPECT_UINT(b.told.n, 0);
		EXPECT_RC(session_room(b.s, 0, &p, &n), RC_OK);
		*p = w.p[i];
		EXPECT_RC(session_input(b.s, 0, 1, b.now, NULL), RC_OK);
	}
	EXPECT_UINT(b.told.n, 1);
	for (i = 0; i < 3; i++) {
		start(&b, &r);
		pack_w_reset(&w);
		frame_response(&w, sent(&b, 0).id);
		pack_nil(&w);
		pack_bin(&w, big, 1 << 20);
		EXPECT_RC(input(&b, 0, w.p, w.n), RC_OK);
		EXPECT_UINT(b.told.n, i + 2);
		EXPECT_RC(b.told.rc, RC_OK);
	}
	pack_w_release(&w);
	free(big);
	bed_end(&b);
}

/* A callback that starts the next call, as users do. */
static void on_answer_again(void *arg, const struct session_answer *a)
{
	struct bed *b = arg;
	struct session_request r = request("next");

	told_note(&b->told, a);
	if (b->told.n < 5)
		(void)session_start(b->s, &r, b->now, on_answer_again, b, NULL,
				    NULL);
}

TEST(callbacks_may_start_calls)
{
	struct session_options o = { .calls_max = 1 };
	struct bed b = bed_with(o);
	struct session_request r = request("put");
	uint32_t i;

	open_link(&b, 0);
	EXPECT_RC(
		session_start(b.s, &r, b.now, on_answer_again, &b, NULL, NULL),
		RC_OK);
	for (i = 1; i <= 5; i++) {
		EXPECT_RC(answer(&b, 0, sent(&b, 0).id, "x"), RC_OK);
		EXPECT_UINT(b.told.n, i);
	}
	EXPECT_UINT(session_calls(b.s), 0);
	/* At the end nothing new begins. */
	b.told.n = 0;
	EXPECT_RC(
		session_start(b.s, &r, b.now, on_answer_again, &b, NULL, NULL),
		RC_OK);
	bed_end(&b);
	EXPECT_UINT(b.told.n, 1);
}

TEST(a_callback_must_not_free)
{
	struct bed b = bed();
	struct session_request r = request("put");

	start(&b, &r);
	EXPECT_ABORT(session_free(b.s));
	bed_end(&b);
}

/* One life of a session with the n-th allocation failing. True: one did. */
static bool life(uint64_t nth)
{
	static char big[300000];
	struct session_options o = { .greet = "x", .calls_max = 8 };
	struct session_request r = request("put");
	struct bed b = { .now = MS };
	struct pack_w w;
	struct pack_w args;
	uint8_t *p;
	size_t n;
	size_t i;
	enum rc rc;

	memset(big, 'x', sizeof(big));
	pack_w_init(&args, 1 << 20);
	pack_map(&args, 1);
	pack_cstr(&args, "value");
	pack_bin(&args, big, sizeof(big));
	pack_w_init(&w, 1 << 20);
	frame_response(&w, 8);
	pack_nil(&w);
	pack_bin(&w, big, sizeof(big));
	r.args.p = args.p;
	r.args.n = args.n;
	fault_alloc(nth);
	rc = session_new(&o, &b.s);
	if (rc != RC_OK) {
		EXPECT_RC(rc, RC_NOMEM);
		goto out;
	}
	session_opened(b.s, 0, b.now);
	rc = session_start(b.s, &r, b.now, on_answer, &b, NULL, NULL);
	EXPECT_TRUE(rc == RC_OK || rc == RC_NOMEM);
	session_tick(b.s, b.now);
	n = session_output(b.s, 0).n;
	session_sent(b.s, 0, n, b.now);
	for (i = 0; i < w.n && session_is_open(b.s, 0); i += n) {
		if (session_room(b.s, 0, &p, &n) != RC_OK) {
			session_lost(b.s, 0, b.now, "out of memory");
			break;
		}
		n = n < w.n - i ? n : w.n - i;
		memcpy(p, w.p + i, n);
		EXPECT_RC(session_input(b.s, 0, n, b.now, NULL), RC_OK);
	}
	session_tick(b.s, b.now);
	EXPECT_UINT(b.told.n, rc == RC_OK ? 1 : 0);
	if (rc == RC_OK && b.told.rc != RC_OK)
		EXPECT_TRUE(b.told.rc == RC_OVERLOADED ||
			    b.told.rc == RC_UNKNOWN_OUTCOME);
	bed_end(&b);
out:
	pack_w_release(&w);
	pack_w_release(&args);
	return fault_off();
}

TEST(nth_allocation_fails)
{
	uint64_t nth = 1;

	while (life(nth))
		nth++;
	EXPECT_TRUE(nth > 8);
}

/* Many calls, answers in random order, some lost, some refused, some
 * cancelled: each ends exactly once, and nothing is left. */
struct many {
	uint32_t ended;
	uint32_t ends[512];
};

struct one {
	struct many *many;
	uint32_t i;
};

static void on_many(void *arg, const struct session_answer *a)
{
	struct one *o = arg;

	EXPECT_TRUE(rc_is_wire(a->rc));
	EXPECT_TRUE((a->rc == RC_OK) == (a->outcome == OUTCOME_DONE));
	o->many->ended++;
	o->many->ends[o->i]++;
}

static uint64_t rnd_state;

static uint32_t rnd(uint32_t n)
{
	rnd_state = rnd_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(rnd_state >> 33) % n;
}

static void run_many(uint64_t seed)
{
	static const enum rc codes[] = { RC_OVERLOADED, RC_INVALID,
					 RC_UNKNOWN_OUTCOME, RC_NOT_OWNER };
	static const char *const nodes[] = { "n1", "n2" };
	static const char *const addresses[] = { "kv/a", "kv/b", "kv/c" };
	struct session_options o = {
		.links = 2, .calls_max = 64, .nodes = nodes, .addresses_max = 16
	};
	struct bed b = bed_with(o);
	struct many *many = calloc(1, sizeof(*many));
	struct one *ones = calloc(512, sizeof(*ones));
	uint64_t tickets[512] = { 0 };
	uint32_t ids[2][4096];
	uint32_t n[2] = { 0, 0 };
	uint32_t started = 0;
	uint32_t steps = 0;
	uint32_t link;
	struct frame f;

	EXPECT_TRUE(many != NULL && ones != NULL);
	rnd_state = seed;
	while ((many->ended < 512 || started < 512) && steps++ < 200000) {
		struct session_request r = request("put");

		b.now += rnd(3) * (uint64_t)MS;
		link = rnd(2);
		switch (rnd(8)) {
		case 0:
		case 1:
			if (started == 512)
				break;
			r.deadline_ms = 1 + rnd(500);
			r.address = bytes(addresses[rnd(3)]);
			r.once = rnd(8) == 0;
			if (rnd(2) != 0)
				r.idem = bytes("k");
			ones[started].many = many;
			ones[started].i = started;
			if (session_start(b.s, &r, b.now, on_many,
					  &ones[started], &tickets[started],
					  NULL) == RC_OK)
				started++;
			break;
		case 2:
			while (session_output(b.s, link).n > 0) {
				f = sent(&b, link);
				if (f.kind == FRAME_REQUEST)
					ids[link][n[link]++ % 4096] = f.id;
			}
			break;
		case 3:
		case 4:
			if (n[link] == 0 || !session_is_open(b.s, link))
				break;
			EXPECT_RC(answer(&b, link,
					 ids[link][rnd(n[link] < 4096 ? n[link]
								      : 4096)],
					 "x"),
				  RC_OK);
			break;
		case 5:
			if (n[link] == 0 || !session_is_open(b.s, link))
				break;
			if (rnd(2) != 0) {
				not_owner(&b, link,
					  ids[link][rnd(n[link] < 4096 ? n[link]
								       : 4096)],
					  rnd(4) == 0 ? "" : nodes[rnd(2)],
					  rnd(3) == 0 ? UINT32_MAX : rnd(2));
				break;
			}
			refuse(&b, link,
			       ids[link][rnd(n[link] < 4096 ? n[link] : 4096)],
			       codes[rnd(4)], rnd(2) != 0 ? 5 : -1);
			break;
		case 6:
			if (session_is_open(b.s, link) && rnd(4) == 0)
				session_lost(b.s, link, b.now, "cut");
			else if (session_wants_link(b.s, link, b.now))
				session_opened(b.s, link, b.now);
			break;
		default:
			if (started > 0 && rnd(8) == 0)
				session_cancel(b.s, tickets[rnd(started)],
					       b.now);
			session_tick(b.s, b.now);
			break;
		}
	}
	EXPECT_UINT(many->ended, 512);
	for (steps = 0; steps < 512; steps++)
		EXPECT_UINT(many->ends[steps], 1);
	bed_end(&b);
	free(many);
	free(ones);
}

TEST(every_call_ends_once)
{
	uint64_t seed;

	for (seed = 1; seed <= 30; seed++) {
		runner_context("seed %u", (unsigned)seed);
		run_many(seed);
	}
}
