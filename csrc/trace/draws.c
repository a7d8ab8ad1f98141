/* Draws: calls that give another result each time (random numbers, the time), which every run makes again before its graph.
**
** What a draw gave is open: an int or float becomes an input of the graph and a number that is data (numbers.h), text and the like a value
** that was drawn (drawn.h), so that only what the program learns of it is checked. Arguments are constants or the very objects of the recording. A
** generator whose state a draw moves is named, so that a run that is thrown away puts it back.
*/
#include "observe/observe.h"
#include "trace/arrays.h"
#include "trace/drawn.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

/* -- Arguments ---------------------------------------------------------------------------------------------------------- */

/* What every run is to give again: a constant (of lists and arrays of constants, a copy as they are now), or the very object. Owned, or NULL
** after abandoning. */
static PyObject *again(mp_call *call, PyObject *object)
{
    uint32_t draw = mp_number_drawn(call->rec, object);
    if (draw != MP_NO_DRAW) return mp_drawn_new(draw);
    if (mp_key_plain(object)) return Py_NewRef(object);
    bool several = PyList_CheckExact(object) || PyTuple_CheckExact(object) || mp_is_array(object);
    if (several && !mp_has_tensor(object)) {
        PyObject *copy = mp_call_imported("magpy.arrays", "kept", "(O)", object);
        PyErr_Clear();
        if (copy && copy != Py_None) {
            mp_number_settle_inside(call->rec, object);
            mp_effect_read(call, object, true); /* elements that are data are looked at */
            return copy;
        }
        Py_XDECREF(copy);
    }
    if (!mp_is_container(object) && !mp_is_tensor(object) && mp_rec_ensure(call->rec, object) != MP_NO_OBJ) {
        mp_rec_identity(call->rec, object);
        return Py_NewRef(object);
    }
    mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE,
                    "gives another result each time, and its arguments may change or were made by the call");
    return NULL;
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
        PyObject *item = again(call, call->args[i]);
        good = item != NULL;
        if (item && i >= skip)
            PyTuple_SET_ITEM(args, i - skip, item);
        else
            Py_XDECREF(item);
    }
    for (Py_ssize_t i = 0; good && i < call->nkw; i++) {
        PyObject *name = PyTuple_GET_ITEM(call->kwnames, i), *item = again(call, call->kwvalues[i]);
        bool out = PyUnicode_CompareWithASCIIString(name, "out") == 0 && call->kwvalues[i] != Py_None;
        if (out) mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "writes into an array");
        good = item && !out && PyDict_SetItem(kwargs, name, item) == 0;
        Py_XDECREF(item);
    }
    if (good && PyFunction_Check(call->callable)) {
        mp_function_code(call->rec, call->callable);
        PyObject *function = again(call, call->callable);
        good = function != NULL;
        Py_XDECREF(function);
    }
    PyObject *first = call->nargs ? call->args[0] : Py_None;
    if (good) keeper = mp_call_imported("magpy.effects", "keeper", "(OO)", call->callable, first);
    if (keeper) data = PyTuple_Pack(4, call->callable, args, kwargs, keeper);
    Py_XDECREF(keeper);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return data;
}

/* -- Results ------------------------------------------------------------------------------------------------------------ */

/* Append a draw, whose result (borrowed) is graph input `value`, or is to be given again. meta: stolen, an array's or NULL. NULL after
** abandoning. */
static mp_draw *append(mp_recorder *rec, PyObject *data, PyObject *result, mp_value_id value, PyObject *meta)
{
    mp_recording *recording = rec->recording;
    bool again = rec->op_state && rec->op_state->muted; /* when the graph is made */
    if (again) mp_rec_abandon(rec, MP_REASON_EFFECT, "the forward of an autograd.Function draws");
    mp_draw *draw = again ? NULL : mp_rec_grow(rec, &recording->draws, &recording->n_draws, sizeof *draw);
    if (!draw) {
        Py_XDECREF(meta);
        return NULL;
    }
    *draw = (mp_draw){.func = Py_NewRef(PyTuple_GET_ITEM(data, 0)),
                      .args = Py_NewRef(PyTuple_GET_ITEM(data, 1)),
                      .kwargs = Py_NewRef(PyTuple_GET_ITEM(data, 2)),
                      .keeper = Py_NewRef(PyTuple_GET_ITEM(data, 3)),
                      .result = Py_NewRef(result),
                      .meta = meta,
                      .value = value,
                      .site = mp_rec_site(rec)};
    return draw;
}

