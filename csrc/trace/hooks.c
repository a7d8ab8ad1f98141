/* Hooks of tensors that the call registers: they see gradients when somebody goes backward after the call.
**
** On a tensor from outside that is an effect of the commit. On one that the call computes, an operator marks the place in the graph, where the
** backward plan will call what the commit gives to the run (magpy/hooks.py).
*/
#include "trace/effects.h"
#include "trace/raw.h"
#include "trace/tensors.h"

static bool requires_grad(PyObject *tensor)
{
    PyObject *quiet = mp_quiet_begin(), *answer = mp_tensor_ask(mp_names.requires_grad, tensor);
    bool required = answer == Py_True;
    Py_XDECREF(answer);
    PyErr_Clear();
    mp_quiet_end(quiet);
    return required;
}

/* function(*args) at the commit; args: stolen, NULL with an exception. */
static void give(mp_recorder *rec, PyObject *function, PyObject *args)
{
    PyObject *how = args ? Py_BuildValue("(O{}())", args) : NULL;
    if (how)
        mp_rec_effect(rec, function, how);
    else
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "hooks");
    Py_XDECREF(how);
    Py_XDECREF(args);
}

/* data: (tensor, name of the operator, name of what gives the run its function, of what). */
static void registered(mp_recorder *rec, PyObject *data, PyObject **slot)
{
    mp_kept kept = mp_keep();
    mp_op_state *state = mp_rec_op_state(rec);
    PyObject *module = slot && state && !mp_rec_abandoned(rec) ? PyImport_ImportModule("magpy.hooks") : NULL;
    if (module) {
        PyObject *mark = PyObject_GetAttr(module, PyTuple_GET_ITEM(data, 1));
        PyObject *function = PyObject_GetAttr(module, PyTuple_GET_ITEM(data, 2));
        PyObject *args = Py_BuildValue("(OI)", PyTuple_GET_ITEM(data, 0), state->n_hooks);
        if (mark && function && args) {
            mp_rec_op(rec, mark, args, NULL, Py_None, true);
            give(rec, function, Py_BuildValue("(IO)", state->n_hooks++, PyTuple_GET_ITEM(data, 3)));
        } else
            mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "hooks");
        Py_XDECREF(mark);
        Py_XDECREF(function);
        Py_XDECREF(args);
        Py_DECREF(module);
    }
    PyErr_Clear();
    Py_DECREF(data);
    mp_restore(kept);
}

static void pend(mp_call *call, const char *mark, const char *giver, PyObject *given)
{
    PyObject *data = Py_BuildValue("(OssO)", call->args[0], mark, giver, given);
    if (data)
        mp_rec_pend(call->rec, call->frame, registered, data);
    else
        mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "hooks");
}

/* May the tensor's hooks be recorded here? Abandons if not. */
static bool traceable(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    if (!state || state->muted)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "inside a function that is one operator");
    return state && !state->muted && mp_rec_value(call->rec, call->args[0]) != MP_NO_VALUE;
}

/* tensor.register_hook(function), tensor.register_post_accumulate_grad_hook(function) */
void mp_handle_register_hook(mp_call *call)
{
    if (call->nargs != 2 || call->nkw || !mp_is_exact_tensor(call->args[0])) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "with such arguments");
        return;
    }
    if (!requires_grad(call->args[0]) || !traceable(call)) return; /* raises, or abandoned */
    if (!mp_result_unused(call->frame)) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE,
                        "the handle of the hook is kept; register it before the call, or never remove it");
        return;
    }
    mp_op_state *state = mp_rec_op_state(call->rec);
    mp_kept kept = mp_keep();
    if (mp_rec_find(call->rec, call->args[0]) != MP_NO_OBJ) {
        state->hooks = true;
        give(call->rec, call->callable, PyTuple_Pack(2, call->args[0], call->args[1]));
    } else if (PyUnicode_CompareWithASCIIString(((PyFunctionObject *)call->callable)->func_name, "register_hook") ==
               0) {
        state->hooks = true;
        pend(call, "hook", "give", call->args[1]);
    }
    mp_restore(kept);
}

/* tensor.retain_grad(): of a leaf it is nothing. */
void mp_handle_retain_grad(mp_call *call)
{
    if (call->nargs != 1 || !mp_is_exact_tensor(call->args[0])) {
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "with such arguments");
        return;
    }
    if (!requires_grad(call->args[0]) || !traceable(call)) return;
    mp_op_state *state = mp_rec_op_state(call->rec);
    mp_kept kept = mp_keep();
    PyObject *quiet = mp_quiet_begin(), *leaf = PyObject_GetAttrString(call->args[0], "is_leaf");
    mp_quiet_end(quiet);
    if (leaf == Py_False && mp_rec_find(call->rec, call->args[0]) != MP_NO_OBJ)
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE, "of a tensor that was computed before the call");
    else if (leaf == Py_False) {
        if (!state->retained) state->retained = PyList_New(0);
        if (!state->retained || PyList_Append(state->retained, call->args[0]) < 0)
            mp_rec_abandon(call->rec, MP_REASON_NO_MEMORY, "hooks");
        pend(call, "retain", "give_retain", call->args[0]);
    }
    Py_XDECREF(leaf);
    PyErr_Clear();
    mp_restore(kept);
}

/* -- Hooks of nodes ------------------------------------------------------------------------------------------------------- */

void mp_hooks_note_node(mp_recorder *rec, PyObject *node, PyObject *tensor)
{
    mp_op_state *state = mp_rec_op_state(rec);
    if (!state || node == Py_None || strstr(Py_TYPE(node)->tp_name, "Backward") == NULL) return;
    PyObject *pair = PyTuple_Pack(2, node, tensor);
    if (!state->nodes) state->nodes = PyList_New(0);
    if (!pair || !state->nodes || PyList_Append(state->nodes, pair) < 0)
        mp_rec_abandon(rec, MP_REASON_NO_MEMORY, "hooks");
    PyErr_Clear();
    Py_XDECREF(pair);
}

/* tensor.grad_fn.register_hook(function), register_prehook(function), of what an autograd.Function of the call gave: backward hooks of modules. */
void mp_handle_node_hook(mp_call *call)
{
    mp_op_state *state = mp_rec_op_state(call->rec);
    PyObject *tensor = NULL, *name = mp_callable_name(call->callable);
    for (Py_ssize_t i = state && state->nodes ? PyList_GET_SIZE(state->nodes) : 0; i-- > 0 && call->nargs == 2;) {
        PyObject *pair = PyList_GET_ITEM(state->nodes, i);
        if (PyTuple_GET_ITEM(pair, 0) == call->args[0]) tensor = PyTuple_GET_ITEM(pair, 1);
    }
    const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
    PyErr_Clear();
    if (!tensor || !text || state->muted || !mp_result_unused(call->frame))
        mp_call_abandon(call, MP_REASON_UNKNOWN_C_CALLABLE,
                        "of a node from outside the call, or one whose handle is kept");
    else {
        mp_kept kept = mp_keep();
        state->hooks = true;
        mp_call of_tensor = *call;
        PyObject *args[] = {tensor, call->args[1]};
        of_tensor.args = args;
        pend(&of_tensor, strstr(text, "prehook") ? "node_prehook" : "node_hook", "give", call->args[1]);
        mp_deferred_silent(call->rec, call->frame); /* torch counts the handle */
        mp_restore(kept);
    }
    Py_XDECREF(name);
}
