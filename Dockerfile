# Three images from one file: `training`, `server-cpu`, and `server` for NVIDIA GPUs, which is the default and the last.
# Builds with docker, podman and buildah; `make image` builds, `make image-check` builds and runs two of them for real.

# A release pins it by digest: --build-arg PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# What all stages share. Nothing is written at run time: bytecode is compiled at build time, and / may be read-only.
FROM ${PYTHON_IMAGE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/forwardpass/bin:$PATH

# The requirements of each image, read from pyproject.toml alone: while they stay, the layers of dependencies stay.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt constraints-cuda.txt ./
RUN for image in server-cpu:server,tracing,cpu server:server,tracing,cuda training:training,images,tracking,cpu; do \
        python3 -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*p["dependencies"], *(r for e in sys.argv[1].split(",") for r in p["optional-dependencies"][e]), sep="\n")' \
            "${image#*:}" > "${image%%:*}.txt" || exit 1; \
    done

# Our own wheel. Its build tool stays in this stage.
FROM base AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY proto proto
COPY server server
COPY training training
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheels .

# A virtual environment for each image: dependencies first, then code. It holds no pip; the base's pip fills it.
FROM base AS environment
# Empty, or an index beside PyPI: PyTorch's own one of CPU builds makes the training image 3 GiB smaller.
ARG PIP_EXTRA_INDEX_URL=
RUN python3 -m venv --without-pip /opt/forwardpass
COPY --from=requirements /requirements/constraints.txt /requirements/constraints-cuda.txt /requirements/

FROM environment AS server-cpu-environment
COPY --from=requirements /requirements/server-cpu.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip pip --python /opt/forwardpass/bin/python install \
        -c /requirements/constraints.txt -r /requirements/server-cpu.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/forwardpass/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM environment AS server-environment
COPY --from=requirements /requirements/server.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip pip --python /opt/forwardpass/bin/python install \
        -c /requirements/constraints.txt -c /requirements/constraints-cuda.txt -r /requirements/server.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/forwardpass/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM environment AS training-environment
COPY --from=requirements /requirements/training.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip pip --python /opt/forwardpass/bin/python install \
        -c /requirements/constraints.txt -r /requirements/training.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/forwardpass/bin/python install --no-cache-dir --no-deps /wheels/*.whl

# What every image is: one program, run as a user that exists in no file, so that a cluster may choose another.
FROM base AS shipped
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Forwardpass" \
      org.opencontainers.image.description="Train a network, prove the export, serve the forward pass." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Whatever looks for a home finds the one folder that is writable.
ENV HOME=/tmp
USER 10001:10001
STOPSIGNAL SIGTERM

FROM shipped AS training
COPY --from=training-environment /opt/forwardpass /opt/forwardpass
# Runs are written below the folder that it starts in, which is where a volume is mounted.
ENV MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /workspace
ENTRYPOINT ["forwardpass-train"]
CMD ["list"]

# A server listens to others than itself, finds its models where they are mounted, and logs for machines.
FROM shipped AS served
ENV FORWARDPASS_SERVER_HOST=0.0.0.0 \
    FORWARDPASS_SERVER_MODEL_REPOSITORY=/models \
    FORWARDPASS_SERVER_LOG_FORMAT=json
EXPOSE 8001 8002
# For docker and podman; Kubernetes has its own probes. With TLS, set FORWARDPASS_URL, or turn it off.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["forwardpass", "health"]
ENTRYPOINT ["forwardpass-server"]

FROM served AS server-cpu
COPY --from=server-cpu-environment /opt/forwardpass /opt/forwardpass

# CUDA and cuDNN come as wheels, pinned with all else; the driver comes from the node (R580 or newer).
FROM served AS server
COPY --from=server-environment /opt/forwardpass /opt/forwardpass
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
