/*
 * `shard`: who owns which, why one is stuck, and handing one over.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/cli.h"

#define TRANSFER_MS 5000u
#define POLL_MS     5u

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

static bool owns(struct pack_bytes map)
{
	char role[16];

	text_of(map, "role", role, sizeof(role));
	return strcmp(role, "owner") == 0;
}

static void say(const char *text)
{
	out_text(stdout, text, strlen(text));
}

/* -------------------------------------------------------------------- ls ---
 */

static void ls_row(const char *node, struct pack_bytes map)
{
	char health[24];

	text_of(map, "health", health, sizeof(health));
	(void)printf("%5llu  %-12.12s %6llu %10llu %10llu %10llu %8llu %8llu  "
		     "%s\n",
		     (unsigned long long)number(map, "shard"), node,
		     (unsigned long long)number(map, "term"),
		     (unsigned long long)number(map, "last_index"),
		     (unsigned long long)number(map, "commit_index"),
		     (unsigned long long)number(map, "applied_index"),
		     (unsigned long long)number(map, "lag"),
		     (unsigned long long)number(map, "resident"), health);
}

/* The row of shard `shard` in a node's status; false: there is none. */
static bool status_row(const struct cli_told *t, uint64_t shard,
		       struct pack_bytes *map)
{
	struct pack_bytes shards;
	struct pack_r r;
	uint32_t n;

	if (t->code != HOLDFAST_OK || !out_find(t->value, "shards", &shards))
		return false;
	r = pack_reader(shards.p, shards.n);
	if (pack_get_array(&r, &n) != RC_OK)
		return false;
	for (; n > 0 && pack_skip(&r, map) == RC_OK; n--)
		if (number(*map, "shard") == shard)
			return true;
	return false;
}

/* False: nobody knows of it. */
static bool ls_shard(const struct cli_all *all, uint64_t shard)
{
	struct pack_bytes best = { NULL, 0 };
	struct pack_bytes map;
	const char *owner = "-";
	size_t i;

	for (i = 0; i < all->n; i++) {
		if (!status_row(&all->told[i], shard, &map))
			continue;
		if (best.p != NULL &&
		    number(map, "term") < number(best, "term"))
			continue;
		if (owns(map)) {
			owner = all->told[i].node;
			best = map;
		} else if (best.p == NULL ||
			   number(map, "term") > number(best, "term")) {
			owner = "-";
			best = map;
		}
	}
	if (best.p == NULL)
		return false;
	ls_row(owner, best);
	return true;
}

static int all_failed(const struct cli_all *all)
{
	const struct cli_told *t = &all->told[0];
	size_t i;

	for (i = 0; i < all->n; i++) {
		t = &all->told[i];
		(void)fputs("holdfast: ", stderr);
		out_text(stderr, t->node, strlen(t->node));
		(void)fprintf(stderr, ": %s: ", holdfast_code_name(t->code));
		out_text(stderr, t->why, strlen(t->why));
		(void)fputc('\n', stderr);
	}
	return t->code == HOLDFAST_UNREACHABLE ? CLI_UNREACHABLE : CLI_REFUSED;
}

static void all_json(const struct cli_all *all)
{
	struct pack_bytes v;
	struct pack_w w;
	size_t i;

	pack_w_init(&w, 32u << 20);
	pack_array(&w, (uint32_t)all->n);
	for (i = 0; i < all->n; i++) {
		const struct cli_told *t = &all->told[i];

		if (t->code == HOLDFAST_OK) {
			pack_raw(&w, t->value.p, t->value.n);
			continue;
		}
		pack_map(&w, 3);
		pack_cstr(&w, "node");
		pack_cstr(&w, t->node);
		pack_cstr(&w, "code");
		pack_cstr(&w, holdfast_code_name(t->code));
		pack_cstr(&w, "message");
		pack_cstr(&w, t->why);
	}
	v = (struct pack_bytes){ w.p, w.n };
	if (w.rc == RC_OK)
		out_json(stdout, v);
	pack_w_release(&w);
}

static int shard_ls(struct cli *cli)
{
	static struct cli_all all;
	const struct pack_bytes none = { NULL, 0 };
	uint64_t shard = 0;
	int code = cli_ask_all(cli, "status", none, &all);

	if (code != CLI_OK)
		return code;
	if (!cli_all_any(&all)) {
		code = all_failed(&all);
	} else if (cli->json) {
		all_json(&all);
	} else {
		(void)printf("%5s  %-12s %6s %10s %10s %10s %8s %8s  %s\n",
			     "shard", "owner", "term", "last", "committed",
			     "applied", "lag", "objects", "health");
		while (ls_shard(&all, shard))
			shard++;
	}
	cli_all_release(&all);
	return code;
}

/* ------------------------------------------------------------------ show ---
 */

