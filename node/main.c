/*
 * main - arguments of holdfastd; everything else is in node.c.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "node/base/crypto.h"
#include "node/base/mutant.h"
#include "node/ca.h"
#include "node/founders.h"
#include "node/node.h"

static const char usage[] =
	"usage: holdfastd --config FILE      serve as FILE says\n"
	"       holdfastd --dev [--data DIR] serve alone, without "
	"configuration\n"
	"       holdfastd --config FILE --check-config | --print-config\n"
	"       holdfastd --format DIR [--config FILE]  make an empty data\n"
	"                                    directory for the node of FILE\n"
	"       holdfastd --init DIR [--nodes 3|5] [--host HOST[,HOST...]]\n"
	"                 [--rpc-port N] [--peer-port N] [--shards N]\n"
	"                                    make the files of a new cluster\n"
	"       holdfastd --certificate node/ID | "
	"tenant/T/env/E/client/NAME\n"
	"                 --ca DIR --out DIR [--days N]\n"
	"                                    sign one, with a key of its own\n"
	"       holdfastd --adopt DIR        a data directory that was moved\n"
	"                                    on purpose\n"
	"       holdfastd --reset DIR --node ID --like DIR --incarnation HEX\n"
	"                 [--dry-run]        the data directory of a member "
	"that\n"
	"                                    lost its disk; `holdfast node "
	"reset'\n"
	"                                    tells the others first\n"
	"       holdfastd --log-verify DIR   check the log of a stopped node\n"
	"       holdfastd --log-dump DIR     and print its records\n"
	"       holdfastd --version | --help\n"
	"\n"
	"With --dev the data directory is DIR, or holdfast/ under\n"
	"$XDG_STATE_HOME (~/.local/state); the socket is DIR/holdfast.sock.\n"
	"SIGTERM and SIGINT end it: calls in flight finish first.\n"
	"Exit codes: 0 ended well, 64 usage, 65 data directory damaged or\n"
	"foreign, 70 a write or sync failed, 75 already in use, 78\n"
	"configuration wrong, 71 anything else.\n";

enum action { ACTION_SERVE, ACTION_CHECK, ACTION_PRINT };

enum option_id {
	OPT_CONFIG = 256,
	OPT_DEV,
	OPT_DATA,
	OPT_CHECK,
	OPT_PRINT,
	OPT_FORMAT,
	OPT_INIT,
	OPT_NODES,
	OPT_HOST,
	OPT_RPC_PORT,
	OPT_PEER_PORT,
	OPT_SHARDS,
	OPT_CERTIFICATE,
	OPT_CA,
	OPT_OUT,
	OPT_DAYS,
	OPT_ADOPT,
	OPT_RESET,
	OPT_NODE,
	OPT_LIKE,
	OPT_INCARNATION,
	OPT_DRY_RUN,
	OPT_VERIFY,
	OPT_DUMP,
	OPT_VERSION,
	OPT_HELP,
};

static const struct option options[] = {
	{ "config", required_argument, NULL, OPT_CONFIG },
	{ "dev", no_argument, NULL, OPT_DEV },
	{ "data", required_argument, NULL, OPT_DATA },
	{ "check-config", no_argument, NULL, OPT_CHECK },
	{ "print-config", no_argument, NULL, OPT_PRINT },
	{ "format", required_argument, NULL, OPT_FORMAT },
	{ "init", required_argument, NULL, OPT_INIT },
	{ "nodes", required_argument, NULL, OPT_NODES },
	{ "host", required_argument, NULL, OPT_HOST },
	{ "rpc-port", required_argument, NULL, OPT_RPC_PORT },
	{ "peer-port", required_argument, NULL, OPT_PEER_PORT },
	{ "shards", required_argument, NULL, OPT_SHARDS },
	{ "certificate", required_argument, NULL, OPT_CERTIFICATE },
	{ "ca", required_argument, NULL, OPT_CA },
	{ "out", required_argument, NULL, OPT_OUT },
	{ "days", required_argument, NULL, OPT_DAYS },
	{ "adopt", required_argument, NULL, OPT_ADOPT },
	{ "reset", required_argument, NULL, OPT_RESET },
	{ "node", required_argument, NULL, OPT_NODE },
	{ "like", required_argument, NULL, OPT_LIKE },
	{ "incarnation", required_argument, NULL, OPT_INCARNATION },
	{ "dry-run", no_argument, NULL, OPT_DRY_RUN },
	{ "log-verify", required_argument, NULL, OPT_VERIFY },
	{ "log-dump", required_argument, NULL, OPT_DUMP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "help", no_argument, NULL, OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

struct args {
	const char *config;
	const char *data;
	const char *format;
	const char *adopt;
	struct node_reset reset;
	bool incarnation; /* Was said. */
	const char *verify;
	const char *dump;
	const char *certificate;
	const char *ca;
	const char *out;
	uint32_t days;
	struct founders founders; /* Of --init, and its `dir`. */
	bool founding;            /* What only --init knows was said. */
	bool dev;
	bool version;
	bool help;
	enum action action;
};

