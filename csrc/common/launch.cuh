// Launching a kernel, on a GPU or, in the tests, on the host.
#pragma once

#ifdef VIMAE_HOST_SHIM
#include "testing/cuda_shim.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace vimae {

inline void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, int threads, cudaStream_t stream, A... args) {
  // clang-format off
  kernel<<<grid, threads, 0, stream>>>(static_cast<P>(args)...);
  // clang-format on
  check(cudaGetLastError());
}

}  // namespace vimae

#endif

namespace vimae {
namespace {

// Blocks that keep a large GPU busy. Few on the host, where a test of more would take minutes.
#ifdef VIMAE_HOST_SHIM
constexpr int kBlocksOfGpu = 32;
#else
constexpr int kBlocksOfGpu = 1024;
#endif

// What exp_scaled counts in.
template <class T>
constexpr T kExpUnit = sizeof(T) == 4 ? T(1.4426950408889634) : T(1);

// Scalars, as the arithmetic of a pair wants them.
struct DeviceOps {
  // 1 ulp in one instruction, where IEEE division takes eight.
  static __device__ __forceinline__ float reciprocal(float x) {
#ifdef VIMAE_HOST_SHIM
    return 1.0f / x;
#else
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#endif
  }
  static __device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

  // exp(x / kExpUnit) for x <= 0: 2 ulp in float, which has one instruction for powers of two, and
  // 0 where the result would be subnormal.
  static __device__ __forceinline__ float exp_scaled(float x) {
#ifdef VIMAE_HOST_SHIM
    return exp2f(x);
#else
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#endif
  }
  static __device__ __forceinline__ double exp_scaled(double x) { return exp(x); }

  template <class T>
  static __device__ __forceinline__ T exp_nonpositive(T x) {
    return exp_scaled(x * kExpUnit<T>);
  }

  // The rate is the same for all pairs: its product with the unit leaves their loop.
  template <class T>
  static __device__ __forceinline__ T exp_of_product(T s, T rate) {
    return exp_scaled(s * (rate * kExpUnit<T>));
  }
};

// The sum over a block of THREADS, in a fixed order; only thread 0 has it. Ends with all threads
// past the buffer.
template <int THREADS>
__device__ double block_sum(double x) {
  __shared__ double buffer[THREADS];
  buffer[threadIdx.x] = x;
  for (int width = THREADS / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) buffer[threadIdx.x] += buffer[threadIdx.x + width];
  }
  __syncthreads();
  return buffer[0];
}

}  // namespace
}  // namespace vimae
