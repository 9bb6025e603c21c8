/* launcher/meeting_way.h - the two ways of a meeting, for meeting.c alone: a file in the directory
 * where the job was submitted, and a short PMIx child. What is carried is one text either way:
 *
 *   10.0.0.1:7000,10.1.0.1:7000|64 hexadecimal digits
 *
 * The text holds the token: it stays off logs and command lines, and whoever had it wipes it.
 *
 * Thread: main, at start. */
#pragma once

#include "launcher/meeting.h"

#define SP_CONTACT_TEXT_MAX (sizeof((sp_contact *)0)->addresses + 2 * SP_TOKEN_BYTES + 1)

/** `out` holds SP_CONTACT_TEXT_MAX bytes. Errors: SP_E_INVALID there is no address. */
SP_NODISCARD sp_status sp_contact_write(char *out, const sp_contact *c, sp_err *err);
/** Errors: SP_E_FORMAT, without the text. */
SP_NODISCARD sp_status sp_contact_read(sp_contact *out, const char *text, sp_err *err);

/** A signal that asks us to stop is pending: agents block those and look at them later, and nobody
 * should have to wait for a meeting's deadline to end one. */
bool sp_meeting_is_stopped(void);

/** Errors: as sp_meeting_put() and sp_meeting_get(). */
SP_NODISCARD sp_status sp_meeting_file_put(const char *text, sp_err *err);
SP_NODISCARD sp_status sp_meeting_file_get(char *text, int64_t deadline_ns, sp_err *err);
void sp_meeting_file_end(void);

/** All agents of the job call it, agent 0 with the text to `give`, the others with NULL; `take` (of
 * SP_CONTACT_TEXT_MAX bytes) gets agent 0's text. Errors: as sp_meeting_get(). */
SP_NODISCARD sp_status sp_meeting_pmix(const char *give, char *take, int64_t deadline_ns,
                                       sp_err *err);
