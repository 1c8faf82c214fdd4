/*
 * A record of CHANNEL_SNAPSHOT; integers little endian.
 *
 *	offset
 *	0  1  kind        WANT (1), TELL (2), BEGIN (3), PIECE (4), ACK (5),
 *	                  END (6)
 *	1  1  WANT: 1 when the sender abstains (its log or ballot is lost).
 *	      TELL: 1 when it has lost its term.
 *	      BEGIN: 1 when the leader has committed what it knows of without
 *	      the receiver. END: 1 the snapshot is the state now, 0 it is not
 *	      and will not be. Else 0.
 *	2  2  0
 *	4  4  BEGIN: bytes of the configuration at the end. Else 0.
 *	8  8  BEGIN, PIECE, ACK, END: the stream, drawn at random by its sender.
 *	      TELL: the sender's term. WANT: 0.
 *
 * WANT, TELL and END end here. PIECE and ACK go on with
 *
 *	16 8  PIECE: where its bytes stand in the file. ACK: everything below
 *	      is written.
 *	24    PIECE: the bytes, at most SNAPSHOT_PIECE_BYTES, all of the file
 *	      but what the last one lacks.
 *
 * and BEGIN with what the stream is a copy of:
 *
 *	16 8  term in which the sender leads
 *	24 8  index of the last entry that the state contains
 *	32 8  its term
 *	40 8  index of the configuration
 *	48 8  bytes of the file
 *	56 16 hash of the state
 *	72    the configuration, as the core encodes it
 *
 * The receiver acknowledges what it has written, and again now and then while
 * it verifies the whole, so that the sender knows that it is still there.
 */
#include "raft-glue/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "node/base/sm.h"
#include "raft-glue/codec.h"
#include "raft-glue/le.h"

#define SNAPSHOTS_MAGIC 0x736e6170u

#define HEAD_BYTES  16u
#define PIECE_HEAD  24u
#define BEGIN_BYTES 72u
#define CONF_MAX    (64u << 10)

#define WINDOW_BYTES ((uint64_t)SNAPSHOT_PIECES_MAX * SNAPSHOT_PIECE_BYTES)

#define RETRY_MS       10u   /* The queue to the peer was full. */
#define TICK_MS        500u  /* Does it move? */
#define BACKOFF_MS     500u  /* After a stream that failed; doubled while the */
#define BACKOFF_MS_MAX 4000u /* other refuses. */
#define LINGER_MS      1000u /* What followed is kept until it was asked for. */
#define PEERS          8u

enum kind {
	KIND_WANT = 1,
	KIND_TELL,
	KIND_BEGIN,
	KIND_PIECE,
	KIND_ACK,
	KIND_END,
};

/*
 *	IDLE -> WANTED -> EXPORTING -> BEGINNING -> SENDING -> SENT -> LINGERING
 *	  ^       |           |            |           |        |         |
 *	  +-------+-----------+------------+-----------+--------+---------+
 *
 * WANTED: the app is asked in the task. EXPORTING: until it answers. BEGINNING:
 * the head is to be sent. SENT: all bytes are acknowledged, the verdict is not
 * here. LINGERING: it is the state there.
 */
enum {
	OUT_IDLE,
	OUT_WANTED,
	OUT_EXPORTING,
	OUT_BEGINNING,
	OUT_SENDING,
	OUT_SENT,
	OUT_LINGERING,
	OUT_STATES,
};

/*
 *	IDLE -> OFFERED -> WRITING -> ENDING -> READY -> STAGED
 *	  ^       |           |          |        |        |
 *	  +-------+-----------+----------+--------+--------+
 *
 * OFFERED: the app is told in the task. ENDING: all is written, the app
 * verifies. READY: the owner is told in the task. STAGED: it decides.
 */
enum {
	IN_IDLE,
	IN_OFFERED,
	IN_WRITING,
	IN_ENDING,
	IN_READY,
	IN_STAGED,
	IN_STATES,
};

