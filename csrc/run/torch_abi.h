/* torch's C ABI, found by dlsym in the libtorch that the process has already loaded. No torch header is used.
**
** Loaded at the first compile; everything here is valid after mp_torch_load returned 0. at::Tensor is the first field of a
** Python tensor after the object header, so mp_tensor_handle needs no call; that layout is verified once, at load, against the
** official accessors (mp_torch.layout_verified false: slow accessors are used instead).
*/
#ifndef MP_RUN_TORCH_ABI_H
#define MP_RUN_TORCH_ABI_H
#include "magpy.h"

typedef void *mp_handle; /* AtenTensorHandle */

typedef struct {
    bool loaded, layout_verified;
    PyTypeObject *tensor_type;    /* torch.Tensor, owned */
    PyTypeObject *parameter_type; /* torch.nn.Parameter, owned */
    /* error code 0 is success everywhere */
    int (*get_data_ptr)(mp_handle, void **);
    int (*get_dim)(mp_handle, int64_t *);
    int (*get_sizes)(mp_handle, int64_t **);
    int (*get_strides)(mp_handle, int64_t **);
    int (*get_storage_offset)(mp_handle, int64_t *);
    int (*get_dtype)(mp_handle, int32_t *);
    int (*get_device_type)(mp_handle, int32_t *);
    int (*get_layout)(mp_handle, int32_t *);
    int (*get_storage_size)(mp_handle, int64_t *);
    int (*new_handle)(mp_handle, mp_handle *);
    int (*delete_handle)(mp_handle);
    int (*empty_strided)(int64_t ndim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type,
                         int32_t device_index, mp_handle *out);
    /* views and arena tensors: new handles (owned) that share the storage of the first argument; `offset` is
    ** counted from the first argument's own, `offset_bytes` from the start of the storage */
    int (*reinterpret)(mp_handle, int64_t ndim, const int64_t *sizes, const int64_t *strides, int64_t offset,
                       mp_handle *out);
    int (*alloc_from_pool)(mp_handle, int64_t offset_bytes, int32_t dtype, int64_t ndim, const int64_t *sizes,
                           const int64_t *strides, mp_handle *out);
    int (*clone_preserve_strides)(mp_handle, mp_handle *out);
    int (*copy)(mp_handle to, mp_handle from, int32_t non_blocking);
    int (*is_defined)(mp_handle, bool *);
    size_t (*element_size)(int32_t dtype);
    bool (*grad_enabled)(void);
    void (*set_grad_enabled)(bool);
    const char *(*error_text)(
        void); /* what the last failed call of this thread said, without C++ backtrace. Borrowed */
    /* calls through the dispatcher, and the stack values they take (each is consumed by the call) */
    int (*call_dispatcher)(const char *name, const char *overload, uint64_t *stack);
    int (*list_new)(size_t reserve, void **out);
    int (*list_size)(void *, size_t *);
    int (*list_get)(void *, size_t index, uint64_t *out);
    int (*list_push)(void *, uint64_t);
    int (*list_delete)(void *);
    int (*string_new)(const char *, size_t length, void **out);
    int (*string_delete)(void *);
    int (*optional_new)(uint64_t **out);
    int (*optional_delete)(uint64_t *);
    /* torch's own thread pool: at::parallel_for. May be NULL: run on the calling thread. */
    int (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *),
                        void *context);
    int (*n_threads)(uint32_t *);
    /* autocast by device type; NULL where libtorch does not export them under the known name */
    bool (*autocast_enabled)(int8_t device_type);
    void (*set_autocast_enabled)(int8_t device_type, bool);
    /* c10::VariableVersion, which is an intrusive pointer: a reference to the tensor's own, and a copy of another into it. NULL likewise. */
    const void *(*version_counter)(mp_handle);
    void (*set_version_counter)(mp_handle, const void *); /* throws for inference tensors */
} mp_torch_abi;

extern mp_torch_abi mp_torch; /* process-wide: libtorch is loaded once per process */

/* Find libtorch and fill mp_torch. Idempotent. Returns 0, or -1 with ImportError/RuntimeError set. torch must be imported. */
int mp_torch_load(void);

/* Handle of the first mapped library whose file name (without directory) starts with `name`, or NULL. Never closed: torch is never
** unloaded. Needs no mp_torch_load. */
void *mp_loaded_library(const char *name);

/* Is `object` a torch.Tensor or Parameter exactly (no subclass)? */
static inline bool mp_tensor_exact(PyObject *object)
{ return Py_TYPE(object) == mp_torch.tensor_type || Py_TYPE(object) == mp_torch.parameter_type; }

/* The tensor's handle, borrowed from `tensor` (any instance of torch.Tensor). */
static inline mp_handle mp_tensor_handle(PyObject *tensor) { return (char *)tensor + sizeof(PyObject); }

/* A function of libtorch's C ABI by name, or NULL. For tables of operators. */
void *mp_torch_symbol(const char *name);

/* Set a RuntimeError with the text of this thread's last failed call of the ABI. Returns -1. */
int mp_torch_raise(void);

/* Tensors that are made until mp_restore_inference_mode are no inference tensors, whatever the mode of the call. Owned, for that function
** alone, or NULL with an exception. */
PyObject *mp_leave_inference_mode(void);

/* Takes over `guard`. An exception that is set stays. Returns 0, or -1 with an exception. */
int mp_restore_inference_mode(PyObject *guard);

/* Give outputs that share memory the version counters that eager's have: `sets` is what magpy/lower.py keeps as `counters`. Returns 0, or -1
** with an exception (no memory). Does nothing where libtorch does not export what it takes. */
int mp_counters_arrange(PyObject *sets, PyObject *const *inputs, PyObject *const *outputs);

/* The tensor's version, as _version gives it. Returns 0, 1 where it has none (an inference tensor), or -1 with an exception. Runs no Python
** code for tensors of classes that do not override _version. */
int mp_counter_version(PyObject *tensor, uint32_t *version);

/* A Python tensor that takes over `handle` (stolen, also on failure). Owned, or NULL with an exception. */
PyObject *mp_tensor_wrap(mp_handle handle);

#endif
