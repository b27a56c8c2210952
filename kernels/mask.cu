// Masks of one bit a value, lowest bit first: packed, unpacked and applied.
//
// Bytes moved for N values of S bytes, once each: N and N/8 between booleans and bits, N·S and N/8 by pack_positive,
// 2·N·S and N/8 by keep_where and scale_where.
#include "octets.cuh"

constexpr int PIECE = 16;  // values a thread: one 16-byte word on the side of the booleans

// 4 booleans of a byte each to 4 bits: the product moves byte i's bit to bit 28 + i.
__device__ __forceinline__ unsigned gather(unsigned booleans) { return booleans * 0x10204080u >> 28; }

// 4 bits to 4 booleans of a byte each: the product moves bit i to bit 8·i.
__device__ __forceinline__ unsigned scatter(unsigned bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

__global__ void __launch_bounds__(256)
    pack_mask(const unsigned char* __restrict__ mask, unsigned char* __restrict__ packed, long long numel) {
    const long long piece = blockIdx.x * (long long)blockDim.x + threadIdx.x, at = piece * PIECE;
    const int count = (int)min((long long)PIECE, numel - at);
    if (count == PIECE && is_aligned(mask + at, PIECE)) {
        const uint4 v = *(const uint4*)(mask + at);
        ((unsigned short*)packed)[piece] =
            (unsigned short)(gather(v.x) | gather(v.y) << 4 | gather(v.z) << 8 | gather(v.w) << 12);
        return;
    }
    unsigned bits = 0;
    for (int i = 0; i < count; ++i) {
        bits |= (unsigned)mask[at + i] << i;
        if (i % 8 == 7 || i + 1 == count) packed[(at + i) / 8] = (unsigned char)(bits >> i / 8 * 8);
    }
}

__global__ void __launch_bounds__(256)
    unpack_mask(const unsigned char* __restrict__ packed, unsigned char* __restrict__ mask, long long numel) {
    const long long piece = blockIdx.x * (long long)blockDim.x + threadIdx.x, at = piece * PIECE;
    const int count = (int)min((long long)PIECE, numel - at);
    if (count == PIECE && is_aligned(packed + at / 8, 2)) {
        const unsigned bits = *(const unsigned short*)(packed + at / 8);
        *(uint4*)(mask + at) = {scatter(bits), scatter(bits >> 4), scatter(bits >> 8), scatter(bits >> 12)};
        return;
    }
    for (int i = 0; i < count; ++i) mask[at + i] = packed[(at + i) / 8] >> i % 8 & 1;
}

constexpr int OCTETS_MASKED = 2;  // a thread, with the loads of both in flight

// ¬(x <= 0) as integers see it: -ftz=true would take a subnormal for 0.
__device__ __forceinline__ unsigned is_positive(float value) {
    const int bits = __float_as_int(value);
    return bits > 0 || (unsigned)bits > 0xFF800000u;  // the latter a NaN with its sign bit set
}

template <class T>
__global__ void __launch_bounds__(256)
    pack_positive(const T* __restrict__ x, unsigned char* __restrict__ packed, long long numel) {
    const long long first = blockIdx.x * (long long)blockDim.x * OCTETS_MASKED + threadIdx.x;
    float values[OCTETS_MASKED][OCTET];
#pragma unroll
    for (int j = 0; j < OCTETS_MASKED; ++j) {
        const long long at = (first + j * blockDim.x) * OCTET;
        if (at < numel) load_octet(x + at, (int)min((long long)OCTET, numel - at), values[j]);
    }
#pragma unroll
    for (int j = 0; j < OCTETS_MASKED; ++j) {
        const long long octet = first + j * blockDim.x;
        const int count = (int)min((long long)OCTET, numel - octet * OCTET);
        if (count <= 0) return;
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < OCTET; ++i) bits |= is_positive(values[j][i]) << i;
        packed[octet] = (unsigned char)(bits & (1u << count) - 1);
    }
}

template <class T>
__global__ void __launch_bounds__(256)
    keep_where(const T* __restrict__ values, const unsigned char* __restrict__ packed, T* __restrict__ out,
               long long numel) {
    const long long first = blockIdx.x * (long long)blockDim.x * OCTETS_MASKED + threadIdx.x;
    Packet<T> packets[OCTETS_MASKED];
    unsigned bits[OCTETS_MASKED];
#pragma unroll
    for (int j = 0; j < OCTETS_MASKED; ++j) {
        const long long octet = first + j * blockDim.x, at = octet * OCTET;
        if (at >= numel) continue;
        packets[j] = load_packet(values + at, (int)min((long long)OCTET, numel - at));
        bits[j] = packed[octet];
    }
#pragma unroll
    for (int j = 0; j < OCTETS_MASKED; ++j) {
        const long long at = (first + j * blockDim.x) * OCTET;
        if (at >= numel) return;
#pragma unroll
        for (int i = 0; i < OCTET; ++i)
            if (!(bits[j] >> i & 1)) packets[j].values[i] = T{};
        store_packet(out + at, (int)min((long long)OCTET, numel - at), packets[j]);
    }
}

// A value that is not kept is multiplied by 0 all the same: an infinity turns into NaN, as in torch.
template <class T>
__global__ void __launch_bounds__(256)
    scale_where(const T* __restrict__ values, const unsigned char* __restrict__ packed, T* __restrict__ out,
                long long numel, float factor) {
    const long long first = blockIdx.x * (long long)blockDim.x * OCTETS_MASKED + threadIdx.x;
    const float factors[2] = {multiply(0, factor), factor};
    float loaded[OCTETS_MASKED][OCTET];
    unsigned bits[OCTETS_MASKED];
#pragma unroll
    for (int j = 0; j < OCTETS_MASKED; ++j) {
        const long long octet = first + j * blockDim.x, at = octet * OCTET;
        if (at >= numel) continue;
        load_octet(values + at, (int)min((long long)OCTET, numel - at), loaded[j]);
        bits[j] = packed[octet];
    }
#pragma unroll
    for (int j = 0; j < OCTETS_MASKED; ++j) {
        const long long at = (first + j * blockDim.x) * OCTET;
        if (at >= numel) return;
#pragma unroll
        for (int i = 0; i < OCTET; ++i)
            loaded[j][i] = multiply(loaded[j][i], bits[j] >> i & 1 ? factors[1] : factors[0]);
        store_octet(out + at, (int)min((long long)OCTET, numel - at), loaded[j]);
    }
}
