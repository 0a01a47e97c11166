# torchdock: PyTorch for CPUs, without a byte of CUDA, pinned to the hash.
#
#   base ──> python ──> uv           (mounted into each step that installs wheels, never copied)
#              ├──────> torch ──> tools ──> merged ──> recent ──> configured ──> environment
#              ├──────> system ───────────────┘
#              └──────> torch-wheels, tools-wheels, recent-wheels   (downloads, mounted likewise)
#
# Plain Docker builds it, with no arguments:  docker build -f docker/cpu.Dockerfile .
# The stages are those of cuda.Dockerfile without its CUDA; a test keeps the common ones equal.

# Pinned to the digest. Where no registry can be reached, `invoke build` passes a base made from Debian packages.
ARG BASE=docker.io/library/debian:trixie-20261005-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f

FROM ${BASE} AS python
# `locked`: exactly the packages of docker/locks/debian. `drift`: what the mirror has today, where it and the snapshot
# have dropped some of them; `invoke build` says so and never does it under --locked.
ARG DEBIAN=locked
# The day of the base: the time stamp of every file that a build writes, so that two builds can be equal.
ARG SOURCE_DATE_EPOCH=1791158400
# What wheels need and no more: a Debian package that is added later leaves them as they are.
# apt's caches and logs live in tmpfs: nothing of them lands in the layer, and nothing has to be deleted from the base.
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/debian.sh,target=/run/debian.sh \
    --mount=type=bind,source=docker/layers/finish.py,target=/run/finish.py \
    --mount=type=bind,source=docker/layers/python-packages.txt,target=/run/packages.txt \
    --mount=type=bind,source=docker/locks/debian/python,target=/run/debian \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=apt-mirror \
    --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/var/cache --mount=type=tmpfs,target=/var/log \
    --mount=type=tmpfs,target=/var/lib/apt/lists --mount=type=tmpfs,target=/tmp \
    sh /run/debian.sh python "$DEBIAN"

FROM python AS system
ARG DEBIAN=locked
ARG SOURCE_DATE_EPOCH=1791158400
# Everything else of Debian's, made beside the wheels, which need none of it; apt as above.
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/debian.sh,target=/run/debian.sh \
    --mount=type=bind,source=docker/layers/packages.txt,target=/run/packages.txt \
    --mount=type=bind,source=docker/locks/debian/system,target=/run/debian \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=apt-mirror \
    --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/var/cache --mount=type=tmpfs,target=/var/log \
    --mount=type=tmpfs,target=/var/lib/apt/lists --mount=type=tmpfs,target=/tmp \
    sh /run/debian.sh system "$DEBIAN"
# For `merged`. Steps that have no business with the network get none.
RUN --network=none --mount=type=bind,source=docker/layers/pack.sh,target=/run/pack.sh --mount=type=tmpfs,target=/tmp \
    sh /run/pack.sh

FROM python AS uv
# uv comes from the Python package index by hash: no second registry to reach.
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/uv.sh,target=/run/uv.sh \
    --mount=type=bind,source=docker/layers/download.py,target=/run/download.py \
    --mount=type=bind,source=docker/locks/uv.txt,target=/run/uv.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/tmp \
    sh /run/uv.sh

# The wheels of layers that stand on large ones: a step that mounts secrets would have BuildKit read all that is below it.
FROM python AS torch-wheels
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/download.sh,target=/run/download.sh \
    --mount=type=bind,source=docker/layers/download.py,target=/run/download.py \
    --mount=type=bind,source=docker/locks/cpu/torch.txt,target=/run/lock.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=torch-index --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/tmp \
    sh /run/download.sh torch

FROM python AS tools-wheels
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/download.sh,target=/run/download.sh \
    --mount=type=bind,source=docker/layers/download.py,target=/run/download.py \
    --mount=type=bind,source=docker/locks/cpu/tools.txt,target=/run/lock.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=torch-index --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/tmp \
    sh /run/download.sh tools

FROM python AS recent-wheels
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/download.sh,target=/run/download.sh \
    --mount=type=bind,source=docker/layers/download.py,target=/run/download.py \
    --mount=type=bind,source=docker/locks/cpu/recent.txt,target=/run/lock.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=torch-index --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/tmp \
    sh /run/download.sh recent

