"""The settings of nginx.conf but for its servers and the maps that they alone use."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

CONF = "nginx/templates/nginx.conf.template"
PROOFS = "proofs/test_nginx.py"
CONTAINER = "proofs/test_nginx_container.py"
SLOW = "proofs/test_slow_clients.py"
UPSTREAM = "proofs/test_upstream.py"
SPACE = "proofs/test_space.py"
IPV6 = "proofs/test_ipv6.py"
UPLOADS = "proofs/test_limits.py::test_uploads_of_one_address_and_of_all_are_bounded_and_small_bodies_are_not"
GZIP_TYPES = """    gzip_types application/javascript application/json application/manifest+json
        application/problem+json application/rss+xml application/xml image/svg+xml
        text/css text/csv text/javascript text/plain text/xml;
"""
STARTS = f"{CONTAINER}::test_nginx_starts_on_a_read_only_root_and_takes_large_bodies"
HEADERS = f"{SLOW}::test_2000_half_open_headers_keep_nobody_out_and_are_cut_off"
READERS = f"{SLOW}::test_clients_that_read_nothing_hold_their_places_until_they_are_cut_off"
LOGGED = f"{PROOFS}::test_the_access_log_says_who_asked_for_what_and_how_it_went"
REFUSED = f"{PROOFS}::test_a_refused_request_is_logged_with_its_own_method_and_no_tries"
BODIES = f"{PROOFS}::test_slow_bodies_from_one_address_take_its_places_and_no_others"


def removed(name: str, does: str, default: str, line: str, proof: str, *rows: str) -> Setting:
    """A directive whose line is taken away."""
    names = [f"nginx.conf: {name}", *(f".env: {row}" for row in rows)]
    return Setting(names, does, default, "removed", [(CONF, line, "")], [proof])


def changed(name: str, does: str, default: str, change: str, before: str, after: str, proof: str) -> Setting:
    return Setting([f"nginx.conf: {name}"], does, default, change, [(CONF, before, after)], [proof])


SETTINGS: list[Setting | Unproven] = [
    removed(
        "pid",
        "nginx writes its pid where it may write.",
        "a path compiled in, on the read-only root",
        "pid ${NGINX_RUN}/nginx.pid;\n",
        STARTS,
    ),
    removed(
        "error_log",
        "Warnings and errors go where the stack's log is.",
        "a file, and no warnings",
        "error_log stderr warn;\n",
        f"{PROOFS}::test_what_goes_to_disk_is_said_in_the_log",
    ),
    removed(
        "worker_processes",
        "The processes that serve: what they can hold together has to have its space.",
        "1",
        "worker_processes ${NGINX_WORKERS};\n",
        f"{PROOFS}::test_nginx_has_as_many_workers_as_the_row_says",
        "NGINX_WORKERS",
    ),
    removed(
        "worker_rlimit_nofile",
        "Descriptors for all its connections, whatever the shell grants.",
        "the shell's limit, often 1024",
        "worker_rlimit_nofile 16384;\n",
        HEADERS,
    ),
    removed(
        "worker_shutdown_timeout",
        "After a reload or on a stop, what stays open is closed after this many seconds.",
        "never",
        "worker_shutdown_timeout ${NGINX_SHUTDOWN_SECONDS}s;\n",
        f"{PROOFS}::test_a_websocket_ends_some_seconds_after_a_reload",
        "NGINX_SHUTDOWN_SECONDS",
    ),
    removed(
        "events / worker_connections",
        "Connections that one worker of nginx can have open.",
        "512",
        "    worker_connections ${NGINX_WORKER_CONNECTIONS};\n",
        HEADERS,
        "NGINX_WORKER_CONNECTIONS",
    ),
    *(
        removed(
            f"{kind}_temp_path",
            does,
            "a path compiled in, on the read-only root",
            f"    {kind}_temp_path ${{NGINX_RUN}}/{folder};\n",
            STARTS,
        )
        for kind, folder, does in (
            ("client_body", "body", "Bodies that do not fit into memory wait here until they are whole."),
            (
                "proxy",
                "proxy",
                "Not used, as answers wait in the app; nginx makes the folder at its start all the same.",
            ),
            ("fastcgi", "fastcgi", "Not used; nginx makes the folder at its start all the same."),
            ("uwsgi", "uwsgi", "Not used; nginx makes the folder at its start all the same."),
            ("scgi", "scgi", "Not used; nginx makes the folder at its start all the same."),
        )
    ),
    removed(
        "server_tokens",
        "Nobody is told which version of nginx this is.",
        "on",
        "    server_tokens off;\n",
        "proofs/test_proxy.py::test_nothing_says_which_nginx_this_is[native]",
    ),
    changed(
        "map $http_x_request_id $stack_request_id",
        "A client's request id is used if it looks like one; otherwise nginx makes one.",
        "none",
        "any id is taken",
        '"~^[A-Za-z0-9._-]{8,64}$" $http',
        '"~." $http',
        f"{PROOFS}::test_a_request_id_is_taken_from_the_client_if_it_looks_like_one[quotes]",
    ),
    changed(
        "map $http_upgrade $stack_upgrade",
        "WebSockets are let through, and no other upgrade.",
        "none",
        "every upgrade is let through",
        'default "";\n        websocket $stack_websocket;',
        "default $http_upgrade;",
        f"{UPSTREAM}::test_a_header_of_the_clients_reaches_the_app_as_it_should[Upgrade-h2c-]",
    ),
    changed(
        "map $server_protocol $stack_websocket",
        "No upgrade inside HTTP/2 reaches the app.",
        "none",
        "by every protocol",
        'default "";\n        HTTP/1.1 websocket;',
        "default websocket;",
        "proofs/test_tls.py::test_an_upgrade_inside_http2_does_not_reach_the_app[native]",
    ),
    changed(
        "map $stack_upgrade $stack_connection",
        "Connections to the app stay open for the next request.",
        "none",
        "close but for WebSockets, as in nginx's documentation",
        'default "";\n        websocket upgrade;',
        "default close;\n        websocket upgrade;",
        f"{UPSTREAM}::test_requests_share_connections_to_the_app",
    ),
    removed(
        "include balancers.conf",
        "Whom to believe what it says of its client.",
        "none",
        "    include ${NGINX_RUN}/balancers.conf;\n\n",
        STARTS,
    ),
    changed(
        "map $binary_remote_addr $stack_client",
        "Addresses of IPv6 that have the first 64 bits in common are one client, for its limits and its worker.",
        "none",
        "each address is a client",
        '        "~(?s)^(?!\\x00{10}\\xff\\xff)(?<stack_network>.{8}).{8}\\z" $stack_network;\n',
        "",
        f"{IPV6}::test_a_64_is_one_client_and_its_neighbour_another[Content-Length: 9999-2]",
    ),
    changed(
        "map $http_host $stack_port",
        "The port that the client wrote, for the Host that the app sees.",
        "none",
        "always empty",
        '        "~(?<host_port>:[0-9]{1,5})$" $host_port;\n',
        "",
        f"{UPSTREAM}::test_the_app_sees_the_host_with_the_port_that_the_client_wrote",
    ),
    changed(
        "map $server_protocol $stack_hostless_port",
        "By HTTP/3 the published port, for the Host that the app sees.",
        "none",
        "always empty",
        "        HTTP/3.0 $stack_https_port;\n",
        "",
        "proofs/test_http3.py::test_the_app_sees_what_it_sees_by_the_others",
    ),
    changed(
        "map $status $stack_reason",
        "nginx's own errors as JSON call themselves by their names.",
        "none",
        "without the row for 404",
        '        404 "Not Found";\n',
        "",
        f"{PROOFS}::test_an_error_is_called_by_its_name[404]",
    ),
    changed(
        "map $request $stack_method",
        "The log has the method that the client sent, for errors too.",
        "none",
        "$request_method",
        'default "";\n        "~^(?<method>[A-Z]+) " $method;',
        "default $request_method;",
        REFUSED,
    ),
    changed(
        "map $status $stack_status",
        "The status as a number, also where there is none: 000 is no JSON.",
        "none",
        "without the row for none",
        "        000 0;\n",
        "",
        "proofs/test_tls.py::test_a_flood_is_ended_and_a_bystander_is_served[native-continuation]",
    ),
    changed(
        "map $upstream_addr $stack_tries",
        "The log has the number of workers that a request was sent to.",
        "none",
        "without the row for none",
        '        "" 0;\n',
        "",
        REFUSED,
    ),
    changed(
        "log_format stack",
        "A line of JSON for each request: who, what, how long, which worker.",
        "combined, which is no JSON and knows neither ids nor workers",
        "the default format",
        "${NGINX_ACCESS_LOG} stack ",
        "${NGINX_ACCESS_LOG} combined ",
        LOGGED,
    ),
    changed(
        "log_format stack escape",
        "A quote in a header does not break the line's JSON.",
        "default, which writes \\x22",
        "removed",
        "log_format stack escape=json '",
        "log_format stack '",
        LOGGED,
    ),
    removed(
        "access_log",
        "The log goes to the container's output, or into the stack's folder.",
        "a file at a path compiled in",
        "    access_log ${NGINX_ACCESS_LOG} stack buffer=32k flush=1s;\n",
        LOGGED,
    ),
    changed(
        "access_log buffer",
        "Many lines in one write: with one for each line nginx uses 1.04 times the CPU.",
        "a write for each line",
        "removed",
        " buffer=32k flush=1s;",
        ";",
        f"{PROOFS}::test_the_log_is_written_many_lines_at_a_time",
    ),
    changed(
        "access_log flush",
        "A line is written within a second, though few requests come.",
        "when the buffer is full",
        "removed",
        " flush=1s;",
        ";",
        f"{PROOFS}::test_a_line_is_in_the_log_soon_though_few_requests_come",
    ),
    removed(
        "client_header_timeout",
        "A client has this many seconds for its request's header as a whole.",
        "60s",
        "    client_header_timeout ${CLIENT_HEADER_TIMEOUT_SECONDS}s;\n",
        HEADERS,
        "CLIENT_HEADER_TIMEOUT_SECONDS",
    ),
    removed(
        "client_body_timeout",
        "A client has this many seconds between two pieces of its body.",
        "60s",
        "    client_body_timeout ${CLIENT_BODY_TIMEOUT_SECONDS}s;\n",
        f"{SLOW}::test_2000_half_sent_bodies_keep_nobody_out_and_are_cut_off",
        "CLIENT_BODY_TIMEOUT_SECONDS",
    ),
    removed(
        "send_timeout",
        "A client that reads nothing of its answer is cut off after this many seconds.",
        "60s",
        "    send_timeout ${CLIENT_SEND_TIMEOUT_SECONDS}s;\n",
        READERS,
        "CLIENT_SEND_TIMEOUT_SECONDS",
    ),
    removed(
        "reset_timedout_connection",
        "What a client that timed out has not read is thrown away at once.",
        "off: the kernel keeps it for minutes",
        "    reset_timedout_connection on;\n",
        READERS,
    ),
    removed(
        "keepalive_timeout",
        "An idle client connection is closed after this many seconds.",
        "75s",
        "    keepalive_timeout ${CLIENT_KEEPALIVE_SECONDS}s;\n",
        f"{PROOFS}::test_an_idle_client_connection_is_closed_after_its_time",
        "CLIENT_KEEPALIVE_SECONDS",
    ),
    removed(
        "keepalive_min_timeout",
        "A reload leaves idle client connections open for this many seconds: a request may be on its way.",
        "0: closed at once",
        "    keepalive_min_timeout ${CLIENT_KEEPALIVE_MIN_SECONDS}s;\n",
        f"{CONTAINER}::test_a_reload_leaves_idle_client_connections_open_for_what_is_on_its_way",
        "CLIENT_KEEPALIVE_MIN_SECONDS",
    ),
    Setting(
        ["nginx.conf: client_max_body_size", ".env: CLIENT_MAX_BODY_BYTES"],
        "A larger body is refused with 413 before the app sees any of it.",
        "1 MiB",
        "the default",
        [(CONF, "    client_max_body_size ${CLIENT_MAX_BODY_BYTES};\n", "")],
        ["proofs/test_proxy.py::test_a_body_over_the_limit_gets_413_as_json[native]"],
    ),
    removed(
        "large_client_header_buffers",
        "A longer header line or request line is refused, and so is a header of more than two of them.",
        "8 KiB, four times",
        "    large_client_header_buffers 2 ${CLIENT_MAX_HEADER_BYTES};\n",
        f"{PROOFS}::test_a_header_line_over_the_row_is_refused",
        "CLIENT_MAX_HEADER_BYTES",
    ),
    removed(
        "client_body_buffer_size",
        "A shorter body waits in memory until it is whole, and takes no file.",
        "16 KiB",
        "    client_body_buffer_size ${CLIENT_BODY_BUFFER_BYTES};\n",
        f"{SPACE}::test_a_body_that_fits_the_buffer_waits_in_memory[native]",
        "CLIENT_BODY_BUFFER_BYTES",
    ),
    removed(
        "include uploads.conf",
        "Which requests are uploads.",
        "none",
        "    include ${NGINX_RUN}/uploads.conf;\n",
        STARTS,
    ),
    Setting(
        ["uploads.conf: map $http_transfer_encoding$content_length $stack_upload"],
        "A request whose body may not fit into memory counts as an upload of its client.",
        "none",
        "a body of unknown length (chunked) does not count",
        [("nginx/40-upstream.sh", '    "" "";\n', '    "" "";\n    chunked "";\n')],
        [f"{UPLOADS}[Transfer-Encoding: chunked]"],
    ),
    changed(
        "map all $stack_all",
        "All clients' requests are counted together; and who is refused for that is told so, with 503.",
        "none",
        "without the word that it was asked for: 429, as if it were the client's own fault",
        '"~^(?<stack_all_asked>all)$" all;',
        "all all;",
        STARTS,
    ),
    changed(
        "map $stack_upload $stack_uploads",
        "All clients' uploads are counted together.",
        "none",
        "empty: they are not counted",
        "        default all;\n",
        '        default "";\n',
        f"{UPLOADS}[Content-Length: 20000]",
    ),
    changed(
        "limit_conn_zone",
        "Requests in flight are counted for each client.",
        "none",
        "$server_name: all clients in one",
        "limit_conn_zone $stack_client ",
        "limit_conn_zone $server_name ",
        BODIES,
    ),
    changed(
        "limit_conn_zone zone",
        "Memory for tens of thousands of addresses with requests in flight; one more would be refused.",
        "none; it must be given",
        "32k, the least",
        "zone=requests_of_client:10m",
        "zone=requests_of_client:32k",
        f"{PROOFS}::test_many_addresses_are_counted_at_once",
    ),
    removed(
        "limit_conn",
        "One address has at most N requests in flight.",
        "no limit",
        "    limit_conn requests_of_client ${CLIENT_MAX_REQUESTS_IN_FLIGHT};\n",
        BODIES,
        "CLIENT_MAX_REQUESTS_IN_FLIGHT",
    ),
    Setting(
        [".env: CLIENT_MAX_UPLOADS_IN_FLIGHT"],
        "One address has at most N uploads in flight: it cannot take all the space for them.",
        "no limit",
        "removed",
        [(CONF, "    limit_conn uploads_of_client ${CLIENT_MAX_UPLOADS_IN_FLIGHT};\n", "")],
        [f"{UPLOADS}[Content-Length: 20000]"],
    ),
    Setting(
        [".env: NGINX_MAX_REQUESTS_IN_FLIGHT"],
        "All clients together have at most N requests in flight, for which there is memory.",
        "no limit: the kernel kills nginx when its memory is full",
        "removed",
        [(CONF, "    limit_conn requests ${NGINX_MAX_REQUESTS_IN_FLIGHT};\n", "")],
        ["proofs/test_limits.py::test_requests_of_all_addresses_together_are_bounded"],
    ),
    Setting(
        [".env: NGINX_MAX_UPLOADS_IN_FLIGHT"],
        "All clients together have at most N uploads in flight, for which there is space.",
        "no limit: uploads fill the space, and then fail in their middle",
        "removed",
        [(CONF, "    limit_conn uploads ${NGINX_MAX_UPLOADS_IN_FLIGHT};\n", "")],
        [f"{UPLOADS}[Content-Length: 20000]"],
    ),
    removed(
        "limit_conn_status",
        "Whoever asks too much gets 429, and does not take it for an overload of the stack.",
        "503",
        "    limit_conn_status 429;\n",
        f"{PROOFS}::test_a_refusal_for_too_many_at_once_says_whose_fault_it_is",
    ),
    removed(
        "gzip",
        "Answers are compressed.",
        "off",
        "    gzip on;\n",
        f"{PROOFS}::test_large_json_is_compressed",
    ),
    changed(
        "gzip_types",
        "Text of all kinds is compressed (HTML always is), and event streams are not.",
        "HTML alone",
        "JSON alone, as in many tutorials",
        GZIP_TYPES,
        "    gzip_types application/json;\n",
        f"{PROOFS}::test_what_compresses_is_compressed[text/css-True]",
    ),
    removed(
        "gzip_buffers",
        "What is compressed and not yet read takes little memory.",
        "128 KiB for each answer",
        "    gzip_buffers 4 8k;\n",
        f"{SPACE}::test_an_answer_that_nobody_reads_holds_what_the_budget_says[native]",
    ),
    removed(
        "gzip_min_length",
        "A small answer is sent as it is: compressing it costs CPU and saves no packet.",
        "20",
        "    gzip_min_length ${GZIP_MIN_BYTES};\n",
        f"{PROOFS}::test_small_json_is_not_compressed",
        "GZIP_MIN_BYTES",
    ),
    removed(
        "gzip_proxied",
        "Requests that come through a CDN get compressed answers too.",
        "off",
        "    gzip_proxied any;\n",
        f"{PROOFS}::test_an_answer_that_goes_through_another_proxy_is_compressed",
    ),
    removed(
        "gzip_vary",
        "A cache does not hand the compressed answer to a client that cannot read it.",
        "off",
        "    gzip_vary on;\n",
        f"{PROOFS}::test_a_cache_is_told_that_the_answer_depends_on_what_the_client_can_read",
    ),
    removed(
        "include upstream.conf",
        "Where the app is.",
        "none",
        "    include ${NGINX_RUN}/upstream.conf;\n",
        STARTS,
    ),
]