uint32_t mp_draw_append(mp_recorder *rec, PyObject *data, PyObject *result, bool open)
{
    mp_draw *draw = rec->recording ? append(rec, data, result, MP_NO_VALUE, NULL) : NULL;
    if (!draw) return MP_NO_DRAW;
    draw->open = open;
    return rec->recording->n_draws - 1;
}

/* The draw has given `array`, or has set its elements anew (drawn NULL). */
static void drawn_array(mp_recorder *rec, PyObject *data, PyObject *array, PyObject *drawn)
{
    bool fresh = drawn && mp_rec_find(rec, array) == MP_NO_OBJ && mp_array_is_new(rec, array);
    PyObject *meta = (fresh || !drawn) && mp_array_plain(array) ? mp_array_meta(array) : NULL;
    PyObject *copy = meta ? PyObject_CallMethod(array, "copy", "s", "K") : NULL;
    mp_value_id value = copy ? mp_rec_new_value(rec, UINT32_MAX) : MP_NO_VALUE;
    if (value == MP_NO_VALUE) {
        Py_XDECREF(meta);
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "random elements of a type that torch does not have");
    } else {
        append(rec, data, copy, value, meta);
        PyObject *stored = drawn ? NULL : mp_value_new(value);
        if (drawn)
            mp_array_bind(rec, array, value);
        else if (stored)
            mp_array_store(rec, array, stored);
        Py_XDECREF(stored);
    }
    Py_XDECREF(copy);
    PyErr_Clear();
}

void mp_draw_array(mp_recorder *rec, PyObject *data, PyObject *array) { drawn_array(rec, data, array, array); }

