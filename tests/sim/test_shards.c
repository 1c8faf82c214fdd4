/*
 * Four shards on the real log and ballot in the seeded world, with an app so
 * small that every loss shows: a state is a number and a chained hash, an entry
 * carries the numbers from..to, and what was committed is remembered outside.
 *
 * Crashes at every change of the disk, by kill and by power cut; the same with
 * mutants, which must not survive.
 */
#include "raft-glue/shard.h"

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/round.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define SHARDS      4u
#define NODE        1u
#define FLIGHT_MAX  256u
#define ENTRY_MAX   (48u << 10)
#define STATE_MAGIC 0x53544154u

static const uint8_t key[HASH_KEY_BYTES] = "chained history";

/* What a call was told, which no crash may take back. */
struct promise {
	uint64_t to;
	uint64_t chain;
};

/* A state file: two copies, each in a block of its own. */
struct saved {
	uint32_t magic;
	uint32_t conf_bytes;
	uint64_t counter;
	uint64_t index;
	uint64_t term;
	uint64_t conf_index;
	uint64_t to;
	uint64_t chain;
	uint8_t conf[128];
	uint64_t sum;
};

struct submitted {
	uint64_t index;
	uint64_t to;
	uint64_t chain;
};

struct node;

struct machine {
	struct app app;
	struct node *node;
	uint32_t number;
	struct shard *shard;
	struct saved now;    /* Applied. */
	struct saved saving; /* With the storage worker. */
	struct disk_file *file;
	struct env_job save;
	bool saving_now;
	bool leads;
	/* Proposed and not yet committed. */
	struct submitted flight[FLIGHT_MAX];
	unsigned flight_n;
	uint64_t tail_to;
	uint64_t tail_chain;
	uint64_t tail_next; /* What collect gave last. */
	uint64_t next_chain;
	unsigned asked; /* Calls that wait to be proposed. */
	struct round round;
	bool round_busy;
	struct env_timer load;
};

struct node {
	struct env *env;
	struct ballot *ballot;
	struct log *log;
	struct rounds *rounds;
	struct machine m[SHARDS];
	unsigned closed;
	bool log_closed;
	bool calm; /* No more load. */
};

static struct world *world;
static struct promise promised[SHARDS];
static uint64_t committed_total;
static uint64_t confirmed_total;
static uint64_t boots;
static unsigned deaths; /* By the fault of a run. */
static unsigned asked_by_log;
static const char *violation; /* The first. */

static const struct log_config log_cfg = {
	.shards = SHARDS,
	.segment_bytes = SEGMENT_BYTES_MIN,
	.bytes_max = 4 * SEGMENT_BYTES_MIN,
	.node_id = NODE,
};

static void violate(const char *what)
{
	if (violation == NULL)
		violation = what;
}

static uint64_t chain_of(uint64_t chain, const void *p, size_t n)
{
	uint8_t k[HASH_KEY_BYTES];

	memcpy(k, key, sizeof(k));
	memcpy(k, &chain, sizeof(chain));
	return crypto_siphash(k, p, n);
}

/* ---- the state file ---- */

static uint64_t saved_sum(const struct saved *s)
{
	return crypto_siphash(key, s, offsetof(struct saved, sum));
}

static enum rc saved_write(struct disk_file *f, struct saved *s)
{
	enum rc rc;

	s->magic = STATE_MAGIC;
	s->counter++;
	s->sum = saved_sum(s);
	rc = disk_write(f, s, sizeof(*s), (s->counter & 1) * 4096);
	return rc != RC_OK ? rc : disk_sync(f);
}

static void saved_read(struct disk_file *f, struct saved *out)
{
	struct saved s;
	size_t got;
	unsigned i;

	memset(out, 0, sizeof(*out));
	for (i = 0; i < 2; i++) {
		memset(&s, 0, sizeof(s));
		if (disk_read(f, &s, sizeof(s), i * 4096, &got) != RC_OK ||
		    got != sizeof(s) || s.magic != STATE_MAGIC ||
		    s.sum != saved_sum(&s))
			continue;
		if (s.counter > out->counter)
			*out = s;
	}
}

static void state_name(uint32_t number, char name[16])
{
	(void)snprintf(name, 16, "state-%u", number);
}

static void save_run(struct env_job *job)
{
	struct machine *m = CONTAINER_OF(job, struct machine, save);

	if (saved_write(m->file, &m->saving) != RC_OK)
		m->saving.magic = 0;
}

