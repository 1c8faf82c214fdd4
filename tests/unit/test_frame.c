#include "client/proto/frame.h"

#include "tests/lib/runner.h"

#define FRAME_BYTES 65536

struct got {
	enum rc rc;
	size_t used;
	struct frame f;
	struct detail why;
};

static struct got next(const void *p, size_t n)
{
	struct frame_reader fr;
	struct got g;

	memset(&g, 0, sizeof(g));
	frame_reader_init(&fr, FRAME_BYTES);
	g.rc = frame_next(&fr, p, n, &g.f, &g.used, &g.why);
	return g;
}

#define NEXT(bytes) next(bytes, sizeof(bytes) - 1)

static void put_call(struct pack_w *w, uint32_t id)
{
	frame_request(w, id, "call", 4);
	pack_array(w, 3);
	pack_cstr(w, "kv/a");
	pack_cstr(w, "incr");
	pack_map(w, 1);
	pack_cstr(w, "key");
	pack_cstr(w, "n");
}

TEST(a_request_comes_back)
{
	static const uint32_t ids[] = {
		0, 1, 127, 128, 65535, 65536, UINT32_MAX
	};
	struct pack_bytes s;
	struct pack_w w;
	struct pack_r r;
	struct got g;
	uint32_t n;
	size_t i;

	pack_w_init(&w, FRAME_BYTES);
	for (i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		pack_w_reset(&w);
		put_call(&w, ids[i]);
		g = next(w.p, w.n);
		EXPECT_RC(g.rc, RC_OK);
		EXPECT_UINT(g.used, w.n);
		EXPECT_INT(g.f.kind, FRAME_REQUEST);
		EXPECT_UINT(g.f.id, ids[i]);
		EXPECT_TRUE(pack_bytes_eq(g.f.method, "call", 4));
		r = pack_reader(g.f.params.p, g.f.params.n);
		EXPECT_RC(pack_get_array(&r, &n), RC_OK);
		EXPECT_UINT(n, 3);
		EXPECT_RC(pack_get_str(&r, &s), RC_OK);
		EXPECT_TRUE(pack_bytes_eq(s, "kv/a", 4));
		EXPECT_TRUE(r.end == w.p + w.n);
	}
	pack_w_release(&w);
}

TEST(a_response_comes_back)
{
	struct pack_w w;
	struct got g;

	pack_w_init(&w, FRAME_BYTES);
	frame_response(&w, 77);
	pack_nil(&w);
	pack_map(&w, 1);
	pack_cstr(&w, "value");
	pack_i64(&w, -5);
	g = next(w.p, w.n);
	EXPECT_RC(g.rc, RC_OK);
	EXPECT_UINT(g.used, w.n);
	EXPECT_INT(g.f.kind, FRAME_RESPONSE);
	EXPECT_UINT(g.f.id, 77);
	EXPECT_UINT(g.f.error.n, 1);
	EXPECT_UINT(g.f.error.p[0], 0xc0);
	EXPECT_UINT(g.f.result.n, 8);
	EXPECT_UINT(g.f.result.p[0], 0x81);
	EXPECT_NULL(g.f.method.p);
	pack_w_release(&w);
}

TEST(a_notification_comes_back)
{
	struct pack_w w;
	struct got g;

	pack_w_init(&w, FRAME_BYTES);
	frame_notify(&w, "cancel", 6);
	pack_array(&w, 1);
	pack_u64(&w, 3);
	g = next(w.p, w.n);
	EXPECT_RC(g.rc, RC_OK);
	EXPECT_UINT(g.used, w.n);
	EXPECT_INT(g.f.kind, FRAME_NOTIFY);
	EXPECT_TRUE(pack_bytes_eq(g.f.method, "cancel", 6));
	EXPECT_UINT(g.f.params.n, 2);
	pack_w_release(&w);
}

TEST(a_method_may_be_bin)
{
	struct got g = NEXT("\x94\x00\x01\xc4\x04"
			    "ping"
			    "\x90");

	EXPECT_RC(g.rc, RC_OK);
	EXPECT_TRUE(pack_bytes_eq(g.f.method, "ping", 4));
	g = NEXT("\x93\x02\xc4\x14"
		 "nvim_set_client_info"
		 "\x90");
	EXPECT_RC(g.rc, RC_OK);
	EXPECT_INT(g.f.kind, FRAME_NOTIFY);
	EXPECT_UINT(g.f.method.n, 20);
}

