/*
 * json: any text. What is read is MessagePack within the bounds; shown and
 * read again, plain and pretty, it is the same bytes.
 */
#include <string.h>

#include "client/proto/json.h"
#include "tests/fuzz/fuzz.h"

#define BYTES_MAX (1U << 20)

static void again(const struct pack_w *first, unsigned flags)
{
	struct pack_w text, packed;
	enum rc rc;

	pack_w_init(&text, BYTES_MAX);
	pack_w_init(&packed, BYTES_MAX);
	MUST(pack_to_json((struct pack_bytes){ first->p, first->n }, &text,
			  flags) == RC_OK);
	rc = json_to_pack((const char *)text.p, text.n, &packed, NULL);
	MUST(rc == RC_OK);
	MUST(packed.n == first->n);
	MUST(memcmp(packed.p, first->p, first->n) == 0);
	pack_w_release(&text);
	pack_w_release(&packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const struct pack_bounds bounds = { PACK_DEPTH_MAX,
						   PACK_ELEMENTS_MAX,
						   BYTES_MAX };
	struct detail why = { 0 };
	struct pack_scan st = { 0 };
	struct pack_w w;
	size_t size = 0;
	enum rc rc;

	pack_w_init(&w, BYTES_MAX);
	rc = json_to_pack((const char *)p, n, &w, &why);
	MUST(rc == RC_OK || rc == RC_INVALID);
	MUST((rc == RC_OK) == (why.text[0] == '\0'));
	if (rc == RC_OK) {
		MUST(pack_check(&st, w.p, w.n, &bounds, &size) == RC_OK);
		MUST(size == w.n);
		again(&w, 0);
		again(&w, JSON_PRETTY);
	} else {
		MUST(w.n == 0);
	}
	pack_w_release(&w);
	return 0;
}
