/*
 * internal - what the files of node/core/ share among themselves.
 *
 * Loop thread. Nothing outside node/core/ includes this.
 */
#ifndef HOLDFAST_CORE_INTERNAL_H
#define HOLDFAST_CORE_INTERNAL_H

#include "node/core/core.h"
#include "node/core/stamps.h"
#include "objects/join.h"
#include "objects/object.h"

struct call_table;

/* core.c */
struct env *core_env(struct core *core);
struct residents *core_residents(struct core *core);
struct call_table *core_calls(struct core *core);
struct forwards *core_forwards(struct core *core);
/* NULL: this node has no peers. */
struct stamps *core_stamps(struct core *core);
/* For the entry that a shard collects. */
struct join *core_join(struct core *core);
/* This node leads shard `shard` now. */
void core_leads(struct core *core, uint32_t shard);
/* Check the caps of a tenant and the disk reserve, and book the change. */
enum rc core_admit(struct core *core, uint32_t shard, struct pack_bytes tenant,
		   int64_t objects, int64_t bytes, struct detail *why);
/* Book without a check what shard `shard` was found to hold. */
void core_book(struct core *core, uint32_t shard, struct pack_bytes tenant,
	       int64_t objects, int64_t bytes);
/* Forget what `shard` booked: it is summed up anew. */
void core_unbook(struct core *core, uint32_t shard);

/* call.c */
enum rc call_table_new(struct core *core, uint32_t calls_max,
		       struct call_table **out);
void call_table_free(struct call_table *t);
void call_table_discard(struct call_table *t);
/* Calls in flight. `idle` (may be NULL) fires when the last one ends. */
uint32_t call_table_open(const struct call_table *t);
void call_table_on_idle(struct call_table *t, void (*idle)(void *arg),
			void *arg);
void call_table_drain(struct call_table *t);
void call_table_stats(const struct call_table *t, struct core_stats *out);
void core_nested(struct core *core, struct event *ev);
void core_nested_drop(struct core *core, struct event *ev);

/* call.c, for forward.c: a call that came over a link between members. */

struct answer;
struct forwards;

/* Where it came from; embedded in its call. */
struct served {
	void (*answered)(struct served *sv, const struct answer *a);
	struct forwards *forwards; /* forward.c's, as all below. */
	uint64_t node_id;
	uint64_t epoch;
	uint64_t number;
};

/* The four views follow each other in memory, in this order. */
struct call_request {
	struct pack_bytes principal;
	struct pack_bytes tenant; /* Of addresses that name none. */
	struct pack_bytes env;
	struct pack_bytes params;
	uint32_t deadline_ms; /* What is left. */
	uint32_t depth;
	const struct chain *chain; /* NULL with depth 0. Copied. */
	uint64_t request_id;
};

/* Copies what it keeps. `answered` once, never from inside. NULL: no slot, or
 * no memory, is left. */
struct served *call_serve(struct core *core, const struct call_request *r,
			  void (*answered)(struct served *sv,
					   const struct answer *a));
struct call *served_call(struct served *sv);

/* call.c and directory.c, for each other. */

struct directory;

/* Calls are decided from this copy from now on. */
void call_table_directory(struct call_table *t, struct directory *d);
/* The copy is newer, or known to be the newest: who waits for that goes on. */
void call_table_renewed(struct call_table *t);
/* There are peers: look from now on which shards have no owner. */
void call_table_watch(struct call_table *t);
/* A shard may have an owner that it had not. */
void call_table_look(struct call_table *t);

/* The copy must not be gone by: a peer has told of a newer one, or it is too
 * old. */
bool directory_outdated(const struct directory *d);
/* Read it again at once. */
void directory_look(struct directory *d);
/* What another member may go by as if it had read it when this node did:
 * {version, age_ms, grants, members}. False: this node knows nothing, or not
 * for sure. */
bool directory_tell(const struct directory *d, struct pack_w *w);
/* Every node has told that its copy has reached `version`. */
bool directory_confirmed(const struct directory *d, uint64_t version);
/* Two pairs of a map: `confirmed` and `missing`, the names of the nodes. */
void directory_confirm_write(const struct directory *d, uint64_t version,
			     struct pack_w *w);
/* The core is going: no call of its own comes back. */
void directory_detach(struct directory *d);

#endif
