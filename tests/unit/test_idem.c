#include "objects/idem.h"

#include "objects/space.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define T_CLASS(interleave_, durability_, resumes_)                \
	{                                                          \
		.name = "t", .interleave = (interleave_),          \
		.durability = (durability_), .durabilities = 0xff, \
		.idem_window_ms = IDEM_WINDOW_DEFAULT_MS,          \
		.resumes = (resumes_), .run = fake_script_run      \
	}

static const struct class strict =
	T_CLASS(INTERLEAVE_NEVER, DURABILITY_COMMITTED, false);
static const struct class open_class =
	T_CLASS(INTERLEAVE_ON_SUSPEND, DURABILITY_COMMITTED, false);
static const struct class resuming =
	T_CLASS(INTERLEAVE_NEVER, DURABILITY_COMMITTED, true);
static const struct class lagged =
	T_CLASS(INTERLEAVE_NEVER, DURABILITY_LAGGED, false);

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

/* ------------------------------------------------------------------ records */

static struct idem_record sample(enum idem_state state)
{
	struct idem_record r = { .state = state };

	memset(r.args, 1, sizeof(r.args));
	memset(r.who, 2, sizeof(r.who));
	switch (state) {
	case IDEM_STARTED:
		r.call_no = 3;
		r.locals[0] = 4;
		r.locals[3] = UINT64_MAX;
		r.dirty = true;
		break;
	case IDEM_DONE:
		r.answer = str("\xa2ok");
		break;
	case IDEM_FAILED:
		r.rc = RC_CONFLICT;
		r.field = str("if_rev");
		r.text = str("no");
		break;
	}
	return r;
}

TEST(records_are_read_as_they_were_written)
{
	struct idem_record in;
	struct idem_record out;
	struct pack_w w;
	int state;

	pack_w_init(&w, 4096);
	for (state = IDEM_STARTED; state <= IDEM_FAILED; state++) {
		runner_context("state %d", state);
		in = sample((enum idem_state)state);
		pack_w_reset(&w);
		idem_write(&w, &in);
		EXPECT_RC(w.rc, RC_OK);
		EXPECT_RC(idem_read((struct pack_bytes){ w.p, w.n }, &out),
			  RC_OK);
		EXPECT_INT(out.state, state);
		EXPECT_MEM(out.args, in.args, sizeof(in.args));
		EXPECT_MEM(out.who, in.who, sizeof(in.who));
		EXPECT_UINT(out.call_no, in.call_no);
		EXPECT_MEM(out.locals, in.locals, sizeof(in.locals));
		EXPECT_TRUE(out.dirty == in.dirty);
		EXPECT_TRUE(pack_bytes_eq(out.answer, (const char *)in.answer.p,
					  in.answer.n));
		EXPECT_RC(out.rc, in.rc);
		EXPECT_TRUE(pack_bytes_eq(out.field, (const char *)in.field.p,
					  in.field.n));
		EXPECT_TRUE(pack_bytes_eq(out.text, (const char *)in.text.p,
					  in.text.n));
	}
	pack_w_release(&w);
}

TEST(what_is_no_record_is_refused)
{
	static const char *const bad[] = {
		"",
		"\xc0",
		"\x90",
		"\x95\x01\x02",
		"\x95\x00\x02",
		"\x92\x01\x09",
	};
	struct idem_record in = sample(IDEM_FAILED);
	struct idem_record out;
	struct pack_w w;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		EXPECT_RC(idem_read(str(bad[i]), &out), RC_CORRUPT);
	EXPECT_RC(idem_read(str("\x92\x02\x01"), &out), RC_VERSION);
	pack_w_init(&w, 4096);
	idem_write(&w, &in);
	for (i = 0; i < w.n; i++)
		EXPECT_RC(idem_read((struct pack_bytes){ w.p, i }, &out),
			  RC_CORRUPT);
	pack_nil(&w);
	EXPECT_RC(idem_read((struct pack_bytes){ w.p, w.n }, &out), RC_CORRUPT);
	pack_w_release(&w);
}

TEST(windows_may_be_shortened_and_not_stretched)
{
	struct detail why = { "", "" };
	uint64_t ns;

	EXPECT_RC(idem_window(&strict, 0, &ns, &why), RC_OK);
	EXPECT_UINT(ns, UINT64_C(600000000000));
	EXPECT_RC(idem_window(&strict, 1000, &ns, &why), RC_OK);
	EXPECT_UINT(ns, 1000000000);
	EXPECT_RC(idem_window(&strict, 600000, &ns, &why), RC_OK);
	EXPECT_RC(idem_window(&strict, 999, &ns, &why), RC_INVALID);
	EXPECT_STR(why.field, "idem_ms");
	EXPECT_RC(idem_window(&strict, 600001, &ns, &why), RC_INVALID);
}

/* ------------------------------------------------------------------ scripts */

static enum run do_add(struct fake_event *e)
{
	struct row_view row;
	uint64_t n = 0;
	enum rc rc = ev_get(&e->ev, ROW_DATA, str("n"), &row);

