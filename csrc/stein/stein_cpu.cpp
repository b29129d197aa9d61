// The Stein gradient: pairs of points, each met once for both its ends, in one of two ways.
//
// Any kernel and any points: common/symmetric.h, which takes every difference of two points. With
// one RBF scale, the default, three fifths of its arithmetic do. Around the mean m, with e = z - m,
//
//   sum_j k_ij (score_j + 2/c (z_i - z_j)) = sum_j k_ij p_j + 2/c e_i sum_j k_ij
//   p = score - 2/c e,  log2 k_ij = x_i . x_j - |x_i|^2 / 2 - |x_j|^2 / 2,  x = sqrt(2/c log2(e)) e
//
// which is three products of matrices. Rounding then goes with |x|^2 in an exponent, and with |e_i|
// where it went with |z_i - z_j|. Both are bounded here, the one before and the other after; where
// a bound does not hold, pairs are met the first way.

#include "stein/stein.h"

#include <cmath>
#include <stdexcept>

#include "common/symmetric.h"

namespace vimae::VIMAE_SIMD {
namespace {

// The most that |x|^2 may be: beyond it exponents lose digits, and the next bound seldom holds.
constexpr double kReach = 8;
// The most that |x_i| max |x| may be against the mean of |x_i - x_j|^2 over j, weighted with k_ij;
// one j in JV is looked at.
constexpr double kTight = 2;
// Beyond it sqrt(2/c) is next to nothing in float32.
constexpr double kWidest = 1e20;

// Sums over all j but i of k_ij, of k_ij log2 k_ij (one j in JV), the masses of i, and of k_ij p_j.
template <class T>
struct Products {
  static constexpr int V = kLanes<T>;

  std::int64_t n, d, panels;
  // The team's: points, what is summed up, and -|x|^2 / 2; [panels][d][P] and [panels][P].
  T *x, *p, *half;
  double *sums, *masses;  // [panels][d][P], [panels][2][P]
  // The thread's own: the weights of two panels, [P][P]; masses of rows, still spread over the
  // lanes, [P / R][2][R], and of columns, [2][P]; m.
  T* weight;
  Vec<T>* row_masses;
  T* column_masses;
  double* mean;

  Products(std::int64_t n, std::int64_t d, bool scored, Arena& shared, Arena& own)
      : n(n), d(d), panels((n + P - 1) / P) {
    x = shared.take<T>(panels * d * P);
    p = scored ? shared.take<T>(panels * d * P) : x;
    half = shared.take<T>(panels * P);
    sums = shared.take<double>(panels * d * P);
    masses = shared.take<double>(panels * 2 * P);
    weight = own.take<T>(P * P);
    row_masses = own.take<Vec<T>>(P * 2);
    column_masses = own.take<T>(P * 2);
    mean = own.take<double>(d);
  }

  // Takes this thread's share of the points, and of their scores; without, p is x. Returns the most
  // that |x|^2 is, or NaN where a coordinate is not finite.
  double take(const T* z, const T* score, double c, Team team) const {
    std::fill_n(mean, d, 0.0);
    for (std::int64_t i = 0; i < n && !team.stopped(double(d)); ++i)
      for (std::int64_t k = 0; k < d; ++k) mean[k] += double(z[i * d + k]);
    for (std::int64_t k = 0; k < d; ++k) mean[k] = double(T(mean[k] / double(n)));
    const double unit = std::sqrt(2 * kLog2E / c);
    double finite = 0, most = 0;
    for (std::int64_t q = team.rank; q < panels && !team.stopped(double(P * d)); q += team.size) {
      const std::int64_t at = q * d * P;
      finite += pack_panel(z + at, count(q), d, x + at);
      if (score) finite += pack_panel(score + at, count(q), d, p + at);
      double squares[P] = {}, part[P] = {};
      for (std::int64_t k = 0; k < d; ++k) {
        T *xk = x + at + k * P, *pk = p + at + k * P;
        for (int i = 0; i < count(q); ++i) {
          const T e = xk[i] - T(mean[k]);
          xk[i] = T(unit) * e;
          if (score) pk[i] = T(double(pk[i]) - 2 / c * double(e));
          part[i] += double(xk[i]) * double(xk[i]);
        }
        // Partial sums, as in the products that these are taken from.
        for (int i = 0; (k % KC == KC - 1 || k == d - 1) && i < P; ++i)
          squares[i] += part[i], part[i] = 0;
      }
      for (int i = 0; i < P; ++i) {
        // Padding stays 0, and has no weight.
        half[q * P + i] = i < count(q) ? T(squares[i] / -2) : T(-1e4);
        if (i < count(q)) most = std::max(most, squares[i]);
      }
      std::fill_n(sums + at, d * P, 0.0);
      std::fill_n(masses + q * 2 * P, 2 * P, 0.0);
    }
    return most + finite;
  }

