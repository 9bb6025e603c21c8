/* runtime/engine/engine_offer.h - whether a configuration can be, and whether what the ranks offer is
 * what was asked, and the same.
 *
 * Thread: any. */
#pragma once

#include "runtime/engine/engine_core.h"
#include "runtime/engine/wire.h"

/** Errors: SP_E_INVALID a value out of range, by name, or groups that do not fit `n_links` links. */
SP_NODISCARD sp_status sp_config_fits(const sp_engine_config *c, int n_links, sp_err *err);
/** One rank's offer against the configuration; n_blocks: those its group is to have, 0: any.
 * Errors: SP_E_PROTOCOL names the rank, the value and the one wanted. */
SP_NODISCARD sp_status sp_offer_fits(const sp_engine_config *c, int32_t n_blocks,
                                     const sp_wire_ready *r, int rank, sp_err *err);
/** Against another rank's. Errors: likewise. */
SP_NODISCARD sp_status sp_offer_equals(const sp_wire_ready *r, int rank, const sp_wire_ready *first,
                                       int first_rank, sp_err *err);
