/*
 * The format (MessagePack-RPC), every message one MessagePack array:
 *
 *	request        [0, id, method, params]   id a uint of 32 bits,
 *	response       [1, id, error, result]    method a str or bin,
 *	notification   [2, method, params]       params an array
 *
 * Messages follow each other without anything between them.
 */
#include "client/proto/frame.h"

#include <string.h>

void frame_reader_init(struct frame_reader *fr, size_t frame_bytes_max)
{
	*fr = (struct frame_reader){
		.bounds = {
			.depth_max = PACK_DEPTH_MAX,
			.elements_max = PACK_ELEMENTS_MAX,
			.bytes_max = frame_bytes_max,
		},
	};
}

static void scan_restart(struct frame_reader *fr)
{
	fr->scan.at = 0;
	fr->scan.depth = 0;
	fr->scan.elements = 0;
}

static bool begins_array(uint8_t b)
{
	return (b & 0xf0) == 0x90 || b == 0xdc || b == 0xdd;
}

static enum rc get_method(struct pack_r *r, struct frame *f, struct detail *why)
{
	struct pack_bytes name;

	if (pack_get_bytes(r, &name) != RC_OK)
		return detail_set(why, RC_INVALID, "method",
				  "the method's name must be str or bin");
	if (name.n > FRAME_METHOD_BYTES_MAX)
		return detail_set(why, RC_INVALID, "method",
				  "the method's name is longer than %d bytes",
				  FRAME_METHOD_BYTES_MAX);
	f->method = name;
	return RC_OK;
}

/* What is left in `r` is one object: the scan has counted. */
static struct pack_bytes rest(const struct pack_r *r)
{
	return (struct pack_bytes){ r->at, (size_t)(r->end - r->at) };
}

static enum rc get_params(struct pack_r *r, struct frame *f, struct detail *why)
{
	if (!begins_array(*r->at))
		return detail_set(why, RC_INVALID, "params",
				  "params must be an array");
	f->params = rest(r);
	return RC_OK;
}

static enum rc get_id(struct pack_r *r, struct frame *f, struct detail *why)
{
	uint64_t id;

	if (pack_get_u64(r, &id) != RC_OK || id > UINT32_MAX)
		return detail_set(why, RC_INVALID, "id",
				  "the id must be an integer from 0 to %u",
				  UINT32_MAX);
	f->id = (uint32_t)id;
	return RC_OK;
}

static enum rc bad_length(const char *what, uint32_t is, uint32_t should,
			  struct detail *why)
{
	return detail_set(why, RC_INVALID, NULL,
			  "a %s is an array of %u elements, not of %u", what,
			  should, is);
}

/* `*answerable`: the id is good, whatever comes after it. */
static enum rc request(struct pack_r *r, uint32_t n, struct frame *f,
		       bool *answerable, struct detail *why)
{
	enum rc rc;

	if (n < 2)
		return bad_length("request", n, 4, why);
	rc = get_id(r, f, why);
	if (rc != RC_OK)
		return rc;
	*answerable = true;
	if (n != 4)
		return bad_length("request", n, 4, why);
	rc = get_method(r, f, why);
	if (rc != RC_OK)
		return rc;
	return get_params(r, f, why);
}

static enum rc response(struct pack_r *r, uint32_t n, struct frame *f,
			struct detail *why)
{
	enum rc rc;

	if (n != 4)
		return bad_length("response", n, 4, why);
	rc = get_id(r, f, why);
	if (rc != RC_OK)
		return rc;
	rc = pack_skip(r, &f->error);
	if (rc != RC_OK)
		return RC_INVALID;
	f->result = rest(r);
	return RC_OK;
}

static enum rc notification(struct pack_r *r, uint32_t n, struct frame *f,
			    struct detail *why)
{
	enum rc rc;

	if (n != 3)
		return bad_length("notification", n, 3, why);
	rc = get_method(r, f, why);
	if (rc != RC_OK)
		return rc;
	return get_params(r, f, why);
}

