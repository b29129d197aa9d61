// The Stein gradient, and the kernel Stein discrepancy of ksd.h, which meets the same pairs.
//
// Every block owns a few rows (points) and sweeps columns; what the pairs add to a row is summed by
// the thread or block that owns it, so nothing is added atomically, and a pair is visited from both
// its ends. A value needs no owner, so there the blocks of pairs are visited once. Few rows are
// spread over the GPU by splitting their columns; partial sums are then added in a fixed order.
//
// Distances are sums of squared differences of coordinates: nothing is expanded into norms and
// products. The product of the scores of two standard normal points is, for that is what it is: it
// takes the rounding that their norms have, as the discrepancy itself does on its diagonal.

#include <cstdint>
#include <stdexcept>

#include "common/launch.cuh"
#include "common/tiles.cuh"
#include "ksd/ksd.h"
#include "ksd/ksd_math.h"
#include "stein/stein.h"

namespace vimae {
namespace {

// What is summed over pairs: u of ksd_math.h, u and what pulls on its points, or the Stein
// gradient.
enum class Sum { value, gradient, stein };

template <class T>
struct Terms {
  int count;
  T slope;  // their first derivative at distance 0
  Term<T> at[kMaxScales];
};

template <class T>
struct Call {
  const T* z;
  const T* score;
  int n, d, splits;
  double value;         // weight of u
  double included;      // the same on the diagonal, which u is not summed over, if it is to be in
  T weight;             // weight of what pulls on a row
  double* values;       // [batch][row blocks][splits]
  T* dz;                // [splits][batch][n][d]
  T* dscore;            // the same
  std::int64_t stride;  // from one split to the next
};

// Which problem, which share of the columns and which first row a block has.
struct Place {
  int split, row;
  std::int64_t batch;
};

template <class T>
__device__ Place place_of(const Call<T>& call, int rows) {
  const int blocks = (call.n + rows - 1) / rows, index = blockIdx.x / call.splits;
  return {int(blockIdx.x % call.splits), index % blocks * rows, index / blocks};
}

struct Columns {
  int begin, end;
};

// The columns of a block's part 0 or 1. A value has the block on the diagonal, then those right of
// it for themselves and their mirror images; all else has all columns in part 0.
template <Sum S, class T>
__device__ Columns columns_of(const Call<T>& call, const Place& at, int rows, int part) {
  const int edge = min(at.row + rows, call.n);
  const int begin = S != Sum::value ? 0 : part == 0 ? at.row : edge;
  const int end = S == Sum::value && part == 0 ? edge : call.n;
  const int share = (end - begin + call.splits - 1) / call.splits;
  const int first = min(begin + at.split * share, end);
  return {first, min(first + share, end)};
}

// The kernel and its derivatives, as many as are wanted.
template <Family F, int Order, bool One, class T>
__device__ __forceinline__ void kernel_of(T s, const Terms<T>& terms, T* k) {
#pragma unroll
  for (int i = 0; i <= Order; ++i) k[i] = 0;
  for (int i = 0; i < (One ? 1 : terms.count); ++i)
    add_term<DeviceOps, F, Order>(s, terms.at[i], k);
}

template <Sum S>
constexpr int kOrder = S == Sum::stein   ? 1
                       : S == Sum::value ? 2
                                         : 3;

// The standard normal in few dimensions, in float: a thread has R rows in registers, the block's
// columns pass through shared memory.

constexpr int kThreads = 128, kStage = 64, kFlush = 4096;

// Whether points may meet themselves.
template <bool Own>
struct Meets {
  static constexpr bool own = Own;
};

template <int D, int R, Family F, Sum S, bool One>
__global__ void __launch_bounds__(kThreads, 2)
    register_kernel(Call<float> call, Terms<float> terms) {
  constexpr bool kValue = S != Sum::stein, kPull = S != Sum::value;
  constexpr int kRows = kThreads * R;
  __shared__ __align__(16) float stage[kStage * D];
  __shared__ float halves[kStage];
  const Place at = place_of(call, kRows);
  const float* z = call.z + at.batch * call.n * call.d;
  float* dz = call.dz + at.split * call.stride + at.batch * call.n * call.d;
  const double included = at.split == 0 ? call.included : 0;  // fault: call.included

  // Rows of a thread are kThreads apart; beyond the last it repeats the last, and keeps nothing.
  const int row0 = at.row + threadIdx.x;
  float x[R][D], half[R], g[R][D], mass[R];
  double value = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = row0 + r * kThreads;
    half[r] = mass[r] = 0;
#pragma unroll
    for (int k = 0; k < D; ++k) {
      x[r][k] = k < call.d ? z[std::int64_t(min(row, call.n - 1)) * call.d + k] : 0;
      half[r] = fmaf(0.5f * x[r][k], x[r][k], half[r]);
      g[r][k] = 0;
      // On the diagonal e is 0 and each kernel 1.
      if (kPull && row < call.n && k < call.d)
        dz[std::int64_t(row) * call.d + k] = float(2 * included * terms.count) * x[r][k];
    }
    if (kValue && row < call.n)
      value += included * (2.0 * half[r] * terms.count - 2.0 * call.d * terms.slope);
  }

