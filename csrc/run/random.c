/* torch's Mersenne twister by vectors (at::mt19937; M. Matsumoto, T. Nishimura: Mersenne Twister, ACM TOMACS 8, 1998). */
#include "run/random.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

enum { WORDS = 624, AHEAD = 397, BEHIND = WORDS - AHEAD, LANES = 16 };

/* at::mt19937_data_pod. Words are taken at `next`; when `left` would become 0 the state is made anew first. */
typedef struct {
    uint64_t seed;
    int32_t left;
    bool seeded;
    uint32_t next;
    uint32_t state[WORDS];
} engine;

/* What torch.Generator.get_state gives, as far as it matters. */
typedef struct {
    uint64_t seed;
    int32_t left, seeded;
    uint64_t next;
    uint64_t state[WORDS];
} saved_state;

/* c10::GeneratorImpl up to its device; the engine follows some words later. */
typedef struct {
    void *table;
    uint64_t references;
    pthread_mutex_t lock;
    int8_t device_type, device_index;
} generator_impl;

/* -- Words ------------------------------------------------------------------------------------------------------------ */

typedef uint32_t words16 __attribute__((vector_size(4 * LANES)));
typedef uint64_t wide8 __attribute__((vector_size(4 * LANES)));
typedef int64_t signed8 __attribute__((vector_size(4 * LANES)));
typedef int32_t bits8 __attribute__((vector_size(2 * LANES)));

#define TWIST(u, v) ((((u) & 0x80000000u) | ((v) & 0x7fffffffu)) >> 1 ^ (-((v) & 1u) & 0x9908b0dfu))
#define TEMPER(y)                                                                                                      \
    do {                                                                                                               \
        (y) ^= (y) >> 11;                                                                                              \
        (y) ^= (y) << 7 & 0x9d2c5680u;                                                                                 \
        (y) ^= (y) << 15 & 0xefc60000u;                                                                                \
        (y) ^= (y) >> 18;                                                                                              \
    } while (0)

/* state[j] from `from`[j], state[j] and state[j + 1] for n words; `from` is at least LANES words away. */
static inline __attribute__((always_inline)) void twist_run(uint32_t *state, const uint32_t *from, int n)
{
    int j = 0;
    for (; j + LANES <= n; j += LANES) {
        words16 u, v, w;
        memcpy(&u, state + j, sizeof u);
        memcpy(&v, state + j + 1, sizeof v);
        memcpy(&w, from + j, sizeof w);
        w ^= TWIST(u, v);
        memcpy(state + j, &w, sizeof w);
    }
    for (; j < n; j++) state[j] = from[j] ^ TWIST(state[j], state[j + 1]);
}

/* Make the state anew. As many words as there are can be taken from it: `left` is one more than torch ever shows. */
static inline __attribute__((always_inline)) void renew(engine *e)
{
    uint32_t *s = e->state;
    twist_run(s, s + AHEAD, BEHIND);
    twist_run(s + BEHIND, s, AHEAD - 1);
    s[WORDS - 1] = s[AHEAD - 1] ^ TWIST(s[WORDS - 1], s[0]);
    e->left = WORDS + 1;
    e->next = 0;
}

static inline __attribute__((always_inline)) uint32_t one_word(engine *e)
{
    if (e->left == 1) renew(e);
    uint32_t y = e->state[e->next++];
    e->left--;
    TEMPER(y);
    return y;
}

/* -- Noise ------------------------------------------------------------------------------------------------------------ */

/* An element is drawn from the lower 53 bits of two words, the first one above: below p is below `limit` = p * 2^53, rounded up. */
static inline __attribute__((always_inline)) float one(uint32_t first, uint32_t second, int64_t limit)
{ return (int64_t)((uint64_t)(first & 0x1fffffu) << 32 | second) < limit ? 1.0f : 0.0f; }

static inline __attribute__((always_inline)) void fill(engine *e, float *out, int64_t n, int64_t limit)
{
    while (n > 0) {
        if (e->left == 1) renew(e);
        int64_t have = (e->left - 1) / 2, take = have < n ? have : n, i = 0;
        const uint32_t *words = e->state + e->next;
        for (; i + LANES / 2 <= take; i += LANES / 2) {
            words16 y;
            memcpy(&y, words + 2 * i, sizeof y);
            TEMPER(y);
            wide8 pair;
            memcpy(&pair, &y, sizeof pair); /* the first word is the lower half */
            signed8 value = (signed8)((pair << 32 | pair >> 32) & 0x1fffffffffffffull);
            bits8 bits = __builtin_convertvector(value < limit, bits8) & 0x3f800000; /* 1.0f */
            memcpy(out + i, &bits, sizeof bits);
        }
        for (; i < take; i++) {
            uint32_t a = words[2 * i], b = words[2 * i + 1];
            TEMPER(a);
            TEMPER(b);
            out[i] = one(a, b, limit);
        }
        e->next += (uint32_t)(2 * take);
        e->left -= (int32_t)(2 * take);
        out += take;
        n -= take;
        if (n > 0 && e->left == 2) { /* the pair lies in two states */
            uint32_t a = one_word(e), b = one_word(e);
            *out++ = one(a, b, limit);
            n--;
        }
    }
}

