// Values to rectified codes and scales.
//
// Bytes moved for N values of S bytes, b bits, blocks of G: N·S read, N·b/8 + 2·N/G written, once each, where a tile of
// up to MOST_VALUES can be whole blocks and bytes. Otherwise find_scales reads x and writes the scales before.
#include "philox.cuh"
#include "rectified.cuh"
#include "rounding.cuh"

constexpr int MOST_VALUES = 4096;  // of a tile

struct Staged { alignas(16) float values[MOST_VALUES]; };

// The maximum, or 0, over `top`, rounded up to bfloat16; NaN for a NaN, the infinity above or a scale beyond bfloat16.
__device__ __forceinline__ unsigned short round_scale(const Range& range, float top) {
    const int high = max(range.top, 0);
    if (!is_finite(high) || range.most > 0xFF800000u) return 0x7FC0;  // the latter a NaN with its sign bit set
    if (high < 127 - 80 << 23) return 0;                              // below 2**-80
    const int scale = (__float_as_int(divide(__int_as_float(high), top)) + 0xFFFF) & (int)0xFFFF0000;
    return is_finite(scale) ? (unsigned short)((unsigned)scale >> 16) : 0x7FC0;
}

// A broken block also stores 1 to `broken`, in host memory or 0: that many blocks store the same does no harm.
__device__ __forceinline__ void store_scale(unsigned short rounded, long long block, unsigned short* scale,
                                            int* broken) {
    scale[block] = rounded;
    if (rounded == 0x7FC0 && broken) *broken = 1;
}

// A team of 2**lane_bits lanes goes over a block of any length: within a warp, or all threads of the CTA.
template <class T>
__global__ void __launch_bounds__(256)
    find_scales(const T* __restrict__ x, unsigned short* __restrict__ scale, int* broken, long long numel,
                int block_length, int lane_bits, float top) {
    __shared__ Joint joint;
    const long long block = (blockIdx.x * (long long)blockDim.x + threadIdx.x) >> lane_bits;
    const int lanes = 1 << lane_bits, lane = threadIdx.x & (lanes - 1);
    const long long first = min(block * block_length, numel - 1);
    const int length = (int)min((long long)block_length, numel - first);
    const Range range = find_range(x + first, length, lane, lanes, joint);
    if (lane == 0 && block * block_length < numel) store_scale(round_scale(range, top), block, scale, broken);
}

// How the values of one block are rounded.
struct Rectifier {
    float inverse_scale;
    bool broken;

    __device__ __forceinline__ explicit Rectifier(unsigned short scale) : inverse_scale(0), broken(scale == 0x7FC0) {
        if (scale != 0) inverse_scale = divide(1, to_float(BFloat16{scale}));
    }
};

// The codes of the `count` values of an octet that starts at `place`, wherever the borders of its blocks fall.
template <int SYMBOLS>
__device__ __forceinline__ Symbols<SYMBOLS> rectify_octet(const float (&values)[OCTET], int count, Place place,
                                                          int block_length, const unsigned short* scale,
                                                          const unsigned (&noise)[OCTET], const Bin* bins) {
    constexpr int BITS = SYMBOL_BITS<SYMBOLS>;
    Rectifier rectifier(scale[place.block]);
    Symbols<SYMBOLS> codes = 0;
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
        if (i >= count) break;
        if (place.offset == (unsigned)block_length) {
            place = {place.block + 1, 0};
            rectifier = Rectifier(scale[place.block]);
        }
        // Above 0 as integers see it: -ftz=true would take a subnormal for 0.
        if (__float_as_int(values[i]) > 0 && !rectifier.broken) {
            const int t = min(__float_as_int(multiply(values[i], rectifier.inverse_scale)),
                              __float_as_int((float)(SYMBOLS - 2)));
            codes |= (Symbols<SYMBOLS>)(1 + round_in_bin<BITS>(t, noise[i], bins)) << BITS * i;
        }
        ++place.offset;
    }
    return codes;
}

