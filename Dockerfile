# The environment of the project, with all extras. Not run yet.
#   docker build -t ciss .                          # torch with CUDA: processors and NVIDIA GPUs
#   docker build -t ciss --build-arg TORCH=cpu .    # torch without CUDA: a smaller image
#   docker run --rm -it --shm-size=8g -v "$PWD:/ciss" ciss dvc repro    # with --gpus all: on GPUs
# The folder that is mounted at /ciss is the project: parameters, code, data and results stay outside the image.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv

WORKDIR /ciss
ARG TORCH=""
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ciss/__init__.py ciss/
RUN uv pip install --system --no-cache --compile-bytecode -c constraints.txt ${TORCH:+--torch-backend "$TORCH"} \
    -e ".[widgets,s3,ssh,slurm,live,tune,weights,export,docs]" --group dev
COPY . .

# A user without a home folder (--user) can write here; the project may belong to another user than git's.
ENV HOME=/tmp USER=ciss
RUN git config --system --add safe.directory /ciss
CMD ["bash"]
