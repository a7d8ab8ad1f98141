/* Recording: what one observed execution read, computed, wrote and returned. Pure data; made by the recorder, read by guard,
** mock and lowering. See docs/architecture.md, "A call is a transaction".
**
** The reference graph: an *external* object was reached from a root by recorded reads and has an mp_obj_id; the read that found
** it first is its path. An id never dangles: a recording does not keep external objects alive (`watch`), it keeps their number.
** Immutable scalars have no identity: they are stored by type and value at the location they were read from.
*/
#ifndef MP_TRACE_RECORDING_H
#define MP_TRACE_RECORDING_H
#include "magpy.h"

typedef uint32_t mp_obj_id;   /* external object */
typedef uint32_t mp_value_id; /* tensor of the graph: an input or an operator's result */
#define MP_NO_OBJ UINT32_MAX
#define MP_NO_VALUE UINT32_MAX
#define MP_NO_READ UINT32_MAX
#define MP_NO_DRAW UINT32_MAX

/* -- External objects -------------------------------------------------------------------------------------------- */

typedef enum {
    MP_ROOT_NONE,   /* found by a read */
    MP_ROOT_TARGET, /* the compiled callable's target */
    MP_ROOT_ARG,    /* positional argument root_index */
    MP_ROOT_KWARG,  /* keyword argument root_name */
    MP_ROOT_PIN, /* no path is known: this very object, a constant of the trace (types, modules, functions, globals dicts,
                        sys.modules, builtins) */
} mp_root;

typedef struct {
    PyObject *watch;    /* owned: a weakref to the object, or the object itself where it has no weak references */
    PyTypeObject *type; /* owned: its exact type when found */
    uint8_t root;       /* mp_root */
    bool identity;      /* the program saw *which* object it is: it must be this one, not only one like it */
    bool owned;         /* `watch` is the object itself */
    uint32_t root_index;
    PyObject *root_name; /* owned: argument name for people and for KWARG, pin's name; may be NULL */
    uint32_t found_by;   /* index of the read that found it, or MP_NO_READ */
    mp_value_id value;   /* its graph input, if it is a tensor that was used */
} mp_object;

/* The object if it is still alive, else NULL. Borrowed. */
PyObject *mp_object_get(const mp_object *object);

/* -- Reads --------------------------------------------------------------------------------------------------------- */

