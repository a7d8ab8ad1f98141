/* Calls of functools.lru_cache's functions: what a trace learns of a result that came from a cache, or was put into it. */
#include "trace/effects.h"
#include "trace/lru.h"
#include "trace/raw.h"
#include "trace/tensors.h"

bool mp_caches_installed(PyObject *wrapper)
{
    PyObject *function = PyObject_GetAttrString(wrapper, "__wrapped__"); /* in its dict */
    bool installed =
        function && PyFunction_Check(function) && mp_is_installed_code((PyCodeObject *)PyFunction_GET_CODE(function));
    PyErr_Clear();
    Py_XDECREF(function);
    return installed;
}

static bool is_fixed(PyObject *object) { return mp_is_scalar(object) || mp_is_identity_type(object); }

static uint32_t n_varying(mp_recorder *rec) { return rec->op_state ? rec->op_state->n_varying : 0; }

/* Is it a tensor that the call has computed from constants? The cache keeps it: nothing may change it from now on, in this call or between
** it and later ones. key: of the cache, or NULL if that cannot be named. */
static bool keep_constant(mp_recorder *rec, PyObject *tensor, PyObject *function, PyObject *key)
{
    mp_value_id value = mp_is_tensor(tensor) ? mp_rec_find_value(rec, tensor) : MP_NO_VALUE;
    mp_facts *facts = value != MP_NO_VALUE ? mp_rec_facts(rec, value) : NULL;
    if (!facts || !facts->constant || !key) return false;
    facts->cached = true;
    PyObject *version = facts->versioned ? PyLong_FromUnsignedLong(facts->version) : NULL;
    if (version) mp_rec_read(rec, function, MP_READ_CACHED_TENSOR, key, version);
    Py_XDECREF(version);
    return true;
}

/* Equal to itself alone, and that without the program's code. */
static bool identity_key(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type->tp_hash == PyBaseObject_Type.tp_hash && type->tp_richcompare == PyBaseObject_Type.tp_richcompare;
}

/* An argument of a cached function as the guard is to find it again: a constant, or an object of the outside. Owned, or NULL. */
static PyObject *named_argument(mp_recorder *rec, PyObject *item)
{
    if (mp_key_plain(item) || mp_is_identity_type(item)) return Py_NewRef(item);
    mp_obj_id id = mp_rec_find(rec, item);
    if (id == MP_NO_OBJ || !identity_key(item)) return NULL;
    mp_rec_type(rec, item);
    return mp_ref_new(id);
}

/* The arguments as mp_lru_find takes them, and as a guard names them (owned). NULL with *why set, or without memory; *args is owned or NULL. */
static PyObject *cache_key(mp_call *call, PyObject **args, const char **why)
{
    mp_recorder *rec = call->rec;
    Py_ssize_t first = call->nargs + (call->nkw > 0), n = first + 2 * call->nkw;
    if (!mp_lru_ready() || !mp_lru_caches(call->callable)) *why = "a cache without entries";
    if (call->nkw && !*why && !mp_lru_mark()) *why = "a cached function with keyword arguments";
    PyObject *key = NULL;
    if (!*why && (*args = PyTuple_New(n))) key = PyTuple_New(n);
    for (Py_ssize_t i = 0; key && !*why && i < n; i++) {
        bool name = i >= first && (i - first) % 2 == 0;
        PyObject *item = i < call->nargs ? call->args[i]
                         : i < first     ? mp_lru_mark()
                         : name          ? PyTuple_GET_ITEM(call->kwnames, (i - first) / 2)
                                         : call->kwvalues[(i - first) / 2];
        if (item == mp_lru_mark()) mp_rec_pin(rec, item, "keywords");
        PyObject *named = named_argument(rec, item);
        if (!named)
            *why = "a cached function, called with an object that is not one of the outside or has its own __eq__";
        PyTuple_SET_ITEM(*args, i, Py_NewRef(item));
        PyTuple_SET_ITEM(key, i, named ? named : Py_NewRef(Py_None));
    }
    if (*why) Py_CLEAR(key);
    return key;
}

/* A cached function: the program says that its result depends on its arguments alone. Where the result is None nothing is learned, a
** scalar is what the guard's own call must give again; while the cache is filled, the call may only read, or compute a tensor from
** constants, as each run will. A tensor that was there already is that of its arguments, where those are all fixed. data: (function, args, are
** all arguments fixed, number of writes, of operators, of varying operators, the cache's key or None). */
static void cached(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    unsigned int writes, ops, varying;
    PyObject *function, *args, *key;
    int fixed;
    if (result && !mp_rec_abandoned(rec) && rec->recording &&
        PyArg_ParseTuple(data, "OOpIIIO", &function, &args, &fixed, &writes, &ops, &varying, &key)) {
        bool plain = true;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++)
            plain = plain && mp_is_scalar(PyTuple_GET_ITEM(args, i));
        if (writes == rec->recording->n_writes && varying == n_varying(rec) &&
            keep_constant(rec, result, function, key == Py_None ? NULL : key))
            ;
        else if (writes != rec->recording->n_writes || ops != rec->recording->n_ops)
            mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "a cached function ran for the first time, with effects");
        else if (result == Py_None || PyType_Check(result) || PyModule_Check(result))
            ;
        else if (mp_is_scalar(result) && plain && mp_rec_find(rec, function) != MP_NO_OBJ)
            mp_rec_read(rec, function, MP_READ_STATE_CALL, args, result);
        else if (mp_is_scalar(result) || mp_rec_find(rec, result) != MP_NO_OBJ)
            ;
        else if (!mp_is_tensor(result) || fixed)
            mp_rec_pin(rec, result, "cached result");
        else
            mp_rec_abandon(rec, MP_REASON_UNKNOWN_TENSOR, "a cached tensor");
    }
    PyErr_Clear();
    Py_XDECREF(data);
}

