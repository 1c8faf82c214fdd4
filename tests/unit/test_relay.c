#include "objects/class.h"

#include "objects/idem.h"
#include "objects/space.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/runner.h"

/* ------------------------------------------------- calls between the objects
 */

/* What a nested call needs while it is under way. */
struct nest {
	struct fake_event *e; /* NULL: it is over, or was never made. */
	struct chain chain;
};
static struct nest nests[FAKE_CALLS_MAX];
static size_t nests_n;

static struct fake_event *run_of(struct fake *f, const char *name,
				 const struct pack_w *args)
{
	struct fake_event *e = fake_event(f, &class_relay, name, "run");

	fake_event_args(e, args->p, args->n);
	EXPECT_UINT(e->ev.args.present, 1);
	return e;
}

/* The call that an event's nested describes, to "relay/NAME". */
static void make_nested(struct fake *f, size_t i)
{
	struct event *outer = f->calls[i].ev;
	struct nest *n = &nests[i];
	const char *name = strchr(f->calls[i].address, '/');

	EXPECT_NOT_NULL(name);
	n->e = fake_event(f, &class_relay, name + 1, f->calls[i].method);
	fake_event_args(n->e, outer->nested->args.p, outer->nested->args.n);
	n->chain = (struct chain){ .n = 0 };
	if (outer->chain != NULL)
		n->chain = *outer->chain;
	EXPECT_TRUE(n->chain.n < CALL_DEPTH_MAX);
	n->chain.root_stamp = outer->root_stamp;
	n->chain.at[n->chain.n].oid = outer->oid;
	n->chain.at[n->chain.n].same_tenant_as_next = true;
	(void)snprintf(n->chain.at[n->chain.n].address,
		       sizeof(n->chain.at[0].address), "relay/%.*s",
		       (int)outer->name.n, (const char *)outer->name.p);
	n->chain.n++;
	n->e->ev.chain = &n->chain;
	n->e->ev.root_stamp = outer->root_stamp;
	if (f->calls[i].keyed) {
		memcpy(n->e->idem, f->calls[i].key, 16);
		n->e->ev.idem =
			(struct pack_bytes){ (uint8_t *)n->e->idem, 16 };
		n->e->ev.flags |= EVENT_KEYED;
	}
	fake_send(f, n->e);
}

/* Make, drop and answer nested calls until nothing moves any more. Time does
 * not go on. */
static void settle(struct fake *f)
{
	bool moved = true;
	struct fake_event *e;
	enum rc rc;
	size_t i;

	while (moved) {
		moved = false;
		fake_go(f);
		for (; nests_n < f->calls_n; nests_n++) {
			nests[nests_n].e = NULL;
			if (f->calls[nests_n].ev != NULL)
				make_nested(f, nests_n);
			moved = true;
		}
		for (i = 0; i < nests_n; i++) {
			e = nests[i].e;
			if (e == NULL || (f->calls[i].ev != NULL && !e->done))
				continue;
			moved = true;
			nests[i].e = NULL;
			if (f->calls[i].ev == NULL && !e->done) {
				event_cancel(&e->ev, RC_CANCELLED);
				fake_turn(f);
				EXPECT_TRUE(e->done);
				fake_event_free(e);
				continue;
			}
			rc = e->ev.outcome == OUTCOME_UNKNOWN
				     ? RC_UNKNOWN_OUTCOME
				     : e->ev.rc;
			if (f->calls[i].ev != NULL)
				fake_reply(
					f, i, rc,
					(struct pack_bytes){ e->ev.result.p,
							     e->ev.result.n },
					&e->ev.why);
			fake_event_free(e);
		}
	}
}

/* Calls that are over make room for more. */
static void forget_calls(struct fake *f)
{
	size_t i;

	for (i = 0; i < f->calls_n; i++)
		if (f->calls[i].ev != NULL ||
		    (i < nests_n && nests[i].e != NULL))
			return;
	f->calls_n = 0;
	nests_n = 0;
}

static struct fake *new_fake(void)
{
	nests_n = 0;
	return fake_new(NULL);
}

