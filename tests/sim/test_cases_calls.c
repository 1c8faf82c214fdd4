/*
 * Cases of tests/README.md that callers of a whole cluster see: owners that are
 * frozen, cut off and killed, reads, keys, held answers. Three cores in the
 * seeded world; each test is one schedule and bears the id of its case.
 */
#include "objects/directory_class.h"
#include "raft-glue/shard.h"
#include "tests/lib/cluster_rig.h"

#define LONG "{'deadline_ms':60000}"

static char object[32];  /* An object of default/dev, */
static unsigned owner;   /* who owns it, */
static unsigned entry;   /* who does not, */
static unsigned another; /* and who neither. */
static uint32_t shard;

static void pick(const char *cls)
{
	unsigned i = 0;

	do {
		snprintf(object, sizeof(object), "%s/o%u", cls, i++);
		shard = cluster_shard(cls, strchr(object, '/') + 1);
		owner = cluster_owner(shard);
	} while (owner == 0 || shard == 0);
	entry = owner == 1 ? 2 : 1;
	another = 6 - owner - entry;
}

static void boot_all(void)
{
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		cluster_boot(i);
	cluster_settle();
}

/* Leaderships stay where they are: what moves them is the test. */
static void begin(uint64_t seed)
{
	cluster_new(3, seed);
	rig.cfg.spread = false;
	boot_all();
	pick("kv");
}

static bool leads(unsigned id)
{
	return cl.at[id].core != NULL &&
	       route_find(core_bridge(cl.at[id].core, shard)).to == ROUTE_HERE;
}

static bool other_leads(void)
{
	return leads(entry) || leads(another);
}

/* Somebody else has taken over; who. */
static unsigned next_owner(void)
{
	if (!cluster_until(other_leads, 5000))
		FAIL("nobody takes over");
	return leads(entry) ? entry : another;
}

static struct told *incr(unsigned id, const char *options)
{
	return cluster_start(id, "me", object, "incr", "{'key':'n'}", options);
}

static struct told *get(unsigned id, const char *options)
{
	return cluster_start(id, "me", object, "get", "{'key':'n'}", options);
}

static uint64_t value_of(const struct told *t)
{
	return say_u64(rig_result(t), "value");
}

static void expect_value(struct told *t, uint64_t want)
{
	(void)rig_wait(t);
	if (t->rc != RC_OK)
		FAIL("%s: %s", rc_name(t->rc), t->why.text);
	EXPECT_UINT(value_of(t), want);
}

static void expect_no_value(struct told *t)
{
	(void)rig_wait(t);
	if (t->rc == RC_OK)
		FAIL("answered %s", say_text(rig_result(t)));
	/* Those that waited for an owner come to it all at once. */
	EXPECT_TRUE(t->rc == RC_NOT_OWNER || t->rc == RC_NO_QUORUM ||
		    t->rc == RC_UNKNOWN_OUTCOME || t->rc == RC_DEADLINE ||
		    t->rc == RC_OVERLOADED);
}

/* Microseconds of virtual time. */
static void run_us(uint64_t us)
{
	uint64_t end = world_now_ns(rig.w) + us * 1000;

	while (world_now_ns(rig.w) < end && world_step(rig.w))
		;
}

static struct shard *shard_at(unsigned id)
{
	return bridge_shard(core_bridge(cl.at[id].core, shard));
}

/* ---- single owner ---- */

