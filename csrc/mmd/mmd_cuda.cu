// Every block owns a few rows (points of x or of y) and sweeps columns; what the pairs add to the
// gradient of a row is summed by the thread or block that owns it, so nothing is added atomically.
// A symmetric pair is visited from both its ends: one distance more, but no gradient to share. A
// value needs no owner, so there the blocks of a symmetric term are visited once. Few rows are
// spread over the GPU by splitting their columns; partial gradients and values are then added in a
// fixed order.
//
// Distances are sums of squared differences of coordinates: nothing is expanded into norms and
// products.

#include <cstdint>
#include <type_traits>

#include "common/launch.cuh"
#include "common/tiles.cuh"
#include "mmd/mmd.h"
#include "mmd/mmd_math.h"

namespace vimae {
namespace {

enum class Order { value, gradient, hessian };

template <class T>
struct Scales {
  int count;
  Scale<T> at[kMaxScales];
};

// One sample's rows against its own points and, where `cross` is set, against those of the other.
template <class T>
struct Side {
  const T* own;
  const T* other;
  const T* own_v;
  const T* other_v;
  std::int64_t own_batch_stride, other_batch_stride;
  int n, m, d, splits;
  double own_value, cross_value;  // weights of k in the value; cross_value is 0 for the second side
  T own_weight, cross_weight;     // weights of 2 k' in the gradient
  double* values;                 // [batch][row blocks][splits]
  T* gradient;                    // [splits][batch][n][d]
  std::int64_t split_stride;
};

// Columns [begin, end) of one sample, and what their pairs weigh.
template <class T>
struct Columns {
  const T* y;
  const T* v;
  int begin, end;
  double value;
  T weight;
};

// The part of a block's columns that falls to one of `splits` blocks: part 0, 1 and 2 of its sweep.
template <Order O, class T>
__device__ Columns<T> columns_of(const Side<T>& side, std::int64_t batch, int split, int row0,
                                 int rows, int part) {
  const T* own = side.own + batch * side.own_batch_stride;
  const T* other = side.other + batch * side.other_batch_stride;
  const T* own_v = O == Order::hessian ? side.own_v + batch * std::int64_t(side.n) * side.d : own;
  const T* other_v =
      O == Order::hessian ? side.other_v + batch * std::int64_t(side.m) * side.d : other;
  Columns<T> c{own, own_v, 0, side.n, side.own_value, side.own_weight};
  if (part == 2) {
    c = {other, other_v, 0, side.m, side.cross_value, side.cross_weight};
  } else if (O == Order::value) {
    // The block on the diagonal, then those right of it for themselves and their mirror images.
    const int edge = min(row0 + rows, side.n);
    c.begin = part == 0 ? row0 : edge;
    c.end = part == 0 ? edge : side.n;
    c.value *= part == 0 ? 1 : 2;
  } else if (part == 1) {
    c.begin = side.n;
  }
  if (part != 2 && side.own_value == 0) c.end = c.begin;  // pairs of x and y alone
  const int share = (c.end - c.begin + side.splits - 1) / side.splits;
  c.begin = min(c.begin + split * share, c.end);
  c.end = min(c.begin + share, c.end);
  return c;
}

// Small d in float: a thread has R rows in registers, the block's columns pass through shared
// memory.

constexpr int kThreads = 128, kStage = 64, kFlush = 4096;

template <int D, int R, Family F, bool Gradient, bool One>
__global__ void __launch_bounds__(kThreads, 2)
    register_kernel(Side<float> side, Scales<float> scales) {
  constexpr int kRows = kThreads * R;
  __shared__ __align__(16) float stage[kStage * D];
  const int blocks = (side.n + kRows - 1) / kRows;
  const int split = blockIdx.x % side.splits, block = blockIdx.x / side.splits % blocks;
  const std::int64_t batch = blockIdx.x / side.splits / blocks;
  const float* own = side.own + batch * side.own_batch_stride;
  float* gradient =
      side.gradient + split * side.split_stride + batch * std::int64_t(side.n) * side.d;

  // Rows of a thread are kThreads apart; beyond the last it repeats the last, and keeps nothing.
  const int row0 = block * kRows + threadIdx.x;
  float x[R][D], g[R][D];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = row0 + r * kThreads;
#pragma unroll
    for (int k = 0; k < D; ++k) {
      x[r][k] = k < side.d ? own[std::int64_t(min(row, side.n - 1)) * side.d + k] : 0;
      g[r][k] = 0;
      if (Gradient && row < side.n && k < side.d) gradient[std::int64_t(row) * side.d + k] = 0;
    }
  }

