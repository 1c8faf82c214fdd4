#include "objects/object.h"

#include "node/base/crypto.h"
#include "node/base/mutant.h"
#include "objects/seal.h"
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
static const struct class lagged =
	T_CLASS(INTERLEAVE_NEVER, DURABILITY_LAGGED, false);
static const struct class memory =
	T_CLASS(INTERLEAVE_NEVER, DURABILITY_MEMORY, false);

static const struct pack_bytes none = { NULL, 0 };

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static struct pack_bytes bytes(const void *p, size_t n)
{
	return (struct pack_bytes){ p, n };
}

/* ------------------------------------------------------------------ scripts */

static enum run again_or_fail(struct fake_event *e, enum rc rc)
{
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	return ev_fail(&e->ev, rc == RC_NOMEM ? RC_OVERLOADED : rc, "key",
		       "said the class");
}

static enum run do_put(struct fake_event *e)
{
	enum rc rc = ev_put(&e->ev, ROW_DATA, str("k"), str(e->text), 0);

	if (rc != RC_OK)
		return again_or_fail(e, rc);
	pack_u64(&e->ev.result, ev_bump(&e->ev));
	return RUN_DONE;
}

static enum run do_get(struct fake_event *e)
{
	struct row_view row;
	enum rc rc = ev_get(&e->ev, ROW_DATA, str("k"), &row);

	if (rc != RC_OK)
		return again_or_fail(e, rc);
	pack_str(&e->ev.result, (const char *)row.value.p, row.value.n);
	return RUN_DONE;
}

static enum run do_delete(struct fake_event *e)
{
	enum rc rc = ev_delete(&e->ev, ROW_DATA, str("k"));

	if (rc != RC_OK)
		return again_or_fail(e, rc);
	pack_u64(&e->ev.result, ev_bump(&e->ev));
	return RUN_DONE;
}

/* A counter of eight bytes. */
static enum run do_add(struct fake_event *e)
{
	struct row_view row;
	uint64_t n = 0;
	enum rc rc = ev_get(&e->ev, ROW_DATA, str("n"), &row);

	if (rc == RC_OK)
		memcpy(&n, row.value.p, sizeof(n));
	else if (rc != RC_NOT_FOUND)
		return again_or_fail(e, rc);
	n++;
	rc = ev_put(&e->ev, ROW_DATA, str("n"), bytes(&n, sizeof(n)), 0);
	if (rc != RC_OK)
		return again_or_fail(e, rc);
	(void)ev_bump(&e->ev);
	pack_u64(&e->ev.result, n);
	return RUN_DONE;
}

static enum run do_conflict(struct fake_event *e)
{
	struct row_view row;

	if (ev_get(&e->ev, ROW_DATA, str("k"), &row) == RC_AGAIN)
		return RUN_LOAD;
	if (ev_put(&e->ev, ROW_DATA, str("k"), str("never"), 0) != RC_OK)
		return RUN_LOAD;
	return ev_fail(&e->ev, RC_CONFLICT, "if_rev", "it is %d", 7);
}

static enum run do_nothing(struct fake_event *e)
{
	pack_nil(&e->ev.result);
	return RUN_DONE;
}

static enum run do_destroy(struct fake_event *e)
{
	ev_destroy(&e->ev);
	pack_nil(&e->ev.result);
	return RUN_DONE;
}

/* ------------------------------------------------------------------ helpers */

static struct fake_event *send_as(struct fake *f, const struct class *cls,
				  const char *name,
				  enum run (*script)(struct fake_event *e),
				  const char *text)
{
	struct fake_event *e = fake_event(f, cls, name, "put");

	e->script = script;
	e->text = text;
	fake_send(f, e);
	EXPECT_FALSE(e->done);
	return e;
}

static struct fake_event *send(struct fake *f, const char *name,
			       enum run (*script)(struct fake_event *e),
			       const char *text)
{
	return send_as(f, &strict, name, script, text);
}

static void expect_text(const struct fake_event *e, const char *want)
{
	struct pack_r r = pack_reader(e->ev.result.p, e->ev.result.n);
	struct pack_bytes got;

	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_RC(pack_get_str(&r, &got), RC_OK);
	EXPECT_UINT(got.n, strlen(want));
	EXPECT_MEM(got.p, want, got.n);
}

static uint64_t number(const struct fake_event *e)
{
	struct pack_r r = pack_reader(e->ev.result.p, e->ev.result.n);
	uint64_t n = 0;

	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_INT(e->ev.outcome, OUTCOME_DONE);
	EXPECT_RC(pack_get_u64(&r, &n), RC_OK);
	return n;
}

static void expect_end(const struct fake_event *e, enum rc rc,
		       enum outcome outcome)
{
	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, rc);
	EXPECT_STR(outcome_name(e->ev.outcome), outcome_name(outcome));
	EXPECT_TRUE(e->ev.why.text[0] != '\0');
	EXPECT_UINT(e->ev.result.n, 0);
}

/* Sends, goes on until it is done, and checks that it is. */
static struct fake_event *call(struct fake *f, const char *name,
			       enum run (*script)(struct fake_event *e),
			       const char *text)
{
	struct fake_event *e = send(f, name, script, text);

	fake_go(f);
	EXPECT_TRUE(e->done);
	return e;
}

static void call_free(struct fake *f, const char *name,
		      enum run (*script)(struct fake_event *e),
		      const char *text)
{
	fake_event_free(call(f, name, script, text));
}

static struct space_stats stats(struct fake *f)
{
	struct space_stats st;

	space_stats(f->space, &st);
	return st;
}

static uint64_t last_mark(const struct fake *f)
{
	return f->next_mark - 1;
}

/* ------------------------------------------------------- one event, the gate
 */

TEST(a_write_is_answered_when_it_is_committed_and_not_before)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = send(f, "a", do_put, "v");

	EXPECT_UINT(e->runs, 0);
	fake_storage_finish_all(f->storage);
	EXPECT_UINT(e->runs, 1);
	fake_turn(f);
	fake_prove(f);
	EXPECT_FALSE(e->done); /* OG1 */
	fake_commit_all(f);
	EXPECT_UINT(number(e), 1);
	EXPECT_UINT(e->ev.index, 1);
	EXPECT_UINT(e->ev.term, f->epoch);
	/* Its own entry is proof enough. */
	EXPECT_UINT(f->proofs, 0);
	fake_event_free(e);
	fake_free(f);
}

TEST(a_read_needs_a_proof_and_nothing_else)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	call_free(f, "a", do_put, "v");
	e = send(f, "a", do_get, NULL);
	fake_turn(f);
	EXPECT_FALSE(e->done);
	EXPECT_UINT(f->proofs, 1);
	fake_prove(f);
	expect_text(e, "v");
	EXPECT_UINT(f->units_all, 1);
	EXPECT_UINT(e->ev.index, 1);
	fake_event_free(e);
	fake_free(f);
}

TEST(a_proof_that_was_asked_for_earlier_does_not_serve)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a;
	struct fake_event *b;

	call_free(f, "a", do_put, "v");
	a = send(f, "a", do_get, NULL);
	/* The round for `a` is on its way: what comes now asks anew. */
	f->proved = f->ticket;
	b = send(f, "a", do_get, NULL);
	space_proved(f->space, f->proved, RC_OK);
	fake_turn(f);
	EXPECT_TRUE(a->done);
	EXPECT_FALSE(b->done);
	fake_prove(f);
	EXPECT_TRUE(b->done);
	fake_event_free(a);
	fake_event_free(b);
	fake_free(f);
}

TEST(a_read_of_what_is_not_committed_waits_for_it)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *w;
	struct fake_event *r;
	struct fake_event *other;

	call_free(f, "a", do_put, "old");
	call_free(f, "b", do_put, "other");
	w = send(f, "a", do_put, "new");
	r = send(f, "a", do_get, NULL);
	other = send(f, "b", do_get, NULL);
	fake_prove(f);
	EXPECT_FALSE(r->done);       /* OG3 */
	expect_text(other, "other"); /* OG4: for nothing else. */
	fake_commit_all(f);
	EXPECT_TRUE(w->done);
	expect_text(r, "new");
	fake_event_free(w);
	fake_event_free(r);
	fake_event_free(other);
	fake_free(f);
}

TEST(an_error_waits_like_an_answer)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *w;
	struct fake_event *e;

	call_free(f, "a", do_put, "old");
	w = send(f, "a", do_put, "new");
	e = send(f, "a", do_conflict, NULL);
	fake_prove(f);
	EXPECT_FALSE(e->done);
	fake_commit_all(f);
	expect_end(e, RC_CONFLICT, OUTCOME_REFUSED);
	EXPECT_STR(e->ev.why.field, "if_rev");
	EXPECT_STR(e->ev.why.text, "it is 7");
	fake_event_free(w);
	fake_event_free(e);
	/* Nothing of what it staged is left, and no proof is no answer. */
	e = call(f, "a", do_get, NULL);
	expect_text(e, "new");
	fake_event_free(e);
	e = send(f, "a", do_conflict, NULL);
	fake_turn(f);
	EXPECT_FALSE(e->done);
	fake_prove(f);
	EXPECT_TRUE(e->done);
	fake_event_free(e);
	EXPECT_UINT(f->units_all, 2);
	fake_free(f);
}

TEST(answers_leave_in_the_order_of_their_commits)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[6];
	int i;

	call_free(f, "a", do_put, "0");
	for (i = 0; i < 6; i++)
		e[i] = send(f, "a", do_add, NULL);
	EXPECT_UINT(e[5]->runs, 1); /* They run at once. */
	fake_commit(f, 4);
	for (i = 0; i < 6; i++)
		EXPECT_TRUE(e[i]->done == (i < 3));
	fake_commit_all(f);
	for (i = 0; i < 6; i++) {
		EXPECT_UINT(number(e[i]), (uint64_t)i + 1);
		EXPECT_UINT(e[i]->order, (unsigned)i + 2);
		fake_event_free(e[i]);
	}
	fake_free(f);
}

TEST(many_marks_under_way_are_released_one_by_one)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[500];
	char name[24];
	size_t i;

	for (i = 0; i < 500; i++) {
		(void)snprintf(name, sizeof(name), "o%zu", i);
		e[i] = send(f, name, do_add, NULL);
	}
	fake_storage_finish_all(f->storage);
	EXPECT_UINT(last_mark(f), 500);
	for (i = 0; i < 500; i++) {
		fake_commit(f, i + 1);
		EXPECT_UINT(fake_done, i + 1);
		EXPECT_TRUE(e[i]->done);
		EXPECT_UINT(e[i]->ev.index, i + 1);
	}
	for (i = 0; i < 500; i++)
		fake_event_free(e[i]);
	fake_free(f);
}

