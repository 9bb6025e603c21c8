/* comm/link_fan.h - what comm/fan.c, which waits for many links at once, has to know of each one.
 *
 * Nobody else includes it. A ring is looked at in memory and rings the fan's bell; a stream is
 * looked at when epoll says that its socket is readable.
 *
 * Thread: as said per function. */
#pragma once

#include "comm/link.h"

bool sp_link_is_stream(const sp_link *l);
void sp_link_set_own_bell(sp_link *l, int own); /* a ring's; the peer's stays */

/** True when sp_link_recv() would not answer SP_AGAIN at once; a stream is always worth a try.
 * Thread: receiving. */
bool sp_link_can_recv(const sp_link *l);
void sp_link_say_sleeping(sp_link *l, bool is); /* a ring's reader, by its bell; receiving thread */
void sp_link_give_back(sp_link *l);             /* what the last receive lent; receiving thread */
bool sp_link_peer_spun(const sp_link *l);       /* a ring's peer, when we last sent. Any thread */

/** Bytes of a stream's begun frame are still to be written: wait for room, then call
 * sp_link_flush(). Any thread. */
bool sp_link_has_rest(const sp_link *l);
void sp_link_flush(sp_link *l); /* never waits */
