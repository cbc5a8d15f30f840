# A miner in a container, without root and without a coldkey:
#   docker build -t hfa .
#   docker run --init --stop-timeout 60 -p 8091:8091 -v hfa:/data hfa \
#     network=finney network.netuid=NETUID network.external_ip=ADDRESS wallet.name=WALLET wallet.hotkey=HOTKEY
# /data/wallets/WALLET/hotkeys/HOTKEY is the hotkey, /data/outputs holds the checkpoints. With another server.port, or with
# TLS, say where its health is seen: -e HEALTH_URL=https://127.0.0.1:8443/health
FROM python:3.12-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/data/cache OMP_WAIT_POLICY=PASSIVE \
  HEALTH_URL=http://127.0.0.1:8091/health
WORKDIR /opt/hfa
COPY pyproject.toml constraints.txt README.md ./
COPY hfa hfa
RUN pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu --editable .
COPY conf conf
COPY mine.py ./
RUN useradd --create-home --uid 1000 hfa && install -d -o hfa /data
USER hfa
VOLUME /data
EXPOSE 8091
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --start-period=120s \
  CMD ["python", "-c", "import os, ssl, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=5, \
  context=ssl._create_unverified_context())"]
ENTRYPOINT ["python", "mine.py", "wallet.path=/data/wallets", "checkpoint_root=/data/outputs", \
  "network.auth.nonce_dir=/data/nonces", "statistics_path=/data/statistics.json", "hydra.run.dir=/data/logs"]
CMD ["network=local", "network.folder=/data/subnets"]