TEST(so4_an_owner_that_thaws_says_nothing_of_its_term)
{
	struct told *t[60];
	struct told *reads[10];
	unsigned next;
	unsigned i;

	begin(401);
	for (i = 0; i < 5; i++)
		expect_value(incr(owner, NULL), i + 1);
	/* These are carried out, and nothing of them has left, */
	net_cut(cl.net, owner - 1, entry - 1);
	net_cut(cl.net, owner - 1, another - 1);
	for (i = 0; i < 20; i++)
		t[i] = incr(owner, LONG);
	run_us(20);
	world_pause(rig.w, owner - 1, 10000);
	/* and these wait for it. */
	for (; i < 60; i++)
		t[i] = incr(i % 3 == 0 ? entry : owner, LONG);
	for (i = 0; i < 10; i++)
		reads[i] = get(owner, LONG);
	next = next_owner();
	for (i = 0; i < 3; i++)
		expect_value(incr(next, NULL), 6 + i);
	net_mend_all(cl.net);
	EXPECT_TRUE(world_paused(rig.w, owner - 1));
	cluster_run(12000);
	/* A read that it sends on to the next owner has what that one says. */
	for (i = 0; i < 10; i++)
		if (rig_wait(reads[i])->rc == RC_OK)
			expect_value(reads[i], 8);
		else
			expect_no_value(reads[i]);
	for (i = 0; i < 60; i++)
		expect_no_value(t[i]);
	/* It owns the shard again, and knows nothing of what it computed. */
	cluster_settle();
	EXPECT_RC(core_transfer(cl.at[next].core, shard, owner), RC_OK);
	for (i = 0; i < 1000 && cluster_owner(shard) != owner; i++)
		cluster_run(5);
	EXPECT_UINT(cluster_owner(shard), owner);
	expect_value(get(owner, NULL), 8);
	expect_value(incr(owner, NULL), 9);
	cluster_end();
}

TEST(so5_a_minority_with_clients_answers_nothing)
{
	struct told *few[120];
	struct told *many[120];
	uint64_t value = 0;
	unsigned ok = 0;
	unsigned i;

	begin(402);
	expect_value(incr(owner, NULL), 1);
	cluster_isolate(owner);
	for (i = 0; i < 120; i++) {
		few[i] = i % 2 == 0 && i > 10 ? incr(owner, LONG)
					      : get(owner, LONG);
		many[i] = incr(i % 2 == 0 ? entry : another, NULL);
		cluster_run(20);
	}
	for (i = 0; i < 120; i++) {
		(void)rig_wait(many[i]);
		if (many[i]->rc != RC_OK)
			continue;
		/* Nobody else's is between them. */
		EXPECT_UINT(value_of(many[i]),
			    value == 0 ? value_of(many[i]) : value + 1);
		value = value_of(many[i]);
		ok++;
	}
	EXPECT_TRUE(ok > 50);
	for (i = 0; i < 120; i++)
		expect_no_value(few[i]);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_run(1000);
	expect_value(get(owner, NULL), value);
	/* Of the calls at the cut that nobody answered some may be in it. */
	EXPECT_TRUE(value >= ok + 1);
	EXPECT_TRUE(value <= 121);
	cluster_end();
}

TEST(so7_two_calls_to_an_object_that_was_evicted)
{
	struct told *a;
	struct told *b;
	struct told *c;
	unsigned round;

	cluster_new(3, 403);
	rig.cfg.spread = false;
	rig.cfg.object_idle_ms = 20;
	rig.cfg.window_ms = 10;
	boot_all();
	pick("kv");
	expect_value(incr(owner, NULL), 1);
	for (round = 0; round < 5; round++) {
		cluster_run(3000);
		a = incr(owner, NULL);
		b = incr(owner, NULL);
		c = incr(entry, NULL);
		expect_value(a, 3 * round + 2);
		expect_value(b, 3 * round + 3);
		expect_value(c, 3 * round + 4);
	}
	cluster_end();
}

/*
 * What the owner and node 3 alone have is acknowledged; then the owner is gone
 * and node 3 comes back with `change` done to its disk. With node 2, which has
 * nothing of it, it must not make a majority.
 */
static void other_disk(uint64_t seed, void (*before)(unsigned id),
		       void (*change)(unsigned id))
{
	unsigned i;

	begin(seed);
	before(another);
	expect_value(incr(owner, NULL), 1);
	cluster_isolate(entry);
	cluster_run(1000);
	for (i = 0; i < 5; i++)
		expect_value(incr(owner, NULL), 2 + i);
	cluster_kill(another);
	cluster_kill(owner);
	change(another);
	net_mend_all(cl.net);
	cluster_boot(another);
	for (i = 0; i < 20; i++) {
		struct told *t = get(entry, "{'deadline_ms':500}");

		(void)rig_wait(t);
		if (t->rc == RC_OK)
			FAIL("a majority without what was acknowledged: %s",
			     say_text(rig_result(t)));
		EXPECT_RC(t->rc, RC_NO_QUORUM);
		cluster_run(200);
	}
	cluster_end();
}

static void nothing(unsigned id)
{
	(void)id;
}

