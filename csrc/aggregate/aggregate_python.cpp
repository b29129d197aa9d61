#include "aggregate/aggregate.h"

#include "common/python.h"

VIMAE_PYTHON(m) {
  VIMAE_OFFER(m, aggregate, Aggregate);
  VIMAE_OFFER(m, aggregate_gradient, AggregateGradient);
  VIMAE_OFFER_CPU(m, total_correlation, TotalCorrelation);
}
