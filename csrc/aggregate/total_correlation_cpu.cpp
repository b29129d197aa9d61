// A thread takes a block of some strips of kRows samples through all posteriors, which lie along
// the lanes. First the joint density, coordinate after coordinate in registers: what every pair
// pulls with, of which the second cache holds a block's. Then each coordinate in two turns per
// strip: its exponentials and their sums, and with these the gradients. Gradients of the posteriors
// are summed over a block in T, and then, by every thread for itself, in float64; at last over the
// threads.
//
// No maximum is sought for a marginal density: its terms are 2^(height - highest - t^2), where the
// highest height of all posteriors is subtracted beforehand. Where a sample is so far from all of
// them that this underflows, its strip is done again with the maximum.

#include <algorithm>
#include <cmath>
#include <limits>

#include "aggregate/aggregate_simd.h"
#include "common/team.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr int kRows = 8;                    // of a strip: their sums stay in registers
constexpr int kAtOnce = 4;                  // rows whose exponentials are taken together
constexpr int kMostStrips = 8;              // of a block ...
constexpr std::int64_t kWeights = 1 << 17;  // ... and pairs, but for blocks of one strip
constexpr int kSpan = 64;                   // vectors of columns between two sums over lanes
constexpr int kCoordinates = 64;            // whose squares are summed in T
constexpr double kNothing = -1e30;

// A sum of log2 of positive numbers, a strip's at a time: that of their product, whose exponent is
// taken out before it can overflow.
struct LogSum {
  static constexpr int kMost = 8;  // factors between 2^-100 and 2^100
  double product[kRows];
  std::int64_t exponent = 0;
  int factors = 0;

  LogSum() { std::fill_n(product, kRows, 1.0); }

  void add(const double* x) {
    for (int r = 0; r < kRows; ++r) product[r] *= x[r];
    if (++factors < kMost) return;
    factors = 0;
    for (int r = 0; r < kRows; ++r) {
      std::int64_t bits;
      std::memcpy(&bits, product + r, sizeof bits);
      const std::int64_t biased = bits >> 52;
      if (biased < 1 || biased > 2046) continue;  // 0, infinity and NaN stay what they are
      exponent += biased - 1023;
      bits -= (biased - 1023) * (std::int64_t(1) << 52);
      std::memcpy(product + r, &bits, sizeof bits);
    }
  }

  double sum() const {
    double log = double(exponent);
    for (double p : product) log += std::log2(p);
    return log;
  }
};

// exp(x), 0 and infinity included.
VIMAE_INLINE Vec<double> exp_of(Vec<double> x) {
  const Vec<double> infinite = splat(std::numeric_limits<double>::infinity());
  return x > splat(709.0) ? infinite : exp_nonpositive<double>(x);
}

// With Deep, squares are summed over more coordinates than T has digits for.
template <class T, bool Deep>
struct Total {
  static constexpr int V = kLanes<T>, Tile = kRows * V;
  using Sum = std::conditional_t<Deep, double, T>;
  const TotalCorrelation<T>& a;
  const Weights weights;
  const std::int64_t vectors;  // of posteriors
  const std::int64_t stride;   // from one coordinate to the next
  const std::int64_t strips;
  int block;  // strips of one
  const double upstream;
  // The team's:
  T *mean, *scale, *height;  // [d][stride]: t = (z - mean) scale, l = highest + height - t^2
  double* highest;           // [d]
  double* tallest;           // [vectors][V], sums of l + t^2 over all coordinates
  double* values;            // [team]
  double *all_dmean, *all_dlog_var;  // [team][d][stride]
  // The thread's:
  T* z;        // [strips of a block][d][kRows]
  T* weight;   // [strips of a block][vectors][kRows][V], of pairs through the joint density
  Sum* joint;  // [vectors][kRows][V], of one strip
  T* term;     // [vectors][kRows][V], of one strip and coordinate
  T *mass, *pulled, *squared;  // [vectors][V], of one coordinate
  T* ratio;                    // [kRows][V]

