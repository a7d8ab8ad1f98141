/* The inside of functools.lru_cache: what a cache holds, without asking it, which would count as a hit.
**
** The layout is private to CPython's Modules/_functoolsmodule.c (3.11). It is proven against the official accessors once; where it is
** not as expected, caches are not looked into.
*/
#include "trace/lru.h"
#include "trace/raw.h"

typedef struct lru_link {
    PyObject_HEAD struct lru_link *previous, *next;
    Py_hash_t hash;
    PyObject *key, *result;
} lru_link;

typedef struct {
    lru_link root;
    void *wrapper;
    int typed;
    PyObject *cache;
    Py_ssize_t hits;
    PyObject *function;
    Py_ssize_t maxsize;
    Py_ssize_t misses;
} lru_object;

/* -- Proof of the layout ---------------------------------------------------------------------------------------------- */

static const char proof[] = "from functools import lru_cache\n"
                            "bounded = lru_cache(maxsize=7)(lambda x: [x])\n"
                            "endless = lru_cache(maxsize=None, typed=True)(lambda x: [x])\n"
                            "results = bounded('a'), bounded('b'), bounded('a'), endless('c')\n"
                            "marked = lru_cache(lambda **x: [x])\n"
                            "results += (marked(a=1),)\n";

static PyObject *keyword_mark; /* owned for ever: what stands before the keywords in a key; NULL if it was not found */

static bool holds(PyObject *space, const char *name, const char *argument, Py_ssize_t maxsize, int typed,
                  Py_ssize_t misses, Py_ssize_t hits, int result)
{
    PyObject *wrapper = PyDict_GetItemString(space, name), *results = PyDict_GetItemString(space, "results");
    PyObject *args = Py_BuildValue("(s)", argument);
    const lru_object *lru = (const lru_object *)wrapper;
    bool good = args && (size_t)Py_TYPE(wrapper)->tp_basicsize >= sizeof *lru && lru->typed == typed &&
                lru->maxsize == maxsize && lru->misses == misses && lru->hits == hits && lru->cache &&
                PyDict_CheckExact(lru->cache) && PyDict_GET_SIZE(lru->cache) == misses &&
                mp_lru_find(wrapper, args) == PyTuple_GET_ITEM(results, result);
    Py_XDECREF(args);
    return good;
}

/* Not exported: what a cache that was called by keyword has as the first part of its key. */
static void find_keyword_mark(PyObject *space)
{
    const lru_object *lru = (const lru_object *)PyDict_GetItemString(space, "marked");
    PyObject *key, *link;
    Py_ssize_t at = 0;
    if (PyDict_Next(lru->cache, &at, &key, &link) && PyTuple_CheckExact(key) && PyTuple_GET_SIZE(key) == 3)
        keyword_mark = Py_NewRef(PyTuple_GET_ITEM(key, 0));
}

bool mp_lru_ready(void)
{
    static int ready = -1; /* not known yet */
    if (ready >= 0) return ready;
    ready = 0;
    mp_kept kept = mp_keep();
    PyObject *space = PyDict_New();
    PyObject *done = space ? PyRun_String(proof, Py_file_input, space, space) : NULL;
    if (done)
        ready = holds(space, "bounded", "b", 7, 0, 2, 1, 1) && holds(space, "endless", "c", -1, 1, 1, 0, 3) ? 1 : 0;
    if (ready) find_keyword_mark(space);
    Py_XDECREF(done);
    Py_XDECREF(space);
    mp_restore(kept);
    return ready;
}

/* -- Looking ------------------------------------------------------------------------------------------------------------ */

bool mp_lru_caches(PyObject *wrapper) { return ((const lru_object *)wrapper)->maxsize != 0; }

/* args with mark, name, value, ... in them: where the mark is, or the end. */
static Py_ssize_t positional(PyObject *args)
{
    Py_ssize_t n = 0;
    while (n < PyTuple_GET_SIZE(args) && PyTuple_GET_ITEM(args, n) != keyword_mark) n++;
    return n;
}

PyObject *mp_lru_mark(void) { return keyword_mark; }

/* The key that the wrapper makes of the arguments. Owned, or NULL with an exception. */
static PyObject *key_of(const lru_object *lru, PyObject *args)
{
    Py_ssize_t n = PyTuple_GET_SIZE(args), first = positional(args);
    if (n == 1 && !lru->typed) {
        PyObject *only = PyTuple_GET_ITEM(args, 0);
        if (PyUnicode_CheckExact(only) || PyLong_CheckExact(only)) return Py_NewRef(only);
    }
    if (!lru->typed) return Py_NewRef(args);
    PyObject *key =
        PyTuple_New(n + first + (n - first) / 2); /* then the types: of positional ones, of keywords' values */
    for (Py_ssize_t i = 0; key && i < n; i++) PyTuple_SET_ITEM(key, i, Py_NewRef(PyTuple_GET_ITEM(args, i)));
    for (Py_ssize_t i = 0, at = n; key && at < PyTuple_GET_SIZE(key); at++, i += i < first ? 1 : 2) {
        if (i == first) i += 2; /* mark, name */
        PyTuple_SET_ITEM(key, at, Py_NewRef((PyObject *)Py_TYPE(PyTuple_GET_ITEM(args, i))));
    }
    return key;
}

PyObject *mp_lru_find(PyObject *wrapper, PyObject *args)
{
    const lru_object *lru = (const lru_object *)wrapper;
    mp_kept kept = mp_keep();
    PyObject *key = key_of(lru, args), *found = NULL;
    if (key && lru->cache && PyDict_CheckExact(lru->cache)) found = PyDict_GetItemWithError(lru->cache, key);
    Py_XDECREF(key);
    mp_restore(kept);
    return found && lru->maxsize > 0 ? ((lru_link *)found)->result : found;
}