static void show_peer(struct pack_bytes p)
{
	struct pack_bytes v;
	uint64_t ms;
	char name[65];

	text_of(p, "name", name, sizeof(name));
	(void)fputs("            ", stdout);
	say(name);
	(void)printf(" has up to %llu",
		     (unsigned long long)number(p, "match_index"));
	if (out_find_u64(p, "heard_ago_ms", &ms))
		(void)printf(", heard %s ago", out_duration_ms(ms));
	else
		(void)fputs(", not heard yet", stdout);
	if (out_find(p, "streaming", &v) && v.p[0] == 0xc3)
		(void)fputs(", is sent a snapshot", stdout);
	if (out_find(p, "refused", &v) && v.p[0] == 0xc3)
		(void)fputs(", is refused: its log ends below what it "
			    "acknowledged (holdfast node reset)",
			    stdout);
	(void)fputc('\n', stdout);
}

static void show_peers(struct pack_bytes map)
{
	struct pack_bytes peers;
	struct pack_bytes p;
	struct pack_r r;
	uint32_t n;

	if (!out_find(map, "peers", &peers))
		return;
	r = pack_reader(peers.p, peers.n);
	if (pack_get_array(&r, &n) != RC_OK)
		return;
	for (; n > 0 && pack_skip(&r, &p) == RC_OK; n--)
		show_peer(p);
}

static void show_node(const struct cli_told *t)
{
	char text[170];

	(void)printf("%-11.20s ", t->node);
	if (t->code != HOLDFAST_OK) {
		(void)printf("%s: ", holdfast_code_name(t->code));
		say(t->why);
		(void)fputc('\n', stdout);
		return;
	}
	text_of(t->value, "role", text, sizeof(text));
	say(text);
	text_of(t->value, "owner", text, sizeof(text));
	if (!owns(t->value)) {
		(void)fputs(text[0] != '\0' ? " of " : ", knows no owner",
			    stdout);
		say(text);
	}
	(void)printf(", term %llu, last %llu, durable %llu, committed %llu, "
		     "applied %llu\n",
		     (unsigned long long)number(t->value, "term"),
		     (unsigned long long)number(t->value, "last_index"),
		     (unsigned long long)number(t->value, "durable_index"),
		     (unsigned long long)number(t->value, "commit_index"),
		     (unsigned long long)number(t->value, "applied_index"));
	if (number(t->value, "equal_index") != 0)
		(void)printf(
			"            the same on all voters at %llu\n",
			(unsigned long long)number(t->value, "equal_index"));
	text_of(t->value, "health", text, sizeof(text));
	if (strcmp(text, "whole") != 0)
		(void)printf("            health: %s\n", text);
	text_of(t->value, "why", text, sizeof(text));
	if (text[0] != '\0') {
		(void)fputs("            why: ", stdout);
		say(text);
		(void)fputc('\n', stdout);
	}
	text_of(t->value, "transfer_to", text, sizeof(text));
	if (text[0] != '\0') {
		(void)fputs("            is being handed to ", stdout);
		say(text);
		(void)fputc('\n', stdout);
	}
	show_peers(t->value);
}

/* The endpoint that owns the shard; all->n: none says so. */
static size_t owner_of(const struct cli_all *all)
{
	size_t found = all->n;
	size_t i;

	for (i = 0; i < all->n; i++) {
		if (all->told[i].code != HOLDFAST_OK ||
		    !owns(all->told[i].value))
			continue;
		if (found == all->n ||
		    number(all->told[i].value, "term") >
			    number(all->told[found].value, "term"))
			found = i;
	}
	return found;
}

/* The sentence that somebody who looks at a shard without owner wants. */
static void show_verdict(const struct cli_all *all)
{
	uint64_t voters = 0;
	uint64_t answers = 0;
	size_t i;

	if (all->n < 2 || owner_of(all) < all->n)
		return;
	for (i = 0; i < all->n; i++) {
		if (all->told[i].code != HOLDFAST_OK)
			continue;
		answers++;
		if (number(all->told[i].value, "voters") > voters)
			voters = number(all->told[i].value, "voters");
	}
	(void)fputs("\nNobody owns it: ", stdout);
	if (answers <= voters / 2)
		(void)printf("%llu of its %llu voters answer, a majority is "
			     "needed.\n",
			     (unsigned long long)answers,
			     (unsigned long long)voters);
	else
		(void)fputs("an election is under way, or the voters do not "
			    "reach each other.\n",
			    stdout);
}

static void shard_params(struct pack_w *w, uint64_t shard, const char *to)
{
	pack_w_init(w, 1024);
	pack_array(w, to != NULL ? 2 : 1);
	pack_u64(w, shard);
	if (to != NULL)
		pack_cstr(w, to);
}

static int shard_show(struct cli *cli, uint64_t shard)
{
	static struct cli_all all;
	struct pack_w w;
	size_t i;
	int code;

	shard_params(&w, shard, NULL);
	code = cli_ask_all(cli, "shard", (struct pack_bytes){ w.p, w.n }, &all);
	pack_w_release(&w);
	if (code != CLI_OK)
		return code;
	if (!cli_all_any(&all)) {
		code = all_failed(&all);
	} else if (cli->json) {
		all_json(&all);
	} else {
		(void)printf("shard %llu\n", (unsigned long long)shard);
		for (i = 0; i < all.n; i++)
			show_node(&all.told[i]);
		show_verdict(&all);
	}
	cli_all_release(&all);
	return code;
}

