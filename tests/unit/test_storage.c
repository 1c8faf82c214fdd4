#include "objects/storage.h"

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "objects/db.h"
#include "objects/db_vfs.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define MAIN "state/01-00000000.db"

static struct world *world;

static void random_of_world(void *arg, void *out, size_t n)
{
	uint8_t *p = out;

	while (n-- > 0)
		*p++ = (uint8_t)world_random(arg, 256);
}

static uint64_t dice(uint64_t n)
{
	return world_random(world, n);
}

/* ------------------------------------------------------------------ model */

#define OBJECTS 5u
#define KEYS    14u
#define KINDS   4u
#define BIG     2500u

struct cell {
	bool there;
	size_t n;
	uint8_t fill; /* Each byte of the value. */
	uint64_t expires_ns;
};

/* What has been applied, the simple way. */
struct model {
	struct cell rows[OBJECTS][KINDS][KEYS];
	struct cell heads[OBJECTS];
	uint64_t index;
	uint64_t term;
	uint64_t stamp_ns;
	uint64_t wall_ms;
	uint64_t conf_index;
};

static struct oid oid_of(unsigned object)
{
	struct oid oid = { { 0 } };

	oid.b[0] = (uint8_t)(object * 50);
	oid.b[8] = (uint8_t)object;
	return oid;
}

static unsigned object_of(const struct oid *oid)
{
	return oid->b[8];
}

static char keys[KEYS][8];

/* Once: loads under way point to them. */
static void make_keys(void)
{
	unsigned k;

	if (keys[0][0] != '\0')
		return;
	for (k = 0; k < KEYS; k++)
		(void)snprintf(keys[k], sizeof(keys[k]), "%.*s%02u",
			       (int)(k % 3), "kk", k);
}

static struct pack_bytes key_of(unsigned k)
{
	return (struct pack_bytes){ (const uint8_t *)keys[k], strlen(keys[k]) };
}

static int bytes_compare(struct pack_bytes a, struct pack_bytes b)
{
	int c = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);

	return c != 0 ? c : (a.n > b.n) - (a.n < b.n);
}

static unsigned key_number(struct pack_bytes key)
{
	unsigned k;

	for (k = 0; k < KEYS; k++)
		if (bytes_compare(key, key_of(k)) == 0)
			return k;
	FAIL("a key that nobody wrote");
}

static struct cell cell_of(struct pack_bytes value, uint64_t expires_ns)
{
	struct cell c = { false, value.n, 0, expires_ns };
	size_t i;

	if (value.p == NULL)
		return c;
	c.there = true;
	if (value.n > 0)
		c.fill = value.p[0];
	for (i = 0; i < value.n; i++)
		EXPECT_UINT(value.p[i], c.fill);
	return c;
}

static bool cell_is(const struct cell *c, const struct unit_row *r)
{
	return c->there && r->value.p != NULL && c->n == r->value.n &&
	       c->expires_ns == r->expires_ns &&
	       (c->n == 0 ||
		(r->value.p[0] == c->fill && r->value.p[c->n - 1] == c->fill));
}

/* ---- the log: every entry that was ever made, by index ---- */

#define LOG_MAX 400u

struct log_entry {
	uint8_t *p; /* NULL: not an entry of effects. */
	size_t n;
	bool conf;
};

static struct log_entry entries[LOG_MAX];
static unsigned entries_n; /* Indexes 1 .. entries_n */

static void log_clear(void)
{
	unsigned i;

	for (i = 1; i <= entries_n; i++)
		free(entries[i].p);
	entries_n = 0;
}

static uint64_t term_of(uint64_t index)
{
	return 1 + index / 50;
}

static void model_apply(struct model *m, uint64_t index)
{
	const struct log_entry *l = &entries[index];
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	unsigned object;
	unsigned k;

	EXPECT_UINT(index, m->index + 1);
	m->index = index;
	m->term = term_of(index);
	if (l->conf)
		m->conf_index = index;
	if (l->p == NULL)
		return;
	EXPECT_RC(entry_read(l->p, l->n, &e), RC_OK);
	m->stamp_ns = e.stamp_ns;
	m->wall_ms = e.wall_ms;
	while (entry_next(&e, &u) == RC_OK) {
		object = object_of(&u.oid);
		for (k = 0; k < KINDS; k++)
			if ((u.flags & UNIT_WIPE) != 0 ||
			    ((u.flags & UNIT_CLEAR) != 0 &&
			     (k + 1 == ROW_DATA || k + 1 == ROW_CONFIG)))
				memset(m->rows[object][k], 0,
				       sizeof(m->rows[object][k]));
		if ((u.flags & UNIT_GONE) != 0)
			m->heads[object] = (struct cell){ 0 };
		else if (u.head.p != NULL)
			m->heads[object] = cell_of(u.head, 0);
		while (unit_next(&u, &r) == RC_OK)
			m->rows[object][r.kind - 1][key_number(r.key)] =
				cell_of(r.value, r.expires_ns);
	}
}

static void make_unit(struct pack_w *w)
{
	static uint8_t value[BIG];
	struct oid oid = oid_of((unsigned)dice(OBJECTS));
	struct unit_row r = { .kind = ROW_DATA };
	struct pack_bytes head = { NULL, 0 };
	uint32_t flags = 0;
	uint32_t rows = (uint32_t)dice(6);

	memset(value, (int)dice(256), sizeof(value));
	if (dice(25) == 0)
		flags = UNIT_WIPE;
	else if (dice(25) == 0)
		flags = UNIT_CLEAR;
	if (dice(40) == 0) {
		flags = UNIT_WIPE | UNIT_GONE;
		rows = 0;
	} else if (dice(2) == 0) {
		head = (struct pack_bytes){ value, dice(30) };
	}
	unit_begin(w, &oid, flags, head, rows);
	while (rows-- > 0) {
		r.kind = (enum row_kind)(1 + dice(KINDS));
		r.key = key_of((unsigned)dice(KEYS));
		r.value = (struct pack_bytes){ NULL, 0 };
		r.expires_ns = 0;
		if (dice(3) > 0) {
			r.value.p = value;
			r.value.n = dice(20) == 0 ? BIG : dice(50);
			r.expires_ns = dice(3) == 0 ? 1 + dice(1000) : 0;
		}
		unit_row(w, &r);
	}
}

/* One more entry at the end of the log. */
static void make_entry(void)
{
	uint64_t index = ++entries_n;
	struct log_entry *l = &entries[index];
	struct pack_w w;
	uint32_t units = 1 + (uint32_t)dice(3);

	EXPECT_TRUE(index < LOG_MAX);
	*l = (struct log_entry){ 0 };
	if (dice(12) == 0) {
		l->conf = dice(2) == 0;
		return;
	}
	if (dice(12) == 0)
		units = 0;
	pack_w_init(&w, ENTRY_BYTES_MAX);
	entry_begin(&w, index * 1000, index * 3, term_of(index), units);
	while (units-- > 0)
		make_unit(&w);
	EXPECT_RC(w.rc, RC_OK);
	l->p = w.p;
	l->n = w.n;
}

/* ---------------------------------------------------------------- a node */

struct node {
	struct storage_listener listener;
	struct storage *s;
	struct storage_state state;
	struct model model; /* Of what was applied. */
	uint64_t stored;
	uint64_t checkpointed;
	unsigned bad;
	bool closed;
	bool skips_window; /* The mutant: mistakes are counted, not failed. */
	unsigned mistakes;
	unsigned loads;
	unsigned loads_done;
};

static struct node node;
static const struct storage_config config = {
	.shard = 1, .generation = 0, .window_ms = 20, .window_bytes = 20000
};

static void on_stored(struct storage_listener *l, uint64_t index)
{
	struct node *n = CONTAINER_OF(l, struct node, listener);

	EXPECT_TRUE(index > n->stored);
	EXPECT_UINT(index, storage_stored(n->s));
	n->stored = index;
}

