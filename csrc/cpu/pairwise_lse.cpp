#include "cpu/pairwise_lse.h"

#include <algorithm>

#include "cpu/instruction_set.h"
#include "cpu/pairwise_lse_slab.h"
#include "cpu/threads.h"

namespace speechft::cpu {
namespace {

struct Kernels {
  decltype(&pairwise_add_baseline) add;
  decltype(&pairwise_own_baseline) own;
  decltype(&pairwise_gradient_baseline) gradient;
};

#define SPEECHFT_KERNELS(set) \
  Kernels { pairwise_add_##set, pairwise_own_##set, pairwise_gradient_##set }

Kernels current() {
#ifdef SPEECHFT_X86_VECTORS
  if (instruction_set() == InstructionSet::avx512) return SPEECHFT_KERNELS(avx512);
  if (instruction_set() == InstructionSet::avx2) return SPEECHFT_KERNELS(avx2);
#endif
  return SPEECHFT_KERNELS(baseline);
}

constexpr int64_t LANES = 16;  // the most of any set

int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }
int64_t slabs(int64_t rows) { return (rows + SLAB - 1) / SLAB; }

// Slabs are the same whatever the number of threads, and so is the order of every sum.
template <class Work>
void for_slabs(const PairwiseTile& tile, int threads, const Work& work) {
  in_parallel(slabs(tile.rows), threads, [&](int64_t k, int) {
    work(k, k * SLAB, std::min(tile.rows, (k + 1) * SLAB));
  });
}

PairwisePartial partial_of(float* scratch, int64_t slab, int64_t columns) {
  float* p = scratch + slab * 5 * columns;
  return {p, p + columns, p + 2 * columns, p + 3 * columns, p + 4 * columns};
}

}  // namespace

int64_t pairwise_scratch(int64_t rows, int64_t columns) {
  return slabs(rows) * 5 * padded(columns);
}

void pairwise_add(const PairwiseTile& tile, const PairwiseSums& rows, const PairwiseSums& columns,
                  float* scratch, int threads) {
  const Kernels kernels = current();
  const int64_t width = padded(tile.columns);
  const bool both = columns.negative_maximum;
  for_slabs(tile, threads, [&](int64_t slab, int64_t begin, int64_t end) {
    const PairwisePartial partial = both ? partial_of(scratch, slab, width) : PairwisePartial{};
    kernels.add(tile, begin, end, rows, partial);
  });
  if (!both) return;
  constexpr int64_t CHUNK = 256;
  in_parallel((tile.columns + CHUNK - 1) / CHUNK, threads, [&](int64_t chunk, int) {
    const int64_t end = std::min(tile.columns, (chunk + 1) * CHUNK);
    for (int64_t slab = 0; slab < slabs(tile.rows); ++slab) {
      const PairwisePartial p = partial_of(scratch, slab, width);
      for (int64_t j = chunk * CHUNK; j < end; ++j) {
        const int64_t k = tile.first_column + j;
        merge(columns.negative_maximum[k], columns.negative_sum[k], p.negative_maximum[j],
              p.negative_sum[j]);
        if (!tile.row_labels || !columns.positive_maximum) continue;
        merge(columns.positive_maximum[k], columns.positive_sum[k], p.positive_maximum[j],
              p.positive_sum[j]);
        columns.positive_logits[k] += p.positive_logits[j];
      }
    }
  });
}

void pairwise_own(const PairwiseTile& tile, const float* negative_lse, double* value,
                  double* weight, int threads) {
  const Kernels kernels = current();
  for_slabs(tile, threads, [&](int64_t, int64_t begin, int64_t end) {
    kernels.own(tile, begin, end, negative_lse, value, weight);
  });
}

void pairwise_gradient(const PairwiseTile& tile, const PairwiseWeights& rows,
                       const PairwiseWeights& columns, bool own, int threads) {
  const Kernels kernels = current();
  for_slabs(tile, threads, [&](int64_t, int64_t begin, int64_t end) {
    kernels.gradient(tile, begin, end, rows, columns, own);
  });
}

}  // namespace speechft::cpu
