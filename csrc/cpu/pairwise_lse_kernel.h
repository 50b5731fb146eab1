// The tiles of pairwise log-sum-exp, a slab of rows at a time; included by one source file per
// instruction set, see lanes.h.
//
// A slab is swept twice: for the maxima of its rows and columns, then for the sums of e^(s - maximum).
// Each maximum is of the very row or column (and kind of pair), so no logit is too far from it, and
// no row loses its digits to another.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/lanes.h"
#include "cpu/pairwise_lse_slab.h"

namespace {

using speechft::cpu::NO_SELF;
using speechft::cpu::PairwisePartial;
using speechft::cpu::PairwiseSums;
using speechft::cpu::PairwiseTile;
using speechft::cpu::PairwiseWeights;

#if SPEECHFT_LANES == 1
using M = bool;  // of a comparison
inline I load_int(const int32_t* p) { return *p; }
inline I lane_numbers() { return 0; }
#else
using M = I;
inline I load_int(const int32_t* p) {
  I v;
  std::memcpy(&v, p, sizeof(I));
  return v;
}
inline I lane_numbers() {
  I v;
  for (int k = 0; k < W; ++k) v[k] = k;
  return v;
}
#endif

constexpr float LN2 = 0.693147181f;

// e^x for x <= 0 (or little above), 0 below -88; relative error about 1e-7. Of x, not of x log2(e)
// rounded: the remainder x - n ln 2 is exact to float32, whatever the size of x.
inline F exp_negative(F x) {
  x = maximum(x, splat(-88.0f));
  const F magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const F shifted = x * splat(1.44269504f) + magic;
  const F n = shifted - magic;
  const F r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);  // ln 2 in two parts
  F p = splat(1.38638e-3f);
  p = p * r + splat(8.36748e-3f);
  p = p * r + splat(4.166724e-2f);
  p = p * r + splat(1.6666534e-1f);
  p = p * r + splat(5.00000000e-1f);
  p = (p * r) * r + r + splat(1.0f);
  const I exponent = bits(shifted) - bits(magic) + 127;
  return p * from_bits(exponent << 23);
}

// A maximum of nothing would make NaN of its differences; nothing is ever added to its sum.
inline float finite(float maximum) { return maximum == NONE ? 0.0f : maximum; }

// Vector of columns [column, column + W) of a row; the last of a row may be cut short, and what is
// then beyond the end is left out.
struct Pairs {
  F logits;
  M negative, positive;
};

template <bool LABELS>
struct Row {
  const PairwiseTile& t;
  const float* products;
  I label;
  int64_t self;  // column of the tile that is left out

  Row(const PairwiseTile& tile, int64_t row)
      : t(tile),
        products(tile.products + row * tile.stride),
        label(splat_int(LABELS ? tile.row_labels[tile.first_row + row] : 0)),
        self(tile.self_offset == NO_SELF
                 ? -W - 1
                 : tile.first_row + row + tile.self_offset - tile.first_column) {}

  // The pairs of a vector of columns.
  Pairs at(int64_t column) const {
    const int64_t count = std::min<int64_t>(t.columns - column, W);
    Pairs pairs;
    I other{};
    if (count == W) {
      pairs.logits = load(products + column);
      if constexpr (LABELS) other = load_int(t.column_labels + t.first_column + column);
    } else {
      float values[W] = {};
      int32_t labels[W] = {};
      for (int k = 0; k < W; ++k) {
        values[k] = k < count ? products[column + k] : 0.0f;
        if constexpr (LABELS)
          labels[k] = k < count ? t.column_labels[t.first_column + column + k] : -1;
      }
      pairs.logits = load(values);
      other = load_int(labels);
    }
    pairs.logits *= splat(t.scale);
    if constexpr (LABELS) {
      const M known = (label >= 0) & (other >= 0);
      pairs.positive = known & (label == other);
      pairs.negative = known & (label != other);
    } else {
      pairs.positive = lane_numbers() < 0;
      pairs.negative = lane_numbers() < splat_int(static_cast<int32_t>(count));
    }
    if (self >= column && self < column + W) {
      const M kept = lane_numbers() != splat_int(static_cast<int32_t>(self - column));
      pairs.positive = pairs.positive & kept;
      pairs.negative = pairs.negative & kept;
    }
    return pairs;
  }
};

// ---------------------------------------------------------------------------------- forward

