/* Columns of a segment in the making: what plain.py does with numpy, in one pass each.
 *
 * Both give the same bytes. Floats are told apart by their bits, the least and the greatest
 * found in the order of the real numbers with -0.0 below 0.0, and sums are taken in double
 * precision, step after step, so that nothing hangs on how a compiler arranges a loop.
 */
#include <stdint.h>
#include <string.h>

#define HOLE 0x7FC00000u
#define EXPONENT 0x7F800000u

/* What Python must know of these calls; see native.py. */
int gradwarden_columns(void) { return 1; }

/* Say of each of m matrices whether any row of this column was measured.
 * planes: [4, m, rows], or NULL where the column was not sent. */
static void measured(const uint8_t *restrict planes, int64_t m, int64_t rows, uint8_t *restrict flags)
{
    const int64_t size = m * rows;
    for (int64_t t = 0; t < m; t++) {
        const uint8_t *p = planes + t * rows;
        uint8_t other = 0;
        for (int64_t r = 0; r < rows; r++)
            other |= p[r] | p[r + size] | (p[r + 2 * size] ^ 0xC0) | (p[r + 3 * size] ^ 0x7F);
        flags[t] |= other != 0;
    }
}

void gradwarden_measured(const uint8_t *const *planes, const int64_t *m, int64_t batches,
                         int64_t rows, uint8_t *flags)
{
    for (int64_t b = 0; b < batches; flags += m[b++])
        if (planes[b])
            measured(planes[b], m[b], rows, flags);
}

/* As many rows at a time as lie in a cache together: those of a thousand steps share its lines. */
enum { TILE = 8 };

static void lay(const uint8_t *restrict planes, int64_t m, int64_t rows, int64_t first,
                int64_t count, const uint8_t *restrict kept, int64_t steps, uint32_t *restrict out)
{
    const int64_t size = m * rows;
    for (int64_t t = 0; t < m; t++) {
        if (!kept[t])
            continue;
        const uint8_t *p = planes + t * rows + first;
        for (int64_t r = 0; r < count; r++)
            out[r * steps] = p[r] | (uint32_t)p[r + size] << 8 | (uint32_t)p[r + 2 * size] << 16 |
                             (uint32_t)p[r + 3 * size] << 24;
        out++;
    }
}

/* Lay the matrices that are kept of one column as [rows, steps] words. */
void gradwarden_lay(const uint8_t *const *planes, const int64_t *m, int64_t batches, int64_t rows,
                    const uint8_t *kept, int64_t steps, uint32_t *out)
{
    for (int64_t b = 0; b < batches; kept += m[b++]) {
        int64_t some = 0;
        for (int64_t t = 0; t < m[b]; t++)
            some += kept[t] != 0;
        for (int64_t r = 0; r < rows; r += TILE) {
            const int64_t count = rows - r < TILE ? rows - r : TILE;
            if (planes[b])
                lay(planes[b], m[b], rows, r, count, kept, steps, out + r * steps);
            else
                for (int64_t i = 0; i < count * some; i++)
                    out[(r + i / some) * steps + i % some] = HOLE;
        }
        out += some;
    }
}

/* Of every `block` rows: how many words are holes, how many any NaN, whether all are alike. */
void gradwarden_survey(const uint32_t *words, int64_t rows, int64_t steps, int64_t block,
                       int64_t *holes, int64_t *nans, uint8_t *alike)
{
    for (int64_t r = 0; r < rows; r += block) {
        const int64_t size = (rows - r < block ? rows - r : block) * steps;
        uint32_t others = 0, hole = 0, nan = 0;
        for (int64_t i = 0; i < size; i++) {
            others |= words[i] ^ words[0];
            hole += words[i] == HOLE;
            nan += (int32_t)(words[i] & 0x7FFFFFFFu) > (int32_t)EXPONENT;
        }
        words += size;
        *holes++ = hole;
        *nans++ = nan;
        *alike++ = others == 0;
    }
}

static uint32_t folded(uint32_t step) { return step << 1 ^ (uint32_t)((int32_t)step >> 31); }

static void fold(const uint32_t *restrict words, int64_t n, uint8_t *restrict a,
                 uint8_t *restrict b, uint8_t *restrict c, uint8_t *restrict d)
{
    for (int64_t t = 0; t < n; t++) {
        const uint32_t w = folded(words[t] - words[t - 1]);
        a[t] = (uint8_t)w;
        b[t] = (uint8_t)(w >> 8);
        c[t] = (uint8_t)(w >> 16);
        d[t] = (uint8_t)(w >> 24);
    }
}

/* Differences along each row, folded, as byte planes of every `together` rows of a block. */
void gradwarden_fold(const uint32_t *words, int64_t rows, int64_t steps, int64_t block,
                     int64_t together, uint8_t *out)
{
    for (int64_t r = 0, count; r < rows; r += count) {
        const int64_t left = (rows - r < block - r % block) ? rows - r : block - r % block;
        count = left < together ? left : together;
        const int64_t size = count * steps;
        for (int64_t i = 0; i < count && steps; i++) {
            const uint32_t *row = words + (r + i) * steps, first = folded(*row);
            uint8_t *to = out + i * steps;
            for (int plane = 0; plane < 4; plane++)
                to[plane * size] = (uint8_t)(first >> 8 * plane);
            fold(row + 1, steps - 1, to + 1, to + 1 + size, to + 1 + 2 * size, to + 1 + 3 * size);
        }
        out += 4 * size;
    }
}

/* Of the buckets [starts[b], starts[b + 1]) of each row: the least and the greatest finite value
 * as keys, their sum, the last one, how many they are, and how many were measured and are not
 * finite. Without `seen` a NaN was not measured. All results are [rows, buckets]. */
void gradwarden_roll(const uint32_t *words, const uint8_t *seen, int64_t rows, int64_t steps,
                     const int64_t *starts, int64_t buckets, int32_t *least, int32_t *most,
                     double *sum, uint32_t *last, int32_t *finite, int32_t *others)
{
    for (int64_t r = 0; r < rows; r++, words += steps) {
        for (int64_t b = 0; b < buckets; b++) {
            int32_t low = INT32_MAX, high = INT32_MIN, count = 0, bad = 0;
            uint32_t newest = HOLE;
            double total = 0;
            for (int64_t t = starts[b]; t < starts[b + 1]; t++) {
                const uint32_t word = words[t], size = word & 0x7FFFFFFFu;
                if (seen ? !seen[t] : size > EXPONENT)
                    continue;
                if (size >= EXPONENT) {
                    bad++;
                    continue;
                }
                /* A key is the signed integer that lies among others as the float does. */
                const int32_t key = (int32_t)(word ^ ((uint32_t)((int32_t)word >> 31) >> 1));
                float value;
                memcpy(&value, &word, sizeof value);
                low = key < low ? key : low;
                high = key > high ? key : high;
                total += value;
                newest = word;
                count++;
            }
            *least++ = low;
            *most++ = high;
            *sum++ = total;
            *last++ = newest;
            *finite++ = count;
            *others++ = bad;
        }
        if (seen)
            seen += steps;
    }
}
