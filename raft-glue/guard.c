#include "raft-glue/guard.h"

#include <raft.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

_Static_assert(RAFT_VERSION_NUMBER == 2201,
	       "the guards are those of libraft 0.22.1");

static bool from_leader(const struct raft_message *m)
{
	return m->type == RAFT_APPEND_ENTRIES ||
	       m->type == RAFT_INSTALL_SNAPSHOT;
}

static raft_term leader_term(const struct raft_message *m)
{
	return m->type == RAFT_APPEND_ENTRIES ? m->append_entries.term
					      : m->install_snapshot.term;
}

unsigned guard_b2(const struct raft_message *m, unsigned from)
{
	const struct raft_append_entries *ae = &m->append_entries;
	unsigned i = from + 1;

	if (MUTANT(guard_b2))
		return ae->n_entries - from;
	PRE(m->type == RAFT_APPEND_ENTRIES);
	PRE(from < ae->n_entries);
	while (i < ae->n_entries && ae->entries[i].type != RAFT_CHANGE)
		i++;
	return i - from;
}

void guard_b3(const struct raft *r, struct raft_message *m)
{
	struct raft_append_entries_result *res = &m->append_entries_result;
	raft_index match;

	if (MUTANT(guard_b3))
		return;
	if (m->type != RAFT_APPEND_ENTRIES_RESULT || res->rejected == 0)
		return;
	if (r->state != RAFT_LEADER || res->term != r->current_term)
		return;
	if (raft_match_index(r, m->server_id, &match) != 0)
		return;
	if (res->rejected > match)
		return;
	res->rejected = 0;
	res->last_log_index = 0;
}

unsigned guard_b4(const struct raft *r, struct raft_message *m,
		  uint64_t applied_index, uint64_t applied_term)
{
	struct raft_append_entries *ae = &m->append_entries;
	uint64_t below;
	unsigned n;

	if (MUTANT(guard_b4))
		return 0;
	PRE(m->type == RAFT_APPEND_ENTRIES);
	if (r->snapshot.installing || ae->prev_log_index >= applied_index)
		return 0;
	below = applied_index - ae->prev_log_index;
	n = below < ae->n_entries ? (unsigned)below : ae->n_entries;
	if (n > 0)
		ae->entries += n;
	ae->n_entries -= n;
	ae->prev_log_index = applied_index;
	ae->prev_log_term = applied_term;
	return n;
}

static struct raft_server *own_server(struct raft *r)
{
	unsigned i;

	for (i = 0; i < r->configuration.n; i++)
		if (r->configuration.servers[i].id == r->id)
			return &r->configuration.servers[i];
	return NULL;
}

int guard_b7_begin(struct raft *r, const struct raft_message *m)
{
	struct raft_server *own = own_server(r);
	int role;

	if (MUTANT(guard_b7))
		return -1;
	if (m->type != RAFT_REQUEST_VOTE || own == NULL)
		return -1;
	role = own->role;
	own->role = RAFT_VOTER;
	return role;
}

void guard_b7_end(struct raft *r, int role)
{
	if (role >= 0)
		own_server(r)->role = role;
}

void guard_b8(const struct raft *r, struct raft_message *m, uint64_t contact_ms,
	      uint64_t now_ms)
{
	if (MUTANT(guard_b8))
		return;
	if (m->type != RAFT_REQUEST_VOTE || r->state != RAFT_FOLLOWER)
		return;
	if (now_ms - contact_ms >= r->election_timeout)
		m->request_vote.disrupt_leader = true;
}

bool guard_b13(const struct raft *r, const struct raft_message *m)
{
	if (MUTANT(guard_b13))
		return false;
	return from_leader(m) && r->state == RAFT_LEADER &&
	       leader_term(m) == r->current_term;
}

bool guard_b14(const struct raft *r, const struct raft_message *m)
{
	if (MUTANT(guard_b14))
		return false;
	return m->type == RAFT_REQUEST_VOTE_RESULT &&
	       r->state != RAFT_CANDIDATE;
}

bool guard_b16(const struct raft *r, const struct raft_message *m)
{
	if (MUTANT(guard_b16))
		return false;
	return m->type == RAFT_INSTALL_SNAPSHOT &&
	       (r->snapshot.installing ||
		m->install_snapshot.term < r->current_term);
}

bool guard_b19(uint64_t *known, uint64_t epoch)
{
	if (MUTANT(guard_b19))
		return true;
	if (epoch == 0 || epoch < *known)
		return false;
	*known = epoch;
	return true;
}

bool guard_b21(const struct raft_message *m)
{
	if (MUTANT(guard_b21))
		return true;
	switch (m->type) {
	case RAFT_APPEND_ENTRIES:
		return m->append_entries.version == 0;
	case RAFT_APPEND_ENTRIES_RESULT:
		return m->append_entries_result.version == 2;
	case RAFT_REQUEST_VOTE:
		return m->request_vote.version == 2;
	case RAFT_REQUEST_VOTE_RESULT:
		return m->request_vote_result.version == 2;
	case RAFT_INSTALL_SNAPSHOT:
		return m->install_snapshot.version == 0;
	case RAFT_TIMEOUT_NOW:
		return m->timeout_now.version == 0;
	default:
		return false;
	}
}

/* One byte of version (1), 8 of count, then per server 8 of id, the address
 * with its NUL, one byte of role; little endian, zero padded to 8 bytes. */
