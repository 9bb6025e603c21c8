#include "comm/handshake.h"

#include "comm/secret.h"

#include <stdio.h>

#define MAGIC 0x31445053u /* "SPD1" */

enum {
    HELLO = 1,
    CHALLENGE,
    PROOF,
    ACCEPT,
    REFUSE
};

/* Offsets in a body, and lengths of bodies. */
enum {
    HELLO_ROLE = SP_SHAKE_BUILD,
    HELLO_WORDS_LEN = HELLO_ROLE + 4,
    HELLO_NONCE = HELLO_WORDS_LEN + 4,
    HELLO_WORDS = HELLO_NONCE + SP_SHAKE_NONCE,
    CHALLENGE_BODY = SP_SHAKE_NONCE + SP_MAC_BYTES,
    PROOF_BODY = SP_MAC_BYTES,
    ACCEPT_BODY = SP_MAC_BYTES,
    REFUSE_BUILD = 8,
    REFUSE_BODY = REFUSE_BUILD + SP_SHAKE_BUILD,
};
_Static_assert(SP_SHAKE_HEADER + HELLO_WORDS + SP_DOOR_WORDS_MAX == SP_SHAKE_HELLO_MAX, "layout");
_Static_assert(SP_SHAKE_HEADER + CHALLENGE_BODY == 80 && SP_SHAKE_HEADER + PROOF_BODY == 48 &&
                   SP_SHAKE_HEADER + REFUSE_BODY == 88,
               "layout");

const char *sp_refusal_name(sp_refusal r) {
    static const char *const names[SP_REFUSE_COUNT] = {
        [SP_REFUSE_NONE] = "none",       [SP_REFUSE_GARBAGE] = "garbage",
        [SP_REFUSE_VERSION] = "version", [SP_REFUSE_BUILD] = "build",
        [SP_REFUSE_TOKEN] = "token",     [SP_REFUSE_ROLE] = "role",
        [SP_REFUSE_FULL] = "full",       [SP_REFUSE_SLOW] = "slow"};
    return (unsigned)r < SP_REFUSE_COUNT ? names[r] : "unknown";
}

static void put_u16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void put_u32(uint8_t *p, uint32_t v) {
    put_u16(p, v & 0xffff);
    put_u16(p + 2, v >> 16);
}

