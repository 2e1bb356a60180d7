# syntax=docker/dockerfile:1
# The package with everything that serving needs. Two images from one file:
#
#   docker build --target cpu -t videollama2:cpu .
#   docker build --target cuda -t videollama2:cuda .     # needs the NVIDIA container toolkit where it runs
#
#   docker run --rm -v "$PWD":/data videollama2:cpu ask /data/clip.mp4 "What happens?" --model-path videollama2-tiny
#
# Models of the Hugging Face hub are kept in the volume /models.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models
# OpenMP, which torch and bitsandbytes load; FFmpeg comes inside the wheel of PyAV.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home videollama2 \
    && install --directory --owner=videollama2 /models /data

FROM base AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM base AS cpu
# The same version from the index of CPU builds: the usual one would bring gigabytes of CUDA.
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/*.whl) && pip install "${wheel}[serve,eval,structured,completion]"
USER videollama2
WORKDIR /data
VOLUME /models
ENTRYPOINT ["videollama2"]
CMD ["doctor"]

FROM base AS cuda
RUN pip install torch==2.13.0
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    wheel=$(ls /wheels/*.whl) && pip install "${wheel}[serve,eval,structured,completion,quant]"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER videollama2
WORKDIR /data
VOLUME /models
ENTRYPOINT ["videollama2"]
CMD ["doctor"]
