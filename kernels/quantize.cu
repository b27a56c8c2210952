// Blocks of values to packed codes, minima and scales.
//
// Bytes moved for N values of S bytes, b bits, blocks of G: N·S read, N·b/8 + 4·N/G written, once each, by
// quantize_blocks (G a multiple of 8 up to 1,024). Any other G takes find_ranges, then encode: x is read twice.
#include "philox.cuh"
#include "rounding.cuh"

// A team of 2**lane_bits lanes of a warp takes a block of up to 8·OCTETS·2**lane_bits values and holds it in
// registers between the search for its range and the rounding. Left to itself ptxas stops at 64 registers and spills;
// 3 CTAs on a multiprocessor still keep enough loads in flight.
template <class T, int BITS, int OCTETS>
__global__ void __launch_bounds__(256, 3 - FEWER_RESIDENT)
    quantize_blocks(const T* __restrict__ x, unsigned char* __restrict__ codes, unsigned short* __restrict__ minimum,
                    unsigned short* __restrict__ scale, int* broken, long long numel, int block_length, int lane_bits,
                    unsigned long long seed, unsigned long long stream, const __grid_constant__ Table<BITS> table) {
    __shared__ Bin bins[1 << BITS];
    const long long block = (blockIdx.x * (long long)blockDim.x + threadIdx.x) >> lane_bits;
    const int lane = threadIdx.x & ((1 << lane_bits) - 1);
    const long long first = block * block_length;
    const int length = (int)min((long long)block_length, numel - first < 0 ? 0 : numel - first);

    float values[OCTETS][OCTET];
#pragma unroll
    for (int j = 0; j < OCTETS; ++j) {
        const int offset = (lane + (j << lane_bits)) * OCTET;
        // An idle octet repeats the block's first value, which leaves the range as it is.
        const long long at = offset < length ? first + offset : min(first, numel - 1);
        load_octet(x + at, max(min(length - offset, OCTET), 1), values[j]);
    }
    share_table(table, bins);
    __syncthreads();

    Range range(values[0][0]);
#pragma unroll
    for (int j = 0; j < OCTETS; ++j)
#pragma unroll
        for (int i = 0; i < OCTET; ++i) range.include(values[j][i]);
    range.include_lanes(1 << lane_bits);
    const Metadata metadata = round_range(range, (1 << BITS) - 1);
    if (lane == 0 && length > 0) store_metadata(metadata, block, minimum, scale, broken);

    const Grid grid(metadata);
#pragma unroll
    for (int j = 0; j < OCTETS; ++j) {
        const int offset = (lane + (j << lane_bits)) * OCTET;
        if (offset >= length) continue;
        const unsigned long long at = first + offset;
        unsigned noise[OCTET];
        philox_pair(seed, stream, at / 4, noise);
        Codes<BITS> word = 0;
#pragma unroll
        for (int i = 0; i < OCTET; ++i)
            round_stochastically<BITS>(values[j][i], grid, noise[i], bins, BITS * i, word);
        store_codes<BITS>(codes + at / OCTET * BITS, length - offset, grid.broken ? 0 : word);
    }
}

// A team of 2**lane_bits lanes goes over a block of any length: within a warp, or all threads of the CTA.
template <class T>
__global__ void __launch_bounds__(256)
    find_ranges(const T* __restrict__ x, unsigned short* __restrict__ minimum, unsigned short* __restrict__ scale,
                int* broken, long long numel, int block_length, int lane_bits, float top) {
    __shared__ Joint joint;
    const long long block = (blockIdx.x * (long long)blockDim.x + threadIdx.x) >> lane_bits;
    const int lanes = 1 << lane_bits, lane = threadIdx.x & (lanes - 1);
    const long long first = min(block * block_length, numel - 1);
    const int length = (int)min((long long)block_length, numel - first);
    const Range range = find_range(x + first, length, lane, lanes, joint);
    if (lane == 0 && block * block_length < numel)
        store_metadata(round_range(range, top), block, minimum, scale, broken);
}

// A thread rounds one octet, wherever the borders of its blocks fall.
template <class T, int BITS>
__global__ void __launch_bounds__(256, 4)
    encode(const T* __restrict__ x, unsigned char* __restrict__ codes, const unsigned short* __restrict__ minimum,
           const unsigned short* __restrict__ scale, long long numel, int block_length, unsigned long long seed,
           unsigned long long stream, const __grid_constant__ Table<BITS> table) {
    __shared__ Bin bins[1 << BITS];
    __shared__ Place start;
    const long long first = blockIdx.x * (long long)blockDim.x * OCTET, at = first + threadIdx.x * OCTET;
    const int count = (int)min((long long)OCTET, numel - at);

    float values[OCTET];
    if (count > 0) load_octet(x + at, count, values);
    share_table(table, bins);
    if (threadIdx.x == 0) start = locate(first, block_length);
    __syncthreads();
    if (count <= 0) return;

    const Place place = advance(start, threadIdx.x * OCTET, block_length);
    unsigned noise[OCTET];
    philox_pair(seed, stream, at / 4, noise);
    const Codes<BITS> word = round_octet<BITS>(values, count, place, block_length, minimum, scale, noise, bins);
    store_codes<BITS>(codes + at / OCTET * BITS, count, word);
}
