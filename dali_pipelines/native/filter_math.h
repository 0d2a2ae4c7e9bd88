// Where Pillow's resampling filters lie and what they weigh, written once for the CPU and for CUDA.
#pragma once

#include "pixels.h"

namespace deit_fast {

enum class Interpolation { kCubic, kLinear };

// One axis of a resize from `in` to `out` pixels.
struct FilterAxis {
  int in, out;
  Interpolation interpolation;

  DEIT_FAST_HD double scale() const { return static_cast<double>(in) / out; }
  // Filters widen as they shrink: antialiasing.
  DEIT_FAST_HD double filter_scale() const { return scale() < 1.0 ? 1.0 : scale(); }
  DEIT_FAST_HD double support() const { return (interpolation == Interpolation::kCubic ? 2.0 : 1.0) * filter_scale(); }
  DEIT_FAST_HD int most_taps() const { return static_cast<int>(ceil(support())) * 2 + 1; }
};

// The inputs under the filter of one output.
struct FilterSpan {
  double center;
  int start, count;
};

// `position` below 0 or from `out` on is mirrored about the edge pixels.
DEIT_FAST_HD FilterSpan filter_span(const FilterAxis& axis, int position) {
  if (position < 0) position = -position;
  if (position >= axis.out) position = 2 * (axis.out - 1) - position;
  position = clamp_int(position, 0, axis.out - 1);
  FilterSpan span;
  span.center = (position + 0.5) * axis.scale();
  const int start = static_cast<int>(span.center - axis.support() + 0.5);
  const int end = static_cast<int>(span.center + axis.support() + 0.5);
  span.start = start < 0 ? 0 : start;
  span.count = (end > axis.in ? axis.in : end) - span.start;
  return span;
}

// Weight of tap k before they are made to sum to one; a = -0.5, unlike in Pillow's affine transform.
DEIT_FAST_HD double filter_value(const FilterAxis& axis, const FilterSpan& span, int k) {
  double x = (k + span.start - span.center + 0.5) * (1.0 / axis.filter_scale());
  x = x < 0 ? -x : x;
  if (axis.interpolation == Interpolation::kLinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0.0;
}

DEIT_FAST_HD int32_t fixed_weight(double value, double sum) {
  const double weight = value / sum * kWeightOne;
  return static_cast<int32_t>(weight + (weight < 0 ? -0.5 : 0.5));
}

// Pillow's rule since version 13, found by trying sizes: rows come first where that leaves far less to do.
DEIT_FAST_HD bool rows_come_first(int in_height, int in_width, int out_height, int out_width) {
  return in_height > out_height && in_height - out_height > 2 * (in_width - out_width);
}

}  // namespace deit_fast
