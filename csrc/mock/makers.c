/* How objects of each type are made again: a step that makes one, and, where it can hold itself, one that fills it. */
#include "mock/contents.h"
#include "mock/walker.h"

#include "observe/observe.h"
#include "trace/raw.h"
#include <structmember.h>

/* -- Containers ---------------------------------------------------------------------------------------------------------- */

/* Already there, or a constant or tensor: mentioning it makes no step. */
static bool is_leaf(walker *w, PyObject *object)
{
    return (mp_is_scalar(object) && !PySlice_Check(object)) || mock_is_tensor(w, object) ||
           mp_map_get(&w->seen, object) != MP_MAP_NONE ||
           w->source->find_object(w->source->context, object) != MP_NO_OBJ;
}

static bool all_leaves(walker *w, PyObject *items)
{
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++)
        if (!is_leaf(w, PySequence_Fast_GET_ITEM(items, i))) return false;
    return true;
}

static int fill_list(walker *w, PyObject *object, mp_operand target)
{ return mock_fill_with_items(w, false, MP_MOCK_LIST_FILL, target, mock_hold(w, mp_sequence_items(object)), NULL); }

static mp_operand make_list(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *items = mock_hold(w, mp_sequence_items(object));
    if (!items) return mock_no_memory(w);
    if (all_leaves(w, items)) return mock_make_of_items(w, MP_MOCK_LIST, items, NULL, NULL);
    mp_operand made = mock_make(w, MP_MOCK_LIST_NEW, NULL, 0, NULL, NULL);
    if (made != MP_NO_OPERAND) w->prog->steps[w->prog->n_steps - 1].n = (uint32_t)PyTuple_GET_SIZE(items);
    return mock_fill_later(w, object, made, fill_list);
}

int mock_fill_dict(walker *w, PyObject *object, mp_operand target)
{
    PyObject *items = mock_hold(w, mp_dict_items(object));
    if (items && PyList_GET_SIZE(items) == 0) return 0;
    return mock_fill_with_items(w, items && !mp_every_key_safe(items, 2), MP_MOCK_DICT_FILL, target, items, NULL);
}

/* Where all keys are constants a dict is copied from a template that holds them, and only the values that differ are stored. */
static mp_operand with_template(walker *w, mp_operand made)
{
    if (made == MP_NO_OPERAND) return made;
    mp_step *dict = &w->prog->steps[w->prog->n_steps - 1];
    const mp_operand *args = w->prog->args + dict->first;
    for (uint32_t i = 0; i < dict->n; i += 2)
        if (MP_OPERAND_KIND(args[i]) != MP_OPERAND_CONST) return made;
    if (!(dict->data = PyDict_New())) return mock_no_memory(w);
    for (uint32_t i = 0; i < dict->n; i += 2) {
        bool fixed = MP_OPERAND_KIND(args[i + 1]) == MP_OPERAND_CONST;
        PyObject *value = fixed ? w->prog->consts[MP_OPERAND_INDEX(args[i + 1])] : Py_None;
        if (PyDict_SetItem(dict->data, w->prog->consts[MP_OPERAND_INDEX(args[i])], value) < 0) return mock_no_memory(w);
    }
    return made;
}

static mp_operand make_dict(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *items = mock_hold(w, mp_dict_items(object));
    if (!items) return mock_no_memory(w);
    if (all_leaves(w, items) && mp_every_key_safe(items, 2))
        return with_template(w, mock_make_of_items(w, MP_MOCK_DICT, items, NULL, NULL));
    return mock_fill_later(w, object, mock_make(w, MP_MOCK_DICT_NEW, NULL, 0, NULL, NULL), mock_fill_dict);
}

/* mp_set_items, held. *layout is held or NULL. NULL with the reason set. */
static PyObject *set_items(walker *w, PyObject *set, PyObject **layout)
{
    PyObject *items = mock_hold(w, mp_set_items(set, layout));
    if (*layout && !mock_hold(w, *layout)) items = NULL;
    if (!items) mock_no_memory(w);
    return items;
}

int mock_fill_set(walker *w, PyObject *object, mp_operand target)
{
    PyObject *layout, *items = set_items(w, object, &layout);
    return items ? mock_fill_with_items(w, !mp_every_key_safe(items, 1), MP_MOCK_SET_FILL, target, items, layout) : -1;
}

