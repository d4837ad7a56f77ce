"""Render a data set: pictures of a random world with all their labels, in one HDF5 file.

    python misc/render.py 1111
    python misc/render.py TCVL-multi --images 3000 --res 128
    python misc/render.py mine -p 'render.meshes = "~/shapes"' 'render.factors = "0110"'

NAME is a variant (four bits: texture, colour, viewpoint, lighting; or TCVL-multi), or the name
of a set of your own, which -g and -p describe. What was interrupted is continued by the same
command.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

# A file of the user's folder that is named like one of our modules must not win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from selfstudy import extra  # noqa: E402
from util.environment import cpus  # noqa: E402
from util.errors import UserError, reports_errors  # noqa: E402

if TYPE_CHECKING:  # slow to import, and not needed for -h
    from selfstudy.render.produce import Spread
    from selfstudy.render.world import World

IMAGES, RES = {"single": 12000, "multi": 3000}, {"single": 64, "multi": 128}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Render a data set into DATA_DIR/syn/NAME.")
    add = parser.add_argument
    add("variant", metavar="NAME", help="a variant, such as 0010 or TCVL-multi, or a new name")
    many = {"nargs": "+", "action": "extend", "default": []}
    add("-g", "--gin_config", **many, type=extra.gin_name,
        help="default: render/single, render/multi if NAME ends so")  # fmt: skip
    add("-p", "--gin_param", **many, metavar="'NAME = VALUE'", help="as in 'render.seed = 1'")
    add("--images", type=int, help="in all (12000; multi: 3000)")
    add("--res", type=int, help="width and height in pixels (64; multi: 128)")
    add("--workers", type=int, help="processes on this machine (all CPUs)")
    add("--address", help="of a Ray cluster that renders, such as auto or host:6379")
    return parser.parse_args()


def world_of(name: str, files: list[str], params: list[str]) -> "World":
    """The configured world; of a variant with the factors and objects that its name means.

    Raises:
        UserError: the configuration is wrong, or says something else than the name.
    """
    from selfstudy import configure
    from selfstudy.render import world

    variant = world.configuration(name)
    meant = world.settings(variant) if variant else {}
    named = [f"render.{key} = {value!r}" for key, value in meant.items()]
    configure.load(configure.Spec(tuple(files), (*named, *params)))
    bound = configure.current_bindings()
    for key, value in meant.items():
        if bound[f"render.{key}"] != value:
            raise UserError(
                f"'{name}' means render.{key} = {value!r}, not {bound[f'render.{key}']!r}: "
                "choose another NAME, or leave that -p out"
            )
    return world.World()


def is_there(path: Path, recipe: dict) -> bool:
    """Whether the file was made already.

    Raises:
        UserError: it is there, but something else is in it.
    """
    from util import files, hdf5

    if not path.exists():
        return False
    stored = hdf5.attributes(path).get("recipe")
    if stored != files.plain(recipe):
        raise UserError(f"{path} is there and {difference(stored, files.plain(recipe))}: "
                        "choose "
                        "another NAME, or delete it", 4)  # fmt: skip
    return True


def difference(stored: dict | None, wanted: dict) -> str:
    """How the recipe of a file differs from what is wanted, in words."""
    if not stored:
        return "was not rendered here"
    mine, asked = ({**recipe, **recipe.get("world", {})} for recipe in (stored, wanted))
    words = [f"{key} {mine.get(key)}, not {asked.get(key)}" for key in {**mine, **asked}
             if key != "world" and mine.get(key) != asked.get(key)]  # fmt: skip
    return f"has {'; '.join(words)}"


@contextmanager
def nodes(address: str | None) -> Iterator["Spread | None"]:
    """What spreads work over a cluster, if there is one."""
    if not address:
        yield None
        return
    from selfstudy.tune import cluster

    cluster.check_address(address)
    try:
        cluster.start(address, quiet=True, folder=None)
        yield cluster.spread
    finally:
        cluster.stop()


def render(path: Path, world: "World", images: int, res: int, args: argparse.Namespace) -> None:
    """Make the file and print what it is."""
    from selfstudy.render import produce
    from util import hdf5

    start, workers = time.monotonic(), args.workers or cpus()
    with nodes(args.address) as spread:
        count = produce.produce(path, world, images, res, workers, spread)
    seconds = time.monotonic() - start
    print(f"{path}: {images} pictures, {count} of them now in {seconds:.1f} s "
          f"({count / seconds:.3g} a second)")  # fmt: skip
    print(f"sha256 {hdf5.attributes(path)['sha256']}")


@reports_errors
def main() -> int:
    """Render what the command line says; returns the exit code."""
    args = _arguments()
    if args.address and args.workers:
        raise UserError("--workers is for this machine and --address for others: leave one out")
    import paths
    from selfstudy.render import produce
    from selfstudy.render.world import configuration

    name = configuration(args.variant) or args.variant
    kind = "multi" if name.endswith("-multi") else "single"
    images = IMAGES[kind] if args.images is None else args.images
    res = RES[kind] if args.res is None else args.res
    produce.check(images, res, 1 if args.workers is None else args.workers)
    try:
        path = paths.under(paths.DATA_DIR / "syn", f"{name}/data_{res}.h5")
    except ValueError as error:
        raise UserError(f"NAME: {error}") from None
    world = world_of(args.variant, args.gin_config or [f"render/{kind}"], args.gin_param)
    if is_there(path, produce.recipe(world, images, res)):
        print(f"{path}: {images} pictures, there already")
    else:
        try:
            render(path, world, images, res, args)
        except KeyboardInterrupt as interrupt:
            command = shlex.join(["python", os.path.relpath(__file__), *sys.argv[1:]])
            print(f"\ninterrupted: what is rendered stays; continue with: {command}",
                  file=sys.stderr)  # fmt: skip
            return getattr(interrupt, "code", 130)
    params = f"-p 'SynDataset.dataset_choice = \"{name}\"' 'BaseDataset.input_res = {res}'"
    print(f"look at it: python misc/data.py show SynDataset {params}")
    return 0


if __name__ == "__main__":
    main()
