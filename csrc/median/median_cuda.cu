// Bisection on the bits of the squared distance, which order as the distance does: every step
// counts the pairs up to a threshold. Nothing is stored per pair and nothing is approximated; the
// bounds live on the GPU.

#include <cstdint>

#include "common/launch.cuh"
#include "common/tiles.cuh"
#include "median/median.h"

namespace vimae {
namespace {

// A tile's side; a thread has kOwn x kOwn of its pairs.
constexpr int kSide = 64, kOwn = 4, kThreads = 256;

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = unsigned;
  static constexpr int steps = 31;
  static __device__ float value(unsigned bits) { return __uint_as_float(bits); }
};
template <>
struct Bits<double> {
  using type = unsigned long long;
  static constexpr int steps = 63;
  static __device__ double value(unsigned long long bits) { return __longlong_as_double(bits); }
};

// The answer's leading bits, and whether a coordinate was not finite.
template <class T>
struct State {
  typename Bits<T>::type bits;
  int bad;
};

template <class T>
__global__ void __launch_bounds__(kThreads) start(const T* x, std::int64_t size, State<T>* state) {
  __shared__ int bad;
  if (threadIdx.x == 0) bad = 0;
  __syncthreads();
  const T* own = x + blockIdx.x * size;
  int found = 0;
  for (std::int64_t i = threadIdx.x; i < size; i += kThreads) found |= !(own[i] - own[i] == 0);
  if (found) bad = 1;
  __syncthreads();
  if (threadIdx.x == 0) state[blockIdx.x] = {0, bad};
}

// counts[batch][block] = the pairs i < j of a 64 row block with squared distance below the bits
// with `bit` set.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_below(const T* x, int N, int d, const State<T>* state, int bit,
                unsigned long long* counts) {
  constexpr int kStride = kPadded<T, kSide>;
  __shared__ __align__(16) T rows[kChunk * kStride], columns[kChunk * kStride];
  const int blocks = (N + kSide - 1) / kSide, batch = blockIdx.x / blocks,
            block = blockIdx.x % blocks;
  const int ti = int(threadIdx.x) / (kSide / kOwn) * kOwn,
            tj = int(threadIdx.x) % (kSide / kOwn) * kOwn;
  const T* own = x + std::int64_t(batch) * N * d;
  const T threshold = Bits<T>::value(state[batch].bits | typename Bits<T>::type(1) << bit);
  double below = 0;
  for (int first = block * kSide; first < N; first += kSide) {
    T s[kOwn][kOwn] = {};
    for (int k0 = 0; k0 < d; k0 += kChunk) {
      __syncthreads();  // fault: barrier
      for (int e = threadIdx.x; e < kSide * kChunk; e += kThreads) {
        const int c = e % kChunk, point = e / kChunk;
        const bool inside = k0 + c < d;
        const std::int64_t i = min(block * kSide + point, N - 1), j = min(first + point, N - 1);
        rows[c * kStride + point] = inside ? own[i * d + k0 + c] : T(0);
        columns[c * kStride + point] = inside ? own[j * d + k0 + c] : T(0);
      }
      __syncthreads();
      T part[kOwn][kOwn] = {};
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        T x_i[kOwn], x_j[kOwn];
        read(rows + c * kStride + ti, x_i);
        read(columns + c * kStride + tj, x_j);
#pragma unroll
        for (int a = 0; a < kOwn; ++a) {
#pragma unroll
          for (int b = 0; b < kOwn; ++b) {
            const T diff = x_i[a] - x_j[b];
            part[a][b] += diff * diff;
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kOwn; ++a) {
#pragma unroll
        for (int b = 0; b < kOwn; ++b) s[a][b] += part[a][b];
      }
    }
#pragma unroll
    for (int a = 0; a < kOwn; ++a) {
#pragma unroll
      for (int b = 0; b < kOwn; ++b) {
        const int i = block * kSide + ti + a, j = first + tj + b;
        below += i < j && j < N && s[a][b] < threshold;
      }
    }
  }
  below = block_sum<kThreads>(below);  // whole numbers below 2^53: exact
  if (threadIdx.x == 0) counts[blockIdx.x] = (unsigned long long)below;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    settle(const unsigned long long* counts, int blocks, unsigned long long rank, int bit,
           State<T>* state, T* median) {
  double below = 0;
  for (int i = threadIdx.x; i < blocks; i += kThreads)
    below += double(counts[std::int64_t(blockIdx.x) * blocks + i]);
  below = block_sum<kThreads>(below);
  if (threadIdx.x > 0) return;
  State<T>& s = state[blockIdx.x];
  // At most `rank` pairs below the threshold: the pair of that rank is not one of them.
  if ((unsigned long long)below <= rank) s.bits |= typename Bits<T>::type(1) << bit;
  if (bit == 0)
    median[blockIdx.x] =
        s.bad ? Bits<T>::value(~typename Bits<T>::type(0) >> 1) : sqrt(Bits<T>::value(s.bits));
}

template <class T>
void run(const MedianCuda<T>& a) {
  const int blocks = int((a.N + kSide - 1) / kSide);
  const cudaStream_t stream = static_cast<cudaStream_t>(a.stream);
  auto* counts = static_cast<unsigned long long*>(a.workspace);
  auto* state = reinterpret_cast<State<T>*>(counts + a.batch * blocks);
  const unsigned long long rank = (a.N * (a.N - 1) / 2 - 1) / 2;
  launch(start<T>, dim3(unsigned(a.batch)), kThreads, stream, a.x, a.N * a.d, state);
  for (int bit = Bits<T>::steps - 1; bit >= 0; --bit) {
    launch(count_below<T>, dim3(unsigned(a.batch * blocks)), kThreads, stream, a.x, int(a.N),
           int(a.d), state, bit, counts);
    launch(settle<T>, dim3(unsigned(a.batch)), kThreads, stream, counts, blocks, rank, bit, state,
           a.median);
  }
}

template <class T>
std::int64_t workspace(const MedianCuda<T>& a) {
  return a.batch * ((a.N + kSide - 1) / kSide) * 8 + a.batch * std::int64_t(sizeof(State<T>));
}

}  // namespace

std::int64_t median_cuda_workspace(const MedianCuda<float>& a) { return workspace(a); }
std::int64_t median_cuda_workspace(const MedianCuda<double>& a) { return workspace(a); }
void median_cuda(const MedianCuda<float>& a) { run(a); }
void median_cuda(const MedianCuda<double>& a) { run(a); }

}  // namespace vimae
