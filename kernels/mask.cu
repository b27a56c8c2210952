// Boolean tensors to bits and back, lowest bit first: N bytes and N/8 bytes moved, once each.
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
