/* Deferred effects: calls that are made for good when the observed call is, and again at the commit of every later run (print, logging,
** warnings, writing to a file, what users declare).
**
** What runs inside such a call is no part of the program: its frames are not recorded, for the commit calls it again, and it then finds
** outside state by itself. Two things must hold for that. Its arguments must be then as they were: they are copied, or must not be
** changed. And the call must not be seen to be late: what the program does to outside state after it must not be anything that the
** effect looked at, and what the effect changed must not be looked at by the program. So the instructions inside are watched for
** which places they touch ("traces" left behind), and a conflict ends the trace.
*/
#include "trace/effects.h"
#include "trace/numbers.h"
#include "trace/raw.h"
#include "trace/tensors.h"

#include <opcode.h>
#include <string.h>

enum { MAX_DEPTH = 16 };

/* -- Places that effects touched -------------------------------------------------------------------------------------- */

enum { LOOKED = 1, CHANGED = 2, COPIED = 4 /* for the commit: may be changed after having been looked at */ };

typedef struct {
    PyObject *watch; /* owned: weak reference, or the object */
    PyObject *key;   /* owned: an attribute's or global's name; NULL: all that the object holds */
    uint8_t how;
    uint32_t next; /* of the same address, or UINT32_MAX */
} mp_touched;

struct mp_deferred {
    void *frame;          /* the frame whose running instruction is a deferred call, or NULL */
    bool early;           /* that call is a draw */
    bool silent;          /* what is touched inside does not matter */
    bool plain;           /* its arguments are constants: so is a scalar result */
    bool unused;          /* nobody looks at the result */
    bool effects, warned; /* was there any effect, a warning? */
    bool files;           /* one that makes an object: a file */
    struct {
        PyObject *watch; /* owned: weak reference, or the object */
        uint32_t number; /* of the effect that made it */
    } *made;
    uint32_t n_made;
    mp_touched *places;
    uint32_t n_places;
    mp_map index; /* address -> first place */
    struct {
        PyObject *tensor; /* owned */
        void *storage;
        uint32_t version;
        bool versioned;
        bool changed; /* be it behind its version counter */
    } *shown;         /* tensors given to effects: nothing may change them before the commit */
    uint32_t n_shown;
};

static mp_deferred *deferred(mp_recorder *rec)
{
    if (!rec->deferred) rec->deferred = PyMem_RawCalloc(1, sizeof *rec->deferred);
    if (!rec->deferred) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "deferred effects");
    return rec->deferred;
}

void mp_rec_free_deferred(mp_recorder *rec)
{
    mp_deferred *state = rec->deferred;
    if (!state) return;
    rec->deferred = NULL;
    for (uint32_t i = 0; i < state->n_places; i++) {
        Py_XDECREF(state->places[i].watch);
        Py_XDECREF(state->places[i].key);
    }
    for (uint32_t i = 0; i < state->n_shown; i++) Py_XDECREF(state->shown[i].tensor);
    for (uint32_t i = 0; i < state->n_made; i++) Py_XDECREF(state->made[i].watch);
    mp_map_free(&state->index);
    PyMem_RawFree(state->made);
    PyMem_RawFree(state->places);
    PyMem_RawFree(state->shown);
    PyMem_RawFree(state);
}

static bool same_name(PyObject *a, PyObject *b)
{
    if (a == b || !a || !b) return true; /* NULL: everything */
    return PyUnicode_Check(a) && PyUnicode_Check(b) && PyUnicode_Compare(a, b) == 0;
}

/* Frames and tracebacks, which the commit has of its own: what they hold would live longer if they were owned. */
static bool is_of_the_stack(mp_recorder *rec, PyObject *object, PyObject *key)
{
    if (PyFrame_Check(object) && key && PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, "f_locals") == 0)
        mp_rec_abandon(rec, MP_REASON_EFFECT, "an effect looks at the variables of a frame");
    return PyFrame_Check(object) || PyTraceBack_Check(object);
}

