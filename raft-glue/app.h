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

/* What a copy of the state is a copy of. */
struct snapshot {
	uint64_t index;
	uint64_t term;
	uint64_t conf_index;
	const void *conf; /* Valid inside the call. */
	size_t conf_bytes;
	uint64_t bytes;   /* Of the file. */
	uint8_t hash[16]; /* Of what it means: the same on every replica. */
	uint64_t from;    /* Who sends it; 0: this node. */
};

struct app_ops {
	/* This node was elected in `term`; its barrier is on its way. What a
	 * leader must ask of others before it executes begins now. Not followed
	 * by `lost` when the term ends before `lead`: the next `elected` takes
	 * its place. May be NULL. */
	void (*elected)(struct app *a, uint64_t term);
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

	/*
	 * Snapshots (DESIGN D6). All are asynchronous: each is answered, never
	 * from inside, by the function of shard.h that is named, on the loop
	 * thread. At most one of each family is under way at a time.
	 *
	 * export: flush, checkpoint, and keep the main file as it then is until
	 * export_end (which is not answered): shard_exported. Then pieces of
	 * it: shard_export_data.
	 */
	void (*export_begin)(struct app *a);
	void (*export_read)(struct app *a, uint64_t offset, uint32_t bytes);
	void (*export_end)(struct app *a);
	/* stage: a state file of a new generation comes in, in order of its
	 * bytes, which are copied. Each piece: shard_staged. The end, when all
	 * bytes are there: synced, its directory too, every page and the hashes
	 * verified: shard_stage_done. stage_drop (not answered): delete it. */
	void (*stage_begin)(struct app *a, const struct snapshot *s);
	void (*stage_write)(struct app *a, uint64_t offset, const void *p,
			    uint32_t n);
	void (*stage_end)(struct app *a);
	void (*stage_drop)(struct app *a);
	/* The ballot names that generation, durably: make it the state; the old
	 * file goes. shard_switched. */
	void (*switch_state)(struct app *a, uint64_t generation);
};

struct app {
	const struct app_ops *ops;
};

#endif