/* -------------------------------------------------------- what one event sees
 */

static enum run do_put_then_get(struct fake_event *e)
{
	struct row_view row;

	if (ev_put(&e->ev, ROW_DATA, str("k"), str("mine"), 0) != RC_OK ||
	    ev_delete(&e->ev, ROW_DATA, str("k")) != RC_OK)
		return RUN_LOAD;
	if (ev_get(&e->ev, ROW_DATA, str("k"), &row) != RC_NOT_FOUND)
		return ev_fail(&e->ev, RC_INVALID, NULL, "it is there");
	if (ev_put(&e->ev, ROW_DATA, str("k"), str("mine again"), 0) != RC_OK ||
	    ev_get(&e->ev, ROW_DATA, str("k"), &row) != RC_OK)
		return ev_fail(&e->ev, RC_INVALID, NULL, "it is not there");
	EXPECT_UINT(ev_rows(&e->ev), 1);
	pack_str(&e->ev.result, (const char *)row.value.p, row.value.n);
	return RUN_DONE;
}

TEST(an_event_sees_what_it_staged_and_one_row_reaches_the_log)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = send(f, "a", do_put_then_get, NULL);
	struct fake_unit *u;
	struct unit_row row;
	struct entry_r entry;
	struct unit_r unit;
	struct pack_w w;

	fake_storage_finish_all(f->storage);
	u = STAILQ_FIRST(&f->units);
	EXPECT_NOT_NULL(u);
	pack_w_init(&w, 4096);
	entry_begin(&w, 1, 1, 1, 1);
	pack_raw(&w, u->bytes, u->n);
	EXPECT_RC(entry_read(w.p, w.n, &entry), RC_OK);
	EXPECT_RC(entry_next(&entry, &unit), RC_OK);
	EXPECT_UINT(unit.rows, 1);
	EXPECT_RC(unit_next(&unit, &row), RC_OK);
	EXPECT_TRUE(pack_bytes_eq(row.key, "k", 1));
	pack_w_release(&w);
	fake_go(f);
	expect_text(e, "mine again");
	fake_event_free(e);
	fake_free(f);
}

static enum run do_three(struct fake_event *e)
{
	if (ev_put(&e->ev, ROW_DATA, str("x"), str("1"), 0) != RC_OK ||
	    ev_put(&e->ev, ROW_DATA, str("y"), str("2"), 0) != RC_OK ||
	    ev_put(&e->ev, ROW_CONFIG, str("z"), str("3"), 0) != RC_OK)
		return RUN_LOAD;
	pack_nil(&e->ev.result);
	return RUN_DONE;
}

TEST(what_one_event_changes_is_one_unit)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct object_head head;
	struct fake_event *e = send(f, "a", do_three, NULL);

	fake_storage_finish_all(f->storage);
	EXPECT_UINT(f->units_all, 1);
	fake_go(f);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 2);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_CONFIG), 1);
	EXPECT_RC(object_head_read(&oid, fake_storage_head(f->storage, &oid),
				   &head),
		  RC_OK);
	EXPECT_TRUE(pack_bytes_eq(head.tenant, "default", 7));
	EXPECT_TRUE(pack_bytes_eq(head.env, "dev", 3));
	EXPECT_TRUE(pack_bytes_eq(head.cls, "t", 1));
	EXPECT_TRUE(pack_bytes_eq(head.name, "a", 1));
	EXPECT_UINT(head.rows, 2);
	EXPECT_UINT(head.bytes, 6);
	EXPECT_FALSE(head.destroyed);
	EXPECT_INT(f->admitted_objects, 1);
	EXPECT_INT(f->admitted_bytes, 6);
	fake_event_free(e);
	fake_free(f);
}

TEST(an_unreadable_head_is_found_out)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct object_head head;
	struct pack_bytes sealed;
	uint8_t *p;
	size_t n;

	call_free(f, "a", do_put, "v");
	sealed = fake_storage_head(f->storage, &oid);
	EXPECT_RC(object_head_read(&oid, sealed, &head), RC_OK);
	for (n = 0; n < sealed.n; n++)
		EXPECT_RC(object_head_read(&oid, bytes(sealed.p, n), &head),
			  RC_CORRUPT);
	p = malloc(sealed.n);
	memcpy(p, sealed.p, sealed.n);
	p[6] = 2; /* The version, behind seal and array. */
	EXPECT_RC(object_head_read(&oid, bytes(p, sealed.n), &head),
		  RC_VERSION);
	free(p);
	fake_free(f);
}

/* --------------------------------------------------------- mailbox and loads
 */

TEST(calls_to_a_cold_object_share_one_load_and_keep_their_order)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[10];
	int i;

	call_free(f, "a", do_put, "v");
	fake_change(f);
	for (i = 0; i < 10; i++)
		e[i] = send(f, "a", do_add, NULL);
	EXPECT_UINT(fake_storage_waiting(f->storage), 1); /* SO7 */
	EXPECT_UINT(stats(f).resident, 1);
	EXPECT_UINT(stats(f).waiting, 10);
	fake_go(f);
	for (i = 0; i < 10; i++) {
		EXPECT_UINT(number(e[i]), (uint64_t)i + 1);
		fake_event_free(e[i]);
	}
	EXPECT_UINT(stats(f).waiting, 0);
	fake_free(f);
}

TEST(a_cancelled_waiter_leaves_its_place_to_the_next)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = send(f, "a", do_add, NULL);
	struct fake_event *b = send(f, "a", do_add, NULL);
	struct fake_event *c = send(f, "a", do_add, NULL);

	event_cancel(&b->ev, RC_CANCELLED);
	fake_turn(f);
	expect_end(b, RC_CANCELLED, OUTCOME_REFUSED);
	event_cancel(&a->ev, RC_DEADLINE);
	fake_turn(f);
	expect_end(a, RC_DEADLINE, OUTCOME_REFUSED);
	fake_go(f);
	EXPECT_UINT(number(c), 1);
	EXPECT_UINT(a->runs + b->runs, 0);
	fake_event_free(a);
	fake_event_free(b);
	fake_event_free(c);
	fake_free(f);
}

TEST(a_full_mailbox_refuses_with_a_time)
{
	struct fake *f = fake_new(NULL);
	struct fake_event **e = calloc(MAILBOX_MAX, sizeof(*e));
	struct fake_event *over;
	size_t i;

	for (i = 0; i < MAILBOX_MAX; i++)
		e[i] = send(f, "a", do_nothing, NULL);
	over = send(f, "a", do_nothing, NULL);
	fake_turn(f);
	expect_end(over, RC_OVERLOADED, OUTCOME_REFUSED);
	EXPECT_INT(over->ev.retry_after_ms, RETRY_AFTER_MS);
	EXPECT_FALSE(e[0]->done);
	fake_event_free(over);
	fake_go(f);
	for (i = 0; i < MAILBOX_MAX; i++)
		fake_event_free(e[i]);
	free(e);
	fake_free(f);
}

TEST(who_does_not_own_refuses)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	fake_lose(f);
	e = send(f, "a", do_put, "v");
	fake_turn(f);
	expect_end(e, RC_NOT_OWNER, OUTCOME_REFUSED);
	EXPECT_UINT(e->runs, 0);
	fake_event_free(e);
	fake_lead(f);
	fake_free(f);
}

TEST(a_load_that_fails_ends_who_waited_for_it)
{
	static const struct {
		enum rc load;
		enum rc shown;
	} cases[] = {
		{ RC_CORRUPT, RC_NOT_OWNER },
		{ RC_IO, RC_INTERNAL },
		{ RC_CANCELLED, RC_NOT_OWNER },
	};
	struct fake *f = fake_new(NULL);
	struct fake_event *e[2];
	size_t i;

	for (i = 0; i < 3; i++) {
		e[0] = send(f, "a", do_get, NULL);
		e[1] = send(f, "a", do_put, "v");
		fake_storage_finish(f->storage, 0, cases[i].load);
		fake_turn(f);
		expect_end(e[0], cases[i].shown, OUTCOME_REFUSED);
		expect_end(e[1], cases[i].shown, OUTCOME_REFUSED);
		fake_event_free(e[0]);
		fake_event_free(e[1]);
		EXPECT_UINT(stats(f).resident, 0);
	}
	call_free(f, "a", do_put, "v");
	fake_free(f);
}

TEST(a_row_that_cannot_be_opened_is_not_served)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct fake_event *e;

	call_free(f, "a", do_put, "v");
	fake_change(f);
	fake_storage_damage(f->storage, &oid, ROW_DATA, str("k"));
	e = call(f, "a", do_get, NULL);
	expect_end(e, RC_INTERNAL, OUTCOME_REFUSED);
	fake_event_free(e);
	fake_free(f);
}

/* ----------------------------------------------------------- large objects */

static enum run do_fill(struct fake_event *e)
{
	char value[1000];
	char key[24];
	bool all = true;
	int64_t i;
	enum rc rc;

	for (i = e->n; i < e->n + 100; i++) {
		(void)snprintf(key, sizeof(key), "%05" PRId64, i * 2);
		if (ev_want(&e->ev, ROW_DATA, str(key)) != RC_OK)
			all = false;
	}
	if (!all)
		return RUN_LOAD;
	memset(value, 'v', sizeof(value));
	for (i = e->n; i < e->n + 100; i++) {
		(void)snprintf(key, sizeof(key), "%05" PRId64, i * 2);
		rc = ev_put(&e->ev, ROW_DATA, str(key),
			    bytes(value, sizeof(value)), 0);
		if (rc != RC_OK)
			return again_or_fail(e, rc);
	}
	(void)ev_bump(&e->ev);
	pack_nil(&e->ev.result);
	return RUN_DONE;
}

/* 600 rows with even keys, 600 kB: not loaded whole. */
static void fill(struct fake *f, const char *name)
{
	struct fake_event *e;
	int64_t i;

	for (i = 0; i < 600; i += 100) {
		e = fake_event(f, &strict, name, "put");
		e->script = do_fill;
		e->n = i;
		fake_send(f, e);
		fake_go(f);
		EXPECT_RC(e->ev.rc, RC_OK);
		fake_event_free(e);
		fake_store(f);
	}
	fake_change(f);
}

static enum run do_get_n(struct fake_event *e)
{
	struct row_view row;
	char key[24];
	enum rc rc;

	(void)snprintf(key, sizeof(key), "%05" PRId64, e->n);
	rc = ev_get(&e->ev, ROW_DATA, str(key), &row);
	if (rc != RC_OK)
		return again_or_fail(e, rc);
	pack_u64(&e->ev.result, row.value.n);
	return RUN_DONE;
}

