#include "node/core/route.h"

#include "node/base/mutant.h"
#include "node/core/forward.h"
#include "node/core/internal.h"
#include "objects/directory_class.h"
#include "tests/lib/cluster_rig.h"

TEST(nobody_owns_a_shard_before_its_election)
{
	struct detail why = { { 0 }, { 0 } };
	struct told *t;
	struct route r;

	rig_new(6);
	rig.id.shards = 1;
	rig_format();
	EXPECT_RC(rig_open(&why), RC_OK);
	r = route_find(core_bridge(rig.core, 0));
	EXPECT_INT(r.to, ROUTE_NOBODY);
	/* Who asks too early waits for it. */
	t = rig_start("me", "kv/a", "get", "{'key':'k'}", NULL);
	EXPECT_TRUE(world_run_flag(rig.w, &rig.ready, RIG_WAIT_MS));
	EXPECT_RC(rig_wait(t)->rc, RC_NOT_FOUND);
	r = route_find(core_bridge(rig.core, 0));
	EXPECT_INT(r.to, ROUTE_HERE);
	EXPECT_UINT(r.node_id, 1);
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_end();
}

TEST(every_shard_has_its_own_route)
{
	uint32_t i;

	rig_begin(7);
	for (i = 0; i < core_shards(rig.core); i++)
		EXPECT_INT(route_find(core_bridge(rig.core, i)).to, ROUTE_HERE);
	rig_end();
}

/* ---- in a cluster of three: forwarding and redirecting ---- */

static char object[32];  /* An object of default/dev, */
static unsigned owner;   /* who owns it, */
static unsigned entry;   /* who does not, */
static unsigned another; /* and who neither. */

static void pick(const char *cls, unsigned from)
{
	unsigned i = from;

	do {
		snprintf(object, sizeof(object), "%s/o%u", cls, i++);
		owner = cluster_owner(
			cluster_shard(cls, strchr(object, '/') + 1));
	} while (owner == 0);
	entry = owner == 1 ? 2 : 1;
	another = 6 - owner - entry;
}

static uint32_t shard_of_object(void)
{
	const char *slash = strchr(object, '/');
	char cls[32];

	snprintf(cls, sizeof(cls), "%.*s", (int)(slash - object), object);
	return cluster_shard(cls, slash + 1);
}

static void begin(uint64_t seed)
{
	cluster_begin(3, seed);
	pick("kv", 0);
}

static uint64_t sent_by(unsigned id)
{
	struct forward_stats st;

	forwards_stats(core_forwards(cl.at[id].core), &st);
	return st.sent;
}

TEST(any_node_takes_any_call)
{
	struct told *t;
	unsigned i;
	char want[64];

	begin(21);
	for (i = 1; i <= 3; i++) {
		snprintf(want, sizeof(want), "{'value':%u,'rev':%u}", i, i);
		cluster_expect_ok(i, "me", object, "incr", "{'key':'n'}", want);
	}
	/* Errors come as they are at the owner. */
	t = cluster_ask(entry, "me", object, "put",
			"{'key':'n','value':1,'if_rev':9}", NULL);
	EXPECT_RC(t->rc, RC_CONFLICT);
	EXPECT_STR(t->why.field, "if_rev");
	EXPECT_HAS(t->why.text, "revision 3");
	/* Both nodes name the call by the id that the client hears. */
	EXPECT_TRUE(t->request_id != 0);
	t = cluster_ask(entry, "me", object, "get", "{'key':'none'}", NULL);
	EXPECT_RC(t->rc, RC_NOT_FOUND);
	/* What needs no owner is answered at once. */
	EXPECT_RC(cluster_ask(entry, "me", object, "get", "{}", NULL)->rc,
		  RC_INVALID);
	cluster_end();
}

TEST(meta_names_the_owner)
{
	char want[64];
	struct told *t;

	begin(22);
	t = cluster_ask(entry, "me", object, "incr", "{'key':'n'}",
			"{'meta':true}");
	EXPECT_RC(t->rc, RC_OK);
	snprintf(want, sizeof(want), "'owner':'n%u','shard':%u", owner,
		 shard_of_object());
	EXPECT_HAS(say_text(rig_result(t)), want);
	cluster_end();
}

