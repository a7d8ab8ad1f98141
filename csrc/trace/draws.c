/* Draws: calls that give another result each time (random numbers, the time), which every run makes again before its graph.
**
** What a draw gave is open: an int or float becomes an input of the graph and a number that is data (numbers.h), so that only what the program
** learns of it is checked; other constants must be given again. Arguments are constants or the very objects of the recording. A
** generator whose state a draw moves is named, so that a run that is thrown away puts it back.
*/
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

/* -- Arguments ---------------------------------------------------------------------------------------------------------- */

/* May it be given again in every run: is it a constant, or the very object? */
static bool again(mp_call *call, PyObject *object)
{
    if (mp_key_plain(object)) return true;
    if (!mp_is_container(object) && !mp_is_tensor(object) && mp_rec_ensure(call->rec, object) != MP_NO_OBJ) {
        mp_rec_identity(call->rec, object);
        return true;
    }
    mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE,
                    "gives another result each time, and its arguments may change or were made by the call");
    return false;
}

/* (func, args, kwargs, keeper or None): owned, or NULL with an exception or after abandoning. */
static PyObject *packed(mp_call *call)
{
    PyObject *self = PyCFunction_Check(call->callable) ? PyCFunction_GET_SELF(call->callable) : NULL;
    Py_ssize_t skip = self && call->nargs && call->args[0] == self; /* a bound method of a C object keeps its self */
    PyObject *args = PyTuple_New(call->nargs - skip), *kwargs = args ? PyDict_New() : NULL, *keeper = NULL,
             *data = NULL;
    bool good = kwargs != NULL;
    for (Py_ssize_t i = 0; good && i < call->nargs; i++) {
        good = again(call, call->args[i]);
        if (i >= skip) PyTuple_SET_ITEM(args, i - skip, Py_NewRef(call->args[i]));
    }
    for (Py_ssize_t i = 0; good && i < call->nkw; i++)
        good = again(call, call->kwvalues[i]) &&
               PyDict_SetItem(kwargs, PyTuple_GET_ITEM(call->kwnames, i), call->kwvalues[i]) == 0;
    if (good && PyFunction_Check(call->callable)) {
        mp_function_code(call->rec, call->callable);
        good = again(call, call->callable);
    }
    PyObject *module = good ? PyImport_ImportModule("magpy.effects") : NULL;
    PyObject *first = call->nargs ? call->args[0] : Py_None;
    if (module) keeper = PyObject_CallMethod(module, "keeper", "OO", call->callable, first);
    if (keeper) data = PyTuple_Pack(4, call->callable, args, kwargs, keeper);
    Py_XDECREF(module);
    Py_XDECREF(keeper);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return data;
}

/* -- Results ------------------------------------------------------------------------------------------------------------ */

/* Fits into a tensor of the graph? */
static bool is_number(PyObject *object)
{
    int overflow = 0;
    if (PyFloat_CheckExact(object)) return mp_numbers_ready();
    if (!PyLong_CheckExact(object) || !mp_numbers_ready()) return false;
    (void)PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

static void drawn(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    mp_recording *recording = rec->recording;
    if (!result || rec->why.code || !recording) goto done;
    mp_call call = {.rec = rec, .callable = PyTuple_GET_ITEM(data, 0)};
    bool number = is_number(result);
    if (!number && !mp_is_scalar(result)) {
        mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another object each time, not a number");
        goto done;
    }
    if (!number && result != Py_None && !PyBool_Check(result) && !rec->op_state->accept_values) {
        mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another result at nearly every call");
        goto done;
    }
    mp_value_id value = number ? mp_rec_new_value(rec, UINT32_MAX) : MP_NO_VALUE;
    if (number && value == MP_NO_VALUE) goto done;
    mp_draw *draw = mp_rec_grow(rec, &recording->draws, &recording->n_draws, sizeof *draw);
    if (!draw) goto done;
    *draw = (mp_draw){.func = Py_NewRef(PyTuple_GET_ITEM(data, 0)),
                      .args = Py_NewRef(PyTuple_GET_ITEM(data, 1)),
                      .kwargs = Py_NewRef(PyTuple_GET_ITEM(data, 2)),
                      .keeper = Py_NewRef(PyTuple_GET_ITEM(data, 3)),
                      .result = Py_NewRef(result),
                      .value = value,
                      .site = mp_rec_site(rec)};
    if (number) mp_number_read(rec, slot, value, NULL);
done:
    Py_XDECREF(data);
}

/* A generator that the call has made and seeded: what it gives is a constant of the trace. */
static bool own_generator(mp_call *call)
{
    PyObject *self = call->nargs ? call->args[0] : NULL;
    if (!self || mp_is_scalar(self) || mp_rec_find(call->rec, self) != MP_NO_OBJ) return false;
    PyTypeObject *type = Py_TYPE(self), *base = type->tp_base;
    if (!base || strcmp(base->tp_name, "_random.Random") || strcmp(type->tp_name, "Random")) return false;
    PyObject *name = mp_callable_name(call->callable);
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    size_t n = text ? strlen(text) : 0;
    bool seed = n >= 4 && !strcmp(text + n - 4, "seed");
    PyErr_Clear();
    Py_XDECREF(name);
    return n && (!seed || (call->nargs >= 2 && mp_key_plain(call->args[1]) && call->args[1] != Py_None));
}

void mp_draw_call(mp_call *call)
{
    mp_recorder *rec = call->rec;
    if (own_generator(call)) return; /* what is written in Python shows in frames */
    mp_op_state *state = mp_rec_op_state(rec);
    if (!state || !state->accept_checks) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another result each time");
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *data = packed(call);
    if (data) {
        mp_rec_pend_must(rec, call->frame, drawn, data);
        mp_deferred_begin(rec, call->frame, true);
    } else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "draws"); /* unless there is a reason already */
    mp_restore(kept);
}

/* -- The time ------------------------------------------------------------------------------------------------------------ */

/* data: the clock. After the first operator it is one of the graph itself, so that what lies between two looks at it lies there again. */
static void clocked(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL, *module = NULL, *func = NULL, *args = NULL, *value = NULL;
    if (result && !rec->why.code && rec->recording) {
        module = PyImport_ImportModule("magpy.steps");
        func = module ? PyObject_GetAttrString(module, "clock") : NULL;
        args = func ? Py_BuildValue("(s)", ((PyCFunctionObject *)data)->m_ml->ml_name) : NULL;
        if (args) value = mp_rec_silent_op(rec, Py_NewRef(func), Py_NewRef(args));
        if (value)
            mp_number_read(rec, slot, mp_index_of(value), NULL);
        else
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "draws");
    }
    PyErr_Clear();
    Py_XDECREF(module);
    Py_XDECREF(func);
    Py_XDECREF(args);
    Py_XDECREF(value);
    Py_XDECREF(data);
}

void mp_clock_call(mp_call *call)
{
    mp_recorder *rec = call->rec;
    mp_op_state *state = mp_rec_op_state(rec);
    bool in_graph = state && state->accept_checks && rec->recording && rec->recording->n_ops && !state->muted &&
                    mp_numbers_ready() && PyCFunction_Check(call->callable);
    if (in_graph)
        mp_rec_pend(rec, call->frame, clocked, Py_NewRef(call->callable));
    else
        mp_draw_call(call);
}

bool mp_recording_is_draw(const mp_recording *recording, mp_value_id value)
{
    for (uint32_t i = 0; i < recording->n_draws; i++)
        if (recording->draws[i].value == value) return true;
    return false;
}
