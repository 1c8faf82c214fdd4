/*
 * Bucket 0 holds 0..2047, one value a slot. Bucket b > 0 holds the values with
 * bit 10+b as their highest: 1024 slots of 2^b values. Slot 1024 * b + (value
 * >> b) counts them all without a gap: the lower half of a bucket b > 0 would
 * be what the buckets below it hold already.
 */
#include "client/hdr.h"

#include <stdlib.h>
#include <string.h>

#define HDR_HALF_BITS 10u
#define HDR_HALF      (1u << HDR_HALF_BITS)
#define HDR_BITS      42u
#define HDR_BUCKETS   (HDR_BITS - HDR_HALF_BITS)
#define HDR_SLOTS     ((HDR_BUCKETS + 1) * HDR_HALF)

_Static_assert(HDR_VALUE_MAX == (UINT64_C(1) << HDR_BITS) - 1,
	       "the last slot is the largest value's");

struct hdr {
	uint64_t count;
	uint64_t min;
	uint64_t max;
	double sum;
	uint64_t slots[HDR_SLOTS];
};

static uint32_t hdr_slot(uint64_t value)
{
	uint32_t top = 63u - (uint32_t)__builtin_clzll(value | HDR_HALF);
	uint32_t bucket = top - HDR_HALF_BITS;

	return HDR_HALF * bucket + (uint32_t)(value >> bucket);
}

/* The largest value of a slot. */
static uint64_t hdr_slot_max(uint32_t slot)
{
	uint32_t bucket = slot < 2 * HDR_HALF ? 0 : slot / HDR_HALF - 1;
	uint64_t first = slot - HDR_HALF * bucket;

	return ((first + 1) << bucket) - 1;
}

struct hdr *hdr_new(void)
{
	return calloc(1, sizeof(struct hdr));
}

void hdr_free(struct hdr *h)
{
	free(h);
}

void hdr_reset(struct hdr *h)
{
	memset(h, 0, sizeof(*h));
}

void hdr_record(struct hdr *h, uint64_t value)
{
	if (value > HDR_VALUE_MAX)
		value = HDR_VALUE_MAX;
	if (h->count == 0 || value < h->min)
		h->min = value;
	if (value > h->max)
		h->max = value;
	h->count++;
	h->sum += (double)value;
	h->slots[hdr_slot(value)]++;
}

void hdr_add(struct hdr *to, const struct hdr *from)
{
	uint32_t i;

	if (from->count == 0)
		return;
	if (to->count == 0 || from->min < to->min)
		to->min = from->min;
	if (from->max > to->max)
		to->max = from->max;
	to->count += from->count;
	to->sum += from->sum;
	for (i = 0; i < HDR_SLOTS; i++)
		to->slots[i] += from->slots[i];
}

uint64_t hdr_count(const struct hdr *h)
{
	return h->count;
}

uint64_t hdr_min(const struct hdr *h)
{
	return h->min;
}

uint64_t hdr_max(const struct hdr *h)
{
	return h->max;
}

double hdr_mean(const struct hdr *h)
{
	return h->count > 0 ? h->sum / (double)h->count : 0;
}

/* How many records make `percent` of `count`, rounded up, at least one. The
 * small term takes back what the division may have added. */
static uint64_t hdr_rank(uint64_t count, double percent)
{
	double exact = (double)count * percent / 100 - 1e-9;
	uint64_t rank = exact > 0 ? (uint64_t)exact : 0;

	if ((double)rank < exact)
		rank++;
	if (rank < 1)
		rank = 1;
	return rank < count ? rank : count;
}

uint64_t hdr_percentile(const struct hdr *h, double percent)
{
	uint64_t rank = hdr_rank(h->count, percent);
	uint64_t seen = 0;
	uint64_t value;
	uint32_t i;

	for (i = 0; i < HDR_SLOTS && h->count > 0; i++) {
		seen += h->slots[i];
		if (seen >= rank) {
			value = hdr_slot_max(i);
			return value < h->max ? value : h->max;
		}
	}
	return h->max;
}
