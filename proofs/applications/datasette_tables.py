"""Datasette over an SQLite file in DATA_DIR.

Needed: the package datasette; this file, of 3 lines; no row besides APP_MODULE. The secret, because workers that draw
their own cannot read each other's cookies: Datasette asks for it with several processes.
"""

import os

from datasette.app import Datasette

app = Datasette([f"{os.environ['DATA_DIR']}/orders.db"], secret=os.environ["DATASETTE_SECRET"]).app()
