/*
 * frame: any stream. All at once and one byte at a time it holds the same
 * messages and ends at the same place; what a call carries goes through the
 * checks of every method; an error that was read, is written and read the same.
 */
#include <string.h>

#include "client/proto/frame.h"
#include "client/proto/method.h"
#include "tests/fuzz/fuzz.h"

#define FRAME_BYTES_MAX 3000

static bool inside(struct pack_bytes b, const uint8_t *p, size_t n)
{
	return b.n == 0 || (b.p >= p && b.n <= n && b.p + b.n <= p + n);
}

static bool same(struct pack_bytes a, struct pack_bytes b)
{
	return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static void check_args(const struct method *m, struct pack_bytes args)
{
	struct detail why = { 0 };
	struct method_args out;
	uint32_t i;
	enum rc rc = method_args_check(m, args, &out, &why);

	MUST(rc == RC_OK || rc == RC_INVALID);
	MUST((rc == RC_OK) == (why.text[0] == '\0'));
	/* Only an unknown argument may have no name. */
	MUST(rc == RC_OK || why.field[0] != '\0' ||
	     strncmp(why.text, "unknown ", 8) == 0);
	if (rc != RC_OK)
		return;
	for (i = 0; i < m->args_count; i++) {
		MUST(method_has(&out, (int)i) || !m->args[i].required);
		if (method_has(&out, (int)i))
			MUST(inside(out.at[i].bytes, args.p, args.n));
	}
	MUST(out.present >> m->args_count == 0);
}

static void check_params(struct pack_bytes params)
{
	struct pack_r r = pack_reader(params.p, params.n);
	struct pack_bytes one;
	uint32_t n;
	size_t i;

	MUST(pack_get_array(&r, &n) == RC_OK);
	for (; n > 0; n--) {
		MUST(pack_skip(&r, &one) == RC_OK);
		for (i = 0; i < METHODS_COUNT; i++)
			check_args(method_at(i), one);
		check_args(method_call_options(), one);
	}
	MUST(r.at == r.end);
}

static void check_error(struct pack_bytes error)
{
	struct frame_error e, back;
	struct pack_w w;

	MUST(frame_error_read(error, &e) == RC_OK);
	MUST(inside(e.message, error.p, error.n));
	MUST(inside(e.request_id, error.p, error.n));
	MUST(inside(e.field, error.p, error.n));
	MUST(inside(e.owner, error.p, error.n));
	MUST(rc_is_wire(e.code) && e.code != RC_OK);
	MUST(e.retry_after_ms >= -1);
	pack_w_init(&w, (size_t)2 * FRAME_BYTES_MAX);
	frame_error_write(&w, &e);
	MUST(w.rc == RC_OK);
	MUST(frame_error_read((struct pack_bytes){ w.p, w.n }, &back) == RC_OK);
	MUST(back.code == e.code && back.outcome == e.outcome);
	MUST(back.retry_after_ms == e.retry_after_ms);
	MUST(same(back.message, e.message) && same(back.field, e.field));
	MUST(same(back.owner, e.owner));
	MUST(same(back.request_id, e.request_id));
	pack_w_release(&w);
}

/* The message at `p`, a byte at a time. */
static enum rc slowly(const uint8_t *p, size_t n, struct frame *f, size_t *used)
{
	struct frame_reader fr;
	enum rc rc = RC_AGAIN;
	size_t have;

	frame_reader_init(&fr, FRAME_BYTES_MAX);
	for (have = 0; have <= n && rc == RC_AGAIN; have++)
		rc = frame_next(&fr, p, have, f, used, NULL);
	return rc;
}

static void check_message(const uint8_t *p, size_t n, const struct frame *f)
{
	MUST(inside(f->method, p, n) && inside(f->params, p, n));
	MUST(inside(f->error, p, n) && inside(f->result, p, n));
	if (f->kind == FRAME_RESPONSE)
		check_error(f->error);
	else
		check_params(f->params);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct detail why = { 0 };
	struct frame_reader fr;
	struct frame f, g;
	size_t used, slow_used;
	enum rc rc;

	frame_reader_init(&fr, FRAME_BYTES_MAX);
	for (;;) {
		memset(&f, 0, sizeof(f));
		memset(&g, 0, sizeof(g));
		rc = frame_next(&fr, p, n, &f, &used, &why);
		MUST(slowly(p, n, &g, &slow_used) == rc);
		MUST(used == slow_used && used <= n);
		if (used == 0)
			break;
		MUST(f.id == g.id && f.kind == g.kind);
		if (rc == RC_OK)
			check_message(p, used, &f);
		else
			MUST(f.method.p == NULL && why.text[0] != '\0');
		memset(&why, 0, sizeof(why));
		p += used;
		n -= used;
	}
	MUST(rc == RC_AGAIN || rc == RC_INVALID);
	MUST(rc == RC_AGAIN || why.text[0] != '\0');
	return 0;
}
