/* What the parts of the C printer share: print_c.c (the door), print_rows.c and print_tiles.c (its two forms). */
#ifndef MP_CODEGEN_C_KERNEL_H
#define MP_CODEGEN_C_KERNEL_H
#include "codegen/turn.h"

#define ROW_BYTES 32768 /* of row arrays in one kernel */

#define MP_LINE 64 /* bytes of a line of the cache */

typedef struct {
    mp_printer p;
    const mp_kir *kir;
    int64_t tile; /* lanes of an outer iteration; 0: the vector loop is reduced, or there is none */
    int64_t n_tiles;
    bool *row_kept; /* [n_exprs]: has a row array */
    mp_turn turn;   /* of a kernel without reductions */
    const char *
        *array; /* [n_exprs]: what a load reads in its place, turned or chosen before the vector loop; NULL elsewhere */
    int64_t lanes;                /* of a vector register, for the smallest elements in memory */
    bool converts;                /* elements of float16 are converted by blocks (half.h) */
    bool *half_load, *half_store; /* [n_exprs] and [n_stores]: by mp_half_choose */
    bool *half_row;               /* [n_exprs]: by mp_half_rows. NULL: none is */
    const bool *ahead;            /* [n_exprs]: loads that pass ahead_pass fetches for later rows; NULL: none */
    int ahead_pass;
    bool gaps;       /* loads leave elements out between lanes */
    bool one_by_one; /* the last loop is not for vectors: it does little but read elements from all over */
    uint32_t inner;  /* kept loops that run inside of an outer iteration because the vector loop is short: bit set */
} mp_c_kernel;

/* A loop of a known number of steps that does not fill its last vector is printed as two: whole vectors, and one that ends where the loop
** ends and does some elements twice, which compilers would else do one by one. Storing twice is harmless; sums leave out what they have. */
typedef struct {
    int64_t whole; /* steps of the first loop, all if there is no second */
    int64_t again; /* where the second one begins */
    int n;         /* loops */
} mp_c_parts;

const char *mp_c_type(const mp_c_kernel *k, mp_kid kid);
/* Is the value one of the kept loops only? */
bool mp_c_of_row(const mp_c_kernel *k, mp_kid kid);
/* The vector loop's bit; 0 if there is none. */
uint32_t mp_c_vector_bit(const mp_c_kernel *k);

void mp_c_open_loop(mp_c_kernel *k, uint32_t loop);
void mp_c_close(mp_c_kernel *k);
/* The vector loop of a tile, or of a part of it. */
void mp_c_open_lanes(mp_c_kernel *k, const char *begin, const char *end);

/* Is it a reduction of pass `pass`? A store of that pass? One of the kept loops only, after all passes? */
bool mp_c_reduced_in(const mp_c_kernel *k, mp_kid kid, int pass);
bool mp_c_stored_in(const mp_c_kernel *k, const mp_kstore *store, int pass);
bool mp_c_stored_at_row(const mp_c_kernel *k, const mp_kstore *store);
/* Mark what pass `pass` computes. Returns whether it does anything. */
bool mp_c_need_pass(mp_c_kernel *k, int pass);
/* Which stores it has, [n_stores] in the pool. */
bool *mp_c_pass_stores(const mp_c_kernel *k, int pass);
void mp_c_print_pass_stores(mp_c_kernel *k, int pass);

mp_c_parts mp_c_split(const mp_c_kernel *k, int64_t extent);

/* Parts of the vector loop, [begin, end) each, between whose ends no condition turns that says on which side of a number its variable is;
** cut again as by mp_c_split. Expects what is needed to be marked. Returns how many there are. */
#define MP_C_MOST_CUTS 6
#define MP_C_MOST_PARTS (2 * (MP_C_MOST_CUTS + 1))
int mp_c_find_parts(const mp_c_kernel *k, int64_t (*part)[2]);
/* Set p.known, and p.deps with what follows from it, for such a part. The caller restores them. */
void mp_c_know_part(mp_c_kernel *k, int64_t begin, int64_t end);

/* Define everything of the kept loops that is known after `level` passes. */
void mp_c_print_row_values(mp_c_kernel *k, int level);

void mp_c_print_rows(mp_c_kernel *k);
void mp_c_print_tiles(mp_c_kernel *k);

#endif
