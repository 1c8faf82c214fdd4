/*
 * codec: any bytes as a message of Raft. What is read keeps its bounds and is,
 * written again, the same bytes.
 */
#include <raft.h>
#include <string.h>

#include "node/base/limits.h"
#include "raft-glue/codec.h"
#include "raft-glue/guard.h"
#include "raft-glue/step.h"
#include "tests/fuzz/fuzz.h"

#define FROM 2u

static void must_be_sane(const struct raft_append_entries *ae)
{
	const uint8_t *at = ae->n_entries > 0 ? ae->entries[0].batch : NULL;
	uint64_t term = ae->prev_log_term;
	unsigned i;

	MUST(ae->n_entries <= STEP_INFLIGHT_MAX);
	MUST(ae->prev_log_index + ae->n_entries >= ae->prev_log_index);
	for (i = 0; i < ae->n_entries; i++) {
		MUST(ae->entries[i].term >= term);
		MUST(ae->entries[i].term <= ae->term);
		MUST(ae->entries[i].buf.len <= ENTRY_BYTES_MAX);
		MUST(ae->entries[i].buf.base == at);
		at += ae->entries[i].buf.len;
		term = ae->entries[i].term;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct raft_message m;
	struct pack_w w;
	unsigned from = 0;
	enum rc rc = codec_read(p, n, FROM, &m);

	MUST(rc == RC_OK || rc == RC_INVALID);
	if (rc != RC_OK)
		return 0;
	MUST(m.server_id == FROM);
	MUST(guard_b21(&m));
	if (m.type == RAFT_APPEND_ENTRIES)
		must_be_sane(&m.append_entries);
	pack_w_init(&w, LINK_MESSAGE_BYTES_MAX);
	codec_write(&w, &m, &from);
	MUST(w.rc == RC_OK);
	MUST(!codec_more(&m, from));
	MUST(w.n == n);
	MUST(memcmp(w.p, p, n) == 0);
	pack_w_release(&w);
	codec_discard(&m);
	return 0;
}
