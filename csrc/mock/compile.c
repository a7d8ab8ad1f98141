/* Mock compiler (result and write set -> steps).
**
** The values are walked once. What is immutable is made after its parts; what can be filled is made empty first and put on a work
** list, so that cycles close and sharing is kept by one table of what has been seen. A value whose C type has no row here cannot be
** rebuilt, and is the reason why the call is not compiled.
*/
#include "mock/contents.h"
#include "mock/program.h"

#include "trace/map.h"
#include "trace/ndarray.h"
#include "trace/raw.h"
#include <structmember.h>

#define MAX_DEPTH 200 /* of tuples in tuples; containers that are filled later do not nest the walk */

typedef struct walker walker;
typedef mp_operand (*make_fn)(walker *w, PyObject *object, PyTypeObject *base);
typedef int (*fill_fn)(walker *w, PyObject *object, mp_operand target);

typedef struct {      /* a made object that is still to be filled */
    PyObject *object; /* borrowed from the result, the writes or `keep` */
    mp_operand target;
    fill_fn fill;
} todo;

struct walker {
    mp_mock_program *prog;
    const mp_mock_source *source;
    mp_reason *why;
    mp_map seen;               /* object -> operand */
    PyTypeObject *tensor_type; /* borrowed from the loaded torch, or NULL */
    PyObject *keep;            /* owned list: objects made by looking, so that their addresses stay theirs */
    todo *todos;
    uint32_t n_todos;
    mp_step *late; /* fills that hash with the user's code: after everything else, inner ones first */
    uint32_t n_late;
    int depth;
};

static mp_operand value_of(walker *w, PyObject *object);

/* -- Growing the program ------------------------------------------------------------------------------------------------ */

static mp_operand no_memory(walker *w)
{
    PyErr_Clear();
    mp_reason_set(w->why, MP_REASON_NO_MEMORY, "mocks");
    return MP_NO_OPERAND;
}

static mp_operand unrebuildable(walker *w, PyObject *object, const char *what)
{
    mp_reason_set(w->why, MP_REASON_UNREBUILDABLE, "%s%s", what, Py_TYPE(object)->tp_name);
    return MP_NO_OPERAND;
}

/* Room for one more element behind the *count of *array, which grow by doubling. NULL without memory. */
static void *grow(void *array_address, uint32_t *count, size_t size)
{
    void **array = array_address;
    if ((*count & (*count - 1)) == 0) { /* 0 or a power of two: full */
        void *bigger = PyMem_RawRealloc(*array, (*count ? *count * 2 : 1) * size);
        if (!bigger) return NULL;
        *array = bigger;
    }
    void *place = (char *)*array + (*count)++ * size;
    memset(place, 0, size);
    return place;
}

static mp_operand constant(walker *w, PyObject *value)
{
    PyObject **place = grow(&w->prog->consts, &w->prog->n_consts, sizeof *place);
    if (!place) return no_memory(w);
    *place = Py_NewRef(value);
    return MP_OPERAND(MP_OPERAND_CONST, w->prog->n_consts - 1);
}

static bool add_arg(walker *w, mp_operand operand)
{
    if (operand == MP_NO_OPERAND) return false;
    mp_operand *place = grow(&w->prog->args, &w->prog->n_args, sizeof *place);
    if (!place) {
        no_memory(w);
        return false;
    }
    *place = operand;
    return true;
}

static uint32_t new_made(walker *w) { return w->prog->n_made++; }

/* A step over operands (n of them, copied). out: what it fills, or UINT32_MAX to make something new. The operand of what it makes or
** fills, or MP_NO_OPERAND. data: borrowed or NULL. */
static mp_operand step(walker *w, bool late, mp_mock_op op, uint32_t out, const mp_operand *args, uint32_t n,
                       PyObject *data, void *base)
{
    uint32_t first = w->prog->n_args;
    for (uint32_t i = 0; i < n; i++)
        if (!add_arg(w, args[i])) return MP_NO_OPERAND;
    mp_step *place =
        late ? grow(&w->late, &w->n_late, sizeof *place) : grow(&w->prog->steps, &w->prog->n_steps, sizeof *place);
    if (!place) return no_memory(w);
    if (out == UINT32_MAX) out = new_made(w);
    *place = (mp_step){.op = (uint8_t)op, .out = out, .n = n, .first = first, .data = Py_XNewRef(data), .base = base};
    return MP_OPERAND(MP_OPERAND_MADE, out);
}

static mp_operand make(walker *w, mp_mock_op op, const mp_operand *args, uint32_t n, PyObject *data, void *base)
{ return step(w, false, op, UINT32_MAX, args, n, data, base); }

static int fill(walker *w, bool late, mp_mock_op op, mp_operand target, const mp_operand *args, uint32_t n,
                PyObject *data, void *base)
{ return step(w, late, op, MP_OPERAND_INDEX(target), args, n, data, base) == MP_NO_OPERAND ? -1 : 0; }

static int remember(walker *w, PyObject *object, mp_operand operand)
{
    if (operand == MP_NO_OPERAND) return -1;
    if (mp_map_put(&w->seen, object, operand) == 0) return 0;
    no_memory(w);
    return -1;
}

