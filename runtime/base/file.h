/* runtime/base/file.h - read-only maps and bounded whole-file reads.
 * Thread: any. */
#pragma once

#include "runtime/base/str.h"

typedef struct sp_map {
    const unsigned char *ptr; /* NULL when the file is empty */
    size_t len;
} sp_map;

/** Maps a regular file read-only and private.
 * Errors: SP_E_NOTFOUND, SP_E_IO (names the path and the reason). */
SP_NODISCARD sp_status sp_map_open(sp_map *out, const char *path, sp_err *err);
void sp_map_close(sp_map *m);

/** Reads a whole file of at most `max_bytes` into a NUL-terminated buffer (owner: caller, sp_free).
 * Errors: SP_E_NOTFOUND, SP_E_IO, SP_E_TOOLONG, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_file_read(const char *path, size_t max_bytes, char **out, size_t *len,
                                    sp_err *err);
bool sp_file_exists(const char *path);

/** Makes an anonymous memory file of `size` bytes that children inherit when `inherit`.
 * Errors: SP_E_IO, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_memfd_create(int *fd, const char *name, size_t size, bool inherit,
                                       sp_err *err);
