#include "raft-glue/codec.h"

#include <raft.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/limits.h"
#include "raft-glue/guard.h"
#include "raft-glue/le.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define ENTRIES_MAX 300u
#define FROM        2u

static struct raft_entry list[ENTRIES_MAX];
static uint8_t data[ENTRY_BYTES_MAX];

static struct pack_w encode(const struct raft_message *m, unsigned *from)
{
	struct pack_w w;

	pack_w_init(&w, LINK_MESSAGE_BYTES_MAX);
	codec_write(&w, m, from);
	EXPECT_RC(w.rc, RC_OK);
	return w;
}

/* In an allocation of its own size. */
static enum rc decode(const uint8_t *p, size_t n, struct raft_message *m)
{
	uint8_t *copy = malloc(n > 0 ? n : 1);
	enum rc rc;

	EXPECT_NOT_NULL(copy);
	if (n > 0)
		memcpy(copy, p, n);
	rc = codec_read(copy, n, FROM, m);
	free(copy);
	return rc;
}

static struct raft_message there_and_back(const struct raft_message *m)
{
	struct raft_message got;
	unsigned from = 0;
	struct pack_w w = encode(m, &from);

	EXPECT_FALSE(codec_more(m, from));
	EXPECT_RC(decode(w.p, w.n, &got), RC_OK);
	pack_w_release(&w);
	EXPECT_INT(got.type, m->type);
	EXPECT_UINT(got.server_id, FROM);
	EXPECT_STR(got.server_address, "");
	return got;
}

static struct raft_message vote(void)
{
	return (struct raft_message){
		.type = RAFT_REQUEST_VOTE,
		.server_id = 7,
		.request_vote = { .version = 2,
				  .term = 5,
				  .candidate_id = FROM,
				  .last_log_index = 100,
				  .last_log_term = 4,
				  .disrupt_leader = true,
				  .pre_vote = false },
	};
}

static struct raft_message vote_result(void)
{
	return (struct raft_message){
		.type = RAFT_REQUEST_VOTE_RESULT,
		.server_id = 7,
		.request_vote_result = { .version = 2,
					 .term = 6,
					 .vote_granted = true,
					 .pre_vote = true,
					 .features = 0x1234,
					 .capacity = 0xfedc },
	};
}

static struct raft_message append_result(void)
{
	return (struct raft_message){
		.type = RAFT_APPEND_ENTRIES_RESULT,
		.server_id = 7,
		.append_entries_result = { .version = 2,
					   .term = 9,
					   .rejected = 77,
					   .last_log_index = 55,
					   .features = 0x4321,
					   .capacity = 0xcdef },
	};
}

static struct raft_message timeout_now(void)
{
	return (struct raft_message){
		.type = RAFT_TIMEOUT_NOW,
		.server_id = 7,
		.timeout_now = { .version = 0,
				 .term = 3,
				 .last_log_index = 12,
				 .last_log_term = 2 },
	};
}

/* `n` entries of `bytes` each behind index 10; every 50th begins a term. */
static struct raft_message append(unsigned n, size_t bytes)
{
	unsigned i;

	for (i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 31 + i / 251);
	for (i = 0; i < n; i++)
		list[i] = (struct raft_entry){
			.term = 4 + i / 50,
			.type = i % 7 == 0    ? RAFT_BARRIER
				: i % 11 == 3 ? RAFT_CHANGE
					      : RAFT_COMMAND,
			.buf = { data + i, bytes },
		};
	return (struct raft_message){
		.type = RAFT_APPEND_ENTRIES,
		.server_id = 7,
		.append_entries = { .version = 0,
				    .term = 50,
				    .prev_log_index = 10,
				    .prev_log_term = 3,
				    .leader_commit = 9,
				    .entries = list,
				    .n_entries = n },
	};
}

