/*
 * `status`: all nodes on one screen. Each is asked by itself; of a shard the
 * word of its owner counts, that with the highest term when there are two.
 */
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"

#define SHARDS_MAX  64u
#define DAY_MS      86400000u
#define CERT_DAYS   30u /* Fewer left: worth a colour. */
#define LAG_ENTRIES 1000u
#define DISK_SHARE  10u /* Less than so many percent free: the same. */

enum colour {
	PLAIN,
	BAD,
	WARN,
	DIM,
};

/* What is known of one shard. */
struct row {
	bool known;
	bool owned; /* Its owner says so. */
	char owner[PROFILE_NAME_BYTES_MAX + 1];
	char health[24];
	char why[161];
	uint64_t term;
	uint64_t last;
	uint64_t lag;
};

struct screen {
	struct cli_all all;
	struct row rows[SHARDS_MAX];
	uint32_t shards;
	bool colours;
};

static void paint(const struct screen *s, enum colour c)
{
	static const char *const codes[] = { [PLAIN] = "\x1b[0m",
					     [BAD] = "\x1b[31m",
					     [WARN] = "\x1b[33m",
					     [DIM] = "\x1b[2m" };

	if (s->colours)
		(void)fputs(codes[c], stdout);
}

/* `n` columns, at least. */
static void cell(const struct screen *s, enum colour c, const char *text, int n)
{
	int left = n - (int)strlen(text);

	if (c != PLAIN)
		paint(s, c);
	out_text(stdout, text, strlen(text));
	if (c != PLAIN)
		paint(s, PLAIN);
	(void)printf("%*s", left > 0 ? left : 0, "");
}

static uint64_t number(struct pack_bytes map, const char *key)
{
	uint64_t v = 0;

	(void)out_find_u64(map, key, &v);
	return v;
}

static void text_of(struct pack_bytes map, const char *key, char *out,
		    size_t cap)
{
	struct pack_bytes b = { NULL, 0 };

	(void)out_find_text(map, key, &b);
	(void)snprintf(out, cap, "%.*s", (int)b.n, (const char *)b.p);
}

/* ------------------------------------------------------------- gathering ---
 */

static void row_take(struct row *row, struct pack_bytes map)
{
	uint64_t term = number(map, "term");
	char role[16];
	bool owns;

	text_of(map, "role", role, sizeof(role));
	owns = strcmp(role, "owner") == 0;
	if (row->known &&
	    (term < row->term || (term == row->term && (row->owned || !owns))))
		return;
	row->known = true;
	row->owned = owns;
	row->term = term;
	row->last = number(map, "last_index");
	row->lag = number(map, "lag");
	text_of(map, "owner", row->owner, sizeof(row->owner));
}

/* What is wrong with it anywhere. */
static void row_health(struct row *row, struct pack_bytes map, const char *node)
{
	char health[24];
	char why[100];

	text_of(map, "health", health, sizeof(health));
	text_of(map, "why", why, sizeof(why));
	if (health[0] == '\0' ||
	    (strcmp(health, "whole") == 0 && why[0] == '\0'))
		return;
	(void)snprintf(row->health, sizeof(row->health), "%s", health);
	(void)snprintf(row->why, sizeof(row->why), "%.50s: %s", node,
		       why[0] != '\0' ? why : health);
}

static void rows_gather(struct screen *s)
{
	struct pack_bytes shards;
	struct pack_bytes map;
	struct pack_r r;
	uint64_t shard;
	uint32_t n;
	size_t i;

	for (i = 0; i < s->all.n; i++) {
		if (s->all.told[i].code != HOLDFAST_OK ||
		    !out_find(s->all.told[i].value, "shards", &shards))
			continue;
		r = pack_reader(shards.p, shards.n);
		if (pack_get_array(&r, &n) != RC_OK)
			continue;
		for (; n > 0 && pack_skip(&r, &map) == RC_OK; n--) {
			if (!out_find_u64(map, "shard", &shard) ||
			    shard >= SHARDS_MAX)
				continue;
			if (shard + 1 > s->shards)
				s->shards = (uint32_t)shard + 1;
			row_take(&s->rows[shard], map);
			row_health(&s->rows[shard], map, s->all.told[i].node);
		}
	}
}

/* --------------------------------------------------------------- showing ---
 */

static uint32_t shards_of(const struct screen *s, const char *node)
{
	uint32_t n = 0;
	uint32_t i;

	for (i = 0; i < s->shards; i++)
		n += s->rows[i].owned && strcmp(s->rows[i].owner, node) == 0;
	return n;
}

