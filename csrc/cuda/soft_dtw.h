// Soft-DTW on CUDA: the entry points, in plain C++ (no CUDA header is needed to include this).
//
// Everything here takes raw device pointers and sizes, so that the module which binds it links
// neither torch nor a particular version of it.
#pragma once

#include <cstdint>

namespace speechft::cuda {

// One batch of pairs with a padded size of its own. The divergence passes three (xy, xx, yy) to one
// launch. All pointers are device pointers.
struct SoftDtwSegment {
  const float* cost;         // (B, N, M), contiguous; outside a pair's lengths it does not matter
  float* alignment;          // (B, N, M) or nullptr; may be `cost` itself, then overwritten
  float* value;              // (B,)
  const int64_t* x_lengths;  // (B,) in 1..N, or nullptr for N throughout
  const int64_t* y_lengths;  // (B,) in 1..M, or nullptr for M throughout
  int32_t N, M;
};

// How the softmin weights are kept between the sweeps: two numbers a cell.
constexpr int kSoftDtwFixedWeights = 4;  // two 16-bit fixed-point numbers: absolute error 1.6e-5
constexpr int kSoftDtwFloatWeights = 8;  // two floats

// Bytes of scratch that soft_dtw() needs for these sizes, or -1 for sizes it refuses. Reads the
// sizes only. `weight_bytes` counts only when an alignment is wanted.
int64_t soft_dtw_workspace_bytes(const SoftDtwSegment* segments, int count, int B,
                                 bool with_alignment, int weight_bytes);

// value[b] = soft-DTW_gamma of pair b, and alignment[b] = d value[b] / d cost[b], zero outside the
// pair's lengths and outside the band. Queues one kernel on `stream` of `device`; allocates nothing
// and waits for nothing; the same inputs give the same bits.
//
// bandwidth: -1 for none, else a cell (i, j), counted from 1, of an n x m pair takes part iff
// |i m - j n| <= bandwidth max(n, m). Where that leaves no path (bandwidth 0, n != m), and where a
// length is not positive, the value is +inf and the alignment zero.
//
// Returns nullptr when the kernel was queued, else the reason why not.
const char* soft_dtw(int device, intptr_t stream, const SoftDtwSegment* segments, int count, int B,
                     float gamma, int64_t bandwidth, void* workspace, int64_t workspace_bytes,
                     int weight_bytes);

// "" when a device here can run these kernels, else the reason: no device, or too old a driver.
const char* why_not();

}  // namespace speechft::cuda
