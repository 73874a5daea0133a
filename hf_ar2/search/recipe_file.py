"""The recipe.yaml of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_ar2.cards.command import how_to_finish
from hf_ar2.cards.facts import last_row
from hf_ar2.files import check_files, read_json
from hf_ar2.settings.plain_yaml import read_yaml

# The checksums of the models at the root of a run folder.
SERVED = "served.json"


def read_finished_recipe(folder: str | Path) -> dict[str, Any]:
    """The recipe of a finished run, after checking that the files of its models are unchanged.

    FileNotFoundError if it is not a run folder, or has no retriever yet; ValueError if a file is damaged.
    """
    recipe = read_recipe(folder)
    if not (Path(folder) / "retriever").is_dir():
        stages = [Path(folder) / "stages" / name for name in recipe.get("stages") or {}]
        if stages and not last_row(recipe) and all((stage / "done.json").is_file() for stage in stages):
            raise FileNotFoundError(
                f"{folder} has no retriever/: all stages are done, but the recipe has no evaluation.rows, the last of "
                f"which names the run's models. Name a model itself, such as {stages[-1]}/retriever, or add a row and "
                "repeat the command that started the run: finished stages are kept"
            )
        raise FileNotFoundError(
            f"{folder} has no retriever/ yet: the run is not finished. {how_to_finish(folder)}"
        )
    checksums = read_json(Path(folder) / SERVED, {}).get("checksums", {})
    check_files(Path(folder), checksums, "Repeat the command that made the run: it writes its models again.")
    return recipe


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """The recipe of a run folder, finished or not."""
    folder = Path(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        near = {
            str(file.parent)
            for place in (folder.parent, Path("runs"))
            for file in place.glob("*/recipe.yaml")
        }
        model = next((at for at in (folder, folder / "retriever") if (at / "modules.json").is_file()), None)
        if model is not None:
            raise FileNotFoundError(
                f"{folder} is not a run folder: it has no recipe.yaml, but {'is' if model == folder else 'holds'} a "
                "model. Run folders come from hf-ar2 train; to measure the model: hf-ar2 evaluate --retriever "
                f"{model} --collection …; to search with it: hf-ar2 search with the same options"
            )
        here = f"Run folders here: {', '.join(sorted(near))}" if near else "Make one with: hf-ar2 quickstart"
        what = "it has no recipe.yaml" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{folder} is not a run folder: {what}. {here}")
    try:
        recipe = read_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}. Restore the file, or run the recipe again with: hf-ar2 train"
        ) from None
    if not isinstance(recipe, dict) or "collection" not in recipe:
        raise ValueError(f"{path}: expected a recipe with a field 'collection'. Run it again: hf-ar2 train")
    return recipe
