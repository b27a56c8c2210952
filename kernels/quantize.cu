// Blocks of values to packed codes, minima and scales; the arithmetic is that of actbench/quant/reference.py.
//
// Bytes moved for N values of S bytes, b bits, blocks of G: N·S read, N·b/8 + 4·N/G written, once each, by
// quantize_blocks (G a multiple of 8 up to 1,024). Any other G takes find_ranges, then encode: x is read twice.
#include "octets.cuh"
#include "philox.cuh"
#include "places.cuh"

// From `edge` up to the next bin's; the entry after the last bin has the edge infinity, which no value reaches.
struct Bin { float edge, inverse_width; };
// Up to 2 KiB, taken by value; __grid_constant__ keeps ptxas from a copy in local memory.
template <int BITS> struct Table { Bin bins[1 << BITS]; };

// Lowest and highest of a set of floats, as bit patterns: integers order floats of one sign, do not see -ftz=true,
// and put a NaN beyond the infinity of its sign.
struct Range {
    int top;
    unsigned most, least;

    __device__ __forceinline__ explicit Range(float value)
        : top(__float_as_int(value)), most((unsigned)top), least((unsigned)top) {}

    __device__ __forceinline__ void include(int other_top, unsigned other_most, unsigned other_least) {
        top = max(top, other_top);
        most = max(most, other_most);
        least = min(least, other_least);
    }
    __device__ __forceinline__ void include(float value) {
        const int bits = __float_as_int(value);
        include(bits, (unsigned)bits, (unsigned)bits);
    }
    __device__ __forceinline__ void include_lanes(int lanes) {
        for (int step = lanes / 2; step > 0; step /= 2)
            include(__shfl_xor_sync(0xFFFFFFFFu, top, step), __shfl_xor_sync(0xFFFFFFFFu, most, step),
                    __shfl_xor_sync(0xFFFFFFFFu, least, step));
    }
    // As unsigned numbers negative floats come after all others, and the further from zero the later.
    __device__ __forceinline__ int low() const { return (int)((int)most < 0 ? most : least); }
    __device__ __forceinline__ int high() const { return top < 0 ? (int)least : top; }
};

struct Metadata { unsigned short minimum, scale; };  // bfloat16 patterns

__device__ __forceinline__ bool is_finite(int bits) { return (bits & 0x7F800000) != 0x7F800000; }

// Minimum rounded down and scale up, so that minimum + top·scale still encloses the range.
__device__ __forceinline__ Metadata round_range(const Range& range, float top) {
    const int low = range.low();
    int minimum = (low < 0 ? low + 0xFFFF : low) & (int)0xFFFF0000;
    if ((minimum & 0x7FFFFFFF) < 0x00800000) minimum = 0;  // a subnormal
    const float span = subtract(__int_as_float(range.high()), __int_as_float(minimum));
    int scale = (__float_as_int(divide(span, top)) + 0xFFFF) & (int)0xFFFF0000;
    if (__float_as_int(span) < 127 - 80 << 23) scale = 0;  // below 2**-80
    if (!is_finite(low) || !is_finite(__float_as_int(span)) || !is_finite(scale)) return {0x7FC0, 0x7FC0};
    return {(unsigned short)((unsigned)minimum >> 16), (unsigned short)((unsigned)scale >> 16)};
}

// Where a block's codes lie, with the scale inverted once for all of them.
struct Grid {
    float minimum, inverse_scale;
    bool broken;

    __device__ __forceinline__ explicit Grid(Metadata block)
        : minimum(__int_as_float((int)block.minimum << 16)), inverse_scale(0), broken(block.scale == 0x7FC0) {
        if (block.scale != 0) inverse_scale = divide(1, __int_as_float((int)block.scale << 16));
    }
};