/* A location is (owner, kind, key). `what it held` is mp_was. The first access decides: a location that the call wrote first is no
** read. Columns: kind, the key. */
// clang-format off: a table
#define MP_READ_KINDS(X)                                                                                                          \
    X(VALUE)        /* owner is an argument that is a scalar; no key. Held: SCALAR, the argument itself */                            \
    X(SAME_ARG)     /* owner is an argument; key is the int position (positional, then keyword values) of another argument that is   \
                       the same object. Held: ANY */                                                                               \
    X(TYPE)         /* Py_TYPE(owner); no key. Recorded before anything else of an instance */                                       \
    X(DICT)         /* the instance dict as an object; no key. Held: OBJECT, or MISSING if the type has none. Where the current       \
                       object's dict is not materialised, the guard may materialise it: the program looked at vars(object) */        \
    X(INSTANCE_ATTR)/* attribute held by the instance itself, key is its name: an inline value while its dict is not materialised,   \
                       else the dict's item. Recorded instead of DICT and KEY where there was no dict object. MISSING if absent */   \
    X(LOCAL_ATTR)   /* owner is a threading.local: its attribute in this thread, through its C getattro. MISSING if absent */        \
    X(KEY)          /* dict item; key. MISSING if absent (dict subclass methods are not called) */                                   \
    X(HAS)          /* is the key in the dict? Held: SCALAR bool */                                                                \
    X(KEY_AT)       /* the dict's i-th key in order; key is int i */                                                               \
    X(LEN)          /* ob_size of list, tuple, deque; used of dict, set; Held: SCALAR int */                                       \
    X(ITEM)         /* list, tuple, deque item; key is int (may be negative as used). MISSING if out of range */                   \
    X(SET_HAS)      /* is the key in the set? Held: SCALAR bool */                                                                 \
    X(SET_ITEMS)    /* the set's elements in iteration order, and how they lie. Held: ITEMS */                                     \
    X(TYPE_ATTR)    /* owner is a type: MRO lookup of the key, raw (no descriptor call). MISSING if absent */                      \
    X(TYPE_DUNDERS) /* owner is a type that C code may call into: all its special methods; no key. Held: ANY; type version */      \
    X(NO_DATA_DESCR)/* owner is a type: MRO lookup of the key gives no data descriptor. Held: ANY */                               \
    X(SUPER_ATTR)   /* owner is a type T; key (C, name): lookup in T's MRO after C. MISSING if absent */                           \
    X(CELL)         /* closure cell; MISSING if empty */                                                                           \
    X(MEMBER)       /* fixed C field of a function, method, property, staticmethod, classmethod, partial, builtin: key is its      \
                       name, such as __code__, __defaults__, __kwdefaults__, __closure__, __globals__, __func__, __self__, fget */ \
    X(SLOT)         /* key is a C member or getset descriptor that has no side effect: key.__get__(owner). MISSING if it raises */ \
    X(TENSOR_META)  /* metadata of a tensor; Held: META */                                                                         \
    X(ARRAY_META)   /* how a numpy array lies in memory: Held: META; value is (dtype, writeable flag) */                           \
    X(TENSOR_ATTR)  /* key is a getset descriptor name of a tensor that is state, not metadata: grad, grad_fn, _base, ... */       \
    X(DEREF)        /* a weak reference's referent; MISSING if dead */                                                             \
    X(CONTEXT_VAR)  /* contextvars.ContextVar; MISSING if unset */                                                                 \
    X(STATE_CALL)   /* owner is a pinned C callable, key an args tuple of scalars: calling it gives this scalar */                 \
    X(CACHED)       /* owner is a functools.lru_cache: what it holds for key, a tuple of positional arguments (scalars, external  \
                       objects as _C.Ref). MISSING if nothing */                                                                  \
    X(CACHED_TENSOR) /* likewise, with arguments as mp_lru_find takes them: what it holds, if anything, is a tensor that has been changed as often. \
                       Held: SCALAR int, the tensor's _version */ \
    X(BASE_VALUE)   /* the int/float/str/bytes value inside an instance of a subclass. Held: SCALAR of the base type */
// clang-format on

typedef enum {
#define MP_READ_KIND(name) MP_READ_##name,
    MP_READ_KINDS(MP_READ_KIND)
#undef MP_READ_KIND
        MP_READ_KIND_COUNT
} mp_read_kind;

typedef enum {
    MP_WAS_OBJECT,  /* external object `obj` */
    MP_WAS_SCALAR,  /* immutable `value`: same exact type and same value (bitwise for floats) */
    MP_WAS_MISSING, /* nothing there */
    MP_WAS_META,    /* `meta` */
    MP_WAS_NUMBER,  /* an int or float, object `obj`, of the same type; `value`: and of this value, NULL: whichever */
    MP_WAS_ITEMS,   /* `value`: (a tuple of scalars and mp_obj_id wrapped in _C.Ref, mp_set_layout) */
    MP_WAS_ANY,     /* something made by the call itself, or nothing to compare: only the kind's own rule */
} mp_was;

typedef struct {            /* tensor metadata as guarded */
    int64_t *size, *stride; /* owned by the recording */
    int64_t storage_offset;
    int32_t dtype, layout;
    int8_t ndim, device_type;
    int16_t device_index;
    bool requires_grad, is_leaf, is_conj, is_neg, is_inference, is_view;
    bool
        placed; /* the program has seen where in its memory the tensor lies: storage_offset and storage_bytes are guarded */
    int64_t storage_bytes; /* where placed */
    uint32_t version;      /* _version when first touched; not guarded */
    char *first, *begin,
        *end; /* memory of an input then, where the program may let go of it; NULL: unknown; not guarded */
    uint64_t dispatch_keys; /* raw key set as seen by the Python binding, 0 if unknown; not guarded if 0 */
} mp_tensor_meta;

