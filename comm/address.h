/* comm/address.h - "10.0.0.1:7000", "[fe80::1%eth0]:7000", "host:7000": read, print, listen at.
 *
 * A list is separated by commas; blanks around an item are allowed, empty items are not.
 * Limits: a host name of 255 bytes, a port of 1 to 65535.
 * Thread: any. */
#pragma once

#include "runtime/base/str.h"

#include <stdint.h>

#define SP_ADDRESS_MAX 64 /* a printed one, with its NUL */
#define SP_HOST_NAME_MAX 255

struct sockaddr;

typedef struct sp_address { /* before any name is resolved */
    char host[SP_HOST_NAME_MAX + 1];
    char port[6];
    sp_slice text; /* borrowed of the list: for messages */
} sp_address;

/** Takes the next item off the front of `*list`. SP_AGAIN: the list is at its end.
 * Errors: SP_E_INVALID what is wrong with the item. */
SP_NODISCARD sp_status sp_address_next(sp_slice *list, sp_address *out, sp_err *err);

/** How many items a list has. Errors: SP_E_INVALID one of them is no address, or there is none. */
SP_NODISCARD sp_status sp_address_count(sp_slice list, int *n, sp_err *err);

/** "10.0.0.1:7000", "[::1]:7000"; a mapped IPv4 address is printed as such. */
void sp_address_print(char *out, size_t n, const struct sockaddr *a);

/** A listening, non-blocking, close-on-exec TCP socket with a backlog of 1024. Host "": every
 * address of both families. A name of several addresses: the first that can be bound.
 * Errors: SP_E_INVALID the port; SP_E_IO names the address and why. */
SP_NODISCARD sp_status sp_address_listen(int *fd, int *port, const char *host, int port_wanted,
                                         sp_err *err);
