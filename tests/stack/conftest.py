from __future__ import annotations

from pathlib import Path

import pytest

from stack import debian


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but an apt-get that installs a program of the package's name, or cannot."""
    (tmp_path / "apt-get").write_text(
        '#!/bin/bash\necho "$@" >>"${0%/*}/calls"\n'
        '[ ! -e "${0%/*}/lock" ] || { echo "E: Could not get lock" >&2; exit 100; }\n'
        '>"${0%/*}/lock"; trap "/bin/rm ${0%/*}/lock" EXIT; /bin/sleep 0.2\n'
        'if [ -e "${0%/*}/broken" ]; then echo "E: no route to the mirror" >&2; exit 100; fi\n'
        'if [ "$1" = install ]; then p="${0%/*}/${!#}"; echo "#!/bin/bash" >"$p"; /bin/chmod +x "$p"; fi\n'
    )
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian, "PATH", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 0)
    return tmp_path
