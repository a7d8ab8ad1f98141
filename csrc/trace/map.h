/* Hash map from a pointer to a number, open addressing. Keys are compared, never followed. */
#ifndef MP_TRACE_MAP_H
#define MP_TRACE_MAP_H
#include "magpy.h"

#define MP_MAP_NONE UINT32_MAX

typedef struct {
    const void *key; /* NULL: never used */
    uint32_t value;  /* MP_MAP_NONE: removed */
} mp_map_slot;

typedef struct { /* all zero: empty */
    mp_map_slot *slots;
    uint32_t mask, used; /* used counts removed slots too */
} mp_map;

static inline size_t mp_map_hash(const void *key)
{
    uint64_t h = (uint64_t)(uintptr_t)key * 0x9E3779B97F4A7C15u;
    return (size_t)(h >> 24);
}

/* The key's slot, or the free slot where it belongs. The table is not full. */
static inline mp_map_slot *mp_map_slot_of(const mp_map *map, const void *key)
{
    size_t i = mp_map_hash(key) & map->mask;
    while (map->slots[i].key && map->slots[i].key != key) i = (i + 1) & map->mask;
    return &map->slots[i];
}

/* MP_MAP_NONE if absent. */
static inline uint32_t mp_map_get(const mp_map *map, const void *key)
{
    if (!map->slots) return MP_MAP_NONE;
    const mp_map_slot *slot = mp_map_slot_of(map, key);
    return slot->key ? slot->value : MP_MAP_NONE;
}

static inline void mp_map_remove(mp_map *map, const void *key)
{
    if (!map->slots) return;
    mp_map_slot *slot = mp_map_slot_of(map, key);
    if (slot->key) slot->value = MP_MAP_NONE;
}

/* 0, or -1 without memory (no exception set; the map is as before). */
static inline int mp_map_put(mp_map *map, const void *key, uint32_t value)
{
    if (!map->slots || (map->used + 1) * 3 > (map->mask + 1) * 2) {
        uint32_t size = map->slots ? (map->mask + 1) * 2 : 64;
        mp_map bigger = {(mp_map_slot *)PyMem_RawCalloc(size, sizeof(mp_map_slot)), size - 1, 0};
        if (!bigger.slots) return -1;
        for (uint32_t i = 0; map->slots && i <= map->mask; i++) {
            if (!map->slots[i].key || map->slots[i].value == MP_MAP_NONE) continue;
            *mp_map_slot_of(&bigger, map->slots[i].key) = map->slots[i];
            bigger.used++;
        }
        PyMem_RawFree(map->slots);
        *map = bigger;
    }
    mp_map_slot *slot = mp_map_slot_of(map, key);
    if (!slot->key) map->used++;
    slot->key = key;
    slot->value = value;
    return 0;
}

static inline void mp_map_free(mp_map *map)
{
    PyMem_RawFree(map->slots);
    memset(map, 0, sizeof *map);
}

#endif
