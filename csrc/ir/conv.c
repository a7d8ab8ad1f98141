/* Convolution: geometry, and how the work is divided. */
#include "ir/conv.h"
#include "ir/kernel_ir.h"

#include <string.h>

#define VECTOR 16          /* lanes of the widest vector unit; no harm with shorter ones */
#define MANY_POSITIONS 128 /* from which on each image has panels of its own */
#define PANEL 384
#define PANEL_DEPTHWISE 1536
#define SCRATCH (1 << 19)    /* floats that an input panel may take */
#define WINOGRAD_TILES 64    /* of a panel, if the transformed weight of a block is made for it */
#define WINOGRAD_ROOM 120000 /* floats of transformed input that a thread makes for itself */
#define WINOGRAD_CHUNK 64    /* input channels whose transformed weight stays in cache */
#define PLAIN 64             /* positions */
#define BLOCK 24             /* output channels: a multiple of what the tiles take */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t round_up(int64_t n) { return (n + VECTOR - 1) / VECTOR * VECTOR; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* -- Geometry ------------------------------------------------------------------------------------------------------ */

/* Do the last dims, from `from` on, lie in row-major order without gaps? */
static bool dense(const mp_meta *meta, int from)
{
    int64_t step = 1;
    for (int d = meta->ndim; d-- > from;) {
        if (meta->size[d] > 1 && meta->stride[d] != step) return false;
        step *= meta->size[d];
    }
    return true;
}

/* The last one or two numbers of a list (of one: for both) as rows and columns. With one dim of space, rows are `single`. */
static bool pair(const mp_arg *arg, int space, int64_t single, int64_t *rows, int64_t *columns)
{
    if (arg->kind != MP_ARG_LIST || arg->list.n == 0 || arg->list.n > 2) return false;
    for (uint32_t i = 0; i < arg->list.n; i++)
        if (arg->list.items[i].kind != MP_ARG_INT) return false;
    *columns = arg->list.items[arg->list.n - 1].i;
    *rows = space == 1 ? single : arg->list.items[0].i;
    return true;
}

static bool read_sizes(const mp_graph *graph, const mp_gnode *node, bool transposed, mp_conv *out)
{
    const mp_meta *x = &graph->metas[node->args[0].value], *w = &graph->metas[node->args[1].value];
    const mp_meta *y = &graph->metas[node->first];
    int space = x->ndim - 2;
    if ((space != 1 && space != 2) || w->ndim != x->ndim || y->ndim != x->ndim) return false;
    if (x->dtype != MP_F32 || w->dtype != MP_F32 || y->dtype != MP_F32 || x->device != 0) return false;
    if (!dense(x, 2) || !dense(w, 0) || !dense(y, 0)) return false;
    int last = x->ndim - 1;
    out->n = x->size[0], out->ci = x->size[1], out->co = w->size[transposed];
    out->h = space == 1 ? 1 : x->size[2], out->w = x->size[last];
    out->kh = space == 1 ? 1 : w->size[2], out->kw = w->size[last];
    out->oh = space == 1 ? 1 : y->size[2], out->ow = y->size[last];
    out->x_image = x->stride[0], out->x_channel = x->stride[1];
    return out->n > 0 && out->ci > 0 && out->co > 0 && y->size[0] == out->n && y->size[1] == out->co;
}

/* -- Division ------------------------------------------------------------------------------------------------------ */

/* Floats in which COLUMNS sums a panel of so many positions. */
static int64_t columns_scratch(const mp_conv *c, int64_t panel)
{
    int64_t positions = c->oh * c->ow, each = c->ci * c->kh * c->kw, wide = round_up(panel);
    int64_t images = c->merged ? min64(c->n, panel / positions + 2) : 1; /* planes with zeros around */
    int64_t rows = min64(panel / c->ow + 2, c->oh) * c->sh + c->kh * c->dh;
    int64_t plane = rows * (c->ow + (c->kw - 1) * c->dw / c->sw) * c->sw;
    return each * wide + images * plane + 12 * wide + 16 * VECTOR + 2 * each; /* the last ones for single positions */
}