/* `target` will be filled with what `object` holds, once everything has been made. */
static mp_operand fill_later(walker *w, PyObject *object, mp_operand target, fill_fn how)
{
    if (target == MP_NO_OPERAND) return target;
    todo *place = grow(&w->todos, &w->n_todos, sizeof *place);
    if (!place) return no_memory(w);
    *place = (todo){object, target, how};
    return target;
}

/* Hold an object that looking has made (owned, may be NULL); its borrowed self. */
static PyObject *hold(walker *w, PyObject *made)
{
    if (!made)
        PyErr_Clear();
    else if (PyList_Append(w->keep, made) < 0) {
        no_memory(w);
        Py_CLEAR(made);
    }
    Py_XDECREF(made);
    return made;
}

/* The operands of a list's items (borrowed list or tuple). Owned array to PyMem_Free, or NULL with the reason set. */
static mp_operand *operands_of(walker *w, PyObject *items)
{
    Py_ssize_t n = PySequence_Fast_GET_SIZE(items);
    mp_operand *operands = PyMem_Malloc((size_t)(n + 1) * sizeof *operands);
    if (!operands) no_memory(w);
    for (Py_ssize_t i = 0; operands && i < n; i++)
        if ((operands[i] = value_of(w, PySequence_Fast_GET_ITEM(items, i))) == MP_NO_OPERAND) {
            PyMem_Free(operands);
            return NULL;
        }
    return operands;
}

static mp_operand make_of_items(walker *w, mp_mock_op op, PyObject *items, PyObject *data, void *base)
{
    if (!items) return no_memory(w);
    mp_operand *operands = operands_of(w, items);
    if (!operands) return MP_NO_OPERAND;
    mp_operand made = make(w, op, operands, (uint32_t)PySequence_Fast_GET_SIZE(items), data, base);
    PyMem_Free(operands);
    return made;
}

static int fill_with_items(walker *w, bool late, mp_mock_op op, mp_operand target, PyObject *items, PyObject *data)
{
    if (!items) return no_memory(w), -1;
    mp_operand *operands = operands_of(w, items);
    if (!operands) return -1;
    int failed = fill(w, late, op, target, operands, (uint32_t)PySequence_Fast_GET_SIZE(items), data, NULL);
    PyMem_Free(operands);
    return failed;
}

/* A type as a loaded module shows it, without importing or running anything. Borrowed or NULL. */
static PyObject *loaded_type(const char *module_name, const char *name)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), module_name);
    PyObject *found = module && PyModule_Check(module) ? PyDict_GetItemString(PyModule_GetDict(module), name) : NULL;
    return found && PyType_Check(found) ? found : NULL;
}

static bool is_tensor(const walker *w, PyObject *object)
{ return w->tensor_type && PyType_IsSubtype(Py_TYPE(object), w->tensor_type); }

/* -- Containers ---------------------------------------------------------------------------------------------------------- */

/* The graph value of a number that is data, or MP_NO_VALUE; *make (borrowed): what makes the object of it, or NULL. */
static mp_value_id number_value(const walker *w, PyObject *object, PyObject **make)
{ return w->source->find_number ? w->source->find_number(w->source->context, object, make) : MP_NO_VALUE; }

static PyObject *text_template(const walker *w, PyObject *object)
{ return w->source->find_text ? w->source->find_text(w->source->context, object) : NULL; }

/* Is there such a number, or a text of one, in a tuple or slice? Other constants cannot hold one: their parts have been looked at. */
static bool holds_number(const walker *w, PyObject *object)
{
    if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        return holds_number(w, slice->start) || holds_number(w, slice->stop) || holds_number(w, slice->step);
    }
    for (Py_ssize_t i = 0; PyTuple_CheckExact(object) && i < PyTuple_GET_SIZE(object); i++)
        if (holds_number(w, PyTuple_GET_ITEM(object, i))) return true;
    if (PyTuple_CheckExact(object)) return false;
    PyObject *made_by = NULL;
    return text_template(w, object) || number_value(w, object, &made_by) != MP_NO_VALUE;
}

