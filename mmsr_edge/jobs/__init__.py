"""Jobs: many pictures in one call, which can be stopped and resumed."""

from __future__ import annotations

from mmsr_edge.jobs.run import JOURNAL, Outcome, Report, run_job
from mmsr_edge.jobs.tasks import SUFFIXES, Task, find_tasks

__all__ = ["JOURNAL", "SUFFIXES", "Outcome", "Report", "Task", "find_tasks", "run_job"]