static mp_operand make_set(walker *w, PyObject *object, PyTypeObject *base)
{ return mock_fill_later(w, object, mock_make(w, MP_MOCK_SET_NEW, NULL, 0, NULL, NULL), mock_fill_set); }

static mp_operand make_frozenset(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *layout, *items = set_items(w, object, &layout);
    if (!items) return MP_NO_OPERAND;
    if (!mp_every_key_safe(items, 1)) return mock_unrebuildable(w, object, "the order of a ");
    PyObject *how = mock_hold(w, PyTuple_Pack(2, Py_TYPE(object), layout ? layout : Py_None));
    return how ? mock_make_of_items(w, MP_MOCK_FROZENSET, items, how, NULL) : mock_no_memory(w);
}

static int fill_deque(walker *w, PyObject *object, mp_operand target)
{ return mock_fill_with_items(w, false, MP_MOCK_DEQUE_FILL, target, mock_hold(w, mp_sequence_items(object)), NULL); }

/* A deque, or an instance of a subclass, that `how` fills. */
static mp_operand make_deque_that(walker *w, PyObject *object, PyTypeObject *base, fill_fn how)
{
    PyObject *maxlen = mock_hold(w, mp_raw_member(base, "maxlen", object));
    mp_operand limit = mock_value_of(w, maxlen ? maxlen : Py_None);
    return mock_fill_later(w, object, mock_make(w, MP_MOCK_DEQUE_NEW, &limit, 1, (PyObject *)Py_TYPE(object), base),
                           how);
}

static mp_operand make_deque(walker *w, PyObject *object, PyTypeObject *base)
{ return make_deque_that(w, object, base, fill_deque); }

static mp_operand make_tuple(walker *w, PyObject *object, PyTypeObject *base)
{
    bool exact = PyTuple_CheckExact(object);
    if (exact && mp_key_plain(object) && !mock_holds_number(w, object))
        return mock_constant(w, object); /* nothing in it can change */
    return mock_make_of_items(w, exact ? MP_MOCK_TUPLE : MP_MOCK_TUPLE_LIKE, mock_hold(w, mp_sequence_items(object)),
                              exact ? NULL : (PyObject *)Py_TYPE(object), base);
}

static mp_operand make_slice(walker *w, PyObject *object, PyTypeObject *base)
{
    PySliceObject *slice = (PySliceObject *)object;
    mp_operand parts[3] = {mock_value_of(w, slice->start), mock_value_of(w, slice->stop),
                           mock_value_of(w, slice->step)};
    return mock_make(w, MP_MOCK_SLICE, parts, 3, NULL, NULL);
}

static mp_operand make_bytearray(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(object), PyByteArray_GET_SIZE(object));
    if (!mock_hold(w, bytes)) return mock_no_memory(w);
    mp_operand contents = mock_constant(w, bytes);
    return mock_make(w, MP_MOCK_BYTEARRAY, &contents, 1, NULL, NULL);
}

/* A view on a dict; the dict by the view's own C member. */
static mp_operand make_view(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand dict = mock_value_of(w, (PyObject *)((_PyDictViewObject *)object)->dv_dict);
    return mock_make(w, MP_MOCK_VIEW, &dict, 1, (PyObject *)Py_TYPE(object), NULL);
}

/* -- Callables ------------------------------------------------------------------------------------------------------------- */

static mp_operand make_method(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand parts[2] = {mock_value_of(w, PyMethod_GET_FUNCTION(object)),
                           mock_value_of(w, PyMethod_GET_SELF(object))};
    return mock_make(w, MP_MOCK_METHOD, parts, 2, NULL, NULL);
}

/* A C function without self, or of a module, is a constant; one that is bound to an object is bound again. */
static mp_operand make_cfunction(walker *w, PyObject *object, PyTypeObject *base)
{
    PyCFunctionObject *function = (PyCFunctionObject *)object;
    if (!function->m_self || PyModule_Check(function->m_self) || PyType_Check(function->m_self))
        return mock_constant(w, object);
    if (!Py_IS_TYPE(object, &PyCFunction_Type)) return mock_unrebuildable(w, object, "");
    mp_operand parts[2] = {mock_value_of(w, function->m_self),
                           mock_value_of(w, function->m_module ? function->m_module : Py_None)};
    return mock_make(w, MP_MOCK_CFUNCTION, parts, 2, NULL, function->m_ml);
}