static void save_done(struct env_job *job)
{
	struct machine *m = CONTAINER_OF(job, struct machine, save);

	m->saving_now = false;
	if (m->saving.magic == 0) {
		env_fail_stop(m->node->env, "the state could not be written");
		return;
	}
	m->now.counter = m->saving.counter;
	shard_checkpointed(m->shard, m->saving.index);
}

static void machine_save(struct machine *m)
{
	if (m->saving_now)
		return;
	m->saving_now = true;
	m->saving = m->now;
	env_work(m->node->env, ENV_WORKER_STORAGE, &m->save);
}

/* ---- the app ---- */

static struct machine *machine_of(struct app *a)
{
	return CONTAINER_OF(a, struct machine, app);
}

static void app_lead(struct app *a, uint64_t term)
{
	struct machine *m = machine_of(a);
	const struct promise *p = &promised[m->number];

	if (m->now.term != term || m->now.to < p->to)
		violate("it leads without all that was committed");
	m->leads = true;
	m->flight_n = 0;
	m->tail_to = m->now.to;
	m->tail_chain = m->now.chain;
}

static void app_lost(struct app *a, uint64_t term)
{
	(void)term;
	machine_of(a)->leads = false;
}

static bool app_collect(struct app *a, uint64_t term, void **data,
			size_t *bytes)
{
	struct machine *m = machine_of(a);
	uint64_t from = m->tail_to + 1;
	size_t n = 32 + (size_t)world_random(world, ENTRY_MAX);
	uint8_t *p;

	(void)term;
	if (m->asked == 0 || m->flight_n == FLIGHT_MAX)
		return false;
	p = calloc(1, n);
	CHECK(p != NULL);
	m->tail_next = m->tail_to + m->asked;
	m->asked = 0;
	memcpy(p, &from, 8);
	memcpy(p + 8, &m->tail_next, 8);
	memcpy(p + 16, &boots, 8);
	m->next_chain = chain_of(m->tail_chain, p, n);
	*data = p;
	*bytes = n;
	return true;
}

static void app_submitted(struct app *a, uint64_t term, uint64_t index)
{
	struct machine *m = machine_of(a);

	(void)term;
	m->tail_to = m->tail_next;
	m->tail_chain = m->next_chain;
	m->flight[m->flight_n++] =
		(struct submitted){ index, m->tail_to, m->tail_chain };
}

static void app_refused(struct app *a, enum rc rc)
{
	(void)a;
	(void)rc;
	violate("a lone leader refuses an entry");
}

static void app_committed(struct app *a, uint64_t index)
{
	struct machine *m = machine_of(a);
	unsigned n = 0;

	while (n < m->flight_n && m->flight[n].index <= index) {
		promised[m->number].to = m->flight[n].to;
		promised[m->number].chain = m->flight[n].chain;
		committed_total++;
		n++;
	}
	m->flight_n -= n;
	memmove(m->flight, m->flight + n, m->flight_n * sizeof(m->flight[0]));
}

static enum rc app_apply(struct app *a, uint64_t index, uint64_t term,
			 const void *data, size_t bytes)
{
	struct machine *m = machine_of(a);
	const struct promise *p = &promised[m->number];
	uint64_t from;
	uint64_t to;

	memcpy(&from, data, 8);
	memcpy(&to, (const uint8_t *)data + 8, 8);
	if (index != m->now.index + 1 || term < m->now.term)
		violate("entries are applied out of order");
	if (from != m->now.to + 1)
		violate("an entry is of another history");
	if (index > shard_commit_index(m->shard) ||
	    index > shard_durable_index(m->shard))
		violate("an entry is applied before it is durable");
	m->now.index = index;
	m->now.term = term;
	m->now.to = to;
	m->now.chain = chain_of(m->now.chain, data, bytes);
	if (from <= p->to && to > p->to)
		violate("a committed entry is another one now");
	if (to == p->to && m->now.chain != p->chain)
		violate("committed bytes have changed");
	return RC_OK;
}

static enum rc app_applied_other(struct app *a, uint64_t index, uint64_t term,
				 const void *conf, size_t conf_bytes)
{
	struct machine *m = machine_of(a);

	if (index != m->now.index + 1 || term < m->now.term)
		violate("entries are applied out of order");
	m->now.index = index;
	m->now.term = term;
	if (conf != NULL) {
		CHECK(conf_bytes <= sizeof(m->now.conf));
		memcpy(m->now.conf, conf, conf_bytes);
		m->now.conf_bytes = (uint32_t)conf_bytes;
		m->now.conf_index = index;
	}
	return RC_OK;
}

