/* The extension's own build ID, read from its notes in memory. */
#include "run/build_id.h"

#if defined(__linux__)
#include <link.h>
#include <string.h>

typedef struct {
    const unsigned char *bytes; /* borrowed from the loaded object; NULL: not found */
    size_t n;
} found_id;

static size_t padded(size_t n) { return (n + 3) & ~(size_t)3; }

/* The ID among the notes in [at, end). */
static found_id in_notes(const char *at, const char *end)
{
    while (at + sizeof(ElfW(Nhdr)) <= end) {
        const ElfW(Nhdr) *note = (const void *)at;
        const char *name = at + sizeof *note, *content = name + padded(note->n_namesz);
        if (content > end || note->n_descsz > (size_t)(end - content)) break;
        if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && !memcmp(name, "GNU", 4))
            return (found_id){(const unsigned char *)content, note->n_descsz};
        at = content + padded(note->n_descsz);
    }
    return (found_id){0};
}

/* Callback of dl_iterate_phdr: 1 at the object that holds this function. */
static int find(struct dl_phdr_info *info, size_t size, void *result)
{
    uintptr_t here = (uintptr_t)&find;
    bool holds = false;
    found_id found = {0};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD) holds = holds || (here >= start && here - start < part->p_memsz);
        if (part->p_type == PT_NOTE && !found.bytes)
            found = in_notes((const char *)start, (const char *)start + part->p_memsz);
    }
    if (holds) *(found_id *)result = found;
    return holds;
}

PyObject *mp_build_id(void)
{
    found_id found = {0};
    dl_iterate_phdr(find, &found);
    if (!found.n) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)found.bytes, (Py_ssize_t)found.n);
}
#else
PyObject *mp_build_id(void) { Py_RETURN_NONE; }
#endif
