#include "objects/idem.h"

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/mutant.h"
#include "objects/space.h"

#define COUNT_VERSION 1u
#define MS_NS         ((uint64_t)1000000u)

/* ----------------------------------------------------------------- records */

static uint32_t fields_of(enum idem_state state)
{
	switch (state) {
	case IDEM_STARTED:
		return 10;
	case IDEM_DONE:
		return 5;
	case IDEM_FAILED:
		return 7;
	}
	UNREACHABLE();
}

void idem_write(struct pack_w *w, const struct idem_record *r)
{
	size_t i;

	pack_array(w, fields_of(r->state));
	pack_u64(w, IDEM_VERSION);
	pack_u64(w, r->state);
	pack_bin(w, r->args, sizeof(r->args));
	pack_bin(w, r->who, sizeof(r->who));
	switch (r->state) {
	case IDEM_STARTED:
		pack_u64(w, r->call_no);
		for (i = 0; i < ARRAY_LEN(r->locals); i++)
			pack_u64(w, r->locals[i]);
		pack_bool(w, r->dirty);
		break;
	case IDEM_DONE:
		pack_bin(w, r->answer.p, r->answer.n);
		break;
	case IDEM_FAILED:
		pack_u64(w, r->rc);
		pack_bin(w, r->field.p, r->field.n);
		pack_bin(w, r->text.p, r->text.n);
		break;
	}
}

static bool read_hash(struct pack_r *r, uint8_t out[HASH_BYTES])
{
	struct pack_bytes b;

	if (pack_get_bin(r, &b) != RC_OK || b.n != HASH_BYTES)
		return false;
	memcpy(out, b.p, HASH_BYTES);
	return true;
}

static bool read_started(struct pack_r *r, struct idem_record *out)
{
	uint64_t n;
	size_t i;

	if (pack_get_u64(r, &n) != RC_OK || n > UINT32_MAX)
		return false;
	out->call_no = (uint32_t)n;
	for (i = 0; i < ARRAY_LEN(out->locals); i++)
		if (pack_get_u64(r, &out->locals[i]) != RC_OK)
			return false;
	return pack_get_bool(r, &out->dirty) == RC_OK;
}

static bool read_failed(struct pack_r *r, struct idem_record *out)
{
	uint64_t n;

	if (pack_get_u64(r, &n) != RC_OK || n == RC_OK || n >= 64)
		return false;
	out->rc = (enum rc)n;
	return pack_get_bin(r, &out->field) == RC_OK &&
	       pack_get_bin(r, &out->text) == RC_OK;
}

static bool read_rest(struct pack_r *r, struct idem_record *out)
{
	switch (out->state) {
	case IDEM_STARTED:
		return read_started(r, out);
	case IDEM_DONE:
		return pack_get_bin(r, &out->answer) == RC_OK;
	case IDEM_FAILED:
		return read_failed(r, out);
	}
	return false;
}

enum rc idem_read(struct pack_bytes value, struct idem_record *out)
{
	struct pack_r r = pack_reader(value.p, value.n);
	uint64_t version;
	uint64_t state;
	uint32_t fields;

	*out = (struct idem_record){ .state = IDEM_STARTED };
	if (pack_get_array(&r, &fields) != RC_OK ||
	    pack_get_u64(&r, &version) != RC_OK || version == 0)
		return RC_CORRUPT;
	if (version > IDEM_VERSION)
		return RC_VERSION;
	if (pack_get_u64(&r, &state) != RC_OK || state < IDEM_STARTED ||
	    state > IDEM_FAILED)
		return RC_CORRUPT;
	out->state = (enum idem_state)state;
	if (fields != fields_of(out->state) || !read_hash(&r, out->args) ||
	    !read_hash(&r, out->who) || !read_rest(&r, out) || r.at != r.end)
		return RC_CORRUPT;
	return RC_OK;
}

/* ------------------------------------------------------------------ hashes */

static struct hash_part part(struct pack_bytes b)
{
	return (struct hash_part){ b.p, b.n };
}

static void hash_event(struct event *ev)
{
	struct hash_part key[] = {
		part(MUTANT(idem_any_principal) ? ev->idem : ev->principal),
		{ ev->method->name, ev->method->name_bytes },
		part(ev->idem),
	};
	struct hash_part args = part(ev->args_bytes);

	if (ev->hashed)
		return;
	crypto_hash(NULL, 0, key, ARRAY_LEN(key), ev->idem_key);
	crypto_hash(NULL, 0, key, 1, ev->who_hash);
	crypto_hash(NULL, 0, &args, 1, ev->args_hash);
	ev->hashed = true;
}

