// A thread makes the noise of some thousand elements at a time, over the ends of rows, and turns
// rows to samples while all is in its cache: short ones as many together as a vector has lanes, the
// others one by one. Memory is read once and written once.

#include "gumbel/gumbel.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "common/pages.h"
#include "common/simd.h"
#include "common/team.h"
#include "gumbel/gumbel_math.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr std::int64_t kWindow = 2048;  // elements
constexpr double kLowest = -std::numeric_limits<double>::infinity();

using Wide = Lanes<double>::Bits;
constexpr int kWide = kLanes<double>;

// Two vectors of counters: their rounds are chains of results that wait for one another, and a
// processor does not see far enough ahead to find the next ones by itself.
struct Two {
  Wide a, b;
  VIMAE_INLINE friend Two operator^(Two x, Two y) { return {x.a ^ y.a, x.b ^ y.b}; }
  VIMAE_INLINE friend Two operator^(Two x, std::uint64_t y) { return {x.a ^ y, x.b ^ y}; }
  VIMAE_INLINE friend Two operator>>(Two x, int bits) { return {x.a >> bits, x.b >> bits}; }
};

struct PhiloxOps {
  static VIMAE_INLINE Two multiply(Two x, std::uint32_t m) {
    return {multiply_low(x.a, m), multiply_low(x.b, m)};
  }
};

template <class T>
using Words __attribute__((vector_size(kLanes<T> * 4))) = std::uint32_t;

template <class T>
VIMAE_INLINE Words<T> load_words(const std::uint32_t* p) {
  Words<T> w;
  std::memcpy(&w, p, sizeof w);
  return w;
}

template <class T>
struct GumbelOps : VectorOps<T> {
  static VIMAE_INLINE Vec<T> split(Vec<T> x, Vec<T>& k) { return split_exponent<T>(x, k); }
};

// What is made of random words: nothing, exponential noise x, or standard Gumbel noise, -log x.
enum class Kind { words, exponential, gumbel };

// Noise for the elements [first, last) of a seed, made for a window of them at a time.
template <class T, Kind kind>
struct Noise {
  std::uint64_t seed = 0;
  std::int64_t first = 0, last = 0;
  std::uint32_t* words;
  T* values;

  Noise(Arena& arena)
      : words(arena.take<std::uint32_t>(kWindow + 16 * kWide)),
        values(arena.take<T>(kWindow + 16 * kWide)) {}

  // Where the noise of element e stands, and at least of the `count` from there on. If it has to be
  // made, then that of `ahead` elements is.
  auto at(std::uint64_t s, std::int64_t e, std::int64_t count, std::int64_t ahead) {
    if (s != seed || e < first || e + count > last) make(s, e, ahead);
    if constexpr (kind == Kind::words)
      return words + (e - first);
    else
      return values + (e - first);
  }

  void make(std::uint64_t s, std::int64_t e, std::int64_t count) {
    seed = s, first = e / 4 * 4, last = e + count;
    Two block{};
    for (int i = 0; i < kWide; ++i) block.a[i] = std::uint64_t(first / 4 + i);
    block.b = block.a + kWide;
    for (std::uint32_t* to = words; to < words + (last - first); to += 8 * kWide) {
      Two word[4];
      philox<PhiloxOps>(block, block >> 32, s, word);
      // Two neighbours in each lane, then all in order.
      const auto pair = [](Wide low, Wide high)
                            VIMAE_LAMBDA { return (low & 0xffffffff) | high << 32; };
      zip(to, pair(word[0].a, word[1].a), pair(word[2].a, word[3].a));
      zip(to + 4 * kWide, pair(word[0].b, word[1].b), pair(word[2].b, word[3].b));
      block.a += 2 * kWide, block.b += 2 * kWide;
    }
    if constexpr (kind != Kind::words)
      for (std::int64_t i = 0; i < last - first; i += kLanes<T>)
        store(values + i, value(load_words<T>(words + i)));
  }