/* One whole object that pack_check() has passed. */
static enum rc envelope(struct pack_bytes message, struct frame *f,
			bool *answerable, struct detail *why)
{
	struct pack_r r = pack_reader(message.p, message.n);
	uint64_t kind;
	uint32_t n;

	if (pack_get_array(&r, &n) != RC_OK || n == 0 ||
	    pack_get_u64(&r, &kind) != RC_OK || kind > FRAME_NOTIFY)
		return detail_set(why, RC_INVALID, NULL,
				  "a message begins with 0 (request), 1 "
				  "(response) or 2 (notification)");
	f->kind = (enum frame_kind)kind;
	switch (f->kind) {
	case FRAME_REQUEST:
		return request(&r, n, f, answerable, why);
	case FRAME_RESPONSE:
		return response(&r, n, f, why);
	case FRAME_NOTIFY:
		break;
	}
	return notification(&r, n, f, why);
}

enum rc frame_next(struct frame_reader *fr, const uint8_t *p, size_t n,
		   struct frame *f, size_t *used, struct detail *why)
{
	bool answerable = false;
	size_t size = 0;
	enum rc rc;

	*used = 0;
	if (n > 0 && !begins_array(p[0]))
		return detail_set(why, RC_INVALID, NULL,
				  "a message must be a MessagePack array, and "
				  "this begins with byte 0x%02x",
				  p[0]);
	rc = pack_check(&fr->scan, p, n, &fr->bounds, &size);
	if (rc == RC_AGAIN)
		return rc;
	if (rc != RC_OK)
		return detail_set(why, RC_INVALID, NULL,
				  "byte %zu of a message is no MessagePack, or "
				  "claims more than %zu bytes, %u levels or %u "
				  "elements",
				  fr->scan.at, fr->bounds.bytes_max,
				  fr->bounds.depth_max,
				  fr->bounds.elements_max);
	memset(f, 0, sizeof(*f));
	rc = envelope((struct pack_bytes){ p, size }, f, &answerable, why);
	if (rc == RC_OK || answerable) {
		*used = size;
		scan_restart(fr);
	}
	if (rc != RC_OK)
		f->method = (struct pack_bytes){ NULL, 0 };
	return rc;
}

/* ---------------------------------------------------------------- writing */

void frame_request(struct pack_w *w, uint32_t id, const char *method,
		   size_t method_bytes)
{
	pack_array(w, 4);
	pack_u64(w, FRAME_REQUEST);
	pack_u64(w, id);
	pack_str(w, method, method_bytes);
}

void frame_response(struct pack_w *w, uint32_t id)
{
	pack_array(w, 4);
	pack_u64(w, FRAME_RESPONSE);
	pack_u64(w, id);
}

void frame_notify(struct pack_w *w, const char *method, size_t method_bytes)
{
	pack_array(w, 3);
	pack_u64(w, FRAME_NOTIFY);
	pack_str(w, method, method_bytes);
}

/* ----------------------------------------------------------------- errors */

static void put_text(struct pack_w *w, const char *key, struct pack_bytes text)
{
	if (text.n == 0)
		return;
	pack_cstr(w, key);
	pack_str(w, (const char *)text.p, text.n);
}

void frame_error_write(struct pack_w *w, const struct frame_error *e)
{
	enum rc code =
		rc_is_wire(e->code) && e->code != RC_OK ? e->code : RC_INTERNAL;
	uint32_t keys = 3;

	keys += e->message.n > 0;
	keys += e->request_id.n > 0;
	keys += e->retry_after_ms >= 0;
	keys += e->field.n > 0;
	keys += e->owner.n > 0;
	keys += e->has_shard;
	pack_map(w, keys);
	pack_cstr(w, "code");
	pack_cstr(w, rc_name(code));
	pack_cstr(w, "http");
	pack_i64(w, rc_http(code));
	pack_cstr(w, "outcome");
	pack_cstr(w, outcome_name(e->outcome));
	put_text(w, "message", e->message);
	put_text(w, "request_id", e->request_id);
	if (e->retry_after_ms >= 0) {
		pack_cstr(w, "retry_after_ms");
		pack_i64(w, e->retry_after_ms);
	}
	put_text(w, "field", e->field);
	put_text(w, "owner", e->owner);
	if (e->has_shard) {
		pack_cstr(w, "shard");
		pack_u64(w, e->shard);
	}
}

