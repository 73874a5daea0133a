"""The page of the Space: the metric with a form to try it. Needs gradio, which a Space brings along."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("ir_metrics.py"))))
