/* Calls and instructions that meet arrays: each is made again by every run, as one operator of the graph. See arrays.h. */
#include "trace/arrays.h"
#include "trace/effects.h"

#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <opcode.h>
#include <string.h>

/* -- What numpy's functions do ------------------------------------------------------------------------------------------ */

typedef enum {
    COMPUTES, /* new arrays, views, numbers */
    CHANGES,  /* its first argument, else likewise */
    TELLS,    /* what is guarded of an array: how it lies in memory */
    LOOKS,    /* gives the elements as Python's own objects */
    REFUSED,
} array_role;

static bool listed(const char *name, const char *names)
{
    size_t n = strlen(name);
    for (const char *at = names; (at = strstr(at, name)); at += n)
        if ((at == names || at[-1] == ' ') && (at[n] == ' ' || !at[n])) return n > 0;
    return false;
}

/* By name, among numpy's own functions, methods of arrays, and ufuncs' methods. Those that warn by what the elements are, that look at memory,
** files, or call the program's functions are refused. */
static array_role role_of(const char *name)
{
    if (listed(
            name,
            "copyto put place putmask fill_diagonal put_along_axis sort partition fill itemset setfield at __setitem__ "
            "__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __ilshift__ __irshift__ __iand__ "
            "__ior__ __ixor__ __imatmul__"))
        return CHANGES;
    if (listed(name, "shape ndim size __len__ result_type can_cast min_scalar_type iscomplexobj isrealobj"))
        return TELLS;
    if (listed(name, "tolist tobytes")) return LOOKS;
    if (listed(name,
               "save savez savez_compressed savetxt apply_along_axis apply_over_axes piecewise array2string array_repr "
               "array_str polyfit cov corrcoef shares_memory may_share_memory resize setflags tofile dump "
               "dumps byteswap frombuffer fromfile fromiter fromstring from_dlpack empty_like __array__ __dlpack__ "
               "__array_wrap__ __array_finalize__ __deepcopy__ __reduce__ __reduce_ex__ __setstate__ __buffer__ view"))
        return REFUSED;
    return COMPUTES;
}

/* np.sort gives a sorted copy, array.sort sorts the array. */
static array_role role_of_function(const char *name)
{ return listed(name, "sort partition") ? COMPUTES : listed(name, "empty_like") ? TELLS : role_of(name); }

/* -- Describing a call ------------------------------------------------------------------------------------------------- */

typedef struct {
    mp_recorder *rec;
    PyObject *leaves;  /* owned list of _C.Value */
    PyObject *strides; /* owned list of tuples, of the leaves as they lie in memory */
    PyObject *tensors; /* owned list of the tensors among the arguments */
} description;

static PyObject *ours(const char *name) { return mp_import("magpy.arrays", name); }

static PyObject *cannot(mp_recorder *rec, const char *what)
{
    PyErr_Clear();
    mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "numpy with data: %s", what);
    return NULL;
}

/* magpy.arrays.Leaf(number, reversed dimensions, is it a tensor): owned, or NULL after abandoning. Steals value. */
static PyObject *leaf(description *d, PyObject *value, PyObject *strides, PyObject *reversed, bool tensor)
{
    PyObject *type = value && strides && reversed ? ours("Leaf") : NULL, *made = NULL;
    if (type && PyList_Append(d->leaves, value) == 0 && PyList_Append(d->strides, strides) == 0)
        made =
            PyObject_CallFunction(type, "nOO", PyList_GET_SIZE(d->leaves) - 1, reversed, tensor ? Py_True : Py_False);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(strides);
    Py_XDECREF(reversed);
    return made || mp_rec_abandoned(d->rec) ? made : cannot(d->rec, "out of memory");
}

static PyObject *array_leaf(description *d, PyObject *array)
{
    PyObject *value = mp_array_forward(d->rec, array, false), *meta = value ? mp_array_meta(array) : NULL;
    PyObject *strides = meta ? Py_NewRef(PyTuple_GET_ITEM(meta, 1)) : NULL;
    Py_XDECREF(meta);
    return leaf(d, value, strides, value ? mp_array_reversed(array) : NULL, false);
}

static PyObject *tensor_leaf(description *d, PyObject *tensor)
{
    int count = 0;
    PyObject *held = PyTuple_Pack(1, tensor);
    bool known = held && mp_rec_check_tensors(d->rec, held, NULL, &count);
    Py_XDECREF(held);
    PyObject *value = known ? mp_rec_template(d->rec, tensor) : NULL, *quiet = mp_quiet_begin();
    PyObject *strides = value ? mp_tensor_ask(mp_names.stride, tensor) : NULL;
    mp_quiet_end(quiet);
    if (value && PyList_Append(d->tensors, tensor) < 0) Py_CLEAR(value);
    return leaf(d, value, strides, PyTuple_New(0), true);
}

