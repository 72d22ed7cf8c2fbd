"""Reads the files of a checkpoint folder, and refuses a missing or damaged one by name."""

import codecs
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from zrelay_shared import strict_json
from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.safetensors_header import SafetensorsError, read_whole_header
from zrelay_shared.weight_formats import ORIGINAL, problem_of_config, problem_of_weights

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_NAME_BYTES = 255
"""Of a file's name, on every common file system."""
_MAX_PROBLEM_CHARS = 1000
"""Of what a refusal says about a file: a damaged file may hold a name or a value of megabytes."""
_UTF_16_AND_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def refusal(root: Path, file: str, problem: str, remedy: str) -> CheckpointError:
    """Returns an error with the message `<folder as given>: <file> <problem>; <remedy>`.

    For a broken symbolic link, as a pruned cache has them, the message says so and names its target.
    """
    if is_broken_link(path := root / file):
        problem = f"is a broken symbolic link: its target {path.readlink()} does not exist"
        remedy = "download it again, or copy the checkpoint with the files that its links point to (cp -rL)"
    if len(problem) > _MAX_PROBLEM_CHARS:
        problem = f"{problem[:_MAX_PROBLEM_CHARS]}..."
    return CheckpointError(
        f"{root}: {file} {problem}; {remedy}" if file else f"{root} {problem}; {remedy}",
        metadata={"file": file or root.name},
    )


def is_broken_link(path: Path) -> bool:
    """Returns whether `path` is a symbolic link whose target does not exist."""
    return path.is_symlink() and not path.exists()


def require_folder(path: Path) -> None:
    """Checks that `path` is a folder. Raises CheckpointError."""
    if path.is_dir():
        return
    if path.suffix in PICKLE_SUFFIXES and path.is_file():
        raise pickle_refusal(path.parent, [path.name])
    problem = "is a file, expected a folder" if path.exists() else "does not exist"
    raise refusal(path, "", problem, "give the folder of a Z-Image checkpoint as diffusers saves it")


def read_json(root: Path, file: str) -> Mapping[str, object]:
    """Returns the JSON object in `file` of the folder `root`. Raises CheckpointError."""
    path = root / file
    if not path.is_file():
        raise refusal(root, file, "is missing", "a Z-Image checkpoint has it; copy it again from its source")
    try:
        content = strict_json.parse(read_text(root, file))
    except strict_json.JsonError as error:
        raise refusal(root, file, str(error), "it is damaged or incomplete; copy it again") from error
    if not isinstance(content, dict):
        raise refusal(root, file, f"holds a JSON {type(content).__name__}, expected an object", "copy it again")
    return content