  double value = 0;
  for (int part = 0; part < 3; ++part) {
    const Columns<float> c = columns_of<Gradient ? Order::gradient : Order::value>(
        side, batch, split, block * kRows, kRows, part);
    if (c.value == 0 && !Gradient) continue;
    const Scale<float> only = scales.at[0];
    double part_value = 0;
    for (int first = c.begin; first < c.end; first += kStage) {
      const int count = min(kStage, c.end - first);
      __syncthreads();  // fault: barrier
      for (int i = threadIdx.x; i < count * D; i += kThreads) {
        const int k = i % D;
        stage[i] = k < side.d ? c.y[std::int64_t(first + i / D) * side.d + k] : 0;
      }
      __syncthreads();
      float v[R] = {};
      // A pair that is soon done leaves the loop's own counting in view.
#pragma unroll(!One ? 1 : D * R == 2 && !Gradient ? 8 : 4)
      for (int j = 0; j < count; ++j) {
        float y[D];
#pragma unroll
        for (int k = 0; k < D; ++k) y[k] = stage[j * D + k];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          // With one scale its factors wait until the sums are done, and c is where s starts.
          float diff[D], s = One && F == Family::imq ? only.c : 0;
#pragma unroll
          for (int k = 0; k < D; ++k) {
            diff[k] = x[r][k] - y[k];
            s = fmaf(diff[k], diff[k], s);
          }
          float slope = 0, none = 0;
          if (One) {
            const float u =
                F == Family::imq ? DeviceOps::reciprocal(s) : pair_u<DeviceOps, F>(s, only.c);
            v[r] += u;
            slope = F == Family::imq ? u * u : u;
          } else {
            for (int i = 0; i < scales.count; ++i)
              add_scale<DeviceOps, F, Gradient, false>(s, scales.at[i], v[r], slope, none);
          }
          if (Gradient) {
#pragma unroll
            for (int k = 0; k < D; ++k) g[r][k] = fmaf(slope, diff[k], g[r][k]);
          }
        }
      }
      double stage_value = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) stage_value += row0 + r * kThreads < side.n ? double(v[r]) : 0;
      part_value += stage_value;
      // Float sums are kept short: every kFlush columns they move to memory, which the thread owns.
      if (Gradient && (first + kStage >= c.end || (first - c.begin) % kFlush == kFlush - kStage)) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int row = row0 + r * kThreads;
#pragma unroll
          for (int k = 0; k < D; ++k) {
            if (row < side.n && k < side.d)
              gradient[std::int64_t(row) * side.d + k] +=
                  (One ? c.weight * only.first : c.weight) * g[r][k];
            g[r][k] = 0;
          }
        }
      }
    }
    value += c.value * (One ? double(only.value) : 1.0) * part_value;
  }
  value = block_sum<kThreads>(value);
  if (threadIdx.x == 0) side.values[blockIdx.x] = value;
}

// Any d, float64 and the Hessian: a tile of squared distances is summed over chunks of coordinates
// and becomes weights in shared memory. With weights a_ij, a row's gradient is
//   sum_j a_ij (x_i - y_j) = (sum_j a_ij) (x_i - r) - sum_j a_ij (y_j - r)
// for every r: a product of matrices. With r the block's first point, all terms are differences.

// The pairs of a thread, as many as the registers hold.
template <class T, Order O>
using PairsOf = Pairs<sizeof(T) == 4 && O != Order::hessian ? 8 : 4, 4>;

