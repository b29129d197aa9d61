// All pairs of one set of points, each met once for both its ends: the Stein kernels on the CPU.
//
// Pairs are met in tiles of 64 x 64 points. A tile's squared distances become weights while they
// are in registers, and the weights pull on both points of each pair at once. What a pair adds is
// said by a Rule:
//
//   kScore  points carry a score; otherwise they are drawn to the standard normal, whose score is
//           -z, and no score exists anywhere
//   kDots   weights take p = score_x . score_y and q = (score_y - score_x) . (x - y)
//   kNorms  the same without a score: p from half the squared norms, or from the coordinates where
//   the
//           norms are so different that p is small beside them, and q = s
//   kOrder  derivatives of the kernel that the weights take
//   kValue  pairs add up to a value
//   kForce  with a weight w, the row gets w e and the column -w e, e = x - y; with a score also
//           2 k' (score_y - score_x) and its negative; without one, both get the kernel itself into
//           their mass
//   kDrift  the row gets k score_y - 2 k' e, the column k score_x + 2 k' e
//   weigh(s, p, q, k, d, value, w)  of a vector of pairs, k[i] being the i-th derivative
//
// Threads never share an accumulator and never reduce in an order that depends on timing.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/kernel.h"
#include "common/team.h"
#include "common/tiles.h"

namespace vimae::VIMAE_SIMD {
namespace {

// Column panels between two reductions of what the rows sum up where there are at most KP
// coordinates.
constexpr std::int64_t kRowPanels = 32;
// The most that a squared norm may be of another for their product to be taken from both: its
// rounding goes with the larger one.
constexpr int kAlike = 64;

template <class T, class Rule>
struct Symmetric {
  static constexpr int V = kLanes<T>;
  // With scores a pair has more in registers: narrower tiles.
  static constexpr int kMost = Rule::kScore && JV > 2 ? 2 : JV;
  static constexpr bool kMass = Rule::kForce && !Rule::kScore;

  std::int64_t n, d, panels;
  Family family;
  const double* scales;
  int n_scales;
  // The team's: points and what they are pulled by, [panels][d][P]; norms and mass, [panels][P].
  T *z, *score, *norms;
  T* extent;  // [panels][2]: the least and the largest of the norms
  double *force, *drift, *mass;
  Term<T>* terms;
  double* partial;  // [team][2]: value, and 0 or NaN
  // The thread's own. In a tile of [column panels][P rows][P columns]: squared distances, then w;
  // (x - y) . (score_x - score_y), then -2 k'; score_x . score_y, then k.
  T *weight, *slope, *kernel;
  Vec<T>*force_rows, *drift_rows;  // [P / R][min(d, KP)][R]: still spread over the lanes
  Vec<T>* mass_rows;               // [P]
  T *columns, *mass_columns;       // [min(d, KP)][P], [P]

  Symmetric(std::int64_t n, std::int64_t d, Family family, const double* scales, int n_scales,
            int team, Arena& shared, Arena& own)
      : n(n), d(d), panels((n + P - 1) / P), family(family), scales(scales), n_scales(n_scales) {
    const std::int64_t kd = std::min(d, KP), tile = P * P * at_once();
    z = shared.take<T>(panels * d * P);
    score = Rule::kScore ? shared.take<T>(panels * d * P) : z;
    norms = Rule::kNorms ? shared.take<T>(panels * P) : nullptr;
    extent = Rule::kNorms ? shared.take<T>(panels * 2) : nullptr;
    force = Rule::kForce ? shared.take<double>(panels * d * P) : nullptr;
    drift = Rule::kDrift ? shared.take<double>(panels * d * P) : nullptr;
    mass = kMass ? shared.take<double>(panels * P) : nullptr;
    terms = shared.take<Term<T>>(n_scales);
    partial = shared.take<double>(2 * team);
    weight = own.take<T>(tile);
    slope = Rule::kScore ? own.take<T>(tile) : weight;
    kernel = Rule::kScore || Rule::kNorms ? own.take<T>(tile) : weight;
    force_rows = Rule::kForce ? own.take<Vec<T>>(P * kd) : nullptr;
    drift_rows = Rule::kDrift ? own.take<Vec<T>>(P * kd) : nullptr;
    mass_rows = kMass ? own.take<Vec<T>>(P) : nullptr;
    columns = own.take<T>(P * kd);
    mass_columns = own.take<T>(P);
  }

