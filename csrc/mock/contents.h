/* Containers' contents as sequences, shared by the files of mock and by nobody else. All return new references, NULL without memory and
** may leave an exception set then. */
#ifndef MP_MOCK_CONTENTS_H
#define MP_MOCK_CONTENTS_H
#include "magpy.h"

PyObject *mp_sequence_items(PyObject *sequence); /* tuple of a list's, tuple's or deque's items */
PyObject *mp_dict_items(PyObject *dict); /* list of keys and values in turn; an OrderedDict's in its own order */

/* Tuple of a set's items. A set's order comes from its history. If all items are plain their hashes are the same in every run: they are
** given as they lie, *layout (owned) says how, and mp_set_lay makes an equal set. Else *layout is NULL, and adding the items in the order given
** brings the set's own about if such an order was found and their hashes have stayed. */
PyObject *mp_set_items(PyObject *set, PyObject **layout);

/* Is it an iterator of a type that can be made again: over a range, over other iterators, or over nothing, and knows how far it is? (Those over
** sequences are mp_sequence_iterator's.) */
bool mp_is_iterator(PyTypeObject *type);
/* Its (args of its type, state or None, has it ended: will it stay so whatever its state says), without moving it. */
PyObject *mp_iterator_parts(PyObject *iterator);
/* One of such a type from its args, without its state. No code of the program's runs. */
PyObject *mp_iterator_make(PyTypeObject *type, PyObject *args, bool ended);

/* Can every stride-th item be hashed and compared without running code of the user's? */
bool mp_every_key_safe(PyObject *items, Py_ssize_t stride);

#endif