/* (args, kwargs, no frames) of a deferred call, from arguments as caches are asked for them. Owned, or NULL with an exception. */
static PyObject *how_called(PyObject *args)
{
    Py_ssize_t n = PyTuple_GET_SIZE(args), first = 0;
    while (first < n && PyTuple_GET_ITEM(args, first) != mp_lru_mark()) first++;
    PyObject *positional = PyTuple_GetSlice(args, 0, first), *keywords = PyDict_New(), *how = NULL;
    bool good = positional && keywords;
    for (Py_ssize_t i = first + 1; good && i + 1 < n; i += 2)
        good = PyDict_SetItem(keywords, PyTuple_GET_ITEM(args, i), PyTuple_GET_ITEM(args, i + 1)) == 0;
    if (good) how = Py_BuildValue("(OO())", positional, keywords);
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return how;
}

/* A cached function of the program's own: what the cache holds is read as a location of its own, the look-up itself is an effect of the commit,
** for it counts. data: (wrapper, args, key, number of writes, of operators). */
static void cached_own(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL, *wrapper, *args, *key;
    unsigned int writes, ops;
    if (result && !mp_rec_abandoned(rec) && rec->recording &&
        PyArg_ParseTuple(data, "OOOII", &wrapper, &args, &key, &writes, &ops)) {
        if (writes != rec->recording->n_writes || ops != rec->recording->n_ops || mp_lru_find(wrapper, args) != result)
            mp_rec_abandon(rec, MP_REASON_UNKNOWN_C_CALLABLE, "a cached function ran for the first time, with effects");
        else {
            PyObject *how = how_called(args);
            mp_rec_read(rec, wrapper, MP_READ_CACHED, key, result);
            if (how)
                mp_rec_effect(rec, wrapper, how);
            else
                mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "cached function");
            Py_XDECREF(how);
        }
    }
    PyErr_Clear();
    Py_XDECREF(data);
}

static void call_cached_own(mp_call *call)
{
    mp_recorder *rec = call->rec;
    const char *why = NULL;
    PyObject *args = NULL, *key = cache_key(call, &args, &why), *data = NULL;
    if (why)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, why);
    else if (key)
        data = Py_BuildValue("(OOOII)", call->callable, args, key, rec->recording->n_writes, rec->recording->n_ops);
    if (data)
        mp_rec_pend_must(rec, call->frame, cached_own, data);
    else if (!why)
        mp_call_abandon(call, MP_REASON_NO_MEMORY, "cached function");
    Py_XDECREF(args);
    Py_XDECREF(key);
}

void mp_handle_lru_cache(mp_call *call)
{
    if (mp_rec_abandoned(call->rec) || !call->rec->recording) return;
    if (mp_rec_find(call->rec, call->callable) == MP_NO_OBJ) { /* the call's own: its function's frames show all */
        mp_effect_check_result(call);
        return;
    }
    mp_kept kept = mp_keep();
    if (!mp_caches_installed(call->callable)) {
        call_cached_own(call);
        mp_restore(kept);
        return;
    }
    mp_effect_read_all(call, 0, true);
    PyObject *args = PyTuple_New(call->nargs + (call->nkw ? 1 : 0));
    for (Py_ssize_t i = 0; args && i < call->nargs; i++) PyTuple_SET_ITEM(args, i, Py_NewRef(call->args[i]));
    if (args && call->nkw) PyTuple_SET_ITEM(args, call->nargs, PyList_New(0)); /* not to be called again: not plain */
    bool fixed = true;
    for (Py_ssize_t i = 0; i < call->nargs; i++) fixed = fixed && is_fixed(call->args[i]);
    for (Py_ssize_t i = 0; i < call->nkw; i++) fixed = fixed && is_fixed(call->kwvalues[i]);
    const char *unnamed = NULL;
    PyObject *found_by = NULL, *key = cache_key(call, &found_by, &unnamed);
    PyObject *data = args ? Py_BuildValue("(OOOIIIO)", call->callable, args, fixed ? Py_True : Py_False,
                                          call->rec->recording->n_writes, call->rec->recording->n_ops,
                                          n_varying(call->rec), key ? key : Py_None)
                          : NULL;
    Py_XDECREF(found_by);
    Py_XDECREF(key);
    Py_XDECREF(args);
    if (data)
        mp_rec_pend(call->rec, call->frame, cached, data);
    else
        mp_call_abandon(call, MP_REASON_NO_MEMORY, "cached function");
    mp_restore(kept);
}
