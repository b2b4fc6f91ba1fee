# A bundle over HTTP, without torch: docs/serve.md.
FROM python:3.12-slim
# cpu, or gpu for NVIDIA's.
ARG EXTRA=cpu
COPY pyproject.toml README.md LICENSE /src/
COPY pfedmma_deploy /src/pfedmma_deploy
COPY cli /src/cli
COPY demo /src/demo
RUN pip install --no-cache-dir "/src[$EXTRA]" && rm -r /src && useradd --create-home pfedmma
USER pfedmma
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
# Mounted: the bundle at /bundle, the keys (`pfedmma key`) at /keys.toml.
ENTRYPOINT ["pfedmma", "serve", "--model", "/bundle", "--host", "0.0.0.0", "--keys", "/keys.toml"]
