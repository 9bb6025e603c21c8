#include "comm/group_shm_area.h"

#include "runtime/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x3150554f52475053) /* "SPGROUP1" */
#define VERSION 1
#define LINES_AT ((size_t)4096)
#define POSTS_AT (LINES_AT + SP_GROUP_MEMBERS_MAX * sizeof(sp_shm_line))
#define PAGE ((size_t)64 * 1024) /* a multiple of every page size we meet */
#define TOTAL_MAX ((size_t)1 << 46)
#define SLOT_STEP ((size_t)4096)

_Static_assert(sizeof(sp_shm_line) == 256, "a line is two pairs of cache lines");
_Static_assert(sizeof(sp_shm_post) == 128 && POSTS_AT % 128 == 0, "posts share no cache line");
_Static_assert(sizeof(sp_shm_mail) == 64, "messages begin on a cache line");
_Static_assert(offsetof(sp_shm_line, bell) == 128, "waking does not disturb publishing");

static bool add(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}
static bool mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static bool round_up(size_t a, size_t step, size_t *out) {
    if (!add(a, step - 1, out)) return false;
    *out -= *out % step;
    return true;
}

/* False: some size is beyond what can be counted. */
static bool size_up(sp_shm_sizes *z) {
    size_t n = (size_t)z->n, mails, posts;
    if (!round_up(z->message, sizeof(sp_shm_mail), &z->place)) return false;
    if (!add(z->place, sizeof(sp_shm_mail), &z->place)) return false;
    z->mail = 2 * z->slot;
    if (!mul(n * (size_t)z->sends, z->place, &mails)) return false;
    if (!add(z->mail, mails, &z->member)) return false;
    if (!round_up(z->member, PAGE, &z->member)) return false;
    posts = POSTS_AT + n * n * sizeof(sp_shm_post);
    if (!round_up(posts, PAGE, &z->data)) return false;
    if (!mul(n, z->member, &z->total)) return false;
    return add(z->total, z->data, &z->total) && z->total <= TOTAL_MAX;
}

static sp_status sizes_of(sp_shm_sizes *z, const sp_group_config *c, sp_err *err) {
    if (c->n < 1 || c->n > SP_GROUP_MEMBERS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "a group has 1 to %d members, got %d",
                       SP_GROUP_MEMBERS_MAX, c->n);
    if (c->sends < 0 || c->sends > SP_SHM_SENDS_MAX)
        return SP_FAIL(err, SP_E_INVALID, "a group takes up to %d sends to a member, got %d",
                       SP_SHM_SENDS_MAX, c->sends);
    *z = (sp_shm_sizes){
        .n = c->n, .sends = c->sends ? c->sends : SP_GROUP_SENDS, .message = c->max_message};
    z->slot = SP_SHM_SLOT_MAX;
    if (c->max_reduce < SP_SHM_SLOT_MAX / sizeof(float))
        z->slot = (c->max_reduce * sizeof(float) + SLOT_STEP - 1) / SLOT_STEP * SLOT_STEP;
    if (z->slot == 0) z->slot = SLOT_STEP;
    if (!size_up(z))
        return SP_FAIL(err, SP_E_INVALID, "a group of %d with messages of %zu bytes is too large",
                       c->n, c->max_message);
    return SP_OK;
}

