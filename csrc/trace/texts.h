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
/* Before template % items: text of tensors that it asks for their numbers stays open. */
void mp_text_percent(mp_recorder *rec, const mp_frame *frame, PyObject *const *operands);
/* Before a call that makes text of its arguments, as str.format, format and str do: it stays open. False: it does not. */
bool mp_text_shown(mp_call *call);
/* Does the instruction that runs in this frame make such text of tensors? Then it is told what is read from them. */
bool mp_text_reads(const mp_rec_frame *entry);
void mp_text_read(mp_recorder *rec, mp_rec_frame *entry, PyObject *tensor, PyObject *number);
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

/* -- Shared by texts.c and texts_forms.c ---------------------------------------------------------------------------- */

bool mp_text_is_plain(PyObject *object); /* of a type whose text is its own */
/* A format of one value: "c" is for some ints alone, and "n" asks for the locale. */
bool mp_text_is_steady(const char *spec, size_t n);
/* The template of str.format where all fields are told by their positions, those of keywords after the n_args others. no_conversion: for each
** operand, must it be shown without one ("!r")? Owned, or NULL without an exception: it has fields that do not stay open. */
PyObject *mp_text_numbered(PyObject *template, Py_ssize_t n_args, PyObject *kwnames, const bool *no_conversion);
/* operands[0] % operands[1] is template % dict, which has a name for each conversion: a template without names, and a tuple. True: both are owned;
** false, without an exception: it is no such template. */
bool mp_text_named(PyObject *template, PyObject *dict, PyObject **operands);
/* (template, operands...) of str.format that give str(container) of a dict, list or tuple with something open in it. Owned, or NULL without an
** exception: it is none, or holds what has text of its own. */
PyObject *mp_text_of_container(mp_recorder *rec, PyObject *container);

#endif
