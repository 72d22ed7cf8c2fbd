"""`zrelay analyze`: outlier dimensions of embeddings, and correlations of two sets of embeddings."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._options import PATH, Integer, Number, OptionsCommand, json_option, option
from zrelay_client.cli._output import echo, print_json, print_table

if TYPE_CHECKING:
    from zrelay_client.analysis import Correlations, Outlier, Sample


@click.command("analyze", cls=OptionsCommand)
@click.argument("file", type=PATH)
@click.argument("reference", type=PATH, required=False)
@option(
    "--threshold",
    type=Number(min=0),
    default=10.0,
    show_default=True,
    metavar="RATIO",
    help="Ratio of deviations above which a dimension is listed.",
)
@option("--top", type=Integer(min=1), default=20, show_default=True, metavar="N", help="Most dimensions to list.")
@option("--with-first", is_flag=True, help="Include the first token of each sequence, which is an attention sink.")
@json_option
def command(file: str, reference: str | None, threshold: float, top: int, with_first: bool, as_json: bool) -> None:
    """List the outlier dimensions of FILE, largest ratio first, and its correlations with REFERENCE.

    Both are files of `zrelay calibrate`, `zrelay encode` or `zrelay vision encode`. The ratio of a dimension is its
    standard deviation in FILE divided by that in REFERENCE, or without REFERENCE by the median of all dimensions.
    Needs numpy: pip install 'zrelay[analysis]'.
    """
    from zrelay_client.analysis import correlations, open_sample, outliers

    sample = open_sample(Path(file), with_first=with_first)
    other = open_sample(Path(reference), with_first=with_first) if reference is not None else None
    found = outliers(sample, other, threshold)
    together = correlations(sample, other) if other is not None else None
    if as_json:
        values: dict[str, Any] = {
            "file": _values(sample),
            "reference": _values(other) if other is not None else None,
            "threshold": threshold,
            "outlier_count": len(found),
            "outliers": [asdict(one) for one in found[:top]],
            "correlations": asdict(together) if together is not None else None,
        }
        print_json(values)
        return
    _print(sample, other, together, found, threshold, top)


def _values(sample: "Sample") -> dict[str, Any]:
    return {
        "name": sample.name,
        "kind": sample.kind,
        "width": len(sample.std),
        "tokens": sample.tokens,
        "token_rms": sample.token_rms,
        "std": sample.overall_std,
    }


def _print(
    sample: "Sample",
    other: "Sample | None",
    together: "Correlations | None",
    found: "list[Outlier]",
    threshold: float,
    top: int,
) -> None:
    for one in (sample, other):
        if one is not None:
            echo(_line(one))
    if together is not None:
        echo(
            f"correlation over dimensions: means {together.mean:+.4f}, deviations {together.std:+.4f}, logarithms of "
            f"deviations {together.log_std:+.4f}"
        )
    against = "the median deviation" if other is None else f"the deviation in {other.name}"
    if not found:
        echo(f"no dimension deviates more than {threshold:g} times {against}")
        return
    echo(f"{len(found)} of {len(sample.std)} dimensions deviate more than {threshold:g} times {against}:")
    rows = [(f"{one.dimension}", f"{one.ratio:.4g}", f"{one.std:.4g}", f"{one.reference:.4g}") for one in found[:top]]
    print_table(("DIMENSION", "RATIO", "DEVIATION", "REFERENCE"), rows)
    if len(found) > top:
        echo(f"and {len(found) - top} more")


def _line(sample: "Sample") -> str:
    return (
        f"{sample.name}: {sample.kind.replace('_', ' ')}, {sample.tokens} tokens of {len(sample.std)} dimensions, "
        f"median RMS of a token {sample.token_rms:.4g}, deviation of all values {sample.overall_std:.4g}"
    )