static void touch(mp_recorder *rec, PyObject *object, PyObject *key, uint8_t how)
{
    mp_deferred *state = rec->deferred;
    if (!object || mp_is_scalar(object) || mp_is_tensor(object) || is_of_the_stack(rec, object, key)) return;
    if (key && !PyUnicode_CheckExact(key)) key = NULL;
    if (state->early && how & LOOKED) { /* a later run makes this call before the program's stores */
        mp_obj_id id = mp_rec_find(rec, object);
        if (id != MP_NO_OBJ && rec->object_state[id] & (MP_STATE_OWNED | MP_STATE_APPENDED | MP_STATE_WROTE_KEYS |
                                                        MP_STATE_DELETED | MP_STATE_WROTE_ATTRS))
            mp_rec_abandon(rec, MP_REASON_EFFECT, "a call that is made again each time looks at a %s that was changed",
                           Py_TYPE(object)->tp_name);
    }
    uint32_t first = mp_map_get(&state->index, object);
    for (uint32_t i = first; i != MP_MAP_NONE; i = state->places[i].next) {
        mp_touched *place = &state->places[i];
        if (mp_watched(place->watch) != object) {
            first = MP_MAP_NONE; /* the address was reused */
            break;
        }
        if (place->key == key || (place->key && key && same_name(place->key, key))) {
            place->how |= how;
            return;
        }
    }
    PyObject *watch = mp_watch(object);
    mp_touched *place = watch ? mp_rec_grow(rec, &state->places, &state->n_places, sizeof *place) : NULL;
    if (!place) {
        Py_XDECREF(watch);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "deferred effects");
        return;
    }
    *place = (mp_touched){watch, Py_XNewRef(key), how, first};
    if (mp_map_put(&state->index, object, state->n_places - 1) < 0)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "deferred effects");
}

/* An attribute: of the object, of its dict, of its class. */
static void touch_attribute(mp_recorder *rec, PyObject *object, PyObject *name, uint8_t how)
{
    if (mp_is_scalar(object) || mp_is_tensor(object)) return;
    touch(rec, object, name, how);
    PyObject *dict = PyModule_Check(object) ? PyModule_GetDict(object) : mp_raw_dict(object);
    if (dict) touch(rec, dict, name, how);
    if (how & LOOKED) touch(rec, (PyObject *)Py_TYPE(object), name, LOOKED);
}

void mp_deferred_conflict(mp_recorder *rec, PyObject *owner, PyObject *key, bool write)
{
    mp_deferred *state = rec->deferred;
    if (!state->n_places || state->frame || rec->why.code) return;
    for (uint32_t i = mp_map_get(&state->index, owner); i != MP_MAP_NONE; i = state->places[i].next) {
        const mp_touched *place = &state->places[i];
        if (mp_watched(place->watch) != owner) return;
        uint8_t how = write && !(place->how & COPIED) ? LOOKED | CHANGED : CHANGED;
        if (!(place->how & how) || !same_name(place->key, key)) continue;
        const char *name = key && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
        PyErr_Clear();
        mp_rec_abandon(rec, MP_REASON_EFFECT, "%s%s%s, which an effect before it %s, is %s", Py_TYPE(owner)->tp_name,
                       name ? " ." : "", name ? name : "", place->how & CHANGED ? "changed" : "looked at",
                       write ? "changed" : "read");
        return;
    }
}

/* -- Instructions inside an effect ------------------------------------------------------------------------------------ */