static void divide(mp_conv *c)
{
    int64_t positions = c->oh * c->ow, taps = c->kh * c->kw;
    bool steps = c->sh != 1 || c->sw != 1;
    c->merged = positions < MANY_POSITIONS;
    if (taps == 1 && !steps && !c->ph && !c->pw && positions >= 2 * VECTOR) {
        c->form = MP_CONV_DIRECT;
        c->merged = 0;
    } else if (!steps && taps > 1 && taps <= MP_CONV_TAPS && !c->merged) {
        c->form = MP_CONV_SHIFTED;
    } else {
        c->form = MP_CONV_COLUMNS;
    }
    int64_t total = c->merged ? c->n * positions : positions;
    /* floats of an input panel: `each` for a position, and rows around it */
    int64_t each = c->form == MP_CONV_DIRECT ? 1 : c->ci * (c->form == MP_CONV_SHIFTED ? c->kw : taps);
    int64_t around = c->form == MP_CONV_SHIFTED ? ((c->kh - 1) * c->dh + 2) * c->ow : 0;
    int64_t most = SCRATCH / each - around;
    c->panel = min64(PANEL, most < 4 * VECTOR ? 4 * VECTOR : most);
    if (c->panel < total) {
        int64_t n = ceil_div(total, c->panel); /* panels of about one size, in whole pairs of vectors */
        c->panel = ceil_div(ceil_div(total, n), 2 * VECTOR) * 2 * VECTOR;
    }
    c->panel = min64(c->panel, total);
    c->n_panels = ceil_div(total, c->panel);
    int64_t wide = round_up(c->panel);
    if (c->form == MP_CONV_DIRECT) each = 0;
    c->scratch = c->form == MP_CONV_COLUMNS ? columns_scratch(c, c->panel)
                                            : each * (wide + around) + 12 * wide + 16 * VECTOR + 2 * c->ci * taps;
}

static void divide_transposed(mp_conv *c)
{
    c->form = MP_CONV_TRANSPOSED;
    c->panel = min64(c->h, ceil_div(PANEL, c->w));
    c->n_panels = ceil_div(c->h, c->panel);
    c->block = min64(c->co, BLOCK / 2);
    c->n_blocks = ceil_div(c->co, c->block);
    c->scratch = 12 * (round_up(c->panel * c->w) + VECTOR) + 3 * 4 * c->panel * c->w + 8 * VECTOR;
}

/* Is it of 2 x 2 in steps of 2, with nothing around, and of images that fill two vectors? */
static bool transposed_covered(const mp_conv *c, const mp_arg *output_padding)
{
    int64_t y, x;
    if (!pair(output_padding, 2, 0, &y, &x) || y || x || c->ph || c->pw) return false;
    return c->kh == 2 && c->kw == 2 && c->sh == 2 && c->sw == 2 && c->dh * c->dw == 1 && c->oh == 2 * c->h &&
           c->ow == 2 * c->w && c->h * c->w >= 2 * VECTOR;
}

static void divide_depthwise(mp_conv *c)
{
    int64_t most = ceil_div(PANEL_DEPTHWISE, c->ow), rows = c->oh; /* panels of whole rows */
    c->form = MP_CONV_DEPTHWISE;
    if (rows > most) rows = ceil_div(rows, ceil_div(rows, most));
    c->panel = rows * c->ow;
    c->n_panels = ceil_div(c->oh, rows);
    c->tile_channels = min64(c->block, ceil_div(PANEL_DEPTHWISE, c->panel));
    int64_t padded = ((rows - 1) * c->sh + (c->kh - 1) * c->dh + 1) * (c->ow + (c->kw - 1) * c->dw / c->sw) * c->sw;
    c->scratch = c->tile_channels * (c->panel + VECTOR) + padded + 4 * VECTOR;
}

static void divide_winograd(mp_conv *c, int64_t tile)
{
    int64_t parts = (tile + 2) * (tile + 2);
    c->form = MP_CONV_WINOGRAD;
    c->tile = tile, c->tiles_y = ceil_div(c->oh, tile), c->tiles_x = ceil_div(c->ow, tile);
    int64_t rows = c->n * c->tiles_y;
    c->block = MP_CONV_GROUP;
    c->n_blocks = ceil_div(c->co, c->block);
    c->u_first = rows * c->tiles_x > c->co; /* the smaller one of the two is there as a whole */
    int64_t most = c->u_first ? WINOGRAD_ROOM / (parts * c->ci) : WINOGRAD_TILES;
    c->panel = min64(min64(most, WINOGRAD_TILES) / c->tiles_x, rows);
    if (c->panel < 1) c->panel = 1;
    c->n_panels = ceil_div(rows, c->panel);
    c->panel = ceil_div(rows, c->n_panels); /* of about one size */
    c->n_panels = ceil_div(rows, c->panel);
    c->chunk = c->u_first || c->n_panels > 1 ? c->ci : min64(c->ci, WINOGRAD_CHUNK);
    /* Rows and steps that are no multiples of a page: what is read together lies in different sets of a cache. */
    int64_t tiles = c->panel * c->tiles_x;
    c->v_row = round_up(c->ci) + VECTOR;
    c->v_step = tiles * c->v_row + VECTOR;
    c->u_step = c->chunk * MP_CONV_GROUP + VECTOR;
    c->m_step = tiles * MP_CONV_GROUP + VECTOR;
    c->n_prepare = c->u_first ? c->n_blocks : c->n_panels * ceil_div(c->ci, MP_CONV_PREPARED);
    c->workspace = parts * (c->u_first ? c->n_blocks * c->u_step : c->n_panels * c->v_step);
    c->plain = min64(PLAIN, c->oh * c->ow);
    c->plain_scratch = columns_scratch(c, c->plain);
    int64_t sums = 2 * VECTOR * round_up(c->panel * tile * c->ow);
    int64_t gathered = (tile + 2) * (c->tiles_x * tile + 2) * VECTOR,
            finished = parts * c->m_step + sums + c->plain_scratch;
    if (c->turned) finished += MP_CONV_GROUP * c->ci * 9; /* a copy of some weights */
    c->scratch = parts * (c->u_first ? c->v_step : c->u_step) + (gathered > finished ? gathered : finished);
}

