// The arithmetic of one pair, for scalars on the GPU and vectors of pairs on the CPU.
#pragma once

#include "mmd/mmd.h"

namespace vimae {

// What a scale adds to a pair: with u = 1 / (c + s) or exp(-s / c), `value` u to the kernel,
// `first` times u^2 or u to 2 k', `second` times u^3 or u to 4 k''; the weight of the pair may be
// in the last two.
template <class T>
struct Scale {
  T c, value, first, second;  // c is -1 / c for the RBF
};

template <class T>
VIMAE_HOST_DEVICE Scale<T> scale_of(Family family, double c, double weight) {
  if (family == Family::imq) return {T(c), T(c), T(-2 * weight * c), T(8 * weight * c)};
  return {T(-1 / c), T(1), T(-2 * weight / c), T(4 * weight / (c * c))};
}

// u of a pair, V being T or a vector of T. Ops has V's reciprocal and exp_of_product.
template <class Ops, Family F, class T, class V>
VIMAE_HOST_DEVICE V pair_u(V s, T c) {
  if constexpr (F == Family::imq)
    return Ops::reciprocal(s + c);
  else
    return Ops::exp_of_product(s, c);
}

// Adds one scale's share of the kernel, 2 k' and 4 k'' of a pair.
template <class Ops, Family F, bool Gradient, bool Hessian, class T, class V>
VIMAE_HOST_DEVICE void add_scale(V s, const Scale<T>& scale, V& value, V& first, V& second) {
  const V u = pair_u<Ops, F>(s, scale.c);
  const V slope = F == Family::imq ? u * u : u;
  value += u * scale.value;
  if (Gradient) first += slope * scale.first;
  if (Hessian) second += (F == Family::imq ? slope * u : u) * scale.second;
}

}  // namespace vimae
