/*
 * Copies of a state: from the storage of one node, through the hands of the
 * test, into the storage of another. And what tells that two of them differ.
 */
#include <sqlite3.h>

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "objects/db.h"
#include "objects/db_vfs.h"
#include "objects/storage.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define SHARD   3u
#define SOURCE  0u
#define SINK    1u
#define NODES   3u
#define OBJECTS 23u
#define PIECE   (16u << 10) /* Small ones: more places to fail at. */

static struct world *world;

static void random_of_world(void *arg, void *out, size_t n)
{
	uint8_t *p = out;

	while (n-- > 0)
		*p++ = (uint8_t)world_random(arg, 256);
}

/* ---------------------------------------------------------------- entries */

static struct oid oid_of(unsigned object)
{
	struct oid oid = { { 0 } };

	oid.b[0] = (uint8_t)(object * 37);
	oid.b[8] = (uint8_t)object;
	return oid;
}

static uint64_t term_of(uint64_t index)
{
	return 1 + index / 40;
}

/* Entry `index` of the log, the same on every node. */
static void make_entry(struct pack_w *w, uint64_t index)
{
	static uint8_t value[400];
	uint64_t x = index * 2654435761u;
	struct oid oid = oid_of((unsigned)(x % OBJECTS));
	struct unit_row r = { .kind = ROW_DATA };
	uint8_t key[2];
	uint32_t rows = (uint32_t)(x / 7 % 5);
	uint32_t i;

	memset(value, (int)index, sizeof(value));
	pack_w_init(w, ENTRY_BYTES_MAX);
	entry_begin(w, index * 1000, index * 3, term_of(index), 1);
	unit_begin(w, &oid, x % 29 == 0 ? UNIT_WIPE : 0,
		   (struct pack_bytes){ value, index % 60 }, rows);
	for (i = 0; i < rows; i++) {
		key[0] = (uint8_t)((x >> i) % 11);
		key[1] = (uint8_t)i;
		r.kind = (enum row_kind)(1 + (x >> i) % 4);
		r.key = (struct pack_bytes){ key, 2 };
		r.value = (struct pack_bytes){ value, (x >> i) % 400 };
		r.expires_ns = (x >> i) % 3 == 0 ? index : 0;
		if ((x >> i) % 5 == 0) {
			r.value.p = NULL;
			r.expires_ns = 0;
		}
		unit_row(w, &r);
	}
	EXPECT_RC(w->rc, RC_OK);
}

static enum rc apply(struct storage *s, uint64_t index)
{
	struct pack_w w;
	enum rc rc;

	if (index % 17 == 0)
		return storage_apply_other(s, index, term_of(index), &index,
					   sizeof(index));
	if (index % 23 == 0)
		return storage_apply_other(s, index, term_of(index), NULL, 0);
	make_entry(&w, index);
	rc = storage_apply(s, index, term_of(index), w.p, w.n);
	pack_w_release(&w);
	return rc;
}

/* ------------------------------------------------------------------ nodes */

struct node {
	unsigned number;
	struct storage_listener listener;
	struct storage *s;
	struct storage_state state;
	/* What the ballot names. */
	uint64_t generation;
	bool absent;
	uint64_t stored;
	uint64_t checkpointed;
	unsigned bad;
	bool closed;
	/* A stream in. */
	struct storage_stage g;
	struct storage_switch w;
	bool wrote;
	bool ended;
	enum rc rc;
	/* A stream out. */
	struct storage_export x;
	bool got;
	enum rc got_rc;
	uint8_t piece[STORAGE_PIECE_MAX];
	size_t piece_n;
	/* The rest. */
	struct storage_hash h;
	bool hashed;
	struct storage_scrub c;
	bool scrubbed;
};

static struct node nodes[NODES];

static struct node *node_of(struct storage_listener *l)
{
	return CONTAINER_OF(l, struct node, listener);
}

static void on_stored(struct storage_listener *l, uint64_t index)
{
	node_of(l)->stored = index;
}

static void on_checkpointed(struct storage_listener *l, uint64_t index)
{
	node_of(l)->checkpointed = index;
}

static void on_bad(struct storage_listener *l, enum rc rc,
		   const struct detail *why)
{
	EXPECT_RC(rc, RC_CORRUPT);
	EXPECT_HAS(why->text, "shard 3");
	node_of(l)->bad++;
}

static enum rc open_node(unsigned i, struct detail *why)
{
	struct node *n = &nodes[i];
	struct storage_config cfg = { .shard = SHARD,
				      .generation = n->generation,
				      .window_ms = 20,
				      .window_bytes = 1 << 20,
				      .absent = n->absent };
	struct node fresh = { .number = i,
			      .listener = { on_stored, on_checkpointed,
					    on_bad },
			      .generation = n->generation,
			      .absent = n->absent };

	*n = fresh;
	return storage_open(world_env(world, i), world_disk(world, i), &cfg,
			    &n->listener, &n->s, &n->state, why);
}

static struct storage *boot(unsigned i)
{
	struct detail why = { 0 };
	enum rc rc = open_node(i, &why);

	if (rc != RC_OK)
		FAIL("boot: %s: %s", rc_name(rc), why.text);
	return nodes[i].s;
}

static void on_closed(void *arg)
{
	*(bool *)arg = true;
}

static void close_node(unsigned i)
{
	struct node *n = &nodes[i];

	storage_close(n->s, on_closed, &n->closed);
	EXPECT_TRUE(world_run_flag(world, &n->closed, 60000));
	n->s = NULL;
}

static void new_world(uint64_t seed)
{
	if (world != NULL)
		world_free(world);
	memset(nodes, 0, sizeof(nodes));
	world = world_new(seed);
	db_vfs_seed(random_of_world, world);
}

static void end_world(void)
{
	world_free(world);
	world = NULL;
}

static void run_ms(uint64_t ms)
{
	world_run_until(world, world_now_ms(world) + ms);
}

static void apply_to(unsigned i, uint64_t index)
{
	uint64_t at = storage_applied(nodes[i].s) + 1;

	for (; at <= index; at++)
		EXPECT_RC(apply(nodes[i].s, at), RC_OK);
}

/* Waits for `*flag`, or for the node's end. */
static bool await(unsigned i, const bool *flag)
{
	while (!*flag && world_alive(world, i) && world_step(world))
		;
	return *flag;
}

/* ----------------------------------------------------------------- hashes */

static void on_hash(struct storage_hash *h, enum rc rc)
{
	struct node *n = h->arg;

	n->rc = rc;
	n->hashed = true;
}

static void ask_hash(unsigned i)
{
	struct node *n = &nodes[i];

	n->h = (struct storage_hash){ .done = on_hash, .arg = n };
	n->hashed = false;
	storage_hash_at(n->s, &n->h);
	EXPECT_FALSE(n->hashed);
}

static enum rc hash_of(unsigned i, uint8_t hash[HASH_BYTES])
{
	ask_hash(i);
	EXPECT_TRUE(await(i, &nodes[i].hashed));
	memcpy(hash, nodes[i].h.hash, HASH_BYTES);
	return nodes[i].rc;
}

/* What node 2, which is only asked for this, makes of the log up to `index`. */
static void hash_at(uint64_t index, uint8_t hash[HASH_BYTES])
{
	if (nodes[2].s == NULL || storage_applied(nodes[2].s) > index) {
		if (nodes[2].s != NULL)
			close_node(2);
		world_kill(world, 2);
		world_wipe(world, 2);
		boot(2);
	}
	apply_to(2, index);
	EXPECT_RC(hash_of(2, hash), RC_OK);
}

/* The node has exactly what the log has up to `index`. */
static void expect_state(unsigned i, uint64_t index)
{
	uint8_t want[HASH_BYTES];
	uint8_t got[HASH_BYTES];

	hash_at(index, want);
	EXPECT_UINT(storage_applied(nodes[i].s), index);
	EXPECT_RC(hash_of(i, got), RC_OK);
	EXPECT_UINT(nodes[i].h.index, index);
	EXPECT_MEM(got, want, HASH_BYTES);
}

static void on_scrub(struct storage_scrub *c, enum rc rc)
{
	struct node *n = c->arg;

	n->rc = rc;
	n->scrubbed = true;
}

static enum rc scrub(unsigned i, unsigned range)
{
	struct node *n = &nodes[i];

	n->c = (struct storage_scrub){ .range = range,
				       .done = on_scrub,
				       .arg = n };
	n->scrubbed = false;
	storage_scrub(n->s, &n->c);
	EXPECT_FALSE(n->scrubbed);
	EXPECT_TRUE(await(i, &n->scrubbed));
	return n->rc;
}