static void app_checkpoint(struct app *a)
{
	asked_by_log++;
	machine_save(machine_of(a));
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
};

/* ---- load ---- */

static void round_done(struct round *req, enum rc rc)
{
	struct machine *m = CONTAINER_OF(req, struct machine, round);

	m->round_busy = false;
	if (rc == RC_OK)
		confirmed_total++;
	else if (rc != RC_CANCELLED)
		violate("a lone leader cannot confirm itself");
}

/* Shard 0 is hot, shard 3 nearly cold: its few records pin the log. */
static void load_fired(struct env_timer *t)
{
	struct machine *m = CONTAINER_OF(t, struct machine, load);
	uint64_t pause = 1 + m->number * m->number * 4;

	if (m->node->calm)
		return;
	if (m->leads) {
		m->asked += 1 + (unsigned)world_random(world, 3);
		shard_want(m->shard);
		if (!m->round_busy &&
		    round_start(m->node->rounds, &m->round, m->shard,
				round_done) == RC_OK)
			m->round_busy = true;
		if (world_random(world, 40) == 0)
			machine_save(m);
	}
	env_timer_start(t, env_now_ms(t->env) + 1 + world_random(world, pause));
}

/* ---- a node ---- */

static void disk_format(struct disk *disk)
{
	struct disk_file *f;
	char name[16];
	uint32_t i;

	EXPECT_RC(ballot_format(disk, SHARDS, NULL), RC_OK);
	EXPECT_RC(log_format(disk, &log_cfg, NULL), RC_OK);
	for (i = 0; i < SHARDS; i++) {
		state_name(i, name);
		EXPECT_RC(disk_open(disk, name, DISK_CREATE, &f, NULL), RC_OK);
		EXPECT_RC(disk_sync(f), RC_OK);
		disk_close(f);
	}
	EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
}

/* What was read is not durable: written again before it counts. */
static enum rc machine_open(struct machine *m, struct disk *disk)
{
	char name[16];
	enum rc rc;

	state_name(m->number, name);
	rc = disk_open(disk, name, 0, &m->file, NULL);
	if (rc != RC_OK)
		return rc;
	saved_read(m->file, &m->now);
	return m->now.counter > 0 ? saved_write(m->file, &m->now) : RC_OK;
}

static enum rc machine_start(struct machine *m, struct detail *why)
{
	const struct saved *now = &m->now;
	struct shard_state state = {
		.index = now->index,
		.term = now->term,
		.synced_index = now->index,
		.conf_index = now->conf_index,
		.conf = now->index > 0 ? now->conf : NULL,
		.conf_bytes = now->conf_bytes,
	};
	struct shard_config cfg = {
		.shard = m->number,
		.node_id = NODE,
		.voters = { { .id = NODE, .address = "alone" } },
		.voters_n = 1,
		.election_ms = 300,
		.heartbeat_ms = 50,
		.ballot = ballot_get(m->node->ballot, m->number),
		.ballot_good = ballot_good(m->node->ballot, m->number),
	};

	return shard_open(m->node->env, m->node->log, NULL, &m->app, &cfg,
			  &state, &m->shard, why);
}

static void machine_init(struct machine *m, struct node *node, uint32_t number)
{
	m->app.ops = &ops;
	m->node = node;
	m->number = number;
	m->save.run = save_run;
	m->save.done = save_done;
	env_timer_init(&m->load, node->env, load_fired);
}

static enum rc node_boot(struct node *n, struct detail *why)
{
	struct disk *disk = world_disk(world, 0);
	uint64_t floors[SHARDS];
	enum rc rc;
	uint32_t i;

	memset(n, 0, sizeof(*n));
	n->env = world_env(world, 0);
	boots++;
	for (i = 0; i < SHARDS; i++) {
		machine_init(&n->m[i], n, i);
		rc = machine_open(&n->m[i], disk);
		if (rc != RC_OK)
			return rc;
		floors[i] = n->m[i].now.index;
	}
	rc = ballot_open(disk, SHARDS, &n->ballot, why);
	if (rc == RC_OK)
		rc = log_open(n->env, disk, n->ballot, &log_cfg, floors,
			      &n->log, why);
	if (rc == RC_OK)
		rc = rounds_new(n->env, NULL, NULL, NULL, &n->rounds);
	for (i = 0; i < SHARDS && rc == RC_OK; i++)
		rc = machine_start(&n->m[i], why);
	for (i = 0; i < SHARDS && rc == RC_OK; i++) {
		shard_start(n->m[i].shard);
		env_timer_start(&n->m[i].load, env_now_ms(n->env) + 1);
	}
	return rc;
}

