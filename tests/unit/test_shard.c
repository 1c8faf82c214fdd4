#include "raft-glue/shard.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"
#include "raft-glue/step.h"
#include "tests/lib/fault.h"
#include "tests/lib/hand.h"
#include "tests/lib/runner.h"

/*
 * One shard between an app and a log that the test holds in its hands: batches
 * are durable when it says so, and a power cut forgets the others.
 */

#define SHARD 3u
#define NODE  7u

/* ---- the log ---- */

struct record {
	struct log_entry e;
	uint64_t ticket;
};

struct log {
	struct log_listener *listener;
	struct record *records; /* Of the one shard, in order of index. */
	size_t n;
	size_t slots;
	struct ballot_slot ballot;         /* Durable. */
	struct ballot_slot ballot_pending; /* With ballot_ticket. */
	uint64_t ballot_ticket;
	uint64_t ticket;
	uint64_t durable;
	uint64_t batch; /* Tickets up to here are with the writer. */
	uint64_t floor;
	uint64_t base_index;
	uint64_t unsynced_more; /* Of other shards. */
	bool busy;
	bool damaged;
	bool full;
	unsigned votes;
	unsigned floors;
};

static struct log disk;

enum log_status log_status(const struct log *l, uint32_t shard,
			   struct detail *why)
{
	EXPECT_UINT(shard, SHARD);
	if (!l->damaged)
		return LOG_WHOLE;
	(void)detail_set(why, RC_CORRUPT, NULL, "a bad sector in segment 4");
	return LOG_DAMAGED;
}

enum rc log_recovered(struct log *l, uint32_t shard,
		      enum rc (*cb)(void *arg, const struct log_entry *e),
		      void *arg, uint64_t *base_index, uint64_t *base_term)
{
	enum rc rc = RC_OK;
	size_t i;

	EXPECT_UINT(shard, SHARD);
	for (i = 0; i < l->n && rc == RC_OK; i++)
		if (l->records[i].e.index > l->floor)
			rc = cb(arg, &l->records[i].e);
	*base_index = l->base_index;
	*base_term = l->base_index > 0 ? 1 : 0;
	return rc;
}

void log_listen(struct log *l, uint32_t shard, struct log_listener *listener)
{
	EXPECT_UINT(shard, SHARD);
	l->listener = listener;
}

static void records_cut(struct log *l, size_t n)
{
	while (l->n > n)
		free((void *)(uintptr_t)l->records[--l->n].e.data);
}

uint64_t log_append(struct log *l, uint32_t shard, const struct log_entry *e)
{
	struct record *r;
	void *copy;

	EXPECT_UINT(shard, SHARD);
	fault_hold();
	while (l->n > 0 && l->records[l->n - 1].e.index >= e->index)
		records_cut(l, l->n - 1);
	if (l->n == l->slots) {
		l->slots = l->slots * 2 + 16;
		l->records = realloc(l->records, l->slots * sizeof(*r));
	}
	copy = malloc(e->bytes + 1);
	fault_release();
	memcpy(copy, e->data, e->bytes);
	r = &l->records[l->n++];
	r->e = *e;
	r->e.data = copy;
	r->ticket = ++l->ticket;
	return r->ticket;
}

uint64_t log_vote(struct log *l, uint32_t shard, const struct ballot_slot *slot)
{
	EXPECT_UINT(shard, SHARD);
	EXPECT_TRUE(slot->term >= l->ballot.term);
	l->ballot_pending = *slot;
	l->ballot_ticket = ++l->ticket;
	l->votes++;
	return l->ticket;
}

struct log_range log_range(const struct log *l, uint32_t shard)
{
	struct log_range range = { .first = 1 };

	EXPECT_UINT(shard, SHARD);
	if (l->n > 0) {
		range.first = l->records[0].e.index;
		range.last = l->records[l->n - 1].e.index;
	}
	if (l->base_index > range.last)
		range.last = l->base_index;
	return range;
}

uint64_t log_base(struct log *l, uint32_t shard, uint64_t index, uint64_t term)
{
	EXPECT_UINT(shard, SHARD);
	EXPECT_TRUE(term > 0);
	while (l->n > 0)
		free((void *)(uintptr_t)l->records[--l->n].e.data);
	l->base_index = index;
	return ++l->ticket;
}

uint32_t log_entry_bytes_max(const struct log *l)
{
	(void)l;
	return ENTRY_BYTES_MAX;
}

bool log_stalled(const struct log *l)
{
	(void)l;
	return false;
}

bool log_full(const struct log *l, uint32_t shard)
{
	EXPECT_UINT(shard, SHARD);
	return l->full;
}

void log_floor(struct log *l, uint32_t shard, uint64_t index)
{
	EXPECT_UINT(shard, SHARD);
	EXPECT_TRUE(index >= l->floor);
	l->floor = index;
	l->floors++;
}

void log_stats(const struct log *l, struct log_stats *out)
{
	(void)l;
	*out = (struct log_stats){ 0 };
}

bool log_busy(const struct log *l)
{
	return l->busy;
}

uint64_t log_unsynced_bytes(const struct log *l)
{
	uint64_t bytes = l->unsynced_more;
	size_t i;

	for (i = l->n; i > 0 && l->records[i - 1].ticket > l->durable; i--)
		bytes += l->records[i - 1].e.bytes;
	return bytes;
}

/* The writer takes what has come together. */
static void batch_begin(void)
{
	EXPECT_FALSE(disk.busy);
	disk.busy = true;
	disk.batch = disk.ticket;
}

static void batch_sync(void)
{
	disk.durable = disk.batch;
	if (disk.ballot_ticket != 0 && disk.ballot_ticket <= disk.durable) {
		disk.ballot = disk.ballot_pending;
		disk.ballot_ticket = 0;
	}
	disk.busy = false;
}

/* It is synced: what the log says then, in this order. */
static void batch_end(void)
{
	bool news = disk.batch > disk.durable;

	batch_sync();
	if (disk.listener == NULL)
		return;
	if (disk.listener->voted != NULL)
		disk.listener->voted(disk.listener, disk.durable);
	if (news)
		disk.listener->durable(disk.listener, disk.durable);
	if (disk.listener != NULL && disk.listener->idle != NULL)
		disk.listener->idle(disk.listener);
}

/* Everything that was not synced is gone. */
static void power_cut(void)
{
	while (disk.n > 0 && disk.records[disk.n - 1].ticket > disk.durable)
		records_cut(&disk, disk.n - 1);
	disk.ballot_ticket = 0;
	disk.busy = false;
	disk.listener = NULL;
	disk.durable = disk.ticket;
}

static void disk_release(void)
{
	records_cut(&disk, 0);
	free(disk.records);
	memset(&disk, 0, sizeof(disk));
}

/* Puts a record there as recovery would find it. */
static void disk_put(uint64_t index, uint64_t term, uint16_t type,
		     const void *data, size_t bytes)
{
	struct log_entry e = { index, term, type, data, (uint32_t)bytes };

	(void)log_append(&disk, SHARD, &e);
	disk.durable = disk.ticket;
}

/* ---- the transport ---- */

struct sent {
	enum transport_channel ch;
	uint64_t to;
	size_t n;
	uint8_t p[256];
};

struct transport {
	struct transport_sink *raft;
	struct transport_sink *snapshot;
	struct sent sent[256];
	unsigned n;
	unsigned drops;
};

static struct transport net;

void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t of, struct transport_sink *k)
{
	EXPECT_UINT(of, SHARD);
	if (ch == CHANNEL_RAFT)
		t->raft = k;
	else if (ch == CHANNEL_SNAPSHOT)
		t->snapshot = k;
}

enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t of, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n)
{
	struct sent *m = &t->sent[t->n++];

	EXPECT_UINT(of, SHARD);
	EXPECT_TRUE(t->n < 256);
	EXPECT_TRUE(head_n + body_n <= sizeof(m->p));
	m->ch = ch;
	m->to = node_id;
	m->n = head_n + body_n;
	memcpy(m->p, head, head_n);
	if (body_n > 0)
		memcpy(m->p + head_n, body, body_n);
	return RC_OK;
}

uint64_t transport_epoch(const struct transport *t, enum transport_channel ch,
			 uint64_t node_id)
{
	(void)t;
	(void)ch;
	(void)node_id;
	return 1;
}

void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id)
{
	(void)ch;
	(void)node_id;
	t->drops++;
}

/* ---- the app ---- */

struct fake {
	struct app app;
	char trace[8192];
	uint64_t term;
	/* What collect gives: `feed` entries of `feed_bytes`. */
	unsigned feed;
	size_t feed_bytes;
	unsigned collects;
	uint64_t committed;
	uint64_t applied;
	uint64_t applied_term;
	uint64_t sum;       /* Over what was applied. */
	uint64_t refuse_at; /* apply answers refuse_rc there. */
	enum rc refuse_rc;
	uint8_t conf[256];
	size_t conf_bytes;
	uint64_t conf_index;
	void (*in_apply)(void);
	void (*in_committed)(void);
	void (*in_lead)(void);
	bool quiet; /* Only lead and lost into the trace. */
};

static struct hand hand;
static struct fake fake;
static struct shard *shard;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	size_t at = strlen(fake.trace);
	va_list ap;

	if (fake.quiet)
		return;
	va_start(ap, format);
	(void)vsnprintf(fake.trace + at, sizeof(fake.trace) - at, format, ap);
	va_end(ap);
}

static void app_lead(struct app *a, uint64_t term)
{
	uint64_t now = 0;

	(void)a;
	say("lead %u; ", (unsigned)term);
	fake.term = term;
	EXPECT_TRUE(shard_leads(shard, &now));
	EXPECT_UINT(now, term);
	if (fake.in_lead != NULL)
		fake.in_lead();
}

static void app_lost(struct app *a, uint64_t term)
{
	uint64_t now;

	(void)a;
	say("lost %u; ", (unsigned)term);
	EXPECT_UINT(term, fake.term);
	EXPECT_FALSE(shard_leads(shard, &now));
	fake.term = 0;
}

static bool app_collect(struct app *a, uint64_t term, void **data,
			size_t *bytes)
{
	uint8_t *p;

	(void)a;
	EXPECT_UINT(term, fake.term);
	fake.collects++;
	if (fake.feed == 0)
		return false;
	fake.feed--;
	p = malloc(fake.feed_bytes);
	if (p == NULL)
		return false;
	memset(p, (int)fake.collects, fake.feed_bytes);
	*data = p;
	*bytes = fake.feed_bytes;
	return true;
}

static void app_submitted(struct app *a, uint64_t term, uint64_t index)
{
	(void)a;
	EXPECT_UINT(term, fake.term);
	EXPECT_UINT(index, shard_last_index(shard));
	say("submitted %u; ", (unsigned)index);
}

static void app_refused(struct app *a, enum rc rc)
{
	(void)a;
	say("refused %s; ", rc_name(rc));
}

static void app_committed(struct app *a, uint64_t index)
{
	(void)a;
	EXPECT_TRUE(fake.term != 0);
	EXPECT_TRUE(index > fake.committed);
	/* A lone voter commits with its own disk. */
	if (mutant_now == MUTANT_none)
		EXPECT_TRUE(index <= shard_durable_index(shard));
	fake.committed = index;
	say("committed %u; ", (unsigned)index);
	if (fake.in_committed != NULL)
		fake.in_committed();
}

static enum rc app_apply(struct app *a, uint64_t index, uint64_t term,
			 const void *data, size_t bytes)
{
	const uint8_t *p = data;
	size_t i;

	(void)a;
	EXPECT_UINT(index, fake.applied + 1);
	EXPECT_TRUE(term >= fake.applied_term);
	if (mutant_now == MUTANT_none)
		EXPECT_TRUE(index <= shard_durable_index(shard));
	say("apply %u; ", (unsigned)index);
	if (index == fake.refuse_at)
		return fake.refuse_rc;
	if (fake.in_apply != NULL)
		fake.in_apply();
	for (i = 0; i < bytes; i++)
		fake.sum = fake.sum * 31 + p[i];
	fake.applied = index;
	fake.applied_term = term;
	return RC_OK;
}

static enum rc app_applied_other(struct app *a, uint64_t index, uint64_t term,
				 const void *conf, size_t conf_bytes)
{
	(void)a;
	EXPECT_UINT(index, fake.applied + 1);
	say("other %u%s; ", (unsigned)index, conf != NULL ? " conf" : "");
	if (index == fake.refuse_at)
		return fake.refuse_rc;
	fake.applied = index;
	fake.applied_term = term;
	if (conf != NULL) {
		EXPECT_TRUE(conf_bytes <= sizeof(fake.conf));
		memcpy(fake.conf, conf, conf_bytes);
		fake.conf_bytes = conf_bytes;
		fake.conf_index = index;
	}
	return RC_OK;
}

static void app_checkpoint(struct app *a)
{
	(void)a;
	say("checkpoint; ");
}

static void app_export_begin(struct app *a)
{
	(void)a;
	say("export; ");
}

static void app_export_end(struct app *a)
{
	(void)a;
	say("end export; ");
}

static void app_stage_begin(struct app *a, const struct snapshot *s)
{
	(void)a;
	say("stage %u; ", (unsigned)s->index);
}

static void app_stage_write(struct app *a, uint64_t offset, const void *p,
			    uint32_t n)
{
	(void)a;
	(void)p;
	say("write %u+%u; ", (unsigned)offset, (unsigned)n);
}

static void app_stage_end(struct app *a)
{
	(void)a;
	say("seal; ");
}

static void app_stage_drop(struct app *a)
{
	(void)a;
	say("drop; ");
}

static void app_switch_state(struct app *a, uint64_t generation)
{
	(void)a;
	say("switch %u; ", (unsigned)generation);
}

static const struct app_ops ops = {
	.lead = app_lead,
	.lost = app_lost,
	.collect = app_collect,
	.submitted = app_submitted,
	.refused = app_refused,
	.committed = app_committed,
	.apply = app_apply,
	.applied_other = app_applied_other,
	.checkpoint = app_checkpoint,
	.export_begin = app_export_begin,
	.export_end = app_export_end,
	.stage_begin = app_stage_begin,
	.stage_write = app_stage_write,
	.stage_end = app_stage_end,
	.stage_drop = app_stage_drop,
	.switch_state = app_switch_state,
};

/* ---- the test ---- */

static struct shard_config cfg;
static struct shard_state state;
static struct detail why;
static unsigned closings;
/* The mutant of the whole run. */
static enum mutant given;
static bool asked;

static void setup(void)
{
	disk_release();
	memset(&net, 0, sizeof(net));
	hand_init(&hand);
	memset(&fake, 0, sizeof(fake));
	fake.app.ops = &ops;
	fake.feed_bytes = 10;
	memset(&cfg, 0, sizeof(cfg));
	cfg.shard = SHARD;
	cfg.node_id = NODE;
	cfg.voters[0].id = NODE;
	(void)snprintf(cfg.voters[0].address, sizeof(cfg.voters[0].address),
		       "node7");
	cfg.voters_n = 1;
	cfg.election_ms = 300;
	cfg.heartbeat_ms = 50;
	cfg.ballot_good = true;
	memset(&state, 0, sizeof(state));
	memset(&why, 0, sizeof(why));
	if (!asked) {
		asked = true;
		given = mutant_now;
	}
	mutant_now = given;
	shard = NULL;
	closings = 0;
}