enum { SMALL = 64 }; /* elements of a constant array that are written into the call */

static bool is_small(PyObject *array)
{
    const mp_array *a = (const mp_array *)array;
    Py_ssize_t n = 1;
    for (int d = 0; d < a->nd; d++) n *= a->dimensions[d];
    return n <= SMALL;
}

static PyObject *describe(description *d, PyObject *object, int depth);

static PyObject *describe_items(description *d, PyObject *object, int depth)
{
    bool tuple = PyTuple_Check(object);
    if (mp_rec_find(d->rec, object) != MP_NO_OBJ) mp_rec_whole(d->rec, object);
    Py_ssize_t n = PySequence_Fast_GET_SIZE(object);
    PyObject *copy = tuple ? PyTuple_New(n) : PyList_New(n);
    for (Py_ssize_t i = 0; copy && i < n; i++) {
        PyObject *item = describe(d, PySequence_Fast_GET_ITEM(object, i), depth + 1);
        if (!item)
            Py_CLEAR(copy);
        else if (tuple)
            PyTuple_SET_ITEM(copy, i, item);
        else
            PyList_SET_ITEM(copy, i, item);
    }
    return copy;
}

/* The argument as every run can make it: constants as they are, data by Leaf. Owned, or NULL after abandoning or with an exception. */
static PyObject *describe(description *d, PyObject *object, int depth)
{
    if (mp_rec_abandoned(d->rec)) return NULL;
    if (depth > 16) return cannot(d->rec, "an argument that is nested too deeply");
    if (mp_is_array(object)) {
        if (mp_array_is_data(d->rec, object) || !is_small(object)) return array_leaf(d, object);
        PyObject *method = PyObject_GetAttrString(object, "copy"), *order = PyUnicode_FromString("K");
        PyObject *copy = method && order ? PyObject_CallOneArg(method, order) : NULL; /* as it is now */
        Py_XDECREF(method);
        Py_XDECREF(order);
        return copy;
    }
    if (mp_is_tensor(object)) return tensor_leaf(d, object);
    if (mp_number_is(d->rec, object)) mp_number_settle(d->rec, object);
    if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        PyObject *start = describe(d, slice->start, depth + 1),
                 *stop = start ? describe(d, slice->stop, depth + 1) : NULL;
        PyObject *step = stop ? describe(d, slice->step, depth + 1) : NULL, *made = NULL;
        if (step) made = PySlice_New(start, stop, step);
        Py_XDECREF(start);
        Py_XDECREF(stop);
        Py_XDECREF(step);
        return made;
    }
    if (mp_is_scalar(object)) return Py_NewRef(object);
    if (PyType_Check(object)) { /* np.float32, float */
        if (!mp_type_mutable((PyTypeObject *)object)) return Py_NewRef(object);
        PyTypeObject *type = (PyTypeObject *)object;
        return mp_is_array_scalar_type(type) ? Py_NewRef(object) : cannot(d->rec, "a class of the program's own");
    }
    if (PyTuple_CheckExact(object) || PyList_CheckExact(object)) return describe_items(d, object, depth);
    if (PyDict_CheckExact(object)) {
        if (mp_rec_find(d->rec, object) != MP_NO_OBJ) mp_rec_whole(d->rec, object);
        PyObject *copy = PyDict_New(), *key, *value;
        for (Py_ssize_t at = 0; copy && PyDict_Next(object, &at, &key, &value);) {
            PyObject *item =
                mp_key_plain(key) ? describe(d, value, depth + 1) : cannot(d->rec, "a key that is an object");
            if (!item || PyDict_SetItem(copy, key, item) < 0) Py_CLEAR(copy);
            Py_XDECREF(item);
        }
        return copy;
    }
    mp_rec_abandon(d->rec, MP_REASON_UNKNOWN_C_CALLABLE, "numpy with data: an argument of type %s",
                   Py_TYPE(object)->tp_name);
    return NULL;
}

