// A tile of pairs of frames; included by one source file per instruction set, see lanes.h.
//
// Distances are sums of squared differences: exact for frames that are nearly equal, where a Gram
// matrix has no digits left. The tile's frames are copied so that a vector of features of all of
// them lies together: memory is read in order, whatever the features.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/lanes.h"
#include "cpu/temporal_idm_tile.h"

namespace {

using speechft::cpu::TemporalIdmTile;
using speechft::cpu::TILE;

// Pairs whose sums are held in registers: W of them, so that one transpose puts the lanes together.
constexpr int64_t ROWS = W >= 16 ? 4 : W >= 4 ? 2 : 1, COLUMNS = W / ROWS;
// Columns whose frames stay in the first cache while the rows pass by.
constexpr int64_t STRIPE = 16;
// Vectors of features whose squares are summed by themselves, for long sums to lose no digits.
constexpr int64_t CHAIN = 8;
// Rows whose gradients are held in registers.
constexpr int64_t HELD = 4;
// From one vector of features to the next: one frame more than the tile has, for else they would
// all fall on the same lines of the cache.
constexpr int64_t PITCH = (TILE + 1) * W;

int64_t vectors(int64_t features) { return (features + W - 1) / W; }

// The frames of a tile, over unit; zeros beyond the last.
void pack(const TemporalIdmTile& t, int64_t first, float* packed) {
  const F scale = splat(1.0f / t.unit);
  for (int64_t row = 0; row < TILE; ++row) {
    const float* x = t.x + (first + row) * t.features;
    float* out = packed + row * W;
    const bool is_frame = first + row < t.frames;
    for (int64_t d = 0; d < t.features; d += W, out += PITCH)
      store(out, is_frame ? load_some(x + d, t.features - d, 0.0f) * scale : splat(0.0f));
  }
}

// Squared distances of all pairs.
void square(const float* a, const float* b, int64_t count, float* squares) {
  for (int64_t stripe = 0; stripe < TILE; stripe += STRIPE)
    for (int64_t i = 0; i < TILE; i += ROWS)
      for (int64_t j = stripe; j < stripe + STRIPE; j += COLUMNS) {
        F totals[W];
        for (int k = 0; k < W; ++k) totals[k] = splat(0.0f);
        const float *of_a = a + i * W, *of_b = b + j * W;
        for (int64_t first = 0; first < count; first += CHAIN) {
          F sums[W];
          for (int k = 0; k < W; ++k) sums[k] = splat(0.0f);
          const int64_t end = std::min(first + CHAIN, count);
          for (int64_t v = first; v < end; ++v, of_a += PITCH, of_b += PITCH) {
            F rows[ROWS], columns[COLUMNS];
#pragma GCC unroll 16
            for (int k = 0; k < ROWS; ++k) rows[k] = load(of_a + k * W);
#pragma GCC unroll 16
            for (int k = 0; k < COLUMNS; ++k) columns[k] = load(of_b + k * W);
#pragma GCC unroll 16
            for (int k = 0; k < W; ++k) {
              const F d = rows[k / COLUMNS] - columns[k % COLUMNS];
              sums[k] += d * d;
            }
          }
#pragma GCC unroll 16
          for (int k = 0; k < W; ++k) totals[k] += sums[k];
        }
        transpose(totals);
        for (int step = W / 2; step; step /= 2)
          for (int k = 0; k < step; ++k) totals[k] += totals[k + step];
        float found[W];
        store(found, totals[0]);
        for (int64_t k = 0; k < ROWS; ++k)
          std::copy(found + k * COLUMNS, found + (k + 1) * COLUMNS, squares + (i + k) * TILE + j);
      }
}

// From squared distances, over unit^2, to the derivative by each distance over that distance, in
// place; returns the sum of what the pairs give.
double weigh(const TemporalIdmTile& t, float* squares) {
  float lanes[W];
  for (int k = 0; k < W; ++k) lanes[k] = static_cast<float>(k);
  const F step = load(lanes), zero = splat(0.0f), one = splat(1.0f), margin = splat(t.margin);
  const F near = splat(static_cast<float>(t.near)), unit = splat(t.unit);
  const int64_t rows = std::min(TILE, t.frames - t.rows);
  const F end = splat(static_cast<float>(t.frames - t.columns));
  std::fill(squares + rows * TILE, squares + TILE * TILE, 0.0f);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    float* row = squares + i * TILE;
    F of_row = zero;
    for (int64_t j = 0; j < TILE; j += W) {
      const F column = step + splat(static_cast<float>(j));
      const F lag = column + splat(static_cast<float>(t.columns - t.rows - i));
      const F weight = lag * lag + one;
      const F scaled = square_root(load(row + j)), distance = scaled * unit;
      const F left = margin - distance;
      F value = lag > near ? weight * maximum(left, zero) : distance / weight;
      F slope = lag > near ? (left > zero ? zero - weight : zero) : one / weight;
      value = lag > zero ? value : zero;  // i < j: the others are the same again
      slope = lag > zero ? slope : zero;
      value = column < end ? value : zero;
      slope = column < end ? slope : zero;
      of_row += value;
      store(row + j, scaled > zero ? slope / scaled : zero);
    }
    sum += total(of_row);
  }
  return sum;
}