static void on_checkpointed(struct storage_listener *l, uint64_t index)
{
	struct node *n = CONTAINER_OF(l, struct node, listener);

	EXPECT_TRUE(index >= n->checkpointed);
	EXPECT_TRUE(index <= n->stored);
	n->checkpointed = index;
}

static void on_bad(struct storage_listener *l, enum rc rc,
		   const struct detail *why)
{
	struct node *n = CONTAINER_OF(l, struct node, listener);

	EXPECT_RC(rc, RC_CORRUPT);
	EXPECT_HAS(why->text, "shard 1");
	n->bad++;
}

/* The model of what the log has up to `index`. */
static void replay(struct model *m, uint64_t index)
{
	*m = (struct model){ 0 };
	while (m->index < index)
		model_apply(m, m->index + 1);
}

static enum rc boot_with(const struct storage_config *cfg, struct detail *why)
{
	enum rc rc;

	node = (struct node){ .listener = { on_stored, on_checkpointed,
					    on_bad } };
	rc = storage_open(world_env(world, 0), world_disk(world, 0), cfg,
			  &node.listener, &node.s, &node.state, why);
	if (rc != RC_OK)
		return rc;
	node.stored = node.state.applied_index;
	node.checkpointed = node.state.main_index;
	return RC_OK;
}

static void boot(void)
{
	struct detail why = { 0 };
	enum rc rc = boot_with(&config, &why);

	if (rc != RC_OK)
		FAIL("boot: %s: %s", rc_name(rc), why.text);
	replay(&node.model, node.state.applied_index);
	EXPECT_UINT(node.state.main_index, node.state.applied_index);
	EXPECT_UINT(node.state.applied_term, node.model.term);
	EXPECT_UINT(node.state.stamp_ns, node.model.stamp_ns);
	EXPECT_UINT(node.state.wall_ms, node.model.wall_ms);
	EXPECT_UINT(node.state.conf_index, node.model.conf_index);
	if (node.model.conf_index > 0) {
		EXPECT_UINT(node.state.conf_bytes, sizeof(uint64_t));
		EXPECT_MEM(node.state.conf, &node.model.conf_index,
			   sizeof(uint64_t));
	}
}

static void new_world(uint64_t seed)
{
	if (world != NULL)
		world_free(world);
	log_clear();
	make_keys();
	world = world_new(seed);
	db_vfs_seed(random_of_world, world);
}

static void end_world(void)
{
	log_clear();
	world_free(world);
	world = NULL;
}

/* The next entry of the log, or a new one. */
static void apply_next(void)
{
	uint64_t index = node.model.index + 1;
	const struct log_entry *l;

	if (index > entries_n)
		make_entry();
	l = &entries[index];
	if (l->p == NULL)
		EXPECT_RC(storage_apply_other(node.s, index, term_of(index),
					      l->conf ? &index : NULL,
					      l->conf ? sizeof(index) : 0),
			  RC_OK);
	else
		EXPECT_RC(storage_apply(node.s, index, term_of(index), l->p,
					l->n),
			  RC_OK);
	model_apply(&node.model, index);
	EXPECT_UINT(storage_applied(node.s), index);
	EXPECT_UINT(storage_stamp(node.s), node.model.stamp_ns);
	EXPECT_UINT(storage_wall(node.s), node.model.wall_ms);
}

static void on_closed(void *arg)
{
	*(bool *)arg = true;
}

static void close_node(void)
{
	storage_close(node.s, on_closed, &node.closed);
	EXPECT_TRUE(world_run_flag(world, &node.closed, 60000));
}

/* ---------------------------------------------------------------- loads */

/* One load and what it gave. */
struct
try {
	struct storage_load l;
	struct load_key keys[6];
	struct pack_bytes start;
	unsigned rows;
	struct cell got[KINDS][KEYS];
	int last_kind;
	char last[8]; /* The key of the last row. */
	size_t last_n;
	char end[8]; /* covered_end */
	size_t end_n;
	bool done;
	bool keep; /* The test looks at it and frees it. */
	LIST_ENTRY(try) link;
};

/* Loads that are not kept and not done; a crash leaves them. */
static LIST_HEAD(, try) tries;

static void discard_node(void)
{
	struct try *t;

	storage_discard(node.s);
	while ((t = LIST_FIRST(&tries)) != NULL) {
		LIST_REMOVE(t, link);
		free(t);
	}
}

static void mistake(const char *what)
{
	if (!node.skips_window)
		FAIL("%s", what);
	node.mistakes++;
}

static void on_row(struct storage_load *l, const struct unit_row *r)
{
	struct try *t = CONTAINER_OF(l, struct try, l);
	struct pack_bytes last = { (const uint8_t *)t->last, t->last_n };
	unsigned k = key_number(r->key);
	int c;

	EXPECT_NOT_NULL(r->value.p);
	if (t->rows > 0) {
		c = (int)r->kind - t->last_kind;
		if (c == 0)
			c = bytes_compare(r->key, last);
		EXPECT_TRUE(l->reverse ? c < 0 : c > 0);
	}
	t->last_kind = (int)r->kind;
	memcpy(t->last, r->key.p, r->key.n);
	t->last_n = r->key.n;
	t->got[r->kind - 1][k] = cell_of(r->value, r->expires_ns);
	t->rows++;
}

static bool same(const struct cell *a, const struct cell *b)
{
	return a->there == b->there &&
	       (!a->there || (a->n == b->n && a->fill == b->fill &&
			      a->expires_ns == b->expires_ns));
}

static void check_head(const struct try *t, unsigned object)
{
	struct cell head = cell_of(t->l.head, 0);

	if (!same(&head, &node.model.heads[object]))
		mistake("the head is another");
}

static size_t object_bytes(unsigned object)
{
	size_t bytes = 0;
	unsigned kind;
	unsigned k;

	for (kind = 0; kind < KINDS; kind++)
		for (k = 0; k < KEYS; k++)
			if (node.model.rows[object][kind][k].there)
				bytes += key_of(k).n +
					 node.model.rows[object][kind][k].n;
	return bytes;
}

static void check_object(const struct try *t, unsigned object)
{
	size_t bytes = object_bytes(object);
	unsigned kind;
	unsigned k;

	if (!t->l.complete) {
		EXPECT_UINT(t->rows, 0);
		/* SQLite may hold more than what is left of it. */
		if (storage_stored(node.s) == node.model.index &&
		    bytes <= t->l.bytes_max)
			mistake("a small object was not given");
		return;
	}
	if (bytes > t->l.bytes_max)
		mistake("a large object was given");
	for (kind = 0; kind < KINDS; kind++)
		for (k = 0; k < KEYS; k++)
			if (!same(&t->got[kind][k],
				  &node.model.rows[object][kind][k]))
				mistake("a row of an object is another");
}

static void check_keys(const struct try *t, unsigned object)
{
	unsigned asked = 0;
	unsigned there = 0;
	unsigned k;
	size_t i;
	bool seen[KINDS][KEYS] = { { 0 } };

	EXPECT_TRUE(t->l.complete);
	for (i = 0; i < t->l.keys_n; i++) {
		k = key_number(t->keys[i].key);
		if (seen[t->keys[i].kind - 1][k])
			continue;
		seen[t->keys[i].kind - 1][k] = true;
		asked++;
		there += node.model.rows[object][t->keys[i].kind - 1][k].there;
		if (!same(&t->got[t->keys[i].kind - 1][k],
			  &node.model.rows[object][t->keys[i].kind - 1][k]))
			mistake("a row by key is another");
	}
	EXPECT_TRUE(t->rows <= asked);
	if (t->rows != there)
		mistake("another number of rows by key");
}

/* Is the key in the load's range, and if it is not complete, covered? */
static bool in_range(const struct storage_load *l, struct pack_bytes key)
{
	int a = l->start.p != NULL ? bytes_compare(key, l->start) : 0;
	int b = l->end.p != NULL ? bytes_compare(key, l->end) : 0;
	int c = l->covered_end.p != NULL ? bytes_compare(key, l->covered_end)
					 : 0;

	if (l->start.p != NULL && (l->reverse ? a >= 0 : a < 0))
		return false;
	if (l->end.p != NULL && (l->reverse ? b < 0 : b >= 0))
		return false;
	return l->complete || (l->reverse ? c >= 0 : c <= 0);
}

