// stein_cpu at every SIMD level this machine runs, against long double loops straight from the
// definition.
#include "stein/stein.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

using Real = long double;

struct Definition {
  std::vector<Real> phi, size;  // the sum of the terms, and of their absolute values
};

// The mean over all j, i included, of k score_j + grad_j k.
template <class T>
Definition define(const Stein<T>& a, const T* z, const T* score) {
  std::vector<Real> phi(a.n * a.d, 0), size = phi;
  for (std::int64_t i = 0; i < a.n; ++i)
    for (std::int64_t j = 0; j < a.n; ++j) {
      Real s = 0, k = 0, slope = 0;
      for (std::int64_t c = 0; c < a.d; ++c) {
        const Real e = Real(z[i * a.d + c]) - Real(z[j * a.d + c]);
        s += e * e;
      }
      for (int l = 0; l < a.n_scales; ++l) {
        const Real c = Real(a.scales[l]),
                   f = a.family == Family::imq ? c / (c + s) : std::exp(-s / c);
        k += f, slope += a.family == Family::imq ? -f * f / c : -f / c;
      }
      for (std::int64_t c = 0; c < a.d; ++c) {
        const Real e = Real(z[i * a.d + c]) - Real(z[j * a.d + c]);
        const Real score_j = score ? Real(score[j * a.d + c]) : -Real(z[j * a.d + c]);
        phi[i * a.d + c] += (k * score_j - 2 * slope * e) / Real(a.n);
        size[i * a.d + c] += (std::fabs(k * score_j) + std::fabs(2 * slope * e)) / Real(a.n);
      }
    }
  return {phi, size};
}

template <class T>
void check(std::int64_t batch, std::int64_t n, std::int64_t d, Family family, int n_scales,
           int threads, double shift) {
  std::mt19937_64 random(n * 1000 + d);
  std::normal_distribution<double> normal;
  auto draw = [&](double at) {
    std::vector<T> v(batch * n * d);
    for (T& e : v) e = T(normal(random) + at);
    return v;
  };
  const auto z = draw(shift), score = draw(0);
  const double scales[] = {2.0 * double(d), 0.5 * double(d), 7};
  for (const T* s : {static_cast<const T*>(nullptr), score.data()}) {
    std::vector<T> phi(batch * n * d, std::numeric_limits<T>::quiet_NaN());
    stein_cpu(Stein<T>{z.data(), nullptr, s, batch, n, n, d, family, scales, n_scales, phi.data(),
                       threads});
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t at = b * n * d;
      const auto want = define(Stein<T>{nullptr, nullptr, nullptr, 1, n, n, d, family, scales,
                                        n_scales, nullptr, threads},
                               &z[at], s ? s + at : nullptr);
      double error = 0;  // in units of the terms
      for (std::int64_t c = 0; c < n * d; ++c) {
        const double e = double(std::fabs(Real(phi[at + c]) - want.phi[c]) / want.size[c]);
        error = e > error || std::isnan(e) ? e : error;
      }
      if (!(error <= 20 * double(std::numeric_limits<T>::epsilon()))) {
        std::printf("FAILED n %d, d %d, %s: error %.3g\n", int(n), int(d), s ? "score" : "normal",
                    error);
        ++failures;
      }
    }
  }
}

template <class T>
void check_all() {
  for (Family family : {Family::imq, Family::rbf}) {
    check<T>(1, 1, 3, family, 2, 1, 0);
    check<T>(1, 2, 1, family, 1, 1, 0);
    check<T>(3, 65, 3, family, 3, 2, 0);
    check<T>(1, 257, 65, family, 2, 2, 0);
    check<T>(2, 300, 17, family, 1, 3, 0);
    check<T>(1, 70, 513, family, 1, 4, 100);
  }
  check<T>(1, 2500, 1, Family::rbf, 1, 1, 0);  // rows are reduced in the middle of a sweep
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
