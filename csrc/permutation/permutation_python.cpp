#include "permutation/permutation.h"

#include "common/python.h"

VIMAE_PYTHON(m) {
  VIMAE_OFFER(m, permutation, Permutation);
  vimae::offer(m, "draw_cpu", vimae::draw_cpu);
}
