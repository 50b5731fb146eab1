// Statistics of a block of channels; included by one source file per instruction set, see lanes.h.
//
// A few frames at a time: their mean and their squares about it, in two passes over what the cache
// holds, then put together with those before by Chan's formula,
//   mean = mean_a + delta n_b / n,  squares = squares_a + squares_b + delta^2 n_a n_b / n,
// in float64. No term of it cancels, however large the mean.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/lanes.h"
#include "cpu/pooling_block.h"

namespace {

using speechft::cpu::CHANNELS;
using speechft::cpu::FRAMES;
using speechft::cpu::PoolingBatch;
using speechft::cpu::PoolingBlock;
using speechft::cpu::PoolingGradient;

inline F exp_of_difference(F x) {  // NaN for NaN
  return exp2_negative(minimum(splat(0.0f), x) * splat(static_cast<float>(LOG2E)));
}

// Sums of some frames, of each channel: weight, mean, squares about the mean.
struct Sums {
  float weight[CHANNELS], mean[CHANNELS], squares[CHANNELS];
};

// Running ones.
struct Running {
  double weight[CHANNELS] = {}, mean[CHANNELS] = {}, squares[CHANNELS] = {};
  float maximum[CHANNELS], shrink[CHANNELS];  // of scores
};

// Frames with one weight for all channels.
void sum_frames(const float* x, int64_t stride, int64_t frames, int64_t n, const float* weights,
                float total, Sums& sums) {
  const F inverse = splat(1.0f / total);
  for (int64_t j = 0; j < n; j += W) {
    const int64_t left = n - j;
    F mean = splat(0.0f), squares = splat(0.0f);
    for (int64_t t = 0; t < frames; ++t)
      mean += load_some(x + t * stride + j, left, 0.0f) * splat(weights[t]);
    mean *= inverse;
    for (int64_t t = 0; t < frames; ++t) {
      const F d = load_some(x + t * stride + j, left, 0.0f) - mean;
      squares += d * d * splat(weights[t]);
    }
    store_some(sums.mean + j, mean, left);
    store_some(sums.squares + j, squares, left);
  }
}

// Frames with e^(score - maximum) of each channel.
void sum_scored(const float* x, const float* scores, int64_t stride, int64_t frames, int64_t n,
                Running& running, Sums& sums) {
  F weights[FRAMES];
  for (int64_t j = 0; j < n; j += W) {
    const int64_t left = n - j;
    const F before = load_some(running.maximum + j, left, 0.0f);
    F most = before;
    for (int64_t t = 0; t < frames; ++t)
      most = maximum(most, load_some(scores + t * stride + j, left, 0.0f));
    store_some(running.maximum + j, most, left);
    most = maximum(most, splat(-3e38f));  // a difference of infinities would be NaN
    store_some(running.shrink + j, exp_of_difference(before - most), left);
    F weight = splat(0.0f), mean = splat(0.0f), squares = splat(0.0f);
    for (int64_t t = 0; t < frames; ++t) {
      weights[t] = exp_of_difference(load_some(scores + t * stride + j, left, 0.0f) - most);
      weight += weights[t];
      mean += load_some(x + t * stride + j, left, 0.0f) * weights[t];
    }
    mean = mean / maximum(weight, splat(1e-38f));  // 0 where no frame has a weight
    for (int64_t t = 0; t < frames; ++t) {
      const F d = load_some(x + t * stride + j, left, 0.0f) - mean;
      squares += d * d * weights[t];
    }
    store_some(sums.weight + j, weight, left);
    store_some(sums.mean + j, mean, left);
    store_some(sums.squares + j, squares, left);
  }
}

void merge_frames(Running& running, const Sums& sums, int64_t n, double before, double more) {
  const double share = more / (before + more);
  for (int64_t j = 0; j < n; ++j) {
    const double delta = sums.mean[j] - running.mean[j];
    running.mean[j] += delta * share;
    running.squares[j] += sums.squares[j] + delta * delta * (before * share);
  }
}

void merge_scored(Running& running, const Sums& sums, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const double shrink = running.shrink[j], before = running.weight[j] * shrink;
    const double more = sums.weight[j], all = before + more;
    const double share = all > 0 ? more / all : 0;
    const double delta = sums.mean[j] - running.mean[j];
    running.mean[j] += delta * share;
    running.squares[j] = running.squares[j] * shrink + sums.squares[j] +
                         delta * delta * (before * share);
    running.weight[j] = all;
  }
}

