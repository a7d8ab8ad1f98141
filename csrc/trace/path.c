/* Source text of locations: "self.encoder.layer[0].weight", "globals()['scale']", "file.py:41". */
#include "trace/recorder_internal.h"

enum { DEEPEST_PATH = 100 }; /* a path of more steps is of no use to anyone */

static PyObject *object_text(const mp_recording *recording, mp_obj_id id, int depth);

/* -- Names ----------------------------------------------------------------------------------------------------------------- */

static bool is_name(PyObject *key) { return key && PyUnicode_CheckExact(key) && PyUnicode_IsIdentifier(key) == 1; }

static bool is_text(PyObject *key, const char *text)
{ return key && PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, text) == 0; }

static bool is_number(PyObject *key)
{
    if (!key || !PyUnicode_CheckExact(key) || !PyUnicode_GET_LENGTH(key)) return false;
    for (Py_ssize_t i = 0; i < PyUnicode_GET_LENGTH(key); i++)
        if (!Py_UNICODE_ISDECIMAL(PyUnicode_READ_CHAR(key, i))) return false;
    return true;
}

/* The Python function behind a callable: of a method, of a module's forward. Borrowed or NULL. */
static PyFunctionObject *function_behind(PyObject *target, int *skipped)
{
    *skipped = 0;
    if (target && PyFunction_Check(target)) return (PyFunctionObject *)target;
    *skipped = 1;
    PyObject *found = NULL;
    if (target && PyMethod_Check(target)) {
        found = PyMethod_GET_FUNCTION(target);
    } else if (target) {
        PyObject *name = PyUnicode_InternFromString("forward");
        if (name) found = _PyType_Lookup(Py_TYPE(target), name);
        Py_XDECREF(name);
        PyErr_Clear();
    }
    return found && PyFunction_Check(found) ? (PyFunctionObject *)found : NULL;
}

static PyObject *argument_text(const mp_recording *recording, const mp_object *object)
{
    if (object->root_name) return PyUnicode_FromObject(object->root_name);
    int skipped = 0;
    PyFunctionObject *function = NULL;
    for (uint32_t i = 0; i < recording->n_objects && !function; i++)
        if (recording->objects[i].root == MP_ROOT_TARGET)
            function = function_behind(mp_object_get(&recording->objects[i]), &skipped);
    PyCodeObject *code = function ? (PyCodeObject *)function->func_code : NULL;
    uint32_t index = object->root_index + (uint32_t)skipped;
    if (!code || index >= (uint32_t)code->co_argcount) return PyUnicode_FromFormat("args[%u]", object->root_index);
    PyObject *names = PyCode_GetVarnames(code);
    PyObject *name = names ? Py_NewRef(PyTuple_GET_ITEM(names, index)) : NULL;
    Py_XDECREF(names);
    return name;
}

static PyObject *target_text(const mp_object *object)
{
    PyObject *target = mp_object_get(object);
    if (target && PyFunction_Check(target)) return Py_NewRef(((PyFunctionObject *)target)->func_qualname);
    return PyUnicode_FromString(PyType_IsSubtype(object->type, &PyMethod_Type) ? "method" : "self");
}

static PyObject *pin_text(const mp_object *object)
{
    PyObject *it = mp_object_get(object);
    if (it && PyType_Check(it)) {
        const char *name = ((PyTypeObject *)it)->tp_name, *dot = strrchr(name, '.');
        return PyUnicode_FromString(dot ? dot + 1 : name);
    }
    if (it && PyModule_Check(it)) {
        PyObject *name = PyModule_GetNameObject(it);
        if (name) return name;
        PyErr_Clear();
    }
    if (it && PyFunction_Check(it)) return Py_NewRef(((PyFunctionObject *)it)->func_qualname);
    if (it && PyCFunction_Check(it)) return PyUnicode_FromString(((PyCFunctionObject *)it)->m_ml->ml_name);
    if (is_text(object->root_name, "globals")) return PyUnicode_FromString("globals()");
    if (object->root_name) return PyUnicode_FromObject(object->root_name);
    return PyUnicode_FromFormat("<%s>", object->type->tp_name);
}

/* -- Steps ------------------------------------------------------------------------------------------------------------------- */

static const mp_read *found_by(const mp_recording *recording, mp_obj_id id)
{
    uint32_t read = recording->objects[id].found_by;
    return recording->objects[id].root == MP_ROOT_NONE && read < recording->n_reads ? &recording->reads[read] : NULL;
}

/* Attribute `name` of X, as X.name, or X[0] where a module calls its children by numbers. */
static PyObject *attribute_text(const mp_recording *recording, mp_obj_id owner, PyObject *name, int depth)
{
    PyObject *base = object_text(recording, owner, depth);
    PyObject *text = NULL;
    if (base && is_name(name))
        text = PyUnicode_FromFormat("%U.%U", base, name);
    else if (base && is_number(name))
        text = PyUnicode_FromFormat("%U[%U]", base, name);
    else if (base)
        text = PyUnicode_FromFormat("vars(%U)[%R]", base, name);
    Py_XDECREF(base);
    return text;
}

