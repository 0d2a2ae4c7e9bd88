// Loops that the compiler vectorises for each level; included by kernels_*.cc within a namespace of its own.
//
// A level first defines halves_of(values, out, count) and warp_inner(corner, stride, dx, dy, dst): the pixel whose 4 x
// 4 taps start at corner, where 16 bytes of each of the four rows can be read. Nothing here may instantiate a library
// template: its copy compiled for AVX-512 could end up serving all levels.

constexpr int kNormalizeBlock = 48;  // bytes: whole pixels, and whole vectors of 16

static void store(const float* values, int count, OutputType type, void* out, int at) {
  if (type == OutputType::kFloat32) {
    __builtin_memcpy(static_cast<float*>(out) + at, values, count * sizeof(float));
  } else if (type == OutputType::kFloat16) {
    halves_of(values, static_cast<uint16_t*>(out) + at, count);
  } else {
    uint16_t* target = static_cast<uint16_t*>(out) + at;
    for (int i = 0; i < count; i++) target[i] = to_bfloat16(values[i]);
  }
}

static void normalize(const uint8_t* pixels, int count_px, const float scale[3], const float shift[3], OutputType type,
                      void* out) {
  int bytes = count_px * kChannels;
  if (type == OutputType::kUint8) {
    __builtin_memcpy(out, pixels, bytes);
    return;
  }
  float scales[kNormalizeBlock], shifts[kNormalizeBlock], values[kNormalizeBlock];
  for (int i = 0; i < kNormalizeBlock; i++) scales[i] = scale[i % 3], shifts[i] = shift[i % 3];
  int at = 0;
  for (; at + kNormalizeBlock <= bytes; at += kNormalizeBlock) {
    for (int i = 0; i < kNormalizeBlock; i++) values[i] = static_cast<float>(pixels[at + i]) * scales[i] + shifts[i];
    store(values, kNormalizeBlock, type, out, at);
  }
  for (int i = 0; i < bytes - at; i++) values[i] = static_cast<float>(pixels[at + i]) * scales[i] + shifts[i];
  store(values, bytes - at, type, out, at);
}

static void color(uint8_t* pixels, int count_px, float factor) {
  for (int i = 0; i < count_px; i++) {
    uint8_t* p = pixels + i * kChannels;
    int gray = luma(p[0], p[1], p[2]);
    for (int c = 0; c < kChannels; c++) p[c] = blend_byte(gray, p[c], factor);
  }
}

static uint64_t luma_sum(const uint8_t* pixels, int count_px) {
  uint32_t sum = 0;  // enough for 16 million pixels
  for (int i = 0; i < count_px; i++) {
    const uint8_t* p = pixels + i * kChannels;
    sum += static_cast<uint32_t>(luma(p[0], p[1], p[2]));
  }
  return sum;
}

static void sharpen(const uint8_t* src, int size, float factor, uint8_t* dst) {
  const int stride = size * kChannels;
  __builtin_memcpy(dst, src, static_cast<size_t>(stride) * size);
  for (int y = 1; y < size - 1; y++) {
    const uint8_t *middle = src + y * stride, *above = middle - stride, *below = middle + stride;
    uint8_t* target = dst + y * stride;
    for (int i = kChannels; i < stride - kChannels; i++) {
      int sum = above[i - 3] + above[i] + above[i + 3] + middle[i - 3] + 5 * middle[i] + middle[i + 3] + below[i - 3] +
                below[i] + below[i + 3];
      target[i] = blend_byte(smooth_byte(sum), middle[i], factor);
    }
  }
}

