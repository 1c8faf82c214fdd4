/*
 * directory - this node's watched copy of what the cluster knows: grants and
 * members, kept by the object `directory/cluster` of the tenant `holdfast` in
 * shard 0 (DESIGN D10).
 *
 * Loop thread. Reads the object through an ordinary linearizable call, as the
 * principal `node:ID`, at start, once a second, and at once when a peer's frame
 * carries a newer version; fills the bind with its grants, and lets in members
 * that come back with an empty disk. The copy is good for `ttl_ms` after the
 * beginning of its last such read; then calls of clients are refused with
 * NO_QUORUM. A cluster's first owner of shard 0 seeds it from its
 * configuration, once. Without a way to that owner another member is asked,
 * which answers from its own copy and says how old that is.
 *
 * What is decided from the copy leaves this node only while no peer has told of
 * a newer one: call.c holds it until the copy is newer, and asks again whether
 * it is allowed.
 */
#ifndef HOLDFAST_CORE_DIRECTORY_H
#define HOLDFAST_CORE_DIRECTORY_H

#include "node/core/bind.h"
#include "node/core/core.h"

struct directory;

#define DIRECTORY_TTL_MS  10000u
#define DIRECTORY_POLL_MS 1000u
/* Between looks at what peers have told, and after a read that failed. */
#define DIRECTORY_WATCH_MS 50u

struct directory_config {
	uint32_t ttl_ms;            /* 0: DIRECTORY_TTL_MS. */
	const struct grant *grants; /* The seed; stay valid. */
	size_t grants_n;
};

/* The bind is the directory's from here on: what it has is replaced by the
 * first copy. `ready` (may be NULL) fires once, when that is there. RC_NOMEM.
 */
enum rc directory_new(struct core *core, struct bind *bind,
		      const struct directory_config *cfg,
		      void (*ready)(void *arg), void *arg,
		      struct directory **out);
/* After the core was closed or discarded. */
void directory_free(struct directory *d);

/* May calls be decided from the copy now? */
bool directory_good(const struct directory *d);
uint64_t directory_version(const struct directory *d);
/* How long ago the newest read that succeeded began; UINT64_MAX: none has. */
uint64_t directory_age_ms(const struct directory *d);

#endif
