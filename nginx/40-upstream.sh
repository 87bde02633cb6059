#!/bin/sh
# Writes what no template can say: upstream.conf, where the app listens (by Docker's DNS in Compose, on loopback
# natively), uploads.conf, which counts a number's digits, what a load balancer in front asks for (balancers.conf,
# inside.conf), and static.conf. Takes HTTPS, HTTP/3 and the cache out without their rows, and IPv6 where the kernel has
# none. The entrypoint of the nginx image runs it, and so does the native way.
set -eu

if [ -n "${UPSTREAM_RESOLVER:-}" ]; then
    # Asked again every second, so that a replica that is new, gone or moved is known without a reload; Docker's
    # answers say 600 s. resolver_timeout's default, 30 s, is 30 s of 502 after one lost lookup.
    resolve="
    resolver ${UPSTREAM_RESOLVER} valid=1s ipv6=off;
    resolver_timeout 1s;"
    suffix=" resolve"
fi

# One socket for each worker, or one for all with the places of all.
listeners=1
places=$((APP_MAX_REQUESTS_IN_FLIGHT * WORKERS))
if [ "${WORKER_LISTENERS}" != shared ]; then
    listeners=${WORKERS}
    places=${APP_MAX_REQUESTS_IN_FLIGHT}
fi
count=$((listeners * (APP_REPLICAS + 1)))
case ${STICKY_SESSIONS} in
address)
    # The same client gets the same worker. Not `consistent`: that knows a server by its name, and would take turns
    # among the replicas, which share one.
    balance='hash $stack_client;'
    ;;
cookie)
    # The first request has no cookie yet, and goes where the one that it is given leads.
    sticky='
map $uid_got $stack_session {
    default $uid_got;
    "" $uid_set;
}
userid on;
userid_name worker;
userid_path /;
userid_flags httponly samesite=lax;
'
    balance='hash $stack_session;'
    ;;
*)
    # To the worker with the fewest requests under way. By default they take turns, and a fast request waits behind
    # a slow one while another worker has nothing to do.
    balance='least_conn;'
    # The search through a long list costs more than all else of a request. Of two at random, the one with fewer.
    if [ "$count" -gt 200 ]; then
        balance='random two least_conn;'
    fi
    ;;
esac
servers=
list() { # list HOST [PARAMETER]
    port=${APP_PORT}
    while [ "$port" -lt $((APP_PORT + listeners)) ]; do
        servers="${servers}
    server $1:${port}${suffix:-} max_conns=${places} max_fails=0${2:-};"
        port=$((port + 1))
    done
}
# WAY=swarm: the app of this machine, and the others' where that is not there or full. A request that goes to another
# machine over an idle connection is lost when that machine's power or cable is cut, though this one is well.
if [ -n "${UPSTREAM_HERE:-}" ]; then
    # A node that comes back starts its nginx before it knows of any app: 503 for everybody, until its DNS has the name.
    # Refused is better: clients and balancers move on. Not for ever: where no app runs anywhere, that is to be said.
    end=$(($(date +%s) + 10))
    until timeout 1 getent ahostsv4 "${UPSTREAM_HOST}" >/dev/null || [ "$(date +%s)" -ge "$end" ]; do
        sleep 0.1
    done
    list "${UPSTREAM_HERE}"
    list "${UPSTREAM_HOST}" " backup"
else
    list "${UPSTREAM_HOST}"
fi

cat >"${NGINX_RUN}/upstream.conf" <<UPSTREAM
${sticky:-}
upstream app {
    # Shared by nginx's workers; \`resolve\` needs it.
    # It holds the list of servers: by the rows at most ${count}, with those of a deploy, and before and after a change.
    zone app $((256 + 4 * count))k;${resolve:-}
    ${balance}
    # max_conns: at most N requests at a time; with no place left it is 503. By default all are let in, and past
    # capacity each waits until its client has given up (docs/overload.md). Idle connections and unfinished bodies take
    # no place.
    # max_fails=0: the default, 1, takes a worker out for ten seconds after one slow answer, and one slow GET that
    # is tried on each is enough to take out all: 502 for everyone.${servers}
    # Idle connections to the app, kept open: without them each request opens one, at 1.6 times the app's CPU.
    keepalive ${UPSTREAM_KEEPALIVE_CONNECTIONS};
    # Shorter than the app's keep-alive, so that nginx closes first: otherwise POSTs get 502.
    keepalive_timeout ${UPSTREAM_KEEPALIVE_SECONDS}s;
}
UPSTREAM