/* ----------------------------------------------------------------- copies */

static void on_ready(struct storage_export *x, enum rc rc)
{
	struct node *n = x->arg;

	EXPECT_FALSE(n->got);
	n->got_rc = rc;
	n->got = true;
}

static void on_data(struct storage_export *x, enum rc rc, const void *p,
		    size_t bytes)
{
	struct node *n = x->arg;

	EXPECT_FALSE(n->got);
	if (rc == RC_OK)
		memcpy(n->piece, p, bytes);
	n->piece_n = bytes;
	n->got_rc = rc;
	n->got = true;
}

static enum rc export_begin(unsigned i)
{
	struct node *n = &nodes[i];

	n->x = (struct storage_export){ .ready = on_ready,
					.data = on_data,
					.arg = n };
	n->got = false;
	storage_export_begin(n->s, &n->x);
	EXPECT_FALSE(n->got);
	(void)await(i, &n->got);
	return n->got ? n->got_rc : RC_IO;
}

static enum rc export_read(unsigned i, uint64_t offset, uint32_t bytes)
{
	struct node *n = &nodes[i];

	n->got = false;
	storage_export_read(n->s, &n->x, offset, bytes);
	EXPECT_FALSE(n->got);
	(void)await(i, &n->got);
	return n->got ? n->got_rc : RC_IO;
}

/* A copy that was received, with what was announced. */
struct copy {
	struct storage_export what;
	uint8_t conf[16];
	uint8_t *p;
	size_t n;
};

static void copy_begin(struct copy *c, unsigned from)
{
	EXPECT_RC(export_begin(from), RC_OK);
	c->what = nodes[from].x;
	EXPECT_TRUE(c->what.conf_bytes <= sizeof(c->conf));
	if (c->what.conf_bytes > 0)
		memcpy(c->conf, c->what.conf, c->what.conf_bytes);
	c->what.conf = c->what.conf != NULL ? c->conf : NULL;
	c->p = calloc(1, c->what.bytes);
	c->n = 0;
	EXPECT_NOT_NULL(c->p);
}

static enum rc copy_more(struct copy *c, unsigned from)
{
	enum rc rc = export_read(from, c->n, PIECE);

	if (rc != RC_OK)
		return rc;
	EXPECT_TRUE(c->n + nodes[from].piece_n <= c->what.bytes);
	memcpy(c->p + c->n, nodes[from].piece, nodes[from].piece_n);
	c->n += nodes[from].piece_n;
	return RC_OK;
}

static void copy_of(struct copy *c, unsigned from)
{
	copy_begin(c, from);
	while (c->n < c->what.bytes)
		EXPECT_RC(copy_more(c, from), RC_OK);
	storage_export_end(nodes[from].s, &nodes[from].x);
}

static void on_written(struct storage_stage *g, enum rc rc)
{
	struct node *n = g->arg;

	EXPECT_FALSE(n->wrote);
	n->rc = rc;
	n->wrote = true;
}

/* The ballot is written before anything else is done with it. */
static void on_staged(struct storage_stage *g, enum rc rc, uint64_t generation)
{
	struct node *n = g->arg;

	EXPECT_FALSE(n->ended);
	n->rc = rc;
	n->ended = true;
	if (rc != RC_OK)
		return;
	EXPECT_TRUE(generation > n->generation);
	n->generation = generation;
	n->absent = false;
}

static void stage_begin(unsigned i, const struct copy *c)
{
	struct node *n = &nodes[i];

	n->g = (struct storage_stage){ .index = c->what.index,
				       .term = c->what.term,
				       .conf_index = c->what.conf_index,
				       .conf = c->what.conf,
				       .conf_bytes = c->what.conf_bytes,
				       .bytes = c->what.bytes,
				       .written = on_written,
				       .done = on_staged,
				       .arg = n };
	memcpy(n->g.hash, c->what.hash, HASH_BYTES);
	n->ended = false;
	storage_stage_begin(n->s, &n->g);
}

static enum rc stage_write(unsigned i, uint64_t offset, const void *p,
			   uint32_t bytes)
{
	struct node *n = &nodes[i];

	n->wrote = false;
	storage_stage_write(n->s, &n->g, offset, p, bytes);
	EXPECT_FALSE(n->wrote);
	(void)await(i, &n->wrote);
	return n->wrote ? n->rc : RC_IO;
}

static enum rc stage_end(unsigned i)
{
	struct node *n = &nodes[i];

	storage_stage_end(n->s, &n->g);
	EXPECT_FALSE(n->ended);
	(void)await(i, &n->ended);
	return n->ended ? n->rc : RC_IO;
}

/* All of it; RC_IO: the node is dead. */
static enum rc stage(unsigned i, const struct copy *c)
{
	size_t at;
	size_t n;
	enum rc rc = RC_OK;

	stage_begin(i, c);
	for (at = 0; rc == RC_OK && at < c->n; at += n) {
		n = c->n - at < PIECE ? c->n - at : PIECE;
		rc = stage_write(i, at, c->p + at, (uint32_t)n);
	}
	return rc == RC_OK ? stage_end(i) : rc;
}

static void on_switched(struct storage_switch *w, enum rc rc,
			const struct storage_state *state)
{
	struct node *n = w->arg;

	EXPECT_RC(rc, RC_OK);
	n->state = *state;
	n->ended = true;
}

static void switch_begin(unsigned i)
{
	struct node *n = &nodes[i];

	n->w = (struct storage_switch){ .generation = n->generation,
					.done = on_switched,
					.arg = n };
	n->ended = false;
	storage_switch(n->s, &n->w);
	EXPECT_FALSE(n->ended);
}

static enum rc switch_to(unsigned i)
{
	switch_begin(i);
	return await(i, &nodes[i].ended) ? RC_OK : RC_IO;
}

static void expect_switched(unsigned i, const struct copy *c)
{
	const struct storage_state *st = &nodes[i].state;

	EXPECT_UINT(st->applied_index, c->what.index);
	EXPECT_UINT(st->applied_term, c->what.term);
	EXPECT_UINT(st->main_index, c->what.index);
	EXPECT_UINT(st->conf_index, c->what.conf_index);
	EXPECT_UINT(st->conf_bytes, c->what.conf_bytes);
	if (st->conf_bytes > 0)
		EXPECT_MEM(st->conf, c->conf, st->conf_bytes);
	EXPECT_UINT(storage_applied(nodes[i].s), c->what.index);
	EXPECT_UINT(storage_stored(nodes[i].s), c->what.index);
	EXPECT_UINT(storage_checkpointed(nodes[i].s), c->what.index);
	EXPECT_UINT(storage_window_bytes(nodes[i].s), 0);
}

/* ------------------------------------------------------------------ files */

struct names {
	unsigned n;
	unsigned others; /* Not of the generation that is named. */
	char want[32];
};

static void see_file(void *arg, const char *name, uint64_t bytes)
{
	struct names *l = arg;

	(void)bytes;
	l->n++;
	if (strncmp(name, l->want, strlen(l->want)) != 0)
		l->others++;
}

/* How many files of other generations than the named one are there? */
static unsigned strangers(unsigned i)
{
	struct names l = { 0 };

	(void)snprintf(l.want, sizeof(l.want), "state/%02u-%08u.", SHARD,
		       (unsigned)nodes[i].generation);
	world_files(world, i, see_file, &l);
	return l.others;
}

/* What the sqlite3 program would show of a main file, as text. */
static char *dump(unsigned i, uint64_t generation)
{
	static const char sql[] =
		"SELECT 'head ' || hex(oid) || ' ' || hex(head) FROM heads"
		" UNION ALL SELECT 'row ' || hex(oid) || ' ' || kind || ' ' ||"
		" hex(key) || ' ' || hex(value) || ' ' || expires FROM rows"
		" UNION ALL SELECT 'range ' || range || ' ' || hex(hash)"
		" FROM ranges UNION ALL SELECT 'meta ' || key || ' ' ||"
		" quote(value) FROM meta WHERE key <> 'generation'"
		" UNION ALL SELECT * FROM pragma_integrity_check";
	char name[64];
	char path[300];
	char *text = NULL;
	size_t size;
	size_t n;
	uint8_t *p;
	FILE *f;
	sqlite3 *conn;
	sqlite3_stmt *st;

	(void)snprintf(name, sizeof(name), "state/%02u-%08u.db", SHARD,
		       (unsigned)generation);
	p = world_file(world, i, name, true, &n);
	EXPECT_NOT_NULL(p);
	(void)snprintf(path, sizeof(path), "%s/%u.db", runner_dir(), i);
	f = fopen(path, "w");
	EXPECT_NOT_NULL(f);
	EXPECT_UINT(fwrite(p, 1, n, f), n);
	EXPECT_INT(fclose(f), 0);
	free(p);
	f = open_memstream(&text, &size);
	EXPECT_INT(sqlite3_open_v2(path, &conn, SQLITE_OPEN_READONLY, "unix"),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_prepare_v2(conn, sql, -1, &st, NULL), SQLITE_OK);
	while (sqlite3_step(st) == SQLITE_ROW)
		(void)fprintf(f, "%s\n",
			      (const char *)sqlite3_column_text(st, 0));
	EXPECT_INT(sqlite3_finalize(st), SQLITE_OK);
	EXPECT_INT(sqlite3_close(conn), SQLITE_OK);
	EXPECT_INT(fclose(f), 0);
	return text;
}

