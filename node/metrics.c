#include "node/metrics.h"

#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/core/bridge.h"
#include "node/core/forward.h"
#include "node/core/internal.h"
#include "node/core/route.h"
#include "raft-glue/placement.h"

#define METRICS_MAGIC 0x4d455452u
#define LISTING_MAGIC 0x4c495354u

#define LISTING_ITEMS_MAX     1000u
#define LISTING_ITEMS_DEFAULT 100u

struct metrics {
	uint32_t magic;
	struct env *env;
	struct env_uv *uv;
	struct core *core;
	struct rpc *rpc;
	struct metrics_about about;
	uint64_t started_ns;
	uv_loop_t *loop;
	uv_prepare_t prepare; /* Poll is next: a turn has ended. */
	uint64_t turn_ns;     /* When the last one ended. */
	uint64_t idle_ns;     /* Of the loop's life, until then. */
	uint64_t busy_ns;
	uint64_t stall_ns;
};

/* The longest turn is what every other client waits for. libuv calls handlers
 * from inside its poll, so a turn is what passed less what poll waited. */
static void turn_ended(uv_prepare_t *h)
{
	struct metrics *m = h->data;
	uint64_t now = env_now_ns(m->env);
	uint64_t idle = uv_metrics_idle_time(m->loop);
	uint64_t busy = now - m->turn_ns - (idle - m->idle_ns);

	if (m->turn_ns != 0 && busy <= now - m->turn_ns) {
		m->busy_ns += busy;
		if (busy > m->stall_ns)
			m->stall_ns = busy;
	}
	m->turn_ns = now;
	m->idle_ns = idle;
}

/* Everything that is counted, at one moment. */
struct sample {
	double up_s;
	double cpu_s;
	double rss_bytes;
	double stall_s;
	double batch;
	double connections;
	double accepted;
	double broken;
	double bytes_in;
	double bytes_out;
	double frames;
	double writes;
	double calls_open;
	double calls_limit;
	double calls_refused;
	double served_refused;
	double resident;
	double resident_bytes;
	double loads;
	double evictions;
	double batches;
	double syncs;
	double log_bytes;
	double sync_s;
	double sync_max_s;
	double segments;
	double live_bytes;
	double flushes;
	double rows;
	double checkpoints;
	double owned;
	double elections;
	double installs;
	double exports;
	double compared;
	double differences;
	double undecided;
	double copies_alone;
	double copies_refused;
	double rounds;
	double forwards_sent;
	double forwards_lost;
	double forwards_served;
	double peer_frames_in;
	double peer_frames_out;
	double peer_bytes_in;
	double peer_bytes_out;
	double peer_refused;
	double peer_dropped;
	double peers_up;
	double certificate_s;
	double disk_free;
};

static uint64_t rss_bytes(void)
{
	unsigned long size;
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f == NULL)
		return 0;
	if (fscanf(f, "%lu %lu", &size, &pages) != 2)
		pages = 0;
	fclose(f);
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t cpu_us(void)
{
	struct rusage u;

	if (getrusage(RUSAGE_SELF, &u) != 0)
		return 0;
	return ((uint64_t)u.ru_utime.tv_sec + (uint64_t)u.ru_stime.tv_sec) *
		       1000000u +
	       (uint64_t)u.ru_utime.tv_usec + (uint64_t)u.ru_stime.tv_usec;
}

static void sample_shards(struct metrics *m, struct sample *s)
{
	struct storage_stats storage;
	struct space_stats space;
	struct shard_stats shard;
	struct compare_stats compared;
	uint64_t term;
	uint32_t i;

	for (i = 0; i < core_shards(m->core); i++) {
		struct bridge *b = core_bridge(m->core, i);

		space_stats(bridge_space(b), &space);
		storage_stats(bridge_storage(b), &storage);
		s->resident += (double)space.resident;
		s->resident_bytes += (double)space.resident_bytes;
		s->loads += (double)space.loads;
		s->evictions += (double)space.evictions;
		s->flushes += (double)storage.flushes;
		s->rows += (double)storage.rows_written;
		s->checkpoints += (double)storage.checkpoints;
		shard_stats(bridge_shard(b), &shard);
		s->elections += (double)shard.elections;
		s->installs += (double)shard.installs;
		s->exports += (double)shard.exports;
		bridge_compares(b, &compared);
		s->compared += (double)compared.compared;
		s->differences += (double)compared.differences;
		s->undecided += (double)compared.undecided;
		s->copies_alone += (double)compared.alone;
		s->copies_refused += (double)compared.refused;
		s->owned += shard_leads(bridge_shard(b), &term);
	}
}

static size_t peers_read(const struct metrics *m,
			 struct peer_stats out[MEMBERS_MAX])
{
	if (m->about.peers == NULL || *m->about.peers == NULL)
		return 0;
	return peers_stats(*m->about.peers, out, MEMBERS_MAX);
}

static uint64_t certificate_ms(const struct metrics *m)
{
	if (m->about.tls == NULL || *m->about.tls == NULL)
		return 0;
	return tls_context_expires_ms(*m->about.tls);
}

/* What is left for this user, and the whole, of the data's file system. */
static void space_read(const struct metrics *m, uint64_t *left, uint64_t *size)
{
	struct statvfs v;

	*left = 0;
	*size = 0;
	if (m->about.cfg == NULL || statvfs(m->about.cfg->data, &v) != 0)
		return;
	*left = (uint64_t)v.f_bavail * v.f_frsize;
	*size = (uint64_t)v.f_blocks * v.f_frsize;
}

