/*
 * node - the daemon: builds env, disk, core and listeners in order, runs the
 * loop, closes them in reverse.
 *
 * Owns everything; knows everything; decides little.
 */
#ifndef HOLDFAST_NODE_NODE_H
#define HOLDFAST_NODE_NODE_H

#include "node/config.h"

/* Exit codes of holdfastd (sysexits.h's meanings). */
enum {
	NODE_EXIT_OK = 0,
	NODE_EXIT_USAGE = 64,  /* Wrong arguments. */
	NODE_EXIT_DATA = 65,   /* The data directory is damaged or foreign. */
	NODE_EXIT_CONFIG = 78, /* The configuration is wrong. */
	NODE_EXIT_BUSY = 75,   /* Another process holds directory or socket. */
	NODE_EXIT_FAIL_STOP = 70, /* A write or sync failed: env_fail_stop. */
	NODE_EXIT_OTHER = 71,
};

/* Serve until SIGTERM or SIGINT; `format`: make the data directory if it is
 * empty. Returns an exit code; what went wrong was logged and written to
 * stderr in a sentence. */
int node_run(const struct config *cfg, bool format);

/* `holdfast init` and friends, without a running node. */
int node_format(const struct config *cfg);
/* Format the directory `data`, which is made when it is absent, as core_format
 * does; `members` may be none. RC_EXISTS: it is a data directory already. */
enum rc node_make(const char *data, struct identity *id,
		  const struct member *members, size_t n, struct detail *why);
int node_log_verify(const char *data, bool dump);
/* A directory that was moved on purpose: identity_adopt. */
int node_adopt(const char *data);

/* What `holdfast node reset` has decided. */
struct node_reset {
	const char
		*data; /* Of the member whose disk was lost; not there yet. */
	uint64_t node_id;
	const char *like; /* The data directory of another member. */
	uint8_t incarnation[ID_BYTES];
	bool dry; /* Only say whether it can be done. */
};
int node_reset(const struct node_reset *r);

#endif
