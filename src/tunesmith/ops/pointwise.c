/* Pointwise work of a decoder layer in fp32: one pass over memory each, rows shared among OpenMP threads.
 *
 * Every result is a function of its row alone, or a sum over fixed blocks of rows added in order, so it does not depend
 * on the number of threads. Arrays are dense and row-major; `tokens` is the number of rows. Formulas: pointwise.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "exponential.h"

#define SUM_ROWS 128 /* rows whose sums are added up before they join the total */

typedef int64_t i64;

static inline float mean_square(const float *x, i64 width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < width; i++) sum += x[i] * x[i];
    return sum / (float)width;
}

/* out = x · rstd · (weight + offset); rstd [tokens] is kept. */
void rms_norm(const float *x, const float *weight, float eps, float offset, float *out, float *rstd, i64 tokens,
              i64 width) {
#pragma omp parallel for schedule(static)
    for (i64 t = 0; t < tokens; t++) {
        const float *row = x + t * width;
        float *to = out + t * width;
        float r = 1.0f / sqrtf(mean_square(row, width) + eps);
        rstd[t] = r;
#pragma omp simd
        for (i64 i = 0; i < width; i++) to[i] = row[i] * r * (weight[i] + offset);
    }
}

/* dx of rms_norm, plus `residual` where it is not null; d_weight [width] where it is not null. */
void rms_norm_backward(const float *grad, const float *x, const float *rstd, const float *weight, float offset,
                       const float *residual, float *dx, float *d_weight, i64 tokens, i64 width) {
    i64 blocks = (tokens + SUM_ROWS - 1) / SUM_ROWS;
    float *partial = d_weight ? calloc((size_t)(blocks * width), sizeof(float)) : NULL;
#pragma omp parallel for schedule(static)
    for (i64 b = 0; b < blocks; b++) {
        i64 end = (b + 1) * SUM_ROWS < tokens ? (b + 1) * SUM_ROWS : tokens;
        for (i64 t = b * SUM_ROWS; t < end; t++) {
            const float *g = grad + t * width, *row = x + t * width;
            float *to = dx + t * width;
            float r = rstd[t], dot = 0;
#pragma omp simd reduction(+ : dot)
            for (i64 i = 0; i < width; i++) dot += g[i] * (weight[i] + offset) * row[i];
            float along = dot * r * r * r / (float)width;
            if (residual) {
                const float *add = residual + t * width;
#pragma omp simd
                for (i64 i = 0; i < width; i++)
                    to[i] = add[i] + (g[i] * (weight[i] + offset) * r - row[i] * along);
            } else {
#pragma omp simd
                for (i64 i = 0; i < width; i++) to[i] = g[i] * (weight[i] + offset) * r - row[i] * along;
            }
            if (partial) {
                float *sum = partial + b * width;
#pragma omp simd
                for (i64 i = 0; i < width; i++) sum[i] += g[i] * row[i] * r;
            }
        }
    }
    if (partial) {
        memset(d_weight, 0, (size_t)width * sizeof(float));
        for (i64 b = 0; b < blocks; b++)
            for (i64 i = 0; i < width; i++) d_weight[i] += partial[b * width + i];
        free(partial);
    }
}

/* both [tokens, 2·width] = gate | up; out [tokens, width] = silu(gate) · up. */
void swiglu(const float *both, float *out, i64 tokens, i64 width) {
#pragma omp parallel for schedule(static)
    for (i64 t = 0; t < tokens; t++) {
        const float *gate = both + 2 * t * width, *up = gate + width;
        float *to = out + t * width;
#pragma omp simd
        for (i64 i = 0; i < width; i++) to[i] = gate[i] / (1.0f + exp_(-gate[i])) * up[i];
    }
}

/* Gradients of gate | up into d_both; `grad` [tokens, width] is overwritten by the product silu(gate) · up. */
void swiglu_backward(const float *both, float *grad, float *d_both, i64 tokens, i64 width) {
#pragma omp parallel for schedule(static)
    for (i64 t = 0; t < tokens; t++) {
        const float *gate = both + 2 * t * width, *up = gate + width;
        float *g = grad + t * width, *d_gate = d_both + 2 * t * width, *d_up = d_gate + width;
#pragma omp simd
        for (i64 i = 0; i < width; i++) {
            float s = 1.0f / (1.0f + exp_(-gate[i])), silu = gate[i] * s, dy = g[i];
            d_gate[i] = dy * up[i] * s * (1.0f + gate[i] * (1.0f - s));
            d_up[i] = dy * silu;
            g[i] = silu * up[i];
        }
    }
}

