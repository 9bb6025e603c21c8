/* launcher/bench_target.h - the server that a load goes to: address, model and request heads.
 *
 * Thread: main. */
#pragma once

#include "launcher/bench_load.h"

#include <sys/socket.h>

typedef struct sp_target {
    struct sockaddr_storage address;
    socklen_t address_len;
    char model[256];
} sp_target;

/** Finds the first address of the host that accepts a connection, and the model's name: told, or
 * the first of GET /v1/models. Errors: SP_E_UNAVAILABLE, SP_E_FORMAT (what it answered). */
SP_NODISCARD sp_status sp_target_find(sp_target *t, const sp_load_config *config, sp_err *err);

/** A TCP socket of the target's family, or -1 and errno. Owner: caller, close(). */
int sp_target_socket(const sp_target *t, int flags);

/** Request line, host, agent and key; no empty line after them. */
void sp_target_put_head(sp_buf *b, const sp_load_config *config, const char *verb,
                        const char *path);
