// Rectified codes: 0 for a value that a ReLU stops, else 1 + the code of its level; see actbench/quant/reference.py.
//
// A code has `SYMBOLS` values: 4, 16 and 256 fill bits, 3 are trits, five to a byte as digits of base 3. In registers
// trits have 2 bits, so that an octet of them is a `Codes<2>`; of those in memory it may begin amid a byte.
#pragma once
#include "edges.cuh"
#include "octets.cuh"
#include "places.cuh"

constexpr int TRITS = 5;  // a byte

template <int SYMBOLS> constexpr int SYMBOL_BITS = SYMBOLS <= 4 ? 2 : SYMBOLS == 16 ? 4 : 8;
template <int SYMBOLS> using Symbols = Codes<SYMBOL_BITS<SYMBOLS>>;

// The trits of every byte, 2 bits each; nothing for codes that fill bits.
template <int SYMBOLS> struct Digits {
    __device__ __forceinline__ void share() {}
};
template <> struct Digits<3> {
    unsigned short of[256];

    __device__ __forceinline__ void share() {
        for (int byte = threadIdx.x; byte < 256; byte += blockDim.x) {
            unsigned rest = byte, trits = 0;
#pragma unroll
            for (int i = 0; i < TRITS; ++i, rest /= 3) trits |= rest % 3 << 2 * i;
            of[byte] = (unsigned short)trits;
        }
    }
};

// The bytes that the `count` codes from value `at`, an octet's first, on lie in.
template <int SYMBOLS>
__device__ __forceinline__ Symbols<SYMBOLS> load_symbols(const unsigned char* codes, long long at, int count) {
    if constexpr (SYMBOLS == 3) {
        const long long byte = at / TRITS;
        const int last = (int)(at - byte * TRITS) + count;
        unsigned word = codes[byte];
        if (last > TRITS) word |= codes[byte + 1] << 8;
        if (last > 2 * TRITS) word |= codes[byte + 2] << 16;
        return word;
    } else {
        constexpr int BITS = SYMBOL_BITS<SYMBOLS>;
        return load_codes<BITS>(codes + at / OCTET * BITS, count);
    }
}

// The codes that `load_symbols` has loaded, lowest first.
template <int SYMBOLS>
__device__ __forceinline__ Symbols<SYMBOLS> decode(Symbols<SYMBOLS> loaded, long long at,
                                                   const Digits<SYMBOLS>& digits) {
    if constexpr (SYMBOLS == 3) {
        const unsigned trits =
            digits.of[loaded & 255] | digits.of[loaded >> 8 & 255] << 10 | digits.of[loaded >> 16] << 20;
        return trits >> 2 * (int)(at % TRITS);
    } else {
        return loaded;
    }
}

template <int SYMBOLS> __device__ __forceinline__ int symbol(Symbols<SYMBOLS> codes, int i) {
    constexpr int BITS = SYMBOL_BITS<SYMBOLS>;
    return (int)(codes >> BITS * i & (1 << BITS) - 1);
}

// The estimates of an octet that starts at `place`, of which `count` values exist.
template <int SYMBOLS>
__device__ __forceinline__ void read_symbols(Symbols<SYMBOLS> codes, int count, Place place, int block_length,
                                             const unsigned short* scale, const float* edge, float (&values)[OCTET]) {
    float step = to_float(BFloat16{scale[place.block]});
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
        // Behind the tensor's last value there may be no block to read from.
        if (place.offset == (unsigned)block_length && i < count) {
            place = {place.block + 1, 0};
            step = to_float(BFloat16{scale[place.block]});
        }
        values[i] = multiply(edge[symbol<SYMBOLS>(codes, i)], step);
        ++place.offset;
    }
}

// Bits of what a dropout let pass of octet `at / 8`; all of it without a mask.
__device__ __forceinline__ unsigned load_mask(const unsigned char* mask, long long at) {
    return mask ? mask[at / OCTET] : 255u;
}

// What a ReLU, and a dropout after it, pass on of an octet's gradient: times `factor`, or 0.
template <int SYMBOLS>
__device__ __forceinline__ void pass_on(Symbols<SYMBOLS> codes, unsigned mask, float factor, float (&gradient)[OCTET]) {
#pragma unroll
    for (int i = 0; i < OCTET; ++i)
        gradient[i] = symbol<SYMBOLS>(codes, i) != 0 && mask >> i & 1 ? multiply(gradient[i], factor) : 0;
}

template <int BITS> __device__ __forceinline__ void share_edges(const Edges<BITS>& edges, float* edge) {
    for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) edge[i] = edges.edge[i];
}
