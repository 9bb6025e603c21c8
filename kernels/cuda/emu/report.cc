// The emulator's switches, its random numbers and its words.
#include "kernels/cuda/emu/inside.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

cu_rt_state cu_rt;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int counts[CU_EMU_KINDS];
static char last_report[1024];

static const char *const kind_names[CU_EMU_KINDS] = {
    "any",     "barrier", "diverged",    "outside mask", "misaligned", "address",
    "overrun", "race",    "host access", "trap",         "misuse",
};

static int64_t env_number(const char *name, int64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 0) : otherwise;
}

// A word that is not in the list ends the program: a test that believes it runs backward and runs
// forward proves nothing.
static int env_word(const char *name, const char *const *words, int n) {
    const char *text = getenv(name);
    if (!text || !*text) return 0;
    for (int i = 0; i < n; i++)
        if (strcmp(text, words[i]) == 0) return i;
    fprintf(stderr, "emulated device: %s is '%s', wanted", name, text);
    for (int i = 0; i < n; i++) fprintf(stderr, " %s", words[i]);
    fprintf(stderr, "\n");
    exit(2);
}

// Injections are for all who inherit the environment, or for the processes of one name.
static bool fails_here(void) {
    const char *who = getenv("SUPERPOD_EMU_FAIL_IN");
    char name[32] = "";
    if (!who || !*who) return true;
    FILE *f = fopen("/proc/self/comm", "re");
    if (f && !fgets(name, sizeof name, f)) name[0] = 0;
    if (f) fclose(f);
    name[strcspn(name, "\n")] = 0;
    return strcmp(name, who) == 0;
}

static void start(void) {
    static const char *const orders[] = {"forward", "backward", "random"};
    static const char *const paces[] = {"eager", "lazy", "random"};
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&cu_rt.lock, &attr);
    pthread_mutexattr_destroy(&attr);
    pthread_cond_init(&cu_rt.moved, NULL);

    cu_emu_config *c = &cu_rt.config;
    c->order = (cu_emu_order)env_word("SUPERPOD_EMU_ORDER", orders, 3);
    c->pace = (cu_emu_pace)env_word("SUPERPOD_EMU_STREAMS", paces, 3);
    c->seed = (uint64_t)env_number("SUPERPOD_EMU_SEED", 1);
    c->protect = env_number("SUPERPOD_EMU_PROTECT", 0) != 0;
    c->devices = (int)env_number("SUPERPOD_EMU_DEVICES", 1);
    if (c->devices < 0) c->devices = 0;
    if (c->devices > CU_MAX_DEVICES) c->devices = CU_MAX_DEVICES;
    c->arch = (int)env_number("SUPERPOD_EMU_ARCH", 80);
    c->memory_bytes = (size_t)env_number("SUPERPOD_EMU_MEMORY_MB", 4096) << 20;
    c->driver = (int)env_number("SUPERPOD_EMU_DRIVER", CUDART_VERSION);
    c->peers = env_number("SUPERPOD_EMU_PEERS", 1) != 0;
    cu_rt.random = c->seed;

    cu_rt.fail_error = (cudaError_t)env_number("SUPERPOD_EMU_FAIL_ERROR", cudaErrorIllegalAddress);
    cu_rt.started = true;
    if (!fails_here()) return;
    cu_rt.fail_launch = env_number("SUPERPOD_EMU_FAIL_LAUNCH", 0);
    cu_rt.fail_malloc = env_number("SUPERPOD_EMU_FAIL_MALLOC", 0);
}

void cu_rt_start(void) {
    pthread_once(&once, start);
}

void cu_lock(void) {
    cu_rt_start();
    pthread_mutex_lock(&cu_rt.lock);
}

void cu_unlock(void) {
    pthread_mutex_unlock(&cu_rt.lock);
}

// splitmix64: a seed gives the same order on every machine.
uint64_t cu_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int cu_random_below(int n) {
    return n < 2 ? 0 : (int)(cu_random(&cu_rt.random) % (uint64_t)n);
}