/* Digits alone, at most `max`. */
static bool number(const char *text, uint32_t max, uint32_t *out)
{
	size_t n = strspn(text, "0123456789");
	unsigned long v = strtoul(text, NULL, 10);

	if (n == 0 || n > 9 || text[n] != '\0' || v > max)
		return false;
	*out = (uint32_t)v;
	return true;
}

static bool port(const char *text, uint16_t *out)
{
	uint32_t v = 0;
	bool good = number(text, UINT16_MAX, &v);

	*out = (uint16_t)v;
	return good;
}

/* What belongs to --init and --certificate. */
static bool offline_parse(int c, struct args *a)
{
	struct founders *f = &a->founders;
	uint32_t nodes = 0;

	if (c >= OPT_INIT && c <= OPT_SHARDS)
		a->founding = true;
	switch (c) {
	case OPT_INIT:
		f->dir = optarg;
		return true;
	case OPT_NODES:
		if (!number(optarg, 99, &nodes))
			return false;
		f->nodes = nodes;
		return true;
	case OPT_HOST:
		f->hosts = optarg;
		return true;
	case OPT_RPC_PORT:
		return port(optarg, &f->rpc_port);
	case OPT_PEER_PORT:
		return port(optarg, &f->peer_port);
	case OPT_SHARDS:
		return number(optarg, 99999, &f->shards);
	case OPT_CERTIFICATE:
		a->certificate = optarg;
		return true;
	case OPT_CA:
		a->ca = optarg;
		return true;
	case OPT_OUT:
		a->out = optarg;
		return true;
	case OPT_DAYS:
		return number(optarg, 99999, &a->days);
	case OPT_RESET:
		a->reset.data = optarg;
		return true;
	case OPT_NODE:
		a->reset.node_id = strtoull(optarg, NULL, 10);
		return a->reset.node_id != 0;
	case OPT_LIKE:
		a->reset.like = optarg;
		return true;
	case OPT_INCARNATION:
		a->incarnation = true;
		return hex_decode(optarg, strlen(optarg), a->reset.incarnation,
				  ID_BYTES) == RC_OK;
	case OPT_DRY_RUN:
		a->reset.dry = true;
		return true;
	default:
		return false;
	}
}

static bool args_parse(int argc, char **argv, struct args *a)
{
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (c) {
		case OPT_CONFIG:
			a->config = optarg;
			break;
		case OPT_DEV:
			a->dev = true;
			break;
		case OPT_DATA:
			a->data = optarg;
			break;
		case OPT_CHECK:
			a->action = ACTION_CHECK;
			break;
		case OPT_PRINT:
			a->action = ACTION_PRINT;
			break;
		case OPT_FORMAT:
			a->format = optarg;
			break;
		case OPT_ADOPT:
			a->adopt = optarg;
			break;
		case OPT_VERIFY:
			a->verify = optarg;
			break;
		case OPT_DUMP:
			a->dump = optarg;
			break;
		case OPT_VERSION:
			a->version = true;
			break;
		case OPT_HELP:
			a->help = true;
			break;
		default:
			if (!offline_parse(c, a))
				return false;
			break;
		}
	return optind == argc;
}

static int config_fail(enum rc rc, const struct detail *why)
{
	fprintf(stderr, "holdfastd: %s%s%s\n", why->field,
		why->field[0] != '\0' ? ": " : "",
		why->text[0] != '\0' ? why->text : rc_text(rc));
	return NODE_EXIT_CONFIG;
}

static enum rc config_make(const struct args *a, struct config *cfg,
			   struct detail *why)
{
	char dir[CONFIG_PATH_MAX];

	if (a->config != NULL)
		return config_load(cfg, a->config, why);
	if (a->data != NULL)
		return config_dev(cfg, a->data, why);
	if (config_state_dir(dir, sizeof(dir)) != RC_OK)
		return detail_set(why, RC_INVALID, "data",
				  "neither XDG_STATE_HOME nor HOME is set: "
				  "give --data DIR");
	return config_dev(cfg, dir, why);
}

static int serve(const struct args *a)
{
	struct detail why = { { 0 }, { 0 } };
	struct config cfg;
	enum rc rc;
	int code = NODE_EXIT_OK;

	config_default(&cfg);
	rc = config_make(a, &cfg, &why);
	if (rc != RC_OK) {
		config_release(&cfg);
		return config_fail(rc, &why);
	}
	switch (a->action) {
	case ACTION_CHECK:
		printf("%s: good\n", a->config != NULL ? a->config : "--dev");
		break;
	case ACTION_PRINT:
		config_print(&cfg, stdout);
		break;
	case ACTION_SERVE:
		code = node_run(&cfg, a->dev);
		break;
	}
	config_release(&cfg);
	return code;
}

/* The directory is that of the configuration's node; where it lies is said by
 * the argument alone. */