/* -------------------------------------------------------------- transfer ---
 */

static uint64_t now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int told_error(const struct cli_told *t, const char *what)
{
	(void)fprintf(stderr, "holdfast: %s: ", what);
	out_text(stderr, t->node, strlen(t->node));
	(void)fprintf(stderr, ": %s: ", holdfast_code_name(t->code));
	out_text(stderr, t->why, strlen(t->why));
	if (t->owner[0] != '\0') {
		(void)fputs("; owner ", stderr);
		out_text(stderr, t->owner, strlen(t->owner));
	}
	(void)fputc('\n', stderr);
	if (t->code == HOLDFAST_UNREACHABLE)
		return CLI_UNREACHABLE;
	return CLI_REFUSED;
}

/* Until another one owns it. */
static int transfer_wait(struct cli_all *all, struct pack_bytes params,
			 size_t from, uint64_t shard)
{
	const struct timespec pause = { 0, POLL_MS * 1000000L };
	uint64_t began = now_ms();
	size_t owner = from;
	size_t i;

	while (now_ms() - began < TRANSFER_MS) {
		for (i = 0; i < all->n; i++)
			if (all->n == 1 || i != from)
				cli_ask_one(all, i, "shard", params);
		if (all->n > 1)
			all->told[from].code = HOLDFAST_UNREACHABLE;
		owner = owner_of(all);
		if (owner < all->n && owner != from)
			break;
		if (all->n == 1 && owner == all->n)
			break;
		(void)nanosleep(&pause, NULL);
	}
	if (owner == from) {
		(void)fprintf(stderr,
			      "holdfast: shard %llu: it has not moved "
			      "within %u ms\n",
			      (unsigned long long)shard, TRANSFER_MS);
		return CLI_REFUSED;
	}
	(void)printf("shard %llu: ", (unsigned long long)shard);
	say(all->told[from].node);
	(void)fputs(" -> ", stdout);
	if (owner < all->n)
		say(all->told[owner].node);
	else
		(void)fputs("another node", stdout);
	(void)printf(", seen after %llu ms\n",
		     (unsigned long long)(now_ms() - began));
	return CLI_OK;
}

static int shard_transfer(struct cli *cli, uint64_t shard, const char *to)
{
	static struct cli_all all;
	struct pack_bytes show;
	struct pack_w one;
	struct pack_w two;
	size_t owner;
	int code;

	shard_params(&one, shard, NULL);
	shard_params(&two, shard, to);
	show = (struct pack_bytes){ one.p, one.n };
	code = cli_ask_all(cli, "shard", show, &all);
	if (code != CLI_OK)
		goto out;
	owner = owner_of(&all);
	if (!cli_all_any(&all)) {
		code = all_failed(&all);
		goto out;
	}
	/* Who is not the owner says who is. */
	if (owner == all.n)
		owner = 0;
	cli_ask_one(&all, owner, "transfer",
		    (struct pack_bytes){ two.p, two.n });
	code = all.told[owner].code == HOLDFAST_OK
		       ? transfer_wait(&all, show, owner, shard)
		       : told_error(&all.told[owner], "shard transfer");
out:
	cli_all_release(&all);
	pack_w_release(&one);
	pack_w_release(&two);
	return code;
}

static bool shard_number(const char *text, uint64_t *shard)
{
	char *end;

	*shard = strtoull(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && *end == '\0' && *shard < 64;
}

static int shard_command(struct cli *cli, int argc, char **argv)
{
	const char *to = NULL;
	const struct cli_opt opts[] = {
		{ "to", 0, CLI_TEXT, &to, 0, 0, "NODE",
		  "transfer: to this one (whoever is most level)" },
		CLI_OPT_END,
	};
	uint64_t shard = 0;
	int code = cli_parse(cli, argc, argv, opts, 1, 2);

	if (code != CLI_OK || cli->help)
		return code;
	if (strcmp(cli->args[0], "ls") == 0 && cli->args_n == 1)
		return shard_ls(cli);
	if (cli->args_n != 2 || !shard_number(cli->args[1], &shard))
		return cli_usage(cli, "shard ls, shard show N, or shard "
				      "transfer N");
	if (strcmp(cli->args[0], "show") == 0)
		return shard_show(cli, shard);
	if (strcmp(cli->args[0], "transfer") == 0)
		return shard_transfer(cli, shard, to);
	return cli_usage(cli, "shard %s: no such command", cli->args[0]);
}

const struct cli_command cli_shard_command = {
	"shard",
	"Lists shards, shows why one is stuck, or hands one over",
	"shard ls\n"
	"shard show N\n"
	"shard transfer N [--to NODE]\n",
	"Every endpoint of --config is asked what it knows; `show' says it "
	"node "
	"by\nnode. `transfer' needs the right admin and waits until another "
	"node owns the\nshard; calls to it go on.\n",
	shard_command,
};
