/* torch's C ABI: symbols of the loaded libtorch, the layout check, Python tensors from handles. */
#include "run/torch_abi.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

mp_torch_abi mp_torch;

static struct {
    void *libtorch_cpu, *libtorch_python;  /* handles of the already loaded libraries, kept for the process */
    PyObject *(*wrap)(const void *tensor); /* THPVariable_Wrap(const at::TensorBase &), or NULL */
    PyObject *steal;                       /* owned: torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr */
} torch_;

/* -- Symbols -------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t field; /* offset of the function pointer in mp_torch */
    bool required;
} symbols[] = {
#define REQUIRED(field, name) {name, offsetof(mp_torch_abi, field), true}
#define OPTIONAL(field, name) {name, offsetof(mp_torch_abi, field), false}
    REQUIRED(get_data_ptr, "aoti_torch_get_data_ptr"),
    REQUIRED(get_dim, "aoti_torch_get_dim"),
    REQUIRED(get_sizes, "aoti_torch_get_sizes"),
    REQUIRED(get_strides, "aoti_torch_get_strides"),
    REQUIRED(get_storage_offset, "aoti_torch_get_storage_offset"),
    REQUIRED(get_dtype, "aoti_torch_get_dtype"),
    REQUIRED(get_device_type, "aoti_torch_get_device_type"),
    REQUIRED(get_layout, "aoti_torch_get_layout"),
    REQUIRED(get_storage_size, "aoti_torch_get_storage_size"),
    REQUIRED(new_handle, "aoti_torch_new_tensor_handle"),
    REQUIRED(delete_handle, "aoti_torch_delete_tensor_object"),
    REQUIRED(empty_strided, "aoti_torch_empty_strided"),
    REQUIRED(reinterpret, "aoti_torch__reinterpret_tensor"),
    REQUIRED(alloc_from_pool, "aoti_torch__alloc_from_pool"),
    REQUIRED(clone_preserve_strides, "aoti_torch_clone_preserve_strides"),
    REQUIRED(copy, "aoti_torch_copy_"),
    REQUIRED(is_defined, "aoti_torch_is_defined"),
    REQUIRED(element_size, "aoti_torch_dtype_element_size"),
    REQUIRED(grad_enabled, "aoti_torch_grad_mode_is_enabled"),
    REQUIRED(set_grad_enabled, "aoti_torch_grad_mode_set_enabled"),
    OPTIONAL(error_text, "torch_exception_get_what_without_backtrace"),
    OPTIONAL(call_dispatcher, "aoti_torch_call_dispatcher"),
    OPTIONAL(list_new, "torch_new_list_reserve_size"),
    OPTIONAL(list_size, "torch_list_size"),
    OPTIONAL(list_get, "torch_list_get_item"),
    OPTIONAL(list_push, "torch_list_push_back"),
    OPTIONAL(list_delete, "torch_delete_list"),
    OPTIONAL(string_new, "torch_new_string_handle"),
    OPTIONAL(string_delete, "torch_delete_string"),
    OPTIONAL(optional_new, "torch_new_stable_ivalue"),
    OPTIONAL(optional_delete, "torch_delete_stable_ivalue"),
    OPTIONAL(parallel_for, "torch_parallel_for"),
    OPTIONAL(n_threads, "torch_get_num_threads"),
    OPTIONAL(autocast_enabled, "_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE"),
    OPTIONAL(set_autocast_enabled, "_ZN2at8autocast20set_autocast_enabledEN3c1010DeviceTypeEb"),
    OPTIONAL(version_counter, "_ZN5torch8autograd4impl15version_counterERKN2at6TensorE"),
    OPTIONAL(set_version_counter,
             "_ZN5torch8autograd4impl19set_version_counterERKN2at6TensorERKN3c1015VariableVersionE"),
#undef REQUIRED
#undef OPTIONAL
};

typedef struct {
    const char *name; /* file name without directory */
    void *handle;
} library_search;

/* dl_iterate_phdr callback: open the library that is already mapped under this file name. */
static int find_library(struct dl_phdr_info *info, size_t size, void *context)
{
    library_search *search = context;
    const char *slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    const char *file = slash ? slash + 1 : info->dlpi_name;
    if (!file || strncmp(file, search->name, strlen(search->name)) != 0) return 0;
    search->handle = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
    return search->handle != NULL;
}

void *mp_loaded_library(const char *name)
{
    library_search search = {name, NULL};
    dl_iterate_phdr(find_library, &search);
    return search.handle;
}

void *mp_torch_symbol(const char *name) { return torch_.libtorch_cpu ? dlsym(torch_.libtorch_cpu, name) : NULL; }

/* Returns 0, or -1 with ImportError set. */
static int load_symbols(void)
{
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *address = mp_torch_symbol(symbols[i].name);
        if (!address && symbols[i].required) {
            PyErr_Format(PyExc_ImportError, "this libtorch has no %s", symbols[i].name);
            return -1;
        }
        memcpy((char *)&mp_torch + symbols[i].field, &address, sizeof address);
    }
    return 0;
}

