/*
 * A message of a link is a frame, integers little endian:
 *
 *	 0  1  version of the protocol, TRANSPORT_PROTOCOL
 *	 1  1  kind: 1 greeting, 2 ready, 3 records
 *	 2  8  version of the sender's copy of the directory
 *	10     what the kind says
 *
 * Greeting, the first frame of each end of a connection; its fields stay where
 * they are in every version, so that an older or newer node is told by name:
 *
 *	10  4  protocol
 *	14 16  cluster id
 *	30  8  node id
 *	38 16  incarnation
 *	54  8  boot
 *	62 16  nonce
 *	78     the end
 *
 * Ready says nothing more: the sender has checked the other's greeting and has
 * it on disk, so it takes records from now on. Records are, one behind the
 * other up to the end:
 *
 *	 0  4  length of the payload
 *	 4  1  channel (enum transport_channel)
 *	 5  1  shard
 *	 6     payload
 *
 * An end of a connection (a lane) goes through:
 *
 *	DOWN --connected, greeting sent--> GREETED --good greeting--> NOTING
 *	NOTING --synced, ready sent--> NOTED
 *	NOTED, and the other's ready is here: UP
 *
 * and from each back to DOWN when the connection is lost. Records are sent and
 * taken when UP only: who sends them has our ready, and its own came before.
 */
#include "raft-glue/transport.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"

#define HEAD_BYTES      10u
#define GREETING_BYTES  78u
#define RECORD_HEAD     6u
#define TRANSPORT_MAGIC 0x7472616eu

#define REFUSED_LOG_MS 10000u
/* A frame that is larger leaves before the turn ends. */
#define FLUSH_BYTES (256u << 10)

_Static_assert(FLUSH_BYTES < LINK_MESSAGE_BYTES_MAX, "a frame fits a message");
_Static_assert(SHARDS_MAX <= UINT8_MAX, "a shard fits a record's head");

enum frame_kind {
	FRAME_GREETING = 1,
	FRAME_READY,
	FRAME_RECORDS,
};

enum lane_state {
	LANE_DOWN,
	LANE_GREETED,
	LANE_NOTING,
	LANE_NOTED,
	LANE_UP,
	LANE_DROPPED, /* We ended it; the link has not told yet. */
};

/* Our end of one link's connection to one peer. */
struct lane {
	struct transport *t;
	uint64_t node_id;
	enum link_kind kind;
	enum lane_state state;
	uint64_t epoch;
	bool told;  /* The sinks know it as greeted. */
	bool ready; /* The other's ready is here. */
	/* A note is under way, for this connection or for one before it; in
	 * the second case this one's follows. */
	bool noting;
	bool again;
	struct greeting greeting; /* The other's. */
	uint8_t *frame;           /* FLUSH_BYTES, of this turn. */
	size_t n;                 /* 0: nothing yet. */
	size_t room;              /* Of the link, when the frame began. */
	uint64_t records;         /* In the frame. */
	uint64_t refused_ms;      /* When it was said last; 0: never. */
};

struct peer {
	uint64_t node_id;
	uint64_t version; /* The newest it has told. */
	struct lane lane[LINKS];
};

/* The argument of a link's callbacks. */
struct end {
	struct transport *t;
	struct link *link; /* NULL: none. */
	enum link_kind kind;
};

struct transport {
	uint32_t magic;
	struct env *env;
	struct members *members;
	struct end ends[LINKS];
	struct env_task task;
	size_t peers_n;
	struct peer peers[MEMBERS_MAX];
	struct transport_sink *sinks[CHANNELS][SHARDS_MAX];
	uint64_t version;
	uint64_t version_max;
	uint8_t *big; /* A frame of one large record. */
	size_t big_bytes;
	struct transport_stats stats;
	bool freed;
};

static enum link_kind link_of(enum transport_channel ch)
{
	return ch >= CHANNEL_SNAPSHOT ? LINK_BULK : LINK_RAFT;
}

