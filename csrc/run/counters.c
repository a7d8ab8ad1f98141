/* Version counters of results that share memory: which of them count together is eager's (magpy/aten_trace.py, counters_of). */
#include "run/torch_abi.h"

#include <string.h>

/* The tensor's counter, an intrusive pointer: NULL where it has none (inference tensors). */
static void *counter_of(mp_handle tensor) { return *(void *const *)mp_torch.version_counter(tensor); }

static void take_counter(mp_handle tensor, mp_handle from)
{
    if (counter_of(tensor) != counter_of(from)) mp_torch.set_version_counter(tensor, mp_torch.version_counter(from));
}

/* A tensor of one element. 0, or -1 with an exception. */
static int make_tensor(mp_handle *made)
{
    int64_t none = 0, one = 1;
    return mp_torch.empty_strided(1, &none, &one, 6, 0, 0, made) ? mp_torch_raise() : 0; /* float, on the CPU */
}

/* Give it a counter that no other tensor has. 0, or -1 with an exception. */
static int own_counter(mp_handle tensor)
{
    mp_handle made;
    if (make_tensor(&made) < 0) return -1;
    if (!counter_of(made)) { /* an inference tensor */
        mp_torch.delete_handle(made);
        PyObject *guard = mp_leave_inference_mode();
        int failed = guard ? make_tensor(&made) : -1;
        if (guard && mp_restore_inference_mode(guard) < 0 && !failed) {
            mp_torch.delete_handle(made);
            failed = -1;
        }
        if (failed) return -1;
    }
    take_counter(tensor, made);
    mp_torch.delete_handle(made);
    return 0;
}

static mp_handle tensor_at(PyObject *number, PyObject *const *inputs, PyObject *const *outputs)
{
    long k = PyLong_AsLong(number);
    PyObject *tensor = k < 0 ? inputs[-1 - k] : outputs[k];
    return tensor && mp_tensor_exact(tensor) && counter_of(mp_tensor_handle(tensor)) ? mp_tensor_handle(tensor) : NULL;
}

/* What shows one memory: the tensors of each group get the counter of its first, which no group before has. */
static int arrange(PyObject *groups, PyObject *const *inputs, PyObject *const *outputs)
{
    for (Py_ssize_t g = 0; g < PyTuple_GET_SIZE(groups); g++) {
        PyObject *group = PyTuple_GET_ITEM(groups, g);
        mp_handle first = tensor_at(PyTuple_GET_ITEM(group, 0), inputs, outputs);
        if (!first) continue;
        for (Py_ssize_t before = 0; before < g; before++) {
            mp_handle other = tensor_at(PyTuple_GET_ITEM(PyTuple_GET_ITEM(groups, before), 0), inputs, outputs);
            if (other && counter_of(other) == counter_of(first) && own_counter(first) < 0) return -1;
        }
        for (Py_ssize_t i = 1; i < PyTuple_GET_SIZE(group); i++) {
            mp_handle member = tensor_at(PyTuple_GET_ITEM(group, i), inputs, outputs);
            if (member) take_counter(member, first);
        }
    }
    return 0;
}

int mp_counters_arrange(PyObject *sets, PyObject *const *inputs, PyObject *const *outputs)
{
    if (mp_torch_load() < 0) return -1;
    if (!mp_torch.version_counter || !mp_torch.set_version_counter || !mp_torch.layout_verified) return 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sets); i++)
        if (arrange(PyTuple_GET_ITEM(sets, i), inputs, outputs) < 0) return -1;
    return 0;
}

/* -- Versions ------------------------------------------------------------------------------------------------------------- */

static struct {
    bool asked;
    int offset; /* of the version in what the intrusive pointer points to, or 0: not as known */
} counter_layout;

/* What _version says: a number, or -1 with an exception. */
static long long asked_version(PyObject *tensor)
{
    PyObject *number = PyObject_GetAttrString(tensor, "_version");
    long long version = number ? PyLong_AsLongLong(number) : -1;
    Py_XDECREF(number);
    return version;
}

/* Does a version lie there, after three changes of a tensor and after one more? */
static bool lies_at(PyObject *tensor, int offset)
{
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < (round ? 1 : 3); i++) {
            PyObject *same = PyObject_CallMethod(tensor, "zero_", NULL);
            if (!same) return false;
            Py_DECREF(same);
        }
        uint32_t found;
        memcpy(&found, (const char *)counter_of(mp_tensor_handle(tensor)) + offset, sizeof found);
        if (found != asked_version(tensor)) return false;
    }
    return true;
}

/* A counter is an intrusive target, whose counts of references take one word or two behind its table of functions, and a number. */
static void find_layout(void)
{
    counter_layout.asked = true;
    PyObject *guard = mp_leave_inference_mode(), *tensor = NULL;
    mp_handle made;
    if (guard && make_tensor(&made) == 0) tensor = mp_tensor_wrap(made);
    if (tensor && counter_of(mp_tensor_handle(tensor))) {
        if (lies_at(tensor, 16))
            counter_layout.offset = 16;
        else if (lies_at(tensor, 24))
            counter_layout.offset = 24;
    }
    Py_XDECREF(tensor);
    if (guard) mp_restore_inference_mode(guard);
    PyErr_Clear(); /* then _version is asked */
}

int mp_counter_version(PyObject *tensor, uint32_t *version)
{
    if (mp_torch.version_counter && mp_torch.layout_verified && PyObject_TypeCheck(tensor, mp_torch.tensor_type)) {
        const void *counter = counter_of(mp_tensor_handle(tensor));
        if (!counter) return 1;
        if (!counter_layout.asked) find_layout();
        if (counter_layout.offset && mp_tensor_exact(tensor)) {
            memcpy(version, (const char *)counter + counter_layout.offset, sizeof *version);
            return 0;
        }
    }
    long long asked = asked_version(tensor);
    *version = (uint32_t)asked;
    if (asked >= 0) return 0;
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) return -1;
    PyErr_Clear(); /* an inference tensor */
    return 1;
}
