// Pairs are met in tiles of 64 x 64 points. A tile's squared distances become kernel weights while
// they are in registers, and the weights pull on both points of each pair at once, so a pair is
// visited a single time for its value and both gradients.
//
// Threads never share an accumulator and never reduce in an order that depends on timing: pairs of
// groups of points are scheduled in rounds in which every group has one owner.

#include "mmd/mmd.h"

#include <algorithm>

#include "common/team.h"
#include "common/tiles.h"
#include "mmd/mmd_math.h"

namespace vimae::VIMAE_SIMD {
namespace {

// What a tile is asked for besides the sum of its kernel values: the gradient of its columns, or of
// both sides. Columns lie along the lanes, so theirs is the cheap one; rows have to be added up
// across the lanes.
enum class Want { value, columns, both };

template <class T>
struct Points {
  const T* source;  // (count, d)
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
  Vec<T>* rows;  // [P / R][min(d, KC)][R]: gradient of the rows, still spread over the lanes
  T* columns;    // [min(d, KC)][P]: gradient of the columns
};

template <class T, bool Hessian>
struct Tiles {
  static constexpr int V = kLanes<T>;
  Family family;
  std::int64_t d;
  int n_scales;
  Scratch<T> scratch;
  Team team;

  // Which pairs of a tile exist: rows and columns short of the padding, and on the diagonal only
  // column > row.
  struct Edge {
    int rows, columns, diagonal;  // column c of row r is a pair where c > r + diagonal
  };