TEST(longer_forms_are_the_same_message)
{
	/* [0, 1, "ping", []] with every number and length in its longest. */
	struct got g = NEXT("\xdd\0\0\0\x04"
			    "\xd3\0\0\0\0\0\0\0\0"
			    "\xcf\0\0\0\0\0\0\0\x01"
			    "\xdb\0\0\0\x04"
			    "ping"
			    "\xdd\0\0\0\0");

	EXPECT_RC(g.rc, RC_OK);
	EXPECT_UINT(g.f.id, 1);
	EXPECT_TRUE(pack_bytes_eq(g.f.method, "ping", 4));
	EXPECT_UINT(g.f.params.n, 5);
}

TEST(messages_cut_anywhere_in_the_stream)
{
	static const size_t steps[] = { 1, 2, 3, 7, 64, 1000 };
	struct frame_reader fr;
	struct frame f;
	struct pack_w w;
	size_t i, at, have, used;
	uint32_t id;

	pack_w_init(&w, FRAME_BYTES);
	for (id = 0; id < 100; id++)
		put_call(&w, id * 1000);
	for (i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		frame_reader_init(&fr, FRAME_BYTES);
		at = 0;
		id = 0;
		for (have = 0; have < w.n;) {
			have += steps[i];
			if (have > w.n)
				have = w.n;
			for (;;) {
				enum rc rc =
					frame_next(&fr, w.p + at, have - at, &f,
						   &used, NULL);

				if (rc == RC_AGAIN) {
					EXPECT_UINT(used, 0);
					break;
				}
				EXPECT_RC(rc, RC_OK);
				EXPECT_UINT(f.id, id * 1000);
				at += used;
				id++;
			}
		}
		EXPECT_UINT(id, 100);
		EXPECT_UINT(at, w.n);
	}
	pack_w_release(&w);
}

TEST(every_truncation_asks_for_more)
{
	struct pack_w w;
	struct got g;
	uint8_t *cut;
	size_t n;

	pack_w_init(&w, FRAME_BYTES);
	put_call(&w, 70000);
	for (n = 0; n < w.n; n++) {
		cut = malloc(n > 0 ? n : 1);
		EXPECT_NOT_NULL(cut);
		memcpy(cut, w.p, n);
		g = next(cut, n);
		free(cut);
		runner_context("%zu of %zu", n, w.n);
		EXPECT_RC(g.rc, RC_AGAIN);
		EXPECT_UINT(g.used, 0);
	}
	pack_w_release(&w);
}

TEST(what_is_no_message_ends_the_stream)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *says;
	} rows[] = {
#define ROW(bytes, says) { bytes, sizeof(bytes) - 1, says }
		ROW("GET / HTTP/1.1\r\n\r\n", "byte 0x47"),
		ROW("\x16\x03\x01", "byte 0x16"), /* TLS */
		ROW("\x80", "must be a MessagePack array"),
		ROW("\xc0", "must be a MessagePack array"),
		ROW("\xc1", "byte 0xc1"),
		ROW("\x90", "begins with 0"),
		ROW("\x94\x03\x01\xa1m\x90", "begins with 0"),
		ROW("\x94\xff\x01\xa1m\x90", "begins with 0"),
		ROW("\x94\xa1"
		    "0\x01\xa1m\x90",
		    "begins with 0"),
		ROW("\x94\xcb\0\0\0\0\0\0\0\0\x01\xa1m\x90", "begins with 0"),
		/* Requests without a usable id. */
		ROW("\x91\x00", "4 elements, not of 1"),
		ROW("\x94\x00\xff\xa1m\x90", "the id must be"),
		ROW("\x94\x00\xa1x\xa1m\x90", "the id must be"),
		ROW("\x94\x00\xc0\xa1m\x90", "the id must be"),
		ROW("\x94\x00\xcf\0\0\0\x01\0\0\0\0\xa1m\x90",
		    "the id must be"),
		/* Responses and notifications cannot be answered. */
		ROW("\x93\x01\x01\xc0", "4 elements, not of 3"),
		ROW("\x95\x01\x01\xc0\xc0\xc0", "4 elements, not of 5"),
		ROW("\x94\x01\xff\xc0\xc0", "the id must be"),
		ROW("\x91\x02", "3 elements, not of 1"),
		ROW("\x94\x02\xa1m\x90\x90", "3 elements, not of 4"),
		ROW("\x93\x02\x01\x90", "must be str or bin"),
		ROW("\x93\x02\xa1m\x80", "params must be an array"),
		/* Bad bytes inside. */
		ROW("\x94\x00\x01\xc1\x90", "byte 3"),
		ROW("\x94\x00\x01\xa1m\xdd\x10\x00\x00\x00", "byte 5"),
		ROW("\x94\x00\x01\xa1m\xc6\xff\xff\xff\xff", "byte 5"),
#undef ROW
	};
	struct got g;
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("row %zu", i);
		g = next(rows[i].bytes, rows[i].n);
		EXPECT_RC(g.rc, RC_INVALID);
		EXPECT_UINT(g.used, 0);
		EXPECT_HAS(g.why.text, rows[i].says);
	}
}