#define TO(state) (UINT32_C(1) << (state))
static const struct sm_state out_states[OUT_STATES] = {
	[OUT_IDLE] = { "idle", TO(OUT_WANTED), false },
	[OUT_WANTED] = { "wanted", TO(OUT_EXPORTING) | TO(OUT_IDLE), false },
	[OUT_EXPORTING] = { "exporting", TO(OUT_BEGINNING) | TO(OUT_IDLE),
			    false },
	[OUT_BEGINNING] = { "beginning", TO(OUT_SENDING) | TO(OUT_IDLE),
			    false },
	[OUT_SENDING] = { "sending", TO(OUT_SENT) | TO(OUT_IDLE), false },
	[OUT_SENT] = { "sent", TO(OUT_LINGERING) | TO(OUT_IDLE), false },
	[OUT_LINGERING] = { "lingering", TO(OUT_IDLE), false },
};
static const struct sm_state in_states[IN_STATES] = {
	[IN_IDLE] = { "idle", TO(IN_OFFERED), false },
	[IN_OFFERED] = { "offered", TO(IN_WRITING) | TO(IN_IDLE), false },
	[IN_WRITING] = { "writing", TO(IN_ENDING) | TO(IN_IDLE), false },
	[IN_ENDING] = { "ending", TO(IN_READY) | TO(IN_IDLE), false },
	[IN_READY] = { "ready", TO(IN_STAGED) | TO(IN_IDLE), false },
	[IN_STAGED] = { "staged", TO(IN_IDLE), false },
};
#undef TO

/* A piece that was received and is not written. */
struct piece {
	STAILQ_ENTRY(piece) link;
	uint64_t offset;
	uint32_t n;
	uint8_t p[];
};

struct out {
	struct sm sm;
	uint64_t to;
	struct snapshot_from from;
	uint64_t id;
	uint64_t epoch; /* Of the connection: another one is a new start. */
	struct snapshot what;
	void *conf; /* Copied. */
	uint64_t pin;
	uint64_t sent;
	uint64_t acked;
	uint8_t *piece; /* The one that was read and is to be sent. */
	size_t piece_n; /* Its head included; 0: none. */
	bool reading;
	bool blocked;
	bool fails; /* It ends with the next task. */
	bool refused;
	uint64_t moved_ms;
};

/* No stream to `id` before `until_ms`. */
struct backoff {
	uint64_t id;
	uint64_t until_ms;
	uint32_t ms;
};

struct in {
	struct sm sm;
	struct snapshot_from from;
	uint64_t id;
	uint64_t epoch;
	struct snapshot what;
	void *conf;
	uint64_t received;
	uint64_t written;
	STAILQ_HEAD(, piece) pieces;
	bool writing; /* The first one is with the app. */
	bool fails;
	bool gone; /* The app has deleted it already. */
	uint64_t generation;
	uint8_t hash[16];
	uint64_t moved_ms;
};

struct snapshots {
	uint32_t magic;
	uint32_t shard;
	struct env *env;
	struct transport *transport;
	struct app *app;
	struct snapshots_owner *owner;
	struct transport_sink wire;
	struct env_task task;
	struct env_timer timer;
	bool closed;
	struct out out;
	struct in in;
	struct backoff backoff[PEERS];
};

static enum rc snapshots_post(struct snapshots *n, uint64_t to,
			      const void *head, size_t head_n, const void *body,
			      size_t body_n)
{
	return transport_send(n->transport, CHANNEL_SNAPSHOT, n->shard, to,
			      head, head_n, body, body_n);
}

/* One of the short ones. Those that are lost are made up for by time. */
static void post_short(struct snapshots *n, uint64_t to, enum kind kind,
		       uint8_t flag, uint64_t id, uint64_t offset)
{
	uint8_t head[PIECE_HEAD] = { (uint8_t)kind, flag };

	le_put64(head + 8, id);
	le_put64(head + 16, offset);
	(void)snapshots_post(n, to, head,
			     kind == KIND_ACK ? PIECE_HEAD : HEAD_BYTES, NULL,
			     0);
}

