// fn.deit_fast.is_plain_jpeg and fn.deit_fast.crop, CPU.
#include <map>

#include "crop.h"
#include "jpeg.h"
#include "operator_parts.h"

namespace deit_fast {

class IsPlainJpeg : public CpuOperator {
 public:
  explicit IsPlainJpeg(const OpSpec& spec) : CpuOperator(spec) {}

 protected:
  bool SetupImpl(std::vector<OutputDesc>& outputs, const Workspace& ws) override {
    const int batch = ws.Input<dali::CPUBackend>(0).num_samples();
    outputs = {{dali::uniform_list_shape(batch, dali::TensorShape<0>()), DALI_BOOL}};
    return true;
  }

  void RunImpl(Workspace& ws) override {
    const auto& encoded = ws.Input<dali::CPUBackend>(0);
    auto& out = ws.Output<dali::CPUBackend>(0);
    for (int i = 0; i < encoded.num_samples(); i++)
      *out.mutable_tensor<bool>(i) = is_plain_jpeg(encoded.tensor<uint8_t>(i), encoded.tensor_shape(i).num_elements());
  }
};

class Crop : public CpuOperator {
 public:
  explicit Crop(const OpSpec& spec)
      : CpuOperator(spec),
        kernels_(kernels_of(spec)),
        size_(spec.GetArgument<int>("size")),
        shorter_(spec.GetArgument<int>("shorter")),
        mode_(spec.GetArgument<std::string>("mode")),
        shared_(spec.GetArgument<bool>("shared")) {
    DALI_ENFORCE(mode_ == "random" || mode_ == "simple" || mode_ == "center", "unknown mode " + mode_);
    const int inputs = 1 + (mode_ == "random" ? 4 : mode_ == "simple" ? 2 : 0) + shared_;
    DALI_ENFORCE(spec.NumRegularInput() == inputs, "mode " + mode_ + " takes " + std::to_string(inputs) + " inputs");
    DALI_ENFORCE(size_ > 0 && (mode_ != "center" || shorter_ > 0), "sizes are above 0");
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc>& outputs, const Workspace& ws) override {
    const auto& in = ws.Input<dali::CPUBackend>(0);
    DALI_ENFORCE(in.type() == DALI_UINT8, "takes bytes: files, or images HWC");
    const dali::TensorShape<3> shape(size_, size_, kChannels);
    outputs = {{dali::uniform_list_shape(in.num_samples(), shape), DALI_UINT8}};
    return true;
  }

  void RunImpl(Workspace& ws) override {
    auto& out = ws.Output<dali::CPUBackend>(0);
    out.SetLayout("HWC");
    auto& pool = ws.GetThreadPool();
    workers_.resize(pool.NumThreads());
    for (auto& [key, samples] : groups(ws)) {
      const int64_t cost = ws.Input<dali::CPUBackend>(0).tensor_shape(samples[0]).num_elements();
      pool.AddWork([&ws, this, samples = samples](int thread) { run(ws, samples, workers_[thread]); }, cost);
    }
    pool.RunAll();
  }

 private:
  struct Worker {
    JpegDecoder decoder;
    std::vector<Resizer> resizers;
    std::vector<Rectangle> boxes;
  };

  // Samples that show the same image, by what the last input says: they share its decoding.
  std::map<int, std::vector<int>> groups(const Workspace& ws) const {
    std::map<int, std::vector<int>> found;
    const int count = ws.Input<dali::CPUBackend>(0).num_samples(), last = ws.NumInput() - 1;
    for (int i = 0; i < count; i++) found[shared_ ? *data<int>(ws, last, i) : i].push_back(i);
    return found;
  }

  ResizeSpec plan(const Workspace& ws, int sample, int height, int width, Rectangle* box) const {
    *box = {0, 0, height, width};
    ResizeSpec spec;
    if (mode_ == "center") return center_crop(shorter_, size_, height, width);
    const auto* position = data<float>(ws, 1, sample);
    if (mode_ == "simple") {
      spec = simple_crop(position, size_, height, width);
    } else {
      *box = random_crop({data<float>(ws, 3, sample), data<float>(ws, 4, sample), position}, height, width);
      spec = {box->height, box->width, size_, size_, 0, 0, size_, false, Interpolation::kCubic};
    }
    spec.flip = *data<int>(ws, 2, sample) != 0;
    return spec;
  }