# Nothing of HTTPS without it, and no answer for a CA that nobody asked.
case ${TLS} in
off) unused="tls tls-default tls-server acme" ;;
files) unused=acme ;;
*) unused= ;;
esac
if [ "${CACHE_MB}" -eq 0 ]; then
    unused="${unused} cache"
    sed -i '/\$upstream_cache_status/d' "${NGINX_RUN}/nginx.conf"
fi
for part in ${unused}; do
    : >"${NGINX_RUN}/${part}.conf"
done

# WAY=swarm: nginx of no node has the file for the CA, but `acme` on the one that asks.
if [ "${TLS}" = acme ] && [ -n "${NGINX_ACME:-}" ]; then
    sed -i 's/^    root .*/&\n    try_files $uri @acme;/' "${NGINX_RUN}/acme.conf"
    cat >>"${NGINX_RUN}/acme.conf" <<ACME
location @acme {
    # Looked up when somebody asks: nginx starts without it. Default: 600 s, and it may be on another node by then.
    resolver ${UPSTREAM_RESOLVER} valid=1s;
    set \$stack_acme ${NGINX_ACME};
    proxy_pass http://\$stack_acme;
    # Default: off, and there is none of nginx's JSON where \`acme\` has no such file.
    proxy_intercept_errors on;
}
ACME
fi

# A body with fewer digits in its length than CLIENT_BODY_BUFFER_BYTES, a power of ten, fits into the buffer.
cat >"${NGINX_RUN}/uploads.conf" <<UPLOADS
# The client where the request is an upload: its body goes to a file, or may (chunked, its length unknown).
map "\$http_transfer_encoding\$content_length" \$stack_upload {
    default \$stack_client;
    "" "";
    "~^[0-9]{1,$((${#CLIENT_BODY_BUFFER_BYTES} - 1))}\$" "";
}
UPLOADS

# A load balancer in front is believed what it says of its client: the address becomes $remote_addr, for limits, log and
# app, the scheme $stack_scheme. Nobody else is. Without one, the scheme is that of the connection.
balancers=${FORWARDED_HEADERS_FROM}${PROXY_PROTOCOL_FROM}
both=${FORWARDED_HEADERS_FROM:+${PROXY_PROTOCOL_FROM}}
case "${both:+both}${balancers}" in
both* | *[!0-9A-Fa-f.:/\ ]*)
    echo "FORWARDED_HEADERS_FROM=${FORWARDED_HEADERS_FROM} PROXY_PROTOCOL_FROM=${PROXY_PROTOCOL_FROM}: must be" \
        "addresses and networks, blanks between, in one of the two; mend the row in .env" >&2
    exit 1
    ;;
esac
: >"${NGINX_RUN}/inside.conf"
: >"${NGINX_RUN}/inside-tls.conf"
if [ -z "${balancers}" ]; then
    echo 'map "" $stack_scheme { default $scheme; }' >"${NGINX_RUN}/balancers.conf"
else
    header=X-Forwarded-For
    said='$http_x_forwarded_proto'
    schemes='"1 http" http;
    "1 https" https;'
    if [ -n "${PROXY_PROTOCOL_FROM}" ]; then
        header=proxy_protocol
        # Not its X-Forwarded-Proto, which may be the client's. The header has no scheme, but the port that was asked.
        said='$proxy_protocol_server_port'
        schemes='"1 443" https;'
        # Where nobody sends the header: the health check, Locust.
        for address in ${NGINX_LISTEN_INSIDE}; do
            echo "listen ${address};" >>"${NGINX_RUN}/inside.conf"
        done
        for address in ${NGINX_LISTEN_TLS_INSIDE}; do
            echo "listen ${address} ssl;" >>"${NGINX_RUN}/inside-tls.conf"
        done
    fi
    cat >"${NGINX_RUN}/balancers.conf" <<BALANCERS
