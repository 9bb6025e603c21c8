#include "launcher/meeting_way.h"

#include "comm/backoff.h"
#include "comm/secret.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SP_LOG "meeting"
#define SAY_NS (10 * SP_NS_PER_S)
#define RENAME_WITHOUT_REPLACING 1u /* RENAME_NOREPLACE, which older C libraries do not name */

/* One line: "superpod-join 1 MARK ADDRESSES|TOKEN\n". The file is whole or not there: it is written
 * under another name, then linked. */
#define FILE_START "superpod-join 1 "
#define FILE_BYTES_MAX (SP_CONTACT_TEXT_MAX + 64)

typedef struct spot { /* where the file is */
    char dir[PATH_MAX], name[128];
    uint64_t mark; /* of this run of the step */
} spot;

/* A requeued job comes back with the same job and step numbers, and two clusters may share both a
 * file system and a job number. What the mark is made of is the same for all tasks of one run. */
static uint64_t mark_of_run(void) {
    static const char *const names[] = {"SLURM_CLUSTER_NAME",   "SLURM_JOB_ID",
                                        "SLURM_STEP_ID",        "SLURM_RESTART_COUNT",
                                        "SLURM_JOB_START_TIME", "SLURM_STEP_NODELIST"};
    sp_buf all;
    sp_buf_init(&all, 1 << 20);
    for (size_t i = 0; i < SP_LEN(names); i++) {
        const char *value = getenv(names[i]);
        sp_buf_puts(&all, value ? value : "");
        sp_buf_putc(&all, '\n');
    }
    uint64_t mark = sp_hash_bytes(all.ptr, all.len);
    sp_buf_fini(&all);
    return mark;
}

static sp_status find_spot(spot *out, sp_err *err) {
    const char *dir = getenv("SLURM_SUBMIT_DIR");
    const char *names[] = {"SLURM_JOB_ID", "SLURM_STEP_ID"};
    int64_t ids[2];
    for (size_t i = 0; i < SP_LEN(names); i++) {
        const char *text = getenv(names[i]);
        if (!text || sp_parse_i64(sp_slice_of(text), &ids[i]) != SP_OK || ids[i] < 0)
            return SP_FAIL(err, SP_E_INVALID, "%s is '%.40s', want a number", names[i],
                           text ? text : "");
    }
    if (!dir || !*dir) dir = ".";
    if (strlen(dir) >= sizeof out->dir)
        return SP_FAIL(err, SP_E_TOOLONG, "SLURM_SUBMIT_DIR has %zu bytes, want below %zu",
                       strlen(dir), sizeof out->dir);
    snprintf(out->dir, sizeof out->dir, "%s", dir);
    snprintf(out->name, sizeof out->name, "superpod-%lld.%lld.join", (long long)ids[0],
             (long long)ids[1]);
    out->mark = mark_of_run();
    return SP_OK;
}

/* Anew for each look: on NFS opening a directory asks the server whether it has changed, where a
 * look by a kept descriptor may be answered by "not there" out of the cache for a minute. */
static int open_dir(const spot *s) {
    return open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static bool is_ours_alone(const struct stat *st) {
    return S_ISREG(st->st_mode) && st->st_uid == geteuid() && (st->st_mode & 077) == 0;
}

static sp_status not_ours(const spot *s, const struct stat *st, sp_err *err) {
    return SP_FAIL(err, SP_E_DENIED,
                   "'%.100s/%s' is of user %u with mode %06o, want ours (%u) as a file of mode "
                   "0600: remove it, or use --token-file",
                   s->dir, s->name, (unsigned)st->st_uid, (unsigned)st->st_mode,
                   (unsigned)geteuid());
}

/* ---- leaving it ---- */

static sp_status write_all(int fd, const char *p, size_t n) {
    while (n > 0) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return SP_E_IO;
        p += k;
        n -= (size_t)k;
    }
    return fsync(fd) == 0 ? SP_OK : SP_E_IO;
}

