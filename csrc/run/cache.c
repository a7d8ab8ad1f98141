/* The kernel cache's directory, names, checksums and size. */
#include "run/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_LIMIT (1LL << 30)
#define MAX_OBJECT (64LL << 20) /* larger files are not ours */
#define ABANDONED_S 3600        /* temporary files older than this belong to nobody */

static const char magic[8] = "magpy-1";

typedef struct {
    char magic[8];
    unsigned char digest[32]; /* SHA-256 of name and content */
} trailer;

/* -- Directory ------------------------------------------------------------------------------------------------------------ */

bool mp_cache_dir(char *out, size_t size)
{
    const char *own = getenv("MAGPY_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (own && *own == '/')
        n = snprintf(out, size, "%s", own);
    else if (own && *own) { /* relative: fixed here, so that a later chdir does not matter to what is told */
        char here[PATH_MAX];
        if (getcwd(here, sizeof here)) n = snprintf(out, size, "%s/%s", here, own);
    } else if (xdg && *xdg == '/') /* the specification says that relative paths are invalid */
        n = snprintf(out, size, "%s/magpy", xdg);
    else if (home && *home == '/')
        n = snprintf(out, size, "%s/.cache/magpy", home);
    return n > 0 && (size_t)n < size;
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700); /* what fails here fails at the last one too */
        *slash = '/';
    }
}

const char *mp_cache_open(const char *dir)
{
    char path[PATH_MAX];
    struct stat info;
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path) return "its path is too long";
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) path[n - 1] = 0; /* "link/" would follow the link */
    if (lstat(path, &info) && errno == ENOENT) {
        make_parents(path);
        mkdir(path, 0700);
    }
    if (lstat(path, &info)) return "it cannot be made";
    if (!S_ISDIR(info.st_mode)) return "it is not a directory";
    if (info.st_uid != geteuid()) return "it belongs to another user";
    if (info.st_mode & (S_IWGRP | S_IWOTH)) return "others may write to it";
    return NULL;
}

/* -- Names and checksums -------------------------------------------------------------------------------------------------- */

/* SHA-256 of two pieces. Returns 0, or -1 with an exception. */
static int sha256(const void *a, size_t n_a, const void *b, size_t n_b, unsigned char out[32])
{
    PyObject *hashlib = PyImport_ImportModule("hashlib"), *done = NULL, *digest = NULL;
    PyObject *hash = hashlib ? PyObject_CallMethod(hashlib, "sha256", "y#", (const char *)a, (Py_ssize_t)n_a) : NULL;
    PyObject *view = hash ? PyMemoryView_FromMemory((char *)b, (Py_ssize_t)n_b, PyBUF_READ) : NULL;
    if (view) done = PyObject_CallMethod(hash, "update", "O", view);
    if (done) digest = PyObject_CallMethod(hash, "digest", NULL);
    int result = digest && PyBytes_Check(digest) && PyBytes_GET_SIZE(digest) == 32 ? 0 : -1;
    if (!result) memcpy(out, PyBytes_AS_STRING(digest), 32);
    if (result && !PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "hashlib.sha256 gave no digest");
    Py_XDECREF(digest);
    Py_XDECREF(done);
    Py_XDECREF(view);
    Py_XDECREF(hash);
    Py_XDECREF(hashlib);
    return result;
}

int mp_cache_name(PyObject *identity, const char *source, char name[MP_CACHE_NAME_SIZE])
{
    Py_ssize_t n;
    const char *text = PyUnicode_AsUTF8AndSize(identity, &n);
    unsigned char digest[32];
    if (!text || sha256(text, (size_t)n + 1, source, strlen(source), digest) < 0)
        return -1; /* the NUL separates the two */
    for (int i = 0; i < 16; i++) snprintf(name + 2 * i, 3, "%02x", digest[i]);
    return 0;
}

/* Read a whole private file. Returns malloc'ed bytes and *size, or NULL. */
static char *read_private(const char *path, size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return NULL;
    struct stat info;
    char *bytes = NULL;
    size_t n = 0;
    bool ours = !fstat(fd, &info) && S_ISREG(info.st_mode) && info.st_uid == geteuid() &&
                !(info.st_mode & (S_IWGRP | S_IWOTH)) && info.st_size > 0 && info.st_size <= MAX_OBJECT;
    if (ours) bytes = malloc((size_t)info.st_size);
    while (bytes && n < (size_t)info.st_size) {
        ssize_t got = read(fd, bytes + n, (size_t)info.st_size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (bytes && n < (size_t)info.st_size) {
        free(bytes);
        bytes = NULL;
    }
    close(fd);
    *size = n;
    return bytes;
}

/* The content of `dir`/NAME`suffix` without its trailer, if that fits: malloc'ed bytes and *size, or NULL. It counts as used now. */
static char *read_sealed(const char *dir, const char *name, const char *suffix, size_t *size)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s%s", dir, name, suffix) >= (int)sizeof path) return NULL;
    char *bytes = read_private(path, size);
    if (!bytes) return NULL;
    trailer found;
    unsigned char digest[32];
    bool whole = *size > sizeof found;
    if (whole) {
        *size -= sizeof found;
        memcpy(&found, bytes + *size, sizeof found);
        whole = !memcmp(found.magic, magic, sizeof magic) && !sha256(name, strlen(name), bytes, *size, digest) &&
                !memcmp(digest, found.digest, sizeof digest);
        PyErr_Clear(); /* without a checksum the file is of no use; it is made again */
    }
    if (whole) {
        utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW);
        return bytes;
    }
    free(bytes);
    return NULL;
}

