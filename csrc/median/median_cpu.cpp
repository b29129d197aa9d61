// Radix selection: the bits of a non-negative float order as the float does, so a histogram of the
// leading bits of all squared distances tells which leading bits the median has, and a few more
// passes over the pairs tell the rest. Nothing is stored per pair, and the result is one of the
// distances, not an approximation. Those that are 0 are counted in the first pass and left out.

#include "median/median.h"

#include <algorithm>
#include <cmath>

#include "common/team.h"
#include "common/tiles.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr int kDigit = kMedianDigit, kBins = 1 << kDigit;
constexpr int kWays =
    4;  // neighbouring pairs count in different tables: equal digits would wait for each other

// Counts the pairs of one problem; `Call` has its x, N and d.
template <class T, class Call>
struct Counter {
  using Bits = std::make_unsigned_t<decltype(typename Lanes<T>::Int{}[0] + 0)>;
  const Call& a;
  std::int64_t panels;
  T* panel;              // [panels][d][P]
  std::int64_t* counts;  // [team][kBins][kWays]
  std::int64_t* zeros;   // [team]: pairs that coincide
  double* finite;        // [team]: 0, or NaN
  T* tile;               // [P][P], the thread's own

  Counter(const Call& a, int team, Arena& shared, Arena& own) : a(a), panels((a.N + P - 1) / P) {
    panel = shared.take<T>(panels * a.d * P);
    counts = shared.take<std::int64_t>(std::int64_t(team) * kBins * kWays);
    zeros = shared.take<std::int64_t>(team);
    finite = shared.take<double>(team);
    tile = own.take<T>(P * P);
  }

  void pack(std::int64_t b, Team team) {
    const T* x = a.x + b * a.N * a.d;
    finite[team.rank] = 0;
    for (std::int64_t q = team.rank; q < panels; q += team.size)
      finite[team.rank] += pack_panel(x + q * P * a.d, std::min<std::int64_t>(P, a.N - q * P), a.d,
                                      panel + q * a.d * P);
    team.wait();
  }

  // Counts this thread's pairs whose leading `known` bits are `prefix` by their next `digit` bits;
  // of the pairs of panels, in turn, every `step`-th from `next` on.
  void count(Bits prefix, int known, int digit, std::int64_t next, std::int64_t step, Team team) {
    const int shift = 8 * int(sizeof(T)) - known - digit;
    std::int64_t* mine = counts + std::int64_t(team.rank) * kBins * kWays;
    std::fill_n(mine, kBins * kWays, 0);
    std::int64_t coincide = 0;
    for (std::int64_t p = 0, first = 0; p < panels; first += panels - p, ++p)
      for (; next < first + panels - p; next += step) {
        const std::int64_t q = p + next - first;
        if (team.stopped(double(P * P * a.d))) continue;
        const std::int64_t rows = std::min<std::int64_t>(P, a.N - p * P);
        const std::int64_t columns = std::min<std::int64_t>(P, a.N - q * P);
        for (std::int64_t k = 0; k < a.d; k += KC) {
          const T *x = panel + (p * a.d + k) * P, *y = panel + (q * a.d + k) * P;
          const int kc = int(std::min<std::int64_t>(KC, a.d - k));
          each_tile<T>(rows, columns, p == q, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
            distances<T, vectors.n, false>(x + i, y + j, x, y, kc, k == 0, tile + i * P + j,
                                           nullptr);
          });
        }
        for (int i = 0; i < rows; ++i)
          for (int j = p == q ? i + 1 : 0; j < columns; ++j) {
            Bits bits;
            std::memcpy(&bits, tile + i * P + j, sizeof bits);
            coincide += known == 1 && bits == 0;
            // Also of the first digit: what comes of infinities is NaN, with its sign bit set.
            if (bits >> (shift + digit) == prefix)
              ++mine[(bits >> shift & ((Bits(1) << digit) - 1)) * kWays + j % kWays];
          }
      }
    zeros[team.rank] = coincide;
    team.wait();
  }

  std::int64_t coinciding(Team team) const {
    std::int64_t all = 0;
    for (int t = 0; t < team.size; ++t) all += zeros[t];
    return all;
  }

  std::int64_t counted(std::int64_t bin, Team team) const {
    std::int64_t all = 0;
    for (int i = 0; i < team.size * kWays; ++i)
      all += counts[(i / kWays * kBins + bin) * kWays + i % kWays];
    return all;
  }
};

template <class T>
struct Problem : Counter<T, Median<T>> {
  using Base = Counter<T, Median<T>>;
  using Base::a, Base::Base;
  using typename Base::Bits;

  void solve(std::int64_t b, Team team) {
    this->pack(b, team);
    // Every thread does the same arithmetic on the same counts, so all agree without talking.
    std::int64_t rank = 0;
    Bits prefix = 0;
    int known = 1;  // bits of the answer; the sign is 0
    for (const int width = 8 * int(sizeof(T)); known < width;) {
      const int digit = std::min(kDigit, width - known);
      this->count(prefix, known, digit, team.rank, team.size, team);
      if (known == 1) {
        // The rank among all pairs of the median of those that do not coincide; 0 if all do.
        const std::int64_t pairs = a.N * (a.N - 1) / 2, coincide = this->coinciding(team);
        rank = coincide < pairs ? coincide + (pairs - coincide - 1) / 2 : 0;
      }
      Bits bin = 0;
      for (;; ++bin) {
        const std::int64_t here = this->counted(std::int64_t(bin), team);
        if (rank < here || bin + 1 == Bits(1) << digit) break;
        rank -= here;
      }
      prefix = prefix << digit | bin;
      known += digit;
      team.wait();
    }
    if (team.rank == 0) {
      T squared;
      std::memcpy(&squared, &prefix, sizeof squared);
      T median = std::sqrt(squared);
      for (int t = 0; t < team.size; ++t) median += T(this->finite[t]);
      a.median[b] = median;
    }
    team.wait();
  }
};

template <class T>
struct CountsProblem : Counter<T, MedianCounts<T>> {
  using Base = Counter<T, MedianCounts<T>>;
  using Base::a, Base::Base;

  void solve(std::int64_t b, Team team) {
    this->pack(b, team);
    this->count(typename Base::Bits(a.prefix[b]), a.known, a.digit, a.part + a.parts * team.rank,
                a.parts * team.size, team);
    const std::int64_t bins = std::int64_t(1) << a.digit;
    for (std::int64_t bin = team.rank; bin < bins; bin += team.size)
      a.counts[b * bins + bin] = this->counted(bin, team);
    if (team.rank == 0) a.coincide[b] = this->coinciding(team);
    team.wait();
  }
};

template <class T>
void run(const Median<T>& a) {
  solve_batch<Problem<T>>(a, double(a.batch) * double(a.N) * double(a.N) * double(a.d + 16));
}

template <class T>
void run(const MedianCounts<T>& a) {
  const double pairs = double(a.batch) * double(a.N) * double(a.N) / double(a.parts);
  solve_batch<CountsProblem<T>>(a, pairs * double(a.d + 16) / 4);
}

}  // namespace

void median_cpu(const Median<float>& a) { run(a); }
void median_cpu(const Median<double>& a) { run(a); }
void median_counts_cpu(const MedianCounts<float>& a) { run(a); }
void median_counts_cpu(const MedianCounts<double>& a) { run(a); }

}  // namespace vimae::VIMAE_SIMD
