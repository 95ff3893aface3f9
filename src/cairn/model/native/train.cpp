// What a block computes besides matrix products, forward and backward, in bf16 with fp32 sums: attention of packed documents with rotary
// positions, RMS norm, gated SiLU, and softmax with its cross-entropy. Knows pointers and strides; no model, no torch.
//
// Work is cut into tasks that write to places of their own, and sums over rows are made by blocks of fixed size: the bits do not depend
// on the number of threads.

#include "parallel.h"

#include <cmath>
#include <cstring>

// -- sixteen numbers at a time ----------------------------------------------------------------------------------------

// 2^x; relative error below 3e-7. Far below zero it is zero.
static inline __m512 exp2_16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-150.f), x);  // in this order a NaN stays one
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.53534e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.339887e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618437e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503324e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40226479e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93147182e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
    return _mm512_scalef_ps(p, n);
}
static const float LOG2E = 1.44269504088896f, LN2 = 0.693147180559945f;

// -- small products ---------------------------------------------------------------------------------------------------

// C (M × N, fp32) = or += A · B where an element of A and of B is a pair of bf16 that follow each other along the summed dimension:
// A's at a[m · step_m + k · step_k], B's at b[k · ldb + n]. M is a multiple of MR.
template <int MR, int NR>
static inline void tile(const uint32_t* a, i64 step_m, i64 step_k, const uint32_t* b, i64 ldb, i64 pairs, float* c, i64 ldc, bool add) {
    __m512 sum[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
    for (i64 k = 0; k < pairs; k++) {
        __m512i row[NR];
        for (int j = 0; j < NR; j++) row[j] = _mm512_loadu_si512(b + k * ldb + 16 * j);
        for (int i = 0; i < MR; i++) {
            const __m512i one = _mm512_set1_epi32(static_cast<int>(a[i * step_m + k * step_k]));
            for (int j = 0; j < NR; j++)
                sum[i][j] = _mm512_dpbf16_ps(sum[i][j], reinterpret_cast<__m512bh>(one), reinterpret_cast<__m512bh>(row[j]));
        }
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sum[i][j]);
}

template <int MR, int NR>
static inline void columns(i64 M, const uint32_t* a, i64 step_m, i64 step_k, const uint32_t* b, i64 ldb, i64 pairs, float* c, i64 ldc, bool add) {
    for (i64 m = 0; m < M; m += MR) tile<MR, NR>(a + m * step_m, step_m, step_k, b, ldb, pairs, c + m * ldc, ldc, add);
}

// M and N are multiples of 16.
static void product(i64 M, i64 N, const uint32_t* a, i64 step_m, i64 step_k, const uint32_t* b, i64 ldb, i64 pairs, float* c, i64 ldc, bool add) {
    i64 n = 0;
    for (; n + 64 <= N; n += 64) columns<4, 4>(M, a, step_m, step_k, b + n, ldb, pairs, c + n, ldc, add);
    if (N - n == 48) columns<8, 3>(M, a, step_m, step_k, b + n, ldb, pairs, c + n, ldc, add);
    else if (N - n == 32) columns<8, 2>(M, a, step_m, step_k, b + n, ldb, pairs, c + n, ldc, add);
    else if (N - n == 16) columns<16, 1>(M, a, step_m, step_k, b + n, ldb, pairs, c + n, ldc, add);
}

// -- rows into the forms that products want ---------------------------------------------------------------------------

// A head of one token, rotated where there are angles: halves against each other (Su et al. 2021).
static inline void rotated(const bf16* x, const bf16* cosines, const bf16* sines, i64 D, bf16* to) {
    if (cosines == nullptr) {
        std::memcpy(to, x, D * sizeof(bf16));
        return;
    }
    const i64 H = D / 2;
    for (i64 d = 0; d < H; d += 16) {
        const __m512 a = load16(x + d), b = load16(x + H + d);
        store16(to + d, _mm512_fmsub_ps(a, load16(cosines + d), _mm512_mul_ps(b, load16(sines + d))));
        store16(to + H + d, _mm512_fmadd_ps(b, load16(cosines + H + d), _mm512_mul_ps(a, load16(sines + H + d))));
    }
}

// The gradient of `rotated`, from fp32.
static inline void rotated_back(const float* g, const bf16* cosines, const bf16* sines, i64 D, bf16* to) {
    if (cosines == nullptr) {
        for (i64 d = 0; d < D; d += 16) store16(to + d, _mm512_loadu_ps(g + d));
        return;
    }
    const i64 H = D / 2;
    for (i64 d = 0; d < H; d += 16) {
        const __m512 a = _mm512_loadu_ps(g + d), b = _mm512_loadu_ps(g + H + d);
        store16(to + d, _mm512_fmadd_ps(a, load16(cosines + d), _mm512_mul_ps(b, load16(sines + H + d))));
        store16(to + H + d, _mm512_fmsub_ps(b, load16(cosines + H + d), _mm512_mul_ps(a, load16(sines + d))));
    }
}

// rows (L16 × D/2 pairs) → (D/2 × L16 pairs); L16 and D/2 are multiples of 16.
static void transposed(const uint32_t* x, i64 L16, i64 D2, uint32_t* to) {
    for (i64 l = 0; l < L16; l += 16)
        for (i64 d = 0; d < D2; d += 16) {
            __m512i r[16], t[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(x + (l + i) * D2 + d);
            for (int i = 0; i < 8; i++) {
                t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for (int i = 0; i < 4; i++) {
                r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
            }
            for (int i = 0; i < 4; i++) {
                const __m512i low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), high = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
                const __m512i low2 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88), high2 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
                t[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
                t[8 + i] = _mm512_shuffle_i32x4(low, low2, 0xdd);
                t[4 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
                t[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xdd);
            }
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (d + i) * L16 + l, t[i]);
        }
}

// rows (L × D) → pairs of rows (L/2 × D): what follows each other along L lies in one element. L is even.
static void paired(const bf16* x, i64 L, i64 D, uint32_t* to) {
    for (i64 l = 0; l < L; l += 2)
        for (i64 d = 0; d < D; d += 16) {
            const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + l * D + d)));
            const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + (l + 1) * D + d)));
            _mm512_storeu_si512(to + l / 2 * D + d, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
}