/* Already there, or a constant or tensor: mentioning it makes no step. */
static bool is_leaf(walker *w, PyObject *object)
{
    return (mp_is_scalar(object) && !PySlice_Check(object)) || is_tensor(w, object) ||
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
{ return fill_with_items(w, false, MP_MOCK_LIST_FILL, target, hold(w, mp_sequence_items(object)), NULL); }

static mp_operand make_list(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *items = hold(w, mp_sequence_items(object));
    if (!items) return no_memory(w);
    if (all_leaves(w, items)) return make_of_items(w, MP_MOCK_LIST, items, NULL, NULL);
    mp_operand made = make(w, MP_MOCK_LIST_NEW, NULL, 0, NULL, NULL);
    if (made != MP_NO_OPERAND) w->prog->steps[w->prog->n_steps - 1].n = (uint32_t)PyTuple_GET_SIZE(items);
    return fill_later(w, object, made, fill_list);
}

static int fill_dict(walker *w, PyObject *object, mp_operand target)
{
    PyObject *items = hold(w, mp_dict_items(object));
    if (items && PyList_GET_SIZE(items) == 0) return 0;
    return fill_with_items(w, items && !mp_every_key_safe(items, 2), MP_MOCK_DICT_FILL, target, items, NULL);
}

/* Where all keys are constants a dict is copied from a template that holds them, and only the values that differ are stored. */
static mp_operand with_template(walker *w, mp_operand made)
{
    if (made == MP_NO_OPERAND) return made;
    mp_step *dict = &w->prog->steps[w->prog->n_steps - 1];
    const mp_operand *args = w->prog->args + dict->first;
    for (uint32_t i = 0; i < dict->n; i += 2)
        if (MP_OPERAND_KIND(args[i]) != MP_OPERAND_CONST) return made;
    if (!(dict->data = PyDict_New())) return no_memory(w);
    for (uint32_t i = 0; i < dict->n; i += 2) {
        bool fixed = MP_OPERAND_KIND(args[i + 1]) == MP_OPERAND_CONST;
        PyObject *value = fixed ? w->prog->consts[MP_OPERAND_INDEX(args[i + 1])] : Py_None;
        if (PyDict_SetItem(dict->data, w->prog->consts[MP_OPERAND_INDEX(args[i])], value) < 0) return no_memory(w);
    }
    return made;
}

static mp_operand make_dict(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *items = hold(w, mp_dict_items(object));
    if (!items) return no_memory(w);
    if (all_leaves(w, items) && mp_every_key_safe(items, 2))
        return with_template(w, make_of_items(w, MP_MOCK_DICT, items, NULL, NULL));
    return fill_later(w, object, make(w, MP_MOCK_DICT_NEW, NULL, 0, NULL, NULL), fill_dict);
}

/* mp_set_items, held. *layout is held or NULL. NULL with the reason set. */
static PyObject *set_items(walker *w, PyObject *set, PyObject **layout)
{
    PyObject *items = hold(w, mp_set_items(set, layout));
    if (*layout && !hold(w, *layout)) items = NULL;
    if (!items) no_memory(w);
    return items;
}

static int fill_set(walker *w, PyObject *object, mp_operand target)
{
    PyObject *layout, *items = set_items(w, object, &layout);
    return items ? fill_with_items(w, !mp_every_key_safe(items, 1), MP_MOCK_SET_FILL, target, items, layout) : -1;
}

static mp_operand make_set(walker *w, PyObject *object, PyTypeObject *base)
{ return fill_later(w, object, make(w, MP_MOCK_SET_NEW, NULL, 0, NULL, NULL), fill_set); }

static mp_operand make_frozenset(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *layout, *items = set_items(w, object, &layout);
    if (!items) return MP_NO_OPERAND;
    if (!mp_every_key_safe(items, 1)) return unrebuildable(w, object, "the order of a ");
    PyObject *how = hold(w, PyTuple_Pack(2, Py_TYPE(object), layout ? layout : Py_None));
    return how ? make_of_items(w, MP_MOCK_FROZENSET, items, how, NULL) : no_memory(w);
}

static int fill_deque(walker *w, PyObject *object, mp_operand target)
{ return fill_with_items(w, false, MP_MOCK_DEQUE_FILL, target, hold(w, mp_sequence_items(object)), NULL); }

static mp_operand make_deque(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *maxlen = hold(w, mp_raw_member(base, "maxlen", object));
    mp_operand limit = value_of(w, maxlen ? maxlen : Py_None);
    return fill_later(w, object, make(w, MP_MOCK_DEQUE_NEW, &limit, 1, (PyObject *)Py_TYPE(object), base), fill_deque);
}

static mp_operand make_tuple(walker *w, PyObject *object, PyTypeObject *base)
{
    bool exact = PyTuple_CheckExact(object);
    if (exact && mp_key_plain(object) && !holds_number(w, object))
        return constant(w, object); /* nothing in it can change */
    return make_of_items(w, exact ? MP_MOCK_TUPLE : MP_MOCK_TUPLE_LIKE, hold(w, mp_sequence_items(object)),
                         exact ? NULL : (PyObject *)Py_TYPE(object), base);
}

static mp_operand make_slice(walker *w, PyObject *object, PyTypeObject *base)
{
    PySliceObject *slice = (PySliceObject *)object;
    mp_operand parts[3] = {value_of(w, slice->start), value_of(w, slice->stop), value_of(w, slice->step)};
    return make(w, MP_MOCK_SLICE, parts, 3, NULL, NULL);
}

static mp_operand make_bytearray(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *bytes = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(object), PyByteArray_GET_SIZE(object));
    if (!hold(w, bytes)) return no_memory(w);
    mp_operand contents = constant(w, bytes);
    return make(w, MP_MOCK_BYTEARRAY, &contents, 1, NULL, NULL);
}

/* A view on a dict; the dict by the view's own C member. */
static mp_operand make_view(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand dict = value_of(w, (PyObject *)((_PyDictViewObject *)object)->dv_dict);
    return make(w, MP_MOCK_VIEW, &dict, 1, (PyObject *)Py_TYPE(object), NULL);
}

/* -- Callables ------------------------------------------------------------------------------------------------------------- */

static mp_operand make_method(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand parts[2] = {value_of(w, PyMethod_GET_FUNCTION(object)), value_of(w, PyMethod_GET_SELF(object))};
    return make(w, MP_MOCK_METHOD, parts, 2, NULL, NULL);
}