static void check_range(const struct try *t, unsigned object)
{
	const struct storage_load *l = &t->l;
	static const struct cell nothing;
	const struct cell *c;
	unsigned k;

	EXPECT_TRUE(t->rows <= l->rows_max);
	EXPECT_TRUE(l->complete == (l->covered_end.p == NULL));
	EXPECT_TRUE(l->complete || in_range(l, l->covered_end));
	EXPECT_TRUE(l->complete || t->rows > 0);
	for (k = 0; k < KEYS; k++) {
		c = &node.model.rows[object][l->kind - 1][k];
		if (!in_range(l, key_of(k)))
			c = &nothing;
		if (!same(&t->got[l->kind - 1][k], c))
			mistake("a row of a range is another");
	}
}

static void on_done(struct storage_load *l, enum rc rc)
{
	struct try *t = CONTAINER_OF(l, struct try, l);
	unsigned object = object_of(&l->oid);

	node.loads_done++;
	t->done = true;
	EXPECT_RC(rc, RC_OK);
	EXPECT_UINT(l->index, node.model.index);
	check_head(t, object);
	t->end_n = l->covered_end.n;
	if (t->end_n > 0)
		memcpy(t->end, l->covered_end.p, t->end_n);
	switch (l->what) {
	case LOAD_OBJECT:
		check_object(t, object);
		break;
	case LOAD_KEYS:
		check_keys(t, object);
		break;
	case LOAD_RANGE:
		check_range(t, object);
		break;
	}
	if (!t->keep) {
		LIST_REMOVE(t, link);
		free(t);
	}
}

static struct try *new_try(unsigned object, enum load_what what)
{
	struct try *t = calloc(1, sizeof(*t));

	EXPECT_NOT_NULL(t);
	t->l.oid = oid_of(object);
	t->l.what = what;
	t->l.row = on_row;
	t->l.done = on_done;
	return t;
}

/* A load of any kind, left to itself. */
static void load_any(void)
{
	struct try *t =
		new_try((unsigned)dice(OBJECTS), (enum load_what)dice(3));
	size_t i;

	switch (t->l.what) {
	case LOAD_OBJECT:
		t->l.bytes_max = dice(3) == 0 ? dice(3000) : 65536;
		break;
	case LOAD_KEYS:
		t->l.keys = t->keys;
		t->l.keys_n = dice(7);
		for (i = 0; i < t->l.keys_n; i++) {
			t->keys[i].kind = (enum row_kind)(1 + dice(KINDS));
			t->keys[i].key = key_of((unsigned)dice(KEYS));
		}
		break;
	case LOAD_RANGE:
		t->l.kind = (enum row_kind)(1 + dice(KINDS));
		t->l.reverse = dice(2) == 0;
		t->l.rows_max = 1 + (uint32_t)dice(KEYS + 2);
		t->l.bytes_max = dice(4) == 0 ? 1 + dice(200) : 0;
		if (dice(2) == 0)
			t->l.start = key_of((unsigned)dice(KEYS));
		if (dice(2) == 0)
			t->l.end = key_of((unsigned)dice(KEYS));
		break;
	}
	node.loads++;
	LIST_INSERT_HEAD(&tries, t, link);
	storage_load(node.s, &t->l);
}

static void load_whole(unsigned object)
{
	struct try *t = new_try(object, LOAD_OBJECT);

	t->l.bytes_max = 1 << 20;
	t->keep = true;
	storage_load(node.s, &t->l);
	EXPECT_FALSE(t->done);
	EXPECT_TRUE(world_run_flag(world, &t->done, 60000));
	EXPECT_TRUE(t->l.complete);
	free(t);
}

/* What is in SQLite is what the model of its index says; and its hashes. */
static void check_file(void)
{
	struct db *db;
	uint8_t kept[HASH_BYTES];
	uint8_t made[HASH_BYTES];
	unsigned i;

	EXPECT_RC(db_open(world_disk(world, 0), 1, 1, &db, NULL), RC_OK);
	for (i = 0; i < STATE_RANGES; i++) {
		db_range_hash(db, i, kept);
		EXPECT_RC(db_range_recompute(db, i, made), RC_OK);
		EXPECT_MEM(kept, made, HASH_BYTES);
	}
	db_close(db);
}

/* ----------------------------------------------------------------- tests */

TEST(fresh_and_closed)
{
	new_world(1);
	boot();
	EXPECT_UINT(node.state.applied_index, 0);
	EXPECT_NULL(node.state.conf);
	EXPECT_UINT(storage_applied(node.s), 0);
	EXPECT_UINT(storage_stored(node.s), 0);
	EXPECT_UINT(storage_checkpointed(node.s), 0);
	EXPECT_UINT(storage_window_bytes(node.s), 0);
	EXPECT_UINT(storage_room(node.s), 0);
	load_whole(0);
	close_node();
	boot();
	close_node();
	end_world();
}

TEST(the_window_flushes_by_time_size_and_order)
{
	struct storage_stats st;
	unsigned i;

	new_world(2);
	boot();
	while (node.model.index < 3)
		apply_next();
	EXPECT_UINT(node.stored, 0);
	world_run_until(world, world_now_ms(world) + 10);
	EXPECT_UINT(node.stored, 0);
	world_run_until(world, world_now_ms(world) + 100);
	EXPECT_UINT(node.stored, 3);
	EXPECT_UINT(storage_window_bytes(node.s), 0);
	/* What it still takes is in the WAL now, and then nowhere. */
	EXPECT_TRUE(storage_room(node.s) >= STATE_PAGE_BYTES);
	apply_next();
	EXPECT_TRUE(storage_room(node.s) > 2 * storage_window_bytes(node.s));
	storage_flush(node.s);
	EXPECT_UINT(node.stored, 3);
	world_run_until(world, world_now_ms(world) + 10);
	EXPECT_UINT(node.stored, 4);
	/* By size: before its time. */
	for (i = 0; storage_window_bytes(node.s) < config.window_bytes; i++)
		apply_next();
	world_run_until(world, world_now_ms(world) + 15);
	EXPECT_UINT(node.stored, node.model.index);
	storage_stats(node.s, &st);
	EXPECT_UINT(st.flushes, 3);
	EXPECT_TRUE(st.rows_written > 0);
	EXPECT_UINT(node.checkpointed, 0);
	apply_next();
	storage_checkpoint(node.s);
	world_run_until(world, world_now_ms(world) + 100);
	EXPECT_UINT(node.checkpointed, node.model.index);
	EXPECT_UINT(storage_checkpointed(node.s), node.model.index);
	/* Nothing to do is told too. */
	storage_checkpoint(node.s);
	storage_flush(node.s);
	world_run_until(world, world_now_ms(world) + 100);
	storage_stats(node.s, &st);
	EXPECT_UINT(st.checkpoints, 2);
	EXPECT_UINT(st.flushes, 4);
	apply_next();
	close_node();
	EXPECT_UINT(node.checkpointed, node.model.index);
	check_file();
	end_world();
}

TEST(last_value_wins)
{
	struct storage_stats st;
	struct pack_w w;
	struct oid oid = oid_of(1);
	uint8_t value[8] = { 0 };
	struct unit_row r = { ROW_DATA, key_of(3), { value, 8 }, 0 };
	uint64_t i;
	size_t bytes = 0;

	new_world(3);
	boot();
	for (i = 1; i <= 1000; i++) {
		memset(value, (int)i, sizeof(value));
		pack_w_init(&w, ENTRY_BYTES_MAX);
		entry_begin(&w, i, i, 1, 1);
		unit_begin(&w, &oid, 0, (struct pack_bytes){ value, 4 }, 1);
		unit_row(&w, &r);
		EXPECT_RC(storage_apply(node.s, i, 1, w.p, w.n), RC_OK);
		if (i == 1)
			bytes = storage_window_bytes(node.s);
		pack_w_release(&w);
	}
	EXPECT_UINT(storage_window_bytes(node.s), bytes);
	close_node();
	boot_with(&config, NULL);
	EXPECT_UINT(node.state.applied_index, 1000);
	storage_stats(node.s, &st);
	discard_node();
	world_kill(world, 0);
	end_world();
}

