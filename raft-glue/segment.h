/*
 * segment - the format of the log: sectors, batches, records, segment headers.
 *
 * Any thread; no I/O, no state. Byte by byte at the top of segment.c. log.c
 * writes it, recovery.c reads it.
 */
#ifndef HOLDFAST_RAFT_GLUE_SEGMENT_H
#define HOLDFAST_RAFT_GLUE_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"

#define SECTOR_BYTES        512u
#define SECTOR_PAYLOAD      504u
#define BLOCK_BYTES         4096u
#define BLOCK_SECTORS       (BLOCK_BYTES / SECTOR_BYTES)
#define SEGMENT_HEAD_BYTES  BLOCK_BYTES
#define BATCH_HEADER_BYTES  80u
#define RECORD_HEADER_BYTES 24u
#define CLOSING_BYTES       BLOCK_BYTES /* A batch without records. */
#define SEGMENT_NAME_BYTES  32u
#define SEGMENT_DIR         "log"

/* ---- sectors ---- */

enum sector_kind {
	SECTOR_HEAD,  /* Of a segment's header. The number is its sequence. */
	SECTOR_FIRST, /* Of a batch: it holds the batch header. */
	SECTOR_NEXT,  /* All others of a batch. */
};

/* Where a sector stands: part of its checksum, so that one that was written to
 * another place, or into another file, is bad there. */
struct sector_place {
	enum sector_kind kind;
	uint32_t slot;   /* The number in the file's name. */
	uint64_t offset; /* In the file. */
};

void sector_seal(uint8_t *sector, const struct sector_place *at,
		 uint64_t number);
/* True when it is whole, stands where it should and has this number. */
bool sector_is(const uint8_t *sector, const struct sector_place *at,
	       uint64_t number);

enum sector_state {
	SECTOR_OLD, /* Zero, or whole with a number <= `newest`. */
	SECTOR_NEW, /* Whole with a larger number, told in `*number`. */
	SECTOR_BAD,
};
/* Of a batch, first or not. */
enum sector_state sector_judge(const uint8_t *sector, uint32_t slot,
			       uint64_t offset, uint64_t newest,
			       uint64_t *number);

/* ---- batches ---- */

enum { BATCH_CLOSING = 1 }; /* The segment's last: names its successor. */

struct batch_head {
	uint16_t flags;
	uint64_t number;
	uint32_t bytes;             /* On disk, a multiple of BLOCK_BYTES. */
	uint32_t payload;           /* Of records. */
	uint8_t before[HASH_BYTES]; /* The chained hash of the batch before. */
	uint64_t shards;            /* Bit s: it has records of shard s. */
	uint64_t ballot;    /* The ballot file's counter when it was written. */
	uint64_t seq;       /* Of the segment. */
	uint64_t successor; /* Of a closing batch, else 0. */
};

/* Numbers start at 1; the low half is never 0, so no whole sector is zero. */
uint64_t batch_number_after(uint64_t number);
/* On disk, for this many bytes of records. */
uint64_t batch_bytes(uint64_t payload);
/* Of records, that fit a batch of `bytes` on disk. */
uint64_t batch_payload_max(uint64_t bytes);

/* Copy into and out of the records of a batch, around the trailers; `at` counts
 * from the first byte of the first record. */
void batch_put(uint8_t *batch, uint64_t at, const void *p, size_t n);
void batch_get(const uint8_t *batch, uint64_t at, void *p, size_t n);

/* Writes the header, clears what is behind the records, seals every sector.
 * `hash`: the chained hash, for the next batch. `scratch`: 8 bytes a sector. */
void batch_seal(uint8_t *batch, const struct batch_head *h, uint32_t slot,
		uint64_t offset, uint8_t *scratch, uint8_t hash[HASH_BYTES]);
/*
 * RC_OK: a whole first sector stands here, and its fields are in bounds of
 * `room` bytes. RC_CORRUPT: not. RC_VERSION: a newer Holdfast wrote it.
 */
enum rc batch_decode(const uint8_t *batch, uint32_t slot, uint64_t offset,
		     uint64_t room, struct batch_head *h);
/* The chained hash of a whole batch. */
void batch_hash(const uint8_t *batch, const struct batch_head *h,
		uint8_t *scratch, uint8_t hash[HASH_BYTES]);

/* ---- records ---- */

enum record_kind {
	RECORD_ENTRY = 1, /* Voids what the shard had at and above `index`. */
	RECORD_BASE = 2,  /* Voids all; the next entry is `index` + 1. */
	RECORD_COPY = 3,  /* An entry once more; voids nothing. */
};

struct record {
	enum record_kind kind;
	uint8_t shard;
	uint16_t type;
	uint32_t bytes;
	uint64_t index;
	uint64_t term;
	const uint8_t *data;
};

void record_encode(uint8_t p[RECORD_HEADER_BYTES], const struct record *r);
/* The record at the front of `n` bytes; RC_CORRUPT when it is none. */
enum rc record_decode(const uint8_t *p, uint64_t n, struct record *r);

/* ---- segment headers ---- */

enum {
	/* The segment before has no closing batch: its end is damaged. */
	SEGMENT_AFTER_DAMAGE = 1,
};
enum { SEGMENT_SHARD_DAMAGED = 1 };

/* What earlier segments hold of a shard when this one begins. */
struct segment_shard {
	uint64_t first; /* The first live index: floor + 1. */
	uint64_t last;
	uint64_t last_term;
	uint64_t base; /* Of the last base record; 0: none. */
	uint64_t base_term;
	uint64_t flags;
};

struct segment_head {
	uint32_t slot;
	uint32_t flags;
	uint32_t shards;
	uint64_t seq;
	uint64_t bytes; /* Of the whole segment. */
	uint8_t cluster_id[16];
	uint64_t node_id;
	uint64_t tail;              /* The oldest sequence still needed. */
	uint64_t first_number;      /* Of its first batch. */
	uint8_t before[HASH_BYTES]; /* Chained hash at its first batch. */
	struct segment_shard shard[SHARDS_MAX];
};

void segment_head_encode(uint8_t block[SEGMENT_HEAD_BYTES],
			 const struct segment_head *h);

enum head_state {
	HEAD_BLANK, /* All zero: never used. */
	HEAD_WHOLE,
	HEAD_TORN, /* Every sector whole, not all of one sequence: a recycling
		    * that did not end; the segment is free. */
	HEAD_HURT, /* Some sectors are bad; the others agree on the sequence. */
	HEAD_LOST, /* Nothing can be told. */
};

struct head_view {
	enum head_state state;
	uint64_t seq;     /* WHOLE, HURT; of TORN the newest. */
	uint64_t seq_old; /* Of TORN, the oldest; 0: blank. */
	bool fixed;       /* The fields that are not in the table are known. */
	uint64_t known;   /* Bit s: the row of shard s is. */
	struct segment_head head;
};

/* RC_VERSION: a newer Holdfast wrote it. Else RC_OK. */
enum rc segment_head_decode(const uint8_t block[SEGMENT_HEAD_BYTES],
			    uint32_t slot, struct head_view *v);

/* "log/0000000000000001.seg" */
void segment_name(char name[SEGMENT_NAME_BYTES], uint32_t slot);
/* The slot of a file name in log/; 0 when it is no segment's. */
uint32_t segment_slot(const char *name);

#endif
