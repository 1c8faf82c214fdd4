#include "raft-glue/transport.h"

#include "node/base/check.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"
#include "tests/lib/fake_link.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

/* Nodes 1, 2 and 3; node 4 has a certificate and is no member. */
#define NODES 3u

#define GREETING_BYTES 78u
#define HEAD_BYTES     10u
#define FLUSH_BYTES    (256u << 10)

static struct world *w;
static struct fake_net net;
static struct identity self[NODES + 1];
static struct members *members[NODES + 1];
static struct transport *t[NODES + 1];
static char logged[4096];

/* What one node heard over one channel of one shard. */
struct ear {
	struct transport_sink sink;
	uint64_t node;
	enum transport_channel ch;
	unsigned n;
	uint64_t from;
	uint64_t epoch;
	size_t bytes;
	uint8_t p[256];      /* The front of the last one. */
	uint64_t order[256]; /* The sizes. */
	unsigned changes;
	uint64_t changed_node;
	uint64_t changed_epoch;
	bool drops; /* Ends the connection when it hears something. */
};

static void heard(struct transport_sink *k, uint64_t node_id, uint64_t epoch,
		  const uint8_t *p, size_t n)
{
	struct ear *e = CONTAINER_OF(k, struct ear, sink);

	e->from = node_id;
	e->epoch = epoch;
	e->bytes = n;
	memcpy(e->p, p, n < sizeof(e->p) ? n : sizeof(e->p));
	if (e->n < sizeof(e->order) / sizeof(e->order[0]))
		e->order[e->n] = n;
	e->n++;
	if (e->drops)
		transport_drop(t[e->node], e->ch, node_id);
}

static void changed(struct transport_sink *k, uint64_t node_id, uint64_t epoch)
{
	struct ear *e = CONTAINER_OF(k, struct ear, sink);

	e->changes++;
	e->changed_node = node_id;
	e->changed_epoch = epoch;
	/* It is told when it is so. */
	EXPECT_UINT(transport_epoch(t[e->node], e->ch, node_id), epoch);
}

static void listen_to(struct ear *e, uint64_t node, enum transport_channel ch,
		      uint32_t shard)
{
	*e = (struct ear){ .sink = { heard, changed }, .node = node, .ch = ch };
	transport_listen(t[node], ch, shard, &e->sink);
}

static void log_line(void *arg, const char *line, size_t n)
{
	size_t at = strlen(logged);

	(void)arg;
	if (at + n < sizeof(logged)) {
		memcpy(logged + at, line, n);
		logged[at + n] = '\0';
	}
}

static void member_of(struct member *m, unsigned i)
{
	*m = (struct member){ .id = i };
	memset(m->incarnation, (int)(0x10 + i), ID_BYTES);
	(void)snprintf(m->name, sizeof(m->name), "n%u", i);
}

static void boot(unsigned i)
{
	EXPECT_RC(members_open(world_env(w, i), world_disk(w, i), &self[i],
			       &members[i], NULL),
		  RC_OK);
	EXPECT_RC(transport_new(
			  world_env(w, i), fake_net_link(&net, i, LINK_RAFT),
			  fake_net_link(&net, i, LINK_BULK), members[i], &t[i]),
		  RC_OK);
}

static void begin(uint64_t seed)
{
	struct member list[NODES];
	unsigned i;

	logged[0] = '\0';
	log_setup(LOG_DEBUG_LEVEL, log_line, NULL, NULL);
	w = world_new(seed);
	fake_net_init(&net, NODES + 1);
	for (i = 1; i <= NODES; i++)
		member_of(&list[i - 1], i);
	for (i = 1; i <= NODES; i++) {
		self[i] = (struct identity){ .node_id = i, .boot = 1 };
		memset(self[i].cluster_id, 0xc1, ID_BYTES);
		memset(self[i].nonce, (int)(0x50 + i), ID_BYTES);
		memcpy(self[i].incarnation, list[i - 1].incarnation, ID_BYTES);
		EXPECT_RC(members_format(world_disk(w, i), list, NODES, NULL),
			  RC_OK);
		boot(i);
	}
}

/* Turns, workers and links, until nothing moves any more. */
static void settle(void)
{
	unsigned idle = 0;

	while (idle < 3) {
		idle = fake_net_run(&net) > 0 ? 0 : idle + 1;
		world_run_until(w, world_now_ms(w) + 5);
	}
}

/* The end of a turn, and nothing else. */
static void turn(void)
{
	while (world_step(w))
		;
}

static void end(void)
{
	unsigned i;

	for (i = 1; i <= NODES; i++) {
		transport_discard(t[i]);
		members_discard(members[i]);
	}
	fake_net_release(&net);
	world_free(w);
	log_setup(LOG_DEBUG_LEVEL, NULL, NULL, NULL);
}

