// The median of the distances between the points of x (batch, N, d) that are not 0; 0 if all are.
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

// The same on a GPU: all pointers are device memory.
template <class T>
struct MedianCuda {
  const T* x;
  std::int64_t batch, N, d;
  T* median;
  void* workspace;  // median_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

std::int64_t median_cuda_workspace(const MedianCuda<float>&);
std::int64_t median_cuda_workspace(const MedianCuda<double>&);
void median_cuda(const MedianCuda<float>&);
void median_cuda(const MedianCuda<double>&);

}  // namespace vimae
