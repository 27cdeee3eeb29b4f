# The gateway as a sidecar: `docker run tracer-gateway serve --config /data/tracer.yaml`, which needs `access.mode` keys or
# passthrough to listen on 0.0.0.0; in a pod, or with --network container:APP, 127.0.0.1 suffices.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE tracer.py ./
COPY gateway gateway
COPY policies policies
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /venv /venv
# Traces, spool and policies live under /data: mount a volume there.
RUN useradd --create-home --uid 10001 tracer && mkdir /data && chown tracer /data
USER tracer
WORKDIR /data
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=2s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["tracer"]
CMD ["serve", "--host", "0.0.0.0", "--access", "keys"]