static bool snapshot_copy(struct snapshot *to, void **conf,
			  const struct snapshot *from)
{
	void *copy = malloc(from->conf_bytes > 0 ? from->conf_bytes : 1);

	if (copy == NULL)
		return false;
	if (from->conf_bytes > 0)
		memcpy(copy, from->conf, from->conf_bytes);
	free(*conf);
	*conf = copy;
	*to = *from;
	to->conf = copy;
	return true;
}

static void snapshots_wake(struct snapshots *n)
{
	if (!n->closed)
		env_post(n->env, &n->task);
}

/* ---- out ---- */

static struct backoff *out_backoff(struct snapshots *n, uint64_t id)
{
	struct backoff *b = n->backoff;

	while (b < &n->backoff[PEERS - 1] && b->id != id && b->id != 0)
		b++;
	if (b->id != id)
		*b = (struct backoff){ .id = id };
	return b;
}

static void out_failed(struct snapshots *n)
{
	struct backoff *b = out_backoff(n, n->out.to);

	b->ms = n->out.refused ? b->ms * 2 : 0;
	if (b->ms < BACKOFF_MS)
		b->ms = BACKOFF_MS;
	if (b->ms > BACKOFF_MS_MAX)
		b->ms = BACKOFF_MS_MAX;
	b->until_ms = env_now_ms(n->env) + b->ms;
}

static void out_moved(struct snapshots *n)
{
	n->out.moved_ms = env_now_ms(n->env);
}

static void out_fail(struct snapshots *n)
{
	if (n->out.sm.now == OUT_IDLE)
		return;
	n->out.fails = true;
	snapshots_wake(n);
}

static void out_reset(struct snapshots *n)
{
	struct out *o = &n->out;

	free(o->conf);
	free(o->piece);
	sm_move(&o->sm, OUT_IDLE);
	*o = (struct out){ .sm = o->sm,
			   .sent = MUTANT(stream_resumed) ? o->acked : 0,
			   .acked = MUTANT(stream_resumed) ? o->acked : 0 };
}

/* The file may change again: its bytes are with the other. */
static void out_close(struct snapshots *n)
{
	switch (n->out.sm.now) {
	case OUT_EXPORTING:
	case OUT_BEGINNING:
	case OUT_SENDING:
		n->app->ops->export_end(n->app);
		break;
	default:
		break;
	}
}

static void out_end(struct snapshots *n, bool ok)
{
	uint64_t to = n->out.to;

	out_close(n);
	if (ok) {
		out_backoff(n, to)->ms = 0;
	} else {
		post_short(n, to, KIND_END, 0, n->out.id, 0);
		out_failed(n);
	}
	out_reset(n);
	n->owner->sent(n->owner, to, ok);
}

bool snapshots_send(struct snapshots *n, uint64_t to,
		    const struct snapshot_from *from, uint64_t applied)
{
	struct out *o = &n->out;
	uint64_t epoch;

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (o->sm.now == OUT_LINGERING && !n->closed)
		out_end(n, true);
	if (n->closed || n->transport == NULL || o->sm.now != OUT_IDLE ||
	    env_now_ms(n->env) < out_backoff(n, to)->until_ms)
		return false;
	epoch = transport_epoch(n->transport, CHANNEL_SNAPSHOT, to);
	if (epoch == 0)
		return false;
	sm_move(&o->sm, OUT_WANTED);
	o->to = to;
	o->from = *from;
	o->epoch = epoch;
	o->pin = applied;
	env_random(n->env, &o->id, sizeof(o->id));
	out_moved(n);
	snapshots_wake(n);
	return true;
}

void snapshots_stop(struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	out_fail(n);
}

uint64_t snapshots_sending(const struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	return n->out.sm.now == OUT_LINGERING ? 0 : n->out.to;
}

