/* Causal attention within documents of a flat stream, fp32, forward and backward.
 *
 * A task is one document and one head of keys; its query heads follow one another in blocks of ROWS queries, whose
 * scores against all keys they may see are held at once. Tasks share nothing they write, so results do not depend on
 * threads. Products go through `multiply`, tiles of MR x 2 vectors held in registers. Formulas: document_attention.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exponential.h"

#ifdef __AVX512F__
#define LANES 16
#define MR 8
#else
#define LANES 8
#define MR 4
#endif
#define ROWS 16

typedef int64_t i64;
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));

static inline __attribute__((always_inline)) vec spread(float x) { return x - (vec){0}; }

/* `rows` x (vectors · LANES) of C = A B, or C += A B: A by row and column strides, B and C by row strides. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, i64 depth, const float *a,
                                                       i64 a_row, i64 a_column, const float *b, i64 b_row, float *c,
                                                       i64 c_row, int add) {
    vec sum[MR][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? *(const vec *)(c + r * c_row + v * LANES) : spread(0);
    for (i64 k = 0; k < depth; k++) {
        vec right[2];
        for (int v = 0; v < vectors; v++) right[v] = *(const vec *)(b + k * b_row + v * LANES);
        for (int r = 0; r < rows; r++) {
            vec left = spread(a[r * a_row + k * a_column]);
            for (int v = 0; v < vectors; v++) sum[r][v] += left * right[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) *(vec *)(c + r * c_row + v * LANES) = sum[r][v];
}

/* C [rows, columns] = (or +=) A [rows, depth] B [depth, columns]; columns a multiple of LANES. */
static void multiply(i64 rows, i64 columns, i64 depth, const float *a, i64 a_row, i64 a_column, const float *b,
                     i64 b_row, float *c, i64 c_row, int add) {
    for (i64 j = 0; j < columns; j += 2 * LANES) {
        int wide = columns - j >= 2 * LANES;
        i64 r = 0;
        for (; r + MR <= rows; r += MR) {
            if (wide)
                tile(MR, 2, depth, a + r * a_row, a_row, a_column, b + j, b_row, c + r * c_row + j, c_row, add);
            else
                tile(MR, 1, depth, a + r * a_row, a_row, a_column, b + j, b_row, c + r * c_row + j, c_row, add);
        }
        for (; r < rows; r++) {
            if (wide)
                tile(1, 2, depth, a + r * a_row, a_row, a_column, b + j, b_row, c + r * c_row + j, c_row, add);
            else
                tile(1, 1, depth, a + r * a_row, a_row, a_column, b + j, b_row, c + r * c_row + j, c_row, add);
        }
    }
}

/* to [size, wide] = x [length, size] transposed, zeros behind. */
static void transpose(const float *x, i64 length, i64 size, float *to, i64 wide) {
    for (i64 d = 0; d < size; d++) {
        for (i64 j = 0; j < length; j++) to[d * wide + j] = x[j * size + d];
        for (i64 j = length; j < wide; j++) to[d * wide + j] = 0;
    }
}

static i64 up_to_lanes(i64 n) { return (n + LANES - 1) / LANES * LANES; }

/* First key that query `i` of a document sees: all before it, or the nearest `window` where that is positive. */
static i64 first_seen(i64 i, i64 window) { return window > 0 && i >= window ? i - window + 1 : 0; }

/* q [heads, tokens, size], k and v [key_heads, tokens, size]; starts [documents + 1]; out [tokens, heads · size];
 * log_sum [heads, tokens]. Returns 0, or 1 where memory is short. */