  static VIMAE_INLINE Vec<T> value(Words<T> w) {
    using Ops = GumbelOps<T>;
    const Vec<T> x = exponential<Ops, T>(__builtin_convertvector(w, Vec<T>),
                                         __builtin_convertvector(inverted(w), Vec<T>));
    return kind == Kind::exponential ? x : -log_positive<Ops, T>(x);
  }
};

// f(i, n) for the vectors of n elements, all but the last full, of which `count` elements consist.
template <class T, class F>
VIMAE_INLINE void each_vector(std::int64_t count, F f) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) f(i, kLanes<T>);
  if (i < count) f(i, int(count - i));
}

// The temperature of row b.
template <class T>
VIMAE_INLINE double tau_of(const Tau<T>& tau, std::int64_t b) {
  return tau.rows ? tau.rows[b * tau.stride] : tau.same;
}

// to = sample (gradient - dot) / tau, and before that the dot, a sum of sample times gradient.
template <class T>
double dot(const T* sample, const T* gradient, std::int64_t count) {
  double total = 0;
  for (std::int64_t k = 0; k < count; k += kWindow) {
    Vec<T> part = {};
    each_vector<T>(std::min(kWindow, count - k), [&](std::int64_t i, int n) VIMAE_LAMBDA {
      part += load_first(sample + k + i, n, T(0)) * load_first(gradient + k + i, n, T(0));
    });
    total += sum(widen(part));
  }
  return total;
}

template <class T>
void pull_back(const T* sample, const T* gradient, std::int64_t count, T dot, T inverse_tau,
               T* to) {
  each_vector<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
    const Vec<T> y = load_first(sample + i, n, T(0)), g = load_first(gradient + i, n, T(0));
    store_first(to + i, y * (g - dot) * inverse_tau, n);
  });
}

// The place of the first of `count` numbers that is x, or `count`.
template <class T>
VIMAE_INLINE std::int64_t find(const T* p, std::int64_t count, T x) {
  std::int64_t i = 0;
  while (i + kLanes<T> <= count && !any(load(p + i) == splat(x))) i += kLanes<T>;
  while (i < count && p[i] != x) ++i;
  return i;
}

// The elements of a row that a thread has: all, if the row is its own.
struct Span {
  std::int64_t first, count;
  Span(std::int64_t K, Team team)
      : first(K * team.rank / team.size), count(K * (team.rank + 1) / team.size - first) {}
};

// f over what the threads of a team have, in order. `all` is memory of the team's, used once a row.
template <class E, class F>
E over_team(E mine, E* all, Team team, F f) {
  if (team.size == 1) return mine;
  all[team.rank] = mine;
  team.wait();
  mine = all[0];
  for (int t = 1; t < team.size; ++t) mine = f(mine, all[t]);
  return mine;
}

// Calls f(k, n, noise) for pieces of a thread's part of row b; some rows have their noise made
// together.
template <class T, class Noise, class F>
VIMAE_INLINE void each_piece(const Gumbel<T>& a, std::int64_t b, Span span, Team team, Noise& noise,
                             F f) {
  const std::int64_t rows = a.batch / a.seeds, s = a.seeds == 1 ? 0 : b / rows;
  const std::int64_t start = (b - s * rows) * a.K + span.first, end = rows * a.K;
  const std::int64_t whole = span.count < kWindow ? kWindow / span.count * span.count : kWindow;
  for (std::int64_t k = 0; k < span.count; k += kWindow) {
    const std::int64_t n = std::min(kWindow, span.count - k);
    if (team.stopped(12.0 * double(n))) return;
    f(k, n,
      noise.at(std::uint64_t(a.seed[s]), start + k, n,
               team.size > 1 ? n : std::min(whole, end - start - k)));
  }
}

// zeros and, where `defined`, a one at `index`, of the elements of a row that a thread has.
template <class T>
VIMAE_INLINE void write_one_hot(T* out, Span span, std::int64_t index, bool defined) {
  std::fill_n(out, span.count, defined ? T(0) : kNaN<T>);
  index -= span.first;
  if (defined && index >= 0 && index < span.count) out[index] = 1;
}