  for (int part = 0; part < (kPull ? 1 : 2); ++part) {
    const Columns c = columns_of<S>(call, at, kRows, part);
    double part_value = 0;
    for (int first = c.begin; first < c.end; first += kStage) {
      const int count = min(kStage, c.end - first);
      __syncthreads();  // fault: barrier
      for (int i = threadIdx.x; i < count * D; i += kThreads) {
        const int k = i % D;
        stage[i] = k < call.d ? z[std::int64_t(first + i / D) * call.d + k] : 0;
      }
      __syncthreads();
      if (kValue) {
        if (threadIdx.x < count) {
          float sum = 0;
#pragma unroll
          for (int k = 0; k < D; ++k)
            sum = fmaf(stage[threadIdx.x * D + k], stage[threadIdx.x * D + k], sum);
          halves[threadIdx.x] = 0.5f * sum;
        }
        __syncthreads();  // fault: barrier
      }
      float v[R] = {};
      const auto add = [&](auto meets) {
#pragma unroll(One ? 4 : 1)
        for (int j = 0; j < count; ++j) {
          float y[D];
#pragma unroll
          for (int k = 0; k < D; ++k) y[k] = stage[j * D + k];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            float diff[D], s = 0, f[kOrder<S> + 1];
#pragma unroll
            for (int k = 0; k < D; ++k) {
              diff[k] = x[r][k] - y[k];
              s = fmaf(diff[k], diff[k], s);
            }
            kernel_of<F, kOrder<S>, One>(s, terms, f);
            float force = 0;
            if constexpr (kValue) {
              const float p = fmaf(-0.5f, s, half[r] + halves[j]);
              const float u = stein_kernel(s, p, s, f, float(call.d));
              const bool own = decltype(meets)::own && first + j == row0 + r * kThreads;
              v[r] += own ? 0 : u;
              if (own) f[0] = 0;
              if constexpr (kPull) force = normal_force(s, p, f, float(call.d));
            } else {
              force = fmaf(-2.0f, f[1], f[0]);
            }
            if (kPull) {
              mass[r] += f[0];
#pragma unroll
              for (int k = 0; k < D; ++k) g[r][k] = fmaf(force, diff[k], g[r][k]);
            }
          }
        }
      };
      // Only there are pairs of a point with itself.
      if (kValue && first < at.row + kRows && at.row < first + count)
        add(Meets<true>{});
      else
        add(Meets<false>{});
      double stage_value = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) stage_value += row0 + r * kThreads < call.n ? double(v[r]) : 0;
      part_value += stage_value;
      // Float sums are kept short: every kFlush columns they move to memory, which the thread owns.
      if (kPull && (first + kStage >= c.end || (first - c.begin) % kFlush == kFlush - kStage)) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int row = row0 + r * kThreads;
          if (!kValue) mass[r] = -mass[r];
#pragma unroll
          for (int k = 0; k < D; ++k) {
            if (row < call.n && k < call.d)
              dz[std::int64_t(row) * call.d + k] += call.weight * fmaf(mass[r], x[r][k], g[r][k]);
            g[r][k] = 0;
          }
          mass[r] = 0;
        }
      }
    }
    value += (part == 0 ? 1 : 2) * call.value * part_value;
  }
  if (kValue) {
    value = block_sum<kThreads>(value);
    if (threadIdx.x == 0) call.values[blockIdx.x] = value;
  }
}

