// Every block makes tile after tile of the kernel matrix, each pair of panels once, in shared
// memory, and multiplies it with the labels of all permutations while it is there. A thread has the
// labels of a few permutations in registers, as numbers, so a kernel value that it loads is a
// multiply-add for each. A block adds to sums of its own; the sums of all blocks are then added in
// a fixed order.

#include <cstdint>
#include <stdexcept>

#include "common/launch.cuh"
#include "common/tiles.cuh"
#include "mmd/mmd_math.h"
#include "permutation/permutation.h"

namespace vimae {
namespace {

constexpr int kTile = 32, kThreads = kTileThreads;  // a tile's side is the bits of a word
// A thread has kSide x kSide pairs and every other coordinate of kStep; half a warp further is the
// thread that has the others.
constexpr int kSide = 4, kAcross = kTile / kSide, kStep = 2 * kChunk;
static_assert(2 * kAcross * kAcross == kThreads, "two for each square of pairs");

constexpr int kOwn = 2;  // labellings of a thread at once or, in float64, of four threads

template <class T>
struct Scales {
  int count;
  Scale<T> at[kMaxScales];
};

template <class T>
struct Args {
  const T* x;
  const std::uint32_t* labels;
  std::int64_t labels_batch_stride;
  const T* centre;
  int N, d, columns, programs;
  T first, second;
  double* forms;   // [batch][programs][columns]: sums of k_ij u_i u_j over pairs i < j
  double* totals;  // [batch][programs]: sums of k_ij
};

// k - 1 of one scale, to the rounding of itself.
template <Family F, class T>
__device__ T less_one(T s, T c) {
  if constexpr (F == Family::rbf) {
    return expm1(s * c);
  } else {
    constexpr T most = sizeof(T) == 4 ? T(1e38) : T(1e308);
    s = s > most ? most : s;
    return -s * DeviceOps::reciprocal(s + c);
  }
}

template <class T, Family F>
__global__ void __launch_bounds__(kThreads, 4) tiles(Args<T> a, Scales<T> scales) {
  constexpr int kStride = kPadded<T, kTile>;
  // Rows, and columns right behind them: one address for both.
  __shared__ __align__(16) T points[2][kStep * kStride];
  // The rows that lanes read at once are four doubles apart, and so are their banks.
  __shared__ __align__(16) T k[kTile][sizeof(T) == 4 ? kTile : kTile + 4];
  const std::int64_t batch = blockIdx.x / a.programs;
  const T* x = a.x + batch * a.N * a.d;
  const std::uint32_t* labels = a.labels + batch * a.labels_batch_stride;
  double* forms = a.forms + std::int64_t(blockIdx.x) * a.columns;
  for (int c = threadIdx.x; c < a.columns; c += kThreads) forms[c] = 0;
  const T centre = a.centre[batch];
  const int panels = (a.N + kTile - 1) / kTile;
  const int half = threadIdx.x / 16 % 2, square = threadIdx.x / 32 * 16 + threadIdx.x % 16;
  const int ti = square / kAcross * kSide, tj = square % kAcross * kSide;
  double total = 0;
  // Tile (p, q), q >= p, row after row; the next of this block is `programs` further.
  int p = 0, q = blockIdx.x % a.programs;
  while (true) {
    while (p < panels && q >= panels) ++p, q += p - panels;
    if (p == panels) break;

    const Stage<T, kTile> rows(x + std::int64_t(p) * kTile * a.d, a.N - p * kTile, a.d);
    const Stage<T, kTile> others(x + std::int64_t(q) * kTile * a.d, a.N - q * kTile, a.d);
    T s[kSide][kSide] = {};
    for (int k0 = 0; k0 < a.d; k0 += kStep) {
      __syncthreads();  // fault: barrier
      rows.template load<kStep>(k0, points[0]);
      others.template load<kStep>(k0, points[1]);
      wait_for_copies();
      __syncthreads();
      T part[kSide][kSide] = {};
      const auto add_chunk = [&](int first) {
#pragma unroll
        for (int e = first; e < first + kChunk; e += 2) {
          T x_i[kSide], x_j[kSide];
          read(points[0] + (e + half) * kStride + ti, x_i);
          read(points[1] + (e + half) * kStride + tj, x_j);
#pragma unroll
          for (int r = 0; r < kSide; ++r) {
#pragma unroll
            for (int b = 0; b < kSide; ++b) {
              const T diff = x_i[r] - x_j[b];
              part[r][b] += diff * diff;
            }
          }
        }
      };
      add_chunk(0);
      if (k0 + kChunk < a.d) add_chunk(kChunk);
      // Partial sums per step: rounding does not grow with d.
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
#pragma unroll
        for (int b = 0; b < kSide; ++b) s[r][b] += part[r][b];
      }
    }
    // Of the rows that two threads share each finishes half.
    constexpr int kRows = kSide / 2;
    const int row = ti + half * kRows;
    T tile_total = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      T values[kSide];
#pragma unroll
      for (int b = 0; b < kSide; ++b) {
        const T mine = half ? s[r + kRows][b] : s[r][b], given = half ? s[r][b] : s[r + kRows][b];
        const T square = mine + __shfl_xor_sync(0xffffffffu, given, 16);
        const int i = p * kTile + row + r, j = q * kTile + tj + b;
        T value = 0, none = 0;
        for (int l = 0; l < scales.count; ++l) {
          if (centre < 0)
            value += less_one<F>(square, scales.at[l].c);
          else
            add_scale<DeviceOps, F, false, false>(square, scales.at[l], value, none, none);
        }
        const bool pair = i < j && j < a.N;  // fault: i <= j
        values[b] = pair ? value - centre : T(0);
        tile_total += values[b];
      }
      write(&k[row + r][tj], values);
    }
    total += double(tile_total);
    __syncthreads();  // fault: barrier

