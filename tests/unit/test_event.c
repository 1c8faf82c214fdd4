#include "objects/object.h"

#include "node/base/mutant.h"
#include "objects/space.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static const struct class plain = {
	.name = "t",
	.interleave = INTERLEAVE_NEVER,
	.durability = DURABILITY_COMMITTED,
	.durabilities = 0xff,
	.idem_window_ms = IDEM_WINDOW_DEFAULT_MS,
	.run = fake_script_run,
};

static const struct pack_bytes none = { NULL, 0 };

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static struct fake_event *call(struct fake *f,
			       enum run (*script)(struct fake_event *e))
{
	struct fake_event *e = fake_event(f, &plain, "a", "put");

	e->script = script;
	fake_send(f, e);
	fake_go(f);
	EXPECT_TRUE(e->done);
	return e;
}

static void call_ok(struct fake *f, enum run (*script)(struct fake_event *e))
{
	struct fake_event *e = call(f, script);

	EXPECT_RC(e->ev.rc, RC_OK);
	fake_event_free(e);
}

static enum run done(struct fake_event *e)
{
	pack_nil(&e->ev.result);
	return RUN_DONE;
}

/* ------------------------------------------------------------------- numbers
 */

static enum run look_around(struct fake_event *e)
{
	struct event *ev = &e->ev;

	EXPECT_UINT(ev_now(ev), e->fake->now_ns + e->fake->ahead_ns);
	EXPECT_UINT(ev_lead_stamp(ev), FAKE_STAMP_NS);
	/* The same for the whole run. */
	e->fake->now_ns += 1000;
	EXPECT_UINT(ev_now(ev), e->fake->now_ns + e->fake->ahead_ns - 1000);
	EXPECT_UINT(ev_rev(ev), 0);
	EXPECT_UINT(ev_bump(ev), 1);
	EXPECT_UINT(ev_bump(ev), 2);
	EXPECT_UINT(ev_rev(ev), 2);
	EXPECT_UINT(ev_rows(ev), 0);
	EXPECT_RC(ev_put(ev, ROW_DATA, str("a"), str("1"), 0), RC_OK);
	EXPECT_RC(ev_put(ev, ROW_CONFIG, str("a"), str("2"), 0), RC_OK);
	EXPECT_UINT(ev_rows(ev), 1);
	return done(e);
}

TEST(an_event_knows_time_revision_and_rows)
{
	struct fake *f = fake_new(NULL);

	f->now_ns += 5000;
	call_ok(f, look_around);
	fake_free(f);
}

static enum run reach(struct fake_event *e)
{
	struct event *ev = &e->ev;
	uint64_t f = e->fake->stamp_ns;

	EXPECT_TRUE(ev_reached(ev, f - 1));
	EXPECT_TRUE(ev_reached(ev, f));
	EXPECT_FALSE(ev_reached(ev, ev_now(ev) + 1));
	EXPECT_FALSE(ev->ticked);
	EXPECT_TRUE(ev_reached(ev, ev_now(ev)));
	EXPECT_TRUE(ev->ticked);
	return done(e);
}

TEST(between_the_committed_stamp_and_now_a_time_needs_a_tick)
{
	struct fake *f = fake_new(NULL);

	f->now_ns += 5000;
	call_ok(f, reach);
	EXPECT_UINT(f->ticks, 1);
	fake_free(f);
}

/* --------------------------------------------------------------------- rows */

static enum run put_two(struct fake_event *e)
{
	struct event *ev = &e->ev;

	if (ev_put(ev, ROW_DATA, str("a"), str("1"), 0) != RC_OK ||
	    ev_put(ev, ROW_DATA, str("c"), str("3"),
		   ev_now(ev) + 1000000000u) != RC_OK ||
	    ev_put(ev, ROW_CONFIG, str("a"), str("config"), 0) != RC_OK)
		return RUN_LOAD;
	return done(e);
}

static enum run get_then_put(struct fake_event *e)
{
	struct row_view row;

	EXPECT_RC(ev_get(&e->ev, ROW_DATA, str("a"), &row), RC_OK);
	EXPECT_RC(ev_put(&e->ev, ROW_DATA, str("a"), str("2"), 0), RC_OK);
	/* What it was given is what there was. */
	EXPECT_TRUE(pack_bytes_eq(row.value, "1", 1));
	EXPECT_TRUE(pack_bytes_eq(row.key, "a", 1));
	EXPECT_UINT(row.expires_ns, 0);
	EXPECT_RC(ev_get(&e->ev, ROW_DATA, str("a"), &row), RC_OK);
	EXPECT_TRUE(pack_bytes_eq(row.value, "2", 1));
	EXPECT_RC(ev_get(&e->ev, ROW_CONFIG, str("a"), &row), RC_OK);
	EXPECT_TRUE(pack_bytes_eq(row.value, "config", 6));
	EXPECT_RC(ev_get(&e->ev, ROW_DATA, str("b"), &row), RC_NOT_FOUND);
	EXPECT_RC(ev_get(&e->ev, ROW_DATA, str("c"), &row), RC_OK);
	EXPECT_UINT(row.expires_ns, e->fake->stamp_ns + 1000000000u);
	return ev_fail(&e->ev, RC_CONFLICT, NULL, "enough");
}