// Blocks that a multiprocessor should hold: the others spill with more.
template <class T, Order O>
constexpr int kResident =
    sizeof(T) == 4 ? (O == Order::hessian ? 3 : 4) : (O == Order::value ? 3 : 2);

template <class T, Family F, Order O>
__global__ void __launch_bounds__(kTileThreads, kResident<T, O>)
    tiled_kernel(Side<T> side, Scales<T> scales) {
  constexpr bool kGradient = O != Order::value, kHessian = O == Order::hessian;
  using P = PairsOf<T, O>;
  constexpr int A = P::kA, B = P::kB;
  constexpr int kSamples = kHessian ? 2 : 1;  // x and y, or x and its direction, y and its
  constexpr int kRowStage = kChunk * kPadded<T, kTileRows>,
                kColumnStage = kChunk * kPadded<T, P::kColumns>,
                kWeights = kGradient ? P::kColumns * kPadded<T, kTileRows> : 1,
                kOthers = kGradient ? P::kColumns * kPaddedSpan<T> : 1;
  // The coordinates of a chunk or, later, weights and what they are applied to.
  __shared__ __align__(16) union {
    T stage[kSamples][kRowStage + kColumnStage];
    struct {
      T weight[kSamples][kWeights], others[kOthers];
    };
  } shared;
  __shared__ T sums[kSamples][kTileRows];
  const int blocks = (side.n + kTileRows - 1) / kTileRows;
  const int split = blockIdx.x % side.splits, block = blockIdx.x / side.splits % blocks;
  const std::int64_t batch = blockIdx.x / side.splits / blocks;
  const int row0 = block * kTileRows, rows = min(kTileRows, side.n - row0), d = side.d;
  const T* x[] = {
      side.own + batch * side.own_batch_stride + std::int64_t(row0) * d,
      kHessian ? side.own_v + (batch * side.n + row0) * d : nullptr,
  };
  T* gradient = side.gradient + split * side.split_stride + (batch * side.n + row0) * d;
  if (kGradient)
    for (int i = threadIdx.x; i < rows * d; i += kTileThreads) gradient[i] = 0;

  double value = 0;
  for (int part = 0; part < 3; ++part) {
    const Columns<T> c = columns_of<O>(side, batch, split, row0, kTileRows, part);
    if (c.value == 0 && !kGradient) continue;
    for (int first = c.begin; first < c.end; first += P::kColumns) {
      const int columns = c.end - first;
      const T* y[] = {c.y + std::int64_t(first) * d,
                      kHessian ? c.v + std::int64_t(first) * d : nullptr};
      const Stage<T, kTileRows> row_stage[] = {{x[0], rows, d}, {x[kSamples - 1], rows, d}};
      const Stage<T, P::kColumns> column_stage[] = {{y[0], columns, d},
                                                    {y[kSamples - 1], columns, d}};
      T s[A][B] = {}, t[A][B] = {};
      for (int k0 = 0; k0 < d; k0 += kChunk) {
        __syncthreads();
#pragma unroll
        for (int l = 0; l < kSamples; ++l) {
          row_stage[l].load(k0, shared.stage[l]);
          column_stage[l].load(k0, shared.stage[l] + kRowStage);
        }
        wait_for_copies();
        __syncthreads();
        // Squares are summed per chunk: rounding grows with d / kChunk. Products have both signs.
        T part[A][B] = {};
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          T xk[kSamples][A], yk[kSamples][B];
#pragma unroll
          for (int l = 0; l < kSamples; ++l) {
            read(shared.stage[l] + k * kPadded<T, kTileRows> + P::row(), xk[l]);
            read(shared.stage[l] + kRowStage + k * kPadded<T, P::kColumns> + P::column(), yk[l]);
          }
#pragma unroll
          for (int a = 0; a < A; ++a) {
#pragma unroll
            for (int b = 0; b < B; ++b) {
              const T diff = xk[0][a] - yk[0][b];
              part[a][b] = fma(diff, diff, part[a][b]);
              if (kHessian) t[a][b] = fma(diff, xk[kSamples - 1][a] - yk[kSamples - 1][b], t[a][b]);
            }
          }
        }
#pragma unroll
        for (int a = 0; a < A; ++a) {
#pragma unroll
          for (int b = 0; b < B; ++b) s[a][b] += part[a][b];
        }
      }

      if (kGradient) {
        __syncthreads();  // fault: barrier
      }
      T tile_value = 0, row_sums[kSamples][A] = {};
#pragma unroll
      for (int b = 0; b < B; ++b) {
        T minus[kSamples][A];
#pragma unroll
        for (int a = 0; a < A; ++a) {
          T k = 0, w = 0, u = 0;
          for (int l = 0; l < scales.count; ++l)
            add_scale<DeviceOps, F, kGradient, kHessian>(s[a][b], scales.at[l], k, w, u);
          const bool pair = P::row() + a < rows && P::column() + b < columns;
          tile_value += pair ? k : T(0);
          // The first weighs y or, in a Hessian, its direction, and the second then y.
          minus[0][a] = pair ? -c.weight * w : T(0);
          if (kHessian) minus[kSamples - 1][a] = pair ? -c.weight * u * t[a][b] : T(0);
#pragma unroll
          for (int l = 0; l < kSamples; ++l) row_sums[l][a] -= minus[l][a];
        }
#pragma unroll
        for (int l = 0; kGradient && l < kSamples; ++l)
          write(shared.weight[l] + (P::column() + b) * kPadded<T, kTileRows> + P::row(), minus[l]);
      }
      value += c.value * double(tile_value);
      if constexpr (kGradient) {
#pragma unroll
        for (int l = 0; l < kSamples; ++l) {
#pragma unroll
          for (int a = 0; a < A; ++a) {
            const T sum = row_sum<P::kAcross>(row_sums[l][a]);
            if (P::column() == 0) sums[l][P::row() + a] = sum;
          }
        }

        for (int k0 = 0; k0 < d; k0 += kSpan) {
          Product<T> g;
#pragma unroll
          for (int l = 0; l < kSamples; ++l) {
            __syncthreads();
            stage_differences<P::kColumns>(y[l] + k0, x[l] + k0, columns, d - k0, d, shared.others);
            __syncthreads();  // fault: barrier
            g.template add<P::kColumns>(shared.weight[kSamples - 1 - l], shared.others);
          }
#pragma unroll
          for (int a = 0; a < kOut; ++a) {
#pragma unroll
            for (int e = 0; e < kOut; ++e) {
              const int i = g.row(a), k = k0 + g.coordinate(e);
              if (i >= rows || k >= d) continue;
              T total = gradient[std::int64_t(i) * d + k] + g.at[a][e];
#pragma unroll
              for (int l = 0; l < kSamples; ++l) {
                const T* own = x[kSamples - 1 - l];
                total += sums[l][i] * (own[std::int64_t(i) * d + k] - own[k]);
              }
              gradient[std::int64_t(i) * d + k] = total;
            }
          }
        }
      }
    }
  }
  value = block_sum<kTileThreads>(value);
  if (threadIdx.x == 0 && !kHessian) side.values[blockIdx.x] = value;
}