// One row of a soft sample, and of the one-hot sample if it is wanted. With `Unit`, tau is 1 and
// the soft sample alone is wanted: exp((l + g) / tau) is exp(l) divided by the exponential variable
// that g is minus the logarithm of.
template <class T, bool Unit>
struct Soft {
  static constexpr int V = kLanes<T>;
  const Gumbel<T>& a;
  T* maxima;
  double* sums;
  std::int64_t* indices;
  Noise<T, Unit ? Kind::exponential : Kind::gumbel> noise;
  T* scratch;

  Soft(const Gumbel<T>& a, int team, Arena& shared, Arena& own)
      : a(a),
        maxima(shared.take<T>(team)),
        sums(shared.take<double>(team)),
        indices(shared.take<std::int64_t>(team)),
        noise(own),
        scratch(own.take<T>(kWindow + V)) {}

  void solve(std::int64_t b, Team team) {
    const Span span(a.K, team);
    const T* logits = a.logits + b * a.K + span.first;
    T* out = a.soft + b * a.K + span.first;
    const auto pieces = [&](auto f) VIMAE_LAMBDA { each_piece(a, b, span, team, noise, f); };
    // Until it is done, a row that is not long stays where full vectors can be written.
    T* row = span.count <= kWindow ? scratch : out;
    std::int64_t largest = span.count;
    const double total = weigh(logits, tau_of(a.tau, b), row, span, team, largest, pieces);
    const T scale = T(1 / total);
    each_vector<T>(span.count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      store_first(out + i, load_first(row + i, n, T(0)) * scale, n);
    });
    if (a.one_hot) {
      const auto less = [](std::int64_t p, std::int64_t q) { return p < q ? p : q; };
      const std::int64_t index =
          over_team(largest < span.count ? span.first + largest : a.K, indices, team, less);
      write_one_hot(a.one_hot + b * a.K + span.first, span, index, total == total);
    }
    team.wait();
  }

  // row = exp((logits + g - maximum) / tau) but for a common factor; returns its sum. `largest` is
  // the first of the thread's elements to have the maximum, if one does; without Unit.
  template <class Pieces>
  VIMAE_INLINE double weigh(const T* logits, double tau, T* row, Span span, Team team,
                            std::int64_t& largest, Pieces pieces) {
    const auto add = [](double p, double q) { return p + q; };
    const auto greater = [](auto p, auto q) VIMAE_LAMBDA { return p > q ? p : q; };
    const int all = row == scratch ? V : 0;
    Vec<T> highest = splat(T(kLowest));
    double total = 0;
    if constexpr (Unit) {
      each_vector<T>(span.count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
        highest = greater(load_first(logits + i, n, T(kLowest)), highest);
      });
      const T most = over_team(reduce<T>(highest, greater), maxima, team, greater);
      pieces([&](std::int64_t k, std::int64_t count, const T* e) VIMAE_LAMBDA {
        Vec<T> part = {};
        each_vector<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
          // Times 2^60, for division by e makes up to 2^33 of it: nothing is lost that would be a
          // normal number in the end.
          const Vec<T> l = load_first(logits + k + i, n, T(kLowest));
          const Vec<T> x = quotient(exp_nonpositive<T, 60>(l - most), load(e + i));
          store_first(row + k + i, x, std::max(n, all));
          part += n == V ? x : first_lanes<T>(x, n);
        });
        total += sum(widen(part));
      });
    } else {
      pieces([&](std::int64_t k, std::int64_t count, const T* g) VIMAE_LAMBDA {
        each_vector<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
          const Vec<T> z = load_first(logits + k + i, n, T(kLowest)) + load(g + i);
          highest = greater(z, highest);
          store_first(row + k + i, z, std::max(n, all));
        });
      });
      const T maximum = over_team(reduce<T>(highest, greater), maxima, team, greater);
      if (a.one_hot) largest = find(row, span.count, maximum);
      // In halves: the difference of two finite numbers may be infinite.
      const T most = maximum * T(0.5), scale = over_tau<T>(2.0, tau);
      for (std::int64_t k = 0; k < span.count; k += kWindow) {
        Vec<T> part = {};
        each_vector<T>(std::min(kWindow, span.count - k), [&](std::int64_t i, int n) VIMAE_LAMBDA {
          const Vec<T> z = load_first(row + k + i, n, T(kLowest));
          const Vec<T> x = exp_nonpositive<T>((z * T(0.5) - most) * scale);
          store_first(row + k + i, x, std::max(n, all));
          part += n == V ? x : first_lanes<T>(x, n);
        });
        total += sum(widen(part));
      }
    }
    return over_team(total, sums, team, add);
  }
};

