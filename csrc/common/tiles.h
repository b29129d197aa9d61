// Pairs of points, tile by tile: what every pairwise kernel on the CPU is made of.
//
// Points lie in panels of P, transposed, so that a coordinate of neighbouring points is one vector.
// A panel of rows meets a panel of columns in register tiles of R rows and up to JV vectors of
// columns. Differences are taken coordinate by coordinate: nothing is ever expanded into norms and
// products, so data far from the origin lose nothing.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr int P =
    64;  // points in a panel: stored as [d][P], so a coordinate of 64 points is contiguous
constexpr int KC = 64;  // coordinates handled at once
constexpr int R = 4;    // rows of a register tile ...
constexpr int JV =
    VIMAE_SIMD_BYTES == 64 ? 4 : 2;  // ... and vectors of columns: what the registers hold

// Coordinates summed up at once: what the rows of a panel sum up in them, over the lanes, stays in
// the first cache.
constexpr std::int64_t KP = 8;
// Column panels whose weights are kept at once, between two reductions of what the rows sum up.
constexpr std::int64_t kColumnPanels = 8;

// Points [0, count) of a panel out of rows of d coordinates; the padding is 0. Returns 0, or NaN if
// a coordinate is not finite.
template <class T>
double pack_panel(const T* from, std::int64_t count, std::int64_t d, T* to) {
  Vec<T> finite = {};
  for (std::int64_t k = 0; k < d; ++k) {
    for (int i = 0; i < count; ++i) to[k * P + i] = from[i * d + k];
    for (std::int64_t i = count; i < P; ++i) to[k * P + i] = 0;
    for (int i = 0; i < P; i += kLanes<T>) finite += load(to + k * P + i) - load(to + k * P + i);
  }
  return sum(widen(finite));
}

// Squared distances over kc coordinates of a register tile, R rows against NV vectors of columns;
// with Dot also
// (x_i - y_j).(vx_i - vy_j). Pointers are to the tile's first row and first column.
template <class T, int NV, bool Dot>
VIMAE_INLINE void distances(const T* x, const T* y, const T* vx, const T* vy, int kc, bool first,
                            T* s, T* t) {
  constexpr int V = kLanes<T>;
  Vec<T> acc[R][NV] = {}, dot[Dot ? R : 1][Dot ? NV : 1] = {};
  for (int k = 0; k < kc; ++k) {
    Vec<T> yk[NV], vk[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      yk[j] = load(y + k * P + j * V);
      if (Dot) vk[j] = load(vy + k * P + j * V);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec<T> xk = splat(x[k * P + r]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const Vec<T> diff = xk - yk[j];
        acc[r][j] += diff * diff;
        if (Dot) dot[r][j] += diff * (splat(vx[k * P + r]) - vk[j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      // Partial sums per KC coordinates: rounding does not grow with d.
      store(s + r * P + j * V, first ? acc[r][j] : load(s + r * P + j * V) + acc[r][j]);
      if (Dot) store(t + r * P + j * V, first ? dot[r][j] : load(t + r * P + j * V) + dot[r][j]);
    }
}

template <int NV>
struct Vectors {
  static constexpr int n = NV;
};

// Calls visit(first row, first column, Vectors<NV>), NV at most `Most`, for every register tile of
// a panel of rows and one of columns; on the diagonal those left of it are skipped.
template <class T, int Most = JV, class Visit>
VIMAE_INLINE void each_tile(std::int64_t rows, std::int64_t columns, bool diagonal, Visit visit) {
  constexpr int V = kLanes<T>;
  for (int i = 0; i < rows; i += R)
    for (int j = diagonal ? i / V * V : 0; j < columns; j += Most * V) {
      switch (int(columns - j + V - 1) / V) {
        case 1:
          visit(i, j, Vectors<1>{});
          break;
        case 2:
          visit(i, j, Vectors < Most<2 ? Most : 2>{});
          break;
        case 3:
          visit(i, j, Vectors < Most<3 ? Most : 3>{});
          break;
        default:
          visit(i, j, Vectors<Most>{});
      }
    }
}

// Adds what the rows of a panel have summed up in kc of kd coordinates, [P / R][kd][R] and still
// spread over the lanes, to `to`, [kc][P], and starts anew.
template <class T>
VIMAE_INLINE void leave_lanes(Vec<T>* lanes, std::int64_t kd, int kc, double* to) {
  constexpr int V = kLanes<T>;
  for (int k = 0; k < kc; ++k)
    for (int i = 0; i < P; i += V) {
      Vec<T> of[V];
#pragma GCC unroll 16
      for (int l = 0; l < V; ++l) {
        Vec<T>& row = lanes[(i + l) / R * R * kd + k * R + (i + l) % R];
        of[l] = row, row = Vec<T>{};
      }
      add_wide(to + k * P + i,
               transposed_reduce<T>(of, [](auto p, auto q) VIMAE_LAMBDA { return p + q; }));
    }
}

}  // namespace
}  // namespace vimae::VIMAE_SIMD
