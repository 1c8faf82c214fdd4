#include "tests/lib/fake_host.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/mutant.h"
#include "objects/effects.h"
#include "tests/lib/fault.h"

/* What a fake needs for itself is not what a test lets fail. The tests that do
 * link tests/lib/fault.c; the others need not. */
#pragma weak fault_hold
#pragma weak fault_release

unsigned fake_done;

/* ---------------------------------------------------------------------- env */

static void hold(void)
{
	if (fault_hold != NULL)
		fault_hold();
}

static void unhold(void)
{
	if (fault_release != NULL)
		fault_release();
}

static struct fake *of_env(struct env *env)
{
	return CONTAINER_OF(env, struct fake, env);
}

static uint64_t env_now(struct env *env)
{
	return of_env(env)->now_ns;
}

static uint64_t env_wall(struct env *env)
{
	return 1700000000000u + of_env(env)->now_ns / 1000000u;
}

static bool env_synced(struct env *env)
{
	(void)env;
	return true;
}

/* Knuth's MMIX generator. */
static void env_bytes(struct env *env, void *out, size_t n)
{
	struct fake *f = of_env(env);
	uint8_t *p = out;

	while (n-- > 0) {
		f->random = f->random * UINT64_C(6364136223846793005) +
			    UINT64_C(1442695040888963407);
		*p++ = (uint8_t)(f->random >> 56);
	}
}

static struct env_timer *next_timer(const struct env_timer *t)
{
	return t->impl[0];
}

static void timer_start(struct env_timer *t)
{
	struct fake *f = of_env(t->env);

	CHECK(!t->running);
	t->running = true;
	t->impl[0] = f->timers;
	f->timers = t;
}

static void timer_stop(struct env_timer *t)
{
	struct fake *f = of_env(t->env);
	struct env_timer *x = f->timers;

	CHECK(t->running);
	t->running = false;
	if (x == t) {
		f->timers = next_timer(t);
		return;
	}
	while (next_timer(x) != t)
		x = next_timer(x);
	x->impl[0] = t->impl[0];
}

static void env_no_work(struct env *env, enum env_worker w, struct env_job *job)
{
	(void)env;
	(void)w;
	(void)job;
	UNREACHABLE();
}

static void env_posted(struct env *env, struct env_task *task)
{
	turn_post(&of_env(env)->turn, task);
}

static void env_stops(struct env *env, const char *why)
{
	(void)why;
	of_env(env)->stopped = true;
}

static const struct env_ops env_ops = {
	.now_ns = env_now,
	.wall_ms = env_wall,
	.wall_synced = env_synced,
	.random = env_bytes,
	.timer_start = timer_start,
	.timer_stop = timer_stop,
	.work = env_no_work,
	.post = env_posted,
	.fail_stop = env_stops,
};

/* --------------------------------------------------------------------- host */

static struct fake *of_host(struct host *h)
{
	return CONTAINER_OF(h, struct fake, host);
}

static uint64_t host_now(struct host *h)
{
	struct fake *f = of_host(h);

	return f->now_ns + f->ahead_ns;
}

static uint64_t host_stamp(struct host *h)
{
	return of_host(h)->stamp_ns;
}

static uint64_t unit_add(struct fake *f, const struct pack_w *unit)
{
	struct fake_unit *u;
	size_t n = unit != NULL ? unit->n : 0;

	if (f->free_running)
		return f->next_mark++;
	hold();
	u = malloc(sizeof(*u) + n);
	unhold();
	CHECK(u != NULL);
	u->mark = f->next_mark++;
	u->n = n;
	if (n > 0)
		memcpy(u->bytes, unit->p, n);
	STAILQ_INSERT_TAIL(&f->units, u, link);
	f->units_n++;
	return u->mark;
}

static uint64_t host_propose(struct host *h, uint64_t epoch,
			     const struct pack_w *unit, bool may_wait,
			     enum rc *why)
{
	struct fake *f = of_host(h);

	CHECK(unit->rc == RC_OK);
	CHECK(unit->n > 0);
	if (epoch != f->epoch) {
		*why = RC_TERM;
		return 0;
	}
	if (f->propose_rc != RC_OK) {
		*why = f->propose_rc;
		return 0;
	}
	f->units_all++;
	f->gathered = may_wait;
	return unit_add(f, unit);
}

