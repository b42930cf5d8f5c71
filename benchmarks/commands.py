"""All commands of `kvcomm bench`, under one name."""

from __future__ import annotations

from .appcli import app_app
from .cli import bench_app
from .costcli import cost_app
from .growcli import grow_app
from .speedcli import speed_app
from .warmcli import warm_app

for more in (app_app, cost_app, grow_app, speed_app, warm_app):  # their commands are commands of `bench`
    bench_app.add_typer(more)

__all__ = ["bench_app"]