typedef struct {
    uint8_t kind; /* mp_read_kind */
    uint8_t was;  /* mp_was */
    bool very;    /* SCALAR: the program saw which object it is: an equal one is another */
    mp_obj_id owner;
    PyObject *key;        /* owned, NULL where the kind has none or the key is an external object */
    mp_obj_id key_obj;    /* the key, where it is an external object (compared by identity), else MP_NO_OBJ */
    mp_obj_id obj;        /* OBJECT */
    PyObject *value;      /* owned: SCALAR, ITEMS, NUMBER or NULL */
    mp_tensor_meta *meta; /* META; belongs to the recording */
    uint32_t site;        /* where in the program: index into `sites` */
} mp_read;

/* -- Writes -------------------------------------------------------------------------------------------------------- */

// clang-format off: a table
#define MP_WRITE_KINDS(X)                                                                                          \
    X(KEY)         /* dict item by key, a plain dict store (instance dicts and globals are dicts); NULL = delete */ \
    X(ITEM)        /* list item; key is int */                                                                    \
    X(CELL)        /* closure cell; NULL = empty it */                                                            \
    X(SLOT)        /* key is a member descriptor: key.__set__(owner, value); NULL = __delete__ */                 \
    X(ATTR)        /* object.__setattr__ semantics where a dict write does not suffice: types (type.__setattr__), instances    \
                      without a materialised dict (the same location as INSTANCE_ATTR), threading.local; NULL = delattr */    \
    X(LIST_APPEND) /* blind append: length and items were not read */                                             \
    X(CONTENTS)    /* the whole contents of a list, dict, set, deque are replaced by those of `value` in place */ \
    X(TENSOR_ATTR) /* attribute of a tensor that is state, such as grad; key is its name. "layout": (sizes, strides), changed in place */ \
    X(CONTEXT_VAR) /* ContextVar.set; NULL = unset, as it was before the call */                                  \
    X(CALL)        /* a deferred effect: key(*args, **kwargs), value is (args, kwargs, frames), frames a tuple of functions          \
                      (callable, args, kwargs) to call it by, outermost first; owner unused */
// clang-format on

typedef enum {
#define MP_WRITE_KIND(name) MP_WRITE_##name,
    MP_WRITE_KINDS(MP_WRITE_KIND)
#undef MP_WRITE_KIND
        MP_WRITE_KIND_COUNT
} mp_write_kind;

typedef struct {
    uint8_t kind;
    mp_obj_id owner;
    PyObject *key;     /* owned or NULL */
    mp_obj_id key_obj; /* or MP_NO_OBJ */
    PyObject *value;   /* owned: the last value, the real object as the observed call left it; NULL = deleted */
    uint32_t site;
} mp_write; /* in order of first write of each location; appends and calls one entry each */

/* -- Operators ----------------------------------------------------------------------------------------------------- */

/* Arguments and results are templates: ordinary tuples, lists, dicts, slices and constants in which every tensor is replaced by a
** _C.Value(index) object. */
typedef struct {
    PyObject *func;   /* owned: the torch function as the mode saw it (API level), or a C callable recorded from CALL */
    PyObject *args;   /* owned tuple template */
    PyObject *kwargs; /* owned dict template or NULL */
    PyObject *out;    /* owned template of the result */
    bool state;       /* changes a torch mode (grad mode, autocast): keep even if no result is used */
    uint32_t site;
} mp_op;

/* Are the sizes of its results data? Then they are among its arguments, and its replay sees to it that they are the same. */
bool mp_op_is_sized(const mp_op *op);

