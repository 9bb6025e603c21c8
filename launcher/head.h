/* launcher/head.h - the head process: engine and a front end; it owns no device.
 *
 * The front end is HTTP (serve), the terminal (run) or a file (inspect logits). Whatever it is, it
 * sees the engine through runtime/engine/engine.h alone.
 *
 * Threads: main (loop), text, engine; see runtime/engine/README.md and frontend/README.md. */
#pragma once

#include "launcher/config.h"
#include "launcher/model.h"
#include "launcher/pod.h"
#include "runtime/engine/engine.h"
#include "runtime/text/chat.h"
#include "runtime/text/tokenizer.h"

/** What a front end is given. Borrowed until it returns. */
typedef struct sp_front {
    const sp_config *config;
    const sp_model *model;
    sp_engine *engine;
    const sp_tokenizer *tokenizer; /* NULL for inspect logits on a directory without one */
    const sp_chat *chat;           /* NULL: the model has no template */
    int stop_fd;                   /* readable after SIGTERM or SIGINT: a signalfd */
    sp_pod *pod;                   /* who computes; looked after by `serve`'s ctl thread */
    const sp_kv_share *share;      /* off: no other pod may read KV blocks */
} sp_front;

/** "internal-head BOOTFD COMMAND ...": started by the first agent only. */
int sp_head(int argc, char **argv);
