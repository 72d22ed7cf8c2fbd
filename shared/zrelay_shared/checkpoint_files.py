"""Reads the files of a checkpoint folder, and refuses a missing or damaged one by name."""

import codecs
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.safetensors_header import SafetensorsError, read_header

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON_BYTES = 64 * 1024 * 1024
_UTF_16_AND_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def refusal(root: Path, file: str, problem: str, remedy: str) -> CheckpointError:
    """Returns an error with the message `<folder as given>: <file> <problem>; <remedy>`."""
    return CheckpointError(
        f"{root}: {file} {problem}; {remedy}" if file else f"{root} {problem}; {remedy}",
        metadata={"file": file or root.name},
    )


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
    text = read_text(root, file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise refusal(root, file, f"is not JSON{where}", "it is damaged or incomplete; copy it again") from error
    if not isinstance(content, dict):
        raise refusal(root, file, f"holds a JSON {type(content).__name__}, expected an object", "copy it again")
    return content


def read_text(root: Path, file: str) -> str:
    r"""Returns the text in `file` of the folder `root`, without a byte order mark, with \n as line end.

    Raises:
        CheckpointError: The file is too large, or is not UTF-8.
    """
    path = root / file
    if path.stat().st_size > MAX_JSON_BYTES:
        raise refusal(root, file, f"has {path.stat().st_size} bytes, more than any such file", "copy it again")
    data = path.read_bytes()
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


def find_weights(root: Path, inside: str, base: str) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    """Returns the safetensors files of the component in `root/inside`, in order, and its index.

    The index maps tensor names to file names; it is None for a single file. The header of each file is compared with
    the file's size.

    Raises:
        CheckpointError: A file is missing, damaged or pickled.
    """
    folder, single, index_file = root / inside, f"{base}.safetensors", f"{base}.safetensors.index.json"
    if (folder / single).is_file():
        _tensor_names(root, join(inside, single))
        return (folder / single,), None
    if not (folder / index_file).is_file():
        if found := find_pickles(folder):
            raise pickle_refusal(root, [join(inside, name) for name in found])
        raise refusal(
            root,
            join(inside, single),
            "is missing",
            f"it should hold the weights (or {index_file} and the shards it lists); copy it again",
        )
    shown = join(inside, index_file)
    weight_map = read_json(root, shown).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(v, str) for v in weight_map.values())):
        raise refusal(root, shown, "has no weight_map", "it should map each tensor to its shard; copy it again")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise refusal(root, shown, f"lists {shard!r}", "shards are .safetensors files of the same folder")
        if not (folder / shard).is_file():
            raise refusal(
                root,
                join(inside, shard),
                "is missing",
                f"it is one of {len(shards)} shards that {index_file} lists; copy it again",
            )
        names = _tensor_names(root, join(inside, shard))
        if lost := sorted(name for name, file in weight_map.items() if file == shard and name not in names):
            raise refusal(root, join(inside, shard), f"lacks {listed(lost)}", f"{index_file} says it holds them")
    return tuple(folder / shard for shard in shards), dict(weight_map)


def _tensor_names(root: Path, file: str) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in read_header(root / file))
    except SafetensorsError as error:
        raise refusal(root, file, str(error), "copy the file again and compare its size") from error


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