  // Turns squared distances into weights, and returns the sum of the kernel over the lanes.
  template <int NV, bool Gradient>
  VIMAE_INLINE Vec<double> weigh(const Scale<T>* scale, T* s, T* t, Edge edge) const {
    Vec<T> total = {};
    const bool whole = edge.rows >= R && edge.columns >= NV * V && edge.diagonal < -(R - 1);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Vec<T> sq[NV], value[NV] = {}, first[NV] = {}, second[Hessian ? NV : 1] = {};
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sq[j] = load(s + r * P + j * V);
      for (int i = 0; i < n_scales; ++i) {
        // Asked here and not in the type: half the code, and a branch for NV vectors of pairs.
        const Scale<T> one = scale[i];
        Vec<T> none = {};
        if (family == Family::imq) {
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j)
            add_scale<VectorOps<T>, Family::imq, Gradient, Hessian>(sq[j], one, value[j], first[j],
                                                                    Hessian ? second[j] : none);
        } else {
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j)
            add_scale<VectorOps<T>, Family::rbf, Gradient, Hessian>(sq[j], one, value[j], first[j],
                                                                    Hessian ? second[j] : none);
        }
      }
      if (!whole) {
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const Vec<T> column = lane_numbers<T>() + T(j * V), none = {};
          const auto pair = (column < splat(T(r < edge.rows ? edge.columns : 0))) &
                            (column > splat(T(r + edge.diagonal)));
          value[j] = pair ? value[j] : none;
          if (Gradient) first[j] = pair ? first[j] : none;
          if (Hessian) second[j] = pair ? second[j] : none;
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        total += value[j];
        if (Gradient) store(s + r * P + j * V, first[j]);
        if (Hessian) store(t + r * P + j * V, second[j] * load(t + r * P + j * V));
      }
    }
    return widen(total);
  }

  // Adds w_ij (x_i - y_j) to the rows and subtracts it from the columns, over kc coordinates.
  template <int NV, bool Rows>
  VIMAE_INLINE void pull(const T* x, const T* y, const T* vx, const T* vy, int kc, const T* w1,
                         const T* w2, bool first, Vec<T>* gx, T* gy) const {
    Vec<T> w[R][NV], u[R][NV];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        w[r][j] = load(w1 + r * P + j * V);
        if (Hessian) u[r][j] = load(w2 + r * P + j * V);
      }
    for (int k = 0; k < kc; ++k) {
      Vec<T> yk[NV], vk[NV], gk[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        yk[j] = load(y + k * P + j * V);
        if (Hessian) vk[j] = load(vy + k * P + j * V);
        gk[j] = load(gy + k * P + j * V);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> xk = splat(x[k * P + r]);
        Vec<T> g = {};
        if (Rows && !first) g = gx[k * R + r];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const Vec<T> diff = xk - yk[j];
          if (Hessian) {
            const Vec<T> force = w[r][j] * (splat(vx[k * P + r]) - vk[j]) + u[r][j] * diff;
            if (Rows) g += force;
            gk[j] -= force;
          } else {
            if (Rows) g += w[r][j] * diff;
            gk[j] -= w[r][j] * diff;
          }
        }
        if (Rows) gx[k * R + r] = g;
      }
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) store(gy + k * P + j * V, gk[j]);
    }
  }

  // All pairs of one panel of rows with the column panels [begin, end), of which the first is the
  // row panel itself when `diagonal`: there each pair is met once. Returns the sum of the kernel.
  template <Want W>
  double sweep(const Points<T>& x, std::int64_t row, const Points<T>& y, std::int64_t begin,
               std::int64_t end, bool diagonal, const Scale<T>* scale) const {
    const std::int64_t stride = d * P, rows = std::min<std::int64_t>(P, x.count - row * P);
    const std::int64_t at_once = d <= KC ? 1 : kColumnPanels, kd = std::min<std::int64_t>(d, KC);
    Vec<double> total = {};
    for (std::int64_t q0 = begin; q0 < end; q0 += at_once) {
      const std::int64_t q1 = std::min(end, q0 + at_once);
      if (team.stopped(double((q1 - q0) * P * P * d))) break;
      for (std::int64_t k0 = 0; k0 < d; k0 += KC) {
        const int kc = int(std::min<std::int64_t>(KC, d - k0));
        for (std::int64_t q = q0; q < q1; ++q) {
          const std::int64_t xo = row * stride + k0 * P, yo = q * stride + k0 * P;
          const std::int64_t columns = std::min<std::int64_t>(P, y.count - q * P);
          const bool triangle = diagonal && q == begin;
          each_tile<T>(rows, columns, triangle, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
            T* s = scratch.weight + ((q - q0) * P + i) * P + j;
            T* t = Hessian ? scratch.weight2 + ((q - q0) * P + i) * P + j : nullptr;
            distances<T, vectors.n, Hessian>(x.panel + xo + i, y.panel + yo + j, x.panel_v + xo + i,
                                             y.panel_v + yo + j, kc, k0 == 0, s, t);
            if (k0 + kc == d)
              total += weigh<vectors.n, W != Want::value>(
                  scale, s, t, {int(rows) - i, int(columns) - j, triangle ? i - j : -P});
          });
        }
      }
      if (W == Want::value) continue;
      for (std::int64_t k0 = 0; k0 < d; k0 += KC) {
        const int kc = int(std::min<std::int64_t>(KC, d - k0));
        for (std::int64_t q = q0; q < q1; ++q) {
          const std::int64_t xo = row * stride + k0 * P, yo = q * stride + k0 * P;
          const std::int64_t columns = std::min<std::int64_t>(P, y.count - q * P);
          const bool triangle = diagonal && q == begin, fresh = q == q0 && (q == begin || d > KC);
          std::fill_n(scratch.columns, kc * P, T(0));
          each_tile<T>(rows, columns, triangle, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
            const std::int64_t w = ((q - q0) * P + i) * P + j;
            pull<vectors.n, W == Want::both>(
                x.panel + xo + i, y.panel + yo + j, x.panel_v + xo + i, y.panel_v + yo + j, kc,
                scratch.weight + w, scratch.weight2 + w, fresh && j == (triangle ? i / V * V : 0),
                scratch.rows + i * kd, scratch.columns + j);
          });
          // Gradients leave the tile in float64: what is summed in T is never longer than a tile.
          for (int k = 0; k < kc * P; k += V)
            add_wide(y.gradient + yo + k, load(scratch.columns + k));
        }
        if (W == Want::both && (q1 == end || d > KC))
          for (int i = 0; i < rows; i += R)
            for (int k = 0; k < kc; ++k)
              for (int r = 0; r < R; ++r)
                x.gradient[row * stride + (k0 + k) * P + i + r] +=
                    sum(widen(scratch.rows[i * kd + k * R + r]));
      }
    }
    return sum(total);
  }

  double sweep(Want want, const Points<T>& x, std::int64_t row, const Points<T>& y,
               std::int64_t begin, std::int64_t end, bool diagonal, const Scale<T>* scale) const {
    if constexpr (Hessian) return sweep<Want::both>(x, row, y, begin, end, diagonal, scale);
    switch (want) {
      case Want::columns:
        return sweep<Want::columns>(x, row, y, begin, end, diagonal, scale);
      case Want::both:
        return sweep<Want::both>(x, row, y, begin, end, diagonal, scale);
      default:
        return sweep<Want::value>(x, row, y, begin, end, diagonal, scale);
    }
  }
};

