// Soft-DTW as a register wavefront: one thread block a pair, no block barrier a diagonal.
//
// THE RECURSION. R[i,j] = D[i,j] + softmin(R[i-1,j-1], R[i-1,j], R[i,j-1]) is never formed. In
// units of gamma / log2(e), d = D log2(e) / gamma, each cell takes two differences from its
// neighbours,
//     u = R[i-1,j] - R[i-1,j-1]     l = R[i,j-1] - R[i-1,j-1]
// and hands on two,
//     dh = R[i,j] - R[i,j-1] = d + (mn - l) - log2 s      mn = min(0, u, l)
//     dv = R[i,j] - R[i-1,j] = d + (mn - u) - log2 s      s  = 2^mn + 2^(mn-u) + 2^(mn-l)
// dh is u for the row below, dv is l for the column to the right. Nothing here grows with the
// length, so float32 keeps its digits where the recursion on R loses three to five of them.
//
// One of the three exponents of s is 0, and the part of s without l is known one row early:
//     a = min(0, u);  s = 2^(mn-a) (1 + 2^-|u|) + 2^(mn-l)
// where one of 2^(mn-a), 2^(mn-l) is 1 and the other 2^-|l-a|. That makes four special-function
// operations a cell (two exponentials, a logarithm, a reciprocal), two of them on the serial path.
//
// BOUNDARIES. A cell outside the rectangle or the band hands on dh = dv = kOutside, huge but
// finite. That is the whole treatment: as u or l it gives a weight of exactly 0, and where the
// diagonal predecessor itself is outside, the other difference comes out as about -kOutside,
// cancels exactly in mn - u (or mn - l) and leaves dv = d (or dh = d).
//
// THE BACKWARD. E[n,m] = 1 and each cell passes its E on to its three predecessors by its own
// weights p_up = 2^(mn-u)/s, p_left = 2^(mn-l)/s, p_diagonal = 1 - p_up - p_left: multiplications
// and additions of numbers in [0, 1], with nothing to overflow (Mensch & Blondel 2018).
//
// THE SCHEDULE. A warp owns a strip of 32 x 2 columns; at step t its lane l is at row t - l, so a
// difference moves to the next lane by one shuffle. The right edge of a strip goes to the warp of
// the next strip through memory, published every 8 rows. Warp w takes strips w, w + W, ...; all
// warps of a block are resident, and a strip waits only for an earlier one, so this cannot
// deadlock. The backward walks the same steps from last to first, hence reads the weights, which
// lie in step order, exactly as they were written. Cost rows come in, and alignment rows go out, by
// way of a ring of rows in shared memory, where the skewed accesses of the lanes meet no bank
// conflict and those to global memory are whole rows.
//
// WHY TWO COLUMNS A LANE (arithmetic for an H100, not timed). The serial path through a cell is
// about 55 cycles (add, exponential, multiply-add, logarithm, add), a shuffle 23, and a step of two
// columns issues about 85 instructions. For 500 columns that makes 8 warps of 135 cycles a step,
// two to a scheduler which needs about 170 for both: latency and issue nearly balance. Four columns
// leave one warp of 245 cycles to a scheduler; one column adds 32 rows of start-up for each of 8
// more warps. A block holds 80 KB of shared memory and at most 128 registers a thread: two fit on
// an A100 or H100.
#pragma once

#include <climits>
#include <cstdint>

#include "device.h"
#include "soft_dtw.h"

namespace speechft::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kColumns = 2;                        // a lane
constexpr int kStripColumns = kLanes * kColumns;   // a warp
constexpr int kMaxWarps = 8;                       // a block
constexpr int kChunk = 8;                          // steps between two publications of an edge
constexpr int kRing = 40;                          // rows: 31 of skew, 8 of a chunk, and the next 1
constexpr int kRingFloats = kRing * kStripColumns;
constexpr int kEdgeFetchStep = 4;                  // when, in a chunk, the next edge is asked for
constexpr unsigned kAll = 0xffffffffu;
constexpr float kOutside = 1e30f;

static_assert(kRing >= kLanes - 1 + kChunk && kRing % kChunk == 0, "rows of two chunks would meet");

__host__ __device__ constexpr int64_t strips_of(int64_t columns) {
  return (columns + kStripColumns - 1) / kStripColumns;
}

// Steps that a strip of `rows` rows takes, in whole chunks.
__host__ __device__ constexpr int64_t steps_of(int64_t rows) {
  return (rows + kLanes - 1 + kChunk - 1) / kChunk * kChunk;
}

