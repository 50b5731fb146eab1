// The soft-DTW dynamic programme for a group of up to W pairs, one pair a vector lane.
//
//   R[i,j] = D[i,j] + softmin(R[i-1,j-1], R[i-1,j], R[i,j-1])
//
// is computed on differences of R, in units of gamma / log2(e):
//
//   u = R[i-1,j] - R[i-1,j-1]      the horizontal difference of the row above
//   l = R[i,j-1] - R[i-1,j-1]      the vertical difference of the column to the left
//   t = D + min(0,u,l) - log2(2^(min) + 2^(min-u) + 2^(min-l)) = R[i,j] - R[i-1,j-1]
//   horizontal difference t - l,   vertical difference t - u
//
// Differences do not grow with the length, R does: float32 differences keep the digits of the
// weights that float32 R loses from T = 500 on. The weights towards `up` and `left` are stored,
// and the backward is a multiply-add recursion on them (Mensch & Blondel 2018, algorithm 1):
// nothing is recomputed, nothing can overflow.
//
// In the rectangle a strip of ROWS rows advances together, each row one column behind the one
// above, so that ROWS independent chains hide the latency of the exponentials.
//
// Included by one source file per instruction set; see lanes.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/soft_dtw_gradient.h"
#include "cpu/soft_dtw_group.h"

namespace {

using speechft::cpu::SoftDtwBatch;
using speechft::cpu::SoftDtwGroup;

constexpr int ROWS = SPEECHFT_ROWS;

struct Weights {
  F up, left;
};

// One cell. Returns D - log2(sum) so that the caller forms both differences without cancellation;
// `lowest` is min(0, u, l).
inline F cell(F d, F u, F l, F& lowest, Weights& weights) {
  const F zero = splat(0.0f), one = splat(1.0f);
  lowest = minimum(minimum(u, l), zero);
  // The smallest of (0, u, l) has the weight 1 before normalising: two exponentials serve three.
  const auto up_is_lowest = (u <= l) & (u < zero);
  const auto left_is_lowest = (l < u) & (l < zero);
  const F a = exp2_negative(lowest - (up_is_lowest ? zero : u));
  const F b = exp2_negative(lowest - (left_is_lowest ? zero : l));
  const F w = a + b;
  const F s = one + w, s1 = s + one;
  const F r = one / (s * s1);
  const F inverse = r * s1, z = w * (r * s);
  weights.up = (up_is_lowest ? one : a) * inverse;
  weights.left = (left_is_lowest ? one : b) * inverse;
  return d - z * log2_series(z * z);
}

// Everything of one group of lanes. Lanes beyond `count` repeat pair 0 and are never written out.
struct Group {
  const SoftDtwBatch& batch;
  const SoftDtwGroup& group;
  int64_t columns;           // of the workspace rows: the longest of this group
  int64_t rows;
  float* cost;               // ROWS x columns x W: the strip's costs, then a row of the alignment
  float* horizontal;         // columns x W: differences along the last row of the strip above
  float* last_rows;          // ROWS x columns x W: horizontal differences of strips that end a pair
  float* weights;            // rows x columns x 2 x W
  float* sums;               // columns x W: column sums of the alignment
  double value[W];           // R[n,m] in base-2 units
  int64_t area[W];           // cells inside the lane's spans

  int64_t n(int lane) const { return group.x_lengths[lane]; }
  int64_t m(int lane) const { return group.y_lengths[lane]; }

  float* cost_row(int64_t pair, int64_t i) const {
    return batch.cost + (pair * batch.rows + i) * batch.columns;
  }

  // Costs of row i (from 0) for all lanes, interleaved, in base-2 units of gamma; 0 in padding.
  void load_row(int64_t i, float* out) const {
    const float scale = static_cast<float>(LOG2E / batch.gamma);
    for (int64_t j = 0; j < columns; j += W) {
      F block[W];
      for (int lane = 0; lane < W; ++lane) {
        block[lane] = splat(0.0f);
        const int64_t left = i < n(lane) ? m(lane) - j : 0;
        if (left <= 0) continue;
        const int64_t pair = group.pairs[lane];
        const float* row = cost_row(pair, i) + j;
        const float* y = batch.y_norms ? batch.y_norms + pair * batch.columns + j : nullptr;
        const float x = batch.x_norms ? batch.x_norms[pair * batch.rows + i] : 0.0f;
        if (left >= W) {
          block[lane] = y ? (x + load(y) - 2.0f * load(row)) * scale : load(row) * scale;
        } else {
          alignas(sizeof(F)) float tail[W] = {};
          for (int64_t k = 0; k < left; ++k)
            tail[k] = (y ? x + y[k] - 2.0f * row[k] : row[k]) * scale;
          block[lane] = load(tail);
        }
      }
      transpose(block);
      const int64_t here = std::min<int64_t>(W, columns - j);
      for (int64_t k = 0; k < here; ++k) store(out + (j + k) * W, block[k]);
    }
  }

  template <bool STORE>
  void put(int64_t i, int64_t j, Weights w) {
    if constexpr (STORE) {
      float* p = weights + (i * columns + j) * 2 * W;
      store(p, w.up);
      store(p + W, w.left);
    }
  }

