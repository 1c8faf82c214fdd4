#include "objects/join.h"

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static struct join join;
static struct pack_w units;
static struct pack_w entry;
static uint32_t units_n;

static const struct pack_bytes none = { NULL, 0 };

static void fresh(void)
{
	pack_w_release(&units);
	pack_w_release(&entry);
	pack_w_init(&units, ENTRY_BYTES_MAX);
	pack_w_init(&entry, ENTRY_BYTES_MAX);
	units_n = 0;
}

static void over(void)
{
	fresh();
	join_release(&join);
}

static struct pack_bytes text(const char *s)
{
	if (s == NULL)
		return none;
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

/* Object 'a', 'b', ... */
static struct oid oid_of(char object)
{
	struct oid oid;

	memset(oid.b, object, sizeof(oid.b));
	return oid;
}

static void unit(char object, uint32_t flags, const char *head, uint32_t rows)
{
	struct oid oid = oid_of(object);

	unit_begin(&units, &oid, flags, text(head), rows);
	units_n++;
}

static void row(const char *key, const char *value)
{
	unit_row(&units, &(struct unit_row){ ROW_DATA, text(key), text(value),
					     value != NULL ? 9 : 0 });
}

/* The entry with what is joined; how many units it has. */
static uint32_t joined(void)
{
	uint32_t n = join_read(&join, units.p, units.n, units_n);

	size_t bytes = join_bytes_max(&join);
	size_t head;

	EXPECT_RC(units.rc, RC_OK);
	pack_w_reset(&entry);
	entry_begin(&entry, 5, 6, 7, n);
	head = entry.n;
	join_write(&join, &entry);
	EXPECT_RC(entry.rc, RC_OK);
	EXPECT_TRUE(entry.n - head <= bytes);
	EXPECT_TRUE(bytes <= units.n);
	return n;
}

/* What the entry says, as text: "a+head key=value key ; b! ...". */
static char said[4096];

static void say(const char *p, size_t n)
{
	size_t at = strlen(said);

	EXPECT_TRUE(at + n < sizeof(said));
	memcpy(said + at, p, n);
	said[at + n] = '\0';
}

static void say_bytes(const char *before, struct pack_bytes b)
{
	say(before, strlen(before));
	say((const char *)b.p, b.n);
}

static const char *says(void)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	enum rc rc;

	said[0] = '\0';
	EXPECT_RC(entry_read(entry.p, entry.n, &e), RC_OK);
	while ((rc = entry_next(&e, &u)) == RC_OK) {
		if (said[0] != '\0')
			say("; ", 2);
		say((const char *)u.oid.b, 1);
		if ((u.flags & UNIT_WIPE) != 0)
			say("!", 1);
		if ((u.flags & UNIT_CLEAR) != 0)
			say("~", 1);
		if ((u.flags & UNIT_GONE) != 0)
			say("-", 1);
		if (u.head.p != NULL)
			say_bytes("+", u.head);
		while (unit_next(&u, &r) == RC_OK) {
			say_bytes(" ", r.key);
			if (r.value.p != NULL)
				say_bytes("=", r.value);
		}
	}
	EXPECT_RC(rc, RC_EOF);
	return said;
}

TEST(units_of_one_object_are_one)
{
	fresh();
	unit('a', 0, "1", 1);
	row("k", "v");
	unit('b', 0, "1", 1);
	row("k", "w");
	unit('a', 0, "2", 2);
	row("l", "x");
	row("k", NULL);
	unit('a', 0, NULL, 0);
	unit('a', 0, "3", 1);
	row("m", "");
	EXPECT_UINT(joined(), 2);
	EXPECT_STR(says(), "a+3 k=v l=x k m=; b+1 k=w");
	over();
}

