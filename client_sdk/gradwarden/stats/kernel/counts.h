/* What is counted of a block once its extremes are known. */
#ifndef GRADWARDEN_COUNTS_H
#define GRADWARDEN_COUNTS_H

#include "kernel.h"
#include "vector.h"

#define INLINE static inline __attribute__((always_inline))

/* Magnitudes at which a type's values become something else. */
typedef struct {
    int64_t tiny, inf;
    int64_t edge[BINS]; /* of bin k; the first is not used */
    int64_t safe_low, safe_high; /* between them squares sum in float32 without loss */
} scale;

#define FLOAT_EDGE(k) ((int64_t)(85 + 4 * (k)) << 23)
#define BFLOAT_EDGE(k) ((int64_t)(85 + 4 * (k)) << 7)
#define DOUBLE_EDGE(k) ((int64_t)(981 + 4 * (k)) << 52)
#define HALF_EDGE(k) ((int64_t)(4 * (k)-27) << 10)
#define EDGES(at)                                                                            \
    {0,     at(1), at(2),  at(3),  at(4),  at(5),  at(6),  at(7),                            \
     at(8), at(9), at(10), at(11), at(12), at(13), at(14), at(15)}

static const scale SCALES[] = {
    [FLOAT32] = {0x322bcc77, 0x7f800000, EDGES(FLOAT_EDGE), 81 << 23, 185 << 23},
    [BFLOAT16] = {0x322c, 0x7f80, EDGES(BFLOAT_EDGE), 81 << 7, 185 << 7},
    /* Edges below the smallest subnormal hold every value but zero; no value reaches the last. */
    [FLOAT16] = {1, 0x7c00,
                 {0, 1, 1, 1, 1, 4, 64, HALF_EDGE(7), HALF_EDGE(8), HALF_EDGE(9), HALF_EDGE(10),
                  HALF_EDGE(11), HALF_EDGE(12), HALF_EDGE(13), HALF_EDGE(14), 0x7c00},
                 0, 0x7c00},
    [FLOAT64] = {0x3e45798ee2308c3a, 0x7ffLL << 52, EDGES(DOUBLE_EDGE), 0, 0x7ffLL << 52},
};

static inline float sum_floats(vf v)
{
    float a[BYTES / 4];
    memcpy(a, &v, sizeof a);
    for (unsigned half = BYTES / 8; half; half /= 2)
        for (unsigned i = 0; i < half; i++)
            a[i] += a[i + half];
    return a[0];
}

static inline int64_t sum32(v32 v)
{
    int64_t s = 0;
    for (unsigned i = 0; i < BYTES / 4; i++)
        s += v[i];
    return s;
}

static inline int64_t sum_u32(u32 v)
{
    uint64_t s = 0;
    for (unsigned i = 0; i < BYTES / 4; i++)
        s += v[i];
    return (int64_t)s;
}

static inline int64_t sum64(v64 v)
{
    uint64_t s = 0;
    for (unsigned i = 0; i < BYTES / 8; i++)
        s += (uint64_t)v[i];
    return (int64_t)s;
}

static inline int32_t max32(v32 v)
{
    int32_t a[BYTES / 4];
    memcpy(a, &v, sizeof a);
    for (unsigned half = BYTES / 8; half; half /= 2)
        for (unsigned i = 0; i < half; i++)
            a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
    return a[0];
}

static inline int32_t min32(v32 v) { return -max32(-v); }

/* Both 16-bit halves of each lane as lanes of 32 bits, the signed values' extremes. */
static inline int32_t max16(v16 v) { return max32(MAX32((v32)v >> 16, (v32)((u32)v << 16) >> 16)); }
static inline int32_t min16(v16 v) { return min32(MIN32((v32)v >> 16, (v32)((u32)v << 16) >> 16)); }

/* How many magnitudes of a block are at least each of four, lane by lane; `held` is a whole
 * number of vectors. The zeros that pad the last one are below each of the four. */
typedef void counter(const void *values, int held, const int64_t at_least[4], v64 found[4]);

#define COUNTER(name, lane, vector, prepare, widen)                                          \
    static void name(const void *values, int held, const int64_t at_least[4], v64 found[4])  \
    {                                                                                        \
        const vector zero = {0};                                                             \
        vector t0 = zero + (lane)(at_least[0] - 1), c0 = zero;                               \
        vector t1 = zero + (lane)(at_least[1] - 1), c1 = zero;                               \
        vector t2 = zero + (lane)(at_least[2] - 1), c2 = zero;                               \
        vector t3 = zero + (lane)(at_least[3] - 1), c3 = zero;                               \
        for (int i = 0; i < held; i += BYTES / (int)sizeof(lane)) {                          \
            const vector v = prepare((vector)load((const lane *)values + i));                \
            COUNT(c0, v, t0);                                                                \
            COUNT(c1, v, t1);                                                                \
            COUNT(c2, v, t2);                                                                \
            COUNT(c3, v, t3);                                                                \
        }                                                                                    \
        found[0] = widen(c0), found[1] = widen(c1);                                          \
        found[2] = widen(c2), found[3] = widen(c3);                                          \
    }