static void other_incarnation(unsigned id)
{
	struct member *m = &cl.members[id - 1];
	struct member was = *m;
	unsigned i;

	world_wipe(rig.w, id - 1);
	memset(m->incarnation, 99, ID_BYTES);
	cluster_format(id);
	*m = was;
	/* Not known by the number of its boots alone. */
	for (i = 0; i < 5; i++) {
		cluster_boot(id);
		cluster_run(20);
		cluster_kill(id);
	}
}

TEST(so8_a_voter_with_an_empty_disk_is_refused)
{
	other_disk(404, nothing, other_incarnation);
}

static void keep_disk(unsigned id)
{
	world_clone(rig.w, id - 1, 6);
	cluster_kill(id);
	cluster_boot(id);
	cluster_settle();
}

static void older_disk(unsigned id)
{
	world_clone(rig.w, 6, id - 1);
}

TEST(so8_a_voter_with_an_older_disk_is_refused)
{
	other_disk(405, keep_disk, older_disk);
}

/* ---- the output gate ---- */

TEST(og2_held_answers_are_unknown_when_the_leadership_is_lost)
{
	struct told *t[100];
	unsigned i;

	begin(411);
	expect_value(incr(owner, NULL), 1);
	cluster_isolate(owner);
	for (i = 0; i < 100; i++)
		t[i] = incr(owner, LONG);
	cluster_run(5000);
	for (i = 0; i < 100; i++) {
		EXPECT_TRUE(t[i]->done);
		EXPECT_RC(t[i]->rc, RC_UNKNOWN_OUTCOME);
		EXPECT_INT(t[i]->outcome, OUTCOME_UNKNOWN);
	}
	expect_value(incr(entry, NULL), 2);
	cluster_end();
}

/* A read of what is not committed is answered with it, or not at all. */
TEST(og3_an_answer_waits_for_the_effects_it_saw)
{
	const struct world_latency slow = { 400000, 400001, 0, 1 };
	struct told *write;
	struct told *read;
	struct told *other;

	begin(412);
	expect_value(incr(owner, NULL), 1);
	EXPECT_RC(cluster_ask(owner, "me", object, "put",
			      "{'key':'m','value':7}", NULL)
			  ->rc,
		  RC_OK);
	world_latency(rig.w, entry - 1, ENV_WORKER_LOG, &slow);
	world_latency(rig.w, another - 1, ENV_WORKER_LOG, &slow);
	write = incr(owner, LONG);
	read = get(owner, LONG);
	other = cluster_start(another, "me", object, "get", "{'key':'n'}",
			      LONG);
	cluster_run(100);
	EXPECT_TRUE(leads(owner));
	EXPECT_FALSE(write->done);
	EXPECT_FALSE(read->done);
	EXPECT_FALSE(other->done);
	/* They die with it: the value was never there. */
	cluster_kill(entry);
	cluster_kill(another);
	cluster_run(3000);
	expect_no_value(write);
	expect_no_value(read);
	cluster_end();
}

static void put_large(void)
{
	char *args = malloc(VALUE_BYTES_MAX + 64);
	int n = snprintf(args, 64, "{'key':'k','value':'");

	memset(args + n, 'v', VALUE_BYTES_MAX);
	memcpy(args + n + VALUE_BYTES_MAX, "'}", 3);
	EXPECT_RC(cluster_ask(owner, "me", object, "put", args, NULL)->rc,
		  RC_OK);
	free(args);
}

/* Commits stall for half a minute under load: what is held stays within its
 * bound, more is refused, and all of it leaves in order. */