	if (rc == RC_OK)
		memcpy(&n, row.value.p, sizeof(n));
	else if (rc == RC_AGAIN)
		return RUN_LOAD;
	n++;
	if (ev_put(&e->ev, ROW_DATA, str("n"),
		   (struct pack_bytes){ (uint8_t *)&n, sizeof(n) }, 0) != RC_OK)
		return RUN_LOAD;
	(void)ev_bump(&e->ev);
	pack_u64(&e->ev.result, n);
	return RUN_DONE;
}

static enum run do_fail(struct fake_event *e)
{
	return ev_fail(&e->ev, RC_CONFLICT, "f", "no");
}

static enum run do_read(struct fake_event *e)
{
	pack_u64(&e->ev.result, 77);
	return RUN_DONE;
}

static enum run do_deny(struct fake_event *e)
{
	ev_unrecorded(&e->ev);
	pack_bool(&e->ev.result, false);
	return RUN_DONE;
}

static enum run do_large(struct fake_event *e)
{
	static uint8_t big[IDEM_ANSWER_BYTES_MAX];

	if (ev_put(&e->ev, ROW_DATA, str("n"), str("12345678"), 0) != RC_OK)
		return RUN_LOAD;
	pack_bin(&e->ev.result, big, (size_t)e->n);
	return RUN_DONE;
}

/* Adds before and after a nested call. */
static enum run do_call(struct fake_event *e)
{
	enum run how;

	if (e->ev.resume == 0) {
		how = do_add(e);
		if (how != RUN_DONE)
			return how;
		e->ev.result.n = 0;
		e->ev.locals[1] = 11;
		return ev_call(&e->ev, "t/target", "put", str("\x80"));
	}
	EXPECT_UINT(e->ev.locals[1], 11);
	if (e->ev.reply_rc == RC_AGAIN)
		return ev_call(&e->ev, "t/target", "put", str("\x80"));
	if (e->ev.reply_rc != RC_OK)
		return ev_fail(&e->ev, e->ev.reply_rc, NULL, "%s",
			       e->ev.reply_why.text);
	return do_add(e);
}

/* The same without the first. */
static enum run do_call_only(struct fake_event *e)
{
	if (e->ev.resume == 0)
		return ev_call(&e->ev, "t/target", "put", str("\x80"));
	if (e->ev.reply_rc != RC_OK)
		return ev_fail(&e->ev, e->ev.reply_rc, NULL, "%s",
			       e->ev.reply_why.text);
	return do_add(e);
}

/* ------------------------------------------------------------------ helpers */

static struct fake_event *keyed_of(struct fake *f, const struct class *cls,
				   enum run (*script)(struct fake_event *e),
				   const char *key)
{
	struct fake_event *e = fake_event(f, cls, "a", "put");

	e->script = script;
	fake_event_key(e, key);
	return e;
}

static struct fake_event *keyed(struct fake *f,
				enum run (*script)(struct fake_event *e),
				const char *key)
{
	return keyed_of(f, &strict, script, key);
}

static struct fake_event *sent(struct fake *f, struct fake_event *e)
{
	fake_send(f, e);
	EXPECT_FALSE(e->done);
	return e;
}

static struct fake_event *called(struct fake *f, struct fake_event *e)
{
	fake_send(f, e);
	fake_go(f);
	EXPECT_TRUE(e->done);
	return e;
}

static uint64_t number(const struct fake_event *e)
{
	struct pack_r r = pack_reader(e->ev.result.p, e->ev.result.n);
	uint64_t n = 0;

	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_RC(pack_get_u64(&r, &n), RC_OK);
	EXPECT_TRUE(r.at == r.end);
	return n;
}

static void ends_with(struct fake_event *e, uint64_t want)
{
	EXPECT_UINT(number(e), want);
	fake_event_free(e);
}

static void ends(struct fake_event *e, enum rc rc, enum outcome outcome)
{
	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, rc);
	EXPECT_STR(outcome_name(e->ev.outcome), outcome_name(outcome));
	fake_event_free(e);
}

static size_t records(const struct fake *f)
{
	struct oid oid = fake_oid("t", "a");

	return fake_storage_rows(f->storage, &oid, ROW_IDEM);
}

/* Callers of whom keys are counted. */
static size_t counts(const struct fake *f)
{
	struct oid oid = fake_oid("t", "a");

	return fake_storage_rows(f->storage, &oid, ROW_IDEM_COUNT);
}

/* ------------------------------------------------------------- one call, twice
 */

TEST(the_same_key_has_one_effect_and_one_answer)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	ends_with(called(f, keyed(f, do_add, "k")), 1);
	e = called(f, keyed(f, do_add, "k"));
	EXPECT_UINT(e->runs, 0);
	ends_with(e, 1);
	EXPECT_UINT(f->units_all, 1);
	ends_with(called(f, keyed(f, do_add, "other")), 2);
	EXPECT_UINT(records(f), 2);
	fake_free(f);
}

/* A retry that is cut short knows that the first one happened: it must not say
 * that nothing did. */
TEST(a_retry_that_is_cut_short_is_unknown)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	ends_with(called(f, keyed(f, do_add, "k")), 1);
	e = sent(f, keyed(f, do_add, "k"));
	event_cancel(&e->ev, RC_DEADLINE);
	fake_turn(f);
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	e = sent(f, keyed(f, do_add, "k"));
	fake_fail_proof(f, RC_NO_QUORUM);
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	ends_with(called(f, keyed(f, do_add, "k")), 1);
	fake_free(f);
}

