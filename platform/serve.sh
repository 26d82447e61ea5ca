# Sourced before `ray start` on each node that is to serve: HAProxy in front of the ingress replicas, which asks another one where a
# replica is lost before it answered, and bounds what clients without a key can hold (haproxy.sh). A request can be asked again where its
# body fits the buffer; one that is read or answered holds up to two buffers.
export RAY_SERVE_ENABLE_HA_PROXY=1
RAY_SERVE_HAPROXY_BINARY_PATH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/haproxy.sh
export RAY_SERVE_HAPROXY_BINARY_PATH
export RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response response-timeout"
export RAY_SERVE_HAPROXY_RETRIES=3
export RAY_SERVE_HAPROXY_TUNE_BUFSIZE=4194304
export RAY_SERVE_HAPROXY_MAXCONN=4096
export RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=60
export RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S=600