  void finish_lane(int lane, const float* row_differences) {
    for (int64_t j = 1; j < m(lane); ++j) value[lane] += row_differences[j * W + lane];
  }

  // Row 0: only `left` leads to a cell, so the horizontal difference is the cost itself.
  template <bool STORE>
  void first_row() {
    load_row(0, cost);
    for (int64_t j = 0; j < columns; ++j) {
      store(horizontal + j * W, load(cost + j * W));
      put<STORE>(0, j, {splat(0.0f), splat(j ? 1.0f : 0.0f)});
    }
    for (int lane = 0; lane < W; ++lane) {
      value[lane] = cost[lane];
      if (n(lane) == 1) finish_lane(lane, horizontal);
    }
  }

  // COUNT rows from row i on, each one column behind the row above it.
  template <bool STORE, int COUNT>
  void strip(int64_t i) {
    bool ends = false;
    for (int k = 0; k < COUNT; ++k) {
      load_row(i + k, cost + k * columns * W);
      for (int lane = 0; lane < W; ++lane) ends |= n(lane) == i + k + 1;
    }
    F vertical[COUNT], across[COUNT];  // of the row's newest cell
    for (int k = 0; k < COUNT; ++k) {  // column 0: only `up` leads there
      vertical[k] = load(cost + k * columns * W);
      across[k] = splat(0.0f);
      put<STORE>(i + k, 0, {splat(1.0f), splat(0.0f)});
      for (int lane = 0; lane < W; ++lane)
        if (i + k < n(lane)) value[lane] += cost[k * columns * W + lane];
    }
    const auto advance = [&](int64_t step, auto checks_range, auto keeps_rows) {
#pragma GCC unroll 8
      for (int k = COUNT - 1; k >= 0; --k) {
        const int64_t j = step - k;
        if constexpr (decltype(checks_range)::value)
          if (j < 1 || j >= columns) continue;
        const F u = k == 0 ? load(horizontal + j * W) : across[k > 0 ? k - 1 : 0];
        Weights w;
        F lowest;
        const F rest = cell(load(cost + (k * columns + j) * W), u, vertical[k], lowest, w);
        across[k] = rest + (lowest - vertical[k]);
        vertical[k] = rest + (lowest - u);
        put<STORE>(i + k, j, w);
        if (k == COUNT - 1) store(horizontal + j * W, across[k]);
        if constexpr (decltype(keeps_rows)::value)
          store(last_rows + (k * columns + j) * W, across[k]);
      }
    };
    const auto sweep = [&](auto keeps_rows) {
      int64_t step = 1;
      for (; step < COUNT; ++step) advance(step, std::true_type{}, keeps_rows);
      for (; step < columns; ++step) advance(step, std::false_type{}, keeps_rows);
      for (; step < columns + COUNT - 1; ++step) advance(step, std::true_type{}, keeps_rows);
    };
    if (!ends) return sweep(std::false_type{});
    sweep(std::true_type{});
    for (int k = 0; k < COUNT; ++k)
      for (int lane = 0; lane < W; ++lane)
        if (n(lane) == i + k + 1) finish_lane(lane, last_rows + k * columns * W);
  }

  template <bool STORE>
  void forward() {
    first_row<STORE>();
    int64_t i = 1;
    for (; i + ROWS <= rows; i += ROWS) strip<STORE, ROWS>(i);
    for (; i < rows; ++i) strip<STORE, 1>(i);
  }

#include "cpu/soft_dtw_band.inc"

#include "cpu/soft_dtw_backward.inc"
};

}  // namespace

#define SPEECHFT_CONCAT_(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_CONCAT_(a, b)

namespace speechft::cpu {

int64_t SPEECHFT_CONCAT(soft_dtw_workspace_, SPEECHFT_SET)(int64_t rows, int64_t columns,
                                                           bool want_alignment) {
  return W * columns * (2 * ROWS + 2 + (want_alignment ? 2 * rows : 0));
}

void SPEECHFT_CONCAT(soft_dtw_group_, SPEECHFT_SET)(const SoftDtwBatch& batch,
                                                    const SoftDtwGroup& group, float* workspace) {
  Group g{batch, group, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr, {}, {}};
  for (int lane = 0; lane < W; ++lane) {
    g.rows = std::max(g.rows, g.n(lane));
    g.columns = std::max(g.columns, g.m(lane));
  }
  const int64_t row = g.columns * W;
  g.cost = workspace;
  g.last_rows = g.cost + ROWS * row;
  g.horizontal = g.last_rows + ROWS * row;
  g.sums = g.horizontal + row;
  g.weights = g.sums + row;
  if (batch.bandwidth >= 0)
    batch.want_alignment ? g.banded_forward<true>() : g.banded_forward<false>();
  else
    batch.want_alignment ? g.forward<true>() : g.forward<false>();
  for (int lane = 0; lane < group.count; ++lane)
    batch.value[group.pairs[lane]] =
        g.value[lane] * (static_cast<double>(batch.gamma) / LOG2E);
  if (batch.want_alignment) g.backward();
}

void SPEECHFT_CONCAT(soft_dtw_gradient_, SPEECHFT_SET)(const SoftDtwBatch& batch, int64_t pair) {
  gather_gradient(batch, pair);
}

}  // namespace speechft::cpu