TEST(undigestible_entries)
{
	static const uint8_t junk[] = { 1, 2, 3 };
	struct pack_w w;
	struct oid oid = oid_of(1);
	struct unit_row r = { ROW_DATA, key_of(3), { junk, 3 }, 0 };
	size_t n;

	new_world(4);
	boot();
	EXPECT_RC(storage_apply(node.s, 1, 1, junk, sizeof(junk)), RC_CORRUPT);
	EXPECT_RC(storage_apply(node.s, 1, 1, NULL, 0), RC_CORRUPT);
	pack_w_init(&w, ENTRY_BYTES_MAX);
	entry_begin(&w, 1, 1, 1, 2);
	unit_begin(&w, &oid, 0, (struct pack_bytes){ NULL, 0 }, 1);
	unit_row(&w, &r);
	unit_begin(&w, &oid, 0, (struct pack_bytes){ NULL, 0 }, 1);
	unit_row(&w, &r);
	/* Good units in front of a bad end do nothing. */
	for (n = 0; n < w.n; n++)
		EXPECT_RC(storage_apply(node.s, 1, 1, w.p, n), RC_CORRUPT);
	w.p[1] = ENTRY_VERSION + 1;
	EXPECT_RC(storage_apply(node.s, 1, 1, w.p, w.n), RC_VERSION);
	EXPECT_UINT(storage_applied(node.s), 0);
	EXPECT_UINT(storage_window_bytes(node.s), 0);
	load_whole(1);
	EXPECT_ABORT(storage_apply(node.s, 2, 1, w.p, w.n));
	pack_w_release(&w);
	close_node();
	end_world();
}

/* One seeded life: everything at random; what loads show is the model. */
static void live(unsigned steps)
{
	unsigned i;

	for (i = 0; i < steps && world_alive(world, 0); i++) {
		switch (dice(10)) {
		case 0:
		case 1:
		case 2:
			if (node.model.index + 1 < LOG_MAX)
				apply_next();
			break;
		case 3:
		case 4:
			load_any();
			break;
		case 5:
			if (dice(8) == 0)
				storage_checkpoint(node.s);
			else if (dice(2) == 0)
				storage_flush(node.s);
			break;
		default:
			if (dice(4) == 0)
				world_run_until(world,
						world_now_ms(world) + dice(30));
			else
				(void)world_step(world);
		}
	}
}

static void settle(void)
{
	while (node.loads_done < node.loads && world_alive(world, 0))
		if (!world_step(world))
			break;
}

TEST(loads_show_what_is_applied)
{
	uint64_t seed;
	unsigned loads = 0;
	unsigned i;

	for (seed = 1; seed <= 60; seed++) {
		runner_context("seed %d", (int)seed);
		new_world(seed);
		boot();
		live(600);
		settle();
		EXPECT_UINT(node.loads_done, node.loads);
		loads += node.loads;
		for (i = 0; i < OBJECTS; i++)
			load_whole(i);
		close_node();
		check_file();
		boot();
		EXPECT_UINT(node.state.applied_index, entries_n);
		for (i = 0; i < OBJECTS; i++)
			load_whole(i);
		close_node();
	}
	EXPECT_TRUE(loads > 3000);
	end_world();
}

/* Whose state knows no stamp has no time to offer when all were down. */
TEST(the_first_stamp_is_stored_soon)
{
	struct storage_config cfg = config;

	cfg.window_ms = 5000;
	new_world(3);
	EXPECT_RC(boot_with(&cfg, NULL), RC_OK);
	while (node.model.stamp_ns == 0)
		apply_next();
	world_run_until(world, world_now_ms(world) + WINDOW_FIRST_MS + 50);
	EXPECT_UINT(node.stored, node.model.index);
	apply_next();
	world_run_until(world, world_now_ms(world) + WINDOW_FIRST_MS + 50);
	EXPECT_UINT(node.stored, node.model.index - 1);
	world_run_until(world, world_now_ms(world) + 5000);
	EXPECT_UINT(node.stored, node.model.index);
	close_node();
	end_world();
}

TEST(mutant_load_skips_window)
{
	uint64_t seed;
	unsigned found = 0;

	for (seed = 1; seed <= 10; seed++) {
		new_world(seed);
		boot();
		node.skips_window = true;
		mutant_now = MUTANT_load_skips_window;
		live(300);
		settle();
		mutant_now = MUTANT_none;
		found += node.mistakes > 0;
		close_node();
	}
	EXPECT_UINT(found, 10);
	end_world();
}

/* Page by page, both ways, with rows that are only in the window and deletions
 * of rows that are only in SQLite: each row once, and an end. */
TEST(pages_of_a_range)
{
	struct try *t;
	char at[9];
	struct pack_bytes start;
	bool complete;
	unsigned rows;
	unsigned want;
	unsigned pages;
	unsigned short_pages = 0;
	uint64_t seed;
	unsigned i;

	for (seed = 1; seed <= 60; seed++) {
		runner_context("seed %d", (int)seed);
		new_world(seed);
		boot();
		for (i = 0; i < 60; i++) {
			apply_next();
			if (i == 40)
				storage_flush(node.s);
			if (i < 45)
				(void)world_step(world);
		}
		start = (struct pack_bytes){ NULL, 0 };
		rows = pages = 0;
		do {
			t = new_try(2, LOAD_RANGE);
			t->keep = true;
			t->l.kind = ROW_DATA;
			t->l.reverse = seed % 2 == 0;
			t->l.rows_max = 1 + (uint32_t)seed % 4;
			t->l.start = start;
			storage_load(node.s, &t->l);
			EXPECT_TRUE(world_run_flag(world, &t->done, 60000));
			rows += t->rows;
			complete = t->l.complete;
			short_pages += !complete && t->rows < t->l.rows_max;
			memcpy(at, t->end, t->end_n);
			at[t->end_n] = '\0';
			start.p = (const uint8_t *)at;
			start.n = t->end_n + !t->l.reverse;
			free(t);
			EXPECT_TRUE(++pages <= KEYS + 1);
		} while (!complete);
		want = 0;
		for (i = 0; i < KEYS; i++)
			want += node.model.rows[2][0][i].there;
		EXPECT_UINT(rows, want);
		close_node();
	}
	EXPECT_TRUE(short_pages > 0);
	end_world();
}

struct listing {
	struct storage_heads h;
	struct storage_expired x;
	unsigned n;
	unsigned objects[64];
	uint64_t last_ns;
	bool more;
	bool done;
	enum rc rc;
};

static void on_head(struct storage_heads *h, const struct oid *oid,
		    struct pack_bytes head)
{
	struct listing *l = CONTAINER_OF(h, struct listing, h);
	struct cell c = cell_of(head, 0);

	EXPECT_TRUE(same(&c, &node.model.heads[object_of(oid)]));
	EXPECT_TRUE(l->n < 64);
	l->objects[l->n++] = object_of(oid);
}

static void on_heads_done(struct storage_heads *h, enum rc rc, bool more)
{
	struct listing *l = CONTAINER_OF(h, struct listing, h);

	l->rc = rc;
	l->more = more;
	l->done = true;
}

