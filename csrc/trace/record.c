/* Recorder: its life, the reference graph, the stack of observed frames, sites. */
#include "trace/arrays.h"
#include "trace/numbers.h"

#include "guard/torch_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

/* -- Growing arrays ------------------------------------------------------------------------------------------------- */

/* Sizes are 8, 16, 32, ...: whether an array is full is seen from its count. */
void *mp_rec_grow(mp_recorder *rec, void *array_address, uint32_t *count, size_t size)
{
    char **array = array_address;
    uint32_t n = *count;
    if (n == 0 || (n >= 8 && (n & (n - 1)) == 0)) {
        char *bigger = PyMem_RawRealloc(n ? *array : NULL, (n ? (size_t)n * 2 : 8) * size);
        if (!bigger) {
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
            return NULL;
        }
        *array = bigger;
    }
    void *element = *array + n * size;
    memset(element, 0, size);
    *count = n + 1;
    return element;
}

/* -- Watching objects ------------------------------------------------------------------------------------------------- */

PyObject *mp_watch(PyObject *object)
{
    if (!PyType_SUPPORTS_WEAKREFS(Py_TYPE(object))) return Py_NewRef(object);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *ref = PyWeakref_NewRef(object, NULL);
    if (!ref) PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return ref;
}

PyObject *mp_watched(PyObject *watch)
{
    if (!PyWeakref_CheckRefExact(watch)) return watch;
    PyObject *object = PyWeakref_GET_OBJECT(watch);
    return object == Py_None ? NULL : object;
}

PyObject *mp_object_get(const mp_object *object)
{
    if (object->owned || !object->watch) return object->watch;
    return mp_watched(object->watch);
}

bool mp_is_identity_type(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return PyType_Check(object) || PyCFunction_Check(object) || PyModule_Check(object) || type == &PyCode_Type ||
           type == &PyMethodDescr_Type || type == &PyWrapperDescr_Type || type == &PyGetSetDescr_Type ||
           type == &PyMemberDescr_Type || type == &PyClassMethodDescr_Type || type == &_PyMethodWrapper_Type;
}

bool mp_is_type_alias(PyObject *object)
{ return Py_IS_TYPE(object, &Py_GenericAliasType) || strcmp(Py_TYPE(object)->tp_name, "types.UnionType") == 0; }

/* -- Reference graph -------------------------------------------------------------------------------------------------- */

/* Make room for one more object's state. -1 after abandoning. */
static int reserve_states(mp_recorder *rec)
{
    if (rec->recording->n_objects < rec->state_room) return 0;
    uint32_t room = rec->state_room ? rec->state_room * 2 : 128;
    uint16_t *state = PyMem_RawRealloc(rec->object_state, room * sizeof *state);
    if (state) rec->object_state = state;
    uint32_t *places = PyMem_RawRealloc(rec->object_places, room * sizeof *places);
    if (places) rec->object_places = places;
    uint32_t *base = PyMem_RawRealloc(rec->object_base, room * sizeof *base);
    if (base) rec->object_base = base;
    if (!state || !places || !base) {
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
        return -1;
    }
    rec->state_room = room;
    return 0;
}

mp_obj_id mp_rec_new_object(mp_recorder *rec, PyObject *object, mp_root root, uint32_t found_by)
{
    mp_recording *recording = rec->recording;
    if (rec->why.code || reserve_states(rec) < 0) return MP_NO_OBJ;
    PyObject *watch = mp_watch(object);
    mp_object *entry = watch ? mp_rec_grow(rec, &recording->objects, &recording->n_objects, sizeof *entry) : NULL;
    if (!entry) {
        Py_XDECREF(watch);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
        return MP_NO_OBJ;
    }
    mp_obj_id id = recording->n_objects - 1;
    entry->watch = watch;
    entry->owned = watch == object;
    entry->type = (PyTypeObject *)Py_NewRef(Py_TYPE(object));
    entry->root = (uint8_t)root;
    entry->identity = mp_is_identity_type(object) || mp_is_type_alias(object);
    entry->found_by = found_by;
    entry->value = MP_NO_VALUE;
    rec->object_state[id] = 0;
    rec->object_places[id] = UINT32_MAX;
    rec->object_base[id] = 0;
    if (!mp_is_scalar(object) && mp_map_put(&rec->objects, object, id) < 0)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
    if (!mp_is_scalar(object)) mp_rec_read_base_value(rec, object);
    return id;
}

