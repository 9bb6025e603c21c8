/* tests/fake_draw.h - the draw of a device (sp_dev_ops.draw), done by the host's sampler.
 *
 * An oracle: it takes a draw's plain arguments apart and asks runtime/gen/sampler.h, so what is laid
 * out for a device is compared with what the host would have drawn.
 *
 * Thread: any; a sampler belongs to one at a time. */
#pragma once

#include "kernels/args.h"
#include "runtime/gen/sampler.h"

/** As draw(), on memory of the host. */
void sp_fake_draw(sp_sampler *sampler, const sp_draw_args *a);