TEST(heads_are_listed_as_applied)
{
	struct listing l;
	uint64_t seed;
	unsigned want;
	unsigned pages;
	unsigned i;

	for (seed = 1; seed <= 60; seed++) {
		runner_context("seed %d", (int)seed);
		new_world(seed);
		boot();
		for (i = 0; i < 30; i++) {
			apply_next();
			if (dice(6) == 0)
				storage_flush(node.s);
			if (dice(2) == 0)
				(void)world_step(world);
		}
		/* The first object's id is all zeros: no page begins there. */
		want = pages = 0;
		for (i = 1; i < OBJECTS; i++)
			want += node.model.heads[i].there;
		l = (struct listing){ .more = true };
		l.h.head = on_head;
		l.h.done = on_heads_done;
		l.h.rows_max = 1 + (uint32_t)seed % 3;
		while (l.more) {
			l.done = false;
			storage_heads(node.s, &l.h);
			EXPECT_TRUE(world_run_flag(world, &l.done, 60000));
			EXPECT_RC(l.rc, RC_OK);
			EXPECT_TRUE(++pages <= OBJECTS + 1);
		}
		EXPECT_UINT(l.n, want);
		for (i = 1; i < l.n; i++)
			EXPECT_TRUE(l.objects[i] > l.objects[i - 1]);
		close_node();
	}
	end_world();
}

static void on_expired(struct storage_expired *x, const struct oid *oid,
		       const struct unit_row *r)
{
	struct listing *l = CONTAINER_OF(x, struct listing, x);
	const struct cell *c =
		&node.model
			 .rows[object_of(oid)][r->kind - 1][key_number(r->key)];

	EXPECT_TRUE(cell_is(c, r));
	EXPECT_TRUE(r->expires_ns > 0);
	EXPECT_TRUE(r->expires_ns <= x->stamp_ns);
	EXPECT_TRUE(r->expires_ns >= l->last_ns);
	l->last_ns = r->expires_ns;
	l->n++;
}

static void on_expired_done(struct storage_expired *x, enum rc rc, bool more)
{
	struct listing *l = CONTAINER_OF(x, struct listing, x);

	EXPECT_RC(rc, RC_OK);
	l->more = more;
	l->done = true;
}

TEST(expired_rows)
{
	struct listing l;
	const struct cell *c;
	unsigned want = 0;
	unsigned o;
	unsigned kind;
	unsigned k;

	new_world(7);
	boot();
	while (node.model.index < 100)
		apply_next();
	storage_flush(node.s);
	world_run_until(world, world_now_ms(world) + 200);
	for (o = 0; o < OBJECTS; o++)
		for (kind = 0; kind < KINDS; kind++)
			for (k = 0; k < KEYS; k++) {
				c = &node.model.rows[o][kind][k];
				want += c->there && c->expires_ns > 0 &&
					c->expires_ns <= 500;
			}
	EXPECT_TRUE(want > 5);
	l = (struct listing){ 0 };
	l.x = (struct storage_expired){ .stamp_ns = 500,
					.rows_max = want,
					.row = on_expired,
					.done = on_expired_done };
	storage_expired(node.s, &l.x);
	EXPECT_TRUE(world_run_flag(world, &l.done, 60000));
	EXPECT_UINT(l.n, want);
	EXPECT_FALSE(l.more);
	l.n = 0;
	l.last_ns = 0;
	l.done = false;
	l.x.rows_max = want - 1;
	storage_expired(node.s, &l.x);
	EXPECT_TRUE(world_run_flag(world, &l.done, 60000));
	EXPECT_UINT(l.n, want - 1);
	EXPECT_TRUE(l.more);
	close_node();
	end_world();
}

/* ---- many rows ---- */

#define MANY 5000u

static struct pack_bytes many_key(unsigned i)
{
	static char key[8];

	(void)snprintf(key, sizeof(key), "k%06u", i % 1000000);
	return (struct pack_bytes){ (const uint8_t *)key, 7 };
}

/* Every `step`-th of MANY rows gets `value`; the rest is cleared. */
static void apply_many(uint64_t index, unsigned step, const char *value)
{
	struct oid oid = oid_of(1);
	struct unit_row r = { .kind = ROW_CONFIG };
	struct pack_w w;
	unsigned i;

	pack_w_init(&w, ENTRY_BYTES_MAX);
	entry_begin(&w, index, 1, 1, 1);
	unit_begin(&w, &oid, UNIT_CLEAR, (struct pack_bytes){ NULL, 0 },
		   (MANY + step - 1) / step);
	for (i = 0; i < MANY; i += step) {
		r.key = many_key(i);
		r.value = (struct pack_bytes){ (const uint8_t *)value,
					       strlen(value) };
		unit_row(&w, &r);
	}
	EXPECT_RC(storage_apply(node.s, index, 1, w.p, w.n), RC_OK);
	pack_w_release(&w);
}

struct many {
	struct storage_load l;
	const char *value;
	unsigned rows;
	bool done;
};

static void on_many_row(struct storage_load *l, const struct unit_row *r)
{
	struct many *m = CONTAINER_OF(l, struct many, l);

	EXPECT_UINT(r->value.n, strlen(m->value));
	EXPECT_MEM(r->value.p, m->value, r->value.n);
	m->rows++;
}

static void on_many_done(struct storage_load *l, enum rc rc)
{
	struct many *m = CONTAINER_OF(l, struct many, l);

	EXPECT_RC(rc, RC_OK);
	EXPECT_TRUE(l->complete);
	m->done = true;
}

static void start_many(struct many *m, enum load_what what, const char *value)
{
	*m = (struct many){ .value = value };
	m->l = (struct storage_load){ .oid = oid_of(1),
				      .what = what,
				      .bytes_max = 1 << 20,
				      .kind = ROW_CONFIG,
				      .rows_max = 2 * MANY,
				      .row = on_many_row,
				      .done = on_many_done };
	storage_load(node.s, &m->l);
}

/* A flush is many slices: loads get in between and are exact. */
TEST(loads_between_the_slices_of_a_flush)
{
	struct storage_config cfg = config;
	struct storage_stats st;
	struct many m;
	unsigned loads = 0;

	new_world(8);
	cfg.window_bytes = 64 << 20;
	cfg.window_ms = 1000000;
	EXPECT_RC(boot_with(&cfg, NULL), RC_OK);
	apply_many(1, 1, "first");
	storage_flush(node.s);
	while (storage_stored(node.s) < 1)
		EXPECT_TRUE(world_step(world));
	apply_many(2, 2, "second");
	storage_flush(node.s);
	for (; storage_stored(node.s) < 2; loads++) {
		start_many(&m, loads % 2 == 0 ? LOAD_RANGE : LOAD_OBJECT,
			   "second");
		EXPECT_TRUE(world_run_flag(world, &m.done, 60000));
		EXPECT_UINT(m.rows, MANY / 2);
	}
	EXPECT_TRUE(loads >= MANY / 2 / STATE_SLICE_ROWS);
	/* And with yet another generation over it. */
	apply_many(3, 5, "third");
	storage_flush(node.s);
	apply_many(4, 10, "fourth");
	while (storage_stored(node.s) < 3) {
		start_many(&m, LOAD_OBJECT, "fourth");
		EXPECT_TRUE(world_run_flag(world, &m.done, 60000));
		EXPECT_UINT(m.rows, MANY / 10);
	}
	storage_stats(node.s, &st);
	EXPECT_UINT(st.flushes, 3);
	close_node();
	check_file();
	end_world();
}

/* Pages of which the window has deleted every row that SQLite gives. */
TEST(a_page_is_never_empty_with_more_behind_it)
{
	struct storage_config cfg = config;
	struct oid oid = oid_of(1);
	struct unit_row r = { .kind = ROW_CONFIG };
	struct pack_w w;
	struct many m;
	unsigned i;

	new_world(15);
	cfg.window_ms = 1000000;
	EXPECT_RC(boot_with(&cfg, NULL), RC_OK);
	apply_many(1, 1, "value");
	storage_flush(node.s);
	while (storage_stored(node.s) < 1)
		EXPECT_TRUE(world_step(world));
	pack_w_init(&w, ENTRY_BYTES_MAX);
	entry_begin(&w, 2, 1, 1, 1);
	unit_begin(&w, &oid, 0, (struct pack_bytes){ NULL, 0 }, MANY - 1);
	for (i = 0; i < MANY - 1; i++) {
		r.key = many_key(i);
		unit_row(&w, &r);
	}
	EXPECT_RC(storage_apply(node.s, 2, 1, w.p, w.n), RC_OK);
	pack_w_release(&w);
	m = (struct many){ .value = "value" };
	m.l = (struct storage_load){ .oid = oid,
				     .what = LOAD_RANGE,
				     .kind = ROW_CONFIG,
				     .rows_max = 10,
				     .row = on_many_row,
				     .done = on_many_done };
	storage_load(node.s, &m.l);
	EXPECT_TRUE(world_run_flag(world, &m.done, 60000));
	EXPECT_UINT(m.rows, 1);
	EXPECT_UINT(node.stored, 2);
	close_node();
	end_world();
}