TEST(the_first_byte_is_enough_to_refuse)
{
	uint8_t b;
	int i;

	for (i = 0; i < 256; i++) {
		bool array = (i & 0xf0) == 0x90 || i == 0xdc || i == 0xdd;
		struct got g;

		b = (uint8_t)i;
		g = next(&b, 1);
		runner_context("%02x", (unsigned)i);
		if (i == 0x90)
			EXPECT_RC(g.rc, RC_INVALID);
		else
			EXPECT_RC(g.rc, array ? RC_AGAIN : RC_INVALID);
	}
}

TEST(a_request_with_an_id_can_be_answered)
{
	static const struct {
		const char *bytes;
		size_t n;
		const char *field;
		const char *says;
	} rows[] = {
#define ROW(bytes, field, says) { bytes, sizeof(bytes) - 1, field, says }
		ROW("\x92\x00\x07", "", "4 elements, not of 2"),
		ROW("\x93\x00\x07\xa1m", "", "4 elements, not of 3"),
		ROW("\x95\x00\x07\xa1m\x90\x90", "", "4 elements, not of 5"),
		ROW("\x94\x00\x07\x01\x90", "method", "must be str or bin"),
		ROW("\x94\x00\x07\xc0\x90", "method", "must be str or bin"),
		ROW("\x94\x00\x07\x91\xa1m\x90", "method",
		    "must be str or bin"),
		ROW("\x94\x00\x07\xa1m\x80", "params", "must be an array"),
		ROW("\x94\x00\x07\xa1m\xc0", "params", "must be an array"),
		ROW("\x94\x00\x07\xa1m\xa1x", "params", "must be an array"),
#undef ROW
	};
	struct frame_reader fr;
	struct detail why;
	struct frame f;
	struct pack_w w;
	size_t i, used;

	pack_w_init(&w, FRAME_BYTES);
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("row %zu", i);
		pack_w_reset(&w);
		pack_raw(&w, rows[i].bytes, rows[i].n);
		put_call(&w, 8);
		memset(&why, 0, sizeof(why));
		frame_reader_init(&fr, FRAME_BYTES);
		EXPECT_RC(frame_next(&fr, w.p, w.n, &f, &used, &why),
			  RC_INVALID);
		EXPECT_UINT(used, rows[i].n);
		EXPECT_UINT(f.id, 7);
		EXPECT_NULL(f.method.p);
		EXPECT_STR(why.field, rows[i].field);
		EXPECT_HAS(why.text, rows[i].says);
		/* And the stream goes on. */
		EXPECT_RC(frame_next(&fr, w.p + used, w.n - used, &f, &used,
				     NULL),
			  RC_OK);
		EXPECT_UINT(f.id, 8);
	}
	pack_w_release(&w);
}

TEST(a_method_name_has_a_bound)
{
	char name[FRAME_METHOD_BYTES_MAX + 1];
	struct pack_w w;
	struct got g;

	memset(name, 'm', sizeof(name));
	pack_w_init(&w, FRAME_BYTES);
	frame_request(&w, 1, name, FRAME_METHOD_BYTES_MAX);
	pack_array(&w, 0);
	g = next(w.p, w.n);
	EXPECT_RC(g.rc, RC_OK);
	EXPECT_UINT(g.f.method.n, FRAME_METHOD_BYTES_MAX);
	pack_w_reset(&w);
	frame_request(&w, 1, name, FRAME_METHOD_BYTES_MAX + 1);
	pack_array(&w, 0);
	g = next(w.p, w.n);
	EXPECT_RC(g.rc, RC_INVALID);
	EXPECT_UINT(g.used, w.n);
	EXPECT_STR(g.why.field, "method");
	/* No name is a name that nobody has. */
	g = NEXT("\x94\x00\x01\xa0\x90");
	EXPECT_RC(g.rc, RC_OK);
	EXPECT_UINT(g.f.method.n, 0);
	EXPECT_NOT_NULL(g.f.method.p);
	pack_w_release(&w);
}

