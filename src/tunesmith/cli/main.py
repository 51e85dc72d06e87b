"""The entry point: the list of commands, and how every error ends."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import click

from tunesmith.cli.environment import set_defaults
from tunesmith.cli.group import LazyGroup
from tunesmith.cli.output import RunInterrupted, print_error, print_interrupted
from tunesmith.errors import ResourceError, TunesmithError

COMMANDS = {
    "init": ("tunesmith.cli.init", "Look at a file of examples and write a recipe for it."),
    "data": ("tunesmith.cli.data", "Work with rows before anything is trained."),
    "check": ("tunesmith.cli.check", "Say what is wrong with the data, what will be learnt and what it will cost."),
    "bases": ("tunesmith.cli.bases", "Compare base models on your rows, before any of them is tuned."),
    "run": ("tunesmith.cli.run", "Check, measure baselines, train, evaluate, and give a verdict."),
    "search": ("tunesmith.cli.search", "Try settings by validation rows, and run the best of them to a verdict."),
    "baselines": ("tunesmith.cli.baselines", "Measure the alternatives to tuning on the test rows."),
    "train": ("tunesmith.cli.train", "Train only."),
    "evaluate": ("tunesmith.cli.evaluate", "Train where needed and score all candidates, without a verdict."),
    "verdict": ("tunesmith.cli.verdict", "Show the comparison and the verdict of a run."),
    "rate": ("tunesmith.cli.rate", "Let people compare two candidates' answers blindly, on a local page."),
    "judge": ("tunesmith.cli.judge", "Let a model compare two candidates' answers, once it agrees with people."),
    "chat": ("tunesmith.cli.chat", "Talk to the model of a run."),
    "export": ("tunesmith.cli.export", "Write the tuned model of a run for other tools."),
    "adapters": ("tunesmith.cli.adapters", "Convert, add, pack and check trained adapters."),
    "bundle": ("tunesmith.cli.bundle", "Make an export ready to run elsewhere, with its card and checksums."),
    "push": ("tunesmith.cli.push", "Send a bundle or an export to the hub or to an MLflow registry."),
    "evidence": ("tunesmith.cli.evidence", "Write what a run measured for lm-eval, promptfoo, Inspect or MLflow."),
    "benchmark": ("tunesmith.cli.benchmark", "Run a public benchmark against an endpoint, through lm-eval."),
    "serve": ("tunesmith.cli.serve", "Serve tuning and answers to programs written for OpenAI and Azure."),
    "worker": ("tunesmith.cli.worker", "Work on the jobs of a server, from this machine or another one."),
    "env": ("tunesmith.cli.env", "Print the environment lines that point such programs at this server."),
    "keys": ("tunesmith.cli.keys", "Make, list and revoke the keys of a server."),
    "import": ("tunesmith.cli.imports", "Bring in jobs, rows and evals from elsewhere."),
    "olive": ("tunesmith.cli.olive", "Olive's commands, with Olive's flags."),
    "runs": ("tunesmith.cli.runs", "List the runs."),
    "doctor": ("tunesmith.cli.doctor", "Prove on this machine that gradients are right, and say how fast it can be."),
    "recipe": ("tunesmith.cli.recipe", "What can stand in a recipe: JSON schema, documentation."),
}

OK, BUG, USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

_RESOURCE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOMEM}


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"tunesmith {version('tunesmith')}")
        ctx.exit()


@click.group(
    cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def cli() -> None:
    """Tune a language model on your examples, and know whether it was worth it.

    Rows go in; a tuned model and a verdict with numbers come out. Begin with `tunesmith init FILE`.
    """


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    set_defaults()
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code: 0 done, 1 our bug, 2 recipe or usage, 3 data, 4 resources,
    5 verification, 6 engine, 130 interrupted. Errors are printed, as one JSON object with `--json`."""
    as_json = "--json" in arguments
    try:
        # Not `cli.main()`: it answers a closed pipe with our code for bugs.
        with cli.make_context("tunesmith", list(arguments)) as context:
            result = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except RunInterrupted as interrupted:
        print_interrupted(interrupted.path, as_json=as_json)
        return INTERRUPTED
    except (click.Abort, KeyboardInterrupt):
        print_interrupted(None, as_json=as_json)
        return INTERRUPTED
    except click.ClickException as error:
        if as_json:
            print_error(TunesmithError(error.format_message(), fix="see --help"), USAGE, as_json=True)
        else:
            error.show()
        return USAGE
    except TunesmithError as error:
        print_error(error, error.exit_code, as_json=as_json)
        return error.exit_code
    except Exception as error:
        resource = as_resource_error(error)
        if resource is not None:
            print_error(resource, resource.exit_code, as_json=as_json)
            return resource.exit_code
        print_error(_bug(error), BUG, as_json=as_json)
        return BUG
    return result if isinstance(result, int) else OK


def as_resource_error(error: Exception) -> ResourceError | None:
    """The error as one of resources where it is: memory, disk or permission refused below us, in a library."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return ResourceError(
            "not enough memory" if isinstance(error, MemoryError) else str(error).split("\n")[0],
            fix="lower train.micro_batch_tokens or evaluate.batch_size, or use a smaller base; results do not change "
            "with the first two",
        )
    if isinstance(error, OSError) and error.errno in _RESOURCE_ERRNOS:
        where = str(error.filename) if error.filename else None
        return ResourceError(
            (error.strerror or str(error)).lower(), where=where, fix="free it, or choose another --out DIR"
        )
    return None


def _bug(error: Exception) -> TunesmithError:
    """Our own mistake: short words, the traceback in a file (or at once, with TUNESMITH_DEBUG=1)."""
    trace = traceback.format_exc()
    if os.environ.get("TUNESMITH_DEBUG") == "1":
        click.echo(trace, err=True)
        where = None
    else:
        file = Path(tempfile.gettempdir()) / f"tunesmith-error-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
        file.write_text(trace)
        where = str(file)
    return TunesmithError(
        f"a bug in Tunesmith: {type(error).__name__}: {error}",
        where=where,
        fix="please report it with the traceback in that file"
        if where
        else "please report it with the traceback above",
    )
