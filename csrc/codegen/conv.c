/* Convolutions: the printed part. */
#include "codegen/conv.h"

#include "codegen/print.h"
#include "ir/index.h"

#define GRAIN_WORK 200000 /* products worth a thread */

/* Is the only thing to do with a sum to store it where a row-major result has it? */
static bool plain(const mp_kir *kir)
{
    const mp_kstore *store = kir->stores;
    int64_t positions = kir->extent[2];
    return kir->n_stores == 1 && kir->n_buffers == 3 && kir->exprs[store->what].op == MP_K_TILE && store->buffer == 2 &&
           store->at.base == 0 && (kir->extent[0] == 1 || store->at.coef[0] == kir->extent[1] * positions) &&
           (kir->extent[1] == 1 || store->at.coef[1] == positions) && (positions == 1 || store->at.coef[2] == 1);
}

bool mp_codegen_conv(const mp_kir *kir, mp_text *out, mp_codegen_launch *launch)
{
    const mp_conv *conv = kir->conv;
    int64_t channels = conv->form == MP_CONV_DEPTHWISE ? 1 : conv->ci;
    if (conv->form == MP_CONV_TRANSPOSED) channels *= conv->w;
    if (conv->form == MP_CONV_WINOGRAD) channels *= conv->tile * conv->ow; /* panels are rows of tiles */
    int64_t work = conv->panel * conv->block * channels * conv->kh * conv->kw;
    bool all_images = conv->merged || conv->form == MP_CONV_WINOGRAD; /* in the panels */
    launch->extent = (all_images ? 1 : conv->n) * conv->n_panels * conv->n_blocks;
    launch->grain = work >= GRAIN_WORK ? 1 : GRAIN_WORK / (work > 0 ? work : 1);
    if (plain(kir)) return false;
    mp_printer p;
    mp_print_init(&p, kir, &mp_target_c, out);
    mp_text_add(out,
                "\nvoid %s(void *const *restrict buffers, const float *restrict tile, int64_t row, int64_t i0,\n"
                "    int64_t c0, int64_t c1, int64_t q0, int64_t q1)\n{\n",
                kir->name);
    p.indent = 1;
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        mp_print_line(&p, "%s%s *restrict p%u = buffers[%u];", kir->buffers[i].written ? "" : "const ",
                      mp_target_c.memory[kir->buffers[i].dtype], i, i);
    mp_print_need_none(&p);
    for (uint32_t i = 0; i < kir->n_stores; i++) mp_print_need(&p, kir->stores[i].what);
    mp_print_needed(&p, 6, 0);
    mp_print_line(&p, "for (int64_t i1 = c0; i1 < c1; i1++, tile += row) {");
    p.indent++;
    mp_print_needed(&p, 6, 2);
    mp_print_line(&p, "#pragma omp simd");
    mp_print_line(&p, "for (int64_t i2 = q0; i2 < q1; i2++) {");
    p.indent++;
    mp_print_needed(&p, 4, 4);
    for (uint32_t i = 0; i < kir->n_stores; i++) mp_print_store(&p, &kir->stores[i]);
    mp_text_add(out, "        }\n    }\n}\n");
    return true;
}

void mp_codegen_conv_library(mp_text *out)
{
    mp_text_add(out, "%s", MP_CODEGEN_SECTIONS "typedef __INT64_TYPE__ int64_t;\ntypedef struct {\n");
#define F(name) mp_text_add(out, "    int64_t %s;\n", #name);
    MP_CONV_FIELDS(F)
#undef F
    mp_text_add(out,
                "} mp_conv;\nenum { DIRECT = %d, SHIFTED = %d, COLUMNS = %d, WINOGRAD = %d, TRANSPOSED = %d, DEPTHWISE "
                "= %d, GROUP = %d, PREPARED = %d, MAX_TAPS = %d };\n",
                MP_CONV_DIRECT, MP_CONV_SHIFTED, MP_CONV_COLUMNS, MP_CONV_WINOGRAD, MP_CONV_TRANSPOSED,
                MP_CONV_DEPTHWISE, MP_CONV_GROUP, MP_CONV_PREPARED, MP_CONV_TAPS);
    mp_text_add(out, "%s%s%s", mp_codegen_conv_text, mp_codegen_conv_winograd, mp_codegen_conv_entry);
}
