// Packed codes, minima and scales to values: minimum + edge·scale, as in actbench/quant/reference.py.
//
// Bytes moved for N values of S bytes, b bits, blocks of G: N·b/8 + 4·N/G read, N·S written, once each.
#include "edges.cuh"
#include "octets.cuh"
#include "places.cuh"

constexpr int OCTETS = 2;  // a thread, with the loads of both in flight

template <class T, int BITS>
__global__ void __launch_bounds__(256)
    dequantize(const unsigned char* __restrict__ codes, const unsigned short* __restrict__ minimum,
               const unsigned short* __restrict__ scale, T* __restrict__ out, long long numel, int block_length,
               const __grid_constant__ Edges<BITS> edges) {
    __shared__ float edge[1 << BITS];
    __shared__ Place start;
    const long long first = blockIdx.x * (long long)blockDim.x * (OCTETS * OCTET);

    Codes<BITS> words[OCTETS];
#pragma unroll
    for (int j = 0; j < OCTETS; ++j) {
        const long long at = first + (j * blockDim.x + threadIdx.x) * OCTET;
        if (at < numel) words[j] = load_codes<BITS>(codes + at / OCTET * BITS, (int)min((long long)OCTET, numel - at));
    }
    for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) edge[i] = edges.edge[i];
    if (threadIdx.x == 0) start = locate(first, block_length);
    __syncthreads();

#pragma unroll
    for (int j = 0; j < OCTETS; ++j) {
        const int offset = (j * blockDim.x + threadIdx.x) * OCTET;
        const int count = (int)min((long long)OCTET, numel - first - offset);
        if (count <= 0) return;
        Place place = advance(start, offset, block_length);
        float low = to_float(BFloat16{minimum[place.block]}), step = to_float(BFloat16{scale[place.block]});
        float values[OCTET];
#pragma unroll
        for (int i = 0; i < OCTET; ++i) {
            // Behind the tensor's last value there may be no block to read from.
            if (place.offset == (unsigned)block_length && i < count) {
                place = {place.block + 1, 0};
                low = to_float(BFloat16{minimum[place.block]});
                step = to_float(BFloat16{scale[place.block]});
            }
            values[i] = add(multiply(edge[words[j] >> BITS * i & (1 << BITS) - 1], step), low);
            ++place.offset;
        }
        store_octet(out + first + offset, count, values);
    }
}