static void host_hurry(struct host *h, uint64_t epoch)
{
	struct fake *f = of_host(h);

	if (epoch != f->epoch)
		return;
	f->gathered = false;
	f->hurries++;
}

static uint64_t host_tick(struct host *h, uint64_t epoch)
{
	struct fake *f = of_host(h);

	if (epoch != f->epoch || f->propose_rc != RC_OK)
		return 0;
	if (f->one_tick)
		return f->tick_mark;
	f->ticks++;
	f->one_tick = true;
	f->gathered = false;
	f->tick_mark = unit_add(f, NULL);
	return f->tick_mark;
}

static uint64_t host_prove(struct host *h, uint64_t epoch)
{
	struct fake *f = of_host(h);

	if (epoch != f->epoch)
		return 0;
	f->proofs++;
	/* One for all that ask until it has been given. */
	if (f->ticket == f->proved)
		f->ticket++;
	return f->ticket;
}

static enum rc host_admit(struct host *h, struct pack_bytes tenant,
			  int64_t objects, int64_t bytes, struct detail *why)
{
	struct fake *f = of_host(h);

	CHECK(tenant.n > 0);
	if (f->admit_rc != RC_OK && (objects > 0 || bytes > 0))
		return detail_set(why, f->admit_rc, NULL, "no more");
	f->admitted_objects += objects;
	f->admitted_bytes += bytes;
	return RC_OK;
}

static void host_call(struct host *h, struct event *ev)
{
	struct fake *f = of_host(h);
	struct fake_call *c;

	CHECK(f->calls_n < FAKE_CALLS_MAX);
	CHECK(ev->nested != NULL);
	CHECK(ev->nested->kind == NESTED_CALL);
	c = &f->calls[f->calls_n++];
	c->ev = ev;
	(void)snprintf(c->address, sizeof(c->address), "%.127s",
		       ev->nested->address);
	(void)snprintf(c->method, sizeof(c->method), "%s", ev->nested->method);
	c->keyed = ev->nested->keyed;
	memcpy(c->key, ev->nested->key, sizeof(c->key));
}

static void host_call_drop(struct host *h, struct event *ev)
{
	struct fake *f = of_host(h);
	size_t i;

	for (i = 0; i < f->calls_n; i++) {
		if (f->calls[i].ev == ev) {
			f->calls[i].ev = NULL;
			f->dropped++;
			return;
		}
	}
	UNREACHABLE();
}

static void host_random(struct host *h, void *out, size_t n)
{
	env_bytes(&of_host(h)->env, out, n);
}

static const struct host_ops host_ops = {
	.now = host_now,
	.committed_stamp = host_stamp,
	.propose = host_propose,
	.tick = host_tick,
	.hurry = host_hurry,
	.prove = host_prove,
	.admit = host_admit,
	.call = host_call,
	.call_drop = host_call_drop,
	.random = host_random,
};

/* --------------------------------------------------------------------- life */

static const struct residents_config residents_defaults = {
	.objects_max = OBJECTS_RESIDENT_MAX,
	.bytes_max = OBJECTS_RESIDENT_BYTES_MAX,
	.idle_ms = OBJECT_IDLE_MS,
};

/* HOLDFAST_MUTANT=name runs a test program with one rule left out. */
static void choose_mutant(void)
{
	const char *name = getenv("HOLDFAST_MUTANT");

	if (name == NULL)
		return;
	mutant_now = mutant_parse(name);
	CHECK(mutant_now != MUTANTS);
}

struct fake *fake_new(const struct residents_config *cfg)
{
	struct fake *f = calloc(1, sizeof(*f));

	CHECK(f != NULL);
	CHECK(crypto_init() == RC_OK);
	f->env.ops = &env_ops;
	f->host.ops = &host_ops;
	turn_init(&f->turn);
	STAILQ_INIT(&f->units);
	f->now_ns = UINT64_C(5000000000);
	f->ahead_ns = FAKE_STAMP_NS - f->now_ns;
	f->stamp_ns = FAKE_STAMP_NS;
	f->next_mark = 1;
	f->storage = fake_storage_new();
	fake_done = 0;
	choose_mutant();
	CHECK(residents_new(&f->env, cfg != NULL ? cfg : &residents_defaults,
			    &f->res) == RC_OK);
	CHECK(space_new(&f->env, &f->host, f->res, f->storage, 0, &f->space) ==
	      RC_OK);
	fake_lead(f);
	return f;
}

