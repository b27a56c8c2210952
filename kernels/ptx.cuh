// Float arithmetic that keeps subnormals, the float16 conversions and asynchronous copies: the only PTX of the project.
//
// CuPy compiles everything with -ftz=true, which would turn a block's tiniest differences into zeros that the CPU
// does not see. PTX instructions without .ftz are not touched by that option, and .rn keeps them out of
// contractions. Off the GPU the tests' emulator brings these nine functions itself.
#pragma once
#ifdef __CUDA_ARCH__

__device__ __forceinline__ float add(float a, float b) {
    float sum;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
    return sum;
}

__device__ __forceinline__ float subtract(float a, float b) {
    float difference;
    asm("sub.rn.f32 %0, %1, %2;" : "=f"(difference) : "f"(a), "f"(b));
    return difference;
}

__device__ __forceinline__ float multiply(float a, float b) {
    float product;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
    return product;
}

// One rounding. Where a is ±1 the product is exact, and it is that of `add`.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
    float sum;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
    return sum;
}

__device__ __forceinline__ float divide(float a, float b) {
    float quotient;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
    return quotient;
}

__device__ __forceinline__ float half_to_float(unsigned short half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

// 16 bytes, or zeros if there are none, from aligned global to aligned shared memory, where they are once the same
// thread has waited. They take no registers on their way, so all of a thread's are under way at once.
__device__ __forceinline__ void copy_asynchronously(float* shared, const float* global, bool present) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global), "r"(present ? 16 : 0)
                 : "memory");
#else
    *(uint4*)shared = present ? *(const uint4*)global : uint4{};
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

#endif
