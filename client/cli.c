/*
 * The program `holdfast`: options, help, connection, errors, exit codes. The
 * commands are in cli_*.c.
 */
#include "client/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const struct cli_command *const commands[] = {
	&cli_call_command,   &cli_kv_command,      &cli_limit_command,
	&cli_status_command, &cli_objects_command, &cli_metrics_command,
	&cli_ping_command,   &cli_log_command,     &cli_init_command,
	&cli_cert_command,   &cli_node_command,    &cli_dev_cluster_command,
	&cli_bench_command,  &cli_shard_command,   &cli_grant_command,
	&cli_revoke_command, &cli_grants_command,
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static const char exit_codes[] =
	"Exit codes:\n"
	"  0  done\n"
	"  1  refused: it certainly did not happen\n"
	"  2  the command line is wrong\n"
	"  3  no connection to a server\n"
	"  4  unknown: it may have happened\n"
	"  5  a fault of this program or a damaged answer\n";

/* ------------------------------------------------------------------ help ---
 */

static void help_option(const struct cli_opt *o)
{
	char left[64];

	(void)snprintf(
		left, sizeof(left), "%s%c%s--%s%s%s",
		o->letter != 0 ? "-" : "  ", o->letter != 0 ? o->letter : ' ',
		o->letter != 0 ? ", " : " ", o->name,
		o->value != NULL ? " " : "", o->value != NULL ? o->value : "");
	(void)printf("  %-26s %s\n", left, o->help);
}

static void help_options(const struct cli_opt *o)
{
	for (; o != NULL && o->name != NULL; o++)
		help_option(o);
}

static void help_usage(FILE *f, const struct cli_command *c)
{
	const char *line = c->usage;
	const char *end;
	const char *lead = "usage:";

	while (*line != '\0') {
		end = strchr(line, '\n');
		(void)fprintf(f, "%s holdfast %.*s\n", lead, (int)(end - line),
			      line);
		line = end + 1;
		lead = "      ";
	}
}

static void help_command(const struct cli_command *c,
			 const struct cli_opt *opts,
			 const struct cli_opt *globals)
{
	help_usage(stdout, c);
	(void)printf("\n%s.\n", c->summary);
	if (opts != NULL && opts->name != NULL) {
		(void)printf("\nOptions:\n");
		help_options(opts);
	}
	(void)printf("\nOptions of every command:\n");
	help_options(globals);
	if (c->help[0] != '\0')
		(void)printf("\n%s", c->help);
}

static void help_all(FILE *f)
{
	size_t i;

	(void)fprintf(f, "usage: holdfast COMMAND [ARGUMENT...]\n\n"
			 "Calls objects of a Holdfast server.\n\n");
	for (i = 0; i < COMMANDS; i++)
		(void)fprintf(f, "  %-11s %s\n", commands[i]->name,
			      commands[i]->summary);
	(void)fprintf(f,
		      "\n`holdfast COMMAND --help' has the rest; "
		      "`holdfast --version'.\n"
		      "Servers are those of --config PATH, a client.yaml, or "
		      "that of --socket PATH;\n"
		      "else of $HOLDFAST_CONFIG, $HOLDFAST_SOCKET, or "
		      "holdfast/holdfast.sock in\n"
		      "$XDG_STATE_HOME or ~/.local/state.\n\n%s",
		      exit_codes);
}

/* --------------------------------------------------------------- options ---
 */

int cli_usage(const struct cli *cli, const char *format, ...)
{
	va_list ap;

	(void)fputs("holdfast: ", stderr);
	va_start(ap, format);
	(void)vfprintf(stderr, format, ap);
	va_end(ap);
	(void)fputc('\n', stderr);
	if (cli->command != NULL)
		(void)fprintf(stderr, "`holdfast %s --help' says how.\n",
			      cli->command->name);
	return CLI_USAGE;
}

static const struct cli_opt *opt_find(const struct cli_opt *o, const char *name,
				      size_t n)
{
	for (; o != NULL && o->name != NULL; o++)
		if (strlen(o->name) == n && memcmp(o->name, name, n) == 0)
			return o;
	return NULL;
}

