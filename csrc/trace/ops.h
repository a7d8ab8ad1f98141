/* The parts of ops.c: a torch function from its begin to its end, in what form it is recorded (ops_settle.c), and what the program saw of
** data (ops_checks.c).
*/
#ifndef MP_TRACE_OPS_H
#define MP_TRACE_OPS_H
#include "trace/effects.h"
#include "trace/tensors.h"

typedef struct {                               /* a torch function between op_begin and op_end */
    PyObject *func;                            /* owned */
    PyObject *real_args, *kwargs;              /* owned; kwargs may be NULL */
    PyObject *args_template, *kwargs_template; /* owned, NULL where no operator is recorded */
    mp_effect_class effect;
    bool constant;        /* all tensors given are constants of the trace */
    bool check;           /* DATA that becomes a check */
    bool sized;           /* its results' sizes are data, and the recording holds where they are the same */
    bool numbers;         /* there are numbers that are data among the arguments */
    bool sets_data;       /* tensor.data = other */
    bool marks, required; /* tensor.requires_grad_(flag), and what the flag was */
    bool draws;           /* from a generator that the call made */
    bool raised;          /* and that follows from what is guarded */
    int tensors;          /* how many there are */
} mp_running_op;

/* -- ops.c ------------------------------------------------------------------------------------------------------------ */

void mp_op_abandon(mp_recorder *rec, mp_reason_code code, PyObject *func, const char *what);
/* Record an operator. Steals args and kwargs (which may be NULL). */
void mp_op_append(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs, PyObject *out, bool state,
                  bool constant);

/* Is the name one of an in-place function, where version counters do not tell (inference tensors)? */
bool mp_op_named_in_place(PyObject *func, PyObject *kwargs);

/* -- ops_settle.c ----------------------------------------------------------------------------------------------------- */

/* The name of a function or method of torch's, or NULL. */
const char *mp_op_name(PyObject *func);
/* Of a getset whose __get__ or __set__ this is; borrowed, or NULL. */
const char *mp_op_member(PyObject *func);
/* A method of TensorBase. Owned, or NULL with an exception. */
PyObject *mp_op_method(const char *name);
/* The function and its arguments as they are recorded: without looking at data, then with. */
void mp_op_settle_function(mp_recorder *rec, mp_running_op *op);
void mp_op_settle_arguments(mp_recorder *rec, mp_running_op *op);
/* Do the sizes of its results, or what it does, follow from data? */
bool mp_op_size_is_data(mp_recorder *rec, const mp_running_op *op);
/* The batch sizes that a recurrent layer over a packed sequence steps by, borrowed, or NULL. */
PyObject *mp_op_batch_sizes(const mp_running_op *op);

/* -- ops_checks.c ----------------------------------------------------------------------------------------------------- */

/* The program saw `out`: the recording holds where it is so again. */
void mp_op_add_check(mp_recorder *rec, mp_running_op *op, PyObject *out);
/* The program has read one number, whose value may stay open. False: it is looked at. */
bool mp_op_read_number(mp_recorder *rec, mp_running_op *op, PyObject **out);
/* Likewise the text of a tensor's only element. */
bool mp_op_read_text(mp_recorder *rec, mp_running_op *op, PyObject **out);

#endif