  struct Total {
    double value, finite;  // finite is NaN where a coordinate is not finite
  };

  // Meets the pairs i < j of points z and their scores, (n, d). All threads of the team run it and
  // have the total; what pulls on the points is in force, drift and mass.
  Total meet(const T* from_z, const T* from_score, Team team) const {
    for (int i = 0; team.rank == 0 && i < n_scales; ++i) terms[i] = term_of<T>(family, scales[i]);
    double finite = 0;
    for (std::int64_t q = team.rank; q < panels && !team.stopped(double(P * d)); q += team.size) {
      const std::int64_t count = std::min<std::int64_t>(P, n - q * P), at = q * d * P;
      finite += pack_panel(from_z + at, count, d, z + at);
      if (Rule::kScore) finite += pack_panel(from_score + at, count, d, score + at);
      if (Rule::kForce) std::fill_n(force + at, d * P, 0.0);
      if (Rule::kDrift) std::fill_n(drift + at, d * P, 0.0);
      if (kMass) std::fill_n(mass + q * P, P, 0.0);
      if (Rule::kNorms) {
        double squares[P] = {};
        for (std::int64_t c = 0; c < d * P; ++c)
          squares[c % P] += double(z[at + c]) * double(z[at + c]);
        for (int i = 0; i < P; ++i) norms[q * P + i] = T(squares[i] / 2);
        const T* own = norms + q * P;
        extent[2 * q] = *std::min_element(own, own + count);
        extent[2 * q + 1] = *std::max_element(own, own + count);
      }
    }
    const std::int64_t kd = std::min(d, KP);
    if (Rule::kForce) std::fill_n(force_rows, P * kd, Vec<T>{});
    if (Rule::kDrift) std::fill_n(drift_rows, P * kd, Vec<T>{});
    if (kMass) std::fill_n(mass_rows, P, Vec<T>{});
    team.wait();
    double value = 0;
    each_pair_of_panels(panels, team,
                        [&](std::int64_t row, std::int64_t begin, std::int64_t end, bool diagonal) {
                          value += sweep(row, begin, end, diagonal, team);
                        });
    partial[2 * team.rank] = value, partial[2 * team.rank + 1] = finite;
    team.wait();
    Total total{};
    for (int t = 0; t < team.size; ++t)
      total.value += partial[2 * t], total.finite += partial[2 * t + 1];
    return total;
  }

  // Calls visit(i, k, where coordinate k of point i lies) for this thread's share of the points.
  template <class Visit>
  void each_coordinate(Team team, Visit visit) const {
    for (std::int64_t q = team.rank; q < panels && !team.stopped(double(P * d)); q += team.size)
      for (std::int64_t i = q * P; i < std::min(n, (q + 1) * P); ++i)
        for (std::int64_t k = 0; k < d; ++k) visit(i, k, (q * d + k) * P + i % P);
  }

 private:
  // Whether products of points of two panels are to be taken from their coordinates.
  bool apart(std::int64_t row, std::int64_t q) const {
    if (!Rule::kNorms) return false;
    const T* r = extent + 2 * row;
    const T* c = extent + 2 * q;
    return !(std::max(r[1], c[1]) <= T(kAlike) * std::min(r[0], c[0]));
  }

  std::int64_t at_once() const { return d <= KP ? 1 : kColumnPanels; }

  // Column panels [begin, end) of which the first is the row panel itself where `diagonal`: there
  // each pair is met once. Returns the sum of the pairs' values.
  double sweep(std::int64_t row, std::int64_t begin, std::int64_t end, bool diagonal,
               Team team) const {
    Vec<double> total = {};
    for (std::int64_t q0 = begin; q0 < end; q0 += at_once()) {
      const std::int64_t q1 = std::min(end, q0 + at_once());
      if (team.stopped(double((q1 - q0) * P * P * d))) break;
      const bool triangle = diagonal && q0 == begin;
      total += weights(row, q0, q1, triangle);
      const bool flush = q1 == end || d > KP || (q1 - begin) % kRowPanels == 0;
      if (Rule::kForce) pulls<false>(row, q0, q1, triangle, force, force_rows, flush);
      if (Rule::kDrift) pulls<true>(row, q0, q1, triangle, drift, drift_rows, flush);
      if (kMass && flush) leave_lanes<T>(mass_rows, 1, 1, mass + row * P);
    }
    return sum(total);
  }

