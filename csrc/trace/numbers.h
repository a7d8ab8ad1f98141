/* Numbers that are data: ints and floats that the program reads from tensors and then only computes with.
**
** Such a number is the very object that the recorder has shown the program and owns from then on, so that its address means it. Its
** expression is Python source over values of the graph ("(1.0 / v3)"): arithmetic on it makes a new one, an operator that takes it
** gets a value that the expression computes, and where the program learns something of it (a comparison, text, a key, C code that the
** recorder knows nothing of) that becomes a check. Once its value itself is checked it is a constant like any other: it is *settled*.
**
** Nothing may look at a number unnoticed. What only moves it (names, containers, attributes, calls of Python functions) is let pass; all
** other instructions and C functions settle whatever they can reach.
*/
#ifndef MP_TRACE_NUMBERS_H
#define MP_TRACE_NUMBERS_H
#include "trace/recorder_internal.h"

/* Moments (datetime.now()) and floats of numpy are open likewise: objects that a Python function makes of a number of the graph. So is what was
** drawn before the graph (drawn.h), and what is computed of all of these by functions that the graph knows nothing of (mp_number_late). Whatever
** looks at one of them otherwise ends the trace, for it is another one each time; only floats of numpy are settled as numbers are. All that is said
** of numbers here holds for them but where it says "number". */

/* Are there numbers that the program still has? */
bool mp_numbers_any(mp_recorder *rec);
bool mp_number_is(mp_recorder *rec, PyObject *object);
/* The program has read `*number` (owned; may be replaced by an equal object) from the tensor whose snapshot is `value`, by `how` (NULL: as it
** is, else the name of a Python function that was applied to it). False: it is no number of a kind that can stay open. */
bool mp_number_read(mp_recorder *rec, PyObject **number, mp_value_id value, const char *how);
/* *object (owned by its slot alone) is make(number) of the number that `value` is. */
void mp_number_object(mp_recorder *rec, PyObject *object, mp_value_id value, PyObject *make);
/* Is it such an object? */
bool mp_number_is_object(mp_recorder *rec, PyObject *object);
/* *object (owned, replaced by an equal object where that is shared) is what the template (how, operands...) of texts.h gives in each run, after
** its graph. */
void mp_number_late(mp_recorder *rec, PyObject **object, PyObject *template);
/* Is it such an object, or a text or moment: known by its template or maker, and no value of the graph? */
bool mp_number_is_late(mp_recorder *rec, PyObject *object);
/* What makes the object of its value of the graph, a moment. Borrowed, or NULL. */
PyObject *mp_number_maker(mp_recorder *rec, PyObject *object, mp_value_id *value);
/* Is it an open float of numpy, which its type makes of the number? Settled, it is a check of that. */
bool mp_number_is_numpy(mp_recorder *rec, PyObject *object);
/* Number `i` of all objects that a run must make, whether it keeps them or not, for making them may raise. Borrowed; NULL: there are no more; None: it is none. */
PyObject *mp_number_must(mp_recorder *rec, uint32_t i);
/* *object (owned, replaced by an equal object where that is shared) is what the draw of this number gave, whatever it gives (drawn.h). */
void mp_number_draw(mp_recorder *rec, PyObject **object, uint32_t draw);
/* The draw of such an object, also of a number that is an input of the graph; MP_NO_DRAW: it is none. */
uint32_t mp_number_drawn(mp_recorder *rec, PyObject *object);
/* Is it one that the graph does not take yet: one that `mp_number_draw` was told of? */
bool mp_number_is_drawn(mp_recorder *rec, PyObject *object);
/* Is it an int or float that fits into a tensor of the graph? */
bool mp_number_fits(PyObject *object);
/* Can numbers be read at all (the tables of magpy.symbols are there)? */
bool mp_numbers_ready(void);

/* The program has looked at the only element of the tensor whose snapshot is `value`: how(element) gave `seen` (how "": itself). */
void mp_number_look(mp_recorder *rec, mp_value_id value, const char *how, PyObject *seen);

/* What eager has in place of an object that was or is open, where `is` tells the two from each other. Owned, or NULL: itself; maybe with an exception. */
PyObject *mp_number_usual(mp_recorder *rec, PyObject *object);