mp_obj_id mp_rec_find(mp_recorder *rec, PyObject *object)
{
    uint32_t id = mp_map_get(&rec->objects, object);
    if (id == MP_MAP_NONE) return MP_NO_OBJ;
    if (MP_LIKELY(mp_object_get(&rec->recording->objects[id]) == object)) return id;
    mp_map_remove(&rec->objects, object); /* the address was reused */
    return MP_NO_OBJ;
}

void mp_rec_internal(mp_recorder *rec, PyObject *object)
{
    if (rec->why.code || mp_rec_is_internal(rec, object)) return;
    PyObject *watch = mp_watch(object);
    PyObject **entry = watch ? mp_rec_grow(rec, &rec->internal_watch, &rec->n_internals, sizeof *entry) : NULL;
    if (!entry) {
        Py_XDECREF(watch);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
        return;
    }
    *entry = watch;
    if (mp_map_put(&rec->internals, object, rec->n_internals - 1) < 0)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
}

bool mp_rec_is_internal(mp_recorder *rec, PyObject *object)
{
    uint32_t i = mp_map_get(&rec->internals, object);
    return i != MP_MAP_NONE && mp_watched(rec->internal_watch[i]) == object;
}

mp_obj_id mp_rec_ensure(mp_recorder *rec, PyObject *object)
{
    mp_obj_id id = mp_rec_find(rec, object);
    if (id != MP_NO_OBJ) return id;
    const char *name = NULL;
    if (PyType_Check(object))
        name = ((PyTypeObject *)object)->tp_name;
    else if (PyModule_Check(object))
        name = "module";
    else if (PyFunction_Check(object))
        name = PyUnicode_AsUTF8(((PyFunctionObject *)object)->func_qualname);
    else if (PyCFunction_Check(object)) {
        PyObject *self = PyCFunction_GET_SELF(object); /* a method of an instance is made by every lookup: no pin */
        if (!self || PyModule_Check(self) || PyType_Check(self)) name = ((PyCFunctionObject *)object)->m_ml->ml_name;
    }
    if (!name || mp_rec_is_internal(rec, object)) return MP_NO_OBJ;
    return mp_rec_pin(rec, object, name);
}

mp_obj_id mp_rec_pin(mp_recorder *rec, PyObject *object, const char *name)
{
    mp_obj_id id = mp_rec_find(rec, object);
    if (id != MP_NO_OBJ || mp_rec_is_internal(rec, object)) return id;
    id = mp_rec_new_object(rec, object, MP_ROOT_PIN, MP_NO_READ);
    if (id == MP_NO_OBJ || !name) return id;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    rec->recording->objects[id].root_name = PyUnicode_FromString(name);
    PyErr_Clear(); /* a pin without a name is only harder to read about */
    PyErr_Restore(type, value, trace);
    return id;
}

void mp_rec_identity(mp_recorder *rec, PyObject *object)
{
    if (rec->why.code || mp_is_scalar(object)) return;
    mp_obj_id id = mp_rec_find(rec, object);
    if (id != MP_NO_OBJ) rec->recording->objects[id].identity = true;
}

/* -- Tensors ------------------------------------------------------------------------------------------------------------ */

void mp_rec_bind_value(mp_recorder *rec, PyObject *tensor, mp_value_id value)
{
    if (rec->why.code) return;
    uint32_t i = mp_map_get(&rec->tensors, tensor);
    if (i != MP_MAP_NONE && mp_watched(rec->bound[i].watch) == tensor) {
        rec->bound[i].value = value;
        return;
    }
    PyObject *watch = mp_watch(tensor);
    if (!watch || !mp_rec_grow(rec, &rec->bound, &rec->n_bound, sizeof *rec->bound)) {
        Py_XDECREF(watch);
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
        return;
    }
    rec->bound[rec->n_bound - 1].watch = watch;
    rec->bound[rec->n_bound - 1].value = value;
    if (mp_map_put(&rec->tensors, tensor, rec->n_bound - 1) < 0) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
}

