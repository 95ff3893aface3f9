// A decoder's forward pass on CPU as one call: RMS norms, rotary positions, grouped queries, gated feed-forward, a static cache a slot.
// Knows arrays only: which model they are of, and that it computes what its own code computes, is checked by the caller.
//
// One result never depends on what else is computed beside it: every sum runs over its own index in one fixed order, whatever the
// number of rows, threads or tokens at once. So the logits of a token are the same bits alone, in a batch, and in a verified draft.
//
// Weights lie in panels of 32 rows, so that a step along k reads one line: fp32 as [k][32], bf16 as [k/2][32][2], int8 as
// [k/2][2][2][16] (half of the panel, parity of k, row), int4 as [k/8][32] words of eight values. With other weights than fp32 the
// inputs of products and the cache are bf16; sums, norms, softmax and the residual stream are always fp32.
// Vectors are GCC's and clang's, 16 floats, lowered to what the machine has; AVX-512's bf16 product is used where there is one.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define F32 0
#define BF16 1
#define I8 2
#define I4 3
#ifndef WEIGHTS
#error "compile with -DWEIGHTS=0 (fp32), 1 (bf16), 2 (int8) or 3 (int4)"
#endif

typedef float F __attribute__((vector_size(64), aligned(4)));
typedef uint32_t U __attribute__((vector_size(64), aligned(4)));
typedef int32_t I __attribute__((vector_size(64), aligned(4)));
typedef uint16_t H __attribute__((vector_size(32), aligned(2)));
typedef int8_t B __attribute__((vector_size(16), aligned(1)));

#if WEIGHTS == F32
typedef float X;      // one input of a product
typedef float C;      // one entry of the cache
#define PER_X 1       // values of k in an X
#else
typedef uint32_t X;   // two inputs in bf16, the lower k in the lower half
typedef uint16_t C;
#define PER_X 2
#endif

extern "C" {

struct Linear {
    const char* weight;
    const float* scale;  // one a row (int8), or [k/32][rows] (int4)
    const float* bias;   // one a row, or null
    int64_t rows, k;     // padded: rows to 32, k to 16 (int4: 32)
};

struct Layer {
    Linear qkv, out, gate_up, down;  // gate_up: panels of 16 rows of gate and the same 16 of up
    const float *norm1, *norm2, *q_norm, *k_norm;
    C *keys, *values;  // [page][kv_heads][32 tokens], keys in blocks of 16 as [head_dim / PER_X][16][PER_X], values as [32][head_dim padded to 16]
    int64_t window;    // 0: none
};

struct Shape {
    int64_t layers, hidden, heads, kv_heads, head_dim, inner, capacity, max_rows, threads, embed_bf16;
    float eps, scaling;
    const void* embed;
    const float *cos, *sin;  // [capacity][head_dim / 2]
    const int32_t* pages;    // [slots][capacity / 32, rounded up]: where the tokens of a slot lie
    const float* norm;
    Linear head;
    const Layer* layer;
};
}

namespace {

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline F splat(float x) { return F{} + x; }
inline F loadf(const float* p) { F v; std::memcpy(&v, p, 64); return v; }
inline void storef(float* p, F v) { std::memcpy(p, &v, 64); }
inline U loadu(const void* p) { U v; std::memcpy(&v, p, 64); return v; }
inline F as_f(U u) { return (F)u; }

inline uint16_t to_bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    // Rounding up would turn a NaN into a number, and broken weights would go unseen.
    return x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float from_bf16(uint16_t h) {
    uint32_t u = uint32_t(h) << 16;
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
inline H to_bf16(F x) {
    U u = (U)x, r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    I nan = x != x;
    r = (r & ~(U)nan) | (U)(nan & 0x7fc0);
    return __builtin_convertvector(r, H);
}

// x as inputs of products: 16 values from index k on of a row.
inline void put(X* row, int64_t k, F x) {
#if WEIGHTS == F32
    storef(row + k, x);
#else
    H h = to_bf16(x);
    std::memcpy(reinterpret_cast<uint16_t*>(row) + k, &h, 32);
#endif
}
inline void put1(X* row, int64_t k, float x) {
#if WEIGHTS == F32
    row[k] = x;
#else
    reinterpret_cast<uint16_t*>(row)[k] = to_bf16(x);
#endif
}

// acc + the product of 16 columns with one X.
inline F mac(F acc, U w, X x) {
#if WEIGHTS == F32
    return acc + as_f(w) * splat(x);
#elif defined(__AVX512BF16__)
    return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)w, (__m512bh)_mm512_set1_epi32(int(x)));
#else
    acc = acc + as_f(w & 0xffff0000u) * splat(from_bf16(uint16_t(x >> 16)));
    return acc + as_f(w << 16) * splat(from_bf16(uint16_t(x)));
#endif
}

