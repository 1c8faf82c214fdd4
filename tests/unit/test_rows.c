#include "objects/rows.h"

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static const struct pack_bytes none = { NULL, 0 };

static struct pack_bytes str(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static struct row *add(struct rows *rows, unsigned kind, const char *key,
		       const char *value)
{
	struct row *r = row_new(kind, str(key), str(value), 0);

	EXPECT_NOT_NULL(r);
	rows_insert(rows, r);
	return r;
}

static enum rows_found find(const struct rows *rows, const char *key)
{
	struct row *r;

	return rows_find(rows, ROW_DATA, str(key), &r);
}

TEST(keys_are_ordered_as_bytes_the_shorter_first)
{
	const struct pack_bytes high = { (const uint8_t *)"\xff", 1 };

	EXPECT_TRUE(row_key_cmp(str("a"), str("b")) < 0);
	EXPECT_TRUE(row_key_cmp(str("b"), str("a")) > 0);
	EXPECT_TRUE(row_key_cmp(str("a"), str("aa")) < 0);
	EXPECT_TRUE(row_key_cmp(str("aa"), str("a")) > 0);
	EXPECT_TRUE(row_key_cmp(none, str("a")) < 0);
	EXPECT_INT(row_key_cmp(none, none), 0);
	EXPECT_TRUE(row_key_cmp(str("z"), high) < 0);
}

TEST(a_value_changes_in_place_as_long_as_it_fits)
{
	struct row *r = row_new(ROW_DATA, str("key"), str("value"), 7);
	char big[200];

	memset(big, 'x', sizeof(big));
	EXPECT_UINT(r->expires_ns, 7);
	EXPECT_TRUE(row_fits(r, 5));
	EXPECT_TRUE(row_fits(r, 0));
	EXPECT_FALSE(row_fits(r, sizeof(big)));
	row_set(r, str("other"), 0);
	EXPECT_TRUE(pack_bytes_eq(row_value(r), "other", 5));
	EXPECT_TRUE(pack_bytes_eq(row_key(r), "key", 3));
	row_set(r, none, 0);
	EXPECT_UINT(row_value(r).n, 0);
	free(r);
	/* A small one does not keep the room of a large one. */
	r = row_new(ROW_DATA, str("key"),
		    (struct pack_bytes){ (uint8_t *)big, sizeof(big) }, 0);
	EXPECT_FALSE(row_fits(r, 3));
	free(r);
}

TEST(a_small_row_takes_little_memory)
{
	struct rows rows;

	rows_init(&rows);
	(void)add(&rows, ROW_DATA, "counter", "12345678");
	EXPECT_TRUE(rows.bytes <= 112);
	rows_release(&rows);
	EXPECT_UINT(rows.bytes, 0);
}

TEST(nothing_is_known_at_first_but_memory_rows)
{
	struct rows rows;
	struct row *r;

	rows_init(&rows);
	EXPECT_INT(find(&rows, "a"), ROWS_UNKNOWN);
	EXPECT_INT(rows_find(&rows, ROW_MEMORY, str("a"), &r), ROWS_ABSENT);
	rows.complete = UINT32_MAX;
	EXPECT_INT(find(&rows, "a"), ROWS_ABSENT);
	rows_release(&rows);
}

static void many_key(char key[32], unsigned i)
{
	(void)snprintf(key, 32, "key-%u", i);
}

static void expect_rows(const struct rows *rows, const bool *there, unsigned n)
{
	char key[32];
	unsigned i;

	for (i = 0; i < n; i++) {
		many_key(key, i);
		EXPECT_INT(find(rows, key),
			   there[i] ? ROWS_FOUND : ROWS_ABSENT);
	}
}

/* However they are found, it is what the tree says. */
TEST(of_many_rows_each_is_found)
{
	enum { N = 1000 };
	static bool there[N];
	unsigned round;
	unsigned i;

	/* With memory for an index, without, and with it later. */
	for (round = 0; round < 3; round++) {
		struct rows rows;
		struct row *r;
		char key[32];

		rows_init(&rows);
		rows.complete = UINT32_MAX;
		for (i = 0; i < N; i++) {
			many_key(key, i);
			r = row_new(ROW_DATA, str(key), str("v"), 0);
			if (round == 1 || (round == 2 && i < 100))
				fault_alloc_from(1);
			rows_insert(&rows, r);
			(void)fault_off();
			there[i] = true;
		}
		EXPECT_TRUE((rows.chains == NULL) == (round == 1));
		expect_rows(&rows, there, N);
		for (i = 0; i < N; i += 3) {
			many_key(key, i);
			EXPECT_INT(rows_find(&rows, ROW_DATA, str(key), &r),
				   ROWS_FOUND);
			rows_remove(&rows, r);
			there[i] = false;
		}
		for (i = 1; i < N; i += 3) {
			struct row *other;

			many_key(key, i);
			EXPECT_INT(rows_find(&rows, ROW_DATA, str(key), &r),
				   ROWS_FOUND);
			other = row_new(ROW_DATA, str(key), str("other"), 0);
			rows_replace(&rows, r, other);
			EXPECT_INT(rows_find(&rows, ROW_DATA, str(key), &r),
				   ROWS_FOUND);
			EXPECT_TRUE(r == other);
		}
		expect_rows(&rows, there, N);
		rows_clear(&rows, row_kind_bit(ROW_DATA));
		memset(there, 0, sizeof(there));
		expect_rows(&rows, there, N);
		EXPECT_UINT(rows.bytes, 0);
		EXPECT_UINT(rows.n, 0);
		for (i = 0; i < N; i++) {
			many_key(key, i);
			(void)add(&rows, ROW_DATA, key, "again");
			there[i] = true;
		}
		expect_rows(&rows, there, N);
		rows_release(&rows);
		EXPECT_UINT(rows.bytes, 0);
	}
}

/* Keys that were chosen to meet. */
TEST(rows_of_one_chain_are_found)
{
	static bool in[300000];
	struct rows rows;
	struct row_chain *chain;
	struct row *r;
	char key[32];
	unsigned chosen = 0;
	unsigned i;

	rows_init(&rows);
	rows.complete = UINT32_MAX;
	for (i = 0; i < 64; i++) {
		many_key(key, i);
		(void)add(&rows, ROW_DATA, key, "v");
	}
	chain = rows.chains;
	EXPECT_NOT_NULL(chain);
	for (i = 64; chosen < 60; i++) {
		many_key(key, i);
		r = add(&rows, ROW_DATA, key, "v");
		EXPECT_TRUE(rows.chains == chain);
		in[i] = LIST_FIRST(chain) == r;
		chosen += in[i];
		if (!in[i])
			rows_remove(&rows, r);
	}
	while (--i >= 64) {
		many_key(key, i);
		EXPECT_INT(find(&rows, key), in[i] ? ROWS_FOUND : ROWS_ABSENT);
	}
	rows_release(&rows);
}

TEST(kinds_do_not_mix)
{
	struct rows rows;
	struct row *r;

	rows_init(&rows);
	rows.complete = UINT32_MAX;
	(void)add(&rows, ROW_DATA, "a", "data");
	(void)add(&rows, ROW_IDEM, "a", "idem");
	EXPECT_INT(rows_find(&rows, ROW_IDEM, str("a"), &r), ROWS_FOUND);
	EXPECT_TRUE(pack_bytes_eq(row_value(r), "idem", 4));
	EXPECT_INT(rows_find(&rows, ROW_CONFIG, str("a"), &r), ROWS_ABSENT);
	rows_clear(&rows, row_kind_bit(ROW_DATA));
	EXPECT_INT(rows_find(&rows, ROW_DATA, str("a"), &r), ROWS_ABSENT);
	EXPECT_INT(rows_find(&rows, ROW_IDEM, str("a"), &r), ROWS_FOUND);
	rows_release(&rows);
}

TEST(replacing_keeps_the_tree_whole)
{
	struct rows rows;
	struct row *r;
	char key[16];
	int i;

	rows_init(&rows);
	rows.complete = UINT32_MAX;
	for (i = 0; i < 200; i++) {
		(void)snprintf(key, sizeof(key), "%03d", i * 37 % 200);
		(void)add(&rows, ROW_DATA, key, "v");
	}
	for (i = 0; i < 200; i++) {
		(void)snprintf(key, sizeof(key), "%03d", i * 13 % 200);
		EXPECT_INT(rows_find(&rows, ROW_DATA, str(key), &r),
			   ROWS_FOUND);
		rows_replace(&rows, r,
			     row_new(ROW_DATA, str(key), str(key), 0));
	}
	for (i = 0; i < 200; i += 2) {
		(void)snprintf(key, sizeof(key), "%03d", i);
		EXPECT_INT(rows_find(&rows, ROW_DATA, str(key), &r),
			   ROWS_FOUND);
		EXPECT_TRUE(pack_bytes_eq(row_value(r), key, 3));
		rows_remove(&rows, r);
	}
	for (i = 0; i < 200; i++) {
		(void)snprintf(key, sizeof(key), "%03d", i);
		EXPECT_INT(find(&rows, key),
			   i % 2 == 0 ? ROWS_ABSENT : ROWS_FOUND);
	}
	rows_release(&rows);
}

TEST(a_loaded_range_is_known_and_nothing_beside_it)
{
	struct rows rows;

	rows_init(&rows);
	(void)add(&rows, ROW_DATA, "m", "v");
	EXPECT_RC(rows_known(&rows, ROW_DATA, str("k"), str("p")), RC_OK);
	EXPECT_INT(find(&rows, "j"), ROWS_UNKNOWN);
	EXPECT_INT(find(&rows, "k"), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "l"), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "m"), ROWS_FOUND);
	EXPECT_INT(find(&rows, "o"), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "p"), ROWS_UNKNOWN);
	EXPECT_INT(find(&rows, "q"), ROWS_UNKNOWN);
	/* The next range joins it without a seam. */
	EXPECT_RC(rows_known(&rows, ROW_DATA, str("p"), none), RC_OK);
	EXPECT_INT(find(&rows, "p"), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "z"), ROWS_ABSENT);
	EXPECT_RC(rows_known(&rows, ROW_DATA, none, str("k")), RC_OK);
	EXPECT_INT(find(&rows, ""), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "a"), ROWS_ABSENT);
	rows_release(&rows);
}

