#include "tests/sim/net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "tests/lib/runner.h"

#define NODES   3u
#define DEAD_MS 1200u

static struct world *world;
static struct net *net;

/* One end of a link, and what it was told. */
struct ear {
	unsigned node;
	char trace[512];
	uint64_t epoch[NODES + 1];
	uint64_t last; /* Epoch of the last message. */
};

static struct ear ears[NODES];

static void say(struct ear *e, const char *word)
{
	size_t n = strlen(e->trace);

	EXPECT_TRUE(n + strlen(word) + 2 < sizeof(e->trace));
	(void)snprintf(e->trace + n, sizeof(e->trace) - n, "%s ", word);
}

static void received(void *arg, uint64_t node_id, uint64_t epoch, const void *p,
		     size_t n)
{
	struct ear *e = arg;
	char word[32];

	(void)snprintf(word, sizeof(word), "%u:%.*s", (unsigned)node_id,
		       (int)(n < 16 ? n : 16), (const char *)p);
	e->last = epoch;
	say(e, word);
}

static void changed(void *arg, uint64_t node_id, uint64_t epoch)
{
	struct ear *e = arg;

	EXPECT_TRUE(epoch == 0 || epoch > e->epoch[node_id]);
	e->epoch[node_id] = epoch;
	say(e, epoch == 0 ? "-" : "+");
}

static struct link *link_of(unsigned node)
{
	return net_link(net, node, LINK_RAFT);
}

static void begin(uint64_t seed, bool hostile)
{
	const struct net_config cfg = {
		.nodes = NODES,
		.delay_min_us = 50,
		.delay_max_us = 500,
		.bytes_per_us = 100,
		.queue_bytes = 1000,
		.dead_ms = DEAD_MS,
		.hostile = hostile,
	};
	unsigned i;
	unsigned k;

	world = world_new(seed);
	net = net_new(world, seed, &cfg, NULL);
	for (i = 0; i < NODES; i++) {
		ears[i] = (struct ear){ .node = i };
		for (k = 0; k < LINKS; k++) {
			struct link *l = net_link(net, i, (enum link_kind)k);

			l->received = received;
			l->changed = changed;
			l->arg = &ears[i];
		}
		/* One of the two is enough to look at. */
		net_link(net, i, LINK_BULK)->changed = NULL;
		net_up(net, i);
	}
	world_run_until(world, 100);
	for (i = 0; i < NODES; i++) {
		EXPECT_STR(ears[i].trace, "+ + ");
		ears[i].trace[0] = '\0';
	}
}

static void end(void)
{
	net_free(net);
	world_free(world);
}

static void run(uint64_t ms)
{
	world_run_until(world, world_now_ms(world) + ms);
}

static enum rc send_text(unsigned from, unsigned to, const char *text)
{
	struct link *l = link_of(from);

	return l->ops->send(l, to + 1, text, strlen(text));
}

TEST(messages_come_once_and_in_order)
{
	begin(1, false);
	EXPECT_RC(send_text(0, 1, "a"), RC_OK);
	EXPECT_RC(send_text(0, 1, "b"), RC_OK);
	EXPECT_RC(send_text(2, 1, "c"), RC_OK);
	EXPECT_RC(send_text(1, 0, "d"), RC_OK);
	run(10);
	EXPECT_NOT_NULL(strstr(ears[1].trace, "1:a "));
	EXPECT_TRUE(strstr(ears[1].trace, "1:a ") <
		    strstr(ears[1].trace, "1:b "));
	EXPECT_NOT_NULL(strstr(ears[1].trace, "3:c "));
	EXPECT_UINT(strlen(ears[1].trace), 12);
	EXPECT_STR(ears[0].trace, "2:d ");
	EXPECT_UINT(ears[0].last, ears[0].epoch[2]);
	end();
}

