// Rows of logits, a chunk at a time; included by one source file per instruction set, see lanes.h.
//
// The sums of a row are made in one sweep, a chunk at a time, of exponentials relative to the largest
// logit before the chunk; a chunk with one that is much larger is swept again. Each chunk's sums are
// corrected by a factor in the end. The row's softmax and gradients take a
// second sweep, while the row is in the last cache: to make an exponential again costs less than to
// store and load it.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/lanes.h"
#include "cpu/softmax_rows.h"

namespace {

using speechft::cpu::CHUNK;
using speechft::cpu::ChunkSums;
using speechft::cpu::RowSums;

// Beyond the end of a row: its exponential is 0, and the difference to a maximum is finite.
constexpr float BEYOND = -1e38f;

inline F logit(const float* x, const float* bias, int64_t j, int64_t count) {
  const F v = load_some(x + j, count, BEYOND);
  return bias ? v + load_some(bias + j, count, 0.0f) : v;
}

// Runs sweep(reference), which gives the largest logit of a chunk, with one that is near enough to
// it: the largest logit so far is, as a rule, and else the sweep is repeated. Powers of two are
// then of less than COMFORT, and sums of less than 2^70.
constexpr float COMFORT = 60.0f;

template <class Sweep>
inline void sweep_chunk(float& most, float scale, float& reference, const Sweep& sweep) {
  reference = most == NONE ? sweep(0.0f) : most;
  const float top = sweep(reference);
  if ((top - reference) * scale * static_cast<float>(LOG2E) > COMFORT) {
    reference = top;
    sweep(reference);
  }
  most = std::max(most, top);
}

// The softmax of a logit, from the sums of its row, which lie in registers: read from memory, they
// would be read again after each store. A factor, because a log-sum-exp in the exponent would be
// rounded the same way for the whole row.
struct Exponential {
  F maximum, scale, share;
  Exponential(const RowSums& row, float factor)
      : maximum(splat(row.maximum)),
        scale(splat(static_cast<float>(factor * LOG2E))),
        share(splat(static_cast<float>(std::exp(-row.log_sum)))) {}
  F operator()(F x) const { return exp2_negative((x - maximum) * scale) * share; }
};

template <bool BIAS, bool MORE>  // more: the dot product, and the row added to `sum`
RowSums sums_of(const float* x, const float* bias, int64_t codes, float scale, float* sum,
                ChunkSums* chunks) {
  const F a = splat(static_cast<float>(scale * LOG2E)), zero = splat(0.0f);
  float most = NONE;
  for (int64_t c = 0; c * CHUNK < codes; ++c) {
    const int64_t start = c * CHUNK, n = std::min(codes - start, CHUNK);
    const float *from = x + start, *of = BIAS ? bias + start : nullptr;
    float reference;
    sweep_chunk(most, scale, reference, [&](float base) {
      const F r = splat(base);
      F all[2] = {zero, zero}, dot[2] = {zero, zero}, top[2] = {splat(NONE), splat(NONE)};
      const auto add = [&](int64_t j, int64_t left, int k) {
        const F y = logit(from, of, j, left);
        const F d = y - r, e = exp2_negative(d * a);
        top[k] = maximum(top[k], y);
        all[k] += e;
        if constexpr (MORE) dot[k] += e * d;
      };
      int64_t j = 0;
      for (; j + 2 * W <= n; j += 2 * W) add(j, W, 0), add(j + W, W, 1);
      for (; j < n; j += W) add(j, n - j, 0);
      chunks[c] = {total(all[0] + all[1]), total(dot[0] + dot[1]), base};
      return highest(maximum(top[0], top[1]));
    });
    if constexpr (MORE)
      for (int64_t j = start; j < start + n; j += W) {
        const int64_t left = codes - j;
        store_some(sum + j, load_some(sum + j, left, 0.0f) + load_some(x + j, left, 0.0f), left);
      }
  }
  double all = 0, dot = 0;
  for (int64_t c = 0; c * CHUNK < codes; ++c) {
    const double less = static_cast<double>(chunks[c].reference) - most, factor = std::exp(scale * less);
    all += factor * chunks[c].sum;
    dot += factor * (chunks[c].dot + chunks[c].sum * less);
  }
  return {most, std::log(all), scale * dot / all, 1.0};
}

template <int NUMBER>
inline F sum_of_targets(const float* const* targets, int64_t number, int64_t j, int64_t left) {
  F t = load_some(targets[0] + j, left, 0.0f);
  if constexpr (NUMBER == 2) t += load_some(targets[1] + j, left, 0.0f);
  if constexpr (NUMBER == 0)
    for (int64_t k = 1; k < number; ++k) t += load_some(targets[k] + j, left, 0.0f);
  return t;
}

template <int NUMBER>
RowSums student_sums_of(const float* x, const float* const* targets, int64_t number, int64_t codes,
                        float scale, ChunkSums* chunks) {
  const F a = splat(static_cast<float>(scale * LOG2E)), zero = splat(0.0f);
  float most = NONE;
  double of_targets = 0, dot = 0;  // dot: of targets and x
  for (int64_t c = 0; c * CHUNK < codes; ++c) {
    const int64_t start = c * CHUNK, n = std::min(codes - start, CHUNK);
    float reference;
    double mass_of_it = 0, dot_of_it = 0;
    sweep_chunk(most, scale, reference, [&](float base) {
      const F r = splat(base);
      F sum[2] = {zero, zero}, product[2] = {zero, zero}, mass[2] = {zero, zero};
      F top[2] = {splat(NONE), splat(NONE)};
      const auto add = [&](int64_t j, int64_t left, int k) {
        const F y = load_some(x + start + j, left, BEYOND), d = y - r;
        const F t = sum_of_targets<NUMBER>(targets, number, start + j, left);
        top[k] = maximum(top[k], y);
        sum[k] += exp2_negative(d * a);
        product[k] += t * d;
        mass[k] += t;
      };
      int64_t j = 0;
      for (; j + 2 * W <= n; j += 2 * W) add(j, W, 0), add(j + W, W, 1);
      for (; j < n; j += W) add(j, n - j, 0);
      chunks[c] = {total(sum[0] + sum[1]), 0, base};
      mass_of_it = total(mass[0] + mass[1]);
      dot_of_it = total(product[0] + product[1]);
      return highest(maximum(top[0], top[1]));
    });
    of_targets += mass_of_it;
    dot += dot_of_it + mass_of_it * reference;
  }
  double all = 0;
  for (int64_t c = 0; c * CHUNK < codes; ++c)
    all += std::exp(scale * (chunks[c].reference - static_cast<double>(most))) * chunks[c].sum;
  return {most, std::log(all), scale * (dot - of_targets * most), of_targets};
}

template <int NUMBER>
void student_gradient_of(const float* x, const float* const* targets, int64_t number,
                         int64_t codes, float scale, const RowSums& row, float weight,
                         float* result) {
  const Exponential softmax(row, scale);
  const F n = splat(static_cast<float>(number)), w = splat(weight);
  const auto one = [&](int64_t j, int64_t left) {
    const F e = softmax(load_some(x + j, left, BEYOND));
    const F t = sum_of_targets<NUMBER>(targets, number, j, left);
    store_some(result + j, (e * n - t) * w, left);
  };
  int64_t j = 0;
  for (; j + 2 * W <= codes; j += 2 * W) one(j, W), one(j + W, W);
  for (; j < codes; j += W) one(j, codes - j);
}

template <int NUMBER>
void add_softmax_of(const float* const* rows, const RowSums* of, const float* bias, int64_t codes,
                    float scale, float* sum) {
  static_assert(NUMBER == 1 || NUMBER == 4);
  const Exponential first(of[0], scale), second(of[NUMBER > 1 ? 1 : 0], scale);
  const Exponential third(of[NUMBER > 1 ? 2 : 0], scale), fourth(of[NUMBER > 1 ? 3 : 0], scale);
  const float *x = rows[0], *y = rows[NUMBER > 1 ? 1 : 0];
  const float *z = rows[NUMBER > 1 ? 2 : 0], *w = rows[NUMBER > 1 ? 3 : 0];
  for (int64_t j = 0; j < codes; j += W) {
    const int64_t left = codes - j;
    const F b = load_some(bias + j, left, 0.0f);
    F all = load_some(sum + j, left, 0.0f) + first(load_some(x + j, left, BEYOND) + b);
    if constexpr (NUMBER == 4) {
      all += second(load_some(y + j, left, BEYOND) + b);
      all += third(load_some(z + j, left, BEYOND) + b);
      all += fourth(load_some(w + j, left, BEYOND) + b);
    }
    store_some(sum + j, all, left);
  }
}

}  // namespace

