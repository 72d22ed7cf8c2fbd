"""`zrelay analyze`: lists the outlier dimensions of embeddings, and the correlations of two sets of embeddings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._flags import PLACE

if TYPE_CHECKING:
    from zrelay_client.analysis import Correlations, Outlier, Sample


@click.command("analyze")
@click.argument("file", type=PLACE)
@click.argument("reference", type=PLACE, required=False)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="RATIO",
    help="Ratio of deviations above which a dimension is listed.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Dimensions to list, at most."
)
@click.option("--with-first", is_flag=True, help="Include the first token of each sequence, an attention sink.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(file: str, reference: str | None, threshold: float, top: int, with_first: bool, as_json: bool) -> None:
    """List the outlier dimensions of FILE, worst first, and its correlations with REFERENCE.

    Each is a file of `zrelay calibrate`, `zrelay encode` or `zrelay vision encode`. A dimension's ratio is its
    deviation in FILE divided by its deviation in REFERENCE, or by the median deviation of FILE where no REFERENCE is
    given. Needs numpy: pip install 'zrelay[analysis]'.
    """
    from zrelay_client.analysis import correlations, open_sample, outliers

    sample = open_sample(Path(file), with_first=with_first)
    other = open_sample(Path(reference), with_first=with_first) if reference is not None else None
    outlier_list = outliers(sample, other, threshold)
    together = correlations(sample, other) if other is not None else None
    if as_json:
        output: dict[str, Any] = {
            "file": _json(sample),
            "reference": _json(other) if other is not None else None,
            "threshold": threshold,
            "outlier_count": len(outlier_list),
            "outliers": [asdict(one) for one in outlier_list[:top]],
            "correlations": asdict(together) if together is not None else None,
        }
        click.echo(json.dumps(output, ensure_ascii=False))
        return
    click.echo("\n".join(_lines(sample, other, together, outlier_list, threshold, top)))


def _json(sample: "Sample") -> dict[str, Any]:
    return {
        "name": sample.name,
        "kind": sample.kind,
        "width": len(sample.std),
        "tokens": sample.tokens,
        "token_rms": sample.token_rms,
        "std": sample.overall_std,
    }


def _lines(
    sample: "Sample",
    other: "Sample | None",
    together: "Correlations | None",
    outlier_list: "list[Outlier]",
    threshold: float,
    top: int,
) -> list[str]:
    lines = [_line(one) for one in (sample, other) if one is not None]
    if together is not None:
        lines.append(
            f"correlation over dimensions: means {together.mean:+.4f}, deviations {together.std:+.4f}, their "
            f"logarithms {together.log_std:+.4f}"
        )
    against = "the median deviation" if other is None else f"{other.name}'s deviation"
    if not outlier_list:
        return [*lines, f"no dimension deviates more than {threshold:g} times {against}"]
    lines.append(
        f"{len(outlier_list)} of {len(sample.std)} dimensions deviate more than {threshold:g} times {against}:"
    )
    lines.append("  dimension      ratio        std  reference")
    lines += [
        f"  {one.dimension:9}  {one.ratio:9.4g}  {one.std:9.4g}  {one.reference:9.4g}" for one in outlier_list[:top]
    ]
    return lines + ([f"  and {len(outlier_list) - top} more"] if len(outlier_list) > top else [])


def _line(sample: "Sample") -> str:
    return (
        f"{sample.name}: {sample.kind.replace('_', ' ')}, {sample.tokens} tokens of {len(sample.std)} dimensions, "
        f"median RMS of a token {sample.token_rms:.4g}, deviation of all values {sample.overall_std:.4g}"
    )
