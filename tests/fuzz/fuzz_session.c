/*
 * session: any bytes from servers. The first byte says which link the rest came
 * on, then the next one, and so on in pieces; every call ends once, links stay
 * within their bound, and what is to be sent is MessagePack-RPC.
 */
#include <string.h>

#include "client/session.h"
#include "tests/fuzz/fuzz.h"

#define CALLS 4u
#define PIECE 64u
#define MS    1000000u

static void ended(void *arg, const struct session_answer *a)
{
	unsigned *n = arg;

	MUST((a->rc == RC_OK) == (a->outcome == OUTCOME_DONE));
	++*n;
}

/* Takes what a link has to say, and looks at it. */
static void drain(struct session *s, uint32_t link, uint64_t now)
{
	struct pack_bytes out = session_output(s, link);
	struct frame_reader fr;
	struct frame f;
	size_t at = 0;
	size_t used;

	frame_reader_init(&fr, 1u << 20);
	for (; at < out.n; at += used)
		MUST(frame_next(&fr, out.p + at, out.n - at, &f, &used, NULL) ==
		     RC_OK);
	if (out.n > 0)
		session_sent(s, link, out.n, now);
}

static void links_open(struct session *s, uint64_t now)
{
	uint32_t i;

	for (i = 0; i < session_links(s); i++) {
		if (session_is_stale(s, i))
			session_lost(s, i, now, "stale");
		if (session_wants_link(s, i, now))
			session_opened(s, i, now);
		drain(s, i, now);
	}
}

static void take(struct session *s, uint32_t link, const uint8_t *p, size_t n,
		 uint64_t now)
{
	struct detail why = { 0 };
	uint8_t *room;
	size_t cap;
	enum rc rc;

	if (n == 0 || !session_is_open(s, link))
		return;
	MUST(session_room(s, link, &room, &cap) == RC_OK && cap >= n);
	memcpy(room, p, n);
	rc = session_input(s, link, n, now, &why);
	MUST(rc == RC_OK || why.text[0] != '\0');
	if (rc != RC_OK)
		session_lost(s, link, now, why.text);
	MUST(session_links(s) <= SESSION_LINKS_MAX);
}

static void start(struct session *s, unsigned i, unsigned *n, uint64_t now)
{
	struct session_request r = { .address = { (const uint8_t *)"kv/a", 4 },
				     .method = { (const uint8_t *)"get", 3 } };

	if (i % 2 != 0)
		r.idem = r.method;
	MUST(session_start(s, &r, now, ended, n, NULL, NULL) == RC_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const rpcs[] = { "a:1", "b:2" };
	struct session_options o = { .links = 2,
				     .calls_max = CALLS,
				     .rpcs = rpcs,
				     .greet = "fuzz",
				     .learn = true,
				     .addresses_max = 16,
				     .seed = 1 };
	uint64_t now = 1000 * (uint64_t)MS;
	struct session *s = NULL;
	unsigned ends = 0;
	unsigned i;
	size_t k;

	MUST(session_new(&o, &s) == RC_OK);
	links_open(s, now);
	for (i = 0; i < CALLS; i++)
		start(s, i, &ends, now);
	while (n > 0) {
		links_open(s, now);
		k = n - 1 < PIECE ? n - 1 : PIECE;
		take(s, p[0] % session_links(s), p + 1, k, now);
		p += 1 + k;
		n -= 1 + k;
		now += MS;
		session_tick(s, now);
	}
	session_end(s);
	MUST(ends == CALLS && session_calls(s) == 0);
	session_free(s);
	return 0;
}
