/* tests/kernels/cuda/nccl_env.h - members of an emulated NCCL communicator, as threads and as
 * processes, each with a stream of its own. */
#pragma once

#include "comm/group_nccl.h"
#include "kernels/cuda/emu/emu.h"
#include "runtime/base/clock.h"
#include "tests/harness.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAST_MAX 8

typedef struct cast_member cast_member;
typedef int (*cast_play)(cast_member *m); /* how much was wrong */
struct cast_member {
    const cu_nccl *nccl;
    cu_nccl_id id;
    cudaStream_t stream;
    sp_group *g; /* NULL where the play opens it itself */
    sp_group_config config;
    bool fast, plain; /* plain: no group, only the library */
    cast_play play;
    pthread_t thread;
    int wrong;
};

static inline void cast_pace(cu_emu_pace pace, uint64_t seed) {
    cu_emu_config c;
    cu_emu_get_config(&c);
    c.pace = pace;
    c.order = (cu_emu_order)pace; /* eager forward, lazy backward, random random */
    c.seed = seed;
    c.quiet = 1;
    cu_emu_configure(&c);
    cu_emu_reset();
}

#define CAST_WANT(cond) \
    do { \
        if (!(cond)) { \
            printf("%s:%d: member %d: %s\n", __FILE__, __LINE__, m->config.me, #cond); \
            wrong++; \
        } \
    } while (0)

/* Members that are threads have a device each: cudaFree() waits for all streams of its device, and so
 * for what another member there is still to bring. */
__attribute__((constructor)) static void cast_devices(void) {
    setenv("SUPERPOD_EMU_DEVICES", "8", 1);
}

static inline int cast_be(cast_member *m) {
    sp_err err = {0};
    int wrong = 0;
    CAST_WANT(cudaSetDevice(m->config.me) == cudaSuccess);
    if (cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking) != cudaSuccess) return 1000;
    if (m->plain) return m->play(m);
    sp_status st =
        sp_group_open_nccl(&m->g, m->nccl, &m->id, m->stream, m->fast, &m->config, NULL, &err);
    if (st != SP_OK) {
        printf("member %d: %s\n", m->config.me, err.text);
        return 1000;
    }
    wrong += m->play(m);
    m->g->ops->close(m->g);
    CAST_WANT(cudaStreamDestroy(m->stream) == cudaSuccess);
    return wrong;
}

static inline void *cast_thread(void *arg) {
    cast_member *m = arg;
    m->wrong = cast_be(m);
    return NULL;
}

static inline int cast_run(const cu_nccl *nccl, bool processes, cast_member like) {
    static cast_member all[CAST_MAX];
    pid_t pids[CAST_MAX];
    const int n = like.config.n;
    int wrong = 0;
    like.nccl = nccl;
    CU_ASSERT_EQUAL_FATAL(sp_group_nccl_id(&like.id, nccl, NULL), SP_OK);
    fflush(NULL);
    for (int i = 0; i < n; i++) {
        all[i] = like;
        all[i].config.me = i;
        if (!processes) {
            CU_ASSERT_EQUAL_FATAL(pthread_create(&all[i].thread, NULL, cast_thread, &all[i]), 0);
        } else if ((pids[i] = fork()) == 0) {
            wrong = cast_be(&all[i]);
            fflush(NULL);
            _exit(wrong > 255 ? 255 : wrong);
        }
    }
    for (int i = 0; i < n; i++) {
        int how = 0;
        if (!processes) pthread_join(all[i].thread, NULL);
        if (!processes) wrong += all[i].wrong;
        if (processes && waitpid(pids[i], &how, 0) != pids[i]) wrong++;
        if (processes && WIFEXITED(how)) wrong += WEXITSTATUS(how);
        if (processes && WIFSIGNALED(how) && WTERMSIG(how) != SIGKILL) wrong++;
    }
    return wrong;
}

static inline const cu_nccl *cast_nccl(void) {
    static cu_nccl nccl;
    sp_err err = {0};
    if (!nccl.library && cu_nccl_open(&nccl, NULL, &err) != SP_OK) {
        printf("%s\n", err.text);
        return NULL;
    }
    return &nccl;
}

/* Descriptors of the emulated NCCL's memory that this process has open. */
static inline int cast_open_memory(void) {
    int n = 0;
    char path[64], target[128];
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t got = readlink(path, target, sizeof target - 1);
        if (got <= 0) continue;
        target[got] = 0;
        n += strstr(target, "superpod-nccl-emu") != NULL;
    }
    return n;
}