  Total(const TotalCorrelation<T>& a, int team, Arena& shared, Arena& own)
      : a(a),
        weights(a),
        vectors((a.B + V - 1) / V),
        // An odd number of cache lines: the same posterior's coordinates are spread over the cache.
        stride((vectors * V * std::int64_t(sizeof(T)) / 64 | 1) * 64 / std::int64_t(sizeof(T)) +
               128 / std::int64_t(sizeof(T))),
        strips((a.n + kRows - 1) / kRows),
        block(int(std::clamp<std::int64_t>(kWeights / (vectors * Tile), 1, kMostStrips))),
        upstream(1 / double(a.n)) {
    mean = shared.take<T>(a.d * stride);
    scale = shared.take<T>(a.d * stride);
    height = shared.take<T>(a.d * stride);
    highest = shared.take<double>(a.d);
    tallest = shared.take<double>(vectors * V);
    values = shared.take<double>(team);
    if (a.dz) {
      all_dmean = shared.take<double>(team * a.d * stride);
      all_dlog_var = shared.take<double>(team * a.d * stride);
    }
    z = own.take<T>(block * a.d * kRows);
    weight = own.take<T>(block * vectors * Tile);
    term = own.take<T>(vectors * Tile);
    joint = Deep ? own.take<Sum>(vectors * Tile) : nullptr;
    mass = own.take<T>(vectors * V);
    pulled = own.take<T>(vectors * V);
    squared = own.take<T>(vectors * V);
    ratio = own.take<T>(Tile);
  }

  void solve(std::int64_t b, Team team) {
    const FlushSubnormals flush;
    pack(b, team);
    team.wait();
    double tall = -std::numeric_limits<double>::infinity();
    for (std::int64_t j = 0; j < a.B; ++j) tall = std::max(tall, tallest[j]);
    double *dmean = nullptr, *dlog_var = nullptr;
    if (a.dz) {
      dmean = all_dmean + team.rank * a.d * stride;
      dlog_var = all_dlog_var + team.rank * a.d * stride;
      std::fill_n(dmean, a.d * stride, 0.0);
      std::fill_n(dlog_var, a.d * stride, 0.0);
    }
    const std::int64_t end = strips * (team.rank + 1) / team.size;
    double value = 0;
    for (std::int64_t s = strips * team.rank / team.size; s < end; s += block)
      value += rows(b, s, int(std::min<std::int64_t>(block, end - s)), tall, dmean, dlog_var, team);
    values[team.rank] = value;
    team.wait();
    if (team.rank == 0) {
      double bits = 0, high = tall;
      for (int t = 0; t < team.size; ++t) bits += values[t];
      for (std::int64_t k = 0; k < a.d; ++k) high -= highest[k];
      a.value[b] = T(kLn2 * (high + bits * upstream) + double(1 - a.d) * std::log(weights.common));
    }
    if (a.dz) unpack(b, team);
    team.wait();
  }

