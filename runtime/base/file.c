#include "runtime/base/file.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static sp_status open_regular(int *fd, struct stat *sb, const char *path, sp_err *err) {
    /* Not blocking: a FIFO without a writer would hold us for ever; regular files do not care. */
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return SP_FAIL(err, errno == ENOENT || errno == ENOTDIR ? SP_E_NOTFOUND : SP_E_IO,
                       "'%s': %s", path, strerror(errno));
    if (fstat(*fd, sb) != 0 || !S_ISREG(sb->st_mode)) {
        close(*fd);
        return SP_FAIL(err, SP_E_IO, "'%s': not a regular file", path);
    }
    return SP_OK;
}

sp_status sp_map_open(sp_map *out, const char *path, sp_err *err) {
    int fd;
    struct stat sb;
    SP_TRY(open_regular(&fd, &sb, path, err));
    void *p = NULL;
    if (sb.st_size > 0) p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int saved = errno;
    close(fd);
    if (p == MAP_FAILED) return SP_FAIL(err, SP_E_IO, "'%s': mmap: %s", path, strerror(saved));
    *out = (sp_map){p, (size_t)sb.st_size};
    return SP_OK;
}

void sp_map_close(sp_map *m) {
    if (m->ptr) munmap((void *)m->ptr, m->len);
    *m = (sp_map){0};
}

sp_status sp_file_read(const char *path, size_t max_bytes, char **out, size_t *len, sp_err *err) {
    int fd;
    struct stat sb;
    SP_TRY(open_regular(&fd, &sb, path, err));
    sp_status st = SP_OK;
    char *bytes = NULL;
    size_t n = 0, size = (size_t)sb.st_size;
    if (size > max_bytes) {
        st = SP_FAIL(err, SP_E_TOOLONG, "'%s': %zu bytes, at most %zu are read", path, size,
                     max_bytes);
        goto close_file;
    }
    bytes = sp_try_alloc(size + 1);
    if (!bytes) {
        st = SP_FAIL(err, SP_E_NOMEM, "'%s': no memory for %zu bytes", path, size);
        goto close_file;
    }
    while (n < size) {
        ssize_t got = read(fd, bytes + n, size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break; /* shorter than fstat said: the file is being written */
        n += (size_t)got;
    }
    if (n < size) {
        st = SP_FAIL(err, SP_E_IO, "'%s': read %zu of %zu bytes", path, n, size);
        sp_free(bytes);
        goto close_file;
    }
    *out = bytes;
    *len = n;
close_file:
    close(fd);
    return st;
}

bool sp_file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

sp_status sp_memfd_create(int *fd, const char *name, size_t size, bool inherit, sp_err *err) {
    int f = memfd_create(name, MFD_ALLOW_SEALING | (inherit ? 0 : MFD_CLOEXEC));
    if (f < 0) return SP_FAIL(err, SP_E_IO, "memfd '%s': %s", name, strerror(errno));
    if (ftruncate(f, (off_t)size) != 0) {
        int saved = errno;
        close(f);
        return SP_FAIL(err, SP_E_NOMEM, "memfd '%s' of %zu bytes: %s", name, size, strerror(saved));
    }
    *fd = f;
    return SP_OK;
}
