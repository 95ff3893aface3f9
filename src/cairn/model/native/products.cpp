// The three matrix products of a linear layer in bf16 with fp32 sums. Knows pointers and strides; no layer, no torch.
//
// C (M × N) = A (M × K) · B (K × N). Columns of C are made by panels of 48: a panel of B is laid out once as pairs of numbers that follow
// each other along K, and stays in the cache while the rows of A pass by, eight at a time, whose sums stay in registers (Goto and van de Geijn
// 2008). An element's sum is made in one task in the order of K: the bits depend neither on threads nor on how many rows there are.

#include "parallel.h"

static const i64 ROWS = 8, LANES = 3, PANEL = 16 * LANES;
static const i64 DEEP = 1024;  // pairs along K that a panel holds at once: 192 kB
static const i64 TALL = 512, BROAD = 5;  // rows and panels of a task that keeps sums: half a megabyte

// Eight rows of sixteen numbers in bf16 become columns: c[n · ldc + m].
static inline void store_turned(const __m512* sum, i64 step, bf16* c, i64 ldc) {
    __m256i x[8], y[8];
    for (int m = 0; m < 8; m++) x[m] = narrow(sum[m * step]);
    for (int m = 0; m < 4; m++) {
        y[2 * m] = _mm256_unpacklo_epi16(x[2 * m], x[2 * m + 1]);
        y[2 * m + 1] = _mm256_unpackhi_epi16(x[2 * m], x[2 * m + 1]);
    }
    for (int m = 0; m < 8; m += 4)
        for (int h = 0; h < 2; h++) {
            x[m + 2 * h] = _mm256_unpacklo_epi32(y[m + h], y[m + h + 2]);
            x[m + 2 * h + 1] = _mm256_unpackhi_epi32(y[m + h], y[m + h + 2]);
        }
    for (int q = 0; q < 4; q++) {
        const __m256i low = _mm256_unpacklo_epi64(x[q], x[q + 4]), high = _mm256_unpackhi_epi64(x[q], x[q + 4]);
        bf16* at = c + 2 * q * ldc;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(low));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + ldc), _mm256_castsi256_si128(high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 8 * ldc), _mm256_extracti128_si256(low, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 9 * ldc), _mm256_extracti128_si256(high, 1));
    }
}

// c (MR × 16·NV) = or += a · b. A's pair of row m and place k is a[m · lda + k], or a[k · ROWS + m] where rows were laid out. With `sums`
// the fp32 sums are taken from there unless this is the first depth; they are left there unless there is a `c`, which gets them in bf16,
// columns as rows if TURNED.
template <int MR, int NV, bool LAID, bool TURNED>
static void tile(const uint32_t* a, i64 lda, const uint32_t* b, i64 pairs, float* sums, bool first, bf16* c, i64 ldc) {
    __m512 sum[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) sum[m][n] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + m * PANEL + 16 * n);
    for (i64 k = 0; k < pairs; k++) {
        __m512bh right[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) right[n] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + k * 16 * NV + 16 * n));
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            const __m512bh left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(LAID ? a[k * ROWS + m] : a[m * lda + k])));
#pragma GCC unroll 8
            for (int n = 0; n < NV; n++) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], left, right[n]);
        }
    }
    if constexpr (TURNED && MR == ROWS)
        if (c != nullptr) {
            for (int n = 0; n < NV; n++) store_turned(&sum[0][n], NV, c + 16 * n * ldc, ldc);
            return;
        }
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) {
            if (c != nullptr) store16(c + m * ldc + 16 * n, sum[m][n]);
            else _mm512_storeu_ps(sums + m * PANEL + 16 * n, sum[m][n]);
        }
}

using Tile = void (*)(const uint32_t*, i64, const uint32_t*, i64, float*, bool, bf16*, i64);

template <int NV, bool LAID, bool TURNED>
static Tile tile_of_rows(i64 rows) {
    switch (rows) {
        case 1: return tile<1, NV, LAID, TURNED>;
        case 2: return tile<2, NV, LAID, TURNED>;
        case 3: return tile<3, NV, LAID, TURNED>;
        case 4: return tile<4, NV, LAID, TURNED>;
        case 5: return tile<5, NV, LAID, TURNED>;
        case 6: return tile<6, NV, LAID, TURNED>;
        case 7: return tile<7, NV, LAID, TURNED>;
        default: return tile<8, NV, LAID, TURNED>;
    }
}

