// A training view from its resized image: operations, normalisation, random erasing and cast.
#pragma once

#include <vector>

#include "kernels.h"

namespace deit_fast {

struct AugmentSpec {
  int size;       // side of the square image
  bool bilinear;  // geometry: Pillow's bilinear in place of its bicubic
  bool planar;    // NCHW in place of NHWC
  OutputType type;
  float scale[3];  // of bytes: out = byte * scale + shift
  float shift[3];
  uint8_t erase_color[3];  // of uint8 images, which hold no noise
};

struct EraseRectangle {
  int top, left, height, width;
  const float* content;  // [height, width, 3]; nullptr: erase_color
};

// Holds a thread's two images. Operations that map each byte by itself are kept pending as one table for each channel,
// which is applied once the next operation, or normalisation, has to see pixels.
class Augmenter {
 public:
  // image: [size, size, 3]; out: as many values of spec.type.
  void run(const Kernels& kernels, const AugmentSpec& spec, const uint8_t* image, const int32_t* operations,
           const double* arguments, int operation_count, const std::vector<EraseRectangle>& rectangles, void* out);

 private:
  void apply(int operation, double argument);
  void compose(const uint8_t (*table)[256]);
  void flush();
  void histogram(uint32_t counts[3][256]);
  void geometry(int operation, double argument);
  void shift_rows(double shear, double shift);
  void shift_columns(double shift);
  void transpose();
  void blur(float standard_deviation);
  void erase(const EraseRectangle& rectangle, void* out);

  uint8_t* pixels() { return images_[current_].data(); }
  uint8_t* target() { return images_[1 - current_].data(); }
  void swap() { current_ = 1 - current_; }

  const Kernels* kernels_ = nullptr;
  AugmentSpec spec_{};
  int current_ = 0;
  std::vector<uint8_t> images_[2], padded_, interleaved_;
  uint8_t table_[3][256];
  bool pending_ = false;
};

}  // namespace deit_fast
