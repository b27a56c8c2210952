// Rectified codes read: as the values that they estimate, and as the mask of a gradient.
//
// Bytes moved for N values of S bytes, b bits, blocks of G, once each, and N/8 more with a dropout's mask:
// N·b/8 + 2·N/G read and N·S written by dequantize_rectified, N·b/8 + N·S read and N·S written by pass_rectified.
#include "rectified.cuh"

constexpr int OCTETS_RECTIFIED = 2;  // a thread, with the loads of both in flight

// Times `factor` where a dropout's bit is set, 0 elsewhere; without a mask as it is.
template <class T, int SYMBOLS>
__global__ void __launch_bounds__(256)
    dequantize_rectified(const unsigned char* __restrict__ codes, const unsigned short* __restrict__ scale,
                         const unsigned char* __restrict__ mask, T* __restrict__ out, long long numel,
                         int block_length, float factor, const __grid_constant__ Edges<SYMBOL_BITS<SYMBOLS>> edges) {
    __shared__ float edge[1 << SYMBOL_BITS<SYMBOLS>];
    __shared__ Digits<SYMBOLS> digits;
    __shared__ Place start;
    const long long first = blockIdx.x * (long long)blockDim.x * (OCTETS_RECTIFIED * OCTET);

    Symbols<SYMBOLS> loaded[OCTETS_RECTIFIED];
    unsigned bits[OCTETS_RECTIFIED];
#pragma unroll
    for (int j = 0; j < OCTETS_RECTIFIED; ++j) {
        const long long at = first + (j * blockDim.x + threadIdx.x) * OCTET;
        if (at >= numel) continue;
        loaded[j] = load_symbols<SYMBOLS>(codes, at, (int)min((long long)OCTET, numel - at));
        bits[j] = load_mask(mask, at);
    }
    share_edges(edges, edge);
    digits.share();
    if (threadIdx.x == 0) start = locate(first, block_length);
    __syncthreads();

#pragma unroll
    for (int j = 0; j < OCTETS_RECTIFIED; ++j) {
        const int offset = (j * blockDim.x + threadIdx.x) * OCTET;
        const int count = (int)min((long long)OCTET, numel - first - offset);
        if (count <= 0) return;
        float values[OCTET];
        read_symbols<SYMBOLS>(decode<SYMBOLS>(loaded[j], first + offset, digits), count,
                              advance(start, offset, block_length), block_length, scale, edge, values);
        if (mask)
#pragma unroll
            for (int i = 0; i < OCTET; ++i) values[i] = bits[j] >> i & 1 ? multiply(values[i], factor) : 0;
        store_octet(out + first + offset, count, values);
    }
}

// Left to itself ptxas stops at 40 registers for some architectures and spills.
template <class T, int SYMBOLS>
__global__ void __launch_bounds__(256, 4)
    pass_rectified(const T* __restrict__ gradient, const unsigned char* __restrict__ codes,
                   const unsigned char* __restrict__ mask, T* __restrict__ out, long long numel, float factor) {
    __shared__ Digits<SYMBOLS> digits;
    const long long first = blockIdx.x * (long long)blockDim.x * OCTETS_RECTIFIED + threadIdx.x;

    float values[OCTETS_RECTIFIED][OCTET];
    Symbols<SYMBOLS> loaded[OCTETS_RECTIFIED];
    unsigned bits[OCTETS_RECTIFIED];
#pragma unroll
    for (int j = 0; j < OCTETS_RECTIFIED; ++j) {
        const long long at = (first + j * blockDim.x) * OCTET;
        if (at >= numel) continue;
        const int count = (int)min((long long)OCTET, numel - at);
        load_octet(gradient + at, count, values[j]);
        loaded[j] = load_symbols<SYMBOLS>(codes, at, count);
        bits[j] = load_mask(mask, at);
    }
    digits.share();
    __syncthreads();

#pragma unroll
    for (int j = 0; j < OCTETS_RECTIFIED; ++j) {
        const long long at = (first + j * blockDim.x) * OCTET;
        if (at >= numel) return;
        pass_on<SYMBOLS>(decode<SYMBOLS>(loaded[j], at, digits), bits[j], factor, values[j]);
        store_octet(out + at, (int)min((long long)OCTET, numel - at), values[j]);
    }
}