// -- attention --------------------------------------------------------------------------------------------------------

// Queries whose scores are held at once.
static const i64 ROWS = 32;

static inline i64 up16(i64 n) { return (n + 15) / 16 * 16; }

struct Attention {
    // Heads of a token lie side by side; a step is from one token to the next, in elements.
    const bf16 *q, *k, *v;
    i64 step_q, step_k, step_v;
    const bf16 *cosines, *sines;  // T × D, or null
    bf16* o;                      // T × H·D
    float* log_sum;               // T × H, log2 of the sum of exponentials
    const bf16* grad;             // T × H·D
    bf16 *dq, *dk, *dv;
    i64 step_dq, step_dk, step_dv;
    const int32_t* starts;  // documents + 1
    i64 documents, heads, groups, D;
    float scale;
    i64 threads;
    i64 window;  // keys that a query sees, itself included; 0: all
};

static const bf16* angles(const bf16* all, i64 token, i64 D) { return all == nullptr ? nullptr : all + token * D; }

// A group's keys (rotated) or values of a document, rows beyond it zero.
static void take_rows(const bf16* x, i64 step, const Attention& a, bool rotate, i64 first, i64 L, i64 rows, bf16* to) {
    for (i64 l = 0; l < L; l++)
        rotated(x + (first + l) * step, rotate ? angles(a.cosines, first + l, a.D) : nullptr, rotate ? angles(a.sines, first + l, a.D) : nullptr, a.D, to + l * a.D);
    if (rows > L) std::memset(to + L * a.D, 0, (rows - L) * a.D * sizeof(bf16));
}

static inline uint32_t* pairs_of(bf16* x) { return reinterpret_cast<uint32_t*>(x); }

// Which of the keys j … j + 15 query i sees.
static inline __mmask16 seen(i64 i, i64 j, i64 window) {
    const i64 last = i - j;  // the last lane seen
    uint32_t mask = last < 0 ? 0 : last >= 15 ? 0xffff : (2u << last) - 1;
    if (window > 0) {
        const i64 first = i - window + 1 - j;
        if (first > 0) mask &= first > 15 ? 0 : ~((1u << first) - 1);
    }
    return static_cast<__mmask16>(mask);
}

