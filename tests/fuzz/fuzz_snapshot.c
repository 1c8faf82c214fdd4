/*
 * snapshot: what a hostile peer may say on the channel of streams, while one is
 * sent to it and one comes from it. The input is steps: a byte that says what
 * happens (below), and for a record its length in one byte, doubled, and its
 * bytes. The app is asked in its order only, for what was announced only, and
 * never after it was told that it ends.
 */
#include <string.h>

#include "node/base/limits.h"
#include "raft-glue/le.h"
#include "raft-glue/snapshot.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/hand.h"

#define PEER       2u
#define FILE_BYTES (3u * SNAPSHOT_PIECE_BYTES / 2)

enum step {
	STEP_RECORD,
	STEP_RECORD_OUT, /* With the number of the stream that we send. */
	STEP_TURN,
	STEP_WAIT,
	STEP_LINK,
	STEP_SEND,
	STEP_STOP,
	STEP_TAKE,
	STEP_REFUSE,
	STEP_FAIL, /* The app fails at what it is asked next. */
	STEPS,
};

static struct hand hand;
static struct snapshots *n;
static struct transport_sink *sink;
static uint64_t epoch;
static uint64_t out_id;
static bool failing;

/* What the app is in. */
static struct {
	bool exporting;
	bool asked;
	bool reading;
	uint32_t read_n;
	bool staging;
	bool writing;
	bool ending;
	bool staged;
	uint64_t bytes;
	uint64_t written;
	uint64_t wrote;
} app;

/* ---- the transport ---- */

void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t shard, struct transport_sink *k)
{
	(void)t;
	MUST(ch == CHANNEL_SNAPSHOT);
	MUST(shard == 3);
	sink = k;
}

enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t shard, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n)
{
	(void)t;
	MUST(ch == CHANNEL_SNAPSHOT);
	MUST(shard == 3);
	MUST(node_id == PEER);
	MUST(head_n >= 16);
	MUST(head_n + body_n <= 24 + SNAPSHOT_PIECE_BYTES);
	if (epoch == 0)
		return RC_NOT_FOUND;
	if (((const uint8_t *)head)[0] == 3)
		out_id = le_get64((const uint8_t *)head + 8);
	(void)body;
	return RC_OK;
}

uint64_t transport_epoch(const struct transport *t, enum transport_channel ch,
			 uint64_t node_id)
{
	(void)t;
	(void)ch;
	(void)node_id;
	return epoch;
}

void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id)
{
	(void)t;
	(void)ch;
	MUST(node_id == PEER);
}

/* ---- the app ---- */

static void export_begin(struct app *a)
{
	(void)a;
	MUST(!app.exporting);
	app.exporting = true;
	app.asked = true;
}

static void export_read(struct app *a, uint64_t offset, uint32_t bytes)
{
	(void)a;
	MUST(app.exporting);
	MUST(!app.asked);
	MUST(!app.reading);
	MUST(bytes > 0);
	MUST(bytes <= SNAPSHOT_PIECE_BYTES);
	MUST(offset + bytes <= FILE_BYTES);
	app.reading = true;
	app.read_n = bytes;
}

static void export_end(struct app *a)
{
	(void)a;
	MUST(app.exporting);
	app.exporting = false;
	app.asked = false;
	app.reading = false;
}

static void stage_begin(struct app *a, const struct snapshot *s)
{
	(void)a;
	MUST(!app.staging);
	MUST(s->index > 0);
	MUST(s->conf_bytes > 0);
	app.staging = true;
	app.bytes = s->bytes;
	app.written = 0;
}

static void stage_write(struct app *a, uint64_t offset, const void *p,
			uint32_t bytes)
{
	(void)a;
	(void)p;
	MUST(app.staging);
	MUST(!app.writing);
	MUST(!app.ending);
	MUST(offset == app.written);
	MUST(bytes > 0);
	MUST(bytes <= app.bytes - offset);
	app.writing = true;
	app.wrote = bytes;
}

static void stage_end(struct app *a)
{
	(void)a;
	MUST(app.staging);
	MUST(!app.writing);
	MUST(app.written == app.bytes);
	app.ending = true;
}

static void stage_gone(void)
{
	app.staging = false;
	app.writing = false;
	app.ending = false;
	app.staged = false;
}

static void stage_drop(struct app *a)
{
	(void)a;
	MUST(app.staging);
	stage_gone();
}

static const struct app_ops ops = {
	.export_begin = export_begin,
	.export_read = export_read,
	.export_end = export_end,
	.stage_begin = stage_begin,
	.stage_write = stage_write,
	.stage_end = stage_end,
	.stage_drop = stage_drop,
};
static struct app the_app = { &ops };

static void answer_export(bool fails)
{
	struct snapshot what = { .index = 9,
				 .term = 2,
				 .conf = "conf",
				 .conf_bytes = 4,
				 .bytes = FILE_BYTES };
	static uint8_t piece[SNAPSHOT_PIECE_BYTES];

	if (app.asked) {
		app.asked = false;
		snapshots_exported(n, fails ? RC_CORRUPT : RC_OK, &what);
	} else if (app.reading) {
		app.reading = false;
		snapshots_export_data(n, fails ? RC_CORRUPT : RC_OK, piece,
				      app.read_n);
	}
}