/* Does the C callable leave everything but its result alone? Else its first argument, or all of them, may be changed. */
static void touch_by_call(mp_recorder *rec, PyObject *callable, PyObject *const *args, Py_ssize_t n)
{
    PyObject *self = NULL;
    if (PyFunction_Check(callable)) return; /* its frame shows */
    if (PyMethod_Check(callable)) {
        touch_by_call(rec, PyMethod_GET_FUNCTION(callable), args, n);
        return;
    }
    if (PyCFunction_Check(callable)) self = PyCFunction_GET_SELF(callable);
    if (self && PyModule_Check(self)) self = NULL;
    const mp_effect *effect =
        PyType_Check(callable) ? mp_effect_of_type((PyTypeObject *)callable) : mp_effect_of(callable);
    uint8_t first = LOOKED | CHANGED, others = first;
    switch (effect ? effect->effect : MP_EFFECT_UNKNOWN) {
    case MP_EFFECT_EFFECT: return; /* itself only ever put off */
    case MP_EFFECT_STORES:
    case MP_EFFECT_WRITES: others = LOOKED; break;
    case MP_EFFECT_SPECIAL:
        others = LOOKED;
        if (!mp_effect_changes_self(effect)) first = LOOKED;
        break;
    case MP_EFFECT_PURE:
    case MP_EFFECT_READS:
    case MP_EFFECT_MAKES:
    case MP_EFFECT_NOTHING:
    case MP_EFFECT_ITERATES:
    case MP_EFFECT_KEYS:
    case MP_EFFECT_STATE:
    case MP_EFFECT_STATE_CALL:
    case MP_EFFECT_TORCH: first = others = LOOKED; break;
    default:
        if (PyType_Check(callable)) first = others = LOOKED; /* makes an instance; __init__ in Python shows itself */
    }
    bool named = n >= 2 && effect && effect->effect == MP_EFFECT_SPECIAL && PyUnicode_CheckExact(args[1]);
    if (self) touch(rec, self, NULL, first);
    for (Py_ssize_t i = 0; i < n; i++) {
        uint8_t how = i == 0 && !self ? first : others;
        if (i == 0 && named)
            touch_attribute(rec, args[0], args[1], how); /* getattr and the like */
        else
            touch(rec, args[i], NULL, how);
    }
}

#define TOP(i) (frame->stack[frame->depth - (i)])

void mp_rec_unseen(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg)
{
    if (rec->why.code || !rec->deferred || rec->deferred->silent) return;
    mp_kept kept = mp_keep();
    PyObject *names = frame->code->co_names;
    switch (opcode) {
    case LOAD_ATTR:
    case LOAD_METHOD: touch_attribute(rec, TOP(1), PyTuple_GET_ITEM(names, oparg), LOOKED); break;
    case STORE_ATTR:
    case DELETE_ATTR: touch_attribute(rec, TOP(1), PyTuple_GET_ITEM(names, oparg), CHANGED); break;
    case LOAD_GLOBAL: touch(rec, frame->globals, PyTuple_GET_ITEM(names, oparg >> 1), LOOKED); break;
    case STORE_GLOBAL:
    case DELETE_GLOBAL: touch(rec, frame->globals, PyTuple_GET_ITEM(names, oparg), CHANGED); break;
    case LOAD_DEREF:
    case LOAD_CLASSDEREF: touch(rec, frame->localsplus[oparg], NULL, LOOKED); break;
    case STORE_DEREF:
    case DELETE_DEREF: touch(rec, frame->localsplus[oparg], NULL, CHANGED); break;
    case BINARY_SUBSCR: touch(rec, TOP(2), NULL, LOOKED); break;
    case STORE_SUBSCR:
    case DELETE_SUBSCR: touch(rec, TOP(2), NULL, CHANGED); break;
    case GET_ITER:
    case FOR_ITER:
    case UNPACK_SEQUENCE:
    case UNPACK_EX:
    case LIST_EXTEND:
    case SET_UPDATE:
    case DICT_UPDATE:
    case DICT_MERGE:
    case CONTAINS_OP: touch(rec, TOP(1), NULL, LOOKED); break;
    case COMPARE_OP:
        touch(rec, TOP(1), NULL, LOOKED);
        touch(rec, TOP(2), NULL, LOOKED);
        break;
    case BINARY_OP: touch(rec, TOP(2), NULL, oparg >= NB_INPLACE_ADD ? LOOKED | CHANGED : LOOKED); break;
    case CALL: {
        bool method = TOP(oparg + 2) != NULL;
        touch_by_call(rec, TOP(oparg + (method ? 2 : 1)), &TOP(oparg + method), oparg + method);
        break;
    }
    case CALL_FUNCTION_EX: {
        int with_keywords = oparg & 1;
        PyObject *args = TOP(1 + with_keywords);
        if (PyTuple_CheckExact(args))
            touch_by_call(rec, TOP(2 + with_keywords), ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args));
        break;
    }
    default: break;
    }
    mp_restore(kept);
}