static void node_discard(struct node *n)
{
	uint32_t i;

	for (i = 0; i < SHARDS; i++) {
		if (n->m[i].shard != NULL)
			shard_discard(n->m[i].shard);
		if (n->m[i].file != NULL)
			disk_close(n->m[i].file);
	}
	if (n->rounds != NULL)
		rounds_discard(n->rounds);
	if (n->log != NULL)
		log_discard(n->log);
	if (n->ballot != NULL)
		ballot_close(n->ballot);
	memset(n, 0, sizeof(*n));
}

static void on_shard_closed(void *arg)
{
	struct machine *m = arg;

	m->shard = NULL;
	m->node->closed++;
}

static void on_log_closed(void *arg)
{
	struct node *n = arg;

	n->log = NULL;
	n->log_closed = true;
}

static bool node_saving(const struct node *n)
{
	uint32_t i;

	for (i = 0; i < SHARDS; i++)
		if (n->m[i].saving_now)
			return true;
	return false;
}

/* A clean end: all that was proposed is committed. */
static void node_close(struct node *n)
{
	uint64_t until = world_now_ms(world) + 20000;
	uint32_t i;

	n->calm = true;
	while (node_saving(n) && world_alive(world, 0))
		EXPECT_TRUE(world_step(world));
	for (i = 0; i < SHARDS; i++) {
		env_timer_stop(&n->m[i].load);
		rounds_cancel(n->rounds, n->m[i].shard);
		shard_close(n->m[i].shard, on_shard_closed, &n->m[i]);
	}
	while (n->closed < SHARDS && world_now_ms(world) < until)
		EXPECT_TRUE(world_step(world));
	EXPECT_UINT(n->closed, SHARDS);
	for (i = 0; i < SHARDS; i++)
		EXPECT_UINT(n->m[i].flight_n, 0);
	rounds_free(n->rounds);
	n->rounds = NULL;
	log_close(n->log, on_log_closed, n);
	while (!n->log_closed && world_now_ms(world) < until)
		EXPECT_TRUE(world_step(world));
	EXPECT_TRUE(n->log_closed);
	node_discard(n);
	world_kill(world, 0);
}

static bool node_leads(const struct node *n)
{
	uint32_t i;

	for (i = 0; i < SHARDS; i++)
		if (!n->m[i].leads)
			return false;
	return true;
}

/* ---- runs ---- */

enum end { END_KILL, END_POWER };

static struct node node;

static void run_begin(uint64_t seed)
{
	world = world_new(seed);
	memset(promised, 0, sizeof(promised));
	committed_total = 0;
	confirmed_total = 0;
	boots = 0;
	asked_by_log = 0;
	violation = NULL;
	disk_format(world_disk(world, 0));
}

static void run_end(void)
{
	world_free(world);
}

static void die(enum end end)
{
	node_discard(&node);
	if (end == END_KILL)
		world_kill(world, 0);
	else
		world_power_cut(world, 0);
}

/* Boots until it stands; a start that is refused is a violation: nothing but
 * crashes happened to this disk. */
static bool stand_up(enum end end)
{
	struct detail why;
	enum rc rc;
	unsigned i;

	for (i = 0; i < 20; i++) {
		memset(&why, 0, sizeof(why));
		rc = node_boot(&node, &why);
		if (rc == RC_OK)
			return true;
		if (world_alive(world, 0) && rc != RC_IO && rc != RC_NO_SPACE) {
			runner_context("%s: %s", rc_name(rc), why.text);
			violate("a node does not start");
			return false;
		}
		die(end);
	}
	violate("a node never starts");
	return false;
}

static void run_ms(uint64_t ms)
{
	uint64_t until = world_now_ms(world) + ms;

	while (world_now_ms(world) < until && world_alive(world, 0) &&
	       violation == NULL && world_step(world))
		;
}

/* One life with a fault in it, an end, one life more. */
static void run_fault(uint64_t seed, enum end end,
		      const struct world_fault *fault)
{
	run_begin(seed);
	world_fault(world, 0, fault);
	if (stand_up(end)) {
		run_ms(60);
		deaths += !world_alive(world, 0);
		if (violation == NULL) {
			die(end);
			world_faults_clear(world, 0);
			if (seed % 3 == 0)
				world_drop_caches(world, 0);
			if (stand_up(end)) {
				run_ms(80);
				if (violation == NULL && !node_leads(&node))
					violate("it does not lead again");
			}
		}
	}
	node_discard(&node);
	run_end();
}

