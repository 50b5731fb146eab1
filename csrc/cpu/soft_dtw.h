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
  // alignment d value / d cost: zero outside the pair's rectangle and band or, with spans, of a
  // pair that is not dense, defined inside the spans only.
  float* cost;
  const int64_t* x_lengths;  // (pairs,)
  const int64_t* y_lengths;  // (pairs,)
  int64_t pairs, rows, columns;
  float gamma;
  int64_t bandwidth;  // -1: none; else |i m - j n| <= bandwidth max(n, m)
  double* value;      // (pairs,)
  bool want_alignment;

  // Null where a cost comes in and its alignment goes out. Else the frames behind the Gram matrix,
  // what finds the gradient in the alignment, and the gradient, to which `weight` times it is
  // added (null where not wanted).
  const float *x, *y;              // (pairs, rows, features) and (pairs, columns, features)
  const float *x_norms, *y_norms;  // (pairs, rows) and (pairs, columns) squared norms
  int64_t features;
  int32_t* spans;        // (pairs, rows, 2): first column, and one past the last, that matter
  unsigned char* dense;  // (pairs,) 1: so many that the whole alignment is there, for a GEMM
  float* row_sums;       // (pairs, rows) of the alignment, zero where the pair is not dense
  float* column_sums;    // (pairs, columns)
  float weight;
  float *x_gradient, *y_gradient;  // of the shapes of x and y; the same for x against itself
};

// Pairs that the widest instruction set in use takes side by side.
int soft_dtw_lanes();

// Bytes that soft_dtw() works in.
int64_t soft_dtw_workspace_bytes(const std::vector<SoftDtwBatch>& batches, int threads);

// Runs all pairs of all batches on up to `threads` threads, which changes no bit of the result.
void soft_dtw(const std::vector<SoftDtwBatch>& batches, int threads, void* workspace);

// After soft_dtw(): adds the gradients of the pairs that are not dense, one batch after the other.
// The batches have the same pairs, and may add to the same gradients.
void soft_dtw_gradient(const std::vector<SoftDtwBatch>& batches, int threads);

}  // namespace speechft::cpu
