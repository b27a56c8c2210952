// Philox 4x32-10 (Salmon et al., SC 2011, section 3.3), numbered as in actbench/quant/philox.py.
#pragma once

// Groups `group` and `group + 1` of a stream, 8 words. Two at once share the keys of each round.
__device__ __forceinline__ void philox_pair(unsigned long long seed, unsigned long long stream,
                                            unsigned long long group, unsigned (&words)[8]) {
    constexpr unsigned FACTOR_A = 0xD2511F53u, FACTOR_C = 0xCD9E8D57u;
    unsigned key_low = (unsigned)seed, key_high = (unsigned)(seed >> 32);
#pragma unroll
    for (int g = 0; g < 2; ++g) {
        words[4 * g] = (unsigned)(group + g);
        words[4 * g + 1] = (unsigned)((group + g) >> 32);
        words[4 * g + 2] = (unsigned)stream;
        words[4 * g + 3] = (unsigned)(stream >> 32);
    }
#pragma unroll
    for (int round = 0; round < 10; ++round) {
#pragma unroll
        for (int g = 0; g < 8; g += 4) {
            const unsigned a = words[g], c = words[g + 2];
            words[g] = __umulhi(FACTOR_C, c) ^ words[g + 1] ^ key_low;
            words[g + 1] = FACTOR_C * c;
            words[g + 2] = __umulhi(FACTOR_A, a) ^ words[g + 3] ^ key_high;
            words[g + 3] = FACTOR_A * a;
        }
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
}
