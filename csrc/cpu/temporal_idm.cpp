#include "cpu/temporal_idm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/instruction_set.h"
#include "cpu/temporal_idm_tile.h"
#include "cpu/threads.h"

namespace speechft::cpu {
namespace {

struct Kernels {
  decltype(&temporal_idm_workspace_baseline) workspace;
  decltype(&temporal_idm_tile_baseline) tile;
};

Kernels current() {
#ifdef SPEECHFT_X86_VECTORS
  if (instruction_set() == InstructionSet::avx512)
    return {temporal_idm_workspace_avx512, temporal_idm_tile_avx512};
  if (instruction_set() == InstructionSet::avx2)
    return {temporal_idm_workspace_avx2, temporal_idm_tile_avx2};
#endif
  return {temporal_idm_workspace_baseline, temporal_idm_tile_baseline};
}

struct Blocks {
  int64_t rows, columns;
};

// Rounds of pairs of blocks: first each with itself, then as in a tournament where one stays and
// the others go round in a circle. Every block meets every other once, and none twice in a round.
std::vector<std::vector<Blocks>> tournament(int64_t blocks) {
  std::vector<std::vector<Blocks>> rounds(1);
  for (int64_t k = 0; k < blocks; ++k) rounds[0].push_back({k, k});
  const int64_t circle = blocks + blocks % 2 - 1;  // of an odd number one has a round off
  for (int64_t round = 0; round < circle; ++round) {
    std::vector<Blocks> pairs;
    for (int64_t k = 0; k <= circle / 2; ++k) {
      const int64_t a = k ? (round + k) % circle : circle, b = (round - k + circle) % circle;
      if (std::max(a, b) < blocks) pairs.push_back({std::min(a, b), std::max(a, b)});
    }
    if (!pairs.empty()) rounds.push_back(pairs);
  }
  return rounds;
}

float unit_of(const float* x, int64_t count) {
  float most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::max(most, std::fabs(x[k]));
  int exponent = 0;
  std::frexp(most, &exponent);
  return std::ldexp(1.0f, std::clamp(exponent, -126, 126));  // its inverse is in range too
}

}  // namespace

void temporal_idm(const TemporalIdmBatch& b, int threads) {
  const Kernels kernels = current();
  const int64_t blocks = (b.steps + TILE - 1) / TILE, tiles = blocks * blocks;
  const int64_t size = b.steps * b.features;
  const auto frames = [&](int64_t k) { return b.lengths ? b.lengths[k] : b.steps; };
  std::vector<float> unit(b.batch);
  in_parallel(b.batch, threads, [&](int64_t k, int) {
    unit[k] = unit_of(b.x + k * size, frames(k) * b.features);
  });
  const int64_t each = kernels.workspace(b.features);
  std::vector<float> workspace(static_cast<size_t>(each * std::max(threads, 1)));
  std::vector<double> sums(static_cast<size_t>(b.batch * tiles));
  for (const auto& round : tournament(blocks)) {
    const int64_t pairs = static_cast<int64_t>(round.size());
    in_parallel(b.batch * pairs, threads, [&](int64_t k, int thread) {
      const int64_t sequence = k / pairs, n = frames(sequence);
      const auto [rows, columns] = round[k % pairs];
      if (columns * TILE >= n) return;
      const TemporalIdmTile tile{b.x + sequence * size,
                                 b.gradient ? b.gradient + sequence * size : nullptr,
                                 n,
                                 b.features,
                                 rows * TILE,
                                 columns * TILE,
                                 b.near,
                                 b.margin,
                                 unit[sequence],
                                 2.0 / (static_cast<double>(n) * static_cast<double>(n))};
      sums[sequence * tiles + rows * blocks + columns] =
          kernels.tile(tile, workspace.data() + thread * each);
    });
  }
  for (int64_t k = 0; k < b.batch; ++k) {
    const double n = static_cast<double>(frames(k));
    double sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) sum += sums[k * tiles + tile];
    b.value[k] = sum * 2.0 / (n * n);
  }
}

}  // namespace speechft::cpu
