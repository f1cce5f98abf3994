"""The MLflow model: text in, text out, by `mlflow.pyfunc.load_model` or `mlflow models serve`.

MLflow runs this file when it logs and when it loads a model ("models from code").
"""

from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from minilm.checkpoint import load
from minilm.errors import InputError
from minilm.generation import generate


class TextGenerator(PythonModel):
    """Continues each prompt; the params are those of `minilm.generate`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that was logged as the artifact `folder`."""
        self.model, self.tokenizer = load(context.artifacts["folder"])

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow passes it
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """One text for each prompt, the prompt first."""
        try:
            return [generate(self.model, self.tokenizer, prompt, **(params or {})) for prompt in model_input]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


mlflow.models.set_model(TextGenerator())
