/*
 * A message, integers little endian. All of them begin with
 *
 *	 0  1  type, as libraft numbers them (below in brackets)
 *	 1  1  version: 2 of a RequestVote, a RequestVoteResult and an
 *	       AppendEntriesResult, 0 of the others (guard B21)
 *	 2  2  of an AppendEntries the number of entries, at most 256;
 *	       of a RequestVote and its result flags; else zero
 *	 4  2  features, of both results; else zero
 *	 6  2  capacity, of both results: 1 when the sender's disk is low, 2
 *	       when it is full; else zero
 *	 8  8  term
 *
 * and end, after nothing more in a RequestVoteResult (4), with:
 *
 *	AppendEntries (1)       AppendEntriesResult (2)  RequestVote (3)
 *	16  8  prev_log_index   16  8  rejected          16  8  candidate_id
 *	24  8  prev_log_term    24  8  last_log_index    24  8  last_log_index
 *	32  8  leader_commit                             32  8  last_log_term
 *	40     entries          TimeoutNow (6)
 *	                        16  8  last_log_index
 *	                        24  8  last_log_term
 *
 * Flags: 1 pre_vote, 2 disrupt_leader (RequestVote), 4 vote_granted (its
 * result). An entry is
 *
 *	 0  8  term       8  4  length of the data, up to ENTRY_BYTES_MAX
 *	12  1  type      13  3  zero          16     data
 *
 * Terms and indexes are below 2^63, so no sum of them overflows. A message ends
 * where its bytes end. An InstallSnapshot (5) has no encoding.
 */
#include "raft-glue/codec.h"

#include <raft.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "raft-glue/le.h"
#include "raft-glue/step.h"

_Static_assert(RAFT_VERSION_NUMBER == 2201,
	       "the messages are those of libraft 0.22.1");

#define HEAD_BYTES   16u
#define APPEND_BYTES 40u
#define ENTRY_HEAD   16u

_Static_assert(CODEC_PIECE_BYTES + ENTRY_BYTES_MAX < LINK_MESSAGE_BYTES_MAX,
	       "a piece fits a message of a link");

#define FLAG_PRE_VOTE 1u
#define FLAG_DISRUPT  2u
#define FLAG_GRANTED  4u

/* Where a message that was not read has its address; of one with entries it is
 * at the front of the array's allocation, by which codec_release finds it. */
static const char no_address[] = "";

/* ---- writing ---- */

static uint8_t *write_begin(struct pack_w *w, size_t bytes)
{
	uint8_t *p;

	if (!pack_w_reserve(w, bytes))
		return NULL;
	p = w->p + w->n;
	w->n += bytes;
	return p;
}

static void put_head(uint8_t *p, const struct raft_message *m, uint8_t version,
		     unsigned n, uint64_t term)
{
	PRE(n <= UINT16_MAX);
	memset(p, 0, HEAD_BYTES);
	p[0] = (uint8_t)m->type;
	p[1] = version;
	le_put16(p + 2, (uint16_t)n);
	le_put64(p + 8, term);
}

/* How many entries of a message go into one piece, from `from` on. */
static unsigned piece_entries(const struct raft_append_entries *ae,
			      unsigned from, size_t *bytes)
{
	size_t next = 0;
	unsigned i;

	*bytes = 0;
	for (i = from; i < ae->n_entries && i - from < STEP_INFLIGHT_MAX; i++) {
		next = *bytes + ENTRY_HEAD + ae->entries[i].buf.len;
		if (i > from && next > CODEC_PIECE_BYTES)
			break;
		*bytes = next;
	}
	return i - from;
}

static void put_entry(uint8_t *p, const struct raft_entry *e)
{
	PRE(e->buf.len <= ENTRY_BYTES_MAX);
	le_put64(p, e->term);
	le_put32(p + 8, (uint32_t)e->buf.len);
	le_put32(p + 12, (uint32_t)e->type);
	if (e->buf.len > 0)
		memcpy(p + ENTRY_HEAD, e->buf.base, e->buf.len);
}

