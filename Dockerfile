# superpod in a container: `docker build -t superpod .`; then
#   docker run --rm -p 8000:8000 -v DIR:/models:ro superpod serve --model /models --host 0.0.0.0
# Packages are Debian's, named in configs/packages.txt; nothing else is downloaded.

FROM debian:12-slim AS build
WORKDIR /src
COPY configs/packages.txt configs/install.sh configs/
RUN configs/install.sh run
COPY . .
RUN make --no-print-directory -j"$(nproc)" all && strip build/release/superpod
# The Debian packages that own the libraries the binary is linked with, by the binary itself.
RUN ldd build/release/superpod | awk '$3 ~ /^\// { print $3 }' | xargs -n 1 realpath \
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
COPY --from=build /src/build/release/superpod /usr/local/bin/superpod
# A number, so that runAsNonRoot can be proven.
USER 10001:10001
EXPOSE 8000 7000
# The agent reaps and drains: it is a fit process 1, and SIGTERM is what it waits for.
STOPSIGNAL SIGTERM
ENTRYPOINT ["superpod"]
CMD ["serve", "--help"]
