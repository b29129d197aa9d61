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
  std::int64_t batch, K, seeds;
  Tau<T> tau;
  T *soft, *one_hot;
  void* stream;  // cudaStream_t
};

template <class T>
struct GumbelBackwardCuda {
  const T* sample;
  const T* gradient;
  std::int64_t batch, K;
  Tau<T> tau;
  T* out;
  void* stream;
};

// Launches and returns: nothing is allocated, nothing waits.
void gumbel_cuda(const GumbelCuda<float>&);
void gumbel_cuda(const GumbelCuda<double>&);
void gumbel_backward_cuda(const GumbelBackwardCuda<float>&);
void gumbel_backward_cuda(const GumbelBackwardCuda<double>&);

}  // namespace vimae