  // All threads of the team run it once everything is taken.
  void meet(Team team) const {
    std::fill_n(row_masses, 2 * P, Vec<T>{});
    each_pair_of_panels(panels, team,
                        [&](std::int64_t row, std::int64_t begin, std::int64_t end, bool diagonal) {
                          if (diagonal) {  // symmetric: what its columns sum up is all
                            weigh(row, row);
                            sum_columns(row, begin++);
                          }
                          for (std::int64_t q = begin; q < end; ++q) {
                            if (team.stopped(double(P * P * d))) break;
                            weigh(row, q);
                            sum_columns(row, q);
                            transpose();
                            sum_columns(q, row);
                            if (q + 1 == end || (q - begin + 1) % kColumnPanels == 0)
                              leave_lanes<T>(row_masses, 2, 2, masses + row * 2 * P);
                          }
                        });
    team.wait();
  }

  // Whether this thread's share of the points lies as it must, `most` being that of all.
  bool good(double most, Team team) const {
    for (std::int64_t q = team.rank; q < panels; q += team.size)
      for (int i = 0; i < count(q); ++i) {
        const double *of = masses + q * 2 * P + i, squares = -2 * double(half[q * P + i]);
        if (std::sqrt(squares * most) * of[0] > kTight * JV * -2 * of[P]) return false;
      }
    return true;
  }

  // Writes this thread's share of phi. It overwrites x.
  void finish(const T* z, const T* score, double c, T* phi, Team team) const {
    const double unit = double(T(std::sqrt(2 * kLog2E / c))), pull = 2 / c, share = 1 / double(n);
    for (std::int64_t q = team.rank; q < panels && !team.stopped(double(P * d)); q += team.size) {
      const double* mass = masses + q * 2 * P;
      for (std::int64_t k = 0; k < d; ++k) {
        const std::int64_t at = (q * d + k) * P;
        // Without scores, that is with -z, p = -(1 + 2/c) e - m, and x was summed up for e.
        const double of_sum = score ? share : -share * (1 + pull) / unit;
        const double of_mass = score ? 0 : mean[k];
        for (int i = 0; i < P; ++i)
          x[at + i] = T(of_sum * sums[at + i] +
                        share * (pull / unit * double(x[at + i]) - of_mass) * mass[i]);
      }
      for (int i = 0; i < count(q); ++i)
        for (std::int64_t k = 0; k < d; ++k) {
          // What the point adds itself is left: k = 1 and no pull.
          const std::int64_t at = (q * P + i) * d + k;
          const double own = score ? double(score[at]) : -double(z[at]);
          phi[at] = T(double(x[(q * d + k) * P + i]) + share * own);
        }
    }
  }

 private:
  int count(std::int64_t q) const { return int(std::min<std::int64_t>(P, n - q * P)); }

  // The weights of the pairs of two panels and their masses; of a panel and itself, those of the
  // columns.
  VIMAE_INLINE void weigh(std::int64_t row, std::int64_t q) const {
    for (std::int64_t k0 = 0; k0 < d; k0 += KC) {
      const int kc = int(std::min<std::int64_t>(KC, d - k0));
      std::fill_n(column_masses, 2 * P, T(0));
      for (int i = 0; i < count(row); i += R)
        for (int j = 0; j < count(q); j += JV * V)
          if (k0 + kc < d)
            weigh_tile<false>(row, q, i, j, k0, kc);
          else
            weigh_tile<true>(row, q, i, j, k0, kc);
    }
    for (int j = 0; j < 2 * P; j += V) add_wide(masses + q * 2 * P + j, load(column_masses + j));
  }

