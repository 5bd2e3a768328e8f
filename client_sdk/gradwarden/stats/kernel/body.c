/* One pass over the values of a tensor, compiled once for each instruction set.
 *
 * A block of 2048 elements is read from memory once: sum of squares, extremes of the magnitudes
 * and checksum. The block now lies in the first-level cache, and the extremes tell which counts
 * must be taken at all: NaN and Inf if the largest magnitude says so, zeros and tiny values if
 * the smallest does, a histogram's edge if it lies between the two. The edges that cut one
 * block mostly cut the next, and are tried as it is read, while memory is waited for anyway.
 * Magnitudes are compared as integers, so neither rounding nor flushing of subnormals touches
 * a count.
 */
#include "counts.h"

/* 2048 elements with vectors of 32 bytes: a lane of 16 bits sees 128 values, one of 8 bits at
 * most 67 codes, so that neither overflows. */
#define BLOCK (64 * BYTES)

#define JOIN(a, b) a##b
#define NAMED(a, b) JOIN(a, b)
#define TEXT(a) #a
#define QUOTED(a) TEXT(a)

/* The lowest bytes of four vectors' lanes, or of two of half the width, less 128. */
INLINE void encode(int8_t *to, v16 a, v16 b, int guess, const v8 at[4], v8 tried[4])
{
    const v8 v = PACK16(a, b) ^ INT8_MIN;
    memcpy(to, &v, sizeof v);
    if (guess >= 0) {
        COUNT(tried[0], v, at[0]);
        COUNT(tried[1], v, at[1]);
        COUNT(tried[2], v, at[2]);
        COUNT(tried[3], v, at[3]);
    }
}

/* The four guessed edges as bytes to compare with. */
INLINE void aim(const scale *s, int fraction, int guess, v8 at[4], v8 tried[4])
{
    for (int j = 0; j < 4; j++) {
        tried[j] = (v8){0};
        at[j] = tried[j] + (int8_t)((s->edge[(guess < 0 ? 0 : guess) + 1 + j] >> fraction) - 129);
    }
}

/* Squares of values that float32 would lose. */
static double squares_of_floats(const float *f, int n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int i = 0; i < n; i++)
        s += (double)f[i] * f[i];
    return s;
}

static double squares_of_bfloats(const uint16_t *b, int n)
{
    float f[BLOCK];
    for (int i = 0; i < n; i++) {
        const uint32_t word = (uint32_t)b[i] << 16;
        memcpy(f + i, &word, sizeof word);
    }
    return squares_of_floats(f, n);
}

INLINE void measure32(const int32_t *p, int64_t n, int histogram, part *out)
{
    enum { LANES = BYTES / 4 };
    const scale *const s = &SCALES[FLOAT32];
    tally t = {.guess = -1};
    const v32 none = {0};
    u32 words0 = {0}, words1 = {0}; /* sums of the words modulo 2^32 */
    v32 upper0 = {0}, upper1 = {0}; /* and of their upper halves, which tell the rest */
    int32_t padded[BLOCK];
    int8_t codes[BLOCK + 3 * BYTES];
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int real = (int)(n - start < BLOCK ? n - start : BLOCK);
        const int held = (real + LANES - 1) / LANES * LANES;
        const int32_t *v = p + start;
        if (held != real) {
            memcpy(padded, v, (size_t)real * 4);
            memset(padded + real, 0, (size_t)(held - real) * 4);
            v = padded;
        }
        v8 at[4], tried[4];
        aim(s, 23, t.guess, at, tried);
        vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        v32 high0 = {0}, high1 = {0}, low0 = high0 + 0x7fffffff, low1 = low0;
        int i = 0;
        for (; i + 4 * LANES <= held; i += 4 * LANES) {
            v32 a = load(v + i), b = load(v + i + LANES);
            v32 c = load(v + i + 2 * LANES), d = load(v + i + 3 * LANES);
            s0 += (vf)a * (vf)a;
            s1 += (vf)b * (vf)b;
            s2 += (vf)c * (vf)c;
            s3 += (vf)d * (vf)d;
            words0 += (u32)a + (u32)c;
            words1 += (u32)b + (u32)d;
            upper0 += (a >> 16) + (c >> 16);
            upper1 += (b >> 16) + (d >> 16);
            a &= 0x7fffffff, b &= 0x7fffffff, c &= 0x7fffffff, d &= 0x7fffffff;
            high0 = MAX32(high0, MAX32(a, c));
            high1 = MAX32(high1, MAX32(b, d));
            low0 = MIN32(low0, MIN32(a, c));
            low1 = MIN32(low1, MIN32(b, d));
            if (histogram)
                encode(codes + i, PACK32(a >> 23, b >> 23), PACK32(c >> 23, d >> 23), t.guess, at,
                       tried);
        }
        int coded = i;
        for (; i < held; i += LANES) {
            v32 a = load(v + i);
            s0 += (vf)a * (vf)a;
            words0 += (u32)a;
            upper0 += a >> 16;
            a &= 0x7fffffff;
            high0 = MAX32(high0, a);
            low0 = MIN32(low0, a);
            if (histogram) {
                encode(codes + coded, PACK32(a >> 23, none), (v16)none, t.guess, at, tried);
                coded += BYTES;
            }
        }
        const int64_t high = max32(MAX32(high0, high1)), low = min32(MIN32(low0, low1));
        if (high >= s->safe_low && high < s->safe_high)
            out->squares += (double)sum_floats((s0 + s1) + (s2 + s3));
        else if (high && high < s->inf)
            out->squares += squares_of_floats((const float *)v, held);
        const block b = {v, codes, real, held, coded, low, high};
        look(s, &b, count32, 23, histogram, tried, &t, out);
    }
    settle(&t, histogram, out);
    const u32 lower = (words0 + words1) - ((u32)(upper0 + upper1) << 16);
    out->checksum += ((uint64_t)(sum32(upper0) + sum32(upper1)) << 16) + (uint64_t)sum_u32(lower);
}