void idem_derive(const struct event *ev, uint8_t out[HASH_BYTES])
{
	uint8_t number[4];
	struct hash_part parts[] = {
		part(ev->principal),
		part(ev->tenant),
		part(ev->env),
		{ ev->oid.b, OID_BYTES },
		{ ev->method->name, ev->method->name_bytes },
		part(ev->idem),
		{ number, sizeof(number) },
	};
	size_t i;

	for (i = 0; i < sizeof(number); i++)
		number[i] = (uint8_t)(ev->call_no >> (8 * i));
	crypto_hash(NULL, 0, parts, ARRAY_LEN(parts), out);
}

enum rc idem_window(const struct class *cls, uint64_t idem_ms, uint64_t *ns,
		    struct detail *why)
{
	uint64_t max = cls->idem_window_ms;

	if (max == 0)
		max = IDEM_WINDOW_DEFAULT_MS;
	*ns = max * MS_NS;
	if (idem_ms == 0)
		return RC_OK;
	if (idem_ms < IDEM_WINDOW_MIN_MS || idem_ms > max)
		return detail_set(why, RC_INVALID, "idem_ms",
				  "`idem_ms` must be from %u to %llu for this "
				  "class",
				  IDEM_WINDOW_MIN_MS, (unsigned long long)max);
	*ns = idem_ms * MS_NS;
	return RC_OK;
}

/* ----------------------------------------------------------------- looking */

static struct pack_bytes hash_key(const uint8_t hash[HASH_BYTES])
{
	return (struct pack_bytes){ hash, HASH_BYTES };
}

/* Only what is committed to be past has expired: a record that a later owner
 * might still go by must not be forgotten here. */
static bool record_expired(struct event *ev, const struct row *r)
{
	uint64_t f = space_committed_stamp(ev->space);

	if (MUTANT(idem_expires_early))
		f = ev->now_ns + IDEM_WINDOW_MIN_MS * MS_NS;
	return r->expires_ns <= f;
}

static bool want(struct event *ev, enum row_kind kind, struct pack_bytes key)
{
	struct row *r;

	if (rows_find(&ev->object->rows, kind, key, &r) != ROWS_UNKNOWN)
		return false;
	(void)stage_want_key(ev->work, kind, key);
	return true;
}

bool idem_at_hand(struct event *ev)
{
	bool record = want(ev, ROW_IDEM, hash_key(ev->idem_key));
	bool n = want(ev, ROW_IDEM_COUNT, hash_key(ev->who_hash));

	return !record && !n;
}

static enum idem_look answer(struct event *ev, enum rc rc, enum outcome o)
{
	ev->rc = rc;
	ev->outcome = o;
	return IDEM_ANSWER;
}

static enum idem_look other_args(struct event *ev)
{
	if (ev->chain == NULL) {
		(void)detail_set(&ev->why, RC_CONFLICT, "idem",
				 "this key was used with other arguments");
		return answer(ev, RC_CONFLICT, OUTCOME_REFUSED);
	}
	/* A call under a derived key changed between two runs of its caller:
	 * what the first of them did is not for this one to tell. */
	(void)detail_set(&ev->why, RC_UNKNOWN_OUTCOME, "idem",
			 "the call was made before, with other arguments");
	return answer(ev, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
}

static bool same_args(const struct event *ev, const uint8_t args[HASH_BYTES])
{
	return MUTANT(idem_any_args) ||
	       memcmp(ev->args_hash, args, HASH_BYTES) == 0;
}

static struct event *find_runner(const struct event *ev)
{
	struct event *r;

