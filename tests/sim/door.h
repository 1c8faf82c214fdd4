/*
 * door - the node's side of its clients: frames in, calls, frames out.
 *
 * What node/rpc.c is on sockets, over the streams of net.h: the same frames,
 * `hello`, `ping`, `call` and `cancel`. Its client's number is who a connection
 * is proved to be. On the node's thread.
 */
#ifndef TESTS_SIM_DOOR_H
#define TESTS_SIM_DOOR_H

#include "node/core/core.h"
#include "tests/sim/net.h"

struct door;

/* `principal` gives that of a client at a node; what it returns outlives the
 * door. */
struct door *door_new(struct world *w, struct net *net, unsigned node,
		      struct core *core,
		      struct pack_bytes (*principal)(unsigned client,
						     unsigned node));
/* No answer leaves any more; calls that are open end through nobody. Before
 * core_discard, or after every call has ended. */
void door_free(struct door *d);
/* No new connections; what is open goes on. */
void door_drain(struct door *d);

#endif