/* -- Objects that effects make -------------------------------------------------------------------------------------------- */

/* Number of the effect that made the object, or MP_NO_OBJ. */
static mp_obj_id maker_of(const mp_recorder *rec, PyObject *object)
{
    const mp_deferred *state = rec->deferred;
    for (uint32_t i = state ? state->n_made : 0; i-- > 0;)
        if (mp_watched(state->made[i].watch) == object) return state->made[i].number;
    return MP_NO_OBJ;
}

bool mp_deferred_made(mp_recorder *rec, PyObject *object) { return maker_of(rec, object) != MP_NO_OBJ; }
bool mp_deferred_files(const mp_recorder *rec) { return rec->deferred && rec->deferred->files; }

/* The last effect gave this object. */
static void made(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    Py_XDECREF(data);
    if (!result || mp_rec_abandoned(rec) || !rec->recording || !rec->deferred) return;
    mp_deferred *state = rec->deferred;
    uint32_t calls = 0;
    for (uint32_t i = 0; i < rec->recording->n_writes; i++) calls += rec->recording->writes[i].kind == MP_WRITE_CALL;
    PyObject *watch = mp_watch(result);
    if (!watch || !mp_rec_grow(rec, &state->made, &state->n_made, sizeof *state->made)) {
        Py_XDECREF(watch);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "deferred effects");
        return;
    }
    state->made[state->n_made - 1].watch = watch;
    state->made[state->n_made - 1].number = calls - 1;
}

/* -- Arguments ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    mp_call *call;
    bool text;  /* the effect shows its arguments as text */
    bool plain; /* so far all are constants */
} copier;

static PyObject *copy(copier *c, PyObject *object, int depth);

static PyObject *refuse(copier *c, PyObject *object, const char *what)
{
    PyErr_Clear();
    mp_rec_abandon(c->call->rec, MP_REASON_EFFECT, "%s: %s", Py_TYPE(object)->tp_name, what);
    return NULL;
}

static PyObject *copy_tensor(copier *c, PyObject *tensor)
{
    mp_recorder *rec = c->call->rec;
    mp_deferred *state = rec->deferred;
    c->plain = false;
    if (mp_rec_value(rec, tensor) == MP_NO_VALUE) return NULL;
    PyObject *quiet = mp_quiet_begin();
    PyObject *function =
        c->text && mp_rec_find(rec, tensor) == MP_NO_OBJ ? mp_tensor_ask(mp_names.requires_grad, tensor) : NULL;
    PyObject *version = mp_tensor_ask(mp_names._version, tensor);
    PyErr_Clear(); /* inference tensors have no version */
    void *storage = mp_tensor_storage(tensor);
    mp_quiet_end(quiet);
    bool differentiable = function == Py_True;
    Py_XDECREF(function);
    if (differentiable) {
        Py_XDECREF(version);
        return refuse(c, tensor, "its text names its gradient function; show tensor.detach()");
    }
    uint32_t n = state->n_shown;
    if (mp_rec_grow(rec, &state->shown, &state->n_shown, sizeof *state->shown)) {
        state->shown[n].tensor = Py_NewRef(tensor);
        state->shown[n].storage = storage;
        state->shown[n].versioned = version != NULL;
        state->shown[n].version = version ? (uint32_t)PyLong_AsUnsignedLongMask(version) : 0;
    }
    Py_XDECREF(version);
    return mp_rec_abandoned(rec) ? NULL : Py_NewRef(tensor);
}

static PyObject *copy_sequence(copier *c, PyObject *object, int depth)
{
    bool tuple = PyTuple_CheckExact(object);
    Py_ssize_t n = Py_SIZE(object);
    PyObject *made = tuple ? PyTuple_New(n) : PyList_New(n);
    for (Py_ssize_t i = 0; made && i < n; i++) {
        PyObject *item = copy(c, tuple ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i), depth + 1);
        if (!item)
            Py_CLEAR(made);
        else if (tuple)
            PyTuple_SET_ITEM(made, i, item);
        else
            PyList_SET_ITEM(made, i, item);
    }
    return made;
}

