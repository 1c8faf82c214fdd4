/*
 * The directory in a cluster of three, in the seeded world: who learns what,
 * and what does not leave before it is learnt.
 */
#include "node/core/directory.h"

#include "node/base/mutant.h"
#include "node/core/internal.h"
#include "objects/directory_class.h"
#include "tests/lib/cluster_rig.h"

#define DIR                    DIRECTORY_ADDRESS_TEXT
#define DIRECTORY_ADDRESS_TEXT "holdfast/system/directory/cluster"

static void begin(uint64_t seed)
{
	cluster_begin(3, seed);
}

static bool has_copy(unsigned id, uint64_t version)
{
	return directory_version(cl.at[id].directory) == version;
}

static bool all_at_two(void)
{
	return has_copy(1, 2) && has_copy(2, 2) && has_copy(3, 2);
}

TEST(a_cluster_is_seeded_from_its_configuration)
{
	unsigned i;

	begin(1);
	for (i = 1; i <= 3; i++) {
		EXPECT_UINT(directory_version(cl.at[i].directory), 1);
		EXPECT_TRUE(directory_good(cl.at[i].directory));
		EXPECT_TRUE(directory_age_ms(cl.at[i].directory) < 2000);
		cluster_expect_ok(i, "me", "kv/a", "incr", "{'key':'n'}",
				  i == 1   ? "{'value':1,'rev':1}"
				  : i == 2 ? "{'value':2,'rev':2}"
					   : "{'value':3,'rev':3}");
		EXPECT_RC(cluster_ask(i, "you", "kv/a", "incr", "{'key':'n'}",
				      NULL)
				  ->rc,
			  RC_NOT_FOUND);
	}
	EXPECT_HAS(say_text(rig_result(
			   cluster_ask(2, "root", DIR, "read", "{}", NULL))),
		   "'name':'n3'");
	cluster_end();
}

TEST(a_grant_is_known_everywhere_when_it_is_answered)
{
	unsigned i;

	begin(2);
	cluster_expect_ok(3, "root", DIR, "grant",
			  "{'principal':'you','tenant':'default','env':'dev',"
			  "'class':'kv','rights':['read','write']}",
			  "{'version':2,'changed':true,"
			  "'confirmed':['n1','n2','n3'],'missing':[]}");
	for (i = 1; i <= 3; i++) {
		EXPECT_UINT(directory_version(cl.at[i].directory), 2);
		EXPECT_RC(cluster_ask(i, "you", "kv/a", "incr", "{'key':'n'}",
				      NULL)
				  ->rc,
			  RC_OK);
	}
	cluster_end();
}

TEST(after_revoke_nobody_serves)
{
	unsigned i;

	begin(3);
	EXPECT_RC(cluster_ask(1, "me", "kv/a", "incr", "{'key':'n'}", NULL)->rc,
		  RC_OK);
	cluster_expect_ok(1, "root", DIR, "revoke", "{'principal':'me'}",
			  "{'version':2,'changed':true,"
			  "'confirmed':['n1','n2','n3'],'missing':[]}");
	for (i = 1; i <= 3; i++)
		EXPECT_RC(
			cluster_ask(i, "me", "kv/a", "get", "{'key':'n'}", NULL)
				->rc,
			RC_NOT_FOUND);
	cluster_end();
}

