// A block's range to its minimum and scale, values to codes; the arithmetic is that of actbench/quant/reference.py.
#pragma once
#include "octets.cuh"
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

// What the warps of a CTA found of a block that they share.
struct Joint {
    int tops[8];
    unsigned mosts[8], leasts[8];
};

// The range of the `length` values from `x` on, searched by a team of `lanes`: within a warp, or all of the CTA.
template <class T>
__device__ __forceinline__ Range find_range(const T* x, int length, int lane, int lanes, Joint& joint) {
    Range range(to_float(x[0]));
    for (int i = lane; i < length; i += lanes) range.include(to_float(x[i]));
    range.include_lanes(min(lanes, 32));
    if (lanes > 32) {
        if (threadIdx.x % 32 == 0) {
            const int warp = threadIdx.x / 32;
            joint.tops[warp] = range.top;
            joint.mosts[warp] = range.most;
            joint.leasts[warp] = range.least;
        }
        __syncthreads();
        for (int i = 0; i < lanes / 32; ++i) range.include(joint.tops[i], joint.mosts[i], joint.leasts[i]);
    }
    return range;
}

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

// A broken block also stores 1 to `broken`, in host memory or 0: that many blocks store the same does no harm.
__device__ __forceinline__ void store_metadata(Metadata metadata, long long block, unsigned short* minimum,
                                               unsigned short* scale, int* broken) {
    minimum[block] = metadata.minimum;
    scale[block] = metadata.scale;
    if (metadata.scale == 0x7FC0 && broken) *broken = 1;
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

// The code that `t`, the pattern of a float up to the top edge, is rounded to.
template <int BITS> __device__ __forceinline__ int round_in_bin(int t, unsigned noise, const Bin* bins) {
    constexpr int TOP = (1 << BITS) - 1;
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
    return __float_as_int(uniform) < __float_as_int(part) ? bin + 1 : bin;
}

// Adds the code of a value to `codes`, at bit `shift`.
template <int BITS>
__device__ __forceinline__ void round_stochastically(float value, const Grid& grid, unsigned noise, const Bin* bins,
                                                     int shift, Codes<BITS>& codes) {
    constexpr int TOP = (1 << BITS) - 1;
    // Float comparisons would flush subnormals; on the patterns they are exact. A negative t is a subnormal above
    // a minimum that was flushed: it falls into bin 0 and is never rounded up.
    const int t = min(__float_as_int(multiply(subtract(value, grid.minimum), grid.inverse_scale)),
                      __float_as_int((float)TOP));
    codes += (Codes<BITS>)round_in_bin<BITS>(t, noise, bins) << shift;
}

template <int BITS> __device__ __forceinline__ void share_table(const Table<BITS>& table, Bin* bins) {
    for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) bins[i] = table.bins[i];
}

// The codes of the `count` values of an octet that starts at `place`, wherever the borders of its blocks fall.
template <int BITS>
__device__ __forceinline__ Codes<BITS> round_octet(const float (&values)[OCTET], int count, Place place,
                                                   int block_length, const unsigned short* minimum,
                                                   const unsigned short* scale, const unsigned (&noise)[OCTET],
                                                   const Bin* bins) {
    Grid grid({minimum[place.block], scale[place.block]});
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
    return word;
}