template <bool LAID, bool TURNED>
static Tile tile_of(i64 rows, i64 lanes) {
    switch (lanes) {
        case 1: return tile_of_rows<1, LAID, TURNED>(rows);
        case 2: return tile_of_rows<2, LAID, TURNED>(rows);
        default: return tile_of_rows<3, LAID, TURNED>(rows);
    }
}

// Sixteen rows of sixteen 32-bit numbers become columns.
static inline void turn16(__m512i* x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}

// B's panel where B is the transpose of rows that lie along K: to[k][n] = pair k of row n.
static void panel_of_rows(const bf16* b, i64 ldb, i64 lanes, i64 pairs, uint32_t* to) {
    for (i64 n = 0; n < lanes; n++)
        for (i64 k = 0; k < pairs; k += 16) {
            const i64 some = std::min<i64>(16, pairs - k);
            const __mmask16 mask = static_cast<__mmask16>((1u << some) - 1);
            __m512i x[16];
            for (int i = 0; i < 16; i++) x[i] = _mm512_maskz_loadu_epi32(mask, b + (16 * n + i) * ldb + 2 * k);
            turn16(x);
            for (i64 i = 0; i < some; i++) _mm512_storeu_si512(to + (k + i) * 16 * lanes + 16 * n, x[i]);
        }
}

// Pairs of sixteen numbers of two rows; without an odd row there are zeros.
static inline __m512i pair16(const bf16* even, const bf16* odd) {
    const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
    if (odd == nullptr) return a;
    const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
    return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

// B's panel where B's own rows, of which there are `rows`, follow each other along K: to[k][n] = (B[2k][n], B[2k + 1][n]).
static void panel_of_columns(const bf16* b, i64 ldb, i64 rows, i64 lanes, uint32_t* to) {
    for (i64 k = 0; 2 * k < rows; k++) {
        const bf16 *even = b + 2 * k * ldb, *odd = 2 * k + 1 < rows ? even + ldb : nullptr;
        for (i64 n = 0; n < lanes; n++)
            _mm512_storeu_si512(to + (k * lanes + n) * 16, pair16(even + 16 * n, odd == nullptr ? nullptr : odd + 16 * n));
    }
}

// Pairs from one block of eight laid-out rows to the next: one more than there are, for blocks at powers of two would share their places in
// the cache.
static inline i64 block_step(i64 pairs) { return (pairs + 2) * ROWS; }

// A's blocks of eight rows where A is the transpose of a matrix whose rows (`rows`) follow each other along K: to[block][k][m]. M is a
// multiple of 16.
static void lay_out(const bf16* a, i64 lda, i64 M, i64 rows, i64 threads, uint32_t* to) {
    const i64 together = 16, pairs = (rows + 1) / 2, step = block_step(pairs);
    split((pairs + together - 1) / together, threads, [=](i64 task) {
        // Row by row, so that what is read lies in one piece.
        for (i64 k = task * together; k < std::min(pairs, (task + 1) * together); k++) {
            const bf16 *even = a + 2 * k * lda, *odd = 2 * k + 1 < rows ? even + lda : nullptr;
            for (i64 m = 0; m < M; m += 16) {
                const __m512i x = pair16(even + m, odd == nullptr ? nullptr : odd + m);
                uint32_t* at = to + m / ROWS * step + k * ROWS;
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_castsi512_si256(x));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + step), _mm512_extracti64x4_epi64(x, 1));
            }
        }
    });
}

