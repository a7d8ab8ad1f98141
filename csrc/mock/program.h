/* The mock program's inside, shared by the files of mock and by nobody else.
**
** An operand names a value: a constant of the program, a current external object, a graph output, or something made by an earlier
** step. A step makes one new object, or fills one that was made; a store is one entry of the write set. Steps that fill come after
** everything they mention was made, which is what closes cycles.
*/
#ifndef MP_MOCK_PROGRAM_H
#define MP_MOCK_PROGRAM_H
#include "mock/mock.h"

typedef uint32_t mp_operand; /* kind in the upper two bits, index below */
#define MP_NO_OPERAND UINT32_MAX
#define MP_OPERAND(kind, index) ((mp_operand)(kind) << 30 | (mp_operand)(index))
#define MP_OPERAND_KIND(operand) ((operand) >> 30)
#define MP_OPERAND_INDEX(operand) ((operand) & 0x3FFFFFFFu)
enum { MP_OPERAND_CONST, MP_OPERAND_OBJECT, MP_OPERAND_OUTPUT, MP_OPERAND_MADE };

typedef struct mp_step mp_step;

/* Columns: name, what the arguments are. `data` and `base` are explained with the operation in run.c. */
#define MP_MOCK_OPS(X)                                                                                                 \
    X(NUMBER)        /* graph output: the int or float that is its only element, or what is made of that */            \
    X(DRAWN)         /* none: what draw number `tag` gave */                                                           \
    X(TEXT)          /* operands of a text's template */                                                               \
    X(TENSOR)        /* graph output, as a target for its attributes */                                                \
    X(ARRAY)         /* graph output: a numpy array over its memory, or with memory of its own */                      \
    X(TUPLE)         /* items */                                                                                       \
    X(TUPLE_LIKE)    /* items; an instance of a tuple subclass */                                                      \
    X(LIST)          /* items */                                                                                       \
    X(LIST_NEW)      /* none: empty places for n items */                                                              \
    X(LIST_FILL)     /* target, items */                                                                               \
    X(LIST_EXTEND)   /* target, items: a list subclass, made empty */                                                  \
    X(DICT)          /* keys and values in turn */                                                                     \
    X(DICT_NEW)      /* none */                                                                                        \
    X(DICT_FILL)     /* target, keys and values in turn; dict and its subclasses */                                    \
    X(SET_NEW)       /* none */                                                                                        \
    X(SET_FILL)      /* target, items */                                                                               \
    X(FROZENSET)     /* items */                                                                                       \
    X(DEQUE_NEW)     /* maxlen or None */                                                                              \
    X(DEQUE_FILL)    /* target, items */                                                                               \
    X(SLICE)         /* start, stop, step */                                                                           \
    X(BYTEARRAY)     /* bytes */                                                                                       \
    X(CELL)          /* none: an empty cell */                                                                         \
    X(CELL_FILL)     /* target, value */                                                                               \
    X(METHOD)        /* function, self */                                                                              \
    X(CFUNCTION)     /* self, module or None */                                                                        \
    X(PARTIAL)       /* function, args, kwargs */                                                                      \
    X(FUNCTION)      /* globals, closure, defaults, kwdefaults, annotations, doc, module, name */                      \
    X(OVER_SEQUENCE) /* sequence, or none: one that has ended */                                                       \
    X(ITERATOR)      /* args: of the type in `data` */                                                                 \
    X(ITERATOR_FILL) /* target, state */                                                                               \
    X(VIEW)          /* dict: its keys, values or items */                                                             \
    X(NEW)           /* none: an instance, no __init__ */                                                              \
    X(NEW_OF)        /* the argument tuple of the C base's __new__ */                                                  \
    X(ATTRS)         /* target, values */                                                                              \
    X(VARS)          /* target, dict */                                                                                \
    X(SLOT)          /* target, value */

typedef enum {
#define MP_MOCK_OP(name) MP_MOCK_##name,
    MP_MOCK_OPS(MP_MOCK_OP)
#undef MP_MOCK_OP
        MP_MOCK_OP_COUNT
} mp_mock_op;

struct mp_step {
    uint8_t op;
    uint32_t out;   /* index among the made: what this step makes, or fills */
    uint32_t n;     /* arguments; LIST_NEW: places */
    uint32_t first; /* index of the first argument in the program's `args` */
    uint32_t tag;   /* ATTRS: the type's version when compiled; DRAWN: the draw; ITERATOR: has it ended */
    PyObject *data; /* owned or NULL */
    void *base;     /* C type or method definition; static storage of its extension module */
};

typedef struct {
    uint8_t kind;                 /* mp_write_kind */
    mp_operand owner, key, value; /* MP_NO_OPERAND: none */
} mp_mock_store;

struct mp_mock_program {
    uint32_t refs; /* the owner's, and one for each run */
    mp_step *steps;
    uint32_t n_steps;
    mp_operand *args;
    uint32_t n_args;
    PyObject **consts;
    uint32_t n_consts; /* owned */
    mp_obj_id *objects;
    uint32_t n_objects;
    PyObject **paths;
    uint32_t n_paths; /* owned str of each object, for people */
    mp_value_id *values;
    uint32_t n_values;
    PyObject *looks; /* owned list [n_values], or NULL without values: mp_mock_looks */
    mp_mock_store *stores;
    uint32_t n_stores;
    uint32_t n_made;
    mp_operand result;
    mp_mock_run *spare; /* a run not in use, or NULL */
};

/* Where compile looks things up: a recording, or a test's own tables. */
typedef struct {
    void *context;
    mp_obj_id (*find_object)(void *context, PyObject *object);
    mp_value_id (*find_value)(void *context, PyObject *tensor);
    /* the graph value of an int or float that is data, and what makes the object of it (borrowed, or NULL) */
    mp_value_id (*find_number)(void *context, PyObject *object, PyObject **make);
    /* (how, operands...) of a text of such numbers (borrowed), or NULL */
    PyObject *(*find_text)(void *context, PyObject *object);
    uint32_t (*find_drawn)(void *context, PyObject *object); /* the draw that gave it, or MP_NO_DRAW */
    PyObject *(*must_make)(void *context, uint32_t i);       /* as mp_recording_must_make */
    mp_value_id (*find_array)(void *context, PyObject *array, bool *owns, mp_reason *why); /* NULL: there are none */
    bool (*is_internal)(void *context, PyObject *object); /* a function or class made by the call */
    PyObject *(*path)(void *context, mp_obj_id object);   /* owned str, or NULL with an exception */
    PyObject *result;                                     /* borrowed */
    const mp_write *writes;
    uint32_t n_writes;
} mp_mock_source;

typedef struct {
    PyObject *owner, *key, *value; /* owned; key and value may be NULL */
    PyObject *old;                 /* owned: what the store replaced */
} mp_pending_store;

struct mp_mock_run {
    mp_mock_program *prog;                                    /* counted in its refs */
    PyObject *const *objects, *const *outputs, *const *drawn; /* the caller's, while building */
    PyObject *result;                                         /* owned */
    PyObject **made;                                          /* [n_made] owned until the commit */
    mp_pending_store stores[];
};

mp_mock_program *mp_mock_compile_source(const mp_mock_source *source, mp_reason *why);
void mp_mock_free_run(mp_mock_run *run);

#endif
