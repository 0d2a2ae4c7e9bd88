// The inner loops, compiled once for each instruction set and chosen at run time.
//
// All levels give the same bits: sums of pixels are integers, floats are added in one order and never fused.
#pragma once

#include <cstddef>
#include <cstdint>

#include "filters.h"

namespace deit_fast {

struct Kernels {
  const char* name;

  // Pillow's horizontal pass over rows of RGB bytes. Rows are `width_px` wide; `dst` rows need room for one byte more
  // than three for each filter, since pixels are stored four bytes at a time.
  void (*filter_columns)(const uint8_t* src, ptrdiff_t src_stride, int width_px, int rows, const Filters& filters,
                         int origin, uint8_t* dst, ptrdiff_t dst_stride);

  // dst[i] = clip((bias + sum_k weight[k] * rows[k][i]) >> kWeightBits) for i < bytes; rows has taps.count entries.
  void (*filter_rows)(const uint8_t* const* rows, const Taps& taps, int bytes, int32_t bias, uint8_t* dst);

  // Pillow's affine bicubic for any map. src and dst have kSlackBytes more behind them.
  void (*warp)(const uint8_t* src, int size, const Affine& map, const uint8_t fill[3], uint8_t* dst);

  // Image.blend with its own grey.
  void (*color)(uint8_t* pixels, int count_px, float factor);
  // Grey values, and their sum.
  uint64_t (*luma_sum)(const uint8_t* pixels, int count_px);
  // Image.blend with SMOOTH of the inner pixels.
  void (*sharpen)(const uint8_t* src, int size, float factor, uint8_t* dst);
  // One pass of a box blur: dst[i] from the box's rows, its two ends first and last; rows has 2 * radius + 3 entries.
  void (*box_rows)(const uint8_t* const* rows, const BlurBox& box, int bytes, uint8_t* dst);
  // pixels[i] = table[i % 3][pixels[i]]
  void (*lookup)(uint8_t* pixels, int count_px, const uint8_t table[3][256]);
  // out[i] = pixels[i] * scale[i % 3] + shift[i % 3], rounded to nearest even, HWC; uint8 is copied as it is.
  void (*normalize)(const uint8_t* pixels, int count_px, const float scale[3], const float shift[3], OutputType type,
                    void* out);
  // Floats to the type (not uint8), rounded to nearest even; `at`: where in out, in values.
  void (*store)(const float* values, int count, OutputType type, void* out, int at);
};

constexpr int kSlackBytes = 64;

// Levels that this build and this CPU have, slowest first: portable, avx2, avx512.
int level_count();
const Kernels* level(int index);
// By name; "auto" is the fastest. nullptr for a level that is not here.
const Kernels* find_level(const char* name);

}  // namespace deit_fast
