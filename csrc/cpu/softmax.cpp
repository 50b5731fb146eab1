#include "cpu/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/instruction_set.h"
#include "cpu/softmax_rows.h"
#include "cpu/threads.h"

namespace speechft::cpu {
namespace {

struct Kernels {
  decltype(&exponentials_baseline) exponentials;
  decltype(&softmax_of_baseline) softmax_of;
  decltype(&student_sums_baseline) student_sums;
  decltype(&student_gradient_baseline) student_gradient;
  decltype(&column_sums_baseline) column_sums;
  decltype(&column_logs_baseline) column_logs;
};

#define SPEECHFT_KERNELS(set)                                                              \
  Kernels {                                                                                \
    exponentials_##set, softmax_of_##set, student_sums_##set, student_gradient_##set,      \
        column_sums_##set, column_logs_##set                                               \
  }

Kernels current() {
#ifdef SPEECHFT_X86_VECTORS
  if (instruction_set() == InstructionSet::avx512) return SPEECHFT_KERNELS(avx512);
  if (instruction_set() == InstructionSet::avx2) return SPEECHFT_KERNELS(avx2);
#endif
  return SPEECHFT_KERNELS(baseline);
}

// Rows are summed slab by slab and slabs in order, so no bit depends on the number of threads.
int64_t slabs_of(int64_t rows) { return std::clamp<int64_t>(rows / 8, 1, 32); }
int64_t first_of(int64_t slab, int64_t rows) { return slab * rows / slabs_of(rows); }

constexpr int64_t BLOCK = 2048;  // columns that one thread sums at a time
int64_t blocks_of(int64_t codes) { return (codes + BLOCK - 1) / BLOCK; }

void add_slabs(const float* sums, int64_t slabs, int64_t codes, int64_t begin, int64_t end,
               float* result) {
  double total[BLOCK] = {};
  for (int64_t slab = 0; slab < slabs; ++slab)
    for (int64_t j = begin; j < end; ++j) total[j - begin] += sums[slab * codes + j];
  for (int64_t j = begin; j < end; ++j) result[j] = static_cast<float>(total[j - begin]);
}

template <class Work>
void for_blocks(int64_t codes, int threads, const Work& work) {
  in_parallel(blocks_of(codes), threads, [&](int64_t block, int) {
    work(block * BLOCK, std::min(codes, (block + 1) * BLOCK));
  });
}

}  // namespace

// ---------------------------------------------------------------------------------- DINO

int64_t dino_workspace(const DinoBatch& batch, int threads) {
  const int64_t of_targets = threads * static_cast<int64_t>(batch.teacher.size());
  return (of_targets + slabs_of(batch.rows)) * batch.codes;
}

void dino(const DinoBatch& batch, float* workspace, int threads) {
  const Kernels kernels = current();
  const int64_t views = batch.student.size(), teachers = batch.teacher.size();
  const int64_t codes = batch.codes, slabs = slabs_of(batch.rows);
  int64_t pairs = views * teachers;
  if (batch.skip_same) pairs -= std::min(views, teachers);
  float* const sums = workspace + threads * teachers * codes;

  in_parallel(slabs, threads, [&](int64_t slab, int thread) {
    float* const targets = workspace + thread * teachers * codes;
    float* const sum = sums + slab * codes;
    std::fill(sum, sum + codes, 0.0f);
    std::vector<ChunkSums> chunks(chunks_of(codes));
    std::vector<const float*> others(teachers);
    for (int64_t row = first_of(slab, batch.rows); row < first_of(slab + 1, batch.rows); ++row) {
      double loss = 0, entropy = 0;
      const double weight = batch.weights[row];
      for (int64_t u = 0; u < teachers && weight != 0; ++u) {
        const float* const x = batch.teacher[u] + row * batch.teacher_stride[u];
        const float* const bias = batch.bias ? batch.bias + u * batch.bias_stride : nullptr;
        float* const target = targets + u * codes;
        const RowSums of = kernels.exponentials(x, bias, codes, batch.teacher_scale, target, sum,
                                                chunks.data());
        kernels.softmax_of(target, of, codes, batch.teacher_scale, chunks.data(), nullptr);
        entropy += of.log_sum - of.dot;
      }
      for (int64_t v = 0; v < views; ++v) {
        float* const gradient = batch.gradient.empty() ? nullptr : batch.gradient[v] + row * codes;
        int64_t number = 0;
        for (int64_t u = 0; u < teachers; ++u)
          if (!batch.skip_same || u != v) others[number++] = targets + u * codes;
        if (weight == 0 || number == 0) {
          if (gradient) std::fill(gradient, gradient + codes, 0.0f);
          continue;
        }
        const float* const x = batch.student[v] + row * batch.student_stride[v];
        const RowSums of = kernels.student_sums(x, others.data(), number, codes,
                                                batch.student_scale, gradient, chunks.data());
        loss += of.targets * of.log_sum - of.dot;
        if (gradient)
          kernels.student_gradient(gradient, others.data(), number, codes, batch.student_scale, of,
                                   static_cast<float>(weight / pairs * batch.student_scale),
                                   chunks.data());
      }
      batch.losses[row] = static_cast<float>(loss * weight / pairs);
      batch.entropy[row] = static_cast<float>(entropy / teachers);
    }
  });
  for_blocks(codes, threads, [&](int64_t begin, int64_t end) {
    add_slabs(sums, slabs, codes, begin, end, batch.total);
  });
}

// ---------------------------------------------------------------------------------- Sinkhorn

namespace {

// Columns [begin, end) without a bias: sums of e^(scale x), each with a maximum of its own.
void plain_columns(const Kernels& kernels, const SinkhornRows& r, int64_t begin, int64_t end,
                   float* result) {
  constexpr int64_t TILE = 512;
  for (int64_t left = begin; left < end; left += TILE) {
    const int64_t n = std::min(end - left, TILE);
    float maximum[TILE], sum[TILE];
    std::fill(maximum, maximum + n, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + n, 0.0f);
    const float* rows[TOGETHER];
    int64_t number = 0;
    for (int64_t b = 0; b < r.rows; ++b) {
      if (!r.valid || r.valid[b]) rows[number++] = r.logits + b * r.stride + left;
      if (number == TOGETHER || (number && b + 1 == r.rows)) {
        kernels.column_sums(rows, number, n, r.scale, maximum, sum);
        number = 0;
      }
    }
    kernels.column_logs(sum, maximum, nullptr, r.scale, n, result + left);
  }
}

}  // namespace

int64_t sinkhorn_columns_workspace(const SinkhornRows& r, int threads) {
  return r.bias ? (threads + slabs_of(r.rows) + 1) * r.codes : 0;
}

void sinkhorn_columns(const SinkhornRows& r, float* result, float* workspace, int threads) {
  const Kernels kernels = current();
  if (!r.bias) {
    // Narrow blocks where there are few columns, so that each thread has some.
    const int64_t width = std::min<int64_t>(BLOCK, std::max<int64_t>(16, r.codes / (4 * threads)));
    in_parallel((r.codes + width - 1) / width, threads, [&](int64_t block, int) {
      plain_columns(kernels, r, block * width, std::min(r.codes, (block + 1) * width), result);
    });
    return;
  }
  // Of a code the sum of its shares of the rows, which with a bias that comes of an iteration is at
  // least 1 / (rows codes): in the row that had most of it before, it has 1 / rows of that
  // iteration's sum or more, and no other code has more than 1. So no sum needs a maximum.
  const int64_t codes = r.codes, slabs = slabs_of(r.rows);
  float* const sums = workspace + threads * codes;
  float* const total = sums + slabs * codes;
  in_parallel(slabs, threads, [&](int64_t slab, int thread) {
    float *const row = workspace + thread * codes, *const sum = sums + slab * codes;
    std::fill(sum, sum + codes, 0.0f);
    std::vector<ChunkSums> chunks(chunks_of(codes));
    for (int64_t b = first_of(slab, r.rows); b < first_of(slab + 1, r.rows); ++b) {
      if (r.valid && !r.valid[b]) continue;
      const RowSums of = kernels.exponentials(r.logits + b * r.stride, r.bias, codes, r.scale, row,
                                              nullptr, chunks.data());
      kernels.softmax_of(row, of, codes, r.scale, chunks.data(), sum);
    }
  });
  for_blocks(codes, threads, [&](int64_t begin, int64_t end) {
    add_slabs(sums, slabs, codes, begin, end, total);
    kernels.column_logs(total + begin, nullptr, r.bias + begin, r.scale, end - begin,
                        result + begin);
  });
}

void sinkhorn_assign(const SinkhornRows& r, float* result, int threads) {
  const Kernels kernels = current();
  const int64_t slabs = std::min<int64_t>(r.rows, 16 * threads);
  in_parallel(slabs, threads, [&](int64_t slab, int) {
    std::vector<ChunkSums> chunks(chunks_of(r.codes));
    for (int64_t b = slab * r.rows / slabs; b < (slab + 1) * r.rows / slabs; ++b) {
      float* const row = result + b * r.codes;
      if (r.valid && !r.valid[b]) {
        std::fill(row, row + r.codes, 0.0f);
        continue;
      }
      const RowSums of = kernels.exponentials(r.logits + b * r.stride, r.bias, r.codes, r.scale,
                                              row, nullptr, chunks.data());
      kernels.softmax_of(row, of, r.codes, r.scale, chunks.data(), nullptr);
    }
  });
}

}  // namespace speechft::cpu
