# A trainer with its environments baked in: docs/image.md. `make image` builds it, and adds the
# labels that come from the lock. Data, models and runs are mounted at /workspace; programs of lora-forge come with each
# launch.

# The wheels of the lock bring CUDA's libraries; of the base only CUDA's runtime is needed, which is its flavour «base».
# Pinned by digest: nvidia/cuda:<tag>@sha256:<digest>
ARG BASE=nvidia/cuda:13.0.3-base-ubuntu24.04
ARG LOCK=trainer-cuda
FROM ${BASE} AS base

# gcc, and the headers of C and of Python: Triton compiles when a kernel is first used. pip brings uv, should a lock have
# changed. Host keys are made at boot; what the package made here would be everybody's.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc git git-lfs libc6-dev openssh-server procps python3 python3-dev python3-pip rsync tmux \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*_key* \
    && useradd --no-log-init --create-home --shell /bin/bash trainer \
    && install -d -o trainer -g trainer /workspace

# Copied, not mounted: podman does not look whether a mounted file has changed since the layer was built.
COPY image/environments.py /opt/lora-forge/build/
COPY module_utils/lora_forge/errors.py module_utils/lora_forge/rundir.py /opt/lora-forge/build/ansible/module_utils/lora_forge/
COPY module_utils/lora_forge/trainer/cpython.py module_utils/lora_forge/trainer/environment.py \
     /opt/lora-forge/build/ansible/module_utils/lora_forge/trainer/

# What is large and rarely changes, out of the lock: torch, and CUDA's libraries.
FROM base AS large
ARG LOCK
COPY requirements/${LOCK}.txt /lock.txt
RUN PYTHONPATH=/opt/lora-forge/build python3 /opt/lora-forge/build/environments.py large /lock.txt >/large.txt

FROM base
ARG LOCK
# A version or a path. Empty: the base's, if the lock is for it, or else one that uv fetches.
ARG PYTHON=
# Of uv and pip: a folder of wheels, torch's build, certificates, a cache of one's own. Without a value they are not set.
ARG UV_FIND_LINKS
ARG UV_TORCH_BACKEND
ARG UV_CACHE_DIR
ARG SSL_CERT_FILE
ARG PIP_CERT
ARG UV_LINK_MODE=copy
ARG PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/lora-forge/requirements
# A layer of some gigabytes, which stays as long as these lines of the lock do. Only the mounted cache keeps what was
# downloaded.
COPY requirements/uv.txt /opt/lora-forge/requirements/
COPY --from=large /large.txt /opt/lora-forge/build/
RUN --mount=type=cache,target=/root/.cache \
    PYTHONPATH=../build python3 ../build/environments.py begin "${PYTHON}" uv.txt ../build/large.txt
# The rest of the lock, and the environment of what fetches base models.
COPY requirements/hub.txt requirements/${LOCK}.txt /opt/lora-forge/requirements/
ARG UV_COMPILE_BYTECODE=1
RUN --mount=type=cache,target=/root/.cache \
    PYTHONPATH=../build python3 ../build/environments.py end "${PYTHON}" uv.txt "${LOCK}.txt" hub.txt \
    && rm -r ../build
WORKDIR /workspace

COPY --chmod=755 image/start.sh /start.sh
COPY --chmod=755 roles/trainer/files/gpu_check.py image/healthcheck.sh /opt/lora-forge/

LABEL org.opencontainers.image.title="lora-forge trainer" \
      org.opencontainers.image.description="Trains LoRA adapters with Axolotl; reached over SSH" \
      org.opencontainers.image.licenses="MIT"
# RunPod logs in as root. Elsewhere: --user trainer, and port 2222.
EXPOSE 22 2222
HEALTHCHECK --interval=5m --timeout=310s --start-period=1m --retries=2 CMD ["/opt/lora-forge/healthcheck.sh"]
# The base's own start script only prints a banner.
ENTRYPOINT []
CMD ["/start.sh"]
