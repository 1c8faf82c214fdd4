/*
 * reserve - room on the disk that is kept for the day it is full.
 *
 * A file of zeros in the data directory. While the file system has less free
 * than the reserve, owners take in nothing that grows (NO_SPACE); reads,
 * deletes and the log's recycled segments go on. A node that finds the disk
 * full when it starts gives the file back, so that it can come up and be
 * cleaned, instead of dying at its first write. Blocking: storage worker, or
 * before the loop.
 */
#ifndef HOLDFAST_CORE_RESERVE_H
#define HOLDFAST_CORE_RESERVE_H

#include "node/base/disk.h"

struct reserve {
	struct disk *disk;
	uint64_t bytes;          /* 0: none is kept. */
	bool held;               /* The file is there. */
	struct disk_space space; /* As last asked. */
};

/* Asks for room; gives the file back when there is too little. RC_OK, or what
 * the disk said. */
enum rc reserve_open(struct reserve *r, struct disk *disk, uint64_t bytes);
/* Asks again; makes the file anew when there is room for it several times. */
enum rc reserve_look(struct reserve *r);
/* Nothing that grows may come in. */
bool reserve_low(const struct reserve *r);

#endif