/* Change the rows of a closed file and keep every page good. */
static void tamper(unsigned i, const char *sql)
{
	struct db_vfs *vfs;
	sqlite3 *conn;
	char *error = NULL;

	EXPECT_RC(db_vfs_open(world_disk(world, i), SHARD, nodes[i].generation,
			      &vfs, NULL),
		  RC_OK);
	EXPECT_INT(sqlite3_open_v2(db_vfs_file(vfs), &conn,
				   SQLITE_OPEN_READWRITE, db_vfs_name(vfs)),
		   SQLITE_OK);
	(void)sqlite3_exec(conn,
			   "PRAGMA locking_mode=EXCLUSIVE;"
			   "PRAGMA synchronous=NORMAL",
			   NULL, NULL, &error);
	(void)sqlite3_exec(conn, sql, NULL, NULL, &error);
	EXPECT_STR(error, NULL);
	EXPECT_INT(sqlite3_wal_checkpoint_v2(
			   conn, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_close(conn), SQLITE_OK);
	db_vfs_close(vfs);
}

/* ------------------------------------------------------------------ loads */

struct load {
	struct storage_load l;
	bool done;
	enum rc rc;
	unsigned rows;
};

static void on_row(struct storage_load *l, const struct unit_row *r)
{
	(void)r;
	CONTAINER_OF(l, struct load, l)->rows++;
}

static void on_loaded(struct storage_load *l, enum rc rc)
{
	struct load *o = CONTAINER_OF(l, struct load, l);

	EXPECT_FALSE(o->done);
	o->rc = rc;
	o->done = true;
}

static void load_begin(unsigned i, struct load *o, unsigned object)
{
	*o = (struct load){ .l = { .oid = oid_of(object),
				   .what = LOAD_OBJECT,
				   .bytes_max = 1 << 20,
				   .row = on_row,
				   .done = on_loaded } };
	storage_load(nodes[i].s, &o->l);
}

static enum rc load(unsigned i, unsigned object)
{
	struct load o;

	load_begin(i, &o, object);
	EXPECT_TRUE(await(i, &o.done));
	return o.rc;
}

/* ------------------------------------------------------------------ tests */

/* Equal entries in other windows, other files, other generations. */
TEST(the_hash_is_of_what_was_applied)
{
	uint8_t a[HASH_BYTES];
	uint8_t b[HASH_BYTES];
	uint8_t before[HASH_BYTES] = { 0 };
	uint64_t index = 0;
	uint64_t was = UINT64_MAX;
	unsigned i;

	new_world(1);
	boot(SOURCE);
	boot(SINK);
	for (i = 0; i < 150; i++) {
		index += world_random(world, 4);
		while (storage_applied(nodes[SOURCE].s) < index) {
			apply_to(SOURCE, storage_applied(nodes[SOURCE].s) + 1);
			if (world_random(world, 3) == 0)
				run_ms(world_random(world, 30));
			if (world_random(world, 20) == 0)
				storage_checkpoint(nodes[SOURCE].s);
		}
		apply_to(SINK, index);
		/* What comes behind it does not matter to it. */
		ask_hash(SOURCE);
		ask_hash(SINK);
		if (world_random(world, 2) == 0)
			apply_to(SINK, ++index);
		if (world_random(world, 4) == 0)
			run_ms(world_random(world, 5));
		apply_to(SOURCE, index);
		EXPECT_TRUE(await(SOURCE, &nodes[SOURCE].hashed));
		EXPECT_RC(nodes[SOURCE].rc, RC_OK);
		EXPECT_TRUE(await(SINK, &nodes[SINK].hashed));
		EXPECT_RC(nodes[SINK].rc, RC_OK);
		EXPECT_UINT(nodes[SOURCE].h.index, nodes[SINK].h.index);
		memcpy(a, nodes[SOURCE].h.hash, HASH_BYTES);
		memcpy(b, nodes[SINK].h.hash, HASH_BYTES);
		EXPECT_MEM(a, b, HASH_BYTES);
		/* Another index, another hash. */
		if (nodes[SINK].h.index != was)
			EXPECT_TRUE(memcmp(a, before, HASH_BYTES) != 0);
		was = nodes[SINK].h.index;
		memcpy(before, a, HASH_BYTES);
	}
	close_node(SOURCE);
	boot(SOURCE);
	EXPECT_RC(hash_of(SOURCE, a), RC_OK);
	EXPECT_RC(hash_of(SINK, b), RC_OK);
	EXPECT_MEM(a, b, HASH_BYTES);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
}

/* While a flush is under way, and entries come on: a third generation lies
 * between the two, and loads go through all of them. */
TEST(the_hash_between_two_flushes)
{
	uint8_t want[3][HASH_BYTES];
	struct node *n = &nodes[SOURCE];
	struct load o;
	struct load p;
	uint64_t at;

	new_world(2);
	hash_at(180, want[0]);
	hash_at(200, want[1]);
	hash_at(260, want[2]);
	boot(SOURCE);
	apply_to(SOURCE, 160);
	storage_flush(n->s);
	apply_to(SOURCE, 180);
	ask_hash(SOURCE);
	apply_to(SOURCE, 260);
	n->closed = false;
	while (!n->hashed) {
		/* The window shows what SQLite will: on a node that flushed
		 * everything at once it is the same. */
		for (at = 0; at < OBJECTS && !n->hashed; at++) {
			load_begin(SOURCE, &o, (unsigned)at);
			load_begin(2, &p, (unsigned)at);
			EXPECT_TRUE(await(SOURCE, &o.done));
			EXPECT_TRUE(await(2, &p.done));
			EXPECT_RC(o.rc, RC_OK);
			EXPECT_UINT(o.rows, p.rows);
			EXPECT_UINT(o.l.index, 260);
		}
	}
	EXPECT_RC(n->rc, RC_OK);
	EXPECT_UINT(n->h.index, 180);
	EXPECT_MEM(n->h.hash, want[0], HASH_BYTES);
	EXPECT_UINT(storage_stored(n->s), 180);
	run_ms(100);
	EXPECT_UINT(n->stored, 260);
	expect_state(SOURCE, 260);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

TEST(hashes_of_two_indexes_at_a_time)
{
	struct node *n = &nodes[SOURCE];
	struct node more[3] = { 0 };
	uint8_t want[HASH_BYTES];
	uint8_t ranges[STATE_RANGES][HASH_BYTES];
	struct node other = { 0 };
	unsigned i;

	new_world(3);
	boot(SOURCE);
	apply_to(SOURCE, 10);
	ask_hash(SOURCE);
	apply_to(SOURCE, 12);
	for (i = 0; i < 3; i++) {
		more[i].h = (struct storage_hash){ .done = on_hash,
						   .arg = &more[i] };
		if (i == 2)
			apply_to(SOURCE, 13);
		storage_hash_at(n->s, &more[i].h);
		EXPECT_FALSE(more[i].hashed);
	}
	EXPECT_TRUE(await(SOURCE, &n->hashed));
	EXPECT_RC(n->rc, RC_OK);
	EXPECT_UINT(n->h.index, 10);
	for (i = 0; i < 3; i++)
		EXPECT_TRUE(await(SOURCE, &more[i].hashed));
	/* Two of the same index share a flush; there is no third index. */
	EXPECT_RC(more[0].rc, RC_OK);
	EXPECT_RC(more[1].rc, RC_OK);
	EXPECT_RC(more[2].rc, RC_CONFLICT);
	hash_at(12, want);
	memcpy(ranges, nodes[2].h.ranges, sizeof(ranges));
	for (i = 0; i < 2; i++) {
		EXPECT_UINT(more[i].h.index, 12);
		EXPECT_MEM(more[i].h.hash, want, HASH_BYTES);
		EXPECT_MEM(more[i].h.ranges, ranges, sizeof(ranges));
	}
	/* One entry is in one range only. */
	apply_to(2, 13);
	EXPECT_RC(hash_of(2, want), RC_OK);
	for (i = 0; i < STATE_RANGES; i++)
		other.stored += memcmp(ranges[i], nodes[2].h.ranges[i],
				       HASH_BYTES) != 0;
	EXPECT_UINT(other.stored, 1);
	close_node(2);
	other.h = (struct storage_hash){ .done = on_hash, .arg = &other };
	/* Asked before a close it is answered, behind it refused. */
	ask_hash(SOURCE);
	storage_close(n->s, on_closed, &n->closed);
	other.hashed = false;
	storage_hash_at(n->s, &other.h);
	EXPECT_TRUE(await(SOURCE, &n->closed));
	EXPECT_TRUE(n->hashed);
	EXPECT_RC(n->rc, RC_OK);
	EXPECT_TRUE(other.hashed);
	EXPECT_RC(other.rc, RC_CANCELLED);
	end_world();
}

/* Whatever is under way, and whatever is applied behind it. */
TEST(a_copy_is_of_the_index_at_which_it_was_asked_for)
{
	struct node *n = &nodes[SOURCE];
	uint8_t want[HASH_BYTES];
	uint64_t flushing;
	uint64_t seed;

	for (seed = 1; seed <= 60; seed++) {
		runner_context("seed %u", (unsigned)seed);
		new_world(seed);
		boot(SOURCE);
		apply_to(SOURCE, 1 + world_random(world, 60));
		if (seed % 3 > 0)
			storage_flush(n->s);
		if (seed % 4 == 3)
			storage_checkpoint(n->s);
		run_ms(world_random(world, 3));
		apply_to(SOURCE, 70);
		/* As a scrub does. */
		if (seed % 2 == 0)
			ask_hash(SOURCE);
		n->x = (struct storage_export){ .ready = on_ready,
						.data = on_data,
						.arg = n };
		n->got = false;
		storage_export_begin(n->s, &n->x);
		for (flushing = 71; flushing <= 170; flushing++) {
			apply_to(SOURCE, flushing);
			if (flushing % 7 == 0)
				storage_flush(n->s);
			if (flushing % 4 == 0)
				run_ms(world_random(world, 2));
		}
		EXPECT_TRUE(await(SOURCE, &n->got));
		EXPECT_RC(n->got_rc, RC_OK);
		EXPECT_UINT(n->x.index, 70);
		if (seed % 2 == 0) {
			EXPECT_TRUE(n->hashed);
			EXPECT_RC(n->rc, RC_OK);
			EXPECT_MEM(n->x.hash, n->h.hash, HASH_BYTES);
		}
		hash_at(70, want);
		EXPECT_MEM(n->x.hash, want, HASH_BYTES);
		storage_export_end(n->s, &n->x);
		expect_state(SOURCE, 170);
		close_node(2);
		close_node(SOURCE);
	}
	runner_context("%s", "");
	end_world();
}

/* It is whole, and somebody knows better. */
TEST(a_state_that_is_said_to_be_wrong)
{
	struct node *n = &nodes[SOURCE];
	struct detail why = { .text = "shard 3: a majority says otherwise" };
	struct copy c;

	new_world(8);
	boot(SINK);
	apply_to(SINK, 80);
	copy_of(&c, SINK);
	boot(SOURCE);
	apply_to(SOURCE, 40);
	ask_hash(SOURCE);
	apply_to(SOURCE, 60);
	storage_spoil(n->s, &why);
	EXPECT_UINT(n->bad, 1);
	storage_spoil(n->s, &why);
	EXPECT_UINT(n->bad, 1);
	EXPECT_RC(apply(n->s, 61), RC_CORRUPT);
	EXPECT_TRUE(await(SOURCE, &n->hashed));
	EXPECT_RC(load(SOURCE, 1), RC_CORRUPT);
	EXPECT_RC(scrub(SOURCE, 1), RC_CORRUPT);
	EXPECT_RC(stage(SOURCE, &c), RC_OK);
	EXPECT_RC(switch_to(SOURCE), RC_OK);
	expect_state(SOURCE, 80);
	EXPECT_RC(load(SOURCE, 1), RC_OK);
	close_node(2);
	close_node(SOURCE);
	close_node(SINK);
	free(c.p);
	end_world();
}

TEST(a_copy_becomes_the_state)
{
	struct copy c;
	char *a;
	char *b;

	new_world(4);
	boot(SOURCE);
	apply_to(SOURCE, 300);
	run_ms(50);
	copy_of(&c, SOURCE);
	EXPECT_UINT(c.what.index, 300);
	EXPECT_UINT(c.what.term, term_of(300));
	EXPECT_UINT(c.what.conf_index, 289);
	EXPECT_UINT(c.n, c.what.bytes);
	nodes[SINK].absent = true;
	boot(SINK);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_UINT(nodes[SINK].generation, 1);
	EXPECT_RC(switch_to(SINK), RC_OK);
	expect_switched(SINK, &c);
	EXPECT_UINT(strangers(SINK), 0);
	expect_state(SINK, 300);
	EXPECT_MEM(nodes[SINK].h.hash, c.what.hash, HASH_BYTES);
	EXPECT_RC(load(SINK, 1), RC_OK);
	a = dump(SOURCE, 0);
	b = dump(SINK, 1);
	EXPECT_TRUE(strlen(a) > 1000);
	EXPECT_HAS(a, "\nok\n");
	EXPECT_STR(b, a);
	free(a);
	free(b);
	/* Both go on, and once more over a state that is there. */
	apply_to(SOURCE, 400);
	apply_to(SINK, 350);
	expect_state(SINK, 350);
	free(c.p);
	copy_of(&c, SOURCE);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_UINT(nodes[SINK].generation, 2);
	apply_to(SINK, 370);
	EXPECT_RC(switch_to(SINK), RC_OK);
	expect_switched(SINK, &c);
	EXPECT_UINT(strangers(SINK), 0);
	expect_state(SINK, 400);
	/* And from the copy, a copy. */
	apply_to(SINK, 420);
	free(c.p);
	copy_of(&c, SINK);
	EXPECT_RC(stage(SOURCE, &c), RC_OK);
	EXPECT_RC(switch_to(SOURCE), RC_OK);
	expect_state(SOURCE, 420);
	close_node(SINK);
	boot(SINK);
	EXPECT_UINT(nodes[SINK].state.applied_index, 420);
	expect_state(SINK, 420);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
}

/* Entries, flushes and wishes for checkpoints go on while a copy is read. */
static enum rc copy_under_load(uint64_t seed)
{
	struct copy c;
	uint64_t checkpointed;
	uint64_t index = 200;
	enum rc rc;

	new_world(seed);
	boot(SOURCE);
	apply_to(SOURCE, index);
	nodes[SINK].absent = true;
	boot(SINK);
	copy_begin(&c, SOURCE);
	EXPECT_UINT(c.what.index, index);
	checkpointed = nodes[SOURCE].checkpointed;
	if (seed % 2 == 1)
		mutant_now = MUTANT_export_unpinned;
	while (c.n < c.what.bytes && copy_more(&c, SOURCE) == RC_OK) {
		index += 40;
		apply_to(SOURCE, index);
		storage_checkpoint(nodes[SOURCE].s);
		run_ms(60);
		if (mutant_now == MUTANT_none)
			EXPECT_UINT(nodes[SOURCE].checkpointed, checkpointed);
		EXPECT_TRUE(nodes[SOURCE].stored > 200);
	}
	storage_export_end(nodes[SOURCE].s, &nodes[SOURCE].x);
	run_ms(100);
	EXPECT_UINT(nodes[SOURCE].checkpointed, index);
	expect_state(SOURCE, index);
	rc = stage(SINK, &c);
	mutant_now = MUTANT_none;
	if (rc == RC_OK) {
		EXPECT_RC(switch_to(SINK), RC_OK);
		expect_state(SINK, 200);
	}
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
	return rc;
}

TEST(a_copy_is_of_one_moment)
{
	unsigned i;

	for (i = 0; i < 5; i++)
		EXPECT_RC(copy_under_load(100 + 2 * i), RC_OK);
}

TEST(mutant_export_unpinned)
{
	unsigned caught = 0;
	unsigned i;

	for (i = 0; i < 5; i++)
		caught += copy_under_load(101 + 2 * i) == RC_CORRUPT;
	EXPECT_TRUE(caught > 0);
}

TEST(one_export_at_a_time)
{
	struct node *n = &nodes[SOURCE];
	struct node other = { 0 };

	new_world(5);
	boot(SOURCE);
	apply_to(SOURCE, 50);
	EXPECT_RC(export_begin(SOURCE), RC_OK);
	other.x = (struct storage_export){ .ready = on_ready, .arg = &other };
	storage_export_begin(n->s, &other.x);
	EXPECT_TRUE(await(SOURCE, &other.got));
	EXPECT_RC(other.got_rc, RC_CONFLICT);
	storage_export_end(n->s, &other.x);
	/* The first one is as it was. */
	EXPECT_RC(export_read(SOURCE, 0, PIECE), RC_OK);
	EXPECT_UINT(n->piece_n, PIECE);
	EXPECT_RC(export_read(SOURCE, n->x.bytes - STATE_PAGE_BYTES, PIECE),
		  RC_OK);
	EXPECT_UINT(n->piece_n, STATE_PAGE_BYTES);
	EXPECT_RC(export_read(SOURCE, n->x.bytes, PIECE), RC_OK);
	EXPECT_UINT(n->piece_n, 0);
	/* Ended in the middle of a read, and the next one at once. */
	n->got = false;
	storage_export_read(n->s, &n->x, 0, PIECE);
	storage_export_end(n->s, &n->x);
	apply_to(SOURCE, 60);
	EXPECT_RC(export_begin(SOURCE), RC_OK);
	EXPECT_UINT(n->x.index, 60);
	/* Ended before it was ready. */
	storage_export_end(n->s, &n->x);
	apply_to(SOURCE, 70);
	n->got = false;
	storage_export_begin(n->s, &n->x);
	storage_export_end(n->s, &n->x);
	run_ms(200);
	EXPECT_FALSE(n->got);
	EXPECT_UINT(n->checkpointed, 70);
	close_node(SOURCE);
	end_world();
}

/* ----------------------------------------------------------------- damage */

static void make_copy(struct copy *c, uint64_t seed, uint64_t index)
{
	new_world(seed);
	boot(SOURCE);
	apply_to(SOURCE, index);
	copy_of(c, SOURCE);
}

TEST(a_damaged_piece_is_refused)
{
	struct copy c;
	uint64_t bit;

	make_copy(&c, 6, 250);
	boot(SINK);
	apply_to(SINK, 30);
	for (bit = 5; bit < 8 * c.n; bit += 8 * 4096 + 997) {
		runner_context("bit %d", (int)bit);
		c.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		EXPECT_RC(stage(SINK, &c), RC_CORRUPT);
		c.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		EXPECT_UINT(strangers(SINK), 0);
		/* A second word about it does no harm. */
		storage_stage_drop(nodes[SINK].s, &nodes[SINK].g);
	}
	expect_state(SINK, 30);
	EXPECT_UINT(nodes[SINK].bad, 0);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_RC(switch_to(SINK), RC_OK);
	expect_state(SINK, 250);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
}

/* Good pages, but not what was announced, or not all of one file. */
static enum rc stage_wrong(struct copy *c, struct copy *later, unsigned which)
{
	struct copy wrong = *c;
	uint8_t conf[16] = { 1 };
	uint8_t *p = malloc(c->n);
	enum rc rc;

	EXPECT_NOT_NULL(p);
	memcpy(p, c->p, c->n);
	wrong.p = p;
	switch (which) {
	case 0:
		wrong.what.index++;
		break;
	case 1:
		wrong.what.term++;
		break;
	case 2:
		wrong.what.conf_index++;
		break;
	case 3:
		wrong.what.conf = conf;
		break;
	case 4:
		wrong.what.conf_bytes--;
		break;
	case 5:
		wrong.what.hash[3] ^= 1;
		break;
	case 6: /* Too short. */
		wrong.what.bytes += STATE_PAGE_BYTES;
		break;
	case 7: /* Too long. */
		wrong.what.bytes -= STATE_PAGE_BYTES;
		break;
	case 8:
		wrong.n -= STATE_PAGE_BYTES;
		wrong.what.bytes -= STATE_PAGE_BYTES;
		break;
	case 9: /* Two pages for one another. */
		memcpy(p + STATE_PAGE_BYTES, c->p + (2u * STATE_PAGE_BYTES),
		       STATE_PAGE_BYTES);
		memcpy(p + (2u * STATE_PAGE_BYTES), c->p + STATE_PAGE_BYTES,
		       STATE_PAGE_BYTES);
		break;
	case 10: /* One page of a later copy of the same file. */
		memcpy(p + STATE_PAGE_BYTES, later->p + STATE_PAGE_BYTES,
		       c->n - STATE_PAGE_BYTES < later->n - STATE_PAGE_BYTES
			       ? c->n - STATE_PAGE_BYTES
			       : later->n - STATE_PAGE_BYTES);
		break;
	case 11:
		wrong.n = 0;
		break;
	case 12:
		wrong.n -= 100;
		break;
	default:
		FAIL("no such case");
	}
	rc = stage(SINK, &wrong);
	free(p);
	return rc;
}

#define WRONGS 13u

TEST(what_was_not_announced_is_refused)
{
	struct copy c;
	struct copy later;
	unsigned which;

	make_copy(&c, 7, 250);
	apply_to(SOURCE, 251);
	copy_of(&later, SOURCE);
	nodes[SINK].absent = true;
	boot(SINK);
	for (which = 0; which < WRONGS; which++) {
		runner_context("case %u", which);
		EXPECT_RC(stage_wrong(&c, &later, which), RC_CORRUPT);
		EXPECT_UINT(strangers(SINK), 0);
		EXPECT_RC(load(SINK, 1), RC_CORRUPT);
	}
	EXPECT_UINT(nodes[SINK].bad, 0);
	EXPECT_RC(stage(SINK, &later), RC_OK);
	EXPECT_RC(switch_to(SINK), RC_OK);
	expect_state(SINK, 251);
	free(c.p);
	free(later.p);
	close_node(2);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
}

/* Without the rule a mixture of two states would be one. */
TEST(mutant_stage_unverified)
{
	struct copy c;
	struct copy later;
	uint8_t want[HASH_BYTES];
	uint8_t got[HASH_BYTES];
	unsigned wrong = 0;
	unsigned which;

	make_copy(&c, 8, 250);
	apply_to(SOURCE, 251);
	copy_of(&later, SOURCE);
	hash_at(250, want);
	for (which = 0; which < 6; which++) {
		nodes[SINK].absent = true;
		nodes[SINK].generation = 0;
		world_wipe(world, SINK);
		boot(SINK);
		mutant_now = MUTANT_stage_unverified;
		if (which == 5) {
			c.p[STATE_PAGE_BYTES * 5u - 40] ^= 1;
			EXPECT_RC(stage(SINK, &c), RC_OK);
		} else {
			(void)stage_wrong(&c, &later, which == 4 ? 10 : which);
		}
		if (nodes[SINK].ended && nodes[SINK].rc == RC_OK) {
			EXPECT_RC(switch_to(SINK), RC_OK);
			wrong += hash_of(SINK, got) != RC_OK ||
				 memcmp(got, want, HASH_BYTES) != 0 ||
				 nodes[SINK].state.applied_index != 250 ||
				 which < 3;
		}
		mutant_now = MUTANT_none;
		storage_discard(nodes[SINK].s);
		world_kill(world, SINK);
	}
	EXPECT_TRUE(wrong > 2);
	free(c.p);
	free(later.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

TEST(a_damaged_page_ends_the_export)
{
	struct copy c = { 0 };
	struct node *n = &nodes[SOURCE];
	enum rc rc = RC_OK;

	new_world(9);
	boot(SOURCE);
	apply_to(SOURCE, 300);
	copy_begin(&c, SOURCE);
	EXPECT_RC(world_flip(world, SOURCE, "state/03-00000000.db",
			     c.what.bytes - 100, 1),
		  RC_OK);
	while (rc == RC_OK && c.n < c.what.bytes)
		rc = copy_more(&c, SOURCE);
	EXPECT_RC(rc, RC_CORRUPT);
	EXPECT_UINT(n->bad, 1);
	EXPECT_RC(export_read(SOURCE, 0, PIECE), RC_CORRUPT);
	storage_export_end(n->s, &n->x);
	EXPECT_RC(export_begin(SOURCE), RC_CORRUPT);
	EXPECT_RC(scrub(SOURCE, 0), RC_CORRUPT);
	ask_hash(SOURCE);
	EXPECT_TRUE(await(SOURCE, &n->hashed));
	EXPECT_RC(n->rc, RC_CORRUPT);
	EXPECT_UINT(n->bad, 1);
	EXPECT_TRUE(world_alive(world, SOURCE));
	free(c.p);
	close_node(SOURCE);
	end_world();
}

/* A row that changed behind our back, with good pages. */
static void boot_tampered(uint64_t seed)
{
	new_world(seed);
	boot(SOURCE);
	apply_to(SOURCE, 200);
	close_node(SOURCE);
	tamper(SOURCE, "UPDATE rows SET expires = expires + 1 WHERE oid ="
		       " (SELECT max(oid) FROM rows)");
	boot(SOURCE);
}

TEST(scrub_finds_rows_that_do_not_fit)
{
	struct copy c;
	unsigned range;
	unsigned found = 0;
	enum rc rc;

	make_copy(&c, 10, 220);
	for (range = 0; range < STATE_RANGES; range++) {
		EXPECT_RC(scrub(SOURCE, range), RC_OK);
		/* In the middle of a flush, too. */
		apply_to(SOURCE, 221 + range);
		storage_flush(nodes[SOURCE].s);
	}
	EXPECT_UINT(nodes[SOURCE].bad, 0);
	close_node(SOURCE);
	free(c.p);
	boot_tampered(11);
	for (range = 0; range < STATE_RANGES; range++) {
		rc = scrub(SOURCE, range);
		EXPECT_TRUE(rc == (found > 0 ? RC_CORRUPT : RC_OK) ||
			    (found == 0 && rc == RC_CORRUPT));
		found += rc == RC_CORRUPT;
	}
	EXPECT_TRUE(found > 0);
	EXPECT_UINT(nodes[SOURCE].bad, 1);
	close_node(SOURCE);
	end_world();
}

TEST(no_copy_of_rows_that_do_not_fit)
{
	boot_tampered(12);
	EXPECT_RC(export_begin(SOURCE), RC_CORRUPT);
	EXPECT_UINT(nodes[SOURCE].bad, 1);
	close_node(SOURCE);
	end_world();
}

TEST(mutant_snapshot_unscrubbed)
{
	boot_tampered(12);
	mutant_now = MUTANT_snapshot_unscrubbed;
	EXPECT_RC(export_begin(SOURCE), RC_OK);
	EXPECT_UINT(nodes[SOURCE].bad, 0);
	mutant_now = MUTANT_none;
	close_node(SOURCE);
	end_world();
}

/* Also when that did not keep it from being given away. */
TEST(nobody_takes_rows_that_do_not_fit)
{
	struct copy c;

	boot_tampered(13);
	mutant_now = MUTANT_snapshot_unscrubbed;
	copy_of(&c, SOURCE);
	mutant_now = MUTANT_none;
	nodes[SINK].absent = true;
	boot(SINK);
	EXPECT_RC(stage(SINK, &c), RC_CORRUPT);
	free(c.p);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
}

static void damage_all_pages(unsigned i, const char *name)
{
	size_t at;
	size_t n;

	free(world_file(world, i, name, false, &n));
	for (at = STATE_PAGE_BYTES; at < n; at += STATE_PAGE_BYTES)
		EXPECT_RC(world_flip(world, i, name, at + 99, 4), RC_OK);
}

/* A state that turns out bad is replaced while the node runs. */
TEST(a_bad_state_is_replaced)
{
	struct copy c;
	struct node *n = &nodes[SINK];
	uint64_t index;

	make_copy(&c, 14, 300);
	boot(SINK);
	apply_to(SINK, 100);
	close_node(SINK);
	boot(SINK);
	apply_to(SINK, 120);
	damage_all_pages(SINK, "state/03-00000000.db");
	EXPECT_RC(load(SINK, 1), RC_CORRUPT);
	EXPECT_UINT(n->bad, 1);
	EXPECT_TRUE(world_alive(world, SINK));
	EXPECT_RC(apply(n->s, 121), RC_CORRUPT);
	EXPECT_RC(load(SINK, 2), RC_CORRUPT);
	EXPECT_RC(export_begin(SINK), RC_CORRUPT);
	EXPECT_RC(scrub(SINK, 3), RC_CORRUPT);
	storage_flush(n->s);
	storage_checkpoint(n->s);
	run_ms(300);
	EXPECT_UINT(storage_window_bytes(n->s), 0);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	/* Not before it is switched to. */
	EXPECT_RC(load(SINK, 2), RC_CORRUPT);
	EXPECT_RC(switch_to(SINK), RC_OK);
	expect_switched(SINK, &c);
	EXPECT_UINT(strangers(SINK), 0);
	expect_state(SINK, 300);
	for (index = 0; index < STATE_RANGES; index++)
		EXPECT_RC(scrub(SINK, (unsigned)index), RC_OK);
	apply_to(SINK, 310);
	/* It is told again of the new one. */
	storage_checkpoint(n->s);
	run_ms(300);
	EXPECT_UINT(n->checkpointed, 310);
	close_node(SINK);
	boot(SINK);
	damage_all_pages(SINK, "state/03-00000001.db");
	EXPECT_RC(load(SINK, 3), RC_CORRUPT);
	EXPECT_UINT(n->bad, 1);
	close_node(SINK);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

/* A page that only a flush reads. */
TEST(damage_met_by_a_flush)
{
	struct node *n = &nodes[SINK];
	struct copy c;

	make_copy(&c, 15, 300);
	boot(SINK);
	apply_to(SINK, 250);
	close_node(SINK);
	boot(SINK);
	damage_all_pages(SINK, "state/03-00000000.db");
	apply_to(SINK, 260);
	ask_hash(SINK);
	run_ms(300);
	EXPECT_UINT(n->bad, 1);
	EXPECT_TRUE(n->hashed);
	EXPECT_RC(n->rc, RC_CORRUPT);
	EXPECT_UINT(n->stored, 0);
	EXPECT_UINT(storage_window_bytes(n->s), 0);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_RC(switch_to(SINK), RC_OK);
	expect_state(SINK, 300);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	close_node(SINK);
	end_world();
}

/* ------------------------------------------------------------- generations */

static void put_file(unsigned i, const char *name)
{
	struct disk_file *f;

	EXPECT_RC(disk_open(world_disk(world, i), name, DISK_CREATE, &f, NULL),
		  RC_OK);
	EXPECT_RC(disk_write(f, "left over", 9, 0), RC_OK);
	disk_close(f);
}

TEST(only_the_named_generation_stays)
{
	struct names l = { .want = "state/04-" };
	struct detail why = { 0 };
	struct copy c;
	char name[64];
	unsigned g;

	make_copy(&c, 16, 120);
	boot(SINK);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_RC(switch_to(SINK), RC_OK);
	close_node(SINK);
	for (g = 0; g < 40; g++) {
		if (g == 1)
			continue;
		(void)snprintf(name, sizeof(name), "state/03-%08u%s", g,
			       g % 4 == 0   ? ".db"
			       : g % 4 == 1 ? ".db-wal"
			       : g % 4 == 2 ? ".wal-mark"
					    : ".new");
		put_file(SINK, name);
	}
	/* Of another shard, or of nobody. */
	put_file(SINK, "state/04-00000007.db");
	put_file(SINK, "state/03-7.db");
	put_file(SINK, "state/03-00000007.db.bak");
	put_file(SINK, "state/notes");
	boot(SINK);
	EXPECT_UINT(strangers(SINK), 4);
	world_files(world, SINK, see_file, &l);
	EXPECT_UINT(l.n - l.others, 1);
	expect_state(SINK, 120);
	close_node(SINK);
	/* The named one is missing: whatever else is there stays there. */
	nodes[SINK].generation = 5;
	EXPECT_RC(open_node(SINK, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "missing");
	EXPECT_NULL(nodes[SINK].s);
	nodes[SINK].generation = 0;
	EXPECT_RC(open_node(SINK, &why), RC_CORRUPT);
	nodes[SINK].generation = 1;
	boot(SINK);
	expect_state(SINK, 120);
	close_node(SINK);
	/* Without a usable one, only what bears its name. */
	put_file(SINK, "state/03-00000009.db");
	nodes[SINK].absent = true;
	boot(SINK);
	EXPECT_UINT(strangers(SINK), 4);
	EXPECT_UINT(nodes[SINK].state.applied_index, 0);
	EXPECT_NULL(nodes[SINK].state.conf);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_UINT(nodes[SINK].generation, 2);
	EXPECT_RC(switch_to(SINK), RC_OK);
	EXPECT_UINT(strangers(SINK), 4);
	expect_state(SINK, 120);
	free(c.p);
	close_node(2);
	close_node(SINK);
	close_node(SOURCE);
	end_world();
}

TEST(a_dropped_stage_leaves_nothing)
{
	struct copy c;
	struct node *n = &nodes[SINK];
	unsigned when;

	make_copy(&c, 17, 200);
	boot(SINK);
	apply_to(SINK, 20);
	for (when = 0; when < 6; when++) {
		runner_context("case %u", when);
		n->wrote = n->ended = false;
		stage_begin(SINK, &c);
		if (when == 1)
			storage_stage_write(n->s, &n->g, 0, c.p, PIECE);
		if (when == 2)
			EXPECT_RC(stage_write(SINK, 0, c.p, PIECE), RC_OK);
		if (when >= 3) {
			storage_stage_drop(n->s, &n->g);
			EXPECT_RC(stage(SINK, &c), RC_OK);
			n->generation = 0; /* Nobody named it. */
		}
		n->wrote = n->ended = false;
		storage_stage_drop(n->s, &n->g);
		if (when % 2 == 1)
			run_ms(100);
	}
	run_ms(200);
	EXPECT_FALSE(n->wrote);
	EXPECT_FALSE(n->ended);
	EXPECT_UINT(strangers(SINK), 0);
	/* While it is verified. */
	stage_begin(SINK, &c);
	EXPECT_RC(stage_write(SINK, 0, c.p, (uint32_t)c.n), RC_OK);
	storage_stage_end(n->s, &n->g);
	run_ms(1);
	storage_stage_drop(n->s, &n->g);
	run_ms(200);
	EXPECT_FALSE(n->ended);
	EXPECT_UINT(strangers(SINK), 0);
	expect_state(SINK, 20);
	free(c.p);
	close_node(2);
	close_node(SINK);
	close_node(SOURCE);
	end_world();
}

/* What is on its way to the old state, or from it, ends with a switch. */
TEST(a_switch_ends_what_is_under_way)
{
	struct copy c;
	struct load loads[8];
	struct load late;
	struct node *n = &nodes[SINK];
	unsigned i;

	make_copy(&c, 18, 200);
	boot(SINK);
	apply_to(SINK, 60);
	EXPECT_RC(stage(SINK, &c), RC_OK);
	EXPECT_RC(export_begin(SINK), RC_OK);
	apply_to(SINK, 160);
	storage_flush(n->s);
	for (i = 0; i < 8; i++)
		load_begin(SINK, &loads[i], i);
	n->c = (struct storage_scrub){ .done = on_scrub, .arg = n };
	storage_scrub(n->s, &n->c);
	apply_to(SINK, 170);
	ask_hash(SINK);
	n->got = false;
	storage_export_read(n->s, &n->x, 0, PIECE);
	switch_begin(SINK);
	load_begin(SINK, &late, 1);
	EXPECT_RC(apply(n->s, 171), RC_CORRUPT);
	EXPECT_TRUE(await(SINK, &n->ended));
	run_ms(50);
	for (i = 0; i < 8; i++) {
		EXPECT_TRUE(loads[i].done);
		EXPECT_RC(loads[i].rc, RC_CANCELLED);
	}
	EXPECT_TRUE(late.done);
	EXPECT_RC(late.rc, RC_CANCELLED);
	EXPECT_TRUE(n->scrubbed);
	EXPECT_TRUE(n->hashed);
	EXPECT_TRUE(n->got);
	EXPECT_RC(n->got_rc, RC_CANCELLED);
	EXPECT_RC(export_read(SINK, 0, PIECE), RC_CANCELLED);
	storage_export_end(n->s, &n->x);
	expect_switched(SINK, &c);
	expect_state(SINK, 200);
	/* And then one of the new state. */
	EXPECT_RC(export_begin(SINK), RC_OK);
	EXPECT_MEM(n->x.hash, c.what.hash, HASH_BYTES);
	storage_export_end(n->s, &n->x);
	free(c.p);
	close_node(2);
	close_node(SINK);
	close_node(SOURCE);
	end_world();
}

TEST(a_switch_in_the_middle_of_anything)
{
	struct copy c;
	unsigned i;

	make_copy(&c, 19, 200);
	for (i = 0; i < 60; i++) {
		runner_context("round %u", i);
		nodes[SINK].generation = 0;
		nodes[SINK].absent = false;
		world_wipe(world, SINK);
		boot(SINK);
		apply_to(SINK, 60);
		EXPECT_RC(stage(SINK, &c), RC_OK);
		apply_to(SINK, 100);
		if (i % 3 == 0)
			storage_flush(nodes[SINK].s);
		if (i % 3 == 1)
			storage_checkpoint(nodes[SINK].s);
		if (i % 4 == 0)
			ask_hash(SINK);
		apply_to(SINK, 130);
		if (i % 3 == 2) {
			nodes[SINK].x =
				(struct storage_export){ .ready = on_ready,
							 .data = on_data,
							 .arg = &nodes[SINK] };
			nodes[SINK].got = false;
			storage_export_begin(nodes[SINK].s, &nodes[SINK].x);
		}
		world_run_until(world, world_now_ms(world) + i / 6);
		EXPECT_RC(switch_to(SINK), RC_OK);
		expect_switched(SINK, &c);
		run_ms(30);
		if (i % 3 == 2) {
			EXPECT_TRUE(nodes[SINK].got);
			storage_export_end(nodes[SINK].s, &nodes[SINK].x);
		}
		expect_state(SINK, 200);
		apply_to(SINK, 210);
		close_node(SINK);
		EXPECT_UINT(nodes[SINK].checkpointed, 210);
		world_kill(world, SINK);
	}
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

TEST(close_and_discard_at_any_time)
{
	struct copy c;
	struct node *n = &nodes[SINK];
	uint64_t was;
	unsigned i;
	unsigned steps;

	make_copy(&c, 20, 200);
	for (i = 0; i < 80; i++) {
		runner_context("round %u", i);
		n->generation = 0;
		n->absent = i % 5 == 0;
		world_kill(world, SINK);
		world_wipe(world, SINK);
		boot(SINK);
		if (!n->absent) {
			apply_to(SINK, 60);
			n->x = (struct storage_export){ .ready = on_ready,
							.data = on_data,
							.arg = n };
			storage_export_begin(n->s, &n->x);
		}
		stage_begin(SINK, &c);
		n->wrote = false;
		storage_stage_write(n->s, &n->g, 0, c.p, (uint32_t)c.n);
		if (i % 2 == 0)
			storage_stage_end(n->s, &n->g);
		for (steps = i / 2; steps > 0; steps--)
			(void)world_step(world);
		was = n->generation;
		if (i % 4 < 2) {
			storage_close(n->s, on_closed, &n->closed);
			n->got = n->wrote = n->ended = false;
			EXPECT_TRUE(await(SINK, &n->closed));
			EXPECT_FALSE(n->got || n->wrote || n->ended);
		} else {
			storage_discard(n->s);
			world_kill(world, SINK);
		}
		EXPECT_UINT(n->generation, was);
		boot(SINK);
		EXPECT_UINT(strangers(SINK), 0);
		if (!n->absent && was == 0 && i % 4 < 2)
			expect_state(SINK, 60);
		else if (was > 0)
			expect_state(SINK, 200);
		close_node(SINK);
	}
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

/* Nobody is left to be told, but the ballot names it: it is the state. */
TEST(close_in_the_middle_of_a_switch)
{
	struct copy c;
	struct node *n = &nodes[SINK];
	unsigned i;

	make_copy(&c, 24, 200);
	for (i = 0; i < 24; i++) {
		runner_context("round %u", i);
		n->generation = 0;
		n->absent = i % 2 == 1;
		world_kill(world, SINK);
		world_wipe(world, SINK);
		boot(SINK);
		if (!n->absent)
			apply_to(SINK, 30);
		EXPECT_RC(stage(SINK, &c), RC_OK);
		if (i % 4 == 0) {
			apply_to(SINK, 60);
			storage_flush(n->s);
		}
		if (i % 3 > 0)
			switch_begin(SINK);
		if (i % 3 > 1)
			(void)world_step(world);
		n->ended = false;
		storage_close(n->s, on_closed, &n->closed);
		EXPECT_TRUE(await(SINK, &n->closed));
		EXPECT_FALSE(n->ended);
		boot(SINK);
		EXPECT_UINT(strangers(SINK), 0);
		expect_state(SINK, 200);
		close_node(SINK);
	}
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

/* ---------------------------------------------------------- failing disks */

enum end { END_POWER_CUT, END_KILL };

/*
 * The n-th operation of a stage and a switch ends the node, or fails: old or
 * new state afterwards, whichever the ballot names, and no file of the other.
 */
static bool fail_at(const struct copy *c, const struct world_fault *f,
		    enum end end, bool absent, unsigned *installed)
{
	struct node *n = &nodes[SINK];
	uint64_t fired = world_faults_fired(world, SINK);
	bool was_alive;
	enum rc rc;

	n->generation = 0;
	n->absent = absent;
	world_kill(world, SINK);
	world_wipe(world, SINK);
	if (absent)
		n->absent = false;
	boot(SINK);
	apply_to(SINK, 90);
	close_node(SINK);
	n->absent = absent;
	boot(SINK);
	if (!absent)
		EXPECT_UINT(n->state.applied_index, 90);
	world_fault(world, SINK, f);
	rc = stage(SINK, c);
	if (rc == RC_OK)
		rc = switch_to(SINK);
	was_alive = world_alive(world, SINK);
	world_faults_clear(world, SINK);
	fired = world_faults_fired(world, SINK) - fired;
	if (was_alive && rc == RC_OK) {
		expect_state(SINK, 200);
	} else if (was_alive) {
		/* Only the full disk leaves it alive. */
		EXPECT_RC(rc, RC_NO_SPACE);
		EXPECT_UINT(strangers(SINK), 0);
		if (!absent)
			expect_state(SINK, 90);
		else
			EXPECT_RC(load(SINK, 1), RC_CORRUPT);
	}
	storage_discard(n->s);
	if (end == END_POWER_CUT)
		world_power_cut(world, SINK);
	else
		world_kill(world, SINK);
	boot(SINK);
	EXPECT_UINT(strangers(SINK), 0);
	if (n->generation > 0) {
		expect_state(SINK, 200);
		*installed += 1;
	} else if (!n->absent) {
		expect_state(SINK, 90);
	} else {
		EXPECT_RC(load(SINK, 1), RC_CORRUPT);
	}
	/* It goes on from there, and then it works. */
	if (n->generation == 0) {
		EXPECT_RC(stage(SINK, c), RC_OK);
		EXPECT_RC(switch_to(SINK), RC_OK);
		expect_state(SINK, 200);
	}
	close_node(SINK);
	return fired > 0;
}

static void fail_everywhere(enum world_fault_kind kind, enum world_op op,
			    enum end end)
{
	struct copy c;
	struct world_fault f = { .kind = kind, .op = op };
	unsigned installed = 0;
	bool fired = true;

	make_copy(&c, 21, 200);
	for (f.nth = 1; fired; f.nth++) {
		runner_context("operation %d", (int)f.nth);
		fired = fail_at(&c, &f, end, f.nth % 3 == 0, &installed);
	}
	EXPECT_TRUE(f.nth > 8);
	EXPECT_TRUE(installed > 0);
	EXPECT_TRUE(installed < f.nth);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

/* Named, and then the power fails: it is there by its name. */
TEST(du7_a_named_copy_survives_a_power_cut)
{
	struct node *n = &nodes[SINK];
	struct copy c;
	unsigned i;

	make_copy(&c, 24, 200);
	for (i = 0; i < 12; i++) {
		runner_context("round %u", i);
		n->generation = 0;
		n->absent = true;
		world_kill(world, SINK);
		world_wipe(world, SINK);
		boot(SINK);
		EXPECT_RC(stage(SINK, &c), RC_OK);
		EXPECT_TRUE(n->generation > 0);
		storage_discard(n->s);
		world_power_cut(world, SINK);
		n->absent = false;
		boot(SINK);
		expect_state(SINK, 200);
		close_node(SINK);
	}
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

TEST(power_cut_before_each_change)
{
	fail_everywhere(WORLD_CRASH_BEFORE, WORLD_CHANGE, END_POWER_CUT);
}

TEST(power_cut_after_each_change)
{
	fail_everywhere(WORLD_CRASH_AFTER, WORLD_CHANGE, END_POWER_CUT);
}

TEST(kill_before_each_change)
{
	fail_everywhere(WORLD_CRASH_BEFORE, WORLD_CHANGE, END_KILL);
}

TEST(each_change_fails_then_power_cut)
{
	fail_everywhere(WORLD_EIO, WORLD_CHANGE, END_POWER_CUT);
}

TEST(each_sync_fails_then_kill)
{
	fail_everywhere(WORLD_EIO, WORLD_SYNC, END_KILL);
}

TEST(no_space_at_each_change)
{
	fail_everywhere(WORLD_NO_SPACE, WORLD_CHANGE, END_POWER_CUT);
}

/* What is written does not arrive: found before it is the state. */
TEST(lost_and_misdirected_writes_of_a_stage)
{
	struct copy c;
	struct world_fault f = { .op = WORLD_WRITE };
	unsigned refused = 0;
	unsigned kind;
	enum rc rc;

	make_copy(&c, 22, 200);
	for (kind = 0; kind < 2; kind++)
		for (f.nth = 1; f.nth < 9; f.nth++) {
			runner_context("kind %u, write %d", kind, (int)f.nth);
			f.kind = kind == 0 ? WORLD_LOST : WORLD_MISDIRECTED;
			nodes[SINK].generation = 0;
			nodes[SINK].absent = true;
			world_kill(world, SINK);
			world_wipe(world, SINK);
			boot(SINK);
			world_fault(world, SINK, &f);
			rc = stage(SINK, &c);
			world_faults_clear(world, SINK);
			EXPECT_TRUE(world_alive(world, SINK));
			if (rc == RC_OK) {
				EXPECT_RC(switch_to(SINK), RC_OK);
				expect_state(SINK, 200);
			} else {
				EXPECT_RC(rc, RC_CORRUPT);
				refused++;
			}
			storage_discard(nodes[SINK].s);
		}
	EXPECT_TRUE(refused > 2);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}

/* Reads that fail, while a copy is made: the state is bad, or it is not. */
TEST(each_read_of_an_export_fails)
{
	struct copy c;
	struct world_fault f = { .kind = WORLD_EIO, .op = WORLD_READ };
	unsigned bad = 0;
	bool fired = true;
	enum rc rc;

	for (f.nth = 1; fired; f.nth += 3) {
		runner_context("read %d", (int)f.nth);
		new_world(f.nth);
		boot(SOURCE);
		apply_to(SOURCE, 200);
		close_node(SOURCE);
		boot(SOURCE);
		world_fault(world, SOURCE, &f);
		c = (struct copy){ 0 };
		rc = export_begin(SOURCE);
		c.what = nodes[SOURCE].x;
		while (rc == RC_OK && c.n < c.what.bytes) {
			rc = export_read(SOURCE, c.n, PIECE);
			c.n += nodes[SOURCE].piece_n;
		}
		fired = world_faults_fired(world, SOURCE) > 0;
		EXPECT_RC(rc, fired ? RC_CORRUPT : RC_OK);
		EXPECT_UINT(nodes[SOURCE].bad, fired);
		EXPECT_TRUE(world_alive(world, SOURCE));
		bad += fired;
		close_node(SOURCE);
	}
	EXPECT_TRUE(bad > 5);
	end_world();
}

/* ----------------------------------------------------------------- memory */

/* The n-th allocation fails: told, and it can be asked again; or a clean end.
 */
TEST(every_allocation_of_a_copy_fails)
{
	struct copy c;
	struct copy again;
	uint64_t n;
	unsigned told = 0;
	bool fired = true;
	enum rc rc;

	make_copy(&c, 23, 120);
	for (n = 1; fired; n++) {
		runner_context("allocation %d", (int)n);
		nodes[SINK].generation = 0;
		nodes[SINK].absent = true;
		world_kill(world, SINK);
		world_wipe(world, SINK);
		boot(SINK);
		memset(&again, 0, sizeof(again));
		fault_alloc(n);
		rc = stage(SINK, &c);
		if (rc == RC_OK)
			rc = switch_to(SINK);
		if (rc == RC_OK)
			rc = export_begin(SINK);
		if (rc == RC_OK)
			rc = export_read(SINK, 0, PIECE);
		if (rc == RC_OK)
			rc = scrub(SINK, 1);
		if (rc == RC_OK)
			rc = hash_of(SINK, again.conf);
		fired = fault_off();
		EXPECT_TRUE(world_alive(world, SINK));
		if (rc != RC_OK) {
			EXPECT_TRUE(fired);
			EXPECT_RC(rc, RC_NOMEM);
			told++;
		}
		if (nodes[SINK].generation == 0) {
			EXPECT_UINT(strangers(SINK), 0);
			EXPECT_RC(stage(SINK, &c), RC_OK);
			EXPECT_RC(switch_to(SINK), RC_OK);
		}
		expect_state(SINK, 120);
		close_node(SINK);
	}
	EXPECT_TRUE(told > 10);
	free(c.p);
	close_node(2);
	close_node(SOURCE);
	end_world();
}