// ------------------------------------------------------------------------------------------------
// Stored weights: what one lane stores at one step.

// Value only: nothing is kept.
struct NoWeights {
  static constexpr int kBytes = 0;
  struct Packet {};
};

struct FloatWeights {
  static constexpr int kBytes = kSoftDtwFloatWeights;
  struct alignas(16) Packet {
    float up[kColumns], left[kColumns];
  };
  static __device__ __forceinline__ void pack(Packet& packet, int c, float up, float left) {
    packet.up[c] = up;
    packet.left[c] = left;
  }
  static __device__ __forceinline__ void unpack(const Packet& packet, int c, float& up,
                                                float& left) {
    up = packet.up[c];
    left = packet.left[c];
  }
};

// Multiples of 2^-15 in 16 bits, 1 included. What a rounded weight does to E is in proportion to
// its absolute error, so fixed point is thirty times better here than a half, whose step near 1 is
// 2^-11. Adding 2^23 leaves the rounded integer in the low bits: no conversion instruction (those
// are slow).
struct FixedWeights {
  static constexpr int kBytes = kSoftDtwFixedWeights;
  struct alignas(8) Packet {
    unsigned bits[kColumns];
  };
  static __device__ __forceinline__ void pack(Packet& packet, int c, float up, float left) {
    packet.bits[c] = __byte_perm(__float_as_uint(fmaf(up, 32768.f, 8388608.f)),
                                 __float_as_uint(fmaf(left, 32768.f, 8388608.f)), 0x5410);
  }
  static __device__ __forceinline__ void unpack(const Packet& packet, int c, float& up,
                                                float& left) {
    constexpr unsigned kTwoTo23 = 0x4b000000u;
    up = fmaf(__uint_as_float(__byte_perm(packet.bits[c], kTwoTo23, 0x7610)), 0x1p-15f, -256.f);
    left = fmaf(__uint_as_float(__byte_perm(packet.bits[c], kTwoTo23, 0x7632)), 0x1p-15f, -256.f);
  }
};

// ------------------------------------------------------------------------------------------------
// Geometry. Rows and columns count from 0 here.

// The pair that this block works on.
struct Pair {
  const float* cost;
  float* alignment;
  float* edges;  // (strips, N)
  char* weights;
  int64_t band;  // bandwidth * max(n, m), or -1 where every cell takes part
  int n, m;      // its own lengths
  int N, M;      // the padded ones
  int strips;    // of its own columns
  bool has_path;

  // The rows of a column that take part.
  __device__ int first_row(int column) const {
    if (band < 0) return 0;
    const int64_t excess = static_cast<int64_t>(column + 1) * n - band;
    return excess <= m ? 0 : static_cast<int>((excess + m - 1) / m) - 1;
  }

  __device__ int end_row(int column) const {
    if (band < 0) return n;
    const int64_t last = (static_cast<int64_t>(column + 1) * n + band) / m;
    return last < n ? static_cast<int>(last) : n;
  }

  // A path from (0, 0) to (n-1, m-1) close to the diagonal, inside every band that admits one: it
  // enters `column` at this row, diagonally if the previous column was entered at another row, else
  // from the left, and leaves it in the row before it enters the next.
  __device__ int path_row(int column) const {
    return static_cast<int>(static_cast<int64_t>(column) * n / m);
  }
};

// The rows [begin, end) of a strip where any cell takes part. Above a band one more row belongs to
// it: a cell there is the diagonal predecessor, in the strip to the left, of the topmost one.
struct StripRows {
  int begin, end;

  __device__ StripRows(const Pair& pair, int strip) {
    const int first = strip * kStripColumns;
    const int last = min(first + kStripColumns, pair.m) - 1;
    begin = max(pair.first_row(first) - 1, 0);
    end = pair.end_row(last);
  }

  __device__ int steps() const { return static_cast<int>(steps_of(end - begin)); }
};

// The rows of a lane's columns that take part, as offsets from the strip's first row.
struct LaneColumns {
  int begin[kColumns];
  unsigned count[kColumns];

  __device__ LaneColumns(const Pair& pair, const StripRows& rows, int column) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool exists = column + c < pair.m;
      const int first = exists ? pair.first_row(column + c) : 0;
      const int end = exists ? pair.end_row(column + c) : 0;
      begin[c] = first - rows.begin;
      count[c] = end > first ? end - first : 0;
    }
  }

  __device__ __forceinline__ bool contains(int c, int offset) const {
    return static_cast<unsigned>(offset - begin[c]) < count[c];
  }
};