TEST(who_is_not_there_is_not_found)
{
	struct link *l;

	begin(2, false);
	l = link_of(0);
	EXPECT_RC(send_text(0, 0, "a"), RC_NOT_FOUND);
	EXPECT_RC(l->ops->send(l, 0, "a", 1), RC_NOT_FOUND);
	EXPECT_RC(l->ops->send(l, NODES + 1, "a", 1), RC_NOT_FOUND);
	EXPECT_UINT(l->ops->epoch(l, 9), 0);
	EXPECT_UINT(l->ops->room(l, 9), 0);
	end();
}

TEST(a_queue_gets_full)
{
	char big[600] = "x";
	struct link *l;

	begin(3, false);
	l = link_of(0);
	EXPECT_UINT(l->ops->room(l, 2), 1000);
	EXPECT_RC(l->ops->send(l, 2, big, sizeof(big)), RC_OK);
	EXPECT_UINT(l->ops->room(l, 2), 400);
	EXPECT_RC(l->ops->send(l, 2, big, sizeof(big)), RC_OVERLOADED);
	run(10);
	EXPECT_RC(l->ops->send(l, 2, big, sizeof(big)), RC_OK);
	end();
}

TEST(a_reset_loses_what_is_on_its_way_and_connects_again)
{
	uint64_t before;

	begin(4, false);
	before = ears[0].epoch[2];
	EXPECT_RC(send_text(0, 1, "lost"), RC_OK);
	net_reset(net, 0, 1);
	run(200);
	EXPECT_STR(ears[0].trace, "- + ");
	EXPECT_STR(ears[1].trace, "- + ");
	EXPECT_TRUE(ears[0].epoch[2] > before);
	EXPECT_STR(ears[2].trace, "");
	end();
}

TEST(a_short_cut_only_delays)
{
	begin(5, false);
	net_cut(net, 0, 1);
	EXPECT_RC(send_text(0, 1, "a"), RC_OK);
	EXPECT_RC(send_text(1, 0, "b"), RC_OK);
	run(DEAD_MS / 2);
	EXPECT_STR(ears[1].trace, "");
	EXPECT_STR(ears[0].trace, "2:b ");
	net_mend(net, 0, 1);
	run(10);
	EXPECT_STR(ears[1].trace, "1:a ");
	end();
}

TEST(a_long_cut_in_one_direction_ends_the_connection)
{
	begin(6, false);
	net_cut(net, 0, 1);
	run(DEAD_MS + 500);
	EXPECT_STR(ears[0].trace, "- ");
	EXPECT_STR(ears[1].trace, "- ");
	EXPECT_UINT(link_of(0)->ops->epoch(link_of(0), 2), 0);
	run(5000);
	EXPECT_STR(ears[0].trace, "- ");
	net_mend_all(net);
	run(1500);
	EXPECT_STR(ears[0].trace, "- + ");
	EXPECT_STR(ears[1].trace, "- + ");
	end();
}

TEST(a_process_that_ends_is_noticed_and_a_dark_machine_later)
{
	begin(7, false);
	world_end(world, 1);
	net_down(net, 1, false);
	world_kill(world, 1);
	run(10);
	EXPECT_STR(ears[0].trace, "- ");
	net_up(net, 1);
	run(1500);
	EXPECT_STR(ears[0].trace, "- + ");
	world_end(world, 1);
	net_down(net, 1, true);
	world_power_cut(world, 1);
	run(DEAD_MS / 2);
	EXPECT_STR(ears[0].trace, "- + ");
	run(DEAD_MS);
	EXPECT_STR(ears[0].trace, "- + - ");
	end();
}

TEST(a_frozen_process_reads_what_was_sent_and_then_that_it_was_left)
{
	begin(8, false);
	world_pause(world, 1, 3 * DEAD_MS);
	EXPECT_RC(send_text(0, 1, "a"), RC_OK);
	run(2 * DEAD_MS);
	EXPECT_STR(ears[0].trace, "- ");
	EXPECT_STR(ears[1].trace, "");
	run(4 * DEAD_MS);
	EXPECT_TRUE(strncmp(ears[1].trace, "1:a - ", 6) == 0 ||
		    strncmp(ears[1].trace, "1:a - - ", 8) == 0 ||
		    strncmp(ears[1].trace, "- 1:a - ", 8) == 0);
	EXPECT_TRUE(ears[1].epoch[1] != 0 && ears[1].epoch[3] != 0);
	end();
}

