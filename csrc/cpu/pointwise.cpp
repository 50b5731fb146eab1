#include "cpu/pointwise.h"

#include "cpu/instruction_set.h"
#include "cpu/threads.h"

namespace speechft::cpu {

void pointwise(const PointwiseBatch& batch, int threads) {
  auto row = pointwise_row_baseline;
#ifdef SPEECHFT_X86_VECTORS
  if (instruction_set() == InstructionSet::avx512) row = pointwise_row_avx512;
  if (instruction_set() == InstructionSet::avx2) row = pointwise_row_avx2;
#endif
  in_parallel(batch.batch, threads, [&](int64_t k, int) { row(batch, k); });
}

}  // namespace speechft::cpu
