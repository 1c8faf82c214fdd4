#include "raft-glue/snapshot.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "raft-glue/le.h"
#include "tests/lib/fake_transport.h"
#include "tests/lib/fault.h"
#include "tests/lib/hand.h"
#include "tests/lib/runner.h"

/*
 * Two ends of a stream, 1 sends to 2. Their apps answer when the test says so.
 */

#define ALL        80u /* Rounds that end everything. */
#define FILE_BYTES (9u * SNAPSHOT_PIECE_BYTES + 1000u)

struct end {
	struct hand hand;
	struct snapshots *n;
	struct app app;
	struct snapshots_owner owner;
	char trace[2048];
	/* Export. */
	bool export_asked;
	bool read_asked;
	uint64_t read_at;
	uint32_t read_n;
	/* Stage. */
	bool write_asked;
	bool end_asked;
	uint8_t *file;
	uint64_t file_n;
	/* Owner. */
	bool accepts;
	bool tells;
	struct snapshot_from from;
	struct snapshot what;
	uint8_t conf[16];
	bool staged;
	unsigned sent_ok;
	unsigned sent_bad;
};

static struct end ends[3];
static uint8_t file[FILE_BYTES];

static void say(struct end *e, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static void say(struct end *e, const char *format, ...)
{
	size_t at = strlen(e->trace);
	va_list ap;

	va_start(ap, format);
	(void)vsnprintf(e->trace + at, sizeof(e->trace) - at, format, ap);
	va_end(ap);
}

static struct end *app_of(struct app *a)
{
	return CONTAINER_OF(a, struct end, app);
}

static void export_begin(struct app *a)
{
	say(app_of(a), "export; ");
	app_of(a)->export_asked = true;
}

static void export_read(struct app *a, uint64_t offset, uint32_t bytes)
{
	struct end *e = app_of(a);

	EXPECT_FALSE(e->read_asked);
	EXPECT_UINT(offset % STATE_PAGE_BYTES, 0);
	EXPECT_TRUE(bytes <= SNAPSHOT_PIECE_BYTES);
	e->read_asked = true;
	e->read_at = offset;
	e->read_n = bytes;
}

static void export_end(struct app *a)
{
	say(app_of(a), "end export; ");
	app_of(a)->read_asked = false;
}

static void stage_begin(struct app *a, const struct snapshot *s)
{
	struct end *e = app_of(a);

	say(e, "stage %u; ", (unsigned)s->bytes);
	e->file = calloc(1, s->bytes);
	e->file_n = 0;
}

static void stage_write(struct app *a, uint64_t offset, const void *p,
			uint32_t n)
{
	struct end *e = app_of(a);

	EXPECT_FALSE(e->write_asked);
	EXPECT_UINT(offset, e->file_n);
	memcpy(e->file + offset, p, n);
	e->file_n += n;
	e->write_asked = true;
}

static void stage_end(struct app *a)
{
	say(app_of(a), "seal; ");
	app_of(a)->end_asked = true;
}

static void stage_drop(struct app *a)
{
	struct end *e = app_of(a);

	say(e, "drop; ");
	e->write_asked = false;
	e->end_asked = false;
	free(e->file);
	e->file = NULL;
}

static const struct app_ops ops = {
	.export_begin = export_begin,
	.export_read = export_read,
	.export_end = export_end,
	.stage_begin = stage_begin,
	.stage_write = stage_write,
	.stage_end = stage_end,
	.stage_drop = stage_drop,
};

static struct end *owner_of(struct snapshots_owner *o)
{
	return CONTAINER_OF(o, struct end, owner);
}

static void on_wanted(struct snapshots_owner *o, uint64_t node_id,
		      bool abstains)
{
	say(owner_of(o), "%u wants%s; ", (unsigned)node_id,
	    abstains ? ", abstains" : "");
}

static bool on_tell(struct snapshots_owner *o, uint64_t *term)
{
	*term = 77;
	return owner_of(o)->tells;
}

static void on_told(struct snapshots_owner *o, uint64_t node_id, bool lost,
		    uint64_t term)
{
	if (lost)
		say(owner_of(o), "%u lost it; ", (unsigned)node_id);
	else
		say(owner_of(o), "%u told %u; ", (unsigned)node_id,
		    (unsigned)term);
}

static bool on_offered(struct snapshots_owner *o,
		       const struct snapshot_from *from,
		       const struct snapshot *what)
{
	struct end *e = owner_of(o);

	e->from = *from;
	e->what = *what;
	EXPECT_TRUE(what->conf_bytes <= sizeof(e->conf));
	memcpy(e->conf, what->conf, what->conf_bytes);
	e->what.conf = e->conf;
	return e->accepts;
}

static void on_staged(struct snapshots_owner *o,
		      const struct snapshot_from *from,
		      const struct snapshot *what, uint64_t generation,
		      const uint8_t hash[16])
{
	struct end *e = owner_of(o);

	EXPECT_UINT(from->term, e->from.term);
	EXPECT_UINT(what->index, e->what.index);
	EXPECT_MEM(what->conf, e->conf, what->conf_bytes);
	EXPECT_UINT(generation, 5);
	EXPECT_UINT(hash[3], 0xcc);
	e->staged = true;
	say(e, "staged; ");
}

static void on_sent(struct snapshots_owner *o, uint64_t node_id, bool ok)
{
	EXPECT_UINT(node_id, 2);
	owner_of(o)->sent_ok += ok;
	owner_of(o)->sent_bad += !ok;
}

static void setup(void)
{
	unsigned i;

	fake_begin(3);
	for (i = 0; i < sizeof(file); i++)
		file[i] = (uint8_t)(i * 2654435761u >> 13);
	memset(ends, 0, sizeof(ends));
	for (i = 0; i < 3; i++) {
		struct end *e = &ends[i];

		hand_init(&e->hand);
		e->hand.random = i + 5;
		e->app.ops = &ops;
		e->owner.wanted = on_wanted;
		e->owner.tell = on_tell;
		e->owner.told = on_told;
		e->owner.offered = on_offered;
		e->owner.staged = on_staged;
		e->owner.sent = on_sent;
		e->accepts = true;
		e->tells = true;
		EXPECT_RC(snapshots_new(&e->hand.env, &fake.at[i], &e->app,
					&e->owner, 0, &e->n),
			  RC_OK);
	}
	fake_join_all();
}

static void teardown(void)
{
	unsigned i;

	for (i = 0; i < 3; i++) {
		if (ends[i].n != NULL)
			snapshots_free(ends[i].n);
		free(ends[i].file);
	}
	fake_end();
}

static const struct snapshot_from leader = { .node_id = 1,
					     .term = 9,
					     .rebuilds = true };

static struct snapshot copy_of(void)
{
	struct snapshot s = { .index = 100,
			      .term = 8,
			      .conf_index = 3,
			      .conf = "members",
			      .conf_bytes = 8,
			      .bytes = FILE_BYTES };

	memset(s.hash, 0x11, sizeof(s.hash));
	return s;
}

/* Every app answers what it was asked. */
static void answer(struct end *e)
{
	struct snapshot s = copy_of();
	uint8_t hash[16];

	if (e->export_asked) {
		e->export_asked = false;
		snapshots_exported(e->n, RC_OK, &s);
	}
	if (e->read_asked) {
		e->read_asked = false;
		snapshots_export_data(e->n, RC_OK, file + e->read_at,
				      e->read_n);
	}
	if (e->write_asked) {
		e->write_asked = false;
		snapshots_staged(e->n, RC_OK);
	}
	if (e->end_asked) {
		e->end_asked = false;
		memset(hash, 0xcc, sizeof(hash));
		snapshots_stage_done(e->n, RC_OK, 5, hash);
	}
}

static void turns(void)
{
	unsigned i;

	for (i = 0; i < 3; i++)
		hand_turn(&ends[i].hand);
	fake_pump();
}

static void go(unsigned rounds)
{
	unsigned i;

	while (rounds-- > 0) {
		turns();
		for (i = 0; i < 3; i++)
			answer(&ends[i]);
	}
	turns();
}

static void wait_ms(uint64_t ms)
{
	unsigned i;

	for (i = 0; i < 3; i++)
		hand_advance(&ends[i].hand, ms);
	fake_pump();
}

static bool begin(void)
{
	return snapshots_send(ends[0].n, 2, &leader, 90);
}

TEST(a_stream_from_end_to_end)
{
	setup();
	EXPECT_UINT(snapshots_pin(ends[0].n), UINT64_MAX);
	EXPECT_TRUE(begin());
	EXPECT_FALSE(begin());
	EXPECT_UINT(snapshots_sending(ends[0].n), 2);
	EXPECT_UINT(snapshots_pin(ends[0].n), 90);
	EXPECT_STR(ends[0].trace, "");
	go(ALL);
	EXPECT_UINT(snapshots_pin(ends[0].n), 100);
	EXPECT_TRUE(ends[1].staged);
	EXPECT_UINT(ends[1].file_n, FILE_BYTES);
	EXPECT_MEM(ends[1].file, file, FILE_BYTES);
	EXPECT_UINT(ends[1].from.node_id, 1);
	EXPECT_UINT(ends[1].from.term, 9);
	EXPECT_TRUE(ends[1].from.rebuilds);
	EXPECT_UINT(ends[1].what.index, 100);
	EXPECT_UINT(ends[1].what.term, 8);
	EXPECT_UINT(ends[1].what.conf_index, 3);
	EXPECT_UINT(ends[1].what.hash[7], 0x11);
	EXPECT_STR(ends[0].trace, "export; end export; ");
	EXPECT_STR(ends[1].trace, "stage 2360296; seal; staged; ");
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	/* The verdict; what followed stays wanted for a while. */
	snapshots_took(ends[1].n, true);
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	go(1);
	EXPECT_UINT(snapshots_sending(ends[0].n), 0);
	EXPECT_UINT(snapshots_pin(ends[0].n), 100);
	EXPECT_UINT(ends[0].sent_ok, 0);
	wait_ms(600);
	wait_ms(600);
	go(1);
	EXPECT_UINT(ends[0].sent_ok, 1);
	EXPECT_UINT(snapshots_pin(ends[0].n), UINT64_MAX);
	EXPECT_UINT(hand_timers(&ends[0].hand), 0);
	EXPECT_UINT(hand_timers(&ends[1].hand), 0);
	EXPECT_STR(ends[1].trace, "stage 2360296; seal; staged; ");
	teardown();
}

/* A new one ends the lingering of the last. */
TEST(one_stream_after_the_other)
{
	setup();
	EXPECT_TRUE(begin());
	go(ALL);
	snapshots_took(ends[1].n, true);
	go(1);
	free(ends[1].file);
	EXPECT_TRUE(begin());
	EXPECT_UINT(ends[0].sent_ok, 1);
	go(ALL);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	teardown();
}

TEST(the_window_is_bounded)
{
	unsigned i;

	setup();
	EXPECT_TRUE(begin());
	/* Nothing is written at the other end. */
	for (i = 0; i < 40; i++) {
		turns();
		answer(&ends[0]);
	}
	EXPECT_UINT(ends[1].file_n, SNAPSHOT_PIECE_BYTES);
	EXPECT_UINT(ends[0].read_at,
		    (SNAPSHOT_PIECES_MAX - 1) * SNAPSHOT_PIECE_BYTES);
	EXPECT_FALSE(ends[0].read_asked);
	answer(&ends[1]);
	turns();
	EXPECT_TRUE(ends[0].read_asked || ends[1].write_asked);
	teardown();
}

TEST(an_offer_is_refused)
{
	setup();
	ends[1].accepts = false;
	EXPECT_TRUE(begin());
	go(4);
	EXPECT_UINT(ends[0].sent_bad, 1);
	EXPECT_STR(ends[0].trace, "export; end export; ");
	EXPECT_STR(ends[1].trace, "");
	/* Not at once again. */
	EXPECT_FALSE(begin());
	wait_ms(499);
	EXPECT_FALSE(begin());
	wait_ms(1);
	EXPECT_TRUE(begin());
	/* And later each time, as long as it is refused. */
	go(4);
	EXPECT_UINT(ends[0].sent_bad, 2);
	wait_ms(999);
	EXPECT_FALSE(begin());
	wait_ms(1);
	EXPECT_TRUE(begin());
	go(4);
	wait_ms(2000);
	EXPECT_TRUE(begin());
	go(4);
	wait_ms(4000);
	EXPECT_TRUE(begin());
	go(4);
	wait_ms(3999);
	EXPECT_FALSE(begin());
	wait_ms(1);
	ends[1].accepts = true;
	EXPECT_TRUE(begin());
	go(ALL);
	EXPECT_TRUE(ends[1].staged);
	teardown();
}

TEST(a_staged_one_is_refused)
{
	setup();
	EXPECT_TRUE(begin());
	go(ALL);
	snapshots_took(ends[1].n, false);
	EXPECT_STR(ends[1].trace, "stage 2360296; seal; staged; drop; ");
	go(1);
	EXPECT_UINT(ends[0].sent_bad, 1);
	EXPECT_ABORT_SAYS(snapshots_took(ends[1].n, true), "IN_STAGED");
	teardown();
}

TEST(the_link_is_lost)
{
	unsigned rounds;

	for (rounds = 0; rounds < 14; rounds++) {
		setup();
		runner_context("after %u rounds", rounds);
		EXPECT_TRUE(begin());
		go(rounds);
		fake_cut(1, 2);
		go(2);
		EXPECT_UINT(snapshots_sending(ends[0].n), 0);
		EXPECT_UINT(ends[0].sent_bad, 1);
		if (ends[1].trace[0] != '\0' && !ends[1].staged)
			EXPECT_STR(ends[1].trace, "stage 2360296; drop; ");
		EXPECT_FALSE(begin());
		fake_join(1, 2);
		wait_ms(500);
		if (snapshots_receiving(ends[1].n)) {
			teardown();
			continue;
		}
		EXPECT_TRUE(begin());
		go(ALL);
		EXPECT_TRUE(ends[1].staged);
		EXPECT_MEM(ends[1].file, file, FILE_BYTES);
		teardown();
	}
}

TEST(nothing_moves)
{
	unsigned i;

	setup();
	EXPECT_TRUE(begin());
	go(3);
	ends[0].read_asked = false;
	ends[1].write_asked = false;
	for (i = 0; i < 9; i++)
		wait_ms(500);
	go(0);
	EXPECT_UINT(snapshots_sending(ends[0].n), 2);
	for (i = 0; i < 3; i++)
		wait_ms(500);
	go(1);
	EXPECT_UINT(snapshots_sending(ends[0].n), 0);
	EXPECT_UINT(ends[0].sent_bad, 1);
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	EXPECT_STR(ends[1].trace, "stage 2360296; drop; ");
	teardown();
}

/* However long the other verifies: it says that it is there. */
TEST(a_long_verification)
{
	unsigned i;

	setup();
	EXPECT_TRUE(begin());
	for (i = 0; i < 60 && !ends[1].end_asked; i++) {
		turns();
		answer(&ends[0]);
		if (!ends[1].end_asked)
			answer(&ends[1]);
	}
	EXPECT_TRUE(ends[1].end_asked);
	for (i = 0; i < 60; i++)
		wait_ms(500);
	EXPECT_UINT(snapshots_sending(ends[0].n), 2);
	go(2);
	EXPECT_TRUE(ends[1].staged);
	/* An owner that cannot decide does not hold the sender for ever. */
	for (i = 0; i < 30; i++)
		wait_ms(500);
	go(1);
	EXPECT_UINT(snapshots_sending(ends[0].n), 0);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	snapshots_took(ends[1].n, true);
	teardown();
}

TEST(a_full_queue_is_tried_again)
{
	unsigned i;

	setup();
	EXPECT_TRUE(begin());
	turns();
	fake.at[0].room = 10;
	go(3);
	EXPECT_UINT(snapshots_sending(ends[0].n), 2);
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	fake.at[0].room = 32u << 20;
	hand_advance(&ends[0].hand, 10);
	go(3);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	fake.at[0].room = 1000;
	go(6);
	fake.at[0].room = 32u << 20;
	for (i = 0; i < ALL; i++) {
		hand_advance(&ends[0].hand, 10);
		go(1);
	}
	EXPECT_TRUE(ends[1].staged);
	EXPECT_MEM(ends[1].file, file, FILE_BYTES);
	teardown();
}

TEST(questions_and_answers)
{
	setup();
	snapshots_ask(ends[1].n, 1, true);
	snapshots_ask(ends[1].n, 3, false);
	ends[2].tells = false;
	fake_pump();
	EXPECT_STR(ends[0].trace, "2 wants, abstains; ");
	EXPECT_STR(ends[2].trace, "2 wants; ");
	EXPECT_STR(ends[1].trace, "1 told 77; 3 lost it; ");
	/* Nobody is there. */
	fake_cut(1, 2);
	snapshots_ask(ends[1].n, 1, true);
	EXPECT_FALSE(begin());
	teardown();
}

TEST(exports_that_fail)
{
	struct snapshot s = copy_of();
	unsigned i;

	for (i = 0; i < 5; i++) {
		setup();
		s = copy_of();
		if (i == 1)
			s.index = 89;
		if (i == 2)
			s.bytes = 0;
		if (i == 3)
			s.conf_bytes = 1u << 20;
		EXPECT_TRUE(begin());
		turns();
		ends[0].export_asked = false;
		if (i < 4) {
			snapshots_exported(ends[0].n,
					   i == 0 ? RC_CORRUPT : RC_OK, &s);
		} else {
			snapshots_exported(ends[0].n, RC_OK, &s);
			turns();
			turns();
			EXPECT_TRUE(ends[0].read_asked);
			ends[0].read_asked = false;
			snapshots_export_data(ends[0].n, RC_OK, file, 100);
		}
		go(1);
		EXPECT_UINT(ends[0].sent_bad, 1);
		EXPECT_STR(ends[0].trace, "export; end export; ");
		EXPECT_FALSE(snapshots_receiving(ends[1].n));
		/* Late answers find nobody. */
		snapshots_exported(ends[0].n, RC_OK, &s);
		snapshots_export_data(ends[0].n, RC_OK, file, 100);
		go(1);
		teardown();
	}
}

/* The app has deleted what it could not take. */
TEST(stages_that_fail)
{
	uint8_t hash[16] = { 0 };

	setup();
	EXPECT_TRUE(begin());
	while (!ends[1].write_asked)
		go(1), answer(&ends[0]);
	ends[1].write_asked = false;
	snapshots_staged(ends[1].n, RC_NO_SPACE);
	go(1);
	EXPECT_STR(ends[1].trace, "stage 2360296; ");
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	EXPECT_UINT(ends[0].sent_bad, 1);
	snapshots_staged(ends[1].n, RC_OK);
	snapshots_stage_done(ends[1].n, RC_OK, 5, hash);
	teardown();

	setup();
	EXPECT_TRUE(begin());
	while (!ends[1].end_asked) {
		turns();
		answer(&ends[0]);
		if (!ends[1].end_asked)
			answer(&ends[1]);
	}
	ends[1].end_asked = false;
	snapshots_stage_done(ends[1].n, RC_CORRUPT, 0, hash);
	go(1);
	EXPECT_STR(ends[1].trace, "stage 2360296; seal; ");
	EXPECT_UINT(ends[0].sent_bad, 1);
	teardown();
}

/* The end of a leadership, and what a newer leader offers meanwhile. */
TEST(leaders_change)
{
	const struct snapshot_from newer = { .node_id = 3, .term = 10 };

	setup();
	EXPECT_TRUE(begin());
	go(3);
	snapshots_stop(ends[0].n);
	snapshots_stop(ends[0].n);
	go(1);
	EXPECT_STR(ends[0].trace, "export; end export; ");
	EXPECT_STR(ends[1].trace, "stage 2360296; drop; ");
	EXPECT_UINT(ends[0].sent_bad, 1);
	teardown();

	/* The old one does not know yet that it is over. */
	setup();
	EXPECT_TRUE(begin());
	go(3);
	EXPECT_TRUE(snapshots_send(ends[2].n, 2, &newer, 90));
	go(3);
	EXPECT_HAS(ends[1].trace, "drop; ");
	EXPECT_UINT(ends[0].sent_bad, 1);
	EXPECT_UINT(ends[2].sent_bad, 1);
	wait_ms(500);
	EXPECT_TRUE(snapshots_send(ends[2].n, 2, &newer, 90));
	go(ALL);
	EXPECT_TRUE(ends[1].staged);
	EXPECT_UINT(ends[1].from.node_id, 3);
	/* What is staged is not given up for another. */
	EXPECT_TRUE(snapshots_send(
		ends[0].n, 2,
		&(struct snapshot_from){ .node_id = 1, .term = 11 }, 90));
	go(5);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	EXPECT_UINT(ends[0].sent_bad, 2);
	teardown();
}

TEST(closed_in_the_middle)
{
	unsigned rounds;

	for (rounds = 0; rounds < 44; rounds += 3) {
		setup();
		EXPECT_TRUE(begin());
		go(rounds);
		hand_turn(&ends[0].hand);
		hand_turn(&ends[1].hand);
		EXPECT_FALSE(snapshots_posted(ends[0].n));
		EXPECT_FALSE(snapshots_posted(ends[1].n));
		snapshots_close(ends[0].n);
		snapshots_close(ends[1].n);
		if (strstr(ends[0].trace, "export") != NULL)
			EXPECT_STR(ends[0].trace, "export; end export; ");
		if (strstr(ends[1].trace, "stage") != NULL)
			EXPECT_HAS(ends[1].trace, "drop; ");
		EXPECT_FALSE(begin());
		snapshots_ask(ends[1].n, 1, true);
		go(2);
		EXPECT_UINT(hand_timers(&ends[0].hand), 0);
		teardown();
	}
}

/* ---- what comes from outside ---- */

static void head(uint8_t *p, uint8_t kind, uint64_t id)
{
	memset(p, 0, 128);
	p[0] = kind;
	le_put64(p + 8, id);
}

/* A head as end 1 would send it. */
static size_t begin_record(uint8_t *p, uint64_t id)
{
	head(p, 3, id);
	le_put32(p + 4, 8);
	le_put64(p + 16, 9);
	le_put64(p + 24, 100);
	le_put64(p + 32, 8);
	le_put64(p + 40, 3);
	le_put64(p + 48, FILE_BYTES);
	memcpy(p + 72, "members", 8);
	return 80;
}

static void expect_dropped(const uint8_t *p, size_t n)
{
	unsigned drops = fake.at[1].drops;
	uint8_t *copy = malloc(n > 0 ? n : 1);

	memcpy(copy, p, n);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, copy, n);
	free(copy);
	EXPECT_UINT(fake.at[1].drops, drops + 1);
}

