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
#ifdef VIMAE_HOST_SHIM
    return std::uint64_t(std::uint32_t(a)) * m;
#else
    // One instruction, where the compiler adds zero to the upper half.
    std::uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(std::uint32_t(a)), "r"(m));
    return product;
#endif
  }
};

struct GumbelOps : DeviceOps {
  // split(x, k), where `bits` are not those of k, and where they are all 0, f does not count.
  static __device__ __forceinline__ float split(float x, float& k, int bits = -1) {
    const int all = __float_as_int(x), exponent = (all - 0x3f3504f3) & ~0x7fffff & bits;
    k = float(exponent);
    return __int_as_float(all - exponent);
  }
  static __device__ __forceinline__ double split(double x, double& k, int bits = -1) {
    const long long all = __double_as_longlong(x) - 0x3fe6a09e667f3bcdLL;
    k = double(int(all >> 52) & bits);
    return __longlong_as_double((all & 0xfffffffffffffLL) + 0x3fe6a09e667f3bcdLL);
  }
};

// exponential() of gumbel_math.h with one conversion: of u and 1 - u the smaller is made.
template <class T>
__device__ __forceinline__ T exponential(std::uint32_t word) {
  const bool large = word > 1257966796u;  // u > 1 - sqrt(1/2)
  const int all = large ? -1 : 0;
  const T v = fma(T(word ^ std::uint32_t(all)), T(0x1p-32), T(0x1p-33));
  T k;
  const T f = GumbelOps::split(v, k, all);
  return add_log2<T>(-k, -log1p_near<GumbelOps, T>(large ? f - T(1) : -v));
}

// What a thread, and in the end the group, knows of a row. The sum is of exp((z - maximum) / tau);
// a number that is not finite among the z makes it NaN, one that is no temperature too.
template <class T>
struct Sum {
  T maximum, total;
};

// And the first element that has the maximum; K if none is.
template <class T>
struct SumAndPlace {
  Sum<T> sum;
  std::int64_t index;
};

template <class T>
struct Largest {
  T value;
  std::int64_t index;
  int undefined;  // there is a NaN
};

// exp(-|p - q| / tau), in halves: the difference of two finite numbers may be infinite. `scale` is
// 2 / tau in units of exp_scaled.
template <class T>
__device__ T weight(T p, T q, T scale) {
  return DeviceOps::exp_scaled(-fabs((p * T(0.5) - q * T(0.5)) * scale));
}

template <class T>
__device__ Sum<T> merge(Sum<T> p, Sum<T> q, T scale) {
  const T maximum = p.maximum > q.maximum ? p.maximum : q.maximum;
  return {maximum, p.total * weight(p.maximum, maximum, scale) +
                       q.total * weight(q.maximum, maximum, scale)};
}

template <class T>
__device__ SumAndPlace<T> merge(SumAndPlace<T> p, SumAndPlace<T> q, T scale) {
  const bool second =
      q.sum.maximum > p.sum.maximum || (q.sum.maximum == p.sum.maximum && q.index < p.index);
  return {merge(p.sum, q.sum, scale), second ? q.index : p.index};
}

template <class T>
__device__ Largest<T> merge(Largest<T> p, Largest<T> q, T) {
  const bool second = q.value > p.value || (q.value == p.value && q.index < p.index);
  return {second ? q.value : p.value, second ? q.index : p.index, p.undefined | q.undefined};
}

template <class T>
__device__ Sum<T> from_lane(Sum<T> s, int lanes) {
  return {__shfl_xor_sync(0xffffffffu, s.maximum, lanes),
          __shfl_xor_sync(0xffffffffu, s.total, lanes)};
}

