// Which part of an image a view shows; all in the arithmetic of the graph backend (train_graph.py,
// validation_graph.py).
#pragma once

#include <cmath>

#include "resize.h"

namespace deit_fast {

constexpr int kAttempts = 10;
constexpr int kSimpleCropPadding = 4;

struct CropDraws {
  const float *widths, *heights;  // kAttempts candidates each, in units of sqrt(height * width)
  const float* position;          // in the free rows and columns, [0, 1)
};

// draws.choose_crop: the first candidate that fits, else the largest central crop with an aspect in [3/4, 4/3].
inline Rectangle random_crop(const CropDraws& draws, int height, int width) {
  const float h_px = static_cast<float>(height), w_px = static_cast<float>(width), side = std::sqrt(h_px * w_px);
  for (int k = 0; k < kAttempts; k++) {
    float w = std::floor(side * draws.widths[k] + 0.5f), h = std::floor(side * draws.heights[k] + 0.5f);
    if (w < 1 || h < 1 || w > w_px || h > h_px) continue;
    int top = static_cast<int>(std::floor(draws.position[0] * (h_px - h + 1.f)));
    int left = static_cast<int>(std::floor(draws.position[1] * (w_px - w + 1.f)));
    return {top, left, static_cast<int>(h), static_cast<int>(w)};
  }
  const float aspect = static_cast<float>(4.0 / 3.0);
  int w = static_cast<int>(std::fmin(w_px, std::floor(h_px * aspect + 0.5f)));
  int h = static_cast<int>(std::fmin(h_px, std::floor(w_px * aspect + 0.5f)));
  return {(height - h) / 2, (width - w) / 2, h, w};
}

// torchvision's Resize(shorter): the longer side becomes int(shorter * longer / shorter side).
inline void shorter_side_to(int shorter, int height, int width, int* out_height, int* out_width) {
  const double least = height < width ? height : width;
  *out_height = static_cast<int>(std::floor(static_cast<double>(height) * shorter / least));
  *out_width = static_cast<int>(std::floor(static_cast<double>(width) * shorter / least));
}

// Validation: resized by the shorter side, the centre of it, offsets rounded to even as Python rounds.
inline ResizeSpec center_crop(int shorter, int size, int height, int width) {
  ResizeSpec spec{height, width, 0, 0, 0, 0, size, false, Interpolation::kCubic};
  shorter_side_to(shorter, height, width, &spec.out_height, &spec.out_width);
  spec.top = static_cast<int>(std::nearbyint((spec.out_height - size) * 0.5));
  spec.left = static_cast<int>(std::nearbyint((spec.out_width - size) * 0.5));
  return spec;
}

// DeiT III's `src`: resized by the shorter side, then a random crop of it with mirrored padding.
inline ResizeSpec simple_crop(const float* position, int size, int height, int width) {
  ResizeSpec spec{height, width, 0, 0, 0, 0, size, false, Interpolation::kCubic};
  shorter_side_to(size, height, width, &spec.out_height, &spec.out_width);
  const float free_rows = static_cast<float>(spec.out_height - size + 2 * kSimpleCropPadding);
  const float free_columns = static_cast<float>(spec.out_width - size + 2 * kSimpleCropPadding);
  spec.top = static_cast<int>(std::floor(position[0] * (free_rows + 1.f))) - kSimpleCropPadding;
  spec.left = static_cast<int>(std::floor(position[1] * (free_columns + 1.f))) - kSimpleCropPadding;
  return spec;
}

}  // namespace deit_fast