TEST(records_that_cannot_be)
{
	static const size_t sizes[] = { 0, 16, 16, 80, 24, 24, 16 };
	uint8_t p[128];
	size_t n;
	unsigned kind;

	setup();
	/* Every length but its own. */
	for (kind = 0; kind < 9; kind++) {
		if (kind == 3)
			(void)begin_record(p, 1);
		else
			head(p, (uint8_t)kind, 1);
		for (n = 0; n < 100; n++) {
			if (kind >= 1 && kind <= 6 && n == sizes[kind] &&
			    kind != 4)
				continue;
			if (kind == 4 && n > 24)
				continue;
			expect_dropped(p, n);
		}
	}
	EXPECT_STR(ends[1].trace, "");
	/* Every field of a head. */
	n = begin_record(p, 1);
	p[2] = 1;
	expect_dropped(p, n);
	n = begin_record(p, 1);
	p[1] = 2;
	expect_dropped(p, n);
	n = begin_record(p, 1);
	le_put64(p + 24, 0);
	expect_dropped(p, n);
	n = begin_record(p, 1);
	le_put64(p + 32, 0);
	expect_dropped(p, n);
	n = begin_record(p, 1);
	le_put64(p + 32, 10);
	expect_dropped(p, n);
	n = begin_record(p, 1);
	le_put64(p + 40, 101);
	expect_dropped(p, n);
	/* One more than such a number must be a number. */
	n = begin_record(p, 1);
	le_put64(p + 16, UINT64_MAX);
	expect_dropped(p, n);
	n = begin_record(p, 1);
	le_put64(p + 24, UINT64_MAX);
	expect_dropped(p, n);
	head(p, 2, 0);
	le_put64(p + 8, UINT64_MAX);
	expect_dropped(p, 16);
	n = begin_record(p, 1);
	le_put64(p + 48, 0);
	expect_dropped(p, n);
	head(p, 1, 0);
	le_put32(p + 4, 1);
	expect_dropped(p, 16);
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	teardown();
}