template <bool LAID, bool TURNED, class Pack>
static void multiply(const uint32_t* a, i64 lda, i64 M, i64 N, i64 pairs, bf16* c, i64 ldc, i64 threads, Pack pack) {
    const i64 lanes_in_all = N / 16, panels = (lanes_in_all + LANES - 1) / LANES;
    const bool several = pairs > DEEP;
    // A panel is laid out for all rows at once, unless some thread would have nothing to do. Of a sum in several depths some rows go through
    // all of them, and some panels together: rows are read once for these, and the sums of all stay near.
    i64 parts = several ? (M + TALL - 1) / TALL : std::max<i64>(1, (4 * threads + panels - 1) / panels);
    const i64 tall = std::max<i64>(16, (M + ROWS * parts - 1) / (ROWS * parts)) * ROWS;
    parts = (M + tall - 1) / tall;
    i64 groups = several ? (panels + BROAD - 1) / BROAD : panels;
    while (groups < panels && groups * parts % threads != 0) groups++;
    split(groups * parts, threads, [=](i64 task) {
        const i64 group = task / parts, first = task % parts * tall, end = std::min(M, first + tall);
        const i64 from = group * panels / groups, to = (group + 1) * panels / groups, deep = std::min(pairs, DEEP);
        scratch.reset(deep * PANEL * 4 + (several ? (to - from) * tall * PANEL * 4 : 0) + 128);
        auto* b = scratch.take<uint32_t>(deep * PANEL);
        auto* sums = several ? scratch.take<float>((to - from) * tall * PANEL) : nullptr;
        for (i64 k = 0; k < pairs; k += DEEP)
            for (i64 panel = from; panel < to; panel++) {
                // Lanes are dealt out evenly: a panel of one lane would keep the processor waiting for its sums.
                const i64 lane = panel * lanes_in_all / panels, lanes = (panel + 1) * lanes_in_all / panels - lane, column = 16 * lane;
                const i64 some = std::min(DEEP, pairs - k);
                const bool last = k + some == pairs;
                const Tile whole = tile_of<LAID, TURNED>(ROWS, lanes), left = tile_of<LAID, TURNED>((end - first) % ROWS, lanes);
                pack(column, k, lanes, some, b);
                for (i64 m = first; m < end; m += ROWS)
                    (m + ROWS <= end ? whole : left)(
                        LAID ? a + m / ROWS * block_step(pairs) + k * ROWS : a + m * lda + k, lda, b, some,
                        several ? sums + ((panel - from) * tall + m - first) * PANEL : nullptr, k == 0,
                        last ? TURNED ? c + column * ldc + m : c + m * ldc + column : nullptr, ldc);
            }
    });
}

static inline const uint32_t* pairs_of(const bf16* x) { return reinterpret_cast<const uint32_t*>(x); }

// y (T × O) = x (T × I) · w (O × I)ᵀ. O and I are multiples of 16, and steps from row to row even; so below.
extern "C" void product_forward(const bf16* x, i64 step_x, const bf16* w, bf16* y, i64 step_y, i64 T, i64 O, i64 I, i64 threads) {
    multiply<false, false>(pairs_of(x), step_x / 2, T, O, I / 2, y, step_y, threads, [=](i64 n, i64 k, i64 lanes, i64 some, uint32_t* to) {
        panel_of_rows(w + n * I + 2 * k, I, lanes, some, to);
    });
}

// dx (T × I) = g (T × O) · w (O × I).
extern "C" void product_input(const bf16* g, i64 step_g, const bf16* w, bf16* dx, i64 T, i64 O, i64 I, i64 threads) {
    multiply<false, false>(pairs_of(g), step_g / 2, T, I, O / 2, dx, I, threads, [=](i64 n, i64 k, i64 lanes, i64 some, uint32_t* to) {
        panel_of_columns(w + 2 * k * I + n, I, 2 * some, lanes, to);
    });
}

// dw (O × I) = g (T × O)ᵀ · x (T × I). `room` holds (T / 2 rounded up, + 2) · min(O, I) pairs. The narrower one is laid out: it is read for
// each panel.
extern "C" void product_weight(
    const bf16* g, i64 step_g, const bf16* x, i64 step_x, bf16* dw, uint32_t* room, i64 T, i64 O, i64 I, i64 threads) {
    const i64 pairs = (T + 1) / 2;
    if (O <= I) {
        lay_out(g, step_g, O, T, threads, room);
        multiply<true, false>(room, 0, O, I, pairs, dw, I, threads, [=](i64 n, i64 k, i64 lanes, i64 some, uint32_t* to) {
            panel_of_columns(x + 2 * k * step_x + n, step_x, std::min(2 * some, T - 2 * k), lanes, to);
        });
    } else {
        lay_out(x, step_x, I, T, threads, room);
        multiply<true, true>(room, 0, I, O, pairs, dw, I, threads, [=](i64 n, i64 k, i64 lanes, i64 some, uint32_t* to) {
            panel_of_columns(g + 2 * k * step_g + n, step_g, std::min(2 * some, T - 2 * k), lanes, to);
        });
    }
}
