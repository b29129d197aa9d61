// permutation_cpu and draw_cpu at every SIMD level this machine runs, against double loops straight
// from the definition.
#include "permutation/permutation.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <set>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

using Real = long double;

bool label(const std::vector<std::uint32_t>& labels, std::int64_t columns, std::int64_t first,
           std::int64_t i, std::int64_t c) {
  return labels[first + i / 32 * columns + c] >> (i % 32) & 1;
}

std::vector<std::uint32_t> draw(std::int64_t batch, std::int64_t permutations, std::int64_t N,
                                std::int64_t n, std::int64_t columns, int threads) {
  std::mt19937_64 random(N + n);
  std::vector<std::int64_t> seeds(batch * permutations);
  for (std::int64_t& seed : seeds) seed = std::int64_t(random());
  std::vector<std::uint32_t> labels(batch * ((N + 31) / 32) * columns, ~0u);
  draw_cpu(Draw{seeds.data(), batch, permutations, N, n, columns, labels.data(), threads});
  return labels;
}

// Every column has n labels, the first the first n points, and the padding none.
void check_draw(std::int64_t permutations, std::int64_t N, std::int64_t n, int threads) {
  const std::int64_t columns = (permutations + kColumns) / kColumns * kColumns;
  const auto labels = draw(2, permutations, N, n, columns, threads);
  const std::int64_t words = (N + 31) / 32;
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t c = 0; c < columns; ++c) {
      std::int64_t count = 0;
      for (std::int64_t i = 0; i < words * 32; ++i)
        count += label(labels, columns, b * words * columns, i, c);
      bool first = true;
      for (std::int64_t i = 0; i < n; ++i)
        first &= label(labels, columns, b * words * columns, i, 0);
      if (count != (c <= permutations ? n : 0) || !first) {
        std::printf("FAILED labels of column %d: %d\n", int(c), int(count));
        ++failures;
      }
    }
  if (labels != draw(2, permutations, N, n, columns, 1)) {
    std::printf("FAILED labels depend on the number of threads\n");
    ++failures;
  }
}

// All subsets come equally often: their counts against the chi-square distribution.
void check_uniform() {
  const std::int64_t permutations = 20000, N = 6, n = 3, columns = 20032;
  const auto labels = draw(1, permutations, N, n, columns, 2);
  std::vector<int> count(64);
  for (std::int64_t c = 1; c <= permutations; ++c) ++count[labels[c]];
  double chi = 0;
  int subsets = 0;
  for (int set = 0; set < 64; ++set)
    if (count[set]) chi += std::pow(count[set] - permutations / 20.0, 2) / 1000, ++subsets;
  if (subsets != 20 || chi > 50) {  // 19 degrees of freedom: 50 is exceeded once in 7000
    std::printf("FAILED uniformity: %d subsets, chi-square %g\n", subsets, chi);
    ++failures;
  }
}

template <class T>
void check(std::int64_t batch, std::int64_t n, std::int64_t m, std::int64_t d,
           std::int64_t permutations, Family family, int n_scales, int threads, bool shared,
           double shift) {
  const std::int64_t N = n + m, columns = (permutations + kColumns) / kColumns * kColumns;
  const std::int64_t words = (N + 31) / 32;
  std::mt19937_64 random(N * 1000 + d);
  std::normal_distribution<double> normal;
  std::vector<T> x(batch * N * d);
  for (T& e : x) e = T(normal(random) + shift);
  const auto labels = draw(shared ? 1 : batch, permutations, N, n, columns, 1);
  const double scales[] = {2.0 * double(d), 0.5 * double(d), 7};
  std::vector<double> values(batch * columns, std::nan(""));
  const std::vector<T> centre(batch, T(0.5 * n_scales));
  permutation_cpu(Permutation<T>{x.data(), labels.data(), shared ? 0 : words * columns,
                                 centre.data(), batch, N, n, d, columns, 0, 1, family, scales,
                                 n_scales, values.data(), threads});
  const double eps = double(std::numeric_limits<T>::epsilon());
  std::vector<Real> k(N * N);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < N; ++i)
      for (std::int64_t j = 0; j < N; ++j) {
        Real s = 0;
        for (std::int64_t e = 0; e < d; ++e) {
          const Real diff = Real(x[(b * N + i) * d + e]) - Real(x[(b * N + j) * d + e]);
          s += diff * diff;
        }
        k[i * N + j] = 0;
        for (int l = 0; l < n_scales; ++l) {
          const Real c = Real(scales[l]);
          k[i * N + j] += family == Family::imq ? c / (c + s) : std::exp(-s / c);
        }
      }
    for (std::int64_t c = 0; c <= permutations; ++c) {
      Real zz = 0, xx = 0, zx = 0;
      for (std::int64_t i = 0; i < N; ++i)
        for (std::int64_t j = 0; j < N; ++j) {
          const std::int64_t at = shared ? 0 : b * words * columns;
          const bool first = label(labels, columns, at, i, c),
                     second = label(labels, columns, at, j, c);
          if (i != j) (first && second ? zz : first || second ? zx : xx) += k[i * N + j];
        }
      const Real want = zz / Real(n * (n - 1)) + xx / Real(m * (m - 1)) - zx / Real(n * m);
      const double error = double(std::fabs(Real(values[b * columns + c]) - want));
      // The spread of the values over the labellings is of the order of 1 / n.
      if (!(error <= 100 * eps * n_scales / double(std::min(n, m)))) {
        std::printf("FAILED (%d, %d, %d) column %d: %.17g for %.17g\n", int(n), int(m), int(d),
                    int(c), values[b * columns + c], double(want));
        ++failures;
      }
    }
  }
}

template <class T>
void check_all() {
  for (Family family : {Family::imq, Family::rbf}) {
    check<T>(1, 2, 2, 1, 1, family, 1, 1, true, 0);
    check<T>(2, 2, 3, 3, 40, family, 3, 1, true, 0);
    check<T>(3, 33, 30, 8, 31, family, 2, 2, false, 0);
    check<T>(1, 64, 64, 2, 64, family, 1, 2, true, 100);
    check<T>(1, 70, 131, 65, 33, family, 1, 3, true, 0);
    check<T>(2, 300, 100, 5, 20, family, 1, 3, false, 0);
  }
}

}  // namespace

int main() {
  for (const std::string& name : runnable_levels()) {
    set_level(name);
    check_draw(1, 4, 2, 1);
    check_draw(31, 33, 5, 2);
    check_draw(32, 64, 60, 3);
    check_draw(700, 1000, 500, 3);
    check_uniform();
    check_all<float>();
    check_all<double>();
    std::printf("%s: %d failures so far\n", name.c_str(), failures);
  }
  return failures != 0;
}
