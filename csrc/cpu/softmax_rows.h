// What the dispatcher and the kernels of each instruction set share.
#pragma once

#include <cstdint>

namespace speechft::cpu {

constexpr int64_t CHUNK = 1024;  // codes that are summed in float32

inline int64_t chunks_of(int64_t codes) { return (codes + CHUNK - 1) / CHUNK; }

// Of a chunk the sum of e^(scale (x - reference)), and the dot product of these and x - reference.
struct ChunkSums {
  double sum, dot, reference;
};

struct RowSums {
  float maximum;
  double log_sum;  // of e^(scale (x - maximum))
  double dot;      // of the softmax, or of the targets, and scale (x - maximum)
  double targets;  // the sum of them
};

constexpr int64_t TOGETHER = 4;  // rows that share a sweep over the sums of columns

#define SPEECHFT_DECLARE_SOFTMAX(set)                                                            \
  /* Sums of a row x + bias, and its exponentials, each chunk's relative to its reference. If    \
     there is a `sum`, the row, without bias, is added to it, and the dot product is made. */    \
  RowSums exponentials_##set(const float* x, const float* bias, int64_t codes, float scale,      \
                             float* result, float* sum, ChunkSums* chunks);                      \
  /* Exponentials of a row to its softmax, in place; or, if there is a `sum`, added to that. */  \
  void softmax_of_##set(float* exponentials, const RowSums& row, int64_t codes, float scale,     \
                        const ChunkSums* chunks, float* sum);                                    \
  /* Sums of a row, and its dot product with the sum of some targets; its exponentials, if       \
     wanted. */                                                                                  \
  RowSums student_sums_##set(const float* x, const float* const* targets, int64_t number,        \
                             int64_t codes, float scale, float* result, ChunkSums* chunks);      \
  /* Exponentials of a row to weight (number softmax - targets), in place. */                    \
  void student_gradient_##set(float* exponentials, const float* const* targets, int64_t number,  \
                              int64_t codes, float scale, const RowSums& row, float weight,      \
                              const ChunkSums* chunks);                                          \
  /* Some rows into running maxima of each column, and sums of e^(scale (x - maximum)). */       \
  void column_sums_##set(const float* const* rows, int64_t number, int64_t codes, float scale,   \
                         float* maximum, float* sum);                                            \
  /* result = log(sum) / scale + maximum, or where there is no maximum, - bias. */               \
  void column_logs_##set(const float* sum, const float* maximum, const float* bias, float scale, \
                         int64_t codes, float* result)

SPEECHFT_DECLARE_SOFTMAX(baseline);
SPEECHFT_DECLARE_SOFTMAX(avx2);
SPEECHFT_DECLARE_SOFTMAX(avx512);

#undef SPEECHFT_DECLARE_SOFTMAX

}  // namespace speechft::cpu