/* The object whose attributes the dict holds: X for vars(X), and for X._parameters, X._buffers and X._modules. Else MP_NO_OBJ. */
static mp_obj_id holder_of(const mp_recording *recording, mp_obj_id dict)
{
    const mp_read *read = found_by(recording, dict);
    if (!read) return MP_NO_OBJ;
    if (read->kind == MP_READ_DICT) return read->owner;
    bool named = is_text(read->key, "_parameters") || is_text(read->key, "_buffers") || is_text(read->key, "_modules");
    if (read->kind != MP_READ_KEY || !named) return MP_NO_OBJ;
    read = found_by(recording, read->owner);
    return read && read->kind == MP_READ_DICT ? read->owner : MP_NO_OBJ;
}

/* Name of the variable that a closure cell holds, if the function's code is known. New reference or NULL without exception. */
static PyObject *cell_name(const mp_recording *recording, mp_obj_id cell)
{
    const mp_read *item = found_by(recording, cell);
    const mp_read *member = item && item->kind == MP_READ_ITEM ? found_by(recording, item->owner) : NULL;
    if (!member || member->kind != MP_READ_MEMBER || !is_text(member->key, "__closure__")) return NULL;
    for (uint32_t i = 0; i < recording->n_reads; i++) {
        const mp_read *read = &recording->reads[i];
        if (read->owner != member->owner || read->kind != MP_READ_MEMBER || read->was != MP_WAS_OBJECT ||
            !is_text(read->key, "__code__"))
            continue;
        PyObject *code = mp_object_get(&recording->objects[read->obj]);
        PyObject *names = code && PyCode_Check(code) ? PyCode_GetFreevars((PyCodeObject *)code) : NULL;
        Py_ssize_t index = PyLong_AsSsize_t(item->key);
        PyObject *name =
            names && index >= 0 && index < PyTuple_GET_SIZE(names) ? Py_NewRef(PyTuple_GET_ITEM(names, index)) : NULL;
        Py_XDECREF(names);
        PyErr_Clear();
        return name;
    }
    return NULL;
}

/* "format" with %U for the owner's text, and %U for the key's repr or name. */
static PyObject *step(const mp_recording *recording, const mp_read *read, const char *format, bool repr, int depth)
{
    PyObject *owner = object_text(recording, read->owner, depth), *key = NULL, *text = NULL;
    if (read->key_obj != MP_NO_OBJ)
        key = object_text(recording, read->key_obj, depth);
    else if (read->key && (Py_TYPE(read->key) == &PyMemberDescr_Type || Py_TYPE(read->key) == &PyGetSetDescr_Type))
        key = Py_NewRef(((PyDescrObject *)read->key)->d_name);
    else if (read->key)
        key = repr ? PyObject_Repr(read->key) : PyObject_Str(read->key);
    else
        key = PyUnicode_FromString("");
    if (owner && key) text = PyUnicode_FromFormat(format, owner, key);
    Py_XDECREF(owner);
    Py_XDECREF(key);
    return text;
}

static PyObject *key_text(const mp_recording *recording, const mp_read *read, int depth)
{
    mp_obj_id holder = read->key ? holder_of(recording, read->owner) : MP_NO_OBJ;
    if (holder != MP_NO_OBJ && (is_name(read->key) || is_number(read->key)))
        return attribute_text(recording, holder, read->key, depth);
    return step(recording, read, "%U[%U]", true, depth);
}

static PyObject *super_text(const mp_recording *recording, const mp_read *read, int depth)
{
    PyObject *owner = object_text(recording, read->owner, depth), *text = NULL, *key = read->key;
    if (owner && key && PyTuple_Check(key) && PyTuple_GET_SIZE(key) == 2 && PyType_Check(PyTuple_GET_ITEM(key, 0)))
        text = PyUnicode_FromFormat("super(%s, %U).%S", ((PyTypeObject *)PyTuple_GET_ITEM(key, 0))->tp_name, owner,
                                    PyTuple_GET_ITEM(key, 1));
    Py_XDECREF(owner);
    return text ? text : PyErr_Occurred() ? NULL : PyUnicode_FromString("super()");
}

static PyObject *cell_text(const mp_recording *recording, const mp_read *read, int depth)
{
    PyObject *name = cell_name(recording, read->owner);
    return name ? name : step(recording, read, "%U.cell_contents%U", false, depth);
}

static PyObject *member_text(const mp_recording *recording, const mp_read *read, int depth)
{
    if (recording->objects[read->owner].root == MP_ROOT_TARGET && is_text(read->key, "__self__"))
        return PyUnicode_FromString("self");
    return step(recording, read, "%U.%U", false, depth);
}

static PyObject *has_text(const mp_recording *recording, const mp_read *read, int depth)
{
    PyObject *owner = object_text(recording, read->owner, depth), *name = NULL, *text = NULL;
    if (read->key_obj != MP_NO_OBJ)
        name = object_text(recording, read->key_obj, depth);
    else
        name = read->key ? PyObject_Repr(read->key) : PyUnicode_FromString("?");
    if (owner && name) text = PyUnicode_FromFormat("%U in %U", name, owner);
    Py_XDECREF(owner);
    Py_XDECREF(name);
    return text;
}