// Columns that have a slope in any of HELD rows, with these slopes.
struct Active {
  int64_t count;
  int32_t column[TILE];
  float slope[TILE][HELD];
};

bool select(const float* slopes, Active* active) {
  bool found = false;
  for (int64_t i = 0; i < TILE; i += HELD, ++active) {
    active->count = 0;
    for (int64_t j = 0; j < TILE; ++j) {
      float* slope = active->slope[active->count];
      bool any_slope = false;
      for (int64_t k = 0; k < HELD; ++k) {
        slope[k] = slopes[(i + k) * TILE + j];
        any_slope |= slope[k] != 0;
      }
      active->column[active->count] = static_cast<int32_t>(j);
      active->count += any_slope;
    }
    found |= active->count > 0;
  }
  return found;
}

// Gradients by the frames: slope (x_i - x_j) to i, and less it to j.
void gather(const float* a, const float* b, int64_t count, const Active* active, float* of_a,
            float* of_b) {
  for (int64_t v = 0; v < count; ++v, a += PITCH, b += PITCH, of_a += PITCH, of_b += PITCH) {
    for (int64_t j = 0; j < TILE; ++j) store(of_b + j * W, splat(0.0f));
    for (int64_t i = 0; i < TILE; i += HELD) {
      const Active& columns = active[i / HELD];
      F x[HELD], gradient[HELD];
#pragma GCC unroll 4
      for (int k = 0; k < HELD; ++k) x[k] = load(a + (i + k) * W), gradient[k] = splat(0.0f);
      for (int64_t entry = 0; entry < columns.count; ++entry) {
        const int64_t at = columns.column[entry] * W;
        const F y = load(b + at);
        F of_y = load(of_b + at);
#pragma GCC unroll 4
        for (int k = 0; k < HELD; ++k) {
          const F slope = splat(columns.slope[entry][k]), d = x[k] - y;
          gradient[k] += slope * d;
          of_y -= slope * d;
        }
        store(of_b + at, of_y);
      }
#pragma GCC unroll 4
      for (int k = 0; k < HELD; ++k) store(of_a + (i + k) * W, gradient[k]);
    }
  }
}

void add(const TemporalIdmTile& t, int64_t first, const float* packed) {
  const F factor = splat(static_cast<float>(t.factor));
  const int64_t rows = std::min(TILE, t.frames - first);
  for (int64_t row = 0; row < rows; ++row) {
    float* out = t.gradient + (first + row) * t.features;
    const float* from = packed + row * W;
    for (int64_t d = 0; d < t.features; d += W, from += PITCH) {
      const int64_t left = t.features - d;
      store_some(out + d, load_some(out + d, left, 0.0f) + factor * load(from), left);
    }
  }
}

int64_t workspace_floats(int64_t features) {
  return 4 * vectors(features) * PITCH + TILE * TILE +
         static_cast<int64_t>(TILE / HELD * sizeof(Active) / sizeof(float));
}

double tile_of_pairs(const TemporalIdmTile& t, float* workspace) {
  const int64_t count = vectors(t.features), size = count * PITCH;
  float *a = workspace, *b = a + size, *of_a = b + size, *of_b = of_a + size;
  float* squares = of_b + size;
  auto* active = reinterpret_cast<Active*>(squares + TILE * TILE);
  pack(t, t.rows, a);
  if (t.columns == t.rows)
    b = a;
  else
    pack(t, t.columns, b);
  square(a, b, count, squares);
  const double sum = weigh(t, squares);
  if (!t.gradient || !select(squares, active)) return sum;
  gather(a, b, count, active, of_a, of_b);
  add(t, t.rows, of_a);
  add(t, t.columns, of_b);
  return sum;
}

}  // namespace

namespace speechft::cpu {

#define SPEECHFT_JOIN(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_JOIN(a, b)

int64_t SPEECHFT_CONCAT(temporal_idm_workspace_, SPEECHFT_SET)(int64_t features) {
  return workspace_floats(features);
}

double SPEECHFT_CONCAT(temporal_idm_tile_, SPEECHFT_SET)(const TemporalIdmTile& tile,
                                                         float* workspace) {
  return tile_of_pairs(tile, workspace);
}

}  // namespace speechft::cpu
