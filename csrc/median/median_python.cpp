#include "median/median.h"

#include "common/python.h"

VIMAE_PYTHON(m) {
  VIMAE_OFFER(m, median, Median);
  VIMAE_OFFER_CPU(m, median_counts, MedianCounts);
}
