/* Convolution: what a kernel must know of one, and how its work is divided.
**
** The numbers are read by the library of codegen/conv_library.c and its neighbours, whose text declares the same structure from the same list.
*/
#ifndef MP_IR_CONV_H
#define MP_IR_CONV_H
#include "ir/graph.h"
#include "ir/pool.h"

/* n images of ci channels, h x w, at x + x_offset; co x ci x kh x kw weights at w + w_offset
** (`turned`: ci x co, and taps from the last to the first); n x co x oh x ow sums. Strides s,
** padding p, dilation d for rows and columns. Work item i computes channel block i % n_blocks (of `block`) of panel i / n_blocks
** (of `panel` output positions): panels run over one image after the other or, `merged`, over all positions of all images. WINOGRAD:
** panels are of `panel` rows of tiles of `tile` x `tile` sums, and n_prepare items come before the others, which write the workspace
** that all of those read: the transformed weight (u_first) or input. Steps and rows are floats from one part to the next and from
** one tile to the next. A weight is transformed `chunk` input channels at a time. What has inf or nan is summed without transforms,
** `plain` positions at a time in plain_scratch floats. `scratch` and `workspace` are floats: of each thread, and of the call. */
/* clang-format off */
#define MP_CONV_FIELDS(F) \
    F(n) F(ci) F(h) F(w) F(co) F(oh) F(ow) F(kh) F(kw) F(sh) F(sw) F(ph) F(pw) F(dh) F(dw) \
    F(x_offset) F(x_image) F(x_channel) F(w_offset) \
    F(form) F(turned) F(merged) F(panel) F(block) F(n_panels) F(n_blocks) F(tile_channels) F(scratch) \
    F(tile) F(tiles_y) F(tiles_x) F(v_row) F(v_step) F(u_step) F(m_step) F(u_first) F(chunk) F(n_prepare) F(workspace) \
    F(plain) F(plain_scratch)
/* clang-format on */

#define MP_CONV_GROUP 32    /* output channels of a block of WINOGRAD */
#define MP_CONV_PREPARED 16 /* input channels of an item that transforms input */
#define MP_CONV_TAPS 64     /* elements of a weight's row of the forms that know them one by one */

typedef struct {
#define F(name) int64_t name;
    MP_CONV_FIELDS(F)
#undef F
} mp_conv;

/* How the input comes into the lanes. */
enum {
    MP_CONV_DIRECT,   /* as it is: 1x1 */
    MP_CONV_SHIFTED,  /* once for each column of the weight, with zeros around; rows are offsets */
    MP_CONV_COLUMNS,  /* once for each element of the weight */
    MP_CONV_WINOGRAD, /* transformed, in tiles: see the library */
    MP_CONV_TRANSPOSED, /* as it is; 2 x 2 sums from each input (weights are ci x co x 2 x 2), panels are of rows of the input */
    MP_CONV_DEPTHWISE, /* with zeros around; each output channel has its own input channel */
};

/* Fill *out from the node. False if kernels do not cover it (types, layouts, groups) or node->form wants none. */
bool mp_conv_describe(const mp_graph *graph, const mp_gnode *node, mp_conv *out);

/* One line for people. */
void mp_conv_dump(const mp_conv *conv, mp_text *text);

#endif
