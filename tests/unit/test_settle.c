#include "node/base/check.h"
#include "objects/space.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define ROWS_A_RUN 3u

static unsigned runs;
static enum rc settle_rc;

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

struct found {
	char keys[ROWS_A_RUN + 1][16];
	unsigned n;
};

static bool find(void *arg, const struct row_view *row)
{
	struct found *l = arg;

	(void)snprintf(l->keys[l->n++], sizeof(l->keys[0]), "%.*s",
		       (int)row->key.n, (const char *)row->key.p);
	return l->n <= ROWS_A_RUN;
}

/* Rows of its memory become rows, a few in each run. */
static enum run settle(struct event *ev)
{
	struct found l = { .n = 0 };
	struct row_view view;
	unsigned i;

	runs++;
	ev_scan_memory(ev, ev->args_bytes, find, &l);
	if (settle_rc != RC_OK)
		return ev_fail(ev, settle_rc, NULL, "not now");
	for (i = 0; i < l.n && i < ROWS_A_RUN; i++) {
		EXPECT_RC(ev_get_memory(ev, str(l.keys[i]), &view), RC_OK);
		if (ev_put(ev, ROW_DATA, str(l.keys[i]), view.value, 0) !=
		    RC_OK)
			return RUN_LOAD;
		EXPECT_RC(ev_delete_memory(ev, str(l.keys[i])), RC_OK);
	}
	if (l.n > ROWS_A_RUN)
		pack_bin(&ev->result, l.keys[ROWS_A_RUN],
			 strlen(l.keys[ROWS_A_RUN]));
	else
		pack_nil(&ev->result);
	return RUN_DONE;
}

static const struct class lends = {
	.name = "t",
	.interleave = INTERLEAVE_NEVER,
	.durability = DURABILITY_COMMITTED,
	.durabilities = 0xff,
	.idem_window_ms = IDEM_WINDOW_DEFAULT_MS,
	.run = fake_script_run,
	.settle = settle,
};

/* Lends `n` times; a row of its own, so that there is an object. */
static enum run lend(struct fake_event *e)
{
	char key[16];
	int64_t i;

	if (ev_settling(&e->ev))
		return ev_fail(&e->ev, RC_CONFLICT, NULL, "nothing is lent");
	if (ev_put(&e->ev, ROW_CONFIG, str("c"), str("v"), 0) != RC_OK)
		return RUN_LOAD;
	for (i = 0; i < e->n; i++) {
		(void)snprintf(key, sizeof(key), "k%03d", (int)i);
		EXPECT_RC(ev_put_memory(&e->ev, str(key), str("value"),
					UINT64_MAX),
			  RC_OK);
	}
	pack_u64(&e->ev.result, ev_epoch(&e->ev));
	return RUN_DONE;
}

static enum rc call(struct fake *f, const char *name, int64_t n)
{
	struct fake_event *e = fake_event(f, &lends, name, "put");
	enum rc rc;

	e->script = lend;
	e->n = n;
	fake_send(f, e);
	fake_go(f);
	EXPECT_TRUE(e->done);
	rc = e->ev.rc;
	fake_event_free(e);
	return rc;
}

static size_t rows(const struct fake *f, const char *name)
{
	struct oid oid = fake_oid("t", name);

	return fake_storage_rows(f->storage, &oid, ROW_DATA);
}

static void begin(void)
{
	runs = 0;
	settle_rc = RC_OK;
}

TEST(nothing_is_lent)
{
	struct fake *f = fake_new(NULL);

	begin();
	EXPECT_TRUE(space_settle(f->space));
	space_settle_end(f->space);
	EXPECT_RC(call(f, "a", 0), RC_OK);
	EXPECT_TRUE(space_settle(f->space));
	EXPECT_UINT(runs, 0);
	fake_free(f);
}

TEST(everything_lent_is_closed)
{
	struct fake *f = fake_new(NULL);
	char name[16];
	unsigned i;

	begin();
	/* More objects than are asked at a time. */
	for (i = 0; i < 150; i++) {
		(void)snprintf(name, sizeof(name), "o%u", i);
		EXPECT_RC(call(f, name, i % 11), RC_OK);
	}
	EXPECT_FALSE(space_settle(f->space));
	/* Not done before it is committed. */
	fake_turn(f);
	EXPECT_FALSE(space_settle(f->space));
	fake_go(f);
	EXPECT_TRUE(space_settle(f->space));
	EXPECT_UINT(f->units_n, 0);
	for (i = 0; i < 150; i++) {
		(void)snprintf(name, sizeof(name), "o%u", i);
		EXPECT_UINT(rows(f, name), i % 11);
	}
	EXPECT_RC(call(f, "o1", 1), RC_CONFLICT);
	space_settle_end(f->space);
	EXPECT_RC(call(f, "o1", 2), RC_OK);
	EXPECT_FALSE(space_settle(f->space));
	fake_go(f);
	EXPECT_TRUE(space_settle(f->space));
	EXPECT_UINT(rows(f, "o1"), 2);
	/* The next leadership lends again. */
	fake_change(f);
	EXPECT_RC(call(f, "o1", 1), RC_OK);
	fake_free(f);
}

TEST(it_ends_in_the_middle)
{
	struct fake *f;
	unsigned how;

	for (how = 0; how < 5; how++) {
		runner_context("way %u", how);
		begin();
		f = fake_new(NULL);
		EXPECT_RC(call(f, "a", 10), RC_OK);
		EXPECT_RC(call(f, "b", 10), RC_OK);
		if (how == 3)
			settle_rc = RC_OVERLOADED;
		EXPECT_FALSE(space_settle(f->space));
		if (how == 0)
			fake_lose(f);
		if (how == 1)
			space_settle_end(f->space);
		if (how == 2)
			fake_change(f);
		if (how == 4) {
			space_discard(f->space);
			f->space = NULL;
			EXPECT_RC(space_new(&f->env, &f->host, f->res,
					    f->storage, 0, &f->space),
				  RC_OK);
			fake_lead(f);
		}
		fake_go(f);
		/* What could not be closed is simply left. */
		EXPECT_TRUE(how == 3 ? space_settle(f->space) : true);
		if (how == 0)
			fake_lead(f);
		if (how != 3)
			EXPECT_RC(call(f, "a", 1), RC_OK);
		fake_free(f);
	}
}

/* Without memory less is closed, and nothing else happens. */
TEST(every_allocation_fails)
{
	struct fake *f;
	uint64_t n;
	bool fired = true;

	for (n = 1; fired; n++) {
		runner_context("allocation %d", (int)n);
		begin();
		f = fake_new(NULL);
		EXPECT_RC(call(f, "a", 7), RC_OK);
		EXPECT_RC(call(f, "b", 2), RC_OK);
		fault_alloc(n);
		(void)space_settle(f->space);
		fake_go(f);
		fired = fault_off();
		EXPECT_TRUE(space_settle(f->space));
		EXPECT_TRUE(rows(f, "a") <= 7);
		if (!fired)
			EXPECT_UINT(rows(f, "a") + rows(f, "b"), 9);
		fake_free(f);
	}
	EXPECT_TRUE(n > 3);
}