static void forward_task(const Attention& a, i64 first, i64 L, i64 group) {
    const i64 D = a.D, L16 = up16(L), each = a.heads / a.groups;
    scratch.reset((4 * L16 * D + ROWS * D) * 2 + ROWS * D * 4 + ROWS * L16 * 6 + 4096);
    bf16 *rows = scratch.take<bf16>(L16 * D), *query = scratch.take<bf16>(ROWS * D), *p = scratch.take<bf16>(ROWS * L16);
    uint32_t *keys = scratch.take<uint32_t>(L16 * D / 2), *values = scratch.take<uint32_t>(L16 * D / 2);
    float *s = scratch.take<float>(ROWS * L16), *out = scratch.take<float>(ROWS * D);
    take_rows(a.k + group * D, a.step_k, a, true, first, L, L16, rows);
    transposed(pairs_of(rows), L16, D / 2, keys);
    take_rows(a.v + group * D, a.step_v, a, false, first, L, L16, rows);
    paired(rows, L16, D, values);
    const float factor = a.scale * LOG2E;
    for (i64 h = group * each; h < (group + 1) * each; h++)
        for (i64 i0 = 0; i0 < L; i0 += ROWS) {
            const i64 count = std::min(ROWS, L - i0), M = up16(count), K = up16(i0 + count);
            // Keys before the window of the first query are seen by none.
            const i64 c = a.window > 0 ? std::max<i64>(0, i0 - a.window + 1) / 16 * 16 : 0;
            take_rows(a.q + h * D, a.step_q, a, true, first + i0, count, M, query);
            product(M, K - c, pairs_of(query), D / 2, 1, keys + c, L16, D / 2, s + c, L16, false);
            for (i64 r = 0; r < M; r++) {
                float* row = s + r * L16;
                const i64 i = i0 + r;
                __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
                const i64 end = r < count ? K : c;
                for (i64 j = c; j < end; j += 16) top = _mm512_mask_max_ps(top, seen(i, j, a.window), top, _mm512_loadu_ps(row + j));
                const float most = r < count ? _mm512_reduce_max_ps(top) * factor : 0.f;
                const __m512 shift = _mm512_set1_ps(most), by = _mm512_set1_ps(factor);
                for (i64 j = c; j < end; j += 16) {
                    const __m512 e = _mm512_maskz_mov_ps(seen(i, j, a.window), exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(row + j), by, shift)));
                    sum = _mm512_add_ps(sum, e);
                    store16(p + r * L16 + j, e);
                }
                if (r >= count) {
                    std::memset(p + r * L16 + c, 0, (K - c) * sizeof(bf16));
                    continue;
                }
                const float total = _mm512_reduce_add_ps(sum);
                s[r * L16 + c] = 1.f / total;
                a.log_sum[(first + i) * a.heads + h] = most + std::log2(total);
            }
            product(M, D, pairs_of(p) + c / 2, L16 / 2, 1, values + c / 2 * D, D, (K - c) / 2, out, D, false);
            for (i64 r = 0; r < count; r++) {
                const __m512 by = _mm512_set1_ps(s[r * L16 + c]);
                bf16* to = a.o + ((first + i0 + r) * a.heads + h) * D;
                for (i64 d = 0; d < D; d += 16) store16(to + d, _mm512_mul_ps(_mm512_loadu_ps(out + r * D + d), by));
            }
        }
}

// Probabilities and the scores' gradients of two neighbouring queries: rows for the queries' gradient, pairs for keys' and values'.
static void two_rows(
    const Attention& a, i64 i, i64 count, i64 c, i64 K, const float* s, const float* dp, i64 L16, const float* log_sum, const float* delta,
    bf16* ds_rows, uint32_t* p_pairs, uint32_t* ds_pairs) {
    const __m512 factor = _mm512_set1_ps(a.scale * LOG2E), scale = _mm512_set1_ps(a.scale);
    for (i64 j = c; j < K; j += 16) {
        __m512i p[2], ds[2];
        for (int r = 0; r < 2; r++) {
            const __mmask16 mask = r < count ? seen(i + r, j, a.window) : 0;
            const __m512 e = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(s + r * L16 + j), factor, _mm512_set1_ps(log_sum[r])));
            const __m512 probability = _mm512_maskz_mov_ps(mask, e);
            const __m512 slope = _mm512_mul_ps(_mm512_mul_ps(probability, scale), _mm512_sub_ps(_mm512_loadu_ps(dp + r * L16 + j), _mm512_set1_ps(delta[r])));
            const __m256i low = narrow(_mm512_maskz_mov_ps(mask, slope));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(ds_rows + r * L16 + j), low);
            p[r] = _mm512_cvtepu16_epi32(narrow(probability));
            ds[r] = _mm512_cvtepu16_epi32(low);
        }
        _mm512_storeu_si512(p_pairs + j, _mm512_or_si512(p[0], _mm512_slli_epi32(p[1], 16)));
        _mm512_storeu_si512(ds_pairs + j, _mm512_or_si512(ds[0], _mm512_slli_epi32(ds[1], 16)));
    }
}