TEST(the_answer_survives_the_owner)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	/* ID1, OG7: committed, and the owner dies before it answers. */
	e = sent(f, keyed(f, do_add, "k"));
	fake_storage_finish_all(f->storage);
	f->epoch = 0;
	fake_commit_all(f); /* The space is not told. */
	f->epoch = e->ev.term;
	fake_lose(f);
	fake_event_free(e);
	fake_lead(f);
	e = called(f, keyed(f, do_add, "k"));
	EXPECT_UINT(e->runs, 0);
	ends_with(e, 1);
	ends_with(called(f, keyed(f, do_add, "l")), 2);
	fake_free(f);
}

TEST(a_key_that_was_never_committed_runs_again)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed(f, do_add, "k"));

	fake_storage_finish_all(f->storage);
	fake_change(f);
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	ends_with(called(f, keyed(f, do_add, "k")), 1);
	fake_free(f);
}

TEST(a_stored_answer_waits_until_it_is_committed)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = sent(f, keyed(f, do_add, "k"));
	struct fake_event *b;

	fake_storage_finish_all(f->storage);
	b = sent(f, keyed(f, do_add, "k")); /* ID2 */
	fake_prove(f);
	EXPECT_FALSE(a->done);
	EXPECT_FALSE(b->done);
	fake_commit_all(f);
	ends_with(a, 1);
	ends_with(b, 1);
	EXPECT_UINT(f->units_all, 1);
	fake_free(f);
}

TEST(record_and_effects_are_one_unit)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct fake_event *e = sent(f, keyed(f, do_add, "k"));

	fake_storage_finish_all(f->storage);
	EXPECT_UINT(f->units_all, 1);
	fake_commit(f, 1);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_IDEM), 1);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_IDEM_COUNT), 1);
	ends_with(e, 1);
	fake_free(f);
}

/* ------------------------------------------------------------------- scope */

TEST(other_arguments_are_refused_and_nothing_happens)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	ends_with(called(f, keyed(f, do_add, "k")), 1);
	e = keyed(f, do_add, "k");
	fake_event_args(e, "\x81\xa1x\x01", 4);
	called(f, e);
	EXPECT_STR(e->ev.why.field, "idem");
	EXPECT_UINT(e->runs, 0);
	ends(e, RC_CONFLICT, OUTCOME_REFUSED); /* ID3 */
	EXPECT_UINT(f->units_all, 1);
	fake_free(f);
}

TEST(under_a_derived_key_other_arguments_are_unknown)
{
	struct fake *f = fake_new(NULL);
	struct chain chain = { .n = 1 };
	struct fake_event *e;

	ends_with(called(f, keyed(f, do_add, "k")), 1);
	e = keyed(f, do_add, "k");
	e->ev.chain = &chain;
	fake_event_args(e, "\x81\xa1x\x01", 4);
	ends(called(f, e), RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_free(f);
}

TEST(a_key_belongs_to_principal_object_and_method)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	ends_with(called(f, keyed(f, do_add, "k")), 1);
	e = keyed(f, do_add, "k");
	e->ev.principal = str("somebody else");
	ends_with(called(f, e), 2);
	e = keyed(f, do_add, "k");
	e->ev.method = method_find("kv", 2, "incr", 4);
	ends_with(called(f, e), 3);
	e = fake_event(f, &strict, "b", "put");
	e->script = do_add;
	fake_event_key(e, "k");
	ends_with(called(f, e), 1);
	/* No two scopes run into each other: lengths are part of them. */
	e = keyed(f, do_add, "k");
	e->ev.principal = str("pp");
	ends_with(called(f, e), 4);
	fake_free(f);
}

TEST(errors_are_not_recorded_reads_are)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct object_head head;

	ends(called(f, keyed(f, do_fail, "k")), RC_CONFLICT, OUTCOME_REFUSED);
	EXPECT_UINT(f->units_all, 0);
	ends_with(called(f, keyed(f, do_read, "k")), 77);
	EXPECT_UINT(records(f), 1);
	/* Which does not make the object exist. */
	EXPECT_RC(object_head_read(&oid, fake_storage_head(f->storage, &oid),
				   &head),
		  RC_OK);
	EXPECT_TRUE(head.destroyed);
	EXPECT_INT(f->admitted_objects, 0);
	EXPECT_INT(f->admitted_bytes, 0);
	ends_with(called(f, keyed(f, do_add, "l")), 1);
	EXPECT_INT(f->admitted_objects, 1);
	fake_free(f);
}

TEST(an_answer_that_the_class_waives_is_not_recorded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = called(f, keyed(f, do_deny, "k"));

	EXPECT_RC(e->ev.rc, RC_OK);
	fake_event_free(e);
	EXPECT_UINT(f->units_all, 0);
	e = called(f, keyed(f, do_deny, "k"));
	EXPECT_UINT(e->runs, 1);
	fake_event_free(e);
	fake_free(f);
}