/* A C function without self, or of a module, is a constant; one that is bound to an object is bound again. */
static mp_operand make_cfunction(walker *w, PyObject *object, PyTypeObject *base)
{
    PyCFunctionObject *function = (PyCFunctionObject *)object;
    if (!function->m_self || PyModule_Check(function->m_self) || PyType_Check(function->m_self))
        return constant(w, object);
    if (!Py_IS_TYPE(object, &PyCFunction_Type)) return unrebuildable(w, object, "");
    mp_operand parts[2] = {value_of(w, function->m_self),
                           value_of(w, function->m_module ? function->m_module : Py_None)};
    return make(w, MP_MOCK_CFUNCTION, parts, 2, NULL, function->m_ml);
}

static int fill_attributes(walker *w, PyObject *object, mp_operand target);

static mp_operand make_partial(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand parts[3];
    static const char *const names[] = {"func", "args", "keywords"};
    for (int i = 0; i < 3; i++) {
        PyObject *part = hold(w, mp_raw_member(base, names[i], object));
        if (!part) return unrebuildable(w, object, "");
        parts[i] = value_of(w, part);
        if (parts[i] == MP_NO_OPERAND) return MP_NO_OPERAND;
    }
    return fill_later(w, object, make(w, MP_MOCK_PARTIAL, parts, 3, (PyObject *)Py_TYPE(object), base),
                      fill_attributes);
}

static int fill_function(walker *w, PyObject *object, mp_operand target)
{
    PyObject *dict = ((PyFunctionObject *)object)->func_dict;
    if (!dict || PyDict_GET_SIZE(dict) == 0) return 0;
    mp_operand vars = value_of(w, dict);
    return fill(w, false, MP_MOCK_VARS, target, &vars, 1, NULL, NULL);
}

static mp_operand make_function(walker *w, PyObject *object, PyTypeObject *base)
{
    PyFunctionObject *f = (PyFunctionObject *)object;
    if (!w->source->is_internal(w->source->context, object)) return constant(w, object);
    PyObject *parts[] = {f->func_globals, f->func_closure, f->func_defaults, f->func_kwdefaults, f->func_annotations,
                         f->func_doc,     f->func_module,  f->func_name,     f->func_qualname};
    enum { N = sizeof parts / sizeof *parts };
    mp_operand operands[N];
    for (int i = 0; i < N; i++) {
        bool globals = i == 0 && w->source->find_object(w->source->context, parts[0]) == MP_NO_OBJ;
        operands[i] = globals ? constant(w, parts[0]) : value_of(w, parts[i] ? parts[i] : Py_None);
        if (operands[i] == MP_NO_OPERAND) return MP_NO_OPERAND;
    }
    return fill_later(w, object, make(w, MP_MOCK_FUNCTION, operands, N, f->func_code, NULL), fill_function);
}

static int fill_cell(walker *w, PyObject *object, mp_operand target)
{
    PyObject *held = PyCell_GET(object);
    if (!held) return 0;
    mp_operand value = value_of(w, held);
    return fill(w, false, MP_MOCK_CELL_FILL, target, &value, 1, NULL, NULL);
}

static mp_operand make_cell(walker *w, PyObject *object, PyTypeObject *base)
{ return fill_later(w, object, make(w, MP_MOCK_CELL, NULL, 0, NULL, NULL), fill_cell); }

static int fill_iterator(walker *w, PyObject *object, mp_operand target)
{
    PyObject *parts = hold(w, mp_iterator_parts(object));
    if (!parts) return no_memory(w), -1;
    mp_operand state = value_of(w, PyTuple_GET_ITEM(parts, 2));
    return fill(w, false, MP_MOCK_ITERATOR_FILL, target, &state, 1, NULL, NULL);
}

/* What it goes over is made first, and filled before its state is set. */
static mp_operand make_iterator(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *parts = hold(w, mp_iterator_parts(object));
    if (!parts) return no_memory(w);
    mp_operand args = value_of(w, PyTuple_GET_ITEM(parts, 1));
    if (args == MP_NO_OPERAND) return args;
    mp_operand made = make(w, MP_MOCK_ITERATOR, &args, 1, PyTuple_GET_ITEM(parts, 0), NULL);
    return PyTuple_GET_ITEM(parts, 2) == Py_None ? made : fill_later(w, object, made, fill_iterator);
}

static mp_operand make_constant(walker *w, PyObject *object, PyTypeObject *base)
{
    if (w->source->is_internal(w->source->context, object)) return unrebuildable(w, object, "made by the call: a ");
    return constant(w, object);
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
            mp_operand value = value_of(w, held);
            if (fill(w, false, MP_MOCK_SLOT, target, &value, 1, descr, NULL) < 0) return -1;
        }
    }
    return 0;
}