/* --------------------------------------------------------------------- steps
 */

static void begin(struct pack_w *w, uint32_t steps)
{
	pack_w_init(w, 65536);
	pack_map(w, 1);
	pack_cstr(w, "steps");
	pack_array(w, steps);
}

static void step_put(struct pack_w *w, const char *key, const char *value)
{
	pack_array(w, 3);
	pack_cstr(w, "put");
	pack_cstr(w, key);
	pack_cstr(w, value);
}

static void step_add(struct pack_w *w, const char *key, int64_t by)
{
	pack_array(w, 3);
	pack_cstr(w, "add");
	pack_cstr(w, key);
	pack_i64(w, by);
}

static void step_wait(struct pack_w *w, uint64_t ms)
{
	pack_array(w, 2);
	pack_cstr(w, "wait");
	pack_u64(w, ms);
}

static void step_fail(struct pack_w *w, const char *code)
{
	pack_array(w, 2);
	pack_cstr(w, "fail");
	pack_cstr(w, code);
}

/* Its arguments follow: begin_nested(), then steps. */
static void step_call(struct pack_w *w, const char *how, const char *address)
{
	pack_array(w, 4);
	pack_cstr(w, how);
	pack_cstr(w, address);
	pack_cstr(w, "run");
}

static void begin_nested(struct pack_w *w, uint32_t steps)
{
	pack_map(w, 1);
	pack_cstr(w, "steps");
	pack_array(w, steps);
}

static struct fake_event *send_keyed(struct fake *f, const char *name,
				     struct pack_w *w, const char *key)
{
	struct fake_event *e = run_of(f, name, w);

	pack_w_release(w);
	if (key != NULL)
		fake_event_key(e, key);
	fake_send(f, e);
	return e;
}

static struct fake_event *run(struct fake *f, const char *name,
			      struct pack_w *w)
{
	struct fake_event *e = send_keyed(f, name, w, NULL);

	settle(f);
	return e;
}

static void expect_result(struct fake_event *e, const char *bytes, size_t n)
{
	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, RC_OK);
	EXPECT_UINT(e->ev.result.n, n);
	EXPECT_MEM(e->ev.result.p, bytes, n);
	fake_event_free(e);
}

static void expect_error(struct fake_event *e, enum rc rc)
{
	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, rc);
	fake_event_free(e);
}

/* The value of `key` in a relay, 0 when there is none. */
static int64_t value_of(struct fake *f, const char *name, const char *key)
{
	struct fake_event *e = fake_event(f, &class_relay, name, "get");
	struct pack_bytes k;
	struct pack_r r;
	int64_t v = 0;
	int64_t n;
	uint32_t pairs;

	fake_send(f, e);
	fake_go(f);
	EXPECT_TRUE(e->done);
	EXPECT_RC(e->ev.rc, RC_OK);
	r = pack_reader(e->ev.result.p, e->ev.result.n);
	EXPECT_RC(pack_get_map(&r, &pairs), RC_OK);
	while (pairs-- > 0) {
		EXPECT_RC(pack_get_str(&r, &k), RC_OK);
		EXPECT_RC(pack_get_i64(&r, &n), RC_OK);
		if (pack_bytes_eq(k, key, strlen(key)))
			v = n;
	}
	fake_event_free(e);
	return v;
}

TEST(steps_are_carried_out_in_order)
{
	struct fake *f = new_fake();
	struct pack_w w;

	begin(&w, 4);
	step_add(&w, "n", 5);
	step_put(&w, "x", "y");
	step_add(&w, "n", -2);
	step_wait(&w, 10);
	{
		struct fake_event *e = run(f, "a", &w);

		EXPECT_FALSE(e->done);
		fake_advance(f, 20);
		settle(f);
		expect_result(e, "\x94\x05\xc0\x03\xc0", 5);
	}
	fake_free(f);
}

