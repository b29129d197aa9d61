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

constexpr double kLog2TwoPi = 2.651496129472319;

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
