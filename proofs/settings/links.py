"""Where each setting is documented by those who made it."""

from __future__ import annotations

NGINX = "https://nginx.org/en/docs/"
# The directives of nginx by module; whatever is not here is of the HTTP core.
MODULES = {
    "ngx_core_module": ("pid", "error_log", "worker_processes", "worker_rlimit_nofile", "worker_shutdown_timeout",
                        "worker_connections", "include"),
    "http/ngx_http_upstream_module": ("zone", "least_conn", "server", "keepalive", "upstream"),
    "http/ngx_http_log_module": ("log_format", "access_log"),
    "http/ngx_http_limit_conn_module": ("limit_conn_zone", "limit_conn", "limit_conn_status"),
    "http/ngx_http_headers_module": ("add_header",),
    "http/ngx_http_rewrite_module": ("return", "if"),
    "http/ngx_http_map_module": ("map",),
    "http/ngx_http_geo_module": ("geo",),
    "http/ngx_http_realip_module": ("set_real_ip_from", "real_ip_header", "real_ip_recursive"),
    "http/ngx_http_proxy_module": ("proxy_",),
    "http/ngx_http_fastcgi_module": ("fastcgi_",),
    "http/ngx_http_uwsgi_module": ("uwsgi_",),
    "http/ngx_http_scgi_module": ("scgi_",),
    "http/ngx_http_ssl_module": ("ssl_",),
    "http/ngx_http_v2_module": ("http2",),
    "http/ngx_http_gzip_module": ("gzip",),
}  # fmt: skip


def link(name: str) -> str:
    """The address of the upstream documentation of a setting of the inventory; "" for what is this stack's own."""
    file, _, path = name.partition(": ")
    if file.endswith(".conf"):
        return _nginx(file, path)
    if file == "gunicorn.conf.py":
        return f"https://docs.gunicorn.org/en/stable/settings.html#{path.replace('_', '-')}"
    if file == "worker.py" and not path.isupper():
        return "https://uvicorn.dev/settings/"
    if file in ("docker-compose.yml", "docker-compose.tls.yml"):
        return _compose(path)
    return ""


def _nginx(file: str, path: str) -> str:
    directive = path.rpartition(" / ")[2].split()[0]
    if directive == "location":  # "location / / return"
        directive = path.split()[-1]
    module = "http/ngx_http_core_module"
    for candidate, directives in MODULES.items():
        if any(directive == d or (d.endswith(("_", "gzip", "http2")) and directive.startswith(d)) for d in directives):
            module = candidate
    if file == "upstream.conf":
        module = "http/ngx_http_upstream_module"
    return f"{NGINX}{module}.html#{directive}"


def _compose(path: str) -> str:
    base = "https://docs.docker.com/reference/compose-file"
    parts = path.split(".")
    if parts[0] in ("networks", "volumes"):
        return f"{base}/{parts[0]}/"
    parts = parts[1:] if parts[0].startswith("x-") else parts[2:]
    if not parts:
        return f"{base}/services/"
    if path.startswith("x-health") or parts[0] == "healthcheck":
        return f"{base}/services/#healthcheck"
    if parts[0] == "<<":
        return f"{base}/fragments/"
    if parts[0] == "deploy":
        return f"{base}/deploy/#{parts[1]}"
    return f"{base}/services/#{parts[0]}"
