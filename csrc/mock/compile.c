/* Mock compiler (result and write set -> steps).
**
** The values are walked once. What is immutable is made after its parts; what can be filled is made empty first and put on a work
** list, so that cycles close and sharing is kept by one table of what has been seen. A value whose C type has no row here cannot be
** rebuilt, and is the reason why the call is not compiled.
*/
#include "mock/contents.h"
#include "mock/walker.h"

#include "trace/ndarray.h"
#include "trace/raw.h"

#define MAX_DEPTH 200 /* of tuples in tuples; containers that are filled later do not nest the walk */

/* -- Growing the program ------------------------------------------------------------------------------------------------ */

mp_operand mock_no_memory(walker *w)
{
    PyErr_Clear();
    mp_reason_set(w->why, MP_REASON_NO_MEMORY, "mocks");
    return MP_NO_OPERAND;
}

mp_operand mock_unrebuildable(walker *w, PyObject *object, const char *what)
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

mp_operand mock_constant(walker *w, PyObject *value)
{
    PyObject **place = grow(&w->prog->consts, &w->prog->n_consts, sizeof *place);
    if (!place) return mock_no_memory(w);
    *place = Py_NewRef(value);
    return MP_OPERAND(MP_OPERAND_CONST, w->prog->n_consts - 1);
}

static bool add_arg(walker *w, mp_operand operand)
{
    if (operand == MP_NO_OPERAND) return false;
    mp_operand *place = grow(&w->prog->args, &w->prog->n_args, sizeof *place);
    if (!place) {
        mock_no_memory(w);
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
    if (!place) return mock_no_memory(w);
    if (out == UINT32_MAX) out = new_made(w);
    *place = (mp_step){.op = (uint8_t)op, .out = out, .n = n, .first = first, .data = Py_XNewRef(data), .base = base};
    return MP_OPERAND(MP_OPERAND_MADE, out);
}

mp_operand mock_make(walker *w, mp_mock_op op, const mp_operand *args, uint32_t n, PyObject *data, void *base)
{ return step(w, false, op, UINT32_MAX, args, n, data, base); }

int mock_fill(walker *w, bool late, mp_mock_op op, mp_operand target, const mp_operand *args, uint32_t n,
              PyObject *data, void *base)
{ return step(w, late, op, MP_OPERAND_INDEX(target), args, n, data, base) == MP_NO_OPERAND ? -1 : 0; }

static int remember(walker *w, PyObject *object, mp_operand operand)
{
    if (operand == MP_NO_OPERAND) return -1;
    if (mp_map_put(&w->seen, object, operand) == 0) return 0;
    mock_no_memory(w);
    return -1;
}

/* `target` will be filled with what `object` holds, once everything has been made. */
mp_operand mock_fill_later(walker *w, PyObject *object, mp_operand target, fill_fn how)
{
    if (target == MP_NO_OPERAND) return target;
    todo *place = grow(&w->todos, &w->n_todos, sizeof *place);
    if (!place) return mock_no_memory(w);
    *place = (todo){object, target, how};
    return target;
}

/* Hold an object that looking has made (owned, may be NULL); its borrowed self. */
PyObject *mock_hold(walker *w, PyObject *made)
{
    if (!made)
        PyErr_Clear();
    else if (PyList_Append(w->keep, made) < 0) {
        mock_no_memory(w);
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
    if (!operands) mock_no_memory(w);
    for (Py_ssize_t i = 0; operands && i < n; i++)
        if ((operands[i] = mock_value_of(w, PySequence_Fast_GET_ITEM(items, i))) == MP_NO_OPERAND) {
            PyMem_Free(operands);
            return NULL;
        }
    return operands;
}

mp_operand mock_make_of_items(walker *w, mp_mock_op op, PyObject *items, PyObject *data, void *base)
{
    if (!items) return mock_no_memory(w);
    mp_operand *operands = operands_of(w, items);
    if (!operands) return MP_NO_OPERAND;
    mp_operand made = mock_make(w, op, operands, (uint32_t)PySequence_Fast_GET_SIZE(items), data, base);
    PyMem_Free(operands);
    return made;
}

int mock_fill_with_items(walker *w, bool late, mp_mock_op op, mp_operand target, PyObject *items, PyObject *data)
{
    if (!items) return mock_no_memory(w), -1;
    mp_operand *operands = operands_of(w, items);
    if (!operands) return -1;
    int failed = mock_fill(w, late, op, target, operands, (uint32_t)PySequence_Fast_GET_SIZE(items), data, NULL);
    PyMem_Free(operands);
    return failed;
}

/* A type as a loaded module shows it, without importing or running anything. Borrowed or NULL. */
PyObject *mock_loaded_type(const char *module_name, const char *name)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), module_name);
    PyObject *found = module && PyModule_Check(module) ? PyDict_GetItemString(PyModule_GetDict(module), name) : NULL;
    return found && PyType_Check(found) ? found : NULL;
}

