#include "filters.h"

#include <algorithm>

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
  return {starts_[output],      count,
          weights_.data() + at, high_.data() + at,
          low_.data() + at,     {bytes_[0].data() + at, bytes_[1].data() + at, bytes_[2].data() + at}};
}

int Filters::first() const { return *std::min_element(starts_.begin(), starts_.end()); }

int Filters::end() const {
  int last = 0;
  for (size_t i = 0; i < starts_.size(); i++) last = std::max(last, starts_[i] + counts_[i]);
  return last;
}

void pillow_filters(int in, int out, int first, int count, bool reversed, Interpolation interpolation,
                    Filters* filters) {
  const FilterAxis axis = {in, out, interpolation};
  filters->reset(count, axis.most_taps());
  std::vector<double> exact(axis.most_taps());
  std::vector<int32_t> weights(axis.most_taps());
  for (int i = 0; i < count; i++) {
    const FilterSpan span = filter_span(axis, first + i);
    double sum = 0;
    for (int k = 0; k < span.count; k++) sum += exact[k] = filter_value(axis, span, k);
    for (int k = 0; k < span.count; k++) weights[k] = fixed_weight(exact[k], sum);
    filters->set(reversed ? count - 1 - i : i, span.start, weights.data(), span.count);
  }
}

}  // namespace deit_fast