static void sample_peers(struct metrics *m, struct sample *s)
{
	struct peer_stats peers[MEMBERS_MAX];
	struct transport_stats t = { 0 };
	struct forward_stats f = { 0 };
	uint64_t left;
	uint64_t size;
	size_t n = peers_read(m, peers);
	size_t i;

	if (core_transport(m->core) != NULL)
		transport_stats(core_transport(m->core), &t);
	if (core_forwards(m->core) != NULL)
		forwards_stats(core_forwards(m->core), &f);
	space_read(m, &left, &size);
	s->disk_free = (double)left;
	s->peer_frames_in = (double)t.frames_in;
	s->peer_frames_out = (double)t.frames_out;
	s->peer_refused = (double)t.refused;
	s->forwards_sent = (double)f.sent;
	s->forwards_lost = (double)f.lost;
	s->forwards_served = (double)f.served;
	s->certificate_s = (double)certificate_ms(m) / 1000;
	for (i = 0; i < n; i++) {
		s->peers_up += peers[i].up[LINK_RAFT] && peers[i].up[LINK_BULK];
		s->peer_bytes_in += (double)peers[i].bytes_in;
		s->peer_bytes_out += (double)peers[i].bytes_out;
		s->peer_dropped += (double)peers[i].dropped;
		s->peer_refused += (double)peers[i].refused;
	}
}

static void sample_take(struct metrics *m, struct sample *s)
{
	struct core_stats core;
	struct rpc_stats rpc;
	struct log_stats log;

	memset(s, 0, sizeof(*s));
	core_stats(m->core, &core);
	rpc_stats(m->rpc, &rpc);
	log_stats(core_log(m->core), &log);
	s->up_s = (double)(env_now_ns(m->env) - m->started_ns) / 1e9;
	s->cpu_s = (double)cpu_us() / 1e6;
	s->rss_bytes = (double)rss_bytes();
	s->stall_s = (double)m->stall_ns / 1e9;
	s->batch = sched_getscheduler(0) == SCHED_BATCH;
	s->connections = (double)rpc.connections;
	s->accepted = (double)rpc.accepted;
	s->broken = (double)rpc.broken;
	s->bytes_in = (double)rpc.bytes_in;
	s->bytes_out = (double)rpc.bytes_out;
	s->frames = (double)rpc.frames;
	s->writes = (double)rpc.writes;
	s->calls_open = (double)core.calls_open;
	s->calls_limit = (double)core.calls_limit;
	s->calls_refused = (double)core.calls_refused;
	s->served_refused = (double)core.served_refused;
	s->rounds = (double)core.rounds;
	s->batches = (double)log.batches;
	s->syncs = (double)log.syncs;
	s->log_bytes = (double)log.bytes;
	s->sync_s = (double)log.sync_ns_sum / 1e9;
	s->sync_max_s = (double)log.sync_ns_max / 1e9;
	s->segments = (double)log.segments;
	s->live_bytes = (double)log.live_bytes;
	sample_shards(m, s);
	sample_peers(m, s);
}

/* Prometheus text format 0.0.4. */

struct page {
	char *p;
	size_t n;
	size_t cap;
};

