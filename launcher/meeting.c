#include "launcher/meeting.h"

#include "comm/secret.h"
#include "launcher/meeting_way.h"
#include "runtime/base/str.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define TOKEN_VARIABLE "SUPERPOD_POD_TOKEN"
#define TOKEN_FILE_MAX 256 /* digits and the white space of editors and secrets */
#define ADDRESSES_MAX 256  /* of one node; later ones are not looked at */

/* ---- the token ---- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The words of refusal never show the digits. */
static sp_status parse_token(sp_token *out, sp_slice s, const char *where, sp_err *err) {
    while (s.len && strchr(" \t\r\n", s.ptr[s.len - 1])) s.len--;
    while (s.len && strchr(" \t\r\n", s.ptr[0])) s = (sp_slice){s.ptr + 1, s.len - 1};
    if (s.len != 2 * SP_TOKEN_BYTES)
        return SP_FAIL(err, SP_E_INVALID, "the pod token in %s has %zu characters, want %d", where,
                       s.len, 2 * SP_TOKEN_BYTES);
    sp_token t;
    for (size_t i = 0; i < SP_TOKEN_BYTES; i++) {
        int high = hex_digit(s.ptr[2 * i]), low = hex_digit(s.ptr[2 * i + 1]);
        if (high < 0 || low < 0) {
            sp_token_wipe(&t);
            return SP_FAIL(err, SP_E_INVALID,
                           "the pod token in %s is not of hexadecimal digits alone", where);
        }
        t.bytes[i] = (uint8_t)(high << 4 | low);
    }
    *out = t;
    sp_token_wipe(&t);
    return SP_OK;
}

/* Group may read where nobody may write: so Kubernetes mounts a secret for a pod with an fsGroup. */
static sp_status check_token_file(int fd, const char *path, sp_err *err) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return SP_FAIL(err, SP_E_IO, "token file '%s': %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return SP_FAIL(err, SP_E_INVALID, "token file '%s' is not a regular file", path);
    unsigned mode = st.st_mode & 0777;
    if ((mode & 077) != 0 && mode != 0440)
        return SP_FAIL(err, SP_E_DENIED, "token file '%s' has mode %04o, want 0600 or stricter",
                       path, mode);
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return SP_FAIL(err, SP_E_DENIED, "token file '%s' belongs to user %u, want %u or root",
                       path, (unsigned)st.st_uid, (unsigned)geteuid());
    return SP_OK;
}

static sp_status read_token_file(sp_token *out, const char *path, sp_err *err) {
    char text[TOKEN_FILE_MAX + 1], where[120];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return SP_FAIL(err, SP_E_IO, "token file '%s': %s", path, strerror(errno));
    sp_status st = check_token_file(fd, path, err);
    if (st != SP_OK) goto close_file;
    ssize_t n = read(fd, text, sizeof text);
    snprintf(where, sizeof where, "'%s'", path);
    st = n < 0 ? SP_FAIL(err, SP_E_IO, "token file '%s': %s", path, strerror(errno))
               : parse_token(out, (sp_slice){text, (size_t)n}, where, err);
    sp_wipe(text, sizeof text);
close_file:
    close(fd);
    return st;
}

/* unsetenv alone would leave the bytes where /proc/PID/environ shows them. */
static void scrub_variable(void) {
    for (char *value; (value = getenv(TOKEN_VARIABLE)) != NULL;) {
        sp_wipe(value, strlen(value));
        unsetenv(TOKEN_VARIABLE);
    }
}

sp_status sp_token_load(sp_token *out, bool *found, const char *token_file, sp_err *err) {
    const char *value = getenv(TOKEN_VARIABLE);
    bool in_file = token_file && *token_file, in_variable = value && *value;
    sp_status st = SP_OK;
    if (in_file)
        st = read_token_file(out, token_file, err);
    else if (in_variable)
        st = parse_token(out, sp_slice_of(value), TOKEN_VARIABLE, err);
    scrub_variable();
    if (st == SP_OK) *found = in_file || in_variable;
    return st;
}

sp_status sp_token_make(sp_token *out, sp_err *err) {
    return sp_random_bytes(out->bytes, sizeof out->bytes, err);
}

void sp_token_wipe(sp_token *t) {
    sp_wipe(t, sizeof *t);
}

/* ---- the text that is carried ---- */

sp_status sp_contact_write(char *out, const sp_contact *c, sp_err *err) {
    size_t n = strnlen(c->addresses, sizeof c->addresses);
    if (n == 0 || n == sizeof c->addresses)
        return SP_FAIL(err, SP_E_INVALID, "the head's addresses have %zu bytes, want 1 to %zu", n,
                       sizeof c->addresses - 1);
    memcpy(out, c->addresses, n);
    out[n++] = '|';
    for (size_t i = 0; i < SP_TOKEN_BYTES; i++, n += 2)
        snprintf(out + n, 3, "%02x", c->token.bytes[i]);
    return SP_OK;
}

sp_status sp_contact_read(sp_contact *out, const char *text, sp_err *err) {
    const char *bar = strchr(text, '|');
    size_t n = bar ? (size_t)(bar - text) : 0;
    sp_contact c = {0};
    if (n == 0 || n >= sizeof c.addresses)
        return SP_FAIL(err, SP_E_FORMAT, "the head's contact has no addresses");
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] >= 0x7f)
            return SP_FAIL(err, SP_E_FORMAT, "the head's contact has byte %zu outside ASCII", i);
    memcpy(c.addresses, text, n);
    sp_err bad = {0};
    if (parse_token(&c.token, sp_slice_of(bar + 1), "the head's contact", &bad) != SP_OK)
        return SP_FAIL(err, SP_E_FORMAT, "%s", bad.text);
    *out = c;
    sp_wipe(&c, sizeof c);
    return SP_OK;
}

