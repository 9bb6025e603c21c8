/* tests/e2e/f32diff.c - the largest absolute difference of two files of float32, for scripts.
 *
 *   f32diff GOT WANT LIMIT [SKIP]
 *
 * Both are little-endian float32; SKIP floats of WANT are passed over first, and GOT may be shorter
 * than the rest. Prints the difference and its place; exit status 1 when it is above LIMIT, when a
 * value is not finite, or when GOT is empty or longer than WANT. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *open_or_die(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) return f;
    fprintf(stderr, "f32diff: cannot read '%s'\n", path);
    exit(2);
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fputs("usage: f32diff GOT WANT LIMIT [SKIP]\n", stderr);
        return 2;
    }
    FILE *got = open_or_die(argv[1]), *want = open_or_die(argv[2]);
    const double limit = strtod(argv[3], NULL);
    const long skip = argc > 4 ? strtol(argv[4], NULL, 10) : 0;
    if (fseek(want, skip * (long)sizeof(float), SEEK_SET) != 0) return 2;

    double worst = 0;
    long n = 0, at = 0;
    float a = 0, b = 0;
    while (fread(&a, sizeof a, 1, got) == 1) {
        if (fread(&b, sizeof b, 1, want) != 1) {
            printf("'%s' is longer than '%s' from float %ld on\n", argv[1], argv[2], skip);
            return 1;
        }
        const double d = fabs((double)a - (double)b);
        if (!(d <= worst)) { /* also taken by NaN, which must not pass */
            worst = d;
            at = n;
        }
        n++;
    }
    printf("%.3g at float %ld of %ld\n", worst, at, n);
    fclose(got);
    fclose(want);
    return n > 0 && worst <= limit ? 0 : 1;
}