static sp_status write_temporary(int dir, const char *name, const spot *s, const char *text,
                                 sp_err *err) {
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED,
                       "'%.120s' cannot hold the file that tells the other agents where the head "
                       "is (%s): want --token-file and --head",
                       s->dir, strerror(errno));
    char line[FILE_BYTES_MAX];
    int n =
        snprintf(line, sizeof line, FILE_START "%016llx %s\n", (unsigned long long)s->mark, text);
    sp_status st = write_all(fd, line, (size_t)n);
    if (st != SP_OK)
        st = SP_FAIL(err, SP_E_IO, "writing into '%.120s': %s", s->dir, strerror(errno));
    sp_wipe(line, sizeof line);
    if (close(fd) != 0 && st == SP_OK)
        st = SP_FAIL(err, SP_E_IO, "writing into '%.120s': %s", s->dir, strerror(errno));
    return st;
}

/* Only task 0 of this step writes this name. What stands there and is ours alone was left by a run
 * that died before its join, and is replaced in one move; anything else is refused. */
static sp_status replace_stale(int dir, const char *temporary, const spot *s, sp_err *err) {
    struct stat old, mine;
    if (fstatat(dir, s->name, &old, AT_SYMLINK_NOFOLLOW) != 0 ||
        fstatat(dir, temporary, &mine, AT_SYMLINK_NOFOLLOW) != 0)
        return SP_FAIL(err, SP_E_IO, "'%.120s/%s': %s", s->dir, s->name, strerror(errno));
    /* NFS repeats a call whose answer was lost, and then says that the link exists: it is ours. */
    if (old.st_ino == mine.st_ino && old.st_dev == mine.st_dev) return SP_OK;
    if (!is_ours_alone(&old)) return not_ours(s, &old, err);
    sp_warn("replacing '%s/%s', left by an earlier run of this step", s->dir, s->name);
    if (renameat(dir, temporary, dir, s->name) != 0)
        return SP_FAIL(err, SP_E_IO, "replacing '%.120s/%s': %s", s->dir, s->name, strerror(errno));
    return SP_OK;
}

static sp_status show(int dir, const char *temporary, const spot *s, sp_err *err) {
    if (linkat(dir, temporary, dir, s->name, 0) == 0) return SP_OK;
    /* Some file systems have no links; those can rename without replacing. */
    if (errno != EEXIST &&
        syscall(SYS_renameat2, dir, temporary, dir, s->name, RENAME_WITHOUT_REPLACING) == 0)
        return SP_OK;
    if (errno == EEXIST) return replace_stale(dir, temporary, s, err);
    return SP_FAIL(err, SP_E_IO, "making '%.120s/%s': %s", s->dir, s->name, strerror(errno));
}

sp_status sp_meeting_file_put(const char *text, sp_err *err) {
    spot s;
    SP_TRY(find_spot(&s, err));
    uint64_t random;
    SP_TRY(sp_random_bytes(&random, sizeof random, err));
    char temporary[160];
    snprintf(temporary, sizeof temporary, ".%s.%016llx", s.name, (unsigned long long)random);
    int dir = open_dir(&s);
    if (dir < 0)
        return SP_FAIL(err, SP_E_UNSUPPORTED, "'%.120s' (%s): want --token-file and --head", s.dir,
                       strerror(errno));
    sp_status st = write_temporary(dir, temporary, &s, text, err);
    if (st == SP_OK) st = show(dir, temporary, &s, err);
    unlinkat(dir, temporary, 0);
    close(dir);
    return st;
}

/* ---- finding it ---- */