  // Visits the register tiles of a row panel and column panel q, of their coordinates k0 and on:
  // visit(first row, first column, vectors, offset of the tile's weights, of the rows' and of the
  // columns' coordinates).
  template <class Visit>
  VIMAE_INLINE void each(std::int64_t row, std::int64_t q, std::int64_t q0, std::int64_t k0,
                         bool triangle, Visit visit) const {
    const std::int64_t rows = std::min<std::int64_t>(P, n - row * P);
    const std::int64_t cols = std::min<std::int64_t>(P, n - q * P);
    each_tile<T, kMost>(rows, cols, triangle, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
      visit(i, j, vectors, ((q - q0) * P + i) * P + j, (row * d + k0) * P + i,
            (q * d + k0) * P + j);
    });
  }

  // Squared distances of the row panel to the column panels [q0, q1), made weights. Returns the sum
  // of the pairs' values over the lanes.
  VIMAE_INLINE Vec<double> weights(std::int64_t row, std::int64_t q0, std::int64_t q1,
                                   bool triangle) const {
    Vec<double> total = {};
    for (std::int64_t k0 = 0; k0 < d; k0 += KC) {
      const int kc = int(std::min<std::int64_t>(KC, d - k0));
      for (std::int64_t q = q0; q < q1; ++q) {
        const bool edge = triangle && q == q0, last = k0 + kc == d;
        const bool of_points = apart(row, q);
        if (kMass && last) std::fill_n(mass_columns, P, T(0));
        each(row, q, q0, k0, edge,
             [&](int i, int j, auto vectors, std::int64_t w, std::int64_t x, std::int64_t y)
                 VIMAE_LAMBDA {
                   distances<T, vectors.n, Rule::kDots>(z + x, z + y, score + x, score + y, kc,
                                                        k0 == 0, weight + w, slope + w);
                   if (Rule::kDots || of_points)
                     products<vectors.n>(score + x, score + y, kc, k0 == 0, w);
                   if (last)
                     total += weigh<vectors.n>(w, row * P + i, q * P + j, i, j, edge ? i - j : -P,
                                               of_points);
                 });
        for (int j = 0; kMass && last && j < P; j += V)
          add_wide(mass + q * P + j, load(mass_columns + j));
      }
    }
    return total;
  }

  // score_x . score_y over kc coordinates of a register tile.
  template <int NV>
  VIMAE_INLINE void products(const T* x, const T* y, int kc, bool first, std::int64_t w) const {
    Vec<T> acc[R][NV] = {};
    for (int k = 0; k < kc; ++k)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const Vec<T> yk = load(y + k * P + j * V);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[r][j] += splat(x[k * P + r]) * yk;
      }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        T* p = kernel + w + r * P + j * V;
        store(p, first ? acc[r][j] : load(p) + acc[r][j]);
      }
  }

  // Turns the squared distances of a register tile into weights. Its first row and column are the
  // points `row` and `column`, and i and j in their panels; column c of row r is a pair where
  // c > r + diagonal and both are points.
  template <int NV>
  VIMAE_INLINE Vec<double> weigh(std::int64_t w, std::int64_t row, std::int64_t column, int i,
                                 int j0, int diagonal, bool of_points) const {
    const int rows = int(std::min<std::int64_t>(R, n - row));
    const int cols = int(std::min<std::int64_t>(P, n - column));
    const bool whole = rows == R && cols >= NV * V && diagonal < -(R - 1);
    Vec<T> total = {}, massed[NV] = {};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Vec<T> s[NV], k[NV][Rule::kOrder + 1] = {};
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) s[j] = load(weight + w + r * P + j * V);
      for (int l = 0; l < n_scales; ++l) {
        // Asked here and not in the type: half the code, and a branch for R * NV vectors of pairs.
        const Term<T> term = terms[l];
        if (family == Family::imq) {
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j)
            add_term<VectorOps<T>, Family::imq, Rule::kOrder>(s[j], term, k[j]);
        } else {
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j)
            add_term<VectorOps<T>, Family::rbf, Rule::kOrder>(s[j], term, k[j]);
        }
      }
      Vec<T> mine = {};
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const std::int64_t at = w + r * P + j * V;
        Vec<T> p = {}, q = s[j], value = {}, force = {};
        if (Rule::kDots) p = load(kernel + at), q = -load(slope + at);
        if (Rule::kNorms)
          p = of_points ? load(kernel + at)
                        : (load(norms + column + j * V) + norms[row + r]) - s[j] * T(0.5);
        Rule::weigh(s[j], p, q, k[j], T(d), value, force);
        Vec<T> mass = k[j][0], repulsion = k[j][1] * T(-2);
        if (!whole) {
          const Vec<T> lane = lane_numbers<T>() + T(j * V), none = {};
          const auto pair =
              (lane < splat(T(r < rows ? cols : 0))) & (lane > splat(T(r + diagonal)));
          value = pair ? value : none;
          force = pair ? force : none;
          mass = pair ? mass : none;
          repulsion = pair ? repulsion : none;
        }
        if (Rule::kValue) total += value;
        if (Rule::kForce) store(weight + at, force);
        if (Rule::kScore && (Rule::kForce || Rule::kDrift)) store(slope + at, repulsion);
        if (Rule::kDrift) store(kernel + at, mass);
        if (kMass) mine += mass, massed[j] += mass;
      }
      if (kMass) mass_rows[i + r] += mine;
    }
