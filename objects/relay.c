/*
 * relay - a class for tests: it calls other objects and waits for time, as it
 * is told. Testing builds only.
 *
 * run {steps: [step, ...]} carries out steps in order and answers with the list
 * of what each gave. A step is an array:
 *
 *   ["put", key, value]                  nil; any value
 *   ["add", key, by]                     the new sum
 *   ["call", address, method, args]      the result; an error ends the run with
 * it
 *   ["try", address, method, args]       the result, or an error's code as str
 *   ["wait", ms]                         nil
 *   ["fail", code]                       ends the run with this error
 *
 * get {} is the map of its rows; destroy {} what it says.
 * An object whose name begins with "open-" lets others enter while an event is
 * suspended; one whose name begins with "once-" does not resume a run whose
 * owner was lost. After a resumption the steps that were carried out before
 * have nil for what they gave.
 */
#include <string.h>

#include "objects/object.h"

#define RELAY_IDEM_MS 60000u

struct step {
	struct pack_bytes op;
	struct pack_bytes a; /* Key, address or code. */
	struct pack_bytes method;
	struct pack_bytes value; /* Encoded: value, args. */
	int64_t n;
};

static bool is(struct pack_bytes s, const char *word)
{
	return pack_bytes_eq(s, word, strlen(word));
}

static bool is_call(const struct step *st)
{
	return is(st->op, "call") || is(st->op, "try");
}

/* One step off the array; false when it is none. */
static bool step_read(struct pack_r *r, struct step *st)
{
	uint32_t n;

	*st = (struct step){ .n = 0 };
	if (pack_get_array(r, &n) != RC_OK || n == 0 ||
	    pack_get_bytes(r, &st->op) != RC_OK)
		return false;
	if (is(st->op, "put"))
		return n == 3 && pack_get_bytes(r, &st->a) == RC_OK &&
		       pack_skip(r, &st->value) == RC_OK;
	if (is(st->op, "add"))
		return n == 3 && pack_get_bytes(r, &st->a) == RC_OK &&
		       pack_get_i64(r, &st->n) == RC_OK;
	if (is_call(st))
		return n == 4 && pack_get_bytes(r, &st->a) == RC_OK &&
		       pack_get_bytes(r, &st->method) == RC_OK &&
		       pack_skip(r, &st->value) == RC_OK;
	if (is(st->op, "wait"))
		return n == 2 && pack_get_i64(r, &st->n) == RC_OK && st->n >= 0;
	return is(st->op, "fail") && n == 2 &&
	       pack_get_bytes(r, &st->a) == RC_OK;
}

static enum run bad_step(struct event *ev)
{
	return ev_fail(ev, RC_INVALID, "steps", "a step is malformed");
}

static enum run end_with(struct event *ev, enum rc rc)
{
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	if (rc == RC_OVERLOADED)
		return ev_fail(ev, RC_INVALID, "steps",
			       "one run changes too much");
	return ev_fail(ev, rc, NULL, "%s", rc_text(rc));
}

static enum rc add(struct event *ev, const struct step *st, int64_t *sum)
{
	struct row_view row;
	struct pack_w w;
	struct pack_r r;
	enum rc rc = ev_get(ev, ROW_DATA, st->a, &row);

	*sum = 0;
	if (rc == RC_OK) {
		r = pack_reader(row.value.p, row.value.n);
		if (pack_get_i64(&r, sum) != RC_OK)
			return RC_INVALID;
	} else if (rc != RC_NOT_FOUND) {
		return rc;
	}
	if (__builtin_add_overflow(*sum, st->n, sum))
		return RC_INVALID;
	pack_w_init(&w, 16);
	pack_i64(&w, *sum);
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put(ev, ROW_DATA, st->a,
			    (struct pack_bytes){ w.p, w.n }, 0);
	pack_w_release(&w);
	return rc;
}

static enum run suspend_for_call(struct event *ev, const struct step *st)
{
	char address[ADDRESS_BYTES_MAX + 1];
	char method[64];

	if (st->a.n >= sizeof(address) || st->method.n >= sizeof(method) ||
	    st->method.n == 0 || st->a.n == 0)
		return bad_step(ev);
	memcpy(address, st->a.p, st->a.n);
	address[st->a.n] = '\0';
	memcpy(method, st->method.p, st->method.n);
	method[st->method.n] = '\0';
	return ev_call(ev, address, method, st->value);
}

/* Carried out at once: RUN_DONE with ev->rc RC_OK means go on. */
static enum run step_now(struct event *ev, const struct step *st)
{
	int64_t sum;
	enum rc rc;

