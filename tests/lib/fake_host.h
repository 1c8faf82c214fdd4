/*
 * fake_host - the world of live objects, moved by hand: a clock that the test
 * pushes, units that it commits, proofs that it gives, nested calls that it
 * answers. Below it is tests/lib/fake_storage.h.
 *
 * Nothing happens by itself: fake_turn() runs the tasks of a loop turn,
 * fake_go() does all that a lone and healthy node would do until nothing is
 * left.
 */
#ifndef TESTS_LIB_FAKE_HOST_H
#define TESTS_LIB_FAKE_HOST_H

#include "node/base/turn.h"
#include "objects/object.h"
#include "tests/lib/fake_storage.h"

#define FAKE_STAMP_NS UINT64_C(1000000000000) /* The owner's now at first. */

struct fake_unit {
	STAILQ_ENTRY(fake_unit) link;
	uint64_t mark;
	size_t n; /* 0: a tick. */
	uint8_t bytes[];
};

/* A nested call that the host was asked to make. */
struct fake_call {
	struct event *ev; /* NULL: it was dropped. */
	char address[128];
	char method[64];
	bool keyed;
	uint8_t key[16];
};

#define FAKE_CALLS_MAX 64

struct fake {
	struct env env;
	struct host host;
	struct turn turn;
	struct storage *storage;
	struct residents *res;
	struct space *space;
	struct env_timer *timers; /* By impl[0]. */
	uint64_t now_ns;          /* Of the machine. */
	uint64_t ahead_ns;        /* The owner's now is so far ahead of it. */
	uint64_t stamp_ns;        /* F. */
	uint64_t epoch;
	uint64_t next_mark;
	uint64_t ticket;
	uint64_t proved;
	uint64_t committed;
	uint64_t index;
	bool one_tick; /* As long as nothing is committed. */
	uint64_t tick_mark;
	STAILQ_HEAD(fake_units, fake_unit) units; /* Not committed yet. */
	size_t units_n;
	size_t units_all; /* Units ever proposed, ticks not counted. */
	size_t ticks;
	size_t proofs;
	size_t hurries;
	bool gathered; /* A unit waits that was not hurried. */
	/* What the host answers. */
	enum rc propose_rc; /* RC_OK: takes it. */
	enum rc admit_rc;
	int64_t admitted_objects;
	int64_t admitted_bytes;
	struct fake_call calls[FAKE_CALLS_MAX];
	size_t calls_n;
	size_t dropped;
	bool stopped; /* fail_stop was called. */
	uint64_t random;
	uint64_t events;   /* So many were made: no two have the same age. */
	bool free_running; /* For measuring: units are not kept. */
};

/* Leads in epoch 1. `cfg` NULL: the defaults of limits.h. */
struct fake *fake_new(const struct residents_config *cfg);
void fake_free(struct fake *f);

/* Tasks that were posted. */
void fake_turn(struct fake *f);
/* Time goes on; timers that are due fire; then a turn. */
void fake_advance(struct fake *f, uint64_t ms);
/* All marks up to this one are committed and applied; a turn. */
void fake_commit(struct fake *f, uint64_t mark);
void fake_commit_all(struct fake *f);
/* All tickets so far are proved; a turn. */
void fake_prove(struct fake *f);
void fake_fail_proof(struct fake *f, enum rc rc);
/* Everything that was committed is stored. */
void fake_store(struct fake *f);
/* Loads, commits, proofs, turns, until there is nothing more to do. */
void fake_go(struct fake *f);
void fake_lose(struct fake *f);
void fake_lead(struct fake *f);
/* A new owner on the same storage: what was proposed and not committed is
 * gone. */
void fake_change(struct fake *f);
/* The i-th nested call is answered. */
void fake_answer(struct fake *f, size_t i, enum rc rc, const char *text);
/* The same with an encoded result. */
void fake_reply(struct fake *f, size_t i, enum rc rc, struct pack_bytes result,
		const struct detail *why);

/* ------------------------------------------------------------------- events */

/* An event with what it points to. */
struct fake_event {
	struct event ev;
	struct fake *fake;
	bool done;
	unsigned order; /* Among those that are done, from 1. */
	/* For a class whose run is fake_script_run(): what it does. */
	enum run (*script)(struct fake_event *e);
	unsigned runs;
	int64_t n;
	const char *text;
	char name[64];
	uint8_t *args;
	char idem[64];
	char principal[64];
};

/*
 * A call of `method` of class `cls` to the object `name`: default/dev,
 * principal "p", arguments an empty map. Freed by fake_event_free(), after it
 * is done.
 */
struct fake_event *fake_event(struct fake *f, const struct class *cls,
			      const char *name, const char *method);
void fake_event_args(struct fake_event *e, const void *args, size_t n);
void fake_event_key(struct fake_event *e, const char *key);
void fake_event_free(struct fake_event *e);
/* The run of a class that does what each event brings with it. */
enum run fake_script_run(struct event *ev);
void fake_send(struct fake *f, struct fake_event *e);
/* How many are done so far, and the last number that fake_event.order got. */
extern unsigned fake_done;

/* Runs one test of this program with one rule of mutant.tbl left out: true when
 * it fails, as it should. */
bool fake_misses(const char *mutant, const char *test);

/* The oid of default/dev/<cls>/<name> as fake_event makes it. */
struct oid fake_oid(const char *cls, const char *name);

#endif