// 127 + log2(x) or up to 0.09 less, for normal positive x: the exponent, and the mantissa as it is.
VIMAE_INLINE Vec<float> rough_log2(Vec<float> x) {
  Lanes<float>::Int bits;
  std::memcpy(&bits, &x, sizeof bits);
  return __builtin_convertvector(bits, Vec<float>) * 0x1p-23f;
}

// The same for float64, as if it had the exponents of float32.
VIMAE_INLINE Vec<double> rough_log2(Vec<double> x) {
  Lanes<double>::Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits >> 12) | 0x4330000000000000;
  std::memcpy(&x, &bits, sizeof x);
  return x * 0x1p-40 - (0x1p12 + 1023 - 127);
}

// One row of a one-hot sample alone, which no tau changes that is one. Most elements are too small
// to win for any noise g <= -log u that their random word may stand for; the logarithms are taken
// of the rest.
template <class T>
struct OneHot {
  struct Largest {
    T value;
    std::int64_t index;
    bool undefined;  // there is a NaN
  };

  static constexpr int V = kLanes<T>;
  const Gumbel<T>& a;
  Largest* largest;
  Noise<T, Kind::words> noise;

  OneHot(const Gumbel<T>& a, int team, Arena& shared, Arena& own)
      : a(a), largest(shared.take<Largest>(team)), noise(own) {}

  void solve(std::int64_t b, Team team) {
    const Span span(a.K, team);
    const T* logits = a.logits + b * a.K + span.first;
    Largest mine{T(kLowest), 0, false};
    each_piece(a, b, span, team, noise,
               [&](std::int64_t k, std::int64_t count, const std::uint32_t* words)
                   VIMAE_LAMBDA { search(logits + k, span.first + k, count, words, mine); });
    const Largest best = over_team(mine, largest, team, [](Largest p, Largest q) {
      const Largest r = q.value > p.value ? q : p;
      return Largest{r.value, r.index, p.undefined || q.undefined};
    });
    const bool defined = !best.undefined && best.value - best.value == 0 && tau_of(a.tau, b) > 0;
    write_one_hot(a.one_hot + b * a.K + span.first, span, best.index, defined);
    team.wait();
  }

  static VIMAE_INLINE void search(const T* logits, std::int64_t first, std::int64_t count,
                                  const std::uint32_t* words, Largest& mine) {
    constexpr T log2 = T(0.69314718055994531);
    // What l - log2 * rough_log2(w + 1/2) must exceed, the word w being 2^32 times the u of g. A
    // little less, for rounding.
    const auto below = [&](T most) {
      constexpr T rounding = 8 * std::numeric_limits<T>::epsilon();
      return most - (127 + 32) * log2 - rounding * ((most < 0 ? -most : most) + 200);
    };
    T least = below(mine.value);
    each_vector<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      const Words<T> w = load_words<T>(words + i);
      const Vec<T> l = load_first(logits + i, n, T(kLowest));
      const Vec<T> most = l - rough_log2(__builtin_convertvector(w, Vec<T>) + T(0.5)) * log2;
      if (all(most <= splat(least))) return;  // not if there is a NaN
      const Vec<T> z = l + Noise<T, Kind::gumbel>::value(w);
      mine.undefined |= any(z != z);
      const T highest = reduce<T>(z, [](auto p, auto q) VIMAE_LAMBDA { return p > q ? p : q; });
      if (!(highest > mine.value)) return;
      int lane = 0;
      while (z[lane] != highest) ++lane;
      mine.value = highest, mine.index = first + i + lane;
      least = below(mine.value);
    });
  }
};

