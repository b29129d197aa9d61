// Runs CUDA kernels on the host, for tests under AddressSanitizer and UBSan. Where VIMAE_HOST_SHIM
// is defined, common/launch.cuh includes this in place of the CUDA runtime.
//
// Blocks run one after another. The threads of a block are fibres: each runs until it waits, so the
// run is deterministic, and two conflicting accesses that no barrier separates happen in one order
// with Order::forward and in the other with Order::reverse. Shared memory is static storage, filled
// with 0xff (NaN, -1) before every block. Kernels must be in an unnamed namespace: ASan guards no
// variables that the linker may merge.
//
// What is wrong with the use of barriers and shuffles leaves launch() as a cuda_shim::Error.
//
// Not here: dynamic shared memory, float atomics, and threads that spin until another one writes.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// The linker script cuda_shim.ld collects what is noinit, so that it can be filled.
#ifdef VIMAE_SHIM_FILLS_SHARED
#define __shared__ static __attribute__((noinit))
#else
#define __shared__ static
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace cuda_shim {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// In which order the warps of a block, and the lanes of a warp, run between two barriers.
enum class Order { forward, reverse, shuffled };
void set_order(Order order, unsigned seed = 0);

// A place in the source. Barriers have one, and so have the planted faults of host_cuda.cmake.
struct Place {
  std::string file;  // without folders
  int line;
};
// The barrier at this place does not wait, and the fault planted there acts. Line 0: no fault.
void set_fault(const Place& place);
// The same from the command line, `--fault=mmd_cuda.cu:114`; true if there was one.
bool set_fault(int argc, char** argv);
bool fault(const char* file, int line);
// The barriers met so far.
std::vector<Place> barriers();

// Runs `thread` as every thread of every block.
void run(dim3 grid, int threads, const std::function<void()>& thread);

void barrier(const char* file, int line);
// Waits for the lanes of `mask`, then returns `bits` of the lane `source`, which may be this one.
std::uint64_t shuffle(unsigned mask, std::uint64_t bits, int source, const char* file, int line);
// Every lane's values, at most kGathered, once all 32 are here. They stay until the call after the
// next.
constexpr int kGathered = 8;
const double (*gather(const double* values, int count, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()))[kGathered];
int lane();

template <class T>
T shuffle(unsigned mask, T value, int source, int width, const char* file, int line) {
  static_assert(sizeof(T) <= 8 && std::is_arithmetic_v<T>);
  const int first = lane() / width * width;
  if (source < first || source >= first + width) source = lane();
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace cuda_shim

#define VIMAE_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(VIMAE_CALLER) { cuda_shim::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, VIMAE_CALLER) {
  cuda_shim::shuffle(mask, 0, cuda_shim::lane(), file, line);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, VIMAE_CALLER) {
  const int first = cuda_shim::lane() / width * width;
  return cuda_shim::shuffle(mask, value, first + (source & (width - 1)), width, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, VIMAE_CALLER) {
  return cuda_shim::shuffle(mask, value, cuda_shim::lane() + int(delta), width, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, VIMAE_CALLER) {
  return cuda_shim::shuffle(mask, value, cuda_shim::lane() - int(delta), width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, VIMAE_CALLER) {
  return cuda_shim::shuffle(mask, value, cuda_shim::lane() ^ lanes, width, file, line);
}
#undef VIMAE_CALLER

template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
}

template <class T>
T __ldg(const T* at) {
  return *at;
}

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return ::fmin(T(a), T(b));
  else
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return ::fmax(T(a), T(b));
  else
    return T(a) < T(b) ? T(b) : T(a);
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1 / ::sqrt(double(x))); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline int __float_as_int(float x) { return cuda_shim::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_shim::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_shim::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_shim::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_shim::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_shim::bit_cast<double>(x); }

struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

namespace vimae {

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, int threads, cudaStream_t, A... args) {
  cuda_shim::run(grid, threads, [=] { kernel(static_cast<P>(args)...); });
}

}  // namespace vimae
