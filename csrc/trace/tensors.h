/* Tensors inside the recorder: what torch calls things, which tensors are known, what they looked like. Files: torch_names.c, values.c, ops.c, ops_settle.c, ops_checks.c.
**
** A tensor is known while it is bound to a value (mp_rec_bind_value, watched weakly). Its facts are what the recorder last saw of it:
** a version that moved without an operator that the recorder saw is a write through an alias, and ends the trace.
*/
#ifndef MP_TRACE_TENSORS_H
#define MP_TRACE_TENSORS_H
#include "trace/recorder_internal.h"

/* -- torch's own objects (torch_names.c) ------------------------------------------------------------------------------------ */

/* Getset and method descriptors of torch._C.TensorBase that the recorder itself uses, so that neither a subclass nor an instance
** attribute can answer in their place. */
#define MP_TENSOR_NAMES(X)                                                                                             \
    X(shape)                                                                                                           \
    X(stride)                                                                                                          \
    X(storage_offset)                                                                                                  \
    X(dtype)                                                                                                           \
    X(layout)                                                                                                          \
    X(device)                                                                                                          \
    X(requires_grad)                                                                                                   \
    X(is_leaf)                                                                                                         \
    X(is_conj)                                                                                                         \
    X(is_neg)                                                                                                          \
    X(is_inference)                                                                                                    \
    X(is_nested)                                                                                                       \
    X(_is_view)                                                                                                        \
    X(_version)                                                                                                        \
    X(data_ptr)                                                                                                        \
    X(untyped_storage)

typedef struct { /* process-wide like libtorch itself: filled once, references owned for ever */
    bool ready;
    PyTypeObject *tensor_base, *tensor, *parameter;
    PyTypeObject *disable; /* torch._C.DisableTorchFunction */
    PyObject *strided;
    PyObject *dtypes; /* dict: dtype -> int, c10::ScalarType */
#define MP_TENSOR_NAME(name) PyObject *name;
    MP_TENSOR_NAMES(MP_TENSOR_NAME)
#undef MP_TENSOR_NAME
} mp_torch_names;

extern mp_torch_names mp_names;

/* Fill mp_names if torch is imported. False if it is not, or not as expected; no exception is left. */
bool mp_torch_names_ready(void);

/* Is this c10::ScalarType one that recordings may hold? */
bool mp_dtype_known(int code);

/* Between these, no torch-function mode sees what is asked of a tensor. They nest and keep a pending exception. quiet_begin returns
** a token (owned, may be NULL) for quiet_end. */
PyObject *mp_quiet_begin(void);
void mp_quiet_end(PyObject *token);

/* A descriptor's answer for `tensor`: a getset's value or a method's result without arguments. Owned, or NULL with an exception. */
PyObject *mp_tensor_ask(PyObject *descriptor, PyObject *tensor);
/* Where its storage is, comparable while the tensor lives and keeps it; NULL if it has none. Called quietly. */
void *mp_tensor_storage(PyObject *tensor);

/* -- What is known of a tensor (values.c) -------------------------------------------------------------------------------- */

typedef struct {      /* [value] */
    uint32_t version; /* expected _version; inference tensors have none: 0 */
    bool versioned;
    bool constant; /* computed from constants of the trace alone, so that its data may be looked at */
    bool overlaps; /* several of its elements lie at one place (expanded tensors) */
    bool cached;   /* a library's cache holds it as well: nothing may change it */
    void
        *storage; /* known from the first value that overlaps on; compared only with that of what it is computed from */
    void *data;   /* data pointer of an input when first touched */
    uint32_t read; /* inputs: index of the TENSOR_META read, or MP_NO_READ */
} mp_facts;

typedef struct mp_op_state {
    mp_facts *facts;
    uint32_t n_facts;
    uint32_t seen;        /* torch functions shown by the mode so far */
    uint32_t n_varying;   /* operators whose results or effects depend on more than constants */
    int muted;            /* depth of calls that are one node whatever they do inside: autograd.Function.apply */
    PyObject *given;      /* borrowed: arguments of the innermost such call, or NULL */
    bool accept_checks;   /* data that is looked at becomes a check */
    bool overlaps;        /* a value overlaps */
    bool accept_values;   /* also floats, complex numbers and lists */
    int inference;        /* inference modes entered minus left */
    PyObject *locks;      /* owned list of the locks that the call holds now, or NULL */
    uint32_t n_hooks;     /* hooks of the call's own tensors that it has registered, retain_grad() among them */
    bool hooks;           /* functions were registered as hooks */
    PyObject *nodes;      /* owned list of (node of an autograd.Function, a tensor whose grad_fn it is), or NULL */
    PyObject *retained;   /* owned list of the call's own tensors that retain their gradients, or NULL */
    PyObject *generators; /* owned list of the random generators that the call made, or NULL */
} mp_op_state;

/* The program has looked at a tensor's node in the graph of autograd: `node` may get hooks (hooks.c). */
void mp_hooks_note_node(mp_recorder *rec, PyObject *node, PyObject *tensor);

/* NULL after abandoning for lack of memory. */
mp_op_state *mp_rec_op_state(mp_recorder *rec);
mp_facts *mp_rec_facts(mp_recorder *rec, mp_value_id value); /* NULL if there are none */

