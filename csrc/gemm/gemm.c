/* Matrix products: choice of the form, blocks, and the loops around the tiles. */
#include "gemm/tiles.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GROUP 4    /* tiles whose results are put down together */
#define DEPTH 1024 /* k at a time: what the numbers of a group and a panel need must stay in the second level cache */
#define GRAIN (1 << 19) /* multiplications worth a thread */
#define MAX_LANES 16
#define MAX_WIDE 8
#define DIRECT 12 /* numbers */

static int cpu_bits(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) return 512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 256;
#endif
    return 128;
}

/* Bytes of a block of lanes that is walked over again and again: a part of the second level cache. */
static int64_t block_bytes(void)
{
    static int64_t bytes; /* every thread finds the same */
    if (!bytes) {
        int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
        bytes = cache >= 1 << 19 ? cache / 4 : 1 << 18;
    }
    return bytes;
}

static const mp_gemm_tiles *tiles_of(int bits)
{
#if defined(__x86_64__)
    if (bits == 512) return &mp_gemm_tiles_512;
    if (bits == 256) return &mp_gemm_tiles_256;
#endif
    return &mp_gemm_tiles_128;
}

/* -- Scratch memory of threads ---------------------------------------------------------------------------------------- */

typedef struct {
    void *memory[2];
    size_t bytes[2];
} scratch;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool have_key;

static void scratch_free(void *value)
{
    scratch *own = value;
    for (int i = 0; i < 2; i++) free(own->memory[i]);
    free(own);
}

static void make_key(void) { have_key = !pthread_key_create(&key, scratch_free); }

void *mp_gemm_scratch(int slot, size_t bytes)
{
    pthread_once(&once, make_key);
    if (!have_key) return NULL;
    scratch *own = pthread_getspecific(key);
    if (!own) {
        if (!(own = calloc(1, sizeof *own))) return NULL;
        if (pthread_setspecific(key, own)) {
            free(own);
            return NULL;
        }
    }
    if (own->bytes[slot] >= bytes && own->memory[slot]) return own->memory[slot];
    free(own->memory[slot]);
    bytes = (bytes + 4095) & ~(size_t)4095;
    own->memory[slot] = aligned_alloc(64, bytes ? bytes : 64);
    own->bytes[slot] = own->memory[slot] ? bytes : 0;
    return own->memory[slot];
}

/* -- Choosing --------------------------------------------------------------------------------------------------------- */

/* The two sides of a product: lanes x [n_lanes, k] and numbers y [n_numbers, k]. */
typedef struct {
    int64_t n_lanes, x_lane, x_k, n_numbers, y_j, y_k;
} sides;

static sides sides_of(const mp_gemm *g)
{
    if (g->form == MP_GEMM_ROWS) return (sides){g->m, g->a_row, g->a_col, g->n, g->b_col, g->b_row};
    return (sides){g->n, g->b_col, g->b_row, g->m, g->a_row, g->a_col};
}

