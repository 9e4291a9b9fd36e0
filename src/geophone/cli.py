"""The command line."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

import geophone
from geophone.core.defaults import CURVES_OF_A_SCAN, PERTURBATIONS_OF_A_SCAN, SIZES
from geophone.core.errors import GeophoneError, plain, unknown
from geophone.core.files import replacing, reserved
from geophone.core.registry import PERTURBATIONS, REGISTRIES, STUDIES, Registry, load_entry_points, load_plugin
from geophone.following import followed, followed_study

if TYPE_CHECKING:  # what needs torch is imported by the commands that use it, so that --help answers at once
    from geophone.probes.survival import Survival
    from geophone.study.tasks import Progress


class Names(click.Command):
    """A command whose help ends with what is registered, plug-ins included."""

    shows: tuple[Registry[Any], ...] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names under the options."""
        super().format_epilog(ctx, formatter)
        for registry in self.shows:
            with formatter.section(registry.plural.capitalize()):
                formatter.write_dl([(name, registry.summary(name)) for name in registry])


class ScanHelp(Names):
    """`scan` and `attack` show the perturbations."""

    shows = (PERTURBATIONS,)


class RunHelp(Names):
    """`run` shows the studies."""

    shows = (STUDIES,)


def _load(_ctx: click.Context, _param: click.Parameter, files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        load_plugin(file)
    return files


plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=Path,
    is_eager=True,
    callback=_load,
    metavar="FILE",
    help="A Python file that registers metrics, perturbations, recipes, models, data, studies or probes. "
    "May be repeated.",
)


class Reduction(click.ParamType):
    """A reduction's name: a choice of those that there are, which are looked up when one is given or help is shown."""

    name = "reduction"

    def _choice(self) -> click.Choice[str]:
        from geophone.models.tap import REDUCTIONS

        return click.Choice(list(REDUCTIONS))

    def get_metavar(self, *of: Any, **more: Any) -> str | None:
        """The names."""
        return self._choice().get_metavar(*of, **more)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One of the names, or click's error."""
        return self._choice().convert(value, param, ctx)


MOST = 2**31 - 1
COUNT = click.IntRange(1, MOST)
LARGEST_SEED = 2**63 - 1
"""A table keeps 64 bits of a seed."""
SEED = click.IntRange(-LARGEST_SEED, LARGEST_SEED)
MANY_THREADS = 256
"""More threads than this are no machine's, and an operating system may refuse them in the middle of the work."""