/* The pending end of a call: (function, args, kwargs, target or None, leaves, strides, tensors). Owned, or NULL after abandoning. */
static PyObject *packed(mp_recorder *rec, PyObject *func, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *const *kwvalues, PyObject *kwnames, PyObject *target)
{
    PyObject *own = target ? mp_array_value(rec, target, true) : NULL; /* it is data from now on */
    Py_XDECREF(own);
    description d = {rec, PyList_New(0), PyList_New(0), PyList_New(0)};
    PyObject *tuple = PyTuple_New(nargs), *dict = PyDict_New(), *data = NULL;
    bool good = d.leaves && d.strides && d.tensors && tuple && dict && func;
    for (Py_ssize_t i = 0; good && i < nargs; i++) {
        PyObject *item = describe(&d, args[i], 0);
        if (item)
            PyTuple_SET_ITEM(tuple, i, item);
        else
            good = false;
    }
    for (Py_ssize_t i = 0; good && kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *item = describe(&d, kwvalues[i], 0);
        good = item && PyDict_SetItem(dict, PyTuple_GET_ITEM(kwnames, i), item) == 0;
        Py_XDECREF(item);
    }
    if (good) data = PyTuple_Pack(7, func, tuple, dict, target ? target : Py_None, d.leaves, d.strides, d.tensors);
    if (!data && !mp_rec_abandoned(rec)) cannot(rec, "out of memory");
    PyErr_Clear();
    Py_XDECREF(d.leaves);
    Py_XDECREF(d.strides);
    Py_XDECREF(d.tensors);
    Py_XDECREF(tuple);
    Py_XDECREF(dict);
    return data;
}

/* -- Results ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    mp_recorder *rec;
    PyObject *data;
    PyObject *metas;  /* owned list of (position among the results, sizes, strides, torch's type, is it a tensor) */
    PyObject *values; /* owned list of _C.Value */
    PyObject *found;  /* owned list of the objects that they are */
    Py_ssize_t position;
    int depth;
} results;

/* A value for `object`, one of the results, of which `meta` (stolen) tells. */
static bool add_result(results *r, PyObject *object, PyObject *meta, bool tensor)
{
    mp_recorder *rec = r->rec;
    PyObject *row = meta ? Py_BuildValue("(nOOOO)", r->position, PyTuple_GET_ITEM(meta, 0), PyTuple_GET_ITEM(meta, 1),
                                         PyTuple_GET_ITEM(meta, 2), tensor ? Py_True : Py_False)
                         : NULL;
    mp_value_id id = MP_NO_VALUE;
    if (row)
        id =
            tensor ? mp_rec_bind_new(rec, object, rec->recording->n_ops) : mp_rec_new_value(rec, rec->recording->n_ops);
    PyObject *value = id == MP_NO_VALUE ? NULL : mp_value_new(id);
    bool good = value && PyList_Append(r->metas, row) == 0 && PyList_Append(r->values, value) == 0 &&
                PyList_Append(r->found, object) == 0;
    Py_XDECREF(meta);
    Py_XDECREF(row);
    Py_XDECREF(value);
    if (!good && !mp_rec_abandoned(rec)) cannot(rec, "out of memory");
    return good;
}

static bool add_tensor(results *r, PyObject *tensor)
{
    mp_recorder *rec = r->rec;
    if (mp_rec_find_value(rec, tensor) != MP_NO_VALUE || mp_rec_find(rec, tensor) != MP_NO_OBJ) return true;
    PyObject *quiet = mp_quiet_begin();
    PyObject *grad = mp_tensor_ask(mp_names.requires_grad, tensor), *sizes = mp_tensor_ask(mp_names.shape, tensor);
    PyObject *strides = mp_tensor_ask(mp_names.stride, tensor), *dtype = mp_tensor_ask(mp_names.dtype, tensor);
    PyObject *plain = sizes ? PyTuple_GetSlice(sizes, 0, PY_SSIZE_T_MAX) : NULL;
    PyObject *meta = grad == Py_False && plain && strides && dtype ? PyTuple_Pack(3, plain, strides, dtype) : NULL;
    bool own = meta && mp_is_exact_tensor(tensor) && !mp_rec_shares_memory(rec, tensor);
    if (own)
        own = add_result(r, tensor, Py_NewRef(meta), true);
    else
        cannot(rec, "a result that is a tensor with a gradient, or a view of another");
    mp_quiet_end(quiet);
    Py_XDECREF(grad);
    Py_XDECREF(sizes);
    Py_XDECREF(strides);
    Py_XDECREF(dtype);
    Py_XDECREF(plain);
    Py_XDECREF(meta);
    return own;
}

static bool is_plain_number(PyObject *object)
{ return PyFloat_CheckExact(object) || PyLong_CheckExact(object) || PyBool_Check(object); }

/* Numbers become arrays without dimensions. */
static bool add_number(results *r, PyObject *number)
{
    PyObject *make = ours("number_meta"), *meta = make ? PyObject_CallOneArg(make, number) : NULL;
    Py_XDECREF(make);
    PyErr_Clear();
    if (meta) return add_result(r, number, meta, false);
    cannot(r->rec, "a number of a type that torch does not have");
    return false;
}