static const struct cli_opt *opt_letter(const struct cli_opt *o, char c)
{
	for (; o != NULL && o->name != NULL; o++)
		if (o->letter == c)
			return o;
	return NULL;
}

static int opt_set(const struct cli *cli, const struct cli_opt *o,
		   const char *value)
{
	char *end;
	uint64_t v;

	if (o->type == CLI_TEXT) {
		*(const char **)o->out = value;
		return CLI_OK;
	}
	errno = 0;
	v = strtoull(value, &end, 10);
	if (value[0] < '0' || value[0] > '9' || *end != '\0' || errno != 0 ||
	    v < o->min || v > o->max)
		return cli_usage(cli, "--%s is a number from %llu to %llu",
				 o->name, (unsigned long long)o->min,
				 (unsigned long long)o->max);
	*(uint64_t *)o->out = v;
	return CLI_OK;
}

static bool is_option(const char *word)
{
	return word[0] == '-' && word[1] != '\0' &&
	       !(word[1] >= '0' && word[1] <= '9');
}

/* One option of argv[*i]; a value may be the next word. */
static int opt_read(struct cli *cli, int argc, char **argv, int *i,
		    const struct cli_opt *opts, const struct cli_opt *globals)
{
	const char *word = argv[*i];
	const char *value = NULL;
	const struct cli_opt *o;
	size_t n;

	if (word[1] == '-') {
		n = strcspn(word + 2, "=");
		value = word[2 + n] == '=' ? word + 2 + n + 1 : NULL;
		o = opt_find(opts, word + 2, n);
		if (o == NULL)
			o = opt_find(globals, word + 2, n);
	} else {
		value = word[2] != '\0' ? word + 2 : NULL;
		o = opt_letter(opts, word[1]);
		if (o == NULL)
			o = opt_letter(globals, word[1]);
	}
	if (o == NULL)
		return cli_usage(cli, "there is no option %s", word);
	if (o->type == CLI_FLAG) {
		if (value != NULL)
			return cli_usage(cli, "--%s takes no value", o->name);
		*(bool *)o->out = true;
		return CLI_OK;
	}
	if (value == NULL && *i + 1 < argc)
		value = argv[++*i];
	if (value == NULL)
		return cli_usage(cli, "--%s needs a value", o->name);
	return opt_set(cli, o, value);
}

int cli_parse(struct cli *cli, int argc, char **argv,
	      const struct cli_opt *opts, int args_min, int args_max)
{
	const struct cli_opt globals[] = {
		{ "config", 0, CLI_TEXT, &cli->config, 0, 0, "PATH",
		  "client.yaml: the servers, a certificate" },
		{ "socket", 0, CLI_TEXT, &cli->socket, 0, 0, "PATH",
		  "one server's socket instead" },
		{ "json", 0, CLI_FLAG, &cli->json, 0, 0, NULL,
		  "print results (and errors) as JSON" },
		{ "help", 'h', CLI_FLAG, &cli->help, 0, 0, NULL, "this text" },
		CLI_OPT_END,
	};
	bool words_only = false;
	int code = CLI_OK;
	int i;

	cli->args_n = 0;
	for (i = 0; i < argc && code == CLI_OK; i++) {
		if (!words_only && strcmp(argv[i], "--") == 0)
			words_only = true;
		else if (!words_only && is_option(argv[i]))
			code = opt_read(cli, argc, argv, &i, opts, globals);
		else if (cli->args_n == CLI_ARGS_MAX)
			code = cli_usage(cli, "too many arguments");
		else
			cli->args[cli->args_n++] = argv[i];
	}
	if (cli->help) {
		help_command(cli->command, opts, globals);
		return CLI_OK;
	}
	if (code == CLI_OK && cli->args_n < args_min) {
		help_usage(stderr, cli->command);
		code = CLI_USAGE;
	} else if (code == CLI_OK && cli->args_n > args_max) {
		code = cli_usage(cli, "there is no use for `%s'",
				 cli->args[args_max]);
	}
	return code;
}

