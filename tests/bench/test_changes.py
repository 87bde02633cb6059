from bench.experiments import tiers, watched
from stack.settings import ROOT


def test_what_the_experiments_change_is_in_the_configuration() -> None:
    template = (ROOT / "nginx/templates/nginx.conf.template").read_text()
    assert template.count(f"access_log ${{NGINX_ACCESS_LOG}}{tiers.LOG}") == 1
    assert template.count(tiers.LOG) == 1
    assert template.count(f"access_log ${{NGINX_COUNTS}}{watched.COUNTS}") == 1
    upstream = (ROOT / "nginx/40-upstream.sh").read_text()
    assert "server $1:${port}${suffix:-} " in upstream
    assert 'list "${UPSTREAM_HOST}"\n' in upstream