mp_value_id mp_rec_find_value(mp_recorder *rec, PyObject *tensor)
{
    uint32_t i = mp_map_get(&rec->tensors, tensor);
    if (i == MP_MAP_NONE || mp_watched(rec->bound[i].watch) != tensor) return MP_NO_VALUE;
    return rec->bound[i].value;
}

/* -- Frames and sites ----------------------------------------------------------------------------------------------------- */

/* Is `file` in the folder of `module` (its __init__, or the module's own folder)? */
static bool is_beside(const char *file, const char *module_name)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), module_name); /* borrowed */
    if (!module || !PyModule_Check(module)) return false;
    PyObject *name = PyDict_GetItemString(PyModule_GetDict(module), "__file__"); /* borrowed */
    if (!name || !PyUnicode_Check(name)) return false;
    const char *path = PyUnicode_AsUTF8(name);
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash && strncmp(file, path, (size_t)(slash - path) + 1) == 0;
}

bool mp_is_library_code(PyCodeObject *code)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    const char *file = PyUnicode_AsUTF8(code->co_filename), *name = PyUnicode_AsUTF8(code->co_name);
    bool library = false;
    if (file && name) {
        if (file[0] == '<') /* frozen modules, and the methods that dataclasses and namedtuples generate */
            library =
                strncmp(file, "<frozen ", 8) == 0 || (strcmp(file, "<string>") == 0 && strncmp(name, "__", 2) == 0);
        else
            library = is_beside(file, "torch") ||
                      (is_beside(file, "os") && !strstr(file, "-packages/")); /* site-packages lie beside os.py */
    }
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return library;
}

bool mp_is_installed_file(const char *file)
{ return strstr(file, "-packages/") || is_beside(file, "torch") || is_beside(file, "os"); }

bool mp_is_installed_code(PyCodeObject *code)
{
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    if (!file) PyErr_Clear();
    return mp_is_library_code(code) || (file && strstr(file, "-packages/"));
}

bool mp_is_copy_code(PyCodeObject *code)
{
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    const char *slash = file ? strrchr(file, '/') : NULL;
    if (!file) PyErr_Clear();
    return slash && strcmp(slash, "/copy.py") == 0 && is_beside(file, "copy") && !strstr(file, "-packages/");
}

bool mp_rec_is_torch_code(PyCodeObject *code)
{
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    if (!file) PyErr_Clear();
    return file && is_beside(file, "torch");
}

mp_rec_frame *mp_rec_push_frame(mp_recorder *rec, const mp_frame *frame)
{
    if (rec->n_frames == rec->frames_room) {
        uint32_t room = rec->frames_room ? rec->frames_room * 2 : 32;
        mp_rec_frame *frames = PyMem_RawRealloc(rec->frames, room * sizeof *frames);
        if (!frames) {
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
            return NULL;
        }
        rec->frames = frames;
        rec->frames_room = room;
    }
    mp_rec_frame *entry = &rec->frames[rec->n_frames++];
    *entry = (mp_rec_frame){.id = frame->id,
                            .code = frame->code,
                            .globals = frame->globals,
                            .offset = frame->offset,
                            .site_offset = -1,
                            .site = UINT32_MAX};
    return entry;
}

mp_rec_frame *mp_rec_frame_of(mp_recorder *rec, const mp_frame *frame)
{
    for (uint32_t i = rec->n_frames; i-- > 0;)
        if (rec->frames[i].id == frame->id) return &rec->frames[i];
    return NULL;
}

void mp_rec_pop_frame(mp_recorder *rec, const mp_frame *frame)
{
    mp_rec_frame *entry = mp_rec_frame_of(rec, frame);
    if (!entry || entry == rec->frames) return;
    while (&rec->frames[rec->n_frames - 1] >= entry) {
        rec->n_frames--;
        mp_deferred_ended(rec, rec->frames[rec->n_frames].id, true);
        if (rec->frames[rec->n_frames].pending && rec->frames[rec->n_frames].must)
            mp_rec_abandon(rec, MP_REASON_EXCEPTION, "a call that changes outside state raised");
        Py_CLEAR(rec->frames[rec->n_frames].pending_data);
    }
}