static struct peer *peer_find(const struct transport *t, uint64_t node_id)
{
	size_t i;

	for (i = 0; i < t->peers_n; i++)
		if (t->peers[i].node_id == node_id)
			return (struct peer *)(uintptr_t)&t->peers[i];
	return NULL;
}

static struct lane *lane_find(const struct transport *t,
			      enum transport_channel ch, uint64_t node_id)
{
	struct peer *p = peer_find(t, node_id);

	PRE(ch < CHANNELS);
	return p != NULL ? &p->lane[link_of(ch)] : NULL;
}

static struct link *lane_link(const struct lane *l)
{
	return l->t->ends[l->kind].link;
}

/* ---- the end of a connection ---- */

/* From here on nothing is sent or taken; `changed` comes when the link tells
 * that it is gone. */
static void lane_drop(struct lane *l)
{
	if (l->state == LANE_DOWN || l->state == LANE_DROPPED)
		return;
	l->state = LANE_DROPPED;
	l->t->stats.dropped += l->records;
	l->n = 0;
	l->records = 0;
	lane_link(l)->ops->drop(lane_link(l), l->node_id);
}

/* It said what no honest node of this version says. */
static void lane_broken(struct lane *l)
{
	l->t->stats.broken++;
	lane_drop(l);
}

static void lane_tell(struct lane *l, uint64_t epoch)
{
	struct transport *t = l->t;
	struct transport_sink *k;
	unsigned ch;
	unsigned s;

	for (ch = 0; ch < CHANNELS; ch++) {
		if (link_of((enum transport_channel)ch) != l->kind)
			continue;
		for (s = 0; s < SHARDS_MAX; s++) {
			k = t->sinks[ch][s];
			if (k != NULL && k->changed != NULL)
				k->changed(k, l->node_id, epoch);
		}
	}
}

/* ---- sending ---- */

static void head_put(struct transport *t, uint8_t *p, enum frame_kind kind)
{
	p[0] = TRANSPORT_PROTOCOL;
	p[1] = (uint8_t)kind;
	le_put64(p + 2, t->version);
}

/* A frame that the link does not take would be a gap in what the other end
 * holds for whole: the connection ends instead. */
static void frame_send(struct lane *l, uint8_t *p, size_t n,
		       enum frame_kind kind)
{
	struct transport *t = l->t;
	struct link *link = lane_link(l);

	head_put(t, p, kind);
	if (link->ops->send(link, l->node_id, p, n) != RC_OK) {
		lane_drop(l);
		return;
	}
	t->stats.frames_out++;
	t->stats.bytes_out += n;
}

static void lane_flush(struct lane *l)
{
	size_t n = l->n;

	if (n == 0)
		return;
	frame_send(l, l->frame, n, FRAME_RECORDS);
	if (l->state == LANE_UP)
		l->t->stats.records_out += l->records;
	l->n = 0;
	l->records = 0;
}

static void transport_task(struct env_task *task)
{
	struct transport *t = CONTAINER_OF(task, struct transport, task);
	size_t i;
	unsigned k;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	if (t->freed) {
		transport_discard(t);
		return;
	}
	for (i = 0; i < t->peers_n; i++)
		for (k = 0; k < LINKS; k++)
			lane_flush(&t->peers[i].lane[k]);
}

static uint8_t *record_put(uint8_t *p, enum transport_channel ch,
			   uint32_t shard, const void *head, size_t head_n,
			   const void *body, size_t body_n)
{
	le_put32(p, (uint32_t)(head_n + body_n));
	p[4] = (uint8_t)ch;
	p[5] = (uint8_t)shard;
	p += RECORD_HEAD;
	if (head_n > 0)
		memcpy(p, head, head_n);
	if (body_n > 0)
		memcpy(p + head_n, body, body_n);
	return p + head_n + body_n;
}

/* Kept for the next one: large records come in rows. */
static bool big_reserve(struct transport *t, size_t n)
{
	uint8_t *p;

	if (n <= t->big_bytes)
		return true;
	p = realloc(t->big, n);
	if (p == NULL)
		return false;
	t->big = p;
	t->big_bytes = n;
	return true;
}

