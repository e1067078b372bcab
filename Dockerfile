# Training on NVIDIA GPUs. CUDA comes with TensorFlow's wheels; the machine needs the driver and the NVIDIA Container
# Toolkit only. docs/launching.md has more.
#
#   docker build -t keras-mae .
#   docker run --rm --gpus=all --ipc=host --user=$(id -u):$(id -g) -v /data:/data keras-mae \
#       keras_mae.pretrain --recipe=vit_base --data=/data/shards --run_dir=/data/runs/base
FROM python:3.11-slim

# The packages come before the code, which changes more often than they do.
WORKDIR /opt/keras-mae
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY keras_mae/__init__.py keras_mae/__init__.py
RUN pip install --no-cache-dir --constraint constraints.txt ".[gpu,http]"
COPY . .
RUN pip install --no-cache-dir --no-deps --force-reinstall .

RUN useradd --create-home --uid 1000 mae
USER mae
WORKDIR /home/mae
# HOME is for caches of compiled code; --user may bring a user without one.
ENV HOME=/tmp PYTHONUNBUFFERED=1 TF_FORCE_GPU_ALLOW_GROWTH=true

# The first word is a module: keras_mae.pretrain, keras_mae.finetune, keras_mae.evaluate, tools.make_shards, ...
ENTRYPOINT ["python", "-m"]
CMD ["keras_mae.pretrain", "--help"]