/* SQLite's WAL is bounded though nobody asks for a checkpoint. */
TEST(a_long_wal_is_checkpointed)
{
	static char value[3500];
	struct storage_stats st;
	uint64_t index;
	size_t n;
	size_t most = 0;

	new_world(9);
	EXPECT_RC(boot_with(&config, NULL), RC_OK);
	for (index = 1; index <= 20; index++) {
		memset(value, 'a' + (int)index, sizeof(value) - 1);
		apply_many(index, 10, value);
		storage_flush(node.s);
		while (storage_stored(node.s) < index)
			EXPECT_TRUE(world_step(world));
		free(world_file(world, 0, MAIN "-wal", false, &n));
		most = n > most ? n : most;
	}
	world_run_until(world, world_now_ms(world) + 100);
	storage_stats(node.s, &st);
	EXPECT_TRUE(st.checkpoints > 0);
	EXPECT_TRUE(node.checkpointed > 0);
	EXPECT_TRUE(most < STATE_WAL_BYTES_MAX + (4 << 20));
	close_node();
	end_world();
}

TEST(no_window)
{
	struct storage_config cfg = config;

	new_world(10);
	cfg.window_ms = 0;
	EXPECT_RC(boot_with(&cfg, NULL), RC_OK);
	while (node.model.index < 50) {
		apply_next();
		(void)world_step(world);
	}
	world_run_until(world, world_now_ms(world) + 50);
	EXPECT_UINT(node.stored, 50);
	close_node();
	end_world();
}

TEST(close_ends_what_was_asked_before)
{
	unsigned i;

	new_world(11);
	boot();
	for (i = 0; i < 20; i++) {
		apply_next();
		load_any();
	}
	storage_close(node.s, on_closed, &node.closed);
	EXPECT_FALSE(node.closed);
	EXPECT_ABORT(apply_next());
	EXPECT_TRUE(world_run_flag(world, &node.closed, 60000));
	EXPECT_UINT(node.loads_done, 20);
	EXPECT_UINT(node.checkpointed, 20);
	boot();
	EXPECT_UINT(node.state.main_index, 20);
	close_node();
	end_world();
}

/* Asks again and again, as the one above may before it knows. */
struct asker {
	struct storage_load l;
	unsigned asked;
	unsigned cancelled;
	unsigned ok;
};

static void ask_again(struct storage_load *l, enum rc rc)
{
	struct asker *a = CONTAINER_OF(l, struct asker, l);

	EXPECT_FALSE(node.closed);
	a->ok += rc == RC_OK;
	a->cancelled += rc == RC_CANCELLED;
	EXPECT_UINT(a->ok + a->cancelled, a->asked);
	if (a->cancelled < 3) {
		a->asked++;
		storage_load(node.s, l);
	}
}

static void ignore_row(struct storage_load *l, const struct unit_row *r)
{
	(void)l;
	(void)r;
}

TEST(close_refuses_what_is_asked_after)
{
	struct asker askers[3];
	uint64_t seed;
	unsigned i;

	for (seed = 1; seed <= 20; seed++) {
		new_world(seed);
		boot();
		apply_next();
		for (i = 0; i < 3; i++) {
			askers[i] = (struct asker){ .asked = 1 };
			askers[i].l = (struct storage_load){
				.oid = oid_of(i),
				.what = LOAD_OBJECT,
				.bytes_max = 1 << 20,
				.row = ignore_row,
				.done = ask_again,
			};
			storage_load(node.s, &askers[i].l);
		}
		storage_close(node.s, on_closed, &node.closed);
		EXPECT_TRUE(world_run_flag(world, &node.closed, 60000));
		for (i = 0; i < 3; i++) {
			EXPECT_UINT(askers[i].ok, 1);
			EXPECT_UINT(askers[i].cancelled, 3);
		}
	}
	end_world();
}

TEST(discard_at_any_time)
{
	uint64_t seed;

	for (seed = 1; seed <= 30; seed++) {
		new_world(seed);
		boot();
		live((unsigned)seed * 7);
		world_kill(world, 0);
		discard_node();
		boot();
		EXPECT_TRUE(node.state.applied_index <= entries_n);
		close_node();
	}
	end_world();
}

/* ---------------------------------------------------------------- crashes */

/*
 * A life with the fault in it, then a restart: what the file has is what some
 * commit left, at least what was told; the log does the rest.
 */
static bool crash_and_return(const struct world_fault *f, uint64_t seed,
			     bool power, unsigned steps)
{
	uint64_t stored;
	uint64_t checkpointed;
	bool fired;
	unsigned i;

	new_world(seed);
	boot();
	world_fault(world, 0, f);
	live(steps);
	if (world_alive(world, 0)) {
		storage_checkpoint(node.s);
		world_run_until(world, world_now_ms(world) + 1000);
	}
	fired = world_faults_fired(world, 0) > 0;
	if (!world_alive(world, 0) && !world_crashed(world, 0))
		EXPECT_HAS(world_stopped(world, 0), "shard 1");
	stored = node.stored;
	checkpointed = node.checkpointed;
	discard_node();
	world_faults_clear(world, 0);
	if (power)
		world_power_cut(world, 0);
	else
		world_kill(world, 0);
	boot();
	EXPECT_TRUE(node.state.applied_index >= checkpointed);
	if (!power && f->kind < WORLD_EIO)
		EXPECT_TRUE(node.state.applied_index >= stored);
	for (i = 0; i < OBJECTS; i++)
		load_whole(i);
	while (node.model.index < entries_n)
		apply_next();
	for (i = 0; i < OBJECTS; i++)
		load_whole(i);
	close_node();
	check_file();
	boot();
	EXPECT_UINT(node.state.main_index, entries_n);
	for (i = 0; i < OBJECTS; i++)
		load_whole(i);
	close_node();
	return fired;
}

static void crash_sweep(enum world_fault_kind kind, enum world_op op,
			bool power, uint64_t stride)
{
	struct world_fault f = { .kind = kind, .op = op, .nth = 1 };
	uint64_t seed = 1;

	do {
		runner_context("operation %d", (int)f.nth);
		f.nth += stride;
	} while (crash_and_return(&f, seed++, power, 400));
	EXPECT_TRUE(seed > 5);
	end_world();
}

TEST(power_cut_at_every_change)
{
	crash_sweep(WORLD_CRASH_BEFORE, WORLD_CHANGE, true, 5);
}

TEST(power_cut_after_every_sync)
{
	crash_sweep(WORLD_CRASH_AFTER, WORLD_SYNC, true, 1);
}

TEST(kill_at_every_change)
{
	crash_sweep(WORLD_CRASH_AFTER, WORLD_CHANGE, false, 9);
}

TEST(failed_sync_then_power_cut)
{
	crash_sweep(WORLD_EIO, WORLD_SYNC, true, 1);
}

TEST(failed_write_then_kill)
{
	crash_sweep(WORLD_SHORT, WORLD_WRITE, false, 11);
}

TEST(no_space)
{
	crash_sweep(WORLD_NO_SPACE, WORLD_WRITE, false, 13);
}