TEST(who_may_change_it)
{
	begin(4);
	EXPECT_RC(cluster_ask(1, "me", DIR, "revoke", "{'principal':'root'}",
			      NULL)
			  ->rc,
		  RC_NOT_FOUND);
	EXPECT_RC(cluster_ask(1, "root", DIR, "seed",
			      "{'grants':[],'members':[{'id':1,'name':'x',"
			      "'incarnation':'0123456789abcdef'}]}",
			      NULL)
			  ->rc,
		  RC_DENIED);
	/* Nodes do what they need, and no more. */
	EXPECT_RC(cluster_ask(1, "node:1", DIR, "revoke",
			      "{'principal':'root'}", NULL)
			  ->rc,
		  RC_DENIED);
	EXPECT_RC(cluster_ask(1, "node:1", "kv/a", "get", "{'key':'a'}", NULL)
			  ->rc,
		  RC_NOT_FOUND);
	/* One directory, at one address. */
	EXPECT_RC(cluster_ask(1, "me", "directory/cluster", "read", "{}", NULL)
			  ->rc,
		  RC_NOT_FOUND);
	EXPECT_RC(cluster_ask(1, "root", "holdfast/system/directory/other",
			      "read", "{}", NULL)
			  ->rc,
		  RC_NOT_FOUND);
	cluster_end();
}

/* A node that cannot be reached is named, and has stopped to decide when its
 * copy is too old. */
TEST(a_node_that_is_cut_off)
{
	struct told *t;
	uint64_t from;
	unsigned far;

	begin(5);
	far = cluster_owner(0) == 1 ? 2 : 1;
	cluster_isolate(far);
	cluster_run(3000);
	from = world_now_ms(rig.w);
	t = cluster_ask(far == 3 ? 1 : 3, "root", DIR, "revoke",
			"{'principal':'me'}", NULL);
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_HAS(say_text(rig_result(t)),
		   far == 1 ? "'missing':['n1']" : "'missing':['n2']");
	EXPECT_TRUE(t->at_ms - from >= 2000);
	EXPECT_TRUE(t->at_ms - from < 2500);
	/* Of what it owned it can prove nothing; of the rest it knows that it
	 * knows nothing. */
	cluster_run(DIRECTORY_TTL_MS);
	EXPECT_FALSE(directory_good(cl.at[far].directory));
	t = cluster_ask(far, "me", "kv/a", "get", "{'key':'n'}", NULL);
	EXPECT_RC(t->rc, RC_NO_QUORUM);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	EXPECT_TRUE(t->retry_after_ms > 0);
	net_mend_all(cl.net);
	EXPECT_TRUE(cluster_until(all_at_two, 10000));
	EXPECT_RC(
		cluster_ask(far, "me", "kv/a", "get", "{'key':'n'}", NULL)->rc,
		RC_NOT_FOUND);
	cluster_end();
}

TEST(it_is_there_again_after_all_were_killed)
{
	unsigned i;

	begin(6);
	cluster_expect_ok(1, "root", DIR, "revoke", "{'principal':'me'}",
			  "{'version':2,'changed':true,"
			  "'confirmed':['n1','n2','n3'],'missing':[]}");
	for (i = 1; i <= 3; i++)
		cluster_kill(i);
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	EXPECT_TRUE(all_at_two());
	EXPECT_RC(cluster_ask(2, "me", "kv/a", "get", "{'key':'n'}", NULL)->rc,
		  RC_NOT_FOUND);
	cluster_end();
}

/* ---- by way of another member ---- */

/* Who does not reach the directory's owner asks the third; then nobody reaches
 * it, and the two have only each other. True: they still serve when what they
 * read of it is too old. */
static bool copies_outlive(uint64_t seed)
{
	unsigned keeper;
	unsigned one;
	unsigned two;
	unsigned i;
	bool good;

	cluster_new(3, seed);
	rig.cfg.spread = false;
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	keeper = cluster_owner(0);
	one = keeper % 3 + 1;
	two = 6 - keeper - one;
	cluster_cut(keeper, one);
	cluster_run(DIRECTORY_TTL_MS + 2000);
	EXPECT_TRUE(directory_good(cl.at[one].directory));
	EXPECT_UINT(cluster_owner(0), keeper);
	net_refuse_bulk(cl.net, keeper - 1, two - 1);
	cluster_run(DIRECTORY_TTL_MS / 2);
	EXPECT_TRUE(directory_good(cl.at[one].directory));
	EXPECT_TRUE(directory_good(cl.at[two].directory));
	cluster_run(DIRECTORY_TTL_MS / 2 + 2000);
	EXPECT_UINT(cluster_owner(0), keeper);
	good = directory_good(cl.at[one].directory) ||
	       directory_good(cl.at[two].directory);
	mutant_now = MUTANT_none;
	net_mend_all(cl.net);
	cluster_run(5000);
	EXPECT_TRUE(directory_good(cl.at[one].directory));
	cluster_end();
	return good;
}