static struct fake_event *call_n(struct fake *f, const char *name,
				 enum run (*script)(struct fake_event *e),
				 int64_t n)
{
	struct fake_event *e = fake_event(f, &strict, name, "put");

	e->script = script;
	e->n = n;
	fake_send(f, e);
	fake_go(f);
	EXPECT_TRUE(e->done);
	return e;
}

TEST(of_a_large_object_single_rows_are_loaded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	fill(f, "a");
	e = call_n(f, "a", do_get_n, 500);
	EXPECT_UINT(number(e), 1000);
	EXPECT_UINT(e->runs, 2); /* Loaded for, then run again. */
	fake_event_free(e);
	EXPECT_UINT(stats(f).loads, 2 + 1); /* One when it was filled. */
	EXPECT_TRUE(stats(f).resident_bytes < 4096);
	e = call_n(f, "a", do_get_n, 501);
	expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
	fake_event_free(e);
	/* It is known now, the absent one too. */
	e = call_n(f, "a", do_get_n, 501);
	EXPECT_UINT(e->runs, 1);
	fake_event_free(e);
	fake_free(f);
}

TEST(while_a_row_is_loaded_nobody_else_enters)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a;
	struct fake_event *b;

	fill(f, "a");
	a = fake_event(f, &strict, "a", "put");
	a->script = do_get_n;
	a->n = 500;
	fake_send(f, a);
	b = send(f, "a", do_nothing, NULL);
	fake_storage_finish(f->storage, 0, RC_OK);
	EXPECT_UINT(a->runs, 1);
	EXPECT_UINT(b->runs, 0);
	fake_storage_finish(f->storage, 0, RC_OK);
	EXPECT_UINT(a->runs, 2);
	EXPECT_UINT(b->runs, 1);
	fake_go(f);
	EXPECT_TRUE(a->order < b->order);
	fake_event_free(a);
	fake_event_free(b);
	fake_free(f);
}

TEST(an_event_whose_row_cannot_be_loaded_ends_and_the_next_goes_on)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a;
	struct fake_event *b;

	fill(f, "a");
	a = fake_event(f, &strict, "a", "put");
	a->script = do_get_n;
	fake_send(f, a);
	b = send(f, "a", do_nothing, NULL);
	fake_storage_finish(f->storage, 0, RC_OK);
	fake_storage_finish(f->storage, 0, RC_CORRUPT);
	fake_go(f);
	expect_end(a, RC_NOT_OWNER, OUTCOME_REFUSED);
	EXPECT_RC(b->ev.rc, RC_OK);
	fake_event_free(a);
	fake_event_free(b);
	/* The same, when it gave up meanwhile: nobody else pays for it. */
	fake_change(f);
	a = fake_event(f, &strict, "a", "put");
	a->script = do_get_n;
	fake_send(f, a);
	b = send(f, "a", do_nothing, NULL);
	fake_storage_finish(f->storage, 0, RC_OK);
	event_cancel(&a->ev, RC_DEADLINE);
	fake_turn(f);
	expect_end(a, RC_DEADLINE, OUTCOME_REFUSED);
	EXPECT_UINT(b->runs, 0);
	fake_storage_finish(f->storage, 0, RC_CORRUPT);
	fake_go(f);
	EXPECT_RC(b->ev.rc, RC_OK);
	fake_event_free(a);
	fake_event_free(b);
	fake_free(f);
}

struct seen {
	char keys[2000][8];
	unsigned n;
	unsigned most;
};

static bool see(void *arg, const struct row_view *row)
{
	struct seen *s = arg;

	(void)snprintf(s->keys[s->n++], 8, "%.*s", (int)row->key.n,
		       (const char *)row->key.p);
	return s->n < s->most;
}

struct scan_case {
	const char *start, *end;
	bool reverse;
	unsigned most;
};
static struct scan_case scan_now;
static struct seen seen;

static enum run do_scan(struct fake_event *e)
{
	struct pack_bytes start = none;
	struct pack_bytes end = none;

	if (scan_now.start != NULL)
		start = str(scan_now.start);
	if (scan_now.end != NULL)
		end = str(scan_now.end);
	seen.n = 0;
	seen.most = scan_now.most;
	/* Something staged on the way: a new row, a changed one, one gone. */
	if (ev_put(&e->ev, ROW_DATA, str("00301"), str("new"), 0) != RC_OK ||
	    ev_put(&e->ev, ROW_DATA, str("00300"), str("other"), 0) != RC_OK ||
	    ev_delete(&e->ev, ROW_DATA, str("00302")) != RC_OK)
		return RUN_LOAD;
	if (ev_scan(&e->ev, ROW_DATA, start, end, scan_now.reverse, see,
		    &seen) != RC_OK)
		return RUN_LOAD;
	return ev_fail(&e->ev, RC_CONFLICT, NULL, "nothing is kept");
}

static bool model_has(unsigned i)
{
	return i == 301 || (i % 2 == 0 && i < 1200 && i != 302);
}

static void expect_scan(void)
{
	unsigned from =
		scan_now.start != NULL ? (unsigned)atoi(scan_now.start) : 0;
	unsigned to =
		scan_now.end != NULL ? (unsigned)atoi(scan_now.end) : 1300;
	unsigned n = 0;
	unsigned i;
	unsigned k;

	for (i = from; i < to && n < scan_now.most; i++) {
		k = scan_now.reverse ? from + to - 1 - i : i;
		if (!model_has(k))
			continue;
		EXPECT_TRUE(n < seen.n);
		EXPECT_INT(atoi(seen.keys[n]), k);
		n++;
	}
	EXPECT_UINT(seen.n, n);
}

TEST(a_scan_of_a_large_object_sees_what_a_sorted_map_would)
{
	static const struct scan_case cases[] = {
		{ NULL, NULL, false, 2000 },
		{ NULL, NULL, true, 2000 },
		{ "00290", "00310", false, 2000 },
		{ "00290", "00310", true, 2000 },
		{ "00291", "00311", true, 5 },
		{ "00301", "00302", false, 9 },
		{ "00301", "00302", true, 9 },
		{ "00302", "00302", true, 9 },
		{ "00303", NULL, false, 300 },
		{ NULL, "00299", true, 300 },
		{ "01200", NULL, false, 9 },
		{ "01200", NULL, true, 9 },
		{ NULL, NULL, true, 1 },
		{ NULL, NULL, false, 1 },
	};
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	size_t i;
	int warm;

	fill(f, "a");
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (warm = 0; warm < 2; warm++) {
			runner_context("case %zu, warm %d", i, warm);
			scan_now = cases[i];
			e = call(f, "a", do_scan, NULL);
			expect_end(e, RC_CONFLICT, OUTCOME_REFUSED);
			expect_scan();
			if (warm == 1)
				EXPECT_UINT(e->runs, 1);
			fake_event_free(e);
		}
		fake_change(f);
	}
	/* One after the other, on what the one before has left. */
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		scan_now = cases[i];
		e = call(f, "a", do_scan, NULL);
		expect_scan();
		fake_event_free(e);
	}
	fake_free(f);
}

static enum run do_get_many(struct fake_event *e)
{
	struct row_view row;
	char key[24];
	int64_t i;
	enum rc rc;

	for (i = 0; i < e->n; i++) {
		(void)snprintf(key, sizeof(key), "%05" PRId64, i);
		rc = ev_get(&e->ev, ROW_DATA, str(key), &row);
		if (rc == RC_AGAIN)
			return RUN_LOAD;
	}
	pack_u64(&e->ev.result, (uint64_t)e->n);
	return RUN_DONE;
}

static enum run do_want_many(struct fake_event *e)
{
	char key[24];
	bool all = true;
	int64_t i;

	for (i = 0; i < e->n; i++) {
		(void)snprintf(key, sizeof(key), "%05" PRId64, i);
		if (ev_want(&e->ev, ROW_DATA, str(key)) != RC_OK)
			all = false;
	}
	return all ? do_get_many(e) : RUN_LOAD;
}

TEST(the_loads_of_one_event_are_bounded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	fill(f, "a");
	e = call_n(f, "a", do_get_many, EVENT_LOADS_MAX);
	EXPECT_UINT(number(e), EVENT_LOADS_MAX);
	fake_event_free(e);
	fake_change(f);
	e = call_n(f, "a", do_get_many, EVENT_LOADS_MAX + 1);
	expect_end(e, RC_OVERLOADED, OUTCOME_REFUSED);
	EXPECT_INT(e->ev.retry_after_ms, RETRY_AFTER_MS);
	fake_event_free(e);
	/* Who names its rows beforehand has them with one. */
	fake_change(f);
	e = call_n(f, "a", do_want_many, 1000);
	EXPECT_UINT(number(e), 1000);
	EXPECT_UINT(e->runs, 2);
	fake_event_free(e);
	fake_free(f);
}

TEST(what_was_written_meanwhile_wins_over_what_is_loaded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	char before[24];
	char after[24];

	fill(f, "a");
	/* Written and deleted, committed, but nothing of it applied: the fake
	 * storage applies at commit, so it is not committed either. */
	e = call_n(f, "a", do_get_n, 302);
	fake_event_free(e);
	scan_now = (struct scan_case){ NULL, NULL, false, 2000 };
	e = send(f, "a", do_delete, NULL);
	fake_event_free((fake_go(f), e));
	e = send(f, "a", do_put, "unstored");
	(void)snprintf(before, sizeof(before), "%u", seen.n);
	EXPECT_FALSE(e->done);
	fake_storage_finish_all(f->storage);
	fake_event_free((fake_go(f), e));
	e = call(f, "a", do_get, NULL);
	expect_text(e, "unstored");
	fake_event_free(e);
	(void)snprintf(after, sizeof(after), "%u", seen.n);
	EXPECT_STR(before, after);
	fake_free(f);
}

/* ------------------------------------------------------------ refused writes
 */

TEST(what_cannot_be_proposed_did_not_happen)
{
	static const enum rc codes[][2] = {
		{ RC_TERM, RC_NOT_OWNER },
		{ RC_OVERLOADED, RC_OVERLOADED },
		{ RC_NO_SPACE, RC_NO_SPACE },
	};
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	int64_t booked;
	size_t i;

	call_free(f, "a", do_put, "old");
	booked = f->admitted_bytes;
	for (i = 0; i < 3; i++) {
		f->propose_rc = codes[i][0];
		e = call(f, "a", do_put, "a longer one");
		expect_end(e, codes[i][1], OUTCOME_REFUSED);
		fake_event_free(e);
		EXPECT_TRUE(f->admitted_bytes == booked);
		f->propose_rc = RC_OK;
		e = call(f, "a", do_get, NULL);
		expect_text(e, "old");
		fake_event_free(e);
	}
	fake_free(f);
}