static mp_operand make_partial(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand parts[3];
    static const char *const names[] = {"func", "args", "keywords"};
    for (int i = 0; i < 3; i++) {
        PyObject *part = mock_hold(w, mp_raw_member(base, names[i], object));
        if (!part) return mock_unrebuildable(w, object, "");
        parts[i] = mock_value_of(w, part);
        if (parts[i] == MP_NO_OPERAND) return MP_NO_OPERAND;
    }
    return mock_fill_later(w, object, mock_make(w, MP_MOCK_PARTIAL, parts, 3, (PyObject *)Py_TYPE(object), base),
                           mock_fill_attributes);
}

static int fill_function(walker *w, PyObject *object, mp_operand target)
{
    PyObject *dict = ((PyFunctionObject *)object)->func_dict;
    if (!dict || PyDict_GET_SIZE(dict) == 0) return 0;
    mp_operand vars = mock_value_of(w, dict);
    return mock_fill(w, false, MP_MOCK_VARS, target, &vars, 1, NULL, NULL);
}

static mp_operand make_function(walker *w, PyObject *object, PyTypeObject *base)
{
    PyFunctionObject *f = (PyFunctionObject *)object;
    if (!w->source->is_internal(w->source->context, object)) return mock_constant(w, object);
    PyObject *parts[] = {f->func_globals, f->func_closure, f->func_defaults, f->func_kwdefaults, f->func_annotations,
                         f->func_doc,     f->func_module,  f->func_name,     f->func_qualname};
    enum { N = sizeof parts / sizeof *parts };
    mp_operand operands[N];
    for (int i = 0; i < N; i++) {
        bool globals = i == 0 && w->source->find_object(w->source->context, parts[0]) == MP_NO_OBJ;
        operands[i] = globals ? mock_constant(w, parts[0]) : mock_value_of(w, parts[i] ? parts[i] : Py_None);
        if (operands[i] == MP_NO_OPERAND) return MP_NO_OPERAND;
    }
    return mock_fill_later(w, object, mock_make(w, MP_MOCK_FUNCTION, operands, N, f->func_code, NULL), fill_function);
}

static int fill_cell(walker *w, PyObject *object, mp_operand target)
{
    PyObject *held = PyCell_GET(object);
    if (!held) return 0;
    mp_operand value = mock_value_of(w, held);
    return mock_fill(w, false, MP_MOCK_CELL_FILL, target, &value, 1, NULL, NULL);
}

static mp_operand make_cell(walker *w, PyObject *object, PyTypeObject *base)
{ return mock_fill_later(w, object, mock_make(w, MP_MOCK_CELL, NULL, 0, NULL, NULL), fill_cell); }

static int fill_iterator(walker *w, PyObject *object, mp_operand target)
{
    PyObject *parts = mock_hold(w, mp_iterator_parts(object));
    if (!parts) return mock_no_memory(w), -1;
    mp_operand state = mock_value_of(w, PyTuple_GET_ITEM(parts, 1));
    return mock_fill(w, false, MP_MOCK_ITERATOR_FILL, target, &state, 1, NULL, NULL);
}

/* What it goes over is made first, and filled before its state is set. */
static mp_operand make_iterator(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *parts = mock_hold(w, mp_iterator_parts(object));
    if (!parts) return mock_no_memory(w);
    mp_operand args = mock_value_of(w, PyTuple_GET_ITEM(parts, 0));
    if (args == MP_NO_OPERAND) return args;
    mp_operand made = mock_make(w, MP_MOCK_ITERATOR, &args, 1, (PyObject *)base, NULL);
    if (made != MP_NO_OPERAND) w->prog->steps[w->prog->n_steps - 1].tag = PyTuple_GET_ITEM(parts, 2) == Py_True;
    return PyTuple_GET_ITEM(parts, 1) == Py_None ? made : mock_fill_later(w, object, made, fill_iterator);
}

/* How far it is, is set at once and as it is: a list from outside gets its contents at the commit only. */
static mp_operand make_sequence_iterator(walker *w, mp_sequence_iterator *iterator)
{
    PyObject *how = mock_hold(w, Py_BuildValue("(On)", Py_TYPE(iterator), iterator->place));
    if (!how) return mock_no_memory(w);
    mp_operand sequence = iterator->sequence ? mock_value_of(w, iterator->sequence) : MP_NO_OPERAND;
    if (iterator->sequence && sequence == MP_NO_OPERAND) return sequence;
    return mock_make(w, MP_MOCK_OVER_SEQUENCE, &sequence, iterator->sequence ? 1 : 0, how, NULL);
}