static int fill_vars(walker *w, PyObject *object, mp_operand target)
{
    PyTypeObject *type = Py_TYPE(object);
    if (type->tp_dictoffset == 0) return 0;
    PyObject *dict = PyObject_GenericGetDict(object, NULL), *name, *value;
    if (!dict) return no_memory(w), -1;
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
    hold(w, names);
    hold(w, values);
    if (!names || !values) return no_memory(w), -1;
    bool inlined = type->tp_flags & Py_TPFLAGS_MANAGED_DICT; /* attributes stand in the instance: no dict to be made */
    if (shared || !plain || !inlined || mp_map_get(&w->seen, dict) != MP_MAP_NONE) {
        mp_operand vars = value_of(w, dict);
        return fill(w, false, MP_MOCK_VARS, target, &vars, 1, NULL, NULL);
    }
    if (fill_with_items(w, false, MP_MOCK_ATTRS, target, values, names) < 0) return -1;
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
static int fill_attributes(walker *w, PyObject *object, mp_operand target)
{ return fill_slots(w, object, target) < 0 || fill_vars(w, object, target) < 0 ? -1 : 0; }

static int fill_dict_like(walker *w, PyObject *object, mp_operand target)
{
    PyTypeObject *type = mp_type_defaultdict();
    if (type && PyType_IsSubtype(Py_TYPE(object), type)) {
        PyObject *factory = hold(w, mp_raw_member(type, "default_factory", object));
        mp_operand value = value_of(w, factory ? factory : Py_None);
        PyObject *descr = PyDict_GetItemString(type->tp_dict, "default_factory");
        if (!descr || fill(w, false, MP_MOCK_SLOT, target, &value, 1, descr, NULL) < 0) return -1;
    }
    return fill_dict(w, object, target) < 0 || fill_attributes(w, object, target) < 0 ? -1 : 0;
}

static int fill_list_like(walker *w, PyObject *object, mp_operand target)
{
    if (fill_with_items(w, false, MP_MOCK_LIST_EXTEND, target, hold(w, mp_sequence_items(object)), NULL) < 0) return -1;
    return fill_attributes(w, object, target);
}

static int fill_set_like(walker *w, PyObject *object, mp_operand target)
{ return fill_set(w, object, target) < 0 || fill_attributes(w, object, target) < 0 ? -1 : 0; }

static int fill_deque_like(walker *w, PyObject *object, mp_operand target)
{ return fill_deque(w, object, target) < 0 || fill_attributes(w, object, target) < 0 ? -1 : 0; }

static mp_operand make_instance(walker *w, PyObject *object, PyTypeObject *base)
{
    fill_fn how = PyDict_Check(object)     ? fill_dict_like
                  : PyList_Check(object)   ? fill_list_like
                  : PyAnySet_Check(object) ? fill_set_like
                                           : fill_attributes;
    return fill_later(w, object, make(w, MP_MOCK_NEW, NULL, 0, (PyObject *)Py_TYPE(object), base), how);
}

static mp_operand make_deque_like(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *maxlen = hold(w, mp_raw_member(base, "maxlen", object));
    mp_operand limit = value_of(w, maxlen ? maxlen : Py_None);
    return fill_later(w, object, make(w, MP_MOCK_DEQUE_NEW, &limit, 1, (PyObject *)Py_TYPE(object), base),
                      fill_deque_like);
}

/* An instance of a subclass of an immutable type: made by the type's __new__ from the plain value. */
static mp_operand make_value_like(walker *w, PyObject *object, PyTypeObject *base)
{
    PyObject *plain = base == &PyLong_Type      ? _PyLong_Copy((PyLongObject *)object)
                      : base == &PyFloat_Type   ? PyFloat_FromDouble(PyFloat_AS_DOUBLE(object))
                      : base == &PyUnicode_Type ? _PyUnicode_Copy(object)
                      : base == &PyBytes_Type
                          ? PyBytes_FromStringAndSize(PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object))
                          : PyComplex_FromCComplex(((PyComplexObject *)object)->cval);
    PyObject *arguments = hold(w, plain) ? hold(w, PyTuple_Pack(1, plain)) : NULL;
    if (!arguments) return no_memory(w);
    mp_operand operand = constant(w, arguments);
    mp_operand made = make(w, MP_MOCK_NEW_OF, &operand, 1, (PyObject *)Py_TYPE(object), base);
    return fill_later(w, object, made, fill_attributes);
}

static mp_operand make_tuple_like(walker *w, PyObject *object, PyTypeObject *base)
{
    mp_operand made = make_tuple(w, object, base);
    return PyTuple_CheckExact(object) ? made : fill_later(w, object, made, fill_attributes);
}

static mp_operand make_frozenset_like(walker *w, PyObject *object, PyTypeObject *base)
{ return fill_later(w, object, make_frozenset(w, object, base), fill_attributes); }

/* An exception that was made but not raised. One that was raised has a traceback, which cannot be made. */
static mp_operand make_exception(walker *w, PyObject *object, PyTypeObject *base)
{
    PyBaseExceptionObject *exception = (PyBaseExceptionObject *)object;
    if (base->tp_basicsize != sizeof *exception || exception->traceback || exception->context || exception->cause ||
        exception->notes)
        return unrebuildable(w, object, "");
    mp_operand arguments = value_of(w, exception->args);
    mp_operand made = make(w, MP_MOCK_NEW_OF, &arguments, 1, (PyObject *)Py_TYPE(object), base);
    return fill_later(w, object, made, fill_attributes);
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
    {&PyType_Type, make_constant, make_constant},
    {&PyModule_Type, make_constant, make_constant},
    {&PyCode_Type, make_constant, NULL},
    {&PyMethodDescr_Type, make_constant, NULL},
    {&PyClassMethodDescr_Type, make_constant, NULL},
    {&PyWrapperDescr_Type, make_constant, NULL},
    {&PyGetSetDescr_Type, make_constant, NULL},
    {&PyMemberDescr_Type, make_constant, NULL},
    {&Py_GenericAliasType, make_constant, NULL},
};