static enum rc open_shard(void)
{
	cfg.ballot = disk.ballot;
	return shard_open(&hand.env, &disk, cfg.voters_n > 1 ? &net : NULL,
			  &fake.app, &cfg, &state, &shard, &why);
}

/* 7, 8 and 9. */
static void three_voters(void)
{
	unsigned i;

	for (i = 0; i < 3; i++) {
		cfg.voters[i].id = NODE + i;
		(void)snprintf(cfg.voters[i].address,
			       sizeof(cfg.voters[i].address), "node%u",
			       NODE + i);
	}
	cfg.voters_n = 3;
}

static void sync_all(void)
{
	batch_begin();
	batch_end();
	hand_turn(&hand);
}

/* Open, and lead: 2 batches (vote; barrier). */
static void boot(void)
{
	EXPECT_RC(open_shard(), RC_OK);
	shard_start(shard);
	hand_turn(&hand);
	sync_all();
	sync_all();
	EXPECT_TRUE(fake.term != 0);
}

/* As the app's state file would be: synced at what is applied. */
static void state_from_fake(void)
{
	state.index = fake.applied;
	state.term = fake.applied_term;
	state.conf = fake.conf;
	state.conf_bytes = fake.conf_bytes;
	state.conf_index = fake.conf_index;
}

static void kill_node(void)
{
	shard_discard(shard);
	shard = NULL;
	power_cut();
	hand_init(&hand);
	fake.term = 0;
	fake.committed = 0;
	fake.trace[0] = '\0';
}

static void teardown(void)
{
	if (shard != NULL)
		shard_discard(shard);
	shard = NULL;
	disk_release();
}

static void propose(unsigned n)
{
	fake.feed += n;
	shard_want(shard);
	hand_turn(&hand);
}

static void on_closed(void *arg)
{
	EXPECT_TRUE(arg == &closings);
	closings++;
	shard = NULL;
}

/* ---- boots ---- */

TEST(a_first_boot)
{
	uint64_t term;

	setup();
	EXPECT_RC(open_shard(), RC_OK);
	EXPECT_UINT(disk.n, 1);
	EXPECT_UINT(disk.records[0].e.index, 1);
	EXPECT_UINT(disk.records[0].e.term, 1);
	EXPECT_UINT(disk.records[0].e.type, STEP_CHANGE);
	EXPECT_UINT(disk.ballot_pending.term, 2);
	EXPECT_UINT(disk.ballot_pending.vote, 0);
	EXPECT_UINT(shard_term(shard), 2);
	EXPECT_UINT(shard_leader(shard), 0);
	EXPECT_UINT(shard_last_index(shard), 1);
	EXPECT_UINT(shard_durable_index(shard), 0);
	EXPECT_UINT(shard_commit_index(shard), 0);
	EXPECT_UINT(shard_number(shard), SHARD);
	EXPECT_UINT(shard_voters(shard), 1);

	shard_start(shard);
	hand_turn(&hand);
	/* B10: nothing happens before the new term is durable. */
	batch_begin();
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "");
	EXPECT_UINT(disk.n, 1);
	batch_end();
	EXPECT_STR(fake.trace, "");
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "other 1 conf; ");
	EXPECT_UINT(disk.n, 2);
	EXPECT_UINT(disk.records[1].e.type, STEP_BARRIER);
	EXPECT_UINT(disk.records[1].e.term, 2);
	EXPECT_FALSE(shard_leads(shard, &term));
	EXPECT_UINT(shard_leader(shard), NODE);
	sync_all();
	EXPECT_STR(fake.trace, "other 1 conf; other 2; lead 2; committed 2; ");
	EXPECT_TRUE(shard_leads(shard, &term));
	EXPECT_UINT(term, 2);
	EXPECT_UINT(shard_applied_index(shard), 2);
	EXPECT_UINT(shard_commit_index(shard), 2);
	/* An idle shard waits for nothing. */
	EXPECT_UINT(hand_timers(&hand), 0);
	hand_advance(&hand, 1000000);
	EXPECT_UINT(disk.ticket, disk.durable);
	teardown();
}

TEST(every_boot_has_a_new_term)
{
	unsigned i;

	setup();
	boot();
	EXPECT_UINT(shard_term(shard), 2);
	for (i = 0; i < 5; i++) {
		kill_node();
		fake.applied = fake.applied_term = 0;
		boot();
		EXPECT_UINT(shard_term(shard), 3 + i);
		EXPECT_UINT(disk.ballot.term, 3 + i);
		EXPECT_UINT(disk.ballot.vote, 0);
		EXPECT_UINT(shard_last_index(shard), 3 + i);
	}
	teardown();
}

/* The ballot is synced before the batch: a crash between leaves a term and no
 * entry. */
TEST(a_first_boot_that_was_cut_short)
{
	setup();
	disk.ballot.term = 2;
	boot();
	EXPECT_UINT(shard_term(shard), 3);
	EXPECT_UINT(disk.records[0].e.term, 1);
	EXPECT_UINT(disk.n, 2);
	teardown();
}

TEST(the_tail_is_applied_before_lead)
{
	setup();
	boot();
	propose(3);
	sync_all();
	EXPECT_UINT(fake.applied, 5);
	kill_node();
	fake.applied = 2;
	fake.applied_term = 2;
	state_from_fake();
	boot();
	EXPECT_STR(fake.trace, "apply 3; apply 4; apply 5; other 6; lead 3; "
			       "committed 6; ");
	teardown();
}

TEST(mutant_execute_without_tail)
{
	setup();
	boot();
	propose(3);
	sync_all();
	kill_node();
	fake.applied = 2;
	state_from_fake();
	mutant_now = MUTANT_execute_without_tail;
	EXPECT_RC(open_shard(), RC_OK);
	shard_start(shard);
	sync_all();
	EXPECT_HAS(fake.trace, "lead 3; ");
	EXPECT_TRUE(strstr(fake.trace, "lead") < strstr(fake.trace, "apply 3"));
	mutant_now = MUTANT_none;
	teardown();
}

TEST(unsynced_entries_are_gone_after_a_power_cut)
{
	setup();
	boot();
	propose(1);
	EXPECT_UINT(shard_last_index(shard), 3);
	kill_node();
	fake.applied = 2;
	state_from_fake();
	boot();
	EXPECT_STR(fake.trace, "other 3; lead 3; committed 3; ");
	EXPECT_UINT(disk.records[2].e.term, 3);
	teardown();
}

/* ---- proposing ---- */

TEST(one_entry_per_sync)
{
	setup();
	boot();
	fake.trace[0] = '\0';
	propose(1);
	EXPECT_STR(fake.trace, "submitted 3; ");
	batch_begin();
	/* What comes while the writer works waits for it. */
	propose(1);
	propose(1);
	EXPECT_STR(fake.trace, "submitted 3; ");
	batch_end();
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "submitted 3; committed 3; submitted 4; "
			       "submitted 5; apply 3; ");
	sync_all();
	EXPECT_HAS(fake.trace, "committed 5; apply 4; apply 5; ");
	/* Asked until there was nothing left, and no more. */
	EXPECT_UINT(fake.collects, 5);
	sync_all();
	EXPECT_UINT(fake.collects, 5);
	teardown();
}

TEST(a_batch_of_other_shards_delays_and_wakes)
{
	setup();
	boot();
	fake.trace[0] = '\0';
	batch_begin(); /* Nothing of ours is in it. */
	propose(1);
	EXPECT_STR(fake.trace, "");
	batch_end();
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "submitted 3; ");
	teardown();
}

