// Shared memory of the block that runs, and copies into it that happen late.
//
//   [guard | canary | dynamic | canary | object | canary | object | canary ...... | guard page]
//
// All of it begins as 0xFF: a float read before it was written is NaN. Dynamic shared memory is
// aligned to 16 bytes and to no more, as CUDA promises no more.
#include "kernels/cuda/emu/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if CU_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#define PAGE 4096u
#define BESIDE 32 /* canary bytes after each object */
#define CANARY 0xA5
#define ARENA ((size_t)256 * 1024)

bool cu_shared_make(cu_engine *e) {
    void *p =
        mmap(NULL, ARENA + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    mprotect(p, PAGE, PROT_NONE);
    mprotect((char *)p + PAGE + ARENA, PAGE, PROT_NONE);
    e->shared = (char *)p + PAGE;
    e->shared_limit = ARENA;
    return true;
}

void cu_shared_free(cu_engine *e) {
    if (!e->shared) return;
    UNPOISON(e->shared, ARENA);
    munmap(e->shared - PAGE, ARENA + 2 * PAGE);
    e->shared = NULL;
}

size_t cu_shared_most(void) {
    const int arch = cu_rt.config.arch;
    return (size_t)(arch >= 90 ? 227 : arch > 80 ? 99 : 163) * 1024;
}

static char *take(cu_engine *e, const void *key, size_t bytes, size_t align, const char *name) {
    size_t at = (e->shared_used + align - 1) / align * align;
    // 16 modulo 32 when 16 is all that was asked for.
    if (align == 16 && at % 32 == 0) at += 16;
    if (e->n_objects == CU_MAX_SHARED_OBJECTS || at + bytes + BESIDE > ARENA)
        cu_engine_fault(CU_EMU_MISUSE,
                        "shared '%s' of %zu bytes: more than %zu bytes in %d objects", name, bytes,
                        ARENA, CU_MAX_SHARED_OBJECTS);
    cu_shared_object *o = &e->objects[e->n_objects++];
    *o = cu_shared_object{key, e->shared + at, bytes, name};
    e->shared_used = at + bytes + BESIDE;
    UNPOISON(o->at, bytes + BESIDE);
    memset(o->at, 0xff, bytes);
    memset(o->at + bytes, CANARY, BESIDE);
    POISON(o->at + bytes, BESIDE);
    return o->at;
}

void cu_shared_begin(cu_engine *e, size_t dynamic) {
    POISON(e->shared, ARENA);
    e->shared_used = 0;
    e->n_objects = 0;
    e->dynamic = take(e, NULL, dynamic, 16, "dynamic");
}

void cu_shared_end(cu_engine *e) {
    for (int i = 0; i < e->n_objects && !CU_ASAN; i++) {
        const cu_shared_object *o = &e->objects[i];
        for (int k = 0; k < BESIDE; k++) {
            if ((unsigned char)o->at[o->size + (size_t)k] == CANARY) continue;
            e->error = cu_emu_report(
                CU_EMU_OVERRUN, "byte %d after shared '%s' (%zu bytes) was written in this block",
                k, o->name, o->size);
            break;
        }
    }
}

void *cu_emu_dynamic(void) {
    return cu_now->dynamic;
}

void *cu_emu_shared(const void *key, size_t bytes, size_t align, const char *name, const char *file,
                    int line) {
    cu_engine *e = cu_now;
    size_t sum = 0;
    for (int i = 1; i < e->n_objects; i++) {
        if (e->objects[i].key == key) return e->objects[i].at;
        sum += e->objects[i].size;
    }
    if (sum + bytes > CU_MAX_STATIC_SHARED)
        cu_engine_fault(CU_EMU_MISUSE, "shared '%s' at %s:%d: %zu static bytes, at most %d", name,
                        file, line, sum + bytes, CU_MAX_STATIC_SHARED);
    if (sum + bytes + e->objects[0].size > cu_shared_most())
        cu_engine_fault(CU_EMU_MISUSE,
                        "shared '%s' at %s:%d: %zu bytes with the dynamic ones, at most %zu", name,
                        file, line, sum + bytes + e->objects[0].size, cu_shared_most());
    return take(e, key, bytes, align < 16 ? 16 : align, name);
}

void cu_emu_want_shared(const void *ptr, size_t bytes, size_t align, const char *what,
                        const char *file, int line) {
    const cu_engine *e = cu_now;
    const char *p = (const char *)ptr;
    if ((uintptr_t)ptr % align)
        cu_engine_fault(CU_EMU_MISALIGNED, "%s at %s:%d: %p is not a multiple of %zu", what, file,
                        line, ptr, align);
    for (int i = 0; i < e->n_objects; i++)
        if (p >= e->objects[i].at && p + bytes <= e->objects[i].at + e->objects[i].size) return;
    cu_engine_fault(CU_EMU_ADDRESS, "%s at %s:%d: %zu bytes at %p are not inside a shared array",
                    what, file, line, bytes, ptr);
}

/* ---- cp.async: the copy happens when it is waited for, so that a missing wait shows ---- */

void cu_emu_copy_async(void *smem, const void *gmem, int bytes, int from_src, const char *file,
                       int line) {
    cu_thread *t = cu_now->current;
    if (from_src < 0 || from_src > bytes)
        cu_engine_fault(CU_EMU_MISUSE, "cp.async at %s:%d: %d source bytes of %d", file, line,
                        from_src, bytes);
    cu_emu_want_shared(smem, (size_t)bytes, (size_t)bytes, "cp.async", file, line);
    if (from_src > 0 && (uintptr_t)gmem % (unsigned)bytes)
        cu_engine_fault(CU_EMU_MISALIGNED, "cp.async at %s:%d: source %p is not a multiple of %d",
                        file, line, gmem, bytes);
    if (from_src > 0 && !cu_emu_is_device(gmem, (size_t)from_src))
        cu_engine_fault(CU_EMU_ADDRESS, "cp.async at %s:%d: source %p is not device memory", file,
                        line, gmem);
    if (t->n_copies == t->cap_copies) {
        uint32_t cap = t->cap_copies ? t->cap_copies * 2 : 16;
        cu_copy *more = (cu_copy *)realloc(t->copies, cap * sizeof *more);
        if (!more) cu_engine_abandon(cudaErrorMemoryAllocation);
        t->copies = more;
        t->cap_copies = cap;
    }
    t->copies[t->n_copies++] =
        cu_copy{smem, gmem, (uint32_t)bytes, (uint32_t)from_src, 0, file, line};
}

void cu_emu_copy_commit(void) {
    cu_thread *t = cu_now->current;
    t->groups++;
    for (uint32_t i = t->n_copies; i-- > 0 && !t->copies[i].group;) t->copies[i].group = t->groups;
}

void cu_emu_copy_wait(int keep, const char *file, int line) {
    (void)file, (void)line;
    cu_thread *t = cu_now->current;
    uint32_t done = 0;
    for (; done < t->n_copies; done++) {
        const cu_copy *c = &t->copies[done];
        if (keep >= 0 && (!c->group || c->group + (uint32_t)keep > t->groups)) break;
        if (cu_race) {
            if (c->from_src) cu_emu_touch(c->src, c->from_src, false, false);
            cu_emu_touch(c->dst, c->bytes, true, false);
        }
        if (c->from_src) memcpy(c->dst, c->src, c->from_src);
        memset((char *)c->dst + c->from_src, 0, c->bytes - c->from_src);
    }
    if (!done) return;
    t->n_copies -= done;
    memmove(t->copies, t->copies + done, t->n_copies * sizeof *t->copies);
}