static const struct { /* the same for types that only a module knows */
    const char *module, *name;
    make_fn exact, like;
} module_rows[] = {
    {"collections", "deque", make_deque, make_deque_like}, {"collections", "defaultdict", make_instance, make_instance},
    {"functools", "partial", make_partial, make_partial},  {"types", "SimpleNamespace", make_instance, make_instance},
    {"types", "UnionType", make_constant, NULL},           {"re", "Pattern", make_constant, NULL},
    {"datetime", "datetime", make_constant, NULL},         {"datetime", "date", make_constant, NULL},
    {"datetime", "timedelta", make_constant, NULL},        {"decimal", "Decimal", make_constant, NULL},
    {"operator", "attrgetter", make_constant, NULL},       {"operator", "itemgetter", make_constant, NULL},
};

static bool is_enum_member(PyObject *object)
{
    PyObject *meta = loaded_type("enum", "EnumMeta");
    return meta && PyType_IsSubtype(Py_TYPE(Py_TYPE(object)), (PyTypeObject *)meta);
}

static bool is_struct_sequence(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return PyTuple_Check(object) && type->tp_base == &PyTuple_Type &&
           PyDict_GetItemString(type->tp_dict, "n_sequence_fields");
}

static mp_operand make_by_type(walker *w, PyObject *object)
{
    PyTypeObject *base = Py_TYPE(object);
    while (base && mp_type_mutable(base)) base = base->tp_base;
    bool exact = base == Py_TYPE(object);
    if (is_enum_member(object)) return constant(w, object); /* one object for the life of its class */
    if (is_struct_sequence(object))                         /* torch.return_types and the like: by their own __new__ */
        return make_of_items(w, MP_MOCK_TUPLE_LIKE, hold(w, mp_sequence_items(object)), (PyObject *)Py_TYPE(object),
                             Py_TYPE(object));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].type == base) {
            make_fn how = exact ? rows[i].exact : rows[i].like;
            return how ? how(w, object, base) : unrebuildable(w, object, "");
        }
    for (size_t i = 0; i < sizeof module_rows / sizeof *module_rows; i++)
        if (loaded_type(module_rows[i].module, module_rows[i].name) == (PyObject *)base) {
            make_fn how = exact ? module_rows[i].exact : module_rows[i].like;
            return how ? how(w, object, base) : unrebuildable(w, object, "");
        }
    if (PyExceptionInstance_Check(object)) return make_exception(w, object, base);
    if (exact && mp_is_iterator(base)) return make_iterator(w, object, base);
    if (PyGen_CheckExact(object)) return unrebuildable(w, object, "return a list instead: a live ");
    return unrebuildable(w, object, "");
}

/* -- Values -------------------------------------------------------------------------------------------------------------------- */

static mp_operand external(walker *w, mp_obj_id id)
{
    mp_mock_program *prog = w->prog;
    mp_obj_id *place = grow(&prog->objects, &prog->n_objects, sizeof *place);
    PyObject **path = place ? grow(&prog->paths, &prog->n_paths, sizeof *path) : NULL;
    if (!path) return no_memory(w);
    *place = id;
    *path = w->source->path(w->source->context, id);
    if (!*path) {
        PyErr_Clear();
        *path = PyUnicode_FromFormat("object %u", id);
    }
    return *path ? MP_OPERAND(MP_OPERAND_OBJECT, prog->n_objects - 1) : no_memory(w);
}

/* The operand of an external object by id; one for each. */
static mp_operand external_once(walker *w, mp_obj_id id)
{
    for (uint32_t i = 0; i < w->prog->n_objects; i++)
        if (w->prog->objects[i] == id) return MP_OPERAND(MP_OPERAND_OBJECT, i);
    return external(w, id);
}

static bool is_true(PyObject *object, const char *attribute)
{
    PyObject *value = PyObject_GetAttrString(object, attribute);
    bool truth = value == Py_True;
    PyErr_Clear();
    Py_XDECREF(value);
    return truth;
}

/* Keep what one more value's tensor is. False without memory. */
static bool add_look(walker *w, PyObject *object)
{
    PyObject *strides = mp_is_array(object) ? mp_array_strides(object) : PyObject_CallMethod(object, "stride", NULL);
    PyObject *inference = PyObject_CallMethod(object, "is_inference", NULL);
    PyErr_Clear();
    bool leaf = is_true(object, "requires_grad") && is_true(object, "is_leaf");
    leaf = leaf || (is_tensor(w, object) && !Py_IS_TYPE(object, w->tensor_type));
    PyObject *look = PyTuple_Pack(4, strides ? strides : Py_None, inference == Py_True ? Py_True : Py_False,
                                  leaf ? (PyObject *)Py_TYPE(object) : Py_None,
                                  is_true(object, "requires_grad") ? Py_True : Py_False);
    if (!w->prog->looks) w->prog->looks = PyList_New(0);
    bool added = look && w->prog->looks && PyList_Append(w->prog->looks, look) == 0;
    Py_XDECREF(strides);
    Py_XDECREF(inference);
    Py_XDECREF(look);
    return added;
}

/* A leaf that has a gradient already or keeps hooks: what makes it gives it none of those. (Hooks of others are operators.) */
static bool has_gradient_state(PyObject *tensor)
{
    static const char *const names[] = {"grad", "_backward_hooks", "_post_accumulate_grad_hooks"};
    if (!is_true(tensor, "is_leaf")) return false;
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyObject *value = PyObject_GetAttrString(tensor, names[i]);
        found = found || (value && value != Py_None);
        PyErr_Clear();
        Py_XDECREF(value);
    }
    return found;
}

