# syntax=docker/dockerfile:1
# One image for the API, retrieval, the offline LLM endpoint and `spanloom`; the target `chat` adds
# the chat page. What is written at run time, so that the root may be read-only:
#   /data       sessions, search index, span spool   a volume
#   /run/agent  metrics shared by the workers        tmpfs: mapped files, worth nothing after a restart
#   /tmp        whatever libraries need              tmpfs
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.12.14-slim-bookworm AS build
COPY --from=uv /uv /usr/local/bin/uv
# Compiled here, because nobody may write beside the sources later. A cache mount is another file
# system, hence copies instead of links.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_CACHE_DIR=/var/cache/uv
WORKDIR /build
COPY requirements.lock ./
RUN --mount=type=cache,target=/var/cache/uv \
    uv venv --python /usr/local/bin/python3.12 /opt/agent \
    && uv pip install --python /opt/agent/bin/python --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY spanloom spanloom
COPY service service
# The lock holds hatchling as well: building the project downloads nothing that is not hashed.
RUN uv pip install --python /opt/agent/bin/python --no-deps --no-build-isolation --no-cache . \
    && /opt/agent/bin/python -m compileall -q service

FROM build AS build-chat
COPY requirements-ui.lock ./
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install --python /opt/agent/bin/python --require-hashes -r requirements-ui.lock

FROM python:3.12.14-slim-bookworm AS runtime
RUN groupadd --gid 1000 agent \
    && useradd --uid 1000 --gid agent --no-create-home --home-dir /tmp --shell /usr/sbin/nologin agent \
    && install -d -o agent -g agent /data /run/agent /run/agent/prometheus
WORKDIR /app
ENV PATH=/opt/agent/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PROMETHEUS_MULTIPROC_DIR=/run/agent/prometheus \
    AGENT_DATA_DIR=/data
# by number: Kubernetes can tell that this is not root only from a number
USER 1000:1000
STOPSIGNAL SIGTERM

FROM runtime AS chat
COPY --from=build-chat /opt/agent /opt/agent
COPY --from=build-chat /build/service ./service
ENV AGENT_CHAT_HOST=0.0.0.0
EXPOSE 8501
HEALTHCHECK --interval=15s --timeout=5s --start-period=45s --start-interval=2s --retries=3 \
    CMD ["python", "-m", "service.healthcheck", "http://127.0.0.1:8501/_stcore/health"]
CMD ["python", "-m", "service.chat_page"]
ARG REVISION=
LABEL org.opencontainers.image.revision=$REVISION

FROM runtime AS agent
COPY --from=build /opt/agent /opt/agent
COPY --from=build /build/service ./service
# On SIGTERM requests get longer than their own deadline of 30 s, then telemetry has 5 s to flush:
# whoever stops this container waits 45 s before SIGKILL.
ENV AGENT_API_HOST=0.0.0.0 \
    AGENT_WORKERS=4 \
    AGENT_SHUTDOWN_GRACE_S=35
EXPOSE 8000
# /health asks nobody else, so a retrieval or LLM that is down does not get a healthy API restarted.
# Loading a model takes up to 30 s on a busy host, four workers import at once: failures count only
# after 45 s, while the first success ends the start period, which is looked for every 2 s.
HEALTHCHECK --interval=15s --timeout=5s --start-period=45s --start-interval=2s --retries=3 \
    CMD ["python", "-m", "service.healthcheck"]
CMD ["python", "-m", "service.app"]
# Which commit this is: /health tells it, and a deploy looks (deploy/on-host). Last, so that what
# comes before stays in the build's cache.
ARG REVISION=
LABEL org.opencontainers.image.revision=$REVISION
ENV AGENT_REVISION=$REVISION
