/* What a commit would let die, and whether anyone hears of it.
**
** A commit keeps what it replaces alive until all stores are done. Only that tells it from the program, which lets go in between: a
** finalizer would see other state than in the program, and the program what the finalizer did. Values die if all references to them are
** ours or dropped by the stores, and with them what they alone hold.
*/
#include "mock/program.h"

#include "observe/observe.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#define MOST_LOOKS 512 /* objects that are looked into; who drops a larger structure drops it unseen */
#define MOST_DEPTH 16
#define MOST_REFERENCES 8 /* what is in more places than this is not expected to be dropped from all of them */

typedef struct {
    const mp_mock_run *run;
    PyObject *const *held;
    size_t n_held;
    uint32_t looks, depth;
    bool heard;
} search;

static bool is_plain(const PyObject *object)
{
    const PyTypeObject *type = Py_TYPE(object);
    return object == Py_None || type == &PyBool_Type || type == &PyLong_Type || type == &PyFloat_Type ||
           type == &PyUnicode_Type || type == &PyBytes_Type || type == &PyCode_Type;
}

/* torch keeps its books by callbacks that no program sees. */
static bool is_torchs(PyObject *callback)
{
    if (!PyFunction_Check(callback)) return false;
    PyObject *module = ((PyFunctionObject *)callback)->func_module;
    const char *name = module && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
    if (!name) PyErr_Clear();
    return name && (strcmp(name, "torch") == 0 || strncmp(name, "torch.", 6) == 0);
}

/* Is there a callback for its death? */
static bool is_watched(PyObject *object)
{
    if (!PyType_SUPPORTS_WEAKREFS(Py_TYPE(object))) return false;
    PyWeakReference *reference = *(PyWeakReference **)PyObject_GET_WEAKREFS_LISTPTR(object);
    for (; reference; reference = reference->wr_next)
        if (reference->wr_callback && reference->wr_callback != Py_None && !is_torchs(reference->wr_callback))
            return true;
    return false;
}

static bool has_finalizer(PyObject *object)
{ return mp_type_python(Py_TYPE(object), "__del__") || mp_generator_suspended(object); }

/* References to the object that are not there in the program: the caller's, and the stores' to what they write into. */
static Py_ssize_t ours(const search *s, const PyObject *object)
{
    Py_ssize_t n = 0;
    for (size_t i = 0; i < s->n_held; i++) n += s->held[i] == object;
    for (uint32_t i = 0; i < s->run->prog->n_stores; i++) {
        const mp_pending_store *store = &s->run->stores[i];
        n += (store->owner == object) + (store->key == object);
    }
    return n;
}

static int let_go(PyObject *object, void *context);

/* The object loses `dropped` references, and with the last of them dies. */
static void drop(search *s, PyObject *object, Py_ssize_t dropped)
{
    if (s->heard || !object || is_plain(object) || PyType_Check(object) || PyModule_Check(object)) return;
    if (Py_REFCNT(object) > dropped && Py_REFCNT(object) - ours(s, object) > dropped) return;
    if (has_finalizer(object) || is_watched(object)) {
        s->heard = true;
        return;
    }
    if (PyType_IsSubtype(Py_TYPE(object), mp_names.tensor_base)) return; /* what autograd keeps is torch's */
    traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (!traverse || !PyObject_IS_GC(object) || s->depth >= MOST_DEPTH || s->looks >= MOST_LOOKS) return;
    s->looks++;
    s->depth++;
    traverse(object, let_go, s);
    s->depth--;
}

static int let_go(PyObject *object, void *context)
{
    search *s = context;
    drop(s, object, 1);
    return s->heard;
}

/* What the store would replace: borrowed, or NULL. */
static PyObject *replaced(const mp_pending_store *store, uint8_t kind)
{
    PyObject *owner = store->owner, *old = NULL;
    PyTypeObject *local = mp_type_thread_local();
    switch (kind) {
    case MP_WRITE_KEY: return PyDict_Check(owner) ? PyDict_GetItemWithError(owner, store->key) : NULL;
    case MP_WRITE_ITEM: {
        Py_ssize_t index = PyLong_AsSsize_t(store->key);
        return index >= 0 && index < PyList_GET_SIZE(owner) ? PyList_GET_ITEM(owner, index) : NULL;
    }
    case MP_WRITE_CELL: return PyCell_GET(owner);
    case MP_WRITE_SLOT:
        if (!Py_TYPE(store->key)->tp_descr_get) return NULL;
        old = Py_TYPE(store->key)->tp_descr_get(store->key, owner, (PyObject *)Py_TYPE(owner));
        break;
    case MP_WRITE_ATTR: {
        if (local && PyType_IsSubtype(Py_TYPE(owner), local)) {
            old = PyObject_GetAttr(owner, store->key);
            break;
        }
        PyObject *dict = PyType_Check(owner) ? ((PyTypeObject *)owner)->tp_dict : mp_raw_dict(owner);
        if (dict) return PyDict_GetItemWithError(dict, store->key);
        PyObject **slot = mp_instance_value_slot(owner, store->key);
        return slot ? *slot : NULL;
    }
    case MP_WRITE_CONTEXT_VAR:
        if (PyContextVar_Get(owner, NULL, &old) < 0) return NULL;
        break;
    default: return NULL; /* appending replaces nothing; attributes of tensors are tensors */
    }
    if (!old) PyErr_Clear(); /* unset */
    Py_XDECREF(old);         /* its place holds it */
    return old;
}

/* Contents that are replaced as a whole lose each of their items; those that come again are held by the new ones. */
static void drop_contents(search *s, PyObject *owner)
{
    PyObject *key, *value;
    if (PyDict_Check(owner)) {
        for (Py_ssize_t at = 0; PyDict_Next(owner, &at, &key, &value);) drop(s, key, 1), drop(s, value, 1);
    } else if (PyAnySet_Check(owner)) {
        Py_hash_t hash;
        for (Py_ssize_t at = 0; _PySet_NextEntry(owner, &at, &key, &hash);) drop(s, key, 1);
    } else if (PyList_Check(owner)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(owner); i++) drop(s, PyList_GET_ITEM(owner, i), 1);
    } else if (Py_TYPE(owner)->tp_traverse) { /* a deque; what else its instance has is held by it */
        PyTypeObject *deque = mp_type_deque();
        if (deque && deque->tp_traverse) deque->tp_traverse(owner, let_go, s);
    }
}

bool mp_mock_lets_die(const mp_mock_run *run, PyObject *const *held, size_t n_held)
{
    uint32_t n = run->prog->n_stores;
    search s = {.run = run, .held = held, .n_held = n_held};
    for (uint32_t i = 0; i < n && !s.heard; i++) {
        const mp_pending_store *store = &run->stores[i];
        uint8_t kind = run->prog->stores[i].kind;
        if (kind == MP_WRITE_CONTENTS) {
            drop_contents(&s, store->owner);
            continue;
        }
        if (kind == MP_WRITE_CALL || kind == MP_WRITE_LIST_APPEND || kind == MP_WRITE_TENSOR_ATTR) continue;
        PyObject *old = replaced(store, kind);
        if (!old || old == store->value || is_plain(old)) continue;
        Py_ssize_t dropped = 1, references = Py_REFCNT(old);
        for (uint32_t j = 0; references > 1 && references <= MOST_REFERENCES && j < n; j++)
            if (j != i) dropped += replaced(&run->stores[j], run->prog->stores[j].kind) == old;
        drop(&s, old, dropped);
    }
    PyErr_Clear(); /* what cannot be looked at: the commit meets it */
    return s.heard;
}
