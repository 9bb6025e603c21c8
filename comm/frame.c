#include "comm/frame.h"

#include <string.h>

sp_status sp_frame_check(const sp_frame_header *h, uint64_t sequence, sp_err *err) {
    if (h->magic != SP_FRAME_MAGIC)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame magic is 0x%08x, want 0x%08x", h->magic,
                       SP_FRAME_MAGIC);
    if (h->version != SP_FRAME_VERSION)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame version is %u, want %u", h->version,
                       SP_FRAME_VERSION);
    if (h->type == 0 || h->type >= SP_FRAME_TYPE_END)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame type is %u, want 1 to %u", h->type,
                       SP_FRAME_TYPE_END - 1);
    if (h->length > SP_FRAME_MAX)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame length is %u, want at most %u", h->length,
                       SP_FRAME_MAX);
    if (h->flags != 0) return SP_FAIL(err, SP_E_PROTOCOL, "frame flags are 0x%x, want 0", h->flags);
    if (h->sequence != sequence)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame sequence is %llu, want %llu",
                       (unsigned long long)h->sequence, (unsigned long long)sequence);
    if (h->checksum != 0)
        return SP_FAIL(err, SP_E_PROTOCOL, "frame checksum is 0x%llx, want 0",
                       (unsigned long long)h->checksum);
    return SP_OK;
}

sp_status sp_frame_length(uint32_t *out, const sp_piece *pieces, int n, sp_err *err) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) sum += pieces[i].len;
    if (sum > SP_FRAME_MAX)
        return SP_FAIL(err, SP_E_TOOLONG, "a frame of %llu bytes, at most %u are sent",
                       (unsigned long long)sum, SP_FRAME_MAX);
    *out = (uint32_t)sum;
    return SP_OK;
}

unsigned char *sp_frame_gather(unsigned char *to, const sp_piece *pieces, int n) {
    for (int i = 0; i < n; i++) {
        if (pieces[i].len) memcpy(to, pieces[i].ptr, pieces[i].len);
        to += pieces[i].len;
    }
    return to;
}