/* Data that the program looked at: func(*args, **kwargs) gave `result` at that place, and the rest of the recording holds only if it
** does again. The tensors in the templates are values of their own that no operator changes: make them outputs of the graph, run it, call
** `func` with them before anything is committed, and take another result (mp_answer_same) as a miss. */
typedef struct {
    PyObject *func;   /* owned: a torch function without side effects, such as Tensor.__bool__ or torch.equal */
    PyObject *args;   /* owned tuple template, as an operator's */
    PyObject *kwargs; /* owned dict template or NULL */
    PyObject *
        result; /* owned: a bool, int, float or complex, or the recording's own list of such or of lists; never given away */
    uint32_t op; /* how many operators ran before it */
    uint32_t site;
} mp_check;

/* A call that gives another result each time: func(*args, **kwargs) is made by every run, in order, before the graph. Or a step that computes
** from what earlier ones gave, which are _C.Drawn objects in its arguments. */
typedef struct {
    PyObject *func;    /* owned */
    PyObject *args;    /* owned tuple of constants and of the recording's own objects, whose identity is guarded */
    PyObject *kwargs;  /* owned dict of the same */
    PyObject *keeper;  /* owned: (get, set) of the state that it moves, a random.Random, or None */
    PyObject *result;  /* owned: what the program was given */
    PyObject *meta;    /* owned: of a result that is a numpy array (mp_array_meta), or NULL */
    mp_value_id value; /* the graph input that the result is, without dimensions or that array, or MP_NO_VALUE */
    bool again;        /* where its run is thrown away, the next one of the same call gets what it gave */
    bool open;         /* any result of that type will do; else, without a graph input, `result` must be given again */
    uint32_t site;
} mp_draw;

/* _C.Drawn, in arguments of draws: what the draw of that number gave. Owned, or NULL with an exception; MP_NO_DRAW for other objects. */
PyObject *mp_drawn_new(uint32_t draw);
uint32_t mp_drawn_number(PyObject *object);

#define MP_ANSWER_DEPTH 64 /* of lists in lists: as many as a tensor has dimensions */
/* Is what the function answers `now` what the program has `seen` (a check's result)? By type and bits, lists item by item. */
bool mp_answer_same(PyObject *seen, PyObject *now);
/* Is it one of very many that there may be (a float, complex, list), and no bool or int? */
bool mp_answer_is_value(PyObject *seen);

/* The Python function that makes the check as a step of the graph, step(result, mp_answer_is_value(result), args), and raises OtherData where
** it fails. Borrowed; NULL: it is made after the run. */
PyObject *mp_check_step(const mp_check *check);

typedef struct {
    mp_obj_id input; /* the external tensor, or MP_NO_OBJ for an operator's result */
    uint32_t op;     /* the operator, for results */
} mp_value;

typedef enum {                   /* was an input's data changed in place by an operator? */
               MP_MUTATION_NONE, /* not that its version counter knows: batch norm changes its statistics without it */
               MP_MUTATION_UNCOUNTED, /* only through .data, of which its version counter does not know */
               MP_MUTATION_COUNTED,
} mp_mutation;

typedef struct {
    PyObject *code; /* owned code object */
    int line;
    uint32_t caller; /* site index of the calling frame, or UINT32_MAX */
} mp_site;

/* -- The whole ------------------------------------------------------------------------------------------------------ */

typedef struct {
    mp_object *objects;
    uint32_t n_objects;
    mp_read *reads;
    uint32_t n_reads;
    mp_write *writes;
    uint32_t n_writes;
    mp_op *ops;
    uint32_t n_ops;
    mp_check *checks;
    uint32_t n_checks; /* none unless mp_rec_accept_checks was called */
    mp_draw *draws;
    uint32_t n_draws; /* likewise */
    mp_value *values;
    uint32_t n_values;
    mp_site *sites;
    uint32_t n_sites;
    mp_value_id *inputs;
    uint32_t n_inputs;      /* graph inputs in order of first touch */
    uint8_t *input_mutated; /* [n_inputs] mp_mutation */
    PyObject *result;       /* owned until mock has compiled it, then NULL */
    PyObject *torch_state;  /* owned: snapshot made by mp_torch_state_read at the start, see guard/torch_state.h */
    uint64_t opcodes, frames;
    double seconds;               /* spent observing */
    struct mp_recorder *recorder; /* borrowed while it lives, then NULL */
} mp_recording;