TEST(a_drop_ends_the_connection_later)
{
	struct link *l;

	begin(9, false);
	l = link_of(0);
	EXPECT_RC(send_text(1, 0, "unheard"), RC_OK);
	l->ops->drop(l, 2);
	EXPECT_STR(ears[0].trace, "");
	run(300);
	EXPECT_STR(ears[0].trace, "- + ");
	EXPECT_STR(ears[1].trace, "- + ");
	end();
}

TEST(late_messages_come_with_the_number_of_their_connection)
{
	struct net_stats stats;
	uint64_t old;
	unsigned i;

	begin(10, true);
	old = ears[1].epoch[1];
	for (i = 0; i < 5; i++)
		EXPECT_RC(send_text(0, 1, "old"), RC_OK);
	net_reset(net, 0, 1);
	run(500);
	EXPECT_TRUE(ears[1].epoch[1] > old);
	for (i = 0; i < 5; i++) {
		run(1000);
		ears[1].trace[0] = '\0';
		EXPECT_RC(send_text(0, 1, "new"), RC_OK);
		run(10);
		EXPECT_NOT_NULL(strstr(ears[1].trace, "1:new "));
		if (strstr(ears[1].trace, "1:old ") != NULL)
			EXPECT_TRUE(old < ears[1].epoch[1]);
	}
	net_stats(net, &stats);
	EXPECT_UINT(stats.late, 5);
	end();
}

/* ---- streams ---- */

static char heard[64];
static unsigned lost;
static unsigned opened;

static void door_opened(void *arg, struct net_stream *s)
{
	(void)arg;
	EXPECT_UINT(net_stream_client(s), 3);
	*net_stream_mark(s) = heard;
}

static void door_input(void *arg, struct net_stream *s, const uint8_t *p,
		       size_t n)
{
	(void)arg;
	EXPECT_TRUE(*net_stream_mark(s) == heard);
	net_node_send(s, p, n);
}

static void door_lost(void *arg, struct net_stream *s)
{
	(void)s;
	++*(unsigned *)arg;
}

static void dialer_opened(void *arg)
{
	(void)arg;
	opened++;
}

static void dialer_input(void *arg, const uint8_t *p, size_t n)
{
	size_t at = strlen(heard);

	(void)arg;
	EXPECT_TRUE(at + n < sizeof(heard));
	memcpy(heard + at, p, n);
	heard[at + n] = '\0';
}

static void dialer_lost(void *arg)
{
	(void)arg;
	lost++;
}

TEST(streams_carry_bytes_both_ways)
{
	const struct net_dialer dialer = { dialer_opened, dialer_input,
					   dialer_lost, NULL };
	unsigned gone = 0;
	const struct net_door door = { door_opened, door_input, door_lost,
				       &gone };
	struct net_stream *s;

	begin(11, false);
	heard[0] = '\0';
	opened = 0;
	lost = 0;
	s = net_stream(net, 3, 1);
	/* Nobody is at home. */
	net_dial(s, &dialer);
	run(DEAD_MS + 500);
	net_client_close(s);
	net_door(net, 1, &door);
	net_dial(s, &dialer);
	run(10);
	EXPECT_UINT(opened, 1);
	net_client_send(s, "abc", 3);
	net_client_send(s, "def", 3);
	EXPECT_FALSE(net_quiet(net));
	run(10);
	EXPECT_STR(heard, "abcdef");
	EXPECT_TRUE(net_quiet(net));
	net_client_close(s);
	run(10);
	EXPECT_UINT(gone, 1);
	net_dial(s, &dialer);
	run(10);
	EXPECT_UINT(opened, 2);
	world_end(world, 1);
	net_down(net, 1, false);
	run(10);
	EXPECT_UINT(lost, 1);
	end();
}
