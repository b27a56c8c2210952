// Which block a value belongs to when blocks and threads do not line up.
#pragma once

struct Place {
    long long block;
    unsigned offset;  // within the block
};

// The place of value `first`. One 64-bit division a CTA: its threads go on from here with 32-bit ones.
__device__ __forceinline__ Place locate(long long first, int block_length) {
    const long long block = first / block_length;
    return {block, (unsigned)(first - block * block_length)};
}

__device__ __forceinline__ Place advance(Place from, unsigned values, int block_length) {
    const unsigned offset = from.offset + values, blocks = offset / (unsigned)block_length;
    return {from.block + blocks, offset - blocks * (unsigned)block_length};
}
