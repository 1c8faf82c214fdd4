/*
 * points - one node of three, ended at each operation of its disk and at each
 * message that it sends.
 *
 * One thread. A load runs once: boots, elections, calls, a restart, a cut that
 * ends with a snapshot's install. Before each operation of one node, and before
 * each of its messages, the trial is split: in the child the node ends there,
 * by a kill or a power cut, comes back, and the child is healed and judged as
 * every trial. So no beginning runs twice.
 */
#ifndef TESTS_SIM_POINTS_H
#define TESTS_SIM_POINTS_H

#include "tests/sim/farm.h"

/* Splits at every `stride`-th point; counts one per way to end. */
void points_all(unsigned jobs, unsigned stride, bool quiet, uint64_t *passed,
		uint64_t *failed);

#endif
