# What most people write: apt-get install, pip install, COPY. bench/build.py measures beside it; see there.
# The mounts and `. /run/host.sh` are for hosts with a private CA or mirrors; on others they do nothing.
ARG BASE
FROM ${BASE} AS torchdock-bench-plain
# The same Debian packages by name as in our image, here in whatever version the mirror has today.
RUN --mount=type=bind,source=host.sh,target=/run/host.sh \
    --mount=type=bind,source=packages.txt,target=/run/packages.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=apt-mirror \
    . /run/host.sh && export DEBIAN_FRONTEND=noninteractive \
    && apt-get update \
    && apt-get install -y --no-install-recommends $(cat /run/packages.txt) \
    && rm -rf /var/lib/apt/lists/*
# Every package of our lock in the same version: `name==version`, one a line.
COPY requirements.txt .
ARG TORCH_INDEX
RUN --mount=type=bind,source=host.sh,target=/run/host.sh \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=torch-index \
    . /run/host.sh \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -r requirements.txt
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /workspace
COPY src src