	if (is(st->op, "fail")) {
		if (rc_parse((const char *)st->a.p, st->a.n, &rc) != RC_OK ||
		    rc == RC_OK)
			return bad_step(ev);
		return ev_fail(ev, rc, NULL, "as it was told");
	}
	if (is(st->op, "put")) {
		rc = ev_put(ev, ROW_DATA, st->a, st->value, 0);
		if (rc == RC_OK)
			pack_nil(&ev->result);
	} else {
		rc = add(ev, st, &sum);
		if (rc == RC_OK)
			pack_i64(&ev->result, sum);
	}
	if (rc != RC_OK)
		return end_with(ev, rc);
	(void)ev_bump(ev);
	return RUN_DONE;
}

/* What a suspended step gave. */
static enum run step_after(struct event *ev, const struct step *st)
{
	if (!is_call(st)) {
		pack_nil(&ev->result);
	} else if (ev->reply_rc == RC_OK) {
		pack_raw(&ev->result, ev->reply.p, ev->reply.n);
	} else if (is(st->op, "try")) {
		pack_cstr(&ev->result, rc_name(ev->reply_rc));
	} else {
		return ev_fail(ev, ev->reply_rc,
			       ev->reply_why.field[0] != '\0'
				       ? ev->reply_why.field
				       : NULL,
			       "%s", ev->reply_why.text);
	}
	return RUN_DONE;
}

static enum run run_steps(struct event *ev)
{
	struct pack_bytes all = ev->args.at[ARG_relay_run_steps].bytes;
	struct pack_r r = pack_reader(all.p, all.n);
	bool reply = ev->resume > 0 && ev->reply_rc != RC_AGAIN;
	uint64_t from = ev->resume > 0 ? ev->locals[0] : 0;
	struct step st;
	enum run how;
	uint32_t n;
	uint64_t i;

	if (pack_get_array(&r, &n) != RC_OK)
		return bad_step(ev);
	if (ev->result.n == 0) {
		pack_array(&ev->result, n);
		for (i = 0; i < from && i < n; i++)
			pack_nil(&ev->result);
	}
	for (i = 0; i < n; i++) {
		if (!step_read(&r, &st))
			return bad_step(ev);
		if (i < from)
			continue;
		ev->locals[0] = i;
		if (i == from && reply)
			how = step_after(ev, &st);
		else if (is_call(&st))
			return suspend_for_call(ev, &st);
		else if (is(st.op, "wait"))
			return ev_wait(ev,
				       ev_now(ev) + (uint64_t)st.n * 1000000u);
		else
			how = step_now(ev, &st);
		if (how != RUN_DONE || ev->rc != RC_OK)
			return how;
	}
	return RUN_DONE;
}

static bool count_row(void *arg, const struct row_view *row)
{
	(void)row;
	++*(uint32_t *)arg;
	return true;
}

static bool write_row(void *arg, const struct row_view *row)
{
	pack_str(arg, (const char *)row->key.p, row->key.n);
	pack_raw(arg, row->value.p, row->value.n);
	return true;
}

static enum run get_rows(struct event *ev)
{
	const struct pack_bytes none = { NULL, 0 };
	uint32_t n = 0;

	if (ev_scan(ev, ROW_DATA, none, none, false, count_row, &n) != RC_OK)
		return RUN_LOAD;
	pack_map(&ev->result, n);
	if (ev_scan(ev, ROW_DATA, none, none, false, write_row, &ev->result) !=
	    RC_OK)
		return RUN_LOAD;
	return RUN_DONE;
}

static enum run destroy(struct event *ev)
{
	ev_destroy(ev);
	pack_map(&ev->result, 0);
	return RUN_DONE;
}

static enum run relay_run(struct event *ev)
{
	switch (ev->method->number) {
	case METHOD_relay_run:
		return run_steps(ev);
	case METHOD_relay_get:
		return get_rows(ev);
	case METHOD_relay_destroy:
		return destroy(ev);
	default:
		return ev_fail(ev, RC_NOT_FOUND, NULL, "no such method");
	}
}

static const struct class *relay_variant(struct pack_bytes name);

#define RELAY(interleave_, resumes_)                                    \
	{                                                               \
		.name = "relay", .interleave = (interleave_),           \
		.durability = DURABILITY_COMMITTED,                     \
		.durabilities = 1u << DURABILITY_COMMITTED,             \
		.idem_window_ms = RELAY_IDEM_MS, .resumes = (resumes_), \
		.run = relay_run, .variant = relay_variant,             \
	}

const struct class class_relay = RELAY(INTERLEAVE_NEVER, true);
static const struct class relay_open = RELAY(INTERLEAVE_ON_SUSPEND, true);
static const struct class relay_once = RELAY(INTERLEAVE_NEVER, false);

static bool begins(struct pack_bytes name, const char *with)
{
	size_t n = strlen(with);

	return name.n >= n && memcmp(name.p, with, n) == 0;
}

static const struct class *relay_variant(struct pack_bytes name)
{
	if (begins(name, "open-"))
		return &relay_open;
	if (begins(name, "once-"))
		return &relay_once;
	return &class_relay;
}