static void units_drop(struct fake *f)
{
	struct fake_unit *u;

	while ((u = STAILQ_FIRST(&f->units)) != NULL) {
		STAILQ_REMOVE_HEAD(&f->units, link);
		free(u);
	}
	f->units_n = 0;
	f->one_tick = false;
}

void fake_free(struct fake *f)
{
	fake_lose(f);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	space_free(f->space);
	residents_free(f->res);
	CHECK(f->timers == NULL);
	units_drop(f);
	fake_storage_free(f->storage);
	free(f);
}

void fake_turn(struct fake *f)
{
	turn_run(&f->turn);
}

static struct env_timer *first_due(const struct fake *f)
{
	struct env_timer *t;
	struct env_timer *best = NULL;

	for (t = f->timers; t != NULL; t = next_timer(t))
		if (t->at_ms <= f->now_ns / 1000000u &&
		    (best == NULL || t->at_ms < best->at_ms))
			best = t;
	return best;
}

void fake_advance(struct fake *f, uint64_t ms)
{
	struct env_timer *t;
	unsigned fired = 0;

	f->now_ns += ms * 1000000u;
	while ((t = first_due(f)) != NULL && fired++ < 10000) {
		timer_stop(t);
		t->cb(t);
		fake_turn(f);
	}
	CHECK(fired < 10000);
	fake_turn(f);
}

static void apply(struct fake *f, const struct fake_unit *u)
{
	struct pack_w w;

	hold();
	pack_w_init(&w, ENTRY_BYTES_MAX);
	entry_begin(&w, f->now_ns + f->ahead_ns, 0, f->epoch, u->n > 0 ? 1 : 0);
	pack_raw(&w, u->bytes, u->n);
	unhold();
	CHECK(w.rc == RC_OK);
	CHECK(storage_apply(f->storage, ++f->index, f->epoch, w.p, w.n) ==
	      RC_OK);
	pack_w_release(&w);
}

void fake_commit(struct fake *f, uint64_t mark)
{
	struct fake_unit *u;

	while ((u = STAILQ_FIRST(&f->units)) != NULL && u->mark <= mark) {
		STAILQ_REMOVE_HEAD(&f->units, link);
		f->units_n--;
		apply(f, u);
		free(u);
	}
	if (mark > f->committed) {
		f->committed = mark;
		f->stamp_ns = f->now_ns + f->ahead_ns;
		f->one_tick = false;
		space_committed(f->space, mark, f->index);
	}
	fake_turn(f);
}

void fake_commit_all(struct fake *f)
{
	fake_commit(f, f->next_mark - 1);
}

void fake_prove(struct fake *f)
{
	f->proved = f->ticket;
	space_proved(f->space, f->ticket, RC_OK);
	fake_turn(f);
}

void fake_fail_proof(struct fake *f, enum rc rc)
{
	f->proved = f->ticket;
	space_proved(f->space, f->ticket, rc);
	fake_turn(f);
}

void fake_store(struct fake *f)
{
	space_stored(f->space, f->committed);
}

void fake_go(struct fake *f)
{
	unsigned rounds = 0;

	do {
		CHECK(rounds++ < 10000);
		fake_storage_finish_all(f->storage);
		fake_turn(f);
		if (f->next_mark - 1 > f->committed)
			fake_commit_all(f);
		if (f->ticket > f->proved)
			fake_prove(f);
		fake_turn(f);
	} while (fake_storage_waiting(f->storage) > 0 ||
		 f->next_mark - 1 > f->committed || f->ticket > f->proved);
}

void fake_lose(struct fake *f)
{
	uint64_t epoch = f->epoch;

	f->epoch = 0;
	space_lost(f->space, epoch);
	units_drop(f);
	fake_turn(f);
}

void fake_lead(struct fake *f)
{
	static uint64_t epochs;

	f->epoch = ++epochs;
	f->next_mark = 1;
	f->committed = 0;
	f->ticket = 0;
	f->proved = 0;
	space_lead(f->space, f->epoch, f->now_ns + f->ahead_ns);
}

void fake_change(struct fake *f)
{
	fake_lose(f);
	fake_storage_finish_all(f->storage);
	fake_turn(f);
	fake_lead(f);
}

void fake_reply(struct fake *f, size_t i, enum rc rc, struct pack_bytes result,
		const struct detail *why)
{
	struct event *ev;

	CHECK(i < f->calls_n);
	ev = f->calls[i].ev;
	CHECK(ev != NULL);
	f->calls[i].ev = NULL;
	space_called(f->space, ev, rc, result, why);
	fake_turn(f);
}