inline float sum(F v) {
    float t[16], s = 0;
    storef(t, v);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    s = t[0];
    return s;
}
inline float greatest(F v) {
    float m = v[0];
    for (int i = 1; i < 16; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// e^x by 2^n · p(r), |r| <= ln 2 / 2; relative error about 1e-7. A NaN stays one.
inline F exponential(F x) {
    I low = x < -87.f, high = x > 88.f;
    F c = (F)((((U)x) & ~(U)low & ~(U)high) | ((U)splat(-87.f) & (U)low) | ((U)splat(88.f) & (U)high));
    F n = c * 1.44269504f;
    n = n + 12582912.f;  // rounds to an integer
    I e = (I)n << 23;
    n = n - 12582912.f;
    F r = c - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    F p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return (F)((I)p + e);
}

// -- products ---------------------------------------------------------------------------------------------------------

#if WEIGHTS == F32
constexpr int64_t STEP = 128, VECTOR = 64, PER_STEP = 1;
#elif WEIGHTS == BF16
constexpr int64_t STEP = 128, VECTOR = 64, PER_STEP = 2;
#elif WEIGHTS == I8
constexpr int64_t STEP = 64, VECTOR = 32, PER_STEP = 2;
#else
constexpr int64_t STEP = 128, VECTOR = 64, PER_STEP = 8, GROUP = 32;
#endif

#if WEIGHTS == I4
// Pair `p` of eight nibbles as bf16: value - 8.
inline U pair(U w, int p) {
#if defined(__AVX512BW__)
    // The permutation reads 5 bits of each index: a table of 16 twice over ignores the neighbour's lowest bit.
    static const uint16_t table[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
                                       0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                       0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    return (U)_mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)w, 4 * p), _mm512_loadu_si512(table));
#else
    U low = (U)__builtin_convertvector((I)((w >> (4 * p)) & 15u) - 8, F), high = (U)__builtin_convertvector((I)((w >> (4 * p + 16)) & 15u) - 8, F);
    return (low >> 16) | (high & 0xffff0000u);
#endif
}
#elif WEIGHTS == I8
// Sixteen pairs of bytes as bf16: exact, for eight bits fit into one.
inline U widen(const char* p) {
    B even, odd;
    std::memcpy(&even, p, 16);
    std::memcpy(&odd, p + 16, 16);
#if defined(__AVX512BW__)
    __m512i e = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)even)), o = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)odd));
    return (U)_mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(e, 16), o);
#else
    // In two steps: compilers widen twofold by one instruction, and fourfold one by one.
    typedef int16_t S __attribute__((vector_size(32)));
    U e = (U)__builtin_convertvector(__builtin_convertvector(__builtin_convertvector(even, S), I), F);
    U o = (U)__builtin_convertvector(__builtin_convertvector(__builtin_convertvector(odd, S), I), F);
    return (e >> 16) | (o & 0xffff0000u);
#endif
}
#endif

// out[m][j] = the products of M rows of x with the 32 columns of a panel, `steps` along k. One panel at a time: two streams of weights
// at once ran at half the speed, however few rows there were.
template <int M>
void tile(const char* weight, int64_t steps, const X* x, int64_t stride, float* out, [[maybe_unused]] const float* scale, [[maybe_unused]] int64_t scales) {
    F acc[M][2];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = F{};
#if WEIGHTS == I4
    for (int64_t g = 0; g < steps / 4; g++) {
        F part[M][2];
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) part[m][0] = part[m][1] = F{};
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            const char* at = weight + (4 * g + s) * STEP;
            U w[2] = {loadu(at), loadu(at + VECTOR)};
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) {
                U v[2] = {pair(w[0], p), pair(w[1], p)};
#pragma GCC unroll 12
                for (int m = 0; m < M; m++)
                    for (int j = 0; j < 2; j++) part[m][j] = mac(part[m][j], v[j], x[m * stride + (4 * g + s) * 4 + p]);
            }
        }
        F f[2] = {loadf(scale + g * scales), loadf(scale + g * scales + 16)};
