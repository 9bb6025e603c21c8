// Signals: an address that no kernel may touch becomes the device's sticky error, as on a GPU; the
// host's touch of device memory ends the process, as an unmapped address would.
#include "kernels/cuda/emu/engine.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if CU_ASAN
#include <sanitizer/asan_interface.h>
#endif

static struct sigaction before_segv, before_bus, before_ill;
static pthread_once_t once = PTHREAD_ONCE_INIT;

// Runs on the fibre's own stack, from its top: the frames there are lost with the kernel.
static void landed(void) {
    cu_engine *e = cu_now;
    char what[256], place[512];
    cu_mem_describe(e->fault_at, what, sizeof what);
    cu_place_of((const char *)e->fault_pc + 1, place, sizeof place);
    // -fsanitize-undefined-trap-on-error: what it checks of kernels is alignment and array bounds.
    if (e->fault_trap)
        cu_engine_fault(CU_EMU_MISALIGNED, "a misaligned access or an index out of bounds at %s",
                        place);
    // The processor gives no address for an aligned vector instruction on an odd one.
    if (e->fault_wild)
        cu_engine_fault(CU_EMU_MISALIGNED, "a vector access to a misaligned or wild address at %s",
                        place);
    const cu_stack *s = e->current->stack;
    const char *p = (const char *)e->fault_at;
    if (p >= s->lo - 4096 && p < s->lo)
        snprintf(what, sizeof what, "the end of its %zu KiB stack", s->size >> 10);
    cu_engine_fault(CU_EMU_ADDRESS, "%p is %s, touched at %s", e->fault_at, what, place);
}

static bool land(cu_engine *e, ucontext_t *uc) {
#if defined(__x86_64__)
    cu_stack *s = e->current->stack;
#if CU_ASAN
    __asan_unpoison_memory_region(s->lo, s->size);
#endif
    e->fault_pc = (const void *)uc->uc_mcontext.gregs[REG_RIP];
    void **top = (void **)(s->lo + s->size) - 2;
    *--top = NULL; // the alignment of a called function
    uc->uc_mcontext.gregs[REG_RSP] = (greg_t)top;
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)landed;
    return true;
#else
    (void)e, (void)uc;
    return false;
#endif
}

static void say_host(const void *at) {
    char what[256];
    cu_mem_describe(at, what, sizeof what);
    cu_emu_report(CU_EMU_HOST_ACCESS, "the host touched %p, which is %s", at, what);
}

static void on_fault(int number, siginfo_t *info, void *context) {
    cu_engine *e = cu_now;
    if (cu_engine_busy()) {
        e->fault_at = info->si_addr;
        e->fault_trap = number == SIGILL;
        e->fault_wild = info->si_code == SI_KERNEL;
        if (land(e, (ucontext_t *)context)) return;
    } else if (number == SIGSEGV && cu_mem_inside(info->si_addr)) {
        say_host(info->si_addr);
    }
    // Whoever was there before us (a sanitizer, the default) sees the same fault again.
    sigaction(number,
              number == SIGSEGV  ? &before_segv
              : number == SIGBUS ? &before_bus
                                 : &before_ill,
              NULL);
}

static void install(void) {
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_sigaction = on_fault;
    act.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&act.sa_mask);
    sigaction(SIGSEGV, &act, &before_segv);
    sigaction(SIGBUS, &act, &before_bus);
    sigaction(SIGILL, &act, &before_ill);
}

static __thread char *own_stack;
#define OWN_BYTES 65536

void cu_fault_watch(void) {
    pthread_once(&once, install);
    // A handler cannot stand on a stack that has just overflowed.
    stack_t have;
    if (sigaltstack(NULL, &have) == 0 && !(have.ss_flags & SS_DISABLE)) return;
    void *p = mmap(NULL, OWN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return;
    own_stack = (char *)p;
    stack_t alt;
    memset(&alt, 0, sizeof alt);
    alt.ss_sp = own_stack;
    alt.ss_size = OWN_BYTES;
    sigaltstack(&alt, NULL);
}

void cu_fault_unwatch(void) {
    if (!own_stack) return;
    stack_t none;
    memset(&none, 0, sizeof none);
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, NULL);
    munmap(own_stack, OWN_BYTES);
    own_stack = NULL;
}