static size_t lane_room(const struct lane *l)
{
	struct link *link = lane_link(l);

	return link->ops->room(link, l->node_id);
}

/* A record that no frame of a turn has room for goes alone. */
static enum rc send_alone(struct lane *l, enum transport_channel ch,
			  uint32_t shard, const void *head, size_t head_n,
			  const void *body, size_t body_n)
{
	struct transport *t = l->t;
	size_t n = HEAD_BYTES + RECORD_HEAD + head_n + body_n;

	lane_flush(l);
	if (l->state != LANE_UP)
		return RC_NOT_FOUND;
	if (lane_room(l) < n || !big_reserve(t, n)) {
		t->stats.dropped++;
		return RC_OVERLOADED;
	}
	(void)record_put(t->big + HEAD_BYTES, ch, shard, head, head_n, body,
			 body_n);
	frame_send(l, t->big, n, FRAME_RECORDS);
	if (l->state != LANE_UP) {
		t->stats.dropped++;
		return RC_NOT_FOUND;
	}
	t->stats.records_out++;
	return RC_OK;
}

/* Room for a record of `n` bytes in this turn's frame. */
static enum rc frame_reserve(struct lane *l, size_t n)
{
	if (l->n + n > FLUSH_BYTES)
		lane_flush(l);
	if (l->state != LANE_UP)
		return RC_NOT_FOUND;
	if (l->n == 0) {
		l->room = lane_room(l);
		if (l->room < HEAD_BYTES + n)
			return RC_OVERLOADED;
		l->n = HEAD_BYTES;
		env_post(l->t->env, &l->t->task);
	}
	return l->room < l->n + n ? RC_OVERLOADED : RC_OK;
}

enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t shard, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n)
{
	struct lane *l;
	size_t n;
	enum rc rc;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	PRE(shard < SHARDS_MAX);
	l = lane_find(t, ch, node_id);
	if (l == NULL || l->state != LANE_UP)
		return RC_NOT_FOUND;
	if (head_n > LINK_MESSAGE_BYTES_MAX ||
	    body_n > LINK_MESSAGE_BYTES_MAX - head_n ||
	    head_n + body_n > TRANSPORT_RECORD_BYTES_MAX)
		return RC_INVALID;
	n = RECORD_HEAD + head_n + body_n;
	if (n > FLUSH_BYTES - HEAD_BYTES)
		return send_alone(l, ch, shard, head, head_n, body, body_n);
	rc = frame_reserve(l, n);
	if (rc != RC_OK) {
		t->stats.dropped += rc == RC_OVERLOADED;
		return rc;
	}
	(void)record_put(l->frame + l->n, ch, shard, head, head_n, body,
			 body_n);
	l->n += n;
	l->records++;
	return RC_OK;
}

/* ---- greetings ---- */

static void greeting_send(struct lane *l)
{
	struct greeting g;
	uint8_t p[GREETING_BYTES];

	members_greeting(l->t->members, &g);
	le_put32(p + 10, g.protocol);
	memcpy(p + 14, g.cluster_id, ID_BYTES);
	le_put64(p + 30, g.node_id);
	memcpy(p + 38, g.incarnation, ID_BYTES);
	le_put64(p + 54, g.boot);
	memcpy(p + 62, g.nonce, ID_BYTES);
	frame_send(l, p, sizeof(p), FRAME_GREETING);
}

static void greeting_read(const uint8_t *p, struct greeting *g)
{
	g->protocol = le_get32(p + 10);
	memcpy(g->cluster_id, p + 14, ID_BYTES);
	g->node_id = le_get64(p + 30);
	memcpy(g->incarnation, p + 38, ID_BYTES);
	g->boot = le_get64(p + 54);
	memcpy(g->nonce, p + 62, ID_BYTES);
}