static void greeted(uint64_t seed)
{
	begin(seed);
	fake_net_join_all(&net);
	/* Node 4 was refused by all. */
	settle();
	EXPECT_UINT(transport_epoch(t[1], CHANNEL_RAFT, 2),
		    fake_net_end(&net, 1, 2, LINK_RAFT)->epoch);
	EXPECT_TRUE(transport_epoch(t[1], CHANNEL_RAFT, 2) != 0);
}

static struct transport_stats stats(unsigned node)
{
	struct transport_stats s;

	transport_stats(t[node], &s);
	return s;
}

static enum rc say(unsigned from, unsigned to, enum transport_channel ch,
		   uint32_t shard, const char *text)
{
	return transport_send(t[from], ch, shard, to, text, strlen(text), NULL,
			      0);
}

/* ---- records ---- */

TEST(every_channel_of_every_shard)
{
	struct ear ears[CHANNELS][3];
	static const uint32_t shards[3] = { 0, 7, SHARDS_MAX - 1 };
	uint64_t epoch;
	unsigned ch;
	unsigned s;

	greeted(1);
	for (ch = 0; ch < CHANNELS; ch++)
		for (s = 0; s < 3; s++)
			listen_to(&ears[ch][s], 2, (enum transport_channel)ch,
				  shards[s]);
	for (ch = 0; ch < CHANNELS; ch++)
		for (s = 0; s < 3; s++)
			EXPECT_RC(transport_send(
					  t[3], (enum transport_channel)ch,
					  shards[s], 2, "head", 4, "body", s),
				  RC_OK);
	settle();
	for (ch = 0; ch < CHANNELS; ch++)
		for (s = 0; s < 3; s++) {
			epoch = fake_net_end(&net, 2, 3,
					     ch >= CHANNEL_SNAPSHOT ? LINK_BULK
								    : LINK_RAFT)
					->epoch;
			EXPECT_UINT(ears[ch][s].n, 1);
			EXPECT_UINT(ears[ch][s].from, 3);
			EXPECT_UINT(ears[ch][s].epoch, epoch);
			EXPECT_UINT(ears[ch][s].bytes, 4 + s);
			EXPECT_MEM(ears[ch][s].p, "headbody", 4 + s);
		}
	end();
}

TEST(one_frame_a_turn_and_peer)
{
	struct transport_stats was;
	struct transport_stats is;
	struct ear e;
	unsigned i;

	greeted(2);
	listen_to(&e, 2, CHANNEL_RAFT, 3);
	was = stats(1);
	for (i = 0; i < 100; i++) {
		EXPECT_RC(say(1, 2, CHANNEL_RAFT, 3, "x"), RC_OK);
		EXPECT_RC(say(1, 3, CHANNEL_RAFT, 3, "y"), RC_OK);
		EXPECT_RC(say(1, 2, CHANNEL_CALL, 0, "z"), RC_OK);
	}
	EXPECT_UINT(stats(1).frames_out, was.frames_out);
	turn();
	is = stats(1);
	EXPECT_UINT(is.frames_out - was.frames_out, 3);
	EXPECT_UINT(is.records_out - was.records_out, 300);
	EXPECT_UINT(is.bytes_out - was.bytes_out, 3 * (HEAD_BYTES + 700));
	was = stats(2);
	settle();
	is = stats(2);
	EXPECT_UINT(e.n, 100);
	EXPECT_UINT(is.frames_in - was.frames_in, 2);
	EXPECT_UINT(is.records_in - was.records_in, 200);
	EXPECT_UINT(is.bytes_in - was.bytes_in, 2 * (HEAD_BYTES + 700));
	EXPECT_UINT(is.dropped - was.dropped, 100); /* Nobody hears calls. */
	/* Nobody any longer. */
	transport_listen(t[2], CHANNEL_RAFT, 3, NULL);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 3, "x"), RC_OK);
	settle();
	EXPECT_UINT(e.n, 100);
	EXPECT_UINT(stats(2).dropped - is.dropped, 1);
	end();
}

TEST(large_records_keep_their_place)
{
	static uint8_t big[TRANSPORT_RECORD_BYTES_MAX + 1];
	static const size_t sizes[] = {
		3,       FLUSH_BYTES - HEAD_BYTES - 6,
		5,       FLUSH_BYTES - HEAD_BYTES - 5,
		0,       TRANSPORT_RECORD_BYTES_MAX,
		1 << 20, 7,
		200000,  200001,
		9,
	};
	struct ear e;
	size_t i;

	greeted(3);
	listen_to(&e, 2, CHANNEL_RAFT, 3);
	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		EXPECT_RC(transport_send(t[1], CHANNEL_RAFT, 3, 2, "h",
					 sizes[i] > 0, big,
					 sizes[i] - (sizes[i] > 0)),
			  RC_OK);
	EXPECT_RC(transport_send(t[1], CHANNEL_RAFT, 3, 2, big, 1, big,
				 TRANSPORT_RECORD_BYTES_MAX),
		  RC_INVALID);
	EXPECT_RC(
		transport_send(t[1], CHANNEL_RAFT, 3, 2, big, SIZE_MAX, big, 2),
		RC_INVALID);
	settle();
	EXPECT_UINT(e.n, sizeof(sizes) / sizeof(sizes[0]));
	for (i = 0; i < e.n; i++)
		EXPECT_UINT(e.order[i], sizes[i]);
	EXPECT_UINT(stats(1).dropped, 0);
	end();
}

