#include "raft-glue/members.h"

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "raft-glue/pair.h"
#include "raft-glue/transport.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

static struct world *w;
static struct disk *disk;
static struct env *env;
static struct detail why;
static struct identity self;
static struct members *m;
static struct member list[3];

static void begin(uint64_t seed)
{
	unsigned i;

	w = world_new(seed);
	disk = world_disk(w, 0);
	env = world_env(w, 0);
	why = (struct detail){ .text = "" };
	memset(list, 0, sizeof(list));
	for (i = 0; i < 3; i++) {
		list[i].id = (i + 1) * 2;
		memset(list[i].incarnation, (int)(0x10 + i), ID_BYTES);
		(void)snprintf(list[i].name, sizeof(list[i].name), "n%u", i);
	}
	self = (struct identity){ .node_id = 4, .boot = 7 };
	memset(self.cluster_id, 0xc1, ID_BYTES);
	memcpy(self.incarnation, list[1].incarnation, ID_BYTES);
	memset(self.nonce, 0x77, ID_BYTES);
}

static void format(void)
{
	EXPECT_RC(members_format(disk, list, 3, &why), RC_OK);
}

static void open_it(void)
{
	EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_OK);
}

static void opened(uint64_t seed)
{
	begin(seed);
	format();
	open_it();
}

static bool flag;

static void set_flag(void *arg)
{
	bool *f = arg;

	*f = true;
}

/* As a process that ends in good order; the disk stays. */
static void close_it(void)
{
	flag = false;
	members_close(m, set_flag, &flag);
	EXPECT_FALSE(flag);
	EXPECT_TRUE(world_run_flag(w, &flag, 10000));
	world_kill(w, 0);
}

static void end(void)
{
	world_free(w);
}

/* What the member says, at that boot. */
static struct greeting greeting(uint64_t id, uint64_t boot)
{
	struct greeting g = { .protocol = TRANSPORT_PROTOCOL,
			      .node_id = id,
			      .boot = boot };

	memset(g.cluster_id, 0xc1, ID_BYTES);
	memset(g.incarnation, (int)(0x10 + id / 2 - 1), ID_BYTES);
	memset(g.nonce, (int)(boot * 16 + id), ID_BYTES);
	return g;
}

struct noted {
	unsigned n;
	bool any;
	uint64_t node_id;
};

static void noted(void *arg, uint64_t node_id)
{
	struct noted *n = arg;

	n->n++;
	n->any = true;
	n->node_id = node_id;
}

static void note(uint64_t id, uint64_t boot)
{
	struct greeting g = greeting(id, boot);
	struct noted n = { .n = 0 };

	EXPECT_RC(members_check(m, id, &g, &why), RC_OK);
	members_note(m, &g, noted, &n);
	EXPECT_UINT(n.n, 0);
	EXPECT_TRUE(world_run_flag(w, &n.any, 10000));
	EXPECT_UINT(n.n, 1);
	EXPECT_UINT(n.node_id, id);
	EXPECT_TRUE(members_current(m, &g));
}

/* ---- the file ---- */

TEST(members_are_what_was_formatted)
{
	struct greeting g;
	size_t i;

	opened(1);
	EXPECT_UINT(members_count(m), 3);
	for (i = 0; i < 3; i++) {
		EXPECT_UINT(members_at(m, i)->id, list[i].id);
		EXPECT_STR(members_at(m, i)->name, list[i].name);
		EXPECT_MEM(members_at(m, i)->incarnation, list[i].incarnation,
			   ID_BYTES);
		EXPECT_UINT(members_at(m, i)->boot, i == 1 ? 7 : 0);
	}
	EXPECT_UINT(members_self(m), 4);
	EXPECT_TRUE(members_find(m, 6) == members_at(m, 2));
	EXPECT_NULL(members_find(m, 3));
	EXPECT_TRUE(members_named(m, "n1") == members_at(m, 1));
	EXPECT_NULL(members_named(m, "n"));
	members_greeting(m, &g);
	EXPECT_UINT(g.protocol, TRANSPORT_PROTOCOL);
	EXPECT_UINT(g.node_id, 4);
	EXPECT_UINT(g.boot, 7);
	EXPECT_MEM(g.nonce, self.nonce, ID_BYTES);
	EXPECT_MEM(g.incarnation, self.incarnation, ID_BYTES);
	EXPECT_MEM(g.cluster_id, self.cluster_id, ID_BYTES);
	close_it();
	end();
}