uint64_t snapshots_pin(const struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	return n->out.sm.now == OUT_IDLE ? UINT64_MAX : n->out.pin;
}

void snapshots_exported(struct snapshots *n, enum rc rc,
			const struct snapshot *what)
{
	struct out *o = &n->out;

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (o->sm.now != OUT_EXPORTING)
		return;
	out_moved(n);
	if (rc != RC_OK || what->bytes == 0 || what->conf_bytes > CONF_MAX ||
	    what->index < o->pin || !snapshot_copy(&o->what, &o->conf, what)) {
		out_fail(n);
		return;
	}
	o->piece = malloc(PIECE_HEAD + SNAPSHOT_PIECE_BYTES);
	if (o->piece == NULL) {
		out_fail(n);
		return;
	}
	o->pin = what->index;
	sm_move(&o->sm, OUT_BEGINNING);
	snapshots_wake(n);
}

/* False: later. */
static bool out_post(struct snapshots *n, const void *head, size_t head_n,
		     const void *body, size_t body_n)
{
	enum rc rc = snapshots_post(n, n->out.to, head, head_n, body, body_n);

	if (rc == RC_OK) {
		out_moved(n);
		return true;
	}
	if (rc == RC_OVERLOADED)
		n->out.blocked = true;
	else
		n->out.fails = true;
	return false;
}

static void out_begin(struct snapshots *n)
{
	struct out *o = &n->out;
	uint8_t head[BEGIN_BYTES] = { KIND_BEGIN, o->from.rebuilds };

	le_put32(head + 4, (uint32_t)o->what.conf_bytes);
	le_put64(head + 8, o->id);
	le_put64(head + 16, o->from.term);
	le_put64(head + 24, o->what.index);
	le_put64(head + 32, o->what.term);
	le_put64(head + 40, o->what.conf_index);
	le_put64(head + 48, o->what.bytes);
	memcpy(head + 56, o->what.hash, sizeof(o->what.hash));
	if (out_post(n, head, sizeof(head), o->conf, o->what.conf_bytes))
		sm_move(&o->sm, OUT_SENDING);
}

static uint32_t out_next(const struct out *o)
{
	uint64_t left = o->what.bytes - o->sent;

	return left < SNAPSHOT_PIECE_BYTES ? (uint32_t)left
					   : SNAPSHOT_PIECE_BYTES;
}

void snapshots_export_data(struct snapshots *n, enum rc rc, const void *p,
			   size_t bytes)
{
	struct out *o = &n->out;

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (o->sm.now != OUT_SENDING || !o->reading)
		return;
	o->reading = false;
	if (rc != RC_OK || bytes != out_next(o)) {
		out_fail(n);
		return;
	}
	memset(o->piece, 0, PIECE_HEAD);
	o->piece[0] = KIND_PIECE;
	le_put64(o->piece + 8, o->id);
	le_put64(o->piece + 16, o->sent);
	memcpy(o->piece + PIECE_HEAD, p, bytes);
	o->piece_n = PIECE_HEAD + bytes;
	snapshots_wake(n);
}

static void out_send(struct snapshots *n)
{
	struct out *o = &n->out;

	if (o->piece_n > 0) {
		if (!out_post(n, o->piece, o->piece_n, NULL, 0))
			return;
		o->sent += o->piece_n - PIECE_HEAD;
		o->piece_n = 0;
	}
	if (o->acked == o->what.bytes) {
		out_close(n);
		sm_move(&o->sm, OUT_SENT);
	} else if (!o->reading && o->sent < o->what.bytes &&
		   o->sent - o->acked < WINDOW_BYTES) {
		o->reading = true;
		n->app->ops->export_read(n->app, o->sent, out_next(o));
	}
}