/* Without waiting for the end of the turn. */
TEST(a_full_frame_leaves_at_once)
{
	static uint8_t body[1000];
	uint64_t was;
	unsigned i;

	greeted(4);
	was = stats(1).frames_out;
	for (i = 0; i < 1000; i++)
		EXPECT_RC(transport_send(t[1], CHANNEL_CALL, 0, 2, NULL, 0,
					 body, sizeof(body)),
			  RC_OK);
	EXPECT_UINT(stats(1).frames_out - was, 3);
	turn();
	EXPECT_UINT(stats(1).frames_out - was, 4);
	end();
}

TEST(no_room_is_told)
{
	static uint8_t big[1 << 20];
	struct fake_end *x;
	struct ear e;
	size_t room;

	greeted(5);
	listen_to(&e, 2, CHANNEL_RAFT, 0);
	x = fake_net_end(&net, 1, 2, LINK_RAFT);
	room = transport_room(t[1], CHANNEL_RAFT, 2);
	EXPECT_UINT(room, PEER_OUT_BYTES_MAX - HEAD_BYTES - 6);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OK);
	EXPECT_UINT(transport_room(t[1], CHANNEL_RAFT, 2),
		    room - HEAD_BYTES - 7);
	turn();
	x->full = true;
	EXPECT_UINT(transport_room(t[1], CHANNEL_RAFT, 2), 0);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OVERLOADED);
	EXPECT_RC(transport_send(t[1], CHANNEL_RAFT, 0, 2, NULL, 0, big,
				 sizeof(big)),
		  RC_OVERLOADED);
	EXPECT_UINT(stats(1).dropped, 2);
	/* The other link has its own. */
	EXPECT_TRUE(transport_room(t[1], CHANNEL_CALL, 2) > 0);
	x->full = false;
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OK);
	settle();
	EXPECT_UINT(e.n, 2);
	EXPECT_UINT(x->drops, 0);
	end();
}

/* Whole and in order, or a new connection: never a gap. */
TEST(a_frame_that_is_not_taken_ends_the_connection)
{
	static uint8_t big[1 << 20];
	struct fake_end *x;
	struct ear e;
	unsigned i;

	for (i = 0; i < 3; i++) {
		greeted(6);
		listen_to(&e, 1, CHANNEL_RAFT, 0);
		x = fake_net_end(&net, 1, 2, LINK_RAFT);
		EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OK);
		EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "y"), RC_OK);
		x->full = true;
		if (i == 0)
			turn();
		else if (i == 1)
			EXPECT_RC(transport_send(t[1], CHANNEL_RAFT, 0, 2, NULL,
						 0, big, sizeof(big)),
				  RC_NOT_FOUND);
		else
			EXPECT_RC(transport_send(t[1], CHANNEL_RAFT, 0, 2, NULL,
						 0, big, FLUSH_BYTES - 20),
				  RC_NOT_FOUND);
		EXPECT_UINT(x->drops, 1);
		EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "z"), RC_NOT_FOUND);
		EXPECT_UINT(transport_epoch(t[1], CHANNEL_RAFT, 2), 0);
		EXPECT_UINT(stats(1).dropped, 2);
		EXPECT_UINT(e.changes, 0);
		x->full = false;
		settle();
		EXPECT_UINT(e.changes, 1);
		EXPECT_UINT(e.changed_epoch, 0);
		end();
	}
}

TEST(who_is_not_greeted_is_not_found)
{
	begin(7);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_NOT_FOUND);
	EXPECT_RC(say(1, 1, CHANNEL_RAFT, 0, "x"), RC_NOT_FOUND);
	EXPECT_RC(say(1, 4, CHANNEL_RAFT, 0, "x"), RC_NOT_FOUND);
	EXPECT_UINT(transport_room(t[1], CHANNEL_RAFT, 2), 0);
	EXPECT_UINT(transport_epoch(t[1], CHANNEL_RAFT, 9), 0);
	transport_drop(t[1], CHANNEL_RAFT, 2);
	transport_drop(t[1], CHANNEL_RAFT, 9);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_NOT_FOUND);
	settle();
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OK);
	EXPECT_RC(say(1, 2, CHANNEL_CALL, 0, "x"), RC_NOT_FOUND);
	end();
}

