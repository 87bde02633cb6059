from pathlib import Path

import pytest

from bench.experiments import tls
from bench.processes import CannotRun
from stack.settings import ROOT


def test_what_is_changed_for_a_static_certificate_is_there() -> None:
    template = (ROOT / "nginx/templates/tls.conf.template").read_text()
    for word in ("ssl_certificate", "ssl_certificate_key"):
        assert template.count(f"\n{word} $stack_certificate;") == 1
    assert template.count(tls.CACHE) == 1


def test_each_renewal_has_a_certificate_of_its_own(tmp_path: Path) -> None:
    folders = tls._certificates(tmp_path, 3)
    assert len({(folder / "site.pem").read_bytes() for folder in folders}) == 3


def test_answers_that_are_no_success_are_no_figures() -> None:
    tls._hold_to_success([200, 200])
    with pytest.raises(CannotRun, match="1 of 2 requests failed: status 429"):
        tls._hold_to_success([200, 429])