__device__ __forceinline__ int ring_slot(int offset) {
  return offset >= kRing ? offset - kRing : offset;
}

__device__ __forceinline__ void wait_until(const int* progress, int target) {
  while (load_acquire(progress) < target) back_off();
  __syncwarp(kAll);
}

// ------------------------------------------------------------------------------------------------
// Forward: one strip. Returns this lane's part of the value, in units of gamma / log2(e).

template <typename Weights>
__device__ double forward_strip(const Pair& pair, int strip, float scale, float* ring,
                                int* progress, int warps) {
  const int lane = threadIdx.x % kLanes;
  const StripRows rows(pair, strip);
  const int first_column = strip * kStripColumns;
  const int column = first_column + lane * kColumns;
  const LaneColumns mine(pair, rows, column);
  const int steps = rows.steps();

  const bool has_left = strip > 0, has_right = strip + 1 < pair.strips;
  const int left_end = has_left ? StripRows(pair, strip - 1).end : 0;
  const int* left_progress = progress + (strip + warps - 1) % warps;
  const int left_round = has_left ? (strip - 1) / warps * (pair.N + 1) : 0;
  int* const my_progress = progress + strip % warps;
  const int my_round = strip / warps * (pair.N + 1);
  float* const my_edge = in_global(pair.edges) + static_cast<int64_t>(strip) * pair.N;
  const float* const left_edge = my_edge - pair.N;

  // Where the path that the value is summed along enters this lane's columns, and the next one.
  int path[kColumns + 1];
#pragma unroll
  for (int c = 0; c <= kColumns; ++c) {
    path[c] = pair.path_row(min(column + c, pair.m)) - rows.begin;
  }
  const bool enters_diagonally =
      column == 0 || column >= pair.m || pair.path_row(column - 1) != path[0] + rows.begin;

  const int m = pair.m, M = pair.M;
  const float* const my_cost = pair.cost + first_column + lane;
  const auto fetch_rows = [&](int offset) {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const int row = rows.begin + offset + k;
      // Each chunk of rows lies in one piece: the ring holds a whole number of chunks.
      float* const slot = ring + (offset % kRing + k) * kStripColumns + lane;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (row < rows.end && first_column + lane + c * kLanes < m) {
          copy_async(slot + c * kLanes, my_cost + static_cast<int64_t>(row) * M + c * kLanes);
        }
      }
    }
    close_copy_group();
  };
  // Lane k of the first kChunk takes the left strip's edge at row `offset + k`.
  const auto fetch_edge = [&](int offset) {
    float edge = kOutside;
    if (has_left) {
      const int begin = rows.begin + offset;
      wait_until(left_progress, left_round + min(begin + kChunk, left_end));
      if (lane < kChunk && begin + lane < left_end) edge = left_edge[begin + lane];
    }
    return edge;
  };

  constexpr int kPacketBytes = kColumns * Weights::kBytes;
  char* packets = in_global(pair.weights) +
                  (static_cast<int64_t>(strip) * steps_of(pair.N) * kLanes + lane) * kPacketBytes;
  float u[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) u[c] = kOutside;
  float right = kOutside;
  double sum = 0.0;
  int slot = (kRing - lane) % kRing;

  __syncwarp(kAll);  // the ring's last user is done with it
  fetch_rows(0);
  float edge = fetch_edge(0);

  for (int t0 = 0; t0 < steps; t0 += kChunk) {
    wait_for_copies();
    __syncwarp(kAll);
    float cost[kChunk][kColumns];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float2 two =
          *reinterpret_cast<const float2*>(ring + ring_slot(slot + k) * kStripColumns + lane * 2);
      cost[k][0] = two.x;
      cost[k][1] = two.y;
    }
    __syncwarp(kAll);
    fetch_rows(t0 + kChunk);
    slot = ring_slot(slot + kChunk);

    float next_edge = kOutside;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      if (k == kEdgeFetchStep) next_edge = fetch_edge(t0 + kChunk);
      const int offset = t0 + k - lane;
      float l = __shfl_up_sync(kAll, right, 1);
      const float from_left = __shfl_sync(kAll, edge, k);
      if (lane == 0) l = from_left;

      typename Weights::Packet packet;
      float diagonal[kColumns], horizontal[kColumns], vertical[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float a = fminf(0.f, u[c]);
        const float other = fast_exp2(-fabsf(u[c]));
        const float y = l - a;
        const float e = fast_exp2(-fabsf(y));
        const bool left_is_least = y < 0.f;
        const float scale_a = left_is_least ? e : 1.f;  // 2^(mn - a)
        const float scale_l = left_is_least ? 1.f : e;  // 2^(mn - l)
        const float s = fmaf(scale_a, 1.f + other, scale_l);
        const float log_s = fast_log2(s);
        const float mn = fminf(a, l);
        const bool inside = mine.contains(c, offset);
        // Selected before the logarithm comes, to keep the select off the serial path.
        const float h = inside ? fmaf(cost[k][c], scale, mn - l) : kOutside;
        const float v = inside ? fmaf(cost[k][c], scale, mn - u[c]) : kOutside;
        if constexpr (Weights::kBytes > 0) {
          const float inverse = fast_reciprocal(s);
          const float up = u[c] < 0.f ? 1.f : other;  // 2^(a - u)
          Weights::pack(packet, c, scale_a * up * inverse, scale_l * inverse);
        }
        horizontal[c] = h - log_s;
        vertical[c] = v - log_s;
        diagonal[c] = fmaf(cost[k][c], scale, mn) - log_s;
        u[c] = horizontal[c];
        l = vertical[c];
      }
      right = l;
      if constexpr (Weights::kBytes > 0) {
        *reinterpret_cast<typename Weights::Packet*>(packets) = packet;
        packets += kLanes * kPacketBytes;
      }
      if (has_right && lane == kLanes - 1 && offset >= 0 && offset < rows.end - rows.begin) {
        my_edge[rows.begin + offset] = right;
      }
      // Few lanes at few steps: cheaper as a branch than as selects in every cell.
      if (offset >= path[0] && offset <= max(path[kColumns - 1], path[kColumns])) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const bool enters = offset == path[c];
          const bool by_diagonal = c == 0 ? enters_diagonally : path[c] != path[c > 0 ? c - 1 : 0];
          const bool descends = offset > path[c] && offset < path[c + 1];
          if (column + c < m && (enters || descends)) {
            sum += descends ? vertical[c] : by_diagonal ? diagonal[c] : horizontal[c];
          }
        }
      }
    }
    edge = next_edge;
    const int done = min(t0 + kChunk - (kLanes - 1), rows.end - rows.begin);
    if (has_right && lane == kLanes - 1 && done > 0) {
      store_release(my_progress, my_round + rows.begin + done);
    }
  }
  wait_for_copies();
  return sum;
}