TEST(alone_it_is_silent)
{
	struct transport *lone;
	struct ear e = { .sink = { heard, NULL } };

	begin(8);
	EXPECT_RC(transport_new(world_env(w, 0), NULL, NULL, NULL, &lone),
		  RC_OK);
	transport_listen(lone, CHANNEL_CALL, 0, &e.sink);
	EXPECT_RC(transport_send(lone, CHANNEL_CALL, 0, 2, "x", 1, NULL, 0),
		  RC_NOT_FOUND);
	EXPECT_UINT(transport_epoch(lone, CHANNEL_CALL, 2), 0);
	EXPECT_UINT(transport_room(lone, CHANNEL_CALL, 2), 0);
	transport_version(lone, 5);
	EXPECT_UINT(transport_version_max(lone), 0);
	EXPECT_UINT(transport_version_of(lone, 2), 0);
	transport_drop(lone, CHANNEL_CALL, 2);
	EXPECT_NULL(transport_members(lone));
	transport_free(lone);
	/* With members that it could have. */
	EXPECT_RC(transport_new(world_env(w, 1), NULL, NULL, members[1], &lone),
		  RC_OK);
	EXPECT_RC(transport_send(lone, CHANNEL_RAFT, 0, 2, "x", 1, NULL, 0),
		  RC_NOT_FOUND);
	EXPECT_TRUE(transport_members(lone) == members[1]);
	transport_free(lone);
	end();
}

TEST(versions_travel_with_every_frame)
{
	greeted(9);
	EXPECT_UINT(transport_version_max(t[1]), 0);
	transport_version(t[2], 7);
	transport_version(t[3], 5);
	EXPECT_RC(say(2, 1, CHANNEL_RAFT, 0, "x"), RC_OK);
	/* The one of the moment it leaves. */
	transport_version(t[2], 8);
	EXPECT_RC(say(3, 1, CHANNEL_CALL, 0, "x"), RC_OK);
	settle();
	EXPECT_UINT(transport_version_of(t[1], 2), 8);
	EXPECT_UINT(transport_version_of(t[1], 3), 5);
	EXPECT_UINT(transport_version_max(t[1]), 8);
	EXPECT_UINT(transport_version_of(t[1], 4), 0);
	EXPECT_UINT(transport_version_of(t[3], 2), 0);
	/* It never falls. */
	transport_version(t[2], 6);
	EXPECT_RC(say(2, 1, CHANNEL_RAFT, 0, "x"), RC_OK);
	settle();
	EXPECT_UINT(transport_version_of(t[1], 2), 8);
	end();
}

TEST(a_sink_that_ends_the_connection_hears_no_more)
{
	struct ear e;
	struct ear other;

	greeted(10);
	listen_to(&e, 2, CHANNEL_RAFT, 1);
	listen_to(&other, 2, CHANNEL_STAMP, 0);
	e.drops = true;
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 1, "x"), RC_OK);
	EXPECT_RC(say(1, 2, CHANNEL_STAMP, 0, "y"), RC_OK);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 1, "z"), RC_OK);
	settle();
	EXPECT_UINT(e.n, 1);
	EXPECT_UINT(other.n, 0);
	EXPECT_UINT(stats(2).broken, 1);
	EXPECT_UINT(e.changes, 1);
	EXPECT_UINT(e.changed_epoch, 0);
	/* The other link stands. */
	EXPECT_TRUE(transport_epoch(t[2], CHANNEL_CALL, 1) != 0);
	end();
}

/* ---- connections ---- */

TEST(sinks_are_told_of_their_link)
{
	struct ear raft;
	struct ear call;
	struct ear quiet;
	uint64_t epoch;

	begin(11);
	listen_to(&raft, 1, CHANNEL_RAFT, 5);
	listen_to(&call, 1, CHANNEL_CALL, 0);
	listen_to(&quiet, 1, CHANNEL_ROUND, 0);
	quiet.sink.changed = NULL;
	fake_net_join(&net, 1, 2, LINK_RAFT);
	EXPECT_UINT(raft.changes, 0);
	settle();
	epoch = fake_net_end(&net, 1, 2, LINK_RAFT)->epoch;
	EXPECT_UINT(raft.changes, 1);
	EXPECT_UINT(raft.changed_node, 2);
	EXPECT_UINT(raft.changed_epoch, epoch);
	EXPECT_UINT(call.changes, 0);
	fake_net_cut(&net, 1, 2, LINK_RAFT);
	EXPECT_UINT(raft.changes, 2);
	EXPECT_UINT(raft.changed_epoch, 0);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	settle();
	EXPECT_UINT(raft.changes, 3);
	EXPECT_TRUE(raft.changed_epoch > epoch);
	/* One that was never greeted is not told as lost. */
	fake_net_join(&net, 1, 3, LINK_RAFT);
	fake_net_cut(&net, 1, 3, LINK_RAFT);
	EXPECT_UINT(raft.changes, 3);
	/* A new connection without word of the end of the old one. */
	fake_net_end(&net, 1, 2, LINK_RAFT)->epoch += 100;
	net.links[1][LINK_RAFT].link.changed(
		net.links[1][LINK_RAFT].link.arg, 2,
		fake_net_end(&net, 1, 2, LINK_RAFT)->epoch);
	EXPECT_UINT(raft.changes, 4);
	EXPECT_UINT(raft.changed_epoch, 0);
	end();
}