TEST(a_frame_has_a_bound)
{
	struct frame_reader fr;
	struct pack_w w;
	struct frame f;
	size_t used;

	pack_w_init(&w, FRAME_BYTES);
	put_call(&w, 1);
	frame_reader_init(&fr, w.n);
	EXPECT_RC(frame_next(&fr, w.p, w.n, &f, &used, NULL), RC_OK);
	frame_reader_init(&fr, w.n - 1);
	EXPECT_RC(frame_next(&fr, w.p, w.n, &f, &used, NULL), RC_INVALID);
	pack_w_release(&w);
}

TEST(nesting_of_100000_ends_the_stream)
{
	static const uint8_t head[] = { 0x94, 0x00, 0x01, 0xa1, 'm' };
	static uint8_t deep[100005];
	struct got g;

	memset(deep, 0x91, sizeof(deep));
	memcpy(deep, head, sizeof(head));
	g = next(deep, sizeof(deep));
	EXPECT_RC(g.rc, RC_INVALID);
	EXPECT_UINT(g.used, 0);
	EXPECT_HAS(g.why.text, "32 levels");
}

/* -------------------------------------------------------- errors */

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static void expect_text(struct pack_bytes got, const char *want)
{
	EXPECT_UINT(got.n, strlen(want));
	EXPECT_MEM(got.p, want, got.n);
}

TEST(an_error_comes_back)
{
	static const int64_t retries[] = { -1, 0, 250, INT64_MAX };
	struct frame_error e, back;
	struct pack_w w;
	int code, set;
	size_t i;

	pack_w_init(&w, FRAME_BYTES);
	for (code = RC_INVALID; code <= RC_UNKNOWN_OUTCOME; code++) {
		for (set = 0; set < 32; set++) {
			i = (size_t)(code + set) % 4;
			e = (struct frame_error){
				.code = (enum rc)code,
				.outcome = set & 1 ? OUTCOME_UNKNOWN
						   : OUTCOME_REFUSED,
				.message = text(set & 1 ? "no" : ""),
				.request_id = text(set & 2 ? "r-1" : ""),
				.field = text(set & 4 ? "ops[3].key" : ""),
				.owner = text(set & 8 ? "n2" : ""),
				.retry_after_ms = retries[i],
				.has_shard = (set & 16) != 0,
				.shard = (uint32_t)set,
			};
			pack_w_reset(&w);
			frame_error_write(&w, &e);
			runner_context("%s, %d", rc_name(e.code), set);
			EXPECT_RC(w.rc, RC_OK);
			EXPECT_RC(
				frame_error_read(
					(struct pack_bytes){ w.p, w.n }, &back),
				RC_OK);
			EXPECT_RC(back.code, e.code);
			EXPECT_INT(back.outcome, e.outcome);
			expect_text(back.message, set & 1 ? "no" : "");
			expect_text(back.request_id, set & 2 ? "r-1" : "");
			expect_text(back.field, set & 4 ? "ops[3].key" : "");
			expect_text(back.owner, set & 8 ? "n2" : "");
			EXPECT_TRUE(back.has_shard == e.has_shard);
			EXPECT_UINT(back.shard, e.has_shard ? e.shard : 0);
			EXPECT_INT(back.retry_after_ms, retries[i]);
		}
	}
	pack_w_release(&w);
}

TEST(an_error_on_the_wire_has_these_keys)
{
	struct frame_error e = { .code = RC_OVERLOADED,
				 .outcome = OUTCOME_REFUSED,
				 .message = text("later"),
				 .request_id = text("7"),
				 .retry_after_ms = 10 };
	static const char want[] = "\x86"
				   "\xa4"
				   "code"
				   "\xaa"
				   "OVERLOADED"
				   "\xa4"
				   "http"
				   "\xcd\x01\xf7"
				   "\xa7"
				   "outcome"
				   "\xa7"
				   "refused"
				   "\xa7"
				   "message"
				   "\xa5"
				   "later"
				   "\xaa"
				   "request_id"
				   "\xa1"
				   "7"
				   "\xae"
				   "retry_after_ms"
				   "\x0a";
	struct pack_w w;

	pack_w_init(&w, FRAME_BYTES);
	frame_error_write(&w, &e);
	EXPECT_UINT(w.n, sizeof(want) - 1);
	EXPECT_MEM(w.p, want, w.n);
	pack_w_release(&w);
}

