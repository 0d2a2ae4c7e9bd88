# deit_fast on NVIDIA's PyTorch container, which brings torch, DALI and apex built for each other and for its CUDA.
#   docker build -t deit_fast .
#   docker run --gpus all --ipc=host --ulimit nofile=65536 -v /imagenet:/imagenet:ro -v $PWD/runs:/workspace/runs deit_fast \
#       torchrun --nproc-per-node 8 -m deit_fast train --config deit_base_distilled --data.path /imagenet
# Not built by this project's tests, which have no GPU and no container registry: see docs/gpu.md.
ARG PYTORCH_IMAGE=nvcr.io/nvidia/pytorch:25.10-py3
FROM ${PYTORCH_IMAGE}
WORKDIR /workspace
COPY setup.py pyproject.toml README.md LICENSE ./
COPY deit_fast deit_fast
COPY dali_pipelines dali_pipelines
COPY kernels kernels
COPY benchmarks benchmarks
# Without a DALI extra: the container has DALI. Its constraints keep pip from replacing its torch by another.
RUN pip install --no-cache-dir --no-build-isolation .
ENV OMP_NUM_THREADS=1
CMD ["deit-fast", "--help"]
