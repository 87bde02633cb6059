"""The settings of proxy.conf and upstream.conf."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

PROXY = "nginx/templates/proxy.conf.template"
UPSTREAM = "nginx/40-upstream.sh"
PROOFS = "proofs/test_upstream.py"
STICKY = "proofs/test_sticky.py"
HEADER = f"{PROOFS}::test_a_header_of_the_clients_reaches_the_app_as_it_should"
SHARE = f"{PROOFS}::test_requests_share_connections_to_the_app"
WEBSOCKET = f"{PROOFS}::test_a_websocket_is_let_through"
BUSY = f"{PROOFS}::test_a_worker_that_is_busy_gets_no_more_while_another_is_free"
TOO_SLOW = f"{PROOFS}::test_workers_that_were_too_slow_once_are_asked_again_at_once"
HOST = f"{PROOFS}::test_the_app_sees_the_host_with_the_port_that_the_client_wrote"
RECREATED = "proofs/test_containers.py::test_a_recreated_app_container_is_served_within_5_s_without_a_reload"
ID = "proofs/test_proxy.py::test_a_request_id_is_made_passed_on_returned_and_logged[native]"


def removed(name: str, does: str, default: str, line: str, proof: str, *rows: str, file: str = PROXY) -> Setting:
    """A directive whose line is taken away."""
    part = "proxy.conf" if file == PROXY else "upstream.conf"
    names = [f"{part}: {name}", *(f".env: {row}" for row in rows)]
    return Setting(names, does, default, "removed", [(file, line, "")], [proof])


SETTINGS: list[Setting | Unproven] = [
    removed(
        "proxy_pass",
        "Every request goes to one of the app's workers.",
        "files from a folder",
        "proxy_pass http://app;\n",
        SHARE,
    ),
    removed(
        "proxy_http_version",
        "HTTP/1.1 towards the app, which keeps connections open and knows WebSockets.",
        "1.0 before nginx 1.29.7",
        "proxy_http_version 1.1;\n",
        SHARE,
    ),
    removed(
        "proxy_set_header Connection",
        "Keeps the connection to the app open, or has it upgraded for a WebSocket.",
        "close, before nginx 1.29.7",
        "proxy_set_header Connection $stack_connection;\n",
        SHARE,
    ),
    removed(
        "proxy_set_header Upgrade",
        "Lets WebSockets through.",
        "not passed on",
        "proxy_set_header Upgrade $stack_upgrade;\n",
        WEBSOCKET,
    ),
    removed(
        "proxy_set_header Host",
        "The app knows under which name and port it was asked: for redirects and links.",
        "the upstream's name, app",
        "proxy_set_header Host $host$stack_port;\n",
        HOST,
    ),
    removed(
        "proxy_set_header X-Request-ID",
        "The app logs a request under the same id as nginx.",
        "what the client sent",
        "proxy_set_header X-Request-ID $stack_request_id;\n",
        ID,
    ),
    removed(
        "proxy_hide_header X-Request-ID",
        "The client gets one id, though the app may send its own.",
        "both",
        "proxy_hide_header X-Request-ID;\n",
        f"{PROOFS}::test_the_client_gets_one_request_id_and_not_the_apps_own_too",
    ),
    removed(
        "proxy_set_header X-Forwarded-For",
        "The client's address, and not what the client says of it.",
        "what the client sent",
        "proxy_set_header X-Forwarded-For $remote_addr;\n",
        f"{HEADER}[X-Forwarded-For-203.0.113.7-127.0.0.1]",
    ),
    removed(
        "proxy_set_header X-Forwarded-Proto",
        "The scheme on which nginx was asked, or the load balancer in front.",
        "what the client sent",
        "proxy_set_header X-Forwarded-Proto $stack_scheme;\n",
        f"{HEADER}[X-Forwarded-Proto-https-http]",
    ),
    removed(
        "proxy_set_header X-Forwarded-Host",
        "The same as Host, for libraries that prefer it.",
        "what the client sent",
        "proxy_set_header X-Forwarded-Host $host$stack_port;\n",
        f"{HEADER}[X-Forwarded-Host-evil.test-None]",
    ),
    *(
        removed(
            f"proxy_set_header {name}",
            does,
            "what the client sent",
            f'proxy_set_header {name} "";\n',
            f"{HEADER}[{name}-{sent}-]",
        )
        for name, sent, does in (
            ("X-Forwarded-Port", "444", "Nobody sets it here, so nothing that reads it may find a client's."),
            ("X-Forwarded-Prefix", "/evil", "Nobody sets it here: a client's would lead links astray."),
            ("X-Real-IP", "203.0.113.7", "Nobody sets it here: a client could choose its own address."),
            ("Forwarded", "for=203.0.113.7", "Nobody sets it here: a client could choose its own address."),
            ("Proxy", "http://evil.test", "Libraries that take it for HTTP_PROXY would send requests there."),
        )
    ),
    removed(
        "proxy_buffering",
        "Each piece of an answer goes to the client when the app sends it; what nobody reads waits in the app.",
        "on: up to 1 GB of each answer waits in a file, and gzip holds a stream back to its end",
        "proxy_buffering off;\n",
        "proofs/test_space.py::test_each_piece_of_an_answer_arrives_when_it_is_sent[native]",
    ),
    removed(
        "proxy_buffer_size",
        "The piece of an answer that nginx holds, in which its header has to fit.",
        "4 KiB",
        "proxy_buffer_size ${PROXY_BUFFER_BYTES};\n",
        "proofs/test_nginx.py::test_an_answer_may_have_many_headers",
        "PROXY_BUFFER_BYTES",
    ),
    Setting(
        ["proxy.conf: proxy_buffers"],
        "Not used; nginx refuses a proxy_buffer_size that is large beside them.",
        "8 times 4 KiB",
        "removed",
        [(PROXY, "proxy_buffers 4 ${PROXY_BUFFER_BYTES};\n", "")],
        ["proofs/test_nginx.py::test_an_answer_may_have_many_headers"],
        breaks_start=True,
    ),
    removed(
        "proxy_connect_timeout",
        "A replica that accepts nothing costs this long, then the next one is asked.",
        "60s",
        "proxy_connect_timeout ${PROXY_CONNECT_TIMEOUT_MS}ms;\n",
        f"{PROOFS}::test_a_replica_that_accepts_nothing_costs_the_connect_timeout",
        "PROXY_CONNECT_TIMEOUT_MS",
    ),
    removed(
        "proxy_send_timeout",
        "An app that does not read the request costs this long.",
        "60s",
        "proxy_send_timeout ${PROXY_SEND_TIMEOUT_SECONDS}s;\n",
        f"{PROOFS}::test_an_app_that_reads_no_body_costs_the_send_timeout",
        "PROXY_SEND_TIMEOUT_SECONDS",
    ),
    removed(
        "proxy_read_timeout",
        "An app that does not answer costs this long.",
        "60s",
        "proxy_read_timeout ${PROXY_READ_TIMEOUT_SECONDS}s;\n",
        TOO_SLOW,
        "PROXY_READ_TIMEOUT_SECONDS",
    ),
    removed(
        "proxy_next_upstream_tries",
        "A request is tried on at most N addresses.",
        "no limit",
        "proxy_next_upstream_tries ${PROXY_NEXT_UPSTREAM_TRIES};\n",
        f"{PROOFS}::test_a_refused_connection_is_tried_elsewhere_so_many_times[GET]",
        "PROXY_NEXT_UPSTREAM_TRIES",
    ),
    removed(
        "proxy_next_upstream_timeout",
        "After this many milliseconds no further address is tried.",
        "no limit",
        "proxy_next_upstream_timeout ${PROXY_NEXT_UPSTREAM_TIMEOUT_MS}ms;\n",
        f"{PROOFS}::test_tries_of_frozen_replicas_end_with_their_time",
        "PROXY_NEXT_UPSTREAM_TIMEOUT_MS",
    ),
    Setting(
        ["upstream.conf: upstream app / zone"],
        "nginx's own workers share what they know of the app's: who is busy, and where they are now.",
        "each knows what it has sent itself",
        "removed",
        [(UPSTREAM, "    zone app $((256 + 4 * count))k;", "    ")],
        [BUSY],
    ),
    Setting(
        ["upstream.conf: upstream app / resolver"],
        "Docker's DNS says where the app's containers are.",
        "none",
        "removed",
        [(UPSTREAM, "    resolver ${UPSTREAM_RESOLVER} valid=1s ipv6=off;\n", "")],
        [RECREATED],
        breaks_start=True,
    ),
    Setting(
        ["upstream.conf: upstream app / resolver valid"],
        "It is asked again after this time, whatever its answer says.",
        "as long as the answer says: 600 s with Docker's",
        "removed",
        [(UPSTREAM, " valid=1s", "")],
        [RECREATED],
    ),
    Setting(
        ["upstream.conf: upstream app / resolver ipv6"],
        "The app listens on IPv4: an address of the other kind is a try that is refused.",
        "on",
        "the default",
        [(UPSTREAM, " ipv6=off", "")],
        ["proofs/test_dual_stack.py::test_no_try_goes_to_an_ipv6_address_of_the_app"],
    ),
    Unproven(
        ["upstream.conf: upstream app / resolver_timeout"],
        "After a lookup without an answer the next comes so soon; until then nginx knows what it knew before.",
        "30s",
        "It takes a lookup that is lost. Docker's DNS answers from inside each container's network, and a container "
        "without capabilities cannot keep its answers away; that a name does not exist is an answer.",
    ),
    Setting(
        ["upstream.conf: upstream app / least_conn"],
        "The worker with the fewest requests under way gets the next.",
        "they take turns",
        "removed",
        [(UPSTREAM, "balance='least_conn;'", "balance=")],
        [BUSY],
    ),
    Setting(
        [".env: STICKY_SESSIONS"],
        "All requests of one client go to one worker, for an app that keeps sessions in memory.",
        "none: to the worker with the fewest requests under way",
        "none, whatever the row says",
        [(UPSTREAM, "case ${STICKY_SESSIONS} in", "case none in")],
        [f"{STICKY}::test_a_client_stays_with_one_worker[address-native]"],
    ),
    Setting(
        ["upstream.conf: upstream app / server"],
        "One for each worker of the app.",
        "none",
        "the first worker's alone",
        [(UPSTREAM, "    port=$((port + 1))\n", "    port=65536\n")],
        [f"{PROOFS}::test_all_workers_are_used"],
    ),
    Setting(
        ["upstream.conf: upstream app / server resolve"],
        "The app's addresses are looked up while nginx runs, and not only at its start.",
        "looked up at the start",
        "removed",
        [(UPSTREAM, 'suffix=" resolve"', "suffix=")],
        [RECREATED],
    ),
    Setting(
        ["upstream.conf: upstream app / server backup"],
        "WAY=swarm: nginx asks its own node's app, and another's only where that is not there or full.",
        "all are asked alike",
        "removed",
        [(UPSTREAM, ' " backup"', "")],
        [
            "proofs/test_swarm.py::test_a_power_cut_loses_only_what_was_in_flight_there",
            "proofs/test_swarm.py::test_each_node_answers_with_its_own_app_and_the_clients_address",
        ],
    ),
    Setting(
        ["upstream.conf: upstream app / server max_fails"],
        "One slow answer does not take a worker out.",
        "1, for 10 s",
        "the default",
        [(UPSTREAM, " max_fails=0", "")],
        [TOO_SLOW],
    ),
    Setting(
        ["upstream.conf: upstream app / keepalive", ".env: UPSTREAM_KEEPALIVE_CONNECTIONS"],
        "So many idle connections to the app stay open in each of nginx's workers.",
        "none before nginx 1.29.7",
        "removed",
        [(UPSTREAM, "    keepalive ${UPSTREAM_KEEPALIVE_CONNECTIONS};\n", "")],
        [SHARE],
    ),
    Setting(
        ["upstream.conf: upstream app / keepalive_timeout", ".env: UPSTREAM_KEEPALIVE_SECONDS"],
        "nginx closes an idle connection before the app does: a POST that meets the app's close gets 502.",
        "60s",
        "removed",
        [(UPSTREAM, "    keepalive_timeout ${UPSTREAM_KEEPALIVE_SECONDS}s;\n", "")],
        [f"{PROOFS}::test_nginx_closes_idle_connections_long_before_the_app_would"],
    ),
]