TEST(at_a_cap_growth_is_refused_and_deletes_go_on)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	call_free(f, "a", do_put, "1234567890");
	f->admit_rc = RC_NO_SPACE;
	e = call(f, "b", do_put, "v");
	expect_end(e, RC_NO_SPACE, OUTCOME_REFUSED);
	fake_event_free(e);
	e = call(f, "a", do_put, "12345678901");
	expect_end(e, RC_NO_SPACE, OUTCOME_REFUSED);
	EXPECT_STR(e->ev.why.text, "no more");
	fake_event_free(e);
	e = call(f, "a", do_put, "123");
	EXPECT_UINT(number(e), 2);
	fake_event_free(e);
	EXPECT_INT(f->admitted_bytes, 4);
	e = call(f, "a", do_delete, NULL);
	EXPECT_UINT(number(e), 3);
	fake_event_free(e);
	EXPECT_INT(f->admitted_bytes, 0);
	e = call(f, "a", do_destroy, NULL);
	EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_INT(f->admitted_objects, 0);
	fake_event_free(e);
	fake_free(f);
}

static enum run do_too_much(struct fake_event *e)
{
	static uint8_t value[VALUE_BYTES_MAX];
	char key[24];
	enum rc rc = RC_OK;
	int i;

	for (i = 0; rc == RC_OK; i++) {
		(void)snprintf(key, sizeof(key), "%d", i);
		rc = ev_put(&e->ev, ROW_DATA, str(key),
			    bytes(value, sizeof(value)), 0);
	}
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	EXPECT_RC(rc, RC_OVERLOADED);
	EXPECT_INT(i, 2);
	return ev_fail(&e->ev, RC_INVALID, NULL, "too much");
}

static enum run do_too_many(struct fake_event *e)
{
	char key[24];
	enum rc rc = RC_OK;
	unsigned i;

	for (i = 0; rc == RC_OK; i++) {
		(void)snprintf(key, sizeof(key), "%u", i);
		rc = ev_put(&e->ev, ROW_DATA, str(key), none, 0);
	}
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	EXPECT_RC(rc, RC_OVERLOADED);
	EXPECT_UINT(i, EVENT_ROWS_MAX + 1);
	return ev_fail(&e->ev, RC_INVALID, NULL, "too many");
}

static enum run do_large_answer(struct fake_event *e)
{
	static uint8_t value[RESULT_BYTES_MAX];

	if (ev_put(&e->ev, ROW_DATA, str("k"), str("v"), 0) != RC_OK)
		return RUN_LOAD;
	pack_bin(&e->ev.result, value, sizeof(value));
	return RUN_DONE;
}

TEST(what_one_event_may_do_is_bounded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	e = call(f, "a", do_too_much, NULL);
	expect_end(e, RC_INVALID, OUTCOME_REFUSED);
	fake_event_free(e);
	e = call(f, "a", do_too_many, NULL);
	expect_end(e, RC_INVALID, OUTCOME_REFUSED);
	fake_event_free(e);
	e = call(f, "a", do_large_answer, NULL);
	expect_end(e, RC_INVALID, OUTCOME_REFUSED);
	fake_event_free(e);
	EXPECT_UINT(f->units_all, 0);
	fake_free(f);
}

/* -------------------------------------------------------------- leadership */

TEST(a_hundred_held_answers_are_unknown_when_the_shard_is_lost)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[100];
	struct fake_event *r;
	struct fake_event *first;
	int i;

	first = call(f, "a", do_add, NULL);
	fake_event_free(first);
	for (i = 0; i < 100; i++)
		e[i] = send(f, "a", do_add, NULL);
	r = send(f, "a", do_get, NULL);
	fake_commit(f, 11);
	fake_lose(f);
	for (i = 0; i < 100; i++) {
		runner_context("event %d", i);
		if (i < 10)
			EXPECT_UINT(number(e[i]), (uint64_t)i + 2);
		else
			expect_end(e[i], RC_UNKNOWN_OUTCOME,
				   OUTCOME_UNKNOWN); /* OG2 */
		fake_event_free(e[i]);
	}
	expect_end(r, RC_NOT_OWNER, OUTCOME_REFUSED);
	fake_event_free(r);
	EXPECT_UINT(stats(f).resident, 0);
	/* What was computed and not committed is seen by nobody. */
	fake_lead(f);
	first = call(f, "a", do_add, NULL);
	EXPECT_UINT(number(first), 12);
	fake_event_free(first);
	fake_free(f);
}

TEST(who_only_waited_is_refused_when_the_shard_is_lost)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = send(f, "a", do_add, NULL);
	struct fake_event *b = send(f, "a", do_add, NULL);

	fake_lose(f);
	expect_end(a, RC_NOT_OWNER, OUTCOME_REFUSED);
	expect_end(b, RC_NOT_OWNER, OUTCOME_REFUSED);
	fake_event_free(a);
	fake_event_free(b);
	/* The load goes on in the background, and is of no use to the next
	 * instance. */
	EXPECT_UINT(fake_storage_waiting(f->storage), 1);
	fake_lead(f);
	a = send(f, "a", do_add, NULL);
	EXPECT_UINT(fake_storage_waiting(f->storage), 2);
	fake_storage_finish(f->storage, 0, RC_OK);
	EXPECT_UINT(a->runs, 0);
	fake_go(f);
	EXPECT_UINT(number(a), 1);
	fake_event_free(a);
	fake_free(f);
}

TEST(a_failed_proof_ends_who_needed_it)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *r;
	struct fake_event *w;

	call_free(f, "a", do_put, "v");
	r = send(f, "a", do_get, NULL);
	w = send(f, "a", do_put, "w");
	fake_fail_proof(f, RC_NOT_LEADER);
	expect_end(r, RC_NOT_OWNER, OUTCOME_REFUSED);
	EXPECT_FALSE(w->done);
	fake_commit_all(f);
	EXPECT_UINT(number(w), 2);
	fake_event_free(r);
	fake_event_free(w);
	/* The next asks again. */
	r = call(f, "a", do_get, NULL);
	expect_text(r, "w");
	fake_event_free(r);
	fake_free(f);
}

TEST(cancelling_at_the_gate)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *w;
	struct fake_event *r;
	struct fake_event *next;

	call_free(f, "a", do_put, "v");
	w = send(f, "a", do_put, "w");
	r = send(f, "a", do_get, NULL);
	event_cancel(&w->ev, RC_DEADLINE);
	event_cancel(&r->ev, RC_DEADLINE);
	fake_turn(f);
	expect_end(w, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	EXPECT_HAS(w->ev.why.text, "deadline");
	expect_end(r, RC_DEADLINE, OUTCOME_REFUSED);
	next = call(f, "a", do_get, NULL);
	expect_text(next, "w");
	fake_event_free(w);
	fake_event_free(r);
	fake_event_free(next);
	/* One whose end is settled keeps it. */
	w = send(f, "a", do_put, "x");
	space_committed(f->space, last_mark(f), 99);
	event_cancel(&w->ev, RC_CANCELLED);
	fake_turn(f);
	EXPECT_UINT(number(w), 3);
	fake_event_free(w);
	fake_commit_all(f);
	fake_free(f);
}

/* ---------------------------------------------------------------- eviction */

static const struct residents_config small = {
	.objects_max = 4,
	.bytes_max = 1u << 20,
	.idle_ms = 2000,
};

TEST(an_idle_object_is_evicted_when_its_last_effect_is_stored)
{
	struct fake *f = fake_new(&small);
	struct fake_event *e;

	call_free(f, "a", do_put, "v");
	fake_advance(f, 3000);
	fake_advance(f, 3000);
	EXPECT_UINT(stats(f).resident, 1); /* Not stored. */
	fake_store(f);
	fake_advance(f, 3000);
	fake_advance(f, 3000);
	EXPECT_UINT(stats(f).resident, 0);
	EXPECT_UINT(stats(f).evictions, 1);
	EXPECT_UINT(stats(f).resident_bytes, 0);
	e = call(f, "a", do_get, NULL);
	expect_text(e, "v");
	EXPECT_UINT(stats(f).loads, 2);
	fake_event_free(e);
	fake_free(f);
}

TEST(an_object_in_use_is_not_evicted)
{
	struct fake *f = fake_new(&small);
	struct fake_event *e = send(f, "a", do_put, "v");

	fake_advance(f, 3000);
	fake_advance(f, 3000);
	EXPECT_UINT(stats(f).resident, 1); /* It is being loaded. */
	fake_go(f);
	fake_store(f);
	fake_event_free(e);
	for (e = NULL; e == NULL || fake_done < 10;) {
		fake_advance(f, 1000);
		e = call(f, "a", do_get, NULL);
		expect_text(e, "v");
		fake_event_free(e);
	}
	EXPECT_UINT(stats(f).loads, 1);
	fake_free(f);
}

TEST(room_is_made_by_evicting_what_was_used_longest_ago)
{
	const struct residents_config cfg = { 4, 1u << 20, 100000 };
	struct fake *f = fake_new(&cfg);
	struct fake_event *e;
	char name[24];
	int i;

	for (i = 0; i < 4; i++) {
		(void)snprintf(name, sizeof(name), "o%d", i);
		call_free(f, name, do_put, name);
		fake_store(f);
		fake_advance(f, 2000);
	}
	call_free(f, "o4", do_put, "o4");
	EXPECT_UINT(stats(f).resident, 4);
	EXPECT_UINT(stats(f).evictions, 1);
	e = call(f, "o1", do_get, NULL);
	expect_text(e, "o1");
	EXPECT_UINT(stats(f).loads, 5);
	fake_event_free(e);
	fake_free(f);
}

TEST(when_nothing_can_be_evicted_a_new_object_is_refused)
{
	struct fake *f = fake_new(&small);
	struct fake_event *e;
	char name[24];
	int i;

	for (i = 0; i < 4; i++) {
		(void)snprintf(name, sizeof(name), "o%d", i);
		call_free(f, name, do_put, name); /* Never stored. */
	}
	EXPECT_UINT(fake_storage_flushes(f->storage), 0);
	e = call(f, "o4", do_put, "o4");
	expect_end(e, RC_OVERLOADED, OUTCOME_REFUSED);
	fake_event_free(e);
	/* Storage is told not to wait for the end of its window. */
	EXPECT_TRUE(fake_storage_flushes(f->storage) > 0);
	/* Those that are there go on, and room comes with storage. */
	call_free(f, "o0", do_put, "again");
	fake_store(f);
	call_free(f, "o4", do_put, "o4");
	EXPECT_UINT(stats(f).resident, 4);
	fake_free(f);
}

