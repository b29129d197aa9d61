// Forward: samples lie along the lanes, a block of them meets the posteriors panel by panel. Of a
// panel's log densities l (see aggregate.h) coordinate after coordinate is kept in the first cache,
// first for its maximum, then to be exponentiated: the maxima of the samples so far grow from panel
// to panel, and what was summed is scaled when they do. No value is ever reduced across the lanes.
//
// Backward: posteriors lie along the lanes, so that their gradients are sums over the rows of a
// tile that stay in registers. Threads own groups of rows and, in turns, groups of posteriors: no
// accumulator has two owners, and the order of every sum is fixed.

#include "aggregate/aggregate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "aggregate/aggregate_simd.h"
#include "common/team.h"
#include "common/tiles.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr int kRowVectors = VIMAE_SIMD_BYTES == 64 ? 4 : 2;     // of a block in the forward pass
constexpr int kColumnVectors = VIMAE_SIMD_BYTES == 64 ? 2 : 1;  // at once in the backward pass
constexpr int kRowPanels = 8;  // column panels between two reductions of a row's gradient

template <class T>
constexpr int kRows = kRowVectors * kLanes<T>;

// B posteriors in panels of P, transposed, so that a coordinate of neighbours is one vector.
template <class T>
struct Posteriors {
  std::int64_t count, panels;
  // [panels][d][P]: t = (z - mean) scale, l = height - t^2. The padding has scale 0 and a height
  // of next to nothing.
  T *mean, *scale, *height;
  double* tallest;  // [panels][P], the sum of the heights: l of all coordinates where z = mean

  template <class Call>
  static Posteriors take(const Call& a, Arena& arena) {
    Posteriors p{};
    p.count = a.B, p.panels = (a.B + P - 1) / P;
    p.mean = arena.take<T>(p.panels * a.d * P);
    p.scale = arena.take<T>(p.panels * a.d * P);
    p.height = arena.take<T>(p.panels * a.d * P);
    p.tallest = arena.take<double>(p.panels * P);
    return p;
  }

  template <class Call>
  void pack(const Call& a, std::int64_t b, Team team) const {
    for (std::int64_t q = team.rank; q < panels && !team.stopped(double(8 * P * a.d));
         q += team.size) {
      const std::int64_t columns = std::min<std::int64_t>(P, count - q * P);
      for (std::int64_t j = columns; j < P; ++j) {
        for (std::int64_t k = 0; k < a.d; ++k) {
          const std::int64_t to = (q * a.d + k) * P + j;
          mean[to] = scale[to] = 0, height[to] = T(-1e30);
        }
        tallest[q * P + j] = -1e30;
      }
      for (std::int64_t j = 0; j < columns; ++j) {
        const T* m = a.mean + b * a.mean_batch_stride + (q * P + j) * a.d;
        const T* v = a.log_var + b * a.log_var_batch_stride + (q * P + j) * a.d;
        double sum = 0;
        for (std::int64_t k = 0; k < a.d; ++k) {
          const std::int64_t to = (q * a.d + k) * P + j;
          const T log_var = defined(v[k]);
          const double h = -0.5 * (kLog2TwoPi + kLog2E * double(log_var));
          mean[to] = defined(m[k]);
          scale[to] = T(std::sqrt(0.5 * kLog2E) * double(std::exp(T(-0.5) * log_var)));
          height[to] = T(h);
          sum += h;
        }
        tallest[q * P + j] = sum;
      }
    }
  }
};

// to = to factor + add, elementwise, in float64.
VIMAE_INLINE void scale_and_add(double* to, Vec<double> factor, Vec<double> add) {
  store(to, load(to) * factor + add);
}

VIMAE_INLINE void scale_and_add(double* to, Vec<float> factor, Vec<float> add) {
  typedef float Half __attribute__((vector_size(VIMAE_SIMD_BYTES / 2)));
  Half f[2], s[2];
  std::memcpy(f, &factor, sizeof f), std::memcpy(s, &add, sizeof s);
  for (int h = 0; h < 2; ++h)
    scale_and_add(to + h * kLanes<double>, __builtin_convertvector(f[h], Vec<double>),
                  __builtin_convertvector(s[h], Vec<double>));
}

// Sums over coordinates leave a chunk of KC in float64: rounding does not grow with d.
template <class T>
VIMAE_INLINE void leave_chunk(const T* squares, int count, bool first, double* all) {
  for (int e = 0; e < count; ++e) all[e] = (first ? 0 : all[e]) + double(squares[e]);
}

