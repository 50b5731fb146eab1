// Steps on each sample of a waveform apart, a list of them in one go: see
// speechft/reference/pointwise.py for what each is.
#pragma once

#include <cstdint>

namespace speechft::cpu {

enum class PointwiseKind : int32_t { scale, clip, mix, silence, quantise, mu_law };

struct PointwiseStep {
  PointwiseKind kind;
  const float* value;                // (B,): factor, share, or decibels
  const int64_t *first, *second;     // (B, count): clips and starts, spans; or (B,)
  int64_t count;                     // voices, or spans
  const void* samples;               // of all clips: int16, or float
  bool short_samples;                // int16
  const int64_t *offsets, *counts;   // of each clip
  const float* levels;               // what each clip is divided by
};

struct PointwiseBatch {
  const float* x;  // (B, width), rows x_stride apart
  int64_t x_stride;
  float* y;  // (B, width), dense
  int64_t batch, width;
  const int64_t* lengths;
  const PointwiseStep* steps;
  int64_t steps_count;
  bool* skipped;  // (B, mixes)
  int64_t mixes;
};

void pointwise(const PointwiseBatch& batch, int threads);

// A row, on an instruction set.
void pointwise_row_baseline(const PointwiseBatch& batch, int64_t row);
void pointwise_row_avx2(const PointwiseBatch& batch, int64_t row);
void pointwise_row_avx512(const PointwiseBatch& batch, int64_t row);

}  // namespace speechft::cpu