static void drawn(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    mp_recording *recording = rec->recording;
    uint32_t draw = UINT32_MAX; /* its number, if it becomes one */
    bool again = false;
    if (!result || rec->why.code || !recording) goto done;
    mp_call call = {.rec = rec, .callable = PyTuple_GET_ITEM(data, 0)};
    const mp_effect *effect = mp_effect_of(call.callable);
    again = PyTuple_GET_ITEM(data, 3) == Py_None && (!effect || effect->effect != MP_EFFECT_CLOCK);
    PyObject *before =
        again ? mp_draws_take(call.callable, PyTuple_GET_ITEM(data, 1), PyTuple_GET_ITEM(data, 2)) : NULL;
    draw = recording->n_draws;
    if (before) {
        Py_SETREF(*slot, before);
        result = before;
    }
    bool number = mp_numbers_ready() && mp_number_fits(result);
    if (mp_is_array(result)) {
        drawn_array(rec, data, result, result);
        goto done;
    }
    if (!number && !mp_drawn_given(rec, data, slot))
        mp_call_abandon(&call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another object each time, not a number or text");
    if (!number) goto done;
    mp_value_id value = mp_rec_new_value(rec, UINT32_MAX);
    if (value == MP_NO_VALUE) goto done;
    append(rec, data, result, value, NULL);
    mp_number_read(rec, slot, value, NULL);
done:
    if (recording && recording->n_draws > draw) recording->draws[draw].again = again;
    Py_XDECREF(data);
}

/* A generator that the call has made and seeded: what it gives is a constant of the trace. */
static bool own_generator(mp_call *call)
{
    PyObject *self = call->nargs ? call->args[0] : NULL;
    if (!self || mp_is_scalar(self) || mp_rec_find(call->rec, self) != MP_NO_OBJ) return false;
    PyTypeObject *type = Py_TYPE(self), *base = type->tp_base;
    if (!strcmp(type->tp_name, "numpy.random.mtrand.RandomState") ||
        !strcmp(type->tp_name, "numpy.random._generator.Generator")) { /* see mp_handle_numpy_generator */
        for (Py_ssize_t i = 1; i < call->nargs; i++) mp_effect_read(call, call->args[i], true);
        for (Py_ssize_t i = 0; i < call->nkw; i++) mp_effect_read(call, call->kwvalues[i], true);
        mp_effect_check_result(call);
        if (mp_array_call_is_plain(call)) mp_deferred_silent(call->rec, call->frame);
        return true;
    }
    if (!base || strcmp(base->tp_name, "_random.Random") || strcmp(type->tp_name, "Random")) return false;
    PyObject *name = mp_callable_name(call->callable);
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    size_t n = text ? strlen(text) : 0;
    bool seed = n >= 4 && !strcmp(text + n - 4, "seed");
    PyErr_Clear();
    Py_XDECREF(name);
    return n && (!seed || (call->nargs >= 2 && mp_key_plain(call->args[1]) && call->args[1] != Py_None));
}

/* Does it look at the file system? */
static bool looks_at_files(mp_call *call)
{
    const mp_effect *effect = mp_effect_of(call->callable);
    return effect && effect->name && (!strcmp(effect->name, "os.path") || !strcmp(effect->name, "posix"));
}

void mp_draw_call(mp_call *call)
{
    mp_recorder *rec = call->rec;
    if (own_generator(call)) return; /* what is written in Python shows in frames */
    if (mp_deferred_files(rec) && looks_at_files(call)) {
        mp_call_abandon(call, MP_REASON_EFFECT, "looks at files after one was written");
        return;
    }
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

bool mp_draw_takes(mp_call *call, const mp_effect *effect)
{
    if (effect->handler == mp_handle_shuffle_list || effect->handler == mp_handle_shuffle) return true;
    bool drawn = effect->effect == MP_EFFECT_OPAQUE && call->nkw == 0;
    for (Py_ssize_t i = 0; drawn && i < call->nargs; i++) {
        PyObject *arg = call->args[i];
        drawn = mp_number_is(call->rec, arg) ? mp_number_is_drawn(call->rec, arg) : mp_is_scalar(arg);
    }
    return drawn && !mp_deferred_files(call->rec);
}

/* The call has not changed the list before. */
static bool is_untouched(PyObject *list, void *rec) { return mp_rec_find(rec, list) == MP_NO_OBJ; }

static PyObject *iterator_state(PyObject *module, PyObject *iterator) { return mp_iterator_state(iterator); }

static PyObject *set_iterator_state(PyObject *module, PyObject *args)
{
    PyObject *iterator, *state;
    if (!PyArg_ParseTuple(args, "OO!:_set_iterator_state", &iterator, &PyTuple_Type, &state)) return NULL;
    if (!PyTuple_GET_SIZE(state) || PyTuple_GET_ITEM(state, 0) != iterator)
        return PyErr_Format(PyExc_ValueError, "the state of another iterator");
    if (mp_iterator_set_state(state) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_iterator_state", iterator_state, METH_O, "_iterator_state(iterator) -> tuple: how far an iterator of C is."},
    {"_set_iterator_state", set_iterator_state, METH_VARARGS,
     "_set_iterator_state(iterator, state): put it back to where _iterator_state said."},
    {NULL},
};

int mp_draws_module_init(PyObject *module) { return PyModule_AddFunctions(module, functions); }

/* The data of the draw that next(iterator) is: owned, or NULL without an exception: it is none such. */
static PyObject *next_draw(mp_recorder *rec, PyObject *iterator)
{
    mp_op_state *state = mp_rec_op_state(rec);
    if (!state || !state->accept_checks || state->muted) return NULL;
    PyObject *module = NULL, *func = NULL, *keeper = NULL, *args = NULL, *keywords = NULL, *data = NULL;
    if (mp_iterator_plain(iterator, is_untouched, rec)) {
        mp_rec_identity(rec, iterator);
        module = PyImport_ImportModule("magpy.effects");
        func = module ? PyObject_GetAttrString(module, "advanced") : NULL;
        keeper = func ? PyObject_CallMethod(module, "place_in", "O", iterator) : NULL;
        args = keeper ? PyTuple_Pack(1, iterator) : NULL;
        keywords = args ? PyDict_New() : NULL;
        data = keywords ? PyTuple_Pack(4, func, args, keywords, keeper) : NULL;
    }
    PyErr_Clear();
    Py_XDECREF(module);
    Py_XDECREF(func);
    Py_XDECREF(keeper);
    Py_XDECREF(args);
    Py_XDECREF(keywords);
    return data;
}

bool mp_draw_next(mp_call *call, PyObject *iterator)
{
    mp_kept kept = mp_keep();
    PyObject *data = next_draw(call->rec, iterator);
    if (data) {
        mp_rec_pend_must(call->rec, call->frame, drawn, data);
        mp_deferred_begin(call->rec, call->frame, true);
    }
    mp_restore(kept);
    return data != NULL;
}

/* -- Loops over outside iterators ------------------------------------------------------------------------------------------ */

static bool is_walk(PyObject *iterator)
{
    PyTypeObject *type = Py_TYPE(iterator);
    return type == &PyRangeIter_Type || type == &PyLongRangeIter_Type || type == &PyTupleIter_Type ||
           type == &PyListIter_Type;
}

bool mp_draw_walks(mp_recorder *rec, PyObject *iterator)
{
    mp_op_state *state = mp_rec_op_state(rec);
    mp_obj_id id = mp_rec_find(rec, iterator);
    if (id == MP_NO_OBJ || !rec->recording || rec->recording->objects[id].root != MP_ROOT_NONE)
        return false; /* an argument is another iterator at each call */
    return state && state->accept_checks && !state->muted && mp_iterator_plain(iterator, is_untouched, rec);
}

/* The loop ends here: every run asks whether it does, and the iterator notices it at the commit. */
static void loop_ends(mp_recorder *rec, PyObject *iterator)
{
    PyObject *module = PyImport_ImportModule("magpy.effects"), *args = PyTuple_Pack(1, iterator), *data = NULL;
    PyObject *ended = module ? PyObject_GetAttrString(module, "at_end") : NULL, *keywords = PyDict_New();
    PyObject *end = ended ? PyObject_GetAttrString(module, "end") : NULL, *call = NULL;
    if (end && args && keywords) data = PyTuple_Pack(4, ended, args, keywords, Py_None);
    if (data) call = Py_BuildValue("(OO())", args, keywords);
    if (call) {
        mp_rec_identity(rec, iterator);
        append(rec, data, Py_True, MP_NO_VALUE, NULL);
        mp_rec_effect(rec, end, call);
    } else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "draws");
    PyErr_Clear();
    Py_XDECREF(module);
    Py_XDECREF(args);
    Py_XDECREF(data);
    Py_XDECREF(ended);
    Py_XDECREF(keywords);
    Py_XDECREF(end);
    Py_XDECREF(call);
}

bool mp_draw_loop(mp_recorder *rec, const mp_frame *frame, PyObject *iterator)
{
    if (!mp_draw_walks(rec, iterator)) return false;
    mp_kept kept = mp_keep();
    PyObject *data = NULL;
    bool at_end = is_walk(iterator) && PyObject_LengthHint(iterator, 0) == 0; /* none of the program's code */
    bool good = at_end && mp_iterator_plain(iterator, is_untouched, rec);
    if (good)
        loop_ends(rec, iterator);
    else if (!at_end && (data = next_draw(rec, iterator)))
        mp_rec_pend_must(rec, frame, drawn, data);
    PyErr_Clear();
    mp_restore(kept);
    return good || data;
}

/* A population of which it does not matter which object it is: numbers, or characters. */
static bool is_of_numbers(PyObject *population)
{
    if (PyRange_Check(population) || PyUnicode_CheckExact(population)) return true;
    if (!PyList_CheckExact(population) && !PyTuple_CheckExact(population)) return false;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(population); i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(population, i);
        if (!PyLong_CheckExact(item) && !PyFloat_CheckExact(item)) return false;
    }
    return true;
}

/* Random.sample(population, k), choices, choice: of other things than numbers the frame shows which ones are drawn. */
void mp_handle_sample(mp_call *call)
{
    PyObject *name = PyFunction_Check(call->callable) ? ((PyFunctionObject *)call->callable)->func_name : NULL;
    bool one =
        name && PyUnicode_CompareWithASCIIString(name, "choice") == 0; /* a character decides more often than not */
    if (call->nargs >= 2 && is_of_numbers(call->args[1]) && !(one && PyUnicode_Check(call->args[1])))
        mp_draw_call(call);
}

static bool is_of_random(PyTypeObject *type, const char *name)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "random");
    return module && PyModule_Check(module) && PyDict_GetItemString(PyModule_GetDict(module), name) == (PyObject *)type;
}

