#include "raft-glue/pair.h"

#include "node/base/check.h"
#include "node/base/crc32c.h"
#include "raft-glue/le.h"

#define SEAL_AT (PAIR_SECTOR - 4u)

/* Sectors of it have no valid seal. */
#define UNREADABLE 0xff

uint8_t *pair_image(size_t bytes)
{
	uint8_t *p;

	PRE(bytes % (2 * PAIR_BLOCK) == 0);
	p = aligned_alloc(DISK_ALIGN, bytes);
	if (p != NULL)
		memset(p, 0, bytes);
	return p;
}

void pair_seal(uint8_t *sector)
{
	le_put32(sector + SEAL_AT, crc32c(0, sector, SEAL_AT));
}

bool pair_sealed(const uint8_t *sector)
{
	return le_get32(sector + SEAL_AT) == crc32c(0, sector, SEAL_AT);
}

enum rc pair_read(struct disk *disk, const char *name, uint8_t *image,
		  size_t bytes, struct detail *why)
{
	struct disk_file *f;
	size_t off;
	size_t got;
	enum rc rc;

	rc = disk_open(disk, name, DISK_READONLY | DISK_DIRECT, &f, why);
	if (rc != RC_OK)
		return rc;
	memset(image, UNREADABLE, bytes);
	/* Block by block: one that cannot be read leaves the others. */
	for (off = 0; off < bytes; off += PAIR_BLOCK) {
		rc = disk_read(f, image + off, PAIR_BLOCK, off, &got);
		if (rc != RC_OK || got < PAIR_BLOCK)
			memset(image + off, UNREADABLE, PAIR_BLOCK);
	}
	disk_close(f);
	return RC_OK;
}

enum rc pair_write(struct disk_file *file, const uint8_t *image, size_t bytes,
		   bool second_first)
{
	size_t half = bytes / 2;
	size_t first = second_first ? half : 0;
	size_t second = second_first ? 0 : half;
	enum rc rc;

	rc = disk_write(file, image + first, half, first);
	if (rc == RC_OK)
		rc = disk_sync(file);
	if (rc == RC_OK)
		rc = disk_write(file, image + second, half, second);
	if (rc == RC_OK)
		rc = disk_sync(file);
	return rc;
}
