#include "objects/stage.h"

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static const struct pack_bytes none = { NULL, 0 };

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static struct stage stage;
static struct rows rows;

static void begin(void)
{
	struct row *r;

	EXPECT_RC(stage_init(&stage), RC_OK);
	rows_init(&rows);
	rows.complete = UINT32_MAX;
	r = row_new(ROW_DATA, str("old"), str("value"), 0);
	rows_insert(&rows, r);
	r = row_new(ROW_MEMORY, str("m"), str("memory"), 0);
	rows_insert(&rows, r);
	stage_reset(&stage, 5);
}

static void end(void)
{
	stage_release(&stage);
	rows_release(&rows);
}

static enum rc put(unsigned kind, const char *key, const char *value)
{
	return stage_put(&stage, &rows, kind, str(key), str(value), 0, true);
}

static enum rc delete_row(unsigned kind, const char *key)
{
	return stage_delete(&stage, &rows, kind, str(key), true);
}

TEST(what_is_staged_is_counted)
{
	begin();
	EXPECT_UINT(stage.rev, 5);
	EXPECT_RC(put(ROW_DATA, "new", "12345"), RC_OK);
	EXPECT_INT(stage.rows, 1);
	EXPECT_INT(stage.own_bytes, 8);
	EXPECT_RC(put(ROW_DATA, "old", "v"), RC_OK);
	EXPECT_INT(stage.rows, 1);
	EXPECT_INT(stage.own_bytes, 4);
	EXPECT_RC(put(ROW_CONFIG, "c", "1"), RC_OK);
	EXPECT_INT(stage.rows, 1);
	EXPECT_INT(stage.own_bytes, 6);
	EXPECT_RC(put(ROW_IDEM, "i", "22"), RC_OK);
	EXPECT_INT(stage.idem_bytes, 3);
	EXPECT_RC(put(ROW_MEMORY, "m", "x"), RC_OK);
	EXPECT_RC(put(ROW_MEMORY, "m2", "x"), RC_OK);
	EXPECT_INT(stage.memory_rows, 1);
	EXPECT_UINT(stage.n, 4);
	stage_reset(&stage, 6);
	EXPECT_UINT(stage.n, 0);
	EXPECT_INT(stage.own_bytes, 0);
	EXPECT_UINT(stage.rev, 6);
	EXPECT_TRUE(stage_all(&stage) == NULL);
	end();
}

TEST(the_last_of_several_changes_counts)
{
	const struct staged *s;

	begin();
	EXPECT_RC(put(ROW_DATA, "old", "a"), RC_OK);
	EXPECT_RC(delete_row(ROW_DATA, "old"), RC_OK);
	EXPECT_INT(stage.rows, -1);
	EXPECT_INT(stage.own_bytes, -8);
	EXPECT_RC(put(ROW_DATA, "old", "bcd"), RC_OK);
	EXPECT_INT(stage.rows, 0);
	EXPECT_INT(stage.own_bytes, -2);
	EXPECT_UINT(stage.n, 1);
	s = stage_find(&stage, ROW_DATA, str("old"));
	EXPECT_TRUE(pack_bytes_eq(s->value, "bcd", 3));
	EXPECT_FALSE(s->deleted);
	EXPECT_TRUE(s->base != NULL);
	end();
}

TEST(what_was_never_there_needs_no_effect_to_be_gone)
{
	begin();
	EXPECT_RC(delete_row(ROW_DATA, "nothing"), RC_OK);
	EXPECT_UINT(stage.n, 0);
	EXPECT_RC(put(ROW_DATA, "new", "v"), RC_OK);
	EXPECT_RC(delete_row(ROW_DATA, "new"), RC_OK);
	EXPECT_UINT(stage.n, 0);
	EXPECT_UINT(stage.bytes, 0);
	EXPECT_INT(stage.rows, 0);
	EXPECT_INT(stage.own_bytes, 0);
	EXPECT_TRUE(stage_find(&stage, ROW_DATA, str("new")) == NULL);
	end();
}

TEST(clearing_takes_the_rows_and_leaves_the_records)
{
	begin();
	EXPECT_RC(put(ROW_DATA, "old", "v"), RC_OK);
	EXPECT_RC(put(ROW_DATA, "new", "v"), RC_OK);
	EXPECT_RC(put(ROW_IDEM, "i", "record"), RC_OK);
	stage_clear(&stage, 1, 1, 8);
	EXPECT_UINT(stage.n, 1);
	EXPECT_INT(stage.rows, -1);
	EXPECT_INT(stage.memory_rows, -1);
	EXPECT_INT(stage.own_bytes, -8);
	EXPECT_INT(stage.idem_bytes, 7);
	EXPECT_RC(put(ROW_DATA, "old", "again"), RC_OK);
	EXPECT_INT(stage.rows, 0);
	EXPECT_INT(stage.own_bytes, 0);
	EXPECT_TRUE(stage_find(&stage, ROW_DATA, str("old"))->base == NULL);
	end();
}