static void backward_task(const Attention& a, i64 first, i64 L, i64 group) {
    const i64 D = a.D, L16 = up16(L), each = a.heads / a.groups;
    scratch.reset(L16 * D * (2 + 6 + 8) + ROWS * D * (4 + 4 + 4) + ROWS * L16 * (8 + 2 + 4) + 3 * ROWS * 4 + 8192);
    bf16 *rows = scratch.take<bf16>(L16 * D), *query = scratch.take<bf16>(ROWS * D), *grad = scratch.take<bf16>(ROWS * D);
    uint32_t *keys = scratch.take<uint32_t>(L16 * D / 2), *values = scratch.take<uint32_t>(L16 * D / 2), *key_pairs = scratch.take<uint32_t>(L16 * D / 2);
    uint32_t *query_pairs = scratch.take<uint32_t>(ROWS * D / 2), *grad_pairs = scratch.take<uint32_t>(ROWS * D / 2);
    float *s = scratch.take<float>(ROWS * L16), *dp = scratch.take<float>(ROWS * L16);
    bf16* ds_rows = scratch.take<bf16>(ROWS * L16);
    uint32_t *p_pairs = scratch.take<uint32_t>(ROWS * L16 / 2), *ds_pairs = scratch.take<uint32_t>(ROWS * L16 / 2);
    float *dk = scratch.take<float>(L16 * D), *dv = scratch.take<float>(L16 * D), *dq = scratch.take<float>(ROWS * D);
    float *log_sum = scratch.take<float>(ROWS), *delta = scratch.take<float>(ROWS);
    take_rows(a.v + group * D, a.step_v, a, false, first, L, L16, rows);
    transposed(pairs_of(rows), L16, D / 2, values);
    take_rows(a.k + group * D, a.step_k, a, true, first, L, L16, rows);
    transposed(pairs_of(rows), L16, D / 2, keys);
    paired(rows, L16, D, key_pairs);
    std::memset(dk, 0, L16 * D * sizeof(float));
    std::memset(dv, 0, L16 * D * sizeof(float));
    for (i64 h = group * each; h < (group + 1) * each; h++)
        for (i64 i0 = 0; i0 < L; i0 += ROWS) {
            const i64 count = std::min(ROWS, L - i0), M = up16(count), K = up16(i0 + count);
            const i64 c = a.window > 0 ? std::max<i64>(0, i0 - a.window + 1) / 16 * 16 : 0;
            take_rows(a.q + h * D, a.step_q, a, true, first + i0, count, M, query);
            take_rows(a.grad + h * D, a.heads * D, a, false, first + i0, count, M, grad);
            paired(query, M, D, query_pairs);
            paired(grad, M, D, grad_pairs);
            for (i64 r = 0; r < M; r++) {
                __m512 sum = _mm512_setzero_ps();
                const bf16* o = a.o + ((first + i0 + r) * a.heads + h) * D;
                for (i64 d = 0; r < count && d < D; d += 16) sum = _mm512_fmadd_ps(load16(o + d), load16(grad + r * D + d), sum);
                delta[r] = _mm512_reduce_add_ps(sum);
                log_sum[r] = r < count ? a.log_sum[(first + i0 + r) * a.heads + h] : 0.f;
            }
            product(M, K - c, pairs_of(query), D / 2, 1, keys + c, L16, D / 2, s + c, L16, false);
            product(M, K - c, pairs_of(grad), D / 2, 1, values + c, L16, D / 2, dp + c, L16, false);
            for (i64 r = 0; r < M; r += 2)
                two_rows(a, i0 + r, count - r, c, K, s + r * L16, dp + r * L16, L16, log_sum + r, delta + r, ds_rows + r * L16, p_pairs + r / 2 * L16, ds_pairs + r / 2 * L16);
            product(M, D, pairs_of(ds_rows) + c / 2, L16 / 2, 1, key_pairs + c / 2 * D, D, (K - c) / 2, dq, D, false);
            product(K - c, D, p_pairs + c, 1, L16, grad_pairs, D, M / 2, dv + c * D, D, true);
            product(K - c, D, ds_pairs + c, 1, L16, query_pairs, D, M / 2, dk + c * D, D, true);
            for (i64 r = 0; r < count; r++) {
                const i64 t = first + i0 + r;
                rotated_back(dq + r * D, angles(a.cosines, t, D), angles(a.sines, t, D), D, a.dq + t * a.step_dq + h * D);
            }
        }
    for (i64 l = 0; l < L; l++) {
        const i64 t = first + l;
        rotated_back(dk + l * D, angles(a.cosines, t, D), angles(a.sines, t, D), D, a.dk + t * a.step_dk + group * D);
        rotated_back(dv + l * D, nullptr, nullptr, D, a.dv + t * a.step_dv + group * D);
    }
}

