/* The functions every template has: range, dict, namespace, cycler, joiner, and the two that
 * transformers adds, raise_exception and strftime_now. */
#include "runtime/text/jinja_eval.h"

#include <time.h>

#define RANGE_EDGE ((int64_t)1 << 53)
#define STRFTIME_MAX ((size_t)4096)

static sp_status fn_range(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)self, (void)c;
    int64_t a, b, step;
    bool one = !sp_jarg_given(v[1]);
    SP_TRY(sp_jarg_int(r, v[0], 0, &a));
    SP_TRY(sp_jarg_int(r, v[1], 0, &b));
    SP_TRY(sp_jarg_int(r, v[2], 1, &step));
    if (one) {
        b = a;
        a = 0;
    }
    if (step == 0) return sp_jrun_fail(r, "range() arg 3 must not be zero");
    if (a < -RANGE_EDGE || a > RANGE_EDGE || b < -RANGE_EDGE || b > RANGE_EDGE ||
        step < -RANGE_EDGE || step > RANGE_EDGE)
        return sp_jrun_fail(r, "range() with numbers beyond 2^53");
    int64_t span = step > 0 ? b - a : a - b, stride = step > 0 ? step : -step;
    int64_t n = span <= 0 ? 0 : (span - 1) / stride + 1;
    if (n > SP_J_RANGE_MAX)
        return sp_jrun_fail(r, "range too big: %lld items, at most %d are allowed", (long long)n,
                            SP_J_RANGE_MAX);
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(sp_jrange), &p));
    sp_jrange *g = p;
    *g = (sp_jrange){a, step, n, b};
    *out = (sp_jval){.type = SP_J_RANGE, .range = g};
    return SP_OK;
}

/* Puts what `from` holds, a dict or pairs, into `d`. */
static sp_status put_all(sp_jrun *r, sp_jdict *d, sp_jval from) {
    if (from.type == SP_J_DICT) {
        SP_TRY(sp_jrun_charge(r, from.dict->n));
        for (size_t i = 0; i < from.dict->n; i++)
            SP_TRY(sp_jdict_put(r, d, from.dict->at[i].key, from.dict->at[i].value));
        return SP_OK;
    }
    sp_jlist *pairs, *pair;
    if (from.type == SP_J_UNDEFINED) return sp_jval_fail_undefined(r, from);
    SP_TRY(sp_jiter_collect(r, from, &pairs));
    for (size_t i = 0; i < pairs->n; i++) {
        SP_TRY(sp_jiter_collect(r, pairs->at[i], &pair));
        if (pair->n != 2)
            return sp_jrun_fail(r, "a dict wants pairs, got a sequence of %zu items", pair->n);
        SP_TRY(sp_jdict_put(r, d, pair->at[0], pair->at[1]));
    }
    return SP_OK;
}

static sp_status fn_dict(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                         sp_jval *out) {
    (void)self, (void)v;
    sp_jdict *d;
    if (c->n > 1) return sp_jrun_fail(r, "a dict wants at most 1 argument, got %d", c->n);
    SP_TRY(sp_jdict_create(r, (size_t)c->n_named, &d));
    if (c->n) SP_TRY(put_all(r, d, c->pos[0]));
    for (int i = 0; i < c->n_named; i++) {
        sp_jval name;
        SP_TRY(sp_jval_str(r, c->names[i], &name));
        SP_TRY(sp_jdict_put(r, d, name, c->named[i]));
    }
    *out = (sp_jval){.type = SP_J_DICT, .dict = d};
    return SP_OK;
}

static sp_status fn_namespace(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                              sp_jval *out) {
    SP_TRY(fn_dict(r, self, v, c, out));
    out->type = SP_J_NAMESPACE;
    return SP_OK;
}

static sp_status make_cycler(sp_jrun *r, sp_jtype type, const sp_jval *items, int n, sp_jval *out) {
    void *p;
    SP_TRY(sp_jrun_take(r, sizeof(struct sp_jcycler), &p));
    struct sp_jcycler *y = p;
    SP_TRY(sp_jlist_create(r, (size_t)n, &y->items));
    for (int i = 0; i < n; i++) SP_TRY(sp_jlist_push(r, y->items, items[i]));
    *out = (sp_jval){.type = (uint8_t)type, .cycler = y};
    return SP_OK;
}

