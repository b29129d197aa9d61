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
enum Want { kValue = 0, kRows = 1, kColumns = 2, kBoth = 3 };

// A scale, and the factors that turn powers of its k into w 2 k' and w 4 k'', w being the weight of a pair.
struct Scale {
  double c, first, second;
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
  Vec<T>* rows;  // [P / R][min(d, KC)][R]: gradient of the rows, still spread over the lanes
  T* columns;    // [min(d, KC)][P]: gradient of the columns
};

template <class T, Family F, bool Hessian>
struct Tiles {
  static constexpr int V = kLanes<T>, J = JV * V;  // columns of a register tile
  std::int64_t d;
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
    const std::int64_t at_once = d <= KC ? 1 : kColumnPanels, kd = std::min<std::int64_t>(d, KC);
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
        if (Rows && (q0 == begin || d > KC)) std::fill_n(scratch.rows, P * kd, Vec<T>{});
        for (std::int64_t q = q0; q < q1; ++q) {
          const std::int64_t xo = row * stride + k0 * P, yo = q * stride + k0 * P;
          const std::int64_t columns = std::min<std::int64_t>(P, y.count - q * P);
          if (Columns) std::fill_n(scratch.columns, kc * P, T(0));
          for (int j = 0; j < columns; j += J)
            for (int i = 0; i < rows; i += R) {
              const std::int64_t w = ((q - q0) * P + i) * P + j;
              pull<Rows, Columns>(x.panel + xo + i, y.panel + yo + j, x.panel_v + xo + i, y.panel_v + yo + j, kc,
                                  scratch.weight + w, scratch.weight2 + w, scratch.rows + i * kd,
                                  scratch.columns + j);
            }
          // Gradients leave the tile in float64: what is summed in T is never longer than a tile.
          if (Columns)
            for (int k = 0; k < kc * P; ++k) y.gradient[yo + k] += double(scratch.columns[k]);
        }
        if (Rows && (q1 == end || d > KC))
          for (int i = 0; i < rows; ++i)
            for (int k = 0; k < kc; ++k)
              x.gradient[row * stride + (k0 + k) * P + i] += sum<T>(scratch.rows[i / R * R * kd + k * R + i % R]);
      }
    }
    return total;
  }

  double sweep(Want want, const Points<T>& x, std::int64_t row, const Points<T>& y, std::int64_t begin,
               std::int64_t end, const Scale* scale) const {
    switch (want) {
      case kRows: return sweep<true, false>(x, row, y, begin, end, scale);
      case kColumns: return sweep<false, true>(x, row, y, begin, end, scale);
      case kBoth: return sweep<true, true>(x, row, y, begin, end, scale);
      default: return sweep<false, false>(x, row, y, begin, end, scale);
    }
  }
};

struct Team {
  int rank, size;
  void wait() const {
    if (size > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
  }
};

// Memory by the piece, out of one block whose size was measured by handing out the same pieces of nothing.
struct Arena {
  char* base;
  std::size_t used = 0;
  template <class E>
  E* take(std::int64_t count) {
    E* piece = base ? reinterpret_cast<E*>(base + used) : nullptr;
    used += (std::size_t(count) * sizeof(E) + 63) / 64 * 64;
    return piece;
  }
};

// One problem of the batch, solved by a team of threads. All of them run every line.
template <class T, Family F, bool Hessian>
struct Problem {
  const MMD<T>& a;
  Points<T> x, y;
  Scale *xx, *yy, *xy;
  double* partial;  // [team][3]

