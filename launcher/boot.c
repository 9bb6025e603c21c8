#include "launcher/boot.h"

#include "runtime/base/file.h"
#include "runtime/base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BOOT_MAGIC UINT64_C(0x31544f4f42505331) /* "1SPBOOT1" */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)

sp_status sp_boot_write(int *fd, const sp_boot *b, sp_err *err) {
    int f;
    SP_TRY(sp_memfd_create(&f, "superpod-boot", 0, false, err));
    sp_boot copy = *b;
    copy.magic = BOOT_MAGIC;
    copy.size = sizeof copy;
    ssize_t n = pwrite(f, &copy, sizeof copy, 0);
    explicit_bzero(&copy, sizeof copy);
    if (n != (ssize_t)sizeof copy || fcntl(f, F_ADD_SEALS, SEALS) != 0) {
        close(f);
        return SP_FAIL(err, SP_E_IO, "writing a child's start block: %s", strerror(errno));
    }
    *fd = f;
    return SP_OK;
}

sp_status sp_boot_read(sp_boot *out, const char *text, sp_err *err) {
    int64_t fd;
    if (sp_parse_i64(sp_slice_of(text), &fd) != SP_OK || fd < 0 || fd > INT32_MAX)
        return SP_FAIL(err, SP_E_INVALID, "'%.20s' is no descriptor", text);
    sp_boot b;
    ssize_t n = pread((int)fd, &b, sizeof b, 0);
    bool ours = n == (ssize_t)sizeof b && b.magic == BOOT_MAGIC && b.size == sizeof b;
    if (ours) {
        *out = b;
        close((int)fd);
    }
    explicit_bzero(&b, sizeof b);
    if (!ours)
        return SP_FAIL(err, SP_E_PROTOCOL, "descriptor %d holds no start block of this build",
                       (int)fd);
    return SP_OK;
}
