// What the dispatcher and the kernels of each instruction set share.
#pragma once

#include <cstdint>

#include "cpu/soft_dtw.h"

namespace speechft::cpu {

constexpr int MAX_LANES = 16;

// Pairs that run side by side. Lanes from `count` on repeat the first pair; they are computed and
// thrown away.
struct SoftDtwGroup {
  int count;
  int64_t pairs[MAX_LANES], x_lengths[MAX_LANES], y_lengths[MAX_LANES];
};

#define SPEECHFT_DECLARE_SOFT_DTW(set)                                                     \
  int64_t soft_dtw_workspace_##set(int64_t rows, int64_t columns, bool want_alignment);    \
  void soft_dtw_group_##set(const SoftDtwBatch&, const SoftDtwGroup&, float* workspace); \
  void soft_dtw_gradient_##set(const SoftDtwBatch&, int64_t pair)

SPEECHFT_DECLARE_SOFT_DTW(single);
SPEECHFT_DECLARE_SOFT_DTW(single_avx2);
SPEECHFT_DECLARE_SOFT_DTW(baseline);
SPEECHFT_DECLARE_SOFT_DTW(avx2);
SPEECHFT_DECLARE_SOFT_DTW(avx512);

#undef SPEECHFT_DECLARE_SOFT_DTW

}  // namespace speechft::cpu
