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

/* HOST:PORT, or [HOST]:PORT where the host has colons of its own. */
struct config_address {
	char host[256]; /* A name or an address, without brackets. */
	uint16_t port;  /* 0: none is configured. */
};

/* Another member, and where it is reached. */
struct config_peer {
	uint64_t id;
	char name[64];
	struct config_address peer;
	struct config_address rpc; /* Port 0: it takes no clients over TCP. */
};

struct config {
	char node_name[64];
	uint64_t node_id;
	bool named;    /* The configuration says node.name, node.id: the data */
	bool numbered; /* directory must be that node's. */
	char data[CONFIG_PATH_MAX];
	char socket[CONFIG_PATH_MAX];
	char pid_file[CONFIG_PATH_MAX];
	struct config_address listen_rpc; /* Clients over TCP. */
	struct config_address listen_peer;
	struct config_address advertise_rpc; /* What others are told; that of */
	struct config_address advertise_peer; /* `listen` unless it is said. */
	char tls_ca[CONFIG_PATH_MAX];         /* All three, or all empty. */
	char tls_cert[CONFIG_PATH_MAX];
	char tls_key[CONFIG_PATH_MAX];
	struct config_peer peers[MEMBERS_MAX - 1]; /* The other members. */
	size_t peers_n;
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

/* RC_INVALID: `text` is no HOST:PORT. */
enum rc config_address_parse(const char *text, struct config_address *out);

/* Everything that is in force, as YAML that config_load reads again. */
void config_print(const struct config *cfg, FILE *out);

#endif