TEST(bounded_ahead_of_the_disk)
{
	setup();
	boot();
	fake.quiet = true;
	fake.feed_bytes = ENTRY_BYTES_MAX;
	propose(1000);
	EXPECT_UINT(fake.feed, 1000 - UNSYNCED_BYTES_MAX / ENTRY_BYTES_MAX);
	sync_all();
	EXPECT_UINT(fake.feed,
		    1000 - 2 * (UNSYNCED_BYTES_MAX / ENTRY_BYTES_MAX));
	fake.feed = 0;
	sync_all();
	/* The others' share counts too. */
	disk.unsynced_more = UNSYNCED_BYTES_MAX;
	propose(1);
	EXPECT_UINT(fake.feed, 1);
	disk.unsynced_more = 0;
	sync_all();
	EXPECT_UINT(fake.feed, 0);
	teardown();
}

TEST(nothing_is_collected_without_leading)
{
	setup();
	EXPECT_RC(open_shard(), RC_OK);
	fake.feed = 1;
	shard_want(shard);
	shard_start(shard);
	hand_turn(&hand);
	shard_want(shard);
	hand_turn(&hand);
	sync_all();
	shard_want(shard);
	hand_turn(&hand);
	EXPECT_UINT(fake.collects, 0);
	sync_all();
	EXPECT_UINT(fake.collects, 0);
	shard_want(shard);
	hand_turn(&hand);
	EXPECT_UINT(fake.collects, 2);
	teardown();
}

TEST(a_full_log_is_passed_on)
{
	setup();
	boot();
	EXPECT_FALSE(shard_full(shard));
	disk.full = true;
	EXPECT_TRUE(shard_full(shard));
	EXPECT_UINT(shard_entry_bytes_max(shard), ENTRY_BYTES_MAX);
	teardown();
}

TEST(entries_are_checked_where_they_enter)
{
	setup();
	boot();
	fake.feed_bytes = ENTRY_BYTES_MAX + 1;
	EXPECT_ABORT_SAYS(propose(1), "bytes <= ");
	teardown();
}

TEST(mutant_apply_undurable)
{
	setup();
	boot();
	propose(1);
	EXPECT_UINT(fake.applied, 2);
	mutant_now = MUTANT_apply_undurable;
	propose(1);
	EXPECT_UINT(fake.applied, 4);
	EXPECT_UINT(shard_durable_index(shard), 2);
	shard_checkpointed(shard, 4);
	sync_all();
	EXPECT_UINT(fake.applied, 4);
	mutant_now = MUTANT_none;
	teardown();
}

static void want_more(void)
{
	if (fake.applied < 20) {
		fake.feed++;
		shard_want(shard);
	}
}

static void checkpoint_below(void)
{
	shard_checkpointed(shard, fake.applied);
}

/* What the app does inside the callbacks leads to no callback inside them. */
TEST(the_app_may_call_back)
{
	unsigned i;

	setup();
	fake.in_lead = want_more;
	fake.in_committed = want_more;
	fake.in_apply = checkpoint_below;
	boot();
	for (i = 0; i < 30; i++)
		sync_all();
	EXPECT_TRUE(fake.applied >= 20);
	EXPECT_TRUE(disk.floor + 1 >= fake.applied);
	teardown();
}

/* ---- checkpoints ---- */

TEST(checkpoints_trim)
{
	struct shard_stats stats;
	unsigned i;

	setup();
	boot();
	fake.quiet = true;
	for (i = 0; i < 100; i++) {
		propose(1);
		sync_all();
	}
	EXPECT_UINT(fake.applied, 102);
	shard_stats(shard, &stats);
	EXPECT_UINT(stats.cached, 0);
	EXPECT_UINT(stats.entries, 101);
	EXPECT_UINT(stats.bytes, 8 + 100 * 10);
	EXPECT_UINT(stats.elections, 1);
	EXPECT_FALSE(stats.halted);
	shard_checkpointed(shard, 60);
	EXPECT_UINT(disk.floor, 60);
	shard_stats(shard, &stats);
	EXPECT_UINT(stats.trimmed, 60);
	shard_checkpointed(shard, 60);
	shard_checkpointed(shard, 50);
	EXPECT_UINT(disk.floor, 60);
	EXPECT_UINT(disk.floors, 2);
	shard_checkpointed(shard, 102);
	EXPECT_UINT(disk.floor, 102);
	EXPECT_ABORT_SAYS(shard_checkpointed(shard, 103),
			  "index <= s->applied");
	propose(1);
	sync_all();
	EXPECT_UINT(fake.applied, 103);

	/* A restart from exactly the checkpoint, with the log empty above. */
	state_from_fake();
	shard_checkpointed(shard, 103);
	state.synced_index = 103;
	kill_node();
	fake.quiet = false;
	boot();
	EXPECT_STR(fake.trace, "other 104; lead 3; committed 104; ");
	/* The first checkpoint of a boot may be where it began. */
	shard_checkpointed(shard, 103);
	shard_checkpointed(shard, 104);
	teardown();
}

TEST(the_log_asks_for_a_checkpoint)
{
	setup();
	boot();
	fake.trace[0] = '\0';
	disk.listener->pinning(disk.listener);
	EXPECT_STR(fake.trace, "");
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "checkpoint; ");
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "checkpoint; ");
	teardown();

	/* Before the core has started it is remembered. */
	setup();
	EXPECT_RC(open_shard(), RC_OK);
	disk.listener->pinning(disk.listener);
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "");
	shard_start(shard);
	hand_turn(&hand);
	sync_all();
	EXPECT_STR(fake.trace, "other 1 conf; checkpoint; ");
	teardown();
}

/* ---- damage ---- */

static void expect_refused(const char *text)
{
	uint64_t ticket = disk.ticket;

	memset(&why, 0, sizeof(why));
	EXPECT_RC(open_shard(), RC_CORRUPT);
	EXPECT_NULL(shard);
	EXPECT_HAS(why.text, "shard 3");
	EXPECT_HAS(why.text, text);
	EXPECT_HAS(why.text, "holdfast log verify");
	EXPECT_HAS(why.text, "may be lost");
	/* It leaves no trace. */
	EXPECT_UINT(disk.ticket, ticket);
	EXPECT_NULL(disk.listener);
}

/* Entries 1..n as a boot leaves them: a configuration, then commands. */
static void disk_fill(uint64_t first, uint64_t last, uint64_t term)
{
	struct step_member m[VOTERS_MAX];
	size_t bytes;
	void *conf;
	uint64_t i;

	for (i = 0; i < cfg.voters_n; i++)
		m[i] = (struct step_member){ cfg.voters[i].id,
					     cfg.voters[i].address };
	EXPECT_RC(step_conf_encode(m, cfg.voters_n, &conf, &bytes), RC_OK);
	for (i = first; i <= last; i++) {
		if (i == 1)
			disk_put(1, 1, STEP_CHANGE, conf, bytes);
		else
			disk_put(i, term, STEP_COMMAND, "0123456789", 10);
	}
	memcpy(fake.conf, conf, bytes);
	fake.conf_bytes = bytes;
	fake.conf_index = 1;
	free(conf);
	disk.ballot.term = term;
}