template <class T>
struct SoftBackward {
  const GumbelBackward<T>& a;
  double* dots;

  SoftBackward(const GumbelBackward<T>& a, int team, Arena& shared, Arena&)
      : a(a), dots(shared.take<double>(team)) {}

  void solve(std::int64_t b, Team team) {
    const Span span(a.K, team);
    const std::int64_t at = b * a.K + span.first;
    const auto add = [](double p, double q) { return p + q; };
    const double total =
        over_team(dot(a.sample + at, a.gradient + at, span.count), dots, team, add);
    pull_back(a.sample + at, a.gradient + at, span.count, T(total),
              over_tau<T>(1.0, tau_of(a.tau, b)), a.out + at);
    team.wait();
  }
};

// The same where it matters little that n is not known: less code.
template <class T, class F>
VIMAE_INLINE void each_part(std::int64_t count, F f) {
  for (std::int64_t i = 0; i < count; i += kLanes<T>)
    f(i, int(std::min<std::int64_t>(kLanes<T>, count - i)));
}

// What rows of at most 2 V elements have in common: V of them are one problem. Their elements are
// treated in full vectors, over the ends of rows; what there is one of in a row stands in a lane.
// With `PerRow`, so does the temperature.
template <class T, bool PerRow>
struct Rows {
  static constexpr int V = kLanes<T>;
  using Int = typename Lanes<T>::Int;
  std::int64_t K;
  Int* row;  // (K): of each element in the V rows
  T* values;
  T rates[V];  // of the rows, or all the same: a number divided by the temperature

  Rows(std::int64_t K, Arena& arena)
      : K(K), row(arena.take<Int>(K)), values(arena.take<T>((K + 1) * V)) {
    if (arena.base)
      for (std::int64_t i = 0; i < K * V; ++i) row[i / V][i % V] = i / K;
  }

  // Of each row, f over its elements, which begin at p; `fill` changes nothing.
  template <class F>
  VIMAE_INLINE Vec<T> over_rows(const T* p, T fill, F f) {
    Vec<T> part[V];
    const Vec<T> end = splat(T(K)), lane = lane_numbers<T>();
    if (K <= V)
      for (int r = 0; r < V; ++r) part[r] = lane < end ? load(p + r * K) : splat(fill);
    else
      for (int r = 0; r < V; ++r) {
        const Vec<T> rest = lane + T(V) < end ? load(p + r * K + V) : splat(fill);
        part[r] = f(load(p + r * K), rest);
      }
    return transposed_reduce<T>(part, f);
  }

  // What the row of each element in vector j has in `rows`.
  VIMAE_INLINE Vec<T> spread(const T* rows, std::int64_t j) { return pick(rows, row[j]); }

  // Of `count` rows from `first` on; lanes without a row get that of the last.
  VIMAE_INLINE void set_rates(double numerator, const Tau<T>& tau, std::int64_t first,
                              std::int64_t count) {
    if (PerRow)
      for (std::int64_t r = 0; r < V; ++r)
        rates[r] = over_tau<T>(numerator, tau_of(tau, first + std::min(r, count - 1)));
    else
      store(rates, splat(over_tau<T>(numerator, tau.same)));
  }

  // The rate of each element in vector j.
  VIMAE_INLINE Vec<T> rate(std::int64_t j) { return PerRow ? spread(rates, j) : load(rates); }
};

