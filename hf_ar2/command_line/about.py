"""`hf-ar2 settings` and `hf-ar2 env`: what can be set, and what a bug report needs."""

from __future__ import annotations

import argparse
import importlib
import platform
import textwrap

from hf_ar2.cards.environment import describe_environment
from hf_ar2.command_line.parser import nearest
from hf_ar2.settings.fields import Setting, settings_of_class

WIDTH = 80


def settings(arguments: argparse.Namespace) -> None:
    """Print a table of a trainer's settings, or everything about one of them."""
    # Recipes are above this package, so they are found by name.
    configs = importlib.import_module("hf_ar2.recipes.recipe").CONFIGS
    known = settings_of_class(configs[arguments.trainer])
    if arguments.name is None:
        print(settings_table(known))
        print(f"\nOne setting with its description: hf-ar2 settings {arguments.trainer} {next(iter(known))}")
        return
    name = arguments.name
    if name not in known:
        raise ValueError(f"{arguments.trainer} has no setting {name!r}{nearest(name, known)}")
    print(setting_text(known[name]))


def settings_table(known: dict[str, Setting]) -> str:
    """Name, type, default with unit, and values in papers, in at most 80 columns."""
    lines = [f"{'setting':<28}{'type':<20}default", "─" * WIDTH]
    for found in known.values():
        kind, below = found.annotation, [found.paper] if found.paper else []
        if len(kind) > 18:
            kind, below = "str", [kind, *below]
        lines.append(f"{found.name:<28}{kind:<20}{_default(found)}")
        lines += [textwrap.indent(textwrap.fill(text, WIDTH - 4), "    ") for text in below]
    return "\n".join(lines)


def setting_text(known: Setting) -> str:
    """Everything about a setting, in lines of at most 80 columns."""
    facts = {
        "type": known.annotation,
        "default": _default(known),
        "in papers": known.paper,
        "declared in": known.declared_in.__name__,
    }
    lines = [f"{name:<13}{text}" for name, text in facts.items() if text]
    wrapped = [textwrap.fill(line, WIDTH, subsequent_indent=" " * 13) for line in lines]
    return "\n".join([known.name, textwrap.fill(known.help, WIDTH), "", *wrapped])


def _default(known: Setting) -> str:
    value = " ".join(known.default) if isinstance(known.default, list) else repr(known.default)
    if not known.unit:
        return value
    return f"{value} ({known.unit})" if known.default is None else f"{value} {known.unit}"


def env(_: argparse.Namespace) -> None:
    """Print versions and hardware."""
    import torch

    from hf_ar2.models.loading import bf16_is_faster

    found = describe_environment()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    device = "cuda" if gpus else "cpu"
    lines = {
        **found["packages"],
        "python": found["python"],
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": f"{found['processor']}, {found['cores']} cores, {found['threads']} threads used",
        # The instructions that decide whether bf16 is faster.
        "AMX": _yes(torch.cpu._is_amx_tile_supported()),
        "AVX512-BF16": _yes(torch.cpu._is_avx512_bf16_supported()),
        "GPUs": ", ".join(gpus) or "none",
        "CUDA": torch.version.cuda or "none",
        "bf16 by default": f"{_yes(bf16_is_faster(device))} ({device})",
    }
    print("\n".join(f"{name:<23}{text}" for name, text in lines.items()))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