def read_text(root: Path, file: str) -> str:
    r"""Returns the text in `file` of the folder `root`, without a byte order mark, with \n as line end.

    Raises:
        CheckpointError: The file is too large, or is not UTF-8.
    """
    with (root / file).open("rb") as opened:
        # `read(n)` allocates n bytes at once, whatever the size of the file.
        data = opened.read(min(os.fstat(opened.fileno()).st_size, MAX_JSON_BYTES) + 1)
    if len(data) > MAX_JSON_BYTES:
        raise refusal(root, file, f"has more than {MAX_JSON_BYTES} bytes, more than any such file", "copy it again")
    if data.startswith(_UTF_16_AND_32):
        raise refusal(root, file, "is UTF-16 or UTF-32 text, expected UTF-8", "save it as UTF-8, or copy it again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refusal(root, file, "is not UTF-8 text", "it is damaged or incomplete; copy it again") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def without_byte_order_marks(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Provides a folder whose text files `names` have no UTF-8 byte order mark, for libraries that cannot read one.

    It is `folder` itself if no file has a mark. Otherwise it is a temporary folder with copies of the files `names`,
    which is removed at the end of the context.

    Args:
        folder: The folder.
        names: Names of files, relative to it. Missing files are skipped.
    """
    found = [name for name in names if (folder / name).is_file()]
    if not any(_has_mark(folder / name) for name in found):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="zrelay-") as made:
        for name in found:
            copy = Path(made) / name
            copy.parent.mkdir(exist_ok=True)
            if _has_mark(folder / name):
                copy.write_bytes((folder / name).read_bytes().removeprefix(codecs.BOM_UTF8))
            else:
                shutil.copyfile(folder / name, copy)
        yield Path(made)


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def find_weights(
    root: Path, inside: str, base: str, config: Mapping[str, object]
) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    """Selects the safetensors files of the component in `root/inside`. Exactly these are checked, hashed and loaded.

    They are `<base>.safetensors`, or the shards that `<base>.safetensors.index.json` lists. Variants such as
    `<base>.fp16.safetensors` are ignored. Where more than one set of weights could be meant, the folder is refused.

    Args:
        root: The checkpoint, as the user named it.
        inside: Folder of the component in it, "" for `root` itself.
        base: Name of the weights without suffixes.
        config: Configuration of the component.

    Returns:
        The files in order, and the index from tensor names to file names, which is None for a single file. The header
        of each file is compared with the file's size.

    Raises:
        CheckpointError: A file is missing, damaged or pickled, the files are not one set of weights, a tensor is stored
            twice, or zrelay does not load such weights (`weight_formats`).
    """
    folder, single, index_file = root / inside, f"{base}.safetensors", f"{base}.safetensors.index.json"
    if (problem := problem_of_config(config)) is not None:
        raise refusal(root, join(inside, "config.json"), *problem)
    has_index = (folder / index_file).is_file()
    index = _read_index(root, inside, index_file) if has_index else {}
    if is_broken_link(folder / index_file):
        raise refusal(root, join(inside, index_file), "is missing", "copy it again")
    if not has_index and not (folder / single).is_file():
        raise _no_weights(root, inside, base)
    chosen = sorted(set(index.values())) if has_index else [single]
    _check_one_set(root, inside, base, chosen, has_index)
    listed_in: dict[str, list[str]] = {}
    for name, file in index.items():
        listed_in.setdefault(file, []).append(name)
    owner: dict[str, str] = {}
    for file in chosen:
        if not (folder / file).is_file():
            raise refusal(
                root,
                join(inside, file),
                "is missing",
                f"it is one of {len(chosen)} shards that {index_file} lists; copy it again",
            )
        names = _tensor_names(root, join(inside, file))
        if lost := sorted(name for name in listed_in.get(file, ()) if name not in names):
            raise refusal(root, join(inside, file), f"lacks {listed(lost)}", f"{index_file} says it holds them")
        if twice := sorted(names & owner.keys()):
            raise refusal(
                root,
                join(inside, file),
                f"holds {listed(twice)}, which {owner[twice[0]]} holds too",
                "the shards are of two sets of weights; copy the folder again",
            )
        if has_index and (extra := sorted(names - index.keys())):
            raise refusal(
                root,
                join(inside, file),
                f"holds {listed(extra)}, which {index_file} does not list",
                "the index is of another set of weights; copy the folder again",
            )
        owner.update(dict.fromkeys(names, file))
    return tuple(folder / file for file in chosen), index if has_index else None


def _read_index(root: Path, inside: str, index_file: str) -> dict[str, str]:
    shown = join(inside, index_file)
    weight_map = read_json(root, shown).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(v, str) for v in weight_map.values())):
        raise refusal(root, shown, "has no weight_map", "it should map each tensor to its shard; copy it again")
    for shard in sorted(set(weight_map.values())):
        plain = Path(shard).name == shard and shard.isprintable() and len(shard.encode()) <= _MAX_NAME_BYTES
        if not plain or not shard.endswith(".safetensors"):
            what = f"lists {strict_json.shown(shard)}"
            raise refusal(root, shown, what, "shards are .safetensors files of the same folder")
    return dict(weight_map)


def _check_one_set(root: Path, inside: str, base: str, chosen: Sequence[str], has_index: bool) -> None:
    """Refuses files beside the chosen ones that could be meant instead of them."""
    variant = re.compile(rf"{re.escape(base)}(\.[A-Za-z0-9_]+(-\d+-of-\d+)?|-\d+-of-\d+\.[A-Za-z0-9_]+)\.safetensors")
    beside = sorted(
        item.name
        for item in (root / inside).glob(f"{base}*.safetensors")
        if item.name not in chosen and not variant.fullmatch(item.name)
    )
    if not beside:
        return
    here = f"{base}.safetensors.index.json with {listed(list(chosen))}" if has_index else f"{base}.safetensors"
    raise refusal(
        root,
        join(inside, beside[0]),
        f"is beside other weights: one set is {here}, another {listed(beside)}",
        "keep the set that you want in this folder, and move the other away",
    )


def _no_weights(root: Path, inside: str, base: str) -> CheckpointError:
    folder, single, index_file = root / inside, f"{base}.safetensors", f"{base}.safetensors.index.json"
    if found := find_pickles(folder):
        return pickle_refusal(root, [join(inside, name) for name in found])
    if gguf := sorted(item.name for item in folder.glob("*.gguf")):
        return refusal(
            root, join(inside, gguf[0]), "holds GGUF weights", f"quantised layouts are not supported: {ORIGINAL}"
        )
    if others := sorted(item.name for item in folder.glob(f"{base}*.safetensors")):
        return refusal(
            root,
            join(inside, single),
            f"is missing, beside {listed(others)}",
            f"shards need {index_file}, copy it from the same checkpoint; rename the file of a variant to {single}",
        )
    return refusal(
        root,
        join(inside, single),
        "is missing",
        f"it should hold the weights (or {index_file} and the shards it lists); copy it again",
    )


def _tensor_names(root: Path, file: str) -> frozenset[str]:
    try:
        header = read_whole_header(root / file)
    except SafetensorsError as error:
        raise refusal(root, file, str(error), "copy the file again and compare its size") from error
    if (problem := problem_of_weights(header.entries, header.metadata)) is not None:
        raise refusal(root, file, *problem)
    return frozenset(entry.name for entry in header.entries)


def find_pickles(folder: Path) -> list[str]:
    """Returns the names of pickled files in a folder, by their suffix."""
    return sorted(item.name for item in folder.iterdir() if item.suffix in PICKLE_SUFFIXES and item.is_file())


def pickle_refusal(root: Path, files: Sequence[str]) -> CheckpointError:
    """Returns the error for pickled weights, which explains how to convert them."""
    return CheckpointError(
        f"{root}: {listed(list(files))}: pickled weights are never opened, since a pickle can run any code; expected "
        "safetensors. Load it where you trust it and save it again: "
        "`model = AutoModel.from_pretrained(DIR); model.save_pretrained(NEW_DIR, safe_serialization=True)`",
        reason="PICKLE_REFUSED",
        metadata={"file": files[0]},
    )


def join(inside: str, name: str) -> str:
    """Returns `inside/name`, or `name` if `inside` is empty."""
    return f"{inside}/{name}" if inside else name
