#include "launcher/bytes_text.h"

#include "runtime/base/json.h"

/* Byte-level BPE writes bytes that cannot be seen as code points from 256 on, in order.
 * Source: the byte alphabet of GPT-2's tokenizer. */
static uint32_t code_point_of(int byte) {
    bool seen = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    if (seen) return (uint32_t)byte;
    uint32_t n = 256;
    for (int b = 0; b < byte; b++)
        n += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
    return n;
}

static void put_vocabulary(sp_jw *w) {
    sp_jw_object(w);
    for (int byte = 0; byte < 256; byte++) {
        char piece[5];
        piece[sp_utf8_encode(code_point_of(byte), piece)] = 0;
        sp_jw_key(w, piece), sp_jw_int(w, byte);
    }
    sp_jw_object_end(w);
}

static void put_byte_level(sp_jw *w, const char *key) {
    sp_jw_key(w, key), sp_jw_object(w);
    sp_jw_key(w, "type"), sp_jw_str(w, "ByteLevel");
    sp_jw_key(w, "add_prefix_space"), sp_jw_bool(w, false);
    sp_jw_key(w, "trim_offsets"), sp_jw_bool(w, false);
    sp_jw_key(w, "use_regex"), sp_jw_bool(w, false);
    sp_jw_object_end(w);
}

sp_status sp_bytes_tokenizer(sp_tokenizer **out, sp_err *err) {
    sp_buf text;
    sp_buf_init(&text, 0);
    sp_jw w = sp_jw_on(&text);
    sp_jw_object(&w);
    sp_jw_key(&w, "version"), sp_jw_str(&w, "1.0");
    sp_jw_key(&w, "added_tokens"), sp_jw_array(&w), sp_jw_array_end(&w);
    put_byte_level(&w, "pre_tokenizer");
    put_byte_level(&w, "decoder");
    sp_jw_key(&w, "model"), sp_jw_object(&w);
    sp_jw_key(&w, "type"), sp_jw_str(&w, "BPE");
    sp_jw_key(&w, "vocab"), put_vocabulary(&w);
    sp_jw_key(&w, "merges"), sp_jw_array(&w), sp_jw_array_end(&w);
    sp_jw_object_end(&w);
    sp_jw_object_end(&w);
    sp_status st = text.failed ? SP_FAIL(err, SP_E_NOMEM, "no memory for a tokenizer")
                               : sp_tokenizer_parse(out, sp_buf_slice(&text), err);
    sp_buf_fini(&text);
    return st;
}

sp_status sp_bytes_chat(sp_chat **out, const sp_tokenizer *t, sp_err *err) {
    static const char lines[] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                                "{% if add_generation_prompt %}assistant: {% endif %}";
    return sp_chat_parse(out, SP_SLICE(lines), "the rehearsal's template", t, err);
}
