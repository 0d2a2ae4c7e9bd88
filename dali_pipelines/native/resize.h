// Pillow's resize, of a window of the result, from pixels of which only the needed part may be there.
//
// One axis, bytes in between, then the other; which comes first is Pillow's choice (filter_math.h).
#pragma once

#include <vector>

#include "kernels.h"

namespace deit_fast {

struct Rectangle {
  int top, left, height, width;
};

struct ResizeSpec {
  int in_height, in_width;    // the image, or the crop, that is resized as a whole
  int out_height, out_width;  // its size afterwards
  int top, left;              // the square window that is wanted; outside the result it is mirrored
  int size;                   // side of the window
  bool flip;                  // left to right
  Interpolation interpolation;
};

// Holds what a thread needs again and again.
class Resizer {
 public:
  void plan(const ResizeSpec& spec);
  // The part of the image that the planned resize reads.
  Rectangle needed() const;
  // pixels: RGB, the first is that of held's corner; held contains needed(). out: [size, size, 3].
  void run(const Kernels& kernels, const uint8_t* pixels, ptrdiff_t stride, const Rectangle& held, uint8_t* out);

 private:
  // Columns: `count` rows of pixels through columns_, into narrow_. held_end: rows from pixels on that are there.
  void filter_columns(const Kernels& kernels, const uint8_t* pixels, ptrdiff_t stride, int width, int origin, int count,
                      int held_end);
  // Rows: `bytes` of each row through rows_, into dst; pixels is row `first` of `held_end`.
  void filter_rows(const Kernels& kernels, const uint8_t* pixels, ptrdiff_t stride, int first, int held_end, int bytes,
                   uint8_t* dst, ptrdiff_t dst_stride);

  int size_ = 0;
  bool rows_first_ = false;
  Filters columns_, rows_;
  std::vector<uint8_t> narrow_, low_, tail_;  // after columns; after rows; rows copied so that they may be read beyond
  ptrdiff_t narrow_stride_ = 0;
  std::vector<const uint8_t*> pointers_;
};

}  // namespace deit_fast
