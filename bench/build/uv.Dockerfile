# The pattern of uv's own documentation (docs.astral.sh/uv/guides/integration/docker): a cache mount, requirements that
# are bind-mounted in a layer of their own, bytecode compiled, the source last. bench/build.py measures beside it.
# Two things differ from there. uv comes from the Python package index, as registries may be out of reach; what lands in
# the image is the same one program. And `uv pip install` stands in for `uv sync`, so that there is one list of versions
# for all that is measured, and nothing resolved for this one alone.
# The mounts of secrets and `. /run/host.sh` are for hosts with a private CA or mirrors; on others they do nothing.
ARG BASE
FROM ${BASE} AS torchdock-bench-uv-system
RUN --mount=type=bind,source=host.sh,target=/run/host.sh \
    --mount=type=bind,source=packages.txt,target=/run/packages.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=apt-mirror \
    . /run/host.sh && export DEBIAN_FRONTEND=noninteractive \
    && apt-get update \
    && apt-get install -y --no-install-recommends $(cat /run/packages.txt) \
    && rm -rf /var/lib/apt/lists/*

FROM torchdock-bench-uv-system AS torchdock-bench-uv-tool
ARG UV
RUN --mount=type=bind,source=host.sh,target=/run/host.sh \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    . /run/host.sh \
    && python3 -m venv /uv \
    && /uv/bin/pip install --no-cache-dir "uv==$UV"

FROM torchdock-bench-uv-system AS torchdock-bench-uv
COPY --from=torchdock-bench-uv-tool /uv/bin/uv /bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/venv
# A cache of its own for each cold build, so that it is cold; the changes after it find it filled.
ARG CACHE
ARG TORCH_INDEX
RUN --mount=type=cache,id=${CACHE},target=/root/.cache/uv \
    --mount=type=bind,source=requirements.txt,target=/run/requirements.txt \
    --mount=type=bind,source=host.sh,target=/run/host.sh \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=torch-index \
    . /run/host.sh \
    && uv venv /opt/venv \
    && uv pip install -r /run/requirements.txt
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /workspace
COPY src src
