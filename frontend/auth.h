/* frontend/auth.h - who may ask: API keys and, on loopback, the Host allow-list.
 *
 * Keys are kept as SHA-256 digests only; a key offered is hashed and compared with every digest in
 * constant time. On loopback a page of some web site can reach us through the user's browser when
 * its name resolves to 127.0.0.1 (DNS rebinding); such a request carries that name in Host, so only
 * names of this machine are let in there.
 *
 * Thread: an sp_auth is const after create. */
#pragma once

#include "frontend/http_parse.h"

#define SP_API_KEYS_MAX 1024

typedef struct sp_auth sp_auth;

/** `hosts`: further names allowed in Host on loopback. All strings are copied.
 * Errors: SP_E_INVALID an empty key, or too many. */
SP_NODISCARD sp_status sp_auth_create(sp_auth **out, const char *const *keys, int n_keys,
                                      const char *const *hosts, int n_hosts, sp_err *err);
void sp_auth_destroy(sp_auth *a);

/** Whether a path needs a key when there are keys (what serves the model does;
 * health and metrics do not). */
bool sp_auth_guards(sp_slice path);
/** True when there are no keys, or the request carries one of them: "Authorization: Bearer KEY" or
 * "x-api-key: KEY". */
bool sp_auth_allows(const sp_auth *a, const sp_http_head *head);
bool sp_auth_has_keys(const sp_auth *a);
/** Whether a Host header names this machine (with or without a port), or is allowed by config. */
bool sp_auth_allows_host(const sp_auth *a, sp_slice host);
