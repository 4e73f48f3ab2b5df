"""What each process imports, by `sys.modules`: torch's compiler and timm take longer to import than torch."""

import ast
import json
import subprocess
import sys

import pytest

from ciss import paths

NOTEBOOKS = paths.project() / "notebooks"
COMPILER = {"torch._dynamo", "torch._inductor"}


def imported(program: str, modules: set[str], *arguments: str, folder=None) -> set[str]:
    """Those of the modules that a program has imported at its end."""
    code = f"{program}\nimport sys; print('imported', *({modules!r} & {{*sys.modules}}))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def imports_of(notebook: str) -> str:
    """The import statements of a notebook."""
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(ast.unparse(n) for tree in trees for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize("notebook", ["4_forgetting.ipynb", "5_background.ipynb", "6_compare.ipynb"])
def test_analyses_import_neither_compiler_nor_timm(notebook):
    assert imported(imports_of(notebook), {*COMPILER, "timm", "torchvision", "scipy"}) == set()


def test_the_training_loop_imports_what_it_needs_alone():
    assert imported("import ciss.training.loop", {*COMPILER, "timm", "torchvision", "scipy", "matplotlib"}) == set()


def test_timm_and_torchvision_without_the_compiler():
    program = "import ciss, timm, torchvision.transforms.v2, torchvision.ops"
    assert imported(program, {*COMPILER, "torchvision.tv_tensors"}) == {"torchvision.tv_tensors"}


def test_the_compiler_is_there_for_who_uses_it():
    """Also in the middle of an import, by a name that the stand-in lacks, or in one of its modules."""
    program = "import ciss, torch, timm, torchvision; "
    assert "torch._dynamo" in imported(f"{program} torch._dynamo.reset()", COMPILER)
    asked = "import sys; sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu')"
    assert "torch._dynamo" in imported(program + asked, COMPILER)
    compiled = "f = torch.compile(torch.nn.Linear(2, 2), backend='eager'); f(torch.ones(1, 2))"
    assert "torch._dynamo" in imported(program + compiled, COMPILER)
    inside = "from ciss.without_compiler import without_compiler\nimport torch\nwith without_compiler():\n    "
    for use in ("import torch._dynamo.config", "from torch._dynamo import optimize", "torch._dynamo.reset()"):
        assert "torch._dynamo" in imported(inside + use, COMPILER), use


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "resnet18", "ciss_tiny"])
def test_checking_a_network_needs_no_compiler(encoder):
    stride = 16 if encoder != "ciss_tiny" else 4
    decoder = "mask_transformer" if "vit" in encoder else "deeplabv3"
    program = f"""
from ciss.config import Model
from ciss.runs import check
assert check._network_problems(Model(encoder="{encoder}", output_stride={stride}, decoder="{decoder}", width=64)) == []
"""
    assert imported(program, {*COMPILER, "timm"}) == {"timm"}


def test_a_training_and_its_scores_need_no_compiler(project):
    project.write()
    program = """
from ciss import config
from ciss.runs.run import resolve
from ciss.training import loop
loop.main("base", "params.yaml")
loop.main("mib-1", "params.yaml")
"""
    assert imported(program, {*COMPILER, "timm"}, folder=project.folder) == {"timm"}