void mp_rec_pend(mp_recorder *rec, const mp_frame *frame, mp_pending handler, PyObject *data)
{
    mp_rec_frame *entry = rec->why.code ? NULL : mp_rec_frame_of(rec, frame);
    if (!entry) {
        Py_XDECREF(data);
        return;
    }
    Py_XSETREF(entry->pending_data, data);
    entry->pending = handler;
    entry->must = entry->told = false;
}

void mp_rec_pend_must(mp_recorder *rec, const mp_frame *frame, mp_pending handler, PyObject *data)
{
    mp_rec_pend(rec, frame, handler, data);
    mp_rec_frame *entry = rec->why.code ? NULL : mp_rec_frame_of(rec, frame);
    if (entry) entry->must = true;
}

void mp_rec_pend_told(mp_recorder *rec, const mp_frame *frame, mp_pending handler, PyObject *data)
{
    mp_rec_pend(rec, frame, handler, data);
    mp_rec_frame *entry = rec->why.code ? NULL : mp_rec_frame_of(rec, frame);
    if (entry) entry->told = true;
}

bool mp_rec_wants_result(const mp_recorder *rec, const mp_frame *frame)
{
    const mp_rec_frame *top = rec->n_frames ? &rec->frames[rec->n_frames - 1] : NULL;
    return top && top->id == frame->id && (top->pending || top->wrote);
}

static uint32_t intern_site(mp_recorder *rec, PyCodeObject *code, int offset, uint32_t caller)
{
    mp_recording *recording = rec->recording;
    uintptr_t hash = ((uintptr_t)code >> 4) * 31 + (uintptr_t)offset * 0x9E3779B1u + (uintptr_t)caller * 0x85EBCA6Bu;
    void *key = (void *)(hash | 1);
    uint32_t head = mp_map_get(&rec->site_of, key);
    for (uint32_t i = head; i != UINT32_MAX; i = rec->site_next[i])
        if (recording->sites[i].code == (PyObject *)code && rec->site_offset[i] == offset &&
            recording->sites[i].caller == caller)
            return i;
    uint32_t n = recording->n_sites, n2 = n, n3 = n;
    mp_site *site = mp_rec_grow(rec, &recording->sites, &recording->n_sites, sizeof *site);
    if (!site) return UINT32_MAX;
    site->code = Py_NewRef(code);
    site->caller = caller;
    uint32_t *next = mp_rec_grow(rec, &rec->site_next, &n2, sizeof *next);
    int *offsets = mp_rec_grow(rec, &rec->site_offset, &n3, sizeof *offsets);
    if (!next || !offsets) return UINT32_MAX;
    *next = head;
    *offsets = offset;
    if (mp_map_put(&rec->site_of, key, n) < 0) mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "%s", "");
    return n;
}

uint32_t mp_rec_site(mp_recorder *rec)
{
    if (rec->why.code || rec->n_frames < 2) return UINT32_MAX;
    uint32_t i = rec->n_frames - 1;
    while (i > 1 && rec->frames[i].site_offset != rec->frames[i].offset) i--;
    for (; i < rec->n_frames; i++) {
        mp_rec_frame *frame = &rec->frames[i];
        if (frame->site_offset == frame->offset) continue;
        frame->site = intern_site(rec, frame->code, frame->offset, rec->frames[i - 1].site);
        frame->site_offset = frame->offset;
    }
    return rec->frames[rec->n_frames - 1].site;
}

/* -- Giving up ------------------------------------------------------------------------------------------------------------- */

/* The user's line: the innermost frame that is not a library's, else the innermost. */
static void take_place(const mp_recorder *rec, mp_reason *why)
{
    uint32_t found = rec->n_frames - 1;
    for (uint32_t i = rec->n_frames; i-- > 1;)
        if (!mp_is_library_code(rec->frames[i].code)) {
            found = i;
            break;
        }
    if (!rec->n_frames || !rec->frames[found].code) return;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    const char *file = PyUnicode_AsUTF8(rec->frames[found].code->co_filename);
    snprintf(why->file, sizeof why->file, "%s", file ? file : "?");
    why->line = PyCode_Addr2Line(rec->frames[found].code, rec->frames[found].offset * (int)sizeof(_Py_CODEUNIT));
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
}