/* For tools, beside a node that has it open. */
TEST(reading_changes_nothing)
{
	struct member got[MEMBERS_MAX];
	size_t n = 0;

	begin(60);
	EXPECT_RC(members_read(disk, got, &n, &why), RC_NOT_FOUND);
	format();
	open_it();
	EXPECT_RC(members_read(disk, got, &n, &why), RC_OK);
	EXPECT_UINT(n, 3);
	/* What it was opened with is in it by now. */
	list[1].boot = self.boot;
	memcpy(list[1].nonce, self.nonce, ID_BYTES);
	EXPECT_MEM(got, list, sizeof(list));
	close_it();
	end();
}

TEST(no_file_is_told)
{
	begin(2);
	EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, "members");
	end();
}

TEST(the_file_of_another_node_is_foreign)
{
	begin(3);
	format();
	self.node_id = 5;
	EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_FOREIGN);
	EXPECT_HAS(why.text, "not among the members");
	self.node_id = 4;
	self.incarnation[3] ^= 1;
	why.text[0] = '\0';
	EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_FOREIGN);
	EXPECT_HAS(why.text, "another data directory");
	end();
}

TEST(every_flipped_bit_changes_nothing)
{
	uint64_t byte;
	size_t i;

	opened(4);
	note(2, 3);
	close_it();
	for (byte = 0; byte < 2 * PAIR_BLOCK; byte += 3) {
		runner_context("byte %llu", (unsigned long long)byte);
		EXPECT_RC(world_flip(w, 0, "members", byte, byte % 8), RC_OK);
		open_it();
		for (i = 0; i < 3; i++) {
			EXPECT_UINT(members_at(m, i)->id, list[i].id);
			EXPECT_STR(members_at(m, i)->name, list[i].name);
		}
		EXPECT_UINT(members_at(m, 0)->boot, 3);
		members_discard(m);
		world_kill(w, 0);
	}
	end();
}

TEST(both_copies_bad_is_corrupt)
{
	unsigned sector;

	for (sector = 0; sector < 4; sector++) {
		begin(5);
		format();
		EXPECT_RC(world_flip(w, 0, "members", sector * 512 + 40, 1),
			  RC_OK);
		EXPECT_RC(world_flip(w, 0, "members", PAIR_BLOCK + 16, 1),
			  RC_OK);
		EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_CORRUPT);
		EXPECT_HAS(why.text, "damaged");
		end();
	}
}

/* Patches both copies, and seals them. */
static void patch(unsigned sector, unsigned at, uint8_t byte)
{
	struct disk_file *f;
	uint8_t *p;
	size_t n;
	unsigned i;

	p = world_file(w, 0, "members", false, &n);
	EXPECT_UINT(n, 2 * PAIR_BLOCK);
	for (i = 0; i < 2; i++) {
		p[i * PAIR_BLOCK + sector * PAIR_SECTOR + at] = byte;
		pair_seal(p + i * PAIR_BLOCK + sector * PAIR_SECTOR);
	}
	EXPECT_RC(disk_open(disk, "members", 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, p, n, 0), RC_OK);
	disk_close(f);
	free(p);
}

TEST(newer_version_is_refused)
{
	begin(6);
	format();
	patch(0, 8, 2);
	EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_VERSION);
	EXPECT_HAS(why.text, "newer version");
	end();
}

