"""The settings of admission: how many requests a worker gets, and what the others are told."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

CONF = "nginx/templates/nginx.conf.template"
PROOFS = "proofs/test_overload.py::"
REFUSED = f"{PROOFS}test_as_many_requests_as_there_are_places_are_served_and_the_others_get_503_at_once"
NOBODY_ASKED = f"{PROOFS}test_nobody_is_asked_for_a_request_that_is_refused"
AGAIN = "            error_page 502 504 = @again;\n        }\n\n        # 503 when"
ASKED = "            if ($stack_all_asked) {\n                return 503;\n            }\n"
ALL_FULL = "proofs/test_limits.py::test_requests_of_all_addresses_together_are_bounded"
APPS_OWN = f"{PROOFS}test_a_503_of_the_apps_own_goes_through_as_it_is"
POST_502 = "proofs/test_errors.py::test_a_worker_that_dies_with_a_post_is_a_502_and_the_post_is_not_sent_again"

SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["upstream.conf: upstream app / server max_conns", ".env: APP_MAX_REQUESTS_IN_FLIGHT"],
        "So many requests at a time in each worker; one more is refused at once.",
        "no bound: past capacity each request waits until its client has given up",
        "removed",
        [("nginx/40-upstream.sh", " max_conns=${places}", "")],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: map $upstream_addr;$upstream_bytes_sent;$upstream_status $stack_final"],
        "A request for which there was no place is refused at once, and not offered to all once more.",
        "none",
        "without the line for it",
        [(CONF, '        "~(^| : )app;" 503;\n', "")],
        [NOBODY_ASKED],
    ),
    Setting(
        ["nginx.conf: server / location @again / if $stack_final"],
        "No other chance for a request that was sent: the app may have done it.",
        "every request would be sent again",
        "removed",
        [(CONF, "            if ($stack_final) {\n                return 598;\n            }\n", "")],
        [POST_502],
    ),
    Setting(
        ["nginx.conf: server / location @again / error_page 598 ="],
        "Whether a failed request may have been done is looked at before it is answered.",
        "the server's error_page",
        "removed",
        [(CONF, "            error_page 598 = @failed;\n", "")],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: server / location @again / error_page 502 504 ="],
        "Another chance for a request under which the list of replicas changes twice: once for each worker's address.",
        "none after the second",
        "@failed",
        [(CONF, AGAIN, AGAIN.replace("@again", "@failed"))],
        [
            "proofs/test_zero_loss.py::"
            "test_nothing_is_lost_when_the_list_of_replicas_changes_more_than_once_under_a_request"
        ],
    ),
    Setting(
        ["nginx.conf: server / location @failed / return"],
        "What no app has seen gets 503, so that a client knows that it may ask again.",
        "502, as for a request that may have been done",
        "502",
        [(CONF, "            return 503;\n", "            return 502;\n")],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: server / add_header Retry-After"],
        "Says to those who are refused when to ask again.",
        "none",
        "removed",
        [(CONF, "        add_header Retry-After $stack_retry_after always;\n", "")],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: server / add_header Retry-After always"],
        "With 503 too, the only status that it is for.",
        "on successful answers and redirects only",
        "removed",
        [(CONF, "$stack_retry_after always;", "$stack_retry_after;")],
        [REFUSED],
    ),
    Setting(
        ["nginx.conf: map $status $uri $stack_retry_after"],
        "A 503 of the app's own keeps the Retry-After that the app gave it.",
        "none",
        "for every 503",
        [(CONF, '"~^(429|503) /stack-error$" 1;', '"~^(429|503) " 1;')],
        [APPS_OWN],
    ),
    Setting(
        ["nginx.conf: server / location / / error_page 429 ="],
        "Whose limit it was that refused a request is looked at before it is answered.",
        "429 for all",
        "removed",
        [(CONF, "            error_page 429 = @refused;\n", "")],
        [ALL_FULL],
    ),
    Setting(
        ["nginx.conf: server / location @refused / if $stack_all_asked"],
        "What all clients have taken together is 503: it is not this one's fault.",
        "429 for all",
        "removed",
        [
            (CONF, ASKED, ""),
        ],
        [ALL_FULL],
    ),
    Setting(
        ["nginx.conf: server / location @refused / return"],
        "What a client has too many of itself is 429.",
        "404",
        "503",
        [(CONF, "            return 429;\n", "            return 503;\n")],
        ["proofs/test_limits.py::test_one_address_gets_so_many_requests_in_flight_and_429_for_the_next"],
    ),
]
