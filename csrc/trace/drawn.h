/* Values that were drawn: objects of immutable built-in types that every run has anew, and steps that compute from them.
**
** A drawn value is a draw that is open (recording.h): text, bytes, a moment, a number, whatever its run gives. It lives in the list of numbers
** (numbers.h), is known by its address and is settled like them. What Python's instructions and C functions without effects make of drawn
** values and constants is such a draw itself, a *step*: every run makes it again, in order, before its graph. Where the program decides
** by what a step gave (a bool, the length of a list, which object it is), that must be given again. A number becomes an input of the graph
** where an operator takes it.
**
** Of what only the graph gives (texts of numbers, moments that are read between operators) steps are *late*: made after it, from a template
** (texts.h), whether they are used or not; decisions by them are checks.
*/
#ifndef MP_TRACE_DRAWN_H
#define MP_TRACE_DRAWN_H
#include "trace/effects.h"

/* Before an instruction: does it look at drawn values, and has that been seen to? */
bool mp_drawn_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg);
/* Before a call of a C function that is known as `effect`: likewise. */
bool mp_drawn_call(mp_call *call, const mp_effect *effect);

/* Is it a C function that compares what is drawn with None, which it is not, whatever it is? */
bool mp_drawn_blind(mp_call *call);

/* A draw (func, args, kwargs, keeper), borrowed, has given *slot, which may be replaced by an equal object: the value is drawn, or its
** items are, or it must be given again. False: it is of a type that cannot be. */
bool mp_drawn_given(mp_recorder *rec, PyObject *data, PyObject **slot);

/* Lists of ints in the arguments of a torch function that takes arrays, with drawn ones among them, become arrays that are data. *args: owned
** tuple, which may be replaced. */
void mp_drawn_lists(mp_recorder *rec, PyObject **args);
/* What stands for the object in the arguments of a step; *drawn: there is something drawn in it. Owned, or NULL, maybe with an exception: it
** cannot. */
PyObject *mp_drawn_operand(mp_recorder *rec, PyObject *object, bool *drawn);
/* A draw (func, args, kwargs, keeper), borrowed, has changed the order of the items of this list to that of the list that it gives. */
void mp_drawn_order(mp_recorder *rec, PyObject *data, PyObject *list);

/* A draw, `data` as above, has given a numpy array that nobody else has: it is data from now on (draws.c). */
void mp_draw_array(mp_recorder *rec, PyObject *data, PyObject *array);
/* Append a draw (draws.c): its number, or MP_NO_DRAW after abandoning. `data` as above, `result` borrowed. */
uint32_t mp_draw_append(mp_recorder *rec, PyObject *data, PyObject *result, bool open);

#endif