bool guard_conf(const void *data, size_t bytes)
{
	const uint8_t *at = data;
	const uint8_t *end = at + bytes;
	const uint8_t *nul;
	uint64_t n;
	uint64_t i;

	if (bytes < 9 || at[0] != 1)
		return false;
	memcpy(&n, at + 1, sizeof(n));
	at += 9;
	if (n == 0 || n > CONF_SERVERS_MAX)
		return false;
	for (i = 0; i < n; i++) {
		if ((size_t)(end - at) < 8 + 1 + 1)
			return false;
		at += 8;
		nul = memchr(at, 0, (size_t)(end - at));
		if (nul == NULL || nul + 1 == end || nul[1] > RAFT_SPARE)
			return false;
		at = nul + 2;
	}
	return true;
}

void guard_b1(const struct raft *r, struct raft_message *m, uint64_t asked_term)
{
	if (MUTANT(guard_b1))
		return;
	if (m->type == RAFT_APPEND_ENTRIES_RESULT &&
	    asked_term < r->current_term)
		m->append_entries_result.last_log_index = 0;
}

void guard_b5(const struct raft *r, struct raft_message *m)
{
	struct raft_request_vote_result *res = &m->request_vote_result;

	if (MUTANT(guard_b5))
		return;
	if (m->type != RAFT_REQUEST_VOTE_RESULT || !res->pre_vote)
		return;
	if (!res->vote_granted && res->term < r->current_term)
		res->term = r->current_term;
}

void guard_b15(const struct raft *r, struct raft_message *m)
{
	struct raft_append_entries_result *res = &m->append_entries_result;
	raft_index sure = r->commit_index;

	if (MUTANT(guard_b15))
		return;
	if (m->type != RAFT_APPEND_ENTRIES_RESULT || res->rejected == 0)
		return;
	if (r->state != RAFT_FOLLOWER || r->snapshot.installing)
		return;
	/* Not a conflict: our log is merely shorter, and the hint is its end.
	 * The accessor takes no const, and changes nothing. */
	if (raft_last_index((struct raft *)(uintptr_t)r) < res->rejected)
		return;
	if (sure < r->follower_state.match)
		sure = r->follower_state.match;
	if (res->last_log_index > sure)
		res->last_log_index = sure;
}

bool guard_b6(uint64_t own_index, uint64_t commit_index)
{
	if (MUTANT(guard_b6))
		return true;
	return own_index != 0 && commit_index >= own_index;
}

uint64_t guard_b9(uint64_t timeout_ms, uint64_t last_ms, uint32_t heartbeat_ms)
{
	uint64_t soonest = last_ms + heartbeat_ms / 2;

	if (MUTANT(guard_b9))
		return timeout_ms;
	return timeout_ms > soonest ? timeout_ms : soonest;
}

bool guard_sole(const struct raft_configuration *conf, uint64_t id)
{
	unsigned voters = 0;
	bool own = false;
	unsigned i;

	for (i = 0; i < conf->n; i++) {
		if (conf->servers[i].role != RAFT_VOTER)
			continue;
		voters++;
		if (conf->servers[i].id == id)
			own = true;
	}
	return own && voters == 1;
}

bool guard_b10(const struct raft_configuration *conf, uint64_t id)
{
	return !MUTANT(guard_b10) && guard_sole(conf, id);
}

bool guard_b11(struct raft *r, uint64_t index)
{
	if (MUTANT(guard_b11))
		return index > r->last_stored;
	if (r->snapshot.installing || index <= r->last_stored)
		return false;
	if (r->state != RAFT_LEADER && r->state != RAFT_FOLLOWER)
		return false;
	return index <= raft_last_index(r);
}

uint64_t guard_b12(uint64_t commit, uint64_t core_commit, bool installing)
{
	if (MUTANT(guard_b12))
		return core_commit;
	return installing || core_commit < commit ? commit : core_commit;
}

static bool same_server(const struct raft_server *a,
			const struct raft_server *b)
{
	return a->id == b->id && strcmp(a->address, b->address) == 0;
}

bool guard_b17(const struct raft_configuration *was,
	       const struct raft_configuration *is)
{
	unsigned differ = 0;
	unsigned i = 0;
	unsigned j = 0;

	if (MUTANT(guard_b17))
		return true;
	while (i < was->n && j < is->n) {
		if (same_server(&was->servers[i], &is->servers[j])) {
			differ += was->servers[i].role != is->servers[j].role;
			i++;
			j++;
		} else {
			/* Only a removal may stand in the middle. */
			differ++;
			i++;
		}
	}
	differ += (was->n - i) + (is->n - j);
	return differ == 1;
}

bool guard_b18(unsigned n, unsigned changes)
{
	if (MUTANT(guard_b18))
		return true;
	return changes == 0 || n == 1;
}

enum guard_b20 guard_b20(int event_type, int rv)
{
	if (rv == 0)
		return GUARD_DONE;
	if (MUTANT(guard_b20))
		return GUARD_REFUSED;
	if (event_type == RAFT_SUBMIT &&
	    (rv == RAFT_NOTLEADER || rv == RAFT_CANTCHANGE ||
	     rv == RAFT_NOSPACE))
		return GUARD_REFUSED;
	if (event_type == RAFT_TRANSFER &&
	    (rv == RAFT_NOTLEADER || rv == RAFT_BADID || rv == RAFT_NOTFOUND))
		return GUARD_REFUSED;
	return GUARD_STOP;
}