// Short rows in groups of V, none over the end of those of a seed.
template <class T>
struct ShortCall {
  const Gumbel<T>& a;
  std::int64_t rows, groups, batch;
  int threads;
  explicit ShortCall(const Gumbel<T>& a)
      : a(a),
        rows(a.batch / a.seeds),
        groups((rows + kLanes<T> - 1) / kLanes<T>),
        batch(groups * a.seeds),
        threads(a.threads) {}
};

template <class T, bool Unit, bool PerRow>
struct ShortRows : Rows<T, PerRow> {
  using Base = Rows<T, PerRow>;
  using Base::V, Base::K, Base::values, Base::rates;
  using typename Base::Int;
  const ShortCall<T>& call;
  Noise<T, Unit ? Kind::exponential : Kind::gumbel> noise;

  ShortRows(const ShortCall<T>& call, int, Arena&, Arena& own)
      : Base(call.a.K, own), call(call), noise(own) {}

  void solve(std::int64_t group, Team) {
    const Gumbel<T>& a = call.a;
    const std::int64_t s = group / call.groups, first = (group - s * call.groups) * V;
    const std::int64_t start = first * K, left = (call.rows - first) * K;
    const std::int64_t count = std::min(V * K, left), at = s * call.rows * K + start;
    const T* e = noise.at(std::uint64_t(a.seed[s]), start, count,
                          std::min(kWindow / (V * K) * (V * K), left));
    const T* logits = a.logits + at;
    Int undefined = {};
    each_part<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      const Vec<T> l = load_first(logits + i, n, T(kLowest)), z = Unit ? l : l + load(e + i);
      undefined |= z != z;
      store(values + i, z);
    });
    const auto greater = [](auto p, auto q) VIMAE_LAMBDA { return p > q ? p : q; };
    const Vec<T> highest = this->over_rows(values, T(kLowest), greater);
    this->set_rates(2, a.tau, s * call.rows + first, count / K);
    if (!Unit && a.one_hot) one_hot(highest, any(undefined), count, a.one_hot + at);
    if (!a.soft) return;

    T most[V];
    store(most, Unit ? highest : highest * T(0.5));
    each_part<T>(count, [&](std::int64_t i, int) VIMAE_LAMBDA {
      const Vec<T> z = load(values + i), m = this->spread(most, i / V);
      // As for longer rows.
      if constexpr (Unit)
        store(values + i, quotient(exp_nonpositive<T, 60>(z - m), load(e + i)));
      else
        store(values + i, exp_nonpositive<T>((z * T(0.5) - m) * this->rate(i / V)));
    });
    T inverse[V];
    const auto add = [](auto p, auto q) VIMAE_LAMBDA { return p + q; };
    store(inverse, T(1) / this->over_rows(values, T(0), add));
    each_part<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      store_first(a.soft + at + i, load(values + i) * this->spread(inverse, i / V), n);
    });
  }

  VIMAE_INLINE void one_hot(Vec<T> highest, bool undefined, std::int64_t count, T* out) {
    T most[V];
    store(most, highest);
    Vec<T> ones = {};
    each_part<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      const Vec<T> y = load(values + i) == this->spread(most, i / V) ? splat(T(1)) : Vec<T>{};
      ones += n == V ? y : first_lanes<T>(y, n);
      store_first(out + i, y, n);
    });
    undefined |= any(highest - highest != Vec<T>{}) || any(load(rates) != load(rates));
    if (!undefined && sum(widen(ones)) == double(count / K)) return;
    // A row without a largest element, or with two.
    for (std::int64_t r = 0; r < count / K; ++r) {
      const T* z = values + r * K;
      const T* best = std::max_element(z, z + K);
      const bool defined = *best - *best == 0 && rates[r] == rates[r] &&
                           std::none_of(z, z + K, [](T x) { return x != x; });
      std::fill_n(out + r * K, K, defined ? T(0) : kNaN<T>);
      if (defined) out[r * K + (best - z)] = 1;
    }
  }
};

