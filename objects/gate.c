#include "objects/gate.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "objects/space.h"

#define SLOTS_MIN 64u
#define SLOTS_MAX ((size_t)1 << 20)
#define LAG_NS    ((uint64_t)LAG_MS_DEFAULT * 1000000u)

static struct gate_slot *slot_of(const struct gate *g, uint64_t mark)
{
	return &g->ring[mark & (g->slots - 1)];
}

static struct gate_slot *slots_new(size_t n)
{
	struct gate_slot *ring = calloc(n, sizeof(*ring));
	size_t i;

	for (i = 0; ring != NULL && i < n; i++)
		TAILQ_INIT(&ring[i].waiting);
	return ring;
}

enum rc gate_init(struct gate *g, struct host *host,
		  void (*open)(struct event *ev),
		  void (*fail)(struct event *ev, enum rc rc))
{
	*g = (struct gate){ .host = host, .open = open, .fail = fail };
	TAILQ_INIT(&g->far);
	TAILQ_INIT(&g->unproved);
	TAILQ_INIT(&g->unasked);
	g->slots = SLOTS_MIN;
	g->ring = slots_new(g->slots);
	return g->ring != NULL ? RC_OK : RC_NOMEM;
}

void gate_release(struct gate *g)
{
	size_t i;

	CHECK(TAILQ_EMPTY(&g->far));
	CHECK(TAILQ_EMPTY(&g->unproved));
	CHECK(TAILQ_EMPTY(&g->unasked));
	for (i = 0; i < g->slots; i++)
		CHECK(TAILQ_EMPTY(&g->ring[i].waiting));
	free(g->ring);
	*g = (struct gate){ 0 };
}

void gate_lead(struct gate *g, uint64_t epoch)
{
	size_t i;

	for (i = 0; i < g->slots; i++)
		g->ring[i].lagged_ns = 0;
	g->epoch = epoch;
	g->committed = 0;
	g->index = 0;
	g->newest = 0;
	g->under_way = 0;
	if (!MUTANT(proof_kept))
		g->proved = 0;
	g->asked = 0;
	g->fresh_ns = 0;
	g->asked_ticket = 0;
	g->lagged_mark = 0;
	g->lagged_newest = 0;
	g->blind_mark = 0;
}

static bool in_ring(const struct gate *g, uint64_t mark)
{
	return mark - g->committed <= g->slots;
}

/* Room for `mark`; without memory things go on with the ring as it is. */
static void grow(struct gate *g, uint64_t mark)
{
	size_t slots = g->slots;
	struct gate_slot *wider;
	struct gate_slot *from;
	struct gate_slot *to;
	uint64_t m;

	while (slots < mark - g->committed && slots < SLOTS_MAX)
		slots *= 2;
	if (slots == g->slots)
		return;
	wider = slots_new(slots);
	if (wider == NULL)
		return;
	for (m = g->committed + 1; m <= g->committed + g->slots; m++) {
		from = slot_of(g, m);
		to = &wider[m & (slots - 1)];
		TAILQ_CONCAT(&to->waiting, &from->waiting, link);
		to->lagged_ns = from->lagged_ns;
	}
	free(g->ring);
	g->ring = wider;
	g->slots = slots;
}

void gate_noted(struct gate *g, uint64_t mark, bool lagged, uint64_t now_ns)
{
	PRE(mark > g->committed);
	if (!in_ring(g, mark))
		grow(g, mark);
	if (mark > g->newest)
		g->newest = mark;
	if (!lagged) {
		g->under_way = g->newest;
		return;
	}
	if (!in_ring(g, mark)) {
		g->blind_mark = mark;
		return;
	}
	slot_of(g, mark)->lagged_ns = now_ns > 0 ? now_ns : 1;
	g->lagged_newest = mark;
	if (g->lagged_mark == 0) {
		g->lagged_mark = mark;
		g->lagged_ns = now_ns;
	}
}

static struct event_list *proof_list(struct gate *g, const struct event *ev)
{
	return ev->need_proof == UINT64_MAX ? &g->unasked : &g->unproved;
}

uint64_t gate_prove(struct gate *g, uint64_t now_ns)
{
	uint64_t ticket = g->host->ops->prove(g->host, g->epoch);
	struct event *ev;

	if (ticket == 0)
		return UINT64_MAX;
	while ((ev = TAILQ_FIRST(&g->unasked)) != NULL) {
		TAILQ_REMOVE(&g->unasked, ev, link);
		ev->need_proof = ticket;
		TAILQ_INSERT_TAIL(&g->unproved, ev, link);
	}
	if (ticket > g->asked)
		g->asked = ticket;
	/* Only one question is timed at a time: it is about the newest proof,
	 * and what is a little old asks again. */
	if (g->asked_ticket == 0) {
		g->asked_ticket = ticket;
		g->asked_ns = now_ns;
	}
	return ticket;
}

void gate_freshen(struct gate *g, uint64_t now_ns)
{
	if (g->asked <= g->proved && now_ns - g->fresh_ns > LAG_NS / 2)
		(void)gate_prove(g, now_ns);
}

/* ----------------------------------------------------------------- waiting */

static void wait_for_mark(struct gate *g, struct event *ev)
{
	if (ev->need_mark <= g->committed) {
		ev->index = g->index;
		ev->state = EVENT_PASSED;
		g->open(ev);
	} else if (in_ring(g, ev->need_mark)) {
		ev->state = EVENT_UNCOMMITTED;
		TAILQ_INSERT_TAIL(&slot_of(g, ev->need_mark)->waiting, ev,
				  link);
	} else {
		ev->state = EVENT_FAR;
		TAILQ_INSERT_TAIL(&g->far, ev, link);
	}
}

