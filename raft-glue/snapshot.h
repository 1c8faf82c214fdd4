/*
 * snapshot - a shard's state as a file, from a leader to another voter.
 *
 * Loop thread. One stream out and one in per shard, over CHANNEL_SNAPSHOT: a
 * head that says what it is a copy of, pieces of SNAPSHOT_PIECE_BYTES of which
 * at most SNAPSHOT_PIECES_MAX are not acknowledged, and a verdict. It starts
 * over when the link is lost or nothing moves for SNAPSHOT_STALL_MS. Here too
 * are the questions of a voter that has lost its log, its ballot or its state,
 * and what the others tell it. Byte by byte at the top of snapshot.c.
 * All calls into the app and the owner's `staged` and `sent` are made from one
 * task in ENV_PHASE_RELEASE. Used by shard.c.
 */
#ifndef HOLDFAST_RAFT_GLUE_SNAPSHOT_H
#define HOLDFAST_RAFT_GLUE_SNAPSHOT_H

#include "node/base/env.h"
#include "raft-glue/app.h"
#include "raft-glue/transport.h"

struct snapshots; /* Of one shard. */

#define SNAPSHOT_STALL_MS 5000u

/* Where a stream comes from. */
struct snapshot_from {
	uint64_t node_id;
	uint64_t term; /* In which that node leads. */
	/* The leader has committed an entry of its own term, and all that it
	 * ever sent us, without us. */
	bool rebuilds;
};

struct snapshots_owner {
	/* A voter asks for a snapshot; `abstains`: its log or ballot is lost.
	 */
	void (*wanted)(struct snapshots_owner *o, uint64_t node_id,
		       bool abstains);
	/* False: our own term is not known. */
	bool (*tell)(struct snapshots_owner *o, uint64_t *term);
	/* What the voter that we asked told: its term, or that it has lost it
	 * too. */
	void (*told)(struct snapshots_owner *o, uint64_t node_id, bool lost,
		     uint64_t term);
	/* A stream begins. False: we do not want it. */
	bool (*offered)(struct snapshots_owner *o,
			const struct snapshot_from *from,
			const struct snapshot *what);
	/* It is here, whole and synced, as `generation`: the owner answers with
	 * snapshots_took, from inside or later; `what` is valid until then. */
	void (*staged)(struct snapshots_owner *o,
		       const struct snapshot_from *from,
		       const struct snapshot *what, uint64_t generation,
		       const uint8_t hash[16]);
	/* The stream to `node_id` has ended; `ok`: it is the state there. */
	void (*sent)(struct snapshots_owner *o, uint64_t node_id, bool ok);
};

/* `t` may be NULL: nobody is asked, and nobody asks. RC_NOMEM. */
enum rc snapshots_new(struct env *env, struct transport *t, struct app *app,
		      struct snapshots_owner *owner, uint32_t shard,
		      struct snapshots **out);
/* The app is told that what is under way ends; nothing comes after that. Not
 * from inside a call of the app. */
void snapshots_close(struct snapshots *n);
/* Its task is posted: not to be freed in this turn. */
bool snapshots_posted(const struct snapshots *n);
/* Memory only. After snapshots_close, or for the simulator's kill. */
void snapshots_free(struct snapshots *n);

/* Ask `node_id` for a stream and for its term. */
void snapshots_ask(struct snapshots *n, uint64_t node_id, bool abstains);

/* Send one to `to` that contains at least `applied`, when none is sent to
 * anybody and the last one to it did not just fail: true. Otherwise nothing
 * happens. It goes on while `from` holds: snapshots_stop says that it does not.
 */
bool snapshots_send(struct snapshots *n, uint64_t to,
		    const struct snapshot_from *from, uint64_t applied);
void snapshots_stop(struct snapshots *n);
/* To whom one is under way, 0: nobody. */
uint64_t snapshots_sending(const struct snapshots *n);
/* What it is sent needs the log from this index on; UINT64_MAX: nothing. */
uint64_t snapshots_pin(const struct snapshots *n);

/* One is coming in, or is staged and was not taken yet. */
bool snapshots_receiving(const struct snapshots *n);
/* The staged one is the state now, or was refused and is deleted. */
void snapshots_took(struct snapshots *n, bool installed);

/* From the functions of the same names in shard.h. */
void snapshots_exported(struct snapshots *n, enum rc rc,
			const struct snapshot *what);
void snapshots_export_data(struct snapshots *n, enum rc rc, const void *p,
			   size_t bytes);
void snapshots_staged(struct snapshots *n, enum rc rc);
void snapshots_stage_done(struct snapshots *n, enum rc rc, uint64_t generation,
			  const uint8_t hash[16]);

#endif