void cu_emu_get_config(cu_emu_config *config) {
    cu_lock();
    *config = cu_rt.config;
    cu_unlock();
}

void cu_emu_configure(const cu_emu_config *config) {
    cu_lock();
    cu_rt.config = *config;
    cu_rt.random = config->seed;
    cu_unlock();
}

static int sticky_of(cu_emu_kind kind) {
    switch (kind) {
    case CU_EMU_MISALIGNED:
        return cudaErrorMisalignedAddress;
    case CU_EMU_ADDRESS:
    case CU_EMU_OVERRUN:
        return cudaErrorIllegalAddress;
    case CU_EMU_TRAP:
        return cudaErrorAssert;
    default:
        return cudaErrorLaunchFailure;
    }
}

int cu_emu_report(cu_emu_kind kind, const char *format, ...) {
    cu_lock();
    char text[900];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(last_report, sizeof last_report, "%s: %s%s%s", kind_names[kind], text,
             cu_engine_busy() ? ", by " : "", cu_engine_busy() ? cu_engine_who() : "");
    counts[kind]++;
    counts[CU_EMU_ANY]++;
    if (!cu_rt.config.quiet) fprintf(stderr, "emulated device: %s\n", last_report);
    cu_unlock();
    return sticky_of(kind);
}

int cu_emu_reports(cu_emu_kind kind) {
    cu_lock();
    int n = counts[kind];
    cu_unlock();
    return n;
}

const char *cu_emu_last_report(void) {
    return last_report;
}

void cu_reports_forget(void) {
    memset(counts, 0, sizeof counts);
    last_report[0] = 0;
}

void cu_emu_fail_launch(int64_t n, cudaError_t error) {
    cu_lock();
    cu_rt.fail_launch = n;
    cu_rt.fail_error = error;
    cu_unlock();
}

void cu_emu_fail_malloc(int64_t n) {
    cu_lock();
    cu_rt.fail_malloc = n;
    cu_unlock();
}

int64_t cu_emu_launches(void) {
    cu_lock();
    int64_t n = cu_rt.launches;
    cu_unlock();
    return n;
}

// Two lines of addr2line: function, file:line. A child, because a report is rare and reading DWARF
// is not ours; posix pipes, because the process may hold thousands of descriptors.
static bool ask_addr2line(const char *object, size_t offset, char *out, size_t size) {
    int ends[2];
    char hex[32];
    snprintf(hex, sizeof hex, "0x%zx", offset);
    if (pipe(ends)) return false;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        execlp("addr2line", "addr2line", "-f", "-C", "-s", "-e", object, hex, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t have = 0;
    ssize_t got;
    while (child > 0 && have + 1 < size && (got = read(ends[0], out + have, size - 1 - have)) > 0)
        have += (size_t)got;
    out[have] = 0;
    close(ends[0]);
    int status = 1;
    if (child > 0) waitpid(child, &status, 0);
    return child > 0 && status == 0 && have > 0;
}

void cu_place_of(const void *pc, char *out, size_t size) {
    Dl_info info;
    char text[1024];
    if (!dladdr(pc, &info) || !info.dli_fname) {
        snprintf(out, size, "%p", pc);
        return;
    }
    // The address after a call belongs to the next line; the call itself ends one byte before.
    size_t offset = (size_t)((const char *)pc - (const char *)info.dli_fbase) - 1;
    char *line = NULL;
    if (ask_addr2line(info.dli_fname, offset, text, sizeof text)) line = strchr(text, '\n');
    if (!line || line[1] == '?') {
        snprintf(out, size, "%s+0x%zx", info.dli_fname, offset);
        return;
    }
    *line++ = 0;
    line[strcspn(line, "\n (")] = 0;
    char *paren = strchr(text, '(');
    if (paren) *paren = 0;
    snprintf(out, size, "%s (%s)", line, text);
}

const char *cu_kernel_name(const void *fn) {
    static __thread char name[256];
    cu_place_of((const char *)fn + 1, name, sizeof name);
    return name;
}