void gate_enter(struct gate *g, struct event *ev)
{
	if (ev->need_mark > g->under_way && ev->need_mark > g->committed) {
		g->host->ops->hurry(g->host, g->epoch);
		g->under_way = g->newest;
	}
	if (ev->need_proof > g->proved) {
		ev->state = EVENT_UNPROVED;
		TAILQ_INSERT_TAIL(proof_list(g, ev), ev, link);
	} else {
		wait_for_mark(g, ev);
	}
}

void gate_leave(struct gate *g, struct event *ev)
{
	struct event_list *list = &g->far;

	CHECK(event_at_gate(ev));
	if (ev->state == EVENT_UNPROVED)
		list = proof_list(g, ev);
	else if (ev->state == EVENT_UNCOMMITTED)
		list = &slot_of(g, ev->need_mark)->waiting;
	TAILQ_REMOVE(list, ev, link);
	ev->state = EVENT_OUT;
}

/* The oldest lagged effect that a failover could still lose is young. */
static bool lag_is_short(const struct gate *g, uint64_t now_ns)
{
	if (g->blind_mark > g->committed)
		return false;
	if (MUTANT(lag_unbounded))
		return true;
	return g->lagged_mark == 0 || now_ns - g->lagged_ns <= LAG_NS;
}

bool gate_lagging_may_leave(struct gate *g, struct event *ev, uint64_t now_ns)
{
	bool proved = ev->need_proof != 0 && ev->need_proof <= g->proved;
	bool committed = ev->any_mark <= g->committed;

	if (MUTANT(lag_unproved) || now_ns - g->fresh_ns <= LAG_NS)
		proved = true;
	if (!committed && lag_is_short(g, now_ns))
		committed = true;
	if (proved && committed)
		return true;
	if (!committed)
		ev->need_mark = ev->any_mark;
	if (!proved)
		ev->need_proof = gate_prove(g, now_ns);
	gate_enter(g, ev);
	return false;
}

/* ----------------------------------------------------------------- opening */

static void open_slot(struct gate *g, struct gate_slot *slot)
{
	struct event *ev;

	slot->lagged_ns = 0;
	while ((ev = TAILQ_FIRST(&slot->waiting)) != NULL) {
		TAILQ_REMOVE(&slot->waiting, ev, link);
		ev->index = g->index;
		ev->state = EVENT_PASSED;
		g->open(ev);
	}
}

static void find_oldest_lagged(struct gate *g)
{
	uint64_t m;

	if (g->lagged_mark == 0 || g->lagged_mark > g->committed)
		return;
	g->lagged_mark = 0;
	if (g->lagged_newest <= g->committed)
		return;
	for (m = g->committed + 1; slot_of(g, m)->lagged_ns == 0; m++)
		CHECK(m < g->lagged_newest);
	g->lagged_mark = m;
	g->lagged_ns = slot_of(g, m)->lagged_ns;
}

static void come_nearer(struct gate *g)
{
	struct event_list list = TAILQ_HEAD_INITIALIZER(list);
	struct event *ev;

	TAILQ_CONCAT(&list, &g->far, link);
	while ((ev = TAILQ_FIRST(&list)) != NULL) {
		TAILQ_REMOVE(&list, ev, link);
		wait_for_mark(g, ev);
	}
}

void gate_committed(struct gate *g, uint64_t mark, uint64_t index)
{
	uint64_t m;
	uint64_t from = g->committed + 1;
	uint64_t to = mark;

	if (mark <= g->committed)
		return;
	if (to - g->committed > g->slots)
		to = g->committed + g->slots;
	g->index = index;
	/* A slot is left before it can stand for another mark. */
	g->committed = mark;
	for (m = from; m <= to; m++)
		open_slot(g, slot_of(g, m));
	find_oldest_lagged(g);
	if (!TAILQ_EMPTY(&g->far))
		come_nearer(g);
}

void gate_proved(struct gate *g, uint64_t ticket, enum rc rc)
{
	struct event *ev;

	if (rc == RC_OK && ticket > g->proved)
		g->proved = ticket;
	if (rc == RC_OK && g->asked_ticket != 0 && g->asked_ticket <= ticket)
		g->fresh_ns = g->asked_ns;
	if (g->asked_ticket <= ticket)
		g->asked_ticket = 0;
	while ((ev = TAILQ_FIRST(&g->unproved)) != NULL &&
	       ev->need_proof <= ticket) {
		TAILQ_REMOVE(&g->unproved, ev, link);
		if (rc == RC_OK) {
			wait_for_mark(g, ev);
		} else {
			ev->state = EVENT_OUT;
			g->fail(ev, rc);
		}
	}
	/* A failed one is no reason never to ask again. */
	if (rc != RC_OK && g->asked <= ticket)
		g->asked = g->proved;
}

static void drain(struct event_list *list, void (*cb)(struct event *ev))
{
	struct event *ev;

	while ((ev = TAILQ_FIRST(list)) != NULL) {
		TAILQ_REMOVE(list, ev, link);
		ev->state = EVENT_OUT;
		cb(ev);
	}
}

void gate_drain(struct gate *g, void (*cb)(struct event *ev))
{
	size_t i;

	drain(&g->unproved, cb);
	drain(&g->unasked, cb);
	drain(&g->far, cb);
	for (i = 0; i < g->slots; i++)
		drain(&g->ring[i].waiting, cb);
}