static PyObject *copy_dict(copier *c, PyObject *object, int depth)
{
    PyObject *made = PyDict_New(), *key, *value;
    for (Py_ssize_t at = 0; made && PyDict_Next(object, &at, &key, &value);) {
        PyObject *item = mp_key_plain(key) ? copy(c, value, depth + 1) : refuse(c, object, "a key that is an object");
        if (!item || PyDict_SetItem(made, key, item) < 0) Py_CLEAR(made);
        Py_XDECREF(item);
    }
    return made;
}

static bool same_text(PyObject *a, PyObject *b)
{
    PyObject *x = PyObject_Repr(a), *y = x ? PyObject_Repr(b) : NULL, *s = y ? PyObject_Str(a) : NULL;
    PyObject *t = s ? PyObject_Str(b) : NULL;
    bool same = t && PyUnicode_Compare(x, y) == 0 && PyUnicode_Compare(s, t) == 0;
    Py_XDECREF(x);
    Py_XDECREF(y);
    Py_XDECREF(s);
    Py_XDECREF(t);
    PyErr_Clear();
    return same;
}

/* An exception of a type of Python's own, which the call has caught: one that shows the same, without its traceback. Owned, or NULL without an
** exception. */
static PyObject *copy_exception(copier *c, PyObject *object)
{
    if (!PyExceptionInstance_Check(object) || PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_HEAPTYPE)) return NULL;
    PyObject *given = ((PyBaseExceptionObject *)object)->args, *dict = ((PyBaseExceptionObject *)object)->dict;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++)
        if (!mp_is_scalar(PyTuple_GET_ITEM(given, i)) || mp_number_is(c->call->rec, PyTuple_GET_ITEM(given, i)))
            return NULL;
    if (dict && PyDict_GET_SIZE(dict)) return NULL;
    PyObject *made = PyObject_Call((PyObject *)Py_TYPE(object), given, NULL);
    PyErr_Clear();
    if (made && !same_text(made, object)) Py_CLEAR(made);
    return made;
}

/* An object of the standard library's class for identifiers, which nobody can change. */
static bool is_uuid(PyObject *object)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "uuid");
    PyObject *type = module && PyModule_Check(module) ? PyDict_GetItemString(PyModule_GetDict(module), "UUID") : NULL;
    return type && (PyObject *)Py_TYPE(object) == type;
}

/* The argument as the commit is to find it. Owned, or NULL after abandoning or with an exception. */
static PyObject *copy(copier *c, PyObject *object, int depth)
{
    mp_recorder *rec = c->call->rec;
    if (depth > MAX_DEPTH) return refuse(c, object, "nested too deeply to be put off");
    if (mp_is_scalar(object) || mp_number_is(rec, object)) {
        if (mp_number_is(rec, object)) c->plain = false; /* the commit has the number, or text, of its run */
        return Py_NewRef(object);
    }
    if (mp_is_tensor(object)) return copy_tensor(c, object);
    mp_obj_id maker = maker_of(rec, object);
    if (maker != MP_NO_OBJ) return depth ? refuse(c, object, "a file inside of something else") : mp_ref_new(maker);
    bool outside = mp_rec_find(rec, object) != MP_NO_OBJ;
    if (PyTuple_CheckExact(object) || PyList_CheckExact(object) || PyDict_CheckExact(object)) {
        if (outside) mp_rec_whole(rec, object);
        touch(rec, object, NULL, COPIED);
        if (!PyTuple_CheckExact(object)) c->plain = false;
        return PyDict_CheckExact(object) ? copy_dict(c, object, depth) : copy_sequence(c, object, depth);
    }
    c->plain = false;
    if (PyType_Check(object) || PyModule_Check(object) || PyFunction_Check(object) || PyCFunction_Check(object))
        return Py_NewRef(object);
    if (is_uuid(object)) return Py_NewRef(object);
    PyObject *exception = outside || !c->text ? NULL : copy_exception(c, object);
    if (exception) return exception;
    if (!outside)
        return refuse(c, object, "made by the call, it may change before the effect is made; pass str(object)");
    if (mp_is_container(object)) return refuse(c, object, "it may change before the effect is made; pass str(object)");
    touch(rec, object, NULL, LOOKED); /* an object from outside: nobody may change it in this call */
    PyObject *dict = mp_raw_dict(object);
    if (dict) touch(rec, dict, NULL, LOOKED);
    return Py_NewRef(object);
}

