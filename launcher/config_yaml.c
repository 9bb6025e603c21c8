#include "launcher/config_yaml.h"

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/str.h"

#include <string.h>
#include <yaml.h>

#define YAML_BYTES_MAX ((size_t)1 << 20)
#define YAML_ITEMS_MAX 16
#define YAML_TEXT_MAX 1024 /* of a map */

static sp_status bad_node(const char *path, const yaml_node_t *node, const char *want,
                          sp_err *err) {
    return SP_FAIL(err, SP_E_FORMAT, "'%s' line %zu: want %s", path, node->start_mark.line + 1,
                   want);
}

static const char *scalar(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : NULL;
}

/* {name: a, tp: 2} as "name=a,tp=2". A comma inside a value (of pp_layers) becomes '/'. */
static sp_status read_map(yaml_document_t *doc, const yaml_node_t *map, const char *path,
                          sp_buf *out, sp_err *err) {
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *key = yaml_document_get_node(doc, p->key);
        const yaml_node_t *value = yaml_document_get_node(doc, p->value);
        if (!scalar(key) || !scalar(value) || strpbrk(scalar(key), ",="))
            return bad_node(path, map, "a map of names to plain values", err);
        sp_buf_printf(out, "%s%s=", out->len ? "," : "", scalar(key));
        for (const char *c = scalar(value); *c; c++) sp_buf_putc(out, *c == ',' ? '/' : *c);
    }
    if (out->len == 0 || out->failed) return bad_node(path, map, "a short map, not empty", err);
    return SP_OK;
}

/* The items of a list; `texts` holds those of maps. */
static sp_status read_items(yaml_document_t *doc, const yaml_node_t *list, const char *path,
                            const char **values, int *n, sp_buf *texts, sp_err *err) {
    for (yaml_node_item_t *i = list->data.sequence.items.start; i < list->data.sequence.items.top;
         i++) {
        const yaml_node_t *item = yaml_document_get_node(doc, *i);
        bool map = item->type == YAML_MAPPING_NODE;
        if ((!scalar(item) && !map) || *n == YAML_ITEMS_MAX)
            return bad_node(path, list, "a list of at most 16 plain values or maps", err);
        if (map) SP_TRY(read_map(doc, item, path, &texts[*n], err));
        values[*n] = map ? texts[*n].ptr : scalar(item);
        ++*n;
    }
    return SP_OK;
}

static sp_status read_pair(yaml_document_t *doc, const yaml_node_pair_t *pair, const char *path,
                           sp_yaml_fn *fn, void *ctx, sp_err *err) {
    const yaml_node_t *key = yaml_document_get_node(doc, pair->key);
    const yaml_node_t *value = yaml_document_get_node(doc, pair->value);
    const char *values[YAML_ITEMS_MAX];
    sp_buf texts[YAML_ITEMS_MAX];
    int n = 0;
    sp_status st = SP_OK;
    if (!scalar(key)) return bad_node(path, key, "an option name", err);
    for (int i = 0; i < YAML_ITEMS_MAX; i++) sp_buf_init(&texts[i], YAML_TEXT_MAX);
    if (scalar(value)) {
        values[n++] = scalar(value);
    } else if (value->type == YAML_SEQUENCE_NODE) {
        st = read_items(doc, value, path, values, &n, texts, err);
    } else {
        st = bad_node(path, value, "a plain value or a list of them", err);
    }
    if (st == SP_OK) {
        st = fn(ctx, scalar(key), values, n, err);
        if (st != SP_OK) sp_err_context(err, "'%s' line %zu", path, key->start_mark.line + 1);
    }
    for (int i = 0; i < YAML_ITEMS_MAX; i++) sp_buf_fini(&texts[i]);
    return st;
}

sp_status sp_yaml_read(const char *path, sp_yaml_fn *fn, void *ctx, sp_err *err) {
    char *text;
    size_t len;
    SP_TRY(sp_file_read(path, YAML_BYTES_MAX, &text, &len, err));
    sp_status st = SP_OK;
    yaml_parser_t parser;
    yaml_document_t doc;
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
    if (!yaml_parser_load(&parser, &doc)) {
        st = SP_FAIL(err, SP_E_FORMAT, "'%s' line %zu: %s", path, parser.problem_mark.line + 1,
                     parser.problem ? parser.problem : "not YAML");
        goto free_parser;
    }
    yaml_node_t *root = yaml_document_get_root_node(&doc);
    if (root && root->type != YAML_MAPPING_NODE) {
        st = bad_node(path, root, "a mapping of option names to values", err);
    } else if (root) {
        for (yaml_node_pair_t *p = root->data.mapping.pairs.start;
             st == SP_OK && p < root->data.mapping.pairs.top; p++)
            st = read_pair(&doc, p, path, fn, ctx, err);
    }
    yaml_document_delete(&doc);
free_parser:
    yaml_parser_delete(&parser);
    sp_free(text);
    return st;
}
