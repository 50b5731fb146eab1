// Rows of logits, a chunk at a time; included by one source file per instruction set, see lanes.h.
//
// A row comes from memory once. A chunk at a time its exponentials are made, relative to the
// largest logit before the chunk (one that has a much larger one is swept again), summed, and
// stored where the caches hold them; from there a factor a chunk makes shares of them.
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

inline float chunk_maximum(const float* x, const float* bias, int64_t n) {
  F most[4] = {splat(NONE), splat(NONE), splat(NONE), splat(NONE)};
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W)
    for (int k = 0; k < 4; ++k) most[k] = maximum(most[k], logit(x, bias, j + k * W, W));
  for (; j < n; j += W) most[0] = maximum(most[0], logit(x, bias, j, n - j));
  return highest(maximum(maximum(most[0], most[1]), maximum(most[2], most[3])));
}

// Runs sweep(reference), which gives the largest logit of a chunk, with one that is near enough to
// it: the largest logit so far (of the first chunk its own) is, as a rule, and else the sweep is
// repeated. Powers of two are then of less than COMFORT, and sums of less than 2^70.
constexpr float COMFORT = 60.0f;

template <class Sweep>
inline void sweep_chunk(float& most, float scale, float& reference, const Sweep& sweep) {
  reference = most;
  const float top = sweep(reference);
  if ((top - reference) * scale * static_cast<float>(LOG2E) > COMFORT) {
    reference = top;
    sweep(reference);
  }
  most = std::max(most, top);
}

// What makes shares of a chunk's exponentials.
inline F share_of(const RowSums& row, const ChunkSums& chunk, float scale) {
  const double less = chunk.reference - row.maximum;
  return splat(static_cast<float>(std::exp(scale * less - row.log_sum)));
}

template <bool BIAS, bool MORE>  // more: the dot product, and the row added to `sum`
RowSums exponentials_of(const float* x, const float* bias, int64_t codes, float scale,
                        float* result, float* sum, ChunkSums* chunks) {
  const F a = splat(static_cast<float>(scale * LOG2E)), zero = splat(0.0f);
  float most = chunk_maximum(x, BIAS ? bias : nullptr, std::min(codes, CHUNK));
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
        store_some(result + start + j, e, left);
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
    const double less = static_cast<double>(chunks[c].reference) - most;
    const double factor = std::exp(scale * less);
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
                        float scale, float* result, ChunkSums* chunks) {
  const F a = splat(static_cast<float>(scale * LOG2E)), zero = splat(0.0f);
  float most = chunk_maximum(x, nullptr, std::min(codes, CHUNK));
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
        const F e = exp2_negative(d * a);
        top[k] = maximum(top[k], y);
        if (result) store_some(result + start + j, e, left);
        sum[k] += e;
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
void student_gradient_of(float* row, const float* const* targets, int64_t number, int64_t codes,
                         float scale, const RowSums& of, float weight, const ChunkSums* chunks) {
  const F w = splat(weight), n = splat(static_cast<float>(number));
  for (int64_t c = 0; c * CHUNK < codes; ++c) {
    const int64_t end = std::min(codes, (c + 1) * CHUNK);
    const F share = share_of(of, chunks[c], scale) * n;
    for (int64_t j = c * CHUNK; j < end; j += W) {
      const F t = sum_of_targets<NUMBER>(targets, number, j, end - j);
      store_some(row + j, (load_some(row + j, end - j, 0.0f) * share - t) * w, end - j);
    }
  }
}

}  // namespace

namespace speechft::cpu {

#define SPEECHFT_JOIN(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_JOIN(a, b)

RowSums SPEECHFT_CONCAT(exponentials_, SPEECHFT_SET)(const float* x, const float* bias,
                                                     int64_t codes, float scale, float* result,
                                                     float* sum, ChunkSums* chunks) {
  if (bias && sum) return exponentials_of<true, true>(x, bias, codes, scale, result, sum, chunks);
  if (bias) return exponentials_of<true, false>(x, bias, codes, scale, result, sum, chunks);
  if (sum) return exponentials_of<false, true>(x, bias, codes, scale, result, sum, chunks);
  return exponentials_of<false, false>(x, bias, codes, scale, result, sum, chunks);
}

void SPEECHFT_CONCAT(softmax_of_, SPEECHFT_SET)(float* row, const RowSums& of, int64_t codes,
                                                float scale, const ChunkSums* chunks, float* sum) {
  for (int64_t c = 0; c * CHUNK < codes; ++c) {
    const int64_t start = c * CHUNK, end = std::min(codes, start + CHUNK);
    const F share = share_of(of, chunks[c], scale);
    if (sum)
      for (int64_t j = start; j < end; j += W) {
        const F e = load_some(row + j, end - j, 0.0f);
        store_some(sum + j, load_some(sum + j, end - j, 0.0f) + e * share, end - j);
      }
    else
      for (int64_t j = start; j < end; j += W)
        store_some(row + j, load_some(row + j, end - j, 0.0f) * share, end - j);
  }
}

RowSums SPEECHFT_CONCAT(student_sums_, SPEECHFT_SET)(const float* x, const float* const* targets,
                                                     int64_t number, int64_t codes, float scale,
                                                     float* result, ChunkSums* chunks) {
  if (number == 1) return student_sums_of<1>(x, targets, number, codes, scale, result, chunks);
  if (number == 2) return student_sums_of<2>(x, targets, number, codes, scale, result, chunks);
  return student_sums_of<0>(x, targets, number, codes, scale, result, chunks);
}

void SPEECHFT_CONCAT(student_gradient_, SPEECHFT_SET)(float* row, const float* const* targets,
                                                      int64_t number, int64_t codes, float scale,
                                                      const RowSums& of, float weight,
                                                      const ChunkSums* chunks) {
  if (number == 1)
    return student_gradient_of<1>(row, targets, number, codes, scale, of, weight, chunks);
  if (number == 2)
    return student_gradient_of<2>(row, targets, number, codes, scale, of, weight, chunks);
  student_gradient_of<0>(row, targets, number, codes, scale, of, weight, chunks);
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