template <bool LABELS, bool COLUMNS>
void add_rows(const PairwiseTile& t, int64_t begin, int64_t end, const PairwiseSums& rows,
              const PairwisePartial& partial) {
  const int64_t n = t.columns, padded = (n + W - 1) / W * W;
  // Columns: maxima of the slab, then sums; those of rows of the slab lie in small arrays.
  float row_negative[speechft::cpu::SLAB], row_positive[speechft::cpu::SLAB];
  if constexpr (COLUMNS) {
    std::fill(partial.negative_maximum, partial.negative_maximum + padded, NONE);
    std::fill(partial.negative_sum, partial.negative_sum + padded, 0.0f);
    if constexpr (LABELS) {
      std::fill(partial.positive_maximum, partial.positive_maximum + padded, NONE);
      std::fill(partial.positive_sum, partial.positive_sum + padded, 0.0f);
      std::fill(partial.positive_logits, partial.positive_logits + padded, 0.0f);
    }
  }
  const F none = splat(NONE), zero = splat(0.0f);
  for (int64_t i = begin; i < end; ++i) {
    const Row<LABELS> row(t, i);
    F most_negative = none, most_positive = none, logits = zero;
    for (int64_t j = 0; j < n; j += W) {
      const Pairs p = row.at(j);
      const F negative = p.negative ? p.logits : none;
      most_negative = maximum(most_negative, negative);
      if constexpr (COLUMNS)
        store(partial.negative_maximum + j, maximum(load(partial.negative_maximum + j), negative));
      if constexpr (LABELS) {
        const F positive = p.positive ? p.logits : none;
        const F counted = p.positive ? p.logits : zero;
        most_positive = maximum(most_positive, positive);
        logits += counted;
        if constexpr (COLUMNS) {
          store(partial.positive_maximum + j,
                maximum(load(partial.positive_maximum + j), positive));
          store(partial.positive_logits + j, load(partial.positive_logits + j) + counted);
        }
      }
    }
    row_negative[i - begin] = highest(most_negative);
    row_positive[i - begin] = highest(most_positive);
    if constexpr (LABELS)
      if (rows.positive_logits) rows.positive_logits[t.first_row + i] += total(logits);
  }
  for (int64_t i = begin; i < end; ++i) {
    const Row<LABELS> row(t, i);
    const F of_negative = splat(finite(row_negative[i - begin]));
    const F of_positive = splat(finite(row_positive[i - begin]));
    F negatives = zero, positives = zero;
    for (int64_t j = 0; j < n; j += W) {
      const Pairs p = row.at(j);
      const F from = LABELS ? (p.positive ? of_positive : of_negative) : of_negative;
      const F e = exp_negative(p.logits - from);
      negatives += p.negative ? e : zero;
      if constexpr (LABELS) positives += p.positive ? e : zero;
      if constexpr (COLUMNS) {
        F most = load(partial.negative_maximum + j);
        if constexpr (LABELS) most = p.positive ? load(partial.positive_maximum + j) : most;
        const F c = exp_negative(p.logits - most);  // a pair that is left out is not added
        store(partial.negative_sum + j, load(partial.negative_sum + j) + (p.negative ? c : zero));
        if constexpr (LABELS)
          store(partial.positive_sum + j, load(partial.positive_sum + j) + (p.positive ? c : zero));
      }
    }
    const int64_t k = t.first_row + i;
    speechft::cpu::merge(rows.negative_maximum[k], rows.negative_sum[k], row_negative[i - begin],
                         total(negatives));
    if constexpr (LABELS)
      if (rows.positive_maximum)
        speechft::cpu::merge(rows.positive_maximum[k], rows.positive_sum[k],
                             row_positive[i - begin], total(positives));
  }
}

// ---------------------------------------------------------------------------------- own

// log(1 + e) for e in [0, 1].
inline F log_one_plus(F e) {
  const F z = e / (splat(2.0f) + e);
  return z * log2_series(z * z) * splat(LN2);
}

void own_rows(const PairwiseTile& t, int64_t begin, int64_t end, const float* lse, double* value,
              double* weight) {
  const F zero = splat(0.0f), one = splat(1.0f);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = t.first_row + i;
    if (lse[k] == NONE) continue;  // no negatives: probability 1, weight 0
    const Row<true> row(t, i);
    F values = zero, weights = zero;
    for (int64_t j = 0; j < t.columns; j += W) {
      const Pairs p = row.at(j);
      const F x = p.logits - splat(lse[k]);  // log sigmoid(x) = min(x, 0) - log(1 + e^-|x|)
      const F e = exp_negative(minimum(x, zero - x));
      const F above = x < zero ? one : e;  // sigmoid(-x) = this / (1 + e)
      values += p.positive ? minimum(x, zero) - log_one_plus(e) : zero;
      weights += p.positive ? above / (one + e) : zero;
    }
    value[k] += total(values);
    weight[k] += total(weights);
  }
}

// ---------------------------------------------------------------------------------- backward

