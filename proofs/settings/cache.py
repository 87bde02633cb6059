"""The settings of what nginx keeps of the app's answers, and of files that it serves by itself."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

CONF = "nginx/templates/nginx.conf.template"
CACHE = "nginx/templates/cache.conf.template"
TYPES = "nginx/templates/types.conf.template"
SCRIPT = "nginx/40-upstream.sh"
COMPOSE_TLS = "docker-compose.tls.yml"
PROOFS = "proofs/test_cache.py::"
STATIC = "proofs/test_static.py::"
KEPT = f"{PROOFS}test_an_answer_is_kept_where_it_says_for_how_long[max-age]"
NEW = f"{PROOFS}test_of_many_that_ask_at_once_for_a_new_answer_one_reaches_the_app"
SERVED = f"{STATIC}test_a_file_is_served_and_the_app_sees_nothing_of_it"
ONLY = f"{STATIC}test_nothing_but_its_files_is_served"
LIFETIMES = f"{STATIC}test_a_name_with_its_contents_hash_is_kept_by_browsers_and_others_are_asked_for[native]"
FILES = "static.conf: location ^~ /static/ / "


def removed(name: str, does: str, default: str, line: str, proof: str, *rows: str) -> Setting:
    """A directive of cache.conf whose line is taken away."""
    names = [f"cache.conf: {name}", *rows]
    return Setting(names, does, default, "removed", [(CACHE, line, "")], [proof])


def file(name: str, does: str, default: str, line: str, proof: str) -> Setting:
    """A directive of static.conf whose line is taken away."""
    return Setting([f"{FILES}{name}"], does, default, "removed", [(SCRIPT, line, "")], [proof])


SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["nginx.conf: include cache.conf", ".env: CACHE_MB"],
        "nginx keeps answers of the app, in so many MiB of memory.",
        "none is kept",
        "removed",
        [(CONF, "    include ${NGINX_RUN}/cache.conf;\n", "")],
        [KEPT],
    ),
    Setting(
        ["nginx.conf: server / add_header X-Cache-Status", "nginx.conf: server / add_header X-Cache-Status always"],
        "The answer says whether it was kept: HIT, MISS, EXPIRED, STALE, UPDATING.",
        "nobody knows",
        "not for errors",
        [(CONF, "$upstream_cache_status always;", "$upstream_cache_status;")],
        [f"{PROOFS}test_errors_of_the_app_are_not_kept_unless_they_say_so"],
    ),
    Setting(
        ["cache.conf: proxy_cache_path", "cache.conf: proxy_cache_path keys_zone"],
        "Where answers are kept, and what all of nginx's workers know of them.",
        "none",
        "removed",
        [(CACHE, "proxy_cache_path ${NGINX_RUN}/cache keys_zone=answers:CACHE_KEYS max_size=${CACHE_MB}m;\n", "")],
        [KEPT],
        breaks_start=True,
    ),
    Setting(
        ["cache.conf: proxy_cache_path max_size"],
        "Past this the answers go that were not asked for the longest.",
        "the size of the file system",
        "removed",
        [(CACHE, " max_size=${CACHE_MB}m", "")],
        [f"{PROOFS}test_what_is_over_the_size_goes"],
    ),
    removed(
        "proxy_cache",
        "Which requests the cache has to do with.",
        "off",
        "proxy_cache $stack_cache;\n",
        KEPT,
    ),
    removed(
        "proxy_cache_key",
        "Each name, port and address has its own answer, as the app sees them.",
        "$scheme$proxy_host$request_uri: one for all names",
        'proxy_cache_key "$stack_scheme://$host$stack_port$request_uri";\n',
        f"{PROOFS}test_names_queries_and_ports_are_kept_apart",
    ),
    removed(
        "proxy_cache_lock",
        "Of many that ask at once for an answer that is not there, one reaches the app.",
        "off: all of them",
        "proxy_cache_lock on;\n",
        NEW,
    ),
    removed(
        "proxy_cache_lock_timeout",
        "The others wait as long as the app may take.",
        "5s, and then all of them ask",
        "proxy_cache_lock_timeout ${REQUEST_DEADLINE_SECONDS}s;\n",
        NEW,
    ),
    removed(
        "proxy_cache_lock_age",
        "The one that asks is given as long as the app may take.",
        "5s, and then one more asks",
        "proxy_cache_lock_age ${REQUEST_DEADLINE_SECONDS}s;\n",
        NEW,
    ),
    removed(
        "proxy_cache_background_update",
        "With stale-while-revalidate nobody waits for the new answer.",
        "off: the first one waits",
        "proxy_cache_background_update on;\n",
        f"{PROOFS}test_stale_while_it_is_asked_anew_nobody_waits",
    ),
    removed(
        "proxy_pass_header",
        "Date is the app's: a browser sees how old the answer is.",
        "nginx writes its own",
        "proxy_pass_header Date;\n",
        f"{PROOFS}test_the_age_of_an_answer_can_be_told",
    ),
    removed(
        "proxy_max_temp_file_size",
        "What is offered and not kept waits in no file, where uploads have their space.",
        "1024m",
        "proxy_max_temp_file_size 0;\n",
        f"{PROOFS}test_what_is_offered_and_not_kept_waits_in_no_file",
    ),
    Setting(
        ["cache.conf: map $http_authorization$http_range$content_length$http_transfer_encoding$stack_upgrade "
         "$request_method $uri $stack_cache"],
        "Not for requests with a password, for a part, with a body, or for a WebSocket.",
        "none",
        "for those with a password too",
        [(SCRIPT, 'map "\\$http_authorization\\$http_range', 'map "\\$http_range')],
        [f"{PROOFS}test_what_comes_with_a_password_is_neither_kept_nor_answered_from_what_is"],
    ),
    Setting(
        [".env: CACHE_PATHS"],
        "The beginnings of the paths whose answers are everybody's.",
        "none",
        "/, whatever the row says",
        [
            (SCRIPT, "$(echo \"${CACHE_PATHS}\" | sed 's/\\./\\\\./g; s/ /|/g')", "/"),
            ("app/server/cache.py", "tuple(settings.cache_paths.split())", '("/",)'),
        ],
        [f"{PROOFS}test_only_paths_that_are_named_are_kept"],
    ),
    Setting(
        ["middleware.py: offers"],
        "Offers nginx the answers that it may keep, and no more at a time than there is space for.",
        "none is kept",
        "without a bound",
        [("app/server/cache.py", "        if size > self._left:\n            return\n", "")],
        [f"{PROOFS}test_a_flood_of_answers_to_keep_stays_within_the_space"],
    ),
    Setting(
        ["nginx.conf: server / include static.conf", ".env: STATIC_ROOT"],
        "A folder's files under its own name, served by nginx.",
        "none",
        "removed",
        [(CONF, "        include ${NGINX_RUN}/static.conf;\n", "")],
        [f"{SERVED}[native]"],
    ),
    file(
        "alias",
        "Where the files are.",
        "a folder compiled in",
        "    alias ${NGINX_STATIC}/;\n",
        f"{SERVED}[native]",
    ),
    Setting(
        [f"{FILES}include types.conf", "types.conf: types "],
        "What a file is, by the end of its name.",
        "text/plain, which no browser takes for a style",
        "removed",
        [(SCRIPT, "    include ${NGINX_RUN}/types.conf;\n", "")],
        [f"{SERVED}[native]"],
    ),
    file(
        "disable_symlinks",
        "No link in the folder leads out of it.",
        "off: to all that nginx may read",
        "    disable_symlinks on;\n",
        f"{ONLY}[/files/link.txt-native]",
    ),
    file(
        "expires",
        "Browsers ask each time whether there is a new one.",
        "they guess",
        "    expires epoch;\n",
        LIFETIMES,
    ),
    file(
        "gzip_static",
        "What was compressed before is sent as it is.",
        "compressed anew for each",
        "    gzip_static on;\n",
        f"{STATIC}test_the_file_that_was_compressed_before_goes_to_who_takes_it[native]",
    ),
    Setting(
        [f"{FILES}error_page 429 =", f"{FILES}include errors.conf"],
        "Files count against the limits as the app's answers do, with the same refusals.",
        "429 for all",
        "removed",
        [(SCRIPT, "    error_page 429 = @refused;\n    include ${NGINX_RUN}/errors.conf;\n", "")],
        ["proofs/test_limits.py::test_requests_of_all_addresses_together_are_bounded"],
    ),
    file(
        "location ~ (\\.|-)(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,64}\\.[a-z0-9.]+$ / expires",
        "A name with its content's hash is asked for once.",
        "as the others",
        "        expires max;\n",
        LIFETIMES,
    ),
    file(
        "location ~ /\\. / return",
        "Nothing whose name begins with a dot.",
        "as the others",
        "        return 404;\n",
        f"{ONLY}[/files/.env-native]",
    ),
    Setting(
        ["types.conf: default_type"],
        "A file of another kind is saved, and not shown as text.",
        "text/plain",
        "removed",
        [(TYPES, "default_type application/octet-stream;\n", "")],
        [f"{SERVED}[native]"],
    ),
    Setting(
        [f"{COMPOSE_TLS}: services.nginx-static-on.volumes"],
        "The folder, where nginx in its container finds it.",
        "none",
        "removed",
        [(COMPOSE_TLS, "      - type: bind\n        source: ${STATIC_ROOT:-.}\n        target: /srv/static\n"
          "        read_only: true\n        bind: { create_host_path: false }\n", "      []\n")],
        [f"{SERVED}[compose]"],
    ),
    Setting(
        [f"{COMPOSE_TLS}: services.nginx-static-.extends", f"{COMPOSE_TLS}: services.nginx-static-on.extends"],
        "What nginx's container has more with TLS, with files or without.",
        "none of it",
        "removed",
        [
            (COMPOSE_TLS, '  nginx-static-:\n    extends: { service: "nginx-${TLS}" }\n', "  nginx-static-: {}\n"),
            (COMPOSE_TLS, '  nginx-static-on:\n    extends: { service: "nginx-${TLS}" }\n', "  nginx-static-on:\n"),
        ],
        ["proofs/test_tls.py::test_the_app_sees_https_and_the_host_with_its_port[compose-HTTP/1.1]"],
        breaks_start=True,
    ),
]  # fmt: skip
