"""The command line: the only reader of argv. Imports no torch, so that --help answers at once."""

import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

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
    "data": (
        "PrepareConfig",
        "preparation.command:prepare",
        "filter, deduplicate and validate rows to train on; demonstrations for SFT",
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
    "configs": ("ConfigsConfig", "commands.configs:configs", "the configurations that come with the package"),
    "report": (
        "ReportConfig",
        "commands.report:report",
        "one page with curves, tables and coloured token rewards",
    ),
    "watch": ("WatchConfig", "commands.watch:watch", "the same page of runs in progress, live in a browser"),
}
"""name -> (schema in openprime.config, module of openprime and its function, what it does)."""

COMPLETION = r"""
[ -z "${ZSH_VERSION-}" ] || { autoload -U +X compinit bashcompinit && compinit && bashcompinit; }
_openprime() { local IFS=$'\n'; COMPREPLY=($(openprime --complete "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null)); }
complete -o default -F _openprime openprime
"""
"""For bash and zsh: what follows is asked of the command itself; where it knows nothing, the shell's files."""

LESS = ": lower how much is done at a time (sequences, responses, tokens_per_microbatch)"
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
    if args[0] == "--completion":
        print(COMPLETION.strip())
        return 0
    if args[0] == "--complete":
        print("\n".join(completions(args[1:])))
        return 0
    command, *rest = args
    try:
        if command not in COMMANDS:
            near = importlib.import_module("openprime.config").nearest(command, COMMANDS)
            raise UserError(f"no command {command!r}; {near}")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and command not in SHARED:
            raise UserError(f"{command} is a command for one process: torchrun is for {', '.join(SHARED)}")
        if command in SHARED:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until the run's steps begin, which hear it
        # Telemetry and warnings of libraries would bury our own lines.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
            # torch reads it when it is imported. Else activations of many shapes leave holes in a GPU's memory that
            # vLLM cannot have when it wakes.
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        schema_name, place, _ = COMMANDS[command]
        module, function = place.split(":")
        with ended_at_once():
            config = read_arguments(schema_name, command, rest)
            begin = getattr(importlib.import_module(f"openprime.{module}"), function)
        begin(config)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except (UserError, RunError, StorageError) as error:
        return fail(str(error), error.exit_code)
    except MemoryError as error:
        return fail(f"out of memory: {str(error) or 'there is none left'}{LESS}", 1)
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:
        if isinstance(error, OSError) and error.errno:  # the machine's, such as a full disk
            return fail(f"{type(error).__name__}: {error}", 1)
        if "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":  # torch's
            return fail(f"out of memory: {str(error).splitlines()[0]}{LESS}", 1)
        traceback.print_exc()  # not one of our messages: where it comes from matters
        return fail(str(error), 2 if isinstance(error, ValueError) else 1)
    finally:
        importlib.import_module("openprime.run.lock").release()
    return 0


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Within, an interrupt ends the process: libraries that are being imported would swallow it, or fail by it."""
    before = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: object) -> None:
        sys.stderr = sys.__stderr__  # it may be redirected just now
        os._exit(fail("interrupted", 130))

    if before is signal.default_int_handler:  # or it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def read_arguments(schema_name: str, command: str, args: list[str]) -> Any:
    """The command's configuration: the YAML file, if one is named, what else has no flag, and the flags over it."""
    import tyro

    from openprime import config as schemas  # not before: an interrupt meanwhile is one of the command

    args = list(args)
    default, usage = begin(schema_name, args)
    schemas.refuse_others(getattr(schemas, schema_name), default, args)
    of_this_engine: Any = tyro.conf.AvoidSubcommands[type(default)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            prog, yaml = f"openprime {command} {usage}", yaml_flags()
            config = tyro.cli(of_this_engine, default=default, args=args, prog=prog, registry=yaml)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        schemas.refuse_flags(default, args)
        lines = [line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()[1:-1]]
        raise UserError(" ".join(lines[: lines.index("")] if "" in lines else lines)) from stop
    config.check()
    return config


def begin(schema_name: str, args: list[str]) -> tuple[Any, str]:
    """The configuration before its flags, whose file and other words without a flag are taken off `args`; the usage."""
    from openprime import config as schemas

    schema, tags = getattr(schemas, schema_name), schemas.read_tags(args)
    default = schemas.build(schema, {}, tags)
    own_file = () if "config" in schema.positional else ("",)  # the file of `plan` is another command's
    for name in (*own_file, *schema.positional):  # first the YAML file
        if args and not args[0].startswith("-"):
            if name and isinstance(getattr(default, name), tuple):  # all up to the first flag
                count = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
                default = default.model_copy(update={name: tuple(args[:count])})
                del args[:count]
            elif name:
                default = default.model_copy(update={name: args.pop(0)})
            elif not schema.positional or args[0].endswith((".yaml", ".yml")):
                default = schemas.read_config(schema, schemas.find_config(args.pop(0)), tags)
    usage = " ".join(f"[{name.upper() or 'CONFIG.yaml'}]" for name in (*own_file, *schema.positional))
    return default, usage


def yaml_flags() -> Any:
    """tyro's rules for types, and ours: tables are YAML, and so are lists in brackets."""
    import tyro

    from openprime.config import flag_value

    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def of_many(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec | None:
        kind = info.type_origin
        if kind not in (dict, tuple):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="{KEY: VALUE, ...}" if kind is dict else "[STR [STR ...]]",
            instance_from_str=lambda words: flag_value(words, kind),
            is_instance=lambda value: isinstance(value, kind),
            str_from_instance=lambda value: [str(value)] if kind is dict else list(value),
        )

    return rules


def completions(words: list[str]) -> list[str]:
    """What the last word may become, given those before it: commands, configurations, flags and their choices."""
    from openprime import config as schemas

    *before, last = words or [""]
    if not before:
        return sorted(name for name in COMMANDS if name.startswith(last))
    command, *given = before
    if command not in COMMANDS:
        return []
    schema_name, *_ = COMMANDS[command]
    try:
        default, _ = begin(schema_name, list(given))
    except UserError:
        return []
    found = schemas.types_of(type(default), schemas.tags_of(default.model_dump()))
    flags = {f"--{key.replace('_', '-')}": kind for key, kind in found.items()}
    ours = schemas.package_configs()
    if last.startswith("-"):
        offered = list(flags)
    elif given and given[-1] in flags:
        benchmarks = [path.stem for path in ours.glob("benchmarks/*.yaml")]
        names = {
            "--algorithm": [*schemas.ALGORITHMS],
            "--engine.kind": schemas.KINDS,
            "--benchmark": benchmarks,
        }
        offered = names.get(given[-1]) or schemas.choices(flags[given[-1]])
    else:
        files = () if given else ours.glob(f"{command}/*.yaml")
        offered = [f"configs/{path.relative_to(ours).as_posix()}" for path in files]
    return sorted(word for word in offered if word.startswith(last))


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
