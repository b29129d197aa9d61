#include "gumbel/gumbel.h"

#include "common/python.h"

VIMAE_PYTHON(m) {
  VIMAE_OFFER(m, gumbel, Gumbel);
  VIMAE_OFFER(m, gumbel_backward, GumbelBackward);
}
