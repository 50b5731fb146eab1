// A vector of SPEECHFT_LANES floats and the few functions that the kernels need on it.
//
// Included by one source file per instruction set, each with its own SPEECHFT_LANES and compiler
// flags; everything is in an anonymous namespace, so that no function compiled for one set can be
// linked into another. With SPEECHFT_LANES == 1 this is plain C++ for any compiler.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int W = SPEECHFT_LANES;

#if SPEECHFT_LANES == 1
using F = float;
using I = int32_t;
inline F convert(I v) { return static_cast<float>(v); }
#else
typedef float F __attribute__((vector_size(SPEECHFT_LANES * 4)));
typedef int32_t I __attribute__((vector_size(SPEECHFT_LANES * 4)));
#endif

inline F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof(F));
  return v;
}

inline void store(float* p, F v) { std::memcpy(p, &v, sizeof(F)); }

// The last vector of a row may be cut short: `count` floats are of the row.
inline F load_some(const float* p, int64_t count, float beyond) {
  if (count >= W) return load(p);
  float values[W];
  for (int k = 0; k < W; ++k) values[k] = k < count ? p[k] : beyond;
  return load(values);
}

inline void store_some(float* p, F v, int64_t count) {
  if (count >= W) return store(p, v);  // not a call of memcpy, as of a size that varies
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(float));
}

inline F splat(float s) { return F{} + s; }
inline I splat_int(int32_t s) { return I{} + s; }

inline I bits(F v) {
  I b;
  std::memcpy(&b, &v, sizeof(F));
  return b;
}

inline F from_bits(I b) {
  F v;
  std::memcpy(&v, &b, sizeof(F));
  return v;
}

// Whether a comparison holds in any lane.
#if SPEECHFT_LANES == 1
inline bool any(bool mask) { return mask; }
#else
inline bool any(I mask) {
  int64_t parts[W / 2], all = 0;
  std::memcpy(parts, &mask, sizeof(I));
  for (int64_t part : parts) all |= part;
  return all != 0;
}
#endif

constexpr float NONE = -std::numeric_limits<float>::infinity();

inline float highest(F v) {
  float parts[W], best = NONE;
  std::memcpy(parts, &v, sizeof(F));
  for (float part : parts) best = part > best ? part : best;
  return best;
}

inline double total(F v) {
  float parts[W];
  std::memcpy(parts, &v, sizeof(F));
  double sum = 0;
  for (float part : parts) sum += part;
  return sum;
}

// Of numbers; one instruction, which the compiler does not make of a comparison of vectors.
#if defined(__AVX512F__) && SPEECHFT_LANES == 16
inline F minimum(F a, F b) { return _mm512_mask_min_ps(a, 0xffff, a, b); }
inline F maximum(F a, F b) { return _mm512_mask_max_ps(a, 0xffff, a, b); }
#elif defined(__AVX2__) && SPEECHFT_LANES == 8
inline F minimum(F a, F b) { return _mm256_min_ps(a, b); }
inline F maximum(F a, F b) { return _mm256_max_ps(a, b); }
#else
inline F minimum(F a, F b) { return a < b ? a : b; }
inline F maximum(F a, F b) { return a > b ? a : b; }
#endif

// Rounded to nearest, as std::sqrt.
#if defined(__AVX512F__) && SPEECHFT_LANES == 16
inline F square_root(F v) { return _mm512_maskz_sqrt_ps(0xffff, v); }
#elif defined(__AVX2__) && SPEECHFT_LANES == 8
inline F square_root(F v) { return _mm256_sqrt_ps(v); }
#else
inline F square_root(F v) {
  float parts[W];
  std::memcpy(parts, &v, sizeof(F));
  for (float& part : parts) part = std::sqrt(part);
  return load(parts);
}
#endif

constexpr double LOG2E = 1.4426950408889634074;

// 2^x for x <= 0, exactly 0 below -126, NaN for NaN; relative error 2e-9 before rounding to float.
inline F exp2_negative(F x) {
  x = maximum(splat(-127.0f), x);  // in this order, of which the second is returned for NaN
  // 1.5 * 2^23 + 127: adding it rounds to the nearest integer, and leaves its exponent, with the
  // bias that floats have, in the lowest bits.
  const F magic = splat(12583039.0f);
  const F shifted = x + magic;
  const F f = x - (shifted - magic);
  F p = splat(1.546144457e-4f);
  p = p * f + 1.340042818e-3f;
  p = p * f + 9.618056679e-3f;
  p = p * f + 5.550327227e-2f;
  p = p * f + 2.402265092e-1f;
  p = p * f + 6.931472067e-1f;
  p = p * f + 1.0f;
  return p * from_bits(bits(shifted) << 23);
}

// P with log2((1 + z) / (1 - z)) = z * P(z^2), for z^2 <= 1/4; absolute error 4e-9.
inline F log2_series(F y) {
  F p = splat(5.126513718e-1f);
  p = p * y + 1.457405065e-1f;
  p = p * y + 3.419801937e-1f;
  p = p * y + 4.102497333e-1f;
  p = p * y + 5.771611370e-1f;
  p = p * y + 9.617953798e-1f;
  p = p * y + 2.885390085e0f;
  return p;
}

// log2 of numbers that are normal and above 0.
inline F log2_of(F x) {
  const I exponent = (bits(x) - 0x3f3504f3) >> 23;  // of the mantissa in [sqrt(1/2), sqrt(2))
  const F mantissa = from_bits(bits(x) - exponent * (1 << 23));
  const F z = (mantissa - splat(1.0f)) / (mantissa + splat(1.0f));
#if SPEECHFT_LANES == 1
  return convert(exponent) + z * log2_series(z * z);
#else
  return __builtin_convertvector(exponent, F) + z * log2_series(z * z);
#endif
}

#if SPEECHFT_LANES > 1

// Interleave the lower (or upper) halves of a and b: the step of which log2(W) transpose.
template <bool UPPER>
inline F interleave(F a, F b) {
  I mask;
  for (int k = 0; k < W; ++k) mask[k] = (UPPER ? W / 2 : 0) + k / 2 + (k % 2 ? W : 0);
  return __builtin_shuffle(a, b, mask);
}

// In place: v[r] lane c becomes v[c] lane r.
inline void transpose(F* v) {
  F t[W];
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
#pragma GCC unroll 16
    for (int k = 0; k < W / 2; ++k) {
      t[2 * k] = interleave<false>(v[k], v[k + W / 2]);
      t[2 * k + 1] = interleave<true>(v[k], v[k + W / 2]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) v[k] = t[k];
  }
}

#else

inline void transpose(F*) {}

#endif

}  // namespace
