/*
 * client - one client: the real session (client/session.h) over streams of the
 * net, one to each node it knows.
 *
 * One thread: the driver's. Time is the world's.
 */
#ifndef TESTS_SIM_CLIENT_H
#define TESTS_SIM_CLIENT_H

#include "client/session.h"
#include "tests/sim/net.h"

struct client;

/* `nodes`: a bit for each that it knows. */
struct client *client_new(struct world *w, struct net *net, unsigned number,
			  uint64_t seed, uint32_t nodes);
/* Calls that are open end unheard. */
void client_free(struct client *c);

/* As session_start; never from inside a callback. */
enum rc client_call(struct client *c, const struct session_request *r,
		    session_cb cb, void *arg, uint64_t *ticket,
		    struct detail *why);
void client_cancel(struct client *c, uint64_t ticket);

#endif