static void write_append(struct pack_w *w, const struct raft_message *m,
			 unsigned *from)
{
	const struct raft_append_entries *ae = &m->append_entries;
	unsigned first = *from;
	size_t bytes;
	unsigned n;
	unsigned i;
	uint8_t *p;

	PRE(first <= ae->n_entries);
	n = piece_entries(ae, first, &bytes);
	*from = first + n;
	p = write_begin(w, APPEND_BYTES + bytes);
	if (p == NULL)
		return;
	put_head(p, m, ae->version, n, ae->term);
	le_put64(p + 16, ae->prev_log_index + first);
	le_put64(p + 24,
		 first == 0 ? ae->prev_log_term : ae->entries[first - 1].term);
	le_put64(p + 32, ae->leader_commit);
	p += APPEND_BYTES;
	for (i = first; i < first + n; i++) {
		put_entry(p, &ae->entries[i]);
		p += ENTRY_HEAD + ae->entries[i].buf.len;
	}
}

static void write_append_result(struct pack_w *w, const struct raft_message *m)
{
	const struct raft_append_entries_result *res =
		&m->append_entries_result;
	uint8_t *p = write_begin(w, HEAD_BYTES + 16);

	if (p == NULL)
		return;
	put_head(p, m, res->version, 0, res->term);
	le_put16(p + 4, res->features);
	le_put16(p + 6, res->capacity);
	le_put64(p + 16, res->rejected);
	le_put64(p + 24, res->last_log_index);
}

static void write_vote(struct pack_w *w, const struct raft_message *m)
{
	const struct raft_request_vote *rv = &m->request_vote;
	uint8_t *p = write_begin(w, HEAD_BYTES + 24);
	unsigned flags = (rv->pre_vote ? FLAG_PRE_VOTE : 0) |
			 (rv->disrupt_leader ? FLAG_DISRUPT : 0);

	if (p == NULL)
		return;
	put_head(p, m, rv->version, flags, rv->term);
	le_put64(p + 16, rv->candidate_id);
	le_put64(p + 24, rv->last_log_index);
	le_put64(p + 32, rv->last_log_term);
}

static void write_vote_result(struct pack_w *w, const struct raft_message *m)
{
	const struct raft_request_vote_result *res = &m->request_vote_result;
	uint8_t *p = write_begin(w, HEAD_BYTES);
	unsigned flags = (res->pre_vote ? FLAG_PRE_VOTE : 0) |
			 (res->vote_granted ? FLAG_GRANTED : 0);

	if (p == NULL)
		return;
	put_head(p, m, res->version, flags, res->term);
	le_put16(p + 4, res->features);
	le_put16(p + 6, res->capacity);
}

static void write_timeout_now(struct pack_w *w, const struct raft_message *m)
{
	const struct raft_timeout_now *tn = &m->timeout_now;
	uint8_t *p = write_begin(w, HEAD_BYTES + 16);

	if (p == NULL)
		return;
	put_head(p, m, tn->version, 0, tn->term);
	le_put64(p + 16, tn->last_log_index);
	le_put64(p + 24, tn->last_log_term);
}

void codec_write(struct pack_w *w, const struct raft_message *m, unsigned *from)
{
	switch (m->type) {
	case RAFT_APPEND_ENTRIES:
		write_append(w, m, from);
		return;
	case RAFT_APPEND_ENTRIES_RESULT:
		write_append_result(w, m);
		return;
	case RAFT_REQUEST_VOTE:
		write_vote(w, m);
		return;
	case RAFT_REQUEST_VOTE_RESULT:
		write_vote_result(w, m);
		return;
	case RAFT_TIMEOUT_NOW:
		write_timeout_now(w, m);
		return;
	case RAFT_INSTALL_SNAPSHOT:
		break;
	}
	UNREACHABLE();
}

bool codec_more(const struct raft_message *m, unsigned from)
{
	return m->type == RAFT_APPEND_ENTRIES &&
	       from < m->append_entries.n_entries;
}

/* ---- reading ---- */

/* What a message of the type has to look like. */
struct shape {
	uint8_t version;
	uint8_t bytes; /* At least. */
	uint8_t flags; /* That may be set. */
	bool results;  /* It has features and capacity, and a receiver that
			* never took part may be in term 0. */
};