TEST(an_event_is_bounded_in_rows_and_bytes)
{
	static uint8_t big[EVENT_EFFECTS_BYTES_MAX];
	char key[24];
	unsigned i;

	begin();
	EXPECT_RC(stage_put(&stage, &rows, ROW_DATA, str("k"),
			    (struct pack_bytes){ big, sizeof(big) }, 0, true),
		  RC_OVERLOADED);
	EXPECT_RC(stage_put(&stage, &rows, ROW_DATA, str("k"),
			    (struct pack_bytes){ big, sizeof(big) - 1 }, 0,
			    true),
		  RC_OK);
	EXPECT_RC(put(ROW_DATA, "l", ""), RC_OVERLOADED);
	/* In place of it something smaller may stand. */
	EXPECT_RC(put(ROW_DATA, "k", "small"), RC_OK);
	stage_reset(&stage, 0);
	for (i = 0; i < EVENT_ROWS_MAX; i++) {
		(void)snprintf(key, sizeof(key), "%u", i);
		EXPECT_RC(put(ROW_DATA, key, "v"), RC_OK);
	}
	EXPECT_RC(put(ROW_DATA, "more", "v"), RC_OVERLOADED);
	EXPECT_RC(put(ROW_DATA, "0", "w"), RC_OK);
	EXPECT_RC(delete_row(ROW_DATA, "old"), RC_OVERLOADED);
	EXPECT_RC(put(ROW_MEMORY, "more", "v"), RC_OK);
	/* A key's record always has room. */
	EXPECT_RC(stage_put(&stage, &rows, ROW_IDEM, str("i"), str("v"), 0,
			    false),
		  RC_OK);
	end();
}

TEST(staged_rows_are_walked_in_order)
{
	static const char *const keys[] = { "d", "a", "c", "b" };
	struct staged *s;
	size_t i;

	begin();
	EXPECT_RC(put(ROW_IDEM, "a", "other kind"), RC_OK);
	for (i = 0; i < 4; i++)
		EXPECT_RC(put(ROW_DATA, keys[i], "v"), RC_OK);
	s = stage_first(&stage, ROW_DATA, none);
	for (i = 0; i < 4; i++, s = stage_next(s))
		EXPECT_INT(s->key.p[0], 'a' + (int)i);
	EXPECT_TRUE(s == NULL);
	s = stage_last(&stage, ROW_DATA, none);
	for (i = 0; i < 4; i++, s = stage_prev(s))
		EXPECT_INT(s->key.p[0], 'd' - (int)i);
	EXPECT_TRUE(s == NULL);
	EXPECT_INT(stage_first(&stage, ROW_DATA, str("bb"))->key.p[0], 'c');
	EXPECT_INT(stage_last(&stage, ROW_DATA, str("c"))->key.p[0], 'b');
	EXPECT_TRUE(stage_first(&stage, ROW_DATA, str("e")) == NULL);
	EXPECT_TRUE(stage_last(&stage, ROW_DATA, str("a")) == NULL);
	for (i = 0, s = stage_all(&stage); s != NULL; s = stage_follow(s))
		i++;
	EXPECT_UINT(i, 5);
	end();
}

TEST(wants_are_copied_and_bounded)
{
	char key[24];
	unsigned i;

	begin();
	for (i = 0; i < STAGE_WANTS_MAX + 10; i++) {
		(void)snprintf(key, sizeof(key), "%u", i);
		EXPECT_TRUE(stage_want_key(&stage, ROW_DATA, str(key)));
	}
	EXPECT_UINT(stage.wants_n, STAGE_WANTS_MAX);
	EXPECT_TRUE(pack_bytes_eq(stage.wants[7].key, "7", 1));
	EXPECT_TRUE(stage_want_range(&stage, ROW_DATA, none, str(key), true));
	key[0] = 'x';
	EXPECT_TRUE(stage.want_range);
	EXPECT_TRUE(stage.want_start.p == NULL);
	EXPECT_INT(stage.want_end.p[0], '1');
	stage_reset(&stage, 0);
	EXPECT_UINT(stage.wants_n, 0);
	EXPECT_FALSE(stage.want_range);
	end();
}

TEST(a_row_that_is_not_known_cannot_be_staged_over)
{
	begin();
	rows.complete = 0;
	EXPECT_ABORT(put(ROW_DATA, "unknown", "v"));
	EXPECT_RC(put(ROW_DATA, "old", "v"), RC_OK);
	end();
}

TEST(each_allocation_may_fail)
{
	static uint8_t big[70000];
	const struct pack_bytes value = { big, sizeof(big) };
	struct stage st;
	uint64_t n;
	enum rc rc;

	fault_alloc(1);
	EXPECT_RC(stage_init(&st), RC_NOMEM);
	EXPECT_TRUE(fault_off());
	begin();
	for (n = 1; n < 10; n++) {
		stage_reset(&stage, 0);
		fault_alloc(n);
		rc = stage_put(&stage, &rows, ROW_DATA, str("a"), value, 0,
			       true);
		if (rc == RC_OK)
			rc = stage_put(&stage, &rows, ROW_DATA, str("b"), value,
				       0, true);
		if (!fault_off())
			break;
		EXPECT_RC(rc, RC_NOMEM);
		EXPECT_UINT(stage.n, n - 1);
	}
	EXPECT_UINT(n, 3);
	EXPECT_RC(rc, RC_OK);
	end();
}