/* -- Layout of a Python tensor --------------------------------------------------------------------------------------- */

/* Is at::Tensor (one pointer to the implementation) the first field after the object header? Compared by address on a tensor
** whose handle is known, so that a wrong guess reads only memory of the object. Returns 1, 0, or -1 with an exception. */
static int verify_layout(void)
{
    if (mp_torch.tensor_type->tp_basicsize < (Py_ssize_t)(sizeof(PyObject) + sizeof(void *))) return 0;
    int64_t one = 1;
    mp_handle handle, second;
    if (mp_torch.empty_strided(1, &one, &one, 6, 0, -1, &handle)) return mp_torch_raise();
    if (mp_torch.new_handle(handle, &second)) {
        mp_torch.delete_handle(handle);
        return mp_torch_raise();
    }
    PyObject *tensor = mp_tensor_wrap(second);
    int same = tensor ? *(void **)mp_tensor_handle(tensor) == *(void **)handle : -1;
    Py_XDECREF(tensor);
    mp_torch.delete_handle(handle);
    return same;
}

int mp_torch_load(void)
{
    if (mp_torch.loaded) return 0;
    PyObject *torch = PyImport_ImportModule("torch"), *aoti = NULL, *parameter = NULL;
    if (!torch) return -1;
    int result = -1;
    torch_.libtorch_cpu = mp_loaded_library("libtorch_cpu.");
    torch_.libtorch_python = mp_loaded_library("libtorch_python.");
    if (!torch_.libtorch_cpu) {
        PyErr_SetString(PyExc_ImportError, "libtorch_cpu is not loaded in this process");
        goto done;
    }
    if (load_symbols() < 0) goto done;
    if (torch_.libtorch_python) {
        void *wrap = dlsym(torch_.libtorch_python, "_Z16THPVariable_WrapRKN2at10TensorBaseE");
        memcpy(&torch_.wrap, &wrap, sizeof wrap);
    }
    PyObject *c = PyObject_GetAttrString(torch, "_C");
    aoti = c ? PyObject_GetAttrString(c, "_aoti") : NULL;
    Py_XDECREF(c);
    if (!aoti) goto done;
    Py_XSETREF(torch_.steal, PyObject_GetAttrString(aoti, "alloc_tensor_by_stealing_from_void_ptr"));
    if (!torch_.steal) goto done;
    PyObject *tensor = PyObject_GetAttrString(torch, "Tensor"), *nn = PyObject_GetAttrString(torch, "nn");
    parameter = nn ? PyObject_GetAttrString(nn, "Parameter") : NULL;
    Py_XDECREF(nn);
    if (!tensor || !parameter || !PyType_Check(tensor) || !PyType_Check(parameter)) {
        Py_XDECREF(tensor);
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ImportError, "torch.Tensor is not a type");
        goto done;
    }
    mp_torch.tensor_type = (PyTypeObject *)tensor;
    mp_torch.parameter_type = (PyTypeObject *)Py_NewRef(parameter);
    int verified = verify_layout();
    if (verified < 0) {
        Py_CLEAR(mp_torch.tensor_type);
        Py_CLEAR(mp_torch.parameter_type);
        goto done;
    }
    mp_torch.layout_verified = verified;
    mp_torch.loaded = true;
    result = 0;
done:
    Py_XDECREF(parameter);
    Py_XDECREF(aoti);
    Py_DECREF(torch);
    return result;
}

/* -- Errors and wrapping ---------------------------------------------------------------------------------------------- */

int mp_torch_raise(void)
{
    const char *text = mp_torch.error_text ? mp_torch.error_text() : NULL;
    PyErr_SetString(PyExc_RuntimeError, text && *text ? text : "a libtorch call failed");
    return -1;
}

PyObject *mp_tensor_wrap(mp_handle handle)
{
    if (torch_.wrap) {
        PyObject *tensor = torch_.wrap(handle); /* takes its own reference to the tensor */
        mp_torch.delete_handle(handle);
        return tensor;
    }
    PyObject *capsule = PyCapsule_New(handle, NULL, NULL);
    if (!capsule) {
        mp_torch.delete_handle(handle);
        return NULL;
    }
    PyObject *tensor = PyObject_CallOneArg(torch_.steal, capsule);
    Py_DECREF(capsule);
    return tensor;
}

PyObject *mp_leave_inference_mode(void)
{
    PyObject *guard = mp_call_imported("torch._C", "_InferenceMode", "(O)", Py_False);
    PyObject *entered = guard ? PyObject_CallMethod(guard, "__enter__", NULL) : NULL;
    if (!entered) Py_CLEAR(guard);
    Py_XDECREF(entered);
    return guard;
}

int mp_restore_inference_mode(PyObject *guard)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *done = PyObject_CallMethod(guard, "__exit__", "OOO", Py_None, Py_None, Py_None);
    Py_DECREF(guard);
    Py_XDECREF(done);
    if (type) PyErr_Restore(type, value, trace); /* the first error is the one to tell */
    return done ? 0 : -1;
}
