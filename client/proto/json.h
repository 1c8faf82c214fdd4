/*
 * json - MessagePack as JSON for people, and back.
 *
 * Any thread; allocates, so not for the path of a call. Text is UTF-8 and JSON
 * as RFC 8259 has it, without any extension. Both ways together lose nothing:
 * what JSON cannot say is an object with one reserved key,
 *
 *	{"$bin": "base64"}          bin
 *	{"$str": "base64"}          str that is not UTF-8
 *	{"$ext": [type, "base64"]}  ext
 *	{"$float": "nan"}           float: nan, inf, -inf
 *	{"$map": [[key, value]]}    map with keys that are no text, with a key
 *	                            twice, or that looks like one of these
 *
 * Integers have 64 bits, exactly; a number with a fraction or an exponent is a
 * float, and a float is always written with one.
 */
#ifndef HOLDFAST_PROTO_JSON_H
#define HOLDFAST_PROTO_JSON_H

#include "client/proto/pack.h"

/* Flags of pack_to_json(). */
#define JSON_PRETTY 1U /* Lines, and two spaces a level. */
#define JSON_BIN_TEXT                                          \
	2U /* bin of printable UTF-8 as a string: loses `bin'. \
	    */

/*
 * Append `value`, one encoded object, to `out` as text (not as MessagePack, no
 * newline behind it, no NUL). Control characters are escaped, so that a
 * terminal takes it.
 * RC_INVALID: it is not one object, or breaks PACK_DEPTH_MAX or
 * PACK_ELEMENTS_MAX. RC_NOMEM, RC_OVERLOADED: `out` has no room. `out` may
 * hold a part of it then.
 */
enum rc pack_to_json(struct pack_bytes value, struct pack_w *out,
		     unsigned flags);

/*
 * Append the one JSON value that `text` is to `out`, each number and length in
 * its shortest form.
 * RC_INVALID: not JSON, a key twice in an object, an integer of more than 64
 * bits, a float out of range, deeper than PACK_DEPTH_MAX, more than
 * PACK_ELEMENTS_MAX objects; `why` names the byte. RC_NOMEM, RC_OVERLOADED as
 * above. `out->n` is what it was before, whenever it is not RC_OK.
 */
enum rc json_to_pack(const char *text, size_t n, struct pack_w *out,
		     struct detail *why);

#endif
