// The median distance between the points of x (batch, N, d).
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace vimae {

template <class T>
struct Median {
  const T* x;  // contiguous
  std::int64_t batch, N, d;
  T* median;
  int threads;
};

#define VIMAE_MEDIAN(level)                                      \
  VIMAE_DECLARE_IN(level, void median_cpu(const Median<float>&); \
                   void median_cpu(const Median<double>&);)
VIMAE_EACH_LEVEL(VIMAE_MEDIAN)
#undef VIMAE_MEDIAN

}  // namespace vimae