static void out_step(struct snapshots *n)
{
	struct out *o = &n->out;

	o->blocked = false;
	switch (o->fails ? OUT_IDLE : o->sm.now) {
	case OUT_WANTED:
		sm_move(&o->sm, OUT_EXPORTING);
		n->app->ops->export_begin(n->app);
		break;
	case OUT_BEGINNING:
		out_begin(n);
		if (o->sm.now == OUT_SENDING)
			out_send(n);
		break;
	case OUT_SENDING:
		out_send(n);
		break;
	default:
		break;
	}
	if (o->fails)
		out_end(n, false);
}

/* ---- in ---- */

static void in_moved(struct snapshots *n)
{
	n->in.moved_ms = env_now_ms(n->env);
}

static void in_fail(struct snapshots *n)
{
	if (n->in.sm.now == IN_IDLE)
		return;
	n->in.fails = true;
	snapshots_wake(n);
}

static void in_reset(struct snapshots *n)
{
	struct in *i = &n->in;
	struct piece *p;

	while ((p = STAILQ_FIRST(&i->pieces)) != NULL) {
		STAILQ_REMOVE_HEAD(&i->pieces, link);
		free(p);
	}
	free(i->conf);
	sm_move(&i->sm, IN_IDLE);
	*i = (struct in){ .sm = i->sm };
	STAILQ_INIT(&i->pieces);
}

static void in_drop(struct snapshots *n)
{
	if (n->in.sm.now > IN_OFFERED && !n->in.gone)
		n->app->ops->stage_drop(n->app);
}

static void in_end(struct snapshots *n, bool installed)
{
	if (!installed)
		in_drop(n);
	post_short(n, n->in.from.node_id, KIND_END, installed, n->in.id, 0);
	in_reset(n);
}

bool snapshots_receiving(const struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	return n->in.sm.now != IN_IDLE;
}

void snapshots_took(struct snapshots *n, bool installed)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	PRE(n->in.sm.now == IN_STAGED);
	in_end(n, installed);
}

static void in_begin(struct snapshots *n, uint64_t node_id, const uint8_t *p,
		     size_t bytes)
{
	struct in *i = &n->in;
	struct snapshot_from from = { .node_id = node_id,
				      .term = le_get64(p + 16),
				      .rebuilds = p[1] != 0 };
	struct snapshot what = {
		.index = le_get64(p + 24),
		.term = le_get64(p + 32),
		.conf_index = le_get64(p + 40),
		.conf = p + BEGIN_BYTES,
		.conf_bytes = bytes - BEGIN_BYTES,
		.bytes = le_get64(p + 48),
		.from = node_id,
	};
	uint64_t id = le_get64(p + 8);

	memcpy(what.hash, p + 56, sizeof(what.hash));
	if (i->sm.now != IN_IDLE) {
		/* A newer leader's is worth more: it comes again. */
		if (from.term > i->from.term && i->sm.now < IN_READY)
			in_fail(n);
		post_short(n, node_id, KIND_END, 0, id, 0);
		return;
	}
	if (!n->owner->offered(n->owner, &from, &what) ||
	    !snapshot_copy(&i->what, &i->conf, &what)) {
		post_short(n, node_id, KIND_END, 0, id, 0);
		return;
	}
	sm_move(&i->sm, IN_OFFERED);
	i->from = from;
	i->id = id;
	i->epoch = transport_epoch(n->transport, CHANNEL_SNAPSHOT, node_id);
	in_moved(n);
	snapshots_wake(n);
}

/* False: no sender of ours would say that. */
static bool in_piece(struct snapshots *n, const uint8_t *p, size_t bytes)
{
	struct in *i = &n->in;
	uint64_t offset = le_get64(p + 16);
	size_t size = bytes - PIECE_HEAD;
	struct piece *piece;

	if (i->fails || i->sm.now > IN_WRITING)
		return true;
	if (offset != i->received || size > i->what.bytes - offset ||
	    offset + size - i->written > WINDOW_BYTES ||
	    (size < SNAPSHOT_PIECE_BYTES && offset + size < i->what.bytes))
		return false;
	piece = malloc(sizeof(*piece) + size);
	if (piece == NULL) {
		in_fail(n);
		return true;
	}
	piece->offset = offset;
	piece->n = (uint32_t)size;
	memcpy(piece->p, p + PIECE_HEAD, size);
	STAILQ_INSERT_TAIL(&i->pieces, piece, link);
	i->received += size;
	in_moved(n);
	snapshots_wake(n);
	return true;
}

