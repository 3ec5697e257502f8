"""Jobs: many pictures, a few at a time, that can be stopped and taken up again."""

from __future__ import annotations

from mmsr_edge.jobs.run import JOURNAL, Outcome, Report, run_job
from mmsr_edge.jobs.tasks import SUFFIXES, Task, find_tasks

__all__ = ["JOURNAL", "SUFFIXES", "Outcome", "Report", "Task", "find_tasks", "run_job"]
