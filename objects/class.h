/*
 * class - the vtable of a class of objects, and the registry.
 *
 * Loop thread. A class is code without state: everything an object knows is in
 * its rows. `run` is called for one event at a time and object; it reads and
 * writes rows through object.h and answers into ev->result.
 *
 * run() may be called again from the start for the same event: when a row it
 * asked for was not in memory (RUN_LOAD), what it did is forgotten, the row is
 * loaded, and it starts over. So it must do nothing but through object.h, and
 * decide from its arguments, its rows, ev_now() and ev->resume alone.
 */
#ifndef HOLDFAST_OBJECTS_CLASS_H
#define HOLDFAST_OBJECTS_CLASS_H

#include <stdbool.h>
#include <stdint.h>

#include "client/proto/method.h"

struct event;
struct object;

enum durability {
	DURABILITY_DEFAULT, /* In options: what the class or policy says. */
	DURABILITY_MEMORY,
	DURABILITY_LAGGED,
	DURABILITY_COMMITTED,
	DURABILITY_LEASED,
};

enum interleave {
	INTERLEAVE_NEVER,      /* The next event waits for the whole event. */
	INTERLEAVE_ON_SUSPEND, /* Others enter while one is suspended. */
};

enum run {
	RUN_DONE, /* ev->rc and ev->result say how. */
	RUN_LOAD, /* An ev_ function answered RC_AGAIN: load and run again. */
	RUN_SUSPEND, /* ev_call() or ev_wait() was asked for: commit, wait, then
		      * run again with ev->resume counted up and ev->reply set.
		      */
};

struct class
{
	const char *name;
	enum interleave interleave;
	enum durability durability; /* The default. */
	uint32_t durabilities; /* Bit per enum durability a call may name. */
	uint32_t idem_window_ms;
	/* On a retry that finds `started` and no running event the event runs
	 * again with ev->resume as stored, instead of UNKNOWN_OUTCOME. */
	bool resumes;
	enum run (*run)(struct event *ev);
	/* Close what may still be spent from memory (DESIGN D5, `leased`), as a
	 * run: from the memory row at ev->args_bytes (p == NULL: the first) on.
	 * Its result is nil, or as bin where the next run has to go on. NULL:
	 * the class lends nothing. */
	enum run (*settle)(struct event *ev);
	/* The class as an object of this name has it; NULL: the same for all.
	 */
	const struct class *(*variant)(struct pack_bytes name);
};

/* NULL when there is none. */
const struct class *class_find(struct pack_bytes name);
/* The i-th class, NULL after the last. */
const struct class *class_at(unsigned i);

extern const struct class class_kv;
extern const struct class class_rate_limiter;
extern const struct class class_directory;
#ifdef HOLDFAST_TESTING
extern const struct class class_relay;
#endif

#endif
