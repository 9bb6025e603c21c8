/* Covers launcher/fingerprint.c: equal for equal models, another for any other. */
#include "launcher/fingerprint.h"
#include "runtime/base/mem.h"
#include "tests/harness.h"
#include "tests/tiny_model.h"

#include <stdio.h>
#include <string.h>

typedef struct print {
    char text[SP_FINGERPRINT_TEXT];
} print;

static print of(const char *dir, bool with_tensors) {
    print p;
    sp_err err = {0};
    uint8_t id[SP_FINGERPRINT_BYTES];
    sp_model_dir *tensors = NULL;
    if (with_tensors) CU_ASSERT_EQUAL_FATAL(sp_model_dir_open(&tensors, dir, &err), SP_OK);
    CU_ASSERT_EQUAL_FATAL(sp_fingerprint_of(id, dir, tensors, &err), SP_OK);
    sp_model_dir_close(tensors);
    sp_fingerprint_text(id, p.text);
    CU_ASSERT_EQUAL(strspn(p.text, "0123456789abcdef"), SP_FINGERPRINT_TEXT - 1);
    return p;
}
static print of_model(const sp_tiny *t) {
    char *dir = sp_tiny_create(t);
    print p = of(dir, true);
    sp_tiny_remove(dir);
    return p;
}
static bool same(print a, print b) {
    return strcmp(a.text, b.text) == 0;
}

static void the_same_model_in_two_folders_is_the_same(void) {
    sp_tiny t = sp_tiny_default();
    CU_ASSERT(same(of_model(&t), of_model(&t)));
}
static void other_weights_types_and_shapes_are_another_model(void) {
    sp_tiny t = sp_tiny_default(), other = t;
    print a = of_model(&t);
    other.seed++;
    CU_ASSERT_FALSE(same(a, of_model(&other)));
    other = t;
    other.n_layers++;
    CU_ASSERT_FALSE(same(a, of_model(&other)));
    other = t;
    other.dtype = SP_DTYPE_F16;
    CU_ASSERT_FALSE(same(a, of_model(&other)));
    other = t;
    other.rope_theta *= 2; /* config.json alone */
    CU_ASSERT_FALSE(same(a, of_model(&other)));
}
static void how_tensors_lie_in_files_is_no_matter(void) {
    sp_tiny t = sp_tiny_default(), shards = t;
    shards.n_shards = 3;
    char *one = sp_tiny_create(&t), *many = sp_tiny_create(&shards);
    print a = of(one, true), b = of(many, true);
    CU_ASSERT(same(a, of(one, true)));
    CU_ASSERT_FALSE(same(a, of(one, false)));
    if (!same(a, b)) fprintf(stderr, "    one file %.12s, shards %.12s\n", a.text, b.text);
    CU_ASSERT(same(a, b));
    sp_tiny_remove(one);
    sp_tiny_remove(many);
}
static void without_tensors_config_json_counts(void) {
    char *dir = sp_tiny_folder();
    sp_tiny_put(dir, "config.json", "{}", 2);
    print a = of(dir, false);
    sp_tiny_put(dir, "config.json", "{ }", 3);
    CU_ASSERT_FALSE(same(a, of(dir, false)));
    sp_tiny_put(dir, "config.json", "{}", 2);
    CU_ASSERT(same(a, of(dir, false)));
    sp_tiny_remove(dir);
}
static void a_folder_without_config_json_has_none(void) {
    char *dir = sp_tiny_folder();
    uint8_t id[SP_FINGERPRINT_BYTES] = {1};
    sp_err err = {0};
    CU_ASSERT_EQUAL(sp_fingerprint_of(id, dir, NULL, &err), SP_E_NOTFOUND);
    CU_ASSERT_EQUAL(id[0], 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "config.json"));
    sp_tiny_remove(dir);
}

SP_TEST_MAIN("launcher/fingerprint", SP_TEST(the_same_model_in_two_folders_is_the_same),
             SP_TEST(other_weights_types_and_shapes_are_another_model),
             SP_TEST(how_tensors_lie_in_files_is_no_matter),
             SP_TEST(without_tensors_config_json_counts),
             SP_TEST(a_folder_without_config_json_has_none))