/* The log may be cut where the main file is said to be: it has to be there. */
TEST(mutant_checkpoint_unsynced)
{
	uint64_t seed;
	uint64_t told;
	unsigned lost = 0;

	for (seed = 1; seed <= 10; seed++) {
		new_world(seed);
		boot();
		while (node.model.index < 60)
			apply_next();
		mutant_now = MUTANT_checkpoint_unsynced;
		storage_checkpoint(node.s);
		world_run_until(world, world_now_ms(world) + 500);
		told = node.checkpointed;
		EXPECT_UINT(told, 60);
		discard_node();
		mutant_now = MUTANT_none;
		world_power_cut(world, 0);
		if (boot_with(&config, NULL) != RC_OK) {
			lost++;
			continue;
		}
		lost += node.state.applied_index < told;
		discard_node();
	}
	EXPECT_TRUE(lost > 5);
	end_world();
}

/* ---------------------------------------------------------- damage, memory */

struct ending {
	struct storage_load l;
	bool done;
	enum rc rc;
};

static void no_row(struct storage_load *l, const struct unit_row *r)
{
	(void)l;
	(void)r;
}

static void note_ending(struct storage_load *l, enum rc rc)
{
	struct ending *o = CONTAINER_OF(l, struct ending, l);

	o->rc = rc;
	o->done = true;
}

static enum rc load_ending(unsigned object)
{
	struct ending o = { .l = { .oid = oid_of(object),
				   .what = LOAD_OBJECT,
				   .bytes_max = 1 << 20,
				   .row = no_row,
				   .done = note_ending } };

	storage_load(node.s, &o.l);
	EXPECT_FALSE(o.done);
	EXPECT_TRUE(world_run_flag(world, &o.done, 60000));
	return o.rc;
}

static void on_heads_ignored(struct storage_heads *h, const struct oid *oid,
			     struct pack_bytes head)
{
	(void)h;
	(void)oid;
	(void)head;
}

/* A database of many pages, of which all but the first are damaged. */
static void boot_damaged(void)
{
	unsigned i;
	size_t n;

	new_world(12);
	boot_with(&config, NULL);
	apply_many(1, 1, "a value");
	close_node();
	boot_with(&config, NULL);
	node.model.index = 1;
	free(world_file(world, 0, MAIN, false, &n));
	for (i = 1; i < n / STATE_PAGE_BYTES; i++)
		EXPECT_RC(world_flip(world, 0, MAIN, i * STATE_PAGE_BYTES + 77,
				     2),
			  RC_OK);
}

TEST(damage_is_told_and_final)
{
	struct listing l = { .more = true };
	static const uint8_t entry[] = { 0x95, 1, 1, 1, 1, 0x90 };

	boot_damaged();
	EXPECT_RC(load_ending(1), RC_CORRUPT);
	EXPECT_UINT(node.bad, 1);
	EXPECT_TRUE(world_alive(world, 0));
	EXPECT_RC(load_ending(2), RC_CORRUPT);
	l.h = (struct storage_heads){ .rows_max = 1,
				      .head = on_heads_ignored,
				      .done = on_heads_done };
	storage_heads(node.s, &l.h);
	EXPECT_TRUE(world_run_flag(world, &l.done, 60000));
	EXPECT_RC(l.rc, RC_CORRUPT);
	EXPECT_RC(storage_apply(node.s, 2, 1, entry, sizeof(entry)),
		  RC_CORRUPT);
	EXPECT_RC(storage_apply_other(node.s, 2, 1, NULL, 0), RC_CORRUPT);
	storage_flush(node.s);
	storage_checkpoint(node.s);
	world_run_until(world, world_now_ms(world) + 1000);
	EXPECT_UINT(node.bad, 1);
	close_node();
	end_world();
}

/* Without somebody to tell, it is the end. */
TEST(damage_without_a_listener_stops_the_node)
{
	boot_damaged();
	node.listener.bad = NULL;
	apply_many(2, 7, "x");
	storage_flush(node.s);
	world_run_until(world, world_now_ms(world) + 1000);
	EXPECT_FALSE(world_alive(world, 0));
	EXPECT_HAS(world_stopped(world, 0), "damaged");
	discard_node();
	end_world();
}

