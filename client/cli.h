/*
 * cli - what the commands of the program `holdfast` share.
 *
 * One thread. Commands print results to stdout and everything else to stderr,
 * and return an exit code.
 */
#ifndef HOLDFAST_CLIENT_CLI_H
#define HOLDFAST_CLIENT_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/holdfast.h"
#include "client/profile.h"
#include "client/proto/pack.h"

/* Exit codes; `holdfast --help` and docs/protocol.md list them. */
enum cli_exit {
	CLI_OK = 0,
	CLI_REFUSED = 1, /* It did not happen. */
	CLI_USAGE = 2,
	CLI_UNREACHABLE = 3, /* No connection. */
	CLI_UNKNOWN = 4,     /* It may have happened. */
	CLI_INTERNAL = 5,    /* Memory, output, a damaged answer. */
};

#define CLI_ARGS_MAX 256 /* Positional arguments of a command. */

struct cli_command;

struct cli {
	const struct cli_command *command;
	const char *program; /* argv[0]: where the daemon lies beside. */
	const char *socket;
	const char *config; /* A client.yaml. */
	bool json;
	bool help;
	struct holdfast *h; /* Connected by cli_connect(). */
	/* Positional arguments of the command, filled by cli_parse(). */
	const char *args[CLI_ARGS_MAX];
	int args_n;
};

enum cli_opt_type {
	CLI_FLAG,   /* bool */
	CLI_TEXT,   /* const char * */
	CLI_NUMBER, /* uint64_t, min..max */
};

struct cli_opt {
	const char *name; /* Without the dashes. */
	char letter;      /* 0: none. */
	enum cli_opt_type type;
	void *out;
	uint64_t min;
	uint64_t max;
	const char *value; /* What stands for the value in the help. */
	const char *help;
};
#define CLI_OPT_END                                       \
	{                                                 \
		NULL, 0, CLI_FLAG, NULL, 0, 0, NULL, NULL \
	}

struct cli_command {
	const char *name;
	const char *summary;
	const char *usage; /* Lines without "holdfast ", ended by \n. */
	const char *help;  /* Behind the options; may be "". */
	int (*run)(struct cli *cli, int argc, char **argv);
};

extern const struct cli_command cli_call_command;
extern const struct cli_command cli_kv_command;
extern const struct cli_command cli_limit_command;
extern const struct cli_command cli_status_command;
extern const struct cli_command cli_metrics_command;
extern const struct cli_command cli_objects_command;
extern const struct cli_command cli_ping_command;
extern const struct cli_command cli_log_command;
extern const struct cli_command cli_init_command;
extern const struct cli_command cli_cert_command;
extern const struct cli_command cli_node_command;
extern const struct cli_command cli_dev_cluster_command;
extern const struct cli_command cli_bench_command;
extern const struct cli_command cli_shard_command;
extern const struct cli_command cli_grant_command;
extern const struct cli_command cli_revoke_command;
extern const struct cli_command cli_grants_command;

/*
 * Reads options anywhere among argv[0..argc-1], those every command has
 * included; what is left is cli->args. `opts` (may be NULL) ends with
 * CLI_OPT_END. A number that begins with '-' is no option; behind `--` there is
 * none. CLI_OK; CLI_USAGE, said to stderr; with --help the help was printed,
 * `cli->help` is set, and the command returns CLI_OK without doing anything.
 */
int cli_parse(struct cli *cli, int argc, char **argv,
	      const struct cli_opt *opts, int args_min, int args_max);

