"""The command line: the only reader of argv. Imports no torch, so that --help answers at once."""

import importlib
import os
import sys
import traceback

from openprime import config as schemas
from openprime.types import RunError, StorageError, UserError

COMMANDS = {
    "demo": (
        "DemoConfig",
        "commands.demo:demo",
        "watch a small model learn by PRIME, in minutes on a laptop",
    ),
    "sft": (
        "SFTConfig",
        "commands.sft:train",
        "fine-tune on demonstrations, or train a small model from nothing",
    ),
    "rl": ("RLConfig", "prime.loop:train", "online reinforcement learning: PRIME, or outcome rewards alone"),
    "generate": (
        "GenerateConfig",
        "commands.generate:generate",
        "sample and judge N responses to each prompt",
    ),
    "prm": (
        "OfflinePRMConfig",
        "commands.train_prm:train",
        "train a PRM offline, from outcomes or step labels",
    ),
    "score": (
        "ScoreConfig",
        "commands.score:score",
        "the reward of every token, step and response of a file",
    ),
    "evaluate": ("EvaluateConfig", "evaluation.command:evaluate", "accuracy, votes, Best-of-N, ProcessBench"),
    "ask": ("AskConfig", "commands.ask:ask", "ask a model a question and see the reward of every token"),
    "plan": ("PlanConfig", "plan.command:plan", "memory, time and cost of a training run before it is begun"),
    "verify": (
        "VerifyStageConfig",
        "commands.verify:verify",
        "judge the responses in a file, to try a verifier",
    ),
    "report": (
        "ReportConfig",
        "commands.report:report",
        "one page with curves, tables and coloured token rewards",
    ),
}
"""name -> (schema in openprime.config, module of openprime and its function, what it does)."""

SHARED = ("sft", "rl", "prm")
"""Those that torchrun may start on several ranks."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (failed), 2 (bad input), 128 + signal."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"openprime {importlib.import_module('openprime').__version__}")
        return 0
    command, *rest = args
    if command not in COMMANDS:
        return fail(f"no command {command!r}; {schemas.nearest(command, COMMANDS)}", 2)
    schema_name, place, _ = COMMANDS[command]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and command not in SHARED:
        return fail(f"{command} is a command for one process: torchrun is for {', '.join(SHARED)}", 2)
    try:
        config = read_arguments(schema_name, command, rest)
        # Telemetry and warnings of libraries would bury our own lines.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        module, function = place.split(":")
        getattr(importlib.import_module(f"openprime.{module}"), function)(config)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except (UserError, RunError, StorageError) as error:
        return fail(str(error), error.exit_code)
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # not one of our messages: where it comes from matters
        traceback.print_exc()
        return fail(str(error), 2 if isinstance(error, ValueError) else 1)
    finally:
        importlib.import_module("openprime.run.lock").release()
    return 0


def read_arguments(schema_name: str, command: str, args: list[str]):
    """The command's configuration: the YAML file, if one is named, what else has no flag, and the flags over it."""
    import tyro

    schema, tags = getattr(schemas, schema_name), schemas.read_tags(args)
    default = schemas.build(schema, {}, tags)
    own_file = () if "config" in schema.positional else ("",)  # the file of `plan` is another command's
    for name in (*own_file, *schema.positional):  # first the YAML file
        if args and not args[0].startswith("-"):
            if name:
                default = default.model_copy(update={name: args.pop(0)})
            elif not schema.positional or args[0].endswith((".yaml", ".yml")):
                default = schemas.read_config(schema, schemas.find_config(args.pop(0)), tags)
    schemas.refuse_others(schema, default, args)
    usage = " ".join(f"[{name.upper() or 'CONFIG.yaml'}]" for name in (*own_file, *schema.positional))
    of_this_engine = tyro.conf.AvoidSubcommands[type(default)]
    config = tyro.cli(of_this_engine, default=default, args=args, prog=f"openprime {command} {usage}")
    config.check()
    return config


def fail(message: str, status: int) -> int:
    """Say what is wrong, as one of several ranks which it is, and return the status."""
    rank = f" rank {os.environ['RANK']}:" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"openprime:{rank} {message}", file=sys.stderr)
    return status


def usage() -> str:
    """The overview."""
    listed = "\n".join(f"  {name:<10}{text}" for name, (_, _, text) in COMMANDS.items())
    return f"""openprime COMMAND [CONFIG.yaml] [--flags]

PRIME: reinforcement learning with an implicit PRM

{listed}

openprime COMMAND --help lists the settings of a command; a YAML file holds the same names.
"""