template <class T>
struct Forward {
  static constexpr int V = kLanes<T>, NV = kRowVectors, Rows = kRows<T>;
  const Aggregate<T>& a;
  Weights weights;
  Posteriors<T> posteriors;
  // Of one block of rows, along the lanes:
  T *z, *peak;                       // [d][Rows]
  double* total;                     // [d][Rows], relative to the peaks
  double *joint_peak, *joint_total;  // [Rows]
  T* l;                              // [P][Rows], of one coordinate
  T* squares;                        // [P][Rows], sums over a chunk of coordinates ...
  double* joint;                     // ... and over all
  T* ratio;                          // [P][Rows]

  Forward(const Aggregate<T>& a, int, Arena& shared, Arena& own)
      : a(a), weights(a), posteriors(Posteriors<T>::take(a, shared)) {
    z = own.take<T>(a.d * Rows);
    peak = own.take<T>(a.d * Rows);
    total = own.take<double>(a.d * Rows);
    joint_peak = own.take<double>(Rows);
    joint_total = own.take<double>(Rows);
    l = own.take<T>(P * Rows);
    squares = own.take<T>(P * Rows);
    joint = own.take<double>(P * Rows);
    ratio = own.take<T>(P * Rows);
  }

  void solve(std::int64_t b, Team team) {
    const FlushSubnormals flush;
    posteriors.pack(a, b, team);
    team.wait();
    const std::int64_t blocks = (a.n + Rows - 1) / Rows;
    for (std::int64_t i = team.rank; i < blocks; i += team.size)
      block(b, i * Rows, std::min<std::int64_t>(Rows, a.n - i * Rows), team);
    team.wait();
  }

  void block(std::int64_t b, std::int64_t row, std::int64_t rows, Team team) {
    const T* from = a.z + b * a.z_batch_stride + row * a.d;
    for (std::int64_t k = 0; k < a.d; ++k)
      for (int i = 0; i < Rows; ++i) z[k * Rows + i] = i < rows ? defined(from[i * a.d + k]) : T(0);
    std::fill_n(peak, a.d * Rows, -std::numeric_limits<T>::infinity());
    std::fill_n(total, a.d * Rows, 0.0);
    std::fill_n(joint_peak, Rows, -std::numeric_limits<double>::infinity());
    std::fill_n(joint_total, Rows, 0.0);
    for (std::int64_t q = 0; q < posteriors.panels; ++q) {
      if (team.stopped(double(Rows * P * a.d))) return;
      const std::int64_t columns = std::min<std::int64_t>(P, a.B - q * P);
      if (weights.tile(row, rows, q * P, columns, 1, Rows, P * Rows, ratio))
        panel<true>(q, int(columns));
      else
        panel<false>(q, int(columns));
    }
    const double common = weights.common;
    for (int i = 0; i < rows; ++i) {
      const std::int64_t at = b * a.n + row + i;
      a.joint[at] = kLn2 * (joint_peak[i] + std::log2(common * joint_total[i]));
      for (std::int64_t k = 0; k < a.d; ++k) {
        const T sum = T(common * total[k * Rows + i]), top = peak[k * Rows + i];
        a.peak[at * a.d + k] = top;
        a.total[at * a.d + k] = sum;
        a.marginal[at * a.d + k] = T(kLn2 * (double(top) + double(std::log2(sum))));
      }
    }
  }

  template <bool Weighted>
  void panel(std::int64_t q, int columns) {
    for (std::int64_t k0 = 0; k0 < a.d; k0 += KC) {
      if (k0) leave_chunk(squares, columns * Rows, k0 == KC, joint);
      std::fill_n(squares, columns * Rows, T(0));
      for (std::int64_t k = k0; k < std::min(a.d, k0 + KC); ++k)
        coordinate<Weighted>(q, k, columns);
    }
    together<Weighted>(posteriors.tallest + q * P, columns);
  }