template <bool LABELS, bool COLUMNS, bool OWN>
void gradient_rows(const PairwiseTile& t, int64_t begin, int64_t end, const PairwiseWeights& rows,
                   const PairwiseWeights& columns) {
  const F zero = splat(0.0f), one = splat(1.0f);
  const auto own = [&](F logits, F lse) {  // sigmoid(lse - s); lse is finite or -inf
    const F x = minimum(maximum(logits - lse, splat(-87.0f)), splat(87.0f));
    const F e = exp_negative(minimum(x, zero - x));
    const F above = x < zero ? one : e;
    return above / (one + e);
  };
  float tail[5][W];
  for (int64_t i = begin; i < end; ++i) {
    const Row<LABELS> row(t, i);
    const int64_t k = t.first_row + i;
    float* out = t.products + i * t.stride;
    const F row_negative_lse = splat(rows.negative_lse[k]), row_negative = splat(rows.negative[k]);
    F row_positive_lse = zero, row_positive = zero, row_linear = zero;
    if constexpr (LABELS) {
      row_positive_lse = splat(rows.positive_lse[k]);
      row_positive = splat(rows.positive[k]);
      row_linear = splat(rows.linear[k]);
    }
    for (int64_t j = 0; j < t.columns; j += W) {
      const Pairs p = row.at(j);
      const int64_t left = t.columns - j;
      const auto of_column = [&](const float* values, int which) {
        const float* from = values + t.first_column + j;
        if (left >= W) return load(from);
        std::memcpy(tail[which], from, static_cast<size_t>(left) * sizeof(float));
        for (int lane = static_cast<int>(left); lane < W; ++lane) tail[which][lane] = 0.0f;
        return load(tail[which]);
      };
      const auto side = [&](F negative_lse, F negative, F positive_lse, F positive, F linear) {
        if constexpr (LABELS) {
          const F lse = p.positive ? positive_lse : negative_lse;
          const F weight = p.positive ? positive : negative;
          const F e = exp_negative(p.logits - lse) * weight;
          const F more = OWN ? linear * own(p.logits, negative_lse) : linear;
          return p.positive ? e + more : e;
        } else {
          return exp_negative(p.logits - negative_lse) * negative;
        }
      };
      F g = side(row_negative_lse, row_negative, row_positive_lse, row_positive, row_linear);
      if constexpr (COLUMNS) {
        F positive_lse = zero, positive = zero, linear = zero;
        if constexpr (LABELS) {
          positive_lse = of_column(columns.positive_lse, 2);
          positive = of_column(columns.positive, 3);
          linear = of_column(columns.linear, 4);
        }
        g += side(of_column(columns.negative_lse, 0), of_column(columns.negative, 1), positive_lse,
                  positive, linear);
      }
      g = (p.positive | p.negative) ? g : zero;
      store_some(out + j, g, left);
    }
  }
}

}  // namespace

namespace speechft::cpu {

#define SPEECHFT_JOIN(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_JOIN(a, b)

void SPEECHFT_CONCAT(pairwise_add_, SPEECHFT_SET)(const PairwiseTile& t, int64_t begin, int64_t end,
                                                  const PairwiseSums& rows,
                                                  const PairwisePartial& partial) {
  const bool labels = t.row_labels, columns = partial.negative_maximum;
  if (labels && columns) return add_rows<true, true>(t, begin, end, rows, partial);
  if (labels) return add_rows<true, false>(t, begin, end, rows, partial);
  if (columns) return add_rows<false, true>(t, begin, end, rows, partial);
  add_rows<false, false>(t, begin, end, rows, partial);
}

void SPEECHFT_CONCAT(pairwise_own_, SPEECHFT_SET)(const PairwiseTile& t, int64_t begin, int64_t end,
                                                  const float* lse, double* value, double* weight) {
  own_rows(t, begin, end, lse, value, weight);
}

void SPEECHFT_CONCAT(pairwise_gradient_, SPEECHFT_SET)(const PairwiseTile& t, int64_t begin,
                                                       int64_t end, const PairwiseWeights& rows,
                                                       const PairwiseWeights& columns, bool own) {
  const bool labels = t.row_labels, both = columns.negative_lse;
  if (!labels && !both) return gradient_rows<false, false, false>(t, begin, end, rows, columns);
  if (!labels) return gradient_rows<false, true, false>(t, begin, end, rows, columns);
  if (!both && !own) return gradient_rows<true, false, false>(t, begin, end, rows, columns);
  if (!both) return gradient_rows<true, false, true>(t, begin, end, rows, columns);
  if (!own) return gradient_rows<true, true, false>(t, begin, end, rows, columns);
  gradient_rows<true, true, true>(t, begin, end, rows, columns);
}

}  // namespace speechft::cpu
