/* What a run draws anew: the calls are made, what they gave becomes inputs of the graph, and generators are put back where the run is
** thrown away.
*/
#include "dispatch/dispatch.h"

#include <string.h>

/* -- The state of Python's own generator ------------------------------------------------------------------------------- */

enum { WORDS = 624 };

typedef struct { /* private to CPython's Modules/_randommodule.c (3.11) */
    PyObject_HEAD int index;
    uint32_t state[WORDS];
} twister;

static PyTypeObject *twister_type; /* _random.Random, owned by the process; NULL: its layout is not what we know */

/* Compare the layout with what the object says of itself. */
static bool known_layout(PyObject *generator, PyTypeObject *type)
{
    PyObject *state = PyObject_CallMethod(generator, "getstate", NULL);
    const twister *inside = (const twister *)generator;
    bool same =
        state && PyTuple_Check(state) && PyTuple_GET_SIZE(state) == WORDS + 1 && type->tp_basicsize == sizeof(twister);
    for (Py_ssize_t i = 0; same && i <= WORDS; i++) {
        unsigned long long word = i < WORDS ? inside->state[i] : (unsigned long long)inside->index;
        same = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(state, i)) == word;
    }
    Py_XDECREF(state);
    return same;
}

static bool is_twister(PyObject *object)
{
    static bool looked;
    if (!looked) {
        looked = true;
        PyObject *type = mp_import("_random", "Random");
        PyObject *one = type ? PyObject_CallFunction(type, "i", 7) : NULL;
        if (one && known_layout(one, (PyTypeObject *)type)) twister_type = (PyTypeObject *)Py_NewRef(type);
        Py_XDECREF(one);
        Py_XDECREF(type);
        PyErr_Clear();
    }
    return twister_type && PyObject_TypeCheck(object, twister_type);
}

/* -- Saving and putting back --------------------------------------------------------------------------------------------- */

struct mp_saved {
    PyObject *keeper; /* borrowed from the trace */
    PyObject *state;  /* owned: what get() gave; a twister's attribute gauss_next, or NULL */
    uint32_t *words;  /* owned: a twister's, then its index; or NULL */
};

static int save(mp_saved *saved)
{
    if (is_twister(saved->keeper)) {
        const twister *inside = (const twister *)saved->keeper;
        if (!(saved->words = PyMem_Malloc((WORDS + 1) * sizeof *saved->words))) return PyErr_NoMemory(), -1;
        memcpy(saved->words, inside->state, WORDS * sizeof *saved->words);
        saved->words[WORDS] = (uint32_t)inside->index;
        saved->state = PyObject_GetAttrString(saved->keeper, "gauss_next");
        if (!saved->state) PyErr_Clear(); /* a generator of another class */
        return 0;
    }
    PyObject *get = PyTuple_Check(saved->keeper) ? PyTuple_GET_ITEM(saved->keeper, 0) : NULL;
    saved->state = get ? PyObject_CallNoArgs(get) : PyObject_CallMethod(saved->keeper, "getstate", NULL);
    return saved->state ? 0 : -1;
}