TEST(damage_at_start)
{
	struct detail why = { 0 };

	new_world(13);
	boot();
	close_node();
	EXPECT_RC(world_flip(world, 0, MAIN, 3, 1), RC_OK);
	EXPECT_RC(boot_with(&config, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, MAIN);
	EXPECT_NULL(node.s);
	end_world();
}

/* The n-th allocation of the loop and of the worker fails: an error that can be
 * asked again, or a clean stop; never a wrong answer. */
TEST(every_allocation_fails)
{
	struct ending o;
	struct detail why;
	uint64_t n;
	uint64_t index;
	unsigned i;
	bool fired = true;
	enum rc rc;

	for (n = 1; fired; n++) {
		runner_context("allocation %d", (int)n);
		new_world(n);
		while (entries_n < 40)
			make_entry();
		why = (struct detail){ 0 };
		fault_alloc(n);
		rc = boot_with(&config, &why);
		if (rc != RC_OK) {
			EXPECT_RC(rc, RC_NOMEM);
			fired = fault_off();
			continue;
		}
		for (index = 1; index <= 40 && world_alive(world, 0);) {
			const struct log_entry *l = &entries[index];

			if (l->p == NULL)
				rc = storage_apply_other(
					node.s, index, term_of(index),
					l->conf ? &index : NULL,
					l->conf ? sizeof(index) : 0);
			else
				rc = storage_apply(node.s, index,
						   term_of(index), l->p, l->n);
			if (rc == RC_OK)
				index++;
			else
				EXPECT_RC(rc, RC_NOMEM);
			if (index % 16 == 0)
				storage_flush(node.s);
			if (index % 5 != 0)
				continue;
			o = (struct ending){
				.l = { .oid = oid_of((unsigned)index % 5),
				       .what = LOAD_OBJECT,
				       .bytes_max = 1 << 20,
				       .row = no_row,
				       .done = note_ending }
			};
			storage_load(node.s, &o.l);
			(void)world_run_flag(world, &o.done, 1000);
			if (o.done && o.rc != RC_OK)
				EXPECT_TRUE(o.rc == RC_NOMEM || o.rc == RC_IO);
		}
		fired = fault_off();
		if (world_alive(world, 0)) {
			replay(&node.model, 40);
			for (i = 0; i < OBJECTS; i++)
				load_whole(i);
			close_node();
			continue;
		}
		EXPECT_HAS(world_stopped(world, 0), "memory");
		discard_node();
		world_kill(world, 0);
		boot();
		for (i = 0; i < OBJECTS; i++)
			load_whole(i);
		close_node();
	}
	EXPECT_TRUE(n > 20);
	end_world();
}

/* ---------------------------------------------------------------- threads */

/* A small env with a real worker: for ThreadSanitizer. */
struct threads {
	struct env env;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t worker;
	bool end;
	STAILQ_HEAD(, env_job) jobs;
	STAILQ_HEAD(, env_job) dones;
	struct env_timer *timer; /* There is one. */
	struct env_task *task;   /* And one task. */
};

static struct threads threads;

static void *worker(void *arg)
{
	struct env_job *j;

	(void)arg;
	(void)pthread_mutex_lock(&threads.lock);
	for (;;) {
		j = STAILQ_FIRST(&threads.jobs);
		if (j == NULL && threads.end)
			break;
		if (j == NULL) {
			(void)pthread_cond_wait(&threads.changed,
						&threads.lock);
			continue;
		}
		STAILQ_REMOVE_HEAD(&threads.jobs, link);
		(void)pthread_mutex_unlock(&threads.lock);
		j->run(j);
		(void)pthread_mutex_lock(&threads.lock);
		STAILQ_INSERT_TAIL(&threads.dones, j, link);
		(void)pthread_cond_broadcast(&threads.changed);
	}
	(void)pthread_mutex_unlock(&threads.lock);
	return NULL;
}

static uint64_t threads_now(struct env *env)
{
	struct timespec t;

	(void)env;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void threads_timer_start(struct env_timer *t)
{
	t->running = true;
	threads.timer = t;
}

static void threads_timer_stop(struct env_timer *t)
{
	t->running = false;
	threads.timer = NULL;
}

static void threads_work(struct env *env, enum env_worker w, struct env_job *j)
{
	(void)env;
	EXPECT_INT(w, ENV_WORKER_STORAGE);
	(void)pthread_mutex_lock(&threads.lock);
	STAILQ_INSERT_TAIL(&threads.jobs, j, link);
	(void)pthread_cond_broadcast(&threads.changed);
	(void)pthread_mutex_unlock(&threads.lock);
}

static void threads_post(struct env *env, struct env_task *t)
{
	(void)env;
	threads.task = t;
}

static void threads_fail_stop(struct env *env, const char *why)
{
	(void)env;
	FAIL("%s", why);
}

/* One turn; `wait`: not before a job is done. */
static void threads_turn(bool wait)
{
	struct env_timer *t = threads.timer;
	struct env_job *j;

	(void)pthread_mutex_lock(&threads.lock);
	while (wait && STAILQ_EMPTY(&threads.dones))
		(void)pthread_cond_wait(&threads.changed, &threads.lock);
	j = STAILQ_FIRST(&threads.dones);
	if (j != NULL)
		STAILQ_REMOVE_HEAD(&threads.dones, link);
	(void)pthread_mutex_unlock(&threads.lock);
	if (j != NULL)
		j->done(j);
	if (t != NULL && threads.timer == t &&
	    t->at_ms <= env_now_ms(&threads.env)) {
		threads_timer_stop(t);
		t->cb(t);
	}
}

static void zeros(void *arg, void *out, size_t n)
{
	(void)arg;
	memset(out, 0, n);
}

/* What came of the last thing that was asked for. */
struct copying {
	struct storage_export x;
	struct storage_stage g;
	struct storage_switch w;
	struct storage_hash h;
	struct storage_scrub c;
	enum rc rc;
	bool done;
	uint8_t piece[STORAGE_PIECE_MAX];
	size_t piece_n;
	uint64_t generation;
};

static void copying_ends(struct copying *c, enum rc rc)
{
	c->rc = rc;
	c->done = true;
}

static void copying_ready(struct storage_export *x, enum rc rc)
{
	copying_ends(x->arg, rc);
}

static void copying_data(struct storage_export *x, enum rc rc, const void *p,
			 size_t n)
{
	struct copying *c = x->arg;

	memcpy(c->piece, p, n);
	c->piece_n = n;
	copying_ends(c, rc);
}

static void copying_written(struct storage_stage *g, enum rc rc)
{
	copying_ends(g->arg, rc);
}

static void copying_staged(struct storage_stage *g, enum rc rc,
			   uint64_t generation)
{
	struct copying *c = g->arg;

	c->generation = generation;
	copying_ends(c, rc);
}

static void copying_switched(struct storage_switch *w, enum rc rc,
			     const struct storage_state *state)
{
	struct copying *c = w->arg;

	EXPECT_UINT(state->applied_index, c->x.index);
	copying_ends(c, rc);
}

static void copying_hashed(struct storage_hash *h, enum rc rc)
{
	copying_ends(h->arg, rc);
}

static void copying_scrubbed(struct storage_scrub *c, enum rc rc)
{
	copying_ends(c->arg, rc);
}

static void copying_wait(struct copying *c)
{
	while (!c->done)
		threads_turn(true);
	EXPECT_RC(c->rc, RC_OK);
	c->done = false;
}

/* A copy of itself becomes its state, while it goes on. */
static void copy_itself(struct copying *c)
{
	uint64_t at;

	c->x = (struct storage_export){ .ready = copying_ready,
					.data = copying_data,
					.arg = c };
	storage_export_begin(node.s, &c->x);
	copying_wait(c);
	c->g = (struct storage_stage){ .index = c->x.index,
				       .term = c->x.term,
				       .conf_index = c->x.conf_index,
				       .conf = c->x.conf,
				       .conf_bytes = c->x.conf_bytes,
				       .bytes = c->x.bytes,
				       .written = copying_written,
				       .done = copying_staged,
				       .arg = c };
	memcpy(c->g.hash, c->x.hash, HASH_BYTES);
	storage_stage_begin(node.s, &c->g);
	for (at = 0; at < c->x.bytes; at += c->piece_n) {
		storage_export_read(node.s, &c->x, at, STORAGE_PIECE_MAX);
		copying_wait(c);
		if (node.model.index + 1 < LOG_MAX)
			apply_next();
		load_any();
		storage_stage_write(node.s, &c->g, at, c->piece,
				    (uint32_t)c->piece_n);
		copying_wait(c);
	}
	storage_export_end(node.s, &c->x);
	storage_stage_end(node.s, &c->g);
	copying_wait(c);
	c->h = (struct storage_hash){ .done = copying_hashed, .arg = c };
	storage_hash_at(node.s, &c->h);
	copying_wait(c);
	c->c = (struct storage_scrub){ .range = 3,
				       .done = copying_scrubbed,
				       .arg = c };
	storage_scrub(node.s, &c->c);
	copying_wait(c);
	while (node.loads_done < node.loads)
		threads_turn(true);
	c->w = (struct storage_switch){ .generation = c->generation,
					.done = copying_switched,
					.arg = c };
	storage_switch(node.s, &c->w);
	copying_wait(c);
	replay(&node.model, c->x.index);
	node.stored = node.checkpointed = c->x.index;
}

static void threads_random(struct env *env, void *out, size_t n)
{
	(void)env;
	memset(out, 7, n);
}

TEST(loop_and_worker_are_threads)
{
	static const struct env_ops ops = {
		.now_ns = threads_now,
		.timer_start = threads_timer_start,
		.timer_stop = threads_timer_stop,
		.work = threads_work,
		.post = threads_post,
		.random = threads_random,
		.fail_stop = threads_fail_stop,
	};
	static struct copying copying;
	struct storage_config cfg = config;
	unsigned i;

	new_world(14);
	db_vfs_seed(zeros, NULL);
	threads = (struct threads){ .env = { &ops } };
	STAILQ_INIT(&threads.jobs);
	STAILQ_INIT(&threads.dones);
	EXPECT_INT(pthread_mutex_init(&threads.lock, NULL), 0);
	EXPECT_INT(pthread_cond_init(&threads.changed, NULL), 0);
	cfg.window_ms = 1;
	node = (struct node){ .listener = { on_stored, on_checkpointed,
					    on_bad } };
	EXPECT_RC(storage_open(&threads.env, world_disk(world, 0), &cfg,
			       &node.listener, &node.s, &node.state, NULL),
		  RC_OK);
	EXPECT_INT(pthread_create(&threads.worker, NULL, worker, NULL), 0);
	for (i = 0; i < 3000; i++) {
		if (i % 10 == 0 && node.model.index + 1 < LOG_MAX)
			apply_next();
		if (i % 3 == 0)
			load_any();
		if (i % 100 == 50)
			storage_flush(node.s);
		if (i % 500 == 250)
			storage_checkpoint(node.s);
		threads_turn(false);
	}
	copy_itself(&copying);
	for (i = 0; i < 300; i++) {
		if (i % 10 == 0)
			apply_next();
		if (i % 3 == 0)
			load_any();
		threads_turn(false);
	}
	storage_close(node.s, on_closed, &node.closed);
	while (!node.closed)
		threads_turn(true);
	EXPECT_UINT(node.loads_done, node.loads);
	EXPECT_UINT(node.checkpointed, node.model.index);
	(void)pthread_mutex_lock(&threads.lock);
	threads.end = true;
	(void)pthread_cond_broadcast(&threads.changed);
	(void)pthread_mutex_unlock(&threads.lock);
	EXPECT_INT(pthread_join(threads.worker, NULL), 0);
	(void)pthread_cond_destroy(&threads.changed);
	(void)pthread_mutex_destroy(&threads.lock);
	end_world();
}
