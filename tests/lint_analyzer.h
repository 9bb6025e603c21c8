/* tests/lint_analyzer.h - included first when clang's analyzer reads a source (tests/lint.sh).
 *
 * The analyzer sees one file at a time and so cannot know that sp_err_set() gives back the code it
 * was told: without this it follows paths on which a function "failed with SP_OK" and its outputs
 * were never written.
 * Thread: not compiled into anything. */
#pragma once

#include "runtime/base/status.h"

#undef SP_FAIL
#define SP_FAIL(err, code, ...) (sp_err_set((err), (code), __FILE__, __LINE__, __VA_ARGS__), (code))