bool mock_is_tensor(const walker *w, PyObject *object)
{ return w->tensor_type && PyType_IsSubtype(Py_TYPE(object), w->tensor_type); }

/* The graph value of a number that is data, or MP_NO_VALUE; *make (borrowed): what makes the object of it, or NULL. */
mp_value_id mock_number_value(const walker *w, PyObject *object, PyObject **make)
{ return w->source->find_number ? w->source->find_number(w->source->context, object, make) : MP_NO_VALUE; }

PyObject *mock_text_template(const walker *w, PyObject *object)
{ return w->source->find_text ? w->source->find_text(w->source->context, object) : NULL; }

uint32_t mock_drawn(const walker *w, PyObject *object)
{ return w->source->find_drawn ? w->source->find_drawn(w->source->context, object) : MP_NO_DRAW; }

/* Is there such a number, or a text of one, in a tuple or slice? Other constants cannot hold one: their parts have been looked at. */
bool mock_holds_number(const walker *w, PyObject *object)
{
    if (PySlice_Check(object)) {
        PySliceObject *slice = (PySliceObject *)object;
        return mock_holds_number(w, slice->start) || mock_holds_number(w, slice->stop) ||
               mock_holds_number(w, slice->step);
    }
    for (Py_ssize_t i = 0; PyTuple_CheckExact(object) && i < PyTuple_GET_SIZE(object); i++)
        if (mock_holds_number(w, PyTuple_GET_ITEM(object, i))) return true;
    if (PyTuple_CheckExact(object)) return false;
    PyObject *made_by = NULL;
    return mock_drawn(w, object) != MP_NO_DRAW || mock_text_template(w, object) ||
           mock_number_value(w, object, &made_by) != MP_NO_VALUE;
}

/* -- Values -------------------------------------------------------------------------------------------------------------------- */

static mp_operand external(walker *w, mp_obj_id id)
{
    mp_mock_program *prog = w->prog;
    mp_obj_id *place = grow(&prog->objects, &prog->n_objects, sizeof *place);
    PyObject **path = place ? grow(&prog->paths, &prog->n_paths, sizeof *path) : NULL;
    if (!path) return mock_no_memory(w);
    *place = id;
    *path = w->source->path(w->source->context, id);
    if (!*path) {
        PyErr_Clear();
        *path = PyUnicode_FromFormat("object %u", id);
    }
    return *path ? MP_OPERAND(MP_OPERAND_OBJECT, prog->n_objects - 1) : mock_no_memory(w);
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
    PyErr_Clear(); /* a sparse tensor has none */
    PyObject *inference = PyObject_CallMethod(object, "is_inference", NULL);
    PyErr_Clear();
    bool leaf = is_true(object, "requires_grad") && is_true(object, "is_leaf");
    leaf = leaf || (mock_is_tensor(w, object) && !Py_IS_TYPE(object, w->tensor_type));
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
    if (!place) return mock_no_memory(w);
    *place = id;
    if (!add_look(w, object)) return mock_no_memory(w);
    return MP_OPERAND(MP_OPERAND_OUTPUT, w->prog->n_values - 1);
}

static mp_operand number(walker *w, PyObject *object, mp_value_id id, PyObject *made_by)
{
    mp_operand value = output(w, id, object);
    return value == MP_NO_OPERAND ? value : mock_make(w, MP_MOCK_NUMBER, &value, 1, made_by, NULL);
}

static mp_operand drawn(walker *w, uint32_t draw)
{
    mp_operand made = mock_make(w, MP_MOCK_DRAWN, NULL, 0, NULL, NULL);
    if (made != MP_NO_OPERAND) w->prog->steps[w->prog->n_steps - 1].tag = draw;
    return made;
}

