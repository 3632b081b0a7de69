"""Settings that the text of a page names exist in bcnet.toml; blocks of it are read in test_blocks.py."""

import re

from bcnet.config import settings
from tests.docs.pages import ROOT, text_of

FILES = {"onnx", "engine", "pt2", "safetensors", "json", "previous", "py"}  # `model.onnx` is a file
NETWORK = {"backbone", "state_dict"}  # attributes of a module called `model`
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def test_every_setting_that_a_page_names_is_one_of_bcnet_toml() -> None:
    known = settings()
    sections = {name.partition(".")[0] for name in known if "." in name}
    dotted = re.compile(rf"(?<![\w./])(?:{'|'.join(sorted(sections))})\.([a-z_]\w*)")
    named = [
        (page.relative_to(ROOT).as_posix(), found[0])
        for page in PAGES
        for code in re.findall(r"`([^`\n]+)`", text_of(page))
        for found in dotted.finditer(code)
        if found[1] not in FILES | NETWORK
    ]
    assert len(named) > 100
    assert [own for own in named if own[1] not in known] == []
