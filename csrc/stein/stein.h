// The Stein variational gradient phi at x (batch, n, d) of the points y (batch, m, d): with f(s)
// the kernel of s = ||x_i - y_j||^2 and e = x_i - y_j,
//
//   phi_i = 1/m sum_j f score_j - 2 f' e     and for the standard normal, whose score is -y,
//   phi_i = 1/m [ sum_j (f - 2 f') e  -  x_i sum_j f ].
#pragma once

#include <cstdint>

#include "common/dispatch.h"
#include "common/kernel.h"

namespace vimae {

// All arrays are contiguous.
template <class T>
struct Stein {
  const T* x;
  const T* y;      // or null: x, with m = n
  const T* score;  // (batch, m, d), or null: the standard normal
  std::int64_t batch, n, m, d;
  Family family;
  const double* scales;  // host memory; on a GPU at most kMaxScales
  int n_scales;
  T* phi;  // (batch, n, d)
  int threads;
  void* workspace;  // on a GPU, stein_cuda_workspace bytes
  void* stream;     // cudaStream_t
};

VIMAE_CPU(stein_cpu, Stein<float>)
VIMAE_CPU(stein_cpu, Stein<double>)

// Launches and returns: nothing is allocated, nothing waits.
void stein_cuda(const Stein<float>&);
void stein_cuda(const Stein<double>&);
std::int64_t stein_cuda_workspace(const Stein<float>&);
std::int64_t stein_cuda_workspace(const Stein<double>&);

}  // namespace vimae