static uint32_t get_u16(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get_u32(const uint8_t *p) {
    return get_u16(p) | get_u16(p + 2) << 16;
}

/* ---- what we say ------------------------------------------------------------------------------ */

static void put(sp_shake *s, const void *p, size_t n) {
    SP_ASSERT(n <= sizeof s->bytes - s->len);
    memcpy(s->bytes + s->len, p, n);
    s->len += n;
}

static void put_header(sp_shake *s, uint32_t type, uint32_t body) {
    uint8_t h[SP_SHAKE_HEADER] = {0};
    put_u32(h, MAGIC);
    put_u16(h + 4, SP_SHAKE_VERSION);
    put_u16(h + 6, type);
    put_u32(h + 8, body);
    put(s, h, sizeof h);
    s->want = 0;
}

static void mac_of(const sp_shake *s, const char *label, size_t n, uint8_t out[SP_MAC_BYTES]) {
    const sp_slice pieces[] = {sp_slice_of(label), {(const char *)s->bytes, n}};
    sp_hmac_sha256(out, (sp_slice){(const char *)s->token->bytes, SP_TOKEN_BYTES}, pieces, 2);
}

static void put_mac(sp_shake *s, const char *label) {
    uint8_t mac[SP_MAC_BYTES];
    mac_of(s, label, s->len, mac);
    put(s, mac, sizeof mac);
}

/* Does the message that came in end with the HMAC of all before it? */
static bool is_proven(const sp_shake *s, const char *label) {
    uint8_t mac[SP_MAC_BYTES];
    mac_of(s, label, s->len - SP_MAC_BYTES, mac);
    bool same = sp_secret_equal(mac, s->bytes + s->len - SP_MAC_BYTES, SP_MAC_BYTES);
    sp_wipe(mac, sizeof mac);
    return same;
}

static void say_refuse(sp_shake *s) {
    uint8_t body[REFUSE_BODY] = {0};
    put_u32(body, (uint32_t)s->reason);
    memcpy(body + REFUSE_BUILD, s->build, SP_SHAKE_BUILD);
    put_header(s, REFUSE, REFUSE_BODY);
    put(s, body, sizeof body);
}

void sp_shake_refuse(sp_shake *s, sp_refusal reason) {
    SP_ASSERT(s->state != SP_SHAKE_REFUSED);
    bool half_out = s->sent < s->len;
    s->state = SP_SHAKE_REFUSED;
    s->reason = reason;
    s->want = 0;
    s->sent = s->len;
    /* What does not speak our protocol gets no answer: it could not read it, and it may be looking
     * for something to talk to. */
    if (s->met && !half_out && reason != SP_REFUSE_GARBAGE) say_refuse(s);
}

static void refuse(sp_shake *s, sp_refusal reason, const char *rule, uint32_t seen,
                   uint32_t wanted) {
    s->rule = rule;
    s->seen = seen;
    s->wanted = wanted;
    sp_shake_refuse(s, reason);
}

static void garbage(sp_shake *s, const char *rule, uint32_t seen, uint32_t wanted) {
    refuse(s, SP_REFUSE_GARBAGE, rule, seen, wanted);
}

/* ---- beginning -------------------------------------------------------------------------------- */

/* Printable ASCII without blanks, then zeros to the end, at least one: what a log line may show. */
static bool is_build(const uint8_t *p) {
    size_t n = 0;
    while (n < SP_SHAKE_BUILD && p[n] > 0x20 && p[n] < 0x7f) n++;
    if (n == 0 || n == SP_SHAKE_BUILD) return false;
    for (size_t i = n; i < SP_SHAKE_BUILD; i++)
        if (p[i] != 0) return false;
    return true;
}

static bool is_role(uint32_t r) {
    return r >= SP_ROLE_AGENT && r <= SP_ROLE_PEER;
}

static bool is_words(sp_slice w) {
    return w.len <= SP_DOOR_WORDS_MAX && (w.len == 0 || !memchr(w.ptr, 0, w.len)) &&
           sp_utf8_valid(w);
}

static void await(sp_shake *s, uint32_t type) {
    s->await = type;
    s->start = s->len;
    s->want = s->len + SP_SHAKE_HEADER;
}

static sp_status begin(sp_shake *s, const sp_token *token, const char *build,
                       const uint8_t nonce[SP_SHAKE_NONCE], sp_err *err) {
    char padded[SP_SHAKE_BUILD] = {0};
    size_t n = strlen(build);
    if (n < sizeof padded) memcpy(padded, build, n);
    if (!is_build((const uint8_t *)padded))
        return SP_FAIL(err, SP_E_INVALID,
                       "build id '%.64s' has %zu characters, want 1 to %d printable ones", build, n,
                       SP_SHAKE_BUILD - 1);
    memset(s, 0, sizeof *s);
    s->token = token;
    memcpy(s->build, padded, sizeof padded);
    memcpy(s->nonce, nonce, SP_SHAKE_NONCE);
    return SP_OK;
}

sp_status sp_shake_begin_head(sp_shake *s, const sp_token *token, const char *build,
                              const uint8_t nonce[SP_SHAKE_NONCE], sp_err *err) {
    SP_TRY(begin(s, token, build, nonce, err));
    s->is_head = true;
    await(s, HELLO);
    return SP_OK;
}

sp_status sp_shake_begin_guest(sp_shake *s, const sp_token *token, const char *build, sp_role role,
                               const char *words, const uint8_t nonce[SP_SHAKE_NONCE],
                               sp_err *err) {
    sp_slice w = sp_slice_of(words);
    if (!is_role((uint32_t)role))
        return SP_FAIL(err, SP_E_INVALID, "role is %d, want %d to %d", (int)role, SP_ROLE_AGENT,
                       SP_ROLE_PEER);
    if (!is_words(w))
        return SP_FAIL(err, SP_E_INVALID, "words of %zu bytes, want UTF-8 of at most %d", w.len,
                       SP_DOOR_WORDS_MAX);
    SP_TRY(begin(s, token, build, nonce, err));
    uint8_t numbers[8];
    put_u32(numbers, (uint32_t)role);
    put_u32(numbers + 4, (uint32_t)w.len);
    put_header(s, HELLO, HELLO_WORDS + (uint32_t)w.len);
    put(s, s->build, SP_SHAKE_BUILD);
    put(s, numbers, sizeof numbers);
    put(s, s->nonce, SP_SHAKE_NONCE);
    if (w.len) put(s, w.ptr, w.len);
    s->await = CHALLENGE;
    return SP_OK;
}

/* ---- what we hear ----------------------------------------------------------------------------- */

static void hear_hello(sp_shake *s, const uint8_t *body, size_t len) {
    uint32_t role = get_u32(body + HELLO_ROLE), n_words = get_u32(body + HELLO_WORDS_LEN);
    if (!is_build(body)) return garbage(s, "build id is not printable", 0, 0);
    if (n_words != len - HELLO_WORDS)
        return garbage(s, "length of words", n_words, (uint32_t)(len - HELLO_WORDS));
    if (!is_words((sp_slice){(const char *)body + HELLO_WORDS, n_words}))
        return garbage(s, "words are not UTF-8", 0, 0);
    memcpy(s->theirs, body, SP_SHAKE_BUILD);
    if (memcmp(s->theirs, s->build, SP_SHAKE_BUILD) != 0)
        return sp_shake_refuse(s, SP_REFUSE_BUILD);
    if (!is_role(role)) return refuse(s, SP_REFUSE_ROLE, "role", role, SP_ROLE_PEER);

    put_header(s, CHALLENGE, CHALLENGE_BODY);
    put(s, s->nonce, SP_SHAKE_NONCE);
    put_mac(s, "head");
    s->greeted = true;
    s->await = PROOF;
}

static void hear_challenge(sp_shake *s) {
    if (!is_proven(s, "head")) return sp_shake_refuse(s, SP_REFUSE_TOKEN);
    put_header(s, PROOF, PROOF_BODY);
    put_mac(s, "guest");
    s->await = ACCEPT;
}

static void hear_proof(sp_shake *s) {
    if (!is_proven(s, "guest")) return sp_shake_refuse(s, SP_REFUSE_TOKEN);
    put_header(s, ACCEPT, ACCEPT_BODY);
    put_mac(s, "accept");
    s->state = SP_SHAKE_DONE;
}

static void hear_accept(sp_shake *s) {
    if (!is_proven(s, "accept")) return sp_shake_refuse(s, SP_REFUSE_TOKEN);
    s->want = 0;
    s->state = SP_SHAKE_DONE;
}

static void hear_refuse(sp_shake *s, uint32_t version, const uint8_t *body) {
    uint32_t reason = get_u32(body);
    if (reason == SP_REFUSE_NONE || reason >= SP_REFUSE_COUNT || get_u32(body + 4) != 0)
        return garbage(s, "reason of a refusal", reason, SP_REFUSE_COUNT - 1);
    if (!is_build(body + REFUSE_BUILD)) return garbage(s, "build id is not printable", 0, 0);
    memcpy(s->theirs, body + REFUSE_BUILD, SP_SHAKE_BUILD);
    s->seen = version;
    s->by_peer = true;
    s->state = SP_SHAKE_REFUSED;
    s->reason = (sp_refusal)reason;
    s->want = 0;
}

static void hear(sp_shake *s) {
    const uint8_t *header = s->bytes + s->start, *body = header + SP_SHAKE_HEADER;
    uint32_t type = get_u16(header + 6);
    if (type == REFUSE) return hear_refuse(s, get_u16(header + 4), body);
    if (type == HELLO) return hear_hello(s, body, s->len - s->start - SP_SHAKE_HEADER);
    if (type == CHALLENGE) return hear_challenge(s);
    if (type == PROOF) return hear_proof(s);
    hear_accept(s);
}

/* Looks at a header as soon as it is there, so that no length is believed and nothing of an
 * oversized body is read. */
static void hear_header(sp_shake *s) {
    static const uint32_t least[] = {[HELLO] = HELLO_WORDS,
                                     [CHALLENGE] = CHALLENGE_BODY,
                                     [PROOF] = PROOF_BODY,
                                     [ACCEPT] = ACCEPT_BODY,
                                     [REFUSE] = REFUSE_BODY};
    const uint8_t *h = s->bytes + s->start;
    uint32_t version = get_u16(h + 4), type = get_u16(h + 6), length = get_u32(h + 8);
    if (get_u32(h) != MAGIC) return garbage(s, "magic", get_u32(h), MAGIC);
    s->met = true;
    /* A refusal is understood in every version, but nobody opens with one. */
    bool is_refusal = type == REFUSE && s->await != HELLO;
    if (!is_refusal && version != SP_SHAKE_VERSION)
        return refuse(s, SP_REFUSE_VERSION, "version", version, SP_SHAKE_VERSION);
    if (!is_refusal && type != s->await) return garbage(s, "message type", type, s->await);
    if (get_u32(h + 12) != 0) return garbage(s, "reserved field", get_u32(h + 12), 0);
    uint32_t most = least[type] + (type == HELLO ? SP_DOOR_WORDS_MAX : 0);
    if (length < least[type]) return garbage(s, "message length", length, least[type]);
    if (length > most) return garbage(s, "message length", length, most);
    s->want = s->len + length;
}

/* ---- driving it ------------------------------------------------------------------------------- */

const uint8_t *sp_shake_outgoing(const sp_shake *s, size_t *n) {
    *n = s->len - s->sent;
    return s->bytes + s->sent;
}

void sp_shake_sent(sp_shake *s, size_t n) {
    SP_ASSERT(n <= s->len - s->sent);
    s->sent += n;
    if (n > 0 && s->sent == s->len && s->state == SP_SHAKE_TALKING) await(s, s->await);
}

size_t sp_shake_wants(const sp_shake *s) {
    return s->state == SP_SHAKE_TALKING && s->want > s->len ? s->want - s->len : 0;
}

void sp_shake_take(sp_shake *s, const uint8_t *p, size_t n) {
    SP_ASSERT(n <= sp_shake_wants(s));
    put(s, p, n);
    s->sent = s->len; /* it is not ours to send */
    s->received += n;
    if (s->len < s->want || n == 0) return;
    if (s->len - s->start == SP_SHAKE_HEADER)
        hear_header(s);
    else
        hear(s);
}

static const char *token_words(const sp_shake *s) {
    if (s->by_peer)
        return s->is_head ? "the guest has another pod token" : "our pod token is not the head's";
    return s->is_head ? "it does not know the pod token" : "the head does not know our pod token";
}

const char *sp_shake_explain(const sp_shake *s, char *out, size_t n) {
    const char *whose = s->is_head ? "want" : "the head wants";
    const char *first = s->is_head ? s->theirs : s->build;
    const char *second = s->is_head ? s->build : s->theirs;
    switch (s->reason) {
    case SP_REFUSE_VERSION:
        /* Refused by the peer, we know only what it speaks itself, and it wants that. */
        if (s->by_peer)
            snprintf(out, n, "handshake version is %d, want %u", SP_SHAKE_VERSION, s->seen);
        else
            snprintf(out, n, "handshake version is %u, want %u", s->seen, s->wanted);
        break;
    case SP_REFUSE_BUILD:
        snprintf(out, n, "build is '%.64s', %s '%.64s'", first, whose, second);
        break;
    case SP_REFUSE_TOKEN:
        snprintf(out, n, "%s", token_words(s));
        break;
    case SP_REFUSE_ROLE:
        if (s->by_peer)
            snprintf(out, n, "the head takes no guest of this role");
        else
            snprintf(out, n, "role is %u, want 1 to %u", s->seen, s->wanted);
        break;
    case SP_REFUSE_FULL:
        snprintf(out, n, "more than %d handshakes at a time", SP_DOOR_PENDING);
        break;
    case SP_REFUSE_SLOW:
        snprintf(out, n, "the handshake took too long");
        break;
    case SP_REFUSE_GARBAGE:
        if (s->by_peer)
            snprintf(out, n, "the peer does not understand us");
        else if (s->rule && s->seen != s->wanted)
            snprintf(out, n, "%s is 0x%x, want 0x%x", s->rule, s->seen, s->wanted);
        else
            snprintf(out, n, "%s", s->rule ? s->rule : "not our protocol");
        break;
    case SP_REFUSE_NONE:
    case SP_REFUSE_COUNT:
    default:
        snprintf(out, n, "not refused");
        break;
    }
    return out;
}

void sp_shake_keys(const sp_shake *s, sp_link_keys *out) {
    SP_ASSERT(s->state == SP_SHAKE_DONE);
    static const char to_head[] = "superpod link 1 guest->head";
    static const char to_guest[] = "superpod link 1 head->guest";
    /* Both nonces lie where their messages put them: g in HELLO, h right after CHALLENGE's header. */
    uint32_t hello = SP_SHAKE_HEADER + get_u32(s->bytes + 8);
    uint8_t salt[2 * SP_SHAKE_NONCE];
    memcpy(salt, s->bytes + SP_SHAKE_HEADER + HELLO_NONCE, SP_SHAKE_NONCE);
    memcpy(salt + SP_SHAKE_NONCE, s->bytes + hello + SP_SHAKE_HEADER, SP_SHAKE_NONCE);
    sp_slice token = {(const char *)s->token->bytes, SP_TOKEN_BYTES};
    sp_slice both = {(const char *)salt, sizeof salt};
    uint8_t *up = s->is_head ? out->receive : out->send;
    uint8_t *down = s->is_head ? out->send : out->receive;
    sp_hkdf_sha256(up, sizeof out->send, token, both, sp_slice_of(to_head));
    sp_hkdf_sha256(down, sizeof out->send, token, both, sp_slice_of(to_guest));
    sp_wipe(salt, sizeof salt);
}

sp_role sp_shake_role(const sp_shake *s) {
    SP_ASSERT(s->is_head && s->state == SP_SHAKE_DONE);
    return (sp_role)get_u32(s->bytes + SP_SHAKE_HEADER + HELLO_ROLE);
}

sp_slice sp_shake_words(const sp_shake *s) {
    SP_ASSERT(s->is_head && s->state == SP_SHAKE_DONE);
    uint32_t n = get_u32(s->bytes + SP_SHAKE_HEADER + HELLO_WORDS_LEN);
    return (sp_slice){(const char *)s->bytes + SP_SHAKE_HEADER + HELLO_WORDS, n};
}

void sp_shake_wipe(sp_shake *s) {
    sp_wipe(s, sizeof *s);
}
