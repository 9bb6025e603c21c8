/* comm/stream.h - frames over a connected stream socket, in the clear or under AES-256-GCM.
 *
 *   64 bytes   header, in the clear        (with keys: the additional data)
 *   length     payload                     (with keys: encrypted)
 *   16 bytes   tag, only with keys
 *
 * One key a direction. The nonce is 4 zero bytes and the frame's sequence, little-endian; the
 * sequence is +1 a frame, so no nonce is used twice with a key, and a frame that is recorded and
 * sent again, or left out, breaks the sequence before it can break anything else. Nothing of a
 * frame is handed out before its tag was right.
 *
 * Both ways are buffered: one frame at most to write (the rest of one that was begun), and bytes
 * read ahead up to one frame. Buffers grow only for a header that has passed sp_frame_check().
 * The socket never blocks and never raises SIGPIPE. On TCP a silent cut is noticed within 4 s:
 * TCP_USER_TIMEOUT while data is on its way, keepalive while none is. The former also ends a link
 * whose peer lives but reads nothing for 3 s while more waits for it than its window takes (64 KiB
 * at first): whoever computes for longer than that must not be sent more meanwhile, or
 * has a link with more patience (which then holds for both).
 *
 * Source: SP 800-38D (GCM), tcp(7), RFC 5482.
 * Thread: one sends and one receives; flush, has_rest and wake from any. */
#pragma once

#include "comm/link.h"

typedef struct sp_stream sp_stream;

/** Takes over `fd` (only when it succeeds). Owner: caller, sp_stream_close().
 * Errors: SP_E_INVALID both keys are the same, or TCP without keys; SP_E_IO no stream socket, or an
 * option was refused; SP_E_NOMEM. */
SP_NODISCARD sp_status sp_stream_open(sp_stream **out, int fd, const sp_link_keys *keys,
                                      sp_err *err);
void sp_stream_close(sp_stream *s);
int sp_stream_fd(const sp_stream *s);
void sp_stream_set_patience(sp_stream *s, int ms); /* as sp_link_set_patience() */

/** Sends a frame. `h` is complete and h->length the sum of the pieces. When the socket is full it is
 * waited for until the deadline; if by then
 *   nothing of the frame was written  SP_E_TIMEOUT, and it is as if it had not been asked for;
 *   a part of it was written          SP_OK: the rest is kept and goes out before anything else,
 *                                     with the next send, or while this side waits to receive.
 * Errors: SP_E_CLOSED, SP_E_TIMEOUT, SP_E_NOMEM, SP_E_INTERNAL the cipher failed. */
SP_NODISCARD sp_status sp_stream_send(sp_stream *s, const sp_frame_header *h,
                                      const sp_piece *pieces, int n, int64_t deadline_ns,
                                      sp_err *err);

/** Receives frame number `sequence`. `*payload` is lent until the next call; 8-byte aligned.
 * What came before the end of the stream is still given.
 * Errors: SP_AGAIN deadline or wake; SP_E_CLOSED; SP_E_PROTOCOL a rule or the tag (the socket is then
 * shut down both ways, so that our sends and the peer end too); SP_E_NOMEM. */
SP_NODISCARD sp_status sp_stream_recv(sp_stream *s, uint64_t sequence, sp_frame_header *h,
                                      const void **payload, int64_t deadline_ns, sp_err *err);

bool sp_stream_has_rest(const sp_stream *s); /* of a begun frame */
void sp_stream_flush(sp_stream *s);          /* writes what the socket takes; never waits */
void sp_stream_wake(sp_stream *s);           /* a waiting or the next receive answers SP_AGAIN */