/* SP_AGAIN: it is of another run. */
static sp_status take_text(char *text, const spot *s, const char *line, size_t n, sp_err *err) {
    char start[64];
    int k = snprintf(start, sizeof start, FILE_START "%016llx ", (unsigned long long)s->mark);
    size_t head = strlen(FILE_START);
    if (n <= (size_t)k || line[n - 1] != '\n' || memchr(line, 0, n) ||
        memcmp(line, FILE_START, head) != 0)
        return SP_FAIL(err, SP_E_FORMAT, "'%.120s/%s' is not of this version of superpod", s->dir,
                       s->name);
    if (memcmp(line, start, (size_t)k) != 0) return SP_AGAIN;
    size_t len = n - (size_t)k - 1;
    if (len >= SP_CONTACT_TEXT_MAX)
        return SP_FAIL(err, SP_E_FORMAT, "'%.120s/%s' has %zu bytes", s->dir, s->name, n);
    memcpy(text, line + k, len);
    text[len] = 0;
    return SP_OK;
}

/* SP_AGAIN: it is not there yet. */
static sp_status look(char *text, int dir, const spot *s, sp_err *err) {
    int fd = openat(dir, s->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ESTALE || errno == EINTR)) return SP_AGAIN;
    if (fd < 0)
        return SP_FAIL(err, errno == ELOOP || errno == EACCES ? SP_E_DENIED : SP_E_IO,
                       "'%.120s/%s': %s", s->dir, s->name, strerror(errno));
    struct stat st;
    char line[FILE_BYTES_MAX];
    sp_status found = SP_AGAIN;
    ssize_t n = -1;
    if (fstat(fd, &st) != 0) goto close_file;
    if (!is_ours_alone(&st)) {
        found = not_ours(s, &st, err);
        goto close_file;
    }
    n = read(fd, line, sizeof line);
    if (n >= 0) found = take_text(text, s, line, (size_t)n, err);
    sp_wipe(line, sizeof line);
close_file:
    close(fd);
    return found;
}

/* A directory that is not there may be a mount that comes late. */
static sp_status look_anew(char *text, const spot *s, sp_err *err) {
    int dir = open_dir(s);
    if (dir < 0) return SP_AGAIN;
    sp_status st = look(text, dir, s, err);
    close(dir);
    return st;
}

static void wait_ns(int64_t ns) {
    struct timespec t = {.tv_sec = ns / SP_NS_PER_S, .tv_nsec = ns % SP_NS_PER_S};
    nanosleep(&t, NULL);
}

sp_status sp_meeting_file_get(char *text, int64_t deadline_ns, sp_err *err) {
    spot s;
    SP_TRY(find_spot(&s, err));
    int64_t said = sp_now_ns();
    sp_backoff pause;
    sp_backoff_init(&pause, (uint64_t)said ^ (uint64_t)getpid() << 32);
    for (;;) {
        sp_status st = look_anew(text, &s, err);
        if (st != SP_AGAIN) return st;
        int64_t now = sp_now_ns();
        if (now >= deadline_ns)
            return SP_FAIL(err, SP_E_TIMEOUT,
                           "agent 0 left no '%.120s/%s': is that directory shared by all nodes? "
                           "else want --token-file and --head",
                           s.dir, s.name);
        if (sp_meeting_is_stopped())
            return SP_FAIL(err, SP_E_CANCELED, "stopped by a signal while waiting for the head");
        if (now - said >= SAY_NS) {
            sp_info("waiting for agent 0 to leave '%s/%s'", s.dir, s.name);
            said = now;
        }
        int64_t step = sp_backoff_next(&pause), left = deadline_ns - now;
        wait_ns(step < left ? step : left);
    }
}

void sp_meeting_file_end(void) {
    spot s;
    char text[SP_CONTACT_TEXT_MAX];
    sp_err err = {0};
    if (find_spot(&s, &err) != SP_OK) return;
    int dir = open_dir(&s);
    if (dir < 0) return;
    /* Only our own: a file that somebody else put there is somebody else's to remove. */
    if (look(text, dir, &s, &err) == SP_OK && unlinkat(dir, s.name, 0) != 0)
        sp_warn("'%s/%s' holds the pod token and stays: %s", s.dir, s.name, strerror(errno));
    sp_wipe(text, sizeof text);
    close(dir);
}