TEST(a_copy_of_a_copy_is_as_old_as_that)
{
	EXPECT_FALSE(copies_outlive(18));
}

TEST(mutant_directory_copy_ageless)
{
	mutant_now = MUTANT_directory_copy_ageless;
	EXPECT_TRUE(copies_outlive(18));
}

/* What changes while it asks the third is what it gets. */
TEST(a_change_comes_by_way_of_another_member)
{
	unsigned keeper;
	unsigned one;

	begin(19);
	keeper = cluster_owner(0);
	one = keeper % 3 + 1;
	cluster_cut(keeper, one);
	cluster_run(2000);
	EXPECT_RC(cluster_ask(keeper, "root", DIR, "revoke",
			      "{'principal':'me'}", NULL)
			  ->rc,
		  RC_OK);
	cluster_run(2000);
	EXPECT_TRUE(has_copy(one, 2));
	EXPECT_RC(cluster_ask(one, "me", "kv/a", "get", "{'key':'n'}",
			      "{'deadline_ms':500}")
			  ->rc,
		  RC_NOT_FOUND);
	cluster_end();
}

/* ---- what is decided under an older version ---- */

static unsigned keeper; /* Owns the directory, */
static unsigned behind; /* owns kv/NAME, and will be cut off from it, */
static unsigned third;  /* and who tells it that there is news. */
static char object[32];

/* A cluster in which the second node hears from the third that the directory
 * has a version 2, and cannot read it. What `change` is, the first has
 * committed. */
static void begin_behind(uint64_t seed, const char *method, const char *args)
{
	unsigned i = 0;

	begin(seed);
	keeper = cluster_owner(0);
	do {
		snprintf(object, sizeof(object), "kv/o%u", i++);
		behind = cluster_owner(cluster_shard("kv", object + 3));
	} while (behind == keeper);
	third = 6 - keeper - behind;
	EXPECT_RC(cluster_ask(behind, "me", object, "put",
			      "{'key':'k','value':1}", NULL)
			  ->rc,
		  RC_OK);
	cluster_cut(keeper, behind);
	/* Nor can it ask the third. */
	net_refuse_bulk(cl.net, third - 1, behind - 1);
	EXPECT_RC(cluster_ask(keeper, "root", DIR, method, args, NULL)->rc,
		  RC_OK);
	EXPECT_UINT(directory_version(cl.at[third].directory), 2);
	cluster_run(200);
	EXPECT_UINT(directory_version(cl.at[behind].directory), 1);
	EXPECT_UINT(transport_version_max(core_transport(cl.at[behind].core)),
		    2);
	EXPECT_UINT(cluster_owner(cluster_shard("kv", object + 3)), behind);
}

static struct told *get_soon(const char *who)
{
	return cluster_start(behind, who, object, "get", "{'key':'k'}",
			     "{'deadline_ms':3000}");
}

static struct told *put_soon(void)
{
	return cluster_start(behind, "me", object, "put",
			     "{'key':'k','value':2}", "{'deadline_ms':3000}");
}

TEST(nothing_leaves_under_an_older_version)
{
	struct told *get;
	struct told *put;

	begin_behind(11, "revoke", "{'principal':'me'}");
	get = get_soon("me");
	put = put_soon();
	cluster_run(2900);
	EXPECT_FALSE(get->done);
	EXPECT_FALSE(put->done);
	/* At its deadline all that can be said is what is known without it. */
	EXPECT_RC(rig_wait(get)->rc, RC_NO_QUORUM);
	EXPECT_INT(get->outcome, OUTCOME_REFUSED);
	EXPECT_RC(rig_wait(put)->rc, RC_UNKNOWN_OUTCOME);
	EXPECT_INT(put->outcome, OUTCOME_UNKNOWN);
	cluster_end();
}