# The last of the stages on `python`, as the image goes on from it: BuildKit lets stages on one parent share the list of their
# history, and the last one's words stay.
FROM python AS torch
ARG SOURCE_DATE_EPOCH=1791158400
# torch and torchvision are released together, so they share a layer. They come from PyTorch's own index.
RUN --network=none --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/layers/finish.py,target=/run/finish.py \
    --mount=type=bind,source=docker/locks/cpu/torch.txt,target=/run/lock.txt \
    --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=bind,from=torch-wheels,source=/wheels,target=/wheels \
    --mount=type=tmpfs,target=/tmp \
    sh /run/wheels.sh torch

FROM torch AS tools
ARG SOURCE_DATE_EPOCH=1791158400
# Everything else, your packages included, as they were when the locks were last laid out anew.
RUN --network=none --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/layers/finish.py,target=/run/finish.py \
    --mount=type=bind,source=docker/locks/cpu/tools.txt,target=/run/lock.txt \
    --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=bind,from=tools-wheels,source=/wheels,target=/wheels \
    --mount=type=tmpfs,target=/tmp \
    sh /run/wheels.sh tools

FROM tools AS merged
ARG SOURCE_DATE_EPOCH=1791158400
# RUN and not COPY: which files, their owners and their times are as they were, and a changed folder's too.
RUN --network=none --mount=type=bind,source=docker/layers/merge.sh,target=/run/merge.sh --mount=type=tmpfs,target=/tmp \
    --mount=type=bind,from=system,source=/packed,target=/packed \
    sh /run/merge.sh system

FROM merged AS recent
ARG SOURCE_DATE_EPOCH=1791158400
# Tools that were added or moved since: the only wheels that change from week to week.
RUN --network=none --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/layers/finish.py,target=/run/finish.py \
    --mount=type=bind,source=docker/locks/cpu/recent.txt,target=/run/lock.txt \
    --mount=type=bind,from=uv,source=/uv,target=/uv \
    --mount=type=bind,from=recent-wheels,source=/wheels,target=/wheels \
    --mount=type=tmpfs,target=/tmp \
    sh /run/wheels.sh recent

FROM recent AS configured
# Constants of the lock only: where the bits came from on a given day belongs to the build record, not here.
LABEL dev.torchdock.variant="cpu"
# The environment is on for every process of the container, not only for login shells.
# pip and uv add to it and leave torch and CUDA as they are (layers/suite.sh); from the cache, a volume, they copy.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    VIRTUAL_ENV=/opt/venv \
    LANG=C.UTF-8 \
    TORCHDOCK_VARIANT=cpu \
    XDG_CACHE_HOME=/cache \
    TORCH_HOME=/cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    HF_HOME=/cache/huggingface \
    IPYTHONDIR=/cache/ipython \
    PIP_CONSTRAINT=/opt/torchdock/constraints.txt \
    UV_CONSTRAINT=/opt/torchdock/constraints.txt \
    PIP_BUILD_CONSTRAINT=/opt/torchdock/build-constraints.txt \
    UV_BUILD_CONSTRAINT=/opt/torchdock/build-constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_LINK_MODE=copy
WORKDIR /workspace
# It takes the leases of GPUs and becomes tini, which reaps orphans and hands signals on; the entrypoint after it gives the
# caller's UID a name, a HOME and a thread count.
ENTRYPOINT ["/opt/torchdock/docker/init.sh"]
CMD ["bash"]

FROM configured AS environment
ARG SOURCE_DATE_EPOCH=1791158400
# The validation suite travels with the environment, so that it can prove itself wherever it is taken.
# RUN and not COPY: file modes and times of a clone differ from machine to machine, this layer must not.
RUN --network=none --mount=type=bind,source=docker/layers/suite.sh,target=/run/suite.sh \
    --mount=type=bind,source=docker/entrypoint.sh,target=/run/clone/docker/entrypoint.sh \
    --mount=type=bind,source=docker/init.sh,target=/run/clone/docker/init.sh \
    --mount=type=bind,source=docker/locks/cpu/torch.txt,target=/run/clone/docker/locks/cpu/torch.txt \
    --mount=type=bind,source=docker/locks/cpu/tools.txt,target=/run/clone/docker/locks/cpu/tools.txt \
    --mount=type=bind,source=docker/locks/cpu/recent.txt,target=/run/clone/docker/locks/cpu/recent.txt \
    --mount=type=bind,source=src/torchdock,target=/run/clone/src/torchdock \
    --mount=type=bind,source=tests/container,target=/run/clone/tests/container \
    sh /run/suite.sh /run/clone cpu
