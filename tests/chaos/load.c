/*
 * load - clients that call kv objects and write down what they were told, as
 * tests/README.md says ("Histories").
 *
 *	load --config FILE [--socket PATH]... [--clients N] [--objects N]
 *	     [--first N] [--seed N] [--history FILE]
 *
 * Every second client is one of the whole cluster, as an application's would
 * be; the others are each bound to one of the sockets, so that calls reach
 * owners and others alike and some clients lose the only node they know. A
 * client makes one call after the other until SIGTERM or SIGINT; then open
 * calls end and the program does. Two in three writes carry an idempotency key,
 * and one in sixteen repeats the last key that was answered: what it hears must
 * be the first answer. Prints a line of counts.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "client/check.h"
#include "client/holdfast.h"

#define CLIENTS_MAX 1024
#define SOCKETS_MAX 8
#define DEADLINE_MS 3000u
#define PAUSE_MS    5u /* After a refusal: no client spins. */

enum what { DO_GET, DO_PUT, DO_INCR, DO_CAS };
static const char *const names[] = { "get", "put", "incr", "cas" };

struct load;

struct client {
	struct load *load;
	struct holdfast *h;
	struct holdfast_args *args;
	uv_timer_t pause;
	uint32_t number;
	uint64_t id;
	uint64_t random;
	/* The call that is open, or that is repeated. */
	enum what what;
	uint32_t object;
	int64_t value;
	int64_t expect;
	char idem[48];
	bool keyed;    /* It has a key, and was answered. */
	int64_t *seen; /* Last seen value of each object; 0: none. */
	bool open;
};

struct load {
	uv_loop_t loop;
	uv_signal_t term;
	uv_signal_t intr;
	const char *config;
	const char *sockets[SOCKETS_MAX];
	size_t sockets_n;
	uint32_t clients_n;
	uint32_t objects;
	uint32_t first;
	uint64_t seed;
	FILE *history;
	bool stopping;
	uint32_t open;
	uint64_t by_end[3];
	struct client clients[CLIENTS_MAX];
};

