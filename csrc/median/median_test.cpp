// median_cpu at every SIMD level this machine runs, against sorting all distances that are not 0.
#include "median/median.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

template <class T>
void check(std::int64_t batch, std::int64_t N, std::int64_t d, int threads, double scale, T bad = 0,
           bool ties = false) {
  std::mt19937_64 random(N + d);
  std::normal_distribution<double> normal;
  std::vector<T> x(batch * N * d), median(batch, T(-1));
  for (T& e : x) e = T(ties ? scale * double(normal(random) > 1) : scale * normal(random));
  // Two of them: the difference of two infinities is NaN, with its sign bit set.
  if (bad != 0) x.back() = x[x.size() - d] = x[x.size() - 2 * d] = bad;
  median_cpu(Median<T>{x.data(), batch, N, d, median.data(), threads});
  for (std::int64_t b = 0; b < batch; ++b) {
    std::vector<double> distance;
    for (std::int64_t i = 0; i < N; ++i)
      for (std::int64_t j = i + 1; j < N; ++j) {
        double s = 0;
        for (std::int64_t k = 0; k < d; ++k) {
          const double diff = double(x[(b * N + i) * d + k]) - double(x[(b * N + j) * d + k]);
          s += diff * diff;
        }
        if (s != 0) distance.push_back(std::sqrt(s));
      }
    std::sort(distance.begin(), distance.end());
    const double want = distance.empty() ? 0 : distance[(distance.size() - 1) / 2];
    const bool last = b == batch - 1;
    if (bad != 0 && last ? !std::isnan(median[b])
                         : !(std::fabs(double(median[b]) - want) <=
                             8 * double(std::numeric_limits<T>::epsilon()) * want)) {
      std::printf("FAILED: %.17g for %.17g\n", double(median[b]), want);
      ++failures;
    }
  }
}

// Of parts: together the counts of all pairs, by sorting their bits; no part has more than its
// tiles.
template <class T>
void check_counts(std::int64_t N, std::int64_t d, std::int64_t parts, int threads, T bad) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  std::mt19937_64 random(N + d);
  std::normal_distribution<double> normal;
  std::vector<T> x(N * d);
  for (T& e : x) e = T(std::round(2 * normal(random)));  // exact, and some coincide
  if (bad != 0) x[0] = x[d] = bad;
  const int width = 8 * int(sizeof(T)), known = 1, digit = kMedianDigit;
  std::vector<std::int64_t> want(1 << digit), got(1 << digit), one(1 << digit, -1);
  std::int64_t coincide = 0, coincided = 0;
  for (std::int64_t i = 0; i < N; ++i)
    for (std::int64_t j = i + 1; j < N; ++j) {
      T s = 0;
      for (std::int64_t k = 0; k < d; ++k)
        s += (x[i * d + k] - x[j * d + k]) * (x[i * d + k] - x[j * d + k]);
      Bits bits;
      std::memcpy(&bits, &s, sizeof bits);
      if (bits >> (width - 1) || std::isnan(s)) continue;
      coincide += s == 0;
      ++want[bits >> (width - known - digit)];
    }
  for (std::int64_t part = 0; part < parts; ++part) {
    std::int64_t prefix = 0, of_part = -1;
    median_counts_cpu(MedianCounts<T>{x.data(), &prefix, 1, N, d, part, parts, known, digit,
                                      one.data(), &of_part, threads});
    for (int i = 0; i < 1 << digit; ++i) got[i] += one[i];
    coincided += of_part;
  }
  // Where a coordinate is not finite, how NaN is counted does not matter.
  bool same = coincide == coincided;
  for (int i = 0; i < 1 << digit; ++i) same &= bad != 0 || got[i] == want[i];
  if (!same) {
    std::printf("FAILED: counts of %lld points in %lld parts\n", (long long)N, (long long)parts);
    ++failures;
  }
}

template <class T>
void check_all() {
  constexpr T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  check<T>(1, 2, 1, 1, 1);
  check<T>(1, 3, 5, 1, 1e-12);
  check<T>(1, 65, 8, 1, 1);
  check<T>(3, 130, 3, 2, 1e9);
  check<T>(1, 501, 130, 3, 1);
  for (T bad : {nan, -nan, inf, -inf}) check<T>(2, 70, 2, 2, 1, bad);
  check<T>(2, 130, 3, 2, 3, 0, true);
  check<T>(2, 130, 2, 1, 0, 0, true);
  for (T bad : {T(0), nan, -nan, inf})
    for (std::int64_t parts : {1, 2, 3, 7}) {
      check_counts<T>(130, 2, parts, 2, bad);
      check_counts<T>(65, 3, parts, 1, bad);
      check_counts<T>(501, 1, parts, 3, bad);
    }
}

}  // namespace

int main() {
  for (const std::string& name : runnable_levels()) {
    set_level(name);
    check_all<float>();
    check_all<double>();
    std::printf("%s: %d failures so far\n", name.c_str(), failures);
  }
  return failures != 0;
}
