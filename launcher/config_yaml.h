/* launcher/config_yaml.h - a flat YAML mapping of option names to values (libyaml lives here only).
 * Thread: main. */
#pragma once

#include "runtime/base/status.h"

/** Called for every key: `values` are the scalar, or the items of a list;
 * an item that is a map of plain values comes as "key=value,key=value". */
typedef sp_status sp_yaml_fn(void *ctx, const char *key, const char *const *values, int n_values,
                             sp_err *err);

/** Reads a file of `key: value`, `key: [a, b]` and `key: [{a: 1}]` and calls `fn` in the file's order.
 * Errors: SP_E_NOTFOUND; SP_E_FORMAT with line and what was seen; SP_E_TOOLONG above 1 MiB, or more
 *         than 16 items in a list; whatever `fn` answers, with file and line before it. */
SP_NODISCARD sp_status sp_yaml_read(const char *path, sp_yaml_fn *fn, void *ctx, sp_err *err);
