/* tests/fake_group.h - sp_group between threads of one process, over a lock: for pods of tests.
 *
 * A hub is the set of members; each takes its own sp_group. Operations wait for all that take part;
 * a member that leaves (its rank died) is a fault for all others, at once.
 *
 * Thread: one a member; open, leave and close of the hub from the test's. */
#pragma once

#include "comm/group.h"

typedef struct sp_fake_hub sp_fake_hub;

sp_fake_hub *sp_fake_hub_open(int n, int sends);      /* sends: as sp_group_config.sends */
sp_group *sp_fake_hub_member(sp_fake_hub *h, int me); /* borrowed; ops->close() does nothing */
void sp_fake_hub_leave(sp_fake_hub *h, int me);
void sp_fake_hub_close(sp_fake_hub *h);
/** The most messages that one member had not received at a time. */
int sp_fake_hub_most_waiting(const sp_fake_hub *h);
