#include "stein/stein.h"

#include "common/python.h"

VIMAE_PYTHON(m) { VIMAE_OFFER(m, stein, Stein); }
