// A sparse CSR matrix times a dense one, each sum in the order of its row's entries: the same bits every time.
//
// For n rows, E entries with indices of I bytes, x of C columns: (n + E)·I and 4·E bytes read, 4·E·C gathered, a cache
// permitting less, and 4·n·C written.
#include "octets.cuh"

// A team of 2**lane_bits lanes of a warp takes a row, each lane 8 columns at a time.
template <class I>
__global__ void __launch_bounds__(256)
    multiply_rows(const I* __restrict__ crow, const I* __restrict__ col, const float* __restrict__ values,
                  const float* __restrict__ x, float* __restrict__ out, long long rows, int width, int lane_bits) {
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) >> lane_bits;
    if (row >= rows) return;
    const I first = crow[row], end = crow[row + 1];
    for (int column = (threadIdx.x & ((1 << lane_bits) - 1)) * OCTET; column < width; column += OCTET << lane_bits) {
        const int count = min(OCTET, width - column);
        float sums[OCTET] = {};
        for (I entry = first; entry < end; ++entry) {
            float factors[OCTET];
            load_octet(x + col[entry] * (long long)width + column, count, factors);
#pragma unroll
            for (int i = 0; i < OCTET; ++i) sums[i] = add(sums[i], multiply(values[entry], factors[i]));
        }
        store_octet(out + row * width + column, count, sums);
    }
}
