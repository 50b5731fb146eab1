// Soft-DTW of a batch of pairs on the CPU, on raw pointers.
#pragma once

#include <cstdint>
#include <vector>

namespace speechft::cpu {

// One batch of `pairs` pairs in one padded buffer. Pair p has x_lengths[p] rows and y_lengths[p]
// columns; what the buffer holds beyond them is never read into a result.
struct SoftDtwBatch {
  // (pairs, rows, columns). On entry the cost, or, with x_norms, the Gram matrix x.y from which
  // the cost |x|^2 + |y|^2 - 2 x.y is made on the way in. On exit, with want_alignment, the
  // alignment d value / d cost, zero outside the pair's rectangle and band.
  float* cost;
  const float* x_norms;  // (pairs, rows) squared norms, or null
  const float* y_norms;  // (pairs, columns) squared norms, or null
  const int64_t* x_lengths;  // (pairs,)
  const int64_t* y_lengths;  // (pairs,)
  int64_t pairs, rows, columns;
  float gamma;
  int64_t bandwidth;  // -1: none; else |i m - j n| <= bandwidth max(n, m)
  double* value;      // (pairs,)
  bool want_alignment;
  float* row_sums;     // (pairs, rows) of the alignment, or null
  float* column_sums;  // (pairs, columns), or null
};

// Pairs that the widest instruction set in use takes side by side.
int soft_dtw_lanes();

// "avx512", "avx2" or "baseline": what this processor gets unless told otherwise.
const char* soft_dtw_instruction_set();

// Limit the choice to one instruction set (empty: choose). Returns false if it cannot run here.
bool soft_dtw_set_instruction_set(const char* name);

// Runs all pairs of all batches on up to `threads` threads, which changes no bit of the result.
void soft_dtw(const std::vector<SoftDtwBatch>& batches, int threads);

}  // namespace speechft::cpu
