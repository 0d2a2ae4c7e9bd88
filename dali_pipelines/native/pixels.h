// Pillow's arithmetic on single pixels, positions and tables, written once for the CPU and for CUDA.
//
// Everything here is plain scalar code with a fixed order of operations, so that every compiler and device gives the
// same bits. Build with -ffp-contract=off (nvcc: --fmad=false): a fused multiply-add would round once where Pillow
// rounds twice.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Always inlined: were there a copy of its own, the linker might give all callers the one compiled for AVX-512.
#ifdef __CUDACC__
#define DEIT_FAST_HD __host__ __device__ __forceinline__
#else
#define DEIT_FAST_HD inline __attribute__((always_inline))
#endif

namespace deit_fast {

// dali_pipelines/operation.py numbers them.
enum Operation : int {
  kNone = 0,
  kAutoContrast,
  kEqualize,
  kInvert,
  kPosterize,
  kSolarize,
  kSolarizeAdd,
  kColor,
  kContrast,
  kBrightness,
  kSharpness,
  kRotate,
  kShearX,
  kTranslateX,
  kShearY,
  kTranslateY,
  kGrayscale,
  kGaussianBlur,
  kOperationCount,
};

enum class OutputType : int { kUint8 = 0, kFloat16, kBfloat16, kFloat32 };

constexpr int kChannels = 3;
constexpr int kWeightBits = 22;  // Pillow's fixed point: 32 bits less 8 of the result and 2 of overflow
constexpr int kWeightOne = 1 << kWeightBits;

DEIT_FAST_HD int clamp_int(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// What geometric operations put outside the image: ImageNet's mean colour (124, 116, 104), which timm hands to Pillow.
DEIT_FAST_HD constexpr uint8_t fill_byte(int channel) {
  return static_cast<uint8_t>(channel == 0 ? 124 : channel == 1 ? 116 : 104);
}

DEIT_FAST_HD uint8_t clip_byte(int value) { return static_cast<uint8_t>(clamp_int(value, 0, 255)); }

// Cuts the fraction off, as Pillow's casts do.
DEIT_FAST_HD uint8_t truncate_byte(float value) {
  return value <= 0.f ? 0 : value >= 255.f ? 255 : static_cast<uint8_t>(value);
}

// Image.blend: all of ImageEnhance.
DEIT_FAST_HD uint8_t blend_byte(int degenerate, int value, float factor) {
  return truncate_byte(static_cast<float>(degenerate) + factor * static_cast<float>(value - degenerate));
}

// Conversion to mode L.
DEIT_FAST_HD int luma(int red, int green, int blue) {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
}

// ImageFilter.SMOOTH: round(sum / 13), where no sum lies half-way; 40330 / 2^20 is 1 / 26 closely enough for sums to
// 3315.
DEIT_FAST_HD int smooth_byte(int weighted_sum) { return ((2 * weighted_sum + 13) * 40330) >> 20; }

// Operations that map each byte by itself, from the argument alone.
DEIT_FAST_HD uint8_t map_byte(int operation, double argument, int value) {
  switch (operation) {
    case kInvert:
      return static_cast<uint8_t>(255 - value);
    case kPosterize: {
      int bits = static_cast<int>(argument);
      return static_cast<uint8_t>(bits >= 8 ? value : value & ~((1 << (8 - bits)) - 1));
    }
    case kSolarize:
      return static_cast<uint8_t>(value < argument ? value : 255 - value);
    case kSolarizeAdd:
      return value < 128 ? clip_byte(value + static_cast<int>(argument)) : static_cast<uint8_t>(value);
    case kBrightness:
      return blend_byte(0, value, static_cast<float>(argument));
    default:
      return static_cast<uint8_t>(value);
  }
}

// Contrast's degenerate: the mean grey, rounded.
DEIT_FAST_HD int mean_gray(uint64_t luma_sum, int pixels) {
  return static_cast<int>(static_cast<double>(luma_sum) / pixels + 0.5);
}

// AutoContrast of one value of a channel whose extremes are low and high.
DEIT_FAST_HD uint8_t stretch_byte(int value, int low, int high) {
  if (high <= low) return static_cast<uint8_t>(value);
  double scale = 255.0 / (high - low);
  double offset = -low * scale;
  return clip_byte(static_cast<int>(value * scale + offset));
}

// Equalize: table of a channel from its histogram.
DEIT_FAST_HD void equalize_table(const uint32_t histogram[256], uint8_t table[256]) {
  uint32_t pixels = 0, highest = 0;
  for (int i = 0; i < 256; i++) {
    pixels += histogram[i];
    if (histogram[i]) highest = histogram[i];
  }
  uint32_t step = (pixels - highest) / 255;
  uint32_t below = step / 2;
  for (int i = 0; i < 256; i++) {
    table[i] = step ? clip_byte(static_cast<int>(below / step)) : static_cast<uint8_t>(i);
    below += histogram[i];
  }
}

// Weights of Pillow's affine bicubic (a = -1) for the pixels -1, 0, 1, 2 around a position, in 1 / kWeightOne; they sum
// to one exactly, so that even areas stay as they are.
DEIT_FAST_HD void cubic_weights(double fraction, int32_t weights[4]) {
  double d = fraction;
  double exact[4] = {d * (d * (2.0 - d) - 1.0), 1.0 + d * d * (d - 2.0), d * (1.0 + d * (1.0 - d)), d * d * (d - 1.0)};
  int32_t sum = 0;
  for (int k = 0; k < 4; k++) {
    weights[k] = static_cast<int32_t>(exact[k] * kWeightOne + (exact[k] < 0 ? -0.5 : 0.5));
    sum += weights[k];
  }
  weights[exact[1] >= exact[2] ? 1 : 2] += kWeightOne - sum;
}

// Pillow's affine bicubic through four values (a = -1).
template <class T>
DEIT_FAST_HD T cubic(T before, T start, T end, T after, T d) {
  T p2 = end - before;
  T p3 = 2 * (before - start) + (end - after);
  T p4 = (start - before) + (after - end);
  return start + d * (p2 + d * (p3 + d * p4));
}

// An affine map from output to input pixel centres.
struct Affine {
  double xx, xy, x0, yx, yy, y0;

  DEIT_FAST_HD double source_x(int x, int y) const { return xx * (x + 0.5) + xy * (y + 0.5) + x0; }
  DEIT_FAST_HD double source_y(int x, int y) const { return yx * (x + 0.5) + yy * (y + 0.5) + y0; }
};

// The map that timm and Pillow use for a geometric operation on a square image.
DEIT_FAST_HD Affine affine_of(int operation, double argument, int size) {
  switch (operation) {
    case kShearX:
      return {1, argument, 0, 0, 1, 0};
    case kShearY:
      return {1, 0, 0, argument, 1, 0};
    case kTranslateX:
      return {1, 0, argument * size, 0, 1, 0};
    case kTranslateY:
      return {1, 0, 0, 0, 1, argument * size};
    default: {  // rotation by degrees about the centre
      double angle = -argument * (3.14159265358979323846 / 180), c = cos(angle), s = sin(angle), half = size / 2.0;
      return {c, s, (c * -half + s * -half) + half, -s, c, (-s * -half + c * -half) + half};
    }
  }
}

// One channel of a pixel of the warped image by Pillow's bicubic filter, the fill colour outside; in float32 and
// columns first, as the vectorised kernels have it.
DEIT_FAST_HD uint8_t sample_byte(const uint8_t* pixels, int size, const Affine& map, int x, int y, int channel,
                                 uint8_t fill) {
  double source_x = map.source_x(x, y), source_y = map.source_y(x, y);
  if (!(source_x >= 0 && source_x < size && source_y >= 0 && source_y < size)) return fill;
  source_x -= 0.5;
  source_y -= 0.5;
  const int left = static_cast<int>(floor(source_x)), top = static_cast<int>(floor(source_y));
  const float dx = static_cast<float>(source_x - left), dy = static_cast<float>(source_y - top);
  float values[4];
  for (int k = 0; k < 4; k++) {
    const uint8_t* column = pixels + clamp_int(left - 1 + k, 0, size - 1) * kChannels + channel;
    float taps[4];
    for (int j = 0; j < 4; j++) taps[j] = column[clamp_int(top - 1 + j, 0, size - 1) * size * kChannels];
    values[k] = cubic(taps[0], taps[1], taps[2], taps[3], dy);
  }
  return truncate_byte(cubic(values[0], values[1], values[2], values[3], dx));
}

// A whole pixel by Pillow's bilinear filter, in double and rows first as Pillow has it.
DEIT_FAST_HD void bilinear_pixel(const uint8_t* pixels, int size, const Affine& map, int x, int y, uint8_t* out) {
  double source_x = map.source_x(x, y), source_y = map.source_y(x, y);
  if (!(source_x >= 0 && source_x < size && source_y >= 0 && source_y < size)) {
    for (int c = 0; c < kChannels; c++) out[c] = fill_byte(c);
    return;
  }
  source_x -= 0.5;
  source_y -= 0.5;
  const int left = static_cast<int>(source_x + 1) - 1, top = static_cast<int>(source_y + 1) - 1;  // floors of >= -0.5
  const double dx = source_x - left, dy = source_y - top;
  const int near_x = clamp_int(left, 0, size - 1) * kChannels, far_x = clamp_int(left + 1, 0, size - 1) * kChannels;
  const uint8_t* above = pixels + clamp_int(top, 0, size - 1) * size * kChannels;
  const uint8_t* below = pixels + clamp_int(top + 1, 0, size - 1) * size * kChannels;
  for (int c = 0; c < kChannels; c++) {
    const double first = above[near_x + c] + (above[far_x + c] - above[near_x + c]) * dx;
    const double second = below[near_x + c] + (below[far_x + c] - below[near_x + c]) * dx;
    out[c] = clip_byte(static_cast<int>(first + (second - first) * dy));
  }
}

// The same for a shear or translation along one axis, in double as Pillow has it: before, start, end, after are the
// four taps of a source at `position` (pixel centres at whole numbers).
DEIT_FAST_HD uint8_t shifted_byte(int before, int start, int end, int after, double position) {
  return clip_byte(static_cast<int>(floor(cubic<double>(before, start, end, after, position - floor(position)))));
}

// Pillow's box of a Gaussian blur (Gwosdek et al. 2011, three passes): whole radius, weight inside and at the two ends.
struct BlurBox {
  int radius;
  uint32_t inner, edge;
};

DEIT_FAST_HD BlurBox blur_box(float standard_deviation) {
  float variance = standard_deviation * standard_deviation / 3;
  float length = static_cast<float>(sqrt(12.0 * variance + 1.0));
  float whole = static_cast<float>(floor((length - 1.0) / 2.0));
  float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
  part /= 6 * (variance - (whole + 1) * (whole + 1));
  float radius = whole + part;
  BlurBox box;
  box.radius = static_cast<int>(radius);
  box.inner = static_cast<uint32_t>(static_cast<float>(1 << 24) / (radius * 2 + 1));
  box.edge = ((1u << 24) - (box.radius * 2 + 1) * box.inner) / 2;
  return box;
}

DEIT_FAST_HD uint8_t box_byte(uint32_t inner_sum, uint32_t edge_sum, const BlurBox& box) {
  return static_cast<uint8_t>((inner_sum * box.inner + edge_sum * box.edge + (1u << 23)) >> 24);
}

// Round to nearest even, as hardware converts.
DEIT_FAST_HD uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

DEIT_FAST_HD uint16_t to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000;
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded half in the lowest bits
    float shifted;
    memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    memcpy(&magnitude, &shifted, 4);
    return static_cast<uint16_t>(sign | (magnitude - 0x3f000000));
  }
  magnitude += 0xfff + ((magnitude >> 13) & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

}  // namespace deit_fast