#pragma GCC unroll 12
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 2; j++) acc[m][j] = acc[m][j] + part[m][j] * f[j];
    }
#else
    for (int64_t s = 0; s < steps; s++) {
        const char* at = weight + s * STEP;
        // While several rows are computed the memory would stand idle. One row of bf16 keeps it busy by itself, and loses by this.
        if (M > 2 || WEIGHTS == I8)
            for (int64_t line = 0; line < STEP; line += 64) __builtin_prefetch(at + 8192 + line, 0, 2);
#if WEIGHTS == I8
        U w[2] = {widen(at), widen(at + VECTOR)};
#else
        U w[2] = {loadu(at), loadu(at + VECTOR)};
#endif
#pragma GCC unroll 12
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 2; j++) acc[m][j] = mac(acc[m][j], w[j], x[m * stride + s]);
    }
#endif
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
        for (int j = 0; j < 2; j++) {
#if WEIGHTS == I8
            acc[m][j] = acc[m][j] * loadf(scale + 16 * j);
#endif
            storef(out + m * 32 + 16 * j, acc[m][j]);
        }
}

// -- threads ----------------------------------------------------------------------------------------------------------

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// Where a thread is in the program that all run: which call of it, and which phase.
struct Cursor {
    uint64_t id;
};

// Threads that walk through one program of phases. A phase is over when its work is done, not when all threads came by: a thread
// that has no core at the moment holds nobody up unless it sleeps in the midst of a share, and skips what the others did meanwhile.
class Team {
  public:
    Team(int n, void (*program)(void*, Cursor), void* self) : n_(n), program_(program), self_(self) {
        for (int i = 1; i < n; i++) threads_.emplace_back([this] { serve(); });
    }
    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            call_++;
        }
        wake_.notify_all();
        for (auto& t : threads_) t.join();
    }
    // Run the program once; the caller takes part. Others may still be walking through finished phases when it returns.
    void run() {
        uint64_t call = call_.load(std::memory_order_relaxed) + 1;
        ticket_.store(first(call) << SHIFT, std::memory_order_release);
        if (n_ > 1) {
            std::lock_guard<std::mutex> lock(mutex_);
            call_.store(call, std::memory_order_release);
        } else {
            call_.store(call, std::memory_order_relaxed);
        }
        if (n_ > 1) wake_.notify_all();
        program_(self_, Cursor{first(call)});
    }
    // Do a phase: `work(from, to)` for shares of `total` pieces as they come, large ones first; returns when all of it is done.
    template <class W> void phase(Cursor& at, int64_t total, W&& work) {
        for (;;) {
            uint64_t t = ticket_.load(std::memory_order_acquire);
            int64_t next = int64_t(t & (MASK));
            if (t >> SHIFT != at.id || next >= total) break;
            int64_t share = n_ == 1 ? total : (total - next) / (2 * n_);
            if (share < 1) share = 1;
            if (!ticket_.compare_exchange_weak(t, t + uint64_t(share), std::memory_order_acq_rel)) continue;
            work(next, next + share);
            if (done_.fetch_add(share, std::memory_order_acq_rel) + share == total) {
                done_.store(0, std::memory_order_relaxed);
                ticket_.store((at.id + 1) << SHIFT, std::memory_order_release);
            }
        }
        // Whoever waits for a thread that has no core must give its own away.
        for (int spins = 0; ticket_.load(std::memory_order_acquire) >> SHIFT == at.id; spins++) spins < 4000 ? relax() : std::this_thread::yield();
        at.id++;
    }

  private:
    static constexpr int SHIFT = 24, PHASES = 12;  // bits of a ticket for the next piece, and of an id for the phase
    static constexpr uint64_t MASK = (uint64_t(1) << SHIFT) - 1;
    static uint64_t first(uint64_t call) { return (call << PHASES) & (~uint64_t(0) >> SHIFT); }

    void serve() {
        for (uint64_t seen = 0;;) {
            for (int spins = 0; call_.load(std::memory_order_acquire) == seen && spins < 2000; spins++) relax();
            if (call_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return call_.load() != seen; });
            }
            if (stop_) return;
            seen = call_.load(std::memory_order_acquire);
            program_(self_, Cursor{first(seen)});
        }
    }

    int n_;
    void (*program_)(void*, Cursor);
    void* self_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> call_{0}, ticket_{0};
    std::atomic<int64_t> done_{0};
    std::atomic<bool> stop_{false};
};