/* What an older connection carried comes after the new one stands. */
static void late_frame(struct ear *e)
{
	greeted(12);
	listen_to(e, 2, CHANNEL_RAFT, 0);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "old"), RC_OK);
	turn();
	fake_net_end(&net, 1, 2, LINK_RAFT)->held = true;
	fake_net_cut_late(&net, 1, 2, LINK_RAFT, true);
	/* As fake_net_join, which would forget what is under way. */
	{
		struct fake_message *m = fake_net_next(&net, 1, 2, LINK_RAFT);

		EXPECT_NOT_NULL(m);
		fake_net_take(&net, m);
		fake_net_join(&net, 1, 2, LINK_RAFT);
		fake_net_end(&net, 1, 2, LINK_RAFT)->held = false;
		settle();
		EXPECT_TRUE(transport_epoch(t[2], CHANNEL_RAFT, 1) != 0);
		STAILQ_INSERT_TAIL(&net.queue, m, link);
	}
	settle();
}

TEST(a_frame_of_an_older_connection_is_dropped)
{
	struct ear e;

	late_frame(&e);
	EXPECT_UINT(e.n, 0);
	EXPECT_UINT(stats(2).dropped, 1);
	EXPECT_UINT(stats(2).broken, 0);
	EXPECT_TRUE(transport_epoch(t[2], CHANNEL_RAFT, 1) != 0);
	end();
}

TEST(mutant_epoch_stale_dies)
{
	struct ear e;

	mutant_now = MUTANT_epoch_stale;
	late_frame(&e);
	mutant_now = MUTANT_none;
	EXPECT_UINT(e.n, 1); /* As it must not be, */
	/* and so that guard B19 behind it does not see it either. */
	EXPECT_UINT(e.epoch, transport_epoch(t[2], CHANNEL_RAFT, 1));
	end();
}

/* No ready, and so no record, before the other's greeting is on the disk. */
TEST(greetings_are_synced_first)
{
	uint8_t *p;
	size_t n;

	begin(13);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	EXPECT_UINT(fake_net_end(&net, 1, 2, LINK_RAFT)->sent, 1);
	EXPECT_UINT(fake_net_run(&net), 2);
	while (fake_net_end(&net, 1, 2, LINK_RAFT)->sent == 1) {
		EXPECT_NULL(fake_net_next(&net, 1, 2, LINK_RAFT));
		EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_NOT_FOUND);
		EXPECT_TRUE(world_step(w));
	}
	p = world_file(w, 1, "members", true, &n);
	EXPECT_UINT(n, 8192);
	EXPECT_UINT(p[2 * 512 + 48], 1);
	EXPECT_UINT(p[2 * 512 + 56], 0x52);
	EXPECT_UINT(p[4096 + 2 * 512 + 56], 0x52);
	free(p);
	/* It has not heard that it is noted itself. */
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_NOT_FOUND);
	settle();
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OK);
	end();
}

TEST(lost_while_the_greeting_is_written)
{
	unsigned steps;

	for (steps = 0; steps < 12; steps++) {
		unsigned i;

		runner_context("after %u steps", steps);
		begin(14);
		fake_net_join(&net, 1, 2, LINK_RAFT);
		(void)fake_net_run(&net);
		for (i = 0; i < steps; i++)
			(void)world_step(w);
		fake_net_cut(&net, 1, 2, LINK_RAFT);
		fake_net_join(&net, 1, 2, LINK_RAFT);
		(void)fake_net_run(&net);
		(void)world_step(w);
		fake_net_join(&net, 1, 2, LINK_RAFT);
		settle();
		EXPECT_TRUE(transport_epoch(t[1], CHANNEL_RAFT, 2) != 0);
		EXPECT_TRUE(transport_epoch(t[2], CHANNEL_RAFT, 1) != 0);
		EXPECT_UINT(stats(1).broken + stats(2).broken, 0);
		EXPECT_UINT(stats(1).refused + stats(2).refused, 0);
		end();
	}
}

/* Node 2 starts anew, with its next boot. */
static void restart(uint64_t boot_number)
{
	transport_discard(t[2]);
	members_discard(members[2]);
	world_kill(w, 2);
	self[2].boot = boot_number;
	memset(self[2].nonce, (int)(0x60 + boot_number), ID_BYTES);
	boot(2);
}

