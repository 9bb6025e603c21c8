/* Covers comm/handshake.c: both sides in memory, every byte flipped, every truncation, every split,
 * replay, reflection, and each reason for a refusal. */
#include "comm/handshake.h"

#include "comm/secret.h"
#include "tests/harness.h"

#include <stdio.h>

#define BUILD "0.1.0-test"
#define WORDS "{\"pid\":7}"

static const sp_token TOKEN = {{1, 2, 3, 4, 5, 6, 7, 8, 9}};
static const sp_token OTHER = {{1, 2, 3, 4, 5, 6, 7, 8, 8}};
static const uint8_t G[SP_SHAKE_NONCE] = {0xaa, 1}, H[SP_SHAKE_NONCE] = {0xbb, 2};
static const uint8_t G2[SP_SHAKE_NONCE] = {0xaa, 3}, H2[SP_SHAKE_NONCE] = {0xbb, 4};

static sp_shake guest, head; /* large; one test at a time */

static void begin_with(const sp_token *guest_token, const char *guest_build, const char *words) {
    CU_ASSERT_EQUAL_FATAL(
        sp_shake_begin_guest(&guest, guest_token, guest_build, SP_ROLE_AGENT, words, G, NULL),
        SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_shake_begin_head(&head, &TOKEN, BUILD, H, NULL), SP_OK);
}

static void begin(void) {
    begin_with(&TOKEN, BUILD, WORDS);
}

typedef struct message {
    uint8_t bytes[SP_SHAKE_BYTES];
    size_t len;
} message;

static void take_out(sp_shake *s, message *m) {
    const uint8_t *p = sp_shake_outgoing(s, &m->len);
    memcpy(m->bytes, p, m->len);
    if (m->len) sp_shake_sent(s, m->len);
}

/* Gives `n` bytes in pieces of at most `piece`; returns how many were taken. */
static size_t give(sp_shake *s, const uint8_t *p, size_t n, size_t piece) {
    size_t at = 0;
    while (at < n) {
        size_t k = sp_shake_wants(s);
        if (k == 0) break;
        if (k > n - at) k = n - at;
        if (k > piece) k = piece;
        sp_shake_take(s, p + at, k);
        at += k;
    }
    return at;
}

/* Carries what is said until nobody says more. Message number `n` goes through `change`. */
typedef void change_fn(message *m, size_t arg);

static void carry(int n, change_fn *change, size_t arg, size_t piece) {
    message m;
    for (int i = 0; i < 6; i++) {
        sp_shake *from = i % 2 ? &head : &guest, *to = i % 2 ? &guest : &head;
        take_out(from, &m);
        if (m.len == 0) return;
        if (i == n) change(&m, arg);
        give(to, m.bytes, m.len, piece);
    }
}

static void expect_both_done(void) {
    sp_link_keys g, h;
    CU_ASSERT_EQUAL_FATAL(guest.state, SP_SHAKE_DONE);
    CU_ASSERT_EQUAL_FATAL(head.state, SP_SHAKE_DONE);
    CU_ASSERT_EQUAL(sp_shake_wants(&guest), 0);
    CU_ASSERT_EQUAL(sp_shake_wants(&head), 0);
    sp_shake_keys(&guest, &g);
    sp_shake_keys(&head, &h);
    CU_ASSERT(memcmp(g.send, h.receive, sizeof g.send) == 0);
    CU_ASSERT(memcmp(g.receive, h.send, sizeof g.send) == 0);
    CU_ASSERT(memcmp(g.send, g.receive, sizeof g.send) != 0);
}

static void both_sides_prove_themselves_and_agree_on_keys(void) {
    begin();
    carry(-1, NULL, 0, SIZE_MAX);
    expect_both_done();
    CU_ASSERT_EQUAL(sp_shake_role(&head), SP_ROLE_AGENT);
    CU_ASSERT(sp_slice_is(sp_shake_words(&head), WORDS));
}

