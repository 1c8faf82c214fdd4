/*
 * members - who the other nodes are, and whether their disks are the ones we
 * know (DESIGN D4, identity of a disk).
 *
 * Loop thread. File `members` of a data directory, written by whoever formats
 * it, two copies (pair.h): id, name and incarnation of every member of the
 * cluster, this node included, and the (boot, nonce) that it greeted with last.
 * A peer that greets with an unknown incarnation, a lower boot, or the same
 * boot and another nonce has an empty, older or copied data directory under an
 * old id: whatever it would vote or acknowledge, it may have forgotten more.
 * A greeting counts when it is synced.
 */
#ifndef HOLDFAST_RAFT_GLUE_MEMBERS_H
#define HOLDFAST_RAFT_GLUE_MEMBERS_H

#include "node/base/disk.h"
#include "node/base/env.h"
#include "raft-glue/identity.h"

struct members;

#define MEMBERS_MAX 5u
/* Notes that wait at a time: one for each link of each peer, and some. */
#define MEMBERS_NOTES_MAX 32u

struct member {
	uint64_t id;
	char name[64];
	uint8_t incarnation[ID_BYTES];
	uint64_t boot; /* 0: never greeted. */
	uint8_t nonce[ID_BYTES];
};

/* What each side says first on a connection. */
struct greeting {
	uint32_t protocol;
	uint8_t cluster_id[ID_BYTES];
	uint64_t node_id;
	uint8_t incarnation[ID_BYTES];
	uint64_t boot;
	uint8_t nonce[ID_BYTES];
};

/* Blocking, before identity_format. In order of id. */
enum rc members_format(struct disk *disk, const struct member *list, size_t n,
		       struct detail *why);
/* Blocking. RC_NOT_FOUND, RC_CORRUPT (both copies), RC_VERSION, RC_NOMEM;
 * RC_FOREIGN: `self` is not among them, or with another incarnation. */
enum rc members_open(struct env *env, struct disk *disk,
		     const struct identity *self, struct members **out,
		     struct detail *why);
/* What the file says, in order of id; nothing changes, and a node may be using
 * it: for offline tools. `list` has MEMBERS_MAX places. As members_open. */
enum rc members_read(struct disk *disk, struct member *list, size_t *n,
		     struct detail *why);
/* The members in order of id. */
size_t members_count(const struct members *m);
const struct member *members_at(const struct members *m, size_t i);
/* NULL: none of that id, or of that name. */
const struct member *members_find(const struct members *m, uint64_t id);
const struct member *members_named(const struct members *m, const char *name);
uint64_t members_self(const struct members *m);
/* What we greet with. */
void members_greeting(const struct members *m, struct greeting *out);

/*
 * May the peer `node_id` (proved by its certificate) that greets with `g` be
 * believed? RC_OK; RC_FOREIGN, RC_VERSION: no, and `why` is a sentence that
 * names the command that helps. Nothing changes.
 */
enum rc members_check(const struct members *m, uint64_t node_id,
		      const struct greeting *g, struct detail *why);
/* Is what was noted of `g` still the newest that is known of that member? False
 * when it has greeted with a later boot since, or was readmitted. */
bool members_current(const struct members *m, const struct greeting *g);
/* Keep its (boot, nonce), synced on the storage worker; `done` comes on the
 * loop, at once in this turn's tasks when it is no news. A failed write is
 * fail-stop. Only after members_check said RC_OK. Once members_close was called
 * nothing is noted any more, and `done` never comes: this node is ending. */
void members_note(struct members *m, const struct greeting *g,
		  void (*done)(void *arg, uint64_t node_id), void *arg);
/* The member came back with an empty disk (`holdfast node reset`) and the
 * cluster has agreed on it: from now on this incarnation. Synced; then `done`
 * (may be NULL). */
void members_readmit(struct members *m, uint64_t node_id,
		     const uint8_t incarnation[ID_BYTES],
		     void (*done)(void *arg, uint64_t node_id), void *arg);

/* Asynchronous end: what is being written is written, and told. */
void members_close(struct members *m, void (*closed)(void *arg), void *arg);
void members_discard(struct members *m);

#endif
