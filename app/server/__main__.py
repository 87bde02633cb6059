"""`python -m app.server`: Gunicorn with this stack's configuration and master. Gunicorn's options may follow."""

from __future__ import annotations

import sys
from pathlib import Path

from gunicorn.app.wsgiapp import WSGIApplication

from app.server.arbiter import Arbiter


class Application(WSGIApplication):  # type: ignore[misc]
    def run(self) -> None:
        if self.cfg.check_config or self.cfg.print_config:
            super().run()
        Arbiter(self).run()


if __name__ == "__main__":
    sys.argv[1:1] = ["--config", str(Path(__file__).with_name("gunicorn.conf.py"))]
    Application().run()