    const std::uint32_t* labels_i = labels + std::int64_t(p) * a.columns;
    const std::uint32_t* labels_j = labels + std::int64_t(q) * a.columns;
    if constexpr (sizeof(T) == 8) {
      static_assert(kColumns % (kOwn * 8) == 0, "none is cut");
      // Eight labellings are a matrix for the tensor cores, and a warp has kOwn of them.
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      for (int c0 = warp * kOwn * 8; c0 < a.columns; c0 += kThreads / 32 * kOwn * 8) {
        T u[kTile / 4][kOwn], form[2 * kOwn] = {};
        std::uint32_t own[2 * kOwn];
#pragma unroll
        for (int h = 0; h < kOwn; ++h) {
          const std::uint32_t word = labels_j[c0 + h * 8 + lane / 4];
#pragma unroll
          for (int j = 0; j < kTile / 4; ++j)
            u[j][h] = word >> (j * 4 + lane % 4) & 1 ? a.first : a.second;
#pragma unroll
          for (int e = 0; e < 2; ++e) own[2 * h + e] = labels_i[c0 + h * 8 + lane % 4 * 2 + e];
        }
#pragma unroll 2
        for (int i = lane / 4; i < kTile; i += 8) {
          T y[1][2 * kOwn] = {};
#pragma unroll
          for (int j = 0; j < kTile / 4; ++j) {
            const T kij[] = {k[i][j * 4 + lane % 4]};
            multiply_add(kij, u[j], y);
          }
#pragma unroll
          for (int h = 0; h < 2 * kOwn; ++h)
            form[h] += (own[h] >> i & 1 ? a.first : a.second) * y[0][h];
        }
#pragma unroll
        for (int h = 0; h < 2 * kOwn; ++h) {
#pragma unroll
          for (int step = 4; step < 32; step *= 2)
            form[h] += __shfl_xor_sync(0xffffffffu, form[h], step);
          if (lane < 4) forms[c0 + h / 2 * 8 + lane * 2 + h % 2] += form[h];
        }
      }
    } else {
      for (int c0 = threadIdx.x; c0 < a.columns; c0 += kThreads * kOwn) {
        T u[kOwn][kTile], form[kOwn] = {};
        std::uint32_t own[kOwn];
#pragma unroll
        for (int h = 0; h < kOwn; ++h) {
          const int c = min(c0 + h * kThreads, a.columns - 1);
          const std::uint32_t word = labels_j[c];
          own[h] = labels_i[c];
#pragma unroll
          for (int j = 0; j < kTile; ++j) u[h][j] = word >> j & 1 ? a.first : a.second;
        }
#pragma unroll 2
        for (int i = 0; i < kTile; ++i) {
          T y[kOwn] = {};
#pragma unroll
          for (int j = 0; j < kTile; ++j) {
            const T kij = k[i][j];
#pragma unroll
            for (int h = 0; h < kOwn; ++h) y[h] += kij * u[h][j];
          }
#pragma unroll
          for (int h = 0; h < kOwn; ++h) form[h] += (own[h] >> i & 1 ? a.first : a.second) * y[h];
        }
#pragma unroll
        for (int h = 0; h < kOwn; ++h)
          if (c0 + h * kThreads < a.columns) forms[c0 + h * kThreads] += double(form[h]);
      }
    }
    q += a.programs;
  }
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) a.totals[blockIdx.x] = total;
}

