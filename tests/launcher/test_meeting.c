/* Covers launcher/meeting.c, meeting_file.c and meeting_pmix.c: tokens that only we may read, the
 * file of a Slurm step between processes, and the PMIx child under a real mpirun.
 *
 * The program starts itself again: "--environ" shows what is left of a token in the environment,
 * "--pmix-agent" is one agent of an mpirun. */
#include "launcher/meeting.h"
#include "runtime/base/clock.h"
#include "tests/harness.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TOKEN "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
#define NAME "superpod-77.3.join"

static sp_err err;
static char dir[64], path[128], self[512];

static int64_t in_ms(int ms) {
    return sp_now_ns() + ms * SP_NS_PER_MS;
}

static void open_folder(void) {
    snprintf(dir, sizeof dir, "/tmp/superpod-meeting-XXXXXX");
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/%s", dir, NAME);
    setenv("SLURM_SUBMIT_DIR", dir, 1);
    setenv("SLURM_JOB_ID", "77", 1);
    setenv("SLURM_STEP_ID", "3", 1);
    unsetenv("SLURM_RESTART_COUNT");
    err = (sp_err){0};
}

static void write_file(const char *where, const char *text, mode_t mode) {
    unlink(where);
    int fd = open(where, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CU_ASSERT_FATAL(fd >= 0);
    CU_ASSERT_EQUAL(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    CU_ASSERT_EQUAL(fchmod(fd, mode), 0);
    close(fd);
}

/* rmdir proves that no temporary file stayed. */
static void close_folder(void) {
    unlink(path);
    CU_ASSERT_EQUAL(rmdir(dir), 0);
}

/* ---- tokens ---- */

static sp_status load(const char *file, sp_token *t, bool *found) {
    err = (sp_err){0};
    *t = (sp_token){{0}};
    *found = false;
    return sp_token_load(t, found, file, &err);
}

static void a_token_file_is_read_when_it_is_ours_alone(void) {
    static const mode_t good[] = {0600, 0400, 0440}, bad[] = {0640, 0644, 0604, 0660, 0444, 0420};
    sp_token t;
    bool found;
    open_folder();
    for (size_t i = 0; i < SP_LEN(good); i++) {
        write_file(path, TOKEN "\r\n", good[i]);
        CU_ASSERT_EQUAL(load(path, &t, &found), SP_OK);
        CU_ASSERT(found);
        CU_ASSERT_EQUAL(t.bytes[1], 0x11);
        CU_ASSERT_EQUAL(t.bytes[31], 0xff);
    }
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        write_file(path, TOKEN, bad[i]);
        CU_ASSERT_EQUAL(load(path, &t, &found), SP_E_DENIED);
        CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "0600"));
        CU_ASSERT_FALSE(found);
        CU_ASSERT_EQUAL(t.bytes[1], 0);
    }
    close_folder();
}

static void a_token_file_with_another_shape_is_refused_without_its_digits(void) {
    static const char *const bad[] = {"",         "\n",       "0011",
                                      TOKEN "00", "xx" TOKEN, TOKEN "\n" TOKEN "\n"};
    char odd[] = TOKEN;
    odd[40] = 'g';
    sp_token t;
    bool found;
    open_folder();
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        write_file(path, bad[i], 0600);
        CU_ASSERT_EQUAL(load(path, &t, &found), SP_E_INVALID);
        CU_ASSERT_PTR_NULL(strstr(err.text, "00112233"));
    }
    write_file(path, odd, 0600);
    CU_ASSERT_EQUAL(load(path, &t, &found), SP_E_INVALID);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "hexadecimal"));
    CU_ASSERT_PTR_NULL(strstr(err.text, "00112233"));
    CU_ASSERT_EQUAL(t.bytes[1], 0);
    unlink(path);
    CU_ASSERT_EQUAL(load(path, &t, &found), SP_E_IO);
    CU_ASSERT_EQUAL(load(dir, &t, &found), SP_E_INVALID);
    CU_ASSERT_EQUAL(mkfifo(path, 0600), 0);
    CU_ASSERT_EQUAL(load(path, &t, &found), SP_E_INVALID);
    close_folder();
}