static PyObject *copy_keywords(copier *c)
{
    mp_call *call = c->call;
    PyObject *made = PyDict_New();
    for (Py_ssize_t i = 0; made && i < call->nkw; i++) {
        bool handled = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, i), "exc_info") == 0 &&
                       PyExceptionInstance_Check(call->kwvalues[i]); /* it is the one that the commit handles */
        PyObject *value = handled ? Py_NewRef(Py_True) : copy(c, call->kwvalues[i], 0);
        if (!value || PyDict_SetItem(made, PyTuple_GET_ITEM(call->kwnames, i), value) < 0) Py_CLEAR(made);
        Py_XDECREF(value);
    }
    return made;
}

/* -- The place of the call ------------------------------------------------------------------------------------------------- */

/* Functions that call what they are given from the program's own frames, as far as their file, line, name and globals go: warnings and
** logging look at their caller. Outermost first; owned tuple, or NULL with an exception. */
static PyObject *calling_frames(mp_recorder *rec)
{
    PyObject *rows = PyList_New(0), *made = NULL;
    for (uint32_t i = 0; rows && i < rec->n_frames; i++) {
        const mp_rec_frame *frame = &rec->frames[i];
        if (!frame->code || !frame->globals) continue;
        int line = PyCode_Addr2Line(frame->code, frame->offset * (int)sizeof(_Py_CODEUNIT));
        PyObject *row = Py_BuildValue("(OiO)", frame->code, line, frame->globals);
        if (!row || PyList_Append(rows, row) < 0) Py_CLEAR(rows);
        Py_XDECREF(row);
    }
    if (rows) made = mp_call_imported("magpy.effects", "frames", "(O)", rows);
    Py_XDECREF(rows);
    return made;
}

/* -- Deferring --------------------------------------------------------------------------------------------------------------- */

void mp_deferred_begin(mp_recorder *rec, const mp_frame *frame, bool early)
{
    mp_deferred *state = deferred(rec);
    if (!state) return;
    state->frame = frame->id;
    state->early = early;
    state->silent = false;
}

void mp_deferred_silent(mp_recorder *rec, const mp_frame *frame)
{
    mp_deferred_begin(rec, frame, false);
    if (rec->deferred) rec->deferred->silent = true;
}

bool mp_rec_deferring(const mp_recorder *rec) { return rec->deferred && rec->deferred->frame && !rec->why.code; }

void mp_deferred_ended(mp_recorder *rec, void *frame, bool raised)
{
    if (!rec->deferred || rec->deferred->frame != frame) return;
    rec->deferred->frame = NULL;
    if (raised) mp_rec_abandon(rec, MP_REASON_EXCEPTION, "a call that is not watched raised");
}

/* What the effect gave: nothing, or as constant as its arguments (how many characters were written). */
static void done(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    PyObject *result = slot ? *slot : NULL;
    if (result && result != Py_None && rec->deferred && !rec->deferred->unused &&
        !(rec->deferred->plain && mp_is_scalar(result)) && !mp_rec_abandoned(rec))
        mp_rec_abandon(rec, MP_REASON_EFFECT, "%s gives a %s; an effect gives nothing", PyUnicode_AsUTF8(data),
                       Py_TYPE(result)->tp_name);
    Py_XDECREF(data);
}

/* Does it only write into a buffer in memory that the call has made? */
static bool into_own_buffer(mp_call *call)
{
    PyObject *file = call->nargs && !PyFunction_Check(call->callable) ? call->args[0] : NULL;
    for (Py_ssize_t i = 0; i < call->nkw; i++)
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(call->kwnames, i), "file") == 0) file = call->kwvalues[i];
    return file && !strcmp(Py_TYPE(file)->tp_name, "_io.StringIO") && mp_rec_find(call->rec, file) == MP_NO_OBJ;
}