static void lane_up(struct lane *l)
{
	if (l->state != LANE_NOTED || !l->ready)
		return;
	l->state = LANE_UP;
	l->told = true;
	lane_tell(l, l->epoch);
}

static void lane_noted(void *arg, uint64_t node_id);

/* It comes back every second, for as long as nobody looks. */
static void log_refused(struct lane *l, const char *why)
{
	uint64_t now = env_now_ms(l->t->env);

	if (l->refused_ms != 0 && now - l->refused_ms < REFUSED_LOG_MS)
		return;
	l->refused_ms = now;
	LOG_WARN("peer_refused", F("node", l->node_id),
		 F("link", l->kind == LINK_RAFT ? "raft" : "bulk"),
		 F("epoch", l->epoch), F("why", why));
}

/* The greeting is checked when it is noted: the member may have greeted with a
 * later boot while an older note of this lane was written. */
static void lane_note(struct lane *l)
{
	struct transport *t = l->t;
	struct detail why = { .text = "" };

	if (members_check(t->members, l->node_id, &l->greeting, &why) !=
	    RC_OK) {
		t->stats.refused++;
		log_refused(l, why.text);
		lane_drop(l);
		return;
	}
	l->noting = true;
	members_note(t->members, &l->greeting, lane_noted, l);
}

static void lane_noted(void *arg, uint64_t node_id)
{
	struct lane *l = arg;
	uint8_t p[HEAD_BYTES];

	CHECK_OBJ(l->t, TRANSPORT_MAGIC);
	CHECK(l->node_id == node_id);
	CHECK(l->noting);
	l->noting = false;
	if (l->state != LANE_NOTING)
		return;
	if (l->again) {
		l->again = false;
		lane_note(l);
		return;
	}
	l->state = LANE_NOTED;
	frame_send(l, p, sizeof(p), FRAME_READY);
	lane_up(l);
}

/* ---- what comes ---- */

static void greeting_received(struct lane *l, const uint8_t *p, size_t n)
{
	/* One of a later version may have more to say. */
	if (l->state != LANE_GREETED || n < GREETING_BYTES ||
	    (n > GREETING_BYTES && p[0] <= TRANSPORT_PROTOCOL)) {
		lane_broken(l);
		return;
	}
	greeting_read(p, &l->greeting);
	l->state = LANE_NOTING;
	if (l->noting)
		l->again = true;
	else
		lane_note(l);
}

static void ready_received(struct lane *l, size_t n)
{
	if (l->ready || n != HEAD_BYTES) {
		lane_broken(l);
		return;
	}
	l->ready = true;
	lane_up(l);
}

/* All records of a frame are whole and belong on this link. */
static bool records_whole(const struct lane *l, const uint8_t *p, size_t n)
{
	size_t at = HEAD_BYTES;
	uint32_t len;

	while (at < n) {
		if (n - at < RECORD_HEAD)
			return false;
		len = le_get32(p + at);
		if (len > n - at - RECORD_HEAD || p[at + 4] >= CHANNELS ||
		    link_of((enum transport_channel)p[at + 4]) != l->kind ||
		    p[at + 5] >= SHARDS_MAX)
			return false;
		at += RECORD_HEAD + len;
	}
	return n > HEAD_BYTES;
}

static void records_received(struct lane *l, const uint8_t *p, size_t n)
{
	struct transport *t = l->t;
	struct transport_sink *k;
	uint64_t epoch = l->epoch;
	size_t at;
	size_t len;

	if (l->state != LANE_UP || !records_whole(l, p, n)) {
		lane_broken(l);
		return;
	}
	/* A sink may end the connection. */
	for (at = HEAD_BYTES;
	     at < n && l->state == LANE_UP && l->epoch == epoch;
	     at += RECORD_HEAD + len) {
		len = le_get32(p + at);
		k = t->sinks[p[at + 4]][p[at + 5]];
		t->stats.records_in++;
		if (k != NULL)
			k->received(k, l->node_id, epoch, p + at + RECORD_HEAD,
				    len);
		else
			t->stats.dropped++;
	}
}