static void a_token_file_of_somebody_else_is_refused(void) {
    if (geteuid() != 0) SP_SKIP("needs root to give a file away");
    sp_token t;
    bool found;
    open_folder();
    write_file(path, TOKEN, 0600);
    CU_ASSERT_EQUAL(chown(path, 12345, (gid_t)-1), 0);
    CU_ASSERT_EQUAL(load(path, &t, &found), SP_E_DENIED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "12345"));
    close_folder();
}

static void the_variable_is_read_and_scrubbed_even_when_the_file_wins(void) {
    sp_token t;
    bool found;
    open_folder();
    CU_ASSERT_EQUAL(load(NULL, &t, &found), SP_OK);
    CU_ASSERT_FALSE(found);
    CU_ASSERT_EQUAL(load("", &t, &found), SP_OK);
    CU_ASSERT_FALSE(found);

    setenv("SUPERPOD_POD_TOKEN", TOKEN, 1);
    CU_ASSERT_EQUAL(load(NULL, &t, &found), SP_OK);
    CU_ASSERT(found);
    CU_ASSERT_EQUAL(t.bytes[2], 0x22);
    CU_ASSERT_PTR_NULL(getenv("SUPERPOD_POD_TOKEN"));

    setenv("SUPERPOD_POD_TOKEN", "nonsense", 1);
    CU_ASSERT_EQUAL(load(NULL, &t, &found), SP_E_INVALID);
    CU_ASSERT_PTR_NULL(strstr(err.text, "nonsense"));
    CU_ASSERT_PTR_NULL(getenv("SUPERPOD_POD_TOKEN"));

    char other[] = TOKEN;
    memcpy(other, "ffff", 4);
    write_file(path, other, 0600);
    setenv("SUPERPOD_POD_TOKEN", TOKEN, 1);
    CU_ASSERT_EQUAL(load(path, &t, &found), SP_OK);
    CU_ASSERT_EQUAL(t.bytes[0], 0xff);
    CU_ASSERT_PTR_NULL(getenv("SUPERPOD_POD_TOKEN"));
    close_folder();
}

/* In a process that was started with the token: 0 when /proc shows it before and not after. */
static int environ_main(void) {
    static char text[1 << 18];
    int seen[2];
    sp_token t;
    bool found = false;
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen("/proc/self/environ", "rb");
        size_t n = f ? fread(text, 1, sizeof text, f) : 0;
        if (f) fclose(f);
        seen[i] = memmem(text, n, TOKEN, strlen(TOKEN)) != NULL;
        if (i == 0 && (sp_token_load(&t, &found, NULL, NULL) != SP_OK || !found)) return 2;
    }
    return seen[0] && !seen[1] ? 0 : 1;
}

static void the_scrubbed_variable_is_not_in_proc_either(void) {
    char command[700];
    snprintf(command, sizeof command, "SUPERPOD_POD_TOKEN=%s '%s' --environ", TOKEN, self);
    CU_ASSERT_EQUAL(system(command), 0);
}

static void fresh_tokens_differ_and_wiping_clears(void) {
    sp_token a = {{0}}, b = {{0}}, zero = {{0}};
    CU_ASSERT_EQUAL(sp_token_make(&a, &err), SP_OK);
    CU_ASSERT_EQUAL(sp_token_make(&b, &err), SP_OK);
    CU_ASSERT_NOT_EQUAL(memcmp(&a, &b, sizeof a), 0);
    sp_token_wipe(&a);
    CU_ASSERT_EQUAL(memcmp(&a, &zero, sizeof a), 0);
}

/* ---- addresses ---- */