TEST(damaged_logs)
{
	setup();
	disk_fill(1, 5, 2);
	disk.damaged = true;
	expect_refused("its log is damaged");
	EXPECT_HAS(why.text, "a bad sector in segment 4");
	disk.damaged = false;

	cfg.ballot_good = false;
	expect_refused("both copies of its ballot are bad");
	cfg.ballot_good = true;

	disk.ballot.term = 1;
	expect_refused("the terms in the log do not fit the ballot");
	disk.ballot.term = 2;

	disk_put(7, 2, STEP_COMMAND, "x", 1);
	expect_refused("the log has a gap");
	records_cut(&disk, 5);

	disk_put(6, 1, STEP_COMMAND, "x", 1);
	expect_refused("the terms in the log do not fit the ballot");
	records_cut(&disk, 5);

	disk_put(6, 0, STEP_COMMAND, "x", 1);
	expect_refused("the terms in the log do not fit the ballot");
	records_cut(&disk, 5);

	disk_put(6, 2, 9, "x", 1);
	expect_refused("an entry of an unknown type");
	records_cut(&disk, 5);

	disk_put(6, 2, STEP_CHANGE, "garbage garbage", 15);
	expect_refused("a configuration in the log cannot be read");
	records_cut(&disk, 5);

	disk.base_index = 3;
	expect_refused("after a snapshot");
	disk.base_index = 0;

	/* Records that the log knows to be live, and does not have. */
	disk.floor = 5;
	expect_refused("the log lacks records");
	disk.floor = 0;

	/* And whole again. */
	EXPECT_RC(open_shard(), RC_OK);
	teardown();

	setup();
	disk_put(1, 1, STEP_COMMAND, "x", 1);
	disk.ballot.term = 1;
	expect_refused("does not begin with a configuration");
	teardown();

	setup();
	disk_fill(3, 5, 2);
	expect_refused("the log begins after the state ends");
	teardown();
}

TEST(states_that_do_not_fit)
{
	setup();
	disk_fill(1, 5, 2);
	state.index = 5;
	state.term = 1;
	state.conf = fake.conf;
	state.conf_bytes = fake.conf_bytes;
	state.conf_index = 1;
	expect_refused("the state is of another log");

	state.term = 2;
	state.index = 3;
	disk.floor = 4;
	expect_refused("the log begins after the state ends");
	disk.floor = 0;

	/* What the log had once is in no state that is ahead of it: others may
	 * be missing that were acknowledged after that one. */
	state.index = 9;
	expect_refused("the log ends before the state does");
	state.synced_index = 9;
	expect_refused("the log ends before the state does");
	state.synced_index = 0;

	memset(&why, 0, sizeof(why));
	state.index = 5;
	state.conf_bytes = 11;
	EXPECT_RC(open_shard(), RC_CORRUPT);
	EXPECT_HAS(why.text, "the configuration in its state");
	teardown();
}

TEST(not_one_of_the_members)
{
	setup();
	cfg.voters[0].id = 8;
	EXPECT_RC(open_shard(), RC_FOREIGN);
	EXPECT_HAS(why.text, "node 7 is not among its members");
	cfg.voters[0].id = 7;
	cfg.voters[1].id = 8;
	(void)snprintf(cfg.voters[1].address, sizeof(cfg.voters[1].address),
		       "node8");
	cfg.voters_n = 2;
	memcpy(cfg.voters[1].address, cfg.voters[0].address, 8);
	memset(&why, 0, sizeof(why));
	EXPECT_RC(open_shard(), RC_INVALID);
	EXPECT_HAS(why.text, "founders");
	cfg.voters_n = 0;
	EXPECT_RC(open_shard(), RC_INVALID);
	EXPECT_UINT(disk.ticket, 0);
	teardown();
}

/* ---- other voters ---- */

static struct shard_view view(void)
{
	struct shard_view v;

	shard_view(shard, &v);
	return v;
}

TEST(founders_write_the_same)
{
	struct record first[3];
	uint8_t copy[3][256];
	uint64_t term;
	unsigned i;

	for (i = 0; i < 3; i++) {
		setup();
		three_voters();
		cfg.node_id = NODE + i;
		EXPECT_RC(open_shard(), RC_OK);
		EXPECT_UINT(disk.n, 1);
		first[i] = disk.records[0];
		EXPECT_TRUE(first[i].e.bytes <= sizeof(copy[i]));
		memcpy(copy[i], first[i].e.data, first[i].e.bytes);
		EXPECT_UINT(first[i].e.index, 1);
		EXPECT_UINT(first[i].e.term, 1);
		EXPECT_UINT(first[i].e.type, STEP_CHANGE);
		EXPECT_UINT(disk.ballot_pending.term, 1);
		EXPECT_UINT(disk.ballot_pending.vote, 0);
		EXPECT_UINT(shard_voters(shard), 3);
		EXPECT_TRUE(shard_voter(shard, 9));
		EXPECT_FALSE(shard_voter(shard, 10));
		EXPECT_FALSE(shard_confirms(shard, 1));
		shard_start(shard);
		hand_turn(&hand);
		EXPECT_UINT(hand_timers(&hand), 0);
		sync_all();
		EXPECT_STR(fake.trace, "other 1 conf; ");
		EXPECT_UINT(hand_timers(&hand), 1);
		EXPECT_TRUE(shard_confirms(shard, 1));
		EXPECT_FALSE(shard_confirms(shard, 2));
		EXPECT_FALSE(shard_leads(shard, &term));
		EXPECT_INT(view().health, SHARD_WHOLE);
		EXPECT_STR(view().why, "");
		EXPECT_UINT(view().peers_n, 0);
		EXPECT_RC(shard_transfer(shard, 8), RC_NOT_LEADER);
		EXPECT_UINT(net.n, 0);
		/* A restart changes nothing. */
		kill_node();
		fake.applied = 0;
		EXPECT_RC(open_shard(), RC_OK);
		EXPECT_UINT(disk.ballot_ticket, 0);
		teardown();
	}
	for (i = 1; i < 3; i++) {
		EXPECT_UINT(first[i].e.bytes, first[0].e.bytes);
		EXPECT_MEM(copy[i], copy[0], first[0].e.bytes);
	}
}

/* As codec.c says at its top. */
#define ASKS_FOR_VOTE 3
#define ANSWERS_VOTE  4
#define GRANTED       4

static void ask_vote(uint64_t from, uint64_t term)
{
	uint8_t p[40] = { ASKS_FOR_VOTE, 2 };

	le_put64(p + 8, term);
	le_put64(p + 16, from);
	le_put64(p + 24, 5);
	le_put64(p + 32, 1);
	net.raft->received(net.raft, from, 1, p, sizeof(p));
}

static void boot_of_three(void)
{
	three_voters();
	EXPECT_RC(open_shard(), RC_OK);
	shard_start(shard);
	hand_turn(&hand);
	sync_all();
}

/* SO3. */
TEST(so3_a_vote_leaves_when_it_is_durable)
{
	struct shard_stats stats;

	setup();
	boot_of_three();
	ask_vote(8, 2);
	EXPECT_UINT(disk.ballot_pending.term, 2);
	EXPECT_UINT(disk.ballot_pending.vote, 8);
	EXPECT_UINT(net.n, 0);
	/* What comes after it does not overtake it. */
	ask_vote(9, 2);
	EXPECT_UINT(net.n, 0);
	hand_turn(&hand);
	batch_begin();
	hand_turn(&hand);
	EXPECT_UINT(net.n, 0);
	batch_end();
	EXPECT_UINT(net.n, 2);
	EXPECT_UINT(net.sent[0].to, 8);
	EXPECT_UINT(net.sent[0].ch, CHANNEL_RAFT);
	EXPECT_UINT(net.sent[0].p[0], ANSWERS_VOTE);
	EXPECT_TRUE((net.sent[0].p[2] & GRANTED) != 0);
	EXPECT_UINT(net.sent[1].to, 9);
	EXPECT_FALSE((net.sent[1].p[2] & GRANTED) != 0);
	shard_stats(shard, &stats);
	EXPECT_UINT(stats.held, 2);
	EXPECT_UINT(stats.messages_in, 2);
	EXPECT_UINT(stats.messages_out, 2);
	/* Now nothing is held. */
	ask_vote(9, 2);
	EXPECT_UINT(net.n, 3);
	teardown();
}