/* A generator without code of the program's. */
static bool is_plain_generator(PyObject *generator)
{
    static const char *const names[] = {"Random", "SystemRandom"};
    PyTypeObject *type = Py_TYPE(generator);
    if (!strncmp(type->tp_name, "numpy.random.", 13)) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(type->tp_name, names[i]) && is_of_random(type, names[i])) return true;
    return false;
}

/* data: the draw, then the list, which has been shuffled. */
static void list_shuffled(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_kept kept = mp_keep();
    if (slot && !mp_rec_abandoned(rec)) mp_drawn_order(rec, data, PyTuple_GET_ITEM(data, 4));
    Py_DECREF(data);
    mp_restore(kept);
}

/* generator.shuffle(list), by Python or numpy: every run shuffles the items, which are drawn from then on. Of a list of other things than constants and
** drawn values the frame shows how they are moved, if there is one. */
void mp_handle_shuffle_list(mp_call *call)
{
    mp_recorder *rec = call->rec;
    PyObject *list = call->nargs == 2 && !call->nkw ? call->args[1] : NULL;
    if (!list || !PyList_CheckExact(list) || !is_plain_generator(call->args[0]) || own_generator(call)) return;
    mp_op_state *state = mp_rec_op_state(rec);
    if (!state || !state->accept_checks || state->muted || PyList_GET_SIZE(list) < 2) return;
    bool drawn = false;
    mp_kept kept = mp_keep();
    PyObject *items = PyList_AsTuple(list), *keywords = PyDict_New(), *func = mp_import("magpy.effects", "reordered");
    PyObject *keeper = NULL, *args = NULL, *data = NULL;
    PyObject *templates = items ? mp_drawn_operand(rec, items, &drawn) : NULL;
    PyObject *generator = templates ? again(call, call->args[0]) : NULL;
    if (generator && func) keeper = mp_call_imported("magpy.effects", "keeper", "(OO)", call->callable, call->args[0]);
    if (keeper) args = PyTuple_Pack(3, call->callable, generator, templates);
    if (args && keywords) data = PyTuple_Pack(5, func, args, keywords, keeper, list);
    if (data) {
        mp_rec_own(rec, list);
        if (PyFunction_Check(call->callable)) mp_function_code(rec, call->callable);
        mp_rec_pend_must(rec, call->frame, list_shuffled, data);
        mp_deferred_silent(rec, call->frame);
    }
    PyErr_Clear();
    Py_XDECREF(items);
    Py_XDECREF(keywords);
    Py_XDECREF(func);
    Py_XDECREF(keeper);
    Py_XDECREF(args);
    Py_XDECREF(templates);
    Py_XDECREF(generator);
    mp_restore(kept);
}

