/* Turned loads: memory that runs along another loop than the vector loop, brought in by tiles that are transposed on the way.
**
** A kernel of pointwise operators whose stores run along the vector loop may load what runs along loop `loop`. Then an outer iteration
** is a tile of both loops: the loads' parts of it are first copied into arrays, rows of MP_TURN_LANES elements along the vector loop.
*/
#ifndef MP_CODEGEN_TURN_H
#define MP_CODEGEN_TURN_H
#include "codegen/print.h"

#define MP_TURN_LANES 64

typedef struct {
    int loop;           /* along which turned loads run; -1: none are */
    int64_t rows;       /* iterations of it in a tile */
    int64_t n_tiles;    /* of these tiles in the loop */
    const char **array; /* [n_exprs]: what a turned load reads instead of memory, or NULL */
} mp_turn;

/* Choose what is turned. Memory of the pool. */
mp_turn mp_turn_choose(const mp_kir *kir, mp_pool *pool);

/* Print the arrays, and their filling for the tile of rows [j0, j1) and lanes [c0, c1). */
void mp_turn_print_arrays(mp_printer *p, const mp_turn *turn);
void mp_turn_print_fill(mp_printer *p, const mp_turn *turn);

/* The functions that transpose, for the prelude. Static storage. */
extern const char mp_codegen_turn_text[];

#endif