static void in_ack(struct snapshots *n)
{
	post_short(n, n->in.from.node_id, KIND_ACK, 0, n->in.id, n->in.written);
}

void snapshots_staged(struct snapshots *n, enum rc rc)
{
	struct in *i = &n->in;
	struct piece *p = STAILQ_FIRST(&i->pieces);

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (i->sm.now != IN_WRITING || !i->writing)
		return;
	i->writing = false;
	if (rc != RC_OK) {
		i->gone = true;
		in_fail(n);
		return;
	}
	i->written += p->n;
	STAILQ_REMOVE_HEAD(&i->pieces, link);
	free(p);
	in_moved(n);
	in_ack(n);
	snapshots_wake(n);
}

void snapshots_stage_done(struct snapshots *n, enum rc rc, uint64_t generation,
			  const uint8_t hash[16])
{
	struct in *i = &n->in;

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (i->sm.now != IN_ENDING)
		return;
	if (rc != RC_OK) {
		i->gone = true;
		in_fail(n);
		return;
	}
	i->generation = generation;
	memcpy(i->hash, hash, sizeof(i->hash));
	sm_move(&i->sm, IN_READY);
	in_moved(n);
	snapshots_wake(n);
}

static void in_write(struct snapshots *n)
{
	struct in *i = &n->in;
	struct piece *p = STAILQ_FIRST(&i->pieces);

	if (i->writing)
		return;
	if (p != NULL) {
		i->writing = true;
		n->app->ops->stage_write(n->app, p->offset, p->p, p->n);
	} else if (i->written == i->what.bytes) {
		sm_move(&i->sm, IN_ENDING);
		n->app->ops->stage_end(n->app);
	}
}

static void in_step(struct snapshots *n)
{
	struct in *i = &n->in;

	if (i->fails) {
		in_end(n, false);
		return;
	}
	switch (i->sm.now) {
	case IN_OFFERED:
		sm_move(&i->sm, IN_WRITING);
		n->app->ops->stage_begin(n->app, &i->what);
		in_write(n);
		break;
	case IN_WRITING:
		in_write(n);
		break;
	case IN_READY:
		sm_move(&i->sm, IN_STAGED);
		n->owner->staged(n->owner, &i->from, &i->what, i->generation,
				 i->hash);
		break;
	default:
		break;
	}
}

/* ---- records ---- */

static bool record_sane(const uint8_t *p, size_t n)
{
	if (n < HEAD_BYTES || p[1] > 1 || p[2] != 0 || p[3] != 0 ||
	    (le_get32(p + 4) != 0 && p[0] != KIND_BEGIN))
		return false;
	switch (p[0]) {
	case KIND_TELL:
		return n == HEAD_BYTES && le_get64(p + 8) <= NUMBER_MAX;
	case KIND_WANT:
	case KIND_END:
		return n == HEAD_BYTES;
	case KIND_ACK:
		return n == PIECE_HEAD;
	case KIND_PIECE:
		return n > PIECE_HEAD && n <= PIECE_HEAD + SNAPSHOT_PIECE_BYTES;
	case KIND_BEGIN:
		return n > BEGIN_BYTES && n - BEGIN_BYTES <= CONF_MAX &&
		       le_get32(p + 4) == n - BEGIN_BYTES &&
		       le_get64(p + 16) <= NUMBER_MAX &&
		       le_get64(p + 24) <= NUMBER_MAX &&
		       le_get64(p + 24) != 0 && le_get64(p + 32) != 0 &&
		       le_get64(p + 32) <= le_get64(p + 16) &&
		       le_get64(p + 40) <= le_get64(p + 24) &&
		       le_get64(p + 48) != 0;
	default:
		return false;
	}
}

