#include "objects/object.h"

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

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

/* Puts `text` for `n` ms; 0: for ever. */
static enum run put(struct fake_event *e)
{
	uint64_t until = 0;

	if (e->n > 0)
		until = ev_now(&e->ev) + (uint64_t)e->n * 1000000u;
	if (ev_put(&e->ev, ROW_DATA, str(e->text), str("value"), until) !=
	    RC_OK)
		return RUN_LOAD;
	pack_u64(&e->ev.result, ev_bump(&e->ev));
	return RUN_DONE;
}

static enum run rev(struct fake_event *e)
{
	pack_u64(&e->ev.result, ev_rev(&e->ev));
	return RUN_DONE;
}

static enum run fill(struct fake_event *e)
{
	static uint8_t big[OBJECT_LOAD_BYTES_MAX];

	if (ev_put(&e->ev, ROW_DATA, str("big"),
		   (struct pack_bytes){ big, sizeof(big) }, 0) != RC_OK)
		return RUN_LOAD;
	pack_u64(&e->ev.result, 0);
	return RUN_DONE;
}

static uint64_t call(struct fake *f, const char *name,
		     enum run (*script)(struct fake_event *e), const char *text,
		     int64_t ms)
{
	struct fake_event *e = fake_event(f, &plain, name, "put");
	struct pack_r r;
	uint64_t n = 0;

	e->script = script;
	e->text = text;
	e->n = ms;
	fake_send(f, e);
	fake_go(f);
	EXPECT_RC(e->ev.rc, RC_OK);
	r = pack_reader(e->ev.result.p, e->ev.result.n);
	EXPECT_RC(pack_get_u64(&r, &n), RC_OK);
	fake_event_free(e);
	return n;
}

static size_t rows(const struct fake *f, const char *name)
{
	struct oid oid = fake_oid("t", name);

	return fake_storage_rows(f->storage, &oid, ROW_DATA);
}

static void pass(struct fake *f, unsigned seconds)
{
	while (seconds-- > 0) {
		fake_advance(f, 1000);
		fake_go(f);
	}
}

TEST(expired_rows_go_and_the_revision_stays)
{
	struct fake *f = fake_new(NULL);

	(void)call(f, "a", put, "x", 5000);
	(void)call(f, "a", put, "y", 50000);
	EXPECT_UINT(call(f, "a", put, "z", 0), 3);
	pass(f, 4);
	EXPECT_UINT(rows(f, "a"), 3);
	pass(f, 6);
	EXPECT_UINT(rows(f, "a"), 2);
	EXPECT_UINT(call(f, "a", rev, NULL, 0), 3);
	pass(f, 90);
	EXPECT_UINT(rows(f, "a"), 1);
	EXPECT_UINT(call(f, "a", rev, NULL, 0), 3);
	EXPECT_INT(f->admitted_bytes, 6);
	fake_free(f);
}

TEST(a_shard_at_rest_moves_its_stamp_to_sweep)
{
	struct fake *f = fake_new(NULL);

	(void)call(f, "a", put, "x", 2000);
	EXPECT_UINT(f->ticks, 0);
	pass(f, 8);
	EXPECT_TRUE(f->ticks > 0);
	EXPECT_UINT(rows(f, "a"), 0);
	fake_free(f);
}

TEST(a_shard_without_expiries_is_left_in_peace)
{
	struct fake *f = fake_new(NULL);
	size_t asked;
	unsigned i;

	(void)call(f, "a", put, "x", 0);
	pass(f, 10);
	for (i = 0, asked = 0; i < 300; i++) {
		fake_advance(f, 1000);
		asked += fake_storage_waiting(f->storage);
		fake_go(f);
	}
	EXPECT_TRUE(asked <= 11);
	EXPECT_UINT(f->ticks, 0);
	EXPECT_UINT(f->units_all, 1);
	fake_free(f);
}

TEST(what_was_put_again_meanwhile_stays)
{
	struct fake *f = fake_new(NULL);
	struct fake_event *e;

	(void)call(f, "a", put, "x", 2000);
	f->now_ns += UINT64_C(3000000000);
	(void)call(f, "b", put, "y", 0); /* F is past the expiry. */
	space_sweep(f->space);
	EXPECT_UINT(fake_storage_waiting(f->storage), 1);
	/* Storage still has the old one when it is asked. */
	e = fake_event(f, &plain, "a", "put");
	e->script = put;
	e->text = "x";
	e->n = 60000;
	fake_send(f, e);
	fake_storage_finish_all(f->storage);
	fake_go(f);
	EXPECT_TRUE(e->done);
	fake_event_free(e);
	EXPECT_UINT(rows(f, "a"), 1);
	fake_free(f);
}

