"""The settings of docker-compose.yml."""

from __future__ import annotations

from proofs.settings import Setting, Unproven
from proofs.stack import Patch

FILE = "docker-compose.yml"
CONTAINERS = "proofs/test_containers.py::"
MIGRATE = "proofs/test_migrate.py::"
OWN = "proofs/test_own_files.py::"
RESOURCES = "proofs/test_resources.py::"

NOT_ROOT = f"{CONTAINERS}test_a_container_is_not_root_and_has_no_capabilities"
READ_ONLY = f"{CONTAINERS}test_a_container_cannot_write_to_its_root_file_system"
PUBLISHED = f"{CONTAINERS}test_the_published_ports_answer"
REACHES = f"{CONTAINERS}test_locust_reaches_nginx_and_nothing_else"
NO_WAY_OUT = f"{CONTAINERS}test_a_container_that_is_not_published_has_no_way_out"
IN_TURN = f"{CONTAINERS}test_a_container_starts_when_the_one_it_needs_is_ready"
LEDGER = f"{CONTAINERS}test_the_ledger_outlives_its_container"
ASKED_OFTEN = f"{CONTAINERS}test_a_container_is_not_asked_every_half_minute_only"
CPU = f"{RESOURCES}test_a_container_uses_no_more_cpu_than_its_row_says"
MEMORY = f"{RESOURCES}test_a_process_that_wants_more_memory_than_its_row_says_is_killed"
PIDS = f"{RESOURCES}test_a_container_gets_no_more_processes_than_its_row_says"
LOG = f"{RESOURCES}test_the_log_of_a_container_is_bounded_but_not_short"
SILENT = f"{RESOURCES}test_a_service_that_does_not_answer_is_not_healthy"
MIGRATES = f"{MIGRATE}test_docker_compose_up_migrates_before_the_app_starts"
ALONE = f"{RESOURCES}test_nginx_starts_without_an_app_and_has_no_welcome_page"
ACCEPTED = f"{CONTAINERS}test_compose_accepts_its_file"
STARTS = f"{RESOURCES}test_the_app_starts_without_the_other_services"
WEB_UI = f"{RESOURCES}test_the_web_ui_is_published_and_has_a_worker"


def named(name: str, *rows: str) -> list[str]:
    return [f"{FILE}: {name}", *(f".env: {row}" for row in rows)]


def without(line: str) -> list[Patch]:
    return [(FILE, f"{line}\n", "")]


def in_place_of(before: str, after: str) -> list[Patch]:
    return [(FILE, before, after)]


def limits(service: str) -> list[Setting | Unproven]:
    row = service.upper()
    path = f"services.{service}.deploy.resources.limits"
    return [
        Setting(
            named(f"{path}.cpus", f"{row}_CPUS"),
            "The container gets no more CPU than this, however busy it is.",
            "no limit",
            "removed",
            in_place_of(f'cpus: "${{{row}_CPUS}}", ', ""),
            [f"{CPU}[{service}]"],
        ),
        Setting(
            named(f"{path}.memory", f"{row}_MEMORY"),
            "Past it the kernel kills a process of this container, not one of another.",
            "no limit",
            "removed",
            in_place_of(f', memory: "${{{row}_MEMORY}}"', ""),
            [f"{MEMORY}[{service}]"],
        ),
        Setting(
            named(f"{path}.pids", f"{row}_PIDS"),
            "Processes and threads that the container may have: one that forks without end does not stop the host.",
            "no limit",
            "removed",
            in_place_of(f', pids: "${{{row}_PIDS}}"', ""),
            [f"{PIDS}[{service}]"],
        ),
    ]