TEST(what_is_left_of_an_older_boot_is_dropped)
{
	struct ear e;
	struct fake_message *m;

	greeted(15);
	listen_to(&e, 1, CHANNEL_CALL, 0);
	/* The last words of the old process, over the bulk link. */
	EXPECT_RC(say(2, 1, CHANNEL_CALL, 0, "x"), RC_OK);
	turn();
	m = fake_net_next(&net, 2, 1, LINK_BULK);
	EXPECT_NOT_NULL(m);
	fake_net_take(&net, m);
	restart(2);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	settle();
	EXPECT_TRUE(transport_epoch(t[1], CHANNEL_RAFT, 2) != 0);
	STAILQ_INSERT_TAIL(&net.queue, m, link);
	settle();
	EXPECT_UINT(e.n, 0);
	EXPECT_UINT(fake_net_end(&net, 1, 2, LINK_BULK)->drops, 1);
	EXPECT_UINT(transport_epoch(t[1], CHANNEL_CALL, 2), 0);
	fake_net_join(&net, 1, 2, LINK_BULK);
	settle();
	EXPECT_TRUE(transport_epoch(t[1], CHANNEL_CALL, 2) != 0);
	EXPECT_UINT(stats(1).refused, 2); /* Node 4, twice. */
	end();
}

/* What waits for an older greeting of the same peer to be written is checked by
 * what that one was. */
TEST(a_greeting_behind_another_is_checked_too)
{
	begin(27);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	(void)fake_net_run(&net);
	fake_net_cut(&net, 1, 2, LINK_RAFT);
	/* A copy of its disk. */
	restart(1);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	(void)fake_net_run(&net);
	EXPECT_UINT(stats(1).refused, 0);
	settle();
	EXPECT_UINT(stats(1).refused, 1);
	EXPECT_UINT(transport_epoch(t[1], CHANNEL_RAFT, 2), 0);
	EXPECT_UINT(transport_epoch(t[2], CHANNEL_RAFT, 1), 0);
	end();
}

static void expect_refused(unsigned by, const char *text)
{
	struct fake_end *x = fake_net_end(&net, by, 2, LINK_RAFT);
	struct transport_stats s = stats(by);
	const char *first;

	fake_net_join(&net, by, 2, LINK_RAFT);
	settle();
	EXPECT_UINT(x->drops, 1);
	EXPECT_UINT(x->epoch, 0);
	EXPECT_UINT(stats(by).refused - s.refused, 1);
	EXPECT_UINT(stats(by).broken, s.broken);
	EXPECT_UINT(transport_epoch(t[by], CHANNEL_RAFT, 2), 0);
	EXPECT_UINT(transport_epoch(t[2], CHANNEL_RAFT, by), 0);
	/* Once. */
	first = strstr(logged, "peer_refused");
	EXPECT_NOT_NULL(first);
	EXPECT_NULL(strstr(first + 1, "peer_refused"));
	EXPECT_HAS(logged, "\"warn\"");
	EXPECT_HAS(logged, text);
}

TEST(another_cluster_is_refused)
{
	begin(16);
	self[2].cluster_id[0]++;
	restart(1);
	/* Each refuses the other: only one is looked at. */
	fake_net_end(&net, 1, 2, LINK_RAFT)->held = true;
	expect_refused(1, "of another cluster");
	end();
}

/* An older copy of its data directory. */
TEST(an_older_disk_is_refused)
{
	greeted(17);
	restart(3);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	settle();
	EXPECT_TRUE(transport_epoch(t[1], CHANNEL_RAFT, 2) != 0);
	restart(2);
	logged[0] = '\0';
	expect_refused(1, "`holdfast node reset`");
	EXPECT_HAS(logged, "older data directory");
	/* It comes again and again: that is told, and not each time. */
	logged[0] = '\0';
	fake_net_join(&net, 1, 2, LINK_RAFT);
	settle();
	EXPECT_NULL(strstr(logged, "peer_refused"));
	world_run_until(w, world_now_ms(w) + 10000);
	fake_net_join(&net, 1, 2, LINK_RAFT);
	settle();
	EXPECT_HAS(logged, "peer_refused");
	end();
}

static void greet_as_2(struct greeting *g, uint8_t frame[GREETING_BYTES])
{
	members_greeting(members[2], g);
	frame[0] = TRANSPORT_PROTOCOL;
	frame[1] = 1;
	le_put64(frame + 2, 0);
	le_put32(frame + 10, g->protocol);
	memcpy(frame + 14, g->cluster_id, ID_BYTES);
	le_put64(frame + 30, g->node_id);
	memcpy(frame + 38, g->incarnation, ID_BYTES);
	le_put64(frame + 54, g->boot);
	memcpy(frame + 62, g->nonce, ID_BYTES);
}

