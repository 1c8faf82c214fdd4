/*
 * load - seeded clients of one run: they call, and write down what they were
 * told.
 *
 * One thread. Each client is a connection: its calls to one object keep their
 * order. Everything is drawn from the run's seed.
 */
#ifndef TESTS_SIM_LOAD_H
#define TESTS_SIM_LOAD_H

#include "tests/sim/trial.h"

struct load *load_new(struct trial *r);
void load_free(struct load *l);

/* After each boot: the clients begin (before the node is ready, too). */
void load_start(struct load *l);
/* No new calls. */
void load_stop(struct load *l);
/* The node leads every shard. */
void load_ready(struct load *l);
/* In flight. */
uint32_t load_open(const struct load *l);
/* The node is about to be forgotten: what is in flight is unknown. */
void load_crashed(struct load *l);

/* Look at every object: runs the world until all is answered. False: the node
 * ended. */
bool load_audit(struct load *l);
/* Try again what is unknown and has a key. Runs the world, too. */
bool load_settle(struct load *l);
/* Judge all histories; breaches are noted in the run. */
void load_judge(struct load *l);

#endif
