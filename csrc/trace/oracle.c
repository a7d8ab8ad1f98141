/* Oracle, for tests only: objects that existed before the call and are used although no read led to them are holes in the read set.
**
** It is slow (it looks at every object of the process when a recording starts) and says nothing about objects the garbage collector does
** not track. A hole is not proof of a wrong guard, but each one wants a reason.
*/
#include "trace/recorder_internal.h"

#include <frameobject.h>
#include <opcode.h>

struct mp_oracle {
    PyObject *objects; /* owned list: everything that existed */
    mp_map index;
    PyObject *holes; /* owned set of str */
};

int mp_oracle_start(mp_recorder *rec)
{
    struct mp_oracle *oracle = PyMem_RawCalloc(1, sizeof *oracle);
    if (!oracle) goto fail;
    oracle->objects = mp_call_imported("gc", "get_objects", "()");
    oracle->holes = PySet_New(NULL);
    if (!oracle->objects || !oracle->holes) goto fail;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(oracle->objects); i++)
        if (mp_map_put(&oracle->index, PyList_GET_ITEM(oracle->objects, i), 0) < 0) goto fail;
    rec->oracle = oracle;
    return 0;
fail:
    rec->oracle = oracle;
    mp_oracle_free(rec);
    if (!PyErr_Occurred()) PyErr_NoMemory();
    return -1;
}

void mp_oracle_free(mp_recorder *rec)
{
    struct mp_oracle *oracle = rec->oracle;
    rec->oracle = NULL;
    if (!oracle) return;
    mp_map_free(&oracle->index);
    Py_XDECREF(oracle->objects);
    Py_XDECREF(oracle->holes);
    PyMem_RawFree(oracle);
}

PyObject *mp_oracle_holes(const mp_recorder *rec) { return rec->oracle ? PySequence_List(rec->oracle->holes) : NULL; }

/* Operands whose inside the opcode looks at: their places from the top, as bits. */
static const uint8_t looks_at[256] = {
    [LOAD_ATTR] = 1,
    [LOAD_METHOD] = 1,
    [STORE_ATTR] = 1,
    [BINARY_SUBSCR] = 2,
    [STORE_SUBSCR] = 2,
    [DELETE_SUBSCR] = 2,
    [GET_ITER] = 1,
    [FOR_ITER] = 1,
    [CONTAINS_OP] = 1,
    [COMPARE_OP] = 3,
    [BINARY_OP] = 3,
    [LIST_EXTEND] = 1,
    [DICT_MERGE] = 1,
    [DICT_UPDATE] = 1,
    [CALL_FUNCTION_EX] = 1,
    [UNPACK_SEQUENCE] = 1,
    [FORMAT_VALUE] = 1,
    [BEFORE_WITH] = 1,
    [UNARY_NOT] = 1,
    [POP_JUMP_FORWARD_IF_TRUE] = 1,
    [POP_JUMP_FORWARD_IF_FALSE] = 1,
};

static bool has_inside(PyObject *object)
{
    return PyObject_IS_GC(object) && !mp_is_identity_type(object) && !mp_is_scalar(object) &&
           !PyTuple_CheckExact(object) && !PyFrozenSet_CheckExact(object) && !PyFrame_Check(object);
}

void mp_oracle_look(mp_recorder *rec, const mp_frame *frame, int opcode)
{
    struct mp_oracle *oracle = rec->oracle;
    for (int i = 1; i <= 2 && i <= frame->depth; i++) {
        PyObject *object = frame->stack[frame->depth - i];
        if (!(looks_at[opcode] & i) || !object || !has_inside(object)) continue;
        if (mp_map_get(&oracle->index, object) == MP_MAP_NONE || mp_rec_find(rec, object) != MP_NO_OBJ) continue;
        if (mp_rec_is_internal(rec, object) || mp_rec_find_value(rec, object) != MP_NO_VALUE) continue;
        int line = PyCode_Addr2Line(frame->code, frame->offset * (int)sizeof(_Py_CODEUNIT));
        PyObject *hole = PyUnicode_FromFormat("%s: %s at %U:%d", Py_TYPE(object)->tp_name, "no path",
                                              frame->code->co_filename, line);
        if (hole) PySet_Add(oracle->holes, hole);
        Py_XDECREF(hole);
        PyErr_Clear();
    }
}
