// The arithmetic of one pair, for scalars on the GPU and vectors of pairs on the CPU.
//
// With e = x - y, s = ||e||^2, p = score_x . score_y, q = (score_y - score_x) . e and k[i] the i-th
// derivative of the kernel by s, the pair adds
//
//   u = p k[0] + 2 q k[1] - 4 s k[2] - 2 d k[1]
//
// to the sum (Liu, Lee, Jordan 2016, theorem 3.6), whose derivatives are
//
//   du/dx = stein_force e + 2 k[1] (score_y - score_x)  at a fixed score, du/dy its negative, and
//   du/dscore_x = k[0] score_y - 2 k[1] e,  du/dscore_y = k[0] score_x + 2 k[1] e.
//
// For the standard normal score_x = -x, so that q = s, p = x . y, which is the sum of half the
// squared norms less s / 2 (where they are alike: its rounding is that of the larger), and all of
// it together is
//
//   du/dx = k[0] x + normal_force e,  du/dy = k[0] y - normal_force e.
#pragma once

#include "common/kernel.h"

namespace vimae {

template <class T, class V>
VIMAE_HOST_DEVICE V stein_kernel(V s, V p, V q, const V* k, T d) {
  return p * k[0] + T(2) * ((q - d) * k[1] - T(2) * s * k[2]);
}

template <class T, class V>
VIMAE_HOST_DEVICE V stein_force(V s, V p, V q, const V* k, T d) {
  return T(2) * (p * k[1] + T(2) * (q - (d + T(2))) * k[2] - T(4) * s * k[3]);
}

template <class T, class V>
VIMAE_HOST_DEVICE V normal_force(V s, V p, const V* k, T d) {
  return stein_force(s, p, s, k, d) + (T(4) * k[1] - k[0]);
}

}  // namespace vimae