TEST(a_row_that_was_given_stays_what_it_was)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	call_ok(f, put_two);
	e = call(f, get_then_put);
	EXPECT_RC(e->ev.rc, RC_CONFLICT);
	fake_event_free(e);
	fake_free(f);
}

static unsigned seen;

static bool see_one(void *arg, const struct row_view *row)
{
	(void)row;
	seen++;
	return --*(unsigned *)arg > 0;
}

static enum run scan_some(struct fake_event *e)
{
	unsigned most = 1;

	seen = 0;
	EXPECT_RC(ev_scan(&e->ev, ROW_DATA, none, none, false, see_one, &most),
		  RC_OK);
	EXPECT_UINT(seen, 1);
	most = 9;
	EXPECT_RC(ev_scan(&e->ev, ROW_DATA, none, none, true, see_one, &most),
		  RC_OK);
	EXPECT_UINT(seen, 3);
	EXPECT_RC(ev_scan(&e->ev, ROW_DATA, str("b"), str("a"), false, see_one,
			  &most),
		  RC_OK);
	EXPECT_RC(
		ev_scan(&e->ev, ROW_CONFIG, none, none, false, see_one, &most),
		RC_OK);
	EXPECT_UINT(seen, 4);
	return done(e);
}

TEST(a_scan_stops_when_it_is_told_to)
{
	struct fake *f = fake_new(NULL);

	call_ok(f, put_two);
	call_ok(f, scan_some);
	fake_free(f);
}

static enum run memory_rows(struct fake_event *e)
{
	struct event *ev = &e->ev;
	struct row_view row;

	EXPECT_RC(ev_get_memory(ev, str("m"), &row), RC_NOT_FOUND);
	EXPECT_RC(ev_put_memory(ev, str("m"), str("1"), UINT64_MAX), RC_OK);
	EXPECT_RC(ev_put_memory(ev, str("n"), str("2"), 1), RC_OK);
	/* When it is full is not when it is gone. */
	EXPECT_RC(ev_get_memory(ev, str("n"), &row), RC_OK);
	EXPECT_UINT(ev_memory_rows(ev), 2);
	EXPECT_RC(ev_delete_memory(ev, str("n")), RC_OK);
	EXPECT_RC(ev_delete_memory(ev, str("o")), RC_OK);
	EXPECT_UINT(ev_memory_rows(ev), 1);
	EXPECT_UINT(ev_rows(ev), 0);
	return done(e);
}

static enum run memory_after(struct fake_event *e)
{
	struct event *ev = &e->ev;
	struct row_view row;

	EXPECT_RC(ev_get_memory(ev, str("m"), &row), RC_OK);
	EXPECT_UINT(ev_memory_rows(ev), 1);
	ev_destroy(ev);
	EXPECT_UINT(ev_memory_rows(ev), 0);
	EXPECT_RC(ev_get_memory(ev, str("m"), &row), RC_NOT_FOUND);
	EXPECT_RC(ev_delete_memory(ev, str("m")), RC_OK);
	EXPECT_RC(ev_put_memory(ev, str("p"), str("3"), UINT64_MAX), RC_OK);
	EXPECT_UINT(ev_memory_rows(ev), 1);
	return done(e);
}

static enum run memory_at_last(struct fake_event *e)
{
	struct row_view row;

	EXPECT_RC(ev_get_memory(&e->ev, str("m"), &row), RC_NOT_FOUND);
	EXPECT_RC(ev_get_memory(&e->ev, str("p"), &row), RC_OK);
	EXPECT_UINT(ev_memory_rows(&e->ev), 1);
	return done(e);
}

TEST(memory_rows_are_rows_of_their_own)
{
	struct fake *f = fake_new(NULL);

	call_ok(f, memory_rows);
	call_ok(f, memory_after);
	call_ok(f, memory_at_last);
	EXPECT_UINT(f->units_all, 0);
	fake_free(f);
}

static enum run own_kinds_only(struct fake_event *e)
{
	struct row_view row;

	EXPECT_ABORT(ev_get(&e->ev, ROW_IDEM, str("a"), &row));
	EXPECT_ABORT(ev_put(&e->ev, ROW_IDEM_COUNT, str("a"), none, 0));
	EXPECT_ABORT(ev_delete(&e->ev, ROW_IDEM, str("a")));
	EXPECT_ABORT(ev_durability(&e->ev, DURABILITY_DEFAULT));
	EXPECT_ABORT(ev_fail(&e->ev, RC_OK, NULL, "x"));
	return done(e);
}

TEST(a_class_has_no_business_with_records)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = call(f, own_kinds_only);
	struct row_view row;

	/* Nor with anything when it does not run. */
	EXPECT_ABORT(ev_get(&e->ev, ROW_DATA, str("a"), &row));
	EXPECT_ABORT(ev_put_memory(&e->ev, str("a"), none, 0));
	fake_event_free(e);
	fake_free(f);
}