TEST(what_comes_from_peers_is_checked)
{
	struct shard_stats stats;

	setup();
	boot_of_three();
	net.raft->received(net.raft, 8, 1, (const uint8_t *)"x", 1);
	EXPECT_UINT(net.drops, 1);
	ask_vote(8, 1 + TERM_JUMP_MAX + 1);
	shard_stats(shard, &stats);
	EXPECT_UINT(stats.refused, 1);
	EXPECT_UINT(shard_term(shard), 1);
	EXPECT_UINT(net.n, 0);
	teardown();
}

/* Who has moved on may have voted for another owner already. */
TEST(a_voter_of_a_later_term_confirms_no_older_one)
{
	setup();
	boot_of_three();
	EXPECT_TRUE(shard_confirms(shard, 1));
	ask_vote(8, 2);
	EXPECT_UINT(shard_term(shard), 2);
	EXPECT_FALSE(shard_confirms(shard, 1));
	teardown();
}

/* A candidate whose ballot is not durable does not begin the next election. */
TEST(an_election_counts_from_its_ballot)
{
	unsigned i;

	setup();
	boot_of_three();
	for (i = 0; i < 10; i++)
		hand_advance(&hand, 100);
	/* Pre-votes need no ballot. */
	EXPECT_UINT(disk.ballot_ticket, 0);
	EXPECT_TRUE(net.n >= 2);
	EXPECT_UINT(net.sent[0].p[0], ASKS_FOR_VOTE);
	ask_vote(8, 2);
	net.n = 0;
	for (i = 0; i < 100; i++)
		hand_advance(&hand, 100);
	EXPECT_UINT(net.n, 0);
	EXPECT_UINT(shard_term(shard), 2);
	EXPECT_UINT(hand_timers(&hand), 0);
	sync_all();
	EXPECT_UINT(net.n, 1);
	hand_advance(&hand, 299);
	EXPECT_UINT(net.n, 1);
	for (i = 0; i < 10; i++)
		hand_advance(&hand, 100);
	EXPECT_TRUE(net.n > 1);
	teardown();
}

static void expect_abstains(const char *text)
{
	uint64_t ticket = disk.ticket;
	unsigned i;

	memset(&net, 0, sizeof(net));
	EXPECT_RC(open_shard(), RC_OK);
	EXPECT_INT(view().health, SHARD_LOG_BAD);
	EXPECT_HAS(view().why, text);
	EXPECT_FALSE(shard_confirms(shard, shard_term(shard)));
	EXPECT_UINT(shard_voters(shard), 3);
	EXPECT_UINT(shard_leader(shard), 0);
	shard_start(shard);
	hand_turn(&hand);
	/* It asks both others, and says nothing else. */
	EXPECT_UINT(net.n, 2);
	ask_vote(8, 9);
	for (i = 0; i < 10; i++)
		hand_advance(&hand, 100);
	EXPECT_UINT(net.n, 6);
	for (i = 0; i < net.n; i++) {
		EXPECT_INT(net.sent[i].ch, CHANNEL_SNAPSHOT);
		EXPECT_UINT(net.sent[i].p[0], 1);
		EXPECT_UINT(net.sent[i].p[1], 1);
		EXPECT_UINT(net.sent[i].to, 8 + i % 2);
	}
	EXPECT_UINT(disk.ticket, ticket);
	EXPECT_STR(fake.trace, "");
	shard_close(shard, on_closed, &closings);
	hand_turn(&hand);
	EXPECT_NULL(shard);
	EXPECT_NULL(net.raft);
	EXPECT_NULL(net.snapshot);
	hand_init(&hand);
}

TEST(damage_with_other_voters)
{
	setup();
	three_voters();
	disk_fill(1, 5, 2);
	disk.damaged = true;
	expect_abstains("its log is damaged (a bad sector in segment 4)");
	disk.damaged = false;
	cfg.ballot_good = false;
	expect_abstains("both copies of its ballot are bad");
	cfg.ballot_good = true;
	disk.ballot.term = 1;
	expect_abstains("the terms in the log do not fit the ballot");
	disk.ballot.term = 2;
	state.index = 9;
	state.term = 2;
	state.conf = fake.conf;
	state.conf_bytes = fake.conf_bytes;
	state.conf_index = 1;
	expect_abstains("the log ends before the state does");
	teardown();

	/* After `node reset`. */
	setup();
	three_voters();
	cfg.state_bad = true;
	expect_abstains("its disk was reset");
	disk.ballot.term = 4;
	expect_abstains("its state is bad, and its log has no records");
	teardown();

	/* The state of an install that is bad. */
	setup();
	three_voters();
	disk_fill(1, 5, 2);
	disk.ballot.state_hash[3] = 1;
	expect_abstains("a snapshot that was installed is bad");
	teardown();
}

/* Alone there is nobody to ask. */
TEST(a_bad_state_of_a_lone_voter)
{
	setup();
	disk_fill(1, 5, 2);
	cfg.state_bad = true;
	expect_refused("its state is bad");
	teardown();
}

/* A crash after the commit point of an install: the log is what it was. */
TEST(an_install_is_finished_at_start)
{
	setup();
	three_voters();
	disk_fill(1, 5, 2);
	state.index = 20;
	state.term = 2;
	state.synced_index = 20;
	state.conf = fake.conf;
	state.conf_bytes = fake.conf_bytes;
	state.conf_index = 1;
	disk.ballot.state_generation = 7;
	disk.ballot.state_hash[0] = 9;
	EXPECT_RC(open_shard(), RC_OK);
	EXPECT_INT(view().health, SHARD_WHOLE);
	EXPECT_UINT(disk.base_index, 20);
	EXPECT_UINT(disk.n, 0);
	EXPECT_UINT(shard_last_index(shard), 20);
	shard_start(shard);
	hand_turn(&hand);
	EXPECT_FALSE(shard_confirms(shard, 2));
	sync_all();
	/* The hash goes, and then it begins. */
	EXPECT_UINT(disk.ballot_pending.state_hash[0], 0);
	EXPECT_UINT(disk.ballot_pending.state_generation, 7);
	EXPECT_UINT(disk.ballot_pending.term, 2);
	EXPECT_FALSE(shard_confirms(shard, 2));
	sync_all();
	EXPECT_TRUE(shard_confirms(shard, 2));
	EXPECT_UINT(shard_commit_index(shard), 20);
	teardown();
}

/* The state goes bad while it is used. */
TEST(a_state_that_goes_bad)
{
	setup();
	boot_of_three();
	EXPECT_UINT(fake.applied, 1);
	shard_state_lost(shard, &(struct detail){ .text = "page 7" });
	hand_turn(&hand);
	EXPECT_INT(view().health, SHARD_STATE_BAD);
	EXPECT_STR(view().why, "its state is damaged: page 7");
	EXPECT_TRUE(shard_confirms(shard, 1));
	EXPECT_UINT(net.sent[0].ch, CHANNEL_SNAPSHOT);
	EXPECT_UINT(net.sent[0].p[1], 0);
	shard_state_lost(shard, &(struct detail){ .text = "again" });
	hand_turn(&hand);
	EXPECT_HAS(view().why, "page 7");
	teardown();

	setup();
	boot();
	fake.trace[0] = '\0';
	shard_state_lost(shard, &(struct detail){ .text = "page 7" });
	EXPECT_STR(fake.trace, "");
	hand_turn(&hand);
	EXPECT_STR(fake.trace, "lost 2; ");
	EXPECT_INT(view().health, SHARD_STUCK);
	EXPECT_HAS(view().why, "page 7");
	teardown();
}

