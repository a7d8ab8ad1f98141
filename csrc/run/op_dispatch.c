/* DISPATCHER tier: an operator called by name through torch's dispatcher, its arguments converted to the ABI's stable values.
**
** A stable value is one 64-bit word by schema type: ints, doubles, bools and enums as their bits; a tensor as an owned handle; T? as NULL
** or a heap cell with T's word; T[] as a list object; str as a string object; a device as type << 32 | index. The call consumes all of
** its arguments. Scalars ("number"), generators and the like have no stable form: such operators are left to the PYTHON tier.
*/
#include "run/op.h"

struct mp_stable_type {
    char
        kind; /* t Tensor, i int, f float, b bool, e enum (dtype, layout, memory format), d device, s str, ? optional, [ list */
    const mp_stable_type *inner;
};

/* -- Types ------------------------------------------------------------------------------------------------------------ */

/* Parse a schema type such as "Optional[List[int]]" up to ']' or the end. Returns NULL if it has no stable form or on no memory. */
static const mp_stable_type *parse_type(const char **text, mp_store *store)
{
    static const struct {
        const char *name;
        char kind;
    } names[] = {
        {"Tensor", 't'}, {"int", 'i'},    {"SymInt", 'i'},       {"float", 'f'}, {"bool", 'b'},     {"ScalarType", 'e'},
        {"Layout", 'e'}, {"Device", 'd'}, {"MemoryFormat", 'e'}, {"str", 's'},   {"Optional", '?'}, {"List", '['},
    };
    size_t length = strcspn(*text, "[]");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i].name) != length || strncmp(*text, names[i].name, length) != 0) continue;
        mp_stable_type *type = mp_store_alloc(store, sizeof *type);
        *text += length;
        if (!type) return NULL;
        type->kind = names[i].kind;
        if (type->kind != '?' && type->kind != '[') return type;
        if (*(*text)++ != '[' || !(type->inner = parse_type(text, store))) return NULL;
        return *(*text)++ == ']' ? type : NULL;
    }
    return NULL;
}

/* Can `arg` be given as `type`? */
static bool fits(const mp_stable_type *type, const mp_arg *arg)
{
    switch (type->kind) {
    case 't': return arg->kind == MP_ARG_VALUE;
    case 'i': return arg->kind == MP_ARG_INT || arg->kind == MP_ARG_BOOL;
    case 'f': return arg->kind == MP_ARG_FLOAT || arg->kind == MP_ARG_INT || arg->kind == MP_ARG_BOOL;
    case 'b': return arg->kind == MP_ARG_BOOL || arg->kind == MP_ARG_INT;
    case 'e': return arg->kind == MP_ARG_DTYPE || arg->kind == MP_ARG_LAYOUT || arg->kind == MP_ARG_MEMORY_FORMAT;
    case 'd': return arg->kind == MP_ARG_DEVICE;
    case 's': return arg->kind == MP_ARG_STR;
    case '?': return arg->kind == MP_ARG_NONE || fits(type->inner, arg);
    case '[':
        if (arg->kind != MP_ARG_LIST) return false;
        for (uint32_t i = 0; i < arg->list.n; i++)
            if (!fits(type->inner, &arg->list.items[i])) return false;
        return true;
    }
    return false;
}

/* The stable type of a schema argument or return. *type becomes NULL if there is none. Returns 0, or -1 with an exception. */
static int read_type(PyObject *argument, mp_store *store, const mp_stable_type **type)
{
    *type = NULL;
    PyObject *real = PyObject_GetAttrString(argument, "real_type"), *text = real ? PyObject_Str(real) : NULL;
    const char *chars = text ? PyUnicode_AsUTF8(text) : NULL;
    if (chars) *type = parse_type(&chars, store);
    Py_XDECREF(text);
    Py_XDECREF(real);
    return PyErr_Occurred() ? -1 : 0;
}

static bool returns_tensors(const mp_stable_type *type)
{ return type->kind == 't' || (type->kind == '[' && type->inner->kind == 't'); }

