// Packed codes, minima and scales times the transpose of a random projection.
//
// For n rows of R values packed in b bits, blocks of G, and D columns of S bytes: n·D·R multiply-adds; n·R·b/8 and
// 4·n·R/G bytes read for every 128 columns, n·D·S written once. P takes no bytes; a CTA draws its signs once for a
// strip of rows when R is at most 128.
#include "edges.cuh"
#include "places.cuh"
#include "product.cuh"

// CTAs on a multiprocessor, as many as ptxas finds registers for without spilling.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int RESIDENT_UNPROJECT = 4;
#else
constexpr int RESIDENT_UNPROJECT = 5 - FEWER_RESIDENT;
#endif

template <class T, int BITS>
__global__ void __launch_bounds__(PRODUCT_THREADS, RESIDENT_UNPROJECT)
    dequantize_unproject(const unsigned char* __restrict__ codes, const unsigned short* __restrict__ minimum,
                         const unsigned short* __restrict__ scale, T* __restrict__ out, long long rows, int width,
                         int projected, int block_length, int strip_rows, int row_groups, int column_pairs,
                         float factor, unsigned long long seed, unsigned long long sign_stream,
                         const __grid_constant__ Edges<BITS> edges) {
    __shared__ Stage stage;
    __shared__ float edge[1 << BITS];
    __shared__ Place start;
    const Tile tile{row_groups, column_pairs};
    const int across = (width + tile.columns() - 1) / tile.columns();
    const int down = blockIdx.x / across, first_column = (blockIdx.x - down * across) * tile.columns();
    const long long first_row = down * (long long)strip_rows, first = first_row * projected;
    const int strip = (int)min((long long)strip_rows, rows - first_row);

    for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) edge[i] = edges.edge[i];
    if (threadIdx.x == 0) start = locate(first, block_length);
    const Seat seat(tile);
    for (int row = 0; row < strip; row += tile.rows()) {
        Sums sums = {};
        for (int from = 0; from < projected; from += CHUNK) {
            const int begin = from / RUN * RUN;
            // Column c of the tile has its signs side by side, from bit c·R on.
            const unsigned long long bit = first_column * (unsigned long long)projected + begin;
            if (from == begin && (row == 0 || projected > RUN)) {
                draw_signs(stage, min(tile.columns(), width - first_column), bit, projected, seed, sign_stream);
                __syncthreads();
            }
            if (row == 0 || projected > CHUNK)
#pragma unroll 1
                for (int column = threadIdx.x; column < tile.columns(); column += blockDim.x)
#pragma unroll
                    for (int k = 0; k < CHUNK; k += OCTET) {
                        const unsigned bits = read_signs(stage, column, bit, projected, from - begin + k);
#pragma unroll
                        for (int i = 0; i < OCTET; ++i)
                            stage.signs(tile)[(k + i) * tile.columns() + column] = make_sign(bits >> i);
                    }
#pragma unroll 1
            for (int quad = threadIdx.x; quad < tile.rows() * CHUNK / 4; quad += blockDim.x) {
                const int line = quad / 4, k = from + quad % 4 * 4;
                const int count = row + line < strip ? min(4, projected - k) : 0;
                Quad<float> values;
                if (count > 0) {
                    const unsigned offset = (row + line) * (unsigned)projected + k;
                    Place place = advance(start, offset, block_length);
                    float low = to_float(BFloat16{minimum[place.block]}), step = to_float(BFloat16{scale[place.block]});
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        if (i >= count) break;
                        if (place.offset == (unsigned)block_length) {
                            place = {place.block + 1, 0};
                            low = to_float(BFloat16{minimum[place.block]});
                            step = to_float(BFloat16{scale[place.block]});
                        }
                        const long long at = first + offset + i;
                        const unsigned code = codes[at * BITS / 8] >> at * BITS % 8 & (1 << BITS) - 1;
                        values.values[i] = add(multiply(edge[code], step), low);
                        ++place.offset;
                    }
                }
                *(uint4*)(stage.values + line * STRIDE + quad % 4 * 4) = values.word;
            }
            __syncthreads();
            add_chunk(stage, tile, seat, sums);
            __syncthreads();
        }
        store_sums(sums, factor, tile, seat, out + (first_row + row) * width + first_column, strip - row, width,
                   width - first_column);
    }
}