// -- the decoder ------------------------------------------------------------------------------------------------------

enum Then { STORE, ADD, GATE };

class Decoder {
  public:
    explicit Decoder(const Shape& shape)
        : s_(shape), layers_(shape.layer, shape.layer + shape.layers), hidden_(up(s_.hidden, 32)), inner_(up(s_.inner, 32)),
          joined_(up((s_.heads + 2 * s_.kv_heads) * s_.head_dim, 32)), attended_(up(s_.heads * s_.head_dim, 32)), width_(up(s_.head_dim, 16)),
          per_slot_(up(s_.capacity, PAGE) / PAGE), h_(s_.max_rows * hidden_), qkv_(s_.max_rows * joined_), x_(s_.max_rows * hidden_),
          q_(s_.max_rows * attended_), attention_(s_.max_rows * attended_), act_(s_.max_rows * inner_),
          team_(int(shape.threads), [](void* self, Cursor at) { static_cast<Decoder*>(self)->program(at); }, this) {
        s_.layer = layers_.data();
    }

    void forward(int64_t rows, const int32_t* ids, const int32_t* slots, const int32_t* places, int64_t wanted, const int32_t* which, float* out) {
        rows_ = rows;
        ids_ = ids;
        slots_ = slots;
        places_ = places;
        wanted_ = wanted;
        which_ = which;
        out_ = out;
        team_.run();
    }

    void copy(int64_t source, int64_t target, int64_t length) {
        int64_t k = s_.kv_heads * PAGE * s_.head_dim, v = s_.kv_heads * PAGE * width_;
        for (const Layer& layer : layers_)
            for (int64_t t = 0; t < length; t += PAGE) {
                std::memcpy(keys(layer, page(target, t), 0), keys(layer, page(source, t), 0), k * sizeof(C));
                std::memcpy(values(layer, page(target, t), 0), values(layer, page(source, t), 0), v * sizeof(C));
            }
    }

  private:
    static constexpr int64_t PAGE = 32;  // tokens
    float* h(int64_t m) { return h_.data() + m * hidden_; }
    X* x(int64_t m) { return x_.data() + m * (hidden_ / PER_X); }
    int64_t page(int64_t slot, int64_t t) { return s_.pages[slot * per_slot_ + t / PAGE]; }
    C* keys(const Layer& l, int64_t page, int64_t head) { return l.keys + (page * s_.kv_heads + head) * PAGE * s_.head_dim; }
    C* values(const Layer& l, int64_t page, int64_t head) { return l.values + (page * s_.kv_heads + head) * PAGE * width_; }

    // What every thread runs. One that comes late reads the next call's numbers, but gets no share of a phase that is over.
    void program(Cursor at) {
        int64_t rows = rows_, wanted = wanted_, parts = s_.heads + 2 * s_.kv_heads;
        each(at, rows, [&](int64_t m) { embed(m, ids_[m]); });
        for (const Layer& layer : layers_) {
            each(at, rows, [&](int64_t m) { norm(h(m), layer.norm1, x(m)); });
            product(at, layer.qkv, x_.data(), hidden_ / PER_X, rows, STORE, qkv_.data(), joined_);
            each(at, rows * parts, [&](int64_t i) { place(layer, i / parts, i % parts); });
            each(at, rows * s_.heads, [&](int64_t i) { attend(layer, i / s_.heads, i % s_.heads); });
            product(at, layer.out, attention_.data(), attended_ / PER_X, rows, ADD, h_.data(), hidden_);
            each(at, rows, [&](int64_t m) { norm(h(m), layer.norm2, x(m)); });
            product(at, layer.gate_up, x_.data(), hidden_ / PER_X, rows, GATE, nullptr, 0);
            product(at, layer.down, act_.data(), inner_ / PER_X, rows, ADD, h_.data(), hidden_);
        }
        if (wanted) {
            each(at, wanted, [&](int64_t m) { norm(h(which_[m]), s_.norm, x(m)); });
            product(at, s_.head, x_.data(), hidden_ / PER_X, wanted, STORE, out_, s_.head.rows);
        }
    }