// values[b][c] from the sums of problem b's blocks.
template <class T>
__global__ void __launch_bounds__(kThreads) finish(Args<T> a, Weights w, double* values) {
  const int groups = (a.columns + kThreads - 1) / kThreads;
  const std::int64_t batch = blockIdx.x / groups;
  const int c = blockIdx.x % groups * kThreads + threadIdx.x;
  if (c >= a.columns) return;
  double form = 0, total = 0;
  for (std::int64_t i = batch * a.programs; i < (batch + 1) * a.programs; ++i) {
    form += a.forms[i * a.columns + c];
    total += a.totals[i];
  }
  values[batch * a.columns + c] = 2 * (w.quadratic * form + w.total * total);
}

// Blocks per problem: enough to fill a GPU; each has sums for all columns.
template <class T>
int programs(const Permutation<T>& a) {
  const std::int64_t panels = (a.N + kTile - 1) / kTile, tiles = panels * (panels + 1) / 2;
  const std::int64_t for_gpu = 2048 / a.batch, for_memory = (std::int64_t(1) << 24) / a.columns;
  const std::int64_t most = for_gpu < for_memory ? for_gpu : for_memory;
  return int(most < 1 ? 1 : most < tiles ? most : tiles);
}

template <Family F, class T>
void run(const Permutation<T>& a) {
  if (a.parts != 1) throw std::invalid_argument("permutation_cuda has no code for parts");
  const cudaStream_t stream = static_cast<cudaStream_t>(a.stream);
  const Weights w = weights(a.n, a.N - a.n);
  const int each = programs(a);
  double* forms = static_cast<double*>(a.workspace);
  const Args<T> args{a.x,
                     a.labels,
                     a.labels_batch_stride,
                     a.centre,
                     int(a.N),
                     int(a.d),
                     int(a.columns),
                     each,
                     T(w.first),
                     T(w.second),
                     forms,
                     forms + a.batch * each * a.columns};
  Scales<T> scales{a.n_scales, {}};
  for (int i = 0; i < a.n_scales; ++i) scales.at[i] = scale_of<T>(F, a.scales[i], 1);
  launch(tiles<T, F>, dim3(unsigned(a.batch * each)), kThreads, stream, args, scales);
  const std::int64_t groups = (a.columns + kThreads - 1) / kThreads;
  launch(finish<T>, dim3(unsigned(a.batch * groups)), kThreads, stream, args, w, a.values);
}

template <class T>
std::int64_t workspace(const Permutation<T>& a) {
  return a.batch * programs(a) * (a.columns + 1) * std::int64_t(sizeof(double));
}

}  // namespace

std::int64_t permutation_cuda_workspace(const Permutation<float>& a) { return workspace(a); }
std::int64_t permutation_cuda_workspace(const Permutation<double>& a) { return workspace(a); }
void permutation_cuda(const Permutation<float>& a) {
  a.family == Family::imq ? run<Family::imq>(a) : run<Family::rbf>(a);
}
void permutation_cuda(const Permutation<double>& a) {
  a.family == Family::imq ? run<Family::imq>(a) : run<Family::rbf>(a);
}

}  // namespace vimae