static void answer_stage(bool fails)
{
	uint8_t hash[16] = { 1 };
	bool ending = app.ending;

	if (!app.writing && !app.ending)
		return;
	if (fails)
		stage_gone();
	if (app.writing)
		app.written += app.wrote;
	app.writing = false;
	app.ending = false;
	if (ending)
		snapshots_stage_done(n, fails ? RC_CORRUPT : RC_OK, 4, hash);
	else
		snapshots_staged(n, fails ? RC_NO_SPACE : RC_OK);
}

static void turn(void)
{
	bool fails = failing;

	hand_turn(&hand);
	failing = false;
	answer_export(fails);
	answer_stage(fails);
	hand_turn(&hand);
}

/* ---- the owner ---- */

static void wanted(struct snapshots_owner *o, uint64_t node_id, bool abstains)
{
	(void)o;
	(void)abstains;
	MUST(node_id == PEER);
}

static bool tell(struct snapshots_owner *o, uint64_t *term)
{
	(void)o;
	*term = 7;
	return true;
}

static void told(struct snapshots_owner *o, uint64_t node_id, bool lost,
		 uint64_t term)
{
	(void)o;
	(void)lost;
	(void)term;
	MUST(node_id == PEER);
}

static bool offered(struct snapshots_owner *o, const struct snapshot_from *from,
		    const struct snapshot *what)
{
	(void)o;
	MUST(from->node_id == PEER);
	MUST(what->term > 0);
	MUST(what->term <= from->term);
	MUST(what->conf_index <= what->index);
	return what->index % 7 != 0;
}

static void staged(struct snapshots_owner *o, const struct snapshot_from *from,
		   const struct snapshot *what, uint64_t generation,
		   const uint8_t hash[16])
{
	(void)o;
	(void)from;
	MUST(what->bytes == app.bytes);
	MUST(generation == 4);
	MUST(hash[0] == 1);
	MUST(app.staging);
	app.staged = true;
}

static void sent(struct snapshots_owner *o, uint64_t node_id, bool ok)
{
	(void)o;
	(void)ok;
	MUST(node_id == PEER);
	MUST(!app.exporting);
}

static struct snapshots_owner owner = { wanted,  tell,   told,
					offered, staged, sent };

/* In an allocation of its own. */
static void record(const uint8_t *p, size_t bytes, bool out)
{
	uint8_t *copy = malloc(bytes > 0 ? bytes : 1);

	MUST(copy != NULL);
	memcpy(copy, p, bytes);
	if (out && bytes >= 16)
		le_put64(copy + 8, out_id);
	if (epoch != 0)
		sink->received(sink, PEER, epoch, copy, bytes);
	free(copy);
}

static void relink(void)
{
	epoch = epoch == 0 ? ++hand.random : 0;
	sink->changed(sink, PEER, epoch);
}

static void take(bool installed)
{
	if (!app.staged)
		return;
	app.staged = false;
	if (installed)
		stage_gone();
	snapshots_took(n, installed);
}

static void go(const uint8_t *p, size_t bytes)
{
	const struct snapshot_from from = { .node_id = 1, .term = 3 };
	enum step what;
	size_t len;

	while (bytes > 0) {
		what = (enum step)(*p++ % STEPS);
		bytes--;
		switch (what) {
		case STEP_RECORD:
		case STEP_RECORD_OUT:
			len = bytes > 0 ? 2 * (size_t)*p : 0;
			p += bytes > 0;
			bytes -= bytes > 0;
			len = len < bytes ? len : bytes;
			record(p, len, what == STEP_RECORD_OUT);
			p += len;
			bytes -= len;
			break;
		case STEP_TURN:
			turn();
			break;
		case STEP_WAIT:
			hand_advance(&hand, 700);
			break;
		case STEP_LINK:
			relink();
			break;
		case STEP_SEND:
			(void)snapshots_send(n, PEER, &from, 9);
			break;
		case STEP_STOP:
			snapshots_stop(n);
			break;
		case STEP_TAKE:
		case STEP_REFUSE:
			take(what == STEP_TAKE);
			break;
		case STEP_FAIL:
			failing = true;
			break;
		case STEPS:
			break;
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t bytes)
{
	static int any; /* What stands for `struct transport`. */

	hand_init(&hand);
	memset(&app, 0, sizeof(app));
	epoch = 9;
	out_id = 0;
	failing = false;
	MUST(snapshots_new(&hand.env, (void *)&any, &the_app, &owner, 3, &n) ==
	     RC_OK);
	go(p, bytes);
	hand_turn(&hand);
	MUST(!snapshots_posted(n));
	snapshots_close(n);
	MUST(!app.exporting);
	MUST(!app.staging);
	MUST(hand_timers(&hand) == 0);
	snapshots_free(n);
	return 0;
}