TEST(votes_keep_every_field)
{
	struct raft_message m = vote();
	struct raft_message got;
	unsigned flags;

	for (flags = 0; flags < 4; flags++) {
		m.request_vote.pre_vote = (flags & 1) != 0;
		m.request_vote.disrupt_leader = (flags & 2) != 0;
		got = there_and_back(&m);
		EXPECT_UINT(got.request_vote.version, 2);
		EXPECT_UINT(got.request_vote.term, 5);
		EXPECT_UINT(got.request_vote.candidate_id, FROM);
		EXPECT_UINT(got.request_vote.last_log_index, 100);
		EXPECT_UINT(got.request_vote.last_log_term, 4);
		EXPECT_UINT(got.request_vote.pre_vote, flags & 1);
		EXPECT_UINT(got.request_vote.disrupt_leader, flags >> 1);
		codec_release(&got);
	}
}

TEST(answers_to_votes_keep_every_field)
{
	struct raft_message m = vote_result();
	struct raft_message got;
	unsigned flags;

	for (flags = 0; flags < 4; flags++) {
		m.request_vote_result.pre_vote = (flags & 1) != 0;
		m.request_vote_result.vote_granted = (flags & 2) != 0;
		m.request_vote_result.term = flags;
		got = there_and_back(&m);
		EXPECT_TRUE(guard_b21(&got));
		EXPECT_UINT(got.request_vote_result.term, flags);
		EXPECT_UINT(got.request_vote_result.pre_vote, flags & 1);
		EXPECT_UINT(got.request_vote_result.vote_granted, flags >> 1);
		EXPECT_UINT(got.request_vote_result.features, 0x1234);
		EXPECT_UINT(got.request_vote_result.capacity, 0xfedc);
		codec_release(&got);
	}
}

TEST(answers_to_entries_keep_every_field)
{
	struct raft_message m = append_result();
	struct raft_message got = there_and_back(&m);

	EXPECT_TRUE(guard_b21(&got));
	EXPECT_UINT(got.append_entries_result.term, 9);
	EXPECT_UINT(got.append_entries_result.rejected, 77);
	EXPECT_UINT(got.append_entries_result.last_log_index, 55);
	EXPECT_UINT(got.append_entries_result.features, 0x4321);
	EXPECT_UINT(got.append_entries_result.capacity, 0xcdef);
	codec_discard(&got);
}

TEST(a_hand_over_keeps_every_field)
{
	struct raft_message m = timeout_now();
	struct raft_message got = there_and_back(&m);

	EXPECT_TRUE(guard_b21(&got));
	EXPECT_UINT(got.timeout_now.term, 3);
	EXPECT_UINT(got.timeout_now.last_log_index, 12);
	EXPECT_UINT(got.timeout_now.last_log_term, 2);
	codec_release(&got);
}

TEST(a_heartbeat_has_no_entries)
{
	struct raft_message m = append(0, 0);
	struct raft_message got = there_and_back(&m);

	EXPECT_TRUE(guard_b21(&got));
	EXPECT_UINT(got.append_entries.n_entries, 0);
	EXPECT_NULL(got.append_entries.entries);
	EXPECT_UINT(got.append_entries.prev_log_index, 10);
	codec_discard(&got);
	/* An empty log. */
	m.append_entries.prev_log_index = 0;
	m.append_entries.prev_log_term = 0;
	got = there_and_back(&m);
	EXPECT_UINT(got.append_entries.prev_log_index, 0);
	codec_release(&got);
}

static void expect_entries(const struct raft_message *got,
			   const struct raft_message *m, unsigned from)
{
	const struct raft_append_entries *ae = &got->append_entries;
	const struct raft_entry *e;
	unsigned i;

	EXPECT_UINT(ae->version, 0);
	EXPECT_UINT(ae->term, m->append_entries.term);
	EXPECT_UINT(ae->leader_commit, m->append_entries.leader_commit);
	EXPECT_UINT(ae->prev_log_index,
		    m->append_entries.prev_log_index + from);
	EXPECT_UINT(ae->prev_log_term, from == 0
					       ? m->append_entries.prev_log_term
					       : list[from - 1].term);
	for (i = 0; i < ae->n_entries; i++) {
		e = &m->append_entries.entries[from + i];
		EXPECT_UINT(ae->entries[i].term, e->term);
		EXPECT_INT(ae->entries[i].type, e->type);
		EXPECT_UINT(ae->entries[i].buf.len, e->buf.len);
		EXPECT_MEM(ae->entries[i].buf.base, e->buf.base, e->buf.len);
		EXPECT_TRUE(ae->entries[i].batch == ae->entries[0].batch);
	}
}