TEST(without_two_of_an_object_nothing_changes)
{
	struct pack_w was;

	fresh();
	EXPECT_UINT(joined(), 0);
	EXPECT_STR(says(), "");
	unit('a', 0, "1", 1);
	row("k", "v");
	EXPECT_UINT(joined(), 1);
	EXPECT_STR(says(), "a+1 k=v");
	unit('b', UNIT_WIPE, "1", 0);
	EXPECT_UINT(joined(), 2);
	pack_w_init(&was, ENTRY_BYTES_MAX);
	entry_begin(&was, 5, 6, 7, 2);
	pack_raw(&was, units.p, units.n);
	EXPECT_UINT(entry.n, was.n);
	EXPECT_MEM(entry.p, was.p, was.n);
	pack_w_release(&was);
	over();
}

TEST(what_hides_rows_stays_behind_them)
{
	fresh();
	unit('a', 0, "1", 1);
	row("k", "v");
	unit('a', UNIT_CLEAR, "2", 0);
	unit('a', 0, "3", 1);
	row("l", "w");
	unit('a', UNIT_WIPE, "4", 1);
	row("m", "x");
	unit('a', 0, "5", 1);
	row("n", "y");
	EXPECT_UINT(joined(), 3);
	EXPECT_STR(says(), "a+1 k=v; a~+3 l=w; a!+5 m=x n=y");
	over();
}

TEST(what_is_gone_stays_gone)
{
	fresh();
	unit('a', 0, "1", 1);
	row("k", "v");
	unit('a', UNIT_WIPE | UNIT_GONE, NULL, 0);
	unit('a', 0, "2", 1);
	row("l", "w");
	unit('a', 0, "3", 0);
	EXPECT_UINT(joined(), 3);
	EXPECT_STR(says(), "a+1 k=v; a!-; a+3 l=w");
	over();
}

/* Ids that begin alike meet in the table. */
TEST(ids_are_compared_whole)
{
	struct oid a = oid_of('a');
	struct oid b = oid_of('a');
	int i;

	b.b[OID_BYTES - 1] = 'b';
	fresh();
	for (i = 0; i < 4; i++) {
		unit_begin(&units, i % 2 == 0 ? &a : &b, 0, text("h"), 1);
		row(i % 2 == 0 ? "k" : "l", i < 2 ? "1" : "2");
		units_n++;
	}
	EXPECT_UINT(joined(), 2);
	EXPECT_STR(says(), "a+h k=1 k=2; a+h l=1 l=2");
	over();
}

/* The memory is used again, by more and by fewer. */
TEST(as_many_as_an_entry_takes)
{
	uint32_t all[] = { 3, ENTRY_UNITS_MAX, 70, ENTRY_UNITS_MAX, 2 };
	struct entry_r e;
	struct unit_r u;
	size_t i;
	uint32_t k;

	for (i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		fresh();
		for (k = 0; k < all[i]; k++) {
			unit('a', 0, "head", 1);
			row("key", "value");
		}
		EXPECT_UINT(joined(), 1);
		EXPECT_TRUE(join_bytes_max(&join) < entry.n + 64);
		EXPECT_RC(entry_read(entry.p, entry.n, &e), RC_OK);
		EXPECT_RC(entry_next(&e, &u), RC_OK);
		EXPECT_UINT(u.rows, all[i]);
		EXPECT_RC(entry_next(&e, &u), RC_EOF);
		fresh();
		for (k = 0; k < all[i]; k++) {
			struct oid oid = oid_of('a');

			memcpy(oid.b, &k, sizeof(k));
			unit_begin(&units, &oid, 0, text("head"), 0);
			units_n++;
		}
		EXPECT_UINT(joined(), all[i]);
	}
	over();
}

TEST(without_memory_they_stay_apart)
{
	uint64_t nth;

	for (nth = 1; nth <= 3; nth++) {
		join_release(&join);
		fresh();
		unit('a', 0, "1", 1);
		row("k", "v");
		unit('a', 0, "2", 0);
		pack_w_reserve(&entry, 4096);
		fault_alloc(nth);
		EXPECT_UINT(joined(), nth < 3 ? 2 : 1);
		EXPECT_TRUE(fault_off() == (nth < 3));
		EXPECT_STR(says(), nth < 3 ? "a+1 k=v; a+2" : "a+2 k=v");
		EXPECT_UINT(joined(), 1);
	}
	over();
}

