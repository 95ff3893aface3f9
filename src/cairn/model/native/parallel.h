// What every kernel starts from: tasks on the threads of the OpenMP runtime that torch has loaded, memory of a thread's own, and bf16 by
// sixteens. Knows no kernel. Each library that includes it has a copy of its own, and is handed the runtime by `use_threads`.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "the kernels for training need a processor with AVX-512 and its bf16 products"
#endif

using bf16 = uint16_t;
using i64 = int64_t;

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
static Parallel parallel = nullptr;

extern "C" void use_threads(void* run) { parallel = reinterpret_cast<Parallel>(run); }

template <class F>
struct Job {
    F* work;
    std::atomic<i64> next;
    i64 tasks;
};

template <class F>
static void run_job(void* data) {
    auto* job = static_cast<Job<F>*>(data);
    for (i64 task; (task = job->next.fetch_add(1, std::memory_order_relaxed)) < job->tasks;) (*job->work)(task);
}

// work(task) for each of so many tasks.
template <class F>
static void split(i64 tasks, i64 threads, F work) {
    Job<F> job{&work, {0}, tasks};
    threads = std::min(tasks, threads);
    if (threads <= 1 || parallel == nullptr) run_job<F>(&job);
    else parallel(run_job<F>, &job, static_cast<unsigned>(threads), 0);
}

// Memory of a thread's own, kept for its next task.
struct Scratch {
    char* base = nullptr;
    size_t size = 0, used = 0;
    ~Scratch() { std::free(base); }
    void reset(size_t bytes) {
        if (bytes > size) {
            std::free(base);
            size = (bytes + 4095) / 4096 * 4096;
            base = static_cast<char*>(std::aligned_alloc(4096, size));
        }
        used = 0;
    }
    template <class T>
    T* take(i64 count) {
        T* at = reinterpret_cast<T*>(base + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return at;
    }
};
static thread_local Scratch scratch;

static inline __m512 load16(const bf16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))), 16));
}
static inline __m256i narrow(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }
static inline void store16(bf16* to, __m512 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(x)); }
