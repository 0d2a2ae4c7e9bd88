// Filters of integer weights, one for each output: Pillow's resampling along an axis, and the four taps of a shifted
// row.
#pragma once

#include <cstdint>
#include <vector>

#include "filter_math.h"

namespace deit_fast {

// One filter. `count` is a multiple of 4: weights beyond the true ones are 0.
//
// SIMD multiplies at most 16 bits by 16 (AVX2) or 8 by 8 (VNNI), so each weight of 23 bits and sign also comes in
// parts: weight = high * 2^11 + low = byte2 * 2^16 + byte1 * 2^8 + byte0. The products are then summed part by part,
// exactly.
struct Taps {
  int start, count;
  const int32_t* weights;
  const int16_t *high, *low;
  const int8_t* bytes[3];
};

constexpr int kLowBits = 11;

class Filters {
 public:
  // Room for `outputs` filters of at most `taps` weights, all 0.
  void reset(int outputs, int taps);
  void set(int output, int start, const int32_t* weights, int count);
  Taps at(int output) const;
  int outputs() const { return static_cast<int>(starts_.size()); }
  int first() const;  // first input that any filter reads
  int end() const;    // one past the last, padding of the counts left out

 private:
  int stride_ = 0;
  std::vector<int> starts_, counts_;
  std::vector<int32_t> weights_;
  std::vector<int16_t> high_, low_;
  std::vector<int8_t> bytes_[3];
};

// Pillow's antialiased filters from `in` to `out` pixels, for the outputs from `first` on, `count` of them; positions
// below 0 and from `out` on are mirrored about the edge pixels. reversed: the last of them first, which flips the
// image.
void pillow_filters(int in, int out, int first, int count, bool reversed, Interpolation interpolation,
                    Filters* filters);

}  // namespace deit_fast