static mp_gemm_form form_of(const mp_gemm *g, int lanes)
{
    if (g->packed) return MP_GEMM_COLUMNS;
    bool dots = g->a_col == 1 && g->b_row == 1;
    if (dots && g->m * 4 <= 3 * lanes && g->k >= 2 * lanes) return MP_GEMM_DOTS;
    if (g->b_row != 1 || g->b_col == 1) return MP_GEMM_COLUMNS; /* B is in lanes as it lies */
    /* what is copied and turned: A and C (which is turned in pieces), or B */
    return g->m * (g->k + 2 * g->n) <= g->n * g->k ? MP_GEMM_ROWS : MP_GEMM_COLUMNS;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
static int64_t rounded(int64_t n, int64_t to) { return pieces(n, to) * to; }

/* Few numbers do not pay for packing lanes that lie side by side: they are read along memory as far as there are registers. */
static bool is_direct(const mp_gemm *g, const sides *s)
{ return !g->packed && s->x_lane == 1 && s->n_numbers <= DIRECT; }

/* Are sizes and strides covered? Sets bits and *batches. */
static bool check(mp_gemm *g, int bits, int64_t *batches)
{
    const int64_t limit = (int64_t)1 << 31, strides = (int64_t)1 << 40;
    const int64_t given[] = {g->a_row, g->a_col, g->b_row, g->b_col, g->c_row};
    if (g->m < 0 || g->n < 0 || g->k < 0 || g->m > limit || g->n > limit || g->k > limit) return false;
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        if (given[i] < 0 || given[i] > strides) return false;
    if (g->n_batch < 0 || g->n_batch > MP_GEMM_MAX_BATCH) return false;
    *batches = 1;
    for (int i = 0; i < g->n_batch; i++) {
        if (g->batch[i] < 0 || __builtin_mul_overflow(*batches, g->batch[i], batches)) return false;
        if (g->a_batch[i] < 0 || g->b_batch[i] < 0 || g->c_batch[i] < 0) return false;
    }
    int cpu = cpu_bits();
    g->bits = bits && bits < cpu ? bits : cpu;
    return true;
}

int mp_gemm_prepare_packed(mp_gemm *g, int bits)
{
    int64_t batches;
    if (!check(g, bits, &batches)) return -1;
    int64_t width = 2 * tiles_of(g->bits)->lanes;
    g->form = MP_GEMM_COLUMNS;
    g->depth = pieces(g->k, most(pieces(g->k, DEPTH), 1));
    g->block = rounded(g->n, width);
    g->chunk = most(g->m, 1);
    g->blocks = g->chunks = 1;
    g->scratch = (size_t)(g->block * g->k) * sizeof(float);
    g->extent = batches;
    g->grain = 1;
    return 0;
}

int mp_gemm_prepare(mp_gemm *g, int bits)
{
    int64_t batches;
    if (!check(g, bits, &batches)) return -1;
    const mp_gemm_tiles *tiles = tiles_of(g->bits);
    g->form = form_of(g, tiles->lanes);
    int64_t per_task;
    g->scratch = 0;
    g->depth = g->k;
    if (g->form == MP_GEMM_DOTS) {
        g->block = most(g->m, 1);
        g->chunk = 16;
        g->blocks = g->m ? 1 : 0;
        g->chunks = pieces(g->n, g->chunk);
        per_task = g->m * g->chunk * g->k;
    } else {
        sides s = sides_of(g);
        int64_t width = 2 * tiles->lanes;
        g->depth = pieces(g->k, most(pieces(g->k, DEPTH), 1));
        g->block = width * least(most(block_bytes() / (most(g->depth, 1) * width * 4), 1), 8);
        if (is_direct(g, &s)) g->block = tiles->wide * tiles->lanes;
        g->block = least(g->block, rounded(s.n_lanes, width));
        g->blocks = g->block ? pieces(s.n_lanes, g->block) : 0;
        g->chunk = tiles->numbers;
        g->chunks = pieces(s.n_numbers, g->chunk);
        if (!g->packed) g->scratch = (size_t)(g->block * g->k) * sizeof(float);
        per_task = g->block * g->chunk * g->k;
    }
    if (__builtin_mul_overflow(batches, g->blocks * g->chunks, &g->extent)) return -1;
    g->grain = most(GRAIN / most(per_task, 1), 1);
    return 0;
}

/* -- Blocks ----------------------------------------------------------------------------------------------------------- */

/* One batch's matrices and the block of lanes in `packed`. */
typedef struct {
    const mp_gemm *g;
    const mp_gemm_tiles *tiles;
    sides s;
    const float *x, *y, *bias; /* x of the side in lanes */
    float *c;
    int64_t from;  /* COLUMNS: the row that y and c begin with */
    float *packed; /* [panel][k][width]: panel p starts at lane p * 2 * lanes */
    bool direct;
} block_state;

/* Width of the panel that starts at lane `lane` of `n`. */
static int panel_width(const mp_gemm_tiles *tiles, int64_t lane, int64_t n)
{ return n - lane > tiles->lanes ? 2 * tiles->lanes : tiles->lanes; }

static void pack_block(const block_state *b, int64_t first, int64_t last)
{
    int64_t width = 2 * b->tiles->lanes, lane = first;
    if (b->s.x_lane == 1) {
        int64_t panels = (last - first) / width;
        if (!b->direct) b->tiles->pack_adjacent(panels, b->g->k, b->x + lane, b->s.x_k, b->packed);
        lane += panels * width;
    }
    for (; lane < last; lane += width) {
        int own = panel_width(b->tiles, lane, last);
        int64_t n = least(own, last - lane);
        if (b->direct && n == own) continue; /* read where it lies */
        b->tiles->pack(n, b->g->k, b->x + lane * b->s.x_lane, b->s.x_lane, b->s.x_k,
                       b->packed + (lane - first) * b->g->k, own);
    }
}

/* The widest tile for the lanes from `lane` on, as an index of tiles->tile. */
static int tile_at(const block_state *b, int64_t lane, int64_t last)
{
    if (b->direct && last - lane >= b->tiles->wide * b->tiles->lanes) return 2;
    return last - lane > b->tiles->lanes;
}

static int64_t width_of(const mp_gemm_tiles *tiles, int tile)
{ return (tile == 2 ? tiles->wide : tile + 1) * tiles->lanes; }

/* Lanes [lane, last) by tile number `tile` against numbers [j, j + n), steps [k0, k0 + k). `first` is the block's. */
static void run_group(const block_state *b, int tile, int64_t first, int64_t lane, int64_t last, int64_t j, int64_t n,
                      int64_t k0, int64_t k)
{
    _Alignas(64) float out[GROUP * MP_GEMM_MOST_NUMBERS * 2 * MAX_LANES];
    _Static_assert(sizeof out >= sizeof(float) * DIRECT * MAX_WIDE * MAX_LANES, "room for wide tiles");
    const mp_gemm_tiles *tiles = b->tiles;
    int64_t width = width_of(tiles, tile), used = least(width, last - lane), x_step = width;
    const float *x = b->packed + (lane - first) * b->g->k + k0 * width;
    if (b->direct && used == width) {
        x = b->x + lane + k0 * b->s.x_k;
        x_step = b->s.x_k;
    }
    bool rows = b->g->form == MP_GEMM_ROWS, add = k0 > 0, whole = !rows && used == width;
    float *c = b->c + (rows ? lane * b->g->c_row + j : (j - b->from) * b->g->c_row + lane);
    const float *bias = b->bias && !add ? b->bias + (rows ? j : lane) : NULL;
    mp_gemm_tile t = {.k = k, .x = x, .x_step = x_step, .y_j = b->s.y_j, .y_k = b->s.y_k, .c = out, .c_row = width};
    if (whole) t.bias = bias, t.add = add, t.c = c, t.c_row = b->g->c_row;
    for (int64_t done = 0; done < n;) {
        int64_t numbers = least(n - done, tiles->numbers);
        while (!tiles->tile[tile][numbers]) numbers--;
        t.y = b->y + (j - b->from + done) * b->s.y_j + k0 * b->s.y_k;
        t.next = lane == first && j + done + numbers < b->s.n_numbers ? t.y + numbers * b->s.y_j : NULL;
        tiles->tile[tile][numbers](&t);
        t.c += numbers * t.c_row;
        done += numbers;
    }
    if (whole) return;
    if (rows)
        tiles->put_turned(out, (int)width, used, n, c, b->g->c_row, bias, add);
    else
        tiles->put(out, (int)width, n, used, c, b->g->c_row, bias, add);
}

/* All lanes of a block against numbers [start, end), as many at a time as stay in cache beside it. */
static void run_block(const block_state *b, int64_t block, int64_t start, int64_t end)
{
    const mp_gemm *g = b->g;
    int64_t first = block * g->block, last = least(first + g->block, b->s.n_lanes);
    int64_t group = GROUP * b->tiles->numbers, slab = end - start <= 5 * group ? 5 * group : 4 * group;
    for (; start < end; start += slab)
        for (int64_t k0 = 0; k0 < g->k || k0 == 0; k0 += most(g->depth, 1))
            for (int64_t j = start; j < least(start + slab, end); j += group)
                for (int64_t lane = first; lane < last;) {
                    int tile = tile_at(b, lane, last);
                    run_group(b, tile, first, lane, last, j, least(group, least(start + slab, end) - j), k0,
                              least(g->depth, g->k - k0));
                    lane += width_of(b->tiles, tile);
                }
}

static void run_dots(const block_state *b, int64_t start, int64_t end)
{
    const mp_gemm *g = b->g;
    float out[16];
    for (int64_t j = start; j < end; j += 4) {
        int64_t n = least(4, end - j);
        const float *y = b->y + j * g->b_col;
        int64_t b_col = n == 4 ? g->b_col : 0;
        for (int64_t i = 0; i < g->m; i += 4) {
            int64_t rows = least(4, g->m - i);
            for (int64_t at = 0; at < n; at += n == 4 ? 4 : 1) { /* at the edge one column at a time, four times over */
                b->tiles->dots(rows, g->k, b->x + i * g->a_row, g->a_row, y + at * g->b_col, b_col,
                               i == 0 && j + 8 <= g->n ? y + 4 * b_col : NULL, out);
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t col = at; col < (n == 4 ? 4 : at + 1); col++)
                        b->c[(i + r) * g->c_row + j + col] =
                            out[4 * r + col - at] + (b->bias ? b->bias[j + col] : 0.0f);
            }
        }
    }
}