TEST(og6_what_is_held_in_a_stall_is_bounded)
{
	enum { CALLS = 300 };
	const struct world_latency stall = { 30000000, 30000001, 0, 1 };
	static struct told *t[CALLS];
	struct told *write;
	uint64_t from;
	uint64_t last = 0;
	unsigned ok = 0;
	unsigned i;

	cluster_segment_bytes = 4u << 20;
	cluster_new(3, 413);
	rig.cfg.spread = false;
	rig.cfg.calls_max = 2 * CALLS;
	boot_all();
	pick("kv");
	put_large();
	cluster_run(1000);
	world_latency(rig.w, entry - 1, ENV_WORKER_LOG, &stall);
	world_latency(rig.w, another - 1, ENV_WORKER_LOG, &stall);
	from = world_now_ms(rig.w);
	write = incr(owner, LONG);
	for (i = 0; i < CALLS; i++)
		t[i] = cluster_start(owner, "me", object, "get", "{'key':'k'}",
				     LONG);
	cluster_run(20000);
	EXPECT_TRUE(leads(owner));
	EXPECT_FALSE(write->done);
	for (i = 0; i < CALLS; i++) {
		if (!t[i]->done) {
			ok++;
			continue;
		}
		EXPECT_RC(t[i]->rc, RC_OVERLOADED);
		EXPECT_INT(t[i]->outcome, OUTCOME_REFUSED);
		EXPECT_TRUE(t[i]->retry_after_ms > 0);
	}
	EXPECT_TRUE(ok >= RESULTS_BYTES_MAX / VALUE_BYTES_MAX - 1);
	EXPECT_TRUE(ok <= RESULTS_BYTES_MAX / VALUE_BYTES_MAX + 1);
	expect_value(write, 1);
	EXPECT_TRUE(write->at_ms >= from + 30000);
	for (i = 0; i < CALLS; i++) {
		(void)rig_wait(t[i]);
		free(t[i]->result);
		t[i]->result = NULL;
		if (t[i]->rc != RC_OK)
			continue;
		EXPECT_TRUE(t[i]->at_ms >= last);
		last = t[i]->at_ms;
	}
	cluster_end();
	cluster_segment_bytes = SEGMENT_BYTES_MIN;
}

/* ---- reads ---- */

/* The owner is frozen, another one has written `value`, and the world stands at
 * the moment at which the old one thaws. */
static unsigned frozen_until_another_wrote(uint64_t value)
{
	const uint64_t ms = 3000;
	uint64_t end = world_now_ms(rig.w) + ms;
	unsigned next;

	world_pause(rig.w, owner - 1, ms);
	next = next_owner();
	expect_value(incr(next, NULL), value);
	world_run_until(rig.w, end - 1);
	EXPECT_TRUE(leads(owner)); /* As it believes. */
	return next;
}

TEST(rd1_a_deposed_owner_that_is_cut_off_answers_no_read)
{
	struct told *t[20];
	unsigned i;

	begin(421);
	expect_value(incr(owner, NULL), 1);
	(void)frozen_until_another_wrote(2);
	cluster_isolate(owner);
	for (i = 0; i < 20; i++) {
		t[i] = get(owner, "{'deadline_ms':2000}");
		cluster_run(i);
	}
	for (i = 0; i < 20; i++)
		expect_no_value(t[i]);
	cluster_end();
}

/*
 * The owner has asked for a round and freezes; its peers answer; another
 * writes; the owner thaws and is asked again before it reads those answers.
 * They were given before the write: for the second question they prove nothing.
 */
static void ask_twice(uint64_t seed)
{
	struct told *first;
	struct told *second;

	begin(seed);
	expect_value(incr(owner, NULL), 1);
	cluster_run(200);
	first = get(owner, LONG);
	run_us(40); /* The question has left, no answer can be here. */
	EXPECT_FALSE(first->done);
	(void)frozen_until_another_wrote(2);
	second = get(owner, LONG);
	EXPECT_FALSE(first->done);
	(void)rig_wait(second);
	expect_no_value(second);
	(void)rig_wait(first);
	if (first->rc == RC_OK)
		EXPECT_UINT(value_of(first), 1);
	cluster_end();
}

TEST(rd2_an_answer_of_an_earlier_round_confirms_no_later_read)
{
	ask_twice(422);
}

/* What was acknowledged a moment ago is in the logs, in nobody's state, and the
 * others have not heard that it is committed. */
static void first_reads(unsigned from, unsigned to, uint64_t want)
{
	struct told *t[400];
	unsigned n = 0;
	unsigned i;
	bool ok = false;

	for (i = 0; i < ARRAY_LEN(t); i++) {
		unsigned id = i % 2 == 0 ? from : to;

		/* Those that wait for an owner fill the pool. */
		if (cl.at[id].core != NULL) {
			t[n] = get(id, LONG);
			n += t[n]->call != NULL;
		}
		cluster_run(3);
	}
	for (i = 0; i < n; i++) {
		(void)rig_wait(t[i]);
		if (t[i]->rc == RC_OK) {
			ok = true;
			EXPECT_UINT(value_of(t[i]), want);
		} else {
			expect_no_value(t[i]);
		}
	}
	EXPECT_TRUE(ok);
}