template <class T>
__device__ SumAndPlace<T> from_lane(SumAndPlace<T> s, int lanes) {
  return {from_lane(s.sum, lanes),
          (std::int64_t)__shfl_xor_sync(0xffffffffu, (long long)s.index, lanes)};
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

// `rate`, which is that of `tau.same`, or that of a row.
template <class T>
__device__ __forceinline__ T rate_of(T rate, T numerator, Tau<T> tau, std::int64_t row) {
  return tau.rows ? over_tau<T>(numerator, tau.rows[row * tau.stride]) : rate;
}

enum class Wanted { soft, hard, both };

// G threads per row.
template <class T, int G, Wanted W>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 3)
    gumbel_kernel(const T* logits, const std::int64_t* seed, std::int64_t batch, std::int64_t K,
                  std::int64_t share, T same, Tau<T> tau, T* soft, T* one_hot) {
  const std::int64_t own = std::int64_t(blockIdx.x) * (kThreads / G) + threadIdx.x / G;
  // Threads without a row take part in the merging, and write nothing.
  const std::int64_t row = own < batch ? own : 0, columns = own < batch ? K : 0;
  const std::int64_t s = row / share, first = (row - s * share) * K;
  const std::uint64_t key = std::uint64_t(seed[s]);
  const T scale = rate_of(same, 2 * kExpUnit<T>, tau, row);
  const int early = int(first % 4), lane = int(threadIdx.x) % G;
  // Of the thread's first block, which begins up to three elements before the row.
  const std::int64_t start = 4 * lane - early, at = row * K + start;
  const T* from = logits + at;
  T* to = (W == Wanted::hard ? one_hot : soft) + at;

  // The thread's blocks, and which elements of the last one are in the row.
  const std::int64_t left = columns - start;
  const int blocks = left > 0 ? int((left + 4 * G - 1) / (4 * G)) : 0;
  const std::uint32_t last =
      15u >> (4 - min(left - (blocks - std::int64_t(1)) * 4 * G, std::int64_t(4)));

  // f(i, inside, noise) for the elements of the thread's blocks, to which from and to + i then
  // point. Those that are not in the row are made as well, without a branch.
  const auto each = [&](auto f) {
    std::uint64_t counter = std::uint64_t(first / 4) + std::uint64_t(lane);
    std::uint32_t inside = lane == 0 ? 15u << early : 15u;  // fault: 15u
    for (int block = blocks; block > 0; --block) {
      std::uint64_t word[4];
      philox<PhiloxOps>(counter, counter >> 32, key, word);
      if (block == 1) inside &= last;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        f(i, inside >> i & 1, log_positive<GumbelOps, T>(exponential<T>(std::uint32_t(word[i]))));
      counter += G, inside = 15, from += 4 * G, to += 4 * G;
    }
  };
  T most = W == Wanted::soft ? -kMost<T> : -T(INFINITY);
  // Counted among the thread's elements: a row of 2^40 would not fit in memory.
  std::uint32_t number = 0, found = ~0u;
  const auto place = [&] {
    return found == ~0u ? K : start + std::int64_t(found / 4) * 4 * G + found % 4;
  };
  if constexpr (W == Wanted::hard) {
    bool undefined = false;
    each([&](int i, bool inside, T noise) {
      const T z = (inside ? from[i] : -T(INFINITY)) - noise;
      undefined |= z != z;
      found = z > most ? number : found;
      most = z > most ? z : most;
      ++number;
    });
    Largest<T> best{most, place(), undefined};
    best = over_group<G>(best, scale);
    const bool defined =
        !best.undefined && best.index < K && best.value - best.value == 0 && scale == scale;
    one_hot += row * K;
    for (std::int64_t k = lane; k < columns; k += G)
      one_hot[k] = defined ? T(k == best.index) : kNaN<T>;
  } else {
    T total = 0;
    each([&](int i, bool inside, T noise) {
      const T z = (inside ? from[i] : -T(INFINITY)) - noise;
      if (inside) to[i] = z;
      // Without a branch: threads of a warp would take both.
      const bool higher = z > most;
      const T w = weight(z, W == Wanted::soft ? most : max(most, -kMost<T>), scale);
      most = higher ? z : most;
      total = higher ? total * w + 1 : total + w;
      if constexpr (W == Wanted::both) {
        found = higher ? number : found;
        ++number;
      }
    });
    const Sum<T> own_sum{max(most, -kMost<T>), total};
    Sum<T> sum;
    std::int64_t index = K;
    if constexpr (W == Wanted::soft) {
      sum = over_group<G>(own_sum, scale);
    } else {
      const SumAndPlace<T> best = over_group<G>(SumAndPlace<T>{own_sum, place()}, scale);
      sum = best.sum, index = best.index;
    }
    const T inverse = 1 / sum.total;
    const bool defined = sum.total == sum.total && index < K;
    soft += row * K;
    if constexpr (W == Wanted::both) one_hot += row * K;
    for (std::int64_t j = start; j < columns; j += 4 * G)
      for (std::int64_t k = max(j, std::int64_t(0)); k < min(j + 4, columns); ++k) {
        soft[k] = weight(soft[k], sum.maximum, scale) * inverse;
        if constexpr (W == Wanted::both) one_hot[k] = defined ? T(k == index) : kNaN<T>;
      }
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
    backward_kernel(const T* sample, const T* gradient, std::int64_t batch, std::int64_t K, T same,
                    Tau<T> tau, T* out) {
  const std::int64_t own = std::int64_t(blockIdx.x) * (kThreads / G) + threadIdx.x / G;
  const std::int64_t row = own < batch ? own : 0, columns = own < batch ? K : 0, at = row * K;
  const T slope = rate_of(same, T(1), tau, row);
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
void run(const Gumbel<T>& a) {
  by_row((a.K + 6) / 4, [&](auto g) {
    constexpr int G = g.value, rows = kThreads / G;
    const auto kernel = !a.one_hot ? gumbel_kernel<T, G, Wanted::soft>
                        : !a.soft  ? gumbel_kernel<T, G, Wanted::hard>
                                   : gumbel_kernel<T, G, Wanted::both>;
    launch(kernel, dim3(unsigned((a.batch + rows - 1) / rows)), kThreads,
           static_cast<cudaStream_t>(a.stream), a.logits, a.seed, a.batch, a.K, a.batch / a.seeds,
           over_tau<T>(2.0 * kExpUnit<T>, a.tau.same), a.tau, a.soft, a.one_hot);
  });
}

template <class T>
void run(const GumbelBackward<T>& a) {
  by_row((a.K + 3) / 4, [&](auto g) {
    constexpr int G = g.value, rows = kThreads / G;
    launch(backward_kernel<T, G>, dim3(unsigned((a.batch + rows - 1) / rows)), kThreads,
           static_cast<cudaStream_t>(a.stream), a.sample, a.gradient, a.batch, a.K,
           over_tau<T>(1.0, a.tau.same), a.tau, a.out);
  });
}

}  // namespace

void gumbel_cuda(const Gumbel<float>& a) { run(a); }
void gumbel_cuda(const Gumbel<double>& a) { run(a); }
void gumbel_backward_cuda(const GumbelBackward<float>& a) { run(a); }
void gumbel_backward_cuda(const GumbelBackward<double>& a) { run(a); }

}  // namespace vimae
