// Broken JPEGs through everything that touches a file's bytes: header, region decode, resize, augmentation, on each
// SIMD level.
//
//   fuzz LIBJPEG COUNT SEED THREADS MUTATE FILE...
//
// Real files are mutated (MUTATE 1) or taken as they are (0, for leaks). Prints what became of them, and the resident
// memory after a tenth of the images and at the end, in KiB. fuzz.py builds it with sanitizers, which stop it at the
// first finding.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <thread>

#include "augment.h"
#include "crop.h"
#include "jpeg.h"

using namespace deit_fast;

namespace {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937_64;

constexpr int kSize = 64;
constexpr int64_t kMostPixels = 1 << 24;  // a mutated header may announce anything: time is for variety, not for size

std::atomic<long> refused{0}, failed{0}, decoded{0}, done{0};

size_t below(Random& random, size_t end) { return end ? random() % end : 0; }

// One of: bits flipped anywhere, in the headers, cut off, a piece removed, doubled or filled.
Bytes mutated(Bytes bytes, Random& random) {
  const size_t rounds = 1 + below(random, 8);
  for (size_t k = 0; k < rounds && bytes.size() > 16; k++) {
    const size_t at = below(random, bytes.size()), length = below(random, std::min<size_t>(bytes.size() - at, 400));
    switch (below(random, 7)) {
      case 0:
        bytes[at] ^= 1 << below(random, 8);
        break;
      case 1:
      case 2:
        bytes[below(random, std::min<size_t>(bytes.size(), 700))] = static_cast<uint8_t>(random());
        break;
      case 3:
        bytes.resize(std::max<size_t>(at, 4));
        break;
      case 4:
        bytes.erase(bytes.begin() + at, bytes.begin() + at + length);
        break;
      case 5: {
        const Bytes piece(bytes.begin() + at, bytes.begin() + at + length);
        bytes.insert(bytes.begin() + below(random, bytes.size()), piece.begin(), piece.end());
        break;
      }
      default:
        std::fill_n(bytes.begin() + at, length, static_cast<uint8_t>(random()));
    }
  }
  if (below(random, 2)) bytes.insert(bytes.end(), {0xff, 0xd9});  // past the look-out for files cut short
  return bytes;
}

struct Worker {
  JpegDecoder decoder;
  Resizer resizer;
  Augmenter augmenter;

  void run(const Bytes& bytes, Random& random) {
    if (!is_plain_jpeg(bytes.data(), bytes.size())) {
      refused++;
      return;
    }
    try {
      decoder.open(bytes.data(), bytes.size());
      const int height = decoder.height(), width = decoder.width();
      if (static_cast<int64_t>(height) * width > kMostPixels) throw std::runtime_error("large");
      float draws[2 * kAttempts + 2];
      for (auto& draw : draws) draw = 0.2f + 0.7f * static_cast<float>(random() >> 40) / (1 << 24);
      const Rectangle box = random_crop({draws, draws + kAttempts, draws + 2 * kAttempts}, height, width);
      resizer.plan({box.height, box.width, kSize, kSize, 0, 0, kSize, below(random, 2) == 1, Interpolation::kCubic});
      const Rectangle part = resizer.needed();
      decoder.decode({box.top + part.top, box.left + part.left, part.height, part.width});
      const Rectangle& held = decoder.held();
      augment(random, {held.top - box.top, held.left - box.left, held.height, held.width});
      decoded++;
    } catch (const std::runtime_error&) {
      failed++;
    }
  }

  void augment(Random& random, const Rectangle& held) {
    const Kernels& kernels = *level(static_cast<int>(below(random, level_count())));
    Bytes image(kSize * kSize * kChannels);  // as large as it must be: one byte too far is seen
    resizer.run(kernels, decoder.pixels(), decoder.stride(), held, image.data());
    const AugmentSpec spec{kSize,
                           below(random, 8) == 0,
                           below(random, 2) == 1,
                           static_cast<OutputType>(below(random, 4)),
                           {1, 1, 1},
                           {0, 0, 0},
                           {1, 2, 3}};
    const int width = spec.type == OutputType::kUint8 ? 1 : spec.type == OutputType::kFloat32 ? 4 : 2;
    const int32_t operations[2] = {static_cast<int32_t>(below(random, kOperationCount)),
                                   static_cast<int32_t>(below(random, kOperationCount))};
    double arguments[2];
    for (auto& argument : arguments) argument = static_cast<double>(random() >> 40) / (1 << 23) - 0.1;
    Bytes out(image.size() * width);
    augmenter.run(kernels, spec, image.data(), operations, arguments, 2, {}, out.data());
  }
};

long resident_kib() {
  std::ifstream file("/proc/self/statm");
  long total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  const std::string error = load_jpeg_library(argv[1]);
  if (!error.empty()) {
    std::fprintf(stderr, "%s: %s\n", argv[1], error.c_str());
    return 2;
  }
  const long count = std::atol(argv[2]), seed = std::atol(argv[3]), threads = std::atol(argv[4]);
  const bool mutate = std::atol(argv[5]) != 0;
  std::vector<Bytes> files;
  for (int i = 6; i < argc; i++) {
    std::ifstream file(argv[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  std::atomic<long> early{0};
  std::vector<std::thread> pool;
  for (long t = 0; t < threads; t++) {
    pool.emplace_back([&, t] {
      Worker worker;
      for (long i = t; i < count; i += threads) {
        Random random(seed * 1000003 + i);
        const Bytes& file = files[below(random, files.size())];
        worker.run(mutate ? mutated(file, random) : file, random);
        if (++done == count / 10) early = resident_kib();
      }
    });
  }
  for (auto& thread : pool) thread.join();
  std::printf("images %ld refused %ld failed %ld decoded %ld resident_early_kib %ld resident_kib %ld\n", count,
              refused.load(), failed.load(), decoded.load(), early.load(), resident_kib());
}
