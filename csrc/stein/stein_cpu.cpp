// The Stein gradient: pairs of points, each met once for both its ends (common/symmetric.h); then
// what is linear in the number of points.

#include "stein/stein.h"

#include "common/symmetric.h"

namespace vimae::VIMAE_SIMD {
namespace {

// What a pair adds: a drift where there are scores, otherwise a force (k - 2 k') e and the mass k.
template <bool Score>
struct Rule {
  static constexpr bool kScore = Score, kDots = false, kNorms = false, kValue = false,
                        kForce = !Score, kDrift = Score;
  static constexpr int kOrder = 1;
  template <class T, class V>
  static VIMAE_INLINE void weigh(V, V, V, const V* k, T, V&, V& force) {
    force = k[0] - T(2) * k[1];
  }
};

template <class T, bool Score>
struct Problem {
  const Stein<T>& a;
  Symmetric<T, Rule<Score>> pairs;

  Problem(const Stein<T>& a, int team, Arena& shared, Arena& own)
      : a(a), pairs(a.n, a.d, a.family, a.scales, a.n_scales, team, shared, own) {}

  void solve(std::int64_t b, Team team) {
    const T* z = a.z + b * a.n * a.d;
    const T* score = Score ? a.score + b * a.n * a.d : nullptr;
    T* phi = a.phi + b * a.n * a.d;
    const double finite = pairs.meet(z, score, team).finite, own = a.n_scales;
    const double share = 1 / double(a.n);
    // The pair of a point with itself, which was not met, has k = n_scales and e = 0.
    pairs.each_coordinate(team, [&](std::int64_t i, std::int64_t k, std::int64_t at) {
      const std::int64_t c = i * a.d + k;
      const double total = Score ? pairs.drift[at] + own * double(score[c])
                                 : pairs.force[at] - (pairs.mass[i] + own) * double(z[c]);
      phi[c] = T(total * share + finite);
    });
    team.wait();
  }
};

template <class T>
void run(const Stein<T>& a) {
  const double n = double(a.n), work = 0.5 * double(a.batch) * n * n * double(a.d + 8 * a.n_scales);
  if (a.score)
    solve_batch<Problem<T, true>>(a, work);
  else
    solve_batch<Problem<T, false>>(a, work);
}

}  // namespace

void stein_cpu(const Stein<float>& a) { run(a); }
void stein_cpu(const Stein<double>& a) { run(a); }

}  // namespace vimae::VIMAE_SIMD
