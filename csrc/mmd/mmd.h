// Squared MMD of x (batch, n, d) and y (batch, m, d), its first gradient and its Hessian-vector
// product. With m = 0 the terms of y vanish.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/kernel.h"

namespace vimae {

template <class T>
struct MMD {
  const T* x;
  const T* y;
  // Rows are contiguous; a batch stride of 0 repeats one problem's samples.
  std::int64_t x_batch_stride, y_batch_stride;
  // The direction of the Hessian-vector product, contiguous; null for value and gradient.
  const T* vx;
  const T* vy;
  std::int64_t batch, n, m, d;
  Family family;
  const double* scales;  // host memory; on a GPU at most kMaxScales
  int n_scales;
  bool unbiased;
  // Outputs, contiguous. value is null for the Hessian-vector product; a null gradient is not
  // computed.
  T* value;
  T* dx;
  T* dy;
  // (batch); where it is set, in place of value: the mean of k over the pairs of x and y or, with m
  // = 0, over those of two different points of x; and the gradients are those of this mean.
  double* pairs;
  int threads;
  void* workspace;  // on a GPU, mmd_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

VIMAE_CPU(mmd_cpu, MMD<float>)
VIMAE_CPU(mmd_cpu, MMD<double>)

// Launches and returns: nothing is allocated, nothing waits.
void mmd_cuda(const MMD<float>&);
void mmd_cuda(const MMD<double>&);
std::int64_t mmd_cuda_workspace(const MMD<float>&);
std::int64_t mmd_cuda_workspace(const MMD<double>&);

}  // namespace vimae