/* ---- leading three ---- */

/* As codec.c says at its top. */
#define ANSWERS_ENTRIES 2
#define SAYS_STAND      6
#define PRE_VOTE        1

static void grant_vote(uint64_t from, uint64_t term, uint8_t flags)
{
	uint8_t p[16] = { ANSWERS_VOTE, 2, (uint8_t)(GRANTED | flags) };

	le_put64(p + 8, term);
	net.raft->received(net.raft, from, 1, p, sizeof(p));
	hand_turn(&hand);
}

/* Its log ends at `last`; `rejected`: what it was sent does not follow that. */
static void answer_entries(uint64_t from, uint64_t rejected, uint64_t last)
{
	uint8_t p[32] = { ANSWERS_ENTRIES, 2 };

	le_put64(p + 8, shard_term(shard));
	le_put64(p + 16, rejected);
	le_put64(p + 24, last);
	net.raft->received(net.raft, from, 1, p, sizeof(p));
	hand_turn(&hand);
}

/* In term 2, with all level at 2. */
static void lead_three(void)
{
	setup();
	boot_of_three();
	while (net.n == 0)
		hand_advance(&hand, 100);
	grant_vote(8, 2, PRE_VOTE);
	sync_all();
	grant_vote(8, 2, 0);
	sync_all();
	answer_entries(8, 0, 2);
	answer_entries(9, 0, 2);
	EXPECT_UINT(fake.term, 2);
	EXPECT_UINT(shard_applied_index(shard), 2);
	net.n = 0;
	fake.trace[0] = '\0';
}

static bool traced(const char *what)
{
	return strstr(fake.trace, what) != NULL;
}

/* As snapshot.c says at its top. */
#define WANTS      1
#define TELLS      2
#define BEGINS     3
#define SENDS      4
#define COPY_BYTES 100

static void say_short(uint64_t from, uint8_t kind, bool flag, uint64_t term)
{
	uint8_t p[16] = { kind, flag };

	le_put64(p + 8, term);
	net.snapshot->received(net.snapshot, from, 1, p, sizeof(p));
	hand_turn(&hand);
}

/* Who has lost its log may have acknowledged all that this leader has sent it,
 * which on a slow disk is more than has been applied here: a copy without it
 * would let it vote for who has not got it either. */
TEST(a_copy_contains_what_its_asker_acknowledged)
{
	lead_three();
	propose(3);
	answer_entries(8, 0, 5);
	EXPECT_UINT(shard_applied_index(shard), 2);
	say_short(8, WANTS, true, 0);
	hand_turn(&hand);
	EXPECT_FALSE(traced("export"));
	/* It is committed, with an acknowledgement that is worth nothing. */
	sync_all();
	EXPECT_UINT(shard_applied_index(shard), 5);
	hand_turn(&hand);
	EXPECT_FALSE(traced("export"));
	answer_entries(9, 0, 5);
	hand_turn(&hand);
	EXPECT_TRUE(traced("export"));
	teardown();
}

/* Under load it would never be level. */
TEST(nothing_is_proposed_while_the_leadership_is_handed_over)
{
	lead_three();
	propose(1);
	sync_all();
	EXPECT_RC(shard_transfer(shard, 8), RC_OK);
	EXPECT_UINT(view().transferee, 8);
	propose(1);
	EXPECT_UINT(fake.feed, 1);
	EXPECT_UINT(shard_last_index(shard), 3);
	net.n = 0;
	answer_entries(8, 0, 3);
	EXPECT_TRUE(net.n > 0);
	EXPECT_UINT(net.sent[net.n - 1].p[0], SAYS_STAND);
	EXPECT_UINT(net.sent[net.n - 1].to, 8);
	teardown();
}

TEST(a_voter_that_has_forgotten_is_handed_nothing)
{
	lead_three();
	answer_entries(8, 2, 1);
	EXPECT_RC(shard_transfer(shard, 8), RC_NO_QUORUM);
	EXPECT_RC(shard_transfer(shard, 0), RC_OK);
	EXPECT_UINT(view().transferee, 9);
	teardown();
}

/* ---- copies from a leader ---- */

static void offer(uint64_t from, uint64_t term, uint64_t index, bool rebuilds)
{
	uint8_t p[72 + sizeof(fake.conf)] = { BEGINS, rebuilds };

	le_put32(p + 4, (uint32_t)fake.conf_bytes);
	le_put64(p + 8, 42);
	le_put64(p + 16, term);
	le_put64(p + 24, index);
	le_put64(p + 32, 2);
	le_put64(p + 40, 1);
	le_put64(p + 48, COPY_BYTES);
	memcpy(p + 72, fake.conf, fake.conf_bytes);
	net.snapshot->received(net.snapshot, from, 1, p, 72 + fake.conf_bytes);
	hand_turn(&hand);
}

/* All of it is here, as generation 7. */
static void stage(void)
{
	static const uint8_t hash[16] = { 9 };
	uint8_t p[24 + COPY_BYTES] = { SENDS };

	le_put64(p + 8, 42);
	net.snapshot->received(net.snapshot, 8, 1, p, sizeof(p));
	hand_turn(&hand);
	shard_staged(shard, RC_OK);
	hand_turn(&hand);
	shard_stage_done(shard, RC_OK, 7, hash);
	hand_turn(&hand);
}

static void boot_absent(void)
{
	setup();
	three_voters();
	disk_fill(1, 5, 2);
	disk.damaged = true;
	state_from_fake();
	state.index = 5;
	state.term = 2;
	EXPECT_RC(open_shard(), RC_OK);
	EXPECT_INT(view().health, SHARD_LOG_BAD);
	shard_start(shard);
	hand_turn(&hand);
}

TEST(what_brings_back_a_lost_log)
{
	boot_absent();
	/* It may lack what was acknowledged here. */
	offer(8, 3, 20, false);
	EXPECT_FALSE(traced("stage"));
	/* The leader has left that term, or has less than there was. */
	offer(8, 1, 20, true);
	EXPECT_FALSE(traced("stage"));
	offer(8, 3, 4, true);
	EXPECT_FALSE(traced("stage"));
	offer(8, 3, 5, true);
	EXPECT_TRUE(traced("stage 5; "));
	teardown();
}

/* What an old leader sends has to be asked for again. */
TEST(a_state_is_taken_from_nobody_of_the_past)
{
	setup();
	boot_of_three();
	ask_vote(8, 3);
	sync_all();
	shard_state_lost(shard, &(struct detail){ .text = "page 7" });
	hand_turn(&hand);
	offer(9, 2, 1, false);
	EXPECT_FALSE(traced("stage"));
	offer(8, 3, 1, false);
	EXPECT_TRUE(traced("stage 1; "));
	teardown();
}

/* What the last answer to a question was. */
static void expect_told(bool lost, uint64_t term)
{
	net.n = 0;
	say_short(9, WANTS, false, 0);
	EXPECT_TRUE(net.n > 0);
	EXPECT_UINT(net.sent[0].to, 9);
	EXPECT_UINT(net.sent[0].p[0], TELLS);
	EXPECT_UINT(net.sent[0].p[1], lost);
	EXPECT_UINT(le_get64(net.sent[0].p + 8), term);
}

/* Its own term is known to nobody before there is a new one; and the records
 * that the copy replaces are not given up before the ballot names it. */