static bool add_results(results *r, PyObject *object)
{
    mp_recorder *rec = r->rec;
    if (mp_rec_abandoned(rec)) return false;
    if (PyTuple_Check(object) || PyList_CheckExact(object)) {
        if (++r->depth > 16) return cannot(rec, "a result that is nested too deeply"), false;
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); i++)
            if (!add_results(r, PySequence_Fast_GET_ITEM(object, i))) return false;
        r->depth--;
        return true;
    }
    bool good = true;
    if (mp_is_array(object)) {
        PyObject *tensors = PyTuple_GET_ITEM(r->data, 6);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); i++)
            mp_array_adopt(rec, object, PyList_GET_ITEM(tensors, i));
        if (mp_rec_find(rec, object) == MP_NO_OBJ && mp_array_is_new(rec, object)) {
            if (mp_array_regular(object))
                good = add_result(r, object, mp_array_meta(object), false);
            else
                cannot(rec, "a result whose elements torch has no type for, or that lies unusually in memory");
        }
    } else if (mp_is_tensor(object))
        good = add_tensor(r, object);
    else if (mp_is_array_scalar_type(Py_TYPE(object)) || is_plain_number(object))
        good = add_number(r, object);
    else if (object != Py_None && object != Py_NotImplemented)
        mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "numpy with data: a result of type %s",
                       Py_TYPE(object)->tp_name);
    r->position++;
    return good && !mp_rec_abandoned(rec);
}

/* A float of numpy that nothing has but its slot and `found`, and that is the same made of a float again. */
static bool is_new_float(PyObject *number)
{
    static const char *const names[] = {"numpy.float16", "numpy.float32", "numpy.float64"};
    bool known = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        known = known || !strcmp(Py_TYPE(number)->tp_name, names[i]);
    return known && mp_is_array_scalar_type(Py_TYPE(number)) && Py_REFCNT(number) == 2;
}

/* The program has a number that the call gave: it is open where it is a float or one of Python's own and the whole result, else looked at. */
static void give_number(mp_recorder *rec, PyObject *number, mp_value_id value, PyObject **slot)
{
    if (slot && *slot == number && mp_is_number(number) && mp_numbers_ready()) {
        mp_number_read(rec, slot, value, NULL);
        return;
    }
    if (slot && *slot == number && is_new_float(number) && mp_numbers_ready()) {
        mp_number_object(rec, number, value, (PyObject *)Py_TYPE(number));
        return;
    }
    PyObject *method = is_plain_number(number) ? NULL : PyObject_GetAttrString(number, "item");
    PyObject *seen = method ? PyObject_CallNoArgs(method) : is_plain_number(number) ? Py_NewRef(number) : NULL;
    if (!seen || !is_plain_number(seen))
        cannot(rec, "a number of a type that Python does not have");
    else if (!mp_numbers_ready() || (mp_answer_is_value(seen) && !rec->op_state->accept_values))
        mp_rec_abandon(rec, MP_REASON_DATA_READ, "an element of a numpy array");
    else
        mp_number_look(rec, value, "", seen);
    Py_XDECREF(method);
    Py_XDECREF(seen);
}

/* Append the operator. False after abandoning. */
static bool append(results *r)
{
    mp_recorder *rec = r->rec;
    PyObject *data = r->data, *make = ours("described"), *func = ours("step"), *values = PyList_AsTuple(r->values);
    PyObject *metas = PyList_AsTuple(r->metas), *text = NULL, *args = NULL;
    if (make && func && values && metas)
        text = PyObject_CallFunction(
            make, "OOOOOO", PyTuple_GET_ITEM(data, 0), PyTuple_GET_ITEM(data, 1), PyTuple_GET_ITEM(data, 2),
            PyTuple_GET_ITEM(data, 3) == Py_None ? Py_False : Py_True, PyTuple_GET_ITEM(data, 5), metas);
    PyObject *leaves = PyTuple_GET_ITEM(data, 4);
    if (text) args = PyTuple_New(PyList_GET_SIZE(leaves) + 1);
    for (Py_ssize_t i = 0; args && i <= PyList_GET_SIZE(leaves); i++)
        PyTuple_SET_ITEM(args, i, Py_NewRef(i ? PyList_GET_ITEM(leaves, i - 1) : text));
    if (args)
        mp_rec_values_op(rec, func, args, Py_NewRef(values));
    else
        cannot(rec, "a function that cannot be named");
    Py_XDECREF(make);
    Py_XDECREF(func);
    Py_XDECREF(values);
    Py_XDECREF(metas);
    Py_XDECREF(text);
    return !mp_rec_abandoned(rec);
}

