/* Mock evaluator: runs the steps of a program, then commits the write set.
**
** Building changes nothing outside. Committing stores first, with the garbage collector held off and every replaced value kept alive until
** all stores are done, so that no finalizer sees a half-committed state; then come the deferred effects. Where a store lets die what has a
** finalizer, the caller does not commit at all (deaths.c).
*/
#include "mock/contents.h"
#include "mock/program.h"

#include "observe/observe.h"
#include "trace/raw.h"
#include "trace/texts.h"

static inline PyObject *get(const mp_mock_run *run, mp_operand operand)
{
    uint32_t index = MP_OPERAND_INDEX(operand);
    switch (MP_OPERAND_KIND(operand)) {
    case MP_OPERAND_CONST: return run->prog->consts[index];
    case MP_OPERAND_OBJECT: return run->objects[index];
    case MP_OPERAND_OUTPUT: return run->outputs[index];
    default: return run->made[index];
    }
}

#define ARG(i) get(run, args[i])
#define TARGET (run->made[step->out])

/* -- Steps: making ---------------------------------------------------------------------------------------------------------
** Each returns a new object, or NULL with an exception. */

typedef PyObject *(*maker)(const mp_mock_run *run, const mp_step *step, const mp_operand *args);

/* By the C method of all tensors. */
static PyObject *make_TENSOR(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return Py_NewRef(ARG(0)); }

/* data: makes the object of the number, or NULL: it is the number. */
static PyObject *make_NUMBER(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    static PyObject *item; /* owned by the process */
    PyObject *tensor = ARG(0);
    if (!item) {
        PyObject *base = mp_import("torch._C", "TensorBase");
        item = base ? PyObject_GetAttrString(base, "item") : NULL;
        Py_XDECREF(base);
        if (!item) return NULL;
    }
    PyObject *number = PyObject_Vectorcall(item, &tensor, 1, NULL);
    if (number && step->data) Py_SETREF(number, PyObject_CallOneArg(step->data, number));
    return number;
}

static PyObject *make_TUPLE(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *tuple = PyTuple_New(step->n);
    for (uint32_t i = 0; tuple && i < step->n; i++) PyTuple_SET_ITEM(tuple, i, Py_NewRef(ARG(i)));
    return tuple;
}

static PyObject *make_DRAWN(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return Py_NewRef(run->drawn[step->tag]); }

/* data: how; base: the type of what comes out, a static one. */
static PyObject *make_TEXT(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *operands = make_TUPLE(run, step, args), *text = NULL;
    if (operands)
        text = mp_text_make((int)PyLong_AsLong(step->data), ((PyTupleObject *)operands)->ob_item, (Py_ssize_t)step->n);
    Py_XDECREF(operands);
    if (text && !Py_IS_TYPE(text, (PyTypeObject *)step->base)) {
        PyErr_SetString(PyExc_RuntimeError, "data of another type"); /* the run is thrown away */
        Py_CLEAR(text);
    }
    return text;
}

/* data: (does it own its memory, may it be written to). */
static PyObject *make_ARRAY(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    static PyObject *make; /* owned by the process: magpy.arrays.array_result */
    if (!make) {
        make = mp_import("magpy.arrays", "array_result");
        if (!make) return NULL;
    }
    return PyObject_CallFunctionObjArgs(make, ARG(0), PyTuple_GET_ITEM(step->data, 0), PyTuple_GET_ITEM(step->data, 1),
                                        NULL);
}

/* data: the class, base: whose __new__ makes it from one iterable. */
static PyObject *make_TUPLE_LIKE(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *items = make_TUPLE(run, step, args), *arguments = items ? PyTuple_Pack(1, items) : NULL;
    PyObject *made =
        arguments ? ((PyTypeObject *)step->base)->tp_new((PyTypeObject *)step->data, arguments, NULL) : NULL;
    Py_XDECREF(items);
    Py_XDECREF(arguments);
    return made;
}