TEST(a_row_put_into_a_known_gap_splits_it)
{
	struct rows rows;

	rows_init(&rows);
	EXPECT_RC(rows_known(&rows, ROW_DATA, str("a"), str("z")), RC_OK);
	(void)add(&rows, ROW_DATA, "m", "v");
	EXPECT_INT(find(&rows, "l"), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "n"), ROWS_ABSENT);
	/* Nor does it make an unknown one known. */
	(void)add(&rows, ROW_DATA, "zz", "v");
	EXPECT_INT(find(&rows, "zy"), ROWS_UNKNOWN);
	EXPECT_INT(find(&rows, "zzz"), ROWS_UNKNOWN);
	rows_release(&rows);
}

TEST(a_deleted_row_of_a_partly_known_object_is_known_absent)
{
	struct rows rows;
	struct row *r;

	rows_init(&rows);
	r = add(&rows, ROW_DATA, "m", "v");
	rows_make_absent(&rows, r);
	EXPECT_INT(find(&rows, "m"), ROWS_ABSENT);
	EXPECT_INT(find(&rows, "n"), ROWS_UNKNOWN);
	EXPECT_ABORT(rows_remove(&rows, r));
	rows_release(&rows);
}

TEST(trimming_keeps_what_is_not_stored)
{
	struct rows rows;

	rows_init(&rows);
	rows.complete = UINT32_MAX;
	add(&rows, ROW_DATA, "a", "stored")->mark = 3;
	add(&rows, ROW_DATA, "b", "new")->mark = 4;
	(void)add(&rows, ROW_MEMORY, "m", "memory");
	rows_trim(&rows, 3);
	EXPECT_INT(find(&rows, "a"), ROWS_UNKNOWN);
	EXPECT_INT(find(&rows, "b"), ROWS_FOUND);
	EXPECT_INT(find(&rows, "c"), ROWS_UNKNOWN);
	EXPECT_TRUE(RB_ROOT(&rows.tree) != NULL);
	EXPECT_TRUE(rows_complete(&rows, ROW_MEMORY));
	rows_release(&rows);
}