void mp_draw_within(mp_call *call, PyObject *around)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    PyObject *nothing = PyTuple_New(0), *keywords = PyDict_New(), *args = NULL, *data = NULL;
    if (nothing && keywords) args = PyTuple_Pack(3, call->callable, nothing, keywords);
    if (args) data = PyTuple_Pack(4, around, args, keywords, Py_None);
    if (data && state && state->accept_checks && !state->muted && mp_numbers_ready()) {
        mp_rec_pend_must(call->rec, call->frame, drawn, Py_NewRef(data));
        mp_deferred_silent(call->rec, call->frame);
    } else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "gives text that follows from more than its arguments");
    Py_XDECREF(nothing);
    Py_XDECREF(keywords);
    Py_XDECREF(args);
    Py_XDECREF(data);
}

/* numpy.random.RandomState(seed), default_rng(seed): a generator of the call's own. */
void mp_handle_numpy_generator(mp_call *call)
{
    bool seeded = call->nargs == 1 && !call->nkw && call->args[0] != Py_None && mp_key_plain(call->args[0]);
    if (seeded) {
        mp_effect_check_result(call);
        mp_deferred_silent(call->rec, call->frame);
    } else
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another generator each time");
}

/* data: the draw, then the array, which has been shuffled. */
static void shuffled(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_kept kept = mp_keep();
    if (slot && !mp_rec_abandoned(rec)) drawn_array(rec, data, PyTuple_GET_ITEM(data, 4), NULL);
    Py_DECREF(data);
    mp_restore(kept);
}

