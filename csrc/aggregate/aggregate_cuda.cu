// A marginal is the same problem as the joint density, of one coordinate: there are two kinds of
// kernel, one for problems of one coordinate, which live in registers, and one for many. Each kind
// has its value, its gradient by the rows (to z) and its gradient by the columns (to the
// posteriors).
//
// Every block owns some rows or columns and sweeps the others, which pass through shared memory; a
// thread has a few of its own against a handful of the swept, so maxima and sums stay within it and
// nothing is added atomically. A sweep may be split among blocks: what they find is added in a
// fixed order at the end.
//
// The log density of a pair is, in bits, c_j + h_j (z_i - mean_j)^2 with h = -log2(e) / (2 var).

#include <cmath>
#include <cstdint>

#include "aggregate/aggregate.h"
#include "common/launch.cuh"

namespace vimae {
namespace {

constexpr int kThreads = 128, kSwept = 16, kChunk = 16;
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453,
                 kLog2Pi = 1.8378770664093453;
// Bits of a posterior that is not there: finite, for inf - inf is NaN.
constexpr double kNothing = -1e38, kLowest = -3e38;

// Own rows or columns of a thread.
template <class T>
constexpr int kOfMarginal = sizeof(T) == 4 ? 4 : 2;
template <class T>
constexpr int kOfJoint = sizeof(T) == 4 ? 2 : 1;

__device__ __forceinline__ float power_of_2(float x) {
#ifdef VIMAE_HOST_SHIM
  return exp2f(x);
#else
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#endif
}
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }
__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
struct Call {
  const T* z;
  const T* mean;
  const T* log_var;
  std::int64_t z_stride, mean_stride, log_var_stride;  // of the batch
  int n, B, d;
  double log_weight;      // of most pairs
  T own_bits, next_bits;  // by how much those of a row's own posterior and of the next differ
  int splits;             // blocks that share a sweep

  // An infinite number is as undefined as NaN: x - x is NaN for both, and 0 for all others.
  __device__ T z_at(std::int64_t batch, int i, int k) const {
    const T x = z[batch * z_stride + std::int64_t(i) * d + k];
    return x + (x - x);
  }
  __device__ T mean_at(std::int64_t batch, int j, int k) const {
    const T x = mean[batch * mean_stride + std::int64_t(j) * d + k];
    return x + (x - x);
  }
  __device__ T log_var_at(std::int64_t batch, int j, int k) const {
    const T x = log_var[batch * log_var_stride + std::int64_t(j) * d + k];
    return x + (x - x);
  }
  __device__ T h_at(std::int64_t batch, int j, int k) const {
    return T(-0.5 * kLog2E) * exp(-log_var_at(batch, j, k));
  }
  __device__ T weight_bits(int i, int j) const {
    return j == i ? own_bits : j == (i + 1 == B ? 0 : i + 1) ? next_bits : T(0);
  }
};

template <class T>
struct __align__(2 * sizeof(T)) Posterior {
  T mean, h;
};

// What falls to a block: a problem, the first of those it owns, and those it sweeps.
struct Share {
  std::int64_t problem, part;  // part counts problems of all splits
  int own, begin, end;
};

__device__ Share share_of(int own, int per_block, int swept, int splits) {
  const int blocks = (own + per_block - 1) / per_block, split = blockIdx.x % splits;
  const unsigned index = blockIdx.x / splits;
  const std::int64_t problem = index / blocks, problems = gridDim.x / splits / blocks;
  const int share = (swept + splits - 1) / splits, begin = min(split * share, swept);
  return {problem, split * problems + problem, int(index % blocks) * per_block, begin,
          min(begin + share, swept)};
}

// One coordinate: a problem is a coordinate of a batch entry.

// Columns on their way through shared memory.
template <class T>
struct Columns {
  Posterior<T> posterior[kThreads];
  T c[kThreads];

