/*
 * app - what a shard drives: the state machine above it, as a vtable.
 *
 * Loop thread. node/core/bridge.c implements it; raft-glue's tests fake it.
 * No call below comes from inside a call the app made into the shard.
 */
#ifndef HOLDFAST_RAFT_GLUE_APP_H
#define HOLDFAST_RAFT_GLUE_APP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct app;

struct app_ops {
	/* This node leads the shard in `term`, everything that was in its log
	 * at election is committed and has been applied: execution may begin.
	 */
	void (*lead)(struct app *a, uint64_t term);
	/* No longer. What was collected or submitted and not committed may or
	 * may not become so. */
	void (*lost)(struct app *a, uint64_t term);
	/*
	 * Give the bytes of the next entry: everything that came together since
	 * the last call, up to shard_entry_bytes_max. The bytes are the shard's
	 * from here on, freed with free(). False: nothing to propose. Every
	 * true is answered by `submitted` or `refused`, in order.
	 */
	bool (*collect)(struct app *a, uint64_t term, void **data,
			size_t *bytes);
	void (*submitted)(struct app *a, uint64_t term, uint64_t index);
	void (*refused)(struct app *a, enum rc rc);
	/* Leader only: the entry at `index` and all before it are committed.
	 * The output gate. */
	void (*committed)(struct app *a, uint64_t index);
	/* One committed entry that is durable here, in index order, once.
	 * RC_CORRUPT: it cannot be digested; the shard stops applying. */
	enum rc (*apply)(struct app *a, uint64_t index, uint64_t term,
			 const void *data, size_t bytes);
	/* A barrier, tick or configuration entry was applied (no app data):
	 * `conf`/`conf_bytes` is the encoded configuration when it was one. */
	enum rc (*applied_other)(struct app *a, uint64_t index, uint64_t term,
				 const void *conf, size_t conf_bytes);
	/* The log wants to drop this shard's old records: flush and checkpoint,
	 * then call shard_checkpointed(). */
	void (*checkpoint)(struct app *a);
};

struct app {
	const struct app_ops *ops;
};

#endif
