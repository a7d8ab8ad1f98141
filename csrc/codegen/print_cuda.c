/* Kernel IR -> CUDA C: one block for each point of the kept loops if the innermost memory is reduced, else one thread.
**
** The text is compiled by NVRTC and includes nothing.
*/
#include "codegen/print.h"
#include "ir/index.h"

#define BLOCK 256

static bool row_space(const mp_printer *p, mp_kid kid) { return (p->deps[kid] & p->kir->reduced) == 0; }

static bool reduced_in(const mp_printer *p, mp_kid kid, int pass)
{
    const mp_kexpr *e = &p->kir->exprs[kid];
    return p->live[kid] && e->op == MP_K_REDUCE && e->level == pass + 1;
}

/* Is the store done by every iteration of the reduced loops, in this pass? */
static bool stored_in(const mp_printer *p, const mp_kstore *store, int pass)
{
    if (!row_space(p, store->what)) return p->kir->exprs[store->what].level == pass;
    return (mp_affine_deps(&store->at) & p->kir->reduced) && pass == p->kir->n_passes;
}

static void print_pass(mp_printer *p, int pass, bool block)
{
    const mp_kir *kir = p->kir;
    bool any = false;
    mp_print_need_none(p);
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (reduced_in(p, i, pass)) mp_print_need(p, kir->exprs[i].arg[0]), any = true;
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (stored_in(p, &kir->stores[i], pass)) mp_print_need(p, kir->stores[i].what), any = true;
    if (!any || !kir->reduced) return;
    int64_t n = 1;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (kir->reduced >> i & 1) n *= kir->extent[i];
    for (uint32_t i = 0; i < kir->n_exprs; i++)
        if (reduced_in(p, i, pass))
            mp_print_line(p, "%s a%u = %s;", p->target->type[kir->exprs[i].dtype], i,
                          mp_print_identity(p, &kir->exprs[i]));
    mp_print_line(p, "for (int64_t r = %s; r < %lld; r += %s) {", block ? "threadIdx.x" : "0", (long long)n,
                  block ? "blockDim.x" : "1");
    p->indent++;
    mp_print_decode(p, kir->reduced, "r");
    mp_print_needed(p, 0, 0);
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!reduced_in(p, i, pass)) continue;
        char x[64];
        mp_print_name(p, kir->exprs[i].arg[0], x);
        const char *a = mp_pool_printf(p->out->pool, "a%u", i);
        mp_print_line(p, "%s = %s;", a, mp_print_combine(p, &kir->exprs[i], a, x));
    }
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (stored_in(p, &kir->stores[i], pass)) mp_print_store(p, &kir->stores[i]);
    p->indent--;
    mp_print_line(p, "}");
    for (uint32_t i = 0; i < kir->n_exprs; i++) {
        if (!reduced_in(p, i, pass)) continue;
        const char *type = p->target->type[kir->exprs[i].dtype];
        if (block)
            mp_print_line(p, "const %s t%u = mp_block(a%u, [](%s x, %s y) -> %s { return %s; });", type, i, i, type,
                          type, type, mp_print_combine(p, &kir->exprs[i], "x", "y"));
        else
            mp_print_line(p, "const %s t%u = a%u;", type, i, i);
        p->at[i] = MP_AT_SCALAR;
    }
}

bool mp_codegen_cuda(const mp_kir *kir, mp_text *out, mp_codegen_launch *launch)
{
    mp_printer p;
    mp_print_init(&p, kir, &mp_target_cuda, out);
    bool block = kir->vector >= 0 && (kir->reduced >> kir->vector & 1);
    int64_t n = 1;
    for (uint32_t i = 0; i < kir->n_loops; i++)
        if (!(kir->reduced >> i & 1)) n *= kir->extent[i];
    launch->extent = block ? n : (n + BLOCK - 1) / BLOCK;
    launch->grain = BLOCK;
    if (launch->extent > INT32_MAX) return false;
    mp_codegen_cuda_prelude(out);
    mp_text_add(out, "\nextern \"C\" __global__ void __launch_bounds__(%d) %s(", BLOCK, kir->name);
    for (uint32_t i = 0; i < kir->n_buffers; i++)
        mp_text_add(out, "%s%s%s *__restrict__ p%u", i ? ", " : "", kir->buffers[i].written ? "" : "const ",
                    mp_target_cuda.memory[kir->buffers[i].dtype], i);
    if (kir->checks) mp_text_add(out, ", int *bad");
    mp_text_add(out, ")\n{\n");
    p.indent = 1;
    if (block) {
        mp_print_line(&p, "const int64_t o = blockIdx.x;");
    } else {
        mp_print_line(&p, "const int64_t o = (int64_t)blockIdx.x * %d + threadIdx.x;", BLOCK);
        mp_print_line(&p, "if (o >= %lld) return;", (long long)n);
    }
    mp_print_decode(&p, mp_kir_kept(kir), "o");
    for (int pass = 0; pass <= kir->n_passes; pass++) {
        mp_print_need_none(&p);
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (p.live[i] && row_space(&p, i) && kir->exprs[i].level == pass) mp_print_need(&p, i);
        mp_print_needed(&p, 0, 0);
        for (uint32_t i = 0; i < kir->n_exprs; i++)
            if (p.need[i]) p.at[i] = MP_AT_SCALAR;
        print_pass(&p, pass, block);
    }
    if (block) mp_print_line(&p, "if (threadIdx.x != 0) return;");
    for (uint32_t i = 0; i < kir->n_stores; i++)
        if (row_space(&p, kir->stores[i].what) && !stored_in(&p, &kir->stores[i], kir->n_passes))
            mp_print_store(&p, &kir->stores[i]);
    mp_text_add(out, "}\n");
    return true;
}
