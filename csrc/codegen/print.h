/* Printing expressions: shared by the printers for C and CUDA. */
#ifndef MP_CODEGEN_PRINT_H
#define MP_CODEGEN_PRINT_H
#include "codegen/codegen.h"

/* How a target writes an operation, for float, double, integers and bool. $0 $1 $2 are the operands, $t the type and $u its unsigned
** twin. NULL: the row before it (double as float; integers as float; bool as integers). */
typedef struct {
    const char *f32, *f64, *integer, *boolean;
} mp_op_text;

/* A cheaper way for floats that holds for all operands but those for which `far` does. NULL: none. */
typedef struct {
    const char *text, *far;
} mp_near_text;

typedef struct {
    const char *type[16];                 /* of registers, by dtype */
    const char *unsigned_type[16];        /* in which integers wrap around */
    const char *memory[16];               /* of elements in memory, by dtype */
    const char *load16[16], *store16[16]; /* F16 and BF16 to and from float: "f($0)" */
    const char *round16[16];
    const char *check; /* what is done if $0 holds: an index is out of range */
    const char *inf32, *inf64, *nan32, *nan64;
    mp_op_text ops[MP_K_COUNT];
    mp_near_text near[MP_K_COUNT];
} mp_target;

extern const mp_target mp_target_c, mp_target_cuda;

/* Types and helpers that every CUDA source begins with. */
void mp_codegen_cuda_prelude(mp_text *out);

/* Where an expression's value is while code is printed. */
typedef enum {
    MP_AT_NOWHERE, /* to be computed where needed */
    MP_AT_SCALAR,  /* in a variable t<n> that is in scope */
    MP_AT_LANES,   /* in r<n>[lane], an array over the tile of the vector loop */
    MP_AT_ROW,     /* in b<n>[i], an array over the reduced loop */
} mp_at;

typedef struct {
    const mp_kir *kir;
    const mp_target *target;
    mp_text *out;
    int indent;
    uint8_t *at;      /* [n_exprs] mp_at */
    bool *live;       /* [n_exprs]: something stored needs it */
    uint32_t *deps;   /* [n_exprs]: loops it depends on, where results of reductions depend on all kept vector lanes */
    bool *need;       /* [n_exprs]: scratch of one section */
    const char *lane; /* what indexes lane arrays, such as "i1 - c0" */
    const char *row;  /* what indexes row arrays */
    const int8_t
        *known; /* [n_exprs] borrowed: 1 or 0 where a condition is known to hold or not to, else -1. NULL: none is */
    bool near;  /* operations are written the cheap way; a variable `far` becomes 1 where that did not hold */
    const char *const *array;  /* [n_exprs] borrowed: what a load reads instead of memory, or NULL; NULL if none does */
    const bool *wide;          /* [n_exprs] borrowed: that array is of the registers' type. NULL: none is */
    const char *const *stored; /* [n_stores] borrowed: what a store writes instead of memory, as array. "": nothing */
} mp_printer;

void mp_print_init(mp_printer *p, const mp_kir *kir, const mp_target *target, mp_text *out);
void mp_print_line(mp_printer *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Mark in p->need what computing `kid` here takes, down to what is somewhere already. */
void mp_print_need(mp_printer *p, mp_kid kid);
void mp_print_need_none(mp_printer *p);

/* Define every needed expression for which (deps & mask) == want, as `const TYPE t<n> = ...;`. */
void mp_print_needed(mp_printer *p, uint32_t mask, uint32_t want);

/* Is the operation written in another way where p->near is set? */
bool mp_print_has_near(const mp_printer *p, mp_kid kid);

/* The variable or array element that holds the value, into `out` (64 bytes). */
void mp_print_name(const mp_printer *p, mp_kid kid, char *out);

/* buffer[at] = value of the store. */
void mp_print_store(mp_printer *p, const mp_kstore *store);

/* An affine function as C, in the pool. */
const char *mp_print_affine(mp_printer *p, const mp_affine *at);

/* What a reduction starts from, and `acc op= x`, as text in the pool. */
const char *mp_print_identity(mp_printer *p, const mp_kexpr *reduce);
const char *mp_print_combine(mp_printer *p, const mp_kexpr *reduce, const char *acc, const char *x);

/* Loop variables i<k> of the loops in `which` from a linear number in variable `from`. */
void mp_print_decode(mp_printer *p, uint32_t which, const char *from);

#endif
