// median_cpu at every SIMD level this machine runs, against sorting all distances that are not 0.
#include "median/median.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

template <class T>
void check(std::int64_t batch, std::int64_t N, std::int64_t d, int threads, double scale,
           bool with_nan, bool ties = false) {
  std::mt19937_64 random(N + d);
  std::normal_distribution<double> normal;
  std::vector<T> x(batch * N * d), median(batch, T(-1));
  for (T& e : x) e = T(ties ? scale * double(normal(random) > 1) : scale * normal(random));
  if (with_nan) x.back() = std::numeric_limits<T>::quiet_NaN();
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
    if (with_nan && last ? !std::isnan(median[b])
                         : !(std::fabs(double(median[b]) - want) <=
                             8 * double(std::numeric_limits<T>::epsilon()) * want)) {
      std::printf("FAILED: %.17g for %.17g\n", double(median[b]), want);
      ++failures;
    }
  }
}

template <class T>
void check_all() {
  check<T>(1, 2, 1, 1, 1, false);
  check<T>(1, 3, 5, 1, 1e-12, false);
  check<T>(1, 65, 8, 1, 1, false);
  check<T>(3, 130, 3, 2, 1e9, false);
  check<T>(1, 501, 130, 3, 1, false);
  check<T>(2, 70, 2, 2, 1, true);
  check<T>(2, 130, 3, 2, 3, false, true);
  check<T>(2, 130, 2, 1, 0, false, true);
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