static void cell_certificate(const struct screen *s, struct pack_bytes v)
{
	uint64_t end = number(v, "certificate_expires_ms");
	uint64_t now = number(v, "wall_ms");
	uint64_t days = end > now ? (end - now) / DAY_MS : 0;
	char text[24] = "-";

	if (end != 0)
		(void)snprintf(text, sizeof(text), "%llu d",
			       (unsigned long long)days);
	cell(s,
	     end == 0           ? PLAIN
	     : days == 0        ? BAD
	     : days < CERT_DAYS ? WARN
				: PLAIN,
	     text, 6);
}

static void cell_disk(const struct screen *s, struct pack_bytes v)
{
	struct pack_bytes disk;
	uint64_t left = 0;
	uint64_t size = 0;

	if (out_find(v, "disk", &disk)) {
		left = number(disk, "free_bytes");
		size = number(disk, "size_bytes");
	}
	cell(s, size > 0 && left / (size / 100 + 1) < DISK_SHARE ? WARN : PLAIN,
	     size > 0 ? out_bytes(left) : "-", 11);
}

static void cell_peers(const struct screen *s, struct pack_bytes v)
{
	struct pack_bytes peers;
	struct pack_bytes map;
	struct pack_bytes up;
	struct pack_r r;
	uint32_t whole = 0;
	uint32_t all = 0;
	uint32_t n;
	char text[24];

	if (out_find(v, "peers", &peers)) {
		r = pack_reader(peers.p, peers.n);
		if (pack_get_array(&r, &all) != RC_OK)
			all = 0;
		for (n = all; n > 0 && pack_skip(&r, &map) == RC_OK; n--)
			whole += out_find(map, "raft", &up) &&
				 up.p[0] == 0xc3 &&
				 out_find(map, "bulk", &up) && up.p[0] == 0xc3;
	}
	(void)snprintf(text, sizeof(text), "%u of %u", whole, all);
	cell(s, whole < all ? BAD : PLAIN, all > 0 ? text : "-", 0);
}

static void node_line(const struct screen *s, const struct cli_told *t)
{
	struct pack_bytes log = { NULL, 0 };
	char text[64];

	cell(s, PLAIN, t->node, 10);
	if (t->code != HOLDFAST_OK) {
		paint(s, BAD);
		(void)fputs(t->code == HOLDFAST_UNREACHABLE ? "down: " : "",
			    stdout);
		out_text(stdout, t->why, strlen(t->why));
		paint(s, PLAIN);
		(void)fputc('\n', stdout);
		return;
	}
	(void)out_find(t->value, "log", &log);
	cell(s, PLAIN, out_duration_ms(number(t->value, "up_ms")), 13);
	(void)printf("%4u ", shards_of(s, t->node));
	(void)snprintf(text, sizeof(text), "%.1f / %.0f ms",
		       (double)number(log, "sync_us_mean") / 1000,
		       (double)number(log, "sync_us_max") / 1000);
	(void)printf("%14s  ", text);
	cell_disk(s, t->value);
	cell(s, PLAIN, out_bytes(number(t->value, "rss_bytes")), 11);
	cell_certificate(s, t->value);
	cell_peers(s, t->value);
	(void)fputc('\n', stdout);
}

static void nodes_show(const struct screen *s)
{
	size_t i;

	paint(s, DIM);
	(void)printf("%-10s%-13s%4s %14s  %-11s%-11s%-6s%s\n", "node", "up",
		     "owns", "sync mean/max", "disk free", "memory", "cert",
		     "peers");
	paint(s, PLAIN);
	for (i = 0; i < s->all.n; i++)
		node_line(s, &s->all.told[i]);
}

static void shard_cell(const struct screen *s, uint32_t shard)
{
	const struct row *row = &s->rows[shard];
	char text[80];
	enum colour c = PLAIN;

	if (!row->known || row->owner[0] == '\0' || !row->owned)
		c = BAD;
	else if (row->health[0] != '\0' || row->lag > LAG_ENTRIES)
		c = WARN;
	(void)snprintf(text, sizeof(text), "%3u  %-9.12s %4llu %6llu", shard,
		       row->owner[0] != '\0' ? row->owner : "nobody",
		       (unsigned long long)row->term,
		       (unsigned long long)row->lag);
	cell(s, c, text, 26);
}

