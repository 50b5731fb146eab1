// What the dispatcher and the kernels of each instruction set share.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/pairwise_lse.h"

namespace speechft::cpu {

constexpr int64_t SLAB = 32;  // rows swept together: with 1024 columns, 128 KiB of products

// Sums of the columns of a tile over one slab, of each column (rounded up to whole vectors).
struct PairwisePartial {
  float *negative_maximum, *negative_sum;
  float *positive_maximum, *positive_sum, *positive_logits;
};

// Adds a sum of e^(s - other) to one of e^(s - maximum).
inline void merge(float& maximum, double& sum, float other, double other_sum) {
  if (other == -std::numeric_limits<float>::infinity()) return;
  if (other > maximum) {
    sum = sum * std::exp(static_cast<double>(maximum) - other) + other_sum;
    maximum = other;
  } else {
    sum += other_sum * std::exp(static_cast<double>(other) - maximum);
  }
}

#define SPEECHFT_DECLARE_PAIRWISE(set)                                                          \
  void pairwise_add_##set(const PairwiseTile&, int64_t begin, int64_t end, const PairwiseSums&, \
                          const PairwisePartial&);                                              \
  void pairwise_own_##set(const PairwiseTile&, int64_t begin, int64_t end, const float* lse,    \
                          double* value, double* weight);                                       \
  void pairwise_gradient_##set(const PairwiseTile&, int64_t begin, int64_t end,                 \
                               const PairwiseWeights& rows, const PairwiseWeights& columns,     \
                               bool own)

SPEECHFT_DECLARE_PAIRWISE(baseline);
SPEECHFT_DECLARE_PAIRWISE(avx2);
SPEECHFT_DECLARE_PAIRWISE(avx512);

#undef SPEECHFT_DECLARE_PAIRWISE

}  // namespace speechft::cpu