TEST(a_large_object_in_use_gives_back_what_can_be_loaded)
{
	struct residents_config cfg = small;
	struct fake *f;
	struct fake_event *e;

	cfg.bytes_max = 200000;
	f = fake_new(&cfg);
	fill(f, "a");
	scan_now = (struct scan_case){ NULL, NULL, false, 2000 };
	e = call(f, "a", do_scan, NULL);
	expect_scan();
	EXPECT_TRUE(stats(f).resident_bytes < 200000);
	fake_event_free(e);
	e = call_n(f, "a", do_get_n, 4);
	EXPECT_UINT(number(e), 1000);
	fake_event_free(e);
	fake_free(f);
}

static enum run do_put_n(struct fake_event *e)
{
	char key[24];

	(void)snprintf(key, sizeof(key), "%05" PRId64, e->n);
	if (ev_put(&e->ev, ROW_DATA, str(key), str("new"), 0) != RC_OK)
		return RUN_LOAD;
	return RUN_DONE;
}

static enum run do_delete_n(struct fake_event *e)
{
	char key[24];

	(void)snprintf(key, sizeof(key), "%05" PRId64, e->n);
	if (ev_delete(&e->ev, ROW_DATA, str(key)) != RC_OK)
		return RUN_LOAD;
	return RUN_DONE;
}

static bool count_row(void *arg, const struct row_view *row)
{
	(void)row;
	++*(uint64_t *)arg;
	return true;
}

static enum run do_count(struct fake_event *e)
{
	uint64_t n = 0;

	if (ev_scan(&e->ev, ROW_DATA, none, none, false, count_row, &n) !=
	    RC_OK)
		return RUN_LOAD;
	pack_u64(&e->ev.result, n);
	return RUN_DONE;
}

/* Begins; what it loads comes, and nothing is committed. */
static struct fake_event *begin_n(struct fake *f,
				  enum run (*script)(struct fake_event *e),
				  int64_t n)
{
	struct fake_event *e = fake_event(f, &strict, "a", "put");
	int i;

	e->script = script;
	e->n = n;
	fake_send(f, e);
	for (i = 0; i < 40; i++) {
		fake_storage_finish_all(f->storage);
		fake_turn(f);
	}
	EXPECT_FALSE(e->done);
	return e;
}

/* The storage does not know yet what is not committed. */
TEST(what_is_loaded_is_never_newer_than_memory)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *put;
	struct fake_event *count;
	struct fake_event *get;

	fill(f, "a");
	put = begin_n(f, do_put_n, 4);
	count = begin_n(f, do_count, 0);
	get = begin_n(f, do_get_n, 4);
	EXPECT_UINT(f->units_n, 1);
	fake_go(f);
	EXPECT_RC(put->ev.rc, RC_OK);
	EXPECT_UINT(number(count), 600);
	EXPECT_UINT(number(get), 3);
	fake_event_free(put);
	fake_event_free(count);
	fake_event_free(get);
	fake_free(f);
}

TEST(what_is_gone_stays_while_others_are_given_back)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *gone;
	struct fake_event *get[2];
	int64_t i;

	for (i = 0; i < 600; i += 100)
		fake_event_free(call_n(f, "a", do_fill, i));
	fake_store(f);
	EXPECT_TRUE(stats(f).resident_bytes > 600000);
	gone = begin_n(f, do_delete_n, 4);
	f->res->cfg.bytes_max = 200000; /* Memory gets short. */
	get[0] = begin_n(f, do_get_n, 2);
	get[1] = begin_n(f, do_get_n, 4);
	EXPECT_UINT(f->units_n, 1);
	fake_go(f);
	EXPECT_RC(gone->ev.rc, RC_OK);
	EXPECT_UINT(number(get[0]), 1000);
	expect_end(get[1], RC_NOT_FOUND, OUTCOME_REFUSED);
	fake_event_free(gone);
	fake_event_free(get[0]);
	fake_event_free(get[1]);
	fake_free(f);
}

TEST(an_idle_object_is_small)
{
	struct fake *f = fake_new(NULL);

	call_free(f, "counter-17", do_add, NULL);
	EXPECT_TRUE(stats(f).resident_bytes <= 600);
	EXPECT_TRUE(sizeof(struct object) <= 400);
	fake_free(f);
}

/* ----------------------------------------------------------- memory, lagged */

static enum run do_spend(struct fake_event *e)
{
	struct row_view row;
	uint64_t n = 0;

	if (ev_get_memory(&e->ev, str("m"), &row) == RC_OK)
		memcpy(&n, row.value.p, sizeof(n));
	n++;
	EXPECT_RC(ev_put_memory(&e->ev, str("m"), bytes(&n, sizeof(n)),
				ev_now(&e->ev) + 10000000000u),
		  RC_OK);
	EXPECT_UINT(ev_memory_rows(&e->ev), 1);
	pack_u64(&e->ev.result, n);
	return RUN_DONE;
}

TEST(memory_rows_are_never_proposed_and_gone_with_the_epoch)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	uint64_t i;

	for (i = 1; i <= 3; i++) {
		e = send_as(f, &memory, "a", do_spend, NULL);
		fake_go(f);
		EXPECT_UINT(number(e), i);
		fake_event_free(e);
	}
	EXPECT_UINT(f->units_all, 0);
	fake_change(f);
	e = send_as(f, &memory, "a", do_spend, NULL);
	fake_go(f);
	EXPECT_UINT(number(e), 1);
	fake_event_free(e);
	fake_free(f);
}

/* Its own answer is lost, but the next ones have shown what it did. */
TEST(what_was_done_in_memory_is_not_refused_when_the_shard_is_lost)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[2];

	fake_advance(f, LAG_MS_DEFAULT + 1);
	e[0] = send_as(f, &memory, "a", do_spend, NULL);
	e[1] = send_as(f, &memory, "a", do_nothing, NULL);
	fake_turn(f);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	EXPECT_UINT(e[0]->runs, 1);
	EXPECT_UINT(e[1]->runs, 1);
	EXPECT_FALSE(e[0]->done);
	EXPECT_FALSE(e[1]->done);
	fake_change(f);
	expect_end(e[0], RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	expect_end(e[1], RC_NOT_OWNER, OUTCOME_REFUSED);
	fake_event_free(e[0]);
	fake_event_free(e[1]);
	fake_free(f);
}

TEST(memory_rows_that_are_not_full_keep_their_object)
{
	struct fake *f = fake_new(&small);
	struct fake_event *e = send_as(f, &memory, "a", do_spend, NULL);
	char name[24];
	int i;

	fake_go(f);
	fake_event_free(e);
	fake_advance(f, 3000);
	fake_advance(f, 3000);
	EXPECT_UINT(stats(f).resident, 1);
	fake_advance(f, 5000);
	fake_advance(f, 3000);
	EXPECT_UINT(stats(f).resident, 0);
	/* But not when room is needed. */
	e = send_as(f, &memory, "a", do_spend, NULL);
	fake_go(f);
	fake_event_free(e);
	for (i = 0; i < 4; i++) {
		(void)snprintf(name, sizeof(name), "m%d", i);
		e = send_as(f, &memory, name, do_spend, NULL);
		fake_go(f);
		EXPECT_UINT(number(e), 1);
		fake_event_free(e);
	}
	EXPECT_UINT(stats(f).resident, 4);
	fake_free(f);
}

TEST(an_error_leaves_no_memory_row)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = send_as(f, &memory, "a", do_spend, NULL);

	fake_go(f);
	EXPECT_UINT(number(e), 1);
	fake_event_free(e);
	f->propose_rc = RC_OVERLOADED;
	e = send_as(f, &memory, "a", do_conflict, NULL);
	fake_go(f);
	expect_end(e, RC_CONFLICT, OUTCOME_REFUSED);
	fake_event_free(e);
	f->propose_rc = RC_OK;
	e = send_as(f, &memory, "a", do_spend, NULL);
	fake_go(f);
	EXPECT_UINT(number(e), 2);
	fake_event_free(e);
	fake_free(f);
}

/* Proofs are fresh: one was asked for and given just now. */
static void freshen(struct fake *f)
{
	struct fake_event *e = send(f, "fresh", do_nothing, NULL);

	fake_storage_finish_all(f->storage);
	fake_prove(f);
	EXPECT_TRUE(e->done);
	fake_event_free(e);
}

TEST(lagged_is_not_held_for_its_own_effects)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	size_t proofs;

	freshen(f);
	e = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	proofs = f->proofs;
	fake_turn(f);
	EXPECT_UINT(number(e), 1);
	EXPECT_UINT(f->committed, 0);
	EXPECT_UINT(f->proofs, proofs);
	fake_event_free(e);
	/* Nor does the next wait for the one before. */
	e = send_as(f, &lagged, "a", do_add, NULL);
	fake_turn(f);
	EXPECT_UINT(number(e), 2);
	fake_event_free(e);
	fake_free(f);
}

TEST(lagged_waits_for_stronger_effects_that_it_saw)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *strong;
	struct fake_event *weak;

	freshen(f);
	strong = fake_event(f, &lagged, "a", "put");
	strong->ev.durability = DURABILITY_COMMITTED;
	strong->script = do_put;
	strong->text = "policy";
	fake_send(f, strong);
	fake_storage_finish_all(f->storage);
	weak = send_as(f, &lagged, "a", do_add, NULL);
	fake_turn(f);
	EXPECT_FALSE(strong->done);
	EXPECT_FALSE(weak->done);
	fake_commit(f, 1);
	EXPECT_TRUE(strong->done);
	EXPECT_UINT(number(weak), 1);
	/* And a committed one for the lagged ones that it saw. */
	fake_event_free(strong);
	strong = fake_event(f, &lagged, "a", "get");
	strong->ev.durability = DURABILITY_COMMITTED;
	strong->script = do_get;
	fake_send(f, strong);
	fake_prove(f);
	EXPECT_FALSE(strong->done);
	fake_commit_all(f);
	expect_text(strong, "policy");
	fake_event_free(strong);
	fake_event_free(weak);
	fake_free(f);
}

