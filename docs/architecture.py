"""Draw docs/architecture.svg, the model that params.yaml describes: python -m docs.architecture [FILE] [VOCABULARY]."""

import sys
from pathlib import Path

from minilm.model.config import ModelConfig
from minilm.params import load_params

DOCS = Path(__file__).resolve().parent
WIDTH, STYLE = 780, """
    rect { fill: #fff; stroke: #57606a; stroke-width: 1.5 } .block { fill: #eaf2ff; stroke: #3b6fb6 }
    .page { fill: #fff; stroke: none } text { fill: #1f2328 } .note { fill: #57606a; font-size: 13px }
    .line { fill: none; stroke: #57606a; stroke-width: 1.5 } .shape { fill: #0a5fb0; font: 13px monospace }
    @media (prefers-color-scheme: dark) {
      .page, rect { fill: #161b22 } rect { stroke: #9198a1 } .block { fill: #122a46; stroke: #6ea8fe }
      text { fill: #e6edf3 } .note { fill: #adb5bd } .line { stroke: #9198a1 } .shape { fill: #79c0ff } }
"""