TEST(values_out_of_bounds_are_corrupt)
{
	static const struct {
		unsigned sector;
		unsigned at;
		uint8_t byte;
	} bad[] = {
		{ 0, 0, 'X' },   { 0, 12, 0 },  { 0, 12, MEMBERS_MAX + 1 },
		{ 0, 12, 4 },    { 0, 16, 0 },  { 0, 16, 9 },
		{ 1, 12, 2 },    { 1, 16, 9 },  { 1, 24, 0 },
		{ 2, 24, 2 },    { 2, 24, 1 },  { 1, 72, 0 },
		{ 1, 135, 'x' }, { 3, 0, 'X' },
	};
	unsigned i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		runner_context("patch %u", i);
		begin(7);
		format();
		patch(bad[i].sector, bad[i].at, bad[i].byte);
		EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_CORRUPT);
		end();
	}
}

TEST(a_bad_copy_is_mended_at_open)
{
	begin(8);
	format();
	EXPECT_RC(world_flip(w, 0, "members", 30, 1), RC_OK);
	open_it();
	members_discard(m);
	world_kill(w, 0);
	EXPECT_RC(world_flip(w, 0, "members", PAIR_BLOCK + 30, 1), RC_OK);
	open_it();
	members_discard(m);
	end();
}

/* The start writes both again: when the first is touched, and damaged, the
 * second is already what it was. */
TEST(a_start_overwrites_the_older_copy_first)
{
	const struct world_fault f = { .kind = WORLD_CRASH_BEFORE,
				       .op = WORLD_CHANGE,
				       .nth = 3 };
	struct greeting g = greeting(2, 6);
	struct noted n = { .n = 0 };

	/* A note that has reached one of the two. */
	opened(19);
	world_fault(w, 0, &f);
	members_note(m, &g, noted, &n);
	EXPECT_FALSE(world_run_flag(w, &n.any, 1000));
	members_discard(m);
	world_power_cut(w, 0);
	world_faults_clear(w, 0);
	world_fault(w, 0, &f);
	EXPECT_TRUE(members_open(env, disk, &self, &m, &why) != RC_OK);
	world_kill(w, 0);
	world_power_cut(w, 0);
	world_faults_clear(w, 0);
	EXPECT_RC(world_flip(w, 0, "members", 30, 1), RC_OK);
	open_it();
	EXPECT_UINT(members_find(m, 2)->boot, 6);
	members_discard(m);
	end();
}

TEST(failed_writes_are_told)
{
	unsigned nth;

	for (nth = 1; nth <= 6; nth++) {
		struct world_fault f = { .kind = WORLD_EIO,
					 .op = WORLD_CHANGE,
					 .nth = nth };

		runner_context("change %u of format", nth);
		begin(9);
		world_fault(w, 0, &f);
		EXPECT_RC(members_format(disk, list, 3, &why), RC_IO);
		end();
		if (nth > 4)
			continue;
		runner_context("change %u of open", nth);
		begin(9);
		format();
		world_fault(w, 0, &f);
		EXPECT_RC(members_open(env, disk, &self, &m, &why), RC_IO);
		EXPECT_HAS(why.text, "members");
		world_kill(w, 0);
		open_it();
		members_discard(m);
		end();
	}
}

TEST(no_memory_is_told)
{
	unsigned n;
	enum rc rc;

	begin(10);
	format();
	for (n = 1;; n++) {
		fault_alloc(n);
		rc = members_open(env, disk, &self, &m, &why);
		if (!fault_off())
			break;
		EXPECT_RC(rc, RC_NOMEM);
	}
	EXPECT_RC(rc, RC_OK);
	EXPECT_TRUE(n > 1);
	members_discard(m);
	end();
}

/* ---- who is believed ---- */

static void expect_refused(uint64_t proved, const struct greeting *g,
			   enum rc rc, const char *text)
{
	struct detail said = { .text = "" };

	EXPECT_RC(members_check(m, proved, g, &said), rc);
	EXPECT_HAS(said.text, text);
	EXPECT_RC(members_check(m, proved, g, NULL), rc);
}