// Any d, any score and float64: the products of a tile's pairs are summed over chunks of
// coordinates and become weights in shared memory. With weights w_ij of e, a row is pulled by
//   sum_j w_ij (z_i - z_j) = (sum_j w_ij) (z_i - r) - sum_j w_ij (z_j - r)
// for every r: a product of matrices, and a term that waits for the end. With r the block's first
// point both are differences of points. What multiplies scores needs no r.

// The pairs of a thread, as many as the registers and, for the weights that the discrepancy has
// with a score, 48 KB of shared memory hold.
template <class T, Sum S, bool Normal>
using PairsOf = Pairs<sizeof(T) == 4 && Normal ? 8 : 4,
                      sizeof(T) == 8 && !Normal && S == Sum::gradient ? 2 : 4>;

// Blocks that a multiprocessor should hold: the others spill with more.
template <class T, Sum S, bool Normal>
constexpr int kResident = Normal && S == Sum::value                      ? (sizeof(T) == 4 ? 4 : 3)
                          : !Normal && S == Sum::stein && sizeof(T) == 4 ? 3
                                                                         : 2;

template <class T, Family F, Sum S, bool Normal>
__global__ void __launch_bounds__(kTileThreads, kResident<T, S, Normal>)
    tiled_kernel(Call<T> call, Terms<T> terms) {
  constexpr bool kValue = S != Sum::stein, kPull = S != Sum::value, kScore = !Normal;
  constexpr bool kDots = kValue && kScore, kNorms = kValue && Normal, kBoth = kDots && kPull;
  using P = PairsOf<T, S, Normal>;
  constexpr int A = P::kA, B = P::kB;
  // Weights of e; of the scores, in the Stein gradient, or -2f'; and of the scores, in the gradient
  // of the discrepancy by them.
  constexpr int kWeights = Normal ? 1 : kBoth ? 3 : 2;
  constexpr int kRowStage = kChunk * kPadded<T, kTileRows>,
                kColumnStage = kChunk * kPadded<T, P::kColumns>,
                kWeight = kPull ? P::kColumns * kPadded<T, kTileRows> : 1,
                kOthers = kPull ? P::kColumns * kPaddedSpan<T> : 1;
  // The coordinates of a chunk or, later, weights and what they are applied to.
  __shared__ __align__(16) union {
    T stage[kDots ? 2 : 1][kRowStage + kColumnStage];
    struct {
      T weight[kWeights][kWeight], others[kOthers];
    };
  } shared;
  __shared__ T half[kNorms ? kTileRows + P::kColumns : 1];  // half the squared norms
  constexpr int kSharing = kTileThreads / P::kColumns;      // threads that sum that of a column
  const Place at = place_of(call, kTileRows);
  const int rows = min(kTileRows, call.n - at.row), d = call.d;
  const T* z = call.z + at.batch * call.n * d;
  const T* score = Normal ? z : call.score + at.batch * call.n * d;
  const T* x[] = {z + std::int64_t(at.row) * d, score + std::int64_t(at.row) * d};
  const std::int64_t mine = at.split * call.stride + (at.batch * call.n + at.row) * d;
  T* dz = call.dz + mine;
  T* dscore = call.dscore + mine;
  const bool both = kBoth && call.dscore;
  const double included = at.split == 0 ? call.included : 0;  // fault: call.included
  if (kPull) {
    for (int i = threadIdx.x; i < rows * d; i += kTileThreads) {
      dz[i] = 0;
      if (both) dscore[i] = 0;
    }
  }

  if (kNorms) {
    const int row = threadIdx.x / 2;
    T norm = 0;
    for (int k = threadIdx.x % 2; row < rows && k < d; k += 2)
      norm = fma(x[0][row * d + k], x[0][row * d + k], norm);
    norm = row_sum<2>(norm);
    if (threadIdx.x % 2 == 0) half[row] = norm / 2;
  }
  double value = 0;
  // Sums over a row's columns: of the weights of e; and of the kernel or, with a score, of -2f'.
  T sums[2][A] = {};
  for (int part = 0; part < (kPull ? 1 : 2); ++part) {
    const Columns c = columns_of<S>(call, at, kTileRows, part);
    for (int first = c.begin; first < c.end; first += P::kColumns) {
      const int columns = c.end - first;
      const T* y[] = {z + std::int64_t(first) * d, score + std::int64_t(first) * d};
      const Stage<T, kTileRows> row_stage[] = {{x[0], rows, d}, {x[1], rows, d}};
      const Stage<T, P::kColumns> column_stage[] = {{y[0], columns, d}, {y[1], columns, d}};
      T s[A][B] = {}, p[A][B] = {}, q[A][B] = {}, norm = 0;
      for (int k0 = 0; k0 < d; k0 += kChunk) {
        __syncthreads();  // fault: barrier
#pragma unroll
        for (int l = 0; l < (kDots ? 2 : 1); ++l) {
          row_stage[l].load(k0, shared.stage[l]);
          column_stage[l].load(k0, shared.stage[l] + kRowStage);
        }
        wait_for_copies();
        __syncthreads();
        if (kNorms) {
#pragma unroll
          for (int k = 0; k < kChunk; k += kSharing) {
            const T v =
                shared.stage[0][kRowStage +
                                (k + int(threadIdx.x) % kSharing) * kPadded<T, P::kColumns> +
                                threadIdx.x / kSharing];
            norm = fma(v, v, norm);
          }
        }
        // Squares are summed per chunk: rounding grows with d / kChunk. Products have both signs.
        T squares[A][B] = {};
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          T xk[2][A], yk[2][B];
#pragma unroll
          for (int l = 0; l < (kDots ? 2 : 1); ++l) {
            read(shared.stage[l] + k * kPadded<T, kTileRows> + P::row(), xk[l]);
            read(shared.stage[l] + kRowStage + k * kPadded<T, P::kColumns> + P::column(), yk[l]);
          }
#pragma unroll
          for (int a = 0; a < A; ++a) {
#pragma unroll
            for (int b = 0; b < B; ++b) {
              const T e = xk[0][a] - yk[0][b];
              squares[a][b] = fma(e, e, squares[a][b]);
              if (kDots) {
                p[a][b] = fma(xk[1][a], yk[1][b], p[a][b]);
                q[a][b] = fma(yk[1][b] - xk[1][a], e, q[a][b]);
              }
            }
          }
        }
#pragma unroll
        for (int a = 0; a < A; ++a) {
#pragma unroll
          for (int b = 0; b < B; ++b) s[a][b] += squares[a][b];
        }
      }
      if (kNorms) {
        norm = row_sum<kSharing>(norm);
        if (threadIdx.x % kSharing == 0) half[kTileRows + threadIdx.x / kSharing] = norm / 2;
      }
      if (kNorms || kPull) {
        __syncthreads();  // fault: barrier
      }

      T tile_value = 0;
#pragma unroll
      for (int b = 0; b < B; ++b) {
        T weights[kWeights][A];
#pragma unroll
        for (int a = 0; a < A; ++a) {
          const int i = P::row() + a, j = P::column() + b;
          // A point pulls on itself with e = 0, times a weight that may be any number beside what
          // is left of the others.
          const bool own = at.row + i == first + j;
          const bool pair = i < rows && j < columns && !(kValue && own);
          T f[kOrder<S> + 1], of_e = 0;
          kernel_of<F, kOrder<S>, false>(s[a][b], terms, f);
          if (kNorms) p[a][b] = half[i] + half[kTileRows + j] - T(0.5) * s[a][b];
          const T dot = Normal ? s[a][b] : q[a][b];
          if constexpr (kValue)
            tile_value += pair ? stein_kernel(s[a][b], p[a][b], dot, f, T(d)) : T(0);
          if constexpr (kValue && kPull)
            of_e = Normal ? normal_force(s[a][b], p[a][b], f, T(d))
                          : stein_force(s[a][b], p[a][b], dot, f, T(d));
          else
            of_e = (Normal ? f[0] : T(0)) - 2 * f[1];
          if (kPull) {
            weights[0][a] = pair && !own ? of_e : T(0);  // fault: of_e
            if (kBoth) weights[1][a] = pair ? -2 * f[1] : T(0);
            if (kScore) weights[kWeights - 1][a] = pair ? -f[0] : T(0);
            sums[0][a] += weights[0][a];
            sums[1][a] += Normal ? (pair ? f[0] : T(0)) : kBoth ? weights[1][a] : T(0);
          }
        }
#pragma unroll
        for (int l = 0; kPull && l < kWeights; ++l)
          write(shared.weight[l] + (P::column() + b) * kPadded<T, kTileRows> + P::row(),
                weights[l]);
      }
      value += (part == 0 ? 1 : 2) * call.value * double(tile_value);

      for (int k0 = 0; kPull && k0 < d; k0 += kSpan) {
        Product<T> g, by_score;
#pragma unroll
        for (int l = 0; l < (kScore ? 2 : 1); ++l) {
          __syncthreads();
          stage_differences<P::kColumns>(y[l] + k0, l == 0 ? x[0] + k0 : nullptr, columns, d - k0,
                                         d, shared.others);
          __syncthreads();  // fault: barrier
          g.template add<P::kColumns>(shared.weight[l == 0 ? 0 : kWeights > 1], shared.others);
          if (both)
            by_score.template add<P::kColumns>(shared.weight[l == 0 ? 1 : kWeights - 1],
                                               shared.others);
        }
#pragma unroll
        for (int a = 0; a < kOut; ++a) {
#pragma unroll
          for (int e = 0; e < kOut; ++e) {
            const int i = g.row(a), k = k0 + g.coordinate(e);
            if (i >= rows || k >= d) continue;
            dz[std::int64_t(i) * d + k] += g.at[a][e];
            if (both) dscore[std::int64_t(i) * d + k] += by_score.at[a][e];
          }
        }
      }
    }
  }

  if (kPull) {
    // The sums of all rows, where the weights were.
    T* sum_e = shared.weight[0];
    T* sum_second = shared.weight[0] + kTileRows;
    __syncthreads();  // fault: barrier
#pragma unroll
    for (int a = 0; a < A; ++a) {
      const T e = row_sum<P::kAcross>(sums[0][a]), second = row_sum<P::kAcross>(sums[1][a]);
      if (P::column() == 0) sum_e[P::row() + a] = e, sum_second[P::row() + a] = second;
    }
    __syncthreads();
    // On the diagonal e is 0 and each kernel 1.
    const T diagonal = T(2 * included * terms.count);  // fault: T(0)
    for (int i = threadIdx.x; i < rows * d; i += kTileThreads) {
      const T e = x[0][i] - x[0][i % d], own = x[1][i], second = sum_second[i / d];
      T sum = sum_e[i / d] * e - dz[i];
      if (S != Sum::stein)
        sum += second * own;
      else if (Normal)
        sum -= second * own;
      dz[i] = call.weight * sum + (Normal ? diagonal * own : T(0));
      if (both) dscore[i] = call.weight * (second * e - dscore[i]) + diagonal * own;
    }
  }
  if (kValue) {
    for (int row = threadIdx.x; included != 0 && row < rows; row += kTileThreads) {
      double square = 0;
      for (int k = 0; k < d; ++k) {
        const double v = x[1][std::int64_t(row) * d + k];
        square += v * v;
      }
      value += included * (square * terms.count - 2.0 * d * terms.slope);
    }
    value = block_sum<kTileThreads>(value);
    if (threadIdx.x == 0) call.values[blockIdx.x] = value;
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    finish_value(const double* values, int count, bool unbiased, T* value) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += 256)
    sum += values[std::int64_t(blockIdx.x) * count + i];
  sum = block_sum<256>(sum);
  // A squared norm, which rounding does not make negative; NaN stays NaN.
  if (!unbiased && sum < 0) sum = 0;
  if (threadIdx.x == 0) value[blockIdx.x] = T(sum);
}

