# A server on the CPU. Build and run it with the compose file beside this one, or alone:
#
#     docker build -t tunesmith .
#     docker run --rm -v tunesmith:/data tunesmith keys create first
#     docker run -d -p 8000:8000 -v tunesmith:/data tunesmith
#
# It listens on every address, so it starts only once a key was made.

FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --system --uid 10001 --create-home tunesmith \
    && install --directory --owner=tunesmith --group=tunesmith /data

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./

# torch first and alone, from the index of CPU builds: what comes after finds it and chooses no other build.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch

COPY src ./src
RUN pip install -c constraints.txt ".[serve,postgres,onnx]"

USER tunesmith
ENV TUNESMITH_HOME=/data
VOLUME /data
EXPOSE 8000
# SIGTERM: answers are finished, a job stops at its next step and goes on at the next start.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]

ENTRYPOINT ["tunesmith"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--log", "-"]
