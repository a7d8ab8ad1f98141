/* Counting: does the program load a number from a place to compute the next one, which it stores there? Such a number is another one at the next
** call, so it is open from the first observation on. See numbers.h.
*/
#include "trace/numbers.h"

#include "trace/tensors.h"

#include <opcode.h>

enum { MOST_NAMES = 64 }; /* of places, beyond which they wait for a miss */

/* Where the place that the instruction loads from is stored to: the opcode that does it, or 0. */
static int store_of(int load)
{
    switch (load) {
    case LOAD_ATTR: return STORE_ATTR;
    case LOAD_GLOBAL: return STORE_GLOBAL;
    case LOAD_NAME: return STORE_NAME;
    case LOAD_DEREF: return STORE_DEREF;
    case BINARY_SUBSCR: return STORE_SUBSCR;
    default: return 0;
    }
}

/* An instruction of a code, with its argument. */
typedef struct {
    int opcode, oparg;
    Py_ssize_t next; /* byte offset of the one after it */
} instruction;

static instruction instruction_at(const unsigned char *bytes, Py_ssize_t n, Py_ssize_t at)
{
    instruction now = {0, 0, at};
    do {
        now.opcode = bytes[now.next];
        now.oparg = now.oparg << 8 | bytes[now.next + 1];
        now.next += 2;
    } while (now.opcode == EXTENDED_ARG && now.next < n);
    if (now.opcode == LOAD_GLOBAL) now.oparg >>= 1;
    while (now.next < n && bytes[now.next] == CACHE) now.next += 2;
    return now;
}

static bool jumps(int opcode)
{
    static const uint8_t never[] = {RETURN_VALUE, RAISE_VARARGS, RERAISE, FOR_ITER, SEND, JUMP_FORWARD, JUMP_BACKWARD};
    for (size_t i = 0; i < sizeof never; i++)
        if (never[i] == opcode) return true;
    return (opcode >= POP_JUMP_FORWARD_IF_FALSE && opcode <= POP_JUMP_FORWARD_IF_TRUE) ||
           opcode == JUMP_IF_FALSE_OR_POP || opcode == JUMP_IF_TRUE_OR_POP || opcode == POP_JUMP_BACKWARD_IF_FALSE ||
           opcode == POP_JUMP_BACKWARD_IF_TRUE || opcode == POP_JUMP_FORWARD_IF_NONE ||
           opcode == POP_JUMP_FORWARD_IF_NOT_NONE;
}

/* Does the code somewhere compute with what it loads from the place of the instruction at `offset` (in units), and stores the result there:
** self.n += 1, self.n = 2 * self.n? Of items it is enough that this is the load of an item that is stored behind it. */
static bool counts(PyCodeObject *code, int offset)
{
    PyObject *text = code ? PyCode_GetCode(code) : NULL; /* owned, without specialisation */
    const unsigned char *bytes = text ? (const unsigned char *)PyBytes_AS_STRING(text) : NULL;
    Py_ssize_t n = text ? PyBytes_GET_SIZE(text) : 0, at = 2 * (Py_ssize_t)offset;
    bool found = false, loaded = false, computed = false;
    if (at >= 0 && at < n) {
        instruction load = instruction_at(bytes, n, at);
        int store = store_of(load.opcode);
        for (at = 0; store && at < n && !found;) {
            Py_ssize_t here = at;
            instruction now = instruction_at(bytes, n, at);
            bool item = store == STORE_SUBSCR, same = item || now.oparg == load.oparg;
            at = now.next;
            if (now.opcode == load.opcode && same && (!item || here == 2 * (Py_ssize_t)offset)) {
                loaded = true;
                computed = false;
            } else if (now.opcode == store && same) {
                found = loaded && computed;
                loaded = false;
            } else if (now.opcode == BINARY_OP)
                computed = loaded;
            else if (jumps(now.opcode))
                loaded = false;
        }
    }
    Py_XDECREF(text);
    PyErr_Clear();
    return found;
}

/* Is the running instruction a load for counting on, or inside a property that one reads? */
static bool loads_to_count(mp_recorder *rec)
{
    for (uint32_t i = rec->n_frames; i > 1; i--) {
        const mp_rec_frame *entry = &rec->frames[i - 1];
        if (counts(entry->code, entry->offset)) return true;
        if (i == rec->n_frames ? !store_of(entry->opcode) && !rec->gives_read : entry->opcode != LOAD_ATTR)
            return false;
    }
    return false;
}

void mp_number_counted(mp_recorder *rec, uint32_t read)
{
    const mp_read *at = &rec->recording->reads[read];
    bool able = at->was == MP_WAS_SCALAR && rec->in_instruction && mp_is_number(at->value) && mp_rec_op_state(rec) &&
                rec->op_state->accept_checks && mp_number_tables.functions;
    if (able && loads_to_count(rec)) mp_number_will_change(rec, read);
}

void mp_number_will_change(mp_recorder *rec, uint32_t read)
{
    if (!rec->changing) rec->changing = PySet_New(NULL);
    if (rec->changing && PySet_GET_SIZE(rec->changing) >= MOST_NAMES) return;
    PyObject *name = rec->changing ? mp_recording_number_name(rec->recording, read) : NULL;
    if (name) PySet_Add(rec->changing, name);
    Py_XDECREF(name);
    PyErr_Clear(); /* it stays guarded by value */
}