TEST(what_is_no_step_is_invalid_and_nothing_happens)
{
	static const struct {
		const char *bytes;
		size_t n;
	} bad[] = {
		{ "\x81\xa5steps\x91\xc0", 9 },
		{ "\x81\xa5steps\x91\x90", 9 },
		{ "\x81\xa5steps\x91\x91\xa3put", 13 },
		{ "\x81\xa5steps\x91\x91\xa4jump", 14 },
		{ "\x81\xa5steps\x91\x92\xa4wait\xff", 15 },
		{ "\x81\xa5steps\x91\x92\xa4\x66\x61il\xa2no", 17 },
		{ "\x81\xa5steps\x92\x93\xa3put\xa1k\x01\xc0", 17 },
	};
	struct fake *f = new_fake();
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fake_event *e = fake_event(f, &class_relay, "a", "run");

		runner_context("case %zu", i);
		fake_event_args(e, bad[i].bytes, bad[i].n);
		fake_send(f, e);
		settle(f);
		expect_error(e, RC_INVALID);
	}
	EXPECT_UINT(f->units_all, 0);
	fake_free(f);
}

TEST(get_shows_the_rows_and_destroy_takes_them)
{
	struct fake *f = new_fake();
	struct fake_event *e;
	struct pack_w w;

	begin(&w, 2);
	step_put(&w, "b", "2");
	step_put(&w, "a", "1");
	expect_result(run(f, "a", &w), "\x92\xc0\xc0", 3);
	e = fake_event(f, &class_relay, "a", "get");
	fake_send(f, e);
	settle(f);
	expect_result(e,
		      "\x82\xa1"
		      "a\xa1"
		      "1\xa1"
		      "b\xa1"
		      "2",
		      9);
	e = fake_event(f, &class_relay, "a", "destroy");
	fake_send(f, e);
	settle(f);
	expect_result(e, "\x80", 1);
	EXPECT_INT(value_of(f, "a", "a"), 0);
	fake_free(f);
}

TEST(a_call_goes_through_several_objects)
{
	struct fake *f = new_fake();
	struct pack_w w;

	begin(&w, 2);
	step_add(&w, "n", 1);
	step_call(&w, "call", "relay/b");
	begin_nested(&w, 2);
	step_add(&w, "n", 2);
	step_call(&w, "call", "relay/c");
	begin_nested(&w, 1);
	step_add(&w, "n", 3);
	expect_result(run(f, "a", &w), "\x92\x01\x92\x02\x91\x03", 6);
	EXPECT_INT(value_of(f, "a", "n"), 1);
	EXPECT_INT(value_of(f, "b", "n"), 2);
	EXPECT_INT(value_of(f, "c", "n"), 3);
	fake_free(f);
}

TEST(an_error_on_the_way_ends_the_run_or_is_shown)
{
	struct fake *f = new_fake();
	struct fake_event *e;
	struct pack_w w;

	begin(&w, 1);
	step_call(&w, "call", "relay/b");
	begin_nested(&w, 1);
	step_fail(&w, "LIMITED");
	e = run(f, "a", &w);
	EXPECT_STR(e->ev.why.text, "as it was told");
	expect_error(e, RC_LIMITED);
	begin(&w, 2);
	step_call(&w, "try", "relay/b");
	begin_nested(&w, 1);
	step_fail(&w, "LIMITED");
	step_add(&w, "n", 1);
	expect_result(run(f, "a", &w), "\x92\xa7LIMITED\x01", 10);
	fake_free(f);
}

TEST(a_chain_that_comes_back_is_refused_or_let_in)
{
	struct fake *f = new_fake();
	struct fake_event *e;
	struct pack_w w;

	begin(&w, 1);
	step_call(&w, "call", "relay/b");
	begin_nested(&w, 1);
	step_call(&w, "call", "relay/a");
	begin_nested(&w, 1);
	step_add(&w, "n", 1);
	e = run(f, "a", &w);
	EXPECT_HAS(e->ev.why.text, "relay/a -> relay/b -> relay/a");
	expect_error(e, RC_CYCLE);
	begin(&w, 1);
	step_call(&w, "call", "relay/b");
	begin_nested(&w, 1);
	step_call(&w, "call", "relay/open-a");
	begin_nested(&w, 1);
	step_add(&w, "n", 1);
	expect_result(run(f, "open-a", &w), "\x91\x91\x91\x01", 4);
	EXPECT_INT(value_of(f, "open-a", "n"), 1);
	EXPECT_INT(value_of(f, "a", "n"), 0);
	fake_free(f);
}