bool mp_result_unused(const mp_frame *frame)
{
    PyObject *bytes = frame->code ? PyCode_GetCode(frame->code) : NULL; /* owned, without specialisation */
    bool unused = false;
    if (bytes) {
        const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(bytes);
        Py_ssize_t n = PyBytes_GET_SIZE(bytes), next = 2 * ((Py_ssize_t)frame->offset + 1);
        bool call = next >= 2 && next < n && (at[next - 2] == CALL || at[next - 2] == CALL_FUNCTION_EX);
        while (next < n && at[next] == CACHE) next += 2;
        unused = call && next < n && at[next] == POP_TOP;
    }
    Py_XDECREF(bytes);
    PyErr_Clear();
    return unused;
}

/* The callable as the commit calls it: a C method that is bound to what an effect made, without that. Borrowed. */
static PyObject *unbound(mp_call *call)
{
    PyObject *self = PyCFunction_Check(call->callable) ? PyCFunction_GET_SELF(call->callable) : NULL;
    if (!self || !call->nargs || call->args[0] != self || !mp_deferred_made(call->rec, self)) return call->callable;
    PyObject *name = PyUnicode_FromString(((PyCFunctionObject *)call->callable)->m_ml->ml_name);
    PyObject *found = name ? mp_raw_type_lookup(Py_TYPE(self), name) : NULL;
    Py_XDECREF(name);
    return found;
}

/* around: a function (function, args, kwargs) in which the whole is called, borrowed, or NULL. */
static void defer(mp_call *call, bool text, bool at_frames, PyObject *around, mp_pending finish)
{
    mp_recorder *rec = call->rec;
    if (into_own_buffer(call)) {
        for (Py_ssize_t i = 0; i < call->nargs + call->nkw; i++) {
            PyObject *object = i < call->nargs ? call->args[i] : call->kwvalues[i - call->nargs];
            mp_number_settle_inside(rec, object);
            mp_effect_read(call, object, true);
        }
        return;
    }
    mp_deferred *state = deferred(rec);
    if (!state) return;
    mp_kept kept = mp_keep();
    copier c = {call, text, true};
    PyObject *callable = unbound(call);
    PyObject *self = callable && PyCFunction_Check(callable) ? PyCFunction_GET_SELF(callable) : NULL;
    Py_ssize_t skip = self && call->nargs && call->args[0] == self; /* a bound method of a C object keeps its self */
    PyObject *args = callable ? PyTuple_New(call->nargs - skip) : NULL, *kwargs = NULL, *frames = NULL, *packed = NULL,
             *name = NULL;
    for (Py_ssize_t i = skip; args && i < call->nargs; i++) {
        bool receiver = i == 0 &&
                        (PyFunction_Check(call->callable) || Py_IS_TYPE(call->callable, &PyMethodDescr_Type)) &&
                        mp_rec_find(rec, call->args[0]) != MP_NO_OBJ; /* self is used, not shown */
        PyObject *item = receiver ? Py_NewRef(call->args[0]) : copy(&c, call->args[i], 0);
        if (!item)
            Py_CLEAR(args);
        else
            PyTuple_SET_ITEM(args, i - skip, item);
    }
    if (args) kwargs = copy_keywords(&c);
    if (kwargs) frames = at_frames ? calling_frames(rec) : PyTuple_New(0);
    if (frames && around) {
        PyObject *outermost = PyTuple_Pack(1, around);
        Py_SETREF(frames, outermost ? PySequence_Concat(outermost, frames) : NULL);
        Py_XDECREF(outermost);
    }
    if (frames) packed = PyTuple_Pack(3, args, kwargs, frames);
    if (packed) name = mp_callable_name(call->callable);
    if (PyFunction_Check(call->callable)) mp_function_code(rec, call->callable);
    if (packed && name) {
        state->effects = true;
        state->plain = c.plain;
        state->unused = mp_result_unused(call->frame);
        mp_rec_effect(rec, callable, packed);
        mp_rec_pend(rec, call->frame, finish, name);
        mp_deferred_begin(rec, call->frame, false);
    } else {
        Py_XDECREF(name);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "deferred effects"); /* unless there is a reason already */
    }
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(frames);
    Py_XDECREF(packed);
    mp_restore(kept);
}

