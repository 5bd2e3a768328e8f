/* What Python calls: jobs over tensors, shared out to the workers that torch already has. */
#include "kernel.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_X86
#include <cpuid.h>
#endif

typedef void parallel(void (*work)(void *), void *shared, unsigned workers, unsigned flags);

typedef struct {
    const char *values;
    int64_t n;
    int kind;
    part found;
} job;

typedef struct {
    const variant *by;
    job *jobs;
    int64_t count;
    int histogram;
    atomic_int bad;
    _Alignas(64) atomic_llong next;
} task;

static const int64_t SIZE[] = {[FLOAT32] = 4, [BFLOAT16] = 2, [FLOAT16] = 2, [FLOAT64] = 8};

/* All ways that this processor can go, the best one last. */
static const variant *ways[3];
static int known;

static void learn(void)
{
    int n = 0;
    ways[n++] = &gradwarden_base;
#ifdef WITH_X86
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("avx2")) {
        ways[n++] = &gradwarden_avx2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            ways[n++] = &gradwarden_avx512;
    }
#endif
    known = n;
}

/* Python calls only the kernel whose calls it knows. */
int gradwarden_calls(void) { return CALLS; }

/* The name of a way, the best first; NULL beyond the last. To be called once before all else. */
const char *gradwarden_way(int i)
{
    if (!known)
        learn();
    return i >= 0 && i < known ? ways[known - 1 - i]->name : NULL;
}

static void measure_some(void *shared)
{
    task *const t = shared;
    for (;;) {
        const long long i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->count)
            return;
        job *const j = &t->jobs[i];
        part found = {0}; /* not in place: neighbours' results share cache lines */
        t->by->measure(j->values, j->n, j->kind, t->histogram, &found);
        j->found = found;
    }
}

static void search_some(void *shared)
{
    task *const t = shared;
    while (!atomic_load_explicit(&t->bad, memory_order_relaxed)) {
        const long long i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->count)
            return;
        const job *const j = &t->jobs[i];
        if (t->by->nonfinite(j->values, j->n, j->kind))
            atomic_store_explicit(&t->bad, 1, memory_order_relaxed);
    }
}

/* Fills in the jobs; false without memory. */
static int plan(task *t, const int64_t *values, const int64_t *sizes, const uint8_t *kinds,
                int64_t n, int64_t *bytes)
{
    t->count = 0, *bytes = 0;
    for (int64_t i = 0; i < n; i++) {
        t->count += (sizes[i] + CHUNK - 1) / CHUNK;
        *bytes += sizes[i] * SIZE[kinds[i]];
    }
    t->jobs = malloc(sizeof(job) * (size_t)(t->count ? t->count : 1));
    if (!t->jobs)
        return 0;
    job *j = t->jobs;
    for (int64_t i = 0; i < n; i++) {
        const char *p = (const char *)(intptr_t)values[i];
        for (int64_t left = sizes[i]; left > 0; left -= CHUNK, j++) {
            j->values = p;
            j->n = left < CHUNK ? left : CHUNK;
            j->kind = kinds[i];
            p += CHUNK * SIZE[kinds[i]];
        }
    }
    return 1;
}

/* Less than this is read faster than a worker wakes, or comes to its turn on a busy machine. */
#define ALONE (4 << 20)

static void run(void (*work)(void *), task *t, int64_t bytes, int workers, parallel *spread)
{
    if (workers > t->count)
        workers = (int)t->count;
    if (spread && workers > 1 && bytes >= ALONE)
        spread(work, t, (unsigned)workers, 0);
    else
        work(t);
}

static double magnitude(uint64_t bits, int kind)
{
    if (kind == FLOAT64) {
        double d;
        memcpy(&d, &bits, sizeof d);
        return d;
    }
    if (kind == FLOAT16)
        return bits < 0x400 ? ldexp((double)bits, -24)
                            : ldexp((double)(0x400 + (bits & 0x3ff)), (int)(bits >> 10) - 25);
    const uint32_t word = (uint32_t)(kind == BFLOAT16 ? bits << 16 : bits);
    float f;
    memcpy(&f, &word, sizeof f);
    return f;
}