TEST(a_code_that_never_leaves_the_node_leaves_as_internal)
{
	static const enum rc codes[] = { RC_OK, RC_AGAIN, RC_NOMEM, RC_TERM,
					 (enum rc)999 };
	struct frame_error back;
	struct pack_w w;
	size_t i;

	pack_w_init(&w, FRAME_BYTES);
	for (i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		struct frame_error e = { .code = codes[i],
					 .outcome = OUTCOME_UNKNOWN,
					 .retry_after_ms = -1 };

		pack_w_reset(&w);
		frame_error_write(&w, &e);
		EXPECT_RC(frame_error_read((struct pack_bytes){ w.p, w.n },
					   &back),
			  RC_OK);
		EXPECT_RC(back.code, RC_INTERNAL);
	}
	pack_w_release(&w);
}

static enum rc read_error(const char *p, size_t n, struct frame_error *e)
{
	return frame_error_read((struct pack_bytes){ (const uint8_t *)p, n },
				e);
}

#define READ(bytes, e) read_error(bytes, sizeof(bytes) - 1, e)

TEST(errors_of_other_servers_are_internal_with_their_words)
{
	struct frame_error e;

	EXPECT_RC(READ("\xa7no such", &e), RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
	EXPECT_INT(e.outcome, OUTCOME_UNKNOWN);
	EXPECT_INT(e.retry_after_ms, -1);
	expect_text(e.message, "no such");
	EXPECT_RC(READ("\xc4\x03"
		       "bin",
		       &e),
		  RC_OK);
	expect_text(e.message, "bin");
	EXPECT_RC(READ("\x92\x01\xa1x", &e), RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
	EXPECT_UINT(e.message.n, 0);
	EXPECT_RC(READ("\xc0", &e), RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
}

TEST(errors_of_newer_servers_are_read_as_far_as_they_go)
{
	struct frame_error e;

	/* A code of the future keeps the outcome that it says. */
	EXPECT_RC(READ("\x83\xa4"
		       "code\xa3NEW\xa7"
		       "outcome\xa7refused"
		       "\xa3"
		       "new\x92\x01\x81\x01\x02",
		       &e),
		  RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
	EXPECT_INT(e.outcome, OUTCOME_REFUSED);
	EXPECT_RC(READ("\x81\xa4"
		       "code\xa3NEW",
		       &e),
		  RC_OK);
	EXPECT_INT(e.outcome, OUTCOME_UNKNOWN);
	/* An outcome that is left out is the code's; first or last. */
	EXPECT_RC(READ("\x81\xa4"
		       "code\xa8"
		       "CONFLICT",
		       &e),
		  RC_OK);
	EXPECT_RC(e.code, RC_CONFLICT);
	EXPECT_INT(e.outcome, OUTCOME_REFUSED);
	EXPECT_RC(READ("\x82\xa7"
		       "outcome\xa7unknown\xa4"
		       "code\xa8"
		       "CONFLICT",
		       &e),
		  RC_OK);
	EXPECT_INT(e.outcome, OUTCOME_UNKNOWN);
	/* Keys of other types, values of other types, are passed over. */
	EXPECT_RC(READ("\x84\x01\x02\xa7message\x05\xaeretry_after_ms\xff"
		       "\xa4"
		       "code\xc0",
		       &e),
		  RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
	EXPECT_INT(e.retry_after_ms, -1);
	EXPECT_UINT(e.message.n, 0);
	/* An error is not OK. */
	EXPECT_RC(READ("\x81\xa4"
		       "code\xa2OK",
		       &e),
		  RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
	EXPECT_INT(e.outcome, OUTCOME_UNKNOWN);
	/* Nor what never leaves a node. */
	EXPECT_RC(READ("\x81\xa4"
		       "code\xa5"
		       "AGAIN",
		       &e),
		  RC_OK);
	EXPECT_RC(e.code, RC_INTERNAL);
}

TEST(an_error_that_is_no_messagepack)
{
	static const char good[] = "\x82\xa4"
				   "code\xa7INVALID"
				   "\xa5"
				   "field\xa1k";
	struct frame_error e;
	size_t n;

	for (n = 0; n < sizeof(good) - 1; n++) {
		runner_context("%zu bytes", n);
		EXPECT_RC(read_error(good, n, &e), RC_INVALID);
		EXPECT_RC(e.code, RC_INTERNAL);
	}
	EXPECT_RC(read_error(good, n, &e), RC_OK);
	EXPECT_RC(READ("\xc1", &e), RC_INVALID);
	EXPECT_RC(READ("\x80\x80", &e), RC_INVALID);
	EXPECT_RC(READ("\xdf\xff\xff\xff\xff", &e), RC_INVALID);
}
