#include "mmd/mmd.h"

#include "common/python.h"

VIMAE_PYTHON(m) {
  m.attr("max_scales") = vimae::kMaxScales;
  VIMAE_OFFER(m, mmd, MMD);
}