real_ip_header ${header};
# The last address in the list that is not a balancer's: what stands before it the client may have written.
real_ip_recursive on;
$(printf 'set_real_ip_from %s;\n' ${balancers})
geo \$realip_remote_addr \$stack_balancer {
    default 0;
$(printf '    %s 1;\n' ${balancers})
}
map "\$stack_balancer ${said}" \$stack_scheme {
    default \$scheme;
    ${schemes}
}
BALANCERS
fi

# Nothing of HTTP/3 without it: an nginx that was built without does not know these lines.
if [ "${HTTP3}" != on ]; then
    sed -i '/^listen .* quic/d; /^http3_/d' \
        "${NGINX_RUN}/tls.conf" "${NGINX_RUN}/tls-default.conf" "${NGINX_RUN}/tls-server.conf"
fi

# WAY=swarm: what a client was given by one node resumes its session at another.
if [ -n "${NGINX_TICKET_KEY:-}" ]; then
    sed -i 's/^ssl_session_tickets off;/ssl_session_tickets on;/' "${NGINX_RUN}/tls.conf"
    echo "ssl_session_ticket_key ${NGINX_TICKET_KEY};" >>"${NGINX_RUN}/tls.conf"
fi

# OpenSSL before 3.5 does not know it, and nginx would not start.
case $(openssl version 2>/dev/null) in
"" | "OpenSSL 1."* | "OpenSSL 3."[0-4].*) sed -i 's/X25519MLKEM768://' "${NGINX_RUN}/tls.conf" ;;
esac

# Who may get an answer that is kept, or leave one: whoever brings no password, asks for the whole, and sends no body, for
# the answer may depend on it.
if [ "${CACHE_MB}" -ne 0 ]; then
    # A key and what belongs to it take 256 bytes at most, and a file a page of 4 KiB at least.
    sed -i "s/CACHE_KEYS/$(((CACHE_MB + 4) * 64))k/" "${NGINX_RUN}/cache.conf"
    cat >>"${NGINX_RUN}/cache.conf" <<CACHE
map "\$http_authorization\$http_range\$content_length\$http_transfer_encoding\$stack_upgrade \$request_method \$uri" \$stack_cache {
    default off;
    "~^ (GET|HEAD) ($(echo "${CACHE_PATHS}" | sed 's/\./\\./g; s/ /|/g'))" answers;
}
CACHE
fi

# A folder's files under its own name. By no other way does anybody come to them, and none of it reaches the app.
: >"${NGINX_RUN}/static.conf"
if [ -n "${STATIC_ROOT}" ]; then
    name=$(basename "${STATIC_ROOT}")
    case "${STATIC_ROOT}/${name}" in
    /* | *..* | */.* | *[!A-Za-z0-9./_-]*)
        echo "STATIC_ROOT=${STATIC_ROOT}: must be a folder in this clone, as app/static; mend the row in .env" >&2
        exit 1
        ;;
    esac
    cat >"${NGINX_RUN}/static.conf" <<STATIC
location ^~ /${name}/ {
    alias ${NGINX_STATIC}/;
    include ${NGINX_RUN}/types.conf;
    # A link in the folder would lead to any file that nginx may read, as its key. Default: off.
    disable_symlinks on;
    # The browser asks each time whether there is a new one, and is told no in a few bytes. Default: it guesses.
    expires epoch;
    # name.gz beside name goes to whom it suits. Default: compressed anew for each.
    gzip_static on;
    # As for the app: 503 where all together are over the limit, and not this client.
    error_page 429 = @refused;
    include ${NGINX_RUN}/errors.conf;
    # A name with its content's hash in it, as app.4f0c2d9a.js, never gets another content: it is asked for once.
    location ~ "(\.|-)(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,64}\.[a-z0-9.]+\$" {
        expires max;
    }
    # .git, .env and their like.
    location ~ /\. {
        return 404;
    }
}
STATIC
fi

# With a kernel that has no IPv6 nginx would not start.
if [ ! -e /proc/net/if_inet6 ]; then
    for part in nginx tls-default tls-server inside inside-tls; do
        sed -i '/listen \[::/,/;/d' "${NGINX_RUN}/${part}.conf"
    done
fi
