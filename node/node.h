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
int node_log_verify(const char *data, bool dump);

#endif
