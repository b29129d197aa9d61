// Radix selection: the bits of a non-negative float order as the float does, so a histogram of the
// leading bits of all squared distances tells which leading bits the median has, and a few more
// passes over the pairs tell the rest. Nothing is stored per pair, and the result is one of the
// distances, not an approximation.

#include "median/median.h"

#include <algorithm>
#include <cmath>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/tiles.h"

namespace vimae::VIMAE_SIMD {
namespace {

constexpr int kDigit = 11, kBins = 1 << kDigit;
constexpr int kWays =
    4;  // neighbouring pairs count in different tables: equal digits would wait for each other

template <class T>
struct Problem {
  using Bits = std::make_unsigned_t<decltype(typename Lanes<T>::Int{}[0] + 0)>;
  const Median<T>& a;
  std::int64_t panels;
  T* panel;              // [panels][d][P]
  std::int64_t* counts;  // [team][kBins][kWays]
  double* finite;        // [team]: 0, or NaN
  T* tile;               // [team][P][P]

  Problem(const Median<T>& a, int team, Arena& arena) : a(a), panels((a.N + P - 1) / P) {
    panel = arena.take<T>(panels * a.d * P);
    counts = arena.take<std::int64_t>(std::int64_t(team) * kBins * kWays);
    finite = arena.take<double>(team);
    tile = arena.take<T>(std::int64_t(team) * P * P);
  }

  void solve(std::int64_t b, Team team) {
    const T* x = a.x + b * a.N * a.d;
    finite[team.rank] = 0;
    for (std::int64_t q = team.rank; q < panels; q += team.size)
      finite[team.rank] += pack_panel(x + q * P * a.d, std::min<std::int64_t>(P, a.N - q * P), a.d,
                                      panel + q * a.d * P);
    team.wait();

    // Every thread does the same arithmetic on the same counts, so all agree without talking.
    std::int64_t rank = (a.N * (a.N - 1) / 2 - 1) / 2;
    Bits prefix = 0;
    int known = 1;  // bits of the answer; the sign is 0
    for (const int width = 8 * int(sizeof(T)); known < width;) {
      const int digit = std::min(kDigit, width - known), shift = width - known - digit;
      count(prefix, shift, digit, known, team);
      team.wait();
      Bits bin = 0;
      for (;; ++bin) {
        std::int64_t here = 0;
        for (int i = 0; i < team.size * kWays; ++i)
          here += counts[(i / kWays * kBins + std::int64_t(bin)) * kWays + i % kWays];
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
      for (int t = 0; t < team.size; ++t) median += T(finite[t]);
      a.median[b] = median;
    }
    team.wait();
  }

  // Counts this thread's pairs whose leading `known` bits are `prefix` by their next `digit` bits.
  void count(Bits prefix, int shift, int digit, int known, Team team) {
    std::int64_t* mine = counts + std::int64_t(team.rank) * kBins * kWays;
    T* s = tile + std::int64_t(team.rank) * P * P;
    std::fill_n(mine, kBins * kWays, 0);
    for (std::int64_t p = team.rank; p < panels; p += team.size)
      for (std::int64_t q = p; q < panels; ++q) {
        const std::int64_t rows = std::min<std::int64_t>(P, a.N - p * P);
        const std::int64_t columns = std::min<std::int64_t>(P, a.N - q * P);
        for (std::int64_t k = 0; k < a.d; k += KC) {
          const T *x = panel + (p * a.d + k) * P, *y = panel + (q * a.d + k) * P;
          const int kc = int(std::min<std::int64_t>(KC, a.d - k));
          each_tile<T>(rows, columns, p == q, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
            distances<T, vectors.n, false>(x + i, y + j, x, y, kc, k == 0, s + i * P + j, nullptr);
          });
        }
        for (int i = 0; i < rows; ++i)
          for (int j = p == q ? i + 1 : 0; j < columns; ++j) {
            Bits bits;
            std::memcpy(&bits, s + i * P + j, sizeof bits);
            if (known == 1 || bits >> (shift + digit) == prefix)
              ++mine[(bits >> shift & ((Bits(1) << digit) - 1)) * kWays + j % kWays];
          }
      }
  }
};

template <class T>
void run(const Median<T>& a) {
  const double work = double(a.batch) * double(a.N) * double(a.N) * double(a.d + 16);
  const int threads = int(std::clamp(work / 5e5, 1.0, double(std::max(1, a.threads))));
  const bool by_problem = a.batch >= threads;
  const int team = by_problem ? 1 : threads, teams = by_problem ? threads : 1;
  Arena measure{nullptr};
  Problem<T>(a, team, measure);
  const Block memory(teams * measure.used);
  char* const block = memory.start;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    // OpenMP may give fewer threads than were asked for: the work is cut for those that came.
    int rank = 0, came = 1;
#ifdef _OPENMP
    rank = omp_get_thread_num(), came = omp_get_num_threads();
#endif
    Arena arena{block + (by_problem ? rank * measure.used : 0)};
    Problem<T> problem(a, by_problem ? 1 : came, arena);
    if (by_problem)
      for (std::int64_t b = a.batch * rank / came; b < a.batch * (rank + 1) / came; ++b)
        problem.solve(b, {0, 1});
    else
      for (std::int64_t b = 0; b < a.batch; ++b) problem.solve(b, {rank, came});
  }
}

}  // namespace

void median_cpu(const Median<float>& a) { run(a); }
void median_cpu(const Median<double>& a) { run(a); }

}  // namespace vimae::VIMAE_SIMD