/* bfloat16 and float16: lanes of 16 bits, squares in float32. */
INLINE void measure16(const int16_t *p, int64_t n, int kind, int histogram, part *out)
{
    enum { LANES = BYTES / 2 };
    const scale *const s = &SCALES[kind];
    tally t = {.guess = -1};
    v32 upper = {0};
    u32 lower = {0};
    int16_t padded[BLOCK];
    int8_t codes[BLOCK + BYTES];
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int real = (int)(n - start < BLOCK ? n - start : BLOCK);
        const int held = (real + LANES - 1) / LANES * LANES;
        const int16_t *v = p + start;
        if (held != real) {
            memcpy(padded, v, (size_t)real * 2);
            memset(padded + real, 0, (size_t)(held - real) * 2);
            v = padded;
        }
        v8 at[4], tried[4];
        aim(s, 7, t.guess, at, tried);
        vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        u16 words = {0};   /* sums modulo 2^16, */
        v16 uppers = {0};  /* and of the upper bytes */
        v16 high0 = {0}, high1 = {0}, low0 = high0 + 0x7fff, low1 = low0;
        int i = 0;
        for (; i + 2 * LANES <= held; i += 2 * LANES) {
            const v32 a = load(v + i), b = load(v + i + LANES);
            vf x, y, z, w;
            if (kind == FLOAT16) {
                HALVES(v + i, x, y);
                HALVES(v + i + LANES, z, w);
            } else {
                x = (vf)((u32)a << 16), y = (vf)(a & (int32_t)0xffff0000);
                z = (vf)((u32)b << 16), w = (vf)(b & (int32_t)0xffff0000);
            }
            s0 += x * x;
            s1 += y * y;
            s2 += z * z;
            s3 += w * w;
            words += (u16)a + (u16)b;
            uppers += ((v16)a >> 8) + ((v16)b >> 8);
            const v16 c = (v16)a & 0x7fff, d = (v16)b & 0x7fff;
            high0 = MAX16(high0, c);
            high1 = MAX16(high1, d);
            low0 = MIN16(low0, c);
            low1 = MIN16(low1, d);
            if (histogram && kind == BFLOAT16)
                encode(codes + i, c >> 7, d >> 7, t.guess, at, tried);
        }
        int coded = i;
        if (i < held) {
            const v32 a = load(v + i);
            vf x, y;
            if (kind == FLOAT16)
                HALVES(v + i, x, y);
            else
                x = (vf)((u32)a << 16), y = (vf)(a & (int32_t)0xffff0000);
            s0 += x * x;
            s1 += y * y;
            words += (u16)a;
            uppers += (v16)a >> 8;
            const v16 c = (v16)a & 0x7fff;
            high0 = MAX16(high0, c);
            low0 = MIN16(low0, c);
            if (histogram && kind == BFLOAT16)
                encode(codes + coded, c >> 7, c ^ c, t.guess, at, tried);
            coded += BYTES;
        }
        const u32 lowers = (u32)(words - ((u16)uppers << 8));
        lower += (lowers & 0xffff) + (lowers >> 16);
        upper += ((v32)uppers >> 16) + ((v32)((u32)uppers << 16) >> 16);
        const int64_t high = max16(MAX16(high0, high1)), low = min16(MIN16(low0, low1));
        if (high >= s->safe_low && high < s->safe_high)
            out->squares += (double)sum_floats((s0 + s1) + (s2 + s3));
        else if (high && high < s->inf)
            out->squares += squares_of_bfloats((const uint16_t *)v, held);
        const block b = {v, codes, real, held, coded, low, high};
        look(s, &b, count16, kind == BFLOAT16 ? 7 : 0, histogram, tried, &t, out);
    }
    settle(&t, histogram, out);
    out->checksum += ((uint64_t)sum32(upper) << 8) + (uint64_t)sum_u32(lower);
}

