/* Finding and running the C compiler; the CPU it compiles for. */
#include "run/compiler.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_ARGS 64
#define MAX_MESSAGE 2000
#define TIMEOUT_S 120

extern char **environ;

static struct {
    bool searched, found, warned;
    char *command;        /* owned: copy of $CC that `args` points into, or NULL */
    char *args[MAX_ARGS]; /* the compiler and its own arguments ("ccache gcc"); args[0] is a path */
    int n_args;
    char path[4096]; /* of args[0] */
    char identity[2 * 4096 + 100];
} compiler;

/* -- CPU ---------------------------------------------------------------------------------------------------------------- */

int mp_cpu_count(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    return n > 1 ? n : 1;
}

int mp_cpu_vector_bits(void)
{
#if defined(__x86_64__) || defined(__i386__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return 512;
    if (__builtin_cpu_supports("avx2")) return 256;
#endif
    return 128;
}

/* The value of `key` in /proc/cpuinfo's first processor, "" if there is none. */
static void cpuinfo(const char *key, char *out, size_t size)
{
    out[0] = 0;
    FILE *file = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t room = 0;
    while (file && !out[0] && getline(&line, &room, file) > 1) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, strlen(key)) != 0) continue;
        colon += strspn(colon, ": \t");
        colon[strcspn(colon, "\n")] = 0;
        strncat(out, colon, size - 1);
    }
    free(line);
    if (file) fclose(file);
}

PyObject *mp_cpu_info(void)
{
    char model[200];
    cpuinfo("model name", model, sizeof model);
    return Py_BuildValue("{s:s,s:i}", "model", model, "vector_bits", mp_cpu_vector_bits());
}

/* -- Finding -------------------------------------------------------------------------------------------------------------- */

static bool is_program(const char *path)
{
    struct stat info;
    return !stat(path, &info) && S_ISREG(info.st_mode) && !access(path, X_OK);
}

/* Put the path of program `name` into compiler.path: as it is if it has a slash, else searched on PATH. */
static bool find_program(const char *name)
{
    if (strchr(name, '/')) {
        int n = snprintf(compiler.path, sizeof compiler.path, "%s", name);
        return n < (int)sizeof compiler.path && is_program(compiler.path);
    }
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t length = strcspn(path, ":");
        int n = snprintf(compiler.path, sizeof compiler.path, "%.*s/%s", (int)length, path, name);
        /* a relative entry would make the choice depend on the current directory */
        if (*path == '/' && n < (int)sizeof compiler.path && is_program(compiler.path)) return true;
        path += length + (path[length] == ':');
    }
    return false;
}

/* $CC, split at spaces: "ccache gcc -m64" is a program with two arguments. */
static bool find_cc(void)
{
    const char *cc = getenv("CC");
    if (!cc || !*cc || !(compiler.command = strdup(cc))) return false;
    char *rest = NULL;
    for (char *word = strtok_r(compiler.command, " \t", &rest); word && compiler.n_args < MAX_ARGS / 2;
         word = strtok_r(NULL, " \t", &rest))
        compiler.args[compiler.n_args++] = word;
    if (compiler.n_args && find_program(compiler.args[0])) return true;
    compiler.n_args = 0;
    return false;
}