  // Coordinate k of a panel's posteriors: into the marginal, and its squares to those of the pairs.
  template <bool Weighted>
  void coordinate(std::int64_t q, std::int64_t k, int columns) {
    const std::int64_t at = (q * a.d + k) * P;
    const T *mean = posteriors.mean + at, *scale = posteriors.scale + at,
            *height = posteriors.height + at;
    Vec<T> zk[NV], top[NV], sum[NV] = {};
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      zk[v] = load(z + k * Rows + v * V);
      top[v] = load(peak + k * Rows + v * V);
    }
    for (int j = 0; j < columns; ++j) {
      const Vec<T> m = splat(mean[j]), s = splat(scale[j]), h = splat(height[j]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int e = j * Rows + v * V;
        const Vec<T> t = (zk[v] - m) * s, lj = h - t * t;
        store(squares + e, load(squares + e) + t * t);
        store(l + e, lj);
        top[v] = larger<T>(top[v], lj);
      }
    }
    for (int j = 0; j < columns; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int e = j * Rows + v * V;
        const Vec<T> term = exp2_of<T>(load(l + e) - top[v]);
        sum[v] += Weighted ? term * load(ratio + e) : term;
      }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const std::int64_t e = k * Rows + v * V;
      scale_and_add(total + e, exp2_of<T>(load(peak + e) - top[v]), sum[v]);
      store(peak + e, top[v]);
    }
  }

  // A panel's posteriors in all coordinates, into the joint density.
  template <bool Weighted>
  void together(const double* tallest, int columns) {
    double top[Rows];
    std::copy_n(joint_peak, Rows, top);
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < Rows; ++i) {
        const double rest = a.d > KC ? joint[j * Rows + i] : 0;
        const double lj = tallest[j] - (rest + double(squares[j * Rows + i]));
        joint[j * Rows + i] = lj;
        top[i] = lj > top[i] ? lj : top[i];
      }
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < Rows; ++i) squares[j * Rows + i] = T(joint[j * Rows + i] - top[i]);
    Vec<T> sum[NV] = {};
    for (int j = 0; j < columns; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int e = j * Rows + v * V;
        const Vec<T> term = exp2_of<T>(load(squares + e));
        sum[v] += Weighted ? term * load(ratio + e) : term;
      }
    T change[Rows];
    for (int i = 0; i < Rows; ++i) change[i] = T(joint_peak[i] - top[i]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      scale_and_add(joint_total + v * V, exp2_of<T>(load(change + v * V)), sum[v]);
    std::copy_n(top, Rows, joint_peak);
  }
};

template <class T>
struct Backward {
  static constexpr int V = kLanes<T>, CV = kColumnVectors;
  const AggregateGradient<T>& a;
  Weights weights;
  Posteriors<T> posteriors;
  double *dmean, *dlog_var;  // [panels][d][P]
  // Samples in panels of P as well:
  std::int64_t panels;
  T *z, *peak, *gain;          // [panels][d][P]; gain is that of w_ij 2^(l - peak)
  double *joint, *joint_gain;  // [panels][P]
  double* dz;                  // [panels][d][P]
  // Of one tile:
  T* squares;    // [P][P], sums over a chunk of coordinates ...
  double* all;   // ... and over all
  T* pull;       // [P][P], of a pair through the joint density
  T* ratio;      // [P][P]
  Vec<T>* rows;  // [min(d, KC)][P]: gradient of the rows, still spread over the lanes

  Backward(const AggregateGradient<T>& a, int, Arena& shared, Arena& own)
      : a(a), weights(a), posteriors(Posteriors<T>::take(a, shared)), panels((a.n + P - 1) / P) {
    dmean = shared.take<double>(posteriors.panels * a.d * P);
    dlog_var = shared.take<double>(posteriors.panels * a.d * P);
    z = shared.take<T>(panels * a.d * P);
    peak = shared.take<T>(panels * a.d * P);
    gain = shared.take<T>(panels * a.d * P);
    joint = shared.take<double>(panels * P);
    joint_gain = shared.take<double>(panels * P);
    dz = shared.take<double>(panels * a.d * P);
    squares = own.take<T>(P * P);
    all = own.take<double>(P * P);
    pull = own.take<T>(P * P);
    ratio = own.take<T>(P * P);
    rows = own.take<Vec<T>>(std::min<std::int64_t>(a.d, KC) * P);
  }

  void solve(std::int64_t b, Team team) {
    const FlushSubnormals flush;
    posteriors.pack(a, b, team);
    pack(b, team);
    team.wait();
    const std::int64_t begin = panels * team.rank / team.size,
                       end = panels * (team.rank + 1) / team.size;
    for (int round = 0; round < team.size; ++round) {
      const int group = (team.rank + round) % team.size;
      for (std::int64_t p = begin; p < end; ++p)
        sweep(p, posteriors.panels * group / team.size, posteriors.panels * (group + 1) / team.size,
              team);
      team.wait();
    }
    unpack(b, team);
    team.wait();
  }

