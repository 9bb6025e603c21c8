#include "launcher/children.h"

#include "runtime/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

SP_NORETURN static void become(char *const *argv, const int *keep, int n_keep, int boot_fd,
                               pid_t parent) {
    sigset_t reaped;
    sigemptyset(&reaped);
    sigaddset(&reaped, SIGCHLD);
    sigprocmask(SIG_UNBLOCK, &reaped, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < n_keep; i++)
        if (keep[i] >= 0) fcntl(keep[i], F_SETFD, 0);
    fcntl(boot_fd, F_SETFD, 0);
    if (getppid() == parent) execv("/proc/self/exe", argv);
    _exit(SP_EXIT_PEER);
}

sp_status sp_child_start(sp_child *c, const char *word, const sp_boot *boot, const int *keep,
                         int n_keep, char *const *args, sp_err *err) {
    int fd, n_args = 0;
    SP_TRY(sp_boot_write(&fd, boot, err));
    while (args && args[n_args]) n_args++;
    char title[48], fd_text[16];
    snprintf(title, sizeof title, "superpod: %s", c->name);
    snprintf(fd_text, sizeof fd_text, "%d", fd);
    char **argv = sp_alloc((size_t)(n_args + 4) * sizeof *argv);
    argv[0] = title;
    argv[1] = (char *)word;
    argv[2] = fd_text;
    for (int i = 0; i < n_args; i++) argv[3 + i] = args[i];
    pid_t self = getpid(), pid = fork();
    if (pid == 0) become(argv, keep, n_keep, fd, self);
    int saved = errno;
    sp_free(argv);
    close(fd);
    if (pid < 0) return SP_FAIL(err, SP_E_NOMEM, "starting '%s': %s", title, strerror(saved));
    c->pid = pid;
    c->code = 0;
    c->was_started = true;
    return SP_OK;
}

bool sp_child_reap(sp_child *c) {
    int status;
    if (!c->pid || waitpid(c->pid, &status, WNOHANG) != c->pid) return false;
    c->pid = 0;
    c->code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return true;
}

int sp_launcher_watch(const char *source) {
    static const char *const beside[] = {"Open MPI", "PMIx", "Slurm"};
    for (size_t i = 0; i < SP_LEN(beside); i++)
        if (strcmp(source, beside[i]) == 0)
            return (int)syscall(SYS_pidfd_open, getppid(), 0); /* close-on-exec */
    return -1;
}

void sp_child_kill(const sp_child *c, int sig) {
    if (c->pid) kill(c->pid, sig);
}