// A CTA takes `tile` values, which are whole octets and bytes and, if it has to find the scales, whole blocks; it holds
// them in shared memory between the search for the scales, by teams of 2**lane_bits lanes of a warp, and the rounding.
template <class T, int SYMBOLS>
__global__ void __launch_bounds__(256, 4 - FEWER_RESIDENT)
    quantize_rectified(const T* __restrict__ x, unsigned char* __restrict__ codes, unsigned short* __restrict__ scale,
                       int* broken, long long numel, int block_length, int lane_bits, int tile, int finds_scales,
                       unsigned long long seed, unsigned long long stream,
                       const __grid_constant__ Table<SYMBOL_BITS<SYMBOLS>> table) {
    constexpr int BITS = SYMBOL_BITS<SYMBOLS>;
    __shared__ Staged staged;
    // Trits of octets, of which bytes take their fives; the entry behind the last octet is 0.
    __shared__ unsigned short trits[SYMBOLS == 3 ? MOST_VALUES / OCTET + 1 : 1];
    __shared__ Bin bins[1 << BITS];
    __shared__ Place start;
    const long long first = blockIdx.x * (long long)tile;
    const int count = (int)min((long long)tile, numel - first);

#pragma unroll 2
    for (int at = threadIdx.x * OCTET; at < count; at += blockDim.x * OCTET) {
        float values[OCTET];
        load_octet(x + first + at, count - at, values);
        store_octet(staged.values + at, OCTET, values);
    }
    share_table(table, bins);
    if (threadIdx.x == 0) start = locate(first, block_length);
    __syncthreads();

    if (finds_scales) {
        const int teams = blockDim.x >> lane_bits, team = threadIdx.x >> lane_bits, lanes = 1 << lane_bits;
        const int lane = threadIdx.x & (lanes - 1), blocks = (count + block_length - 1) / block_length;
        for (int others = 0; others < blocks; others += teams) {  // as often for idle teams: their lanes shuffle too
            const int block = others + team, at = min(block * block_length, count - 1);
            const int length = min(block_length, count - at);
            Range range(staged.values[at]);
            for (int i = lane * OCTET; i < length; i += lanes * OCTET) {
                float values[OCTET];
                load_octet((const float*)staged.values + at + i, length - i, values);
#pragma unroll
                for (int j = 0; j < OCTET; ++j) range.include(values[j]);
            }
            range.include_lanes(lanes);
            if (lane == 0 && block < blocks)
                store_scale(round_scale(range, SYMBOLS - 2), start.block + block, scale, broken);
        }
        __syncthreads();
    }

    for (int at = threadIdx.x * OCTET; at < count; at += blockDim.x * OCTET) {
        float values[OCTET];
        load_octet((const float*)staged.values + at, count - at, values);
        unsigned noise[OCTET];
        philox_pair(seed, stream, (first + at) / 4, noise);
        const Place place = advance(start, at, block_length);
        const Symbols<SYMBOLS> word =
            rectify_octet<SYMBOLS>(values, count - at, place, block_length, scale, noise, bins);
        if constexpr (SYMBOLS == 3)
            trits[at / OCTET] = (unsigned short)word;
        else
            store_codes<BITS>(codes + (first + at) / OCTET * BITS, count - at, word);
    }
    if constexpr (SYMBOLS == 3) {
        if (threadIdx.x == 0) trits[(count + OCTET - 1) / OCTET] = 0;
        __syncthreads();
        for (int byte = threadIdx.x; byte * TRITS < count; byte += blockDim.x) {
            const int bit = byte * 2 * TRITS;
            const unsigned five = (trits[bit / 16] | (unsigned)trits[bit / 16 + 1] << 16) >> bit % 16;
            unsigned packed = 0;
#pragma unroll
            for (int i = TRITS - 1; i >= 0; --i) packed = 3 * packed + (five >> 2 * i & 3);
            codes[first / TRITS + byte] = (unsigned char)packed;
        }
    }
}