/* Types of `arguments` (a schema's list), NULL for each without a stable form. NULL on no memory or with an exception. */
static const mp_stable_type **read_types(PyObject *arguments, uint32_t n, mp_store *store)
{
    const mp_stable_type **types = mp_store_alloc(store, (n + 1) * sizeof *types);
    for (uint32_t i = 0; types && i < n; i++)
        if (read_type(PyList_GET_ITEM(arguments, i), store, &types[i]) < 0) return NULL;
    return types;
}

/* -- Resolving -------------------------------------------------------------------------------------------------------- */

static bool whole_abi(void)
{
    return mp_torch.call_dispatcher && mp_torch.list_new && mp_torch.list_size && mp_torch.list_get &&
           mp_torch.list_push && mp_torch.list_delete && mp_torch.string_new && mp_torch.string_delete &&
           mp_torch.optional_new && mp_torch.optional_delete;
}

/* "aten.add.Tensor" -> "aten::add" and "Tensor"; "default" is the empty overload. Returns false on no memory or an odd name. */
static bool split_name(mp_op *op, mp_store *store)
{
    const char *dot = strchr(op->node->op, '.'), *last = strrchr(op->node->op, '.');
    if (!dot || dot == last) return false;
    size_t size = strlen(op->node->op) + 2;
    char *name = mp_store_alloc(store, size);
    if (!name) return false;
    memcpy(name, op->node->op, (size_t)(dot - op->node->op));
    strcat(name, "::");
    strncat(name, dot + 1, (size_t)(last - dot - 1));
    op->name = name;
    op->overload = strcmp(last + 1, "default") == 0 ? "" : mp_store_copy(store, last + 1, strlen(last + 1) + 1);
    return op->overload != NULL;
}

int mp_dispatch_resolve(mp_op *op, const mp_graph *graph, mp_store *store, mp_reason *why)
{
    if (!whole_abi()) return 0;
    static const mp_stable_type absent = {'?', NULL}; /* of a generator or number that is not given */
    PyObject *schema = PyObject_GetAttrString(op->node->target, "_schema");
    PyObject *arguments = schema ? PyObject_GetAttrString(schema, "arguments") : NULL;
    PyObject *returns = schema ? PyObject_GetAttrString(schema, "returns") : NULL;
    int taken = 0;
    if (!arguments || !returns || !PyList_Check(arguments) || !PyList_Check(returns)) goto done;
    uint32_t n = (uint32_t)PyList_GET_SIZE(arguments), n_returns = (uint32_t)PyList_GET_SIZE(returns);
    if (n != op->node->n_args) goto done;
    const mp_stable_type **types = read_types(arguments, n, store), **results = read_types(returns, n_returns, store);
    if (!types || !results || !split_name(op, store)) goto done;
    for (uint32_t i = 0; i < n; i++) {
        if (!types[i] && op->node->args[i].kind == MP_ARG_NONE) types[i] = &absent;
        if (!types[i] || (types[i] != &absent && !fits(types[i], &op->node->args[i]))) goto done;
    }
    for (uint32_t i = 0; i < n_returns; i++)
        if (!results[i] || !returns_tensors(results[i])) goto done;
    op->arg_types = types;
    op->return_types = results;
    op->n_stack = n > n_returns ? n : n_returns;
    op->n_returns = n_returns;
    taken = 1;
done:
    mp_error_clear(); /* a schema that cannot be read: the PYTHON tier needs none of this */
    Py_XDECREF(schema);
    Py_XDECREF(arguments);
    Py_XDECREF(returns);
    return taken;
}

/* -- Calling ---------------------------------------------------------------------------------------------------------- */