static PyObject *make_LIST(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *list = PyList_New(step->n);
    for (uint32_t i = 0; list && i < step->n; i++) PyList_SET_ITEM(list, i, Py_NewRef(ARG(i)));
    return list;
}

/* Not seen by the collector until LIST_FILL: its places are empty. */
static PyObject *make_LIST_NEW(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *list = PyList_New(step->n);
    if (list) PyObject_GC_UnTrack(list);
    return list;
}

static int store_items(const mp_mock_run *run, PyObject *dict, const mp_operand *args, uint32_t n)
{
    bool ordered = PyODict_Check(dict);
    for (uint32_t i = 0; i < n; i += 2)
        if ((ordered ? PyODict_SetItem : PyDict_SetItem)(dict, ARG(i), ARG(i + 1)) < 0) return -1;
    return 0;
}

/* data: a template with all keys and the values that are constants, or NULL. */
static PyObject *make_DICT(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *dict = step->data ? PyDict_Copy(step->data) : PyDict_New();
    if (dict && !step->data && store_items(run, dict, args, step->n) < 0) Py_CLEAR(dict);
    for (uint32_t i = 0; dict && step->data && i < step->n; i += 2)
        if (MP_OPERAND_KIND(args[i + 1]) != MP_OPERAND_CONST && PyDict_SetItem(dict, ARG(i), ARG(i + 1)) < 0)
            Py_CLEAR(dict);
    return dict;
}

static PyObject *make_DICT_NEW(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyDict_New(); }
static PyObject *make_SET_NEW(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PySet_New(NULL); }

/* data: (the class, how they lie or None). */
static PyObject *make_FROZENSET(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *layout = PyTuple_GET_ITEM(step->data, 1), *items = make_TUPLE(run, step, args);
    PyObject *arguments = !items ? NULL : layout == Py_None ? PyTuple_Pack(1, items) : PyTuple_New(0);
    PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(step->data, 0);
    PyObject *made = arguments ? PyFrozenSet_Type.tp_new(type, arguments, NULL) : NULL;
    if (made && layout != Py_None && mp_set_lay(made, layout, ((PyTupleObject *)items)->ob_item) < 0) Py_CLEAR(made);
    Py_XDECREF(items);
    Py_XDECREF(arguments);
    return made;
}

/* data: the class; base: deque. */
static PyObject *make_DEQUE_NEW(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyTypeObject *deque = step->base;
    PyObject *nothing = PyTuple_New(0), *arguments = nothing ? PyTuple_Pack(2, nothing, ARG(0)) : NULL;
    PyObject *made = arguments ? deque->tp_new((PyTypeObject *)step->data, nothing, NULL) : NULL;
    if (made && deque->tp_init(made, arguments, NULL) < 0) Py_CLEAR(made);
    Py_XDECREF(nothing);
    Py_XDECREF(arguments);
    return made;
}

static PyObject *make_SLICE(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PySlice_New(ARG(0), ARG(1), ARG(2)); }

static PyObject *make_BYTEARRAY(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyByteArray_FromObject(ARG(0)); }

static PyObject *make_CELL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyCell_New(NULL); }

static PyObject *make_METHOD(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyMethod_New(ARG(0), ARG(1)); }

/* base: the method definition. */
static PyObject *make_CFUNCTION(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyCFunction_NewEx(step->base, ARG(0), ARG(1) == Py_None ? NULL : ARG(1)); }

/* data: the class; base: functools.partial. */
static PyObject *make_PARTIAL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *function = PyTuple_Pack(1, ARG(0)), *arguments = function ? PySequence_Concat(function, ARG(1)) : NULL;
    PyObject *made =
        arguments ? ((PyTypeObject *)step->base)->tp_new((PyTypeObject *)step->data, arguments, ARG(2)) : NULL;
    Py_XDECREF(function);
    Py_XDECREF(arguments);
    return made;
}