/* The graph's value, which has the strides of `object` if that is a tensor. */
static mp_operand output(walker *w, mp_value_id id, PyObject *object)
{
    for (uint32_t i = 0; i < w->prog->n_values; i++)
        if (w->prog->values[i] == id) return MP_OPERAND(MP_OPERAND_OUTPUT, i);
    mp_value_id *place = grow(&w->prog->values, &w->prog->n_values, sizeof *place);
    if (!place) return no_memory(w);
    *place = id;
    if (!add_look(w, object)) return no_memory(w);
    return MP_OPERAND(MP_OPERAND_OUTPUT, w->prog->n_values - 1);
}

static mp_operand number(walker *w, PyObject *object, mp_value_id id, PyObject *made_by)
{
    mp_operand value = output(w, id, object);
    return value == MP_NO_OPERAND ? value : make(w, MP_MOCK_NUMBER, &value, 1, made_by, NULL);
}

static mp_operand text(walker *w, PyObject *template)
{
    PyObject *operands = hold(w, PyTuple_GetSlice(template, 1, PyTuple_GET_SIZE(template)));
    return make_of_items(w, MP_MOCK_TEXT, operands, PyTuple_GET_ITEM(template, 0), NULL);
}

static mp_operand array(walker *w, PyObject *object)
{
    bool owns = false;
    mp_reason why = {0};
    mp_value_id id =
        w->source->find_array ? w->source->find_array(w->source->context, object, &owns, &why) : MP_NO_VALUE;
    if (id == MP_NO_VALUE) {
        if (why.code) *w->why = why;
        return why.code ? MP_NO_OPERAND : unrebuildable(w, object, "");
    }
    mp_operand value = output(w, id, object);
    PyObject *how = Py_BuildValue("(OO)", owns ? Py_True : Py_False,
                                  ((mp_array *)object)->flags & MP_ARRAY_WRITEABLE ? Py_True : Py_False);
    if (value != MP_NO_OPERAND) value = how ? make(w, MP_MOCK_ARRAY, &value, 1, how, NULL) : no_memory(w);
    Py_XDECREF(how);
    return value;
}

static mp_operand tensor(walker *w, PyObject *object)
{
    mp_value_id id = w->source->find_value(w->source->context, object);
    if (id == MP_NO_VALUE) return unrebuildable(w, object, "a tensor of unknown origin: ");
    if (!Py_IS_TYPE(object, w->tensor_type) &&
        (PyObject *)Py_TYPE(object) != loaded_type("torch.nn.parameter", "Parameter"))
        return unrebuildable(w, object, "a tensor made by the call is a ");
    if (has_gradient_state(object)) return unrebuildable(w, object, "a tensor with a gradient or hook of its own: ");
    PyObject *dict = Py_TYPE(object)->tp_dictoffset ? PyObject_GenericGetDict(object, NULL) : NULL;
    bool attributes = dict && PyDict_GET_SIZE(dict) > 0;
    PyErr_Clear();
    Py_XDECREF(dict);
    mp_operand value = output(w, id, object);
    if (!attributes || value == MP_NO_OPERAND) return value;
    return fill_later(w, object, make(w, MP_MOCK_TENSOR, &value, 1, NULL, NULL), fill_attributes);
}

/* Types, modules, code and the like mean themselves; the guards see to it that they are the same. */
static bool is_fixed(PyObject *object)
{ return PyType_Check(object) || PyModule_Check(object) || PyCode_Check(object); }

static mp_operand value_of(walker *w, PyObject *object)
{
    uint32_t seen = mp_map_get(&w->seen, object);
    if (seen != MP_MAP_NONE) return seen;
    mp_operand operand;
    mp_obj_id id;
    mp_value_id value;
    PyObject *made_by = NULL, *template; /* borrowed */
    if (++w->depth > MAX_DEPTH)
        operand = unrebuildable(w, object, "a structure nested too deep: ");
    else if ((value = number_value(w, object, &made_by)) != MP_NO_VALUE)
        operand = number(w, object, value, made_by);
    else if ((template = text_template(w, object)))
        operand = text(w, template);
    else if (mp_is_scalar(object) && !(PySlice_Check(object) && holds_number(w, object)))
        operand = constant(w, object);
    else if (is_fixed(object))
        operand = make_constant(w, object, NULL);
    else if (mp_ref_id(object) != MP_NO_OBJ)
        operand = constant(w, object); /* what an earlier effect of the commit gives */
    else if ((id = w->source->find_object(w->source->context, object)) != MP_NO_OBJ)
        operand = external_once(w, id);
    else if (is_tensor(w, object))
        operand = tensor(w, object);
    else if (mp_is_array(object))
        operand = array(w, object);
    else
        operand = make_by_type(w, object);
    w->depth--;
    return remember(w, object, operand) < 0 ? MP_NO_OPERAND : operand;
}

/* -- Writes ---------------------------------------------------------------------------------------------------------------------- */

