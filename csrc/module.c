/* Module definition of magpy._C; everything in it comes from the rooms. What they ask Python's modules for. */
#include "magpy.h"

PyObject *mp_import(const char *module, const char *name)
{
    PyObject *imported = PyImport_ImportModule(module);
    PyObject *found = imported ? PyObject_GetAttrString(imported, name) : NULL;
    Py_XDECREF(imported);
    return found;
}

PyObject *mp_call_imported(const char *module, const char *name, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    PyObject *args = Py_VaBuildValue(format, values);
    va_end(values);
    PyObject *function = args ? mp_import(module, name) : NULL;
    PyObject *result = function ? PyObject_Call(function, args, NULL) : NULL;
    Py_XDECREF(function);
    Py_XDECREF(args);
    return result;
}

static int module_exec(PyObject *module)
{
    static int (*const rooms[])(PyObject *) = {
        mp_observe_module_init, mp_trace_module_init,    mp_guard_module_init, mp_mock_module_init,
        mp_run_module_init,     mp_dispatch_module_init, mp_ir_module_init,
    };
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
        if (rooms[i](module) < 0) return -1;
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)module_exec}, {0, NULL}};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "magpy._C",
    .m_doc = "magpy's C core.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module_def); }
