// Pairs are met in tiles of 64 x 64 points. A tile's squared distances become kernel weights while they are
// in registers, and the weights pull on both points of each pair at once, so a pair is visited a single time
// for its value and both gradients. Differences are taken coordinate by coordinate: nothing is ever expanded
// into norms and products, so data far from the origin lose nothing.
//
// Threads never share an accumulator and never reduce in an order that depends on timing: pairs of groups of
// points are scheduled in rounds in which every group has one owner (the circle method of tournaments).

#include "mmd/mmd.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/simd.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr int P = 64;       // points in a panel: stored as [d][P], so a coordinate of 64 points is contiguous
constexpr int KC = 64;      // coordinates handled at once
constexpr int R = 4;        // rows of a register tile ...
constexpr int JV = VIMAE_SIMD_BYTES == 64 ? 4 : 2;  // ... and vectors of columns: what the registers hold
constexpr std::int64_t kColumnPanels = 8;  // column panels between two reductions of a row's gradient, large d

// What a tile is asked for.
enum Want { kValue = 0, kRows = 1, kColumns = 2, kBoth = 3, kHessian = 4 };

struct Scale {
  double c, value, first, second;  // k' and k'' up to powers of k, times the weight of the pair
};

template <class T>
struct Points {
  const T* source;   // (count, d)
  const T* direction;
  std::int64_t count, panels;
  T* panel;          // [panels][d][P]
  T* panel_v;        // the same for the direction
  double* gradient;  // [panels][d][P], or null if not wanted
};

template <class T>
struct Scratch {
  T* weight;     // [column panels][P rows][P columns]: squared distances, then 2 k'
  T* weight2;    // Hessian only: the dot products, then 4 k'' times them
  Vec<T>* rows;  // [P / R][KC][R]: gradient of the rows, still spread over the lanes
  T* columns;    // [KC][P]: gradient of the columns
};

template <class T, Family F, bool Hessian>
struct Tiles {
  static constexpr int V = kLanes<T>, J = JV * V;  // columns of a register tile
  std::int64_t d;
  const double* scales;
  int n_scales;
  Scratch<T> scratch;

