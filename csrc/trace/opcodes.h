/* Handlers of instructions, shared by opcodes.c, which has the table, and imports.c. */
#ifndef MP_TRACE_OPCODES_H
#define MP_TRACE_OPCODES_H
#include "observe/observe.h"
#include "trace/recorder.h"

typedef void (*mp_opcode)(mp_recorder *rec, const mp_frame *frame, int oparg);

/* The i-th value from the top, 1 is the top itself. */
#define TOP(i) (frame->stack[frame->depth - (i)])

static inline PyObject *name_of(const mp_frame *frame, int index)
{ return PyTuple_GET_ITEM(frame->code->co_names, index); }

/* Raw look into a dict by a str key: no user code, no exception. Borrowed or NULL. */
PyObject *mp_dict_item(mp_recorder *rec, PyObject *dict, PyObject *key);
/* Reads of a dict's key, and of a global or else a builtin. */
void mp_read_key(mp_recorder *rec, PyObject *dict, PyObject *key);
void mp_read_global(mp_recorder *rec, const mp_frame *frame, PyObject *name);

void mp_import_name(mp_recorder *rec, const mp_frame *frame, int oparg);
void mp_import_from(mp_recorder *rec, const mp_frame *frame, int oparg);

#endif
