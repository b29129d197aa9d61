// Samples of the Gumbel-softmax, soft or one-hot, and their gradient.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace vimae {

template <class T>
struct Gumbel {
  const T* logits;  // (batch, K), contiguous
  // (seeds): consecutive rows share one, batch / seeds rows each, and number their elements from 0.
  const std::int64_t* seed;
  // Null for the sample; (batch, K) for its gradient in the logits, which `hard` does not change.
  const T* gradient;
  std::int64_t batch, K, seeds;
  double tau;
  bool hard;
  T* out;  // (batch, K)
  int threads;
};

// The gradient in the logits from the soft sample itself; all contiguous (batch, K).
template <class T>
struct GumbelBackward {
  const T* sample;
  const T* gradient;
  std::int64_t batch, K;
  double tau;
  T* out;
  int threads;
};

#define VIMAE_GUMBEL(level)                                                \
  VIMAE_DECLARE_IN(level, void gumbel_cpu(const Gumbel<float>&);           \
                   void gumbel_cpu(const Gumbel<double>&);                 \
                   void gumbel_backward_cpu(const GumbelBackward<float>&); \
                   void gumbel_backward_cpu(const GumbelBackward<double>&);)
VIMAE_EACH_LEVEL(VIMAE_GUMBEL)
#undef VIMAE_GUMBEL

// The same on a GPU: all pointers are device memory.
template <class T>
struct GumbelCuda {
  const T* logits;
  const std::int64_t* seed;
  const T* gradient;
  std::int64_t batch, K, seeds;
  double tau;
  bool hard;
  T* out;
  void* stream;  // cudaStream_t
};

template <class T>
struct GumbelBackwardCuda {
  const T* sample;
  const T* gradient;
  std::int64_t batch, K;
  double tau;
  T* out;
  void* stream;
};

// Launches and returns: nothing is allocated, nothing waits.
void gumbel_cuda(const GumbelCuda<float>&);
void gumbel_cuda(const GumbelCuda<double>&);
void gumbel_backward_cuda(const GumbelBackwardCuda<float>&);
void gumbel_backward_cuda(const GumbelBackwardCuda<double>&);

}  // namespace vimae
