// The squared kernel Stein discrepancy of x (batch, n, d), and its gradients.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/kernel.h"

namespace vimae {

// All arrays are contiguous.
template <class T>
struct KSD {
  const T* x;
  const T* score_x;  // (batch, n, d), or null: the standard normal, whose score is -x
  // With `pairs` alone, and null there with m = 0; score_y is null where score_x is.
  const T* y;
  const T* score_y;
  std::int64_t batch, n, m, d;
  Family family;
  const double* scales;  // host memory; on a GPU at most kMaxScales
  int n_scales;
  bool unbiased;
  // Outputs; a null gradient is not computed. Without a score dx is the whole gradient; with one it
  // is that at a fixed score, and dscore_x the gradient by the score (with dx only).
  T* value;     // (batch)
  T* dx;        // (batch, n, d)
  T* dscore_x;  // (batch, n, d)
  // (batch); where it is set, in place of value: the mean of u over the pairs of x and y or, with m
  // = 0, over those of two different points of x; and the gradients are those of this mean by x and
  // score_x alone.
  double* pairs;
  int threads;
  void* workspace;  // on a GPU, ksd_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

VIMAE_CPU(ksd_cpu, KSD<float>)
VIMAE_CPU(ksd_cpu, KSD<double>)

// Launches and returns: nothing is allocated, nothing waits.
void ksd_cuda(const KSD<float>&);
void ksd_cuda(const KSD<double>&);
std::int64_t ksd_cuda_workspace(const KSD<float>&);
std::int64_t ksd_cuda_workspace(const KSD<double>&);

}  // namespace vimae