template <class T>
__global__ void __launch_bounds__(256)
    finish_sums(const T* partial, int splits, std::int64_t size, T* to) {
  const std::int64_t i = std::int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= size) return;
  T sum = 0;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + i];
  to[i] = sum;
}

// What is computed, how the work is cut and how large the partial results are.
struct Plan {
  Sum sum;
  bool registers, both;
  int rows, splits;
  std::int64_t values, sums;
};

template <class T>
Plan plan(Sum sum, bool normal, bool both, std::int64_t batch, std::int64_t n, std::int64_t d) {
  const bool registers = sizeof(T) == 4 && normal && d <= 16;
  const int rows = registers ? kThreads * (d <= 8 ? 2 : 1) : kTileRows;
  const std::int64_t blocks = batch * ((n + rows - 1) / rows);
  // Enough blocks to fill a GPU; at most 8 splits, for each has a partial gradient.
  std::int64_t splits = 1024 / (blocks + 1);
  splits = splits < n / 128 ? splits : n / 128;
  splits = splits < 8 ? splits : 8;
  splits = splits < 1 ? 1 : splits;
  return {sum,
          registers,
          both,
          rows,
          int(splits),
          sum != Sum::stein ? blocks * splits : 0,
          splits > 1 && sum != Sum::value ? splits * batch * n * d : 0};
}