TEST(lagged_answers_stop_when_the_oldest_effect_gets_old)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a;
	struct fake_event *b;
	struct fake_event *c;

	freshen(f);
	a = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	EXPECT_TRUE(a->done);
	fake_advance(f, LAG_MS_DEFAULT / 2);
	freshen(f); /* Commits nothing: the proof alone is renewed. */
	fake_event_free(a);
	a = send_as(f, &lagged, "a", do_add, NULL);
	fake_turn(f);
	EXPECT_TRUE(a->done);
	fake_event_free(a);
	fake_advance(f, LAG_MS_DEFAULT / 2 + 1);
	a = send_as(f, &lagged, "a", do_add, NULL);
	b = send_as(f, &memory, "other", do_spend, NULL);
	c = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	fake_prove(f);
	EXPECT_FALSE(a->done);
	EXPECT_FALSE(c->done);
	fake_commit(f, last_mark(f) - 1);
	EXPECT_TRUE(a->done);
	EXPECT_TRUE(b->done);
	/* Who once had to wait waits for its own. */
	EXPECT_FALSE(c->done);
	fake_commit_all(f);
	EXPECT_TRUE(c->done);
	fake_event_free(a);
	fake_event_free(b);
	fake_event_free(c);
	fake_free(f);
}

TEST(lagged_answers_stop_when_the_last_proof_gets_old)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	freshen(f);
	fake_advance(f, LAG_MS_DEFAULT + 1);
	e = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	EXPECT_FALSE(e->done);
	fake_prove(f);
	EXPECT_UINT(number(e), 1);
	fake_event_free(e);
	fake_free(f);
}

TEST(a_thawed_owner_does_not_answer_lagged_from_before)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	freshen(f);
	e = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	/* Its gate is open; the node is frozen before it leaves. */
	f->now_ns += UINT64_C(10000000000);
	fake_turn(f);
	EXPECT_FALSE(e->done);
	fake_fail_proof(f, RC_NOT_LEADER);
	expect_end(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_event_free(e);
	fake_free(f);
}

/* Commits that take longer than lag_ms each time starve nobody. */
TEST(slow_commits_do_not_starve_lagged)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[20];
	uint64_t mark = 0;
	size_t i;

	freshen(f);
	for (i = 0; i < 20; i++) {
		e[i] = send_as(f, &lagged, "a", do_add, NULL);
		fake_storage_finish_all(f->storage);
		fake_turn(f);
		fake_advance(f, 2 * LAG_MS_DEFAULT);
		fake_prove(f);
		if (i >= 2)
			fake_commit(f, ++mark);
		if (i >= 2) {
			fake_prove(f);
			EXPECT_TRUE(e[i - 2]->done);
		}
	}
	fake_go(f);
	for (i = 0; i < 20; i++)
		fake_event_free(e[i]);
	fake_free(f);
}

TEST(the_loss_of_the_shard_takes_back_lagged_answers_that_have_not_left)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	freshen(f);
	e = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	fake_lose(f);
	expect_end(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_event_free(e);
	fake_lead(f);
	fake_free(f);
}

/* An answer left before its effect was committed, as `lagged` may. The commit
 * fails: who saw the effect and waits hears nothing of it, and it is gone. */
TEST(og8_a_commit_that_fails_behind_an_answer_breaks_the_gate)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *gone;
	struct fake_event *strong;
	struct fake_event *e;

	freshen(f);
	gone = send_as(f, &lagged, "a", do_add, NULL);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	EXPECT_UINT(number(gone), 1);
	EXPECT_UINT(f->committed, 0);
	strong = fake_event(f, &lagged, "a", "put");
	strong->ev.durability = DURABILITY_COMMITTED;
	strong->script = do_add;
	fake_send(f, strong);
	e = fake_event(f, &lagged, "a", "get");
	e->ev.durability = DURABILITY_COMMITTED;
	e->script = do_get;
	fake_send(f, e);
	fake_prove(f);
	EXPECT_FALSE(strong->done);
	EXPECT_FALSE(e->done);
	fake_change(f);
	expect_end(strong, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	expect_end(e, RC_NOT_OWNER, OUTCOME_REFUSED);
	fake_event_free(gone);
	fake_event_free(strong);
	fake_event_free(e);
	e = call(f, "a", do_add, NULL);
	EXPECT_UINT(number(e), 1);
	fake_event_free(e);
	fake_free(f);
}

/* ------------------------------------------------------------------ expiry */

static enum run do_put_ttl(struct fake_event *e)
{
	enum rc rc = ev_put(&e->ev, ROW_DATA, str("k"), str(e->text),
			    ev_now(&e->ev) + (uint64_t)e->n * 1000000u);

	if (rc != RC_OK)
		return again_or_fail(e, rc);
	(void)ev_bump(&e->ev);
	pack_nil(&e->ev.result);
	return RUN_DONE;
}

static void put_ttl(struct fake *f, int64_t ms)
{
	struct fake_event *e = fake_event(f, &strict, "a", "put");

	e->script = do_put_ttl;
	e->text = "v";
	e->n = ms;
	fake_send(f, e);
	fake_go(f);
	EXPECT_RC(e->ev.rc, RC_OK);
	fake_event_free(e);
}

TEST(an_expiry_between_f_and_now_is_shown_after_a_tick)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	put_ttl(f, 50);
	e = call(f, "a", do_get, NULL);
	expect_text(e, "v");
	fake_event_free(e);
	f->now_ns += 60000000;
	e = send(f, "a", do_get, NULL);
	EXPECT_UINT(f->ticks, 1);
	fake_prove(f);
	EXPECT_FALSE(e->done);
	fake_commit_all(f);
	expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
	fake_event_free(e);
	/* Now it is past by the log: no tick is needed. */
	e = send(f, "a", do_get, NULL);
	fake_prove(f);
	expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
	EXPECT_UINT(f->ticks, 1);
	fake_event_free(e);
	fake_free(f);
}

TEST(an_expiry_that_an_own_write_saw_needs_no_tick)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	put_ttl(f, 50);
	f->now_ns += 60000000;
	e = call(f, "a", do_add, NULL);
	fake_event_free(e);
	put_ttl(f, 50);
	EXPECT_UINT(f->ticks, 0);
	fake_free(f);
}

/* ----------------------------------------------------------------- destroy */

static enum run do_rev(struct fake_event *e)
{
	pack_u64(&e->ev.result, ev_rev(&e->ev));
	return RUN_DONE;
}

TEST(destroy_leaves_a_tombstone_and_the_revision_goes_on)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct object_head head;
	struct fake_event *e;

	call_free(f, "a", do_put, "v");
	call_free(f, "a", do_put, "w");
	call_free(f, "a", do_destroy, NULL);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 0);
	EXPECT_RC(object_head_read(&oid, fake_storage_head(f->storage, &oid),
				   &head),
		  RC_OK);
	EXPECT_TRUE(head.destroyed);
	EXPECT_UINT(head.rev, 2);
	EXPECT_INT(f->admitted_objects, 0);
	e = call(f, "a", do_get, NULL);
	expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
	fake_event_free(e);
	/* Also when its owner changes. */
	fake_change(f);
	e = call(f, "a", do_put, "new");
	EXPECT_UINT(number(e), 3);
	fake_event_free(e);
	EXPECT_RC(object_head_read(&oid, fake_storage_head(f->storage, &oid),
				   &head),
		  RC_OK);
	EXPECT_FALSE(head.destroyed);
	fake_free(f);
}

static enum run do_destroy_and_put(struct fake_event *e)
{
	struct row_view row;

	if (ev_put(&e->ev, ROW_DATA, str("before"), str("v"), 0) != RC_OK)
		return RUN_LOAD;
	ev_destroy(&e->ev);
	EXPECT_UINT(ev_rows(&e->ev), 0);
	EXPECT_RC(ev_get(&e->ev, ROW_DATA, str("before"), &row), RC_NOT_FOUND);
	EXPECT_RC(ev_get(&e->ev, ROW_DATA, str("k"), &row), RC_NOT_FOUND);
	EXPECT_RC(ev_delete(&e->ev, ROW_DATA, str("k")), RC_OK);
	EXPECT_RC(ev_put(&e->ev, ROW_DATA, str("k"), str("new"), 0), RC_OK);
	seen.n = 0;
	seen.most = 10;
	EXPECT_RC(ev_scan(&e->ev, ROW_DATA, none, none, false, see, &seen),
		  RC_OK);
	EXPECT_UINT(seen.n, 1);
	pack_u64(&e->ev.result, ev_rows(&e->ev));
	return RUN_DONE;
}

TEST(what_comes_after_destroy_in_the_same_event_stays)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct fake_event *e;

	call_free(f, "a", do_put, "old");
	e = call(f, "a", do_destroy_and_put, NULL);
	EXPECT_UINT(number(e), 1);
	fake_event_free(e);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	e = call(f, "a", do_get, NULL);
	expect_text(e, "new");
	fake_event_free(e);
	/* The large one too, of which little is in memory. */
	fill(f, "b");
	e = call(f, "b", do_destroy_and_put, NULL);
	EXPECT_UINT(number(e), 1);
	fake_event_free(e);
	oid = fake_oid("t", "b");
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_DATA), 1);
	e = call_n(f, "b", do_get_n, 500);
	expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
	fake_event_free(e);
	fake_free(f);
}

TEST(destroying_what_is_not_there_changes_nothing)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = call(f, "a", do_destroy, NULL);

	EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_UINT(f->units_all, 0);
	fake_event_free(e);
	e = call(f, "a", do_rev, NULL);
	EXPECT_UINT(number(e), 0);
	fake_event_free(e);
	fake_free(f);
}

TEST(a_tombstone_ends_when_its_window_has_passed)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct fake_event *e;

	call_free(f, "a", do_put, "v");
	call_free(f, "a", do_destroy, NULL);
	fake_advance(f, IDEM_WINDOW_DEFAULT_MS - 5000);
	space_sweep(f->space);
	fake_go(f);
	EXPECT_TRUE(fake_storage_head(f->storage, &oid).p != NULL);
	fake_advance(f, 10000);
	call_free(f, "other", do_put, "v"); /* F moves on. */
	space_sweep(f->space);
	fake_go(f);
	fake_advance(f, 2000);
	fake_go(f);
	EXPECT_TRUE(fake_storage_head(f->storage, &oid).p == NULL);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_IDEM), 0);
	e = call(f, "a", do_rev, NULL);
	EXPECT_UINT(number(e), 0);
	fake_event_free(e);
	fake_free(f);
}

/* ---------------------------------------------------------------- addresses */

TEST(by_its_id_an_object_is_only_what_it_is)
{
	static const struct class other = {
		.name = "u",
		.interleave = INTERLEAVE_NEVER,
		.durability = DURABILITY_COMMITTED,
		.durabilities = 0xff,
		.idem_window_ms = 1000,
		.run = fake_script_run,
	};
	struct fake *f = fake_new(NULL);
	struct fake_event *e;
	int i;

	call_free(f, "a", do_put, "v");
	for (i = 0; i < 4; i++) {
		runner_context("case %d", i);
		e = fake_event(f, i == 1 ? &other : &strict, "a", "put");
		e->ev.oid = fake_oid("t", "a");
		e->ev.name = none;
		e->script = do_get;
		if (i == 2)
			e->ev.tenant = str("acme");
		if (i == 3)
			e->ev.env = str("prod");
		fake_send(f, e);
		fake_go(f);
		if (i == 0)
			expect_text(e, "v");
		else
			expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
		if (i > 0)
			EXPECT_UINT(e->runs, 0);
		fake_event_free(e);
		fake_change(f);
	}
	fake_free(f);
}