TEST(what_is_no_peer_is_refused)
{
	struct greeting g;

	opened(11);
	g = greeting(2, 1);
	EXPECT_RC(members_check(m, 2, &g, &why), RC_OK);
	g.protocol++;
	expect_refused(2, &g, RC_VERSION, "same release");
	g = greeting(2, 1);
	g.cluster_id[15]++;
	expect_refused(2, &g, RC_FOREIGN, "`holdfast init`");
	/* Not who the certificate says. */
	g = greeting(2, 1);
	expect_refused(6, &g, RC_FOREIGN, "`tls.cert`");
	g = greeting(6, 1);
	expect_refused(2, &g, RC_FOREIGN, "certificate");
	/* Ourselves. */
	g = greeting(4, 7);
	memcpy(g.nonce, self.nonce, ID_BYTES);
	expect_refused(4, &g, RC_FOREIGN, "`holdfast node reset`");
	g = greeting(8, 1);
	expect_refused(8, &g, RC_FOREIGN, "no member");
	members_discard(m);
	end();
}

/* An empty directory under an old id. */
static enum rc another_disk(void)
{
	struct greeting g;

	opened(12);
	note(2, 5);
	g = greeting(2, 1);
	g.boot = 6;
	g.incarnation[0]++;
	return members_check(m, 2, &g, &why);
}

TEST(another_disk_is_refused)
{
	EXPECT_RC(another_disk(), RC_FOREIGN);
	EXPECT_HAS(why.text, "node 2 (n0) came back with another disk");
	EXPECT_HAS(why.text, "`holdfast node reset`");
	members_discard(m);
	end();
}

TEST(mutant_incarnation_unchecked_dies)
{
	enum rc rc;

	mutant_now = MUTANT_incarnation_unchecked;
	rc = another_disk();
	mutant_now = MUTANT_none;
	EXPECT_RC(rc, RC_OK); /* As it must not be. */
	members_discard(m);
	end();
}

static enum rc older_disk(uint64_t boot, uint8_t nonce)
{
	struct greeting g;

	opened(13);
	note(2, 5);
	g = greeting(2, boot);
	g.nonce[0] ^= nonce;
	return members_check(m, 2, &g, &why);
}

TEST(an_older_disk_is_refused)
{
	uint64_t boot;

	for (boot = 0; boot < 5; boot++) {
		EXPECT_RC(older_disk(boot, 0), RC_FOREIGN);
		EXPECT_HAS(why.text, "node 2 (n0)");
		EXPECT_HAS(why.text, "older data directory");
		EXPECT_HAS(why.text, "`holdfast node reset`");
		members_discard(m);
		end();
	}
	EXPECT_RC(older_disk(5, 0), RC_OK);
	members_discard(m);
	end();
	EXPECT_RC(older_disk(6, 0), RC_OK);
	members_discard(m);
	end();
}

TEST(a_copied_disk_is_refused)
{
	EXPECT_RC(older_disk(5, 1), RC_FOREIGN);
	EXPECT_HAS(why.text, "copied data directory");
	EXPECT_HAS(why.text, "`holdfast node reset`");
	members_discard(m);
	end();
}

TEST(mutant_boot_unchecked_dies)
{
	enum rc lower;
	enum rc copied;

	mutant_now = MUTANT_boot_unchecked;
	lower = older_disk(4, 0);
	members_discard(m);
	end();
	copied = older_disk(5, 1);
	mutant_now = MUTANT_none;
	EXPECT_RC(lower, RC_OK);
	EXPECT_RC(copied, RC_OK);
	members_discard(m);
	end();
}

/* Also when it never greeted. */
TEST(boot_zero_is_refused)
{
	struct greeting g;

	opened(14);
	g = greeting(2, 0);
	EXPECT_RC(members_check(m, 2, &g, &why), RC_FOREIGN);
	members_discard(m);
	end();
}

/* ---- changes ---- */

TEST(a_note_survives)
{
	struct greeting g;

	opened(15);
	note(2, 5);
	note(6, 1);
	note(2, 8);
	g = greeting(2, 5);
	EXPECT_FALSE(members_current(m, &g));
	members_discard(m);
	world_power_cut(w, 0);
	self.boot++;
	open_it();
	EXPECT_UINT(members_find(m, 2)->boot, 8);
	EXPECT_UINT(members_find(m, 6)->boot, 1);
	EXPECT_UINT(members_find(m, 4)->boot, 8);
	EXPECT_RC(members_check(m, 2, &g, &why), RC_FOREIGN);
	members_discard(m);
	end();
}