/* generator.shuffle(array): every run shuffles a copy of the array as it was, which is data from then on. */
void mp_handle_shuffle(mp_call *call)
{
    mp_recorder *rec = call->rec;
    mp_op_state *state = mp_rec_op_state(rec);
    PyObject *array = call->nargs == 2 && !call->nkw && mp_is_array(call->args[1]) ? call->args[1] : NULL;
    if (call->nargs == 2 && PyList_CheckExact(call->args[1])) {
        mp_handle_shuffle_list(call);
        mp_rec_frame *entry = mp_rec_frame_of(rec, call->frame);
        if (mp_rec_abandoned(rec) || (entry && entry->pending)) return;
    }
    if (array && !mp_array_is_data(rec, array) && own_generator(call)) return; /* still a constant */
    if (!state || !state->accept_checks || state->muted || !array || mp_array_is_data(rec, array)) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "shuffles something else than an array of constants");
        return;
    }
    mp_kept kept = mp_keep();
    PyObject *func = mp_import("magpy.arrays", "shuffled"), *draw = func ? packed(call) : NULL;
    PyObject *args = NULL, *data = NULL;
    if (draw && PyTuple_GET_SIZE(PyTuple_GET_ITEM(draw, 1)) == 2)
        args = PyTuple_Pack(3, call->callable, PyTuple_GET_ITEM(PyTuple_GET_ITEM(draw, 1), 0),
                            PyTuple_GET_ITEM(PyTuple_GET_ITEM(draw, 1), 1));
    if (args) data = PyTuple_Pack(5, func, args, PyTuple_GET_ITEM(draw, 2), PyTuple_GET_ITEM(draw, 3), array);
    if (data) {
        mp_rec_pend_must(rec, call->frame, shuffled, data);
        mp_deferred_begin(rec, call->frame, true);
    } else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "draws"); /* unless there is a reason already */
    Py_XDECREF(func);
    Py_XDECREF(draw);
    Py_XDECREF(args);
    mp_restore(kept);
}

/* -- What lies on disk ----------------------------------------------------------------------------------------------------- */

void mp_draw_witness(mp_call *call, const char *witness, PyObject *args)
{
    mp_recorder *rec = call->rec;
    mp_op_state *state = mp_rec_op_state(rec);
    if (mp_deferred_files(rec)) {
        mp_call_abandon(call, MP_REASON_EFFECT, "looks at files after one was written");
        return;
    }
    if (!state || !state->accept_checks || !state->accept_values) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "what it reads is another at nearly every call");
        return;
    }
    PyObject *func = mp_import("magpy.effects", witness), *keywords = PyDict_New();
    PyObject *data = func && keywords && args ? PyTuple_Pack(4, func, args, keywords, Py_None) : NULL;
    PyObject *seen = data ? PyObject_Call(func, args, NULL) : NULL;
    if (seen == Py_None)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of what is not there or no plain file");
    else if (seen)
        append(rec, data, seen, MP_NO_VALUE, NULL);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "files");
    PyErr_Clear();
    Py_XDECREF(keywords);
    Py_XDECREF(func);
    Py_XDECREF(data);
    Py_XDECREF(seen);
}

/* -- The time ------------------------------------------------------------------------------------------------------------ */