/* What the core does with what it was given: the batch is its own, the array
 * may be looked at from further on. */
static void step_it(struct raft_message *m)
{
	if (m->append_entries.n_entries > 0)
		raft_free(m->append_entries.entries[0].batch);
	if (m->append_entries.n_entries > 2) {
		m->append_entries.entries += 2;
		m->append_entries.n_entries -= 2;
	}
	codec_release(m);
}

TEST(entries_keep_every_field)
{
	static const size_t sizes[] = { 0, 1, 8, 100, 3000 };
	struct raft_message m;
	struct raft_message got;
	unsigned n;
	size_t s;

	for (s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++)
		for (n = 1; n <= 256; n = n * 3 + 1) {
			m = append(n, sizes[s]);
			got = there_and_back(&m);
			EXPECT_UINT(got.append_entries.n_entries, n);
			expect_entries(&got, &m, 0);
			if (n % 2 == 0)
				codec_discard(&got);
			else
				step_it(&got);
		}
}

static unsigned pieces(const struct raft_message *m, size_t bytes_max)
{
	struct raft_message got;
	struct pack_w w;
	unsigned from = 0;
	unsigned at = 0;
	unsigned n = 0;

	do {
		w = encode(m, &from);
		EXPECT_TRUE(w.n <= bytes_max);
		EXPECT_RC(decode(w.p, w.n, &got), RC_OK);
		pack_w_release(&w);
		expect_entries(&got, m, at);
		at += got.append_entries.n_entries;
		EXPECT_UINT(at, from);
		codec_discard(&got);
		n++;
	} while (codec_more(m, from));
	EXPECT_UINT(at, m->append_entries.n_entries);
	return n;
}

TEST(pieces_add_up)
{
	struct raft_message m = append(256, 10000);

	EXPECT_UINT(pieces(&m, CODEC_PIECE_BYTES + 40), 3);
	m = append(4, ENTRY_BYTES_MAX - 4);
	EXPECT_UINT(pieces(&m, ENTRY_BYTES_MAX + 56), 4);
	m = append(300, 10);
	EXPECT_UINT(pieces(&m, CODEC_PIECE_BYTES), 2);
	/* Exactly a piece, and a byte more. */
	m = append(2, CODEC_PIECE_BYTES / 2 - 16);
	EXPECT_UINT(pieces(&m, CODEC_PIECE_BYTES + 40), 1);
	list[1].buf.len++;
	EXPECT_UINT(pieces(&m, CODEC_PIECE_BYTES + 40), 2);
}

TEST(a_writer_that_is_full_says_so)
{
	struct raft_message m = append(20, 100);
	struct pack_w w;
	unsigned from = 0;

	pack_w_init(&w, 500);
	codec_write(&w, &m, &from);
	EXPECT_RC(w.rc, RC_OVERLOADED);
	EXPECT_FALSE(codec_more(&m, from));
	pack_w_release(&w);
	pack_w_init(&w, 8);
	from = 0;
	m = vote();
	codec_write(&w, &m, &from);
	m = vote_result();
	codec_write(&w, &m, &from);
	m = append_result();
	codec_write(&w, &m, &from);
	m = timeout_now();
	codec_write(&w, &m, &from);
	EXPECT_RC(w.rc, RC_OVERLOADED);
	EXPECT_UINT(w.n, 0);
	pack_w_release(&w);
}

TEST(a_snapshot_is_never_encoded)
{
	struct raft_message m = { .type = RAFT_INSTALL_SNAPSHOT };
	uint8_t p[16] = { RAFT_INSTALL_SNAPSHOT };
	struct pack_w w;
	unsigned from = 0;

	pack_w_init(&w, 500);
	EXPECT_ABORT(codec_write(&w, &m, &from));
	EXPECT_RC(decode(p, sizeof(p), &m), RC_INVALID);
}