layers_option = click.option("--layers", help="Layer names or patterns, separated by commas, such as 'layer*.relu*'.")
factory_option = click.option(
    "--factory", metavar="F", help="What makes the network of a weights file: file.py:function or a model's name."
)
images_option = click.option("--images", type=COUNT, help="How many images, class-balanced.  [default: all]")
batch_size_option = click.option(
    "--batch-size", type=COUNT, default=256, show_default=True, help="Images per batch, of checks too."
)
seed_option = click.option("--seed", type=SEED, default=0, show_default=True, help="Keys everything random.")
device_option = click.option("--device", help="Where the network runs, such as cuda.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(geophone.__version__, prog_name="geophone")
def cli() -> None:
    """Shake a network's input, record every layer, and read from the inner geometry why it holds or breaks.

    \b
    Start with:
      geophone run demo                       train, shake, record, measure, relate, report (minutes)
      geophone scan my.py:model my_images/    diagnose a network that you have
      geophone attack my.py:model my_images/  what survives AutoAttack, image by image
      geophone compare a.py:model b.py:model my_images/   all layers of two networks side by side
      geophone list perturbations             what there is to shake with
    """


@cli.command(cls=RunHelp)
@click.argument("study")
@click.option("--size", default="demo", show_default=True, metavar="|".join(SIZES), help="How much of the study.")
@click.option("--seeds", metavar="N,N,…", help="Seeds, such as 0,1,2; default those of the size.")
@click.option("--set", "switches", multiple=True, metavar="NAME=VALUE", help="A study's own switch; may be repeated.")
@click.option("--out", type=Path, help="Folder for the results.  [default: runs/STUDY-SIZE]")
@click.option(
    "--executor",
    type=click.Choice(["process", "ray"]),
    default="process",
    show_default=True,
    help="Where jobs run: on this machine, or on Ray (the cluster at $RAY_ADDRESS if set; extra `ray`).",
)
@click.option("--workers", type=click.IntRange(1, 4096), default=1, show_default=True, help="Jobs at the same time.")
@click.option(
    "--threads",
    type=click.IntRange(1, MANY_THREADS),
    help="Torch threads per job; other numbers give other numbers in the table.  [default: 1; resumed: as begun]",
)
@click.option("--device", default="cpu", show_default=True, help="Where networks run, such as cuda.")
@plugin_option
def run(
    study: str,
    size: str,
    seeds: str | None,
    switches: tuple[str, ...],
    out: Path | None,
    executor: str,
    workers: int,
    threads: int | None,
    device: str,
    plugins: tuple[Path, ...],
) -> None:
    """Run STUDY: train its networks, shake, record, measure, relate, and write a report.

    STUDY is a name from `geophone list studies` or a Python file that registers one. Interrupted at any moment, the
    same command continues and ends with the same table.
    """
    from geophone.report import write_report
    from geophone.study import find_study, run_study

    chosen = _switches(switches)
    name, made = find_study(study, size, _seeds(seeds), chosen)
    folder = out or Path("runs") / "-".join((name, size, *chosen.values()))
    files = (*plugins, *([Path(study.partition(".py")[0] + ".py")] if ".py" in study else []))
    with followed_study(f"{name} ({size})") as follow:
        with _executor(executor, workers, follow.watch) as pool:
            run_study(
                made,
                folder,
                name=name,
                executor=pool,
                threads=threads,
                device=device,
                plugins=[file.resolve() for file in files],
                progress=follow.watch,
                finished=follow.finished,
            )
        follow.report()
        page = write_report(folder)
    click.echo(click.format_filename(page))


@cli.command("scan", cls=ScanHelp)
@click.argument("model")
@click.argument("data")
@factory_option
@layers_option
@click.option(
    "--perturb", default=PERTURBATIONS_OF_A_SCAN, show_default=True, help="Names, families or calls, by commas."
)
@click.option(
    "--curves",
    default=CURVES_OF_A_SCAN,
    show_default=True,
    help="Attacks whose accuracy is drawn over eps; '' for none.",
)
@click.option("--also", help="Metrics to measure besides, such as 'manifold_capacity, manifold_radius'.")
@images_option
@click.option("--reduce", type=Reduction(), default="spatial_mean", show_default=True,
              help="What a unit is: a channel, a feature of the last axis, or every position.")  # fmt: skip
@batch_size_option
@seed_option
@device_option
@click.option(
    "--out",
    type=Path,
    default=Path("report.html"),
    show_default=True,
    help="The report; its table and figures go to a folder of the same name.",
)
@click.option(
    "--checks/--no-checks",
    default=True,
    help="Also check by small attacks that the robustness can be believed (minutes).  [default: checks]",
)
@click.option("--strict", is_flag=True, help="Exit with 1 when a check fails; the page is written all the same.")
@plugin_option
def scan_command(
    model: str,
    data: str,
    factory: str | None,
    layers: str | None,
    perturb: str,
    curves: str,
    also: str | None,
    images: int | None,
    reduce: str,
    batch_size: int,
    seed: int,
    device: str | None,
    out: Path,
    checks: bool,
    strict: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Diagnose MODEL on DATA in one page: accuracy under every perturbation, and what happens layer by layer.

    \b
    MODEL  file.py:factory                a function that returns a torch.nn.Module
           weights.safetensors or .pt     with --factory
           runs/demo-demo/jobs/ID         a network that a study trained
           timm:NAME, torchvision:NAME    extras `timm`, `torchvision`
    DATA   a name from `geophone list data`, an .npz file, or a folder of images

    The network takes images in [0, 1] and returns logits; normalisation is its first layer.

    Exit codes: 0, the page is written; 1, with --strict, a check failed (warnings say which); 2, bad input.
    """
    from geophone.diagnosis import scan
    from geophone.models.tap import reduction

    with followed("scanning") as watcher:
        found = scan(
            model,
            data,
            perturb,
            _names(layers),
            out,
            curves=curves,
            also=_names(also) or (),
            factory=factory,
            images=images,
            device=device,
            batch_size=batch_size,
            reduce=reduction(reduce),
            seed=seed,
            checks=checks,
            progress=watcher,
        )
    _warn(found.problems)
    click.echo(click.format_filename(str(found.report)))
    if strict and found.problems:
        raise click.exceptions.Exit(1)


@cli.command("attack", cls=ScanHelp)
@click.argument("model")
@click.argument("data")
@click.option("--attacks", default="LinfAutoAttack", show_default=True, help="Names or calls, separated by commas.")
@click.option("--restarts", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Tries of each attack.")
@click.option(
    "--every/--union", default=True, help="Run each attack on all images, or on what is left.  [default: every]"
)
@factory_option
@images_option
@batch_size_option
@seed_option
@device_option
@click.option("--out", type=Path, help="A .parquet file for the outcome of each image.")
@plugin_option
def attack_command(
    model: str,
    data: str,
    attacks: str,
    restarts: int,
    every: bool,
    factory: str | None,
    images: int | None,
    batch_size: int,
    seed: int,
    device: str | None,
    out: Path | None,
    plugins: tuple[Path, ...],
) -> None:
    """Attack MODEL on DATA and count, image by image, what survives; MODEL and DATA as for `geophone scan`.

    The last line is the accuracy that is left when each image meets the attack that is worst for it.
    """
    from geophone.diagnosis import attack

    if out is not None and out.suffix != ".parquet":
        raise GeophoneError(f"--out {out}: give a file that ends in .parquet.")
    with reserved(None, *([] if out is None else [out])):
        with followed("attacking") as watcher:
            found = attack(
                *(model, data, attacks),
                restarts=restarts,
                every=every,
                factory=factory,
                images=images,
                batch_size=batch_size,
                seed=seed,
                device=device,
                progress=watcher,
            )
        if out is not None:
            with replacing(out) as file:
                found.frame().write_parquet(file)
    _warn(found.problems)
    _print_survival(found)
    if out is not None:
        click.echo(click.format_filename(out))


def _print_survival(found: "Survival") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("attack", "robust accuracy", "95 % interval"):
        table.add_column(heading, overflow="fold")
    for name, span in found.summary().items():
        table.add_row(
            name, *(("not run on all",) if span is None else (f"{span[0]:.4f}", f"{span[1]:.4f}-{span[2]:.4f}"))
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


@cli.command("compare", cls=ScanHelp)
@click.argument("first", metavar="MODEL_A")
@click.argument("second", metavar="MODEL_B")
@click.argument("data")
@click.option("--measures", default="cka_minibatch", show_default=True, help="Of similarity; numbers are of the first.")
@click.option("--reduce", type=Reduction(), help="A unit is a channel's mean, ….  [default: every position]")
@click.option(
    "--points", type=click.IntRange(4, MOST), default=1000, show_default=True, help="Images whose rows are kept."
)
@layers_option
@click.option("--others", help="Layers of MODEL_B, likewise.  [default: as of MODEL_A]")
@click.option(
    "--perturb", metavar="CALL", help="Also compare each with itself under this, such as 'LinfPGD(eps=8/255)'."
)
@factory_option
@images_option
@batch_size_option
@seed_option
@device_option
@click.option("--out", type=Path, default=Path("compared.html"), show_default=True, help="The page.")
@plugin_option
def compare_command(
    first: str,
    second: str,
    data: str,
    measures: str,
    reduce: str | None,
    points: int,
    layers: str | None,
    others: str | None,
    perturb: str | None,
    factory: str | None,
    images: int | None,
    batch_size: int,
    seed: int,
    device: str | None,
    out: Path,
    plugins: tuple[Path, ...],
) -> None:
    """Compare the layers of MODEL_A and MODEL_B on DATA: all with all, as heat maps; given as for `geophone scan`."""
    from geophone.diagnosis import compare_networks
    from geophone.probes.layer_maps import LayerMap, same_memory

    with followed("comparing") as watcher:
        asked = LayerMap(
            tuple(_names(measures) or ()),
            layers=None if layers is None else tuple(_names(layers) or ()),
            others=None if others is None else tuple(_names(others) or ()),
            reduce=reduce or same_memory,
            batch_size=batch_size,
            points=points,
        )
        found = compare_networks(
            *(first, second, data, asked, out),
            perturb=perturb,
            factory=factory,
            images=images,
            device=device,
            seed=seed,
            progress=watcher,
        )
    _warn(found.problems)
    click.echo(click.format_filename(str(found.report)))


@cli.command("list")
@click.argument("kind", metavar=f"[{'|'.join(REGISTRIES)}]", required=False)
@plugin_option
def list_command(kind: str | None, plugins: tuple[Path, ...]) -> None:
    """List what is registered, plug-ins included: data, models, recipes, perturbations, metrics, studies or probes."""
    if kind is not None and kind not in REGISTRIES:
        raise unknown("kind", kind, REGISTRIES)
    for registry in [REGISTRIES[kind]] if kind else REGISTRIES.values():
        table = Table(title=registry.plural.capitalize(), title_justify="left", box=None, pad_edge=False)
        for column, style in ((registry.kind, "bold"), ("what it is", ""), ("from", "dim")):
            table.add_column(column, style=style, overflow="fold")
        for name in registry:
            table.add_row(name, registry.summary(name), registry.origin(name))
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


@cli.command()
@click.argument("folder", type=Path)
@click.option("--out", type=Path, help="The page.  [default: FOLDER/report.html]")
def report(folder: Path, out: Path | None) -> None:
    """Write the report of a study's FOLDER anew from its table."""
    from geophone.report import write_report

    click.echo(click.format_filename(write_report(folder, out)))


def _warn(problems: Iterable[str]) -> None:
    """Say what looks wrong, on standard error."""
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise GeophoneError(f"cannot read the seeds {_short(text)!r}: write whole numbers, such as 0,1,2.") from None
    for seed in seeds:
        if abs(seed) > LARGEST_SEED:
            raise GeophoneError(f"the seed {_short(str(seed))} is out of range: give whole numbers of 64 bits.")
    return seeds


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _names(text: str | None) -> list[str] | None:
    """Names separated by commas; None for none."""
    return [part.strip() for part in text.split(",")] if text else None


def _switches(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise GeophoneError(f"cannot read --set {text!r}: write NAME=VALUE, such as reduce=positions.")
    return dict(text.split("=", 1) for text in texts)


def _executor(kind: str, workers: int, progress: "Progress") -> AbstractContextManager[Executor | None]:
    from geophone.study import process_executor, ray_executor

    if kind == "ray":
        return ray_executor(workers)
    return process_executor(workers, progress) if workers > 1 else nullcontext()


_LONGEST = 1900  # characters of a message that a person still reads

_AFTER = {
    "run": " The same command continues where it stopped.",
    **dict.fromkeys(("scan", "attack", "compare", "report"), " Nothing was written; the same command begins anew."),
}
"""What Ctrl-C leaves of each verb."""


def main(arguments: list[str] | None = None, leave: Callable[[int], Any] = sys.exit) -> None:
    """Run the command line. Bad input gives one line on standard error and exit code 2."""
    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if given[0] not in ("--version", "--help", "-h"):
            load_entry_points()
        code = cli.main(given, prog_name="geophone", standalone_mode=False)
        leave(code if isinstance(code, int) else 0)
    except GeophoneError as error:
        _refuse(str(error), leave)
    except click.ClickException as error:  # of the words, before anything was done
        verb = given[0] if given[0] in cli.commands else ""
        _refuse(f"{plain(error.format_message())} See `{' '.join(('geophone', *verb.split()))} --help`.", leave)
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"geophone: interrupted.{_AFTER.get(given[0], '')}", err=True)
        leave(130)
    except OSError as error:  # of standard output, or of files that nobody looks after
        _refuse(plain(f"{error.filename or 'standard output'}: {error.strerror or error}."), leave)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        _refuse(
            f"out of memory. Use fewer --images, a smaller --batch-size or another --device. {plain(str(error))}", leave
        )


def _refuse(message: str, leave: Callable[[int], Any]) -> None:
    if len(message) > _LONGEST:  # what was given may be of any length
        message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
    click.echo(f"geophone: {message}", err=True)
    try:
        sys.stdout.flush()
    except OSError:  # full: what is still to be written there would be tried once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    leave(2)
