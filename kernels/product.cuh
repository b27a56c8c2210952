// Tiles of a product with a matrix of signs ±1 that lies nowhere: its bits are those of Philox, drawn as needed.
//
// A thread holds 4 rows and 8 columns of a tile of sums in registers while 16 summands at a time pass through shared
// memory. Each sum is one chain of float32 roundings in the order of the summed dimension, whatever the tile.
#pragma once
#include "octets.cuh"
#include "philox.cuh"

constexpr int PRODUCT_THREADS = 128;  // the most
constexpr int CHUNK = 16;             // summands that are staged at a time
constexpr int STRIDE = CHUNK + 4;     // floats between two staged rows: of 8 rows each has other banks for 16 bytes
constexpr int MOST_ROWS = 2 * PRODUCT_THREADS;
constexpr int RUN = 128;              // signs that lie side by side in the stream and are drawn together
constexpr int RUN_STRIDE = 9;         // words between two drawn runs: two Philox groups, and one more for the banks

// 4·row_groups rows and 16·column_pairs columns, for 4·(row_groups / 2)·column_pairs threads.
struct Tile {
    int row_groups, column_pairs;

    __device__ __forceinline__ int rows() const { return 4 * row_groups; }
    __device__ __forceinline__ int columns() const { return 16 * column_pairs; }
};

// The widest tile has the fewest rows: signs begin where the values of a tile end, and a tile of sums fits in as well.
struct Stage {
    alignas(16) float values[MOST_ROWS * STRIDE + CHUNK * 16];  // [row][summand], then [summand][column]
    unsigned words[RUN * RUN_STRIDE];                           // [run][word]

    __device__ __forceinline__ float* signs(const Tile& tile) { return values + tile.rows() * STRIDE; }
};

// A thread's rows are row, row + row_groups, …, its columns 4 from `column` on and 4 half a tile further, so that the
// lanes of a warp write side by side. Lanes go zigzag: where neighbours read one row, every other pair one column.
struct Seat {
    int row, column;

    __device__ __forceinline__ explicit Seat(const Tile& tile) {
        const int square = threadIdx.x / 4, pairs = square / tile.column_pairs;
        row = 2 * pairs + threadIdx.x / 2 % 2;
        column = 4 * (2 * (square - pairs * tile.column_pairs) + threadIdx.x % 2);
    }
};

using Sums = float[4][8];

template <int BYTES> struct WordOf;
template <> struct WordOf<16> { using Type = uint4; };
template <> struct WordOf<8> { using Type = unsigned long long; };
template <> struct WordOf<4> { using Type = unsigned; };

// 4 values that move as one word, or as two, where the address allows it.
template <class T> union Quad {
    using Word = typename WordOf<4 * sizeof(T)>::Type;
    using HalfWord = typename WordOf<2 * sizeof(T)>::Type;
    Word word;
    HalfWord halves[2];
    T values[4];
    __device__ Quad() : word{} {}
};

__device__ __forceinline__ Quad<float> load_quad(const float* at) {
    Quad<float> quad;
    quad.word = *(const uint4*)at;
    return quad;
}

template <class T> __device__ __forceinline__ void store_quad(T* at, int count, const float* values) {
    Quad<T> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.values[i] = from_float<T>(values[i]);
    if (count >= 4 && is_aligned(at, sizeof quad)) {
        *(typename Quad<T>::Word*)at = quad.word;
    } else if (count >= 4 && is_aligned(at, sizeof quad / 2)) {
        ((typename Quad<T>::HalfWord*)at)[0] = quad.halves[0];
        ((typename Quad<T>::HalfWord*)at)[1] = quad.halves[1];
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < count) at[i] = quad.values[i];
    }
}

// Run i holds the signs from bit `first + i·distance` of the stream on.
__device__ __forceinline__ void draw_signs(Stage& stage, int runs, unsigned long long first,
                                           unsigned long long distance, unsigned long long seed,
                                           unsigned long long stream) {
    for (int run = threadIdx.x; run < runs; run += blockDim.x) {
        unsigned words[8];
        philox_pair(seed, stream, (first + run * distance) / 128, words);
#pragma unroll
        for (int i = 0; i < 8; ++i) stage.words[run * RUN_STRIDE + i] = words[i];
    }
}

// 8 signs of a run from its bit `at` (a multiple of 8 below 128) on, the first one lowest.
__device__ __forceinline__ unsigned read_signs(const Stage& stage, int run, unsigned long long first,
                                               unsigned long long distance, int at) {
    const unsigned bit = ((unsigned)first + run * (unsigned)distance) % 128 + at;
    const unsigned* word = stage.words + run * RUN_STRIDE + bit / 32;
    // The word after the eighth has no bits of ours: the last 8 signs end with the eighth.
    return (unsigned)(((unsigned long long)word[1] << 32 | word[0]) >> bit % 32);
}

// ±1 by the lowest bit; a set one is -1.
__device__ __forceinline__ float make_sign(unsigned bits) { return __int_as_float((int)(bits << 31 | 0x3F800000u)); }

// Adds the products of one staged chunk. Summands behind the last one are 0, which changes no sum.
__device__ __forceinline__ void add_chunk(Stage& stage, const Tile& tile, const Seat& seat, Sums& sums) {
    if (seat.row >= tile.row_groups) return;
    const int columns = tile.columns();
    const float *values = stage.values + seat.row * STRIDE, *signs = stage.signs(tile) + seat.column;
#pragma unroll 1
    for (int summand = 0; summand < CHUNK; summand += 4) {
        Quad<float> rows[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) rows[i] = load_quad(values + i * tile.row_groups * STRIDE + summand);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Quad<float> left = load_quad(signs + (summand + k) * columns);
            const Quad<float> right = load_quad(signs + (summand + k) * columns + columns / 2);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sums[i][j] = multiply_add(left.values[j], rows[i].values[k], sums[i][j]);
                    sums[i][4 + j] = multiply_add(right.values[j], rows[i].values[k], sums[i][4 + j]);
                }
        }
    }
}

// The thread's sums times `factor`, to rows of `width` of which the tile's first `rows` and, from the tile's first
// column on, `columns` exist.
template <class T>
__device__ __forceinline__ void store_sums(Sums& sums, float factor, const Tile& tile, const Seat& seat, T* out,
                                           int rows, long long width, int columns) {
    if (seat.row >= tile.row_groups) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = seat.row + i * tile.row_groups;
        if (row >= rows) return;
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = multiply(sums[i][j], factor);
        T* at = out + row * width + seat.column;
        store_quad(at, columns - seat.column, sums[i]);
        store_quad(at + tile.columns() / 2, columns - seat.column - tile.columns() / 2, sums[i] + 4);
    }
}