TEST(mutant_directory_version_old)
{
	begin_behind(11, "revoke", "{'principal':'me'}");
	mutant_now = MUTANT_directory_version_old;
	EXPECT_RC(rig_wait(get_soon("me"))->rc, RC_OK);
	mutant_now = MUTANT_none;
	cluster_end();
}

TEST(what_is_no_longer_allowed_does_not_leave)
{
	struct told *get;
	struct told *put;

	begin_behind(12, "revoke", "{'principal':'me'}");
	get = get_soon("me");
	put = put_soon();
	cluster_run(500);
	EXPECT_FALSE(get->done);
	net_mend_all(cl.net);
	EXPECT_RC(rig_wait(get)->rc, RC_NOT_FOUND);
	EXPECT_STR(get->why.text, rc_text(RC_NOT_FOUND));
	EXPECT_INT(get->outcome, OUTCOME_REFUSED);
	/* It has happened; that it has not would be a lie. */
	EXPECT_RC(rig_wait(put)->rc, RC_UNKNOWN_OUTCOME);
	cluster_end();
}

TEST(what_is_still_allowed_leaves_when_that_is_known)
{
	struct told *get;
	struct told *put;

	begin_behind(13, "grant",
		     "{'principal':'you','tenant':'default','env':'dev',"
		     "'class':'kv','rights':['read']}");
	get = get_soon("me");
	put = put_soon();
	cluster_run(500);
	EXPECT_FALSE(get->done);
	EXPECT_FALSE(put->done);
	net_mend_all(cl.net);
	EXPECT_RC(rig_wait(get)->rc, RC_OK);
	EXPECT_RC(rig_wait(put)->rc, RC_OK);
	cluster_end();
}

TEST(a_refusal_may_be_older_than_the_grant)
{
	struct told *get;
	struct told *never;

	begin_behind(14, "grant",
		     "{'principal':'you','tenant':'default','env':'dev',"
		     "'class':'kv','rights':['read']}");
	get = get_soon("you");
	never = get_soon("nobody");
	cluster_run(500);
	EXPECT_FALSE(get->done);
	net_mend_all(cl.net);
	EXPECT_RC(rig_wait(get)->rc, RC_OK);
	EXPECT_RC(rig_wait(never)->rc, RC_NOT_FOUND);
	cluster_end();
}

TEST(a_held_call_may_be_cancelled_and_ends_at_its_deadline)
{
	struct told *get;
	struct told *refused;
	struct told *late;

	begin_behind(15, "revoke", "{'principal':'me'}");
	get = get_soon("me");
	refused = get_soon("you");
	late = cluster_start(behind, "you", object, "get", "{'key':'k'}",
			     "{'deadline_ms':200}");
	cluster_run(150);
	call_cancel(get->call);
	EXPECT_RC(rig_wait(get)->rc, RC_NO_QUORUM);
	call_cancel(refused->call);
	EXPECT_RC(rig_wait(refused)->rc, RC_CANCELLED);
	EXPECT_RC(rig_wait(late)->rc, RC_DEADLINE);
	EXPECT_INT(late->outcome, OUTCOME_REFUSED);
	cluster_end();
}

TEST(a_node_may_end_while_calls_are_held)
{
	begin_behind(16, "revoke", "{'principal':'me'}");
	(void)get_soon("me");
	(void)put_soon();
	(void)get_soon("you");
	cluster_run(100);
	cluster_kill(behind);
	cluster_end();
}

/* ---- copies that are too old ---- */

/* The first owns the directory, the second kv/NAME, and nothing moves by
 * itself. */
