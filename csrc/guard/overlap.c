/* Memory of inputs: where the program writes to one in place, it must overlap with the others as it did.
**
** The check goes through the inputs in order of address, remembering how far what came before reached: an input that begins before the end
** of another one overlaps it. The order is kept from call to call, so that sorting it again costs nearly nothing. Pairs that did overlap
** when recorded are compared one by one: by the distance of their first elements.
*/
#include "guard/program.h"

#include "trace/ndarray.h"
#include "trace/recorder.h"
#include "trace/tensors.h"

typedef struct {
    mp_obj_id object;
    bool written, array;
    int part;      /* of a sparse tensor: number of the tensor that it consists of, from 1; else 0 */
    void *storage; /* torch's object for its memory, when recorded */
    char *first, *begin, *end;
} span;

struct guard_overlaps {
    span *spans;
    uint32_t n;
    struct pair {
        mp_obj_id a, b;
        int64_t distance; /* from a's first element to b's */
    } *pairs;             /* those that overlapped, at least one of them written to */
    uint32_t n_pairs;
    bool
        apart; /* the graph takes the two for tensors with memory of their own: as they have no storage in common (arrays, sparse tensors, tensors
                of one array), or one is gone */
};

void guard_overlaps_free(struct guard_overlaps *overlaps)
{
    if (!overlaps) return;
    PyMem_Free(overlaps->spans);
    PyMem_Free(overlaps->pairs);
    PyMem_Free(overlaps);
}

/* Where a tensor or array lay that the program has let go of meanwhile. False: unknown. */
static bool locate_gone(const mp_recording *recording, span *s)
{
    const mp_tensor_meta *meta = NULL;
    for (uint32_t i = 0; i < recording->n_reads && !meta; i++)
        if (recording->reads[i].owner == s->object) meta = recording->reads[i].meta;
    if (!meta || !meta->first || s->part) return false;
    s->first = meta->first;
    s->begin = meta->begin;
    s->end = meta->end;
    return true;
}

/* Fill in the spans' memory and sort them by it. False: unknown. recording: NULL where all objects must be there. */
static bool locate(const mp_recording *recording, struct guard_overlaps *overlaps,
                   PyObject *(*object_of)(const void *, mp_obj_id), const void *context)
{
    for (uint32_t i = 0; i < overlaps->n; i++) {
        span *s = &overlaps->spans[i];
        PyObject *tensor = object_of(context, s->object);
        if (!tensor && recording && locate_gone(recording, s)) continue;
        if (tensor && mp_is_array(tensor))
            mp_array_range(tensor, &s->first, &s->begin, &s->end);
        else if (!tensor || !guard_tensor_is(tensor) ||
                 !guard_tensor_part_range(tensor, s->part, &s->first, &s->begin, &s->end))
            return false;
        s->array = tensor && mp_is_array(tensor);
        if (recording && !s->array && !s->part) s->storage = mp_tensor_storage(tensor);
    }
    for (uint32_t i = 1; i < overlaps->n; i++) {
        span s = overlaps->spans[i];
        uint32_t j = i;
        for (; j > 0 && overlaps->spans[j - 1].begin > s.begin; j--) overlaps->spans[j] = overlaps->spans[j - 1];
        overlaps->spans[j] = s;
    }
    return true;
}

static bool overlap(const span *a, const span *b)
{
    if (a->begin == a->end || b->begin == b->end) return false; /* no elements */
    return (a->written || b->written) && a->begin < b->end && b->begin < a->end;
}

/* Call `found` for each overlapping pair. The spans are sorted: no later one begins before this one ends, once one does not. */
static bool each_overlap(struct guard_overlaps *overlaps,
                         bool (*found)(struct guard_overlaps *, const span *, const span *))
{
    for (uint32_t i = 0; i < overlaps->n; i++)
        for (uint32_t j = i + 1; j < overlaps->n && overlaps->spans[j].begin < overlaps->spans[i].end; j++)
            if (overlap(&overlaps->spans[i], &overlaps->spans[j]) &&
                !found(overlaps, &overlaps->spans[i], &overlaps->spans[j]))
                return false;
    return true;
}

