// The operators for one image and a block of threads, written once: CUDA runs them with a thread block an image, the
// CPU with one thread, which is how the tests hold them to the vectorised operators bit for bit.
//
// Block: rank(), count(), sync(), add(uint32_t*, uint32_t). Operations pass between two images of scratch; all of a
// batch is one launch, each image with its own parameters.
#pragma once

#include "filter_math.h"

namespace deit_fast {

constexpr int kTwinOperations = 8;
constexpr int kTwinRectangles = 4;

// Keep in step with twins.py.
struct TwinCrop {
  const uint8_t* pixels;  // of the crop's top left corner
  int64_t stride;
  int32_t height, width;  // of the crop
  int32_t size, flip;
  int32_t* filters;  // scratch: for each axis size x (2 + taps): start, count, weights
  uint8_t* between;  // scratch: max(height, width) x size x 3
  uint8_t* out;      // [size, size, 3]
};

struct TwinView {
  const uint8_t* image;  // [size, size, 3]
  uint8_t* scratch;      // two images
  void* out;
  int32_t operation_count, rectangle_count;
  int32_t operations[kTwinOperations];
  double arguments[kTwinOperations];
  Affine maps[kTwinOperations];  // affine_of each operation
  BlurBox
      boxes[kTwinOperations];  // blur_box of each; both come from the host, since sin, cos and sqrt in double are long
  int32_t rectangles[kTwinRectangles][4];  // top, left, height, width
  const float* content[kTwinRectangles];   // [height, width, 3]
};

struct TwinSpec {
  int32_t size, planar, type;
  float scale[3], shift[3];
};

struct TwinShared {
  uint32_t counts[3][256];
  uint32_t luma_sum;
  uint8_t table[3][256];
};

template <class Block>
DEIT_FAST_HD void make_filters(Block& block, const FilterAxis& axis, bool reversed, int32_t* filters) {
  const int row = 2 + axis.most_taps();
  for (int i = block.rank(); i < axis.out; i += block.count()) {
    const FilterSpan span = filter_span(axis, reversed ? axis.out - 1 - i : i);
    int32_t* filter = filters + i * row;
    filter[0] = span.start;
    filter[1] = span.count;
    double sum = 0;
    for (int k = 0; k < span.count; k++) sum += filter_value(axis, span, k);
    for (int k = 0; k < span.count; k++) filter[2 + k] = fixed_weight(filter_value(axis, span, k), sum);
  }
}

// One byte: a filter over `count` bytes `step` apart.
DEIT_FAST_HD uint8_t filtered_byte(const uint8_t* bytes, int64_t step, const int32_t* filter) {
  int32_t sum = kWeightOne / 2;
  bytes += filter[0] * step;
  for (int k = 0; k < filter[1]; k++) sum += filter[2 + k] * bytes[k * step];
  return clip_byte(sum >> kWeightBits);
}

template <class Block>
DEIT_FAST_HD void twin_crop(Block& block, const TwinCrop& crop) {
  const FilterAxis columns = {crop.width, crop.size, Interpolation::kCubic};
  const FilterAxis rows = {crop.height, crop.size, Interpolation::kCubic};
  int32_t* column_filters = crop.filters;
  int32_t* row_filters = crop.filters + crop.size * (2 + columns.most_taps());
  make_filters(block, columns, crop.flip != 0, column_filters);
  make_filters(block, rows, false, row_filters);
  block.sync();
  const bool rows_first = rows_come_first(crop.height, crop.width, crop.size, crop.size);
  const int middle_height = rows_first ? crop.size : crop.height, middle_width = rows_first ? crop.width : crop.size;
  const int64_t middle_stride = static_cast<int64_t>(middle_width) * kChannels;
  const int column_row = 2 + columns.most_taps(), row_row = 2 + rows.most_taps();
  for (int64_t i = block.rank(); i < middle_height * middle_stride; i += block.count()) {
    const int y = static_cast<int>(i / middle_stride), x = static_cast<int>(i % middle_stride) / kChannels,
              c = i % kChannels;
    crop.between[i] =
        rows_first ? filtered_byte(crop.pixels + x * kChannels + c, crop.stride, row_filters + y * row_row)
                   : filtered_byte(crop.pixels + y * crop.stride + c, kChannels, column_filters + x * column_row);
  }
  block.sync();
  const int out_stride = crop.size * kChannels;
  for (int i = block.rank(); i < crop.size * out_stride; i += block.count()) {
    const int y = i / out_stride, x = i % out_stride / kChannels, c = i % kChannels;
    crop.out[i] = rows_first
                      ? filtered_byte(crop.between + y * middle_stride + c, kChannels, column_filters + x * column_row)
                      : filtered_byte(crop.between + x * kChannels + c, middle_stride, row_filters + y * row_row);
  }
}

// A source of four taps along one axis, Pillow's fill outside.
DEIT_FAST_HD uint8_t twin_shift(const uint8_t* src, int size, const Affine& map, int x, int y, int c, uint8_t fill,
                                bool along_x) {
  const double source = along_x ? map.source_x(x, y) : map.source_y(x, y);
  if (!(source >= 0 && source < size)) return fill;
  const double position = source - 0.5;
  const int first = static_cast<int>(floor(position)) - 1;
  const int64_t stride = static_cast<int64_t>(size) * kChannels;
  const uint8_t* line = src + c + (along_x ? y * stride : static_cast<int64_t>(x) * kChannels);
  const int64_t step = along_x ? kChannels : stride;
  return shifted_byte(line[clamp_int(first, 0, size - 1) * step], line[clamp_int(first + 1, 0, size - 1) * step],
                      line[clamp_int(first + 2, 0, size - 1) * step], line[clamp_int(first + 3, 0, size - 1) * step],
                      position);
}

DEIT_FAST_HD uint8_t twin_sharpen(const uint8_t* src, int size, int x, int y, int c, float factor) {
  const int stride = size * kChannels;
  const uint8_t* p = src + y * stride + x * kChannels + c;
  if (x == 0 || y == 0 || x == size - 1 || y == size - 1) return *p;
  const int sum = p[-stride - 3] + p[-stride] + p[-stride + 3] + p[-3] + 5 * p[0] + p[3] + p[stride - 3] + p[stride] +
                  p[stride + 3];
  return blend_byte(smooth_byte(sum), *p, factor);
}

DEIT_FAST_HD uint8_t twin_box(const uint8_t* src, int size, int x, int y, int c, const BlurBox& box, bool along_x) {
  const int64_t stride = static_cast<int64_t>(size) * kChannels, step = along_x ? kChannels : stride;
  const uint8_t* line = src + c + (along_x ? y * stride : static_cast<int64_t>(x) * kChannels);
  const int at = along_x ? x : y;
  uint32_t inner = 0;
  for (int k = -box.radius; k <= box.radius; k++) inner += line[clamp_int(at + k, 0, size - 1) * step];
  const uint32_t ends = static_cast<uint32_t>(line[clamp_int(at - box.radius - 1, 0, size - 1) * step]) +
                        line[clamp_int(at + box.radius + 1, 0, size - 1) * step];
  return box_byte(inner, ends, box);
}

// The tables of the operations that have one: from the argument, from the histograms, or from the mean grey.
template <class Block>
DEIT_FAST_HD void make_table(Block& block, TwinShared& shared, const uint8_t* src, int count_px, int operation,
                             double argument) {
  for (int i = block.rank(); i < 3 * 256; i += block.count()) shared.counts[i / 256][i % 256] = 0;
  if (block.rank() == 0) shared.luma_sum = 0;
  block.sync();
  if (operation == kAutoContrast || operation == kEqualize) {
    for (int i = block.rank(); i < count_px * kChannels; i += block.count())
      block.add(&shared.counts[i % kChannels][src[i]], 1);
  } else if (operation == kContrast) {
    uint32_t sum = 0;
    for (int i = block.rank(); i < count_px; i += block.count()) {
      const uint8_t* p = src + i * kChannels;
      sum += static_cast<uint32_t>(luma(p[0], p[1], p[2]));
    }
    block.add(&shared.luma_sum, sum);
  }
  block.sync();
  if (operation == kEqualize) {
    for (int c = block.rank(); c < kChannels; c += block.count()) equalize_table(shared.counts[c], shared.table[c]);
  } else {
    for (int i = block.rank(); i < 3 * 256; i += block.count()) {
      const int c = i / 256, value = i % 256;
      if (operation == kContrast) {
        shared.table[c][value] = blend_byte(mean_gray(shared.luma_sum, count_px), value, static_cast<float>(argument));
      } else if (operation == kAutoContrast) {
        int low = 0, high = 255;
        while (low < 255 && !shared.counts[c][low]) low++;
        while (high > 0 && !shared.counts[c][high]) high--;
        shared.table[c][value] = stretch_byte(value, low, high);
      } else {
        shared.table[c][value] = map_byte(operation, argument, value);
      }
    }
  }
  block.sync();
}

DEIT_FAST_HD bool has_table(int operation) {
  return (operation >= kAutoContrast && operation <= kSolarizeAdd) || operation == kContrast ||
         operation == kBrightness;
}

// One operation, from src to dst; passes of a blur but the last go through both.
template <class Block>
DEIT_FAST_HD void twin_operation(Block& block, TwinShared& shared, int size, int operation, double argument,
                                 const Affine& map, const BlurBox& box, int pass, const uint8_t* src, uint8_t* dst) {
  const float factor = static_cast<float>(argument);
  if (has_table(operation)) make_table(block, shared, src, size * size, operation, argument);
  for (int i = block.rank(); i < size * size * kChannels; i += block.count()) {
    const int pixel = i / kChannels, c = i % kChannels, x = pixel % size, y = pixel / size;
    const uint8_t* p = src + pixel * kChannels;
    if (has_table(operation)) {
      dst[i] = shared.table[c][p[c]];
    } else if (operation == kColor || operation == kGrayscale) {
      dst[i] = blend_byte(luma(p[0], p[1], p[2]), p[c], operation == kColor ? factor : 0.f);
    } else if (operation == kSharpness) {
      dst[i] = twin_sharpen(src, size, x, y, c, factor);
    } else if (operation == kGaussianBlur) {
      dst[i] = twin_box(src, size, x, y, c, box, pass < 3);
    } else if (operation == kRotate) {
      dst[i] = sample_byte(src, size, map, x, y, c, fill_byte(c));
    } else {
      dst[i] = twin_shift(src, size, map, x, y, c, fill_byte(c), operation == kShearX || operation == kTranslateX);
    }
  }
  block.sync();
}

DEIT_FAST_HD void store_value(const TwinSpec& spec, void* out, int at, uint8_t byte, float value) {
  switch (static_cast<OutputType>(spec.type)) {
    case OutputType::kUint8:
      static_cast<uint8_t*>(out)[at] = byte;
      break;
    case OutputType::kFloat16:
      static_cast<uint16_t*>(out)[at] = to_half(value);
      break;
    case OutputType::kBfloat16:
      static_cast<uint16_t*>(out)[at] = to_bfloat16(value);
      break;
    default:
      static_cast<float*>(out)[at] = value;
  }
}

template <class Block>
DEIT_FAST_HD void twin_augment(Block& block, TwinShared& shared, const TwinSpec& spec, const TwinView& view) {
  const int size = spec.size, bytes = size * size * kChannels;
  const uint8_t* src = view.image;
  int half = 0;
  for (int k = 0; k < view.operation_count; k++) {
    if (view.operations[k] == kNone) continue;
    const int passes = view.operations[k] == kGaussianBlur ? 6 : 1;
    for (int pass = 0; pass < passes; pass++) {
      uint8_t* dst = view.scratch + static_cast<int64_t>(half) * bytes;
      twin_operation(block, shared, size, view.operations[k], view.arguments[k], view.maps[k], view.boxes[k], pass, src,
                     dst);
      src = dst;
      half = 1 - half;
    }
  }
  for (int i = block.rank(); i < bytes; i += block.count()) {
    const int pixel = i / kChannels, c = i % kChannels, x = pixel % size, y = pixel / size;
    float value = static_cast<float>(src[i]) * spec.scale[c] + spec.shift[c];
    for (int r = 0; r < view.rectangle_count; r++) {
      const int32_t* box = view.rectangles[r];
      if (y >= box[0] && y < box[0] + box[2] && x >= box[1] && x < box[1] + box[3])
        value = view.content[r][((y - box[0]) * box[3] + x - box[1]) * kChannels + c];
    }
    store_value(spec, view.out, spec.planar ? c * size * size + pixel : i, src[i], value);
  }
}

}  // namespace deit_fast
