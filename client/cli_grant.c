/*
 * `grant`, `revoke`, `grants`: plain calls to the object that keeps who may do
 * what (docs/protocol.md, class directory).
 */
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"

#define DIRECTORY  "holdfast/system/directory/cluster"
#define RIGHTS_MAX 3

struct grant_options {
	const char *tenant;
	const char *env;
	const char *cls;
	const char *rights;
	const char *prefix;
	uint64_t deadline_ms;
};

static void put_text(struct pack_w *w, uint32_t *n, const char *key,
		     const char *text)
{
	if (text == NULL)
		return;
	pack_cstr(w, key);
	pack_cstr(w, text);
	++*n;
}

/* "read,write" as an array. CLI_OK, or it was said. */
static int put_rights(const struct cli *cli, struct pack_w *w, uint32_t *n,
		      const char *text)
{
	static const char *const names[] = { "read", "write", "admin" };
	uint32_t count = 0;
	const char *at;
	size_t len;
	size_t i;

	if (text == NULL)
		return CLI_OK;
	for (at = text; *at != '\0'; at++)
		count += *at == ',';
	pack_cstr(w, "rights");
	pack_array(w, count + 1);
	++*n;
	for (at = text;; at += len + 1) {
		len = strcspn(at, ",");
		for (i = 0; i < RIGHTS_MAX; i++)
			if (strlen(names[i]) == len &&
			    memcmp(names[i], at, len) == 0)
				break;
		if (i == RIGHTS_MAX)
			return cli_usage(cli, "--rights is some of read, write "
					      "and admin, with commas");
		pack_cstr(w, names[i]);
		if (at[len] == '\0')
			return CLI_OK;
	}
}

static int directory_call(struct cli *cli, const char *method,
			  const struct pack_w *body, uint32_t pairs,
			  uint64_t deadline_ms,
			  const struct holdfast_answer **a)
{
	struct holdfast_request r = HOLDFAST_CALL(DIRECTORY, method);
	struct pack_w args;
	int code;

	pack_w_init(&args, 65536);
	pack_map(&args, pairs);
	pack_raw(&args, body->p, body->n);
	r.raw = args.p;
	r.raw_bytes = args.n;
	r.deadline_ms = (uint32_t)deadline_ms;
	if (body->rc != RC_OK || args.rc != RC_OK)
		code = cli_usage(cli, "the arguments are too long");
	else
		code = cli_call(cli, &r, method, a);
	pack_w_release(&args);
	return code;
}

/* Names in an array, with commas; false: there are none. */
static bool names_show(FILE *f, struct pack_bytes map, const char *key,
		       const char *lead)
{
	struct pack_bytes list;
	struct pack_bytes name;
	struct pack_r r;
	uint32_t n;
	uint32_t i;

	if (!out_find(map, key, &list))
		return false;
	r = pack_reader(list.p, list.n);
	if (pack_get_array(&r, &n) != RC_OK || n == 0)
		return false;
	(void)fputs(lead, f);
	for (i = 0; i < n && pack_get_bytes(&r, &name) == RC_OK; i++) {
		(void)fputs(i > 0 ? ", " : " ", f);
		out_text(f, name.p, name.n);
	}
	(void)fputc('\n', f);
	return true;
}

static void changed_show(const struct holdfast_answer *a)
{
	struct pack_bytes v = answer_value_of(a);
	struct pack_bytes changed;
	uint64_t version = 0;
	struct pack_r r;
	uint64_t n = 1;

	(void)out_find_u64(v, "version", &version);
	if (out_find(v, "changed", &changed)) {
		r = pack_reader(changed.p, changed.n);
		if (pack_get_u64(&r, &n) != RC_OK)
			n = changed.n == 1 && changed.p[0] == 0xc3;
	}
	(void)printf("version %llu, %s\n", (unsigned long long)version,
		     n > 0 ? "changed" : "as it was");
	(void)names_show(stdout, v, "confirmed", "confirmed by");
	(void)names_show(stdout, v, "missing", "not confirmed yet by");
}

/* A name that nobody can have is granted to nobody, without a word. */
static bool principal_formed(const char *p)
{
	static const char *const forms[] = { "unix:", "spiffe://", "object:" };
	size_t i;

	for (i = 0; i < sizeof(forms) / sizeof(forms[0]); i++)
		if (strncmp(p, forms[i], strlen(forms[i])) == 0)
			return true;
	return false;
}

