/*
 * metrics - what the node tells about itself: status, its members, its shards,
 * Prometheus metrics, and the listings of objects.
 *
 * Loop thread. Every counter of `metrics` is a row of metrics.tbl.
 */
#ifndef HOLDFAST_NODE_METRICS_H
#define HOLDFAST_NODE_METRICS_H

#include "node/config.h"
#include "node/os/env_uv.h"
#include "node/peer.h"
#include "node/rpc.h"

struct metrics;

enum rc metrics_open(uv_loop_t *loop, struct env_uv *env, struct core *core,
		     struct metrics **out);
/* What a node in a cluster tells besides; without it nothing of that is known.
 * All outlive the metrics; the two places may hold NULL, and change. */
struct metrics_about {
	const struct config *cfg;
	struct peers *const *peers;
	struct tls_context *const *tls;
};
void metrics_about(struct metrics *m, const struct metrics_about *about);
/* Fills `host` with what rpc asks. */
void metrics_host(struct metrics *m, struct rpc_host *host);
void metrics_rpc(struct metrics *m, struct rpc *rpc);
/* Ends with the loop: its handles close asynchronously, then it is freed. The
 * core must be closed before. */
void metrics_close(struct metrics *m);

#endif
