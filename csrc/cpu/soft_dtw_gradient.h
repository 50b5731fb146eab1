// The gradient of sum_ij E_ij |x_i - y_j|^2 for an alignment E that is mostly zero, of one pair:
//
//   dx_i += 2 w sum_j E_ij (x_i - y_j)        dy_j -= 2 w sum_i E_ij (x_i - y_j)
//
// over the cells of the spans. Differences first: where x_i and y_j are alike, nothing cancels.
// Where both go to one gradient, x is y, E is symmetric, and dx_i is twice its own half.
#pragma once

#include "cpu/lanes.h"
#include "cpu/soft_dtw.h"

namespace {

using speechft::cpu::SoftDtwBatch;

struct GradientOfPair {
  const SoftDtwBatch& batch;
  int64_t pair;
  float factor;

  // Features [d, d + V W), or with V = 0 the one feature d.
  template <int V, bool TO_X, bool TO_Y>
  void features(int64_t d) const {
    const int64_t D = batch.features;
    const float* x = batch.x + pair * batch.rows * D + d;
    const float* y = batch.y + pair * batch.columns * D + d;
    float* dx = TO_X ? batch.x_gradient + pair * batch.rows * D + d : nullptr;
    float* dy = TO_Y ? batch.y_gradient + pair * batch.columns * D + d : nullptr;
    for (int64_t i = 0; i < batch.x_lengths[pair]; ++i, x += D) {
      const int32_t* span = batch.spans + (pair * batch.rows + i) * 2;
      const float* alignment = batch.cost + (pair * batch.rows + i) * batch.columns;
      if constexpr (V == 0) {
        float sum = 0.0f;
        for (int64_t j = span[0]; j < span[1]; ++j) {
          const float pull = factor * alignment[j] * (x[0] - y[j * D]);
          if constexpr (TO_X) sum += pull;
          if constexpr (TO_Y) dy[j * D] -= pull;
        }
        if constexpr (TO_X) dx[i * D] += sum;
      } else {
        F here[V], sum[V];
        for (int v = 0; v < V; ++v) here[v] = load(x + v * W), sum[v] = splat(0.0f);
        for (int64_t j = span[0]; j < span[1]; ++j) {
          const float e = alignment[j];
          if (e == 0.0f) continue;
          const F weight = splat(factor * e);
          const float* there = y + j * D;
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const F pull = weight * (here[v] - load(there + v * W));
            if constexpr (TO_X) sum[v] += pull;
            if constexpr (TO_Y) store(dy + j * D + v * W, load(dy + j * D + v * W) - pull);
          }
        }
        if constexpr (TO_X)
          for (int v = 0; v < V; ++v)
            store(dx + i * D + v * W, load(dx + i * D + v * W) + sum[v]);
      }
    }
  }

  template <bool TO_X, bool TO_Y>
  void run() const {
    int64_t d = 0;
    for (; d + 6 * W <= batch.features; d += 6 * W) features<6, TO_X, TO_Y>(d);
    for (; d + W <= batch.features; d += W) features<1, TO_X, TO_Y>(d);
    for (; d < batch.features; ++d) features<0, TO_X, TO_Y>(d);
  }
};

inline void gather_gradient(const SoftDtwBatch& batch, int64_t pair) {
  // By the gradient: the same frames may come in as two sides with a gradient each.
  const bool symmetric = batch.x_gradient == batch.y_gradient;
  const GradientOfPair gradient{batch, pair, 2.0f * batch.weight * (symmetric ? 2.0f : 1.0f)};
  const bool to_x = batch.x_gradient, to_y = batch.y_gradient && !symmetric;
  if (to_x && to_y) return gradient.run<true, true>();
  if (to_x) return gradient.run<true, false>();
  if (to_y) return gradient.run<false, true>();
}

}  // namespace
