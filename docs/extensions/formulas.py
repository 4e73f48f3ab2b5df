"""Formulas as MathML, which browsers draw themselves: the site needs no script for them.

`docs/_static/formulas.woff` has the signs that formulas use, of STIX Two Math 2.11. To make it again with fontTools:

    pyftsubset STIXTwoMath-Regular.ttf --flavor=woff --no-hinting --desubroutinize --layout-features=ssty,dtls,flac
        --output-file=formulas.woff --unicodes=U+20-7E,U+A0,U+AC,U+B1,U+B7,U+D7,U+131,U+2C6,U+2C9,U+2DC,U+302-304,
        U+391-3C9,U+3D1,U+3D5,U+3F5,U+2003,U+2009,U+2016,U+2026,U+2032,U+2061,U+210E,U+2113,U+2190-2192,U+21A6,
        U+2200-221E,U+2223,U+2225,U+2227-222A,U+2236,U+2248,U+2260,U+2264,U+2265,U+2282,U+2286,U+2295,U+22A4,U+22C5,
        U+2308-230B,U+27E8,U+27E9,U+1D400-1D467,U+1D49C-1D4CF,U+1D6A8-1D71B,U+1D7D8,U+1D7D9
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
