#include "filters.h"

#include <algorithm>
#include <cmath>

namespace deit_fast {

void Filters::reset(int outputs, int taps) {
  stride_ = (taps + 3) / 4 * 4;
  size_t total = static_cast<size_t>(outputs) * stride_;
  starts_.assign(outputs, 0);
  counts_.assign(outputs, 0);
  weights_.assign(total, 0);
  high_.assign(total, 0);
  low_.assign(total, 0);
  for (auto& part : bytes_) part.assign(total, 0);
}

void Filters::set(int output, int start, const int32_t* weights, int count) {
  starts_[output] = start;
  counts_[output] = count;
  size_t at = static_cast<size_t>(output) * stride_;
  for (int k = 0; k < count; k++, at++) {
    int32_t rest = weights_[at] = weights[k];
    high_[at] = static_cast<int16_t>(rest >> kLowBits);
    low_[at] = static_cast<int16_t>(rest & ((1 << kLowBits) - 1));
    for (auto& part : bytes_) {  // signed bytes: what is left after each is a whole multiple of 256
      part[at] = static_cast<int8_t>(rest & 0xff);
      rest = (rest - part[at]) >> 8;
    }
  }
}

Taps Filters::at(int output) const {
  size_t at = static_cast<size_t>(output) * stride_;
  int count = (counts_[output] + 3) / 4 * 4;
  return {starts_[output],
          count,
          weights_.data() + at,
          high_.data() + at,
          low_.data() + at,
          {bytes_[0].data() + at, bytes_[1].data() + at, bytes_[2].data() + at}};
}

int Filters::first() const { return *std::min_element(starts_.begin(), starts_.end()); }

int Filters::end() const {
  int last = 0;
  for (size_t i = 0; i < starts_.size(); i++) last = std::max(last, starts_[i] + counts_[i]);
  return last;
}

namespace {

// a = -0.5, unlike in Pillow's affine transform.
double cubic_kernel(double x) {
  x = std::fabs(x);
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0.0;
}

double linear_kernel(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

int mirrored(int position, int out) {
  if (position < 0) position = -position;
  if (position >= out) position = 2 * (out - 1) - position;
  return clamp_int(position, 0, out - 1);
}

}  // namespace

void pillow_filters(int in, int out, int first, int count, bool reversed, Interpolation interpolation, Filters* filters) {
  double scale = static_cast<double>(in) / out, filter_scale = std::max(scale, 1.0);
  double support = (interpolation == Interpolation::kCubic ? 2.0 : 1.0) * filter_scale, inverse = 1.0 / filter_scale;
  int most = static_cast<int>(std::ceil(support)) * 2 + 1;
  filters->reset(count, most);
  std::vector<double> exact(most);
  std::vector<int32_t> weights(most);
  for (int i = 0; i < count; i++) {
    double center = (mirrored(first + i, out) + 0.5) * scale;
    int start = std::max(static_cast<int>(center - support + 0.5), 0);
    int taps = std::min(static_cast<int>(center + support + 0.5), in) - start;
    double sum = 0;
    for (int k = 0; k < taps; k++) {
      double x = (k + start - center + 0.5) * inverse;
      exact[k] = interpolation == Interpolation::kCubic ? cubic_kernel(x) : linear_kernel(x);
      sum += exact[k];
    }
    for (int k = 0; k < taps; k++) {
      double weight = exact[k] / sum * kWeightOne;
      weights[k] = static_cast<int32_t>(weight + (weight < 0 ? -0.5 : 0.5));
    }
    filters->set(reversed ? count - 1 - i : i, start, weights.data(), taps);
  }
}

}  // namespace deit_fast
