"""The settings of generation: everything that decides what follows a prompt, without torch."""

import math
from dataclasses import dataclass

from minilm.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How characters are drawn from the model's distribution, and how many.

    Attributes:
        temperature: divides the logits: below 1 safer, above 1 more varied, 0 always the most likely
            character.
        top_k: choose among the k most likely characters; 0, or more than there are, means all.
        top_p: choose among the most likely characters that together have this probability
            ("The Curious Case of Neural Text Degeneration", Holtzman et al., 2020); 1 means all.
        min_p: exclude characters whose probability is less than this share of the most likely one's
            ("Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", Nguyen et al.,
            2025); 0 excludes none.
        max_new_tokens: characters to write at most.
        stop: writing ends before this text; empty for none.
        seed: the same model, prompt, settings and seed give the same text.

    Raises:
        InputError: a value is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 200
    stop: str = ""
    seed: int = 1337

    def __post_init__(self) -> None:
        in_range = 0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1
        if not (in_range and 0 <= self.min_p <= 1):
            raise InputError(
                "temperature and top_k must be at least 0, top_p above 0 to 1 and min_p from 0 to 1, "
                f"not {self.temperature}, {self.top_k}, {self.top_p} and {self.min_p}"
            )
        for key in ("max_new_tokens", "seed"):
            if getattr(self, key) < 0:
                raise InputError(f"{key}: {getattr(self, key)} is less than 0")