TEST(an_absent_object_is_whatever_it_is_asked_for_as)
{
	static const struct class other = {
		.name = "u",
		.interleave = INTERLEAVE_NEVER,
		.durability = DURABILITY_COMMITTED,
		.durabilities = 0xff,
		.idem_window_ms = 1000,
		.run = fake_script_run,
	};
	struct fake *f = fake_new(NULL);
	struct fake_event *a = fake_event(f, &strict, "a", "put");
	struct fake_event *b = fake_event(f, &other, "a", "put");
	struct fake_event *c = fake_event(f, &strict, "a", "put");

	/* All three by the same id, all before it is loaded. */
	a->ev.name = b->ev.name = c->ev.name = none;
	b->ev.oid = a->ev.oid;
	a->script = do_get;
	b->script = do_put;
	b->text = "v";
	c->script = do_get;
	fake_send(f, a);
	fake_send(f, b);
	fake_send(f, c);
	fake_go(f);
	expect_end(a, RC_NOT_FOUND, OUTCOME_REFUSED);
	EXPECT_UINT(a->runs, 1);
	EXPECT_UINT(number(b), 1);
	expect_end(c, RC_NOT_FOUND, OUTCOME_REFUSED);
	EXPECT_UINT(c->runs, 0);
	fake_event_free(a);
	fake_event_free(b);
	fake_event_free(c);
	fake_free(f);
}

TEST(a_method_that_may_not_create_finds_nothing)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = fake_event(f, &strict, "a", "put");

	e->ev.flags = 0;
	e->script = do_put;
	e->text = "v";
	fake_send(f, e);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	EXPECT_FALSE(e->done); /* That, too, is said about the object. */
	fake_go(f);
	expect_end(e, RC_NOT_FOUND, OUTCOME_REFUSED);
	EXPECT_UINT(e->runs, 0);
	fake_event_free(e);
	fake_free(f);
}

/* ---------------------------------------------------------------- suspension
 */

static struct fake_event *nested_event(struct fake *f, const char *name,
				       uint64_t stamp, struct chain *chain)
{
	struct fake_event *e = fake_event(f, &strict, name, "put");

	*chain = (struct chain){ .n = 1, .root_stamp = stamp };
	chain->at[0].oid = fake_oid("t", "caller");
	chain->at[0].same_tenant_as_next = true;
	(void)snprintf(chain->at[0].address, sizeof(chain->at[0].address),
		       "t/caller");
	e->ev.chain = chain;
	e->ev.root_stamp = stamp;
	e->script = do_nothing;
	return e;
}

/* Writes, calls, then answers what the nested call said. */
static enum run do_call(struct fake_event *e)
{
	struct event *ev = &e->ev;
	struct row_view row;

	if (ev->resume == 0) {
		if (e->text != NULL &&
		    ev_put(ev, ROW_DATA, str("k"), str(e->text), 0) != RC_OK)
			return RUN_LOAD;
		ev->locals[0] = 42;
		return ev_call(ev, "t/target", "put", str("\x80"));
	}
	EXPECT_UINT(ev->locals[0], 42);
	if (ev->reply_rc != RC_OK)
		return ev_fail(ev, ev->reply_rc, NULL, "%s",
			       ev->reply_why.text);
	if (e->text != NULL)
		EXPECT_RC(ev_get(ev, ROW_DATA, str("k"), &row), RC_OK);
	pack_raw(&ev->result, ev->reply.p, ev->reply.n);
	return RUN_DONE;
}

static enum run do_wait(struct fake_event *e)
{
	if (e->ev.resume == 0)
		return ev_wait(&e->ev, ev_now(&e->ev) + 500000000u);
	pack_u64(&e->ev.result, 7);
	return RUN_DONE;
}

TEST(a_nested_call_leaves_after_the_writes_before_it_are_committed)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = send(f, "a", do_call, "before");
	struct fake_event *next;

	fake_storage_finish_all(f->storage);
	fake_turn(f);
	fake_prove(f);
	EXPECT_UINT(f->units_all, 1);
	EXPECT_UINT(f->calls_n, 0); /* OG5 */
	fake_commit_all(f);
	EXPECT_UINT(f->calls_n, 1);
	EXPECT_STR(f->calls[0].address, "t/target");
	EXPECT_STR(f->calls[0].method, "put");
	EXPECT_FALSE(f->calls[0].keyed);
	/* Nobody enters before it is over. */
	next = send(f, "a", do_get, NULL);
	EXPECT_UINT(next->runs, 0);
	fake_answer(f, 0, RC_OK, "hello");
	EXPECT_UINT(next->runs, 1);
	EXPECT_FALSE(e->done); /* A proof since it was resumed. */
	fake_go(f);
	expect_text(e, "hello");
	expect_text(next, "before");
	fake_event_free(e);
	fake_event_free(next);
	fake_free(f);
}

TEST(a_call_without_writes_waits_for_a_proof)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = send(f, "a", do_call, NULL);

	fake_storage_finish_all(f->storage);
	fake_turn(f);
	EXPECT_UINT(f->calls_n, 0);
	EXPECT_UINT(f->units_all, 0);
	fake_prove(f);
	EXPECT_UINT(f->calls_n, 1);
	fake_answer(f, 0, RC_OK, "hello");
	fake_go(f);
	expect_text(e, "hello");
	fake_event_free(e);
	fake_free(f);
}

TEST(a_failed_call_is_for_the_class_to_tell)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = send(f, "a", do_call, NULL);

	fake_go(f);
	fake_answer(f, 0, RC_LIMITED, "slow down");
	fake_go(f);
	expect_end(e, RC_LIMITED, OUTCOME_REFUSED);
	EXPECT_STR(e->ev.why.text, "slow down");
	fake_event_free(e);
	/* What it wrote before is not undone: that is no refusal. */
	e = send(f, "a", do_call, "v");
	fake_go(f);
	fake_answer(f, 1, RC_LIMITED, "slow down");
	fake_go(f);
	expect_end(e, RC_LIMITED, OUTCOME_UNKNOWN);
	fake_event_free(e);
	/* Nor what the call itself may have done. */
	e = send(f, "b", do_call, NULL);
	fake_go(f);
	fake_answer(f, 2, RC_UNKNOWN_OUTCOME, "who knows");
	fake_go(f);
	expect_end(e, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	fake_event_free(e);
	fake_free(f);
}

TEST(waiting_for_time)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = send(f, "a", do_wait, NULL);
	struct fake_event *b;

	fake_go(f);
	fake_advance(f, 200);
	b = send(f, "b", do_wait, NULL);
	fake_go(f);
	fake_advance(f, 298);
	fake_go(f);
	EXPECT_FALSE(a->done);
	fake_advance(f, 4);
	fake_go(f);
	EXPECT_UINT(number(a), 7);
	EXPECT_FALSE(b->done);
	fake_advance(f, 300);
	fake_go(f);
	EXPECT_UINT(number(b), 7);
	fake_event_free(a);
	fake_event_free(b);
	fake_free(f);
}

TEST(on_suspend_lets_others_enter)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *a = send_as(f, &open_class, "a", do_call, "v");
	struct fake_event *b;

	fake_go(f);
	b = send_as(f, &open_class, "a", do_get, NULL);
	fake_go(f);
	expect_text(b, "v");
	EXPECT_FALSE(a->done);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	expect_text(a, "x");
	fake_event_free(a);
	fake_event_free(b);
	fake_free(f);
}

/* At every point of its life, everything that can end it from outside. */
enum point {
	POINT_LOADING,
	POINT_BEFORE_CALL, /* At the gate before the nested call. */
	POINT_PASSED,      /* Through it, not yet out. */
	POINT_CALLING,
	POINT_BEFORE_WAIT,
	POINT_WAITING,
	POINT_AT_END, /* At the gate with its answer. */
	POINTS,
};

static enum run do_all(struct fake_event *e)
{
	struct event *ev = &e->ev;

	switch (ev->resume) {
	case 0:
		if (ev_put(ev, ROW_DATA, str("k"), str("one"), 0) != RC_OK)
			return RUN_LOAD;
		return ev_call(ev, "t/target", "put", str("\x80"));
	case 1:
		if (ev_put(ev, ROW_DATA, str("k"), str("two"), 0) != RC_OK)
			return RUN_LOAD;
		return ev_wait(ev, ev_now(ev) + 1000000u);
	default:
		if (ev_put(ev, ROW_DATA, str("k"), str("three"), 0) != RC_OK)
			return RUN_LOAD;
		pack_nil(&ev->result);
		return RUN_DONE;
	}
}

static void go_to(struct fake *f, enum point point)
{
	if (point == POINT_LOADING)
		return;
	fake_storage_finish_all(f->storage);
	if (point == POINT_BEFORE_CALL)
		return;
	if (point == POINT_PASSED) {
		space_committed(f->space, last_mark(f), 50);
		return;
	}
	fake_commit_all(f);
	EXPECT_UINT(f->calls_n, 1);
	if (point == POINT_CALLING)
		return;
	fake_answer(f, 0, RC_OK, "x");
	if (point == POINT_BEFORE_WAIT)
		return;
	fake_commit_all(f);
	if (point == POINT_WAITING)
		return;
	fake_advance(f, 5);
}

enum blow { BLOW_DEADLINE, BLOW_CANCEL, BLOW_LOSS, BLOW_EVICTION, BLOWS };