static const struct shape shapes[] = {
	[RAFT_APPEND_ENTRIES] = { 0, APPEND_BYTES, 0, false },
	[RAFT_APPEND_ENTRIES_RESULT] = { 2, HEAD_BYTES + 16, 0, true },
	[RAFT_REQUEST_VOTE] = { 2, HEAD_BYTES + 24,
				FLAG_PRE_VOTE | FLAG_DISRUPT, false },
	[RAFT_REQUEST_VOTE_RESULT] = { 2, HEAD_BYTES,
				       FLAG_PRE_VOTE | FLAG_GRANTED, true },
	[RAFT_INSTALL_SNAPSHOT] = { 0, 0, 0, false },
	[RAFT_TIMEOUT_NOW] = { 0, HEAD_BYTES + 16, 0, false },
};

/* Type, version, length, what is zero, and every number that stands in a fixed
 * place: all that is not an entry. */
static bool head_sane(const uint8_t *p, size_t n)
{
	const struct shape *s;
	size_t at;

	if (n < HEAD_BYTES || p[0] >= ARRAY_LEN(shapes))
		return false;
	s = &shapes[p[0]];
	if (s->bytes == 0 || n < s->bytes || p[1] != s->version)
		return false;
	if (p[0] != RAFT_APPEND_ENTRIES &&
	    (n != s->bytes || (le_get16(p + 2) & ~s->flags) != 0))
		return false;
	if (!s->results && (le_get32(p + 4) != 0 || le_get64(p + 8) == 0))
		return false;
	for (at = 8; at < s->bytes; at += 8)
		if (le_get64(p + at) > NUMBER_MAX)
			return false;
	return true;
}

/* One walk over the entries: they are whole, in order of term, none newer than
 * the leader. `*bytes` is how much data they have. */
static bool entries_whole(const uint8_t *p, size_t n, size_t *bytes)
{
	uint64_t leader = le_get64(p + 8);
	uint64_t term = le_get64(p + 24);
	unsigned count = le_get16(p + 2);
	size_t at = APPEND_BYTES;
	uint32_t len;

	*bytes = 0;
	for (; count > 0; count--) {
		if (n - at < ENTRY_HEAD)
			return false;
		len = le_get32(p + at + 8);
		if (len > ENTRY_BYTES_MAX || len > n - at - ENTRY_HEAD)
			return false;
		if (le_get64(p + at) < term || le_get64(p + at) > leader ||
		    le_get64(p + at) == 0)
			return false;
		if (p[at + 12] < RAFT_COMMAND || p[at + 12] > RAFT_CHANGE ||
		    (le_get32(p + at + 12) >> 8) != 0)
			return false;
		term = le_get64(p + at);
		*bytes += len;
		at += ENTRY_HEAD + len;
	}
	return at == n;
}

/* The array's allocation begins with the (empty) address. */
static struct raft_entry *entries_new(unsigned n, size_t bytes,
				      const char **address)
{
	char *front = raft_malloc(ENTRY_HEAD + n * sizeof(struct raft_entry));
	struct raft_entry *list;

	if (front == NULL)
		return NULL;
	list = (struct raft_entry *)(void *)(front + ENTRY_HEAD);
	list[0].batch = raft_malloc(bytes > 0 ? bytes : 1);
	if (list[0].batch == NULL) {
		raft_free(front);
		return NULL;
	}
	front[0] = '\0';
	*address = front;
	return list;
}

static void entries_fill(const uint8_t *p, struct raft_entry *list, unsigned n)
{
	uint8_t *data = list[0].batch;
	size_t len;
	unsigned i;

	for (i = 0; i < n; i++) {
		len = le_get32(p + 8);
		list[i].term = le_get64(p);
		list[i].type = (enum raft_entry_type)p[12];
		list[i].batch = list[0].batch;
		list[i].buf = (struct raft_buffer){ data, len };
		if (len > 0)
			memcpy(data, p + ENTRY_HEAD, len);
		data += len;
		p += ENTRY_HEAD + len;
	}
}

static enum rc read_append(const uint8_t *p, size_t n, struct raft_message *m)
{
	struct raft_append_entries *ae = &m->append_entries;
	unsigned count = le_get16(p + 2);
	size_t bytes;