TEST(without_memory_nothing_becomes_known)
{
	struct rows rows;

	rows_init(&rows);
	fault_alloc(1);
	EXPECT_TRUE(row_new(ROW_DATA, str("a"), none, 0) == NULL);
	EXPECT_TRUE(fault_off());
	fault_alloc(1);
	EXPECT_RC(rows_known(&rows, ROW_DATA, str("a"), str("c")), RC_NOMEM);
	EXPECT_TRUE(fault_off());
	EXPECT_INT(find(&rows, "b"), ROWS_UNKNOWN);
	fault_alloc(2);
	EXPECT_RC(rows_known(&rows, ROW_DATA, str("a"), str("c")), RC_NOMEM);
	EXPECT_TRUE(fault_off());
	EXPECT_INT(find(&rows, "b"), ROWS_UNKNOWN);
	fault_alloc(1);
	EXPECT_RC(rows_known_absent(&rows, ROW_DATA, str("a")), RC_NOMEM);
	EXPECT_TRUE(fault_off());
	rows_release(&rows);
}

/*
 * A large object as a set of numbers, loaded bit by bit in every way, changed
 * and trimmed meanwhile: what the rows say is never wrong.
 */
#define KEYS 60

struct model {
	struct rows rows;
	bool have[KEYS];   /* The truth. */
	bool stored[KEYS]; /* What a load shows. */
	uint64_t mark;
	uint64_t seed;
};

