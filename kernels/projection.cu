// The random projection's entries ±magnitude, one sign bit each: only the N entries are written, nothing is read.
#include "philox.cuh"

// `magnitude` is the bit pattern of 1/√projected in the entries' own format, whose top bit is the sign. A warp takes
// two Philox groups, 256 signs; its lanes take the same bit of each word, so that stores fall side by side.
template <class T>
__global__ void __launch_bounds__(256)
    fill_projection(T* __restrict__ out, long long numel, T magnitude, unsigned long long seed, unsigned long long stream) {
    const long long pair = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    unsigned signs[8];
    philox_pair(seed, stream, 2 * pair, signs);
#pragma unroll
    for (int word = 0; word < 8; ++word) {
        const long long at = (pair * 8 + word) * 32 + lane;
        if (at < numel) out[at] = (T)(magnitude ^ (signs[word] >> lane & 1u) << (8 * sizeof(T) - 1));
    }
}
