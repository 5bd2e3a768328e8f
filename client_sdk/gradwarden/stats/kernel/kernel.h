/* What the parts of the kernel know of each other. */
#ifndef GRADWARDEN_KERNEL_H
#define GRADWARDEN_KERNEL_H

#include <stdint.h>

#define CALLS 1 /* raised with each change of what native.py calls or reads */
#define BINS 16
#define FLOATS (6 + BINS)
#define WORDS (FLOATS + 1)
#define CHUNK 65536 /* elements of one job; sums of 32-bit lanes stay exact over it */

enum kind { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };

/* What one chunk of a tensor comes to. Magnitudes are the bits without the sign's. */
typedef struct {
    double squares; /* of finite blocks only */
    uint64_t top;   /* the largest magnitude */
    uint64_t checksum;
    int64_t nan, inf, zero, tiny;
    int64_t histogram[BINS]; /* bin 0 with the zeros, bin 15 with NaN and Inf */
} part;

/* One instruction set's way; the same source compiled for each. */
typedef struct {
    const char *name;
    void (*measure)(const void *values, int64_t n, int kind, int histogram, part *out);
    int (*nonfinite)(const void *values, int64_t n, int kind);
    double (*scaled)(const double *values, int64_t n, double scale);
} variant;

extern const variant gradwarden_base;
#ifdef WITH_X86
extern const variant gradwarden_avx2, gradwarden_avx512;
#endif

#endif