template <class T>
struct ShortBackwardCall {
  const GumbelBackward<T>& a;
  std::int64_t batch;
  int threads;
};

template <class T, bool PerRow>
struct ShortRowsBackward : Rows<T, PerRow> {
  using Base = Rows<T, PerRow>;
  using Base::V, Base::K, Base::values;
  const GumbelBackward<T>& a;

  ShortRowsBackward(const ShortBackwardCall<T>& call, int, Arena&, Arena& own)
      : Base(call.a.K, own), a(call.a) {}

  void solve(std::int64_t group, Team) {
    const std::int64_t at = group * V * K, count = std::min(V * K, a.batch * K - at);
    const T *sample = a.sample + at, *gradient = a.gradient + at;
    each_part<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      store(values + i, load_first(sample + i, n, T(0)) * load_first(gradient + i, n, T(0)));
    });
    T dot[V];
    store(dot, this->over_rows(values, T(0), [](auto p, auto q) VIMAE_LAMBDA { return p + q; }));
    this->set_rates(1, a.tau, group * V, count / K);
    each_part<T>(count, [&](std::int64_t i, int n) VIMAE_LAMBDA {
      const Vec<T> y = load_first(sample + i, n, T(0)), g = load_first(gradient + i, n, T(0));
      store_first(a.out + at + i, y * (g - this->spread(dot, i / V)) * this->rate(i / V), n);
    });
  }
};

// `tau` as it is, but one for all rows read already.
template <class T>
VIMAE_INLINE Tau<T> read_if_same(Tau<T> tau) {
  return tau.rows && tau.stride == 0 ? Tau<T>{double(*tau.rows), nullptr, 0} : tau;
}

// An element takes as long as some coordinates of pairs.
template <class T>
void run(Gumbel<T> a) {
  for (T* out : {a.soft, a.one_hot})
    if (out) prefer_huge_pages(out, a.batch * a.K * std::int64_t(sizeof(T)));
  a.tau = read_if_same(a.tau);
  const double work = 12.0 * double(a.batch) * double(a.K);
  // float64 does without the fast lane of tau 1, and so do one-hot samples, which need the noise.
  constexpr bool fast = sizeof(T) == 4;
  const bool unit = fast && !a.tau.rows && a.tau.same == 1 && !a.one_hot;
  if (a.K <= 2 * kLanes<T>) {
    const ShortCall<T> call(a);
    a.tau.rows ? solve_batch<ShortRows<T, false, true>>(call, work)
    : unit     ? solve_batch<ShortRows<T, fast, false>>(call, work)
               : solve_batch<ShortRows<T, false, false>>(call, work);
  } else if (!a.soft) {
    solve_batch<OneHot<T>>(a, work);
  } else {
    unit ? solve_batch<Soft<T, fast>>(a, work) : solve_batch<Soft<T, false>>(a, work);
  }
}

template <class T>
void run(GumbelBackward<T> a) {
  prefer_huge_pages(a.out, a.batch * a.K * std::int64_t(sizeof(T)));
  a.tau = read_if_same(a.tau);
  const double work = 4.0 * double(a.batch) * double(a.K);
  constexpr int V = kLanes<T>;
  if (a.K <= 2 * V) {
    const ShortBackwardCall<T> call{a, (a.batch + V - 1) / V, a.threads};
    a.tau.rows ? solve_batch<ShortRowsBackward<T, true>>(call, work)
               : solve_batch<ShortRowsBackward<T, false>>(call, work);
  } else {
    solve_batch<SoftBackward<T>>(a, work);
  }
}

}  // namespace

void gumbel_cpu(const Gumbel<float>& a) { run(a); }
void gumbel_cpu(const Gumbel<double>& a) { run(a); }
void gumbel_backward_cpu(const GumbelBackward<float>& a) { run(a); }
void gumbel_backward_cpu(const GumbelBackward<double>& a) { run(a); }

}  // namespace vimae::VIMAE_SIMD
