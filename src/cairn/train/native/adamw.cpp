// One weight's AdamW step in one pass over memory: clip, both moments, the fp32 weight and its rounded copy; and a gradient's sum of squares.
// Knows pointers; no model, no torch.
//
// The step takes the same operations in the same order as torch's fused AdamW, so that it gives the same bits. Each number depends on numbers
// of its own index alone, and sums are made by pieces of fixed size: threads change no bit.

#include "../../model/native/parallel.h"

// `AdamW` of adamw.py.
struct AdamW {
    float *weight, *mean, *squares;
    const void* grad;
    bf16* low;
    i64 n, grad_is_bf16, threads;
    float shrink, keep, lerp, beta2, rest2, root2, eps, step;
};

static inline __m512 widen(const bf16* x, __mmask16 some) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, x)), 16));
}

static inline __m512 take(const AdamW& a, i64 i, __mmask16 some) {
    if (a.grad_is_bf16) return widen(static_cast<const bf16*>(a.grad) + i, some);
    return _mm512_maskz_loadu_ps(some, static_cast<const float*>(a.grad) + i);
}

static inline void sixteen(const AdamW& a, i64 i, __mmask16 some) {
    const __m512 g = _mm512_mul_ps(take(a, i, some), _mm512_set1_ps(a.shrink));
    __m512 w = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, a.weight + i), _mm512_set1_ps(a.keep));
    __m512 m = _mm512_maskz_loadu_ps(some, a.mean + i);
    m = _mm512_fmadd_ps(_mm512_set1_ps(a.lerp), _mm512_sub_ps(g, m), m);
    const __m512 old = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, a.squares + i), _mm512_set1_ps(a.beta2));
    const __m512 v = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(a.rest2), g), g, old);
    const __m512 spread = _mm512_add_ps(_mm512_div_ps(_mm512_sqrt_ps(v), _mm512_set1_ps(a.root2)), _mm512_set1_ps(a.eps));
    w = _mm512_add_ps(w, _mm512_div_ps(_mm512_mul_ps(_mm512_set1_ps(-a.step), m), spread));
    _mm512_mask_storeu_ps(a.mean + i, some, m);
    _mm512_mask_storeu_ps(a.squares + i, some, v);
    _mm512_mask_storeu_ps(a.weight + i, some, w);
    if (a.low != nullptr) _mm256_mask_storeu_epi16(a.low + i, some, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(w)));
}

static const i64 PIECE = 1 << 15;
static inline i64 pieces(i64 n) { return (n + PIECE - 1) / PIECE; }
static inline __mmask16 rest(i64 n) { return static_cast<__mmask16>((1u << n) - 1); }

extern "C" void adamw_step(const AdamW* told) {
    const AdamW& a = *told;
    split(pieces(a.n), a.threads, [&a](i64 piece) {
        i64 i = piece * PIECE;
        const i64 end = std::min(a.n, i + PIECE);
        for (; i + 16 <= end; i += 16) sixteen(a, i, 0xffff);
        if (i < end) sixteen(a, i, rest(end - i));
    });
}

// The sum of the squares of each piece of a gradient, one after the other.
extern "C" void adamw_squares(const bf16* grad, i64 n, i64 threads, double* sums) {
    split(pieces(n), threads, [=](i64 piece) {
        const i64 end = std::min(n, (piece + 1) * PIECE);
        __m512 lanes[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        i64 i = piece * PIECE;
        for (; i + 64 <= end; i += 64)
            for (i64 k = 0; k < 4; k++) {
                const __m512 g = widen(grad + i + 16 * k, 0xffff);
                lanes[k] = _mm512_fmadd_ps(g, g, lanes[k]);
            }
        for (; i < end; i += 16) {
            const __m512 g = widen(grad + i, end - i >= 16 ? 0xffff : rest(end - i));
            lanes[0] = _mm512_fmadd_ps(g, g, lanes[0]);
        }
        sums[piece] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(lanes[0], lanes[1]), _mm512_add_ps(lanes[2], lanes[3])));
    });
}