/* Node 1 hears what is injected in the name of node 2, and nothing else. */
static void hostile(uint64_t seed)
{
	begin(seed);
	fake_net_end(&net, 2, 1, LINK_RAFT)->lose = UINT32_MAX;
	fake_net_join(&net, 1, 2, LINK_RAFT);
	settle();
}

static void inject(const uint8_t *p, size_t n)
{
	fake_net_inject(&net, 2, 1, LINK_RAFT, p, n);
	settle();
}

/* It has greeted, and said that it is ready. */
static void hostile_greeted(uint64_t seed)
{
	static const uint8_t ready[HEAD_BYTES] = { TRANSPORT_PROTOCOL, 2 };
	uint8_t frame[GREETING_BYTES];
	struct greeting g;

	hostile(seed);
	greet_as_2(&g, frame);
	inject(frame, sizeof(frame));
	EXPECT_UINT(transport_epoch(t[1], CHANNEL_RAFT, 2), 0);
	inject(ready, sizeof(ready));
	EXPECT_TRUE(transport_epoch(t[1], CHANNEL_RAFT, 2) != 0);
}

TEST(another_version_is_told_by_name)
{
	uint8_t frame[GREETING_BYTES + 20] = { 0 };
	struct greeting g;

	hostile(18);
	greet_as_2(&g, frame);
	frame[0]++;
	le_put32(frame + 10, TRANSPORT_PROTOCOL + 1);
	inject(frame, sizeof(frame));
	EXPECT_UINT(stats(1).refused, 1);
	EXPECT_UINT(stats(1).broken, 0);
	EXPECT_HAS(logged, "same release");
	end();
}

TEST(what_comes_before_the_greeting_is_broken)
{
	uint8_t frame[GREETING_BYTES + 1] = { TRANSPORT_PROTOCOL, 1 };
	static const uint8_t ready[HEAD_BYTES] = { TRANSPORT_PROTOCOL, 2 };
	static const uint8_t record[HEAD_BYTES + 7] = { TRANSPORT_PROTOCOL, 3 };
	struct greeting g;
	struct ear e;
	unsigned i;

	for (i = 0; i < 6; i++) {
		runner_context("case %u", i);
		hostile(19);
		listen_to(&e, 1, CHANNEL_RAFT, 0);
		greet_as_2(&g, frame);
		if (i == 0)
			inject(ready, sizeof(ready));
		else if (i == 1)
			inject(record, sizeof(record));
		else if (i == 2)
			inject(frame, GREETING_BYTES - 1);
		else if (i == 3)
			inject(frame, GREETING_BYTES + 1);
		else if (i == 4)
			inject(frame, 0);
		else
			inject(frame, HEAD_BYTES);
		EXPECT_UINT(stats(1).broken, 1);
		EXPECT_UINT(stats(1).refused, 0);
		EXPECT_UINT(fake_net_end(&net, 1, 2, LINK_RAFT)->drops, 1);
		EXPECT_UINT(e.n, 0);
		end();
	}
}

/* While node 1 still writes the greeting down. */
TEST(ready_may_come_early_and_records_not)
{
	static const uint8_t ready[HEAD_BYTES] = { TRANSPORT_PROTOCOL, 2, 9 };
	static const uint8_t record[HEAD_BYTES + 6] = { TRANSPORT_PROTOCOL, 3 };
	uint8_t frame[GREETING_BYTES];
	struct greeting g;
	unsigned i;

	for (i = 0; i < 2; i++) {
		hostile(20);
		greet_as_2(&g, frame);
		fake_net_inject(&net, 2, 1, LINK_RAFT, frame, sizeof(frame));
		fake_net_inject(&net, 2, 1, LINK_RAFT, ready, sizeof(ready));
		if (i == 1)
			fake_net_inject(&net, 2, 1, LINK_RAFT, record,
					sizeof(record));
		(void)fake_net_run(&net);
		/* Of whom it does not know yet, it does not believe it. */
		EXPECT_UINT(transport_version_of(t[1], 2), 0);
		settle();
		EXPECT_UINT(transport_epoch(t[1], CHANNEL_RAFT, 2) != 0,
			    i == 0);
		EXPECT_UINT(stats(1).broken, i);
		end();
	}
}