static unsigned pick(struct model *m, unsigned n)
{
	m->seed = m->seed * UINT64_C(6364136223846793005) +
		  UINT64_C(1442695040888963407);
	return (unsigned)(m->seed >> 33) % n;
}

static const char *key_of(unsigned i)
{
	static char text[4][16];
	static unsigned next;
	char *s = text[next++ % 4];

	(void)snprintf(s, sizeof(text[0]), "%02u", i);
	return s;
}

static unsigned number_of(const struct row *r)
{
	return r->key_n == 0 ? 0
			     : (unsigned)(r->data[0] - '0') * 10 +
				       (unsigned)(r->data[1] - '0');
}

static void give(struct model *m, unsigned i)
{
	struct row *old;
	struct row *r;

	(void)rows_find(&m->rows, ROW_DATA, str(key_of(i)), &old);
	if (old != NULL && (old->flags & ROW_UNKNOWN) == 0)
		return;
	r = row_new(ROW_DATA, str(key_of(i)), str("v"), 0);
	if (old != NULL)
		rows_replace(&m->rows, old, r);
	else
		rows_insert(&m->rows, r);
}

static void load_range(struct model *m)
{
	unsigned a = pick(m, KEYS);
	unsigned b = a + pick(m, KEYS - a);
	unsigned most = 1 + pick(m, 6);
	bool reverse = pick(m, 2) == 0;
	bool open = pick(m, 4) == 0;
	unsigned end = open ? KEYS : b;
	unsigned first = a;
	unsigned last = end;
	unsigned n = 0;
	unsigned i;

	for (i = 0; i < end - a && n < most; i++) {
		unsigned k = reverse ? end - 1 - i : a + i;

		if (!m->stored[k])
			continue;
		give(m, k);
		n++;
		if (reverse)
			first = k;
		else
			last = k;
	}
	if (n < most) {
		first = a;
		last = end;
	}
	EXPECT_RC(rows_known(&m->rows, ROW_DATA, str(key_of(first)),
			     last == KEYS ? none : str(key_of(last))),
		  RC_OK);
}