static sp_status fn_cycler(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)self, (void)v;
    if (c->n == 0 || c->n_named) return sp_jrun_fail(r, "cycler() wants one item or more");
    return make_cycler(r, SP_J_CYCLER, c->pos, c->n, out);
}

static sp_status fn_joiner(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                           sp_jval *out) {
    (void)self, (void)c;
    sp_jval sep = v[0];
    if (!sp_jarg_given(sep)) SP_TRY(sp_jval_str(r, SP_SLICE(", "), &sep));
    return make_cycler(r, SP_J_JOINER, &sep, 1, out);
}

/* The template refuses the messages: its words are the whole error. */
static sp_status fn_raise(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                          sp_jval *out) {
    (void)self, (void)c, (void)out;
    SP_TRY(sp_jval_to_str(r, v[0], &r->refusal));
    r->refused = true;
    size_t n = r->refusal.s->len < sizeof r->err->text ? r->refusal.s->len : sizeof r->err->text;
    return SP_FAIL(r->err, SP_E_INVALID, "%.*s", (int)n, r->refusal.s->ptr);
}

/* Python's own additions to strftime(): %f is microseconds, %z and %Z are empty without a zone. */
static sp_status expand_format(sp_jrun *r, sp_slice format, sp_jval *out) {
    sp_jtext t = {0};
    for (size_t i = 0; i < format.len; i++) {
        char next = format.ptr[i] == '%' && i + 1 < format.len ? format.ptr[i + 1] : 0;
        if (format.ptr[i] == 0) return sp_jrun_fail(r, "a NUL in the format of strftime_now()");
        if (next == 'f') SP_TRY(sp_jtext_puts(r, &t, "000000"));
        if (next == '%') SP_TRY(sp_jtext_puts(r, &t, "%%"));
        if (next == 'f' || next == 'z' || next == 'Z' || next == '%')
            i++;
        else
            SP_TRY(sp_jtext_put(r, &t, (sp_slice){format.ptr + i, 1}));
    }
    SP_TRY(sp_jtext_put(r, &t, (sp_slice){" ", 2})); /* a blank, and the NUL */
    return sp_jtext_done(r, &t, out);
}

sp_status sp_jrun_strftime(sp_jrun *r, sp_slice format, sp_jval *out) {
    time_t now = (time_t)r->now_unix_s;
    struct tm tm;
    sp_jval full;
    void *p;
    if (!gmtime_r(&now, &tm)) return sp_jrun_fail(r, "the time is out of range");
    SP_TRY(expand_format(r, format, &full));
    SP_TRY(sp_jrun_take(r, STRFTIME_MAX, &p));
    /* The blank at the end makes 0 mean "too long" alone. */
    size_t n = strftime(p, STRFTIME_MAX, full.s->ptr, &tm);
    if (n == 0) return sp_jrun_fail(r, "strftime_now() gives more than %zu bytes", STRFTIME_MAX);
    return sp_jval_str(r, (sp_slice){p, n - 1}, out);
}

static sp_status fn_strftime(sp_jrun *r, sp_jval self, const sp_jval *v, const sp_jcall *c,
                             sp_jval *out) {
    (void)self, (void)c;
    sp_slice format;
    SP_TRY(sp_jarg_str(r, v[0], "", &format));
    return sp_jrun_strftime(r, format, out);
}

static const sp_jglobal GLOBALS[] = {
    {{"range", fn_range, "start stop step", 1}},
    {{"dict", fn_dict, "*", 0}},
    {{"namespace", fn_namespace, "*", 0}},
    {{"cycler", fn_cycler, "*", 0}},
    {{"joiner", fn_joiner, "sep", 0}},
    {{"raise_exception", fn_raise, "message", 1}},
    {{"strftime_now", fn_strftime, "format", 1}},
    {{"lipsum", NULL, "*", 0}},
};

const sp_jglobal *sp_jglobal_find(sp_slice name) {
    for (size_t i = 0; i < SP_LEN(GLOBALS); i++)
        if (sp_slice_is(name, GLOBALS[i].spec.name)) return &GLOBALS[i];
    return NULL;
}