TEST(cold_and_large_objects_are_swept_too)
{
	struct fake *f = fake_new(NULL);

	(void)call(f, "cold", put, "x", 2000);
	(void)call(f, "large", fill, NULL, 0);
	(void)call(f, "large", put, "x", 2000);
	(void)call(f, "large", put, "y", 0);
	fake_change(f);
	pass(f, 40);
	EXPECT_UINT(rows(f, "cold"), 0);
	EXPECT_UINT(rows(f, "large"), 2);
	EXPECT_UINT(call(f, "large", rev, NULL, 0), 2);
	EXPECT_UINT(call(f, "cold", rev, NULL, 0), 1);
	fake_free(f);
}

TEST(many_go_slice_by_slice)
{
	struct fake *f = fake_new(NULL);
	char key[24];
	size_t before;
	unsigned i;

	for (i = 0; i < 3 * SWEEP_ROWS; i++) {
		(void)snprintf(key, sizeof(key), "k%u", i);
		(void)call(f, i % 2 == 0 ? "a" : "b", put, key, 2000);
	}
	f->now_ns += UINT64_C(3000000000);
	(void)call(f, "c", put, "y", 0);
	space_sweep(f->space);
	space_sweep(f->space); /* One at a time. */
	EXPECT_UINT(fake_storage_waiting(f->storage), 1);
	before = rows(f, "a") + rows(f, "b");
	fake_storage_finish_all(f->storage);
	EXPECT_TRUE(f->units_n <= 2); /* One per object. */
	fake_commit_all(f);
	EXPECT_UINT(rows(f, "a") + rows(f, "b"), before - SWEEP_ROWS);
	pass(f, 3);
	EXPECT_UINT(rows(f, "a") + rows(f, "b"), 0);
	fake_free(f);
}

TEST(losing_the_shard_ends_a_slice)
{
	struct fake *f = fake_new(NULL);

	(void)call(f, "a", put, "x", 2000);
	f->now_ns += UINT64_C(3000000000);
	(void)call(f, "c", put, "y", 0);
	space_sweep(f->space);
	fake_change(f); /* Its answer comes to nobody. */
	space_sweep(f->space);
	fake_storage_finish(f->storage, 0, RC_OK);
	EXPECT_UINT(fake_storage_waiting(f->storage), 1); /* It is loaded. */
	fake_change(f); /* Its event ends with the rest. */
	EXPECT_TRUE(sweep_idle(f->space->sweep));
	EXPECT_UINT(rows(f, "a"), 1);
	pass(f, 5);
	EXPECT_UINT(rows(f, "a"), 0);
	fake_free(f);
}

TEST(a_failing_storage_is_asked_again)
{
	struct fake *f = fake_new(NULL);

	(void)call(f, "a", put, "x", 2000);
	f->now_ns += UINT64_C(3000000000);
	(void)call(f, "c", put, "y", 0);
	space_sweep(f->space);
	fake_storage_finish(f->storage, 0, RC_IO);
	EXPECT_TRUE(sweep_idle(f->space->sweep));
	pass(f, 40);
	EXPECT_UINT(rows(f, "a"), 0);
	fake_free(f);
}

TEST(each_allocation_may_fail)
{
	struct fake *f;
	bool fired = true;
	uint64_t n;

	for (n = 1; fired; n++) {
		runner_context("allocation %" PRIu64, n);
		f = fake_new(NULL);
		(void)call(f, "a", put, "x", 2000);
		(void)call(f, "b", put, "x", 2000);
		f->now_ns += UINT64_C(3000000000);
		(void)call(f, "c", put, "y", 0);
		fake_change(f);
		fault_alloc(n);
		space_sweep(f->space);
		fake_go(f);
		fired = fault_off();
		pass(f, 40);
		EXPECT_UINT(rows(f, "a") + rows(f, "b"), 0);
		fake_free(f);
	}
	EXPECT_TRUE(n > 5);
}

TEST(discarding_in_the_middle_leaves_nothing)
{
	struct fake *f = fake_new(NULL);

	(void)call(f, "a", put, "x", 2000);
	f->now_ns += UINT64_C(3000000000);
	(void)call(f, "c", put, "y", 0);
	fake_change(f);
	space_sweep(f->space);
	fake_storage_finish(f->storage, 0, RC_OK);
	space_discard(f->space);
	storage_discard(f->storage);
	turn_init(&f->turn);
	f->storage = fake_storage_new();
	EXPECT_RC(
		space_new(&f->env, &f->host, f->res, f->storage, 0, &f->space),
		RC_OK);
	fake_lead(f);
	fake_free(f);
}