void pool(const PoolingBatch& b, const PoolingBlock& block) {
  const int64_t n = block.end - block.begin, stride = b.channels;
  const int64_t first = block.utterance * b.steps;
  const float* x = b.x + first * stride + block.begin;
  const float* scores = b.scores ? b.scores + first * stride + block.begin : nullptr;
  Running running;
  Sums sums;
  std::fill(running.maximum, running.maximum + n, NONE);
  double total = 0;
  for (int64_t t = 0; t < block.frames; t += FRAMES) {
    const int64_t frames = std::min(block.frames - t, FRAMES);
    if (scores) {
      sum_scored(x + t * stride, scores + t * stride, stride, frames, n, running, sums);
      merge_scored(running, sums, n);
      continue;
    }
    float weights[FRAMES], more = 0;
    for (int64_t k = 0; k < frames; ++k) {
      weights[k] = b.weights ? b.weights[(first + t + k) * b.groups + block.group] : 1.0f;
      more += weights[k];
    }
    if (more <= 0) continue;
    sum_frames(x + t * stride, stride, frames, n, weights, more, sums);
    merge_frames(running, sums, n, total, more);
    total += more;
  }
  const int64_t of = block.utterance * b.channels + block.begin;
  const double frames = static_cast<double>(block.frames);
  const double factor = b.correction ? frames / (frames - b.correction) : 1.0;
  for (int64_t j = 0; j < n; ++j) {
    const double weight = scores ? running.weight[j] : total;
    const double variance = running.squares[j] / weight * factor;
    b.mean[of + j] = static_cast<float>(running.mean[j]);
    b.deviation[of + j] = std::sqrt(std::max(static_cast<float>(variance), b.epsilon));
    if (scores) b.total[of + j] = static_cast<float>(running.maximum[j] + std::log(weight));
  }
  if (!scores && block.begin % (b.channels / b.groups) == 0)
    b.total[block.utterance * b.groups + block.group] = static_cast<float>(total);
}

// With d = x - mean and the weight a of a frame, the gradients are
//   by x: a (g_mean + g d),  by the weight: g_mean d + g (d^2 - variance) / 2,
// where g = g_deviation / deviation, 0 where the variance was less than epsilon.
void pool_gradient(const PoolingBatch& b, const PoolingBlock& block, const PoolingGradient& out,
                   double* by_weight) {
  const int64_t n = block.end - block.begin, stride = b.channels;
  const int64_t first = block.utterance * b.steps, of = block.utterance * stride + block.begin;
  const float *mean = b.mean + of, *by_mean = out.mean + of;
  const float *lse = b.scores ? b.total + of : nullptr;
  const double frames = static_cast<double>(block.frames);
  const float factor =
      static_cast<float>(b.correction ? frames / (frames - b.correction) : 1.0);
  float by_square[CHANNELS], variance[CHANNELS];
  for (int64_t j = 0; j < n; ++j) {
    const float deviation = b.deviation[of + j];
    by_square[j] =
        deviation > std::sqrt(b.epsilon) ? out.deviation[of + j] * factor / deviation : 0.0f;
    variance[j] = deviation * deviation;
  }
  const float total =
      b.scores ? 1.0f : b.total[block.utterance * b.groups + block.group];
  const F half = splat(0.5f);
  for (int64_t t = 0; t < b.steps; ++t) {
    const int64_t at = (first + t) * stride + block.begin;
    if (t >= block.frames) {
      if (out.x) std::fill(out.x + at, out.x + at + n, 0.0f);
      if (out.scores) std::fill(out.scores + at, out.scores + at + n, 0.0f);
      continue;
    }
    float weight = 1.0f / total;
    if (b.weights) weight *= b.weights[(first + t) * b.groups + block.group];
    F sum = splat(0.0f);
    for (int64_t j = 0; j < n; j += W) {
      const int64_t left = n - j;
      const F d = load_some(b.x + at + j, left, 0.0f) - load_some(mean + j, left, 0.0f);
      const F gm = load_some(by_mean + j, left, 0.0f), g = load_some(by_square + j, left, 0.0f);
      F a = splat(weight);
      if (lse)
        a = exp_of_difference(load_some(b.scores + at + j, left, 0.0f) -
                              load_some(lse + j, left, 0.0f));
      if (out.x) store_some(out.x + at + j, a * (gm + g * d), left);
      if (out.scores || by_weight) {
        const F by = gm * d + g * half * (d * d - load_some(variance + j, left, 0.0f));
        if (out.scores) store_some(out.scores + at + j, a * by, left);
        sum += by;
      }
    }
    if (by_weight) by_weight[t] += ::total(sum) / total;
  }
}

}  // namespace

namespace speechft::cpu {

#define SPEECHFT_JOIN(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_JOIN(a, b)

void SPEECHFT_CONCAT(pool_, SPEECHFT_SET)(const PoolingBatch& batch, const PoolingBlock& block) {
  pool(batch, block);
}

void SPEECHFT_CONCAT(pool_gradient_, SPEECHFT_SET)(const PoolingBatch& batch,
                                                   const PoolingBlock& block,
                                                   const PoolingGradient& gradient,
                                                   double* by_weight) {
  pool_gradient(batch, block, gradient, by_weight);
}

}  // namespace speechft::cpu