/* Remember which code was running: the pointers in `frames` are good only now. Keeps a pending exception. */
static void keep_running(mp_recorder *rec)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_ssize_t n = 0;
    for (uint32_t i = 0; i < rec->n_frames; i++) n += rec->frames[i].code != NULL;
    rec->running = PyTuple_New(n);
    n = 0;
    for (uint32_t i = 0; rec->running && i < rec->n_frames; i++)
        if (rec->frames[i].code) PyTuple_SET_ITEM(rec->running, n++, Py_NewRef(rec->frames[i].code));
    PyErr_Clear(); /* without it fallback by frame only learns more slowly */
    PyErr_Restore(type, value, trace);
}

void mp_rec_abandon(mp_recorder *rec, mp_reason_code code, const char *detail, ...)
{
    if (rec->why.code || rec->finished) return;
    char text[sizeof rec->why.detail];
    va_list args;
    va_start(args, detail);
    vsnprintf(text, sizeof text, detail, args);
    va_end(args);
    mp_reason_set(&rec->why, code, "%s", text);
    take_place(rec, &rec->why);
    keep_running(rec);
}

bool mp_rec_abandoned(const mp_recorder *rec) { return rec->why.code != MP_REASON_NONE; }
const mp_reason *mp_rec_reason(const mp_recorder *rec) { return &rec->why; }
PyObject *mp_rec_running(const mp_recorder *rec) { return rec->running; }

/* -- Life --------------------------------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void add_argument(mp_recorder *rec, PyObject *object, size_t position, PyObject *name)
{
    if (!mp_is_scalar(object)) {
        if (mp_rec_find(rec, object) != MP_NO_OBJ) { /* the same object again */
            PyObject *key = PyLong_FromSize_t(position);
            if (key) mp_rec_read(rec, object, MP_READ_SAME_ARG, key, NULL);
            Py_XDECREF(key);
            return;
        }
    }
    mp_obj_id id = mp_rec_new_object(rec, object, name ? MP_ROOT_KWARG : MP_ROOT_ARG, MP_NO_READ);
    if (id == MP_NO_OBJ) return;
    rec->recording->objects[id].root_index = (uint32_t)position;
    rec->recording->objects[id].root_name = Py_XNewRef(name);
    if (mp_is_scalar(object)) mp_rec_read_argument(rec, id, object);
}

mp_recorder *mp_rec_new(PyObject *target, PyObject *const *args, size_t nargs, PyObject *kwnames, mp_reason *why)
{
    mp_recorder *rec = PyMem_RawCalloc(1, sizeof *rec);
    if (rec) rec->recording = PyMem_RawCalloc(1, sizeof *rec->recording);
    if (!rec || !rec->recording) {
        PyMem_RawFree(rec);
        mp_reason_set(why, MP_REASON_NO_MEMORY, "%s", "");
        return NULL;
    }
    mp_scalars_prepare();
    mp_arrays_prepare();
    rec->started = now();
    rec->recording->recorder = rec;
    rec->target = Py_NewRef(target);
    rec->handled = PyErr_GetHandledException();
    mp_rec_push_frame(rec, &(mp_frame){.id = rec});
    mp_rec_new_object(rec, target, MP_ROOT_TARGET, MP_NO_READ);
    size_t n_names = kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0;
    for (size_t i = 0; i < nargs + n_names; i++)
        add_argument(rec, args[i], i, i < nargs ? NULL : PyTuple_GET_ITEM(kwnames, (Py_ssize_t)(i - nargs)));
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    rec->recording->torch_state = mp_torch_state_read();
    if (!rec->recording->torch_state) mp_reason_set_exception(&rec->why, MP_REASON_INTERNAL);
    PyErr_Restore(type, value, trace);
    if (!rec->why.code) return rec;
    if (why && !why->code) *why = rec->why;
    mp_rec_free(rec);
    return NULL;
}