/* Only of a peer whose greeting is noted. */
static void version_received(struct peer *peer, struct transport *t,
			     uint64_t version)
{
	if (version > peer->version)
		peer->version = version;
	if (version > t->version_max)
		t->version_max = version;
}

static void frame_received(struct peer *peer, struct lane *l, const uint8_t *p,
			   size_t n)
{
	if (n < HEAD_BYTES) {
		lane_broken(l);
		return;
	}
	if (p[1] == FRAME_GREETING) {
		greeting_received(l, p, n);
		return;
	}
	if (p[0] != TRANSPORT_PROTOCOL || l->state == LANE_GREETED ||
	    (p[1] != FRAME_READY && p[1] != FRAME_RECORDS)) {
		lane_broken(l);
		return;
	}
	if (l->state != LANE_NOTING) {
		/* The member has come back, or was readmitted, since: this is
		 * what is left of an older one. */
		if (!members_current(l->t->members, &l->greeting)) {
			lane_drop(l);
			return;
		}
		version_received(peer, l->t, le_get64(p + 2));
	}
	if (p[1] == FRAME_READY)
		ready_received(l, n);
	else
		records_received(l, p, n);
}

static void link_received(void *arg, uint64_t node_id, uint64_t epoch,
			  const void *p, size_t n)
{
	struct end *end = arg;
	struct transport *t = end->t;
	struct peer *peer;
	struct lane *l;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	peer = peer_find(t, node_id);
	if (peer == NULL)
		return;
	l = &peer->lane[end->kind];
	if ((epoch != l->epoch && !MUTANT(epoch_stale)) ||
	    l->state == LANE_DOWN || l->state == LANE_DROPPED) {
		t->stats.dropped++;
		return;
	}
	t->stats.frames_in++;
	t->stats.bytes_in += n;
	frame_received(peer, l, p, n);
}

static void lane_lost(struct lane *l)
{
	bool told = l->told;

	l->state = LANE_DOWN;
	l->t->stats.dropped += l->records;
	l->epoch = 0;
	l->told = false;
	l->ready = false;
	l->again = false;
	l->n = 0;
	l->records = 0;
	if (told)
		lane_tell(l, 0);
}

/* Its certificate is of the cluster, and it is no member. */
static void stranger_refuse(struct end *end, uint64_t node_id, uint64_t epoch)
{
	end->t->stats.refused++;
	LOG_WARN("peer_refused", F("node", node_id), F("epoch", epoch),
		 F("why", "it is no member of this cluster: see `holdfast "
			  "status`"));
	end->link->ops->drop(end->link, node_id);
}

static void link_changed(void *arg, uint64_t node_id, uint64_t epoch)
{
	struct end *end = arg;
	struct transport *t = end->t;
	struct peer *peer;
	struct lane *l;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	peer = peer_find(t, node_id);
	if (peer == NULL) {
		if (epoch != 0)
			stranger_refuse(end, node_id, epoch);
		return;
	}
	l = &peer->lane[end->kind];
	lane_lost(l);
	if (epoch == 0)
		return;
	l->epoch = epoch;
	l->state = LANE_GREETED;
	greeting_send(l);
}

/* ---- life ---- */

static void lane_init(struct transport *t, struct lane *l, uint64_t node_id,
		      enum link_kind kind)
{
	l->t = t;
	l->node_id = node_id;
	l->kind = kind;
}

static bool lane_alloc(struct lane *l)
{
	if (lane_link(l) == NULL)
		return true;
	l->frame = malloc(FLUSH_BYTES);
	return l->frame != NULL;
}

static bool peers_init(struct transport *t)
{
	const struct member *m;
	struct peer *p;
	size_t i;
	unsigned k;

	for (i = 0; t->members != NULL && i < members_count(t->members); i++) {
		m = members_at(t->members, i);
		if (m->id == members_self(t->members))
			continue;
		p = &t->peers[t->peers_n++];
		p->node_id = m->id;
		for (k = 0; k < LINKS; k++) {
			lane_init(t, &p->lane[k], m->id, (enum link_kind)k);
			if (!lane_alloc(&p->lane[k]))
				return false;
		}
	}
	return true;
}