static mp_operand text(walker *w, PyObject *object, PyObject *template)
{
    PyObject *operands = mock_hold(w, PyTuple_GetSlice(template, 1, PyTuple_GET_SIZE(template)));
    return mock_make_of_items(w, MP_MOCK_TEXT, operands, PyTuple_GET_ITEM(template, 0), Py_TYPE(object));
}

static mp_operand array(walker *w, PyObject *object)
{
    bool owns = false;
    mp_reason why = {0};
    mp_value_id id =
        w->source->find_array ? w->source->find_array(w->source->context, object, &owns, &why) : MP_NO_VALUE;
    if (id == MP_NO_VALUE) {
        if (why.code) *w->why = why;
        return why.code ? MP_NO_OPERAND : mock_unrebuildable(w, object, "");
    }
    mp_operand value = output(w, id, object);
    PyObject *how = Py_BuildValue("(OO)", owns ? Py_True : Py_False,
                                  ((mp_array *)object)->flags & MP_ARRAY_WRITEABLE ? Py_True : Py_False);
    if (value != MP_NO_OPERAND) value = how ? mock_make(w, MP_MOCK_ARRAY, &value, 1, how, NULL) : mock_no_memory(w);
    Py_XDECREF(how);
    return value;
}

static mp_operand tensor(walker *w, PyObject *object)
{
    mp_value_id id = w->source->find_value(w->source->context, object);
    if (id == MP_NO_VALUE) return mock_unrebuildable(w, object, "a tensor of unknown origin: ");
    if (!Py_IS_TYPE(object, w->tensor_type) &&
        (PyObject *)Py_TYPE(object) != mock_loaded_type("torch.nn.parameter", "Parameter"))
        return mock_unrebuildable(w, object, "a tensor made by the call is a ");
    if (has_gradient_state(object))
        return mock_unrebuildable(w, object, "a tensor with a gradient or hook of its own: ");
    PyObject *dict = Py_TYPE(object)->tp_dictoffset ? PyObject_GenericGetDict(object, NULL) : NULL;
    bool attributes = dict && PyDict_GET_SIZE(dict) > 0;
    PyErr_Clear();
    Py_XDECREF(dict);
    mp_operand value = output(w, id, object);
    if (!attributes || value == MP_NO_OPERAND) return value;
    return mock_fill_later(w, object, mock_make(w, MP_MOCK_TENSOR, &value, 1, NULL, NULL), mock_fill_attributes);
}

/* Types, modules, code and the like mean themselves; the guards see to it that they are the same. */
static bool is_fixed(PyObject *object)
{ return PyType_Check(object) || PyModule_Check(object) || PyCode_Check(object); }

mp_operand mock_value_of(walker *w, PyObject *object)
{
    uint32_t seen = mp_map_get(&w->seen, object);
    if (seen != MP_MAP_NONE) return seen;
    mp_operand operand;
    mp_obj_id id;
    mp_value_id value;
    uint32_t draw;
    PyObject *made_by = NULL, *template; /* borrowed */
    if (++w->depth > MAX_DEPTH)
        operand = mock_unrebuildable(w, object, "a structure nested too deep: ");
    else if ((draw = mock_drawn(w, object)) != MP_NO_DRAW)
        operand = drawn(w, draw);
    else if ((value = mock_number_value(w, object, &made_by)) != MP_NO_VALUE)
        operand = number(w, object, value, made_by);
    else if ((template = mock_text_template(w, object)))
        operand = text(w, object, template);
    else if (mp_is_scalar(object) && !(PySlice_Check(object) && mock_holds_number(w, object)))
        operand = mock_constant(w, object);
    else if (is_fixed(object))
        operand = mock_make_constant(w, object, NULL);
    else if (mp_ref_id(object) != MP_NO_OBJ)
        operand = mock_constant(w, object); /* what an earlier effect of the commit gives */
    else if ((id = w->source->find_object(w->source->context, object)) != MP_NO_OBJ)
        operand = external_once(w, id);
    else if (mock_is_tensor(w, object))
        operand = tensor(w, object);
    else if (mp_is_array(object))
        operand = array(w, object);
    else
        operand = mock_make_by_type(w, object);
    w->depth--;
    return remember(w, object, operand) < 0 ? MP_NO_OPERAND : operand;
}