  void pack(std::int64_t b, Team team) const {
    const T* means = a.mean + b * a.mean_batch_stride;
    const T* log_vars = a.log_var + b * a.log_var_batch_stride;
    double part[V];
    for (std::int64_t k = team.rank; k < a.d && !team.stopped(double(8 * a.B)); k += team.size) {
      T *m = mean + k * stride, *s = scale + k * stride, *h = height + k * stride;
      T lowest = std::numeric_limits<T>::infinity();
      for (std::int64_t j = 0; j < a.B; ++j) {
        const T log_var = defined(log_vars[j * a.d + k]);
        m[j] = defined(means[j * a.d + k]);
        h[j] = log_var;
        lowest = log_var < lowest ? log_var : lowest;
      }
      for (std::int64_t j = a.B; j < vectors * V; ++j) m[j] = h[j] = 0;
      highest[k] = -0.5 * (kLog2TwoPi + kLog2E * double(lowest));
      for (std::int64_t j = 0; j < vectors * V; j += kLanes<double>) {
        for (int e = 0; e < kLanes<double>; ++e) part[e] = double(h[j + e]);
        const Vec<double> log_var = load(part);
        store(part, std::sqrt(0.5 * kLog2E) * exp_of(log_var * -0.5));
        for (int e = 0; e < kLanes<double>; ++e) s[j + e] = T(part[e]);
        store(part, (log_var - double(lowest)) * (-0.5 * kLog2E));
        for (int e = 0; e < kLanes<double>; ++e) h[j + e] = T(part[e]);
      }
      for (std::int64_t j = a.B; j < vectors * V; ++j) s[j] = 0, h[j] = T(kNothing);
    }
    const std::int64_t last = a.B * (team.rank + 1) / team.size;
    for (std::int64_t j = a.B * team.rank / team.size; j < last && !team.stopped(double(a.d));
         ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < a.d; ++k) sum += double(log_vars[j * a.d + k]);
      tallest[j] = defined(-0.5 * (double(a.d) * kLog2TwoPi + kLog2E * sum));
    }
    if (team.rank == 0) std::fill(tallest + a.B, tallest + vectors * V, kNothing);
  }

  void unpack(std::int64_t b, Team team) const {
    const std::int64_t begin = a.B * team.rank / team.size, end = a.B * (team.rank + 1) / team.size;
    for (std::int64_t k = 0; k < a.d && !team.stopped(double(8 * a.B)); ++k)
      for (std::int64_t j = begin; j < end; ++j) {
        const std::int64_t at = k * stride + j, to = (b * a.B + j) * a.d + k;
        double m = 0, v = 0;
        for (int t = 0; t < team.size; ++t) {
          m += all_dmean[t * a.d * stride + at];
          v += all_dlog_var[t * a.d * stride + at];
        }
        a.dmean[to] = T(2 * kLn2 * double(scale[at]) * m);
        a.dlog_var[to] = T(v);
      }
  }

  // Strips first, ..., first + count - 1; returns their part of the value, in bits times n.
  double rows(std::int64_t b, std::int64_t first, int count, double tall, double* dmean,
              double* dlog_var, Team team) const {
    LogSum up, down;
    double bits = 0;
    for (int s = 0; s < count; ++s) {
      const std::int64_t row = (first + s) * kRows;
      for (int r = 0; r < kRows; ++r) {
        // What is beyond the last sample repeats it.
        const T* from = a.z + b * a.z_batch_stride + std::min(row + r, a.n - 1) * a.d;
        for (std::int64_t k = 0; k < a.d; ++k) z[(s * a.d + k) * kRows + r] = defined(from[k]);
      }
      if (team.stopped(double(kRows * a.B * a.d))) return 0;
      together(s, row, tall, up, bits);
    }
    for (std::int64_t k = 0; k < a.d; ++k) {
      if (team.stopped(double(2 * kRows * a.B * count))) return 0;
      std::fill_n(mass, vectors * V, T(0));
      std::fill_n(pulled, vectors * V, T(0));
      std::fill_n(squared, vectors * V, T(0));
      for (int s = 0; s < count; ++s) {
        const std::int64_t row = (first + s) * kRows;
        const int own = int(std::min<std::int64_t>(kRows, a.n - row));
        double total[kRows];
        T inverse[kRows];
        marginal(s, k, row, total, bits, own);
        for (int r = 0; r < kRows; ++r) inverse[r] = r < own ? T(upstream / total[r]) : T(0);
        std::fill(total + own, total + kRows, 1.0);
        down.add(total);
        if (!a.dz) continue;
        double g[kRows];
        pull(s, k, inverse, g);
        for (int r = 0; r < own; ++r) a.dz[(b * a.n + row + r) * a.d + k] = T(-2 * kLn2 * g[r]);
      }
      if (a.dz) leave_block(dmean + k * stride, dlog_var + k * stride);
    }
    return bits + up.sum() - down.sum();
  }

  bool exceptional(std::int64_t row, std::int64_t column) const {
    return weights.stratified && ((column <= row + kRows && row < column + V) || column == 0) &&
           weights.tile(row, kRows, column, V, V, 1, Tile, ratio);
  }

  // The joint density at a strip's samples.
  void together(int s, std::int64_t row, double tall, LogSum& up, double& bits) const {
    T* to = weight + s * vectors * Tile;
    Sum* l;
    if constexpr (Deep)
      l = joint;
    else
      l = to;
    Sum top[kRows];
    distances(z + s * a.d * kRows, tall, l, top);
    double total[kRows] = {};
    for (std::int64_t v0 = 0; v0 < vectors; v0 += kSpan) {
      Vec<T> sum[kRows] = {};
      for (std::int64_t v = v0; v < std::min(v0 + kSpan, vectors); ++v) {
        const bool odd = exceptional(row, v * V);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const std::int64_t e = v * Tile + r * V;
          Vec<T> x = {};
          if constexpr (Deep)
            for (int i = 0; i < V; ++i) x[i] = T(l[e + i] - top[r]);
          else
            x = load(l + e) - top[r];
          x = exp2_of<T>(x);
          if (odd) x *= load(ratio + r * V);
          store(to + e, x);
          sum[r] += x;
        }
      }
      add_sums(sum, total);
    }
    T gain[kRows];
    for (int r = 0; r < kRows; ++r) {
      const bool own = row + r < a.n;
      gain[r] = own ? T(upstream / total[r]) : T(0);
      if (own)
        bits += double(top[r]);
      else
        total[r] = 1;
    }
    up.add(total);
    if (a.dz)
      for (std::int64_t v = 0; v < vectors; ++v)
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          T* w = to + v * Tile + r * V;
          store(w, load(w) * gain[r]);
        }
  }

  // Of each row over the lanes, in float64.
  static VIMAE_INLINE void add_sums(const Vec<T>* of, double* to) {
    constexpr int W = kLanes<double>;
    for (int r0 = 0; r0 < kRows; r0 += W) {
      Vec<double> wide[W];
      for (int r = 0; r < W; ++r) wide[r] = widen(of[r0 + r]);
      const auto add = [](auto p, auto q) VIMAE_LAMBDA { return p + q; };
      store(to + r0, load(to + r0) + transposed_reduce<double>(wide, add));
    }
  }

  // l of all coordinates, less `tall`, and its maximum over the posteriors.
  void distances(const T* zs, double tall, Sum* l, Sum* top) const {
    Vec<Sum> most[kRows];
    std::fill_n(most, kRows, splat(-std::numeric_limits<Sum>::infinity()));
    for (std::int64_t v = 0; v < vectors; ++v) {
      Sum rest[Tile] = {};  // with Deep
      for (std::int64_t k0 = 0; k0 < a.d; k0 += kCoordinates) {
        Vec<T> squares[kRows] = {};
        for (std::int64_t k = k0; k < std::min(a.d, k0 + kCoordinates); ++k) {
          const T* at = mean + k * stride + v * V;
          const Vec<T> m = load(at), s = load(scale + k * stride + v * V);
          __builtin_prefetch(at + V), __builtin_prefetch(scale + k * stride + (v + 1) * V);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const Vec<T> t = (splat(zs[k * kRows + r]) - m) * s;
            squares[r] += t * t;
          }
        }
        if constexpr (Deep) {
          T part[Tile];
          for (int r = 0; r < kRows; ++r) store(part + r * V, squares[r]);
          for (int e = 0; e < Tile; ++e) rest[e] += double(part[e]);
        } else {
          T high[V];
          for (int e = 0; e < V; ++e) high[e] = T(tallest[v * V + e] - tall);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const Vec<T> lr = load(high) - squares[r];
            store(l + v * Tile + r * V, lr);
            most[r] = larger<T>(most[r], lr);
          }
        }
      }
      if constexpr (Deep)
        for (int r = 0; r < kRows; ++r)
          for (int e = 0; e < V; e += kLanes<double>) {
            const Vec<double> lr = load(tallest + v * V + e) - tall - load(rest + r * V + e);
            store(l + v * Tile + r * V + e, lr);
            most[r] = larger<double>(most[r], lr);
          }
    }
    for (int r = 0; r < kRows; ++r)
      top[r] = reduce<Sum>(most[r], [](auto p, auto q) VIMAE_LAMBDA { return q > p ? q : p; });
  }

  // The terms of coordinate k's density at a strip's samples, and their sums.
  void marginal(int s, std::int64_t k, std::int64_t row, double* total, double& bits,
                int own) const {
    const T* zs = z + (s * a.d + k) * kRows;
    terms<false>(zs, k, row, total, nullptr);
    bool far = false;
    for (int r = 0; r < kRows; ++r) far |= total[r] < 0x1p-60;
    if (!far) return;
    T top[kRows];
    peaks(zs, k, top);
    terms<true>(zs, k, row, total, top);
    for (int r = 0; r < own; ++r) bits -= double(top[r]);
  }

  template <bool Far>
  void terms(const T* zs, std::int64_t k, std::int64_t row, double* total, const T* top) const {
    std::fill_n(total, kRows, 0.0);
    const T *mk = mean + k * stride, *sk = scale + k * stride, *hk = height + k * stride;
    for (std::int64_t v0 = 0; v0 < vectors; v0 += kSpan) {
      Vec<T> sum[kRows] = {};
      for (std::int64_t v = v0; v < std::min(v0 + kSpan, vectors); ++v) {
        const Vec<T> m = load(mk + v * V), s = load(sk + v * V), h = load(hk + v * V);
        T* to = term + v * Tile;
        if (exceptional(row, v * V)) {
          // Unrolled as the other is, for the sums to stay in registers.
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const Vec<T> t = (splat(zs[r]) - m) * s, l = h - t * t;
            const Vec<T> x = exp2_of<T>(Far ? l - top[r] : l) * load(ratio + r * V);
            store(to + r * V, x);
            sum[r] += x;
          }
          continue;
        }
#pragma GCC unroll 8
        for (int r0 = 0; r0 < kRows; r0 += kAtOnce) {
          Vec<T> x[kAtOnce];
#pragma GCC unroll 8
          for (int r = 0; r < kAtOnce; ++r) {
            const Vec<T> t = (splat(zs[r0 + r]) - m) * s, l = h - t * t;
            x[r] = Far ? l - top[r0 + r] : l;
          }
          exp2_each<T, kAtOnce>(x);
#pragma GCC unroll 8
          for (int r = 0; r < kAtOnce; ++r) {
            store(to + (r0 + r) * V, x[r]);
            sum[r0 + r] += x[r];
          }
        }
      }
      add_sums(sum, total);
    }
  }

  void peaks(const T* zs, std::int64_t k, T* top) const {
    for (int r = 0; r < kRows; ++r) {
      Vec<T> most = splat(-std::numeric_limits<T>::infinity());
      for (std::int64_t j = k * stride; j < k * stride + vectors * V; j += V) {
        const Vec<T> t = (splat(zs[r]) - load(mean + j)) * load(scale + j);
        most = larger<T>(most, load(height + j) - t * t);
      }
      top[r] = reduce<T>(most, [](auto p, auto q) VIMAE_LAMBDA { return q > p ? q : p; });
    }
  }

  // What the pairs of a strip pull with in coordinate k: on its samples, g; on the posteriors.
  void pull(int strip, std::int64_t k, const T* inverse, double* g) const {
    const T* zs = z + (strip * a.d + k) * kRows;
    const T *mk = mean + k * stride, *sk = scale + k * stride;
    std::fill_n(g, kRows, 0.0);
    for (std::int64_t v0 = 0; v0 < vectors; v0 += kSpan) {
      Vec<T> force_on[kRows] = {};
      for (std::int64_t v = v0; v < std::min(v0 + kSpan, vectors); ++v) {
        const Vec<T> m = load(mk + v * V), s = load(sk + v * V);
        Vec<T> w0 = load(mass + v * V), w1 = load(pulled + v * V), w2 = load(squared + v * V);
        const T *p = weight + (strip * vectors + v) * Tile, *q = term + v * Tile;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const Vec<T> t = (splat(zs[r]) - m) * s;
          const Vec<T> w = load(p + r * V) - load(q + r * V) * inverse[r], force = w * t;
          w0 += w;
          w1 += force;
          w2 += force * t;
          force_on[r] += force * s;
        }
        store(mass + v * V, w0), store(pulled + v * V, w1), store(squared + v * V, w2);
      }
      add_sums(force_on, g);
    }
  }

  // A block's sums over its samples leave it in float64.
  void leave_block(double* dmean, double* dlog_var) const {
    for (std::int64_t j = 0; j < vectors * V; j += V) {
      add_wide(dmean + j, load(pulled + j));
      add_wide(dlog_var + j, T(kLn2) * load(squared + j) - T(0.5) * load(mass + j));
    }
  }
};

template <class T>
void run(const TotalCorrelation<T>& a) {
  // An exponential costs what three coordinates of a pair cost elsewhere.
  const double work = 3.0 * double(a.batch) * double(a.n) * double(a.B) * double(a.d + 2);
  a.d > kCoordinates ? solve_batch<Total<T, true>>(a, work) : solve_batch<Total<T, false>>(a, work);
}

}  // namespace

void total_correlation_cpu(const TotalCorrelation<float>& a) { run(a); }
void total_correlation_cpu(const TotalCorrelation<double>& a) { run(a); }

}  // namespace vimae::VIMAE_SIMD
