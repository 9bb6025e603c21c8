#include "comm/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 1024
#define PORT_MAX 65535

static sp_slice trim(sp_slice s) {
    while (s.len && (s.ptr[0] == ' ' || s.ptr[0] == '\t')) s.ptr++, s.len--;
    while (s.len && (s.ptr[s.len - 1] == ' ' || s.ptr[s.len - 1] == '\t')) s.len--;
    return s;
}

static sp_status bad(sp_slice item, const char *what, sp_err *err) {
    return SP_FAIL(err, SP_E_INVALID, "address '%.*s' %s, want host:port or [ipv6]:port",
                   (int)(item.len < 80 ? item.len : 80), item.ptr, what);
}

/* Where the colon before the port is, and what is the host. */
static sp_status split(sp_slice item, sp_slice *host, sp_slice *port, sp_err *err) {
    const char *colon = item.len ? memrchr(item.ptr, ':', item.len) : NULL;
    if (!colon) return bad(item, "has no port", err);
    size_t at = (size_t)(colon - item.ptr);
    *port = (sp_slice){colon + 1, item.len - at - 1};
    *host = (sp_slice){item.ptr, at};
    bool opens = at > 0 && item.ptr[0] == '[';
    bool closes = at > 0 && item.ptr[at - 1] == ']';
    if (opens != closes || at == 1) /* one bracket, or a lone byte that is none */
        return opens || closes ? bad(item, "has an unmatched bracket", err) : SP_OK;
    if (opens) *host = (sp_slice){item.ptr + 1, at - 2};
    if (!opens && memchr(host->ptr, ':', host->len)) return bad(item, "lacks brackets", err);
    return SP_OK;
}

static sp_status parse(sp_slice item, sp_address *out, sp_err *err) {
    sp_slice host = {0}, port = {0};
    int64_t number = 0;
    SP_TRY(split(item, &host, &port, err));
    if (host.len == 0) return bad(item, "has no host", err);
    if (host.len > SP_HOST_NAME_MAX) return bad(item, "has too long a host", err);
    for (size_t i = 0; i < host.len; i++)
        if (host.ptr[i] <= ' ' || host.ptr[i] == 0x7f) return bad(item, "has a bad host", err);
    if (port.len == 0 || port.len > 5 || port.ptr[0] == '-' ||
        sp_parse_i64(port, &number) != SP_OK || number < 1 || number > PORT_MAX)
        return bad(item, "has a port that is not 1 to 65535", err);
    memcpy(out->host, host.ptr, host.len);
    out->host[host.len] = 0;
    snprintf(out->port, sizeof out->port, "%u", (unsigned)number & 0xffff);
    out->text = item;
    return SP_OK;
}

sp_status sp_address_next(sp_slice *list, sp_address *out, sp_err *err) {
    if (!list->ptr) return SP_AGAIN;
    ptrdiff_t comma = sp_slice_find(*list, SP_SLICE(","), 0);
    sp_slice item = {list->ptr, comma < 0 ? list->len : (size_t)comma};
    SP_TRY(parse(trim(item), out, err));
    if (comma < 0)
        *list = (sp_slice){NULL, 0};
    else
        *list = (sp_slice){list->ptr + comma + 1, list->len - (size_t)comma - 1};
    return SP_OK;
}

sp_status sp_address_count(sp_slice list, int *n, sp_err *err) {
    sp_address a;
    int count = 0;
    if (trim(list).len == 0) return SP_FAIL(err, SP_E_INVALID, "no address is given");
    for (;;) {
        sp_status st = sp_address_next(&list, &a, err);
        if (st == SP_AGAIN) break;
        if (st != SP_OK) return st;
        count++;
    }
    *n = count;
    return SP_OK;
}