/* One byte of a good message is another. */
struct change {
	size_t at;
	size_t bytes;
	uint64_t to;
};

static void expect_refused(const struct raft_message *m,
			   const struct change *list_, size_t n)
{
	struct raft_message got;
	unsigned from = 0;
	struct pack_w w = encode(m, &from);
	uint8_t was[8];
	size_t i;

	for (i = 0; i < n; i++) {
		runner_context("change %zu at %zu", i, list_[i].at);
		memcpy(was, w.p + list_[i].at, list_[i].bytes);
		if (list_[i].bytes == 8)
			le_put64(w.p + list_[i].at, list_[i].to);
		else if (list_[i].bytes == 4)
			le_put32(w.p + list_[i].at, (uint32_t)list_[i].to);
		else if (list_[i].bytes == 2)
			le_put16(w.p + list_[i].at, (uint16_t)list_[i].to);
		else
			w.p[list_[i].at] = (uint8_t)list_[i].to;
		EXPECT_RC(decode(w.p, w.n, &got), RC_INVALID);
		codec_discard(&got);
		memcpy(w.p + list_[i].at, was, list_[i].bytes);
	}
	EXPECT_RC(decode(w.p, w.n, &got), RC_OK);
	codec_discard(&got);
	/* Cut anywhere, or with a byte too much. */
	for (i = 0; i < w.n; i++) {
		runner_context("cut at %zu", i);
		EXPECT_RC(decode(w.p, i, &got), RC_INVALID);
		codec_discard(&got);
	}
	runner_context("a byte too much");
	EXPECT_TRUE(pack_w_reserve(&w, 1));
	w.p[w.n] = 0;
	EXPECT_RC(decode(w.p, w.n + 1, &got), RC_INVALID);
	codec_discard(&got);
	pack_w_release(&w);
}

#define TOO_HIGH (UINT64_C(1) << 63)

TEST(bad_votes_are_refused)
{
	static const struct change c[] = {
		{ 0, 1, 0 },
		{ 0, 1, 5 },
		{ 0, 1, 7 },
		{ 0, 1, 255 },
		{ 1, 1, 0 }, /* B21. */
		{ 1, 1, 1 },
		{ 1, 1, 3 },
		{ 2, 1, 4 }, /* A flag of the answer. */
		{ 2, 1, 8 },
		{ 3, 1, 1 },
		{ 4, 2, 1 },
		{ 6, 2, 1 },
		{ 8, 8, 0 },
		{ 8, 8, UINT64_MAX },
		{ 8, 8, TOO_HIGH },
		{ 16, 8, FROM + 1 }, /* Somebody else's vote. */
		{ 16, 8, UINT64_MAX },
		{ 24, 8, UINT64_MAX },
		{ 32, 8, TOO_HIGH },
	};
	struct raft_message m = vote();

	expect_refused(&m, c, sizeof(c) / sizeof(c[0]));
}

TEST(bad_answers_are_refused)
{
	static const struct change c[] = {
		{ 1, 1, 0 },  { 1, 1, 1 },          { 2, 1, 2 },
		{ 2, 1, 16 }, { 8, 8, UINT64_MAX }, { 8, 8, TOO_HIGH },
	};
	static const struct change d[] = {
		{ 1, 1, 0 },           { 2, 1, 1 },
		{ 8, 8, UINT64_MAX },  { 16, 8, TOO_HIGH },
		{ 24, 8, UINT64_MAX },
	};
	static const struct change e[] = {
		{ 1, 1, 2 },           { 2, 2, 1 },
		{ 4, 4, 1 },           { 8, 8, 0 },
		{ 8, 8, UINT64_MAX },  { 16, 8, TOO_HIGH },
		{ 24, 8, UINT64_MAX },
	};
	struct raft_message m = vote_result();

	expect_refused(&m, c, sizeof(c) / sizeof(c[0]));
	m = append_result();
	expect_refused(&m, d, sizeof(d) / sizeof(d[0]));
	m = timeout_now();
	expect_refused(&m, e, sizeof(e) / sizeof(e[0]));
}