  // A register tile of logarithms of weights over kc coordinates; where these are the last, of
  // weights.
  template <bool Last>
  VIMAE_INLINE void weigh_tile(std::int64_t row, std::int64_t q, int i, int j, std::int64_t k0,
                               int kc) const {
    T* w = weight + i * P + j;
    const T *xi = x + (row * d + k0) * P + i, *xj = x + (q * d + k0) * P + j;
    Vec<T> k[R][JV];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < JV; ++v) k[r][v] = splat(k0 ? T(0) : half[row * P + i + r]);
    for (int c = 0; c < kc; ++c) {
      Vec<T> y[JV];
#pragma GCC unroll 4
      for (int v = 0; v < JV; ++v) y[v] = load(xj + c * P + v * V);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < JV; ++v) k[r][v] += splat(xi[c * P + r]) * y[v];
    }
    // Partial sums per KC coordinates: rounding does not grow with d.
    if (k0)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < JV; ++v) k[r][v] += load(w + r * P + v * V);
    if (Last && row == q)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < JV; ++v)
          k[r][v] = lane_numbers<T>() == splat(T(i + r - j - v * V)) ? splat(T(-1e4)) : k[r][v];
    Vec<T> row_mass[R] = {}, row_spread[R], mass[JV] = {}, spread[JV] = {};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (Last) {
#pragma GCC unroll 4
        for (int v = 0; v < JV; ++v) k[r][v] += load(half + q * P + j + v * V);
        const Vec<T> log = k[r][r % JV];
        exp2_each<T, JV>(k[r]);
        row_spread[r] = k[r][r % JV] * log, spread[r % JV] += row_spread[r];
      }
#pragma GCC unroll 4
      for (int v = 0; v < JV; ++v) {
        row_mass[r] += k[r][v], mass[v] += k[r][v];
        store(w + r * P + v * V, k[r][v]);
      }
    }
    if (!Last) return;
#pragma GCC unroll 4
    for (int r = 0; row != q && r < R; ++r) {
      row_masses[2 * i + r] += row_mass[r];
      row_masses[2 * i + R + r] += row_spread[r];
    }
#pragma GCC unroll 4
    for (int v = 0; v < JV; ++v) {
      T* to = column_masses + j + v * V;
      store(to, load(to) + mass[v]);
      store(to + P, load(to + P) + spread[v]);
    }
  }

  // Calls visit(Vectors<K>, k) for K coordinates from k on, four by four and then what is left.
  template <class Visit>
  static VIMAE_INLINE void each_four(std::int64_t kc, Visit visit) {
    for (std::int64_t k = 0; k < kc; k += 4) switch (kc - k) {
        case 1:
          visit(Vectors<1>{}, k);
          break;
        case 2:
          visit(Vectors<2>{}, k);
          break;
        case 3:
          visit(Vectors<3>{}, k);
          break;
        default:
          visit(Vectors<4>{}, k);
      }
  }

  // The weights with rows and columns exchanged.
  VIMAE_INLINE void transpose() const {
    for (int i = 0; i < P; i += V)
      for (int j = i; j < P; j += V) {
        Vec<T> a[V], b[V];
#pragma GCC unroll 16
        for (int l = 0; l < V; ++l) a[l] = load(weight + (i + l) * P + j);
        transpose_lanes<T>(a);
        if (j > i) {
#pragma GCC unroll 16
          for (int l = 0; l < V; ++l) b[l] = load(weight + (j + l) * P + i);
          transpose_lanes<T>(b);
#pragma GCC unroll 16
          for (int l = 0; l < V; ++l) store(weight + (i + l) * P + j, b[l]);
        }
#pragma GCC unroll 16
        for (int l = 0; l < V; ++l) store(weight + (j + l) * P + i, a[l]);
      }
  }

  // What the columns, panel q, sum up over the rows, panel `row`.
  VIMAE_INLINE void sum_columns(std::int64_t row, std::int64_t q) const {
    const T* w = weight;
    for (std::int64_t k0 = 0; k0 < d; k0 += KP)
      each_four(std::min(KP, d - k0), [&](auto some, std::int64_t k) VIMAE_LAMBDA {
        constexpr int K = some.n;
        const T* y = p + (row * d + k0 + k) * P;
        double* to = sums + (q * d + k0 + k) * P;
        for (int j = 0; j < count(q); j += JV * V) {
          Vec<T> sum[K][JV] = {};
          for (int i = 0; i < count(row); ++i) {
            Vec<T> wi[JV];
#pragma GCC unroll 4
            for (int v = 0; v < JV; ++v) wi[v] = load(w + i * P + j + v * V);
#pragma GCC unroll 4
            for (int c = 0; c < K; ++c)
#pragma GCC unroll 4
              for (int v = 0; v < JV; ++v) sum[c][v] += wi[v] * splat(y[c * P + i]);
          }
#pragma GCC unroll 4
          for (int c = 0; c < K; ++c)
#pragma GCC unroll 4
            for (int v = 0; v < JV; ++v) add_wide(to + c * P + j + v * V, sum[c][v]);
        }
      });
  }
};