mp_operand mock_make_constant(walker *w, PyObject *object, PyTypeObject *base)
{
    if (w->source->is_internal(w->source->context, object))
        return mock_unrebuildable(w, object, "made by the call: a ");
    return mock_constant(w, object);
}

/* -- Instances ---------------------------------------------------------------------------------------------------------------- */

/* Slots declared by the classes of the MRO; unset ones stay unset. */
static int fill_slots(walker *w, PyObject *object, mp_operand target)
{
    PyObject *mro = Py_TYPE(object)->tp_mro, *name, *descr;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(mro); i++) {
        PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
        if (!mp_type_mutable(type)) continue;
        for (Py_ssize_t at = 0; PyDict_Next(type->tp_dict, &at, &name, &descr);) {
            if (!Py_IS_TYPE(descr, &PyMemberDescr_Type) || PyDescr_TYPE(descr) != type) continue;
            PyMemberDef *member = ((PyMemberDescrObject *)descr)->d_member;
            if (member->type != T_OBJECT_EX || member->flags & READONLY) continue;
            PyObject *held = *(PyObject **)((char *)object + member->offset);
            if (!held) continue;
            mp_operand value = mock_value_of(w, held);
            if (mock_fill(w, false, MP_MOCK_SLOT, target, &value, 1, descr, NULL) < 0) return -1;
        }
    }
    return 0;
}

static int fill_vars(walker *w, PyObject *object, mp_operand target)
{
    PyTypeObject *type = Py_TYPE(object);
    if (type->tp_dictoffset == 0) return 0;
    PyObject *dict = PyObject_GenericGetDict(object, NULL), *name, *value;
    if (!dict) return mock_no_memory(w), -1;
    Py_DECREF(dict);
    Py_ssize_t n = PyDict_GET_SIZE(dict), at = 0, i = 0;
    if (n == 0) return 0;
    bool shared = Py_REFCNT(dict) > 1, plain = true; /* shared: someone may hold the dict itself */
    PyObject *names = PyTuple_New(n), *values = PyTuple_New(n);
    for (; names && values && PyDict_Next(dict, &at, &name, &value); i++) {
        PyTuple_SET_ITEM(names, i, Py_NewRef(name));
        PyTuple_SET_ITEM(values, i, Py_NewRef(value));
        plain = plain && PyUnicode_CheckExact(name);
    }
    mock_hold(w, names);
    mock_hold(w, values);
    if (!names || !values) return mock_no_memory(w), -1;
    bool inlined = type->tp_flags & Py_TPFLAGS_MANAGED_DICT; /* attributes stand in the instance: no dict to be made */
    if (shared || !plain || !inlined || mp_map_get(&w->seen, dict) != MP_MAP_NONE) {
        mp_operand vars = mock_value_of(w, dict);
        return mock_fill(w, false, MP_MOCK_VARS, target, &vars, 1, NULL, NULL);
    }
    if (mock_fill_with_items(w, false, MP_MOCK_ATTRS, target, values, names) < 0) return -1;
    /* The quick way, a generic store, is open while no class attribute of these names takes the store for itself. */
    mp_step *attrs = &w->prog->steps[w->prog->n_steps - 1];
    bool taken = !(type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG);
    for (i = 0; i < n && !taken; i++) {
        PyObject *descr = mp_raw_type_lookup(type, PyTuple_GET_ITEM(names, i));
        taken = descr && Py_TYPE(descr)->tp_descr_set;
    }
    attrs->base = type;
    attrs->tag = taken ? 0 : type->tp_version_tag;
    return 0;
}

/* What a Python class adds to its C base: slots and the instance dict. */
int mock_fill_attributes(walker *w, PyObject *object, mp_operand target)
{ return fill_slots(w, object, target) < 0 || fill_vars(w, object, target) < 0 ? -1 : 0; }

static int fill_dict_like(walker *w, PyObject *object, mp_operand target)
{
    PyTypeObject *type = mp_type_defaultdict();
    if (type && PyType_IsSubtype(Py_TYPE(object), type)) {
        PyObject *factory = mock_hold(w, mp_raw_member(type, "default_factory", object));
        mp_operand value = mock_value_of(w, factory ? factory : Py_None);
        PyObject *descr = PyDict_GetItemString(type->tp_dict, "default_factory");
        if (!descr || mock_fill(w, false, MP_MOCK_SLOT, target, &value, 1, descr, NULL) < 0) return -1;
    }
    return mock_fill_dict(w, object, target) < 0 || mock_fill_attributes(w, object, target) < 0 ? -1 : 0;
}