#if defined(__x86_64__)
static __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void fill_512(engine *e, float *out, int64_t n,
                                                                                   int64_t limit)
{ fill(e, out, n, limit); }
static __attribute__((target("avx2"))) void fill_256(engine *e, float *out, int64_t n, int64_t limit)
{ fill(e, out, n, limit); }
#endif
static void fill_plain(engine *e, float *out, int64_t n, int64_t limit) { fill(e, out, n, limit); }

static void fill_locked(generator_impl *impl, size_t at, float *out, int64_t n, double p)
{
    engine *e = (engine *)((char *)impl + at);
    int64_t limit = (int64_t)ceil(p * 0x1p53);
    pthread_mutex_lock(&impl->lock);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        fill_512(e, out, n, limit);
    else if (__builtin_cpu_supports("avx2"))
        fill_256(e, out, n, limit);
    else
#endif
        fill_plain(e, out, n, limit);
    pthread_mutex_unlock(&impl->lock);
}

/* -- Finding the engine ----------------------------------------------------------------------------------------------- */

static bool same_state(const engine *e, const saved_state *saved)
{
    if (e->left != saved->left || e->seeded != (saved->seeded != 0) || e->next != saved->next) return false;
    for (int i = 0; i < WORDS; i++)
        if (e->state[i] != saved->state[i]) return false;
    return true;
}

/* The implementation behind a torch.Generator, borrowed, and where its engine lies; NULL where that is not as known. What is read lies in
** the object: the whole state is compared only where its seed is. */
static generator_impl *find(PyObject *generator, size_t *at)
{
#if !(defined(__linux__) && defined(__LP64__))
    return NULL;
#endif
    static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
    if (Py_TYPE(generator)->tp_basicsize < (Py_ssize_t)(sizeof(PyObject) + sizeof(void *))) return NULL;
    generator_impl *impl = *(generator_impl **)((char *)generator + sizeof(PyObject));
    PyObject *state = PyObject_CallMethod(generator, "get_state", NULL);
    generator_impl *found = NULL;
    void *data = NULL;
    int64_t size = 0;
    if (!state || !mp_tensor_exact(state) || mp_torch.get_data_ptr(mp_tensor_handle(state), &data) ||
        mp_torch.get_storage_size(mp_tensor_handle(state), &size) || size < (int64_t)sizeof(saved_state))
        goto done;
    if (!impl || memcmp(&impl->lock, &unlocked, sizeof unlocked) != 0 || impl->device_type != 0 ||
        impl->device_index != -1)
        goto done;
    const saved_state *saved = data;
    for (size_t offset = sizeof *impl; offset <= 160 && !found; offset += 8) {
        const engine *e = (const engine *)((char *)impl + offset);
        if (e->seed != saved->seed || !same_state(e, saved)) continue;
        *at = offset;
        found = impl;
    }
done:
    mp_error_clear();
    Py_XDECREF(state);
    return found;
}

static struct {
    bool asked, usable;
    generator_impl *impl; /* of torch's default generator, which is never freed */
    size_t at;
} default_;

bool mp_random_usable(void)
{
    if (default_.asked) return default_.usable;
    default_.asked = true;
    PyObject *answer = mp_call_imported("magpy.random_ops", "draws_as_known", "()");
    PyObject *generator = answer == Py_True ? mp_import("torch._C", "default_generator") : NULL;
    if (generator) default_.impl = find(generator, &default_.at);
    default_.usable = default_.impl != NULL;
    mp_error_clear();
    Py_XDECREF(answer);
    Py_XDECREF(generator);
    return default_.usable;
}

/* -- Doors ------------------------------------------------------------------------------------------------------------ */

static int destination(mp_handle out, float **data, int64_t *n)
{
    int64_t dim, *sizes;
    void *address;
    int error = mp_torch.get_data_ptr(out, &address);
    if (error || (error = mp_torch.get_dim(out, &dim)) || (error = mp_torch.get_sizes(out, &sizes))) return error;
    *data = address;
    *n = 1;
    for (int64_t i = 0; i < dim; i++) *n *= sizes[i];
    return 0;
}

int mp_random_bernoulli(mp_handle out, mp_handle like, double p)
{
    float *data;
    int64_t n;
    int error = destination(out, &data, &n);
    if (!error) fill_locked(default_.impl, default_.at, data, n, p);
    return error;
}

PyObject *mp_random_py_bernoulli(PyObject *module, PyObject *args)
{
    PyObject *generator, *tensor;
    double p;
    if (!PyArg_ParseTuple(args, "OOd:bernoulli", &generator, &tensor, &p) || mp_torch_load() < 0) return NULL;
    int32_t dtype = -1;
    if (!mp_tensor_exact(tensor) || mp_torch.get_dtype(mp_tensor_handle(tensor), &dtype) || dtype != 6 ||
        !(p >= 0 && p <= 1)) {
        PyErr_SetString(PyExc_TypeError, "bernoulli takes a generator, a tensor of float32 and a probability");
        return NULL;
    }
    size_t at;
    float *data;
    int64_t n;
    generator_impl *impl = find(generator, &at);
    if (!impl) Py_RETURN_FALSE;
    if (destination(mp_tensor_handle(tensor), &data, &n)) {
        mp_torch_raise();
        return NULL;
    }
    fill_locked(impl, at, data, n, p);
    Py_RETURN_TRUE;
}