static void page_add(struct page *page, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void page_add(struct page *page, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(page->p + page->n, page->cap - page->n, fmt, args);
	va_end(args);
	if (n > 0 && (size_t)n < page->cap - page->n)
		page->n += (size_t)n;
}

static void page_codes(struct metrics *m, struct page *page)
{
	struct core_stats core;
	size_t i;

	core_stats(m->core, &core);
	page_add(page, "# HELP holdfast_calls_total Calls that ended, by "
		       "code.\n# TYPE holdfast_calls_total counter\n");
	for (i = 0; i < ARRAY_LEN(core.by_rc); i++)
		if (core.by_rc[i] > 0)
			page_add(page,
				 "holdfast_calls_total{code=\"%s\"} %" PRIu64
				 "\n",
				 rc_name((enum rc)i), core.by_rc[i]);
}

/* The name of a member; "" for 0 and one that is not known. */
static const char *member_name(const struct metrics *m, uint64_t id)
{
	const struct members *all = core_members(m->core);
	const struct member *one;

	if (id == core_identity(m->core)->node_id)
		return core_identity(m->core)->node_name;
	one = all != NULL && id != 0 ? members_find(all, id) : NULL;
	return one != NULL ? one->name : "";
}

static void page_peers(struct metrics *m, struct page *page)
{
	static const char *const links[LINKS] = {
		[LINK_RAFT] = "raft", [LINK_BULK] = "bulk"
	};
	struct peer_stats peers[MEMBERS_MAX];
	size_t n = peers_read(m, peers);
	size_t i;
	int k;

	if (n == 0)
		return;
	page_add(page, "# HELP holdfast_peer_up Is the link to the member "
		       "there?\n# TYPE holdfast_peer_up gauge\n");
	for (i = 0; i < n; i++)
		for (k = 0; k < LINKS; k++)
			page_add(page,
				 "holdfast_peer_up{node=\"%s\",link=\"%s\"} "
				 "%d\n",
				 member_name(m, peers[i].node_id), links[k],
				 peers[i].up[k]);
}

static void host_metrics(void *arg, struct pack_w *out)
{
	struct metrics *m = arg;
	struct page page = { .cap = 65536 };
	struct sample s;

	CHECK_OBJ(m, METRICS_MAGIC);
	page.p = malloc(page.cap);
	if (page.p == NULL) {
		out->rc = RC_NOMEM;
		return;
	}
	sample_take(m, &s);
#define METRIC(name, type, field, help)                               \
	page_add(&page,                                               \
		 "# HELP " #name " " help "\n# TYPE " #name " " #type \
		 "\n" #name " %.9g\n",                                \
		 s.field);
#include "node/metrics.tbl"
#undef METRIC
	page_codes(m, &page);
	page_peers(m, &page);
	pack_str(out, page.p, page.n);
	free(page.p);
}

/* status */

static void put_u64(struct pack_w *w, const char *key, uint64_t v)
{
	pack_cstr(w, key);
	pack_u64(w, v);
}

static void put_str(struct pack_w *w, const char *key, const char *v)
{
	pack_cstr(w, key);
	pack_cstr(w, v);
}

static void put_bool(struct pack_w *w, const char *key, bool v)
{
	pack_cstr(w, key);
	pack_bool(w, v);
}

static const char *health_name(enum shard_health health)
{
	static const char *const names[] = {
		[SHARD_WHOLE] = "whole",
		[SHARD_STATE_BAD] = "state_bad",
		[SHARD_LOG_BAD] = "log_bad",
		[SHARD_STUCK] = "stuck",
	};

	return names[health];
}

/* How many entries the voter that is furthest behind does not have, as far as
 * its leader was told. */
static uint64_t shard_lag(struct shard *s, const struct shard_view *v)
{
	uint64_t last = shard_last_index(s);
	uint64_t lag = 0;
	uint32_t i;

	for (i = 0; i < v->peers_n; i++)
		if (v->peers[i].match < last && last - v->peers[i].match > lag)
			lag = last - v->peers[i].match;
	return lag;
}

#define SHARD_PAIRS 20u

/* Why it does not do what it should, or is not what it should be. */
static void put_why(const struct shard_view *v,
		    const struct compare_stats *compared, struct pack_w *w)
{
	char why[128] = "";

	if (compared->doubt != 0)
		snprintf(why, sizeof(why),
			 "replicas differ at index %" PRIu64
			 ", and no majority has the same state",
			 compared->doubt);
	put_str(w, "why", v->why[0] != '\0' ? v->why : why);
}

static void shard_pairs(struct metrics *m, struct bridge *b,
			const struct shard_view *v, struct pack_w *w)
{
	struct shard *s = bridge_shard(b);
	struct storage *st = bridge_storage(b);
	struct compare_stats compared;
	struct space_stats space;
	uint64_t term;

	bridge_compares(b, &compared);
	space_stats(bridge_space(b), &space);
	put_u64(w, "shard", shard_number(s));
	put_str(w, "role", shard_leads(s, &term) ? "owner" : "follower");
	put_u64(w, "leader", shard_leader(s));
	put_str(w, "owner", member_name(m, shard_leader(s)));
	put_u64(w, "term", shard_term(s));
	put_u64(w, "voters", shard_voters(s));
	put_u64(w, "last_index", shard_last_index(s));
	put_u64(w, "durable_index", shard_durable_index(s));
	put_u64(w, "commit_index", shard_commit_index(s));
	put_u64(w, "applied_index", storage_applied(st));
	put_u64(w, "checkpointed_index", storage_checkpointed(st));
	put_u64(w, "lag", shard_lag(s, v));
	put_u64(w, "resident", space.resident);
	put_u64(w, "waiting", space.waiting);
	put_str(w, "health", health_name(v->health));
	put_why(v, &compared, w);
	put_u64(w, "equal_index", compared.index);
	put_u64(w, "differences", compared.differences);
	put_u64(w, "undecided", compared.undecided);
	put_str(w, "transfer_to", member_name(m, v->transferee));
}

static void status_shard(struct metrics *m, struct bridge *b, struct pack_w *w)
{
	struct shard_view v;

	memset(&v, 0, sizeof(v));
	shard_view(bridge_shard(b), &v);
	pack_map(w, SHARD_PAIRS);
	shard_pairs(m, b, &v, w);
}

/* Where the members are reached, as they advertise it; port 0: not over TCP. */
static const struct config_address *member_rpc(const struct metrics *m,
					       uint64_t id)
{
	const struct config *cfg = m->about.cfg;
	size_t i;

	if (cfg == NULL)
		return NULL;
	if (id == core_identity(m->core)->node_id)
		return &cfg->advertise_rpc;
	for (i = 0; i < cfg->peers_n; i++)
		if (cfg->peers[i].id == id)
			return &cfg->peers[i].rpc;
	return NULL;
}

static void member_write(struct metrics *m, uint64_t id, const char *name,
			 struct pack_w *w)
{
	const struct config_address *a = member_rpc(m, id);
	char rpc[sizeof(a->host) + 16] = "";

	if (a != NULL && a->port != 0)
		snprintf(rpc, sizeof(rpc),
			 strchr(a->host, ':') != NULL ? "[%s]:%u" : "%s:%u",
			 a->host, (unsigned)a->port);
	pack_map(w, 3);
	put_u64(w, "id", id);
	put_str(w, "name", name);
	put_str(w, "rpc", rpc);
}

static void host_members(void *arg, struct pack_w *w)
{
	struct metrics *m = arg;
	const struct members *all = core_members(m->core);
	const struct identity *id = core_identity(m->core);
	size_t n = all != NULL ? members_count(all) : 0;
	size_t i;

	CHECK_OBJ(m, METRICS_MAGIC);
	pack_array(w, n > 0 ? (uint32_t)n : 1);
	if (n == 0)
		member_write(m, id->node_id, id->node_name, w);
	for (i = 0; i < n; i++)
		member_write(m, members_at(all, i)->id,
			     members_at(all, i)->name, w);
}

static void status_peers(struct metrics *m, struct pack_w *w)
{
	struct peer_stats peers[MEMBERS_MAX];
	size_t n = peers_read(m, peers);
	size_t i;

	pack_array(w, (uint32_t)n);
	for (i = 0; i < n; i++) {
		pack_map(w, 11);
		put_u64(w, "id", peers[i].node_id);
		put_str(w, "name", member_name(m, peers[i].node_id));
		put_bool(w, "raft", peers[i].up[LINK_RAFT]);
		put_bool(w, "bulk", peers[i].up[LINK_BULK]);
		put_u64(w, "bytes_in", peers[i].bytes_in);
		put_u64(w, "bytes_out", peers[i].bytes_out);
		put_u64(w, "queued", peers[i].queued);
		put_u64(w, "dropped", peers[i].dropped);
		put_u64(w, "connects", peers[i].connects);
		put_u64(w, "refused", peers[i].refused);
		put_u64(w, "certificate_expires_ms", peers[i].expires_ms);
	}
}

static void status_disk(struct metrics *m, struct pack_w *w)
{
	uint64_t left;
	uint64_t size;

	space_read(m, &left, &size);
	pack_map(w, 2);
	put_u64(w, "free_bytes", left);
	put_u64(w, "size_bytes", size);
}

/* Where the time of calls goes, us since the start: what reads and executes
 * is the loop's time outside of the other phases. */
static void status_stages(struct metrics *m, struct pack_w *w)
{
	static const char *const names[ENV_PHASES] = {
		[ENV_PHASE_PROPOSE] = "propose_us",
		[ENV_PHASE_LOG] = "log_us",
		[ENV_PHASE_ROUND] = "round_us",
		[ENV_PHASE_RELEASE] = "release_us",
		[ENV_PHASE_SEND] = "send_us",
	};
	uint64_t phases = 0;
	unsigned i;

	pack_map(w, ENV_PHASES + 2);
	for (i = ENV_PHASE_PROPOSE; i < ENV_PHASES; i++) {
		phases += m->uv->phase_ns[i];
		put_u64(w, names[i], m->uv->phase_ns[i] / 1000u);
	}
	put_u64(w, "execute_us",
		m->busy_ns > phases ? (m->busy_ns - phases) / 1000u : 0);
	put_u64(w, "log_writer_us",
		env_uv_worker_cpu_ns(m->uv, ENV_WORKER_LOG) / 1000u);
	put_u64(w, "storage_us",
		env_uv_worker_cpu_ns(m->uv, ENV_WORKER_STORAGE) / 1000u);
}

static void status_log(const struct log_stats *log, struct pack_w *w)
{
	pack_map(w, 8);
	put_u64(w, "batches", log->batches);
	put_u64(w, "syncs", log->syncs);
	put_u64(w, "bytes", log->bytes);
	put_u64(w, "sync_us_mean",
		log->syncs == 0 ? 0 : log->sync_ns_sum / log->syncs / 1000u);
	put_u64(w, "sync_us_max", log->sync_ns_max / 1000u);
	put_u64(w, "segments", log->segments);
	put_u64(w, "live_bytes", log->live_bytes);
	put_u64(w, "bytes_max", log->bytes_max);
}

static void host_status(void *arg, const struct caller *caller,
			bool reset_stall, struct pack_w *w)
{
	struct metrics *m = arg;
	const struct identity *id = core_identity(m->core);
	char cluster[2 * ID_BYTES + 1];
	struct log_stats log;
	struct sample s;
	uint32_t i;

	(void)caller;
	CHECK_OBJ(m, METRICS_MAGIC);
	sample_take(m, &s);
	log_stats(core_log(m->core), &log);
	hex_encode(id->cluster_id, ID_BYTES, cluster);
	pack_map(w, 32);
	put_str(w, "node", id->node_name);
	put_u64(w, "node_id", id->node_id);
	put_str(w, "cluster", cluster);
	put_str(w, "version", HOLDFAST_VERSION);
	put_u64(w, "boot", id->boot);
	put_u64(w, "pid", (uint64_t)getpid());
	put_u64(w, "up_ms", (uint64_t)(s.up_s * 1000));
	put_u64(w, "cpu_us", cpu_us());
	put_u64(w, "rss_bytes", rss_bytes());
	put_u64(w, "syncs", log.syncs);
	put_u64(w, "loop_stall_max_us", m->stall_ns / 1000u);
	put_u64(w, "connections", (uint64_t)s.connections);
	put_u64(w, "calls_open", (uint64_t)s.calls_open);
	put_u64(w, "calls_limit", (uint64_t)s.calls_limit);
	put_u64(w, "calls_refused", (uint64_t)s.calls_refused);
	put_u64(w, "served_refused", (uint64_t)s.served_refused);
	put_u64(w, "objects_resident", (uint64_t)s.resident);
	put_u64(w, "objects_resident_bytes", (uint64_t)s.resident_bytes);
	put_u64(w, "wall_ms", env_wall_ms(m->env));
	put_u64(w, "certificate_expires_ms", certificate_ms(m));
	put_u64(w, "frames", (uint64_t)s.frames);
	put_u64(w, "peer_frames", (uint64_t)s.peer_frames_out);
	put_u64(w, "forwards_sent", (uint64_t)s.forwards_sent);
	put_u64(w, "forwards_served", (uint64_t)s.forwards_served);
	put_u64(w, "elections", (uint64_t)s.elections);
	put_u64(w, "rounds", (uint64_t)s.rounds);
	pack_cstr(w, "disk");
	status_disk(m, w);
	pack_cstr(w, "members");
	host_members(m, w);
	pack_cstr(w, "peers");
	status_peers(m, w);
	pack_cstr(w, "stages");
	status_stages(m, w);
	pack_cstr(w, "log");
	status_log(&log, w);
	pack_cstr(w, "shards");
	pack_array(w, core_shards(m->core));
	for (i = 0; i < core_shards(m->core); i++)
		status_shard(m, core_bridge(m->core, i), w);
	if (reset_stall)
		m->stall_ns = 0;
}

/* shard and transfer. */

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static struct answer refusal(enum rc rc, const struct detail *why)
{
	return (struct answer){ .rc = rc,
				.outcome = OUTCOME_REFUSED,
				.why = why,
				.shard = UINT32_MAX,
				.retry_after_ms = -1 };
}

static void refuse(struct rpc_slot *slot, enum rc rc, uint64_t owner,
		   const struct detail *why)
{
	struct answer a = refusal(rc, why);

	a.owner = owner;
	rpc_answer(slot, &a);
}

static void refuse_for_now(struct rpc_slot *slot, enum rc rc,
			   const struct detail *why)
{
	struct answer a = refusal(rc, why);

	a.retry_after_ms = RETRY_AFTER_MS;
	rpc_answer(slot, &a);
}

/* What is decided here without a call, from grants that can be gone by. */
static bool may_decide(struct metrics *m, struct rpc_slot *slot)
{
	struct detail why = { { 0 }, { 0 } };
	enum rc rc = call_may_decide(m->core, &why);

	if (rc != RC_OK)
		refuse_for_now(slot, rc, &why);
	return rc == RC_OK;
}

static void answer_value(struct rpc_slot *slot, const struct pack_w *w)
{
	struct answer a = { .rc = RC_OK,
			    .result = { w->p, w->n },
			    .shard = UINT32_MAX,
			    .retry_after_ms = -1 };

	if (w->rc == RC_OK)
		rpc_answer(slot, &a);
	else
		refuse(slot, RC_OVERLOADED, 0, NULL);
}

/* The shard that params begin with. */
static struct bridge *shard_param(struct metrics *m, struct pack_r *r,
				  uint32_t *params, struct detail *why)
{
	uint64_t shard;

	if (pack_get_array(r, params) != RC_OK || *params == 0 ||
	    pack_get_u64(r, &shard) != RC_OK || shard >= core_shards(m->core)) {
		detail_set(why, RC_INVALID, "shard",
			   "the shards are numbered 0 to %u",
			   (unsigned)core_shards(m->core) - 1);
		return NULL;
	}
	return core_bridge(m->core, (uint32_t)shard);
}

static void view_peers(struct metrics *m, const struct shard_view *v,
		       struct pack_w *w)
{
	uint64_t now = env_now_ms(m->env);
	const struct shard_peer *p;
	uint32_t i;

	pack_array(w, v->peers_n);
	for (i = 0; i < v->peers_n; i++) {
		p = &v->peers[i];
		pack_map(w, p->heard_ms != 0 ? 6 : 5);
		put_u64(w, "id", p->node_id);
		put_str(w, "name", member_name(m, p->node_id));
		put_u64(w, "match_index", p->match);
		put_bool(w, "streaming", p->streaming);
		put_bool(w, "refused", p->refused);
		if (p->heard_ms != 0)
			put_u64(w, "heard_ago_ms", now - p->heard_ms);
	}
}

static void host_shard(void *arg, const struct caller *caller,
		       struct pack_bytes params, struct rpc_slot *slot)
{
	struct pack_r r = pack_reader(params.p, params.n);
	struct detail why = { { 0 }, { 0 } };
	struct metrics *m = arg;
	struct shard_view v;
	struct bridge *b;
	struct pack_w w;
	uint32_t n;

	(void)caller;
	CHECK_OBJ(m, METRICS_MAGIC);
	b = shard_param(m, &r, &n, &why);
	if (b == NULL) {
		refuse(slot, RC_INVALID, 0, &why);
		return;
	}
	memset(&v, 0, sizeof(v));
	shard_view(bridge_shard(b), &v);
	pack_w_init(&w, RESULT_BYTES_MAX);
	pack_map(&w, SHARD_PAIRS + 2);
	shard_pairs(m, b, &v, &w);
	put_str(&w, "node", core_identity(m->core)->node_name);
	pack_cstr(&w, "peers");
	view_peers(m, &v, &w);
	answer_value(slot, &w);
	pack_w_release(&w);
}

/* The second param: a name, an id, or nothing: whoever is most level. */
static enum rc transfer_to(struct metrics *m, struct pack_r *r, uint32_t params,
			   uint64_t *to, struct detail *why)
{
	char name[sizeof(((struct member *)0)->name)];
	const struct members *all = core_members(m->core);
	const struct member *one = NULL;
	struct pack_bytes b;

	*to = 0;
	if (params < 2)
		return RC_OK;
	if (pack_get_u64(r, to) == RC_OK)
		one = all != NULL ? members_find(all, *to) : NULL;
	else if (pack_get_bytes(r, &b) == RC_OK && b.n < sizeof(name) &&
		 all != NULL) {
		snprintf(name, sizeof(name), "%.*s", (int)b.n,
			 (const char *)b.p);
		one = members_named(all, name);
	}
	if (one == NULL)
		return detail_set(why, RC_NOT_FOUND, "node",
				  "there is no such member");
	*to = one->id;
	return RC_OK;
}

static enum rc transfer_begin(struct metrics *m, struct shard *s, uint64_t to,
			      struct detail *why)
{
	enum rc rc = core_transfer(m->core, shard_number(s), to);

	switch ((int)rc) {
	case RC_OK:
		return RC_OK;
	case RC_NOT_LEADER:
		return detail_set(why, RC_NOT_OWNER, "shard",
				  "only its owner can hand a shard over");
	case RC_NOT_FOUND:
		return detail_set(why, RC_NOT_FOUND, "node",
				  "no other voter of the shard");
	case RC_CONFLICT:
		return detail_set(why, RC_CONFLICT, "shard",
				  "it is being handed over already");
	case RC_NO_QUORUM:
		return detail_set(why, RC_NO_QUORUM, "node",
				  "that node does not answer");
	default:
		return rc_is_wire(rc) ? rc : RC_INTERNAL;
	}
}

static void host_transfer(void *arg, const struct caller *caller,
			  struct pack_bytes params, struct rpc_slot *slot)
{
	struct pack_r r = pack_reader(params.p, params.n);
	struct detail why = { { 0 }, { 0 } };
	struct metrics *m = arg;
	enum rc rc = RC_INVALID;
	struct bridge *b;
	struct pack_w w;
	uint64_t to;
	uint32_t n;

	CHECK_OBJ(m, METRICS_MAGIC);
	if (!may_decide(m, slot))
		return;
	if (!bind_any(core_bind(m->core), caller->principal, caller->tenant,
		      caller->env, RIGHT_ADMIN)) {
		detail_set(&why, RC_DENIED, "method",
			   "transfer is for principals that may administer");
		refuse(slot, RC_DENIED, 0, &why);
		return;
	}
	b = shard_param(m, &r, &n, &why);
	if (b != NULL)
		rc = transfer_to(m, &r, n, &to, &why);
	if (rc == RC_OK)
		rc = transfer_begin(m, bridge_shard(b), to, &why);
	if (rc != RC_OK) {
		refuse(slot, rc,
		       rc == RC_NOT_OWNER ? shard_leader(bridge_shard(b)) : 0,
		       &why);
		return;
	}
	pack_w_init(&w, 256);
	pack_map(&w, 2);
	put_u64(&w, "shard", shard_number(bridge_shard(b)));
	put_str(&w, "from", core_identity(m->core)->node_name);
	answer_value(slot, &w);
	pack_w_release(&w);
}

/* objects and object: heads, read on the storage worker, filtered by what the
 * caller may see. A listing goes shard by shard; its cursor is shard and id. */

struct listing {
	uint32_t magic;
	struct metrics *m;
	struct rpc_slot *slot;
	char principal[PRINCIPAL_BYTES_MAX + 1];
	char tenant[TENANT_BYTES_MAX + 1];
	char env[TENANT_BYTES_MAX + 1];
	char cls[CLASS_BYTES_MAX + 1]; /* "": all */
	uint32_t limit;
	uint32_t shard;
	uint32_t n;
	struct pack_w items;
	struct oid last;
	bool full;
	bool left; /* There was another after it was full. */
	struct storage_heads heads;
	/* object: one head. */
	struct storage_load load;
	struct address addr;
	char address[ADDRESS_BYTES_MAX + 1];
};

static void listing_free(struct listing *l)
{
	pack_w_release(&l->items);
	l->magic = 0;
	free(l);
}

static void listing_refuse(struct listing *l, enum rc rc,
			   const struct detail *why)
{
	refuse(l->slot, rc, 0, why);
	listing_free(l);
}

static void listing_value(struct listing *l, const struct pack_w *w)
{
	struct answer a = { .rc = w->rc == RC_OK ? RC_OK : RC_OVERLOADED,
			    .outcome = OUTCOME_REFUSED,
			    .result = { w->p, w->n },
			    .shard = UINT32_MAX,
			    .retry_after_ms = -1 };

	rpc_answer(l->slot, &a);
	listing_free(l);
}

static void item_write(const struct oid *oid, const struct object_head *head,
		       uint32_t shard, struct pack_w *w)
{
	char address[ADDRESS_BYTES_MAX + 1];
	char id[2 * OID_BYTES + 1];

	address_write(head->tenant, head->env, head->cls, head->name, oid,
		      address, sizeof(address));
	hex_encode(oid->b, OID_BYTES, id);
	pack_map(w, 7);
	put_str(w, "id", id);
	put_str(w, "address", address);
	put_u64(w, "rev", head->rev);
	put_u64(w, "rows", head->rows);
	put_u64(w, "bytes", head->bytes);
	pack_cstr(w, "destroyed");
	pack_bool(w, head->destroyed);
	put_u64(w, "shard", shard);
}

static bool listing_wants(const struct listing *l,
			  const struct object_head *head)
{
	struct address a = { .tenant = head->tenant,
			     .env = head->env,
			     .cls = head->cls,
			     .name = head->name,
			     .by_id = head->name.n == 0 };

	if (!pack_bytes_eq(head->tenant, l->tenant, strlen(l->tenant)) ||
	    !pack_bytes_eq(head->env, l->env, strlen(l->env)))
		return false;
	if (l->cls[0] != '\0' &&
	    !pack_bytes_eq(head->cls, l->cls, strlen(l->cls)))
		return false;
	return bind_rights(core_bind(l->m->core), text(l->principal), &a) != 0;
}

static void listing_head(struct storage_heads *h, const struct oid *oid,
			 struct pack_bytes sealed)
{
	struct listing *l = h->arg;
	struct object_head head;

	if (l->full) {
		l->left = true;
		return;
	}
	h->after = *oid;
	if (object_head_read(oid, sealed, &head) != RC_OK ||
	    !listing_wants(l, &head))
		return;
	item_write(oid, &head, l->shard, &l->items);
	l->last = *oid;
	if (++l->n == l->limit)
		l->full = true;
}

static void listing_end(struct listing *l, bool more)
{
	char cursor[8 + 2 * OID_BYTES + 1];
	struct pack_w w;
	int n;

	pack_w_init(&w, RESULT_BYTES_MAX);
	pack_map(&w, more ? 2 : 1);
	pack_cstr(&w, "items");
	pack_array(&w, l->n);
	pack_raw(&w, l->items.p, l->items.n);
	if (more) {
		n = snprintf(cursor, sizeof(cursor), "%" PRIu32 ".", l->shard);
		hex_encode(l->last.b, OID_BYTES, cursor + n);
		put_str(&w, "next", cursor);
	}
	if (l->items.rc != RC_OK)
		w.rc = l->items.rc;
	listing_value(l, &w);
	pack_w_release(&w);
}

static void listing_done(struct storage_heads *h, enum rc rc, bool more)
{
	struct listing *l = h->arg;

	CHECK_OBJ(l, LISTING_MAGIC);
	if (rc != RC_OK || core_is_closing(l->m->core)) {
		listing_refuse(l, rc != RC_OK ? RC_INTERNAL : RC_OVERLOADED,
			       NULL);
		return;
	}
	if (l->full) {
		listing_end(l, more || l->left ||
				       l->shard + 1 < core_shards(l->m->core));
		return;
	}
	if (!more) {
		memset(&h->after, 0, sizeof(h->after));
		if (++l->shard == core_shards(l->m->core)) {
			listing_end(l, false);
			return;
		}
	}
	storage_heads(bridge_storage(core_bridge(l->m->core, l->shard)), h);
}

/* Of the params' keys: which has been seen, by its bit. */
enum listing_key {
	KEY_TENANT,
	KEY_ENV,
	KEY_CLASS,
	KEY_AFTER,
	KEY_LIMIT,
	KEYS,
};

static const char *const key_names[KEYS] = { "tenant", "env", "class", "after",
					     "limit" };

static enum rc copy_word(struct pack_bytes b, const char *field, char *out,
			 size_t n, struct detail *why)
{
	if (b.n == 0 || b.n >= n || memchr(b.p, 0, b.n) != NULL)
		return detail_set(why, RC_INVALID, field, "has 1 to %zu bytes",
				  n - 1);
	memcpy(out, b.p, b.n);
	out[b.n] = '\0';
	return RC_OK;
}

static enum rc cursor_read(struct listing *l, struct pack_bytes b,
			   struct detail *why)
{
	const uint8_t *dot = b.n == 0 ? NULL : memchr(b.p, '.', b.n);
	uint32_t shard = 0;
	const uint8_t *p;

	if (dot == NULL || dot == b.p || dot - b.p > 2)
		goto bad;
	for (p = b.p; p < dot; p++) {
		if (*p < '0' || *p > '9')
			goto bad;
		shard = shard * 10 + (uint32_t)(*p - '0');
	}
	if (shard >= core_shards(l->m->core) ||
	    hex_decode((const char *)dot + 1, b.n - (size_t)(dot + 1 - b.p),
		       l->heads.after.b, OID_BYTES) != RC_OK)
		goto bad;
	l->shard = shard;
	return RC_OK;
bad:
	return detail_set(why, RC_INVALID, "after",
			  "this is no cursor of a listing");
}

static enum rc listing_limit(struct listing *l, struct pack_r *r,
			     struct detail *why)
{
	uint64_t limit;

	if (pack_get_u64(r, &limit) != RC_OK || limit == 0 ||
	    limit > LISTING_ITEMS_MAX)
		return detail_set(why, RC_INVALID, "limit",
				  "is between 1 and %u", LISTING_ITEMS_MAX);
	l->limit = (uint32_t)limit;
	return RC_OK;
}

static enum rc listing_option(struct listing *l, enum listing_key key,
			      struct pack_r *r, struct detail *why)
{
	struct pack_bytes b = { NULL, 0 };

	if (key == KEY_LIMIT)
		return listing_limit(l, r, why);
	if (pack_get_bytes(r, &b) != RC_OK)
		return detail_set(why, RC_INVALID, key_names[key],
				  "is a string");
	switch (key) {
	case KEY_TENANT:
		return copy_word(b, "tenant", l->tenant, sizeof(l->tenant),
				 why);
	case KEY_ENV:
		return copy_word(b, "env", l->env, sizeof(l->env), why);
	case KEY_CLASS:
		return copy_word(b, "class", l->cls, sizeof(l->cls), why);
	case KEY_AFTER:
		return cursor_read(l, b, why);
	case KEY_LIMIT:
	case KEYS:
		break;
	}
	UNREACHABLE();
}

static enum rc listing_key(struct pack_bytes name, uint32_t *seen,
			   enum listing_key *key, struct detail *why)
{
	char text[sizeof(why->field)];

	rpc_shown(name, text);
	for (*key = KEY_TENANT; *key < KEYS; (*key)++)
		if (pack_bytes_eq(name, key_names[*key],
				  strlen(key_names[*key])))
			break;
	if (*key == KEYS)
		return detail_set(why, RC_INVALID, text,
				  "a listing takes tenant, env, class, after "
				  "and limit");
	if ((*seen & 1u << *key) != 0)
		return detail_set(why, RC_INVALID, text, "comes twice");
	*seen |= 1u << *key;
	return RC_OK;
}

static enum rc listing_params(struct listing *l, struct pack_bytes params,
			      struct detail *why)
{
	struct pack_r r = pack_reader(params.p, params.n);
	enum listing_key key;
	struct pack_bytes name;
	uint32_t seen = 0;
	uint32_t n;
	uint32_t pairs;
	enum rc rc = RC_OK;

	if (pack_get_array(&r, &n) != RC_OK || n == 0)
		return RC_OK;
	if (pack_get_map(&r, &pairs) != RC_OK)
		return detail_set(why, RC_INVALID, "params",
				  "a listing takes a map");
	while (pairs-- > 0 && rc == RC_OK) {
		if (pack_get_bytes(&r, &name) != RC_OK)
			return detail_set(why, RC_INVALID, "params",
					  "a key is a string");
		rc = listing_key(name, &seen, &key, why);
		if (rc == RC_OK)
			rc = listing_option(l, key, &r, why);
	}
	return rc;
}

static struct listing *listing_new(struct metrics *m,
				   const struct caller *caller,
				   struct rpc_slot *slot)
{
	struct listing *l = calloc(1, sizeof(*l));

	if (l == NULL)
		return NULL;
	l->magic = LISTING_MAGIC;
	l->m = m;
	l->slot = slot;
	l->limit = LISTING_ITEMS_DEFAULT;
	snprintf(l->principal, sizeof(l->principal), "%.*s",
		 (int)caller->principal.n, (const char *)caller->principal.p);
	snprintf(l->tenant, sizeof(l->tenant), "%.*s", (int)caller->tenant.n,
		 (const char *)caller->tenant.p);
	snprintf(l->env, sizeof(l->env), "%.*s", (int)caller->env.n,
		 (const char *)caller->env.p);
	pack_w_init(&l->items, RESULT_BYTES_MAX);
	return l;
}

static void host_objects(void *arg, const struct caller *caller,
			 struct pack_bytes params, struct rpc_slot *slot)
{
	struct metrics *m = arg;
	struct detail why = { { 0 }, { 0 } };
	struct listing *l;
	enum rc rc;

	CHECK_OBJ(m, METRICS_MAGIC);
	if (!may_decide(m, slot))
		return;
	l = listing_new(m, caller, slot);
	if (l == NULL) {
		refuse_for_now(slot, RC_OVERLOADED, NULL);
		return;
	}
	l->heads.rows_max = 512;
	l->heads.head = listing_head;
	l->heads.done = listing_done;
	l->heads.arg = l;
	rc = listing_params(l, params, &why);
	if (rc != RC_OK) {
		listing_refuse(l, rc, &why);
		return;
	}
	storage_heads(bridge_storage(core_bridge(m->core, l->shard)),
		      &l->heads);
}

static void object_row(struct storage_load *load, const struct unit_row *row)
{
	(void)load;
	(void)row;
}

static bool same(struct pack_bytes a, struct pack_bytes b)
{
	return pack_bytes_eq(a, (const char *)b.p, b.n);
}

static void object_done(struct storage_load *load, enum rc rc)
{
	struct listing *l = load->arg;
	struct object_head head;
	struct pack_w w;

	CHECK_OBJ(l, LISTING_MAGIC);
	if (rc == RC_OK && load->head.p == NULL) {
		listing_refuse(l, RC_NOT_FOUND, NULL);
		return;
	}
	if (rc != RC_OK ||
	    object_head_read(&l->addr.oid, load->head, &head) != RC_OK) {
		listing_refuse(l, RC_INTERNAL, NULL);
		return;
	}
	/* By its id one may ask for what is another's. */
	if (!same(head.tenant, l->addr.tenant) ||
	    !same(head.env, l->addr.env) || !same(head.cls, l->addr.cls)) {
		listing_refuse(l, RC_NOT_FOUND, NULL);
		return;
	}
	pack_w_init(&w, RESULT_BYTES_MAX);
	item_write(&l->addr.oid, &head, l->shard, &w);
	listing_value(l, &w);
	pack_w_release(&w);
}

static enum rc object_params(struct listing *l, struct pack_bytes params,
			     struct detail *why)
{
	const struct identity *id = core_identity(l->m->core);
	struct pack_r r = pack_reader(params.p, params.n);
	struct pack_bytes name;
	uint32_t n;
	enum rc rc;

	if (pack_get_array(&r, &n) != RC_OK || n != 1 ||
	    pack_get_bytes(&r, &name) != RC_OK || name.n > ADDRESS_BYTES_MAX)
		return detail_set(why, RC_INVALID, "address",
				  "object takes an address");
	/* The request's bytes are gone when storage answers. */
	memcpy(l->address, name.p, name.n);
	name.p = (const uint8_t *)l->address;
	rc = address_parse(name, text(l->tenant), text(l->env), &l->addr, why);
	if (rc != RC_OK)
		return rc;
	if (bind_rights(core_bind(l->m->core), text(l->principal), &l->addr) ==
	    0)
		return RC_NOT_FOUND;
	if (!l->addr.by_id)
		placement_id(id->hash_key, l->addr.tenant, l->addr.env,
			     l->addr.cls, l->addr.name, &l->addr.oid);
	l->shard = route_shard(id, &l->addr);
	return RC_OK;
}

static void host_object(void *arg, const struct caller *caller,
			struct pack_bytes params, struct rpc_slot *slot)
{
	struct metrics *m = arg;
	struct detail why = { { 0 }, { 0 } };
	struct listing *l;
	enum rc rc;

	CHECK_OBJ(m, METRICS_MAGIC);
	if (!may_decide(m, slot))
		return;
	l = listing_new(m, caller, slot);
	if (l == NULL) {
		refuse_for_now(slot, RC_OVERLOADED, NULL);
		return;
	}
	rc = object_params(l, params, &why);
	if (rc != RC_OK) {
		listing_refuse(l, rc, &why);
		return;
	}
	l->load = (struct storage_load){ .oid = l->addr.oid,
					 .what = LOAD_KEYS,
					 .row = object_row,
					 .done = object_done,
					 .arg = l };
	storage_load(bridge_storage(core_bridge(m->core, l->shard)), &l->load);
}

/* Life. */

enum rc metrics_open(uv_loop_t *loop, struct env_uv *env, struct core *core,
		     struct metrics **out)
{
	struct metrics *m = calloc(1, sizeof(*m));

	if (m == NULL)
		return RC_NOMEM;
	m->magic = METRICS_MAGIC;
	m->env = &env->env;
	m->uv = env;
	m->loop = loop;
	m->core = core;
	m->started_ns = env_now_ns(m->env);
	uv_prepare_init(loop, &m->prepare);
	m->prepare.data = m;
	uv_prepare_start(&m->prepare, turn_ended);
	*out = m;
	return RC_OK;
}

void metrics_host(struct metrics *m, struct rpc_host *host)
{
	*host = (struct rpc_host){ .arg = m,
				   .status = host_status,
				   .metrics = host_metrics,
				   .members = host_members,
				   .objects = host_objects,
				   .object = host_object,
				   .shard = host_shard,
				   .transfer = host_transfer };
}

void metrics_about(struct metrics *m, const struct metrics_about *about)
{
	CHECK_OBJ(m, METRICS_MAGIC);
	m->about = *about;
}

void metrics_rpc(struct metrics *m, struct rpc *rpc)
{
	m->rpc = rpc;
}

static void metrics_closed(uv_handle_t *h)
{
	struct metrics *m = h->data;

	CHECK_OBJ(m, METRICS_MAGIC);
	m->magic = 0;
	free(m);
}

void metrics_close(struct metrics *m)
{
	uv_close((uv_handle_t *)&m->prepare, metrics_closed);
}