TEST(rd3_a_new_owner_reads_after_it_has_committed_its_log)
{
	const struct world_latency slow = { 60000, 60001, 0, 1 };
	struct told *last;

	begin(423);
	expect_value(incr(owner, NULL), 1);
	cluster_run(1000);
	expect_value(incr(owner, NULL), 2);
	last = incr(owner, NULL);
	expect_value(last, 3);
	cluster_kill(owner);
	/* Its own first entry takes a while, rounds do not. */
	world_latency(rig.w, entry - 1, ENV_WORKER_LOG, &slow);
	world_latency(rig.w, another - 1, ENV_WORKER_LOG, &slow);
	first_reads(entry, another, 3);
	cluster_end();
}

TEST(rd4_after_a_restart_nothing_is_read_before_the_log)
{
	const struct world_latency slow = { 60000, 60001, 0, 1 };
	unsigned i;

	begin(424);
	expect_value(incr(owner, NULL), 1);
	cluster_run(1000);
	expect_value(incr(owner, NULL), 2);
	expect_value(incr(owner, NULL), 3);
	for (i = 1; i <= 3; i++)
		cluster_kill(i);
	for (i = 1; i <= 3; i++) {
		cluster_boot(i);
		world_latency(rig.w, i - 1, ENV_WORKER_LOG, &slow);
	}
	first_reads(entry, another, 3);
	cluster_end();
}

/* A read that was sent on has changed nothing, whatever became of it: who asked
 * is told that it may be asked again. */
