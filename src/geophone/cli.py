"""The command line."""

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

import geophone
from geophone.errors import GeophoneError, unknown
from geophone.files import replacing
from geophone.record import REDUCTIONS
from geophone.registry import PERTURBATIONS, REGISTRIES, STUDIES, Registry, load_entry_points, load_plugin
from geophone.report import write_report
from geophone.scan import DEFAULT_CURVES, DEFAULT_PERTURBATIONS, attack, compare_networks, scan
from geophone.similarity import same_memory
from geophone.study import find_study, process_executor, ray_executor, run_study
from geophone.study.job import Progress
from geophone.study.studies import SIZES


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
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_load,
    metavar="FILE",
    help="A Python file that registers metrics, perturbations, recipes, models, data or studies. May be repeated.",
)


layers_option = click.option("--layers", help="Layer names or patterns, separated by commas, such as 'layer*.relu*'.")
factory_option = click.option(
    "--factory", metavar="F", help="What makes the network of a weights file: file.py:function or a model's name."
)
images_option = click.option(
    "--images", type=click.IntRange(1), help="How many images, class-balanced.  [default: all]"
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images per batch."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Keys everything random.")
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: runs/STUDY-SIZE]")
@click.option(
    "--executor",
    type=click.Choice(["process", "ray"]),
    default="process",
    show_default=True,
    help="Where jobs run: on this machine, or on Ray (the cluster at $RAY_ADDRESS if set; extra `ray`).",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Jobs at the same time.")
@click.option("--threads", type=click.IntRange(1), help="Torch threads per job.  [default: 1]")
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
    chosen = _switches(switches)
    name, made = find_study(study, size, _seeds(seeds), chosen)
    folder = out or Path("runs") / "-".join((name, size, *chosen.values()))
    files = (*plugins, *([Path(study.partition(".py")[0] + ".py")] if ".py" in study else []))
    with _bars() as bars:
        total = bars.add_task(f"{name} ({size})", total=None)
        running: dict[str, Any] = {}

        def watch(what: str, done: int, steps: int) -> None:
            job = what.partition(": ")[0]
            if job not in running:
                running[job] = bars.add_task(what)
            bars.update(running[job], description=what, completed=done, total=steps)
            if what.endswith(": done"):
                bars.remove_task(running.pop(job))

        with _executor(executor, workers, watch) as pool:
            run_study(
                made,
                folder,
                name=name,
                executor=pool,
                workers=workers,
                threads=threads,
                device=device,
                plugins=[file.resolve() for file in files],
                progress=watch,
                finished=lambda done, jobs: bars.update(total, completed=done, total=jobs),
            )
        bars.add_task("writing the report", total=None)
        page = write_report(folder)
    click.echo(str(page))


@cli.command("scan", cls=ScanHelp)
@click.argument("model")
@click.argument("data")
@factory_option
@layers_option
@click.option(
    "--perturb", default=DEFAULT_PERTURBATIONS, show_default=True, help="Names, families or calls, by commas."
)
@click.option(
    "--curves", default=DEFAULT_CURVES, show_default=True, help="Attacks whose accuracy is drawn over eps; '' for none."
)
@click.option("--also", help="Metrics to measure besides, such as 'manifold_capacity, manifold_radius'.")
@images_option
@click.option("--reduce", type=click.Choice(list(REDUCTIONS)), default="spatial_mean", show_default=True,
              help="What a unit is: a channel, a feature of the last axis, or every position.")  # fmt: skip
@batch_size_option
@seed_option
@device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The report; its table and figures go to a folder of the same name.",
)
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
    """
    with _bars() as bars:
        task = bars.add_task("scanning", total=None)
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
            reduce=REDUCTIONS[reduce],
            seed=seed,
            progress=lambda done, steps: bars.update(task, completed=done, total=steps),
        )
    _warn(found.problems)
    click.echo(str(found.report))


@cli.command("attack", cls=ScanHelp)
@click.argument("model")
@click.argument("data")
@click.option("--attacks", default="LinfAutoAttack", show_default=True, help="Names or calls, separated by commas.")
@click.option("--restarts", type=click.IntRange(1), default=1, show_default=True, help="Tries of each attack.")
@click.option(
    "--every/--union", default=True, help="Run each attack on all images, or on what is left.  [default: every]"
)
@factory_option
@images_option
@batch_size_option
@seed_option
@device_option
@click.option("--out", type=click.Path(path_type=Path), help="A .parquet file for the outcome of each image.")
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
    if out is not None and out.suffix != ".parquet":
        raise GeophoneError(f"--out {out}: give a file that ends in .parquet.")
    with _bars() as bars:
        task = bars.add_task("attacking", total=None)
        found = attack(
            *(model, data, attacks),
            restarts=restarts,
            every=every,
            factory=factory,
            images=images,
            batch_size=batch_size,
            seed=seed,
            device=device,
            progress=lambda done, steps: bars.update(task, completed=done, total=steps),
        )
    _warn(found.problems)
    table = Table(box=None, pad_edge=False)
    for heading in ("attack", "robust accuracy", "95 % interval"):
        table.add_column(heading, overflow="fold")
    for name, span in found.summary().items():
        table.add_row(
            name, *(("not run on all",) if span is None else (f"{span[0]:.4f}", f"{span[1]:.4f}-{span[2]:.4f}"))
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    if out is not None:
        with replacing(out) as file:
            found.frame().write_parquet(file)
        click.echo(str(out))


@cli.command("compare", cls=ScanHelp)
@click.argument("first", metavar="MODEL_A")
@click.argument("second", metavar="MODEL_B")
@click.argument("data")
@click.option("--measures", default="cka_minibatch", show_default=True, help="Of similarity; numbers are of the first.")
@click.option(
    "--reduce", type=click.Choice(list(REDUCTIONS)), help="A unit is a channel's mean, ….  [default: every position]"
)
@click.option("--points", type=click.IntRange(4), default=1000, show_default=True, help="Images whose rows are kept.")
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
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("compared.html"), show_default=True, help="The page."
)
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
    with _bars() as bars:
        task = bars.add_task("comparing", total=None)
        found = compare_networks(
            *(first, second, data),
            measures=_names(measures),
            layers=_names(layers),
            others=_names(others),
            out=out,
            perturb=perturb,
            factory=factory,
            images=images,
            batch_size=batch_size,
            reduce=REDUCTIONS[reduce] if reduce else same_memory,
            points=points,
            seed=seed,
            device=device,
            progress=lambda done, steps: bars.update(task, completed=done, total=steps),
        )
    _warn(found.problems)
    click.echo(str(found.report))


@cli.command("list")
@click.argument("kind", metavar=f"[{'|'.join(REGISTRIES)}]", required=False)
@plugin_option
def list_command(kind: str | None, plugins: tuple[Path, ...]) -> None:
    """List what is registered, plug-ins included: data, models, recipes, perturbations, metrics or studies."""
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
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: FOLDER/report.html]")
def report(folder: Path, out: Path | None) -> None:
    """Write the report of a study's FOLDER anew from its table."""
    click.echo(str(write_report(folder, out)))