// value[b] = the sum of problem b's partial values, less the diagonals, which the sweeps have in.
template <class Out>
__global__ void __launch_bounds__(kTileThreads)
    finish_value(const double* x_values, const double* y_values, int x_count, int y_count,
                 double diagonals, bool unbiased, Out* value) {
  double sum = 0;
  for (int i = threadIdx.x; i < x_count; i += kTileThreads)
    sum += x_values[std::int64_t(blockIdx.x) * x_count + i];
  for (int i = threadIdx.x; i < y_count; i += kTileThreads)
    sum += y_values[std::int64_t(blockIdx.x) * y_count + i];
  sum = block_sum<kTileThreads>(sum);
  sum -= diagonals;
  // A squared norm, which rounding does not make negative; NaN stays NaN.
  if (!unbiased && sum < 0) sum = 0;
  if (threadIdx.x == 0) value[blockIdx.x] = Out(sum);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    finish_gradient(const T* partial, int splits, std::int64_t size, T* gradient) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i >= size) return;
  T sum = 0;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + i];
  gradient[i] = sum;
}

// The launch of one side: which kernel, and how the work is cut.
struct Plan {
  int rows, blocks, splits;
  std::int64_t values, gradient;  // sizes of the partial results
};

template <class T>
constexpr bool in_registers(Order order, std::int64_t d) {
  return sizeof(T) == 4 && order != Order::hessian && d <= 16;
}

