// Ops on rows of logits: DINO's loss and gradient in one pass, and Sinkhorn's half iterations.
// Logits stay as they are until a maximum is subtracted, and are scaled (divided by a temperature)
// then: a bias is in units of the logits.
#pragma once

#include <cstdint>
#include <vector>

namespace speechft::cpu {

struct DinoBatch {
  // First row of each view, and floats from one row to the next.
  std::vector<const float*> student, teacher;
  std::vector<int64_t> student_stride, teacher_stride;
  std::vector<float*> gradient;  // of each student view, rows next to each other; empty: none
  const float* bias;             // of the teacher's logits, or null
  int64_t bias_stride;           // from one view's to the next's; 0: one for all
  int64_t rows, codes;
  float student_scale, teacher_scale;
  const float* weights;  // of each row in the loss; 0: the row is not read
  float *losses, *entropy, *total;
  bool skip_same;
};

struct SinkhornRows {
  const float* logits;
  int64_t rows, codes, stride;
  float scale;             // 1 / epsilon
  const float* bias;       // of each code, or null
  const uint8_t* valid;    // rows that count; null: all
};

// Floats of each to work in.
int64_t dino_workspace(const DinoBatch& batch, int threads);
int64_t sinkhorn_columns_workspace(const SinkhornRows& rows, int threads);

void dino(const DinoBatch& batch, float* workspace, int threads);

// Of each code the log of the sum of e^(scale (x - a)), over scale: a normalises the row of
// x + bias, or is 0 where there is none.
void sinkhorn_columns(const SinkhornRows& rows, float* result, float* workspace, int threads);

// Each row's softmax, rows next to each other; 0 in rows that do not count.
void sinkhorn_assign(const SinkhornRows& rows, float* result, int threads);

}  // namespace speechft::cpu
