// Soft-DTW on CUDA: the kernel, one thread block a pair, and its launch. The recursion, the schedule
// and the two sweeps over a strip of columns are in soft_dtw_sweeps.cuh.
#include "soft_dtw.h"

#include <climits>

#include "device.h"
#include "soft_dtw_sweeps.cuh"

namespace speechft::cuda {
namespace {

constexpr int kMaxSegments = 3;
constexpr int kMaxColumns = 128 * 1024;
constexpr int64_t kAlign = 256;

__host__ __device__ constexpr int64_t aligned(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// One pair's scratch: an edge a strip, then the weights a strip, step and lane.
__host__ __device__ constexpr int64_t edge_bytes(int64_t N, int64_t M) {
  return aligned(strips_of(M) * N * static_cast<int64_t>(sizeof(float)));
}

__host__ __device__ constexpr int64_t pair_bytes(int64_t N, int64_t M, int64_t weight_bytes) {
  return edge_bytes(N, M) + aligned(strips_of(M) * steps_of(N) * kStripColumns * weight_bytes);
}

struct Launch {
  SoftDtwSegment segments[kMaxSegments];
  int64_t first_byte[kMaxSegments];  // of a segment's scratch
  char* workspace;
  int64_t bandwidth;
  float scale;  // log2(e) / gamma
  int B;
};

__device__ int length_of(const int64_t* lengths, int b, int padded) {
  if (lengths == nullptr) return padded;
  const int64_t length = lengths[b];
  return length < 0 ? 0 : length > padded ? padded : static_cast<int>(length);
}

template <typename Weights>
__global__ void __launch_bounds__(kLanes * kMaxWarps, 2) soft_dtw_kernel(const Launch launch) {
  __shared__ int forward_progress[kMaxWarps];
  __shared__ int backward_progress[kMaxWarps];
  __shared__ double sums[kMaxWarps];

  const int warps = blockDim.x / kLanes;
  const int warp = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  float* const ring = dynamic_shared() + warp * kRingFloats;

  const int which = blockIdx.x / launch.B;
  const int b = blockIdx.x % launch.B;
  const SoftDtwSegment& segment = launch.segments[which];
  // In shared memory, since in registers all of it would live through both sweeps.
  __shared__ Pair pair;
  if (threadIdx.x == 0) {
    const int64_t matrix = static_cast<int64_t>(segment.N) * segment.M * b;
    pair.N = segment.N;
    pair.M = segment.M;
    pair.n = length_of(segment.x_lengths, b, pair.N);
    pair.m = length_of(segment.y_lengths, b, pair.M);
    pair.strips = static_cast<int>(strips_of(pair.m));
    pair.cost = segment.cost + matrix;
    pair.alignment = segment.alignment == nullptr ? nullptr : segment.alignment + matrix;
    char* const scratch = launch.workspace + launch.first_byte[which] +
                          pair_bytes(pair.N, pair.M, Weights::kBytes) * b;
    pair.edges = reinterpret_cast<float*>(scratch);
    pair.weights = scratch + edge_bytes(pair.N, pair.M);
    // A band as wide as the shorter sequence holds every cell.
    pair.band = launch.bandwidth < 0 || launch.bandwidth >= min(pair.n, pair.m)
                    ? -1
                    : launch.bandwidth * max(pair.n, pair.m);
    pair.has_path = pair.n > 0 && pair.m > 0 && (pair.band != 0 || pair.n == pair.m);
  }
  if (threadIdx.x < kMaxWarps) forward_progress[threadIdx.x] = backward_progress[threadIdx.x] = 0;
  __syncthreads();

  double sum = 0.0;
  if (pair.has_path) {
    for (int strip = warp; strip < pair.strips; strip += warps) {
      sum += forward_strip<Weights>(pair, strip, launch.scale, ring, forward_progress, warps);
    }
  }
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(kAll, sum, distance);
  }
  if (lane == 0) sums[warp] = sum;
  // After this, too, every cost of the pair has been read, so the alignment may lie on top of it.
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int w = 0; w < warps; ++w) total += sums[w];
    segment.value[b] = pair.has_path ? static_cast<float>(total / static_cast<double>(launch.scale))
                                : __int_as_float(0x7f800000);
  }

