/*
 * method - the methods of method.tbl: finding one, and checking what it is
 * given.
 *
 * Any thread; no state, no allocation. Names arrive from the wire: bytes with
 * a length, in any content.
 */
#ifndef HOLDFAST_PROTO_METHOD_H
#define HOLDFAST_PROTO_METHOD_H

#include "client/proto/pack.h"

/* Bits, so that a set of rights is their sum. */
enum method_right {
	RIGHT_READ = 1,
	RIGHT_WRITE = 2,
	RIGHT_ADMIN = 4,
	RIGHT_NODE = 8, /* Of the nodes themselves; no grant gives it. */
};

/* Flags of a METHOD row. */
#define METHOD_WRITES 1U

/* Flags of our own: what a key of the map is called in a sentence. */
#define METHOD_OPTIONS 2U

#define METHOD_ARGS_MAX 8

enum method_type {
	METHOD_STR,
	METHOD_BYTES,
	METHOD_UINT,
	METHOD_INT,
	METHOD_BOOL,
	METHOD_ENUM,
	METHOD_VALUE,
	METHOD_VALUE_NIL,
	METHOD_ARRAY,
	METHOD_MAP,
};

/* SET_durability ... */
enum method_set {
#define SET(set) SET_##set,
#include "client/proto/method.tbl"
	METHOD_SETS
};

/* The words of each set, from 0: WORD_durability_memory ... */
enum {
	WORD_BEGIN = -1,
#define SET(set)        WORD_##set##_BEGIN = -1,
#define WORD(set, word) WORD_##set##_##word,
#include "client/proto/method.tbl"
};

/* Places in `struct method_args`: ARG_kv_put_key ... */
enum {
	ARG_BEGIN = -1,
#define METHOD(class, name, right, flags, text) \
	ARG_##class##_##name##_BEGIN = -1,
#define ARG(class, method, name, type, required, min, max, text) \
	ARG_##class##_##method##_##name,
#include "client/proto/method.tbl"
};

/* The same for the options of `call`: OPTION_deadline_ms ... */
enum {
#define OPTION(name, type, min, max, text) OPTION_##name,
#include "client/proto/method.tbl"
	OPTIONS_COUNT
};

/* The numbers of the methods, in the order of the table: METHOD_kv_get ... */
enum {
#define METHOD(class, name, right, flags, text) METHOD_##class##_##name,
#include "client/proto/method.tbl"
	METHODS_COUNT
};

struct method_arg {
	const char *name;
	size_t name_bytes;
	enum method_type type;
	bool required;
	int64_t min; /* As method.tbl says for the type. */
	int64_t max;
	const char *text;
};

struct method {
	const char *class_name; /* "" for the options of `call`. */
	size_t class_bytes;
	const char *name;
	size_t name_bytes;
	uint32_t number; /* METHOD_kv_get ... */
	enum method_right right;
	uint32_t flags;
	uint32_t args_count;
	const struct method_arg *args; /* By ARG_<class>_<method>_<name>. */
	const char *text;
};

/* What one argument is. */
struct method_value {
	struct pack_val v;       /* UINT and INT: `u` and `i` are both good. */
	struct pack_bytes bytes; /* As it was encoded. */
	uint32_t word;           /* ENUM: WORD_<set>_<word>. */
};

/* Points into the args it was read from. `at[i]` is set where bit i of
 * `present` is. */
struct method_args {
	uint32_t present;
	struct method_value at[METHOD_ARGS_MAX];
};

/* NULL: no such class, or it has no such method. */
const struct method *method_find(const char *class_name, size_t class_bytes,
				 const char *name, size_t name_bytes);
bool method_class_known(const char *class_name, size_t class_bytes);
/* By number, 0 to METHODS_COUNT - 1 (NULL above). */
const struct method *method_at(size_t number);
/* The keys of `options`, for method_args_check(). */
const struct method *method_call_options(void);
/* The word `word` of `set`; NULL when there are fewer. */
const char *method_word(enum method_set set, uint32_t word);

const char *method_right_name(enum method_right right); /* "read" ... */
/* RC_OK, or RC_NOT_FOUND for what is no right. */
enum rc method_right_parse(const char *name, size_t len,
			   enum method_right *out);

/*
 * Read the map `args` by what `m` takes; keys are str or bin, in any order.
 *
 * RC_OK: `out` is filled; all required arguments are present, all present ones
 * are of their type and within their bounds. RC_INVALID: one is not, or is
 * missing, unknown or given twice: `why->field` is its name ("args" or
 * "options" when the whole is no map) and `why->text` says what it must be.
 * The bytes need not have been checked before.
 */
enum rc method_args_check(const struct method *m, struct pack_bytes args,
			  struct method_args *out, struct detail *why);
/* The same for a map that holds one key more, `besides`, which is passed over:
 * the arguments of `put` in {op: "put", key: ..., value: ...}. */
enum rc method_args_check_besides(const struct method *m,
				  struct pack_bytes args, const char *besides,
				  struct method_args *out, struct detail *why);

static inline bool method_has(const struct method_args *a, int place)
{
	return ((a->present >> place) & 1U) != 0;
}

static inline uint64_t method_u64(const struct method_args *a, int place,
				  uint64_t otherwise)
{
	return method_has(a, place) ? a->at[place].v.u : otherwise;
}

static inline int64_t method_i64(const struct method_args *a, int place,
				 int64_t otherwise)
{
	return method_has(a, place) ? a->at[place].v.i : otherwise;
}

static inline bool method_bool(const struct method_args *a, int place,
			       bool otherwise)
{
	return method_has(a, place) ? a->at[place].v.b : otherwise;
}

static inline uint32_t method_word_of(const struct method_args *a, int place,
				      uint32_t otherwise)
{
	return method_has(a, place) ? a->at[place].word : otherwise;
}

/* A STR or BYTES argument; {NULL, 0} when it is left out. */
static inline struct pack_bytes method_bytes(const struct method_args *a,
					     int place)
{
	struct pack_bytes none = { NULL, 0 };

	return method_has(a, place) ? a->at[place].v.s : none;
}

/* What is no method of a class: RPC_call, RPC_hello ... */
enum rpc_number {
#define RPC(name, params_min, params_max, text)    RPC_##name,
#define NOTIFY(name, params_min, params_max, text) RPC_##name,
#include "client/proto/method.tbl"
	RPCS_COUNT
};

struct rpc_method {
	const char *name;
	size_t name_bytes;
	enum rpc_number number;
	bool notify; /* A notification, else a request. */
	uint32_t params_min;
	uint32_t params_max;
	const char *text;
};

/* The request (or, with `notify`, the notification) of this name; NULL when
 * there is none. */
const struct rpc_method *rpc_method_find(const char *name, size_t name_bytes,
					 bool notify);
/* By number; NULL above RPCS_COUNT. */
const struct rpc_method *rpc_method_at(size_t number);

#endif
