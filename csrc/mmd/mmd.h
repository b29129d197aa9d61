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
  const double* scales;
  int n_scales;
  bool unbiased;
  // Outputs, contiguous. value is null for the Hessian-vector product; a null gradient is not
  // computed.
  T* value;
  T* dx;
  T* dy;
  int threads;
  // Where it is set, in place of all this and of value: the mean of k over the pairs of x and y or,
  // with m = 0, over those of two different points of x; and the gradients are those of this mean.
  double* pairs;
};

#define VIMAE_MMD(level) \
  VIMAE_DECLARE_IN(level, void mmd_cpu(const MMD<float>&); void mmd_cpu(const MMD<double>&);)
VIMAE_EACH_LEVEL(VIMAE_MMD)
#undef VIMAE_MMD

// The same on a GPU: all pointers are device memory, x and y have contiguous rows and any batch
// stride.
template <class T>
struct MMDCuda {
  const T* x;
  const T* y;
  std::int64_t x_batch_stride, y_batch_stride;
  const T* vx;
  const T* vy;
  std::int64_t batch, n, m, d;
  Family family;
  const double* scales;  // host memory, at most kMaxScales
  int n_scales;
  bool unbiased;
  T* value;
  T* dx;
  T* dy;
  double* pairs;
  void* workspace;  // mmd_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

std::int64_t mmd_cuda_workspace(const MMDCuda<float>&);
std::int64_t mmd_cuda_workspace(const MMDCuda<double>&);
// Launches and returns: nothing is allocated, nothing waits.
void mmd_cuda(const MMDCuda<float>&);
void mmd_cuda(const MMDCuda<double>&);

}  // namespace vimae