template <class T>
Plan plan(Order order, std::int64_t batch, std::int64_t n, std::int64_t m, std::int64_t d) {
  const int rows = in_registers<T>(order, d) ? kThreads * (d <= 8 && n > 1024 ? 4 : 1) : kTileRows;
  const int blocks = int((n + rows - 1) / rows);
  // Enough blocks to fill a GPU; at most 8 splits, for each has a partial gradient.
  const std::int64_t columns = n > m ? n : m;
  std::int64_t splits = 1024 / (batch * blocks + 1);
  splits = splits < columns / 128 ? splits : columns / 128;
  splits = splits < 8 ? splits : 8;
  splits = splits < 1 ? 1 : splits;
  return {rows, blocks, int(splits), batch * blocks * splits,
          splits > 1 && order != Order::value ? splits * batch * n * d : 0};
}

template <class T>
Order x_order(const MMD<T>& a) {
  return a.vx ? Order::hessian : a.dx ? Order::gradient : Order::value;
}

template <class T>
Order y_order(const MMD<T>& a) {
  return a.vx ? Order::hessian : a.dy ? Order::gradient : Order::value;
}

template <class T>
std::int64_t workspace(const MMD<T>& a) {
  const Plan x = plan<T>(x_order(a), a.batch, a.n, a.m, a.d),
             y = plan<T>(y_order(a), a.batch, a.m, a.n, a.d);
  return (x.values + y.values) * sizeof(double) + (x.gradient + y.gradient) * sizeof(T);
}

template <Family F, bool Gradient, bool One>
void launch_registers(const Plan& p, const Side<float>& side, const Scales<float>& scales,
                      std::int64_t batch, cudaStream_t stream) {
  const dim3 grid(unsigned(p.values));
  const bool four = p.rows == 4 * kThreads;
  if (side.d <= 2)
    four ? launch(register_kernel<2, 4, F, Gradient, One>, grid, kThreads, stream, side, scales)
         : launch(register_kernel<2, 1, F, Gradient, One>, grid, kThreads, stream, side, scales);
  else if (side.d <= 4)
    four ? launch(register_kernel<4, 4, F, Gradient, One>, grid, kThreads, stream, side, scales)
         : launch(register_kernel<4, 1, F, Gradient, One>, grid, kThreads, stream, side, scales);
  else if (side.d <= 8)
    four ? launch(register_kernel<8, 4, F, Gradient, One>, grid, kThreads, stream, side, scales)
         : launch(register_kernel<8, 1, F, Gradient, One>, grid, kThreads, stream, side, scales);
  else
    launch(register_kernel<16, 1, F, Gradient, One>, grid, kThreads, stream, side, scales);
}

template <Family F, class T>
void launch_side(Order order, const Plan& p, const Side<T>& side, const Scales<T>& scales,
                 std::int64_t batch, cudaStream_t stream) {
  if constexpr (sizeof(T) == 4) {
    if (in_registers<T>(order, side.d)) {
      const bool gradient = order == Order::gradient;
      if (scales.count == 1)
        gradient ? launch_registers<F, true, true>(p, side, scales, batch, stream)
                 : launch_registers<F, false, true>(p, side, scales, batch, stream);
      else
        gradient ? launch_registers<F, true, false>(p, side, scales, batch, stream)
                 : launch_registers<F, false, false>(p, side, scales, batch, stream);
      return;
    }
  }
  const dim3 grid(unsigned(p.values));
  switch (order) {
    case Order::value:
      return launch(tiled_kernel<T, F, Order::value>, grid, kTileThreads, stream, side, scales);
    case Order::gradient:
      return launch(tiled_kernel<T, F, Order::gradient>, grid, kTileThreads, stream, side, scales);
    case Order::hessian:
      return launch(tiled_kernel<T, F, Order::hessian>, grid, kTileThreads, stream, side, scales);
  }
}

