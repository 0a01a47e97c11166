# One more last layer: the packages that a workspace lists in its torchdock.toml, from the lock beside it, by hash.
# `invoke up -w DIR` (and run, shell, build) makes it; plain Docker does too, with the environment's IMAGE:
#   docker build -f docker/workspace.Dockerfile --build-arg ENVIRONMENT=IMAGE --build-arg VARIANT=cu130 \
#       --build-context lock=DIR/torchdock.locks .
ARG ENVIRONMENT=torchdock/cu130
FROM ${ENVIRONMENT} AS environment

FROM environment AS workspace
# Which of the locks: the variant that the environment is of.
ARG VARIANT=cu130
ARG SOURCE_DATE_EPOCH=1791158400
RUN --mount=type=bind,source=docker/layers/common.sh,target=/run/common.sh \
    --mount=type=bind,source=docker/layers/wheels.sh,target=/run/wheels.sh \
    --mount=type=bind,source=docker/layers/finish.py,target=/run/finish.py \
    --mount=type=bind,source=docker/layers/workspace.sh,target=/run/workspace.sh \
    --mount=type=bind,from=lock,source=${VARIANT}.txt,target=/run/lock.txt \
    --mount=type=bind,from=environment,source=/opt/venv/bin,target=/uv/bin \
    --mount=type=secret,id=ca --mount=type=secret,id=netrc --mount=type=secret,id=index \
    --mount=type=secret,id=offline \
    --mount=type=tmpfs,target=/tmp \
    sh /run/workspace.sh
LABEL dev.torchdock.layer="workspace"