  Problem(const MMD<T>& a, int team, Arena& arena) : a(a) {
    x = points(a.n, Hessian || a.dx, arena);
    y = points(a.m, Hessian || a.dy, arena);
    xx = arena.take<Scale>(a.n_scales);
    yy = arena.take<Scale>(a.n_scales);
    xy = arena.take<Scale>(a.n_scales);
    partial = arena.take<double>(3 * team);
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

  static Scratch<T> scratch(const MMD<T>& a, Arena& arena) {
    const std::int64_t kd = std::min<std::int64_t>(a.d, KC), tile = P * P * (a.d <= KC ? 1 : kColumnPanels);
    T* weight = arena.take<T>(tile);
    T* weight2 = Hessian ? arena.take<T>(tile) : weight;
    Vec<T>* rows = arena.take<Vec<T>>(P * kd);
    return {weight, weight2, rows, arena.take<T>(P * kd)};
  }

  void solve(std::int64_t b, const Scratch<T>& scratch, Team team) {
    const double n = double(a.n), m = double(a.m), off = a.unbiased ? 1 : 0;
    const double wx = 1 / (n * (n - off)), wy = 1 / (m * (m - off)), wxy = -2 / (n * m);
    x.source = a.x + b * a.x_batch_stride, y.source = a.y + b * a.y_batch_stride;
    if (Hessian) x.direction = a.vx + b * a.n * a.d, y.direction = a.vy + b * a.m * a.d;
    if (team.rank == 0) weights(xx, 2 * wx), weights(yy, 2 * wy), weights(xy, wxy);
    pack(x, team), pack(y, team);
    team.wait();
    const Tiles<T, F, Hessian> tiles{a.d, a.n_scales, scratch};
    double* mine = partial + 3 * team.rank;
    mine[0] = symmetric(tiles, x, xx, team);
    mine[1] = symmetric(tiles, y, yy, team);
    mine[2] = cross(tiles, team);
    team.wait();
    if (a.dx) unpack(x, a.dx + b * a.n * a.d, team);
    if (a.dy) unpack(y, a.dy + b * a.m * a.d, team);
    if (team.rank == 0 && a.value) {
      double sum[3] = {};
      for (int t = 0; t < team.size; ++t)
        for (int i = 0; i < 3; ++i) sum[i] += partial[3 * t + i];
      // k(x, x) is exactly 1 for every scale, so the diagonal leaves without a trace.
      sum[0] -= off * n * a.n_scales, sum[1] -= off * m * a.n_scales;
      a.value[b] = T(wx * sum[0] + wy * sum[1] + wxy * sum[2]);
    }
    team.wait();
  }

  void weights(Scale* scale, double weight) const {
    for (int i = 0; i < a.n_scales; ++i) {
      const double c = a.scales[i];
      scale[i] = {c, -2 * weight / c, (F == Family::imq ? 8 : 4) * weight / (c * c)};
    }
  }

  void pack(const Points<T>& p, Team team) const {
    for (std::int64_t q = team.rank; q < p.panels; q += team.size) {
      const std::int64_t count = std::min<std::int64_t>(P, p.count - q * P), base = q * a.d * P;
      for (int v = 0; v < (Hessian ? 2 : 1); ++v) {
        const T* from = (v ? p.direction : p.source) + q * P * a.d;
        T* to = (v ? p.panel_v : p.panel) + base;
        for (std::int64_t k = 0; k < a.d; ++k) {
          for (int i = 0; i < count; ++i) to[k * P + i] = from[i * a.d + k];
          for (std::int64_t i = count; i < P; ++i) to[k * P + i] = 0;
        }
      }
      if (p.gradient) std::fill_n(p.gradient + base, a.d * P, 0.0);
    }
  }

  void unpack(const Points<T>& p, T* to, Team team) const {
    for (std::int64_t q = team.rank; q < p.panels; q += team.size)
      for (std::int64_t i = q * P; i < std::min(p.count, (q + 1) * P); ++i)
        for (std::int64_t k = 0; k < a.d; ++k)
          to[i * a.d + k] = T(p.gradient[(q * a.d + k) * P + i % P]);
  }

  struct Group {
    std::int64_t begin, end;
  };

  static Group group(std::int64_t panels, int g, int groups) {
    return {panels * g / groups, panels * (g + 1) / groups};
  }

  // Sum of k over all ordered pairs of one sample: 2 x team groups meet in rounds, every group once a round.
  double symmetric(const Tiles<T, F, Hessian>& tiles, const Points<T>& p, const Scale* scale, Team team) const {
    const int groups = 2 * team.size;
    const Want off_diagonal = p.gradient ? kBoth : kValue, diagonal = p.gradient ? kRows : kValue;
    double pairs = 0, ordered = 0;
    for (int round = 0; round < groups - 1; ++round) {
      const int t = team.rank, circle = groups - 1;
      const Group rows = group(p.panels, t == 0 ? circle : (round + t) % circle, groups);
      const Group columns = group(p.panels, (round - t + circle) % circle, groups);
      for (std::int64_t q = rows.begin; q < rows.end; ++q)
        pairs += tiles.sweep(off_diagonal, p, q, p, columns.begin, columns.end, scale);
      team.wait();
    }
    for (int g : {team.rank, groups - 1 - team.rank}) {
      const Group own = group(p.panels, g, groups);
      for (std::int64_t q = own.begin; q < own.end; ++q) {
        ordered += tiles.sweep(diagonal, p, q, p, q, q + 1, scale);
        pairs += tiles.sweep(off_diagonal, p, q, p, q + 1, own.end, scale);
      }
    }
    return 2 * pairs + ordered;
  }

  // Sum of k over all pairs of x and y: in each round every thread has one group of both to itself.
  double cross(const Tiles<T, F, Hessian>& tiles, Team team) const {
    const Want want = Want((x.gradient ? kRows : 0) | (y.gradient ? kColumns : 0));
    const Group rows = group(x.panels, team.rank, team.size);
    double pairs = 0;
    for (int round = 0; round < team.size; ++round) {
      const Group columns = group(y.panels, (team.rank + round) % team.size, team.size);
      team.wait();
      for (std::int64_t q = rows.begin; q < rows.end; ++q)
        pairs += tiles.sweep(want, x, q, y, columns.begin, columns.end, xy);
    }
    return pairs;
  }
};

template <class T, Family F, bool Hessian>
void run(const MMD<T>& a) {
  // A thread is worth starting for some tens of microseconds of work: about half a million coordinates.
  const double pairs = 0.5 * double(a.n) * double(a.n) + 0.5 * double(a.m) * double(a.m) + double(a.n) * double(a.m);
  const double work = double(a.batch) * pairs * double(a.d + 8 * a.n_scales);
  const int threads = int(std::clamp(work / 5e5, 1.0, double(std::max(1, a.threads))));
  // Many problems: one thread each. Few: all threads on each in turn.
  const bool by_problem = a.batch >= threads;
  const int team = by_problem ? 1 : threads, teams = by_problem ? threads : 1;

  Arena measure{nullptr};
  Problem<T, F, Hessian>(a, team, measure);
  const std::size_t per_team = measure.used;
  measure.used = 0;
  Problem<T, F, Hessian>::scratch(a, measure);
  const std::size_t per_thread = measure.used;
  char* block = static_cast<char*>(std::aligned_alloc(64, teams * per_team + threads * per_thread));
  if (!block) throw std::bad_alloc();

#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    int rank = 0;
#ifdef _OPENMP
    rank = omp_get_thread_num();
#endif
    Arena shared{block + (by_problem ? rank * per_team : 0)};
    Arena own{block + teams * per_team + rank * per_thread};
    Problem<T, F, Hessian> problem(a, team, shared);
    const Scratch<T> scratch = Problem<T, F, Hessian>::scratch(a, own);
    if (by_problem)
      for (std::int64_t b = a.batch * rank / threads; b < a.batch * (rank + 1) / threads; ++b)
        problem.solve(b, scratch, {0, 1});
    else
      for (std::int64_t b = 0; b < a.batch; ++b) problem.solve(b, scratch, {rank, team});
  }
  std::free(block);
}

template <class T>
void choose(const MMD<T>& a) {
  if (a.family == Family::imq)
    a.vx ? run<T, Family::imq, true>(a) : run<T, Family::imq, false>(a);
  else
    a.vx ? run<T, Family::rbf, true>(a) : run<T, Family::rbf, false>(a);
}

}  // namespace

void mmd_cpu(const MMD<float>& a) { choose(a); }
void mmd_cpu(const MMD<double>& a) { choose(a); }

}  // namespace vimae::VIMAE_SIMD