_Noreturn static void give_up(const char *why)
{
	fprintf(stderr, "load: %s\n", why);
	exit(2);
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t draw(struct client *c, uint64_t n)
{
	uint64_t z = c->random += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (z ^ z >> 31) % n;
}

static void client_next(struct client *c);
static void load_end(struct load *l);

static void note_invoke(struct client *c)
{
	FILE *f = c->load->history;

	fprintf(f,
		"{\"at\":%" PRIu64 ",\"client\":%" PRIu32 ",\"id\":%" PRIu64
		",\"type\":\"invoke\",\"object\":\"kv/chaos-%" PRIu32
		"\",\"method\":\"%s\"",
		uv_hrtime(), c->number, c->id, c->object, names[c->what]);
	if (c->what == DO_PUT || c->what == DO_CAS)
		fprintf(f, ",\"value\":%" PRId64, c->value);
	if (c->what == DO_INCR)
		fprintf(f, ",\"by\":1");
	if (c->what == DO_CAS)
		fprintf(f, ",\"expect\":%" PRId64, c->expect);
	if (c->idem[0] != '\0')
		fprintf(f, ",\"idem\":\"%s\"", c->idem);
	fprintf(f, "}\n");
}

static void note_end(struct client *c, const char *type,
		     const struct holdfast_answer *a, bool valued,
		     int64_t value, int64_t rev)
{
	FILE *f = c->load->history;

	fprintf(f,
		"{\"at\":%" PRIu64 ",\"client\":%" PRIu32 ",\"id\":%" PRIu64
		",\"type\":\"%s\"",
		uv_hrtime(), c->number, c->id, type);
	if (valued)
		fprintf(f, ",\"value\":%" PRId64, value);
	if (rev > 0)
		fprintf(f, ",\"rev\":%" PRId64, rev);
	if (a->code != HOLDFAST_OK)
		fprintf(f, ",\"code\":\"%s\"", holdfast_code_name(a->code));
	if (a->code == HOLDFAST_OK && a->owner != NULL && a->owner[0] != '\0')
		fprintf(f,
			",\"shard\":%" PRIu32 ",\"term\":%" PRIu64
			",\"owner\":\"%s\"",
			a->shard, a->term, a->owner);
	fprintf(f, ",\"tries\":%" PRIu32 "}\n", a->tries);
}

static void client_ok(struct client *c, const struct holdfast_answer *a)
{
	int64_t value = 0;
	int64_t rev = 0;
	bool valued = holdfast_get_int(a, "value", &value) == HOLDFAST_OK;

	(void)holdfast_get_int(a, "rev", &rev);
	if (valued)
		c->seen[c->object] = value;
	else if (c->what != DO_GET)
		c->seen[c->object] = c->value;
	note_end(c, "ok", a, valued, value, rev);
	c->keyed = c->idem[0] != '\0';
	c->load->by_end[0]++;
}

/* What an object's state refuses is an answer about that state. */
static bool tells_state(const struct client *c, const struct holdfast_answer *a)
{
	return (c->what == DO_GET && a->code == HOLDFAST_NOT_FOUND) ||
	       (c->what == DO_CAS && a->code == HOLDFAST_CONFLICT &&
		strcmp(a->field != NULL ? a->field : "", "idem") != 0);
}

static void client_paused(uv_timer_t *t)
{
	client_next(t->data);
}

static void client_done(void *arg, const struct holdfast_answer *a)
{
	struct client *c = arg;
	bool answered = a->code == HOLDFAST_OK;

	c->open = false;
	c->load->open--;
	c->keyed = false;
	if (answered) {
		client_ok(c, a);
	} else if (tells_state(c, a)) {
		note_end(c, "ok", a, false, 0, 0);
		c->load->by_end[0]++;
		answered = true;
	} else if (a->outcome == HOLDFAST_REFUSED) {
		note_end(c, "fail", a, false, 0, 0);
		c->load->by_end[1]++;
	} else {
		note_end(c, "unknown", a, false, 0, 0);
		c->load->by_end[2]++;
	}
	if (c->load->stopping) {
		if (c->load->open == 0)
			load_end(c->load);
	} else if (answered) {
		client_next(c);
	} else {
		uv_timer_start(&c->pause, client_paused, PAUSE_MS, 0);
	}
}

/* What to do: mostly writes, each value once. */
static void client_choose(struct client *c)
{
	uint64_t what = draw(c, 8);

	c->object = c->load->first + (uint32_t)draw(c, c->load->objects);
	c->what = what < 4 ? DO_INCR : what < 6 ? DO_GET : DO_PUT;
	/* Values of puts are far from each other, so that increments on top of
	 * them tell whose they are. */
	c->value = (int64_t)c->number << 40 | (int64_t)c->id << 12;
	if (what == 7 && c->seen[c->object] != 0) {
		c->what = DO_CAS;
		c->expect = c->seen[c->object];
	}
	c->idem[0] = '\0';
	if (c->what != DO_GET && draw(c, 3) != 0)
		(void)snprintf(c->idem, sizeof(c->idem),
			       "%" PRIx64 "-%" PRIx32 "-%" PRIx64,
			       c->load->seed, c->number, c->id);
}

static void client_args(struct client *c)
{
	holdfast_args_reset(c->args);
	(void)holdfast_args_str(c->args, "key", "n");
	if (c->what == DO_CAS)
		(void)holdfast_args_int(c->args, "expect", c->expect);
	if (c->what == DO_PUT || c->what == DO_CAS)
		(void)holdfast_args_int(c->args, "value", c->value);
	if (c->what == DO_INCR)
		(void)holdfast_args_int(c->args, "by", 1);
}

static void client_next(struct client *c)
{
	char address[48];
	struct holdfast_request r = HOLDFAST_CALL(address, NULL);

	if (c->load->stopping)
		return;
	c->id++;
	if (!c->keyed || draw(c, 16) != 0)
		client_choose(c);
	(void)snprintf(address, sizeof(address), "kv/chaos-%" PRIu32,
		       c->object);
	client_args(c);
	r.method = names[c->what];
	r.args = c->args;
	r.deadline_ms = DEADLINE_MS;
	r.flags = HOLDFAST_META;
	if (c->idem[0] != '\0') {
		r.idem = c->idem;
		r.idem_bytes = strlen(c->idem);
	}
	note_invoke(c);
	c->open = true;
	c->load->open++;
	if (holdfast_call(c->h, &r, client_done, c, NULL) != HOLDFAST_OK)
		give_up(holdfast_why(c->h));
}

static void client_closed(void *arg)
{
	(void)arg;
}

static void pause_closed(uv_handle_t *h)
{
	(void)h;
}

static void load_end(struct load *l)
{
	uint32_t i;

	uv_close((uv_handle_t *)&l->term, pause_closed);
	uv_close((uv_handle_t *)&l->intr, pause_closed);
	for (i = 0; i < l->clients_n; i++) {
		uv_close((uv_handle_t *)&l->clients[i].pause, pause_closed);
		holdfast_close(l->clients[i].h, client_closed, NULL);
	}
}

static void load_stop(uv_signal_t *s, int number)
{
	struct load *l = s->data;

	(void)number;
	if (l->stopping)
		return;
	l->stopping = true;
	if (l->open == 0)
		load_end(l);
}

static void client_open(struct load *l, uint32_t i)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct client *c = &l->clients[i];

	c->load = l;
	c->number = l->first * CLIENTS_MAX + i;
	c->random = l->seed * 0x2545f4914f6cdd1dull + i;
	c->args = holdfast_args_new();
	c->seen = calloc(l->first + l->objects, sizeof(*c->seen));
	if (c->args == NULL || c->seen == NULL)
		give_up("no memory");
	uv_timer_init(&l->loop, &c->pause);
	c->pause.data = c;
	if (l->config != NULL && (i % 2 == 0 || l->sockets_n == 0)) {
		o.config = l->config;
	} else {
		o.socket = l->sockets[i / 2 % l->sockets_n];
		o.only = 1;
	}
	if (holdfast_open(&l->loop, &o, &c->h) != HOLDFAST_OK)
		give_up("a client cannot be opened");
}

