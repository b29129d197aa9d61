// Samples of the Gumbel-softmax, soft and one-hot, and the gradient from a soft one.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace vimae {

// The temperature: `same` for all rows or, if `rows` is not null, rows[b * stride] for row b. What
// is no temperature there, zero or less or NaN, makes its row NaN: memory of a GPU cannot be looked
// at before.
template <class T>
struct Tau {
  double same;
  const T* rows;
  std::int64_t stride;
};

template <class T>
struct Gumbel {
  const T* logits;  // (batch, K), contiguous
  // (seeds): consecutive rows share one, batch / seeds rows each, and number their elements from 0.
  const std::int64_t* seed;
  std::int64_t batch, K, seeds;
  Tau<T> tau;
  T *soft, *one_hot;  // (batch, K), of which one may be null
  int threads;
  void* workspace;  // on a GPU, unused
  void* stream;     // cudaStream_t
};

// The gradient in the logits from the soft sample; all contiguous (batch, K).
template <class T>
struct GumbelBackward {
  const T* sample;
  const T* gradient;
  std::int64_t batch, K;
  Tau<T> tau;
  T* out;
  int threads;
  void* workspace;  // on a GPU, unused
  void* stream;     // cudaStream_t
};

VIMAE_CPU(gumbel_cpu, Gumbel<float>)
VIMAE_CPU(gumbel_cpu, Gumbel<double>)
VIMAE_CPU(gumbel_backward_cpu, GumbelBackward<float>)
VIMAE_CPU(gumbel_backward_cpu, GumbelBackward<double>)

// Launches and returns: nothing is allocated, nothing waits.
void gumbel_cuda(const Gumbel<float>&);
void gumbel_cuda(const Gumbel<double>&);
inline std::int64_t gumbel_cuda_workspace(const Gumbel<float>&) { return 0; }
inline std::int64_t gumbel_cuda_workspace(const Gumbel<double>&) { return 0; }
void gumbel_backward_cuda(const GumbelBackward<float>&);
void gumbel_backward_cuda(const GumbelBackward<double>&);
inline std::int64_t gumbel_backward_cuda_workspace(const GumbelBackward<float>&) { return 0; }
inline std::int64_t gumbel_backward_cuda_workspace(const GumbelBackward<double>&) { return 0; }

}  // namespace vimae