/* data: the code. */
static PyObject *make_FUNCTION(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *made = PyFunction_NewWithQualName(step->data, ARG(0), ARG(8));
    if (!made) return NULL;
    PyFunctionObject *f = (PyFunctionObject *)made;
    PyObject **const places[] = {&f->func_closure,     &f->func_defaults, &f->func_kwdefaults,
                                 &f->func_annotations, &f->func_doc,      &f->func_module};
    for (uint32_t i = 0; i < sizeof places / sizeof *places; i++) {
        bool none_is_none = places[i] == &f->func_doc || places[i] == &f->func_module;
        PyObject *value = ARG(i + 1);
        Py_XSETREF(*places[i], value == Py_None && !none_is_none ? NULL : Py_NewRef(value));
    }
    Py_SETREF(f->func_name, Py_NewRef(ARG(7)));
    return made;
}

static PyObject *make_VIEW(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return _PyDictView_New(ARG(0), (PyTypeObject *)step->data); }

/* data: the class; base: its C base, whose __new__ takes nothing. */
static PyObject *make_NEW(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *nothing = PyTuple_New(0); /* a singleton */
    PyObject *made = nothing ? ((PyTypeObject *)step->base)->tp_new((PyTypeObject *)step->data, nothing, NULL) : NULL;
    Py_XDECREF(nothing);
    return made;
}

/* data: the class; base: its C base. */
static PyObject *make_NEW_OF(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return ((PyTypeObject *)step->base)->tp_new((PyTypeObject *)step->data, ARG(0), NULL); }

/* data: (the type, how far it is). */
static PyObject *make_OVER_SEQUENCE(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(step->data, 0);
    return mp_sequence_iterator_new(type, step->n ? ARG(0) : NULL, PyLong_AsSsize_t(PyTuple_GET_ITEM(step->data, 1)));
}

/* data: the type. */
static PyObject *make_ITERATOR(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return mp_iterator_make((PyTypeObject *)step->data, ARG(0), step->tag); }

/* -- Steps: filling ------------------------------------------------------------------------------------------------------------
** 0, or -1 with an exception. */

typedef int (*filler)(const mp_mock_run *run, const mp_step *step, const mp_operand *args);

static int fill_LIST_FILL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    for (uint32_t i = 0; i < step->n; i++) PyList_SET_ITEM(TARGET, i, Py_NewRef(ARG(i)));
    PyObject_GC_Track(TARGET);
    return 0;
}

static int fill_LIST_EXTEND(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    for (uint32_t i = 0; i < step->n; i++)
        if (PyList_Append(TARGET, ARG(i)) < 0) return -1;
    return 0;
}

static int fill_DICT_FILL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return store_items(run, TARGET, args, step->n); }

/* data: how they lie, or NULL: they are added one by one. */
static int fill_SET_FILL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    if (step->data) {
        PyObject *items = make_TUPLE(run, step, args);
        int failed = items ? mp_set_lay(TARGET, step->data, ((PyTupleObject *)items)->ob_item) : -1;
        Py_XDECREF(items);
        return failed;
    }
    for (uint32_t i = 0; i < step->n; i++)
        if (PySet_Add(TARGET, ARG(i)) < 0) return -1;
    return 0;
}

/* The C method `name` of deque, whatever a subclass calls so. */
static int call_deque(PyObject *deque, const char *name, PyObject *argument)
{
    PyTypeObject *type = mp_type_deque();
    PyObject *method = type ? PyDict_GetItemString(type->tp_dict, name) : NULL;
    PyObject *done = method ? PyObject_CallFunctionObjArgs(method, deque, argument, NULL) : NULL;
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int fill_DEQUE_FILL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    for (uint32_t i = 0; i < step->n; i++)
        if (call_deque(TARGET, "append", ARG(i)) < 0) return -1;
    return 0;
}

static int fill_CELL_FILL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyCell_Set(TARGET, ARG(0)); }