/* The call has given *slot, or (slot NULL) is about to change its target and to give nothing. */
static void record(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *target = PyTuple_GET_ITEM(data, 3), *tensors = PyTuple_GET_ITEM(data, 6);
    results r = {rec, data, PyList_New(0), PyList_New(0), PyList_New(0)};
    PyObject *quiet = mp_quiet_begin();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); i++)
        if (!mp_rec_unchanged(rec, PyList_GET_ITEM(tensors, i))) cannot(rec, "it changes a tensor");
    mp_quiet_end(quiet);
    bool good = r.metas && r.values && r.found && (!slot || add_results(&r, *slot));
    r.position = -1;
    if (good && target != Py_None) good = add_result(&r, target, mp_array_meta(target), false);
    Py_ssize_t n = good ? PyList_GET_SIZE(r.values) : 0;
    if (n && append(&r)) {
        for (Py_ssize_t i = 0; i < n && !mp_rec_abandoned(rec); i++) {
            PyObject *object = PyList_GET_ITEM(r.found, i), *value = PyList_GET_ITEM(r.values, i);
            if (object == target)
                mp_array_store(rec, target, value);
            else if (mp_is_array(object))
                mp_array_bind(rec, object, mp_index_of(value));
            else if (!mp_is_tensor(object))
                give_number(rec, object, mp_index_of(value), slot);
        }
    }
    Py_XDECREF(r.metas);
    Py_XDECREF(r.values);
    Py_XDECREF(r.found);
    PyErr_Clear();
}

static void done(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    if (slot && *slot && !mp_rec_abandoned(rec)) {
        mp_kept kept = mp_keep();
        record(rec, data, slot);
        mp_restore(kept);
    }
    Py_DECREF(data);
}

static bool acceptable(mp_recorder *rec)
{
    mp_op_state *state = mp_rec_op_state(rec);
    if (state && state->accept_checks && !state->muted && rec->recording) return true;
    mp_rec_abandon(rec, MP_REASON_DATA_READ, "numpy with data");
    return false;
}

/* Steals data, which may be NULL after abandoning. */
static void pend(mp_recorder *rec, const mp_frame *frame, PyObject *data)
{
    if (!data) return;
    mp_rec_pend_must(rec, frame, done, data);
    mp_deferred_silent(rec, frame);
}

/* -- Calls --------------------------------------------------------------------------------------------------------------- */

/* What a callable is called; the text stays for ever. */
static const char *name_of(PyObject *callable)
{
    static PyObject *names; /* owned: dict of the names of numpy's functions */
    if (PyCFunction_Check(callable)) return ((PyCFunctionObject *)callable)->m_ml->ml_name;
    if (Py_IS_TYPE(callable, &PyMethodDescr_Type)) return ((PyMethodDescrObject *)callable)->d_method->ml_name;
    if (PyType_Check(callable)) return ((PyTypeObject *)callable)->tp_name;
    PyObject *name = PyObject_GetAttrString(callable, "__name__"); /* C getters of numpy's types, which make it anew */
    if (!names) names = PyDict_New();
    PyObject *kept = names && name && PyUnicode_CheckExact(name) ? PyDict_SetDefault(names, name, name) : NULL;
    const char *text = kept ? PyUnicode_AsUTF8(kept) : NULL;
    Py_XDECREF(name);
    PyErr_Clear();
    return text ? text : "";
}

static PyObject *keyword(const mp_call *call, const char *name)
{
    for (Py_ssize_t i = 0; i < call->nkw; i++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, i), name) == 0) return call->kwvalues[i];
    return NULL;
}

/* The array that a ufunc or function is to write into, or NULL; *many: more than one, or nothing that is known. */
static PyObject *output_of(const mp_call *call, bool ufunc, bool *many)
{
    PyObject *out = keyword(call, "out");
    if (out && PyTuple_Check(out)) {
        *many = PyTuple_GET_SIZE(out) != 1;
        out = *many ? NULL : PyTuple_GET_ITEM(out, 0);
    }
    if (out == Py_None) out = NULL;
    if (ufunc && !out) {
        PyObject *number = PyObject_GetAttrString(call->callable, "nin");
        Py_ssize_t nin = number ? PyLong_AsSsize_t(number) : 0;
        Py_XDECREF(number);
        PyErr_Clear();
        *many = *many || call->nargs > nin + 1;
        if (call->nargs == nin + 1 && call->args[nin] != Py_None) out = call->args[nin];
    }
    if (out && !mp_is_array(out)) *many = true;
    return out;
}