extern "C" void train_attention(const Attention* a, int backward) {
    split(a->documents * a->groups, a->threads, [=](i64 task) {
        const i64 document = task / a->groups, first = a->starts[document], L = a->starts[document + 1] - first;
        if (backward) backward_task(*a, first, L, task % a->groups);
        else forward_task(*a, first, L, task % a->groups);
    });
}

// -- RMS norm ---------------------------------------------------------------------------------------------------------

// Rows of a task; sums over rows are made per task.
static const i64 BLOCK = 128;

// y = weight · x · scale with scale = 1 / rms(x) (Zhang and Sennrich 2019). D is a multiple of 16.
extern "C" void train_norm(const bf16* x, const bf16* weight, bf16* y, float* scale, i64 rows, i64 D, float eps, i64 threads) {
    split((rows + BLOCK - 1) / BLOCK, threads, [=](i64 task) {
        for (i64 t = task * BLOCK; t < std::min(rows, (task + 1) * BLOCK); t++) {
            const bf16* in = x + t * D;
            __m512 sum = _mm512_setzero_ps();
            for (i64 d = 0; d < D; d += 16) {
                const __m512 e = load16(in + d);
                sum = _mm512_fmadd_ps(e, e, sum);
            }
            scale[t] = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / D + eps);
            const __m512 by = _mm512_set1_ps(scale[t]);
            for (i64 d = 0; d < D; d += 16) store16(y + t * D + d, _mm512_mul_ps(_mm512_mul_ps(load16(in + d), by), load16(weight + d)));
        }
    });
}

// dx, and the weight's gradient of each block of rows in `sums` (blocks × D, fp32).
extern "C" void train_norm_backward(
    const bf16* g, const bf16* x, const bf16* weight, const float* scale, bf16* dx, float* sums, i64 rows, i64 D, i64 threads) {
    split((rows + BLOCK - 1) / BLOCK, threads, [=](i64 task) {
        float* dw = sums + task * D;
        std::memset(dw, 0, D * sizeof(float));
        for (i64 t = task * BLOCK; t < std::min(rows, (task + 1) * BLOCK); t++) {
            const __m512 by = _mm512_set1_ps(scale[t]);
            __m512 dot = _mm512_setzero_ps();
            for (i64 d = 0; d < D; d += 16) {
                const __m512 gx = _mm512_mul_ps(load16(g + t * D + d), _mm512_mul_ps(load16(x + t * D + d), by));
                _mm512_storeu_ps(dw + d, _mm512_add_ps(_mm512_loadu_ps(dw + d), gx));
                dot = _mm512_fmadd_ps(gx, load16(weight + d), dot);
            }
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / D);
            for (i64 d = 0; d < D; d += 16) {
                const __m512 gw = _mm512_mul_ps(load16(g + t * D + d), load16(weight + d));
                store16(dx + t * D + d, _mm512_mul_ps(_mm512_fnmadd_ps(_mm512_mul_ps(load16(x + t * D + d), by), mean, gw), by));
            }
        }
    });
}

// -- gated SiLU -------------------------------------------------------------------------------------------------------

// Relative error below 1e-4, for what is rounded to bf16 next: a division took longer than all the rest.
static inline __m512 sigmoid(__m512 x) {
    const __m512 power = exp2_16(_mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2E)), _mm512_set1_ps(126.f)));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.f), power));
}