def health(service: str, check: str) -> list[Setting | Unproven]:
    return [
        Setting(
            named(f"services.{service}.healthcheck.<<"),
            "Takes the health check's times from x-health.",
            "an interval of 30 s, from the first one on",
            "removed",
            in_place_of(f"      <<: *health\n      test: {check}\n", f"      test: {check}\n"),
            [f"{ASKED_OFTEN}[{service}]"],
        ),
        Setting(
            named(f"services.{service}.healthcheck.test"),
            "What tells that the service answers: `docker compose up --wait` and whatever depends on it go by it.",
            "none",
            "`true`, which is always well",
            in_place_of(f"      test: {check}\n", '      test: [CMD, "true"]\n'),
            [f"{SILENT}[{service}]"],
        ),
    ]


def hardened(service: str, line: str) -> Setting:
    return Setting(
        named(f"services.{service}.<<"),
        "Takes from this service what no service needs (x-hardened).",
        "none of it",
        "removed",
        in_place_of(f"{line}\n    <<: *hardened\n", f"{line}\n"),
        [f"{READ_ONLY}[{service}]"],
    )


def sized(service: str, what: str) -> Setting:
    row = f"{service.upper()}_TMP"
    return Setting(
        [f".env: {row}"],
        f"{what} take no more memory than this.",
        "half of the host's memory",
        "removed",
        [(FILE, f"size=${{{row}}}", "nosuid")],
        [f"{RESOURCES}test_a_folder_in_memory_is_no_larger_than_its_row_says"],
    )


def of_sockets(name: str, does: str, before: str, *rows: str) -> Setting:
    return Setting(
        named(name, *rows),
        does,
        "4 MB and more, as the kernel sees fit",
        "removed",
        in_place_of(before, ""),
        [f"{RESOURCES}test_the_kernel_holds_no_more_of_a_connection_than_the_row_says"],
    )