/* -------------------------------------------------------------------- errors
 */

static enum run fail_twice(struct fake_event *e)
{
	(void)ev_fail(&e->ev, RC_INVALID, "first", "what %s", "counts");
	return ev_fail(&e->ev, RC_CONFLICT, "second", "too late");
}

TEST(what_is_said_first_counts)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = call(f, fail_twice);

	EXPECT_RC(e->ev.rc, RC_CONFLICT);
	EXPECT_STR(e->ev.why.field, "first");
	EXPECT_STR(e->ev.why.text, "what counts");
	fake_event_free(e);
	fake_free(f);
}

static enum run fail_inside(struct fake_event *e)
{
	e->ev.rc = RC_CORRUPT;
	return RUN_DONE;
}

TEST(a_code_of_our_own_does_not_leave_the_node)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = call(f, fail_inside);

	EXPECT_RC(e->ev.rc, RC_INTERNAL);
	EXPECT_TRUE(e->ev.why.text[0] != '\0');
	fake_event_free(e);
	fake_free(f);
}

static enum run call_far(struct fake_event *e)
{
	static char address[ADDRESS_BYTES_MAX + 2];

	memset(address, 'a', ADDRESS_BYTES_MAX + 1);
	return ev_call(&e->ev, address, "m", str("\x80"));
}

static enum run call_long(struct fake_event *e)
{
	static char method[65];

	memset(method, 'm', 64);
	return ev_call(&e->ev, "a/b", method, str("\x80"));
}

TEST(a_nested_call_is_bounded)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e = call(f, call_far);

	EXPECT_RC(e->ev.rc, RC_INVALID);
	EXPECT_STR(e->ev.why.field, "address");
	fake_event_free(e);
	e = call(f, call_long);
	EXPECT_RC(e->ev.rc, RC_INVALID);
	EXPECT_STR(e->ev.why.field, "method");
	fake_event_free(e);
	EXPECT_UINT(f->calls_n, 0);
	fake_free(f);
}

static enum run waive_with_effects(struct fake_event *e)
{
	if (ev_put(&e->ev, ROW_DATA, str("a"), str("1"), 0) != RC_OK)
		return RUN_LOAD;
	ev_unrecorded(&e->ev);
	return done(e);
}

TEST(effects_are_recorded_whatever_the_class_says)
{
	struct fake *f = fake_new(NULL);
	struct oid oid = fake_oid("t", "a");
	struct fake_event *e = fake_event(f, &plain, "a", "put");

	e->script = waive_with_effects;
	fake_event_key(e, "k");
	fake_send(f, e);
	fake_go(f);
	EXPECT_UINT(fake_storage_rows(f->storage, &oid, ROW_IDEM), 1);
	fake_event_free(e);
	fake_free(f);
}

static enum run weaken(struct fake_event *e)
{
	ev_durability(&e->ev, DURABILITY_LAGGED);
	return waive_with_effects(e);
}

TEST(the_class_says_what_an_event_waits_for)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	call_ok(f, done); /* A fresh proof. */
	e = fake_event(f, &plain, "a", "put");
	e->script = weaken;
	fake_send(f, e);
	fake_turn(f);
	EXPECT_TRUE(e->done);
	EXPECT_UINT(f->committed, 0);
	fake_event_free(e);
	fake_free(f);
}

/* What was written to the result before a run was given up is not in it. */
static enum run write_then_load(struct fake_event *e)
{
	struct row_view row;

	pack_u64(&e->ev.result, e->runs);
	e->ev.locals[2]++;
	EXPECT_UINT(e->ev.locals[2], 1);
	return ev_get(&e->ev, ROW_DATA, str("k"), &row) == RC_AGAIN ? RUN_LOAD
								    : RUN_DONE;
}

static enum run fill(struct fake_event *e)
{
	static uint8_t big[OBJECT_LOAD_BYTES_MAX];

	if (ev_put(&e->ev, ROW_DATA, str("big"),
		   (struct pack_bytes){ big, sizeof(big) }, 0) != RC_OK)
		return RUN_LOAD;
	return done(e);
}

TEST(a_run_that_was_given_up_leaves_no_trace)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	call_ok(f, fill);
	fake_change(f);
	e = call(f, write_then_load);
	EXPECT_UINT(e->runs, 2);
	EXPECT_UINT(e->ev.result.n, 1);
	EXPECT_INT(e->ev.result.p[0], 2);
	fake_event_free(e);
	fake_free(f);
}

TEST(a_load_without_memory_ends_the_event)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	call_ok(f, fill);
	fake_change(f);
	e = fake_event(f, &plain, "a", "put");
	e->script = write_then_load;
	fake_send(f, e);
	/* The object's first load is through; then the event's own begins:
	 * what it wants, or the load itself, finds no memory. */
	fault_alloc_from(4);
	fake_storage_finish(f->storage, 0, RC_OK);
	(void)fault_off();
	fake_go(f);
	EXPECT_TRUE(e->done);
	fake_event_free(e);
	call_ok(f, done);
	fake_free(f);
}
