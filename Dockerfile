# The server in a container. It listens to all of the container, so it needs keys: see docs/serving.md.
#
#   docker build -t r1ranker .
#   docker run -p 8100:8100 -v $PWD/serve.yaml:/serve.yaml:ro r1ranker
FROM python:3.12-slim
RUN useradd --create-home ranker
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '/src[serve]' && rm -r /src
USER ranker
WORKDIR /home/ranker
EXPOSE 8100
ENTRYPOINT ["r1ranker", "serve", "--host", "0.0.0.0"]
CMD ["--config", "/serve.yaml"]