  if constexpr (Weights::kBytes > 0) {
    if (pair.alignment == nullptr) return;
    if (pair.has_path) {
      const int last = pair.strips - 1;
      for (int strip = last - (last - warp + warps) % warps; strip >= 0; strip -= warps) {
        backward_strip<Weights>(pair, strip, ring, backward_progress, warps);
      }
    }
    for (int strip = warp; strip < strips_of(pair.M); strip += warps) {
      if (pair.has_path && strip < pair.strips) {
        const StripRows rows(pair, strip);
        clear_rows(pair, strip, 0, rows.begin);
        clear_rows(pair, strip, rows.end, pair.N);
      } else {
        clear_rows(pair, strip, 0, pair.N);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------
// Host.

// Why these sizes cannot run, or nullptr.
const char* refuse(const SoftDtwSegment* segments, int count, int B) {
  if (count < 1 || count > kMaxSegments) return "soft_dtw: a launch takes one to three segments";
  if (B < 1 || B > INT_MAX / kMaxSegments) return "soft_dtw: the batch is empty or too large";
  for (int i = 0; i < count; ++i) {
    const int64_t N = segments[i].N, M = segments[i].M;
    if (N < 1 || M < 1) return "soft_dtw: a cost matrix has no rows or no columns";
    if (M > kMaxColumns) return "soft_dtw: more than 131072 columns";
    // Progress is one int that grows by N + 1 with each strip of a warp.
    if ((strips_of(M) / kMaxWarps + 2) * (N + kLanes) > INT_MAX) {
      return "soft_dtw: the cost matrix has too many cells";
    }
  }
  return nullptr;
}

bool is_weight_size(int bytes) {
  return bytes == kSoftDtwFixedWeights || bytes == kSoftDtwFloatWeights;
}

// Makes a device current, and the one before it again at the end. The statically linked runtime
// keeps a current device of its own, which is not the caller's.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess) status_ = cudaSetDevice(device);
    set_ = status_ == cudaSuccess;
  }
  ~CurrentDevice() {
    if (set_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  bool set_ = false;
  cudaError_t status_;
};

}  // namespace

int64_t soft_dtw_workspace_bytes(const SoftDtwSegment* segments, int count, int B,
                                 bool with_alignment, int weight_bytes) {
  if (refuse(segments, count, B) != nullptr) return -1;
  if (with_alignment && !is_weight_size(weight_bytes)) return -1;
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    bytes += pair_bytes(segments[i].N, segments[i].M, with_alignment ? weight_bytes : 0) * B;
  }
  return bytes;
}

const char* soft_dtw(int device, intptr_t stream, const SoftDtwSegment* segments, int count, int B,
                     float gamma, int64_t bandwidth, void* workspace, int64_t workspace_bytes,
                     int weight_bytes) {
  if (const char* reason = refuse(segments, count, B)) return reason;
  if (!(gamma > 0.f)) return "soft_dtw: gamma is not positive";
  if (bandwidth < -1) return "soft_dtw: bandwidth is neither -1 nor a width";
  bool with_alignment = false;
  for (int i = 0; i < count; ++i) with_alignment |= segments[i].alignment != nullptr;
  if (with_alignment && !is_weight_size(weight_bytes)) {
    return "soft_dtw: weight_bytes is neither 4 nor 8";
  }
  if (workspace_bytes <
      soft_dtw_workspace_bytes(segments, count, B, with_alignment, weight_bytes)) {
    return "soft_dtw: the workspace is too small";
  }

  Launch launch_arguments = {};
  int64_t bytes = 0, strips = 1;
  for (int i = 0; i < count; ++i) {
    launch_arguments.segments[i] = segments[i];
    launch_arguments.first_byte[i] = bytes;
    bytes += pair_bytes(segments[i].N, segments[i].M, with_alignment ? weight_bytes : 0) * B;
    if (strips_of(segments[i].M) > strips) strips = strips_of(segments[i].M);
  }
  launch_arguments.workspace = static_cast<char*>(workspace);
  launch_arguments.bandwidth = bandwidth;
  launch_arguments.scale = static_cast<float>(1.4426950408889634 / static_cast<double>(gamma));
  launch_arguments.B = B;

  const CurrentDevice current(device);
  if (current.status() != cudaSuccess) return cudaGetErrorString(current.status());
  const int warps = static_cast<int>(strips < kMaxWarps ? strips : kMaxWarps);
  const auto kernel = !with_alignment                         ? soft_dtw_kernel<NoWeights>
                      : weight_bytes == kSoftDtwFixedWeights ? soft_dtw_kernel<FixedWeights>
                                                             : soft_dtw_kernel<FloatWeights>;
  const cudaError_t status =
      launch(kernel, static_cast<unsigned>(count) * static_cast<unsigned>(B), kLanes * warps,
             warps * kRingFloats * sizeof(float), reinterpret_cast<cudaStream_t>(stream),
             launch_arguments);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

const char* why_not() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // the runtime would hand it to the next caller
    return cudaGetErrorString(status);
  }
  for (int device = 0; device < count; ++device) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        major >= 8) {
      return "";
    }
  }
  return count == 0 ? "no CUDA device" : "no CUDA device of compute capability 8.0 or newer";
}

}  // namespace speechft::cuda