void mp_defer(mp_call *call, bool text, bool at_frames) { defer(call, text, at_frames, NULL, done); }
void mp_defer_handling(mp_call *call, PyObject *around)
{ defer(call, true, true, around == Py_None ? NULL : around, done); }

void mp_defer_making(mp_call *call)
{
    defer(call, false, false, NULL, made);
    if (call->rec->deferred) call->rec->deferred->files = true;
}

/* -- The end -------------------------------------------------------------------------------------------------------------------- */

/* The dict of a loaded module, where it is external. */
static mp_obj_id module_dict(mp_recorder *rec, const char *name)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), name); /* borrowed */
    return module && PyModule_Check(module) ? mp_rec_find(rec, PyModule_GetDict(module)) : MP_NO_OBJ;
}

static bool is_named(PyObject *key, const char *name)
{ return key && PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, name) == 0; }

/* Has the call stored something else there than it found? */
static bool replaced(mp_recorder *rec, const char *module, const char *name)
{
    const mp_recording *recording = rec->recording;
    mp_obj_id dict = module_dict(rec, module), found = MP_NO_OBJ;
    if (dict == MP_NO_OBJ) return false;
    for (uint32_t i = 0; i < recording->n_reads; i++) {
        const mp_read *read = &recording->reads[i];
        if (read->owner == dict && read->kind == MP_READ_KEY && is_named(read->key, name))
            found = read->was == MP_WAS_OBJECT ? read->obj : MP_NO_OBJ;
    }
    for (uint32_t i = 0; i < recording->n_writes; i++) {
        const mp_write *write = &recording->writes[i];
        if (write->owner != dict || write->kind != MP_WRITE_KEY || !is_named(write->key, name)) continue;
        return found == MP_NO_OBJ || !write->value || mp_rec_find(rec, write->value) != found;
    }
    return false;
}

/* Has it stored anything there, be it what had been there? */
static bool stored(mp_recorder *rec, const char *module, const char *name)
{
    mp_obj_id dict = module_dict(rec, module);
    for (uint32_t i = 0; dict != MP_NO_OBJ && i < rec->recording->n_writes; i++)
        if (rec->recording->writes[i].owner == dict && is_named(rec->recording->writes[i].key, name)) return true;
    return false;
}

bool mp_deferred_filters_changed(mp_recorder *rec) { return rec->recording && replaced(rec, "warnings", "filters"); }

void mp_deferred_warned(mp_recorder *rec)
{
    if (rec->deferred) rec->deferred->warned = true;
}

void mp_deferred_changed(mp_recorder *rec, void *storage)
{
    for (uint32_t i = 0; rec->deferred && i < rec->deferred->n_shown; i++)
        if (rec->deferred->shown[i].storage == storage) rec->deferred->shown[i].changed = true;
}

void mp_rec_finish_deferred(mp_recorder *rec)
{
    mp_deferred *state = rec->deferred;
    if (!state || !rec->recording || rec->why.code) return;
    if (state->effects && (stored(rec, "sys", "stdout") || stored(rec, "sys", "stderr")))
        mp_rec_abandon(rec, MP_REASON_EFFECT, "output, while sys.stdout or sys.stderr is replaced");
    if (state->warned && replaced(rec, "warnings", "filters"))
        mp_rec_abandon(rec, MP_REASON_EFFECT, "warnings, and new filters for them");
    PyObject *quiet = mp_quiet_begin();
    for (uint32_t i = 0; i < state->n_shown && !mp_rec_abandoned(rec); i++) {
        PyObject *version = mp_tensor_ask(mp_names._version, state->shown[i].tensor);
        bool same = (version != NULL) == state->shown[i].versioned && !state->shown[i].changed &&
                    mp_tensor_storage(state->shown[i].tensor) == state->shown[i].storage &&
                    (!version || (uint32_t)PyLong_AsUnsignedLongMask(version) == state->shown[i].version);
        Py_XDECREF(version);
        PyErr_Clear();
        if (!same) mp_rec_abandon(rec, MP_REASON_EFFECT, "a tensor is shown and changed in place after that");
    }
    mp_quiet_end(quiet);
}