	LIST_FOREACH(r, &ev->object->keyed, joined_link)
	if (memcmp(r->idem_key, ev->idem_key, HASH_BYTES) == 0)
		return r;
	return NULL;
}

static uint64_t read_count(struct pack_bytes value)
{
	struct pack_r r = pack_reader(value.p, value.n);
	uint64_t version;
	uint32_t fields;
	uint64_t n;

	if (pack_get_array(&r, &fields) != RC_OK || fields != 2 ||
	    pack_get_u64(&r, &version) != RC_OK || version != COUNT_VERSION ||
	    pack_get_u64(&r, &n) != RC_OK)
		return 0;
	return n;
}

/* As it will be when what is staged is in. */
static uint64_t count_of(const struct event *ev, struct pack_bytes who)
{
	const struct staged *s = stage_find(ev->work, ROW_IDEM_COUNT, who);
	struct row *r;

	if (s != NULL)
		return s->deleted ? 0 : read_count(s->value);
	if (rows_find(&ev->object->rows, ROW_IDEM_COUNT, who, &r) != ROWS_FOUND)
		return 0;
	return read_count(row_value(r));
}

static enum idem_look look_new(struct event *ev, bool expired)
{
	/* An expired record makes room for the one that replaces it. */
	if (expired || count_of(ev, hash_key(ev->who_hash)) < IDEM_KEYS_MAX)
		return IDEM_NEW;
	sweep_expects(ev->space->sweep, 0);
	(void)detail_set(&ev->why, RC_OVERLOADED, "idem",
			 "%u keys are remembered for this caller at this "
			 "object, which is the bound",
			 IDEM_KEYS_MAX);
	ev->retry_after_ms = RETRY_AFTER_MS;
	return answer(ev, RC_OVERLOADED, OUTCOME_REFUSED);
}

static enum idem_look look_started(struct event *ev,
				   const struct idem_record *r,
				   uint64_t expires_ns)
{
	if (!ev->object->cls->resumes) {
		(void)detail_set(&ev->why, RC_UNKNOWN_OUTCOME, "idem",
				 "a call with this key began and its end is "
				 "not known");
		return answer(ev, RC_UNKNOWN_OUTCOME, OUTCOME_UNKNOWN);
	}
	ev->call_no = r->call_no;
	ev->resume = r->call_no + 1;
	memcpy(ev->locals, r->locals, sizeof(ev->locals));
	memcpy(ev->locals_base, r->locals, sizeof(ev->locals_base));
	ev->reply_rc = RC_AGAIN;
	/* A shorter window now does not end the first one early. */
	ev->idem_expires_ns = expires_ns;
	ev->recorded = true;
	ev->wrote = true;
	ev->dirty = r->dirty;
	return IDEM_RESUME;
}

static enum idem_look look_failed(struct event *ev, const struct idem_record *r)
{
	(void)snprintf(ev->why.field, sizeof(ev->why.field), "%.*s",
		       (int)r->field.n, (const char *)r->field.p);
	(void)snprintf(ev->why.text, sizeof(ev->why.text), "%.*s",
		       (int)r->text.n, (const char *)r->text.p);
	return answer(ev, r->rc, OUTCOME_UNKNOWN);
}

static enum idem_look look_record(struct event *ev, const struct row *row)
{
	struct idem_record r;
	enum rc rc = idem_read(row_value(row), &r);

	if (rc != RC_OK) {
		(void)detail_set(&ev->why, RC_INTERNAL, NULL,
				 "an idempotency record cannot be read: %s",
				 rc_text(rc));
		return answer(ev, RC_INTERNAL, OUTCOME_UNKNOWN);
	}
	if (!same_args(ev, r.args))
		return other_args(ev);
	switch (r.state) {
	case IDEM_STARTED:
		return look_started(ev, &r, row->expires_ns);
	case IDEM_FAILED:
		return look_failed(ev, &r);
	case IDEM_DONE:
		break;
	}
	pack_raw(&ev->result, r.answer.p, r.answer.n);
	return answer(ev, RC_OK, OUTCOME_DONE);
}

enum idem_look idem_look(struct event *ev, struct event **runner)
{
	uint64_t ns;
	struct row *r;
	bool found;

	if (idem_window(ev->object->cls, ev->idem_ms, &ns, &ev->why) != RC_OK)
		return answer(ev, RC_INVALID, OUTCOME_REFUSED);
	hash_event(ev);
	*runner = find_runner(ev);
	if (*runner != NULL)
		return same_args(ev, (*runner)->args_hash) ? IDEM_JOIN
							   : other_args(ev);
	if (!idem_at_hand(ev))
		return IDEM_LOAD;
	found = rows_find(&ev->object->rows, ROW_IDEM, hash_key(ev->idem_key),
			  &r) == ROWS_FOUND;
	if (MUTANT(idem_late) && found && r->mark > ev->space->gate.committed)
		return IDEM_NEW;
	if (!found || record_expired(ev, r))
		return look_new(ev, found);
	return look_record(ev, r);
}

/* ----------------------------------------------------------------- staging */

static enum rc stage_count(struct event *ev, struct pack_bytes who, int by)
{
	struct pack_w *w = &ev->space->res->scratch;
	uint64_t n = count_of(ev, who);