void mp_recording_free(mp_recording *recording);

/* Identity of live objects at the end of the observed call, for mock: valid until the recording's recorder is freed.
** The external object's id / tensor's value id, or MP_NO_OBJ / MP_NO_VALUE. */
mp_obj_id mp_recording_find_object(const mp_recording *recording, PyObject *object);
mp_value_id mp_recording_find_value(const mp_recording *recording, PyObject *tensor);
/* The graph value (a tensor without dimensions) of an int or float that is data, which may add an operator to the recording; MP_NO_VALUE: a
** constant of the trace. *make (borrowed): the Python function that makes the object of that number (a moment), or NULL: it is the number. */
mp_value_id mp_recording_find_number(const mp_recording *recording, PyObject *object, PyObject **make);
/* (how, operands...) of a text of such numbers, as mp_text_make takes them. Borrowed, or NULL. */
PyObject *mp_recording_find_text(const mp_recording *recording, PyObject *object);
/* The draw that gave this object, or MP_NO_DRAW: it is none that is open. */
uint32_t mp_recording_find_drawn(const mp_recording *recording, PyObject *object);
/* Number `i` of the objects that every run must make, wanted or not, for making them may raise. Borrowed; None: it is none any more; NULL: there
** are no more. */
PyObject *mp_recording_must_make(const mp_recording *recording, uint32_t i);
/* The graph value of a numpy array that is data, or that the result shares memory with, as it is at the end, which may add operators to the
** recording; MP_NO_VALUE with *why set: it cannot be made again. */
mp_value_id mp_recording_find_array(const mp_recording *recording, PyObject *array, bool *owns, mp_reason *why);
/* Is this value what a draw gave? */
bool mp_recording_is_draw(const mp_recording *recording, mp_value_id value);
/* Did the call make this function, type or module? */
bool mp_recording_is_internal(const mp_recording *recording, PyObject *object);

/* _C.Ref, an external object inside MP_WAS_ITEMS, or inside the arguments of a CALL write what the write CALL of that number, from 0, gives. new: owned or NULL with an exception; id: MP_NO_OBJ if `ref` is none. */
PyObject *mp_ref_new(mp_obj_id id);
mp_obj_id mp_ref_id(PyObject *ref);

/* A name for the location of a read that held an int or float, or for an argument, by which it is found again in later recordings. Owned str;
** NULL without an exception: it is none that may become a number, or with one. */
PyObject *mp_recording_number_name(const mp_recording *recording, uint32_t read);
PyObject *mp_recording_argument_name(uint32_t position);

/* (sizes, strides) as recorded. Owned, or NULL with an exception. */
PyObject *mp_recording_layout(const mp_tensor_meta *meta);

/* Was the object found as a parameter or buffer of a module? */
bool mp_recording_is_state(const mp_recording *recording, mp_obj_id object);

/* Source text of an object's path from its root, such as "self.encoder.layer[0]". Owned str or NULL with an exception. */
PyObject *mp_recording_path(const mp_recording *recording, mp_obj_id object);

/* Source text of the location of a read, such as "self.training". Owned str or NULL with an exception. */
PyObject *mp_recording_location(const mp_recording *recording, uint32_t read);

/* "file.py:41" of a site, of the nearest caller outside of libraries if there is one; empty if unknown. Owned str or NULL with an exception. */
PyObject *mp_recording_site(const mp_recording *recording, uint32_t site);

#endif
