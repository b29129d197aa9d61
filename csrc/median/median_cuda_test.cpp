// median_cuda, run on the host by testing/cuda_shim.h, against sorting all distances.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "median/median.h"
#include "testing/cuda_shim.h"

using namespace vimae;

namespace {

int failures = 0;
bool stop_at_first = false;

template <class T>
void check(std::int64_t batch, std::int64_t N, std::int64_t d, double scale, bool with_nan,
           bool ties = false) {
  std::mt19937_64 random(N + d);
  std::normal_distribution<double> normal;
  std::vector<T> x(batch * N * d), median(batch, std::numeric_limits<T>::quiet_NaN());
  for (T& e : x) e = T(ties ? scale * double(normal(random) > 1) : scale * normal(random));
  if (with_nan) x.back() = std::numeric_limits<T>::quiet_NaN(), median.back() = 0;
  Median<T> a{x.data(), batch, N, d, median.data()};
  std::vector<char> workspace(median_cuda_workspace(a), char(0xff));
  a.workspace = workspace.data();
  median_cuda(a);
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
      std::printf("FAILED (%d, %d, %d): %.17g for %.17g\n", int(batch), int(N), int(d),
                  double(median[b]), want);
      ++failures;
      if (stop_at_first) std::exit(1);
    }
  }
}

template <class T>
void check_all() {
  check<T>(1, 2, 1, 1, false);
  check<T>(1, 3, 5, 1e-12, false);
  check<T>(1, 65, 8, 1, false);
  check<T>(3, 50, 17, 1e9, false);
  check<T>(2, 40, 2, 1, true);
  check<T>(2, 70, 3, 3, false, true);
  check<T>(1, 20, 2, 0, false, true);
}

}  // namespace

int main(int argc, char** argv) {
  stop_at_first = cuda_shim::set_fault(argc, argv);
  using cuda_shim::Order;
  try {
    for (Order order : {Order::forward, Order::reverse, Order::shuffled}) {
      cuda_shim::set_order(order, 1);
      check_all<float>();
      check_all<double>();
    }
    cuda_shim::set_order(Order::forward);
    check<float>(1, 301, 3, 1, false);
  } catch (const cuda_shim::Error& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