// What a pair adds: a drift where there are scores, otherwise a force (k - 2 k') e and the mass k.
template <bool Score>
struct Rule {
  static constexpr bool kScore = Score, kDots = false, kNorms = false, kValue = false,
                        kForce = !Score, kDrift = Score;
  static constexpr int kOrder = 1;
  template <class T, class V>
  static VIMAE_INLINE void weigh(V, V, V, const V* k, T, V&, V& force) {
    force = k[0] - T(2) * k[1];
  }
};

template <class T, bool Score>
struct Problem {
  const Stein<T>& a;
  Symmetric<T, Rule<Score>> pairs;
  Products<T> products;
  double *most, *bad;  // the team's, [team]

  Problem(const Stein<T>& a, int team, Arena& shared, Arena& own)
      : Problem(a, team, shared, own, shared, own) {}

  void solve(std::int64_t b, Team team) {
    const std::int64_t first = b * a.n * a.d;
    const T *z = a.x + first, *score = Score ? a.score + first : nullptr;
    T* phi = a.phi + first;
    const bool one_rbf = a.family == Family::rbf && a.n_scales == 1 && a.scales[0] < kWidest;
    if (!one_rbf || !by_products(z, score, phi, team)) by_pairs(z, score, phi, team);
    team.wait();
  }

 private:
  // One of the two is at work at a time: they share their memory.
  Problem(const Stein<T>& a, int team, Arena& shared, Arena& own, Arena same_shared, Arena same_own)
      : a(a),
        pairs(a.n, a.d, a.family, a.scales, a.n_scales, team, shared, own),
        products(a.n, a.d, Score, same_shared, same_own) {
    shared.used = std::max(shared.used, same_shared.used);
    own.used = std::max(own.used, same_own.used);
    most = shared.take<double>(team), bad = shared.take<double>(team);
  }

  // Whether the points lie as they must; phi is written only then.
  bool by_products(const T* z, const T* score, T* phi, Team team) {
    most[team.rank] = products.take(z, score, a.scales[0], team);
    team.wait();
    double reach = 0;
    for (int t = 0; t < team.size; ++t) {
      if (!(most[t] <= kReach * kLog2E)) return false;
      reach = std::max(reach, most[t]);
    }
    products.meet(team);
    bad[team.rank] = products.good(reach, team) ? 0 : 1;
    team.wait();
    for (int t = 0; t < team.size; ++t)
      if (bad[t]) return false;
    products.finish(z, score, a.scales[0], phi, team);
    return true;
  }

  void by_pairs(const T* z, const T* score, T* phi, Team team) {
    const double nan = pairs.meet(z, score, team).finite, own = a.n_scales;
    const double share = 1 / double(a.n);
    // The pair of a point with itself, which was not met, has k = n_scales and e = 0.
    pairs.each_coordinate(team, [&](std::int64_t i, std::int64_t k, std::int64_t at) {
      const std::int64_t c = i * a.d + k;
      const double total = Score ? pairs.drift[at] + own * double(score[c])
                                 : pairs.force[at] - (pairs.mass[i] + own) * double(z[c]);
      phi[c] = T(total * share + nan);
    });
  }
};

template <class T>
void run(const Stein<T>& a) {
  if (a.y) throw std::invalid_argument("stein_cpu has no code for two sets of points");
  const double n = double(a.n), work = 0.5 * double(a.batch) * n * n * double(a.d + 8 * a.n_scales);
  if (a.score)
    solve_batch<Problem<T, true>>(a, work);
  else
    solve_batch<Problem<T, false>>(a, work);
}

}  // namespace

void stein_cpu(const Stein<float>& a) { run(a); }
void stein_cpu(const Stein<double>& a) { run(a); }

}  // namespace vimae::VIMAE_SIMD