TEST(what_becomes_of_a_read_that_was_sent_on_is_known)
{
	struct told *late;
	struct told *lost;
	struct told *keyed;
	struct told *wrote;

	begin(412);
	expect_value(incr(entry, NULL), 1);
	world_pause(rig.w, owner - 1, 2000);
	late = get(entry, "{'deadline_ms':100}");
	(void)rig_wait(late);
	EXPECT_RC(late->rc, RC_DEADLINE);
	EXPECT_INT(late->outcome, OUTCOME_REFUSED);
	lost = get(entry, LONG);
	keyed = get(entry, "{'deadline_ms':60000,'idem':'k'}");
	wrote = incr(entry, LONG);
	run_us(20);
	cluster_kill(owner);
	(void)rig_wait(lost);
	EXPECT_RC(lost->rc, RC_NO_QUORUM);
	EXPECT_INT(lost->outcome, OUTCOME_REFUSED);
	EXPECT_TRUE(lost->retry_after_ms > 0);
	EXPECT_RC(rig_wait(keyed)->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_RC(rig_wait(wrote)->rc, RC_UNKNOWN_OUTCOME);
	cluster_end();
}

TEST(rd5_a_pause_between_check_and_read)
{
	ask_twice(425);
}

/* ---- exactly once ---- */

/* The owner dies when others have its entry, and nobody has an answer. */
static void die_before_the_answer(unsigned at, const char *options)
{
	struct told *t;
	uint64_t index = shard_last_index(shard_at(another));
	unsigned i;

	t = incr(at, options);
	for (i = 0; i < 2000 && shard_last_index(shard_at(another)) == index;
	     i++)
		run_us(10);
	EXPECT_TRUE(shard_last_index(shard_at(another)) > index);
	/* What they answer does not reach it. */
	world_pause(rig.w, owner - 1, 1000);
	cluster_run(50);
	EXPECT_FALSE(t->done);
	EXPECT_TRUE(shard_durable_index(shard_at(another)) > index);
	cluster_kill(owner);
	if (at == owner)
		return;
	(void)rig_wait(t);
	EXPECT_RC(t->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(t->outcome, OUTCOME_UNKNOWN);
}

TEST(id1_a_retry_at_the_next_owner)
{
	unsigned i;

	begin(431);
	expect_value(incr(owner, NULL), 1);
	die_before_the_answer(entry, "{'idem':'k'}");
	cluster_settle();
	for (i = 0; i < 3; i++)
		expect_value(incr(i % 2 == 0 ? entry : another, "{'idem':'k'}"),
			     2);
	expect_value(incr(entry, NULL), 3);
	cluster_end();
}

TEST(og7_a_crash_between_commit_and_release)
{
	unsigned was;

	begin(432);
	expect_value(incr(owner, NULL), 1);
	die_before_the_answer(owner, "{'idem':'k'}");
	was = owner;
	cluster_settle();
	cluster_boot(was);
	cluster_settle();
	expect_value(incr(was, "{'idem':'k'}"), 2);
	expect_value(incr(entry, "{'idem':'k'}"), 2);
	expect_value(incr(was, NULL), 3);
	cluster_end();
}

TEST(id2_one_key_on_two_connections_at_once)
{
	struct told *t[6];
	unsigned round;
	unsigned i;
	char options[32];

	begin(433);
	for (round = 0; round < 10; round++) {
		snprintf(options, sizeof(options), "{'idem':'k%u'}", round);
		for (i = 0; i < 6; i++) {
			t[i] = incr(1 + i % 3, options);
			run_us(world_random(rig.w, 300));
		}
		for (i = 0; i < 6; i++)
			expect_value(t[i], round + 1);
	}
	cluster_end();
}

/* It gives up the log that its follower would need, for a snapshot. */
static void far_behind(unsigned id)
{
	char args[128];
	unsigned i;

	cluster_kill(id);
	for (i = 0; i < 24; i++) {
		put_large();
		snprintf(args, sizeof(args), "{'key':'x%u','value':1}", i);
		EXPECT_RC(
			cluster_ask(owner, "me", object, "put", args, NULL)->rc,
			RC_OK);
		cluster_run(300);
	}
}

static uint64_t installs_of(unsigned id)
{
	struct shard_stats st;

	shard_stats(shard_at(id), &st);
	return st.installs;
}

static unsigned newcomer;

static bool newcomer_owns(void)
{
	return cluster_owner(shard) == newcomer;
}

static bool newcomer_installed(void)
{
	return installs_of(newcomer) > 0 && cluster_is_up();
}

TEST(id5_keys_travel_with_snapshots_and_survive_restarts)
{
	unsigned i;

	cluster_segment_bytes = 4u << 20;
	begin(434);
	cluster_segment_bytes = SEGMENT_BYTES_MIN;
	expect_value(incr(owner, "{'idem':'k'}"), 1);
	cluster_run(1000);
	newcomer = entry;
	far_behind(newcomer);
	cluster_boot(newcomer);
	EXPECT_TRUE(cluster_until(newcomer_installed, RIG_WAIT_MS));
	EXPECT_RC(core_transfer(cl.at[owner].core, shard, newcomer), RC_OK);
	EXPECT_TRUE(cluster_until(newcomer_owns, 5000));
	expect_value(incr(newcomer, "{'idem':'k'}"), 1);
	/* All of them start anew from their disks. */
	cluster_run(1000);
	for (i = 1; i <= 3; i++)
		cluster_kill(i);
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	expect_value(incr(another, "{'idem':'k'}"), 1);
	expect_value(incr(another, NULL), 2);
	cluster_end();
}

TEST(id7_without_a_majority_calls_end_at_their_deadlines)
{
	struct told *begun;
	struct told *t;
	uint64_t from;
	unsigned i;

	begin(435);
	expect_value(incr(owner, NULL), 1);
	from = world_now_ms(rig.w);
	begun = incr(owner, "{'deadline_ms':200,'idem':'k'}");
	cluster_kill(entry);
	cluster_kill(another);
	(void)rig_wait(begun);
	EXPECT_RC(begun->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(begun->outcome, OUTCOME_UNKNOWN);
	EXPECT_TRUE(begun->at_ms <= from + 250);
	/* For an hour. */
	cluster_run(2000);
	for (i = 0; i < 60; i++) {
		from = world_now_ms(rig.w);
		t = incr(owner, "{'deadline_ms':5000}");
		(void)rig_wait(t);
		EXPECT_RC(t->rc, RC_NO_QUORUM);
		EXPECT_INT(t->outcome, OUTCOME_REFUSED);
		EXPECT_TRUE(t->at_ms <= from + 5050);
		world_run_until(rig.w, from + 60000);
	}
	cluster_boot(entry);
	cluster_boot(another);
	cluster_settle();
	expect_value(incr(entry, "{'idem':'k'}"), 2);
	expect_value(incr(entry, NULL), 3);
	cluster_end();
}
