"""The settings of the servers of nginx.conf, answers.conf and errors.conf."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

CONF = "nginx/templates/nginx.conf.template"
ANSWERS = "nginx/templates/answers.conf.template"
ERRORS = "nginx/templates/errors.conf.template"
BUFFERS = "\n            sndbuf=${CLIENT_SOCKET_BUFFER_BYTES} rcvbuf=${CLIENT_SOCKET_BUFFER_BYTES};"
DEFAULT_LISTEN = f"listen ${{NGINX_LISTEN}} default_server backlog=${{LISTEN_BACKLOG}}{BUFFERS}"
ITSELF = "proofs/test_ipv6.py::test_a_client_arrives_as_itself"
LISTEN = "        listen ${NGINX_LISTEN};\n"
INSIDE = "        include ${NGINX_RUN}/inside.conf;\n"
ANSWERS_INCLUDED = "        include ${NGINX_RUN}/answers.conf;\n"
HEALTH = "        location = /nginx-health {\n            return 200;\n        }\n"
KNOWN = "proofs/test_limits.py::test_only_the_named_hosts_reach_the_app[example.com-200]"
UNKNOWN = "proofs/test_limits.py::test_only_the_named_hosts_reach_the_app[evil.test-421]"
ID = "proofs/test_proxy.py::test_a_request_id_is_made_passed_on_returned_and_logged[native]"
HEALTH_PROOF = "proofs/test_proxy.py::test_the_health_location_is_this_stacks_own[native]"
TOO_LARGE = "proofs/test_proxy.py::test_a_body_over_the_limit_gets_413_as_json[native]"
INTERNAL = "proofs/test_proxy.py::test_internal_endpoints_are_not_reachable_from_outside[native-/metrics]"
POST_502 = "proofs/test_errors.py::test_a_worker_that_dies_with_a_post_is_a_502_and_the_post_is_not_sent_again"
POST_504 = "proofs/test_errors.py::test_a_post_that_no_worker_answers_in_time_is_a_504_and_is_not_sent_again"
KERNEL = "proofs/test_space.py::test_the_kernel_keeps_little_of_what_nobody_reads"
REFUSED = "proofs/test_upstream.py::test_a_refused_connection_is_tried_elsewhere_so_many_times[POST]"

SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["nginx.conf: default server / listen"],
        "Where requests for names that nobody claims arrive.",
        "*:80, or *:8000 without the rights for it",
        "127.0.0.2 alone",
        [(CONF, DEFAULT_LISTEN, "listen 127.0.0.2:${NGINX_LISTEN} default_server;")],
        [UNKNOWN],
    ),
    Setting(
        ["nginx.conf: default server / listen default_server"],
        "The server for every name that no other claims.",
        "the first server in the file",
        "given to the app's server",
        [
            (CONF, DEFAULT_LISTEN, "listen ${NGINX_LISTEN} backlog=${LISTEN_BACKLOG};"),
            (CONF, LISTEN, LISTEN.replace(";", " default_server;")),
        ],
        [UNKNOWN],
    ),
    Setting(
        [
            "nginx.conf: default server / listen [::]",
            "nginx.conf: default server / listen [::] default_server",
            "nginx.conf: default server / listen [::] backlog",
            "nginx.conf: default server / listen [::] sndbuf",
            "nginx.conf: default server / listen [::] rcvbuf",
            "nginx.conf: server / listen [::]",
        ],
        "The same for clients of IPv6, on a socket of its own.",
        "none: nginx listens on IPv4 alone",
        "removed",
        [
            (CONF, f"        listen ${{NGINX_LISTEN_IPV6}} default_server backlog=${{LISTEN_BACKLOG}}{BUFFERS}\n", ""),
            (CONF, "        listen ${NGINX_LISTEN_IPV6};\n", ""),
        ],
        [f"{ITSELF}[native-IPv6]"],
    ),
    Setting(
        ["nginx.conf: default server / listen backlog"],
        "So many connections wait in the kernel while nginx is busy; the next one waits a second or is given up.",
        "511",
        "the default",
        [(CONF, " backlog=${LISTEN_BACKLOG}\n", "\n")],
        ["proofs/test_limits.py::test_a_burst_of_connections_waits_for_a_busy_nginx"],
    ),
    Setting(
        ["nginx.conf: default server / listen sndbuf", ".env: CLIENT_SOCKET_BUFFER_BYTES"],
        "The kernel keeps this much of an answer that a client does not read, and no megabytes.",
        "as it sees fit, up to 4 MB",
        "removed",
        [(CONF, " sndbuf=${CLIENT_SOCKET_BUFFER_BYTES}", "")],
        [f"{KERNEL}[native]"],
    ),
    Setting(
        ["nginx.conf: default server / listen rcvbuf"],
        "The kernel keeps this much of what a client sends while nginx does not read.",
        "as it sees fit, up to 6 MB and more",
        "removed",
        [(CONF, " rcvbuf=${CLIENT_SOCKET_BUFFER_BYTES}", "")],
        [f"{KERNEL}[native]"],
    ),
    Setting(
        ["nginx.conf: default server / include answers.conf"],
        "Health and JSON errors on unknown names too.",
        "nginx's own pages",
        "removed",
        [(CONF, f"{INSIDE}{ANSWERS_INCLUDED}", INSIDE)],
        [UNKNOWN],
    ),
    Setting(
        ["nginx.conf: default server / location / / return"],
        "421 for a name that this stack does not serve.",
        "files from a folder",
        "removed",
        [(CONF, "            return 421;\n", "")],
        [UNKNOWN],
    ),
    Setting(
        ["nginx.conf: server / listen"],
        "Where requests for the app arrive.",
        "*:80, or *:8000 without the rights for it",
        "127.0.0.2 alone",
        [(CONF, LISTEN, "        listen 127.0.0.2:${NGINX_LISTEN};\n")],
        [KNOWN],
    ),
    Setting(
        ["nginx.conf: server / server_name", ".env: SERVER_NAMES"],
        "The names that reach the app.",
        "none",
        "without the names of .env",
        [(CONF, "server_name localhost 127.0.0.1 nginx ${SERVER_NAMES};", "server_name localhost 127.0.0.1 nginx;")],
        [KNOWN],
    ),
    Setting(
        ["nginx.conf: server / include answers.conf"],
        "Health and JSON errors on the app's names.",
        "nginx's own pages",
        "a health location alone",
        [(CONF, "${SERVER_NAMES};\n" + ANSWERS_INCLUDED, "${SERVER_NAMES};\n" + HEALTH)],
        [TOO_LARGE],
    ),
    Setting(
        ["nginx.conf: server / location / / include proxy.conf"],
        "Sends requests to the app.",
        "files from a folder",
        "removed",
        [(CONF, "        location / {\n            include ${NGINX_RUN}/proxy.conf;\n", "        location / {\n")],
        [KNOWN],
    ),
    Setting(
        ["nginx.conf: server / location / / include errors.conf"],
        "JSON errors for the app's paths: a location with an error_page of its own inherits none.",
        "nginx's own pages",
        "removed",
        [(CONF, "            include ${NGINX_RUN}/errors.conf;\n", "")],
        [TOO_LARGE],
    ),
    Setting(
        ["nginx.conf: server / location / / error_page 502 504 ="],
        "A second chance for a request that has reached no app.",
        "none: 502 at once",
        "removed",
        [
            (
                CONF,
                "            error_page 502 504 = @again;\n        }\n\n        # Over",
                "        }\n\n        # Over",
            )
        ],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: server / location @failed / if $stack_final = 502"],
        "No 503, which says that nothing was done, for a request that was sent: the app may have done it.",
        "503",
        "removed",
        [(CONF, "            if ($stack_final = 502) {\n                return 502;\n            }\n", "")],
        [POST_502],
    ),
    Setting(
        ["nginx.conf: server / location @failed / if $stack_final = 504"],
        "Nor for a request that timed out in the app.",
        "503",
        "removed",
        [(CONF, "            if ($stack_final = 504) {\n                return 504;\n            }\n", "")],
        [POST_504],
    ),
    Setting(
        ["nginx.conf: server / location @again / include proxy.conf"],
        "Sends it, the second time.",
        "files from a folder",
        "removed",
        [(CONF, "            }\n            include ${NGINX_RUN}/proxy.conf;\n", "            }\n")],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: server / location ~ ^/(livez|readyz|metrics)/?$ / return"],
        "The app's health and metrics are for this side of the proxy.",
        "they are passed on like any other path",
        "another location's",
        [(CONF, "location ~ ^/(livez|readyz|metrics)/?$ {", "location = /nowhere {")],
        [INTERNAL],
    ),
    Setting(
        ["answers.conf: add_header X-Request-ID"],
        "The client learns the id under which the logs know its request.",
        "none",
        "removed",
        [(ANSWERS, "add_header X-Request-ID $stack_request_id always;\n", "")],
        [ID],
    ),
    Setting(
        ["answers.conf: add_header X-Request-ID always"],
        "On errors too.",
        "on successful answers and redirects only",
        "removed",
        [(ANSWERS, "$stack_request_id always;", "$stack_request_id;")],
        [TOO_LARGE],
    ),
    Setting(
        ["answers.conf: location = /nginx-health / access_log"],
        "Health checks do not fill the log.",
        "the access log of the http block",
        "removed",
        [(ANSWERS, "    access_log off;\n", "")],
        ["proofs/test_proxy.py::test_health_checks_are_not_logged[native]"],
    ),
    Setting(
        ["answers.conf: location = /nginx-health / default_type"],
        "The health answer says that it is JSON.",
        "text/plain, here that of the http block",
        "removed",
        [(ANSWERS, "    access_log off;\n    default_type application/json;\n", "    access_log off;\n")],
        [HEALTH_PROOF],
    ),
    Setting(
        ["answers.conf: location = /nginx-health / return"],
        "An answer that no other nginx gives: a stock one has a welcome page for a health check on /.",
        "files from a folder",
        "an empty 200",
        [(ANSWERS, 'return 200 \'{"nginx":"ok"}\';', "return 200;")],
        [HEALTH_PROOF],
    ),
    Setting(
        ["answers.conf: include errors.conf"],
        "JSON errors outside the app's paths: bad requests, unknown names, internal endpoints.",
        "nginx's own pages",
        "removed",
        [(ANSWERS, "include ${NGINX_RUN}/errors.conf;\n", "")],
        [INTERNAL],
    ),
    Setting(
        ["answers.conf: error_page 502 504"],
        "JSON for what fails at the second chance, or gets none.",
        "nginx's own pages",
        "removed",
        [(ANSWERS, "error_page 502 504 /stack-error;\n", "")],
        [POST_502],
    ),
    Setting(
        ["answers.conf: recursive_error_pages"],
        "An error on the way to an error page has a page too.",
        "off",
        "the default",
        [(ANSWERS, "recursive_error_pages on;\n", "")],
        [POST_502],
    ),
    Setting(
        ["answers.conf: location = /stack-error / internal"],
        "Nobody can ask for the page of errors.",
        "every location can be asked for",
        "removed",
        [(ANSWERS, "    internal;\n", "")],
        ["proofs/test_errors.py::test_the_page_of_errors_cannot_be_asked_for"],
    ),
    Setting(
        ["answers.conf: location = /stack-error / default_type"],
        "An error says that it is JSON.",
        "text/plain, here that of the http block",
        "removed",
        [(ANSWERS, "    internal;\n    default_type application/json;\n", "    internal;\n")],
        [TOO_LARGE],
    ),
    Setting(
        ["answers.conf: location = /stack-error / return"],
        "The body of an error: its status, its words, the request's id.",
        "files from a folder",
        "an empty body",
        [(ANSWERS, 'return 200 \'{"status":$status,', "return 200; # '{")],
        [TOO_LARGE],
    ),
    Setting(
        ["errors.conf: error_page 400 404 405 413 414 421 429 494 497 500 501 503 505"],
        "nginx's own errors are JSON with the request's id.",
        "HTML pages",
        "removed",
        [(ERRORS, "error_page 400 404 405 413 414 421 429 494 497 500 501 503 505 /stack-error;\n", "")],
        [TOO_LARGE],
    ),
]
