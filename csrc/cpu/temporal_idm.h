// The contrastive inverse difference moment of sequences, and its gradient.
//
//   I(x) = 1 / n^2 sum_ij  w_ij max(0, margin - d_ij)  where |i - j| > near,  else d_ij / w_ij,
//   w_ij = (i - j)^2 + 1,  d_ij = |x_i - x_j|.
//
// Pairs i < j, a tile of them at a time; the others are the same again. Tiles of one round have no
// frames in common, so that threads add to the gradient without waiting for each other, and in an
// order that the sizes fix.
#pragma once

#include <cstdint>

namespace speechft::cpu {

struct TemporalIdmBatch {
  const float* x;  // (B, T, D)
  int64_t batch, steps, features;
  const int64_t* lengths;  // n of each sequence, or null for all steps
  int64_t near;
  float margin;
  double* value;    // (B,)
  float* gradient;  // (B, T, D), zeros that are added to; or null
};

void temporal_idm(const TemporalIdmBatch& batch, int threads);

}  // namespace speechft::cpu
