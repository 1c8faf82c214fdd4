#include "client/hdr.h"

#include <stdlib.h>

#include "tests/lib/runner.h"

static struct hdr *fresh(void)
{
	struct hdr *h = hdr_new();

	EXPECT_NOT_NULL(h);
	return h;
}

TEST(empty)
{
	struct hdr *h = fresh();

	EXPECT_UINT(hdr_count(h), 0);
	EXPECT_UINT(hdr_min(h), 0);
	EXPECT_UINT(hdr_max(h), 0);
	EXPECT_TRUE(hdr_mean(h) == 0);
	EXPECT_UINT(hdr_percentile(h, 0), 0);
	EXPECT_UINT(hdr_percentile(h, 50), 0);
	EXPECT_UINT(hdr_percentile(h, 100), 0);
	hdr_free(h);
	hdr_free(NULL);
}

TEST(small_values_are_exact)
{
	struct hdr *h = fresh();
	uint64_t v;

	for (v = 1; v <= 2000; v++)
		hdr_record(h, v);
	EXPECT_UINT(hdr_count(h), 2000);
	EXPECT_UINT(hdr_percentile(h, 50), 1000);
	EXPECT_UINT(hdr_percentile(h, 99), 1980);
	EXPECT_UINT(hdr_percentile(h, 99.9), 1998);
	EXPECT_UINT(hdr_percentile(h, 99.95), 1999);
	EXPECT_UINT(hdr_percentile(h, 100), 2000);
	EXPECT_UINT(hdr_percentile(h, 0), 1);
	EXPECT_UINT(hdr_min(h), 1);
	EXPECT_UINT(hdr_max(h), 2000);
	EXPECT_TRUE(hdr_mean(h) == 1000.5);
	hdr_free(h);
}

/* At each power of two and beside it, one value alone reads as itself (the
 * maximum is exact) and, below a larger one, at most 1/1024 too high. */
TEST(three_digits_at_every_size)
{
	struct hdr *h = fresh();
	uint64_t v;
	uint64_t got;
	unsigned bit;
	int d;

	for (bit = 0; bit < 42; bit++) {
		for (d = -1; d <= 1; d++) {
			v = (UINT64_C(1) << bit) + (uint64_t)(int64_t)d;
			if (v > HDR_VALUE_MAX)
				continue;
			runner_context("%llu", (unsigned long long)v);
			hdr_reset(h);
			hdr_record(h, v);
			EXPECT_UINT(hdr_percentile(h, 50), v);
			hdr_record(h, HDR_VALUE_MAX);
			got = hdr_percentile(h, 50);
			EXPECT_TRUE(got >= v);
			EXPECT_TRUE(got - v <= v / 1024);
		}
	}
	hdr_free(h);
}

/* Slots are in the order of their values, without a gap or an overlap. */
TEST(percentiles_never_go_down)
{
	struct hdr *h = fresh();
	uint64_t v = 1;
	uint64_t last = 0;
	uint64_t got;
	unsigned n = 0;
	unsigned i;

	for (v = 1; v < HDR_VALUE_MAX; v += v / 700 + 1) {
		hdr_record(h, v);
		n++;
	}
	for (i = 0; i <= 1000; i++) {
		got = hdr_percentile(h, (double)i / 10);
		EXPECT_TRUE(got >= last);
		last = got;
	}
	EXPECT_UINT(hdr_count(h), n);
	hdr_free(h);
}

TEST(too_large_a_value_is_the_largest)
{
	struct hdr *h = fresh();

	hdr_record(h, UINT64_MAX);
	EXPECT_UINT(hdr_max(h), HDR_VALUE_MAX);
	EXPECT_UINT(hdr_percentile(h, 50), HDR_VALUE_MAX);
	hdr_free(h);
}

TEST(zero_is_a_value)
{
	struct hdr *h = fresh();

	hdr_record(h, 0);
	hdr_record(h, 5);
	EXPECT_UINT(hdr_min(h), 0);
	EXPECT_UINT(hdr_percentile(h, 50), 0);
	EXPECT_UINT(hdr_percentile(h, 51), 5);
	hdr_free(h);
}

TEST(sums_of_histograms)
{
	struct hdr *a = fresh();
	struct hdr *b = fresh();
	struct hdr *none = fresh();
	uint64_t v;

	for (v = 1; v <= 1000; v++)
		hdr_record(v % 2 != 0 ? a : b, v);
	hdr_add(a, none);
	hdr_add(a, b);
	hdr_add(none, a);
	EXPECT_UINT(hdr_count(none), 1000);
	EXPECT_UINT(hdr_percentile(none, 50), 500);
	EXPECT_UINT(hdr_min(none), 1);
	EXPECT_UINT(hdr_max(none), 1000);
	EXPECT_TRUE(hdr_mean(none) == 500.5);
	hdr_free(a);
	hdr_free(b);
	hdr_free(none);
}