bool mp_conv_describe(const mp_graph *graph, const mp_gnode *node, mp_conv *out)
{
    memset(out, 0, sizeof *out);
    if (!node->form || node->n_args != 9) return false;
    bool depthwise = strcmp(node->form, "depthwise") == 0;
    int64_t winograd = strcmp(node->form, "winograd") == 0 ? 4 : strcmp(node->form, "winograd2") == 0 ? 2 : 0;
    if (!depthwise && !winograd && strcmp(node->form, "direct") != 0) return false;
    const mp_arg *args = node->args, *transposed = &args[6], *groups = &args[8];
    if (args[0].kind != MP_ARG_VALUE || args[1].kind != MP_ARG_VALUE) return false;
    if (args[2].kind == MP_ARG_VALUE) {
        const mp_meta *bias = &graph->metas[args[2].value];
        if (bias->dtype != MP_F32 || bias->ndim != 1) return false;
    } else if (args[2].kind != MP_ARG_NONE) {
        return false;
    }
    bool turned = transposed->i != 0;
    if (groups->kind != MP_ARG_INT || !read_sizes(graph, node, turned, out)) return false;
    int64_t channels = graph->metas[args[1].value].size[!turned]; /* of the weight */
    if (depthwise ? channels != 1 || groups->i != out->ci || out->co != out->ci : channels != out->ci || groups->i != 1)
        return false;
    int space = graph->metas[args[0].value].ndim - 2;
    if (!pair(&args[3], space, 1, &out->sh, &out->sw) || !pair(&args[4], space, 0, &out->ph, &out->pw) ||
        !pair(&args[5], space, 1, &out->dh, &out->dw))
        return false;
    if (out->sh < 1 || out->sw < 1 || out->ph < 0 || out->pw < 0 || out->dh < 1 || out->dw < 1) return false;
    if (turned && out->sh * out->sw * out->dh * out->dw == 1) {
        /* the same as one that is not transposed, but for the order of weights */
        out->turned = 1;
        out->ph = out->kh - 1 - out->ph, out->pw = out->kw - 1 - out->pw;
        if (out->ph < 0 || out->pw < 0 || depthwise || (!winograd && out->kh * out->kw > 1)) return false;
    } else if (turned) {
        if (depthwise || winograd || space != 2 || !transposed_covered(out, &args[7])) return false;
        divide_transposed(out);
        return true;
    }
    if (out->oh != (out->h + 2 * out->ph - out->dh * (out->kh - 1) - 1) / out->sh + 1) return false;
    if (out->ow != (out->w + 2 * out->pw - out->dw * (out->kw - 1) - 1) / out->sw + 1) return false;
    if (depthwise && out->kh * out->kw > MP_CONV_TAPS) return false;
    bool three = out->kh == 3 && out->kw == 3;
    if (winograd && !(three && out->sh * out->sw * out->dh * out->dw == 1)) return false;
    out->block = min64(BLOCK, out->co);
    out->n_blocks = ceil_div(out->co, out->block);
    if (depthwise)
        divide_depthwise(out);
    else if (winograd)
        divide_winograd(out, winograd);
    else
        divide(out);
    return true;
}

void mp_conv_dump(const mp_conv *c, mp_text *text)
{
    static const char *const forms[] = {"direct", "shifted", "columns", "winograd", "transposed", "depthwise"};
    mp_text_add(text,
                "  convolution %lldx%lldx%lldx%lld with %lldx%lldx%lldx%lld, %s: panels of %lld, blocks of %lld\n",
                (long long)c->n, (long long)c->ci, (long long)c->h, (long long)c->w, (long long)c->co, (long long)c->ci,
                (long long)c->kh, (long long)c->kw, forms[c->form], (long long)c->panel, (long long)c->block);
}