/* The ufunc whose method is called (np.add.reduce), or NULL. Borrowed. */
static PyObject *ufunc_of(const mp_call *call)
{
    PyObject *self = PyCFunction_Check(call->callable) ? PyCFunction_GET_SELF(call->callable) : NULL;
    if (Py_IS_TYPE(call->callable, &PyMethodDescr_Type) && call->nargs) self = call->args[0];
    return self && !strcmp(Py_TYPE(self)->tp_name, "numpy.ufunc") ? self : NULL;
}

/* The function as it can be named apart from its self. Owned, or NULL with an exception. */
static PyObject *named_function(const mp_call *call, Py_ssize_t *skip)
{
    PyObject *self = PyCFunction_Check(call->callable) ? PyCFunction_GET_SELF(call->callable) : NULL;
    *skip = 0;
    if (ufunc_of(call)) {
        *skip = call->nargs && call->args[0] == ufunc_of(call);
        return PyObject_GetAttrString(ufunc_of(call), name_of(call->callable));
    }
    if (self && call->nargs && call->args[0] == self && mp_is_array(self))
        return PyObject_GetAttrString((PyObject *)Py_TYPE(self), name_of(call->callable));
    if (self && call->nargs && call->args[0] == self) *skip = 1;
    return Py_NewRef(call->callable);
}

static bool holds_data(mp_call *call)
{
    bool data = false;
    for (Py_ssize_t i = 0; i < call->nargs; i++) data = mp_holds_data(call->rec, call->args[i], 0) || data;
    for (Py_ssize_t i = 0; i < call->nkw; i++) data = mp_holds_data(call->rec, call->kwvalues[i], 0) || data;
    return data;
}

/* Is it numpy's own function, and none that the program made by numpy's means (frompyfunc)? */
static bool is_numpys(const mp_call *call)
{
    PyObject *callable = ufunc_of(call) ? ufunc_of(call) : call->callable;
    bool ufunc = !strcmp(Py_TYPE(callable)->tp_name, "numpy.ufunc");
    bool dispatched = strstr(Py_TYPE(callable)->tp_name, "_ArrayFunctionDispatcher") != NULL;
    if (!ufunc && !dispatched) return true;
    if (ufunc) {
        PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy"); /* borrowed */
        PyObject *found = module ? PyObject_GetAttrString(module, name_of(callable)) : NULL;
        Py_XDECREF(found);
        PyErr_Clear();
        return found == callable;
    }
    PyObject *module = PyObject_GetAttrString(callable, "__module__");
    const char *text = module && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
    bool own = text && (!strcmp(text, "numpy") || !strncmp(text, "numpy.", 6));
    Py_XDECREF(module);
    PyErr_Clear();
    return own;
}

/* Nothing in which code of the program could run. */
static bool is_plain(PyObject *object, int depth)
{
    if (mp_is_scalar(object)) return true;
    if (mp_is_array(object)) return mp_array_regular(object);
    if (PyType_Check(object))
        return !mp_type_mutable((PyTypeObject *)object) || mp_is_array_scalar_type((PyTypeObject *)object);
    if (depth > 16 || (!PyTuple_CheckExact(object) && !PyList_CheckExact(object))) return false;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); i++)
        if (!is_plain(PySequence_Fast_GET_ITEM(object, i), depth + 1)) return false;
    return true;
}

bool mp_array_call_is_plain(mp_call *call)
{
    mp_kept kept = mp_keep();
    bool plain = !mp_rec_abandoned(call->rec) && is_numpys(call);
    for (Py_ssize_t i = 0; plain && i < call->nargs; i++)
        plain =
            is_plain(call->args[i], 0) || call->args[i] == ufunc_of(call) ||
            (i == 0 && PyCFunction_Check(call->callable) && PyCFunction_GET_SELF(call->callable) == call->args[0]) ||
            (i == 0 && strstr(Py_TYPE(call->args[0])->tp_name, "numpy.random.") == Py_TYPE(call->args[0])->tp_name);
    for (Py_ssize_t i = 0; plain && i < call->nkw; i++) plain = is_plain(call->kwvalues[i], 0);
    mp_restore(kept);
    return plain;
}

