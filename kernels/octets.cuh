// Octets: 8 consecutive values, the piece of work of one thread.
//
// The codes of an octet fill whole bytes at every bit width, so no two threads write to one byte, and its noise is
// exactly two Philox groups. Whole octets move as 16-byte words where the address allows it.
#pragma once
#include "ptx.cuh"

constexpr int OCTET = 8;

// By how many CTAs a multiprocessor of compute capability 10 or more holds fewer: there compilers want more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int FEWER_RESIDENT = 1;
#else
constexpr int FEWER_RESIDENT = 0;
#endif

struct Float16 { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Float16 value) { return half_to_float(value.bits); }
__device__ __forceinline__ float to_float(BFloat16 value) { return __int_as_float((int)value.bits << 16); }

template <class T> __device__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ Float16 from_float<Float16>(float value) { return {float_to_half(value)}; }
template <> __device__ __forceinline__ BFloat16 from_float<BFloat16>(float value) {
    const unsigned bits = (unsigned)__float_as_int(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FC0};
    return {(unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}

template <class T> union Packet {
    uint4 words[OCTET * sizeof(T) / 16];
    T values[OCTET];
    __device__ Packet() {}
};

__device__ __forceinline__ bool is_aligned(const void* at, unsigned bytes) { return (size_t)at % bytes == 0; }

// The `count` (1 … 8) values from `at`; the rest of a short octet repeats its first value.
template <class T> __device__ __forceinline__ Packet<T> load_packet(const T* at, int count) {
    Packet<T> packet;
    if (count >= OCTET && is_aligned(at, 16)) {
#pragma unroll
        for (int i = 0; i < (int)(OCTET * sizeof(T) / 16); ++i) packet.words[i] = ((const uint4*)at)[i];
    } else {
#pragma unroll
        for (int i = 0; i < OCTET; ++i) packet.values[i] = at[i < count ? i : 0];
    }
    return packet;
}

template <class T> __device__ __forceinline__ void store_packet(T* at, int count, const Packet<T>& packet) {
    if (count >= OCTET && is_aligned(at, 16)) {
#pragma unroll
        for (int i = 0; i < (int)(OCTET * sizeof(T) / 16); ++i) ((uint4*)at)[i] = packet.words[i];
    } else {
#pragma unroll
        for (int i = 0; i < OCTET; ++i)
            if (i < count) at[i] = packet.values[i];
    }
}

template <class T> __device__ __forceinline__ void load_octet(const T* at, int count, float (&values)[OCTET]) {
    const Packet<T> packet = load_packet(at, count);
#pragma unroll
    for (int i = 0; i < OCTET; ++i) values[i] = to_float(packet.values[i]);
}

template <class T> __device__ __forceinline__ void store_octet(T* at, int count, const float (&values)[OCTET]) {
    Packet<T> packet;
#pragma unroll
    for (int i = 0; i < OCTET; ++i) packet.values[i] = from_float<T>(values[i]);
    store_packet(at, count, packet);
}

// The codes of one octet: `Codes` in a register, `Packed` in memory.
template <int BITS> struct Word;
template <> struct Word<8> { using Codes = unsigned long long; using Packed = Codes; };
template <> struct Word<4> { using Codes = unsigned; using Packed = unsigned; };
template <> struct Word<2> { using Codes = unsigned; using Packed = unsigned short; };
template <> struct Word<1> { using Codes = unsigned; using Packed = unsigned char; };
template <int BITS> using Codes = typename Word<BITS>::Codes;
template <int BITS> using Packed = typename Word<BITS>::Packed;

// Bytes that `count` codes reach into.
template <int BITS> __device__ __forceinline__ int code_bytes(int count) { return (count * BITS + 7) / 8; }

template <int BITS> __device__ __forceinline__ Codes<BITS> load_codes(const unsigned char* at, int count) {
    if (count >= OCTET && is_aligned(at, sizeof(Packed<BITS>))) return *(const Packed<BITS>*)at;
    Codes<BITS> codes = 0;
#pragma unroll
    for (int i = 0; i < BITS; ++i)
        if (i < code_bytes<BITS>(count)) codes |= (Codes<BITS>)at[i] << 8 * i;
    return codes;
}

// The bits behind the last code stay 0, so equal tensors have equal bytes.
template <int BITS> __device__ __forceinline__ void store_codes(unsigned char* at, int count, Codes<BITS> codes) {
    if (count >= OCTET && is_aligned(at, sizeof(Packed<BITS>))) {
        *(Packed<BITS>*)at = (Packed<BITS>)codes;
        return;
    }
    if (count < OCTET) codes &= ((Codes<BITS>)1 << BITS * count) - 1;
#pragma unroll
    for (int i = 0; i < BITS; ++i)
        if (i < code_bytes<BITS>(count)) at[i] = (unsigned char)(codes >> 8 * i);
}
