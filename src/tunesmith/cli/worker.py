"""`tunesmith worker`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import click

from tunesmith.cli.options import FOLDER
from tunesmith.cli.serve import settings_from
from tunesmith.errors import ResourceError

STOP_SECONDS = 60.0
"""How long a step may take when the worker is told to end."""


@click.command("worker")
@click.option("--home", type=FOLDER, metavar="DIR", help="The server's home folder; default $TUNESMITH_HOME.")
@click.option("--database", metavar="URL", help="The server's database; default $TUNESMITH_DATABASE, or that in home.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="The server's YAML file.")
@click.option(
    "--device", "devices", multiple=True, metavar="D", help="One job at a time on each; repeatable; default cpu."
)
@click.option("--no-evidence", is_flag=True, help="Train only; leave measuring what jobs were worth to other workers.")
def command(
    home: Path | None, database: str | None, file: Path | None, devices: tuple[str, ...], no_evidence: bool
) -> None:
    """Work on the jobs of a server started with --no-worker, from this machine or another one.

    Needs the server's home folder, the same path on both machines, and its database. Ctrl-C lets each job finish its
    step; it goes on here or elsewhere.
    """
    from tunesmith.service import logs
    from tunesmith.service.worker.supervise import Supervisor

    flags = {"database": database, "devices": devices or None, "evidence": False if no_evidence else None}
    settings = settings_from(home, file, "-", flags)
    logs.configure(None)
    ending = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        ending.set()
        signal.signal(number, signal.SIG_DFL)  # told twice, it goes at once, and its processes with it

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    supervisor = Supervisor(settings)
    supervisor.start()
    click.echo(f"working on the jobs in {settings.home} on {', '.join(settings.devices)}; Ctrl-C ends it")
    while supervisor.alive and not ending.wait(0.5):
        pass
    if not ending.is_set():
        raise ResourceError("the worker has ended by itself", fix="its last lines above say why; start it again")
    supervisor.stop(STOP_SECONDS)