static bool numpy_call(mp_call *call)
{
    mp_recorder *rec = call->rec;
    if (!holds_data(call) || mp_rec_abandoned(rec) || !acceptable(rec)) return mp_rec_abandoned(rec);
    Py_ssize_t skip = 0;
    PyObject *func = named_function(call, &skip);
    const char *name = name_of(call->callable);
    bool method = func && (Py_IS_TYPE(func, &PyMethodDescr_Type) || Py_IS_TYPE(func, &PyWrapperDescr_Type) || skip ||
                           ufunc_of(call));
    bool ufunc = !strcmp(Py_TYPE(call->callable)->tp_name, "numpy.ufunc"), many = false;
    array_role role = method ? role_of(name) : role_of_function(name);
    PyObject *first = call->nargs > skip ? call->args[skip] : NULL, *target = output_of(call, ufunc, &many);
    if (role == CHANGES && !target) target = first;
    if (role == LOOKS && first && mp_is_array(first)) mp_array_settle(rec, first, false);
    if (!is_numpys(call) || role == REFUSED || many || (target && !mp_is_array(target)) || keyword(call, "like"))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "on arrays that are data");
    else if (role != TELLS && role != LOOKS)
        pend(rec, call->frame,
             packed(rec, func, call->args + skip, call->nargs - skip, call->kwvalues, call->kwnames, target));
    Py_XDECREF(func);
    PyErr_Clear();
    return true;
}

/* Python's own functions of numbers, which ask an array for the result. */
static bool asks_arrays(PyObject *callable)
{
    if (callable == (PyObject *)&PyFloat_Type || callable == (PyObject *)&PyLong_Type) return true;
    return PyCFunction_Check(callable) && listed(name_of(callable), "abs round divmod pow");
}

bool mp_array_call(mp_call *call, bool numpy)
{
    mp_kept kept = mp_keep();
    bool met = false;
    if (numpy)
        met = numpy_call(call);
    else if (call->nargs && mp_is_array(call->args[0]) && asks_arrays(call->callable))
        met = numpy_call(call);
    mp_restore(kept);
    return met;
}

/* -- Instructions ---------------------------------------------------------------------------------------------------------- */

#define TOP(i) (frame->stack[frame->depth - (i)])

/* Functions of the module operator that the instructions are. */
static const char *const binary_names[] = {
    [NB_ADD] = "add",
    [NB_AND] = "and_",
    [NB_FLOOR_DIVIDE] = "floordiv",
    [NB_LSHIFT] = "lshift",
    [NB_MATRIX_MULTIPLY] = "matmul",
    [NB_MULTIPLY] = "mul",
    [NB_REMAINDER] = "mod",
    [NB_OR] = "or_",
    [NB_POWER] = "pow",
    [NB_RSHIFT] = "rshift",
    [NB_SUBTRACT] = "sub",
    [NB_TRUE_DIVIDE] = "truediv",
    [NB_XOR] = "xor",
    [NB_INPLACE_ADD] = "iadd",
    [NB_INPLACE_AND] = "iand",
    [NB_INPLACE_FLOOR_DIVIDE] = "ifloordiv",
    [NB_INPLACE_LSHIFT] = "ilshift",
    [NB_INPLACE_MATRIX_MULTIPLY] = "imatmul",
    [NB_INPLACE_MULTIPLY] = "imul",
    [NB_INPLACE_REMAINDER] = "imod",
    [NB_INPLACE_OR] = "ior",
    [NB_INPLACE_POWER] = "ipow",
    [NB_INPLACE_RSHIFT] = "irshift",
    [NB_INPLACE_SUBTRACT] = "isub",
    [NB_INPLACE_TRUE_DIVIDE] = "itruediv",
    [NB_INPLACE_XOR] = "ixor",
};
static const char *const compare_names[] = {"lt", "le", "eq", "ne", "gt", "ge"};

static void compute(mp_recorder *rec, const mp_frame *frame, const char *name, PyObject *const *args, Py_ssize_t n,
                    PyObject *target)
{
    PyObject *func = mp_import("_operator", name);
    if (func)
        pend(rec, frame, packed(rec, func, args, n, NULL, NULL, target));
    else
        cannot(rec, name);
    Py_XDECREF(func);
}

/* array[key] = value is recorded before it happens: it gives nothing that could be waited for. */
static void store_item(mp_recorder *rec, const mp_frame *frame)
{
    PyObject *args[] = {TOP(2), TOP(1), TOP(3)}, *func = mp_import("_operator", "setitem");
    PyObject *data = func ? packed(rec, func, args, 3, NULL, NULL, args[0]) : NULL;
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (data) record(rec, data, NULL);
    if (entry) entry->wrote = true; /* it must not raise */
    mp_deferred_silent(rec, frame);
    Py_XDECREF(data);
    Py_XDECREF(func);
}