static void begin_still(uint64_t seed)
{
	unsigned i;
	uint32_t shard;

	cluster_new(3, seed);
	rig.cfg.spread = false;
	cl.ttl_ms = 3000;
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	keeper = cluster_owner(0);
	behind = keeper % 3 + 1;
	third = 6 - keeper - behind;
	i = 0;
	do {
		snprintf(object, sizeof(object), "kv/o%u", i++);
		shard = cluster_shard("kv", object + 3);
	} while (shard == 0);
	for (i = 0; i < 100 && cluster_owner(shard) != behind; i++) {
		if (cluster_owner(shard) != 0)
			(void)core_transfer(cl.at[cluster_owner(shard)].core,
					    shard, behind);
		cluster_run(20);
	}
	EXPECT_RC(cluster_ask(behind, "me", object, "put",
			      "{'key':'k','value':1}", NULL)
			  ->rc,
		  RC_OK);
}

/* The second hears nothing of the directory any more. */
static void cut_off_behind(void)
{
	cluster_cut(keeper, behind);
	net_refuse_bulk(cl.net, third - 1, behind - 1);
}

/* What nobody can know to be allowed is not carried out. */
TEST(an_old_copy_allows_nothing)
{
	struct told *put;

	begin_still(20);
	cut_off_behind();
	cluster_run(4000);
	EXPECT_FALSE(directory_good(cl.at[behind].directory));
	put = put_soon();
	EXPECT_RC(rig_wait(put)->rc, RC_NO_QUORUM);
	EXPECT_INT(put->outcome, OUTCOME_REFUSED);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_expect_ok(behind, "me", object, "get", "{'key':'k'}",
			  "{'value':1,'rev':1}");
	cluster_end();
}

/* It was allowed, by a copy that has become too old before the answer leaves.
 */
TEST(nothing_leaves_under_a_copy_that_has_become_old)
{
	struct directory *d;
	struct told *get;

	begin_still(21);
	d = cl.at[behind].directory;
	cut_off_behind();
	while (directory_age_ms(d) < cl.ttl_ms - 5)
		cluster_run(1);
	/* Its proof comes late. */
	net_clog(cl.net, third - 1, behind - 1, 20);
	get = get_soon("me");
	cluster_run(1000);
	EXPECT_FALSE(get->done);
	EXPECT_RC(rig_wait(get)->rc, RC_NO_QUORUM);
	EXPECT_INT(get->outcome, OUTCOME_REFUSED);
	cluster_end();
}

/* It was so when it was asked for: nobody knows what has changed since. */
TEST(a_copy_is_as_old_as_its_question)
{
	struct directory *d;

	begin_still(22);
	d = cl.at[third].directory;
	net_clog(cl.net, third - 1, keeper - 1, 1010);
	directory_look(d);
	cluster_run(1012);
	EXPECT_TRUE(directory_age_ms(d) >= 1010);
	EXPECT_TRUE(directory_age_ms(d) < 1020);
	cluster_end();
}

/* Another member may know less: what was revoked does not come back with what
 * it tells. */
TEST(an_older_copy_changes_nothing)
{
	struct directory *d;
	uint64_t until_ms;

	begin_still(23);
	d = cl.at[behind].directory;
	cluster_cut(keeper, third);
	/* What the third is asked comes together with the news. */
	until_ms = world_now_ms(rig.w) + 500;
	net_clog(cl.net, behind - 1, third - 1, 500);
	(void)cluster_start(keeper, "root", DIR, "revoke", "{'principal':'me'}",
			    NULL);
	while (!has_copy(behind, 2))
		cluster_run(1);
	net_refuse_bulk(cl.net, keeper - 1, behind - 1);
	cluster_run(5);
	directory_look(d);
	EXPECT_TRUE(world_now_ms(rig.w) < until_ms);
	world_run_until(rig.w, until_ms + 2);
	EXPECT_TRUE(has_copy(third, 1));
	EXPECT_TRUE(has_copy(behind, 2));
	EXPECT_RC(rig_wait(get_soon("me"))->rc, RC_NOT_FOUND);
	cluster_end();
}
