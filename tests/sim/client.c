#include "tests/sim/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "tests/sim/memdisk.h"

struct place {
	struct client *c;
	uint32_t link;
	struct net_stream *stream;
};

struct client {
	struct world *w;
	struct net *net;
	struct session *s;
	uint32_t links;
	struct place places[NET_NODES_MAX];
	uint64_t due_ns; /* Of an event in the world; 0: none. */
	bool stepping;
	bool dead;
};

static void client_step(struct client *c);

static void client_due(void *arg)
{
	struct client *c = arg;

	c->due_ns = 0;
	client_step(c);
}

static void client_arm(struct client *c)
{
	uint64_t due = session_due(c->s);
	uint64_t now = world_now_ns(c->w);

	if (due == UINT64_MAX)
		return;
	due = due > now ? due : now;
	/* An event that is there comes first, and looks again. */
	if (c->due_ns != 0 && c->due_ns <= due)
		return;
	c->due_ns = due;
	world_at_ns(c->w, WORLD_NOBODY, due, client_due, c);
}

static void place_opened(void *arg)
{
	struct place *p = arg;

	session_opened(p->c->s, p->link, world_now_ns(p->c->w));
	client_step(p->c);
}

static void place_lost(void *arg)
{
	struct place *p = arg;

	session_lost(p->c->s, p->link, world_now_ns(p->c->w),
		     "connection lost");
	client_step(p->c);
}

static void place_broken(struct place *p, const char *why)
{
	net_client_close(p->stream);
	session_lost(p->c->s, p->link, world_now_ns(p->c->w), why);
}

static void place_input(void *arg, const uint8_t *bytes, size_t n)
{
	struct place *p = arg;
	struct client *c = p->c;
	struct detail why = { { 0 }, { 0 } };
	uint8_t *room;
	size_t some;

	while (n > 0) {
		CHECK(session_room(c->s, p->link, &room, &some) == RC_OK);
		some = some < n ? some : n;
		memcpy(room, bytes, some);
		bytes += some;
		n -= some;
		if (session_input(c->s, p->link, some, world_now_ns(c->w),
				  &why) != RC_OK) {
			place_broken(p, why.text);
			break;
		}
	}
	client_step(c);
}

static void place_step(struct place *p)
{
	const struct net_dialer dialer = { place_opened, place_input,
					   place_lost, p };
	struct client *c = p->c;
	uint64_t now = world_now_ns(c->w);
	struct pack_bytes out;

	if (session_is_stale(c->s, p->link))
		place_broken(p, "nothing came");
	if (session_wants_link(c->s, p->link, now)) {
		session_opening(c->s, p->link);
		net_dial(p->stream, &dialer);
		return;
	}
	if (!session_is_open(c->s, p->link))
		return;
	while ((out = session_output(c->s, p->link)).n > 0) {
		net_client_send(p->stream, out.p, out.n);
		session_sent(c->s, p->link, out.n, now);
	}
}

static void client_step(struct client *c)
{
	uint32_t i;

	if (c->stepping || c->dead)
		return;
	c->stepping = true;
	session_tick(c->s, world_now_ns(c->w));
	for (i = 0; i < c->links; i++)
		place_step(&c->places[i]);
	c->stepping = false;
	client_arm(c);
}

enum rc client_call(struct client *c, const struct session_request *r,
		    session_cb cb, void *arg, uint64_t *ticket,
		    struct detail *why)
{
	enum rc rc = session_start(c->s, r, world_now_ns(c->w), cb, arg, ticket,
				   why);

	client_step(c);
	return rc;
}

void client_cancel(struct client *c, uint64_t ticket)
{
	session_cancel(c->s, ticket, world_now_ns(c->w));
	client_step(c);
}

struct client *client_new(struct world *w, struct net *net, unsigned number,
			  uint64_t seed, uint32_t nodes)
{
	static char names[NET_NODES_MAX][8];
	const char *rpcs[NET_NODES_MAX];
	const char *known[NET_NODES_MAX];
	struct client *c = sim_alloc(sizeof(*c));
	struct session_options o = { .seed = seed + number,
				     .greet = "sim",
				     .rpcs = rpcs,
				     .nodes = known };
	unsigned i;

	c->w = w;
	c->net = net;
	for (i = 0; i < NET_NODES_MAX; i++) {
		if ((nodes & 1u << i) == 0)
			continue;
		(void)snprintf(names[i], sizeof(names[i]), "n%u", i + 1);
		rpcs[c->links] = names[i];
		known[c->links] = names[i];
		c->places[c->links] = (struct place){
			.c = c,
			.link = c->links,
			.stream = net_stream(net, number, i),
		};
		c->links++;
	}
	o.links = c->links;
	CHECK(session_new(&o, &c->s) == RC_OK);
	return c;
}

void client_free(struct client *c)
{
	c->dead = true;
	session_end(c->s);
	session_free(c->s);
	free(c);
}
