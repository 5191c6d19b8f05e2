"""Runs examples with their defaults and writes their output and pictures into the documents (`make gallery`).

python examples/gallery.py             # about 10 minutes on two idle cores, half of them for lr_wd_map
python examples/gallery.py rnn gan     # some of them
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
README, PRECISION = HERE / "README.md", HERE.parent / "docs" / "precision.md"
NAMES = [name for name in re.findall(r"^## \[(\w+)\.py\]", README.read_text(), re.M) if name != "tpu_run"]


def shown(printed: str) -> str:
    """The output of an example after its last table of parameters, if it prints one."""
    tables = list(re.finditer(r"^\d+ of \d+ leaves decay.*\n", printed, re.M))
    return printed[tables[-1].end() if tables else 0 :].strip("\n")


def updated(document: str, heading: str, text: str) -> str:
    """The document with `text` as the first block of text below the heading."""
    at = document.index(f"{heading}\n")
    start = document.index("```text\n", at) + len("```text\n")
    if "\n## " in document[at + len(heading) : start]:
        raise ValueError(f"the section {heading!r} has no block of text")
    return document[:start] + text + document[document.index("\n```", start) :]


def put(name: str, printed: str, pictures: pathlib.Path) -> None:
    """Writes an example's output into its document, and copies its pictures."""
    path, heading = (PRECISION, "## Measured") if name == "bf16_decay" else (README, f"## [{name}.py]({name}.py)")
    path.write_text(updated(path.read_text(), heading, shown(printed)))
    for picture in pictures.glob(f"{name}*.png"):
        shutil.copy(picture, HERE / "pictures")


def main(names: list[str]) -> None:
    """Runs the examples one after another."""
    for name in names or NAMES:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            script = HERE / f"{name}.py"
            draws = 'flags.DEFINE_string("out"' in script.read_text()
            command = [sys.executable, str(script), *["--out=out"] * draws]
            printed = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
            put(name, printed, pathlib.Path(folder) / "out")


if __name__ == "__main__":
    main(sys.argv[1:])
