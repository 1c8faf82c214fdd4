/*
 * main - arguments of holdfastd; everything else is in node.c.
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "node/node.h"

static const char usage[] =
	"usage: holdfastd --config FILE      serve as FILE says\n"
	"       holdfastd --dev [--data DIR] serve alone, without "
	"configuration\n"
	"       holdfastd --config FILE --check-config | --print-config\n"
	"       holdfastd --format DIR [--config FILE]  make an empty data\n"
	"                                    directory for the node of FILE\n"
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
	const char *verify;
	const char *dump;
	bool dev;
	bool version;
	bool help;
	enum action action;
};

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
			return false;
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

int main(int argc, char **argv)
{
	struct args a = { 0 };

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
	if (a.format != NULL)
		return format(&a);
	if (a.verify != NULL || a.dump != NULL)
		return node_log_verify(a.dump != NULL ? a.dump : a.verify,
				       a.dump != NULL);
	if (a.dev == (a.config != NULL) || (a.data != NULL && !a.dev)) {
		fputs(usage, stderr);
		return NODE_EXIT_USAGE;
	}
	return serve(&a);
}