TEST(a_large_answer_is_refused_before_anything_happens)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = keyed(f, do_large, "k");

	e->n = IDEM_ANSWER_BYTES_MAX - 3;
	EXPECT_RC(called(f, e)->ev.rc, RC_OK);
	fake_event_free(e);
	e = keyed(f, do_large, "l");
	e->n = IDEM_ANSWER_BYTES_MAX - 2;
	ends(called(f, e), RC_INVALID, OUTCOME_REFUSED);
	EXPECT_UINT(f->units_all, 1);
	EXPECT_UINT(records(f), 1);
	fake_free(f);
}

TEST(a_key_makes_a_call_committed_in_every_class)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed_of(f, &lagged, do_add, "k"));

	fake_storage_finish_all(f->storage);
	fake_prove(f);
	EXPECT_FALSE(e->done);
	fake_commit_all(f);
	ends_with(e, 1);
	fake_free(f);
}

/* ----------------------------------------------------------------- windows */

static struct fake_event *windowed(struct fake *f, uint64_t ms)
{
	struct fake_event *e = keyed(f, do_add, "k");

	e->ev.idem_ms = ms;
	return e;
}

TEST(a_record_expires_by_the_log_and_not_by_the_clock)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	ends_with(called(f, windowed(f, 5000)), 1);
	f->now_ns += UINT64_C(4999000000);
	e = sent(f, windowed(f, 5000));
	fake_go(f);
	ends_with(e, 1);
	/* Its time is past, but no entry says so: ID4. */
	f->now_ns += UINT64_C(2000000);
	e = windowed(f, 5000);
	fake_send(f, e);
	fake_go(f);
	ends_with(e, 1);
	/* One does. */
	e = fake_event(f, &strict, "b", "put");
	e->script = do_add;
	ends_with(called(f, e), 1);
	ends_with(called(f, windowed(f, 5000)), 2);
	EXPECT_UINT(records(f), 1);
	fake_free(f);
}

TEST(a_window_out_of_bounds_is_invalid)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = called(f, windowed(f, 600001));

	EXPECT_STR(e->ev.why.field, "idem_ms");
	ends(e, RC_INVALID, OUTCOME_REFUSED);
	ends(called(f, windowed(f, 1)), RC_INVALID, OUTCOME_REFUSED);
	EXPECT_UINT(f->units_all, 0);
	fake_free(f);
}

TEST(expired_records_are_swept_and_counted_off)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct fake_event *e;
	char key[24];
	int i;

	for (i = 0; i < 600; i++) {
		(void)snprintf(key, sizeof(key), "k%d", i);
		e = keyed(f, do_add, key);
		e->ev.idem_ms = i < 500 ? 5000 : 60000;
		ends_with(called(f, e), (uint64_t)i + 1);
	}
	EXPECT_UINT(records(f), 600);
	fake_advance(f, 1000);
	fake_go(f);
	EXPECT_UINT(records(f), 600);
	for (i = 0; i < 12; i++) {
		fake_advance(f, 1000);
		fake_go(f);
	}
	EXPECT_UINT(records(f), 100);
	/* The object itself has not changed. */
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	fake_change(f);
	ends_with(called(f, keyed(f, do_add, "k550")), 551);
	ends_with(called(f, keyed(f, do_add, "k50")), 601);
	/* When the last is gone, so is the count. */
	for (i = 0; i < 20; i++) {
		fake_advance(f, 60000);
		fake_go(f);
	}
	EXPECT_UINT(records(f), 0);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_IDEM_COUNT), 0);
	fake_free(f);
}

TEST(at_the_bound_a_new_key_is_refused_and_no_old_one_forgotten)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	char key[24];
	unsigned i;

	for (i = 0; i < IDEM_KEYS_MAX; i++) {
		(void)snprintf(key, sizeof(key), "k%u", i);
		e = keyed(f, do_add, key);
		fake_send(f, e);
		if (i == 0 || i + 1 == IDEM_KEYS_MAX)
			fake_go(f);
		else
			fake_commit_all(f);
		EXPECT_TRUE(e->done);
		fake_event_free(e);
	}
	e = called(f, keyed(f, do_add, "one more"));
	EXPECT_INT(e->ev.retry_after_ms, RETRY_AFTER_MS);
	ends(e, RC_OVERLOADED, OUTCOME_REFUSED);
	ends_with(called(f, keyed(f, do_add, "k0")), 1);
	/* Another principal has a bound of its own. */
	e = keyed(f, do_add, "one more");
	e->ev.principal = str("q");
	ends_with(called(f, e), IDEM_KEYS_MAX + 1);
	/* Without a key nobody is refused. */
	e = fake_event(f, &strict, "a", "put");
	e->script = do_add;
	ends_with(called(f, e), IDEM_KEYS_MAX + 2);
	fake_free(f);
}

static enum run do_destroy(struct fake_event *e)
{
	ev_destroy(&e->ev);
	pack_u64(&e->ev.result, 5);
	return RUN_DONE;
}

