/* Generated C to loaded functions: from the kernel cache, or compiled into it, or compiled beside it. */
#include "run/code.h"

#include "run/cache.h"
#include "run/compiler.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART_SIZE 16000 /* of source text */

struct mp_code {
    void *library;              /* of dlopen */
    char source_path[PATH_MAX]; /* "" if the source is not kept */
};

/* Where one compilation works. Paths of temporary files are unique among processes and threads. */
typedef struct {
    int parts; /* compiled side by side */
    char name[MP_CACHE_NAME_SIZE];
    char c[PATH_MAX], so[PATH_MAX];
} work;

/* -- Files --------------------------------------------------------------------------------------------------------------- */

static bool join(char *out, const char *dir, const char *name, const char *suffix)
{ return snprintf(out, PATH_MAX, "%s/%s%s", dir, name, suffix) < PATH_MAX; }

static mp_code *code_open(const char *path, mp_reason *why)
{
    mp_code *code = calloc(1, sizeof *code);
    if (!code) {
        mp_reason_set(why, MP_REASON_NO_MEMORY, "generated code");
        return NULL;
    }
    code->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (code->library) return code;
    const char *error = dlerror();
    mp_reason_set(why, MP_REASON_COMPILE_FAILED, "%s", error ? error : path);
    free(code);
    return NULL;
}

/* -- Ways ------------------------------------------------------------------------------------------------------------------ */

static mp_code *open_cached(const char *dir, const char *name, mp_reason *why)
{
    char path[PATH_MAX];
    if (!join(path, dir, name, ".so")) return NULL;
    mp_code *code = code_open(path, why);
    if (code && (!join(code->source_path, dir, name, ".c") || access(code->source_path, R_OK)))
        code->source_path[0] = 0;
    return code;
}

/* Compile `source` to w->so. The source file is w->c. Returns 0, -1 with *why set, or 1 if `dir` cannot be written to. */
static int compile_in(const char *dir, work *w, const char *source, int vector_bits, mp_reason *why)
{
    static unsigned counter; /* under the GIL */
    char suffix[64], object[80];
    snprintf(suffix, sizeof suffix, ".%ld.%u.tmp.c", (long)getpid(), counter);
    snprintf(object, sizeof object, ".%ld.%u.tmp.so", (long)getpid(), counter++);
    if (!join(w->c, dir, w->name, suffix) || !join(w->so, dir, w->name, object)) return 1;
    if (!mp_cache_write(w->c, source, strlen(source))) {
        unlink(w->c);
        return 1;
    }
    if (!mp_compiler_run(w->c, w->so, w->parts, vector_bits, why)) return 0;
    unlink(w->c);
    unlink(w->so);
    return -1;
}

/* Compile into the cache. NULL with *why set if that is the end of it, without if the directory is to blame. */
static mp_code *compile_cached(const char *dir, work *w, const char *source, int vector_bits, mp_reason *why)
{
    char so[PATH_MAX], c[PATH_MAX];
    if (!join(so, dir, w->name, ".so") || !join(c, dir, w->name, ".c")) return NULL;
    if (compile_in(dir, w, source, vector_bits, why)) return NULL;
    bool kept = !mp_cache_seal(w->so, w->name) && !rename(w->c, c) && !rename(w->so, so);
    mp_code *code = NULL;
    mp_reason ignored = {0};
    if (kept) {
        code = open_cached(dir, w->name, &ignored);
        mp_cache_trim(dir, w->name);
    }
    unlink(w->c);
    unlink(w->so);
    return code; /* without one: the directory was removed meanwhile, is full, or forbids to execute */
}

/* Compile in a directory of its own that is gone afterwards; the loaded object stays. */
static mp_code *compile_aside(work *w, const char *source, int vector_bits, mp_reason *why)
{
    const char *tmp = getenv("TMPDIR");
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s/magpy-XXXXXX", tmp && *tmp == '/' && strlen(tmp) < PATH_MAX / 2 ? tmp : "/tmp");
    if (!mkdtemp(dir)) {
        mp_reason_set(why, MP_REASON_COMPILE_FAILED, "%s: %s", dir, strerror(errno));
        return NULL;
    }
    mp_code *code = NULL;
    int failed = compile_in(dir, w, source, vector_bits, why);
    if (failed > 0) mp_reason_set(why, MP_REASON_COMPILE_FAILED, "%s cannot be written to", dir);
    if (!failed) {
        code = code_open(w->so, why);
        unlink(w->c);
        unlink(w->so);
    }
    rmdir(dir);
    return code;
}

/* -- The door ---------------------------------------------------------------------------------------------------------------- */

/* How many processes share the work: what a part costs by itself (40 ms: to start, to read what all parts share) is to be small. */
static int count_parts(const char *source, uint32_t sections)
{
    size_t worth = 1 + strlen(source) / PART_SIZE;
    int parts = sections < worth ? (int)sections : (int)worth, cpus = mp_cpu_count();
    return parts < 1 ? 1 : parts < cpus ? parts : cpus;
}

mp_code *mp_code_load(const char *source, uint32_t sections, int vector_bits, mp_reason *why)
{
    static bool told; /* the cache's state is told once, under the GIL */
    work w = {.parts = count_parts(source, sections)};
    char dir[PATH_MAX];
    PyObject *identity = mp_compiler_identity(vector_bits);
    int named = identity ? mp_cache_name(identity, source, w.name) : -1;
    Py_XDECREF(identity);
    if (named < 0) {
        mp_reason_set_exception(why, mp_compiler_usable() ? MP_REASON_COMPILE_FAILED : MP_REASON_NO_COMPILER);
        return NULL;
    }
    const char *trouble = mp_cache_dir(dir, sizeof dir) ? mp_cache_open(dir) : "there is no home directory";
    mp_code *code = NULL;
    mp_reason ignored = {0};
    if (!trouble && mp_cache_has(dir, w.name)) code = open_cached(dir, w.name, &ignored);
    if (!trouble && !code) {
        code = compile_cached(dir, &w, source, vector_bits, why);
        if (!code && why->code == MP_REASON_NONE) trouble = "it cannot be written to or loaded from";
    }
    if (code || why->code != MP_REASON_NONE) return code;
    if (!told) mp_log("warning", "the kernel cache %s is not used: %s", dir, trouble);
    told = true;
    return compile_aside(&w, source, vector_bits, why);
}

void mp_code_free(mp_code *code)
{
    if (!code) return;
    dlclose(code->library);
    free(code);
}

void *mp_code_symbol(const mp_code *code, const char *name) { return code ? dlsym(code->library, name) : NULL; }

const char *mp_code_source_path(const mp_code *code) { return code ? code->source_path : ""; }
