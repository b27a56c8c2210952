// Batch norm's backward from rectified codes, through the ReLU and the dropout that came after it.
//
// Bytes moved for N values, gradients of S bytes, b bits, blocks of G, once each: N·(S + b/8) + 2·N/G read by norm_sums;
// as much read and N·S written by norm_gradient; N/8 more read by each with a dropout's mask. With float32, 2 bits and
// a mask that is 12.75 N and 4·N/G. The partial sums, written and then read, are N/32 floats at most for 256 threads a CTA.
//
// A band is the fewest rows that are whole octets, 8 / gcd(width, 8) of them, so that an octet has the same columns in
// every band, whatever the width. A thread takes one octet of BANDS bands.
#include "rectified.cuh"

constexpr int BANDS = 16;  // a thread

// The way of a thread through its CTA's bands, of which the CTA takes `octets` octets from `first` on.
struct Walk {
    int down, first, octets, octet, teams;  // a team of a thread an octet goes from band to band
    bool is_idle;
    long long at, step;  // values
    Place place, stride;

    __device__ __forceinline__ Walk(long long band, int lanes, int block_length) {
        const int all = (int)(band / OCTET), across = (all + lanes - 1) / lanes, team = threadIdx.x / lanes;
        down = blockIdx.x / across;
        first = (blockIdx.x - down * across) * lanes;
        octets = min(lanes, all - first);
        octet = threadIdx.x - team * lanes;
        teams = blockDim.x / lanes;
        is_idle = team >= teams || octet >= octets;
        step = teams * band;
        at = down * BANDS * step + team * band + (first + octet) * (long long)OCTET;
        place = locate(at, block_length);
        stride = locate(step, block_length);
    }
    __device__ __forceinline__ void advance(int block_length) {
        at += step;
        place = {place.block + stride.block, place.offset + stride.offset};
        if (place.offset >= (unsigned)block_length) place = {place.block + 1, place.offset - block_length};
    }
};

// Sums of a thread by column of its octet: Σ g, Σ g ŷ, Σ ŷ, and how many ŷ are positive, a byte each, of BANDS at most.
struct ColumnSums {
    float of[3][OCTET];
    unsigned positive[OCTET / 4];

    __device__ __forceinline__ float get(int quantity, int i) const {
        return quantity < 3 ? of[quantity][i] : (float)(positive[i / 4] >> 8 * (i % 4) & 255);
    }
};

constexpr int SUM_STRIDE = 256 + 4;  // floats between two columns of an octet: of 8 columns each has banks of its own

// `partial` is [CTAs down, 4, band]: float32 sums over BANDS bands a thread, then over the CTA's threads, in order.
template <class T, int SYMBOLS>
__global__ void __launch_bounds__(256, 3 - FEWER_RESIDENT)
    norm_sums(const T* __restrict__ gradient, const unsigned char* __restrict__ codes,
              const unsigned short* __restrict__ scale, const unsigned char* __restrict__ mask,
              float* __restrict__ partial, long long numel, long long band, int lanes, int block_length, float factor,
              const __grid_constant__ Edges<SYMBOL_BITS<SYMBOLS>> edges) {
    __shared__ float edge[1 << SYMBOL_BITS<SYMBOLS>];
    __shared__ Digits<SYMBOLS> digits;
    __shared__ float columns[OCTET * SUM_STRIDE];
    share_edges(edges, edge);
    digits.share();
    __syncthreads();

    Walk walk(band, lanes, block_length);
    ColumnSums sums = {};
#pragma unroll 1
    for (int k = 0; k < BANDS && walk.at < numel && !walk.is_idle; ++k, walk.advance(block_length)) {
        const int count = (int)min((long long)OCTET, numel - walk.at);
        float g[OCTET], y[OCTET];
        load_octet(gradient + walk.at, count, g);
        const unsigned bits = load_mask(mask, walk.at);
        const Symbols<SYMBOLS> word =
            decode<SYMBOLS>(load_symbols<SYMBOLS>(codes, walk.at, count), walk.at, digits);
        pass_on<SYMBOLS>(word, bits, factor, g);
        read_symbols<SYMBOLS>(word, count, walk.place, block_length, scale, edge, y);
#pragma unroll
        for (int i = 0; i < OCTET; ++i) {
            if (i >= count) break;
            sums.of[0][i] = add(sums.of[0][i], g[i]);
            sums.of[1][i] = add(sums.of[1][i], multiply(g[i], y[i]));
            sums.of[2][i] = add(sums.of[2][i], y[i]);
            if (symbol<SYMBOLS>(word, i) != 0) sums.positive[i / 4] += 1u << 8 * (i % 4);
        }
    }

#pragma unroll
    for (int quantity = 0; quantity < 4; ++quantity) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OCTET; ++i) columns[i * SUM_STRIDE + threadIdx.x] = sums.get(quantity, i);
        __syncthreads();
        for (int column = threadIdx.x; column < walk.octets * OCTET; column += blockDim.x) {
            const float* of_column = columns + column % OCTET * SUM_STRIDE + column / OCTET;
            float sum = of_column[0];
            for (int team = 1; team < walk.teams; ++team) sum = add(sum, of_column[team * lanes]);
            partial[(walk.down * 4ll + quantity) * band + walk.first * (long long)OCTET + column] = sum;
        }
    }
}

// a g - b - c ŷ where ŷ is positive, d elsewhere; `coefficients` are a, b, c, d, [4, width].
template <class T, int SYMBOLS>
__global__ void __launch_bounds__(256, 3 - FEWER_RESIDENT)
    norm_gradient(const T* __restrict__ gradient, const unsigned char* __restrict__ codes,
                  const unsigned short* __restrict__ scale, const unsigned char* __restrict__ mask,
                  const float* __restrict__ coefficients, T* __restrict__ out, long long numel, long long band,
                  int width, int lanes, int block_length, float factor,
                  const __grid_constant__ Edges<SYMBOL_BITS<SYMBOLS>> edges) {
    __shared__ float edge[1 << SYMBOL_BITS<SYMBOLS>];
    __shared__ Digits<SYMBOLS> digits;
    share_edges(edges, edge);
    digits.share();
    __syncthreads();

    Walk walk(band, lanes, block_length);
    if (walk.is_idle) return;
    float of_columns[4][OCTET];
    int column = (int)((walk.first + walk.octet) * (long long)OCTET % width);
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) of_columns[j][i] = coefficients[j * (long long)width + column];
        column = column + 1 == width ? 0 : column + 1;
    }
#pragma unroll 1
    for (int k = 0; k < BANDS && walk.at < numel; ++k, walk.advance(block_length)) {
        const int count = (int)min((long long)OCTET, numel - walk.at);
        float g[OCTET], y[OCTET];
        load_octet(gradient + walk.at, count, g);
        const unsigned bits = load_mask(mask, walk.at);
        const Symbols<SYMBOLS> word =
            decode<SYMBOLS>(load_symbols<SYMBOLS>(codes, walk.at, count), walk.at, digits);
        pass_on<SYMBOLS>(word, bits, factor, g);
        read_symbols<SYMBOLS>(word, count, walk.place, block_length, scale, edge, y);
#pragma unroll
        for (int i = 0; i < OCTET; ++i) {
            const float alive = subtract(subtract(multiply(of_columns[0][i], g[i]), of_columns[1][i]),
                                         multiply(of_columns[2][i], y[i]));
            g[i] = symbol<SYMBOLS>(word, i) != 0 ? alive : of_columns[3][i];
        }
        store_octet(out + walk.at, count, g);
    }
}
