"""Run a recipe: accelerate launch recipes/run.py RECIPE.yaml [--key value ...]"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Slow imports are where they are used, so that `main` handles a Ctrl-C during them.

USAGE = """usage: accelerate launch recipes/run.py RECIPE.yaml [--key value ...]

  --output_dir FOLDER           the run folder (default: runs/<recipe>)
  --guard COLLECTION            other texts, on which search is also measured: before and after
  --seed 7                      a field of the recipe
  --bf16 true                   a setting of every stage that has it
  --ar2.num_rounds 3            a setting of the stage `ar2`
  --models.light.layers "[0]"   a model's field
"""


def parse_arguments(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """The recipe's path and its overrides."""
    from hf_ar2.recipes.recipe import RecipeError

    if not arguments or arguments[0].startswith("-"):
        raise RecipeError(f"which recipe?\n\n{USAGE}")
    overrides: dict[str, str] = {}
    rest = iter(arguments[1:])
    for argument in rest:
        if not argument.startswith("--"):
            raise RecipeError(f"{argument!r}: expected --key value\n\n{USAGE}")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise RecipeError(f"{argument}: a value is missing\n\n{USAGE}") from None
        overrides[key] = value
    return arguments[0], overrides


def main(arguments: list[str] | None = None) -> None:
    """Run a recipe; exit with 130 after Ctrl-C.

    An error is printed in one line; `HF_AR2_TRACEBACK=1` in the environment shows its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return
    sys.unraisablehook = _interrupt_later
    process = int(os.environ.get("RANK", 0))
    try:
        from hf_ar2.command_line.launch import (
            INTERRUPTS,
            check_run_folder,
            default_run_folder,
            end_with_launcher,
            ended_by_interrupts,
        )

        # `hf-ar2 train` starts the launcher so that it ignores Ctrl-C, which this process inherits.
        if os.environ.pop(INTERRUPTS, None):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        end_with_launcher()
        if arguments and process == 0:  # which holds the folder for the others
            check_run_folder(Path(arguments[0]), arguments[1:])
        with ended_by_interrupts():
            from hf_ar2.encoding.processes import end_processes
            from hf_ar2.files import writing
            from hf_ar2.recipes.loading import load_recipe
            from hf_ar2.recipes.runner import run_recipe
            from hf_ar2.settings.secrets import without_secrets

        path, overrides = parse_arguments(arguments)
        sys.argv = without_secrets(sys.argv)  # some trackers record it
        recipe = load_recipe(path, overrides)
        recipe.output_dir = recipe.output_dir or str(default_run_folder(recipe.name))
        quiet()
        with writing(Path(recipe.output_dir)):
            run_recipe(recipe)
        end_processes()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from hf_ar2.command_line.errors import error_text

        text = error_text(error)
        if process:  # if the first one has the same error, the launcher ends this one before it prints it
            time.sleep(2)
            text = f"process {process}: {text}"
        sys.exit(f"recipe: {text}")


def _interrupt_later(unraisable: Any) -> None:
    """Raise Ctrl-C again a moment later if it came during a destructor, where Python prints and ignores it."""
    if unraisable.exc_type is KeyboardInterrupt:
        timer = threading.Timer(0.05, _thread.interrupt_main)
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


def quiet() -> None:
    """Silence load reports and notices of other libraries, so that the terminal shows progress and results."""
    from hf_ar2.command_line.open import quiet as quiet_libraries

    quiet_libraries()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    noise = ("LOAD REPORT", "Converting SentenceTransformer", "mtime may not be reliable")
    noisy = ("transformers.modeling_utils", "transformers.trainer_utils", "sentence_transformers.base.model")
    for name in noisy:
        logging.getLogger(name).addFilter(lambda log: not any(text in log.getMessage() for text in noise))


if __name__ == "__main__":
    main()