static void ends_init(struct transport *t)
{
	struct end *end;
	unsigned k;

	for (k = 0; k < LINKS; k++) {
		end = &t->ends[k];
		end->t = t;
		end->kind = (enum link_kind)k;
		if (end->link == NULL)
			continue;
		end->link->received = link_received;
		end->link->changed = link_changed;
		end->link->arg = end;
	}
}

enum rc transport_new(struct env *env, struct link *raft, struct link *bulk,
		      struct members *members, struct transport **out)
{
	struct transport *t = calloc(1, sizeof(*t));

	if (t == NULL)
		return RC_NOMEM;
	PRE((raft == NULL) == (bulk == NULL));
	PRE(raft == NULL || members != NULL);
	t->magic = TRANSPORT_MAGIC;
	t->env = env;
	t->members = members;
	t->task.cb = transport_task;
	t->task.phase = ENV_PHASE_SEND;
	t->ends[LINK_RAFT].link = raft;
	t->ends[LINK_BULK].link = bulk;
	if (!peers_init(t)) {
		transport_discard(t);
		return RC_NOMEM;
	}
	ends_init(t);
	*out = t;
	return RC_OK;
}

void transport_free(struct transport *t)
{
	CHECK_OBJ(t, TRANSPORT_MAGIC);
	PRE(!t->freed);
	t->freed = true;
	/* A posted task cannot be taken back: it frees. */
	if (!t->task.posted)
		transport_discard(t);
}

void transport_discard(struct transport *t)
{
	size_t i;
	unsigned k;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	for (i = 0; i < t->peers_n; i++)
		for (k = 0; k < LINKS; k++)
			free(t->peers[i].lane[k].frame);
	t->magic = 0;
	free(t->big);
	free(t);
}

void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t shard, struct transport_sink *k)
{
	CHECK_OBJ(t, TRANSPORT_MAGIC);
	PRE(ch < CHANNELS);
	PRE(shard < SHARDS_MAX);
	t->sinks[ch][shard] = k;
}

uint64_t transport_epoch(const struct transport *t, enum transport_channel ch,
			 uint64_t node_id)
{
	const struct lane *l;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	l = lane_find(t, ch, node_id);
	return l != NULL && l->state == LANE_UP ? l->epoch : 0;
}

size_t transport_room(const struct transport *t, enum transport_channel ch,
		      uint64_t node_id)
{
	size_t taken = HEAD_BYTES + RECORD_HEAD;
	const struct lane *l;
	size_t room;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	l = lane_find(t, ch, node_id);
	if (l == NULL || l->state != LANE_UP)
		return 0;
	taken += l->n;
	room = lane_room(l);
	return room > taken ? room - taken : 0;
}

void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id)
{
	struct lane *l;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	l = lane_find(t, ch, node_id);
	if (l != NULL && l->state != LANE_DOWN && l->state != LANE_DROPPED)
		lane_broken(l);
}

void transport_version(struct transport *t, uint64_t version)
{
	CHECK_OBJ(t, TRANSPORT_MAGIC);
	t->version = version;
}

uint64_t transport_version_of(const struct transport *t, uint64_t node_id)
{
	const struct peer *p;

	CHECK_OBJ(t, TRANSPORT_MAGIC);
	p = peer_find(t, node_id);
	return p != NULL ? p->version : 0;
}

uint64_t transport_version_max(const struct transport *t)
{
	CHECK_OBJ(t, TRANSPORT_MAGIC);
	return t->version_max;
}

struct members *transport_members(struct transport *t)
{
	CHECK_OBJ(t, TRANSPORT_MAGIC);
	return t->members;
}

void transport_stats(const struct transport *t, struct transport_stats *out)
{
	CHECK_OBJ(t, TRANSPORT_MAGIC);
	*out = t->stats;
}