TEST(a_tombstone_answers_for_its_keys)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	int i;

	ends_with(called(f, keyed(f, do_add, "k")), 1);
	ends_with(called(f, keyed(f, do_destroy, "d")), 5);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 0);
	ends_with(called(f, keyed(f, do_add, "k")), 1);
	ends_with(called(f, keyed(f, do_destroy, "d")), 5);
	fake_change(f);
	ends_with(called(f, keyed(f, do_add, "k")), 1);
	ends_with(called(f, keyed(f, do_destroy, "d")), 5);
	/* A new key makes it anew, beside the old records. */
	ends_with(called(f, keyed(f, do_add, "l")), 1);
	ends_with(called(f, keyed(f, do_add, "k")), 1);
	ends_with(called(f, keyed(f, do_add, "m")), 2);
	/* In the end nothing of it all is left but the object. */
	for (i = 0; i < 40; i++) {
		fake_advance(f, 30000);
		fake_go(f);
	}
	EXPECT_UINT(records(f), 0);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	ends_with(called(f, keyed(f, do_destroy, "d")), 5);
	for (i = 0; i < 40; i++) {
		fake_advance(f, 30000);
		fake_go(f);
	}
	EXPECT_UINT(records(f), 0);
	EXPECT_TRUE(fake_storage_head(f->storage, &oid).p == NULL);
	fake_free(f);
}

/* -------------------------------------------------------------- suspension */

TEST(a_suspended_event_says_started_first)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed(f, do_call_only, "k"));

	fake_storage_finish_all(f->storage);
	fake_turn(f);
	/* A unit although nothing was written. */
	EXPECT_UINT(f->units_all, 1);
	EXPECT_UINT(f->calls_n, 0);
	fake_commit_all(f);
	EXPECT_UINT(f->calls_n, 1);
	EXPECT_TRUE(f->calls[0].keyed);
	EXPECT_UINT(records(f), 1);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	ends_with(e, 1);
	EXPECT_UINT(records(f), 1);
	ends_with(called(f, keyed(f, do_call_only, "k")), 1);
	fake_free(f);
}

TEST(derived_keys_differ_by_all_that_matters)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = keyed(f, do_call, "k");
	uint8_t keys[8][HASH_BYTES];
	struct fake_event *other;
	int i;
	int j;

	idem_derive(&e->ev, keys[0]);
	e->ev.call_no = 1;
	idem_derive(&e->ev, keys[1]);
	e->ev.call_no = 0;
	e->ev.principal = str("q");
	idem_derive(&e->ev, keys[2]);
	e->ev.principal = str("p");
	e->ev.tenant = str("acme");
	idem_derive(&e->ev, keys[3]);
	e->ev.tenant = str("default");
	e->ev.env = str("prod");
	idem_derive(&e->ev, keys[4]);
	e->ev.env = str("dev");
	e->ev.oid.b[0] ^= 1;
	idem_derive(&e->ev, keys[5]);
	e->ev.oid.b[0] ^= 1;
	e->ev.method = method_find("kv", 2, "incr", 4);
	idem_derive(&e->ev, keys[6]);
	other = keyed(f, do_call, "l");
	idem_derive(&other->ev, keys[7]);
	for (i = 0; i < 8; i++)
		for (j = 0; j < i; j++)
			EXPECT_TRUE(memcmp(keys[i], keys[j], HASH_BYTES) != 0);
	e->done = true;
	other->done = true;
	fake_event_free(e);
	fake_event_free(other);
	fake_free(f);
}

TEST(a_retry_that_finds_started_is_unknown)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed(f, do_call, "k"));

	fake_go(f);
	EXPECT_UINT(f->calls_n, 1);
	event_cancel(&e->ev, RC_DEADLINE);
	fake_turn(f);
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	ends(called(f, keyed(f, do_call, "k")), RC_UNKNOWN_OUTCOME,
	     OUTCOME_UNKNOWN);
	fake_change(f);
	ends(called(f, keyed(f, do_call, "k")), RC_UNKNOWN_OUTCOME,
	     OUTCOME_UNKNOWN);
	EXPECT_UINT(f->calls_n, 1);
	/* Others are not concerned. */
	ends_with(called(f, keyed(f, do_add, "l")), 2);
	fake_free(f);
}

TEST(a_class_that_resumes_goes_on_where_it_was)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed_of(f, &resuming, do_call, "k"));
	uint8_t key[16];

	fake_go(f);
	memcpy(key, f->calls[0].key, sizeof(key));
	fake_change(f); /* The owner dies. */
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	e = sent(f, keyed_of(f, &resuming, do_call, "k"));
	fake_go(f);
	/* It did not add again, and the nested call is the same call. */
	EXPECT_UINT(f->calls_n, 2);
	EXPECT_MEM(f->calls[1].key, key, sizeof(key));
	fake_answer(f, 1, RC_OK, "x");
	fake_go(f);
	ends_with(e, 2);
	ends_with(called(f, keyed_of(f, &resuming, do_call, "k")), 2);
	fake_free(f);
}

/* The owner dies while the nested call is open. */
static void calls_and_is_lost(struct fake *f,
			      enum run (*script)(struct fake_event *),
			      const char *key)
{
	struct fake_event *e = sent(f, keyed_of(f, &resuming, script, key));

	fake_go(f);
	fake_change(f);
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
}

/* Its caller wants a shorter window: the first one's counts. */
TEST(what_is_resumed_is_remembered_as_long_as_it_was)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	calls_and_is_lost(f, do_call, "k");
	e = keyed_of(f, &resuming, do_call, "k");
	e->ev.idem_ms = 5000;
	(void)sent(f, e);
	fake_go(f);
	fake_answer(f, 1, RC_OK, "x");
	fake_go(f);
	ends_with(e, 2);
	f->now_ns += UINT64_C(6000000000);
	ends_with(called(f, keyed_of(f, &resuming, do_add, "l")), 3);
	ends_with(called(f, keyed_of(f, &resuming, do_call, "k")), 2);
	fake_free(f);
}