static void our_addresses_carry_the_port_and_end_with_loopback(void) {
    char list[1024] = "", tiny[4] = "x";
    CU_ASSERT_EQUAL(sp_local_addresses(list, sizeof list, 7123, &err), SP_OK);
    int n = 0;
    bool looped = false;
    for (char *save, *item = strtok_r(list, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
        size_t len = strlen(item);
        n++;
        CU_ASSERT(len > 5 && strcmp(item + len - 5, ":7123") == 0);
        CU_ASSERT(strncmp(item, "[fe80", 5) != 0 && strncmp(item, "169.254.", 8) != 0);
        bool loopback = strncmp(item, "127.", 4) == 0 || strncmp(item, "[::1]", 5) == 0;
        CU_ASSERT(loopback || !looped);
        looped |= loopback;
    }
    CU_ASSERT(n > 0);
    CU_ASSERT_EQUAL(sp_local_addresses(tiny, sizeof tiny, 7123, &err), SP_E_TOOLONG);
    CU_ASSERT_STRING_EQUAL(tiny, "x");
}

/* ---- the file of a step ---- */

static const sp_place first = {
    .source = "Slurm", .is_head = true, .size = 4, .meeting = SP_MEET_FILE};
static const sp_place other = {.source = "Slurm", .rank = 1, .size = 4, .meeting = SP_MEET_FILE};

static sp_contact a_contact(uint8_t mark) {
    sp_contact c = {.addresses = "10.0.0.1:7000,[fd00::1]:7000"};
    memset(&c.token, mark, sizeof c.token);
    return c;
}

static bool same(const sp_contact *a, const sp_contact *b) {
    return strcmp(a->addresses, b->addresses) == 0 &&
           memcmp(&a->token, &b->token, sizeof a->token) == 0;
}

static void those_who_wait_get_what_the_first_agent_left(void) {
    open_folder();
    sp_contact c = a_contact(9);
    pid_t pids[3];
    int ready[2];
    char byte;
    CU_ASSERT_EQUAL_FATAL(pipe(ready), 0);
    for (int i = 0; i < 3; i++) {
        pids[i] = fork();
        if (pids[i] != 0) continue;
        sp_contact got = {0};
        if (write(ready[1], "x", 1) != 1) _exit(3);
        sp_status st = sp_meeting_get(&other, &got, in_ms(10000), NULL);
        _exit(st == SP_OK && same(&got, &c) ? 0 : 1);
    }
    for (int i = 0; i < 3; i++) CU_ASSERT_EQUAL(read(ready[0], &byte, 1), 1);
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(1000), &err), SP_OK);
    struct stat st;
    CU_ASSERT_EQUAL(stat(path, &st), 0);
    CU_ASSERT_EQUAL(st.st_mode & 07777, 0600);
    for (int i = 0; i < 3; i++) {
        int status = -1;
        CU_ASSERT_EQUAL(waitpid(pids[i], &status, 0), pids[i]);
        CU_ASSERT_EQUAL(status, 0);
    }
    sp_meeting_end(&other); /* not his to remove */
    CU_ASSERT_EQUAL(access(path, F_OK), 0);
    sp_meeting_end(&first);
    CU_ASSERT_NOT_EQUAL(access(path, F_OK), 0);
    sp_meeting_end(&first);
    close(ready[0]);
    close(ready[1]);
    close_folder();
}

static void a_file_that_others_may_read_or_a_link_is_refused(void) {
    open_folder();
    sp_contact c = a_contact(1), got = {0};
    write_file(path, "x", 0644);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(5000), &err), SP_E_DENIED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, NAME));
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(5000), &err), SP_E_DENIED);
    sp_meeting_end(&first);
    CU_ASSERT_EQUAL(access(path, F_OK), 0);
    unlink(path);
    CU_ASSERT_EQUAL(symlink("/etc/passwd", path), 0);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(5000), &err), SP_E_DENIED);
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(5000), &err), SP_E_DENIED);
    if (geteuid() == 0) {
        write_file(path, "x", 0600);
        CU_ASSERT_EQUAL(chown(path, 12345, (gid_t)-1), 0);
        CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(5000), &err), SP_E_DENIED);
        CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(5000), &err), SP_E_DENIED);
    }
    CU_ASSERT_EQUAL(got.addresses[0], 0);
    close_folder();
}

static void what_an_earlier_run_left_is_not_believed_and_is_replaced(void) {
    open_folder();
    sp_contact old = a_contact(1), fresh = a_contact(2), got = {0};
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &old, in_ms(1000), &err), SP_OK);
    setenv("SLURM_RESTART_COUNT", "1", 1);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(60), &err), SP_E_TIMEOUT);
    sp_meeting_end(&first);
    CU_ASSERT_EQUAL(access(path, F_OK), 0);
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &fresh, in_ms(1000), &err), SP_OK);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(1000), &err), SP_OK);
    CU_ASSERT(same(&got, &fresh));
    /* The same run again: the last one counts. */
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &old, in_ms(1000), &err), SP_OK);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(1000), &err), SP_OK);
    CU_ASSERT(same(&got, &old));
    unsetenv("SLURM_RESTART_COUNT");
    close_folder();
}