static void load_key(struct model *m)
{
	unsigned i = pick(m, KEYS);

	if (m->stored[i])
		give(m, i);
	EXPECT_RC(rows_known_absent(&m->rows, ROW_DATA, str(key_of(i))), RC_OK);
}

static void change(struct model *m)
{
	unsigned i = pick(m, KEYS);
	struct row *r;
	enum rows_found found =
		rows_find(&m->rows, ROW_DATA, str(key_of(i)), &r);

	if (found == ROWS_UNKNOWN)
		return;
	m->have[i] = found == ROWS_ABSENT;
	if (found == ROWS_FOUND) {
		rows_make_absent(&m->rows, r);
	} else if (r != NULL) {
		rows_replace(&m->rows, r,
			     row_new(ROW_DATA, str(key_of(i)), str("v"), 0));
		(void)rows_find(&m->rows, ROW_DATA, str(key_of(i)), &r);
	} else {
		r = row_new(ROW_DATA, str(key_of(i)), str("v"), 0);
		rows_insert(&m->rows, r);
	}
	r->mark = ++m->mark;
}

static void check_found(struct model *m)
{
	struct row *r;
	unsigned i;

	for (i = 0; i < KEYS; i++) {
		switch (rows_find(&m->rows, ROW_DATA, str(key_of(i)), &r)) {
		case ROWS_FOUND:
			EXPECT_TRUE(m->have[i]);
			break;
		case ROWS_ABSENT:
			EXPECT_FALSE(m->have[i]);
			break;
		case ROWS_UNKNOWN:
			break;
		}
	}
}

static void check_walk(struct model *m, bool reverse)
{
	struct rows_walk w;
	int from = reverse ? KEYS : -1;
	int step = reverse ? -1 : 1;
	int to;
	int i;

	if (reverse)
		rows_last(&w, &m->rows, ROW_DATA, none);
	else
		rows_first(&w, &m->rows, ROW_DATA, none);
	for (;;) {
		to = w.at != NULL ? (int)number_of(w.at)
				  : (reverse ? -1 : KEYS);
		if (w.at != NULL && w.at->key_n == 0)
			to = -1;
		for (i = from + step;
		     w.gap_known && i != to && i >= 0 && i < KEYS; i += step)
			EXPECT_FALSE(m->have[i]);
		if (w.at == NULL)
			return;
		if (to >= 0 && (w.at->flags & ROW_UNKNOWN) == 0)
			EXPECT_TRUE(m->have[to] == row_exists(w.at));
		from = to;
		if (reverse)
			rows_prev(&w);
		else
			rows_next(&w);
	}
}

static void run_model(uint64_t seed)
{
	struct model m = { .seed = seed };
	unsigned i;

	runner_context("seed %" PRIu64, seed);
	rows_init(&m.rows);
	for (i = 0; i < KEYS; i++)
		m.have[i] = m.stored[i] = pick(&m, 3) == 0;
	for (i = 0; i < 120; i++) {
		switch (pick(&m, 8)) {
		case 0:
		case 1:
			load_range(&m);
			break;
		case 2:
			load_key(&m);
			break;
		case 3:
			/* What was written is stored up to some mark. */
			if (pick(&m, 6) == 0) {
				memcpy(m.stored, m.have, sizeof(m.stored));
				rows_trim(&m.rows, m.mark);
			}
			break;
		default:
			change(&m);
			break;
		}
		check_found(&m);
		check_walk(&m, false);
		check_walk(&m, true);
	}
	rows_release(&m.rows);
}

TEST(what_rows_say_is_never_wrong)
{
	uint64_t seed;

	for (seed = 1; seed <= 300; seed++)
		run_model(seed);
}
