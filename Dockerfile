# superpod in a container: `docker build -t superpod .`; then
#   docker run --rm -p 8000:8000 -v DIR:/models:ro superpod serve --model /models --host 0.0.0.0
# Packages are Debian's, named in configs/packages.txt; nothing else is downloaded.

FROM debian:12-slim AS build
WORKDIR /src
COPY configs/packages.txt configs/install.sh configs/
RUN configs/install.sh run
COPY . .
# Plugins for GPUs are those that could be built: without nvcc in this stage, the emulated one alone.
RUN make --no-print-directory -j"$(nproc)" install DESTDIR=/src/build/image \
    && strip build/image/usr/local/bin/superpod
# The Debian packages that own the libraries these are linked with, by themselves.
RUN ldd build/image/usr/local/bin/superpod build/image/usr/local/lib/superpod/*.so \
    | awk '$3 ~ /^\// { print $3 }' | sort -u | xargs -n 1 realpath \
    | while read -r lib; do dpkg -S "$lib" || dpkg -S "${lib#/usr}"; done \
    | cut -d: -f1 | sort -u >build/libraries && grep -q libevent build/libraries && grep -q libxxhash build/libraries
# Opened at run time, so the binary does not tell: collectives between nodes, the meeting by PMIx.
RUN printf '%s\n' libucx0 libpmix2 >>build/libraries

FROM debian:12-slim
COPY --from=build /src/build/libraries /tmp/libraries
RUN apt-get -q -y update \
    && xargs -r apt-get -q -y install --no-install-recommends </tmp/libraries \
    && rm -rf /var/lib/apt/lists/* /tmp/libraries \
    && groupadd --gid 10001 superpod \
    && useradd --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
        --uid 10001 --gid 10001 superpod
COPY --from=build /src/build/image/usr/local/ /usr/local/
# A number, so that runAsNonRoot can be proven.
USER 10001:10001
EXPOSE 8000 7000
# The agent reaps and drains: it is a fit process 1, and SIGTERM is what it waits for.
STOPSIGNAL SIGTERM
ENTRYPOINT ["superpod"]
CMD ["serve", "--help"]
