"""From what a person sees to the setting behind it, and the proof that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORK = "proofs/test_fork.py::"
ZERO_LOSS = "proofs/test_zero_loss.py::"
PROXY = "proofs/test_proxy.py::"
UPSTREAM = "proofs/test_upstream.py::"
WORKER = "proofs/test_worker.py::"
ANSWERS = "proofs/test_answers.py::"
CACHE = "proofs/test_cache.py::"
BALANCER = "proofs/test_load_balancer.py::"
SWARM = "proofs/test_swarm.py::"


@dataclass(frozen=True)
class Symptom:
    """`settings` are names of the inventory, `proofs` tests without their parameters, `metrics` those that change when
    it happens, with labels where only one series does; all are held to what exists.
    """

    seen: str
    why: str
    settings: Sequence[str]
    proofs: Sequence[str]
    metrics: Sequence[str] = ()


SYMPTOMS = [
    Symptom(
        "502 now and then, on POSTs above all, after a quiet moment",
        "the app closed an idle connection just as nginx sent on it: the app's keep-alive must be the longer one",
        ["gunicorn.conf.py: keepalive", "upstream.conf: upstream app / keepalive_timeout"],
        [ZERO_LOSS + "test_nothing_is_lost_when_an_idle_connection_is_reused_as_its_timeout_ends"],
        ['nginx_http_responses_total{cause="lost"}', "nginx_upstream_tries_total"],
    ),
    Symptom(
        "502 when workers are recycled, reloaded or stopped",
        "a worker closed its connections, or its queue, while nginx was sending",
        [".env: DRAIN_SECONDS", "gunicorn.conf.py: worker_class", "gunicorn.conf.py: max_requests"],
        [ZERO_LOSS + "test_nothing_is_lost_in_ten_reloads",
         ZERO_LOSS + "test_nothing_is_lost_while_a_worker_goes_every_second"],
        ["app_worker_exits_total", "app_drain_seconds", "app_reloads_total", "app_generation", "app_workers",
         'nginx_http_responses_total{cause="lost"}'],
    ),
    Symptom(
        "502 for everybody for ten seconds after one slow request",
        "nginx took every server out because each had failed once",
        ["upstream.conf: upstream app / server max_fails"],
        [UPSTREAM + "test_workers_that_were_too_slow_once_are_asked_again_at_once"],
        ["nginx_http_responses_total", "nginx_upstream_tries_total"],
    ),
    Symptom(
        "502 after a container was recreated, until nginx is reloaded",
        "nginx kept the old address",
        ["upstream.conf: upstream app / server resolve", "upstream.conf: upstream app / resolver valid"],
        ["proofs/test_containers.py::test_a_recreated_app_container_is_served_within_5_s_without_a_reload"],
        ['nginx_http_responses_total{cause="down"}', "nginx_upstream_tries_total", "live_replica_up"],
    ),
    Symptom(
        "502, and the app's log has WORKER TIMEOUT or SIGKILL",
        "the event loop was blocked for longer than the worker timeout; what was in flight there is lost",
        ["gunicorn.conf.py: timeout", ".env: LONGEST_BLOCK_SECONDS"],
        [WORKER + "test_a_worker_that_hangs_is_killed_and_replaced"],
        ["app_worker_loop_silence_seconds", 'app_worker_exits_total{reason="silent"}',
         'http_requests_cut_total{reason="killed"}', 'nginx_http_responses_total{cause="lost"}'],
    ),
    Symptom(
        "503 with Retry-After",
        "all places of all workers are taken, or no app runs; nothing was done, so it is safe to send it again",
        [".env: APP_MAX_REQUESTS_IN_FLIGHT"],
        [
         "proofs/test_overload.py::test_as_many_requests_as_there_are_places_are_served_and_the_others_get_503_at_once"],
        ["http_requests_in_flight", "http_requests_in_flight_limit", "app_workers", "app_workers_wanted",
         'nginx_http_responses_total{cause="full"}', "nginx_connections_writing"],
    ),
    Symptom(
        "503 with Retry-After for uploads alone, or for everything while the app has little to do",
        "all clients together have as much under way in nginx as there is space for",
        [".env: NGINX_MAX_UPLOADS_IN_FLIGHT", ".env: NGINX_MAX_REQUESTS_IN_FLIGHT"],
        ["proofs/test_limits.py::test_uploads_of_one_address_and_of_all_are_bounded_and_small_bodies_are_not",
         "proofs/test_limits.py::test_requests_of_all_addresses_together_are_bounded"],
        ['nginx_http_responses_total{cause="full"}'],
    ),
    Symptom(
        "a start ends with: space budget, rule …",
        "what clients could make nginx or the app hold does not fit the rows of memory, files or processes",
        [".env: NGINX_MAX_REQUESTS_IN_FLIGHT", ".env: APP_MAX_REQUESTS_IN_FLIGHT"],
        ["proofs/test_refusals.py::test_make_up_names_a_broken_rule_of_space_before_it_starts_anything"],
    ),
    Symptom(
        "a start ends with: …_PORT=…: the port is in use",
        "another program listens there, or another stack: the line has the row, which can be another number",
        [".env: HTTP_PORT", ".env: LIVE_PORT", ".env: LOCUST_UI_PORT", ".env: PROMETHEUS_PORT", ".env: APP_PORT"],
        ["proofs/test_refusals.py::test_a_port_in_use_is_named",
         "proofs/test_refusals.py::test_the_observers_port_in_use_is_named"],
    ),
    Symptom(
        "a start ends with: METRICS=on: prometheus is not installed",
        "without Docker it is a package of the system's; the line has the command",
        [".env: METRICS"],
        ["proofs/test_refusals.py::test_metrics_without_prometheus_say_what_to_install"],
    ),
    Symptom(
        "a start or a deploy ends with: the database was not migrated",
        "APP_MIGRATE failed, or took longer than its seconds: the line `migration failed` says it",
        [".env: APP_MIGRATE", ".env: APP_MIGRATE_SECONDS"],
        ["proofs/test_migrate.py::test_a_migration_that_is_no_good_leaves_the_old_version_serving"],
    ),
    Symptom(
        "the database says: sorry, too many clients already",
        "the pools of all workers, with those of a deploy, are more than max_connections",
        [".env: DATABASE_POOL_SIZE", ".env: DATABASE_MAX_CONNECTIONS"],
        ["proofs/test_shop.py::test_pools_that_the_rule_lets_in_find_their_connections_in_a_reload"],
        ['http_requests_cut_total{reason="error"}'],
    ),
    Symptom(
        "504 with the app's own line in the log (reason: deadline)",
        "the handler took longer than the deadline, and was cancelled",
        [".env: REQUEST_DEADLINE_SECONDS"],
        [PROXY + "test_the_deadline_answers_504_and_cancels_the_handler"],
        ['http_requests_cut_total{reason="deadline"}', "http_request_duration_seconds",
         "nginx_request_duration_seconds"],
    ),
    Symptom(
        "504, and no line of the app's",
        "the worker's event loop was blocked, or the replica is frozen: nginx gave up reading",
        ["proxy.conf: proxy_read_timeout"],
        [ZERO_LOSS + "test_a_frozen_replica_holds_few_requests_and_is_used_again"],
        ["app_worker_loop_silence_seconds", "app_worker_loop_lag_seconds", "app_worker_accept_queue",
         "app_worker_accept_queue_max", 'nginx_http_responses_total{cause="silent"}', "nginx_upstream_tries_total"],
    ),
    Symptom(
        "Session not found, or a page that loads itself again and again; with WORKERS=1 all is well",
        "the app keeps sessions in memory, and another worker than the one that began them was asked",
        [".env: STICKY_SESSIONS"],
        ["proofs/applications/test_mcp.py::test_clients_keep_their_sessions_on_several_workers",
         "proofs/applications/test_nicegui.py::test_visitors_of_several_workers_click_and_find_their_count_again"],
    ),
    Symptom(
        "an answer ends in its middle, and the app's log has reason: stall",
        "the app sent nothing of it for the bound on standing still; an event stream must ping more often",
        [".env: ANSWER_STALL_SECONDS", ".env: EVENT_STREAM_PING_SECONDS"],
        [ANSWERS + "test_an_answer_that_stands_still_is_cut_and_its_handler_cancelled",
         ANSWERS + "test_an_event_stream_that_only_pings_is_not_cut"],
        ['http_requests_cut_total{reason="stall"}', "http_streams_open"],
    ),
    Symptom(
        "a long download or a background task is cut, and the app's log has reason: drain, or cancelling N requests",
        "its worker had to go: it was replaced or stopped, and the time for what it had begun was over",
        [".env: REPLACED_WORKER_SECONDS", ".env: UVICORN_GRACEFUL_SECONDS"],
        [ANSWERS + "test_a_worker_that_is_replaced_finishes_what_it_has_begun",
         ANSWERS + "test_at_a_stop_background_tasks_have_their_time_and_no_more"],
        ['http_requests_cut_total{reason="drain"}', "app_drain_cut_requests_total", "app_drain_seconds"],
    ),
    Symptom(
        "499 in nginx's log",
        "the client left before the answer: its own timeout is shorter than the stack's",
        [".env: REQUEST_DEADLINE_SECONDS", "proxy.conf: proxy_read_timeout"],
        [PROXY + "test_a_client_that_leaves_before_its_answer_is_a_499"],
        ['nginx_http_responses_total{cause="client_left"}'],
    ),
    Symptom(
        "429",
        "one client (an address, of IPv6 a /64) has too many requests or uploads in flight; an office is one, and "
        "a load balancer that no row names",
        ["nginx.conf: limit_conn", ".env: CLIENT_MAX_UPLOADS_IN_FLIGHT"],
        ["proofs/test_limits.py::test_one_address_gets_so_many_requests_in_flight_and_429_for_the_next"],
        ['nginx_http_responses_total{cause="client_limit"}'],
    ),
    Symptom(
        "421",
        "the Host header names nothing that the stack answers to",
        [".env: SERVER_NAMES"],
        ["proofs/test_limits.py::test_only_the_named_hosts_reach_the_app"],
        ['nginx_http_responses_total{cause="host"}'],
    ),
    Symptom(
        "413, 414 or 400 for large requests",
        "the body, the request line or a header is over its limit",
        [".env: CLIENT_MAX_BODY_BYTES", ".env: CLIENT_MAX_HEADER_BYTES"],
        [PROXY + "test_a_body_over_the_limit_gets_413_as_json",
         PROXY + "test_a_header_over_the_limit_is_refused_as_json"],
        ['nginx_http_responses_total{cause="too_large"}', 'nginx_http_responses_total{cause="bad_request"}'],
    ),
    Symptom(
        "every client is 172.x, or 127.0.0.1",
        "the app does not believe nginx's X-Forwarded-For, or nginx does not set it",
        ["docker-compose.yml: services.app.environment.TRUSTED_PROXIES", "gunicorn.conf.py: forwarded_allow_ips",
         "proxy.conf: proxy_set_header X-Forwarded-For"],
        [PROXY + "test_the_client_address_is_the_clients"],
    ),
    Symptom(
        "a start ends with: TLS=files: … site.pem: …",
        "the certificate could not be used: the line says why, from a key that does not fit to a date that is over",
        [".env: TLS", ".env: TLS_FOLDER"],
        ["proofs/test_refusals.py::test_a_certificate_that_cannot_be_used_is_refused_in_one_line",
         "proofs/test_refusals.py::test_nginx_in_its_container_says_what_is_wrong_with_the_certificate"],
    ),
    Symptom(
        "308 for every request by plain HTTP",
        "HTTPS is on: ask there; where a load balancer is in front, it is a loop until FORWARDED_HEADERS_FROM names it",
        [".env: TLS", "tls-server.conf: if $stack_to_https", ".env: FORWARDED_HEADERS_FROM"],
        ["proofs/test_tls.py::test_plain_http_is_sent_to_the_same_place_by_https",
         BALANCER + "test_https_through_the_balancer_is_that_of_its_client"],
        ['nginx_http_responses_total{cause="nginx"}'],
    ),
    Symptom(
        "acme: no new certificate for …, in the log of acme",
        "the CA was not reached, or refused: the line has its word, and how long the old certificate lasts",
        [".env: ACME_NAMES", ".env: ACME_DIRECTORY", "acme.conf: location /.well-known/acme-challenge/ / root"],
        ["proofs/test_acme.py::test_a_ca_that_is_down_is_said_and_asked_again_and_one_that_refuses_is_quoted"],
        ["tls_certificate_not_after_timestamp_seconds"],
    ),
    Symptom(
        "a new certificate is there, and clients get the old one",
        "it was not renamed into the folder that the container was started with",
        ["tls.conf: map all $stack_certificate", "docker-compose.tls.yml: services.nginx-files.volumes"],
        ["proofs/test_tls.py::test_a_new_certificate_is_served_without_a_reload_and_cuts_nobody_off",
         "proofs/test_tls.py::test_the_end_of_the_certificate_that_clients_get_is_a_metric"],
        ["tls_certificate_not_after_timestamp_seconds"],
    ),
    Symptom(
        "browsers stay with HTTP/2, and HTTP3=on",
        "HTTPS_PORT is not open for UDP on the way, or the page is the first one since: they read of HTTP/3 in it",
        [".env: HTTP3", "docker-compose.tls.yml: services.nginx-http3-on.ports"],
        ["proofs/test_http3.py::test_browsers_are_told_by_https_and_not_by_http",
         "proofs/test_http3.py::test_a_browser_that_trusts_the_certificate_has_no_warning"],
    ),
    Symptom(
        "nginx, user 101 in its container, may not read …",
        "the umask of the clone lets in its owner alone, and nginx is another user: the line has the command",
        ["docker-compose.yml: services.nginx.volumes"],
        ["proofs/test_own_files.py::test_a_clone_that_nobody_else_may_read_is_named_and_its_images_run"],
    ),
    Symptom(
        "every client of IPv6 has one address, those of IPv4 have their own",
        "the published network has no IPv6, so Docker's own proxy takes their connections over",
        [".env: IPV6"],
        ["proofs/test_ipv6.py::test_a_client_arrives_as_itself"],
    ),
    Symptom(
        "a start ends with: the engine made no network with addresses of IPv6",
        "an engine before 27, or a kernel without IPv6",
        [".env: IPV6"],
        ["proofs/test_ipv6.py::test_an_engine_that_has_no_addresses_of_ipv6_is_named_with_the_way_out"],
    ),
    Symptom(
        "every client has the load balancer's address; links and redirects of the app begin with http: behind HTTPS",
        "nginx believes nobody in front of it but whom a row names",
        [".env: FORWARDED_HEADERS_FROM", ".env: PROXY_PROTOCOL_FROM"],
        [BALANCER + "test_a_client_of_the_balancer_arrives_with_its_address_and_scheme"],
    ),
    Symptom(
        "connections to HTTP_PORT are closed without an answer, and nginx's log has: broken header",
        "with PROXY_PROTOCOL_FROM nginx serves nobody there who does not send the PROXY header first",
        [".env: PROXY_PROTOCOL_FROM"],
        [BALANCER + "test_a_stranger_is_who_it_is_whatever_it_says"],
    ),
    Symptom(
        "400 for everything behind a load balancer",
        "it sends the PROXY protocol, and PROXY_PROTOCOL_FROM is empty",
        [".env: PROXY_PROTOCOL_FROM"],
        [BALANCER + "test_a_stranger_is_who_it_is_whatever_it_says"],
        ['nginx_http_responses_total{cause="bad_request"}'],
    ),
    Symptom(
        "redirects lose the port",
        "the app got the Host header without it",
        ["proxy.conf: proxy_set_header Host"],
        [UPSTREAM + "test_the_app_sees_the_host_with_the_port_that_the_client_wrote"],
    ),
    Symptom(
        "a stream's events come all at once, at its end",
        "something between app and client collects them, to compress them or to fill a buffer",
        ["proxy.conf: proxy_buffering", "nginx.conf: gzip_types"],
        ["proofs/test_space.py::test_each_piece_of_an_answer_arrives_when_it_is_sent"],
    ),
    Symptom(
        "a silent WebSocket is cut",
        "silence for longer than the proxy's read timeout; pings must come more often",
        ["worker.py: ws_ping_interval", "proxy.conf: proxy_read_timeout"],
        [PROXY + "test_a_silent_websocket_is_kept_open_by_pings"],
        ["websocket_connections"],
    ),
    Symptom(
        "a stop ends with SIGKILL (exit status 137)",
        "it takes longer inside than the engine waits; the engine's own default is 10 s",
        ["docker-compose.yml: x-hardened.stop_grace_period", "gunicorn.conf.py: graceful_timeout"],
        ["proofs/test_resources.py::test_a_container_has_its_grace_to_stop"],
    ),
    Symptom(
        "exit status 137 in the middle of the day",
        "the container is over its memory; a worker over its own share is replaced before that",
        [".env: APP_MEMORY", ".env: WORKER_MEMORY_MB"],
        ["proofs/test_resources.py::test_a_process_that_wants_more_memory_than_its_row_says_is_killed",
         WORKER + "test_a_worker_that_holds_too_much_memory_is_replaced_and_nothing_is_lost"],
        ["app_worker_memory_bytes", "app_worker_memory_limit_bytes", 'app_worker_exits_total{reason="memory"}',
         'app_worker_exits_total{reason="crashed"}'],
    ),
    Symptom(
        "an old answer long after the app gives a new one; X-Cache-Status says HIT, STALE or UPDATING",
        "nginx keeps it as long as its Cache-Control said; `make deploy` and `make reload` empty the cache",
        [".env: CACHE_MB", "cache.conf: proxy_cache_background_update"],
        [CACHE + "test_an_answer_is_asked_for_anew_when_its_time_is_over", CACHE + "test_a_deploy_empties_it"],
    ),
    Symptom(
        "X-Cache-Status says MISS each time, or is not there",
        "the answer may not be kept by its Cache-Control, Set-Cookie or missing length, the path is not named, or the "
        "request has a password, a part or a body",
        [".env: CACHE_PATHS", "middleware.py: offers"],
        [CACHE + "test_an_answer_is_not_kept_where_it_forbids_it_or_is_in_doubt",
         CACHE + "test_only_paths_that_are_named_are_kept"],
    ),
    Symptom(
        "a file is 404 or 403 though it is in STATIC_ROOT",
        "its name begins with a dot, it is a link, or the folder was replaced by another one under its container",
        [".env: STATIC_ROOT", "static.conf: location ^~ /static/ / disable_symlinks"],
        ["proofs/test_static.py::test_nothing_but_its_files_is_served"],
    ),
    Symptom(
        "fast requests wait while a worker has nothing to do",
        "they stand in line behind a slow one on the same socket",
        [".env: WORKER_LISTENERS", "upstream.conf: upstream app / least_conn"],
        [UPSTREAM + "test_a_worker_that_is_busy_gets_no_more_while_another_is_free"],
        ["http_requests_in_flight", "app_worker_connections", "app_worker_connections_accepted_total",
         "app_worker_cpu_seconds_total"],
    ),
    Symptom(
        "each worker takes as much memory as the first; the log says `workers cannot share`",
        "the app starts a thread or opens a connection when it is imported, so each worker imports it for itself",
        [".env: WORKER_START"],
        [FORK + "test_an_application_that_cannot_be_forked_is_told_of_and_served"],
    ),
    Symptom(
        "`def` endpoints wait for seconds, `async def` ones do not",
        "the 40 threads of the pool are all taken",
        [".env: REQUEST_DEADLINE_SECONDS"],
        [WORKER + "test_a_full_thread_pool_holds_up_none_but_those_that_need_it"],
        ["app_worker_threads_busy", "app_worker_threads_limit", "app_worker_threads_waiting"],
    ),
    Symptom(
        "many half-open connections, and nobody gets in",
        "slow clients hold connections: each must send its header, then its body, in time",
        ["nginx.conf: client_header_timeout", "nginx.conf: client_body_timeout",
         "nginx.conf: events / worker_connections"],
        ["proofs/test_slow_clients.py::test_2000_half_open_headers_keep_nobody_out_and_are_cut_off"],
        ["nginx_connections_reading", "nginx_connections_active", 'nginx_http_responses_total{cause="bad_request"}'],
    ),
    Symptom(
        "a worker accepts nobody, and its log has: cannot accept a connection: Too many open files",
        "the worker has as many descriptors as it may have; connections wait in its queue until one is free",
        [],
        ["proofs/test_faults.py::"
         "test_a_worker_without_a_descriptor_serves_what_it_has_and_accepts_again_when_it_has_one"],
        ["app_worker_descriptors", "app_worker_descriptors_limit", "app_worker_accept_queue",
         "app_worker_accept_queue_limit", "app_listen_overflows_total"],
    ),
    Symptom(
        "504 or no answer from nodes of a swarm that are well, when another one has died",
        "their nginx asked that one's app over an idle connection: each has to ask its own first",
        ["upstream.conf: upstream app / server backup"],
        [SWARM + "test_a_power_cut_loses_only_what_was_in_flight_there"],
    ),
    Symptom(
        "one node of a swarm refuses, or says 503, for a moment when its nginx starts",
        "nginx knows of no app yet; no byte has reached one, so whoever is in front may ask another node, POST or not",
        [],
        [SWARM + "test_nothing_is_lost_when_nginx_is_replaced_and_a_node_is_drained"],
    ),
    Symptom(
        "`make trace WAY=swarm` says: the log of … has not come to its end",
        "an engine stands still, or the one that is asked has lost another's stream: lines come, and no end of them",
        [],
        [SWARM + "test_a_trace_has_an_end_while_an_engine_stands_still"],
    ),
    Symptom(
        "connections from this machine itself to the published port are refused for good, from outside all is well",
        "Docker's own proxy for loopback has used up its descriptors (some ten thousand connections at a time); "
        "`docker compose restart nginx` starts it anew",
        [],
        [],
    ),
]  # fmt: skip