/* Something looks at the value: it becomes a check. inside: at whatever can be reached from `object`. */
void mp_number_settle(mp_recorder *rec, PyObject *object);
void mp_number_settle_inside(mp_recorder *rec, PyObject *object);

/* This read is new. Where it is of an int or float that the program counts on with (self.n += 1), that is another one at the next call: it is open at
** once. */
void mp_number_counted(mp_recorder *rec, uint32_t read);
/* The location of this read, which holds an int or float, is being read, for the first time or again. end: the handler of the instruction that
** did it has run. */
void mp_number_met(mp_recorder *rec, uint32_t read);
void mp_number_met_end(mp_recorder *rec, const mp_frame *frame, int opcode);

/* The value of this read is another one at the next call: it is told as one that changes, unless too many are. */
void mp_number_will_change(mp_recorder *rec, uint32_t read);

/* len() of a list from outside, as the instruction that now runs gives it: a number where that is another one each time. False: it is read as other
** places are. */
bool mp_number_length(mp_recorder *rec, const mp_frame *frame, PyObject *list);

/* Before an instruction, with the value stack as it finds it. */
void mp_number_instruction(mp_recorder *rec, const mp_frame *frame, int opcode, int oparg);
/* Before a call of a C function: mp_number_call, in effects.h. */
/* A Python frame ends or yields. */
void mp_number_leaves(mp_recorder *rec, const mp_frame *frame, PyObject *value);
/* Before a torch function: what it does not take as a value is settled. True: numbers are left among its arguments. */
bool mp_number_arguments(mp_recorder *rec, PyObject *func, PyObject *args, PyObject *kwargs);

/* The value of the graph that is this number, a tensor without dimensions of double or int64; MP_NO_VALUE: it is no such number. */
mp_value_id mp_number_value(mp_recorder *rec, PyObject *object);

/* Likewise for what is left at the end; *make (borrowed): what makes the object of that number, or NULL for numbers. */
mp_value_id mp_number_at_end(mp_recorder *rec, PyObject *object, PyObject **make);

/* The Python function that replays an operator whose results' sizes are data: sized(func, sizes, args, kwargs). Borrowed. */
PyObject *mp_number_sized(void);

/* -- Shared by numbers.c and numbers_met.c ------------------------------------------------------------------------ */

typedef struct {         /* from magpy.symbols, owned by the process; all NULL until that is imported */
    PyObject *functions; /* dict: C callable -> its name in expressions */
    PyObject *carriers;  /* dict: C callable -> number of its first argument that it looks at, or None */
    PyObject
        *steps; /* dict: C callables that only look at the values of what they are given, if that is of plain types */
    PyObject *operators; /* dict: torch function -> tuple of positions and names that may be numbers; True: in lists */
    PyObject *evaluate;  /* Python functions of magpy.steps: evaluate(source, *leaves), */
    PyObject *compute;   /* the same as an operator's result, */
    PyObject *check, *sized; /* and mp_check_step, mp_number_sized */
} mp_number_knowledge;

extern mp_number_knowledge mp_number_tables;

bool mp_is_number(PyObject *object); /* an int or float, of exactly that type */
/* Python source of an operand, whose values are added to the dict `leaves`. Owned, or NULL with an exception. */
PyObject *mp_number_text(mp_recorder *rec, PyObject *operand, PyObject *leaves);
/* *object (owned, replaced by an equal object) becomes a number. Steals text and leaves, which may be NULL: abandons. */
void mp_number_add(mp_recorder *rec, PyObject **object, PyObject *text, PyObject *leaves);
/* The program learned that the expression is `seen` (borrowed). Steals text and leaves, which may be NULL: abandons. */
void mp_number_learn(mp_recorder *rec, PyObject *text, PyObject *leaves, PyObject *seen);
void mp_number_settle_all(mp_recorder *rec);
void mp_number_no_memory(mp_recorder *rec); /* abandons */

void mp_numbers_free(mp_recorder *rec);
int mp_numbers_module_init(PyObject *module);

#endif