/* -- Writes ---------------------------------------------------------------------------------------------------------------------- */

/* A new container with the contents that `object`, an external one, has now. */
static mp_operand contents_of(walker *w, PyObject *object)
{
    if (PyList_Check(object))
        return mock_make_of_items(w, MP_MOCK_LIST, mock_hold(w, mp_sequence_items(object)), NULL, NULL);
    mp_operand made;
    if (PyDict_Check(object)) {
        made = mock_make(w, MP_MOCK_DICT_NEW, NULL, 0, NULL, NULL);
        return made == MP_NO_OPERAND || mock_fill_dict(w, object, made) < 0 ? MP_NO_OPERAND : made;
    }
    if (PyAnySet_Check(object)) {
        made = mock_make(w, MP_MOCK_SET_NEW, NULL, 0, NULL, NULL);
        return made == MP_NO_OPERAND || mock_fill_set(w, object, made) < 0 ? MP_NO_OPERAND : made;
    }
    if (mp_is_container(object)) /* a deque's items: a list will do */
        return mock_make_of_items(w, MP_MOCK_LIST, mock_hold(w, mp_sequence_items(object)), NULL, NULL);
    return mock_unrebuildable(w, object, "the contents of a ");
}

static int compile_write(walker *w, const mp_write *write)
{
    if (write->kind == MP_WRITE_CONTEXT_VAR && !write->value) return 0; /* reset to being unset, as it was before */
    mp_mock_store store = {write->kind, MP_NO_OPERAND, MP_NO_OPERAND, MP_NO_OPERAND};
    if (write->kind != MP_WRITE_CALL && (store.owner = external_once(w, write->owner)) == MP_NO_OPERAND) return -1;
    if (write->key_obj != MP_NO_OBJ)
        store.key = external_once(w, write->key_obj);
    else if (write->key)
        store.key = mock_value_of(w, write->key);
    if ((write->key || write->key_obj != MP_NO_OBJ) && store.key == MP_NO_OPERAND) return -1;
    if (write->value) {
        store.value = write->kind == MP_WRITE_CONTENTS ? contents_of(w, write->value) : mock_value_of(w, write->value);
        if (store.value == MP_NO_OPERAND) return -1;
    }
    mp_mock_store *place = grow(&w->prog->stores, &w->prog->n_stores, sizeof *place);
    if (!place) return mock_no_memory(w), -1;
    *place = store;
    return 0;
}

static int compile_all(walker *w)
{
    if ((w->prog->result = mock_value_of(w, w->source->result)) == MP_NO_OPERAND) return -1;
    for (uint32_t i = 0; i < w->source->n_writes; i++)
        if (compile_write(w, &w->source->writes[i]) < 0) return -1;
    PyObject *must = w->source->must_make ? w->source->must_make(w->source->context, 0) : NULL;
    for (uint32_t i = 0; must; must = w->source->must_make(w->source->context, ++i))
        if (must != Py_None && mock_value_of(w, must) == MP_NO_OPERAND) return -1;
    for (uint32_t i = 0; i < w->n_todos; i++) { /* filling finds more to fill */
        todo next = w->todos[i];
        if (next.fill(w, next.object, next.target) < 0) return -1;
    }
    for (uint32_t i = w->n_late; i-- > 0;) {
        mp_step *place = grow(&w->prog->steps, &w->prog->n_steps, sizeof *place);
        if (!place) return mock_no_memory(w), -1;
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
    w.tensor_type = (PyTypeObject *)mock_loaded_type("torch", "Tensor");
    if (w.prog) w.prog->refs = 1;
    int failed = w.prog && w.keep ? compile_all(&w) : (mock_no_memory(&w), -1);
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
static uint32_t recorded_drawn(void *context, PyObject *object) { return mp_recording_find_drawn(context, object); }
static PyObject *recorded_must(void *context, uint32_t i) { return mp_recording_must_make(context, i); }
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
                             .find_drawn = recorded_drawn,
                             .must_make = recorded_must,
                             .find_array = recorded_array,
                             .is_internal = recorded_internal,
                             .path = recorded_path,
                             .result = recording->result,
                             .writes = recording->writes,
                             .n_writes = recording->n_writes};
    return mp_mock_compile_source(&source, why);
}