TEST(of_two_that_want_each_other_the_younger_gives_way)
{
	struct fake *f = new_fake();
	struct fake_event *e[2];
	struct pack_w w;
	int i;

	for (i = 0; i < 2; i++) {
		begin(&w, 2);
		step_wait(&w, 5);
		step_call(&w, "call", i == 0 ? "relay/b" : "relay/a");
		begin_nested(&w, 1);
		step_add(&w, "n", 1);
		e[i] = send_keyed(f, i == 0 ? "a" : "b", &w, "k");
		f->now_ns += 1000;
	}
	settle(f);
	fake_advance(f, 10);
	settle(f);
	expect_error(e[1], RC_OVERLOADED);
	expect_result(e[0], "\x92\xc0\x91\x01", 4);
	EXPECT_INT(value_of(f, "b", "n"), 1);
	EXPECT_INT(value_of(f, "a", "n"), 0);
	fake_free(f);
}

TEST(a_run_goes_on_under_the_next_owner_with_its_key)
{
	struct fake *f = new_fake();
	struct fake_event *e;
	struct pack_w w;
	int life;

	for (life = 0; life < 3; life++) {
		begin(&w, 4);
		step_add(&w, "n", 1);
		step_wait(&w, 10);
		step_call(&w, "call", "relay/b");
		begin_nested(&w, 2);
		step_add(&w, "n", 10);
		step_wait(&w, 10);
		step_add(&w, "n", 100);
		e = send_keyed(f, "a", &w, "k");
		settle(f);
		if (life == 1) {
			fake_advance(f, 20);
			settle(f); /* Now in b. */
		}
		if (life == 2) {
			while (!e->done) {
				fake_advance(f, 20);
				settle(f);
			}
			break;
		}
		EXPECT_FALSE(e->done);
		fake_change(f);
		settle(f);
		expect_error(e, RC_UNKNOWN_OUTCOME);
	}
	expect_result(e, "\x94\xc0\xc0\x92\xc0\xc0\x65", 7);
	EXPECT_INT(value_of(f, "a", "n"), 101);
	EXPECT_INT(value_of(f, "b", "n"), 10);
	fake_free(f);
}

TEST(a_run_that_is_not_resumed_stays_unknown)
{
	struct fake *f = new_fake();
	struct fake_event *e;
	struct pack_w w;
	int life;

	for (life = 0; life < 3; life++) {
		begin(&w, 3);
		step_add(&w, "n", 1);
		step_wait(&w, 10);
		step_add(&w, "n", 1);
		e = send_keyed(f, "once-a", &w, "k");
		settle(f);
		fake_change(f);
		settle(f);
		expect_error(e, RC_UNKNOWN_OUTCOME);
	}
	EXPECT_INT(value_of(f, "once-a", "n"), 1);
	fake_free(f);
}

/*
 * Clients that repeat a keyed run until it has an answer, while owners change,
 * callers give up and objects are evicted: every step of every run has happened
 * once in the end, in all objects.
 */
#define OBJECTS 5
#define CLIENTS 6

struct client {
	struct fake_event *e;
	char key[24];
	unsigned a, b, c; /* The objects it goes through. */
	unsigned runs;
	bool wait;
};

static uint64_t seed_now;

static unsigned pick(unsigned n)
{
	seed_now = seed_now * UINT64_C(6364136223846793005) +
		   UINT64_C(1442695040888963407);
	return (unsigned)(seed_now >> 33) % n;
}

static const char *name_of(unsigned i)
{
	static const char *const names[OBJECTS] = { "a", "b", "open-c", "d",
						    "open-e" };

	return names[i];
}

