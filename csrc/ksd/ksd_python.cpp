#include "ksd/ksd.h"

#include "common/python.h"

VIMAE_PYTHON(m) { VIMAE_OFFER(m, ksd, KSD); }