	n = by > 0 ? n + 1 : (n > 0 ? n - 1 : 0);
	if (n == 0)
		return stage_delete(ev->work, &ev->object->rows, ROW_IDEM_COUNT,
				    who, false);
	pack_w_reset(w);
	pack_array(w, 2);
	pack_u64(w, COUNT_VERSION);
	pack_u64(w, n);
	if (w->rc != RC_OK)
		return w->rc;
	return stage_put(ev->work, &ev->object->rows, ROW_IDEM_COUNT, who,
			 (struct pack_bytes){ w->p, w->n }, 0, false);
}

static enum rc fill_record(struct event *ev, enum idem_state state,
			   struct idem_record *r)
{
	*r = (struct idem_record){
		.state = state,
		.call_no = ev->call_no,
		.dirty = ev->dirty,
		.rc = ev->rc,
		.answer = { ev->result.p, ev->result.n },
		.field = { (const uint8_t *)ev->why.field,
			   strlen(ev->why.field) },
		.text = { (const uint8_t *)ev->why.text, strlen(ev->why.text) },
	};
	memcpy(r->args, ev->args_hash, HASH_BYTES);
	memcpy(r->who, ev->who_hash, HASH_BYTES);
	memcpy(r->locals, ev->locals, sizeof(r->locals));
	if (state == IDEM_DONE && r->answer.n > IDEM_ANSWER_BYTES_MAX)
		return detail_set(&ev->why, RC_INVALID, "idem",
				  "the answer has %zu bytes; with a key it may "
				  "have %u",
				  r->answer.n, IDEM_ANSWER_BYTES_MAX);
	return RC_OK;
}

enum rc idem_stage(struct event *ev, enum idem_state state)
{
	struct pack_w *w = &ev->space->res->scratch;
	struct pack_bytes key = hash_key(ev->idem_key);
	struct idem_record record;
	struct row *r;
	uint64_t window = 0;
	enum rc rc = fill_record(ev, state, &record);

	if (rc != RC_OK)
		return rc;
	/* It was checked when the event entered. */
	CHECK(idem_window(ev->object->cls, ev->idem_ms, &window, NULL) ==
	      RC_OK);
	if (ev->now_ns + window > ev->idem_expires_ns)
		ev->idem_expires_ns = ev->now_ns + window;
	pack_w_reset(w);
	idem_write(w, &record);
	if (w->rc != RC_OK)
		return w->rc;
	rc = stage_put(ev->work, &ev->object->rows, ROW_IDEM, key,
		       (struct pack_bytes){ w->p, w->n }, ev->idem_expires_ns,
		       false);
	if (rc != RC_OK ||
	    rows_find(&ev->object->rows, ROW_IDEM, key, &r) == ROWS_FOUND)
		return rc;
	return stage_count(ev, hash_key(ev->who_hash), 1);
}

enum rc idem_stage_removal(struct event *ev)
{
	struct pack_bytes key = hash_key(ev->idem_key);
	struct row *r;
	enum rc rc;

	if (rows_find(&ev->object->rows, ROW_IDEM, key, &r) != ROWS_FOUND)
		return RC_OK;
	rc = stage_delete(ev->work, &ev->object->rows, ROW_IDEM, key, false);
	if (rc != RC_OK)
		return rc;
	return stage_count(ev, hash_key(ev->who_hash), -1);
}

enum rc idem_stage_expired(struct event *ev, struct row *r)
{
	struct idem_record record;
	bool counted = r->key_n == HASH_BYTES &&
		       idem_read(row_value(r), &record) == RC_OK;
	enum rc rc;

	if (counted && want(ev, ROW_IDEM_COUNT, hash_key(record.who)))
		return RC_AGAIN;
	rc = stage_delete(ev->work, &ev->object->rows, ROW_IDEM, row_key(r),
			  false);
	if (rc != RC_OK || !counted)
		return rc;
	return stage_count(ev, hash_key(record.who), -1);
}
