// ksd_cpu at every SIMD level this machine runs, against long double loops straight from the
// definition.
#include "ksd/ksd.h"

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
  Real value = 0, size = 0;      // size: the mean of |u|
  std::vector<Real> dz, dscore;  // at a fixed score; by the score
};

template <class T>
Definition define(const KSD<T>& a, const T* z, const std::vector<Real>& score) {
  Definition out;
  out.dz.assign(a.n * a.d, 0), out.dscore = out.dz;
  const Real n = Real(a.n), d = Real(a.d), weight = 1 / (n * (n - (a.unbiased ? 1 : 0)));
  for (std::int64_t i = 0; i < a.n; ++i)
    for (std::int64_t j = 0; j < a.n; ++j) {
      if (a.unbiased && i == j) continue;
      Real s = 0, p = 0, q = 0, f = 0, f1 = 0, f2 = 0, f3 = 0;
      for (std::int64_t c = 0; c < a.d; ++c) {
        const Real e = Real(z[i * a.d + c]) - Real(z[j * a.d + c]);
        const Real si = score[i * a.d + c], sj = score[j * a.d + c];
        s += e * e, p += si * sj, q += (sj - si) * e;
      }
      for (int l = 0; l < a.n_scales; ++l) {
        const Real c = Real(a.scales[l]);
        const bool imq = a.family == Family::imq;
        const Real k = imq ? c / (c + s) : std::exp(-s / c);
        f += k, f1 += imq ? -k * k / c : -k / c;
        f2 += imq ? 2 * k * k * k / (c * c) : k / (c * c);
        f3 += imq ? -6 * k * k * k * k / (c * c * c) : -k / (c * c * c);
      }
      const Real u = p * f + 2 * f1 * q - 4 * f2 * s - 2 * d * f1;
      out.value += weight * u, out.size += weight * std::fabs(u);
      // Derivatives by s, p and q, and of those by the points.
      const Real us = p * f1 + 2 * f2 * q - 4 * f3 * s - 4 * f2 - 2 * d * f2;
      for (std::int64_t c = 0; c < a.d; ++c) {
        const Real e = Real(z[i * a.d + c]) - Real(z[j * a.d + c]);
        const Real si = score[i * a.d + c], sj = score[j * a.d + c];
        const Real g = weight * (us * 2 * e + 2 * f1 * (sj - si));
        out.dz[i * a.d + c] += g, out.dz[j * a.d + c] -= g;
        out.dscore[i * a.d + c] += weight * (f * sj - 2 * f1 * e);
        out.dscore[j * a.d + c] += weight * (f * si + 2 * f1 * e);
      }
    }
  return out;
}

template <class T>
void close(const char* what, const T* got, const std::vector<Real>& want, double tolerance) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double e = double(std::fabs(Real(got[i]) - want[i]));
    error = e > error || std::isnan(e) ? e : error;
    size = std::fmax(size, double(std::fabs(want[i])));
  }
  if (!(error <= tolerance * size)) {
    std::printf("FAILED %s: error %.3g of %.3g\n", what, error, size);
    ++failures;
  }
}

template <class T>
void check(std::int64_t batch, std::int64_t n, std::int64_t d, Family family, int n_scales,
           bool unbiased, int threads, double shift) {
  std::mt19937_64 random(n * 1000 + d);
  std::normal_distribution<double> normal;
  auto draw = [&](double at) {
    std::vector<T> v(batch * n * d);
    for (T& e : v) e = T(normal(random) + at);
    return v;
  };
  const auto z = draw(shift + 0.3), score = draw(0);
  const double scales[] = {2.0 * double(d), 0.5 * double(d), 7};
  const double eps = double(std::numeric_limits<T>::epsilon());
  for (const T* s : {static_cast<const T*>(nullptr), score.data()}) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    std::vector<T> value(batch, nan), alone = value, fixed = value, dz(batch * n * d, nan),
                                      only = dz, dscore = dz;
    KSD<T> a{z.data(), s,      nullptr,  nullptr,  batch,        n,         0,       d,
             family,   scales, n_scales, unbiased, value.data(), dz.data(), nullptr, nullptr,
             threads};
    if (s) a.dscore_x = dscore.data();
    ksd_cpu(a);
    a.value = fixed.data(), a.dx = only.data(), a.dscore_x = nullptr;
    ksd_cpu(a);
    a.value = alone.data(), a.dx = nullptr;
    ksd_cpu(a);
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t at = b * n * d;
      std::vector<Real> own(n * d);
      for (std::int64_t c = 0; c < n * d; ++c) own[c] = s ? Real(s[at + c]) : -Real(z[at + c]);
      Definition want = define(a, &z[at], own);
      if (!s)  // the score moves with the points
        for (std::int64_t c = 0; c < n * d; ++c) want.dz[c] -= want.dscore[c];
      for (const T got : {value[b], fixed[b], alone[b]})
        if (!(double(std::fabs(Real(got) - want.value)) <= 10 * eps * double(want.size))) {
          std::printf("FAILED value, %s: %.17g for %.17g\n", s ? "score" : "normal", double(got),
                      double(want.value));
          ++failures;
        }
      close("dz", &dz[at], want.dz, 100 * eps);
      close("dz alone", &only[at], want.dz, 100 * eps);
      if (s) close("dscore", &dscore[at], want.dscore, 100 * eps);
    }
  }
}

template <class T>
void check_all() {
  for (Family family : {Family::imq, Family::rbf})
    for (bool unbiased : {true, false}) {
      check<T>(1, 2, 1, family, 1, unbiased, 1, 0);
      check<T>(3, 65, 3, family, 3, unbiased, 2, 0);
      check<T>(1, 257, 65, family, 2, unbiased, 2, 0);
      check<T>(2, 200, 17, family, 1, unbiased, 3, 0);
      check<T>(1, 70, 513, family, 1, unbiased, 4, 100);
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
