/*
 * admission - how many calls this node has in flight at once.
 *
 * Loop thread. A node that takes every call that comes has, in a flood, a queue
 * instead of answers: what is in flight over what it completes in a second is
 * how long a call takes (Little). So there is a limit, and a call above it is
 * refused before anything of it but its id was looked at. The limit follows
 * what the calls take, as TCP's window does: while calls are being refused it
 * shrinks when those that were let in take longer than ADMISSION_OWN_MS beside
 * the disk, and grows otherwise. Where nothing is refused it is at least
 * ADMISSION_CALLS, so whoever keeps fewer calls in flight is never refused,
 * however slow the machine. docs/adr/0021 says why.
 *
 * Calls of clients and those that other nodes send are counted apart: a flood
 * at one door does not shut the other.
 */
#ifndef HOLDFAST_CORE_ADMISSION_H
#define HOLDFAST_CORE_ADMISSION_H

#include <stdbool.h>
#include <stdint.h>

enum door {
	DOOR_CLIENTS,
	DOOR_NODES, /* Its limit is twice that of clients: another node has
		     * let them in already. */
	DOORS,
};

struct admission {
	uint32_t limit;
	uint32_t limit_max;
	uint32_t open[DOORS];
	uint64_t refused[DOORS]; /* So far. */

	uint64_t window_ns; /* Private, as all below: when it ends. */
	uint32_t most;      /* In flight of clients, in this window. */
	uint32_t ended;     /* In this window, and what they took. */
	uint64_t took_ns;
	uint64_t refused_then;
	uint64_t syncs_then;
	uint64_t sync_ns_then;
	uint64_t sync_ns; /* What one takes, as last seen. */
};

/* `limit_max` (1 or more): calls of clients in flight, whatever happens. */
void admission_init(struct admission *a, uint32_t limit_max, uint64_t now_ns);

/* True: the call is in, until admission_leave. `alone`: its connection has no
 * other one in flight; it is let in up to twice the limit, so that a flood of
 * some does not shut out who asks for little. */
bool admission_enter(struct admission *a, enum door door, bool alone);
void admission_leave(struct admission *a, enum door door);

/* One that was executed, or sent on to its owner, took so long. */
void admission_took(struct admission *a, uint64_t ns);

/* To be asked whenever a call has ended: the window may be over. */
static inline bool admission_due(const struct admission *a, uint64_t now_ns);
/* It is: `syncs` and `sync_ns` are what the own log counts (log_stats). */
void admission_turn(struct admission *a, uint64_t now_ns, uint64_t syncs,
		    uint64_t sync_ns);

static inline bool admission_due(const struct admission *a, uint64_t now_ns)
{
	return now_ns >= a->window_ns;
}

#endif