	ae->version = p[1];
	ae->term = le_get64(p + 8);
	ae->prev_log_index = le_get64(p + 16);
	ae->prev_log_term = le_get64(p + 24);
	ae->leader_commit = le_get64(p + 32);
	if (count > STEP_INFLIGHT_MAX || ae->prev_log_term > ae->term ||
	    (ae->prev_log_index == 0) != (ae->prev_log_term == 0) ||
	    ae->prev_log_index > NUMBER_MAX - count ||
	    !entries_whole(p, n, &bytes))
		return RC_INVALID;
	if (count == 0)
		return RC_OK;
	ae->entries = entries_new(count, bytes, &m->server_address);
	if (ae->entries == NULL)
		return RC_NOMEM;
	entries_fill(p + APPEND_BYTES, ae->entries, count);
	ae->n_entries = count;
	return RC_OK;
}

static void read_append_result(const uint8_t *p, struct raft_message *m)
{
	struct raft_append_entries_result *res = &m->append_entries_result;

	res->version = p[1];
	res->features = le_get16(p + 4);
	res->capacity = le_get16(p + 6);
	res->term = le_get64(p + 8);
	res->rejected = le_get64(p + 16);
	res->last_log_index = le_get64(p + 24);
}

/* Nobody asks for another's vote. */
static enum rc read_vote(const uint8_t *p, struct raft_message *m)
{
	struct raft_request_vote *rv = &m->request_vote;

	rv->version = p[1];
	rv->pre_vote = (p[2] & FLAG_PRE_VOTE) != 0;
	rv->disrupt_leader = (p[2] & FLAG_DISRUPT) != 0;
	rv->term = le_get64(p + 8);
	rv->candidate_id = le_get64(p + 16);
	rv->last_log_index = le_get64(p + 24);
	rv->last_log_term = le_get64(p + 32);
	return rv->candidate_id == m->server_id ? RC_OK : RC_INVALID;
}

static void read_vote_result(const uint8_t *p, struct raft_message *m)
{
	struct raft_request_vote_result *res = &m->request_vote_result;

	res->version = p[1];
	res->pre_vote = (p[2] & FLAG_PRE_VOTE) != 0;
	res->vote_granted = (p[2] & FLAG_GRANTED) != 0;
	res->features = le_get16(p + 4);
	res->capacity = le_get16(p + 6);
	res->term = le_get64(p + 8);
}

static void read_timeout_now(const uint8_t *p, struct raft_message *m)
{
	struct raft_timeout_now *tn = &m->timeout_now;

	tn->version = p[1];
	tn->term = le_get64(p + 8);
	tn->last_log_index = le_get64(p + 16);
	tn->last_log_term = le_get64(p + 24);
}

bool codec_leads(const uint8_t *p, size_t n, uint64_t *term)
{
	if (!head_sane(p, n) || p[0] != RAFT_APPEND_ENTRIES)
		return false;
	*term = le_get64(p + 8);
	return true;
}

enum rc codec_read(const uint8_t *p, size_t n, uint64_t server_id,
		   struct raft_message *m)
{
	memset(m, 0, sizeof(*m));
	m->server_id = server_id;
	m->server_address = no_address;
	if (!head_sane(p, n))
		return RC_INVALID;
	m->type = (enum raft_message_type)p[0];
	switch (m->type) {
	case RAFT_APPEND_ENTRIES:
		return read_append(p, n, m);
	case RAFT_APPEND_ENTRIES_RESULT:
		read_append_result(p, m);
		return RC_OK;
	case RAFT_REQUEST_VOTE:
		return read_vote(p, m);
	case RAFT_REQUEST_VOTE_RESULT:
		read_vote_result(p, m);
		return RC_OK;
	case RAFT_TIMEOUT_NOW:
		read_timeout_now(p, m);
		return RC_OK;
	case RAFT_INSTALL_SNAPSHOT:
		break;
	}
	return RC_INVALID;
}

void codec_release(struct raft_message *m)
{
	if (m->server_address != no_address)
		raft_free((void *)(uintptr_t)m->server_address);
	m->server_address = no_address;
	if (m->type == RAFT_APPEND_ENTRIES) {
		m->append_entries.entries = NULL;
		m->append_entries.n_entries = 0;
	}
}

void codec_discard(struct raft_message *m)
{
	if (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries > 0)
		raft_free(m->append_entries.entries[0].batch);
	codec_release(m);
}
