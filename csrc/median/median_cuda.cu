// Bisection on the bits of the squared distance, which order as the distance does: every step
// counts the pairs up to a threshold. Nothing is stored per pair and nothing is approximated; the
// bounds live on the GPU.

#include <cstdint>

#include "common/launch.cuh"
#include "common/tiles.cuh"
#include "median/median.h"

namespace vimae {
namespace {

constexpr int kThreads = kTileThreads;
constexpr int kRank = -1;  // in place of a bit: the step that finds the rank

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

// The answer's leading bits, its rank among all pairs, and whether a coordinate was not finite.
template <class T>
struct State {
  typename Bits<T>::type bits;
  unsigned long long rank;
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
  if (threadIdx.x == 0) state[blockIdx.x] = {0, 0, bad};
}

// counts[batch][block] = the pairs i < j of a 64 row block with squared distance below the bits
// with `bit` set.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_below(const T* x, int N, int d, const State<T>* state, int bit,
                unsigned long long* counts) {
  using P = Pairs<sizeof(T) == 4 ? 8 : 4, 4>;
  constexpr int kRows = kPadded<T, kTileRows>, kColumns = kPadded<T, P::kColumns>;
  __shared__ __align__(16) T rows[kChunk * kRows], columns[kChunk * kColumns];
  const int blocks = (N + kTileRows - 1) / kTileRows, batch = blockIdx.x / blocks,
            row = blockIdx.x % blocks * kTileRows;
  const T* own = x + std::int64_t(batch) * N * d;
  const T threshold =
      Bits<T>::value(state[batch].bits | typename Bits<T>::type(1) << (bit == kRank ? 0 : bit));
  int below = 0;
  for (int first = row; first < N; first += P::kColumns) {
    const Stage<T, kTileRows> stage(own + std::int64_t(row) * d, N - row, d);
    const Stage<T, P::kColumns> others(own + std::int64_t(first) * d, N - first, d);
    T s[P::kA][P::kB] = {};
    for (int k0 = 0; k0 < d; k0 += kChunk) {
      __syncthreads();  // fault: barrier
      stage.load(k0, rows);
      others.load(k0, columns);
      wait_for_copies();
      __syncthreads();
      T part[P::kA][P::kB] = {};
#pragma unroll
      for (int c = 0; c < kChunk; ++c) {
        T x_i[P::kA], x_j[P::kB];
        read(rows + c * kRows + P::row(), x_i);
        read(columns + c * kColumns + P::column(), x_j);
#pragma unroll
        for (int a = 0; a < P::kA; ++a) {
#pragma unroll
          for (int b = 0; b < P::kB; ++b) {
            const T diff = x_i[a] - x_j[b];
            part[a][b] += diff * diff;
          }
        }
      }
#pragma unroll
      for (int a = 0; a < P::kA; ++a) {
#pragma unroll
        for (int b = 0; b < P::kB; ++b) s[a][b] += part[a][b];
      }
    }
#pragma unroll
    for (int a = 0; a < P::kA; ++a) {
#pragma unroll
      for (int b = 0; b < P::kB; ++b) {
        const int i = row + P::row() + a, j = first + P::column() + b;
        below += i < j && j < N && s[a][b] < threshold;
      }
    }
  }
  const double all = block_sum<kThreads>(double(below));  // whole numbers below 2^53: exact
  if (threadIdx.x == 0) counts[blockIdx.x] = (unsigned long long)all;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    settle(const unsigned long long* counts, int blocks, unsigned long long pairs, int bit,
           State<T>* state, T* median) {
  double below = 0;
  for (int i = threadIdx.x; i < blocks; i += kThreads)
    below += double(counts[std::int64_t(blockIdx.x) * blocks + i]);
  below = block_sum<kThreads>(below);
  if (threadIdx.x > 0) return;
  State<T>& s = state[blockIdx.x];
  if (bit == kRank) {
    // Those below the least number that is not 0 coincide: the median is that of the others.
    const auto coincide = (unsigned long long)below;
    s.rank = coincide < pairs ? coincide + (pairs - coincide - 1) / 2 : 0;
    return;
  }
  // At most `rank` pairs below the threshold: the pair of that rank is not one of them.
  if ((unsigned long long)below <= s.rank) s.bits |= typename Bits<T>::type(1) << bit;
  if (bit == 0)
    median[blockIdx.x] =
        s.bad ? Bits<T>::value(~typename Bits<T>::type(0) >> 1) : sqrt(Bits<T>::value(s.bits));
}

template <class T>
void run(const Median<T>& a) {
  const int blocks = int((a.N + kTileRows - 1) / kTileRows);
  const cudaStream_t stream = static_cast<cudaStream_t>(a.stream);
  auto* counts = static_cast<unsigned long long*>(a.workspace);
  auto* state = reinterpret_cast<State<T>*>(counts + a.batch * blocks);
  const unsigned long long pairs = a.N * (a.N - 1) / 2;
  launch(start<T>, dim3(unsigned(a.batch)), kThreads, stream, a.x, a.N * a.d, state);
  const auto step = [&](int bit) {
    launch(count_below<T>, dim3(unsigned(a.batch * blocks)), kThreads, stream, a.x, int(a.N),
           int(a.d), state, bit, counts);
    launch(settle<T>, dim3(unsigned(a.batch)), kThreads, stream, counts, blocks, pairs, bit, state,
           a.median);
  };
  step(kRank);
  for (int bit = Bits<T>::steps - 1; bit >= 0; --bit) step(bit);
}

template <class T>
std::int64_t workspace(const Median<T>& a) {
  return a.batch * ((a.N + kTileRows - 1) / kTileRows) * 8 +
         a.batch * std::int64_t(sizeof(State<T>));
}

}  // namespace

std::int64_t median_cuda_workspace(const Median<float>& a) { return workspace(a); }
std::int64_t median_cuda_workspace(const Median<double>& a) { return workspace(a); }
void median_cuda(const Median<float>& a) { run(a); }
void median_cuda(const Median<double>& a) { run(a); }

}  // namespace vimae