namespace speechft::cpu {

#define SPEECHFT_JOIN(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_JOIN(a, b)

RowSums SPEECHFT_CONCAT(row_sums_, SPEECHFT_SET)(const float* x, const float* bias, int64_t codes,
                                                 float scale, float* sum, ChunkSums* chunks) {
  if (bias && sum) return sums_of<true, true>(x, bias, codes, scale, sum, chunks);
  if (bias) return sums_of<true, false>(x, bias, codes, scale, sum, chunks);
  if (sum) return sums_of<false, true>(x, bias, codes, scale, sum, chunks);
  return sums_of<false, false>(x, bias, codes, scale, sum, chunks);
}

void SPEECHFT_CONCAT(softmax_row_, SPEECHFT_SET)(const float* x, const float* bias, int64_t codes,
                                                 float scale, const RowSums& row, float* result) {
  const Exponential softmax(row, scale);
  for (int64_t j = 0; j < codes; j += W)
    store_some(result + j, softmax(logit(x, bias, j, codes - j)), codes - j);
}

void SPEECHFT_CONCAT(add_softmax_, SPEECHFT_SET)(const float* const* rows, const RowSums* of,
                                                 int64_t number, const float* bias, int64_t codes,
                                                 float scale, float* sum) {
  if (number == TOGETHER) return add_softmax_of<TOGETHER>(rows, of, bias, codes, scale, sum);
  for (int64_t r = 0; r < number; ++r)
    add_softmax_of<1>(rows + r, of + r, bias, codes, scale, sum);
}

RowSums SPEECHFT_CONCAT(student_sums_, SPEECHFT_SET)(const float* x, const float* const* targets,
                                                     int64_t number, int64_t codes, float scale,
                                                     ChunkSums* chunks) {
  if (number == 1) return student_sums_of<1>(x, targets, number, codes, scale, chunks);
  if (number == 2) return student_sums_of<2>(x, targets, number, codes, scale, chunks);
  return student_sums_of<0>(x, targets, number, codes, scale, chunks);
}

void SPEECHFT_CONCAT(student_gradient_, SPEECHFT_SET)(const float* x, const float* const* targets,
                                                      int64_t number, int64_t codes, float scale,
                                                      const RowSums& row, float weight,
                                                      float* result) {
  if (number == 1)
    return student_gradient_of<1>(x, targets, number, codes, scale, row, weight, result);
  if (number == 2)
    return student_gradient_of<2>(x, targets, number, codes, scale, row, weight, result);
  student_gradient_of<0>(x, targets, number, codes, scale, row, weight, result);
}

void SPEECHFT_CONCAT(column_sums_, SPEECHFT_SET)(const float* const* rows, int64_t number,
                                                 int64_t codes, float scale, float* maxima,
                                                 float* sums) {
  const F a = splat(static_cast<float>(scale * LOG2E));
  for (int64_t j = 0; j < codes; j += W) {
    const int64_t left = codes - j;
    const F before = load_some(maxima + j, left, 0.0f);
    F most = before;
    for (int64_t r = 0; r < number; ++r)
      most = maximum(most, load_some(rows[r] + j, left, 0.0f));
    F sum = load_some(sums + j, left, 0.0f) * exp2_negative((before - most) * a);
    for (int64_t r = 0; r < number; ++r)
      sum += exp2_negative((load_some(rows[r] + j, left, 0.0f) - most) * a);
    store_some(maxima + j, most, left);
    store_some(sums + j, sum, left);
  }
}

void SPEECHFT_CONCAT(column_logs_, SPEECHFT_SET)(const float* sum, const float* maximum,
                                                 const float* bias, float scale, int64_t codes,
                                                 float* result) {
  for (int64_t j = 0; j < codes; j += W) {
    const int64_t left = codes - j;
    const F log = log2_of(load_some(sum + j, left, 1.0f)) * splat(0.693147181f / scale);
    const F shift = maximum ? load_some(maximum + j, left, 0.0f)
                            : splat(0.0f) - load_some(bias + j, left, 0.0f);
    store_some(result + j, log + shift, left);
  }
}

}  // namespace speechft::cpu
