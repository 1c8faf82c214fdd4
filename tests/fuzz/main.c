/*
 * A fuzz target without libFuzzer:
 *
 *	fuzz_x [-n RUNS] [-s SEED] [FILE|DIRECTORY]...
 *
 * Runs the files, then RUNS inputs made of them by SEED (0 and 1 when left
 * out). The input that runs is kept in fuzz_x.crash (in the working directory)
 * when it ends the process by a signal; run that file alone to see it again.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_BYTES_MAX 4096
#define FILES_MAX       1024

struct input {
	size_t n;
	uint8_t p[INPUT_BYTES_MAX];
};

static struct input *files[FILES_MAX];
static size_t files_count;

static struct input now;
static char crash_path[256];

/* splitmix64 */
static uint64_t state = 1;

static uint64_t next(void)
{
	uint64_t z = (state += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static size_t below(size_t n)
{
	return n > 0 ? (size_t)(next() % n) : 0;
}

static void on_crash(int sig)
{
	int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd >= 0) {
		(void)!write(fd, now.p, now.n);
		(void)close(fd);
	}
	(void)signal(sig, SIG_DFL);
	(void)raise(sig);
}

/* In an allocation of its own, so that a sanitizer sees a read too far. */
static void run(void)
{
	uint8_t *p = malloc(now.n > 0 ? now.n : 1);

	if (p == NULL)
		exit(2);
	memcpy(p, now.p, now.n);
	(void)LLVMFuzzerTestOneInput(p, now.n);
	free(p);
}

static void read_file(const char *path)
{
	struct input *in;
	FILE *f;

	if (files_count == FILES_MAX)
		return;
	f = fopen(path, "rb");
	in = calloc(1, sizeof(*in));
	if (f == NULL || in == NULL) {
		(void)fprintf(stderr, "cannot read %s\n", path);
		exit(2);
	}
	in->n = fread(in->p, 1, sizeof(in->p), f);
	(void)fclose(f);
	files[files_count++] = in;
}

static int visible(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static void read_path(const char *path)
{
	struct dirent **entries;
	char name[1024];
	struct stat st;
	int i, n;

	if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
		read_file(path);
		return;
	}
	n = scandir(path, &entries, visible, alphasort);
	for (i = 0; i < n; i++) {
		(void)snprintf(name, sizeof(name), "%s/%s", path,
			       entries[i]->d_name);
		read_file(name);
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
}

/* A byte that decoders look at. */
static uint8_t telling_byte(void)
{
	static const uint8_t bytes[] = {
		0x00, 0x01, 0x7f, 0x80, 0x8f, 0x90, 0x93, 0x94, 0xa0, 0xbf,
		0xc0, 0xc1, 0xc4, 0xc6, 0xc7, 0xc9, 0xcb, 0xcf, 0xd3, 0xd4,
		0xd8, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff, '"',
		'\\', '{',  '}',  '[',  ']',  ',',  ':'
	};

	return bytes[below(sizeof(bytes))];
}

static void remove_at(size_t at, size_t n)
{
	memmove(now.p + at, now.p + at + n, now.n - at - n);
	now.n -= n;
}

static void insert_at(size_t at, const uint8_t *p, size_t n)
{
	if (n > INPUT_BYTES_MAX - now.n)
		n = INPUT_BYTES_MAX - now.n;
	memmove(now.p + at + n, now.p + at, now.n - at);
	memmove(now.p + at, p, n);
	now.n += n;
}

static void mutate(void)
{
	size_t at = below(now.n);
	const struct input *other;
	uint8_t b = telling_byte();
	size_t from;

	switch (next() % 8) {
	case 0:
		if (now.n > 0)
			now.p[at] ^= (uint8_t)(1U << below(8));
		break;
	case 1:
		if (now.n > 0)
			now.p[at] = (uint8_t)next();
		break;
	case 2:
		if (now.n > 0)
			now.p[at] = b;
		break;
	case 3:
		insert_at(at, &b, 1);
		break;
	case 4:
		remove_at(at, below(now.n - at));
		break;
	case 5:
		now.n = at;
		break;
	case 6:
		if (now.n > 0)
			now.p[at] = (uint8_t)(now.p[at] + below(9) - 4);
		break;
	default:
		other = files[below(files_count)];
		from = below(other->n);
		insert_at(at, other->p + from, below(other->n - from + 1));
		break;
	}
}

static uint64_t number(const char *s)
{
	return s != NULL ? strtoull(s, NULL, 10) : 0;
}

int main(int argc, char **argv)
{
	static const int signals[] = { SIGABRT, SIGSEGV, SIGBUS, SIGFPE,
				       SIGILL };
	const char *slash = strrchr(argv[0], '/');
	const char *program = slash != NULL ? slash + 1 : argv[0];
	uint64_t runs = 0;
	uint64_t i, changes;
	int a;

	for (a = 1; a < argc; a++) {
		if (strcmp(argv[a], "-n") == 0)
			runs = number(argv[++a]);
		else if (strcmp(argv[a], "-s") == 0)
			state = number(argv[++a]);
		else
			read_path(argv[a]);
	}
	(void)snprintf(crash_path, sizeof(crash_path), "%s.crash", program);
	for (i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		(void)signal(signals[i], on_crash);
	for (i = 0; i < files_count; i++) {
		now = *files[i];
		run();
	}
	for (i = 0; i < runs && files_count > 0; i++) {
		now = *files[below(files_count)];
		for (changes = 1 + below(6); changes > 0; changes--)
			mutate();
		run();
	}
	printf("# %s: %zu files, %" PRIu64 " inputs made of them\n", program,
	       files_count, files_count > 0 ? runs : 0);
	for (i = 0; i < files_count; i++)
		free(files[i]);
	return files_count > 0 ? 0 : 2;
}