static int format(const struct args *a)
{
	struct detail why = { { 0 }, { 0 } };
	struct config cfg;
	enum rc rc = RC_OK;
	int code;

	config_default(&cfg);
	if (a->config != NULL)
		rc = config_load(&cfg, a->config, &why);
	if (rc == RC_OK)
		rc = config_place(&cfg, a->format, &why);
	code = rc == RC_OK ? node_format(&cfg) : config_fail(rc, &why);
	config_release(&cfg);
	return code;
}

/* holdfastd-testing only: a fault of mutant.tbl, for the tests that must see
 * it. */
static bool mutate(void)
{
#ifdef HOLDFAST_TESTING
	const char *name = getenv("HOLDFAST_MUTANT");

	if (name != NULL)
		mutant_now = mutant_parse(name);
	return mutant_now != MUTANTS;
#else
	return true;
#endif
}

static int init(const struct args *a)
{
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	umask(0077);
	rc = founders_make(&a->founders, stdout, &why);
	if (rc == RC_OK)
		return NODE_EXIT_OK;
	(void)config_fail(rc, &why);
	if (rc == RC_INVALID)
		return NODE_EXIT_USAGE;
	return rc == RC_EXISTS ? NODE_EXIT_DATA : NODE_EXIT_OTHER;
}

/* DIR/ca.pem, and DIR/node.pem and node.key, or client.pem and client.key. */
static enum rc certificate_make(const struct args *a, struct detail *why)
{
	static const char node[] = "node/";
	bool is_node = strncmp(a->certificate, node, sizeof(node) - 1) == 0;
	const char *name = is_node ? "node" : "client";
	char cert[CONFIG_PATH_MAX];
	char key[CONFIG_PATH_MAX];
	struct ca *ca = NULL;
	enum rc rc;

	snprintf(cert, sizeof(cert), "%s/ca.pem", a->ca);
	snprintf(key, sizeof(key), "%s/ca.key", a->ca);
	rc = ca_load(cert, key, &ca, why);
	if (rc != RC_OK)
		return rc;
	if (mkdir(a->out, 0700) != 0 && errno != EEXIST)
		rc = detail_set(why, RC_IO, "out", "cannot make %.150s: %s",
				a->out, strerror(errno));
	snprintf(cert, sizeof(cert), "%s/ca.pem", a->out);
	if (rc == RC_OK)
		rc = ca_save(ca, cert, NULL, why);
	snprintf(cert, sizeof(cert), "%s/%s.pem", a->out, name);
	snprintf(key, sizeof(key), "%s/%s.key", a->out, name);
	if (rc == RC_OK)
		rc = ca_issue(ca, is_node ? CA_NODE : CA_CLIENT, a->certificate,
			      a->days, cert, key, why);
	if (rc == RC_OK)
		printf("%s and %s: spiffe://%s/%s for %" PRIu32 " days\n", cert,
		       key, ca_cluster(ca), a->certificate, a->days);
	ca_free(ca);
	return rc;
}

static int certificate(const struct args *a)
{
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	umask(0077);
	rc = certificate_make(a, &why);
	if (rc == RC_OK)
		return NODE_EXIT_OK;
	(void)config_fail(rc, &why);
	return rc == RC_INVALID ? NODE_EXIT_USAGE : NODE_EXIT_OTHER;
}

int main(int argc, char **argv)
{
	struct args a = { .days = CA_LEAF_DAYS };

	founders_default(&a.founders);
	if (!mutate()) {
		fputs("holdfastd: no such mutant\n", stderr);
		return NODE_EXIT_USAGE;
	}
	if (!args_parse(argc, argv, &a)) {
		fputs(usage, stderr);
		return NODE_EXIT_USAGE;
	}
	if (a.help) {
		fputs(usage, stdout);
		return NODE_EXIT_OK;
	}
	if (a.version) {
		printf("holdfastd %s\n", HOLDFAST_VERSION);
		return NODE_EXIT_OK;
	}
	if (a.founders.dir != NULL)
		return init(&a);
	if (a.certificate != NULL && a.ca != NULL && a.out != NULL)
		return certificate(&a);
	if (a.founding || a.certificate != NULL || a.ca != NULL ||
	    a.out != NULL) {
		fputs(usage, stderr);
		return NODE_EXIT_USAGE;
	}
	if (a.format != NULL)
		return format(&a);
	if (a.adopt != NULL)
		return node_adopt(a.adopt);
	if (a.reset.data != NULL && a.reset.like != NULL &&
	    a.reset.node_id != 0 && a.incarnation)
		return node_reset(&a.reset);
	if (a.reset.data != NULL || a.reset.like != NULL ||
	    a.reset.node_id != 0 || a.incarnation || a.reset.dry) {
		fputs(usage, stderr);
		return NODE_EXIT_USAGE;
	}
	if (a.verify != NULL || a.dump != NULL)
		return node_log_verify(a.dump != NULL ? a.dump : a.verify,
				       a.dump != NULL);
	if (a.dev == (a.config != NULL) || (a.data != NULL && !a.dev)) {
		fputs(usage, stderr);
		return NODE_EXIT_USAGE;
	}
	return serve(&a);
}