static void expect_piece_dropped(uint64_t offset, size_t n, uint64_t id)
{
	uint8_t *p = calloc(1, 24 + n);
	unsigned drops = fake.at[1].drops;

	p[0] = 4;
	le_put64(p + 8, id);
	le_put64(p + 16, offset);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, 24 + n);
	free(p);
	EXPECT_UINT(fake.at[1].drops, drops + 1);
}

TEST(pieces_that_cannot_be)
{
	uint8_t p[128];
	uint8_t *piece;
	size_t n;

	setup();
	n = begin_record(p, 42);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, n);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	expect_piece_dropped(1, SNAPSHOT_PIECE_BYTES, 42);
	expect_piece_dropped(0, 100, 42);
	expect_piece_dropped(0, SNAPSHOT_PIECE_BYTES + 1, 42);
	/* More than the window. */
	piece = calloc(1, 24 + SNAPSHOT_PIECE_BYTES);
	piece[0] = 4;
	le_put64(piece + 8, 42);
	for (n = 0; n < SNAPSHOT_PIECES_MAX; n++) {
		le_put64(piece + 16, n * SNAPSHOT_PIECE_BYTES);
		fake_say(CHANNEL_SNAPSHOT, 1, 2, piece,
			 24 + SNAPSHOT_PIECE_BYTES);
	}
	EXPECT_UINT(fake.at[1].drops, 3);
	expect_piece_dropped(SNAPSHOT_PIECES_MAX * SNAPSHOT_PIECE_BYTES,
			     SNAPSHOT_PIECE_BYTES, 42);
	free(piece);
	/* An answer where none was asked for. */
	head(p, 5, 42);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, 24);
	EXPECT_UINT(fake.at[1].drops, 5);
	/* Of a stream that is over, nothing matters. */
	head(p, 5, 43);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, 24);
	head(p, 6, 43);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, 16);
	EXPECT_UINT(fake.at[1].drops, 5);
	/* Another node may not end it either. */
	head(p, 6, 42);
	fake_say(CHANNEL_SNAPSHOT, 3, 2, p, 16);
	go(0);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, 16);
	go(0);
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	teardown();
}