/* Without memory to pack into. */
static void run_slowly(const block_state *b, int64_t block, int64_t start, int64_t end)
{
    const mp_gemm *g = b->g;
    bool rows = g->form == MP_GEMM_ROWS;
    int64_t first = block * g->block, last = least(first + g->block, b->s.n_lanes);
    for (int64_t lane = first; lane < last; lane++)
        for (int64_t j = start; j < end; j++) {
            float sum = 0;
            for (int64_t k = 0; k < g->k; k++)
                sum += b->x[lane * b->s.x_lane + k * b->s.x_k] * b->y[j * b->s.y_j + k * b->s.y_k];
            if (b->bias) sum += b->bias[rows ? j : lane];
            b->c[rows ? lane * g->c_row + j : j * g->c_row + lane] = sum;
        }
}

/* -- The door --------------------------------------------------------------------------------------------------------- */

static void go_to_batch(block_state *b, const mp_gemm_call *call, int64_t batch)
{
    const mp_gemm *g = call->gemm;
    const float *a = call->a, *right = call->b;
    b->c = call->c;
    int64_t a_offset = 0, b_offset = 0, c_offset = 0;
    for (int d = g->n_batch; d-- > 0; batch /= g->batch[d]) {
        int64_t i = batch % g->batch[d];
        a_offset += i * g->a_batch[d];
        b_offset += i * g->b_batch[d];
        c_offset += i * g->c_batch[d];
    }
    if (a) a += a_offset; /* a chain has no A or no C of its own */
    if (b->c) b->c += c_offset;
    right += b_offset;
    bool columns = g->form == MP_GEMM_COLUMNS;
    b->x = columns ? right : a;
    b->y = columns ? a : right;
}