/* Gives up when it does not know what became of its call. */
static enum run do_call_once(struct fake_event *e)
{
	if (e->ev.resume != 0 && e->ev.reply_rc == RC_AGAIN)
		return ev_fail(&e->ev, RC_CONFLICT, NULL, "who knows");
	return do_call(e);
}

/* What it did before is remembered with its end. */
TEST(what_is_resumed_and_fails_is_remembered)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	calls_and_is_lost(f, do_call, "k");
	e = sent(f, keyed_of(f, &resuming, do_call, "k"));
	fake_go(f);
	fake_answer(f, 1, RC_LIMITED, "slow down");
	fake_go(f);
	ends(e, RC_LIMITED, OUTCOME_UNKNOWN);
	e = called(f, keyed_of(f, &resuming, do_call, "k"));
	EXPECT_UINT(e->runs, 0);
	ends(e, RC_LIMITED, OUTCOME_UNKNOWN);
	/* Also when it fails at once. */
	calls_and_is_lost(f, do_call_once, "l");
	ends(called(f, keyed_of(f, &resuming, do_call_once, "l")), RC_CONFLICT,
	     OUTCOME_UNKNOWN);
	e = called(f, keyed_of(f, &resuming, do_call_once, "l"));
	EXPECT_UINT(e->runs, 0);
	ends(e, RC_CONFLICT, OUTCOME_UNKNOWN);
	fake_free(f);
}

/* Nothing was written here; what was called may have happened there. */
static enum run do_call_and_fail(struct fake_event *e)
{
	if (e->ev.resume == 0)
		return ev_call(&e->ev, "t/target", "put", str("\x80"));
	return ev_fail(&e->ev, RC_CONFLICT, NULL, "no");
}

TEST(a_failure_after_a_call_is_no_refusal)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed(f, do_call_and_fail, "k"));

	fake_go(f);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	ends(e, RC_CONFLICT, OUTCOME_UNKNOWN);
	ends(called(f, keyed(f, do_call_and_fail, "k")), RC_CONFLICT,
	     OUTCOME_UNKNOWN);
	/* Without a key, and cut short while it is out. */
	e = fake_event(f, &strict, "a", "put");
	e->script = do_call_only;
	(void)sent(f, e);
	fake_go(f);
	EXPECT_UINT(f->calls_n, 2);
	event_cancel(&e->ev, RC_DEADLINE);
	fake_turn(f);
	ends(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_free(f);
}

TEST(a_failure_without_effects_takes_started_back)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed(f, do_call_only, "k"));

	fake_go(f);
	fake_answer(f, 0, RC_OVERLOADED, "try again");
	EXPECT_FALSE(e->done);
	fake_go(f);
	ends(e, RC_OVERLOADED, OUTCOME_REFUSED);
	EXPECT_UINT(records(f), 0);
	EXPECT_UINT(counts(f), 0);
	/* So it may be tried again, for the first time. */
	e = sent(f, keyed(f, do_call_only, "k"));
	fake_go(f);
	EXPECT_UINT(f->calls_n, 2);
	fake_answer(f, 1, RC_OK, "x");
	fake_go(f);
	ends_with(e, 1);
	fake_free(f);
}

TEST(a_failure_after_effects_is_remembered)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed(f, do_call, "k"));
	int i;

	fake_go(f);
	fake_answer(f, 0, RC_LIMITED, "slow down");
	fake_go(f);
	ends(e, RC_LIMITED, OUTCOME_UNKNOWN);
	for (i = 0; i < 2; i++) {
		e = called(f, keyed(f, do_call, "k"));
		EXPECT_STR(e->ev.why.text, "slow down");
		EXPECT_UINT(e->runs, 0);
		ends(e, RC_LIMITED, OUTCOME_UNKNOWN);
		fake_change(f);
	}
	fake_free(f);
}

TEST(a_class_that_resumes_may_try_a_failed_call_again)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = sent(f, keyed_of(f, &resuming, do_call, "k"));

	fake_go(f);
	fake_answer(f, 0, RC_OVERLOADED, "try again");
	fake_go(f);
	/* It added before: that is no refusal, and not the end either. */
	ends(e, RC_OVERLOADED, OUTCOME_UNKNOWN);
	e = sent(f, keyed_of(f, &resuming, do_call, "k"));
	fake_go(f);
	EXPECT_UINT(f->calls_n, 2);
	EXPECT_MEM(f->calls[0].key, f->calls[1].key, 16);
	fake_answer(f, 1, RC_OK, "x");
	fake_go(f);
	ends_with(e, 2);
	/* What cannot go better is remembered. */
	e = sent(f, keyed_of(f, &resuming, do_call, "l"));
	fake_go(f);
	fake_answer(f, 2, RC_CONFLICT, "no");
	fake_go(f);
	ends(e, RC_CONFLICT, OUTCOME_UNKNOWN);
	ends(called(f, keyed_of(f, &resuming, do_call, "l")), RC_CONFLICT,
	     OUTCOME_UNKNOWN);
	fake_free(f);
}

