/* The few vector operations that C has no sign for, by instruction set.
 *
 * Everything else is written in the vector extensions that GCC and Clang share. Lanes may be
 * permuted where only counts and sums are taken.
 */
#ifndef GRADWARDEN_VECTOR_H
#define GRADWARDEN_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#define BYTES 32 /* wider ones gain nothing at memory's speed, and slow some processors' clock */
#else
#define BYTES 16
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#endif

#define VECTOR(type) type __attribute__((vector_size(BYTES), may_alias))
typedef VECTOR(int8_t) v8;
typedef VECTOR(int16_t) v16;
typedef VECTOR(uint16_t) u16;
typedef VECTOR(int32_t) v32;
typedef VECTOR(uint32_t) u32;
typedef VECTOR(int64_t) v64;
typedef VECTOR(uint64_t) u64;
typedef VECTOR(float) vf;
typedef VECTOR(double) vd;

/* Values of any alignment. */
static inline v32 load(const void *from)
{
    v32 v;
    memcpy(&v, from, sizeof v);
    return v;
}

#define PICK(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))

#if defined(__AVX2__)
#define MAX32(a, b) ((v32)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#define MIN32(a, b) ((v32)_mm256_min_epi32((__m256i)(a), (__m256i)(b)))
#define MAX16(a, b) ((v16)_mm256_max_epi16((__m256i)(a), (__m256i)(b)))
#define MIN16(a, b) ((v16)_mm256_min_epi16((__m256i)(a), (__m256i)(b)))
#define PACK32(a, b) ((v16)_mm256_packs_epi32((__m256i)(a), (__m256i)(b)))
#define PACK16(a, b) ((v8)_mm256_packus_epi16((__m256i)(a), (__m256i)(b)))
#define HALVES(from, first, second)                                                          \
    ((first) = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from))),                \
     (second) = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from) + 1)))
#define SUM8(v) ((v64)_mm256_sad_epu8((__m256i)(v), _mm256_setzero_si256()))
#elif defined(__SSE2__)
#define MAX16(a, b) ((v16)_mm_max_epi16((__m128i)(a), (__m128i)(b)))
#define MIN16(a, b) ((v16)_mm_min_epi16((__m128i)(a), (__m128i)(b)))
#define PACK32(a, b) ((v16)_mm_packs_epi32((__m128i)(a), (__m128i)(b)))
#define PACK16(a, b) ((v8)_mm_packus_epi16((__m128i)(a), (__m128i)(b)))
#define SUM8(v) ((v64)_mm_sad_epu8((__m128i)(v), _mm_setzero_si128()))
#elif defined(__ARM_NEON)
#define MAX32(a, b) ((v32)vmaxq_s32((int32x4_t)(a), (int32x4_t)(b)))
#define MIN32(a, b) ((v32)vminq_s32((int32x4_t)(a), (int32x4_t)(b)))
#define MAX16(a, b) ((v16)vmaxq_s16((int16x8_t)(a), (int16x8_t)(b)))
#define MIN16(a, b) ((v16)vminq_s16((int16x8_t)(a), (int16x8_t)(b)))
#define PACK32(a, b)                                                                         \
    ((v16)vcombine_s16(vmovn_s32((int32x4_t)(a)), vmovn_s32((int32x4_t)(b))))
#define PACK16(a, b)                                                                         \
    ((v8)vcombine_s8(vmovn_s16((int16x8_t)(a)), vmovn_s16((int16x8_t)(b))))
#define SUM8(v) ((v64)vpaddlq_u32(vpaddlq_u16(vpaddlq_u8((uint8x16_t)(v)))))
#endif

#ifndef MAX32
#define MAX32(a, b) ((v32)PICK((a) > (b), a, b))
#define MIN32(a, b) ((v32)PICK((a) < (b), a, b))
#endif
#ifndef MAX16
#define MAX16(a, b) ((v16)PICK((a) > (b), a, b))
#define MIN16(a, b) ((v16)PICK((a) < (b), a, b))
#endif
#define COUNT(c, v, t) ((c) -= (v) > (t)) /* c += v > t, lane by lane */
#ifndef PACK32 /* small lanes of two vectors as one vector of lanes half as wide */
static inline v16 pack32(v32 a, v32 b)
{
    v16 v;
    for (unsigned i = 0; i < BYTES / 4; i++) {
        v[i] = (int16_t)a[i];
        v[i + BYTES / 4] = (int16_t)b[i];
    }
    return v;
}
static inline v8 pack16(v16 a, v16 b)
{
    v8 v;
    for (unsigned i = 0; i < BYTES / 2; i++) {
        v[i] = (int8_t)a[i];
        v[i + BYTES / 2] = (int8_t)b[i];
    }
    return v;
}
#define PACK32 pack32
#define PACK16 pack16
#endif
#ifndef SUM8 /* unsigned bytes, summed by eights */
static inline v64 sum8(v8 v)
{
    v64 s = {0};
    for (unsigned i = 0; i < BYTES; i++)
        s[i / 8] += (uint8_t)v[i];
    return s;
}
#define SUM8 sum8
#endif
#ifndef HALVES /* a vector of float16 as two of float32; subnormals too, in any rounding mode */
static inline vf half(u32 magnitude)
{
    const v32 sub = (v32)(magnitude < 0x400);
    const vf small = (vf)((magnitude << 13) + (113u << 23)) - 0x1p-14f;
    const vf large = (vf)((magnitude << 13) + (112u << 23));
    return (vf)PICK(sub, (v32)small, (v32)large);
}
#define HALVES(from, first, second)                                                          \
    do {                                                                                     \
        const u32 both = (u32)load(from);                                                    \
        (first) = half(both & 0x7fff);                                                       \
        (second) = half((both >> 16) & 0x7fff);                                              \
    } while (0)
#endif

#endif