static void keys_are_hkdf_of_token_and_both_nonces(void) {
    uint8_t salt[64], want[32];
    sp_link_keys keys;
    begin();
    carry(-1, NULL, 0, SIZE_MAX);
    sp_shake_keys(&guest, &keys);
    memcpy(salt, G, 32);
    memcpy(salt + 32, H, 32);
    sp_hkdf_sha256(want, 32, (sp_slice){(const char *)TOKEN.bytes, 32},
                   (sp_slice){(const char *)salt, 64}, SP_SLICE("superpod link 1 guest->head"));
    CU_ASSERT(memcmp(keys.send, want, 32) == 0);
    sp_hkdf_sha256(want, 32, (sp_slice){(const char *)TOKEN.bytes, 32},
                   (sp_slice){(const char *)salt, 64}, SP_SLICE("superpod link 1 head->guest"));
    CU_ASSERT(memcmp(keys.receive, want, 32) == 0);
}

static void messages_lie_on_the_wire_as_drawn(void) {
    message m;
    begin();
    take_out(&guest, &m);
    const uint8_t header[] = {'S', 'P', 'D', '1', 1, 0, 1, 0, 104 + sizeof WORDS - 1,
                              0,   0,   0,   0,   0, 0, 0};
    CU_ASSERT_EQUAL(m.len, 16 + 104 + sizeof WORDS - 1);
    CU_ASSERT(memcmp(m.bytes, header, sizeof header) == 0);
    CU_ASSERT(memcmp(m.bytes + 16, BUILD "\0\0\0", sizeof BUILD + 3) == 0);
    CU_ASSERT_EQUAL(m.bytes[16 + 64], SP_ROLE_AGENT);
    CU_ASSERT(memcmp(m.bytes + 16 + 72, G, sizeof G) == 0);
    CU_ASSERT(memcmp(m.bytes + 16 + 104, WORDS, sizeof WORDS - 1) == 0);
    give(&head, m.bytes, m.len, SIZE_MAX);
    take_out(&head, &m);
    CU_ASSERT_EQUAL(m.len, 80);
    CU_ASSERT(memcmp(m.bytes + 16, H, sizeof H) == 0);
}

static void each_proof_is_an_hmac_over_all_said_before(void) {
    static const char *const labels[] = {"", "head", "guest", "accept"};
    uint8_t said[4 * SP_SHAKE_BYTES], want[SP_MAC_BYTES];
    size_t n = 0;
    begin();
    for (int i = 0; i < 4; i++) {
        message m;
        take_out(i % 2 ? &head : &guest, &m);
        give(i % 2 ? &guest : &head, m.bytes, m.len, SIZE_MAX);
        memcpy(said + n, m.bytes, m.len);
        n += m.len;
        if (i == 0) continue;
        const sp_slice pieces[] = {sp_slice_of(labels[i]), {(const char *)said, n - SP_MAC_BYTES}};
        sp_hmac_sha256(want, (sp_slice){(const char *)TOKEN.bytes, SP_TOKEN_BYTES}, pieces, 2);
        CU_ASSERT(memcmp(said + n - SP_MAC_BYTES, want, SP_MAC_BYTES) == 0);
    }
    expect_both_done();
}

static void every_split_gives_the_same(void) {
    size_t longest = 16 + 104 + sizeof WORDS;
    for (size_t piece = 1; piece < longest; piece++) {
        begin();
        carry(-1, NULL, 0, piece);
        expect_both_done();
    }
}

static void empty_and_longest_words_arrive(void) {
    char words[SP_DOOR_WORDS_MAX + 2];
    memset(words, 'w', sizeof words);
    words[SP_DOOR_WORDS_MAX] = 0;
    begin_with(&TOKEN, BUILD, words);
    carry(-1, NULL, 0, SIZE_MAX);
    expect_both_done();
    CU_ASSERT(sp_slice_is(sp_shake_words(&head), words));
    begin_with(&TOKEN, BUILD, "");
    carry(-1, NULL, 0, SIZE_MAX);
    expect_both_done();
    CU_ASSERT_EQUAL(sp_shake_words(&head).len, 0);

    words[SP_DOOR_WORDS_MAX] = 'w';
    words[SP_DOOR_WORDS_MAX + 1] = 0;
    CU_ASSERT_EQUAL(sp_shake_begin_guest(&guest, &TOKEN, BUILD, SP_ROLE_AGENT, words, G, NULL),
                    SP_E_INVALID);
}