TEST(a_client_may_ask_to_be_redirected)
{
	struct told *t;
	uint64_t sent;

	begin(23);
	sent = sent_by(entry);
	t = cluster_ask(entry, "me", object, "incr", "{'key':'n'}",
			"{'route':'redirect'}");
	EXPECT_RC(t->rc, RC_NOT_OWNER);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	EXPECT_UINT(t->owner, owner);
	EXPECT_UINT(sent_by(entry), sent);
	EXPECT_RC(cluster_ask(owner, "me", object, "incr", "{'key':'n'}",
			      "{'route':'redirect'}")
			  ->rc,
		  RC_OK);
	cluster_end();
}

TEST(a_key_is_one_key_whichever_way_it_comes)
{
	unsigned i;

	begin(24);
	for (i = 1; i <= 3; i++) {
		struct told *t = cluster_ask(i, "me", object, "incr",
					     "{'key':'n'}", "{'idem':'k'}");

		EXPECT_RC(t->rc, RC_OK);
		EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	}
	cluster_end();
}

/* The pieces of a call that came over a link, without one. */
static enum rc served_rc;
static uint64_t served_owner;
static bool served_done;

static void served(struct served *sv, const struct answer *a)
{
	(void)sv;
	served_rc = a->rc;
	served_owner = a->owner;
	served_done = true;
}

static struct served *serve(unsigned id, const struct chain *chain)
{
	struct call_request r = { .deadline_ms = 1000 };
	struct served *sv;
	struct pack_w w;

	pack_w_init(&w, 4096);
	pack_raw(&w, "medefaultdev", 12);
	pack_array(&w, 3);
	pack_cstr(&w, object);
	pack_cstr(&w, "incr");
	say_pack(&w, "{'key':'n'}");
	EXPECT_RC(w.rc, RC_OK);
	r.principal = (struct pack_bytes){ w.p, 2 };
	r.tenant = (struct pack_bytes){ w.p + 2, 7 };
	r.env = (struct pack_bytes){ w.p + 9, 3 };
	r.params = (struct pack_bytes){ w.p + 12, w.n - 12 };
	r.chain = chain;
	r.depth = chain != NULL ? chain->n : 0;
	served_done = false;
	sv = call_serve(cl.at[id].core, &r, served);
	pack_w_release(&w);
	return sv;
}

static void serve_at(unsigned id)
{
	EXPECT_NOT_NULL(serve(id, NULL));
	EXPECT_FALSE(served_done);
	EXPECT_TRUE(world_run_flag(rig.w, &served_done, RIG_WAIT_MS));
}

TEST(what_was_forwarded_is_not_forwarded_again)
{
	uint64_t sent;

	begin(25);
	sent = sent_by(entry);
	serve_at(entry);
	EXPECT_RC(served_rc, RC_NOT_OWNER);
	EXPECT_UINT(served_owner, owner);
	EXPECT_UINT(sent_by(entry), sent);
	serve_at(owner);
	EXPECT_RC(served_rc, RC_OK);
	cluster_end();
}

/* Of calls that wait for others nobody knows how many are still to come; a node
 * that has ended its own has no shards to run them. */
TEST(a_nested_call_is_refused_by_who_has_closed_its_shards)
{
	const struct chain chain = { .n = 1 };
	struct cluster_node *node;
	uint32_t shard;

	begin(29);
	node = &cl.at[owner];
	shard = shard_of_object();
	core_close(node->core, cluster_closed, node);
	while (core_bridge(node->core, shard) != NULL &&
	       bridge_shard(core_bridge(node->core, shard)) != NULL)
		EXPECT_TRUE(world_step(rig.w));
	EXPECT_NULL(serve(owner, &chain));
	cluster_kill(owner);
	cluster_end();
}

TEST(mutant_forwarded_again)
{
	begin(25);
	mutant_now = MUTANT_forwarded_again;
	serve_at(entry);
	EXPECT_RC(served_rc, RC_OK);
	mutant_now = MUTANT_none;
	cluster_end();
}

/* ---- owners that are lost ---- */

