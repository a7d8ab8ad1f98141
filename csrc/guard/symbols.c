/* Exported symbols of libraries that the process has already mapped. */
#include "guard/program.h"

#include <dlfcn.h>

#include "run/torch_abi.h"

void *guard_symbol(const char *library, const char *name)
{
    void *handle = mp_loaded_library(library);
    return handle ? dlsym(handle, name) : NULL;
}