/* Says what is wrong with the command line; returns CLI_USAGE. */
int cli_usage(const struct cli *cli, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* The servers that the command line, or the environment, names. */
struct cli_servers {
	struct profile profile; /* One socket is an endpoint without name. */
};
/* CLI_OK, or it was said why not. */
int cli_servers(const struct cli *cli, struct cli_servers *out);

/* CLI_OK when cli->h is connected; else it was said why. */
int cli_connect(struct cli *cli);

/*
 * Connects, makes the call, says what went wrong (`what` names the call).
 * CLI_OK: `*a` is good until the next call.
 */
int cli_call(struct cli *cli, const struct holdfast_request *r,
	     const char *what, const struct holdfast_answer **a);
/* The exit code of an answer. */
int cli_exit_of(const struct holdfast_answer *a);
/* Says on stderr (with --json on stdout too) what went wrong. */
void cli_say_error(const struct cli *cli, const char *what,
		   const struct holdfast_answer *a);

/* ---------------------------------------------------------- cli_offline.c ---
 */

/* Where holdfastd is: beside this program, or in sbin or libexec of the same
 * prefix. False: it was said that it is not there. */
bool cli_daemon_find(const struct cli *cli, char *path, size_t path_bytes);
/* Runs it with these words (argv[1] and on, ended by NULL) to its end; the exit
 * code in our terms. */
int cli_daemon_run(const struct cli *cli, const char *const *words);

/* -------------------------------------------------------------- cli_ask.c ---
 */

/* What one endpoint said to a question that all were asked. */
struct cli_told {
	const struct profile_endpoint *at;
	char node[PROFILE_NAME_BYTES_MAX + 1]; /* Its name; else where it is. */
	int code; /* HOLDFAST_OK: `value`; else `why`, and `owner`. */
	struct pack_bytes value;
	char why[256];
	char owner[PROFILE_NAME_BYTES_MAX + 1];
};

struct cli_all {
	struct cli_servers servers;
	struct cli_told told[PROFILE_ENDPOINTS_MAX];
	size_t n;
};

/* Asks every endpoint by itself, all at once: `rpc` with its encoded params.
 * CLI_OK: `all` is filled, whatever they said, and to be released; else it was
 * said what is wrong with the command line. */
int cli_ask_all(const struct cli *cli, const char *rpc,
		struct pack_bytes params, struct cli_all *all);
/* The same question to one of them again, or another; `told` is replaced. */
void cli_ask_one(struct cli_all *all, size_t i, const char *rpc,
		 struct pack_bytes params);
void cli_all_release(struct cli_all *all);
/* One of them answered. */
bool cli_all_any(const struct cli_all *all);

/* ------------------------------------------------------------- cli_args.c ---
 */

/*
 * `key=text` (str), `key:=JSON`, `key=@FILE` (bin, "-" is stdin), `key==text`
 * for a text that begins with '@'; or one JSON object. Appends to `out`.
 * CLI_OK, else it was said.
 */
int cli_args_map(const struct cli *cli, const char *const *words, int n,
		 struct pack_w *out);
/* The whole of a file; `*p` is to be freed. "-" is stdin. */
int cli_read_file(const struct cli *cli, const char *path, uint8_t **p,
		  size_t *n);
/* `class/NAME` with `/`, `%` and a leading `~` of the name escaped; to be
 * freed. NULL: out of memory. */
char *cli_address(const char *class_name, const char *name);
/* Hex digits to bytes: to be freed; NULL: they are none. */
uint8_t *cli_unhex(const char *text, size_t *n);

/* -------------------------------------------------------------- cli_out.c ---
 */

/* Bytes as they may be shown: control characters (and what turns a terminal's
 * text around) escaped. */
void out_text(FILE *f, const void *p, size_t n);
void out_hex(FILE *f, const void *p, size_t n);
/* One value in a line: text as it is, the rest as JSON. */
void out_value(FILE *f, struct pack_bytes v);
/* A map as `key  value` lines, everything else as out_value(). */
void out_human(FILE *f, struct pack_bytes v);
/* May stdout be coloured? A terminal, and nobody says no. */
bool out_colours(void);
/* As JSON and a newline; pretty on a terminal. */
void out_json(FILE *f, struct pack_bytes v);
/* What the command's result is, by cli->json. */
void out_result(const struct cli *cli, struct pack_bytes v);
/* The value of a key in a map. */
bool out_find(struct pack_bytes map, const char *key, struct pack_bytes *v);
bool out_find_u64(struct pack_bytes map, const char *key, uint64_t *v);
bool out_find_text(struct pack_bytes map, const char *key,
		   struct pack_bytes *v);
/* "1.5 MiB", in a static buffer of a few uses. */
const char *out_bytes(uint64_t n);
/* "3d 4h", "12.3 s", "4.0 ms": the same. */
const char *out_duration_ms(uint64_t ms);

static inline struct pack_bytes answer_value_of(const struct holdfast_answer *a)
{
	struct pack_bytes b = { (const uint8_t *)a->value, a->value_bytes };

	return b;
}

#endif
