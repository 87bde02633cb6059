"""NiceGUI inside FastAPI.

Needed: the package nicegui; STICKY_SESSIONS=cookie (or address), as each page lives in the memory of the worker that
made it; NICEGUI_STORAGE_PATH in DATA_DIR, as what it stores goes into the current folder otherwise, which is
read-only in Compose; a secret that all workers share. No line more.
"""

import os

from fastapi import FastAPI
from nicegui import app as site
from nicegui import ui


@ui.page("/")
def counter() -> None:
    stored = site.storage.user
    stored.setdefault("count", 0)
    ui.label().bind_text_from(stored, "count", "counted {}".format)
    ui.button("one more", on_click=lambda: stored.update(count=stored["count"] + 1))
    ui.label(f"process {os.getpid()}")


app = FastAPI()
# The timeout is not needed: by default a page loads itself again where it was cut off for 3 s.
ui.run_with(app, storage_secret=os.environ["STORAGE_SECRET"], reconnect_timeout=30)
