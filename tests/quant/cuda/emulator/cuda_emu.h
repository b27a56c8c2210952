// Runs a .cu file's kernels on the CPU. Default: one fiber per CUDA thread, one OS thread per running block.
// -DEMU_THREADS: one std::thread per CUDA thread (for -fsanitize=thread, which then sees missing barriers).
// Compile with -fno-strict-aliasing: kernels move floats as uint4, which CUDA allows.
#pragma once
#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__ __restrict
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };

namespace emu {
struct Barrier { unsigned arrived = 0, gen = 0; };
struct Warp { Barrier bar; uint64_t buf[2][32]; unsigned live = 0; };
struct Block;
struct Thread { uint3 tid; unsigned lin; Block* blk; void* sp = nullptr; bool done = false; };
struct Block {
    uint3 bid; dim3 bdim, gdim; unsigned n, live, idle = 0; Barrier bar;
    std::vector<Thread> th; std::vector<Warp> warps; std::vector<char> dyn;
    const std::function<void()>* body; void* main_sp = nullptr;
#ifdef EMU_THREADS
    std::mutex mu; std::condition_variable cv;
#endif
};
inline thread_local Thread* cur = nullptr;

#ifdef EMU_THREADS
#define __shared__ static                       /* blocks run one after another */
inline void wait(Barrier& b, unsigned expected) {
    std::unique_lock<std::mutex> l(cur->blk->mu);
    unsigned g = b.gen;
    if (++b.arrived >= expected) { b.arrived = 0; ++b.gen; cur->blk->cv.notify_all(); return; }
    if (!cur->blk->cv.wait_for(l, std::chrono::seconds(20), [&] { return b.gen != g; })) {
        std::fprintf(stderr, "cuda_emu: deadlock at a barrier\n"); std::abort(); }
}
#else
#define __shared__ static thread_local          /* one block at a time per OS thread */
extern "C" void emu_switch(void** save, void* to);
#if defined(__x86_64__)
asm(".text\n.weak emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#else
#error "port emu_switch (or use EMU_THREADS)"
#endif
inline void yield() {                            // to the next live fiber, or back to the scheduler
    Thread* me = cur; Block* b = me->blk;
    if (++b->idle > 4 * b->n + 64) { std::fprintf(stderr, "cuda_emu: deadlock (divergent barrier?) block %u\n", b->bid.x); std::abort(); }
    unsigned i = me->lin;
    do i = i + 1 == b->n ? 0 : i + 1; while (b->th[i].done && i != me->lin);
    if (&b->th[i] == me) { if (me->done) { emu_switch(&me->sp, b->main_sp); } return; }
    cur = &b->th[i]; emu_switch(&me->sp, cur->sp);
}
inline void wait(Barrier& b, unsigned expected) {
    unsigned g = b.gen;
    if (++b.arrived >= expected) { b.arrived = 0; ++b.gen; cur->blk->idle = 0; return; }
    while (b.gen == g) yield();
}
#endif
inline Warp& warp() { return cur->blk->warps[cur->lin / 32]; }
inline void leave() {                            // an exited thread no longer counts at barriers
    Block* b = cur->blk;
#ifdef EMU_THREADS
    std::lock_guard<std::mutex> l(b->mu);
#endif
    --b->live; --warp().live; b->idle = 0; cur->done = true;
    if (b->bar.arrived && b->bar.arrived >= b->live) { b->bar.arrived = 0; ++b->bar.gen; }
#ifdef EMU_THREADS
    b->cv.notify_all();
#endif
}
#ifndef EMU_THREADS
inline void entry() { (*cur->blk->body)(); leave(); for (;;) yield(); }
#endif
template <class T> T exchange(unsigned mask, T v, int src) {
    static_assert(sizeof(T) <= 8);
    Warp& w = warp(); unsigned lane = cur->lin % 32, s = w.bar.gen & 1;
    std::memcpy(&w.buf[s][lane], &v, sizeof v);
    wait(w.bar, std::min<unsigned>(std::popcount(mask), w.live));
    T r; std::memcpy(&r, &w.buf[s][src & 31], sizeof r); return r;
}
inline void run_block(Block& b, char* stacks, size_t ss) {
    b.live = b.n; b.bar = {}; b.idle = 0;
    for (unsigned w = 0; w < b.warps.size(); ++w) { b.warps[w].bar = {}; b.warps[w].live = std::min(32u, b.n - 32 * w); }
    for (unsigned i = 0; i < b.n; ++i)
        b.th[i] = {{i % b.bdim.x, i / b.bdim.x % b.bdim.y, i / b.bdim.x / b.bdim.y}, i, &b};
#ifdef EMU_THREADS
    std::vector<std::thread> ts;
    for (auto& t : b.th) ts.emplace_back([&t] { cur = &t; (*t.blk->body)(); leave(); });
    for (auto& t : ts) t.join();
#else
    for (unsigned i = 0; i < b.n; ++i) {
        void** top = (void**)(stacks + (i + 1) * ss) - 2;
        *top = (void*)entry; b.th[i].sp = top - 6;
    }
    cur = &b.th[0]; emu_switch(&b.main_sp, cur->sp); cur = nullptr;
#endif
}
// Runs the `count` blocks of the grid from `first` on: the end of a huge grid can be had without the rest of it.
inline void launch(dim3 grid, dim3 block, size_t shmem, const std::function<void()>& body, unsigned workers = 0,
                   uint64_t first = 0, uint64_t count = ~0ull) {
    const uint64_t all = uint64_t(grid.x) * grid.y * grid.z, nb = first + std::min(count, all - first);
    std::atomic<uint64_t> next{first};
#ifdef EMU_THREADS
    workers = 1;
#endif
    if (!workers) workers = std::max(1u, std::thread::hardware_concurrency());
    auto work = [&] {
        Block b; b.bdim = block; b.gdim = grid; b.n = block.x * block.y * block.z; b.body = &body;
        b.th.resize(b.n); b.warps.resize((b.n + 31) / 32); b.dyn.resize(shmem + 16);
        const size_t ss = 64 << 10; std::unique_ptr<char[]> st;
#ifndef EMU_THREADS
        st.reset(new char[ss * b.n]);
#endif
        for (uint64_t i; (i = next++) < nb;) {
            b.bid = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
            run_block(b, st.get(), ss);
        }
    };
    std::vector<std::thread> ts; for (unsigned i = 1; i < workers; ++i) ts.emplace_back(work);
    work(); for (auto& t : ts) t.join();
}
// A kernel as a function of its arguments' addresses, as cuLaunchKernel takes them.
using Kernel = std::function<void(void**)>;
template <class... P, size_t... I> Kernel wrap(void (*kernel)(P...), std::index_sequence<I...>) {
    return [kernel](void** arguments) { kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...); };
}
template <class... P> Kernel wrap(void (*kernel)(P...)) { return wrap(kernel, std::index_sequence_for<P...>{}); }
inline void run(const Kernel& kernel, unsigned grid, unsigned threads, void** arguments, unsigned workers = 1,
                uint64_t first = 0, uint64_t count = ~0ull) {
    launch(grid, threads, 0, [&] { kernel(arguments); }, workers, first, count);
}
}  // namespace emu
#define threadIdx (emu::cur->tid)
#define blockIdx (emu::cur->blk->bid)
#define blockDim (emu::cur->blk->bdim)
#define gridDim (emu::cur->blk->gdim)
inline void __syncthreads() { emu::wait(emu::cur->blk->bar, emu::cur->blk->live); }
inline void __syncwarp(unsigned m = ~0u) { emu::exchange(m, 0, 0); }
template <class T> T __shfl_xor_sync(unsigned m, T v, int x) { return emu::exchange(m, v, (emu::cur->lin % 32) ^ x); }
template <class T> T __shfl_sync(unsigned m, T v, int src) { return emu::exchange(m, v, src); }
template <class T> T __shfl_down_sync(unsigned m, T v, unsigned d) { unsigned l = emu::cur->lin % 32; return emu::exchange(m, v, l + d > 31 ? l : l + d); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
// What ptx.cuh has instructions for. Nothing here flushes subnormals or contracts (-ffp-contract=off).
inline float add(float a, float b) { return a + b; }
inline float subtract(float a, float b) { return a - b; }
inline float multiply(float a, float b) { return a * b; }
inline float multiply_add(float a, float b, float c) { return a * b + c; }  // a is ±1
inline float divide(float a, float b) { return a / b; }
inline void copy_asynchronously(float* shared, const float* global, bool present) {
    if (present) std::memcpy(shared, global, 16); else std::memset(shared, 0, 16);
}
inline void wait_for_copies() {}
inline float half_to_float(unsigned short half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023, sign = half >> 15;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                                      : std::ldexp(float(fraction + (exponent ? 1024 : 0)), std::max(exponent, 1) - 25);
    return sign ? -size : size;
}
inline unsigned short float_to_half(float value) {
    const unsigned sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(size)) return 0x7FFF;
    if (size >= 65520) return (unsigned short)(sign | 0x7C00);
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    const int steps = int(std::nearbyint(std::ldexp(double(size), 10 - exponent)));  // ties to even
    return (unsigned short)(sign | unsigned(((exponent + 14) << 10) + steps));
}
using std::max; using std::min;
