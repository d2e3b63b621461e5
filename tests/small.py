"""A whole experiment that runs in seconds: the built-in tales, a handful of prompts, a few steps a stage."""

from prefloop import config
from prefloop.config import Experiment

SMALL = """
name: small
model: builtin:tiny-llama
prompts: {path: builtin:tales/prompts, limit: 60}
sft: {data: {path: builtin:tales/demonstrations, limit: 60}, text: {path: builtin:tales/texts, limit: 60},
      text_share: 0.2, max_steps: 4, batch_size: 4, learning_rate: 1e-3, max_length: 96}
reward: {seed_prompts: 6, max_steps: 3, batch_size: 2, learning_rate: 1e-3, validation_share: 0.2}
generate: {num_completions: 3, max_new_tokens: 12}
annotate:
  annotator: {kind: simulated, gold: {kind: rule, rule: tales}, temperature: 1.0}
policy: {learning_rate: 1e-4, batch_size: 2, steps_per_batch: 3}
evaluate: {num_prompts: 6, scorer: {kind: rule, rule: tales}, second_scorer: {kind: rule, rule: tales_craft},
           resamples: 200}
loop: {batches: 2, prompts_per_batch: 6, gate: {metric: proxy, num_prompts: 4}}
runtime: {device: cpu, threads: 1, generation_rows: 6, save_every_steps: 1}
"""


def small(*overrides: str) -> Experiment:
    """The small experiment with changes."""
    return config.parse(SMALL, overrides, where="small.yaml")
