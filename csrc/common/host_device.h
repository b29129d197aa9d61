// Functions that both the CPU loops and the CUDA kernels call.
#pragma once

#if defined(__CUDACC__)
#define VIMAE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VIMAE_HOST_DEVICE inline __attribute__((always_inline))
#endif