SETTINGS: list[Setting | Unproven] = [
    sized("nginx", "Uploads"),
    sized("app", "Temporary files of the app"),
    of_sockets(
        "services.nginx.sysctls.net.ipv4.tcp_rmem",
        "What the kernel holds of what the app has sent and nginx has not read.",
        "      net.ipv4.tcp_rmem: 4096 ${APP_SOCKET_BUFFER_BYTES} ${APP_SOCKET_BUFFER_BYTES}\n",
        "APP_SOCKET_BUFFER_BYTES",
    ),
    of_sockets(
        "services.nginx.sysctls.net.ipv4.tcp_wmem",
        "What the kernel holds of what nginx has sent and the app has not read.",
        "      net.ipv4.tcp_wmem: 4096 16384 ${APP_SOCKET_BUFFER_BYTES}\n",
    ),
    of_sockets(
        "services.app.sysctls",
        "What the kernel holds of the app's connections to nginx.",
        "    sysctls: *sockets\n",
    ),
    Setting(
        named("x-hardened.read_only"),
        "The root file system is read-only: who breaks in can leave nothing there.",
        "writable",
        "removed",
        without("  read_only: true"),
        [f"{READ_ONLY}[nginx]", f"{READ_ONLY}[app]"],
    ),
    Setting(
        named("x-hardened.cap_drop"),
        "No process in the container, not even a root's, has a capability.",
        "14 capabilities",
        "removed",
        without("  cap_drop: [ALL]"),
        [f"{NOT_ROOT}[nginx]", f"{NOT_ROOT}[app]"],
    ),
    Setting(
        named("x-hardened.security_opt"),
        "A setuid program gives nobody more rights than they have.",
        "it does",
        "removed",
        without('  security_opt: ["no-new-privileges:true"]'),
        [f"{NOT_ROOT}[nginx]", f"{NOT_ROOT}[app]"],
    ),
    Setting(
        named("x-hardened.restart"),
        "A container whose process ends is started again, also after a restart of the host.",
        "no",
        "removed",
        without("  restart: unless-stopped"),
        [f"{RESOURCES}test_a_container_whose_process_ends_is_started_again"],
    ),
    Setting(
        named("x-hardened.stop_grace_period", "STOP_GRACE_SECONDS"),
        "So long a container has to stop before it is killed with what it has in flight.",
        "10 s",
        "removed",
        without("  stop_grace_period: ${STOP_GRACE_SECONDS}s"),
        [f"{RESOURCES}test_a_container_has_its_grace_to_stop"],
    ),
    Setting(
        named("x-hardened.logging.options.max-size"),
        "A file of the container's log is closed at this size.",
        "no limit",
        "removed",
        in_place_of("max-size: 10m, ", ""),
        [LOG],
    ),
    Setting(
        named("x-hardened.logging.options.max-file"),
        "So many files of the log are kept: an incident an hour ago can still be read.",
        "1",
        "removed",
        in_place_of(', max-file: "5"', ""),
        [LOG],
    ),
    Setting(
        named("x-health.interval"),
        "The time between two health checks of a healthy container.",
        "30 s",
        "removed",
        without("  interval: 10s"),
        [f"{RESOURCES}test_a_healthy_container_is_asked_again_within_seconds"],
    ),
    Setting(
        named("x-health.timeout"),
        "A health check without an answer after this time has failed.",
        "30 s",
        "removed",
        without("  timeout: 3s"),
        [f"{RESOURCES}test_a_health_check_that_hangs_is_ended"],
    ),
    Setting(
        named("x-health.start_period"),
        "Health checks that fail while the container starts do not count.",
        "0 s",
        "1 ms: Compose refuses a start_interval without any",
        in_place_of("  start_period: ${APP_START_SECONDS}s\n", "  start_period: 1ms\n"),
        [f"{RESOURCES}test_a_container_may_take_its_time_to_start"],
    ),
    Setting(
        named("x-health.start_interval"),
        "The time between two health checks of a container that starts: `make up` is done when the stack is.",
        "5 s",
        "removed",
        without("  start_interval: 500ms"),
        [f"{RESOURCES}test_a_container_that_starts_is_asked_often"],
    ),
    hardened("nginx", "  nginx:"),
    Setting(
        named("services.nginx.user"),
        "nginx is not root, not even its master process.",
        "root",
        "removed",
        without('    user: "101:101"'),
        [ALONE],
    ),
    Setting(
        named("services.nginx.command"),
        "nginx reads the rendered configuration or none.",
        "the image's own configuration",
        "removed",
        without('    command: [nginx, -c, /run/nginx/nginx.conf, -g, "daemon off;"]'),
        [ALONE],
    ),
    Setting(
        named("services.nginx.ports", "HTTP_PORT"),
        "The port of the host on which the site answers.",
        "none",
        "removed",
        without('    ports: ["${HTTP_PORT}:80${PROXY_PROTOCOL_FROM:+80}"]'),
        [PUBLISHED],
    ),
    Setting(
        named("services.nginx.networks.edge"),
        "The network that is published: the others have no way in or out.",
        "a network of all services",
        "removed",
        in_place_of("[edge, app, load]", "[app, load]"),
        [PUBLISHED],
    ),
    Setting(
        named("services.nginx.networks.app"),
        "The network in which nginx reaches the app.",
        "a network of all services",
        "removed",
        in_place_of("[edge, app, load]", "[edge, load]"),
        [PUBLISHED],
    ),
    Setting(
        named("services.nginx.networks.load"),
        "The network in which Locust reaches nginx.",
        "a network of all services",
        "removed",
        in_place_of("[edge, app, load]", "[edge, app]"),
        [f"{REACHES}[locust-worker]"],
    ),
    Setting(
        named("services.nginx.volumes"),
        "nginx's templates and the script that writes where the app listens.",
        "the image's own",
        "removed",
        in_place_of(
            "    volumes:\n"
            "      - ./nginx/templates:/etc/nginx/templates:ro\n"
            "      - ./nginx/40-upstream.sh:/docker-entrypoint.d/40-upstream.sh:ro\n",
            "",
        ),
        [ALONE],
    ),
    Setting(
        named("services.nginx.tmpfs"),
        "The one place that nginx may write to: its rendered configuration, its pid, large bodies and answers.",
        "none",
        "removed",
        without('    tmpfs: ["/run/nginx:uid=101,gid=101,mode=0700,size=${NGINX_TMP}"]'),
        [ALONE],
    ),
    Setting(
        named("services.nginx.environment.NGINX_ENVSUBST_OUTPUT_DIR"),
        "Where the image renders the templates to.",
        "/etc/nginx/conf.d, which is read-only here",
        "removed",
        without("      NGINX_ENVSUBST_OUTPUT_DIR: /run/nginx"),
        [ALONE],
    ),
    Setting(
        named("services.nginx.environment.UPSTREAM_HOST"),
        "The name under which nginx finds the app's containers.",
        "none",
        "removed",
        without("      UPSTREAM_HOST: app"),
        [ALONE],
    ),
    Setting(
        named("services.nginx.environment.UPSTREAM_RESOLVER"),
        "Docker's DNS, asked again every second: replicas come, go and move without a reload of nginx.",
        "names are looked up once, at the start",
        "removed",
        without("      UPSTREAM_RESOLVER: 127.0.0.11"),
        [f"{CONTAINERS}test_a_recreated_app_container_is_served_within_5_s_without_a_reload"],
    ),
    Setting(
        named("services.nginx.depends_on.app"),
        "nginx starts when the app is ready: the site never begins with 502.",
        "all services start at once",
        "removed",
        in_place_of("    depends_on:\n      app: { condition: service_healthy }\n", ""),
        [f"{IN_TURN}[app-nginx]"],
    ),
    *health("nginx", '[CMD, curl, -fsS, "http://127.0.0.1/nginx-health"]'),
    *limits("nginx"),
    hardened("app", "  app: &app"),
    Setting(
        named("services.app.networks.app"),
        "The app is in the internal network that it shares with nginx alone.",
        "a network of all services, with a way out",
        "removed",
        without("    networks: [app]"),
        [PUBLISHED, f"{NO_WAY_OUT}[app]"],
    ),
    Setting(
        named("services.app.volumes"),
        "What the app writes to /data stays when its container is replaced.",
        "in the container, whose file system is read-only",
        "removed",
        without('    volumes: ["data:/data"]'),
        [LEDGER],
    ),
    Setting(
        named("services.app.tmpfs"),
        "What the app may write to, and the state of its master.",
        "none",
        "removed",
        in_place_of(
            '    volumes: ["data:/data"]\n    tmpfs: ["/tmp:size=${APP_TMP}"]\n', '    volumes: ["data:/data"]\n'
        ),
        [STARTS],
    ),
    Setting(
        named("services.app.env_file", "APP_ENV_FILE"),
        "The variables that the app alone reads, in a file of their own.",
        "none",
        "removed",
        without('    env_file: [{ path: "${APP_ENV_FILE}", required: false }]'),
        [f"{OWN}test_the_apps_own_variables_secrets_and_services_are_there_in_compose"],
    ),
    Setting(
        named("services.app.environment.APP_HOST"),
        "The address on which the app listens.",
        "127.0.0.1, Gunicorn's",
        "the default, on which no other container reaches it",
        in_place_of("      APP_HOST: 0.0.0.0\n", "      APP_HOST: 127.0.0.1\n"),
        [PUBLISHED],
    ),
    Setting(
        named("services.app.environment.TRUSTED_PROXIES"),
        "Whose X-Forwarded-* the app believes: those in its own network.",
        "127.0.0.1, Uvicorn's",
        "the default",
        in_place_of("      TRUSTED_PROXIES: attached\n", "      TRUSTED_PROXIES: 127.0.0.1\n"),
        ["proofs/test_proxy.py::test_the_client_address_is_the_clients[compose]"],
    ),
    *health("app", "[CMD, python, -m, app.server.probe]"),
    Setting(
        named("services.app.depends_on.migrate"),
        "The app does not start before its database has been migrated.",
        "all start at once",
        "removed",
        in_place_of(
            "    depends_on:\n      migrate: { condition: service_completed_successfully }\n    healthcheck:",
            "    healthcheck:",
        ),
        [MIGRATES],
    ),
    Setting(
        named("services.migrate.<<"),
        "The migration has the app's image, variables, networks and folders.",
        "none of them",
        "removed",
        in_place_of("  migrate:\n    <<: *app\n", "  migrate:\n"),
        [ACCEPTED],
        breaks_start=True,
    ),
    Setting(
        named("services.migrate.command", "APP_MIGRATE"),
        "The command that brings the database to what the new code needs, run before that gets a request.",
        "none",
        "`true`, whatever the row says",
        in_place_of("    command: [python, -m, app.server.migrate]\n", '    command: ["true"]\n'),
        [MIGRATES],
    ),
    Setting(
        [".env: APP_MIGRATE_SECONDS"],
        "A migration that takes longer is killed, and the old version serves on.",
        "for ever",
        "for ever",
        [("app/server/migrate.py", "command.wait(settings.app_migrate_seconds)", "command.wait()")],
        [f"{MIGRATE}test_a_migration_that_is_no_good_leaves_the_old_version_serving[hangs-native]"],
    ),
    Setting(
        named("services.migrate.restart"),
        "A migration that has failed is not tried again and again.",
        "the app's: unless-stopped",
        "removed",
        without('    restart: "no"'),
        [MIGRATES],
    ),
    Setting(
        named("services.migrate.depends_on"),
        "A migration does not wait for itself, as the app does.",
        "the app's",
        "removed",
        without("    depends_on: {}"),
        [ACCEPTED],
        breaks_start=True,
    ),
    Setting(
        named("services.migrate.deploy.replicas"),
        "Without a migration no container is made for it.",
        "1",
        "removed",
        without("      replicas: 0${APP_MIGRATE:+1}"),
        [f"{MIGRATE}test_without_a_migration_there_is_no_container_for_it"],
    ),
    Setting(
        named("services.migrate.deploy.resources"),
        "A migration has no more CPU, memory and processes than the app.",
        "no limit",
        "removed",
        without("      resources: *app-resources"),
        [MIGRATES],
    ),
    Setting(
        named("services.app.deploy.replicas", "APP_REPLICAS"),
        "So many containers of the app are started.",
        "1",
        "removed",
        without("      replicas: ${APP_REPLICAS}"),
        [f"{RESOURCES}test_compose_starts_as_many_apps_as_the_row_says"],
    ),
    *limits("app"),
    hardened("locust", "  locust: &locust"),
    Setting(
        named("services.locust.profiles", "LOCUST"),
        "With LOCUST=off the stack has no Locust.",
        "none: it is always there",
        "removed",
        without("    profiles: [locust-on]"),
        ["proofs/test_loadtest.py::test_make_users_writes_a_load_test_for_an_app_from_its_schema[compose]"],
    ),
    Setting(
        named("services.locust.command"),
        "This Locust is the master: it has the web UI, and workers make the load.",
        "a single Locust without workers",
        "removed",
        without('    command: [--master, --web-port, "8089", --class-picker]'),
        [WEB_UI],
    ),
    Setting(
        named("services.locust.ports", "LOCUST_UI_PORT"),
        "Locust's web UI, on the host's loopback alone.",
        "none",
        "removed",
        without('    ports: ["127.0.0.1:${LOCUST_UI_PORT}:8089"]'),
        [PUBLISHED],
    ),
    Setting(
        named("services.locust.networks.edge"),
        "The network that is published: without it the web UI is not on the host.",
        "a network of all services",
        "removed",
        in_place_of("    networks: [edge, load]\n", "    networks: [load]\n"),
        [PUBLISHED],
    ),
    Setting(
        named("services.locust.networks.load"),
        "The network in which the workers find their master.",
        "a network of all services",
        "removed",
        in_place_of("    networks: [edge, load]\n", "    networks: [edge]\n"),
        [WEB_UI],
    ),
    Setting(
        named("services.locust.depends_on.nginx"),
        "Locust starts when nginx is ready: its imports do not take the CPU from those of the app.",
        "all services start at once",
        "removed",
        in_place_of("    depends_on:\n      nginx: { condition: service_healthy }\n", ""),
        [f"{IN_TURN}[nginx-locust]"],
    ),
    *health(
        "locust",
        "[CMD, python, -c, \"import urllib.request; urllib.request.urlopen('http://127.0.0.1:8089/', timeout=2)\"]",
    ),
    *limits("locust"),
    Setting(
        named("services.locust-worker.<<"),
        "A worker is Locust's container in all but what is written there.",
        "none of it",
        "removed",
        without("    <<: *locust"),
        [ACCEPTED],
    ),
    Setting(
        named("services.locust-worker.command"),
        "This Locust is a worker, and finds its master by name.",
        "a second master, from the other service",
        "removed",
        without("    command: [--worker, --master-host, locust]"),
        [WEB_UI],
    ),
    Setting(
        named("services.locust-worker.ports"),
        "A worker has no port of the host.",
        "the web UI's, from the other service",
        "removed",
        without("    ports: []"),
        [f"{CONTAINERS}test_only_nginx_the_web_ui_and_the_live_page_are_published"],
    ),
    Setting(
        named("services.locust-worker.networks.load"),
        "A worker is in the internal network alone: the load it makes reaches nginx and nothing else.",
        "edge and load, from the other service",
        "removed",
        without("    networks: [load]"),
        [f"{NO_WAY_OUT}[locust-worker]"],
    ),
    Setting(
        named("services.locust-worker.depends_on.locust"),
        "A worker starts when its master is ready.",
        "when nginx is, from the other service",
        "removed",
        in_place_of("    depends_on:\n      locust: { condition: service_healthy }\n", ""),
        [f"{IN_TURN}[locust-locust-worker]"],
    ),
    *health("locust-worker", "[CMD, python, -m, loadtest.probe]"),
    Setting(
        named("networks.edge.enable_ipv6", "IPV6"),
        "A client of IPv6 arrives as itself.",
        "false: Docker's own proxy takes it over, and all of them have its address",
        "removed",
        without("    enable_ipv6: ${IPV6}"),
        ["proofs/test_ipv6.py::test_a_client_arrives_as_itself[compose-IPv6]"],
    ),
    Setting(
        named("networks.edge.driver_opts"),
        "What is published has no way out of its own: the world's answers find no way back.",
        "the host's address is lent to all that leaves",
        "removed",
        in_place_of('    driver_opts: { com.docker.network.bridge.enable_ip_masquerade: "false" }\n', ""),
        [f"{CONTAINERS}test_a_container_that_is_published_has_no_address_for_the_world_outside"],
    ),
    Setting(
        named("networks.app"),
        "The app's network is internal.",
        "a way out to the world",
        "without `internal`",
        in_place_of("  app: { internal: true }\n", "  app:\n"),
        [f"{NO_WAY_OUT}[app]"],
    ),
    Setting(
        named("networks.load"),
        "The load's network is internal.",
        "a way out to the world",
        "without `internal`",
        in_place_of("  load: { internal: true }\n", "  load:\n"),
        [f"{NO_WAY_OUT}[locust-worker]"],
    ),
    Setting(
        named("volumes.data"),
        "The volume in which the app's files outlive its container.",
        "none",
        "removed",
        in_place_of("\nvolumes:\n  data:\n", "\n"),
        [ACCEPTED],
    ),
]
