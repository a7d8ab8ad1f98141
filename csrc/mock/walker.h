/* The walk over what is to be rebuilt, shared by compile.c, which walks, and makers.c, which knows how each type is made.
**
** Functions that give an operand give MP_NO_OPERAND with the walker's reason set; those that give an int, -1. Objects are borrowed.
*/
#ifndef MP_MOCK_WALKER_H
#define MP_MOCK_WALKER_H
#include "mock/program.h"
#include "trace/map.h"

typedef struct walker walker;
typedef mp_operand (*make_fn)(walker *w, PyObject *object, PyTypeObject *base);
typedef int (*fill_fn)(walker *w, PyObject *object, mp_operand target);

typedef struct {      /* a made object that is still to be filled */
    PyObject *object; /* borrowed from the result, the writes or `keep` */
    mp_operand target;
    fill_fn fill;
} todo;

struct walker {
    mp_mock_program *prog;
    const mp_mock_source *source;
    mp_reason *why;
    mp_map seen;               /* object -> operand */
    PyTypeObject *tensor_type; /* borrowed from the loaded torch, or NULL */
    PyObject *keep;            /* owned list: objects made by looking, so that their addresses stay theirs */
    todo *todos;
    uint32_t n_todos;
    mp_step *late; /* fills that hash with the user's code: after everything else, inner ones first */
    uint32_t n_late;
    int depth;
};

mp_operand mock_no_memory(walker *w);
mp_operand mock_unrebuildable(walker *w, PyObject *object, const char *what);

/* The operand of any object: what it is made of is walked first, or put on the list of what is still to be filled. */
mp_operand mock_value_of(walker *w, PyObject *object);
mp_operand mock_constant(walker *w, PyObject *value);

/* A step that makes something of its arguments, and one that fills `target`; `late`: after all others. `data` (may be NULL) and `base` as
** in mp_step. */
mp_operand mock_make(walker *w, mp_mock_op op, const mp_operand *args, uint32_t n, PyObject *data, void *base);
int mock_fill(walker *w, bool late, mp_mock_op op, mp_operand target, const mp_operand *args, uint32_t n,
              PyObject *data, void *base);
/* The same with the operands of all items of a list or tuple; `items` is released, and may be NULL for lack of memory. */
mp_operand mock_make_of_items(walker *w, mp_mock_op op, PyObject *items, PyObject *data, void *base);
int mock_fill_with_items(walker *w, bool late, mp_mock_op op, mp_operand target, PyObject *items, PyObject *data);

/* `target` will be filled with what `object` holds, once everything has been made. Gives `target`. */
mp_operand mock_fill_later(walker *w, PyObject *object, mp_operand target, fill_fn how);

/* Hold an object that looking has made (released, may be NULL); its borrowed self. */
PyObject *mock_hold(walker *w, PyObject *made);

/* A type as a loaded module shows it, without importing or running anything. Borrowed or NULL. */
PyObject *mock_loaded_type(const char *module_name, const char *name);
bool mock_is_tensor(const walker *w, PyObject *object);

/* The graph value of a number that is data, or MP_NO_VALUE; *make (borrowed): what makes the object of it, or NULL. */
mp_value_id mock_number_value(const walker *w, PyObject *object, PyObject **make);
/* The template of a text of such numbers, borrowed, or NULL. */
PyObject *mock_text_template(const walker *w, PyObject *object);
/* The draw that gave an object that is open, or MP_NO_DRAW. */
uint32_t mock_drawn(const walker *w, PyObject *object);
/* Is there such a number, or a text of one, in a tuple or slice? Other constants cannot hold one: their parts have been looked at. */
bool mock_holds_number(const walker *w, PyObject *object);

/* -- makers.c ------------------------------------------------------------------------------------------------------------ */

mp_operand mock_make_by_type(walker *w, PyObject *object);
mp_operand mock_make_constant(walker *w, PyObject *object, PyTypeObject *base);
int mock_fill_dict(walker *w, PyObject *object, mp_operand target);
int mock_fill_set(walker *w, PyObject *object, mp_operand target);
int mock_fill_attributes(walker *w, PyObject *object, mp_operand target); /* slots and the dict of an instance */

#endif