// ------------------------------------------------------------------------------------------------
// Backward: one strip. The message from a cell to its left neighbour (i, j) is all that (i, j) gets
// from column j+1: p_left E of (i, j+1), plus p_diagonal E of (i+1, j+1).

template <typename Weights>
__device__ void backward_strip(const Pair& pair, int strip, float* ring, int* progress, int warps) {
  const int lane = threadIdx.x % kLanes;
  const StripRows rows(pair, strip);
  const int first_column = strip * kStripColumns;
  const int column = first_column + lane * kColumns;
  const LaneColumns mine(pair, rows, column);
  const int steps = rows.steps();

  const bool has_left = strip > 0, has_right = strip + 1 < pair.strips;
  const int right_begin = has_right ? StripRows(pair, strip + 1).begin : 0;
  const int right_end = has_right ? StripRows(pair, strip + 1).end : 0;
  const int* const right_progress = progress + (strip + 1) % warps;
  const int right_round = (pair.strips - 2 - strip) / warps * (pair.N + 1);
  int* const my_progress = progress + strip % warps;
  const int my_round = (pair.strips - 1 - strip) / warps * (pair.N + 1);
  float* const my_edge = in_global(pair.edges) + static_cast<int64_t>(strip) * pair.N;
  const float* const right_edge = my_edge + pair.N;

  // Lane k of the first kChunk takes the message for the last lane's row at step `t0 + k`.
  const auto fetch_edge = [&](int t0) {
    float edge = 0.f;
    if (has_right) {
      const int begin = rows.begin + t0 - (kLanes - 1);
      if (begin + kChunk > right_begin) {  // else nothing comes from there any more
        wait_until(right_progress, right_round + pair.N - max(begin, right_begin));
      }
      const int row = begin + lane;
      if (lane < kChunk && row >= right_begin && row < right_end) edge = right_edge[row];
    }
    return edge;
  };

  constexpr int kPacketBytes = kColumns * Weights::kBytes;
  const char* const packets =
      in_global(pair.weights) +
      (static_cast<int64_t>(strip) * steps_of(pair.N) * kLanes + lane) * kPacketBytes;
  const auto packet_at = [&](int t) {
    return *reinterpret_cast<const typename Weights::Packet*>(
        packets + static_cast<int64_t>(t) * (kLanes * kPacketBytes));
  };

  typename Weights::Packet ahead[kChunk];
#pragma unroll
  for (int k = 0; k < kChunk; ++k) ahead[k] = packet_at(steps - kChunk + k);

  // The cell where E starts from 1, if it is in one of this lane's columns.
  const int end_column = pair.m - 1 - column;
  const int end_offset =
      end_column >= 0 && end_column < kColumns ? pair.n - 1 - rows.begin : INT_MIN;
  float from_below[kColumns], from_corner[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) from_below[c] = from_corner[c] = 0.f;
  float message = 0.f;
  const int M = pair.M;
  float* const my_alignment = in_global(pair.alignment) + first_column + lane;
  int slot = (steps - kChunk - lane + kRing) % kRing;

  __syncwarp(kAll);  // the ring's last user is done with it
  float edge = fetch_edge(steps - kChunk);

  for (int t0 = steps - kChunk; t0 >= 0; t0 -= kChunk) {
    float next_edge = 0.f;
#pragma unroll
    for (int k = kChunk - 1; k >= 0; --k) {
      if (k == kChunk - 1 - kEdgeFetchStep && t0 > 0) next_edge = fetch_edge(t0 - kChunk);
      const int offset = t0 + k - lane;
      const typename Weights::Packet packet = ahead[k];
      if (t0 > 0) ahead[k] = packet_at(t0 + k - kChunk);

      float incoming = __shfl_down_sync(kAll, message, 1);
      const float from_right = __shfl_sync(kAll, edge, k);
      if (lane == kLanes - 1) incoming = from_right;

      const float start = offset == end_offset ? 1.f : 0.f;
      float alignment[kColumns];
#pragma unroll
      for (int c = kColumns - 1; c >= 0; --c) {
        float up, left;
        Weights::unpack(packet, c, up, left);
        // Rounded weights may add up to a little more than 1: E would gain mass or turn negative.
        const float rest = __saturatef(1.f - left);
        up = fminf(up, rest);
        const float here = from_below[c] + incoming + (c == end_column ? start : 0.f);
        const float E = mine.contains(c, offset) ? here : 0.f;
        incoming = fmaf(left, E, from_corner[c]);
        from_corner[c] = (rest - up) * E;
        from_below[c] = up * E;
        alignment[c] = E;
      }
      message = incoming;
      *reinterpret_cast<float2*>(ring + ring_slot(slot + k) * kStripColumns + lane * 2) =
          make_float2(alignment[0], alignment[1]);
      if (has_left && lane == 0 && offset < rows.end - rows.begin) {
        my_edge[rows.begin + offset] = message;
      }
    }
    edge = next_edge;
    if (has_left && lane == 0) {
      store_release(my_progress,
                    my_round + pair.N - min(rows.begin + t0, rows.end));
    }
    slot = slot >= kChunk ? slot - kChunk : slot + kRing - kChunk;

    // Lane 0 has left the rows of this chunk, so they are complete.
    __syncwarp(kAll);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const int row = rows.begin + t0 + k;
      const float* const done = ring + (t0 % kRing + k) * kStripColumns + lane;
      float* const out = my_alignment + static_cast<int64_t>(row) * M;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (row < rows.end && first_column + lane + c * kLanes < M) {
          out[c * kLanes] = done[c * kLanes];
        }
      }
    }
    __syncwarp(kAll);
  }
}

// The rows [begin, end) of a strip of the padded matrix.
__device__ void clear_rows(const Pair& pair, int strip, int begin, int end) {
  const int first = strip * kStripColumns + static_cast<int>(threadIdx.x) % kLanes;
  const int M = pair.M;
  float* out = in_global(pair.alignment) + static_cast<int64_t>(begin) * M + first;
  for (int row = begin; row < end; ++row, out += M) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (first + c * kLanes < M) out[c * kLanes] = 0.f;
    }
  }
}

}  // namespace
}  // namespace speechft::cuda