TEST(no_news_is_told_without_a_write)
{
	uint64_t writes;

	opened(16);
	note(2, 5);
	writes = world_count(w, 0, WORLD_WRITE);
	note(2, 5);
	EXPECT_UINT(world_count(w, 0, WORLD_WRITE), writes);
	close_it();
	/* Nor after a start. */
	open_it();
	writes = world_count(w, 0, WORLD_WRITE);
	note(2, 5);
	EXPECT_UINT(world_count(w, 0, WORLD_WRITE), writes);
	close_it();
	end();
}

struct order {
	struct noted a;
	struct noted b;
	struct noted c;
	struct noted d;
};

/* What was begun before is not enough for what came later. */
TEST(several_notes_at_once)
{
	struct greeting g2 = greeting(2, 5);
	struct greeting g6 = greeting(6, 9);
	struct greeting h2 = greeting(2, 6);
	struct order o = { .a = { .n = 0 } };
	uint8_t *p;
	size_t n;

	opened(17);
	members_note(m, &g2, noted, &o.a);
	members_note(m, &g2, noted, &o.b);
	members_note(m, &g6, noted, &o.c);
	members_note(m, &h2, noted, &o.d);
	EXPECT_TRUE(world_run_flag(w, &o.a.any, 10000));
	EXPECT_UINT(o.a.n, 1);
	EXPECT_UINT(o.b.n, 0 + o.b.any);
	EXPECT_TRUE(world_run_flag(w, &o.d.any, 10000));
	EXPECT_UINT(o.a.n, 1);
	EXPECT_UINT(o.b.n, 1);
	EXPECT_UINT(o.c.n, 1);
	EXPECT_UINT(o.d.n, 1);
	p = world_file(w, 0, "members", true, &n);
	EXPECT_UINT(n, 2 * PAIR_BLOCK);
	EXPECT_UINT(p[PAIR_SECTOR + 48], 6);
	EXPECT_UINT(p[3 * PAIR_SECTOR + 48], 9);
	free(p);
	close_it();
	end();
}

/* At every operation of a note: it is not told, or it is there. */
TEST(crash_in_a_note)
{
	struct world_fault f = { .kind = WORLD_CRASH_AFTER,
				 .op = WORLD_CHANGE };
	struct greeting g;
	struct noted n;
	unsigned there = 0;
	uint64_t seed;

	for (seed = 0; seed < 100; seed++) {
		runner_context("seed %llu", (unsigned long long)seed);
		opened(seed);
		note(2, 5);
		f.nth = seed % 5 + 1;
		world_fault(w, 0, &f);
		g = greeting(2, 6);
		n = (struct noted){ .n = 0 };
		members_note(m, &g, noted, &n);
		(void)world_run_flag(w, &n.any, 1000);
		members_discard(m);
		world_power_cut(w, 0);
		world_faults_clear(w, 0);
		open_it();
		EXPECT_TRUE(members_find(m, 2)->boot == 5 ||
			    members_find(m, 2)->boot == 6);
		if (n.any)
			EXPECT_UINT(members_find(m, 2)->boot, 6);
		there += members_find(m, 2)->boot == 6;
		members_discard(m);
		end();
	}
	EXPECT_TRUE(there > 20);
	EXPECT_TRUE(there < 100);
}

/* What was read at a start may never have been synced: it is, before it counts
 * as noted. */
