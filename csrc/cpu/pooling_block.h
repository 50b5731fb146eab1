// What the dispatcher and the kernels of each instruction set share.
#pragma once

#include <cstdint>

#include "cpu/pooling.h"

namespace speechft::cpu {

constexpr int64_t CHANNELS = 512;  // of one utterance that a thread pools at a time
constexpr int64_t FRAMES = 16;     // of these channels, 32 KiB: swept twice while they are in cache

// Channels [begin, end) of an utterance, all in one group.
struct PoolingBlock {
  int64_t utterance, frames, begin, end, group;
};

#define SPEECHFT_DECLARE_POOLING(set)                                                    \
  void pool_##set(const PoolingBatch&, const PoolingBlock&);                             \
  /* `by_weight`, of each frame, is added to. */                                         \
  void pool_gradient_##set(const PoolingBatch&, const PoolingBlock&, const PoolingGradient&, \
                           double* by_weight)

SPEECHFT_DECLARE_POOLING(baseline);
SPEECHFT_DECLARE_POOLING(avx2);
SPEECHFT_DECLARE_POOLING(avx512);

#undef SPEECHFT_DECLARE_POOLING

}  // namespace speechft::cpu
