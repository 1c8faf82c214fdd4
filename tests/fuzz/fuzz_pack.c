/*
 * pack: any bytes. A scan in one go and one byte at a time agree; what passes
 * is passed over by the cursor at the same size and is unfinished one byte
 * earlier; as JSON and back it stays what it was.
 */
#include <string.h>

#include "client/proto/json.h"
#include "client/proto/pack.h"
#include "tests/fuzz/fuzz.h"

#define TEXT_BYTES_MAX (1U << 20)

static const struct pack_bounds bounds = { PACK_DEPTH_MAX, 2000, 3000 };

static enum rc check_slowly(const uint8_t *p, size_t n, size_t *size)
{
	struct pack_scan st = { 0 };
	enum rc rc = RC_AGAIN;
	size_t have;

	for (have = 0; have <= n && rc == RC_AGAIN; have++)
		rc = pack_check(&st, p, have, &bounds, size);
	return rc;
}

static void walk(struct pack_bytes b)
{
	struct pack_r r = pack_reader(b.p, b.n);
	struct pack_val v;
	uint64_t left = 1;

	while (left > 0) {
		MUST(pack_next(&r, &v) == RC_OK);
		MUST(r.at <= r.end);
		left--;
		if (v.type == PACK_ARRAY)
			left += v.n;
		else if (v.type == PACK_MAP)
			left += 2ULL * v.n;
	}
	MUST(r.at == r.end);
	MUST(pack_next(&r, &v) == RC_EOF);
}

/* Text, what it is read as, and that as text. */
static void there_and_back(struct pack_bytes b)
{
	struct pack_w text, packed, again;

	pack_w_init(&text, TEXT_BYTES_MAX);
	pack_w_init(&packed, TEXT_BYTES_MAX);
	pack_w_init(&again, TEXT_BYTES_MAX);
	MUST(pack_to_json(b, &text, 0) == RC_OK);
	MUST(json_to_pack((const char *)text.p, text.n, &packed, NULL) ==
	     RC_OK);
	/* A float of 4 bytes comes back with 8. */
	MUST(packed.n <= 2 * b.n);
	MUST(pack_to_json((struct pack_bytes){ packed.p, packed.n }, &again,
			  0) == RC_OK);
	MUST(again.n == text.n);
	MUST(memcmp(again.p, text.p, text.n) == 0);
	pack_w_release(&text);
	pack_w_release(&packed);
	pack_w_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct pack_scan st = { 0 };
	struct pack_r r = pack_reader(p, n);
	struct pack_bytes whole;
	size_t size = 0;
	size_t slow_size = 0;
	enum rc skipped;
	enum rc rc;

	rc = pack_check(&st, p, n, &bounds, &size);
	MUST(rc == RC_OK || rc == RC_AGAIN || rc == RC_INVALID);
	MUST(check_slowly(p, n, &slow_size) == rc);
	MUST(size == slow_size);
	skipped = pack_skip(&r, &whole);
	if (rc != RC_OK) {
		MUST(rc == RC_INVALID || skipped != RC_OK);
		return 0;
	}
	MUST(skipped == RC_OK);
	MUST(whole.n == size && size <= n && size <= bounds.bytes_max);
	memset(&st, 0, sizeof(st));
	MUST(pack_check(&st, p, size - 1, &bounds, &slow_size) == RC_AGAIN);
	walk(whole);
	/* Not itself only when it has a map with a key twice, or NaN. */
	(void)pack_equal(whole, whole);
	there_and_back(whole);
	return 0;
}