TEST(what_was_read_is_synced_before_it_counts)
{
	struct world_fault f = { .kind = WORLD_CRASH_BEFORE,
				 .op = WORLD_SYNC,
				 .nth = 1 };
	struct greeting g = greeting(2, 6);
	struct noted n = { .n = 0 };

	opened(18);
	note(2, 5);
	world_fault(w, 0, &f);
	members_note(m, &g, noted, &n);
	EXPECT_FALSE(world_run_flag(w, &n.any, 1000));
	members_discard(m);
	world_kill(w, 0);
	open_it();
	if (members_find(m, 2)->boot == 6) {
		members_note(m, &g, noted, &n);
		EXPECT_TRUE(world_run_flag(w, &n.any, 1000));
		members_discard(m);
		world_power_cut(w, 0);
		open_it();
		EXPECT_UINT(members_find(m, 2)->boot, 6);
	}
	members_discard(m);
	end();
}

TEST(a_failed_write_is_fail_stop)
{
	unsigned nth;

	for (nth = 1; nth <= 4; nth++) {
		struct world_fault f = { .kind = WORLD_EIO,
					 .op = WORLD_CHANGE,
					 .nth = nth };
		struct greeting g = greeting(2, 5);
		struct noted n = { .n = 0 };

		opened(19);
		world_fault(w, 0, &f);
		members_note(m, &g, noted, &n);
		EXPECT_FALSE(world_run_flag(w, &n.any, 1000));
		EXPECT_NOT_NULL(world_stopped(w, 0));
		EXPECT_HAS(world_stopped(w, 0), "members");
		members_discard(m);
		end();
	}
}

TEST(closing_waits_for_what_is_written)
{
	struct greeting g = greeting(2, 5);
	struct greeting h = greeting(6, 5);
	struct noted n = { .n = 0 };

	opened(20);
	members_note(m, &g, noted, &n);
	members_note(m, &h, NULL, NULL);
	close_it();
	EXPECT_UINT(n.n, 1);
	open_it();
	EXPECT_UINT(members_find(m, 2)->boot, 5);
	EXPECT_UINT(members_find(m, 6)->boot, 5);
	close_it();
	end();
}

TEST(nothing_is_noted_once_it_closes)
{
	struct greeting g = greeting(2, 5);
	struct noted n = { .n = 0 };

	opened(21);
	flag = false;
	members_close(m, set_flag, &flag);
	members_note(m, &g, noted, &n);
	members_readmit(m, 2, g.nonce, noted, &n);
	EXPECT_TRUE(world_run_flag(w, &flag, 10000));
	world_kill(w, 0);
	EXPECT_UINT(n.n, 0);
	open_it();
	EXPECT_UINT(members_find(m, 2)->boot, 0);
	close_it();
	end();
}

TEST(readmitted_with_an_empty_disk)
{
	uint8_t fresh[ID_BYTES] = { 0xaa };
	struct greeting old = greeting(2, 5);
	struct greeting g = greeting(2, 1);
	struct noted n = { .n = 0 };

	opened(21);
	note(2, 5);
	memcpy(g.incarnation, fresh, ID_BYTES);
	EXPECT_RC(members_check(m, 2, &g, NULL), RC_FOREIGN);
	members_readmit(m, 2, fresh, noted, &n);
	EXPECT_UINT(n.n, 0);
	EXPECT_TRUE(world_run_flag(w, &n.any, 1000));
	EXPECT_RC(members_check(m, 2, &g, &why), RC_OK);
	EXPECT_RC(members_check(m, 2, &old, &why), RC_FOREIGN);
	EXPECT_FALSE(members_current(m, &old));
	/* Again is no news. */
	n = (struct noted){ .n = 0 };
	members_readmit(m, 2, fresh, noted, &n);
	members_readmit(m, 2, fresh, NULL, NULL);
	EXPECT_TRUE(world_run_flag(w, &n.any, 1000));
	members_discard(m);
	world_power_cut(w, 0);
	open_it();
	EXPECT_RC(members_check(m, 2, &g, &why), RC_OK);
	EXPECT_UINT(members_find(m, 2)->boot, 0);
	members_discard(m);
	end();
}

TEST(a_stranger_is_not_current)
{
	struct greeting g = greeting(8, 1);

	opened(22);
	EXPECT_FALSE(members_current(m, &g));
	EXPECT_ABORT(members_note(m, &g, noted, NULL));
	members_discard(m);
	end();
}
