// x P, P a random projection of signs times a factor, to float32 or at once to packed codes, minima and scales.
//
// For x of n rows and D columns of S bytes, P of R columns: n·D·R multiply-adds, and n·D·S bytes read once by
// project_quantize, which writes what quantize_blocks does for N = n·R; by project n·D·S bytes for every 128 columns
// of P, and 4·n·R written. P takes no bytes; its signs take D·R/128 Philox groups a tile, at least.
#include "product.cuh"
#include "rounding.cuh"

// CTAs on a multiprocessor, as many as every compiler from NVRTC 12.4 on finds registers for without spilling. 6 take a
// float32 169,343 x 128 tensor to an H100 at once, 5 leave 2 tiles of 662 for later; GPUs of the 8.6 and 8.9 kind have
// shared memory for 3.
template <class T>
constexpr int RESIDENT_PROJECT =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900
    5 - FEWER_RESIDENT;
#else
    sizeof(T) == sizeof(float) ? 6 : 5;
#endif

// Chunk of x from `column` on to shared memory, where it is after wait_for_copies and a barrier; zeros where x has no
// rows or columns. It moves in words where rows start on 4 values' alignment, else by values, lanes side by side.
template <class T>
__device__ __forceinline__ void stage_chunk(const T* x, int rows, int width, int column, float* staged,
                                            int tile_rows) {
    constexpr int QUADS = MOST_ROWS * CHUNK / 4 / PRODUCT_THREADS;  // a thread's share at most, for any blockDim
    constexpr int VALUES = 4;  // at once; with more there are not registers enough
    if (width % 4 == 0 && is_aligned(x, 4 * sizeof(T))) {
        const int row = threadIdx.x / 4, step = blockDim.x / 4, offset = threadIdx.x % 4 * 4;
        const T* at = x + row * (long long)width + column + offset;
        const bool inside = column + offset < width;
        if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
            for (int i = 0; i < QUADS; ++i, at += step * (long long)width) {
                if (row + i * step >= tile_rows) break;
                const bool present = inside && row + i * step < rows;
                copy_asynchronously(staged + (row + i * step) * STRIDE + offset, present ? at : x, present);
            }
        } else {
            Quad<T> quads[QUADS];
#pragma unroll
            for (int i = 0; i < QUADS; ++i, at += step * (long long)width)
                if (inside && row + i * step < rows) quads[i].word = *(const typename Quad<T>::Word*)at;
#pragma unroll
            for (int i = 0; i < QUADS; ++i) {
                Quad<float> values;
#pragma unroll
                for (int j = 0; j < 4; ++j) values.values[j] = to_float(quads[i].values[j]);
                if (row + i * step < tile_rows) *(uint4*)(staged + (row + i * step) * STRIDE + offset) = values.word;
            }
        }
    } else {
        const int step = blockDim.x / CHUNK, offset = threadIdx.x % CHUNK;
        const bool inside = column + offset < width;
        for (int row = threadIdx.x / CHUNK; row < tile_rows; row += VALUES * step) {
            const T* at = x + row * (long long)width + column + offset;
            T values[VALUES];
#pragma unroll
            for (int i = 0; i < VALUES; ++i, at += step * (long long)width)
                values[i] = inside && row + i * step < rows ? *at : T{};
#pragma unroll
            for (int i = 0; i < VALUES; ++i)
                if (row + i * step < tile_rows) staged[(row + i * step) * STRIDE + offset] = to_float(values[i]);
        }
    }
}

// Sums of the tile whose first row `x` is, with `rows` rows left, and whose first column of P is `first_column`.
template <class T>
__device__ __forceinline__ void sum_products(Stage& stage, const T* x, int rows, int width, int projected,
                                             int first_column, const Tile& tile, const Seat& seat,
                                             unsigned long long seed, unsigned long long stream, Sums& sums) {
    const int octets = tile.columns() / OCTET, lines = blockDim.x / octets;
    const int line = threadIdx.x / octets, octet = threadIdx.x - line * octets;
#pragma unroll 1
    for (int from = 0; from < width; from += CHUNK) {
        const int start = from / RUN * RUN;
        const unsigned long long first = start * (unsigned long long)projected + first_column;
        if (from == start) {
            draw_signs(stage, min(RUN, width - start), first, projected, seed, stream);
            __syncthreads();
        }
        stage_chunk(x, min(rows, tile.rows()), width, from, stage.values, tile.rows());
        if (line < lines)
#pragma unroll 1
            for (int k = line; k < CHUNK; k += lines) {
                const unsigned bits = read_signs(stage, from - start + k, first, projected, octet * OCTET);
                float* signs = stage.signs(tile) + k * tile.columns() + octet * OCTET;
#pragma unroll
                for (int i = 0; i < OCTET; i += 4) {
                    Quad<float> four;
#pragma unroll
                    for (int j = 0; j < 4; ++j) four.values[j] = make_sign(bits >> (i + j));
                    *(uint4*)(signs + i) = four.word;
                }
            }
        wait_for_copies();
        __syncthreads();
        add_chunk(stage, tile, seat, sums);
        __syncthreads();
    }
}

