/*
 * hdr - a histogram of times with three significant digits at every size.
 *
 * One thread. Buckets are linear within a power of two and double from one to
 * the next (Gil Tene's HdrHistogram): an addition is an index computation, the
 * memory is fixed, and what is read back is at most 1/1024 above what was
 * recorded, whether that was a microsecond or an hour.
 */
#ifndef HOLDFAST_CLIENT_HDR_H
#define HOLDFAST_CLIENT_HDR_H

#include <stdint.h>

/* Values above are counted as this one: 2^42 ns are 73 minutes. */
#define HDR_VALUE_MAX ((UINT64_C(1) << 42) - 1)

struct hdr;

/* NULL: out of memory (260 KiB). */
struct hdr *hdr_new(void);
void hdr_free(struct hdr *h);
void hdr_reset(struct hdr *h);

void hdr_record(struct hdr *h, uint64_t value);
void hdr_add(struct hdr *to, const struct hdr *from);

uint64_t hdr_count(const struct hdr *h);
/* As they were recorded, not rounded; 0 when there is none. */
uint64_t hdr_min(const struct hdr *h);
uint64_t hdr_max(const struct hdr *h);
double hdr_mean(const struct hdr *h);
/*
 * The smallest value that at least `percent` (0 to 100) of the records do not
 * exceed, to three digits, at most hdr_max(). 0 when there is none.
 */
uint64_t hdr_percentile(const struct hdr *h, double percent);

#endif