/* ----------------------------------------------------------------- calls ---
 */

static int say_why(const char *why)
{
	(void)fputs("holdfast: ", stderr);
	out_text(stderr, why, strlen(why));
	(void)fputc('\n', stderr);
	return CLI_USAGE;
}

int cli_servers(const struct cli *cli, struct cli_servers *out)
{
	const char *config = cli->config;
	struct detail why = { 0 };
	char path[512];

	memset(out, 0, sizeof(*out));
	if (cli->socket != NULL && config != NULL)
		return cli_usage(cli, "--socket and --config: one of them");
	if (cli->socket == NULL && config == NULL)
		config = getenv("HOLDFAST_CONFIG");
	if (cli->socket == NULL && config != NULL && config[0] != '\0')
		return profile_read(config, &out->profile, &why) == RC_OK
			       ? CLI_OK
			       : say_why(why.text);
	if (cli->socket == NULL &&
	    holdfast_default_socket(path, sizeof(path)) != HOLDFAST_OK)
		return cli_usage(cli, "no path of a socket: set "
				      "HOLDFAST_SOCKET");
	if (cli->socket != NULL)
		(void)snprintf(path, sizeof(path), "%s", cli->socket);
	(void)snprintf(out->profile.endpoints[0].rpc, PROFILE_TEXT_BYTES_MAX,
		       "%s%s", strchr(path, '/') != NULL ? "" : "./", path);
	out->profile.endpoints_n = 1;
	return CLI_OK;
}

int cli_connect(struct cli *cli)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	char why[512];
	int code;

	if (cli->h != NULL)
		return CLI_OK;
	if (cli->socket != NULL && cli->config != NULL)
		return cli_usage(cli, "--socket and --config: one of them");
	o.socket = cli->socket;
	o.config = cli->config;
	code = holdfast_connect(&o, &cli->h, why, sizeof(why));
	if (code == HOLDFAST_OK)
		return CLI_OK;
	(void)say_why(why);
	if (code == HOLDFAST_INVALID)
		return CLI_USAGE;
	if (code == HOLDFAST_UNREACHABLE && cli->socket == NULL &&
	    cli->config == NULL && getenv("HOLDFAST_SOCKET") == NULL &&
	    getenv("HOLDFAST_CONFIG") == NULL)
		(void)fprintf(stderr, "Is holdfastd running? --socket PATH "
				      "names another socket, --config PATH a "
				      "cluster.\n");
	return code == HOLDFAST_NO_MEMORY ? CLI_INTERNAL : CLI_UNREACHABLE;
}

int cli_exit_of(const struct holdfast_answer *a)
{
	if (a->code == HOLDFAST_OK)
		return CLI_OK;
	if (a->code == HOLDFAST_NO_MEMORY)
		return CLI_INTERNAL;
	return a->outcome == HOLDFAST_REFUSED ? CLI_REFUSED : CLI_UNKNOWN;
}

static void error_json(const struct holdfast_answer *a)
{
	struct pack_w w;
	uint32_t n = 3;

	n += a->field[0] != '\0';
	n += a->request_id[0] != '\0';
	n += a->owner[0] != '\0';
	n += a->retry_after_ms >= 0;
	pack_w_init(&w, 65536);
	pack_map(&w, 1);
	pack_cstr(&w, "error");
	pack_map(&w, n);
	pack_cstr(&w, "code");
	pack_cstr(&w, holdfast_code_name(a->code));
	pack_cstr(&w, "outcome");
	pack_cstr(&w, a->outcome == HOLDFAST_REFUSED ? "refused" : "unknown");
	pack_cstr(&w, "message");
	pack_cstr(&w, a->message);
	if (a->field[0] != '\0') {
		pack_cstr(&w, "field");
		pack_cstr(&w, a->field);
	}
	if (a->request_id[0] != '\0') {
		pack_cstr(&w, "request_id");
		pack_cstr(&w, a->request_id);
	}
	if (a->owner[0] != '\0') {
		pack_cstr(&w, "owner");
		pack_cstr(&w, a->owner);
	}
	if (a->retry_after_ms >= 0) {
		pack_cstr(&w, "retry_after_ms");
		pack_i64(&w, a->retry_after_ms);
	}
	if (w.rc == RC_OK) {
		struct pack_bytes v = { w.p, w.n };

		out_json(stdout, v);
	}
	pack_w_release(&w);
}