/* Side by side, so that sixty-four fit a screen. */
static void shards_show(const struct screen *s)
{
	uint32_t columns = s->shards > 8 ? 3 : 1;
	uint32_t lines = (s->shards + columns - 1) / columns;
	uint32_t c;
	uint32_t i;

	(void)fputc('\n', stdout);
	paint(s, DIM);
	for (c = 0; c < columns; c++)
		(void)printf("%s%s", c > 0 ? " " : "",
			     "shard owner    term    lag");
	paint(s, PLAIN);
	(void)fputc('\n', stdout);
	for (i = 0; i < lines; i++) {
		for (c = 0; c < columns; c++) {
			if (c * lines + i >= s->shards)
				break;
			if (c > 0)
				(void)fputc(' ', stdout);
			shard_cell(s, c * lines + i);
		}
		(void)fputc('\n', stdout);
	}
}

static bool row_is_nobodys(const struct row *row)
{
	return row->why[0] == '\0' && row->owner[0] == '\0';
}

/* Those without an owner and without another reason, as `1 3-7'. */
static void nobodys_show(const struct screen *s)
{
	uint32_t from;
	uint32_t i;
	bool any = false;

	for (from = 0; from < s->shards; from = i + 1) {
		for (i = from; i < s->shards && row_is_nobodys(&s->rows[i]);)
			i++;
		if (i == from)
			continue;
		if (!any)
			cell(s, BAD, "nobody owns", 0);
		any = true;
		(void)printf(" %u", from);
		if (i - from > 1)
			(void)printf("-%u", i - 1);
	}
	if (any)
		(void)fputs(": `holdfast shard show N' says why\n", stdout);
}

static void troubles_show(const struct screen *s)
{
	const struct row *row;
	char name[16];
	uint32_t i;

	for (i = 0; i < s->shards; i++) {
		row = &s->rows[i];
		if (row->why[0] == '\0' &&
		    (row->owned || row->owner[0] == '\0'))
			continue;
		(void)snprintf(name, sizeof(name), "shard %u", i);
		cell(s, BAD, name, 10);
		if (row->why[0] != '\0')
			out_text(stdout, row->why, strlen(row->why));
		else
			(void)printf("%s is said to own it and does not answer "
				     "for it",
				     row->owner);
		(void)fputc('\n', stdout);
	}
}

static void screen_show(const struct screen *s)
{
	char cluster[64] = "";
	char version[32] = "";
	size_t answers = 0;
	size_t i;

	for (i = 0; i < s->all.n; i++) {
		if (s->all.told[i].code != HOLDFAST_OK)
			continue;
		answers++;
		text_of(s->all.told[i].value, "cluster", cluster,
			sizeof(cluster));
		text_of(s->all.told[i].value, "version", version,
			sizeof(version));
	}
	(void)fputs("cluster ", stdout);
	out_text(stdout, cluster, strlen(cluster));
	(void)printf(", version ");
	out_text(stdout, version, strlen(version));
	(void)printf("\n%u shards; %zu of %zu nodes answer\n\n", s->shards,
		     answers, s->all.n);
	nodes_show(s);
	shards_show(s);
	nobodys_show(s);
	troubles_show(s);
}

/* ------------------------------------------------------------------ JSON ---
 */

static void put_text(struct pack_w *w, const char *key, const char *text)
{
	pack_cstr(w, key);
	pack_cstr(w, text);
}

static void told_json(const struct cli_told *t, struct pack_w *w)
{
	bool good = t->code == HOLDFAST_OK;

	pack_map(w, good ? 3 : 4);
	put_text(w, "node", t->node);
	put_text(w, "rpc", t->at->rpc);
	if (good) {
		pack_cstr(w, "status");
		pack_raw(w, t->value.p, t->value.n);
		return;
	}
	put_text(w, "code", holdfast_code_name(t->code));
	put_text(w, "message", t->why);
}

