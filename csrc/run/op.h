/* Operator calls: a graph node resolved to the cheapest way of running it, and the running of it.
**
** Tiers, cheapest first: SHIM (a function of torch's C ABI with a known signature), DISPATCHER (by name, arguments as stable values),
** PYTHON (the OpOverload is called). Resolving happens once, when a plan is compiled; a call is then a few stores and one call.
*/
#ifndef MP_RUN_OP_H
#define MP_RUN_OP_H
#include "run/frame.h"
#include "run/store.h"

typedef enum { MP_TIER_KERNEL, MP_TIER_SHIM, MP_TIER_DISPATCHER, MP_TIER_PYTHON } mp_tier;

typedef struct mp_stable_type mp_stable_type;

/* A word of the frame that gets a handle (value's) before the call. */
typedef struct {
    uint32_t word;
    mp_val value;
} mp_patch;

typedef struct mp_op {
    const mp_gnode *node; /* borrowed from the graph */
    mp_tier tier;
    bool out;        /* SHIM out-variant: the first word is the handle of the result, which exists before the call */
    bool keeps_args; /* may keep its arguments alive: is given copies of tensors in the arena */
    /* SHIM */
    void *function;
    const char *symbol;
    uint32_t first_word, n_args; /* words [first_word, first_word + n_args) of the frame are passed */
    uint32_t n_results, result_word;
    uint32_t n_patches;
    const mp_patch *patches;
    double doubles[4];
    /* DISPATCHER */
    const char *name, *overload;
    uint32_t n_stack, n_returns;
    const mp_stable_type *const *arg_types, *const *return_types;
    /* PYTHON (always filled: it also repeats a call that failed) */
    PyObject **constants; /* [node->n_args] owned; NULL where the argument contains a tensor */
    PyObject *keywords;   /* owned tuple of names of the keyword-only arguments at the end, or NULL */
} mp_op;

/* Template of the argument words of all calls of a plan, grown while operators are resolved. */
typedef struct {
    uint32_t n, size;
    uint64_t *words; /* owned */
    uint32_t n_relocations, relocations_size;
    struct {
        uint32_t word, target;
    } *relocations; /* owned: words[word] becomes the address of words[target] in each frame */
} mp_words;

/* Append `n` zero words. Returns the first's number, or UINT32_MAX on no memory. */
uint32_t mp_words_add(mp_words *words, uint32_t n);
/* Let `word` hold the address of `target` in every frame. Returns 0, or -1 on no memory. */
int mp_words_relocate(mp_words *words, uint32_t word, uint32_t target);

/* Resolve `node` of `graph`. Fills `op`. Returns 0, or -1 with *why set (OPERATOR or NO_MEMORY). GIL held. */
int mp_op_resolve(mp_op *op, const mp_graph *graph, const mp_gnode *node, mp_words *words, mp_store *store,
                  mp_reason *why);
/* Release what `op` owns (not what the store owns). */
void mp_op_clear(mp_op *op);

/* Call. Without `op->out`, results[0..node->n_values) become owned handles (NULL where the operator gave an undefined tensor).
** Returns 0; 1 if torch failed (mp_torch.error_text says why; nothing is owned); -1 with a Python exception (PYTHON tier only, GIL held). */
int mp_op_call(const mp_op *op, mp_frame *frame, mp_handle *results);
/* The same by the PYTHON tier whatever op->tier is. Results are always new handles, also for op->out. */
int mp_op_call_python(const mp_op *op, mp_frame *frame, mp_handle *results);

/* -- Parts (op_shim.c, op_dispatch.c, op_python.c); resolve returns 1 if the tier takes the node, 0 if not, -1 with *why ---------------- */

int mp_shim_resolve(mp_op *op, const mp_graph *graph, mp_words *words, mp_store *store, mp_reason *why);
int mp_shim_call(const mp_op *op, mp_frame *frame, mp_handle *results);
int mp_dispatch_resolve(mp_op *op, const mp_graph *graph, mp_store *store, mp_reason *why);
int mp_dispatch_call(const mp_op *op, mp_frame *frame, mp_handle *results);
int mp_python_resolve(mp_op *op, const mp_graph *graph, mp_store *store, mp_reason *why);

/* The tensor of value `v` for an operator that may keep it: an owned handle, a copy if it lies in the arena. NULL: torch failed. */
mp_handle mp_op_argument(const mp_op *op, mp_frame *frame, mp_val v);

#endif