// y (rows × I) = silu(gate) · up of rows that hold both (rows × 2·I), gate first. I is a multiple of 16.
extern "C" void train_gate(const bf16* x, bf16* y, i64 rows, i64 I, i64 threads) {
    split((rows + 31) / 32, threads, [=](i64 task) {
        for (i64 t = task * 32; t < std::min(rows, (task + 1) * 32); t++)
            for (i64 d = 0; d < I; d += 16) {
                const __m512 gate = load16(x + t * 2 * I + d);
                store16(y + t * I + d, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), load16(x + t * 2 * I + I + d)));
            }
    });
}

extern "C" void train_gate_backward(const bf16* g, const bf16* x, bf16* dx, i64 rows, i64 I, i64 threads) {
    split((rows + 31) / 32, threads, [=](i64 task) {
        const __m512 one = _mm512_set1_ps(1.f);
        for (i64 t = task * 32; t < std::min(rows, (task + 1) * 32); t++)
            for (i64 d = 0; d < I; d += 16) {
                const __m512 gate = load16(x + t * 2 * I + d), up = load16(x + t * 2 * I + I + d), in = load16(g + t * I + d), s = sigmoid(gate);
                const __m512 silu = _mm512_mul_ps(gate, s);
                // d silu = s · (1 + gate · (1 − s))
                const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
                store16(dx + t * 2 * I + d, _mm512_mul_ps(_mm512_mul_ps(in, up), slope));
                store16(dx + t * 2 * I + I + d, _mm512_mul_ps(in, silu));
            }
    });
}

// -- cross-entropy ----------------------------------------------------------------------------------------------------

// Logits z (rows × V, V a multiple of 16) become the gradient of count · (lse − z[target] + z_loss · lse²); nll = lse − z[target].
extern "C" void train_cross_entropy(
    bf16* z, const i64* targets, const float* counts, float* nll, float* log_sums, i64 rows, i64 V, float z_loss, i64 threads) {
    split(rows, threads, [=](i64 t) {
        bf16* row = z + t * V;
        __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (i64 d = 0; d < V; d += 16) top = _mm512_max_ps(top, load16(row + d));
        const float most = _mm512_reduce_max_ps(top) * LOG2E;
        const __m512 by = _mm512_set1_ps(LOG2E);
        __m512 shift = _mm512_set1_ps(most);
        for (i64 d = 0; d < V; d += 16) sum = _mm512_add_ps(sum, exp2_16(_mm512_fmsub_ps(load16(row + d), by, shift)));
        const float log2_sum = most + std::log2(_mm512_reduce_add_ps(sum)), lse = log2_sum * LN2;
        const uint32_t wide = static_cast<uint32_t>(row[targets[t]]) << 16;
        float logit;
        std::memcpy(&logit, &wide, 4);
        nll[t] = lse - logit;
        log_sums[t] = lse;
        const float count = counts == nullptr ? 1.f : counts[t], spread = 1.f + 2.f * z_loss * lse;
        const float probability = std::exp(logit - lse);
        shift = _mm512_set1_ps(log2_sum);
        const __m512 times = _mm512_set1_ps(count * spread);
        for (i64 d = 0; d < V; d += 16) store16(row + d, _mm512_mul_ps(times, exp2_16(_mm512_fmsub_ps(load16(row + d), by, shift))));
        const __m512 at = _mm512_set1_ps(count * (spread * probability - 1.f));
        bf16 few[16];
        store16(few, at);
        row[targets[t]] = few[0];
    });
}

// -- sums -------------------------------------------------------------------------------------------------------------

// sum (fp32) += part (bf16), n numbers.
extern "C" void train_add(float* sum, const bf16* part, i64 n, i64 threads) {
    const i64 piece = 1 << 15;
    split((n + piece - 1) / piece, threads, [=](i64 task) {
        const i64 end = std::min(n, (task + 1) * piece);
        i64 i = task * piece;
        for (; i + 16 <= end; i += 16) _mm512_storeu_ps(sum + i, _mm512_add_ps(_mm512_loadu_ps(sum + i), load16(part + i)));
        for (; i < end; i++) {
            const uint32_t wide = static_cast<uint32_t>(part[i]) << 16;
            float value;
            std::memcpy(&value, &wide, 4);
            sum[i] += value;
        }
    });
}
