/* Kernel cache: a private directory of compiled kernels, safe to delete at any time.
**
** NAME.so is the shared object of the source NAME.c, NAME being a hash of source, compiler, flags and CPU. NAME.graph is what lowering
** made of a recorded program (magpy/graph_cache.py), NAME being a hash of all that it depends on. Objects and graphs end in a trailer
** with a checksum of themselves and their name; one that is truncated, damaged, foreign or not ours is not used but made again. Nothing
** is read from a directory that others may write to. Files appear by rename, so that readers and concurrent writers see whole ones.
*/
#ifndef MP_RUN_CACHE_H
#define MP_RUN_CACHE_H
#include "magpy.h"

#define MP_CACHE_NAME_SIZE 33 /* 32 hex digits and NUL */

/* $MAGPY_CACHE_DIR, $XDG_CACHE_HOME/magpy or ~/.cache/magpy. Returns false if there is none (no home). */
bool mp_cache_dir(char *out, size_t size);

/* Make the directory if needed and check that it is private. Returns NULL, or why it cannot be used (static text). */
const char *mp_cache_open(const char *dir);

/* The name for `source` compiled by what `identity` describes. Returns 0, or -1 with an exception. */
int mp_cache_name(PyObject *identity, const char *source, char name[MP_CACHE_NAME_SIZE]);

/* Is `dir`/NAME.so whole and ours? Then it counts as used now. Never fails: what cannot be read is not there. */
bool mp_cache_has(const char *dir, const char *name);

/* The content of `dir`/NAME.graph: owned bytes, or NULL without an exception where there is none that is whole and ours. */
PyObject *mp_cache_graph(const char *dir, const char *name);

/* Write it. Returns 0, or -1 where it could not be kept. */
int mp_cache_keep_graph(const char *dir, const char *name, const char *content, size_t size);

/* Write a new private file. False, perhaps with a part of it written, where that fails. */
bool mp_cache_write(const char *path, const char *content, size_t size);

/* Append the trailer to the file `path`, which is going to be `name`. Returns 0, or -1 with errno or an exception cleared. */
int mp_cache_seal(const char *path, const char *name);

/* Remove what was used least recently until the cache keeps its limit ($MAGPY_CACHE_LIMIT bytes, 1 GiB), and abandoned files. */
void mp_cache_trim(const char *dir, const char *keep);

#endif