template <class T>
__global__ void __launch_bounds__(PRODUCT_THREADS, RESIDENT_PROJECT<T>)
    project(const T* __restrict__ x, float* __restrict__ out, long long rows, int width, int projected,
            int row_groups, int column_pairs, float factor, unsigned long long seed, unsigned long long stream) {
    __shared__ Stage stage;
    const Tile tile{row_groups, column_pairs};
    const int across = (projected + tile.columns() - 1) / tile.columns();
    const int down = blockIdx.x / across, first_column = (blockIdx.x - down * across) * tile.columns();
    const long long first_row = down * (long long)tile.rows();
    const int left = (int)min((long long)tile.rows(), rows - first_row);

    const Seat seat(tile);
    Sums sums = {};
    sum_products(stage, x + first_row * width, left, width, projected, first_column, tile, seat, seed, stream, sums);
    store_sums(sums, factor, tile, seat, out + first_row * projected + first_column, left, projected,
               projected - first_column);
}

// A CTA takes `tile_rows` rows, which are whole blocks and whole octets of x P, all but the last CTA's.
template <class T, int BITS>
__global__ void __launch_bounds__(PRODUCT_THREADS, RESIDENT_PROJECT<T>)
    project_quantize(const T* __restrict__ x, unsigned char* __restrict__ codes, unsigned short* __restrict__ minimum,
                     unsigned short* __restrict__ scale, int* broken, long long rows, int width, int projected,
                     int block_length, int lane_bits, int tile_rows, int row_groups, int column_pairs, float factor,
                     unsigned long long seed, unsigned long long sign_stream, unsigned long long stream,
                     const __grid_constant__ Table<BITS> table) {
    __shared__ Stage stage;
    __shared__ Bin bins[1 << BITS];
    const Tile tile{row_groups, column_pairs};
    const long long first_row = blockIdx.x * (long long)tile_rows, first = first_row * projected;
    const int left = (int)min((long long)tile_rows, rows - first_row), count = left * projected;

    share_table(table, bins);
    {
        const Seat seat(tile);
        Sums sums = {};
        sum_products(stage, x + first_row * width, left, width, projected, 0, tile, seat, seed, sign_stream, sums);
        // The tile of x P takes the place of that of x.
        store_sums(sums, factor, tile, seat, stage.values, left, projected, projected);
    }
    __syncthreads();

    const int teams = blockDim.x >> lane_bits, team = threadIdx.x >> lane_bits, lanes = 1 << lane_bits;
    const int lane = threadIdx.x & (lanes - 1), blocks = (count + block_length - 1) / block_length;
    const long long first_block = blockIdx.x * (long long)(tile_rows * projected / block_length);
    for (int others = 0; others < blocks; others += teams) {  // as often for idle teams: their lanes shuffle too
        const int block = others + team, at = min(block * block_length, count - 1);
        const int length = min(block_length, count - at);
        Range range(stage.values[at]);
        for (int i = lane * OCTET; i < length; i += lanes * OCTET) {
            float values[OCTET];
            load_octet((const float*)stage.values + at + i, length - i, values);
#pragma unroll
            for (int j = 0; j < OCTET; ++j) range.include(values[j]);
        }
        range.include_lanes(lanes);
        if (lane == 0 && block < blocks)
            store_metadata(round_range(range, (1 << BITS) - 1), first_block + block, minimum, scale, broken);
    }
    __syncthreads();

    for (int at = threadIdx.x * OCTET; at < count; at += blockDim.x * OCTET) {
        float values[OCTET];
        load_octet((const float*)stage.values + at, count - at, values);
        unsigned noise[OCTET];
        philox_pair(seed, stream, (first + at) / 4, noise);
        const Place place = advance({first_block, 0}, at, block_length);
        const Codes<BITS> word =
            round_octet<BITS>(values, count - at, place, block_length, minimum, scale, noise, bins);
        store_codes<BITS>(codes + (first + at) / OCTET * BITS, count - at, word);
    }
}