static void box_rows(const uint8_t* const* rows, const BlurBox& box, int bytes, uint8_t* dst) {
  constexpr int kBlock = 64;
  const int last = 2 * box.radius + 2;
  for (int i = 0; i < bytes; i += kBlock) {
    const int count = clamp_int(bytes - i, 0, kBlock);
    uint16_t inner[kBlock] = {};  // enough for a radius of 128
    for (int k = 1; k < last; k++) {
      const uint8_t* row = rows[k] + i;
      if (count == kBlock) {
        for (int j = 0; j < kBlock; j++) inner[j] = static_cast<uint16_t>(inner[j] + row[j]);
      } else {
        for (int j = 0; j < count; j++) inner[j] = static_cast<uint16_t>(inner[j] + row[j]);
      }
    }
    const uint8_t *first = rows[0] + i, *end = rows[last] + i;
    for (int j = 0; j < count; j++) dst[i + j] = box_byte(inner[j], static_cast<uint32_t>(first[j]) + end[j], box);
  }
}

// Positions of a run of pixels come first, in loops of their own: mixed with the taps, conversions between registers of
// double and float tie each pixel to the one before it (1.0 ms an image in place of 0.5).
static void warp(const uint8_t* src, int size, const Affine& affine, const uint8_t fill[3], uint8_t* dst) {
  constexpr int kRun = 64;
  const Affine map = affine;
  const int stride = size * kChannels;
  int32_t corners[kRun];
  float dx[kRun], dy[kRun];
  for (int y = 0; y < size; y++) {
    for (int begin = 0; begin < size; begin += kRun) {
      const int count = clamp_int(size - begin, 0, kRun);
      for (int i = 0; i < count; i++) {
        const double source_x = map.source_x(begin + i, y) - 0.5, source_y = map.source_y(begin + i, y) - 0.5;
        const int left = static_cast<int>(source_x), top = static_cast<int>(source_y);
        const bool inner = source_x >= 1 && source_y >= 1 && source_x < size - 2 && source_y < size - 2;
        dx[i] = static_cast<float>(source_x - left);
        dy[i] = static_cast<float>(source_y - top);
        corners[i] = inner ? (top - 1) * stride + (left - 1) * kChannels : -1;
      }
      for (int i = 0; i < count; i++, dst += kChannels) {
        if (corners[i] >= 0) {
          warp_inner(src + corners[i], stride, dx[i], dy[i], dst);
        } else {
          for (int c = 0; c < kChannels; c++) dst[c] = sample_byte(src, size, map, begin + i, y, c, fill[c]);
        }
      }
    }
  }
}

static inline uint8_t weighted_byte(int32_t sum) { return clip_byte(sum >> kWeightBits); }

[[maybe_unused]] static void filter_columns_plain(const uint8_t* src, ptrdiff_t src_stride, int width_px, int rows,
                                                  const Filters& filters, int origin, uint8_t* dst,
                                                  ptrdiff_t dst_stride) {
  for (int y = 0; y < rows; y++) {
    for (int x = 0; x < filters.outputs(); x++) {
      Taps taps = filters.at(x);
      int start = taps.start - origin, count = clamp_int(width_px - start, 0, taps.count);
      const uint8_t* p = src + y * src_stride + start * kChannels;
      int32_t sums[3] = {kWeightOne / 2, kWeightOne / 2, kWeightOne / 2};
      for (int k = 0; k < count; k++)
        for (int c = 0; c < kChannels; c++) sums[c] += taps.weights[k] * p[k * kChannels + c];
      for (int c = 0; c < kChannels; c++) dst[y * dst_stride + x * kChannels + c] = weighted_byte(sums[c]);
    }
  }
}

[[maybe_unused]] static void filter_rows_plain(const uint8_t* const* rows, const Taps& taps, int begin, int bytes,
                                               int32_t bias, uint8_t* dst) {
  for (int i = begin; i < bytes; i++) {
    int32_t sum = bias;
    for (int k = 0; k < taps.count; k++) sum += taps.weights[k] * rows[k][i];
    dst[i] = weighted_byte(sum);
  }
}

[[maybe_unused]] static void lookup_plain(uint8_t* pixels, int begin_px, int count_px, const uint8_t table[3][256]) {
  for (int i = begin_px * kChannels; i < count_px * kChannels; i += kChannels)
    for (int c = 0; c < kChannels; c++) pixels[i + c] = table[c][pixels[i + c]];
}
