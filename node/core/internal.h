/*
 * internal - what the files of node/core/ share among themselves.
 *
 * Loop thread. Nothing outside node/core/ includes this.
 */
#ifndef HOLDFAST_CORE_INTERNAL_H
#define HOLDFAST_CORE_INTERNAL_H

#include "node/core/core.h"
#include "objects/object.h"

struct call_table;

/* core.c */
struct env *core_env(struct core *core);
struct residents *core_residents(struct core *core);
struct call_table *core_calls(struct core *core);
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

#endif