/* Free a stable value that was made but not consumed. */
static void drop(const mp_stable_type *type, uint64_t word)
{
    void *object = (void *)(uintptr_t)word;
    if (!object) return;
    if (type->kind == 't') {
        mp_torch.delete_handle(object);
    } else if (type->kind == '?') {
        drop(type->inner, *(uint64_t *)object);
        mp_torch.optional_delete(object);
    } else if (type->kind == '[') {
        size_t n = 0;
        uint64_t item;
        mp_torch.list_size(object, &n);
        for (size_t i = 0; i < n; i++)
            if (!mp_torch.list_get(object, i, &item)) drop(type->inner, item);
        mp_torch.list_delete(object);
    } else if (type->kind == 's') {
        mp_torch.string_delete(object);
    }
}

/* Returns 0, or 1 if torch failed (nothing is made then). */
static int convert(const mp_op *op, const mp_stable_type *type, const mp_arg *arg, mp_frame *frame, uint64_t *out)
{
    void *object = NULL;
    uint64_t item, *cell;
    *out = 0;
    switch (type->kind) {
    case 't':
        object = mp_op_argument(op, frame, arg->value);
        *out = (uint64_t)(uintptr_t)object;
        return object == NULL;
    case 'f': {
        double value = arg->kind == MP_ARG_FLOAT ? arg->f : (double)arg->i;
        memcpy(out, &value, sizeof value);
        return 0;
    }
    case 'b': *out = arg->i != 0; return 0;
    case 'e': *out = (uint32_t)arg->i; return 0;
    case 'd': *out = (uint64_t)arg->i << 32 | UINT32_MAX; return 0;
    case 's':
        if (mp_torch.string_new(arg->str, strlen(arg->str), &object)) return 1;
        *out = (uint64_t)(uintptr_t)object;
        return 0;
    case '?':
        if (arg->kind == MP_ARG_NONE) return 0;
        if (convert(op, type->inner, arg, frame, &item)) return 1;
        if (mp_torch.optional_new(&cell)) {
            drop(type->inner, item);
            return 1;
        }
        *cell = item;
        *out = (uint64_t)(uintptr_t)cell;
        return 0;
    case '[':
        if (mp_torch.list_new(arg->list.n, &object)) return 1;
        *out = (uint64_t)(uintptr_t)object;
        for (uint32_t i = 0; i < arg->list.n; i++) {
            int failed = convert(op, type->inner, &arg->list.items[i], frame, &item);
            if (!failed && mp_torch.list_push(object, item)) {
                drop(type->inner, item);
                failed = 1;
            }
            if (!failed) continue;
            drop(type, *out);
            *out = 0;
            return 1;
        }
        return 0;
    default: *out = (uint64_t)arg->i; return 0;
    }
}

/* Move the tensors of a returned word into results[*n..limit); what does not fit is let go. */
static void take(const mp_stable_type *type, uint64_t word, mp_handle *results, uint32_t *n, uint32_t limit)
{
    void *object = (void *)(uintptr_t)word;
    if (type->kind == 't') {
        if (*n < limit)
            results[*n] = object;
        else
            mp_torch.delete_handle(object);
        ++*n;
        return;
    }
    size_t size = 0;
    uint64_t item;
    mp_torch.list_size(object, &size);
    for (size_t i = 0; i < size; i++)
        if (!mp_torch.list_get(object, i, &item)) take(type->inner, item, results, n, limit);
    mp_torch.list_delete(object);
}

int mp_dispatch_call(const mp_op *op, mp_frame *frame, mp_handle *results)
{
    uint64_t stack[64];
    if (op->n_stack > 64) return 1;
    for (uint32_t i = 0; i < op->node->n_args; i++) {
        if (!convert(op, op->arg_types[i], &op->node->args[i], frame, &stack[i])) continue;
        while (i-- > 0) drop(op->arg_types[i], stack[i]);
        return 1;
    }
    if (mp_torch.call_dispatcher(op->name, op->overload, stack)) return 1;
    uint32_t n = 0;
    for (uint32_t i = 0; i < op->n_returns; i++) take(op->return_types[i], stack[i], results, &n, op->node->n_values);
    while (n < op->node->n_values) results[n++] = NULL;
    return 0;
}
