// The soft-DTW kernels as a library for ctypes.
#include "cuda_on_host.h"
#include "soft_dtw.cu"

using speechft::cuda::SoftDtwSegment;

extern "C" {

void set_schedule(int order, uint64_t seed) {
  cuda_on_host::state.order = static_cast<cuda_on_host::Order>(order);
  cuda_on_host::state.seed = seed;
}

int current_device() { return cuda_on_host::state.device; }

int64_t workspace_bytes(const SoftDtwSegment* segments, int count, int B, int with_alignment,
                        int weight_bytes) {
  return speechft::cuda::soft_dtw_workspace_bytes(segments, count, B, with_alignment != 0,
                                                  weight_bytes);
}

const char* soft_dtw(int device, const SoftDtwSegment* segments, int count, int B, float gamma,
                     int64_t bandwidth, void* workspace, int64_t bytes, int weight_bytes) {
  return speechft::cuda::soft_dtw(device, 0, segments, count, B, gamma, bandwidth, workspace, bytes,
                                  weight_bytes);
}

const char* why_not() { return speechft::cuda::why_not(); }
}