  __device__ void load(const Call<T>& a, std::int64_t batch, int k, int first, int end) {
    const int i = threadIdx.x, j = first + i;
    const bool there = j < end;
    posterior[i].mean = there ? a.mean_at(batch, j, k) : T(0);
    posterior[i].h = there ? a.h_at(batch, j, k) : T(0);
    c[i] = there ? T(-0.5 * kLog2E) * (a.log_var_at(batch, j, k) + T(kLog2Pi)) : T(kNothing);
  }
};

// peaks, totals: [split][batch][d][n].
template <class T, bool Stratified>
__global__ void __launch_bounds__(kThreads) marginal_kernel(Call<T> a, T* peaks, T* totals) {
  constexpr int R = kOfMarginal<T>;
  __shared__ Columns<T> columns;
  const Share s = share_of(a.n, R * kThreads, a.B, a.splits);
  const std::int64_t batch = s.problem / a.d;
  const int k = s.problem % a.d, row0 = s.own + threadIdx.x;
  T z[R], peak[R], total[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    z[r] = a.z_at(batch, min(row0 + r * kThreads, a.n - 1), k);
    peak[r] = T(kLowest);
    total[r] = 0;
  }
  for (int first = s.begin; first < s.end; first += kThreads) {
    __syncthreads();  // fault: barrier
    columns.load(a, batch, k, first, s.end);
    __syncthreads();  // fault: barrier
    for (int j = 0; j < min(kThreads, s.end - first); j += kSwept) {
      T bits[R][kSwept], top[R];
#pragma unroll
      for (int r = 0; r < R; ++r) top[r] = peak[r];
#pragma unroll
      for (int c = 0; c < kSwept; ++c) {
        const Posterior<T> p = columns.posterior[j + c];
        const T offset = columns.c[j + c];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const T difference = z[r] - p.mean;
          bits[r][c] = fused(difference * p.h, difference, offset);
          if (Stratified) bits[r][c] += a.weight_bits(row0 + r * kThreads, first + j + c);
          top[r] = max(top[r], bits[r][c]);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        T sum = total[r] * power_of_2(peak[r] - top[r]);  // fault: total[r]
#pragma unroll
        for (int c = 0; c < kSwept; ++c) sum += power_of_2(bits[r][c] - top[r]);
        total[r] = sum;
        peak[r] = top[r];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = row0 + r * kThreads;
    if (row < a.n) {
      peaks[s.part * a.n + row] = peak[r];
      totals[s.part * a.n + row] = total[r];
    }
  }
}

// dz: [split][batch][d][n], sum_j q_ij h_j (z_i - mean_j) with q_ij = g_i 2^(bits_ij - peak_i) /
// total_i.
template <class T, bool Stratified>
__global__ void __launch_bounds__(kThreads)
    marginal_rows_kernel(Call<T> a, const T* peaks, const T* totals, const T* g, T* dz) {
  constexpr int R = kOfMarginal<T>;
  __shared__ Columns<T> columns;
  const Share s = share_of(a.n, R * kThreads, a.B, a.splits);
  const std::int64_t batch = s.problem / a.d;
  const int k = s.problem % a.d, row0 = s.own + threadIdx.x;
  T z[R], peak[R], sum[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = min(row0 + r * kThreads, a.n - 1);
    z[r] = a.z_at(batch, row, k);
    peak[r] = peaks[(batch * a.n + row) * a.d + k];
    sum[r] = 0;
  }
  for (int first = s.begin; first < s.end; first += kThreads) {
    __syncthreads();  // fault: barrier
    columns.load(a, batch, k, first, s.end);
    __syncthreads();  // fault: barrier
#pragma unroll 8
    for (int j = 0; j < min(kThreads, s.end - first); ++j) {
      const Posterior<T> p = columns.posterior[j];
      const T offset = columns.c[j];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const T difference = z[r] - p.mean, slope = difference * p.h;
        T bits = fused(slope, difference, offset);
        if (Stratified) bits += a.weight_bits(row0 + r * kThreads, first + j);
        sum[r] = fused(power_of_2(bits - peak[r]), slope, sum[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = row0 + r * kThreads;
    const std::int64_t at = (batch * a.n + row) * a.d + k;
    if (row < a.n) dz[s.part * a.n + row] = sum[r] * (g[at] / totals[at]);
  }
}

// moments: [split][batch][d][3][B], the sums over i of q, q (z - mean) and q (z - mean)^2.
template <class T, bool Stratified>
__global__ void __launch_bounds__(kThreads)
    marginal_columns_kernel(Call<T> a, const T* peaks, const T* totals, const T* g, T* moments) {
  constexpr int R = kOfMarginal<T>;
  __shared__ T z[kThreads], peak[kThreads], scale[kThreads];
  const Share s = share_of(a.B, R * kThreads, a.n, a.splits);
  const std::int64_t batch = s.problem / a.d;
  const int k = s.problem % a.d, column0 = s.own + threadIdx.x;
  Posterior<T> p[R];
  T offset[R], moment0[R], moment1[R], moment2[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int j = min(column0 + r * kThreads, a.B - 1);
    p[r].mean = a.mean_at(batch, j, k);
    p[r].h = a.h_at(batch, j, k);
    offset[r] = T(-0.5 * kLog2E) * (a.log_var_at(batch, j, k) + T(kLog2Pi));
    moment0[r] = moment1[r] = moment2[r] = 0;
  }
  for (int first = s.begin; first < s.end; first += kThreads) {
    __syncthreads();  // fault: barrier
    if (first + threadIdx.x < s.end) {
      const int i = first + threadIdx.x;
      const std::int64_t at = (batch * a.n + i) * a.d + k;
      z[threadIdx.x] = a.z_at(batch, i, k);
      peak[threadIdx.x] = peaks[at];
      scale[threadIdx.x] = g[at] / totals[at];
    }
    __syncthreads();  // fault: barrier
#pragma unroll 8
    for (int i = 0; i < min(kThreads, s.end - first); ++i) {
      const T z_i = z[i], peak_i = peak[i], scale_i = scale[i];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const T difference = z_i - p[r].mean;
        T bits = fused(difference * p[r].h, difference, offset[r]);
        if (Stratified) bits += a.weight_bits(first + i, column0 + r * kThreads);
        const T q = power_of_2(bits - peak_i) * scale_i, moved = q * difference;
        moment0[r] += q;
        moment1[r] += moved;
        moment2[r] = fused(moved, difference, moment2[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int column = column0 + r * kThreads;
    T* at = moments + s.part * 3 * a.B + column;
    if (column < a.B) at[0] = moment0[r], at[a.B] = moment1[r], at[2 * a.B] = moment2[r];
  }
}

// All coordinates: a problem is a batch entry.

// c_j in double, [batch][B].
template <class T>
__global__ void __launch_bounds__(kThreads)
    offsets_kernel(Call<T> a, std::int64_t count, double* c) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  double sum = a.d * kLog2Pi;
  for (int k = 0; k < a.d; ++k) sum += a.log_var_at(i / a.B, i % a.B, k);
  c[i] = -0.5 * kLog2E * sum;
}

// A chunk of the coordinates of some rows and columns.
template <class T, int ROWS, int COLUMNS>
struct Chunk {
  // One more than there are, where threads that write side by side would meet in a bank.
  T z[kChunk][ROWS + (ROWS > kSwept)];
  Posterior<T> posterior[kChunk][COLUMNS + (COLUMNS > kSwept)];

  // Those beyond the last repeat it; coordinates beyond the last add nothing.
  __device__ void load(const Call<T>& a, std::int64_t batch, int row, int rows, int column,
                       int columns, int k0) {
    for (int i = threadIdx.x; i < ROWS * kChunk; i += kThreads) {
      const int k = i % kChunk;
      z[k][i / kChunk] =
          k0 + k < a.d ? a.z_at(batch, min(row + i / kChunk, rows - 1), k0 + k) : T(0);
    }
    for (int i = threadIdx.x; i < COLUMNS * kChunk; i += kThreads) {
      const int k = i % kChunk, j = min(column + i / kChunk, columns - 1);
      const bool there = k0 + k < a.d;
      posterior[k][i / kChunk] = {there ? a.mean_at(batch, j, k0 + k) : T(0),
                                  there ? a.h_at(batch, j, k0 + k) : T(0)};
    }
  }
};

// A thread's pairs: bits are high + low. Sums over many coordinates are large, and about to be
// exponentiated: they are rounded once per chunk, and what that took is kept.
template <class T>
struct Bits {
  T high[kOfJoint<T>][kSwept], low[kOfJoint<T>][kSwept];

  __device__ void start(int r, int c, double offset) {
    high[r][c] = T(offset);
    low[r][c] = T(offset - double(high[r][c]));
  }

  __device__ void add(int r, int c, T part) {
    const T before = high[r][c], sum = before + part, added = sum - before;
    low[r][c] += (before - (sum - added)) + (part - added);
    high[r][c] = sum;
  }
};

template <class T>
using RowsChunk = Chunk<T, kOfJoint<T> * kThreads, kSwept>;
template <class T>
using ColumnsChunk = Chunk<T, kSwept, kOfJoint<T> * kThreads>;

// Pairs of the block's rows from s.own and the columns from `first`.
template <class T, bool Stratified>
__device__ void bits_of_rows(const Call<T>& a, const Share& s, int first, const double* offsets,
                             RowsChunk<T>& chunk, Bits<T>& bits) {
  constexpr int R = kOfJoint<T>;
#pragma unroll
  for (int c = 0; c < kSwept; ++c) {
    const double offset = first + c < s.end ? offsets[s.problem * a.B + first + c] : kNothing;
#pragma unroll
    for (int r = 0; r < R; ++r) bits.start(r, c, offset);
  }
  for (int k0 = 0; k0 < a.d; k0 += kChunk) {
    __syncthreads();  // fault: barrier
    chunk.load(a, s.problem, s.own, a.n, first, s.end, k0);
    __syncthreads();  // fault: barrier
    T part[R][kSwept] = {};
#pragma unroll 2
    for (int k = 0; k < min(kChunk, a.d - k0); ++k) {
      T z[R];
#pragma unroll
      for (int r = 0; r < R; ++r) z[r] = chunk.z[k][threadIdx.x + r * kThreads];
#pragma unroll
      for (int c = 0; c < kSwept; ++c) {
        const Posterior<T> p = chunk.posterior[k][c];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const T difference = z[r] - p.mean;
          part[r][c] = fused(difference * p.h, difference, part[r][c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kSwept; ++c) {
#pragma unroll
      for (int r = 0; r < R; ++r) bits.add(r, c, part[r][c]);
    }
  }
#pragma unroll
  for (int c = 0; c < kSwept; ++c) {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (Stratified)
        bits.low[r][c] += a.weight_bits(s.own + threadIdx.x + r * kThreads, first + c);
  }
}

// joint: [split][batch][n], in bits.
template <class T, bool Stratified>
__global__ void __launch_bounds__(kThreads)
    joint_kernel(Call<T> a, const double* offsets, double* joint) {
  constexpr int R = kOfJoint<T>;
  __shared__ RowsChunk<T> chunk;
  const Share s = share_of(a.n, R * kThreads, a.B, a.splits);
  T peak[R], total[R];
#pragma unroll
  for (int r = 0; r < R; ++r) peak[r] = T(kLowest), total[r] = 0;
  for (int first = s.begin; first < s.end; first += kSwept) {
    Bits<T> bits;
    bits_of_rows<T, Stratified>(a, s, first, offsets, chunk, bits);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      T top = peak[r];
#pragma unroll
      for (int c = 0; c < kSwept; ++c) top = max(top, bits.high[r][c]);
      T sum = total[r] * power_of_2(peak[r] - top);
      // Within low of the maximum, which is as good: the largest term is about 1.
#pragma unroll
      for (int c = 0; c < kSwept; ++c) sum += power_of_2((bits.high[r][c] - top) + bits.low[r][c]);
      total[r] = sum;
      peak[r] = top;
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = s.own + threadIdx.x + r * kThreads;
    if (row < a.n) joint[s.part * a.n + row] = double(peak[r]) + log2(double(total[r]));
  }
}

// dz: [split][batch][d][n], sum_j p_ij h_jk (z_ik - mean_jk) with p_ij = g_i 2^bits_ij / 2^joint_i.
template <class T, bool Stratified>
__global__ void __launch_bounds__(kThreads)
    joint_rows_kernel(Call<T> a, const double* offsets, const double* joint, const T* g, T* dz) {
  constexpr int R = kOfJoint<T>;
  __shared__ RowsChunk<T> chunk;
  const Share s = share_of(a.n, R * kThreads, a.B, a.splits);
  T joint_high[R], joint_low[R], scale[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = s.own + threadIdx.x + r * kThreads;
    const std::int64_t at = s.problem * a.n + min(row, a.n - 1);
    const double bits = (joint[at] - a.log_weight) * kLog2E;
    joint_high[r] = T(bits);
    joint_low[r] = T(bits - double(joint_high[r]));
    scale[r] = g[at];
    for (int k = 0; k < a.d; ++k)
      if (row < a.n) dz[(s.part * a.d + k) * a.n + row] = 0;
  }
  for (int first = s.begin; first < s.end; first += kSwept) {
    Bits<T> bits;
    bits_of_rows<T, Stratified>(a, s, first, offsets, chunk, bits);
    T p[R][kSwept];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < kSwept; ++c)
        p[r][c] = scale[r] *
                  power_of_2((bits.high[r][c] - joint_high[r]) + (bits.low[r][c] - joint_low[r]));
    }
    for (int k0 = 0; k0 < a.d; k0 += kChunk) {
      // A single chunk is still there.
      if (a.d > kChunk) {
        __syncthreads();  // fault: barrier
        chunk.load(a, s.problem, s.own, a.n, first, s.end, k0);
        __syncthreads();  // fault: barrier
      }
      for (int k = 0; k < min(kChunk, a.d - k0); ++k) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int row = s.own + threadIdx.x + r * kThreads;
          const T z = chunk.z[k][threadIdx.x + r * kThreads];
          T sum = 0;
#pragma unroll
          for (int c = 0; c < kSwept; ++c) {
            const Posterior<T> q = chunk.posterior[k][c];
            sum = fused(p[r][c], (z - q.mean) * q.h, sum);
          }
          if (row < a.n) dz[(s.part * a.d + k0 + k) * a.n + row] += sum;
        }
      }
    }
  }
}

// weight: [split][batch][B], the sums over i of p; moments: [split][batch][d][2][B], those of
// p (z - mean) and p (z - mean)^2.
template <class T, bool Stratified>
__global__ void __launch_bounds__(kThreads)
    joint_columns_kernel(Call<T> a, const double* offsets, const double* joint, const T* g,
                         T* weight, T* moments) {
  constexpr int R = kOfJoint<T>;
  __shared__ ColumnsChunk<T> chunk;
  __shared__ T joint_high[kSwept], joint_low[kSwept], scale[kSwept];
  const Share s = share_of(a.B, R * kThreads, a.n, a.splits);
  const int column0 = s.own + threadIdx.x;
  T total[R];
  double offset[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int column = column0 + r * kThreads;
    total[r] = 0;
    offset[r] = offsets[s.problem * a.B + min(column, a.B - 1)];
    for (int k = 0; k < 2 * a.d; ++k)
      if (column < a.B) moments[(s.part * 2 * a.d + k) * a.B + column] = 0;
  }
  for (int first = s.begin; first < s.end; first += kSwept) {
    Bits<T> bits;
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < kSwept; ++c) bits.start(r, c, offset[r]);
    }
    for (int k0 = 0; k0 < a.d; k0 += kChunk) {
      __syncthreads();  // fault: barrier
      chunk.load(a, s.problem, first, s.end, s.own, a.B, k0);
      if (k0 == 0 && threadIdx.x < kSwept) {
        const int row = first + threadIdx.x;
        const std::int64_t at = s.problem * a.n + min(row, s.end - 1);
        const double joint_bits = (joint[at] - a.log_weight) * kLog2E;
        joint_high[threadIdx.x] = T(joint_bits);
        joint_low[threadIdx.x] = T(joint_bits - double(joint_high[threadIdx.x]));  // fault: T(0)
        scale[threadIdx.x] = row < s.end ? g[at] : T(0);
      }
      __syncthreads();  // fault: barrier
      T part[R][kSwept] = {};
#pragma unroll 2
      for (int k = 0; k < min(kChunk, a.d - k0); ++k) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const Posterior<T> p = chunk.posterior[k][threadIdx.x + r * kThreads];
#pragma unroll
          for (int c = 0; c < kSwept; ++c) {
            const T difference = chunk.z[k][c] - p.mean;
            part[r][c] = fused(difference * p.h, difference, part[r][c]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < kSwept; ++c) bits.add(r, c, part[r][c]);
      }
    }
    T p[R][kSwept];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < kSwept; ++c) {
        if (Stratified) bits.low[r][c] += a.weight_bits(first + c, column0 + r * kThreads);
        p[r][c] = scale[c] *
                  power_of_2((bits.high[r][c] - joint_high[c]) + (bits.low[r][c] - joint_low[c]));
        total[r] += p[r][c];
      }
    }
    for (int k0 = 0; k0 < a.d; k0 += kChunk) {
      if (a.d > kChunk) {
        __syncthreads();  // fault: barrier
        chunk.load(a, s.problem, first, s.end, s.own, a.B, k0);
        __syncthreads();  // fault: barrier
      }
      for (int k = 0; k < min(kChunk, a.d - k0); ++k) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int column = column0 + r * kThreads;
          const T mean = chunk.posterior[k][threadIdx.x + r * kThreads].mean;
          T moment1 = 0, moment2 = 0;
#pragma unroll
          for (int c = 0; c < kSwept; ++c) {
            const T difference = chunk.z[k][c] - mean, moved = p[r][c] * difference;
            moment1 += moved;
            moment2 = fused(moved, difference, moment2);
          }
          T* at = moments + (s.part * a.d + k0 + k) * 2 * a.B + column;
          if (column < a.B) at[0] += moment1, at[a.B] += moment2;
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int column = column0 + r * kThreads;
    if (column < a.B) weight[s.part * a.B + column] = total[r];
  }
}

// What the blocks found, put together: a thread has one element of the outputs.

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_marginal(const T* peaks, const T* totals, int splits, int n, int d, double log_weight,
                    std::int64_t size, T* marginal, T* peak, T* total) {
  const std::int64_t at = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const std::int64_t from = (at / d / n * d + at % d) * n + at / d % n;
  T top = peaks[from], sum = 0;
  for (int split = 1; split < splits; ++split) top = max(top, peaks[split * size + from]);
  for (int split = 0; split < splits; ++split)
    sum += totals[split * size + from] * power_of_2(peaks[split * size + from] - top);
  peak[at] = top;
  total[at] = sum;
  marginal[at] = T((double(top) + log2(double(sum))) * kLn2 + log_weight);
}

__global__ void __launch_bounds__(kThreads)
    finish_joint(const double* parts, int splits, double log_weight, std::int64_t size,
                 double* joint) {
  const std::int64_t at = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  double top = parts[at], sum = 0;
  for (int split = 1; split < splits; ++split) top = max(top, parts[split * size + at]);
  for (int split = 0; split < splits; ++split) sum += exp2(parts[split * size + at] - top);
  joint[at] = (top + log2(sum)) * kLn2 + log_weight;
}

template <class T>
__device__ T sum_of_parts(const T* parts, int splits, std::int64_t size, std::int64_t at) {
  T sum = 0;
  for (int split = 0; split < splits; ++split) sum += parts[split * size + at];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_rows(const T* parts, int splits, int n, int d, std::int64_t size, T* dz) {
  const std::int64_t at = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const std::int64_t from = (at / d / n * d + at % d) * n + at / d % n;
  dz[at] = T(2 * kLn2) * sum_of_parts(parts, splits, size, from);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_columns(Call<T> a, const T* marginal, int marginal_splits, const T* joint,
                   const T* joint_weight, int joint_splits, std::int64_t size, T* dmean,
                   T* dlog_var) {
  const std::int64_t at = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size) return;
  const int k = at % a.d, j = at / a.d % a.B;
  const std::int64_t batch = at / a.d / a.B, problem = batch * a.d + k;
  const T* moments = marginal + problem * 3 * a.B + j;
  const T* joint_moments = joint + problem * 2 * a.B + j;
  const T first = sum_of_parts(moments, marginal_splits, 3 * size, a.B) +
                  sum_of_parts(joint_moments, joint_splits, 2 * size, 0);
  const T second = sum_of_parts(moments, marginal_splits, 3 * size, 2 * a.B) +
                   sum_of_parts(joint_moments, joint_splits, 2 * size, a.B);
  const T weight = sum_of_parts(moments, marginal_splits, 3 * size, 0) +
                   sum_of_parts(joint_weight, joint_splits, size / a.d, batch * a.B + j);
  const T h = a.h_at(batch, j, k);
  dmean[at] = T(-2 * kLn2) * h * first;
  dlog_var[at] = T(-kLn2) * h * second - T(0.5) * weight;
}

// How a problem's sweeps are cut.
template <class T>
struct Plan {
  std::int64_t batch, n, B, d;
  // Of the marginals and the joint density, by rows and by columns.
  int marginal_rows, marginal_columns, joint_value, joint_rows, joint_columns;

  template <class Args>
  explicit Plan(const Args& a)
      : batch(a.batch),
        n(a.n),
        B(a.B),
        d(a.d),
        marginal_rows(splits(a.batch * a.d, a.n, kOfMarginal<T>, a.B, 8)),
        marginal_columns(splits(a.batch * a.d, a.B, kOfMarginal<T>, a.n, 8)),
        joint_value(splits(a.batch, a.n, kOfJoint<T>, a.B, 64)),
        joint_rows(splits(a.batch, a.n, kOfJoint<T>, a.B, 8)),
        joint_columns(splits(a.batch, a.B, kOfJoint<T>, a.n, 8)) {}

  // Enough blocks to fill a GPU; at most 8 splits of a gradient, for each has a partial one.
  static int splits(std::int64_t problems, std::int64_t own, int per_thread, std::int64_t swept,
                    std::int64_t most) {
    const std::int64_t blocks = problems * blocks_of(own, per_thread);
    const std::int64_t wanted = min(min(most, kBlocksOfGpu / (blocks + 1)), swept / 64);
    return int(max(wanted, std::int64_t(1)));
  }
  static std::int64_t blocks_of(std::int64_t own, int per_thread) {
    return (own + per_thread * kThreads - 1) / (per_thread * kThreads);
  }
};

template <class T, class Args>
Call<T> call_of(const Args& a, int splits) {
  const bool stratified = a.weighting == Weighting::mss;
  const double others = double(a.B - 1), size = double(a.dataset_size);
  Call<T> c{a.z,
            a.mean,
            a.log_var,
            a.z_batch_stride,
            a.mean_batch_stride,
            a.log_var_batch_stride,
            int(a.n),
            int(a.B),
            int(a.d),
            -std::log(double(a.B)),
            T(0),
            T(0),
            splits};
  if (a.weighting == Weighting::mws) c.log_weight -= std::log(size);
  if (stratified) {
    c.log_weight = -std::log(others);
    c.own_bits = T(std::log2(others / size));
    c.next_bits = T(std::log2((size - others) / size));
  }
  return c;
}

// For a kernel template that takes <T, Stratified>.
#define VIMAE_LAUNCH(kernel, blocks, call, ...)                                               \
  (a.weighting == Weighting::mss                                                              \
       ? launch(kernel<T, true>, dim3(unsigned(blocks)), kThreads, stream, call, __VA_ARGS__) \
       : launch(kernel<T, false>, dim3(unsigned(blocks)), kThreads, stream, call, __VA_ARGS__))

inline dim3 elements(std::int64_t size) { return dim3(unsigned((size + kThreads - 1) / kThreads)); }

template <class T>
std::int64_t value_workspace(const Aggregate<T>& a) {
  const Plan<T> p(a);
  return (a.batch * a.B + p.joint_value * a.batch * a.n) * sizeof(double) +
         2 * p.marginal_rows * a.batch * a.d * a.n * sizeof(T);
}

template <class T>
void value(const Aggregate<T>& a) {
  const Plan<T> p(a);
  const cudaStream_t stream = static_cast<cudaStream_t>(a.stream);
  double* offsets = static_cast<double*>(a.workspace);
  double* joint = offsets + a.batch * a.B;
  T* peaks = reinterpret_cast<T*>(joint + p.joint_value * a.batch * a.n);
  T* totals = peaks + p.marginal_rows * a.batch * a.d * a.n;
  const std::int64_t size = a.batch * a.n * a.d;

  const Call<T> of_marginal = call_of<T>(a, p.marginal_rows),
                of_joint = call_of<T>(a, p.joint_value);
  VIMAE_LAUNCH(marginal_kernel, a.batch * a.d * p.blocks_of(a.n, kOfMarginal<T>) * p.marginal_rows,
               of_marginal, peaks, totals);
  launch(finish_marginal<T>, elements(size), kThreads, stream, peaks, totals, p.marginal_rows,
         int(a.n), int(a.d), of_marginal.log_weight, size, a.marginal, a.peak, a.total);
  launch(offsets_kernel<T>, elements(a.batch * a.B), kThreads, stream, of_joint, a.batch * a.B,
         offsets);
  VIMAE_LAUNCH(joint_kernel, a.batch * p.blocks_of(a.n, kOfJoint<T>) * p.joint_value, of_joint,
               offsets, joint);
  launch(finish_joint, elements(a.batch * a.n), kThreads, stream, joint, p.joint_value,
         of_joint.log_weight, a.batch * a.n, a.joint);
}

template <class T>
std::int64_t gradient_workspace(const AggregateGradient<T>& a) {
  const Plan<T> p(a);
  const std::int64_t rows = a.batch * a.n * a.d, columns = a.batch * a.B * a.d;
  return a.batch * a.B * sizeof(double) +
         ((p.marginal_rows + p.joint_rows) * rows + 3 * p.marginal_columns * columns +
          p.joint_columns * (2 * columns + a.batch * a.B)) *
             sizeof(T);
}

template <class T>
void gradient(const AggregateGradient<T>& a) {
  const Plan<T> p(a);
  const cudaStream_t stream = static_cast<cudaStream_t>(a.stream);
  const std::int64_t rows = a.batch * a.n * a.d, columns = a.batch * a.B * a.d;
  double* offsets = static_cast<double*>(a.workspace);
  T* dz = reinterpret_cast<T*>(offsets + a.batch * a.B);
  T* moments = dz + (p.marginal_rows + p.joint_rows) * rows;
  T* joint_moments = moments + 3 * p.marginal_columns * columns;
  T* joint_weight = joint_moments + 2 * p.joint_columns * columns;

  launch(offsets_kernel<T>, elements(a.batch * a.B), kThreads, stream, call_of<T>(a, 1),
         a.batch * a.B, offsets);
  VIMAE_LAUNCH(marginal_rows_kernel,
               a.batch * a.d * p.blocks_of(a.n, kOfMarginal<T>) * p.marginal_rows,
               call_of<T>(a, p.marginal_rows), a.peak, a.total, a.g_marginal, dz);
  VIMAE_LAUNCH(joint_rows_kernel, a.batch * p.blocks_of(a.n, kOfJoint<T>) * p.joint_rows,
               call_of<T>(a, p.joint_rows), offsets, a.joint, a.g_joint,
               dz + p.marginal_rows * rows);
  launch(finish_rows<T>, elements(rows), kThreads, stream, dz, p.marginal_rows + p.joint_rows,
         int(a.n), int(a.d), rows, a.dz);
  VIMAE_LAUNCH(marginal_columns_kernel,
               a.batch * a.d * p.blocks_of(a.B, kOfMarginal<T>) * p.marginal_columns,
               call_of<T>(a, p.marginal_columns), a.peak, a.total, a.g_marginal, moments);
  VIMAE_LAUNCH(joint_columns_kernel, a.batch * p.blocks_of(a.B, kOfJoint<T>) * p.joint_columns,
               call_of<T>(a, p.joint_columns), offsets, a.joint, a.g_joint, joint_weight,
               joint_moments);
  launch(finish_columns<T>, elements(columns), kThreads, stream, call_of<T>(a, 1), moments,
         p.marginal_columns, joint_moments, joint_weight, p.joint_columns, columns, a.dmean,
         a.dlog_var);
}

#undef VIMAE_LAUNCH

}  // namespace

std::int64_t aggregate_cuda_workspace(const Aggregate<float>& a) { return value_workspace(a); }
std::int64_t aggregate_cuda_workspace(const Aggregate<double>& a) { return value_workspace(a); }
std::int64_t aggregate_gradient_cuda_workspace(const AggregateGradient<float>& a) {
  return gradient_workspace(a);
}
std::int64_t aggregate_gradient_cuda_workspace(const AggregateGradient<double>& a) {
  return gradient_workspace(a);
}
void aggregate_cuda(const Aggregate<float>& a) { value(a); }
void aggregate_cuda(const Aggregate<double>& a) { value(a); }
void aggregate_gradient_cuda(const AggregateGradient<float>& a) { gradient(a); }
void aggregate_gradient_cuda(const AggregateGradient<double>& a) { gradient(a); }

}  // namespace vimae
