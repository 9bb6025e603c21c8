/* launcher/build_id.h - which build of superpod this is: processes of one pod must all be the same.
 *
 * Source: the GNU build id note that the linker puts into every binary (ld --build-id).
 * Thread: any. */
#pragma once

#define SP_BUILD_ID_BYTES 80

/** "0.1.0-1f2e..."; the version alone when the binary has no note. Borrowed, for ever. */
const char *sp_build_id(void);