// One problem of the batch, solved by a team of threads. All of them run every line.
template <class T, bool Hessian>
struct Problem {
  const MMD<T>& a;
  Points<T> x, y;
  Scale<T>*xx, *yy, *xy;
  double* partial;  // [team][3]
  Scratch<T> scratch;

  Problem(const MMD<T>& a, int team, Arena& shared, Arena& own) : a(a) {
    x = points(a.n, Hessian || a.dx, shared);
    y = points(a.m, Hessian || a.dy, shared);
    xx = shared.take<Scale<T>>(a.n_scales);
    yy = shared.take<Scale<T>>(a.n_scales);
    xy = shared.take<Scale<T>>(a.n_scales);
    partial = shared.take<double>(3 * team);
    const std::int64_t kd = std::min<std::int64_t>(a.d, KC);
    const std::int64_t tile = P * P * (a.d <= KC ? 1 : kColumnPanels);
    scratch.weight = own.take<T>(tile);
    scratch.weight2 = Hessian ? own.take<T>(tile) : scratch.weight;
    scratch.rows = own.take<Vec<T>>(P * kd);
    scratch.columns = own.take<T>(P * kd);
  }

  Points<T> points(std::int64_t count, bool gradient, Arena& arena) const {
    Points<T> p{};
    p.count = count;
    p.panels = (count + P - 1) / P;
    p.panel = arena.take<T>(p.panels * a.d * P);
    p.panel_v = Hessian ? arena.take<T>(p.panels * a.d * P) : p.panel;
    p.gradient = gradient ? arena.take<double>(p.panels * a.d * P) : nullptr;
    return p;
  }

  void solve(std::int64_t b, Team team) {
    const bool apart = a.pairs && a.m;  // no pairs within x and within y
    const double n = double(a.n), m = double(a.m), off = a.unbiased ? 1 : 0;
    const double wx = apart ? 0 : 1 / (n * (n - off)), wy = m && !apart ? 1 / (m * (m - off)) : 0;
    const double wxy = m ? (apart ? 1 : -2) / (n * m) : 0;
    x.source = a.x + b * a.x_batch_stride, y.source = a.y + b * a.y_batch_stride;
    if (Hessian) x.direction = a.vx + b * a.n * a.d, y.direction = a.vy + b * a.m * a.d;
    if (team.rank == 0) weights(xx, 2 * wx), weights(yy, 2 * wy), weights(xy, wxy);
    const double finite = pack(x, team) + pack(y, team);
    team.wait();
    const Tiles<T, Hessian> tiles{a.family, a.d, a.n_scales, scratch, team};
    double* mine = partial + 3 * team.rank;
    mine[0] = apart ? 0 : symmetric(tiles, x, xx, team);
    mine[1] = apart ? 0 : symmetric(tiles, y, yy, team);
    // The diagonal, which no sweep visits, is where an infinite coordinate turns into NaN.
    mine[2] = cross(tiles, team) + finite;
    team.wait();
    if (a.dx) unpack(x, a.dx + b * a.n * a.d, team);
    if (a.dy) unpack(y, a.dy + b * a.m * a.d, team);
    if (team.rank == 0 && (a.value || a.pairs)) {
      double sum[3] = {};
      for (int t = 0; t < team.size; ++t)
        for (int i = 0; i < 3; ++i) sum[i] += partial[3 * t + i];
      // The biased estimator has the diagonals in, where k is 1.
      const double diagonal = a.unbiased ? 0 : a.n_scales;
      const double value =
          wx * (2 * sum[0] + n * diagonal) + wy * (2 * sum[1] + m * diagonal) + wxy * sum[2];
      if (a.pairs)
        a.pairs[b] = value;
      else
        a.value[b] = T(value);
    }
    team.wait();
  }