  void pack(std::int64_t b, Team team) const {
    for (std::int64_t p = team.rank; p < panels && !team.stopped(double(8 * P * a.d));
         p += team.size) {
      const std::int64_t count = std::min<std::int64_t>(P, a.n - p * P), first = b * a.n + p * P;
      for (std::int64_t i = 0; i < count; ++i) {
        const T* from = a.z + b * a.z_batch_stride + (p * P + i) * a.d;
        joint[p * P + i] = kLog2E * a.joint[first + i];
        joint_gain[p * P + i] = weights.common * double(a.g_joint[first + i]);
        for (std::int64_t k = 0; k < a.d; ++k) {
          const std::int64_t at = (first + i) * a.d + k, to = (p * a.d + k) * P + i;
          z[to] = defined(from[k]);
          peak[to] = a.peak[at];
          gain[to] = T(weights.common * double(a.g_marginal[at]) / double(a.total[at]));
        }
      }
      std::fill_n(dz + p * a.d * P, a.d * P, 0.0);
    }
    for (std::int64_t q = team.rank; q < posteriors.panels && !team.stopped(double(8 * P * a.d));
         q += team.size) {
      std::fill_n(dmean + q * a.d * P, a.d * P, 0.0);
      std::fill_n(dlog_var + q * a.d * P, a.d * P, 0.0);
    }
  }

  void unpack(std::int64_t b, Team team) const {
    for (std::int64_t p = team.rank; p < panels && !team.stopped(double(8 * P * a.d));
         p += team.size)
      for (std::int64_t i = p * P; i < std::min(a.n, (p + 1) * P); ++i)
        for (std::int64_t k = 0; k < a.d; ++k)
          a.dz[(b * a.n + i) * a.d + k] = T(-2 * kLn2 * dz[(p * a.d + k) * P + i % P]);
    for (std::int64_t q = team.rank; q < posteriors.panels && !team.stopped(double(8 * P * a.d));
         q += team.size)
      for (std::int64_t j = q * P; j < std::min(a.B, (q + 1) * P); ++j)
        for (std::int64_t k = 0; k < a.d; ++k) {
          const std::int64_t from = (q * a.d + k) * P + j % P, to = (b * a.B + j) * a.d + k;
          a.dmean[to] = T(2 * kLn2 * double(posteriors.scale[from]) * dmean[from]);
          a.dlog_var[to] = T(dlog_var[from]);
        }
  }

  // A panel of rows against the column panels [begin, end).
  void sweep(std::int64_t p, std::int64_t begin, std::int64_t end, Team team) const {
    const int count = int(std::min<std::int64_t>(P, a.n - p * P));
    for (std::int64_t q = begin; q < end; ++q) {
      if (team.stopped(double(3 * P * P * a.d))) return;
      const std::int64_t columns = std::min<std::int64_t>(P, a.B - q * P);
      if (weights.tile(p * P, count, q * P, columns, P, 1, P * P, ratio))
        tile<true>(p, q, count, int(columns), q == begin, q + 1 == end);
      else
        tile<false>(p, q, count, int(columns), q == begin, q + 1 == end);
    }
  }

