/*
 * crc32c - CRC-32C (Castagnoli polynomial 0x1EDC6F41, RFC 3720 appendix B.4).
 *
 * Any thread. Uses the processor's instruction where there is one (SSE4.2),
 * else a table. `crc` is 0 for the first piece, then the last result.
 */
#ifndef HOLDFAST_BASE_CRC32C_H
#define HOLDFAST_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(uint32_t crc, const void *p, size_t n);

/* The same from the table, for tests and other processors. */
uint32_t crc32c_table(uint32_t crc, const void *p, size_t n);

#endif