int attend_documents(const float *q, const float *k, const float *v, const i64 *starts, i64 documents, i64 heads,
                     i64 key_heads, i64 tokens, i64 size, float scaling, i64 window, float *out, float *log_sum) {
    i64 group = heads / key_heads;
    int short_of_memory = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(| : short_of_memory)
    for (i64 task = 0; task < documents * key_heads; task++) {
        i64 start = starts[task / key_heads], length = starts[task / key_heads + 1] - start, head = task % key_heads;
        i64 wide = up_to_lanes(length);
        const float *keys = k + (head * tokens + start) * size, *values = v + (head * tokens + start) * size;
        float *turned = malloc((size_t)((size + ROWS) * wide) * sizeof(float)), *scores = turned + size * wide;
        if (!turned) {
            short_of_memory = 1;
            continue;
        }
        transpose(keys, length, size, turned, wide);
        for (i64 h = head * group; h < (head + 1) * group; h++) {
            for (i64 i = 0; i < length; i += ROWS) {
                i64 rows = length - i < ROWS ? length - i : ROWS;
                i64 from = first_seen(i, window) / LANES * LANES, seen = i + rows - from, columns = up_to_lanes(seen);
                float *to = out + (start + i) * heads * size + h * size;
                multiply(rows, columns, size, q + (h * tokens + start + i) * size, size, 1, turned + from, wide, scores,
                         wide, 0);
                float inverse[ROWS];
                for (i64 r = 0; r < rows; r++) {
                    float *row = scores + r * wide, top = -INFINITY, sum = 0;
                    i64 begin = first_seen(i + r, window) - from, end = i + r + 1 - from;
                    for (i64 j = begin; j < end; j++) top = row[j] > top ? row[j] : top;
                    for (i64 j = 0; j < begin; j++) row[j] = 0;
#pragma omp simd reduction(+ : sum)
                    for (i64 j = begin; j < end; j++) {
                        row[j] = exp_((row[j] - top) * scaling);
                        sum += row[j];
                    }
                    for (i64 j = end; j < seen; j++) row[j] = 0;
                    log_sum[h * tokens + start + i + r] = top * scaling + logf(sum);
                    inverse[r] = 1.0f / sum;
                }
                multiply(rows, size, seen, scores, wide, 1, values + from * size, size, to, heads * size, 0);
                for (i64 r = 0; r < rows; r++)
                    for (i64 d = 0; d < size; d++) to[r * heads * size + d] *= inverse[r];
            }
        }
        free(turned);
    }
    return short_of_memory;
}

/* Gradients dq, dk, dv, shaped as q, k, v, from that of `out`, d_out [tokens, heads · size]. */
int attend_documents_backward(const float *d_out, const float *q, const float *k, const float *v, const float *out,
                              const float *log_sum, const i64 *starts, i64 documents, i64 heads, i64 key_heads,
                              i64 tokens, i64 size, float scaling, i64 window, float *dq, float *dk, float *dv) {
    i64 group = heads / key_heads, row_size = heads * size;
    int short_of_memory = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(| : short_of_memory)
    for (i64 task = 0; task < documents * key_heads; task++) {
        i64 start = starts[task / key_heads], length = starts[task / key_heads + 1] - start, head = task % key_heads;
        i64 wide = up_to_lanes(length), base = (head * tokens + start) * size;
        float *keys_turned = malloc((size_t)(2 * (size + ROWS) * wide) * sizeof(float));
        if (!keys_turned) {
            short_of_memory = 1;
            continue;
        }
        float *values_turned = keys_turned + size * wide, *share = values_turned + size * wide,
              *d_score = share + ROWS * wide;
        transpose(k + base, length, size, keys_turned, wide);
        transpose(v + base, length, size, values_turned, wide);
        memset(dk + base, 0, (size_t)(length * size) * sizeof(float));
        memset(dv + base, 0, (size_t)(length * size) * sizeof(float));
        for (i64 h = head * group; h < (head + 1) * group; h++) {
            for (i64 i = 0; i < length; i += ROWS) {
                i64 rows = length - i < ROWS ? length - i : ROWS;
                i64 from = first_seen(i, window) / LANES * LANES, seen = i + rows - from, columns = up_to_lanes(seen);
                const float *queries = q + (h * tokens + start + i) * size;
                const float *grad = d_out + (start + i) * row_size + h * size;
                const float *answer = out + (start + i) * row_size + h * size;
                multiply(rows, columns, size, queries, size, 1, keys_turned + from, wide, share, wide, 0);
                multiply(rows, columns, size, grad, row_size, 1, values_turned + from, wide, d_score, wide, 0);
                for (i64 r = 0; r < rows; r++) {
                    float *p = share + r * wide, *ds = d_score + r * wide, dot = 0;
                    float norm = log_sum[h * tokens + start + i + r];
                    i64 begin = first_seen(i + r, window) - from, end = i + r + 1 - from;
#pragma omp simd reduction(+ : dot)
                    for (i64 d = 0; d < size; d++) dot += grad[r * row_size + d] * answer[r * row_size + d];
                    for (i64 j = 0; j < begin; j++) p[j] = ds[j] = 0;
#pragma omp simd
                    for (i64 j = begin; j < end; j++) {
                        p[j] = exp_(p[j] * scaling - norm);
                        ds[j] = p[j] * (ds[j] - dot) * scaling;
                    }
                    for (i64 j = end; j < seen; j++) p[j] = ds[j] = 0;
                    if (end - begin == 1) p[begin] = 1, ds[begin] = 0; /* a single key: exactly no gradient */
                }
                multiply(rows, size, seen, d_score, wide, 1, k + base + from * size, size,
                         dq + (h * tokens + start + i) * size, size, 0);
                multiply(seen, size, rows, share, 1, wide, grad, row_size, dv + base + from * size, size, 1);
                multiply(seen, size, rows, d_score, 1, wide, queries, size, dk + base + from * size, size, 1);
            }
        }
        free(keys_turned);
    }
    return short_of_memory;
}