void fake_answer(struct fake *f, size_t i, enum rc rc, const char *text)
{
	struct detail why = { "", "" };
	struct pack_w w;

	hold();
	pack_w_init(&w, 1024);
	if (rc == RC_OK)
		pack_cstr(&w, text);
	else
		(void)detail_set(&why, rc, NULL, "%s", text);
	unhold();
	fake_reply(f, i, rc, (struct pack_bytes){ w.p, w.n }, &why);
	pack_w_release(&w);
}

/* ------------------------------------------------------------------- events */

static struct pack_bytes bytes(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

struct oid fake_oid(const char *cls, const char *name)
{
	const struct hash_part parts[] = { { cls, strlen(cls) },
					   { name, strlen(name) } };
	struct oid oid;

	crypto_hash(NULL, 0, parts, 2, oid.b);
	return oid;
}

static void event_done(struct event *ev)
{
	struct fake_event *e = CONTAINER_OF(ev, struct fake_event, ev);

	CHECK(!e->done);
	e->done = true;
	e->order = ++fake_done;
}

struct fake_event *fake_event(struct fake *f, const struct class *cls,
			      const char *name, const char *method)
{
	struct fake_event *e;
	struct event *ev;

	hold();
	e = calloc(1, sizeof(*e));
	unhold();
	CHECK(e != NULL);
	ev = &e->ev;
	(void)snprintf(e->name, sizeof(e->name), "%s", name);
	(void)snprintf(e->principal, sizeof(e->principal), "p");
	ev->magic = EVENT_MAGIC;
	ev->flags = EVENT_CREATE;
	ev->oid = fake_oid(cls->name, name);
	ev->tenant = bytes("default");
	ev->env = bytes("dev");
	ev->name = bytes(e->name);
	ev->cls = cls;
	ev->method = method_find(cls->name, strlen(cls->name), method,
				 strlen(method));
	/* A class of the test's own: any method will do. */
	if (ev->method == NULL)
		ev->method = method_find("kv", 2, method, strlen(method));
	CHECK(ev->method != NULL);
	ev->principal = bytes(e->principal);
	ev->root_stamp = f->now_ns + f->events++;
	ev->done = event_done;
	e->fake = f;
	pack_w_init(&ev->result, RESULT_BYTES_MAX);
	fake_event_args(e, "\x80", 1);
	return e;
}

void fake_event_args(struct fake_event *e, const void *args, size_t n)
{
	struct detail why = { "", "" };

	free(e->args);
	hold();
	e->args = malloc(n + 1);
	unhold();
	CHECK(e->args != NULL);
	memcpy(e->args, args, n);
	e->ev.args_bytes = (struct pack_bytes){ e->args, n };
	(void)method_args_check(e->ev.method, e->ev.args_bytes, &e->ev.args,
				&why);
}

void fake_event_key(struct fake_event *e, const char *key)
{
	(void)snprintf(e->idem, sizeof(e->idem), "%s", key);
	e->ev.idem = bytes(e->idem);
	e->ev.flags |= EVENT_KEYED;
}

void fake_event_free(struct fake_event *e)
{
	CHECK(e->done);
	pack_w_release(&e->ev.result);
	pack_w_release(&e->ev.reply);
	free(e->args);
	free(e);
}

enum run fake_script_run(struct event *ev)
{
	struct fake_event *e = CONTAINER_OF(ev, struct fake_event, ev);

	e->runs++;
	return e->script(e);
}

void fake_send(struct fake *f, struct fake_event *e)
{
	event_deliver(f->space, &e->ev);
}

bool fake_misses(const char *mutant, const char *test)
{
	char *const argv[] = { (char *)(uintptr_t) "again",
			       (char *)(uintptr_t)test, NULL };
	int status = 0;
	pid_t pid;

	(void)fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		if (setenv("HOLDFAST_MUTANT", mutant, 1) != 0 ||
		    setenv("ASAN_OPTIONS", "detect_leaks=0", 1) != 0 ||
		    freopen("/dev/null", "w", stdout) == NULL ||
		    freopen("/dev/null", "w", stderr) == NULL)
			_exit(0);
		(void)execv("/proc/self/exe", argv);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR);
	/* 2: there is no such test, which proves nothing. */
	return !WIFEXITED(status) ||
	       (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 2);
}