static void run_crash(uint64_t seed, uint64_t nth, enum end end, bool before)
{
	run_fault(
		seed, end,
		&(struct world_fault){
			.kind = before ? WORLD_CRASH_BEFORE : WORLD_CRASH_AFTER,
			.op = WORLD_CHANGE,
			.nth = nth,
		});
}

TEST(a_calm_life)
{
	unsigned i;

	run_begin(1);
	for (i = 0; i < 3; i++) {
		EXPECT_TRUE(stand_up(END_KILL));
		run_ms(400);
		EXPECT_NULL(violation);
		EXPECT_TRUE(node_leads(&node));
		node_close(&node);
	}
	EXPECT_TRUE(committed_total > 500);
	EXPECT_TRUE(confirmed_total > 500);
	/* The cold shards were asked to let the log go on. */
	EXPECT_TRUE(asked_by_log > 0);
	run_end();
}

TEST(the_same_seed_is_the_same_run)
{
	uint64_t hash[2];
	unsigned i;

	for (i = 0; i < 2; i++) {
		run_begin(77);
		EXPECT_TRUE(stand_up(END_POWER));
		run_ms(100);
		die(END_POWER);
		EXPECT_TRUE(stand_up(END_POWER));
		run_ms(50);
		hash[i] = world_hash(world);
		node_discard(&node);
		run_end();
	}
	EXPECT_UINT(hash[1], hash[0]);
}

TEST(crashes_at_every_change_of_the_disk)
{
	uint64_t nth;

	deaths = 0;
	for (nth = 1; nth <= 160; nth++) {
		runner_context("crash at change %u", (unsigned)nth);
		run_crash(nth, nth, nth % 2 ? END_POWER : END_KILL,
			  nth % 4 < 2);
		if (violation != NULL)
			FAIL("%s", violation);
	}
	/* In the others it died at its first boot, or lived. */
	runner_context("%u deaths", deaths);
	EXPECT_TRUE(deaths > 100);
}

/* A write or sync fails: the node stops, acknowledges nothing after it, and
 * starts well. */
TEST(faults_at_every_change_of_the_disk)
{
	static const enum world_fault_kind kinds[] = { WORLD_EIO, WORLD_SHORT,
						       WORLD_NO_SPACE };
	struct world_fault fault = { .op = WORLD_CHANGE };
	uint64_t nth;

	deaths = 0;
	for (nth = 1; nth <= 100; nth++) {
		fault.kind = kinds[nth % ARRAY_LEN(kinds)];
		fault.op =
			fault.kind == WORLD_SHORT ? WORLD_WRITE : WORLD_CHANGE;
		fault.nth = nth;
		runner_context("fault at change %u", (unsigned)nth);
		run_fault(5000 + nth, nth % 2 ? END_POWER : END_KILL, &fault);
		if (violation != NULL)
			FAIL("%s", violation);
	}
	runner_context("%u deaths", deaths);
	EXPECT_TRUE(deaths > 60);
}

/* Many deaths of one disk, the log recycled on the way. */
TEST(a_life_of_crashes)
{
	unsigned i;

	run_begin(5);
	for (i = 0; i < 60; i++) {
		runner_context("life %u", i);
		if (stand_up(END_POWER))
			run_ms(20 + world_random(world, 60));
		if (violation != NULL)
			FAIL("%s", violation);
		die(i % 3 == 0 ? END_KILL : END_POWER);
	}
	EXPECT_TRUE(committed_total > 200);
	run_end();
}

/* ---- mutants ---- */

/* The number of seeds it took, 0: it survived. */
static unsigned mutant_dies(enum mutant m, unsigned seeds)
{
	unsigned n;

	for (n = 1; n <= seeds; n++) {
		mutant_now = m;
		run_crash(1000 + n, 10 + n * 7, END_POWER, n % 2);
		mutant_now = MUTANT_none;
		if (violation != NULL)
			return n;
	}
	return 0;
}

TEST(mutants_die)
{
	static const enum mutant mutants[] = {
		MUTANT_apply_undurable,
		MUTANT_execute_without_tail,
		MUTANT_log_no_sync,
		MUTANT_log_ack_before_sync,
	};
	unsigned took;
	size_t i;

	for (i = 0; i < ARRAY_LEN(mutants); i++) {
		took = mutant_dies(mutants[i], 40);
		printf("     %s: seed %u, %s\n", mutant_name(mutants[i]), took,
		       violation != NULL ? violation : "it lives");
		EXPECT_TRUE(took > 0);
	}
}