/* ----------------------------------------------------------------- joining */

static struct fake_event *join(struct fake *f)
{
	return sent(f, keyed_of(f, &open_class, do_call, "k"));
}

TEST(a_retry_joins_the_one_that_runs)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = join(f);
	struct fake_event *b;
	struct fake_event *c;

	fake_go(f);
	b = join(f); /* ID2, in the middle of it. */
	c = join(f);
	fake_go(f);
	EXPECT_UINT(b->runs + c->runs, 0);
	EXPECT_UINT(f->calls_n, 1);
	/* Who joined and goes away takes nothing with it. */
	event_cancel(&b->ev, RC_CANCELLED);
	fake_turn(f);
	ends(b, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	ends_with(a, 2);
	EXPECT_UINT(c->runs, 0);
	ends_with(c, 2);
	fake_free(f);
}

TEST(other_arguments_do_not_join)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = join(f);
	struct fake_event *b;

	fake_go(f);
	b = keyed_of(f, &open_class, do_call, "k");
	fake_event_args(b, "\x81\xa1x\x01", 4);
	ends(called(f, b), RC_CONFLICT, OUTCOME_REFUSED);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	ends_with(a, 2);
	fake_free(f);
}

/* The caller of the one that runs is gone, at every point of it: whoever joined
 * goes on in its place. */
static void orphan(int point)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = join(f);
	struct fake_event *b;
	struct fake_event *c;
	size_t call = 0;

	runner_context("point %d", point);
	fake_storage_finish_all(f->storage);
	b = join(f);
	c = join(f);
	if (point == 1)
		space_committed(f->space, f->next_mark - 1, 5);
	if (point >= 2)
		fake_commit_all(f);
	event_cancel(&a->ev, RC_DEADLINE);
	fake_turn(f);
	ends(a, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	EXPECT_FALSE(b->done);
	EXPECT_FALSE(c->done);
	if (point == 0)
		EXPECT_UINT(f->calls_n, 0);
	fake_go(f);
	if (point == 2) {
		EXPECT_UINT(f->calls_n, 2);
		EXPECT_UINT(f->dropped, 1);
		EXPECT_MEM(f->calls[0].key, f->calls[1].key, 16);
		call = 1;
	}
	EXPECT_TRUE(f->calls[call].ev == &b->ev || f->calls[call].ev == &c->ev);
	fake_answer(f, call, RC_OK, "x");
	fake_go(f);
	/* It was carried out once. */
	ends_with(b, 2);
	ends_with(c, 2);
	ends_with(called(f, keyed_of(f, &open_class, do_add, "l")), 3);
	fake_free(f);
}

TEST(whoever_joined_goes_on_when_the_first_is_gone)
{
	int point;

	for (point = 0; point < 3; point++)
		orphan(point);
}

/* Adds, makes two nested calls, adds. */
static enum run do_two(struct fake_event *e)
{
	enum run how;

	if (e->ev.resume == 0) {
		how = do_add(e);
		e->ev.result.n = 0;
		if (how != RUN_DONE)
			return how;
	} else if (e->ev.reply_rc != RC_OK && e->ev.reply_rc != RC_AGAIN) {
		return ev_fail(&e->ev, e->ev.reply_rc, NULL, "%s",
			       e->ev.reply_why.text);
	}
	if (e->ev.resume == 2 && e->ev.reply_rc == RC_OK)
		return do_add(e);
	return ev_call(&e->ev, "t/target", "put", str("\x80"));
}

static struct fake_event *join_two(struct fake *f, const char *key, uint64_t ms)
{
	struct fake_event *e = keyed_of(f, &open_class, do_two, key);

	e->ev.idem_ms = ms;
	return sent(f, e);
}

/* The first makes its second call, and is gone; the other one's caller wants a
 * shorter window. */
static struct fake_event *heir(struct fake *f, const char *key)
{
	struct fake_event *a = join_two(f, key, 0);
	struct fake_event *b;
	size_t n = f->calls_n;

	fake_go(f);
	EXPECT_UINT(f->calls_n, n + 1);
	fake_answer(f, n, RC_OK, "x");
	fake_go(f);
	EXPECT_UINT(f->calls_n, n + 2);
	b = join_two(f, key, 5000);
	event_cancel(&a->ev, RC_DEADLINE);
	fake_turn(f);
	ends(a, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	EXPECT_UINT(f->calls_n, n + 3);
	EXPECT_MEM(f->calls[n + 2].key, f->calls[n + 1].key, 16);
	EXPECT_TRUE(memcmp(f->calls[n + 2].key, f->calls[n].key, 16) != 0);
	return b;
}

TEST(an_heir_is_all_that_the_first_was)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *b = heir(f, "k");
	struct fake_event *e;

	/* Not at the first call again, and for the first one's window. */
	fake_answer(f, 2, RC_OK, "x");
	fake_go(f);
	ends_with(b, 2);
	f->now_ns += UINT64_C(6000000000);
	ends_with(called(f, keyed_of(f, &open_class, do_add, "l")), 3);
	ends_with(called(f, keyed_of(f, &open_class, do_two, "k")), 2);
	/* What the first wrote stays written when it fails. */
	b = heir(f, "m");
	fake_answer(f, 5, RC_LIMITED, "slow down");
	fake_go(f);
	ends(b, RC_LIMITED, OUTCOME_UNKNOWN);
	e = called(f, keyed_of(f, &open_class, do_two, "m"));
	EXPECT_UINT(e->runs, 0);
	EXPECT_STR(e->ev.why.text, "slow down");
	ends(e, RC_LIMITED, OUTCOME_UNKNOWN);
	fake_free(f);
}

