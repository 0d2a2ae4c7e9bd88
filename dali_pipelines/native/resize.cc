#include "resize.h"

#include <algorithm>
#include <cstring>

namespace deit_fast {

namespace {

constexpr int kRowBlock = 4;  // the kernels' widest step through rows

int round_up(int value, int step) { return (value + step - 1) / step * step; }

}  // namespace

void Resizer::plan(const ResizeSpec& spec) {
  size_ = spec.size;
  rows_first_ = rows_come_first(spec.in_height, spec.in_width, spec.out_height, spec.out_width);
  pillow_filters(spec.in_width, spec.out_width, spec.left, spec.size, spec.flip, spec.interpolation, &columns_);
  pillow_filters(spec.in_height, spec.out_height, spec.top, spec.size, false, spec.interpolation, &rows_);
  narrow_stride_ = round_up(size_ * kChannels + 1, 64);
}

Rectangle Resizer::needed() const {
  return {rows_.first(), columns_.first(), rows_.end() - rows_.first(), columns_.end() - columns_.first()};
}

void Resizer::run(const Kernels& kernels, const uint8_t* pixels, ptrdiff_t stride, const Rectangle& held,
                  uint8_t* out) {
  const int row_bytes = size_ * kChannels, first = rows_.first(), held_end = held.top + held.height;
  const uint8_t* top = pixels + (first - held.top) * stride;
  if (!rows_first_) {
    const int count = rows_.end() - first;
    filter_columns(kernels, top, stride, held.width, held.left, count, held_end - first);
    return filter_rows(kernels, narrow_.data(), narrow_stride_, first, rows_.end(), row_bytes, out, row_bytes);
  }
  const Rectangle part = needed();
  const ptrdiff_t low_stride = part.width * kChannels;
  low_.resize(size_ * low_stride);
  filter_rows(kernels, top + (part.left - held.left) * kChannels, stride, first, held_end, part.width * kChannels,
              low_.data(), low_stride);
  filter_columns(kernels, low_.data(), low_stride, part.width, part.left, size_, size_);
  for (int y = 0; y < size_; y++) std::memcpy(out + y * row_bytes, narrow_.data() + y * narrow_stride_, row_bytes);
}

void Resizer::filter_rows(const Kernels& kernels, const uint8_t* pixels, ptrdiff_t stride, int first, int held_end,
                          int bytes, uint8_t* dst, ptrdiff_t dst_stride) {
  for (int y = 0; y < size_; y++) {
    const Taps taps = rows_.at(y);
    pointers_.resize(taps.count);
    for (int k = 0; k < taps.count; k++)  // what lies beyond the last row has weight 0
      pointers_[k] = pixels + (std::min(taps.start + k, held_end - 1) - first) * stride;
    kernels.filter_rows(pointers_.data(), taps, bytes, kWeightOne / 2, dst + y * dst_stride);
  }
}

// Kernels take whole blocks of rows, and read up to kSlackBytes behind a row's last filter: the last rows, behind which
// nothing may be there to read, and those that do not fill a block go through a copy.
void Resizer::filter_columns(const Kernels& kernels, const uint8_t* pixels, ptrdiff_t stride, int width, int origin,
                             int count, int held_end) {
  const int row_bytes = width * kChannels, unsafe = static_cast<int>((kSlackBytes + stride - 1) / stride);
  narrow_.resize((count + 2 * kRowBlock) * narrow_stride_);
  const int safe = std::max(0, std::min(count, held_end - unsafe)) / kRowBlock * kRowBlock;
  kernels.filter_columns(pixels, stride, width, safe, columns_, origin, narrow_.data(), narrow_stride_);

  const ptrdiff_t tail_stride = row_bytes + kSlackBytes;
  const int tail_rows = round_up(count - safe, kRowBlock);
  tail_.resize(tail_rows * tail_stride);
  for (int y = safe; y < count; y++)
    std::memcpy(tail_.data() + (y - safe) * tail_stride, pixels + y * stride, row_bytes);
  kernels.filter_columns(tail_.data(), tail_stride, width, tail_rows, columns_, origin,
                         narrow_.data() + safe * narrow_stride_, narrow_stride_);
}

}  // namespace deit_fast