TEST(acknowledgements_that_cannot_be)
{
	uint8_t p[128];
	uint64_t id;

	setup();
	EXPECT_TRUE(begin());
	turns();
	answer(&ends[0]);
	hand_turn(&ends[0].hand);
	id = le_get64(fake_next()->bytes + 8);
	fake_pump();
	head(p, 5, id);
	le_put64(p + 16, 1);
	fake_say(CHANNEL_SNAPSHOT, 2, 1, p, 24);
	EXPECT_UINT(fake.at[0].drops, 1);
	/* A verdict before the end is none. */
	head(p, 6, id);
	p[1] = 1;
	fake_say(CHANNEL_SNAPSHOT, 2, 1, p, 16);
	go(1);
	EXPECT_UINT(ends[0].sent_bad, 1);
	EXPECT_UINT(ends[0].sent_ok, 0);
	teardown();
}

TEST(every_allocation_may_fail)
{
	struct snapshot what = copy_of();
	struct snapshots *n;
	uint8_t *piece;
	uint8_t p[128];
	size_t bytes;
	uint64_t nth;

	setup();
	fault_alloc(1);
	EXPECT_RC(snapshots_new(&ends[0].hand.env, NULL, &ends[0].app,
				&ends[0].owner, 0, &n),
		  RC_NOMEM);
	EXPECT_TRUE(fault_off());
	/* What is to be sent, and a piece's room. */
	for (nth = 1; nth <= 2; nth++) {
		EXPECT_TRUE(begin());
		turns();
		ends[0].export_asked = false;
		fault_alloc(nth);
		snapshots_exported(ends[0].n, RC_OK, &what);
		EXPECT_TRUE(fault_off());
		go(1);
		EXPECT_UINT(ends[0].sent_bad, nth);
		wait_ms(500);
	}
	/* An offer; a piece. */
	bytes = begin_record(p, 42);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, p, bytes);
	EXPECT_TRUE(snapshots_receiving(ends[1].n));
	piece = calloc(1, 24 + SNAPSHOT_PIECE_BYTES);
	piece[0] = 4;
	le_put64(piece + 8, 42);
	fault_alloc(1);
	fake_say(CHANNEL_SNAPSHOT, 1, 2, piece, 24 + SNAPSHOT_PIECE_BYTES);
	EXPECT_TRUE(fault_off());
	free(piece);
	go(1);
	EXPECT_FALSE(snapshots_receiving(ends[1].n));
	EXPECT_STR(ends[1].trace, "");
	teardown();
}