sp_status sp_group_shm_create(int *fd, const sp_group_config *config, sp_err *err) {
    sp_shm_sizes z;
    SP_TRY(sizes_of(&z, config, err));
    int f;
    SP_TRY(sp_memfd_create(&f, "superpod-group", z.total, true, err));
    sp_shm_header *h = MAP_FAILED;
    sp_status st;
    if (fcntl(f, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        st = SP_FAIL(err, SP_E_IO, "sealing the memory of a group: %s", strerror(errno));
        goto close_fd;
    }
    h = mmap(NULL, sizeof *h, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    if (h == MAP_FAILED) {
        st = SP_FAIL(err, SP_E_NOMEM, "mapping the memory of a group: %s", strerror(errno));
        goto close_fd;
    }
    *h = (sp_shm_header){.magic = MAGIC,
                         .version = VERSION,
                         .n = (uint64_t)z.n,
                         .sends = (uint64_t)z.sends,
                         .slot_bytes = z.slot,
                         .message_bytes = z.message};
    munmap(h, sizeof *h);
    *fd = f;
    return SP_OK;

close_fd:
    close(f);
    return st;
}

static sp_status check_file(int fd, const sp_shm_sizes *z, sp_err *err) {
    struct stat sb;
    if (fstat(fd, &sb) != 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d is no group's memory: %s", fd,
                       strerror(errno));
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d is no group's memory: it can shrink", fd);
    if ((uint64_t)sb.st_size != z->total)
        return SP_FAIL(err, SP_E_PROTOCOL,
                       "descriptor %d is no memory of this group: %lld bytes, want %zu", fd,
                       (long long)sb.st_size, z->total);
    return SP_OK;
}

static sp_status check_header(const sp_shm_header *h, const sp_shm_sizes *z, sp_err *err) {
    if (h->magic != MAGIC || h->version != VERSION)
        return SP_FAIL(err, SP_E_PROTOCOL, "this is no group's memory of this version");
    if (h->n != (uint64_t)z->n || h->sends != (uint64_t)z->sends || h->slot_bytes != z->slot ||
        h->message_bytes != z->message)
        return SP_FAIL(err, SP_E_PROTOCOL,
                       "the group was made for %llu members, %llu sends of %llu bytes and slots of "
                       "%llu, want %d, %d of %zu and %zu",
                       (unsigned long long)h->n, (unsigned long long)h->sends,
                       (unsigned long long)h->message_bytes, (unsigned long long)h->slot_bytes,
                       z->n, z->sends, z->message, z->slot);
    return SP_OK;
}

static void *map(int fd, size_t at, size_t bytes, int prot) {
    /* No reserve: only pages that are touched count. */
    void *p = mmap(NULL, bytes, prot, MAP_SHARED | MAP_NORESERVE, fd, (off_t)at);
    return p == MAP_FAILED ? NULL : p;
}

void sp_shm_area_close(sp_shm_area *a) {
    const sp_shm_sizes *z = &a->sizes;
    if (a->every) munmap((void *)(uintptr_t)a->every, z->total - z->data);
    if (a->mine) munmap(a->mine, z->member);
    if (a->header) munmap(a->header, z->data);
    *a = (sp_shm_area){0};
}

sp_status sp_shm_area_open(sp_shm_area *a, int fd, const sp_group_config *config, sp_err *err) {
    sp_shm_sizes z;
    SP_TRY(sizes_of(&z, config, err));
    if (config->me < 0 || config->me >= config->n)
        return SP_FAIL(err, SP_E_INVALID, "a member of %d is 0 to %d, got %d", config->n,
                       config->n - 1, config->me);
    SP_TRY(check_file(fd, &z, err));
    sp_shm_area area = {.sizes = z, .me = config->me};
    sp_status st;
    area.header = map(fd, 0, z.data, PROT_READ | PROT_WRITE);
    area.mine = map(fd, z.data + (size_t)config->me * z.member, z.member, PROT_READ | PROT_WRITE);
    area.every = map(fd, z.data, z.total - z.data, PROT_READ);
    if (!area.header || !area.mine || !area.every) {
        st = SP_FAIL(err, SP_E_NOMEM, "mapping the %zu bytes of a group: %s", z.total,
                     strerror(errno));
        goto unmap;
    }
    st = check_header(area.header, &z, err);
    if (st != SP_OK) goto unmap;
    unsigned char *base = (unsigned char *)area.header;
    area.lines = (sp_shm_line *)(void *)(base + LINES_AT);
    area.posts = (sp_shm_post *)(void *)(base + POSTS_AT);
    if (atomic_exchange(&area.lines[config->me].joined, 1)) {
        st = SP_FAIL(err, SP_E_PROTOCOL, "member %d of this group has joined before", config->me);
        goto unmap;
    }
    *a = area;
    return SP_OK;

unmap:
    sp_shm_area_close(&area);
    return st;
}