static bool any_data(mp_recorder *rec, PyObject *const *objects, int n)
{
    bool data = false;
    for (int i = 0; i < n; i++) data = mp_holds_data(rec, objects[i], 0) || data;
    return data;
}

static bool instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    PyObject *operands[3] = {NULL};
    switch (opcode) {
    case BINARY_OP:
    case COMPARE_OP: {
        operands[0] = TOP(2);
        operands[1] = TOP(1);
        if (!mp_is_array(operands[0]) && !mp_is_array(operands[1])) return false;
        if (!any_data(rec, operands, 2) || !acceptable(rec)) return mp_rec_abandoned(rec);
        bool in_place = opcode == BINARY_OP && oparg >= NB_INPLACE_ADD && mp_is_array(operands[0]);
        compute(rec, frame, opcode == BINARY_OP ? binary_names[oparg] : compare_names[oparg], operands, 2,
                in_place ? operands[0] : NULL);
        return true;
    }
    case UNARY_NEGATIVE:
    case UNARY_POSITIVE:
    case UNARY_INVERT:
        operands[0] = TOP(1);
        if (!mp_is_array(operands[0]) || !any_data(rec, operands, 1) || !acceptable(rec)) return mp_rec_abandoned(rec);
        compute(rec, frame,
                opcode == UNARY_NEGATIVE   ? "neg"
                : opcode == UNARY_POSITIVE ? "pos"
                                           : "invert",
                operands, 1, NULL);
        return true;
    case BINARY_SUBSCR:
        operands[0] = TOP(2);
        operands[1] = TOP(1);
        if (!mp_is_array(operands[0]) || !any_data(rec, operands, 2) || !acceptable(rec)) return mp_rec_abandoned(rec);
        compute(rec, frame, "getitem", operands, 2, NULL);
        return true;
    case STORE_SUBSCR:
        operands[0] = TOP(2);
        operands[1] = TOP(1);
        operands[2] = TOP(3);
        if (!mp_is_array(operands[0]) || !any_data(rec, operands, 3) || !acceptable(rec)) return mp_rec_abandoned(rec);
        store_item(rec, frame);
        return true;
    default: return false;
    }
}

bool mp_array_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    if (opcode != BINARY_OP && opcode != COMPARE_OP && opcode != UNARY_NEGATIVE && opcode != UNARY_POSITIVE &&
        opcode != UNARY_INVERT && opcode != BINARY_SUBSCR && opcode != STORE_SUBSCR)
        return false;
    return instruction(rec, frame, opcode, oparg);
}

/* -- Attributes, iteration --------------------------------------------------------------------------------------------------- */

void mp_array_attr(mp_recorder *rec, PyObject *array, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    PyErr_Clear();
    bool reaches = !text || listed(text, "flat data ctypes base __array_interface__ __array_struct__ __dict__");
    if (reaches) mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "attribute %s of a numpy array", text ? text : "?");
    mp_array_is_data(rec, array); /* one from outside becomes an input */
}

void mp_array_store_attr(mp_recorder *rec, PyObject *array, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    PyErr_Clear();
    bool mere = text && listed(text, "shape strides") && mp_rec_find(rec, array) == MP_NO_OBJ;
    if (!mere && mp_array_is_data(rec, array))
        mp_rec_abandon(rec, MP_REASON_UNGUARDABLE, "attribute %s of a numpy array is set", text ? text : "?");
}

void mp_array_iterate(mp_recorder *rec, PyObject *array)
{
    if (((mp_array *)array)->nd > 1)
        mp_array_is_data(rec, array); /* it gives views of itself */
    else
        mp_array_settle(rec, array, true);
}

/* -- Legacy constructors ------------------------------------------------------------------------------------------------------- */

void mp_array_constructed(mp_recorder *rec, PyObject *args, PyObject *kwargs, PyObject *result)
{
    PyObject *tensors =
        PyTuple_GET_SIZE(args) == 1 && !PyDict_GET_SIZE(kwargs) ? mp_arrays_as_tensors(rec, args, false) : NULL;
    PyObject *quiet = mp_quiet_begin();
    PyObject *dtype = tensors ? mp_tensor_ask(mp_names.dtype, result) : NULL, *func = dtype ? ours("converted") : NULL;
    mp_quiet_end(quiet);
    PyObject *given = func ? PyTuple_Pack(2, PyTuple_GET_ITEM(tensors, 0), dtype) : NULL;
    if (given)
        mp_rec_op(rec, func, given, NULL, result, false);
    else
        cannot(rec, "a legacy constructor");
    Py_XDECREF(tensors);
    Py_XDECREF(dtype);
    Py_XDECREF(func);
    Py_XDECREF(given);
}
