// Decoding a part of a JPEG with libjpeg-turbo: the library is looked for at run time, its header at build time.
#pragma once

#include <string>
#include <vector>

#include "resize.h"

namespace deit_fast {

// Whether this build can decode at all, once a library is loaded.
bool jpeg_supported();

// Loads a libjpeg-turbo of ABI 62 and checks that it fits the header; returns what is wrong with it, or "".
std::string load_jpeg_library(const char* path);
bool jpeg_library_loaded();

// Whether these bytes are a whole JPEG of the common kind: grey or three channels, 8 bits, Huffman-coded, with an end.
// Everything else is left to DALI's decoder.
bool is_plain_jpeg(const uint8_t* bytes, size_t size);

// Holds a thread's decoder and pixels.
class JpegDecoder {
 public:
  JpegDecoder();
  ~JpegDecoder();
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  bool usable() const;  // a library is loaded and fits
  // Reads the header. std::runtime_error with libjpeg's message for bytes that are no image; the same from decode.
  void open(const uint8_t* bytes, size_t size);
  int height() const;
  int width() const;
  // Decodes at least `needed` as Pillow would: RGB, slow-but-accurate IDCT, smooth chroma.
  void decode(const Rectangle& needed);

  const Rectangle& held() const { return held_; }
  const uint8_t* pixels() const { return pixels_.data(); }
  ptrdiff_t stride() const { return static_cast<ptrdiff_t>(held_.width) * kChannels; }

 private:
  struct State;
  State* state_;
  Rectangle held_{};
  std::vector<uint8_t> pixels_;
};

}  // namespace deit_fast
