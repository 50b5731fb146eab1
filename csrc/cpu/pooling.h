// Mean and standard deviation over the frames of utterances, weighed, and their gradients.
#pragma once

#include <cstdint>

namespace speechft::cpu {

// x (B, T, C); the weights of frames are equal, given for groups of channels next to each other
// (B, T, G), or the softmax over time of scores (B, T, C).
struct PoolingBatch {
  const float* x;
  int64_t batch, steps, channels;
  const int64_t* lengths;  // of each utterance, or null for all frames
  const float* weights;    // (B, T, G), or null
  int64_t groups;
  const float* scores;  // (B, T, C), or null
  int64_t correction;   // squares are divided by n less this
  float epsilon;        // the least variance
  // What the forward makes and the backward reads. total: the sum of weights (B, G); with scores
  // their log-sum-exp (B, C).
  float *mean, *deviation, *total;
};

struct PoolingGradient {
  const float *mean, *deviation;  // what comes in
  float *x, *weights, *scores;    // what goes out, or null where it is not wanted
};

void pooling(const PoolingBatch& batch, int threads);
void pooling_gradient(const PoolingBatch& batch, const PoolingGradient& gradient, int threads);

}  // namespace speechft::cpu