static void damaged_files_are_refused(void) {
    open_folder();
    sp_contact c = a_contact(1), got = {0};
    static const char *const bad[] = {"", "\n", "superpod-join 2 0 a|b\n", "hello"};
    for (size_t i = 0; i < SP_LEN(bad); i++) {
        write_file(path, bad[i], 0600);
        CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(5000), &err), SP_E_FORMAT);
    }
    unlink(path);
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(1000), &err), SP_OK);
    size_t n;
    char *text = sp_test_read(path, &n);
    static const size_t cuts[] = {1, 2, 40, 66, 70};
    for (size_t i = 0; i < SP_LEN(cuts); i++) { /* cut short, but ending like a whole one */
        char *cut = strndup(text, n - cuts[i]);
        if (i) cut[n - cuts[i] - 1] = '\n';
        write_file(path, cut, 0600);
        CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(5000), &err), SP_E_FORMAT);
        free(cut);
    }
    free(text);
    CU_ASSERT_EQUAL(got.addresses[0], 0);
    close_folder();
}

static void waiting_ends_at_the_deadline_or_by_a_signal(void) {
    open_folder();
    sp_contact c = a_contact(1), got = {0};
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(50), &err), SP_E_TIMEOUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, NAME));
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, &before);
    kill(getpid(), SIGTERM);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(20000), &err), SP_E_CANCELED);
    int sig;
    sigwait(&set, &sig);
    sigprocmask(SIG_SETMASK, &before, NULL);

    setenv("SLURM_SUBMIT_DIR", "/nonexistent/folder", 1);
    CU_ASSERT_EQUAL(sp_meeting_get(&other, &got, in_ms(20), &err), SP_E_TIMEOUT);
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(20), &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--token-file"));
    setenv("SLURM_STEP_ID", "three", 1);
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(20), &err), SP_E_INVALID);
    close_folder();
}

