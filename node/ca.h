/*
 * ca - the cluster's own certificate authority: makes its key and certificate,
 * and those of nodes and clients (DESIGN D10).
 *
 * Blocking; for `holdfast init` and `holdfast cert`, never for a node that
 * serves: nothing that runs needs the key of the CA. Keys are ECDSA on P-256;
 * serial numbers are random; a certificate is valid from an hour before it is
 * made, so that a clock that is a little behind does not refuse it. Who it is
 * for stands in the subjectAltName as one SPIFFE URI. Certificates byte by byte
 * in docs/security.md.
 */
#ifndef HOLDFAST_NODE_CA_H
#define HOLDFAST_NODE_CA_H

#include <stdint.h>

#include "client/proto/rc.h"

struct ca;

#define CA_DAYS        3650u /* Of the authority itself. */
#define CA_LEAF_DAYS   365u  /* Of what it signs, unless it is said. */
#define CA_BEFORE_S    3600
#define CA_CLUSTER_HEX 32u /* The cluster id, the trust domain. */
#define CA_URI_BYTES   256u

enum ca_use {
	CA_NODE,   /* Serves and connects. */
	CA_CLIENT, /* Connects. */
};

/* A new key, and a certificate signed with it for `spiffe://CLUSTER`. `cluster`
 * has CA_CLUSTER_HEX lower-case hex digits, else RC_INVALID. RC_NOMEM,
 * RC_INTERNAL (OpenSSL refuses). */
enum rc ca_new(const char *cluster, struct ca **out, struct detail *why);
/* From PEM files. RC_NOT_FOUND, RC_IO; RC_INVALID: they are no authority, not
 * of one pair, or expired. */
enum rc ca_load(const char *cert_file, const char *key_file, struct ca **out,
		struct detail *why);
void ca_free(struct ca *ca);
/* The cluster id in hex digits. */
const char *ca_cluster(const struct ca *ca);

/*
 * Write certificate and key (mode 0600; NULL: the certificate alone), each
 * whole or not at all: under another name, synced, renamed. A file of that name
 * is replaced. RC_IO, RC_NO_SPACE.
 */
enum rc ca_save(const struct ca *ca, const char *cert_file,
		const char *key_file, struct detail *why);

/*
 * A new key and a certificate for `spiffe://CLUSTER/PATH`, saved as above, the
 * key first. `path`: segments of A-Z a-z 0-9 . _ - between slashes. Valid for
 * `days` (1..CA_DAYS), but never longer than the authority. RC_INVALID: the
 * path; otherwise as ca_new and ca_save.
 */
enum rc ca_issue(const struct ca *ca, enum ca_use use, const char *path,
		 uint32_t days, const char *cert_file, const char *key_file,
		 struct detail *why);

#endif