/* The norm of float64 values whose squares leave its range, or come too close to zero. */
static double extreme(const variant *by, const double *values, int64_t n, double peak)
{
    const double factor = peak > 1 ? 0x1p-560 : 0x1p+500;
    return sqrt(by->scaled(values, n, factor)) / factor;
}

static void put(int64_t *row, int at, double value)
{
    memcpy(row + at, &value, sizeof value);
}

static void write_row(const variant *by, const part *p, const void *values, int64_t n, int kind,
                      int histogram, int64_t *row)
{
    double norm, peak;
    if (p->nan || p->inf) {
        norm = peak = p->nan ? NAN : INFINITY;
    } else {
        peak = magnitude(p->top, kind);
        norm = sqrt(p->squares);
        if (kind == FLOAT64 && (peak > 0x1p+480 || (peak > 0 && peak < 0x1p-480)))
            norm = extreme(by, values, n, peak);
    }
    put(row, 0, norm);
    put(row, 1, peak);
    put(row, 2, (double)p->nan);
    put(row, 3, (double)p->inf);
    put(row, 4, (double)p->zero);
    put(row, 5, (double)p->tiny);
    for (int k = 0; k < BINS; k++) {
        const int64_t others = k == 0 ? p->zero : k == BINS - 1 ? p->nan + p->inf : 0;
        put(row, 6 + k, histogram ? (double)(p->histogram[k] - others) : NAN);
    }
    memcpy(row + FLOATS, &p->checksum, sizeof p->checksum);
}

/* Writes [n, 23] words: addresses, element counts and kinds of n tensors in, rows out.
 *
 * `way` is counted from the best (0). `spread` is the OpenMP runtime's GOMP_parallel, or NULL.
 * Parts are joined in the order of the tensors' memory, whoever measured them. Returns 0, or 1
 * without memory.
 */
int gradwarden_measure(const int64_t *values, const int64_t *sizes, const uint8_t *kinds,
                       int64_t n, int histogram, int way, int workers, parallel *spread,
                       int64_t *rows)
{
    task t = {.by = ways[known - 1 - way], .histogram = histogram};
    int64_t bytes;
    if (!plan(&t, values, sizes, kinds, n, &bytes))
        return 1;
    run(measure_some, &t, bytes, workers, spread);
    const job *j = t.jobs;
    for (int64_t i = 0; i < n; i++) {
        part whole = {0};
        for (int64_t left = sizes[i]; left > 0; left -= CHUNK, j++) {
            const part *p = &j->found;
            whole.squares += p->squares;
            whole.top = p->top > whole.top ? p->top : whole.top;
            whole.checksum += p->checksum;
            whole.nan += p->nan;
            whole.inf += p->inf;
            whole.zero += p->zero;
            whole.tiny += p->tiny;
            for (int k = 0; k < BINS; k++)
                whole.histogram[k] += p->histogram[k];
        }
        write_row(t.by, &whole, (const void *)(intptr_t)values[i], sizes[i], kinds[i], histogram,
                  rows + i * WORDS);
    }
    free(t.jobs);
    return 0;
}

/* Whether any value is NaN or Inf: 1 or 0, or -1 without memory. */
int gradwarden_nonfinite(const int64_t *values, const int64_t *sizes, const uint8_t *kinds,
                         int64_t n, int way, int workers, parallel *spread)
{
    task t = {.by = ways[known - 1 - way]};
    int64_t bytes;
    if (!plan(&t, values, sizes, kinds, n, &bytes))
        return -1;
    run(search_some, &t, bytes, workers, spread);
    free(t.jobs);
    return atomic_load(&t.bad);
}