static PyObject *location_text(const mp_recording *recording, const mp_read *read, int depth)
{
    switch ((mp_read_kind)read->kind) {
    case MP_READ_VALUE:
    case MP_READ_SAME_ARG:
    case MP_READ_TENSOR_META:
    case MP_READ_ARRAY_META:
    case MP_READ_BASE_VALUE: return object_text(recording, read->owner, depth);
    case MP_READ_TYPE: return step(recording, read, "type(%U)%U", false, depth);
    case MP_READ_DICT: return step(recording, read, "vars(%U)%U", false, depth);
    case MP_READ_INSTANCE_ATTR:
    case MP_READ_LOCAL_ATTR: return attribute_text(recording, read->owner, read->key, depth);
    case MP_READ_KEY: return key_text(recording, read, depth);
    case MP_READ_KEY_AT: return step(recording, read, "list(%U)[%U]", true, depth);
    case MP_READ_LEN: return step(recording, read, "len(%U)%U", false, depth);
    case MP_READ_ITEM: return step(recording, read, "%U[%U]", true, depth);
    case MP_READ_HAS:
    case MP_READ_SET_HAS: return has_text(recording, read, depth);
    case MP_READ_SET_ITEMS: return step(recording, read, "list(%U)%U", false, depth);
    case MP_READ_TYPE_ATTR: return step(recording, read, "%U.%U", false, depth);
    case MP_READ_TYPE_DUNDERS: return step(recording, read, "the special methods of %U%U", false, depth);
    case MP_READ_NO_DATA_DESCR: return step(recording, read, "type(%U).%U", false, depth);
    case MP_READ_SUPER_ATTR: return super_text(recording, read, depth);
    case MP_READ_CELL: return cell_text(recording, read, depth);
    case MP_READ_MEMBER: return member_text(recording, read, depth);
    case MP_READ_SLOT:
    case MP_READ_TENSOR_ATTR: return step(recording, read, "%U.%U", false, depth);
    case MP_READ_DEREF: return step(recording, read, "%U()%U", false, depth);
    case MP_READ_CONTEXT_VAR: return step(recording, read, "%U.get()%U", false, depth);
    case MP_READ_CACHED:
    case MP_READ_CACHED_TENSOR:
    case MP_READ_STATE_CALL: return step(recording, read, "%U%U", true, depth);
    case MP_READ_KIND_COUNT: break;
    }
    return PyUnicode_FromString("?");
}

static PyObject *object_text(const mp_recording *recording, mp_obj_id id, int depth)
{
    if (id >= recording->n_objects || depth > DEEPEST_PATH) return PyUnicode_FromString("...");
    const mp_object *object = &recording->objects[id];
    switch ((mp_root)object->root) {
    case MP_ROOT_TARGET: return target_text(object);
    case MP_ROOT_ARG:
    case MP_ROOT_KWARG: return argument_text(recording, object);
    case MP_ROOT_PIN: return pin_text(object);
    case MP_ROOT_NONE: break;
    }
    const mp_read *read = found_by(recording, id);
    if (read && read->kind == MP_READ_TYPE) return pin_text(object); /* a class: by its name */
    return read ? location_text(recording, read, depth + 1) : PyUnicode_FromFormat("<%s>", object->type->tp_name);
}

/* -- The door ------------------------------------------------------------------------------------------------------------------- */

bool mp_recording_is_state(const mp_recording *recording, mp_obj_id object)
{
    const mp_read *read = found_by(recording, object);
    if (!read || read->kind != MP_READ_KEY || !(read = found_by(recording, read->owner))) return false;
    return read->kind == MP_READ_KEY && (is_text(read->key, "_parameters") || is_text(read->key, "_buffers"));
}

PyObject *mp_recording_path(const mp_recording *recording, mp_obj_id object)
{ return object_text(recording, object, 0); }

PyObject *mp_recording_location(const mp_recording *recording, uint32_t read)
{ return location_text(recording, &recording->reads[read], 0); }

PyObject *mp_recording_site(const mp_recording *recording, uint32_t site)
{
    if (site >= recording->n_sites) return PyUnicode_FromString("");
    /* People know their own lines: of library code, say who called it. */
    uint32_t shown = site;
    for (uint32_t s = site, n = 0; s < recording->n_sites && n <= recording->n_sites;
         s = recording->sites[s].caller, n++)
        if (!mp_is_library_code((PyCodeObject *)recording->sites[s].code)) {
            shown = s;
            break;
        }
    const mp_site *at = &recording->sites[shown];
    PyObject *path = ((PyCodeObject *)at->code)->co_filename;
    Py_ssize_t length = PyUnicode_GET_LENGTH(path);
    Py_ssize_t slash = PyUnicode_FindChar(path, '/', 0, length, -1);
    if (slash == -2) return NULL;
    PyObject *file = PyUnicode_Substring(path, slash + 1, length);
    PyObject *text = file ? PyUnicode_FromFormat("%U:%d", file, at->line) : NULL;
    Py_XDECREF(file);
    return text;
}
