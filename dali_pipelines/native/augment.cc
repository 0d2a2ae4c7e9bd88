#include "augment.h"

#include <cstring>

namespace deit_fast {

namespace {

int bytes_of(OutputType type) { return type == OutputType::kUint8 ? 1 : type == OutputType::kFloat32 ? 4 : 2; }

template <class T>
void to_planes(const T* interleaved, int count_px, T* planes) {
  for (int c = 0; c < kChannels; c++)
    for (int i = 0; i < count_px; i++) planes[c * count_px + i] = interleaved[i * kChannels + c];
}

void to_planes(const void* interleaved, int count_px, OutputType type, void* planes) {
  switch (bytes_of(type)) {
    case 1:
      return to_planes(static_cast<const uint8_t*>(interleaved), count_px, static_cast<uint8_t*>(planes));
    case 2:
      return to_planes(static_cast<const uint16_t*>(interleaved), count_px, static_cast<uint16_t*>(planes));
    default:
      return to_planes(static_cast<const uint32_t*>(interleaved), count_px, static_cast<uint32_t*>(planes));
  }
}

}  // namespace

void Augmenter::run(const Kernels& kernels, const AugmentSpec& spec, const uint8_t* image, const int32_t* operations,
                    const double* arguments, int operation_count, const std::vector<EraseRectangle>& rectangles,
                    void* out) {
  kernels_ = &kernels;
  spec_ = spec;
  pending_ = false;
  const int count_px = spec.size * spec.size, bytes = count_px * kChannels;
  for (auto& buffer : images_) buffer.resize(bytes + kSlackBytes);
  bool copied = false;
  for (int k = 0; k < operation_count; k++) {
    if (operations[k] == kNone) continue;
    if (!copied) std::memcpy(pixels(), image, bytes);
    copied = true;
    apply(operations[k], arguments[k]);
  }
  flush();
  void* interleaved = out;
  if (spec.planar) {
    interleaved_.resize(static_cast<size_t>(bytes) * bytes_of(spec.type));
    interleaved = interleaved_.data();
  }
  kernels.normalize(copied ? pixels() : image, count_px, spec.scale, spec.shift, spec.type, interleaved);
  for (const auto& rectangle : rectangles) erase(rectangle, interleaved);
  if (spec.planar) to_planes(interleaved, count_px, spec.type, out);
}

void Augmenter::apply(int operation, double argument) {
  const int count_px = spec_.size * spec_.size;
  uint8_t table[3][256];
  switch (operation) {
    case kInvert:
    case kPosterize:
    case kSolarize:
    case kSolarizeAdd:
    case kBrightness:
      for (auto& channel : table)
        for (int i = 0; i < 256; i++) channel[i] = map_byte(operation, argument, i);
      return compose(table);
    case kAutoContrast:
    case kEqualize: {
      uint32_t counts[3][256];
      histogram(counts);
      for (int c = 0; c < kChannels; c++) {
        int low = 0, high = 255;
        while (low < 255 && !counts[c][low]) low++;
        while (high > 0 && !counts[c][high]) high--;
        for (int i = 0; i < 256; i++) table[c][i] = stretch_byte(i, low, high);
        if (operation == kEqualize) equalize_table(counts[c], table[c]);
      }
      return compose(table);
    }
    case kContrast: {
      flush();
      int mean = mean_gray(kernels_->luma_sum(pixels(), count_px), count_px);
      for (auto& channel : table)
        for (int i = 0; i < 256; i++) channel[i] = blend_byte(mean, i, static_cast<float>(argument));
      return compose(table);
    }
    case kColor:
      flush();
      return kernels_->color(pixels(), count_px, static_cast<float>(argument));
    case kGrayscale:
      flush();
      return kernels_->color(pixels(), count_px, 0.f);
    case kSharpness:
      flush();
      kernels_->sharpen(pixels(), spec_.size, static_cast<float>(argument), target());
      return swap();
    case kGaussianBlur:
      flush();
      return blur(static_cast<float>(argument));
    default:
      flush();
      return geometry(operation, argument);
  }
}

void Augmenter::compose(const uint8_t (*table)[256]) {
  for (int c = 0; c < kChannels; c++)
    for (int i = 0; i < 256; i++) table_[c][i] = table[c][pending_ ? table_[c][i] : i];
  pending_ = true;
}

void Augmenter::flush() {
  if (pending_) kernels_->lookup(pixels(), spec_.size * spec_.size, table_);
  pending_ = false;
}

// Of the image as it is once the pending table is applied. Two sets of counts, since an increment waits for the one
// before it on the same value.
void Augmenter::histogram(uint32_t counts[3][256]) {
  uint32_t raw[2][3][256] = {};
  const uint8_t* p = pixels();
  const int count_px = spec_.size * spec_.size;
  for (int i = 0; i < count_px; i++, p += kChannels)
    for (int c = 0; c < kChannels; c++) raw[i & 1][c][p[c]]++;
  std::memset(counts, 0, sizeof(uint32_t) * 3 * 256);
  for (int c = 0; c < kChannels; c++)
    for (int i = 0; i < 256; i++) counts[c][pending_ ? table_[c][i] : i] += raw[0][c][i] + raw[1][c][i];
}

void Augmenter::erase(const EraseRectangle& rectangle, void* out) {
  const int values = rectangle.width * kChannels;
  for (int y = 0; y < rectangle.height; y++) {
    int at = ((rectangle.top + y) * spec_.size + rectangle.left) * kChannels;
    if (rectangle.content) {
      kernels_->store(rectangle.content + y * values, values, spec_.type, out, at);
    } else {
      for (int i = 0; i < values; i++) static_cast<uint8_t*>(out)[at + i] = spec_.erase_color[i % kChannels];
    }
  }
}

}  // namespace deit_fast