// Adds the code of a value to `codes`, at bit `shift`.
template <int BITS>
__device__ __forceinline__ void round_stochastically(float value, const Grid& grid, unsigned noise, const Bin* bins,
                                                     int shift, Codes<BITS>& codes) {
    constexpr int TOP = (1 << BITS) - 1;
    // Float comparisons would flush subnormals; on the patterns they are exact. A negative t is a subnormal above
    // a minimum that was flushed: it falls into bin 0 and is never rounded up.
    const int t = min(__float_as_int(multiply(subtract(value, grid.minimum), grid.inverse_scale)),
                      __float_as_int((float)TOP));
    int bin = 0;
    if constexpr (BITS <= 2) {  // no look-up waits for another
#pragma unroll
        for (int i = 1; i < TOP; ++i) bin = t >= __float_as_int(bins[i].edge) ? i : bin;
    } else {
#pragma unroll
        for (int step = 1 << BITS - 1; step > 0; step /= 2)
            if (t >= __float_as_int(bins[bin + step].edge)) bin += step;
    }
    const float part = multiply(subtract(__int_as_float(t), bins[bin].edge), bins[bin].inverse_width);
    const float uniform = multiply((float)(noise >> 8), 1.0f / (1 << 24));
    codes += (Codes<BITS>)bin << shift;
    if (__float_as_int(uniform) < __float_as_int(part)) codes += (Codes<BITS>)1 << shift;
}

template <int BITS> __device__ __forceinline__ void share_table(const Table<BITS>& table, Bin* bins) {
    for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) bins[i] = table.bins[i];
}

// A team of 2**lane_bits lanes of a warp takes a block of up to 8·OCTETS·2**lane_bits values and holds it in
// registers between the search for its range and the rounding. Left to itself ptxas stops at 64 registers and spills;
// 3 CTAs on a multiprocessor still keep enough loads in flight.
template <class T, int BITS, int OCTETS>
__global__ void __launch_bounds__(256, 3)
    quantize_blocks(const T* __restrict__ x, unsigned char* __restrict__ codes, unsigned short* __restrict__ minimum,
                    unsigned short* __restrict__ scale, long long numel, int block_length, int lane_bits,
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
    if (lane == 0 && length > 0) {
        minimum[block] = metadata.minimum;
        scale[block] = metadata.scale;
    }

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
                long long numel, int block_length, int lane_bits, float top) {
    __shared__ int tops[8];
    __shared__ unsigned mosts[8], leasts[8];
    const long long block = (blockIdx.x * (long long)blockDim.x + threadIdx.x) >> lane_bits;
    const int lanes = 1 << lane_bits, lane = threadIdx.x & (lanes - 1);
    const long long first = min(block * block_length, numel - 1);
    const int length = (int)min((long long)block_length, numel - first);

    Range range(to_float(x[first]));
    for (int i = lane; i < length; i += lanes) range.include(to_float(x[first + i]));
    range.include_lanes(min(lanes, 32));
    if (lanes > 32) {
        if (threadIdx.x % 32 == 0) {
            const int warp = threadIdx.x / 32;
            tops[warp] = range.top;
            mosts[warp] = range.most;
            leasts[warp] = range.least;
        }
        __syncthreads();
        for (int i = 0; i < lanes / 32; ++i) range.include(tops[i], mosts[i], leasts[i]);
    }
    if (lane == 0 && block * block_length < numel) {
        const Metadata metadata = round_range(range, top);
        minimum[block] = metadata.minimum;
        scale[block] = metadata.scale;
    }
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

    Place place = advance(start, threadIdx.x * OCTET, block_length);
    Grid grid({minimum[place.block], scale[place.block]});
    unsigned noise[OCTET];
    philox_pair(seed, stream, at / 4, noise);
    Codes<BITS> word = 0;
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
        if (i >= count) break;
        if (place.offset == (unsigned)block_length) {
            place = {place.block + 1, 0};
            grid = Grid({minimum[place.block], scale[place.block]});
        }
        if (!grid.broken) round_stochastically<BITS>(values[i], grid, noise[i], bins, BITS * i, word);
        ++place.offset;
    }
    store_codes<BITS>(codes + at / OCTET * BITS, count, word);
}