  template <bool Weighted>
  void tile(std::int64_t p, std::int64_t q, int count, int columns, bool first, bool last) const {
    const int wide = (columns + CV * V - 1) / (CV * V) * (CV * V);  // with the padding
    for (std::int64_t k0 = 0; k0 < a.d; k0 += KC) {
      const int kc = int(std::min<std::int64_t>(KC, a.d - k0));
      if (k0)
        for (int i = 0; i < count; ++i) leave_chunk(squares + i * P, wide, k0 == KC, all + i * P);
      each_tile<T>(count, wide, false, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
        distances<vectors.n>(z + (p * a.d + k0) * P + i, (q * a.d + k0) * P + j, kc,
                             squares + i * P + j);
      });
    }
    for (int i = 0; i < count; ++i) {
      const double gained = joint_gain[p * P + i], top = joint[p * P + i];
      for (int j = 0; j < wide; ++j) {
        const double rest = a.d > KC ? all[i * P + j] : 0;
        squares[i * P + j] =
            T(posteriors.tallest[q * P + j] - (rest + double(squares[i * P + j])) - top);
      }
      for (int j = 0; j < wide; j += V) {
        const Vec<T> weight = exp2_of<T>(load(squares + i * P + j)) * T(gained);
        store(pull + i * P + j, Weighted ? weight * load(ratio + i * P + j) : weight);
      }
    }
    // Rows stay spread over the lanes for some panels; where d is large there is no room for that.
    const bool chunked = a.d > KC;
    const bool fresh = first || chunked || q % kRowPanels == 0;
    const bool done = last || chunked || (q + 1) % kRowPanels == 0;
    for (std::int64_t k0 = 0; k0 < a.d; k0 += KC) {
      const int kc = int(std::min<std::int64_t>(KC, a.d - k0));
      for (int k = 0; k < kc; ++k) {
        if (fresh) std::fill_n(rows + k * P, count, Vec<T>{});
        for (int j = 0; j < wide; j += CV * V)
          coordinate<Weighted>((p * a.d + k0 + k) * P, (q * a.d + k0 + k) * P, j, count,
                               rows + k * P);
        if (done)
          for (int i = 0; i < count; ++i)
            dz[(p * a.d + k0 + k) * P + i] += sum(widen(rows[k * P + i]));
      }
    }
  }

  // Squares over kc coordinates of a register tile of R rows and NV vectors of columns.
  template <int NV>
  VIMAE_INLINE void distances(const T* zk, std::int64_t at, int kc, T* to) const {
    const T *mean = posteriors.mean + at, *scale = posteriors.scale + at;
    Vec<T> acc[R][NV] = {};
    for (int k = 0; k < kc; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const Vec<T> m = load(mean + k * P + v * V), s = load(scale + k * P + v * V);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Vec<T> t = (splat(zk[k * P + r]) - m) * s;
          acc[r][v] += t * t;
        }
      }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(to + r * P + v * V, acc[r][v]);
  }

  // One coordinate of the tile's rows, whose numbers start at x, and of CV vectors of columns j,
  // whose panel starts at y.
  template <bool Weighted>
  VIMAE_INLINE void coordinate(std::int64_t x, std::int64_t y, int j, int count,
                               Vec<T>* row) const {
    Vec<T> m[CV], s[CV], h[CV], pulled[CV] = {}, mass[CV] = {}, squared[CV] = {};
#pragma GCC unroll 4
    for (int v = 0; v < CV; ++v) {
      m[v] = load(posteriors.mean + y + j + v * V);
      s[v] = load(posteriors.scale + y + j + v * V);
      h[v] = load(posteriors.height + y + j + v * V);
    }
    // Two short loops: a processor sees further ahead in them than in one long one.
    T terms[P * CV * V];
    for (int i = 0; i < count; ++i) {
      const Vec<T> zi = splat(z[x + i]), top = splat(peak[x + i]);
#pragma GCC unroll 4
      for (int v = 0; v < CV; ++v) {
        const Vec<T> t = (zi - m[v]) * s[v], term = exp2_of<T>(h[v] - t * t - top);
        store(terms + (i * CV + v) * V, Weighted ? term * load(ratio + i * P + j + v * V) : term);
      }
    }
    for (int i = 0; i < count; ++i) {
      const Vec<T> zi = splat(z[x + i]), up = splat(gain[x + i]);
      Vec<T> g = row[i];
#pragma GCC unroll 4
      for (int v = 0; v < CV; ++v) {
        const Vec<T> t = (zi - m[v]) * s[v];
        const Vec<T> weight = load(pull + i * P + j + v * V) + up * load(terms + (i * CV + v) * V);
        const Vec<T> force = weight * t;
        mass[v] += weight;
        pulled[v] += force;
        squared[v] += force * t;
        g += force * s[v];
      }
      row[i] = g;
    }
#pragma GCC unroll 4
    for (int v = 0; v < CV; ++v) {
      T sums[V], halves[V];
      store(sums, pulled[v]), store(halves, T(kLn2) * squared[v] - T(0.5) * mass[v]);
      // Gradients leave the tile in float64: what is summed in T is never longer than a tile.
      for (int e = 0; e < V; ++e) {
        dmean[y + j + v * V + e] += double(sums[e]);
        dlog_var[y + j + v * V + e] += double(halves[e]);
      }
    }
  }
};

template <class T, template <class> class Problem, class Call>
void run(const Call& a) {
  // An exponential costs what three coordinates of a pair cost elsewhere.
  solve_batch<Problem<T>>(a, 3.0 * double(a.batch) * double(a.n) * double(a.B) * double(a.d + 2));
}

}  // namespace

void aggregate_cpu(const Aggregate<float>& a) { run<float, Forward>(a); }
void aggregate_cpu(const Aggregate<double>& a) { run<double, Forward>(a); }
void aggregate_gradient_cpu(const AggregateGradient<float>& a) { run<float, Backward>(a); }
void aggregate_gradient_cpu(const AggregateGradient<double>& a) { run<double, Backward>(a); }

}  // namespace vimae::VIMAE_SIMD