TEST(malformed_frames_end_the_connection)
{
	static const struct {
		size_t n;
		uint8_t p[HEAD_BYTES + 16];
	} bad[] = {
		{ 0, { 0 } },
		{ 9, { 1, 3 } },
		/* Of another version, of no kind. */
		{ 16, { 2, 3 } },
		{ 16, { 0, 3 } },
		{ 16, { 1, 0 } },
		{ 16, { 1, 4 } },
		{ 16, { 1, 255 } },
		/* Ready again, and with more to say. */
		{ 10, { 1, 2 } },
		{ 11, { 1, 2 } },
		/* A second greeting. */
		{ 26, { 1, 1 } },
		/* No record, half a head, half a record. */
		{ 10, { 1, 3 } },
		{ 15, { 1, 3 } },
		{ 16, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1 } },
		{ 17, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 2 } },
		{ 17, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255 } },
		/* A good one, and a byte. */
		{ 17, { 1, 3 } },
		/* A channel that is none, or of the other link. */
		{ 16, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5 } },
		{ 16, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3 } },
		{ 16, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4 } },
		/* A shard that cannot be. */
		{ 16, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64 } },
		/* A good one before a bad one: none is heard. */
		{ 22, { 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
			0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0 } },
	};
	struct ear e;
	unsigned i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		runner_context("frame %u", i);
		hostile_greeted(21);
		listen_to(&e, 1, CHANNEL_RAFT, 0);
		inject(bad[i].p, bad[i].n);
		EXPECT_UINT(stats(1).broken, 1);
		EXPECT_UINT(e.n, 0);
		EXPECT_UINT(fake_net_end(&net, 1, 2, LINK_RAFT)->drops, 1);
		EXPECT_UINT(e.changed_epoch, 0);
		EXPECT_UINT(e.changes, 1);
		end();
	}
}

TEST(what_follows_a_drop_is_not_heard)
{
	static const uint8_t record[HEAD_BYTES + 6] = { TRANSPORT_PROTOCOL, 3 };
	struct ear e;

	hostile_greeted(22);
	listen_to(&e, 1, CHANNEL_RAFT, 0);
	fake_net_inject(&net, 2, 1, LINK_RAFT, record, sizeof(record));
	(void)fake_net_run(&net);
	EXPECT_UINT(e.n, 1);
	transport_drop(t[1], CHANNEL_RAFT, 2);
	transport_drop(t[1], CHANNEL_RAFT, 2);
	EXPECT_UINT(stats(1).broken, 1);
	net.links[1][LINK_RAFT].link.received(
		net.links[1][LINK_RAFT].link.arg, 2,
		fake_net_end(&net, 1, 2, LINK_RAFT)->epoch, record,
		sizeof(record));
	EXPECT_UINT(e.n, 1);
	end();
}

TEST(who_is_no_member_is_dropped)
{
	begin(23);
	fake_net_join(&net, 1, 4, LINK_RAFT);
	EXPECT_UINT(fake_net_end(&net, 1, 4, LINK_RAFT)->drops, 1);
	EXPECT_UINT(stats(1).refused, 1);
	EXPECT_HAS(logged, "peer_refused");
	EXPECT_HAS(logged, "no member");
	fake_net_inject(&net, 4, 1, LINK_RAFT, "hello", 5);
	settle();
	EXPECT_UINT(stats(1).frames_in, 0);
	end();
}

/* The link is full at the first word. */
TEST(a_greeting_that_does_not_leave_ends_the_connection)
{
	begin(24);
	fake_net_end(&net, 1, 2, LINK_RAFT)->full = true;
	fake_net_join(&net, 1, 2, LINK_RAFT);
	EXPECT_UINT(fake_net_end(&net, 1, 2, LINK_RAFT)->drops, 1);
	settle();
	EXPECT_UINT(fake_net_end(&net, 1, 2, LINK_RAFT)->epoch, 0);
	end();
}

/* ---- life ---- */

TEST(freed_with_a_frame_that_waits)
{
	greeted(25);
	EXPECT_RC(say(1, 2, CHANNEL_RAFT, 0, "x"), RC_OK);
	fake_net_cut_node(&net, 1);
	transport_free(t[1]);
	turn();
	members_discard(members[1]);
	boot(1);
	end();
}

TEST(no_memory_is_told)
{
	struct transport *one;
	unsigned n;
	enum rc rc;

	begin(26);
	for (n = 1;; n++) {
		fault_alloc(n);
		rc = transport_new(
			world_env(w, 1), fake_net_link(&net, 1, LINK_RAFT),
			fake_net_link(&net, 1, LINK_BULK), members[1], &one);
		if (!fault_off())
			break;
		EXPECT_RC(rc, RC_NOMEM);
	}
	EXPECT_UINT(n, 1 + 2 * (NODES - 1) + 1);
	EXPECT_RC(rc, RC_OK);
	transport_discard(t[1]);
	t[1] = one;
	end();
}

TEST(no_memory_for_a_large_record)
{
	static uint8_t big[1 << 20];

	greeted(27);
	fault_alloc(1);
	EXPECT_RC(transport_send(t[1], CHANNEL_CALL, 0, 2, NULL, 0, big,
				 sizeof(big)),
		  RC_OVERLOADED);
	EXPECT_TRUE(fault_off());
	EXPECT_RC(transport_send(t[1], CHANNEL_CALL, 0, 2, NULL, 0, big,
				 sizeof(big)),
		  RC_OK);
	end();
}
