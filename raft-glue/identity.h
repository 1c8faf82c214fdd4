/*
 * identity - whose disk is this? The first file of a data directory.
 *
 * Blocking; before the loop runs. Only `holdfast init`, `--dev` and `node
 * reset` format a data directory (DESIGN D4): cluster id, node id, a random
 * incarnation and the directory's own inode and birth time, so that a copied or
 * restored directory refuses to start. Each boot counts up and draws a nonce,
 * synced before anything else happens. File `identity`: two copies in different
 * 4 KiB blocks, each with version, write counter and CRC-32C.
 */
#ifndef HOLDFAST_RAFT_GLUE_IDENTITY_H
#define HOLDFAST_RAFT_GLUE_IDENTITY_H

#include "node/base/disk.h"
#include "node/base/env.h"

#define ID_BYTES 16u

struct identity {
	uint8_t cluster_id[ID_BYTES];
	uint8_t incarnation[ID_BYTES];
	uint8_t hash_key[ID_BYTES]; /* Keys the hash of ids and shards. */
	uint64_t node_id;           /* 1 .. */
	char node_name[64];         /* As in principals: unix:NODE:UID. */
	uint32_t shards;            /* 1..SHARDS_MAX, fixed for good. */
	uint32_t segment_bytes;     /* Of the log, fixed for good. */
	struct disk_birth birth;
	uint64_t boot;           /* Boots so far. */
	uint8_t nonce[ID_BYTES]; /* Of this boot. */
};

/*
 * Format an empty data directory: draws incarnation, cluster id and
 * hash key where the caller left them zero (the founders of one cluster share
 * them), writes `identity`, and syncs file and directory. The caller formats
 * ballot and log *before*, so that a directory with an identity is whole.
 * RC_EXISTS when there is one.
 */
enum rc identity_format(struct disk *disk, struct env *env, struct identity *id,
			struct detail *why);

/*
 * RC_NOT_FOUND: not a data directory. RC_VERSION: written by a newer Holdfast.
 * RC_FOREIGN: this directory was copied or restored (its inode or birth time
 * is not the one that was formatted). RC_CORRUPT: both copies are bad.
 * On RC_OK the boot counter has been counted up, a new nonce drawn, both
 * rewritten and synced.
 */
enum rc identity_open(struct disk *disk, struct env *env, struct identity *out,
		      struct detail *why);

/*
 * The directory was moved on purpose: from now on it is the one that it is in.
 * Blocking, offline, under its lock. Whatever the copy does not know that the
 * original said since is lost with it: the caller says so. Otherwise as
 * identity_open, but it is no boot.
 */
enum rc identity_adopt(struct disk *disk, struct identity *out,
		       struct detail *why);

/* What is in it, whosever it is: for offline tools. */
enum rc identity_read(struct disk *disk, struct identity *out,
		      struct detail *why);

#endif
