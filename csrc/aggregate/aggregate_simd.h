// What the kernels of the aggregated posterior on the CPU share: log densities in bits, 2^x, and
// the weights of pairs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "aggregate/aggregate.h"
#include "common/simd.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr double kLog2TwoPi = 2.651496129472319;

// 2^x of x < 100, and 0 where that is next to nothing, of N vectors: 1.3 ulp; NaN stays NaN.
// x = n + r; in float32 the polynomials are those of least relative error with 2^0 = 1 exactly, in
// float64 it is Taylor's, whose remainder is under a tenth of an ulp. Keep a FlushSubnormals.
template <class T, int N>
VIMAE_INLINE void exp2_each(Vec<T>* x) {
  constexpr bool single = sizeof(T) == 4;
#if VIMAE_SIMD_BYTES == 64
  if constexpr (single) {
    constexpr T c[] = {0x1.e974fcp-10f, 0x1.277854p-7f, 0x1.c91ce6p-5f,
                       0x1.ebdb56p-3f,  0x1.62e4bap-1f, 1};
    // Step by step: those of one vector wait for one another, and a processor does not see far
    // enough ahead to find those of the next by itself. 0 <= r < 1, for the scaling rounds x down.
    Vec<T> r[N], p[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      r[i] = (Vec<T>)_mm512_maskz_reduce_ps(0xffff, (__m512)x[i], 9);
      p[i] = splat(c[0]);
    }
#pragma GCC unroll 8
    for (int k = 1; k < 6; ++k)
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) p[i] = p[i] * r[i] + c[k];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
      x[i] = (Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)p[i], (__m512)x[i]);
    return;
  }
#endif
  using L = Lanes<T>;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    // |r| <= 1/2. The low bits of `shifted` are n and the exponent's bias.
    const T magic = L::round_magic + T(L::exponent_bias);
    const Vec<T> shifted = x[i] + magic;
    const Vec<T> r = x[i] - (shifted - magic);
    Vec<T> p;
    if constexpr (single) {
      // In pairs, to wait for fewer results of one another.
      const Vec<T> r2 = r * r;
      p = (T(0x1.3cea88p-7f) + T(0x1.5bba16p-10f) * r) * r2 +
          (T(0x1.ebf9bcp-3f) + T(0x1.c6b752p-5f) * r);
      p = p * r2 + (T(1) + T(0x1.62e42ap-1f) * r);
    } else {
      double c[14] = {1};
      for (int k = 1; k <= 13; ++k) c[k] = c[k - 1] * kLn2 / k;
      p = splat<T>(T(c[13]));
#pragma GCC unroll 16
      for (int k = 12; k >= 0; --k) p = p * r + T(c[k]);
    }
    typename L::Int bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= L::mantissa_bits;
    Vec<T> power;
    std::memcpy(&power, &bits, sizeof power);
    x[i] = x[i] < splat<T>(single ? -100 : -1000) ? Vec<T>{} : p * power;
  }
}

template <class T>
VIMAE_INLINE Vec<T> exp2_of(Vec<T> x) {
  exp2_each<T, 1>(&x);
  return x;
}

// The larger; where b is NaN, a.
template <class T>
VIMAE_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return b > a ? b : a;
}

// x, with infinity turned into NaN.
template <class T>
T defined(T x) {
  return x + (x - x);
}

// What most pairs weigh, and for stratified weights the exceptions.
struct Weights {
  double common;
  bool stratified;
  double own, neighbour;  // times the common weight
  std::int64_t B;

  template <class Call>
  explicit Weights(const Call& a) : stratified(a.weighting == Weighting::mss), B(a.B) {
    const double N = double(a.dataset_size), M = double(a.B - 1);
    common = stratified                      ? 1 / M
             : a.weighting == Weighting::mws ? 1 / (double(a.B) * N)
                                             : 1 / double(a.B);
    own = M / N, neighbour = (N - M) / N;
  }

  // Fills the weights of a tile in units of the common one, element (i, j) at i rs + j cs, where
  // any is another.
  template <class T>
  bool tile(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns, int rs,
            int cs, int size, T* ratio) const {
    bool any = false;
    auto put = [&](std::int64_t i, std::int64_t j, double weight) {
      if (j < column || j >= column + columns) return;
      if (!any) std::fill_n(ratio, size, T(1));
      any = true;
      ratio[(i - row) * rs + (j - column) * cs] = T(weight);
    };
    if (stratified)
      for (std::int64_t i = row; i < row + rows; ++i)
        put(i, i, own), put(i, (i + 1) % B, neighbour);
    return any;
  }
};

}  // namespace
}  // namespace vimae::VIMAE_SIMD