#pragma GCC unroll 4
    for (int j = 0; kMass && j < NV; ++j) {
      T* to = mass_columns + j0 + j * V;
      store(to, load(to) + massed[j]);
    }
    return widen(total);
  }

  // Adds what the pairs of a row panel with the column panels [q0, q1) pull to `to`; the rows' part
  // waits in `lanes` until `flush`.
  template <bool Drift>
  VIMAE_INLINE void pulls(std::int64_t row, std::int64_t q0, std::int64_t q1, bool triangle,
                          double* to, Vec<T>* lanes, bool flush) const {
    const std::int64_t kd = std::min(d, KP);
    for (std::int64_t k0 = 0; k0 < d; k0 += KP) {
      const int kc = int(std::min(KP, d - k0));
      for (std::int64_t q = q0; q < q1; ++q) {
        std::fill_n(columns, kc * P, T(0));
        each(row, q, q0, k0, triangle && q == q0,
             [&](int i, int j, auto vectors, std::int64_t w, std::int64_t x, std::int64_t y)
                 VIMAE_LAMBDA {
                   pull<vectors.n, Drift>(z + x, z + y, score + x, score + y, kc, w, lanes + i * kd,
                                          columns + j);
                 });
        // What leaves the tile does so in float64.
        for (int k = 0; k < kc * P; k += V) add_wide(to + (q * d + k0) * P + k, load(columns + k));
      }
      if (flush) leave_lanes<T>(lanes, kd, kc, to + (row * d + k0) * P);
    }
  }

  // The pull of a register tile over kc coordinates.
  template <int NV, bool Drift>
  VIMAE_INLINE void pull(const T* x, const T* y, const T* score_x, const T* score_y, int kc,
                         std::int64_t w, Vec<T>* row, T* column) const {
    // The weight of x - y, and with scores that of theirs.
    const T *of_points = Drift ? slope : weight, *of_scores = Drift ? kernel : slope;
    Vec<T> a[R][NV], b[R][NV];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        a[r][j] = load(of_points + w + r * P + j * V);
        if (Rule::kScore) b[r][j] = load(of_scores + w + r * P + j * V);
      }
    for (int k = 0; k < kc; ++k) {
      Vec<T> yk[NV], sk[NV], gk[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        yk[j] = load(y + k * P + j * V);
        if (Rule::kScore) sk[j] = load(score_y + k * P + j * V);
        gk[j] = load(column + k * P + j * V);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> xk = splat(x[k * P + r]);
        Vec<T> g = row[k * R + r], score = {};
        if (Rule::kScore) score = splat(score_x[k * P + r]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const Vec<T> e = xk - yk[j];
          if (Drift) {
            const Vec<T> repulsion = a[r][j] * e;
            g += b[r][j] * sk[j] + repulsion;
            gk[j] += b[r][j] * score - repulsion;
          } else if (Rule::kScore) {
            const Vec<T> force = a[r][j] * e + b[r][j] * (score - sk[j]);
            g += force;
            gk[j] -= force;
          } else {
            g += a[r][j] * e;
            gk[j] -= a[r][j] * e;
          }
        }
        row[k * R + r] = g;
      }
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) store(column + k * P + j * V, gk[j]);
    }
  }
};

}  // namespace
}  // namespace vimae::VIMAE_SIMD