static void strike(enum point point, enum blow blow)
{
	struct fake *f = fake_new(&small);
	struct fake_event *e = send(f, "a", do_all, NULL);
	struct fake_event *next;
	bool wrote = point != POINT_LOADING;
	enum rc rc = RC_DEADLINE;

	runner_context("point %d, blow %d", point, blow);
	go_to(f, point);
	EXPECT_FALSE(e->done);
	next = send(f, "a", do_add, NULL);
	EXPECT_TRUE((next->runs == 0) == (point != POINT_AT_END));
	switch (blow) {
	case BLOW_DEADLINE:
		event_cancel(&e->ev, RC_DEADLINE);
		break;
	case BLOW_CANCEL:
		event_cancel(&e->ev, RC_CANCELLED);
		rc = RC_CANCELLED;
		break;
	case BLOW_LOSS:
		fake_lose(f);
		rc = RC_NOT_OWNER;
		break;
	case BLOW_EVICTION:
		fake_store(f);
		f->now_ns += UINT64_C(20000000000);
		EXPECT_UINT(stats(f).resident, 1);
		break;
	case BLOWS:
		break;
	}
	fake_turn(f);
	if (blow != BLOW_EVICTION) {
		expect_end(e, wrote ? RC_UNKNOWN_OUTCOME : rc,
			   wrote ? OUTCOME_UNKNOWN : OUTCOME_REFUSED);
		EXPECT_UINT(f->dropped, point == POINT_CALLING ? 1 : 0);
	}
	if (blow == BLOW_LOSS) {
		EXPECT_TRUE(next->done);
		fake_lead(f);
	}
	/* The object goes on with the next, whatever became of this one. */
	fake_advance(f, 10);
	fake_go(f);
	if (f->calls_n > 0 && f->calls[0].ev != NULL)
		fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	fake_advance(f, 10);
	fake_go(f);
	EXPECT_TRUE(e->done);
	EXPECT_TRUE(next->done);
	if (blow != BLOW_LOSS)
		EXPECT_UINT(number(next), 1);
	if (blow == BLOW_EVICTION)
		EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_UINT(stats(f).waiting, 0);
	fake_event_free(e);
	fake_event_free(next);
	fake_free(f);
}

TEST(a_suspending_event_is_struck_at_every_point)
{
	int point;
	int blow;

	for (point = 0; point < POINTS; point++)
		for (blow = 0; blow < BLOWS; blow++)
			strike((enum point)point, (enum blow)blow);
}

TEST(an_object_with_a_suspended_event_stays)
{
	struct fake *f = fake_new(&small);
	struct fake_event *e = send_as(f, &open_class, "a", do_call, "v");

	fake_go(f);
	fake_store(f);
	fake_advance(f, 5000);
	fake_advance(f, 5000);
	EXPECT_UINT(stats(f).resident, 1);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	fake_event_free(e);
	fake_store(f);
	fake_advance(f, 5000);
	fake_advance(f, 5000);
	EXPECT_UINT(stats(f).resident, 0);
	fake_free(f);
}

/* -------------------------------------------------------- cycles and wait-die
 */

TEST(a_call_that_would_wait_for_its_own_chain_is_a_cycle)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *outer = send(f, "a", do_call, "v");
	struct fake_event *back;
	struct chain chain;

	fake_go(f);
	EXPECT_UINT(f->calls_n, 1);
	/* a -> b -> a */
	back = nested_event(f, "a", outer->ev.root_stamp, &chain);
	chain.n = 2;
	chain.at[1] = chain.at[0];
	chain.at[0].oid = fake_oid("t", "a");
	(void)snprintf(chain.at[0].address, sizeof(chain.at[0].address), "t/a");
	(void)snprintf(chain.at[1].address, sizeof(chain.at[1].address), "t/b");
	fake_send(f, back);
	fake_turn(f);
	expect_end(back, RC_CYCLE, OUTCOME_REFUSED);
	EXPECT_HAS(back->ev.why.text, "t/a -> t/b -> t/a");
	fake_event_free(back);
	/* Another tenant on the way is not named, nor who came before it. */
	back = nested_event(f, "a", outer->ev.root_stamp, &chain);
	chain.n = 3;
	chain.at[0].oid = fake_oid("t", "a");
	(void)snprintf(chain.at[0].address, sizeof(chain.at[0].address),
		       "x/secret");
	chain.at[0].same_tenant_as_next = false;
	chain.at[1] = chain.at[2] = chain.at[0];
	(void)snprintf(chain.at[2].address, sizeof(chain.at[2].address),
		       "t/mine");
	fake_send(f, back);
	fake_turn(f);
	expect_end(back, RC_CYCLE, OUTCOME_REFUSED);
	EXPECT_TRUE(strstr(back->ev.why.text, "secret") == NULL);
	EXPECT_HAS(back->ev.why.text, "t/mine -> (another tenant's)");
	fake_event_free(back);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	fake_event_free(outer);
	fake_free(f);
}

TEST(where_others_may_enter_a_chain_may_come_back)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *outer = send_as(f, &open_class, "a", do_call, "v");
	struct fake_event *back;
	struct chain chain;

	fake_go(f);
	back = nested_event(f, "a", outer->ev.root_stamp, &chain);
	back->ev.cls = &open_class;
	chain.at[0].oid = fake_oid("t", "a");
	fake_send(f, back);
	fake_go(f);
	EXPECT_RC(back->ev.rc, RC_OK);
	fake_event_free(back);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	fake_event_free(outer);
	fake_free(f);
}

TEST(the_younger_of_two_chains_dies_and_the_older_waits)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *holder = send(f, "a", do_call, "v");
	uint64_t stamp = holder->ev.root_stamp;
	struct fake_event *young;
	struct fake_event *old;
	struct fake_event *client;
	struct chain chain[2];

	fake_go(f);
	young = nested_event(f, "a", stamp + 1, &chain[0]);
	fake_send(f, young);
	fake_turn(f);
	expect_end(young, RC_OVERLOADED, OUTCOME_REFUSED);
	EXPECT_TRUE(young->ev.retry_after_ms > 0);
	EXPECT_UINT(young->ev.root_stamp, stamp + 1); /* It keeps its age. */
	old = nested_event(f, "a", stamp - 1, &chain[1]);
	fake_send(f, old);
	client = send(f, "a", do_nothing, NULL); /* Holds nothing: waits. */
	fake_turn(f);
	EXPECT_FALSE(old->done);
	EXPECT_FALSE(client->done);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	EXPECT_RC(old->ev.rc, RC_OK);
	EXPECT_RC(client->ev.rc, RC_OK);
	fake_event_free(holder);
	fake_event_free(young);
	fake_event_free(old);
	fake_event_free(client);
	fake_free(f);
}

TEST(who_waits_behind_an_event_that_suspends_is_looked_at_again)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *first = send(f, "a", do_call, "v");
	uint64_t stamp = first->ev.root_stamp;
	struct fake_event *young;
	struct fake_event *old;
	struct chain chain[2];

	/* The object is being loaded: all of them queue up. */
	young = nested_event(f, "a", stamp + 1, &chain[0]);
	old = nested_event(f, "a", stamp - 1, &chain[1]);
	fake_send(f, young);
	fake_send(f, old);
	fake_turn(f);
	EXPECT_FALSE(young->done);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	expect_end(young, RC_OVERLOADED, OUTCOME_REFUSED);
	EXPECT_FALSE(old->done);
	fake_go(f);
	fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
	EXPECT_RC(old->ev.rc, RC_OK);
	fake_event_free(first);
	fake_event_free(young);
	fake_event_free(old);
	fake_free(f);
}

/* ------------------------------------------------------------ out of memory */

static void run_short_of_memory(struct fake *f, struct fake_event **e)
{
	e[0] = send(f, "a", do_put, "a value that takes some room");
	e[1] = send(f, "a", do_call, "and a call");
	e[2] = send(f, "b", do_add, NULL);
	e[3] = send(f, "a", do_destroy, NULL);
	fake_event_key(e[4] = fake_event(f, &strict, "b", "put"), "key");
	e[4]->script = do_add;
	fake_send(f, e[4]);
	fake_go(f);
	if (f->calls_n > 0)
		fake_answer(f, 0, RC_OK, "x");
	fake_go(f);
}

TEST(each_allocation_may_fail)
{
	struct fake_event *e[5];
	struct fake_event *after;
	struct fake *f;
	bool fired = true;
	uint64_t n;
	size_t i;

	for (n = 1; fired && n < 2000; n++) {
		runner_context("allocation %" PRIu64, n);
		f = fake_new(NULL);
		/* What the fakes need is not at stake. */
		fault_alloc(n);
		run_short_of_memory(f, e);
		fired = fault_off();
		for (i = 0; i < 5; i++) {
			EXPECT_TRUE(e[i]->done);
			/* Only what the nested call did may be unknown. */
			if (e[i]->ev.rc != RC_OK &&
			    (i != 1 || e[i]->ev.rc != RC_UNKNOWN_OUTCOME))
				EXPECT_RC(e[i]->ev.rc, RC_OVERLOADED);
		}
		after = call(f, "b", do_rev, NULL);
		EXPECT_UINT(number(after), (unsigned)((e[2]->ev.rc == RC_OK) +
						      (e[4]->ev.rc == RC_OK)));
		fake_event_free(after);
		for (i = 0; i < 5; i++)
			fake_event_free(e[i]);
		fake_free(f);
	}
	EXPECT_TRUE(n > 10);
	EXPECT_FALSE(fired);
}

TEST(discarding_leaves_nothing)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e[4];
	size_t i;

	e[0] = send(f, "a", do_call, "v");
	fake_go(f);
	e[1] = send(f, "b", do_wait, NULL);
	fake_go(f);
	e[2] = send(f, "c", do_add, NULL);
	e[3] = send(f, "a", do_add, NULL);
	space_discard(f->space);
	storage_discard(f->storage);
	f->storage = fake_storage_new();
	for (i = 0; i < 4; i++) {
		e[i]->done = true;
		fake_event_free(e[i]);
	}
	turn_init(&f->turn);
	EXPECT_RC(
		space_new(&f->env, &f->host, f->res, f->storage, 0, &f->space),
		RC_OK);
	fake_lead(f);
	call_free(f, "a", do_put, "v");
	fake_free(f);
}

TEST(each_rule_that_is_left_out_is_missed)
{
	static const char *const rules[][2] = {
		{ "evict_unstored",
		  "an_idle_object_is_evicted_when_its_last_effect_is_stored" },
		{ "errors_not_gated", "an_error_waits_like_an_answer" },
		{ "reply_before_commit",
		  "a_write_is_answered_when_it_is_committed_and_not_before" },
		{ "call_with_open_writes",
		  "a_nested_call_leaves_after_the_writes_before_it_are_"
		  "committed" },
		{ "read_without_round",
		  "a_read_needs_a_proof_and_nothing_else" },
		{ "tombstone_dropped",
		  "destroy_leaves_a_tombstone_and_the_revision_goes_on" },
		{ "expiry_without_tick",
		  "an_expiry_between_f_and_now_is_shown_after_a_tick" },
		{ "cycle_allowed",
		  "a_call_that_would_wait_for_its_own_chain_is_a_cycle" },
		{ "wait_die_off",
		  "the_younger_of_two_chains_dies_and_the_older_waits" },
	};
	size_t i;

	for (i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		runner_context("%s", rules[i][0]);
		EXPECT_FALSE(fake_misses("none", rules[i][1]));
		EXPECT_TRUE(fake_misses(rules[i][0], rules[i][1]));
	}
}
