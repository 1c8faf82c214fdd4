/*
 * judge - is there an order of all calls in which every answer is right?
 *
 *	judge FILE...
 *
 * Reads histories of real runs, one JSON object a line as tests/README.md says
 * ("Histories"), and has each object's judged by sim/check.c. Prints one line
 * per object that is wrong or undecided and a line of counts. Exit code 0: all
 * are right; 1: one is not; 2: that is no history.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/proto/json.h"
#include "node/base/check.h"
#include "node/base/limits.h"
#include "tests/sim/check.h"
#include "tests/sim/memdisk.h"

#define LINE_BYTES_MAX 4096u
#define OBJECTS_MAX    65536u
#define TEXT_MAX       128u

/* One line, as far as it was there. */
struct line {
	uint64_t at;
	uint64_t client;
	uint64_t id;
	char type[TEXT_MAX];
	char object[TEXT_MAX];
	char method[TEXT_MAX];
	char code[TEXT_MAX];
	char idem[TEXT_MAX];
	bool has_value;
	bool nil;
	int64_t value;
	bool expect_nil;
	int64_t expect;
	int64_t by;
	uint64_t rev;
	bool strange; /* A field of another type. */
};

struct object {
	char name[TEXT_MAX];
	struct kv_history *h;
};

/* A client's open call, and its lane: a new one after each unknown outcome,
 * because that call may still take effect after later ones. */
struct client {
	uint64_t number;
	uint64_t id;
	struct kv_call *open;
	uint32_t lane;
};

struct judge {
	struct object *objects;
	size_t objects_n;
	struct client *clients;
	size_t clients_n;
	uint32_t lanes;
	uint64_t calls;
	uint64_t by_type[3];
};

_Noreturn static void refuse(const char *file, size_t n, const char *why)
{
	fprintf(stderr, "judge: %s:%zu: %s\n", file, n, why);
	exit(2);
}

static void text_copy(struct pack_r *r, char out[TEXT_MAX])
{
	struct pack_bytes s;

	if (pack_get_bytes(r, &s) == RC_OK)
		(void)snprintf(out, TEXT_MAX, "%.*s", (int)s.n,
			       (const char *)s.p);
	else
		(void)pack_skip(r, NULL);
}

/* Anything but an integer or null would be taken for 0: that is no history. */
static void value_copy(struct pack_r *r, struct line *l, bool *nil, int64_t *v)
{
	*nil = pack_get_nil(r) == RC_OK;
	if (*nil || pack_get_i64(r, v) == RC_OK)
		return;
	l->strange = true;
	(void)pack_skip(r, NULL);
}

static void number_copy(struct pack_r *r, struct line *l, uint64_t *v)
{
	if (pack_get_u64(r, v) == RC_OK)
		return;
	l->strange = true;
	(void)pack_skip(r, NULL);
}

static void field_read(struct line *l, struct pack_bytes key, struct pack_r *r)
{
	static const struct {
		const char *name;
		size_t at;
	} texts[] = {
		{ "type", offsetof(struct line, type) },
		{ "object", offsetof(struct line, object) },
		{ "method", offsetof(struct line, method) },
		{ "code", offsetof(struct line, code) },
		{ "idem", offsetof(struct line, idem) },
	}, numbers[] = {
		{ "at", offsetof(struct line, at) },
		{ "client", offsetof(struct line, client) },
		{ "id", offsetof(struct line, id) },
		{ "rev", offsetof(struct line, rev) },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(texts); i++)
		if (pack_bytes_eq(key, texts[i].name, strlen(texts[i].name))) {
			text_copy(r, (char *)l + texts[i].at);
			return;
		}
	for (i = 0; i < ARRAY_LEN(numbers); i++)
		if (pack_bytes_eq(key, numbers[i].name,
				  strlen(numbers[i].name))) {
			number_copy(r, l,
				    (uint64_t *)(void *)((char *)l +
							 numbers[i].at));
			return;
		}
	if (pack_bytes_eq(key, "value", 5)) {
		l->has_value = true;
		value_copy(r, l, &l->nil, &l->value);
	} else if (pack_bytes_eq(key, "expect", 6)) {
		value_copy(r, l, &l->expect_nil, &l->expect);
	} else if (pack_bytes_eq(key, "by", 2)) {
		bool nil;

		value_copy(r, l, &nil, &l->by);
	} else {
		(void)pack_skip(r, NULL);
	}
}