  void weights(Scale<T>* scale, double weight) const {
    for (int i = 0; i < a.n_scales; ++i) scale[i] = scale_of<T>(a.family, a.scales[i], weight);
  }

  double pack(const Points<T>& p, Team team) const {
    double finite = 0;
    for (std::int64_t q = team.rank; q < p.panels; q += team.size) {
      const std::int64_t count = std::min<std::int64_t>(P, p.count - q * P), base = q * a.d * P;
      for (int v = 0; v < (Hessian ? 2 : 1); ++v)
        finite += pack_panel((v ? p.direction : p.source) + q * P * a.d, count, a.d,
                             (v ? p.panel_v : p.panel) + base);
      if (p.gradient) std::fill_n(p.gradient + base, a.d * P, 0.0);
    }
    return finite;
  }

  void unpack(const Points<T>& p, T* to, Team team) const {
    for (std::int64_t q = team.rank; q < p.panels; q += team.size)
      for (std::int64_t i = q * P; i < std::min(p.count, (q + 1) * P); ++i)
        for (std::int64_t k = 0; k < a.d; ++k)
          to[i * a.d + k] = T(p.gradient[(q * a.d + k) * P + i % P]);
  }

  // Sum of k over the pairs i < j of one sample.
  double symmetric(const Tiles<T, Hessian>& tiles, const Points<T>& p, const Scale<T>* scale,
                   Team team) const {
    const Want want = p.gradient ? Want::both : Want::value;
    double pairs = 0;
    each_pair_of_panels(p.panels, team,
                        [&](std::int64_t row, std::int64_t begin, std::int64_t end, bool diagonal) {
                          pairs += tiles.sweep(want, p, row, p, begin, end, diagonal, scale);
                        });
    return pairs;
  }

  // Sum of k over all pairs of x and y: in each round every thread has one group of both to itself.
  // x lies along the columns, unless y alone wants its gradient; so the value has the same bits
  // with and without that of x.
  double cross(const Tiles<T, Hessian>& tiles, Team team) const {
    const Want want = x.gradient && y.gradient   ? Want::both
                      : x.gradient || y.gradient ? Want::columns
                                                 : Want::value;
    const bool swap = want != Want::columns || x.gradient;
    const Points<T>&r = swap ? y : x, &c = swap ? x : y;
    const Group rows = group(r.panels, team.rank, team.size);
    double pairs = 0;
    for (int round = 0; round < team.size; ++round) {
      const Group columns = group(c.panels, (team.rank + round) % team.size, team.size);
      team.wait();
      for (std::int64_t q = rows.begin; q < rows.end; ++q)
        pairs += tiles.sweep(want, r, q, c, columns.begin, columns.end, false, xy);
    }
    return pairs;
  }
};

template <class T, bool Hessian>
void run(const MMD<T>& a) {
  const double n = double(a.n), m = double(a.m), pairs = 0.5 * n * n + 0.5 * m * m + n * m;
  solve_batch<Problem<T, Hessian>>(a, double(a.batch) * pairs * double(a.d + 8 * a.n_scales));
}

}  // namespace

void mmd_cpu(const MMD<float>& a) { a.vx ? run<float, true>(a) : run<float, false>(a); }
void mmd_cpu(const MMD<double>& a) { a.vx ? run<double, true>(a) : run<double, false>(a); }

}  // namespace vimae::VIMAE_SIMD