/* What a pair of an error map says so far. */
struct error_read {
	struct frame_error *e;
	bool outcome_known;
};

static bool key_is(struct pack_bytes key, const char *s)
{
	return pack_bytes_eq(key, s, strlen(s));
}

static void read_code(struct error_read *er, struct pack_bytes name)
{
	if (rc_parse((const char *)name.p, name.n, &er->e->code) != RC_OK ||
	    er->e->code == RC_OK)
		er->e->code = RC_INTERNAL;
	else if (!er->outcome_known)
		er->e->outcome = rc_outcome(er->e->code);
}

static void read_outcome(struct error_read *er, struct pack_bytes name)
{
	enum outcome o;

	for (o = OUTCOME_DONE; o <= OUTCOME_UNKNOWN; o++) {
		if (key_is(name, outcome_name(o))) {
			er->e->outcome = o;
			er->outcome_known = true;
		}
	}
}

static void read_shard(struct frame_error *e, struct pack_r *r)
{
	uint64_t shard;

	if (pack_get_u64(r, &shard) != RC_OK || shard > UINT32_MAX)
		return;
	e->shard = (uint32_t)shard;
	e->has_shard = true;
}

static void read_pair(struct error_read *er, struct pack_bytes key,
		      struct pack_bytes value)
{
	struct pack_r r = pack_reader(value.p, value.n);
	struct frame_error *e = er->e;
	struct pack_bytes s;
	int64_t ms;

	if (key_is(key, "retry_after_ms")) {
		if (pack_get_i64(&r, &ms) == RC_OK && ms >= 0)
			e->retry_after_ms = ms;
		return;
	}
	if (key_is(key, "shard")) {
		read_shard(e, &r);
		return;
	}
	if (pack_get_bytes(&r, &s) != RC_OK)
		return;
	if (key_is(key, "code"))
		read_code(er, s);
	else if (key_is(key, "outcome"))
		read_outcome(er, s);
	else if (key_is(key, "message"))
		e->message = s;
	else if (key_is(key, "request_id"))
		e->request_id = s;
	else if (key_is(key, "field"))
		e->field = s;
	else if (key_is(key, "owner"))
		e->owner = s;
}

static enum rc read_pairs(struct pack_r *r, uint32_t n, struct error_read *er)
{
	struct pack_bytes key, value;
	struct pack_bytes name;
	struct pack_r k;

	for (; n > 0; n--) {
		if (pack_skip(r, &key) != RC_OK ||
		    pack_skip(r, &value) != RC_OK)
			return RC_INVALID;
		k = pack_reader(key.p, key.n);
		if (pack_get_bytes(&k, &name) == RC_OK)
			read_pair(er, name, value);
	}
	return RC_OK;
}

enum rc frame_error_read(struct pack_bytes error, struct frame_error *e)
{
	struct pack_r r = pack_reader(error.p, error.n);
	struct error_read er = { .e = e };
	struct pack_r whole = r;
	uint32_t n;

	*e = (struct frame_error){
		.code = RC_INTERNAL,
		.outcome = OUTCOME_UNKNOWN,
		.retry_after_ms = -1,
	};
	if (pack_skip(&whole, NULL) != RC_OK || whole.at != whole.end)
		return RC_INVALID;
	if (pack_get_map(&r, &n) == RC_OK)
		return read_pairs(&r, n, &er);
	(void)pack_get_bytes(&r, &e->message);
	return RC_OK;
}