static void screen_json(const struct screen *s)
{
	const struct row *row;
	struct pack_bytes v;
	struct pack_w w;
	uint32_t i;

	pack_w_init(&w, 32u << 20);
	pack_map(&w, 2);
	pack_cstr(&w, "nodes");
	pack_array(&w, (uint32_t)s->all.n);
	for (i = 0; i < s->all.n; i++)
		told_json(&s->all.told[i], &w);
	pack_cstr(&w, "shards");
	pack_array(&w, s->shards);
	for (i = 0; i < s->shards; i++) {
		row = &s->rows[i];
		pack_map(&w, 6);
		pack_cstr(&w, "shard");
		pack_u64(&w, i);
		put_text(&w, "owner", row->owned ? row->owner : "");
		pack_cstr(&w, "term");
		pack_u64(&w, row->term);
		pack_cstr(&w, "last_index");
		pack_u64(&w, row->last);
		pack_cstr(&w, "lag");
		pack_u64(&w, row->lag);
		put_text(&w, "why", row->why);
	}
	v = (struct pack_bytes){ w.p, w.n };
	if (w.rc == RC_OK)
		out_json(stdout, v);
	pack_w_release(&w);
}

/* -------------------------------------------------------------- one node ---
 */

static void line_number(struct pack_bytes map, const char *key,
			const char *label)
{
	uint64_t v;

	if (out_find_u64(map, key, &v))
		(void)printf("%-12s %llu\n", label, (unsigned long long)v);
}

static void line_text(struct pack_bytes map, const char *key, const char *label)
{
	struct pack_bytes v;

	if (!out_find(map, key, &v))
		return;
	(void)printf("%-12s ", label);
	out_value(stdout, v);
	(void)fputc('\n', stdout);
}

static void log_show(struct pack_bytes status)
{
	struct pack_bytes log;

	if (!out_find(status, "log", &log))
		return;
	(void)printf("%-12s %s of %s in use\n", "log",
		     out_bytes(number(log, "live_bytes")),
		     out_bytes(number(log, "bytes_max")));
	(void)printf("%-12s %llu us, at most %llu us\n", "sync takes",
		     (unsigned long long)number(log, "sync_us_mean"),
		     (unsigned long long)number(log, "sync_us_max"));
}

/* What one node says of itself, when it is the only one that was asked. */
static void details_show(struct pack_bytes s)
{
	line_text(s, "node", "node");
	line_number(s, "pid", "process");
	(void)printf("%-12s %s\n", "cpu",
		     out_duration_ms(number(s, "cpu_us") / 1000));
	line_number(s, "connections", "connections");
	line_number(s, "calls_open", "calls");
	(void)printf("%-12s %llu in memory, %s\n", "objects",
		     (unsigned long long)number(s, "objects_resident"),
		     out_bytes(number(s, "objects_resident_bytes")));
	line_number(s, "syncs", "syncs");
	log_show(s);
	(void)printf("%-12s %llu us at most\n\n", "loop turn",
		     (unsigned long long)number(s, "loop_stall_max_us"));
}

/* A node that does not say so does not make the answer an error; none does. */
static int status_exit(const struct screen *s)
{
	size_t i;

	if (cli_all_any(&s->all))
		return CLI_OK;
	for (i = 0; i < s->all.n; i++) {
		(void)fputs("holdfast: ", stderr);
		out_text(stderr, s->all.told[i].why,
			 strlen(s->all.told[i].why));
		(void)fputc('\n', stderr);
	}
	return s->all.told[0].code == HOLDFAST_UNREACHABLE ? CLI_UNREACHABLE
							   : CLI_REFUSED;
}

static int status_command(struct cli *cli, int argc, char **argv)
{
	static struct screen s;
	const struct pack_bytes none = { NULL, 0 };
	int code = cli_parse(cli, argc, argv, NULL, 0, 0);

	if (code != CLI_OK || cli->help)
		return code;
	code = cli_ask_all(cli, "status", none, &s.all);
	if (code != CLI_OK)
		return code;
	s.colours = out_colours();
	rows_gather(&s);
	code = status_exit(&s);
	if (cli->json && s.all.n == 1 && code == CLI_OK) {
		out_json(stdout, s.all.told[0].value);
	} else if (cli->json) {
		screen_json(&s);
	} else if (code == CLI_OK) {
		if (s.all.n == 1)
			details_show(s.all.told[0].value);
		screen_show(&s);
	}
	cli_all_release(&s.all);
	return code;
}

const struct cli_command cli_status_command = {
	"status",
	"Shows the nodes, who owns which shard, and what is wrong",
	"status\n",
	"Every endpoint of --config is asked; a --socket is one node, with "
	"more "
	"detail.\n"
	"sync   what a sync of the log takes, on average and at most\n"
	"cert   days left of the node's certificate\n"
	"peers  members to which both links stand\n"
	"lag    entries that the voter furthest behind does not have yet\n"
	"With --json one node's answer as it is, or {nodes, shards}.\n",
	status_command,
};