  // Squared distances (and for the Hessian (x_i - y_j).(vx_i - vy_j)) over kc coordinates of R x J pairs.
  VIMAE_INLINE void distances(const T* x, const T* y, const T* vx, const T* vy, int kc, bool first, T* s,
                              T* t) const {
    Vec<T> acc[R][JV] = {}, dot[Hessian ? R : 1][Hessian ? JV : 1] = {};
    for (int k = 0; k < kc; ++k) {
      Vec<T> yk[JV], vk[JV];
#pragma GCC unroll 4
      for (int j = 0; j < JV; ++j) {
        yk[j] = load(y + k * P + j * V);
        if (Hessian) vk[j] = load(vy + k * P + j * V);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> xk = splat(x[k * P + r]);
#pragma GCC unroll 4
        for (int j = 0; j < JV; ++j) {
          const Vec<T> diff = xk - yk[j];
          acc[r][j] += diff * diff;
          if (Hessian) dot[r][j] += diff * (splat(vx[k * P + r]) - vk[j]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < JV; ++j) {
        // Partial sums per KC coordinates: rounding does not grow with d.
        store(s + r * P + j * V, first ? acc[r][j] : load(s + r * P + j * V) + acc[r][j]);
        if (Hessian) store(t + r * P + j * V, first ? dot[r][j] : load(t + r * P + j * V) + dot[r][j]);
      }
  }

  // Turns squared distances into weights and returns the sum of the kernel. `rows` and `columns` are how many
  // of the R x J pairs exist: padding gets weight 0.
  VIMAE_INLINE double weigh(const Scale* scale, T* s, T* t, std::int64_t rows, std::int64_t columns) const {
    Vec<T> total = {};
    const bool edge = rows < R || columns < J;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < JV; ++j) {
        const Vec<T> sq = load(s + r * P + j * V);
        Vec<T> value = {}, first = {}, second = {};
        for (int i = 0; i < n_scales; ++i) {
          const T c = T(scale[i].c);
          Vec<T> k;
          if constexpr (F == Family::imq) {
            k = c / (c + sq);
            first += (k * k) * T(scale[i].first);
            if (Hessian) second += (k * k * k) * T(scale[i].second);
          } else {
            k = exp_nonpositive<T>(sq * T(-1 / scale[i].c));
            first += k * T(scale[i].first);
            if (Hessian) second += k * T(scale[i].second);
          }
          value += k;
        }
        if (edge) {
          T exists[V];
          for (int l = 0; l < V; ++l) exists[l] = T(r < rows && j * V + l < columns);
          const Vec<T> mask = load(exists);
          value *= mask, first *= mask, second *= mask;
        }
        total += value;
        store(s + r * P + j * V, first);
        if (Hessian) store(t + r * P + j * V, second * load(t + r * P + j * V));
      }
    return sum<T>(total);
  }

  // Adds w_ij (x_i - y_j) to the rows and subtracts it from the columns, over kc coordinates of R x J pairs.
  template <bool Rows, bool Columns>
  VIMAE_INLINE void pull(const T* x, const T* y, const T* vx, const T* vy, int kc, const T* w1, const T* w2,
                         Vec<T>* gx, T* gy) const {
    Vec<T> w[R][JV], u[R][JV];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < JV; ++j) {
        w[r][j] = load(w1 + r * P + j * V);
        if (Hessian) u[r][j] = load(w2 + r * P + j * V);
      }
    for (int k = 0; k < kc; ++k) {
      Vec<T> yk[JV], vk[JV], gk[JV];
#pragma GCC unroll 4
      for (int j = 0; j < JV; ++j) {
        yk[j] = load(y + k * P + j * V);
        if (Hessian) vk[j] = load(vy + k * P + j * V);
        if (Columns) gk[j] = load(gy + k * P + j * V);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> xk = splat(x[k * P + r]);
        Vec<T> g = {};
        if (Rows) g = gx[k * R + r];
#pragma GCC unroll 4
        for (int j = 0; j < JV; ++j) {
          const Vec<T> diff = xk - yk[j];
          if (Hessian) {
            const Vec<T> force = w[r][j] * (splat(vx[k * P + r]) - vk[j]) + u[r][j] * diff;
            if (Rows) g += force;
            if (Columns) gk[j] -= force;
          } else {
            if (Rows) g += w[r][j] * diff;
            if (Columns) gk[j] -= w[r][j] * diff;
          }
        }
        if (Rows) gx[k * R + r] = g;
      }
      if (Columns) {
#pragma GCC unroll 4
        for (int j = 0; j < JV; ++j) store(gy + k * P + j * V, gk[j]);
      }
    }
  }

  // All pairs of one panel of rows with the column panels [begin, end). Returns the sum of the kernel.
  template <bool Rows, bool Columns>
  double sweep(const Points<T>& x, std::int64_t row, const Points<T>& y, std::int64_t begin, std::int64_t end,
               const Scale* scale) const {
    const std::int64_t stride = d * P, rows = std::min<std::int64_t>(P, x.count - row * P);
    const std::int64_t at_once = d <= KC ? 1 : kColumnPanels;
    double total = 0;
    for (std::int64_t q0 = begin; q0 < end; q0 += at_once) {
      const std::int64_t q1 = std::min(end, q0 + at_once);
      for (std::int64_t k0 = 0; k0 < d; k0 += KC) {
        const int kc = int(std::min<std::int64_t>(KC, d - k0));
        for (std::int64_t q = q0; q < q1; ++q) {
          const std::int64_t xo = row * stride + k0 * P, yo = q * stride + k0 * P;
          const std::int64_t columns = std::min<std::int64_t>(P, y.count - q * P);
          for (int j = 0; j < columns; j += J)
            for (int i = 0; i < rows; i += R) {
              T* s = scratch.weight + ((q - q0) * P + i) * P + j;
              T* t = Hessian ? scratch.weight2 + ((q - q0) * P + i) * P + j : nullptr;
              distances(x.panel + xo + i, y.panel + yo + j, x.panel_v + xo + i, y.panel_v + yo + j, kc, k0 == 0,
                        s, t);
              if (k0 + kc == d) total += weigh(scale, s, t, rows - i, columns - j);
            }
        }
      }
      if (!Rows && !Columns) continue;
      for (std::int64_t k0 = 0; k0 < d; k0 += KC) {
        const int kc = int(std::min<std::int64_t>(KC, d - k0));
        if (Rows && (q0 == begin || d > KC)) std::fill_n(scratch.rows, P * KC, Vec<T>{});
        for (std::int64_t q = q0; q < q1; ++q) {
          const std::int64_t xo = row * stride + k0 * P, yo = q * stride + k0 * P;
          const std::int64_t columns = std::min<std::int64_t>(P, y.count - q * P);
          if (Columns) std::fill_n(scratch.columns, kc * P, T(0));
          for (int j = 0; j < columns; j += J)
            for (int i = 0; i < rows; i += R) {
              const std::int64_t w = ((q - q0) * P + i) * P + j;
              pull<Rows, Columns>(x.panel + xo + i, y.panel + yo + j, x.panel_v + xo + i, y.panel_v + yo + j, kc,
                                  scratch.weight + w, scratch.weight2 + w, scratch.rows + i * KC,
                                  scratch.columns + j);
            }
          // Gradients leave the tile in float64: what is summed in T is never longer than a tile.
          if (Columns)
            for (int k = 0; k < kc * P; ++k) y.gradient[yo + k] += double(scratch.columns[k]);
        }
        if (Rows && (q1 == end || d > KC))
          for (int i = 0; i < rows; ++i)
            for (int k = 0; k < kc; ++k)
              x.gradient[row * stride + (k0 + k) * P + i] += sum<T>(scratch.rows[i / R * R * KC + k * R + i % R]);
      }
    }
    return total;
  }

  double sweep(Want want, const Points<T>& x, std::int64_t row, const Points<T>& y, std::int64_t begin,
               std::int64_t end, const Scale* scale) const {
    switch (want & kBoth) {
      case kRows: return sweep<true, false>(x, row, y, begin, end, scale);
      case kColumns: return sweep<false, true>(x, row, y, begin, end, scale);
      case kBoth: return sweep<true, true>(x, row, y, begin, end, scale);
      default: return sweep<false, false>(x, row, y, begin, end, scale);
    }
  }
};
}  // namespace
}  // namespace vimae::VIMAE_SIMD
