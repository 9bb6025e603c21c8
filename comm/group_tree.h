/* comm/group_tree.h - the one definition of the order in which a group's members are added.
 *
 * The members are the leaves of a binary tree over their number rounded up to a power of two; a
 * missing leaf is left out, never added as zero (x + 0 would turn -0 into +0):
 *
 *   3 members   (0+1)+2            6 members   ((0+1)+(2+3))+(4+5)
 *   5 members   ((0+1)+(2+3))+4    7 members   ((0+1)+(2+3))+((4+5)+6)
 *
 * Each element is summed by itself, so cutting a tensor into pieces or slices changes no bit.
 * All transports sum through here.
 *
 * Limits: SP_GROUP_MEMBERS_MAX parts.
 * Source: contract 3 of comm/group.h.
 * Thread: any. */
#pragma once

#include <stddef.h>

/** out[i] = the tree sum of parts[0..n_parts)[i], for i in [0, n). `out` may be one of the parts;
 * any other overlap is not allowed. Nothing needs to be aligned beyond a float. */
void sp_group_tree(float *out, const float *const *parts, int n_parts, size_t n);
