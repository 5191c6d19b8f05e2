"""Runs examples with their defaults and writes docs/gallery.md: pictures, what they prove, outputs (`make gallery`).

python examples/gallery.py             # about 10 minutes on two idle cores, half of them for lr_wd_map
python examples/gallery.py rnn gan     # some of them; the others' sections keep their outputs
python examples/gallery.py --words     # none of them: titles, commands and alternative texts alone
"""

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
DOCS, PICTURES = HERE.parent / "docs", HERE / "pictures"
GALLERY, PRECISION = DOCS / "gallery.md", DOCS / "precision.md"
GROUPS = {
    "What decay does": [
        "linear_regression",
        "digits_mlp",
        "ema_momentum_rmsprop_adam",
        "learning_rate_schedules",
        "watch",
    ],
    "Applications": ["classifier_784", "cnn", "rnn", "transformer", "gan", "reinforce", "finetune_anchor", "muon"],
    "Which λ": ["lr_wd_map", "transfer", "learn_decay"],
    "Low precision, many devices": ["bf16_decay", "tpu_run"],
}
NAMES = [name for names in GROUPS.values() for name in names]
OPENING = """\
# Gallery

<!-- `make gallery` writes this page. -->

One file each, on real data without download. The outputs were made with the defaults on two CPU cores. ± is half of the
mean's 95 % interval over seeds (Student's t); a verdict, "significant at 5 %", needs at least three seeds.
`make examples` runs all of them in a short setting.
"""


def shown(printed: str) -> str:
    """The output of an example after its last table of parameters, if it prints one."""
    tables = list(re.finditer(r"^\d+ of \d+ leaves decay.*\n", printed, re.M))
    return printed[tables[-1].end() if tables else 0 :].strip("\n")


def conclusion(output: str) -> str:
    """The sentence that an example ends with: the last line but those that name files and seeds."""
    return next(line for line in reversed(output.splitlines()) if not re.search(r"out/|^\d+ (seeds|splits) ", line))


def outputs(page: str) -> dict[str, str]:
    """The output in each section of the page."""
    return dict(re.findall(r"^### (\w+)\n(?:(?!^### ).)*?^```text\n(.*?)\n```$", page, re.M | re.S))


def section(name: str, output: str) -> str:
    """The section of an example: its own words, pictures, what they prove, and how to get it."""
    doc, alt = documented((HERE / f"{name}.py").read_text())
    opening, commands = doc.split("\n")[0], "\n".join(re.findall(r"^    (python .*)$", doc, re.M))
    files = [path.name for path in sorted(PICTURES.glob("*.png")) if re.fullmatch(rf"{name}(_[a-z]+)?", path.stem)]
    pictures = "".join(f"![{alt}](../examples/pictures/{file})\n\n" for file in files)
    return f"""### {name}

[examples/{name}.py](../examples/{name}.py): {opening[0].lower()}{opening[1:]}

{pictures}**{conclusion(output)}**

```sh
{commands}
```

<details><summary>Output</summary>

```text
{output}
```

</details>
"""


def documented(source: str) -> tuple[str, str]:
    """The docstring of an example, and that of its `plot`: the alternative text of its pictures."""
    tree = ast.parse(source)
    of = {node.name: str(ast.get_docstring(node)) for node in tree.body if isinstance(node, ast.FunctionDef)}
    return str(ast.get_docstring(tree)), of.get("plot", "").split("\n")[0]


def rendered(found: dict[str, str]) -> str:
    """The whole page."""
    parts = [OPENING]
    for group, names in GROUPS.items():
        parts += [f"## {group}\n", *(section(name, found[name]) for name in names)]
    return "\n".join(parts)


def run(name: str) -> str:
    """Runs an example in a folder of its own, copies its pictures, and returns its output."""
    with tempfile.TemporaryDirectory() as folder:
        script = HERE / f"{name}.py"
        command = [sys.executable, str(script), *["--out=out"] * ("def plot(" in script.read_text())]
        printed = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
        for picture in pathlib.Path(folder, "out").glob("*.png"):
            shutil.copy(picture, PICTURES)
    return shown(printed)


def write(found: dict[str, str]) -> None:
    """Writes the page, and the output of `bf16_decay` to where it is discussed."""
    GALLERY.write_text(rendered(found))
    text, at = PRECISION.read_text(), "## Measured\n"
    before, rest = text[: text.index(at)], text[text.index(at) :]
    block = f"```text\n{found['bf16_decay']}\n```"
    PRECISION.write_text(before + re.sub(r"```text\n.*?\n```", lambda _: block, rest, count=1, flags=re.S))


def main(names: list[str]) -> None:
    """Runs the examples one after another; tpu_run, whose output has timings, only if it is named."""
    found = outputs(GALLERY.read_text())
    if names == ["--words"]:
        write(found)
        return
    if unknown := set(names) - set(NAMES):
        sys.exit(f"no example is named {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    for name in names or [name for name in NAMES if name != "tpu_run"]:
        print(name, flush=True)
        found[name] = run(name)
        write(found)


if __name__ == "__main__":
    main(sys.argv[1:])