static int fill_list_like(walker *w, PyObject *object, mp_operand target)
{
    if (mock_fill_with_items(w, false, MP_MOCK_LIST_EXTEND, target, mock_hold(w, mp_sequence_items(object)), NULL) < 0)
        return -1;
    return mock_fill_attributes(w, object, target);
}

static int fill_set_like(walker *w, PyObject *object, mp_operand target)
{ return mock_fill_set(w, object, target) < 0 || mock_fill_attributes(w, object, target) < 0 ? -1 : 0; }

static int fill_deque_like(walker *w, PyObject *object, mp_operand target)
{ return fill_deque(w, object, target) < 0 || mock_fill_attributes(w, object, target) < 0 ? -1 : 0; }

static mp_operand make_instance(walker *w, PyObject *object, PyTypeObject *base)
{
    fill_fn how = PyDict_Check(object)     ? fill_dict_like
                  : PyList_Check(object)   ? fill_list_like
                  : PyAnySet_Check(object) ? fill_set_like
                                           : mock_fill_attributes;
    return mock_fill_later(w, object, mock_make(w, MP_MOCK_NEW, NULL, 0, (PyObject *)Py_TYPE(object), base), how);
}

static mp_operand make_deque_like(walker *w, PyObject *object, PyTypeObject *base)
{ return make_deque_that(w, object, base, fill_deque_like); }

/* An instance of a subclass of an immutable type: made by the type's __new__ from the plain value. */
static mp_operand make_value_like(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *plain = base == &PyLong_Type      ? _PyLong_Copy((PyLongObject *)object)
                      : base == &PyFloat_Type   ? PyFloat_FromDouble(PyFloat_AS_DOUBLE(object))
                      : base == &PyUnicode_Type ? _PyUnicode_Copy(object)
                      : base == &PyBytes_Type
                          ? PyBytes_FromStringAndSize(PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object))
                          : PyComplex_FromCComplex(((PyComplexObject *)object)->cval);
    PyObject *arguments = mock_hold(w, plain) ? mock_hold(w, PyTuple_Pack(1, plain)) : NULL;
    if (!arguments) return mock_no_memory(w);
    mp_operand operand = mock_constant(w, arguments);
    mp_operand made = mock_make(w, MP_MOCK_NEW_OF, &operand, 1, (PyObject *)Py_TYPE(object), base);
    return mock_fill_later(w, object, made, mock_fill_attributes);
}

static mp_operand make_tuple_like(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand made = make_tuple(w, object, base);
    return PyTuple_CheckExact(object) ? made : mock_fill_later(w, object, made, mock_fill_attributes);
}

static mp_operand make_frozenset_like(walker *w, PyObject *object, PyTypeObject *base)
{ return mock_fill_later(w, object, make_frozenset(w, object, base), mock_fill_attributes); }

/* An exception that was made but not raised. One that was raised has a traceback, which cannot be made. */
static mp_operand make_exception(walker *w, PyObject *object, PyTypeObject *base)
{
    PyBaseExceptionObject *exception = (PyBaseExceptionObject *)object;
    if (base->tp_basicsize != sizeof *exception || exception->traceback || exception->context || exception->cause ||
        exception->notes || exception->suppress_context)
        return mock_unrebuildable(w, object, "");
    mp_operand arguments = mock_value_of(w, exception->args);
    mp_operand made = mock_make(w, MP_MOCK_NEW_OF, &arguments, 1, (PyObject *)Py_TYPE(object), base);
    return mock_fill_later(w, object, made, mock_fill_attributes);
}

/* -- Which type is made how --------------------------------------------------------------------------------------------------- */