mp_recording *mp_rec_finish(mp_recorder *rec, PyObject *result, mp_reason *why)
{
    if (!rec->why.code) mp_rec_finish_ops(rec);
    if (!rec->why.code) mp_rec_finish_deferred(rec);
    if (rec->why.code || rec->finished || !rec->recording) {
        if (why && !why->code && rec->why.code) *why = rec->why;
        mp_reason_set(why, MP_REASON_INTERNAL, "%s", "a recording was finished twice");
        return NULL;
    }
    mp_recording *recording = rec->recording;
    mp_rec_finish_writes(rec);
    for (uint32_t i = 0; i < recording->n_sites; i++)
        recording->sites[i].line =
            PyCode_Addr2Line((PyCodeObject *)recording->sites[i].code, rec->site_offset[i] * (int)sizeof(_Py_CODEUNIT));
    recording->result = Py_NewRef(result);
    recording->seconds = now() - rec->started;
    rec->finished = rec->given_away = true;
    return recording;
}

/* A recording must not lengthen the lives of what it saw: without the recorder, only what is compared by identity is held. */
static void let_go(mp_recording *recording)
{
    recording->recorder = NULL;
    for (uint32_t i = 0; i < recording->n_objects; i++) {
        mp_object *object = &recording->objects[i];
        if (object->owned && !object->identity && object->root != MP_ROOT_PIN) Py_CLEAR(object->watch);
    }
}

/* No object is None, so nothing is found by it. */
static void forget(PyObject **watch)
{
    if (*watch && !PyWeakref_CheckRef(*watch)) Py_SETREF(*watch, Py_NewRef(Py_None));
}

void mp_rec_let_go(mp_recorder *rec)
{
    mp_recording *recording = rec->recording;
    if (!rec->why.code || !recording || rec->given_away) return;
    for (uint32_t i = 0; i < recording->n_writes; i++) Py_CLEAR(recording->writes[i].value);
    for (uint32_t i = 0; i < recording->n_reads; i++) Py_CLEAR(recording->reads[i].value);
    for (uint32_t i = 0; i < recording->n_objects; i++) forget(&recording->objects[i].watch);
    for (uint32_t i = 0; i < rec->n_internals; i++) forget(&rec->internal_watch[i]);
    for (uint32_t i = 0; i < rec->n_bound; i++) forget(&rec->bound[i].watch);
}

void mp_rec_free(mp_recorder *rec)
{
    if (!rec) return;
    mp_recording *recording = rec->recording;
    rec->recording = NULL;
    if (recording && rec->given_away)
        let_go(recording);
    else if (recording) {
        recording->recorder = NULL;
        mp_recording_free(recording);
    }
    Py_XDECREF(rec->handled);
    for (uint32_t i = 0; i < rec->n_internals; i++) Py_DECREF(rec->internal_watch[i]);
    for (uint32_t i = 0; i < rec->n_bound; i++) Py_DECREF(rec->bound[i].watch);
    for (uint32_t i = 0; i < rec->n_locations; i++) Py_XDECREF(rec->locations[i].key);
    for (uint32_t i = 0; i < rec->n_frames; i++) Py_XDECREF(rec->frames[i].pending_data);
    mp_numbers_free(rec);
    mp_arrays_free(rec);
    mp_rec_free_op_state(rec);
    mp_rec_free_deferred(rec);
    mp_oracle_free(rec);
    Py_XDECREF(rec->target);
    Py_XDECREF(rec->running);
    mp_map_free(&rec->objects);
    mp_map_free(&rec->internals);
    mp_map_free(&rec->tensors);
    mp_map_free(&rec->site_of);
    PyMem_RawFree(rec->object_state);
    PyMem_RawFree(rec->object_places);
    PyMem_RawFree(rec->object_base);
    PyMem_RawFree(rec->internal_watch);
    PyMem_RawFree(rec->bound);
    PyMem_RawFree(rec->locations);
    PyMem_RawFree(rec->location_table);
    PyMem_RawFree(rec->frames);
    PyMem_RawFree(rec->site_next);
    PyMem_RawFree(rec->site_offset);
    PyMem_RawFree(rec);
}