static void arguments(struct load *l, int argc, char **argv)
{
	static const struct option options[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "socket", required_argument, NULL, 's' },
		{ "clients", required_argument, NULL, 'n' },
		{ "objects", required_argument, NULL, 'o' },
		{ "first", required_argument, NULL, 'f' },
		{ "seed", required_argument, NULL, 'r' },
		{ "history", required_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (o) {
		case 'c':
			l->config = optarg;
			break;
		case 's':
			if (l->sockets_n == SOCKETS_MAX)
				give_up("too many sockets");
			l->sockets[l->sockets_n++] = optarg;
			break;
		case 'n':
			l->clients_n = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'o':
			l->objects = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'f':
			l->first = (uint32_t)strtoul(optarg, NULL, 10);
			break;
		case 'r':
			l->seed = strtoull(optarg, NULL, 10);
			break;
		case 'h':
			l->history = fopen(optarg, "we");
			break;
		default:
			give_up("wrong arguments");
		}
	if ((l->config == NULL && l->sockets_n == 0) || l->clients_n == 0 ||
	    l->clients_n > CLIENTS_MAX || l->objects == 0 || l->history == NULL)
		give_up("wrong arguments");
}

int main(int argc, char **argv)
{
	static struct load l = { .clients_n = 32, .objects = 64, .seed = 1 };
	uint32_t i;

	l.history = stdout;
	arguments(&l, argc, argv);
	/* Whoever kills nodes reads along. */
	setvbuf(l.history, NULL, _IOLBF, 1u << 16);
	if (uv_loop_init(&l.loop) != 0)
		give_up("no loop");
	uv_signal_init(&l.loop, &l.term);
	uv_signal_init(&l.loop, &l.intr);
	l.term.data = &l;
	l.intr.data = &l;
	uv_signal_start(&l.term, load_stop, SIGTERM);
	uv_signal_start(&l.intr, load_stop, SIGINT);
	for (i = 0; i < l.clients_n; i++)
		client_open(&l, i);
	for (i = 0; i < l.clients_n; i++)
		client_next(&l.clients[i]);
	uv_run(&l.loop, UV_RUN_DEFAULT);
	CHECK(l.open == 0);
	fflush(l.history);
	fprintf(stderr,
		"%" PRIu64 " ok, %" PRIu64 " refused, %" PRIu64 " unknown\n",
		l.by_end[0], l.by_end[1], l.by_end[2]);
	for (i = 0; i < l.clients_n; i++) {
		holdfast_args_free(l.clients[i].args);
		free(l.clients[i].seen);
	}
	return ferror(l.history) ? 2 : 0;
}
