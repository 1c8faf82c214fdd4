/*
 * founders - the files of a new cluster: `holdfast init DIR --nodes 3`.
 *
 * Blocking, offline. For each founder DIR/nodeN has a configuration, a
 * formatted data directory, and its certificate and key; DIR/client.yaml and
 * DIR/client/ are for whoever calls; DIR/ca/ has the key that signs, which no
 * node needs. Cluster id and hash key are drawn once and shared, incarnations
 * are known to all. No node has another's key or the authority's.
 */
#ifndef HOLDFAST_NODE_FOUNDERS_H
#define HOLDFAST_NODE_FOUNDERS_H

#include <stdint.h>
#include <stdio.h>

#include "client/proto/rc.h"
#include "raft-glue/members.h"

#define FOUNDERS_RPC_PORT  7101u
#define FOUNDERS_PEER_PORT 7201u

struct founders {
	const char *dir;
	unsigned nodes; /* 3 or 5. */
	/* Where nodes listen and are reached: one host for all, then the ports
	 * count up from node to node; or, between commas, one for each, then
	 * the ports are the same on all. */
	const char *hosts;
	uint16_t rpc_port;  /* Of the first; 0: a free one of this machine */
	uint16_t peer_port; /* for each. */
	uint32_t shards;
};

/* 127.0.0.1, the ports above, SHARDS_DEFAULT; no directory. */
void founders_default(struct founders *f);

/*
 * Make all of it. RC_EXISTS: the directory is there and not empty;
 * RC_INVALID: a field of `f`, named in `why`; RC_IO, RC_NO_SPACE and what
 * core_format says: the directory is incomplete, and of no use. What was made
 * is told to `out`.
 */
enum rc founders_make(const struct founders *f, FILE *out, struct detail *why);

#endif
