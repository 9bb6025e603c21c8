/* launcher/faults.h - SUPERPOD_FAULT_POINTS (runtime/base/chaos.h) in a process of the pod: armed at
 * its start, warned of, and told at its end.
 *
 * Thread: main. */
#pragma once

#include "runtime/base/status.h"

#define SP_FAULTS_VARIABLE "SUPERPOD_FAULT_POINTS"

/** Errors: SP_E_INVALID a point, probability or seed, by name: exit with SP_EXIT_USAGE. */
SP_NODISCARD sp_status sp_faults_arm(sp_err *err);
/** One warning when any point is armed; one more, at the end, of what fired. */
void sp_faults_warn(void);
void sp_faults_tell(void);