void mp_gemm_run(const mp_gemm_call *call, int64_t begin, int64_t end)
{
    const mp_gemm *g = call->gemm;
    block_state b = {.g = g, .tiles = tiles_of(g->bits), .s = sides_of(g), .bias = call->bias};
    if (g->form != MP_GEMM_DOTS) {
        b.direct = is_direct(g, &b.s);
        if (!g->packed) b.packed = mp_gemm_scratch(0, g->scratch);
    }
    int64_t batch = -1; /* that b is about */
    for (int64_t task = begin, n; task < end; task += n) {
        int64_t chunk = task % g->chunks, block = task / g->chunks;
        n = least(g->chunks - chunk, end - task); /* all of the block's chunks that are there */
        int64_t start = chunk * g->chunk, stop = start + n * g->chunk;
        if (block / g->blocks != batch) go_to_batch(&b, call, batch = block / g->blocks);
        if (g->form == MP_GEMM_DOTS) {
            run_dots(&b, start, least(stop, g->n));
        } else if (g->packed) {
            b.packed = (float *)b.x + block % g->blocks * g->block * g->k; /* only read */
            run_block(&b, block % g->blocks, start, least(stop, b.s.n_numbers));
        } else if (!b.packed) {
            run_slowly(&b, block % g->blocks, start, least(stop, b.s.n_numbers));
        } else {
            int64_t first = block % g->blocks * g->block;
            pack_block(&b, first, least(first + g->block, b.s.n_lanes));
            run_block(&b, block % g->blocks, start, least(stop, b.s.n_numbers));
        }
    }
}

int64_t mp_gemm_packed_size(int64_t k, int64_t n, int bits)
{ return k * rounded(n, 2 * tiles_of(bits && bits < cpu_bits() ? bits : cpu_bits())->lanes); }

void mp_gemm_pack(const mp_gemm_call *call, int64_t batch, float *packed)
{
    block_state b = {.g = call->gemm, .tiles = tiles_of(call->gemm->bits), .s = sides_of(call->gemm), .packed = packed};
    go_to_batch(&b, call, batch);
    pack_block(&b, 0, b.s.n_lanes);
}

void mp_gemm_rows(const mp_gemm_call *call, int64_t batch, const float *packed, int64_t row, int64_t rows,
                  const float *a, float *c)
{
    const mp_gemm *g = call->gemm;
    block_state b = {.g = g, .tiles = tiles_of(g->bits), .s = sides_of(g), .bias = call->bias};
    b.packed = (float *)packed; /* only read */
    b.from = row;
    go_to_batch(&b, call, batch);
    b.y = a ? a : b.y + row * g->a_row;
    b.c = c ? c : b.c + row * g->c_row;
    run_block(&b, 0, row, row + rows);
}