static bool received_ack(struct snapshots *n, const uint8_t *p)
{
	struct out *o = &n->out;
	uint64_t offset = le_get64(p + 16);

	if (offset > o->sent || offset < o->acked)
		return false;
	o->acked = offset;
	out_moved(n);
	snapshots_wake(n);
	return true;
}

static void received_end(struct snapshots *n, bool ok)
{
	if (!ok || n->out.sm.now != OUT_SENT) {
		n->out.refused = true;
		out_fail(n);
		return;
	}
	sm_move(&n->out.sm, OUT_LINGERING);
	out_moved(n);
	snapshots_wake(n);
}

/* A record of the stream that we send; false: it is not allowed. */
static bool received_out(struct snapshots *n, const uint8_t *p)
{
	if (p[0] == KIND_END)
		received_end(n, p[1] != 0);
	else if (p[0] == KIND_ACK)
		return received_ack(n, p);
	else
		return false;
	return true;
}

static bool received_in(struct snapshots *n, const uint8_t *p, size_t bytes)
{
	if (p[0] == KIND_PIECE)
		return in_piece(n, p, bytes);
	if (p[0] != KIND_END)
		return false;
	/* What is here as a whole needs no sender any more. */
	if (n->in.sm.now <= IN_WRITING)
		in_fail(n);
	return true;
}

static bool received_stream(struct snapshots *n, uint64_t node_id,
			    const uint8_t *p, size_t bytes)
{
	uint64_t id = le_get64(p + 8);

	if (n->out.sm.now != OUT_IDLE && n->out.to == node_id &&
	    n->out.id == id)
		return received_out(n, p);
	if (n->in.sm.now != IN_IDLE && n->in.from.node_id == node_id &&
	    n->in.id == id)
		return received_in(n, p, bytes);
	return true; /* Late. */
}

static void snapshots_received(struct transport_sink *k, uint64_t node_id,
			       uint64_t epoch, const uint8_t *p, size_t bytes)
{
	struct snapshots *n = CONTAINER_OF(k, struct snapshots, wire);
	bool sane = record_sane(p, bytes);
	uint64_t term;
	bool lost;

	(void)epoch;
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (n->closed)
		return;
	switch (sane ? p[0] : 0) {
	case KIND_WANT:
		lost = !n->owner->tell(n->owner, &term);
		post_short(n, node_id, KIND_TELL, lost, lost ? 0 : term, 0);
		n->owner->wanted(n->owner, node_id, p[1] != 0);
		break;
	case KIND_TELL:
		n->owner->told(n->owner, node_id, p[1] != 0, le_get64(p + 8));
		break;
	case KIND_BEGIN:
		in_begin(n, node_id, p, bytes);
		break;
	case KIND_PIECE:
	case KIND_ACK:
	case KIND_END:
		sane = received_stream(n, node_id, p, bytes);
		break;
	default:
		break;
	}
	if (!sane)
		transport_drop(n->transport, CHANNEL_SNAPSHOT, node_id);
}

static void snapshots_changed(struct transport_sink *k, uint64_t node_id,
			      uint64_t epoch)
{
	struct snapshots *n = CONTAINER_OF(k, struct snapshots, wire);

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (n->out.to == node_id && n->out.epoch != epoch &&
	    n->out.sm.now < OUT_LINGERING)
		out_fail(n);
	if (n->in.from.node_id == node_id && n->in.epoch != epoch &&
	    n->in.sm.now <= IN_WRITING)
		in_fail(n);
}

void snapshots_ask(struct snapshots *n, uint64_t node_id, bool abstains)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (!n->closed && n->transport != NULL)
		post_short(n, node_id, KIND_WANT, abstains, 0, 0);
}

/* ---- time ---- */