static bool remember(struct guard_overlaps *overlaps, const span *a, const span *b)
{
    if (!a->storage || a->storage != b->storage) overlaps->apart = true;
    struct pair *pairs = PyMem_Realloc(overlaps->pairs, (overlaps->n_pairs + 1) * sizeof *pairs);
    if (!pairs) return false;
    overlaps->pairs = pairs;
    pairs[overlaps->n_pairs++] = (struct pair){a->object, b->object, b->first - a->first};
    return true;
}

static bool expected(struct guard_overlaps *overlaps, const span *a, const span *b)
{
    for (uint32_t i = 0; i < overlaps->n_pairs; i++) {
        const struct pair *pair = &overlaps->pairs[i];
        if (pair->a == a->object && pair->b == b->object) return pair->distance == b->first - a->first;
        if (pair->a == b->object && pair->b == a->object) return pair->distance == a->first - b->first;
    }
    return false;
}

static PyObject *recorded_object(const void *recording, mp_obj_id id)
{ return mp_object_get(&((const mp_recording *)recording)->objects[id]); }

int guard_overlaps_new(const mp_recording *recording, struct guard_overlaps **out, mp_reason *why)
{
    *out = NULL;
    bool written = false;
    for (uint32_t i = 0; i < recording->n_inputs && recording->input_mutated; i++)
        written = written || recording->input_mutated[i];
    if (!written) return 0;
    struct guard_overlaps *overlaps = PyMem_Calloc(1, sizeof *overlaps);
    if (overlaps) overlaps->spans = PyMem_Calloc(GUARD_MOST_PARTS * recording->n_inputs, sizeof *overlaps->spans);
    if (!overlaps || !overlaps->spans) goto no_memory;
    for (uint32_t i = 0; i < recording->n_inputs; i++) {
        mp_obj_id id = recording->values[recording->inputs[i]].input;
        PyTypeObject *type = recording->objects[id].type;
        if (type == &PyLong_Type || type == &PyFloat_Type) continue; /* a number */
        PyObject *tensor = recorded_object(recording, id);
        int parts = tensor && guard_tensor_is(tensor) ? guard_tensor_parts(tensor) : 0;
        for (int part = parts > 0; part <= parts; part++)
            overlaps->spans[overlaps->n++] = (span){.object = id, .written = recording->input_mutated[i], .part = part};
    }
    if (!locate(recording, overlaps, recorded_object, recording)) {
        guard_overlaps_free(overlaps);
        mp_reason_set(why, MP_REASON_UNGUARDABLE,
                      "an input is changed in place and the memory of the inputs is not known");
        return -1;
    }
    if (!each_overlap(overlaps, remember)) goto no_memory;
    if (overlaps->apart) {
        guard_overlaps_free(overlaps);
        mp_reason_set(why, MP_REASON_UNGUARDABLE,
                      "an input that is changed in place overlaps another one, which is known to be of the same memory "
                      "by its address alone");
        return -1;
    }
    *out = overlaps;
    return 0;
no_memory:
    guard_overlaps_free(overlaps);
    mp_reason_set(why, MP_REASON_NO_MEMORY, "compiling guards");
    return -1;
}

static PyObject *current_object(const void *current, mp_obj_id id) { return ((PyObject *const *)current)[id]; }

bool guard_overlaps_hold(mp_guard_program *prog, PyObject *const *current)
{
    struct guard_overlaps *overlaps = prog->overlaps;
    if (!locate(NULL, overlaps, current_object, current) || !each_overlap(overlaps, expected)) return false;
    for (uint32_t i = 0; i < overlaps->n_pairs; i++) { /* and those that overlapped still do */
        char *a = NULL, *b = NULL;
        for (uint32_t k = 0; k < overlaps->n; k++) {
            if (overlaps->spans[k].object == overlaps->pairs[i].a) a = overlaps->spans[k].first;
            if (overlaps->spans[k].object == overlaps->pairs[i].b) b = overlaps->spans[k].first;
        }
        if (b - a != overlaps->pairs[i].distance) return false;
    }
    return true;
}