static void measure64(const int64_t *p, int64_t n, int histogram, part *out)
{
    enum { LANES = BYTES / 8 };
    const scale *const s = &SCALES[FLOAT64];
    tally t = {.guess = -1};
    v64 words = {0};
    int64_t padded[BLOCK];
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int real = (int)(n - start < BLOCK ? n - start : BLOCK);
        const int held = (real + LANES - 1) / LANES * LANES;
        const int64_t *v = p + start;
        if (held != real) {
            memcpy(padded, v, (size_t)real * 8);
            memset(padded + real, 0, (size_t)(held - real) * 8);
            v = padded;
        }
        vd squares = {0};
        v64 high = {0}, low = high + INT64_MAX;
        for (int i = 0; i < held; i += LANES) {
            const v64 a = (v64)load(v + i), m = a & INT64_MAX;
            squares += (vd)a * (vd)a;
            words = (v64)((u64)words + (u64)a);
            high = PICK(m > high, m, high);
            low = PICK(m < low, m, low);
        }
        int64_t most = 0, least = INT64_MAX;
        double sum = 0;
        for (int i = 0; i < LANES; i++) {
            most = high[i] > most ? high[i] : most;
            least = low[i] < least ? low[i] : least;
            sum += squares[i];
        }
        if (most < s->inf)
            out->squares += sum;
        const block b = {v, NULL, real, held, 0, least, most};
        look(s, &b, count64, 0, histogram, NULL, &t, out);
    }
    settle(&t, histogram, out);
    out->checksum += (uint64_t)sum64(words);
}

static void measure(const void *values, int64_t n, int kind, int histogram, part *out)
{
    if (kind == FLOAT32 && histogram)
        measure32(values, n, 1, out);
    else if (kind == FLOAT32)
        measure32(values, n, 0, out);
    else if (kind == BFLOAT16 && histogram)
        measure16(values, n, BFLOAT16, 1, out);
    else if (kind == BFLOAT16)
        measure16(values, n, BFLOAT16, 0, out);
    else if (kind == FLOAT16)
        measure16(values, n, FLOAT16, histogram, out);
    else
        measure64(values, n, histogram, out);
}

/* Sum of squares of float64 values multiplied by a power of two that keeps it in range. */
static double scaled(const double *values, int64_t n, double by)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += values[i] * by * (values[i] * by);
    return s;
}

static int has_nonfinite(const void *values, int64_t bytes, int kind)
{
    const char *p = values;
    int64_t i = 0;
    while (bytes - i >= BYTES) {
        const int64_t end = bytes - i < 4 * BLOCK ? bytes : i + 4 * BLOCK;
        v32 high0 = {0}, high1 = {0};
        for (; i + 2 * BYTES <= end; i += 2 * BYTES) { /* the exponent's bits are enough */
            const v32 a = load(p + i), b = load(p + i + BYTES);
            if (kind == FLOAT32) {
                high0 = MAX32(high0, a & 0x7fffffff);
                high1 = MAX32(high1, b & 0x7fffffff);
            } else {
                high0 = (v32)MAX16((v16)high0, (v16)a & 0x7fff);
                high1 = (v32)MAX16((v16)high1, (v16)b & 0x7fff);
            }
        }
        if (i + BYTES <= end) {
            high0 = kind == FLOAT32 ? MAX32(high0, load(p + i) & 0x7fffffff)
                                    : (v32)MAX16((v16)high0, (v16)load(p + i) & 0x7fff);
            i += BYTES;
        }
        const int32_t high = kind == FLOAT32 ? max32(MAX32(high0, high1))
                                             : max16(MAX16((v16)high0, (v16)high1));
        if (high >= SCALES[kind].inf)
            return 1;
    }
    if (i == bytes)
        return 0;
    char rest[BYTES] = {0};
    memcpy(rest, p + i, (size_t)(bytes - i));
    return has_nonfinite(rest, BYTES, kind);
}

static int has_nonfinite64(const double *values, int64_t n)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t word;
        memcpy(&word, values + i, sizeof word);
        found |= (word & INT64_MAX) >= (0x7ffLL << 52);
    }
    return found;
}

static int nonfinite(const void *values, int64_t n, int kind)
{
    if (kind == FLOAT32)
        return has_nonfinite(values, n * 4, FLOAT32);
    if (kind == BFLOAT16)
        return has_nonfinite(values, n * 2, BFLOAT16);
    if (kind == FLOAT16)
        return has_nonfinite(values, n * 2, FLOAT16);
    return has_nonfinite64(values, n);
}

const variant NAMED(gradwarden_, VARIANT) = {QUOTED(VARIANT), measure, nonfinite, scaled};