/* The clock is read by an operator of the graph, so that what lies between two looks at it lies there again. Its value, or MP_NO_VALUE after
** abandoning. */
static mp_value_id clock_operator(mp_recorder *rec, const char *name)
{
    PyObject *func = mp_import("magpy.steps", "clock");
    PyObject *args = func ? Py_BuildValue("(s)", name) : NULL;
    PyObject *value = args ? mp_rec_silent_op(rec, Py_NewRef(func), Py_NewRef(args)) : NULL;
    mp_value_id id = value ? mp_index_of(value) : MP_NO_VALUE;
    if (!value) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "draws");
    PyErr_Clear();
    Py_XDECREF(func);
    Py_XDECREF(args);
    Py_XDECREF(value);
    return id;
}

static void clocked(mp_recorder *rec, PyObject *data, PyObject **slot) /* data: the clock */
{
    if (slot && *slot && !rec->why.code && rec->recording) {
        mp_value_id value = clock_operator(rec, ((PyCFunctionObject *)data)->m_ml->ml_name);
        if (value != MP_NO_VALUE) mp_number_read(rec, slot, value, NULL);
    }
    Py_XDECREF(data);
}

/* Is the clock to be read by the graph? Not before its first operator. */
static bool clock_in_graph(mp_recorder *rec)
{
    mp_op_state *state = mp_rec_op_state(rec);
    return state && state->accept_checks && rec->recording && rec->recording->n_ops && !state->muted &&
           mp_numbers_ready();
}

void mp_clock_call(mp_call *call)
{
    if (clock_in_graph(call->rec) && PyCFunction_Check(call->callable))
        mp_rec_pend(call->rec, call->frame, clocked, Py_NewRef(call->callable));
    else
        mp_draw_call(call);
}

/* data: (func, args, kwargs, None) of the call; the clock's name, and what makes the moment of what that gives in a graph. */
static void moment_given(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    mp_kept kept = mp_keep();
    if (result && !mp_rec_abandoned(rec) && rec->recording) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(data, 4));
        mp_value_id value = name && clock_in_graph(rec) ? clock_operator(rec, name) : MP_NO_VALUE;
        if (value != MP_NO_VALUE)
            mp_number_object(rec, result, value, PyTuple_GET_ITEM(data, 5));
        else if (!mp_rec_abandoned(rec))
            mp_drawn_given(rec, data, slot);
    }
    Py_DECREF(data);
    mp_restore(kept);
}

/* datetime.now() and the like, of the classes of the standard library: the moment is made of what the clock gives to the run. */
void mp_handle_moment(mp_call *call)
{
    mp_recorder *rec = call->rec;
    mp_op_state *state = mp_rec_op_state(rec);
    PyObject *type = call->nargs ? call->args[0] : NULL, *zone = Py_None;
    if (call->nargs == 2)
        zone = call->args[1];
    else if (call->nargs == 1 && call->nkw == 1)
        zone = call->kwvalues[0]; /* another name than tz raises */
    bool known = call->nargs + call->nkw <= 2 && type && PyType_Check(type) && state && state->accept_checks &&
                 !state->muted && mp_numbers_ready() && PyCFunction_Check(call->callable);
    mp_kept kept = mp_keep();
    PyObject *way = NULL, *draw = NULL, *data = NULL;
    if (known)
        way = mp_call_imported("magpy.moments", "way_of", "(sOO)", ((PyCFunctionObject *)call->callable)->m_ml->ml_name,
                               type, zone);
    bool made = way && PyTuple_CheckExact(way);
    if (made) draw = packed(call); /* a zone that the call has made is not known to a run */
    if (draw) data = PySequence_Concat(draw, way);
    if (data) {
        mp_rec_pend_must(rec, call->frame, moment_given, data);
        mp_deferred_begin(rec, call->frame, true);
    } else if (!made)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "gives another object each time, not a number");
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "draws"); /* unless there is a reason already */
    Py_XDECREF(way);
    Py_XDECREF(draw);
    mp_restore(kept);
}

bool mp_recording_is_draw(const mp_recording *recording, mp_value_id value)
{
    for (uint32_t i = 0; i < recording->n_draws; i++)
        if (recording->draws[i].value == value) return true;
    return false;
}