static void a_place_without_a_meeting_says_how_to_have_a_token(void) {
    sp_contact c = a_contact(1), got = {0};
    sp_place given = {.source = "LWS", .rank = 2, .meeting = SP_MEET_GIVEN};
    CU_ASSERT_EQUAL(sp_meeting_get(&given, &got, in_ms(10), &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--token-file"));
    CU_ASSERT_EQUAL(sp_meeting_put(&given, &c, in_ms(10), &err), SP_OK);
    c.addresses[0] = 0;
    CU_ASSERT_EQUAL(sp_meeting_put(&first, &c, in_ms(10), &err), SP_E_INVALID);
}

/* ---- PMIx ---- */

static int pmix_agent_main(bool agent_2_stays_away) {
    sp_place_flags flags = {.rank = -1};
    sp_place p;
    sp_contact c = {.addresses = "10.9.8.7:7000"};
    sp_err e = {0};
    sp_status st = sp_place_find(&p, &flags, &e);
    if (st == SP_OK && p.is_head) st = sp_token_make(&c.token, &e);
    int64_t start = sp_now_ns(), deadline = start + (agent_2_stays_away ? 1 : 20) * SP_NS_PER_S;
    if (st == SP_OK && agent_2_stays_away && p.rank == 2) {
        pause(); /* until mpirun ends the job */
        return 0;
    }
    if (st == SP_OK)
        st =
            p.is_head ? sp_meeting_put(&p, &c, deadline, &e) : sp_meeting_get(&p, &c, deadline, &e);
    char line[300];
    int n = snprintf(line, sizeof line, "agent %d of %d by %s status %d: %s %02x%02x%02x%02x %s\n",
                     p.rank, p.size, p.source, (int)st, c.addresses, c.token.bytes[0],
                     c.token.bytes[1], c.token.bytes[30], c.token.bytes[31], e.text);
    if (write(STDOUT_FILENO, line, (size_t)n) != n) return 1;
    if (getenv("SUPERPOD_TEST_TIMES"))
        fprintf(stderr, "met after %.1f ms\n", (double)(sp_now_ns() - start) / 1e6);
    return st == SP_OK ? 0 : 1;
}

/* Only where mpirun is, and libpmix's headers were at build time. */
static const char *why_no_pmix(void) {
#if !__has_include(<pmix.h>)
    return "built without pmix.h";
#endif
    if (system("command -v mpirun >/dev/null 2>&1") != 0) return "no mpirun here";
    return NULL;
}

static FILE *start_mpirun(const char *word) {
    char command[800];
    snprintf(command, sizeof command,
             "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 40 "
             "mpirun --oversubscribe --bind-to none -np 3 '%s' %s 2>&1",
             self, word);
    return popen(command, "r");
}

static void agents_of_an_mpirun_learn_the_first_ones_contact_by_pmix(void) {
    if (why_no_pmix()) SP_SKIP(why_no_pmix());
    FILE *f = start_mpirun("--pmix-agent");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    char line[600], words[3][100] = {"", "", ""};
    unsigned ranks = 0;
    while (fgets(line, sizeof line, f)) {
        int rank = -1;
        char contact[100] = "";
        if (sscanf(line, "agent %d of 3 by Open MPI status 0: %99[^\n]", &rank, contact) != 2)
            fprintf(stderr, "    %s", line);
        else if (rank >= 0 && rank < 3) {
            ranks |= 1u << rank;
            memcpy(words[rank], contact, sizeof contact);
        }
    }
    CU_ASSERT_EQUAL(pclose(f), 0);
    CU_ASSERT_EQUAL(ranks, 7);
    CU_ASSERT(strncmp(words[0], "10.9.8.7:7000 ", 14) == 0);
    CU_ASSERT_PTR_NULL(strstr(words[0], " 00000000"));
    CU_ASSERT_STRING_EQUAL(words[1], words[0]);
    CU_ASSERT_STRING_EQUAL(words[2], words[0]);
}

static void an_agent_that_stays_away_from_the_fence_is_a_timeout(void) {
    if (why_no_pmix()) SP_SKIP(why_no_pmix());
    FILE *f = start_mpirun("--pmix-agent-away");
    CU_ASSERT_PTR_NOT_NULL_FATAL(f);
    char line[600];
    int timeouts = 0;
    while (fgets(line, sizeof line, f))
        timeouts += strstr(line, "agent ") == line && strstr(line, "status -7: ") != NULL;
    CU_ASSERT_NOT_EQUAL(pclose(f), 0);
    /* The first to give up may end the job before the second could say so. */
    CU_ASSERT(timeouts >= 1);
}

static void pmix_without_a_server_is_refused_with_a_way_out(void) {
    if (why_no_pmix()) SP_SKIP(why_no_pmix());
    sp_place p = {.source = "PMIx", .rank = 1, .size = 2, .meeting = SP_MEET_PMIX};
    sp_contact got = {0};
    CU_ASSERT_EQUAL(sp_meeting_get(&p, &got, in_ms(20000), &err), SP_E_UNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--token-file"));
}

static const sp_test tests[] = {
    SP_TEST(a_token_file_is_read_when_it_is_ours_alone),
    SP_TEST(a_token_file_with_another_shape_is_refused_without_its_digits),
    SP_TEST(a_token_file_of_somebody_else_is_refused),
    SP_TEST(the_variable_is_read_and_scrubbed_even_when_the_file_wins),
    SP_TEST(the_scrubbed_variable_is_not_in_proc_either),
    SP_TEST(fresh_tokens_differ_and_wiping_clears),
    SP_TEST(our_addresses_carry_the_port_and_end_with_loopback),
    SP_TEST(those_who_wait_get_what_the_first_agent_left),
    SP_TEST(a_file_that_others_may_read_or_a_link_is_refused),
    SP_TEST(what_an_earlier_run_left_is_not_believed_and_is_replaced),
    SP_TEST(damaged_files_are_refused),
    SP_TEST(waiting_ends_at_the_deadline_or_by_a_signal),
    SP_TEST(a_place_without_a_meeting_says_how_to_have_a_token),
    SP_TEST(agents_of_an_mpirun_learn_the_first_ones_contact_by_pmix),
    SP_TEST(an_agent_that_stays_away_from_the_fence_is_a_timeout),
    SP_TEST(pmix_without_a_server_is_refused_with_a_way_out),
};

int main(int argc, char **argv) {
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    if (argc > 1 && strcmp(argv[1], "--environ") == 0) return environ_main();
    if (argc > 1 && strcmp(argv[1], "--pmix-agent") == 0) return pmix_agent_main(false);
    if (argc > 1 && strcmp(argv[1], "--pmix-agent-away") == 0) return pmix_agent_main(true);
    return sp_test_main("launcher/meeting", tests, (int)SP_LEN(tests), argc, argv);
}