/* ---- our addresses ---- */

enum { /* best first */
    WAY_V4,
    WAY_V6,
    WAY_BRIDGE,
    WAY_LOOPBACK,
    WAY_COUNT
};

/* Bridges of containers and virtual machines have the same address on every node. */
static bool is_bridge(const char *name) {
    static const char *const starts[] = {"docker",  "virbr", "br-",    "veth", "cni",
                                         "flannel", "lxc",   "podman", "ifb"};
    for (size_t i = 0; i < SP_LEN(starts); i++)
        if (strncmp(name, starts[i], strlen(starts[i])) == 0) return true;
    return false;
}

/* Writes the number; false: others cannot reach us by it. */
static bool numeric_address(char out[INET6_ADDRSTRLEN + 2], const struct sockaddr *sa) {
    char text[INET6_ADDRSTRLEN];
    if (sa->sa_family == AF_INET) {
        const struct in_addr *in = &((const struct sockaddr_in *)(const void *)sa)->sin_addr;
        if ((ntohl(in->s_addr) >> 16) == 0xa9fe || in->s_addr == 0) return false;
        snprintf(out, INET6_ADDRSTRLEN + 2, "%s", inet_ntop(AF_INET, in, text, sizeof text));
        return true;
    }
    const struct in6_addr *in6 = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    if (IN6_IS_ADDR_LINKLOCAL(in6) || IN6_IS_ADDR_UNSPECIFIED(in6)) return false;
    snprintf(out, INET6_ADDRSTRLEN + 2, "[%s]", inet_ntop(AF_INET6, in6, text, sizeof text));
    return true;
}

static int way_of(const struct ifaddrs *i) {
    if (i->ifa_flags & IFF_LOOPBACK) return WAY_LOOPBACK;
    if (is_bridge(i->ifa_name)) return WAY_BRIDGE;
    return i->ifa_addr->sa_family == AF_INET ? WAY_V4 : WAY_V6;
}

static bool is_usable(const struct ifaddrs *i) {
    const unsigned want = IFF_UP | IFF_RUNNING;
    return i->ifa_addr && (i->ifa_flags & want) == want &&
           (i->ifa_addr->sa_family == AF_INET || i->ifa_addr->sa_family == AF_INET6);
}

sp_status sp_local_addresses(char *out, size_t n, int port, sp_err *err) {
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0)
        return SP_FAIL(err, SP_E_IO, "listing network addresses: %s", strerror(errno));
    char text[1024] = "", one[INET6_ADDRSTRLEN + 2], item[INET6_ADDRSTRLEN + 16];
    size_t at = 0, limit = n < sizeof text ? n : sizeof text;
    int seen = 0;
    for (int way = 0; way < WAY_COUNT; way++)
        for (const struct ifaddrs *i = all; i && seen < ADDRESSES_MAX; i = i->ifa_next) {
            if (!is_usable(i) || way_of(i) != way || !numeric_address(one, i->ifa_addr)) continue;
            seen++;
            size_t k = (size_t)snprintf(item, sizeof item, "%s%s:%d", at ? "," : "", one, port);
            if (at + k >= limit) continue; /* best first: what does not fit is the least wanted */
            memcpy(text + at, item, k + 1);
            at += k;
        }
    freeifaddrs(all);
    if (!seen) return SP_FAIL(err, SP_E_IO, "this node has no network address that is up");
    if (!at) return SP_FAIL(err, SP_E_TOOLONG, "no address of this node fits into %zu bytes", n);
    memcpy(out, text, at + 1);
    return SP_OK;
}

/* ---- the meeting ---- */

bool sp_meeting_is_stopped(void) {
    sigset_t pending;
    if (sigpending(&pending) != 0) return false;
    return sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1 ||
           sigismember(&pending, SIGHUP) == 1;
}

static sp_status nothing_to_ask(const sp_place *place, sp_err *err) {
    return SP_FAIL(err, SP_E_UNSUPPORTED,
                   "agent %d (%s) has no launcher to learn the pod token from: want --token-file",
                   place->rank, place->source);
}

sp_status sp_meeting_put(const sp_place *place, const sp_contact *contact, int64_t deadline_ns,
                         sp_err *err) {
    if (place->meeting == SP_MEET_NOBODY || place->meeting == SP_MEET_GIVEN) return SP_OK;
    char text[SP_CONTACT_TEXT_MAX], back[SP_CONTACT_TEXT_MAX];
    SP_TRY(sp_contact_write(text, contact, err));
    sp_status st = place->meeting == SP_MEET_FILE ? sp_meeting_file_put(text, err)
                                                  : sp_meeting_pmix(text, back, deadline_ns, err);
    sp_wipe(text, sizeof text);
    sp_wipe(back, sizeof back);
    return st;
}

sp_status sp_meeting_get(const sp_place *place, sp_contact *out, int64_t deadline_ns, sp_err *err) {
    if (place->meeting == SP_MEET_NOBODY || place->meeting == SP_MEET_GIVEN)
        return nothing_to_ask(place, err);
    char text[SP_CONTACT_TEXT_MAX] = "";
    sp_status st = place->meeting == SP_MEET_FILE ? sp_meeting_file_get(text, deadline_ns, err)
                                                  : sp_meeting_pmix(NULL, text, deadline_ns, err);
    if (st == SP_OK) st = sp_contact_read(out, text, err);
    sp_wipe(text, sizeof text);
    return st;
}

void sp_meeting_end(const sp_place *place) {
    if (place->meeting == SP_MEET_FILE && place->is_head) sp_meeting_file_end();
}
