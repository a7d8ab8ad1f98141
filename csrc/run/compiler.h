/* Compiler: the C compiler of this machine, found once per process and run without a shell. */
#ifndef MP_RUN_COMPILER_H
#define MP_RUN_COMPILER_H
#include "magpy.h"

/* Is there a compiler that can be run? Looked up at the first call: $CC, then cc, gcc, clang on PATH. Says so once if there is none. GIL held. */
bool mp_compiler_usable(void);

/* What makes two compilations of one source differ: the compiler (path, size, time of its file), the flags, the CPU. Owned str, or NULL with
** an exception. */
PyObject *mp_compiler_identity(int vector_bits);

#define MP_COMPILER_PARTS 16 /* the most that are compiled side by side */

/* Compile the file `source` into the shared object `object`, in `parts` processes side by side: each sees the sections that are its own
** (codegen/codegen.h), and all are linked. Releases the GIL while the compiler runs; gives up after two minutes. Returns 0, or -1 with *why set. */
int mp_compiler_run(const char *source, const char *object, int parts, int vector_bits, mp_reason *why);

/* CPUs that this process may run on, at least 1. */
int mp_cpu_count(void);
/* The vector width to prefer on this CPU: 512, 256 or 128 bits. */
int mp_cpu_vector_bits(void);
/* {"model": str, "vector_bits": int}. Owned, or NULL with an exception. */
PyObject *mp_cpu_info(void);

#endif
