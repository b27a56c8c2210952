FROM ghcr.io/astral-sh/uv:0.9.2 AS uv

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python \
    UV_NO_CACHE=1 \
    VIRTUAL_ENV=/opt/actbench \
    PATH=/opt/actbench/bin:$PATH
RUN uv venv --python 3.12.11 "$VIRTUAL_ENV" && uv pip install \
    torch==2.11.0 \
    torch_geometric==2.8.1 \
    ogb==1.3.6 \
    numba==0.68.1 \
    numpy==2.4.6 \
    pymetis==2025.2.2 \
    scikit-learn==1.9.1 \
    scipy==1.17.1 \
    matplotlib==3.11.2 \
    jinja2==3.1.6 \
    typer==0.29.2 \
    rich==15.0.0 \
    nvidia-ml-py==13.615.71 \
    cupy-cuda13x==14.2.0
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY actbench actbench
COPY kernels kernels
RUN uv pip install ".[cuda13]" && useradd --create-home --uid 10001 actbench
USER 10001
# Records belong on a volume that this user may write to:
# docker run --gpus all --user "$(id -u)" --env HOME=/tmp --volume "$PWD:/work" actbench run
WORKDIR /work
ENTRYPOINT ["actbench"]
