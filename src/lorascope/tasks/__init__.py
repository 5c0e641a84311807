"""Tasks: rows, prompts, token ids, and scoring exactly as lm-eval does.

Models are loaded by `lorascope.tasks.embedded`.
"""

from lorascope.tasks.bridge import lm_eval_scores, require_lm_eval_tasks, task_to_lm_eval
from lorascope.tasks.collate import PaddingCollator, pad_token_id
from lorascope.tasks.encode import Encoded, encode_task
from lorascope.tasks.evaluate import Evaluation, evaluate_task
from lorascope.tasks.lengths import Lengths, length_bins, prompt_lengths, with_length
from lorascope.tasks.prompts import PROMPTS
from lorascope.tasks.registry import TASKS, load_task
from lorascope.tasks.rows import ChatRow, ChoiceRow, CompletionRow, Row, Task, TextRow

__all__ = [
    "PROMPTS",
    "TASKS",
    "ChatRow",
    "ChoiceRow",
    "CompletionRow",
    "Encoded",
    "Evaluation",
    "Lengths",
    "PaddingCollator",
    "Row",
    "Task",
    "TextRow",
    "encode_task",
    "evaluate_task",
    "length_bins",
    "lm_eval_scores",
    "load_task",
    "pad_token_id",
    "prompt_lengths",
    "require_lm_eval_tasks",
    "task_to_lm_eval",
    "with_length",
]