TEST(an_owner_that_is_killed_leaves_an_unknown_outcome)
{
	struct told *put;
	struct told *other;

	begin(26);
	put = cluster_start(entry, "me", object, "put", "{'key':'a','value':1}",
			    NULL);
	/* It is on its way, or there; the answer is not. */
	world_run_until(rig.w, world_now_ms(rig.w) + 0);
	while (sent_by(entry) == 0 && !put->done)
		(void)world_step(rig.w);
	EXPECT_FALSE(put->done);
	cluster_kill(owner);
	EXPECT_RC(rig_wait(put)->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(put->outcome, OUTCOME_UNKNOWN);
	/* Before the next is elected: what has not left waits for it. */
	other = cluster_ask(entry, "me", object, "put", "{'key':'b','value':1}",
			    NULL);
	EXPECT_RC(other->rc, RC_OK);
	cluster_settle();
	other = cluster_ask(entry, "me", object, "put", "{'key':'a','value':2}",
			    NULL);
	EXPECT_RC(other->rc, RC_OK);
	cluster_end();
}

/* A read leaves nothing behind, unless it has a key. */
TEST(a_read_with_a_key_may_have_been_recorded)
{
	struct told *keyed;
	struct told *plain;

	begin(35);
	keyed = cluster_start(entry, "me", object, "get", "{'key':'a'}",
			      "{'idem':'k'}");
	plain = cluster_start(entry, "me", object, "get", "{'key':'a'}", NULL);
	while (sent_by(entry) < 2 && !plain->done)
		(void)world_step(rig.w);
	EXPECT_FALSE(keyed->done);
	EXPECT_FALSE(plain->done);
	cluster_kill(owner);
	EXPECT_RC(rig_wait(keyed)->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(keyed->outcome, OUTCOME_UNKNOWN);
	EXPECT_RC(rig_wait(plain)->rc, RC_NO_QUORUM);
	EXPECT_INT(plain->outcome, OUTCOME_REFUSED);
	cluster_end();
}

/* ---- shards without an owner ---- */

static bool entry_knows_nobody(void)
{
	struct bridge *b = core_bridge(cl.at[entry].core, shard_of_object());

	return route_find(b).to == ROUTE_NOBODY;
}

/* `entry` knows no owner since a moment ago. */
static void cut_off_entry(void)
{
	cluster_isolate(entry);
	EXPECT_TRUE(cluster_until(entry_knows_nobody, 5000));
}

TEST(a_call_waits_for_an_owner_and_not_for_long)
{
	struct told *t[4];
	struct told *late;
	uint64_t from;
	unsigned i;

	begin(32);
	cut_off_entry();
	from = world_now_ms(rig.w);
	t[0] = cluster_start(entry, "me", object, "incr", "{'key':'n'}", NULL);
	t[1] = cluster_start(entry, "me", object, "incr", "{'key':'n'}",
			     "{'deadline_ms':600}");
	t[2] = cluster_start(entry, "me", object, "incr", "{'key':'n'}",
			     "{'route':'redirect'}");
	t[3] = cluster_start(entry, "me", object, "incr", "{'key':'n'}", NULL);
	cluster_run(100);
	for (i = 0; i < ARRAY_LEN(t); i++)
		EXPECT_FALSE(t[i]->done);
	call_cancel(t[3]->call);
	EXPECT_RC(rig_wait(t[3])->rc, RC_CANCELLED);
	for (i = 0; i < 3; i++) {
		EXPECT_RC(rig_wait(t[i])->rc, RC_NO_QUORUM);
		EXPECT_INT(t[i]->outcome, OUTCOME_REFUSED);
		EXPECT_TRUE(t[i]->retry_after_ms > 0);
		EXPECT_HAS(t[i]->why.text, "no owner");
	}
	EXPECT_TRUE(t[0]->at_ms <= from + OWNER_WAIT_MS + 20);
	EXPECT_TRUE(t[1]->at_ms <= from + 300 + 20);
	EXPECT_TRUE(t[2]->at_ms <= from + OWNER_WAIT_TOLD_MS + 20);
	/* It is cut off, and says so. */
	from = world_now_ms(rig.w);
	late = cluster_ask(entry, "me", object, "incr", "{'key':'n'}", NULL);
	EXPECT_RC(late->rc, RC_NO_QUORUM);
	EXPECT_TRUE(late->at_ms <= from + 150);
	net_mend_all(cl.net);
	cluster_settle();
	/* Nothing of them has happened. */
	cluster_expect_ok(1, "me", object, "incr", "{'key':'n'}",
			  "{'value':1,'rev':1}");
	cluster_end();
}

TEST(so_many_calls_may_wait_for_an_owner)
{
	static struct told *t[OWNER_WAITS_MAX + 3];
	unsigned waiting = 0;
	unsigned i;

	cluster_new(3, 33);
	rig.cfg.calls_max = 4 * OWNER_WAITS_MAX;
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	pick("kv", 0);
	cut_off_entry();
	for (i = 0; i < ARRAY_LEN(t); i++)
		t[i] = cluster_start(entry, "me", object, "incr", "{'key':'n'}",
				     NULL);
	cluster_run(20);
	for (i = 0; i < ARRAY_LEN(t); i++)
		waiting += !t[i]->done;
	/* The node itself asks for the directory, and waits too. */
	EXPECT_TRUE(waiting <= OWNER_WAITS_MAX);
	EXPECT_TRUE(waiting >= OWNER_WAITS_MAX - 2);
	EXPECT_TRUE(t[OWNER_WAITS_MAX]->done);
	EXPECT_RC(t[OWNER_WAITS_MAX]->rc, RC_NO_QUORUM);
	net_mend_all(cl.net);
	for (i = 0; i < ARRAY_LEN(t); i++)
		EXPECT_TRUE(rig_wait(t[i])->outcome == OUTCOME_DONE ||
			    t[i]->outcome == OUTCOME_REFUSED);
	cluster_settle();
	cluster_end();
}

/* A planned hand-over fails nobody's call, through whichever node. */
static unsigned failed_by_a_hand_over(void)
{
	struct told *t[120];
	unsigned failed = 0;
	unsigned i;

	for (i = 0; i < ARRAY_LEN(t); i++) {
		t[i] = cluster_start(1 + i % 3, "me", object, "incr",
				     "{'key':'n'}", NULL);
		if (i == 30)
			EXPECT_RC(core_transfer(cl.at[owner].core,
						shard_of_object(), entry),
				  RC_OK);
		cluster_run(2);
	}
	for (i = 0; i < ARRAY_LEN(t); i++)
		failed += rig_wait(t[i])->rc != RC_OK;
	EXPECT_UINT(cluster_owner(shard_of_object()), entry);
	return failed;
}

TEST(a_hand_over_fails_no_call)
{
	begin(34);
	EXPECT_UINT(failed_by_a_hand_over(), 0);
	cluster_expect_ok(another, "me", object, "get", "{'key':'n'}",
			  "{'value':120,'rev':120}");
	cluster_end();
}

TEST(mutant_owner_not_awaited)
{
	begin(34);
	mutant_now = MUTANT_owner_not_awaited;
	EXPECT_TRUE(failed_by_a_hand_over() > 0);
	mutant_now = MUTANT_none;
	cluster_end();
}

TEST(an_owner_that_does_not_answer)
{
	struct told *t;
	uint64_t from;

	begin(27);
	net_cut(cl.net, owner - 1, entry - 1);
	from = world_now_ms(rig.w);
	t = cluster_ask(entry, "me", object, "put", "{'key':'a','value':1}",
			"{'deadline_ms':150}");
	EXPECT_RC(t->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(t->outcome, OUTCOME_UNKNOWN);
	EXPECT_TRUE(t->at_ms >= from + 150);
	EXPECT_TRUE(t->at_ms <= from + 200);
	net_mend_all(cl.net);
	cluster_settle();
	/* It was not lost, nor done twice. */
	t = cluster_ask(entry, "me", object, "get", "{'key':'a'}", NULL);
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_STR(say_text(rig_result(t)), "{'value':1,'rev':1}");
	cluster_end();
}

TEST(a_deadline_at_the_owner_is_told_as_it_knows_it)
{
	struct told *slow;
	struct told *t;

	begin(28);
	pick("relay", 0);
	slow = cluster_start(owner, "me", object, "run",
			     "{'steps':[['wait',2000]]}", NULL);
	cluster_run(50);
	t = cluster_ask(entry, "me", object, "run", "{'steps':[['put','k',1]]}",
			"{'deadline_ms':500}");
	/* It waited behind the other and never began. */
	EXPECT_RC(t->rc, RC_DEADLINE);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	EXPECT_RC(rig_wait(slow)->rc, RC_OK);
	cluster_end();
}

TEST(cancelling_reaches_the_owner)
{
	struct told *slow;
	struct told *t;
	uint64_t from;

	begin(29);
	pick("relay", 0);
	slow = cluster_start(owner, "me", object, "run",
			     "{'steps':[['wait',2000]]}", NULL);
	cluster_run(50);
	t = cluster_start(entry, "me", object, "run",
			  "{'steps':[['put','k',1]]}", NULL);
	cluster_run(50);
	EXPECT_FALSE(t->done);
	from = world_now_ms(rig.w);
	call_cancel(t->call);
	EXPECT_FALSE(t->done);
	EXPECT_RC(rig_wait(t)->rc, RC_CANCELLED);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	EXPECT_TRUE(world_now_ms(rig.w) < from + 50);
	EXPECT_RC(rig_wait(slow)->rc, RC_OK);
	cluster_end();
}

/* What nobody waits for any more is not sent to the next owner. */
TEST(a_cancelled_call_is_not_sent_on)
{
	uint32_t shard;
	struct told *t;

	begin(36);
	pick("relay", 0);
	shard = shard_of_object();
	(void)cluster_start(owner, "me", object, "run",
			    "{'steps':[['wait',2000]]}", NULL);
	cluster_run(20);
	t = cluster_start(entry, "me", object, "run",
			  "{'steps':[['put','k',1]]}", NULL);
	cluster_run(20);
	/* That it is refused comes when the next one is known. */
	net_clog(cl.net, owner - 1, entry - 1, 250);
	EXPECT_RC(core_transfer(cl.at[owner].core, shard, another), RC_OK);
	while (cluster_owner(shard) != another)
		cluster_run(1);
	EXPECT_FALSE(t->done);
	call_cancel(t->call);
	EXPECT_RC(rig_wait(t)->rc, RC_NO_QUORUM);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	cluster_end();
}

static void move_away(uint32_t shard)
{
	unsigned from = cluster_owner(shard);

	if (from != 0)
		(void)core_transfer(cl.at[from].core, shard, 0);
}

/* Calls through every node while leaderships move: what was refused has not
 * happened, what was done has happened once. */
TEST(calls_while_leaderships_move)
{
	struct told *t[300];
	unsigned refused = 0;
	unsigned unknown = 0;
	unsigned done = 0;
	uint64_t value;
	unsigned i;

	begin(30);
	for (i = 0; i < ARRAY_LEN(t); i++) {
		t[i] = cluster_start(1 + i % 3, "me", object, "incr",
				     "{'key':'n'}", NULL);
		if (i % 50 == 25)
			move_away(shard_of_object());
		cluster_run(5);
	}
	for (i = 0; i < ARRAY_LEN(t); i++) {
		(void)rig_wait(t[i]);
		done += t[i]->outcome == OUTCOME_DONE;
		refused += t[i]->outcome == OUTCOME_REFUSED;
		unknown += t[i]->outcome == OUTCOME_UNKNOWN;
	}
	EXPECT_UINT(done + refused + unknown, ARRAY_LEN(t));
	EXPECT_TRUE(done > ARRAY_LEN(t) * 8 / 10);
	cluster_settle();
	value = say_u64(rig_result(cluster_ask(1, "me", object, "get",
					       "{'key':'n'}", NULL)),
			"value");
	EXPECT_TRUE(value >= done);
	EXPECT_TRUE(value <= done + unknown);
	cluster_end();
}

/* A new owner goes on where the old one was, whatever the walls' clocks say. */
TEST(time_goes_on_under_the_next_owner)
{
	unsigned i;

	begin(40);
	EXPECT_RC(cluster_ask(entry, "me", object, "put",
			      "{'key':'k','value':1,'ttl_ms':20000}", NULL)
			  ->rc,
		  RC_OK);
	cluster_run(3000);
	for (i = 1; i <= 3; i++) {
		world_wall_jump(rig.w, i - 1, 86400000);
		world_wall_synced(rig.w, i - 1, true);
	}
	cluster_kill(owner);
	cluster_settle();
	EXPECT_RC(cluster_ask(entry, "me", object, "get", "{'key':'k'}", NULL)
			  ->rc,
		  RC_OK);
	cluster_run(12000);
	EXPECT_RC(cluster_ask(entry, "me", object, "get", "{'key':'k'}", NULL)
			  ->rc,
		  RC_OK);
	cluster_run(6000);
	EXPECT_RC(cluster_ask(entry, "me", object, "get", "{'key':'k'}", NULL)
			  ->rc,
		  RC_NOT_FOUND);
	cluster_end();
}

TEST(after_all_were_down_one_wrong_clock_does_not_matter)
{
	unsigned i;

	begin(41);
	EXPECT_RC(cluster_ask(entry, "me", object, "put",
			      "{'key':'k','value':1,'ttl_ms':60000}", NULL)
			  ->rc,
		  RC_OK);
	/* A voter that has nothing stored yet has no time to offer. */
	cluster_run(1000);
	for (i = 1; i <= 3; i++)
		cluster_kill(i);
	cluster_run(20000);
	world_wall_jump(rig.w, 1, 86400000);
	world_wall_synced(rig.w, 1, true);
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	for (i = 1; i <= 3; i++)
		EXPECT_RC(
			cluster_ask(i, "me", object, "get", "{'key':'k'}", NULL)
				->rc,
			RC_OK);
	cluster_run(40000);
	EXPECT_RC(cluster_ask(1, "me", object, "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	cluster_end();
}

/* ---- calls that objects make ---- */

static void other_object(char out[32])
{
	unsigned i = 0;

	do
		snprintf(out, 32, "relay/x%u", i++);
	while (cluster_owner(cluster_shard("relay", out + 6)) != entry);
}

TEST(an_object_calls_one_of_another_node)
{
	char other[32];
	char args[200];
	struct told *t;

	begin(31);
	pick("relay", 0);
	other_object(other);
	cluster_expect_ok(1, "root", DIRECTORY_ADDRESS, "grant",
			  "{'principal':'object:default/dev/relay',"
			  "'tenant':'default','env':'dev','class':'relay',"
			  "'rights':['read','write']}",
			  "{'version':2,'changed':true,"
			  "'confirmed':['n1','n2','n3'],'missing':[]}");
	snprintf(args, sizeof(args),
		 "{'steps':[['call','%s','run',{'steps':[['add','n',1]]}]]}",
		 other);
	t = cluster_ask(another, "me", object, "run", args, NULL);
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_STR(say_text(rig_result(t)), "[[1]]");
	/* The chain travels: it would wait for itself. */
	snprintf(args, sizeof(args),
		 "{'steps':[['call','%s','run',{'steps':["
		 "['call','%s','run',{'steps':[]}]]}]]}",
		 other, object);
	t = cluster_ask(another, "me", object, "run", args, NULL);
	EXPECT_RC(t->rc, RC_CYCLE);
	EXPECT_HAS(t->why.text, object);
	EXPECT_HAS(t->why.text, other);
	cluster_end();
}

TEST(the_directory_is_in_one_shard)
{
	struct identity id = { .shards = 16 };
	struct address a = { .cls = rig_bytes("directory") };
	unsigned hits = 0;
	unsigned i;

	for (i = 0; i < 64; i++) {
		a.oid.b[0] = (uint8_t)i;
		a.cls = rig_bytes("directory");
		EXPECT_UINT(route_shard(&id, &a), 0);
		a.cls = rig_bytes("kv");
		hits += route_shard(&id, &a) == 0;
		EXPECT_UINT(route_shard(&id, &a),
			    placement_shard(id.hash_key, &a.oid, 16));
	}
	EXPECT_TRUE(hits < 32);
}