static void find(void)
{
    static char *const names[] = {"cc", "gcc", "clang"};
    compiler.searched = true;
    compiler.found = find_cc();
    for (size_t i = 0; !compiler.found && i < sizeof names / sizeof *names; i++) {
        compiler.found = find_program(names[i]);
        compiler.args[0] = names[i];
        compiler.n_args = 1;
    }
    if (!compiler.found) return;
    compiler.args[0] = compiler.path;
    struct stat info;
    char real[PATH_MAX];
    if (!realpath(compiler.path, real) || stat(real, &info)) memset(&info, 0, sizeof info);
    snprintf(compiler.identity, sizeof compiler.identity, "%s %s %lld %lld.%09ld", compiler.path, real,
             (long long)info.st_size, (long long)info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

bool mp_compiler_usable(void)
{
    if (!compiler.searched) find();
    if (!compiler.found && !compiler.warned) {
        compiler.warned = true;
        mp_log("warning", "no C compiler was found ($CC, cc, gcc, clang on PATH): graphs run operator by operator");
    }
    return compiler.found;
}

/* -- Flags ---------------------------------------------------------------------------------------------------------------- */

/* Arguments after the compiler's own, without file names. Returns how many. */
static int flags(int vector_bits, const char *out[], char *width, size_t width_size)
{
    static const char *const common[] = {
        "-O3",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fopenmp-simd",
        "-std=gnu11",
        "-fPIC",
        "-w",
        "-x",
        "c",
    };
    int n = 0;
    for (size_t i = 0; i < sizeof common / sizeof *common; i++) out[n++] = common[i];
#if defined(__x86_64__) || defined(__i386__)
    out[n++] = "-march=native";
    snprintf(width, width_size, "-mprefer-vector-width=%d", vector_bits == 512 ? 512 : vector_bits == 256 ? 256 : 128);
    out[n++] = width;
#elif defined(__aarch64__)
    out[n++] = "-mcpu=native";
#endif
    return n;
}

static PyObject *make_identity(int vector_bits)
{
    const char *all[32];
    char width[40], model[200], *features = malloc(8192);
    if (!features) return PyErr_NoMemory();
    int n = flags(vector_bits, all, width, sizeof width);
    cpuinfo("model name", model, sizeof model);
    cpuinfo("flags", features, 8192);
    if (!features[0]) cpuinfo("Features", features, 8192);
    PyObject *text = PyUnicode_FromFormat("%s\n%s\n%s\n", compiler.identity, model, features);
    for (int i = 1; text && i < compiler.n_args; i++)
        Py_XSETREF(text, PyUnicode_FromFormat("%U %s", text, compiler.args[i]));
    for (int i = 0; text && i < n; i++) Py_XSETREF(text, PyUnicode_FromFormat("%U %s", text, all[i]));
    free(features);
    return text;
}

PyObject *mp_compiler_identity(int vector_bits)
{
    static struct {
        int vector_bits;
        PyObject *text; /* owned by the process; reading what Linux tells of the CPU takes milliseconds */
    } last;
    if (!mp_compiler_usable()) return PyErr_Format(PyExc_RuntimeError, "no C compiler");
    if (!last.text || last.vector_bits != vector_bits) {
        PyObject *text = make_identity(vector_bits);
        if (!text) return NULL;
        Py_XSETREF(last.text, text);
        last.vector_bits = vector_bits;
    }
    return Py_NewRef(last.text);
}

/* -- Running ---------------------------------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

/* Read what the compiler says until it closes its end. Returns false at the deadline. */
static bool read_messages(int fd, char *message, int64_t deadline)
{
    size_t n = 0;
    for (;;) {
        int64_t left = deadline - now_ms();
        struct pollfd waiting = {fd, POLLIN, 0};
        if (left <= 0) return false;
        int ready = poll(&waiting, 1, (int)left);
        if (ready < 0 && errno != EINTR) return true;
        if (ready <= 0) continue;
        char drain[1024];
        ssize_t got = read(fd, drain, sizeof drain);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return true;
        size_t keep = n + (size_t)got < MAX_MESSAGE ? (size_t)got : MAX_MESSAGE - 1 - n;
        memcpy(message + n, drain, keep);
        message[n += keep] = 0;
    }
}

/* Start argv with stdin closed off and its output in a pipe, in a process group of its own. Returns the pid and *out, or -1 with errno. */
static pid_t start(const char *const *argv, int *out)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) return -1;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    sigset_t none, defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE); /* Python ignores it, and children would inherit that */
    sigaddset(&defaults, SIGCHLD);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    pid_t pid;
    int error = posix_spawn(&pid, argv[0], &actions, &attributes, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(ends[1]);
    *out = ends[0];
    if (!error) return pid;
    close(ends[0]);
    errno = error;
    return -1;
}

/* Wait for `pid` until the deadline. Returns true with *status, or false at the deadline. A child that somebody else has waited for
** (SIGCHLD ignored) counts as successful: the object file tells. */
static bool wait_child(pid_t pid, int *status, int64_t deadline)
{
    for (;;) {
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid) return true;
        if (got < 0 && errno != EINTR) {
            *status = 0;
            return true;
        }
        if (now_ms() >= deadline) return false;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* its output is closed already: it is about to end */
    }
}

/* Leave the line that says what is wrong: the first with "error", else the first. */
static void keep_cause(char message[MAX_MESSAGE])
{
    const char *line = strstr(message, "error");
    if (line)
        while (line > message && line[-1] != '\n') line--;
    else
        line = message;
    size_t n = strcspn(line, "\n");
    memmove(message, line, n);
    message[n] = 0;
}

/* One process of the compiler. */
typedef struct {
    pid_t pid; /* -1: it could not be started */
    int fd;    /* what it says; owned */
} process;

/* Start the compiler with its own arguments, then `args` up to a NULL. Failing leaves the cause in `message`. */
static process run(const char *const *args, char message[MAX_MESSAGE])
{
    const char *argv[2 * MAX_ARGS];
    int n = 0;
    for (; n < compiler.n_args; n++) argv[n] = compiler.args[n];
    while (*args && n < 2 * MAX_ARGS - 1) argv[n++] = *args++;
    argv[n] = NULL;
    process made = {.fd = -1};
    made.pid = start(argv, &made.fd);
    if (made.pid < 0) snprintf(message, MAX_MESSAGE, "%s", strerror(errno));
    return made;
}