bool mp_is_exact_tensor(PyObject *object); /* torch.Tensor or Parameter itself */
bool mp_is_opaque(PyObject *tensor);       /* sparse or quantised: see opaque.h */
/* Is it the code of torch.ops' operators' __call__, which calls the C function of one? */
bool mp_is_operator_code(PyCodeObject *code);

/* Call visit(rec, tensor, context) for every tensor in tuples, lists, dicts (values) and slices; visit returns false to stop.
** False if stopped. */
typedef bool (*mp_tensor_visit)(mp_recorder *rec, PyObject *tensor, void *context);
bool mp_each_tensor(mp_recorder *rec, PyObject *object, mp_tensor_visit visit, void *context);

/* Every tensor inside is known and as last seen, or the recording is abandoned. *constant (may be NULL) is cleared if one is no
** constant; *count grows by the number of tensors. */
bool mp_rec_check_tensors(mp_recorder *rec, PyObject *object, bool *constant, int *count);

/* After an operator: take the new versions of `args`' tensors and of their aliases. 1 something was changed in place, 0 not,
** -1 abandoned. */
int mp_rec_note_changes(mp_recorder *rec, PyObject *args, PyObject *kwargs, bool constant);

/* The tensor has been changed in place, and its version counter tells: noted where it is an input. */
void mp_rec_counted(mp_recorder *rec, PyObject *tensor);

/* Where in their memory the tensors among the arguments lie has been seen: the inputs that they share it with are guarded for that. */
void mp_rec_placed(mp_recorder *rec, PyObject *args, PyObject *kwargs);

/* Does an operator draw from a generator that the call made? Then what it draws is a constant: mp_rec_draw records it, given how many tensors
** it takes. */
bool mp_draws_from_own(mp_recorder *rec, PyObject *kwargs);
void mp_rec_draw(mp_recorder *rec, PyObject *func, PyObject *args, int tensors, PyObject *out);
/* Record func(*args) as an operator that gives `out`, a constant of the trace; `constant`, one of args, is a tensor of nobody's. */
void mp_rec_constant_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *constant, PyObject *out);

/* tensor.grad = value: a write where the tensor is from outside. */
void mp_rec_store_grad(mp_recorder *rec, PyObject *tensor, PyObject *value);
/* tensor.data = value has been done; args is the template of both. */
void mp_rec_set_data(mp_recorder *rec, PyObject *args, PyObject *tensor, PyObject *value);
/* At the end: outside tensors that were given data lie as that does, for the commit does no more than store it; else abandons. Called quietly. */
void mp_rec_check_data_stored(mp_recorder *rec);
/* A new value of operator `op` that `tensor`, which had none, is from now on; or MP_NO_VALUE after abandoning. Called quietly. */
mp_value_id mp_rec_bind_new(mp_recorder *rec, PyObject *tensor, uint32_t op);
/* Has the tensor, whose value is known, the version that was last seen? Called quietly. */
bool mp_rec_unchanged(mp_recorder *rec, PyObject *tensor);

/* The tensor's memory was changed behind its version counter. */
void mp_rec_memory_changed(mp_recorder *rec, PyObject *tensor);
/* Is it a view of a tensor that is known? Called quietly. */
bool mp_rec_shares_memory(mp_recorder *rec, PyObject *tensor);

/* Record func with templates of its arguments and of its results (both stolen), whose values are new. */
void mp_rec_values_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *out);
/* Record func with a template of its arguments (stolen) as an operator that gives `out`. */
void mp_rec_template_op(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *out);

/* A value without a tensor of the program's, or MP_NO_VALUE after abandoning. */
mp_value_id mp_rec_new_value(mp_recorder *rec, uint32_t op);
/* External object `object`, an int, float or numpy array, becomes a graph input: every run makes a tensor of it. MP_NO_VALUE after abandoning. */
mp_value_id mp_rec_object_input(mp_recorder *rec, mp_obj_id object);
/* Bind the unknown tensors in `out` to new values made by operator `op`. */
void mp_rec_bind_results(mp_recorder *rec, PyObject *out, uint32_t op, bool constant);
/* Does `out` hold a tensor that is neither known nor external? */
bool mp_rec_has_unknown(mp_recorder *rec, PyObject *out);
/* Does it hold any tensor? */
bool mp_has_tensor(PyObject *object);

/* An operator that the program did not call, with one tensor as its result. Steals func and args (a template), which may be NULL. Its owned
** _C.Value, or NULL after abandoning. */
PyObject *mp_rec_silent_op(mp_recorder *rec, PyObject *func, PyObject *args);
/* The value of a copy of `tensor` as it is now, which no later operator changes and no gradient flows through: likewise. */
PyObject *mp_rec_snapshot(mp_recorder *rec, PyObject *tensor);
/* The recording holds where func(*args), a template whose values no operator changes, gives `seen` again. All borrowed. */
void mp_rec_check(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *seen);

/* -- Module parts ------------------------------------------------------------------------------------------------------- */

int mp_ops_module_init(PyObject *module);
int mp_values_module_init(PyObject *module); /* indices.c: _C.Value, _C.Number, _C.Drawn */
PyObject *mp_value_new(mp_value_id value);   /* owned _C.Value, or NULL with an exception */
PyObject *mp_number_new(mp_value_id value);  /* likewise _C.Number */
bool mp_value_check(PyObject *object);
uint32_t mp_index_of(PyObject *value); /* of a _C.Value */

#endif