/* A new container with the contents that `object`, an external one, has now. */
static mp_operand contents_of(walker *w, PyObject *object)
{
    if (PyList_Check(object)) return make_of_items(w, MP_MOCK_LIST, hold(w, mp_sequence_items(object)), NULL, NULL);
    mp_operand made;
    if (PyDict_Check(object)) {
        made = make(w, MP_MOCK_DICT_NEW, NULL, 0, NULL, NULL);
        return made == MP_NO_OPERAND || fill_dict(w, object, made) < 0 ? MP_NO_OPERAND : made;
    }
    if (PyAnySet_Check(object)) {
        made = make(w, MP_MOCK_SET_NEW, NULL, 0, NULL, NULL);
        return made == MP_NO_OPERAND || fill_set(w, object, made) < 0 ? MP_NO_OPERAND : made;
    }
    if (mp_is_container(object)) /* a deque's items: a list will do */
        return make_of_items(w, MP_MOCK_LIST, hold(w, mp_sequence_items(object)), NULL, NULL);
    return unrebuildable(w, object, "the contents of a ");
}

static int compile_write(walker *w, const mp_write *write)
{
    if (write->kind == MP_WRITE_CONTEXT_VAR && !write->value) return 0; /* reset to being unset, as it was before */
    mp_mock_store store = {write->kind, MP_NO_OPERAND, MP_NO_OPERAND, MP_NO_OPERAND};
    if (write->kind != MP_WRITE_CALL && (store.owner = external_once(w, write->owner)) == MP_NO_OPERAND) return -1;
    if (write->key_obj != MP_NO_OBJ)
        store.key = external_once(w, write->key_obj);
    else if (write->key)
        store.key = value_of(w, write->key);
    if ((write->key || write->key_obj != MP_NO_OBJ) && store.key == MP_NO_OPERAND) return -1;
    if (write->value) {
        store.value = write->kind == MP_WRITE_CONTENTS ? contents_of(w, write->value) : value_of(w, write->value);
        if (store.value == MP_NO_OPERAND) return -1;
    }
    mp_mock_store *place = grow(&w->prog->stores, &w->prog->n_stores, sizeof *place);
    if (!place) return no_memory(w), -1;
    *place = store;
    return 0;
}

static int compile_all(walker *w)
{
    if ((w->prog->result = value_of(w, w->source->result)) == MP_NO_OPERAND) return -1;
    for (uint32_t i = 0; i < w->source->n_writes; i++)
        if (compile_write(w, &w->source->writes[i]) < 0) return -1;
    for (uint32_t i = 0; i < w->n_todos; i++) { /* filling finds more to fill */
        todo next = w->todos[i];
        if (next.fill(w, next.object, next.target) < 0) return -1;
    }
    for (uint32_t i = w->n_late; i-- > 0;) {
        mp_step *place = grow(&w->prog->steps, &w->prog->n_steps, sizeof *place);
        if (!place) return no_memory(w), -1;
        *place = w->late[i];
        w->late[i].data = NULL;
    }
    return 0;
}

mp_mock_program *mp_mock_compile_source(const mp_mock_source *source, mp_reason *why)
{
    walker w = {.source = source, .why = why};
    w.prog = PyMem_RawCalloc(1, sizeof *w.prog);
    w.keep = PyList_New(0);
    w.tensor_type = (PyTypeObject *)loaded_type("torch", "Tensor");
    if (w.prog) w.prog->refs = 1;
    int failed = w.prog && w.keep ? compile_all(&w) : (no_memory(&w), -1);
    for (uint32_t i = 0; i < w.n_late; i++) Py_XDECREF(w.late[i].data);
    PyMem_RawFree(w.late);
    PyMem_RawFree(w.todos);
    mp_map_free(&w.seen);
    Py_XDECREF(w.keep);
    PyErr_Clear();
    if (!failed) return w.prog;
    mp_reason_set(why, MP_REASON_UNREBUILDABLE, "unknown");
    mp_mock_free(w.prog);
    return NULL;
}

/* -- From a recording -------------------------------------------------------------------------------------------------------------- */

static mp_obj_id recorded_object(void *context, PyObject *object) { return mp_recording_find_object(context, object); }
static mp_value_id recorded_value(void *context, PyObject *tensor) { return mp_recording_find_value(context, tensor); }
static mp_value_id recorded_number(void *context, PyObject *object, PyObject **make)
{ return mp_recording_find_number(context, object, make); }
static PyObject *recorded_text(void *context, PyObject *object) { return mp_recording_find_text(context, object); }
static mp_value_id recorded_array(void *context, PyObject *array, bool *owns, mp_reason *why)
{ return mp_recording_find_array(context, array, owns, why); }
static bool recorded_internal(void *context, PyObject *object) { return mp_recording_is_internal(context, object); }
static PyObject *recorded_path(void *context, mp_obj_id object) { return mp_recording_path(context, object); }

mp_mock_program *mp_mock_compile(const mp_recording *recording, mp_reason *why)
{
    mp_mock_source source = {.context = (void *)recording,
                             .find_object = recorded_object,
                             .find_value = recorded_value,
                             .find_number = recorded_number,
                             .find_text = recorded_text,
                             .find_array = recorded_array,
                             .is_internal = recorded_internal,
                             .path = recorded_path,
                             .result = recording->result,
                             .writes = recording->writes,
                             .n_writes = recording->n_writes};
    return mp_mock_compile_source(&source, why);
}