static bool line_read(const char *text, struct line *l)
{
	struct pack_bytes key;
	struct pack_r r;
	struct pack_w w;
	uint32_t n = 0;
	uint32_t i;
	bool ok;

	*l = (struct line){ .by = 1 };
	pack_w_init(&w, LINE_BYTES_MAX * 2);
	ok = json_to_pack(text, strlen(text), &w, NULL) == RC_OK;
	r = pack_reader(w.p, w.n);
	ok = ok && pack_get_map(&r, &n) == RC_OK;
	for (i = 0; ok && i < n; i++) {
		ok = pack_get_bytes(&r, &key) == RC_OK;
		if (ok)
			field_read(l, key, &r);
	}
	pack_w_release(&w);
	return ok && !l->strange && l->at > 0 && l->type[0] != '\0';
}

static struct object *object_of(struct judge *j, const char *name)
{
	struct object *o;
	size_t i;

	for (i = 0; i < j->objects_n; i++)
		if (strcmp(j->objects[i].name, name) == 0)
			return &j->objects[i];
	if (j->objects_n == OBJECTS_MAX)
		return NULL;
	o = &j->objects[j->objects_n++];
	(void)snprintf(o->name, sizeof(o->name), "%s", name);
	o->h = kv_history_new(name, 1);
	return o;
}

static struct client *client_of(struct judge *j, uint64_t number)
{
	struct client *c;
	size_t i;

	for (i = 0; i < j->clients_n; i++)
		if (j->clients[i].number == number)
			return &j->clients[i];
	j->clients = sim_realloc(j->clients,
				 (j->clients_n + 1) * sizeof(*j->clients));
	c = &j->clients[j->clients_n++];
	*c = (struct client){ .number = number, .lane = j->lanes++ };
	return c;
}

/* FNV-1a, 64 bits: a number for an idempotency key. */
static uint64_t number_of(const char *text)
{
	uint64_t h = 14695981039346656037ull;

	for (; *text != '\0'; text++)
		h = (h ^ (uint8_t)*text) * 1099511628211ull;
	return h | 1;
}

static bool op_asked(const struct line *l, struct kv_op *op)
{
	if (strcmp(l->method, "get") == 0) {
		op->kind = KV_GET;
	} else if (strcmp(l->method, "put") == 0) {
		op->kind = KV_PUT;
		op->value = (struct kv_value){ KV_INT, (uint64_t)l->value };
	} else if (strcmp(l->method, "incr") == 0) {
		op->kind = KV_INCR;
		op->by = l->by;
	} else if (strcmp(l->method, "cas") == 0) {
		op->kind = KV_CAS;
		op->value = (struct kv_value){ KV_INT, (uint64_t)l->value };
		op->expect = l->expect_nil
				     ? (struct kv_value){ KV_NONE, 0 }
				     : (struct kv_value){ KV_INT,
							  (uint64_t)l->expect };
	} else {
		return false;
	}
	return true;
}

static const char *invoked(struct judge *j, const struct line *l)
{
	struct client *c = client_of(j, l->client);
	struct object *o = object_of(j, l->object);
	struct kv_call *call;

	if (c->open != NULL)
		return "a client has one call at a time";
	if (o == NULL || l->object[0] == '\0')
		return "which object?";
	call = kv_history_add(o->h, 1);
	if (!op_asked(l, &call->ops[0]))
		return "method is get, put, incr or cas";
	call->kind = call->ops[0].kind;
	call->lane = c->lane;
	call->begun = l->at;
	call->stamp_lo = l->at;
	call->end = CALL_UNKNOWN;
	if (l->idem[0] != '\0') {
		call->idem = number_of(l->idem);
		call->args = (uint64_t)call->kind << 56 ^
			     (uint64_t)l->value * 31 ^ (uint64_t)l->by * 7;
		call->window_ns = (uint64_t)IDEM_WINDOW_DEFAULT_MS * 1000000u;
	}
	c->open = call;
	c->id = l->id;
	j->calls++;
	return NULL;
}