    template <class W> void each(Cursor& at, int64_t total, W&& work) {
        team_.phase(at, total, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i++) work(i);
        });
    }

    void embed(int64_t m, int64_t id) {
        float* row = h(m);
        if (s_.embed_bf16) {
            const uint16_t* from = static_cast<const uint16_t*>(s_.embed) + id * s_.hidden;
            for (int64_t i = 0; i < s_.hidden; i++) row[i] = from_bf16(from[i]);
        } else {
            std::memcpy(row, static_cast<const float*>(s_.embed) + id * s_.hidden, s_.hidden * 4);
        }
    }

    // RMS norm of `s_.hidden` values; gains are padded with zeros.
    void norm(const float* from, const float* gain, X* to) {
        F squares{};
        for (int64_t i = 0; i < hidden_; i += 16) {
            F v = loadf(from + i);
            squares = squares + v * v;
        }
        float scale = 1.f / __builtin_sqrtf(sum(squares) / float(s_.hidden) + s_.eps);
        for (int64_t i = 0; i < hidden_; i += 16) put(to, i, loadf(from + i) * scale * loadf(gain + i));
    }

    void product(Cursor& at, const Linear& w, const X* x, int64_t stride, int64_t rows, Then then, float* to, int64_t to_stride) {
        int64_t steps = w.k / PER_STEP, bytes = steps * STEP;
        team_.phase(at, w.rows / 32, [&](int64_t p, int64_t end) {
            float out[12 * 32];
            for (; p < end; p++)
                for (int64_t m = 0; m < rows;) {
                    int many = block(rows - m);
                    const float* scale = w.scale ? w.scale + p * 32 : nullptr;
                    multiply(many, w.weight + p * bytes, steps, x + m * stride, stride, out, scale, w.rows);
                    for (int i = 0; i < many; i++) finish(w, then, out + i * 32, m + i, p, to, to_stride);
                    m += many;
                }
        });
    }

    static int block(int64_t left) {
#if WEIGHTS == I4
        return left >= 4 ? 4 : left >= 2 ? 2 : 1;
#else
        // Two equal passes over a panel rather than one of twelve and one of few.
        return left <= 12 ? int(left) : left <= 24 ? int(left + 1) / 2 : 12;
#endif
    }

    static void multiply(int m, const char* w, int64_t steps, const X* x, int64_t stride, float* out, const float* scale, int64_t scales) {
        switch (m) {
            case 1: return tile<1>(w, steps, x, stride, out, scale, scales);
            case 2: return tile<2>(w, steps, x, stride, out, scale, scales);
            case 4: return tile<4>(w, steps, x, stride, out, scale, scales);
#if WEIGHTS != I4
            case 3: return tile<3>(w, steps, x, stride, out, scale, scales);
            case 5: return tile<5>(w, steps, x, stride, out, scale, scales);
            case 6: return tile<6>(w, steps, x, stride, out, scale, scales);
            case 7: return tile<7>(w, steps, x, stride, out, scale, scales);
            case 8: return tile<8>(w, steps, x, stride, out, scale, scales);
            case 9: return tile<9>(w, steps, x, stride, out, scale, scales);
            case 10: return tile<10>(w, steps, x, stride, out, scale, scales);
            case 11: return tile<11>(w, steps, x, stride, out, scale, scales);
            case 12: return tile<12>(w, steps, x, stride, out, scale, scales);
#endif
        }
    }

    void finish(const Linear& w, Then then, const float* out, int64_t m, int64_t panel, float* to, int64_t stride) {
        F a = loadf(out), b = loadf(out + 16);
        if (w.bias) {
            a = a + loadf(w.bias + panel * 32);
            b = b + loadf(w.bias + panel * 32 + 16);
        }
        if (then == GATE) {
            put(act_.data() + m * (inner_ / PER_X), panel * 16, a / (1.f + exponential(-a)) * b);
            return;
        }
        float* at = to + m * stride + panel * 32;
        if (then == ADD) {
            a = a + loadf(at);
            b = b + loadf(at + 16);
        }
        storef(at, a);
        storef(at + 16, b);
    }

    // Part `part` of a row's joined q, k, v: a query is turned and kept, a key turned and cached, a value cached.
    void place(const Layer& layer, int64_t m, int64_t part) {
        int64_t D = s_.head_dim, t = places_[m];
        float* v = qkv_.data() + m * joined_ + part * D;
        if (part >= s_.heads + s_.kv_heads) {
            C* at = values(layer, page(slots_[m], t), part - s_.heads - s_.kv_heads) + t % PAGE * width_;
            for (int64_t i = 0; i < width_; i++) cache(at + i, i < D ? v[i] : 0.f);
            return;
        }
        bool query = part < s_.heads;
        const float* gain = query ? layer.q_norm : layer.k_norm;
        if (gain) {
            float squares = 0;
            for (int64_t i = 0; i < D; i++) squares += v[i] * v[i];
            float scale = 1.f / __builtin_sqrtf(squares / float(D) + s_.eps);
            for (int64_t i = 0; i < D; i++) v[i] = v[i] * scale * gain[i];
        }
        const float *cos = s_.cos + t * (D / 2), *sin = s_.sin + t * (D / 2);
        for (int64_t i = 0; i < D / 2; i++) {
            float a = v[i], b = v[i + D / 2];
            v[i] = a * cos[i] - b * sin[i];
            v[i + D / 2] = b * cos[i] + a * sin[i];
        }
        if (query) {
            X* to = q_.data() + m * (attended_ / PER_X);
            for (int64_t i = 0; i < D; i++) put1(to, part * D + i, v[i]);
            return;
        }
        // Sixteen keys side by side: [block][D / PER_X][16 keys][PER_X].
        C* at = keys(layer, page(slots_[m], t), part - s_.heads) + (t % PAGE / 16) * 16 * D + (t % 16) * PER_X;
        for (int64_t i = 0; i < D; i++) cache(at + (i / PER_X) * 16 * PER_X + i % PER_X, v[i]);
    }

    static void cache(C* at, float x) {
#if WEIGHTS == F32
        *at = x;
#else
        *at = to_bf16(x);
#endif
    }

    // Softmax attention of one row and query head over its slot's keys up to its own place.
    void attend(const Layer& layer, int64_t m, int64_t head) {
        int64_t D = s_.head_dim, t = places_[m], kv = head / (s_.heads / s_.kv_heads);
        int64_t first = layer.window && t >= layer.window ? t - layer.window + 1 : 0;
        const X* q = q_.data() + m * (attended_ / PER_X) + head * (D / PER_X);
        thread_local std::vector<float> scores;
        scores.resize(per_slot_ * PAGE + 64);
        int64_t b0 = first / 16, b1 = t / 16 + 1;
        for (int64_t b = b0; b < b1;) b += b1 - b >= 4 ? dots<4>(layer, slots_[m], kv, q, b, scores.data()) : dots<1>(layer, slots_[m], kv, q, b, scores.data());
        I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const U below = (U)splat(-__builtin_inff());
        F most = (F)below;
        for (int64_t b = b0; b < b1; b++) {
            I at = lane + int32_t(16 * b);
            U outside = (U)((at < int32_t(first)) | (at > int32_t(t)));
            // What lies beyond the last key may be anything, NaN too: it is replaced, not multiplied.
            F score = (F)(((U)(loadf(&scores[16 * b]) * s_.scaling) & ~outside) | (below & outside));
            storef(&scores[16 * b], score);
            I more = score > most;
            most = (F)(((U)score & (U)more) | ((U)most & ~(U)more));
        }
        float top = greatest(most);
        F total{};
        for (int64_t b = b0; b < b1; b++) {
            I at = lane + int32_t(16 * b);
            U outside = (U)((at < int32_t(first)) | (at > int32_t(t)));
            F p = (F)((U)exponential(loadf(&scores[16 * b]) - top) & ~outside);
            storef(&scores[16 * b], p);
            total = total + p;
        }
        float scale = 1.f / sum(total);
        X* to = attention_.data() + m * (attended_ / PER_X);
        for (int64_t d = 0; d < width_;) {
            int64_t left = (width_ - d) / 16;
            if (left >= 4) gather<4>(layer, slots_[m], kv, first, t, scores.data(), scale, to, head, d), d += 64;
            else if (left >= 2) gather<2>(layer, slots_[m], kv, first, t, scores.data(), scale, to, head, d), d += 32;
            else gather<1>(layer, slots_[m], kv, first, t, scores.data(), scale, to, head, d), d += 16;
        }
    }

    // Scores of N blocks of 16 keys from block b on.
    template <int N> int dots(const Layer& layer, int64_t slot, int64_t kv, const X* q, int64_t b, float* scores) {
        int64_t steps = s_.head_dim / PER_X;
        const char* at[N];
        F acc[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            int64_t t = 16 * (b + j);
            at[j] = reinterpret_cast<const char*>(keys(layer, page(slot, t), kv) + t % PAGE * s_.head_dim);
            acc[j] = F{};
        }
        for (int64_t i = 0; i < steps; i++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) acc[j] = mac(acc[j], loadu(at[j] + i * 64), q[i]);
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) storef(scores + 16 * (b + j), acc[j]);
        return N;
    }

    static F value(const C* at) {
#if WEIGHTS == F32
        return loadf(at);
#else
        H h;
        std::memcpy(&h, at, 32);
        return (F)(__builtin_convertvector(h, U) << 16);
#endif
    }

    // The weighted sum of 16 N of the values' dimensions; even and odd keys apart, for two chains of additions.
    template <int N>
    void gather(const Layer& layer, int64_t slot, int64_t kv, int64_t first, int64_t t, const float* p, float scale, X* to, int64_t head, int64_t d) {
        F even[N], odd[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) even[j] = odd[j] = F{};
        for (int64_t i = first; i <= t;) {
            int64_t end = (i / PAGE + 1) * PAGE;
            if (end > t + 1) end = t + 1;
            const C* v = values(layer, page(slot, i), kv) + d - i / PAGE * PAGE * width_;
            auto add = [&](F* acc, int64_t at) {
                F weight = splat(p[at]);
#pragma GCC unroll 4
                for (int j = 0; j < N; j++) acc[j] = acc[j] + weight * value(v + at * width_ + 16 * j);
            };
            if (i % 2) add(odd, i++);
            for (; i + 1 < end; i += 2) {
                add(even, i);
                add(odd, i + 1);
            }
            if (i < end) add(even, i++);
        }
        int64_t D = s_.head_dim;
        for (int j = 0; j < N; j++) {
            F sum = (even[j] + odd[j]) * scale;
            if (d + 16 * j + 16 <= D) put(to, head * D + d + 16 * j, sum);
            else
                for (int64_t e = 0; d + 16 * j + e < D; e++) put1(to, head * D + d + 16 * j + e, sum[e]);
        }
    }

    Shape s_;
    std::vector<Layer> layers_;
    int64_t hidden_, inner_, joined_, attended_, width_, per_slot_, rows_ = 0, wanted_ = 0;
    const int32_t *ids_ = nullptr, *slots_ = nullptr, *places_ = nullptr, *which_ = nullptr;
    float* out_ = nullptr;
    std::vector<float> h_, qkv_;
    std::vector<X> x_, q_, attention_, act_;
    Team team_;  // last: it goes first, before what its threads use
};

}  // namespace

extern "C" {
void* decoder_new(const Shape* shape) { return new Decoder(*shape); }
void decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }
void decoder_forward(void* decoder, int64_t rows, const int32_t* ids, const int32_t* slots, const int32_t* places, int64_t wanted, const int32_t* which, float* out) {
    static_cast<Decoder*>(decoder)->forward(rows, ids, slots, places, wanted, which, out);
}
void decoder_copy(void* decoder, int64_t source, int64_t target, int64_t length) { static_cast<Decoder*>(decoder)->copy(source, target, length); }
}
