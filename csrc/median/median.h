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
  void* workspace;  // on a GPU, median_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

constexpr int kMedianDigit = 11;  // bits

// One pass of the radix selection, for the pairs of a part of all `parts`: how many of the squared
// distances have the leading `known` bits `prefix`, by their next `digit` bits. The sign, which is
// 0, is the first bit.
template <class T>
struct MedianCounts {
  const T* x;                  // contiguous
  const std::int64_t* prefix;  // (batch)
  std::int64_t batch, N, d, part, parts;
  int known, digit;        // at most kMedianDigit
  std::int64_t* counts;    // (batch, 1 << digit)
  std::int64_t* coincide;  // (batch): pairs at distance 0, where known is 1; 0 otherwise
  int threads;
  void* workspace;  // on a GPU, median_counts_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

VIMAE_CPU(median_cpu, Median<float>)
VIMAE_CPU(median_cpu, Median<double>)
VIMAE_CPU(median_counts_cpu, MedianCounts<float>)
VIMAE_CPU(median_counts_cpu, MedianCounts<double>)

// Launches and returns: nothing is allocated, nothing waits.
void median_cuda(const Median<float>&);
void median_cuda(const Median<double>&);
std::int64_t median_cuda_workspace(const Median<float>&);
std::int64_t median_cuda_workspace(const Median<double>&);

}  // namespace vimae
