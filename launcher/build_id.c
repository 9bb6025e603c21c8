#include "launcher/build_id.h"

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static char text[SP_BUILD_ID_BYTES];

static size_t padded(size_t n) {
    return (n + 3) & ~(size_t)3;
}

/* Appends the build id of a notes segment, when it has one. */
static void read_notes(const char *at, size_t left) {
    while (left >= sizeof(ElfW(Nhdr))) {
        const ElfW(Nhdr) *note = (const void *)at;
        size_t size = sizeof *note + padded(note->n_namesz) + padded(note->n_descsz);
        if (size > left) return;
        const char *name = at + sizeof *note;
        const unsigned char *id = (const unsigned char *)name + padded(note->n_namesz);
        if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && memcmp(name, "GNU", 4) == 0) {
            size_t n = strlen(text);
            for (size_t i = 0; i < note->n_descsz && n + 4 < sizeof text; i++)
                n += (size_t)snprintf(text + n, sizeof text - n, i ? "%02x" : "-%02x", id[i]);
            return;
        }
        at += size;
        left -= size;
    }
}

/* The first object is the program itself. */
static int read_program(struct dl_phdr_info *info, size_t size, void *ctx) {
    (void)size;
    (void)ctx;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_NOTE)
            read_notes((const char *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr),
                       info->dlpi_phdr[i].p_memsz);
    return 1;
}

static void find(void) {
    snprintf(text, sizeof text, "%s", SP_VERSION);
    dl_iterate_phdr(read_program, NULL);
}

const char *sp_build_id(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find);
    return text;
}
