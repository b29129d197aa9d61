// A group of threads has a row and meets it twice: first for the largest element and the sums, then
// to write. A thread makes four neighbouring elements at a time, for they share a block of random
// words, and is the only one to touch them: what the first sweep leaves in the output for the
// second needs no barrier.

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/launch.cuh"
#include "gumbel/gumbel.h"
#include "gumbel/gumbel_math.h"

namespace vimae {
namespace {

constexpr int kThreads = 256;

struct PhiloxOps {
  static __device__ __forceinline__ std::uint64_t multiply(std::uint64_t a, std::uint32_t m) {
    return std::uint64_t(std::uint32_t(a)) * m;
  }
};

struct GumbelOps : DeviceOps {
  static __device__ __forceinline__ float split(float x, float& k) {
    const int bits = __float_as_int(x), exponent = (bits - 0x3f3504f3) & ~0x7fffff;
    k = float(exponent);
    return __int_as_float(bits - exponent);
  }
  static __device__ __forceinline__ double split(double x, double& k) {
    const long long bits = __double_as_longlong(x) - 0x3fe6a09e667f3bcdLL;
    k = double(int(bits >> 52));
    return __longlong_as_double((bits & 0xfffffffffffffLL) + 0x3fe6a09e667f3bcdLL);
  }
};

// What a thread, and in the end the group, knows of a row. Sums are of exp((z - maximum) / tau),
// alone and times the gradient; a number that is not finite among the z makes them NaN.
template <class T>
struct Sums {
  T maximum, total, dot;
};

template <class T>
struct Largest {
  T value;
  std::int64_t index;
  int undefined;  // there is a NaN
};

template <class T>
constexpr T kLeast = -std::numeric_limits<T>::max();

// In halves: the difference of two finite numbers may be infinite. `scale` is 2 / tau.
template <class T>
__device__ T weight(T z, T maximum, T scale) {
  return DeviceOps::exp_nonpositive((z * T(0.5) - maximum * T(0.5)) * scale);
}

template <class T>
__device__ Sums<T> merge(Sums<T> p, Sums<T> q, T scale) {
  const T maximum = p.maximum > q.maximum ? p.maximum : q.maximum;
  const T wp = weight(p.maximum, maximum, scale), wq = weight(q.maximum, maximum, scale);
  return {maximum, p.total * wp + q.total * wq, p.dot * wp + q.dot * wq};
}

template <class T>
__device__ Largest<T> merge(Largest<T> p, Largest<T> q, T) {
  const bool second = q.value > p.value || (q.value == p.value && q.index < p.index);
  return {second ? q.value : p.value, second ? q.index : p.index, p.undefined | q.undefined};
}

template <class T>
__device__ Sums<T> from_lane(Sums<T> s, int lanes) {
  return {__shfl_xor_sync(0xffffffffu, s.maximum, lanes),
          __shfl_xor_sync(0xffffffffu, s.total, lanes), __shfl_xor_sync(0xffffffffu, s.dot, lanes)};
}

template <class T>
__device__ Largest<T> from_lane(Largest<T> s, int lanes) {
  return {__shfl_xor_sync(0xffffffffu, s.value, lanes),
          (std::int64_t)__shfl_xor_sync(0xffffffffu, (long long)s.index, lanes),
          __shfl_xor_sync(0xffffffffu, s.undefined, lanes)};
}

// Merges what the G threads of a group have, in a fixed order; all of them get the result.
template <int G, class S, class T>
__device__ S over_group(S s, T scale) {
  for (int lanes = 1; lanes < (G < 32 ? G : 32); lanes *= 2) {
    const S other = from_lane(s, lanes);
    // Both sides of a pair merge in the same order.
    s = threadIdx.x & lanes ? merge(other, s, scale) : merge(s, other, scale);
  }
  if constexpr (G == kThreads) {
    __shared__ S warps[kThreads / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
    __syncthreads();  // fault: barrier
    s = warps[0];
    for (int w = 1; w < kThreads / 32; ++w) s = merge(s, warps[w], scale);
  }
  return s;
}

// G threads per row. The sample, or with a gradient that of the soft sample.
template <class T, int G>
__global__ void __launch_bounds__(kThreads)
    gumbel_kernel(const T* logits, const std::int64_t* seed, const T* gradient, std::int64_t batch,
                  std::int64_t K, std::int64_t share, T scale, T slope, bool hard, T* out) {
  const std::int64_t own = std::int64_t(blockIdx.x) * (kThreads / G) + threadIdx.x / G;
  // Threads without a row take part in the merging, and write nothing.
  const std::int64_t row = own < batch ? own : 0, columns = own < batch ? K : 0;
  const std::int64_t s = row / share, first = (row - s * share) * K;
  const std::uint64_t key = std::uint64_t(seed[s]), block = std::uint64_t(first / 4);
  const int early = int(first % 4), lane = int(threadIdx.x) % G;
  logits += row * K, out += row * K;
  if (gradient) gradient += row * K;

  // f(k, z) for the thread's elements.
  const auto each = [&](auto f) {
    for (std::int64_t j = lane; 4 * j - early < columns; j += G) {
      const std::uint64_t counter = block + std::uint64_t(j);
      std::uint64_t word[4];
      philox<PhiloxOps>(counter, counter >> 32, key, word);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t k = 4 * j - early + i;  // fault: 4 * j + i
        if (k < 0 || k >= columns) continue;
        const std::uint32_t w = std::uint32_t(word[i]);
        f(k, logits[k] - log_positive<GumbelOps, T>(exponential<GumbelOps, T>(T(w), T(~w))));
      }
    }
  };
  const T nan = T(NAN);
  if (hard && !gradient) {
    Largest<T> best{kLeast<T>, K, 0};
    each([&](std::int64_t k, T z) {
      best.undefined |= z != z;
      if (z > best.value || (z == best.value && best.index == K)) best.value = z, best.index = k;
    });
    best = over_group<G>(best, scale);
    const bool defined = !best.undefined && best.index < K && best.value - best.value == 0;
    for (std::int64_t k = lane; k < columns; k += G) out[k] = defined ? T(k == best.index) : nan;
    return;
  }
  Sums<T> sums{kLeast<T>, 0, 0};
  each([&](std::int64_t k, T z) {
    out[k] = z;
    const T g = gradient ? gradient[k] : T(0);
    // Without a branch: threads of a warp would take both.
    const bool higher = z > sums.maximum;
    const T w = weight(higher ? sums.maximum : z, higher ? z : sums.maximum, scale);
    sums = {higher ? z : sums.maximum, higher ? sums.total * w + 1 : sums.total + w,
            higher ? sums.dot * w + g : sums.dot + w * g};
  });
  sums = over_group<G>(sums, scale);
  const T inverse = 1 / sums.total;
  for (std::int64_t j = lane; 4 * j - early < columns; j += G)
    for (int i = 0; i < 4; ++i) {
      const std::int64_t k = 4 * j - early + i;
      if (k < 0 || k >= columns) continue;
      const T y = weight(out[k], sums.maximum, scale) * inverse;
      out[k] = gradient ? y * (gradient[k] - sums.dot * inverse) * slope : y;
    }
}

template <class T>
struct Dot {
  T dot;
};

template <class T>
__device__ Dot<T> merge(Dot<T> p, Dot<T> q, T) {
  return {p.dot + q.dot};
}

template <class T>
__device__ Dot<T> from_lane(Dot<T> s, int lanes) {
  return {__shfl_xor_sync(0xffffffffu, s.dot, lanes)};
}

template <class T, int G>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* sample, const T* gradient, std::int64_t batch, std::int64_t K, T slope,
                    T* out) {
  const std::int64_t own = std::int64_t(blockIdx.x) * (kThreads / G) + threadIdx.x / G;
  const std::int64_t at = (own < batch ? own : 0) * K, columns = own < batch ? K : 0;
  Dot<T> sum{0};
  for (std::int64_t k = threadIdx.x % G; k < columns; k += G)
    sum.dot += sample[at + k] * gradient[at + k];
  sum = over_group<G>(sum, slope);
  for (std::int64_t k = threadIdx.x % G; k < columns; k += G)
    out[at + k] = sample[at + k] * (gradient[at + k] - sum.dot) * slope;
}

// Calls f with the number of threads for rows of this many elements per thread.
template <class F>
void by_row(std::int64_t threads, F f) {
  if (threads <= 8)
    f(std::integral_constant<int, 4>{});
  else if (threads <= 256)
    f(std::integral_constant<int, 32>{});
  else
    f(std::integral_constant<int, kThreads>{});
}

template <class T>
void run(const GumbelCuda<T>& a) {
  by_row((a.K + 6) / 4, [&](auto g) {
    constexpr int G = g.value, rows = kThreads / G;
    launch(gumbel_kernel<T, G>, dim3(unsigned((a.batch + rows - 1) / rows)), kThreads,
           static_cast<cudaStream_t>(a.stream), a.logits, a.seed, a.gradient, a.batch, a.K,
           a.batch / a.seeds, normal<T>(2 / a.tau), normal<T>(1 / a.tau), a.hard, a.out);
  });
}

template <class T>
void run(const GumbelBackwardCuda<T>& a) {
  by_row((a.K + 3) / 4, [&](auto g) {
    constexpr int G = g.value, rows = kThreads / G;
    launch(backward_kernel<T, G>, dim3(unsigned((a.batch + rows - 1) / rows)), kThreads,
           static_cast<cudaStream_t>(a.stream), a.sample, a.gradient, a.batch, a.K,
           normal<T>(1 / a.tau), a.out);
  });
}

}  // namespace

void gumbel_cuda(const GumbelCuda<float>& a) { run(a); }
void gumbel_cuda(const GumbelCuda<double>& a) { run(a); }
void gumbel_backward_cuda(const GumbelBackwardCuda<float>& a) { run(a); }
void gumbel_backward_cuda(const GumbelBackwardCuda<double>& a) { run(a); }

}  // namespace vimae
