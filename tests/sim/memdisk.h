/*
 * memdisk - one node's disk in memory: what processes see, and what a power
 * cut would leave. Behind world.h, which says what the faults mean.
 *
 * A file is a row of 4,096-byte chunks of eight sectors. A chunk whose sectors
 * are all clean has one image. Otherwise it has two, the cache's and the
 * disk's, and for each sector one of:
 *
 *	dirty   written since the last sync
 *	cut     dirty, because a truncate made zeros of it
 *	lost    the kernel thinks it clean, but the disk has something else:
 *		after a failed sync, a lost or misdirected write
 *
 * A directory has its entries as they are now, and as they are on the disk;
 * what lies between is a list of operations. A power cut keeps for each file
 * some first ones of the operations on it: journalling file systems keep that
 * order, and not the order between files.
 *
 * Reads of a file opened with DISK_DIRECT give the cache's bytes where a sector
 * is dirty, because Linux writes dirty pages back before it reads around the
 * page cache; where a sector is lost they give the disk's.
 */
#ifndef TESTS_SIM_MEMDISK_H
#define TESTS_SIM_MEMDISK_H

#include "tests/sim/prng.h"
#include "tests/sim/world.h"

struct memdisk;

/* What the disk tells its world. */
struct memdisk_host {
	void (*crashed)(void *arg); /* A crash point was reached. */
	void (*note)(void *arg, uint64_t what);
	void (*synced)(void *arg); /* A sync takes time. */
	uint64_t (*wall_ns)(void *arg);
	void *arg;
};

struct memdisk *memdisk_new(const struct memdisk_host *host, uint64_t seed,
			    unsigned node);
void memdisk_free(struct memdisk *d);
struct disk *memdisk_disk(struct memdisk *d);

/* Every operation is RC_IO from now on, until a restart. */
void memdisk_freeze(struct memdisk *d);
/* The process is gone: its files are stale, its lock is free. */
void memdisk_restart(struct memdisk *d);
void memdisk_power_cut(struct memdisk *d);
void memdisk_drop_caches(struct memdisk *d);
void memdisk_wipe(struct memdisk *d);
void memdisk_copy(struct memdisk *to, const struct memdisk *from);
/* What is durable of `from`, and its birth. */
void memdisk_clone(struct memdisk *to, const struct memdisk *from);
/* Only to read, and only what is durable. */
struct disk *memdisk_durable(struct memdisk *d);

void memdisk_watch(struct memdisk *d,
		   void (*cb)(void *arg, enum world_op op, const char *name),
		   void *arg);
void memdisk_fault(struct memdisk *d, const struct world_fault *f);
void memdisk_faults_clear(struct memdisk *d);
uint64_t memdisk_faults_fired(const struct memdisk *d);
uint64_t memdisk_count(const struct memdisk *d, enum world_op op);

uint8_t *memdisk_file(struct memdisk *d, const char *name, bool durable,
		      size_t *bytes);
enum rc memdisk_flip(struct memdisk *d, const char *name, uint64_t byte,
		     unsigned bit);
void memdisk_files(struct memdisk *d,
		   void (*cb)(void *arg, const char *name, uint64_t bytes),
		   void *arg);
void memdisk_capacity(struct memdisk *d, uint64_t bytes);
uint64_t memdisk_used(const struct memdisk *d);
void memdisk_birth_hidden(struct memdisk *d, bool hidden);

/* Memory for the simulated world: never fails (it aborts), and the n-th
 * failing allocation of a test does not count it. */
void *sim_alloc(size_t n);
void *sim_realloc(void *p, size_t n);
char *sim_strdup(const char *s);

#endif
