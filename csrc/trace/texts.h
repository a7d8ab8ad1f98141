/* Text of numbers that are data: an open string is a *template*, (how, operands...), over open numbers, open texts and constants.
**
** It lives in the list of numbers (numbers.h), is known by its address like they are, and is settled wherever one would be: then the
** numbers in it are. Where it only goes into effects, results and stored state, every run makes it again from its own numbers. What is
** kept open is formatting that gives a text that is not empty for all values of the operands' types, and that can never raise for some
** of them and not for others.
*/
#ifndef MP_TRACE_TEXTS_H
#define MP_TRACE_TEXTS_H
#include "trace/effects.h"

/* Before an instruction or a call that looks at strings: it makes an open text, or settles those that it looks into. True: there is nothing
** more to settle. */
bool mp_text_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg);
bool mp_text_binary(mp_recorder *rec, const mp_frame *frame, int op, PyObject *const *operands);
/* looks: what mp_number_tables.carriers has for the callable, or NULL. */
bool mp_text_call(mp_call *call, PyObject *looks);

/* *text (owned by who calls, may become another object) is format(number, spec) of an open number, and stays open if it can; else the
** number is settled. */
void mp_text_format(mp_recorder *rec, PyObject *number, PyObject *spec, PyObject **text);

/* The function of Python that does what templates of this kind do with their operands, or NULL: it is the first of them. Borrowed. */
PyObject *mp_text_function(PyObject *how);

/* The template of an open text. Borrowed, or NULL. */
PyObject *mp_text_template(mp_recorder *rec, PyObject *object);
/* `object` (borrowed, one that nothing else has) is an open text from now on. copied: eager has the process's one text of that
** character. */
void mp_text_open(mp_recorder *rec, PyObject *object, PyObject *template, bool copied);

/* How of the templates that are no text: the first operand is called with the others. */
enum { MP_TEXT_CALL = 5 };

/* The text: operands are the template's with the numbers of a run, all of exact built-in types, so that no user code runs. Owned, or NULL
** with an exception. */
PyObject *mp_text_make(int how, PyObject *const *operands, Py_ssize_t n);

#endif