/* Its own caller has gone too: the first one's writes are on their way. */
TEST(an_heir_that_is_gone_too_may_have_happened)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = join(f);
	struct fake_event *b;

	fake_storage_finish_all(f->storage);
	b = join(f);
	event_cancel(&a->ev, RC_DEADLINE);
	event_cancel(&b->ev, RC_DEADLINE);
	fake_turn(f);
	ends(a, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	ends(b, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_go(f);
	EXPECT_UINT(records(f), 1);
	fake_free(f);
}

static enum run do_wait(struct fake_event *e)
{
	if (e->ev.resume == 0)
		return ev_wait(&e->ev, ev_now(&e->ev) + 1000000000u);
	return do_add(e);
}

TEST(an_heir_waits_on_for_the_same_time)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = sent(f, keyed_of(f, &open_class, do_wait, "k"));
	struct fake_event *b;

	fake_go(f);
	b = sent(f, keyed_of(f, &open_class, do_wait, "k"));
	event_cancel(&a->ev, RC_CANCELLED);
	fake_turn(f);
	ends(a, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_advance(f, 990);
	fake_go(f);
	EXPECT_FALSE(b->done);
	fake_advance(f, 20);
	fake_go(f);
	ends_with(b, 1);
	fake_free(f);
}

TEST(the_loss_of_the_shard_ends_who_joined)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = join(f);
	struct fake_event *b;

	fake_go(f);
	b = join(f);
	fake_lose(f);
	ends(a, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	ends(b, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_lead(f);
	fake_free(f);
}

TEST(who_joined_runs_itself_when_the_first_had_no_effect)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a =
		sent(f, keyed_of(f, &open_class, do_call_only, "k"));
	struct fake_event *b;

	fake_go(f);
	b = sent(f, keyed_of(f, &open_class, do_call_only, "k"));
	fake_answer(f, 0, RC_OVERLOADED, "try again");
	fake_go(f);
	ends(a, RC_OVERLOADED, OUTCOME_REFUSED);
	EXPECT_FALSE(b->done);
	EXPECT_UINT(f->calls_n, 2);
	fake_answer(f, 1, RC_OK, "x");
	fake_go(f);
	ends_with(b, 1);
	fake_free(f);
}

/* -------------------------------------------------------------- large objects
 */

static enum run do_fill(struct fake_event *e)
{
	static uint8_t big[OBJECT_LOAD_BYTES_MAX];

	if (ev_put(&e->ev, ROW_DATA, str("big"),
		   (struct pack_bytes){ big, sizeof(big) }, 0) != RC_OK)
		return RUN_LOAD;
	pack_u64(&e->ev.result, 0);
	return RUN_DONE;
}

TEST(of_a_large_object_the_record_is_loaded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = fake_event(f, &strict, "a", "put");

	e->script = do_fill;
	ends_with(called(f, e), 0);
	ends_with(called(f, keyed(f, do_add, "k")), 1);
	fake_change(f);
	e = called(f, keyed(f, do_add, "k"));
	EXPECT_UINT(e->runs, 0);
	ends_with(e, 1);
	ends_with(called(f, keyed(f, do_add, "l")), 2);
	EXPECT_UINT(records(f), 2);
	/* Also in the middle of a suspended event, after what was loaded has
	 * been given back. */
	e = sent(f, keyed(f, do_call, "m"));
	fake_go(f);
	fake_store(f);
	rows_trim(&e->ev.object->rows, f->committed);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	ends_with(e, 4);
	EXPECT_UINT(records(f), 3);
	fake_free(f);
}

TEST(an_unreadable_record_answers_for_nobody)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = called(f, keyed(f, do_add, "k"));
	struct object *o = TAILQ_FIRST(&f->res->lru);
	struct row *r;

	EXPECT_TRUE(rows_find(&o->rows, ROW_IDEM,
			      (struct pack_bytes){ e->ev.idem_key, 16 },
			      &r) == ROWS_FOUND);
	r->data[r->key_n] = 0xc0;
	fake_event_free(e);
	ends(called(f, keyed(f, do_add, "k")), RC_INTERNAL, OUTCOME_UNKNOWN);
	fake_free(f);
}

TEST(each_rule_that_is_left_out_is_missed)
{
	static const char *const rules[][2] = {
		{ "idem_separate_unit", "record_and_effects_are_one_unit" },
		{ "idem_any_args",
		  "other_arguments_are_refused_and_nothing_happens" },
		{ "idem_expires_early",
		  "a_record_expires_by_the_log_and_not_by_the_clock" },
		{ "tombstone_dropped", "a_tombstone_answers_for_its_keys" },
	};
	size_t i;

	for (i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		runner_context("%s", rules[i][0]);
		EXPECT_FALSE(fake_misses("none", rules[i][1]));
		EXPECT_TRUE(fake_misses(rules[i][0], rules[i][1]));
	}
}
