/*
 * What people write on a command line, as MessagePack.
 *
 *	key=text     str
 *	key:=JSON    any value: 5, true, null, [1, 2], {"$bin": "AAE="}
 *	key=@FILE    bin: what is in FILE ("-": stdin)
 *	key==text    str that may begin with '@'
 *	{...}        one JSON object with all of them, instead
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"
#include "client/proto/json.h"

#define FILE_BYTES_MAX (2u << 20) /* What a request may have. */

int cli_read_file(const struct cli *cli, const char *path, uint8_t **p,
		  size_t *n)
{
	FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rbe");
	uint8_t *bytes = malloc(FILE_BYTES_MAX + 1);
	int code = CLI_OK;

	*n = 0;
	if (f == NULL)
		code = cli_usage(cli, "cannot read %s: %s", path,
				 strerror(errno));
	else if (bytes == NULL)
		code = CLI_INTERNAL;
	else
		*n = fread(bytes, 1, FILE_BYTES_MAX + 1, f);
	if (code == CLI_OK && ferror(f) != 0)
		code = cli_usage(cli, "cannot read %s: %s", path,
				 strerror(errno));
	else if (code == CLI_OK && *n > FILE_BYTES_MAX)
		code = cli_usage(cli, "%s has more than %u bytes", path,
				 FILE_BYTES_MAX);
	if (f != NULL && f != stdin)
		(void)fclose(f);
	if (code != CLI_OK) {
		free(bytes);
		bytes = NULL;
	}
	*p = bytes;
	return code;
}

static int arg_file(const struct cli *cli, const char *path, struct pack_w *out)
{
	uint8_t *p;
	size_t n;
	int code = cli_read_file(cli, path, &p, &n);

	if (code != CLI_OK)
		return code;
	pack_bin(out, p, n);
	free(p);
	return CLI_OK;
}

static int arg_json(const struct cli *cli, const char *word, const char *text,
		    struct pack_w *out)
{
	struct detail why = { 0 };

	if (json_to_pack(text, strlen(text), out, &why) == RC_OK)
		return CLI_OK;
	return cli_usage(cli, "%s: no JSON value: %s", word, why.text);
}

static int arg_word(const struct cli *cli, const char *word, struct pack_w *out)
{
	const char *eq = strchr(word, '=');
	size_t key_bytes;

	if (eq == NULL || eq == word || (eq == word + 1 && word[0] == ':'))
		return cli_usage(cli,
				 "%s: an argument is key=text, key:=JSON or "
				 "key=@FILE",
				 word);
	key_bytes = (size_t)(eq - word);
	if (eq[-1] == ':') {
		pack_str(out, word, key_bytes - 1);
		return arg_json(cli, word, eq + 1, out);
	}
	pack_str(out, word, key_bytes);
	if (eq[1] == '@')
		return arg_file(cli, eq + 2, out);
	pack_cstr(out, eq[1] == '=' ? eq + 2 : eq + 1);
	return CLI_OK;
}

static int arg_object(const struct cli *cli, const char *text,
		      struct pack_w *out)
{
	size_t at = out->n;
	enum pack_type type;
	struct pack_r r;
	int code = arg_json(cli, "arguments", text, out);

	if (code != CLI_OK)
		return code;
	r = pack_reader(out->p + at, out->n - at);
	if (pack_peek(&r, &type) != RC_OK || type != PACK_MAP)
		return cli_usage(cli, "the arguments are one JSON object");
	return CLI_OK;
}

int cli_args_map(const struct cli *cli, const char *const *words, int n,
		 struct pack_w *out)
{
	int code = CLI_OK;
	int i;

	if (n == 1 && words[0][strspn(words[0], " \t\n")] == '{') {
		code = arg_object(cli, words[0], out);
	} else {
		pack_map(out, (uint32_t)n);
		for (i = 0; i < n && code == CLI_OK; i++)
			code = arg_word(cli, words[i], out);
	}
	if (code == CLI_OK && out->rc != RC_OK)
		code = cli_usage(cli, "the arguments have more than %zu bytes",
				 out->max);
	return code;
}

char *cli_address(const char *class_name, const char *name)
{
	size_t size = strlen(class_name) + 1 + 3 * strlen(name) + 1;
	char *address = malloc(size);
	const char *c;
	char *to = address;

	if (address == NULL)
		return NULL;
	to += snprintf(to, size, "%s/", class_name);
	for (c = name; *c != '\0'; c++) {
		if (*c == '/' || *c == '%' || (*c == '~' && c == name))
			to += snprintf(to, 4, "%%%02X", (unsigned)*c);
		else
			*to++ = *c;
	}
	*to = '\0';
	return address;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

uint8_t *cli_unhex(const char *text, size_t *n)
{
	size_t digits = strlen(text);
	uint8_t *p = malloc(digits / 2 + 1);
	size_t i;
	int v;

	for (i = 0; p != NULL && i + 1 < digits; i += 2) {
		v = hex_digit(text[i]) < 0 || hex_digit(text[i + 1]) < 0
			    ? -1
			    : hex_digit(text[i]) * 16 + hex_digit(text[i + 1]);
		if (v < 0) {
			free(p);
			return NULL;
		}
		p[i / 2] = (uint8_t)v;
	}
	if (digits % 2 != 0) {
		free(p);
		return NULL;
	}
	*n = digits / 2;
	return p;
}