static void print_v6(char *out, size_t n, const struct sockaddr_in6 *a) {
    char host[INET6_ADDRSTRLEN] = "?", scope[IF_NAMESIZE] = "";
    bool mapped = IN6_IS_ADDR_V4MAPPED(&a->sin6_addr);
    if (mapped)
        inet_ntop(AF_INET, &a->sin6_addr.s6_addr[12], host, sizeof host);
    else
        inet_ntop(AF_INET6, &a->sin6_addr, host, sizeof host);
    if (a->sin6_scope_id && !if_indextoname(a->sin6_scope_id, scope)) scope[0] = 0;
    if (mapped)
        snprintf(out, n, "%s:%u", host, ntohs(a->sin6_port));
    else
        snprintf(out, n, "[%s%s%s]:%u", host, scope[0] ? "%" : "", scope, ntohs(a->sin6_port));
}

void sp_address_print(char *out, size_t n, const struct sockaddr *a) {
    if (a->sa_family == AF_INET6) {
        print_v6(out, n, (const struct sockaddr_in6 *)(const void *)a);
    } else if (a->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)a;
        char host[INET_ADDRSTRLEN] = "?";
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        snprintf(out, n, "%s:%u", host, ntohs(v4->sin_port));
    } else {
        snprintf(out, n, "an address of family %d", (int)a->sa_family);
    }
}

/* ---- listening -------------------------------------------------------------------------------- */

/* -1 and errno when it cannot be done. */
static int listen_at(const struct sockaddr *a, socklen_t n, bool both_families) {
    int on = 1, off = 0;
    int fd = socket(a->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    /* A restarted head must get its port back while old connections linger. */
    bool ok = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0;
    if (both_families) ok = ok && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0;
    if (ok && bind(fd, a, n) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int e = errno;
    close(fd);
    errno = e;
    return -1;
}

/* Both families by one socket; IPv4 alone where the kernel has no IPv6. */
static int listen_any(int port) {
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    int fd = listen_at((struct sockaddr *)&six, sizeof six, true);
    if (fd >= 0 || (errno != EAFNOSUPPORT && errno != EADDRNOTAVAIL)) return fd;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    return listen_at((struct sockaddr *)&four, sizeof four, false);
}

static sp_status listen_name(int *fd, const char *host, int port, sp_err *err) {
    char service[8], bare[SP_HOST_NAME_MAX + 1];
    size_t n = strlen(host);
    bool in_brackets = n > 2 && host[0] == '[' && host[n - 1] == ']';
    snprintf(service, sizeof service, "%u", (unsigned)port & 0xffff);
    snprintf(bare, sizeof bare, "%.*s", (int)(in_brackets ? n - 2 : n), host + in_brackets);
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found;
    int rc = getaddrinfo(bare, service, &want, &found);
    if (rc != 0)
        return SP_FAIL(err, SP_E_IO, "cannot listen at '%s': %s", host,
                       rc == EAI_SYSTEM ? strerror(errno) : gai_strerror(rc));
    int got = -1;
    for (struct addrinfo *a = found; a && got < 0; a = a->ai_next)
        got = listen_at(a->ai_addr, a->ai_addrlen, false);
    int e = errno;
    freeaddrinfo(found);
    errno = e;
    if (got < 0) return SP_FAIL(err, SP_E_IO, "cannot listen at '%s' port %d: %m", host, port);
    *fd = got;
    return SP_OK;
}

static int port_of(int fd) {
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
    } a = {.six = {.sin6_family = AF_UNSPEC}};
    socklen_t n = sizeof a;
    if (getsockname(fd, &a.any, &n) < 0) return -1;
    return ntohs(a.any.sa_family == AF_INET6 ? a.six.sin6_port : a.four.sin_port);
}

sp_status sp_address_listen(int *fd, int *port, const char *host, int port_wanted, sp_err *err) {
    if (port_wanted < 0 || port_wanted > PORT_MAX)
        return SP_FAIL(err, SP_E_INVALID, "port is %d, want 0 to %d", port_wanted, PORT_MAX);
    int got = -1;
    if (host[0]) {
        SP_TRY(listen_name(&got, host, port_wanted, err));
    } else {
        got = listen_any(port_wanted);
        if (got < 0)
            return SP_FAIL(err, SP_E_IO, "cannot listen at all addresses, port %d: %m",
                           port_wanted);
    }
    *port = port_of(got);
    *fd = got;
    return SP_OK;
}