template <class T>
std::int64_t bytes(const Plan& p) {
  return p.values * sizeof(double) + p.sums * (p.both ? 2 : 1) * sizeof(T);
}

template <Family F, Sum S, bool One>
void launch_registers(const Call<float>& call, const Terms<float>& terms, dim3 grid,
                      cudaStream_t stream) {
  if (call.d <= 2)
    launch(register_kernel<2, 2, F, S, One>, grid, kThreads, stream, call, terms);
  else if (call.d <= 4)
    launch(register_kernel<4, 2, F, S, One>, grid, kThreads, stream, call, terms);
  else if (call.d <= 8)
    launch(register_kernel<8, 2, F, S, One>, grid, kThreads, stream, call, terms);
  else
    launch(register_kernel<16, 1, F, S, One>, grid, kThreads, stream, call, terms);
}

template <Family F, Sum S, class T>
void launch_sums(const Plan& p, const Call<T>& call, const Terms<T>& terms, dim3 grid,
                 cudaStream_t stream) {
  if constexpr (sizeof(T) == 4) {
    if (p.registers)
      return terms.count == 1 ? launch_registers<F, S, true>(call, terms, grid, stream)
                              : launch_registers<F, S, false>(call, terms, grid, stream);
  }
  call.score ? launch(tiled_kernel<T, F, S, false>, grid, kTileThreads, stream, call, terms)
             : launch(tiled_kernel<T, F, S, true>, grid, kTileThreads, stream, call, terms);
}

