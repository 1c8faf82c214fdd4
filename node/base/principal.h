/*
 * principal - the names of callers, and what a name alone says about its
 * bearer.
 *
 * Pure; any thread. The forms: `unix:NODE:UID`, proved by the kernel of the
 * node NODE; `spiffe://CLUSTER/tenant/T/env/E/...`, proved by a certificate and
 * confined to the tenant T and the environment E; `object:TENANT/ENV/CLASS`,
 * the objects of a class when they call others; `node:ID`, a node that speaks
 * for itself, which no grant names and only a link between members proves.
 */
#ifndef HOLDFAST_BASE_PRINCIPAL_H
#define HOLDFAST_BASE_PRINCIPAL_H

#include <stdbool.h>

#include "client/proto/pack.h"

bool principal_is_node(struct pack_bytes p);

#define PRINCIPAL_NODE_BYTES 32u
void principal_of_node(uint64_t node_id, char out[PRINCIPAL_NODE_BYTES]);

/* May this name have rights on things of `tenant`/`env` at all? */
bool principal_may_enter(struct pack_bytes p, struct pack_bytes tenant,
			 struct pack_bytes env);

/* Tenants, environments and classes: 1..64 bytes of [a-z0-9_-] that begin with
 * a letter. */
bool label_good(struct pack_bytes s);

#endif