bool mp_cache_has(const char *dir, const char *name)
{
    size_t size;
    char *bytes = read_sealed(dir, name, ".so", &size);
    free(bytes);
    return bytes != NULL;
}

PyObject *mp_cache_graph(const char *dir, const char *name)
{
    size_t size;
    char *bytes = read_sealed(dir, name, ".graph", &size);
    PyObject *content = bytes ? PyBytes_FromStringAndSize(bytes, (Py_ssize_t)size) : NULL;
    if (!content) mp_error_clear();
    free(bytes);
    return content;
}

int mp_cache_seal(const char *path, const char *name)
{
    size_t size;
    chmod(path, 0600); /* dlopen needs no execute bit; the umask may have left it writable for others */
    char *bytes = read_private(path, &size);
    trailer seal;
    memcpy(seal.magic, magic, sizeof magic);
    int result = bytes ? sha256(name, strlen(name), bytes, size, seal.digest) : -1;
    if (result) PyErr_Clear(); /* not sealed: the caller uses the file without keeping it */
    free(bytes);
    if (result) return -1;
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return -1;
    result = write(fd, &seal, sizeof seal) == (ssize_t)sizeof seal ? 0 : -1;
    return close(fd) ? -1 : result;
}

bool mp_cache_write(const char *path, const char *content, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return false;
    while (size) {
        ssize_t done = write(fd, content, size);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) break;
        content += done;
        size -= (size_t)done;
    }
    return close(fd) == 0 && size == 0;
}

int mp_cache_keep_graph(const char *dir, const char *name, const char *content, size_t size)
{
    static unsigned counter; /* under the GIL */
    char path[PATH_MAX], made[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s.graph", dir, name) >= (int)sizeof path ||
        snprintf(made, sizeof made, "%s.%ld.%u.tmp.graph", path, (long)getpid(), counter++) >= (int)sizeof made)
        return -1;
    bool kept = mp_cache_write(made, content, size) && !mp_cache_seal(made, name) && !rename(made, path);
    if (!kept) unlink(made);
    if (kept) mp_cache_trim(dir, name);
    return kept ? 0 : -1;
}

/* -- Size -------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    char file[MP_CACHE_NAME_SIZE + 64];
    int64_t size, used; /* bytes; seconds */
} entry;

static int older(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    return x->used < y->used ? -1 : x->used > y->used;
}

/* 32 hex digits and then `rest`: a suffix, or a temporary name. Files with other names are left alone. */
static const char *after_name(const char *file)
{
    size_t n = strspn(file, "0123456789abcdef");
    return n == MP_CACHE_NAME_SIZE - 1 ? file + n : NULL;
}

static int64_t limit(void)
{
    const char *text = getenv("MAGPY_CACHE_LIMIT");
    char *end;
    if (!text || !*text) return DEFAULT_LIMIT;
    long long bytes = strtoll(text, &end, 10);
    return *end || bytes < 0 ? DEFAULT_LIMIT : bytes;
}

void mp_cache_trim(const char *dir, const char *keep)
{
    DIR *open_dir = opendir(dir);
    if (!open_dir) return;
    int fd = dirfd(open_dir);
    entry *entries = NULL;
    size_t n = 0, room = 0;
    int64_t total = 0, now = time(NULL), most = limit();
    for (struct dirent *item; (item = readdir(open_dir));) {
        struct stat info;
        const char *rest = after_name(item->d_name);
        if (!rest || fstatat(fd, item->d_name, &info, AT_SYMLINK_NOFOLLOW) || !S_ISREG(info.st_mode)) continue;
        if (strstr(rest, ".tmp.")) {
            if (now - info.st_mtim.tv_sec > ABANDONED_S) unlinkat(fd, item->d_name, 0);
            continue;
        }
        if ((strcmp(rest, ".so") && strcmp(rest, ".c") && strcmp(rest, ".graph")) ||
            strlen(item->d_name) >= sizeof entries->file)
            continue;
        total += info.st_size;
        if (n == room) {
            entry *grown = realloc(entries, (room = room * 2 + 64) * sizeof *grown);
            if (!grown) break;
            entries = grown;
        }
        strcpy(entries[n].file, item->d_name);
        entries[n].size = info.st_size;
        entries[n++].used = info.st_mtim.tv_sec;
    }
    if (total > most && n) qsort(entries, n, sizeof *entries, older);
    for (size_t i = 0; i < n && total > most; i++) {
        if (strncmp(entries[i].file, keep, strlen(keep)) == 0) continue;
        if (!unlinkat(fd, entries[i].file, 0)) total -= entries[i].size;
    }
    free(entries);
    closedir(open_dir);
}