static int change(struct cli *cli, int argc, char **argv, const char *method,
		  bool grant)
{
	struct grant_options o = { 0 };
	const struct cli_opt opts[] = {
		{ "tenant", 0, CLI_TEXT, &o.tenant, 0, 0, "T",
		  grant ? "of this tenant (default)" : "only of this tenant" },
		{ "env", 0, CLI_TEXT, &o.env, 0, 0, "E",
		  grant ? "of this environment (dev)"
			: "only of this environment" },
		{ "class", 0, CLI_TEXT, &o.cls, 0, 0, "C",
		  grant ? "of this class (*: every one)"
			: "only those that name this class" },
		{ "rights", 0, CLI_TEXT, &o.rights, 0, 0, "R",
		  grant ? "some of read,write,admin" : "only these rights" },
		{ "prefix", 0, CLI_TEXT, &o.prefix, 0, 0, "P",
		  grant ? "only objects whose names begin so"
			: "only those of this prefix" },
		{ "deadline", 0, CLI_NUMBER, &o.deadline_ms, 1, 60000, "MS",
		  "how long nodes are waited for (5000)" },
		CLI_OPT_END,
	};
	const struct holdfast_answer *a = NULL;
	struct pack_w w;
	uint32_t n = 0;
	int code = cli_parse(cli, argc, argv, opts, 1, 1);

	if (code != CLI_OK || cli->help)
		return code;
	if (grant && o.rights == NULL)
		return cli_usage(cli, "--rights says what is given");
	if (grant && !principal_formed(cli->args[0]))
		return cli_usage(cli,
				 "`%.80s' is nobody's name: unix:NODE:UID, "
				 "or the URI of a certificate",
				 cli->args[0]);
	if (grant) {
		o.tenant = o.tenant != NULL ? o.tenant : "default";
		o.env = o.env != NULL ? o.env : "dev";
		o.cls = o.cls != NULL ? o.cls : "*";
	}
	pack_w_init(&w, 16384);
	put_text(&w, &n, "principal", cli->args[0]);
	put_text(&w, &n, "tenant", o.tenant);
	put_text(&w, &n, "env", o.env);
	put_text(&w, &n, "class", o.cls);
	put_text(&w, &n, "prefix", o.prefix);
	code = put_rights(cli, &w, &n, o.rights);
	if (code == CLI_OK)
		code = directory_call(cli, method, &w, n, o.deadline_ms, &a);
	pack_w_release(&w);
	if (code != CLI_OK || a == NULL)
		return code;
	if (cli->json)
		out_json(stdout, answer_value_of(a));
	else
		changed_show(a);
	return CLI_OK;
}

static int grant_command(struct cli *cli, int argc, char **argv)
{
	return change(cli, argc, argv, "grant", true);
}

static int revoke_command(struct cli *cli, int argc, char **argv)
{
	return change(cli, argc, argv, "revoke", false);
}

/* ---------------------------------------------------------------- grants ---
 */

static void grant_row(struct pack_bytes g)
{
	static const char *const keys[] = { "principal", "tenant", "env",
					    "class", "prefix" };
	struct pack_bytes v;
	size_t i;

	for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (!out_find_text(g, keys[i], &v))
			continue;
		if (i == 4 && v.n == 0)
			continue;
		(void)fputs(i == 0 ? "" : i == 1 ? "  " : "/", stdout);
		out_text(stdout, v.p, v.n);
	}
	(void)names_show(stdout, g, "rights", " ");
}

static void grants_show(struct pack_bytes answer)
{
	struct pack_bytes list;
	struct pack_bytes g;
	uint64_t version = 0;
	struct pack_r r;
	uint32_t n;

	(void)out_find_u64(answer, "version", &version);
	(void)printf("version %llu\n", (unsigned long long)version);
	if (!out_find(answer, "grants", &list))
		return;
	r = pack_reader(list.p, list.n);
	if (pack_get_array(&r, &n) != RC_OK)
		return;
	for (; n > 0 && pack_skip(&r, &g) == RC_OK; n--)
		grant_row(g);
}

static int grants_command(struct cli *cli, int argc, char **argv)
{
	const struct holdfast_answer *a = NULL;
	struct pack_w none;
	int code = cli_parse(cli, argc, argv, NULL, 0, 0);

	if (code != CLI_OK || cli->help)
		return code;
	pack_w_init(&none, 16);
	code = directory_call(cli, "read", &none, 0, 0, &a);
	pack_w_release(&none);
	if (code != CLI_OK || a == NULL)
		return code;
	if (cli->json)
		out_json(stdout, answer_value_of(a));
	else
		grants_show(answer_value_of(a));
	return CLI_OK;
}

const struct cli_command cli_grant_command = {
	"grant",
	"Gives rights to a principal",
	"grant PRINCIPAL --rights R [--tenant T] [--env E] [--class C] "
	"[--prefix P]\n",
	"PRINCIPAL is the URI of a certificate, "
	"spiffe://CLUSTER/tenant/T/env/E/"
	"client/NAME,\nor unix:NODE:UID. Says which nodes go by it already.\n\n"
	"  holdfast grant unix:node1:1001 --rights read,write --class kv\n",
	grant_command,
};

const struct cli_command cli_revoke_command = {
	"revoke",
	"Takes rights from a principal",
	"revoke PRINCIPAL [--tenant T] [--env E] [--class C] [--rights R] "
	"[--prefix P]\n",
	"Without options everything that was granted to it. When it returns, "
	"every node\nthat is named as confirmed refuses; one that is not named "
	"refuses after 10 s at\nthe latest, whatever keeps it from hearing.\n",
	revoke_command,
};

const struct cli_command cli_grants_command = {
	"grants", "Lists who may do what", "grants\n", "", grants_command,
};