static void answered(struct kv_call *call, const struct line *l)
{
	struct kv_op *op = &call->ops[0];

	call->end = CALL_DONE;
	op->rev = l->rev;
	if (call->kind == KV_INCR)
		op->sum = l->value;
	if (call->kind == KV_GET) {
		op->value = (struct kv_value){ KV_INT, (uint64_t)l->value };
		if (!l->has_value || l->nil) {
			call->end = CALL_FAILED;
			call->why = KV_WHY_ABSENT;
		}
	}
	if (call->kind == KV_CAS && strcmp(l->code, "CONFLICT") == 0) {
		call->end = CALL_FAILED;
		call->why = l->expect_nil ? KV_WHY_EXPECT_ABSENT
					  : KV_WHY_EXPECT_OTHER;
	}
}

static const char *ended(struct judge *j, const struct line *l)
{
	struct client *c = client_of(j, l->client);
	struct kv_call *call = c->open;

	if (call == NULL || c->id != l->id)
		return "the end of a call that is not open";
	c->open = NULL;
	if (l->at < call->begun)
		return "a call that ends before it begins";
	if (strcmp(l->type, "unknown") == 0) {
		c->lane = j->lanes++;
		j->by_type[2]++;
		return NULL;
	}
	call->ended = l->at;
	call->stamp_hi = l->at;
	if (strcmp(l->type, "fail") == 0) {
		call->end = CALL_REFUSED;
		j->by_type[1]++;
	} else if (strcmp(l->type, "ok") == 0) {
		answered(call, l);
		j->by_type[0]++;
	} else {
		return "type is invoke, ok, fail or unknown";
	}
	return NULL;
}

static void file_read(struct judge *j, const char *name)
{
	char text[LINE_BYTES_MAX];
	FILE *f = fopen(name, "re");
	const char *wrong;
	struct line l;
	size_t n = 0;

	if (f == NULL)
		refuse(name, 0, "cannot be read");
	while (fgets(text, sizeof(text), f) != NULL) {
		n++;
		text[strcspn(text, "\n")] = '\0';
		if (!line_read(text, &l))
			refuse(name, n, "not a line of a history");
		wrong = strcmp(l.type, "invoke") == 0 ? invoked(j, &l)
						      : ended(j, &l);
		if (wrong != NULL)
			refuse(name, n, wrong);
	}
	(void)fclose(f);
}

int main(int argc, char **argv)
{
	struct judge j = { .objects = sim_alloc(OBJECTS_MAX *
						sizeof(struct object)) };
	struct breach why;
	size_t bad = 0;
	size_t open = 0;
	size_t i;

	if (argc < 2)
		refuse("-", 0, "which files?");
	for (i = 1; i < (size_t)argc; i++)
		file_read(&j, argv[i]);
	for (i = 0; i < j.objects_n; i++) {
		struct object *o = &j.objects[i];

		memset(&why, 0, sizeof(why));
		switch (kv_history_check(o->h, &why)) {
		case VERDICT_GOOD:
			break;
		case VERDICT_BAD:
			bad++;
			printf("%s: %s: %s\n", o->name, why.invariant,
			       why.text);
			break;
		case VERDICT_UNDECIDED:
			open++;
			printf("%s: undecided\n", o->name);
			break;
		}
		kv_history_free(o->h);
	}
	printf("%" PRIu64 " calls on %zu objects: %" PRIu64 " ok, %" PRIu64
	       " refused, %" PRIu64 " unknown; %zu wrong, %zu undecided\n",
	       j.calls, j.objects_n, j.by_type[0], j.by_type[1], j.by_type[2],
	       bad, open);
	free(j.objects);
	free(j.clients);
	return bad > 0 || open > 0;
}