/* Wait for a process that is to make `file`, stopping it at the deadline. Returns 0, or -1 with the cause in `message`. */
static int end(process of, const char *file, int64_t deadline, char message[MAX_MESSAGE])
{
    if (of.pid < 0) return -1;
    int status = 0;
    message[0] = 0;
    bool in_time = read_messages(of.fd, message, deadline) && wait_child(of.pid, &status, deadline);
    if (!in_time) {
        kill(-of.pid, SIGKILL);
        waitpid(of.pid, &status, 0);
        snprintf(message, MAX_MESSAGE, "stopped after %d s", TIMEOUT_S);
    }
    close(of.fd);
    if (in_time && WIFEXITED(status) && WEXITSTATUS(status) == 0 && !access(file, R_OK)) return 0;
    keep_cause(message);
    if (!message[0]) snprintf(message, MAX_MESSAGE, "it failed without a message");
    return -1;
}

/* The parts of a source side by side, each into an object file of its own. Returns 0, or -1 with the cause in `message`. */
static int compile_parts(const char *source, char objects[][PATH_MAX], int parts, const char *const *options,
                         int n_options, int64_t deadline, char message[MAX_MESSAGE])
{
    process started[MP_COMPILER_PARTS];
    char causes[MP_COMPILER_PARTS][MAX_MESSAGE];
    int result = 0;
    for (int i = 0; i < parts; i++) {
        const char *args[MAX_ARGS];
        char all[40], this[40];
        memcpy(args, options, (size_t)n_options * sizeof *args);
        snprintf(all, sizeof all, "-DMP_PARTS=%d", parts);
        snprintf(this, sizeof this, "-DMP_PART=%d", i);
        const char *const own[] = {all, this, "-c", source, "-o", objects[i], NULL};
        memcpy(args + n_options, own, sizeof own);
        started[i] = run(args, causes[i]);
    }
    for (int i = 0; i < parts; i++)
        if (end(started[i], objects[i], deadline, causes[i]) < 0 && !result) {
            memcpy(message, causes[i], MAX_MESSAGE);
            result = -1;
        }
    return result;
}

/* Compile once. Returns 0, or -1 with the cause in `message`. */
static int compile_file(const char *source, const char *object, int parts, int vector_bits, char message[MAX_MESSAGE])
{
    const char *args[MAX_ARGS];
    char width[40];
    int n = flags(vector_bits, args, width, sizeof width), result = 0;
    const int64_t deadline = now_ms() + TIMEOUT_S * 1000LL;
    message[0] = 0;
    char objects[MP_COMPILER_PARTS][PATH_MAX];
    if (parts > MP_COMPILER_PARTS) parts = MP_COMPILER_PARTS;
    for (int i = 0; parts > 1 && i < parts; i++)
        if (snprintf(objects[i], PATH_MAX, "%s.%d.o", object, i) >= PATH_MAX) parts = 1;
    if (parts > 1) {
        result = compile_parts(source, objects, parts, args, n, deadline, message);
        n = 0;
        args[n++] = "-shared";
        for (int i = 0; i < parts; i++) args[n++] = objects[i];
    } else {
        args[n++] = "-shared";
        args[n++] = source;
    }
    const char *const rest[] = {"-o", object, "-x", "none", "-lm", NULL}; /* libraries after the source are not C */
    memcpy(args + n, rest, sizeof rest);
    if (!result) result = end(run(args, message), object, deadline, message);
    for (int i = 0; parts > 1 && i < parts; i++) unlink(objects[i]);
    return result;
}

/* Does the compiler compile anything? Asked when a compilation fails and none has succeeded yet. `object` names unused files. */
static bool probe(const char *object, int vector_bits, char message[MAX_MESSAGE])
{
    static const char text[] = "int mp_probe(void) { return 0; }\n";
    char source[PATH_MAX];
    if (snprintf(source, sizeof source, "%s.probe", object) >= (int)sizeof source) return true;
    int fd = open(source, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return true; /* not the compiler's fault */
    bool written = write(fd, text, sizeof text - 1) == (ssize_t)sizeof text - 1;
    bool works = (close(fd) || !written) || compile_file(source, object, 1, vector_bits, message) == 0;
    unlink(source);
    unlink(object);
    return works;
}

int mp_compiler_run(const char *source, const char *object, int parts, int vector_bits, mp_reason *why)
{
    if (!mp_compiler_usable()) {
        mp_reason_set(why, MP_REASON_NO_COMPILER, "$CC, cc, gcc, clang");
        return -1;
    }
    static bool proven; /* under the GIL */
    char message[MAX_MESSAGE], about[MAX_MESSAGE];
    bool works = proven;
    int failed;
    Py_BEGIN_ALLOW_THREADS;
    failed = compile_file(source, object, parts, vector_bits, message);
    if (failed && !works) works = probe(object, vector_bits, about);
    Py_END_ALLOW_THREADS;
    if (!failed || works) proven = true;
    if (!failed) return 0;
    if (works) {
        mp_reason_set(why, MP_REASON_COMPILE_FAILED, "%s: %s", compiler.path, message);
        return -1;
    }
    compiler.found = false;
    mp_reason_set(why, MP_REASON_NO_COMPILER, "%s: %s", compiler.path, message);
    if (!compiler.warned)
        mp_log("warning", "the C compiler %s does not work (%s): graphs run operator by operator", compiler.path,
               message);
    compiler.warned = true;
    return -1;
}