#define AS_IS(v) (v)
#define UNSIGNED32(v) ((v)&0x7fffffff)
#define UNSIGNED16(v) ((v)&0x7fff)
#define UNSIGNED64(v) ((v)&INT64_MAX)

/* Counts of lanes of 32 and of 16 bits as lanes of 64. */
static inline v64 widen32(v32 c) { return ((v64)c & 0xffffffff) + (v64)((u64)c >> 32); }
static inline v64 widen16(v16 c) { return widen32(((v32)c & 0xffff) + (v32)((u32)c >> 16)); }

COUNTER(count32, int32_t, v32, UNSIGNED32, widen32)
COUNTER(count16, int16_t, v16, UNSIGNED16, widen16)
COUNTER(count64, int64_t, v64, UNSIGNED64, AS_IS)
/* Over exponents less 128, a byte each. */
COUNTER(count8, int8_t, v8, AS_IS, SUM8)

/* The counts of a chunk while its blocks go by. */
typedef struct {
    v64 odd[4];   /* at least the smallest, tiny's end, Inf and NaN, in blocks that hold such */
    int64_t seen; /* values of those blocks */
    int64_t whole[BINS]; /* values of blocks by the lowest bin that they reach */
    v64 above[BINS];     /* values at least an edge, in blocks that it cuts */
    unsigned cut;        /* edges that cut any block, a bit each */
    int guess; /* the bin below the four edges tried while reading; -1: none */
} tally;

/* What a block's one reading told: its `n` values (`held` with the zeros that pad them), their
 * extremes, and where a byte holds the exponents that tell the bins, those. */
typedef struct {
    const void *values;
    const int8_t *codes;
    int n, held, coded;
    int64_t low, high;
} block;

/* The bin of a magnitude, without a branch that a processor could guess wrong. */
INLINE int bin(const scale *s, int fraction, int64_t magnitude)
{
    int k = 0;
    if (fraction) {
        k = ((int)(magnitude >> fraction) - 85) >> 2;
        return k < 0 ? 0 : k < BINS ? k : BINS - 1;
    }
    for (int i = 1; i < BINS; i++)
        k += magnitude >= s->edge[i];
    return k;
}

/* The counts that a block's extremes call for. `tried` are those of the guessed edges. */
INLINE void look(const scale *s, const block *b, counter *count, int fraction, int histogram,
                 const v8 tried[4], tally *t, part *out)
{
    v64 found[4];
    if ((uint64_t)b->high > out->top)
        out->top = (uint64_t)b->high;
    if (b->high >= s->inf || b->low < s->tiny) {
        const int64_t at_least[4] = {1, s->tiny, s->inf, s->inf + 1};
        count(b->values, b->held, at_least, found);
        for (int j = 0; j < 4; j++)
            t->odd[j] += found[j];
        t->seen += b->n;
    }
    if (!histogram)
        return;
    const int first = bin(s, fraction, b->low), last = bin(s, fraction, b->high);
    t->whole[first] += b->n;
    if (fraction && t->guess >= 0 && t->guess <= first && last <= t->guess + 4) {
        for (int j = 0; j < 4; j++) {
            const int k = t->guess + 1 + j, cuts = k > first && k <= last;
            t->above[k] += SUM8(tried[j]) & -(int64_t)cuts;
            t->cut |= (unsigned)cuts << k;
        }
        return;
    }
    for (int k = first + 1; k <= last; k += 4) {
        int64_t at_least[4];
        for (int j = 0; j < 4; j++)
            at_least[j] = s->edge[k + j < last ? k + j : last] >> fraction;
        if (fraction)
            for (int j = 0; j < 4; j++)
                at_least[j] -= 128;
        if (fraction)
            count8(b->codes, b->coded, at_least, found);
        else
            count(b->values, b->held, at_least, found);
        for (int j = 0; j < 4 && k + j <= last; j++) {
            t->above[k + j] += found[j];
            t->cut |= 1u << (k + j);
        }
    }
    if (last - first > 4)
        t->guess = -1;
    else if (t->guess < 0 || last > t->guess + 4)
        t->guess = last > 4 ? last - 4 : 0;
    else
        t->guess = first < BINS - 5 ? first : BINS - 5;
}

static inline void settle(const tally *t, int histogram, part *out)
{
    out->zero += t->seen - sum64(t->odd[0]);
    out->tiny += t->seen - sum64(t->odd[1]);
    out->nan += sum64(t->odd[3]);
    out->inf += sum64(t->odd[2]) - sum64(t->odd[3]);
    if (!histogram)
        return;
    int64_t whole = 0, beyond = 0;
    for (int k = BINS - 1; k >= 0; k--) {
        whole += t->whole[k];
        const int64_t reached = whole + (t->cut >> k & 1 ? sum64(t->above[k]) : 0);
        out->histogram[k] += reached - beyond;
        beyond = reached;
    }
}

#endif