static int put_back(const mp_saved *saved)
{
    if (saved->words) {
        twister *inside = (twister *)saved->keeper;
        memcpy(inside->state, saved->words, WORDS * sizeof *saved->words);
        inside->index = (int)saved->words[WORDS];
        return saved->state ? PyObject_SetAttrString(saved->keeper, "gauss_next", saved->state) : 0;
    }
    if (!saved->state) return 0;
    PyObject *set = PyTuple_Check(saved->keeper) ? PyTuple_GET_ITEM(saved->keeper, 1) : NULL;
    PyObject *done = set ? PyObject_CallOneArg(set, saved->state)
                         : PyObject_CallMethod(saved->keeper, "setstate", "O", saved->state);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Do two keepers keep one state? */
static bool same_keeper(PyObject *a, PyObject *b)
{
    if (a == b) return true;
    if (!PyTuple_Check(a) || !PyTuple_Check(b)) return false;
    PyObject *x = PyTuple_GET_ITEM(a, 1), *y = PyTuple_GET_ITEM(b, 1);
    return PyObject_RichCompareBool(x, y, Py_EQ) ==
           1; /* methods and partials of one object; else saved twice, which is as good */
}

static int save_state(mp_drawn *drawn, PyObject *keeper)
{
    if (keeper == Py_None) return 0;
    for (uint32_t i = 0; i < drawn->n_saved; i++)
        if (same_keeper(drawn->saved[i].keeper, keeper)) return 0;
    drawn->saved[drawn->n_saved] = (mp_saved){.keeper = keeper};
    return save(&drawn->saved[drawn->n_saved++]);
}

void mp_drawn_keep(const mp_trace *trace, const mp_drawn *drawn)
{
    for (uint32_t i = 0; i < drawn->n_given; i++) {
        const mp_trace_draw *draw = &trace->draws[i];
        if (draw->again) mp_draws_keep(draw->func, draw->args, draw->kwargs, drawn->given[i]);
    }
}

void mp_drawn_undo(mp_drawn *drawn)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (uint32_t i = drawn->n_saved; i-- > 0;)
        if (put_back(&drawn->saved[i]) < 0) {
            mp_log("warning", "the state of a random generator could not be put back after a run that was thrown away");
            PyErr_Clear();
        }
    PyErr_Restore(type, value, traceback);
}

void mp_drawn_end(mp_drawn *drawn)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (uint32_t i = 0; i < drawn->n_saved; i++) {
        Py_XDECREF(drawn->saved[i].state);
        PyMem_Free(drawn->saved[i].words);
    }
    for (uint32_t i = 0; i < drawn->n_made; i++) Py_XDECREF(drawn->made[drawn->n_bound + i]);
    for (uint32_t i = 0; i < drawn->n_given; i++) Py_XDECREF(drawn->given[i]);
    PyMem_Free(drawn->given);
    PyMem_Free(drawn->saved);
    PyMem_Free(drawn->made);
    *drawn = (mp_drawn){0};
    PyErr_Restore(type, value, traceback);
}

/* -- Drawing -------------------------------------------------------------------------------------------------------------- */

PyObject *mp_draw_tensor(PyObject *drawn, PyObject *meta)
{
    static PyObject *make, *make_array; /* owned by the process: magpy.effects.number_tensor, magpy.arrays.drawn */
    if (meta && !make_array) {
        make_array = mp_import("magpy.arrays", "drawn");
        if (!make_array) return NULL;
    }
    if (meta) return PyObject_CallFunctionObjArgs(make_array, drawn, meta, NULL);
    if (!make) {
        make = mp_import("magpy.effects", "number_tensor");
        if (!make) return NULL;
    }
    return PyObject_CallOneArg(make, drawn);
}

bool mp_draw_is_value(PyObject *result) { return result != Py_None && !PyLong_Check(result); } /* bools are ints */

/* `template` with what earlier draws gave. Owned, or NULL with an exception. */
static PyObject *filled(const mp_drawn *drawn, PyObject *template)
{
    uint32_t number = mp_drawn_number(template);
    if (number != MP_NO_DRAW) return Py_NewRef(drawn->given[number]);
    if (!PyTuple_CheckExact(template)) return Py_NewRef(template);
    PyObject *copy = PyTuple_New(PyTuple_GET_SIZE(template));
    for (Py_ssize_t i = 0; copy && i < PyTuple_GET_SIZE(template); i++) {
        PyObject *item = filled(drawn, PyTuple_GET_ITEM(template, i));
        if (item)
            PyTuple_SET_ITEM(copy, i, item);
        else
            Py_CLEAR(copy);
    }
    return copy;
}

