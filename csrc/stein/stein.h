// The Stein variational gradient phi of z (batch, n, d): with f(s) the kernel of s = ||z_i -
// z_j||^2 and e = z_i - z_j,
//
//   phi_i = 1/n sum_j f score_j - 2 f' e     and for the standard normal, whose score is -z,
//   phi_i = 1/n [ sum_j (f - 2 f') e  -  z_i sum_j f ].
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/kernel.h"

namespace vimae {

// All arrays are contiguous.
template <class T>
struct Stein {
  const T* z;
  const T* score;  // (batch, n, d), or null: the standard normal
  std::int64_t batch, n, d;
  Family family;
  const double* scales;
  int n_scales;
  T* phi;  // (batch, n, d)
  int threads;
};

#define VIMAE_STEIN(level)                                     \
  VIMAE_DECLARE_IN(level, void stein_cpu(const Stein<float>&); \
                   void stein_cpu(const Stein<double>&);)
VIMAE_EACH_LEVEL(VIMAE_STEIN)
#undef VIMAE_STEIN

// The same on a GPU: arrays are device memory.
template <class T>
struct SteinCuda {
  const T* z;
  const T* score;
  std::int64_t batch, n, d;
  Family family;
  const double* scales;  // host memory, at most kMaxScales
  int n_scales;
  T* phi;
  void* workspace;  // stein_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

std::int64_t stein_cuda_workspace(const SteinCuda<float>&);
std::int64_t stein_cuda_workspace(const SteinCuda<double>&);
// Launches and returns: nothing is allocated, nothing waits.
void stein_cuda(const SteinCuda<float>&);
void stein_cuda(const SteinCuda<double>&);

}  // namespace vimae