static void client_send(struct fake *f, struct client *c)
{
	char address[2][32];
	struct pack_w w;

	(void)snprintf(address[0], 32, "relay/%s", name_of(c->b));
	(void)snprintf(address[1], 32, "relay/%s", name_of(c->c));
	begin(&w, c->wait ? 4 : 3);
	step_add(&w, "n", 1);
	if (c->wait)
		step_wait(&w, 3);
	step_call(&w, "call", address[0]);
	begin_nested(&w, 2);
	step_add(&w, "n", 1);
	step_call(&w, "call", address[1]);
	begin_nested(&w, 1);
	step_add(&w, "n", 1);
	step_add(&w, "n", 1);
	c->e = send_keyed(f, name_of(c->a), &w, c->key);
}

static void client_next(struct client *c, unsigned number)
{
	(void)snprintf(c->key, sizeof(c->key), "k%u-%u", number, c->runs);
	c->a = pick(OBJECTS);
	do {
		c->b = pick(OBJECTS);
	} while (c->b == c->a);
	do {
		c->c = pick(OBJECTS);
	} while (c->c == c->a || c->c == c->b);
	c->wait = pick(3) == 0;
}

/* A little of everything that can happen. */
static void move(struct fake *f, struct client *clients)
{
	struct client *c = &clients[pick(CLIENTS)];

	switch (pick(12)) {
	case 0:
		fake_change(f);
		settle(f);
		break;
	case 1:
		if (c->e != NULL && !c->e->done)
			event_cancel(&c->e->ev, RC_DEADLINE);
		break;
	case 2:
		fake_store(f);
		fake_advance(f, 200);
		break;
	case 3:
		fake_advance(f, 2);
		break;
	case 4:
		if (fake_storage_waiting(f->storage) > 0)
			fake_storage_finish(f->storage,
					    pick((unsigned)fake_storage_waiting(
						    f->storage)),
					    RC_OK);
		break;
	case 5:
		fake_prove(f);
		break;
	case 6:
	case 7:
		if (f->next_mark - 1 > f->committed)
			fake_commit(f, f->committed + 1);
		break;
	default:
		settle(f);
		break;
	}
	fake_turn(f);
}

static void lives(uint64_t seed)
{
	const struct residents_config cfg = { 100, 1u << 20, 100 };
	struct fake *f = fake_new(&cfg);
	struct client clients[CLIENTS] = { { 0 } };
	int64_t want[OBJECTS] = { 0 };
	unsigned done = 0;
	unsigned i;
	unsigned steps;

	runner_context("seed %" PRIu64, seed);
	seed_now = seed;
	nests_n = 0;
	for (i = 0; i < CLIENTS; i++)
		client_next(&clients[i], i);
	for (steps = 0; done < CLIENTS * 3; steps++) {
		EXPECT_TRUE(steps < 20000);
		/* Towards the end nothing goes wrong any more. */
		if (steps < 400) {
			move(f, clients);
		} else {
			settle(f);
			fake_advance(f, 2);
		}
		forget_calls(f);
		for (i = 0; i < CLIENTS; i++) {
			struct client *c = &clients[i];

			if (c->e != NULL && !c->e->done)
				continue;
			if (c->e != NULL && c->e->ev.rc == RC_OK) {
				want[c->a] += 2;
				want[c->b]++;
				want[c->c]++;
				c->runs++;
				done++;
				client_next(c, i);
			}
			if (c->e != NULL)
				fake_event_free(c->e);
			c->e = NULL;
			if (c->runs < 3 && f->calls_n < FAKE_CALLS_MAX / 2)
				client_send(f, c);
		}
	}
	settle(f);
	for (i = 0; i < OBJECTS; i++) {
		runner_context("seed %" PRIu64 ", object %u", seed, i);
		EXPECT_INT(value_of(f, name_of(i), "n"), want[i]);
	}
	fake_free(f);
}

TEST(everything_happens_once_whatever_happens)
{
	uint64_t seed;

	for (seed = 1; seed <= 150; seed++)
		lives(seed);
}
