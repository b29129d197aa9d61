// mmd_cpu at every SIMD level this machine runs, against double loops straight from the definition.
#include "mmd/mmd.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

using Real = long double;  // the sums below are plain loops

struct Definition {
  Real value = 0;
  std::vector<Real> dx, dy, hx, hy;
};

// Value, gradient and Hessian-vector product of one problem, pair by pair.
template <class T>
Definition define(const MMD<T>& a, const T* x, const T* y, const T* vx, const T* vy) {
  Definition out;
  out.dx.assign(a.n * a.d, 0), out.hx = out.dx, out.dy.assign(a.m * a.d, 0), out.hy = out.dy;
  auto term = [&](const T* p, const T* v, std::int64_t np, Real* dp, Real* hp, const T* q,
                  const T* u, std::int64_t nq, Real* dq, Real* hq, bool same, Real weight) {
    for (std::int64_t i = 0; i < np; ++i)
      for (std::int64_t j = 0; j < nq; ++j) {
        if (same && a.unbiased && i == j) continue;
        Real s = 0, dot = 0;
        for (std::int64_t k = 0; k < a.d; ++k) {
          const Real diff = Real(p[i * a.d + k]) - Real(q[j * a.d + k]);
          s += diff * diff, dot += diff * (Real(v[i * a.d + k]) - Real(u[j * a.d + k]));
        }
        Real first = 0, second = 0;
        for (int l = 0; l < a.n_scales; ++l) {
          const Real c = Real(a.scales[l]),
                     k = a.family == Family::imq ? c / (c + s) : std::exp(-s / c);
          out.value += weight * k;
          first += a.family == Family::imq ? -k * k / c : -k / c;
          second += a.family == Family::imq ? 2 * k * k * k / (c * c) : k / (c * c);
        }
        for (std::int64_t k = 0; k < a.d; ++k) {
          const Real diff = Real(p[i * a.d + k]) - Real(q[j * a.d + k]);
          const Real g = weight * 2 * first * diff;
          const Real h = weight * (2 * first * (Real(v[i * a.d + k]) - Real(u[j * a.d + k])) +
                                   4 * second * dot * diff);
          dp[i * a.d + k] += g, dq[j * a.d + k] -= g, hp[i * a.d + k] += h, hq[j * a.d + k] -= h;
        }
      }
  };
  const Real n = Real(a.n), m = Real(a.m), off = a.unbiased;
  // Without a second sample no term of it has a pair: the weights below are never used.
  term(x, vx, a.n, out.dx.data(), out.hx.data(), x, vx, a.n, out.dx.data(), out.hx.data(), true,
       1 / (n * (n - off)));
  term(y, vy, a.m, out.dy.data(), out.hy.data(), y, vy, a.m, out.dy.data(), out.hy.data(), true,
       1 / (m * (m - off)));
  term(x, vx, a.n, out.dx.data(), out.hx.data(), y, vy, a.m, out.dy.data(), out.hy.data(), false,
       -2 / (n * m));
  return out;
}

template <class T>
void close(const char* what, const std::vector<T>& got, std::size_t offset,
           const std::vector<Real>& want, double tolerance) {
  double error = 0, size = 1e-30;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double e = double(std::fabs(Real(got[offset + i]) - want[i]));
    error = e > error || std::isnan(e) ? e : error;
    size = std::fmax(size, double(std::fabs(want[i])));
  }
  if (!(error <= tolerance * size)) {
    std::printf("FAILED %s: error %.3g of %.3g\n", what, error, size);
    ++failures;
  }
}

template <class T>
void check(std::int64_t batch, std::int64_t n, std::int64_t m, std::int64_t d, Family family,
           int n_scales, bool unbiased, int threads, double shift) {
  std::mt19937_64 random(n * 1000 + d);
  std::normal_distribution<double> normal;
  auto draw = [&](std::int64_t count, double at) {
    std::vector<T> v(count);
    for (T& e : v) e = T(normal(random) + at);
    return v;
  };
  // All problems of the batch share y: its batch stride is 0.
  const auto x = draw(batch * n * d, shift + 0.3), y = draw(m * d, shift);
  const auto vx = draw(batch * n * d, 0), vy = draw(batch * m * d, 0);
  const double scales[] = {2.0 * double(d), 0.5 * double(d), 7};
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> value(batch, nan), dx(batch * n * d, nan), dy(batch * m * d, nan),
      hx = dx, hy = dy, only = dx;
  MMD<T> a{x.data(),  y.data(), n * d,  0,      nullptr,  nullptr,  batch,        n,
           m,         d,        family, scales, n_scales, unbiased, value.data(), dx.data(),
           dy.data(), nullptr,  threads};
  mmd_cpu(a);
  std::vector<T> alone(batch, nan);
  a.value = alone.data(), a.dx = only.data(), a.dy = nullptr;
  mmd_cpu(a);
  a.value = nullptr, a.dx = hx.data(), a.dy = hy.data(), a.vx = vx.data(), a.vy = vy.data();
  mmd_cpu(a);
  const double eps = double(std::numeric_limits<T>::epsilon());
  for (std::int64_t b = 0; b < batch; ++b) {
    const Definition want =
        define(a, x.data() + b * n * d, y.data(), vx.data() + b * n * d, vy.data() + b * m * d);
    const double error = double(std::fabs(Real(value[b]) - want.value));
    if (!(error <= 10 * eps * n_scales) ||
        !(double(std::fabs(Real(alone[b]) - want.value)) <= 10 * eps * n_scales)) {
      std::printf("FAILED value: %.17g for %.17g\n", double(value[b]), double(want.value));
      ++failures;
    }
    close("dx", dx, b * n * d, want.dx, 500 * eps);
    close("dx alone", only, b * n * d, want.dx, 500 * eps);
    close("dy", dy, b * m * d, want.dy, 500 * eps);
    close("hx", hx, b * n * d, want.hx, 500 * eps);
    close("hy", hy, b * m * d, want.hy, 500 * eps);
  }
}

template <class T>
void check_all() {
  for (Family family : {Family::imq, Family::rbf})
    for (bool unbiased : {true, false}) {
      check<T>(1, 2, 3, 1, family, 1, unbiased, 1, 0);
      check<T>(1, 63, 65, 3, family, 3, unbiased, 1, 0);
      check<T>(2, 70, 0, 5, family, 2, unbiased, 2, 0);
      check<T>(3, 7, 130, 8, family, 1, unbiased, 2, 0);
      check<T>(1, 257, 200, 65, family, 2, unbiased, 2, 0);
      check<T>(2, 300, 129, 17, family, 1, unbiased, 3, 0);
      check<T>(1, 70, 66, 513, family, 1, unbiased, 4, 100);
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