/* No list of cases: any units, against what applying them one by one makes. */

#define OBJECTS 3
#define KEYS    4

struct model {
	char head[OBJECTS];          /* 0: none. */
	char rows[OBJECTS][2][KEYS]; /* 0: none; kinds DATA and IDEM. */
};

static void model_apply(struct model *m, const void *p, size_t n)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	size_t o;

	EXPECT_RC(entry_read(p, n, &e), RC_OK);
	while (entry_next(&e, &u) == RC_OK) {
		o = (size_t)(u.oid.b[0] - 'a');
		if ((u.flags & UNIT_WIPE) != 0)
			memset(m->rows[o], 0, sizeof(m->rows[o]));
		if ((u.flags & UNIT_CLEAR) != 0)
			memset(m->rows[o][0], 0, sizeof(m->rows[o][0]));
		if ((u.flags & UNIT_GONE) != 0)
			m->head[o] = 0;
		if (u.head.p != NULL)
			m->head[o] = (char)u.head.p[0];
		while (unit_next(&u, &r) == RC_OK)
			m->rows[o][r.kind == ROW_IDEM][r.key.p[0] - '0'] =
				r.value.p != NULL ? (char)r.value.p[0] : 0;
	}
}

static uint32_t drawn(uint32_t *state, uint32_t below)
{
	*state = *state * 1664525u + 1013904223u; /* Numerical Recipes. */
	return (*state >> 8) % below;
}

static void draw_unit(uint32_t *rnd)
{
	static const uint32_t flags[] = { UNIT_WIPE, UNIT_CLEAR,
					  UNIT_WIPE | UNIT_CLEAR };
	struct oid oid = oid_of((char)('a' + drawn(rnd, OBJECTS)));
	char head = (char)('A' + drawn(rnd, 26));
	uint32_t rows = drawn(rnd, 4);
	uint32_t f = drawn(rnd, 8) == 0 ? flags[drawn(rnd, 3)] : 0;

	units_n++;
	if (drawn(rnd, 12) == 0) {
		unit_begin(&units, &oid, UNIT_WIPE | UNIT_GONE, none, 0);
		return;
	}
	unit_begin(&units, &oid, f,
		   drawn(rnd, 5) == 0
			   ? none
			   : (struct pack_bytes){ (uint8_t *)&head, 1 },
		   rows);
	while (rows-- > 0) {
		char key = (char)('0' + drawn(rnd, KEYS));
		char value = (char)('a' + drawn(rnd, 26));
		struct unit_row r = { .kind = drawn(rnd, 3) == 0 ? ROW_IDEM
								 : ROW_DATA,
				      .key = { (uint8_t *)&key, 1 } };

		if (drawn(rnd, 4) != 0)
			r.value = (struct pack_bytes){ (uint8_t *)&value, 1 };
		unit_row(&units, &r);
	}
}

TEST(the_state_is_that_of_all_of_them)
{
	uint32_t rnd = 1;
	struct model apart;
	struct model together;
	struct pack_w w;
	int i;
	uint32_t k;

	pack_w_init(&w, ENTRY_BYTES_MAX);
	for (i = 0; i < 20000; i++) {
		fresh();
		memset(&apart, 0, sizeof(apart));
		for (k = 1 + drawn(&rnd, 12); k > 0; k--)
			draw_unit(&rnd);
		together = apart;
		pack_w_reset(&w);
		entry_begin(&w, 5, 6, 7, units_n);
		pack_raw(&w, units.p, units.n);
		model_apply(&apart, w.p, w.n);
		EXPECT_TRUE(joined() <= units_n);
		EXPECT_TRUE(entry.n <= w.n);
		model_apply(&together, entry.p, entry.n);
		EXPECT_MEM(&together, &apart, sizeof(apart));
	}
	pack_w_release(&w);
	over();
}
