/* runtime/format/model_dir.h - a model directory: its name resolved, its shards one set of tensors.
 *
 * model.safetensors, or model.safetensors.index.json and the shards it names (plain file names
 * inside the directory; anything else is refused; a tensor listed but absent, or present in another
 * shard than listed, is refused).
 *
 * Thread: const after open. */
#pragma once

#include "runtime/format/safetensors.h"

/** Turns --model into a directory: a directory as it is; else "org/name" looked up in the Hugging
 * Face cache (HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub;
 * models--org--name/refs/main -> snapshots/<commit>, else the newest snapshot).
 * Owner: caller, sp_free(*out).
 * Errors: SP_E_NOTFOUND: one line that tells where it looked and how to get the model. */
SP_NODISCARD sp_status sp_model_resolve(char **out, const char *model, sp_err *err);

typedef struct sp_model_dir sp_model_dir;
SP_NODISCARD sp_status sp_model_dir_open(sp_model_dir **out, const char *dir, sp_err *err);
void sp_model_dir_close(sp_model_dir *d);
int sp_model_dir_count(const sp_model_dir *d);
const sp_tensor *sp_model_dir_at(const sp_model_dir *d, int i);
const sp_tensor *sp_model_dir_find(const sp_model_dir *d, const char *name); /* or NULL */
/** The tensor of that name with exactly that type class and shape.
 * Errors: SP_E_NOTFOUND, SP_E_FORMAT: "'q_proj.weight' is BF16 [4096,512], want [4096,1024]". */
SP_NODISCARD sp_status sp_model_dir_get(const sp_model_dir *d, const char *name, int n_dims,
                                        const int64_t *shape, const sp_tensor **out, sp_err *err);
uint64_t sp_model_dir_bytes(const sp_model_dir *d); /* of all tensors */
