// What lies between the GEMMs of pairwise log-sum-exp on the CPU: tiles of products become sums of
// exponentials, and then gradients, in place. Raw pointers.
//
// Each pair (row i, column j) of a tile is left out (j is i itself, or a label is -1), positive (the
// labels are the same) or negative; without labels no pair is positive.
#pragma once

#include <cstdint>

namespace speechft::cpu {

// Running sums of one side of the pairs, the rows or the columns: each array is of the whole side,
// or null where it is not wanted. A sum is of e^(s - maximum).
struct PairwiseSums {
  float* negative_maximum;
  double* negative_sum;
  float* positive_maximum;
  double* positive_sum;
  double* positive_logits;  // the sum of the logits of positive pairs
};

// What each row, or column, gives to the gradient by its logits: of a negative pair
// negative * e^(s - negative_lse), of a positive one positive * e^(s - positive_lse) + linear or,
// with `own`, linear * sigmoid(negative_lse - s) for the last term. Null arrays: no such side.
struct PairwiseWeights {
  const float *negative_lse, *negative;
  const float *positive_lse, *positive, *linear;
};

struct PairwiseTile {
  float* products;  // (rows, columns), rows `stride` apart
  int64_t rows, columns, stride;
  int64_t first_row, first_column;  // of the tile, among all
  float scale;                      // logit = scale * product
  const int32_t *row_labels, *column_labels;  // of all; null: no labels
  int64_t self_offset;              // of pairs j = i + self_offset, or NO_SELF
};

constexpr int64_t NO_SELF = INT64_MIN;

// Adds the tile to the sums. `columns` with null arrays: rows only. `scratch` holds
// pairwise_scratch(rows, columns) floats.
void pairwise_add(const PairwiseTile&, const PairwiseSums& rows, const PairwiseSums& columns,
                  float* scratch, int threads);
int64_t pairwise_scratch(int64_t rows, int64_t columns);

// For rows whose negative log-sum-exp is known: adds to `value` log sigmoid(s - lse) over
// the positive pairs of each row, and to `weight` sigmoid(lse - s).
void pairwise_own(const PairwiseTile&, const float* negative_lse, double* value, double* weight,
                  int threads);

// Replaces the products by the gradient by the logits.
void pairwise_gradient(const PairwiseTile&, const PairwiseWeights& rows,
                       const PairwiseWeights& columns, bool own, int threads);

}  // namespace speechft::cpu
