# Sourced before `ray start` on each node that is to serve: HAProxy in front of the ingress replicas, which asks another one where a
# replica is lost before it answered. `option http-buffer-request` is a line of HAProxy's own that Ray has no variable for: without it a
# request whose body is still on its way when its replica dies cannot be asked again. Bodies up to the buffer's size can; a busy
# connection holds two buffers, so 1,024 of them take up to 8.6 GB.
export RAY_SERVE_ENABLE_HA_PROXY=1
export RAY_SERVE_HAPROXY_RETRY_ON=$'conn-failure empty-response response-timeout\n    option http-buffer-request'
export RAY_SERVE_HAPROXY_RETRIES=3
export RAY_SERVE_HAPROXY_TUNE_BUFSIZE=4194304
export RAY_SERVE_HAPROXY_MAXCONN=1024
