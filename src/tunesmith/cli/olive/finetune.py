"""`tunesmith olive finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.olive.options import common, is_on, shared, switch, value
from tunesmith.cli.output import RunInterrupted, only_json, print_json, warn

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.finetune import Plan

_SHOWN = {
    "max_steps": "Optimiser steps.",
    "num_train_epochs": "Passes over the training rows.",
    "learning_rate": "Peak learning rate.",
    "per_device_train_batch_size": "Rows of a step, before accumulation.",
    "gradient_accumulation_steps": "Times so many rows make one step.",
    "per_device_eval_batch_size": "Answers generated at once.",
    "lr_scheduler_type": "cosine, linear, constant, warmup_stable_decay.",
    "warmup_ratio": "Share of the steps in which the learning rate rises.",
    "weight_decay": "AdamW weight decay.",
    "optim": "adamw_torch, adamw_8bit, muon.",
    "logging_steps": "Steps after which one is told.",
    "eval_steps": "Steps after which validation is measured.",
    "save_total_limit": "Recent checkpoints kept, beside the best.",
    "early_stopping_patience": "Validations without improvement before stopping.",
    "report_to": "tensorboard, mlflow, wandb, trackio, none.",
    "logging_dir": "Where TensorBoard files appear too.",
    "seed": "Seed of everything that is drawn.",
}


def _most_used(function: Any) -> Any:
    """The arguments of the trainer that --help lists; all others are taken too."""
    for name, text in reversed(_SHOWN.items()):
        function = click.option(f"--{name}", name, default=None, metavar="VALUE", help=text)(function)
    return function


@click.command("finetune", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.pass_context
@value("-m", "--model_name_or_path", help="Base model: a folder, or a name in the alias file.")
@value("-t", "--task", help="Kind of task, such as text-classification.")
@value("--task_name", metavar="NAME", help="Name of the run; takes the flags under tasks.NAME of the alias file.")
@switch("--trust_remote_code", help="Run the code that comes with the model. Dangerous.")
@value("-o", "--output_path", metavar="DIR", help="Gets run/, adapter/, model/ and metrics.json.")
@value("--method", help="lora, qlora, dora, rslora, pissa, loha, lokr, bottleneck or full.")
@value("--lora_r", metavar="N", help="Rank; default 16.")
@value("--lora_alpha", metavar="N", help="Scaling numerator; default twice the rank. Also --alpha.")
@value("--target_modules", metavar="A,B", help="Modules that get an adapter; default every linear one.")
@value("--torch_dtype", help="bfloat16, float16 or float32; default what this device computes fastest.")
@value("-d", "--data_name", help="Data set: a file, a folder, or a name in the alias file.")
@value("--data_files", metavar="A,B", help="Files of rows, in place of --data_name.")
@value("--train_subset", help="Subset of the data set to learn.")
@value("--train_split", metavar="SPLIT", help='Rows to learn, such as "train[:4096]".')
@value("--eval_subset", help="Subset for validation.")
@value("--eval_split", metavar="SPLIT", help="Rows for validation; without it a tenth is kept back.")
@value("--test_split", metavar="SPLIT", help="Rows on which tuned and base are measured; without it a fifth is kept.")
@value("--text_template", metavar="TEXT", help="Text with {columns}; everything from the last one on is learnt.")
@value("--answer_fields", metavar="A,B", help="Columns that are the answer, where it is more than the last one.")
@value("--text_field", metavar="COLUMN", help="Column with texts, every token of which is learnt.")
@switch("--use_chat_template", help="Rows are conversations, rendered by the model's own template.")
@value("--max_seq_len", metavar="N", help="Longest row in tokens; longer ones are left out and named.")
@value("--max_samples", metavar="N", help="Use at most so many training rows; default all of them.")
@value("--batch_size", metavar="N", help="Rows of a step, where no other flag says it.")
@value("--custom_loss", metavar="FILE:CLASS", help="A loss of your own (docs/objectives.md).")
@value("--input_cols", metavar="A,B,C", help="With --custom_loss on pairs: columns of text, second text, label.")
@value("--add_special_tokens", metavar="VALUE", help="No effect: the end of an answer is always learnt.")
@click.option(
    "--through",
    type=click.Choice(["train", "evaluate", "verdict"]),
    help="Last stage; default evaluate with test rows.",
)
@switch("--test", help="Try everything on a model of the same kind with two layers and random weights.")
@value("--test_metrics", metavar="NAMES", help="No effect here: nothing is exported.")
@_most_used
@common
def command(context: click.Context, /, as_json: bool, overrides: tuple[str, ...], **flags: Any) -> None:
    """Tune a model on a data set, measure it, and keep adapter, model and metrics in the output folder.

    Every argument of transformers' trainer is taken: as a setting, or with a warning that says why it changes nothing.
    The loss is on the answers, the end of an answer is learnt, all rows are used, the best checkpoint is kept.
    """
    flags.update(_trainer_arguments(context))
    asked = shared(flags, "finetune")
    test = is_on(flags, "test")
    if flags.pop("test_metrics") is not None:
        warn("--test_metrics changes nothing: nothing is exported here")
    from tunesmith.pipeline.olive.finetune import carry_out, plan_finetune, saved_recipe

    plan = plan_finetune(flags, asked.project, overrides, writes=asked.save or not asked.dry)
    if test:
        plan = _small(plan, asked.dry)
    for note in plan.notes:
        warn(note)
    if plan.recipe.base.trust_remote_code:
        warn(f"code that comes with {plan.recipe.base.model} will run on this machine")
    text = saved_recipe(plan)
    if asked.save:
        from tunesmith.runs import write_text

        write_text(plan.output / "recipe.yaml", text)
    if (asked.save or asked.dry) and not as_json:
        click.echo(text, nl=False)
    click.echo(plan.rows, err=True)
    if asked.dry:
        if as_json:
            print_json({"recipe": plan.recipe.model_dump(mode="json"), "through": plan.through, "notes": plan.notes})
        return
    from tunesmith.cli.display import open_display
    from tunesmith.cli.tables import print_result

    with only_json(as_json), open_display() as display:
        try:
            result = carry_out(plan, None if asked.quiet else display)
        except KeyboardInterrupt:
            raise RunInterrupted(plan.run_folder if plan.run_folder.is_dir() else None) from None
    if as_json:
        print_json({**result.to_dict(), "output": str(plan.output), "notes": list(plan.notes)})
        return
    print_result(result)
    click.echo(f"output: {plan.output}")


def _small(plan: Plan, dry: bool) -> Plan:
    """The same plan on a model of two layers with random weights."""
    from tunesmith.pipeline.olive.trial import on_small_model

    return plan if dry else on_small_model(plan)


def _trainer_arguments(context: click.Context) -> dict[str, str]:
    """The trainer's other arguments, and options of methods: `--name value`, `--name=value`, or `--name` for true.

    Their names are known to the pipeline, which takes seconds to import: --help does without. Raises
    `click.NoSuchOption` with the nearest one.
    """
    if not context.args:
        return {}
    from tunesmith.pipeline.olive.methods import NAMES as OF_METHODS
    from tunesmith.pipeline.olive.training_arguments import NAMES as OF_TRAINER
    from tunesmith.recipe.problems import nearest

    known = {f"--{name}" for name in (*OF_METHODS, *OF_TRAINER)}
    listed = [text for option in context.command.params for text in option.opts]
    found: dict[str, str] = {}
    left = list(context.args)
    while left:
        name, equals, text = left.pop(0).partition("=")
        if name not in known:
            if not name.startswith("-"):
                raise click.UsageError(f"Got unexpected extra argument ({name})", context)
            near = nearest(name, [*known, *listed])
            raise click.NoSuchOption(name, possibilities=[near] if near else None, ctx=context)
        if not equals:
            text = left.pop(0) if left and not _is_flag(left[0]) else "true"
        found[name.removeprefix("--")] = text
    return found


def _is_flag(text: str) -> bool:
    """Whether a word begins a new flag; a negative number does not."""
    return text.startswith("-") and not text[1:2].isdigit()
