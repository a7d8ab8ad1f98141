/* Memory plan: offsets in the arena by the time values live, and the RELEASE steps after last uses. */
#ifndef MP_FUSE_MEMORY_H
#define MP_FUSE_MEMORY_H
#include "fuse/region.h"

/* Complete `schedule` (steps and arena), its `kernels` (workspaces) and `places` (arena offsets), in `pool`. */
void mp_fuse_place(mp_schedule *schedule, const mp_region *region, mp_kernel *kernels, mp_place *places, mp_pool *pool);

#endif