static void snapshots_arm(struct snapshots *n)
{
	uint64_t now;

	if (n->out.sm.now == OUT_IDLE && n->in.sm.now == IN_IDLE) {
		env_timer_stop(&n->timer);
		return;
	}
	now = env_now_ms(n->env);
	if (n->out.blocked)
		env_timer_start(&n->timer, now + RETRY_MS);
	else if (!n->timer.running)
		env_timer_start(&n->timer, now + TICK_MS);
}

static void out_tick(struct snapshots *n, uint64_t now)
{
	uint64_t still = now - n->out.moved_ms;

	if (n->out.sm.now == OUT_LINGERING) {
		if (still >= LINGER_MS)
			out_end(n, true);
	} else if (n->out.sm.now != OUT_IDLE && still >= SNAPSHOT_STALL_MS) {
		out_fail(n);
	}
}

static void in_tick(struct snapshots *n, uint64_t now)
{
	uint64_t still = now - n->in.moved_ms;

	switch (n->in.sm.now) {
	case IN_OFFERED:
	case IN_WRITING:
		if (still >= SNAPSHOT_STALL_MS)
			in_fail(n);
		break;
	case IN_ENDING:
		in_ack(n); /* However long it takes to verify. */
		break;
	case IN_STAGED:
		/* Who waits for all others' terms may wait for ever. */
		if (still < SNAPSHOT_STALL_MS)
			in_ack(n);
		break;
	default:
		break;
	}
}

static void snapshots_task(struct env_task *t)
{
	struct snapshots *n = CONTAINER_OF(t, struct snapshots, task);

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (n->closed)
		return;
	if (n->out.sm.now != OUT_IDLE)
		out_step(n);
	if (n->in.sm.now != IN_IDLE)
		in_step(n);
	snapshots_arm(n);
}

static void snapshots_tick(struct env_timer *t)
{
	struct snapshots *n = CONTAINER_OF(t, struct snapshots, timer);
	uint64_t now = env_now_ms(n->env);

	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	out_tick(n, now);
	in_tick(n, now);
	snapshots_wake(n);
}

/* ---- life ---- */

enum rc snapshots_new(struct env *env, struct transport *t, struct app *app,
		      struct snapshots_owner *owner, uint32_t shard,
		      struct snapshots **out)
{
	struct snapshots *n = calloc(1, sizeof(*n));

	if (n == NULL)
		return RC_NOMEM;
	n->magic = SNAPSHOTS_MAGIC;
	n->shard = shard;
	n->env = env;
	n->transport = t;
	n->app = app;
	n->owner = owner;
	n->wire.received = snapshots_received;
	n->wire.changed = snapshots_changed;
	n->task.cb = snapshots_task;
	n->task.phase = ENV_PHASE_RELEASE;
	env_timer_init(&n->timer, env, snapshots_tick);
	sm_init(&n->out.sm, out_states, OUT_STATES, OUT_IDLE);
	sm_init(&n->in.sm, in_states, IN_STATES, IN_IDLE);
	STAILQ_INIT(&n->in.pieces);
	if (t != NULL)
		transport_listen(t, CHANNEL_SNAPSHOT, shard, &n->wire);
	*out = n;
	return RC_OK;
}

void snapshots_close(struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	PRE(!n->closed);
	n->closed = true;
	env_timer_stop(&n->timer);
	if (n->transport != NULL)
		transport_listen(n->transport, CHANNEL_SNAPSHOT, n->shard,
				 NULL);
	if (n->out.sm.now != OUT_IDLE) {
		out_close(n);
		out_reset(n);
	}
	if (n->in.sm.now != IN_IDLE) {
		in_drop(n);
		in_reset(n);
	}
}

bool snapshots_posted(const struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	return n->task.posted;
}

void snapshots_free(struct snapshots *n)
{
	CHECK_OBJ(n, SNAPSHOTS_MAGIC);
	if (n->out.sm.now != OUT_IDLE)
		out_reset(n);
	if (n->in.sm.now != IN_IDLE)
		in_reset(n);
	n->magic = 0;
	free(n);
}
