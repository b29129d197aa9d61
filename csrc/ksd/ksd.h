// The squared kernel Stein discrepancy of z (batch, n, d), and its gradients.
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/kernel.h"

namespace vimae {

// All arrays are contiguous.
template <class T>
struct KSD {
  const T* z;
  const T* score;  // (batch, n, d), or null: the standard normal, whose score is -z
  std::int64_t batch, n, d;
  Family family;
  const double* scales;
  int n_scales;
  bool unbiased;
  // Outputs; a null gradient is not computed. Without a score dz is the whole gradient; with one it
  // is that at a fixed score, and dscore the gradient by the score (with dz only).
  T* value;   // (batch)
  T* dz;      // (batch, n, d)
  T* dscore;  // (batch, n, d)
  int threads;
};

#define VIMAE_KSD(level) \
  VIMAE_DECLARE_IN(level, void ksd_cpu(const KSD<float>&); void ksd_cpu(const KSD<double>&);)
VIMAE_EACH_LEVEL(VIMAE_KSD)
#undef VIMAE_KSD

// The same on a GPU: arrays are device memory.
template <class T>
struct KSDCuda {
  const T* z;
  const T* score;
  std::int64_t batch, n, d;
  Family family;
  const double* scales;  // host memory, at most kMaxScales
  int n_scales;
  bool unbiased;
  T* value;
  T* dz;
  T* dscore;
  void* workspace;  // ksd_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

std::int64_t ksd_cuda_workspace(const KSDCuda<float>&);
std::int64_t ksd_cuda_workspace(const KSDCuda<double>&);
// Launches and returns: nothing is allocated, nothing waits.
void ksd_cuda(const KSDCuda<float>&);
void ksd_cuda(const KSDCuda<double>&);

}  // namespace vimae