bool mp_draw_steps(PyObject *args, PyObject *kwargs)
{
    PyObject *key, *value;
    bool any = false;
    for (Py_ssize_t i = 0; PyTuple_CheckExact(args) && i < PyTuple_GET_SIZE(args); i++)
        any = any || mp_draw_steps(PyTuple_GET_ITEM(args, i), NULL);
    for (Py_ssize_t at = 0; kwargs && PyDict_Next(kwargs, &at, &key, &value);) any = any || mp_draw_steps(value, NULL);
    return any || mp_drawn_number(args) != MP_NO_DRAW;
}

/* Owned, or NULL with an exception. */
static PyObject *call_again(const mp_trace_draw *draw, const mp_drawn *drawn)
{
    if (!draw->steps) return PyObject_Call(draw->func, draw->args, draw->kwargs);
    PyObject *args = filled(drawn, draw->args), *kwargs = args ? PyDict_Copy(draw->kwargs) : NULL, *key, *value;
    PyObject *result = NULL;
    bool good = kwargs != NULL;
    for (Py_ssize_t at = 0; good && PyDict_Next(draw->kwargs, &at, &key, &value);) {
        PyObject *item = filled(drawn, value);
        good = item && PyDict_SetItem(kwargs, key, item) == 0;
        Py_XDECREF(item);
    }
    if (good) result = PyObject_Call(draw->func, args, kwargs);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return result;
}

/* 1 done, 0 another result, 2 another of very many, -1 an exception. */
static int draw_one(const mp_trace_draw *draw, mp_drawn *drawn)
{
    if (save_state(drawn, draw->keeper) < 0) return -1;
    PyObject *result = draw->again ? mp_draws_take(draw->func, draw->args, draw->kwargs) : NULL;
    if (!result) result = call_again(draw, drawn);
    if (!result && draw->steps && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* for what was drawn: the program is to see that of the same */
        return 2;
    }
    if (!result) return -1;
    drawn->given[drawn->n_given++] = result;
    int same = 1;
    if (draw->result)
        same = mp_scalar_same(draw->result, result) ? 1 : mp_draw_is_value(draw->result) ? 2 : 0;
    else if (!draw->meta && !Py_IS_TYPE(result, draw->type))
        same = 0;
    else if (draw->input) {
        PyObject *tensor = mp_draw_tensor(result, draw->meta);
        if (!tensor)
            same = -1;
        else if (tensor == Py_None) {
            Py_DECREF(tensor);
            same = 2;
        } else
            drawn->made[drawn->n_bound + drawn->n_made++] = tensor;
    }
    return same;
}

int mp_draw_all(const mp_trace *trace, PyObject *const *bound, mp_drawn *drawn)
{
    *drawn = (mp_drawn){.inputs = bound, .n_bound = trace->n_inputs};
    if (!trace->n_draws) return 1;
    drawn->made = PyMem_Calloc(trace->n_inputs + trace->n_drawn + 1, sizeof *drawn->made);
    drawn->saved = PyMem_Calloc(trace->n_draws, sizeof *drawn->saved);
    drawn->given = PyMem_Calloc(trace->n_draws, sizeof *drawn->given);
    if (!drawn->made || !drawn->saved || !drawn->given) {
        PyErr_NoMemory();
        return -1;
    }
    if (trace->n_inputs) memcpy(drawn->made, bound, trace->n_inputs * sizeof *bound);
    drawn->inputs = drawn->made;
    int same = 1;
    for (uint32_t i = 0; i < trace->n_draws && same == 1; i++) same = draw_one(&trace->draws[i], drawn);
    return same;
}

void mp_draws_free(mp_trace *trace)
{
    for (uint32_t i = 0; i < trace->n_draws; i++) {
        mp_trace_draw *draw = &trace->draws[i];
        Py_XDECREF(draw->func);
        Py_XDECREF(draw->args);
        Py_XDECREF(draw->kwargs);
        Py_XDECREF(draw->keeper);
        Py_XDECREF(draw->result);
        Py_XDECREF(draw->meta);
    }
    PyMem_Free(trace->draws);
}