template <Family F, class T>
void run(const Plan& p, const T* z, const T* score, std::int64_t batch, std::int64_t n,
         std::int64_t d, const double* scales, int n_scales, bool unbiased, T* value, T* dz,
         T* dscore, void* workspace, cudaStream_t stream) {
  Terms<T> terms{n_scales, 0, {}};
  for (int i = 0; i < n_scales; ++i) {
    terms.at[i] = term_of<T>(F, scales[i]);
    terms.slope += terms.at[i].first;
  }
  double* values = static_cast<double*>(workspace);
  T* partial = reinterpret_cast<T*>(values + p.values);
  const double pairs = p.sum == Sum::stein ? double(n) : double(n) * double(n - unbiased);
  const Call<T> call{z,
                     score,
                     int(n),
                     int(d),
                     p.splits,
                     1 / pairs,
                     p.sum == Sum::stein || unbiased ? 0 : 1 / pairs,
                     T(p.sum == Sum::stein ? 1 / pairs : 2 / pairs),
                     values,
                     p.sums ? partial : dz,
                     p.sums && p.both ? partial + p.sums : dscore,
                     batch * n * d};
  const dim3 grid(unsigned(batch * ((n + p.rows - 1) / p.rows) * p.splits));
  switch (p.sum) {
    case Sum::value:
      launch_sums<F, Sum::value>(p, call, terms, grid, stream);
      break;
    case Sum::gradient:
      launch_sums<F, Sum::gradient>(p, call, terms, grid, stream);
      break;
    case Sum::stein:
      launch_sums<F, Sum::stein>(p, call, terms, grid, stream);
  }
  const dim3 each(unsigned((call.stride + 255) / 256));
  if (p.sums) launch(finish_sums<T>, each, 256, stream, call.dz, p.splits, call.stride, dz);
  if (p.sums && p.both)
    launch(finish_sums<T>, each, 256, stream, call.dscore, p.splits, call.stride, dscore);
  if (p.values)
    launch(finish_value<T>, dim3(unsigned(batch)), 256, stream, values, int(p.values / batch),
           unbiased, value);
}

