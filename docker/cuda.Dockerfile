# torchdock: PyTorch with CUDA from the wheels, pinned to the hash.
#
#   base ──> system ──> uv
#               │        ┊ (bind-mounted into each step that installs wheels, never copied)
#               └──> cuda ──> torch ──> tools ──> environment
#
# A layer per rate of change: a changed tool rebuilds the tools, a changed test the last layer alone.
# Plain Docker builds it, with no arguments:  docker build -f docker/cuda.Dockerfile .
# `invoke build` runs the same build and adds what it knows of this host: the private CA and where the base comes from.

# Pinned to the digest. Where no registry can be reached, `invoke build` passes a base made from Debian packages.
ARG BASE=docker.io/library/debian:trixie-20261005-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f

FROM ${BASE} AS system
# The day of the base: the time stamp of every file that a build writes, so that two builds can be equal.
ARG SOURCE_DATE_EPOCH=1791158400
# apt's caches and logs live in tmpfs: nothing of them lands in the layer, and nothing has to be deleted from the base.
RUN --mount=type=bind,source=docker/layers/system.sh,target=/run/system.sh \
    --mount=type=bind,source=docker/layers/packages.txt,target=/run/packages.txt \
    --mount=type=secret,id=ca \
    --mount=type=tmpfs,target=/var/cache --mount=type=tmpfs,target=/var/log \
    --mount=type=tmpfs,target=/var/lib/apt/lists --mount=type=tmpfs,target=/tmp \
    sh /run/system.sh /run/packages.txt

FROM system AS uv
# uv comes from PyPI by hash, through the same index, proxy and CA as everything else: no second registry to reach.
RUN --mount=type=bind,source=docker/locks/uv.txt,target=/run/uv.txt \
    --mount=type=secret,id=ca \
    --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/root/.cache \
    set -eu; if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m venv /tmp/pip && /tmp/pip/bin/pip install --quiet --disable-pip-version-check \
        --require-hashes --only-binary :all: --no-deps --no-compile --target /uv -r /run/uv.txt

FROM system AS cuda
ARG SOURCE_DATE_EPOCH=1791158400
# CUDA, cuDNN and NCCL as NVIDIA's wheels: 3 GB that change only when torch's CUDA does.
RUN --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/locks/cu130/cuda.txt,target=/run/lock.txt \
    --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=secret,id=ca --mount=type=tmpfs,target=/tmp \
    sh /run/wheels.sh /run/lock.txt

FROM cuda AS torch
ARG SOURCE_DATE_EPOCH=1791158400
# torch, torchvision and triton are released together, so they share a layer.
RUN --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/locks/cu130/torch.txt,target=/run/lock.txt \
    --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=secret,id=ca --mount=type=tmpfs,target=/tmp \
    sh /run/wheels.sh /run/lock.txt

FROM torch AS tools
ARG SOURCE_DATE_EPOCH=1791158400
# Everything else, your packages included: small, and the only wheel layer that changes from week to week.
RUN --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/locks/cu130/tools.txt,target=/run/lock.txt \
    --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=secret,id=ca --mount=type=tmpfs,target=/tmp \
    sh /run/wheels.sh /run/lock.txt

FROM tools AS environment
ARG SOURCE_DATE_EPOCH=1791158400
# The validation suite travels with the environment, so that it can prove itself wherever it is taken.
# RUN and not COPY: file modes and times of a clone differ from machine to machine, this layer must not.
RUN --mount=type=bind,source=docker,target=/run/clone/docker \
    --mount=type=bind,source=src/torchdock,target=/run/clone/src/torchdock \
    --mount=type=bind,source=tests/container,target=/run/clone/tests/container \
    sh /run/clone/docker/layers/suite.sh /run/clone cu130
# Constants of the lock only: where the bits came from on a given day belongs to the build record, not here.
LABEL dev.torchdock.variant="cu130"
# The environment is on for every process of the container, not only for login shells.
# NVIDIA_VISIBLE_DEVICES stays unset: which GPUs a container sees is decided at launch, never in the image.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    VIRTUAL_ENV=/opt/venv \
    LANG=C.UTF-8 \
    TORCHDOCK_VARIANT=cu130 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_DEVICE_ORDER=PCI_BUS_ID \
    XDG_CACHE_HOME=/cache \
    TORCH_HOME=/cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/nv \
    HF_HOME=/cache/huggingface \
    IPYTHONDIR=/cache/ipython
WORKDIR /workspace
# tini reaps orphans and hands signals on; the entrypoint gives the caller's UID a name, a HOME and a thread count.
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/torchdock/docker/entrypoint.sh"]
CMD ["bash"]
