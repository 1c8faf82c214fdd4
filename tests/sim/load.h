/*
 * load - seeded users of a trial: they call, and write down what they were
 * told.
 *
 * One thread. Each user has a client of his own; an auditor looks at everything
 * in the end. Everything is drawn from the trial's seed.
 */
#ifndef TESTS_SIM_LOAD_H
#define TESTS_SIM_LOAD_H

#include "tests/sim/trial.h"

struct load *load_new(struct trial *r);
void load_free(struct load *l);

/* The name of the i-th principal; it outlives every call. */
struct pack_bytes load_principal(uint32_t i);
/* Which of them a client is. The guest is the one behind all others. */
uint32_t load_caller(const struct swarm *s, uint32_t client);

/* The users begin; nothing needs to run yet. */
void load_start(struct load *l);
/* No new calls. */
void load_stop(struct load *l);
/* Between two events. */
void load_tick(struct load *l);
/* In flight. */
uint32_t load_open(const struct load *l);
/* `node` owns the shard, in a term that began now. */
void load_owner(struct load *l, uint32_t shard, unsigned node, uint64_t term);
/* Its now, `now_ns`, is before the last one of the owner before. */
void load_set_back(struct load *l, uint32_t shard, uint64_t last_ns,
		   uint64_t now_ns);

/* Nothing that was asked can begin any more: what is unknown is over. The nodes
 * are level. */
void load_settled(struct load *l);
/* Look at every object: runs the world until all is answered. False: it could
 * not be. */
bool load_audit(struct load *l);
/* Each object of kv takes a write, by that time. Runs the world, too. False: a
 * breach. */
bool load_serves(struct load *l, uint64_t until_ms);
/* Try again what is unknown and has a key. Runs the world, too. */
bool load_settle(struct load *l);
/* Judge all histories; breaches are noted in the trial. */
void load_judge(struct load *l);

#endif