def _warn(problems: Iterable[str]) -> None:
    """Say what looks wrong, on standard error."""
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise GeophoneError(f"cannot read the seeds {text!r}: write whole numbers, such as 0,1,2.") from None


def _names(text: str | None) -> list[str] | None:
    """Names separated by commas; None for none."""
    return [part.strip() for part in text.split(",")] if text else None


def _switches(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise GeophoneError(f"cannot read --set {text!r}: write NAME=VALUE, such as reduce=positions.")
    return dict(text.split("=", 1) for text in texts)


def _executor(kind: str, workers: int, progress: Progress) -> AbstractContextManager[Executor | None]:
    if kind == "ray":
        return ray_executor(workers)
    return process_executor(workers, progress) if workers > 1 else nullcontext()


@contextmanager
def _bars() -> Iterator[rich_progress.Progress]:
    """Progress bars with the remaining time, on standard error."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bars:
        yield bars


def main(arguments: list[str] | None = None, leave: Callable[[int], Any] = sys.exit) -> None:
    """Run the command line. Bad input gives one line on standard error and exit code 2."""
    try:
        load_entry_points()
        code = cli.main(arguments, prog_name="geophone", standalone_mode=False)
        leave(code if isinstance(code, int) else 0)
    except GeophoneError as error:
        click.echo(f"geophone: {error}", err=True)
        leave(2)
    except click.ClickException as error:
        error.show()
        leave(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("geophone: interrupted. The same command continues where it stopped.", err=True)
        leave(130)