static const struct {
    PyTypeObject *type;
    make_fn exact, like; /* for the type itself, for instances of Python subclasses; NULL: not rebuilt */
} rows[] = {
    {&PyTuple_Type, make_tuple, make_tuple_like},
    {&PyList_Type, make_list, make_instance},
    {&PyDict_Type, make_dict, make_instance},
    {&PyODict_Type, make_instance, make_instance},
    {&PySet_Type, make_set, make_instance},
    {&PyFrozenSet_Type, make_frozenset, make_frozenset_like},
    {&PyBaseObject_Type, make_instance, make_instance},
    {&PyLong_Type, NULL, make_value_like},
    {&PyFloat_Type, NULL, make_value_like},
    {&PyUnicode_Type, NULL, make_value_like},
    {&PyBytes_Type, NULL, make_value_like},
    {&PyComplex_Type, NULL, make_value_like},
    {&PySlice_Type, make_slice, NULL},
    {&PyByteArray_Type, make_bytearray, NULL},
    {&PyMethod_Type, make_method, NULL},
    {&PyFunction_Type, make_function, NULL},
    {&PyCell_Type, make_cell, NULL},
    {&PyCFunction_Type, make_cfunction, NULL},
    {&PyCMethod_Type, make_cfunction, NULL},
    {&PyDictKeys_Type, make_view, NULL},
    {&PyDictValues_Type, make_view, NULL},
    {&PyDictItems_Type, make_view, NULL},
    /* constants: this very object */
    {&PyType_Type, mock_make_constant, mock_make_constant},
    {&PyModule_Type, mock_make_constant, mock_make_constant},
    {&PyCode_Type, mock_make_constant, NULL},
    {&PyMethodDescr_Type, mock_make_constant, NULL},
    {&PyClassMethodDescr_Type, mock_make_constant, NULL},
    {&PyWrapperDescr_Type, mock_make_constant, NULL},
    {&PyGetSetDescr_Type, mock_make_constant, NULL},
    {&PyMemberDescr_Type, mock_make_constant, NULL},
    {&Py_GenericAliasType, mock_make_constant, NULL},
};

static const struct { /* the same for types that only a module knows */
    const char *module, *name;
    make_fn exact, like;
} module_rows[] = {
    {"collections", "deque", make_deque, make_deque_like}, {"collections", "defaultdict", make_instance, make_instance},
    {"functools", "partial", make_partial, make_partial},  {"types", "SimpleNamespace", make_instance, make_instance},
    {"types", "UnionType", mock_make_constant, NULL},      {"re", "Pattern", mock_make_constant, NULL},
    {"datetime", "datetime", mock_make_constant, NULL},    {"datetime", "date", mock_make_constant, NULL},
    {"datetime", "timedelta", mock_make_constant, NULL},   {"decimal", "Decimal", mock_make_constant, NULL},
    {"operator", "attrgetter", mock_make_constant, NULL},  {"operator", "itemgetter", mock_make_constant, NULL},
};

static bool is_enum_member(PyObject *object)
{
    PyObject *meta = mock_loaded_type("enum", "EnumMeta");
    return meta && PyType_IsSubtype(Py_TYPE(Py_TYPE(object)), (PyTypeObject *)meta);
}

static bool is_struct_sequence(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return PyTuple_Check(object) && type->tp_base == &PyTuple_Type &&
           PyDict_GetItemString(type->tp_dict, "n_sequence_fields");
}

mp_operand mock_make_by_type(walker *w, PyObject *object)
{
    PyTypeObject *base = Py_TYPE(object);
    while (base && mp_type_mutable(base)) base = base->tp_base;
    bool exact = base == Py_TYPE(object);
    if (is_enum_member(object)) return mock_constant(w, object); /* one object for the life of its class */
    if (is_struct_sequence(object)) /* torch.return_types and the like: by their own __new__ */
        return mock_make_of_items(w, MP_MOCK_TUPLE_LIKE, mock_hold(w, mp_sequence_items(object)),
                                  (PyObject *)Py_TYPE(object), Py_TYPE(object));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].type == base) {
            make_fn how = exact ? rows[i].exact : rows[i].like;
            return how ? how(w, object, base) : mock_unrebuildable(w, object, "");
        }
    for (size_t i = 0; i < sizeof module_rows / sizeof *module_rows; i++)
        if (mock_loaded_type(module_rows[i].module, module_rows[i].name) == (PyObject *)base) {
            make_fn how = exact ? module_rows[i].exact : module_rows[i].like;
            return how ? how(w, object, base) : mock_unrebuildable(w, object, "");
        }
    if (PyExceptionInstance_Check(object)) return make_exception(w, object, base);
    mp_sequence_iterator *iterator = mp_sequence_iterator_of(object);
    if (iterator) return make_sequence_iterator(w, iterator);
    if (exact && mp_is_iterator(base)) return make_iterator(w, object, base);
    if (PyGen_CheckExact(object)) return mock_unrebuildable(w, object, "return a list instead: a live ");
    return mock_unrebuildable(w, object, "");
}
