/*
 * pair - a small file that holds everything twice, in different 4 KiB blocks.
 *
 * Blocking; one thread at a time per file. The file is two areas of the same
 * size and content, one behind the other; what is in them is sectors of 512
 * bytes that end in their CRC-32C. Both areas are written by every change, the
 * second only when the first is synced: so at any moment one of them is whole,
 * and after a change a single bad copy loses nothing, not even the news.
 * Used by ballot.c and identity.c.
 */
#ifndef HOLDFAST_RAFT_GLUE_PAIR_H
#define HOLDFAST_RAFT_GLUE_PAIR_H

#include "node/base/disk.h"

#define PAIR_BLOCK  4096u
#define PAIR_SECTOR 512u
#define PAIR_SYNCS  2u /* Of one pair_write. */

/* An image of `bytes` for a file: zeroed, aligned for DISK_DIRECT. NULL: no
 * memory. free() it. */
uint8_t *pair_image(size_t bytes);

/* Ends the sector in the CRC of what stands before; tells whether it does. */
void pair_seal(uint8_t *sector);
bool pair_sealed(const uint8_t *sector);

/*
 * Fill `image` from the device. What is missing or cannot be read comes as
 * bytes that no seal fits. Errors of opening only: RC_NOT_FOUND, RC_IO, ...
 */
enum rc pair_read(struct disk *disk, const char *name, uint8_t *image,
		  size_t bytes, struct detail *why);

/* Write and sync one half of the image (`bytes` of both), then the other.
 * `second_first` says which area begins. */
enum rc pair_write(struct disk_file *file, const uint8_t *image, size_t bytes,
		   bool second_first);

#endif
