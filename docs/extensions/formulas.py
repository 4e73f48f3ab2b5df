"""Formulas as MathML, which browsers draw themselves: the site needs no script for them.

`docs/_static/formulas.woff` has the signs: those that formulas use, of STIX Two Math 2.11, made by `pyftsubset`.
"""

import xml.etree.ElementTree as ET

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

ACCENTS = "~ˉ^"
NAMESPACE = "http://www.w3.org/1998/Math/MathML"


def inline(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def block(translator: nodes.NodeVisitor, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def mathml(node: nodes.Element, *, as_block: bool) -> str:
    """A formula's markup. A formula that cannot be read is a warning, and stands as it was written."""
    try:
        return markup(node.astext(), as_block=as_block)
    except MathError as error:
        getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
        return f"<code>{node.astext()}</code>"


def markup(formula: str, *, as_block: bool = False) -> str:
    """MathML of LaTeX. Corrects what docutils writes: indices under accents, and functions without a space."""
    text = tex2mathml(formula, as_block=as_block).replace("<mo>&ApplyFunction;</mo>", '<mspace width="0.17em"/>')
    tree = ET.fromstring(text.replace("<mo>'</mo>", "<mo>′</mo>"))
    for element in tree.iter(f"{{{NAMESPACE}}}munderover"):
        body, index, accent = element
        if accent.text in ACCENTS:  # \tilde{y}_i: the index belongs beside the letter, not below it
            letter = ET.Element(f"{{{NAMESPACE}}}mover", accent="true")
            letter.extend([body, accent])
            element.tag = f"{{{NAMESPACE}}}msub"
            element[:] = [letter, index]
    ET.register_namespace("", NAMESPACE)
    return ET.tostring(tree, encoding="unicode")


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
