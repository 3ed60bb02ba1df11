# The image of every step; `make image` builds it. No ENTRYPOINT: any command can follow its name.
#
# One image serves CPU and GPU: the torch of requirements-image.lock is the CUDA build, which runs
# on a CPU as well. That is most of the size, and the same lock gives no smaller flavour: torch is
# linked against the libraries of the nvidia-* packages (without them `import torch` ends in
# "libcudnn.so.9: cannot open shared object file").
#
# Build secrets, both optional: `ca`, a bundle of certificates to trust, and `index`, the URL of a
# package index. They are mounted only while a package is fetched and leave nothing in the image.

# Python 3.11 to 3.13 with venv, and certificates; Debian 12 or newer, or an image made from it
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# --- uv, which checks the hashes of everything else, and is checked by pip itself ---------------
FROM ${BASE_IMAGE} AS tools
ARG UV="uv==0.13.9 \
    --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 \
    --hash=sha256:ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375"
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=secret,id=index \
    echo "${UV}" > /tmp/uv.txt \
    && python3 -m venv /opt/tools \
    && PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
        PIP_INDEX_URL="$(cat /run/secrets/index 2> /dev/null)" \
        /opt/tools/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
            --requirement /tmp/uv.txt

# --- the dependencies: one layer of 6.7 GB, rebuilt only when their lock changes -------------
FROM ${BASE_IMAGE} AS dependencies
# the official image comes without the bytecode of the standard library
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home vitdc \
    && python3 -m compileall -q -x '/tests?/' \
        "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')" \
    && python3 -m venv --without-pip /opt/venv
COPY requirements-image.lock /opt/requirements.lock
# not a bind mount: when all of `tools` comes from the cache, podman 4 mounts it without uv
COPY --from=tools /opt/tools/bin/uv /tmp/uv
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=secret,id=index \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    UV_DEFAULT_INDEX="$(cat /run/secrets/index 2> /dev/null)" \
    /tmp/uv pip sync --no-cache --python /opt/venv/bin/python --require-hashes \
        --build-constraints /opt/requirements.lock --compile-bytecode /opt/requirements.lock \
    && rm -f /tmp/uv* /opt/venv/.lock

# --- our own packages, as an installed wheel ----------------------------------------------------
FROM tools AS code
RUN python3 -m venv --without-pip /opt/venv
COPY . /source
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=secret,id=index \
    export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
        UV_DEFAULT_INDEX="$(cat /run/secrets/index 2> /dev/null)" \
    && /opt/tools/bin/uv build --no-cache --wheel --python /opt/venv/bin/python --out-dir /wheel \
        --build-constraints /source/requirements.lock --require-hashes /source \
    && /opt/tools/bin/uv pip install --no-cache --python /opt/venv/bin/python --prefix /code \
        --compile-bytecode --no-deps /wheel/*.whl \
    && rm -f /code/.lock

# --- the image ----------------------------------------------------------------------------------
FROM dependencies
COPY --from=code /code /opt/venv

# Everything that wants to write finds /tmp, so the root file system can be read-only.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    USER=vitdc \
    MPLCONFIGDIR=/tmp/matplotlib \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    DVC_NO_ANALYTICS=true \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
CMD ["vitdc", "--help"]

# `make image` adds version and revision as --label: podman 4 does not rebuild a LABEL whose build
# argument has changed, and would name an old revision.
LABEL org.opencontainers.image.title="vitdc" \
    org.opencontainers.image.description="Deep clustering of images with a Vision Transformer"
