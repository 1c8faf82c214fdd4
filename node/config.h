/*
 * config - the configuration of a node: YAML in, every mistake with file and
 * field (and line where the parser knows it), what is in force out.
 *
 * Before the loop runs. libcyaml gives structure, unknown and doubled keys;
 * scalars are loaded as text and go through a typed parser of ours, because
 * libcyaml takes `12x` for 12 and `010` for 8.
 */
#ifndef HOLDFAST_NODE_CONFIG_H
#define HOLDFAST_NODE_CONFIG_H

#include <stdio.h>

#include "node/base/logline.h"
#include "node/core/core.h"

#define CONFIG_PATH_MAX 4096u

struct config {
	char node_name[64];
	uint64_t node_id;
	bool named;    /* The configuration says node.name, node.id: the data */
	bool numbered; /* directory must be that node's. */
	char data[CONFIG_PATH_MAX];
	char socket[CONFIG_PATH_MAX];
	char pid_file[CONFIG_PATH_MAX];
	enum log_level log_level;
	uint32_t shards;        /* Of a directory that is formatted. */
	uint32_t segment_bytes; /* The same. */
	uint32_t connections_max;
	uint64_t secret_bytes;
	struct core_config core;
	struct grant *grants; /* config_release frees them. */
	size_t grants_n;
};

/* Defaults of every field; no data directory, no grants. */
void config_default(struct config *cfg);
void config_release(struct config *cfg);

/* --dev: defaults, everything in `data`, the own uid may do everything in
 * default/dev. RC_INVALID: the paths are too long. */
enum rc config_dev(struct config *cfg, const char *data, struct detail *why);

/* Data directory, socket and process id are in `data`. */
enum rc config_place(struct config *cfg, const char *data, struct detail *why);

/* The default place: $XDG_STATE_HOME/holdfast or ~/.local/state/holdfast.
 * RC_NOT_FOUND: neither variable is set. */
enum rc config_state_dir(char *out, size_t n);

/* Reads `path`. On failure `why` has the field, and a sentence with file and
 * line as far as known. Relative paths in the file are relative to the file. */
enum rc config_load(struct config *cfg, const char *path, struct detail *why);

/* Everything that is in force, as YAML that config_load reads again. */
void config_print(const struct config *cfg, FILE *out);

#endif
