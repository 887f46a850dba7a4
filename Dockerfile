# stllava on a CPU or, with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128, on CUDA (run with --gpus all).
#
#   docker build -t stllava .
#   docker run --rm -v "$PWD:/work" stllava demo
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-deps --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=dicom,nifti,ocr,hub,track
# The libraries that OpenCV, which finds text in pictures, is linked with, as the base image's Debian has them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
# The newest that pyproject.toml allows, as users get it who install without our constraints.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN wheel="$(ls /wheels/stllava-*.whl)" \
    && pip install --no-cache-dir "${wheel}[${EXTRAS}]" \
    && rm -r /wheels
# Results belong to whoever mounts the folder: docker run --user "$(id -u):$(id -g)".
RUN useradd --create-home stllava
USER stllava
WORKDIR /work
# A user of whom the image knows a number alone needs a name in the environment: torch asks for one (pytorch/pytorch#140765).
ENV HF_HOME=/work/.cache/huggingface USER=stllava
ENTRYPOINT ["stllava"]
CMD ["--help"]