/* data: names; base: the class, while whose version is `tag` a generic store ends in the instance itself. */
static int fill_ATTRS(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyTypeObject *type = step->base;
    PyObject *target = TARGET, *names = step->data;
    if (step->tag && (type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG) && type->tp_version_tag == step->tag) {
        for (uint32_t i = 0; i < step->n; i++)
            if (PyObject_GenericSetAttr(target, PyTuple_GET_ITEM(names, i), ARG(i)) < 0) return -1;
        return 0;
    }
    PyObject *dict = PyObject_GenericGetDict(target, NULL);
    int failed = dict ? 0 : -1;
    for (uint32_t i = 0; !failed && i < step->n; i++) failed = PyDict_SetItem(dict, PyTuple_GET_ITEM(names, i), ARG(i));
    Py_XDECREF(dict);
    return failed;
}

static int fill_VARS(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return PyObject_GenericSetDict(TARGET, ARG(0), NULL); }

/* data: the C descriptor. */
static int fill_SLOT(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{ return Py_TYPE(step->data)->tp_descr_set(step->data, TARGET, ARG(0)); }

static int fill_ITERATOR_FILL(const mp_mock_run *run, const mp_step *step, const mp_operand *args)
{
    PyObject *done = PyObject_CallMethod(TARGET, "__setstate__", "(O)", ARG(0));
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static const maker makers[MP_MOCK_OP_COUNT] = {
#define MAKES(op) [MP_MOCK_##op] = make_##op
    MAKES(DRAWN),      MAKES(TEXT),          MAKES(TENSOR),   MAKES(ARRAY),     MAKES(NUMBER),   MAKES(TUPLE),
    MAKES(TUPLE_LIKE), MAKES(LIST),          MAKES(LIST_NEW), MAKES(DICT),      MAKES(DICT_NEW), MAKES(SET_NEW),
    MAKES(FROZENSET),  MAKES(DEQUE_NEW),     MAKES(SLICE),    MAKES(BYTEARRAY), MAKES(CELL),     MAKES(METHOD),
    MAKES(CFUNCTION),  MAKES(PARTIAL),       MAKES(FUNCTION), MAKES(VIEW),      MAKES(NEW),      MAKES(NEW_OF),
    MAKES(ITERATOR),   MAKES(OVER_SEQUENCE),
};
static const filler fillers[MP_MOCK_OP_COUNT] = {
#define FILLS(op) [MP_MOCK_##op] = fill_##op
    FILLS(LIST_FILL), FILLS(LIST_EXTEND), FILLS(DICT_FILL), FILLS(SET_FILL), FILLS(DEQUE_FILL),
    FILLS(CELL_FILL), FILLS(ATTRS),       FILLS(VARS),      FILLS(SLOT),     FILLS(ITERATOR_FILL),
};

/* -- Building ------------------------------------------------------------------------------------------------------------------- */

static mp_mock_run *new_run(mp_mock_program *prog)
{
    mp_mock_run *run = prog->spare;
    if (run)
        prog->spare = NULL;
    else {
        size_t size = sizeof *run + prog->n_stores * sizeof *run->stores;
        run = PyMem_Calloc(1, size + prog->n_made * sizeof *run->made);
        if (!run) {
            PyErr_NoMemory();
            return NULL;
        }
        run->made = (PyObject **)((char *)run + size);
        run->prog = prog;
    }
    prog->refs++;
    return run;
}

void mp_mock_free_run(mp_mock_run *run) { PyMem_Free(run); }

/* Drop all that the run holds and give it back to its program. May run anyone's finalizers. */
static void end_run(mp_mock_run *run)
{
    mp_mock_program *prog = run->prog;
    for (uint32_t i = 0; i < prog->n_made; i++) Py_CLEAR(run->made[i]);
    for (uint32_t i = 0; i < prog->n_stores; i++) {
        mp_pending_store *store = &run->stores[i];
        Py_CLEAR(store->old); /* in the order in which they were replaced */
    }
    for (uint32_t i = 0; i < prog->n_stores; i++) {
        mp_pending_store *store = &run->stores[i];
        Py_CLEAR(store->value);
        Py_CLEAR(store->key);
        Py_CLEAR(store->owner);
    }
    Py_CLEAR(run->result);
    if (prog->spare)
        mp_mock_free_run(run);
    else
        prog->spare = run;
    mp_mock_free(prog);
}

static PyObject *new_reference(const mp_mock_run *run, mp_operand operand)
{ return operand == MP_NO_OPERAND ? NULL : Py_NewRef(get(run, operand)); }

mp_mock_run *mp_mock_build(mp_mock_program *prog, PyObject *const *objects, PyObject *const *outputs,
                           PyObject *const *drawn)
{
    mp_mock_run *run = new_run(prog);
    if (!run) return NULL;
    run->objects = objects;
    run->outputs = outputs;
    run->drawn = drawn;
    for (uint32_t i = 0; i < prog->n_steps; i++) {
        const mp_step *step = &prog->steps[i];
        const mp_operand *args = prog->args + step->first;
        maker make = makers[step->op];
        if (make ? !(run->made[step->out] = make(run, step, args)) : fillers[step->op](run, step, args) < 0)
            goto failed;
    }
    for (uint32_t i = 0; i < prog->n_stores; i++) {
        const mp_mock_store *store = &prog->stores[i];
        run->stores[i].owner = new_reference(run, store->owner);
        run->stores[i].key = new_reference(run, store->key);
        run->stores[i].value = new_reference(run, store->value);
    }
    run->result = Py_NewRef(get(run, prog->result));
    return run;
failed:
    mp_mock_discard(run);
    return NULL;
}

PyObject *mp_mock_result(const mp_mock_run *run) { return run->result; }

PyObject *mp_mock_stores(const mp_mock_run *run)
{
    static const char *const kinds[] = {
#define MP_WRITE_KIND(name) #name,
        MP_WRITE_KINDS(MP_WRITE_KIND)
#undef MP_WRITE_KIND
    };
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < run->prog->n_stores; i++) {
        const mp_pending_store *store = &run->stores[i];
        uint8_t kind = run->prog->stores[i].kind;
        if (kind == MP_WRITE_CALL) continue;
        PyObject *key = store->key ? store->key : Py_None;
        PyObject *row = store->value ? Py_BuildValue("(sOOO)", kinds[kind], store->owner, key, store->value)
                                     : Py_BuildValue("(sOO)", kinds[kind], store->owner, key);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

void mp_mock_discard(mp_mock_run *run)
{
    if (!run) return;
    mp_kept kept = mp_keep();
    for (uint32_t i = 0; i < run->prog->n_made; i++) /* to the program they never were */
        if (run->made[i]) mp_never_finalize(run->made[i]);
    end_run(run);
    mp_restore(kept);
}

/* -- Committing -------------------------------------------------------------------------------------------------------------------
** One function per kind of write. Each puts what it replaces into store->old, so that nothing is released in between. 0, or -1 with an
** exception, which only a lack of memory causes. */

static int store_KEY(mp_pending_store *store)
{
    PyObject *dict = store->owner;
    store->old = Py_XNewRef(PyDict_GetItemWithError(dict, store->key));
    if (!store->old && PyErr_Occurred()) return -1;
    if (store->value) return (PyODict_Check(dict) ? PyODict_SetItem : PyDict_SetItem)(dict, store->key, store->value);
    if (!store->old) return 0;
    return (PyODict_Check(dict) ? PyODict_DelItem : PyDict_DelItem)(dict, store->key);
}

static int store_ITEM(mp_pending_store *store)
{
    Py_ssize_t index = PyLong_AsSsize_t(store->key);
    if (index < 0 || index >= PyList_GET_SIZE(store->owner) || !store->value) {
        PyErr_SetString(PyExc_SystemError, "magpy: a list changed between check and commit");
        return -1;
    }
    store->old = PyList_GET_ITEM(store->owner, index);
    PyList_SET_ITEM(store->owner, index, Py_NewRef(store->value));
    return 0;
}

static int store_CELL(mp_pending_store *store)
{
    store->old = PyCell_GET(store->owner);
    PyCell_SET(store->owner, Py_XNewRef(store->value));
    return 0;
}

static int store_SLOT(mp_pending_store *store)
{
    PyTypeObject *descr = Py_TYPE(store->key);
    if (descr->tp_descr_get)
        store->old = descr->tp_descr_get(store->key, store->owner, (PyObject *)Py_TYPE(store->owner));
    PyErr_Clear(); /* an unset slot */
    if (!store->value && !store->old) return 0;
    return descr->tp_descr_set(store->key, store->owner, store->value);
}

static int store_ATTR(mp_pending_store *store)
{
    PyObject *owner = store->owner, *dict = mp_raw_dict(owner);
    PyTypeObject *local = mp_type_thread_local();
    if (PyType_Check(owner)) {
        store->old = Py_XNewRef(PyDict_GetItemWithError(((PyTypeObject *)owner)->tp_dict, store->key));
        return PyType_Type.tp_setattro(owner, store->key, store->value);
    }
    if (local && PyType_IsSubtype(Py_TYPE(owner), local)) {
        store->old = PyObject_GetAttr(owner, store->key);
        PyErr_Clear();
        return local->tp_setattro(owner, store->key, store->value);
    }
    if (dict)
        store->old = Py_XNewRef(PyDict_GetItemWithError(dict, store->key));
    else {
        PyObject **slot = mp_instance_value_slot(owner, store->key);
        store->old = slot ? Py_XNewRef(*slot) : NULL;
    }
    return PyObject_GenericSetAttr(owner, store->key, store->value);
}

/* Sizes and strides, as an in-place view operator of the program has left them. */
static int store_layout(PyObject *tensor, PyObject *layout)
{
    PyObject *done =
        PyObject_CallMethod(tensor, "as_strided_", "OO", PyTuple_GET_ITEM(layout, 0), PyTuple_GET_ITEM(layout, 1));
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Through the C descriptor of tensors. */
static int store_TENSOR_ATTR(mp_pending_store *store)
{
    if (PyUnicode_CompareWithASCIIString(store->key, "layout") == 0 && store->value)
        return store_layout(store->owner, store->value);
    store->old = PyObject_GenericGetAttr(store->owner, store->key);
    PyErr_Clear();
    return PyObject_GenericSetAttr(store->owner, store->key, store->value);
}

static int store_LIST_APPEND(mp_pending_store *store) { return PyList_Append(store->owner, store->value); }

/* The C method `name` of `base`, called on `object` with at most one argument. */
static int call_base(PyTypeObject *base, const char *name, PyObject *object, PyObject *argument)
{
    PyObject *method = PyDict_GetItemString(base->tp_dict, name);
    PyObject *done = method ? PyObject_CallFunctionObjArgs(method, object, argument, NULL) : NULL;
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int replace_dict(mp_pending_store *store)
{
    PyObject *dict = store->owner, *key, *value;
    bool ordered = PyODict_Check(dict);
    store->old = PyDict_Copy(dict);
    if (!store->old || (ordered ? call_base(&PyODict_Type, "clear", dict, NULL) : (PyDict_Clear(dict), 0)) < 0)
        return -1;
    for (Py_ssize_t at = 0; PyDict_Next(store->value, &at, &key, &value);)
        if ((ordered ? PyODict_SetItem : PyDict_SetItem)(dict, key, value) < 0) return -1;
    return 0;
}

static int replace_set(mp_pending_store *store)
{
    mp_set_swap(store->owner, store->value); /* the new set is this store's alone */
    store->old = store->value;
    store->value = NULL;
    return 0;
}

static int replace_deque(mp_pending_store *store)
{
    PyTypeObject *deque = mp_type_deque();
    store->old = PySequence_List(store->owner);
    if (!store->old || !deque || call_base(deque, "clear", store->owner, NULL) < 0) return -1;
    return call_base(deque, "extend", store->owner, store->value);
}

static int store_CONTENTS(mp_pending_store *store)
{
    PyObject *owner = store->owner;
    if (PyDict_Check(owner)) return replace_dict(store);
    if (PyAnySet_Check(owner)) return replace_set(store);
    if (!PyList_Check(owner)) return replace_deque(store);
    store->old = PyList_GetSlice(owner, 0, PyList_GET_SIZE(owner));
    return store->old ? PyList_SetSlice(owner, 0, PyList_GET_SIZE(owner), store->value) : -1;
}

static int store_CONTEXT_VAR(mp_pending_store *store)
{
    PyObject *token = PyContextVar_Set(store->owner, store->value); /* the token keeps the old value until the end */
    store->old = token;
    return token ? 0 : -1;
}

static int (*const storers[MP_WRITE_KIND_COUNT])(mp_pending_store *) = {
#define STORES(kind) [MP_WRITE_##kind] = store_##kind
    STORES(KEY),         STORES(ITEM),     STORES(CELL),        STORES(SLOT),        STORES(ATTR),
    STORES(LIST_APPEND), STORES(CONTENTS), STORES(CONTEXT_VAR), STORES(TENSOR_ATTR),
};

/* callable(*args, **kwargs) with `how` (args, kwargs, frames): each frame's function calls the next, the innermost the callable. Owned result,
** or NULL with an exception. */
static PyObject *make_effect(PyObject *callable, PyObject *how)
{
    PyObject *args = PyTuple_GET_ITEM(how, 0), *kwargs = PyTuple_GET_ITEM(how, 1), *frames = PyTuple_GET_ITEM(how, 2);
    Py_ssize_t n = PyTuple_GET_SIZE(frames);
    if (!n) return PyObject_Call(callable, args, kwargs);
    PyObject *none = PyDict_New(), *call = none ? PyTuple_Pack(3, callable, args, kwargs) : NULL;
    for (Py_ssize_t i = n; call && i-- > 1;) Py_SETREF(call, PyTuple_Pack(3, PyTuple_GET_ITEM(frames, i), call, none));
    PyObject *result = call ? PyObject_Call(PyTuple_GET_ITEM(frames, 0), call, NULL) : NULL;
    Py_XDECREF(call);
    Py_XDECREF(none);
    return result;
}

/* What the effect given by `ref` has given in this commit, or the object itself where it is no such number. Borrowed. */
static PyObject *given(const mp_mock_run *run, PyObject *ref)
{
    mp_obj_id number = mp_ref_id(ref);
    if (number == MP_NO_OBJ) return ref;
    for (uint32_t i = 0; i < run->prog->n_stores; i++)
        if (run->prog->stores[i].kind == MP_WRITE_CALL && number-- == 0)
            return run->stores[i].old ? run->stores[i].old : ref;
    return ref;
}

/* `how` (args, kwargs, frames) with what earlier effects gave in the place of their numbers. Owned, or NULL with an exception. */
static PyObject *with_given(const mp_mock_run *run, PyObject *how)
{
    PyObject *args = PyTuple_GET_ITEM(how, 0), *kwargs = PyTuple_GET_ITEM(how, 1), *key, *value;
    bool any = false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++) any |= mp_ref_id(PyTuple_GET_ITEM(args, i)) != MP_NO_OBJ;
    for (Py_ssize_t at = 0; PyDict_Next(kwargs, &at, &key, &value);) any |= mp_ref_id(value) != MP_NO_OBJ;
    if (!any) return Py_NewRef(how);
    PyObject *new_args = PyTuple_New(PyTuple_GET_SIZE(args)), *new_kwargs = new_args ? PyDict_New() : NULL,
             *made = NULL;
    for (Py_ssize_t i = 0; new_args && i < PyTuple_GET_SIZE(args); i++)
        PyTuple_SET_ITEM(new_args, i, Py_NewRef(given(run, PyTuple_GET_ITEM(args, i))));
    for (Py_ssize_t at = 0; new_kwargs && PyDict_Next(kwargs, &at, &key, &value);)
        if (PyDict_SetItem(new_kwargs, key, given(run, value)) < 0) Py_CLEAR(new_kwargs);
    if (new_kwargs) made = PyTuple_Pack(3, new_args, new_kwargs, PyTuple_GET_ITEM(how, 2));
    Py_XDECREF(new_args);
    Py_XDECREF(new_kwargs);
    return made;
}

/* Deferred effects in order; the first that raises ends them, as it would have ended the program. */
static int run_effects(mp_mock_run *run)
{
    for (uint32_t i = 0; i < run->prog->n_stores; i++) {
        if (run->prog->stores[i].kind != MP_WRITE_CALL) continue;
        PyObject *how = with_given(run, run->stores[i].value);
        PyObject *done = how ? make_effect(run->stores[i].key, how) : NULL;
        Py_XDECREF(how);
        if (!done) return -1;
        run->stores[i].old = done; /* for those that follow */
    }
    return 0;
}

PyObject *mp_mock_commit(mp_mock_run *run)
{
    PyObject *result = run->result; /* ours now */
    run->result = NULL;
    for (uint32_t i = 0; i < run->prog->n_made; i++) Py_CLEAR(run->made[i]); /* held by the result and the stores */
    uint32_t n = run->prog->n_stores;
    int failed = 0;
    if (n) {
        bool effects = false;
        int collecting = PyGC_Disable();
        for (uint32_t i = 0; i < n && !failed; i++) {
            uint8_t kind = run->prog->stores[i].kind;
            if (kind == MP_WRITE_CALL)
                effects = true;
            else
                failed = storers[kind](&run->stores[i]);
        }
        if (collecting) PyGC_Enable();
        if (!failed && effects) failed = run_effects(run);
    }
    if (failed) Py_CLEAR(result);
    mp_kept kept = mp_keep();
    end_run(run);
    mp_restore(kept);
    return result;
}

/* -- The program as an object ------------------------------------------------------------------------------------------------------- */

size_t mp_mock_objects(const mp_mock_program *prog, const mp_obj_id **objects)
{
    *objects = prog->objects;
    return prog->n_objects;
}

PyObject *mp_mock_looks(const mp_mock_program *prog) { return prog->looks; }

size_t mp_mock_values(const mp_mock_program *prog, const mp_value_id **values)
{
    *values = prog->values;
    return prog->n_values;
}

int mp_mock_traverse(mp_mock_program *prog, visitproc visit, void *arg)
{
    if (!prog) return 0;
    for (uint32_t i = 0; i < prog->n_consts; i++) Py_VISIT(prog->consts[i]);
    for (uint32_t i = 0; i < prog->n_steps; i++) Py_VISIT(prog->steps[i].data);
    return 0;
}

void mp_mock_free(mp_mock_program *prog)
{
    if (!prog || --prog->refs > 0) return;
    for (uint32_t i = 0; i < prog->n_consts; i++) Py_XDECREF(prog->consts[i]);
    for (uint32_t i = 0; i < prog->n_steps; i++) Py_XDECREF(prog->steps[i].data);
    for (uint32_t i = 0; i < prog->n_paths; i++) Py_XDECREF(prog->paths[i]);
    if (prog->spare) mp_mock_free_run(prog->spare);
    PyMem_RawFree(prog->consts);
    PyMem_RawFree(prog->steps);
    PyMem_RawFree(prog->args);
    PyMem_RawFree(prog->objects);
    PyMem_RawFree(prog->paths);
    PyMem_RawFree(prog->values);
    Py_XDECREF(prog->looks);
    PyMem_RawFree(prog->stores);
    PyMem_RawFree(prog);
}