static void say_part(const char *lead, const char *text)
{
	if (text[0] == '\0')
		return;
	(void)fputs(lead, stderr);
	out_text(stderr, text, strlen(text));
}

void cli_say_error(const struct cli *cli, const char *what,
		   const struct holdfast_answer *a)
{
	if (cli->json)
		error_json(a);
	say_part("holdfast: ", what);
	(void)fprintf(stderr, ": %s", holdfast_code_name(a->code));
	say_part(": ", a->message);
	say_part("; field ", a->field);
	say_part("; owner ", a->owner);
	say_part("; request ", a->request_id);
	if (a->retry_after_ms >= 0)
		(void)fprintf(stderr, "; retry after %lld ms",
			      (long long)a->retry_after_ms);
	if (a->outcome == HOLDFAST_UNKNOWN)
		(void)fputs("; it may have happened", stderr);
	(void)fputc('\n', stderr);
}

int cli_call(struct cli *cli, const struct holdfast_request *r,
	     const char *what, const struct holdfast_answer **a)
{
	int code = cli_connect(cli);

	if (code != CLI_OK)
		return code;
	if (holdfast_call_wait(cli->h, r, a) == HOLDFAST_OK)
		return CLI_OK;
	cli_say_error(cli, what, *a);
	return cli_exit_of(*a);
}

/* ------------------------------------------------------------------ main ---
 */

static const struct cli_command *command_find(const char *name)
{
	size_t i;

	for (i = 0; i < COMMANDS; i++)
		if (strcmp(commands[i]->name, name) == 0)
			return commands[i];
	return NULL;
}

/* Options that stand before the command go to it. */
static int command_at(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--socket") == 0 ||
		    strcmp(argv[i], "--config") == 0)
			i++;
		else if (argv[i][0] != '-')
			return i;
	}
	return argc;
}

static int run(struct cli *cli, int argc, char **argv)
{
	int at = command_at(argc, argv);
	int i;

	for (i = 1; i < at; i++) {
		if (strcmp(argv[i], "--version") == 0) {
			(void)printf("holdfast %s\n", holdfast_version());
			return CLI_OK;
		}
		if (at == argc && (strcmp(argv[i], "--help") == 0 ||
				   strcmp(argv[i], "-h") == 0)) {
			help_all(stdout);
			return CLI_OK;
		}
	}
	if (at == argc) {
		help_all(stderr);
		return CLI_USAGE;
	}
	cli->command = command_find(argv[at]);
	if (cli->command == NULL && strcmp(argv[at], "help") == 0) {
		help_all(stdout);
		return CLI_OK;
	}
	if (cli->command == NULL)
		return cli_usage(cli,
				 "there is no command `%s'; `holdfast "
				 "--help' lists them",
				 argv[at]);
	/* The command's own words, behind the options that stood before. */
	for (i = at; i > 1; i--)
		argv[i] = argv[i - 1];
	return cli->command->run(cli, argc - 2, argv + 2);
}

int main(int argc, char **argv)
{
	static struct cli cli;
	int code;

	/* A reader of our output that has gone is no reason to die without
	 * having said what became of a call. */
	(void)signal(SIGPIPE, SIG_IGN);
	cli.program = argc > 0 ? argv[0] : "holdfast";
	code = run(&cli, argc, argv);
	holdfast_close(cli.h, NULL, NULL);
	if ((fflush(stdout) != 0 || ferror(stdout) != 0) && code == CLI_OK) {
		(void)fprintf(stderr, "holdfast: cannot write: %s\n",
			      strerror(errno));
		code = CLI_INTERNAL;
	}
	return code;
}
