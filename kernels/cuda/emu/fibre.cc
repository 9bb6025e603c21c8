// Stacks and the switch between them.
//
// The switch saves the six registers that the x86-64 ABI asks a callee to keep, and nothing else:
// 4 ns; it ends in a jump, because a `ret` to where no call came from is mispredicted every time
// (twice the cost of a barrier). swapcontext() saves the signal mask by two system calls and costs eight times as much; it is
// what other machines get.
#include "kernels/cuda/emu/inside.h"

#include <stdlib.h>
#include <string.h>

#if CU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(CU_EMU_UCONTEXT)

extern "C" CU_HIDDEN void cu_fibre_swap(void **save, void *load);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl cu_fibre_swap\n"
        ".hidden cu_fibre_swap\n"
        ".type cu_fibre_swap, @function\n"
        "cu_fibre_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n"
        "    jmp *%rcx\n"
        ".size cu_fibre_swap, .-cu_fibre_swap\n");

static void begin(cu_stack *s, void (*entry)(void)) {
    // Six registers, the entry as return address, and a null one above it, so that the entry starts
    // with the alignment that a called function expects and a debugger's walk ends there.
    void **sp = (void **)(s->lo + s->size) - 1;
    *sp = NULL;
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++) *--sp = NULL;
    s->sp = sp;
}

static void swap(cu_stack *from, cu_stack *to) {
    cu_fibre_swap(&from->sp, to->sp);
}
static void make(cu_stack *s) {
    (void)s;
}

#else

#include <ucontext.h>

static void make(cu_stack *s) {
    if (!s->uc) s->uc = calloc(1, sizeof(ucontext_t));
    if (!s->uc) abort();
}

static void begin(cu_stack *s, void (*entry)(void)) {
    ucontext_t *uc = (ucontext_t *)s->uc;
    getcontext(uc);
    uc->uc_stack.ss_sp = s->lo;
    uc->uc_stack.ss_size = s->size;
    uc->uc_link = NULL;
    makecontext(uc, entry, 0);
}

static void swap(cu_stack *from, cu_stack *to) {
    swapcontext((ucontext_t *)from->uc, (const ucontext_t *)to->uc);
}

#endif

void cu_stack_make(cu_stack *s, char *lo, size_t size) {
    s->lo = lo;
    s->size = size;
    make(s);
}

void cu_stack_begin(cu_stack *s, void (*entry)(void)) {
#if CU_ASAN
    // A kernel that was abandoned left its frames' red zones behind.
    __asan_unpoison_memory_region(s->lo, s->size);
#endif
    s->fake = NULL;
    begin(s, entry);
}

void cu_stack_switch(cu_stack *from, cu_stack *to, bool last) {
#if CU_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake, to->lo, to->size);
#else
    (void)last;
#endif
    swap(from, to);
#if CU_ASAN
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}

void cu_stack_entered(cu_stack *from) {
    (void)from;
#if CU_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}

void cu_stack_home(cu_stack *s) {
    pthread_attr_t attr;
    void *lo = NULL;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attr) == 0) {
        pthread_attr_getstack(&attr, &lo, &size);
        pthread_attr_destroy(&attr);
    }
    s->lo = (char *)lo;
    s->size = size;
    make(s);
}
