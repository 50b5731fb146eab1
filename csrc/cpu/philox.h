// Philox-4x32-10: see speechft/augment/keys.py.
#pragma once

#include <cstdint>

namespace speechft::cpu {

// For each of n keys the words of `blocks` counters (first + i, stream, 0, use): n rows of 4 blocks
// words, in the low halves of int64.
void philox(const int64_t* keys, int64_t n, uint32_t first, int64_t blocks, uint32_t stream,
            uint32_t use, int64_t* words);

}  // namespace speechft::cpu
