#include "runtime/engine/kv_mirror.h"

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

#include <string.h>

struct sp_kv_mirror {
    sp_kv_mirror_config c;
    bool is_locked;
    unsigned char *bounce; /* NULL when locked */
    /* Neighbours that wait to be copied in one piece. */
    bool saves;
    uint32_t first, n;
    bool is_open; /* something was asked for since settle() */
};

sp_status sp_kv_mirror_open(sp_kv_mirror **out, const sp_kv_mirror_config *c, sp_err *err) {
    const sp_dev_ops *ops = c->dev->ops;
    const size_t bytes = (size_t)c->n_blocks * c->block_bytes;
    if (c->here_bytes < bytes)
        return SP_FAIL(err, SP_E_INVALID, "%zu bytes of the host for KV blocks, want %zu",
                       c->here_bytes, bytes);
    sp_kv_mirror *m = sp_try_alloc(sizeof *m);
    if (!m) return SP_FAIL(err, SP_E_NOMEM, "no memory for a mirror of KV blocks");
    m->c = *c;
    m->is_locked = ops->host_pin && ops->host_pin(c->dev, c->here, bytes);
    if (!m->is_locked) m->bounce = ops->host_alloc(c->dev, SP_KV_MIRROR_BOUNCE);
    if (!m->is_locked && !m->bounce) {
        sp_free(m);
        return SP_FAIL(err, SP_E_NOMEM, "no pinned memory of %zu bytes to copy KV blocks by",
                       SP_KV_MIRROR_BOUNCE);
    }
    *out = m;
    return SP_OK;
}

void sp_kv_mirror_close(sp_kv_mirror *m) {
    if (!m) return;
    const sp_dev_ops *ops = m->c.dev->ops;
    if (m->is_locked) ops->host_unpin(m->c.dev, m->c.here);
    if (m->bounce) ops->host_free(m->c.dev, m->bounce, SP_KV_MIRROR_BOUNCE);
    sp_free(m);
}

bool sp_kv_mirror_is_locked(const sp_kv_mirror *m) {
    return m->is_locked;
}

/* ---- copies ---- */

static sp_status wait_all(sp_kv_mirror *m, sp_err *err) {
    sp_dev *dev = m->c.dev;
    return dev->ops->poll(dev, dev->ops->submit(dev), SP_NEVER, err);
}

/* A fault stays with the device: settle() tells it. */
static void save_by_bounce(sp_kv_mirror *m, size_t at, size_t bytes) {
    const size_t end = at + bytes;
    while (at < end) {
        const size_t n = end - at < SP_KV_MIRROR_BOUNCE ? end - at : SP_KV_MIRROR_BOUNCE;
        m->c.dev->ops->download(m->c.dev, m->bounce, m->c.there + at, n);
        if (wait_all(m, NULL) != SP_OK) return;
        memcpy(m->c.here + at, m->bounce, n);
        at += n;
    }
}

static void flush(sp_kv_mirror *m) {
    const size_t at = m->first * m->c.block_bytes, bytes = m->n * m->c.block_bytes;
    const sp_dev_ops *ops = m->c.dev->ops;
    m->n = 0;
    if (bytes == 0) return;
    if (!m->saves)
        ops->upload(m->c.dev, m->c.there + at, m->c.here + at, bytes);
    else if (m->is_locked)
        ops->download(m->c.dev, m->c.here + at, m->c.there + at, bytes);
    else
        save_by_bounce(m, at, bytes);
}

static void add(sp_kv_mirror *m, bool saves, uint32_t block) {
    SP_ASSERT(block < (uint32_t)m->c.n_blocks);
    if (m->n == 0 || m->saves != saves || block != m->first + m->n) {
        flush(m);
        m->saves = saves;
        m->first = block;
    }
    m->n++;
    m->is_open = true;
}

void sp_kv_mirror_save(sp_kv_mirror *m, uint32_t block) {
    add(m, true, block);
}
void sp_kv_mirror_load(sp_kv_mirror *m, uint32_t block) {
    add(m, false, block);
}

sp_status sp_kv_mirror_settle(sp_kv_mirror *m, sp_err *err) {
    if (!m->is_open) return SP_OK;
    m->is_open = false;
    flush(m);
    return wait_all(m, err);
}