/* One kind of head (queries or keys) of all tokens: from columns [start, start + heads·size) of joined [tokens, row] to
 * out [heads, tokens, size], normalised where `weight` is not null, turned by cos and sin [tokens, size] where given. */
void split_heads(const float *joined, i64 row, i64 start, i64 heads, i64 size, const float *weight, float eps,
                 const float *cos, const float *sin, float *out, i64 tokens) {
    i64 half = size / 2;
#pragma omp parallel for schedule(static)
    for (i64 t = 0; t < tokens; t++) {
        for (i64 h = 0; h < heads; h++) {
            const float *x = joined + t * row + start + h * size;
            float *to = out + (h * tokens + t) * size;
            if (!cos) {
                memcpy(to, x, (size_t)size * sizeof(float));
                continue;
            }
            const float *c = cos + t * size, *s = sin + t * size;
            float r = weight ? 1.0f / sqrtf(mean_square(x, size) + eps) : 1.0f;
#pragma omp simd
            for (i64 i = 0; i < half; i++) {
                float a = x[i] * r, b = x[i + half] * r;
                if (weight) a *= weight[i], b *= weight[i + half];
                to[i] = a * c[i] - b * s[i];
                to[i + half] = b * c[i + half] + a * s[i + half];
            }
        }
    }
}

/* Back from the gradient of split_heads: `grad` by head and token strides, into the columns of d_joined; d_weight
 * [size] where it is not null. `joined` is read only where there is a norm. */
void split_heads_backward(const float *grad, i64 head_stride, i64 token_stride, const float *joined, i64 row, i64 start,
                          i64 heads, i64 size, const float *weight, float eps, const float *cos, const float *sin,
                          float *d_joined, float *d_weight, i64 tokens) {
    i64 half = size / 2, blocks = (tokens + SUM_ROWS - 1) / SUM_ROWS;
    float *partial = d_weight ? calloc((size_t)(blocks * size), sizeof(float)) : NULL;
#pragma omp parallel for schedule(static)
    for (i64 block = 0; block < blocks; block++) {
        i64 end = (block + 1) * SUM_ROWS < tokens ? (block + 1) * SUM_ROWS : tokens;
        for (i64 t = block * SUM_ROWS; t < end; t++) {
            for (i64 h = 0; h < heads; h++) {
                const float *g = grad + h * head_stride + t * token_stride;
                float *to = d_joined + t * row + start + h * size;
                if (!cos) {
                    memcpy(to, g, (size_t)size * sizeof(float));
                    continue;
                }
                const float *c = cos + t * size, *s = sin + t * size;
#pragma omp simd
                for (i64 i = 0; i < half; i++) {
                    float a = g[i], b = g[i + half];
                    to[i] = a * c[i] + b * s[i + half];
                    to[i + half] = b * c[i + half] - a * s[i];
                }
                if (!weight) continue;
                const float *x = joined + t * row + start + h * size;
                float r = 1.0f / sqrtf(mean_square(x, size) + eps), dot = 0;
                if (partial) {
                    float *sum = partial + block * size;
#pragma omp simd
                    for (i64 i = 0; i < size; i++) sum[i] += to[i] * x[i] * r;
                }
#pragma omp simd reduction(+ : dot)
                for (i64 i = 0; i < size; i++) dot += to[i] * weight[i] * x[i];
                float along = dot * r * r * r / (float)size;
#pragma omp simd
                for (i64 i = 0; i < size; i++) to[i] = to[i] * weight[i] * r - x[i] * along;
            }
        }
    }
    if (partial) {
        memset(d_weight, 0, (size_t)size * sizeof(float));
        for (i64 b = 0; b < blocks; b++)
            for (i64 i = 0; i < size; i++) d_weight[i] += partial[b * size + i];
        free(partial);
    }
}

/* Rows of logits [rows, width] become the gradient w (softmax - onehot(target)); losses [rows] = w (log Σ e^z - z_y). */
void softmax_loss(float *logits, const i64 *targets, const float *weights, float *losses, i64 rows, i64 width) {
#pragma omp parallel for schedule(static)
    for (i64 t = 0; t < rows; t++) {
        float *z = logits + t * width, top = z[0], sum = 0, w = weights[t], at_target = z[targets[t]];
#pragma omp simd reduction(max : top)
        for (i64 i = 0; i < width; i++) top = z[i] > top ? z[i] : top;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < width; i++) {
            z[i] = exp_(z[i] - top);
            sum += z[i];
        }
        float scale = w / sum;
#pragma omp simd
        for (i64 i = 0; i < width; i++) z[i] *= scale;
        z[targets[t]] -= w;
        losses[t] = w * (logf(sum) + top - at_target);
    }
}
