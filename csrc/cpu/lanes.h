// A vector of SPEECHFT_LANES floats and the few functions that the kernels need on it.
//
// Included by one source file per instruction set, each with its own SPEECHFT_LANES and compiler
// flags; everything is in an anonymous namespace, so that no function compiled for one set can be
// linked into another. With SPEECHFT_LANES == 1 this is plain C++ for any compiler.
#pragma once

#include <cstdint>
#include <cstring>

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

inline F minimum(F a, F b) { return a < b ? a : b; }
inline F maximum(F a, F b) { return a > b ? a : b; }

// 2^x for x <= 0, exactly 0 below -126; relative error 2e-9 before rounding to float.
inline F exp2_negative(F x) {
  x = maximum(x, splat(-127.0f));
  const F magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const F shifted = x + magic;
  const F f = x - (shifted - magic);
  F p = splat(1.546144457e-4f);
  p = p * f + 1.340042818e-3f;
  p = p * f + 9.618056679e-3f;
  p = p * f + 5.550327227e-2f;
  p = p * f + 2.402265092e-1f;
  p = p * f + 6.931472067e-1f;
  p = p * f + 1.0f;
  const I exponent = bits(shifted) - bits(magic) + 127;
  return p * from_bits(exponent << 23);
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