TEST(a_lost_ballot_is_replaced)
{
	setup();
	three_voters();
	disk_fill(1, 5, 2);
	disk.ballot.term = 0;
	cfg.ballot_good = false;
	EXPECT_RC(open_shard(), RC_OK);
	shard_start(shard);
	hand_turn(&hand);
	expect_told(true, 0);
	say_short(8, TELLS, false, 3);
	say_short(9, TELLS, false, 2);
	offer(8, 3, 20, true);
	stage();
	EXPECT_UINT(disk.base_index, 20);
	EXPECT_UINT(disk.ballot_pending.term, 4);
	EXPECT_UINT(disk.ballot_pending.state_generation, 7);
	EXPECT_UINT(disk.floor, 0);
	sync_all();
	EXPECT_UINT(disk.floor, 20);
	EXPECT_FALSE(traced("switch"));
	sync_all();
	EXPECT_TRUE(traced("switch 7; "));
	state_from_fake();
	state.index = 20;
	state.term = 2;
	shard_switched(shard, RC_OK, &state);
	hand_turn(&hand);
	EXPECT_INT(view().health, SHARD_WHOLE);
	EXPECT_UINT(shard_applied_index(shard), 20);
	expect_told(false, 4);
	teardown();
}

/* ---- halting ---- */

TEST(an_entry_that_cannot_be_digested)
{
	struct shard_stats stats;
	uint64_t term;

	setup();
	boot();
	fake.refuse_at = 4;
	fake.refuse_rc = RC_CORRUPT;
	fake.trace[0] = '\0';
	propose(3);
	disk.listener->pinning(disk.listener);
	sync_all();
	EXPECT_STR(fake.trace, "submitted 3; submitted 4; submitted 5; "
			       "committed 5; apply 3; apply 4; lost 2; ");
	EXPECT_FALSE(shard_leads(shard, &term));
	shard_stats(shard, &stats);
	EXPECT_TRUE(stats.halted);
	EXPECT_UINT(shard_applied_index(shard), 3);
	propose(1);
	sync_all();
	EXPECT_UINT(fake.feed, 1);
	shard_checkpointed(shard, 3);
	shard_close(shard, on_closed, &closings);
	hand_turn(&hand);
	EXPECT_UINT(closings, 1);
	teardown();
}

TEST(any_other_refusal_ends_the_process)
{
	setup();
	boot();
	fake.refuse_at = 3;
	fake.refuse_rc = RC_NOMEM;
	propose(1);
	sync_all();
	EXPECT_TRUE(hand.stopped);
	EXPECT_HAS(hand.why, "could not be applied");
	EXPECT_UINT(shard_applied_index(shard), 2);
	shard_want(shard);
	shard_checkpointed(shard, 2);
	teardown();
}

/* ---- closing ---- */

TEST(close_waits_for_the_disk)
{
	setup();
	boot();
	propose(1);
	fake.feed = 1;
	shard_want(shard);
	shard_close(shard, on_closed, &closings);
	EXPECT_UINT(closings, 0);
	hand_turn(&hand);
	EXPECT_UINT(closings, 0);
	EXPECT_UINT(fake.feed, 1);
	batch_begin();
	batch_end();
	EXPECT_UINT(closings, 0);
	hand_turn(&hand);
	EXPECT_UINT(closings, 1);
	EXPECT_HAS(fake.trace, "committed 3; apply 3; ");
	EXPECT_UINT(fake.feed, 1);
	EXPECT_NULL(disk.listener);
	teardown();
}

TEST(close_at_once_when_nothing_is_in_flight)
{
	setup();
	boot();
	shard_close(shard, on_closed, &closings);
	EXPECT_UINT(closings, 0);
	hand_turn(&hand);
	EXPECT_UINT(closings, 1);
	teardown();
}

TEST(close_before_the_core_has_started)
{
	unsigned i;

	for (i = 0; i < 2; i++) {
		setup();
		EXPECT_RC(open_shard(), RC_OK);
		if (i == 1) {
			shard_start(shard);
			hand_turn(&hand);
		}
		shard_close(shard, on_closed, &closings);
		hand_turn(&hand);
		EXPECT_UINT(closings, 0);
		sync_all();
		EXPECT_UINT(closings, 1);
		EXPECT_STR(fake.trace, "");
		teardown();
	}
}

static void close_now(void)
{
	fake.in_committed = NULL;
	shard_close(shard, on_closed, &closings);
}

TEST(close_from_inside_a_callback)
{
	setup();
	boot();
	fake.in_committed = close_now;
	propose(1);
	sync_all();
	EXPECT_UINT(closings, 1);
	EXPECT_HAS(fake.trace, "committed 3; apply 3; ");
	teardown();
}

TEST(discard_at_every_point)
{
	setup();
	EXPECT_RC(open_shard(), RC_OK);
	kill_node();
	EXPECT_RC(open_shard(), RC_OK);
	shard_start(shard);
	kill_node();
	EXPECT_RC(open_shard(), RC_OK);
	shard_start(shard);
	hand_turn(&hand);
	batch_begin();
	kill_node();
	boot();
	propose(5);
	kill_node();
	teardown();
}

/* ---- a long life ---- */

TEST(thousands_of_entries_over_many_lives)
{
	uint64_t stored = 0;
	uint64_t acknowledged;
	unsigned life;
	unsigned i;

	setup();
	fake.quiet = true;
	for (life = 0; life < 20; life++) {
		boot();
		acknowledged = 0;
		for (i = 0; i < 200; i++) {
			fake.feed_bytes = 1 + (i * 37) % 3000;
			propose(1 + i % 4);
			if (i % 3 == 0)
				sync_all();
			acknowledged = fake.committed;
			if (i % 50 == 49) {
				state_from_fake();
				state.synced_index = fake.applied;
				stored = fake.applied;
				shard_checkpointed(shard, stored);
			}
		}
		if (life % 2 == 0) {
			shard_close(shard, on_closed, &closings);
			sync_all();
			EXPECT_NULL(shard);
			power_cut();
			fake.term = 0;
			fake.committed = 0;
		} else {
			kill_node();
		}
		/* Everything that was committed is in the log or the state. */
		EXPECT_TRUE(disk.records[disk.n - 1].e.index >= acknowledged);
		fake.applied = stored;
		fake.applied_term = state.term;
	}
	boot();
	EXPECT_UINT(shard_applied_index(shard), shard_last_index(shard));
	EXPECT_UINT(shard_term(shard), 2 + 20);
	teardown();
}

/* ---- memory ---- */

/* A boot, two entries and a checkpoint with the n-th allocation failing: an
 * error, a clean stop, or all of it. */
static void life_with_fault(uint64_t nth)
{
	bool stopped;
	enum rc rc;

	fault_alloc(nth);
	rc = open_shard();
	if (rc == RC_OK) {
		shard_start(shard);
		hand_turn(&hand);
		sync_all();
		sync_all();
		fake.feed = 2;
		shard_want(shard);
		hand_turn(&hand);
		sync_all();
		sync_all();
		if (!hand.stopped && fake.applied == 6)
			shard_checkpointed(shard, 6);
	}
	(void)fault_off();
	stopped = hand.stopped;
	if (rc != RC_OK) {
		EXPECT_RC(rc, RC_NOMEM);
		EXPECT_NULL(shard);
	} else if (!stopped && fake.applied == 6) {
		EXPECT_UINT(disk.floor, 6);
	}
}

TEST(every_allocation_may_fail)
{
	uint64_t nth = 0;

	do {
		nth++;
		runner_context("allocation %u", (unsigned)nth);
		setup();
		disk_fill(1, 3, 2);
		life_with_fault(nth);
		teardown();
		EXPECT_TRUE(nth < 1000);
	} while (fault_fired());
	EXPECT_TRUE(nth > 10);
}
