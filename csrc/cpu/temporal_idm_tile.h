// What temporal_idm.cpp and the kernels of each instruction set share.
#pragma once

#include <cstdint>

#include "cpu/temporal_idm.h"

namespace speechft::cpu {

constexpr int64_t TILE = 64;  // frames of either side

// Pairs of frames [rows, rows + TILE) and [columns, columns + TILE) of a sequence, rows <= columns.
struct TemporalIdmTile {
  const float* x;  // of the sequence, and so is the gradient (or null)
  float* gradient;
  int64_t frames, features, rows, columns, near;
  float margin;
  float unit;     // a power of two: x / unit is at most 1, so that no square is out of range
  double factor;  // 2 / n^2
};

// Floats that a thread works in.
#define SPEECHFT_DECLARE_TEMPORAL_IDM(set)                     \
  int64_t temporal_idm_workspace_##set(int64_t features);      \
  /* What the pairs give to the value, before the factor. */   \
  double temporal_idm_tile_##set(const TemporalIdmTile& tile, float* workspace)

SPEECHFT_DECLARE_TEMPORAL_IDM(baseline);
SPEECHFT_DECLARE_TEMPORAL_IDM(avx2);
SPEECHFT_DECLARE_TEMPORAL_IDM(avx512);

#undef SPEECHFT_DECLARE_TEMPORAL_IDM

}  // namespace speechft::cpu
