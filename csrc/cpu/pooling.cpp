#include "cpu/pooling.h"

#include <algorithm>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/pooling_block.h"
#include "cpu/threads.h"

namespace speechft::cpu {
namespace {

struct Kernels {
  decltype(&pool_baseline) pool;
  decltype(&pool_gradient_baseline) gradient;
};

Kernels current() {
#ifdef SPEECHFT_X86_VECTORS
  if (instruction_set() == InstructionSet::avx512) return {pool_avx512, pool_gradient_avx512};
  if (instruction_set() == InstructionSet::avx2) return {pool_avx2, pool_gradient_avx2};
#endif
  return {pool_baseline, pool_gradient_baseline};
}

// An utterance and a group of channels, whose blocks lie in it.
struct Groups {
  explicit Groups(const PoolingBatch& batch)
      : b(batch), channels(batch.channels / batch.groups),
        blocks((channels + CHANNELS - 1) / CHANNELS) {}

  PoolingBlock block(int64_t utterance, int64_t group, int64_t block) const {
    const int64_t begin = group * channels + block * CHANNELS;
    return {utterance, b.lengths ? b.lengths[utterance] : b.steps, begin,
            std::min(begin + CHANNELS, (group + 1) * channels), group};
  }

  const PoolingBatch& b;
  const int64_t channels, blocks;
};

}  // namespace

void pooling(const PoolingBatch& batch, int threads) {
  const Kernels kernels = current();
  const Groups groups(batch);
  const int64_t each = batch.groups * groups.blocks;
  in_parallel(batch.batch * each, threads, [&](int64_t k, int) {
    const int64_t rest = k % each;
    kernels.pool(batch, groups.block(k / each, rest / groups.blocks, rest % groups.blocks));
  });
}

void pooling_gradient(const PoolingBatch& batch, const PoolingGradient& gradient, int threads) {
  const Kernels kernels = current();
  const Groups groups(batch);
  if (!gradient.weights) {
    const int64_t each = batch.groups * groups.blocks;
    in_parallel(batch.batch * each, threads, [&](int64_t k, int) {
      const int64_t rest = k % each;
      kernels.gradient(batch, groups.block(k / each, rest / groups.blocks, rest % groups.blocks),
                       gradient, nullptr);
    });
    return;
  }
  // The gradient by a weight sums over the channels of its group, in their order.
  in_parallel(batch.batch * batch.groups, threads, [&](int64_t k, int) {
    const int64_t utterance = k / batch.groups, group = k % batch.groups;
    std::vector<double> by_weight(batch.steps);
    for (int64_t block = 0; block < groups.blocks; ++block)
      kernels.gradient(batch, groups.block(utterance, group, block), gradient, by_weight.data());
    for (int64_t t = 0; t < batch.steps; ++t)
      gradient.weights[(utterance * batch.steps + t) * batch.groups + group] =
          static_cast<float>(by_weight[t]);
  });
}

}  // namespace speechft::cpu