  void run(Workspace& ws, const std::vector<int>& samples, Worker& worker) const {
    const auto& in = ws.Input<dali::CPUBackend>(0);
    const auto shape = in.tensor_shape(samples[0]);
    const auto* bytes = in.tensor<uint8_t>(samples[0]);
    try {
      if (shape.sample_dim() == 3) {
        const int height = shape[0], width = shape[1];
        DALI_ENFORCE(shape[2] == kChannels, "takes images of three channels");
        const Rectangle whole = {0, 0, height, width};
        plan_all(ws, samples, height, width, worker);
        resize_all(ws, samples, worker, bytes, static_cast<ptrdiff_t>(width) * kChannels, whole);
      } else {
        auto& decoder = worker.decoder;
        decoder.open(bytes, shape.num_elements());
        decoder.decode(plan_all(ws, samples, decoder.height(), decoder.width(), worker));
        resize_all(ws, samples, worker, decoder.pixels(), decoder.stride(), decoder.held());
      }
    } catch (const std::exception& error) {
      DALI_FAIL("sample #" + std::to_string(samples[0]) + " cannot be decoded: " + error.what());
    }
  }

  // Plans each view of an image; returns what they need of it together.
  Rectangle plan_all(const Workspace& ws, const std::vector<int>& samples, int height, int width,
                     Worker& worker) const {
    worker.resizers.resize(std::max(worker.resizers.size(), samples.size()));
    worker.boxes.resize(samples.size());
    int top = height, left = width, bottom = 0, right = 0;
    for (size_t k = 0; k < samples.size(); k++) {
      Rectangle& box = worker.boxes[k];
      worker.resizers[k].plan(plan(ws, samples[k], height, width, &box));
      const Rectangle part = worker.resizers[k].needed();
      top = std::min(top, box.top + part.top);
      left = std::min(left, box.left + part.left);
      bottom = std::max(bottom, box.top + part.top + part.height);
      right = std::max(right, box.left + part.left + part.width);
    }
    return {top, left, bottom - top, right - left};
  }

  void resize_all(Workspace& ws, const std::vector<int>& samples, Worker& worker, const uint8_t* pixels,
                  ptrdiff_t stride, const Rectangle& held) const {
    auto& out = ws.Output<dali::CPUBackend>(0);
    for (size_t k = 0; k < samples.size(); k++) {
      const Rectangle& box = worker.boxes[k];  // the resize knows nothing of what is around the crop
      const Rectangle within = {held.top - box.top, held.left - box.left, held.height, held.width};
      worker.resizers[k].run(kernels_, pixels, stride, within, out.mutable_tensor<uint8_t>(samples[k]));
    }
  }

  const Kernels& kernels_;
  int size_, shorter_;
  std::string mode_;
  bool shared_;
  PerThread<Worker> workers_;
};

}  // namespace deit_fast

DALI_REGISTER_OPERATOR(deit_fast__IsPlainJpeg, ::deit_fast::IsPlainJpeg, ::dali::CPU);
DALI_SCHEMA(deit_fast__IsPlainJpeg)
    .DocStr("Whether the file's bytes are a JPEG that fn.deit_fast.crop decodes itself; bool.")
    .NumInput(1)
    .NumOutput(1);

DALI_REGISTER_OPERATOR(deit_fast__Crop, ::deit_fast::Crop, ::dali::CPU);
DALI_SCHEMA(deit_fast__Crop)
    .DocStr(R"(Crops, resizes as Pillow does (bicubic, antialiased) and mirrors: uint8 [size, size, 3].

Inputs: the file's bytes, or a decoded image HWC; then, but for mode center, position float32 [2] and flip int32; for
mode random the candidates' widths and heights, float32 [10] each; with `shared` last a number that views of one image
share.)")
    .NumInput(1, 6)
    .NumOutput(1)
    .AddArg("size", "Side of the result in pixels.", DALI_INT32)
    .AddArg("mode", "random: torchvision's RandomResizedCrop; simple: DeiT III's; center: validation.", DALI_STRING)
    .AddOptionalArg("shorter", "Mode center: what the shorter side becomes before the crop, in pixels.", 0)
    .AddOptionalArg("shared", "Views with the same number share one decoding.", false)
    .AddOptionalArg<std::string>("simd", "auto, portable, avx2 or avx512.", "auto");
