// Operations that move pixels or mix neighbours: shear, translation, rotation, blur.
#include <cmath>
#include <cstring>

#include "augment.h"

namespace deit_fast {

namespace {

constexpr uint8_t kFill[3] = {fill_byte(0), fill_byte(1), fill_byte(2)};
constexpr int kTapsPx = 4;
constexpr int kTransposeBlock = 16;

void fill_row(uint8_t* row, int begin_px, int end_px) {
  for (int x = begin_px; x < end_px; x++) std::memcpy(row + x * kChannels, kFill, kChannels);
}

// A row with `pad` clones of its end pixels on either side.
void pad_row(const uint8_t* row, int size, int pad, uint8_t* padded) {
  const uint8_t* last = row + (size - 1) * kChannels;
  for (int i = 0; i < pad; i++) {
    std::memcpy(padded + i * kChannels, row, kChannels);
    std::memcpy(padded + (pad + size + i) * kChannels, last, kChannels);
  }
  std::memcpy(padded + pad * kChannels, row, size * kChannels);
}

// What one axis of a map does to a line whose pixels all move by the same way: output pixels [begin, end) have their
// source inside, and the four taps of output x start at x + offset.
struct LineShift {
  int begin, end, offset;
  int32_t weights[kTapsPx];

  // shift(x) is the source's position for output x: x + 0.5 + a constant, as Pillow computes it.
  template <class Source>
  LineShift(int size, double constant, const Source& source) {
    begin = clamp_int(static_cast<int>(std::ceil(-constant - 0.5)), 0, size);
    while (begin > 0 && source(begin - 1) >= 0) begin--;
    while (begin < size && source(begin) < 0) begin++;
    end = clamp_int(static_cast<int>(std::ceil(size - constant - 0.5)), begin, size);
    while (end > begin && source(end - 1) >= size) end--;
    while (end < size && source(end) < size) end++;
    int middle = (begin + end) / 2;
    double position = source(middle) - 0.5, whole = std::floor(position);
    offset = static_cast<int>(whole) - middle - 1;
    cubic_weights(position - whole, weights);
  }
};

// One line of pixels through a LineShift, by Pillow's truncation. Fixed point is off by less than kNear, which matters
// where the true result lies next to a whole number: there Pillow's own double arithmetic decides.
template <class Source>
void shift_line(const Kernels& kernels, const LineShift& line, const uint8_t* const rows[kTapsPx], int bytes,
                const Source& source_of_byte, uint8_t* scratch, uint8_t* out) {
  constexpr int32_t kNear = 1024;  // 255 times the error of the weights: half a unit each, two units in the largest
  Filters filters;
  filters.reset(1, kTapsPx);
  filters.set(0, 0, line.weights, kTapsPx);
  kernels.filter_rows(rows, filters.at(0), bytes, -kNear, scratch);
  kernels.filter_rows(rows, filters.at(0), bytes, kNear, out);
  if (std::memcmp(scratch, out, bytes) == 0) return;
  for (int i = 0; i < bytes; i++) {
    if (scratch[i] == out[i]) continue;
    const int before = rows[0][i], start = rows[1][i], end = rows[2][i], after = rows[3][i];
    if (before == start && start == end && end == after) {
      out[i] = static_cast<uint8_t>(start);
    } else {
      out[i] = shifted_byte(before, start, end, after, source_of_byte(i) - 0.5);
    }
  }
}

}  // namespace

void Augmenter::geometry(int operation, double argument) {
  const int size = spec_.size;
  const Affine map = affine_of(operation, argument, size);
  if (spec_.bilinear) {
    uint8_t* out = target();
    for (int y = 0; y < size; y++)
      for (int x = 0; x < size; x++, out += kChannels) bilinear_pixel(pixels(), size, map, x, y, out);
    return swap();
  }
  switch (operation) {
    case kShearX:
    case kTranslateX:
      return shift_rows(map.xy, map.x0);
    case kShearY:
      transpose();
      shift_rows(map.yx, map.y0);
      return transpose();
    case kTranslateY:
      return shift_columns(map.y0);
    default:
      kernels_->warp(pixels(), size, map, kFill, target());
      return swap();
  }
}

// Each row is one filter of four taps: that of a row shifted by shear * (y + 0.5) + shift.
void Augmenter::shift_rows(double shear, double shift) {
  const int size = spec_.size, stride = size * kChannels, pad = 2;
  padded_.resize((2 * size + 2 * pad) * kChannels);
  uint8_t* scratch = padded_.data() + (size + 2 * pad) * kChannels;
  for (int y = 0; y < size; y++) {
    const auto source = [&](int x) { return (x + 0.5) + shear * (y + 0.5) + shift; };
    const LineShift line(size, shear * (y + 0.5) + shift, source);
    uint8_t* out = target() + y * stride;
    fill_row(out, 0, line.begin);
    fill_row(out, line.end, size);
    if (line.end == line.begin) continue;
    pad_row(pixels() + y * stride, size, pad, padded_.data());
    const uint8_t* rows[kTapsPx];
    for (int k = 0; k < kTapsPx; k++) rows[k] = padded_.data() + (pad + line.begin + line.offset + k) * kChannels;
    shift_line(
        *kernels_, line, rows, (line.end - line.begin) * kChannels,
        [&](int i) { return source(line.begin + i / kChannels); }, scratch, out + line.begin * kChannels);
  }
  swap();
}

void Augmenter::shift_columns(double shift) {
  const int size = spec_.size, stride = size * kChannels;
  padded_.resize(stride);
  const auto source = [&](int y) { return (y + 0.5) + shift; };
  const LineShift line(size, shift, source);
  for (int y = 0; y < size; y++) {
    uint8_t* out = target() + y * stride;
    if (y < line.begin || y >= line.end) {
      fill_row(out, 0, size);
      continue;
    }
    const uint8_t* rows[kTapsPx];
    for (int k = 0; k < kTapsPx; k++) rows[k] = pixels() + clamp_int(y + line.offset + k, 0, size - 1) * stride;
    shift_line(*kernels_, line, rows, stride, [&](int) { return source(y); }, padded_.data(), out);
  }
  swap();
}

void Augmenter::transpose() {
  const int size = spec_.size;
  for (int top = 0; top < size; top += kTransposeBlock)
    for (int left = 0; left < size; left += kTransposeBlock)
      for (int y = top; y < size && y < top + kTransposeBlock; y++)
        for (int x = left; x < size && x < left + kTransposeBlock; x++)
          std::memcpy(target() + (x * size + y) * kChannels, pixels() + (y * size + x) * kChannels, kChannels);
  swap();
}

// Pillow's: a box three times along rows, then three times along columns, bytes in between.
void Augmenter::blur(float standard_deviation) {
  const int size = spec_.size, stride = size * kChannels;
  const BlurBox box = blur_box(standard_deviation);
  const int reach = box.radius + 1, taps = 2 * reach + 1;
  padded_.resize((size + 2 * reach) * kChannels);
  std::vector<const uint8_t*> rows(taps);
  for (int y = 0; y < size; y++) {
    uint8_t* row = pixels() + y * stride;
    for (int pass = 0; pass < 3; pass++) {
      pad_row(row, size, reach, padded_.data());
      for (int k = 0; k < taps; k++) rows[k] = padded_.data() + k * kChannels;
      kernels_->box_rows(rows.data(), box, stride, row);
    }
  }
  for (int pass = 0; pass < 3; pass++) {
    for (int y = 0; y < size; y++) {
      for (int k = 0; k < taps; k++) rows[k] = pixels() + clamp_int(y + k - reach, 0, size - 1) * stride;
      kernels_->box_rows(rows.data(), box, stride, target() + y * stride);
    }
    swap();
  }
}

}  // namespace deit_fast
