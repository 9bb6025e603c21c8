/* comm/fan.h - the head's links to all its ranks, as one thing to send to and to wait for.
 *
 * Every rank of a group gets every frame (each does its own part of a step), so sending is to all,
 * to a range or to one; receiving takes frames of any link, fairly in turn, and tells whose they are. Waiting is a short
 * spin, then one epoll over the bell of the rings, the sockets and the waker: nothing burns a core.
 *
 * Thread: one sender thread and one receiver thread; sp_fan_wake() from any. Links are added before
 * both start. */
#pragma once

#include "comm/link.h"

#define SP_FAN_LINKS_MAX 1024
#define SP_FAN_ALL (-1)

typedef struct sp_fan sp_fan;

/** `bell` is the eventfd that the ranks at the other side of our rings ring (sp_link_set_bells();
 * the agent makes it and all inherit it), duplicated; -1: the fan makes one, sp_fan_bell().
 * Owner: caller, sp_fan_close(), which closes the links too. Errors: SP_E_IO, SP_E_NOMEM. */
SP_NODISCARD sp_status sp_fan_open(sp_fan **out, int bell, sp_err *err);
void sp_fan_close(sp_fan *f);
int sp_fan_bell(const sp_fan *f);

/** Takes over `link` as the next index (0, 1, ...); a ring's own bell is set to the fan's.
 * Errors: SP_E_LIMIT. */
SP_NODISCARD sp_status sp_fan_add(sp_fan *f, sp_link *link, sp_err *err);
int sp_fan_count(const sp_fan *f);
sp_link *sp_fan_link(const sp_fan *f, int index); /* borrowed */

/** As sp_link_send(), to one link or SP_FAN_ALL. To all, a link that was given the frame before the
 * deadline is remembered: calling again with the same frame after SP_E_TIMEOUT gives it to the
 * others only. An error's text names the rank by its index. */
SP_NODISCARD sp_status sp_fan_send(sp_fan *f, int to, sp_frame_type type, const sp_piece *pieces,
                                   int n, int64_t deadline_ns, sp_err *err);

/** As sp_fan_send() to all, but to links first .. first + count - 1 only: the same is remembered
 * about who was given the frame, for one frame and range at a time. */
SP_NODISCARD sp_status sp_fan_send_range(sp_fan *f, int first, int count, sp_frame_type type,
                                         const sp_piece *pieces, int n, int64_t deadline_ns,
                                         sp_err *err);

/** As sp_link_recv(): the next frame of any link; the payload is borrowed until the next receive.
 * `*from` is set with SP_OK and with an error (whose link it was; that link is then left out).
 * SP_AGAIN: nothing came until the deadline, or sp_fan_wake(). */
SP_NODISCARD sp_status sp_fan_recv(sp_fan *f, sp_frame *out, int *from, int64_t deadline_ns,
                                   sp_err *err);
void sp_fan_wake(sp_fan *f);