static void flip(message *m, size_t bit) {
    if (bit / 8 < m->len) m->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

static void no_flipped_bit_gets_through(void) {
    static const size_t lengths[] = {16 + 104 + sizeof WORDS - 1, 80, 48, 48};
    for (int n = 0; n < 4; n++)
        for (size_t bit = 0; bit < 8 * lengths[n]; bit++) {
            begin();
            carry(n, flip, bit, SIZE_MAX);
            CU_ASSERT_NOT_EQUAL(guest.state, SP_SHAKE_DONE);
            if (n < 3) CU_ASSERT_NOT_EQUAL(head.state, SP_SHAKE_DONE);
        }
}

static void a_flipped_bit_after_the_longest_words_fits_the_buffer(void) {
    char words[SP_DOOR_WORDS_MAX + 1];
    memset(words, 'w', sizeof words);
    words[SP_DOOR_WORDS_MAX] = 0;
    for (int n = 1; n < 4; n++)
        for (size_t bit = 0; bit < (size_t)8 * (n == 1 ? 80 : 48); bit += 3) {
            begin_with(&TOKEN, BUILD, words);
            carry(n, flip, bit, SIZE_MAX);
            CU_ASSERT_NOT_EQUAL(guest.state, SP_SHAKE_DONE);
        }
}

static void cut(message *m, size_t len) {
    if (len < m->len) m->len = len;
}

static void every_truncation_leaves_both_waiting(void) {
    static const size_t lengths[] = {16 + 104 + sizeof WORDS - 1, 80, 48, 48};
    for (int n = 0; n < 4; n++)
        for (size_t len = 0; len < lengths[n]; len++) {
            begin();
            carry(n, cut, len, SIZE_MAX);
            sp_shake *to = n % 2 ? &guest : &head;
            CU_ASSERT_EQUAL(to->state, SP_SHAKE_TALKING);
            CU_ASSERT(sp_shake_wants(to) > 0 && sp_shake_wants(to) <= lengths[n] - len);
            size_t out;
            sp_shake_refuse(to, SP_REFUSE_SLOW);
            (void)sp_shake_outgoing(to, &out);
            CU_ASSERT_EQUAL(out, n > 1 || (n <= 1 && len >= 16) ? 88 : 0);
        }
}

static void nothing_behind_the_handshake_is_taken(void) {
    message m[4];
    begin();
    for (int i = 0; i < 4; i++) {
        sp_shake *from = i % 2 ? &head : &guest, *to = i % 2 ? &guest : &head;
        take_out(from, &m[i]);
        size_t n = m[i].len;
        memset(m[i].bytes + n, 0x77, 64); /* the first frame of the link */
        CU_ASSERT_EQUAL(give(to, m[i].bytes, n + 64, SIZE_MAX), n);
    }
    expect_both_done();
}

/* ---- refusals --------------------------------------------------------------------------------- */

static void expect_words(const sp_shake *s, const char *a, const char *b) {
    char text[200];
    sp_shake_explain(s, text, sizeof text);
    if (!strstr(text, a) || !strstr(text, b)) fprintf(stderr, "    said: %s\n", text);
    CU_ASSERT(strstr(text, a) && strstr(text, b));
}

static void expect_refused(const sp_shake *s, sp_refusal reason, bool by_peer) {
    CU_ASSERT_EQUAL_FATAL(s->state, SP_SHAKE_REFUSED);
    CU_ASSERT_EQUAL(s->reason, reason);
    CU_ASSERT_EQUAL(s->by_peer, by_peer);
    CU_ASSERT_EQUAL(sp_shake_wants(s), 0);
}

static void another_build_is_refused_and_both_are_told_which(void) {
    begin_with(&TOKEN, "0.0.9", WORDS);
    carry(-1, NULL, 0, SIZE_MAX);
    expect_refused(&head, SP_REFUSE_BUILD, false);
    expect_refused(&guest, SP_REFUSE_BUILD, true);
    expect_words(&head, "build is '0.0.9'", "want '" BUILD "'");
    expect_words(&guest, "build is '0.0.9'", "the head wants '" BUILD "'");
}

static void set_version(message *m, size_t version) {
    m->bytes[4] = (uint8_t)version;
}

static void another_version_is_refused_and_both_are_told_which(void) {
    begin();
    carry(0, set_version, 9, SIZE_MAX);
    expect_refused(&head, SP_REFUSE_VERSION, false);
    expect_refused(&guest, SP_REFUSE_VERSION, true);
    expect_words(&head, "is 9", "want 1");

    begin(); /* a head of the future refuses */
    message m;
    take_out(&guest, &m);
    set_version(&m, 9);
    give(&head, m.bytes, m.len, SIZE_MAX);
    take_out(&head, &m);
    set_version(&m, 9);
    give(&guest, m.bytes, m.len, SIZE_MAX);
    expect_refused(&guest, SP_REFUSE_VERSION, true);
    expect_words(&guest, "is 1", "want 9");
}

static void a_head_without_the_token_is_refused_by_the_guest(void) {
    begin_with(&OTHER, BUILD, WORDS);
    carry(-1, NULL, 0, SIZE_MAX);
    expect_refused(&guest, SP_REFUSE_TOKEN, false);
    expect_refused(&head, SP_REFUSE_TOKEN, true);
    expect_words(&guest, "the head does not know", "token");
    expect_words(&head, "the guest has another", "token");
}

/* An impostor that goes on after the head's challenge, whatever it says. */
static void forge(message *m, size_t byte) {
    memset(m->bytes + m->len - SP_MAC_BYTES, (int)byte, SP_MAC_BYTES);
}

static void a_guest_without_the_token_is_refused_by_the_head(void) {
    begin();
    carry(2, forge, 0, SIZE_MAX);
    expect_refused(&head, SP_REFUSE_TOKEN, false);
    expect_refused(&guest, SP_REFUSE_TOKEN, true);
}

static void an_accept_cannot_be_forged(void) {
    begin();
    carry(3, forge, 0, SIZE_MAX);
    expect_refused(&guest, SP_REFUSE_TOKEN, false);
}

static void set_role(message *m, size_t role) {
    m->bytes[16 + 64] = (uint8_t)role;
}

static void an_unknown_role_is_refused(void) {
    static const size_t roles[] = {0, 4, 255};
    for (size_t i = 0; i < SP_LEN(roles); i++) {
        begin();
        carry(0, set_role, roles[i], SIZE_MAX);
        expect_refused(&head, SP_REFUSE_ROLE, false);
        expect_refused(&guest, SP_REFUSE_ROLE, true);
    }
    CU_ASSERT_EQUAL(sp_shake_begin_guest(&guest, &TOKEN, BUILD, (sp_role)4, "", G, NULL),
                    SP_E_INVALID);
}

static void set_length(message *m, size_t length) {
    for (int i = 0; i < 4; i++) m->bytes[8 + i] = (uint8_t)(length >> (8 * i));
}

static void set_words_length(message *m, size_t length) {
    for (int i = 0; i < 4; i++) m->bytes[16 + 68 + i] = (uint8_t)(length >> (8 * i));
}

static void break_words(message *m, size_t byte) {
    m->bytes[16 + 104 + 2] = (uint8_t)byte;
}

static void expect_garbage(change_fn *change, size_t arg, const char *why) {
    size_t n;
    begin();
    carry(0, change, arg, SIZE_MAX);
    expect_refused(&head, SP_REFUSE_GARBAGE, false);
    expect_words(&head, why, "");
    (void)sp_shake_outgoing(&head, &n);
    CU_ASSERT_EQUAL(n, 0); /* garbage gets no answer */
    CU_ASSERT_EQUAL(guest.state, SP_SHAKE_TALKING);
}

static void set_magic(message *m, size_t byte) {
    m->bytes[0] = (uint8_t)byte;
}
static void set_type(message *m, size_t byte) {
    m->bytes[6] = (uint8_t)byte;
}
static void set_reserved(message *m, size_t byte) {
    m->bytes[12] = (uint8_t)byte;
}
static void set_build(message *m, size_t byte) {
    m->bytes[16 + 1] = (uint8_t)byte;
}

static void whatever_is_not_our_protocol_is_garbage(void) {
    expect_garbage(set_magic, 'G', "magic");
    for (size_t type = 0; type < 256; type++)
        if (type != 1) expect_garbage(set_type, type, "type");
    expect_garbage(set_reserved, 1, "reserved");
    expect_garbage(set_length, 0, "length");
    expect_garbage(set_length, 103, "length");
    expect_garbage(set_length, 104 + SP_DOOR_WORDS_MAX + 1, "length");
    expect_garbage(set_length, UINT32_MAX, "length");
    expect_garbage(set_words_length, sizeof WORDS, "words");
    expect_garbage(set_words_length, UINT32_MAX, "words");
    expect_garbage(set_words_length, 0, "words");
    expect_garbage(break_words, 0, "UTF-8");
    expect_garbage(break_words, 0xff, "UTF-8");
    expect_garbage(set_build, '\n', "build");
    expect_garbage(set_build, 0, "build");
}

static void an_http_client_is_garbage_after_its_first_bytes(void) {
    const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    begin();
    CU_ASSERT_EQUAL(give(&head, (const uint8_t *)http, sizeof http - 1, SIZE_MAX), 16);
    expect_refused(&head, SP_REFUSE_GARBAGE, false);
}

static void a_message_sent_back_to_its_sender_fails(void) {
    message hello, challenge, m;
    begin();
    take_out(&guest, &hello);
    give(&head, hello.bytes, hello.len, SIZE_MAX);
    take_out(&head, &challenge);
    give(&guest, hello.bytes, hello.len, SIZE_MAX); /* to the guest, its own greeting */
    expect_refused(&guest, SP_REFUSE_GARBAGE, false);

    /* To the head, its own HMAC as the guest's proof. */
    memset(&m, 0, sizeof m);
    memcpy(m.bytes, challenge.bytes, SP_SHAKE_HEADER);
    set_type(&m, 3);
    set_length(&m, SP_MAC_BYTES);
    memcpy(m.bytes + SP_SHAKE_HEADER, challenge.bytes + 48, SP_MAC_BYTES);
    give(&head, m.bytes, 48, SIZE_MAX);
    expect_refused(&head, SP_REFUSE_TOKEN, false);

    /* To the guest, its own proof as the head's acceptance. */
    begin();
    take_out(&guest, &m);
    give(&head, m.bytes, m.len, SIZE_MAX);
    take_out(&head, &m);
    give(&guest, m.bytes, m.len, SIZE_MAX);
    take_out(&guest, &m);
    set_type(&m, 4);
    give(&guest, m.bytes, m.len, SIZE_MAX);
    expect_refused(&guest, SP_REFUSE_TOKEN, false);
}

static void a_recorded_handshake_cannot_be_replayed(void) {
    message m[4];
    begin();
    for (int i = 0; i < 4; i++) {
        take_out(i % 2 ? &head : &guest, &m[i]);
        give(i % 2 ? &guest : &head, m[i].bytes, m[i].len, SIZE_MAX);
    }
    expect_both_done();

    sp_status st = sp_shake_begin_head(&head, &TOKEN, BUILD, H2, NULL);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    message answer;
    give(&head, m[0].bytes, m[0].len, SIZE_MAX);
    take_out(&head, &answer);
    give(&head, m[2].bytes, m[2].len, SIZE_MAX);
    expect_refused(&head, SP_REFUSE_TOKEN, false);

    st = sp_shake_begin_guest(&guest, &TOKEN, BUILD, SP_ROLE_AGENT, WORDS, G2, NULL);
    CU_ASSERT_EQUAL_FATAL(st, SP_OK);
    take_out(&guest, &answer);
    give(&guest, m[1].bytes, m[1].len, SIZE_MAX);
    expect_refused(&guest, SP_REFUSE_TOKEN, false);
}

static void a_refusal_of_a_broken_reason_is_garbage(void) {
    static const size_t reasons[] = {0, SP_REFUSE_COUNT, 255};
    for (size_t i = 0; i < SP_LEN(reasons); i++) {
        message m;
        begin_with(&TOKEN, "0.0.9", WORDS);
        take_out(&guest, &m);
        give(&head, m.bytes, m.len, SIZE_MAX);
        take_out(&head, &m);
        m.bytes[16] = (uint8_t)reasons[i];
        give(&guest, m.bytes, m.len, SIZE_MAX);
        expect_refused(&guest, SP_REFUSE_GARBAGE, false);
    }
}

static void build_ids_that_cannot_be_sent_are_refused_at_once(void) {
    char longest[SP_SHAKE_BUILD + 1];
    memset(longest, 'b', sizeof longest);
    longest[SP_SHAKE_BUILD] = 0;
    CU_ASSERT_EQUAL(sp_shake_begin_head(&head, &TOKEN, longest, H, NULL), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_shake_begin_head(&head, &TOKEN, "", H, NULL), SP_E_INVALID);
    CU_ASSERT_EQUAL(sp_shake_begin_head(&head, &TOKEN, "a b", H, NULL), SP_E_INVALID);
    longest[SP_SHAKE_BUILD - 1] = 0;
    CU_ASSERT_EQUAL(sp_shake_begin_head(&head, &TOKEN, longest, H, NULL), SP_OK);
}

static void random_changes_never_let_anybody_in(void) {
    uint32_t r = 12345;
    for (int round = 0; round < 4000; round++) {
        message m;
        begin();
        int where = round % 4;
        for (int i = 0; i < 4; i++) {
            take_out(i % 2 ? &head : &guest, &m);
            if (m.len == 0) break;
            for (int k = 0; i == where && k < 3; k++) {
                r = r * 1664525u + 1013904223u;
                m.bytes[(r >> 8) % m.len] ^= (uint8_t)((r >> 4 & 0xf) + 1 + k * 16);
            }
            give(i % 2 ? &guest : &head, m.bytes, m.len, 1 + r % 100);
        }
        CU_ASSERT_NOT_EQUAL(guest.state, SP_SHAKE_DONE);
    }
}

static void wiping_leaves_nothing_behind(void) {
    begin();
    carry(-1, NULL, 0, SIZE_MAX);
    sp_shake_wipe(&guest);
    const uint8_t *p = (const uint8_t *)&guest;
    size_t n = 0;
    for (size_t i = 0; i < sizeof guest; i++) n += p[i] != 0;
    CU_ASSERT_EQUAL(n, 0);
}

static void every_reason_has_a_name(void) {
    for (int r = 0; r < SP_REFUSE_COUNT; r++) {
        CU_ASSERT_STRING_NOT_EQUAL(sp_refusal_name((sp_refusal)r), "unknown");
        for (int q = 0; q < r; q++)
            CU_ASSERT_STRING_NOT_EQUAL(sp_refusal_name((sp_refusal)r),
                                       sp_refusal_name((sp_refusal)q));
    }
    CU_ASSERT_STRING_EQUAL(sp_refusal_name(SP_REFUSE_COUNT), "unknown");
}

SP_TEST_MAIN(
    "comm/handshake", SP_TEST(both_sides_prove_themselves_and_agree_on_keys),
    SP_TEST(keys_are_hkdf_of_token_and_both_nonces), SP_TEST(messages_lie_on_the_wire_as_drawn),
    SP_TEST(each_proof_is_an_hmac_over_all_said_before), SP_TEST(every_split_gives_the_same),
    SP_TEST(empty_and_longest_words_arrive), SP_TEST(no_flipped_bit_gets_through),
    SP_TEST(a_flipped_bit_after_the_longest_words_fits_the_buffer),
    SP_TEST(every_truncation_leaves_both_waiting), SP_TEST(nothing_behind_the_handshake_is_taken),
    SP_TEST(another_build_is_refused_and_both_are_told_which),
    SP_TEST(another_version_is_refused_and_both_are_told_which),
    SP_TEST(a_head_without_the_token_is_refused_by_the_guest),
    SP_TEST(a_guest_without_the_token_is_refused_by_the_head), SP_TEST(an_accept_cannot_be_forged),
    SP_TEST(an_unknown_role_is_refused), SP_TEST(whatever_is_not_our_protocol_is_garbage),
    SP_TEST(an_http_client_is_garbage_after_its_first_bytes),
    SP_TEST(a_message_sent_back_to_its_sender_fails),
    SP_TEST(a_recorded_handshake_cannot_be_replayed),
    SP_TEST(a_refusal_of_a_broken_reason_is_garbage),
    SP_TEST(build_ids_that_cannot_be_sent_are_refused_at_once),
    SP_TEST(random_changes_never_let_anybody_in), SP_TEST(wiping_leaves_nothing_behind),
    SP_TEST(every_reason_has_a_name))
