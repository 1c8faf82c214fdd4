/*
 * faults - what goes wrong in a trial, and when it ends again.
 *
 * One thread; called between two events. Which kinds there are, and how often,
 * is drawn from the seed. What may not be borne together is kept apart: disks
 * lie, or are lost, on a minority of the nodes only.
 */
#ifndef TESTS_SIM_FAULTS_H
#define TESTS_SIM_FAULTS_H

#include "tests/sim/trial.h"

struct faults *faults_new(struct trial *r);
void faults_free(struct faults *f);

/* Begin and end what is due. */
void faults_tick(struct faults *f);
/* Everything that can be taken back is: net, clocks, disks. */
void faults_end(struct faults *f);
/* The node stopped itself: is there a fault that explains it? */
bool faults_excuse(struct faults *f, unsigned node);
/* The driver has planned one itself. */
void faults_expect(struct faults *f, unsigned node);
/* It has ended. */
void faults_crashed(struct faults *f, unsigned node);

/* Between a sync and the message after it. */
void faults_op(struct faults *f, unsigned node, enum world_op op,
	       const char *name);
void faults_leaving(struct faults *f, unsigned node);
void faults_left(struct faults *f, unsigned node);

#endif