TEST(bad_entries_are_refused)
{
	static const struct change c[] = {
		{ 1, 1, 2 },
		{ 2, 2, 0 }, /* The entries are too much then. */
		{ 2, 2, 1 },
		{ 2, 2, 3 },
		{ 2, 2, 257 },
		{ 2, 2, 65535 },
		{ 4, 4, 1 },
		{ 8, 8, 0 },
		{ 8, 8, 2 }, /* Older than what it sends. */
		{ 8, 8, UINT64_MAX },
		{ 16, 8, 0 },
		{ 16, 8, UINT64_MAX },
		{ 16, 8, TOO_HIGH - 2 }, /* And two entries behind it. */
		{ 24, 8, 0 },
		{ 24, 8, 5 }, /* Newer than the first entry. */
		{ 24, 8, 51 },
		{ 32, 8, UINT64_MAX },
		{ 40, 8, 0 }, /* The first entry's term, */
		{ 40, 8, 2 },
		{ 40, 8, 51 },
		{ 40, 8, UINT64_MAX },
		{ 48, 4, 4 }, /* length, */
		{ 48, 4, 6 },
		{ 48, 4, UINT32_MAX },
		{ 48, 4, ENTRY_BYTES_MAX + 1 },
		{ 52, 1, 0 }, /* type, */
		{ 52, 1, 4 },
		{ 53, 1, 1 }, /* zeros. */
		{ 55, 1, 1 },
	};
	struct raft_message m = append(2, 5);

	expect_refused(&m, c, sizeof(c) / sizeof(c[0]));
}

/* One entry more than a message may have, all of it well-formed. */
TEST(more_than_256_entries_are_refused)
{
	struct raft_message m = append(1, 0);
	struct raft_message got;
	unsigned from = 0;
	struct pack_w w = encode(&m, &from);
	uint8_t entry[16];
	unsigned n;

	memcpy(entry, w.p + 40, 16);
	for (n = 2; n <= 257; n++) {
		pack_raw(&w, entry, 16);
		le_put16(w.p + 2, (uint16_t)n);
		EXPECT_RC(decode(w.p, w.n, &got), n < 257 ? RC_OK : RC_INVALID);
		codec_discard(&got);
	}
	pack_w_release(&w);
}

static bool refuse;

static void *heap_malloc(void *arg, size_t n)
{
	(void)arg;
	return refuse && fault_next() ? NULL : malloc(n);
}

static void heap_free(void *arg, void *p)
{
	(void)arg;
	free(p);
}

static void *heap_calloc(void *arg, size_t n, size_t size)
{
	(void)arg;
	return calloc(n, size);
}

static void *heap_realloc(void *arg, void *p, size_t n)
{
	(void)arg;
	return realloc(p, n);
}

static void *heap_aligned(void *arg, size_t alignment, size_t n)
{
	(void)arg;
	return aligned_alloc(alignment, n);
}

static void heap_aligned_free(void *arg, size_t alignment, void *p)
{
	(void)arg;
	(void)alignment;
	free(p);
}

TEST(no_memory_is_told)
{
	static struct raft_heap heap = { .malloc = heap_malloc,
					 .free = heap_free,
					 .calloc = heap_calloc,
					 .realloc = heap_realloc,
					 .aligned_alloc = heap_aligned,
					 .aligned_free = heap_aligned_free };
	struct raft_message m = append(3, 50);
	struct raft_message got;
	unsigned from = 0;
	struct pack_w w = encode(&m, &from);
	unsigned n;

	raft_heap_set(&heap);
	for (n = 1; n <= 2; n++) {
		refuse = true;
		fault_alloc(n);
		EXPECT_RC(codec_read(w.p, w.n, FROM, &got), RC_NOMEM);
		EXPECT_TRUE(fault_off());
		refuse = false;
		codec_discard(&got);
	}
	raft_heap_set_default();
	pack_w_release(&w);
}