template <Family F, class T>
void run(const MMD<T>& a) {
  const double n = double(a.n), m = double(a.m), off = a.unbiased ? 1 : 0;
  const bool apart = a.pairs && a.m;  // no pairs within x and within y
  const double wx = apart ? 0 : 1 / (n * (n - off)), wy = m && !apart ? 1 / (m * (m - off)) : 0;
  const double wxy = m ? (apart ? 1 : -2) / (n * m) : 0;
  const Plan px = plan<T>(x_order(a), a.batch, a.n, a.m, a.d),
             py = plan<T>(y_order(a), a.batch, a.m, a.n, a.d);
  double* values = static_cast<double*>(a.workspace);
  T* partial = reinterpret_cast<T*>(values + px.values + py.values);
  const cudaStream_t stream = static_cast<cudaStream_t>(a.stream);
  Scales<T> scales{a.n_scales, {}};
  for (int i = 0; i < a.n_scales; ++i) scales.at[i] = scale_of<T>(F, a.scales[i], 1);

  T* gx = px.gradient ? partial : a.dx;
  T* gy = py.gradient ? partial + px.gradient : a.dy;
  const Side<T> x{a.x,
                  a.y,
                  a.vx,
                  a.vy,
                  a.x_batch_stride,
                  a.y_batch_stride,
                  int(a.n),
                  int(a.m),
                  int(a.d),
                  px.splits,
                  wx,
                  wxy,
                  T(2 * wx),
                  T(wxy),
                  values,
                  gx,
                  a.batch * a.n * a.d};
  const Side<T> y{a.y,
                  a.x,
                  a.vy,
                  a.vx,
                  a.y_batch_stride,
                  a.x_batch_stride,
                  int(a.m),
                  int(a.n),
                  int(a.d),
                  py.splits,
                  wy,
                  0,
                  T(2 * wy),
                  T(wxy),
                  values + px.values,
                  gy,
                  a.batch * a.m * a.d};
  launch_side<F>(x_order(a), px, x, scales, a.batch, stream);
  if (a.m) launch_side<F>(y_order(a), py, y, scales, a.batch, stream);
  const auto finish = [&](const Plan& p, const T* from, std::int64_t size, T* to) {
    if (p.gradient)
      launch(finish_gradient<T>, dim3(unsigned((size + kTileThreads - 1) / kTileThreads)),
             kTileThreads, stream, from, p.splits, size, to);
  };
  finish(px, gx, a.batch * a.n * a.d, a.dx);
  finish(py, gy, a.batch * a.m * a.d, a.dy);
  const auto finish_values = [&](auto* to) {
    launch(finish_value<std::remove_pointer_t<decltype(to)>>, dim3(unsigned(a.batch)), kTileThreads,
           stream, values, values + px.values, int(px.values / a.batch), int(py.values / a.batch),
           off * a.n_scales * (n * wx + m * wy), a.unbiased, to);
  };
  if (a.pairs)
    finish_values(a.pairs);
  else if (a.value)
    finish_values(a.value);
}

}  // namespace

std::int64_t mmd_cuda_workspace(const MMD<float>& a) { return workspace(a); }
std::int64_t mmd_cuda_workspace(const MMD<double>& a) { return workspace(a); }
void mmd_cuda(const MMD<float>& a) {
  a.family == Family::imq ? run<Family::imq>(a) : run<Family::rbf>(a);
}
void mmd_cuda(const MMD<double>& a) {
  a.family == Family::imq ? run<Family::imq>(a) : run<Family::rbf>(a);
}

}  // namespace vimae