template <class T>
Plan plan(const Stein<T>& a) {
  return plan<T>(Sum::stein, !a.score, false, a.batch, a.n, a.d);
}

template <class T>
Plan plan(const KSD<T>& a) {
  return plan<T>(a.dx ? Sum::gradient : Sum::value, !a.score_x, a.dscore_x, a.batch, a.n, a.d);
}

template <class T>
void stein(const Stein<T>& a) {
  if (a.y) throw std::invalid_argument("stein_cuda has no code for two sets of points");
  (a.family == Family::imq ? run<Family::imq, T>
                           : run<Family::rbf, T>)(plan(a), a.x, a.score, a.batch, a.n, a.d,
                                                  a.scales, a.n_scales, false, nullptr, a.phi,
                                                  nullptr, a.workspace,
                                                  static_cast<cudaStream_t>(a.stream));
}

template <class T>
void ksd(const KSD<T>& a) {
  if (a.pairs) throw std::invalid_argument("ksd_cuda has no code for means over pairs");
  (a.family == Family::imq ? run<Family::imq, T>
                           : run<Family::rbf, T>)(plan(a), a.x, a.score_x, a.batch, a.n, a.d,
                                                  a.scales, a.n_scales, a.unbiased, a.value, a.dx,
                                                  a.dscore_x, a.workspace,
                                                  static_cast<cudaStream_t>(a.stream));
}

}  // namespace

std::int64_t stein_cuda_workspace(const Stein<float>& a) { return bytes<float>(plan(a)); }
std::int64_t stein_cuda_workspace(const Stein<double>& a) { return bytes<double>(plan(a)); }
void stein_cuda(const Stein<float>& a) { stein(a); }
void stein_cuda(const Stein<double>& a) { stein(a); }

std::int64_t ksd_cuda_workspace(const KSD<float>& a) { return bytes<float>(plan(a)); }
std::int64_t ksd_cuda_workspace(const KSD<double>& a) { return bytes<double>(plan(a)); }
void ksd_cuda(const KSD<float>& a) { ksd(a); }
void ksd_cuda(const KSD<double>& a) { ksd(a); }

}  // namespace vimae
